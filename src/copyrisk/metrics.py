"""What the metrics side of a process does: notes each tick's figures, and asks the server now and then what waits."""

import threading
import time
from dataclasses import dataclass

import redis
import structlog

from copyrisk import vitals
from copyrisk._core import LadderState
from copyrisk.cutoff_report import CutoffReport
from copyrisk.engine import TickReport
from copyrisk.errors import StoreError
from copyrisk.store.backlog import Backlog, read_backlog
from copyrisk.store.pipe import Pipe
from copyrisk.vitals import Labels, Vitals

log = structlog.get_logger(__name__)

_POLL_S = 2.0
_CUTOFF_LEASE = "cutoff"
_FULL = "full"


def note_tick(seen: Vitals, report: TickReport) -> None:
    """Note the figures of a tick. Of a void one only that it was: all else is as of the last full one."""
    code = None if report.skipped is None else report.skipped.partition(":")[0]
    seen.count(vitals.TICKS, code or _FULL)
    seen.set(vitals.LATE_TICKS, report.late_ticks)
    seen.set(vitals.TICK_PERIOD, report.period_ms / 1e3)
    if code is not None:
        seen.step_failed(code)
        return
    took_ms = {"read": report.read_ms, "value": report.value_ms, "write": report.write_ms, "all": report.duration_ms}
    if report.cutoff is not None:
        _note_cutoff(seen, report.cutoff)
        if not report.cutoff.failure:
            took_ms["cutoff"] = report.cutoff.took_ms
    for part, milliseconds in took_ms.items():
        seen.observe(vitals.TICK_SECONDS, [milliseconds / 1e3], part)
    seen.set(vitals.TICK_TIME, report.ts_ms / 1e3)
    states = {(kind.value, _word(state)): count for (kind, state), count in report.states_by_type.items()}
    seen.replace(vitals.ACCOUNTS, states)
    seen.replace(vitals.UNKNOWN, {(reason,): count for reason, count in report.unknown_by_reason.items()})
    seen.set(vitals.ORDERS, report.orders)
    seen.set(vitals.QUOTES, report.quotes)
    seen.set(vitals.REFUSED_KEYS, report.refused_keys)
    seen.count(vitals.VALUED, by=report.valued)
    seen.count(vitals.PORTFOLIOS, "written", by=report.written)
    seen.count(vitals.PORTFOLIOS, "refused", by=report.refused)
    seen.set(vitals.REPAIRED, report.repaired)
    seen.set(vitals.INCONSISTENT, report.inconsistent)
    seen.step_done(report.period_ms / 1e3)


def _note_cutoff(seen: Vitals, report: CutoffReport) -> None:
    seen.say("cutoff", report.failure or "ok", is_ready=not report.failure)
    if report.failure:
        seen.count(vitals.CUTOFF_FAILURES, report.failure)
        for metric in (vitals.LEASE_HELD, vitals.LIQUIDATING, vitals.HELD, vitals.BRAKE, vitals.CASCADES_RUNNING):
            seen.replace(metric, {})  # nobody knows
        return
    for metric, count in (
        (vitals.WARNED, report.warned),
        (vitals.BREACHED, report.breached),
        (vitals.RECOVERED, report.recovered),
        (vitals.CLOSES, report.closes),
        (vitals.CANCELS, report.cancels),
        (vitals.CUTOFF_REFUSED, report.refused),
        (vitals.CASCADES_FINISHED, report.cascades_finished),
    ):
        seen.count(metric, by=count)
    seen.observe(vitals.CUTOFF_DELAY, report.delayed_ticks)
    seen.set(vitals.LIQUIDATING, report.liquidating)
    seen.set(vitals.HELD, report.held)
    seen.set(vitals.BRAKE, report.braking)
    seen.set(vitals.CASCADES_RUNNING, report.cascades_running)
    seen.replace(vitals.AUDIT_LAG, _told(report.audit_lag))
    seen.set(vitals.LEASE_HELD, report.is_leader, _CUTOFF_LEASE)
    seen.say("lease", "held" if report.is_leader else "standby", is_ready=True)


@dataclass(frozen=True, slots=True)
class Poll:
    """What the server was last found to be.

    Attributes
    ----------
    failure : str
        Code; empty if it answered.
    at_s : float
        Monotonic clock.
    every_s : float
        How long after it the next one is due.
    """

    at_s: float
    every_s: float
    failure: str = ""
    has_functions: bool | None = None


class Poller:
    """Asks the server what waits, over a connection and in a thread of its own.

    Parameters
    ----------
    longest_s : float
        So often at least.

    Attributes
    ----------
    every_s : float
        So often it asks.
    latest : Poll or None
        `None` before the first.
    """

    def __init__(self, client: redis.Redis, seen: Vitals, longest_s: float = _POLL_S) -> None:
        self._pipe, self._vitals, self.every_s = Pipe(client), seen, min(_POLL_S, longest_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-poller", daemon=True)
        self.latest: Poll | None = None

    def start(self) -> None:
        """Begin; the first answer is there soon."""
        self._thread.start()

    def stop(self) -> None:
        """End; a server that does not answer is not waited for."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def poll(self) -> None:
        """Ask once, and say what was found."""
        try:
            backlog, failure = read_backlog(self._pipe, dict(self._vitals.consumed)), ""
        except StoreError as refusal:
            backlog, failure = Backlog(), refusal.code
        note_backlog(self._vitals, backlog, is_up=not failure)
        self.latest = Poll(time.monotonic(), self.every_s, failure, backlog.has_functions)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception:  # what it did not expect must not end it: `/readyz` would be right for ever
                log.exception("metrics_poll_failed")
                self.latest = Poll(time.monotonic(), self.every_s, "poll_failed")
            self._stop.wait(self.every_s)
        self._pipe.close()


def note_backlog(seen: Vitals, backlog: Backlog, *, is_up: bool) -> None:
    """Note what waits; what is not known is not said."""
    seen.set(vitals.STORE_UP, is_up)
    for metric, count in (
        (vitals.DEAD_LETTERS, backlog.dead_letters),
        (vitals.WAITING_COPIES, backlog.waiting_copies),
        (vitals.KILLS, backlog.kills),
    ):
        seen.replace(metric, _told(count))
    streams = backlog.streams.items()
    lag = {key: one.lag for key, one in streams if one.lag is not None}
    pending = {key: one.pending for key, one in streams if one.pending is not None}
    seen.replace(vitals.STREAM_LAG, lag)
    seen.replace(vitals.STREAM_PENDING, pending)
    oldest = {(stream,): one.oldest_s for (stream, _), one in streams if one.oldest_s is not None}
    seen.replace(vitals.STREAM_OLDEST, oldest)


def _word(state: LadderState) -> str:
    return state.name.lower().removeprefix("state_")


def _told(count: int | None) -> dict[Labels, float]:
    return {} if count is None else {(): count}
