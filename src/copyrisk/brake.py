"""The brake: what one print, or one tick, says of too many accounts must be confirmed before anybody is closed.

A quote is *suspect* in the tick in which it jumped by more than a set share, or is seen for the first time; in a tick
in which more than a set share of all accounts turned critical or unknown, every quote is. Accounts that turned bad, or
are critical, while they hold a suspect symbol, or one that is converted by a suspect quote, are held back until all
those quotes have printed again, and for two ticks at most: a bad print is corrected by then, a real gap is not. So are
accounts that turned bad in the tick in which they themselves were changed: what another service does in two steps may
be half done. Pure: no store, no clock.
"""

import numpy as np
import numpy.typing as npt

from copyrisk._core import LadderState
from copyrisk.book import Book, RowNumbers
from copyrisk.layout import Rows
from copyrisk.risk import are_known

_LONGEST_TICKS = 2
_NAMED = 10


class Brake:
    """Which accounts are held back, from one tick to the next.

    Parameters
    ----------
    share_pct : float
        Of all accounts; more of them that turn critical or unknown in one tick make every quote suspect.
    min_accounts : int
        So few never do.
    jump_pct : float
        A quote of which a side moves by more from one tick to the next is suspect; 0: none is, a new one neither.

    Attributes
    ----------
    is_on : bool
        Whether too many accounts turned in one of the last ticks, and that is not confirmed yet.
    held : (k,) int32
        Rows that are held back.
    """

    def __init__(self, *, share_pct: float, min_accounts: int, jump_pct: float) -> None:
        self._share, self._min_accounts, self._jump = share_pct / 100.0, min_accounts, jump_pct / 100.0
        self._folds: npt.NDArray[np.int64] = np.zeros(0, np.int64)  # by account
        self._changed: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._ts_ms: npt.NDArray[np.int64] = np.zeros(0, np.int64)  # by quote, as are all but the last
        self._sides: npt.NDArray[np.float64] = np.zeros((0, 2))  # as they stood in the last tick
        self._known: npt.NDArray[np.float64] = np.zeros((0, 2))  # as they were when they could be used last
        self._usable: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._jumped: npt.NDArray[np.bool_] = np.zeros((0, 2), np.bool_)
        self._age: npt.NDArray[np.int8] = np.zeros(0, np.int8)  # by quote, in ticks; 0: not suspect
        self._held: npt.NDArray[np.int8] = np.zeros(0, np.int8)  # by account: for how many ticks
        self.is_on = False

    @property
    def held(self) -> RowNumbers:
        """(k,) int32."""
        return np.flatnonzero(self._held).astype(np.int32)

    def follow(self, book: Book) -> None:
        """Take one tick: which accounts were changed in it, and its quotes.

        Suspect ones that printed again, or were suspect for long enough, are trusted. Suspect are those of which a side
        jumped, until that side has another value (writers may update one at a time), and those that are seen for the
        first time: nobody knows where they come from.
        """
        folds = np.zeros(len(book.folds), np.int64)
        folds[: len(self._folds)] = self._folds
        self._changed, self._folds = folds != book.folds, book.folds.copy()
        self._follow(book.market.quotes)

    def _follow(self, quotes: Rows) -> None:
        count, rows = len(self._ts_ms), len(quotes)
        age, jumped = np.zeros(rows, np.int8), np.zeros((rows, 2), np.bool_)
        before, known, ts_ms = np.full((rows, 2), np.nan), np.full((rows, 2), np.nan), np.full(rows, -1)
        age[:count], jumped[:count], ts_ms[:count] = self._age, self._jumped, self._ts_ms
        before[:count], known[:count] = self._sides, self._known
        sides, usable = np.stack([quotes["bid"], quotes["ask"]], axis=1), are_known(quotes["code"])
        has_changed = sides != before
        has_printed = has_changed.any(axis=1) | (quotes["ts_ms"] != ts_ms)
        age[age > 0] += 1
        is_confirmed = usable & has_printed & (~jumped | has_changed).all(axis=1)
        age[is_confirmed | (age > _LONGEST_TICKS)] = 0
        if self._jump > 0:
            # NaN, what was not known before, fails the comparison.
            jumps = np.abs(sides - known) > self._jump * known
            is_new = usable & has_printed & (jumps.any(axis=1) | np.isnan(known).any(axis=1))
            age[is_new], jumped[is_new] = 1, jumps[is_new]
        jumped[age == 0] = False
        self._age, self._jumped, self._sides, self._ts_ms = age, jumped, sides, quotes["ts_ms"].copy()
        self._known = np.where(usable[:, None], sides, known)
        self._usable = usable

    def judge(
        self, book: Book, figures: Rows, turned: RowNumbers, standing: RowNumbers, lost: int
    ) -> tuple[RowNumbers, RowNumbers]:
        """Say who is held back in this tick, after `follow`.

        Parameters
        ----------
        turned : (n,) int32
            Rows that are worse than they were judged so far; those that were held back and still are among them.
        standing : (m,) int32
            Rows that were critical before.
        lost : int
            How many accounts turned unknown.

        Returns
        -------
        turned, standing : (k,), (l,) int32
            Those of either about which nothing may be decided in this tick.
        """
        held = np.zeros(len(book.accounts), np.int8)
        held[: len(self._held)] = self._held
        is_critical = figures["state"][turned] == LadderState.CRITICAL
        new = int((is_critical & (held[turned] == 0)).sum()) + lost
        if new >= self._min_accounts and new > self._share * len(book.account_ids):
            self._age[(self._age == 0) & self._usable] = 1
            self.is_on = True
        suspect = np.uint64(self._suspect_bits(book.market.instruments))
        self.is_on = self.is_on and bool(suspect)
        rows = np.concatenate([turned, standing])
        waits = (book.marks[rows] & suspect) != 0
        waits[: len(turned)] |= self._changed[turned]
        waits &= held[rows] < _LONGEST_TICKS
        self._held = np.zeros(len(book.accounts), np.int8)
        self._held[rows[waits]] = held[rows[waits]] + 1
        return turned[waits[: len(turned)]], standing[waits[len(turned) :]]

    def suspects(self, book: Book) -> list[str]:
        """Symbols whose quotes are suspect now, those of which a side jumped first; the first ten."""
        order = np.argsort(~self._jumped.any(axis=1), kind="stable")
        return [book.market.symbols[row] for row in order.tolist() if self._age[row] > 0][:_NAMED]

    def _suspect_bits(self, instruments: Rows) -> int:
        """Bits of the symbols that are valued with a suspect quote, as in `Book.marks`."""
        if not self._age.any():
            return 0
        suspect = np.append(self._age > 0, False)  # -1, no such conversion, is the last one
        found = suspect[instruments["quote"]] | suspect[instruments["direct"]] | suspect[instruments["inverse"]]
        rows = instruments["quote"][found].astype(np.uint64) & np.uint64(63)
        return int(np.bitwise_or.reduce(np.uint64(1) << rows)) if len(rows) else 0
