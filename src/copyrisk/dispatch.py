"""Dispatching commands and reports: read the accounts, decide, change them, bring about what follows.

Jobs of different accounts are done a wave at a time, in a handful of round trips for all of them. Every step may be the
last one of this process: what was not changed is asked again, what was changed is found to be so, and what has to
follow waits in the account's outbox.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from copyrisk import crash, keys
from copyrisk.errors import Refused, StoreError, TryLater
from copyrisk.fills import Break
from copyrisk.identifiers import Account
from copyrisk.situation import Nothing, Outcome
from copyrisk.store.appraisal import Appraiser
from copyrisk.store.changes import ANSWER_KEEP_MS, Right, asked_by, change_of, event_of, refusal_answer, refusal_of
from copyrisk.store.effects import Effects, Waiting, add_request
from copyrisk.store.filler import Filler
from copyrisk.store.functions import (
    Change,
    change_request,
    claim_request,
    is_unusable,
    note_request,
    parse_read,
    read_request,
    refused,
    text,
)
from copyrisk.store.kill_switch import KillSwitch
from copyrisk.store.pipe import Pipe, pack
from copyrisk.verdicts import Fenced, Job, Repeated, Verdict, judge_wave, repeated

log = structlog.get_logger(__name__)

#: How often a job is decided anew because its account changed under it.
_TRIES = 100
_MISSING = "account_missing"


class Dispatcher:
    """Carries out jobs."""

    def __init__(self, pipe: Pipe, appraiser: Appraiser, effects: Effects, filler: Filler) -> None:
        self._pipe, self._appraiser, self._effects, self._filler = pipe, appraiser, effects, filler
        self._switch = KillSwitch(pipe)

    def carry_out(
        self, jobs: Sequence[Job], *, right: Callable[[], Right] | None = None, later: list[Waiting] | None = None
    ) -> None:
        """Do them all, those of one account one after the other.

        `right` is asked before each wave of changes for the right to make them. What follows from the changes in other
        slots is put into `later`, if that is given, for `bring_about`.

        Afterwards the verdict of a job that could not be done is a `TryLater`; all others are done with.

        Raises
        ------
        StoreError, StoreUnavailable
            Any of them may have been done or not; doing them again does no harm.
        """
        waiting = list(jobs)
        while waiting:
            wave: dict[Account, Job] = {}
            for job in waiting:
                wave.setdefault(job.account, job)
            done = set(self._wave(list(wave.values()), right, later))
            waiting = [job for job in waiting if job not in done]

    def look(self, jobs: Sequence[Job]) -> None:
        """Give jobs of different accounts the verdicts they would have now; changes nothing. Raises as `carry_out`."""
        self._read(list(jobs))
        judge_wave(jobs, self._appraiser, self._switch)

    def bring_about(self, later: Sequence[Waiting]) -> None:
        """Bring about what was put off; raises as `carry_out`. What cannot be done stays in its account's outbox."""
        # A later job of an account finds in the outbox what an earlier one has put off.
        self._effects.deliver(list({(one.account, one.entry_id): one for one in later}.values()))

    def sweep(self, accounts: Sequence[Account]) -> None:
        """Bring about whatever changes of some accounts have left behind; raises as `carry_out`."""
        counts = self._pipe.exchange([pack("XLEN", keys.outbox(account)) for account in accounts])
        left = [account for account, count in zip(accounts, counts, strict=True) if not is_unusable(count) and count]
        self.bring_about(self._effects.read_outboxes(left))

    def _wave(self, jobs: list[Job], right: Callable[[], Right] | None, later: list[Waiting] | None) -> list[Job]:
        """Do one job each of some accounts; returns all but those that must be decided anew."""
        left = self._read(jobs)
        judge_wave(jobs, self._appraiser, self._switch)
        crash.reach("worker.decided")
        made = self._change(jobs, None if right is None else right())
        crash.reach("worker.changed")
        events = [event for job in jobs if (event := self._event(job))]
        for reply in self._pipe.exchange([self._effects.event_request(event) for event in events]):
            _check(reply)
        follows = [*left, *made.values()]
        if later is not None:
            later += follows
            follows = []
        failed = self._effects.deliver(follows)
        for job, waiting in made.items():
            if (job.account, waiting.entry_id) in failed:
                job.verdict = TryLater("not all that follows could be brought about", code="effects_failed")
        crash.reach("worker.delivered")
        return [job for job in jobs if job.verdict is not None]

    # ---- reading

    def _read(self, jobs: list[Job]) -> list[Waiting]:
        """Read the accounts; returns what an earlier change of theirs has left to be delivered."""
        placing = [job for job in jobs if job.places_order]
        replies = self._pipe.exchange(
            [_read_request(job) for job in jobs]
            + [claim_request(job.account, job.order_id) for job in placing]
            + [self._switch.request()] * any(job.adds_lots for job in jobs)
        )
        if len(replies) > len(jobs) + len(placing):
            self._switch.take(replies.pop())
        for job, reply in zip(jobs, replies, strict=False):
            self._take(job, reply)
        for job, reply in zip(placing, replies[len(jobs) :], strict=True):
            if not is_unusable(reply) and reply != b"other":
                continue
            if job.verdict is None:
                job.verdict = Refused(f"order id {job.order_id} is taken", code="order_exists")
        left = [job.account for job in jobs if job.read is not None and job.read.outbox_count]
        return self._effects.read_outboxes(left)

    def _take(self, job: Job, reply: Any) -> None:
        job.read = job.verdict = None
        if is_unusable(reply):
            job.verdict = TryLater(f"the account cannot be read: {reply}", code="account_unreadable")
            return
        job.read = parse_read(job.account, reply)
        if job.read.config:
            return
        try:
            is_filled = self._filler.account(job.account)
        except TryLater as failure:
            job.verdict = failure
            return
        if is_filled:
            again, kills = self._pipe.exchange([_read_request(job), self._switch.request()])
            _check(again)  # it was readable a moment ago
            self._switch.take(kills)
            job.read = parse_read(job.account, again)
        elif not (job.read.order_ids or job.read.record):
            nobody = "there is no such account"
            job.verdict = Refused(nobody, code=_MISSING) if job.is_command else Break(nobody, code=_MISSING)

    # ---- changing

    def _change(self, jobs: list[Job], right: Right | None) -> dict[Job, Waiting]:
        """Store every verdict; returns what follows from the changes.

        The verdict of a job whose account was not as it was read is taken back.
        """
        made: dict[Job, Waiting] = {}
        changes: dict[Job, Change] = {}
        requests: dict[Job, bytes] = {}
        for job in jobs:
            if isinstance(job.verdict, Outcome) and job.read is not None:
                changes[job] = change_of(job.read, job.verdict, job.cause, right)
                requests[job] = change_request(changes[job])
            elif (note := self._note(job)) is not None:
                requests[job] = note
        for job, reply in zip(requests, self._pipe.exchange(list(requests.values())), strict=True):
            if is_unusable(reply):
                job.verdict = TryLater(f"the account cannot be changed: {reply}", code="account_unreadable")
                continue
            answer = text(reply[0])
            if answer == "repeated":
                job.verdict = repeated(job, text(reply[1]))
            elif answer in ("changed", "late"):
                self._take_back(job, answer)
            elif answer == "fenced":
                job.verdict = Fenced(text(reply[1]))
            elif job in changes:
                made[job] = Waiting(job.account, reply[1], changes[job].follows)
        return made

    def _take_back(self, job: Job, answer: str) -> None:
        job.tries += 1
        exhausted = TryLater(f"the account was {answer} {job.tries} times", code="account_busy")
        job.verdict = exhausted if job.tries >= _TRIES else None

    def _note(self, job: Job) -> bytes | None:
        """The request that records a verdict that changes nothing; none for an account that is not there."""
        verdict, cause = job.verdict, job.cause
        if isinstance(verdict, Repeated | TryLater) or getattr(verdict, "code", "") == _MISSING:
            return None
        if job.is_internal and isinstance(verdict, Nothing | Refused):
            return None  # whoever asked knows, and asks again
        event = self._event(job)
        is_refusal = isinstance(verdict, Refused) and verdict.code != "idempotency_conflict"
        answer = refusal_answer(cause, event) if is_refusal else ""
        said = event or {"code": getattr(verdict, "code", ""), "message": _message(verdict)}
        audit = json.dumps({**said, "type": cause.type, "order_id": job.order_id} | asked_by(cause))
        return note_request(job.account, cause.answer_key or "-", answer, ANSWER_KEEP_MS, audit)

    def _event(self, job: Job) -> dict[str, str]:
        """What is announced of a job that changed nothing; empty for nothing."""
        verdict = job.verdict
        if isinstance(verdict, Repeated):
            return verdict.event
        if not job.is_command or job.is_internal or not isinstance(verdict, Refused | Nothing):
            return {}
        ts_ms = job.read.time_ms if job.read is not None else time.time_ns() // 1_000_000
        event = event_of(job.account, job.cause, job.order_id, ts_ms=ts_ms)
        return refusal_of(event, verdict.code, _message(verdict))


def _message(verdict: Verdict | None) -> str:
    return verdict.message if isinstance(verdict, Nothing) else str(verdict)


def break_request(failure: Break, fields: dict[str, str]) -> bytes:
    """Set a report aside that contradicts the books."""
    said = {"code": failure.code, "reason": str(failure), "report": json.dumps(fields)}
    return add_request(keys.BREAKS, {**said, "ts": str(time.time_ns() // 1_000_000)})


def _read_request(job: Job) -> bytes:
    return read_request(job.account, job.order_id, job.cause.answer_key or "-", with_ending=job.rests_on_level)


def _check(reply: Any) -> None:
    failure: StoreError | None = refused(reply)
    if failure is not None:
        raise failure
