"""The loop: a steady grid, late ticks counted, a clean end; and what the daemon does over time."""

import os
import signal
import threading
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from copyrisk._core import LadderState
from copyrisk.book import Book
from copyrisk.embedded import EmbeddedServer
from copyrisk.engine import Engine
from copyrisk.hours import MarketHours
from copyrisk.rules import ValuationRules
from copyrisk.store import terms
from copyrisk.store.connection import connect
from tests.backoffice import BackOffice


def engine_on(url: str, period_ms: int = 50) -> Engine:
    client = connect(url, connect_timeout_ms=1000, reply_timeout_ms=1000)
    return Engine(client, Book(ValuationRules()), MarketHours(always_open=True), period_ms)


def test_the_grid_does_not_drift_and_late_ticks_are_counted_not_made_up(bundled_server: Any) -> None:
    engine, stop = engine_on(bundled_server.url), threading.Event()
    starts: list[float] = []
    for report in engine.run(stop, ticks=30):
        starts.append(time.monotonic())
        if report.number == 10:
            time.sleep(0.130)  # longer than two periods: two grid points are missed
    # Slots of the grid since the second tick; a noisy machine may add lateness, never take it away.
    slots = [round((moment - starts[1]) / 0.05) for moment in starts[1:]]
    assert slots == sorted(set(slots)), "two ticks in one slot: they piled up"
    assert slots[-1] >= 28 + 2
    assert slots[-1] - 28 <= report.late_ticks <= slots[-1] - 28 + 1
    offsets = [(moment - starts[1]) - slot * 0.05 for moment, slot in zip(starts[1:], slots, strict=True)]
    assert sorted(offsets)[len(offsets) // 2] < 0.02


def test_a_server_that_is_slow_makes_a_tick_late_which_is_said_once(bundled_server: Any) -> None:
    office = BackOffice(bundled_server.client())
    office.eurusd_account("live:1")
    engine, reports = engine_on(bundled_server.url), []
    with capture_logs() as lines:
        for report in engine.run(threading.Event(), ticks=6):
            reports.append(report)
            if report.number == 2:
                office.client.execute_command("CLIENT", "PAUSE", 200, "ALL")
    assert reports[2].duration_ms > 100
    assert reports[-1].late_ticks >= 2
    assert reports[-1].skipped is None
    late = [line for line in lines if line["event"] == "tick_late"]
    assert late and late[0]["tick"] == 3
    assert office.portfolio("live:1")["equity"] == "10050.0"


def test_stop_ends_the_wait_at_once(bundled_server: Any) -> None:
    engine, stop = engine_on(bundled_server.url, period_ms=60_000), threading.Event()
    ticks = engine.run(stop)
    next(ticks)
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    assert next(ticks, None) is None
    assert time.monotonic() - started < 5


def test_only_what_changed_is_written_and_everything_again_to_a_new_server(redis_server: Any) -> None:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1")
    office.account("live:2", wallet_balance="50")
    engine = engine_on(redis_server.url)
    assert engine.tick().written == 2
    assert engine.tick().written == 0
    office.quote("EURUSD", 1.085, 1.0851)
    assert engine.tick().written == 1
    office.account("live:2", wallet_balance="51")
    assert engine.tick().written == 1
    assert office.portfolio("live:2")["equity"] == "51.0"
    office.client.delete("user_portfolio:{live:1}", "user_portfolio:{live:2}")
    for victim in office.client.client_list():
        if victim["name"] == "copyrisk":
            office.client.client_kill_filter(_id=victim["id"])
    assert engine.tick().skipped
    assert engine.tick().written == 2


def test_accounts_come_and_go_and_a_new_one_in_an_old_row_is_written(redis_server: Any) -> None:
    office = BackOffice(redis_server.client())
    office.account("live:1", wallet_balance="100")
    engine = engine_on(redis_server.url)
    assert engine.tick().accounts == 1
    office.client.delete("user:{live:1}:config")
    assert engine.tick().accounts == 0
    office.account("live:2", wallet_balance="100")  # the same figures, the same row
    found = [engine.tick() for _ in range(3)]
    assert sum(report.written for report in found) == 1
    assert office.portfolio("live:2")["equity"] == "100.0"
    office.client.flushall()
    assert engine.tick().accounts == 0


def test_a_portfolio_that_cannot_be_written_is_tried_again_and_hurts_no_other(redis_server: Any) -> None:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1")
    office.account("live:2")
    office.client.set("user_portfolio:{live:1}", "in the way")
    engine = engine_on(redis_server.url)
    report = engine.tick()
    assert (report.written, report.refused) == (1, 1)
    assert engine.tick().refused == 1
    office.client.delete("user_portfolio:{live:1}")
    report = engine.tick()
    assert report.refused == 0
    assert office.portfolio("live:1")["equity"] == "10050.0"


def test_a_group_without_terms_for_a_symbol_uses_the_standard_ones(
    redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1", group="VIP")
    engine = engine_on(redis_server.url)
    engine.tick()
    assert office.portfolio("live:1")["used_margin"] == "1084.55"
    office.group("EURUSD", "VIP", contract_size="50000")
    engine.tick()
    assert office.portfolio("live:1")["used_margin"] == "542.27"
    office.group("EURUSD", contract_size="1000")
    engine.tick()
    assert office.portfolio("live:1")["used_margin"] == "542.27"
    office.client.delete("groups:{VIP}:EURUSD")
    engine.tick()
    assert office.portfolio("live:1")["degraded_fields"] == "instrument_missing:EURUSD"
    monkeypatch.setattr(terms, "_GRACE_S", 0.0)  # a minute has passed, and they are still gone
    engine.tick()
    assert office.portfolio("live:1")["used_margin"] == "10.85"
    office.group("EURUSD", "VIP", contract_size="50000")
    engine.tick()
    assert office.portfolio("live:1")["used_margin"] == "542.27"


def test_a_queued_order_reserves_margin_and_makes_no_profit(redis_server: Any) -> None:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1")
    office.order("live:1", "Q", order_status="QUEUED", execution_status="QUEUED", order_price="1.0")
    office.order("live:1", "P", order_status="PENDING", execution_status="PENDING", order_price="1.0")
    engine_on(redis_server.url).tick()
    portfolio = office.portfolio("live:1")
    assert (portfolio["used_margin"], portfolio["used_margin_all"], portfolio["open_pnl"]) == (
        "1084.55",
        "2169.1",
        "50.0",
    )


def test_an_unknown_reserve_is_never_written_as_a_number(redis_server: Any) -> None:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1")
    office.order("live:1", "Q", symbol="XAUUSD", order_status="QUEUED", execution_status="QUEUED", order_price="1.0")
    engine_on(redis_server.url).tick()
    portfolio = office.portfolio("live:1")
    assert (portfolio["calc_status"], portfolio["degraded_fields"]) == ("degraded", "instrument_missing:XAUUSD")
    assert portfolio["margin_level"] == "926.65"
    assert "used_margin_all" not in portfolio


def test_more_accounts_than_one_part_of_a_request_holds(redis_server: Any) -> None:
    client = redis_server.client()
    pipeline = client.pipeline(transaction=False)
    office = BackOffice(pipeline)
    office.group("EURUSD")
    office.quote("EURUSD", 1.0845, 1.08455)
    for number in range(1500):
        office.account(f"demo:{number}")
        office.order(f"demo:{number}", f"D{number}")
    pipeline.execute()
    engine = engine_on(redis_server.url)
    report = engine.tick()
    assert (report.accounts, report.orders, report.states[LadderState.HEALTHY], report.written) == (
        1500,
        1500,
        1500,
        1500,
    )


@pytest.mark.fault
def test_a_server_that_dies_and_comes_back_empty_is_survived(tmp_path: Any) -> None:
    server = EmbeddedServer.start()
    try:
        office = BackOffice(connect(server.url, connect_timeout_ms=1000, reply_timeout_ms=1000))
        office.eurusd_account("live:1")
        engine = engine_on(server.url)
        assert engine.tick().written == 1
        os.kill(server.pid, signal.SIGKILL)
        time.sleep(0.1)
        skipped = engine.tick().skipped
        assert skipped is not None and skipped.startswith("server_unreachable")
        assert engine.tick().skipped
    finally:
        server.stop()
