"""Closing what nobody asked to close: stop-outs, cascades, the kill switch. Pure: no store, no clock.

Each step is decided on what the account is when it is taken, so one that comes twice, or too late, finds nothing to do.
"""

import json
import math
from decimal import Decimal, localcontext

from copyrisk.commands import Action, Command, CommandType, Cut
from copyrisk.conditions import LotLimits
from copyrisk.decimals import EXACT
from copyrisk.errors import Refused, TryLater
from copyrisk.execution import cancel_pending, close_position
from copyrisk.identifiers import Account
from copyrisk.orders import FINISHED, State
from copyrisk.situation import Nothing, Outcome, Situation


def stop_out(command: Command, situation: Situation) -> Outcome | Nothing:
    """Close an order, or some of its lots; take it back if it waits for a price.

    Raises
    ------
    TryLater
        `account_unknown`: it rests on the account being critical, and that is not known; or why it cannot be closed
        now.
    """
    order, cut = situation.order, command.cut
    if order is None or order.state in FINISHED:
        return Nothing("order_gone", "the order is not there any more")
    if cut is None:
        raise Refused("an order is closed for no reason", code="unknown_command")
    if cut.only_critical and situation.is_critical is None:
        raise TryLater("whether the account is critical is not known", code="account_unknown")
    if cut.only_critical and not situation.is_critical:
        return Nothing("not_critical", "the account is not critical any more")
    if order.state not in (State.PENDING, State.OPEN):
        return Nothing("in_flight", f"the order is {order.state}")
    with localcontext(EXACT):
        try:
            if order.state is State.PENDING:
                return cancel_pending(order, situation, cut.reason)
            return close_position(order, _lots(command, order.quantity, situation), situation, cut.reason)
        except Refused as refusal:  # it must be done, be it later
            raise TryLater(str(refusal), code=refusal.code) from None


def _lots(command: Command, open_lots: Decimal, situation: Situation) -> Decimal:
    """As many lots as asked, in whole steps upwards; all of them if what is left could not be closed."""
    asked = command.quantity
    if asked is None or asked >= open_lots:
        return open_lots
    limits: LotLimits = situation.tradable_market().agreed().lots
    steps, rest = divmod(asked, limits.step)
    lots = max((steps + (1 if rest else 0)) * limits.step, limits.smallest)
    return open_lots if open_lots - lots < limits.smallest else lots


def lots_ending(record: str) -> float:
    """Lots of an order that are being closed, by its record; infinite where it is taken back, or nobody can tell."""
    try:
        closes = [asked for asked in json.loads(record)["requests"] if asked[1] == Action.CLOSE]
        _, _, _, is_final, asked, _, filled, _ = closes[-1]
        return math.inf if is_final else float(Decimal(asked) - Decimal(filled))
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return math.inf


def stop_out_command(account: Account, order_id: str, cut: Cut, *, cause: str, lots: Decimal | None = None) -> Command:
    """The command that closes an order (so many lots of it; all without), or takes it back; `cause` is its id."""
    return Command(
        id=cause,
        type=CommandType.STOP_OUT,
        account=account,
        order_id=order_id,
        key="",
        client_key="",
        body="",
        quantity=lots,
        cut=cut,
    )
