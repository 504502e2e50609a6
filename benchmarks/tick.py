"""Whole ticks against the bundled server: the demo's accounts, all quotes moving."""

import threading
from collections.abc import Iterator

import numpy as np

from benchmarks.measure import Figure, load
from copyrisk._core import LadderState
from copyrisk.book import Book
from copyrisk.demo.feed import SyntheticFeed, quote_commands
from copyrisk.demo.seed import seed
from copyrisk.embedded import EmbeddedServer
from copyrisk.engine import Engine
from copyrisk.hours import MarketHours
from copyrisk.rules import ValuationRules
from copyrisk.store.connection import connect
from copyrisk.store.pipe import Pipe

_SIZES = {1_000: 25, 10_000: 8}


def figures() -> Iterator[Figure]:
    """Tick times by number of accounts, and the first, cold tick."""
    for accounts, ticks in _SIZES.items():
        yield from _ticks(accounts, ticks)


def _ticks(accounts: int, ticks: int) -> Iterator[Figure]:
    with EmbeddedServer.start() as server:
        client = connect(server.url, connect_timeout_ms=1000, reply_timeout_ms=10_000)
        feed, pipe = SyntheticFeed(), Pipe(client)
        seed(pipe, accounts, feed.first())
        engine = Engine(client, Book(ValuationRules()), MarketHours(always_open=True), 10)
        steps, times_ms = feed.steps(), []
        for report in engine.run(threading.Event(), ticks=1 + ticks):
            if report.skipped or report.accounts != accounts or report.states[LadderState.STATE_UNKNOWN]:
                raise AssertionError(f"a tick that did not value every account: {report}")
            times_ms.append(report.duration_ms)
            pipe.exchange(quote_commands(next(steps)))
    cold_ms, *times_ms = times_ms
    p50, p99 = np.percentile(times_ms, [50, 99])
    yield Figure(f"tick_ms_p50_{accounts}", round(float(p50), 1), "ms", load=load())
    yield Figure(f"tick_ms_p99_{accounts}", round(float(p99), 1), "ms", load=load())
    yield Figure(f"cold_start_s_{accounts}", round(cold_ms / 1e3, 2), "s", load=load())
