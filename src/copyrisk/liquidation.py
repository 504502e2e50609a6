"""Liquidation: from critical accounts to stored closes, planned for all of them at once and anew in every tick.

The plan is made on the tick's figures. Each step of it is decided once more on what the account and its quotes are when
it is taken, and changes the account only if nothing else changed it meanwhile. So a plan that is out of date closes
nothing, and what it leaves undone is planned again in the next tick.
"""

import time
from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np
import structlog

from copyrisk import crash, layout
from copyrisk._cutoff import StopOut, plan_closes
from copyrisk.book import Book, RowNumbers
from copyrisk.dispatch import Dispatcher
from copyrisk.identifiers import Account, check_order_id
from copyrisk.layout import Rows
from copyrisk.plans import Plan, Step, is_not_critical, is_under_way
from copyrisk.risk import Valuer
from copyrisk.store.effects import Waiting
from copyrisk.store.functions import text
from copyrisk.store.lease import Lease
from copyrisk.under_way import UnderWay

log = structlog.get_logger(__name__)

AT_ONCE = 250  # accounts
STEPS_A_TICK = 20  # of one account, so that one with a thousand orders does not keep the others waiting
_LOT_DIGITS = 8


class Liquidator:
    """Plans and closes.

    Parameters
    ----------
    mode : StopOut
    lots_of : callable
        (i,) `layout.LOT_LIMITS` of all instruments; asked only where positions are closed in part.

    Attributes
    ----------
    under_way : UnderWay
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
        self.under_way = UnderWay(book, lease)
        self._begun: dict[int, int] = {}  # by account row: its birth

    def plan(self, valuer: Valuer, rows: RowNumbers, ladders: Rows, event_of: Callable[[Account], str]) -> list[Plan]:
        """What is to be done now about accounts that are critical, or latched, the worst first."""
        waiting = self.under_way.waiting_accounts()
        chosen = np.array([row for row in rows.tolist() if row not in waiting], np.int32)
        if not len(chosen):
            return []
        chosen = chosen[np.argsort(valuer.figures["margin_level_pct"][chosen], kind="stable")]
        book = self._book
        closes: Rows = np.zeros(int(book.order_counts(chosen).sum()), layout.CLOSE)
        accounts, orders, marks = self.under_way.applied(valuer)
        counts = np.zeros(len(chosen), np.int32)
        limits: Rows = np.zeros(len(book.market.instruments), layout.LOT_LIMITS)
        if self._mode == StopOut.SMALLEST_PARTIAL:
            limits = self._lots_of()
        plan_closes(
            chosen,
            accounts,
            book.order_heads,
            orders,
            book.market.instruments,
            valuer.rates,
            marks,
            limits,
            self._mode,
            book.rules.nets_orders,
            closes,
            counts,
            ladders=ladders,
        )
        found, start = [], 0
        for row, count in zip(chosen.tolist(), counts.tolist(), strict=True):
            steps = [self._step(close) for close in _first_of(closes[start : start + count])]
            start += count
            if steps:
                account = book.account_at(row)
                found.append(Plan(row, account, event_of(account), steps))
        return found

    def confirmed(self, plans: Sequence[Plan]) -> tuple[list[Plan], list[Plan]]:
        """Plans whose accounts are critical on what they and their quotes are now, and those whose are not.

        Of others it is not known. Nothing is changed yet.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        left = list(plans)
        found: list[Plan] = []
        well: list[Plan] = []
        for turn in range(max((len(plan.steps) for plan in plans), default=0)):  # an order may be gone by now
            looks = {plan: plan.job(plan.steps[turn], only_critical=True) for plan in left if turn < len(plan.steps)}
            self._dispatcher.look(list(looks.values()))
            found += [plan for plan, job in looks.items() if is_under_way(job)]
            well += [plan for plan, job in looks.items() if is_not_critical(job)]
            left = [plan for plan in looks if plan not in found and plan not in well]
            if not left:
                break
        return found, well

    def carry_out(
        self, plans: Sequence[Plan], budget_s: float, before: Callable[[Sequence[Plan]], object]
    ) -> list[Plan]:
        """Take the steps of plans, portion after portion, until the time is over; returns those that were taken.

        Parameters
        ----------
        before : callable
            Is told of each portion before anything of it is done.

        Raises
        ------
        StoreError, StoreUnavailable
            Some may have been taken; the next plan is made on what is there then.
        """
        until_s, later = time.monotonic() + budget_s, list[Waiting]()
        tried = self._carry_out(plans, until_s, before, later)
        self._dispatcher.bring_about(later)
        return tried

    def sweep(self) -> None:
        """Bring about what changes of whatever account have left behind; raises as `carry_out`."""
        self._dispatcher.sweep([self._book.account_at(row) for row in self._book.account_rows().tolist()])

    def _carry_out(
        self,
        plans: Sequence[Plan],
        until_s: float,
        before: Callable[[Sequence[Plan]], object],
        later: list[Waiting],
    ) -> list[Plan]:
        """All closes are stored before what follows from any of them in other slots is brought about."""
        for start in range(0, len(plans), AT_ONCE):
            portion = plans[start : start + AT_ONCE]
            before(portion)
            crash.reach("cutoff.planned")
            self._take(portion, until_s, later)
            crash.reach("liquidation.closed")
            for plan in portion:
                self.under_way.note(plan)
            if time.monotonic() > until_s:
                return list(plans[: start + len(portion)])
        return list(plans)

    def _take(self, plans: Sequence[Plan], until_s: float, later: list[Waiting]) -> None:
        """Take a step of each, then the next; in mode `flatten` whatever the level is once the first was taken."""
        for turn in range(max(len(plan.steps) for plan in plans)):
            if turn and time.monotonic() > until_s:
                return
            jobs = []
            for plan in plans:
                if turn < len(plan.steps) and len(plan.jobs) == turn and not plan.was_not_critical:
                    only_critical = plan.only_critical and not self.has_begun(plan.row)
                    plan.jobs.append(plan.job(plan.steps[turn], only_critical=only_critical))
                    jobs.append(plan.jobs[-1])
            self._dispatcher.carry_out(jobs, right=self._lease.keep, later=later)
            if self._mode == StopOut.FLATTEN:
                for plan in plans:
                    if plan.only_critical and plan.has_taken_any:
                        self.begin(plan.row)

    # ---- who is being flattened

    def begin(self, row: int) -> None:
        """Note that an account is being flattened: from now on whatever its level is."""
        self._begun[row] = int(self._book.born[row])

    def forget(self) -> None:
        """Know nothing of who is being flattened, or could not be closed: another process may have acted since."""
        self._begun.clear()
        self.under_way.forget()

    def has_begun(self, row: int) -> bool:
        """Whether it is."""
        return self._begun.get(row) == int(self._book.born[row])

    def end(self, row: int) -> None:
        """Note that an account is not critical any more."""
        self._begun.pop(row, None)
        self.under_way.recovered(row)

    def whole(self, order_row: int) -> Step:
        """The step that closes an order, or takes it back.

        Raises
        ------
        InvalidId
            It cannot be asked for by its id.
        """
        return Step(order_row, check_order_id(text(self._book.order_ids.text(order_row))), None, is_cancel=False)

    def _step(self, close: np.void) -> Step:
        row, is_cancel = int(close["order"]), bool(close["is_cancel"])
        lots = float(close["lots"])
        whole = is_cancel or lots >= float(self._book.orders["lots"][row])
        exact = None if whole else Decimal(f"{lots:.{_LOT_DIGITS}f}").normalize()
        return Step(row, self._book.order_ids.text(row).decode(), exact, is_cancel)


def _first_of(closes: Rows) -> Rows:
    """Cancels come first, but a thousand of them must not keep positions from being closed."""
    if len(closes) <= STEPS_A_TICK:
        return closes
    is_cancel = closes["is_cancel"] != 0
    cancels, positions = closes[is_cancel][: STEPS_A_TICK // 2], closes[~is_cancel]
    return np.concatenate([cancels, positions[: STEPS_A_TICK - len(cancels)]])
