"""Carrying out kills with policy `close`: what is open in their scopes is closed, what waits is taken back.

It goes the way of liquidation, whatever the accounts' levels are; of a halted master also the copies of his orders, by
a cascade. What cannot be closed now is found again in a later tick, for as long as the kill stands.
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import structlog

from copyrisk.audit import AuditKind, Entry
from copyrisk.book import Book, RowNumbers
from copyrisk.cascading import NOT_YET, Cascader
from copyrisk.chronicle import Chronicle
from copyrisk.errors import InvalidId
from copyrisk.evidence import Evidence
from copyrisk.identifiers import Account
from copyrisk.kills import Kills, orders_to_close
from copyrisk.liquidation import AT_ONCE, STEPS_A_TICK, Liquidator
from copyrisk.plans import Plan, Step
from copyrisk.store.kill_switch import KillSwitch, waiting_on
from copyrisk.store.pipe import Pipe
from copyrisk.store.trail import Trail
from copyrisk.terms import AccountType

log = structlog.get_logger(__name__)

REASON = "kill"
_LOOK_S, _SELDOM_S = 5.0, 55.0  # for pending orders, whose symbols the book does not know


class Halts:
    """What the kill switch asks to be closed.

    Parameters
    ----------
    trail : Trail
        Is told before anything is done.
    """

    def __init__(
        self,
        pipe: Pipe,
        book: Book,
        liquidator: Liquidator,
        cascader: Cascader,
        *,
        trail: Trail,
    ) -> None:
        self._pipe, self._book, self._liquidator, self._cascader = pipe, book, liquidator, cascader
        self._switch, self._chronicle, self._trail = KillSwitch(pipe), Chronicle(trail), trail
        self._begun: set[str] = set()
        self._said: set[str] = set()
        self._looked_s = -math.inf

    def step(self, evidence: Evidence, budget_s: float, now_ms: int) -> list[Plan]:
        """Close some of it, for about so long; returns what was tried.

        Raises
        ------
        StoreError, StoreUnavailable
            Some may be closed; the next step finds the rest.
        """
        kills = self._switch.read()
        if not kills.closing():
            return []
        self._say(kills, now_ms)
        self._begin_cascades(kills)
        rows = np.setdiff1d(self._rows(kills), self._liquidator.under_way.order_rows()).astype(np.int32)
        plans = self._plans(rows)
        if not plans:
            return []

        def before(portion: Sequence[Plan]) -> None:
            self._chronicle.before(evidence, portion, AuditKind.KILL, "kill_switch", now_ms)

        tried = self._liquidator.carry_out(plans, budget_s, before)
        self._chronicle.after(evidence, tried, AuditKind.KILL)
        return tried

    def _say(self, kills: Kills, now_ms: int) -> None:
        """Tell the trail once of each kill that it is being carried out."""
        scopes = {str(scope) for scope in kills.closing()}
        new = sorted(scopes - self._said)
        if new:
            log.warning("kill_closing", scopes=",".join(new)[:200])
            self._trail.append([Entry(AuditKind.KILL, cause=scope, reason="closing", ts_ms=now_ms) for scope in new])
        self._said = scopes
        self._begun &= {_cascade_id(kills, master) for master in kills.masters_to_close()}

    def _begin_cascades(self, kills: Kills) -> None:
        for master in kills.masters_to_close():
            cascade_id = _cascade_id(kills, master)
            if cascade_id in self._begun:
                continue
            code = self._cascader.begin(
                Account(AccountType.MASTER, master), cascade_id, {"reason": kills.masters[master].reason}
            )
            if code in (*NOT_YET, "unknown_master") and cascade_id not in self._cascader.running_ids:
                continue  # asked again as long as the kill stands
            log.warning("cascade", master=master, cascade=cascade_id, code=code)
            self._begun.add(cascade_id)

    def _rows(self, kills: Kills) -> RowNumbers:
        rows = orders_to_close(self._book, kills)
        symbols = kills.symbols_to_close()
        if symbols and time.monotonic() - self._looked_s > _LOOK_S:
            found = waiting_on(self._pipe, self._book, symbols)
            # No new ones come: once there are none, they are looked for more seldom.
            self._looked_s = time.monotonic() + (0.0 if len(found) else _SELDOM_S)
            rows = np.union1d(rows, found).astype(np.int32)
        return rows

    def _plans(self, rows: RowNumbers) -> list[Plan]:
        steps: dict[int, list[Step]] = defaultdict(list)
        for order_row in rows.tolist():
            owner = int(self._book.orders["account"][order_row])
            if (owner in steps or len(steps) < AT_ONCE) and len(steps[owner]) < STEPS_A_TICK:
                try:
                    steps[owner].append(self._liquidator.whole(order_row))
                except InvalidId as fault:
                    log.error("order_not_closed", code=fault.code, reason=str(fault))
        return [
            Plan(row, self._book.account_at(row), REASON, of_one, reason=REASON, only_critical=False)
            for row, of_one in steps.items()
            if of_one
        ]


def _cascade_id(kills: Kills, master: str) -> str:
    return f"kill-{master}-{kills.masters[master].ts_ms}"
