"""Timing on a noisy machine: interleaved pairs, medians, and an interval for every ratio."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_RESAMPLES = 2_000
_WARM_UP = 2


@dataclass(frozen=True)
class Figure:
    """One published measurement; `low` and `high` bound a ratio's median with 95 % confidence.

    `target` is the value to reach: at least it, or at most it where `at_most` is set.
    """

    name: str
    value: float
    unit: str
    versus: str | None = None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    at_most: bool = False
    load: float = 0.0

    @property
    def reached(self) -> bool | None:
        """Whether even the worse end of the interval reaches the target; `None` without one."""
        if self.target is None:
            return None
        worst = (self.high if self.at_most else self.low) or self.value
        return worst <= self.target if self.at_most else worst >= self.target

    def as_json(self) -> dict[str, Any]:
        """Only what is set."""
        return {key: value for key, value in asdict(self).items() if value is not None and value is not False}


def load() -> float:
    """The machine's load over the last minute."""
    return round(os.getloadavg()[0], 2)


def seconds(run: Callable[[], Any]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def paired(runs: list[Callable[[], Any]], rounds: int) -> npt.NDArray[np.float64]:
    """(rounds, runs) seconds; every round calls all of them in turn, so that drift meets all alike."""
    for run in runs:
        for _ in range(_WARM_UP):
            run()
    return np.array([[seconds(run) for run in runs] for _ in range(rounds)])


def ratio(name: str, versus: str, over: npt.NDArray[Any], under: npt.NDArray[Any], **more: Any) -> Figure:
    """Median of `over / under` pair by pair, with a bootstrap interval."""
    return _median(name, versus, over / under, "ratio", **more)


def difference(name: str, versus: str, rounds: npt.NDArray[Any], unit: str, **more: Any) -> Figure:
    """Median of what was found round by round, with a bootstrap interval; a `target` is the most it may be."""
    return _median(name, versus, rounds, unit, at_most=True, **more)


def _median(name: str, versus: str, found: npt.NDArray[Any], unit: str, **more: Any) -> Figure:
    random = np.random.default_rng(1)
    medians = np.median(random.choice(found, (_RESAMPLES, len(found))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    bounds = round(float(low), 3), round(float(high), 3)
    return Figure(name, round(float(np.median(found)), 3), unit, versus, *bounds, load=load(), **more)
