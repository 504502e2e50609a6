"""The headline figures of the valuation kernel."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import twins
from benchmarks.measure import Figure, load, paired, ratio
from benchmarks.workloads import SIZES, Workload, workload
from copyrisk.risk import fold_all

_ROUNDS = 15
#: Twin, name of its figure, and how many times as fast the kernel has to be.
_TWINS: tuple[tuple[str, Callable[[Workload], Callable[[], twins.Result]], float | None], ...] = (
    ("numpy_textbook", twins.numpy_textbook, 12.0),
    ("numpy_best", twins.numpy_best, 3.5),
    ("numba", twins.numba_folded, 2.0),
    ("numba_netted", twins.numba_netted, None),
)
_COPY_LIMIT = 1.6


def figures(rounds: int = _ROUNDS) -> Iterator[Figure]:
    """Measure everything, checking each result before its time counts."""
    yield from headline(rounds)
    yield from _of_workload("million_unnetted", "_unnetted", rounds // 2)
    yield _fold()


def headline(rounds: int) -> Iterator[Figure]:
    """The figures of one million positions in 200,000 accounts."""
    yield from _of_workload("million", "", rounds)


def _of_workload(name: str, suffix: str, rounds: int) -> Iterator[Figure]:
    work = workload(name)
    positions = len(work.orders)
    kernel = twins.kernel(work)
    kernel()
    runs: list[Callable[[], Any]] = [kernel]
    for _, prepare, _ in _TWINS:
        run = prepare(work)
        twins.check(run(), work.figures)
        runs.append(run)
    source = np.ones(work.bytes_touched, np.uint8)
    target = np.zeros_like(source)
    runs.append(lambda: np.copyto(target, source))
    times = paired(runs, rounds)
    yield Figure(
        f"kernel_ns_per_position{suffix}", round(float(np.median(times[:, 0])) / positions * 1e9, 3), "ns", load=load()
    )
    headline = not suffix
    for column, (twin, _, goal) in enumerate(_TWINS, 1):
        yield ratio(f"kernel_vs_{twin}{suffix}", twin, times[:, column], times[:, 0], target=goal if headline else None)
    yield ratio(
        f"kernel_vs_bandwidth{suffix}",
        "copy of the bytes touched",
        times[:, 0],
        times[:, -1],
        target=_COPY_LIMIT,
        at_most=True,
    )


def _fold() -> Figure:
    work = workload("million")
    accounts, orders = work.accounts.copy(), work.orders.copy()
    times = paired([lambda: fold_all(accounts, orders, work.instruments)], 5)
    per_order = float(np.median(times)) / (SIZES["million"].accounts * SIZES["million"].positions_each)
    return Figure("fold_ns_per_order", round(per_order * 1e9, 2), "ns", load=load())
