"""What autocutoff tells the trail and the log of closes: what was known and planned, and what came of it."""

import time
from collections.abc import Sequence

import structlog

from copyrisk.audit import AuditKind, Entry
from copyrisk.evidence import Evidence
from copyrisk.plans import Plan
from copyrisk.store.trail import Trail

log = structlog.get_logger(__name__)

_SAID_AGAIN_S = 10.0
_LOGGED_AT_ONCE = 10


class Chronicle:
    """Tells of plans, each once and not in every tick in which it cannot be carried out."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail
        self._said: dict[int, tuple[tuple[str, ...], float]] = {}  # by account row

    def forget(self, row: int) -> None:
        """A breach is over: whatever is planned next is news."""
        self._said.pop(row, None)

    def before(self, evidence: Evidence, plans: Sequence[Plan], kind: AuditKind, reason: str, now_ms: int) -> None:
        """Write down what is known and planned.

        Raises
        ------
        StoreError, StoreUnavailable
            Nothing of it may be done.
        """
        entries = []
        for plan in plans:
            if self._is_news(plan):
                said = {
                    "figures": evidence.figures(plan.row),
                    "quotes": evidence.quotes(plan.row),
                    "plan": [step.words() for step in plan.steps],
                }
                entries.append(Entry(kind, str(plan.account), plan.event_id, reason, said, now_ms))
        if entries:
            self._trail.append(entries)

    def after(self, evidence: Evidence, plans: Sequence[Plan], kind: AuditKind) -> None:
        """Write down what was changed; raises as `before`, when it is done."""
        changed = [plan for plan in plans if plan.changes]
        if not changed:
            return
        now_ms = time.time_ns() // 1_000_000
        entries = [
            Entry(kind, str(plan.account), plan.event_id, "done", {"results": plan.results()}, now_ms)
            for plan in changed
        ]
        self._trail.append(entries)
        for plan in changed[:_LOGGED_AT_ONCE]:
            level_pct = evidence.figures(plan.row)["level_pct"]
            shown = None if level_pct is None else round(level_pct, 2)
            log.warning(
                "closed", account=str(plan.account), reason=plan.reason, level_pct=shown, orders=len(plan.changes)
            )
        if len(changed) > _LOGGED_AT_ONCE:
            log.warning("accounts_closed", accounts=len(changed), shown=_LOGGED_AT_ONCE)

    def _is_news(self, plan: Plan) -> bool:
        steps, now_s = (plan.event_id, *(step.order_id for step in plan.steps)), time.monotonic()
        said, when_s = self._said.get(plan.row, ((), 0.0))
        if said == steps and now_s - when_s < _SAID_AGAIN_S:
            return False
        self._said[plan.row] = (steps, now_s)
        return True
