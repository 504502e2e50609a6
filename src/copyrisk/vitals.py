"""What a process says of itself: every metric, and the plain numbers that its loop keeps of them.

The loop writes and never waits; who reads (another thread) takes copies. Values are replaced, never changed in place,
so a copy is whole. No label ever names an account, an order or a symbol: each has a few dozen values at most.
"""

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

Labels = tuple[str, ...]
L = TypeVar("L", bound=Labels)
#: Upper bounds in seconds: of parts of a tick; of copies, orders and answers.
_TICK_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_LATENCY_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0)
_DELAY_BOUNDS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 50.0)


class MetricKind(StrEnum):
    """Whether it only grows, is as it is now, or is counted in buckets."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A metric.

    Attributes
    ----------
    roles : tuple of str
        The processes that have it; empty: all.
    bounds : tuple of float
        Upper bounds of a histogram's buckets; a last one has none.
    """

    name: str
    kind: MetricKind
    meaning: str
    roles: Labels = ()
    labels: Labels = ()
    bounds: tuple[float, ...] = ()


METRICS: dict[str, Metric] = {}


def _made(metric: Metric) -> Metric:
    METRICS[metric.name] = metric
    return metric


def _count(name: str, meaning: str, *labels: str, roles: Labels = ()) -> Metric:
    return _made(Metric(name, MetricKind.COUNTER, meaning, roles, labels))


def _level(name: str, meaning: str, *labels: str, roles: Labels = ()) -> Metric:
    return _made(Metric(name, MetricKind.GAUGE, meaning, roles, labels))


def _spread(name: str, meaning: str, *labels: str, bounds: tuple[float, ...], roles: Labels) -> Metric:
    return _made(Metric(name, MetricKind.HISTOGRAM, meaning, roles, labels, bounds))


# ---- every process

BUILD = _level("copyrisk_build_info", "1; version and role are its labels", "version", "role")
STEP_AGE = _level("copyrisk_step_age_seconds", "since the loop completed a step; absent before its first")
STEP_FAILURES = _count("copyrisk_step_failures_total", "steps of the loop that failed, by code", "reason")
READY = _level("copyrisk_ready", "1 if this part of `/readyz` is as it must be, else 0", "part")
STORE_UP = _level("copyrisk_store_up", "1 if the server answered the endpoint's own connection, else 0")
DEAD_LETTERS = _level("copyrisk_dead_letters", "entries on the dead letters' stream")
STREAM_LAG = _level("copyrisk_stream_lag_entries", "entries that nobody of the group was handed yet", "stream", "group")
STREAM_PENDING = _level("copyrisk_stream_pending_entries", "entries handed out and not acknowledged", "stream", "group")
STREAM_OLDEST = _level(
    "copyrisk_stream_oldest_seconds", "age of the oldest entry that is not done with; 0 without", "stream"
)

# ---- the daemon

_DAEMON = ("daemon",)
TICKS = _count("copyrisk_ticks_total", "ticks: `full`, or the code of what made them void", "outcome", roles=_DAEMON)
LATE_TICKS = _count("copyrisk_late_ticks_total", "points of the grid skipped because a tick ended late", roles=_DAEMON)
TICK_SECONDS = _spread(
    "copyrisk_tick_seconds",
    "full ticks, their parts `read`, `value`, `cutoff`, `write`, and `all`",
    "part",
    bounds=_TICK_BOUNDS,
    roles=_DAEMON,
)
TICK_PERIOD = _level("copyrisk_tick_period_seconds", "the grid", roles=_DAEMON)
TICK_TIME = _level("copyrisk_tick_timestamp_seconds", "when the last full tick was valued, Unix time", roles=_DAEMON)
ACCOUNTS = _level("copyrisk_accounts", "accounts, by type and rung of the ladder", "type", "state", roles=_DAEMON)
UNKNOWN = _level("copyrisk_unknown_accounts", "accounts that are unknown, by reason", "reason", roles=_DAEMON)
ORDERS = _level("copyrisk_orders", "orders in the book", roles=_DAEMON)
QUOTES = _level("copyrisk_quotes", "symbols in the book", roles=_DAEMON)
VALUED = _count("copyrisk_accounts_valued_total", "valuations of an account", roles=_DAEMON)
PORTFOLIOS = _count(
    "copyrisk_portfolios_total", "portfolios `written`, `refused` by the server", "result", roles=_DAEMON
)
REPAIRED = _count("copyrisk_mirror_repaired_total", "rows that differed from the server unreported", roles=_DAEMON)
INCONSISTENT = _count(
    "copyrisk_inconsistent_figures_total",
    "accounts whose figures differed from a valuation from scratch",
    roles=_DAEMON,
)
REFUSED_KEYS = _level("copyrisk_refused_keys", "keys that look like an account's but are not", roles=_DAEMON)

