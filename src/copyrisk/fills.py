"""Carrying out reports: from what the provider says of a request to what changes. Pure: no store, no clock.

Reports come late, twice, in the wrong order, or not at all. Each says how much of its request is filled so far, so what
is applied is the difference to what is known; one that is older than what is known changes nothing. What contradicts
our books is a `Break`: it is neither dropped nor applied.
"""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext

from copyrisk.decimals import EXACT
from copyrisk.errors import CopyriskError, TryLater
from copyrisk.orders import Event, State, next_state
from copyrisk.pricing import profit, share_of
from copyrisk.provider_reports import Report, ReportStatus
from copyrisk.records import Order, Request
from copyrisk.situation import Booking, Nothing, Outcome, Situation
from copyrisk.steps import settle


class Break(CopyriskError):
    """A report that contradicts our books."""

    code = "break"


_REFUSALS = (ReportStatus.REJECTED, ReportStatus.CANCELLED)


def apply_report(report: Report, situation: Situation) -> Outcome | Nothing:
    """What a report changes.

    Raises
    ------
    Break
        `unknown_order`, `unknown_request`, `report_after_the_end`, `filled_quantity_decreased`, `overfill`,
        `fill_incomplete`, `status_does_not_fit`, `report_does_not_fit`.
    TryLater
        It cannot be booked now, for want of a rate or of the account's balance.
    """
    order = situation.order
    if order is None:
        raise Break(f"no order {report.order_id} in {report.account}", code="unknown_order")
    request = order.requests.get(report.request_id)
    if request is None:
        raise Break(f"order {order.id} made no request {report.request_id}", code="unknown_request")
    late = _check(report, request)
    if late is not None:
        return late
    with localcontext(EXACT):
        return _HANDLERS[request.action](report, request, order, situation)


def _check(report: Report, request: Request) -> Nothing | None:
    if report.sequence <= request.sequence:
        return Nothing("report_late", f"report {report.sequence} came after {request.sequence}")
    if request.is_final:
        if report.filled == request.filled:
            return Nothing("report_late", "the request had come to its end")
        raise Break(f"{report.filled} lots filled after the end at {request.filled}", code="report_after_the_end")
    if report.filled < request.filled:
        raise Break(f"filled lots went from {request.filled} to {report.filled}", code="filled_quantity_decreased")
    if report.filled > request.asked:
        raise Break(f"{report.filled} of {request.asked} lots filled", code="overfill")
    if report.status is ReportStatus.ACCEPTED and report.filled != request.filled:
        raise Break(f"accepted, but {report.filled} lots filled", code="status_does_not_fit")
    if report.status is ReportStatus.FILLED and report.filled != request.asked:
        raise Break(f"filled, but {report.filled} of {request.asked} lots", code="fill_incomplete")
    return None


# ---- opening: market orders and pending ones


def _opening(report: Report, request: Request, order: Order, situation: Situation) -> Outcome:
    before = order
    seen = replace(request, sequence=report.sequence, filled=report.filled)
    if report.status is ReportStatus.ACCEPTED:
        if order.state is not State.PLACING:
            return _unchanged(before, order.with_request(seen))  # the provider has it; that is all it says
        return _moved(Event.ACCEPT_REPORTED, before, order.with_request(seen))
    is_all, is_refused = report.filled == request.asked, report.status in _REFUSALS
    is_more = report.filled > request.filled
    price = report.average_price if is_more else request.price
    order = order.with_request(replace(seen, price=price, is_final=is_all or is_refused))
    event = Event.FILL_REPORTED if is_all else Event.PART_REPORTED
    if is_more:
        order = _moved(event, before, _filled(order, report, situation)).order
    if is_all or not is_refused:
        return Outcome(event, order, before)
    ended = Event.REJECT_REPORTED if report.status is ReportStatus.REJECTED else Event.END_REPORTED
    if order.opened:
        return _moved(ended, before, replace(order, whole_margin_usd=order.margin_usd))
    return _moved(ended, before, replace(order, reason=order.reason or report.reason or report.status.value))


def _filled(order: Order, report: Report, situation: Situation) -> Order:
    """The order with so many lots filled, at the average price of all of them."""
    market = situation.tradable_market()
    return replace(
        order,
        order_type=order.order_type.side,
        price=report.average_price,
        quantity=report.filled,
        opened=report.filled,
        contract_value=report.filled * market.agreed().contract_size,
        commission_usd=market.commission_usd(report.filled, report.average_price, is_entry=True),
        reason="",
        margin_usd=share_of(order.whole_margin_usd, report.filled, order.asked),
    )


