"""Replies in any pieces, requests and pushed messages: equal to what a slow twin says, and safe from what lies."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import cycle
from pathlib import Path
from typing import Any

import hiredis
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st

from copyrisk import layout
from copyrisk._columns import Columns
from copyrisk._index import TextIndex
from copyrisk._pack import Requests
from copyrisk._wire import FAULTS, NOT_READ, READ, READ_COUNT, REFUSED_REPLY, Replies
from tests import resp
from tests.resp import Attribute, Big, Failure, Members, Null, Pairs, Push, Simple, Value, Verbatim, encode

WORDS = {"side": ("BUY", "SELL", "BUY_LIMIT"), "state": ("a" * 24, "OPEN")}
FIELDS = (
    *(("price", "f8"), ("side", "u1"), ("ts", "i8"), ("symbol", "i4"), ("note", "S7")),
    *(("state", "u1"), ("swap", "f8"), ("bare", "u1")),
)
READING = [("absent", "u4"), ("invalid", "u4"), ("reply", "u1")]
DTYPE = np.dtype([*FIELDS, *READING], align=True)
COLUMNS = Columns(DTYPE, WORDS)
NAME_WIDTH, NAME_LIMIT = 12, 9
LONG = resp.LONGEST_TEXT + 1
MAX_PUSHED = 8 << 20

ACCOUNTS = {b"live:1": 0, b"live:12": 1, b"demo:1": 2}
SHAPES = ((b"user:{", b"}:config"), (b"index:{", b"}"), (b"user:{", b"}:holding:"))


@dataclass
class Section:
    """Replies of one kind, and what is pushed before each."""

    kind: str
    replies: list[Value]
    before: list[list[Push | Attribute]]


@dataclass
class Outcome:
    """All that comes of some bytes."""

    fault: str = ""
    due: int = 0
    sections: list[Any] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    error: bytes = b""
    messages: list[tuple[bytes, bytes]] = field(default_factory=list)
    changed: list[list[Any]] = field(default_factory=lambda: [[], [], [], []])
    flags: tuple[bool, bool] = (False, False)


def shown(rows: layout.Rows) -> list[Any]:
    """Rows as tuples in which equal numbers have equal bits."""
    return [tuple(value.hex() if isinstance(value, float) else value for value in row) for row in rows.tolist()]


def accounts() -> TextIndex:
    index = TextIndex(16)
    for tag, row in ACCOUNTS.items():
        assert index.put(tag) == row
    return index


class Reading:
    """The parser with the arrays that were announced to it."""

    def __init__(self, sections: Sequence[tuple[str, int]]) -> None:
        self.names = TextIndex(NAME_WIDTH, NAME_LIMIT)
        self.replies = Replies(self.names)
        self.outs: list[tuple[str, Any]] = []
        for kind, count in sections:
            out: Any = None
            if kind == "rows":
                out = np.zeros(count, DTYPE)
                self.replies.expect_rows(COLUMNS, out)
            elif kind == "members":
                out = np.zeros(count, layout.MEMBERS)
                self.replies.expect_members(out)
            elif kind == "statuses":
                out = np.zeros(count, np.uint8)
                self.replies.expect_statuses(out)
            else:
                self.replies.expect_page()
            self.outs.append((kind, out))
        assert self.replies.due == sum(count for _, count in sections)

    def feed(self, data: bytes, sizes: Sequence[int] = (1 << 30,)) -> str:
        """Feed in pieces of these sizes, over and over; why it ended, if it did before the end."""
        at, turns = 0, cycle(sizes)
        while at < len(data):
            room = self.replies.room()
            n = min(next(turns), len(room), len(data) - at)
            room[:n] = data[at : at + n]
            before = self.replies.due
            fault = ""
            try:
                self.replies.fed(n)
            except ValueError as error:
                fault = str(error)
            assert fault == FAULTS[self.replies.fault]
            if fault:
                return fault
            assert 0 <= self.replies.due <= before
            at += n
        return ""

    def outcome(self, fault: str = "") -> Outcome:
        replies, cells = self.replies, self.replies.take_members()
        sections: list[Any] = []
        for kind, out in self.outs:
            if kind == "page":
                sections.append(replies.take_page())
            elif kind == "rows":
                sections.append(shown(out))
            elif kind == "statuses":
                sections.append(out.tolist())
            else:
                sections.append(
                    [
                        (reply, [(cell[0], bytes(cell[1:])) for cell in cells[first : first + count].tolist()])
                        for first, count, reply, _ in out.tolist()
                    ]
                )
        config, index, holding, ids, others = replies.take_changed(accounts(), *SHAPES)
        orders = [(row, cell[0], bytes(cell[1:])) for row, cell in zip(holding.tolist(), ids.tolist(), strict=True)]
        return Outcome(
            fault,
            replies.due,
            sections,
            [self.names.text(row) for row in self.names.rows()],
            replies.take_error(),
            replies.take_messages(),
            [config.tolist(), index.tolist(), orders, others],
            replies.take_flags(),
        )


def read(conversation: list[Section], data: bytes, sizes: Sequence[int] = (1 << 30,)) -> Outcome:
    reading = Reading([(section.kind, len(section.replies)) for section in conversation])
    return reading.outcome(reading.feed(data, sizes))


# ---------------------------------------------------------------------------------------------- the twin's side


def sent(conversation: list[Section], version: int) -> bytes:
    """The bytes of a server that speaks this version; the old one pushes nothing."""
    words = []
    for section in conversation:
        for before, reply in zip(section.before, section.replies, strict=True):
            words += [encode(push, version) for push in before if version == 3]
            words.append(encode(reply, version))
    return b"".join(words)


def rows_of(replies: list[Value], names: resp.Names) -> list[Any]:
    rows: Any = np.zeros(len(replies), DTYPE)
    for row, reply in zip(rows, replies, strict=True):
        for position, (name, kind) in enumerate(FIELDS):
            if isinstance(reply, Failure):
                row[name] = resp.EMPTY.get(kind, b"")
                continue
            assert isinstance(reply, list)
            row[name], absent, invalid = resp.field_of(kind, WORDS.get(name, ()), names, reply[position])
            row["absent"] |= absent << position
            row["invalid"] |= invalid << position
        row["reply"] = REFUSED_REPLY if isinstance(reply, Failure) else READ
    return shown(rows)


def members_of(reply: Value) -> tuple[int, list[tuple[int, bytes]]]:
    if isinstance(reply, Failure):
        return REFUSED_REPLY, []
    values: Any = reply.values if isinstance(reply, Members) else reply
    return READ, [(size, text.ljust(64, b"\0")) for size, text in map(resp.member_of, values)]


def page_of(reply: Value) -> tuple[bytes, list[bytes]]:
    if isinstance(reply, Failure):
        return b"", []
    assert isinstance(reply, list)
    texts = [resp.text_of(key) for key in reply[1]]
    return reply[0], [text for text in texts if text is not None and len(text) <= resp.LONGEST_TEXT]


def of_one_key(error: bytes) -> bool:
    return error.startswith(b"WRONGTYPE")


def told(reply: Any) -> int:
    if isinstance(reply, Failure):
        return REFUSED_REPLY
    return READ_COUNT if isinstance(reply, int) and not isinstance(reply, bool) and reply > 0 else READ


def expected(conversation: list[Section], version: int) -> Outcome:
    """What the values are, told without their bytes."""
    outcome, names = Outcome(), resp.Names(NAME_WIDTH, NAME_LIMIT)
    for section in conversation:
        for reply in section.replies:
            # One that concerns more than its own key goes before one that does not.
            if (
                isinstance(reply, Failure)
                and 0 < len(reply.text) <= resp.LONGEST_TEXT
                and (not outcome.error or (of_one_key(outcome.error) and not of_one_key(reply.text)))
            ):
                outcome.error = reply.text[: resp.LONGEST_ERROR]
        if section.kind == "rows":
            outcome.sections.append(rows_of(section.replies, names))
        elif section.kind == "members":
            outcome.sections.append([members_of(reply) for reply in section.replies])
        elif section.kind == "page":
            outcome.sections.append(page_of(section.replies[0]))
        else:
            outcome.sections.append([told(reply) for reply in section.replies])
    outcome.names = list(names.rows)
    if version == 3:
        for push in [push for section in conversation for before in section.before for push in before]:
            apply_push(outcome, push)
    return outcome


def apply_push(outcome: Outcome, push: Push | Attribute) -> None:
    if isinstance(push, Attribute) or not push.values:
        return
    kind, *rest = push.values
    if kind == b"message":
        channel, payload = map(resp.text_of, rest)
        assert channel is not None
        assert payload is not None
        outcome.messages.append((channel, payload if len(payload) <= resp.LONGEST_TEXT else b""))
    elif kind == b"invalidate" and isinstance(rest[0], Null):
        outcome.flags = (True, outcome.flags[1])
    elif kind == b"invalidate":
        assert isinstance(rest[0], list)
        for key in rest[0]:
            if isinstance(key, list):
                continue
            assert isinstance(key, bytes)
            found = resp.kind_of_key(key, ACCOUNTS, SHAPES)
            if found is None:
                outcome.changed[3].append(key if len(key) <= resp.LONGEST_TEXT else b"")
            elif found[0] == 2:
                outcome.changed[2].append((found[1], len(found[2]), found[2].ljust(64, b"\0")))
            else:
                outcome.changed[found[0]].append(found[1])


# ---------------------------------------------------------------------------------------------- what is drawn

digits = st.text("0123456789", min_size=1, max_size=18)
decimals = st.builds(
    lambda sign, whole, rest: f"{sign}{whole}{'.' + rest if rest else ''}".encode(),
    st.sampled_from(["", "-"]),
    digits,
    st.one_of(st.just(""), digits),
)
JUNK = (
    *b"nan inf -inf 1e5 1_000 +1 0x1 1. .1 - -.5 1.2.3 --1 -1 -0 -0.0".split(),
    *(
        b"",
        b" 1",
        b"1 ",
        b"1" * 19,
        b"9" * 18,
        b"0." + b"0" * 17 + b"1",
        b"0." + b"1" * 19,
        "٣".encode(),
        b"\0",
        b"1\0",
    ),
    *(b"1\n", b"\xff\xfe", b"\r\n$-1\r\n", b"x" * LONG, b"1" * 70_000, b"x" * (LONG - 1)),
)
TIMES = (b"0", b"1700000000123", b"9" * 15, b"9" * 16, b"1700000000123.75", b"1.", b"1." + b"0" * 90, b"-5", b".5")
KNOWN = (b"BUY", b"SELL", b"BUY_LIMIT", b"BUYS", b"BU", b"buy", b"a" * 24, b"a" * 23, b"OPEN", b"USD", b"EURUSD")
junk = st.sampled_from(JUNK)
names_drawn = st.sampled_from([b"EURUSD", b"USDJPY", b"n" * 12, b"n" * 13, *(b"N%d" % n for n in range(12))])
short_texts = st.one_of(st.sampled_from(KNOWN), st.binary(max_size=8), names_drawn)
line_texts = st.one_of(decimals, st.sampled_from([b"", b"BUY", b"EURUSD", b"x" * 300, b"1.", b"9" * 19]))
field_values = st.one_of(
    st.builds(Null, st.booleans()),
    decimals,
    st.sampled_from(TIMES),
    short_texts,
    junk,
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False, allow_infinity=False),
    st.builds(Simple, line_texts),
    st.builds(Verbatim, short_texts),
    st.builds(Big, line_texts),
    st.builds(Failure, line_texts, st.booleans()),
)
likely_values = [
    st.one_of(decimals, field_values),
    st.one_of(st.sampled_from(KNOWN), field_values),
    st.one_of(st.sampled_from(TIMES), field_values),
    st.one_of(names_drawn, field_values),
    st.one_of(short_texts, field_values),
    st.one_of(st.sampled_from(KNOWN), field_values),
    st.one_of(decimals, field_values),
    field_values,
]
failures = st.builds(Failure, st.sampled_from([b"", b"WRONGTYPE no", b"ERR " + b"x" * 300, b"OOM"]), st.booleans())
cell_texts = st.one_of(
    st.binary(max_size=10), st.sampled_from([b"", b"o" * 63, b"o" * 64, b"o" * 65, b"o" * 255, b"o" * LONG])
)
members_drawn = st.one_of(
    cell_texts, st.builds(Simple, line_texts), st.integers(0, 99), st.builds(Verbatim, cell_texts)
)
set_replies = st.one_of(
    st.builds(Members, st.lists(members_drawn, max_size=5).map(tuple)), st.lists(members_drawn, max_size=5), failures
)
scalars = st.one_of(field_values, st.booleans())
status_replies = st.one_of(
    st.just(Simple(b"OK")),
    failures,
    field_values,
    st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.builds(Members, st.lists(inner, max_size=3).map(tuple)),
            st.builds(Pairs, st.lists(st.tuples(inner, inner), max_size=2).map(tuple)),
        ),
        max_leaves=6,
    ),
)
page_replies = st.one_of(
    st.tuples(st.sampled_from([b"0", b"17", b"c" * 64, b""]), st.lists(cell_texts, max_size=4)).map(list), failures
)
TAGS = [*ACCOUNTS, b"live:2", b"", b"live:1}", b"{live:1"]
ORDERS = [b"", b"7", b"o" * 64, b"o" * 65, b"o" * 300, b"a}:config", b"\0"]
tags, orders = st.sampled_from(TAGS), st.sampled_from(ORDERS)
keys_drawn = st.one_of(
    st.builds(lambda tag: b"user:{%b}:config" % tag, tags),
    st.builds(lambda tag: b"index:{%b}" % tag, tags),
    st.builds(lambda tag, order: b"user:{%b}:holding:%b" % (tag, order), tags, orders),
    st.builds(lambda key, cut: key[:cut], st.just(b"user:{live:1}:holding:7"), st.integers(0, 23)),
    st.sampled_from([b"", b"market:EURUSD", b"xuser:{live:1}:config", b"index:{live:1}}", b"k" * LONG]),
)
pushes = st.one_of(
    st.builds(lambda keys: Push((b"invalidate", keys)), st.lists(keys_drawn, max_size=3)),
    st.just(Push((b"invalidate", Null()))),
    st.builds(lambda channel, payload: Push((b"message", channel, payload)), short_texts, cell_texts),
    st.sampled_from(
        [
            Push(()),
            Push((b"subscribe", b"c", 1)),
            Push((b"pmessage", b"*", b"c", b"payload")),
            Push(([b"message"], b"message", b"c", b"payload")),
            Push((b"invalidate", [[Null()], b"key"])),
            Push((b"monitor", [[[b"invalidate"], [b"x"]]], Null())),
            Attribute(()),
            Attribute(((Simple(b"ttl"), 3600), (b"popularity", [b"a", 1.5]))),
        ]
    ),
)
interludes: st.SearchStrategy[list[Any]] = st.lists(pushes, max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> list[Section]:
    """Sections of replies; of pages, as in life, at most one between two looks."""
    kinds = draw(st.lists(st.sampled_from(["rows", "members", "statuses", "rows", "page"]), min_size=1, max_size=4))
    drawn: dict[str, st.SearchStrategy[Any]] = {
        "rows": st.one_of(st.tuples(*likely_values).map(list), st.tuples(*likely_values).map(list), failures),
        "members": set_replies,
        "statuses": status_replies,
        "page": page_replies,
    }
    sections = []
    for number, kind in enumerate(kinds):
        if kind == "page" and "page" in kinds[:number]:
            continue
        count = 1 if kind == "page" else draw(st.integers(1, 3))
        replies = [draw(drawn[kind]) for _ in range(count)]
        sections.append(Section(kind, replies, [draw(interludes) for _ in range(count)]))
    return sections


# Sanitizers make drawing long texts slow, which is no fault of the test.
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
piece_sizes = st.lists(st.one_of(st.integers(1, 9), st.integers(10, 5000), st.just(70_000)), min_size=1, max_size=12)


# ---------------------------------------------------------------------------------------------- laws


@given(conversations(), piece_sizes)
@settings(SLOW, max_examples=250)
def test_any_pieces_in_both_versions_are_what_the_twin_says(conversation: list[Section], sizes: list[int]) -> None:
    for version in (2, 3):
        data, outcome = sent(conversation, version), expected(conversation, version)
        assert read(conversation, data) == outcome
        assert read(conversation, data, sizes) == outcome
    event(f"{len(conversation)} sections")


@given(conversations())
@settings(SLOW, max_examples=40)
def test_byte_by_byte_is_the_same(conversation: list[Section]) -> None:
    assert read(conversation, sent(conversation, 3), [1]) == expected(conversation, 3)


SHORT = [
    Section("rows", [[b"1.5", b"BUY", b"17.5", b"EURUSD", b"note", Null(), -7, b"x"], Failure(b"ERR no")], [[], []]),
    Section(
        "members",
        [Members((b"a", b"o" * 65)), Failure(b"no", True)],
        [[Push((b"invalidate", [b"index:{live:1}"]))], [Attribute(((b"a", 1),))]],
    ),
    Section("page", [[b"17", [b"k1", b"k2"]]], [[Push((b"message", b"c", b"payload"))]]),
    Section("statuses", [Simple(b"OK"), Pairs(((b"a", [1, Null()]),)), []], [[], [], []]),
]


def test_every_truncation_waits_and_every_rest_completes_it() -> None:
    for version in (2, 3):
        data, outcome = sent(SHORT, version), expected(SHORT, version)
        for cut in range(len(data)):
            reading = Reading([(section.kind, len(section.replies)) for section in SHORT])
            assert reading.feed(data[:cut]) == ""
            assert reading.replies.due > 0
            assert reading.feed(data[cut:]) == ""
            assert reading.outcome() == outcome


def test_what_has_not_come_as_a_whole_is_not_said_to_be_read() -> None:
    data = sent(SHORT, 2)
    ends = [len(sent([Section("x", [reply], [[]])], 2)) for section in SHORT for reply in section.replies]
    for cut in range(len(data)):
        reading = Reading([(section.kind, len(section.replies)) for section in SHORT])
        reading.feed(data[:cut])
        came = sum(sum(ends[: number + 1]) <= cut for number in range(len(ends)))
        assert reading.replies.due == len(ends) - came
        (_, rows), (_, members), _, (_, statuses) = reading.outs
        said = [*rows["reply"].tolist(), *members["reply"].tolist()]
        assert [reply != NOT_READ for reply in said] == [number < came for number in range(4)], data[:cut]
        assert [reply != NOT_READ for reply in statuses.tolist()] == [number + 5 < came for number in range(3)]


mutations = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "swap"]),
        st.integers(0, 1 << 20),
        st.one_of(st.sampled_from(b"*$-+:~%>|=!_,#(\r\n0129"), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    bytes_ = bytearray(data)
    for act, where, byte in changes:
        at = where % len(bytes_) if bytes_ else 0
        if act == "insert" or not bytes_:
            bytes_.insert(at, byte)
        elif act == "delete":
            del bytes_[at : at + 1 + byte % 4]
        elif act == "set":
            bytes_[at] = byte
        else:
            bytes_[at:] = bytes_[at + 1 + byte :] + bytes_[at : at + 1 + byte]
    return bytes(bytes_)


@given(st.one_of(conversations(), st.just(SHORT)), mutations, piece_sizes)
@settings(SLOW, max_examples=250)
def test_broken_bytes_are_the_same_in_any_pieces(
    conversation: list[Section], changes: list[tuple[str, int, int]], sizes: list[int]
) -> None:
    data = mutated(sent(conversation, 3), changes)
    outcome = read(conversation, data)
    event(outcome.fault or "sound")
    assert read(conversation, data, sizes) == outcome


# ---------------------------------------------------------------------------------------------- columns


def one_row(texts: Sequence[Value], columns: Columns = COLUMNS, out: Any = None) -> Any:
    """What becomes of one row of these values."""
    reading = Reading([])
    rows = np.zeros(1, columns.dtype) if out is None else out
    reading.replies.expect_rows(columns, rows)
    assert reading.feed(encode(list(texts), 2)) == ""
    return rows[0]


NUMBER = Columns(np.dtype([("n", "f8"), ("t", "i8"), *READING], align=True), {})


@given(decimals)
@settings(max_examples=1500, deadline=None)
@example(b"9" * 18 + b"." + b"9" * 18)
@example(b"-" + b"9" * 18 + b"." + b"9" * 18)
@example(b"0." + b"0" * 17 + b"1")
@example(b"9007199254740993")  # 2**53 + 1: half-way, to even
@example(b"9007199254740995")
@example(b"9007199254740993." + b"0" * 17 + b"1")  # a hair above half-way
@example(b"9007199254740992.9999")
@example(b"18014398509481983.999999999999999999")  # rounds up to the next power of two
@example(b"0.1")
@example(b"-0.0")
@example(b"0" * 18 + b"." + b"0" * 18)
@example(b"4503599627370497.5")
@example(b"9007199254740991.5")
def test_decimals_are_those_of_python_to_the_last_bit(text: bytes) -> None:
    row = one_row([text, Null()], NUMBER)
    assert struct.pack("<d", row["n"]) == struct.pack("<d", float(text))
    assert row["invalid"] == 0


@given(st.integers(2**52, 2**53 - 1), st.integers(-18, 6), st.sampled_from([-1, 0, 1]))
@settings(max_examples=500, deadline=None)
def test_decimals_next_to_a_half_way_point_are_rounded_as_python_does(integer: int, power: int, nudge: int) -> None:
    """The point half-way between two doubles, and the nearest decimals of 18 places on both sides of it."""
    half_way = Fraction(2 * integer + 1) * Fraction(2) ** (power - 1)
    scaled = int(half_way * 10**18) + nudge
    text = f"{scaled // 10**18}.{scaled % 10**18:018d}"
    assume(len(text) <= 18 + 1 + 18)
    event("exactly" if half_way * 10**18 == scaled else "next to it")
    assert one_row([text.encode(), Null()], NUMBER)["n"].item().hex() == float(text).hex()


number_texts = st.one_of(
    st.text("0123456789.-+eE_ \n\0xinfa", max_size=8).map(str.encode),
    st.binary(max_size=5),
    junk,
    st.sampled_from(TIMES),
)


@given(number_texts)
@settings(max_examples=500, deadline=None)
def test_the_grammar_of_numbers_and_times_is_the_twins(text: bytes) -> None:
    row = one_row([text, text], NUMBER)
    number, time = resp.decimal_of(text), resp.epoch_ms_of(text)
    if len(text) >= resp.LONGEST_TEXT:
        number = time = None
    assert row["invalid"] == (number is None) + 2 * (time is None)
    assert row["absent"] == 0
    assert row["n"].item().hex() == (float("nan") if number is None else number).hex()
    assert row["t"] == (-1 if time is None else time)


def test_an_array_can_be_used_again() -> None:
    """What stood in a row shines through nowhere."""
    texts: list[Value] = [b"1.5", b"BUY", b"17", b"EURUSD", b"noted", b"OPEN", b"2", Null()]
    shorter: list[Value] = [Null(), b"-", Null(), b"", b"no", b"-", b"x", Null()]
    for values in (texts, shorter):
        used, new = np.zeros(1, DTYPE), np.zeros(1, DTYPE)
        used.view(np.uint8)[:] = 0xA5
        one_row(values, out=used)
        one_row(values, out=new)
        assert shown(used) == shown(new)


def test_a_refused_row_used_again_has_no_bits_of_the_last_reply() -> None:
    reading, used = Reading([]), np.zeros(1, DTYPE)
    used["absent"] = used["invalid"] = 3
    reading.replies.expect_rows(COLUMNS, used)
    assert reading.feed(b"-ERR no\r\n") == ""
    assert (used["absent"][0], used["invalid"][0], used["reply"][0]) == (0, 0, REFUSED_REPLY)


def test_thirty_two_columns_have_a_bit_each() -> None:
    dtype = np.dtype([*((f"c{n}", "f8") for n in range(32)), *READING], align=True)
    row = one_row([Null() if n % 2 else b"x" for n in range(32)], Columns(dtype, {}))
    assert row["absent"] == 0xAAAAAAAA
    assert row["invalid"] == 0x55555555
    many = np.dtype([*((f"c{n}", "f8") for n in range(33)), *READING], align=True)
    with pytest.raises(ValueError, match="at most 32"):
        Columns(many, {})


@pytest.mark.parametrize("words", [["x"] * 17, [""], ["x" * 25]])
def test_words_have_their_bounds(words: list[str]) -> None:
    with pytest.raises(ValueError, match="at most 16 words"):
        Columns(DTYPE, {"side": words})


@pytest.mark.parametrize("size", [4095, 4096, 4097, resp.LONGEST_TEXT, resp.LONGEST_TEXT + 1])
def test_a_wide_column_holds_a_long_text(size: int) -> None:
    columns = Columns(np.dtype([("text", "S60000"), *READING], align=True), {})
    row = one_row([b"x" * size], columns)
    assert row["text"] == (b"x" * size if size <= 60_000 else b"")
    assert row["invalid"] == (size > 60_000)


def test_columns_say_what_to_ask_for() -> None:
    assert COLUMNS.fields == tuple(name for name, _ in FIELDS)
    assert COLUMNS.dtype == DTYPE


# ---------------------------------------------------------------------------------------------- faults

FIELDS_SENT = b"*8\r\n" + 7 * b"$1\r\n1\r\n"
AGGREGATES = [b"*", b"~", b"%", b">", b"|"]
NOT_ROWS = [b"+OK\r\n", b":1\r\n", b"$1\r\nx\r\n", b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"*0\r\n", b"*7\r\n", b"*9\r\n"]
FAULTY: list[tuple[str, bytes, str]] = [
    *(("rows", reply, "out_of_step") for reply in (*NOT_ROWS, b"~8\r\n", b"%4\r\n", b",1.5\r\n", b"#t\r\n", b"(1\r\n")),
    ("rows", b"$%d\r\n" % LONG + b"x" * LONG + b"\r\n", "out_of_step"),
    *(("rows", FIELDS_SENT + mark + b"1\r\n", "out_of_step") for mark in AGGREGATES),
    *(("rows", FIELDS_SENT + mark + b"0\r\n", "out_of_step") for mark in AGGREGATES),
    *(("members", reply, "out_of_step") for reply in (*NOT_ROWS[:6], b"%1\r\n")),
    *(("members", b"*2\r\n" + reply, "out_of_step") for reply in (b"_\r\n", b"$-1\r\n", b"-ERR\r\n", b"!1\r\nx\r\n")),
    *(("members", b"~1\r\n" + mark + b"1\r\n", "out_of_step") for mark in AGGREGATES),
    *(("page", reply, "out_of_step") for reply in (*NOT_ROWS, b"*1\r\n", b"*3\r\n", b"~2\r\n", b"%1\r\n")),
    *(
        ("page", b"*2\r\n" + cursor, "out_of_step")
        for cursor in (b"_\r\n", b"*0\r\n", b"-x\r\n", b"$65\r\n%65d\r\n" % 0)
    ),
    ("page", b"*2\r\n$%d\r\n" % LONG + b"x" * LONG + b"\r\n", "out_of_step"),
    *(
        ("page", b"*2\r\n$1\r\n0\r\n" + keys, "out_of_step")
        for keys in (b"$1\r\nx\r\n", b"_\r\n", b"*-1\r\n", b"-x\r\n")
    ),
    *(
        ("page", b"*2\r\n$1\r\n0\r\n*1\r\n" + key, "out_of_step")
        for key in (b"*0\r\n", b"_\r\n", b"-x\r\n", b"$-1\r\n")
    ),
    *(("statuses", b"*1\r\n" + mark + b"1\r\n", "out_of_step") for mark in (b">", b"|")),
    *((kind, b"x\r\n", "unknown_type") for kind in ("rows", "members", "page", "statuses", "none")),
    *(
        ("statuses", line + b"\r\n", "unknown_type")
        for line in (b"", b"OK", b" +OK", b"\0", b"\xff", b";4", b".", b"&1")
    ),
    ("rows", FIELDS_SENT + b"@\r\n", "unknown_type"),
    *(
        ("statuses", mark + size + b"\r\n", "bad_length")
        for mark in (b"$", b"=", b"!", *AGGREGATES)
        for size in (b"", b" 1", b"1 ", *b"- -2 x 1x +1 ? -0x 2147483648".split(), b"9" * 18, b"9" * 19)
    ),
    *(("statuses", mark + b"-1\r\n", "bad_length") for mark in (b"=", b"!", b"~", b"%", b">", b"|")),
    *(("statuses", b"_" + rest + b"\r\n", "bad_length") for rest in (b"x", b"1", b" ")),
    *(("statuses", b"=3\r\nabc\r\n", "bad_length"), ("statuses", b"=0\r\n\r\n", "bad_length")),
    *(("statuses", b"$3\r\n" + text, "bad_length") for text in (b"ab\r\n+OK\r\n", b"abcd\r\n", b"abc\n\r", b"abc\r\r")),
    *(
        ("rows", FIELDS_SENT + b"$3\r\n" + text, "bad_length")
        for text in (b"ab\r\n+OK\r\n", b"abcd\r\n", b"\r\n\r\n\r\n")
    ),
    *(("statuses", b"$%d\r\n" % LONG + b"x" * LONG + end, "bad_length") for end in (b"xx", b"x\n", b"\rx")),
    ("statuses", b"$%d\r\n" % LONG + b"x" * (LONG - 1) + b"\r\n\r", "bad_length"),
    *(("statuses", b"+a\rb\r\n", "bad_line"), ("statuses", b"+\r+\r\n", "bad_line"), ("statuses", b"\r\r", "bad_line")),
    *(("statuses", mark + b"1" * 5000, "bad_line") for mark in (b"+", b"-", b"$", b"*", b":", b"x")),
    *(("statuses", mark + b"1\r\n" + 7 * b"*1\r\n" + b"*1\r\n", "too_deep") for mark in (b"*", b"~", b">")),
    *(("statuses", 8 * (mark + b"1\r\n") + b"*0\r\n", "too_deep") for mark in (b"*", b"%")),
    *(("none", reply, "not_asked") for reply in (*NOT_ROWS, b"-ERR\r\n", b"~0\r\n", b"%0\r\n", b"!1\r\nx\r\n")),
    ("none", b"$%d\r\n" % LONG + b"x" * LONG + b"\r\n", "not_asked"),
    ("statuses", b"+OK\r\n+OK\r\n", "not_asked"),
    ("page", b"*2\r\n$1\r\n0\r\n*0\r\n*2\r\n", "not_asked"),
]
AFTERWARDS = (
    b"*8\r\n" + 8 * b"$1\r\n1\r\n" + b"~1\r\n$1\r\na\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\np\r\n"
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n>2\r\n$10\r\ninvalidate\r\n_\r\n-ERR late\r\n+OK\r\n"
)


def name_of(case: tuple[str, bytes, str]) -> str:
    kind, data, fault = case
    return f"{kind}-{fault}-{data[-24:]!r}"


@pytest.mark.parametrize("case", FAULTY, ids=name_of)
def test_what_is_out_of_step_or_broken_is_a_fault_and_ends_all(case: tuple[str, bytes, str]) -> None:
    kind, data, fault = case
    sections = [] if kind == "none" else [(kind, 1)]
    outcomes = []
    for sizes in ([1 << 30], [1], [7, 4000]):
        reading = Reading(sections)
        assert reading.feed(data, sizes) == fault
        outcomes.append(reading.outcome(fault))
        due = reading.replies.due
        # What would be in step again is not taken either.
        more = np.zeros(3, np.uint8)
        reading.replies.expect_statuses(more)
        for _ in range(3):
            assert reading.feed(AFTERWARDS) == fault
        assert reading.replies.due == due + 3
        assert not more.any()
        assert reading.replies.take_messages() == []
        assert reading.replies.take_error() == b""
        assert reading.replies.take_flags() == (False, False)
        assert reading.replies.take_changed(accounts(), *SHAPES)[4] == []
        assert len(reading.replies.take_members()) == 0
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_every_fault_has_its_case() -> None:
    assert {fault for _, _, fault in FAULTY} == set(FAULTS) - {"", "no_memory"}


def test_eight_levels_are_not_too_deep() -> None:
    reading = Reading([("statuses", 2)])
    assert reading.feed(8 * b"*1\r\n" + b":1\r\n" + 7 * b"*2\r\n:1\r\n" + b"*0\r\n") == ""
    assert reading.replies.due == 0


def test_what_is_announced_must_fit() -> None:
    replies = Reading([]).replies
    with pytest.raises(ValueError, match="dtype"):
        replies.expect_rows(COLUMNS, np.zeros(1, layout.MEMBERS))
    with pytest.raises(ValueError, match="MEMBERS"):
        replies.expect_members(np.zeros(1, DTYPE))
    with pytest.raises(ValueError, match="uint8"):
        replies.expect_statuses(np.zeros(1, np.uint16))
    announced: list[tuple[Callable[[Any], None], Any]] = [
        (lambda out: replies.expect_rows(COLUMNS, out), np.zeros(4, DTYPE)[::2]),
        (replies.expect_members, np.zeros(4, layout.MEMBERS)[::2]),
        (replies.expect_statuses, np.zeros(4, np.uint8)[::2]),
    ]
    for expect, out in announced:
        with pytest.raises(ValueError, match="contiguous"):
            expect(out)
    assert replies.due == 0


@pytest.mark.parametrize("n", [-1, (1 << 19) + 1, 1 << 40])
def test_no_more_is_fed_than_there_was_room_for(n: int) -> None:
    replies = Reading([]).replies
    assert len(replies.room()) == 1 << 19
    with pytest.raises(ValueError, match="room"):
        replies.fed(n)
    assert replies.fault == 0


def test_arrays_live_as_long_as_they_are_due() -> None:
    replies = Replies(TextIndex(8))
    for _ in range(50):
        replies.expect_statuses(np.zeros(100_000, np.uint8))
    room = replies.room()
    room[:5] = b"+OK\r\n"
    replies.fed(5)
    kept = np.zeros(2, np.uint8)
    replies.expect_statuses(kept)
    for _ in range(50 * 100_000 // 50_000):
        block = b"+OK\r\n" * 50_000
        room = replies.room()
        n = min(len(block), 5 * replies.due - 5)
        room[:n] = block[:n]
        replies.fed(n)
    assert replies.due == 1
    assert kept.tolist() == [READ, NOT_READ]


def test_columns_live_as_long_as_they_are_due() -> None:
    reading, rows = Reading([]), np.zeros(2, NUMBER.dtype)
    reading.replies.expect_rows(Columns(NUMBER.dtype, {}), rows)
    others = [Columns(DTYPE, WORDS) for _ in range(50)]  # where it was, if it went
    assert reading.feed(2 * encode([b"1.5", b"17"], 2)) == ""
    assert shown(rows) == 2 * [((1.5).hex(), 17, 0, 0, READ)]
    assert len(others) == 50


def test_announcing_goes_on_while_replies_come() -> None:
    replies, outs = Replies(TextIndex(8)), []
    for number in range(200):
        out = np.zeros(3, np.uint8)
        replies.expect_statuses(out)
        outs.append(out)
        data = b"+OK\r\n-E\r\n" if number % 2 else b"+OK\r\n+OK\r\n+O"
        data = b"K\r\n" + data if number and (number - 1) % 2 == 0 else data
        room = replies.room()
        room[: len(data)] = data
        replies.fed(len(data))
    said = np.concatenate(outs)
    assert (said[: 600 - replies.due] != NOT_READ).all()
    assert (said[600 - replies.due :] == NOT_READ).all()


# ---------------------------------------------------------------------------------------------- lengths that lie


def memory() -> int:
    """Bytes of address space in use, touched or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096


