"""Failures seen in systems of this kind, of copying orders, each as what must happen instead (21 to 27, and 32)."""

import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from copyrisk.derived import copy_id, copy_ids
from copyrisk.following import FollowRequest
from copyrisk.identifiers import Account
from copyrisk.store.enrolment import follow
from copyrisk.store.pipe import Pipe
from copyrisk.store.relations import unfollow
from copyrisk.terms import AccountType
from tests.copying_desk import MASTER, STREAM, CopyDesk, assert_replicated
from tests.trading import assert_paid, decoded, dump, is_log


@pytest.fixture
def desk(bundled_server: Any) -> Iterator[CopyDesk]:
    made = CopyDesk(bundled_server)
    yield made
    assert made.letters() == []
    made.close()


@pytest.fixture
def provider(bundled_server: Any) -> Iterator[CopyDesk]:
    made = CopyDesk(bundled_server, "barclays")
    yield made
    assert made.letters() == []
    made.close()


# ---- 21: ids do not repeat, and nobody chooses another's


def test_known_failure_21_a_copys_id_is_a_pure_function_of_order_and_follower() -> None:
    followers = [f"F{i}".encode() for i in range(2_000)] + [b"1", b"11", b"111", b"-", b"a-b"]
    every: dict[bytes, tuple[str, bytes]] = {}
    for order_id in ("O", "O1", "1", "11", "a-b"):
        ids = copy_ids(order_id, followers)
        assert ids == copy_ids(order_id, followers)
        assert ids[::97] == [
            copy_id(order_id, Account(AccountType.FOLLOWER, name.decode())).encode() for name in followers[::97]
        ]
        for own, name in zip(ids, followers, strict=True):
            assert every.setdefault(own, (order_id, name)) == (order_id, name)
            assert len(own) <= 64


def test_known_failure_21_a_client_cannot_take_the_id_that_a_copy_will_have(desk: CopyDesk) -> None:
    account = desk.follower("F")
    desk.account("live:1")
    own = copy_id("O", Account(AccountType.FOLLOWER, "F"))
    for somebody in ("live:1", account, MASTER):
        assert desk.open(somebody, own)["code"] == "invalid_order_id"
        assert desk.pend(somebody, own, "BUY_LIMIT", "1.05", idempotency_key="k")["code"] == "invalid_order_id"
    desk.open_master()
    assert desk.copies()["F"]["order_id"] == own
    for somebody in ("live:1", MASTER):  # and what is there is only its owner's
        assert desk.do("close", somebody, order_id=own)["code"] == "order_not_found"
    assert_replicated(desk)


def test_known_failure_21_orders_of_one_millisecond_have_copies_of_their_own(desk: CopyDesk) -> None:
    desk.follower("F", "100000")
    for number in range(20):
        desk.send("open", MASTER, symbol="EURUSD", order_type="BUY", order_quantity="0.1", order_id=f"O{number}")
    desk.replicate()
    assert len(desk.index("copy_follower:F")) == 20
    assert_replicated(desk, *(f"O{number}" for number in range(20)))


# ---- 22: one master order is copied once, whatever triggers it, is retried or dies


def test_known_failure_22_an_order_that_is_asked_for_and_announced_again_is_copied_once(desk: CopyDesk) -> None:
    desk.followers(3)
    said = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1", "order_id": "O", "idempotency_key": "k"}
    for _ in range(3):  # the client does not wait for its answer
        desk.send("open", MASTER, **said)
    desk.settle()
    (event,) = desk.entries(STREAM)
    for _ in range(2):  # the outbox is delivered again
        desk.client.xadd(STREAM, event)
    desk.replicate()
    desk.send("open", MASTER, **said)
    desk.replicate()
    assert len(desk.index(MASTER)) == 1
    assert {name: len(desk.index(f"copy_follower:{name}")) for name in desk.copies()} == {"F0": 1, "F1": 1, "F2": 1}
    assert_replicated(desk)


