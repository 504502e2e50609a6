"""The engine of copies on a real server: a master's order reaches each follower once; copies follow it to the end."""

import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from copyrisk import crash
from copyrisk.commands import Target
from copyrisk.errors import StoreUnavailable
from copyrisk.identifiers import parse_account
from copyrisk.replication import parse_target, target_words
from copyrisk.sizing import size_rows
from copyrisk.store import library
from copyrisk.store.functions import Standing, copy_request, refused
from copyrisk.store.pipe import Pipe
from copyrisk.store.tallies import counts_of
from tests.backoffice import BackOffice
from tests.copying_desk import (
    FOLLOWING,
    MAKING,
    MASTER,
    STREAM,
    CopyDesk,
    Died,
    assert_replicated,
    names,
    ratio_lots,
)
from tests.trading import assert_books, assert_paid, decoded, dump, is_log, lend

FLOWS = ("rock", "barclays")
PENDING = {"BUY_LIMIT": "1.08", "SELL_LIMIT": "1.09", "BUY_STOP": "1.09", "SELL_STOP": "1.08"}
FOLLOWER = parse_account("copy_follower:F")


@pytest.fixture(params=FLOWS)
def desk(request: pytest.FixtureRequest, bundled_server: Any) -> Iterator[CopyDesk]:
    """A desk in each flow."""
    made = CopyDesk(bundled_server, request.param)
    yield made
    assert made.letters() == []
    made.close()


@pytest.fixture
def rock(bundled_server: Any) -> Iterator[CopyDesk]:
    made = CopyDesk(bundled_server)
    yield made
    assert made.letters() == []
    made.close()


@pytest.fixture
def barclays(bundled_server: Any) -> Iterator[CopyDesk]:
    made = CopyDesk(bundled_server, "barclays")
    yield made
    assert made.letters() == []
    made.close()


def is_provider(desk: CopyDesk) -> bool:
    return desk.flow == "barclays"


def fill(desk: CopyDesk) -> None:
    """In the provider's flow everything that was asked is done."""
    if is_provider(desk):
        desk.provider_says("filled")
        desk.replicate()


# ---- the call that makes a copy


class Shop:
    """A follower's account, and the call."""

    def __init__(self, client: Any) -> None:
        self.client, self.office, self.pipe = client, BackOffice(client), Pipe(client)
        library.load(client)
        self.office.account("copy_follower:F", copy_status="active")
        self.office.order("copy_follower:F", "other")
        client.hset("copyrisk:{copy_follower:F}:ledger", mapping={"version": "7", "reserved_usd": "1.00"})
        seconds, _ = client.time()
        self.now_ms = seconds * 1000

    def copy(self, **chosen: Any) -> Any:
        usual = {"deadline_ms": str(self.now_ms + 60_000), "version": "7", "balance": "10000.0", "leverage": "100"}
        usual |= {"group": "Standard", "copy_status": "active", "orders": "1"}
        own = {"version": "8", "record": '{"made":8}', "remainder": ""}
        own |= {name: chosen.pop(name) for name in ("new_version", "remainder") if name in chosen}
        words = {"order_id": "copy-1", "symbol": "EURUSD", "order_status": "OPEN"}
        (reply,) = self.pipe.exchange([copy_request(FOLLOWER, "copy-1", Standing(**{**usual, **chosen}), words, **own)])
        return reply


KEYS = ("user:{%s}:config", "user_orders_index:{%s}", "copyrisk:{%s}:ledger", "user_holdings:{%s}:copy-1")
OWN_KEYS = tuple(key % "copy_follower:F" for key in (*KEYS, "copyrisk:{%s}:order:copy-1", "copyrisk:{%s}:remainders"))


@pytest.fixture
def shop(redis_server: Any) -> Iterator[Shop]:
    made = Shop(redis_server.client())
    yield made
    made.client.connection_pool.disconnect()


def test_a_copy_is_made_whole_and_touches_nothing_else(shop: Shop) -> None:
    before = dump(shop.client)
    assert shop.copy(remainder="0.25") == [b"done"]
    client = shop.client
    assert decoded(client.hgetall(OWN_KEYS[3])) == {"order_id": "copy-1", "symbol": "EURUSD", "order_status": "OPEN"}
    assert client.smembers(OWN_KEYS[1]) == {b"other", b"copy-1"}
    assert decoded(client.hgetall(OWN_KEYS[2])) == {"version": "8", "reserved_usd": "1.00"}
    assert client.get(OWN_KEYS[4]) == b'{"made":8}'
    assert client.ttl(OWN_KEYS[4]) == -1
    assert decoded(client.hgetall(OWN_KEYS[5])) == {"copy-1": "0.25"}
    after = dump(client)
    assert {key for key in after if after[key] != before.get(key)} == set(OWN_KEYS[1:])


@pytest.mark.parametrize(
    ("chosen", "answer"),
    [
        ({"version": "6"}, b"changed"),
        ({"version": ""}, b"changed"),
        ({"version": "7.0"}, b"changed"),
        ({"balance": "10000.01"}, b"changed"),
        ({"balance": "nan"}, b"changed"),
        ({"balance": ""}, b"changed"),
        ({"leverage": "200"}, b"changed"),
        ({"group": "VIP"}, b"changed"),
        ({"copy_status": ""}, b"changed"),
        ({"copy_status": "paused"}, b"changed"),
        ({"orders": "0"}, b"changed"),
        ({"orders": "2"}, b"changed"),
        ({"deadline_ms": "1"}, b"late"),
    ],
)
def test_a_copy_rests_on_what_was_read(shop: Shop, chosen: dict[str, str], answer: bytes) -> None:
    before = dump(shop.client)
    assert shop.copy(remainder="1", **chosen) == [answer]
    assert dump(shop.client) == before


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        (OWN_KEYS[0], "wallet_balance", "9999.99"),
        (OWN_KEYS[0], "leverage", "50"),
        (OWN_KEYS[0], "group", "VIP"),
        (OWN_KEYS[0], "group", ""),
        (OWN_KEYS[0], "copy_status", "paused"),
        (OWN_KEYS[0], "copy_status", "stopped"),
        (OWN_KEYS[0], "copy_status", ""),
        (OWN_KEYS[0], "wallet_balance", "x"),
        (OWN_KEYS[2], "version", "8"),
        (OWN_KEYS[1], "", "one more"),
    ],
)
def test_what_changed_since_it_was_read_refuses_the_copy(shop: Shop, key: str, field: str, value: str) -> None:
    if field:
        shop.client.hset(key, field, value)
    else:
        shop.client.sadd(key, value)
    before = dump(shop.client)
    assert shop.copy() == [b"changed"]
    assert dump(shop.client) == before


def test_balance_and_leverage_are_compared_as_numbers_and_no_group_is_the_standard_one(shop: Shop) -> None:
    shop.client.hset(OWN_KEYS[0], mapping={"wallet_balance": "010000.000", "leverage": "100.00"})
    shop.client.hdel(OWN_KEYS[0], "group", "copy_status")
    assert shop.copy(copy_status="", balance="10000") == [b"done"]


def test_a_fraction_of_a_cent_is_another_balance(shop: Shop) -> None:
    shop.client.hset(OWN_KEYS[0], "wallet_balance", "10000.000000001")
    assert shop.copy() == [b"changed"]
    assert shop.copy(balance=repr(10000.000000001)) == [b"done"]


@pytest.mark.parametrize("key", OWN_KEYS[3:5])
def test_a_copy_that_is_or_was_there_is_never_made_again(shop: Shop, key: str) -> None:
    assert shop.copy() == [b"done"]
    for other in OWN_KEYS[3:5]:
        if other != key:
            shop.client.delete(other)  # the order has ended; or somebody lost our record of it
    before = dump(shop.client)
    for more in ({}, {"version": "8", "orders": "2"}, {"deadline_ms": "1"}):
        assert shop.copy(**more) == [b"exists"]
    assert dump(shop.client) == before