@pytest.mark.parametrize(
    ("kind", "claim", "rest"),
    [
        ("members", b"*2147483647\r\n", b"$1\r\na\r\n"),
        ("members", b"~2147483647\r\n", b"$1\r\na\r\n"),
        ("members", b"~1\r\n$536870912\r\n", b"x"),
        ("rows", FIELDS_SENT + b"$536870912\r\n", b"x"),
        ("page", b"*2\r\n$1\r\n0\r\n*2147483647\r\n", b"$1\r\nk\r\n"),
        ("statuses", b"*2147483647\r\n", b":1\r\n"),
        ("statuses", b"%2147483647\r\n", b":1\r\n"),
        ("statuses", b"!2147483647\r\n", b"x"),
        ("none", b">2147483647\r\n", b"$10\r\ninvalidate\r\n"),
        ("none", b">2\r\n$10\r\ninvalidate\r\n*2147483647\r\n", b"$1\r\nk\r\n"),
        ("none", b"|2147483647\r\n", b"$1\r\nk\r\n"),
    ],
)
def test_a_claim_allocates_nothing(kind: str, claim: bytes, rest: bytes) -> None:
    reading = Reading([] if kind == "none" else [(kind, 1)])
    before = memory()
    assert reading.feed(claim) == ""
    assert reading.feed(50 * rest) == ""
    assert memory() - before < 8 << 20
    assert reading.replies.due == (kind != "none")


