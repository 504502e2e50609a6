"""Autocutoff, once a tick: ladder, brake, warnings, liquidation, cascades, in this order, by whoever holds the lease.

| step | what | stored before |
|---|---|---|
| 1 | the lease: without it nothing is judged, and what is known is forgotten | |
| 2 | who is worse off than judged so far, and may that be believed (`brake`) | |
| 3 | edges of the ladder become episodes and notices, in one act | the trail |
| 4 | critical accounts are planned, and closed while there is time | the trail, then the episode |
| 5 | a critical master's cascade begins; those that run go on | the episode, then the frozen list |

Steps 4 and 5 follow from what accounts are, not from edges: what a crash left undone is found again in the next tick.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from copyrisk import crash
from copyrisk._cutoff import Edge
from copyrisk.alerts import Alerts
from copyrisk.audit import AuditKind, Entry
from copyrisk.book import Book, RowNumbers
from copyrisk.brake import Brake
from copyrisk.cascading import Cascader
from copyrisk.cutoff_report import CutoffReport
from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.evidence import Evidence
from copyrisk.halting import Halts
from copyrisk.keys import Account
from copyrisk.ladders import Ladders
from copyrisk.liquidation import Liquidator
from copyrisk.plans import Plan
from copyrisk.protecting import Protector
from copyrisk.risk import Valuer
from copyrisk.store.episodes import Episodes
from copyrisk.store.functions import FUNCTIONS_MISSING
from copyrisk.store.lease import Lease
from copyrisk.store.trail import Trail
from copyrisk.terms import AccountType

log = structlog.get_logger(__name__)

ROLE = "cutoff"
_SAID_AGAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class CutoffOptions:
    """How autocutoff goes about it; see `sections.CutoffSettings`."""

    recovery_pct: float = 5.0
    warning_cooldown_ms: int = 10_800_000
    brake_share_pct: float = 5.0
    brake_min_accounts: int = 10
    quote_jump_pct: float = 10.0
    close_budget_ms: int = 400
    cascade_budget_ms: int = 150


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
        load_functions: Callable[[], None],
    ) -> None:
        self._lease, self._book, self._valuer, self._episodes, self._trail = lease, book, valuer, episodes, trail
        self._liquidator, self._cascader, self._options, self._latches = liquidator, cascader, options, latches
        self._halts, self._protector = halts, protector
        self._load_functions, self._has_functions = load_functions, False
        self._brake = Brake(
            share_pct=options.brake_share_pct, min_accounts=options.brake_min_accounts, jump_pct=options.quote_jump_pct
        )
        self._forget()

    def _forget(self) -> None:
        """Know nothing of what is stored: it may not be what was meant to be, or another process has acted since."""
        chosen = self._options
        self._ladders = Ladders(self._book, recovery_pct=chosen.recovery_pct, latches=self._latches)
        self._alerts = Alerts(self._book, self._ladders, self._episodes, cooldown_ms=chosen.warning_cooldown_ms)
        self._breached: dict[int, int] = {}  # by row: in which tick it became critical; until its first close
        self._said: dict[int, tuple[tuple[str, ...], float]] = {}
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
        try:
            is_leader = self._leads()
            self._trail.follow()
            if not is_leader:
                return CutoffReport(took_ms=(time.perf_counter() - started) * 1e3)
            return self._step(rows, tick, now_ms, started)
        except StoreError as failure:
            self._has_functions = failure.code != FUNCTIONS_MISSING
            self._forget()
            raise

    def give_up(self) -> None:
        """Let another process act at once."""
        with contextlib.suppress(StoreError):
            self._lease.give_up()
        self._forget()

    def _leads(self) -> bool:
        """Whether this process may act; taking over begins with what the one before has stored."""
        if not self._has_functions:
            self._load_functions()
            self._has_functions = True
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
            self._liquidator.sweep(self._alerts.breached())
            self._cascader.resume()
            self._is_leader = True
            log.info("cutoff_leads")
        return True

    def _step(self, rows: RowNumbers, tick: int, now_ms: int, started: float) -> CutoffReport:
        figures = self._valuer.figures
        evidence = Evidence(self._book, self._valuer, now_ms)
        new = self._ladders.follow()
        self._alerts.restore(new)
        for row in new[self._ladders.rows["is_latched"][new] != 0].tolist():
            self._liquidator.begin(row)
        judged = self._judged(np.union1d(rows, np.concatenate([self._brake.held, new])).astype(np.int32), now_ms)
        edges = self._ladders.step(figures, judged)
        for row in judged[(edges & Edge.BREACHED) != 0].tolist():
            self._breached.setdefault(row, tick)
        steps, entries = self._alerts.judge(evidence, self._valuer, judged, edges, now_ms)
        critical = self._ladders.critical(figures)
        if steps:
            self._trail.append(entries)
            crash.reach("cutoff.said")
            self._episodes.store(steps, self._lease.keep())
            self._alerts.taken(steps)
            crash.reach("cutoff.stored")
        self._end(judged, edges)
        plans, delays = self._liquidate(evidence, critical, tick, now_ms)
        plans += self._halts.step(self._options.close_budget_ms / 1e3, now_ms)
        progress = self._cascader.step(self._options.cascade_budget_ms / 1e3)
        protected = self._protector.step(figures, now_ms) if self._protector else 0
        done = [outcome for plan in plans for outcome in plan.changes]
        cancels = sum(outcome.before is not None and not outcome.before.opened for outcome in done)
        return CutoffReport(
            warned=int(((edges & Edge.WARNED) != 0).sum()),
            breached=int(((edges & Edge.BREACHED) != 0).sum()),
            recovered=int(((edges & Edge.RECOVERED) != 0).sum()),
            liquidating=len(critical),
            closes=len(done) - cancels,
            cancels=cancels,
            refused=sum(len(plan.jobs) for plan in plans) - len(done),
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

    def _judged(self, rows: RowNumbers, now_ms: int) -> RowNumbers:
        """Accounts that may be judged now: all but those that the brake holds back."""
        worse, lost = self._ladders.worsened(self._valuer.figures, rows)
        was_on = self._brake.is_on
        held = self._brake.judge(self._book, self._valuer.figures, worse, len(lost))
        if self._brake.is_on and not was_on:
            said = {"accounts": len(self._book.account_ids), "held": len(held), "turned_unknown": len(lost)}
            log.critical("brake_on", **said)
            self._trail.append([Entry(AuditKind.BRAKE, reason="too_many_accounts_turned", said=said, ts_ms=now_ms)])
        elif was_on and not self._brake.is_on:
            log.warning("brake_off")
        judged: RowNumbers = np.setdiff1d(rows, held).astype(np.int32)
        return judged

    # ---- closing

    def _end(self, rows: RowNumbers, edges: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        """Forget what belongs to a breach that is over."""
        for row in rows[(edges & (Edge.SAFE | Edge.RECOVERED)) != 0].tolist():
            self._breached.pop(row, None)
            self._said.pop(row, None)
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
        if news := [self._intent(evidence, plan, now_ms) for plan in plans if self._is_news(plan)]:
            self._trail.append(news)
        crash.reach("cutoff.planned")
        self._begin_cascades(evidence, plans)
        tried = self._liquidator.carry_out(plans, self._options.close_budget_ms / 1e3)
        delays = []
        for plan in tried:
            if plan.was_not_critical and not self._liquidator.has_begun(plan.row):
                self._ladders.rows["is_latched"][plan.row] = 0
            if plan.has_taken_any and plan.row in self._breached:
                delays.append(tick - self._breached.pop(plan.row))
        changed = [plan for plan in tried if plan.changes]
        if changed:
            self._trail.append([_outcome(plan, now_ms) for plan in changed])
            log.warning("liquidated", accounts=len(changed), planned=len(plans))
        return tried, delays

    def _is_news(self, plan: Plan) -> bool:
        """Whether the trail has not just been told the same, of an account that cannot be closed for a while."""
        steps, now_s = tuple(step.order_id for step in plan.steps), time.monotonic()
        said, when_s = self._said.get(plan.row, ((), 0.0))
        if said == steps and now_s - when_s < _SAID_AGAIN_S:
            return False
        self._said[plan.row] = (steps, now_s)
        return True

    def _intent(self, evidence: Evidence, plan: Plan, now_ms: int) -> Entry:
        said = {
            "figures": evidence.figures(plan.row),
            "quotes": evidence.quotes(plan.row),
            "plan": [_planned(step.order_id, step.lots, is_cancel=step.is_cancel) for step in plan.steps],
        }
        return Entry(
            AuditKind.LIQUIDATION, str(plan.account), plan.event_id, "level_at_or_below_critical", said, now_ms
        )

    def _begin_cascades(self, evidence: Evidence, plans: Sequence[Plan]) -> None:
        """Begin the cascade of every critical master, once for each time it became so, before the master is closed.

        It rests on a second look: what has been closed for followers cannot be opened again for them.
        """
        masters = [
            plan for plan in plans if plan.account.type is AccountType.MASTER and plan.event_id not in self._cascaded
        ]
        for plan in self._liquidator.confirmed(masters) if masters else ():
            said = {
                "figures": evidence.figures(plan.row),
                "quotes": evidence.quotes(plan.row),
            }
            self._owed[plan.event_id] = (plan.account, said)
        for event_id, (master, said) in list(self._owed.items()):
            code = self._cascader.begin(master, event_id, said)
            if code == "running" and event_id not in self._cascader.running_ids:
                continue  # another event's; this one's followers are looked at when that is done
            log.warning("cascade", master=master.id, cascade=event_id, code=code)
            del self._owed[event_id]
            self._cascaded.add(event_id)
            crash.reach("cutoff.cascaded")


def _planned(order_id: str, lots: object, *, is_cancel: bool) -> dict[str, object]:
    return {"order_id": order_id, "lots": None if lots is None else str(lots), "is_cancel": is_cancel}


def _outcome(plan: Plan, now_ms: int) -> Entry:
    return Entry(AuditKind.LIQUIDATION, str(plan.account), plan.event_id, "done", {"results": plan.results()}, now_ms)