@pytest.mark.parametrize("point", ["replicator.taken", "replicator.decided", "copies.batch", "copies.made"])
def test_known_failure_22_a_fan_out_that_dies_is_finished_by_the_next(
    provider: CopyDesk, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    provider.followers(5)
    provider.open(MASTER, "O")
    for _ in range(3):
        provider.crash_at(monkeypatch, point)
        if point not in ("replicator.taken", "replicator.decided"):
            break  # after the first time there is nothing left to make
        if point == "replicator.decided":
            break  # the decision is there
    provider.replicate()
    assert set(provider.results().values()) == {"copied"}
    assert provider.client.xlen(STREAM) == provider.client.xpending(STREAM, "replicator")["pending"] == 0
    assert_replicated(provider)


# ---- 23: what becomes of the master's order becomes of its copies


@pytest.mark.parametrize("filled", ["before", "after", "never"])
def test_known_failure_23_copies_of_a_rejected_order_do_not_stay(provider: CopyDesk, filled: str) -> None:
    provider.followers(3)
    provider.open_master()
    copies = [f"copy_follower:F{i}" for i in range(3)]
    if filled == "before":
        for account in copies:
            provider.provider_says("filled", account)
    provider.provider_says("rejected", MASTER)
    provider.replicate()
    if filled != "before":
        for account in copies:
            provider.provider_says("filled" if filled == "after" else "rejected", account)
    for _ in range(5):
        provider.let_time_pass()
        provider.replicate()
        provider.provider_says("filled", action="close")
        if not provider.waiting_copies():
            break
    assert (provider.copies(), provider.waiting_copies()) == ({}, {})
    statuses = {provider.data(own)["order_status"] for own in provider.copies_ever().values()}
    assert statuses == ({"REJECTED"} if filled == "never" else {"CLOSED"})
    assert_replicated(provider)


def test_known_failure_23_copies_that_are_still_queued_are_not_skipped_when_the_master_closes(
    provider: CopyDesk,
) -> None:
    provider.followers(3)
    provider.open_master()
    provider.provider_says("filled", MASTER)
    provider.provider_says("filled", "copy_follower:F0")
    provider.close_master()
    provider.provider_says("filled", MASTER)
    provider.replicate()
    assert {said["follower"] for said in provider.waiting_copies().values()} == {"F0", "F1", "F2"}
    provider.provider_says("filled")
    for _ in range(5):
        provider.let_time_pass()
        provider.replicate()
        provider.provider_says("filled", action="close")
        if not provider.waiting_copies():
            break
    assert (provider.copies(), provider.waiting_copies()) == ({}, {})
    assert_replicated(provider)


# ---- 24: lots are whole steps (all 10,000 sizes: test_sizing)


def test_known_failure_24_at_ratio_1_lots_are_copied_unchanged(bundled_server: Any) -> None:
    desk = CopyDesk(bundled_server, "barclays", master_balance="1000000")
    desk.follower("F", "1000000")
    lost = [k for k in range(1, 10_001) if int(k / 100 * 100) != k][:: 573 // 19]
    assert len(lost) >= 19
    for k in lost[:20]:
        lots = Decimal(k).scaleb(-2)
        desk.send("open", MASTER, symbol="EURUSD", order_type="BUY", order_quantity=str(lots), order_id=f"O{k}")
        desk.settle()
        desk.provider_says("rejected", MASTER)  # its margin is free again
    desk.replicate()
    decided = {k: desk.decision(f"O{k}").rows for k in lost[:20]}
    assert {k: int(rows["sized"]["steps"][0]) for k, rows in decided.items() if rows["reason"][0] == b""} == {
        k: k for k, rows in decided.items() if rows["reason"][0] == b""
    }
    desk.close()


def test_known_failure_24_0_29_lots_stay_0_29_lots(provider: CopyDesk) -> None:
    provider.follower("F", "100000")
    for order_id, lots in (("A", "0.29"), ("B", "0.57"), ("C", "1.13"), ("D", "1.16"), ("E", "2.01")):
        provider.open_master(order_id, lots)
        assert provider.lots(order_id) == {"F": Decimal(lots)}


# ---- 25: sizes rest on what is known


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"wallet_balance": None}, "follower_equity_unknown"),
        ({"wallet_balance": ""}, "follower_equity_unknown"),
        ({"leverage": None}, "follower_equity_unknown"),
        ({"max_daily_loss": "x"}, "max_daily_loss_invalid"),
        ({"stop_copying_on_drawdown": None, "max_daily_loss": None}, "copied"),
        ({"stop_copying_on_drawdown": "", "max_daily_loss": ""}, "copied"),
        ({"stop_copying_on_drawdown": "5", "max_daily_loss": "100"}, "copied"),
        ({"copy_sl_mode": "percentage", "sl_percentage": "5"}, "copied"),  # of an investment that nobody knows
    ],
)
def test_known_failure_25_a_missing_field_is_neither_nothing_nor_a_block_for_ever(
    desk: CopyDesk, config: dict[str, Any], reason: str
) -> None:
    desk.follower("F")
    desk.configure("copy_follower:F", **config)
    for order_id in ("A", "B"):
        desk.open_master(order_id)
        assert desk.result("F", order_id) == reason


