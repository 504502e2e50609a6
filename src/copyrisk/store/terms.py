"""Contract terms of instruments: a group's own, or those of `Standard` where it has none."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from copyrisk import fields, keys
from copyrisk._core import RowCode
from copyrisk.book import Book
from copyrisk.layout import Rows
from copyrisk.market import InstrumentKey
from copyrisk.store.reads import Reads

#: For so long a group's own terms that are gone are missed before those of `Standard` serve.
_GRACE_S = 60.0


class Terms:
    """Which terms are to be read, and what was read of them."""

    def __init__(self, reads: Reads, book: Book) -> None:
        self._reads, self._market = reads, book.market
        self._mark_stale = book.mark_stale
        self._known: dict[InstrumentKey, Any] = {}
        self._of_key: dict[bytes, InstrumentKey] = {}
        self._rows_of_symbol: dict[str, list[int]] = {}
        self._watched = 0
        self._next = 0
        self._owed = 0.0
        self._asked: list[InstrumentKey] = []
        self._new: list[int] = []
        self._refused: list[InstrumentKey] = []
        self._gone_s: dict[InstrumentKey, float] = {}
        self._answers: Rows = np.zeros(0, fields.INSTRUMENT_COLUMNS.dtype)

    def changed(self, key: bytes) -> InstrumentKey | None:
        """The terms that a key holds, if anybody needs them."""
        return self._of_key.get(key)

    def slice(self, share: float) -> list[InstrumentKey]:
        """The next terms to read whatever was reported, and those that the server refused."""
        every = list(self._of_key.values())
        self._owed = min(self._owed + share, 1.0)
        count = math.floor(self._owed * len(every) + 1e-9)
        self._owed -= count / max(len(every), 1)
        chosen = [every[(self._next + k) % len(every)] for k in range(count)]
        self._next = (self._next + count) % max(len(every), 1)
        return chosen + self._refused + self._given_up()

    def _given_up(self) -> list[InstrumentKey]:
        """Terms that have been gone for so long that `Standard` serves."""
        now_s = time.monotonic()
        return [gone for gone, since_s in self._gone_s.items() if now_s - since_s >= _GRACE_S]

    def are_lacking(self) -> bool:
        """Whether the book has instruments whose terms were never asked for."""
        return self._watched < len(self._market.instrument_keys)

    def ask(self, wanted: Sequence[InstrumentKey]) -> bool:
        """Ask for these, and for those that the book needs and that were never asked for.

        Returns whether there is anything to `apply`.
        """
        asked = dict.fromkeys(wanted)
        instruments = self._market.instrument_keys
        self._new = list(range(self._watched, len(instruments)))
        for row in self._new:
            self._rows_of_symbol.setdefault(instruments[row].symbol, []).append(row)
            for needed in (instruments[row], InstrumentKey(keys.STANDARD_GROUP, instruments[row].symbol)):
                if needed not in self._known:
                    self._known[needed] = None
                    self._of_key[keys.group(needed.group, needed.symbol).encode()] = needed
                    asked[needed] = None
        self._watched = len(instruments)
        self._asked = list(asked)
        self._answers = self._reads.named(
            fields.INSTRUMENT_COLUMNS, [keys.group(needed.group, needed.symbol) for needed in self._asked]
        )
        return bool(self._asked or self._new)

    def apply(self) -> None:
        """Take the answers into the book."""
        affected = set(self._new)
        for gone in self._given_up():
            del self._gone_s[gone]
            affected.update(self._rows_of(gone))
        judged = fields.judge_instruments(self._answers, self._market.names)
        asked = set(self._asked)
        self._refused = [needed for needed in self._refused if needed not in asked]
        for needed, terms in zip(self._asked, judged, strict=True):
            before, self._known[needed] = self._known[needed], terms
            self._note_whether_gone(needed, before, terms)
            if terms["code"] == RowCode.INSTRUMENT_UNREADABLE:
                self._refused.append(needed)
            if needed.group == keys.STANDARD_GROUP:
                self._market.set_type(needed, int(terms["type"]))
            if before is None or before.tobytes() != terms.tobytes():
                affected.update(self._rows_of(needed))
        moved = 0
        for row in sorted(affected):
            moved |= self._market.set_instrument(row, self._terms_of(self._market.instrument_keys[row]))
        self._mark_stale(moved)

    def _rows_of(self, needed: InstrumentKey) -> list[int]:
        """Rows of the book that terms may serve."""
        rows, in_standard = self._rows_of_symbol[needed.symbol], needed.group == keys.STANDARD_GROUP
        return [row for row in rows if in_standard or self._market.instrument_keys[row] == needed]

    def _note_whether_gone(self, needed: InstrumentKey, before: Any, terms: Any) -> None:
        """Terms that a group had and has no more are missed for a while before those of `Standard` serve.

        Somebody may be writing them anew, and an account must not be valued by another contract size meanwhile.
        """
        if terms["code"] != RowCode.INSTRUMENT_MISSING:
            self._gone_s.pop(needed, None)
        elif (
            before is not None and before["code"] != RowCode.INSTRUMENT_MISSING and needed.group != keys.STANDARD_GROUP
        ):
            self._gone_s[needed] = time.monotonic()

    def _terms_of(self, instrument: InstrumentKey) -> Any:
        own = self._known[instrument]
        if own["code"] == RowCode.INSTRUMENT_MISSING and instrument not in self._gone_s:
            return self._known[InstrumentKey(keys.STANDARD_GROUP, instrument.symbol)]
        return own
