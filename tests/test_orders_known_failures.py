"""Each way in which order systems are known to fail, as a regression test on a real server.

The numbers are those of the project's list of known failures; 16 to 21, 26 to 30 and 32 to 34 concern orders.
"""

import json
import os
import signal
import threading
import time
from decimal import Decimal
from typing import Any

import pytest

from copyrisk.commands import Kind
from copyrisk.roles import run_workers
from tests.trading import Desk, assert_books, assert_paid, dump, is_log, process, until

TYPES = [("live:1", "rock"), ("demo:1", ""), ("strategy_provider:1", "rock"), ("copy_follower:1", "rock")]


@pytest.fixture
def desk(redis_server: Any) -> Any:
    made = Desk(redis_server)
    yield made
    made.close()


# ---- 12: whatever can be opened can be closed


@pytest.mark.parametrize("later", ["rock", "barclays", "", "mars", None])
@pytest.mark.parametrize("flow", ["rock", "barclays"])
def test_kf12_an_order_is_closed_in_its_own_flow_whatever_the_account_says_later(
    desk: Desk, flow: str, later: str | None
) -> None:
    desk.account("live:1", flow)
    assert desk.open("live:1", "A")["code"] == "ok"
    if flow == "barclays":
        desk.reported(desk.request(), "filled", 1, "1", average_price="1.08455")
    if later is None:
        desk.client.hdel("user:{live:1}:config", "sending_orders")
    else:
        desk.client.hset("user:{live:1}:config", "sending_orders", later)
    assert desk.do("stop_loss", "live:1", order_id="A", stop_loss="1.08")["code"] == "ok"
    assert desk.do("close", "live:1", order_id="A")["code"] == "ok"
    if flow == "barclays":
        assert desk.request()["action"] == "close"
        desk.reported(desk.request(), "filled", 1, "1", average_price="1.08455")
    assert desk.data("A")["order_status"] == "CLOSED"
    assert desk.index("live:1") == set()


@pytest.mark.parametrize("disabled", [{"is_active": "0"}, {"status": "suspended"}])
def test_kf12_an_account_that_may_open_nothing_may_still_close(desk: Desk, disabled: dict[str, str]) -> None:
    desk.account("live:1")
    desk.open("live:1", "A", stop_loss="1.08", take_profit="1.2")  # levels are no reason to leave an order out
    desk.client.hset("user:{live:1}:config", mapping=disabled)
    assert desk.open("live:1", "B")["code"] == "account_inactive"
    assert desk.do("close", "live:1", order_id="A")["code"] == "ok"


# ---- 16: margin and payment are taken once (with many workers: test_workers)


@pytest.mark.parametrize(("account", "flow"), TYPES)
def test_kf16_three_opens_on_margin_for_one_open_one(desk: Desk, account: str, flow: str) -> None:
    desk.account(account, flow, balance="1100")
    for number in range(3):
        desk.send("open", account, order_id=f"O{number}", symbol="EURUSD", order_type="BUY", order_quantity="1")
    desk.settle()
    assert sorted(event["code"] for event in desk.events()) == ["insufficient_margin", "insufficient_margin", "ok"]
    assert len(desk.index(account)) == 1
    assert_books(desk)


def test_kf16_margin_of_what_is_with_the_provider_is_reserved(desk: Desk) -> None:
    desk.account("live:1", "barclays", balance="1100")
    assert desk.open("live:1", "A")["code"] == "ok"
    assert desk.open("live:1", "B")["code"] == "insufficient_margin"
    desk.reported(desk.request(), "partial", 1, "0.1", average_price="1.08455")
    assert desk.open("live:1", "C")["code"] == "insufficient_margin"  # the rest is still being filled
    desk.reported(desk.request(), "cancelled", 2, "0.1", average_price="1.08455")
    assert desk.open("live:1", "D", "BUY", "0.8")["code"] == "ok"
    assert_books(desk)


def test_kf16_two_closes_of_one_order_pay_once(desk: Desk) -> None:
    desk.account("live:1")
    desk.open("live:1", "A")
    desk.quote("1.0945", "1.09455")
    sent = [desk.send("close", "live:1", order_id="A", idempotency_key=key) for key in ("one", "two")]
    desk.settle()
    assert [desk.answer(command)["code"] for command in sent] == ["ok", "order_finished"]
    assert desk.balance("live:1") == Decimal("10995.00")


