"""Builds a book from plain texts through the decoders that the daemon uses."""

from collections.abc import Mapping, Sequence
from typing import Any

from copyrisk import fields, keys
from copyrisk.book import Book, InstrumentKey
from copyrisk.hours import MarketHours
from copyrisk.risk import Valuer
from copyrisk.rules import ValuationRules
from copyrisk.terms import Hedging, MarginPrice, RateSide

NOW_MS = 1_700_000_000_000
ALWAYS_OPEN = MarketHours(always_open=True)


def rules_of(given: Mapping[str, Any]) -> ValuationRules:
    parsed: dict[str, Any] = dict(given)
    kinds: dict[str, Any] = {"rate_side": RateSide, "margin_price": MarginPrice, "hedging": Hedging.parse}
    return ValuationRules(**{name: kinds.get(name, lambda x: x)(value) for name, value in parsed.items()})


def reply(names: Sequence[str], values: Mapping[str, Any]) -> list[bytes | None]:
    """What the server would answer for a hash that holds these values."""
    return [None if values.get(name) is None else str(values[name]).encode() for name in names]


def fill_market(book: Book, instruments: Sequence[Mapping[str, Any]], group: str = "Standard") -> None:
    for terms in instruments:
        row = book.ensure_instrument(InstrumentKey(group, terms["symbol"]))
        book.set_instrument(row, fields.decode_instrument(reply(fields.INSTRUMENT_FIELDS, terms)))
        quote = {"ts": NOW_MS, **terms}
        book.set_quote(book.quote_row[terms["symbol"]], fields.decode_quote(reply(fields.QUOTE_FIELDS, quote)))


def fill_account(book: Book, name: str, config: Mapping[str, Any], orders: Sequence[Mapping[str, Any]]) -> int:
    account = keys.parse_account(name)
    row = book.ensure_account(account)
    book.set_account(row, fields.decode_account(reply(fields.ACCOUNT_FIELDS, config)))
    for number, order in enumerate(orders):
        given = {"order_status": "OPEN", "execution_status": "EXECUTED", **order}
        book.set_order(row, f"O{number}", fields.decode_order(reply(fields.ORDER_FIELDS, given)))
    return row


def value_one(
    config: Mapping[str, Any],
    instruments: Sequence[Mapping[str, Any]],
    orders: Sequence[Mapping[str, Any]],
    rules: Mapping[str, Any] | None = None,
) -> Any:
    """Figures of a single account."""
    book = Book(rules_of(rules or {}))
    fill_market(book, instruments)
    row = fill_account(book, "live:1", config, orders)
    return Valuer(book).value(NOW_MS, ALWAYS_OPEN.open_by_type(NOW_MS))[row]
