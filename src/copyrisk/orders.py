"""The life cycle of an order: which event may follow in which state, as a literal table.

`COMMANDS` of clients and monitors move an order that is where they think it is; a command that finds it elsewhere is
refused. Reports of the liquidity provider come late, twice and in the wrong order: one that the table does not have in
the order's state changes nothing. Every order ends in one of three states, and nothing leaves them.
"""

from enum import StrEnum

from copyrisk._core import OrderEffect
from copyrisk.fields import order_effect
from copyrisk.terms import ExecutionStatus, OrderStatus, OrderType


class State(StrEnum):
    """Where an order stands; more exact than its two statuses, which say the same of `OPEN` and what is in flight."""

    NONE = "none"
    OPENING = "opening"  # sent to the provider, nothing filled
    FILLING = "filling"  # partly filled, the rest is still with the provider
    OPEN = "open"
    CLOSING = "closing"  # a close is with the provider
    PLACING = "placing"  # a pending order on its way to the provider
    PENDING = "pending"
    MODIFYING = "modifying"
    CANCELLING = "cancelling"
    CLOSED = "closed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class Event(StrEnum):
    """What happens to an order."""

    OPENED = "opened"  # filled here
    OPEN_SENT = "open_sent"
    PLACED = "placed"  # a pending order that is watched here
    PLACE_SENT = "place_sent"
    LEVELS_SET = "levels_set"  # stop loss or take profit, set or cancelled
    MODIFIED = "modified"
    MODIFY_SENT = "modify_sent"
    CANCELLED = "cancelled"
    CANCEL_SENT = "cancel_sent"
    TRIGGERED = "triggered"  # a pending order that was watched here is filled
    TRIGGER_REFUSED = "trigger_refused"  # margin did not cover it any more
    CLOSED = "closed"
    CLOSED_IN_PART = "closed_in_part"
    CLOSE_SENT = "close_sent"
    ACCEPT_REPORTED = "accept_reported"
    PART_REPORTED = "part_reported"
    FILL_REPORTED = "fill_reported"
    REJECT_REPORTED = "reject_reported"
    END_REPORTED = "end_reported"  # the provider ended what was not filled
    MODIFY_REPORTED = "modify_reported"
    MODIFY_REJECT_REPORTED = "modify_reject_reported"
    CANCEL_REPORTED = "cancel_reported"
    CANCEL_DONE_REPORTED = "cancel_done_reported"  # and nothing else will be reported of the order
    CANCEL_REJECT_REPORTED = "cancel_reject_reported"
    CLOSE_PART_REPORTED = "close_part_reported"
    CLOSE_FILL_REPORTED = "close_fill_reported"  # the close is done, and so is the order
    CLOSE_PART_DONE_REPORTED = "close_part_done_reported"  # the close is done, lots are left
    CLOSE_REJECT_REPORTED = "close_reject_reported"  # nothing more of the close will be filled


_S, _E = State, Event

