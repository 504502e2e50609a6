"""Workers on real servers: every order's whole life through the streams, many at once, and whatever outsiders send."""

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import Any

import pytest
import redis

from copyrisk.commands import Kind
from copyrisk.embedded import EmbeddedServer
from tests.backoffice import BackOffice, now_ms
from tests.conftest import KINDS, Server
from tests.trading import (
    ACCOUNT_TYPES,
    Desk,
    assert_books,
    assert_paid,
    dump,
    is_log,
    process,
    run_threads,
    until,
)

LOCAL = [("live:1", "rock"), ("demo:1", "barclays"), ("strategy_provider:1", " Rock "), ("copy_follower:1", "ROCK")]
PROVIDER = [("live:1", "barclays"), ("strategy_provider:1", ""), ("copy_follower:1", "barclays")]
FINISHED = {"CLOSED": "CLOSED", "CANCELLED": "CANCELLED", "REJECTED": "REJECTED"}


@pytest.fixture
def desk(redis_server: Any) -> Any:
    made = Desk(redis_server)
    yield made
    made.close()


def assert_finished(desk: Desk, account: str, order_id: str, status: str) -> dict[str, str]:
    """The order is gone from the account; what is said of it is final and ends by itself."""
    assert desk.order(account, order_id) == {}
    assert order_id not in desk.index(account)
    data = desk.data(order_id)
    assert (data["order_status"], data["execution_status"]) == (status, FINISHED[status])
    assert 0 < desk.client.ttl(f"order_data:{order_id}") <= 30 * 86_400
    assert 0 < desk.client.ttl(f"copyrisk:{{{account}}}:order:{order_id}") <= 30 * 86_400
    assert desk.triggers(order_id) == {}
    assert desk.client.ttl(f"order_triggers:{order_id}") <= 600
    assert_books(desk)
    return data


def done(event: dict[str, str]) -> dict[str, Any]:
    """The order that an event tells of."""
    assert (event["event"], event["code"]) == ("done", "ok"), event
    order: dict[str, Any] = json.loads(event["order"])
    return order


def refused(event: dict[str, str]) -> str:
    assert event["event"] == "refused"
    return event["code"]


# ---- life cycles in local flow


@pytest.mark.parametrize(("account", "flow"), LOCAL)
def test_a_position_from_open_to_close(desk: Desk, account: str, flow: str) -> None:
    desk.account(account, flow)
    opened = done(desk.open(account, "A"))
    assert (opened["order_price"], opened["margin"], opened["execution"]) == ("1.08455", "1084.55", "local")
    assert desk.statuses(account, "A") == ("OPEN", "EXECUTED")
    assert_books(desk)
    done(desk.do("stop_loss", account, order_id="A", stop_loss="1.08"))
    assert_books(desk)
    done(desk.do("take_profit", account, order_id="A", take_profit="1.1"))
    assert_books(desk)
    assert (desk.triggers("A")["stop_loss"], desk.triggers("A")["take_profit"]) == ("1.08", "1.1")
    desk.quote("1.0945", "1.09455")
    part = done(desk.do("close", account, order_id="A", order_quantity="0.4"))
    assert (part["net_profit"], part["order_quantity"], part["close_price"]) == ("398.00", "0.6", "1.0945")
    assert desk.balance(account) == Decimal("10398.00")
    assert_books(desk)
    done(desk.do("stop_loss", account, order_id="A"))
    assert "stop_loss" not in desk.order(account, "A")
    assert_books(desk)
    closed = done(desk.do("close", account, order_id="A"))
    assert (closed["net_profit"], closed["order_quantity"]) == ("995.00", "1")
    assert desk.balance(account) == Decimal("10995.00")
    assert_finished(desk, account, "A", "CLOSED")
    assert_paid(desk, account, 10_000)


@pytest.mark.parametrize(("account", "flow"), LOCAL)
def test_a_pending_order_watched_here(desk: Desk, account: str, flow: str) -> None:
    desk.account(account, flow)
    done(desk.pend(account, "P", "BUY_LIMIT", "1.08", stop_loss="1.07", take_profit="1.09"))
    assert desk.statuses(account, "P") == ("PENDING", "PENDING")
    assert_books(desk)
    assert done(desk.do("modify", account, order_id="P", order_price="1.081"))["order_price"] == "1.081"
    assert_books(desk)
    done(desk.do("stop_loss", account, order_id="P", stop_loss="1.075"))
    assert_books(desk)
    assert refused(desk.do("trigger", account, order_id="P", trigger="pending", trigger_price="1.08")) == "trigger_gone"
    desk.quote("1.0808", "1.0809")
    filled = done(desk.do("trigger", account, order_id="P", trigger="pending", trigger_price="1.081"))
    assert (filled["order_type"], filled["order_price"], filled["order_status"]) == ("BUY", "1.0809", "OPEN")
    assert_books(desk)
    desk.quote("1.0749", "1.075")
    assert (
        refused(desk.do("trigger", account, order_id="P", trigger="stop_loss", trigger_price="1.07")) == "trigger_gone"
    )
    lost = done(desk.do("trigger", account, order_id="P", trigger="stop_loss", trigger_price="1.075"))
    assert (lost["net_profit"], lost["close_price"], lost["reason"]) == ("-600.00", "1.0749", "stop_loss")
    assert_finished(desk, account, "P", "CLOSED")
    assert_paid(desk, account, 10_000)


def test_a_pending_order_cancelled_here(desk: Desk) -> None:
    desk.account("live:1")
    for order_type, price in (("BUY_STOP", "1.09"), ("SELL_STOP", "1.08"), ("SELL_LIMIT", "1.09"), ("BUY_LIMIT", "1")):
        done(desk.pend("live:1", order_type, order_type, price))
        assert_books(desk)
        done(desk.do("cancel", "live:1", order_id=order_type))
        assert assert_finished(desk, "live:1", order_type, "CANCELLED")["reason"] == "cancelled"
    assert desk.balance("live:1") == 10_000