def test_a_text_in_pieces_is_skipped_and_marked() -> None:
    reading, piece = Reading([("rows", 1), ("members", 1), ("statuses", 1)]), b"x\r\n$-1\r\n" * 12_800
    before = memory()
    assert reading.feed(b"*8\r\n$1\r\n2\r\n$%d\r\n" % (500 * len(piece))) == ""
    for _ in range(500):
        assert reading.feed(piece) == ""
    assert memory() - before < 8 << 20
    assert reading.feed(b"\r\n$2\r\n17\r\n" + 5 * b"$-1\r\n") == ""
    row = reading.outs[0][1][0]
    assert (row["invalid"], row["absent"], row["reply"]) == (0b10, 0b11111000, READ)
    assert (row["price"], row["side"], row["ts"]) == (2.0, 0, 17)
    assert (
        reading.feed(b"~2\r\n$%d\r\n" % LONG + b"o" * LONG + b"\r\n$1\r\no\r\n!%d\r\n" % LONG + b"e" * LONG + b"\r\n")
        == ""
    )
    outcome = reading.outcome()
    assert [size for size, _ in outcome.sections[1][0][1]] == [255, 1]
    assert outcome.sections[2] == [REFUSED_REPLY]
    assert outcome.error == b""


# ---------------------------------------------------------------------------------------------- pushed messages


