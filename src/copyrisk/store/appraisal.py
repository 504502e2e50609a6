"""Accounts for the length of a decision: their figures by the same kernels that value the whole book.

A wave of accounts is laid out in a small book, with the quotes and terms they need, and forgotten afterwards; symbols
and instruments stay, so that a later wave asks for all it needs at once.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from copyrisk import fields, keys, layout
from copyrisk._core import OrderEffect, RowCode, judge_quotes
from copyrisk._wire import READ, REFUSED_REPLY
from copyrisk.book import Book, RowNumbers
from copyrisk.conditions import Conditions, LotLimits, read_conditions
from copyrisk.decimals import ZERO, cents, parse_decimal
from copyrisk.errors import Refused, is_known, reason_name
from copyrisk.hours import MarketHours
from copyrisk.layout import Rows
from copyrisk.market import InstrumentKey
from copyrisk.records import Order
from copyrisk.risk import Valuer, fully_known, reasons
from copyrisk.rules import ValuationRules
from copyrisk.situation import NO_QUOTE, Quote, SymbolMarket
from copyrisk.store.connection import store_error
from copyrisk.store.functions import AccountRead, text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.texts import TextColumns

_ID_BYTES = 64
_OF_ONE_KEY = ("WRONGTYPE", "NOPERM")
#: Doubles that should be equal may differ by this; a ten-thousandth of a cent opens no position.
_GRACE_USD = 1e-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an account can carry an order: the order's own margin, and `ok` or why not."""

    margin_usd: Decimal
    code: str
    message: str = ""