@pytest.mark.parametrize("kind", ["string", "list", "hash"])
@pytest.mark.parametrize("key", OWN_KEYS)
def test_a_key_of_another_type_never_leaves_half_a_copy(shop: Shop, key: str, kind: str) -> None:
    was = shop.client.type(key)
    shop.client.delete(key)
    made = {"string": lambda: shop.client.set(key, "x"), "list": lambda: shop.client.rpush(key, "x")}
    made.get(kind, lambda: shop.client.hset(key, "x", "y"))()
    before = dump(shop.client)
    reply = shop.copy(remainder="1")
    if not isinstance(reply, Exception):
        is_right_type = was == kind.encode() or (key == OWN_KEYS[5] and kind == "hash")
        assert reply == ([b"exists"] if key in OWN_KEYS[3:5] else [b"done"] if key == OWN_KEYS[5] else [b"changed"])
        assert is_right_type or key in OWN_KEYS[3:5]
        if reply == [b"done"]:
            return
    else:
        failure = refused(reply)
        assert failure is not None and failure.code == "key_unusable"
    assert dump(shop.client) == before


def test_a_full_server_refuses_a_copy_whole(shop: Shop) -> None:
    before = dump(shop.client)
    shop.client.config_set("maxmemory", 1)
    try:
        assert refused(shop.copy()) is not None
    finally:
        shop.client.config_set("maxmemory", 0)
    assert dump(shop.client) == before
    assert shop.copy() == [b"done"]


# ---- copies are made


def test_every_follower_gets_its_share_and_figures_as_a_worker_writes_them(desk: CopyDesk) -> None:
    desk.office.group("EURUSD", commission_rate="3.5", spread="12", spread_pip="0.00001")
    for name, balance in (("A", "10000"), ("B", "2500.50"), ("C", "100000"), ("D", "333333.33")):
        desk.follower(name, balance)
    desk.open_master(lots="1.37", stop_loss="1.07", take_profit="1.1")
    desk.tick()
    equity = Decimal(desk.decision().header["master_figures"]["equity"])
    assert abs(equity - Decimal(desk.office.portfolio(MASTER)["equity"])) <= (
        Decimal("0.01") if is_provider(desk) else 0
    )
    for name, copy in desk.copies().items():
        account = f"copy_follower:{name}"
        balance = desk.balance(account)
        assert Decimal(copy["order_quantity"]) == ratio_lots("1.37", equity, balance)
        # the same by a worker, in an account of its own
        desk.account(f"copy_follower:{name}w", desk.flow, balance)
        more = {"stop_loss": "1.07", "take_profit": "1.1", "master_order_id": "O"}
        desk.open(f"copy_follower:{name}w", f"W{name}", lots=copy["order_quantity"], **more)
        usual = desk.order(f"copy_follower:{name}w", f"W{name}")
        own = ("order_id", "user_id", "created_at")
        assert {key: said for key, said in copy.items() if key not in own} == {
            key: said for key, said in usual.items() if key not in own
        }
        for part in ("order_data:W" + name, f"user_holdings:{{{account}w}}:W{name}"):
            desk.client.hdel(part, "master_order_id")
    assert_replicated(desk)


def test_the_equity_that_is_taken_is_the_portfolio_that_the_daemon_writes(rock: CopyDesk) -> None:
    for name, balance in (("A", "5000"), ("B", "7777.77")):
        rock.follower(name, balance)
        rock.open(f"copy_follower:{name}", f"own{name}", "SELL", "0.37")
    rock.open(MASTER, "own", "BUY", "2.5")
    rock.quote("1.08217", "1.08231")
    rock.open_master()
    rock.tick()
    decision = rock.decision()
    sizing = dict(zip(decision.rows["follower"].tolist(), decision.rows["sizing"], strict=True))
    for name in ("A", "B"):
        copy = rock.copies()[name]
        loss = (Decimal(copy["order_price"]) - Decimal("1.08217")) * Decimal(
            copy["contract_value"]
        )  # of the copy itself
        equity = Decimal(rock.office.portfolio(f"copy_follower:{name}")["equity"]) + loss
        assert abs(int(sizing[name.encode()]["follower_cents"]) - equity * 100) <= 1
    master = Decimal(rock.office.portfolio(MASTER)["equity"])
    assert {int(row["master_cents"]) for row in sizing.values()} == {int(master * 100)}


@pytest.mark.parametrize("order_type", PENDING)
@pytest.mark.parametrize("reverse", [False, True])
def test_pending_orders_are_copied_at_the_masters_price(desk: CopyDesk, order_type: str, reverse: bool) -> None:
    desk.follower("F", reverse="1" if reverse else "0")
    is_buy = order_type.startswith("BUY")
    levels = {"stop_loss": "1.05" if is_buy else "1.13", "take_profit": "1.13" if is_buy else "1.05"}
    desk.open_master(order_type=order_type, price=PENDING[order_type], **levels)
    (copy,) = desk.copies().values()
    opposite = {"BUY_LIMIT": "SELL_STOP", "SELL_LIMIT": "BUY_STOP", "BUY_STOP": "SELL_LIMIT", "SELL_STOP": "BUY_LIMIT"}
    assert copy["order_type"] == (opposite[order_type] if reverse else order_type)
    assert copy["order_price"] == PENDING[order_type]
    assert (copy["stop_loss"], copy["take_profit"]) == (
        *((levels["take_profit"], levels["stop_loss"]) if reverse else (levels["stop_loss"], levels["take_profit"])),
    )
    statuses = ("PENDING-QUEUED", "QUEUED") if is_provider(desk) else ("PENDING", "PENDING")
    assert (copy["order_status"], copy["execution_status"]) == statuses
    assert_replicated(desk)


@pytest.mark.parametrize("order_type", ["BUY", "SELL"])
def test_a_reverse_copy_takes_the_other_side_and_exchanged_levels(rock: CopyDesk, order_type: str) -> None:
    rock.follower("F", reverse="1")
    is_buy = order_type == "BUY"
    levels = {"stop_loss": "1.07" if is_buy else "1.1", "take_profit": "1.1" if is_buy else "1.07"}
    rock.open_master(order_type=order_type, **levels)
    (copy,) = rock.copies().values()
    assert copy["order_type"] == ("SELL" if is_buy else "BUY")
    assert copy["order_price"] == ("1.0845" if is_buy else "1.08455")
    assert (copy["stop_loss"], copy["take_profit"]) == (levels["take_profit"], levels["stop_loss"])
    rock.master_does("stop_loss", stop_loss="1.06" if is_buy else "1.11")
    assert rock.said("take_profit") == {"1.06" if is_buy else "1.11"}
    rock.master_does("take_profit")
    assert rock.said("stop_loss") == {""}
    rock.close_master()
    assert rock.copies() == {}
    assert_paid(rock, "copy_follower:F", 10_000)
    assert_replicated(rock)


def test_each_follower_copies_in_its_own_flow(barclays: CopyDesk) -> None:
    for name, flow in (("A", "rock"), ("B", "barclays"), ("C", ""), ("D", "anything")):
        barclays.follower(name, flow=flow)
    barclays.open_master()
    assert {name: copy["execution"] for name, copy in barclays.copies().items()} == {
        "A": "local",
        "B": "provider",
        "C": "provider",
        "D": "provider",
    }
    assert_replicated(barclays)


def test_a_group_of_its_own_has_its_own_price_lots_and_commission(rock: CopyDesk) -> None:
    rock.office.group(
        "EURUSD", "VIP", spread="30", spread_pip="0.00001", commission_rate="7", lot_step="0.05", min_lot="0.05"
    )
    rock.follower("A", "17000", group="VIP")
    rock.follower("B", "17000")
    rock.open_master()
    vip, standard = rock.copies()["A"], rock.copies()["B"]
    assert (vip["order_quantity"], vip["order_price"], vip["commission"]) == ("0.15", "1.0847", "1.05")
    assert (standard["order_quantity"], standard["order_price"], standard["commission"]) == ("0.17", "1.08455", "0.00")


def test_contract_sizes_are_corrected_if_the_broker_wants_it(bundled_server: Any) -> None:
    desk = CopyDesk(bundled_server, replication__corrects_contract_size=True)
    desk.office.group("EURUSD", "Mini", contract_size="10000")
    desk.follower("A", "10000", group="Mini")
    desk.open_master()
    assert desk.lots() == {"A": Decimal("1")}
    desk.close()


def test_of_a_batch_all_are_made_and_the_last_one_may_be_smaller(bundled_server: Any) -> None:
    desk = CopyDesk(bundled_server, "barclays", replication__batch=7)
    desk.followers(23)
    desk.open_master()
    assert set(desk.results().values()) == {"copied"}
    assert len(desk.copies()) == len(desk.requests()) - 1 == 23
    assert desk.holders("copy_follower") == {f"copy_follower:F{i}" for i in range(23)}
    assert_replicated(desk)
    desk.close()


