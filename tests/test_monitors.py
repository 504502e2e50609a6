"""Monitors on real servers: each trigger fires at its price, once, whoever dies in between; nothing else fires."""

import signal
from decimal import Decimal
from typing import Any

import pytest

from copyrisk.monitors import Monitor
from tests.backoffice import now_ms
from tests.trading import Desk, assert_books, decoded, process, until

POINT = Decimal("0.00001")


@pytest.fixture
def desk(redis_server: Any) -> Any:
    made = Desk(redis_server, monitors__margin_check_ms=10)
    made.account("live:1")
    yield made
    made.close()


def step(desk: Desk, monitor: Monitor) -> list[dict[str, str]]:
    """Let a monitor see what changed, in however many reports; returns the commands it sent."""
    before = desk.client.xlen("copyrisk:commands")
    while monitor.step(0.02) or monitor.step(0.0) != 0:
        pass
    return desk.entries("copyrisk:commands")[before:]


def fired(desk: Desk, monitor: Monitor) -> list[tuple[str, str]]:
    return [(said["order_id"], said["trigger"]) for said in step(desk, monitor)]


# ---- when each kind fires: the order, the quote one point before, the quote that reaches it

PENDING = [
    ("BUY_LIMIT", "1.08", ("1.07999", "1.08001"), ("1.0799", "1.08")),
    ("BUY_STOP", "1.09", ("1.0899", "1.08999"), ("1.0899", "1.09")),
    ("SELL_LIMIT", "1.09", ("1.08999", "1.0901"), ("1.09", "1.0901")),
    ("SELL_STOP", "1.08", ("1.08001", "1.0801"), ("1.08", "1.0801")),
]
EXITS = [
    ("BUY", "stop_loss", "1.08", ("1.08001", "1.0801"), ("1.08", "1.0801")),
    ("BUY", "take_profit", "1.09", ("1.08999", "1.0901"), ("1.09", "1.0901")),
    ("SELL", "stop_loss", "1.09", ("1.0899", "1.08999"), ("1.0899", "1.09")),
    ("SELL", "take_profit", "1.08", ("1.07999", "1.08001"), ("1.0799", "1.08")),
]


@pytest.mark.parametrize(("order_type", "price", "before", "reached"), PENDING)
def test_a_pending_order_fires_at_its_price_and_fills_at_the_market(
    desk: Desk, order_type: str, price: str, before: tuple[str, str], reached: tuple[str, str]
) -> None:
    desk.pend("live:1", "P", order_type, price)
    monitor = desk.new_monitor()
    desk.quote(*before)
    assert fired(desk, monitor) == []
    desk.quote(*reached)
    assert fired(desk, monitor) == [("P", "pending")]
    desk.settle()
    order = desk.order("live:1", "P")
    assert (order["order_type"], order["order_status"]) == (order_type.partition("_")[0], "OPEN")
    assert order["order_price"] == (reached[1] if order_type.startswith("BUY") else reached[0])
    assert_books(desk)
    assert fired(desk, monitor) == []


@pytest.mark.parametrize(("order_type", "name", "level", "before", "reached"), EXITS)
def test_a_position_is_closed_at_its_level(
    desk: Desk, order_type: str, name: str, level: str, before: tuple[str, str], reached: tuple[str, str]
) -> None:
    monitor = desk.new_monitor()
    desk.open("live:1", "A", order_type, **{name: level})
    assert fired(desk, monitor) == []
    desk.quote(*before)
    assert fired(desk, monitor) == []
    desk.quote(*reached)
    assert fired(desk, monitor) == [("A", name)]
    desk.settle()
    data = desk.data("A")
    assert (data["order_status"], data["reason"]) == ("CLOSED", name)
    assert data["close_price"] == (reached[0] if order_type == "BUY" else reached[1])
    assert_books(desk)


def test_a_gap_fills_at_the_market(desk: Desk) -> None:
    desk.open("live:1", "A", stop_loss="1.08")
    desk.pend("live:1", "P", "BUY_LIMIT", "1.08")
    monitor = desk.new_monitor()
    desk.quote("1.05", "1.0501")
    assert fired(desk, monitor) == [("A", "stop_loss"), ("P", "pending")]
    desk.settle()
    assert (desk.data("A")["close_price"], desk.data("A")["net_profit"]) == ("1.05", "-3455.00")
    assert desk.order("live:1", "P")["order_price"] == "1.0501"


def test_a_stop_loss_wins_over_a_take_profit(desk: Desk) -> None:
    desk.open("live:1", "A", stop_loss="1.08", take_profit="1.09")
    monitor = desk.new_monitor()
    both = {"stop_loss": "1.0845", "take_profit": "1.084"}  # the bid reaches both
    desk.client.hset("user_holdings:{live:1}:A", mapping=both)
    desk.client.hset("order_triggers:A", mapping=both)
    assert fired(desk, monitor) == [("A", "stop_loss")]
    desk.settle()
    assert desk.data("A")["reason"] == "stop_loss"