#: What leads where. A pair that is not here does not happen.
TRANSITIONS: dict[tuple[State, Event], State] = {
    # placing an order
    (_S.NONE, _E.OPENED): _S.OPEN,
    (_S.NONE, _E.OPEN_SENT): _S.OPENING,
    (_S.NONE, _E.PLACED): _S.PENDING,
    (_S.NONE, _E.PLACE_SENT): _S.PLACING,
    # a market order with the provider
    (_S.OPENING, _E.PART_REPORTED): _S.FILLING,
    (_S.OPENING, _E.FILL_REPORTED): _S.OPEN,
    (_S.OPENING, _E.REJECT_REPORTED): _S.REJECTED,
    (_S.OPENING, _E.END_REPORTED): _S.CANCELLED,
    (_S.FILLING, _E.PART_REPORTED): _S.FILLING,
    (_S.FILLING, _E.FILL_REPORTED): _S.OPEN,
    (_S.FILLING, _E.REJECT_REPORTED): _S.OPEN,
    (_S.FILLING, _E.END_REPORTED): _S.OPEN,
    (_S.FILLING, _E.LEVELS_SET): _S.FILLING,
    # a pending order on its way to the provider; its fill may overtake its acceptance
    (_S.PLACING, _E.ACCEPT_REPORTED): _S.PENDING,
    (_S.PLACING, _E.REJECT_REPORTED): _S.REJECTED,
    (_S.PLACING, _E.END_REPORTED): _S.CANCELLED,
    (_S.PLACING, _E.PART_REPORTED): _S.FILLING,
    (_S.PLACING, _E.FILL_REPORTED): _S.OPEN,
    # a pending order, here or with the provider
    (_S.PENDING, _E.LEVELS_SET): _S.PENDING,
    (_S.PENDING, _E.MODIFIED): _S.PENDING,
    (_S.PENDING, _E.MODIFY_SENT): _S.MODIFYING,
    (_S.PENDING, _E.CANCELLED): _S.CANCELLED,
    (_S.PENDING, _E.CANCEL_SENT): _S.CANCELLING,
    (_S.PENDING, _E.TRIGGERED): _S.OPEN,
    (_S.PENDING, _E.TRIGGER_REFUSED): _S.REJECTED,
    (_S.PENDING, _E.PART_REPORTED): _S.FILLING,
    (_S.PENDING, _E.FILL_REPORTED): _S.OPEN,
    (_S.PENDING, _E.REJECT_REPORTED): _S.REJECTED,
    (_S.PENDING, _E.END_REPORTED): _S.CANCELLED,
    (_S.MODIFYING, _E.MODIFY_REPORTED): _S.PENDING,
    (_S.MODIFYING, _E.MODIFY_REJECT_REPORTED): _S.PENDING,
    (_S.MODIFYING, _E.PART_REPORTED): _S.FILLING,
    (_S.MODIFYING, _E.FILL_REPORTED): _S.OPEN,
    (_S.MODIFYING, _E.REJECT_REPORTED): _S.REJECTED,
    (_S.MODIFYING, _E.END_REPORTED): _S.CANCELLED,
    (_S.CANCELLING, _E.CANCEL_REPORTED): _S.CANCELLING,  # the order's own request says how much was filled before
    (_S.CANCELLING, _E.CANCEL_DONE_REPORTED): _S.CANCELLED,
    (_S.CANCELLING, _E.CANCEL_REJECT_REPORTED): _S.PENDING,
    (_S.CANCELLING, _E.PART_REPORTED): _S.FILLING,
    (_S.CANCELLING, _E.FILL_REPORTED): _S.OPEN,
    (_S.CANCELLING, _E.REJECT_REPORTED): _S.REJECTED,
    (_S.CANCELLING, _E.END_REPORTED): _S.CANCELLED,
    # a position
    (_S.OPEN, _E.LEVELS_SET): _S.OPEN,
    (_S.OPEN, _E.CLOSED): _S.CLOSED,
    (_S.OPEN, _E.CLOSED_IN_PART): _S.OPEN,
    (_S.OPEN, _E.CLOSE_SENT): _S.CLOSING,
    (_S.CLOSING, _E.CLOSE_PART_REPORTED): _S.CLOSING,
    (_S.CLOSING, _E.CLOSE_FILL_REPORTED): _S.CLOSED,
    (_S.CLOSING, _E.CLOSE_PART_DONE_REPORTED): _S.OPEN,
    (_S.CLOSING, _E.CLOSE_REJECT_REPORTED): _S.OPEN,
}

FINISHED = frozenset({State.CLOSED, State.CANCELLED, State.REJECTED})

#: What happens to a master's order that its copies must be told of; all else moves no lots, or not yet.
REPLICATED = frozenset(
    {
        _E.OPENED,
        _E.OPEN_SENT,
        _E.PLACED,
        _E.PLACE_SENT,
        _E.LEVELS_SET,
        _E.MODIFIED,
        _E.MODIFY_REPORTED,
        _E.CANCELLED,
        _E.CANCEL_DONE_REPORTED,
        _E.TRIGGER_REFUSED,
        _E.REJECT_REPORTED,
        _E.END_REPORTED,
        _E.CLOSED,
        _E.CLOSED_IN_PART,
        _E.CLOSE_FILL_REPORTED,
        _E.CLOSE_PART_DONE_REPORTED,
        _E.CLOSE_REJECT_REPORTED,
    }
)

