"""Who follows what: entries of the trail and the events, portfolios and the desk's summary go to those who want them.

Nobody who is slow holds up anybody else: what is offered to a reader is put down for it, and somebody else sends it.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import redis.asyncio
import structlog

from copyrisk import keys, vitals
from copyrisk.api.answers import ApiError
from copyrisk.api.freshness import Ticks
from copyrisk.api.happenings import (
    EVENT_TOPICS,
    START,
    TRAIL_TOPICS,
    Happening,
    Place,
    Position,
    Topic,
    TrailReader,
    from_event,
    parse_place,
)
from copyrisk.api.subscriber import Queued, Subscriber, queued
from copyrisk.api.watching import Watch
from copyrisk.identifiers import Account
from copyrisk.settings import Settings
from copyrisk.vitals import Vitals

if TYPE_CHECKING:
    from copyrisk.api.desk import Desk

log = structlog.get_logger(__name__)

#: How many streams one caller may have open.
STREAMS_OF_ONE = 20
STOPPING = "server_stopping"
_SILENT_S = 5.0
_ENTRY = "entry"


class Feeds:
    """All readers.

    Parameters
    ----------
    client : redis.asyncio.Redis
        Replies are bytes.
    desk : Desk or None
        Whose summaries are passed on.

    Attributes
    ----------
    ticks : Ticks
        Whether the daemon ticks: one judgement for streams and for single questions.
    """

    def __init__(self, settings: Settings, client: "redis.asyncio.Redis", desk: "Desk | None", *, seen: Vitals) -> None:
        self._limit, self._seen, self._desk = settings.api.streams_limit, seen, desk
        self.ticks = Ticks()
        self._watch = Watch(client, settings.api.stream_period_ms, self.ticks)
        self._all: set[Subscriber] = set()
        self._wide: set[Subscriber] = set()
        self._by_account: dict[Account, set[Subscriber]] = {}
        self._wanted: frozenset[Topic] = frozenset()
        self._reader = TrailReader()
        self._trail = self._events = START  # up to where all was taken
        self._last_trail = START
        self._summary: bytes | None = None
        self._summary_wanted = asyncio.Event()
        self._is_ending = False

    # ---- readers

    def add(self, one: Subscriber) -> None:
        """Put down for a reader what it wants, from now on.

        Raises
        ------
        ApiError
            `too_many_streams` (429 for the caller, 503 for all), `too_busy`, `desk_unavailable`, `server_stopping`.
        """
        if self._is_ending:
            raise ApiError("the server is about to stop", code=STOPPING, status=503, headers={"Retry-After": "1"})
        if len(self._all) >= self._limit:
            raise ApiError(f"{self._limit} streams are open", code="too_many_streams", status=503)
        if sum(other.caller == one.caller for other in self._all) >= STREAMS_OF_ONE:
            raise ApiError(f"a caller has at most {STREAMS_OF_ONE} streams", code="too_many_streams")
        if Topic.SUMMARY in one.topics and self._desk is None:
            raise ApiError("there is no desk here", code="desk_unavailable")
        self._watch.add(one)
        self._all.add(one)
        if one.accounts is None:
            self._wide.add(one)
        for account in one.accounts or ():
            self._by_account.setdefault(account, set()).add(one)
        if Topic.SUMMARY in one.topics and self._summary is not None:
            one.offer_newest(Topic.SUMMARY, Topic.SUMMARY, self._summary)
        self._count()

    def remove(self, one: Subscriber) -> None:
        """Do no more for a reader; any number of times."""
        self._watch.remove(one)
        self._all.discard(one)
        self._wide.discard(one)
        for account in one.accounts or ():
            readers = self._by_account.get(account)
            if readers is not None:
                readers.discard(one)
                if not readers:
                    del self._by_account[account]
        self._count()

    def _count(self) -> None:
        self._wanted = frozenset(topic for one in self._all for topic in one.topics)
        if Topic.SUMMARY in self._wanted:
            self._summary_wanted.set()
        else:
            self._summary_wanted.clear()
            self._summary = None
        self._seen.set(vitals.API_STREAMS, len(self._all))

    def end(self) -> None:
        """Let all readers go, and take no more."""
        self._is_ending = True
        for one in self._all:
            one.end(STOPPING)

    # ---- entries

    def take(self, stream: str, entry_id: str, said: Mapping[str, str]) -> None:
        """Tell those who want it of an entry of the trail or of the events."""
        place = parse_place(entry_id)
        if stream == keys.AUDIT_TRAIL:
            self._take_trail(place, said)
            return
        before, self._events = Position(self._trail, self._events), place
        wanted = self._wanted & EVENT_TOPICS
        if wanted:
            self._tell(from_event(said, wanted), place, before)

    def _take_trail(self, place: Place, said: Mapping[str, str]) -> None:
        if self._last_trail != START and place.first != self._last_trail.first + 1:
            log.warning("trail_differs", after=self._last_trail.first, found=place.first)
            self._reader.forget()
            self._trail = START
            for one in self._all:
                one.begin_anew()
        self._last_trail = place
        before = Position(self._trail, self._events)
        found: Sequence[Happening] = ()
        if self._wanted & TRAIL_TOPICS:
            found = self._reader.take(said.get(_ENTRY, ""))
        else:
            self._reader.forget()
        if self._reader.is_between:  # who comes back must find an entry's first part
            self._trail = place
        self._tell(found, place, before)

    def _tell(self, found: Sequence[Happening], place: Place, before: Position) -> None:
        """Put down what came of an entry; whoever hears of it under two topics was told of it with the second."""
        now = Position(self._trail, self._events)
        for number, happening in enumerate(found, 1):
            shared: dict[Position, Queued] = {}
            for one in self._readers_of(happening):
                if not one.wants(happening):
                    continue
                seen = before if any(one.wants(other) for other in found[number:]) else now
                if not one.sees_all and "said" in happening.data:
                    one.offer(queued(happening, one.text_of(happening), place, seen))
                    continue
                if seen not in shared:
                    shared[seen] = queued(happening, one.text_of(happening), place, seen)
                one.offer(shared[seen])

    def _readers_of(self, happening: Happening) -> Iterable[Subscriber]:
        if not self._by_account:
            return self._wide
        named = (happening.account, *happening.others)
        chosen = [self._by_account[account] for account in named if account is not None and account in self._by_account]
        return self._wide.union(*chosen) if chosen else self._wide

    # ---- loops

    async def run(self) -> None:
        """Read portfolios and pass summaries on, until cancelled."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._watch.run())
            if self._desk is not None:
                loops.create_task(self._pass_on(self._desk))

    async def _pass_on(self, desk: "Desk") -> None:
        number = 0
        while True:
            await self._summary_wanted.wait()
            try:
                async with asyncio.timeout(_SILENT_S):
                    number, said = await desk.next(number)
            except TimeoutError:
                self._summary = None  # what was said last is not so any more
                continue
            self._summary = said
            for one in self._all:
                if Topic.SUMMARY in one.topics:
                    one.offer_newest(Topic.SUMMARY, Topic.SUMMARY, said)
