"""The house's audit trail: one chain in Redis that several processes write, and a copy of it in a local file.

A batch is appended by one call if the chain still ends where the caller thinks it does; if not, the call says where it
ends, and the batch is chained anew. So nobody waits for a lock, and there is never a second chain. A batch whose
outcome is unknown can be in the trail once only, for it goes on from one entry.
"""

import os
import socket
import time
from collections.abc import Sequence

import structlog

from copyrisk import crash, keys
from copyrisk.audit import ORIGIN, AuditKind, BadLine, Draft, Entry, Link, chain, drafts_of, parse_line
from copyrisk.audit_files import TrailFile
from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.store.pipe import Pipe
from copyrisk.store.trail_stream import Course, There, TrailStream, course_of, entry_id

log = structlog.get_logger(__name__)

STREAM_LIMIT = 1_000_000
_TRIES = 200
_ENTRIES_AT_ONCE, _BYTES_AT_ONCE = 2_000, 4 << 20
_PAGE, _PULLED_AT_ONCE = 500, 500  # a page takes some 40 ms, and a tick waits for it
_FILE_RETRY_S = 1.0


class Trail:
    """The audit trail as one process sees it.

    Parameters
    ----------
    pipe : Pipe
        To a server that has the functions.
    file : TrailFile or None
        A local copy of the whole chain, which this process keeps.
    writer : str
        Who writes, as its entries say it.
    stream_limit : int
        How many entries the stream keeps, if the file has the others; without a file it keeps all.
    """

    def __init__(
        self, pipe: Pipe, *, file: TrailFile | None = None, writer: str, stream_limit: int = STREAM_LIMIT
    ) -> None:
        self._stream, self._file, self._writer, self._stream_limit = TrailStream(pipe), file, writer, stream_limit
        self._there: There | None = None
        self._known: Link | None = None  # the last entry that we know of
        self._unsure: tuple[list[Draft], list[bytes], Link] | None = None
        self._failed_s: float | None = None

    @property
    def file_lag(self) -> int:
        """How many entries, as far as is known, are not in the file yet; 0 without a file."""
        if self._file is None or self._known is None:
            return 0
        return max(0, self._known.seq - (self._file.head or ORIGIN).seq)

    def append(self, entries: Sequence[Entry]) -> list[int]:
        """Write entries; when it returns they are in Redis, and on the disk if there is a file that can be written.

        Returns
        -------
        list of int
            The number of each (of the first part of what is said in parts).

        Raises
        ------
        StoreError, StoreUnavailable
            Nothing may be done that rests on them. They may be there or not; the same entries, appended next, are
            there once.
        Refused
            `entry_too_large`, `entry_unwritable`: none of them is there.
        """
        drafts: list[Draft] = []
        places = []
        for entry in entries:
            places.append(len(drafts))
            drafts += drafts_of(entry, self._writer)
        seqs: list[int] = []
        start = size = 0
        for i, draft in enumerate(drafts, 1):
            size += sum(len(piece) for piece in draft[:3])
            if i == len(drafts) or i - start == _ENTRIES_AT_ONCE or size > _BYTES_AT_ONCE:
                seqs += self._append(drafts[start:i])
                start, size = i, 0
        return [seqs[place] for place in places]

    def follow(self) -> int:
        """Copy into the file what others have written; returns how many entries.

        If the trail in Redis was lost or is another one, an entry says so.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        if self._file is None:
            return 0
        before = self._file_end()
        there = self._there = self._stream.look()
        course = self._course(there)
        if course.reason and course.tip != ORIGIN:
            self._append([])
        elif course.tip != ORIGIN:
            self._known = course.tip
            self._sync()
            self._trim(there)
        after = self._file_end()
        return 0 if before is None or after is None else after.seq - before.seq

    # ---- Redis

    def _append(self, drafts: list[Draft]) -> list[int]:
        if self._has_arrived(drafts):
            last = self._known
            assert last is not None
            return list(range(last.seq - len(drafts) + 1, last.seq + 1))
        for _ in range(_TRIES):
            there = self._there = self._there or self._stream.look()
            course = self._course(there)
            lines, last = chain([*self._notes(there, course), *drafts], course.tip)
            self._there, self._unsure = None, (drafts, lines, last)
            now = self._stream.put(there, lines, last, is_aside=course.is_aside) if lines else None
            self._there, self._unsure = now, None
            if now is None:
                crash.reach("trail.stored")
                self._known = last
                if lines:
                    self._there = There(str(last.seq), last.hash, entry_id(last.seq), lines[-1])
                    self._keep(course.tip, lines, last)
                return list(range(last.seq - len(drafts) + 1, last.seq + 1))
        raise StoreUnavailable("too many others write the audit trail", code="trail_busy")

    def _has_arrived(self, drafts: list[Draft]) -> bool:
        """Whether these are what was appended last, with an unknown outcome, and they have arrived."""
        if self._unsure is None:
            return False
        (unsure, lines, last), self._unsure = self._unsure, None
        is_same = len(unsure) == len(drafts) > 0 and all(map(Draft.is_same, unsure, drafts))
        if not (is_same and self._stream.is_in(lines, last)):
            return False
        self._known = last
        self._pull(last)
        self._sync()
        return True

    def _notes(self, there: There, course: Course) -> list[Draft]:
        """What is to be said before anything else, if the chain cannot simply go on."""
        if not course.reason:
            return []
        if course.tip != ORIGIN:
            log.critical("audit_trail_restarted", reason=course.reason, seq=course.tip.seq + 1)
        said = {
            "found": {"seq": there.seq, "hash": there.hash, "last_id": there.last_id, "length": there.length},
            "goes_on_from": str(course.tip),
            "known": None if self._known is None else str(self._known),
            "keeps_file": self._file is not None,
            "aside": keys.audit_aside(there.aside) if course.is_aside else None,
        }
        return drafts_of(Entry(AuditKind.RESTART, cause="trail", reason=course.reason, said=said), self._writer)

    # ---- the file

    def _course(self, there: There) -> Course:
        """How the chain goes on; with a file, from the file's end if what is there does not go on from it."""
        course, own = course_of(there, self._known), self._file_end()
        if own is None:
            return course
        known = own if self._known is None else max(own, self._known)
        if course.reason in ("empty", "unreadable"):
            return Course(known, course.reason, course.is_aside)
        is_on = self._pull(course.tip) if course.tip.seq > own.seq else self._holds(course.tip, own)
        if not is_on:
            return Course(self._file_end() or own, "other_chain", is_aside=True)
        return course if course.tip.seq >= known.seq else Course(known, course.reason or "rewound", course.is_aside)

    def _file_end(self) -> Link | None:
        """Where the chain in the file ends; `None` if there is no file, or it cannot be used now."""
        if self._file is None or self._is_waiting():
            return None
        try:
            self._file.recover()
        except (OSError, StoreError) as failure:
            self._alarm(failure)
            return None
        return self._file.head or ORIGIN

    def _holds(self, link: Link, end: Link) -> bool:
        assert self._file is not None
        try:
            return link == end or self._file.holds(link)
        except OSError as failure:
            self._alarm(failure)
            return True  # nobody can tell: the trail in Redis goes on

    def _pull(self, tip: Link) -> bool:
        """Write into the file what the stream has behind it, up to `tip`, or a part of it.

        Returns
        -------
        bool
            False if what is there does not go on from the file; true also if the file cannot be written now.
        """
        for _ in range(0, _PULLED_AT_ONCE, _PAGE):
            end = self._file_end()
            if self._file is None or end is None or end == tip:
                return True
            if end.seq >= tip.seq:
                return False
            # A new file begins with whatever the stream still has.
            lines = self._stream.lines(end.seq + 1, tip.seq, _PAGE)
            last = last_of(lines, self._file.head) or self._taken_over(lines, end)
            if last is None:
                return False
            try:
                self._file.write(lines, last)
            except OSError as failure:
                self._alarm(failure)
        return True

    def _taken_over(self, lines: Sequence[bytes], end: Link) -> Link | None:
        """The end of lines that do not go on from our file, if we go on with them all the same; else `None`.

        So we do if the stream was begun anew by another process that has a file, or behind what we have: two who insist
        each on their own chain would set one another's aside for ever.
        """
        last = last_of(lines, None)
        first = self._stream.first()
        if last is None or first is None or first.kind != AuditKind.RESTART:
            return None
        if first.link.seq <= end.seq and first.said.get("keeps_file") is not True:
            return None
        log.critical("audit_file_gap", ends=end.seq, begun_anew=first.link.seq)
        return last

    def _keep(self, before: Link, lines: Sequence[bytes], last: Link) -> None:
        """Have what was appended in the file as well, if all that was before it is there."""
        end = self._file_end()
        if self._file is None or end is None:
            return
        if end == before:
            try:
                self._file.write(lines, last)
            except OSError as failure:
                self._alarm(failure)
                return
        self._sync()

    def _sync(self) -> None:
        if self._file is None or self._is_waiting():
            return
        try:
            self._file.sync()
        except OSError as failure:
            self._alarm(failure)
            return
        crash.reach("trail.filed")
        if self._failed_s is not None:
            log.info("audit_file_written_again", lag=self.file_lag)
            self._failed_s = None

    def _trim(self, there: There) -> None:
        end = self._file_end()
        if there.length > self._stream_limit and end is not None:
            self._stream.trim(there, end.seq - self._stream_limit + 1)

    def _alarm(self, failure: Exception) -> None:
        if self._failed_s is None:
            log.critical("audit_file_not_written", reason=str(failure))
        self._failed_s = time.monotonic()

    def _is_waiting(self) -> bool:
        return self._failed_s is not None and time.monotonic() - self._failed_s < _FILE_RETRY_S


def writer_name() -> str:
    """How this process signs its entries: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def last_of(lines: Sequence[bytes], before: Link | None) -> Link | None:
    """The end of a chain that goes on from an entry (`None`: from anywhere); `None` if these lines are none."""
    for line in lines:
        try:
            entry = parse_line(line)
        except BadLine:
            return None
        if before is None and entry.link.seq == 1:
            before = ORIGIN
        if before is not None and (entry.link.seq, entry.previous) != (before.seq + 1, before.hash):
            return None
        before = entry.link
    return before if lines else None
