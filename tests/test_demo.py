"""The demo: what it seeds is readable by the product, what it plays makes quotes, what it shows fits."""

import io
import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.live import Live

from copyrisk._core import LadderState
from copyrisk.book import Book
from copyrisk.demo.feed import ReplayFeed, SyntheticFeed
from copyrisk.demo.run import DemoOptions, run_demo
from copyrisk.demo.seed import seed
from copyrisk.demo.trades import Trades
from copyrisk.demo.view import LiveView, PlainView, closest_rows
from copyrisk.engine import Engine
from copyrisk.errors import ConfigError
from copyrisk.hours import MarketHours
from copyrisk.rules import ValuationRules
from copyrisk.settings import load_settings
from copyrisk.store.connection import connect
from copyrisk.store.pipe import Pipe


def pipe_to(server: Any) -> Pipe:
    return Pipe(connect(server.url, connect_timeout_ms=1000, reply_timeout_ms=5000))


ORDER = {
    "event": "done",
    "user_type": "live",
    "user_id": "7",
    "order": '{"order_type":"BUY","order_quantity":"0.2","symbol":"EURUSD","order_status":"CLOSED",'
    '"close_price":"1.08","net_profit":"-91.60","reason":"stop_loss"}',
}


def trades_of(server: Any, events: list[dict[str, str]]) -> Trades:
    for event in events:
        server.client().xadd("copyrisk:events", event)
    trades = Trades(pipe_to(server))
    trades.follow()
    return trades


@pytest.fixture
def engine(bundled_server: Any) -> Engine:
    seed(pipe_to(bundled_server), 300, SyntheticFeed().first())
    client = connect(bundled_server.url, connect_timeout_ms=1000, reply_timeout_ms=5000)
    made = Engine(client, Book(ValuationRules()), MarketHours(always_open=True), 200)
    report = made.tick()
    assert (report.accounts, report.states[LadderState.STATE_UNKNOWN]) == (300, 0)
    return made


def test_every_seeded_account_is_valued_and_some_are_in_trouble(engine: Engine) -> None:
    report = engine.tick()
    assert report.states[LadderState.HEALTHY] > 250
    assert report.states[LadderState.WARNING] + report.states[LadderState.CRITICAL] > 0
    kinds = {engine.book.account_at(row).type.value for row in engine.book.account_rows().tolist()}
    assert kinds == {"live", "demo", "strategy_provider", "copy_follower"}


def test_the_same_seed_writes_the_same_accounts(bundled_server: Any) -> None:
    def dump() -> dict[bytes, Any]:
        client = bundled_server.client()
        client.flushall()
        seed(pipe_to(bundled_server), 50, SyntheticFeed().first())
        return {
            key: client.hgetall(key)
            for key in sorted(client.keys("user*:config")) + sorted(client.keys("user_holdings*"))
        }

    assert dump() == dump()


def test_a_database_with_anything_in_it_is_refused(bundled_server: Any) -> None:
    bundled_server.client().set("x", "1")
    with pytest.raises(ConfigError) as failure:
        seed(pipe_to(bundled_server), 10, SyntheticFeed().first())
    assert failure.value.code == "demo_refused"
    assert bundled_server.client().dbsize() == 1


def test_the_walk_is_repeatable_and_makes_quotes() -> None:
    def played(number: int) -> list[Any]:
        return list(itertools.islice(SyntheticFeed(number).steps(), 200))

    assert played(1) == played(1)
    assert played(1) != played(2)
    for symbol, bid, ask in itertools.chain.from_iterable(played(1)):
        assert 0 < float(bid) < float(ask), symbol


def arrays(**changes: Any) -> dict[str, Any]:
    good = {
        "symbols": np.array(["EURUSD", "XAUUSD"]),
        "price_scale": np.array([100_000, 1_000]),
        "ts_ms": np.array([0, 50, 150, 90_000_000], np.int64),
        "symbol": np.array([0, 1, 0, 1], np.uint8),
        "bid": np.array([108_450, 2_410_100, 108_460, 2_411_000], np.int32),
        "ask": np.array([108_455, 2_410_450, 108_465, 2_411_300], np.int32),
    }
    return {**good, **changes}


def test_a_replay_keeps_time_shortens_gaps_and_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "quotes.npz"
    np.savez(path, **arrays())
    feed = ReplayFeed(path, speed=1.0)
    assert feed.first() == [("EURUSD", "1.08450", "1.08455"), ("XAUUSD", "2410.100", "2410.450")]
    steps = list(itertools.islice(feed.steps(), 60))
    assert [quote[0] for quote in steps[0]] == ["EURUSD", "XAUUSD"]
    assert steps[1] == [("EURUSD", "1.08460", "1.08465")]
    assert steps[51] == [("XAUUSD", "2411.000", "2411.300")]  # a day's gap has become five seconds
    assert steps[52] == steps[0]
    fast = list(itertools.islice(ReplayFeed(path, speed=100.0).steps(), 1))
    assert len(fast[0]) == 2  # conflated: the last of each symbol


