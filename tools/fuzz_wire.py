#!/usr/bin/env python3
"""Fuzz the parser of replies: `fuzz_wire.py [options of libFuzzer] CORPUS ...`, as `tools/sanitize.py` starts it.

Without atheris: `--replay PATH ...` runs files once; `--mutate SECONDS LATEST PATH ...` changes them at random and
leaves the last input in the file LATEST if it fails.

An input is a head and what a server sends. The head: a byte for the number of sections (its low 2 bits) and for looking
at pushed messages after each piece (bit 2); for each section a byte, 2 bits for its kind, 2 for how many replies less
one; a byte for the number of piece sizes (low 3 bits), and those, each a byte, less one. In what a server sends, the
byte 0x1e and the one after it stand for as many KiB of x, so that short inputs make long texts.
"""

import random
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import numpy as np

from copyrisk import layout
from copyrisk._columns import Columns
from copyrisk._index import TextIndex
from copyrisk._wire import FAULTS, READ, Replies

STRETCH = 0x1E
KINDS = ("rows", "members", "statuses", "page")
LOOK = 4

_DTYPE = np.dtype(
    [
        *(("price", "f8"), ("side", "u1"), ("ts", "i8"), ("symbol", "i4"), ("note", "S7")),
        *(("absent", "u4"), ("invalid", "u4"), ("reply", "u1")),
    ],
    align=True,
)
_COLUMNS = Columns(_DTYPE, {"side": ("BUY", "SELL")})
_SHAPES = ((b"u:{", b"}:c"), (b"i:{", b"}"), (b"u:{", b"}:h:"))
_ACCOUNTS = TextIndex(8)
for _tag in (b"l:1", b"l:12"):
    _ACCOUNTS.put(_tag)


@dataclass(frozen=True)
class Case:
    """An input taken apart."""

    sections: tuple[tuple[str, int], ...]
    sizes: tuple[int, ...]
    looks: bool
    data: bytes


def case_of(raw: bytes) -> Case:
    """Take an input apart; one that is too short is zeros from there on."""
    head = chain(raw, repeat(0))
    first = next(head)
    sections = tuple((KINDS[byte & 3], 1 + (byte >> 2 & 3)) for byte in (next(head) for _ in range(first & 3)))
    n_sizes = next(head) & 7
    sizes = tuple(1 + next(head) for _ in range(n_sizes)) or (1 << 30,)
    return Case(sections, sizes, bool(first & LOOK), stretched(raw[2 + (first & 3) + n_sizes :]))


def stretched(data: bytes) -> bytes:
    """Write out the long texts."""
    first, *others = data.split(bytes([STRETCH]))
    return b"".join([first, *(b"x" * (1024 * part[0]) + part[1:] for part in others if part)])


class Run:
    """One parser fed with one input."""

    def __init__(self, case: Case) -> None:
        self.names = TextIndex(8, 5)
        self.replies = Replies(self.names)
        self.outs: list[Any] = []
        self.pushed: list[list[Any]] = [[], [], [], [], []]
        for kind, count in case.sections:
            if kind == "page":
                self.replies.expect_page()
                continue
            out: Any = np.zeros(count, {"rows": _DTYPE, "members": layout.MEMBERS, "statuses": np.dtype("u1")}[kind])
            self.outs.append(out)
            if kind == "rows":
                self.replies.expect_rows(_COLUMNS, out)
            elif kind == "members":
                self.replies.expect_members(out)
            else:
                self.replies.expect_statuses(out)

    def feed(self, data: bytes, sizes: Sequence[int], looks: bool) -> None:
        """Feed in pieces, up to the end or a fault."""
        at, turns = 0, cycle(sizes)
        while at < len(data):
            room = self.replies.room()
            n = min(next(turns), len(room), len(data) - at)
            assert n > 0, "no room left"
            room[:n] = data[at : at + n]
            at += n
            due, fault = self.replies.due, ""
            try:
                self.replies.fed(n)
            except ValueError as error:
                fault = str(error)
            assert fault == FAULTS[self.replies.fault]
            assert 0 <= self.replies.due <= due, "more done than due"
            if looks:
                self.look()
            if fault:
                return

    def look(self) -> None:
        """Take what was pushed."""
        changed = self.replies.take_changed(_ACCOUNTS, *_SHAPES)
        found = [*(part.tolist() for part in changed[:4]), changed[4]]
        self.pushed = [old + new for old, new in zip(self.pushed, found, strict=True)]

    def outcome(self) -> tuple[Any, ...]:
        """All that came of it."""
        self.look()
        replies, cells = self.replies, self.replies.take_members()
        for out in self.outs:
            if out.dtype == layout.MEMBERS:
                for first, count, reply, _ in out.tolist():
                    assert reply != READ or 0 <= first <= first + count <= len(cells), "members that have not come"
        names = [self.names.text(row) for row in self.names.rows()]
        return (
            *(replies.fault, replies.due, names, cells.tobytes(), replies.take_error(), replies.take_page()),
            *(self.pushed, replies.take_messages(), replies.take_flags(), [out.tobytes() for out in self.outs]),
        )


