"""Who is let in: signatures, nonces, records, tokens, rates, scopes; and that nothing secret shows."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import redis.asyncio
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from copyrisk import identifiers, keys
from copyrisk.api.access import NONCE_SLACK_MS, Access, Caller
from copyrisk.api.answers import ApiError, refusal_of, success
from copyrisk.api.line import Line
from copyrisk.api.rates import Buckets, peer_name, retry_after
from copyrisk.api.scopes import Grant, Scope, known_scopes, parse_grant, parse_scopes
from copyrisk.api.tokens import make_token
from copyrisk.api_sections import ApiSettings
from copyrisk.embedded import EmbeddedServer
from copyrisk.errors import CopyriskError, InvalidId
from copyrisk.signing import MasterSecret, signed_headers
from copyrisk.store.api_keys import KeyRecord, record_text
from copyrisk.terms import AccountType

MASTER = "a master secret of the tests, 0123456789"
SECRETS = MasterSecret(MASTER.encode())
NOW_MS = 1_760_000_000_000
KEY_ID, OTHER_ID = "key_tests_1", "key_tests_2"
PATH = "/api/things/a%2Fb?x=%20y&z"
ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())
Answer = tuple[int, str]


class Door:
    """An application with one route that says who came in, on a real server, with a clock that is set."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.now_ms, self.now_s, self.peer = NOW_MS, 0.0, "203.0.113.7"
        self._runner = asyncio.Runner()
        self._client = redis.asyncio.Redis.from_url(url)
        chosen = replace(ApiSettings(), **{"secret": MASTER, **settings})
        self._line = Line(self._client)
        self.access = Access(chosen, self._line, now_ms=lambda: self.now_ms, now_s=lambda: self.now_s)
        self._app = Starlette(
            routes=[Route("/api/{rest:path}", self._answer, methods=["GET", "POST"])],
            exception_handlers={CopyriskError: self._refuse},
        )

    async def _answer(self, request: Request) -> Response:
        caller = await self.access.admit(request, Scope.ORDERS_READ)
        said = {"name": caller.name, "accounts": caller.accounts.words(), "service": caller.is_service}
        return success(said | {"body": len(await request.body())})

    async def _refuse(self, _: Request, failure: Exception) -> Response:
        assert isinstance(failure, CopyriskError)
        return refusal_of(failure)

    async def _send(self, times: int, **request: Any) -> list[httpx.Response]:
        transport = httpx.ASGITransport(self._app, client=(self.peer, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await asyncio.gather(*(client.request(**request) for _ in range(times)))

    def send(
        self,
        headers: Any = None,
        *,
        method: str = "POST",
        path: str = PATH,
        body: bytes = b"{}",
        times: int = 1,
        **signed: Any,
    ) -> list[httpx.Response]:
        """Answers to a request, signed unless it has headers of its own, sent so many times at once."""
        if headers is None:
            headers = self.sign(method, path, body, **signed)
        return self._runner.run(self._send(times, method=method, url=path, content=body, headers=headers))

    def sign(
        self, method: str = "POST", path: str = PATH, body: bytes = b"{}", key_id: str = KEY_ID, **more: Any
    ) -> dict[str, str]:
        """The headers of a request."""
        given = {"time_ms": self.now_ms, "idempotency_key": "i-1", **more}
        return signed_headers(key_id, SECRETS.secret_of(key_id), method, path.encode(), body, **given)

    def code(self, *args: Any, **request: Any) -> str:
        """`ok`, or the code of the refusal."""
        return code_of(self.send(*args, **request)[0])

    def run(self, work: Any) -> Any:
        """Something asynchronous, in the application's loop."""
        return self._runner.run(work)

    def close(self) -> None:
        """Let go of the server."""
        self._runner.run(self._line.close())
        self._runner.run(self._client.aclose())
        self._runner.close()


def code_of(answer: httpx.Response) -> str:
    said = answer.json()
    assert said["success"] is (answer.status_code == 200)
    return "ok" if said["success"] else str(said["error_code"])


class House:
    """A server, and the doors to it."""

    def __init__(self, server: Any) -> None:
        self.url, self.store, self._doors = server.url, server.client(), list[Door]()
        self.put(KeyRecord(KEY_ID, "tests", ("orders:read",), ("live:*", "demo:7"), NOW_MS))

    def put(self, record: KeyRecord, key_id: str | None = None) -> None:
        self.store.hset(keys.API_KEYS, key_id or record.key_id, record_text(record, SECRETS))

    def door(self, url: str | None = None, **settings: Any) -> Door:
        self._doors.append(Door(url or self.url, **settings))
        return self._doors[-1]

    def nonces(self) -> list[bytes]:
        return list(self.store.scan_iter("copyrisk:api:nonce:*"))

    def close(self) -> None:
        for door in self._doors:
            door.close()
        self.store.close()


@pytest.fixture
def house(bundled_server: Any) -> Iterator[House]:
    made = House(bundled_server)
    yield made
    made.close()


# ---- signatures


def test_a_signed_request_comes_in_once(redis_server: Any) -> None:
    house = House(redis_server)
    door, again = house.door(), house.door()
    headers = door.sign()
    answer = door.send(headers)[0]
    assert answer.json()["data"] == {"name": KEY_ID, "accounts": ["live:*", "demo:7"], "service": True, "body": 2}
    assert [door.code(headers), again.code(headers)] == ["replayed_request"] * 2
    assert [door.code(), door.code(method="GET", body=b"", path="/api/x", idempotency_key="")] == ["ok", "ok"]
    assert len(house.nonces()) == 3
    house.close()


def test_of_many_copies_at_once_one_comes_in(house: House) -> None:
    answers = house.door().send(times=20)
    assert sorted(map(code_of, answers)) == ["ok"] + ["replayed_request"] * 19


def test_a_nonce_outlives_the_time_in_which_its_request_is_taken(house: House) -> None:
    door = house.door(clock_skew_ms=20_000)
    assert door.code(time_ms=NOW_MS + 20_000) == "ok"
    (nonce,) = house.nonces()
    assert 40_000 + NONCE_SLACK_MS - 5_000 < house.store.pttl(nonce) <= 40_000 + NONCE_SLACK_MS


@pytest.mark.parametrize(
    ("ahead_ms", "code"),
    [(30_000, "ok"), (-30_000, "ok"), (30_001, "expired_signature"), (-30_001, "expired_signature"), (-NOW_MS, "")],
)
def test_clocks_may_differ_by_the_skew(house: House, ahead_ms: int, code: str) -> None:
    assert house.door().code(time_ms=NOW_MS + ahead_ms) == (code or "expired_signature")
    assert len(house.nonces()) == (code == "ok")


def changed(name: str, value: str | None) -> dict[str, str]:
    headers = signed_headers(
        KEY_ID, SECRETS.secret_of(KEY_ID), "POST", PATH.encode(), b"{}", idempotency_key="i-1", time_ms=NOW_MS
    )
    headers[name] = value or ""
    return {key: said for key, said in headers.items() if key != name or value is not None}


WRONG = {
    "another key": (changed("X-Copyrisk-Key", "key_tests_2"), {}),
    "no key of ours": (changed("X-Copyrisk-Key", "key_unheard_of"), {}),
    "a key that is none": (changed("X-Copyrisk-Key", "{key}:12345"), {}),
    "an empty key": (changed("X-Copyrisk-Key", ""), {}),
    "another time": (changed("X-Copyrisk-Time", str(NOW_MS + 1)), {}),
    "no number": (changed("X-Copyrisk-Time", "nan"), {}),
    "1e400": (changed("X-Copyrisk-Time", "1e400"), {}),
    "a long time": (changed("X-Copyrisk-Time", "9" * 5_000), {}),
    "another nonce": (changed("X-Copyrisk-Nonce", "B" * 20), {}),
    "a nonce with a colon": (changed("X-Copyrisk-Nonce", "B" * 20 + ":x"), {}),
    "a long nonce": (changed("X-Copyrisk-Nonce", "B" * 65), {}),
    "no signature": (changed("X-Copyrisk-Signature", ""), {}),
    "another signature": (changed("X-Copyrisk-Signature", "0" * 64), {}),
    "another idempotency key": (changed("Idempotency-Key", "i-2"), {}),
    "none": (changed("Idempotency-Key", None), {}),
    "another body": (changed("X", "y"), {"body": b"{ }"}),
    "another path": (changed("X", "y"), {"path": "/api/things/a/b?x=%20y&z"}),
    "another query": (changed("X", "y"), {"path": PATH + "&w=1"}),
    "no query": (changed("X", "y"), {"path": "/api/things/a%2Fb"}),
    "encoded otherwise": (changed("X", "y"), {"path": "/api/things/a%2fb?x=%20y&z"}),
    "another method": (changed("X", "y"), {"method": "GET"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_was_changed_is_refused_with_one_answer_and_leaves_nothing(house: House, case: str) -> None:
    headers, request = WRONG[case]
    answer = house.door().send(headers, **request)[0]
    assert (answer.status_code, code_of(answer)) == (401, "invalid_signature")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert house.store.keys() == [keys.API_KEYS.encode()]


def test_a_wrong_key_and_a_wrong_signature_are_the_same_answer(house: House) -> None:
    bodies = {house.door().send(WRONG[case][0])[0].content for case in ("no key of ours", "another signature")}
    assert len(bodies) == 1


@pytest.mark.parametrize("name", ["Key", "Time", "Nonce", "Signature"])
def test_a_header_that_is_absent_or_there_twice(house: House, name: str) -> None:
    door, headers = house.door(), changed(f"X-Copyrisk-{name}", None)
    assert door.code(headers) == "missing_credentials"
    whole = door.sign()
    assert door.code([*whole.items(), (f"x-copyrisk-{name}", whole[f"X-Copyrisk-{name}"])]) == "ambiguous_credentials"
    assert house.nonces() == []


def test_other_credentials_than_one_kind(house: House) -> None:
    door = house.door()
    answer = door.send({})[0]
    assert (answer.status_code, code_of(answer)) == (401, "missing_credentials")
    assert door.code({"Authorization": "Basic YTpi"}) == "missing_credentials"
    assert door.code({"Authorization": "Bearer"}) == "missing_credentials"
    assert door.code({"Authorization": "Bearer x"}) == "invalid_token"
    assert door.code({**door.sign(), "Authorization": "Bearer x"}) == "ambiguous_credentials"
    assert door.code([("Authorization", "Bearer x"), ("authorization", "Bearer y")]) == "ambiguous_credentials"
    twice = door.send([*door.sign().items(), ("Idempotency-Key", "i-2")])[0]
    assert (twice.status_code, code_of(twice)) == (422, "invalid_idempotency_key")
    assert house.nonces() == []


# ---- records


def test_a_revoked_key_ends_within_a_second_and_for_ever(house: House) -> None:
    door, record = house.door(), KeyRecord(KEY_ID, "tests", ("orders:read",), ("*",), NOW_MS)
    assert door.code() == "ok"
    caller = door.run(door.access._keys.find(KEY_ID))
    house.put(replace(record, revoked_ms=NOW_MS))
    door.now_ms += 1_000
    assert door.code() == "revoked_key"
    with pytest.raises(ApiError, match="revoked"):
        door.run(door.access.recheck(caller))
    house.put(record)
    door.now_ms += 1_000
    with structlog.testing.capture_logs() as lines:
        assert door.code() == "revoked_key"
    assert [line["event"] for line in lines if line["log_level"] == "critical"] == ["api_key_revived"]


def test_a_record_is_not_taken_after_the_clock_was_set_back(house: House) -> None:
    door = house.door()
    assert door.code() == "ok"
    house.store.delete(keys.API_KEYS)
    door.now_ms -= 3_600_000
    assert door.code() == "unknown_key"


def test_an_expired_key(house: House) -> None:
    house.put(KeyRecord(KEY_ID, "tests", ("orders:read",), ("*",), NOW_MS, expires_ms=NOW_MS + 500))
    door = house.door()
    assert door.code() == "ok"
    door.now_ms += 500
    answer = door.send()[0]
    assert (answer.status_code, code_of(answer)) == (401, "expired_key")


def test_who_writes_to_the_store_can_only_take_a_key_away(house: House) -> None:
    mine = KeyRecord(KEY_ID, "tests", ("orders:read",), ("live:7",), NOW_MS)
    forgeries: list[Any] = [
        record_text(replace(mine, accounts=("*",)), MasterSecret(b"x" * 32)),
        record_text(mine, SECRETS).replace('"live:7"', '"*"'),
        record_text(mine, SECRETS).replace('"expires_ms": null', '"expires_ms": 1e999'),
        record_text(replace(mine, key_id=OTHER_ID), SECRETS),
        "{}",
        "[" * 50_000,
        '{"mac": 1}',
        b"\xff",
        "x" * 70_000,
        "",
    ]
    for text in forgeries:
        house.store.hset(keys.API_KEYS, KEY_ID, text)
        with structlog.testing.capture_logs() as lines:
            answer = house.door().send()[0]
        assert (answer.status_code, code_of(answer)) == (401, "unknown_key"), text
        assert "api_key_forged" in [line["event"] for line in lines if line["log_level"] == "critical"]
    house.store.delete(keys.API_KEYS)
    answer = house.door().send()[0]
    assert (answer.status_code, code_of(answer)) == (401, "unknown_key")
    assert house.nonces() == []


def test_a_server_that_is_away_lets_no_signature_in(house: House) -> None:
    with EmbeddedServer.start() as own:
        away = House(type("Own", (), {"url": own.url, "client": lambda _: redis.Redis.from_url(own.url)})())
        door = away.door(token_keys_file=None)
        assert door.code() == "ok"
        away.store.close()
    answer = door.send()[0]
    assert (answer.status_code, code_of(answer)) == (503, "server_unreachable")
    door.now_ms += 1_000
    assert door.send()[0].status_code == 503
    door.close()
    house.store.delete(keys.API_KEYS)
    house.store.set(keys.API_KEYS, "no hash")
    assert house.door().send()[0].status_code == 503


# ---- scopes and accounts


def test_a_scope_that_the_key_has_not(house: House) -> None:
    house.put(KeyRecord(KEY_ID, "tests", ("orders:write", "risk:read"), ("*",), NOW_MS))
    answer = house.door().send()[0]
    assert (answer.status_code, code_of(answer)) == (403, "missing_scope")


def test_accounts_of_a_caller() -> None:
    caller = Caller("c", frozenset({Scope.ORDERS_READ}), parse_grant(["live:*", "demo:7"]), is_service=True)
    mine, foreign = identifiers.account("live", "1"), identifiers.account("demo", "8")
    caller.check_account(mine)
    assert caller.sees(mine) and not caller.sees(foreign)
    with pytest.raises(ApiError) as refused:
        caller.check_account(foreign)
    assert refused.value.code == "account_forbidden"
    assert caller.has(Scope.ORDERS_READ) and not caller.has(Scope.ORDERS_WRITE)


account_types = st.sampled_from(AccountType)
accounts = st.builds(identifiers.Account, account_types, st.text("aB7_-", min_size=1, max_size=3))


@settings(max_examples=40)
@given(st.lists(account_types | accounts), accounts, st.booleans())
def test_a_grant_covers_what_its_words_say(granted: list[Any], account: identifiers.Account, is_all: bool) -> None:
    words = [str(one) if isinstance(one, identifiers.Account) else f"{one}:*" for one in granted] + ["*"] * is_all
    grant = parse_grant(words)
    assert grant.covers(account) == (is_all or account.type in granted or account in granted)
    assert parse_grant(grant.words()).covers(account) == grant.covers(account)


@pytest.mark.parametrize("word", ["", ":", "live", "live:", "*:*", "*:7", "gold:*", "live:7*", "live:{7}", "live:7\n"])
def test_what_is_no_grant(word: str) -> None:
    with pytest.raises(InvalidId) as refused:
        parse_grant(["live:1", word])
    assert refused.value.code == "invalid_account_grant"


def test_scopes_by_name() -> None:
    assert parse_scopes(["orders:read", "risk:read"]) == {Scope.ORDERS_READ, Scope.RISK_READ}
    assert known_scopes(["orders:read", "openid", "ORDERS:WRITE"]) == {Scope.ORDERS_READ}
    assert parse_grant([]) == Grant()
    with pytest.raises(InvalidId):
        parse_scopes(["orders:*"])


# ---- rates


def test_a_caller_that_asks_too_often_leaves_no_nonce(house: House) -> None:
    door = house.door(rate_per_s=1, rate_burst=3)
    assert sorted(door.code() for _ in range(4)) == ["ok", "ok", "ok", "rate_limited"]
    answer = door.send()[0]
    assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
    assert len(house.nonces()) == 3
    door.now_s = 1.0
    assert [door.code(), door.code()] == ["ok", "rate_limited"]


def test_copies_that_others_send_are_not_the_callers(house: House) -> None:
    door = house.door(rate_per_s=1, rate_burst=3)
    headers = door.sign()
    assert [door.code(headers) for _ in range(9)] == ["ok"] + ["replayed_request"] * 8
    assert door.code() == "ok"


def test_a_peer_that_fails_too_often_waits_but_holds_up_nobody(house: House, tmp_path: Path) -> None:
    door = house.door(token_keys_file=str(keys_file(tmp_path)))
    known, new = token(), token(sub="new")
    assert door.code(bearer(known)) == "ok"
    with structlog.testing.capture_logs() as lines:
        codes = [door.code({"Authorization": "Bearer x"}) for _ in range(52)]
    assert codes == ["invalid_token"] * 50 + ["rate_limited"] * 2
    assert len(lines) == 50
    assert door.code(WRONG["another signature"][0]) == "rate_limited"
    answer = door.send(bearer(new))[0]
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert [door.code(bearer(known)), door.code()] == ["ok", "ok"]
    door.peer = "203.0.113.8"
    assert [door.code(bearer(new)), door.code({})] == ["ok", "missing_credentials"]
    door.peer, door.now_s = "203.0.113.7", 0.5
    assert [door.code(bearer(token(sub="newer"))), door.code({}), door.code({})] == [
        "ok",
        "missing_credentials",
        "rate_limited",
    ]


class TwinBucket:
    """Tokens counted one by one."""

    def __init__(self, per_s: float, burst: int) -> None:
        self.per_s, self.burst, self.tokens, self.at_s = per_s, burst, float(burst), 0.0

    def take(self, now_s: float) -> bool:
        self.tokens = min(self.tokens + (now_s - self.at_s) * self.per_s, self.burst)
        self.at_s = now_s
        may = self.tokens >= 1.0
        self.tokens -= may
        return may


@settings(max_examples=40)
@given(
    st.sampled_from([1.0, 2.0, 8.0]),
    st.integers(1, 5),
    st.lists(st.integers(0, 16).map(lambda n: n / 8), max_size=40),
)
def test_a_bucket_is_what_it_is_short_for(per_s: float, burst: int, pauses_s: list[float]) -> None:
    bucket, twin, now_s = Buckets(per_s, burst), TwinBucket(per_s, burst), 0.0
    for pause_s in pauses_s:
        now_s += pause_s
        wait_s = bucket.wait_s("a", now_s)
        assert bucket.take("a", now_s) == wait_s
        assert twin.take(now_s) == (wait_s == 0.0)
        if wait_s:
            assert bucket.wait_s("a", now_s + wait_s) == pytest.approx(0.0)


def test_buckets_are_of_one_name_each_and_not_too_many() -> None:
    buckets = Buckets(1.0, 1, limit=3)
    assert [buckets.take(name, 0.0) for name in "aabc"] == [0.0, 1.0, 0.0, 0.0]
    buckets.take("d", 0.0)
    assert len(buckets) == 3
    assert [retry_after(wait_s) for wait_s in (0.001, 1.0, 1.2)] == ["1", "1", "2"]


def test_peers() -> None:
    named = {
        "192.0.2.1": "192.0.2.1",
        "::ffff:192.0.2.1": "192.0.2.1",
        "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
        "unix": "-",
        None: "-",
        "": "-",
    }
    assert {host: peer_name(host) for host in named} == named


# ---- tokens at the door; more of them in test_api_keys


def keys_file(folder: Path) -> Path:
    path = folder / "keys.pem"
    path.write_bytes(ISSUER_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def token(sub: str = "ann", scopes: Any = ("orders:read",), accounts: Any = ("live:1",), expires_s: float = 60) -> str:
    return make_token(ISSUER_KEY, sub, scopes, accounts, expires_s)


def bearer(said: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {said}"}


def test_a_token_comes_in_as_often_as_it_likes(house: House, tmp_path: Path) -> None:
    door = house.door(token_keys_file=str(keys_file(tmp_path)))
    ann = token()
    for headers in (bearer(ann), bearer(ann), {"authorization": f"bEARER  {ann}"}):
        answer = door.send(headers)[0]
        assert answer.json()["data"] == {"name": "ann", "accounts": ["live:1"], "service": False, "body": 2}
    assert door.code(bearer(token(scopes=["risk:read", "openid"]))) == "missing_scope"
    assert house.nonces() == []


def test_a_token_that_is_known_expires_too(house: House, tmp_path: Path) -> None:
    door, said = house.door(token_keys_file=str(keys_file(tmp_path))), token(expires_s=60)
    ends_ms = jwt.decode(said, options={"verify_signature": False})["exp"] * 1_000
    codes = []
    for door.now_ms in (NOW_MS, ends_ms + 29_999, ends_ms + 30_000):
        codes.append(door.code(bearer(said)))
    assert codes == ["ok", "ok", "expired_token"]
    door.now_ms = NOW_MS
    caller = Caller("ann", frozenset(), Grant(), is_service=False, expires_ms=NOW_MS)
    door.run(door.access.recheck(caller))
    door.now_ms += 30_000
    with pytest.raises(ApiError, match="expired"):
        door.run(door.access.recheck(caller))


def test_a_caller_with_a_token_has_a_rate(house: House, tmp_path: Path) -> None:
    door = house.door(token_keys_file=str(keys_file(tmp_path)), rate_per_s=1, rate_burst=2)
    ann, bob = token(), token("bob")
    assert [door.code(bearer(ann)) for _ in range(3)] == ["ok", "ok", "rate_limited"]
    assert door.code(bearer(bob)) == "ok"


# ---- secrets


def test_nothing_secret_is_logged_stored_or_answered(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    door = house.door(token_keys_file=str(keys_file(tmp_path)))
    ann, signed = token(), door.sign()
    forged = jwt.encode({"sub": "ann"}, "s" * 64, "HS256")
    seen = []
    with structlog.testing.capture_logs() as lines:
        for headers in (
            bearer(ann),
            bearer(forged),
            bearer(ann[:-3] + "abc"),
            signed,
            signed,
            *(WRONG[case][0] for case in WRONG),
        ):
            seen.append(door.send(headers)[0].text)
    house.store.hset(keys.API_KEYS, KEY_ID, "{}")
    with structlog.testing.capture_logs() as more:
        seen.append(house.door().send()[0].text)
    assert lines and more
    out = capsys.readouterr()
    told = "\n".join([json.dumps([lines, more]), *seen, out.out, out.err, repr(door.access.__dict__)])
    kept = b"".join(name + (house.store.dump(name) or b"") for name in house.store.scan_iter())
    settings = ApiSettings(secret=MASTER)
    for secret in (MASTER, SECRETS.secret_of(KEY_ID), signed["X-Copyrisk-Signature"], ann, ann.split(".")[2], forged):
        assert secret not in told + repr(settings) + str(settings)
        assert secret.encode() not in kept
