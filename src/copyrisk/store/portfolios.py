"""Writes the figures back: portfolios that changed, a notice for each, and the tick's own record.

Only absolute values are written, so that repeating a write whose outcome is unknown is harmless. Of an unknown
account only its status goes out; its figures stay as last known, and `valued_ts` says from when.
"""

import math
from typing import Any

import numpy as np
import structlog

from copyrisk import fields, keys
from copyrisk._core import RowCode
from copyrisk.book import Book
from copyrisk.errors import is_known
from copyrisk.keys import Account
from copyrisk.layout import Rows
from copyrisk.risk import calc_status, reasons
from copyrisk.store.pipe import Pipe, pack

log = structlog.get_logger(__name__)

_COMPARED = (
    "open_pnl",
    "equity",
    "used_margin_executed",
    "used_margin_all",
    "free_margin",
    "margin_level_pct",
    "code",
)
_PER_PORTFOLIO = 2  # the hash and the notice


class PortfolioWriter:
    """Remembers what each account's portfolio says, to write only what differs.

    Attributes
    ----------
    written, refused : int
        Portfolios of the last `write` that the server took, and those it answered with an error.
    """

    def __init__(self, pipe: Pipe, book: Book) -> None:
        self._pipe, self._book = pipe, book
        self._seen: Rows | None = None
        self._connections = 0
        self._said: dict[Account, tuple[str, ...]] = {}
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
        accounts: list[Account] = []
        said: list[tuple[str, ...]] = []
        commands: list[bytes] = []
        for row in self._moved_rows(figures):
            account = self._book.account_of.get(row)
            if account is None:
                continue
            values = self._values(figures, row)
            if self._said.get(account) == values:
                continue
            accounts.append(account)
            said.append(values)
            commands.append(_hset(account, values, now_ms))
            commands.append(pack("PUBLISH", keys.PORTFOLIO_UPDATES, str(account)))
        commands.append(pack("HSET", keys.TICK, "ts", now_ms, *(word for item in tick.items() for word in item)))
        self._seen = None  # until the replies are in, what the server holds is unknown
        replies = self._pipe.exchange(commands)
        self._seen = figures.copy()
        self._check(accounts, said, replies)

    def _moved_rows(self, figures: Rows) -> list[int]:
        """Rows whose figures are not those of the last write; all of them when that is not known."""
        if self._seen is None or self._connections != self._pipe.connections:
            self._connections = self._pipe.connections
            self._said.clear()
            return list(self._book.account_of)
        moved = np.ones(len(figures), bool)
        same = np.ones(len(self._seen), bool)
        for name in _COMPARED:
            same &= figures[name][: len(same)] == self._seen[name]
        # An unknown account's reasons may change while its numbers do not. (An unknown reserve is NaN: never the same.)
        code = figures["code"][: len(same)]
        same &= (code == RowCode.OK) | (code == RowCode.MARKET_CLOSED)
        moved[: len(same)] = ~same
        if len(self._said) != len(self._book.account_row):
            self._said = {account: said for account, said in self._said.items() if account in self._book.account_row}
            moved[[row for row, account in self._book.account_of.items() if account not in self._said]] = True
        rows: list[int] = np.flatnonzero(moved).tolist()
        return rows

    def _values(self, figures: Rows, row: int) -> tuple[str, ...]:
        """What a portfolio says apart from its times: status, reasons, and the figures that are known."""
        figure: Any = figures[row]
        code = int(figure["code"])
        status, why = calc_status(figure).value, ",".join(reasons(self._book, figures, row))
        if not is_known(code):
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

    def _check(self, accounts: list[Account], said: list[tuple[str, ...]], replies: list[Any]) -> None:
        self.written = self.refused = 0
        for position, account in enumerate(accounts):
            answers = replies[_PER_PORTFOLIO * position : _PER_PORTFOLIO * (position + 1)]
            failed = [answer for answer in answers if isinstance(answer, Exception)]
            if failed:
                self.refused += 1
                self._said.pop(account, None)
                if self.refused == 1:
                    log.error("portfolio_refused", account=str(account), reason=str(failed[0]))
            else:
                self.written += 1
                self._said[account] = said[position]
        if isinstance(replies[-1], Exception):
            log.error("tick_record_refused", reason=str(replies[-1]))
        if self.refused:
            self._seen = None


#: The order in which `_values` gives the figures.
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


def _hset(account: Account, values: tuple[str, ...], now_ms: int) -> bytes:
    words: list[str | int] = [word for pair in zip(_FIGURE_FIELDS, values, strict=False) for word in pair]
    words += (fields.TS, now_ms)
    if len(values) > _STATUS_ONLY:
        words += (fields.VALUED_TS, now_ms)
    return pack("HSET", keys.portfolio(account), *words)
