"""New orders: what is checked before one is placed. Pure: no store, no clock."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from copyrisk.commands import Command
from copyrisk.decimals import ZERO, decimal_text
from copyrisk.errors import Refused
from copyrisk.flow import select_flow
from copyrisk.orders import Event, State
from copyrisk.records import Order
from copyrisk.situation import Outcome, Situation, SymbolMarket
from copyrisk.steps import sent, step
from copyrisk.terms import Flow, OrderType

#: Of one account; more would make each of its changes slow.
ORDERS_LIMIT = 1_000


def open_market(command: Command, situation: Situation) -> Outcome:
    """A market order: filled here, or sent to the provider."""
    order, market = _new_order(command, situation)
    quote = market.tradable()
    price = market.opening_price(is_buy=order.order_type.is_buy)
    check_levels(order, quote.bid, quote.ask)
    order = replace(order, price=price)
    if order.flow is Flow.PROVIDER:
        return sent(Event.OPEN_SENT, None, order, "open", lots=order.quantity, needs_margin=True)
    _, commission = amounts_of(order.quantity, price, market)
    opened = replace(order, opened=order.quantity, commission_usd=commission)
    return step(Event.OPENED, None, opened, needs_margin=True)


def amounts_of(lots: Decimal, price: Decimal, market: SymbolMarket) -> tuple[Decimal, Decimal]:
    """Contract value of so many lots, and the commission in USD when they are opened at a price."""
    return lots * market.agreed().contract_size, market.commission_usd(lots, price, is_entry=True)


def place_pending(command: Command, situation: Situation) -> Outcome:
    """A pending order: watched here, or placed with the provider."""
    order, market = _new_order(command, situation)
    check_pending_price(order, market)
    check_levels(order, order.price, order.price)
    if order.flow is Flow.PROVIDER:
        return sent(Event.PLACE_SENT, None, order, "place", lots=order.quantity, price=order.price, needs_margin=True)
    return step(Event.PLACED, None, order, needs_margin=True)


def _new_order(command: Command, situation: Situation) -> tuple[Order, SymbolMarket]:
    if situation.order is not None:
        raise Refused(f"order {command.order_id} exists", code="order_exists")
    situation.check_not_halted()
    if not situation.is_active:
        raise Refused("the account is not active", code="account_inactive")
    if situation.order_count >= ORDERS_LIMIT:
        raise Refused(f"the account has {situation.order_count} orders", code="too_many_orders")
    flow = select_flow(situation.account.type, command.sending_orders or situation.sending_orders)
    market = situation.tradable_market()
    conditions = market.agreed()
    if command.quantity is None or command.order_type is None:
        raise Refused("an order needs lots and a type", code="invalid_order_quantity")
    conditions.lots.check(command.quantity)
    market.tradable()
    created = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=situation.now_ms)
    order = Order(
        account=situation.account,
        id=command.order_id,
        symbol=command.symbol,
        order_type=command.order_type,
        state=State.NONE,
        flow=flow,
        price=command.price or ZERO,
        quantity=command.quantity,
        created_at=created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        asked=command.quantity,
        contract_value=command.quantity * conditions.contract_size,
        stop_loss=command.stop_loss,
        take_profit=command.take_profit,
        master_order_id=command.master_order_id,
        body=command.body,
    )
    return order, market


def check_pending_price(order: Order, market: SymbolMarket) -> None:
    """A pending order waits for a price that is not there yet; else it would be a market order by another name."""
    quote, price = market.tradable(), order.price
    waits = {
        OrderType.BUY_LIMIT: price < quote.ask,
        OrderType.BUY_STOP: price > quote.ask,
        OrderType.SELL_LIMIT: price > quote.bid,
        OrderType.SELL_STOP: price < quote.bid,
    }
    if not waits.get(order.order_type, False):
        raise Refused(f"{order.order_type} at {price}: the market is there already", code="invalid_order_price")


def check_levels(order: Order, bid: Decimal, ask: Decimal) -> None:
    """A stop loss stands where the order loses, a take profit where it wins; else it would fire at once."""
    leaves_at = bid if order.order_type.is_buy else ask
    for level, loses, code in (
        (order.stop_loss, True, "invalid_stop_loss"),
        (order.take_profit, False, "invalid_take_profit"),
    ):
        if level is not None and (level == leaves_at or (level < leaves_at) is not (loses is order.order_type.is_buy)):
            raise Refused(f"{decimal_text(level)} is on the wrong side of the market", code=code)