def test_messages_may_be_taken_in_the_middle_of_one() -> None:
    data = b"".join(encode(Push((b"message", b"c%d" % n, b"p%d" % n)), 3) for n in range(3))
    for cut in range(len(data)):
        reading = Reading([])
        reading.feed(data[:cut])
        taken = reading.replies.take_messages()
        reading.feed(data[cut:])
        assert taken + reading.replies.take_messages() == [(b"c%d" % n, b"p%d" % n) for n in range(3)]


@pytest.mark.parametrize(
    "odd", [(b"message",), (b"message", b"c"), (b"message", b"c", b"p", b"more"), (b"message", [b"c"], b"p")]
)
def test_a_message_of_another_shape_does_not_shift_the_next(odd: tuple[Value, ...]) -> None:
    reading = Reading([])
    reading.feed(encode(Push(odd), 3) + encode(Push((b"message", b"channel", b"payload")), 3))
    assert (b"channel", b"payload") in reading.replies.take_messages()


def test_changed_keys_are_sorted() -> None:
    accounts_keys = [before + tag + after for tag in TAGS for before, after in SHAPES]
    keys = [key + order for key in accounts_keys for order in ORDERS]
    keys += [key[:cut] for key in accounts_keys for cut in range(len(key))]
    push, reading = Push((b"invalidate", keys)), Reading([])
    outcome = Outcome()
    apply_push(outcome, push)
    assert reading.feed(encode(push, 3)) == ""
    assert reading.outcome().changed == outcome.changed
    assert [len(found) for found in outcome.changed[:3]] == [3, 4, 12]


