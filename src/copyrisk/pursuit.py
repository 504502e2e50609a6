"""How a copy follows its master's order: from what that asks to the copy's next step. Pure: no store, no clock.

What is asked is a state and no act, so asking twice, or late, changes nothing: a copy that is where it should be stays.
A copy takes one step at a time; what it cannot take now it takes later.
"""

from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction

from copyrisk.commands import Command, Target
from copyrisk.conditions import LotLimits
from copyrisk.decimals import EXACT, ZERO
from copyrisk.errors import Refused, TryLater
from copyrisk.execution import cancel_pending, close_position, move_pending
from copyrisk.orders import FINISHED, Event, State
from copyrisk.records import Order
from copyrisk.situation import Nothing, Outcome, Situation
from copyrisk.steps import step

_NOT_FILLED = (
    State.OPENING,
    State.FILLING,
    State.PLACING,
    State.PENDING,
    State.MODIFYING,
    State.CANCELLING,
)


def follow_master(command: Command, situation: Situation) -> Outcome | Nothing:
    """The next step of a copy towards what its master's order asks.

    Raises
    ------
    TryLater
        `copy_busy`: something of the copy is under way; or why it cannot be closed now. It must be asked again.
    """
    order, target = situation.order, command.target
    if order is None or order.state in FINISHED:
        return Nothing("copy_gone", "the copy is not there any more")
    if target is None:
        raise Refused("a copy follows nothing", code="unknown_command")
    try:
        with localcontext(EXACT):
            return _next_step(order, target, situation)
    except Refused as refusal:  # the master is out: the copy must follow, be it later
        raise TryLater(str(refusal), code=refusal.code) from None


def _next_step(order: Order, target: Target, situation: Situation) -> Outcome | Nothing:
    if target.share == 0 and order.state is State.PENDING:
        return cancel_pending(order, situation, "master")
    too_many = order.quantity - _lots_left(order, target.share, situation)
    if too_many > 0:
        _wait_unless(order, State.OPEN)
        return close_position(order, too_many, situation, "master")
    if (order.stop_loss, order.take_profit) != (target.stop_loss, target.take_profit):
        _wait_unless(order, State.OPEN, State.FILLING, State.PENDING)
        levels = replace(order, stop_loss=target.stop_loss, take_profit=target.take_profit)
        return step(Event.LEVELS_SET, order, levels)
    if target.price is not None and order.price != target.price and _waits_for_price(order):
        _wait_unless(order, State.PENDING)
        return move_pending(order, target.price, situation)
    if target.share is not None and target.share < 1 and order.state in _NOT_FILLED:
        raise TryLater(
            f"the copy is {order.state}", code="copy_busy"
        )  # how many lots may stay is known when it is filled
    return Nothing("copy_in_line", "the copy is where its master's order asks it to be")


def _waits_for_price(order: Order) -> bool:
    return order.state in (State.PLACING, State.PENDING, State.MODIFYING)


def _wait_unless(order: Order, *states: State) -> None:
    if order.state not in states:
        raise TryLater(f"the copy is {order.state}", code="copy_busy")


def _lots_left(order: Order, share: Fraction | None, situation: Situation) -> Decimal:
    """How many of its lots a copy may keep; one that waits for a price keeps all, or none."""
    if share == 0:
        return ZERO
    if share is None or share >= 1 or not order.opened:
        return order.quantity
    return lots_of_share(order.opened, share, situation.tradable_market().agreed().lots)


def lots_of_share(copied: Decimal, share: Fraction, limits: LotLimits) -> Decimal:
    """A share of the lots that were copied, in whole steps, half up; nothing, or at least the smallest order."""
    exact = Fraction(copied) * share
    steps = exact / Fraction(limits.step)
    lots = Decimal(int(steps + Fraction(1, 2))) * limits.step
    if lots >= limits.smallest:
        return min(lots, copied)
    return min(limits.smallest, copied) if 2 * exact >= Fraction(limits.smallest) else ZERO
