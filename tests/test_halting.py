"""Kills with policy `close`, carried out by the daemon; who is not in their scope keeps every lot."""

import json
from decimal import Decimal
from typing import Any

import pytest

from tests.cutoff_desk import CutoffDesk
from tests.trading import assert_books


@pytest.fixture
def desk(redis_server: Any) -> CutoffDesk:
    desk = CutoffDesk(redis_server)
    desk.office.group("XAUUSD", contract_size="100")
    desk.quote("2000", "2000", "XAUUSD")
    for account in ("live:1", "live:2", "demo:1"):
        desk.holder(account, "100000", (f"E-{account[:1]}{account[-1]}", "1"))
        desk.position(account, f"X-{account[:1]}{account[-1]}", "1", "2000", symbol="XAUUSD")
    return desk


def kill(desk: CutoffDesk, scope: str, policy: str = "close") -> None:
    said = {"policy": policy, "reason": "test", "by": "risk", "ts_ms": 1_770_000_000_000}
    desk.client.hset("copyrisk:kills", scope, json.dumps(said))


@pytest.mark.parametrize(
    ("scope", "left"),
    [
        ("account:live:1", {"live:1": set(), "live:2": {"E-l2", "X-l2"}, "demo:1": {"E-d1", "X-d1"}}),
        ("symbol:XAUUSD", {"live:1": {"E-l1"}, "live:2": {"E-l2"}, "demo:1": {"E-d1"}}),
        ("all", {"live:1": set(), "live:2": set(), "demo:1": set()}),
        ("symbol:GBPUSD", {"live:1": {"E-l1", "X-l1"}, "live:2": {"E-l2", "X-l2"}, "demo:1": {"E-d1", "X-d1"}}),
    ],
)
def test_what_is_open_in_the_scope_is_closed(desk: CutoffDesk, scope: str, left: dict[str, set[str]]) -> None:
    desk.step()
    kill(desk, scope)
    desk.step()
    assert {account: desk.index(account) for account in left} == left
    assert desk.step().closes == 0
    entries = desk.trail("kill")
    assert [entry["cause"] for entry in entries if entry["reason"] == "closing"] == [scope]
    told = {entry["account"]: entry["said"] for entry in entries if entry["reason"] == "done"}
    lots = [result["lots"] for said in told.values() for result in said["results"]]
    assert len(lots) == 6 - sum(map(len, left.values())) and set(lots) <= {"1"}


def test_a_kill_that_keeps_closes_nothing(desk: CutoffDesk) -> None:
    kill(desk, "all", "keep")
    desk.client.hset("copyrisk:kills", "symbol:EURUSD", "{")
    desk.client.hset("copyrisk:kills", "nonsense", "x")
    desk.steps(2)
    assert len(desk.index("live:1")) == 2 and desk.trail("kill") == []


def test_pending_orders_are_taken_back(desk: CutoffDesk) -> None:
    assert desk.pend("live:1", "P", "BUY_LIMIT", "1900", "1", symbol="XAUUSD")["code"] == "ok"
    assert desk.pend("live:1", "Q", "BUY_LIMIT", "0.9", "1")["code"] == "ok"
    kill(desk, "symbol:XAUUSD")
    desk.step()
    assert desk.index("live:1") == {"E-l1", "Q"}
    assert desk.data("P")["order_status"] == "CANCELLED"


def test_of_a_master_his_orders_and_all_copies_are_closed(redis_server: Any) -> None:
    desk = CutoffDesk(redis_server)
    desk.followers(3)
    desk.follower("own")
    desk.open_master()
    assert desk.open("copy_follower:own", "MINE", lots="0.1")["code"] == "ok"
    assert len(desk.copies()) == 4
    kill(desk, "master:M")
    desk.until_quiet()
    desk.replicate()
    assert desk.copies() == {} and desk.is_flat("strategy_provider:M")
    assert desk.index("copy_follower:own") == {"MINE"}
    assert_books(desk)


def test_in_the_provider_s_flow_each_close_is_asked_for_once(redis_server: Any) -> None:
    desk = CutoffDesk(redis_server, "barclays")
    desk.holder("live:1", "100000", ("A", "1"), ("B", "1"))
    kill(desk, "all")
    desk.steps(4)
    assert sorted(request["order_id"] for request in desk.requests()) == ["A", "B"]
    desk.provider_says("filled", "live:1", price="1")
    desk.steps(2)
    assert desk.is_flat("live:1") and len(desk.requests()) == 2
    assert desk.balance("live:1") == Decimal(100000)


def test_a_restart_goes_on_with_it(desk: CutoffDesk) -> None:
    kill(desk, "account:live:1")
    desk.daemon._autocutoff.give_up()  # type: ignore[union-attr]
    desk.drop_daemon()
    desk.step()
    assert desk.is_flat("live:1") and not desk.is_flat("live:2")
