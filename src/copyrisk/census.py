"""How many accounts of each type stand on each rung of the ladder; what type a row is of is read off its name once."""

import numpy as np
import numpy.typing as npt

from copyrisk._core import LadderState
from copyrisk.book import Book, RowNumbers
from copyrisk.layout import Rows
from copyrisk.table import Table
from copyrisk.terms import AccountType

_TYPES, _STATES = tuple(AccountType), tuple(LadderState)


class Census:
    """Counts of one book."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._type, self._born = Table("u1"), Table("i8")
        self._births = 0

    def count(self, figures: Rows) -> dict[tuple[AccountType, LadderState], int]:
        """Accounts by type and state: (a,) Figures; pairs without accounts are counted, too."""
        rows = self._sorted()
        pairs = self._type.rows[rows].astype(np.intp) * len(_STATES) + figures["state"][rows]
        counts = np.bincount(pairs, minlength=len(_TYPES) * len(_STATES)).tolist()
        names = [(kind, state) for kind in _TYPES for state in _STATES]
        return dict(zip(names, counts, strict=True))

    def are(self, kind: AccountType, rows: RowNumbers) -> npt.NDArray[np.bool_]:
        """(k,) bool: which of these accounts are of this type."""
        self._sorted()
        found: npt.NDArray[np.bool_] = self._type.rows[rows] == _TYPES.index(kind)
        return found

    def _sorted(self) -> RowNumbers:
        """All accounts' rows, once their types are known."""
        rows = self._book.account_rows()
        if self._births != self._book.births:
            self._births = self._book.births
            self._sort(rows)
        return rows

    def _sort(self, rows: RowNumbers) -> None:
        """Read the types of rows that have got another account."""
        born = self._book.born
        self._type.cover(len(born))
        self._born.cover(len(born))
        new = rows[self._born.rows[rows] != born[rows]]
        self._born.rows[new] = born[new]
        names = self._book.account_ids.cells(new)[:, 1:]
        for place, kind in enumerate(_TYPES):
            start = np.frombuffer(f"{kind.value}:".encode(), np.uint8)
            self._type.rows[new[(names[:, : len(start)] == start).all(axis=1)]] = place
