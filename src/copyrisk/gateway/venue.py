"""The simulated provider's books: orders by client order id, fills, positions. Pure: no socket, no store, no clock."""

from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any

from copyrisk.commands import Action
from copyrisk.decimals import EXACT, ZERO, decimal_text
from copyrisk.errors import Refused
from copyrisk.gateway.messages import CHANGES, OutboundRequest, is_final
from copyrisk.gateway.script import FaultScript
from copyrisk.provider_reports import ReportStatus
from copyrisk.terms import OrderType

Quote = tuple[Decimal, Decimal]


@dataclass(slots=True)
class VenueOrder:
    """A request the provider has taken, whatever has become of it.

    Attributes
    ----------
    parts : list of Decimal
        Lots that are still to be filled, part by part.
    paid : Decimal
        Sum of lots times price of its fills.
    closing : Decimal
        Lots of it that closes have filled or may still fill.
    reserved : Decimal
        Of a close: what it set aside of the request that it closes.
    price : Decimal or None
        At which a resting order waits; a `modify` changes it.
    acknowledged : int
        Reports up to this one are safe on the other side.
    """

    request: OutboundRequest
    parts: list[Decimal]
    price: Decimal | None
    status: ReportStatus | None = None
    filled: Decimal = ZERO
    paid: Decimal = ZERO
    closing: Decimal = ZERO
    reserved: Decimal = ZERO
    steps: int = 0
    is_triggered: bool = False
    reports: list[dict[str, Any]] = field(default_factory=list)
    acknowledged: int = 0

    @property
    def is_done(self) -> bool:
        """Whether it has come to its end."""
        return self.status is not None and is_final(self.request.action, self.status)

    @property
    def is_resting(self) -> bool:
        """Whether it waits for its price."""
        return self.request.action is Action.PLACE and self.status is not None and not self.is_done

    @property
    def average_price(self) -> Decimal:
        """Of what is filled, 0 if nothing is; to ten decimals."""
        return round(self.paid / self.filled, 10) if self.filled else ZERO


