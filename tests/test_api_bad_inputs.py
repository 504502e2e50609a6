"""Whatever is wrong with a change of an order: each row of the table has its code, and nothing is sent or changed."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from copyrisk.api.master_orders import CHANGES as MASTER_CHANGES
from copyrisk.api.orders import CHANGES, Change
from tests.api_house import Caller, House, data, refusal, served
from tests.conftest import Server
from tests.trading import Desk, dump

EVERY: tuple[Change, ...] = (*CHANGES, *MASTER_CHANGES)
GOOD = {
    "user_type": "strategy_provider",
    "user_id": "1",
    "order_id": "A",
    "symbol": "EURUSD",
    "order_type": "BUY",
    "order_quantity": "1",
    "order_price": "1.08",
    "stop_loss": "1.05",
    "take_profit": "1.15",
    "sending_orders": "rock",
}
CODES = {name: f"invalid_{name}" for name in GOOD} | {"user_id": "invalid_account_id"}
NUMBERS = ("order_quantity", "order_price", "stop_loss", "take_profit")
WRONG_TYPE: list[Any] = [None, True, False, [], ["1"], {}, {"a": 1}, float("nan"), float("inf"), float("-inf")]
NO_TEXT: list[Any] = ["", "x" * 2_000, "{1}", "a}b", "a\n", "\n", "\0", "a b c d", "\N{SNOWMAN}", "\ud800", "*", "'"]
NO_NUMBER = [
    "nan",
    "inf",
    "1e400",
    "1e5",
    "1_000",
    "\u0661\u0662",
    "\uff11",
    "+1",
    " 1",
    "1\n",
    "1,5",
    ".5",
    "5.",
    "0x1",
]
NOT_ABOVE_0: list[Any] = ["0", "-1", "0.000", "-0", 0, -1, -0.01, "9" * 19, 10**19]
#: Numbers that only JSON can write.
RAW_NUMBERS = (b"1e400", b"1E5", b"-0", b"1.0e-3", b"9" * 5_000, b"0.0", b"NaN", b"-Infinity", b"1." + b"1" * 19)


@pytest.fixture(scope="module")
def house(_one_bundled_server: Server) -> Iterator[House]:
    """Nobody works there: a command that gets through stays on its stream."""
    with _one_bundled_server.client() as client:
        client.flushall()
    desk = Desk(_one_bundled_server)
    for account in ("strategy_provider:1", "strategy_provider:2"):
        desk.account(account, balance="1000000")
    with served(desk, api__answer_timeout_ms=50) as made:
        yield made
    desk.close()


@pytest.fixture
def caller(house: House) -> Iterator[Caller]:
    """Everything that was there is there afterwards as it was, and nothing was added but used nonces."""
    made = house.caller(accounts=("strategy_provider:1",))
    before = dump(house.desk.client, is_of_access)
    yield made
    assert dump(house.desk.client, is_of_access) == before
    assert not house.desk.client.exists("copyrisk:commands")


def is_of_access(key: str) -> bool:
    return key.startswith("copyrisk:api:")


def path_of(change: Change) -> str:
    return change.path.replace("{order_id}", "A")


def body_of(change: Change) -> dict[str, Any]:
    """One that is well formed, with everything that it may have."""
    said = {name: GOOD[name] for name in (*change.form.needs, *change.form.may_have)}
    is_pending = "pending" in change.path and "order_type" in said
    return said | ({"order_type": "BUY_LIMIT"} if is_pending else {})


def bad_values(name: str, change: Change) -> list[Any]:
    """All of them for the first route with the field, some for the others: the same code reads them."""
    first = next(one for one in EVERY if name in (*one.form.needs, *one.form.may_have))
    if change is not first:
        return [
            None,
            True,
            [],
            {},
            "",
            "x" * 2_000,
            "a}b",
            "\n",
            "\ud800",
            "\u0661",
            *(["nan", "1e400"] * (name in NUMBERS)),
        ]
    return [*WRONG_TYPE, *NO_TEXT, *((*NO_NUMBER, *NOT_ABOVE_0) if name in NUMBERS else (1, 1.5))]


def raw(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


changes = pytest.mark.parametrize("change", EVERY, ids=lambda change: change.path)


@changes
def test_a_good_body_gets_through(house: House, change: Change) -> None:
    """Else the table below would prove nothing."""
    answer = house.caller().post(path_of(change), body_of(change))
    assert answer.status_code == 202, answer.text
    assert house.desk.client.xlen("copyrisk:commands") == 1
    house.desk.client.delete("copyrisk:commands")


@changes
def test_every_field_that_is_wrong(caller: Caller, change: Change) -> None:
    found = {}
    for name, good in body_of(change).items():
        for bad in bad_values(name, change):
            answer = caller.post(path_of(change), raw({**body_of(change), name: bad}))
            if refusal(answer) != (422, CODES[name]):
                found[name, repr(bad)[:40]] = refusal(answer)
        if name in NUMBERS:
            for number in RAW_NUMBERS:
                body = raw(body_of(change)).replace(f'"{name}": "{good}"'.encode(), f'"{name}": '.encode() + number)
                if refusal(caller.post(path_of(change), body)) != (422, CODES[name]):
                    found[name, number[:40]] = "got through"
    assert found == {}


@changes
def test_every_field_that_is_absent(caller: Caller, change: Change) -> None:
    for name in change.form.needs:
        body = {given: value for given, value in body_of(change).items() if given != name}
        assert refusal(caller.post(path_of(change), body)) == (422, CODES[name])


@changes
def test_fields_that_are_none_of_the_routes(caller: Caller, change: Change) -> None:
    others = (
        "type",
        "master_order_id",
        "idempotency_key",
        "trigger",
        "status",
        "User_id",
        " user_id",
        "\ud800",
        "_id",
        "",
    )
    for name in (*others, *(GOOD.keys() - body_of(change).keys())):
        assert refusal(caller.post(path_of(change), {**body_of(change), name: "1"})) == (422, "unknown_field")


@changes
def test_the_account_of_another(caller: Caller, change: Change) -> None:
    for other in ({"user_id": "2"}, {"user_id": "11"}, {"user_id": "nobody"}, {"user_type": "live"}):
        body = {**body_of(change), **other}
        refused = refusal(caller.post(path_of(change), body))
        own_type = (422, "invalid_user_type") if change.fixed and "user_type" in other else (403, "account_forbidden")
        assert refused == own_type


@changes
def test_bodies_that_are_none(caller: Caller, change: Change) -> None:
    good = raw(body_of(change))
    bad = {
        "empty": b"",
        "blank": b" ",
        "no JSON": b"user_id=1",
        "cut": good[:-1],
        "more": good + b"1",
        "two": good + good,
        "array": b"[" + good + b"]",
        "text": b'"text"',
        "number": b"1",
        "null": b"null",
        "deep": b'{"a":' * 10_000,
        "deep arrays": b"[" * 60_000,
        "twice": good[:-1] + b',"user_id":"1"}',
        "twice inside": b'{"user_id":{"a":1,"a":1}}',
        "newline in a text": good.replace(b'"1"', b'"1\n"'),
        "UTF-16": good.decode().encode("utf-16"),
        "BOM": b"\xef\xbb\xbf" + good,
        "bad UTF-8": good.replace(b'"1"', b'"\xff"'),
        "surrogate in UTF-8": good.replace(b'"1"', b'"\xed\xa0\x80"'),
        "overlong UTF-8": good.replace(b'"1"', b'"\xc0\xb1"'),
        "comment": b"/**/" + good,
        "single quotes": good.replace(b'"', b"'"),
    }
    kind = {"Content-Type": "application/json"}
    found = {name: refusal(caller.post(path_of(change), body, headers=kind)) for name, body in bad.items()}
    assert set(found.values()) == {(400, "invalid_json")}, found
    assert refusal(caller.post(path_of(change), b" " * 1_000_000 + good)) == (413, "body_too_large")


@changes
def test_other_kinds_of_content(caller: Caller, change: Change) -> None:
    kinds: list[dict[str, str | None]] = [
        {"Content-Type": kind} for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json5", "")
    ]
    kinds += [{"Content-Type": "application/json; charset=utf-16"}, {"Content-Type": None}]
    kinds += [{"Content-Encoding": "gzip"}]
    for headers in kinds:
        answer = caller.post(path_of(change), body_of(change), headers=headers)
        assert refusal(answer) == (415, "unsupported_media_type"), headers


@changes
def test_idempotency_keys(caller: Caller, change: Change) -> None:
    assert refusal(caller.post(path_of(change), body_of(change), None)) == (422, "missing_idempotency_key")
    for key in ("a b", "{", "x" * 129, "a/b", "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        body = raw(body_of(change))
        headers = caller.headers("POST", path_of(change), body, key)
        sent = [(name, value.encode("latin-1")) for name, value in headers.items()]
        answer = caller.client.post(path_of(change), content=body, headers=sent)
        assert refusal(answer) == (422, "invalid_idempotency_key"), key


@changes
def test_parameters_and_methods(caller: Caller, change: Change) -> None:
    answer = caller.post(f"{path_of(change)}?user_id=2", body_of(change))
    assert refusal(answer) == (422, "unknown_parameter")
    assert caller.send("PUT", path_of(change), body_of(change)).status_code in (404, 405)
    for order_id in ("%7B", "a%20b", "x" * 65, "%0A", "%F0%9F%92%A5", "%00"):
        if "{" in change.path:
            answer = caller.post(change.path.replace("{order_id}", order_id), body_of(change))
            assert refusal(answer) == (422, "invalid_order_id")


@changes
def test_a_request_that_was_sent_too_long_ago(caller: Caller, change: Change) -> None:
    path, body = path_of(change), raw(body_of(change))
    old = caller.headers("POST", path, body, "k", time_ms=time.time_ns() // 1_000_000 - 120_000)
    assert refusal(caller.client.post(path, content=body, headers=old)) == (401, "expired_signature")


@changes
def test_a_request_that_was_sent_before(house: House, change: Change) -> None:
    caller, client = house.caller(accounts=("strategy_provider:1",)), house.desk.client
    path, body = path_of(change), raw(body_of(change))
    headers = caller.headers("POST", path, body, "k")
    assert data(caller.client.post(path, content=body, headers=headers), 202)["outcome"] == "unknown"  # nobody works
    before = dump(client, is_of_access)
    assert client.xlen("copyrisk:commands") == 1
    for _ in range(2):
        assert refusal(caller.client.post(path, content=body, headers=headers)) == (401, "replayed_request")
    assert dump(client, is_of_access) == before
    client.delete("copyrisk:commands")


def test_signatures_of_other_requests(caller: Caller) -> None:
    change = EVERY[0]
    path, body = path_of(change), raw(body_of(change))

    def send(headers: dict[str, str], said: bytes = body, to: str = path) -> tuple[int, str]:
        return refusal(caller.client.post(to, content=said, headers=headers))

    fresh = caller.headers("POST", path, body, "k")
    ahead = caller.headers("POST", path, body, "k", time_ms=time.time_ns() // 1_000_000 + 120_000)
    assert send(ahead) == (401, "expired_signature")
    assert send(fresh, body.replace(b'"EURUSD"', b'"GBPUSD"')) == (401, "invalid_signature")
    assert send(fresh, to="/api/orders/close") == (401, "invalid_signature")
    assert send({**fresh, "Idempotency-Key": "other"}) == (401, "invalid_signature")
    assert send({**fresh, "X-Copyrisk-Signature": "0" * 64}) == (401, "invalid_signature")
    assert send({"Content-Type": "application/json"}) == (401, "missing_credentials")


def test_every_route_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    assert [change.path for change in EVERY if f"`{change.path}`" not in page] == []
