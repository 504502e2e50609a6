"""The audit trail in a local folder: segments of one line an entry, each named by the number of its first entry.

One process owns a folder; it writes whole lines in the chain's order, and they are on the disk when `sync` returns.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from copyrisk import crash
from copyrisk.audit import BadLine, Link, parse_line
from copyrisk.errors import ConfigError, StoreError

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 16 << 20
_SEGMENT = re.compile(r"(\d{15})\.jsonl")
_LOCK = "lock"
_TAIL_BYTES = 1 << 20


class TrailFile:
    """A folder of the trail, owned by this process until it is closed.

    Parameters
    ----------
    folder : Path
        Made if it is absent.
    segment_bytes : int
        A segment that has so many is followed by another.

    Attributes
    ----------
    head : Link or None
        Of the last entry in it; `None`: there is none.

    Raises
    ------
    ConfigError
        `audit_folder_unusable`, or `audit_folder_owned`: by another process.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder, self._segment_bytes = folder, segment_bytes
        self.head: Link | None = None
        self._file, self._name, self._size = -1, "", 0
        self._safe = ("", 0)  # the segment of the last `sync`, and how long it was
        self._is_known = False
        self._lock = _locked(folder)

    def recover(self) -> None:
        """Know what is in it: the head, and that nothing stands behind it.

        A line that was torn by a crash is cut off, and so is what a failed `sync` left unsure. Does nothing if all that
        is known already.

        Raises
        ------
        OSError
        StoreError
            `audit_file_damaged`: its last line is no entry; nothing is written behind it.
        """
        if self._is_known:
            return
        self._drop()
        self.head = None
        for name in reversed(segments(self.folder)):
            path = self.folder / name
            last = self._cut(path)
            if last is None:  # it was only begun
                path.unlink()
                continue
            try:
                self.head = parse_line(last).link
            except BadLine as fault:
                raise StoreError(f"the last line of {name}: {fault}", code="audit_file_damaged") from None
            self._open(path, os.O_WRONLY)
            break
        self._is_known = True

    def _cut(self, path: Path) -> bytes | None:
        """Take away what is no whole line, or unsure; returns the last line."""
        with path.open("r+b", buffering=0) as file:
            size = whole = file.seek(0, os.SEEK_END)
            if self._safe[0] == path.name:
                whole = min(whole, self._safe[1])
            start = max(0, whole - _TAIL_BYTES)
            tail = os.pread(file.fileno(), whole - start, start)
            lines = tail[: tail.rfind(b"\n") + 1]
            if start + len(lines) < size:
                log.warning("audit_line_torn", segment=path.name, bytes=size - start - len(lines))
                file.truncate(start + len(lines))
                os.fsync(file.fileno())
        return lines[lines[:-1].rfind(b"\n") + 1 : -1] if lines or start else None

    def write(self, lines: Sequence[bytes], last: Link) -> None:
        """Write lines behind `head`, up to `last`; they may not be on the disk yet.

        Raises
        ------
        OSError
            `recover` takes away what is there of them.
        """
        first = last.seq - len(lines) + 1
        done = 0
        try:
            while done < len(lines):
                has_gap = not done and self.head is not None and first != self.head.seq + 1
                if self._file < 0 or self._size >= self._segment_bytes or has_gap:
                    self._begin(first + done)
                part, size = [], self._size
                while done < len(lines) and size < self._segment_bytes:
                    part.append(lines[done] + b"\n")
                    size += len(part[-1])
                    done += 1
                self._append(b"".join(part))
                self._size = size
        except OSError:
            self._is_known = False
            raise
        self.head = last
        crash.reach("trail.written")

    def _append(self, data: bytes) -> None:
        seen = os.fstat(self._file)
        if seen.st_nlink == 0 or seen.st_size != self._size:
            raise OSError(f"{self._name} was changed by somebody else")
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left) :]

    def sync(self) -> None:
        """Have on the disk what was written.

        Raises
        ------
        OSError
            What was written since the last time is taken away by `recover`.
        """
        if self._file < 0:
            return
        try:
            os.fdatasync(self._file)
        except OSError:
            self._is_known = False
            raise
        self._safe = (self._name, self._size)

    def _begin(self, first_seq: int) -> None:
        self.sync()
        self._drop()
        self._open(self.folder / f"{first_seq:015d}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._safe = (self._name, 0)
        _sync_folder(self.folder)

    def _open(self, path: Path, flags: int) -> None:
        self._file = os.open(path, flags | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._name, self._size = path.name, os.fstat(self._file).st_size

    def holds(self, link: Link) -> bool:
        """Whether this entry is in it.

        Raises
        ------
        OSError
        """
        names = [name for name in segments(self.folder) if int(name[:15]) <= link.seq]
        if not names:
            return False
        place = link.seq - int(names[-1][:15])
        for number, (_, line) in enumerate(read_lines(self.folder, names[-1:])):
            if number == place:
                return f'"hash":"{link.hash}"'.encode() in line and f'"seq":{link.seq},'.encode() in line
        return False

    def _drop(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def close(self) -> None:
        """Let another process own it."""
        self._drop()
        self._is_known = False
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _locked(folder: Path) -> int:
    lock = -1
    try:
        folder.mkdir(mode=0o750, exist_ok=True)  # a parent that is absent may be a disk that is not there
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConfigError(f"audit.folder: another process writes to {folder}", code="audit_folder_owned") from None
    except OSError as failure:
        if lock >= 0:
            os.close(lock)
        raise ConfigError(
            f"audit.folder cannot be used: {folder}: {failure.strerror or failure}", code="audit_folder_unusable"
        ) from None
    return lock


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def segments(folder: Path) -> list[str]:
    """Names of the segments in a folder, oldest first.

    Raises
    ------
    OSError
    """
    return sorted(entry.name for entry in os.scandir(folder) if _SEGMENT.fullmatch(entry.name))


def read_lines(folder: Path, names: Sequence[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Lines of segments (of all of them), each with its place; a last line without its end keeps its place `torn`.

    Raises
    ------
    OSError
    """
    for name in segments(folder) if names is None else names:
        with (folder / name).open("rb") as file:
            for number, line in enumerate(file, 1):
                place = f"{name} line {number}"
                if line.endswith(b"\n"):
                    yield place, line[:-1]
                else:
                    yield f"{place} torn", line
