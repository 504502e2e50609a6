"""The snapshot: each tick asks Redis for everything the book holds, in one pipelined round trip.

A *watch* is one hash or set that is asked for each tick, with the reply it gave last; only replies that
differ are decoded. What a reply brings to light (an order id, an instrument, a conversion pair) becomes a
watch of its own and is asked for in a further, small round trip of the same tick. New accounts are found by
`SCAN`: all of it at the start, a slice in each later tick. All replies are in before any is applied.

Failure: an exchange that fails raises and the tick is void; a watch that was never answered stays pending.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from copyrisk import fields, keys
from copyrisk._core import RowCode
from copyrisk.book import Book, InstrumentKey
from copyrisk.errors import InvalidId, StoreError
from copyrisk.keys import Account
from copyrisk.store.pipe import Pipe, pack

log = structlog.get_logger(__name__)

_SCAN_COUNT = 2_000
_PATTERNS = (keys.CONFIG_PATTERN, keys.ORDERS_INDEX_PATTERN)
_ROUNDS_LIMIT = 8
_REFUSED_KEYS_REMEMBERED = 1_000


@dataclass(slots=True, eq=False)
class Watch:
    """Something asked for each tick; `apply` takes the reply when it differs from the `last` one."""

    request: bytes
    apply: Callable[[Any], None]
    last: Any = None
    alive: bool = True


@dataclass(slots=True)
class AccountWatch:
    """What hangs on one account: its own two watches and one for each order id in its index."""

    config: Watch
    index: Watch
    orders: dict[str, Watch] = field(default_factory=dict)
    has_config: bool = False


class Snapshot:
    """Keeps a book equal to what Redis held at the last successful `read`."""

    def __init__(self, pipe: Pipe, book: Book) -> None:
        self._pipe, self._book = pipe, book
        self._watches: list[Watch] = []
        self._pending: list[Watch] = []
        self._requests: list[bytes] = []
        self._dropped = False
        self._accounts: dict[Account, AccountWatch] = {}
        self._perhaps_gone: set[Account] = set()
        self._terms: dict[InstrumentKey, fields.InstrumentRow] = {}
        self._watched_quotes = 0
        self._watched_instruments = 0
        self._cursor, self._pattern = b"0", 0
        self._scanned_all = False
        self.refused_keys: set[bytes] = set()

    # ---- the round trips of a tick

    def read(self) -> None:
        """Bring the book up to date.

        Raises
        ------
        StoreError, StoreUnavailable
            The book may hold part of the news; nothing may be decided on it until a later `read` succeeds.
        """
        if not self._scanned_all:
            self._scan_everything()
        if self._dropped:
            self._watches = [watch for watch in self._watches if watch.alive]
            self._requests = [watch.request for watch in self._watches]
            self._dropped = False
        known = self._watches
        replies = self._pipe.exchange([*self._requests, self._scan_command()])
        self._take_scan(replies.pop())
        for watch, reply in zip(known, replies, strict=True):
            if reply != watch.last:
                self._settle(watch, reply)
        self._read_pending()
        self._remove_vanished()

    def _read_pending(self) -> None:
        for _ in range(_ROUNDS_LIMIT):
            self._watch_new_rows()
            if not self._pending:
                return
            asked = self._pending
            replies = self._pipe.exchange([watch.request for watch in asked])
            self._pending = []
            for watch, reply in zip(asked, replies, strict=True):
                self._settle(watch, reply)
            self._watches.extend(asked)
            self._requests.extend(watch.request for watch in asked)
        raise AssertionError("orders, instruments, pairs: nothing hangs on a conversion pair")

    def _settle(self, watch: Watch, reply: Any) -> None:
        if watch.alive:
            watch.apply(reply)
            watch.last = reply

    def _watch(self, request: bytes, apply: Callable[[Any], None]) -> Watch:
        watch = Watch(request, apply)
        self._pending.append(watch)
        return watch

    # ---- finding accounts

    def _scan_command(self) -> bytes:
        return pack("SCAN", self._cursor, "MATCH", _PATTERNS[self._pattern], "COUNT", _SCAN_COUNT)

    def _scan_everything(self) -> None:
        self._cursor, self._pattern = b"0", 0
        while True:
            (reply,) = self._pipe.exchange([self._scan_command()])
            if isinstance(reply, Exception):
                raise StoreError(f"the server refused SCAN: {reply}", code="server_no_permission")
            self._take_scan(reply)
            if self._cursor == b"0" and self._pattern == 0:
                break
        self._scanned_all = True

    def _take_scan(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            log.error("scan_refused", reason=str(reply))
            return
        self._cursor, found = reply
        for key in found:
            try:
                account = keys.account_of_key(key)
            except InvalidId as refusal:
                self._refuse(key, refusal)
                continue
            if account not in self._accounts:
                self._watch_account(account)
        if self._cursor == b"0":
            self._pattern = (self._pattern + 1) % len(_PATTERNS)

    def _refuse(self, key: bytes, refusal: InvalidId) -> None:
        if key not in self.refused_keys and len(self.refused_keys) < _REFUSED_KEYS_REMEMBERED:
            self.refused_keys.add(key)
            log.warning("key_refused", code=refusal.code, reason=str(refusal))

    # ---- accounts and their orders

    def _watch_account(self, account: Account) -> None:
        row = self._book.ensure_account(account)
        watched = AccountWatch(
            config=self._watch(
                pack("HMGET", keys.config(account), *fields.ACCOUNT_FIELDS),
                lambda reply: self._apply_config(account, row, reply),
            ),
            index=self._watch(
                pack("SMEMBERS", keys.orders_index(account)), lambda reply: self._apply_index(account, row, reply)
            ),
        )
        self._accounts[account] = watched

    def _apply_config(self, account: Account, row: int, reply: Any) -> None:
        config = fields.decode_account(reply)
        self._accounts[account].has_config = config.code != RowCode.ACCOUNT_MISSING
        if config.code == RowCode.ACCOUNT_MISSING:
            self._perhaps_gone.add(account)
        if not self._book.set_account(row, config):
            log.warning("levels_replaced_by_default", account=str(account))

    def _apply_index(self, account: Account, row: int, reply: Any) -> None:
        watched = self._accounts[account]
        if isinstance(reply, Exception):
            self._drop_orders(row, watched, list(watched.orders))
            self._book.set_order(row, "", fields.OrderRow(RowCode.ORDERS_INDEX_UNREADABLE))
            return
        indexed = {_readable_id(member) for member in reply}
        if not indexed:
            self._perhaps_gone.add(account)
        self._drop_orders(row, watched, [order_id for order_id in watched.orders if order_id not in indexed])
        for order_id in [held for held in self._book.orders_of[row] if held not in indexed]:
            self._book.remove_order(row, order_id)
        for order_id in sorted(indexed - self._book.orders_of[row].keys()):
            self._watch_order(account, row, watched, order_id)

    def _watch_order(self, account: Account, row: int, watched: AccountWatch, order_id: str) -> None:
        try:
            key = keys.holding(account, keys.check_order_id(order_id))
        except InvalidId as refusal:
            log.warning("order_id_refused", account=str(account), code=refusal.code, reason=str(refusal))
            self._book.set_order(row, order_id, fields.OrderRow(RowCode.ORDER_ID_INVALID))
            return
        # Until it is read, the order makes its account unknown: half an account is not a healthy one.
        self._book.set_order(row, order_id, fields.OrderRow(RowCode.ORDER_MISSING))
        watched.orders[order_id] = self._watch(
            pack("HMGET", key, *fields.ORDER_FIELDS),
            lambda reply: self._book.set_order(row, order_id, fields.decode_order(reply)),
        )

    def _drop_orders(self, row: int, watched: AccountWatch, order_ids: list[str]) -> None:
        for order_id in order_ids:
            self._drop(watched.orders.pop(order_id))
            self._book.remove_order(row, order_id)

    def _drop(self, watch: Watch) -> None:
        watch.alive = False
        self._dropped = True

    def _remove_vanished(self) -> None:
        """Forget accounts that have neither a configuration nor orders any more."""
        gone = [
            account
            for account in self._perhaps_gone
            if not self._accounts[account].has_config and not self._book.orders_of[self._book.account_row[account]]
        ]
        self._perhaps_gone.clear()
        for account in gone:
            watched = self._accounts.pop(account)
            self._drop(watched.config)
            self._drop(watched.index)
            self._book.remove_account(account)
        if gone:
            log.info("accounts_removed", count=len(gone), first=str(gone[0]))

    # ---- instruments and quotes

    def _watch_new_rows(self) -> None:
        """Ask for the instruments and quotes that the last replies brought into the book."""
        instruments = self._book.instrument_keys
        for key in instruments[self._watched_instruments :]:
            self._watch_terms(key)
            self._watch_terms(InstrumentKey(keys.STANDARD_GROUP, key.symbol))
        self._watched_instruments = len(instruments)
        for symbol in self._book.symbols[self._watched_quotes :]:
            self._watch_quote(symbol)
        self._watched_quotes = len(self._book.symbols)

    def _watch_terms(self, key: InstrumentKey) -> None:
        if key in self._terms:
            return
        self._terms[key] = fields.InstrumentRow(RowCode.INSTRUMENT_MISSING)
        self._watch(
            pack("HMGET", keys.group(key.group, key.symbol), *fields.INSTRUMENT_FIELDS),
            lambda reply: self._apply_terms(key, fields.decode_instrument(reply)),
        )

    def _apply_terms(self, key: InstrumentKey, terms: fields.InstrumentRow) -> None:
        self._terms[key] = terms
        affected = [key] if key.group != keys.STANDARD_GROUP else [k for k in self._terms if k.symbol == key.symbol]
        for instrument in affected:
            row = self._book.instrument_row.get(instrument)
            if row is None:
                continue
            own = self._terms[instrument]
            if own.code == RowCode.INSTRUMENT_MISSING:
                own = self._terms.get(InstrumentKey(keys.STANDARD_GROUP, instrument.symbol), own)
            self._book.set_instrument(row, own)

    def _watch_quote(self, symbol: str) -> None:
        row = self._book.quote_row[symbol]
        self._watch(
            pack("HMGET", keys.market(symbol), *fields.QUOTE_FIELDS),
            lambda reply: self._book.set_quote(row, fields.decode_quote(reply)),
        )


def _readable_id(member: Any) -> str:
    """A set member as text; what is not ASCII is escaped and fails the id grammar."""
    return member.decode("ascii", "backslashreplace")[:80] if isinstance(member, bytes) else ascii(member)[:80]
