"""Autocutoff, once a tick: ladder, brake, warnings, liquidation, cascades, in this order, by whoever holds the lease.

| step | what | stored before |
|---|---|---|
| 1 | the lease: without it nothing is judged, and what is known is forgotten | |
| 2 | who is worse off than judged so far, and may that be believed (`brake`) | |
| 3 | edges of the ladder become episodes and notices, in one act | the trail |
| 4 | critical accounts are planned, and closed while there is time | the trail, then the episode |
| 5 | a critical master's cascade begins before he is closed; those that run go on | the episode, then the frozen list |
| 6 | negative balances, kills with policy `close` | the trail |

Steps 4 to 6 follow from what accounts are, not from edges: what a crash left undone is found again in the next tick.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import structlog

from copyrisk import crash
from copyrisk._cutoff import Edge
from copyrisk.alerts import Alerts
from copyrisk.audit import AuditKind, Entry
from copyrisk.book import Book, RowNumbers
from copyrisk.brake import Brake
from copyrisk.cascading import NOT_YET, Cascader
from copyrisk.chronicle import Chronicle
from copyrisk.cutoff_report import CutoffReport
from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.evidence import Evidence
from copyrisk.halting import Halts
from copyrisk.identifiers import Account
from copyrisk.ladders import Ladders
from copyrisk.liquidation import Liquidator
from copyrisk.plans import Plan
from copyrisk.protecting import Protector
from copyrisk.risk import Valuer
from copyrisk.rules import CutoffOptions
from copyrisk.store.episodes import Episodes, EpisodeStep
from copyrisk.store.functions import FUNCTIONS_MISSING
from copyrisk.store.lease import Lease
from copyrisk.store.trail import Trail
from copyrisk.terms import AccountType

log = structlog.get_logger(__name__)

ROLE = "cutoff"


class Autocutoff:
    """What one daemon does about accounts whose margin runs out."""

    def __init__(
        self,
        lease: Lease,
        book: Book,
        valuer: Valuer,
        *,
        episodes: Episodes,
        liquidator: Liquidator,
        cascader: Cascader,
        halts: Halts,
        protector: Protector | None,
        trail: Trail,
        latches: bool,
        options: CutoffOptions,
        prepare: Callable[[], None],
    ) -> None:
        self._lease, self._book, self._valuer, self._episodes, self._trail = lease, book, valuer, episodes, trail
        self._liquidator, self._cascader, self._options, self._latches = liquidator, cascader, options, latches
        self._halts, self._protector = halts, protector
        self._prepare, self._is_ready = prepare, False
        self._brake = Brake(
            share_pct=options.brake_share_pct, min_accounts=options.brake_min_accounts, jump_pct=options.quote_jump_pct
        )
        self._forget()

    def _forget(self) -> None:
        """Know nothing of what is stored: it may not be what was meant to be, or another process has acted since."""
        chosen = self._options
        self._ladders = Ladders(self._book, recovery_pct=chosen.recovery_pct, latches=self._latches)
        self._alerts = Alerts(self._book, self._ladders, self._episodes, cooldown_ms=chosen.warning_cooldown_ms)
        self._again: RowNumbers = np.zeros(0, np.int32)  # to be judged in the next tick whatever happens
        self._seen: dict[int, int] = {}  # by row: since which tick the brake holds it back
        self._breached: dict[int, int] = {}  # by row: in which tick it became critical; until its first close
        self._chronicle = Chronicle(self._trail)
        self._liquidator.forget()
        self._lease.doubt()
        self._cascaded: set[str] = set()
        self._owed: dict[str, tuple[Account, dict[str, Any]]] = {}  # cascades to begin, by event
        self._is_leader = False

    def step(self, rows: RowNumbers, tick: int, now_ms: int) -> CutoffReport:
        """Do one tick.

        Parameters
        ----------
        rows : (k,) int32
            Accounts that were valued anew in this tick.

        Raises
        ------
        StoreError, StoreUnavailable
            The tick is void: what was decided and not done is decided anew in the next one.
        """
        started = time.perf_counter()
        self._brake.follow(self._book)  # whoever acts next tick must know what was before
        try:
            is_leader = self._leads()
            self._trail.follow()
            if not is_leader:
                return CutoffReport(took_ms=(time.perf_counter() - started) * 1e3)
            return self._step(rows, tick, now_ms, started)
        except Exception as failure:  # whatever it is, what is known is read anew
            self._is_ready = isinstance(failure, StoreError) and failure.code != FUNCTIONS_MISSING
            begun = self._cascaded  # that was so, whatever failed since; another daemon may not have been there
            self._forget()
            if getattr(failure, "code", "") != "lease_lost":
                self._cascaded = begun
            raise

    def give_up(self) -> None:
        """Let another process act at once."""
        with contextlib.suppress(StoreError):
            self._lease.give_up()
        self._forget()

    def _leads(self) -> bool:
        """Whether this process may act; taking over begins with what the one before has stored."""
        if not self._is_ready:
            self._prepare()
            self._is_ready = True
        try:
            self._lease.keep()
        except StoreUnavailable as failure:
            if failure.code != "lease_lost":
                raise
            if self._is_leader:
                log.warning("cutoff_lease_lost")
                self._forget()
            return False
        if not self._is_leader:
            self._alerts.load()
            self._liquidator.sweep()
            for account in self._alerts.begun():
                self._liquidator.begin(self._book.row_of(account))
            self._owed = {event: (master, {"resumed": True}) for event, master in self._alerts.owed().items()}
            self._cascader.resume()
            self._cascaded.update(self._cascader.running_ids)
            self._is_leader = True
            log.info("cutoff_leads")
        return True

    def _step(self, rows: RowNumbers, tick: int, now_ms: int, started: float) -> CutoffReport:
        figures = self._valuer.figures
        evidence = Evidence(self._book, self._valuer, now_ms)
        new = self._ladders.follow()
        self._alerts.restore(new)
        rows = np.union1d(rows, np.concatenate([self._brake.held, new, self._again])).astype(np.int32)
        self._again = np.zeros(0, np.int32)
        worse, standing = self._held(rows, now_ms)
        judged = np.setdiff1d(rows, worse).astype(np.int32)
        edges = self._ladders.step(figures, judged)
        for row in judged[(edges & Edge.BREACHED) != 0].tolist():
            self._breached.setdefault(row, self._seen.get(row, tick))
        self._seen = {row: self._seen.get(row, tick) for row in worse.tolist()}
        steps, entries = self._alerts.judge(evidence, self._valuer, judged, edges, now_ms)
        critical = np.setdiff1d(self._ladders.critical(figures), standing).astype(np.int32)
        if steps:
            self._trail.append(entries)
            crash.reach("cutoff.said")
            self._store(steps)
            crash.reach("cutoff.stored")
        self._end(judged, edges)
        plans, delays = self._liquidate(evidence, critical, tick, now_ms)
        progress = self._cascader.step(self._options.cascade_budget_ms / 1e3)
        protected = self._protector.step(figures, now_ms) if self._protector else 0
        plans += self._halts.step(evidence, self._options.close_budget_ms / 1e3, now_ms)
        done = [outcome for plan in plans for outcome in plan.changes]
        cancels = sum(outcome.before is not None and not outcome.before.opened for outcome in done)
        return CutoffReport(
            warned=int(((edges & Edge.WARNED) != 0).sum()),
            breached=int(((edges & Edge.BREACHED) != 0).sum()),
            recovered=int(((edges & Edge.RECOVERED) != 0).sum()),
            liquidating=len(critical),
            closes=len(done) - cancels + progress.closes,
            cancels=cancels,
            refused=sum(plan.refused for plan in plans) + progress.refused,
            protected=protected,
            delayed_ticks=delays,
            held=len(self._brake.held),
            braking=self._brake.is_on,
            cascades_running=progress.running,
            cascades_finished=progress.finished,
            is_leader=True,
            took_ms=(time.perf_counter() - started) * 1e3,
            audit_lag=self._trail.file_lag,
        )

    # ---- the brake

    def _held(self, rows: RowNumbers, now_ms: int) -> tuple[RowNumbers, RowNumbers]:
        """Who is held back by the brake: of accounts that may be worse off, and of those that were critical before."""
        worse, lost = self._ladders.worsened(self._valuer.figures, rows)
        was_on = self._brake.is_on
        standing = np.setdiff1d(self._ladders.critical(self._valuer.figures), worse).astype(np.int32)
        held = self._brake.judge(self._book, self._valuer.figures, worse, standing, len(lost))
        if self._brake.is_on and not was_on:
            said: dict[str, Any] = {
                "accounts": len(self._book.account_ids),
                "held": len(held[0]),
                "turned_unknown": len(lost),
            }
            said |= {"quotes": self._brake.suspects(self._book)}
            log.critical("brake_on", **said)
            self._trail.append([Entry(AuditKind.BRAKE, reason="too_many_accounts_turned", said=said, ts_ms=now_ms)])
        elif was_on and not self._brake.is_on:
            log.warning("brake_off")
        return held

    # ---- closing

    def _end(self, rows: RowNumbers, edges: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        """Forget what belongs to a breach that is over."""
        for row in rows[(edges & (Edge.SAFE | Edge.RECOVERED)) != 0].tolist():
            self._breached.pop(row, None)
            self._chronicle.forget(row)
            self._liquidator.end(row)

    def _liquidate(
        self, evidence: Evidence, critical: RowNumbers, tick: int, now_ms: int
    ) -> tuple[list[Plan], list[int]]:
        """Close what is to be closed now; returns what was tried, and the delay of each breach's first close."""
        plans = (
            self._liquidator.plan(self._valuer, critical, self._ladders.rows, self._alerts.event_of)
            if len(critical)
            else []
        )
        if not plans:
            self._begin_cascades(evidence, [])
            return [], []

        def before(portion: Sequence[Plan]) -> None:
            self._chronicle.before(evidence, portion, AuditKind.LIQUIDATION, "level_at_or_below_critical", now_ms)

        ready = self._begin_cascades(evidence, plans)
        tried = self._liquidator.carry_out(ready, self._options.close_budget_ms / 1e3, before)
        delays = []
        for plan in tried:
            if plan.was_not_critical and not self._liquidator.has_begun(plan.row):
                self._let_go(plan)
            if plan.has_taken_any and plan.row in self._breached:
                delays.append(tick - self._breached.pop(plan.row))
        self._chronicle.after(evidence, tried, AuditKind.LIQUIDATION)
        return tried, delays

    def _let_go(self, plan: Plan) -> None:
        """An account turned out not to be critical: it is judged again."""
        self._ladders.rows["is_latched"][plan.row] = 0
        self._again = np.append(self._again, np.int32(plan.row))

    def _begin_cascades(self, evidence: Evidence, plans: Sequence[Plan]) -> list[Plan]:
        """Begin the cascade of every critical master, once for each time he became so; returns who may be closed now.

        It rests on a second look: what has been closed for followers cannot be opened again for them. A master is not
        closed before it is stored that his cascade is to begin: flat, he would not be found again.
        """
        masters = [plan for plan in plans if plan.account.type is AccountType.MASTER]
        # Who is half flat already may be well by now; his cascade was begun, or owed, before his first close.
        begun = {plan.event_id for plan in masters if self._liquidator.has_begun(plan.row)}
        new = [plan for plan in masters if plan.event_id not in {*self._cascaded, *self._owed, *begun}]
        confirmed, well = self._liquidator.confirmed(new)
        for plan in well:
            self._let_go(plan)
        self._store([self._alerts.owing(plan.account) for plan in confirmed])
        for plan in confirmed:
            said = {"figures": evidence.figures(plan.row), "quotes": evidence.quotes(plan.row)}
            self._owed[plan.event_id] = (plan.account, said)
        crash.reach("cutoff.owing")
        for event_id, (master, said) in list(self._owed.items()):
            row = self._book.row_of(master)
            if "figures" not in said and row >= 0:  # it was owed by a process that is gone
                said |= {"figures": evidence.figures(row), "quotes": evidence.quotes(row)}
            code = self._cascader.begin(master, event_id, said)
            if code in NOT_YET and event_id not in self._cascader.running_ids:
                continue
            log.warning("cascade", master=master.id, cascade=event_id, code=code)
            del self._owed[event_id]
            again = code == "finished" and any(plan.event_id == event_id for plan in confirmed)
            self._store([self._alerts.cascaded(master, event_id, again=again)])
            if not again:
                self._cascaded.add(event_id)
        crash.reach("cutoff.cascaded")
        stored = {*self._cascaded, *self._owed, *begun}
        return [plan for plan in plans if plan not in masters or plan.event_id in stored]

    def _store(self, steps: Sequence[EpisodeStep]) -> None:
        if steps:
            self._episodes.store(steps, self._lease.keep())
            self._alerts.taken(steps)