def test_a_pending_order_whose_margin_is_gone_is_rejected_once(desk: Desk) -> None:
    desk.account("live:1", balance="2000")
    done(desk.pend("live:1", "P", "BUY_STOP", "1.085"))
    done(desk.open("live:1", "A"))
    desk.quote("1.085", "1.08505")
    sent = [desk.send("trigger", "live:1", order_id="P", trigger="pending", trigger_price="1.085") for _ in range(3)]
    desk.settle()
    first, *others = (desk.answer(command) for command in sent)
    assert done(first)["reason"] == "insufficient_margin"
    assert {refused(event) for event in others} == {"trigger_gone"}
    assert_finished(desk, "live:1", "P", "REJECTED")


def test_spread_commission_and_swap_are_paid_once(desk: Desk) -> None:
    desk.office.group("EURUSD", spread=20, spread_pip="0.00001", commission_rate="3.5", commission_type="both")
    desk.account("live:1")
    opened = done(desk.open("live:1", "A", "SELL", "2"))
    assert (opened["order_price"], opened["commission"]) == ("1.0844", "7.00")
    desk.client.hset("user_holdings:{live:1}:A", "swap", "-1.01")  # booked over night by another service
    part = done(desk.do("close", "live:1", order_id="A", order_quantity="0.5"))
    # (1.0844 - 1.08465) x 50,000 - 1.75 - 1.75 - 0.25
    assert part["net_profit"] == "-16.25"
    desk.tick()
    closed = done(desk.do("close", "live:1", order_id="A"))
    assert closed["net_profit"] == "-65.01"
    assert (closed["commission"], closed["swap"]) == ("14.00", "-1.01")
    assert desk.balance("live:1") == Decimal("9934.99")


def test_an_order_of_another_service_is_taken_over(desk: Desk) -> None:
    desk.account("live:1")
    desk.office.order("live:1", "F", order_price="1.084", stop_loss="1.08")
    desk.client.sadd("symbol_holders:EURUSD:live", "live:1")
    done(desk.do("take_profit", "live:1", order_id="F", take_profit="1.1"))
    assert desk.triggers("F")["stop_loss"] == "1.08"
    part = done(desk.do("close", "live:1", order_id="F", order_quantity="0.5"))
    assert part["net_profit"] == "25.00"
    done(desk.do("close", "live:1", order_id="F"))
    assert_finished(desk, "live:1", "F", "CLOSED")
    assert desk.balance("live:1") == Decimal("10050.00")


# ---- life cycles with the provider


@pytest.mark.parametrize(("account", "flow"), PROVIDER)
def test_a_position_with_the_provider(desk: Desk, account: str, flow: str) -> None:
    desk.account(account, flow)
    done(desk.open(account, "A"))
    assert desk.statuses(account, "A") == ("QUEUED", "QUEUED")
    assert_books(desk)
    opening = desk.request()
    assert (opening["action"], opening["side"], opening["order_quantity"]) == ("open", "BUY", "1")
    desk.reported(opening, "accepted", 1)
    assert desk.statuses(account, "A") == ("QUEUED", "QUEUED")
    desk.reported(opening, "partial", 2, "0.4", average_price="1.0846")
    order = desk.order(account, "A")
    assert (order["order_quantity"], order["order_price"], order["margin"]) == ("0.4", "1.0846", "433.82")
    assert_books(desk)
    assert refused(desk.do("close", account, order_id="A")) == "order_busy"
    done(desk.do("stop_loss", account, order_id="A", stop_loss="1.08"))
    desk.reported(opening, "filled", 3, "1", average_price="1.08462")
    order = desk.order(account, "A")
    assert (order["order_quantity"], order["order_price"], order["stop_loss"]) == ("1", "1.08462", "1.08")
    assert_books(desk)
    done(desk.do("close", account, order_id="A", order_quantity="0.5"))
    closing = desk.request()
    assert (closing["action"], closing["side"], closing["target"]) == ("close", "SELL", opening["request_id"])
    assert refused(desk.do("close", account, order_id="A")) == "close_in_progress"
    desk.reported(closing, "partial", 1, "0.2", average_price="1.0947")
    assert desk.balance(account) == Decimal("10201.60")
    assert_books(desk)
    desk.reported(closing, "filled", 2, "0.5", average_price="1.09472")
    assert desk.balance(account) == Decimal("10505.00")
    assert_books(desk)
    done(desk.do("close", account, order_id="A"))
    desk.reported(desk.request(), "filled", 1, "0.5", average_price="1.08462")
    assert_finished(desk, account, "A", "CLOSED")
    assert desk.balance(account) == Decimal("10505.00")
    assert_paid(desk, account, 10_000)