def test_a_master_without_followers_is_decided_about_and_done(rock: CopyDesk) -> None:
    rock.open_master()
    assert rock.results() == {}
    assert rock.tallies() == {"orders": 1}
    rock.close_master()
    assert rock.client.xlen(STREAM) == 0


def test_masters_do_not_touch_each_others_followers(rock: CopyDesk) -> None:
    rock.account("strategy_provider:M2", balance="100000")
    rock.follower("A")
    rock.follower("B", master="M2")
    rock.open_master()
    rock.open("strategy_provider:M2", "O2", "SELL", "2")
    rock.replicate()
    assert (rock.lots(), rock.lots("O2")) == ({"A": Decimal("0.1")}, {"B": Decimal("0.2")})
    rock.close_master()
    assert (rock.lots(), rock.lots("O2")) == ({}, {"B": Decimal("0.2")})
    assert_replicated(rock, "O", "O2")


# ---- copies follow


def test_a_full_close_closes_every_copy_and_books_it_once(desk: CopyDesk) -> None:
    accounts = desk.followers(5)
    desk.open_master()
    fill(desk)
    desk.quote("1.0945", "1.09455")
    desk.close_master()
    if is_provider(desk):
        assert {copy["order_status"] for copy in desk.copies().values()} == {"OPEN"}  # until the master is out
        desk.provider_says("filled", MASTER, price="1.0945")
        desk.replicate()
        desk.provider_says("filled", price="1.0945")
        desk.replicate_until_settled()
    assert desk.copies() == {}
    for account in accounts:
        assert desk.balance(account) > 10_090
        assert_paid(desk, account, 10_000)
    assert_replicated(desk)


def test_partial_closes_keep_the_share_and_end_at_exactly_nothing(rock: CopyDesk) -> None:
    for name, balance in (("A", "10000"), ("B", "33333"), ("C", "1500"), ("D", "100000")):
        rock.follower(name, balance)
    rock.open_master(lots="1")
    copied = rock.lots()
    assert len(copied) == 4
    left = Decimal(1)
    for part in ("0.13", "0.29", "0.31", "0.07"):
        rock.close_master(part)
        left -= Decimal(part)
        for name, lots in copied.items():
            exact = lots * left
            kept = rock.lots().get(name, Decimal(0))
            nearest = Decimal(int(exact * 100 + Decimal("0.5"))).scaleb(-2)
            assert kept == (nearest if nearest else Decimal("0.01") if 2 * exact >= Decimal("0.01") else 0), name
    rock.close_master()
    assert rock.lots() == {}
    for name, balance in (("A", "10000"), ("B", "33333"), ("C", "1500"), ("D", "100000")):
        assert_paid(rock, f"copy_follower:{name}", balance)
    assert_replicated(rock)


@pytest.mark.parametrize("name", ["stop_loss", "take_profit"])
def test_levels_are_set_moved_and_cancelled_with_the_masters(desk: CopyDesk, name: str) -> None:
    desk.followers(3)
    desk.open_master()
    fill(desk)
    levels = ("1.07", "1.06", None) if name == "stop_loss" else ("1.1", "1.12", None)
    for level in levels:
        desk.master_does(name, **({} if level is None else {name: level}))
        assert desk.said(name) == {level or ""}
        assert {desk.triggers(copy["order_id"]).get(name) for copy in desk.copies().values()} == {level}
    assert_replicated(desk)


def test_a_pending_order_is_moved_and_cancelled_with_its_copies(desk: CopyDesk) -> None:
    desk.followers(3)
    desk.open_master(order_type="BUY_LIMIT", price="1.08")
    if is_provider(desk):
        desk.provider_says("accepted", action="place")
    desk.master_does("modify", order_price="1.075")
    if is_provider(desk):
        assert desk.said("order_price") == {"1.08"}  # until the provider has moved the master's
        desk.provider_says("accepted", MASTER, "modify")
        desk.replicate()
        desk.provider_says("accepted", action="modify")
        desk.replicate_until_settled()
    assert desk.said("order_price") == {"1.075"}
    desk.master_does("cancel")
    if is_provider(desk):
        end_at_the_provider(desk, MASTER)
        desk.replicate()
        end_at_the_provider(desk, "")
        desk.replicate_until_settled()
    assert desk.copies() == {}
    assert {desk.data(own)["order_status"] for own in desk.copies_ever().values()} == {"CANCELLED"}
    assert_replicated(desk)


def end_at_the_provider(desk: CopyDesk, account: str) -> None:
    """The provider takes back what it is asked to: the cancel is accepted, and the order ends."""
    desk.provider_says("accepted", account, "cancel")
    for request in {request["request_id"]: request for request in desk.requests()}.values():
        if request["action"] == "place" and account in ("", f"{request['user_type']}:{request['user_id']}"):
            desk.reported(request, "cancelled", 9)


@pytest.mark.parametrize("order_type", PENDING)
def test_pending_copies_are_triggered_by_the_same_price_and_closed_with_the_master(
    rock: CopyDesk, order_type: str
) -> None:
    rock.followers(3)
    rock.open_master(order_type=order_type, price=PENDING[order_type])
    monitor = rock.new_monitor()
    quote = ("1.0795", "1.0799") if PENDING[order_type] == "1.08" else ("1.0902", "1.0905")
    rock.quote(*quote)
    while monitor.step(0.05):
        rock.settle()
    rock.replicate()
    assert rock.said("execution_status") == {"EXECUTED"}
    assert rock.said("order_price") == {rock.order(MASTER, "O")["order_price"]}
    rock.close_master()
    assert rock.copies() == {}
    assert_replicated(rock)


def test_a_master_whose_order_is_refused_when_it_is_triggered_takes_its_copies_with_it(rock: CopyDesk) -> None:
    rock.followers(2)
    rock.open_master(order_type="BUY_STOP", price="1.09")
    rock.configure(MASTER, wallet_balance="5")
    rock.quote("1.0902", "1.0905")
    rock.do("trigger", MASTER, order_id="O", trigger="pending", trigger_price="1.09")
    assert rock.data("O")["order_status"] == "REJECTED"
    rock.replicate()
    assert rock.copies() == {}
    assert_replicated(rock)


@pytest.mark.parametrize("status", ["rejected", "cancelled"])
def test_a_master_order_that_is_not_filled_unwinds_its_copies(barclays: CopyDesk, status: str) -> None:
    desk = barclays
    desk.followers(3)
    desk.follower("L", flow="rock")
    desk.open_master()
    desk.provider_says("filled", "copy_follower:F0")
    desk.provider_says(status, MASTER)
    desk.replicate()
    assert desk.copies().keys() == {"F0", "F1", "F2"}  # the local one is closed
    assert len(desk.unanswered(action="close")) == 1  # one is being closed, two are on their way
    assert {said["follower"] for said in desk.waiting_copies().values()} == {"F0", "F1", "F2"}
    desk.provider_says("rejected", "copy_follower:F1")
    desk.provider_says("filled", "copy_follower:F2", "open")
    desk.replicate()
    desk.provider_says("filled", action="close")
    desk.replicate_until_settled()
    desk.provider_says("filled", action="close")
    desk.replicate_until_settled()
    assert desk.copies() == {}
    assert_replicated(desk)


@pytest.mark.parametrize("copies_first", [True, False])
def test_a_master_order_that_is_filled_in_part_leaves_copies_their_share(
    barclays: CopyDesk, copies_first: bool
) -> None:
    desk = barclays
    desk.followers(2, "20000")
    desk.open_master()
    if copies_first:
        desk.provider_says("filled", "copy_follower:F0", "open")
        desk.provider_says("filled", "copy_follower:F1", "open")
    (request,) = desk.unanswered(MASTER)
    desk.reported(request, "partial", 1, "0.4", average_price="1.08455")
    desk.reported(request, "cancelled", 2, "0.4", average_price="1.08455")
    desk.replicate()
    if not copies_first:
        desk.provider_says("filled", "copy_follower:F0", "open")
        desk.provider_says("filled", "copy_follower:F1", "open")
    assert desk.waiting_copies()
    for _ in range(3):
        desk.let_time_pass()
        desk.provider_says("filled", action="close")
        desk.replicate()
    desk.replicate_until_settled()
    assert set(desk.lots().values()) == {Decimal("0.08")}
    assert_replicated(desk)