def test_changed_keys_may_be_taken_in_the_middle() -> None:
    data = encode(Push((b"invalidate", [b"index:{live:1}", b"index:{live:12}", b"other"])), 3)
    for cut in range(len(data)):
        reading = Reading([])
        reading.feed(data[:cut])
        first = reading.replies.take_changed(accounts(), *SHAPES)
        reading.feed(data[cut:])
        second = reading.replies.take_changed(accounts(), *SHAPES)
        assert [*first[1], *second[1]] == [0, 1]
        assert first[4] + second[4] == [b"other"]


def invalidation(*keys: bytes) -> bytes:
    return encode(Push((b"invalidate", list(keys))), 3)


def overflow(reading: Reading, push: bytes) -> None:
    """Push more than is kept."""
    for _ in range(MAX_PUSHED // len(push) + 9):
        assert reading.feed(push) == ""


def test_more_is_pushed_than_is_kept() -> None:
    reading, before = Reading([("statuses", 1)]), memory()
    key, payload = b"k" * 60_000, b"p" * 60_000
    pushed = 0
    while pushed <= MAX_PUSHED:
        reading.feed(invalidation(key) + encode(Push((b"message", b"c", payload)), 3))
        pushed += len(key) + len(payload)
    for _ in range(600):
        reading.feed(invalidation(key) + encode(Push((b"message", b"c", payload)), 3))
    assert memory() - before < 3 * MAX_PUSHED
    assert reading.feed(b"+OK\r\n") == ""
    assert reading.replies.due == 0
    assert reading.replies.take_flags() == (False, True)
    changed, messages = reading.replies.take_changed(accounts(), *SHAPES)[4], reading.replies.take_messages()
    assert set(changed) == {key}
    assert set(messages) == {(b"c", payload)}
    assert MAX_PUSHED <= len(changed) * len(key) + len(messages) * len(payload) <= MAX_PUSHED + (1 << 18)
    assert reading.replies.take_flags() == (False, False)
    reading.feed(invalidation(b"index:{live:1}"))
    assert reading.replies.take_changed(accounts(), *SHAPES)[1].tolist() == [0]
    assert reading.replies.take_flags() == (False, False)


@pytest.mark.parametrize("taken", ["changed", "messages"])
def test_after_an_overflow_room_is_used_before_the_flags_are_asked_for(taken: str) -> None:
    reading = Reading([])
    if taken == "changed":
        overflow(reading, invalidation(b"k" * 60_000))
        reading.replies.take_changed(accounts(), *SHAPES)
    else:
        overflow(reading, encode(Push((b"message", b"c", b"p" * 60_000)), 3))
        reading.replies.take_messages()
    reading.feed(invalidation(b"user:{live:12}:config"))
    assert reading.replies.take_changed(accounts(), *SHAPES)[0].tolist() == [1]
    assert reading.replies.take_flags() == (False, True)


def test_an_attribute_is_not_taken_for_a_push() -> None:
    reading = Reading([])
    reading.feed(encode(Attribute(((b"invalidate", [b"key"]),)), 3) + encode(Attribute(((b"message", b"x"),)), 3))
    assert reading.outcome() == Outcome()


def test_a_page_that_was_refused_has_no_cursor_of_the_last() -> None:
    reading = Reading([("page", 1)])
    reading.feed(encode([b"17", [b"k"]], 2))
    assert reading.replies.take_page() == (b"17", [b"k"])
    reading.replies.expect_page()
    reading.feed(b"-ERR no\r\n")
    assert reading.replies.take_page() == (b"", [])


# ---------------------------------------------------------------------------------------------- requests

pack: Callable[..., bytes] = hiredis.pack_command  # its stub knows tuples of one word only
parts = st.binary(max_size=12)
tag_lists = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=20, unique=True)


