"""The desk's book: what it says against slow twins; its process, which is killed, stopped, and left alone."""

import asyncio
import contextlib
import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import layout
from copyrisk.api import desk as desk_module
from copyrisk.api import desk_process
from copyrisk.api.answers import ApiError
from copyrisk.api.desk import WAITING_LIMIT, Desk, options_of
from copyrisk.api.desk_book import DeskBook
from copyrisk.api.summary import (
    CLOSEST,
    EDGES_PCT,
    WINDOW_MS,
    ReplicationWindow,
    cascade_line,
    figures_of_book,
    halted,
    rounded,
    state_name,
    tick_facts,
)
from copyrisk.book import Book
from copyrisk.cascade import Cascade, Stage, Standing, cascade_facts
from copyrisk.census import Census
from copyrisk.daemon import make_engine
from copyrisk.embedded import EmbeddedServer
from copyrisk.errors import RowCode, StoreUnavailable, reason_name
from copyrisk.kills import NO_KILLS, Kill, Kills, unreadable_switch
from copyrisk.rules import ValuationRules
from copyrisk.store.connection import connect
from copyrisk.store.tallies import BUCKETS_MS
from copyrisk.terms import AccountType, LadderState
from tests.backoffice import BackOffice, now_ms
from tests.trading import settings_for

FIGURE_PARTS = ("accounts", "totals", "histogram", "closest", "unknown")
LEVELS = st.floats(-500.0, 3_000.0) | st.sampled_from([float(edge) for edge in EDGES_PCT])
ROWS = st.tuples(
    st.sampled_from(AccountType),
    st.sampled_from(LadderState),
    LEVELS,
    st.floats(20.0, 120.0),
    st.floats(-1e9, 1e9),
    st.sampled_from([RowCode.QUOTE_STALE, RowCode.ACCOUNT_MISSING]),
)


def book_of(rows: list[Any]) -> tuple[Book, Any]:
    """A book without orders, and figures as they are given."""
    book = Book(ValuationRules())
    numbers = book.ensure_accounts(f"{row[0]}:{i}".encode() for i, row in enumerate(rows))
    figures = np.zeros(len(book.accounts), layout.FIGURES)
    for row, (_, state, level, warning, equity, why) in zip(numbers.tolist(), rows, strict=True):
        is_known = state is not LadderState.STATE_UNKNOWN
        figures[row]["state"], figures[row]["code"] = state, RowCode.OK if is_known else why
        book.accounts[row]["warning_level_pct"], book.accounts[row]["critical_level_pct"] = warning, warning / 2
        on_ladder = is_known and state is not LadderState.NO_MARGIN
        figures[row]["margin_level_pct"] = level if on_ladder else math.nan
        for name, amount in (("equity", equity), ("used_margin_executed", abs(equity) / 7), ("open_pnl", -equity / 3)):
            figures[row][name] = amount if is_known else math.nan
    return book, figures


# ---- pure parts


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, max_size=60))
def test_the_figures_are_those_of_counting_one_by_one(rows: list[Any]) -> None:
    book, figures = book_of(rows)
    found = figures_of_book(book, figures, Census(book))
    counted = Counter((kind.value, state_name(state)) for kind, state, *_ in rows)
    assert found["accounts"]["total"] == len(rows)
    for kind in AccountType:
        for state in LadderState:
            assert found["accounts"]["by_type"][kind.value][state_name(state)] == counted[kind.value, state_name(state)]
    known = [row for row in rows if row[1] is not LadderState.STATE_UNKNOWN]
    money = [row for row in known if row[0] is not AccountType.DEMO]
    assert found["totals"]["equity_usd"] == pytest.approx(sum(row[4] for row in money), rel=1e-9, abs=0.02)
    assert found["totals"]["used_margin_usd"] == pytest.approx(
        sum(abs(row[4]) / 7 for row in money), rel=1e-9, abs=0.02
    )
    ladder = [(i, row) for i, row in enumerate(rows) if row[1] > LadderState.NO_MARGIN]
    bins = [0] * (len(EDGES_PCT) + 1)
    for _, row in ladder:
        bins[sum(row[2] >= edge for edge in EDGES_PCT)] += 1
    assert found["histogram"] == {"edges_pct": list(EDGES_PCT), "counts": bins}
    left = sorted(row[2] - (row[3] if row[1] is LadderState.HEALTHY else row[3] / 2) for _, row in ladder)
    assert len(found["closest"]) == min(len(ladder), CLOSEST)
    told = [
        one["margin_level_pct"] - one["warning_level_pct" if one["state"] == "healthy" else "critical_level_pct"]
        for one in found["closest"]
    ]
    assert told == pytest.approx(left[:CLOSEST], abs=0.021)
    assert len({one["account"] for one in found["closest"]}) == len(told)
    assert found["unknown"] == dict(Counter(reason_name(row[5]) for row in rows if row not in known))
    json.dumps(found, allow_nan=False)


