"""`audit`: the house's trail verified, shown, exported; and what operators do, written into it before it is done."""

import argparse
import csv
import getpass
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from copyrisk import identifiers
from copyrisk.audit import AuditKind, BadLine, Entry, Link, Stored, joined, parse_line, parse_link
from copyrisk.audit_check import Checked, Head, Line, check_trail, stream_place
from copyrisk.audit_files import read_lines
from copyrisk.errors import ConfigError
from copyrisk.gateway.messages import printable
from copyrisk.roles import client_of
from copyrisk.settings import Settings
from copyrisk.store.pipe import Pipe
from copyrisk.store.trail import Trail, writer_name
from copyrisk.store.trail_search import is_about
from copyrisk.store.trail_stream import TrailStream, entry_id

_PAGE = 1_000
_SHOWN_CHARS = 4_000
_SETTLE_S, _SETTLE_STEP_S = 2.0, 0.1
_COLUMNS = ("seq", "time", "kind", "account", "cause", "reason", "said", "writer", "previous", "hash")
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")


def record_act(pipe: Pipe, act: str, reason: str = "", *, user: str | None = None, **said: Any) -> None:
    """Write into the audit trail what an operator is about to do, and who that is.

    Parameters
    ----------
    pipe : Pipe
        To a server that has the functions.
    user : str or None
        Who does it; `None`: the user who runs this process.
    **said
        What it is about; accounts (`T:U`) as `accounts`.

    Raises
    ------
    StoreError, StoreUnavailable
        It may not be done.
    """
    entry = Entry(AuditKind.OPERATOR, cause=act, reason=reason, said={"user": user or operator_name(), **said})
    Trail(pipe, writer=writer_name()).append([entry])


def operator_name() -> str:
    """The user who runs this process."""
    try:
        return printable(getpass.getuser(), 80)
    except (KeyError, OSError):  # nobody whom the system knows
        return f"uid {os.getuid()}"


