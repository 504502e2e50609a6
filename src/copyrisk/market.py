"""The market: packed arrays of quotes and instruments with their id -> row maps. Rows are never freed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from copyrisk import layout
from copyrisk._core import RowCode
from copyrisk.fields import Names
from copyrisk.keys import STANDARD_GROUP
from copyrisk.layout import Rows
from copyrisk.rules import ValuationRules
from copyrisk.table import Table
from copyrisk.terms import HedgingMode

_FOREX = 1


@dataclass(frozen=True, slots=True)
class InstrumentKey:
    """An instrument is a symbol under the terms of one group."""

    group: str
    symbol: str


class Market:
    """Quotes and instruments, laid out under one set of rules.

    Attributes
    ----------
    names : Names
        Symbols, groups and currencies.
    quote_row : dict of str to int
    symbols : list of str
        By row of `quotes`.
    instrument_row : dict of InstrumentKey to int
    instrument_keys : list of InstrumentKey
        By row of `instruments`.
    """

    def __init__(self, rules: ValuationRules) -> None:
        self._rules, self.names = rules, Names()
        self._quotes, self._instruments = Table(layout.QUOTE), Table(layout.INSTRUMENT)
        self.quote_row: dict[str, int] = {}
        self.symbols: list[str] = []
        self.instrument_row: dict[InstrumentKey, int] = {}
        self.instrument_keys: list[InstrumentKey] = []
        self._row_of_names: dict[tuple[int, int], int] = {}
        self._types: dict[str, dict[str, int]] = {}

    @property
    def quotes(self) -> Rows:
        """(q,) Quote; a view that the next insertion may replace."""
        rows: Rows = self._quotes.rows
        return rows

    @property
    def instruments(self) -> Rows:
        """(i,) Instrument; a view that the next insertion may replace."""
        rows: Rows = self._instruments.rows
        return rows

    def ensure_quote(self, symbol: str) -> int:
        """Row of a symbol's quote; a new one is missing until `set_quotes`."""
        row = self.quote_row.get(symbol)
        if row is None:
            row = self.quote_row[symbol] = self._quotes.add(1)
            self.symbols.append(symbol)
            target: Any = self.quotes[row]
            target["bid"] = target["ask"] = np.nan
            target["ts_ms"], target["read_code"] = -1, RowCode.QUOTE_MISSING
            self._set_market(row, symbol, _FOREX)  # until an instrument says otherwise
        return row

    def set_quotes(self, first: int, read: Rows) -> None:
        """Store consecutive quotes from row `first`: (n,) `layout.QUOTE_READ`."""
        target: Any = self.quotes[first : first + len(read)]
        target["bid"], target["ask"], target["ts_ms"] = read["bid"], read["ask"], read["ts_ms"]
        target["read_code"] = read["code"]

    def _set_market(self, row: int, symbol: str, instrument_type: int) -> None:
        """Whose opening hours a symbol follows and how old its quote may be."""
        self.quotes[row]["market"] = instrument_type
        self.quotes[row]["max_age_ms"] = self._rules.max_age_ms(symbol, instrument_type)

    def set_type(self, key: InstrumentKey, instrument_type: int) -> None:
        """Take notice of a group's instrument type (0: none) for a symbol.

        A symbol has one market, whose hours and greatest age hold for all: that of `Standard`, else that of the first
        group by name. Before there is any it is taken for forex.
        """
        types = self._types.setdefault(key.symbol, {})
        types[key.group] = instrument_type
        known = {group: found for group, found in types.items() if found}
        chosen = known.get(STANDARD_GROUP) or (known[min(known)] if known else _FOREX)
        self._set_market(self.ensure_quote(key.symbol), key.symbol, chosen)

    def ensure_instrument(self, key: InstrumentKey) -> int:
        """Row of an instrument; a new one is missing until `set_instrument`."""
        row = self.instrument_row.get(key)
        if row is None:
            row = self.instrument_row[key] = self._instruments.add(1)
            self.instrument_keys.append(key)
            target: Any = self.instruments[row]
            target["quote"], target["direct"], target["inverse"] = self.ensure_quote(key.symbol), -1, -1
            target["read_code"] = RowCode.INSTRUMENT_MISSING
        return row

    def set_instrument(self, row: int, terms: Any) -> int:
        """Store one `layout.INSTRUMENT_READ`; returns the bits of accounts to fold again, 0 if nothing changed."""
        symbol = self.instrument_keys[row].symbol
        hedging = self._rules.hedging_of(symbol)
        target: Any = self.instruments[row]
        before = target.tobytes()
        target["contract_size"], target["margin_factor"] = terms["contract_size"], terms["crypto_margin_factor"]
        target["cover"], target["highest_price"] = hedging.cover, hedging.mode is HedgingMode.MAX
        target["margin_at_open"] = self._rules.margin_at_open(int(terms["type"]))
        target["read_code"], target["direct"], target["inverse"], target["profit_is_usd"] = terms["code"], -1, -1, False
        self.set_type(self.instrument_keys[row], int(terms["type"]))
        if terms["code"] == RowCode.OK:
            currency = terms["profit_currency"]
            if self.names.are("usd", np.array([currency]))[0]:
                target["profit_is_usd"] = True
            else:
                name = self.names.text(currency)
                target["direct"], target["inverse"] = self.ensure_quote(name + "USD"), self.ensure_quote("USD" + name)
        return 0 if target.tobytes() == before else 1 << int(target["quote"]) % 64

    def instrument_of(self, group: int, symbol: int) -> int:
        """Row of the instrument of two names."""
        row = self._row_of_names.get((group, symbol))
        if row is None:
            key = InstrumentKey(self.names.text(group), self.names.text(symbol))
            row = self._row_of_names[group, symbol] = self.ensure_instrument(key)
        return row
