"""What a cascade would close, before it happens: lots and results by the quotes of now. Pure: no store."""

from collections.abc import Iterable
from decimal import Decimal, localcontext
from typing import NamedTuple

from copyrisk.cascade import IN_FLIGHT
from copyrisk.decimals import EXACT, ZERO
from copyrisk.errors import CopyriskError
from copyrisk.orders import State
from copyrisk.records import Order
from copyrisk.situation import SymbolMarket
from copyrisk.steps import settle


class PlannedClose(NamedTuple):
    """What closing a copy would come to by the quotes of now.

    `result_usd` is `None` if that is not known, for the reason of `code`. Of an order that waits for a price, which
    would be taken back, lots and result are 0 (`code`: `pending`).
    """

    order_id: str
    master_order_id: str
    symbol: str
    side: str
    lots: Decimal
    result_usd: Decimal | None
    code: str = ""


def plan_close(order: Order, market: SymbolMarket | None) -> PlannedClose:
    """What closing a copy would come to."""
    named = (order.id, order.master_order_id, order.symbol, "BUY" if order.order_type.is_buy else "SELL")
    if order.state in (State.PENDING, State.PLACING, State.MODIFYING, State.CANCELLING):
        return PlannedClose(*named, ZERO, ZERO, "pending")
    if order.state is State.OPENING or market is None:
        return PlannedClose(*named, order.quantity, None, IN_FLIGHT)
    try:
        with localcontext(EXACT):
            price = market.closing_price(is_buy=order.order_type.is_buy)
            _, booking = settle(order, market, order.quantity, price)
    except CopyriskError as refusal:
        return PlannedClose(*named, order.quantity, None, refusal.code)
    return PlannedClose(*named, order.quantity, booking.amount_usd)


def lots_by_symbol(closes: Iterable[PlannedClose]) -> dict[str, Decimal]:
    """Lots that would be closed."""
    found: dict[str, Decimal] = {}
    for close in closes:
        if close.lots:
            found[close.symbol] = found.get(close.symbol, ZERO) + close.lots
    return dict(sorted(found.items()))


def total_usd(closes: Iterable[PlannedClose]) -> Decimal | None:
    """What all of it would come to, `None` as soon as one is not known."""
    results = [close.result_usd for close in closes]
    return None if None in results else sum((one or ZERO for one in results), ZERO)
