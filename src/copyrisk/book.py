"""The book: packed arrays of quotes, instruments, accounts, orders and legs, with id <-> row maps.

It holds what is known and knows neither where it came from nor what time it is. A row keeps its number while
it lives; freed rows are used again. Insertion and removal are O(1) (amortised: arrays and leg segments grow
by doubling). What must be folded again before the next valuation is collected in `stale_accounts`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk import layout
from copyrisk._core import RowCode, fold_accounts
from copyrisk.fields import USD_LIKE, AccountRow, InstrumentRow, OrderRow, QuoteRow
from copyrisk.keys import STANDARD_GROUP, Account
from copyrisk.layout import Rows
from copyrisk.rules import ValuationRules
from copyrisk.terms import HedgingMode

_FIRST_ROWS = 64
_FOREX = 1
_COMPACT_ABOVE_LEGS = 4096


class Table:
    """One growing structured array with stable rows: `rows[:high]` has been used, `free` may be used again."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self._all: Rows = np.zeros(_FIRST_ROWS, dtype)
        self.high = 0
        self._free: list[int] = []

    @property
    def rows(self) -> Rows:
        """All rows used so far (a view; a later `take` may replace the array behind it)."""
        return self._all[: self.high]

    def take(self) -> int:
        """A row to fill, all zero."""
        if self._free:
            return self._free.pop()
        self.take_many(1)
        return self.high - 1

    def take_many(self, count: int) -> int:
        """The first of `count` consecutive rows."""
        first, needed = self.high, self.high + count
        if needed > len(self._all):
            grown = np.zeros(max(needed, 2 * len(self._all)), self._all.dtype)
            grown[: self.high] = self.rows
            self._all = grown
        self.high = needed
        return first

    def give_back(self, row: int) -> None:
        """Empty a row and let it be used again."""
        self._all[row] = np.zeros((), self._all.dtype)
        self._free.append(row)


@dataclass(frozen=True, slots=True)
class InstrumentKey:
    """An instrument is a symbol under the terms of one group."""

    group: str
    symbol: str


