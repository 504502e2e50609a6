"""Arrays that grow by doubling, and comparing columns that may hold NaN."""

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
    """(n,) bool: where two columns of one type differ by a bit, so that NaN is equal to itself."""
    if left.dtype.kind == "f":
        left, right = left.view(np.int64), right.view(np.int64)
    different: npt.NDArray[np.bool_] = left != right
    return different
