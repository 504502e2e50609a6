"""Liquidation: from critical accounts to stored closes, planned for all of them at once and anew in every tick.

The plan is made on the tick's figures. Each step of it is decided once more on what the account and its quotes are when
it is taken, and changes the account only if nothing else changed it meanwhile. So a plan that is out of date closes
nothing, and what it leaves undone is planned again in the next tick.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk import crash, layout
from copyrisk._cutoff import StopOut, plan_closes
from copyrisk.book import Book, RowNumbers
from copyrisk.dispatch import Dispatcher
from copyrisk.errors import CopyriskError
from copyrisk.identifiers import Account, check_order_id
from copyrisk.layout import Rows
from copyrisk.orders import State
from copyrisk.plans import Plan, Step, is_under_way
from copyrisk.risk import Valuer
from copyrisk.situation import Nothing, Outcome
from copyrisk.store.effects import Waiting
from copyrisk.store.functions import text
from copyrisk.store.lease import Lease
from copyrisk.verdicts import Fenced

log = structlog.get_logger(__name__)

_AT_ONCE = 250  # accounts
_STEPS_A_TICK = 20  # of one account, so that one with a thousand orders does not keep the others waiting
_RETRY_S = 1.0
_STUCK_S = 5.0
_UNDER_WAY, _STUCK = 1, 2
#: Codes that say that nothing of the account can be closed now; any other is of the order alone.
_OF_ACCOUNT = (
    *("account_unreadable", "account_busy", "account_unknown", "account_missing", "wallet_balance_invalid"),
    "effects_failed",
)
_IN_FLIGHT = (State.CLOSING, State.CANCELLING)
_LOT_DIGITS = 8


class _Known(NamedTuple):
    """What is known of an order for a while: whose row it is, and a mark as `plan_closes` takes it."""

    order_id: bytes
    mark: int
    until_s: float


class _Wait(NamedTuple):
    """An account that could not be closed: the birth of its row, how often it was tried, and when it is next."""

    born: int
    tries: int
    due_s: float


class Liquidator:
    """Plans and closes.

    Parameters
    ----------
    mode : StopOut
    lots_of : callable
        (i,) `layout.LOT_LIMITS` of all instruments; asked only where positions are closed in part.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        lease: Lease,
        book: Book,
        *,
        mode: StopOut,
        lots_of: Callable[[], Rows],
    ) -> None:
        self._dispatcher, self._lease, self._book, self._mode, self._lots_of = dispatcher, lease, book, mode, lots_of
        self._known: dict[int, _Known] = {}  # by order row
        self._begun: dict[int, int] = {}  # by account row: its birth
        self._refused: dict[int, _Wait] = {}  # by account row

    def plan(self, valuer: Valuer, rows: RowNumbers, ladders: Rows, event_of: Callable[[Account], str]) -> list[Plan]:
        """What is to be done now about accounts that are critical, or latched, the worst first."""
        waiting = self._waiting()
        chosen = np.array([row for row in rows.tolist() if row not in waiting], np.int32)
        if not len(chosen):
            return []
        chosen = chosen[np.argsort(valuer.figures["margin_level_pct"][chosen], kind="stable")]
        book = self._book
        closes: Rows = np.zeros(int(book.order_counts(chosen).sum()), layout.CLOSE)
        counts = np.zeros(len(chosen), np.int32)
        limits: Rows = np.zeros(len(book.market.instruments), layout.LOT_LIMITS)
        if self._mode == StopOut.SMALLEST_PARTIAL:
            limits = self._lots_of()
        plan_closes(
            chosen,
            book.accounts,
            book.order_heads,
            book.orders,
            book.market.instruments,
            valuer.rates,
            self._closing(),
            limits,
            self._mode,
            book.rules.nets_orders,
            closes,
            counts,
            ladders=ladders,
        )
        found, start = [], 0
        for row, count in zip(chosen.tolist(), counts.tolist(), strict=True):
            steps = [self._step(close) for close in closes[start : start + min(count, _STEPS_A_TICK)]]
            start += count
            if steps:
                account = book.account_at(row)
                found.append(Plan(row, account, event_of(account), steps))
        return found

    def confirmed(self, plans: Sequence[Plan]) -> list[Plan]:
        """Plans whose accounts are critical on what they and their quotes are now; nothing is changed yet.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        left = list(plans)
        found = []
        for turn in range(max((len(plan.steps) for plan in plans), default=0)):  # an order may be gone by now
            looks = {plan: plan.job(plan.steps[turn], only_critical=True) for plan in left if turn < len(plan.steps)}
            self._dispatcher.look(list(looks.values()))
            found += [plan for plan, job in looks.items() if is_under_way(job)]
            left = [plan for plan in looks if plan not in found]
            if not left:
                break
        return found

    def carry_out(self, plans: Sequence[Plan], budget_s: float) -> list[Plan]:
        """Take the steps of plans, portion after portion, until the time is over; returns those that were taken.

        Raises
        ------
        StoreError, StoreUnavailable
            Some may have been taken; the next plan is made on what is there then.
        """
        until_s, later = time.monotonic() + budget_s, list[Waiting]()
        tried = self._carry_out(plans, until_s, later)
        self._dispatcher.bring_about(later)
        return tried

    def sweep(self) -> None:
        """Bring about what changes of whatever account have left behind; raises as `carry_out`."""
        self._dispatcher.sweep([self._book.account_at(row) for row in self._book.account_rows().tolist()])

    def _carry_out(self, plans: Sequence[Plan], until_s: float, later: list[Waiting]) -> list[Plan]:
        """All closes are stored before what follows from any of them in other slots is brought about."""
        for start in range(0, len(plans), _AT_ONCE):
            portion = plans[start : start + _AT_ONCE]
            self._take(portion, later)
            crash.reach("liquidation.closed")
            for plan in portion:
                self._note(plan)
            if time.monotonic() > until_s:
                return list(plans[: start + len(portion)])
        return list(plans)

    def _take(self, plans: Sequence[Plan], later: list[Waiting]) -> None:
        """Take steps while the account is critical; in mode `flatten` all of them once the first was taken."""
        sure = [plan for plan in plans if not plan.only_critical]
        self._dispatch({plan: plan.steps for plan in sure}, later, only_critical=False)
        plans = [plan for plan in plans if plan.only_critical]
        if self._mode != StopOut.FLATTEN:
            self._dispatch({plan: plan.steps for plan in plans}, later, only_critical=True)
            return
        new = [plan for plan in plans if not self.has_begun(plan.row)]
        self._dispatch({plan: plan.steps[:1] for plan in new}, later, only_critical=True)
        for plan in new:
            if plan.has_taken_any:
                self.begin(plan.row)
        begun = [plan for plan in plans if self.has_begun(plan.row)]
        self._dispatch({plan: plan.steps[len(plan.jobs) :] for plan in begun}, later, only_critical=False)

    def _dispatch(self, steps: Mapping[Plan, Sequence[Step]], later: list[Waiting], *, only_critical: bool) -> None:
        made = {
            plan: [plan.job(step, only_critical=only_critical) for step in of_one] for plan, of_one in steps.items()
        }
        for plan, jobs in made.items():
            plan.jobs += jobs
        self._dispatcher.carry_out([job for jobs in made.values() for job in jobs], right=self._lease.keep, later=later)

    # ---- what is under way

    def begin(self, row: int) -> None:
        """Note that an account is being flattened: from now on whatever its level is."""
        self._begun[row] = int(self._book.born[row])

    def has_begun(self, row: int) -> bool:
        """Whether it is."""
        return self._begun.get(row) == int(self._book.born[row])

    def end(self, row: int) -> None:
        """Note that an account is not critical any more."""
        self._begun.pop(row, None)

    def under_way(self) -> RowNumbers:
        """(n,) rows of orders that are being closed, or whose accounts could not be closed a moment ago."""
        waiting = np.array(sorted(self._waiting()), np.int32)
        closing: RowNumbers = np.flatnonzero(self._closing()).astype(np.int32)
        return np.concatenate([closing, self._book.order_rows_of(waiting)])

    def whole(self, order_row: int) -> Step:
        """The step that closes an order, or takes it back.

        Raises
        ------
        InvalidId
            It cannot be asked for by its id.
        """
        return Step(order_row, check_order_id(text(self._book.order_ids.text(order_row))), None, is_cancel=False)

    def _waiting(self) -> set[int]:
        """Accounts that could not be closed a moment ago; asking them in every tick would keep the others waiting."""
        now_s = time.monotonic()
        self._refused = {row: wait for row, wait in self._refused.items() if wait.born == self._book.born[row]}
        return {row for row, wait in self._refused.items() if wait.due_s > now_s}

    def _closing(self) -> npt.NDArray[np.uint8]:
        """(o,) uint8: 1 of orders that are being closed or taken back, 2 of those that cannot be, as far as is known.

        It counts for a while only: then the order is asked again, and says itself whether it is still so.
        """
        now_s = time.monotonic()
        closing = np.zeros(len(self._book.orders), np.uint8)
        self._known = {
            row: known
            for row, known in self._known.items()
            if known.until_s > now_s and self._is_still(row, known.order_id)
        }
        for row, known in self._known.items():
            closing[row] = known.mark
        return closing

    def _is_still(self, row: int, order_id: bytes) -> bool:
        """Whether a row is that of this order; it may be free by now, or another's."""
        return self._book.order_ids.is_used(row) and self._book.order_ids.text(row) == order_id

    def _step(self, close: np.void) -> Step:
        row, is_cancel = int(close["order"]), bool(close["is_cancel"])
        lots = float(close["lots"])
        whole = is_cancel or lots >= float(self._book.orders["lots"][row])
        exact = None if whole else Decimal(f"{lots:.{_LOT_DIGITS}f}").normalize()
        return Step(row, self._book.order_ids.text(row).decode(), exact, is_cancel)

    def _note(self, plan: Plan) -> None:
        """Remember what is under way, what cannot be closed, and who could not be."""
        if plan.has_taken_any:
            self._refused.pop(plan.row, None)
        for step, job in zip(plan.steps, plan.jobs, strict=False):  # a flattening that did not begin leaves steps
            for order_id in job.read.ending if job.read else ():
                row = self._book.order_ids.row_of(order_id, plan.row)
                if row >= 0:
                    self._know(row, order_id, _UNDER_WAY, _RETRY_S)
            verdict, order_id = job.verdict, step.order_id.encode()
            if isinstance(verdict, Nothing):
                if verdict.code == "in_flight":
                    self._know(step.order_row, order_id, _UNDER_WAY, _RETRY_S)
            elif isinstance(verdict, Outcome):
                if verdict.order.state in _IN_FLIGHT:
                    self._know(step.order_row, order_id, _UNDER_WAY, _RETRY_S)
            elif isinstance(verdict, Fenced):
                log.critical("close_fenced", account=str(plan.account), token=verdict.token)
                self._lease.rise_above(verdict.token)
            elif isinstance(verdict, CopyriskError):
                log.error("close_waits", account=str(plan.account), order=job.order_id, code=verdict.code)
                if verdict.code in _OF_ACCOUNT:
                    self._put_off(plan.row)
                    self._lease.doubt()
                else:
                    self._know(step.order_row, order_id, _STUCK, _STUCK_S)

    def _know(self, order_row: int, order_id: bytes, mark: int, for_s: float) -> None:
        self._known[order_row] = _Known(order_id, mark, time.monotonic() + for_s)

    def _put_off(self, row: int) -> None:
        """Ask an account in the next tick, then more and more seldom."""
        before = self._refused.get(row)
        tries = before.tries + 1 if before else 1
        wait_s = 0.0 if tries == 1 else min(_RETRY_S, 0.05 * 2**tries)
        self._refused[row] = _Wait(int(self._book.born[row]), tries, time.monotonic() + wait_s)
