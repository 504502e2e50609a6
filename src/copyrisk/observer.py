"""A book that is only read: what the engine of copies knows of every account, at the moment it asks."""

import time

import numpy as np
import redis

from copyrisk._core import RowCode
from copyrisk.book import Book, RowNumbers
from copyrisk.copying import CopyDefaults
from copyrisk.hours import MarketHours
from copyrisk.layout import Rows
from copyrisk.risk import Valuer
from copyrisk.rules import ValuationRules
from copyrisk.store.followers import Followers
from copyrisk.store.link import Link
from copyrisk.store.mirror import Mirror
from copyrisk.store.pipe import Pipe


class Observer:
    """A book that follows the server, valued anew at each `look`.

    Attributes
    ----------
    book : Book
    followers : Followers
    now_ms : int
        When it last looked.
    """

    def __init__(
        self, client: redis.Redis, pipe: Pipe, rules: ValuationRules, hours: MarketHours, default: CopyDefaults
    ) -> None:
        self.book, self._hours = Book(rules), hours
        self._mirror = Mirror(Link(client, self.book.market.names.index), self.book, hears_wishes=False)
        self._valuer = Valuer(self.book)
        self.followers = Followers(pipe, self.book, default)
        self._owed: list[RowNumbers] = []
        self.now_ms = 0

    @property
    def figures(self) -> Rows:
        """(a,) Figures, as of the last `look`."""
        return self._valuer.figures

    def look(self, share: float = 0.0) -> None:
        """Read what changed, and at least this share of the accounts whatever was reported, and value them.

        Raises
        ------
        StoreError, StoreUnavailable
            Nothing may be decided on what is known now.
        """
        mirror = self._mirror
        try:
            mirror.read(share)
        finally:
            self._owed += mirror.configured  # read or not: their settings may have changed
        self.followers.refresh(np.unique(np.concatenate(self._owed)) if self._owed else np.zeros(0, np.int32))
        self._owed = []
        self.now_ms = time.time_ns() // 1_000_000
        self._valuer.value(self.now_ms, self._hours.open_by_type(self.now_ms))
        self._valuer.verify(mirror.sample)
        self._valuer.withhold(mirror.restless, RowCode.ACCOUNT_CHANGING)

    def close(self) -> None:
        """Drop the connections."""
        self._mirror.close()
