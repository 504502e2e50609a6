"""The kill switch on real servers: nothing opens while it is on, whoever asks and how; everything still closes."""

import json
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import crash, keys
from copyrisk.book import Book
from copyrisk.derived import copy_id
from copyrisk.errors import StoreError
from copyrisk.identifiers import Account
from copyrisk.kills import KillPolicy, kill_text
from copyrisk.store import changes
from copyrisk.store.kill_switch import KillSwitch, followers_of_masters, waiting_on
from copyrisk.store.link import Link
from copyrisk.store.mirror import Mirror
from copyrisk.store.pipe import Pipe
from copyrisk.terms import AccountType
from tests.copying_desk import MASTER, CopyDesk
from tests.test_permissions import limit
from tests.trading import Desk, assert_books, dump

KILLS = "copyrisk:kills"
HALTED, UNREADABLE = "trading_halted", "kill_switch_unreadable"


@pytest.fixture
def desk(bundled_server: Any) -> Any:
    made = Desk(bundled_server)
    yield made
    made.close()


def kill(desk: Desk, scope: str, policy: str = "keep", reason: str = "test") -> None:
    desk.client.hset(KILLS, scope, kill_text(KillPolicy(policy), reason, "op", 1))


def code(event: dict[str, str]) -> str:
    return event["code"]


def fire(desk: Desk) -> list[dict[str, str]]:
    """Let a monitor that has just started see all; returns the commands it sent."""
    before = desk.client.xlen("copyrisk:commands")
    monitor = desk.new_monitor()
    monitor.step(0.0)
    return desk.entries("copyrisk:commands")[before:]


# ---- scopes x ways to open x ways out

SCOPES = ("all", "account:strategy_provider:M", "master:M", "symbol:EURUSD", "ALL")


@pytest.mark.parametrize("scope", [*SCOPES, "symbol:EURUSD unreadable", "no hash"])
def test_nothing_opens_and_everything_closes(desk: Desk, scope: str) -> None:
    assert_halted(desk, scope)


def test_on_every_server(redis_server: Any) -> None:
    desk = Desk(redis_server)
    assert_halted(desk, "master:M")
    desk.close()


def assert_halted(desk: Desk, scope: str) -> None:
    expected = UNREADABLE if scope in ("ALL", "no hash") else HALTED
    account = desk.account(MASTER)
    for order_id in "ABC":
        assert code(desk.open(account, order_id, lots="0.1")) == "ok"
    for order_id in ("P", "Q"):
        assert code(desk.pend(account, order_id, "BUY_LIMIT", "1.08", lots="0.1")) == "ok"
    desk.account("live:2")
    if scope == "no hash":
        desk.client.set(KILLS, "x")
    elif scope.endswith("unreadable"):
        desk.client.hset(KILLS, "symbol:EURUSD", "{")
    else:
        kill(desk, scope, "close")
    answer = desk.open(account, "X", lots="0.1")
    assert code(answer) == expected
    if expected == HALTED and "unreadable" not in scope:
        assert answer["message"] == f"no new orders, {scope} is halted: test"
    assert code(desk.pend(account, "Y", "SELL_LIMIT", "1.09", lots="0.1")) == expected
    assert code(desk.do("trigger", account, order_id="P", trigger="pending", trigger_price="1.08")) == expected
    desk.quote("1.0795", "1.0796")
    assert fire(desk) == []
    assert code(desk.open("live:2", "Z", lots="0.1")) == ("ok" if scope.endswith(":M") else expected)
    for kind, order_id, more in (
        ("modify", "P", {"order_price": "1.07"}),
        ("stop_loss", "A", {"stop_loss": "1.0794"}),
        ("take_profit", "A", {"take_profit": "1.2"}),
        ("close", "B", {"order_quantity": "0.04"}),
        ("close", "B", {}),
        ("cancel", "Q", {}),
        ("trigger", "A", {"trigger": "stop_loss", "trigger_price": "1.0794"}),
    ):
        assert code(desk.do(kind, account, order_id=order_id, **more)) == "ok", kind
    assert desk.index(account) == {"C", "P"}
    assert desk.client.xlen("copyrisk:dead_letters") == 0
    desk.client.delete(KILLS)
    desk.quote("1.0695", "1.0696")
    assert [said["order_id"] for said in fire(desk)] == ["P"]
    desk.settle()
    assert desk.statuses(account, "P") == ("OPEN", "EXECUTED")
    assert code(desk.open(account, "N", lots="0.1")) == "ok"
    assert_books(desk)


