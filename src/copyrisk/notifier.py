"""The role `notifier`: takes warnings from their stream to the clients, by each sink once, whatever fails meanwhile.

One loop does all that concerns the server; deliveries run in threads, a few for each sink, so that neither a sink that
is down nor a recipient whose server is slow holds up the others. A notice stays in the stream until every sink is done
with it; what is due when is remembered here, and on the server for whoever takes over.
"""

import heapq
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import structlog

from copyrisk import crash, keys, vitals
from copyrisk.errors import CopyriskError, Refused, StoreError, TryLater
from copyrisk.gateway.watch import Backoff
from copyrisk.notify import Client, Notice, Sink, parse_notice
from copyrisk.store.outgoing import GROUP, Claim, Ended, Outgoing
from copyrisk.store.pipe import Pipe
from copyrisk.store.streams import Consumer, Entry, consumer_name, keep_consuming
from copyrisk.vitals import Vitals

log = structlog.get_logger(__name__)

_HELD = 10_000
_AT_ONCE = 500
_WAIT_MS, _FLYING_WAIT_S, _STORE_RETRY_MS = 500, 0.05, 1_000
#: By what a claim says: why nothing is sent; `yours` beyond the last attempt.
_GIVEN_UP = {
    "yours": ("attempts_used_up", "attempts that do not come to an end"),
    "old": ("notice_too_old", "a warning that came too late is not sent"),
    "unusable": ("notice_unusable", "what is known of its deliveries cannot be read"),
}


@dataclass(frozen=True, slots=True)
class NotifierOptions:
    """How it goes about it.

    Attributes
    ----------
    parallel : int
        Deliveries at once, of each sink.
    retry_ms, retry_max_ms : int
        The first wait after a failure, and the longest; they double in between.
    attempts : int
        Then it is a dead letter.
    max_age_ms : int
        An older warning is not sent any more.
    takeover_ms : int
        An attempt whose notifier fell silent is made again by another after so long.
    """

    parallel: int = 8
    retry_ms: int = 5_000
    retry_max_ms: int = 300_000
    attempts: int = 20
    max_age_ms: int = 3_600_000
    takeover_ms: int = 30_000


@dataclass(slots=True, eq=False)
class _Held:
    """A notice that is not done with, and the sinks that it still must go through."""

    entry: Entry
    notice: Notice
    left: set[str]


@dataclass(slots=True)
class _Landed:
    """A delivery that is over, and what went wrong."""

    held: _Held
    sink: str
    attempt: int
    failure: CopyriskError | None


