"""One session with the provider: from the logon to the first thing that goes wrong. One loop, one wait.

Intent before effect, acknowledge last: a request is outstanding in Redis before it is sent, and its stream entry is
acknowledged after; a report is on the workers' stream before the outstanding request changes, and acknowledged to the
provider after that. Whatever breaks between two steps is done again by the next session, and does no harm twice.
"""

import contextlib
import math
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import redis
import structlog

from copyrisk import keys, vitals
from copyrisk.crash import reach
from copyrisk.errors import CopyriskError, Refused
from copyrisk.gateway.digest import Digest, digest
from copyrisk.gateway.inbox import Inbox
from copyrisk.gateway.ledger import Ledger, published
from copyrisk.gateway.link import LinkSettings, ProviderLink, connect_provider
from copyrisk.gateway.messages import Heard, OutboundRequest, parse_request
from copyrisk.gateway.records import Finished, Record, RequestState
from copyrisk.gateway.watch import Backoff, Watch
from copyrisk.store.pipe import Pipe
from copyrisk.store.streams import Consumer, Entry

log = structlog.get_logger(__name__)

GROUP = "gateway"
_ENTRIES_AT_ONCE = 64
_QUERIES_AT_ONCE = 200
_LOOKS_AT_ONCE = 500
_LOGGED_AT_ONCE = 20
_ROOM_BYTES = 1 << 18  # of what the provider has not taken yet; beyond it nothing is added
_LONGEST_WAIT_S = 0.1  # after so long the loop looks whether it is to stop
_SWEEP_S = 5.0
_ABANDONED_MS = 10_000


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How the gateway works.

    Attributes
    ----------
    answer_timeout_ms : int
        A request that is not answered in this time is unknown, and asked about.
    query_max_ms : int
        The longest wait between two questions about the same request.
    recheck_ms : int
        After so long without news a request that rests at the provider is asked about, lest a report was lost.
    reconnect_min_ms, reconnect_max_ms : int
        Waits between attempts to connect; they double.
    finished_keep_ms : int
        For so long a request that comes again is answered with its final report.
    unanswered_limit : int
        With so many unanswered requests no further ones are taken from the stream.
    """

    link: LinkSettings
    answer_timeout_ms: int = 2_000
    query_max_ms: int = 60_000
    recheck_ms: int = 30_000
    reconnect_min_ms: int = 50
    reconnect_max_ms: int = 10_000
    finished_keep_ms: int = 86_400_000
    unanswered_limit: int = 10_000


class Session:
    """A session, as a context manager.

    `run` returns when it is to stop, and raises when the session is of no use any more.

    Raises
    ------
    LinkLost, StoreError, StoreUnavailable
    """

    def __init__(self, client: redis.Redis, settings: GatewaySettings, seen: vitals.Vitals | None = None) -> None:
        self._settings, self._vitals = settings, seen or vitals.Vitals()
        self._asking = Backoff(settings.answer_timeout_ms / 1e3, settings.query_max_ms / 1e3)
        self._watch = Watch(self._asking, settings.recheck_ms / 1e3)
        self._unreadable: set[str] = set()
        self._swept_s = -math.inf
        with contextlib.ExitStack() as stack:
            pipe = Pipe(client)
            stack.callback(pipe.close)
            self._ledger = Ledger(pipe, settings.finished_keep_ms)
            self._consumer = Consumer(pipe, GROUP, settings.link.session, [keys.REQUESTS])
            self._consumer.join()
            self._vitals.reads(GROUP, self._consumer.streams)
            self._inbox = Inbox(client, GROUP, settings.link.session, _ENTRIES_AT_ONCE)
            stack.callback(self._inbox.close)
            self._link: ProviderLink = connect_provider(settings.link)
            stack.callback(self._link.close)
            self._closing = stack.pop_all()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def run(self, stop: threading.Event) -> None:
        """Carry requests and reports until told to stop."""
        self._reconcile()
        log.info("gateway_works", provider=self._settings.link.url, outstanding=len(self._watch))
        # Nobody else has a session now, so what others were handed and did not acknowledge is ours to do.
        while entries := self._consumer.take_over(0, _ENTRIES_AT_ONCE):
            self._take(entries)
        poll = select.poll()
        poll.register(self._inbox.fileno(), select.POLLIN)
        while not stop.is_set():
            if self._watch.unanswered < self._settings.unanswered_limit and self._has_room():
                self._inbox.ask()
            poll.register(self._link.fileno(), select.POLLIN | (select.POLLOUT if self._link.backlog else 0))
            ready = {descriptor for descriptor, _ in poll.poll(self._wait_ms())}
            self._hear(self._link.receive())
            if self._inbox.fileno() in ready:
                self._take(self._inbox.take())
            self._ask()
            self._link.tend()
            if time.monotonic() - self._swept_s > _SWEEP_S:
                self._sweep()
            self._tell()

    def _wait_ms(self) -> int:
        left_s = self._watch.next_s() - time.monotonic() if self._has_room() else math.inf
        return math.ceil(max(0.0, min(left_s, _LONGEST_WAIT_S)) * 1e3)

    def _has_room(self) -> bool:
        return self._link.backlog < _ROOM_BYTES

    # ---- requests

    def _take(self, entries: Sequence[Entry]) -> None:
        """Send new requests; answer those that are finished; ask about the others."""
        if not entries:
            return
        reach("gateway.taken")
        asked = self._understood(entries)
        known = self._ledger.look(list({request.id for _, request in asked}))
        fresh: dict[str, Record] = {}
        again: list[str] = []
        ended: list[Finished] = []
        done: list[bytes] = []
        for entry, request in asked:
            before = known[request.id] or fresh.get(request.id)
            if before is not None and not _is_same(before, request):
                self._bury(entry, Refused("another request had this id", code="request_id_reused"))
                continue
            done += self._consumer.done(entry)
            if isinstance(before, Finished):
                ended.append(before)
            elif before is not None:
                again.append(request.id)
            else:
                fresh[request.id] = Record(request, RequestState.SENDING, _now_ms(), sends=1)
        sent = self._send_new(list(fresh.values()), again)
        now_s = time.monotonic()
        for request_id in again:
            self._watch.ask_in(request_id, now_s)
        self._ledger.update(sent, also=[*(published(one.report) for one in ended), *done])
        reach("gateway.acknowledged")

    def _understood(self, entries: Sequence[Entry]) -> list[tuple[Entry, OutboundRequest]]:
        asked = []
        for entry in entries:
            try:
                asked.append((entry, parse_request(entry.fields)))
            except CopyriskError as failure:
                self._bury(entry, failure)
        return asked

    def _bury(self, entry: Entry, failure: CopyriskError) -> None:
        log.error("request_refused", entry=entry.id, code=failure.code, reason=str(failure))
        self._consumer.bury(entry, failure)
        self._vitals.count(vitals.BURIED, failure.code)

    def _send_new(self, fresh: Sequence[Record], again: list[str]) -> list[Record]:
        """Write down and send; what turns out to be written down already joins `again`."""
        sent: list[Record] = []
        is_ours = self._ledger.intend(fresh)
        reach("gateway.intended")
        for record, ours in zip(fresh, is_ours, strict=True):
            if ours:
                self._link.send(record.request)
                self._watch.sent(record.request.id, time.monotonic())
                sent.append(replace(record, state=RequestState.SENT))
                continue
            again.append(record.request.id)
            if self._ledger.look([record.request.id])[record.request.id] is None:  # there, but not to be read
                self._ledger.restore(replace(record, state=RequestState.UNKNOWN, is_seen=True))
        reach("gateway.sent")
        return sent

    # ---- reports

    def _hear(self, heard: Sequence[Heard]) -> None:
        """Publish what is new, and only then let the provider forget it."""
        if not heard:
            return
        reach("gateway.heard")
        known = self._ledger.look(list({one.request_id for one in heard}))
        result = digest(known, heard, _now_ms())
        for one in result.breaks[:_LOGGED_AT_ONCE]:
            log.error("report_contradicts", request_id=one["request_id"], code=one["code"], reason=one["reason"])
        self._ledger.publish(result.reports, result.breaks)
        reach("gateway.published")
        self._vitals.count(vitals.BREAKS, by=len(result.breaks))
        self._vitals.observe(vitals.ANSWER_SECONDS, result.first_answers_s(known))
        self._ledger.settle(list(result.finished.values()), result.working.values())
        reach("gateway.settled")
        for request_id, sequence in result.acknowledged.items():
            self._link.acknowledge(request_id, sequence)
        self._note(result)
        for record in result.unseen:
            self._send_again(record)

    def _tell(self) -> None:
        counts = (len(self._watch), self._watch.unanswered, len(self._watch.unknown))
        states = (("outstanding",), ("unanswered",), ("unknown",))
        self._vitals.replace(vitals.REQUESTS, dict(zip(states, counts, strict=True)))
        self._vitals.step_done()

    def _note(self, result: Digest) -> None:
        now_s = time.monotonic()
        for request_id, rests in result.answered.items():
            self._watch.answered(request_id, now_s, rests=rests)
            after = result.working.get(request_id)
            if after is not None and after.state is RequestState.UNKNOWN:  # it was answered with a contradiction
                self._watch.doubt(request_id)
        for request_id in result.gone:
            self._watch.forget(request_id)

    def _send_again(self, record: Record) -> None:
        """The provider never saw it. The first time at once; later more and more seldom, for what a provider loses
        whenever it is sent may be what breaks the link."""
        request_id = record.request.id
        longest_s = self._asking.wait_s(record.sends - 1) if record.sends > 1 else 0.0
        wait_s = min(longest_s, max(0.0, longest_s - (_now_ms() - record.sent_ms) / 1e3))
        if wait_s > 0.0:
            self._watch.ask_in(request_id, time.monotonic(), wait_s)
            return
        log.warning("request_sent_again", request_id=request_id, sends=record.sends + 1)
        sent = replace(record, state=RequestState.SENT, sent_ms=_now_ms(), sends=record.sends + 1)
        self._ledger.update([sent])
        self._link.send(record.request)
        self._watch.sent(request_id, time.monotonic())

    # ---- questions

    def _ask(self) -> None:
        """Ask about what was not answered in time, and now and then about what rests at the provider."""
        due = self._watch.due(time.monotonic(), _QUERIES_AT_ONCE) if self._has_room() else []
        if not due:
            return
        known = self._ledger.look([request_id for request_id, is_late in due if is_late])
        unknown = []
        for request_id, record in known.items():
            if not isinstance(record, Record):
                self._watch.forget(request_id)  # an operator has resolved it, or somebody has removed it
            elif record.state is not RequestState.UNKNOWN:
                unknown.append(replace(record, state=RequestState.UNKNOWN))
                self._watch.doubt(request_id)
        for record in unknown[:_LOGGED_AT_ONCE]:
            log.warning("request_unknown", request_id=record.request.id, account=str(record.request.account))
        if len(unknown) > _LOGGED_AT_ONCE:
            log.warning("requests_unknown", count=len(unknown), shown=_LOGGED_AT_ONCE)
        self._ledger.update(unknown)
        for request_id, _ in due:
            if request_id in self._watch:
                self._link.query(request_id)
                self._watch.asked(request_id, time.monotonic())

    # ---- agreement with Redis

    def _sweep(self) -> None:
        """Find what others have left behind or brought to an end."""
        self._swept_s = time.monotonic()
        self._take(self._consumer.take_over(_ABANDONED_MS, _ENTRIES_AT_ONCE))
        if self._ledger.outstanding_count() != len(self._watch) + len(self._unreadable):
            self._reconcile()

    def _reconcile(self) -> None:
        """Watch exactly what is outstanding; what is new here is asked about."""
        there = self._ledger.outstanding_ids()
        for request_id in set(self._watch) - set(there):
            self._watch.forget(request_id)
        self._unreadable &= set(there)
        fresh = [request_id for request_id in there if request_id not in self._watch]
        for start in range(0, len(fresh), _LOOKS_AT_ONCE):
            known = self._ledger.look(fresh[start : start + _LOOKS_AT_ONCE])
            self._ledger.settle([one for one in known.values() if isinstance(one, Finished)], [])
            now_s = time.monotonic()
            for request_id, record in known.items():
                if isinstance(record, Record):
                    self._watch.ask_in(request_id, now_s)
                    if record.state is RequestState.UNKNOWN:
                        self._watch.doubt(request_id)
                elif record is None:
                    self._unreadable.add(request_id)


def _is_same(before: Record | Finished, request: OutboundRequest) -> bool:
    record = before.record if isinstance(before, Finished) else before
    return replace(record.request, ts="") == replace(request, ts="")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
