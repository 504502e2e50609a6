"""Limits of followers that need a memory: losses of a day, drawdown, stop loss and take profit of the whole account."""

import numpy as np
import numpy.typing as npt

from copyrisk.observer import Observer


class Limits:
    """What followers have lost, and whose limits are reached."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def refusals(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.bytes_]:
        """(n,) reasons why followers get no new copies; empty for those that do."""
        return np.zeros(len(rows), "S40")
