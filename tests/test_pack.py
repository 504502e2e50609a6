"""Figures to bytes: equal to Python's own formatting, to what the server's protocol says, and to writing all anew."""

import math
from collections.abc import Sequence
from typing import Any

import hiredis
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from copyrisk import layout
from copyrisk._index import TextIndex
from copyrisk._pack import PortfolioPacker, exact_text, fixed_text


def two_decimals(value: float) -> str:
    """Python's two decimals without a needless second zero."""
    text = f"{value:.2f}"
    text = text[:-1] if text.endswith("0") else text
    return "0.0" if text == "-0.0" else text


def fifteen_digits(value: float) -> str:
    """Python's fifteen significant digits, never in exponents, with at least one decimal."""
    text = f"{value or 0.0:.15g}"  # nobody owes minus nothing
    if "e" in text:
        text = f"{value:.18f}".rstrip("0")
    text = text if "." in text else f"{text}."
    return f"{text}0" if text.endswith(".") else text


cents = st.integers(-(10**15), 10**15).map(lambda n: n / 100)
halves = st.integers(-(10**9), 10**9).map(lambda n: n / 8)  # exact halves of a cent among them


@given(st.one_of(st.floats(-3.9e13, 3.9e13), cents, halves, st.floats(-1, 1)))
@settings(max_examples=500, deadline=None)
@example(0.125)
@example(-0.125)
@example(0.375)
@example(2.675)
@example(-0.0)
@example(-0.004)
@example(5e-324)
@example(-3.9e13)
@example(0.995)
@example(math.nextafter(4e13, 0))
def test_two_decimals_are_those_of_python(value: float) -> None:
    assert fixed_text(value) == two_decimals(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 4e13, -4e13, 1e300])
def test_what_has_no_cents_is_left(value: float) -> None:
    assert fixed_text(value) is None
    assert exact_text(value) is None


@given(
    st.one_of(
        st.floats(1e-4, 9.9e12), st.integers(1, 10**12).map(lambda n: n / 10**6), st.integers(0, 10**12).map(float)
    )
)
@settings(max_examples=500, deadline=None)
@example(0.1 + 0.2)
@example(1084.285548)
@example(0.09999999999999999)
@example(999.9999999999999)
@example(0.9999999999999999)
@example(9999999999999.0)
@example(math.nextafter(1e13, 0))
@example(0.0)
@example(1e-4)
@example(361.51666666666665)
def test_fifteen_digits_are_those_of_python(value: float) -> None:
    found = exact_text(value)
    if found is None:
        assert value >= 1e13 or 0 < value < 1e-4
    else:
        assert found == fifteen_digits(value)


def test_smaller_and_negative_ones_are_left() -> None:
    assert exact_text(math.nextafter(1e-4, 0)) is None
    assert exact_text(-1.0) is None
    assert exact_text(-0.0) == "0.0"


NOW_MS = 1_234_567_890_123
NAMES = tuple(f"name{number}" for number in range(13))
TIMES = (8, 9)  # places of the fields that go with every write
KEY = ("portfolio:{", "}:p")
TAGS = [b"live:0", b"demo:12", b"t", b"live:%d" % 10**30, b"x" * 64]


def index_of(tags: Sequence[bytes]) -> TextIndex:
    index = TextIndex(64)
    for tag in tags:
        index.put(tag)
    return index


