"""Carrying out cascades: what followers have copied from a master is closed, each follower to one end.

A follower is gone through in rounds. Each looks at the account as it is; what is new is noted before anything of it is
closed; then every copy is closed or taken back by the atomic change that all closes take. One without copies is at its
end. So a round may be the last thing that a process does, and the next one goes on from what it finds.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np
import structlog

from copyrisk import crash, identifiers
from copyrisk.audit import AuditKind, Entry
from copyrisk.book import Book
from copyrisk.cascade import (
    ENDED,
    IN_FLIGHT,
    Cascade,
    CascadeProgress,
    Chase,
    Stage,
    Standing,
    ended,
    sighted,
    summarise,
)
from copyrisk.commands import CommandType, Cut
from copyrisk.dispatch import Dispatcher
from copyrisk.errors import CopyriskError, Refused
from copyrisk.following import account_of
from copyrisk.identifiers import Account
from copyrisk.layout import Rows
from copyrisk.orders import FINISHED
from copyrisk.records import Order
from copyrisk.situation import Outcome
from copyrisk.stopping import stop_out_command
from copyrisk.store.cascade_copies import CopiesOf, Members, find_copies, read_ends, read_members
from copyrisk.store.cascades import Cascades
from copyrisk.store.changes import Cause
from copyrisk.store.lease import Lease
from copyrisk.store.pipe import Pipe
from copyrisk.terms import AccountType
from copyrisk.verdicts import Fenced, Job

log = structlog.get_logger(__name__)

_PORTION = 100  # followers of a round
_JOBS = 200  # of a round
_JOBS_OF_ONE = 10  # closes of one account come one after the other
_LISTED = 1_000  # followers that an audit entry names
_CUT = Cut(reason="cascade")
#: Answers of `begin` that say: ask again.
NOT_YET = ("running", "followers_unreadable")


@dataclass(slots=True)
class _Running:
    """A cascade on its way: those of its followers that are not at their ends, in the order in which they are due."""

    cascade: Cascade
    chases: dict[str, Chase]
    owners: dict[str, bool] = field(default_factory=dict)  # which of the orders that copies name are the master's
    became: dict[str, Order] = field(default_factory=dict)  # copies that ended by what was done here

    def due(self, now_s: float) -> list[str]:
        return list(islice((name for name, chase in self.chases.items() if chase.due_s <= now_s), _PORTION))


class Cascader:
    """Begins cascades, and carries on those that are running.

    Parameters
    ----------
    book, figures
        The daemon's book, and its figures of now: who is worst off is closed first.
    lease : Lease
        Of the role that may begin cascades and carry them out.
    record : callable
        Takes entries of the audit trail before what they say is done; raises `StoreError` if it cannot.
    limit_ms : int
        For how long a follower is tried that cannot be closed.
    """

    def __init__(
        self,
        pipe: Pipe,
        dispatcher: Dispatcher,
        book: Book,
        lease: Lease,
        *,
        figures: Callable[[], Rows],
        record: Callable[[Sequence[Entry]], object],
        limit_ms: int = 300_000,
    ) -> None:
        self._pipe, self._dispatcher, self._book, self._lease = pipe, dispatcher, book, lease
        self._figures, self._record, self._limit_s = figures, record, limit_ms / 1e3
        self._cascades = Cascades(pipe)
        self._running: dict[str, _Running] = {}
        self._owes_resume = True
        self._closes = self._refused = 0

    @property
    def running_ids(self) -> Collection[str]:
        """Cascades that are not at their ends, as far as is known here."""
        return self._running.keys()

    def begin(self, master: Account, event_id: str, said: Mapping[str, Any]) -> str:
        """Begin the cascade of a master's critical event.

        Returns `started`; or, nothing being done, `running` (this or another of the master's), `finished` (this one),
        `no_followers`, `unknown_master`, `followers_unreadable` (their set is none).

        Parameters
        ----------
        event_id : str
            The same for the same event: a cascade that there was is not begun again.
        said : dict
            Figures, cause.

        Raises
        ------
        StoreError, StoreUnavailable
            It may have been begun or not; asking again tells.
        InvalidId
        """
        identifiers.check_cascade_id(event_id)
        if self._owes_resume:
            self.resume()
        running = any(one.cascade.master_id == master.id for one in self._running.values())
        if running or master.type is not AccountType.MASTER:
            return "running" if running else "unknown_master"
        if state := self._cascades.state_of(event_id):
            return state
        try:
            members = read_members(self._pipe, master)
        except Refused as refusal:
            log.critical("cascade_refused", master=master.id, code=refusal.code, reason=str(refusal))
            return refusal.code
        if not members.has_master or not (members.followers or members.invalid):
            return "no_followers" if members.has_master else "unknown_master"
        return self._begin(master, event_id, said, members)

    def _begin(self, master: Account, event_id: str, said: Mapping[str, Any], members: Members) -> str:
        standings = {name: Standing() for name in members.followers}
        for name in members.invalid:
            standings[name] = Standing(Stage.FAILED, code="invalid_account_id")
        accounts = [f"{AccountType.FOLLOWER}:{name}" for name in members.followers]
        facts = {**said, "followers": len(standings), "digest": sha256("\n".join(accounts).encode()).hexdigest()}
        listed = {**facts, "accounts": accounts if len(accounts) <= _LISTED else []}
        self._record([Entry(AuditKind.CASCADE, str(master), event_id, "cascade_begins", listed)])
        crash.reach("cascade.recorded")
        cascade = Cascade(event_id, master.id, facts, 0, standings)
        self._owes_resume = True  # until it is known what was stored
        code = self._cascades.begin(cascade, self._lease.keep())
        self._owes_resume = code != "begun"
        crash.reach("cascade.begun")
        if code != "begun":
            return "running"
        self._take_up(cascade)
        log.warning("cascade_began", cascade=event_id, master=master.id, followers=len(standings))
        return "started"

    def _take_up(self, cascade: Cascade) -> None:
        left = [name for name, standing in cascade.standings.items() if standing.stage not in ENDED]
        known = self._running[cascade.id].chases if cascade.id in self._running else {}
        chases = {name: known.get(name) or Chase() for name in self._worst_first(left)}
        self._running[cascade.id] = _Running(cascade, chases)

    def _worst_first(self, followers: Sequence[str]) -> list[str]:
        """Those with the lowest margin levels first; whose level is not known, or who use no margin, last."""
        rows = np.array([self._book.row_of(account_of(name)) for name in followers], np.int64)
        figures, levels = self._figures(), np.full(len(rows), np.inf)
        is_known = (rows >= 0) & (rows < len(figures))
        found = figures[rows[is_known]]
        levels[is_known] = np.where(found["used_margin_executed"] > 0.0, found["margin_level_pct"], np.inf)
        return [followers[place] for place in np.argsort(levels, kind="stable").tolist()]  # NaN is last

    def resume(self) -> None:
        """Take up the cascades that are running, as they are stored.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        running = self._cascades.running()
        for gone in self._running.keys() - running.values():
            del self._running[gone]
        for master_id, cascade_id in running.items():
            cascade = self._cascades.load_running(master_id, cascade_id)
            if cascade is not None:
                self._take_up(cascade)
            else:  # nobody can tell who was in it, and it must not stand in the way of the next one
                log.critical("cascade_lost", master=master_id[:80], cascade=cascade_id[:80])
                self._cascades.forget(master_id, cascade_id, self._lease.keep())
        self._owes_resume = False

    def step(self, budget_s: float) -> CascadeProgress:
        """Carry on for about so long; at least one portion, if any follower is due.

        Raises
        ------
        StoreError, StoreUnavailable
            `lease_lost`, or anything else; the next step begins from what is stored.
        """
        ends_s = time.monotonic() + budget_s
        finished = self._closes = self._refused = 0
        if self._owes_resume:
            self.resume()
        self._owes_resume = True  # unless this step comes to its end
        turns = deque(self._running.values())
        while turns:
            running = turns.popleft()
            if names := running.due(time.monotonic()):
                self._round(running, names)
            if not running.chases:
                self._finish(running)
                finished += 1
            elif names:
                turns.append(running)
            if time.monotonic() >= ends_s:
                break
        self._owes_resume = False
        waiting = sum(len(one.chases) for one in self._running.values())
        return CascadeProgress(len(self._running), waiting, finished, self._closes, self._refused)

    def _round(self, running: _Running, names: Sequence[str]) -> None:
        """Look at some followers, note what is seen, close what they have."""
        cascade, now_s = running.cascade, time.monotonic()
        found, now_ms = find_copies(self._pipe, cascade.master_id, names, running.owners)
        standings = {name: sighted(cascade.standings[name], found[name].orders, now_ms) for name in names}
        over = {name: self._why_over(running.chases[name], standings[name], found[name], now_s) for name in names}
        ends = {name: code for name, code in over.items() if code is not None}
        every = [(account_of(name), own) for name in ends for own in standings[name].copies]
        became = running.became | read_ends(self._pipe, [one for one in every if one[1] not in running.became])
        for name, code in ends.items():
            standings[name] = ended(standings[name], {**became, **found[name].orders}, code, now_ms)
        changed = {name: one for name, one in standings.items() if one is not cascade.standings[name]}
        self._cascades.note(cascade.id, changed, self._lease.keep())
        crash.reach("cascade.noted")
        cascade.standings |= changed
        for _, own in every:
            running.became.pop(own, None)
        for name, code in ends.items():
            del running.chases[name]
            if code:
                log.critical("cascade_failed", cascade=cascade.id, follower=name, code=code)
        self._close(running, {name: found[name] for name in names if name not in ends})

    def _why_over(self, chase: Chase, standing: Standing, copies: CopiesOf, now_s: float) -> str | None:
        """Empty: the follower is at its end; a code: it has failed; `None`: it is neither."""
        owes = copies.owes and bool(standing.copies)  # what follows from a close may be ours to bring about
        if not copies.orders and not copies.code and not owes:
            return ""
        return chase.code if chase.is_hopeless(now_s, self._limit_s) else None

    def _close(self, running: _Running, left: Mapping[str, CopiesOf]) -> None:
        """Close what followers have, as far as there is room in this round."""
        jobs: dict[str, list[Job]] = {}
        room = _JOBS
        for name, copies in left.items():
            chosen = sorted(copies.orders)[: min(room, _JOBS_OF_ONE)]
            if not copies.orders and copies.owes:  # whoever asks for one of its copies has that brought about
                chosen = sorted(running.cascade.standings[name].copies)[:1]
                copies.code = copies.code or "effects_failed"
            jobs[name] = [_job(running.cascade.id, account_of(name), own) for own in chosen]
            room -= len(chosen)
        self._dispatcher.carry_out([job for some in jobs.values() for job in some], right=self._lease.keep)
        crash.reach("cascade.closed")
        now_s = time.monotonic()
        for name, some in jobs.items():
            codes = [code for job in some if (code := self._judged(job, running.became))]
            chase = running.chases[name] = running.chases.pop(name)  # behind those that were not looked at yet
            chase.note(next(iter(codes), left[name].code), now_s)
            if chase.code not in ("", IN_FLIGHT) and chase.tries == 1:
                log.warning("cascade_waits", cascade=running.cascade.id, follower=name, code=chase.code)

    def _judged(self, job: Job, became: dict[str, Order]) -> str:
        """Why a copy is not gone after a job; empty if it is, and then noted if it was this that ended it."""
        verdict = job.verdict
        if isinstance(verdict, Outcome):
            self._closes += 1
            if verdict.order.state not in FINISHED:
                return IN_FLIGHT
            became[job.order_id] = verdict.order
            return ""
        if isinstance(verdict, Fenced):
            self._lease.rise_above(verdict.token)
        if isinstance(verdict, CopyriskError):
            self._refused += 1
            return verdict.code
        return IN_FLIGHT if getattr(verdict, "code", "") == IN_FLIGHT else ""

    def _finish(self, running: _Running) -> None:
        """End a cascade whose followers are all at their ends."""
        cascade = running.cascade
        lasts = [one.last_ms for one in cascade.standings.values()]
        summary = summarise(cascade.standings, max(0, max(lasts, default=0) - cascade.started_ms))
        failed = {name: one.code for name, one in cascade.standings.items() if one.stage is Stage.FAILED}
        said = {**summary, "failed_followers": dict(islice(failed.items(), _LISTED))}
        master = str(Account(AccountType.MASTER, cascade.master_id))
        self._record([Entry(AuditKind.CASCADE, master, cascade.id, "cascade_ends", said)])
        crash.reach("cascade.ending")
        self._cascades.end(cascade.id, cascade.master_id, summary, self._lease.keep())
        crash.reach("cascade.ended")
        del self._running[cascade.id]
        log.warning("cascade_ended", cascade=cascade.id, **{name: summary[name] for name in ("done", "flat", "failed")})


def _job(cascade_id: str, follower: Account, order_id: str) -> Job:
    command = stop_out_command(follower, order_id, _CUT, cause=cascade_id)
    return Job(Cause(cascade_id, CommandType.STOP_OUT.value), follower, order_id, command)