class Appraiser:
    """Reads markets and values accounts, a wave at a time."""

    def __init__(self, pipe: Pipe, rules: ValuationRules, hours: MarketHours, default_lots: LotLimits) -> None:
        self._pipe, self._hours, self._default_lots = pipe, hours, default_lots
        self._book = Book(rules)
        self._market, self._valuer = self._book.market, Valuer(self._book)
        self._columns = TextColumns(self._market.names.index)
        self._exact: dict[int, tuple[Decimal | None, Decimal | None]] = {}
        self._conditions: dict[int, Conditions | Refused] = {}
        self._reads: Sequence[AccountRead] = ()
        self._instruments: list[int] = []
        self._rows: RowNumbers = np.zeros(0, np.int32)
        self._accounts: Rows = np.zeros(0, layout.ACCOUNT_READ)
        self.now_ms = 0

    def lay_out(self, reads: Sequence[AccountRead], symbols: Sequence[str]) -> None:
        """Take accounts, each once, and of each the symbol that its decision is about (empty: none).

        Raises
        ------
        StoreError, StoreUnavailable
        """
        book, names = self._book, self._market.names
        book.remove_accounts(book.account_rows())
        self._reads = reads
        self._rows = book.ensure_accounts(str(read.account).encode() for read in reads)
        self._accounts = fields.judge_accounts(
            self._columns.rows(fields.ACCOUNT_COLUMNS, [read.config_row for read in reads]), names
        )
        book.set_accounts(self._rows, self._accounts)
        orders = self._lay_out_orders()
        groups = self._accounts["group"].tolist()
        self._instruments = [
            self._market.instrument_of(group, names.index.put(symbol.encode())) if symbol else -1
            for group, symbol in zip(groups, symbols, strict=True)
        ]
        held = book.orders["instrument"][orders]
        needed = {*self._instruments, *held.tolist()} - {-1}
        self._read_market(sorted(needed))
        self.now_ms = time.time_ns() // 1_000_000
        judge_quotes(self._market.quotes, self.now_ms, self._hours.open_by_type(self.now_ms))

    def _lay_out_orders(self) -> RowNumbers:
        book = self._book
        cells = _cells(order_id for read in self._reads for order_id in read.order_ids)
        counts = np.array([len(read.order_ids) for read in self._reads], np.int32)
        book.list_orders(self._rows, counts, cells)
        rows = book.order_ids.find_cells(np.repeat(self._rows, counts), cells)
        read = self._columns.rows(fields.ORDER_COLUMNS, [row for read in self._reads for row in read.order_rows])
        usable = (rows >= 0) & keys.are_order_ids(cells)
        rows = rows[usable]
        book.set_orders(rows, fields.judge_orders(read[usable], self._market.names))
        return rows

    # ---- markets

    def _read_market(self, instruments: list[int]) -> None:
        """Read the terms and quotes of these instruments, and the quotes that convert their profit."""
        wanted = [self._market.instrument_keys[row] for row in instruments]
        asked = list(dict.fromkeys(key for own in wanted for key in (own, _standard(own))))
        quotes = self._quotes_of(instruments)
        replies = self._ask(
            [pack("HGETALL", keys.group(key.group, key.symbol)) for key in asked]
            + [_quote_request(self._market.symbols[row]) for row in quotes]
        )
        self._set_terms(instruments, dict(zip(asked, replies, strict=False)))
        self._set_quotes(quotes, replies[len(asked) :])
        more = [row for row in self._quotes_of(instruments) if row not in set(quotes)]
        if more:  # the first time that the profit of an instrument is converted
            self._set_quotes(more, self._ask([_quote_request(self._market.symbols[row]) for row in more]))

    def _ask(self, requests: list[bytes]) -> list[Any]:
        replies = self._pipe.exchange(requests)
        for reply in replies:
            if isinstance(reply, Exception) and not str(reply).startswith(_OF_ONE_KEY):
                raise store_error(redis.ResponseError(str(reply)))
        return replies

    def _quotes_of(self, instruments: list[int]) -> list[int]:
        found = self._market.instruments[instruments]
        rows = np.unique(np.concatenate([found["quote"], found["direct"], found["inverse"]]))
        chosen: list[int] = rows[rows >= 0].tolist()
        return chosen

    def _set_terms(self, instruments: list[int], replies: Mapping[InstrumentKey, Any]) -> None:
        moved = 0
        for row in instruments:
            key = self._market.instrument_keys[row]
            own, standard = replies[key], replies[_standard(key)]
            reply = own if own or isinstance(own, Exception) else standard
            judged = self._judge_terms(reply)
            standard_type = self._judge_terms(standard)["type"] if reply is not standard else judged["type"]
            self._market.set_type(_standard(key), int(standard_type))
            moved |= self._market.set_instrument(row, judged)
            self._conditions[row] = self._conditions_of(reply, RowCode(int(judged["code"])))
        self._book.mark_stale(moved)

    def _judge_terms(self, reply: Any) -> Any:
        wanted = fields.INSTRUMENT_COLUMNS.fields
        said = {} if isinstance(reply, Exception) else _hash(reply)
        read = self._columns.rows(fields.INSTRUMENT_COLUMNS, [[said.get(name.encode()) for name in wanted]])
        read["reply"] = REFUSED_REPLY if isinstance(reply, Exception) else READ
        return fields.judge_instruments(read, self._market.names)[0]

    def _conditions_of(self, reply: Any, code: RowCode) -> Conditions | Refused:
        if code != RowCode.OK:
            return Refused("the symbol's terms cannot be used", code=reason_name(code))
        said = {text(name): text(value) for name, value in _hash(reply).items()}
        try:
            return read_conditions(said, self._default_lots)
        except Refused as refusal:
            return refusal

    def _set_quotes(self, rows: Sequence[int], replies: Sequence[Any]) -> None:
        blank = [None] * len(fields.QUOTE_COLUMNS.fields)
        hashes = [blank if isinstance(reply, Exception) else reply for reply in replies]
        read = self._columns.rows(fields.QUOTE_COLUMNS, hashes)
        read["reply"][[isinstance(reply, Exception) for reply in replies]] = REFUSED_REPLY
        judged = fields.judge_quotes_read(read)
        for i, row in enumerate(rows):
            self._market.set_quotes(row, judged[i : i + 1])
            self._exact[row] = parse_decimal(text(hashes[i][0])), parse_decimal(text(hashes[i][1]))

    def market_of(self, i: int) -> SymbolMarket | None:
        """The market of the symbol that the decision about the i-th account is about."""
        row = self._instruments[i]
        if row < 0:
            return None
        instrument = self._market.instruments[row]
        return SymbolMarket(
            self._market.instrument_keys[row].symbol,
            self._quote(int(instrument["quote"])),
            self._conditions[row],
            bool(instrument["profit_is_usd"]),
            self._quote(int(instrument["direct"])),
            self._quote(int(instrument["inverse"])),
            self._book.rules.rate_side,
        )

    def _quote(self, row: int) -> Quote:
        if row < 0:
            return NO_QUOTE
        bid, ask = self._exact.get(row, (None, None))
        code = RowCode(int(self._market.quotes[row]["code"]))
        if bid is None or ask is None:
            return Quote(ZERO, ZERO, RowCode.QUOTE_UNREADABLE if is_known(code) else code)
        return Quote(bid, ask, code)

    # ---- margin

    def judge(self, candidates: Sequence[tuple[int, Order]]) -> list[Verdict]:
        """Whether accounts (by their place in the wave) could carry an order each, with all they carry already."""
        if not candidates:
            return []
        book = self._book
        places = [i for i, _ in candidates]
        ids = [[*self._others(i, order), order.id.encode()] for i, order in candidates]
        rows = self._rows[places]
        book.list_orders(rows, np.array([len(of) for of in ids], np.int32), _cells(id_ for of in ids for id_ in of))
        # The order alone, in an account of its own: what it is charged when there is nothing to offset it.
        alone = book.ensure_accounts(b"?%d" % i for i in places)
        book.set_accounts(alone, self._accounts[places])
        own_ids = _cells(order.id.encode() for _, order in candidates)
        book.list_orders(alone, np.ones(len(alone), np.int32), own_ids)
        reserving = self._reserving([order for _, order in candidates])
        for owners in (rows, alone):
            book.set_orders(book.order_ids.find_cells(owners, own_ids), reserving)
        self._valuer.value(self.now_ms, self._hours.open_by_type(self.now_ms))
        return [self._verdict(i, int(row), int(lone)) for i, row, lone in zip(places, rows, alone, strict=True)]

    def _others(self, i: int, order: Order) -> list[bytes]:
        return [order_id for order_id in self._reads[i].order_ids if order_id != order.id.encode()]

    def _reserving(self, orders: Sequence[Order]) -> Rows:
        read: Rows = np.zeros(len(orders), layout.ORDER_READ)
        read["lots"] = [float(order.asked) for order in orders]
        read["price"] = [float(order.price) for order in orders]
        read["symbol"] = [self._market.names.index.put(order.symbol.encode()) for order in orders]
        read["is_buy"] = [order.order_type.is_buy for order in orders]
        read["effect"], read["code"] = OrderEffect.RESERVED, RowCode.OK
        return read

    def _verdict(self, i: int, row: int, alone: int) -> Verdict:
        figures = self._valuer.figures
        if not fully_known(figures[[row, alone]]).all():
            why = ", ".join(reasons(self._book, figures, row))
            return Verdict(ZERO, "account_unknown", f"the account's figures are not known: {why}")
        reserved = parse_decimal(self._reads[i].reserved_usd or "0")
        if reserved is None:
            return Verdict(ZERO, "account_unknown", "the account's reserved margin cannot be read")
        free = float(figures[row]["equity"]) - float(figures[row]["used_margin_all"]) - float(reserved)
        margin = cents(Decimal(repr(float(figures[alone]["used_margin_all"]))))
        return Verdict(margin, "ok" if free >= -_GRACE_USD else "insufficient_margin")


def _standard(key: InstrumentKey) -> InstrumentKey:
    return InstrumentKey(keys.STANDARD_GROUP, key.symbol)


def _quote_request(symbol: str) -> bytes:
    return pack("HMGET", keys.market(symbol), *fields.QUOTE_COLUMNS.fields)


def _hash(reply: Any) -> dict[bytes, bytes]:
    """A hash that came flat, or (with the newer protocol) as a map."""
    if isinstance(reply, dict):
        return reply
    return {reply[i]: reply[i + 1] for i in range(0, len(reply), 2)}


def _cells(ids: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    """(n, 65) uint8: order ids as `Book.list_orders` takes them."""
    packed = b"".join(bytes((min(len(id_), 255),)) + id_[:_ID_BYTES].ljust(_ID_BYTES, b"\0") for id_ in ids)
    return np.frombuffer(packed, np.uint8).reshape(-1, 1 + _ID_BYTES).copy()
