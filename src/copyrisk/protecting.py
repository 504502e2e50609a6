"""Negative balance protection, once a tick: who is flat and owes the broker is put back to 0.

| step | what | stored before |
|---|---|---|
| 1 | now and then: what an earlier process has left in outboxes is brought about | |
| 2 | who seems to owe, by the book, is read exactly | |
| 3 | who does is booked away, if nothing changed meanwhile | the trail, then whose outbox is to be looked at |
| 4 | ledger, event and history hear of it | the account's outbox |

Whoever dies in between: what was not booked is found again by its balance, what was is found by step 1.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from copyrisk import crash
from copyrisk._core import LadderState, RowCode
from copyrisk.audit import AuditKind, Entry
from copyrisk.book import Book, RowNumbers
from copyrisk.decimals import charge_text
from copyrisk.errors import StoreError
from copyrisk.identifiers import Account
from copyrisk.layout import Rows
from copyrisk.store import protection
from copyrisk.store.effects import Effects, Waiting
from copyrisk.store.functions import KEY_UNUSABLE
from copyrisk.store.lease import Lease
from copyrisk.store.pipe import Pipe
from copyrisk.store.protection import Protection, Unchanged

log = structlog.get_logger(__name__)

_AT_ONCE = 100  # accounts a tick
_RETRY_S = 1.0  # of an account that could not be put back, and of what an earlier process has left


@dataclass(frozen=True, slots=True)
class _Wait:
    """An account (by the birth of its row) that could not be put back: why, and when to try again."""

    born: int
    code: str
    due_s: float


class Protector:
    """Books negative balances of flat accounts away; for who holds the lease.

    Parameters
    ----------
    record : callable
        Writes entries into the audit trail; called before anything is done.
    """

    def __init__(
        self,
        pipe: Pipe,
        book: Book,
        lease: Lease,
        effects: Effects,
        *,
        record: Callable[[Sequence[Entry]], object],
    ) -> None:
        self._pipe, self._book, self._lease, self._effects, self._record = pipe, book, lease, effects, record
        self._waits: dict[int, _Wait] = {}
        self._swept_s = self._resume_s = -math.inf

    def step(self, figures: Rows, now_ms: int) -> int:
        """Put accounts back to 0, a bounded number; the others are for the next ticks.

        Parameters
        ----------
        figures : (a,) Figures
            As of the book as it is now.

        Returns
        -------
        int
            How many were put back.

        Raises
        ------
        StoreError, StoreUnavailable
            Any of them may be put back or not; the next step finds out. `lease_lost`: another process may act by now.
        """
        if time.monotonic() < self._resume_s:
            return 0
        try:
            self._sweep()
            rows = self._due(figures)
            return self._protect(self._read(rows), now_ms) if rows else 0
        except StoreError as failure:
            if failure.code != KEY_UNUSABLE:
                raise
            log.critical("protection_impossible", reason=str(failure))  # which is no reason to stop all else
            self._resume_s = time.monotonic() + _RETRY_S
            return 0

    # ---- who

    def _due(self, figures: Rows) -> list[int]:
        """Rows of accounts that seem to be flat and to owe; first those that were never tried."""
        found = candidates(self._book, figures).tolist()
        born, now_s = self._book.born, time.monotonic()
        self._waits = {
            row: wait for row in found if (wait := self._waits.get(row)) is not None and wait.born == born[row]
        }
        due = {row: self._waits[row].due_s if row in self._waits else -math.inf for row in found}
        return sorted((row for row in found if due[row] <= now_s), key=due.__getitem__)[:_AT_ONCE]

    def _read(self, rows: Sequence[int]) -> dict[int, Protection]:
        """By row, those that are flat and owe for certain."""
        found: dict[int, Protection] = {}
        accounts = [self._book.account_at(row) for row in rows]
        uncleared = []
        for row, standing in zip(rows, protection.read_standings(self._pipe, accounts), strict=True):
            code = protection.obstacle(standing)
            if standing is not None and not code:
                found[row] = protection.protection_of(standing)
                continue
            self._wait(row, code)
            if standing is not None and code == "effects_wait":
                uncleared.append(standing.read.account)
        if uncleared:  # an earlier change died before this was brought about
            self._effects.deliver(self._effects.read_outboxes(uncleared))
        return found

    def _wait(self, row: int, code: str) -> None:
        before = self._waits.get(row)
        if before is None or before.code != code:
            log.warning("protection_waits", account=str(self._book.account_at(row)), code=code)
        self._waits[row] = _Wait(int(self._book.born[row]), code, time.monotonic() + _RETRY_S)

    # ---- what

    def _protect(self, wanted: dict[int, Protection], now_ms: int) -> int:
        chosen = list(wanted.values())
        if not chosen:
            return 0
        self._record([_entry(one, "balance_below_zero", now_ms) for one in chosen])
        protection.remember(self._pipe, [one.account for one in chosen])
        crash.reach("protection.noted")
        answers = protection.protect(self._pipe, chosen, self._lease.keep())
        crash.reach("protection.changed")
        follows = [answer for answer in answers if isinstance(answer, Waiting)]
        undone = self._bring_about(follows)
        crash.reach("protection.delivered")
        protection.forget(self._pipe, [one.account for one in chosen if one.account not in undone])
        codes = []
        for row, answer in zip(wanted, answers, strict=True):
            codes.append(answer.code if isinstance(answer, Unchanged) else "done")
            if isinstance(answer, Unchanged):
                self._wait(row, answer.code)
                if answer.token:
                    self._lease.rise_above(answer.token)
        self._record([_entry(one, code, now_ms) for one, code in zip(chosen, codes, strict=True)])
        if follows:
            log.warning("negative_balances_protected", accounts=len(follows))
        return len(follows)

    def _sweep(self) -> None:
        """Bring about what is left of balances that were booked away, by whomever, once in a while."""
        now_s = time.monotonic()
        if now_s - self._swept_s < _RETRY_S:
            return
        accounts = protection.remembered(self._pipe, _AT_ONCE)
        undone = self._bring_about(self._effects.read_outboxes(accounts)) if accounts else set()
        protection.forget(self._pipe, [account for account in accounts if account not in undone])
        self._swept_s = now_s

    def _bring_about(self, follows: Sequence[Waiting]) -> set[Account]:
        """Returns the accounts of which something could not be brought about; it stays in their outboxes."""
        return {account for account, _ in self._effects.deliver(follows)}


def candidates(book: Book, figures: Rows) -> RowNumbers:
    """(n,) rows of accounts that, as far as the book knows, have no orders and less than nothing."""
    known = min(len(figures), len(book.accounts))
    rows = np.flatnonzero(book.accounts["balance"][:known] < 0).astype(np.int32)
    is_flat = (figures["state"][rows] == LadderState.NO_MARGIN) & (figures["code"][rows] == RowCode.OK)
    rows = rows[is_flat & (book.born[rows] != 0)]
    found: RowNumbers = rows[book.order_counts(rows) == 0]
    return found


def _entry(one: Protection, reason: str, now_ms: int) -> Entry:
    said = {
        "balance_usd": one.standing.read.config["wallet_balance"],
        "amount_usd": charge_text(one.amount_usd),
        "version": one.version,
    }
    return Entry(AuditKind.PROTECTION, str(one.account), one.entry_id, reason, said, now_ms)