class Notifier:
    """Delivers warnings.

    Parameters
    ----------
    pipe : Pipe
        A connection of its own.
    sinks : sequence of Sink
        Each gets every warning.
    seen : Vitals or None
        Where what it does is counted.
    """

    def __init__(
        self, pipe: Pipe, sinks: Sequence[Sink], options: NotifierOptions, *, seen: Vitals | None = None
    ) -> None:
        name = consumer_name()
        self._consumer = Consumer(pipe, GROUP, name, (keys.NOTICES,))
        self._outgoing = Outgoing(pipe, name, takeover_ms=options.takeover_ms, max_age_ms=options.max_age_ms)
        self._sinks, self._options = {sink.name: sink for sink in sinks}, options
        self._seen = seen or Vitals()
        self._backoff = Backoff(options.retry_ms / 1e3, options.retry_max_ms / 1e3)
        self._pools = {name: ThreadPoolExecutor(options.parallel, f"notify-{name}") for name in self._sinks}
        self._held: dict[str, _Held] = {}
        self._due: dict[str, list[tuple[float, int, _Held]]] = {name: [] for name in self._sinks}
        self._flying: Counter[str] = Counter()
        self._over: queue.SimpleQueue[_Landed] = queue.SimpleQueue()
        self._landed: list[_Landed] = []  # their ends are not stored yet
        self._done: dict[str, Entry] = {}  # not acknowledged yet
        self._numbers = itertools.count()
        self._sweep_s = 0.0

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set; a store that fails is waited for.

        Raises
        ------
        StoreError
            `functions_missing`; what was delivered meanwhile is remembered, and `run` may be called again.
        """
        retry_ms = min(self._options.retry_ms, _STORE_RETRY_MS)
        keep_consuming(self._consumer, lambda: self.step(_WAIT_MS), stop, retry_ms=retry_ms, seen=self._seen)

    def step(self, wait_ms: int) -> int:
        """Take what there is a step further, waiting so long if there is nothing; returns how many deliveries ended."""
        ended = self._settle()
        if time.monotonic() >= self._sweep_s:
            self._sweep()
        room = min(_AT_ONCE, _HELD - len(self._held))
        is_idle = not (self._flying.total() or self._landed)
        if room:
            self._admit(self._consumer.read(room, min(wait_ms, self._idle_ms()) if is_idle else 0))
        self._launch()
        if self._flying.total():
            self._collect(min(wait_ms / 1e3, _FLYING_WAIT_S))
        elif not room:
            time.sleep(min(wait_ms, self._idle_ms()) / 1e3)
        return ended

    def close(self) -> None:
        """Wait for the deliveries that are under way, which have their time limits, and store what came of them."""
        for pool in self._pools.values():
            pool.shutdown()
        try:
            self._settle()
            self._consumer.leave()
        except StoreError as failure:
            log.error("notifier_ends", code=failure.code, reason=str(failure), not_stored=len(self._landed))
        for sink in self._sinks.values():
            sink.close()

    # ---- what comes

    def _sweep(self) -> None:
        """Keep what is held, forget what another has finished, and take over what another has left lying."""
        kept = self._outgoing.keep([held.entry for held in self._held.values()])
        for entry_id in [entry_id for entry_id in self._held if entry_id not in kept]:
            del self._held[entry_id]
        room = min(_AT_ONCE, _HELD - len(self._held))
        taken = self._consumer.take_over(self._options.takeover_ms, room) if room else []
        self._admit(taken)
        if not taken:  # else there may be more
            self._sweep_s = time.monotonic() + self._options.takeover_ms / 3e3

    def _admit(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.id in self._held:
                continue
            try:
                notice = parse_notice(entry.fields)
                wanted = set(notice.sinks) or set(self._sinks)
                if wanted - set(self._sinks):
                    raise Refused(f"there is no sink {min(wanted - set(self._sinks))}", code="sink_missing")
            except Refused as failure:
                log.critical("dead_letter", code=failure.code, stream=entry.stream, entry=entry.id)
                self._consumer.bury(entry, failure)
                continue
            held = self._held[entry.id] = _Held(entry, notice, wanted)
            for sink in wanted:
                self._schedule(held, sink, 0.0)

    def _schedule(self, held: _Held, sink: str, wait_s: float) -> None:
        heapq.heappush(self._due[sink], (time.monotonic() + wait_s, next(self._numbers), held))

    def _idle_ms(self) -> int:
        """How long nothing is due, if nothing comes."""
        first_s = min((heap[0][0] for heap in self._due.values() if heap), default=self._sweep_s)
        return int(1e3 * max(0.0, min(first_s, self._sweep_s) - time.monotonic()))

    # ---- what goes

    def _launch(self) -> None:
        """Begin as many deliveries as there are threads free, those that are due longest first."""
        wanted = [(held, sink) for sink in self._sinks for held in self._ready(sink)]
        if not wanted:
            return
        try:
            claims = self._outgoing.begin([(held.notice, held.entry, sink) for held, sink in wanted])
        except StoreError:
            for held, sink in wanted:
                self._schedule(held, sink, 0.0)
            raise
        crash.reach("notice.begun")
        for (held, sink), claim in zip(wanted, claims, strict=True):
            self._follow(held, sink, claim)

    def _ready(self, sink: str) -> list[_Held]:
        heap, found = self._due[sink], list[_Held]()
        while heap and heap[0][0] <= time.monotonic() and len(found) < self._options.parallel - self._flying[sink]:
            held = heapq.heappop(heap)[2]
            if self._held.get(held.entry.id) is held and sink in held.left:
                found.append(held)
        return found

    def _follow(self, held: _Held, sink: str, claim: Claim) -> None:
        """Do what a claim says."""
        if claim.state == "yours" and claim.attempt <= self._options.attempts:
            if claim.is_repeat:
                log.warning("notice_repeated", notice=held.notice.id, sink=sink, attempt=claim.attempt)
            self._flying[sink] += 1
            self._pools[sink].submit(self._fly, held, sink, claim)
        elif claim.state == "wait":
            self._schedule(held, sink, max(claim.wait_ms / 1e3, 0.001))
        elif claim.state == "over":
            self._finish(held, sink)
        else:
            code, why = _GIVEN_UP[claim.state]
            self._landed.append(_Landed(held, sink, claim.attempt, Refused(why, code=code)))

    def _fly(self, held: _Held, sink: str, claim: Claim) -> None:
        """Deliver; in a thread of the sink."""
        failure = _delivered(self._sinks[sink], held.notice, claim.client)
        self._over.put(_Landed(held, sink, claim.attempt, failure))

    # ---- what came of it

    def _collect(self, wait_s: float = 0.0) -> None:
        """Take the deliveries that are over, waiting so long for the first."""
        with suppress(queue.Empty):
            while True:
                one = self._over.get(timeout=wait_s) if wait_s else self._over.get_nowait()
                self._flying[one.sink] -= 1
                self._landed.append(one)
                wait_s = 0.0

    def _settle(self) -> int:
        """Store the ends of deliveries, and be done with notices that all sinks are done with."""
        self._collect()
        landed = list(self._landed)
        if landed:
            crash.reach("notice.delivered")
            ended = [self._ended(one) for one in landed]
            answers = self._outgoing.end(ended)  # if the store fails, they are stored later
            self._landed.clear()
            crash.reach("notice.marked")
            for one, end, answer in zip(landed, ended, answers, strict=True):
                if end.state == "waiting":
                    self._schedule(one.held, one.sink, 0.0 if answer == "other" else end.wait_ms / 1e3)
                else:
                    self._finish(one.held, one.sink)
            _tell(ended, self._seen)
        self._acknowledge()
        return len(landed)

    def _ended(self, one: _Landed) -> Ended:
        """What is to be stored of a delivery."""
        failure, state, wait_ms = one.failure, "sent", 0
        if isinstance(failure, TryLater) and one.attempt < self._options.attempts:
            state, wait_ms = "waiting", round(1e3 * self._backoff.wait_s(one.attempt))
        elif failure is not None:
            state = "failed"
        return Ended(one.held.notice, one.held.entry, one.sink, one.attempt, state, failure, wait_ms)

    def _finish(self, held: _Held, sink: str) -> None:
        held.left.discard(sink)
        if not held.left:
            self._done[held.entry.id] = held.entry

    def _acknowledge(self) -> None:
        if self._done:
            self._consumer.acknowledge(list(self._done.values()))
            for entry_id in self._done:
                self._held.pop(entry_id, None)
            self._done.clear()


def _delivered(sink: Sink, notice: Notice, client: Client | None) -> CopyriskError | None:
    """Why a notice was not delivered; `None`: it was. What a sink does not foresee must not end the others."""
    if client is None:
        return TryLater("the account's configuration cannot be read", code="account_unreadable")
    try:
        sink.deliver(notice, client)
    except (Refused, TryLater) as failure:
        return failure
    except Exception as fault:
        log.exception("sink_failed", sink=sink.name, notice=notice.id)
        return TryLater(f"unforeseen: {type(fault).__name__}", code="sink_failed")
    return None


def _tell(ended: Sequence[Ended], seen: Vitals) -> None:
    """A log line for each that was sent or given up; one for all that wait for the same reason."""
    waiting: dict[tuple[str, str], list[Ended]] = {}
    for one in ended:
        seen.count(vitals.NOTICES, one.sink, one.failure.code if one.failure else "sent")
        if one.failure is None:
            log.info("notice_sent", notice=one.notice.id, sink=one.sink, attempt=one.attempt)
        elif one.state == "failed":
            log.critical("dead_letter", code=one.failure.code, notice=one.notice.id, sink=one.sink)
        else:
            waiting.setdefault((one.sink, one.failure.code), []).append(one)
    for (sink, code), some in waiting.items():
        log.warning("notices_wait", sink=sink, code=code, notices=len(some), reason=str(some[0].failure))
