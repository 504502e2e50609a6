"""Limits of followers that need a memory: losses of a day, drawdown, stop loss and take profit of the whole account.

Losses are told by the trading result: all that copyrisk ever booked to an account, and what is open. A deposit or a
withdrawal does not change it. What is not known is no loss: nothing is done on it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk import crash, keys
from copyrisk._core import RowCode
from copyrisk.book import RowNumbers
from copyrisk.copying import CopySettings
from copyrisk.decimals import decimal_text, parse_decimal
from copyrisk.following import CopyStatus
from copyrisk.identifiers import Account
from copyrisk.observer import Observer
from copyrisk.store.functions import text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.relation_steps import Backing, status_request
from copyrisk.store.relations import pause

log = structlog.get_logger(__name__)

DAILY_LOSS, DRAWDOWN = "daily_loss_reached", "drawdown_reached"
STOP_LOSS, TAKE_PROFIT = "account_stop_loss", "account_take_profit"
#: Reasons that pause a follower until somebody lets it copy again; the other one ends with the day.
_PAUSING = (DRAWDOWN, STOP_LOSS, TAKE_PROFIT)
_FIELDS = ("day", "day_result_usd", "peak_result_usd", "reached")


class Closer(Protocol):
    """Who closes all copies of followers."""

    def close_all(self, followers: Sequence[Account]) -> None:
        """Have every copy of these closed, sooner or later."""


@dataclass(slots=True)
class _Memory:
    """What a follower's result is measured against.

    Attributes
    ----------
    day : str
        UTC date at whose beginning (or when it was first seen) the result was `day_result`.
    peak_result : Decimal
        The highest since copying began, or began again.
    reached : str
        The limit that was reached and still holds.
    """

    day: str
    day_result: Decimal
    peak_result: Decimal
    reached: str = ""


class Limits:
    """Whose limits are reached.

    Parameters
    ----------
    check_ms : int
        How often limits are checked.
    """

    def __init__(self, pipe: Pipe, observer: Observer, *, check_ms: int, database: Backing | None = None) -> None:
        self._pipe, self._observer, self._database = pipe, observer, database
        self._check_s = check_ms / 1e3
        self._checked_s = 0.0
        self._memory: dict[str, _Memory] = {}
        self._reached: dict[int, bytes] = {}

    def refusals(self, rows: RowNumbers) -> npt.NDArray[np.bytes_]:
        """(n,) reasons why followers get no new copies, as of the last check; empty for those that do."""
        reached = self._reached
        found = [reached.get(row, b"") for row in rows.tolist()] if reached else []
        return np.array(found, "S40") if found else np.zeros(len(rows), "S40")

    def check(self, closer: Closer) -> None:
        """Check everybody who has a limit, on what was last seen, if it is time.

        Raises
        ------
        StoreError, StoreUnavailable
            Some may have been acted on; the next check goes on.
        """
        if time.monotonic() - self._checked_s < self._check_s:
            return
        self._checked_s = time.monotonic()
        rows, settings = self._limited()
        reached, changed = self._judge(rows, settings)
        self._reached = {row: reason.encode() for row, reason in reached.items()}
        self._act(reached, dict(zip(rows.tolist(), settings, strict=True)), closer)
        # Last: who is paused and remembers no reason is judged again; who remembers one and copies begins anew.
        self._remember(changed)

    def _limited(self) -> tuple[RowNumbers, list[CopySettings]]:
        """Followers that have a limit and whose equity is known now, on quotes of open markets."""
        observer = self._observer
        rows = observer.book.account_rows()
        every = observer.followers.settings
        has_limit = np.array([_has_limit(settings) for settings in every], np.bool_)
        numbers = observer.followers.numbers_of(rows)
        codes = observer.figures["code"][rows] if len(observer.figures) else np.zeros(len(rows), np.uint8)
        chosen = has_limit[numbers] & (codes == RowCode.OK)
        return rows[chosen], [every[number] for number in numbers[chosen].tolist()]

    def _judge(self, rows: RowNumbers, settings: Sequence[CopySettings]) -> tuple[dict[int, str], list[Account]]:
        """The limits that are reached, by account row; and whose memory is another now."""
        observer = self._observer
        found: dict[int, str] = {}
        accounts = [observer.book.account_at(row) for row in rows.tolist()]
        self._recall(accounts)
        booked = observer.followers.ledgers(rows).booked_usd
        figures = observer.figures[rows]
        investments = observer.followers.investments_of(rows)
        today = datetime.now(UTC).date().isoformat()
        changed: list[Account] = []
        for i, account in enumerate(accounts):
            if np.isnan(booked[i]):
                continue
            equity = Decimal(repr(round(float(figures["equity"][i]), 2)))
            result = Decimal(repr(round(float(booked[i] + figures["open_pnl"][i]), 2)))
            investment = None if np.isnan(investments[i]) else Decimal(repr(float(investments[i])))
            before = self._memory.get(str(account))
            memory = _updated(before, today, result, settings[i])
            memory.reached = _reached(memory, settings[i], equity, result, investment)
            if memory.reached:
                found[int(rows[i])] = memory.reached
            if memory != before:
                self._memory[str(account)] = memory
                changed.append(account)
        return found, changed

    def _recall(self, accounts: Sequence[Account]) -> None:
        new = [account for account in accounts if str(account) not in self._memory]
        replies = self._pipe.exchange([pack("HMGET", keys.copying(account), *_FIELDS) for account in new])
        for account, reply in zip(new, replies, strict=True):
            if isinstance(reply, Exception):
                log.error("limits_unreadable", account=str(account), reason=str(reply))
                continue
            day, *amounts, reached = (text(value) for value in reply)
            results = [parse_decimal(amount) for amount in amounts]
            if day and results[0] is not None and results[1] is not None:
                self._memory[str(account)] = _Memory(day, results[0], results[1], reached)

    def _remember(self, accounts: Sequence[Account]) -> None:
        requests = []
        for account in accounts:
            memory = self._memory[str(account)]
            said = (memory.day, decimal_text(memory.day_result), decimal_text(memory.peak_result), memory.reached)
            words = [word for pair in zip(_FIELDS, said, strict=True) for word in pair]
            requests.append(pack("HSET", keys.copying(account), *words))
        for reply in self._pipe.exchange(requests):
            if isinstance(reply, Exception):
                log.error("limits_not_remembered", reason=str(reply))

    def _act(self, reached: Mapping[int, str], settings: Mapping[int, CopySettings], closer: Closer) -> None:
        """Pause who reached a limit that pauses, and close the copies of whose account it ends."""
        book = self._observer.book
        ended = [row for row, reason in reached.items() if reason in (STOP_LOSS, TAKE_PROFIT)]
        active = [row for row, reason in reached.items() if reason in _PAUSING and not settings[row].refusal]
        for row in active:
            log.warning("follower_limit_reached", follower=str(book.account_at(row)), limit=reached[row])
        self._pause([book.account_at(row) for row in active])
        crash.reach("limits.paused")
        counts = book.order_counts(np.array(ended, np.int32)).tolist() if ended else []
        holding = [book.account_at(row) for row, count in zip(ended, counts, strict=True) if count]
        if holding:
            closer.close_all(holding)

    def _pause(self, accounts: Sequence[Account]) -> None:
        if not accounts:
            return
        outcomes = pause(self._pipe, [account.id for account in accounts], database=self._database)
        # Who follows nobody, as far as the keys say, must not copy either.
        left = [one.follower for one in outcomes if not one.is_done and one.code != "account_missing"]
        self._pipe.ask(*[status_request(follower, CopyStatus.PAUSED) for follower in left])


def _has_limit(settings: CopySettings) -> bool:
    limits: tuple[Any, ...] = (
        settings.max_daily_loss_usd,
        settings.drawdown_pct,
        settings.stop_loss,
        settings.take_profit,
    )
    return any(limit is not None for limit in limits)


def _updated(before: _Memory | None, today: str, result: Decimal, settings: CopySettings) -> _Memory:
    """What is remembered from now on; who copies again after a limit paused it begins anew."""
    if before is None:
        return _Memory(today, result, result)
    begins_anew = before.reached in _PAUSING and not settings.refusal
    peak = result if begins_anew else max(before.peak_result, result)
    is_new_day = before.day != today
    return _Memory(today, result if is_new_day else before.day_result, peak)


def _reached(
    memory: _Memory, settings: CopySettings, equity: Decimal, result: Decimal, investment: Decimal | None
) -> str:
    """The limit that is reached now; empty for none."""
    for limit, is_loss, reason in ((settings.stop_loss, True, STOP_LOSS), (settings.take_profit, False, TAKE_PROFIT)):
        amount = None if limit is None or investment is None else limit.usd(investment)
        if amount is not None and investment is not None:
            moved = investment - equity if is_loss else equity - investment
            if moved >= amount:
                return reason
    lost = memory.peak_result - result
    at_peak = equity + lost
    if settings.drawdown_pct is not None and at_peak > 0 and lost * 100 >= settings.drawdown_pct * at_peak:
        return DRAWDOWN
    if settings.max_daily_loss_usd is not None and memory.day_result - result >= settings.max_daily_loss_usd:
        return DAILY_LOSS
    return ""
