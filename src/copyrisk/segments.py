"""Where accounts keep their legs: a segment of one array each, which moves when it becomes too short."""

from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk import layout
from copyrisk.layout import Rows
from copyrisk.table import Table

_COMPACT_ABOVE_LEGS = 4096


class Segments:
    """One array of legs; `first` and `capacity` of an account say which part of it is its own."""

    def __init__(self) -> None:
        self._legs = Table(layout.LEG)
        self._unused = 0

    @property
    def legs(self) -> Rows:
        """(l,) Leg; with unused room between the segments."""
        rows: Rows = self._legs.rows
        return rows

    @property
    def are_wasteful(self) -> bool:
        """Whether more is unused than used."""
        return self._unused > max(_COMPACT_ABOVE_LEGS, len(self.legs) // 2)

    def make_room(self, accounts: Rows, rows: npt.NDArray[np.int32], needed: npt.NDArray[np.int32]) -> None:
        """Have so many legs fit: just large enough at first, half as much again when a segment grows."""
        had: Any = accounts["capacity"][rows]
        short = needed > had
        rows, needed, had = rows[short], needed[short], had[short]
        room = np.where(had == 0, needed, np.maximum(needed, had + had // 2 + 1))
        first = self._legs.add(int(room.sum()))
        accounts["first"][rows], accounts["capacity"][rows] = first + np.cumsum(room) - room, room
        self._unused += int(had.sum())

    def give_up(self, accounts: Rows, rows: npt.NDArray[np.int32]) -> None:
        """Let the segments of accounts that go be unused."""
        self._unused += int(accounts["capacity"][rows].sum())

    def clear(self, accounts: Rows) -> None:
        """Take all segments away; every account must be folded into a new one."""
        self._legs, self._unused = Table(layout.LEG), 0
        for name in ("first", "capacity", "n_executed", "n_legs"):
            accounts[name] = 0