def test_kf16_two_part_closes_in_one_batch_close_each_their_lots(desk: Desk) -> None:
    desk.account("live:1")
    desk.open("live:1", "A")
    for _ in range(3):
        desk.send("close", "live:1", order_id="A", order_quantity="0.4")
    desk.settle()
    assert desk.order("live:1", "A")["order_quantity"] == "0.2"
    assert_paid(desk, "live:1", 10_000)


# ---- 17: what is repeated has its effect once, and never none


def test_kf17_the_same_command_is_answered_the_same_and_done_once(desk: Desk) -> None:
    desk.account("live:1")
    said = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1", "idempotency_key": "k-1"}
    first = desk.do("open", "live:1", **said)
    again = desk.send("open", "live:1", **said)
    desk.settle()
    announced = [event for event in desk.entries("copyrisk:events") if event["idempotency_key"] == "k-1"]
    assert len(announced) == 2
    assert announced[0] == announced[1] == first
    assert not desk.events(command_id=again)
    assert desk.index("live:1") == {first["order_id"]}
    conflict = desk.do("open", "live:1", **{**said, "order_quantity": "2"})
    assert (conflict["event"], conflict["code"]) == ("refused", "idempotency_conflict")
    assert (
        desk.do("close", "live:1", order_id=first["order_id"], idempotency_key="k-1")["code"] == "idempotency_conflict"
    )
    desk.settle()
    assert desk.do("close", "live:1", order_id=first["order_id"], idempotency_key="k-2")["code"] == "ok"


def test_kf17_a_key_belongs_to_one_account(desk: Desk) -> None:
    said = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1", "idempotency_key": "k"}
    orders = set()
    for account in ("live:1", "live:2", "demo:1"):
        desk.account(account)
        event = desk.do("open", account, **said)
        assert event["code"] == "ok"
        orders.add(event["order_id"])
    assert len(orders) == 3


def test_kf17_a_refusal_is_remembered_too(desk: Desk) -> None:
    desk.account("live:1", balance="1")
    said = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1", "idempotency_key": "k"}
    first = desk.do("open", "live:1", **said)
    desk.client.hset("user:{live:1}:config", "wallet_balance", "100000")
    desk.send("open", "live:1", **said)
    desk.settle()
    assert desk.entries("copyrisk:events") == [first, first]
    assert desk.do("open", "live:1", **{**said, "idempotency_key": "l"})["code"] == "ok"


def test_kf17_every_entry_delivered_twice_changes_nothing_more(desk: Desk) -> None:
    desk.account("live:1", "barclays")
    desk.open("live:1", "A")
    for status, sequence, lots in (("partial", 1, "0.3"), ("partial", 2, "0.7"), ("filled", 3, "1")):
        for _ in range(2):
            desk.reported(desk.request(), status, sequence, lots, average_price="1.0846")
    version = desk.version("live:1")
    desk.do("close", "live:1", order_id="A")
    for status, sequence, lots in (("partial", 1, "0.5"), ("filled", 2, "1")):
        for _ in range(2):
            desk.reported(desk.request(), status, sequence, lots, average_price="1.0946")
    assert desk.version("live:1") == version + 3
    assert desk.balance("live:1") == Decimal("11000.00")
    assert desk.entries("copyrisk:breaks") == []
    assert_paid(desk, "live:1", 10_000)


def test_kf17_an_entry_that_another_consumer_takes_over_is_done_once(desk: Desk) -> None:
    desk.account("live:1")
    first, second = desk.new_workers(), desk.new_workers()
    entries = []
    for number in range(3):
        desk.send("open", "live:1", order_id=f"O{number}", symbol="EURUSD", order_type="BUY", order_quantity="1")
    entries = first._consumer.read(10, 1)  # handed out; the worker is slow
    assert len(entries) == 3
    time.sleep(0.06)
    desk.settle(workers=second)
    before = dump(desk.client, is_log)
    first._handle(entries)  # and goes on after all
    assert dump(desk.client, is_log) == before
    assert desk.index("live:1") == {"O0", "O1", "O2"}
    assert len(desk.events(event="done")) == 3


