"""One reader of a stream: what waits to be sent to it. Pure but for the event that wakes who sends.

Of what has one newest state (portfolios, the summary, the status) only that is kept. Of what happened nothing is left
out unsaid: when too much waits, all of it gives way to one `gap` that says how much and from where it can be had again.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

from copyrisk.api.happenings import ITEMS, START, TRAIL_TOPICS, Happening, Place, Position, Sees, Topic, written
from copyrisk.identifiers import Account

#: What may wait for one reader; a hundred copies count as one, for they are sent as one.
QUEUE_LIMIT, QUEUE_BYTES = 1_000, 4 << 20
#: About how much is handed out at once: what is handed out cannot be replaced by what is newer.
_PIECE_BYTES = 16_384
#: The status comes before whatever else waits.
STATUS = "status"


def event_text(name: str, data: bytes, event_id: str = "") -> bytes:
    """An event as it goes over the wire."""
    words = [b"event: ", name.encode(), b"\n"]
    if event_id:
        words += (b"id: ", event_id.encode(), b"\n")
    return b"".join((*words, b"data: ", data, b"\n\n"))


def copies_text(texts: Iterable[bytes]) -> bytes:
    """Copies as they are told together."""
    return b'{"copies":[' + b",".join(texts) + b"]}"


class Queued(NamedTuple):
    """What waits, shared by all who are told the same.

    Attributes
    ----------
    is_trail : bool
        Whether its entry is one of the trail.
    is_copy : bool
        Whether it is sent together with those of its kind next to it.
    place : Place
        Of its entry.
    seen : Position
        Up to where all was taken, this included.
    """

    topic: Topic
    is_trail: bool
    is_copy: bool
    place: Place
    seen: Position
    text: bytes


def queued(happening: Happening, text: bytes, place: Place, seen: Position) -> Queued:
    """A happening in these words."""
    is_trail = happening.topic in TRAIL_TOPICS and not happening.is_copy
    return Queued(happening.topic, is_trail, happening.is_copy, place, seen, text)


class Subscriber:
    """A reader, and what waits for it.

    Parameters
    ----------
    caller : str
        Who it is.
    accounts : collection of Account or None
        What it asked for; `None`: all that `sees` lets it.
    sees_all : bool
        Whether everything is for it, also what is of no account.

    Attributes
    ----------
    ended : str
        Code of why it is to end; empty while it is not.
    told : Position
        Up to where it was told, or is as soon as what was handed out has arrived.
    wake : asyncio.Event
        Set as soon as something waits.
    over : asyncio.Event
        Set with `ended`.
    """

    def __init__(
        self,
        caller: str,
        topics: Collection[Topic],
        accounts: Collection[Account] | None,
        sees: Sees,
        *,
        sees_all: bool,
    ) -> None:
        self.caller, self.topics = caller, frozenset(topics)
        self.accounts = None if accounts is None else frozenset(accounts)
        self._sees = sees if self.accounts is None else self.accounts.__contains__
        self.sees_all = sees_all and accounts is None
        self.wake, self.over = asyncio.Event(), asyncio.Event()
        self.ended = ""
        self.told = self._done = Position(START, START)
        self._has_begun = False
        self._queue: deque[Queued] = deque()
        self._weight = self._bytes = 0  # of what is queued
        self._gap: tuple[Counter[str], set[str], Position] | None = None  # dropped, of these unknown, since when
        self._newest: dict[str, tuple[str, bytes]] = {}

    def wants(self, happening: Happening) -> bool:
        """Whether it is to be told."""
        return happening.topic in self.topics and happening.is_for(self._sees, sees_all=self.sees_all)

    def text_of(self, happening: Happening) -> bytes:
        """What it is told."""
        return written(happening.told(self._sees, sees_all=self.sees_all))

    def begin(self, since: Position, now: Position) -> None:
        """What lies up to `now` is not for the queue; up to `since` it was told before."""
        self.told, self._done, self._has_begun = since, now, True
        waiting, self._queue, self._weight, self._bytes = self._queue, deque(), 0, 0
        for one in waiting:
            self.offer(one)
        if self._gap is not None:  # it was there before anybody knew from where
            self._gap = (*self._gap[:2], now)

    def end(self, code: str) -> None:
        """Let it go; the first code counts."""
        self.ended = self.ended or code
        self.over.set()
        self.wake.set()

    # ---- what waits

    def offer(self, one: Queued) -> None:
        """Queue what happened."""
        if self._has_begun and self._is_done(one):
            return
        self._queue.append(one)
        self._weight += 1 if one.is_copy else ITEMS
        self._bytes += len(one.text)
        if self._weight > QUEUE_LIMIT * ITEMS or self._bytes > QUEUE_BYTES:
            self._drop()
        self.wake.set()

    def offer_newest(self, key: str, name: str, text: bytes) -> None:
        """Put what stands now in the place of what stood before and was not sent yet."""
        self._newest[key] = (name, text)
        self.wake.set()

    def lose(self, topics: Iterable[Topic]) -> None:
        """Note that nobody knows what happened meanwhile."""
        lost = [topic.value for topic in topics if topic in self.topics]
        if lost:
            counts, unknown, since = self._gap or (Counter(), set(), self._reached())
            self._gap = counts, unknown | set(lost), since
            self.wake.set()

    def begin_anew(self) -> None:
        """The trail goes on with numbers that it had before, or others than were to come."""
        self._done = Position(START, self._done.events)
        self.lose(TRAIL_TOPICS)
        self.told = Position(START, self.told.events)

    def _is_done(self, one: Queued) -> bool:
        return one.place <= (self._done.trail if one.is_trail else self._done.events)

    def _reached(self) -> Position:
        return _later(self.told, self._done)

    def _drop(self) -> None:
        counts, unknown, since = self._gap or (Counter(), set(), self._reached())
        counts.update(one.topic.value for one in self._queue)
        self._gap = counts, unknown, since
        self._queue.clear()
        self._weight = self._bytes = 0

    # ---- what is sent

    def take(self) -> bytes:
        """Some of what waits, in the order in which it is to be sent; empty: nothing does."""
        pieces: list[bytes] = []
        if self._gap is not None:
            pieces.append(self._gap_text(*self._gap))
            self._gap = None
        size = 0
        while self._queue and size < _PIECE_BYTES:
            pieces.append(self._next())
            size += len(pieces[-1])
        size = 0
        while self._newest and size < _PIECE_BYTES:
            name, text = self._newest.pop(STATUS if STATUS in self._newest else next(iter(self._newest)))
            pieces.append(event_text(name, text))
            size += len(pieces[-1])
        if not (self._queue or self._newest or self.ended):
            self.wake.clear()
        return b"".join(pieces)

    def _next(self) -> bytes:
        """The next of what is queued; of copies, all that come next."""
        one = self._popped()
        data = one.text
        if one.is_copy:
            texts = [data]
            while self._queue and self._queue[0].is_copy and len(texts) < ITEMS:
                one = self._popped()
                texts.append(one.text)
            data = copies_text(texts)
        self.told = _later(one.seen, self._reached())
        return event_text(one.topic.value, data, str(self.told))

    def _popped(self) -> Queued:
        one = self._queue.popleft()
        self._weight -= 1 if one.is_copy else ITEMS
        self._bytes -= len(one.text)
        return one

    def _gap_text(self, counts: Counter[str], unknown: set[str], since: Position) -> bytes:
        dropped: dict[str, int | None] = {**counts, **dict.fromkeys(unknown)}
        return event_text("gap", written({"dropped": dict(sorted(dropped.items())), "from_id": str(since)}))


def _later(one: Position, other: Position) -> Position:
    return Position(max(one.trail, other.trail), max(one.events, other.events))