def run_one(raw: bytes) -> None:
    """Any pieces must come to the same, and after a fault nothing must come of anything."""
    case = case_of(raw)
    whole, parts = Run(case), Run(case)
    whole.feed(case.data, (1 << 30,), False)
    parts.feed(case.data, case.sizes, case.looks)
    outcome = whole.outcome()
    assert parts.outcome() == outcome, "the pieces made a difference"
    if outcome[0]:
        parts.feed(b"+OK\r\n*5\r\n$1\r\n1\r\n", (1 << 30,), False)
        assert parts.replies.fault == outcome[0]
        assert parts.replies.due == outcome[1]


# ---------------------------------------------------------------------------------------------- without atheris

_WORDS = (
    b"\r\n",
    b"$-1\r\n",
    b"*1\r\n",
    b"$1\r\n1\r\n",
    b"_\r\n",
    b">2\r\n",
    b"%1\r\n",
    b"-E\r\n",
    b"\x1eA",
    b"!1\r\nx\r\n",
)


def changed(raw: bytes, other: bytes, dice: random.Random) -> bytes:
    """An input like this one."""
    data = bytearray(raw)
    for _ in range(dice.randint(1, 5)):
        at, act = dice.randint(0, len(data)), dice.randrange(6)
        if act == 0:
            data[at:at] = dice.choice(_WORDS)
        elif act == 1:
            del data[at : at + dice.randint(1, 8)]
        elif act == 2:
            data[at : at + 1] = struct.pack("B", dice.randrange(256))
        elif act == 3:
            data[at : at + 1] = struct.pack("B", dice.choice(b"*$-+:~%>|=!_,#(\r\n0123456789"))
        elif act == 4:
            start = dice.randint(0, len(other))
            data[at:at] = other[start : start + dice.randint(1, 40)]
        else:
            data[at:at] = data[at : at + dice.randint(1, 30)]
    return bytes(data[:4096])


def files_of(paths: Sequence[str]) -> Iterator[Path]:
    """Files, and those in folders."""
    for path in map(Path, paths):
        yield from sorted(path.iterdir()) if path.is_dir() else [path]


def replay(paths: Sequence[str]) -> None:
    """Run each file."""
    files = list(files_of(paths))
    for path in files:
        try:
            run_one(path.read_bytes())
        except BaseException:
            print(f"failed: {path.name}", file=sys.stderr)
            raise
    print(f"replayed {len(files)} inputs")


def mutate(seconds: float, latest: Path, paths: Sequence[str]) -> None:
    """Run inputs like those in the files."""
    known, dice, count = [path.read_bytes() for path in files_of(paths)], random.Random(), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        raw = changed(dice.choice(known), dice.choice(known), dice)
        # Of an input that kills the process nothing else would be left.
        latest.write_bytes(raw)
        run_one(raw)
        count += 1
    latest.unlink(missing_ok=True)
    print(f"ran {count} inputs")


def main() -> None:
    """Replay, change at random, or hand over to libFuzzer."""
    match sys.argv[1:]:
        case ["--replay", *paths]:
            replay(paths)
        case ["--mutate", seconds, latest, *paths]:
            mutate(float(seconds), Path(latest), paths)
        case _:
            import atheris  # noqa: PLC0415 - the other two ways do without it

            atheris.Setup(sys.argv, run_one)
            atheris.Fuzz()


if __name__ == "__main__":
    main()
