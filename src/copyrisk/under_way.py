"""Closes that are under way, orders and accounts that cannot be closed: known for a while, then asked again.

What is known here only spares questions: each step is decided on what the account says itself.
"""

import math
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk._cutoff import order_pnls
from copyrisk.book import Book, RowNumbers
from copyrisk.cover import split_lots
from copyrisk.errors import CopyriskError
from copyrisk.layout import Rows
from copyrisk.orders import State
from copyrisk.plans import Plan, Step
from copyrisk.risk import Valuer
from copyrisk.situation import Nothing, Outcome
from copyrisk.store.lease import Lease
from copyrisk.verdicts import Fenced, Job

log = structlog.get_logger(__name__)

_RETRY_S, _STUCK_S = 1.0, 5.0
_UNDER_WAY, _STUCK = 1, 2  # marks as `plan_closes` takes them
_IN_FLIGHT = (State.CLOSING, State.CANCELLING)
#: Codes that say that nothing of the account can be closed now; any other is of the order alone.
_OF_ACCOUNT = (
    *("account_unreadable", "account_busy", "account_unknown", "account_missing", "wallet_balance_invalid"),
    "effects_failed",
)


class _Known(NamedTuple):
    """What is known of an order: whose row it is, its mark, how many lots are under way, and until when that holds."""

    order_id: bytes
    mark: int
    lots: float
    until_s: float


class _Wait(NamedTuple):
    """An account that could not be closed: the birth of its row, how often it was tried, and when it is next."""

    born: int
    tries: int
    due_s: float


class UnderWay:
    """What the daemon remembers of closes from tick to tick."""

    def __init__(self, book: Book, lease: Lease) -> None:
        self._book, self._lease = book, lease
        self._known: dict[int, _Known] = {}  # by order row
        self._refused: dict[int, _Wait] = {}  # by account row

    def forget(self) -> None:
        """Ask every order and account again."""
        self._known.clear()
        self._refused.clear()

    def recovered(self, row: int) -> None:
        """Forget how often an account could not be closed."""
        self._refused.pop(row, None)

    def order_rows(self) -> RowNumbers:
        """(n,) rows of orders that need not be asked now."""
        waiting = np.array(sorted(self.waiting_accounts()), np.int32)
        marked: RowNumbers = np.flatnonzero(self._marks()).astype(np.int32)
        return np.concatenate([marked, self._book.order_rows_of(waiting)])

    def waiting_accounts(self) -> set[int]:
        """Rows of accounts that could not be closed; asking them in every tick would keep the others waiting."""
        now_s = time.monotonic()
        self._refused = {row: wait for row, wait in self._refused.items() if wait.born == self._book.born[row]}
        return {row for row, wait in self._refused.items() if wait.due_s > now_s}

    def applied(self, valuer: Valuer) -> tuple[Rows, Rows, npt.NDArray[np.uint8]]:
        """Accounts and orders as if closes of some lots were done, and the marks of orders, for `plan_closes`."""
        book, marks = self._book, self._marks()
        lots = np.zeros(len(book.orders))
        for row, known in self._known.items():
            lots[row] = known.lots
        rows = np.flatnonzero((lots > 0.0) & (lots < book.orders["lots"]))
        if not len(rows):
            return book.accounts, book.orders, marks
        accounts, orders = book.accounts.copy(), book.orders.copy()
        gone, left = split_lots(orders[rows], lots[rows])
        profits = np.zeros(len(rows))
        order_pnls(np.arange(len(rows), dtype=np.int32), gone, book.market.instruments, valuer.rates, profits)
        np.add.at(accounts["balance"], gone["account"], profits)
        orders[rows], marks[rows] = left, _STUCK
        return accounts, orders, marks

    def _marks(self) -> npt.NDArray[np.uint8]:
        """(o,) uint8: 1 of orders that are being closed or taken back, 2 of those that cannot be."""
        now_s, marks = time.monotonic(), np.zeros(len(self._book.orders), np.uint8)
        self._known = {
            row: known
            for row, known in self._known.items()
            if known.until_s > now_s and self._is_still(row, known.order_id)
        }
        for row, known in self._known.items():
            marks[row] = known.mark
        return marks

    def _is_still(self, row: int, order_id: bytes) -> bool:
        """Whether a row is that of this order; it may be free by now, or another's."""
        return self._book.order_ids.is_used(row) and self._book.order_ids.text(row) == order_id

    def note(self, plan: Plan) -> None:
        """Remember what the steps of a plan have shown."""
        if plan.has_taken_any:
            self.recovered(plan.row)
        for step, job in zip(plan.steps, plan.jobs, strict=False):  # there may have been no time for all
            for order_id, lots in job.read.ending.items() if job.read else ():
                row = self._book.order_ids.row_of(order_id, plan.row)
                if row >= 0:
                    self._know(row, order_id, _UNDER_WAY, lots)
            self._note_verdict(plan, step, job)

    def _note_verdict(self, plan: Plan, step: Step, job: Job) -> None:
        verdict, row, order_id = job.verdict, step.order_row, step.order_id.encode()
        if isinstance(verdict, Outcome):
            if verdict.order.state in _IN_FLIGHT:
                asked = verdict.order.request_of("close")
                self._know(row, order_id, _UNDER_WAY, float(asked.asked) if asked else math.inf)
        elif isinstance(verdict, Nothing):
            if verdict.code == "in_flight" and row not in self._known:  # it is still being opened
                self._know(row, order_id, _STUCK, 0.0, _RETRY_S)
        elif isinstance(verdict, Fenced):
            log.critical("close_fenced", account=str(plan.account), token=verdict.token)
            self._lease.rise_above(verdict.token)
        elif isinstance(verdict, CopyriskError):
            log.error("close_waits", account=str(plan.account), order=job.order_id, code=verdict.code)
            if verdict.code in _OF_ACCOUNT:
                self._put_off(plan.row)
                self._lease.doubt()
            else:
                self._know(row, order_id, _STUCK, 0.0, _STUCK_S)

    def _know(self, order_row: int, order_id: bytes, mark: int, lots: float, for_s: float = _RETRY_S) -> None:
        self._known[order_row] = _Known(order_id, mark, lots, time.monotonic() + for_s)

    def _put_off(self, row: int) -> None:
        """Ask an account in the next tick, then more and more seldom."""
        before = self._refused.get(row)
        tries = before.tries + 1 if before else 1
        wait_s = 0.0 if tries == 1 else min(_RETRY_S, 0.05 * 2**tries)
        self._refused[row] = _Wait(int(self._book.born[row]), tries, time.monotonic() + wait_s)