WARNED = _count("copyrisk_cutoff_warnings_total", "warning episodes begun", roles=_DAEMON)
BREACHED = _count("copyrisk_cutoff_breaches_total", "accounts that became critical", roles=_DAEMON)
RECOVERED = _count("copyrisk_cutoff_recoveries_total", "warning episodes ended", roles=_DAEMON)
LIQUIDATING = _level("copyrisk_cutoff_liquidating_accounts", "accounts that are being closed", roles=_DAEMON)
CLOSES = _count("copyrisk_cutoff_closes_total", "closes stored, or sent to the provider", roles=_DAEMON)
CANCELS = _count("copyrisk_cutoff_cancels_total", "pending orders of critical accounts cancelled", roles=_DAEMON)
CUTOFF_REFUSED = _count("copyrisk_cutoff_refused_total", "closes and cancels that were refused", roles=_DAEMON)
CUTOFF_FAILURES = _count(
    "copyrisk_cutoff_failures_total", "ticks in which autocutoff could not act, by code", "reason", roles=_DAEMON
)
CUTOFF_DELAY = _spread(
    "copyrisk_cutoff_delay_ticks", "ticks from a breach to its first stored close", bounds=_DELAY_BOUNDS, roles=_DAEMON
)
HELD = _level("copyrisk_cutoff_held_accounts", "accounts that the brake holds back", roles=_DAEMON)
BRAKE = _level("copyrisk_cutoff_brake", "1 while the brake holds, else 0", roles=_DAEMON)
CASCADES_RUNNING = _level("copyrisk_cascades_running", "cascades that are not finished", roles=_DAEMON)
CASCADES_FINISHED = _count("copyrisk_cascades_finished_total", "cascades finished", roles=_DAEMON)
KILLS = _level("copyrisk_kills", "kill switches that are on", roles=_DAEMON)
AUDIT_LAG = _level("copyrisk_audit_file_lag_entries", "entries of the trail that the local file lacks", roles=_DAEMON)
LEASE_HELD = _level(
    "copyrisk_lease_held", "1 if this process may act, 0 if it stands by", "lease", roles=("daemon", "replicator")
)

# ---- workers, and all that take entries off streams

BURIED = _count(
    "copyrisk_buried_total",
    "entries made dead letters, by code",
    "reason",
    roles=("workers", "replicator", "recorder", "gateway"),
)
ENTRIES = _count(
    "copyrisk_worker_entries_total",
    "entries, by kind of work and what came of them",
    "kind",
    "result",
    roles=("workers",),
)
RETRIES = _count("copyrisk_worker_retries_total", "entries that were handed out before", roles=("workers",))

# ---- the replicator

_REPLICATOR = ("replicator",)
EVENTS = _count(
    "copyrisk_replication_events_total",
    "changes of masters' orders: `made`, `followed`, `buried`",
    "result",
    roles=_REPLICATOR,
)
COPIES = _count(
    "copyrisk_copies_total", "copies `made`, `failed`, `skipped`, and why not", "result", "reason", roles=_REPLICATOR
)
COPY_SECONDS = _spread(
    "copyrisk_copy_seconds", "from the stream entry to the stored copy", bounds=_LATENCY_BOUNDS, roles=_REPLICATOR
)
REPLICATION_SECONDS = _spread(
    "copyrisk_replication_seconds",
    "from a master's change to the last of its copies",
    bounds=_LATENCY_BOUNDS,
    roles=_REPLICATOR,
)
WAITING_COPIES = _level(
    "copyrisk_waiting_copies", "copies that could not follow their master's order yet", roles=_REPLICATOR
)

# ---- the gateway

_GATEWAY = ("gateway",)
LINK_UP = _level("copyrisk_gateway_link_up", "1 with a session with the provider, else 0", roles=_GATEWAY)
SESSIONS_ENDED = _count(
    "copyrisk_gateway_sessions_ended_total", "sessions ended or not begun, by code", "reason", roles=_GATEWAY
)
REQUESTS = _level(
    "copyrisk_gateway_requests",
    "requests without a final report: `outstanding`, of them `unanswered`, and `unknown`",
    "state",
    roles=_GATEWAY,
)
ANSWER_SECONDS = _spread(
    "copyrisk_gateway_answer_seconds",
    "from sending a request to the provider's first word of it",
    bounds=_LATENCY_BOUNDS,
    roles=_GATEWAY,
)
BREAKS = _count("copyrisk_gateway_breaks_total", "reports that contradict what was said before", roles=_GATEWAY)