def test_levels_that_are_moved_or_cancelled_fire_where_they_are_now(desk: Desk) -> None:
    monitor = desk.new_monitor()
    desk.open("live:1", "A", stop_loss="1.08")
    desk.pend("live:1", "P", "BUY_STOP", "1.09")
    assert fired(desk, monitor) == []
    desk.do("stop_loss", "live:1", order_id="A", stop_loss="1.07")
    desk.do("modify", "live:1", order_id="P", order_price="1.1")
    assert fired(desk, monitor) == []
    desk.quote("1.075", "1.0751")
    assert fired(desk, monitor) == []
    desk.quote("1.095", "1.0951")
    assert fired(desk, monitor) == []
    desk.do("stop_loss", "live:1", order_id="A")
    desk.do("cancel", "live:1", order_id="P")
    assert fired(desk, monitor) == []
    assert monitor.count == 0
    desk.quote("1.0", "1.2")
    assert fired(desk, monitor) == []


def test_what_is_reached_already_when_a_monitor_starts_fires(desk: Desk) -> None:
    desk.open("live:1", "A", stop_loss="1.08")
    desk.quote("1.07", "1.0701")
    before = desk.client.xlen("copyrisk:commands")
    desk.new_monitor()
    assert desk.client.xlen("copyrisk:commands") == before + 1


def test_two_monitors_fire_twice_and_it_happens_once(desk: Desk) -> None:
    desk.open("live:1", "A", stop_loss="1.08")
    desk.pend("live:1", "P", "BUY_LIMIT", "1.08")
    both = [desk.new_monitor(), desk.new_monitor()]
    desk.quote("1.07", "1.0701")
    for monitor in both:
        assert len(step(desk, monitor)) == 2
    desk.settle()
    assert len(desk.events(event="done", order_id="A")) == 2  # opened, closed
    assert len(desk.events(event="done", order_id="P")) == 2
    assert desk.balance("live:1") == Decimal("8545.00")
    assert_books(desk)


def test_a_command_that_got_lost_is_sent_again(desk: Desk) -> None:
    desk.open("live:1", "A", stop_loss="1.08")
    monitor = desk.new_monitor()
    desk.quote("1.07", "1.0701")
    assert fired(desk, monitor) == [("A", "stop_loss")]
    desk.client.delete("copyrisk:commands")
    until(lambda: monitor.step(0.01) == 1)
    desk.workers._consumer.join()
    desk.settle()
    assert desk.data("A")["order_status"] == "CLOSED"


@pytest.mark.parametrize(
    "quote",
    [
        {"bid": "1.07", "ask": "1.0701", "ts": 31_000},
        {"bid": "1.07", "ask": "1.0701", "ts": -31_000},
        {"bid": "1.2", "ask": "1.07", "ts": 0},
        {"bid": "1.07", "ask": None, "ts": 0},
        {"bid": None, "ask": "1.2", "ts": 0},
        {"bid": "1.07", "ask": "1.0701", "ts": None},
        {"bid": "0", "ask": "1.2", "ts": 0},
        {"bid": "-1", "ask": "1.2", "ts": 0},
        {"bid": "nan", "ask": "inf", "ts": 0},
        {"bid": "1e-3", "ask": "1.2", "ts": 0},
        {"bid": b"\xff", "ask": "1.2", "ts": 0},
    ],
    ids=str,
)
def test_a_quote_that_is_not_known_fires_nothing(desk: Desk, quote: dict[str, Any]) -> None:
    desk.open("live:1", "A", stop_loss="1.08", take_profit="1.15")
    desk.open("live:1", "B", "SELL", stop_loss="1.15", take_profit="1.08")
    desk.pend("live:1", "P", "BUY_LIMIT", "1.08")
    monitor = desk.new_monitor()
    desk.client.delete("market:EURUSD")
    said = {name: value for name, value in quote.items() if value is not None}
    if "ts" in said:
        said["ts"] = now_ms() - said["ts"]
    desk.client.hset("market:EURUSD", mapping=said)
    assert fired(desk, monitor) == []
    desk.quote("1.07", "1.0701")
    assert sorted(fired(desk, monitor)) == [("A", "stop_loss"), ("B", "take_profit"), ("P", "pending")]


