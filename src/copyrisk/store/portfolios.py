"""Writes the figures back: portfolios that say something new, a notice for each, and the tick's own record.

Only absolute values are written, so that repeating a write whose outcome is unknown is harmless. Of an unknown
account only its status goes out; its figures stay as last known, and `valued_ts` says from when.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk import fields, keys, layout
from copyrisk._pack import PortfolioPacker
from copyrisk._wire import READ_COUNT, REFUSED_REPLY
from copyrisk.book import Book, RowNumbers
from copyrisk.errors import is_known
from copyrisk.identifiers import Account
from copyrisk.layout import Rows
from copyrisk.risk import are_known, calc_status, fully_known, reasons
from copyrisk.store.link import Link
from copyrisk.store.pipe import pack
from copyrisk.table import Table
from copyrisk.terms import CalcStatus

log = structlog.get_logger(__name__)

_PER_PORTFOLIO = 2  # the hash and the notice
_FIGURE_FIELDS = (
    fields.CALC_STATUS,
    fields.DEGRADED_FIELDS,
    fields.EQUITY,
    fields.BALANCE,
    fields.FREE_MARGIN,
    fields.USED_MARGIN,
    fields.MARGIN_LEVEL,
    fields.OPEN_PNL,
    fields.TOTAL_PL,
    fields.USED_MARGIN_EXECUTED,
    fields.USED_MARGIN_ALL,
)
_STATUS_ONLY = 2
_PART_ROWS = 512
_WHOLE, _LEFT, _PART = 1, 2, 3  # of the packer's outcomes
_WORDS_A_TICK = 2_000  # portfolios put into words; that of others need not wait for more
_NO_ROWS: RowNumbers = np.zeros(0, np.int32)
#: What the words of an unknown account follow from: its code, its orders, the codes of the instruments.
_TOLD = np.dtype([("code", "i8"), ("fold", "i8"), ("codes", "i8")])
_PACKED_FIELDS = (
    fields.EQUITY,
    fields.FREE_MARGIN,
    fields.MARGIN_LEVEL,
    fields.OPEN_PNL,
    fields.TOTAL_PL,
    fields.USED_MARGIN,
    fields.USED_MARGIN_EXECUTED,
    fields.USED_MARGIN_ALL,
    fields.TS,
    fields.VALUED_TS,
    fields.BALANCE,
    fields.CALC_STATUS,
    fields.DEGRADED_FIELDS,
)


class PortfolioWriter:
    """Remembers what each account's portfolio says, to write only what differs.

    Accounts whose figures are all known, nearly all of them, are packed by the kernel from arrays; the others
    (unknown, or with a number that is out of its range) one by one.

    Attributes
    ----------
    written, refused : int
        Portfolios of the last `write` that the server took, and those it answered with an error.
    """

    def __init__(self, link: Link, book: Book) -> None:
        self._link, self._book = link, book
        self._packer = PortfolioPacker(
            _PACKED_FIELDS,
            CalcStatus.OK.value,
            (keys.PORTFOLIO.before.decode(), keys.PORTFOLIO.after.decode()),
            keys.PORTFOLIO_UPDATES,
        )
        self._written, self._owed, self._born, self._told = Table(layout.WRITTEN), Table("?"), Table("i8"), Table(_TOLD)
        self._instrument_codes: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._codes_version = 0
        self._said: dict[int, tuple[str, ...]] = {}
        self._births = 0
        self._connections = 0
        self.written = 0
        self.refused = 0

    def forget(self) -> None:
        """Take nothing for granted of what the server holds: the next `write` writes everything whole."""
        self._connections = 0

    def write(
        self, figures: Rows, valued: RowNumbers, wished: RowNumbers, now_ms: int, tick: Mapping[str, int | str]
    ) -> None:
        """Write all changed portfolios and the tick's record, and check every reply.

        Parameters
        ----------
        figures : (a,) Figures
        valued : (k,) int32
            Accounts whose figures may have changed since the last call.
        wished : (w,) int32
            Accounts to write whatever their portfolios say.
        now_ms : int
            Written as `ts`, and as `valued_ts` of known accounts.
        tick : dict
            What `copyrisk:tick` says besides its `ts`.

        Raises
        ------
        StoreError, StoreUnavailable
            Any part may have been written; the next `write` sends everything again.
        """
        rows = self._rows_to_judge(valued, wished)
        plain = fully_known(figures[rows])
        batches: list[_Batch] = []
        left, later = [rows[~plain]], _NO_ROWS

        def parts() -> Iterator[bytes]:
            nonlocal later
            known = rows[plain]
            for start in range(0, len(known), _PART_ROWS):
                part, arrays = known[start : start + _PART_ROWS], (self._book.accounts, figures, self._written.rows)
                request, outcome = self._packer.pack(part, self._book.account_ids, *arrays, now_ms)
                left.append(part[outcome == _LEFT])
                packed = (outcome == _WHOLE) | (outcome == _PART)
                yield self._announced(batches, part[packed], request, in_part=outcome[packed] == _PART)
            news = self._news_of(figures, np.concatenate(left))
            news, later = news[:_WORDS_A_TICK], news[_WORDS_A_TICK:]
            self._told.rows["codes"][later] = -1
            others, commands = self._others(figures, news.tolist(), now_ms)
            yield self._announced(batches, np.array(others, np.int32), b"".join(commands))
            record = pack("HSET", keys.TICK, "ts", now_ms, *(word for item in tick.items() for word in item))
            yield self._announced(batches, np.zeros(1, np.int32), record, commands=1)

        self._connections = 0  # until the replies are in, what the server holds is unknown
        self._link.exchange(parts())
        self._connections = self._link.connections
        self._owed.rows[rows] = False
        self._owed.rows[later] = True
        self._check(batches)

    def _announced(
        self,
        batches: "list[_Batch]",
        rows: RowNumbers,
        request: bytes,
        *,
        commands: int = _PER_PORTFOLIO,
        in_part: npt.NDArray[np.bool_] | None = None,
    ) -> bytes:
        answers = np.zeros(len(rows) * commands, np.uint8)
        self._link.replies.expect_statuses(answers)
        batches.append(_Batch(rows, answers, np.zeros(len(rows), np.bool_) if in_part is None else in_part))
        return request

    def _news_of(self, figures: Rows, rows: RowNumbers) -> RowNumbers:
        """Rows whose words may be others than those that were written: of the unknown, those where a cause changed."""
        codes = self._book.market.instruments["code"]
        if not np.array_equal(codes, self._instrument_codes):
            self._instrument_codes, self._codes_version = codes.copy(), self._codes_version + 1
        told = np.zeros(len(rows), _TOLD)
        told["code"], told["fold"], told["codes"] = figures["code"][rows], self._book.folds[rows], self._codes_version
        news: RowNumbers = rows[are_known(told["code"]) | (told != self._told.rows[rows])]
        self._told.rows[rows] = told
        return news

    def _rows_to_judge(self, valued: RowNumbers, wished: RowNumbers) -> RowNumbers:
        """Accounts whose portfolio may have to be written: valued, wished, new, refused before, or all of them."""
        count = len(self._book.accounts)
        for table in (self._written, self._owed, self._born, self._told):
            table.cover(count)
        if self._connections != self._link.connections:
            self._forget(np.arange(count, dtype=np.int32))  # another server may not hold what the last one was told
        if self._births != self._book.births:
            self._births = self._book.births
            reborn = np.flatnonzero(self._born.rows != self._book.born)
            self._born.rows[reborn] = self._book.born[reborn]
            self._forget(reborn)
        self._forget(wished)
        self._owed.rows[valued] = True  # until it is written, or found to say the same
        rows = np.flatnonzero(self._owed.rows).astype(np.int32)
        used: RowNumbers = rows[self._book.born[rows] != 0]
        return used

    def _forget(self, rows: npt.NDArray[Any]) -> None:
        self._written.rows["is_known"][rows] = 0
        self._told.rows["codes"][rows] = -1
        self._owed.rows[rows] = True
        if self._said:
            for row in rows.tolist():
                self._said.pop(row, None)

    def _others(self, figures: Rows, rows: list[int], now_ms: int) -> tuple[list[int], list[bytes]]:
        """Rows and commands of portfolios that are not plain figures and say something new."""
        changed: list[int] = []
        commands: list[bytes] = []
        for row in rows:
            says, account = self._says(figures, row), self._book.account_at(row)
            if self._said.get(row) != says or self._written.rows["is_known"][row]:
                self._written.rows["is_known"][row] = 0
                self._said[row] = says
                changed.append(row)
                commands += (_hset(account, says, now_ms), pack("PUBLISH", keys.PORTFOLIO_UPDATES, str(account)))
        return changed, commands

    def _says(self, figures: Rows, row: int) -> tuple[str, ...]:
        """What a portfolio says apart from its times: status, reasons, and the figures that are known."""
        figure: Any = figures[row]
        status, why = calc_status(figure).value, ",".join(reasons(self._book, figures, row))
        if not is_known(int(figure["code"])):
            return status, why
        equity, pnl = fields.usd_text(figure["equity"]), fields.usd_text(figure["open_pnl"])
        known = (
            status,
            why,
            equity,
            fields.usd_text(self._book.accounts[row]["balance"]),
            fields.usd_text(figure["free_margin"]),
            fields.usd_text(figure["used_margin_executed"]),
            fields.usd_text(figure["margin_level_pct"]),
            pnl,
            pnl,
            fields.exact_text(figure["used_margin_executed"]),
        )
        reserve = float(figure["used_margin_all"])
        return known if math.isnan(reserve) else (*known, fields.exact_text(reserve))

    def _check(self, batches: "list[_Batch]") -> None:
        *portfolios, record = batches
        refused = [_NO_ROWS]
        for batch in portfolios:
            answers = batch.answers.reshape(-1, _PER_PORTFOLIO)
            refused.append(batch.rows[(answers == REFUSED_REPLY).any(axis=1)])
            # A field that was written before and is new now: somebody took the portfolio away.
            self._forget(batch.rows[batch.in_part & (answers[:, 0] == READ_COUNT)])
        failed = np.concatenate(refused)
        self.written, self.refused = sum(len(batch.rows) for batch in portfolios) - len(failed), len(failed)
        if len(failed) or record.answers[0] == REFUSED_REPLY:
            log.error("write_refused", portfolios=len(failed), reason=self._link.error)
            self._forget(failed)


@dataclass(slots=True)
class _Batch:
    """Portfolios of one part of a request, two answers each, and which of them were not sent whole."""

    rows: RowNumbers
    answers: npt.NDArray[np.uint8]
    in_part: npt.NDArray[np.bool_]


def _hset(account: Account, says: tuple[str, ...], now_ms: int) -> bytes:
    words: list[str | int] = [word for pair in zip(_FIGURE_FIELDS, says, strict=False) for word in pair]
    words += (fields.TS, now_ms)
    if len(says) > _STATUS_ONLY:
        words += (fields.VALUED_TS, now_ms)
    return pack("HSET", keys.portfolio(account), *words)