class Desk:
    """A packer with its arrays, and a server that executes what it packs."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.index = index_of(TAGS[:n])
        self.figures, self.accounts = np.zeros(n, layout.FIGURES), np.zeros(n, layout.ACCOUNT)
        self.written = np.zeros(n, layout.WRITTEN)
        self.packer = PortfolioPacker(NAMES, "ok", KEY, "news")
        self.server: dict[bytes, dict[bytes, bytes]] = {}

    def set(self, row: int, numbers: Sequence[float]) -> None:
        """Equity, free margin, level, profit, used margin executed and all, balance."""
        places = ("equity", "free_margin", "margin_level_pct", "open_pnl", "used_margin_executed", "used_margin_all")
        for name, number in zip(places, numbers[:6], strict=True):
            self.figures[row][name] = number
        self.accounts[row]["balance"] = numbers[6]

    def values(self, row: int, now_ms: int) -> list[str]:
        """What each field would say, in the order of `NAMES`."""
        f, a = self.figures[row], self.accounts[row]
        fixed = [f["equity"], f["free_margin"], f["margin_level_pct"], f["open_pnl"], f["open_pnl"]]
        texts = [two_decimals(float(value)) for value in (*fixed, f["used_margin_executed"])]
        exact = [fifteen_digits(float(f[name])) for name in ("used_margin_executed", "used_margin_all")]
        return [*texts, *exact, str(now_ms), str(now_ms), two_decimals(float(a["balance"])), "ok", ""]

    def pack(self, rows: Sequence[int] | None = None, now_ms: int = NOW_MS) -> tuple[list[Any], list[int]]:
        """The commands, each as a list of words, and the outcomes."""
        chosen = np.arange(self.n, dtype=np.int32) if rows is None else np.array(rows, np.int32)
        request, outcome = self.packer.pack(chosen, self.index, self.accounts, self.figures, self.written, now_ms)
        assert outcome.dtype == np.uint8
        reader, commands = hiredis.Reader(), []
        reader.feed(request)
        while (command := reader.gets()) is not False:
            commands.append(command)
        assert not reader.has_data()
        assert request == b"".join(hiredis.pack_command(tuple(command)) for command in commands)
        for name, key, *pairs in commands[::2]:
            assert name == b"HSET"
            self.server.setdefault(key, {}).update(zip(pairs[::2], pairs[1::2], strict=True))
        return commands, outcome.tolist()


def key_of(row: int) -> bytes:
    return KEY[0].encode() + TAGS[row] + KEY[1].encode()


known = st.one_of(st.floats(-1e12, 1e12), st.sampled_from([0.0, -0.0, 0.001, -0.001, 0.004, 0.01, 1.0]))
positive = st.one_of(st.sampled_from([0.0, -0.0, 0.001, 0.0011, 1.0]), st.floats(1e-3, 1e12))
portfolios = st.tuples(known, known, known, known, positive, positive, known)
broken = st.sampled_from([math.nan, math.inf, -math.inf, 4e13, -4e13])


@given(st.lists(portfolios, min_size=1, max_size=len(TAGS)))
@settings(deadline=None)
def test_a_portfolio_that_nothing_is_known_of_is_the_command_that_python_would_pack(rows: list[Any]) -> None:
    desk = Desk(len(rows))
    for row, numbers in enumerate(rows):
        desk.set(row, numbers)
    commands, outcome = desk.pack()
    assert outcome == [1] * len(rows)
    for row in range(len(rows)):
        pairs = [word for pair in zip(NAMES, desk.values(row, NOW_MS), strict=True) for word in pair]
        assert commands[2 * row] == [b"HSET", key_of(row), *(word.encode() for word in pairs)]
        assert commands[2 * row + 1] == [b"PUBLISH", b"news", TAGS[row]]
    assert desk.pack() == ([], [0] * len(rows))
    desk.written["is_known"][0] = 0
    assert desk.pack()[1] == [1] + [0] * (len(rows) - 1)


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.one_of(
            portfolios.map(list),
            st.tuples(st.integers(0, 6), known),  # one number moves, most often by next to nothing
            st.tuples(st.sampled_from([4, 5]), positive),
            st.tuples(st.integers(0, 6), broken),
            st.just("forgotten"),
            st.just("again"),
        ),
    ),
    min_size=1,
    max_size=15,
)


@given(steps)
@settings(max_examples=300, deadline=None)
def test_writing_what_differs_is_writing_all_anew(moves: list[tuple[int, Any]]) -> None:
    """After every write the server's portfolio is what a full one of the same figures and time would be."""
    desk, numbers = Desk(3), {row: [0.0] * 7 for row in range(3)}
    said: dict[int, list[str]] = {}
    for tick, (row, move) in enumerate(moves, NOW_MS):
        if move == "forgotten":
            desk.written[row]["is_known"] = 0
        elif isinstance(move, list):
            numbers[row] = list(move)
        elif move != "again":
            numbers[row][move[0]] = move[1]
        desk.set(row, numbers[row])
        can_be_told = all(abs(n) < 4e13 for n in numbers[row]) and all(
            n == 0.0 or 1e-4 <= n < 1e13 for n in numbers[row][4:6]
        )
        was_known, before = desk.written[row]["is_known"] == 1, desk.written.copy()
        commands, outcome = desk.pack([row], tick)
        if not can_be_told:
            assert (commands, outcome) == ([], [2])
            assert (desk.written == before).all()
            continue
        values = desk.values(row, tick)
        old = said.get(row)
        same = (
            was_known
            and old is not None
            and all(old[place] == values[place] for place in range(13) if place not in TIMES)
        )
        if same and outcome == [3]:
            # Unrounded figures may differ by less than their fifteen digits tell; they are written again then.
            assert {word for command in commands[:1] for word in command[2::2]} <= {
                b"name6",
                b"name7",
                b"name8",
                b"name9",
            }
        elif same:
            assert (commands, outcome) == ([], [0])
            continue
        assert outcome == [3 if was_known else 1]
        said[row] = values
        expected = dict(zip(map(str.encode, NAMES), map(str.encode, values), strict=True))
        assert desk.server[key_of(row)] == expected
        sent = [int(name[4:]) for name in commands[0][2::2]]
        assert sent == sorted(sent)
        if was_known and old is not None:
            moved = {place for place in range(13) if old[place] != values[place]}
            assert moved | set(TIMES) <= set(sent) <= moved | set(TIMES) | {6, 7}
        else:
            assert sent == list(range(13))
        assert commands[1:] == [[b"PUBLISH", b"news", TAGS[row]]]


