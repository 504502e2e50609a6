"""Workers killed at every point of their work: at the end the books are those of a run in which nobody died."""

import contextlib
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from tests.trading import Desk, assert_books, assert_paid, process, until

POINTS = ("worker.taken", "worker.decided", "worker.changed", "worker.delivered", "worker.acknowledged")
ACCOUNTS = ("live:1", "demo:1", "strategy_provider:1", "live:2", "copy_follower:2")
Step = tuple[str, str, str, dict[str, Any]]
_LOTS = {"symbol": "EURUSD", "order_quantity": "1"}

#: Commands and reports in the order in which they are sent; a report is of the n-th request about the order.
SCRIPT: list[Step] = [
    ("open", "live:1", "A", {**_LOTS, "order_type": "BUY", "stop_loss": "1.07"}),
    ("open", "demo:1", "D", {**_LOTS, "order_type": "SELL"}),
    ("open", "live:2", "L", {**_LOTS, "order_type": "BUY"}),
    ("report", "live:2", "L", {"request": 0, "status": "partial", "sequence": 1, "filled": "0.4", "price": "1.0846"}),
    ("pending", "live:1", "P", {**_LOTS, "order_type": "BUY_LIMIT", "order_price": "1.08", "idempotency_key": "p"}),
    ("pending", "copy_follower:2", "F", {**_LOTS, "order_type": "SELL_LIMIT", "order_price": "1.09"}),
    ("report", "live:2", "L", {"request": 0, "status": "filled", "sequence": 2, "filled": "1", "price": "1.0847"}),
    ("close", "live:1", "A", {"order_quantity": "0.4"}),
    ("open", "demo:1", "D", {**_LOTS, "order_type": "SELL"}),  # the same again
    ("report", "copy_follower:2", "F", {"request": 0, "status": "accepted", "sequence": 1}),
    ("open", "demo:1", "A", {**_LOTS, "order_type": "SELL"}),  # another account's order
    ("modify", "live:1", "P", {"order_price": "1.081"}),
    ("modify", "copy_follower:2", "F", {"order_price": "1.095"}),
    ("open", "strategy_provider:1", "M", {**_LOTS, "order_type": "BUY", "order_quantity": "0.5"}),
    ("close", "live:2", "L", {"order_quantity": "0.5"}),
    ("report", "copy_follower:2", "F", {"request": 1, "status": "accepted", "sequence": 1}),
    ("report", "live:2", "L", {"request": 1, "status": "partial", "sequence": 1, "filled": "0.2", "price": "1.09"}),
    ("close", "live:1", "A", {}),
    ("close", "live:1", "A", {}),
    ("take_profit", "demo:1", "D", {"take_profit": "1.05"}),
    ("cancel", "live:1", "P", {}),
    ("report", "live:2", "L", {"request": 1, "status": "filled", "sequence": 2, "filled": "0.5", "price": "1.0905"}),
    ("cancel", "copy_follower:2", "F", {}),
    ("open", "live:1", "BIG", {**_LOTS, "order_type": "BUY", "order_quantity": "50"}),
    ("report", "copy_follower:2", "F", {"request": 2, "status": "accepted", "sequence": 1}),
    ("report", "copy_follower:2", "F", {"request": 0, "status": "cancelled", "sequence": 2}),
    ("open", "live:2", "R", {**_LOTS, "order_type": "SELL"}),
    ("report", "live:2", "R", {"request": 0, "status": "rejected", "sequence": 1}),
    ("close", "strategy_provider:1", "M", {}),
    ("trigger", "live:1", "A", {"trigger": "stop_loss", "trigger_price": "1.07"}),
    ("report", "live:2", "L", {"request": 1, "status": "filled", "sequence": 2, "filled": "0.5", "price": "1.0905"}),
]
#: What waits for no report.
BATCH = [step for step in SCRIPT if step[0] != "report" and step[1] in ("live:1", "demo:1", "strategy_provider:1")]


def prepared(server: Any) -> Desk:
    desk = Desk(server)
    for account in ACCOUNTS:
        desk.account(account, "barclays" if account.endswith("2") else "rock")
    return desk


