"""Entries of the audit trail looked for backwards, a bounded number of them at a time, with a place to go on from."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from copyrisk.audit import BadLine, Stored, joined, parse_line
from copyrisk.store.trail_stream import TrailStream, entry_id

#: How many entries a call looks at, and how many characters it finds.
LOOKED_AT, SAID_CHARS = 5_000, 1_000_000
_PAGE = 500
_PARTS = 700  # of one entry, 16 MB of 24,000 characters each
#: By how much the clocks of those who write may differ.
_SKEW_MS = 60_000
_IS_PART = b'"part":'

MaySee = Callable[[Stored, Mapping[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries.

    Attributes
    ----------
    account : str
        `T:U`, which they name or list; empty: any.
    from_ms, to_ms : int
        Both included.
    before : int or None
        Only those with a lower number.
    """

    account: str = ""
    kind: str = ""
    from_ms: int = 0
    to_ms: int = 1 << 62
    before: int | None = None
    limit: int = 100


@dataclass(slots=True)
class Found:
    """What was found, newest first.

    Attributes
    ----------
    entries : list of (Stored, mapping or None)
        With all that they say; `None`: too much for one answer.
    before : int or None
        Where the next call goes on; `None`: there is no more.
    unreadable : int
        Entries that are none; `audit verify` says more.
    """

    entries: list[tuple[Stored, Mapping[str, Any] | None]] = field(default_factory=list)
    before: int | None = None
    unreadable: int = 0
    looked_at: int = 0
    chars: int = 0


def is_about(account: str, entry: Stored, said: Mapping[str, Any]) -> bool:
    """Whether an entry is about an account, which it names or lists as `accounts`."""
    listed = said.get("accounts")
    return entry.account == account or (isinstance(listed, list) and account in listed)


def search(stream: TrailStream, wanted: Wanted, may_see: MaySee) -> Found:
    """Look for entries; no more than `LOOKED_AT` are looked at, and whoever wants more goes on at `before`.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    found = Found()
    at = _newest(stream, wanted)
    while at > 0:
        page = stream.page_back(entry_id(at), _PAGE)
        if not page:
            return found
        lines, oldest_ms, at = _whole(stream, page)
        found.looked_at += len(lines)
        for entry, said in reversed(list(joined(_parsed(lines, wanted, found)))):
            if not _matches(wanted, entry, said) or not may_see(entry, said):
                continue
            _put(found, entry, said)
            if len(found.entries) >= wanted.limit or found.chars >= SAID_CHARS:
                found.before = entry.link.seq if at > 0 or entry.link.seq > 1 else None
                return found
        if oldest_ms < wanted.from_ms - _SKEW_MS:
            return found
        if found.looked_at >= LOOKED_AT:
            found.before = at + 1 if at > 0 else None
            return found
    return found


def _newest(stream: TrailStream, wanted: Wanted) -> int:
    """The number of the last entry that can be wanted, 0 for none; nothing is assumed of clocks within a minute."""
    last = stream.page_back("+" if wanted.before is None else f"({entry_id(wanted.before)}", 1)
    high = _seq(last[0][0]) if last else 0
    if not high or _ms(last[0][1]) <= wanted.to_ms + _SKEW_MS:
        return high
    first = stream.page("-", "+", 1)
    low = _seq(first[0][0]) if first else high
    while low < high:
        middle = (low + high + 1) // 2
        entry = stream.page(entry_id(middle), entry_id(high), 1)
        if not entry or _ms(entry[0][1]) > wanted.to_ms + _SKEW_MS:
            high = middle - 1
        else:
            low = middle
    return high


def _whole(stream: TrailStream, page: Sequence[tuple[str, bytes]]) -> tuple[list[tuple[str, bytes]], int, int]:
    """Lines of a page, oldest first, with those before it that belong to its first entry; its time; where to go on."""
    lines = list(reversed(page))
    first = _entry(lines[0][1])
    part = first.said.get("part") if first is not None and "text" in first.said else None
    if first is not None and isinstance(part, int) and 1 < part <= _PARTS:
        seq = first.link.seq
        lines = [*stream.page(entry_id(max(1, seq - part + 1)), f"({entry_id(seq)}", part), *lines]
    return lines, 1 << 62 if first is None else first.ts_ms, max(0, _seq(lines[0][0]) - 1)


def _parsed(lines: Sequence[tuple[str, bytes]], wanted: Wanted, found: Found) -> list[Stored]:
    """Entries of those lines that may be wanted; what is said in parts is whole only with all of them."""
    kind, account = f'"kind":"{wanted.kind}"'.encode(), wanted.account.encode()
    entries = []
    for _, line in lines:
        if (wanted.kind and kind not in line) or (account not in line and _IS_PART not in line):
            continue
        entry = _entry(line)
        if entry is None:
            found.unreadable += 1
        else:
            entries.append(entry)
    return entries


def _matches(wanted: Wanted, entry: Stored, said: Mapping[str, Any]) -> bool:
    return (
        wanted.kind in ("", entry.kind)
        and wanted.from_ms <= entry.ts_ms <= wanted.to_ms
        and (not wanted.account or is_about(wanted.account, entry, said))
    )


def _put(found: Found, entry: Stored, said: Mapping[str, Any]) -> None:
    chars = len(entry.line) if said is entry.said else len(json.dumps(said))
    is_too_long = chars > SAID_CHARS
    found.entries.append((entry, None if is_too_long else said))
    found.chars += 0 if is_too_long else chars


def _entry(line: bytes) -> Stored | None:
    try:
        return parse_line(line)
    except BadLine:
        return None


def _ms(line: bytes) -> int:
    entry = _entry(line)
    return 0 if entry is None else entry.ts_ms


def _seq(stream_id: str) -> int:
    return int(stream_id.partition("-")[0])
