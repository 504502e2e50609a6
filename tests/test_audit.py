"""The audit trail as a chain: what an entry is, and that nothing can be done to a chain without being found."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk.audit import (
    ENTRY_BYTES,
    ORIGIN,
    AuditKind,
    BadLine,
    Entry,
    Link,
    chain,
    drafts_of,
    joined,
    parse_line,
    parse_link,
)
from copyrisk.audit_check import Checked, Head, check_trail, stream_place
from copyrisk.errors import Refused

Lines = list[bytes]


def lines_of(count: int, tip: Link = ORIGIN) -> Lines:
    entries = [Entry(AuditKind.LIQUIDATION, "live:1", f"c{i}", "critical", {"level_pct": i / 7}) for i in range(count)]
    return chain([draft for entry in entries for draft in drafts_of(entry, "host:1")], tip)[0]


def restart(tip: Link) -> bytes:
    return chain(drafts_of(Entry(AuditKind.RESTART, reason="empty"), "host:1"), tip)[0][0]


def twin(line: bytes) -> dict[str, Any]:
    """An entry by the words of its definition."""
    said: dict[str, Any] = json.loads(line)
    bare = {name: value for name, value in said.items() if name != "hash"}
    assert sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).hexdigest() == said["hash"]
    assert json.dumps(said, sort_keys=True, separators=(",", ":")).encode() == line
    return said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.text(), st.text(), st.text(), st.dictionaries(st.text(max_size=9), JSON, max_size=4))))
@settings(max_examples=40, deadline=None)
def test_lines_are_canonical_and_chained(entries: list[tuple[str, str, str, dict[str, Any]]]) -> None:
    drafts = [draft for one in entries for draft in drafts_of(Entry(AuditKind.KILL, *one), "\u00fc:\ud800")]
    lines, last = chain(drafts, ORIGIN)
    previous = ORIGIN.hash
    for seq, line in enumerate(lines, 1):
        said, stored = twin(line), parse_line(line)
        assert len(line) <= ENTRY_BYTES and line.isascii()
        assert (said["seq"], said["previous"], said["kind"]) == (seq, previous, "kill")
        assert (stored.link, stored.previous, stored.said) == (Link(seq, said["hash"]), previous, said["said"])
        previous = said["hash"]
    assert last.hash == previous and last.seq == len(lines)
    assert not check_trail(numbered(lines), None).findings


def test_what_json_does_not_know_is_said_all_the_same() -> None:
    figures = {"level": float("nan"), "cents": np.int64(7), "all": np.array([1.5, np.inf]), "lots": Decimal("1E-2")}
    (draft,) = drafts_of(
        Entry(AuditKind.WARNING, said={**figures, "state": AuditKind.KILL, 7: b"\xff", "t": (1, 2)}), "w"
    )
    (line,) = chain([draft], ORIGIN)[0]
    assert twin(line)["said"] == {
        "level": None,
        "cents": 7,
        "all": [1.5, None],
        "lots": "0.01",
        "state": "kill",
        "7": "\\xff",
        "t": [1, 2],
    }


def circle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["again"] = found
    return found


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (circle(), "entry_unwritable"),
        ({(1, 2): {"a": float("nan")}, "b": circle()}, "entry_unwritable"),
        ({"x": "y" * (17 << 20)}, "entry_too_large"),
    ],
)
def test_what_cannot_be_written_is_refused(said: dict[Any, Any], code: str) -> None:
    with pytest.raises(Refused) as refused:
        drafts_of(Entry(AuditKind.WARNING, said=said), "w")
    assert refused.value.code == code


def test_a_cascade_of_10_000_followers_is_said_in_parts() -> None:
    said = {"followers": [{"follower": f'F{i}"\\', "lots": "0.01", "why": "\u20ac"} for i in range(10_000)]}
    entries = [Entry(AuditKind.BRAKE), Entry(AuditKind.CASCADE, said=said), Entry(AuditKind.BRAKE)]
    lines, last = chain([draft for entry in entries for draft in drafts_of(entry, "w")], ORIGIN)
    assert last.seq > 10 and max(map(len, lines)) <= ENTRY_BYTES
    found = list(joined(map(parse_line, lines)))
    assert [(entry.link.seq, words) for entry, words in found] == [(1, {}), (2, said), (last.seq, {})]
    torn = [parse_line(line) for line in (*lines[:3], *lines[4:])]
    assert [entry.link.seq for entry, _ in joined(torn)] == [1, 2, 3, *range(5, last.seq + 1)]


@pytest.mark.parametrize("text", ["", "1", "1:ab", "x:" + "0" * 64, "1:" + "0" * 63, "1:" + "G" * 64, "1:" + "0" * 65])
def test_what_is_no_link(text: str) -> None:
    assert parse_link(text) is None


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"seq":1}', b'{"seq":' + b"9" * 5_000 + b"}", b"1e999"],
)
def test_what_is_no_entry_is_unreadable(line: bytes) -> None:
    with pytest.raises(BadLine) as fault:
        parse_line(line)
    assert fault.value.code == "unreadable"


# ---- nothing is done to a chain without being found


def numbered(lines: Lines) -> list[tuple[str, bytes]]:
    return [(f"segment line {i}", line) for i, line in enumerate(lines, 1)]


def streamed(lines: Lines, ids: list[int]) -> list[tuple[str, bytes]]:
    return [(stream_place(f"{seq}-0"), line) for seq, line in zip(ids, lines, strict=True)]


def check(
    file: Lines | None, stream: list[tuple[str, bytes]], head: Link | None, first: int = 1, **more: Any
) -> Checked:
    said = Head(head, first)
    return check_trail(None if file is None else numbered(file), lambda: (said, stream), **more)


def forged(line: bytes, previous: str | None = None) -> bytes:
    """The same entry saying something else, with a hash that fits."""
    said = json.loads(line)
    said["reason"] += "!"
    said["previous"] = said["previous"] if previous is None else previous
    del said["hash"]
    own = sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({**said, "hash": own}, sort_keys=True, separators=(",", ":")).encode()


def tampered(draw: Callable[..., Any], lines: Lines) -> tuple[Lines, int]:
    """The lines after one deed, and the first place that it touched."""
    found, i = list(lines), draw(st.integers(0, len(lines) - 1))
    deed = draw(st.sampled_from(["byte", "cut", "swap", "repeat", "delete", "truncate", "forge", "insert"]))
    if deed == "byte":
        at, now = draw(st.integers(0, len(found[i]) - 1)), draw(st.integers(0, 255))
        found[i] = found[i][:at] + bytes([now if now != found[i][at] else now ^ 1]) + found[i][at + 1 :]
    elif deed == "cut":
        found[i] = found[i][: draw(st.integers(0, len(found[i]) - 1))]
    elif deed == "swap":
        k = draw(st.integers(0, len(lines) - 1).filter(lambda k: k != i))
        found[i], found[k] = found[k], found[i]
        i = min(i, k)
    elif deed == "repeat":
        found.insert(draw(st.integers(i + 1, len(lines))), lines[i])
    elif deed == "delete":
        del found[i]
    elif deed == "truncate":
        del found[i:]
    elif deed == "forge":
        found[i] = forged(found[i])
    else:
        found.insert(i + 1, forged(lines[i], json.loads(lines[i])["hash"]))
    return found, i


@given(st.data(), st.integers(2, 9))
@settings(max_examples=150, deadline=None)
def test_whatever_is_done_to_the_file_is_found_and_named(data: st.DataObject, count: int) -> None:
    lines = lines_of(count)
    kept = data.draw(st.integers(0, count - 1))
    head, ids = parse_line(lines[-1]).link, list(range(kept + 1, count + 1))
    assert not check(lines, streamed(lines[kept:], ids), head, kept + 1).findings
    found, place = tampered(data.draw, lines)
    checked = check(found, streamed(lines[kept:], ids), head, kept + 1)
    assert checked.count == len(checked.findings) > 0
    assert {one.seq for one in checked.findings} & set(range(place, place + 3)) or any(
        one.place == f"segment line {place + 1}" for one in checked.findings
    )


@given(st.data(), st.integers(2, 9), st.booleans())
@settings(max_examples=150, deadline=None)
def test_whatever_is_done_to_the_stream_is_found_and_named(data: st.DataObject, count: int, has_file: bool) -> None:
    lines = lines_of(count)
    head = parse_line(lines[-1]).link
    found, place = tampered(data.draw, lines)
    ids = [json.loads(line)["seq"] if line in lines else i for i, line in enumerate(found, 1)]
    checked = check(lines if has_file else None, streamed(found, ids), head)
    assert checked.count == len(checked.findings) > 0
    assert any(one.seq in range(place, place + 3) or f" {place + 1}-0" in one.place for one in checked.findings)


@given(st.data(), st.integers(2, 9), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_changed_head_is_found(data: st.DataObject, count: int, has_file: bool) -> None:
    lines = lines_of(count)
    links = [None, ORIGIN, Link(count, "0" * 64), *(parse_line(line).link for line in lines[:-1])]
    head = data.draw(st.sampled_from(links))
    checked = check(lines if has_file else None, streamed(lines, list(range(1, count + 1))), head)
    assert [one.code for one in checked.findings] == ["head_differs"]


@given(st.data(), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_history_that_was_rewritten_everywhere_is_found_by_what_was_noted_elsewhere(
    data: st.DataObject, count: int
) -> None:
    lines = lines_of(count)
    noted = parse_line(lines[data.draw(st.integers(0, count - 1))]).link
    ids = list(range(1, count + 1))
    assert not check(lines, streamed(lines, ids), parse_line(lines[-1]).link, expected=noted).findings
    other = chain(drafts_of(Entry(AuditKind.BRAKE), "w"), ORIGIN)[0]
    other += lines_of(count - 1, parse_line(other[0]).link)
    checked = check(other, streamed(other, ids), parse_line(other[-1]).link, expected=noted)
    assert [one.code for one in checked.findings] == ["expected_differs"]
    cut = lines[: noted.seq - 1]
    end = parse_line(cut[-1]).link if cut else None
    checked = check(cut, streamed(cut, ids[: len(cut)]), end, expected=noted)
    assert [one.code for one in checked.findings] == ["expected_missing"]


def test_a_stream_that_was_lost_is_whole_only_with_its_file() -> None:
    before = lines_of(5)
    new = restart(parse_line(before[-1]).link)
    after = lines_of(2, parse_line(new).link)
    whole, head = [*before, new, *after], parse_line(after[-1]).link
    assert not check(whole, streamed([new, *after], [6, 7, 8]), head, 6).findings
    assert not check(whole, streamed([*before[:2], new, *after], [1, 2, 6, 7, 8]), head).findings
    for file, rest, ids in (
        (None, [new, *after], [6, 7, 8]),
        (None, [*before[:2], new, *after], [1, 2, 6, 7, 8]),
        (whole, [*before[:2], *after], [1, 2, 7, 8]),
    ):
        checked = check(file, streamed(rest, ids), head)
        assert {one.code for one in checked.findings} == {"missing"}
    assert not check(None, streamed([new, *after], [6, 7, 8]), head, start=6).findings
    assert not check(whole[2:], streamed([new, *after], [6, 7, 8]), head, start=3).findings


def test_a_torn_line_and_a_stream_that_is_gone_are_named() -> None:
    lines = lines_of(3)

    def torn() -> Iterator[tuple[str, bytes]]:
        yield from numbered(lines[:2])
        yield "segment line 3 torn", lines[2][:50]

    head = Head(parse_line(lines[-1]).link, 1)
    checked = check_trail(torn(), lambda: (head, streamed(lines, [1, 2, 3])))
    assert {one.code for one in checked.findings} == {"torn", "file_behind"}
    gone = check(lines, [], None)
    assert [one.code for one in gone.findings] == ["stream_behind"] and gone.last == parse_line(lines[-1]).link
