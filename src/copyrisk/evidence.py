"""What was known of accounts when something was decided about them, as plain words and numbers. Pure."""

import math
from typing import Any

import numpy as np

from copyrisk._core import OrderEffect, RowCode
from copyrisk._cutoff import order_pnls
from copyrisk.book import Book
from copyrisk.errors import reason_name
from copyrisk.risk import Valuer
from copyrisk.terms import OrderType

_POSITIONS = 5
_SYMBOLS = 64
_FIGURES = {
    "level_pct": "margin_level_pct",
    "equity_usd": "equity",
    "used_margin_usd": "used_margin_executed",
    "open_pnl_usd": "open_pnl",
}
_OF_ACCOUNT = {
    "warning_level_pct": "warning_level_pct",
    "critical_level_pct": "critical_level_pct",
    "balance_usd": "balance",
}


class Evidence:
    """Of one tick; what many accounts share is put into words once."""

    def __init__(self, book: Book, valuer: Valuer, now_ms: int) -> None:
        self._book, self._valuer, self._now_ms = book, valuer, now_ms
        self._quotes: dict[int, dict[str, Any]] = {}
        self._quotes_of: dict[int, list[int]] = {}

    def figures(self, row: int) -> dict[str, float | None]:
        """An account's figures and levels; what is not known is `None`."""
        found, account = self._valuer.figures[row], self._book.accounts[row]
        said = {name: _number(found[column]) for name, column in _FIGURES.items()}
        return said | {name: _number(account[column]) for name, column in _OF_ACCOUNT.items()}

    def quotes(self, row: int) -> dict[str, dict[str, Any]]:
        """The quotes an account is valued by, conversions included: bid, ask, age in ms, and the verdict on them."""
        book = self._book
        wanted: dict[int, None] = {}
        order_row = int(book.order_heads[row])
        while order_row >= 0:
            order = book.orders[order_row]
            wanted |= dict.fromkeys(self._quotes_behind(int(order["instrument"])))
            order_row = int(order["next"])
        return {book.market.symbols[quote]: self._quote(quote) for quote in sorted(wanted)[:_SYMBOLS]}

    def _quotes_behind(self, instrument: int) -> list[int]:
        """Rows of the quotes that an instrument is valued by; of two ways to convert there is but one."""
        if instrument < 0:
            return []
        if instrument not in self._quotes_of:
            market = self._book.market
            rows = {int(market.instruments[instrument][name]) for name in ("quote", "direct", "inverse")} - {-1}
            there = [quote for quote in rows if market.quotes[quote]["read_code"] != RowCode.QUOTE_MISSING]
            self._quotes_of[instrument] = there
        return self._quotes_of[instrument]

    def _quote(self, row: int) -> dict[str, Any]:
        if row not in self._quotes:
            quote = self._book.market.quotes[row]
            self._quotes[row] = {
                "bid": _number(quote["bid"]),
                "ask": _number(quote["ask"]),
                "age_ms": self._now_ms - int(quote["ts_ms"]) if quote["ts_ms"] >= 0 else None,
                "verdict": reason_name(int(quote["code"])),
            }
        return self._quotes[row]

    def worst_positions(self, row: int) -> list[dict[str, Any]]:
        """The positions that cost an account most, at most five."""
        book = self._book
        held = {
            order_id: order_row
            for order_id, order_row in book.orders_of(row).items()
            if book.orders[order_row]["effect"] == OrderEffect.EXECUTED and book.orders[order_row]["code"] == RowCode.OK
        }
        rows, pnls = np.array(list(held.values()), np.int32), np.zeros(len(held))
        order_pnls(rows, book.orders, book.market.instruments, self._valuer.rates, pnls)
        found = []
        for pnl, order_id in sorted(zip(pnls.tolist(), held, strict=True))[:_POSITIONS]:
            order = book.orders[held[order_id]]
            side = OrderType.BUY if order["is_buy"] else OrderType.SELL
            found.append(
                {
                    "order_id": order_id,
                    "symbol": book.market.instrument_keys[int(order["instrument"])].symbol,
                    "side": side.value,
                    "lots": float(order["lots"]),
                    "pnl_usd": _number(pnl),
                }
            )
        return found


def _number(value: Any) -> float | None:
    number = float(value)
    return round(number, 8) if math.isfinite(number) else None
