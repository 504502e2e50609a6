"""The tick loop: read, value, act on what is critical, write, wait.

Ticks start on a fixed grid. One that ends late makes the loop skip the grid points it missed: they are
counted, never made up for, and no two ticks overlap. A tick whose read or write fails is void: it is
reported with its reason, nothing is decided on it, and the next one starts from a fresh connection.
"""

import gc
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import redis
import structlog

from copyrisk._core import LadderState, RowCode
from copyrisk.autocutoff import Autocutoff
from copyrisk.book import Book, RowNumbers
from copyrisk.census import Census
from copyrisk.cutoff_report import CutoffReport
from copyrisk.errors import StoreError, StoreUnavailable, is_known
from copyrisk.hours import MarketHours
from copyrisk.layout import Rows
from copyrisk.risk import Valuer, are_known, count_states, count_unknown, reasons
from copyrisk.store.link import Link
from copyrisk.store.mirror import Mirror
from copyrisk.store.portfolios import PortfolioWriter
from copyrisk.terms import AccountType

log = structlog.get_logger(__name__)

_LOGGED_ACCOUNTS_A_TICK = 20
_FAULT = "internal_error"
_TOLD_EVERY_TICKS = 50
_RESTLESS_TICKS = 2
_REREAD_WITHIN_S = 59.0  # each account, whatever was reported: within a minute, a late tick included


@dataclass(frozen=True, slots=True)
class TickReport:
    """What one tick did.

    `skipped` is the reason why it was void, `None` for a full one; `refused` counts portfolios that the server did not
    take, `refused_keys` keys that look like an account's but are not.
    """

    number: int
    ts_ms: int
    period_ms: int
    read_ms: float = 0.0
    value_ms: float = 0.0
    write_ms: float = 0.0
    late_ticks: int = 0
    accounts: int = 0
    orders: int = 0
    quotes: int = 0
    valued: int = 0
    written: int = 0
    refused: int = 0
    states: dict[LadderState, int] = field(default_factory=dict)
    states_by_type: dict[tuple[AccountType, LadderState], int] = field(default_factory=dict)
    unknown_by_reason: dict[str, int] = field(default_factory=dict)
    refused_keys: int = 0
    repaired: int = 0
    inconsistent: int = 0
    skipped: str | None = None
    cutoff: CutoffReport | None = None

    @property
    def duration_ms(self) -> float:
        """From the start of the tick to its last reply."""
        acted_ms = self.cutoff.took_ms if self.cutoff else 0.0
        return self.read_ms + self.value_ms + acted_ms + self.write_ms