@pytest.mark.parametrize(
    "changes",
    [
        {"bid": np.array([108_450, 0, 108_460, 1], np.int32)},
        {"ask": np.array([1, 2_410_450, 108_465, 2_411_300], np.int32)},
        {"ts_ms": np.array([5, 4, 3, 2], np.int64)},
        {"symbol": np.array([0, 1, 2, 1], np.uint8)},
        {"symbols": np.array(["EURUSD", "ABCDEF"])},
        {"symbols": np.array([], "U6"), "price_scale": np.array([], int)},
        {"bid": np.array([1.0, 2.0, 3.0, 4.0])},
        {"ts_ms": np.array([], np.int64)},
        {"price_scale": np.array([0, 1])},
    ],
)
def test_a_bad_replay_file_is_one_clear_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "quotes.npz"
    np.savez(path, **arrays(**changes))
    assert_refused(path)


def test_what_is_no_replay_file_at_all(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.npz")
    for name, content in (("text.npz", b"hello"), ("empty.npz", b""), ("cut.npz", b"PK\x03\x04 and then nothing")):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name)
    np.savez(tmp_path / "other.npz", x=np.ones(1))
    assert_refused(tmp_path / "other.npz")
    np.savez(tmp_path / "object.npz", **arrays(symbols=np.array([{}], object)))
    assert_refused(tmp_path / "object.npz")
    np.save(tmp_path / "single.npy", np.ones(3))
    assert_refused(tmp_path / "single.npy")


def assert_refused(path: Path) -> None:
    with pytest.raises(ConfigError) as failure:
        ReplayFeed(path)
    assert failure.value.code == "bad_replay_file"
    assert "\n" not in str(failure.value)


def test_the_closest_accounts_are_those_with_the_lowest_levels(engine: Engine) -> None:
    rows = closest_rows(engine, 10)
    levels = engine.figures["margin_level_pct"][engine.figures["state"] >= LadderState.HEALTHY]
    np.testing.assert_array_equal(engine.figures["margin_level_pct"][rows], np.sort(levels)[:10])


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_the_live_view_fits_its_terminal(bundled_server: Any, engine: Engine, width: int, height: int) -> None:
    trades = trades_of(bundled_server, [ORDER] * 10)
    console = Console(width=width, height=height, force_terminal=True, color_system=None, file=io.StringIO())
    view = LiveView(Live(console=console, auto_refresh=False), trades)
    report = engine.tick()
    view._durations.append(report.duration_ms)
    with console.capture() as captured:
        console.print(view.picture(report, engine))
    lines = captured.get().splitlines()
    assert len(lines) <= height - 1
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for word in (
        "orders closed by stop loss 10",
        "300 accounts",
        "critical",
        "warning",
        "healthy",
        "no margin",
        "unknown",
        "p99",
        "late 0",
        "live:",
    ):
        assert word in text


def test_plain_lines_say_the_same_without_a_terminal(bundled_server: Any, engine: Engine) -> None:
    console = Console(file=io.StringIO(), width=60)
    PlainView(console, trades_of(bundled_server, [])).show(engine.tick(), engine)
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "300 accounts  unknown 0" in line
    assert "late 0" in line
    assert "orders: none yet" in line


def test_trades_are_told_as_they_happen(bundled_server: Any) -> None:
    trades = trades_of(bundled_server, [ORDER, {"event": "refused", "type": "open", "code": "market_closed"}])
    assert trades.counts == {"closed by stop loss": 1, "refused": 1}
    assert trades.latest[0] == "live:7  BUY 0.2 EURUSD at 1.08 closed by stop loss  -91.60 USD"
    assert trades.latest[1].endswith("open refused: market_closed")
    trades.follow()
    assert sum(trades.counts.values()) == 2


def test_the_demo_ends_by_itself(bundled_server: Any) -> None:
    console = Console(file=io.StringIO())
    settings = load_settings(None, {}, {"redis.url": bundled_server.url, "tick.period_ms": 50})
    assert run_demo(settings, DemoOptions(accounts=100, ticks=5), console, threading.Event()) == 0
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "seeded 100 accounts" in text
    assert "5 ticks" in text


@pytest.mark.slow
def test_real_quotes_are_replayed_where_the_file_is_there() -> None:
    path = Path(__file__).parent.parent.parent / "shared" / "data" / "quotes_2014-05.npz"
    if not path.exists():
        pytest.skip("the recorded quotes are not here")
    console = Console(file=io.StringIO())
    settings = load_settings(None, {}, {})
    options = DemoOptions(accounts=300, replay=path, speed=60.0, ticks=20)
    assert run_demo(settings, options, console, threading.Event()) == 0
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "300 accounts  unknown 0" in text
    assert "skipped 0" in text
