"""What a decision about one order rests on, read in one moment; and what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import NamedTuple

from copyrisk._core import RowCode
from copyrisk.conditions import Conditions
from copyrisk.decimals import ZERO
from copyrisk.errors import Refused, TryLater, is_known, reason_name
from copyrisk.identifiers import Account
from copyrisk.orders import Event
from copyrisk.pricing import Rate, closing_price, conversion_rate, execution_price, share_of
from copyrisk.records import Order
from copyrisk.terms import RateSide


class Quote(NamedTuple):
    """A quote, exactly as it is written, and what the kernel makes of it."""

    bid: Decimal
    ask: Decimal
    code: RowCode


NO_QUOTE = Quote(ZERO, ZERO, RowCode.QUOTE_MISSING)


@dataclass(frozen=True, slots=True)
class SymbolMarket:
    """A symbol as one group trades it.

    Attributes
    ----------
    conditions : Conditions or Refused
        Why there are none.
    direct, inverse : Quote
        Of the profit currency against USD, and of USD against it; of a currency that is USD, `NO_QUOTE`.
    """

    symbol: str
    quote: Quote
    conditions: Conditions | Refused
    profit_is_usd: bool
    direct: Quote = NO_QUOTE
    inverse: Quote = NO_QUOTE
    rate_side: RateSide = RateSide.ASK

    def agreed(self) -> Conditions:
        """The conditions, or `Refused`."""
        if isinstance(self.conditions, Refused):
            raise self.conditions
        return self.conditions

    def tradable(self) -> Quote:
        """The quote, if orders may be executed at it now; else `Refused`: `market_closed`, or what is wrong with it."""
        if self.quote.code == RowCode.MARKET_CLOSED:
            raise Refused(f"the market of {self.symbol} is closed", code="market_closed")
        if self.quote.code != RowCode.OK:
            raise Refused(f"{self.symbol} has no usable quote", code=reason_name(self.quote.code))
        return self.quote

    def opening_price(self, *, is_buy: bool) -> Decimal:
        """What an order opens at now."""
        quote = self.tradable()
        return self._above_0(execution_price(is_buy=is_buy, bid=quote.bid, ask=quote.ask, spread=self.agreed().spread))

    def closing_price(self, *, is_buy: bool) -> Decimal:
        """What an order that was opened with `is_buy` closes at now."""
        quote = self.tradable()
        return self._above_0(closing_price(is_buy=is_buy, bid=quote.bid, ask=quote.ask, spread=self.agreed().spread))

    def _above_0(self, price: Decimal) -> Decimal:
        if price <= 0:
            raise Refused(f"the spread leaves no price of {self.symbol} to sell at", code="spread_invalid")
        return price

    def to_usd(self, amount: Decimal) -> Decimal:
        """An amount of the profit currency in USD; `TryLater` (`conversion_rate_missing`) without a rate."""
        if self.profit_is_usd:
            return amount
        for quote, is_inverse in ((self.direct, False), (self.inverse, True)):
            if is_known(quote.code):
                return self._rate(quote, amount, inverse=is_inverse).to_usd(amount)
        raise TryLater(f"no rate converts the profit of {self.symbol} to USD", code="conversion_rate_missing")

    def _rate(self, quote: Quote, amount: Decimal, *, inverse: bool) -> Rate:
        return conversion_rate(self.rate_side, quote.bid, quote.ask, inverse=inverse, amount_is_loss=amount < 0)

    def commission_usd(self, lots: Decimal, price: Decimal, *, is_entry: bool) -> Decimal:
        """Commission of one execution."""
        conditions = self.agreed()
        is_percent = conditions.commission.is_percent
        value_usd = -self.to_usd(-lots * conditions.contract_size * price) if is_percent else ZERO
        return conditions.commission.of(lots, value_usd, is_entry=is_entry)


@dataclass(frozen=True, slots=True)
class Situation:
    """An account and one of its orders at one moment.

    Attributes
    ----------
    order : Order or None
        The one that is asked about, finished ones included.
    market : SymbolMarket or None
        Of that order's symbol, or of the one that is to be opened.
    order_count : int
        Orders of the account.
    is_critical : bool or None
        Whether its margin level is at or below its critical level; `None`: nobody asked, or it is not known.
    halt : Refused or None
        Why no lots may be added to it, if a kill forbids it.
    """

    account: Account
    now_ms: int
    balance: Decimal | None
    sending_orders: str | None
    is_active: bool
    order: Order | None
    market: SymbolMarket | None
    order_count: int
    is_critical: bool | None = None
    halt: Refused | None = None

    def check_not_halted(self) -> None:
        """Raise what forbids new lots, if anything does."""
        if self.halt is not None:
            raise self.halt

    def tradable_market(self) -> SymbolMarket:
        """The market; it is there whenever a symbol is known."""
        if self.market is None:
            raise Refused("there is no such order", code="order_not_found")
        return self.market


@dataclass(frozen=True, slots=True)
class Booking:
    """An amount that is booked to the wallet."""

    amount_usd: Decimal
    lots: Decimal
    price: Decimal


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command or report changes.

    Attributes
    ----------
    order : Order
        As it is afterwards.
    request : dict
        What the provider is to be asked; empty for nothing.
    needs_margin : bool
        Whether it may only happen if the account's free margin covers it; `order.whole_margin_usd` is then still open.
    """

    event: Event
    order: Order
    before: Order | None = None
    booking: Booking | None = None
    request: Mapping[str, str] = field(default_factory=dict)
    needs_margin: bool = False

    @property
    def reserved_change_usd(self) -> Decimal:
        """What is added to the margin that is reserved for lots still being filled."""
        return self.order.reserved_usd - (self.before.reserved_usd if self.before else ZERO)

    def with_margin(self, margin_usd: Decimal) -> "Outcome":
        """The outcome with the margin of all lots of the order."""
        held = share_of(margin_usd, self.order.opened, self.order.asked) if self.order.opened else ZERO
        return replace(self, order=replace(self.order, whole_margin_usd=margin_usd, margin_usd=held))


@dataclass(frozen=True, slots=True)
class Nothing:
    """A command or report that changes nothing, and why: late, repeated, or not called for any more."""

    code: str
    message: str