def test_kf17_reports_in_the_wrong_order_end_the_same(desk: Desk) -> None:
    desk.account("live:1", "barclays")
    for order_id, order in (("A", (1, 2, 3)), ("B", (3, 2, 1)), ("C", (2, 1, 3)), ("D", (3,))):
        desk.open("live:1", order_id, "BUY", "0.3")
        for sequence in order:
            status, lots = ("filled", "0.3") if sequence == 3 else ("partial", f"0.{sequence}")
            desk.report(desk.request(), status, sequence, lots, average_price="1.0846")
        desk.settle()
        said = desk.order("live:1", order_id)
        assert (said["order_quantity"], said["order_price"], said["order_status"]) == ("0.3", "1.0846", "OPEN")
    assert desk.entries("copyrisk:breaks") == []
    assert_books(desk)


def test_kf17_a_duplicate_is_known_although_the_first_was_never_finished(desk: Desk) -> None:
    """The change was stored, its worker died before anything followed from it: the copy finishes it."""
    desk.account("live:1", "barclays")
    desk.open("live:1", "A")
    request = desk.request()
    workers: Any = desk.new_workers()
    deliver, workers._effects.deliver = workers._effects.deliver, _fail
    desk.report(request, "filled", 1, "1", average_price="1.0846")
    with pytest.raises(RuntimeError):
        workers._dispatcher.carry_out([_job(workers)])
    workers._effects.deliver = deliver
    assert desk.client.xlen("copyrisk:{live:1}:outbox") == 1
    assert desk.data("A")["order_status"] == "QUEUED"
    desk.reported(request, "filled", 1, "1", average_price="1.0846")
    assert desk.data("A")["order_status"] == "OPEN"
    assert_books(desk)


def _fail(*_: Any) -> None:
    raise RuntimeError("here the worker dies")


def _job(workers: Any) -> Any:
    (entry,) = workers._consumer.read(10, 1)
    return workers._job(entry)


# ---- 18: no answer is no rejection


def test_kf18_an_order_without_an_answer_stays_and_takes_a_late_fill(desk: Desk) -> None:
    desk.account("live:1", "barclays")
    desk.open("live:1", "A")
    request = desk.request()
    for _ in range(3):
        desk.workers.step(1)
        desk.tick()
    assert desk.statuses("live:1", "A") == ("QUEUED", "QUEUED")
    assert_books(desk)
    desk.reported(request, "filled", 9, "1", average_price="1.0846")  # all earlier reports were lost
    assert desk.statuses("live:1", "A") == ("OPEN", "EXECUTED")
    desk.do("close", "live:1", order_id="A")
    desk.tick()
    assert desk.do("close", "live:1", order_id="A")["code"] == "close_in_progress"  # unknown is not closed, nor open
    assert [asked["action"] for asked in desk.requests()] == ["open", "close"]


# ---- 19: what ended stays ended


def test_kf19_nothing_reopens_a_finished_order(desk: Desk) -> None:
    desk.account("live:1", "barclays")
    desk.open("live:1", "A")
    opening = desk.request()
    desk.reported(opening, "filled", 2, "1", average_price="1.0846")
    desk.do("close", "live:1", order_id="A")
    closing = desk.request()
    desk.reported(closing, "filled", 1, "1", average_price="1.0846")
    before = dump(desk.client, is_log)
    for request in (opening, closing):
        for status, lots in (
            ("accepted", "0"),
            ("filled", "1"),
            ("partial", "0.5"),
            ("rejected", "0"),
            ("cancelled", "1"),
        ):
            for sequence in (1, 2, 3, 9):
                desk.report(request, status, sequence, lots, average_price="1.0846" if lots != "0" else "0")
    desk.settle()
    assert dump(desk.client, is_log) == before
    assert desk.index("live:1") == set()
    desk.send("open", "live:1", order_id="A", symbol="EURUSD", order_type="BUY", order_quantity="1")  # the same again
    desk.settle()
    assert desk.index("live:1") == set()