def key_and(head: tuple[bytes, ...], tail: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """What stands before and after the key in a command."""
    command = pack((*head, b"\0key\0", *tail))
    before, _, after = command.partition(b"$5\r\n\0key\0\r\n")
    return before, after


def some_rows(index: TextIndex, data: st.DataObject) -> list[int]:
    return data.draw(st.lists(st.sampled_from(index.rows().tolist()), max_size=30))


@given(tag_lists, parts, parts, st.lists(parts, max_size=3).map(tuple), st.data())
@settings(max_examples=100, deadline=None)
def test_requests_by_row_are_those_of_hiredis(
    tags_put: list[bytes], before: bytes, after: bytes, asked: tuple[bytes, ...], data: st.DataObject
) -> None:
    index, requests = TextIndex(20), Requests()
    for tag in tags_put:
        index.put(tag)
    head, tail = key_and((b"HMGET",), asked)
    for _ in range(2):  # the buffer is used again
        rows = some_rows(index, data)
        found = requests.by_row(head, before, after, tail, index, np.array(rows, np.int32))
        packed = [pack((b"HMGET", before + index.text(row) + after, *asked)) for row in rows]
        assert found == b"".join(packed)


@given(tag_lists, parts, parts, st.lists(parts, max_size=3).map(tuple), st.data())
@settings(max_examples=100, deadline=None)
def test_requests_by_cell_are_those_of_hiredis(
    tags_put: list[bytes], before: bytes, between: bytes, asked: tuple[bytes, ...], data: st.DataObject
) -> None:
    index, requests = TextIndex(20), Requests()
    for tag in tags_put:
        index.put(tag)
    head, tail = key_and((b"DEL", b"x"), asked)
    rows = some_rows(index, data)
    ids = [data.draw(st.one_of(st.binary(max_size=9), st.just(b"o" * 64))) for _ in rows]
    cells = np.zeros((len(rows), 65), np.uint8)
    for cell, id_ in zip(cells, ids, strict=True):
        cell[0] = len(id_)
        cell[1 : 1 + len(id_)] = np.frombuffer(id_, np.uint8)
    found = requests.by_cell(head, before, between, tail, index, np.array(rows, np.int32), cells)
    keys = [before + index.text(row) + between + id_ for row, id_ in zip(rows, ids, strict=True)]
    assert found == b"".join(pack((b"DEL", b"x", key, *asked)) for key in keys)


def test_long_parts_have_room() -> None:
    index = TextIndex(255)
    row = np.array([index.put(b"t" * 255)], np.int32)
    long, cells = b"x" * 100_000, np.full((1, 65), 64, np.uint8)
    key = long + b"t" * 255 + long
    assert Requests().by_row(long, long, long, long, index, row) == b"%b$%d\r\n%b\r\n%b" % (long, len(key), key, long)
    key += bytes([64]) * 64
    assert Requests().by_cell(long, long, long, long, index, row, cells) == b"%b$%d\r\n%b\r\n%b" % (
        long,
        len(key),
        key,
        long,
    )


def test_requests_for_rows_that_are_not_used_are_refused() -> None:
    index, requests, cell = TextIndex(8), Requests(), np.ones((1, 65), np.uint8)
    index.put(b"a")
    index.put(b"b")
    index.drop(0)
    for row in (-1, 0, 2, 64, 2**31 - 1, -(2**31)):
        rows = np.array([row], np.int32)
        with pytest.raises(KeyError):
            requests.by_row(b"", b"", b"", b"", index, rows)
        with pytest.raises(KeyError):
            requests.by_cell(b"", b"", b"", b"", index, rows, cell)
    good = np.array([1], np.int32)
    with pytest.raises(KeyError):
        requests.by_cell(b"", b"", b"", b"", index, good, np.full((1, 65), 65, np.uint8))
    for cells in (np.ones((2, 65), np.uint8), np.ones((1, 64), np.uint8), np.ones((0, 65), np.uint8)):
        with pytest.raises(ValueError, match="cells"):
            requests.by_cell(b"", b"", b"", b"", index, good, cells)
    assert requests.by_row(b"", b"", b"", b"", index, good) == b"$1\r\nb\r\n"


def test_columns_that_would_be_written_unaligned_are_refused() -> None:
    with pytest.raises(ValueError, match="aligned"):
        Columns(np.dtype([("a", "u1"), ("b", "f8"), ("absent", "u4"), ("invalid", "u4"), ("reply", "u1")]), {})