def send(desk: Desk, kind: str, account: str, order_id: str, said: dict[str, Any]) -> None:
    if kind != "report":
        desk.send(kind, account, order_id=order_id, **said)
        return
    asked = list(
        {request["request_id"]: request for request in desk.requests() if request["order_id"] == order_id}.values()
    )
    more = {"average_price": said.get("price", "0")}
    desk.report(asked[said["request"]], said["status"], said["sequence"], said.get("filled", "0"), **more)


def outcome(desk: Desk) -> dict[str, Any]:
    """What may not depend on who died when: no clocks, no counts of repetitions."""

    def steady(order: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in order.items() if name not in ("created_at", "copyrisk_version")}

    found: dict[str, Any] = {"requests": {request["request_id"] for request in desk.requests()}}
    for account in ACCOUNTS:
        done = [seen for seen in desk.audit(account) if seen.get("event") == "done"]
        versions = [int(seen["version"]) for seen in done]
        assert versions == list(range(versions[0], versions[0] + len(versions))) if versions else True
        announced = {int(event["version"]) for event in _events_of(desk, account)}
        assert announced == set(versions)
        found[account] = (
            desk.balance(account),
            {order_id: steady(desk.order(account, order_id)) for order_id in desk.index(account)},
            [(seen["type"], seen["order_id"], seen["balance"]) for seen in done],
            desk.client.hget(f"copyrisk:{{{account}}}:ledger", "reserved_usd"),
        )
    for order_id in ("A", "D", "L", "P", "F", "M", "R", "BIG"):
        found[order_id] = steady(desk.data(order_id)), desk.triggers(order_id)
    found["holders"] = {kind: desk.holders(kind) for kind in ("live", "demo", "strategy_provider", "copy_follower")}
    found["refused"] = sorted(
        (event["code"], event["order_id"]) for event in desk.events(event="refused") if event["code"] != "trigger_gone"
    )
    return found


def _events_of(desk: Desk, account: str) -> list[dict[str, str]]:
    user_type, _, user_id = account.partition(":")
    return desk.events(event="done", user_type=user_type, user_id=user_id)


def undisturbed(server: Any, script: Sequence[Step] = SCRIPT) -> dict[str, Any]:
    desk = prepared(server)
    for step in script:
        send(desk, *step)
        desk.settle()
    assert_all_well(desk)
    found = outcome(desk)
    desk.close()
    desk.client.flushall()
    return found


def assert_all_well(desk: Desk) -> None:
    assert_books(desk)
    for account in ACCOUNTS:
        assert_paid(desk, account, 10_000)
    assert desk.entries("copyrisk:dead_letters") == []
    assert desk.entries("copyrisk:breaks") == []


def test_an_undisturbed_run_ends_the_same_each_time(bundled_server: Any) -> None:
    assert undisturbed(bundled_server) == undisturbed(bundled_server)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_step_of_the_script(bundled_server: Any, point: str) -> None:
    """For each command or report in turn: its worker dies at the point, another one takes the entry over."""
    expected = undisturbed(bundled_server)
    desk = prepared(bundled_server)
    for step in SCRIPT:
        desk.quote()  # starting so many processes takes longer than a quote lasts
        send(desk, *step)
        with process(desk.server.url, "workers", CRASH_AT=point, LOG_LEVEL="error") as killed:
            assert killed.wait(20) == -signal.SIGKILL
        desk.settle()
    desk.quote()
    assert outcome(desk) == expected
    assert_all_well(desk)
    desk.close()


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_killed_again_and_again_in_the_middle_of_a_batch(bundled_server: Any, point: str, count: int) -> None:
    """All that waits for no report at once; the worker dies at the point, at its n-th passing, until all is done."""
    expected = undisturbed(bundled_server, BATCH)
    desk = prepared(bundled_server)
    for step in BATCH:
        send(desk, *step)
    deaths = 0
    while desk.waiting() and deaths < 5:
        words = {"CRASH_AT": f"{point}:{count}", "WORKERS_ATTEMPTS": 100, "LOG_LEVEL": "error"}
        with process(desk.server.url, "workers", **words) as killed:
            until(lambda running=killed: running.poll() is not None or not desk.waiting(), 20)  # type: ignore[misc]
            with contextlib.suppress(subprocess.TimeoutExpired):
                deaths += killed.wait(2) == -signal.SIGKILL  # fewer passings than that were left
    assert deaths
    desk.settle()
    assert outcome(desk) == expected
    assert_all_well(desk)
    desk.close()