@pytest.mark.parametrize("status", ["rejected", "cancelled"])
def test_kf19_a_fill_after_the_end_is_set_aside(desk: Desk, status: str) -> None:
    desk.account("live:1", "barclays")
    desk.open("live:1", "A")
    desk.reported(desk.request(), status, 1)
    desk.reported(desk.request(), "filled", 2, "1", average_price="1.0846")
    (aside,) = desk.entries("copyrisk:breaks")
    assert aside["code"] == "report_after_the_end"
    assert desk.index("live:1") == set()
    assert desk.data("A")["order_status"] == status.upper()


# ---- 20: a close that was rejected can be sent again


def test_kf20_a_rejected_close_is_sent_again_under_another_id(desk: Desk) -> None:
    desk.account("live:1", "barclays")
    desk.open("live:1", "A")
    desk.reported(desk.request(), "filled", 1, "1", average_price="1.0846")
    for _ in range(20):
        assert desk.do("close", "live:1", order_id="A")["code"] == "ok"
        desk.reported(desk.request(), "rejected", 1, reason="no")
        assert desk.statuses("live:1", "A") == ("OPEN", "EXECUTED")
    assert desk.do("close", "live:1", order_id="A")["code"] == "ok"
    desk.reported(desk.request(), "filled", 1, "1", average_price="1.0847")
    assert len({request["request_id"] for request in desk.requests()}) == 22
    assert desk.data("A")["order_status"] == "CLOSED"
    assert_paid(desk, "live:1", 10_000)


# ---- 21: an order id names one order


def test_kf21_another_accounts_order_id_is_refused_and_touches_nothing(desk: Desk) -> None:
    desk.account("live:1")
    desk.account("live:2")
    desk.open("live:1", "A", stop_loss="1.08")
    before = dump(desk.client, is_log)
    for kind, order_type in (("open", "SELL"), ("pending", "SELL_LIMIT")):
        said = {"symbol": "EURUSD", "order_type": order_type, "order_quantity": "2", "order_id": "A"}
        more = {"order_price": "1.2"} if kind == "pending" else {}
        assert desk.do(kind, "live:2", idempotency_key=kind, **said, **more)["code"] == "order_exists"
    for kind, more in (("close", {}), ("cancel", {}), ("stop_loss", {"stop_loss": "1"}), ("take_profit", {})):
        assert desk.do(kind, "live:2", order_id="A", **more)["code"] == "order_not_found"
    assert dump(desk.client, is_log) == before
    desk.do("close", "live:1", order_id="A")
    assert desk.open("live:2", "A", idempotency_key="after")["code"] == "order_exists"  # not even when it is finished


def test_kf21_two_accounts_that_want_one_id_at_once_get_one_order(desk: Desk) -> None:
    for account in ("live:1", "live:2", "demo:3"):
        desk.account(account)
        desk.send("open", account, order_id="A", symbol="EURUSD", order_type="BUY", order_quantity="1")
    desk.settle()
    assert sorted(event["code"] for event in desk.events()) == ["ok", "order_exists", "order_exists"]
    assert_books(desk)


def test_kf21_ids_that_nobody_chose_do_not_repeat(desk: Desk) -> None:
    desk.account("demo:1", balance="1000000")
    for _ in range(200):
        desk.send("open", "demo:1", symbol="EURUSD", order_type="BUY", order_quantity="0.01")
    desk.settle()
    assert len(desk.index("demo:1")) == 200


# ---- 26: a pending order fills on its own side, at the market of that moment


@pytest.mark.parametrize(
    ("order_type", "price", "quote", "filled_at"),
    [
        ("SELL_LIMIT", "1.09", ("1.0902", "1.0905"), "1.0902"),
        ("SELL_STOP", "1.08", ("1.0795", "1.0799"), "1.0795"),
        ("BUY_LIMIT", "1.08", ("1.0795", "1.0799"), "1.0799"),
        ("BUY_STOP", "1.09", ("1.0902", "1.0905"), "1.0905"),
    ],
)
def test_kf26_a_pending_order_fills_on_its_own_side(
    desk: Desk, order_type: str, price: str, quote: tuple[str, str], filled_at: str
) -> None:
    for account in ("strategy_provider:1", "copy_follower:1"):
        desk.account(account)
        desk.pend(account, account[:4], order_type, price)
    monitor = desk.new_monitor()
    desk.quote(*quote)
    monitor.step(0.1)
    desk.settle()
    for account in ("strategy_provider:1", "copy_follower:1"):
        assert desk.order(account, account[:4])["order_price"] == filled_at
    assert_books(desk)