# ---- closing


def _closing(report: Report, request: Request, order: Order, situation: Situation) -> Outcome:
    before, lots = order, report.filled - request.filled
    is_all = report.filled == request.asked
    seen = replace(
        request,
        sequence=report.sequence,
        filled=report.filled,
        price=report.average_price if lots else request.price,
        is_final=is_all or report.status in _REFUSALS,
    )
    if report.status is ReportStatus.ACCEPTED:
        return _unchanged(before, order.with_request(seen))
    booking: Booking | None = None
    if lots > order.quantity:
        raise Break(f"{lots} lots closed of {order.quantity}", code="overfill")
    if lots:
        if situation.balance is None:
            raise TryLater("the account's balance cannot be read", code="wallet_balance_invalid")
        order, booking, earned = _closed(order, report, request, lots, situation)
        seen = replace(seen, profit=earned)
    order = order.with_request(seen)
    if is_all:
        event = Event.CLOSE_PART_DONE_REPORTED if order.quantity else Event.CLOSE_FILL_REPORTED
    elif report.status in _REFUSALS:
        event, order = Event.CLOSE_REJECT_REPORTED, replace(order, reason=report.reason)
    else:
        event = Event.CLOSE_PART_REPORTED
    return replace(_moved(event, before, order), booking=booking)


def _closed(
    order: Order, report: Report, request: Request, lots: Decimal, situation: Situation
) -> tuple[Order, Booking, Decimal]:
    """What the newly filled lots of a close make: the whole request so far, less what was booked of it before."""
    market = situation.tradable_market()
    size = market.agreed().contract_size
    is_buy, price = order.order_type.is_buy, report.average_price
    earned = profit(is_buy=is_buy, lots=report.filled, contract_size=size, open_price=order.price, close_price=price)
    charged = market.commission_usd(report.filled, price, is_entry=False)
    if request.filled:
        charged -= market.commission_usd(request.filled, request.price, is_entry=False)
    left, booking = settle(order, market, lots, price, gross=earned - request.profit, commission_exit=charged)
    return left, booking, earned


# ---- changes of pending orders


def _modifying(report: Report, request: Request, order: Order, _situation: Situation) -> Outcome:
    seen = order.with_request(replace(request, sequence=report.sequence, is_final=True))
    if report.status is ReportStatus.ACCEPTED:
        return _moved(Event.MODIFY_REPORTED, order, replace(seen, price=request.price), late_is_fine=True)
    if report.status in _REFUSALS:
        return _moved(Event.MODIFY_REJECT_REPORTED, order, seen, late_is_fine=True)
    raise Break(f"a modification cannot be {report.status}", code="status_does_not_fit")


def _cancelling(report: Report, request: Request, order: Order, _situation: Situation) -> Outcome:
    seen = order.with_request(replace(request, sequence=report.sequence, is_final=True))
    if report.status is ReportStatus.ACCEPTED:
        cancelled = replace(seen, reason=order.reason or "cancelled")
        placed = order.request_of("place")  # another service's order has none of which we would hear the end
        event = Event.CANCEL_DONE_REPORTED if placed is None or placed.is_final else Event.CANCEL_REPORTED
        return _moved(event, order, cancelled, late_is_fine=True)
    if report.status in _REFUSALS:
        return _moved(Event.CANCEL_REJECT_REPORTED, order, replace(seen, reason=""), late_is_fine=True)
    raise Break(f"a cancellation cannot be {report.status}", code="status_does_not_fit")


def _moved(event: Event, before: Order, order: Order, *, late_is_fine: bool = False) -> Outcome:
    state = next_state(order.state, event)
    if state is not None:
        return Outcome(event, replace(order, state=state), before)
    if late_is_fine:  # the order was filled or ended while the change was under way
        return _unchanged(before, replace(order, price=before.price, reason=before.reason))
    raise Break(f"{event} of an order that is {order.state}", code="report_does_not_fit")


def _unchanged(before: Order, order: Order) -> Outcome:
    """The order as it was; only its record learns something."""
    return Outcome(Event.ACCEPT_REPORTED, order, before)


_HANDLERS: dict[str, Callable[[Report, Request, Order, Situation], Outcome]] = {
    "open": _opening,
    "place": _opening,
    "modify": _modifying,
    "cancel": _cancelling,
    "close": _closing,
}