def test_copies_that_are_queued_when_the_master_closes_are_closed_when_they_fill(barclays: CopyDesk) -> None:
    desk = barclays
    desk.followers(3)
    desk.open_master()
    desk.provider_says("filled", MASTER)
    desk.close_master()
    desk.provider_says("filled", MASTER)
    desk.replicate()
    assert desk.said("order_status") == {"QUEUED"}
    assert len(desk.waiting_copies()) == 3
    desk.drop_replicator()  # that they wait is not in its memory only
    request = desk.unanswered("copy_follower:F0")[0]
    desk.reported(request, "partial", 1, "0.04", average_price="1.08455")
    desk.reported(request, "cancelled", 2, "0.04", average_price="1.08455")
    desk._reported.add(request["request_id"])
    desk.provider_says("filled", action="open")
    for _ in range(5):
        desk.let_time_pass()
        desk.replicate()
        desk.provider_says("filled", action="close")
        if not desk.waiting_copies():
            break
    assert (desk.copies(), desk.waiting_copies()) == ({}, {})
    assert_replicated(desk)


def test_copies_that_are_queued_when_the_master_closes_a_part_keep_their_share_when_they_fill(
    barclays: CopyDesk,
) -> None:
    desk = barclays
    desk.followers(2, "20000")
    desk.open_master()
    desk.provider_says("filled", MASTER)
    desk.close_master("0.5")
    desk.provider_says("filled", MASTER)
    desk.replicate()
    desk.provider_says("filled", action="open")
    for _ in range(3):
        desk.let_time_pass()
        desk.replicate()
        desk.provider_says("filled", action="close")
    desk.replicate_until_settled()
    assert set(desk.lots().values()) == {Decimal("0.1")}


def test_a_close_that_the_provider_rejects_is_asked_again(barclays: CopyDesk) -> None:
    desk = barclays
    desk.followers(2)
    desk.open_master()
    desk.provider_says("filled")
    desk.replicate()
    desk.close_master()
    desk.provider_says("filled", MASTER)
    desk.replicate()
    asked = {request["request_id"] for request in desk.unanswered(action="close")}
    assert len(asked) == 2
    desk.provider_says("rejected", action="close")
    for _ in range(3):
        desk.let_time_pass()
        desk.replicate()
        if len(desk.unanswered(action="close")) == 2:
            break
    assert asked.isdisjoint({request["request_id"] for request in desk.unanswered(action="close")})
    desk.provider_says("filled", action="close")
    desk.replicate_until_settled()
    assert desk.copies() == {}
    assert_replicated(desk)


def test_a_masters_close_that_is_rejected_moves_no_copy(barclays: CopyDesk) -> None:
    desk = barclays
    desk.followers(2)
    desk.open_master()
    desk.provider_says("filled")
    desk.replicate()
    before = desk.lots()
    desk.close_master("0.5")
    desk.provider_says("rejected", MASTER)
    desk.replicate()
    assert (desk.lots(), desk.unanswered()) == (before, [])


def test_a_close_that_is_filled_in_part_is_followed_by_its_part(barclays: CopyDesk) -> None:
    desk = barclays
    desk.followers(2, "20000")
    desk.open_master()
    desk.provider_says("filled")
    desk.replicate()
    desk.close_master()
    (request,) = desk.unanswered(MASTER)
    desk.reported(request, "partial", 1, "0.3", average_price="1.0845")
    desk.replicate()
    assert len(desk.unanswered()) == 1  # nothing of a close that is under way
    desk.reported(request, "cancelled", 2, "0.3", average_price="1.0845")
    desk.replicate()
    desk.provider_says("filled", "copy_follower:F0")
    desk.provider_says("filled", "copy_follower:F1")
    desk.replicate_until_settled()
    assert set(desk.lots().values()) == {Decimal("0.14")}
    assert_replicated(desk)


def test_what_a_follower_closed_itself_stays_closed(rock: CopyDesk) -> None:
    rock.followers(3, "20000")
    rock.open_master()
    own = rock.copies_ever()
    rock.do("close", "copy_follower:F0", order_id=own["F0"])
    rock.do("close", "copy_follower:F1", order_id=own["F1"], order_quantity="0.15")
    rock.close_master("0.5")
    assert rock.lots() == {"F1": Decimal("0.05"), "F2": Decimal("0.1")}
    rock.master_does("stop_loss", stop_loss="1.07")
    rock.close_master()
    assert rock.lots() == {}
    for name in ("F0", "F1", "F2"):
        assert_paid(rock, f"copy_follower:{name}", 20_000)
    assert_replicated(rock)


def test_what_a_follower_set_itself_holds_until_the_master_sets_another(rock: CopyDesk) -> None:
    rock.follower("F")
    rock.open_master(stop_loss="1.07")
    own = rock.copies_ever()["F"]
    rock.do("stop_loss", "copy_follower:F", order_id=own, stop_loss="1.05")
    rock.replicate()
    assert rock.said("stop_loss") == {"1.05"}
    rock.master_does("take_profit", take_profit="1.2")
    assert (rock.said("stop_loss"), rock.said("take_profit")) == ({"1.07"}, {"1.2"})


@pytest.mark.parametrize("status", ["paused", "stopped"])
def test_a_close_reaches_who_does_not_copy_any_more(rock: CopyDesk, status: str) -> None:
    rock.followers(2)
    rock.open_master()
    rock.configure("copy_follower:F0", copy_status=status)
    rock.client.srem("copy_master_followers:M:active", "F0", "F1")
    rock.open_master("O2")
    assert rock.results("O2") == {}
    rock.close_master()
    assert rock.copies() == {}
    assert_replicated(rock, "O", "O2")


def test_copies_of_another_system_are_found_by_their_masters_order(rock: CopyDesk) -> None:
    rock.follower("A")
    rock.follower("B")
    rock.client.srem("copy_master_followers:M:active", "A", "B")  # nobody copies it here
    rock.open_master()
    rock.client.delete("copyrisk:copies:O")
    for name in ("A", "B"):
        rock.open(f"copy_follower:{name}", f"theirs{name}", lots="0.2", master_order_id="O")
        rock.open(f"copy_follower:{name}", f"own{name}", lots="0.1")
    rock.client.sadd("copy_master_followers:M:active", "A", "B")
    rock.close_master("0.5")
    assert rock.lots() == {"A": Decimal("0.1"), "B": Decimal("0.1")}
    rock.close_master()
    assert rock.lots() == {}
    assert rock.index("copy_follower:A") == {"ownA"}


def test_a_copy_that_cannot_follow_now_follows_later_and_holds_nobody_up(rock: CopyDesk) -> None:
    rock.follower("A")
    rock.follower("B")
    rock.open_master()
    rock.configure("copy_follower:A", wallet_balance="x")
    rock.close_master()
    assert rock.copies().keys() == {"A"}
    (waits,) = rock.waiting_copies().values()
    assert (waits["follower"], waits["code"]) == ("A", "wallet_balance_invalid")
    rock.drop_replicator()
    rock.configure("copy_follower:A", wallet_balance="10000")
    rock.replicate_until_settled()
    assert rock.copies() == {}
    assert_replicated(rock)


# ---- why a follower gets no copy

PAUSED = [
    ({"status": "blocked"}, "follower_inactive"),
    ({"is_active": "0"}, "follower_inactive"),
    ({"copy_status": "paused"}, "copying_paused"),
    ({"copy_status": "stopped"}, "copying_stopped"),
    ({"copy_status": "perhaps"}, "copy_status_invalid"),
    ({"multiplier": "two"}, "multiplier_invalid"),
    ({"reverse": "maybe"}, "reverse_invalid"),
    ({"sizing_mode": "luck"}, "sizing_mode_invalid"),
    ({"symbols_denied": "EURUSD"}, "symbol_denied"),
    ({"symbols_allowed": "XAUUSD"}, "symbol_denied"),
    ({"sides_allowed": "sell"}, "side_denied"),
    ({"sides_allowed": "buy", "reverse": "1"}, "side_denied"),
    ({"wallet_balance": "50"}, "below_min"),
    ({"wallet_balance": "0"}, "follower_equity_not_positive"),
    ({"wallet_balance": "-20"}, "follower_equity_not_positive"),
    ({"wallet_balance": None}, "follower_equity_unknown"),
    ({"wallet_balance": "1e4"}, "follower_equity_unknown"),
    ({"leverage": "0"}, "follower_equity_unknown"),
    ({"max_lot_size": "0.05", "above_max": "skip"}, "above_max"),
    ({"group": "Odd"}, "lot_limits_invalid"),
    ({"leverage": "1"}, "insufficient_margin"),
]