class Engine:
    """One daemon's book and the loop that keeps it.

    Attributes
    ----------
    book : Book
    figures : (a,) Figures
        Of the last full tick.
    """

    def __init__(
        self,
        client: redis.Redis,
        book: Book,
        hours: MarketHours,
        period_ms: int,
        *,
        valuer: Valuer | None = None,
        autocutoff: Autocutoff | None = None,
    ) -> None:
        self.book, self._valuer, self._autocutoff = book, valuer or Valuer(book), autocutoff
        self._hours, self._period_ms = hours, period_ms
        link = Link(client, book.market.names.index)
        self._mirror, self._writer = Mirror(link, book), PortfolioWriter(link, book)
        self._codes: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._states, self._unknown = count_states(book, self._valuer.figures), dict[str, int]()
        self._census = Census(book)
        self._by_type = self._census.count(self._valuer.figures)
        self._restless: RowNumbers = np.zeros(0, np.int32)  # by account: for how many ticks
        self._hindered = ""  # by what autocutoff failed last
        self._unjudged: RowNumbers = np.zeros(0, np.int32)  # valued, and not yet looked at by autocutoff
        self._read_s = -math.inf
        self._number = 0
        self._skipped_code = ""
        self._late_ticks = 0
        self._took_ms: float | None = None  # the last full tick
        self._inconsistent = 0

    @property
    def figures(self) -> Rows:
        """The figures of the last full tick."""
        return self._valuer.figures

    def close(self) -> None:
        """Drop the connection, and let another process act; a further tick would read everything anew."""
        if self._autocutoff is not None:
            self._autocutoff.give_up()
        self._mirror.close()

    def run(self, stop: threading.Event, *, ticks: int | None = None) -> Iterator[TickReport]:
        """Tick on the grid until `stop` is set or so many ticks are done, yielding a report after each.

        The first tick reads everything and may be long; the grid starts at its end.
        """
        period_s = self._period_ms / 1000.0
        due_s, was_late = 0.0, False
        while not stop.is_set():
            report = self.tick()
            yield report
            if ticks is not None and self._number >= ticks:
                return
            if self._number == 1:
                # What the first tick built lives as long as the process; walking it again and again, the garbage
                # collector would stop a tick for longer than the tick takes.
                gc.collect()
                gc.freeze()
            now_s = time.monotonic()
            due_s = due_s or now_s
            missed = int((now_s - due_s) / period_s)
            self._late_ticks += missed
            if missed and not was_late:
                log.warning("tick_late", tick=report.number, took_ms=round(report.duration_ms), skipped_ticks=missed)
            was_late = missed > 0
            due_s += (missed + 1) * period_s
            stop.wait(max(0.0, due_s - time.monotonic()))

    def tick(self) -> TickReport:
        """Do one full tick over everything; a failing store makes it void, not the daemon."""
        self._number += 1
        started = time.perf_counter()
        try:
            report = self._full_tick(started)
        except StoreError as failure:
            if failure.code != self._skipped_code or self._number % _TOLD_EVERY_TICKS == 0:
                log.error("tick_skipped", tick=self._number, code=failure.code, reason=str(failure))
            self._skipped_code = failure.code
            return TickReport(
                self._number,
                _now_ms(),
                self._period_ms,
                read_ms=(time.perf_counter() - started) * 1e3,
                late_ticks=self._late_ticks,
                skipped=f"{failure.code}: {failure}",
            )
        if self._skipped_code:
            log.info("ticks_go_on", tick=self._number)
            self._skipped_code = ""
        self._took_ms = report.duration_ms
        return report

    def _full_tick(self, started: float) -> TickReport:
        share = min(1.0, (started - self._read_s) / _REREAD_WITHIN_S)
        self._mirror.read(share)
        self._read_s = started
        read = time.perf_counter()
        now_ms = _now_ms()  # after the read: a quote's age counts to the moment it is valued at
        rows = self._valuer.value(now_ms, self._hours.open_by_type(now_ms))
        wrong = self._verify(self._mirror.sample)
        restless, lasting = self._mirror.restless, self._restless_for_long()
        self._valuer.withhold(np.setdiff1d(restless, lasting).astype(np.int32), RowCode.ACCOUNT_CHANGING)
        doubtful = np.concatenate([wrong, restless])
        rows = np.union1d(rows, doubtful) if len(doubtful) else rows
        valued = time.perf_counter()
        cutoff = self._act(rows, now_ms)
        acted = time.perf_counter()
        self._valuer.withhold(lasting, RowCode.ACCOUNT_CHANGING)
        figures = self._valuer.figures
        if len(rows):  # else everything stands as it was counted before
            self._log_unknown(figures)
            self._states, self._unknown = count_states(self.book, figures), count_unknown(self.book, figures)
            self._by_type = self._census.count(figures)
        accounts, unknown = len(self.book.account_ids), self._states[LadderState.STATE_UNKNOWN]
        record: dict[str, int | str] = {"tick": self._number, "accounts": accounts, "unknown": unknown}
        record |= {"period_ms": self._period_ms, "late_ticks": self._late_ticks}
        if self._took_ms is not None:  # how long this one takes is known once the record is written
            record["duration_ms"] = f"{self._took_ms:.1f}"
        if self._mirror.read_everything:
            self._writer.forget()  # what the portfolios said may be gone with the rest
        again = np.concatenate([self._mirror.wished, self._mirror.bare])
        self._writer.write(figures, rows, again, now_ms, record)
        return TickReport(
            self._number,
            now_ms,
            self._period_ms,
            read_ms=(read - started) * 1e3,
            value_ms=(valued - read) * 1e3,
            write_ms=(time.perf_counter() - acted) * 1e3,
            late_ticks=self._late_ticks,
            accounts=accounts,
            orders=len(self.book.order_ids),
            quotes=len(self.book.market.symbols),
            valued=len(rows),
            written=self._writer.written,
            refused=self._writer.refused,
            states=self._states,
            states_by_type=self._by_type,
            unknown_by_reason=self._unknown,
            refused_keys=len(self._mirror.finder.refused_keys),
            repaired=self._mirror.repaired,
            inconsistent=self._inconsistent,
            cutoff=cutoff,
        )

    def _restless_for_long(self) -> RowNumbers:
        """Accounts that have not come to rest for some ticks.

        What is known of them may be half a change, and is not published. But nobody may escape by changing all the
        time: autocutoff looks at them, and closes only what it reads of them in one call.
        """
        ticks = np.zeros(len(self.book.accounts), np.int32)
        ticks[: len(self._restless)] = self._restless
        self._restless = np.zeros(len(ticks), np.int32)
        self._restless[self._mirror.restless] = ticks[self._mirror.restless] + 1
        return np.flatnonzero(self._restless > _RESTLESS_TICKS).astype(np.int32)

    def _act(self, rows: RowNumbers, now_ms: int) -> CutoffReport | None:
        """Close first of all writes; if that fails, portfolios are written all the same, and it is tried again."""
        if self._autocutoff is None:
            return None
        self._unjudged = np.union1d(self._unjudged, rows).astype(np.int32)
        try:
            report = self._autocutoff.step(self._unjudged, self._number, now_ms)
        except StoreError as failure:
            if failure.code != self._hindered:  # else every tick would say it
                tell = log.error if isinstance(failure, StoreUnavailable) else log.critical  # the server will be back
                tell("cutoff_hindered", tick=self._number, code=failure.code, reason=str(failure))
            self._hindered = failure.code
            return CutoffReport(failure=failure.code)
        except Exception as fault:  # a fault of ours must not keep every portfolio from being written
            if self._hindered != _FAULT:
                log.critical("cutoff_hindered", tick=self._number, code=_FAULT, reason=repr(fault), exc_info=True)
            self._hindered = _FAULT
            return CutoffReport(failure=_FAULT)
        if self._hindered:
            log.warning("cutoff_goes_on", tick=self._number)
        self._unjudged, self._hindered = np.zeros(0, np.int32), ""
        return report

    def _verify(self, rows: RowNumbers) -> RowNumbers:
        """Hold some accounts' figures against a valuation from scratch; returns those that differ."""
        wrong = self._valuer.verify(rows)
        self._inconsistent += len(wrong)
        if len(wrong):
            first = str(self.book.account_at(int(wrong[0])))
            log.critical("figures_inconsistent", accounts=len(wrong), first=first, ever=self._inconsistent)
        return wrong

    def _log_unknown(self, figures: Rows) -> None:
        """Log an account once when it becomes unknown, or unknown for another reason, and once when it is known."""
        codes = figures["code"].copy()
        before = np.zeros(len(codes), np.uint8)
        before[: len(self._codes)] = self._codes
        self._codes = codes
        news = (codes != before) & ~(are_known(codes) & (are_known(before) | (before == RowCode.UNKNOWN)))
        rows = np.flatnonzero(news & (self.book.born != 0)).tolist()
        for row in rows[:_LOGGED_ACCOUNTS_A_TICK]:
            account = self.book.account_at(row)
            if is_known(codes[row]):
                log.info("account_known_again", account=str(account))
            else:
                log.warning("account_unknown", account=str(account), reasons=reasons(self.book, figures, row))
        if len(rows) > _LOGGED_ACCOUNTS_A_TICK:
            log.warning("accounts_unknown_or_known_again", count=len(rows), shown=_LOGGED_ACCOUNTS_A_TICK)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