@pytest.mark.parametrize(("account", "flow"), PROVIDER)
def test_a_pending_order_with_the_provider(desk: Desk, account: str, flow: str) -> None:
    desk.account(account, flow)
    done(desk.pend(account, "P", "SELL_LIMIT", "1.09", "2"))
    assert desk.statuses(account, "P") == ("PENDING-QUEUED", "QUEUED")
    assert_books(desk)
    placing = desk.request()
    assert (placing["action"], placing["order_type"], placing["order_price"]) == ("place", "SELL_LIMIT", "1.09")
    desk.reported(placing, "accepted", 1)
    assert desk.statuses(account, "P") == ("PENDING", "PENDING")
    assert_books(desk)
    done(desk.do("modify", account, order_id="P", order_price="1.095"))
    assert (desk.statuses(account, "P")[0], desk.order(account, "P")["order_price"]) == ("MODIFY", "1.09")
    assert_books(desk)
    assert refused(desk.do("cancel", account, order_id="P")) == "order_busy"
    desk.reported(desk.request(), "rejected", 1, reason="no")
    assert (desk.statuses(account, "P")[0], desk.order(account, "P")["order_price"]) == ("PENDING", "1.09")
    done(desk.do("modify", account, order_id="P", order_price="1.096"))
    assert desk.request()["target"] == placing["request_id"]
    desk.reported(desk.request(), "accepted", 1)
    assert (desk.statuses(account, "P")[0], desk.order(account, "P")["order_price"]) == ("PENDING", "1.096")
    assert_books(desk)
    done(desk.do("cancel", account, order_id="P"))
    assert desk.statuses(account, "P")[0] == "PENDING-CANCEL"
    assert_books(desk)
    desk.reported(desk.request(), "rejected", 1, reason="too late")
    assert desk.statuses(account, "P")[0] == "PENDING"
    desk.reported(placing, "partial", 2, "0.5", average_price="1.0961")
    order = desk.order(account, "P")
    assert (order["order_type"], order["order_quantity"], order["order_status"]) == ("SELL", "0.5", "OPEN")
    assert_books(desk)
    desk.reported(placing, "cancelled", 3, "0.5", average_price="1.0961")  # the rest is not filled
    assert desk.order(account, "P")["order_quantity"] == "0.5"
    assert_books(desk)
    done(desk.do("close", account, order_id="P"))
    desk.reported(desk.request(), "filled", 1, "0.5", average_price="1.0961")
    assert_finished(desk, account, "P", "CLOSED")
    assert desk.balance(account) == 10_000


def test_a_pending_order_that_the_provider_cancels_or_rejects(desk: Desk) -> None:
    desk.account("live:1", "barclays")
    for order_id, before, status, end in (
        ("P1", [], "rejected", "REJECTED"),
        ("P2", [], "cancelled", "CANCELLED"),
        ("P3", ["accepted"], "rejected", "REJECTED"),
        ("P4", ["accepted"], "cancelled", "CANCELLED"),
    ):
        done(desk.pend("live:1", order_id, "BUY_STOP", "1.09"))
        for sequence, first in enumerate(before, 1):
            desk.reported(desk.request(), first, sequence)
        desk.reported(desk.request(), status, len(before) + 1, reason="because")
        assert assert_finished(desk, "live:1", order_id, end)["reason"] == "because"
    done(desk.pend("live:1", "P5", "BUY_STOP", "1.09"))
    placing = desk.request()
    desk.reported(placing, "accepted", 1)
    done(desk.do("cancel", "live:1", order_id="P5"))
    desk.reported(desk.request(), "accepted", 1)
    assert desk.statuses("live:1", "P5")[0] == "PENDING-CANCEL"  # what was filled before is not known yet
    assert_books(desk)
    desk.reported(placing, "cancelled", 2)
    assert_finished(desk, "live:1", "P5", "CANCELLED")


@pytest.mark.parametrize("asked", ["", "modify", "cancel"])
def test_a_provider_that_says_again_that_it_has_an_order_changes_nothing(desk: Desk, asked: str) -> None:
    desk.account("live:1", "barclays")
    done(desk.pend("live:1", "P", "BUY_LIMIT", "1.08"))
    placing = desk.request()
    desk.reported(placing, "accepted", 1)
    if asked:
        done(desk.do(asked, "live:1", order_id="P", **({"order_price": "1.07"} if asked == "modify" else {})))
    before = desk.order("live:1", "P")
    desk.reported(placing, "accepted", 2)
    assert desk.entries("copyrisk:breaks") == []
    assert desk.order("live:1", "P") == before


def test_the_audit_says_in_words_why_a_report_changed_nothing(desk: Desk) -> None:
    desk.account("live:1", "barclays")
    done(desk.open("live:1", "A"))
    for _ in range(2):
        desk.reported(desk.request(), "accepted", 1)
    late = desk.audit("live:1")[-1]
    assert (late["code"], late["message"]) == ("report_late", "report 1 came after 1")


def test_a_pending_order_that_another_service_placed_with_the_provider_is_cancelled(desk: Desk) -> None:
    """There is no request of ours that could report its end."""
    desk.account("live:1", "barclays")
    waits = {"order_type": "BUY_LIMIT", "order_status": "PENDING", "execution_status": "PENDING"}
    desk.office.order("live:1", "F", order_price="1.08", execution="provider", **waits)
    done(desk.do("cancel", "live:1", order_id="F"))
    assert (desk.request()["action"], desk.request()["target"]) == ("cancel", "")
    desk.reported(desk.request(), "accepted", 1)
    assert_finished(desk, "live:1", "F", "CANCELLED")


def test_a_fill_overtakes_a_cancel_and_a_modification(desk: Desk) -> None:
    desk.account("live:1", "barclays")
    for order_id, asked in (("P1", "cancel"), ("P2", "modify")):
        done(desk.pend("live:1", order_id, "BUY_LIMIT", "1.08"))
        placing = desk.request()
        desk.reported(placing, "accepted", 1)
        more = {"order_price": "1.07"} if asked == "modify" else {}
        done(desk.do(asked, "live:1", order_id=order_id, **more))
        changing = desk.request()
        desk.reported(placing, "filled", 2, "1", average_price="1.0799")
        assert desk.order("live:1", order_id)["order_price"] == "1.0799"
        desk.reported(changing, "accepted", 1)
        assert desk.order("live:1", order_id)["order_price"] == "1.0799"
        assert desk.statuses("live:1", order_id) == ("OPEN", "EXECUTED")
        assert_books(desk)
    assert desk.entries("copyrisk:breaks") == []


