"""The desk's routes: what they say against the portfolios that stand there, who may ask, and what is refused."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from copyrisk.api.answers import ApiError
from copyrisk.api.documents import Answer
from copyrisk.api.risk import parse_moves
from copyrisk.api.risk_models import Ladder, Summary, SymbolLadder, WhatIf
from copyrisk.daemon import make_engine
from copyrisk.derived import copy_id
from copyrisk.embedded import EmbeddedServer
from copyrisk.errors import InvalidId
from copyrisk.identifiers import parse_account
from tests.api_house import Caller, House, data, refusal, served
from tests.conftest import Server
from tests.trading import Desk

SUMMARY, LADDER, WHAT_IF = "/api/risk/summary", "/api/risk/ladder", "/api/risk/what-if"
#: Balances that make one lot of EURUSD (margin 1,084.55 of 100,000 units bought at 1.084) more or less safe.
BALANCES = {"live:1": 10_000, "live:2": 560, "live:3": 120, "demo:4": 3_000, "copy_follower:7": 20_000}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """An API with a desk, on a server of its own that nobody changes any more."""
    with EmbeddedServer.start() as running:
        desk = Desk(Server(running.url, running.pid))
        for account, balance in BALANCES.items():
            desk.account(account, balance=balance)
            desk.office.order(account, "O1")
        desk.account("live:5", leverage="none")
        desk.account("strategy_provider:M", balance=600)
        desk.office.order("strategy_provider:M", "SP1")
        copy = copy_id("SP1", parse_account("copy_follower:7"))
        desk.office.order("copy_follower:7", copy, order_quantity="0.5", master_order_id="SP1")
        desk.client.sadd("copy_master_followers:M:active", "7")
        engine = make_engine(desk.new_client(), desk.settings, acts=False)
        engine.tick()
        engine.close()
        flags = {"valuation__quote_max_age_ms": 0, "api__desk": True, "api__desk_refresh_ms": 200}
        try:
            with served(desk, **flags) as opened:
                first = opened.caller()
                deadline_s = time.monotonic() + 20.0
                while first.get(SUMMARY).status_code != 200:
                    assert time.monotonic() < deadline_s
                    time.sleep(0.02)
                yield opened
        finally:
            desk.close()


@pytest.fixture(scope="module")
def caller(house: House) -> Caller:
    return house.caller(scopes=("risk:read",))


def shaped(answer: Any, model: Any) -> Any:
    """What an answer holds, which is what the document says."""
    Answer[model].model_validate_json(answer.content)
    return data(answer)


def ask_what_if(caller: Caller, body: object, **more: Any) -> Any:
    return caller.post(WHAT_IF, body, key=None, **more)


def test_the_summary_says_what_the_portfolios_say(house: House, caller: Caller) -> None:
    said = shaped(caller.get(SUMMARY), Summary)
    portfolios = {one: house.desk.office.portfolio(one) for one in (*BALANCES, "strategy_provider:M")}
    money = [float(one["equity"]) for account, one in portfolios.items() if not account.startswith("demo:")]
    assert said["totals"]["equity_usd"] == pytest.approx(sum(money))
    assert {one["account"]: one["margin_level_pct"] for one in said["closest"]} == {
        account: float(one["margin_level"]) for account, one in portfolios.items()
    }
    assert [one["account"] for one in said["closest"]][:2] == ["live:3", "live:2"]
    assert [one["state"] for one in said["closest"]][:2] == ["warning", "healthy"]
    assert said["accounts"]["by_type"]["live"] == {
        "unknown": 1,
        "no_margin": 0,
        "healthy": 2,
        "warning": 1,
        "critical": 0,
    }
    assert said["unknown"] == {"leverage_invalid": 1}
    assert said["tick"]["period_ms"] == 200 and sum(said["histogram"]["counts"]) == len(portfolios)


def test_the_ladder_and_what_if_agree(caller: Caller) -> None:
    (line,) = shaped(caller.get(LADDER), Ladder)["symbols"]
    assert (line["symbol"], line["bid"], line["accounts"]) == ("EURUSD", 1.0845, 6)
    said = shaped(caller.get(f"{LADDER}/EURUSD"), SymbolLadder)
    assert said["already"] == {"warning": 1, "critical": 0}
    first = next(one for one in said["nearest"] if one["account"] == "live:3")
    assert first["kind"] == "critical" and first["move_pct"] == line["down"]["critical"]["move_pct"]
    for beyond, count in ((-0.001, 1), (0.001, 0)):
        move = first["move_pct"] + beyond
        said = shaped(ask_what_if(caller, {"moves": {"EURUSD": f"{move:.6f}"}}), WhatIf)
        assert said["liquidated"]["count"] == count


def test_a_master_that_is_liquidated_cascades(caller: Caller) -> None:
    said = shaped(ask_what_if(caller, {"moves": {"EURUSD": -0.6}}), WhatIf)
    assert {one["account"] for one in said["liquidated"]["accounts"]} >= {"strategy_provider:M", "live:2", "live:3"}
    listed = [{"master_id": "M", "followers": 1, "copies": 1, "lots": 0.5, "list": ["7"]}]
    assert said["cascades"] == {"count": 1, "list": listed}
    assert said["before"]["critical"] == 0 and said["moves"] == {"EURUSD": -0.6}
    assert said["equity"]["after_usd"] < said["equity"]["before_usd"]
    assert said["unknown"] == 1
    assert shaped(caller.get(SUMMARY), Summary)["accounts"]["by_type"]["strategy_provider"]["critical"] == 0


def test_only_who_sees_all_accounts_may_ask(house: House) -> None:
    some = house.caller(scopes=("risk:read",), accounts=("live:*", "demo:4"))
    other = house.caller(scopes=("orders:read",))
    for path in (SUMMARY, LADDER, f"{LADDER}/EURUSD"):
        assert refusal(some.get(path)) == (403, "account_forbidden")
        assert refusal(other.get(path)) == (403, "missing_scope")
        assert refusal(house.client().get(path)) == (401, "missing_credentials")
    assert refusal(ask_what_if(some, {"moves": {"EURUSD": "1"}})) == (403, "account_forbidden")


BAD_BODIES: list[tuple[object, int, str]] = [
    (b"{", 400, "invalid_json"),
    (b"[]", 400, "invalid_json"),
    (b"\xff", 400, "invalid_json"),
    (b'{"moves":{"EURUSD":"1","EURUSD":"2"}}', 400, "invalid_json"),
    (b'{"moves":{"EURUSD":1e400}}', 422, "invalid_move_pct"),
    (b'{"moves":{"EURUSD":NaN}}', 422, "invalid_move_pct"),
    ({}, 422, "missing_moves"),
    ({"moves": {"EURUSD": "1"}, "more": 1}, 422, "unknown_field"),
    ({"moves": None}, 422, "invalid_moves"),
    ({"moves": {}}, 422, "invalid_moves"),
    ({"moves": [["EURUSD", 1]]}, 422, "invalid_moves"),
    ({"moves": {f"S{i}": "1" for i in range(51)}}, 422, "too_many_moves"),
    ({"moves": {"eurusd\n": "1"}}, 422, "invalid_symbol"),
    ({"moves": {"": "1"}}, 422, "invalid_symbol"),
    ({"moves": {"NOSUCH": "1"}}, 404, "unknown_symbol"),
    *(
        ({"moves": {"EURUSD": move}}, 422, "invalid_move_pct")
        for move in (None, True, [], {}, "", " 1", "1 ", "-99.1", "1000.1", "nan", "1e2", "\u0661", "1" * 400, "+1")
    ),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES, ids=[f"{body!s:.40}" for body, *_ in BAD_BODIES])
def test_what_is_no_what_if_is_refused(caller: Caller, body: object, status: int, code: str) -> None:
    assert refusal(ask_what_if(caller, body)) == (status, code)


def test_other_refusals(house: House, caller: Caller) -> None:
    assert refusal(caller.get(f"{LADDER}/NOSUCH")) == (404, "unknown_symbol")
    assert refusal(caller.get(f"{LADDER}/eurusd")) == (422, "invalid_symbol")
    assert refusal(caller.get(f"{LADDER}/%7B%0A")) == (422, "invalid_symbol")
    assert refusal(caller.get(f"{SUMMARY}?x=1")) == (422, "unknown_parameter")
    plain = {"Content-Type": "text/plain"}
    assert refusal(ask_what_if(caller, {"moves": {"EURUSD": "1"}}, headers=plain)) == (415, "unsupported_media_type")


def test_a_server_without_a_desk_says_so(bundled_server: Any) -> None:
    desk = Desk(bundled_server)
    with served(desk) as house:
        assert refusal(house.caller().get(SUMMARY)) == (503, "desk_unavailable")
    desk.close()


def test_moves_are_kept_as_they_were_sent() -> None:
    said = {"EURUSD": "-2.50", "XAUUSD": "0", "A.B_C#-1": "-99", "Z": "1000"}
    assert parse_moves({"moves": said}) == said
    assert json.loads(json.dumps(parse_moves({"moves": {"EURUSD": "-0"}}))) == {"EURUSD": "-0"}
    with pytest.raises(ApiError) as refused:
        parse_moves({"moves": {"EURUSD": "-99.000000000000000001"}})
    assert refused.value.code == "invalid_move_pct"
    with pytest.raises(InvalidId):
        parse_moves({"moves": {"A" * 33: "1"}})
