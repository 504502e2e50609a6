"""Where every account stands on the margin ladder, from one tick to the next. Pure: no store, no clock."""

import numpy as np
import numpy.typing as npt

from copyrisk import layout
from copyrisk._core import LadderState, RowCode
from copyrisk._cutoff import step_ladder
from copyrisk.book import Book, RowNumbers
from copyrisk.layout import Rows


class Ladders:
    """The rungs of all accounts of a book, with hysteresis.

    Parameters
    ----------
    recovery_pct : float
        An episode of warning ends so many points above the warning level.
    latches : bool
        Whether an account that became critical stays so until it is flat.

    Attributes
    ----------
    rows : (a,) Ladder
    """

    def __init__(self, book: Book, *, recovery_pct: float, latches: bool) -> None:
        self._book, self._recovery_pct, self._latches = book, recovery_pct, latches
        self.rows: Rows = np.zeros(0, layout.LADDER)
        self._born: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def follow(self) -> RowNumbers:
        """Have a row for every account; returns the rows whose account is new, which were never judged."""
        born = self._book.born
        grown: Rows = np.zeros(len(born), layout.LADDER)
        before = np.zeros(len(born), np.int64)
        grown[: len(self.rows)], before[: len(self._born)] = self.rows, self._born
        new = np.flatnonzero(born != before).astype(np.int32)
        grown[new] = np.zeros((), layout.LADDER)
        self.rows, self._born = grown, born.copy()
        return new

    def worsened(self, figures: Rows, rows: RowNumbers) -> tuple[RowNumbers, RowNumbers]:
        """Which of some accounts stand worse now than they were judged so far, and which of them turned unknown.

        One that is being changed while it is read, by a copy for example, is unknown for a moment: no sign of trouble.
        """
        states, before = figures["state"][rows], self.rows[rows]
        is_worse = (figures["code"][rows] == RowCode.OK) & (states >= LadderState.WARNING) & (states > before["rung"])
        is_lost = (states == LadderState.STATE_UNKNOWN) & (before["state"] != LadderState.STATE_UNKNOWN)
        is_lost &= figures["code"][rows] != RowCode.ACCOUNT_CHANGING
        return rows[is_worse], rows[is_lost]

    def step(self, figures: Rows, rows: RowNumbers) -> npt.NDArray[np.uint8]:
        """Judge some accounts; returns (k,) uint8, the `Edge` flags of what happened to each."""
        edges = np.zeros(len(rows), np.uint8)
        step_ladder(rows, self._book.accounts, figures, self._recovery_pct, self._latches, self.rows, edges)
        return edges

    def restore(self, row: int, *, is_critical: bool, is_latched: bool) -> None:
        """Let an account be in the middle of an episode that began before this process did."""
        ladder = self.rows[row]
        ladder["rung"] = LadderState.CRITICAL if is_critical else LadderState.WARNING
        ladder["is_latched"] = is_latched

    def critical(self, figures: Rows) -> RowNumbers:
        """(k,) rows of accounts that are to be closed, and about which it may be decided now."""
        count = min(len(figures), len(self.rows))
        found = (self.rows["rung"][:count] == LadderState.CRITICAL) & (figures["code"][:count] == RowCode.OK)
        return np.flatnonzero(found).astype(np.int32)