@pytest.mark.parametrize(("config", "reason"), PAUSED)
def test_who_gets_no_copy_is_told_why_and_costs_nobody_else_his(
    rock: CopyDesk, config: dict[str, Any], reason: str
) -> None:
    refuses(rock, config, reason)
    rock.close_master()
    assert rock.copies() == {}


@pytest.mark.parametrize(("config", "reason"), PAUSED[-2:])
def test_who_gets_no_copy_at_the_provider_is_not_asked_for(
    barclays: CopyDesk, config: dict[str, Any], reason: str
) -> None:
    refuses(barclays, config, reason)
    assert {request["user_id"] for request in barclays.requests()} == {"M", "A", "Z"}


def refuses(desk: CopyDesk, config: dict[str, Any], reason: str) -> None:
    desk.office.group("EURUSD", "Odd", min_lot="x")
    desk.follower("A")
    desk.follower("Z")
    account = desk.follower("F")
    desk.configure(account, **config)
    desk.open_master()
    assert desk.results() == {"A": "copied", "F": reason, "Z": "copied"}
    assert desk.tallies()[f"reason:{reason}"] == 1
    assert desk.index(account) == set()
    assert desk.client.keys(f"copyrisk:{{{account}}}:*") == []


def test_a_market_that_cannot_be_traded_refuses_its_group(rock: CopyDesk) -> None:
    rock.office.group("EURUSD", "NoTerms", contract_size="x")
    rock.office.group("EURUSD", "OddSpread", spread="1e-5", spread_pip="1")
    for name in ("NoTerms", "OddSpread"):
        rock.follower(name, group=name)
    rock.follower("F")
    rock.open_master()
    assert rock.results() == {"F": "copied", "NoTerms": "contract_size_invalid", "OddSpread": "spread_invalid"}


@pytest.mark.parametrize(
    ("quote", "reason"),
    [
        (("1.0845", "1.08455", 1), "quote_stale"),
        (("1.09", "1.08", None), "quote_crossed"),
        (("0", "1.08", None), "quote_not_positive"),
    ],
)
def test_without_a_usable_quote_nobody_copies(rock: CopyDesk, quote: tuple[str, str, Any], reason: str) -> None:
    rock.followers(2)
    rock.open(MASTER, "O")
    rock.quote(*quote[:2], ts=quote[2])
    rock.replicate()
    assert set(rock.results().values()) == {reason}
    rock.quote()
    rock.close_master()


def test_no_rate_no_copy(rock: CopyDesk) -> None:
    rock.office.group("EURNOK", profit="NOK")
    rock.quote("11.5", "11.51", "EURNOK")
    rock.quote("10.0", "10.01", "USDNOK")
    rock.followers(2, "50000")
    assert rock.open(MASTER, "O", symbol="EURNOK", lots="0.5")["code"] == "ok"
    rock.client.delete("market:USDNOK")
    rock.replicate()
    assert all(result in ("conversion_rate_missing", "master_equity_unknown") for result in rock.results().values())
    rock.quote("10.0", "10.01", "USDNOK")
    assert rock.open(MASTER, "O2", symbol="EURNOK", lots="0.5")["code"] == "ok"
    rock.replicate()
    assert set(rock.results("O2").values()) == {"copied"}


def test_a_copy_is_converted_by_the_rate_of_its_symbol(rock: CopyDesk) -> None:
    rock.office.group("EURNOK", profit="NOK", commission_rate="1", commission_value_type="percent")
    rock.quote("11.5", "11.51", "EURNOK")
    rock.quote("10.0", "10.01", "USDNOK")
    rock.follower("F", "10000")
    rock.account("copy_follower:W", balance="10000")
    rock.open(MASTER, "O", symbol="EURNOK", lots="1")
    rock.replicate()
    (copy,) = rock.copies().values()
    rock.open("copy_follower:W", "W", symbol="EURNOK", lots=copy["order_quantity"])
    usual = rock.order("copy_follower:W", "W")
    for name in ("order_price", "margin", "contract_value", "commission"):
        assert copy[name] == usual[name]


def test_a_signal_that_is_too_old_is_not_copied_and_its_close_is_followed_at_any_age(bundled_server: Any) -> None:
    desk = CopyDesk(bundled_server, replication__signal_max_age_ms=50)
    desk.follower("F")
    desk.open(MASTER, "O")
    time.sleep(0.07)
    desk.replicate()
    assert desk.results() == {"F": "signal_too_old"}
    desk.close_master()
    desk.configure(MASTER, wallet_balance="100000")
    desk.open_master("O2")
    assert desk.results("O2") == {"F": "copied"}
    desk.do("close", MASTER, order_id="O2")
    time.sleep(0.07)
    desk.replicate()
    assert desk.copies("O2") == {}
    desk.close()


@pytest.mark.parametrize(
    ("ask", "result"), [("1.0953", "copied"), ("1.0955", "price_deviation"), ("1.0735", "price_deviation")]
)
def test_a_market_that_has_gone_on_is_not_run_after(rock: CopyDesk, ask: str, result: str) -> None:
    """One percent from 1.08455 are 1.0737 and 1.0954."""
    rock.followers(2)
    rock.open(MASTER, "O")
    rock.quote(Decimal(ask) - Decimal("0.00005"), ask)
    rock.replicate()
    assert set(rock.results().values()) == {result}


def test_an_equity_that_rests_on_an_old_quote_is_not_copied_with(bundled_server: Any) -> None:
    desk = CopyDesk(bundled_server, replication__equity_max_age_ms=5_000)
    desk.office.group("XAUUSD", contract_size="100", type="3")
    desk.quote("2400", "2400.5", "XAUUSD")
    desk.follower("A")
    desk.follower("B")
    desk.open("copy_follower:B", "gold", symbol="XAUUSD", lots="0.01")
    desk.client.hincrby("market:XAUUSD", "ts", -8_000)
    desk.open_master()
    assert desk.results() == {"A": "copied", "B": "equity_too_old"}
    decision = desk.decision()
    ages = dict(zip(decision.rows["follower"].tolist(), decision.rows["equity_age_ms"].tolist(), strict=True))
    assert ages[b"A"] == 0
    assert 8_000 <= ages[b"B"] < 12_000
    desk.close()


def test_a_masters_equity_that_rests_on_an_old_quote_sizes_nobody(bundled_server: Any) -> None:
    desk = CopyDesk(bundled_server, replication__equity_max_age_ms=5_000)
    desk.office.group("XAUUSD", contract_size="100", type="3")
    desk.quote("2400", "2400.5", "XAUUSD")
    desk.follower("A")
    desk.open(MASTER, "gold", symbol="XAUUSD", lots="0.01")
    desk.replicate()
    desk.client.hincrby("market:XAUUSD", "ts", -8_000)
    desk.open_master()
    desk.close()
    assert desk.results()["A"] != "copied"


def test_the_quote_that_converts_counts_for_the_age_of_an_equity(bundled_server: Any) -> None:
    desk = CopyDesk(bundled_server, replication__equity_max_age_ms=5_000)
    desk.office.group("EURNOK", profit="NOK")
    desk.quote("11.5", "11.51", "EURNOK")
    desk.quote("10.0", "10.01", "USDNOK")
    desk.follower("A")
    desk.open("copy_follower:A", "kroner", symbol="EURNOK", lots="0.01")
    desk.client.hincrby("market:USDNOK", "ts", -8_000)
    desk.open_master()
    desk.close()
    assert desk.results() == {"A": "equity_too_old"}


def test_by_risk_a_reverse_copy_is_sized_by_its_own_stop(rock: CopyDesk) -> None:
    """The copy's stop loss is its master's take profit, ten times as far away."""
    for name, reverse in (("A", "0"), ("B", "1")):
        rock.follower(name, sizing_mode="risk", risk_pct="1", reverse=reverse)
    rock.open_master(stop_loss="1.08355", take_profit="1.09455")
    assert rock.lots() == {"A": Decimal("1"), "B": Decimal("0.1")}


def test_an_account_with_as_many_orders_as_there_may_be_gets_no_copy(rock: CopyDesk) -> None:
    account = rock.follower("F", "100000")
    for number in range(1_000):
        rock.office.order(
            account, f"own{number}", order_quantity="0.01", order_status="PENDING", execution_status="PENDING"
        )
    rock.open_master(lots="0.1")
    assert rock.results() == {"F": "too_many_orders"}


