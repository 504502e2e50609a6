"""Whole ticks against the bundled server, on the daemon's own grid of 200 ms, and how much one server holds."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.house import N_SYMBOLS, PERIOD_MS, House, engine_on, house
from benchmarks.measure import Figure, load
from copyrisk.store.connection import connect

_WARM_UP = 5
#: How many of the 64 symbols move before each tick.
MOVES = {"idle": 0, "one": 1, "all": N_SYMBOLS}
_TARGETS_MS = {("p99", "all", 10_000): 60.0, ("p99", "all", 40_000): 200.0, ("p50", "idle", 40_000): 5.0}
_COLD_S = {10_000: 0.5}
_CAPACITY = 30_000
_STEP, _NEVER, _MARGIN = 1_000, 1_000_000, 0.97


@dataclass(frozen=True)
class Plan:
    """How much to measure: sizes, ticks of each run, and where and how often to look for the most accounts."""

    sizes: tuple[int, ...]
    ticks: int
    first_guess: int
    tries: int


FULL = Plan((1_000, 10_000, 40_000), 50, 50_000, 3)
QUICK = Plan((200, 1_000), 4, 2_000, 1)


@dataclass(frozen=True)
class Ticks:
    """Durations of one run, and how many accounts a tick valued and wrote (medians)."""

    ms: npt.NDArray[np.float64]
    valued: int
    written: int

    def percentile(self, percent: float) -> float:
        """Milliseconds."""
        return float(np.percentile(self.ms, percent))


def figures(plan: Plan = FULL) -> Iterator[Figure]:
    """Tick times by number of accounts and of symbols that move, start, memory, and what one server holds."""
    for accounts in plan.sizes:
        with house(accounts) as there:
            yield from _start(there)
            for move in MOVES:
                done = run(there, move, plan.ticks)
                name = f"{move}_{accounts}"
                for percent in (50, 99):
                    found, target = round(done.percentile(percent), 2), _TARGETS_MS.get((f"p{percent}", move, accounts))
                    yield Figure(
                        f"tick_ms_p{percent}_{name}",
                        found,
                        "ms",
                        target=target,
                        at_most=target is not None,
                        load=load(),
                    )
                yield Figure(f"tick_valued_{name}", done.valued, "accounts", load=load())
    yield Figure("accounts_per_tick", capacity(plan), "accounts", target=_CAPACITY, load=load())


def _start(there: House) -> Iterator[Figure]:
    seconds, memory = start(there)
    target = _COLD_S.get(there.accounts)
    name = f"cold_start_s_{there.accounts}"
    yield Figure(name, round(seconds, 3), "s", target=target, at_most=target is not None, load=load())
    yield Figure(f"memory_bytes_per_account_{there.accounts}", round(memory / there.accounts), "bytes", load=load())


def start(there: House) -> tuple[float, int]:
    """Seconds of a first tick, which reads, values and writes everything, and the bytes of memory it takes for good.

    In a process of its own: this one's memory has room from before.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        return apart.submit(_first_tick, there.url, there.accounts).result()


def _first_tick(url: str, accounts: int) -> tuple[float, int]:
    client = connect(url, connect_timeout_ms=1000, reply_timeout_ms=10_000)
    client.ping()
    gc.collect()
    before, started = _resident_bytes(), time.perf_counter()
    engine = engine_on(client)
    report = engine.tick()
    seconds = time.perf_counter() - started
    if report.accounts != accounts or report.written != accounts:
        raise AssertionError(f"a first tick that did not do everything: {report}")
    gc.collect()
    return seconds, _resident_bytes() - before


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(there: House, move: str, ticks: int) -> Ticks:
    """Ticks on the grid; before each of them the quotes get fresh times and so many of them other prices."""
    engine, times_ms, valued, written = there.engine(), [], [], []
    for report in engine.run(threading.Event(), ticks=1 + _WARM_UP + ticks):
        there.check(report)
        if report.number > 1 + _WARM_UP:
            times_ms.append(report.duration_ms)
            valued.append(report.valued)
            written.append(report.written)
        there.move(MOVES[move])
    return Ticks(np.array(times_ms), int(np.median(valued)), int(np.median(written)))


def capacity(plan: Plan) -> int:
    """The most accounts found, all of them moving, whose ticks stay below their period at the 99th percentile."""
    held, failed, accounts = 0, _NEVER, plan.first_guess
    for _ in range(plan.tries):
        with house(accounts) as there:
            p99 = run(there, "all", plan.ticks).percentile(99)
        held, failed = (accounts, failed) if p99 < PERIOD_MS else (held, accounts)
        # In proportion, between what was held and what was not.
        guess = int(accounts * _MARGIN * PERIOD_MS / p99) // _STEP * _STEP
        accounts = min(max(guess, held + _STEP), failed - _STEP)
        if accounts <= held:
            break
    return held