@pytest.mark.parametrize("status", ["rejected", "cancelled"])
def test_a_market_order_that_the_provider_ends(desk: Desk, status: str) -> None:
    desk.account("live:1", "barclays")
    done(desk.open("live:1", "A"))
    desk.reported(desk.request(), status, 1, reason="no liquidity")
    assert assert_finished(desk, "live:1", "A", status.upper())["reason"] == "no liquidity"
    done(desk.open("live:1", "B", "SELL"))
    desk.reported(desk.request(), "partial", 1, "0.3", average_price="1.0845")
    desk.reported(desk.request(), status, 2, "0.3", average_price="1.0845", reason="no more")
    assert desk.order("live:1", "B")["order_quantity"] == "0.3"
    assert_books(desk)
    done(desk.open("live:1", "C", "SELL"))
    desk.reported(desk.request(), status, 1, "0.6", average_price="1.0845")  # the partial report itself was lost
    assert desk.order("live:1", "C")["order_quantity"] == "0.6"
    assert_books(desk)


def test_a_stop_loss_with_the_provider_fires_once_and_again_when_it_is_rejected(desk: Desk) -> None:
    desk.account("live:1", "barclays")
    done(desk.open("live:1", "A", stop_loss="1.08"))
    desk.reported(desk.request(), "filled", 1, "1", average_price="1.08455")
    desk.quote("1.0799", "1.08")
    fired = {"order_id": "A", "trigger": "stop_loss", "trigger_price": "1.08"}
    for expected in ("done", "refused"):
        assert desk.do("trigger", "live:1", **fired)["event"] == expected
    assert len(desk.requests()) == 2
    desk.reported(desk.request(), "rejected", 1)
    assert_books(desk)
    assert desk.do("trigger", "live:1", **fired)["event"] == "done"
    assert len({request["request_id"] for request in desk.requests()}) == 3
    desk.reported(desk.request(), "filled", 1, "1", average_price="1.0799")
    assert_finished(desk, "live:1", "A", "CLOSED")
    assert desk.balance("live:1") == Decimal("9535.00")


def test_a_result_in_another_currency_is_booked_in_usd(desk: Desk) -> None:
    desk.office.group("USDJPY", profit="JPY")
    desk.quote("157.25", "157.26", "USDJPY")
    desk.account("live:1")
    done(desk.open("live:1", "A", "BUY", "1", symbol="USDJPY"))
    desk.quote("158.25", "158.26", "USDJPY")
    closed = done(desk.do("close", "live:1", order_id="A"))
    assert closed["net_profit"] == "625.55"  # 99,000 JPY / 158.26, the ask
    assert desk.balance("live:1") == Decimal("10625.55")


# ---- refusals: each is answered with its code, and nothing else changes


REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("invalid_order_quantity", {"order_quantity": "0.001"}),
    ("invalid_order_quantity", {"order_quantity": "1000"}),
    ("invalid_order_quantity", {"order_quantity": "nan"}),
    ("invalid_order_type", {"order_type": "BUY_LIMIT"}),
    ("invalid_symbol", {"symbol": "eur}usd"}),
    ("invalid_stop_loss", {"stop_loss": "1.0845"}),
    ("invalid_stop_loss", {"stop_loss": "1.2"}),
    ("invalid_take_profit", {"take_profit": "1.0"}),
    ("insufficient_margin", {"order_quantity": "50"}),
    ("instrument_missing", {"symbol": "NOWHERE"}),
]


@pytest.mark.parametrize(("code", "given"), REFUSALS)
def test_an_open_that_cannot_be_is_refused_and_changes_nothing(desk: Desk, code: str, given: dict[str, Any]) -> None:
    desk.account("live:1")
    before = dump(desk.client, is_log)
    asked = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1", **given}
    event = desk.do("open", "live:1", **asked)
    assert refused(event) == code
    assert event["message"]
    left = dump(desk.client, lambda key: is_log(key) or key.startswith("order_data:"))
    assert left == before
    assert all(0 < desk.client.ttl(key) <= 60 for key in desk.client.keys("order_data:*"))  # the claim ends by itself


def test_an_account_that_cannot_trade_is_told_why(desk: Desk) -> None:
    desk.account("live:none", "")
    desk.account("live:off", is_active="0")
    desk.account("live:odd", "mars")
    assert refused(desk.open("live:gone", "A")) == "account_missing"
    assert refused(desk.open("live:off", "B")) == "account_inactive"
    assert refused(desk.open("live:none", "C")) == "unsupported_flow"
    assert refused(desk.open("live:odd", "D")) == "unsupported_flow"
    desk.office.order("live:none", "F")  # of a service that did not say which way it was opened
    assert refused(desk.do("close", "live:none", order_id="F")) == "unsupported_flow"


@pytest.mark.parametrize(
    ("code", "balance", "leverage", "group"),
    [
        ("account_unknown", "abc", "100", "Standard"),
        ("account_unknown", "10000", "0", "Standard"),
        ("account_unknown", "", "100", "Standard"),
        ("account_unknown", "10000", "100", "a}b"),
    ],
)
def test_an_account_that_is_not_known_opens_nothing(
    desk: Desk, code: str, balance: str, leverage: str, group: str
) -> None:
    desk.account("live:1", balance=balance, leverage=leverage, group=group)
    assert refused(desk.open("live:1", "A")) == code
    assert desk.index("live:1") == set()


def test_a_quote_that_cannot_be_traded_on_is_refused(desk: Desk) -> None:
    desk.account("live:1")
    done(desk.open("live:1", "A"))
    for number, (code, bid, ask, ts) in enumerate(
        (
            ("quote_stale", "1.08", "1.09", now_ms() - 31_000),
            ("quote_from_future", "1.08", "1.09", now_ms() + 3_600_000),
            ("quote_crossed", "1.09", "1.08", None),
            ("quote_not_positive", "0", "1.08", None),
            ("quote_unreadable", "nan", "1.08", None),
        )
    ):
        desk.quote(bid, ask, ts=ts)
        assert refused(desk.open("live:1", f"B{number}")) == code
        assert refused(desk.do("close", "live:1", order_id="A")) == code
    desk.quote()
    desk.client.hdel("market:EURUSD", "ask")
    assert refused(desk.do("close", "live:1", order_id="A")) == "quote_one_sided"
    assert desk.balance("live:1") == 10_000


