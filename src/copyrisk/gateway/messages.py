"""What is asked of a provider and what it says, held against the grammar once. No store, no socket, no clock."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar

from copyrisk import identifiers
from copyrisk.commands import Action
from copyrisk.decimals import ZERO, decimal_text, parse_decimal
from copyrisk.errors import InvalidId, Refused
from copyrisk.identifiers import Account
from copyrisk.orders import is_pending_type
from copyrisk.provider_reports import ReportStatus
from copyrisk.terms import OrderType

MARKET = "MARKET"
SEQUENCE_LIMIT = 999_999_999
_REASON_CHARS = 200
_SHOWN_CHARS = 40
_REPORT_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)
_TIME = re.compile(r"[0-9]{1,15}", re.ASCII)

W = TypeVar("W", bound=StrEnum)


#: Requests about another request; they fill nothing.
CHANGES = (Action.MODIFY, Action.CANCEL)
_ENDS = (ReportStatus.FILLED, ReportStatus.REJECTED, ReportStatus.CANCELLED)


def is_final(action: Action, status: ReportStatus) -> bool:
    """Whether nothing comes after a report of this status."""
    return status in _ENDS or (status is ReportStatus.ACCEPTED and action in CHANGES)


@dataclass(frozen=True, slots=True)
class OutboundRequest:
    """A request that is well formed.

    Attributes
    ----------
    id : str
        The client order id at the provider.
    quantity : Decimal
        Lots; 0 for a `modify` or `cancel` that names none.
    price : Decimal or None
        Of `place` and `modify`.
    target : str
        Id of the request it is about, empty if it is about none.
    """

    id: str
    action: Action
    account: Account
    order_id: str
    symbol: str
    side: OrderType
    order_type: str
    quantity: Decimal
    price: Decimal | None
    target: str
    ts: str

    def texts(self) -> dict[str, str]:
        """Its fields, as on the stream and on the wire."""
        said = {
            "request_id": self.id,
            "action": self.action.value,
            "user_type": self.account.type.value,
            "user_id": self.account.id,
            "order_id": self.order_id,
            "symbol": self.symbol,
            "side": self.side.value,
            "order_type": self.order_type,
            "order_quantity": decimal_text(self.quantity),
            "target": self.target,
            "ts": self.ts,
        }
        if self.price is not None:
            said["order_price"] = decimal_text(self.price)
        return said


@dataclass(frozen=True, slots=True)
class ProviderReport:
    """What a provider says of a request; `filled` and `average_price` are of the whole request so far."""

    request_id: str
    status: ReportStatus
    sequence: int
    filled: Decimal
    average_price: Decimal
    report_id: str
    reason: str
    ts: str

    def texts(self, request: OutboundRequest) -> dict[str, str]:
        """Its fields, as on the stream; whose order it is says the request, not the provider."""
        return {
            "request_id": request.id,
            "user_type": request.account.type.value,
            "user_id": request.account.id,
            "order_id": request.order_id,
            "action": request.action.value,
            "status": self.status.value,
            "sequence": str(self.sequence),
            "filled_quantity": decimal_text(self.filled),
            "average_price": decimal_text(self.average_price),
            "report_id": self.report_id,
            "reason": self.reason,
            "ts": self.ts,
        }


@dataclass(frozen=True, slots=True)
class InvalidReport:
    """A report whose request and number can be read, and nothing else be believed."""

    request_id: str
    sequence: int
    message: str
    said: str


@dataclass(frozen=True, slots=True)
class StillWorking:
    """The provider has the request and has nothing to report of it yet."""

    request_id: str


@dataclass(frozen=True, slots=True)
class NoSuchRequest:
    """The provider never saw the request."""

    request_id: str


Heard = ProviderReport | InvalidReport | StillWorking | NoSuchRequest


def parse_request(fields: Mapping[str, str]) -> OutboundRequest:
    """The request of a stream entry.

    Raises
    ------
    InvalidId, Refused
        `invalid_request_id`, `invalid_action`, `invalid_user_type`, `invalid_account_id`, `invalid_order_id`,
        `invalid_symbol`, `invalid_side`, `invalid_order_type`, `invalid_order_quantity`, `invalid_order_price`,
        `invalid_target`, `invalid_ts`.
    """
    action = _word(Action, fields, "action")
    request = OutboundRequest(
        id=_request_id(fields, "request_id"),
        action=action,
        account=identifiers.account(fields.get("user_type", ""), fields.get("user_id", "")),
        order_id=identifiers.check_order_id(fields.get("order_id", "")),
        symbol=identifiers.check_symbol(fields.get("symbol", "")),
        side=_word(OrderType, fields, "side"),
        order_type=fields.get("order_type", MARKET),
        quantity=_positive(fields, "order_quantity", required=action not in CHANGES) or ZERO,
        price=_positive(fields, "order_price", required=action in (Action.PLACE, Action.MODIFY)),
        target=_request_id(fields, "target") if action in CHANGES or fields.get("target") else "",
        ts=fields.get("ts", "") or "0",
    )
    if is_pending_type(request.side):
        raise Refused(f"a side is BUY or SELL, not {request.side}", code="invalid_side")
    if _TIME.fullmatch(request.ts) is None:
        raise Refused(f"ts must be epoch ms, not {request.ts[:_SHOWN_CHARS]!a}", code="invalid_ts")
    if action is Action.PLACE:
        placed = _word(OrderType, fields, "order_type")
        if not is_pending_type(placed) or placed.side is not request.side:
            raise Refused(f"{placed} does not place a {request.side}", code="invalid_order_type")
    elif request.order_type != MARKET:
        raise Refused(f"the order type of '{action}' is {MARKET}", code="invalid_order_type")
    return request


def parse_report(said: Mapping[str, Any]) -> ProviderReport | InvalidReport:
    """The report of a provider's message.

    Raises
    ------
    InvalidId, Refused
        Not even its request and number can be read: it cannot be acknowledged.
    """
    texts = {name: value for name, value in said.items() if isinstance(value, str)}
    request_id, sequence = _request_id(texts, "request_id"), said.get("sequence")
    if type(sequence) is not int or not 1 <= sequence <= SEQUENCE_LIMIT:
        raise Refused("a report without its number", code="report_invalid")
    try:
        status = _word(ReportStatus, texts, "status")
        filled, average_price = (_amount(texts, name) for name in ("filled_quantity", "average_price"))
        report_id, ts = texts.get("report_id", ""), texts.get("ts", "")
        if filled > 0 and average_price == 0:
            raise Refused("lots filled at no price", code="report_invalid")
        if status in (ReportStatus.PARTIAL, ReportStatus.FILLED) and filled == 0:
            raise Refused("a fill of nothing", code="report_invalid")
        if _REPORT_ID.fullmatch(report_id) is None or _TIME.fullmatch(ts) is None:
            shown = f"{report_id[:_SHOWN_CHARS]!a}, {ts[:_SHOWN_CHARS]!a}"
            raise Refused(f"report_id or ts makes no sense: {shown}", code="report_invalid")
    except Refused as failure:
        return InvalidReport(request_id, sequence, str(failure), json.dumps(said)[:4_000])
    reason = printable(texts.get("reason", ""))
    price = average_price if filled else ZERO
    return ProviderReport(request_id, status, sequence, filled, price, report_id, reason, ts)


def printable(text: str, limit: int = _REASON_CHARS) -> str:
    """A text for people from outside: one line of bounded length, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:limit])


