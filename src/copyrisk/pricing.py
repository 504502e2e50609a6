"""Execution prices and realised results, in decimal: these are booked, not displayed."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

CENT = Decimal("0.01")


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
    return (profit_usd - commission_entry - commission_exit + swap).quantize(CENT, ROUND_HALF_UP)
