"""Execution prices and realised results, in decimal: these are booked, not displayed."""

from dataclasses import dataclass
from decimal import Decimal

from copyrisk.decimals import cents
from copyrisk.terms import RateSide


@dataclass(frozen=True, slots=True)
class Spread:
    """A group's mark-up on a symbol: `spread` points of size `spread_pip`, half of it on each side."""

    spread: Decimal
    spread_pip: Decimal

    @property
    def half(self) -> Decimal:
        """What one execution pays."""
        return self.spread * self.spread_pip / 2


def execution_price(*, is_buy: bool, bid: Decimal, ask: Decimal, spread: Spread) -> Decimal:
    """Price at which an order opens: above the ask when bought, below the bid when sold."""
    return ask + spread.half if is_buy else bid - spread.half


def closing_price(*, is_buy: bool, bid: Decimal, ask: Decimal, spread: Spread) -> Decimal:
    """Price at which an order that was opened with `is_buy` closes: the opposite side."""
    return execution_price(is_buy=not is_buy, bid=bid, ask=ask, spread=spread)


def profit(
    *, is_buy: bool, lots: Decimal, contract_size: Decimal, open_price: Decimal, close_price: Decimal
) -> Decimal:
    """Gross result in the profit currency, unrounded."""
    moved = close_price - open_price if is_buy else open_price - close_price
    return moved * lots * contract_size


def net_profit_usd(
    *, profit_usd: Decimal, commission_entry: Decimal, commission_exit: Decimal, swap: Decimal
) -> Decimal:
    """What closing an order books to the wallet: two decimals, half up (away from zero)."""
    return cents(profit_usd - commission_entry - commission_exit + swap)


@dataclass(frozen=True, slots=True)
class Rate:
    """What converts an amount to USD: times `number`, or divided by it."""

    number: Decimal
    divides: bool = False

    def to_usd(self, amount: Decimal) -> Decimal:
        """The amount in USD, unrounded."""
        return amount / self.number if self.divides else amount * self.number


def conversion_rate(side: RateSide, bid: Decimal, ask: Decimal, *, inverse: bool, amount_is_loss: bool) -> Rate:
    """The rate of a quote of `CUSD`, or of `USDC` (`inverse`).

    `RateSide.SIDE` takes the side that is worse for the account: the lower rate for a profit, the higher for a loss.
    """
    if side is RateSide.MID:
        return Rate((bid + ask) / 2, inverse)
    if side is RateSide.ASK:
        return Rate(ask, inverse)
    return Rate(ask if amount_is_loss != inverse else bid, inverse)


@dataclass(frozen=True, slots=True)
class Commission:
    """A group's commission on a symbol: USD per lot, or percent of the value that changes hands."""

    rate: Decimal
    is_percent: bool
    on_entry: bool
    on_exit: bool

    def of(self, lots: Decimal, value_usd: Decimal, *, is_entry: bool) -> Decimal:
        """USD of one execution, two decimals, half up."""
        if not (self.on_entry if is_entry else self.on_exit):
            return Decimal(0)
        return cents(value_usd * self.rate / 100 if self.is_percent else lots * self.rate)


def share_of(amount: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    """The part of an amount of USD that goes with `part` lots of `whole`: all of it with the last lot."""
    return amount if part == whole else cents(amount * part / whole)