#: Whether a state holds lots that make profit.
HOLDING_LOTS = frozenset({State.FILLING, State.OPEN, State.CLOSING})

#: What the order's hash says in each state.
STATUSES: dict[State, tuple[OrderStatus, ExecutionStatus]] = {
    State.OPENING: (OrderStatus.QUEUED, ExecutionStatus.QUEUED),
    State.FILLING: (OrderStatus.OPEN, ExecutionStatus.EXECUTED),
    State.OPEN: (OrderStatus.OPEN, ExecutionStatus.EXECUTED),
    State.CLOSING: (OrderStatus.OPEN, ExecutionStatus.EXECUTED),
    State.PLACING: (OrderStatus.PENDING_QUEUED, ExecutionStatus.QUEUED),
    State.PENDING: (OrderStatus.PENDING, ExecutionStatus.PENDING),
    State.MODIFYING: (OrderStatus.MODIFY, ExecutionStatus.PENDING),
    State.CANCELLING: (OrderStatus.PENDING_CANCEL, ExecutionStatus.PENDING),
    State.CLOSED: (OrderStatus.CLOSED, ExecutionStatus.CLOSED),
    State.CANCELLED: (OrderStatus.CANCELLED, ExecutionStatus.CANCELLED),
    State.REJECTED: (OrderStatus.REJECTED, ExecutionStatus.REJECTED),
}

#: The state of an order that another service wrote, by what decides: its `order_status`, or without one the other.
_BY_ORDER_STATUS: dict[OrderStatus | None, State] = {
    OrderStatus.QUEUED: State.OPENING,
    OrderStatus.PENDING: State.PENDING,
    OrderStatus.PENDING_QUEUED: State.PLACING,
    OrderStatus.PENDING_CANCEL: State.CANCELLING,
    OrderStatus.CLOSED: State.CLOSED,
    OrderStatus.CANCELLED: State.CANCELLED,
    OrderStatus.REJECTED: State.REJECTED,
    OrderStatus.SKIPPED: State.REJECTED,
}
_BY_EXECUTION_STATUS: dict[ExecutionStatus | None, State] = {
    ExecutionStatus.REJECTED: State.REJECTED,
    ExecutionStatus.CLOSED: State.CLOSED,
    ExecutionStatus.CANCELLED: State.CANCELLED,
}


def next_state(state: State, event: Event) -> State | None:
    """Where an event leads, `None` if it does not happen in this state."""
    return TRANSITIONS.get((state, event))


def state_of(order_status: str, execution_status: str, recorded: State | None) -> State | None:
    """The state of a stored order.

    Parameters
    ----------
    order_status, execution_status : str
        As they stand in the order's hash, empty if they do not.
    recorded : State or None
        What our own record says; it counts if the hash says the same.

    Returns
    -------
    State or None
        `None`: what stands there is no state of an order.
    """
    if recorded in STATUSES and STATUSES[recorded] == (order_status, execution_status):
        return recorded
    try:
        status = OrderStatus(order_status) if order_status else None
        execution = ExecutionStatus(execution_status) if execution_status else None
    except ValueError:
        return None
    effect = order_effect(status, execution)  # what the valuation takes for a position is one
    if effect == OrderEffect.EXECUTED:
        return State.OPEN
    if status is OrderStatus.MODIFY and effect == OrderEffect.RESERVED:
        return State.MODIFYING
    if effect == OrderEffect.RESERVED:
        return State.OPENING
    return _BY_ORDER_STATUS.get(status) or (_BY_EXECUTION_STATUS.get(execution) if status is None else None)


def is_pending_type(order_type: OrderType) -> bool:
    """Whether an order of this type waits for a price."""
    return order_type not in (OrderType.BUY, OrderType.SELL)
