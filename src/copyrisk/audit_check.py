"""What is wrong with an audit trail: its file, its stream and its head, held against one another. Pure.

The file holds the whole chain. The stream may begin later, as far as the file has what was trimmed from it, and may
have a gap only where a `restart` entry says so and the file has what is missing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from copyrisk.audit import AuditKind, BadLine, Link, Stored, parse_line

#: Where a line stands (segment and line, or entry of the stream), and the line.
Line = tuple[str, bytes]
_SHOWN = 1_000


class Finding(NamedTuple):
    """Something wrong: where, with which entry (0: not known), and what.

    Codes: `unreadable`, `changed`, `torn`, `missing`, `repeated`, `chained_elsewhere`, `differs`, `misplaced`,
    `head_differs`, `file_behind`, `stream_behind`, `expected_missing`, `expected_differs`.
    """

    place: str
    seq: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Head:
    """What the store says of the trail: its last entry, and the first one that it keeps."""

    link: Link | None
    first: int


@dataclass(slots=True)
class Checked:
    """What was looked at, and what was found.

    Attributes
    ----------
    last : Link or None
        The last entry that could be read, wherever it stands.
    count : int
        Findings, of which the first 1,000 are listed.
    """

    in_file: int = 0
    in_stream: int = 0
    last: Link | None = None
    findings: list[Finding] = field(default_factory=list)
    count: int = 0

    def add(self, place: str, seq: int, code: str, message: str) -> None:
        """Note a finding."""
        self.count += 1
        if len(self.findings) < _SHOWN:
            self.findings.append(Finding(place, seq, code, message))


class _Gap(NamedTuple):
    """Entries that are not there; `is_told`: the one behind them says that the trail was begun anew."""

    place: str
    first: int
    last: int
    is_told: bool


def check_trail(
    file: Iterable[Line] | None,
    stream: Callable[[], tuple[Head, Iterable[Line]]] | None,
    *,
    expected: Link | None = None,
    start: int = 1,
) -> Checked:
    """Hold file, stream and head against one another; `None` for what there is none of.

    Parameters
    ----------
    stream : callable or None
        Asked once the file has been read, so that what is written meanwhile is in the stream.
    expected : Link or None
        An entry as it was noted elsewhere; it must still be there.
    start : int
        What is before this entry is not looked at.
    """
    checked = Checked()
    hashes: dict[int, str] = {}
    ends: list[Link | None] = [None, None]
    for place, entry in _walk(file or (), start, checked, gaps=None):
        ends[0] = entry.link
        if entry.link.seq in hashes:
            continue  # `repeated`
        if not hashes and entry.link.seq > start:
            checked.add(place, entry.link.seq, "missing", f"the file begins with {entry.link.seq}, not {start}")
        hashes[entry.link.seq] = entry.link.hash
        checked.in_file += 1
    if stream is not None:
        head, lines = stream()
        ends[1] = _check_stream(lines, start, head, hashes, checked, has_file=file is not None)
        _check_ends(ends[0], ends[1], head, checked, has_file=file is not None)
    checked.last = max((end for end in ends if end is not None), default=None, key=lambda end: end.seq)
    if expected is not None and hashes.get(expected.seq) != expected.hash:
        code = "expected_differs" if expected.seq in hashes else "expected_missing"
        checked.add("--expect", expected.seq, code, f"entry {expected.seq} is not the one that was noted elsewhere")
    return checked


def _walk(lines: Iterable[Line], start: int, checked: Checked, gaps: list[_Gap] | None) -> Iterator[tuple[str, Stored]]:
    """Entries that can be read, from `start` on; what breaks the chain is noted, and gaps (if wanted) for later."""
    before: Link | None = None
    is_begun, is_broken = start == 1, False
    for place, line in lines:
        try:
            entry = parse_line(line)
        except BadLine as fault:
            if is_begun:
                is_broken = True
                is_torn = place.endswith(" torn")
                seq = 0 if before is None else before.seq + 1
                checked.add(
                    place, seq, "torn" if is_torn else fault.code, "an unfinished line" if is_torn else str(fault)
                )
            continue
        if entry.link.seq < start:
            continue
        if place.endswith(" torn"):
            checked.add(place, entry.link.seq, "torn", "a line without its end")
        is_begun = True
        _check_step(place, before, entry, checked, gaps, is_broken=is_broken)
        yield place, entry
        before, is_broken = entry.link, False


def _check_step(
    place: str, before: Link | None, entry: Stored, checked: Checked, gaps: list[_Gap] | None, *, is_broken: bool
) -> None:
    seq = entry.link.seq
    if before is None:
        if seq == 1 and entry.previous.strip("0"):
            checked.add(place, 1, "chained_elsewhere", "the first entry goes on from another")
        return
    if seq <= before.seq:
        checked.add(place, seq, "repeated", f"entry {seq} stands behind {before.seq}")
    elif seq > before.seq + 1 and gaps is not None and not is_broken:
        gaps.append(_Gap(place, before.seq + 1, seq - 1, entry.kind == AuditKind.RESTART))
    elif seq > before.seq + 1 and not (is_broken and seq == before.seq + 2):  # that one has been noted
        checked.add(place, seq, "missing", f"between {before.seq} and {seq} entries are missing")
    elif seq == before.seq + 1 and entry.previous != before.hash:
        message = f"entry {seq} does not go on from entry {before.seq} as it is"
        checked.add(place, seq, "chained_elsewhere", message)


def _check_stream(
    stream: Iterable[Line], start: int, head: Head, hashes: dict[int, str], checked: Checked, *, has_file: bool
) -> Link | None:
    """Returns its last entry; what only it has is put into `hashes`."""
    gaps: list[_Gap] = []
    last: Link | None = None
    own: dict[int, str] = {}
    for place, entry in _walk(stream, start, checked, gaps):
        seq, is_first = entry.link.seq, last is None
        if place != stream_place(f"{seq}-0"):
            checked.add(place, seq, "misplaced", f"entry {seq} stands under another id")
        if is_first and seq > start:
            gaps.append(_Gap(place, start, seq - 1, entry.kind == AuditKind.RESTART or seq <= head.first))
        if hashes.get(seq, entry.link.hash) != entry.link.hash:
            checked.add(place, seq, "differs", f"the file has another entry {seq}")
        own[seq] = entry.link.hash
        last = entry.link
        checked.in_stream += 1
    for gap in gaps:
        if not gap.is_told or not all(seq in hashes for seq in range(gap.first, gap.last + 1)):
            where = "the stream" if not has_file else "the file either" if gap.is_told else "the stream"
            checked.add(gap.place, gap.first, "missing", f"entries {gap.first} to {gap.last} are not in {where}")
    for seq, found in own.items():
        hashes.setdefault(seq, found)
    return last


def _check_ends(in_file: Link | None, in_stream: Link | None, head: Head, checked: Checked, *, has_file: bool) -> None:
    file_seq, stream_seq = (0 if end is None else end.seq for end in (in_file, in_stream))
    if head.link != in_stream:
        said = "none" if head.link is None else f"entry {head.link.seq}"
        message = f"the head says {said}, the stream ends at {stream_seq}, or with another entry"
        checked.add("head", min(head.link.seq if head.link else 0, stream_seq + 1), "head_differs", message)
    if has_file and file_seq < stream_seq:
        message = f"the file ends at {file_seq}, the stream at {stream_seq}: it was cut, or nobody keeps it"
        checked.add("file", file_seq + 1, "file_behind", message)
    if file_seq > stream_seq:
        message = f"the stream ends at {stream_seq}, the file at {file_seq}: it was cut, or lost"
        checked.add("stream", stream_seq + 1, "stream_behind", message)


def stream_place(entry_id: str) -> str:
    """How an entry of the stream is named."""
    return f"stream {entry_id}"
