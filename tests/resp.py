"""The server's protocol and the grammar of columns, slowly: the twin of `_wire` and `_columns`.

Values to bytes, in the forms of both versions of the protocol; and what becomes of them in columns, sets, pages and
statuses, told from the values themselves, so that nothing here has to read bytes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

NOT_READ, READ, REFUSED = 0, 1, 2
LONGEST_TEXT = 1 << 16
LONGEST_MEMBER = 64
LONGEST_ERROR = 200

_DECIMAL = re.compile(rb"-?[0-9]{1,18}(\.[0-9]{1,18})?")
_EPOCH_MS = re.compile(rb"[0-9]{1,15}(\.[0-9]+)?")


@dataclass(frozen=True)
class Simple:
    """A short text in a line of its own."""

    text: bytes


@dataclass(frozen=True)
class Verbatim:
    """A text with a kind, which RESP2 sends as any other."""

    text: bytes


@dataclass(frozen=True)
class Big:
    """A number of any size, which RESP2 sends as a text."""

    text: bytes


@dataclass(frozen=True)
class Failure:
    """An error; `is_blob` if RESP3 sends it with its length."""

    text: bytes
    is_blob: bool = False


@dataclass(frozen=True)
class Null:
    """Nothing; RESP2 has two forms of it, RESP3 one."""

    is_array: bool = False


@dataclass(frozen=True)
class Members:
    """A set, which RESP2 sends as a list."""

    values: tuple["Value", ...]


@dataclass(frozen=True)
class Pairs:
    """A map, which RESP2 sends as a list."""

    values: tuple[tuple["Value", "Value"], ...]


@dataclass(frozen=True)
class Push:
    """What the server says between replies, in RESP3 only."""

    values: tuple["Value", ...]


@dataclass(frozen=True)
class Attribute:
    """What the server says about the next reply, in RESP3 only."""

    values: tuple[tuple["Value", "Value"], ...]


Value: TypeAlias = (
    bytes | int | float | bool | Simple | Verbatim | Big | Failure | Null | Members | Pairs | Sequence["Value"]
)


def _bulk(mark: bytes, text: bytes) -> bytes:
    return b"%b%d\r\n%b\r\n" % (mark, len(text), text)


def _aggregate(mark: bytes, count: int, values: Sequence[Value], version: int) -> bytes:
    return b"%b%d\r\n" % (mark, count) + b"".join(encode(value, version) for value in values)


def _flat(pairs: Sequence[tuple[Value, Value]]) -> list[Value]:
    return [value for pair in pairs for value in pair]


def encode(value: Value | Push | Attribute, version: int) -> bytes:
    """What a server sends for a value that is asked for in version 2 or 3."""
    new = version == 3
    match value:
        case bytes():
            return _bulk(b"$", value)
        case bool():
            return (b"#t\r\n" if value else b"#f\r\n") if new else b":%d\r\n" % value
        case int():
            return b":%d\r\n" % value
        case float():
            return b",%a\r\n" % value if new else _bulk(b"$", b"%a" % value)
        case Simple(text):
            return b"+%b\r\n" % text
        case Verbatim(text):
            return _bulk(b"=", b"txt:" + text) if new else _bulk(b"$", text)
        case Big(text):
            return b"(%b\r\n" % text if new else _bulk(b"$", text)
        case Failure(text, is_blob):
            return _bulk(b"!", text) if new and is_blob else b"-%b\r\n" % text
        case Null(is_array):
            return b"_\r\n" if new else b"*-1\r\n" if is_array else b"$-1\r\n"
        case Members(values):
            return _aggregate(b"~" if new else b"*", len(values), values, version)
        case Pairs(pairs):
            count = len(pairs) if new else 2 * len(pairs)
            return _aggregate(b"%" if new else b"*", count, _flat(pairs), version)
        case Push(values):
            return _aggregate(b">", len(values), values, version)
        case Attribute(pairs):
            return _aggregate(b"|", len(pairs), _flat(pairs), version)
        case _:
            return _aggregate(b"*", len(value), value, version)


def text_of(value: Value) -> bytes | None:
    """The text of a value that has one (of a number, its digits)."""
    match value:
        case bytes():
            return value
        case Simple(text) | Verbatim(text) | Big(text):
            return text
        case bool():
            return b"t" if value else b"f"
        case int():
            return b"%d" % value
        case float():
            return b"%a" % value
        case _:
            return None


# ---------------------------------------------------------------------------------------------- values of columns


def decimal_of(text: bytes) -> float | None:
    """A plain decimal, by Python's own reading; None for anything else."""
    return float(text) if _DECIMAL.fullmatch(text) else None


def epoch_ms_of(text: bytes) -> int | None:
    """Milliseconds; a fraction of one is cut off."""
    return int(text.partition(b".")[0]) if _EPOCH_MS.fullmatch(text) else None


class Names:
    """Rows of names: the first free one for a new one."""

    def __init__(self, width: int, limit: int) -> None:
        self.width, self.limit = width, limit
        self.rows: dict[bytes, int] = {}

    def row_of(self, name: bytes) -> int | None:
        """The row of a name, a new one if need be."""
        if name not in self.rows:
            fits = len(name) <= self.width and re.fullmatch(rb"[A-Za-z0-9 #._-]{1,32}", name) is not None
            if not fits or len(self.rows) >= self.limit:
                return None
            self.rows[name] = len(self.rows)
        return self.rows[name]


EMPTY: Mapping[str, object] = {"f8": math.nan, "i8": -1, "i4": -1, "u1": 0}


def field_of(kind: str, words: Sequence[str], names: Names, value: Value) -> tuple[object, bool, bool]:
    """What a column of a kind (a dtype's) holds of a value, and whether it was absent or invalid."""
    empty = EMPTY.get(kind, b"")
    if isinstance(value, Null):
        return empty, True, False
    text = text_of(value)
    found: object = None
    if text is None or len(text) >= LONGEST_TEXT:
        return empty, False, True
    if kind == "f8":
        found = decimal_of(text)
    elif kind == "i8":
        found = epoch_ms_of(text)
    elif kind == "i4":
        found = names.row_of(text)
    elif kind == "u1":
        found = words.index(text.decode()) + 1 if text in [word.encode() for word in words] else None
    elif len(text) <= int(kind[1:]):
        found = text
    return (empty, False, True) if found is None else (found, False, False)


def member_of(value: Value) -> tuple[int, bytes]:
    """Size and text of a set's member, as its cell has them."""
    text = text_of(value)
    assert text is not None
    if len(text) > LONGEST_TEXT:
        return 255, b""
    return (len(text) if len(text) <= LONGEST_MEMBER else 255), text[:LONGEST_MEMBER]


# ---------------------------------------------------------------------------------------------- changed keys


def kind_of_key(
    key: bytes, accounts: Mapping[bytes, int], shapes: Sequence[tuple[bytes, bytes]]
) -> tuple[int, int, bytes] | None:
    """Which of the three shapes a key has, of which account, and an order's id; None for any other key."""
    for tag, row in accounts.items():
        keys = [before + tag + after for before, after in shapes]
        if key in keys[:2]:
            return keys.index(key), row, b""
        if key.startswith(keys[2]) and 1 <= len(key) - len(keys[2]) <= LONGEST_MEMBER:
            return 2, row, key[len(keys[2]) :]
    return None