def test_a_close_while_the_balance_cannot_be_read_is_refused_and_done_later(desk: Desk) -> None:
    desk.account("live:1")
    done(desk.open("live:1", "A", stop_loss="1.08"))
    desk.client.hset("user:{live:1}:config", "wallet_balance", "abc")
    assert refused(desk.do("close", "live:1", order_id="A")) == "wallet_balance_invalid"
    desk.quote("1.0799", "1.08")
    fired = {"order_id": "A", "trigger": "stop_loss", "trigger_price": "1.08"}
    assert refused(desk.do("trigger", "live:1", **fired)) == "wallet_balance_invalid"
    desk.client.hset("user:{live:1}:config", "wallet_balance", "10000")
    done(desk.do("trigger", "live:1", **fired))


def test_commands_about_an_order_that_is_not_there_or_not_so(desk: Desk) -> None:
    desk.account("live:1")
    desk.account("demo:2")
    done(desk.open("demo:2", "THEIRS"))
    done(desk.open("live:1", "A"))
    done(desk.pend("live:1", "P", "BUY_LIMIT", "1.08"))
    before = dump(desk.client, is_log)
    for code, kind, said in (
        ("order_not_found", "close", {"order_id": "NONE"}),
        ("order_not_found", "close", {"order_id": "THEIRS"}),
        ("order_not_found", "stop_loss", {"order_id": "THEIRS", "stop_loss": "1"}),
        ("order_not_open", "close", {"order_id": "P"}),
        ("order_not_pending", "cancel", {"order_id": "A"}),
        ("order_not_pending", "modify", {"order_id": "A", "order_price": "1"}),
        ("invalid_order_quantity", "close", {"order_id": "A", "order_quantity": "1.01"}),
        ("invalid_order_quantity", "close", {"order_id": "A", "order_quantity": "0.995"}),
        ("invalid_order_price", "modify", {"order_id": "P", "order_price": "1.2"}),
        ("invalid_stop_loss", "stop_loss", {"order_id": "A", "stop_loss": "1.0845"}),
        ("invalid_take_profit", "take_profit", {"order_id": "P", "take_profit": "1.07"}),
        ("trigger_gone", "trigger", {"order_id": "A", "trigger": "stop_loss", "trigger_price": "1"}),
        ("trigger_gone", "trigger", {"order_id": "NONE", "trigger": "pending", "trigger_price": "1"}),
    ):
        assert refused(desk.do(kind, "live:1", **said)) == code, (kind, said)
    assert dump(desk.client, is_log) == before
    done(desk.do("close", "live:1", order_id="A"))
    for kind in ("close", "cancel", "stop_loss"):
        assert refused(desk.do(kind, "live:1", order_id="A")) == "order_finished"


# ---- many at once


def work_in_threads(desk: Desk, count: int, limit_s: float = 30.0) -> None:
    """Have so many workers at once do what waits."""
    stop, threads = run_threads(desk, count)
    try:
        until(lambda: not desk.waiting(), limit_s)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def small_batches(server: Any) -> Desk:
    return Desk(server, workers__batch=3, workers__retry_ms=2_000)


def test_fifty_opens_on_margin_for_ten_open_ten(redis_server: Any) -> None:
    desk = small_batches(redis_server)
    desk.account("live:1", balance="10900")  # 10 lots need 10,845.50, and 0.5 of each is lost at once
    asked = {"symbol": "EURUSD", "order_type": "SELL", "order_quantity": "1"}
    for number in range(50):
        desk.send("open", "live:1", order_id=f"O{number}", **asked)
    work_in_threads(desk, 4)
    assert len(desk.index("live:1")) == 10
    codes = Counter(event["code"] for event in desk.events())
    assert codes == {"ok": 10, "insufficient_margin": 40}
    assert desk.entries("copyrisk:dead_letters") == []
    assert_books(desk)
    desk.close()


def test_twenty_closes_of_one_order_pay_once(bundled_server: Any) -> None:
    desk = small_batches(bundled_server)
    desk.account("live:1")
    done(desk.open("live:1", "A"))
    desk.quote("1.0945", "1.09455")
    sent = [desk.send("close", "live:1", order_id="A") for _ in range(20)]
    work_in_threads(desk, 4)
    codes = Counter(desk.answer(command)["code"] for command in sent)
    assert codes == {"ok": 1, "order_finished": 19}
    assert desk.balance("live:1") == Decimal("10995.00")
    desk.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_eight_workers_on_a_few_accounts_keep_the_books(bundled_server: Any, seed: int) -> None:
    desk = small_batches(bundled_server)
    choose = random.Random(seed)
    accounts = [desk.account(f"{kind}:7", "rock") for kind in ACCOUNT_TYPES[:2]]
    for number in range(150):
        account = choose.choice(accounts)
        known = f"{account[0]}{choose.randrange(number + 1)}"
        lots = f"0.{choose.randrange(1, 60):02}"
        side = choose.choice(("BUY", "SELL"))
        kind, said = choose.choice(
            [
                (
                    "open",
                    {
                        "order_id": f"{account[0]}{number}",
                        "symbol": "EURUSD",
                        "order_type": side,
                        "order_quantity": lots,
                    },
                ),
                ("open", {"order_id": known, "symbol": "EURUSD", "order_type": side, "order_quantity": lots}),
                ("close", {"order_id": known}),
                ("close", {"order_id": known, "order_quantity": lots}),
                ("stop_loss", {"order_id": known, "stop_loss": choose.choice(("1", "1.2"))}),
                ("take_profit", {"order_id": known}),
            ]
        )
        desk.send(kind, account, **said)
    work_in_threads(desk, 8)
    assert_books(desk)
    for account in accounts:
        assert_paid(desk, account, 10_000)
        applied = [seen for seen in desk.audit(account) if seen["event"] == "done"]
        versions = [int(seen["version"]) for seen in applied]
        assert versions == list(range(versions[0], versions[0] + len(versions)))
        assert desk.version(account) == versions[-1]
    ids = [event["event_id"] for event in desk.events(event="done")]
    assert len(ids) == len(set(ids))
    desk.close()


