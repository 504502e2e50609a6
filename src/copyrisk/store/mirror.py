"""The mirror: a book that equals what Redis holds, asking only for what changed.

The server reports each key that changes (`CLIENT TRACKING`, `BCAST`). A tick takes these reports and asks, in one
exchange, for all quotes, the hashes and sets that were reported, a slice of the accounts whatever was reported (so that
the mirror proves itself), and a page of `SCAN`. What an answer brings to light, a new account, order, instrument or
conversion pair, is asked for in a further, small exchange of the same tick. If anything of an account changed, what was
reported meanwhile is read, too, until nothing is: an account is never half of a change (`_settle`).

Everything is read anew at the start, behind a new connection, after a `FLUSHALL`, when more was reported than is kept,
and in each tick where the server does not report. Failure: an exchange that fails raises and drops the connection;
nothing may be decided until a later `read`, which then reads everything anew, has succeeded.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk import fields, identifiers, keys
from copyrisk._core import RowCode
from copyrisk._wire import READ, REFUSED_REPLY
from copyrisk.book import Book, RowNumbers
from copyrisk.errors import StoreUnavailable
from copyrisk.layout import Rows
from copyrisk.market import InstrumentKey
from copyrisk.store.finder import Finder
from copyrisk.store.link import Link
from copyrisk.store.notices import News, Notices
from copyrisk.store.pipe import pack
from copyrisk.store.reads import Reads
from copyrisk.store.terms import Terms

log = structlog.get_logger(__name__)

_NO_ROWS: RowNumbers = np.zeros(0, np.int32)
_ROUNDS_LIMIT = 16
_SETTLING_ROUNDS = 4
_SAMPLE_ONE_IN = 3
_LOGGED_AT_ONCE = 20


@dataclass(slots=True)
class _Wanted:
    """What an exchange is to ask for besides terms and quotes.

    Orders are asked for by account and id; `order_rows` are their rows as long as these are known for all of them.
    """

    config_rows: RowNumbers
    index_rows: RowNumbers
    owners: RowNumbers
    cells: npt.NDArray[np.uint8]
    order_rows: RowNumbers | None

    def leave_out_what_is_no_id(self) -> None:
        """No key is built from it; its account stays unknown."""
        readable = identifiers.are_order_ids(self.cells)
        if not readable.all():
            self.owners, self.cells, self.order_rows = self.owners[readable], self.cells[readable], None

    def add_orders(self, owners: RowNumbers, cells: npt.NDArray[np.uint8]) -> None:
        """Ask for these, too."""
        if len(owners):
            self.owners, self.cells = np.concatenate([self.owners, owners]), np.concatenate([self.cells, cells])
            self.order_rows = None


class Mirror:
    """Keeps a book equal to what Redis held at the last successful `read`.

    Attributes
    ----------
    reread, sample : (n,) int32
        Account rows of the last `read`'s slice, and some of them, by lot, that are to prove themselves further.
    wished : (n,) int32
        Accounts that a service wants written again.
    restless : (n,) int32
        Accounts that changed again and again while they were read: nothing may be decided on them.
    bare : (n,) int32
        Accounts of the sample whose portfolio is gone.
    read_everything : bool
        Whether the last `read` could not build on what was known.
    configured : list of (k,) int32
        Accounts whose configuration the last `read` asked for, some of them more than once.
    repaired : int
        Accounts in which a slice found a difference that no report explains.
    """

    def __init__(self, link: Link, book: Book, *, hears_wishes: bool = True) -> None:
        self._link, self._book, self._hears_wishes = link, book, hears_wishes
        self._notices, self._reads = Notices(link), Reads(link, book)
        self._terms, self.finder = Terms(self._reads, book), Finder(link, self._reads, book)
        self._everything, self._is_at_rest = True, False
        self._next = 0
        self._again = _NO_ROWS
        self._appeared: set[int] = set()
        self._births_before = 0
        self._touched: list[RowNumbers] = []
        self._quote_requests: list[bytes] = []
        self.reread = self.sample = self.wished = self.restless = self.bare = _NO_ROWS
        self.configured: list[RowNumbers] = []
        self.read_everything = False
        self.repaired = 0

    def read(self, share: float) -> None:
        """Bring the book up to date, reading at least this share of the accounts again.

        Raises
        ------
        StoreError, StoreUnavailable
            The book may hold part of the news; nothing may be decided on it until a later `read` succeeds.
        """
        self._reads.forget()
        self._touched, self.configured = [], []
        self._births_before = self._book.births  # an account that only a report or a wish named was never known
        if self._link.open():
            self._everything = True
            self._notices.subscribe()
        news = self._notices.take(self._book)
        self.read_everything = self._everything or news.everything
        self._everything = True  # until all of it has succeeded
        if self.read_everything:
            self.finder.find_all()
        else:
            self.finder.ask_page(large=not self._notices.tracks)
        wishes = self._notices.wishes() if self._hears_wishes else ()
        self.wished = self._book.ensure_accounts(str(account).encode() for account in wishes)
        slice_only = self._notices.tracks and not self.read_everything
        self.reread = self._slice(share) if slice_only else self._book.account_rows()
        self.sample = self.reread[random.randrange(_SAMPLE_ONE_IN) :: _SAMPLE_ONE_IN].copy() if slice_only else _NO_ROWS
        portfolios = self._reads.have_portfolios(self.sample)
        whole = np.concatenate([self.wished, self._in_use(self._again)])
        self._again = _NO_ROWS
        wanted = self._wanted(news, _union(self.reread, whole))
        terms = self._terms.slice(share if slice_only else 1.0) + self._terms_of(news)
        changed = self._exchange(wanted, terms, paged=not self.read_everything)
        reported = set(whole.tolist()) | set(news.rows().tolist()) | self._appeared
        self.restless = self._settle(changed, reported)
        if slice_only:
            self._judge((changed & set(self.reread.tolist())) - reported if changed else changed)
        self._remove_vanished(np.concatenate(self._touched))  # not before: rows keep their accounts during a read
        self.bare, self.restless = self._in_use(self.sample[portfolios == READ]), self._in_use(self.restless)
        self.sample, self.wished = self._in_use(self.sample), self._in_use(self.wished)
        self._everything = False

    def _settle(self, changed: set[int], reported: set[int]) -> RowNumbers:
        """Read again what changed while it was read, until nothing does; returns accounts that did not come to rest.

        What an exchange reads of an account may be of several moments. If it changed nothing, the book is what it was;
        else the server is asked to report up to now, and as long as it does, there is something to read.
        """
        if not self._notices.tracks:
            return _NO_ROWS
        for _ in range(_SETTLING_ROUNDS):
            if self._is_at_rest and not changed:
                return _NO_ROWS
            news = self._notices.take(self._book, wait=True)
            if news.everything:
                raise StoreUnavailable("everything changed while it was read", code="server_changing")
            wanted, terms = self._wanted(news, _NO_ROWS), self._terms_of(news)
            reported |= set(news.rows().tolist()) | self._appeared
            self._is_at_rest = not (len(wanted.config_rows) or len(wanted.index_rows) or len(wanted.owners) or terms)
            if self._is_at_rest:
                return _NO_ROWS
            changed = self._exchange(wanted, terms, paged=False)
        return self._in_use(np.array(sorted(set(news.rows().tolist()) | self._appeared), np.int32))

    def _wanted(self, news: News, rows: RowNumbers) -> _Wanted:
        """All of these accounts, all of those that appeared, and what was reported of others."""
        found = self.finder.rows_of_new(news.others)
        self._appeared = set(found.tolist())
        wanted = self._whole(_union(rows, found))
        wanted.config_rows = _union(wanted.config_rows, news.config_rows)
        wanted.index_rows = _union(wanted.index_rows, news.index_rows)
        wanted.add_orders(*_each_once(news.order_owners, news.order_cells))
        return wanted

    def _terms_of(self, news: News) -> list[InstrumentKey]:
        reported = (self._terms.changed(key) for key in news.others)
        return [changed for changed in reported if changed is not None]

    def close(self) -> None:
        """Drop the connections."""
        self._link.close()
        self._notices.close()

    # ---- exchanges

    def _exchange(self, wanted: _Wanted, terms: list[InstrumentKey], *, paged: bool) -> set[int]:
        """Ask, and ask for what the answers bring to light; returns the rows of accounts that changed."""
        book, market, first_quote = self._book, self._book.market, 0
        changed: set[int] = set()
        self._touched += [wanted.config_rows, wanted.index_rows]
        for _ in range(_ROUNDS_LIMIT):
            wanted.leave_out_what_is_no_id()
            self.configured.append(wanted.config_rows)
            configs, lists = self._reads.accounts(wanted.config_rows), self._reads.order_lists(wanted.index_rows)
            orders, quotes = self._reads.orders(wanted.owners, wanted.cells), self._ask_quotes(first_quote)
            has_terms = self._terms.ask(terms)
            self._reads.exchange()
            market.set_quotes(first_quote, fields.judge_quotes_read(quotes))
            first_quote += len(quotes)
            if self._link.error:
                refused = [
                    wanted.config_rows[configs["reply"] == REFUSED_REPLY],
                    wanted.index_rows[lists["reply"] == REFUSED_REPLY],
                    wanted.owners[orders["reply"] == REFUSED_REPLY],
                ]
                self._again = np.unique(np.concatenate([self._again, *refused]))
            changed |= self._apply_configs(wanted.config_rows, configs)
            new_orders = self._apply_lists(wanted, lists, changed)
            new_orders = _without(new_orders, self._apply_orders(wanted, orders, changed))
            if has_terms:
                self._terms.apply()
            new_accounts, paged = self.finder.take_page() if paged else _NO_ROWS, False
            lacking = self._terms.are_lacking() or first_quote < len(market.symbols)
            if not (len(new_orders) or len(new_accounts) or lacking):
                break
            self._touched.append(new_accounts)
            wanted, terms = self._whole(new_accounts), []
            wanted.add_orders(book.orders["account"][new_orders], book.order_ids.cells(new_orders))
        else:
            raise AssertionError("accounts, orders, instruments, pairs: nothing hangs on a conversion pair")
        return changed

    def _whole(self, rows: RowNumbers) -> _Wanted:
        """Everything of these accounts."""
        orders = self._book.order_rows_of(rows)
        return _Wanted(rows, rows, self._book.orders["account"][orders], self._book.order_ids.cells(orders), orders)

    def _ask_quotes(self, first: int) -> Rows:
        """All quotes from a row on."""
        symbols, packed = self._book.market.symbols, self._quote_requests
        for symbol in symbols[len(packed) :]:
            packed.append(pack("HMGET", keys.market(symbol), *fields.QUOTE_COLUMNS.fields))
        return self._reads.packed(fields.QUOTE_COLUMNS, b"".join(packed[first:]), len(packed) - first)

    def _slice(self, share: float) -> RowNumbers:
        """The next accounts to read whatever was reported."""
        high = self._book.account_ids.high
        count = min(high, math.ceil(share * high))
        chosen = np.arange(self._next, self._next + count, dtype=np.int32) % max(high, 1)
        self._next = (self._next + count) % max(high, 1)
        return self._in_use(chosen)

    # ---- answers

    def _apply_configs(self, rows: RowNumbers, read: Rows) -> set[int]:
        changed, replaced = self._book.set_accounts(rows, fields.judge_accounts(read, self._book.market.names))
        for row in rows[replaced].tolist()[:_LOGGED_AT_ONCE]:
            log.warning("levels_replaced_by_default", account=str(self._book.account_at(row)))
        return set(rows[changed].tolist())

    def _apply_lists(self, wanted: _Wanted, lists: Rows, changed: set[int]) -> RowNumbers:
        """Take order indexes; returns the orders to read."""
        rows, cells = wanted.index_rows, self._link.replies.take_members()
        readable = lists["reply"] == READ
        if not readable.all():
            hidden = rows[~readable]
            changed |= set(hidden[self._book.hide_orders(hidden)].tolist())
            rows, lists, wanted.order_rows = rows[readable], lists[readable], None
        differ, new = self._book.list_orders(rows, lists["count"].copy(), cells)
        if differ.any():
            changed |= set(rows[differ].tolist())
            wanted.order_rows = None
        return new

    def _apply_orders(self, wanted: _Wanted, read: Rows, changed: set[int]) -> RowNumbers:
        """Take those orders that are in their account's index now; returns their rows."""
        rows, owners = wanted.order_rows, wanted.owners
        if rows is None:
            rows = self._book.order_ids.find_cells(owners, wanted.cells)
            here = rows >= 0
            rows, owners, read = rows[here], owners[here], read[here]
        differ = self._book.set_orders(rows, fields.judge_orders(read, self._book.market.names))
        if differ.any():
            changed |= set(owners[differ].tolist())
        return rows

    def _remove_vanished(self, rows: RowNumbers) -> None:
        """Forget accounts that have neither a configuration nor orders any more."""
        missing = self._book.accounts["read_code"][rows] == RowCode.ACCOUNT_MISSING
        gone = np.unique(rows[missing & (self._book.order_counts(rows) == 0)])
        if not len(gone):
            return
        known = gone[self._book.born[gone] <= self._births_before]
        if len(known):
            log.info("accounts_removed", count=len(known), first=str(self._book.account_at(int(known[0]))))
        self._book.remove_accounts(gone)

    def _in_use(self, rows: RowNumbers) -> RowNumbers:
        used: RowNumbers = rows[self._book.born[rows] != 0]
        return used

    def _judge(self, unexplained: set[int]) -> None:
        """Differences that the slice found, and that no report explains, are errors of somebody."""
        self.repaired += len(unexplained)
        for row in self._in_use(np.array(sorted(unexplained), np.int32)).tolist()[:_LOGGED_AT_ONCE]:
            log.error("mirror_differed", account=str(self._book.account_at(row)), repaired=self.repaired)


def _each_once(owners: RowNumbers, cells: npt.NDArray[np.uint8]) -> tuple[RowNumbers, npt.NDArray[np.uint8]]:
    """Pairs without repetitions: an order may have been reported many times."""
    if len(owners) < 2:
        return owners, cells
    pairs = np.ascontiguousarray(np.concatenate([owners.view(np.uint8).reshape(-1, 4), cells], axis=1))
    _, first = np.unique(pairs.view(np.dtype((np.void, pairs.shape[1]))), return_index=True)
    return owners[first], cells[first]


def _union(rows: RowNumbers, others: RowNumbers) -> RowNumbers:
    """Each once; as it stands where there are no others, which is nearly always."""
    return np.union1d(rows, others) if len(others) else rows


def _without(rows: RowNumbers, others: RowNumbers) -> RowNumbers:
    return np.setdiff1d(rows, others) if len(rows) else rows
