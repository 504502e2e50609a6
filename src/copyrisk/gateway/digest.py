"""What follows from what a provider said. Pure: no store, no socket, no clock."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from copyrisk.gateway.messages import Heard, InvalidReport, NoSuchRequest, ProviderReport, StillWorking
from copyrisk.gateway.records import Finished, Known, Record, ReportBreak, RequestState, Verdict, judge_report

_MESSAGE_CHARS = 500


@dataclass(slots=True)
class Digest:
    """What is to be done, in this order: publish, settle, acknowledge, send again.

    Attributes
    ----------
    now_ms : int
    reports, breaks : list of stream entries
    finished, working : dict
        What the requests concerned have become, by request id.
    acknowledged : dict
        The highest number of a request's reports.
    answered : dict
        Outstanding requests that the provider said something of, their end excepted: whether they rest.
    gone : list of str
        Requests that are not outstanding (any more).
    unseen : list of Record
        Requests that the provider never saw.
    """

    now_ms: int
    reports: list[dict[str, str]] = field(default_factory=list)
    breaks: list[dict[str, str]] = field(default_factory=list)
    finished: dict[str, Finished] = field(default_factory=dict)
    working: dict[str, Record] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    answered: dict[str, bool] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    unseen: list[Record] = field(default_factory=list)

    def first_answers_s(self, known: Mapping[str, Known]) -> list[float]:
        """Seconds from sending to the provider's first word, of requests it had said nothing of before."""
        news = self.working.keys() | self.finished.keys()
        first = [record for name, record in known.items() if name in news and isinstance(record, Record)]
        return [(self.now_ms - record.sent_ms) / 1e3 for record in first if not record.is_seen]


def digest(known: Mapping[str, Known], heard: Sequence[Heard], now_ms: int) -> Digest:
    """What follows from these messages, given what was known of their requests before the first of them."""
    result, newest = Digest(now_ms), dict(known)
    for one in heard:
        if isinstance(one, ProviderReport | InvalidReport):
            highest = result.acknowledged.get(one.request_id, 0)
            result.acknowledged[one.request_id] = max(highest, one.sequence)
        before = newest.get(one.request_id)
        if not isinstance(before, Record):
            result.gone.append(one.request_id)
            _of_no_outstanding(result, before, one)
            continue
        after = _of_outstanding(result, before, one)
        newest[one.request_id] = after
        if isinstance(after, Finished):
            result.finished[one.request_id] = after
            result.working.pop(one.request_id, None)
            result.gone.append(one.request_id)
            continue
        if after != before:
            result.working[one.request_id] = after
        result.answered[one.request_id] = after.rests
    return result


def _of_no_outstanding(result: Digest, before: Finished | None, one: Heard) -> None:
    """A request that is finished, or that nobody knows: only a report that says something else is of interest."""
    if isinstance(one, InvalidReport):
        _break(result, one.request_id, "report_invalid", one.message, one.said)
    elif isinstance(one, ProviderReport) and before is None:
        _break(result, one.request_id, "unknown_request", "nothing like it was sent", _shown(one))
    elif isinstance(one, ProviderReport) and before is not None:
        try:
            judge_report(before.record, one)
        except ReportBreak as failure:
            _break(result, one.request_id, failure.code, str(failure), _shown(one))


def _of_outstanding(result: Digest, before: Record, one: Heard) -> Record | Finished:
    if isinstance(one, InvalidReport):
        return _disputed(result, replace(before, is_seen=True), "report_invalid", one.message, one.said)
    if isinstance(one, StillWorking):
        return replace(before, state=RequestState.WORKING, is_seen=True)
    if isinstance(one, NoSuchRequest):
        if before.is_seen:  # it may be filled there: to send it again might fill it twice
            message = "the provider no longer knows a request that it had"
            return _disputed(result, before, "request_forgotten", message, before.to_json())
        result.unseen.append(before)
        return before
    try:
        verdict = judge_report(before, one)
    except ReportBreak as failure:
        return _disputed(result, replace(before, is_seen=True), failure.code, str(failure), _shown(one))
    if verdict is Verdict.LATE:
        return replace(before, state=RequestState.WORKING, is_seen=True)
    after, report = before.after(one), one.texts(before.request)
    result.reports.append(report)
    return Finished(after, report) if after.is_finished else after


def _disputed(result: Digest, before: Record, code: str, message: str, said: str) -> Record:
    """A contradiction about an outstanding request: what is true of it is unknown, until an operator says so."""
    signature = f"{code}: {message}"
    if before.disputed != signature:
        _break(result, before.request.id, code, message, said)
    return replace(before, state=RequestState.UNKNOWN, disputed=signature)


def _break(result: Digest, request_id: str, code: str, message: str, said: str) -> None:
    entry = {"code": code, "reason": message[:_MESSAGE_CHARS], "request_id": request_id}
    result.breaks.append({**entry, "report": said, "ts": str(result.now_ms)})


def _shown(report: ProviderReport) -> str:
    said = {
        "request_id": report.request_id,
        "status": report.status.value,
        "sequence": report.sequence,
        "filled_quantity": f"{report.filled:f}",
        "average_price": f"{report.average_price:f}",
        "report_id": report.report_id,
        "reason": report.reason,
        "ts": report.ts,
    }
    return json.dumps(said, separators=(",", ":"))