# ---- 28: what is booked is what was filled


@pytest.mark.parametrize("lots", ["0.01", "0.37", "0.99"])
def test_kf28_a_part_that_was_filled_is_all_that_is_booked(desk: Desk, lots: str) -> None:
    desk.account("live:1", "barclays")
    desk.open("live:1", "A")
    desk.reported(desk.request(), "partial", 1, lots, average_price="1.0846")
    assert desk.order("live:1", "A")["order_quantity"] == lots
    desk.reported(desk.request(), "cancelled", 2, lots, average_price="1.0846")
    assert_books(desk)
    desk.do("close", "live:1", order_id="A")
    assert desk.request()["order_quantity"] == lots
    desk.reported(desk.request(), "filled", 1, lots, average_price="1.0946")
    assert desk.balance("live:1") == Decimal(10_000) + 1_000 * Decimal(lots)


# ---- 29: fees and payouts once, and the books add up


@pytest.mark.parametrize("flow", ["rock", "barclays"])
def test_kf29_what_many_parts_book_adds_up_to_the_whole(desk: Desk, flow: str) -> None:
    desk.office.group("EURUSD", commission_rate="3.33", commission_type="both")
    desk.account("live:1", flow)
    desk.open("live:1", "A", "BUY", "0.97")
    if flow == "barclays":
        desk.reported(desk.request(), "filled", 1, "0.97", average_price="1.08455")
    desk.client.hset("user_holdings:{live:1}:A", "swap", "-1.01")
    desk.quote("1.0945", "1.09455")
    for lots in ("0.13", "0.29", "0.31", "0.24"):
        assert desk.do("close", "live:1", order_id="A", order_quantity=lots)["code"] == "ok"
        if flow == "barclays":
            half = str(Decimal(lots) - Decimal("0.07"))
            desk.reported(desk.request(), "partial", 1, half, average_price="1.0945")
            desk.reported(desk.request(), "filled", 2, lots, average_price="1.0945")
    data = desk.data("A")
    booked = [Decimal(seen["balance"]) for seen in desk.audit("live:1") if seen.get("balance")]
    assert booked[-1] == desk.balance("live:1") == 10_000 + Decimal(data["net_profit"])
    assert data["swap"] == "-1.01"
    # 0.97 lots: gross 965.15; commission 3.23 at the entry, and at the exits what their lots cost, each to the cent.
    assert Decimal(data["net_profit"]) == Decimal("965.15") - Decimal(data["commission"]) - Decimal("1.01")
    assert abs(Decimal(data["commission"]) - Decimal("6.46")) <= Decimal("0.02")
    assert_paid(desk, "live:1", 10_000)


# ---- 30: a message that fails is not requeued for ever


def test_kf30_a_failing_entry_is_tried_so_often_and_not_at_once(redis_server: Any) -> None:
    desk = Desk(redis_server, workers__attempts=4, workers__retry_ms=30)
    desk.account("live:2", "barclays")
    desk.office.group("EURNOK", profit="NOK")
    desk.quote("11.5", "11.51", "EURNOK")
    desk.quote("10.0", "10.0", "USDNOK")
    desk.do("open", "live:2", symbol="EURNOK", order_type="BUY", order_quantity="0.1", order_id="N")
    desk.reported(desk.request(), "filled", 1, "0.1", average_price="11.51")
    desk.do("close", "live:2", order_id="N")
    desk.client.delete("market:USDNOK")
    began_s = time.monotonic()
    desk.reported(desk.request(), "filled", 1, "0.1", average_price="11.61")
    assert time.monotonic() - began_s > 3 * 0.03
    (letter,) = desk.entries("copyrisk:dead_letters")
    assert letter["deliveries"] == "4"
    assert desk.waiting() == 0