class Book:
    """Packed arrays and the maps to their rows, laid out under one set of rules.

    `accounts_version` changes whenever an account gets or loses its row.
    """

    def __init__(self, rules: ValuationRules) -> None:
        self.rules = rules
        self._quotes, self._instruments = Table(layout.QUOTE), Table(layout.INSTRUMENT)
        self._accounts, self._orders, self._legs = Table(layout.ACCOUNT), Table(layout.ORDER), Table(layout.LEG)
        self._order_head: npt.NDArray[np.int32] = np.full(_FIRST_ROWS, -1, np.int32)
        self.quote_row: dict[str, int] = {}
        self.symbols: list[str] = []
        self._standard_quotes: set[int] = set()
        self.instrument_row: dict[InstrumentKey, int] = {}
        self.instrument_keys: list[InstrumentKey] = []
        self.account_row: dict[Account, int] = {}
        self.account_of: dict[int, Account] = {}
        self.group_of: dict[int, str] = {}
        self.orders_of: dict[int, dict[str, int]] = {}
        self._order_symbol: dict[int, str] = {}
        self.stale_accounts: set[int] = set()
        self.accounts_version = 0
        self._unused_legs = 0

    # ---- arrays for the kernels (views that the next insertion may replace)

    @property
    def quotes(self) -> Rows:
        """(q,) Quote."""
        return self._quotes.rows

    @property
    def instruments(self) -> Rows:
        """(i,) Instrument."""
        return self._instruments.rows

    @property
    def accounts(self) -> Rows:
        """(a,) Account; a freed row is all zero, its code `UNKNOWN`."""
        return self._accounts.rows

    @property
    def orders(self) -> Rows:
        """(o,) Order."""
        return self._orders.rows

    @property
    def legs(self) -> Rows:
        """(l,) Leg; segments of accounts with unused room between them."""
        return self._legs.rows

    # ---- quotes and instruments

    def ensure_quote(self, symbol: str) -> int:
        """Row of a symbol's quote; a new one is missing until `set_quote`."""
        row = self.quote_row.get(symbol)
        if row is None:
            row = self.quote_row[symbol] = self._quotes.take()
            self.symbols.append(symbol)
            self.set_quote(row, QuoteRow(RowCode.QUOTE_MISSING))
            self._set_market(row, symbol, _FOREX)  # until an instrument says otherwise
        return row

    def set_quote(self, row: int, quote: QuoteRow) -> None:
        """Store what was read of a quote."""
        target: Any = self.quotes[row]
        target["bid"], target["ask"], target["ts_ms"] = quote.bid, quote.ask, quote.ts_ms
        target["read_code"] = quote.code

    def _set_market(self, row: int, symbol: str, instrument_type: int) -> None:
        """Whose opening hours a symbol follows and how old its quote may be."""
        self.quotes[row]["market"] = instrument_type
        self.quotes[row]["max_age_ms"] = self.rules.max_age_ms(symbol, instrument_type)

    def _follow_hours(self, row: int, key: InstrumentKey, instrument_type: int) -> None:
        """A symbol has one market: where groups disagree on its type, `Standard` decides for all of them."""
        if key.group == STANDARD_GROUP:
            self._standard_quotes.add(row)
        if key.group == STANDARD_GROUP or row not in self._standard_quotes:
            self._set_market(row, key.symbol, instrument_type)

    def ensure_instrument(self, key: InstrumentKey) -> int:
        """Row of an instrument; a new one is missing until `set_instrument`."""
        row = self.instrument_row.get(key)
        if row is None:
            row = self.instrument_row[key] = self._instruments.take()
            self.instrument_keys.append(key)
            target: Any = self.instruments[row]
            target["quote"], target["direct"], target["inverse"] = self.ensure_quote(key.symbol), -1, -1
            target["read_code"] = RowCode.INSTRUMENT_MISSING
        return row

    def set_instrument(self, row: int, terms: InstrumentRow) -> None:
        """Store contract terms; every account that holds the instrument is folded again."""
        symbol = self.instrument_keys[row].symbol
        hedging, usd = self.rules.hedging_of(symbol), terms.profit_currency in USD_LIKE
        target: Any = self.instruments[row]
        target["contract_size"], target["margin_factor"] = terms.contract_size, terms.crypto_margin_factor
        target["cover"], target["highest_price"] = hedging.cover, hedging.mode is HedgingMode.MAX
        target["margin_at_open"], target["profit_is_usd"] = self.rules.margin_at_open(terms.type), usd
        target["read_code"] = terms.code
        if terms.code == RowCode.OK:
            self._follow_hours(int(target["quote"]), self.instrument_keys[row], terms.type)
        if terms.code == RowCode.OK and not usd:
            direct = self.ensure_quote(terms.profit_currency + "USD")
            inverse = self.ensure_quote("USD" + terms.profit_currency)
            target["direct"], target["inverse"] = direct, inverse
        held = self.orders["instrument"] == row
        self.stale_accounts.update(np.unique(self.orders["account"][held & (self.orders["code"] != 0)]).tolist())

    # ---- accounts

    def ensure_account(self, account: Account) -> int:
        """Row of an account; a new one is unknown until `set_account`."""
        row = self.account_row.get(account)
        if row is None:
            row = self.account_row[account] = self._accounts.take()
            self.account_of[row] = account
            self.accounts_version += 1
            self.orders_of[row] = {}
            if row >= len(self._order_head):
                self._order_head = np.concatenate([self._order_head, np.full_like(self._order_head, -1)])
            self._order_head[row] = -1
            self.set_account(row, AccountRow(RowCode.UNKNOWN))
        return row

    def set_account(self, row: int, config: AccountRow) -> bool:
        """Store what was read of an account's configuration.

        Returns whether its thresholds stand as they are. A critical level above the warning level, be it the default
        one, makes no sense: nobody could be warned; both are replaced by the defaults.
        """
        target: Any = self.accounts[row]
        default = self.rules.warning_level_pct, self.rules.critical_level_pct
        warning = default[0] if config.warning_level_pct is None else config.warning_level_pct
        critical = default[1] if config.critical_level_pct is None else config.critical_level_pct
        in_order = critical <= warning
        target["balance"] = config.balance if config.code == RowCode.OK else math.nan
        target["leverage"] = config.leverage
        target["warning_level_pct"], target["critical_level_pct"] = (warning, critical) if in_order else default
        target["read_code"] = config.code
        self.stale_accounts.add(row)
        if self.group_of.get(row) != config.group:
            self.group_of[row] = config.group
            for order in self.orders_of[row].values():
                self._rehome(order, config.group)
        return in_order and config.levels_valid

    def remove_account(self, account: Account) -> None:
        """Forget an account and its orders."""
        row = self.account_row.pop(account)
        self.accounts_version += 1
        for order_id in list(self.orders_of[row]):
            self.remove_order(row, order_id)
        self._unused_legs += int(self.accounts[row]["capacity"])
        del self.account_of[row], self.orders_of[row], self.group_of[row]
        self.stale_accounts.discard(row)
        self._accounts.give_back(row)

    # ---- orders

    def set_order(self, account_row: int, order_id: str, order: OrderRow) -> None:
        """Insert or replace one order of an account."""
        held = self.orders_of[account_row]
        row = held.get(order_id)
        if row is None:
            row = held[order_id] = self._orders.take()
            self._link(row, account_row)
        target: Any = self.orders[row]
        target["lots"], target["price"], target["fees_usd"] = order.lots, order.price, order.fees_usd
        target["effect"], target["is_buy"], target["code"] = order.effect, order.is_buy, order.code
        self._order_symbol[row] = order.symbol
        self._rehome(row, self.group_of[account_row])
        self.stale_accounts.add(account_row)

    def remove_order(self, account_row: int, order_id: str) -> None:
        """Forget one order."""
        row = self.orders_of[account_row].pop(order_id)
        before, after = int(self.orders[row]["prev"]), int(self.orders[row]["next"])
        if before >= 0:
            self.orders[before]["next"] = after
        else:
            self._order_head[account_row] = after
        if after >= 0:
            self.orders[after]["prev"] = before
        self._order_symbol.pop(row, None)
        self._orders.give_back(row)
        self.stale_accounts.add(account_row)

    def _link(self, row: int, account_row: int) -> None:
        """Put a new order at the head of its account's list."""
        target: Any = self.orders[row]
        head = int(self._order_head[account_row])
        target["account"], target["prev"], target["next"] = account_row, -1, head
        if head >= 0:
            self.orders[head]["prev"] = row
        self._order_head[account_row] = row

    def _rehome(self, order_row: int, group: str) -> None:
        """Point an order at its instrument: the symbol under its account's group."""
        symbol = self._order_symbol.get(order_row, "")
        instrument = self.ensure_instrument(InstrumentKey(group, symbol)) if symbol else -1
        self.orders[order_row]["instrument"] = instrument

    # ---- legs

    def fold(self) -> int:
        """Fold the orders of all stale accounts into legs; returns how many accounts that were."""
        if self._unused_legs > max(_COMPACT_ABOVE_LEGS, self._legs.high // 2):
            self._compact()
        count = len(self.stale_accounts)
        if count == 0:
            return 0
        rows = np.fromiter(self.stale_accounts, np.int32, count)
        most = 0
        for row in rows.tolist():
            needed = len(self.orders_of[row])
            most = max(most, needed)
            if needed > self.accounts[row]["capacity"]:
                self._move_segment(row, needed)
        fold_accounts(
            rows,
            self.accounts,
            self._order_head[: self._accounts.high],
            self.orders,
            self.instruments,
            self.legs,
            np.empty(most, layout.EXPOSURE),
            self.rules.nets_orders,
        )
        self.stale_accounts.clear()
        return count

    def _move_segment(self, row: int, needed: int) -> None:
        """Give an account room for `needed` legs: exactly that at first, half as much again when it grows."""
        target: Any = self.accounts[row]
        had = int(target["capacity"])
        room = needed if had == 0 else max(needed, had + had // 2 + 1)
        target["first"], target["capacity"] = self._legs.take_many(room), room
        self._unused_legs += had

    def _compact(self) -> None:
        """Lay all segments out anew, without the holes that moved and removed ones left."""
        self._legs = Table(layout.LEG)
        self._unused_legs = 0
        self.accounts["first"] = self.accounts["capacity"] = 0
        self.accounts["n_executed"] = self.accounts["n_legs"] = 0
        self.stale_accounts = set(self.account_of)
