"""What waits on streams and elsewhere on the server, asked for over a connection of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from copyrisk import keys
from copyrisk.store.functions import text
from copyrisk.store.library import LIBRARY
from copyrisk.store.pipe import Pipe, pack

_US = 1_000_000


@dataclass(frozen=True, slots=True)
class StreamBacklog:
    """Of one stream and group; `None` for what the server does not tell.

    Attributes
    ----------
    lag : int or None
        Entries that nobody was handed yet.
    pending : int or None
        Entries handed out and not acknowledged.
    oldest_s : float or None
        Age of the oldest entry by the server's clock; 0 without entries. Who is done with one takes it away.
    """

    lag: int | None = None
    pending: int | None = None
    oldest_s: float | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits, and whether the server has our functions; `None` for what it does not tell this user."""

    streams: Mapping[tuple[str, str], StreamBacklog] = field(default_factory=dict)
    dead_letters: int | None = None
    waiting_copies: int | None = None
    kills: int | None = None
    has_functions: bool | None = None


def read_backlog(pipe: Pipe, consumed: Mapping[str, Sequence[str]]) -> Backlog:
    """Ask once: about the streams that each group reads, and about what belongs to nobody.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    asked = [(stream, group) for group, streams in consumed.items() for stream in streams]
    requests = [
        pack("TIME"),
        pack("XLEN", keys.DEAD_LETTERS),
        pack("HLEN", keys.WAITING_COPIES),
        pack("HLEN", keys.KILLS),
        pack("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY),
    ]
    for stream, _ in asked:
        requests += [
            pack("XLEN", stream),
            pack("XINFO", "GROUPS", stream),
            pack("XRANGE", stream, "-", "+", "COUNT", 1),
        ]
    pipe.ask(pack("PING"))  # a server that cannot serve refuses it: then nothing is known of it
    replies = pipe.exchange(requests)
    time, letters, copies, kills, libraries, *rest = replies
    now_us = int(time[0]) * _US + int(time[1]) if isinstance(time, list) else None
    return Backlog(
        {one: _backlog(one[1], rest[3 * i : 3 * i + 3], now_us) for i, one in enumerate(asked)},
        _whole(letters),
        _whole(copies),
        _whole(kills),
        None if isinstance(libraries, Exception) else bool(libraries),
    )


def _backlog(group: str, replies: Sequence[Any], now_us: int | None) -> StreamBacklog:
    length, groups, first = replies
    found = {} if isinstance(groups, Exception) else _of_group(groups, group)
    pending, lag = _whole(found.get("pending")), _whole(found.get("lag"))
    count = _whole(length)
    if lag is None and pending is not None and count is not None:
        lag = max(0, count - pending)  # what is done with is off the stream, so the rest was handed to nobody
    return StreamBacklog(lag, pending, _age_s(first, now_us))


def _of_group(groups: Sequence[Any], name: str) -> dict[str, Any]:
    for one in groups:
        pairs = one.items() if isinstance(one, dict) else zip(one[::2], one[1::2], strict=True)
        said = {text(key): value for key, value in pairs}
        if text(said.get("name")) == name:
            return said
    return {}


def _age_s(first: Any, now_us: int | None) -> float | None:
    if isinstance(first, Exception) or now_us is None:
        return None
    if not first:
        return 0.0
    return max(0.0, now_us / _US - int(text(first[0][0]).partition("-")[0]) / 1e3)


def _whole(reply: Any) -> int | None:
    return reply if isinstance(reply, int) else None