# ---- 32: nothing is left over


def documented(account: str, order_id: str) -> dict[str, bool]:
    """Keys after an order's whole life, and whether they end by themselves."""
    user_type = account.partition(":")[0]
    return {
        f"user:{{{account}}}:config": False,
        "groups:{Standard}:EURUSD": False,
        "market:EURUSD": False,
        f"order_data:{order_id}": True,
        f"copyrisk:{{{account}}}:ledger": False,
        f"copyrisk:{{{account}}}:audit": False,
        f"copyrisk:{{{account}}}:order:{order_id}": True,
        f"copyrisk:{{symbol_holders:EURUSD:{user_type}}}": False,
        "copyrisk:events": False,
    }


@pytest.mark.parametrize("flow", ["rock", "barclays"])
@pytest.mark.parametrize("end", ["closed", "cancelled", "rejected"])
def test_kf32_after_an_orders_life_only_the_documented_keys_remain(desk: Desk, flow: str, end: str) -> None:
    account = desk.account("live:1", flow)
    is_provider = flow == "barclays"
    if end == "closed":
        desk.open(account, "A", stop_loss="1.08", idempotency_key="k")
        if is_provider:
            desk.reported(desk.request(), "filled", 1, "1", average_price="1.08455")
        desk.do("close", account, order_id="A")
        if is_provider:
            desk.reported(desk.request(), "filled", 1, "1", average_price="1.08455")
    else:
        desk.pend(account, "A", "BUY_STOP", "1.085", idempotency_key="k")
        if is_provider:
            desk.reported(desk.request(), end, 1)
        elif end == "cancelled":
            desk.do("cancel", account, order_id="A")
        else:
            desk.client.hset("user:{live:1}:config", "wallet_balance", "5")
            desk.quote("1.085", "1.08505")
            desk.do("trigger", account, order_id="A", trigger="pending", trigger_price="1.085")
    assert desk.data("A")["order_status"] == end.upper()
    left = {key.decode() for key in desk.client.keys("*")}
    streams = {key for key in left if desk.client.type(key) == b"stream"}
    answers = {key for key in left if ":answer:" in key}
    triggers = left & {"order_triggers:A"}
    expected = documented(account, "A")
    assert left - streams - answers - triggers == expected.keys() - streams
    assert all(
        desk.client.xlen(key) == 0
        for key in streams - {f"copyrisk:{{{account}}}:audit", "copyrisk:events", "copyrisk:requests"}
    )
    for key, ends in {**expected, **dict.fromkeys(answers | triggers, True)}.items():
        assert (desk.client.ttl(key) > 0) is ends, key
    assert all(desk.client.ttl(key) <= 7 * 86_400 for key in answers)
    assert all(desk.client.ttl(key) <= 600 for key in triggers)


def test_kf32_consumers_that_are_gone_leave_nothing(redis_server: Any) -> None:
    """Each start of a worker makes a new consumer in each group."""
    desk = Desk(redis_server)
    desk.account("live:1")
    for number in range(3):
        stop = threading.Event()
        sent = desk.send(
            "open", "live:1", order_id=f"O{number}", symbol="EURUSD", order_type="BUY", order_quantity="0.1"
        )
        args = (desk.new_client(), desk.settings, tuple(Kind), stop)
        running = threading.Thread(target=run_workers, args=args)
        running.start()
        until(lambda sent=sent: bool(desk.events(command_id=sent)))  # type: ignore[misc]
        stop.set()
        running.join()
    assert len(desk.client.xinfo_consumers("copyrisk:commands", "workers")) <= 1


# ---- 33: ids that would name other keys