# ---- --only


def test_two_workers_share_the_kinds(desk: Desk) -> None:
    desk.account("live:1")
    desk.account("live:2", "barclays")
    first = desk.new_workers([Kind.OPEN, Kind.PENDING, Kind.REJECT])
    second = desk.new_workers([Kind.CLOSE, Kind.CANCEL, Kind.STOP_LOSS, Kind.TAKE_PROFIT])
    asked = {"symbol": "EURUSD", "order_quantity": "1"}
    script: list[tuple[str, str, dict[str, Any]]] = [
        ("open", "live:1", {"order_id": "A", "order_type": "BUY", **asked}),
        ("pending", "live:1", {"order_id": "P", "order_type": "BUY_LIMIT", "order_price": "1.08", **asked}),
        ("modify", "live:1", {"order_id": "P", "order_price": "1.07"}),
        ("cancel", "live:1", {"order_id": "P"}),
        ("stop_loss", "live:1", {"order_id": "A", "stop_loss": "1"}),
        ("take_profit", "live:1", {"order_id": "A", "take_profit": "1.2"}),
        ("close", "live:1", {"order_id": "A"}),
        ("open", "live:2", {"order_id": "B", "order_type": "BUY", **asked}),
    ]
    for kind, account, said in script:
        sent = desk.send(kind, account, **said)
        until(lambda: not desk.waiting() or first.step(1) + second.step(1) < 0)
        assert done(desk.answer(sent))
    desk.report(desk.request(), "rejected", 1)
    until(lambda: not desk.waiting() or first.step(1) + second.step(1) < 0)
    assert_finished(desk, "live:2", "B", "REJECTED")
    assert_books(desk)


def test_what_nobody_does_waits_and_keeps_its_name(desk: Desk) -> None:
    desk.account("live:1")
    done(desk.open("live:1", "A"))
    opener = desk.new_workers([Kind.OPEN])
    sent = desk.send("close", "live:1", order_id="A")
    for _ in range(3):
        opener.step(1)
    assert desk.client.xlen("copyrisk:commands") == 0
    assert desk.client.xlen("copyrisk:work:close") == 1
    assert desk.statuses("live:1", "A") == ("OPEN", "EXECUTED")
    desk.settle(workers=desk.new_workers([Kind.CLOSE]))
    assert done(desk.answer(sent))
    assert_finished(desk, "live:1", "A", "CLOSED")


def test_an_entry_handed_on_twice_is_done_once(desk: Desk) -> None:
    desk.account("live:1")
    opener = desk.new_workers([Kind.CLOSE])
    sent = desk.send("open", "live:1", symbol="EURUSD", order_type="BUY", order_quantity="1")
    opener.step(1)
    ((_, said),) = desk.client.xrange("copyrisk:work:open")
    desk.client.xadd("copyrisk:work:open", said)  # the worker died before it acknowledged, another handed it on again
    desk.settle()
    assert len(desk.index("live:1")) == 1
    assert {event["event_id"] for event in desk.events(command_id=sent)} == {f"live:1:{desk.version('live:1')}"}


# ---- servers that lose their functions, or go away for a while


def test_lost_functions_are_loaded_again_while_workers_run(bundled_server: Any) -> None:
    desk = Desk(bundled_server)
    desk.account("live:1")
    stop, threads = run_threads(desk, 1)
    try:
        for number in range(2):
            sent = desk.send(
                *("open", "live:1"), order_id=f"O{number}", symbol="EURUSD", order_type="BUY", order_quantity="1"
            )
            until(lambda sent=sent: bool(desk.events(command_id=sent)))  # type: ignore[misc]
            desk.client.execute_command("FUNCTION", "FLUSH")
    finally:
        stop.set()
        threads[0].join()
    assert desk.index("live:1") == {"O0", "O1"}


def test_a_server_that_lost_everything_is_worked_on_anew(bundled_server: Any) -> None:
    desk = Desk(bundled_server)
    desk.account("live:1")
    stop, threads = run_threads(desk, 1)
    try:
        first = desk.send("open", "live:1", order_id="A", symbol="EURUSD", order_type="BUY", order_quantity="1")
        until(lambda: bool(desk.events(command_id=first)))
        before = desk.version("live:1")
        desk.client.flushall()
        desk.client.execute_command("FUNCTION", "FLUSH")
        desk.client.client_kill_filter(_type="normal", skipme=True)
        desk.office.group("EURUSD")
        desk.quote()
        desk.account("live:1")
        again = desk.send("open", "live:1", order_id="B", symbol="EURUSD", order_type="BUY", order_quantity="1")
        until(lambda: bool(desk.events(command_id=again)))
    finally:
        stop.set()
        threads[0].join()
    assert desk.index("live:1") == {"B"}
    assert desk.version("live:1") > before
    assert_books(desk)
    desk.close()