# ---- monitors and the recorder

TRIGGERS = _level("copyrisk_triggers", "triggers that are watched", roles=("monitors",))
FIRED = _count("copyrisk_triggers_fired_total", "commands sent, by what fired", "trigger", roles=("monitors",))
HISTORY = _count(
    "copyrisk_history_rows_total",
    "entries of history `written`, put off (`later`), `buried`",
    "result",
    roles=("recorder",),
)

# ---- the notifier

NOTICES = _count(
    "copyrisk_notices_total", "attempts to deliver: `sent`, or why not, by code", "sink", "result", roles=("notifier",)
)

# ---- the HTTP API

_API = ("api",)
API_REQUESTS = _count("copyrisk_api_requests_total", "requests, by route and status", "route", "status", roles=_API)
API_SECONDS = _spread(
    "copyrisk_api_request_seconds", "until the answer's end, by route", "route", bounds=_LATENCY_BOUNDS, roles=_API
)
API_WAITING = _level("copyrisk_api_waiting_requests", "changes whose answer is waited for", roles=_API)
API_UNKNOWN = _count("copyrisk_api_unknown_outcomes_total", "changes answered with their outcome unknown", roles=_API)
API_STREAMS = _level("copyrisk_api_streams", "open event streams", roles=_API)


class Vitals:
    """The numbers of one process, written by its loop.

    Attributes
    ----------
    consumed : dict
        By consumer group, the streams that this process reads.
    parts : dict
        By part of `/readyz`: whether it is as it must be, and the word for it.
    failure : str
        Code of the last failed step; empty if one was completed since.
    rest_s : float
        How long after the last complete step the next one is due.
    """

    def __init__(self, role: str = "") -> None:
        self.role = role
        self.started_s = time.monotonic()
        self.consumed: dict[str, Labels] = {}
        self.parts: dict[str, tuple[bool, str]] = {}
        self.failure = ""
        self.rest_s = 0.0
        self._done_s: float | None = None
        self._numbers: dict[Metric, dict[Labels, float]] = {}
        self._spreads: dict[Metric, dict[Labels, tuple[float, ...]]] = {}

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add to a counter."""
        cells = self._numbers.setdefault(metric, {})
        if labels not in cells:
            _check(metric, labels)
        cells[labels] = cells.get(labels, 0.0) + by

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge, or a counter to a total that is kept elsewhere."""
        _check(metric, labels)
        self._numbers.setdefault(metric, {})[labels] = value

    def replace(self, metric: Metric, values: Mapping[L, float]) -> None:
        """Set all of a gauge at once; what is not named is gone."""
        self._numbers[metric] = dict[Labels, float](values.items())

    def observe(self, metric: Metric, values: Sequence[float], *labels: str) -> None:
        """Add to a histogram, what is below 0 (clocks differ) as 0."""
        cells = self._spreads.setdefault(metric, {})
        if labels not in cells:
            _check(metric, labels)
        found = list(cells.get(labels, (0.0,) * (len(metric.bounds) + 2)))
        for value in values:
            found[bisect_left(metric.bounds, value)] += 1
            found[-1] += max(0.0, value)
        cells[labels] = tuple(found)

    def numbers(self, metric: Metric) -> dict[Labels, float]:
        """A copy of a counter's or gauge's values by labels."""
        return dict(self._numbers.get(metric, {}))

    def spreads(self, metric: Metric) -> dict[Labels, tuple[float, ...]]:
        """A copy of a histogram by labels: the count of each bucket by itself, then the sum."""
        return dict(self._spreads.get(metric, {}))

    # ---- the loop

    def step_done(self, rest_s: float = 0.0) -> None:
        """A step is complete; the next one is not due before so long."""
        self.rest_s = rest_s
        self._done_s = time.monotonic()
        self.failure = ""

    def step_failed(self, code: str) -> None:
        """A step failed; with which code."""
        self.failure = code
        self.count(STEP_FAILURES, code)

    def say(self, part: str, word: str, *, is_ready: bool) -> None:
        """What is to be said of a part of the work in `/readyz`."""
        self.parts[part] = is_ready, word

    def reads(self, group: str, streams: Sequence[str]) -> None:
        """This process is a consumer of these streams."""
        self.consumed[group] = tuple(streams)

    def step_age_s(self, now_s: float) -> float | None:
        """How long ago the last step was completed; `None` before the first."""
        return None if self._done_s is None else max(0.0, now_s - self._done_s)


def _check(metric: Metric, labels: Labels) -> None:
    assert len(labels) == len(metric.labels), f"{metric.name} has the labels {metric.labels}, not {labels}"
