"""What is true of an account now: whether there is one, and which of its stored figures are those of now.

One rule for whoever shows figures: what is stored is as of the daemon's last tick, as long as the daemon ticks.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from copyrisk import fields, keys
from copyrisk.api.answers import ApiError
from copyrisk.decimals import as_float
from copyrisk.identifiers import Account
from copyrisk.store.copy_states import ask, mapping
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.relation_views import FIGURES
from copyrisk.terms import CalcStatus

if TYPE_CHECKING:
    from copyrisk.sql.database import Database

#: The daemon has ticked within so long, or within so many of its periods if that is longer; or nobody values accounts.
STALE_MS, STALE_PERIODS = 2_000, 3
#: Whether what is read is current: the daemon ticks; it does not; nobody can tell.
LIVE, STALE, UNAVAILABLE = "live", "stale", "unavailable"
#: What a reason is called if the portfolio itself cannot be read.
UNREADABLE = "unreadable"
_MS_CHARS = 15


def check_exists(pipe: Pipe, database: "Database | None", account: Account) -> None:
    """Raise `ApiError` (`unknown_account`) if there is no such account, here or in the database; raises as `Pipe.ask`.

    What the database cannot tell now is an error, and no account that there is not.
    """
    found = pipe.ask(pack("EXISTS", keys.config(account), keys.orders_index(account)))[0]
    if not found and (database is None or database.account(account) is None):
        raise ApiError(f"there is no account {account}", code="unknown_account")


# ---- whether anybody values accounts


class Tick(NamedTuple):
    """The daemon's last tick as it was found: `LIVE`, `STALE` or `UNAVAILABLE`; `ts_ms` is `None` if there was none."""

    ts_ms: int | None
    now_ms: int
    state: str


class Ticks:
    """Whether the daemon ticks: by the clocks, or, if they differ, by what was seen of it. Any thread may look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ts_ms: int | None = None
        self._looked_s = self._moved_s = float("-inf")

    def look(self, said: Mapping[str, str] | None) -> Tick:
        """What its record says of it.

        Parameters
        ----------
        said : mapping or None
            `None`: the record cannot be read.
        """
        now_ms, now_s = time.time_ns() // 1_000_000, time.monotonic()
        ts_ms, period_ms = (whole_ms((said or {}).get(name)) for name in ("ts", "period_ms"))
        limit_ms = max(STALE_MS, STALE_PERIODS * (period_ms or 0))
        with self._lock:
            seen_ms, was_s = self._ts_ms, self._looked_s
            if ts_ms is None or seen_ms is None or ts_ms < seen_ms:
                self._moved_s = float("-inf")  # it may have stood there for long
            elif ts_ms > seen_ms and (now_s - was_s) * 1e3 <= limit_ms:
                self._moved_s = now_s
            self._ts_ms, self._looked_s = ts_ms, now_s
            has_moved = (now_s - self._moved_s) * 1e3 <= limit_ms
        if said is None:
            return Tick(None, now_ms, UNAVAILABLE)
        is_live = ts_ms is not None and (abs(now_ms - ts_ms) <= limit_ms or has_moved)
        return Tick(ts_ms, now_ms, LIVE if is_live else STALE)


def read_tick(pipe: Pipe, ticks: Ticks) -> Tick:
    """The last tick; raises as `Pipe.ask`.

    To be read before figures are: they are no older than it says.
    """
    (found,) = ask(pipe, [pack("HGETALL", keys.TICK)])
    return ticks.look(None if found is None else mapping(found))


# ---- whether a portfolio is known


@dataclass(frozen=True, slots=True)
class PortfolioNow:
    """What is known of an account's portfolio.

    Attributes
    ----------
    state : str
        `known`; `unknown`: the account cannot be valued, `degraded_fields` says why; `absent`: there is no portfolio;
        `stale`, `unavailable`: nobody values accounts now, or nobody can tell.
    figures : mapping of str to float or None
        By field; those of now. All are `None` unless the state is `known`. Of an account that is known but for what is
        reserved, `used_margin_all` is; of one without margin, `margin_level` is: it is not at 0 %.
    last_known : mapping of str to float or None
        Those of `valued_ts_ms`, whatever the state.
    as_of_ms : int or None
        When the last known figures were true last: a portfolio that says nothing new is not written.
    """

    state: str
    figures: Mapping[str, float | None]
    last_known: Mapping[str, float | None]
    calc_status: str | None
    degraded_fields: list[str]
    ts_ms: int | None
    valued_ts_ms: int | None
    as_of_ms: int | None


def judge_portfolio(said: Mapping[str, str] | None, state: str, tick_ms: int | None) -> PortfolioNow:
    """What is known of a portfolio.

    Parameters
    ----------
    said : mapping or None
        Its `PORTFOLIO_FIELDS`, as far as they are there; `None`: it cannot be read.
    state : str
        Whether what was read is current.
    """
    there = said or {}
    status, ts_ms = there.get(fields.CALC_STATUS), whole_ms(there.get(fields.TS))
    valued_ms = whole_ms(there.get(fields.VALUED_TS))
    last_known = {name: as_float(there.get(name)) for name in FIGURES}
    is_read = all(number is not None for name, number in last_known.items() if name != fields.USED_MARGIN_ALL)
    if last_known[fields.USED_MARGIN_EXECUTED] == 0:
        last_known[fields.MARGIN_LEVEL] = None
    # Of an account that is known but for what is reserved, the figures are of the same moment as the judgement.
    is_partly = status == CalcStatus.DEGRADED and valued_ms is not None and valued_ms == ts_ms
    is_whole = status == CalcStatus.OK and last_known[fields.USED_MARGIN_ALL] is not None
    is_valued = (is_whole or is_partly) and is_read
    is_absent = said is not None and not any(said.values())
    word = "absent" if is_absent else "known" if is_valued else "unknown"
    if state == UNAVAILABLE or (state == STALE and not is_absent):
        word = state
    why, now = there.get(fields.DEGRADED_FIELDS, ""), last_known | ({} if is_whole else {fields.USED_MARGIN_ALL: None})
    return PortfolioNow(
        state=word,
        figures=now if word == "known" else dict.fromkeys(FIGURES),
        last_known=last_known,
        calc_status=status or None,
        degraded_fields=[UNREADABLE] if said is None else [word for word in why.split(",") if word],
        ts_ms=ts_ms,
        valued_ts_ms=valued_ms,
        as_of_ms=max(valued_ms or 0, tick_ms) if is_valued and tick_ms is not None else valued_ms,
    )


def whole_ms(said: str | None) -> int | None:
    """A time as it is stored; `None` for what is none."""
    return int(said) if said and said.isascii() and said.isdecimal() and len(said) <= _MS_CHARS else None
