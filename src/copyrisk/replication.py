"""Replicating a master's order: what happened to it, and what that asks of each follower. Pure: no store, no clock."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np

from copyrisk import identifiers
from copyrisk.commands import Target
from copyrisk.decimals import parse_decimal
from copyrisk.errors import InvalidId, Refused
from copyrisk.identifiers import Account
from copyrisk.orders import FINISHED, REPLICATED, Event, State
from copyrisk.sizing_terms import SIZED, SIZING_IN
from copyrisk.terms import AccountType, OrderType

#: One follower of one master's order: what was known and what was decided, `reason` empty if it is to be copied.
DECIDED = np.dtype(
    [
        ("follower", "S64"),
        ("reason", "S40"),
        ("sizing", SIZING_IN),
        ("sized", SIZED),
        ("group", "i4"),  # place in the header's list, -1 for none
        ("settings", "i4"),  # place in the header's list
        ("equity_age_ms", "i4"),  # -1: not known
    ]
)
#: What came of it: `copied`, or why not; the account's version, microseconds from the stream entry, margin in cents.
MADE = np.dtype([("result", "S40"), ("version", "i8"), ("stored_us", "i8"), ("margin_cents", "i8")])
COPIED = b"copied"

_CREATING = (Event.OPENED, Event.OPEN_SENT, Event.PLACED, Event.PLACE_SENT)
_REVERSED = {
    OrderType.BUY: OrderType.SELL,
    OrderType.SELL: OrderType.BUY,
    OrderType.BUY_LIMIT: OrderType.SELL_STOP,
    OrderType.SELL_LIMIT: OrderType.BUY_STOP,
    OrderType.BUY_STOP: OrderType.SELL_LIMIT,
    OrderType.SELL_STOP: OrderType.BUY_LIMIT,
}


@dataclass(frozen=True, slots=True)
class MasterEvent:
    """A change of a master's order.

    Attributes
    ----------
    entry_id : str
        Of its stream entry.
    version : int
        The master's account's, after the change.
    asked, quantity : Decimal
        Lots asked for, and lots that are open (of a finished order: that ever were).
    """

    entry_id: str
    master: Account
    order_id: str
    version: int
    change: Event
    state: State
    symbol: str
    order_type: OrderType
    price: Decimal
    asked: Decimal
    quantity: Decimal
    stop_loss: Decimal | None
    take_profit: Decimal | None
    ts_ms: int

    @property
    def creates(self) -> bool:
        """Whether it makes copies; all else is followed by those that are there."""
        return self.change in _CREATING

    @property
    def target(self) -> Target:
        """What the order as it is now asks of its copies."""
        share = None
        if self.state in FINISHED:
            share = Fraction(0)
        elif self.state is State.OPEN:
            share = min(Fraction(self.quantity) / Fraction(self.asked), Fraction(1))
        price = self.price if self.state is State.PENDING else None
        return Target(share, self.stop_loss, self.take_profit, price)


def parse_event(entry_id: str, fields: Mapping[str, str]) -> MasterEvent:
    """The event of a stream entry.

    Raises
    ------
    InvalidId, Refused
        `not_a_master`, `event_invalid`, or the code of an id.
    """
    master = identifiers.account(fields.get("user_type", ""), fields.get("user_id", ""))
    if master.type is not AccountType.MASTER:
        raise Refused(f"{master} is no master: nobody copies it", code="not_a_master")
    order_id = identifiers.check_order_id(fields.get("order_id", ""))
    try:
        order = json.loads(fields["order"])
        event = MasterEvent(
            entry_id=entry_id,
            master=master,
            order_id=order_id,
            version=_whole(fields["version"]),
            change=Event(fields["change"]),
            state=State(fields["state"]),
            symbol=identifiers.check_symbol(order["symbol"]),
            order_type=OrderType(order["order_type"]),
            price=_above_0(order["order_price"]),
            asked=_above_0(fields["asked"]),
            quantity=_above_0(order["order_quantity"]),
            stop_loss=_above_0(order["stop_loss"]) if "stop_loss" in order else None,
            take_profit=_above_0(order["take_profit"]) if "take_profit" in order else None,
            ts_ms=_whole(fields["ts"]),
        )
    except (KeyError, ValueError, TypeError, RecursionError) as fault:
        raise Refused(f"no event of a master's order: {str(fault)[:80]!a}", code="event_invalid") from None
    except InvalidId as fault:
        raise Refused(f"no event of a master's order: {fault}", code="event_invalid") from None
    if event.change not in REPLICATED:
        raise Refused(f"{event.change} is nothing that copies follow", code="event_invalid")
    return event


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise ValueError(f"no whole number: {text[:20]}")
    return int(text)


def _above_0(text: str) -> Decimal:
    value = parse_decimal(text)
    if value is None or value <= 0:
        raise ValueError(f"no number above 0: {text[:20]}")
    return value


def reversed_type(order_type: OrderType) -> OrderType:
    """The opposite order: a limit below the market is a stop below the market for who takes the other side."""
    return _REVERSED[order_type]


def target_words(target: Target) -> dict[str, str | None]:
    """A target as JSON holds it."""
    return {
        "share": None if target.share is None else str(target.share),
        "stop_loss": None if target.stop_loss is None else str(target.stop_loss),
        "take_profit": None if target.take_profit is None else str(target.take_profit),
        "price": None if target.price is None else str(target.price),
    }


def parse_target(said: Mapping[str, str | None]) -> Target:
    """The target of `target_words`."""
    share, stop_loss, take_profit, price = (said[name] for name in ("share", "stop_loss", "take_profit", "price"))
    return Target(
        None if share is None else Fraction(share),
        None if stop_loss is None else Decimal(stop_loss),
        None if take_profit is None else Decimal(take_profit),
        None if price is None else Decimal(price),
    )


def reversed_target(target: Target) -> Target:
    """What a copy on the other side is asked: its master's stop loss is its take profit."""
    return Target(target.share, target.take_profit, target.stop_loss, target.price)
