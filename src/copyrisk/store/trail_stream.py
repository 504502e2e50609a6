"""The audit trail's stream and head in Redis: where it ends, one call that appends, and how a broken one goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from copyrisk import keys
from copyrisk.audit import ORIGIN, BadLine, Link, Stored, parse_line, parse_link
from copyrisk.errors import StoreUnavailable
from copyrisk.store.functions import refused, text
from copyrisk.store.pipe import Pipe, pack

_FUNCTION = "copyrisk_trail_v1"
_KEYS = (keys.AUDIT_TRAIL, keys.AUDIT_HEAD)
_TRIMMED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class There:
    """Where the trail ends in Redis, as texts: its head, and the last entry of the stream."""

    seq: str
    hash: str
    last_id: str
    last_line: bytes = b""
    length: int = 0
    first: str = ""
    top_id: str = ""

    @property
    def head(self) -> Link | None:
        """The head, if it is one."""
        return parse_link(f"{self.seq}:{self.hash}")

    @property
    def aside(self) -> str:
        """The name under which all this can be kept beside the trail."""
        return f"{self.last_id or '0-0'}-{sha256(self.last_line).hexdigest()[:16]}"

    @property
    def last(self) -> Link | None:
        """The stream's last entry, if it is one and stands where it belongs."""
        try:
            link = parse_line(self.last_line).link
        except BadLine:
            return None
        return link if self.last_id == entry_id(link.seq) else None


@dataclass(frozen=True, slots=True)
class Course:
    """How the chain goes on.

    Attributes
    ----------
    reason : str
        Why it cannot simply go on: `empty`, `head_missing`, `stream_behind`, `unreadable`, `stream_ahead`, `rewound`,
        `other_chain`; the first new entry says so.
    is_aside : bool
        Whether what is there is kept beside it.
    """

    tip: Link
    reason: str = ""
    is_aside: bool = False


def entry_id(seq: int) -> str:
    """Under which id an entry stands in the stream."""
    return f"{seq}-0"


def course_of(there: There, known: Link | None) -> Course:
    """How a chain goes on whose last entry, as far as we know, is `known`, without a look into a file."""
    course = _course_of(there, known)
    if there.last_id and int(there.top_id.partition("-")[0] or 0) > course.tip.seq:  # the stream takes no such id again
        return Course(course.tip, course.reason or "stream_ahead", is_aside=True)
    return course


def _course_of(there: There, known: Link | None) -> Course:
    head = there.head
    if head is None:
        if not there.last_id:
            return Course(known or ORIGIN, "empty")
        if there.last is None:
            return Course(known or ORIGIN, "unreadable", is_aside=True)
        return Course(there.last, "head_missing")
    if not there.last_id:
        return Course(head, "stream_behind")
    seq = _seq_of(there.last_id)
    if seq is None or seq > head.seq:
        return Course(head, "stream_ahead", is_aside=True)
    if seq < head.seq:
        return Course(head, "stream_behind")
    if known is not None and (head.seq < known.seq or (head.seq == known.seq and head != known)):
        return Course(head, "rewound" if head.seq < known.seq else "other_chain")
    return Course(head)


def _seq_of(stream_id: str) -> int | None:
    seq, _, rest = stream_id.partition("-")
    return int(seq) if rest == "0" else None


class TrailStream:
    """The calls of one process."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def look(self) -> There:
        """Where the trail ends.

        Raises
        ------
        StoreError, StoreUnavailable
            As of all calls here.
        """
        return _there(self._call("-"))

    def put(self, there: There, lines: Sequence[bytes], last: Link, *, is_aside: bool) -> There | None:
        """Append lines unless the trail does not end `there` any more; returns where it ends then, `None` if done.

        What the server may have done or not is sent again once: it is the same batch, and goes on from the same end.
        """
        words = (there.seq, there.hash, there.last_id, "aside" if is_aside else "", str(last.seq), last.hash, *lines)
        try:
            reply, is_second = self._call(there.aside, *words), False
        except StoreUnavailable as failure:
            if failure.code != "server_unreachable":
                raise  # it is slow: asking once more makes it no faster
            reply, is_second = self._call(there.aside, *words), True
        if reply[0] == b"done" or (is_second and self.is_in(lines, last)):
            return None
        return _there(reply)

    def is_in(self, lines: Sequence[bytes], last: Link) -> bool:
        """Whether these lines are in the trail."""
        return self.lines(last.seq - len(lines) + 1, last.seq, len(lines)) == list(lines)

    def lines(self, first: int, last: int, count: int) -> list[bytes]:
        """At most so many entries from one number to another; empty ones for what is no entry."""
        return [line for _, line in self.page(entry_id(first), entry_id(last), count)]

    def page(self, start: str, end: str, count: int) -> list[tuple[str, bytes]]:
        """At most so many entries from one stream id to another, with their ids."""
        (reply,) = self._pipe.ask(pack("XRANGE", keys.AUDIT_TRAIL, start, end, "COUNT", count))
        return [(text(own_id), _line(words)) for own_id, words in reply]

    def page_back(self, end: str, count: int) -> list[tuple[str, bytes]]:
        """At most so many entries up to a stream id, the last one first, with their ids."""
        (reply,) = self._pipe.ask(pack("XREVRANGE", keys.AUDIT_TRAIL, end, "-", "COUNT", count))
        return [(text(own_id), _line(words)) for own_id, words in reply]

    def first(self) -> Stored | None:
        """The first entry of the stream; `None` if it is none."""
        try:
            return next((parse_line(line) for _, line in self.page("-", "+", 1)), None)
        except BadLine:
            return None

    def trim(self, there: There, kept_from: int) -> None:
        """Take away what is before an entry, or a part of it."""
        head = there.head
        if head is None:
            return
        kept_from = min(kept_from, head.seq - there.length + 1 + _TRIMMED_AT_ONCE)
        self._pipe.ask(
            pack("HSET", keys.AUDIT_HEAD, "first", kept_from),
            pack("XTRIM", keys.AUDIT_TRAIL, "MINID", "=", entry_id(kept_from)),
        )

    def _call(self, aside: str, *words: str | bytes) -> list[Any]:
        (reply,) = self._pipe.exchange([pack("FCALL", _FUNCTION, 3, *_KEYS, keys.audit_aside(aside), *words)])
        failure = refused(reply)
        if failure is not None:
            raise failure
        return list(reply)


def _line(words: Sequence[bytes]) -> bytes:
    return words[1] if words[:1] == [b"entry"] == words[::2] else b""


def _there(reply: Sequence[Any]) -> There:
    _, seq, found, last_id, last_line, length, first, top_id = reply
    return There(text(seq), text(found), text(last_id), last_line, int(length), text(first), text(top_id))
