"""Writes the figures back: portfolios that say something new, a notice for each, and the tick's own record.

Only absolute values are written, so that repeating a write whose outcome is unknown is harmless. Of an unknown
account only its status goes out; its figures stay as last known, and `valued_ts` says from when.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk import fields, keys, layout
from copyrisk._pack import PortfolioPacker
from copyrisk._wire import READ
from copyrisk.book import Book, RowNumbers
from copyrisk.errors import is_known
from copyrisk.keys import Account
from copyrisk.layout import Rows
from copyrisk.risk import calc_status, fully_known, reasons
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
_PACKED, _LEFT = 1, 2  # of the packer's outcomes
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
        self._written, self._owed, self._born = Table(layout.WRITTEN), Table("?"), Table("i8")
        self._said: dict[int, tuple[str, ...]] = {}
        self._births = 0
        self._connections = 0
        self.written = 0
        self.refused = 0

    def write(self, figures: Rows, valued: RowNumbers, wished: RowNumbers, now_ms: int, tick: dict[str, int]) -> None:
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
        sent: list[tuple[RowNumbers, npt.NDArray[np.uint8]]] = []
        left = [rows[~plain]]

        def parts() -> Iterator[bytes]:
            known = rows[plain]
            for start in range(0, len(known), _PART_ROWS):
                part, arrays = known[start : start + _PART_ROWS], (self._book.accounts, figures, self._written.rows)
                request, outcome = self._packer.pack(part, self._book.account_ids, *arrays, now_ms)
                left.append(part[outcome == _LEFT])
                yield self._announced(part[outcome == _PACKED], request, sent)
            others, commands = self._others(figures, np.concatenate(left).tolist(), now_ms)
            yield self._announced(np.array(others, np.int32), b"".join(commands), sent)
            record = pack("HSET", keys.TICK, "ts", now_ms, *(word for item in tick.items() for word in item))
            yield self._announced(np.zeros(1, np.int32), record, sent, 1)

        self._connections = 0  # until the replies are in, what the server holds is unknown
        self._link.exchange(parts())
        self._connections = self._link.connections
        self._owed.rows[rows] = False
        self._check(sent)

    def _announced(
        self,
        rows: RowNumbers,
        request: bytes,
        sent: list[tuple[RowNumbers, npt.NDArray[np.uint8]]],
        commands_each: int = _PER_PORTFOLIO,
    ) -> bytes:
        answers = np.zeros(len(rows) * commands_each, np.uint8)
        self._link.replies.expect_statuses(answers)
        sent.append((rows, answers))
        return request

    def _rows_to_judge(self, valued: RowNumbers, wished: RowNumbers) -> RowNumbers:
        """Accounts whose portfolio may have to be written: valued, wished, new, refused before, or all of them."""
        count = len(self._book.accounts)
        for table in (self._written, self._owed, self._born):
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

    def _check(self, sent: list[tuple[RowNumbers, npt.NDArray[np.uint8]]]) -> None:
        *portfolios, (_, record) = sent
        refused = [rows[(answers.reshape(-1, _PER_PORTFOLIO) != READ).any(axis=1)] for rows, answers in portfolios]
        failed = np.concatenate(refused)
        self.written, self.refused = sum(len(rows) for rows, _ in portfolios) - len(failed), len(failed)
        if len(failed) or record[0] != READ:
            log.error("write_refused", portfolios=len(failed), reason=self._link.error)
            self._forget(failed)


def _hset(account: Account, says: tuple[str, ...], now_ms: int) -> bytes:
    words: list[str | int] = [word for pair in zip(_FIGURE_FIELDS, says, strict=False) for word in pair]
    words += (fields.TS, now_ms)
    if len(says) > _STATUS_ONLY:
        words += (fields.VALUED_TS, now_ms)
    return pack("HSET", keys.portfolio(account), *words)