def _request_id(fields: Mapping[str, str], name: str) -> str:
    try:
        return identifiers.check_order_id(fields.get(name, ""))
    except InvalidId:
        shown = fields.get(name, "")[:_SHOWN_CHARS]
        raise Refused(f"{name} is no request id: {shown!a}", code=f"invalid_{name}") from None


def _amount(fields: Mapping[str, str], name: str) -> Decimal:
    text = fields.get(name, "")
    value = parse_decimal(text)
    if value is None or value < 0:
        raise Refused(f"{name} is no plain decimal from 0: {text[:_SHOWN_CHARS]!a}", code="report_invalid")
    return value


def _positive(fields: Mapping[str, str], name: str, *, required: bool) -> Decimal | None:
    text = fields.get(name, "")
    if not text and not required:
        return None
    value = parse_decimal(text)
    if value is None or value < 0 or (required and value == 0):
        raise Refused(f"{name} must be a plain decimal above 0, not {text[:_SHOWN_CHARS]!a}", code=f"invalid_{name}")
    return value


def _word(words: type[W], fields: Mapping[str, str], name: str) -> W:
    text = fields.get(name, "")
    try:
        return words(text)
    except ValueError:
        shown = text[:_SHOWN_CHARS]
        raise Refused(f"{name} must be one of {', '.join(words)}, not {shown!a}", code=f"invalid_{name}") from None
