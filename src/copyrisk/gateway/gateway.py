"""The gateway: sessions with the provider, one after the other, for ever; and what an operator may do by hand."""

import threading
import time
from collections.abc import Mapping

import redis
import structlog

from copyrisk import vitals
from copyrisk.errors import Refused, StoreError
from copyrisk.gateway.ledger import Ledger
from copyrisk.gateway.lines import LinkLost
from copyrisk.gateway.link import parse_provider_url
from copyrisk.gateway.messages import InvalidReport, is_final, parse_report
from copyrisk.gateway.records import Finished, Known, Record, RequestState, judge_report
from copyrisk.gateway.session import GatewaySettings, Session
from copyrisk.gateway.watch import Backoff
from copyrisk.identifiers import check_order_id
from copyrisk.store.pipe import Pipe
from copyrisk.vitals import Vitals

log = structlog.get_logger(__name__)

_STABLE_S = 5.0  # a session that lasted so long was a good one: after it the waits start anew
_STAND_BY_S = 0.5


def run_gateway(
    client: redis.Redis, settings: GatewaySettings, stop: threading.Event, seen: Vitals | None = None
) -> None:
    """Carry requests to the provider and its reports back until `stop` is set; a lost link or server is waited for.

    What becomes of sessions and requests is counted in `seen`.

    Raises
    ------
    ConfigError
        `bad_provider_url`.
    """
    parse_provider_url(settings.link.url)
    backoff = Backoff(settings.reconnect_min_ms / 1e3, settings.reconnect_max_ms / 1e3)
    attempt, stands_by, seen = 0, False, seen or Vitals()
    while not stop.is_set():
        started_s = time.monotonic()
        try:
            with Session(client, settings, seen) as session:
                stands_by = False
                _tell_link(seen, "up", is_ready=True)
                session.run(stop)
        except (LinkLost, StoreError) as failure:
            if failure.code == "session_in_use":
                _tell_link(seen, "standby", is_ready=True)
                seen.step_done(_STAND_BY_S)
                if not stands_by:
                    log.info("gateway_stands_by", reason="another gateway has the session with the provider")
                stands_by = True
                stop.wait(min(_STAND_BY_S, backoff.longest_s))
                continue
            attempt = 1 if time.monotonic() - started_s > _STABLE_S else attempt + 1
            wait_s = backoff.wait_s(attempt)
            _tell_link(seen, failure.code, is_ready=False)
            if isinstance(failure, LinkLost):  # that is no fault of ours
                seen.step_done(wait_s)
            else:
                seen.step_failed(failure.code)
            log.warning("gateway_session_ended", code=failure.code, reason=str(failure), wait_ms=round(wait_s * 1e3))
            stop.wait(wait_s)


def _tell_link(seen: Vitals, word: str, *, is_ready: bool) -> None:
    seen.say("link", word, is_ready=is_ready)
    seen.set(vitals.LINK_UP, word == "up")
    if word == "standby":
        seen.replace(vitals.REQUESTS, {})  # they are another gateway's
    elif word != "up":
        seen.count(vitals.SESSIONS_ENDED, word)


def resolve(
    client: redis.Redis,
    request_id: str,
    status: str,
    *,
    filled_quantity: str = "0",
    average_price: str = "0",
    reason: str = "",
    finished_keep_ms: int = 86_400_000,
) -> dict[str, str]:
    """End an unknown request by hand, with what the operator has learned from the provider by other means.

    The report is published with the next number of the request, and the request is no longer outstanding. Should the
    provider later report something else, that is a break.

    Returns
    -------
    dict
        The report as it was published.

    Raises
    ------
    InvalidId, Refused, ReportBreak
        `unknown_request`; `request_not_unknown`; `report_invalid`; `status_not_final`; or it contradicts what the
        provider reported before.
    StoreError, StoreUnavailable
        It may have been published or not; the same again is harmless.
    """
    check_order_id(request_id)
    pipe = Pipe(client)
    try:
        ledger = Ledger(pipe, finished_keep_ms)
        before = ledger.look([request_id])[request_id]
        said = {
            "status": status,
            "filled_quantity": filled_quantity,
            "average_price": average_price,
            "reason": reason,
        }
        finished = _resolved(before, said)
        ledger.publish([finished.report], [])
        ledger.settle([finished], [])
    finally:
        pipe.close()
    log.warning("request_resolved", request_id=request_id, status=status, filled_quantity=filled_quantity)
    return dict(finished.report)


def _resolved(before: Known, said: Mapping[str, str]) -> Finished:
    if not isinstance(before, Record):
        raise Refused("no such request is outstanding", code="unknown_request")
    if before.state is not RequestState.UNKNOWN:
        raise Refused(f"the request is {before.state}: the provider will say", code="request_not_unknown")
    sequence = before.sequence + 1
    own = {"report_id": f"operator-{sequence}", "ts": str(time.time_ns() // 1_000_000)}
    report = parse_report({**said, **own, "request_id": before.request.id, "sequence": sequence})
    if isinstance(report, InvalidReport):
        raise Refused(report.message, code="report_invalid")
    if not is_final(before.request.action, report.status):
        raise Refused(f"'{report.status}' does not end a request", code="status_not_final")
    judge_report(before, report)
    return Finished(before.after(report), report.texts(before.request))
