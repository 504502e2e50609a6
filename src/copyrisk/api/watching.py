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
from copyrisk.api.freshness import UNAVAILABLE, Ticks, judge_portfolio
from copyrisk.api.happenings import Topic, written
from copyrisk.api.subscriber import STATUS, Subscriber
from copyrisk.identifiers import Account
from copyrisk.store.copy_states import mapping
from copyrisk.store.functions import text
from copyrisk.store.pipe import pack
from copyrisk.store.relation_views import PORTFOLIO_FIELDS

log = structlog.get_logger(__name__)

#: Portfolios read in one period, and those that are followed at all: with more than the former each has its turn.
READ_AT_ONCE, WATCHED_LIMIT = 1_000, 20_000
_EXCHANGE = 100  # commands; between two exchanges others have their turn
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


class Watch:
    """Reads what all readers together follow: an account once, whoever follows it.

    Parameters
    ----------
    client : redis.asyncio.Redis
        Replies are bytes.
    period_ms : int
    ticks : Ticks
        Is told of each look at the daemon's record.
    """

    def __init__(self, client: "redis.asyncio.Redis", period_ms: int, ticks: Ticks) -> None:
        self._client, self._period_s, self._ticks = client, period_ms / 1e3, ticks
        self._all: set[Subscriber] = set()
        self._who: dict[Account, set[Subscriber]] = {}
        self._raw: dict[Account, tuple[bytes, ...] | None] = {}  # `None`: cannot be read
        self._turns: list[Account] = []
        self._state, self._said_s = "", 0.0
        self._tick_ms: int | None = None
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
            self._state, self._tick_ms = "", None
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
        requests = [pack("HMGET", keys.portfolio(account), *PORTFOLIO_FIELDS) for account in chosen]
        said, *found = await _exchange(self._client, [pack("HGETALL", keys.TICK), *requests])
        tick = self._ticks.look(None if isinstance(said, Exception) else mapping(said))
        if isinstance(said, Exception):
            raise RedisError(str(said))
        self._tick_ms = tick.ts_ms
        changed = []
        for account, reply in zip(chosen, found, strict=True):
            if account not in self._who:
                continue  # its last reader has left meanwhile
            raw = None if isinstance(reply, Exception) else tuple(word or b"" for word in reply)
            if account not in self._raw or self._raw[account] != raw:
                self._raw[account] = raw
                changed.append(account)
        self._tell(tick.state, changed)

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

    # ---- telling

    def _status(self) -> bytes:
        now_ms = _now_ms()
        age_ms = None if self._tick_ms is None else now_ms - self._tick_ms
        said = {"state": self._state, "tick_ms": self._tick_ms, "tick_age_ms": age_ms, "now_ms": now_ms}
        return written(said)

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


def portfolio_words(
    account: Account, raw: Sequence[bytes] | None, state: str, tick_ms: int | None
) -> Mapping[str, Any]:
    """What is said of a portfolio.

    Parameters
    ----------
    raw : sequence of bytes or None
        Its `PORTFOLIO_FIELDS`; `None`: it cannot be read.
    state : str
        Whether what was read is current.

    Returns
    -------
    mapping
        Figures are numbers as they stand in the hash if they are those of now, else `None`.
    """
    said = None if raw is None else dict(zip(PORTFOLIO_FIELDS, map(text, raw), strict=True))
    known = judge_portfolio(said, state, tick_ms)
    return {
        "account": str(account),
        "state": known.state,
        **{shown: known.figures[name] for name, shown in _FIGURES.items()},
        "calc_status": known.calc_status,
        "degraded_fields": known.degraded_fields,
        "ts_ms": known.ts_ms,
        "valued_ts_ms": known.valued_ts_ms,
        "as_of_ms": known.as_of_ms if known.state == "known" else None,
    }


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