@pytest.mark.fault
@pytest.mark.slow
def test_a_server_that_stands_still_loses_and_repeats_nothing() -> None:
    with EmbeddedServer.start() as running:
        desk = Desk(Server(running.url, running.pid))
        desk.account("live:1")
        stop, threads = run_threads(desk, 2)
        try:
            for number in range(200):
                desk.send(
                    "open", "live:1", order_id=f"O{number}", symbol="EURUSD", order_type="BUY", order_quantity=0.01
                )
            _stand_still(running.pid, 6.0)  # longer than a reply is waited for
            until(lambda: not desk.waiting(), 30)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert len(desk.index("live:1")) == 200
        assert {event["code"] for event in desk.events()} == {"ok"}
        assert_books(desk)
        desk.close()


def _stand_still(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.skipif(KINDS["debian"] is None, reason="no redis-server is installed")
def test_a_server_that_is_killed_and_comes_back_after_two_seconds_loses_and_repeats_nothing() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        running = stack.enter_context(_kept_server(folder))
        desk = Desk(Server(f"unix://{folder}/socket", running.pid))
        desk.account("live:1")
        stop, threads = run_threads(desk, 2)
        try:
            asked = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "0.01"}
            for number in range(300):
                desk.send("open", "live:1", order_id=f"O{number}", **asked)
            running.kill()
            running.wait()
            time.sleep(2.0)
            stack.enter_context(_kept_server(folder))
            desk.quote()
            until(lambda: not desk.waiting(), 30)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert len(desk.index("live:1")) == 300
        assert {event["code"] for event in desk.events()} == {"ok"}
        assert desk.entries("copyrisk:dead_letters") == []
        assert_books(desk)
        desk.close()