def add_audit_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`audit verify`, `audit show`, `audit export`."""
    audit = commands.add_parser("audit", help="the trail of warnings, liquidations, cascades, copies and operators")
    actions = audit.add_subparsers(dest="action", metavar="ACTION", required=True)
    verify = actions.add_parser("verify", help="find any change, loss, swap or truncation")
    verify.add_argument("--expect", metavar="SEQ:HASH", help="an entry, as an earlier run has printed it")
    verify.add_argument("--from", type=int, default=1, dest="start", metavar="SEQ", help="look at nothing before it")
    show = actions.add_parser("show", help="entries about an account")
    show.add_argument("account", metavar="ACCOUNT", help="TYPE:ID, or 'all'")
    show.add_argument("--kind", choices=tuple(AuditKind))
    show.add_argument("--limit", type=int, default=100, metavar="N", help="the last N of them (default 100)")
    export = actions.add_parser("export", help="write entries to stdout, as they are stored or as a table")
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    export.add_argument("--until", metavar="TIME")
    for parser in (show, export):
        parser.add_argument("--since", metavar="TIME", help="2026-01-31, 2026-01-31T12:00:00Z, or milliseconds")
    for parser in (verify, show, export):
        parser.add_argument("--folder", type=Path, metavar="FOLDER", help="instead of audit.folder of the settings")


@contextmanager
def _opened(settings: Settings, options: argparse.Namespace) -> Iterator[tuple[TrailStream | None, Path | None]]:
    """The stream and the folder, as far as they are named.

    Raises
    ------
    ConfigError
    """
    given = options.folder or (None if settings.audit.folder is None else Path(settings.audit.folder))
    if given is not None and not given.is_dir():
        raise ConfigError(f"{given} is no folder", code="audit_folder_unusable")
    if settings.redis.url is None:
        if given is None:
            raise ConfigError("audit: say which server with --redis, or which folder with --folder")
        yield None, given
        return
    client = client_of(settings, settings.redis.url)
    pipe = Pipe(client)
    try:
        yield TrailStream(pipe), given
    finally:
        pipe.close()
        client.close()


# ---- verify


def _verify(settings: Settings, options: argparse.Namespace) -> int:
    expected = None if options.expect is None else parse_link(options.expect)
    if options.expect is not None and expected is None:
        raise ConfigError(f"--expect takes SEQ:HASH, not {options.expect[:100]!a}")
    if options.start < 1:
        raise ConfigError("--from takes the number of an entry, from 1 on")
    deadline_s = time.monotonic() + _SETTLE_S
    with _opened(settings, options) as (stream, folder):
        checked = _checked(stream, folder, expected, options.start)
        while _may_settle(checked) and time.monotonic() < deadline_s:
            time.sleep(_SETTLE_STEP_S)  # who keeps the file is about to write what the stream has already
            checked = _checked(stream, folder, expected, options.start)
    for finding in checked.findings:
        print(printable(f"{finding.place}: {finding.code}: {finding.message}", _SHOWN_CHARS))
    where = [
        f"{count} in the {what}"
        for count, what, is_there in ((checked.in_file, "file", folder), (checked.in_stream, "stream", stream))
        if is_there is not None
    ]
    print(f"{' and '.join(where)}, {checked.count} findings; the last entry is {checked.last or 'none'}")
    return 1 if checked.count else 0


def _may_settle(checked: Checked) -> bool:
    return 0 < checked.count <= 2 and {one.code for one in checked.findings} <= {"file_behind", "torn"}


def _checked(stream: TrailStream | None, folder: Path | None, expected: Link | None, start: int) -> Checked:
    def look() -> tuple[Head, Iterable[Line]]:
        assert stream is not None
        there = stream.look()
        lines = ((stream_place(own_id), line) for own_id, line in _pages(stream, there.last_id))
        return Head(there.head, int(there.first) if there.first.isdecimal() else 1), lines

    file = None if folder is None else _read(folder)
    return check_trail(file, None if stream is None else look, expected=expected, start=start)


def _pages(stream: TrailStream, last_id: str, start: str = "-") -> Iterator[tuple[str, bytes]]:
    """All entries of the stream up to an id."""
    while last_id:
        page = stream.page(start, last_id, _PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        start = f"({page[-1][0]}"


def _read(folder: Path) -> Iterator[Line]:
    try:
        yield from read_lines(folder)
    except OSError as failure:
        raise ConfigError(
            f"{folder} cannot be read: {failure.strerror or failure}", code="audit_folder_unusable"
        ) from None


# ---- show, export


def _entries(stream: TrailStream | None, folder: Path | None) -> Iterator[Stored]:
    """All entries: those of the file, then what only the stream has; of what is no entry, a line on stderr says so."""
    last = 0
    for place, line in () if folder is None else _read(folder):
        entry = _parsed(place, line)
        if entry is not None:
            last = entry.link.seq
            yield entry
    if stream is not None:
        for own_id, line in _pages(stream, stream.look().last_id, entry_id(last + 1) if last else "-"):
            entry = _parsed(stream_place(own_id), line)
            if entry is not None:
                yield entry


def _parsed(place: str, line: bytes) -> Stored | None:
    try:
        return parse_line(line)
    except BadLine as fault:
        print(printable(f"{place}: {fault.code}: {fault}; see audit verify", _SHOWN_CHARS), file=sys.stderr)
        return None


def _show(settings: Settings, options: argparse.Namespace) -> int:
    account = None if options.account == "all" else str(identifiers.parse_account(options.account))
    since_ms = _time_ms("--since", options.since)
    if options.limit < 1:
        raise ConfigError("--limit takes a number of entries, from 1 on")
    with _opened(settings, options) as (stream, folder):
        wanted = (
            (entry, said)
            for entry, said in joined(_entries(stream, folder))
            if entry.ts_ms >= since_ms
            and options.kind in (None, entry.kind)
            and (account is None or is_about(account, entry, said))
        )
        shown = deque(wanted, maxlen=options.limit)
    for entry, said in shown:
        words = " ".join(word for word in (entry.account, entry.reason) if word)
        text = f"{entry.link.seq}  {_clock(entry.ts_ms)}  {entry.kind}  {words}  [{entry.cause}]  {json.dumps(said)}"
        print(printable(text, _SHOWN_CHARS))
    print(f"{len(shown)} entries")
    return 0


def _export(settings: Settings, options: argparse.Namespace) -> int:
    since_ms, until_ms = _time_ms("--since", options.since), _time_ms("--until", options.until, 1 << 62)
    with _opened(settings, options) as (stream, folder):
        wanted = (entry for entry in _entries(stream, folder) if since_ms <= entry.ts_ms <= until_ms)
        try:
            if options.format == "jsonl":
                sys.stdout.writelines(entry.line.decode() + "\n" for entry in wanted)
            else:
                table = csv.writer(sys.stdout, lineterminator="\n")
                table.writerow(_COLUMNS)
                table.writerows(_cells(entry, said) for entry, said in joined(wanted))
            sys.stdout.flush()
        except BrokenPipeError:  # who reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    return 0


def _cells(entry: Stored, said: Mapping[str, Any]) -> list[str]:
    """A row of a table; what a spreadsheet would take for a formula begins with an apostrophe."""
    seq, own_hash = entry.link
    cells = [str(seq), _clock(entry.ts_ms), entry.kind, entry.account, entry.cause, entry.reason]
    cells += [json.dumps(said, separators=(",", ":")), entry.writer, entry.previous, own_hash]
    return [f"'{cell}" if cell.startswith(_FORMULA_SIGNS) else cell for cell in cells]


def _time_ms(flag: str, given: str | None, otherwise: int = 0) -> int:
    if given is None:
        return otherwise
    if given.isascii() and given.isdecimal() and len(given) <= 15:
        return int(given)
    try:
        moment = datetime.fromisoformat(given)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ConfigError(f"{flag} takes a time such as 2026-01-31T12:00:00Z, not {given[:80]!a}") from None


def _clock(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1e3, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # no time that a calendar has
        return str(ms)


def _audit(settings: Settings, options: argparse.Namespace) -> int:
    return _ACTIONS[options.action](settings, options)


_ACTIONS: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
    "verify": _verify,
    "show": _show,
    "export": _export,
}
AUDITING: dict[str, Callable[[Settings, argparse.Namespace], int]] = {"audit": _audit}
