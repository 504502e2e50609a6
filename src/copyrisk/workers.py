"""The consumers of the order streams: commands, reports of the provider, and what other workers hand on.

One loop, one wait: it blocks on its streams, carries out what came, and acknowledges last. Entries that others were
handed and did not finish are taken over; entries that fail again and again are buried where people see them.
"""

import gc
import re
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import structlog

from copyrisk import crash, keys, vitals
from copyrisk.commands import Command, Kind, kind_of_command, parse_command
from copyrisk.dispatch import Dispatcher, break_request
from copyrisk.errors import CopyriskError, InvalidId, Refused, StoreError, TryLater
from copyrisk.fills import Break
from copyrisk.provider_reports import kind_of_report, parse_report
from copyrisk.situation import Nothing, Outcome
from copyrisk.store.changes import Cause, cause_of, cause_of_report, refusal_of
from copyrisk.store.effects import Effects, add_request
from copyrisk.store.pipe import Pipe
from copyrisk.store.streams import Consumer, Entry, consumer_name, keep_consuming
from copyrisk.verdicts import Job, Repeated
from copyrisk.vitals import Vitals

log = structlog.get_logger(__name__)

GROUP = "workers"
_WAIT_MS = 500
_FIELDS_LIMIT, _FIELD_CHARS = 64, 1_024
_ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How workers go about it."""

    batch: int = 100
    retry_ms: int = 2_000
    attempts: int = 20


class Workers:
    """One process's workers, of some kinds.

    Parameters
    ----------
    read_pipe : Pipe
        For waiting on the streams.
    pipe : Pipe
        For everything else.
    seen : Vitals or None
        Where entries are counted.
    """

    def __init__(
        self,
        read_pipe: Pipe,
        pipe: Pipe,
        dispatcher: Dispatcher,
        effects: Effects,
        *,
        kinds: Collection[Kind] = tuple(Kind),
        options: WorkerOptions,
        seen: Vitals | None = None,
    ) -> None:
        self._pipe, self._dispatcher, self._effects = pipe, dispatcher, effects
        self._vitals = seen or Vitals()
        self._kinds, self._options = frozenset(kinds), options
        name = consumer_name()
        streams = (keys.COMMANDS, keys.REPORTS, keys.REPLAYED, *(keys.work(kind) for kind in sorted(kinds)))
        self._consumer = Consumer(read_pipe, GROUP, name, streams)
        self._swept_s = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; a store that fails is waited for.

        Raises
        ------
        StoreError
            `functions_missing`: whoever runs us loads them and starts anew.
        """
        gc.collect()
        gc.freeze()  # what is there now stays; going through it again and again would hold up orders
        retry_ms = self._options.retry_ms
        keep_consuming(self._consumer, lambda: self.step(_WAIT_MS), stop, retry_ms=retry_ms, seen=self._vitals)

    def step(self, wait_ms: int) -> int:
        """Take what is there, waiting so long for the first entry, and carry it out; returns how many entries."""
        entries = self._consumer.read(self._options.batch, wait_ms)
        now_s = time.monotonic()
        if now_s - self._swept_s > self._options.retry_ms / 1000.0:
            self._swept_s = now_s
            entries = self._consumer.take_over(self._options.retry_ms, self._options.batch) + entries
        self._handle(entries)
        return len(entries)

    def _handle(self, entries: Iterable[Entry]) -> None:
        crash.reach("worker.taken")
        jobs: dict[Job, Entry] = {}
        done: list[Entry] = []
        for entry in entries:
            if entry.deliveries > 1:
                self._vitals.count(vitals.RETRIES)
            if entry.deliveries > self._options.attempts:
                self._bury(entry, TryLater(f"handed out {entry.deliveries} times", code="too_many_attempts"))
                continue
            job = self._job(entry)
            if job is None:
                done.append(entry)
            else:
                jobs[job] = entry
        self._carry_out(list(jobs))
        for job, entry in jobs.items():
            self._vitals.count(vitals.ENTRIES, _kind(job), _result(job))
            if isinstance(job.verdict, Break):
                self._set_aside(job.verdict, entry)
            if isinstance(job.verdict, TryLater):
                self._not_done(entry, job.verdict)
            else:
                done.append(entry)
        self._consumer.acknowledge(done)
        crash.reach("worker.acknowledged")

    def _carry_out(self, jobs: list[Job]) -> None:
        """Carry out jobs; if something about them fails, one by one, so that none suffers for another."""
        try:
            self._dispatcher.carry_out(jobs)
        except StoreError:
            raise
        except Exception as fault:
            if len(jobs) > 1:
                for job in jobs:
                    self._carry_out([job])
                return
            log.exception("job_failed", account=str(jobs[0].account), order=jobs[0].order_id)
            jobs[0].verdict = TryLater(f"{type(fault).__name__}: {fault}", code="job_failed")

    def _job(self, entry: Entry) -> Job | None:
        """The job of an entry; `None` if there is none: it is no sense, or handed on."""
        is_report = _origin(entry) == keys.REPORTS
        try:
            _check_size(entry)
            job, kind = _report_job(entry) if is_report else _command_job(entry)
        except (InvalidId, Refused) as fault:
            self._vitals.count(vitals.ENTRIES, "none", "break" if is_report else "refused")
            if is_report:
                self._set_aside(Break(str(fault), code=fault.code), entry)
            else:
                self._refuse(entry, fault)
            return None
        if kind in self._kinds:
            return job
        self._vitals.count(vitals.ENTRIES, kind.value, "handed_on")
        origin = {"_stream": keys.REPORTS if is_report else keys.COMMANDS, "_id": _id_of(entry)}
        self._exchange(add_request(keys.work(kind), _said(entry) | origin))
        return None

    def _refuse(self, entry: Entry, fault: CopyriskError) -> None:
        """Answer a command that is not well formed; it has no account that could remember it."""
        log.warning("command_refused", code=fault.code, reason=str(fault), entry=entry.id)
        self._announce(entry, "refused", fault)

    def _announce(self, entry: Entry, word: str, fault: CopyriskError) -> None:
        said = {name: entry.fields.get(name, "")[:128] for name in ("type", "user_type", "user_id", "order_id")}
        event = said | {
            "idempotency_key": entry.fields.get("idempotency_key", "")[:128],
            "command_id": entry.id,
            "ts": str(time.time_ns() // 1_000_000),
        }
        event = refusal_of(event, fault.code, str(fault)) | {"event": word}
        self._exchange(self._effects.event_request(event))

    def _set_aside(self, failure: Break, entry: Entry) -> None:
        log.critical("report_contradicts_books", code=failure.code, reason=str(failure), entry=entry.id)
        self._exchange(break_request(failure, entry.fields))

    def _not_done(self, entry: Entry, failure: TryLater) -> None:
        log.warning("try_later", code=failure.code, reason=str(failure), entry=entry.id, deliveries=entry.deliveries)
        if entry.deliveries >= self._options.attempts:
            self._bury(entry, failure)

    def _bury(self, entry: Entry, failure: CopyriskError) -> None:
        log.critical("dead_letter", code=failure.code, reason=str(failure), stream=entry.stream, entry=entry.id)
        self._consumer.bury(entry, failure)
        self._vitals.count(vitals.BURIED, failure.code)
        if _origin(entry) == keys.COMMANDS:
            self._announce(entry, "failed", failure)

    def _exchange(self, *requests: bytes) -> None:
        for reply in self._pipe.exchange(requests):
            if isinstance(reply, Exception):
                raise StoreError(f"the server refused: {reply}")


def _command_job(entry: Entry) -> tuple[Job, Kind]:
    command = parse_command(_id_of(entry), _said(entry))
    return Job(cause_of(command), command.account, command.order_id, command), kind_of_command(command)


def _report_job(entry: Entry) -> tuple[Job, Kind]:
    report = parse_report(_said(entry))
    cause: Cause = cause_of_report(_id_of(entry), report)
    return Job(cause, report.account, report.order_id, report), kind_of_report(report)


def _kind(job: Job) -> str:
    return (kind_of_command(job.work) if isinstance(job.work, Command) else kind_of_report(job.work)).value


def _result(job: Job) -> str:
    """What came of it, in a word."""
    words = ((Outcome, "done"), (Nothing, "nothing"), (Repeated, "repeated"), (TryLater, "later"), (Break, "break"))
    return next((word for kind, word in words if isinstance(job.verdict, kind)), "refused")


def _said(entry: Entry) -> dict[str, str]:
    return {name: value for name, value in entry.fields.items() if not name.startswith("_")}


def _origin(entry: Entry) -> str:
    """The stream in which it first arrived; only what workers wrote themselves may say another than its own."""
    is_ours = entry.stream not in (keys.COMMANDS, keys.REPORTS)
    return entry.fields.get("_stream", "") if is_ours else entry.stream


def _id_of(entry: Entry) -> str:
    """The id under which it first arrived there, whoever handed it on or put it back."""
    first = entry.fields.get("_id", "")
    return first if entry.stream != _origin(entry) and _ENTRY_ID.fullmatch(first) else entry.id


def _check_size(entry: Entry) -> None:
    longest = max(map(len, (*entry.fields, *entry.fields.values())), default=0)
    if len(entry.fields) > _FIELDS_LIMIT or longest > _FIELD_CHARS:
        raise Refused(f"more than {_FIELDS_LIMIT} fields, or one of more than {_FIELD_CHARS}", code="entry_too_large")