def test_a_closed_market_fires_nothing(redis_server: Any) -> None:
    import time

    desk = Desk(redis_server)
    desk.account("live:1")
    desk.open("live:1", "A", stop_loss="1.08")
    other = "Tue" if time.strftime("%a") == "Mon" else "Mon"
    closed = Desk(
        redis_server, market__always_open=False, market__week_open=f"{other} 00:00", market__week_close=f"{other} 00:01"
    )
    monitor = closed.new_monitor()
    desk.quote("1.07", "1.0701")
    assert fired(desk, monitor) == []
    assert fired(desk, desk.new_monitor()) == []  # it fired as it started
    assert desk.client.xlen("copyrisk:commands") == 1


# ---- margin


def test_a_triggered_order_without_margin_is_rejected_once(desk: Desk) -> None:
    desk.account("live:1", balance="2000")
    desk.pend("live:1", "P", "BUY_STOP", "1.085")
    desk.open("live:1", "A")
    both = [desk.new_monitor(), desk.new_monitor()]
    desk.quote("1.085", "1.08505")
    for monitor in both:
        assert fired(desk, monitor) == [("P", "pending")]
    desk.settle()
    data = desk.data("P")
    assert (data["order_status"], data["execution_status"], data["reason"]) == (
        *("REJECTED", "REJECTED", "insufficient_margin"),
    )
    (rejected,) = [event for event in desk.events(order_id="P", type="trigger") if event["event"] == "done"]
    assert rejected["code"] == "ok"
    assert_books(desk)
    for monitor in both:
        assert fired(desk, monitor) == []


def resting(desk: Desk, balance: str) -> dict[str, str]:
    """A pending order that rests at the provider; returns its request."""
    desk.account("live:2", "barclays", balance=balance)
    assert desk.pend("live:2", "P", "BUY_LIMIT", "1.08")["code"] == "ok"
    desk.reported(desk.request(), "accepted", 1)
    return desk.request()


def test_a_pending_order_at_the_provider_is_taken_back_once_when_margin_is_gone(desk: Desk) -> None:
    placing = resting(desk, "2000")
    desk.tick()
    both = [desk.new_monitor(), desk.new_monitor()]
    for monitor in both:
        assert fired(desk, monitor) == []
    desk.client.hset("user:{live:2}:config", "wallet_balance", "1000")
    desk.tick()
    for monitor in both:
        until(lambda monitor=monitor: monitor.step(0.01) > 0)  # type: ignore[misc]
    desk.settle()
    cancels = [request for request in desk.requests() if request["action"] == "cancel"]
    assert [cancel["target"] for cancel in cancels] == [placing["request_id"]]
    assert desk.statuses("live:2", "P")[0] == "PENDING-CANCEL"
    desk.reported(desk.request(), "accepted", 1)
    desk.reported(placing, "cancelled", 2, reason="by request")
    assert (desk.data("P")["order_status"], desk.data("P")["reason"]) == ("CANCELLED", "insufficient_margin")
    assert fired(desk, both[0]) == []


def test_what_the_portfolio_does_not_know_takes_nothing_back(desk: Desk) -> None:
    resting(desk, "2000")
    desk.tick()
    monitor = desk.new_monitor()
    desk.client.hset("user:{live:2}:config", "wallet_balance", "abc")
    desk.client.hset("user_portfolio:{live:2}", mapping={"equity": "0.0", "calc_status": "error"})
    desk.client.hset("copyrisk:tick", "ts", now_ms())
    assert fired(desk, monitor) == []
    desk.client.hset("user_portfolio:{live:2}", mapping={"calc_status": "ok"})
    desk.client.hset("copyrisk:tick", "ts", now_ms() - 60_000)  # the daemon stands still
    assert fired(desk, monitor) == []
    desk.client.hset("user:{live:2}:config", "wallet_balance", "2000")
    desk.client.hset("copyrisk:tick", "ts", now_ms())  # the portfolio is wrong: the worker decides on exact figures
    until(lambda: monitor.step(0.01) > 0)
    desk.settle()
    assert desk.statuses("live:2", "P")[0] == "PENDING"
    assert [request["action"] for request in desk.requests()] == ["place"]


# ---- hashes that make no sense

