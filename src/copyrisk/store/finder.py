"""Finding accounts: all of them at the start, later ones by what the server reports, a page at a time to be sure."""

from collections.abc import Iterable

import numpy as np
import structlog

from copyrisk import keys
from copyrisk.book import Book, RowNumbers
from copyrisk.errors import InvalidId, StoreError
from copyrisk.store.link import Link
from copyrisk.store.reads import Reads

log = structlog.get_logger(__name__)

_LARGE_PAGE, _PAGE = 10_000, 250
_PATTERNS = (keys.CONFIG.pattern, keys.ORDERS_INDEX.pattern)
_REFUSED_KEYS_REMEMBERED = 1_000


class Finder:
    """Goes through the server's keys, for configurations and for orders without one.

    Attributes
    ----------
    refused_keys : set of bytes
        Keys that look like an account's but are not.
    """

    def __init__(self, link: Link, reads: Reads, book: Book) -> None:
        self._link, self._reads, self._book = link, reads, book
        self._cursor, self._pattern = b"0", 0
        self.refused_keys: set[bytes] = set()

    def find_all(self) -> None:
        """Go through all keys; new accounts are unknown until read.

        Raises
        ------
        StoreError, StoreUnavailable
            The server cannot be reached, or does not allow it.
        """
        self._cursor, self._pattern = b"0", 0
        while True:
            self.ask_page(large=True)
            self._reads.exchange()
            if self._link.error:
                raise StoreError(f"the server refused SCAN: {self._link.error}", code="server_no_permission")
            self.take_page()
            if self._cursor == b"0" and self._pattern == 0:
                return

    def ask_page(self, *, large: bool) -> None:
        """Ask for the next page in the next exchange."""
        self._reads.page(self._cursor, _PATTERNS[self._pattern], _LARGE_PAGE if large else _PAGE)

    def take_page(self) -> RowNumbers:
        """Rows of the accounts on the page that are new."""
        cursor, found = self._link.replies.take_page()
        if not cursor:
            log.error("scan_refused", reason=self._link.error)
            return np.zeros(0, np.int32)
        self._cursor = cursor
        if cursor == b"0":
            self._pattern = (self._pattern + 1) % len(_PATTERNS)
        return self.rows_of_new(found)

    def rows_of_new(self, found: Iterable[bytes]) -> RowNumbers:
        """Rows of accounts that these keys are of and that are new; they are unknown until read."""
        known, tags = self._book.account_ids, set()
        for key in found:
            try:
                tag = keys.tag_of_key(key)
            except InvalidId as refusal:
                self._refuse(key, refusal)
                continue
            if tag is not None and known.row_of(tag) < 0:
                tags.add(tag)
        return self._book.ensure_accounts(tags)

    def _refuse(self, key: bytes, refusal: InvalidId) -> None:
        if key not in self.refused_keys and len(self.refused_keys) < _REFUSED_KEYS_REMEMBERED:
            self.refused_keys.add(key)
            log.warning("key_refused", code=refusal.code, reason=str(refusal))