def test_nothing_is_written_as_a_number_that_is_none() -> None:
    assert [rounded(x) for x in (math.nan, math.inf, -math.inf, -0.001, 1.005)] == [None, None, None, 0.0, 1.0]
    assert str(rounded(-0.001)) == "0.0"


def test_what_a_tick_said() -> None:
    said = {"ts": "1000", "tick": "7", "duration_ms": "12.5", "late_ticks": "3", "period_ms": "200"}
    assert tick_facts(said, 1_250) == {
        "ts": 1000,
        "age_ms": 250,
        "duration_ms": 12.5,
        "late_ticks": 3,
        "period_ms": 200,
    }
    assert tick_facts({"ts": "1000", "duration_ms": "nan"}, 900) == {
        "ts": 1000,
        "age_ms": 0,
        "duration_ms": None,
        "late_ticks": None,
        "period_ms": None,
    }
    assert tick_facts({}, 1_000) is None and tick_facts({"ts": "1e400"}, 1_000) is None


def test_replication_is_told_of_the_last_minute() -> None:
    window = ReplicationWindow()
    assert window.facts(None)["p99_ms"] is None
    first = {"orders": 5, "followers": 50, "copied": 45, "failed": 1, "within_ms:10": 45}
    window.take(0, first)
    assert [window.facts(None)[name] for name in ("events", "copies", "skipped", "failed")] == [0, 0, 0, 0]
    window.take(
        30_000,
        {"orders": 7, "followers": 70, "copied": 60, "failed": 2, "within_ms:10": 59, "within_ms:inf": 1, "new": 1},
    )
    assert window.facts(9) == {
        "events": 2,
        "copies": 15,
        "skipped": 4,
        "failed": 1,
        "p50_ms": 10,
        "p99_ms": None,
        "slow_copies": 1,
        "last_event_ms": 9,
    }
    for second in range(31, 31 + WINDOW_MS // 1000):
        window.take(second * 1000, {"orders": 7, "followers": 70, "copied": 60})
    assert window.facts(9)["events"] == 0
    window.take(200_000, {"orders": 1, "copied": 1, "within_ms:5": 1})  # somebody took the counts away
    assert window.facts(9)["events"] == 0
    assert len(window._seen) == 1
    assert 5_000 in BUCKETS_MS


def test_cascades_and_kills() -> None:
    standings = {"1": Standing(Stage.DONE), "2": Standing(), "3": Standing(Stage.FAILED, code="gone")}
    running = Cascade("c", "m", {}, 5, standings)
    assert cascade_line(running) == {
        "id": "c",
        "master": "m",
        "state": "running",
        "started_ms": 5,
        "finished_ms": None,
        "followers": 3,
        "done": 1,
        "flat": 0,
        "failed": 1,
    }
    assert cascade_line(running).items() <= cascade_facts(running).items()
    said = {"followers": 3, "done": 1, "flat": 1, "failed": "x"}
    ended = replace(running, standings={}, finished_ms=9, summary=said)
    assert cascade_line(ended) == {
        "id": "c",
        "master": "m",
        "state": "ended",
        "started_ms": 5,
        "finished_ms": 9,
        **said,
        "failed": 0,
    }
    assert halted(NO_KILLS) == [] and halted(unreadable_switch("x")) == ["all"]
    assert halted(Kills(symbols={"EURUSD": Kill("symbol:EURUSD")})) == ["symbol:EURUSD"]


# ---- a book on a server


def client_of(url: str) -> Any:
    return connect(url, connect_timeout_ms=2_000, reply_timeout_ms=5_000)


@contextlib.contextmanager
def desk_book(url: str, **flags: object) -> Iterator[DeskBook]:
    client = client_of(url)
    book = DeskBook(client, options_of(settings_for(url, **flags), url))
    try:
        yield book
    finally:
        book.close()
        client.close()


def test_it_says_what_the_server_holds(redis_server: Any) -> None:
    with redis_server.client() as raw, client_of(redis_server.url) as client, desk_book(redis_server.url) as book:
        office = BackOffice(raw)
        office.eurusd_account("live:1")
        office.account("demo:2")
        office.account("strategy_provider:3", leverage="none")
        book.look()
        said = book.summary()
        assert said["tick"] is None and said["halted"] == [] and said["cascades"] == []
        assert said["replication"]["last_event_ms"] is None and said["book_age_ms"] < 60_000
        engine = make_engine(client, settings_for(redis_server.url), acts=False)
        engine.tick()
        assert book.summary()["tick"]["duration_ms"] is None  # how long the first one took is not known yet
        report = engine.tick()
        engine.close()
        record = raw.hgetall("copyrisk:tick")
        assert {name: record[name] for name in (b"tick", b"accounts", b"period_ms", b"late_ticks")} == {
            b"tick": b"2",
            b"accounts": b"3",
            b"period_ms": b"200",
            b"late_ticks": b"0",
        }
        said = book.summary()
        assert said["tick"] | {"age_ms": 0, "duration_ms": 0} == {
            "ts": report.ts_ms,
            "age_ms": 0,
            "duration_ms": 0,
            "late_ticks": 0,
            "period_ms": 200,
        }
        assert Decimal(record[b"duration_ms"].decode()) > 0
        (line,) = said["closest"]
        portfolio = office.portfolio("live:1")
        assert line["equity_usd"] == float(portfolio["equity"]) == 10_050.0
        assert line["margin_level_pct"] == float(portfolio["margin_level"])
        assert said["unknown"] == {"leverage_invalid": 1} and said["accounts"]["total"] == 3
        raw.hset("copyrisk:kills", "symbol:EURUSD", "{}")
        raw.xadd("copyrisk:replications", {"a": "b"}, id="1700000000000-0")
        raw.set("copyrisk:{cutoff}:cascades", "no hash")
        raw.hset("copyrisk:replication:", "orders", "2")
        said = book.summary()
        assert said["halted"] == ["symbol:EURUSD"] and said["cascades"] is None  # one part does not hide the others
        assert said["replication"]["last_event_ms"] == 1_700_000_000_000


def test_a_book_that_is_too_old_says_nothing() -> None:
    with EmbeddedServer.start() as server, desk_book(server.url, api__desk_max_age_ms=60_000) as book:
        with client_of(server.url) as client:
            BackOffice(client).eurusd_account("live:1")
        book.look()
        assert book.summary()["accounts"]["total"] == 1
        assert book.good_until_s() <= time.monotonic() + 60.0
        server.stop()
        with pytest.raises(StoreUnavailable):
            book.look()
        assert book.summary()["tick"] is None  # the server is away; the figures are not too old yet
        assert book.summary()["accounts"] is not None
        book._read_s -= 60.0
        said = book.summary()
        assert [said[part] for part in FIGURE_PARTS] == [None] * len(FIGURE_PARTS)
        assert said["book_age_ms"] >= 60_000
        with pytest.raises(StoreUnavailable) as refused:
            book.answer("ladder", {})
        assert refused.value.code == "book_stale"


# ---- the process


def test_it_ends_when_nobody_listens_any_more(bundled_server: Any) -> None:
    ours, its = socket.socketpair()
    with ours, its, desk_book(bundled_server.url) as book:
        serving = threading.Thread(target=desk_process.serve, args=(its, book, 0.05))
        serving.start()
        heads = [desk_process.HEADER.unpack(desk_process._take_exactly(ours, desk_process.HEADER.size) or b"")]
        assert heads[0][1:3] == (desk_process.SUMMARY, 1)
        ours.close()
        serving.join(10.0)
        is_left = serving.is_alive()
    assert not is_left


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def desk_on(url: str, **flags: object) -> AsyncIterator[Desk]:
    desk = Desk(settings_for(url, api__desk_refresh_ms=200, **flags), url)
    await desk.start()
    try:
        yield desk
    finally:
        await desk.stop()


async def until(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.01)


async def code_of(asked: Awaitable[Any]) -> str:
    with pytest.raises(ApiError) as refused:
        await asked
    return refused.value.code


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as told:
        return told.read().rpartition(")")[2].split()[0] != "Z"
    return False


def test_the_process_is_followed_and_started_again(bundled_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPYRISK_API_SECRET", "not-for-the-child" * 3)
    monkeypatch.setattr(desk_module, "_PAUSE_S", 0.05)

    async def test() -> None:
        async with desk_on(bundled_server.url) as desk:
            assert await code_of(desk.summary()) == "desk_unavailable" and not desk.is_up
            serial, body = await desk.next(0)
            assert json.loads(body)["accounts"]["total"] == 1 and desk.latest is not None
            office.account("live:2")
            while json.loads(body)["accounts"]["total"] != 2:
                serial, body = await desk.next(serial)
            first = desk.pid
            assert first is not None
            with open(f"/proc/{first}/environ", "rb") as told:
                assert b"COPYRISK" not in told.read()
            os.kill(first, signal.SIGKILL)
            await until(lambda: desk.pid != first)
            assert await code_of(desk.summary()) == "desk_unavailable"
            assert await code_of(desk.ask("ladder")) == "desk_unavailable"
            after, body = await desk.next(serial)
            assert after > serial and json.loads(body)["accounts"]["total"] == 2
            last = desk.pid
        assert last is not None and not is_alive(last) and desk.pid is None

    with bundled_server.client() as raw:
        office = BackOffice(raw)
        office.eurusd_account("live:1")
        run(test)


def test_a_process_that_stands_still_is_not_waited_for(bundled_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "ASK_S", 0.2)

    async def test() -> None:
        async with desk_on(bundled_server.url, api__desk_max_age_ms=600) as desk:
            await desk.next(0)
            assert desk.pid is not None
            os.kill(desk.pid, signal.SIGSTOP)
            asked = [asyncio.create_task(desk.ask("ladder")) for _ in range(WAITING_LIMIT)]
            await asyncio.sleep(0)
            assert await code_of(desk.ask("ladder")) == "too_busy"
            assert {await code_of(one) for one in asked} == {"desk_unavailable"}
            await until(lambda: desk.latest is None)  # it was good for some time, and is not sent as if it still were
            assert await code_of(desk.summary()) == "desk_unavailable"
            serial = desk._serial
            os.kill(desk.pid, signal.SIGCONT)
            await desk.next(serial)
            assert desk.is_up and not desk._asked

    run(test)


def test_the_process_ends_with_its_parent(bundled_server: Any) -> None:
    code = """
import asyncio, sys
from copyrisk.api.desk import Desk
from copyrisk.settings import load_settings

async def main():
    desk = Desk(load_settings(None, {}, {}), sys.argv[1])
    await desk.start()
    await desk.next(0)
    print(desk.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code, bundled_server.url], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    deadline_s = time.monotonic() + 10.0
    while is_alive(child):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_what_is_handed_over_is_no_secret() -> None:
    told = settings_for("redis://localhost", api__host="secret.example")
    stored = pickle.dumps(options_of(told, "redis://localhost"))
    assert b"secret.example" not in stored and pickle.loads(stored).refresh_ms == 1_000
    assert now_ms() > 0
