"""The desk's book: follows the server, values all accounts, and says what the desk asks; it only reads."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import redis
import structlog

from copyrisk import keys
from copyrisk._core import RowCode
from copyrisk._cutoff import StopOut
from copyrisk.api.summary import (
    ReplicationWindow,
    cascade_line,
    figures_of_book,
    halted,
    newest_first,
    tick_facts,
    withheld,
)
from copyrisk.book import Book
from copyrisk.census import Census
from copyrisk.conditions import LotLimits
from copyrisk.errors import CopyriskError, StoreError, StoreUnavailable
from copyrisk.hours import MarketHours
from copyrisk.layout import Rows
from copyrisk.risk import Valuer
from copyrisk.rules import ValuationRules
from copyrisk.scenario import crossings, ladder_of_symbol, ladder_overview, what_if
from copyrisk.store.cascades import Cascades
from copyrisk.store.copy_states import mapping
from copyrisk.store.filler import Filler
from copyrisk.store.functions import text
from copyrisk.store.kill_switch import KillSwitch, followers_of_masters
from copyrisk.store.link import Link
from copyrisk.store.lot_limits import read_lot_limits
from copyrisk.store.markets import Markets
from copyrisk.store.mirror import Mirror
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.tallies import Tallies
from copyrisk.terms import StopOutMode

log = structlog.get_logger(__name__)

_REREAD_WITHIN_S = 60.0
_RUNNING_SHOWN, _ENDED_SHOWN = 20, 5


@dataclass(frozen=True, slots=True)
class BookOptions:
    """What the process needs to know; nothing of it is a secret but for the password in the URL."""

    url: str
    connect_timeout_ms: int
    reply_timeout_ms: int
    rules: ValuationRules
    hours: MarketHours
    lots: LotLimits
    stop_out: StopOutMode
    refresh_ms: int
    max_age_ms: int
    log_format: str
    log_level: str


class DeskBook:
    """A book that is only read, and how to ask it.

    Attributes
    ----------
    book : Book
    """

    def __init__(self, client: redis.Redis, options: BookOptions) -> None:
        self._options, self.book = options, Book(options.rules)
        self._mirror = Mirror(Link(client, self.book.market.names.index), self.book, hears_wishes=False)
        self._valuer, self._census = Valuer(self.book), Census(self.book)
        self._pipe = Pipe(client)
        self._others = _Others(self._pipe)
        self._markets = Markets(self._pipe, Filler(self._pipe, None), options.rules, options.hours, options.lots)
        self._looked_s = self._read_s = -math.inf
        self._valued_ms = 0
        self._found: Rows | None = None

    @property
    def figures(self) -> Rows:
        """(a,) Figures, as of the last `look`."""
        return self._valuer.figures

    def look(self) -> None:
        """Read what changed, and each account once a minute whatever was reported, and value them.

        Raises
        ------
        StoreError, StoreUnavailable
            What is known stands as it was, and gets older.
        """
        mirror, now_s = self._mirror, time.monotonic()
        mirror.read(min(1.0, (now_s - self._looked_s) / _REREAD_WITHIN_S))
        self._looked_s, self._found = now_s, None
        now_ms = self._valued_ms = _now_ms()
        self._valuer.value(now_ms, self._options.hours.open_by_type(now_ms))
        self._valuer.verify(mirror.sample)
        self._valuer.withhold(mirror.restless, RowCode.ACCOUNT_CHANGING)
        self._read_s = now_s

    @property
    def age_ms(self) -> float:
        """Since the start of the last look that succeeded; infinite before there was one."""
        return (time.monotonic() - self._read_s) * 1e3

    @property
    def is_current(self) -> bool:
        """Whether figures may be told."""
        return self.age_ms <= self._options.max_age_ms

    def good_until_s(self) -> float:
        """When (`time.monotonic`) what was made now must not be told any more."""
        return (self._read_s if self.is_current else time.monotonic()) + self._options.max_age_ms / 1e3

    def summary(self) -> dict[str, Any]:
        """What the desk is shown; of a book that is too old no figures."""
        now_ms, age_ms = _now_ms(), self.age_ms
        known = self.is_current
        return {
            "now_ms": now_ms,
            **(figures_of_book(self.book, self.figures, self._census) if known else withheld()),
            **self._others.facts(now_ms),
            "book_age_ms": round(age_ms) if math.isfinite(age_ms) else None,
        }

    def answer(self, what: str, arguments: Mapping[str, Any]) -> Any:
        """What JSON can say of a question.

        Raises
        ------
        CopyriskError
            `book_stale`; and what the question's own function raises.
        """
        questions: dict[str, Callable[..., Any]] = {
            "ladder": lambda: ladder_overview(self.book, self._crossings(), self._valued_ms),
            "ladder_of": lambda symbol: ladder_of_symbol(self.book, self._crossings(), symbol, self._valued_ms),
            "what_if": self._what_if,
        }
        if not self.is_current:
            raise StoreUnavailable("the figures are too old to be told", code="book_stale")
        return questions[what](**arguments)

    def _crossings(self) -> Rows:
        """(n,) CROSSING, found once after each look that somebody asks about."""
        if self._found is None:
            self._found = crossings(self.book, self.figures)
        return self._found

    def _what_if(self, moves: Mapping[str, str]) -> dict[str, Any]:
        return what_if(
            self.book,
            self.figures,
            {symbol: Decimal(move) for symbol, move in moves.items()},
            stop_out=StopOut[self._options.stop_out.name],
            followers=self._followers,
            now_ms=self._valued_ms,
            lot_limits=read_lot_limits(self._markets, self.book.market.instrument_keys),
        )

    def _followers(self, masters: Sequence[str]) -> dict[str, list[str]]:
        """By master, the ids of those who copy him now."""
        found = followers_of_masters(self._pipe, masters)
        return {master: [follower.id for follower in followers] for master, followers in found.items()}

    def close(self) -> None:
        """Drop the connections."""
        self._mirror.close()
        self._pipe.close()


class _Others:
    """What else the server says: the daemon's tick, how copies are made, cascades, the kill switch.

    Each part that cannot be read is `None`; none of them makes the others unknown.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._window = pipe, ReplicationWindow()
        self._cascades, self._switch, self._tallies = Cascades(pipe), KillSwitch(pipe), Tallies(pipe)
        self._ended: dict[str, dict[str, Any]] = {}

    def facts(self, now_ms: int) -> dict[str, Any]:
        parts: dict[str, Callable[[], Any]] = {
            "tick": lambda: self._tick(now_ms),
            "cascades": self._cascade_list,
            "replication": lambda: self._replication(now_ms),
            "halted": lambda: halted(self._switch.read()),
        }
        found = dict.fromkeys(parts)
        for name, read in parts.items():
            try:
                found[name] = read()
            except StoreUnavailable:
                break  # each further one would wait as long
            except StoreError as failure:
                log.error("desk_part_unreadable", part=name, code=failure.code, reason=str(failure))
        return found

    def _tick(self, now_ms: int) -> dict[str, Any] | None:
        (reply,) = self._pipe.ask(pack("HGETALL", keys.TICK))
        return tick_facts(mapping(reply), now_ms)

    def _replication(self, now_ms: int) -> dict[str, Any]:
        self._window.take(now_ms, self._tallies.read())
        (reply,) = self._pipe.exchange([pack("XINFO", "STREAM", keys.REPLICATIONS)])
        if isinstance(reply, Exception):  # there is no such stream before a master has traded
            return self._window.facts(None)
        said = {text(name): value for name, value in _pairs(reply)}
        last_ms = int(text(said["last-generated-id"]).partition("-")[0])
        return self._window.facts(last_ms or None)

    def _cascade_list(self) -> list[dict[str, Any]]:
        """Those that run, and the last ones that have ended; one that cannot be read is left out."""
        running = sorted(self._cascades.running().values())[:_RUNNING_SHOWN]
        ended = [one for one in self._cascades.finished(_ENDED_SHOWN) if one not in running]
        self._ended = {one: facts for one, facts in self._ended.items() if one in ended}
        found = [self._cascade(one) for one in running]
        for one in ended:
            if one not in self._ended and (facts := self._cascade(one, is_full=False)) is not None:
                self._ended[one] = facts
        return newest_first([*filter(None, found), *self._ended.values()])

    def _cascade(self, cascade_id: str, *, is_full: bool = True) -> dict[str, Any] | None:
        try:
            cascade = self._cascades.load(cascade_id, is_full=is_full)
        except StoreUnavailable:
            raise
        except CopyriskError:
            return None
        return None if cascade is None else cascade_line(cascade)


def _pairs(reply: Any) -> Any:
    return reply.items() if isinstance(reply, Mapping) else zip(reply[::2], reply[1::2], strict=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
