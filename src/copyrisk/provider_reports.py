"""Reports of the provider as they arrive on their stream, held against the grammar once."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from copyrisk import identifiers
from copyrisk.commands import Kind, word_of
from copyrisk.decimals import ZERO, parse_decimal
from copyrisk.errors import Refused
from copyrisk.identifiers import Account

_REASON_CHARS = 200


class ReportStatus(StrEnum):
    """What the provider says of a request."""

    ACCEPTED = "accepted"
    PARTIAL = "partial"
    FILLED = "filled"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Report:
    """What the provider reports of a request; `filled` and `average_price` are of the whole request so far."""

    request_id: str
    action: str
    account: Account
    order_id: str
    status: ReportStatus
    sequence: int
    filled: Decimal
    average_price: Decimal
    reason: str


def parse_report(fields: Mapping[str, str]) -> Report:
    """The report of a stream entry.

    Raises
    ------
    InvalidId, Refused
        `report_invalid`, or the code of an id.
    """
    status = word_of(ReportStatus, fields.get("status", ""), "report_invalid")
    filled = parse_decimal(fields.get("filled_quantity") or "0")
    price = parse_decimal(fields.get("average_price") or "0")
    sequence = fields.get("sequence", "")
    if filled is None or price is None or filled < 0 or price < 0 or (filled > 0 and price == 0):
        raise Refused("a report's quantity or price makes no sense", code="report_invalid")
    if not (sequence.isascii() and sequence.isdecimal() and 1 <= len(sequence) <= 9 and int(sequence) > 0):
        raise Refused("a report without its number", code="report_invalid")
    if status in (ReportStatus.PARTIAL, ReportStatus.FILLED) and filled == 0:
        raise Refused("a fill of nothing", code="report_invalid")
    return Report(
        request_id=identifiers.check_order_id(fields.get("request_id", "")),
        action=fields.get("action", ""),
        account=identifiers.account(fields.get("user_type", ""), fields.get("user_id", "")),
        order_id=identifiers.check_order_id(fields.get("order_id", "")),
        status=status,
        sequence=int(sequence),
        filled=filled,
        average_price=price if filled else ZERO,
        reason=fields.get("reason", "")[:_REASON_CHARS],
    )


def kind_of_report(report: Report) -> Kind:
    """Whose work a report is."""
    if report.status is ReportStatus.REJECTED:
        return Kind.REJECT
    return {"open": Kind.OPEN, "close": Kind.CLOSE, "cancel": Kind.CANCEL}.get(report.action, Kind.PENDING)