@contextmanager
def _kept_server(folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that writes everything to disk before it answers."""
    words = ("--port", "0", "--unixsocket", f"{folder}/socket", "--dir", folder, "--save", "", "--logfile", "log")
    running = subprocess.Popen([str(KINDS["debian"]), *words, "--appendonly", "yes", "--appendfsync", "always"])
    try:
        client = redis.Redis(unix_socket_path=f"{folder}/socket")
        until(lambda: _answers(client))
        client.close()
        yield running
    finally:
        running.kill()
        running.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.mark.fault
def test_a_server_that_refuses_writes_for_a_while_costs_no_command(bundled_server: Any) -> None:
    """Out of memory, disk full, read-only after a failover: nothing is wrong with the commands that wait meanwhile."""
    desk = Desk(bundled_server, workers__retry_ms=10, workers__attempts=3)
    desk.account("live:1")
    done(desk.open("live:1", "A"))
    sent = desk.send("close", "live:1", order_id="A")
    stop, threads = run_threads(desk, 1)
    desk.client.config_set("maxmemory", 1)
    try:
        time.sleep(0.5)
    finally:
        desk.client.config_set("maxmemory", 0)
    try:
        until(lambda: not desk.waiting(), 5)
    finally:
        stop.set()
        threads[0].join()
    assert desk.entries("copyrisk:dead_letters") == []
    assert done(desk.answer(sent))


# ---- as processes


@pytest.mark.slow
def test_processes_share_the_work_and_end_when_asked(redis_server: Any) -> None:
    desk = Desk(redis_server)
    desk.account("live:1", balance="10900")
    for number in range(50):
        desk.send("open", "live:1", order_id=f"O{number}", symbol="EURUSD", order_type="SELL", order_quantity="1")
    with (
        process(desk.server.url, "workers", "--only", "close,reject", WORKERS_BATCH=4) as first,
        process(desk.server.url, "workers", "--only", "open,pending,cancel,stop_loss,take_profit") as second,
        process(desk.server.url, "workers", WORKERS_BATCH=4) as third,
    ):
        until(lambda: not desk.waiting(), 30)
        until(lambda: [one["cmd"] for one in desk.client.client_list()].count("xreadgroup") == 3)  # all have started
        for running in (first, second, third):
            running.send_signal(signal.SIGTERM)
        assert [running.wait(10) for running in (first, second, third)] == [0, 0, 0]
    assert len(desk.index("live:1")) == 10
    assert_books(desk)
    desk.close()


def test_an_office_that_writes_beside_us_is_not_overwritten(desk: Desk) -> None:
    """What another service changes between our reading and our change is seen, and decided on anew."""
    desk.account("live:1")
    done(desk.open("live:1", "A"))
    workers = desk.new_workers()
    sent = desk.send("close", "live:1", order_id="A")
    office = BackOffice(desk.new_client())
    appraiser: Any = workers._dispatcher._appraiser
    lay_out, paid = appraiser.lay_out, iter(range(2))

    def lay_out_while_paying(*arguments: Any) -> None:
        if next(paid, None) is not None:  # a deposit arrives just now, twice
            office.client.hset("user:{live:1}:config", "wallet_balance", str(desk.balance("live:1") + 100))
        lay_out(*arguments)

    appraiser.lay_out = lay_out_while_paying
    desk.settle(workers=workers)
    assert done(desk.answer(sent))["net_profit"] == "-5.00"
    assert desk.balance("live:1") == Decimal("10195.00")


# ---- days with a provider that does what providers do


class Provider:
    """Answers requests by lot: each report is one that a provider may make, some come twice or late."""

    def __init__(self, desk: Desk, choose: random.Random) -> None:
        self._desk, self._choose = desk, choose
        self._known: dict[str, dict[str, str]] = {}
        self._filled: dict[str, Decimal] = {}
        self._sequence: dict[str, int] = {}
        self._paid: dict[str, Decimal] = {}  # lots times price
        self._ended: set[str] = set()
        self._sent: list[dict[str, str]] = []

    def act(self) -> None:
        """Make one report, if there is anything to report on."""
        for request in self._desk.requests():
            self._known.setdefault(request["request_id"], request)
        open_ones = [request for request_id, request in self._known.items() if request_id not in self._ended]
        if self._sent and self._choose.random() < 0.15:
            self._desk.client.xadd("copyrisk:reports", self._choose.choice(self._sent))
        elif open_ones:
            self._answer(self._choose.choice(open_ones))

    def _answer(self, request: dict[str, str]) -> None:
        if request["action"] in ("modify", "cancel"):
            is_live = request["target"] not in self._ended
            accepts = is_live and self._choose.random() < 0.7
            self._say(request, "accepted" if accepts else "rejected", is_last=True)
            if accepts and request["action"] == "cancel":
                self._say(self._known[request["target"]], "cancelled", is_last=True)
            return
        request_id, asked = request["request_id"], Decimal(request["order_quantity"])
        filled = self._filled.get(request_id, Decimal(0))
        what = self._choose.choice(("accepted", "fill", "fill", "all", "all", "rejected", "cancelled"))
        if what == "accepted" and not filled:
            self._say(request, "accepted")
        elif what in ("fill", "all", "accepted"):
            more = asked - filled if what == "all" else (asked - filled) * self._choose.randrange(1, 10) / 10
            more = more.quantize(Decimal("0.01")) or asked - filled
            price = Decimal(self._choose.randrange(108000, 109000)) / 100_000
            self._filled[request_id] = filled + more
            self._paid[request_id] = self._paid.get(request_id, Decimal(0)) + more * price
            is_all = filled + more == asked
            self._say(request, "filled" if is_all else "partial", is_last=is_all)
        else:
            self._say(request, what, is_last=True)

    def _say(self, request: dict[str, str], status: str, *, is_last: bool = False) -> None:
        request_id = request["request_id"]
        filled = self._filled.get(request_id, Decimal(0))
        self._sequence[request_id] = self._sequence.get(request_id, 0) + 1
        price = (self._paid[request_id] / filled).quantize(Decimal("0.00000001")) if filled else Decimal(0)
        named = {name: request[name] for name in ("request_id", "action", "user_type", "user_id", "order_id")}
        more = {"status": status, "sequence": str(self._sequence[request_id]), "filled_quantity": f"{filled:f}"}
        said = {**named, **more, "average_price": f"{price:f}"}
        self._sent.append(said)
        self._desk.client.xadd("copyrisk:reports", said)
        if is_last:
            self._ended.add(request_id)


def send_something(desk: Desk, choose: random.Random, account: str, number: int) -> None:
    """A command that makes sense sometimes."""
    new_id = f"{account[0]}{number}"
    ids = sorted(desk.index(account))
    known = choose.choice([*ids, new_id])
    waiting = choose.choice([one for one in ids if desk.statuses(account, one)[0] == "PENDING"] or [new_id])
    lots, side = f"0.{choose.randrange(1, 60):02}", choose.choice(("BUY", "SELL"))
    new = {"order_id": new_id, "symbol": "EURUSD", "order_quantity": lots}
    levels: dict[str, Any] = {}
    if choose.random() < 0.5:
        levels = {"stop_loss": "1.0" if side == "BUY" else "1.2"}
    kind, said = choose.choice(
        [
            *[("open", {**new, "order_type": side, **levels})] * 3,
            *[("pending", {**new, "order_type": f"{side}_LIMIT", "order_price": "1.05" if side == "BUY" else "1.15"})]
            * 2,
            *[("close", {"order_id": known})] * 2,
            ("close", {"order_id": known, "order_quantity": lots}),
            ("cancel", {"order_id": choose.choice((known, waiting))}),
            ("modify", {"order_id": waiting, "order_price": choose.choice(("1.06", "1.14"))}),
            ("stop_loss", {"order_id": known, "stop_loss": choose.choice(("1.01", "1.19"))}),
            ("take_profit", {"order_id": known}),
        ]
    )
    desk.send(kind, account, **said)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_a_day_with_a_provider_keeps_the_books(bundled_server: Any, seed: int) -> None:
    desk, choose = Desk(bundled_server), random.Random(seed)
    desk.office.group("EURUSD", commission_rate="3.37", commission_type="both", spread=3, spread_pip="0.00001")
    accounts = [desk.account("live:1", "barclays"), desk.account("demo:1"), desk.account("copy_follower:1", "")]
    provider = Provider(desk, choose)
    for number in range(120):
        if choose.random() < 0.6:
            send_something(desk, choose, choose.choice(accounts), number // 3)
        else:
            provider.act()
        if choose.random() < 0.2:
            bid = Decimal(choose.randrange(107500, 109500)) / 100_000
            desk.quote(bid, bid + Decimal("0.00005"))
        desk.settle()
        assert_books(desk)
    for account in accounts:
        assert_paid(desk, account, 10_000)
    assert desk.entries("copyrisk:breaks") == []
    assert desk.entries("copyrisk:dead_letters") == []
    done = {event["type"] for event in desk.events(event="done")}
    assert {"open", "pending", "close", "report_open_filled"} <= done
    desk.close()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_a_day_with_a_provider_and_four_workers_keeps_the_books(bundled_server: Any, seed: int) -> None:
    """Commands and reports overtake each other as they like."""
    desk, choose = Desk(bundled_server, workers__batch=4, workers__retry_ms=2_000), random.Random(seed)
    accounts = [desk.account("live:1", "barclays"), desk.account("demo:1"), desk.account("copy_follower:1", "")]
    provider = Provider(desk, choose)
    stop, threads = run_threads(desk, 4)
    try:
        for number in range(300):
            if choose.random() < 0.6:
                send_something(desk, choose, choose.choice(accounts), number // 3)
            else:
                provider.act()
            if number % 30 == 0:
                desk.quote()
        until(lambda: not desk.waiting(), 20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert desk.entries("copyrisk:breaks") == []
    assert desk.entries("copyrisk:dead_letters") == []
    assert_books(desk)
    for account in accounts:
        assert_paid(desk, account, 10_000)
    desk.close()
