"""Whole ticks against the bundled server, on the daemon's own grid of 200 ms, and how much one server holds."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.house import N_SYMBOLS, PERIOD_MS, House, house
from benchmarks.measure import Figure, load

SIZES = (1_000, 10_000, 40_000)
_TICKS = 50
_WARM_UP = 5
#: How many of the 64 symbols move before each tick.
MOVES = {"idle": 0, "one": 1, "all": N_SYMBOLS}
_TARGETS_MS = {("all", 10_000): 60.0, ("all", 40_000): 200.0, ("idle", 40_000): 5.0}
_COLD_S = {10_000: 0.5}
_CAPACITY = 30_000
_STEP = 1_000
_FIRST_GUESS = 40_000


@dataclass(frozen=True)
class Ticks:
    """Durations of one run, and how many accounts a tick valued and wrote (medians)."""

    ms: npt.NDArray[np.float64]
    valued: int
    written: int

    def percentile(self, percent: float) -> float:
        """Milliseconds."""
        return float(np.percentile(self.ms, percent))


def figures() -> Iterator[Figure]:
    """Tick times by number of accounts and of symbols that move, start, memory, and what one server holds."""
    for accounts in SIZES:
        with house(accounts) as there:
            yield from _start(there)
            for move in MOVES:
                done = run(there, move)
                target = _TARGETS_MS.get((move, accounts))
                name = f"{move}_{accounts}"
                yield Figure(f"tick_ms_p50_{name}", round(done.percentile(50), 2), "ms", load=load())
                p99 = round(done.percentile(99), 2)
                yield Figure(f"tick_ms_p99_{name}", p99, "ms", target=target, at_most=True, load=load())
                yield Figure(f"tick_valued_{name}", done.valued, "accounts", load=load())
    yield Figure("accounts_per_tick", capacity(), "accounts", target=_CAPACITY, load=load())


def _start(there: House) -> Iterator[Figure]:
    seconds, memory = start(there)
    target = _COLD_S.get(there.accounts)
    name = f"cold_start_s_{there.accounts}"
    yield Figure(name, round(seconds, 3), "s", target=target, at_most=target is not None, load=load())
    yield Figure(f"memory_bytes_per_account_{there.accounts}", round(memory / there.accounts), "bytes", load=load())


def start(there: House) -> tuple[float, int]:
    """Seconds of a first tick, which reads, values and writes everything, and the memory it takes for good."""
    gc.collect()
    before, started = _resident_bytes(), time.perf_counter()
    engine = there.engine()
    there.check(engine.tick())
    seconds = time.perf_counter() - started
    gc.collect()
    return seconds, _resident_bytes() - before


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(there: House, move: str, ticks: int = _TICKS) -> Ticks:
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


def capacity() -> int:
    """The most accounts, all of them moving, whose ticks stay below their period at the 99th percentile."""
    accounts = _FIRST_GUESS
    while accounts > 0:
        with house(accounts) as there:
            p99 = run(there, "all").percentile(99)
        if p99 < PERIOD_MS:
            return accounts
        # In proportion, and one step at least.
        accounts = min(accounts - _STEP, int(accounts * PERIOD_MS / p99) // _STEP * _STEP)
    return 0
