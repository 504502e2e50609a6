"""Arrays that grow by doubling, and comparing columns in which nothing is known to be equal to nothing."""

from typing import Any

import numpy as np
import numpy.typing as npt

_FIRST_ROWS = 64


class Table:
    """One growing array: `rows` are all rows used so far, new ones are zero."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._all: Any = np.zeros(_FIRST_ROWS, dtype)
        self.rows: Any = self._all[:0]

    def cover(self, count: int) -> None:
        """Have at least so many rows; may replace the array behind `rows`."""
        if count > len(self._all):
            grown = np.zeros(max(count, 2 * len(self._all)), self._all.dtype)
            grown[: len(self.rows)] = self.rows
            self._all = grown
        if count > len(self.rows):
            self.rows = self._all[:count]

    def add(self, count: int) -> int:
        """The first of `count` new rows."""
        first = len(self.rows)
        self.cover(first + count)
        return first


def differ(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(n,) bool: where two columns say something else; NaN says the same as NaN."""
    different: npt.NDArray[np.bool_] = left != right
    if left.dtype.kind == "f":
        different &= ~(np.isnan(left) & np.isnan(right))
    return different
