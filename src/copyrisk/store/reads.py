"""Asking for hashes and sets by the rows of the book, and the arrays their answers come in."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import redis

from copyrisk import fields, keys, layout
from copyrisk._columns import Columns
from copyrisk._pack import Requests
from copyrisk.book import Book, RowNumbers
from copyrisk.layout import Rows
from copyrisk.store.connection import OF_ONE_KEY, store_error
from copyrisk.store.link import Link
from copyrisk.store.pipe import pack

_PART_COMMANDS = 500
_PART_BYTES = 1 << 16


def _words(*words: str) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)


def _head(name: str, count: int) -> bytes:
    """Start of a command of `count` words."""
    return b"*%d\r\n" % count + _words(name)


class Reads:
    """Collects what is to be asked and asks it in one exchange.

    Each method returns the array that holds the answers, in the order of what was asked, once `exchange` has returned.
    """

    def __init__(self, link: Link, book: Book) -> None:
        self._link, self._book = link, book
        self._requests = Requests()
        self._parts: list[Callable[[], bytes]] = []

    def accounts(self, rows: RowNumbers) -> Rows:
        """Configurations, as `fields.ACCOUNT_COLUMNS`."""
        return self._hashes(fields.ACCOUNT_COLUMNS, keys.CONFIG, rows)

    def _hashes(self, columns: Columns, shape: keys.Shape, rows: RowNumbers) -> Rows:
        out: Rows = np.zeros(len(rows), columns.dtype)
        head, tail, index = _head("HMGET", 2 + len(columns.fields)), _words(*columns.fields), self._book.account_ids

        def part(chosen: slice) -> bytes:
            self._link.replies.expect_rows(columns, out[chosen])
            return self._requests.by_row(head, *shape, tail, index, rows[chosen])

        self._ask(len(rows), part)
        return out

    def order_lists(self, rows: RowNumbers) -> Rows:
        """Order indexes, as `layout.MEMBERS`; `Replies.take_members` has what is in them."""
        out: Rows = np.zeros(len(rows), layout.MEMBERS)

        def part(chosen: slice) -> bytes:
            self._link.replies.expect_members(out[chosen])
            index = self._book.account_ids
            return self._requests.by_row(_head("SMEMBERS", 2), *keys.ORDERS_INDEX, b"", index, rows[chosen])

        self._ask(len(rows), part)
        return out

    def orders(self, owners: RowNumbers, cells: npt.NDArray[np.uint8]) -> Rows:
        """Orders by account row and id, as `fields.ORDER_COLUMNS`."""
        columns = fields.ORDER_COLUMNS
        out: Rows = np.zeros(len(owners), columns.dtype)
        head, tail = _head("HMGET", 2 + len(columns.fields)), _words(*columns.fields)

        def part(chosen: slice) -> bytes:
            self._link.replies.expect_rows(columns, out[chosen])
            index = self._book.account_ids
            return self._requests.by_cell(head, *keys.HOLDING, tail, index, owners[chosen], cells[chosen])

        self._ask(len(owners), part)
        return out

    def have_portfolios(self, rows: RowNumbers) -> npt.NDArray[np.uint8]:
        """Whether the accounts have a portfolio with a status: `READ_COUNT` if so."""
        out = np.zeros(len(rows), np.uint8)
        head, tail, index = _head("HEXISTS", 3), _words(fields.CALC_STATUS), self._book.account_ids

        def part(chosen: slice) -> bytes:
            self._link.replies.expect_statuses(out[chosen])
            return self._requests.by_row(head, *keys.PORTFOLIO, tail, index, rows[chosen])

        self._ask(len(rows), part)
        return out

    def named(self, columns: Columns, asked: Sequence[str]) -> Rows:
        """Hashes by key."""
        out: Rows = np.zeros(len(asked), columns.dtype)

        def part(chosen: slice) -> bytes:
            self._link.replies.expect_rows(columns, out[chosen])
            return b"".join(pack("HMGET", key, *columns.fields) for key in asked[chosen])

        self._ask(len(asked), part)
        return out

    def packed(self, columns: Columns, request: bytes, count: int) -> Rows:
        """Hashes by a request of `count` commands that is ready."""
        out: Rows = np.zeros(count, columns.dtype)

        def part() -> bytes:
            self._link.replies.expect_rows(columns, out)
            return request

        self._parts.append(part)
        return out

    def page(self, cursor: bytes, pattern: str, count: int) -> None:
        """A page of `SCAN`; `Replies.take_page` has it."""

        def part() -> bytes:
            self._link.replies.expect_page()
            return pack("SCAN", cursor, "MATCH", pattern, "COUNT", count)

        self._parts.append(part)

    def exchange(self) -> None:
        """Ask everything that was collected.

        Raises
        ------
        StoreError, StoreUnavailable
            Nothing of the answers may be used.
        """
        parts, self._parts = self._parts, []
        self._link.exchange(_joined(parts))
        if self._link.error and not self._link.error.startswith(OF_ONE_KEY):
            raise store_error(redis.ResponseError(self._link.error))

    def forget(self) -> None:
        """Ask nothing of what was collected."""
        self._parts.clear()

    def _ask(self, count: int, part: Callable[[slice], bytes]) -> None:
        for start in range(0, count, _PART_COMMANDS):
            self._parts.append(partial(part, slice(start, start + _PART_COMMANDS)))


def _joined(parts: list[Callable[[], bytes]]) -> Iterator[bytes]:
    """Parts as they are made, small ones together: each sending costs a turn of the server's loop."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part())
        size += len(waiting[-1])
        if size >= _PART_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
