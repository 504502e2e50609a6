"""Carrying out commands: from a command and the situation to what changes, or a refusal. Pure: no store, no clock."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext

from copyrisk.commands import Command, CommandType, Trigger
from copyrisk.decimals import EXACT
from copyrisk.errors import Refused
from copyrisk.orders import FINISHED, Event, State, is_pending_type
from copyrisk.placing import check_levels, check_pending_price, open_market, place_pending
from copyrisk.records import Order
from copyrisk.situation import Nothing, Outcome, Situation
from copyrisk.steps import flow_of, sent, settle, step
from copyrisk.terms import Flow


def decide(command: Command, situation: Situation) -> Outcome | Nothing:
    """What carrying out a command changes.

    Raises
    ------
    Refused
        With the code that the command is answered with.
    TryLater
        It must be done, and cannot be now.
    """
    with localcontext(EXACT):
        return _DECISIONS[command.type](command, situation)


def _existing(situation: Situation) -> Order:
    if situation.order is None:
        raise Refused("there is no such order", code="order_not_found")
    if situation.order.state in FINISHED:
        raise Refused(f"the order is {situation.order.state}", code="order_finished")
    return situation.order


def _modify(command: Command, situation: Situation) -> Outcome:
    order = _pending(situation)
    if flow_of(order, situation) is Flow.PROVIDER:  # one that waits here is held back when its price comes
        situation.check_not_halted()
    moved = replace(order, price=command.price or order.price)
    check_pending_price(moved, situation.tradable_market())
    check_levels(moved, moved.price, moved.price)
    return move_pending(order, moved.price, situation)


def move_pending(order: Order, price: Decimal, situation: Situation) -> Outcome:
    """Let a pending order wait for another price, in the flow of the order."""
    if flow_of(order, situation) is Flow.PROVIDER:
        return sent(Event.MODIFY_SENT, order, order, "modify", lots=order.quantity, price=price)
    return step(Event.MODIFIED, order, replace(order, price=price))


def _cancel(_command: Command, situation: Situation) -> Outcome:
    return cancel_pending(_pending(situation), situation, "cancelled")


def cancel_pending(order: Order, situation: Situation, reason: str) -> Outcome:
    """Take back a pending order, in the flow of the order."""
    if flow_of(order, situation) is Flow.PROVIDER:
        return sent(Event.CANCEL_SENT, order, order, "cancel", lots=order.quantity)
    return step(Event.CANCELLED, order, replace(order, reason=reason))


def _pending(situation: Situation) -> Order:
    order = _existing(situation)
    if not is_pending_type(order.order_type) or order.state in (State.OPEN, State.CLOSING, State.FILLING):
        raise Refused("the order is no pending order", code="order_not_pending")
    if order.state is not State.PENDING:
        raise Refused(f"the order is {order.state}", code="order_busy")
    return order


def _open_position(situation: Situation) -> Order:
    order = _existing(situation)
    if order.state is State.CLOSING:
        raise Refused("a close of the order is under way", code="close_in_progress")
    if order.state in (State.OPENING, State.FILLING):
        raise Refused(f"the order is {order.state}", code="order_busy")
    if order.state is not State.OPEN:
        raise Refused("the order is no open position", code="order_not_open")
    return order


def _set_level(command: Command, situation: Situation) -> Outcome:
    """Set or cancel (no price) a stop loss or take profit."""
    order, name = _existing(situation), command.type.value
    changed = replace(order, **{name: command.price})  # type: ignore[arg-type]  # both are prices
    if command.price is not None:
        alone = replace(order, **{"stop_loss": None, "take_profit": None, name: command.price})  # type: ignore[arg-type]
        if order.state is State.PENDING:
            check_levels(alone, order.price, order.price)
        else:
            quote = situation.tradable_market().tradable()
            check_levels(alone, quote.bid, quote.ask)
    return step(Event.LEVELS_SET, order, changed)


def _close(command: Command, situation: Situation) -> Outcome:
    order = _open_position(situation)
    lots = command.quantity or order.quantity
    if lots > order.quantity:
        raise Refused(f"{lots} lots are more than the {order.quantity} that are open", code="invalid_order_quantity")
    if lots != order.quantity:
        limits = situation.tradable_market().agreed().lots
        limits.check_step(lots)
        if order.quantity - lots < limits.smallest:
            raise Refused(f"less than {limits.smallest} lots would be left", code="invalid_order_quantity")
    return close_position(order, lots, situation, "client")


def close_position(order: Order, lots: Decimal, situation: Situation, reason: str) -> Outcome:
    """Close so many lots of an open order, in the flow of the order."""
    market = situation.tradable_market()
    if flow_of(order, situation) is Flow.PROVIDER:
        # Whether the provider trades now is for the provider to say.
        return sent(Event.CLOSE_SENT, order, replace(order, reason=reason), "close", lots=lots)
    price = market.closing_price(is_buy=order.order_type.is_buy)
    if situation.balance is None:
        raise Refused("the account's balance cannot be read", code="wallet_balance_invalid")
    closed, booking = settle(order, market, lots, price)
    event = Event.CLOSED if closed.quantity == 0 else Event.CLOSED_IN_PART
    return step(event, order, replace(closed, reason=reason), booking=booking)


def _trigger(command: Command, situation: Situation) -> Outcome | Nothing:
    """A monitor saw a price. The order may have gone on since: then there is nothing to do."""
    order = situation.order
    if order is None or order.state in FINISHED:
        return Nothing("trigger_gone", "the order is not there any more")
    if command.trigger in (Trigger.PENDING, Trigger.MARGIN):
        return _trigger_pending(command, order, situation)
    level = order.stop_loss if command.trigger is Trigger.STOP_LOSS else order.take_profit
    if level is None or level != command.price or order.state not in (State.OPEN, State.FILLING):
        return Nothing("trigger_gone", f"the order is {order.state}, its level {level}")
    if order.state is State.FILLING:
        raise Refused("the order is still being filled", code="order_busy")
    return close_position(order, order.quantity, situation, str(command.trigger))


def _trigger_pending(command: Command, order: Order, situation: Situation) -> Outcome | Nothing:
    if order.state is not State.PENDING or (command.trigger is Trigger.PENDING and order.price != command.price):
        return Nothing("trigger_gone", f"the order is {order.state} at {order.price}")
    if flow_of(order, situation) is Flow.PROVIDER:
        # The provider fills it; ours is to see that margin still covers it, and else to take it back.
        cancelled = replace(order, reason="insufficient_margin")
        return sent(Event.CANCEL_SENT, order, cancelled, "cancel", lots=order.quantity, needs_margin=True)
    if command.trigger is Trigger.MARGIN:
        return Nothing("trigger_gone", "margin is checked when the order is triggered")
    situation.check_not_halted()
    market = situation.tradable_market()
    price = market.opening_price(is_buy=order.order_type.is_buy)
    commission = market.commission_usd(order.quantity, price, is_entry=True)
    filled = replace(
        order, order_type=order.order_type.side, price=price, opened=order.quantity, commission_usd=commission
    )
    return step(Event.TRIGGERED, order, filled, needs_margin=True)


_DECISIONS: dict[CommandType, Callable[[Command, Situation], Outcome | Nothing]] = {
    CommandType.OPEN: open_market,
    CommandType.PENDING: place_pending,
    CommandType.MODIFY: _modify,
    CommandType.CANCEL: _cancel,
    CommandType.CLOSE: _close,
    CommandType.STOP_LOSS: _set_level,
    CommandType.TAKE_PROFIT: _set_level,
    CommandType.TRIGGER: _trigger,
}


def judge_margin(outcome: Outcome, *, is_covered: bool) -> Outcome | Nothing:
    """What comes of an outcome that needs margin, now that it is known whether the account's free margin covers it.

    Raises
    ------
    Refused
        `insufficient_margin`.
    """
    if outcome.event is Event.CANCEL_SENT:  # a provider's pending order is taken back only if margin does not cover it
        return Nothing("margin_covered", "margin still covers the order") if is_covered else outcome
    if is_covered:
        return outcome
    if outcome.before is None:
        raise Refused("the account's free margin does not cover the order", code="insufficient_margin")
    refused = replace(outcome.before, reason="insufficient_margin")
    return step(Event.TRIGGER_REFUSED, outcome.before, refused)