@pytest.mark.parametrize("odd", ["1}:{live:2", "1\n", "1}", "{", "", "1 ", "1:2", "\u0661", "1" * 65, "*", "?"])
@pytest.mark.parametrize("field", ["user_id", "order_id", "symbol", "idempotency_key", "master_order_id"])
def test_kf33_an_id_never_names_another_key(desk: Desk, field: str, odd: str) -> None:
    if (
        (field, odd) == ("idempotency_key", "1:2")
        or (field != "user_id" and not odd)
        or (field, odd) == ("idempotency_key", "1" * 65)
    ):
        return  # these may be
    desk.account("live:1")
    desk.account("live:2")
    before = dump(desk.client, is_log)
    said = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1", "order_id": "A", "user_id": "1", field: odd}
    sent = desk.client.xadd("copyrisk:commands", {"type": "open", "user_type": "live", **said}).decode()
    desk.settle()
    event = desk.answer(sent)
    assert event["event"] == "refused" and event["code"].startswith("invalid_")
    assert dump(desk.client, is_log) == before


# ---- 34: clocks


@pytest.mark.parametrize("hours", [1, -1, 48])
def test_kf34_a_wrong_clock_of_ours_decides_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    desk.account("live:1")
    desk.open("live:1", "A")
    true_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + hours * 3_600_000_000_000)
    for kind, more in (("close", {}), ("stop_loss", {"stop_loss": "1.08"})):
        assert desk.do(kind, "live:1", order_id="A", **more)["code"] in ("quote_stale", "quote_from_future")
    # Where no quote is judged, the deadline is: it runs by the server's clock, and ours does not matter.
    assert desk.do("take_profit", "live:1", order_id="A")["code"] == "ok"
    event = desk.events()[-1]
    assert abs(int(event["ts"]) - true_ns() // 1_000_000) < 60_000
    monkeypatch.undo()
    assert desk.do("close", "live:1", order_id="A")["code"] == "ok"


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("way", ["stands still", "is overtaken"])
def test_kf34_a_decision_that_is_too_old_is_refused_and_made_anew(bundled_server: Any, way: str) -> None:
    """A worker that stood still for 3 s between reading and changing: its change rests on what is long gone."""
    desk = Desk(bundled_server)
    desk.account("live:1")
    desk.open("live:1", "A")
    workers = desk.new_workers()
    appraiser: Any = workers._dispatcher._appraiser
    judge = appraiser.lay_out
    tries: list[int] = []

    def slowly(*given: Any) -> None:
        judge(*given)
        tries.append(len(tries))
        if len(tries) == 1:
            desk.quote("1.0945", "1.09455")  # while it stands still the market moves
            if way == "is overtaken":
                desk.send("stop_loss", "live:1", order_id="A", stop_loss="1.07")
                assert desk.workers.step(1) == 1
            else:
                time.sleep(3.0)
                desk.quote("1.0945", "1.09455")

    appraiser.lay_out = slowly
    sent = desk.send("close", "live:1", order_id="A")
    workers.step(1)
    assert len(tries) == 2
    assert json.loads(desk.answer(sent)["order"])["close_price"] == "1.0945"
    assert desk.balance("live:1") == Decimal("10995.00")
    assert desk.data("A")["order_status"] == "CLOSED"


@pytest.mark.slow
@pytest.mark.fault
def test_kf34_workers_that_are_stopped_and_go_on_apply_nothing_twice(bundled_server: Any) -> None:
    """A process stopped by the system at any moment, while another one takes over what it held."""
    desk = Desk(bundled_server)
    desk.account("live:1", balance="1000000")
    with (
        process(desk.server.url, "workers", WORKERS_BATCH=5) as slow,
        process(desk.server.url, "workers", WORKERS_BATCH=5),
    ):
        for number in range(400):
            desk.send("open", "live:1", order_id=f"O{number}", symbol="EURUSD", order_type="BUY", order_quantity="0.01")
        until(lambda: len(desk.index("live:1")) > 20, 20)
        for _ in range(3):
            os.kill(slow.pid, signal.SIGSTOP)
            time.sleep(0.7)
            os.kill(slow.pid, signal.SIGCONT)
            time.sleep(0.05)
        os.kill(slow.pid, signal.SIGSTOP)
        time.sleep(3.0)
        os.kill(slow.pid, signal.SIGCONT)
        desk.quote()
        until(lambda: not desk.waiting(), 60)
    codes = {event["code"] for event in desk.events()}
    assert codes == {"ok"}
    assert len(desk.index("live:1")) == 400
    assert desk.entries("copyrisk:dead_letters") == []
    assert_books(desk)
    desk.close()
