"""The house's audit trail as a chain: entries, each with the hash of the one before, and what is wrong with a chain.

An entry is one line of canonical JSON (sorted keys, no spaces, ASCII): `seq`, `ts_ms`, `kind`, `account`, `cause`,
`reason`, `said`, `writer`, `previous` and `hash`, which is the SHA-256 of the line without it. Pure: no store, no file.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from copyrisk.errors import CopyriskError, Refused

#: An entry is never longer; what has more to say is said in parts.
ENTRY_BYTES = 1 << 16
_WHOLE_CHARS, _PART_CHARS = 48_000, 24_000  # of `said`; quotes and backslashes of a part are escaped once more
_SAID_CHARS = 16 << 20
_WORD_CHARS, _REASON_CHARS = 200, 1_000
_NAMES = ("account", "cause", "hash", "kind", "previous", "reason", "said", "seq", "ts_ms", "writer")
_TEXTS = ("account", "cause", "kind", "previous", "reason", "writer")
_HASH_CHARS = 64
_TEXT, _SCALARS = frozenset([str]), frozenset([str, int, float, bool, type(None)])


class AuditKind(StrEnum):
    """What an entry is about; `restart`: the trail itself, where it could not simply go on."""

    WARNING = "warning"
    LIQUIDATION = "liquidation"
    CASCADE = "cascade"
    REPLICATION = "replication"
    OPERATOR = "operator"
    BRAKE = "brake"
    KILL = "kill"
    PROTECTION = "protection"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Entry:
    """A step that is about to be taken.

    Attributes
    ----------
    account : str
        `T:U`, or empty.
    cause : str
        What led to it: the id of an event, order, cascade or command.
    reason : str
        Why, as a stable word or in few words.
    said : mapping
        Whatever else was known (JSON): figures, quotes and their ages, the plan. Accounts that it is about as well are
        listed as `accounts`. Numbers that are not finite become null, decimals texts.
    ts_ms : int
        When, by the server's clock or the caller's; 0: now, by this process's.
    """

    kind: AuditKind
    account: str = ""
    cause: str = ""
    reason: str = ""
    said: Mapping[str, Any] = field(default_factory=dict)
    ts_ms: int = 0


class Link(NamedTuple):
    """Where a chain goes on: number and hash of an entry."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


#: What the first entry of a chain goes on from.
ORIGIN = Link(0, "0" * _HASH_CHARS)


def parse_link(text: str) -> Link | None:
    """The link of `SEQ:HASH`; `None` if it is none."""
    seq, _, found = text.partition(":")
    if not (seq.isascii() and seq.isdecimal() and len(seq) <= 15 and _is_hash(found)):
        return None
    return Link(int(seq), found)


def _is_hash(text: object) -> bool:
    return isinstance(text, str) and len(text) == _HASH_CHARS and set(text) <= set("0123456789abcdef")


# ---- writing


class Draft(NamedTuple):
    """An entry as far as it does not depend on its place in the chain, as pieces of its line."""

    before_hash: str
    kind: str
    before_seq: str
    ts_ms: int
    writer: str

    def is_same(self, other: "Draft") -> bool:
        """Whether it says the same, whenever it says it."""
        return self[:3] == other[:3]


def drafts_of(entry: Entry, writer: str) -> list[Draft]:
    """What is to be chained of an entry: one draft, or several parts if it says much.

    Raises
    ------
    Refused
        `entry_too_large`: more than 16 MB, or `entry_unwritable`: it cannot be said in JSON.
    """
    said = _canonical(entry.said)
    if len(said) > _SAID_CHARS:
        raise Refused(f"an audit entry says {len(said)} characters", code="entry_too_large")
    texts = [said]
    if len(said) > _WHOLE_CHARS:
        pieces = [said[i : i + _PART_CHARS] for i in range(0, len(said), _PART_CHARS)]
        texts = [_dumped({"part": i, "of": len(pieces), "text": piece}) for i, piece in enumerate(pieces, 1)]
    account, cause = _dumped(entry.account[:_WORD_CHARS]), _dumped(entry.cause[:_WORD_CHARS])
    before_hash = f'{{"account":{account},"cause":{cause},'
    kind = _dumped(AuditKind(entry.kind).value)
    reason, by = _dumped(entry.reason[:_REASON_CHARS]), _dumped(writer[:_WORD_CHARS])
    ts_ms = entry.ts_ms or time.time_ns() // 1_000_000
    return [Draft(before_hash, kind, f'"reason":{reason},"said":{text}', ts_ms, by) for text in texts]