def test_known_failure_25_sizes_rest_on_equity_and_not_on_the_balance_or_an_old_portfolio(desk: CopyDesk) -> None:
    desk.follower("F", "10000")
    desk.client.hset("user_portfolio:{copy_follower:F}", mapping={"equity": "1", "calc_status": "ok", "ts": "1"})
    desk.client.hset("user_portfolio:{strategy_provider:M}", mapping={"equity": "1", "calc_status": "ok", "ts": "1"})
    desk.open("copy_follower:F", "own", "BUY", "0.5")
    desk.quote("1.1845", "1.18455")  # 4,997.50 earned
    desk.open_master(lots="10")
    equity = Decimal(10_000) + Decimal("0.5") * 100_000 * (Decimal("1.1845") - Decimal("1.08455"))
    assert desk.decision().rows["sizing"]["follower_cents"].tolist() == [int(equity * 100)]
    assert desk.lots()["F"] == Decimal("1.5")


# ---- 26: a pending copy waits for the same price as its master's order


@pytest.mark.parametrize(
    ("order_type", "price", "before", "at"),
    [
        ("SELL_LIMIT", "1.09", ("1.0899", "1.0905"), ("1.0901", "1.0907")),
        ("SELL_STOP", "1.08", ("1.0801", "1.0807"), ("1.0799", "1.0805")),
        ("BUY_LIMIT", "1.08", ("1.0795", "1.0801"), ("1.0793", "1.0799")),
        ("BUY_STOP", "1.09", ("1.0893", "1.0899"), ("1.0895", "1.0901")),
    ],
)
def test_known_failure_26_a_pending_copy_triggers_with_its_master_whatever_spread_its_group_has(
    desk: CopyDesk, order_type: str, price: str, before: tuple[str, str], at: tuple[str, str]
) -> None:
    desk.office.group("EURUSD", "Wide", spread="300", spread_pip="0.00001")
    desk.follower("A")
    desk.follower("W", group="Wide")
    desk.open_master(order_type=order_type, price=price)
    monitor = desk.new_monitor()

    def triggered_by(quote: tuple[str, str]) -> set[str]:
        desk.quote(*quote)
        while monitor.step(0.05):
            desk.settle()
        orders = {"M": desk.order(MASTER, "O"), **desk.copies()}
        return {name for name, order in orders.items() if order["execution_status"] == "EXECUTED"}

    assert triggered_by(before) == set()
    assert triggered_by(at) == {"M", "A", "W"}
    side = Decimal(at[0] if order_type.startswith("SELL") else at[1])
    half = Decimal("0.0015") * (-1 if order_type.startswith("SELL") else 1)
    assert Decimal(desk.copies()["A"]["order_price"]) == Decimal(desk.order(MASTER, "O")["order_price"]) == side
    assert Decimal(desk.copies()["W"]["order_price"]) == side + half


# ---- 27: closes are made together