@pytest.mark.parametrize("place", range(7))
def test_each_figure_moves_alone(place: int) -> None:
    """Every number reaches its fields, and no other."""
    desk, numbers = Desk(1), [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0]
    desk.set(0, numbers)
    desk.pack()
    numbers[place] += 0.01
    desk.set(0, numbers)
    commands, outcome = desk.pack(now_ms=NOW_MS + 1)
    fields = {0: [0], 1: [1], 2: [2], 3: [3, 4], 4: [5, 6], 5: [7], 6: [10]}[place]
    values = desk.values(0, NOW_MS + 1)
    words = [word.encode() for at in sorted({*fields, *TIMES}) for word in (NAMES[at], values[at])]
    assert outcome == [3]
    assert commands == [[b"HSET", key_of(0), *words], [b"PUBLISH", b"news", TAGS[0]]]


def test_only_news_are_packed_and_what_cannot_be_written_is_left_alone() -> None:
    desk = Desk(4)
    assert desk.pack([0, 1, 2])[1] == [1, 1, 1]
    desk.figures["equity"] = (0.001, 0.01, math.nan, 0.0)
    before = desk.written.copy()
    commands, outcome = desk.pack([2, 1, 0])
    assert outcome == [2, 3, 0]
    assert [command[1] for command in commands[::2]] == [key_of(1)]
    assert (desk.written[[0, 2, 3]] == before[[0, 2, 3]]).all()
    assert desk.written[1] != before[1]
    desk.figures["used_margin_all"][0] = 1e-9
    assert desk.pack([0]) == ([], [2])
    assert desk.written[0] == before[0]


@pytest.mark.parametrize(
    "name",
    ["equity", "free_margin", "margin_level_pct", "open_pnl", "used_margin_executed", "used_margin_all", "balance"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1e14, 1e14])
def test_every_number_can_be_what_cannot_be_written(name: str, value: float) -> None:
    desk = Desk(1)
    (desk.accounts if name == "balance" else desk.figures)[name] = value
    assert desk.pack() == ([], [2])
    assert not desk.written.view(np.uint8).any()


def test_a_row_that_is_named_twice_is_written_once() -> None:
    assert Desk(2).pack([1, 1, 0, 1])[1] == [1, 0, 1, 0]


def test_no_rows_are_no_bytes() -> None:
    desk = Desk(1)
    assert desk.pack([]) == ([], [])


def test_long_names_keys_and_tags_have_room() -> None:
    names, long = tuple(f"{number:05d}" * 2_000 for number in range(13)), "k" * 50_000
    index = TextIndex(255)
    index.put(b"t" * 255)
    figures, accounts, written = np.zeros(1, layout.FIGURES), np.zeros(1, layout.ACCOUNT), np.zeros(1, layout.WRITTEN)
    figures["equity"] = figures["free_margin"] = figures["margin_level_pct"] = figures["open_pnl"] = -39999999999999.99
    figures["used_margin_executed"] = figures["used_margin_all"] = 0.000123456789012345
    accounts["balance"] = -39999999999999.99
    packer = PortfolioPacker(names, "ok" * 10_000, (long, long), "c" * 30_000)
    request, outcome = packer.pack(np.zeros(1, np.int32), index, accounts, figures, written, 2**63 - 1)
    assert outcome.tolist() == [1]
    assert request.endswith(b"$255\r\n" + b"t" * 255 + b"\r\n")
    reader = hiredis.Reader()
    reader.feed(request)
    command = reader.gets()
    assert command[1] == long.encode() + b"t" * 255 + long.encode()
    assert command[2::2] == [name.encode() for name in names]
    assert reader.gets() == [b"PUBLISH", b"c" * 30_000, b"t" * 255]
    assert not reader.has_data()


def test_the_room_of_the_last_request_is_used_again() -> None:
    desk = Desk(len(TAGS))
    first = desk.pack()
    desk.written["is_known"] = 0
    assert desk.pack([3])[0] == first[0][6:8]
    desk.written["is_known"] = 0
    assert desk.pack() == first


def test_arrays_that_do_not_fit_are_refused() -> None:
    desk = Desk(3)
    with pytest.raises(ValueError, match="13"):
        PortfolioPacker(("a",), "ok", KEY, "c")
    for row in (-1, 3, 2**31 - 1, -(2**31)):
        with pytest.raises(ValueError, match="rows"):
            desk.pack([0, row])
    desk.index.drop(1)
    with pytest.raises(ValueError, match="rows"):
        desk.pack([1])
    # An account without a text is no reason to read beyond the texts.
    few = index_of(TAGS[:1])
    desk.index, whole = few, desk.index
    with pytest.raises(ValueError, match="rows"):
        desk.pack([2])
    desk.index = whole
    assert not desk.written.view(np.uint8).any()
    for name in ("figures", "accounts", "written"):
        kept = getattr(desk, name)
        setattr(desk, name, kept[:2])
        with pytest.raises(ValueError, match="differ in length"):
            desk.pack([0])
        setattr(desk, name, kept)