def test_with_the_provider_what_was_sent_is_booked_and_nothing_more_is_sent(desk: Desk) -> None:
    account = desk.account("live:1", "barclays")
    desk.open(account, "A")
    opened = desk.request()
    desk.pend(account, "P", "BUY_LIMIT", "1.08")
    placed = desk.request()
    desk.reported(placed, "accepted", 1)
    kill(desk, f"account:{account}")
    for answer in (desk.open(account, "X"), desk.do("modify", account, order_id="P", order_price="1.0801")):
        assert code(answer) == HALTED
    desk.reported(opened, "filled", 1, "1", average_price="1.0845")
    assert desk.statuses(account, "A") == ("OPEN", "EXECUTED")
    desk.reported(placed, "partial", 2, "0.4", average_price="1.08")
    assert desk.order(account, "P")["order_quantity"] == "0.4"
    assert len(desk.requests()) == 2
    assert code(desk.do("close", account, order_id="A")) == "ok"
    assert desk.request()["action"] == "close"
    assert_books(desk)


def test_a_refused_open_is_answered_the_same_when_it_comes_again(desk: Desk) -> None:
    """As every refusal; whoever wants the order after all sends a new one."""
    account = desk.account("live:1")
    kill(desk, "all")
    assert code(desk.open(account, "A")) == HALTED
    desk.client.delete(KILLS)
    desk.send("open", account, symbol="EURUSD", order_type="BUY", order_quantity="1", order_id="A")
    desk.settle()
    assert [event["code"] for event in desk.events(order_id="A")] == [HALTED]
    assert code(desk.open(account, "B")) == "ok"


def test_a_kill_changes_nothing_but_what_is_said(desk: Desk) -> None:
    account = desk.account("live:1")
    desk.open(account, "A")
    kill(desk, "all")
    before = dump(desk.client, lambda key: ":answer:" in key or key.endswith(":audit") or key.startswith("copyrisk:"))
    desk.open(account, "X")
    after = dump(desk.client, lambda key: ":answer:" in key or key.endswith(":audit") or key.startswith("copyrisk:"))
    assert {key for key in after if after[key] != before.get(key)} == {"order_data:X"}  # claimed for a minute


# ---- what a wave that is under way may still do


def test_a_wave_that_read_the_switch_before_may_open_and_none_after_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = desk.account("live:1")
    monkeypatch.setattr(crash, "reach", lambda point: kill(desk, "all") if point == "worker.decided" else None)
    assert code(desk.open(account, "A", lots="0.1")) == "ok"
    assert code(desk.open(account, "B", lots="0.1")) == HALTED