# ---- modes of sizing, seen from outside

MODES = [
    ({"sizing_mode": "equity"}, "0.1"),
    ({"sizing_mode": "balance"}, "0.1"),
    ({"sizing_mode": "free_margin"}, "0.1"),
    ({"sizing_mode": "multiplier", "multiplier": "0.25"}, "0.25"),
    ({"multiplier": "1.5"}, "0.15"),
    ({"sizing_mode": "fixed_lots", "fixed_lots": "0.07"}, "0.07"),
    ({"sizing_mode": "fixed_leverage", "target_leverage": "3"}, "0.27"),
    ({"sizing_mode": "risk", "risk_pct": "1"}, "0.06"),
    ({"max_lot_size": "0.04"}, "0.04"),
    ({"wallet_balance": "90", "below_min": "lift"}, "0.01"),
    ({"wallet_balance": "1560", "rounding": "nearest"}, "0.02"),
    ({"leverage_correction": "full", "leverage": "50"}, "0.05"),
]


@pytest.mark.parametrize(("config", "lots"), MODES)
def test_a_copy_has_the_lots_of_its_followers_mode(barclays: CopyDesk, config: dict[str, str], lots: str) -> None:
    barclays.follower("F")
    barclays.configure("copy_follower:F", **config)
    barclays.open_master(stop_loss="1.07")
    assert barclays.lots() == {"F": Decimal(lots)}, barclays.results()


# ---- limits that need a memory

LIMITS = [
    ({"max_daily_loss": "100"}, "daily_loss_reached"),
    ({"stop_copying_on_drawdown": "1"}, "drawdown_reached"),
    ({"copy_sl_mode": "amount", "sl_amount": "100", "investment_amount": "10000"}, "account_stop_loss"),
    ({"copy_sl_mode": "percentage", "sl_percentage": "1", "investment_amount": "10000"}, "account_stop_loss"),
]


@pytest.mark.parametrize(("config", "reason"), LIMITS)
def test_a_follower_that_has_lost_enough_copies_nothing_more(
    rock: CopyDesk, config: dict[str, str], reason: str
) -> None:
    rock.follower("A")
    rock.follower("F", **config)
    rock.open_master(lots="2")
    rock.quote("1.0785", "1.07855")  # 120 of 10,000 lost
    rock.replicate()
    rock.replicate_until_settled()
    rock.open_master("O2")
    assert rock.results("O2")["A"] == "copied"
    assert rock.results("O2")["F"] in (reason, "copying_paused")
    ends = reason == "account_stop_loss"
    assert ("F" in rock.copies()) is not ends
    rock.close_master()
    assert "F" not in rock.copies()
    assert_paid(rock, "copy_follower:F", 10_000)


# ---- margin


def test_three_orders_at_once_are_not_covered_by_the_same_margin(desk: CopyDesk) -> None:
    """Each copy alone is covered, all three are not."""
    desk.follower("A", "100000")
    desk.follower("F", "1000", sizing_mode="fixed_lots", fixed_lots="0.4")  # 434 of margin each
    for number in range(3):
        desk.send("open", MASTER, symbol="EURUSD", order_type="BUY", order_quantity="1", order_id=f"O{number}")
    desk.settle()
    assert desk.client.xlen(STREAM) == 3
    desk.replicate()
    results = [desk.results(f"O{number}") for number in range(3)]
    assert [said["A"] for said in results] == ["copied"] * 3
    assert [said["F"] for said in results] == ["copied", "copied", "insufficient_margin"]
    assert_replicated(desk, "O0", "O1", "O2")


def between(desk: CopyDesk, patch: pytest.MonkeyPatch, act: Any) -> None:
    """Do something when a decision has been stored and no copy been made."""
    store, done = desk.replicator._decisions.store, []

    def stored(decision: Any) -> Any:
        found = store(decision)
        if not done:
            done.append(True)
            act()
        return found

    patch.setattr(desk.replicator._decisions, "store", stored)


def test_a_withdrawal_between_decision_and_copy_is_seen(rock: CopyDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    rock.followers(3)
    between(rock, monkeypatch, lambda: rock.configure("copy_follower:F1", wallet_balance="50"))
    rock.open_master()
    assert rock.results() == {"F0": "copied", "F1": "insufficient_margin", "F2": "copied"}
    assert_replicated(rock)


def test_an_order_of_the_followers_own_between_decision_and_copy_is_seen(
    desk: CopyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.follower("A", "1000", sizing_mode="fixed_lots", fixed_lots="0.5")
    desk.follower("B", "1000", sizing_mode="fixed_lots", fixed_lots="0.5")

    def trade() -> None:
        desk.open("copy_follower:A", "ownA", lots="0.5")
        desk.open("copy_follower:B", "ownB", lots="0.1")

    between(desk, monkeypatch, trade)
    desk.open_master()
    assert desk.results() == {"A": "insufficient_margin", "B": "copied"}
    assert desk.index("copy_follower:B") == {"ownB", desk.copies()["B"]["order_id"]}
    assert_replicated(desk)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"copy_status": "paused"}, "copying_paused"),
        ({"copy_status": "stopped"}, "copying_stopped"),
        ({"status": "0"}, "follower_inactive"),
        ({"wallet_balance": "x"}, "account_unknown"),
    ],
)
def test_who_stops_between_decision_and_copy_gets_none(
    rock: CopyDesk, monkeypatch: pytest.MonkeyPatch, config: dict[str, str], reason: str
) -> None:
    rock.followers(3)
    between(rock, monkeypatch, lambda: rock.configure("copy_follower:F1", **config))
    rock.open_master()
    expected = {"F0": "copied", "F1": reason, "F2": "copied"}
    if config == {"status": "0"}:  # the call does not compare it: what was read a moment before holds
        expected["F1"] = rock.results()["F1"]
        assert expected["F1"] in ("copied", reason)
    assert rock.results() == expected
    rock.configure("copy_follower:F1", wallet_balance="10000")
    assert_replicated(rock)


def test_a_changed_leverage_is_seen(rock: CopyDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    rock.follower("F")
    between(rock, monkeypatch, lambda: rock.configure("copy_follower:F", leverage="50"))
    rock.open_master()
    assert rock.said("margin") == {"216.91"}


def test_a_changed_group_is_seen(rock: CopyDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    rock.office.group("EURUSD", "VIP", spread="20", spread_pip="0.00001")
    rock.follower("F")
    between(rock, monkeypatch, lambda: rock.configure("copy_follower:F", group="VIP"))
    rock.open_master()
    assert rock.said("order_price") == {"1.08465"}


# ---- exactly once


def test_the_same_event_again_and_again_makes_nothing(desk: CopyDesk) -> None:
    desk.followers(3)
    desk.do("open", MASTER, order_id="O", symbol="EURUSD", order_type="BUY", order_quantity="1")
    (event,) = desk.entries(STREAM)
    for _ in range(2):
        desk.client.xadd(STREAM, event)
    desk.replicate()
    requests = desk.requests()
    before = dump(desk.client, is_log)
    for _ in range(2):
        desk.client.xadd(STREAM, event)
        desk.replicate()
    after = dump(desk.client, is_log)
    assert {key for key in after if after[key] != before[key]} <= {STREAM, "copyrisk:{replicator}:lease"}
    assert desk.requests() == requests
    assert desk.tallies()["orders"] == 1
    assert_replicated(desk)


def history(desk: CopyDesk) -> list[dict[str, str]]:
    """What happened to a master's order, none of it replicated yet."""
    desk.open(MASTER, "O", stop_loss="1.07")
    desk.do("close", MASTER, order_id="O", order_quantity="0.5")
    desk.do("stop_loss", MASTER, order_id="O", stop_loss="1.06")
    desk.do("close", MASTER, order_id="O", order_quantity="0.2")
    events = desk.entries(STREAM)
    assert len(events) == 4
    desk.client.delete(STREAM)
    return events


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1), (0, 3, 1, 2, 0, 3), (3, 0)])
def test_events_in_any_order_lead_to_the_same(rock: CopyDesk, order: tuple[int, ...]) -> None:
    rock.follower("F", "20000", sizing_mode="fixed_lots", fixed_lots="0.2")
    events = history(rock)
    for i in order:
        rock.client.xadd(STREAM, events[i])
        rock.drop_replicator()  # its group went with the stream
        rock.replicate()
    assert rock.lots() == {"F": Decimal("0.06")}
    assert rock.said("stop_loss") == {"1.06"}
    assert_replicated(rock)