def chain(drafts: Iterable[Draft], tip: Link) -> tuple[list[bytes], Link]:
    """The lines that go on from a link, and where the chain goes on after them."""
    seq, last, lines = tip.seq, tip.hash, []
    for draft in drafts:
        seq += 1
        rest = (
            f'"kind":{draft.kind},"previous":"{last}",{draft.before_seq},'
            f'"seq":{seq},"ts_ms":{draft.ts_ms},"writer":{draft.writer}}}'
        )
        last = sha256((draft.before_hash + rest).encode("ascii")).hexdigest()
        lines.append(f'{draft.before_hash}"hash":"{last}",{rest}'.encode("ascii"))
    return lines, Link(seq, last)


def _canonical(said: Mapping[str, Any]) -> str:
    try:
        try:
            written = _dumped(said)  # before anything walks over it: this finds what contains itself
            return written if _has_texts_as_keys(said) else _dumped(_plain(said))
        except (TypeError, ValueError):
            return _dumped(_plain(said))
    except (TypeError, ValueError, RecursionError) as fault:
        raise Refused(f"an audit entry cannot be written: {str(fault)[:80]!a}", code="entry_unwritable") from None


def _has_texts_as_keys(said: Mapping[str, Any]) -> bool:
    """Whether JSON has the keys in the order of their texts."""
    left: list[Any] = [said]
    for value in left:
        kind = type(value)
        if kind is dict:
            if not _TEXT.issuperset(map(type, value)):
                return False
            left.extend(value.values())
        elif kind is list or kind is tuple:
            left.extend(value)
        elif kind not in _SCALARS:
            return False
    return True


def _plain(value: Any) -> Any:
    """The same with texts as keys, and with nothing, which is unknown, for numbers that are not finite."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _other(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


_dumped = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_other).encode


# ---- reading


class BadLine(CopyriskError):
    """A line that no entry ever was: `unreadable`, or `changed`."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry of the trail; `said` as it stands there, and the line itself."""

    link: Link
    previous: str
    kind: str
    account: str
    cause: str
    reason: str
    said: Mapping[str, Any]
    ts_ms: int
    writer: str
    line: bytes


def parse_line(line: bytes) -> Stored:
    """The entry of a line.

    Raises
    ------
    BadLine
    """
    try:
        whole = json.loads(line.decode("ascii"))
        is_canonical = _dumped(whole).encode() == line
        seq, found, said, ts_ms = whole["seq"], whole["hash"], whole["said"], whole["ts_ms"]
        texts = [whole[name] for name in _TEXTS]
        is_typed = all(isinstance(text, str) for text in texts) and type(seq) is type(ts_ms) is int
        if not (is_typed and isinstance(said, dict) and tuple(sorted(whole)) == _NAMES and _is_hash(found) and seq > 0):
            raise ValueError("not the fields of an entry")
    except (ValueError, LookupError, TypeError, RecursionError) as fault:
        raise BadLine(f"no entry: {str(fault)[:80]!a}", code="unreadable") from None
    bare = line.replace(f'"hash":"{found}",'.encode(), b"", 1)
    if not is_canonical or sha256(bare).hexdigest() != found:
        raise BadLine(f"entry {seq} does not have the hash that it says", code="changed")
    account, cause, kind, previous, reason, writer = texts
    return Stored(Link(seq, found), previous, kind, account, cause, reason, said, ts_ms, writer, line)


def joined(entries: Iterable[Stored]) -> Iterator[tuple[Stored, Mapping[str, Any]]]:
    """Entries with all that they say: parts are put together, and come as the first of them."""
    parts: list[Stored] = []
    for entry in entries:
        number, count = entry.said.get("part"), entry.said.get("of")
        if not isinstance(number, int) or not isinstance(count, int) or "text" not in entry.said:
            yield from _as_they_are(parts)
            parts = []
            yield entry, entry.said
            continue
        if number != len(parts) + 1:
            yield from _as_they_are(parts)
            parts = []
        parts.append(entry)
        if number == count == len(parts):
            yield parts[0], _joined(parts)
            parts = []
    yield from _as_they_are(parts)


def _as_they_are(parts: Sequence[Stored]) -> Iterator[tuple[Stored, Mapping[str, Any]]]:
    return ((entry, entry.said) for entry in parts)


def _joined(parts: Sequence[Stored]) -> Mapping[str, Any]:
    try:
        said = json.loads("".join(str(entry.said["text"]) for entry in parts))
    except (ValueError, RecursionError):
        return parts[0].said
    return said if isinstance(said, dict) else parts[0].said
