"""Books from plain texts, through the parser and the judgement that the daemon uses, and row by row for tests."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from copyrisk import fields, identifiers, layout
from copyrisk._columns import Columns
from copyrisk._wire import Replies
from copyrisk.book import Book
from copyrisk.fields import Names
from copyrisk.hours import MarketHours
from copyrisk.identifiers import Account
from copyrisk.layout import Rows
from copyrisk.market import InstrumentKey
from copyrisk.risk import Valuer
from copyrisk.rules import ValuationRules
from copyrisk.terms import Hedging, MarginPrice, RateSide
from tests.decoders import AccountRow, InstrumentRow, OrderRow, QuoteRow

NOW_MS = 1_700_000_000_000
ALWAYS_OPEN = MarketHours(always_open=True)
OPEN = np.ones(5, np.uint8)


def rules_of(given: Mapping[str, Any]) -> ValuationRules:
    parsed: dict[str, Any] = dict(given)
    kinds: dict[str, Any] = {"rate_side": RateSide, "margin_price": MarginPrice, "hedging": Hedging.parse}
    return ValuationRules(**{name: kinds.get(name, lambda x: x)(value) for name, value in parsed.items()})


def reply(names: Sequence[str], values: Mapping[str, Any]) -> list[bytes | None]:
    """What the server would answer for a hash that holds these values."""
    return [None if values.get(name) is None else str(values[name]).encode() for name in names]


def bulk(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def read(columns: Columns, names: Names, answers: Sequence[Any]) -> Rows:
    """The columns of these answers: each a list of values, a mapping, or an exception."""
    replies, out = Replies(names.index), np.zeros(len(answers), columns.dtype)
    replies.expect_rows(columns, out)
    for answer in answers:
        if isinstance(answer, Exception):
            sent = b"-%b\r\n" % str(answer).encode()
        else:
            values = reply(columns.fields, answer) if isinstance(answer, Mapping) else answer
            sent = b"*%d\r\n" % len(values) + b"".join(map(bulk, values))
        feed(replies, sent)
    assert replies.due == 0
    return out


def feed(replies: Replies, sent: bytes) -> None:
    while sent:
        room = replies.room()
        taken = min(len(room), len(sent))
        room[:taken] = sent[:taken]
        replies.fed(taken)
        sent = sent[taken:]


class PlainBook(Book):
    """A book that is also changed row by row."""

    @property
    def names(self) -> Names:
        return self.market.names

    def name(self, text: str) -> int:
        return self.names.index.put(text.encode()) if text else -1

    def set_quote(self, row: int, quote: QuoteRow) -> None:
        self.market.set_quotes(row, np.array([(quote.bid, quote.ask, quote.ts_ms, quote.code)], layout.QUOTE_READ))

    def set_instrument(self, row: int, terms: InstrumentRow) -> None:
        values = (terms.contract_size, terms.crypto_margin_factor, self.name(terms.profit_currency), terms.type)
        self.mark_stale(self.market.set_instrument(row, np.array([(*values, terms.code)], layout.INSTRUMENT_READ)[0]))

    def ensure_account(self, account: Account) -> int:
        return int(self.ensure_accounts([str(account).encode()])[0])

    def set_account(self, row: int, config: AccountRow) -> bool:
        levels = [
            math.nan if level is None else level for level in (config.warning_level_pct, config.critical_level_pct)
        ]
        ok = config.code == 1
        values = (config.balance if ok else math.nan, config.leverage, *levels, self.name(config.group), config.code)
        given = np.array([(*values, config.levels_valid)], layout.ACCOUNT_READ)
        return not self.set_accounts(np.array([row], np.int32), given)[1][0]

    def set_order(self, row: int, order_id: str, order: OrderRow) -> None:
        self.hold(row, [*self.orders_of(row), order_id])
        values = (
            order.lots,
            order.price,
            order.fees_usd,
            self.name(order.symbol),
            order.effect,
            order.is_buy,
            order.code,
        )
        self.set_orders(np.array([self.orders_of(row)[order_id]], np.int32), np.array([values], layout.ORDER_READ))

    def remove_order(self, row: int, order_id: str) -> None:
        self.hold(row, [held for held in self.orders_of(row) if held != order_id])

    def hold(self, row: int, order_ids: Sequence[str]) -> Any:
        unique = list(dict.fromkeys(order_ids))
        cells = np.zeros((len(unique), 65), np.uint8)
        for cell, order_id in zip(cells, unique, strict=True):
            cell[0], cell[1 : 1 + len(order_id)] = len(order_id), np.frombuffer(order_id.encode(), np.uint8)
        return self.list_orders(np.array([row], np.int32), np.array([len(unique)], np.int32), cells)

    def remove_account(self, account: Account) -> None:
        self.remove_accounts(np.array([self.row_of(account)], np.int32))

    def accounts_held(self) -> dict[str, int]:
        return {str(self.account_at(row)): row for row in self.account_rows().tolist()}


def figures_of(valuer: Valuer, now_ms: int = NOW_MS, market_is_open: Any = OPEN) -> Rows:
    valuer.value(now_ms, market_is_open)
    return valuer.figures


def fill_market(book: Book, instruments: Sequence[Mapping[str, Any]], group: str = "Standard") -> None:
    market = book.market
    for terms in instruments:
        row = market.ensure_instrument(InstrumentKey(group, terms["symbol"]))
        judged = fields.judge_instruments(read(fields.INSTRUMENT_COLUMNS, market.names, [terms]), market.names)
        book.mark_stale(market.set_instrument(row, judged[0]))
        quotes = read(fields.QUOTE_COLUMNS, market.names, [{"ts": NOW_MS, **terms}])
        market.set_quotes(market.quote_row[terms["symbol"]], fields.judge_quotes_read(quotes))


def fill_account(book: PlainBook, name: str, config: Mapping[str, Any], orders: Sequence[Mapping[str, Any]]) -> int:
    row = book.ensure_account(identifiers.parse_account(name))
    configs = fields.judge_accounts(read(fields.ACCOUNT_COLUMNS, book.names, [config]), book.names)
    book.set_accounts(np.array([row], np.int32), configs)
    given = [{"order_status": "OPEN", "execution_status": "EXECUTED", **order} for order in orders]
    _, new = book.hold(row, [f"O{number}" for number in range(len(orders))])
    book.set_orders(new, fields.judge_orders(read(fields.ORDER_COLUMNS, book.names, given), book.names))
    return row


def value_one(
    config: Mapping[str, Any],
    instruments: Sequence[Mapping[str, Any]],
    orders: Sequence[Mapping[str, Any]],
    rules: Mapping[str, Any] | None = None,
) -> Any:
    """Figures of a single account."""
    book = PlainBook(rules_of(rules or {}))
    fill_market(book, instruments)
    row = fill_account(book, "live:1", config, orders)
    return figures_of(Valuer(book))[row]
