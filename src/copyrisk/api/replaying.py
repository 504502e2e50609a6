"""What a reader missed: read again from the trail and the events, as far as they still have it."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import hiredis
import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from copyrisk import keys
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
    written,
)
from copyrisk.api.subscriber import Subscriber, copies_text, event_text
from copyrisk.errors import StoreUnavailable
from copyrisk.store.functions import text

#: How many entries of a stream are looked at for one reader; what is left is a gap.
REPLAY_LIMIT = 10_000
_PAGE = 250


class End(NamedTuple):
    """A stream: its first and last entry, and whether it still has all that it ever had."""

    first: Place
    last: Place
    is_whole: bool


async def ends(client: "redis.asyncio.Redis") -> tuple[End, End]:
    """The trail and the events.

    Raises
    ------
    StoreUnavailable
    """
    try:
        return await _end(client, keys.AUDIT_TRAIL), await _end(client, keys.EVENTS)
    except (RedisError, hiredis.HiredisError, OSError) as failure:
        raise StoreUnavailable(f"the streams cannot be read: {failure}") from None


async def _end(client: Any, stream: str) -> End:
    try:
        said = await client.execute_command("XINFO", "STREAM", stream)
    except ResponseError as refusal:
        if "no such key" not in str(refusal).lower():
            raise
        return End(START, START, True)
    found = {text(k) if isinstance(k, bytes) else str(k): v for k, v in said.items()}
    first, last = found["first-entry"], found["last-generated-id"]
    begins = parse_place(text(first[0])) if first else START
    return End(begins, parse_place(text(last)), found["entries-added"] == found["length"])


async def replay(
    client: "redis.asyncio.Redis", one: Subscriber, since: Position, now: tuple[End, End]
) -> AsyncIterator[bytes]:
    """What a reader is told of entries after `since` and up to `now`: first of the trail, then of the events.

    Yields
    ------
    bytes
        Events, one or several; a gap where entries are gone, or are too many.

    Raises
    ------
    StoreUnavailable
    """
    trail, events = now
    try:
        if one.topics & TRAIL_TOPICS:
            async for piece in _replay_trail(client, one, since, trail):
                yield piece
        if one.topics & EVENT_TOPICS:
            async for piece in _replay_events(client, one, Position(trail.last, since.events), events):
                yield piece
    except (RedisError, hiredis.HiredisError, OSError) as failure:
        raise StoreUnavailable(f"the streams cannot be read: {failure}") from None


async def _replay_trail(client: Any, one: Subscriber, since: Position, end: End) -> AsyncIterator[bytes]:
    topics, reader, at = one.topics & TRAIL_TOPICS, TrailReader(), since.trail
    is_gone = at < end.last and end.first.first > at.first + 1
    if at > end.last or is_gone:
        yield gap(topics, since)
        return
    told, looked = since, 0
    while at < end.last and looked < REPLAY_LIMIT:
        page = await _page(client, keys.AUDIT_TRAIL, at, end.last)
        if not page:
            break
        pieces = []
        for place, said in page:
            at, before = place, told
            found = reader.take(said.get("entry", ""))
            if reader.is_between:
                told = Position(place, since.events)
            pieces += _texts(one, found, before, told)
        looked += len(page)
        yield b"".join(pieces)
    if at < end.last:
        yield gap(topics, told)


async def _replay_events(client: Any, one: Subscriber, since: Position, end: End) -> AsyncIterator[bytes]:
    topics, at = one.topics & EVENT_TOPICS, since.events
    if at > end.last or (at < end.last and not end.is_whole and at < end.first):
        yield gap(topics, since)
        return
    told, looked = since, 0
    while at < end.last and looked < REPLAY_LIMIT:
        page = await _page(client, keys.EVENTS, at, end.last)
        if not page:
            break
        pieces = []
        for place, said in page:
            at, before, told = place, told, Position(since.trail, place)
            pieces += _texts(one, from_event(said, topics), before, told)
        looked += len(page)
        yield b"".join(pieces)
    if at < end.last:
        yield gap(topics, told)


async def _page(client: Any, stream: str, after: Place, last: Place) -> list[tuple[Place, dict[str, str]]]:
    found = await client.xrange(stream, f"({after}", str(last), count=_PAGE)
    return [(parse_place(text(entry_id)), {text(k): text(v) for k, v in said.items()}) for entry_id, said in found]


def _texts(one: Subscriber, found: Sequence[Happening], before: Position, now: Position) -> list[bytes]:
    """What a reader is told of an entry: of it under two topics, with the second only it was told."""
    wanted = [happening for happening in found if one.wants(happening)]
    return [_event(one, happening, now if happening is wanted[-1] else before) for happening in wanted]


def _event(one: Subscriber, happening: Happening, told: Position) -> bytes:
    data = one.text_of(happening)
    return event_text(happening.topic.value, copies_text([data]) if happening.is_copy else data, str(told))


def gap(topics: frozenset[Topic], since: Position) -> bytes:
    """That nobody can tell, or will tell at once, what happened after a position."""
    dropped = dict.fromkeys(sorted(topic.value for topic in topics))
    return event_text("gap", written({"dropped": dropped, "from_id": str(since)}))