def test_an_order_that_has_ended_before_it_is_replicated_is_not_copied(rock: CopyDesk) -> None:
    rock.followers(2)
    rock.open(MASTER, "O")
    rock.do("close", MASTER, order_id="O")
    opened, closed = rock.entries(STREAM)
    rock.client.delete(STREAM)
    for event in (closed, opened, opened, closed):
        rock.client.xadd(STREAM, event)
    rock.replicate()
    assert set(rock.results().values()) == {"order_ended"}
    assert rock.copies() == {}
    assert_replicated(rock)


def test_of_two_replicators_one_acts(desk: CopyDesk) -> None:
    desk.followers(3)
    one, other = desk.replicator, desk.new_replicator()
    one.step(1)
    desk.open(MASTER, "O")
    for _ in range(3):
        assert other.step(1) == 0
    assert desk.client.xlen(STREAM) == 1
    desk.replicate()
    desk.open(MASTER, "O2")
    desk.drop_replicator()
    desk._replicator = other
    desk.replicate()
    one.step(1)
    one.step(1)
    assert set(desk.results("O2").values()) == {"copied"}
    assert_replicated(desk, "O", "O2")


def test_who_has_lost_the_lease_in_the_middle_makes_nothing_more(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = CopyDesk(bundled_server, replication__lease_ms=300)
    desk.followers(3)
    desk.replicate()
    desk.open(MASTER, "O")
    before: dict[str, bytes] = {}

    def stand_still() -> None:
        time.sleep(0.35)
        lend(desk.client, "replicator", "another", 60_000)
        before.update(dump(desk.client, is_log))

    between(desk, monkeypatch, stand_still)
    with pytest.raises(StoreUnavailable) as lost:
        desk.replicate()
    assert lost.value.code == "lease_lost"
    assert dump(desk.client, is_log) == before
    monkeypatch.undo()
    desk.drop_replicator()
    desk.replicate()
    assert set(desk.results().values()) == {"copied"}
    assert_replicated(desk)
    desk.close()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("point", MAKING)
def test_an_engine_that_dies_while_copies_are_made_is_gone_on_with(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, point: str, times: int
) -> None:
    """Equities are others when it goes on: what was decided holds."""
    desk = CopyDesk(bundled_server, "barclays", replication__batch=2)
    for name, flow in (("A", "rock"), ("B", "barclays"), ("C", "rock"), ("D", "barclays"), ("E", "barclays")):
        desk.follower(name, flow=flow)
    desk.follower("P", copy_status="paused")
    desk.open(MASTER, "O", stop_loss="1.07")
    is_twice = times == 2
    if is_twice and point in ("copies.batch", "copies.effects"):
        desk.crash_at(monkeypatch, point, 2)
    else:
        desk.crash_at(monkeypatch, point)
        if is_twice:
            desk.open(MASTER, "O")  # the client asks again
    was_decided = point != "replicator.taken"
    if was_decided:
        for name in "ABCDE":
            desk.configure(f"copy_follower:{name}", wallet_balance="40000")
    if is_twice and point not in ("replicator.taken", "replicator.acknowledged", "replicator.finished"):
        desk.crash_at(monkeypatch, "copies.followed")
    desk.replicate()
    assert desk.results() == {**dict.fromkeys("ABCDE", "copied"), "P": "copying_paused"}
    assert set(desk.lots().values()) == {Decimal("0.1")}
    assert desk.said("stop_loss") == {"1.07"}
    assert {request["order_id"] for request in desk.requests() if request["user_type"] == "copy_follower"} == {
        *(desk.copies()[name]["order_id"] for name in "BDE"),
    }
    assert_replicated(desk)
    desk.close()


@pytest.mark.parametrize("kind", ["close", "part", "levels"])
@pytest.mark.parametrize("point", FOLLOWING)
def test_an_engine_that_dies_while_copies_follow_is_gone_on_with(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, point: str, kind: str
) -> None:
    desk = CopyDesk(bundled_server)
    desk.followers(3, "20000")
    desk.open_master()
    if kind == "levels":
        desk.do("stop_loss", MASTER, order_id="O", stop_loss="1.07")
    else:
        desk.do("close", MASTER, order_id="O", **({"order_quantity": "0.5"} if kind == "part" else {}))
    desk.crash_at(monkeypatch, point)
    desk.replicate_until_settled()
    lots = {"close": {}, "part": {f"F{i}": Decimal("0.1") for i in range(3)}}
    assert desk.lots() == lots.get(kind, {f"F{i}": Decimal("0.2") for i in range(3)})
    assert desk.said("stop_loss") <= {"1.07" if kind == "levels" else ""}
    for i in range(3):
        assert_paid(desk, f"copy_follower:F{i}", 20_000)
    assert_replicated(desk)
    desk.close()


def test_who_has_a_copy_when_the_engine_dies_has_it_whatever_comes_then(
    rock: CopyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Margin for one copy and not for two; paused; gone from the set; closed by its owner."""
    rock.follower("A", "1000", sizing_mode="fixed_lots", fixed_lots="0.8")
    for name in "BCD":
        rock.follower(name)
    rock.open(MASTER, "O")
    rock.crash_at(monkeypatch, "copies.made")
    rock.configure("copy_follower:B", copy_status="paused")
    rock.client.srem("copy_master_followers:M:active", "C")
    rock.do("close", "copy_follower:D", order_id=rock.copies()["D"]["order_id"])
    rock.replicate()
    assert rock.results() == dict.fromkeys("ABCD", "copied")
    assert rock.copies().keys() == {"A", "B", "C"}
    assert rock.holders("copy_follower") == {f"copy_follower:{name}" for name in "ABC"}
    assert_replicated(rock)
    rock.close_master()
    assert rock.copies() == {}


@pytest.mark.parametrize(
    "point",
    ["replicator.finished", "copies.followed"],
)
def test_a_decision_is_counted_whoever_dies(rock: CopyDesk, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    rock.followers(2)
    rock.open(MASTER, "O")
    rock.crash_at(monkeypatch, point)
    rock.replicate()
    assert rock.tallies()["copied"] == rock.tallies("")["copied"] == 2


def test_an_older_engine_that_wakes_up_takes_nothing_back(rock: CopyDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood still after it had read what is asked of copies, while another one went on to later events."""
    rock.follower("F")
    rock.open_master()
    rock.do("stop_loss", MASTER, order_id="O", stop_loss="1.07")
    rock.do("stop_loss", MASTER, order_id="O", stop_loss="1.06")
    late, aim = rock.replicator, rock.replicator._decisions.aim
    rock.client.delete("copyrisk:{replicator}:lease")

    def stand_still(*given: Any) -> Any:
        monkeypatch.undo()
        rock.drop_replicator()
        rock.replicate()
        assert rock.said("stop_loss") == {"1.06"}
        return aim(*given)

    monkeypatch.setattr(late._decisions, "aim", stand_still)
    for _ in range(3):
        with suppress(StoreUnavailable):
            late.step(1)
    rock.replicate()
    assert rock.said("stop_loss") == {"1.06"}
    assert rock.decision().target == parse_target(
        {"share": "1", "stop_loss": "1.06", "take_profit": None, "price": None}
    )


# ---- the record


def test_what_was_decided_can_be_worked_out_again(desk: CopyDesk) -> None:
    for i in range(8):
        desk.follower(f"F{i}", 500 * (i + 1), multiplier=str(1 + i % 3), max_lot_size="0.1", below_min="lift")
    desk.follower("P", copy_status="paused")
    desk.open_master(lots="2.5", stop_loss="1.07")
    decision = desk.decision()
    rows = decision.rows
    sized = rows["reason"] == b""
    assert (size_rows(np.ascontiguousarray(rows["sizing"][sized])) == rows["sized"][sized]).all()
    header = decision.header
    steps = [words["step"] for words in header["groups"]]
    for row in rows[sized]:
        lots = Decimal(int(row["sized"]["steps"])) * Decimal(steps[row["group"]])
        assert desk.lots()[row["follower"].decode()] == lots
        assert header["settings"][row["settings"]]["max_lot_size"] == "0.1"
    told = {"master": "M", "order_id": "O", "symbol": "EURUSD", "order_type": "BUY", "lots": "2.5", "stop_loss": "1.07"}
    assert told.items() <= header.items()
    assert header["order_price"] == desk.data("O")["order_price"]
    assert header["ordered_ms"] <= header["received_ms"] + 1 <= header["decided_ms"] + 1
    assert header["quote"]["bid"] == "1.0845"
    assert abs(header["quote"]["judged_ms"] - header["decided_ms"]) < 2_000
    made = decision.made
    assert made is not None
    assert (made["stored_us"][sized] > 0).all()
    margins = {name: round(Decimal(copy["margin"]) * 100) for name, copy in desk.copies().items()}
    assert margins == {
        row["follower"].decode(): m for row, m in zip(rows[sized], made["margin_cents"][sized].tolist(), strict=True)
    }
    for row, version in zip(rows[sized], made["version"][sized].tolist(), strict=True):
        assert version == desk.version(f"copy_follower:{row['follower'].decode()}")
    assert 0 < desk.client.ttl("copyrisk:copies:O") <= 30 * 86_400


def test_counts_are_right_of_each_master_and_of_all(rock: CopyDesk) -> None:
    rock.account("strategy_provider:M2", balance="100000")
    rock.followers(4)
    rock.follower("P", copy_status="paused")
    rock.follower("X", master="M2")
    rock.client.sadd("copy_master_followers:M2:active", "nobody")
    rock.open_master()
    rock.open_master("O2")
    rock.open("strategy_provider:M2", "O3")
    rock.replicate()
    own, other, every = rock.tallies(), rock.tallies("M2"), rock.tallies("")
    assert {"orders": 2, "followers": 10, "copied": 8, "reason:copying_paused": 2}.items() <= own.items()
    assert {"orders": 1, "followers": 2, "copied": 1, "reason:account_missing": 1}.items() <= other.items()
    assert every == {name: own.get(name, 0) + other.get(name, 0) for name in own.keys() | other.keys()}
    assert sum(count for name, count in every.items() if name.startswith("within_ms:")) == every["copied"]
    assert counts_of(rock.decision("O3")) == other


@pytest.mark.parametrize(
    "share", [None, Fraction(0), Fraction(1), Fraction(1, 3), Fraction(10**30 + 1, 10**31)], ids=str
)
def test_a_target_is_stored_exactly(share: Fraction | None) -> None:
    for level in (None, Decimal("1.00000000000000001"), Decimal(10) ** 17):
        target = Target(share, level, None, level)
        assert parse_target(json.loads(json.dumps(target_words(target)))) == target


def test_sums_of_margin_are_those_of_the_daemon(rock: CopyDesk) -> None:
    accounts = rock.followers(4, "33333.33")
    for number, (lots, order_type) in enumerate((("1.5", "BUY"), ("0.7", "SELL"), ("2.2", "BUY"))):
        rock.open_master(f"O{number}", lots, order_type)
    rock.tick()
    for account in accounts:
        orders = [rock.order(account, order_id) for order_id in rock.index(account)]
        assert len(orders) == 3
        bought = sum(Decimal(order["margin"]) for order in orders if order["order_type"] == "BUY")
        sold = sum(Decimal(order["margin"]) for order in orders if order["order_type"] == "SELL")
        assert abs(max(bought, sold) - Decimal(rock.office.portfolio(account)["used_margin"])) <= Decimal("0.02")
    assert_replicated(rock, "O0", "O1", "O2")


def test_a_fan_out_leaves_no_outbox_and_no_claim_behind(desk: CopyDesk) -> None:
    accounts = desk.followers(3)
    desk.open_master()
    for account in accounts:
        (own,) = desk.index(account)
        kept = {key.decode() for key in desk.client.keys(f"copyrisk:{{{account}}}:*")}
        assert kept <= {f"copyrisk:{{{account}}}:{name}" for name in ("ledger", f"order:{own}", "copying")}
        assert desk.client.ttl(f"order_data:{own}") == -1
    assert names(accounts) == desk.copies().keys()
    assert_books(desk)


def test_a_store_that_fails_is_said_and_gone_on_with(rock: CopyDesk) -> None:
    rock.followers(2)
    rock.replicate()
    rock.open(MASTER, "O")
    rock.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(StoreUnavailable):
        rock.replicator.step(1)
    rock._own = None  # the workers' connections are gone, too
    for _ in range(5):
        with suppress(StoreUnavailable):
            rock.replicator.step(1)
    assert set(rock.results().values()) == {"copied"}
    assert_replicated(rock)


# ---- everything at once


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_in_whatever_order_all_ends_flat_and_paid_once(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, seed: int, flow: str
) -> None:
    desk, chance = CopyDesk(bundled_server, flow, replication__batch=2), random.Random(seed)
    balances = {f"F{i}": chance.choice((3_000, 10_000, 25_000, 60_000)) for i in range(5)}
    for name, balance in balances.items():
        own = chance.choice((flow, "rock", "barclays"))
        desk.follower(name, balance, flow=own, reverse=chance.choice("001"), multiplier=chance.choice(("1", "2")))
    order_ids = [f"O{i}" for i in range(4)]
    for order_id in order_ids:
        desk.send("open", MASTER, symbol="EURUSD", order_type="BUY", order_quantity="1", order_id=order_id)
    for _ in range(25):
        order_id, price = chance.choice(order_ids), str(Decimal("1.0845") + Decimal(chance.randrange(-50, 50)) / 10_000)
        act = chance.randrange(9)
        if act == 0:
            desk.send("close", MASTER, order_id=order_id, order_quantity=chance.choice(("0.1", "0.33", "0.5")))
        elif act == 1:
            desk.send("stop_loss", MASTER, order_id=order_id, stop_loss="1.0" + str(chance.randrange(100, 400)))
        elif act == 2:
            desk.quote(price, Decimal(price) + Decimal("0.00005"))
        elif act == 3 and (copies := list(desk.copies(order_id).values())):
            copy = chance.choice(copies)
            desk.send("close", f"copy_follower:{copy['user_id']}", order_id=copy["order_id"])
        elif act == 4 and desk.unanswered():
            answer_some(desk, chance)
        elif act == 5 and desk.entries(STREAM):
            desk.client.xadd(STREAM, chance.choice(desk.entries(STREAM)))
        elif act == 6:
            die_somewhere(desk, monkeypatch, chance)
        elif act == 7:
            desk.replicator.step(1) if desk.client.xlen(STREAM) else desk.look_around()
        else:
            desk.settle()
    end_all(desk, order_ids)
    assert all(desk.copies(order_id) == {} for order_id in order_ids), desk.waiting_copies()
    assert desk.letters() == []
    for name, balance in balances.items():
        assert_paid(desk, f"copy_follower:{name}", balance)
    assert_replicated(desk, *order_ids)
    desk.close()


def answer_some(desk: CopyDesk, chance: random.Random) -> None:
    """The provider fills, fills in part and ends, or rejects one request."""
    request = chance.choice(desk.unanswered())
    desk._reported.add(request["request_id"])
    price = "1.08455" if request["side"] == "BUY" else "1.0845"
    ends = chance.choice(("filled", "filled", "cancelled", "rejected"))
    part = str(Decimal(request["order_quantity"]) / 2) if ends == "cancelled" else "0"
    lots = request["order_quantity"] if ends == "filled" else part
    desk.report(request, ends, 1, lots, average_price=price)


def die_somewhere(desk: CopyDesk, patch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """The engine dies at a point that it may reach, or does not."""
    point, left = chance.choice((*MAKING, *FOLLOWING)), [chance.randrange(1, 3)]

    def reach(name: str) -> None:
        left[0] -= name == point
        if left[0] == 0:
            raise Died(name)

    with patch.context() as patched:
        patched.setattr(crash, "reach", reach)
        with suppress(Died):
            desk.look_around()
            if desk.client.xlen(STREAM):
                desk.replicator.step(1)
    desk.drop_replicator()


def end_all(desk: CopyDesk, order_ids: list[str]) -> None:
    """The provider answers everything, the master closes, copies follow."""
    desk.quote()
    for _ in range(12):
        desk.settle()
        desk.provider_says("filled")
        for order_id in order_ids:
            desk.send("close", MASTER, order_id=order_id)
        desk.settle()
        desk.let_time_pass()
        desk.replicate()
        if not (desk.unanswered() or desk.waiting_copies() or desk.index(MASTER)):
            return