class Venue:
    """All orders and positions.

    Attributes
    ----------
    orders : dict
        By request id; a request that comes again changes nothing.
    net : dict
        Lots by account and symbol, sold ones negative.
    by_order : dict
        Lots that are open, by account and order id.
    """

    def __init__(self) -> None:
        self.orders: dict[str, VenueOrder] = {}
        self.resting: dict[str, VenueOrder] = {}
        self.net: dict[tuple[str, str], Decimal] = {}
        self.by_order: dict[tuple[str, str], Decimal] = {}
        self._made = 0

    def take(self, request: OutboundRequest, script: FaultScript) -> VenueOrder:
        """Enter a request; it is carried out by `advance`."""
        parts = [] if request.action in CHANGES else script.split(request.id, request.quantity)
        order = VenueOrder(request, parts, request.price)
        self.orders[request.id] = order
        return order

    def advance(self, order: VenueOrder, quote: Quote | None, script: FaultScript, ts_ms: int) -> list[VenueOrder]:
        """Carry out the next step of an order; returns those of which there is a new report, the newest last."""
        if order.is_done:
            return []
        order.steps += 1
        action = order.request.action
        if order.steps == 1:
            refusal = self._refusal(order, quote, script)
            if refusal:
                return [self._report(order, ReportStatus.REJECTED, ts_ms, refusal)]
            if action is Action.PLACE:
                self.resting[order.request.id] = order
                return [self._report(order, ReportStatus.ACCEPTED, ts_ms)]
            if action in CHANGES:
                return self._change(order, ts_ms)
        if script.manual:
            return []
        if quote is None:
            return [self._report(order, ReportStatus.CANCELLED, ts_ms, "no_quote")]
        if order.filled and script.happens("cut", order.request.id, 0):
            return [self._report(order, ReportStatus.CANCELLED, ts_ms, "scripted")]
        lots, price = order.parts[0], quote[1] if order.request.side is OrderType.BUY else quote[0]
        return [self.fill(order, lots, price, ts_ms)]

    def fill(self, order: VenueOrder, lots: Decimal, price: Decimal, ts_ms: int) -> VenueOrder:
        """Fill so many lots of an order.

        Raises
        ------
        Refused
            `order_done`, `overfill`.
        """
        request = order.request
        if order.is_done or request.action in CHANGES:
            raise Refused("there is nothing to fill", code="order_done")
        if lots > request.quantity - order.filled:
            raise Refused("so much is not left", code="overfill")
        account = str(request.account)
        with localcontext(EXACT):
            order.filled, order.paid = order.filled + lots, order.paid + lots * price
            signed = lots if request.side is OrderType.BUY else -lots
            net, own = (account, request.symbol), (account, request.order_id)
            self.net[net] = self.net.get(net, ZERO) + signed
            opened = -lots if request.action is Action.CLOSE else lots
            self.by_order[own] = self.by_order.get(own, ZERO) + opened
            order.parts = _without(order.parts, lots)
        is_all = order.filled == request.quantity
        return self._report(order, ReportStatus.FILLED if is_all else ReportStatus.PARTIAL, ts_ms)

    def end(self, order: VenueOrder, ts_ms: int, reason: str) -> VenueOrder:
        """Reject an order, or cancel what is left of one that is partly filled or resting.

        Raises
        ------
        Refused
            `order_done`.
        """
        if order.is_done:
            raise Refused("it has come to its end", code="order_done")
        is_begun = order.filled > 0 or order.is_resting
        return self._report(order, ReportStatus.CANCELLED if is_begun else ReportStatus.REJECTED, ts_ms, reason)

    def _refusal(self, order: VenueOrder, quote: Quote | None, script: FaultScript) -> str:
        """Why a request is rejected; empty if it is not."""
        request = order.request
        if script.happens("reject", request.id, 0):
            return "scripted"
        if request.action in CHANGES:
            target = self.orders.get(request.target)
            is_ours = target is not None and target.request.account == request.account
            return "" if is_ours and target is not None and target.is_resting else "not_resting"
        if request.action is Action.PLACE:
            return ""
        if quote is None and not script.manual:
            return "no_quote"
        return self._reserve(order) if request.action is Action.CLOSE and request.target else ""

    def _reserve(self, order: VenueOrder) -> str:
        """Set lots of the opening request aside for a close: what is closed is not closed again."""
        request = order.request
        target = self.orders.get(request.target)
        if target is None or target.request.account != request.account or target.request.symbol != request.symbol:
            return "unknown_target"
        if request.quantity > target.filled - target.closing:
            return "position_too_small"
        target.closing += request.quantity
        order.reserved = request.quantity
        return ""

    def _change(self, order: VenueOrder, ts_ms: int) -> list[VenueOrder]:
        target = self.orders[order.request.target]
        accepted = self._report(order, ReportStatus.ACCEPTED, ts_ms)
        if order.request.action is Action.MODIFY:
            target.price = order.request.price
            return [accepted]
        return [accepted, self._report(target, ReportStatus.CANCELLED, ts_ms, "cancelled")]

    def _report(self, order: VenueOrder, status: ReportStatus, ts_ms: int, reason: str = "") -> VenueOrder:
        order.status = status
        self._made += 1
        order.reports.append(
            {
                "type": "report",
                "request_id": order.request.id,
                "sequence": len(order.reports) + 1,
                "status": status.value,
                "filled_quantity": decimal_text(order.filled),
                "average_price": decimal_text(order.average_price),
                "report_id": f"R{self._made}",
                "reason": reason,
                "ts": str(ts_ms),
            }
        )
        if order.is_done:
            self.resting.pop(order.request.id, None)
            target = self.orders.get(order.request.target)
            if target is not None and order.reserved:
                target.closing -= order.reserved - order.filled
        return order

    def dump(self) -> dict[str, Any]:
        """The books: orders and positions, numbers as texts."""
        orders = {
            request_id: {
                "action": order.request.action.value,
                "status": order.status.value if order.status else "working",
                "filled_quantity": decimal_text(order.filled),
                "average_price": decimal_text(order.average_price),
                "sequence": len(order.reports),
                "acknowledged": order.acknowledged,
            }
            for request_id, order in self.orders.items()
        }
        net = [[account, symbol, decimal_text(lots)] for (account, symbol), lots in self.net.items() if lots]
        own = [[account, order_id, decimal_text(lots)] for (account, order_id), lots in self.by_order.items() if lots]
        return {"orders": orders, "net": net, "by_order": own}


def is_crossed(order: VenueOrder, quote: Quote) -> bool:
    """Whether the market has reached the price for which a resting order waits."""
    bid, ask = quote
    if order.price is None:
        return False
    return {
        OrderType.BUY_LIMIT.value: ask <= order.price,
        OrderType.BUY_STOP.value: ask >= order.price,
        OrderType.SELL_LIMIT.value: bid >= order.price,
        OrderType.SELL_STOP.value: bid <= order.price,
    }[order.request.order_type]


def _without(parts: list[Decimal], lots: Decimal) -> list[Decimal]:
    """The parts that are left after so many lots, taken from the first ones."""
    left = list(parts)
    while lots > 0 and left:
        taken = min(lots, left[0])
        lots -= taken
        left[0] -= taken
        if left[0] == 0:
            left.pop(0)
    return left