def test_a_wave_that_is_too_late_reads_the_switch_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DECISION_MS` after a kill nothing is stored any more that was decided before."""
    account = desk.account("live:1")
    monkeypatch.setattr(changes, "DECISION_MS", 1)

    def reach(point: str) -> None:
        if point == "worker.decided" and not desk.client.exists(KILLS):
            kill(desk, "all")
            time.sleep(0.005)

    monkeypatch.setattr(crash, "reach", reach)
    assert code(desk.open(account, "A", lots="0.1")) == HALTED
    assert desk.index(account) == set()


def test_other_workers_and_later_ones_read_it_themselves(desk: Desk) -> None:
    account = desk.account("live:1")
    kill(desk, "all")
    for number in range(2):
        sent = desk.send("open", account, symbol="EURUSD", order_type="BUY", order_quantity="1", order_id=f"A{number}")
        desk.settle(workers=desk.new_workers())
        assert code(desk.answer(sent)) == HALTED


# ---- monitors


def test_a_held_back_order_costs_nothing_and_fires_once_it_may(desk: Desk) -> None:
    first, second = desk.account("live:1"), desk.account("live:2")
    for account in (first, second):
        assert code(desk.pend(account, f"P{account[-1]}", "BUY_LIMIT", "1.08", lots="0.1")) == "ok"
    kill(desk, "account:live:1")
    monitor = desk.new_monitor()
    desk.quote("1.0795", "1.0796")
    sent: list[str] = []
    before = desk.client.xlen("copyrisk:commands")
    deadline_s = time.monotonic() + 10
    while not sent or monitor._again.keys() != monitor._watched.keys():
        assert time.monotonic() < deadline_s
        monitor.step(0.02)
        sent = [said["order_id"] for said in desk.entries("copyrisk:commands")[before:]]
    assert set(sent) == {"P2"}
    desk.settle()
    assert desk.events(order_id="P1", event="refused") == []
    desk.client.delete(KILLS)
    while desk.statuses(first, "P1") != ("OPEN", "EXECUTED"):
        assert time.monotonic() < deadline_s
        monitor.step(0.02)
        desk.settle()
    assert_books(desk)


def test_monitors_and_workers_may_read_what_they_need(redis_server: Any) -> None:
    """As the users that docs/settings.md describes."""
    desk = Desk(redis_server)
    own = desk.server
    copy = copy_id("O", Account(AccountType.FOLLOWER, "F"))
    account = desk.account("copy_follower:F")
    desk.client.set("copy_follower_master:F:provider_id", "M")
    desk.office.order(account, copy, order_type="BUY_LIMIT", order_status="PENDING", execution_status="PENDING")
    desk.client.hset(f"user_holdings:{{{account}}}:{copy}", "master_order_id", "O")
    said = {"symbol": "EURUSD", "order_type": "BUY_LIMIT", "user_type": "copy_follower", "user_id": "F"}
    desk.client.hset(f"order_triggers:{copy}", mapping=said | {"order_price_compare": "1.09"})
    kill(desk, "master:M")
    desk.client.acl_log_reset()
    limit(desk, "monitors")
    assert fire(desk) == []
    desk.server = own
    limit(desk, "workers")
    assert code(desk.open(account, "X", lots="0.1", master_order_id="O")) == HALTED
    assert code(desk.open(account, "Y", lots="0.1")) == "ok"
    desk.server = own
    seen = {(one["reason"], one["object"]) for one in desk.client.acl_log()}
    assert {one for one in seen if one[0] == "key" or one[1] in ("get", "hgetall", "hmget")} == set()
    desk.close()


# ---- copies


def copy_desk(server: Any, **flags: object) -> CopyDesk:
    made = CopyDesk(server, **flags)
    made.followers(2)
    return made


@pytest.mark.parametrize(
    ("scope", "first", "second"),
    [
        ("all", HALTED, HALTED),
        ("symbol:EURUSD", HALTED, HALTED),
        ("master:M", HALTED, HALTED),
        ("account:copy_follower:F0", HALTED, "copied"),
        ("account:strategy_provider:M", "copied", "copied"),
        ("master:F0", "copied", "copied"),
        ("account:live:F0", "copied", "copied"),
        ("nonsense", UNREADABLE, UNREADABLE),
    ],
)
@pytest.mark.parametrize("when", ["before", "after the decision"])
def test_copies(bundled_server: Any, monkeypatch: Any, scope: str, first: str, second: str, when: str) -> None:
    """Of an order that the master opened before the kill."""
    desk = copy_desk(bundled_server)
    assert desk.replicator.step(1) == 0
    if when == "before":
        assert code(desk.open(MASTER, "O")) == "ok"
        kill(desk, scope)
        desk.replicate()
        reasons = dict(zip(("F0", "F1"), desk.decision().rows["reason"].tolist(), strict=True))
        assert reasons == {"F0": first.encode().replace(b"copied", b""), "F1": second.encode().replace(b"copied", b"")}
    else:
        assert code(desk.open(MASTER, "O")) == "ok"
        desk.crash_at(monkeypatch, "replicator.decided")
        assert desk.decision().rows["reason"].tolist() == [b"", b""]
        kill(desk, scope)
        desk.replicate()
    assert desk.results() == {"F0": first, "F1": second}
    assert desk.copies().keys() == {name for name, result in desk.results().items() if result == "copied"}
    desk.close()


def test_copies_follow_their_master_out_and_no_copy_comes_back(redis_server: Any) -> None:
    desk = copy_desk(redis_server)
    desk.open_master("O")
    desk.open_master("P", order_type="BUY_LIMIT", price="1.08")
    kill(desk, "all")
    desk.master_does("stop_loss", stop_loss="1.05")
    desk.master_does("modify", "P", order_price="1.07")
    assert (desk.said("stop_loss"), desk.said("order_price", "P")) == ({"1.05"}, {"1.07"})
    desk.close_master("0.4")
    assert set(desk.lots().values()) == {Decimal("0.06")}
    desk.close_master()
    desk.master_does("cancel", "P")
    assert desk.copies() == desk.copies("P") == {}
    assert (desk.waiting_copies(), desk.letters()) == ({}, [])
    assert_books(desk)
    desk.close()


def test_pending_copies_of_a_halted_master_wait_on(bundled_server: Any) -> None:
    desk = copy_desk(bundled_server)
    for name in ("F0", "F1"):
        desk.client.set(f"copy_follower_master:{name}:provider_id", "M")
    desk.open_master("P", order_type="BUY_LIMIT", price="1.08")
    own = desk.pend("copy_follower:F0", "OWN", "BUY_LIMIT", "1.08", lots="0.01")
    kill(desk, "master:M")
    desk.quote("1.0795", "1.0796")
    assert [said["order_id"] for said in fire(desk)] == ["OWN"]  # the follower's own order is no copy
    for follower, order in desk.copies("P").items():
        trigger = {"trigger": "pending", "trigger_price": "1.08"}
        assert code(desk.do("trigger", f"copy_follower:{follower}", order_id=order["order_id"], **trigger)) == HALTED
    desk.settle()
    assert code(own) == "ok" and desk.statuses("copy_follower:F0", "OWN") == ("OPEN", "EXECUTED")
    desk.client.delete(KILLS)
    assert len(fire(desk)) == 3
    desk.replicate()
    assert desk.said("order_status", "P") == {"OPEN"}
    desk.close()


@pytest.mark.parametrize(
    ("named", "followed", "expected"),
    [
        (("strategy_provider", "M"), None, HALTED),
        (("strategy_provider", "N"), None, "ok"),
        (("strategy_provider", "N"), "M", HALTED),
        (("live", "M"), "N", "ok"),
        (("live", "M"), None, "ok"),
        (None, "N", "ok"),
        (None, "M", HALTED),
        (None, None, HALTED),  # whose copy it is cannot be told
        ("wrong type", None, HALTED),
    ],
)
def test_copies_that_another_system_makes(desk: Desk, named: Any, followed: str | None, expected: str) -> None:
    account = desk.account("copy_follower:F")
    if isinstance(named, tuple):
        desk.client.hset("order_data:MO", mapping=dict(zip(("user_type", "user_id"), named, strict=True)))
    elif named:
        desk.client.set("order_data:MO", "x")
    if followed:
        desk.client.set("copy_follower_master:F:provider_id", followed)
    kill(desk, "master:M")
    assert code(desk.open(account, "A", lots="0.1", master_order_id="MO")) == expected
    assert code(desk.open(account, "B", lots="0.1")) == "ok"
    desk.client.delete(KILLS)
    assert code(desk.open(account, "C", lots="0.1", master_order_id="MO")) == "ok"


# ---- the switch itself


def test_the_switch_is_parsed_when_it_changes_and_read_whenever_it_is_asked_for(desk: Desk) -> None:
    switch = KillSwitch(Pipe(desk.new_client()))
    kill(desk, "all")
    first = switch.read()
    assert switch.read() is first
    kill(desk, "all", reason="another")
    assert switch.read() is not first
    desk.client.delete(KILLS)
    desk.client.rpush(KILLS, "x")
    assert switch.read().fault is not None
    desk.client.delete(KILLS)
    assert switch.read().every() == [] and switch.kills.fault is None


def test_it_lies_in_a_slot_of_its_own() -> None:
    assert (keys.KILLS, "{" in keys.KILLS) == (KILLS, False)


def test_what_kills_with_policy_close_need_besides_the_book(desk: Desk) -> None:
    desk.account("live:1")
    desk.open("live:1", "A")
    desk.pend("live:1", "P", "BUY_LIMIT", "1.08")
    desk.office.order("live:1", "BAD", order_quantity="x")
    desk.office.order("live:1", "GBP", symbol="GBPUSD", order_status="PENDING", execution_status="PENDING")
    desk.client.set("user_holdings:{live:1}:NONE", "x")
    desk.client.sadd("user_orders_index:{live:1}", "NONE", "b d")
    book = Book(desk.settings.rules())
    mirror = Mirror(Link(desk.new_client(), book.market.names.index), book, hears_wishes=False)
    mirror.read(0.0)
    mirror.close()
    pipe = Pipe(desk.new_client())
    rows = waiting_on(pipe, book, ["EURUSD"])
    assert {book.order_ids.text(row) for row in rows.tolist()} == {b"P", b"BAD"}
    assert waiting_on(pipe, book, []).tolist() == []
    desk.client.sadd("copy_master_followers:M:active", "F2", "F1", "a b")
    found = followers_of_masters(pipe, ["M", "N"])
    assert {master: [one.id for one in own] for master, own in found.items()} == {"M": ["F1", "F2"], "N": []}
    desk.client.set("copy_master_followers:N:active", "x")
    with pytest.raises(StoreError):
        followers_of_masters(pipe, ["M", "N"])


# ---- no sequence of commands adds lots

COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(["open", "pending", "close", "cancel", "modify", "trigger", "stop_loss", "follow"]),
        st.sampled_from(["A", "P", "X", "Y"]),
        st.sampled_from(["0.01", "0.05", "0.1", "5"]),
    ),
    min_size=4,
    max_size=10,
)


def test_no_sequence_of_commands_adds_lots(bundled_server: Any) -> None:
    desk = Desk(bundled_server)
    numbers = iter(range(10_000))

    @settings(max_examples=15, deadline=None)
    @given(COMMANDS, st.sampled_from(["all", "symbol:EURUSD", "account", "{"]), st.sampled_from(["rock", "barclays"]))
    def hold(commands: list[tuple[str, str, str]], scope: str, flow: str) -> None:
        number = next(numbers)
        account = desk.account(f"live:{number}", "rock")
        names = {name: f"{name}-{number}" for name in "APXY"}
        desk.open(account, names["A"], lots="0.1")
        desk.pend(account, names["P"], "BUY_LIMIT", "1.08", lots="0.1")
        desk.client.hset(f"user:{{{account}}}:config", "sending_orders", flow)
        kill(desk, f"account:{account}" if scope == "account" else scope)
        held = lots_of(desk, account)
        for kind, name, lots in commands:
            said = {"order_id": names[name], "order_quantity": lots, "symbol": "EURUSD", "order_price": "1.07"}
            said |= {"order_type": "BUY_LIMIT" if kind == "pending" else "BUY", "trigger": "pending"}
            if kind in ("open", "pending") and name in "XY":  # else it may be answered as one before it was
                said["order_id"] = f"{name}-{number}-{next(numbers)}"
            desk.send(kind, account, **said, trigger_price="1.08", stop_loss="1.05")
            desk.settle()
            now = lots_of(desk, account)
            assert all(now[order_id] <= held.get(order_id, 0) for order_id in now), (kind, name)
            held = now
        for order_id in desk.index(account):
            way_out = "close" if desk.statuses(account, order_id)[1] == "EXECUTED" else "cancel"
            assert code(desk.do(way_out, account, order_id=order_id)) == "ok"
        assert desk.index(account) == set()
        desk.client.delete(KILLS)

    hold()
    desk.close()


def lots_of(desk: Desk, account: str) -> dict[str, Decimal]:
    """Lots by order; of one that waits, the lots it waits with, so that none may become a position either."""
    orders = {order_id: desk.order(account, order_id) for order_id in desk.index(account)}
    return {
        order_id + order["execution_status"]: Decimal(order["order_quantity"]) for order_id, order in orders.items()
    }


def test_the_stored_entry_is_what_the_documentation_says() -> None:
    said = json.loads(kill_text(KillPolicy.CLOSE, "why", "op", 7))
    assert said == {"policy": "close", "reason": "why", "by": "op", "ts_ms": 7}