def test_known_failure_27_hundreds_of_copies_are_closed_together(desk: CopyDesk) -> None:
    count = 300
    desk.followers(count)
    desk.open_master()
    assert len(desk.index(MASTER)) == 1
    assert desk.client.scard("symbol_holders:EURUSD:copy_follower") == count
    desk.do("close", MASTER, order_id="O")
    asked = int(desk.client.info("stats")["total_net_input_bytes"])
    began_s = time.monotonic()
    desk.replicate()
    took_s = time.monotonic() - began_s
    assert desk.client.keys("user_holdings:{copy_follower:*") == []
    assert desk.client.scard("symbol_holders:EURUSD:copy_follower") == 0
    assert int(desk.client.info("stats")["total_net_input_bytes"]) - asked < count * 20_000
    assert took_s < 5.0, f"{took_s:.1f} s for {count} copies"
    for i in (0, count // 2, count - 1):
        assert_paid(desk, f"copy_follower:F{i}", 10_000)


# ---- 32: the keys that everything relies on are written, and nothing is left over


def test_known_failure_32_who_follows_is_copied_to_and_who_has_left_is_not(desk: CopyDesk) -> None:
    pipe = Pipe(desk.new_client())
    done = follow(pipe, "M", [FollowRequest("A", "5000"), FollowRequest("B", "10000")])
    assert [outcome.code for outcome in done] == ["done", "done"]
    desk.open_master()
    assert desk.lots() == {"A": Decimal("0.05"), "B": Decimal("0.1")}
    desk.close_master()
    assert [outcome.code for outcome in unfollow(pipe, ["A"])] == ["done"]
    assert desk.client.get("copy_follower_master:A:provider_id") is None
    assert desk.client.smembers("copy_master_followers:M:active") == {b"B"}
    desk.open_master("O2")
    assert desk.lots("O2") == {"B": Decimal("0.1")}
    assert_replicated(desk, "O", "O2")


@pytest.mark.parametrize("end", ["closed", "cancelled", "rejected"])
def test_known_failure_32_after_an_orders_life_only_the_documented_keys_of_its_copies_remain(
    provider: CopyDesk, end: str
) -> None:
    desk = provider
    account = desk.follower("F", flow="rock")
    before = dump(desk.client).keys()
    if end == "closed":
        desk.open_master(stop_loss="1.07")
        desk.provider_says("filled")
        desk.close_master()
        desk.provider_says("filled")
    else:
        desk.open_master(order_type="BUY_STOP", price="1.09", stop_loss="1.07")
        (request,) = desk.requests()
        desk.reported(request, end, 1)
    desk.replicate()
    assert (desk.copies(), desk.waiting_copies()) == ({}, {})
    (own,) = desk.copies_ever().values()
    left = {key for key in dump(desk.client, is_log).keys() - before if account in key or own in key or "copies" in key}
    kept_for_good = {f"copyrisk:{{{account}}}:ledger"}
    kept_for_a_while = {f"copyrisk:{{{account}}}:order:{own}", f"order_data:{own}", f"order_triggers:{own}"}
    assert left - {f"copyrisk:{{{account}}}:outbox"} == kept_for_good | kept_for_a_while | {"copyrisk:copies:O"}
    assert desk.client.xlen(f"copyrisk:{{{account}}}:outbox") == 0
    for key in kept_for_a_while | {"copyrisk:copies:O"}:
        assert 0 < desk.client.ttl(key) <= 30 * 86_400, key
    assert desk.holders("copy_follower") == set()
    assert decoded(desk.client.hgetall(f"order_triggers:{own}")).keys() == {"copyrisk_version"}


def test_known_failure_32_a_follower_that_got_no_copy_leaves_nothing(desk: CopyDesk) -> None:
    account = desk.follower("F", copy_status="paused")
    before = dump(desk.client)
    desk.open_master()
    assert desk.result("F") == "copying_paused"
    assert {key for key in dump(desk.client).keys() - before.keys() if account in key} == set()
    assert 0 < desk.client.ttl("copyrisk:copies:O") <= 30 * 86_400
