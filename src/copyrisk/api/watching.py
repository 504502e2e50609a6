"""Portfolios that somebody follows: read in turn, offered as they change, and never as current when they may not be."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import hiredis
import redis.asyncio
import structlog
from redis.exceptions import RedisError, ResponseError

from copyrisk import fields, keys
from copyrisk.api.answers import ApiError
from copyrisk.api.happenings import Topic, written
from copyrisk.api.subscriber import STATUS, Subscriber
from copyrisk.decimals import as_float
from copyrisk.identifiers import Account
from copyrisk.store.functions import text, texts
from copyrisk.store.pipe import pack
from copyrisk.terms import CalcStatus

log = structlog.get_logger(__name__)

#: Portfolios read in one period, and those that are followed at all: with more than the former each has its turn.
READ_AT_ONCE, WATCHED_LIMIT = 1_000, 20_000
_EXCHANGE = 100  # commands; between two exchanges others have their turn
_STALE_MS, _STALE_PERIODS = 2_000, 3
_STATUS_S = 1.0
_FIGURES = {
    fields.EQUITY: "equity_usd",
    fields.BALANCE: "balance_usd",
    fields.FREE_MARGIN: "free_margin_usd",
    fields.USED_MARGIN: "used_margin_usd",
    fields.USED_MARGIN_EXECUTED: "used_margin_executed_usd",
    fields.USED_MARGIN_ALL: "used_margin_all_usd",
    fields.MARGIN_LEVEL: "margin_level_pct",
    fields.OPEN_PNL: "open_pnl_usd",
}
_RESERVED, _EXECUTED = _FIGURES[fields.USED_MARGIN_ALL], _FIGURES[fields.USED_MARGIN_EXECUTED]
_LEVEL = _FIGURES[fields.MARGIN_LEVEL]
_READ = (*_FIGURES, fields.CALC_STATUS, fields.DEGRADED_FIELDS, fields.TS, fields.VALUED_TS)
_UNREADABLE = b"unreadable"

#: Whether what is read is current: the daemon ticks; it does not; nothing can be read.
LIVE, STALE, UNAVAILABLE = "live", "stale", "unavailable"


class Watch:
    """Reads what all readers together follow: an account once, whoever follows it.

    Parameters
    ----------
    client : redis.asyncio.Redis
        Replies are bytes.
    period_ms : int
    """

    def __init__(self, client: "redis.asyncio.Redis", period_ms: int) -> None:
        self._client, self._period_s = client, period_ms / 1e3
        self._all: set[Subscriber] = set()
        self._who: dict[Account, set[Subscriber]] = {}
        self._raw: dict[Account, tuple[bytes, ...]] = {}
        self._turns: list[Account] = []
        self._state, self._said_s = "", 0.0
        self._tick_ms: int | None = None
        self._tick_limit_ms, self._moved_s = _STALE_MS, -1e9
        self._wanted = asyncio.Event()

    def add(self, one: Subscriber) -> None:
        """Keep a reader informed of its accounts' portfolios, and of whether anything is current.

        Raises
        ------
        ApiError
            `too_busy`: too many accounts are followed.
        """
        mine: Iterable[Account] = (one.accounts or ()) if Topic.PORTFOLIOS in one.topics else ()
        if len(self._who) + sum(account not in self._who for account in mine) > WATCHED_LIMIT:
            raise ApiError("too many portfolios are followed", code="too_busy", headers={"Retry-After": "5"})
        self._all.add(one)
        for account in mine:
            self._who.setdefault(account, set()).add(one)
            if account in self._raw and self._state:
                one.offer_newest(str(account), Topic.PORTFOLIOS, self._text(account))
        if self._state:
            one.offer_newest(STATUS, STATUS, self._status())
        self._wanted.set()

    def remove(self, one: Subscriber) -> None:
        """Do no more for a reader."""
        self._all.discard(one)
        for account in one.accounts or ():
            readers = self._who.get(account)
            if readers is not None:
                readers.discard(one)
                if not readers:
                    del self._who[account]
                    self._raw.pop(account, None)
        if not self._all:
            self._state, self._tick_ms, self._moved_s = "", None, -1e9
            self._wanted.clear()

    async def run(self) -> None:
        """Read, each period, for as long as anybody follows; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            began_s = loop.time()
            try:
                await self._step()
            except (RedisError, hiredis.HiredisError, OSError, TimeoutError) as failure:
                if self._state != UNAVAILABLE:
                    log.error("portfolios_not_read", reason=str(failure))
                self._tell(UNAVAILABLE, ())
            await asyncio.sleep(max(self._period_s / 10, began_s + self._period_s - loop.time()))

    async def _step(self) -> None:
        chosen = self._next()
        requests = [pack("HMGET", keys.portfolio(account), *_READ) for account in chosen]
        tick, *found = await _exchange(self._client, [pack("HGETALL", keys.TICK), *requests])
        self._take_tick(tick)
        changed = []
        for account, reply in zip(chosen, found, strict=True):
            if account not in self._who:
                continue  # its last reader has left meanwhile
            raw = (_UNREADABLE,) if isinstance(reply, Exception) else tuple(word or b"" for word in reply)
            if self._raw.get(account) != raw:
                self._raw[account] = raw
                changed.append(account)
        self._tell(LIVE if self._is_current() else STALE, changed)

    def _next(self) -> list[Account]:
        """Whose turn it is: first those that were never read."""
        new = [account for account in self._who if account not in self._raw][:READ_AT_ONCE]
        room = READ_AT_ONCE - len(new)
        chosen = dict.fromkeys(new)
        if not self._turns:
            self._turns = list(self._who)
        while self._turns and room > 0:
            account = self._turns.pop()
            if account in self._who and account not in chosen:
                chosen[account] = None
                room -= 1
        return list(chosen)

    # ---- whether it is current

    def _take_tick(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise RedisError(str(reply))
        said = {text(k): text(v) for k, v in reply.items()} if isinstance(reply, dict) else texts(reply)
        tick_ms, period_ms = _whole(said.get("ts")), _whole(said.get("period_ms"))
        if tick_ms != self._tick_ms and self._tick_ms is not None:
            self._moved_s = time.monotonic()
        self._tick_ms, self._tick_limit_ms = tick_ms, max(_STALE_MS, _STALE_PERIODS * (period_ms or 0))

    def _is_current(self) -> bool:
        """Whether the daemon ticks: by the clocks, or, if they differ, by what was seen of it."""
        if self._tick_ms is None:
            return False
        by_clock = abs(_now_ms() - self._tick_ms) <= self._tick_limit_ms
        return by_clock or (time.monotonic() - self._moved_s) * 1e3 <= self._tick_limit_ms

    def _status(self) -> bytes:
        now_ms = _now_ms()
        age_ms = None if self._tick_ms is None else now_ms - self._tick_ms
        said = {"state": self._state, "tick_ms": self._tick_ms, "tick_age_ms": age_ms, "now_ms": now_ms}
        return written(said)

    # ---- telling

    def _tell(self, state: str, changed: Sequence[Account]) -> None:
        now_s = time.monotonic()
        has_turned = state != self._state
        self._state = state
        if has_turned:  # the last word of each account is what is known of it now
            changed = list(self._raw)
        for account in changed:
            said = self._text(account)
            for one in self._who.get(account, ()):
                one.offer_newest(str(account), Topic.PORTFOLIOS, said)
        is_due = now_s - self._said_s >= _STATUS_S
        if has_turned or is_due:
            self._said_s = now_s
            status = self._status()
            for one in self._all:
                if has_turned or Topic.PORTFOLIOS in one.topics:
                    one.offer_newest(STATUS, STATUS, status)

    def _text(self, account: Account) -> bytes:
        return written(portfolio_words(account, self._raw[account], self._state, self._tick_ms))


def portfolio_words(account: Account, raw: Sequence[bytes], state: str, tick_ms: int | None) -> Mapping[str, Any]:
    """What is said of a portfolio.

    Parameters
    ----------
    raw : sequence of bytes
        Its fields in the order in which they are read; `unreadable` alone: it cannot be read.
    state : str
        Whether what was read is current.

    Returns
    -------
    mapping
        Figures are numbers as they stand in the hash if they are those of now, else `None`.
    """
    said = dict(zip(_READ, map(text, raw), strict=True)) if len(raw) == len(_READ) else {}
    status, ts_ms, valued_ms = (
        said.get(fields.CALC_STATUS),
        _whole(said.get(fields.TS)),
        _whole(said.get(fields.VALUED_TS)),
    )
    numbers = {shown: as_float(said.get(name)) for name, shown in _FIGURES.items()}
    # Of an account that is known but for what is reserved, the figures are of the same moment as the judgement.
    is_partly = status == CalcStatus.DEGRADED and valued_ms is not None and valued_ms == ts_ms
    reserved = numbers.pop(_RESERVED)
    is_whole = status == CalcStatus.OK and reserved is not None
    is_known = (is_whole or is_partly) and None not in numbers.values()
    numbers[_RESERVED] = reserved if is_whole else None
    if numbers[_EXECUTED] == 0:  # an account without margin has no level, and is not at 0 %
        numbers[_LEVEL] = None
    word = "known" if is_known else ("absent" if said and not any(said.values()) else "unknown")
    if state != LIVE:
        word, is_known = state, False
    why = said.get(fields.DEGRADED_FIELDS, "") if said else _UNREADABLE.decode()
    return {
        "account": str(account),
        "state": word,
        **(numbers if is_known else dict.fromkeys(numbers)),
        "calc_status": status or None,
        "degraded_fields": why.split(",") if why else [],
        "ts_ms": ts_ms,
        "valued_ts_ms": valued_ms,
        "as_of_ms": tick_ms if is_known else None,
    }


def _whole(said: str | None) -> int | None:
    return int(said) if said and said.isascii() and said.isdecimal() and len(said) <= 18 else None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _exchange(client: "redis.asyncio.Redis", requests: Sequence[bytes]) -> list[Any]:
    """Replies, errors of single ones among them; a quarter of the time that the client's own pipeline takes."""
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    replies: list[Any] = []
    try:
        for start in range(0, len(requests), _EXCHANGE):
            part = requests[start : start + _EXCHANGE]
            await connection.send_packed_command(part, check_health=False)
            for _ in part:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as refusal:
                    replies.append(refusal)
            await asyncio.sleep(0)
    except BaseException:
        await connection.disconnect(nowait=True)  # what is still to come is nobody's answer
        raise
    finally:
        await pool.release(connection)
    return replies
