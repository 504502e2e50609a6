"""What is known of a request at the provider, and what a report changes of it. Pure: no store, no clock.

A provider's reports come late, twice, in the wrong order, or not at all. Each is numbered within its request and says
how much of it is filled so far, so the newest one says everything that those before it said. One that contradicts
what was said before is a break: it is neither published nor forgotten.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any

from copyrisk.commands import Action
from copyrisk.decimals import ZERO, decimal_text, parse_decimal
from copyrisk.errors import CopyriskError, Refused
from copyrisk.gateway.messages import (
    CHANGES,
    SEQUENCE_LIMIT,
    OutboundRequest,
    ProviderReport,
    is_final,
    parse_request,
)
from copyrisk.provider_reports import ReportStatus


class RequestState(StrEnum):
    """Of a request without a final report.

    `SENDING` may have been sent, `SENT` was, of `WORKING` the provider has said that it has it, `UNKNOWN` was not
    answered in time: it may be filled, refused or lost, and nothing may be decided on it.
    """

    SENDING = "sending"
    SENT = "sent"
    WORKING = "working"
    UNKNOWN = "unknown"


class Verdict(StrEnum):
    """What is to be done with a report."""

    PUBLISH = "publish"
    LATE = "late"


class ReportBreak(CopyriskError):
    """A report that contradicts what the provider said before, or what it was asked."""

    code = "break"


@dataclass(frozen=True, slots=True)
class Record:
    """A request and what the provider has said of it.

    Attributes
    ----------
    sends : int
        How often it was sent: more than once only after the provider said that it never saw it.
    is_seen : bool
        Whether the provider has ever said that it has it; from then on it is never sent again.
    sequence : int
        Of the newest published report; 0 before the first.
    disputed : str
        The last contradiction, so that it is reported once however often it is repeated.
    """

    request: OutboundRequest
    state: RequestState
    sent_ms: int
    sends: int = 0
    is_seen: bool = False
    sequence: int = 0
    status: ReportStatus | None = None
    filled: Decimal = ZERO
    average_price: Decimal = ZERO
    disputed: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the last report was the final one."""
        return self.status is not None and is_final(self.request.action, self.status)

    @property
    def rests(self) -> bool:
        """Whether nothing need come of it for a long time: a pending order of which nothing is filled."""
        return self.request.action is Action.PLACE and self.filled == 0

    def after(self, report: ProviderReport) -> "Record":
        """What is known once this report is published."""
        return replace(
            self,
            state=RequestState.WORKING,
            is_seen=True,
            sequence=report.sequence,
            status=report.status,
            filled=report.filled,
            average_price=report.average_price,
        )

    def to_json(self) -> str:
        """As it is kept in Redis."""
        said = {
            "request": self.request.texts(),
            "state": self.state.value,
            "sent_ms": self.sent_ms,
            "sends": self.sends,
            "is_seen": self.is_seen,
            "sequence": self.sequence,
            "status": self.status.value if self.status else "",
            "filled_quantity": decimal_text(self.filled),
            "average_price": decimal_text(self.average_price),
            "disputed": self.disputed,
        }
        return json.dumps(said, separators=(",", ":"))


def parse_record(text: str) -> Record:
    """The record of its JSON.

    Raises
    ------
    Refused
        `record_invalid`.
    """
    try:
        said: dict[str, Any] = json.loads(text)
        filled, price = (parse_decimal(said[name]) for name in ("filled_quantity", "average_price"))
        if filled is None or price is None or not 0 <= int(said["sequence"]) <= SEQUENCE_LIMIT:
            raise ValueError("a number makes no sense")
        return Record(
            request=parse_request(said["request"]),
            state=RequestState(said["state"]),
            sent_ms=int(said["sent_ms"]),
            sends=int(said["sends"]),
            is_seen=bool(said["is_seen"]),
            sequence=int(said["sequence"]),
            status=ReportStatus(said["status"]) if said["status"] else None,
            filled=filled,
            average_price=price,
            disputed=str(said["disputed"]),
        )
    except (CopyriskError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as failure:
        raise Refused(f"not the record of a request: {str(failure)[:80]!a}", code="record_invalid") from None


def judge_report(record: Record, report: ProviderReport) -> Verdict:
    """Whether a report says something new.

    Raises
    ------
    ReportBreak
        `status_does_not_fit`, `overfill`, `fill_incomplete`, `filled_quantity_decreased`, `average_price_changed`,
        `report_differs`, `report_after_the_end`.
    """
    _check_alone(record.request, report)
    same = (report.status, report.filled, report.average_price) == (record.status, record.filled, record.average_price)
    if record.is_finished:
        if not same and (is_final(record.request.action, report.status) or report.filled > record.filled):
            raise ReportBreak(
                f"{report.status} with {report.filled} lots after the end: {record.status} with {record.filled}",
                code="report_after_the_end",
            )
        return Verdict.LATE
    if report.sequence <= record.sequence:
        if (report.sequence == record.sequence and not same) or report.filled > record.filled:
            raise ReportBreak(f"report {report.sequence} says something else than before", code="report_differs")
        return Verdict.LATE
    if report.filled < record.filled:
        raise ReportBreak(f"filled lots went from {record.filled} to {report.filled}", code="filled_quantity_decreased")
    if report.filled == record.filled and report.average_price != record.average_price:
        raise ReportBreak(
            f"the price of {report.filled} lots went from {record.average_price} to {report.average_price}",
            code="average_price_changed",
        )
    return Verdict.PUBLISH


def _check_alone(request: OutboundRequest, report: ProviderReport) -> None:
    """What no report of this request may say, whatever was said before."""
    if request.action in CHANGES and (
        report.status in (ReportStatus.PARTIAL, ReportStatus.FILLED) or report.filled != 0
    ):
        raise ReportBreak(f"a '{request.action}' cannot be {report.status}", code="status_does_not_fit")
    if request.action not in CHANGES and report.filled > request.quantity:
        raise ReportBreak(f"{report.filled} of {request.quantity} lots filled", code="overfill")
    if report.status is ReportStatus.FILLED and report.filled != request.quantity:
        raise ReportBreak(f"filled, but {report.filled} of {request.quantity} lots", code="fill_incomplete")


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that came to its end, and its final report as it was published."""

    record: Record
    report: Mapping[str, str]

    def to_json(self) -> str:
        """As it is kept in Redis."""
        return json.dumps({"record": self.record.to_json(), "report": dict(self.report)}, separators=(",", ":"))


#: What is known of a request: outstanding, finished not long ago, or nothing.
Known = Record | Finished | None


def parse_finished(text: str) -> Finished:
    """The finished request of its JSON.

    Raises
    ------
    Refused
        `record_invalid`.
    """
    try:
        said = json.loads(text)
        report = {str(name): str(value) for name, value in said["report"].items()}
        return Finished(parse_record(said["record"]), report)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as failure:
        raise Refused(f"not a finished request: {str(failure)[:80]!a}", code="record_invalid") from None
