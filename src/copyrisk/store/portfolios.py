"""Writes the figures back: portfolios that say something new, a notice for each, and the tick's own record.

Only absolute values are written, so that repeating a write whose outcome is unknown is harmless. Of an unknown
account only its status goes out; its figures stay as last known, and `valued_ts` says from when.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import structlog

from copyrisk import fields, keys, layout
from copyrisk._wire import PortfolioPacker
from copyrisk.book import Book
from copyrisk.errors import is_known
from copyrisk.keys import Account
from copyrisk.layout import Rows
from copyrisk.risk import calc_status, fully_known, reasons
from copyrisk.store.pipe import Pipe, pack
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


class PortfolioWriter:
    """Remembers what each account's portfolio says, to write only what differs.

    Accounts whose figures are all known, nearly all of them, are packed by the kernel from arrays; the others
    (unknown, or with a number that is out of its range) one by one.

    Attributes
    ----------
    written, refused : int
        Portfolios of the last `write` that the server took, and those it answered with an error.
    """

    def __init__(self, pipe: Pipe, book: Book) -> None:
        self._pipe, self._book = pipe, book
        self._packer = PortfolioPacker((*_FIGURE_FIELDS, fields.TS, fields.VALUED_TS), CalcStatus.OK.value)
        self._written: Rows = np.zeros(0, layout.WRITTEN)
        self._said: dict[int, tuple[str, ...]] = {}
        self._owners: list[Account | None] = []
        self._keys: list[bytes] = []
        self._notices: list[bytes] = []
        self._accounts_version = 0
        self._connections = 0
        self.written = 0
        self.refused = 0

    def write(self, figures: Rows, now_ms: int, tick: dict[str, int]) -> None:
        """Write all changed portfolios and the tick's record, and check every reply.

        Parameters
        ----------
        figures : (a,) Figures
        now_ms : int
            Written as `ts`, and as `valued_ts` of known accounts.
        tick : dict
            What `copyrisk:tick` says besides its `ts`.

        Raises
        ------
        StoreError, StoreUnavailable
            Any part may have been written; the next `write` sends everything again.
        """
        self._follow_accounts()
        if self._connections != self._pipe.connections:
            self._forget(range(len(self._owners)))  # another server may not hold what the last one was told
        plain = fully_known(figures)
        request, packed, left = self._packer.pack(
            np.flatnonzero(plain).astype(np.int32),
            self._keys,
            self._notices,
            self._book.accounts,
            figures,
            self._written,
            now_ms,
        )
        others, commands = self._others(figures, [*np.flatnonzero(~plain).tolist(), *left], now_ms)
        commands.append(pack("HSET", keys.TICK, "ts", now_ms, *(word for item in tick.items() for word in item)))
        parts = [(request, _PER_PORTFOLIO * len(packed)), (b"".join(commands), len(commands))]
        self._connections = 0  # until the replies are in, what the server holds is unknown
        replies = self._pipe.exchange_parts(parts)
        self._connections = self._pipe.connections
        self._check([*packed, *others], replies)

    def _follow_accounts(self) -> None:
        """Forget what was written for rows that belong to another account now."""
        if self._accounts_version == self._book.accounts_version:
            return
        self._accounts_version = self._book.accounts_version
        missing = len(self._book.accounts) - len(self._owners)
        self._owners += [None] * missing
        self._keys += [b""] * missing
        self._notices += [b""] * missing
        self._written = np.concatenate([self._written, np.zeros(missing, layout.WRITTEN)])
        for row, owner in enumerate(self._owners):
            account = self._book.account_of.get(row)
            if account is not owner:
                self._owners[row] = account
                self._forget([row])
                if account is not None:
                    key = keys.portfolio(account).encode()
                    self._keys[row] = b"$%d\r\n%b\r\n" % (len(key), key)
                    self._notices[row] = pack("PUBLISH", keys.PORTFOLIO_UPDATES, str(account))

    def _forget(self, rows: Sequence[int]) -> None:
        self._written["is_known"][rows] = 0
        for row in rows:
            self._said.pop(row, None)

    def _others(self, figures: Rows, rows: list[int], now_ms: int) -> tuple[list[int], list[bytes]]:
        """Rows and commands of portfolios that are not plain figures and say something new."""
        changed: list[int] = []
        commands: list[bytes] = []
        for row in rows:
            account = self._owners[row]
            if account is None:
                continue
            says = self._says(figures, row)
            if self._said.get(row) != says or self._written["is_known"][row]:
                self._written["is_known"][row] = 0
                self._said[row] = says
                changed.append(row)
                commands += (_hset(account, says, now_ms), self._notices[row])
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

    def _check(self, rows: list[int], replies: list[Any]) -> None:
        failed = [number for number, reply in enumerate(replies) if isinstance(reply, Exception)]
        refused = {rows[number // _PER_PORTFOLIO] for number in failed if number < len(replies) - 1}
        self.written, self.refused = len(rows) - len(refused), len(refused)
        if failed:
            log.error("write_refused", portfolios=len(refused), reason=str(replies[failed[0]]))
            self._forget(sorted(refused))


def _hset(account: Account, says: tuple[str, ...], now_ms: int) -> bytes:
    words: list[str | int] = [word for pair in zip(_FIGURE_FIELDS, says, strict=False) for word in pair]
    words += (fields.TS, now_ms)
    if len(says) > _STATUS_ONLY:
        words += (fields.VALUED_TS, now_ms)
    return pack("HSET", keys.portfolio(account), *words)