ODD: list[tuple[str | bytes, Any]] = [
    ("order_triggers:X", {"symbol": "EURUSD"}),
    ("order_triggers:X", {"symbol": "{", "order_type": "BUY", "user_type": "live", "user_id": "1", "stop_loss": "1"}),
    (
        "order_triggers:X",
        {"symbol": "EURUSD", "order_type": "BUY", "user_type": "live", "user_id": "1", "order_price_compare": "1.2"},
    ),
    (
        "order_triggers:X",
        {"symbol": "EURUSD", "order_type": "BUY", "user_type": "live", "user_id": "1", "stop_loss": "1e400"},
    ),
    (
        "order_triggers:X",
        {"symbol": "EURUSD", "order_type": "HOLD", "user_type": "live", "user_id": "1", "stop_loss": "2"},
    ),
    (
        "order_triggers:X",
        {"symbol": "EURUSD", "order_type": "BUY", "user_type": "live", "user_id": "1}:{live:2", "stop_loss": "2"},
    ),
    ("order_triggers:X}\n{", {"symbol": "EURUSD", "order_type": "BUY", "user_type": "live", "user_id": "1"}),
    (b"order_triggers:\xff\x00", {b"symbol": b"\xff"}),
    ("order_triggers:" + "X" * 500, {"symbol": "EURUSD", "stop_loss": "2"}),
    ("order_triggers:", {"symbol": "EURUSD", "stop_loss": "2"}),
    ("order_triggers:X", "text"),
    ("market:EURUSD:x", {"bid": "1"}),
    (b"market:\xff", {"bid": "1"}),
    ("market:XAUUSD", "text"),
    ("groups:{Standard}:XAUUSD", "text"),
    ("user_portfolio:{live:2}", "text"),
    ("copyrisk:tick", "text"),
]


@pytest.mark.parametrize("first", [True, False], ids=["before it starts", "while it watches"])
@pytest.mark.parametrize(("key", "said"), ODD, ids=str)
def test_one_hash_that_makes_no_sense_stops_no_other(desk: Desk, key: Any, said: Any, first: bool) -> None:
    resting(desk, "2000")
    desk.tick()
    desk.open("live:1", "A", stop_loss="1.08")
    gold = {"symbol": "XAUUSD", "order_type": "BUY", "user_type": "live", "user_id": "1", "stop_loss": "1"}
    desk.client.hset("order_triggers:GOLD", mapping=gold)
    monitor = None if first else desk.new_monitor()
    desk.client.delete(key)
    if isinstance(said, dict):
        desk.client.hset(key, mapping=said)
    else:
        desk.client.set(key, said)
    monitor = monitor or desk.new_monitor()
    step(desk, monitor)
    desk.quote("1.079", "1.0791")
    assert ("A", "stop_loss") in fired(desk, monitor)


# ---- faults


@pytest.mark.parametrize("point", ["monitor.fired", "monitor.sent"])
@pytest.mark.fault
@pytest.mark.slow
def test_a_monitor_that_is_killed_loses_and_repeats_nothing(bundled_server: Any, point: str) -> None:
    desk = Desk(bundled_server)
    desk.account("live:1")
    for number in range(3):
        desk.open("live:1", f"A{number}", stop_loss="1.08")
    desk.pend("live:1", "P", "BUY_LIMIT", "1.08")
    desk.quote("1.07", "1.0701")
    with process(desk.server.url, "monitors", CRASH_AT=point) as killed:
        assert killed.wait(20) == -signal.SIGKILL
    assert desk.waiting() == (4 if point == "monitor.sent" else 0)
    with process(desk.server.url, "monitors"):
        for order_id, status in (("A0", "CLOSED"), ("A1", "CLOSED"), ("A2", "CLOSED"), ("P", "OPEN")):
            until(lambda order_id=order_id, status=status: _is(desk, order_id, status), 20)  # type: ignore[misc]
    desk.settle()
    assert desk.balance("live:1") == Decimal("5635.00")
    assert len(desk.events(event="done")) == 8
    assert_books(desk)
    desk.close()


def _is(desk: Desk, order_id: str, status: str) -> bool:
    desk.settle()
    desk.quote("1.07", "1.0701")
    return desk.data(order_id)["order_status"] == status


def test_a_monitor_whose_connection_breaks_reads_everything_anew(desk: Desk) -> None:
    desk.open("live:1", "A", stop_loss="1.08")
    monitor = desk.new_monitor()
    desk.client.client_kill_filter(_type="normal", skipme=True)
    desk.client.client_kill_filter(_type="pubsub", skipme=True)
    desk.quote("1.07", "1.0701")
    import threading

    stop = threading.Event()
    running = threading.Thread(target=monitor.run, args=(stop,))
    running.start()
    try:
        until(lambda: desk.client.xlen("copyrisk:commands") > 0)
    finally:
        stop.set()
        running.join()
    said = decoded(desk.client.xrange("copyrisk:commands")[0][1])
    assert (said["order_id"], said["trigger"], said["trigger_price"]) == ("A", "stop_loss", "1.08")


def test_a_server_that_does_not_report_is_read_again_and_again(desk: Desk) -> None:
    desk.open("live:1", "A", stop_loss="1.08")
    monitor = desk.new_monitor()
    monitor._watch.tracks = False
    desk.quote("1.07", "1.0701")
    until(lambda: monitor.step(0.01) == 1)
