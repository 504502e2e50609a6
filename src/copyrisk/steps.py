"""Single steps of an order: a state further, lots settled, a request to the provider."""

from dataclasses import replace
from decimal import Decimal

from copyrisk.decimals import decimal_text
from copyrisk.derived import derived_id
from copyrisk.errors import Refused
from copyrisk.flow import select_flow
from copyrisk.orders import Event, next_state
from copyrisk.pricing import net_profit_usd, profit, share_of
from copyrisk.records import Order, Request
from copyrisk.situation import Booking, Outcome, Situation, SymbolMarket
from copyrisk.terms import Flow, OrderType


def flow_of(order: Order, situation: Situation) -> Flow:
    """The order's own flow; of one that another service made without saying, the account's."""
    return order.flow or select_flow(situation.account.type, situation.sending_orders)


def step(
    event: Event, before: Order | None, order: Order, *, booking: Booking | None = None, needs_margin: bool = False
) -> Outcome:
    """The outcome of an event; `Refused` (`order_busy`) if it does not happen in the order's state."""
    state = next_state(order.state, event)
    if state is None:
        raise Refused(f"the order is {order.state}", code="order_busy")
    return Outcome(event, replace(order, state=state), before, booking, {}, needs_margin)


def sent(
    event: Event,
    before: Order | None,
    order: Order,
    action: str,
    *,
    lots: Decimal,
    price: Decimal | None = None,
    needs_margin: bool = False,
) -> Outcome:
    """The provider is asked; the request's id follows from account, order and attempt."""
    attempt = order.attempts + 1
    request = Request(
        derived_id(action[0], str(order.account), order.id, str(attempt)), action, asked=lots, price=price or Decimal(0)
    )
    asked = request_words(order, request)
    outcome = step(event, before, replace(order, attempts=attempt).with_request(request), needs_margin=needs_margin)
    return replace(outcome, request=asked)


def request_words(order: Order, request: Request) -> dict[str, str]:
    """What the provider is asked, as it stands on the stream of requests."""
    action = request.action
    opening = order.request_of("open", "place")
    is_buy = order.order_type.is_buy is not (action == "close")
    asked = {
        "request_id": request.id,
        "action": action,
        "user_type": order.account.type.value,
        "user_id": order.account.id,
        "order_id": order.id,
        "symbol": order.symbol,
        "side": (OrderType.BUY if is_buy else OrderType.SELL).value,
        "order_type": order.order_type.value if action == "place" else "MARKET",
        "order_quantity": decimal_text(request.asked),
        "target": opening.id if opening and action not in ("open", "place") else "",
    }
    if action in ("place", "modify"):
        asked["order_price"] = decimal_text(request.price)
    return asked


def settle(
    order: Order,
    market: SymbolMarket,
    lots: Decimal,
    price: Decimal,
    *,
    gross: Decimal | None = None,
    commission_exit: Decimal | None = None,
) -> tuple[Order, Booking]:
    """Close lots at a price: what is left of the order, and what is booked.

    `gross` (in the profit currency) and `commission_exit` are worked out from lots and price unless they are given.
    """
    if gross is None:
        gross = profit(
            is_buy=order.order_type.is_buy,
            lots=lots,
            contract_size=market.agreed().contract_size,
            open_price=order.price,
            close_price=price,
        )
    if commission_exit is None:
        commission_exit = market.commission_usd(lots, price, is_entry=False)
    entry, swap = (share_of(amount, lots, order.quantity) for amount in (order.commission_usd, order.swap_usd))
    margin = share_of(order.margin_usd, lots, order.quantity)
    net = net_profit_usd(
        profit_usd=market.to_usd(gross), commission_entry=entry, commission_exit=commission_exit, swap=swap
    )
    rest = order.quantity - lots
    left = replace(
        order,
        quantity=rest,
        contract_value=order.contract_value * (rest or order.opened) / order.quantity,  # at the end, of all lots
        commission_usd=order.commission_usd - entry,
        swap_usd=order.swap_usd - swap,
        margin_usd=order.margin_usd - margin,
        net_profit_usd=order.net_profit_usd + net,
        paid_commission_usd=order.paid_commission_usd + entry + commission_exit,
        paid_swap_usd=order.paid_swap_usd + swap,
        close_price=price,
    )
    return left, Booking(net, lots, price)
