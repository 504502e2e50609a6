"""Figures to bytes: equal to Python's own formatting, and to what the server's protocol says."""

import math
from typing import Any

import hiredis
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from copyrisk import fields, layout
from copyrisk._wire import PortfolioPacker, exact_text, fixed_text

cents = st.integers(-(10**15), 10**15).map(lambda n: n / 100)
halves = st.integers(-(10**9), 10**9).map(lambda n: n / 8)  # exact halves of a cent among them


@given(st.one_of(st.floats(-3.9e13, 3.9e13), cents, halves, st.floats(-1, 1)))
@example(0.125)
@example(-0.125)
@example(0.375)
@example(2.675)
@example(-0.0)
@example(-0.004)
@example(5e-324)
@example(-3.9e13)
@example(0.995)
def test_two_decimals_are_those_of_python(value: float) -> None:
    assert fixed_text(value) == fields.usd_text(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 4e13, -4e13, 1e300])
def test_what_has_no_cents_is_left(value: float) -> None:
    assert fixed_text(value) is None
    assert exact_text(value) is None


@given(
    st.one_of(
        st.floats(1e-4, 9.9e12), st.integers(1, 10**12).map(lambda n: n / 10**6), st.integers(0, 10**12).map(float)
    )
)
@example(0.1 + 0.2)
@example(1084.285548)
@example(0.09999999999999999)
@example(999.9999999999999)
@example(9999999999999.0)
@example(0.0)
@example(1e-4)
@example(361.51666666666665)
def test_fifteen_digits_are_those_of_python(value: float) -> None:
    found = exact_text(value)
    if found is None:
        assert value >= 1e13 or 0 < value < 1e-4
    else:
        assert found == fields.exact_text(value)


def test_smaller_and_negative_ones_are_left() -> None:
    assert exact_text(9e-5) is None
    assert exact_text(-1.0) is None


NOW_MS = 1_700_000_000_123
NAMES = tuple(f"name{number}" for number in range(13))
known = st.floats(-1e12, 1e12)
positive = st.one_of(st.just(0.0), st.floats(1e-3, 1e12))


def packed(figures: Any, accounts: Any, written: Any, rows: Any = None) -> tuple[list[Any], list[int], list[int]]:
    keys = [b"$%d\r\nkey%d\r\n" % (len(f"key{n}"), n) for n in range(len(accounts))]
    notices = [hiredis.pack_command(("PUBLISH", "c", f"T:{n}")) for n in range(len(accounts))]
    chosen = np.arange(len(accounts), dtype=np.int32) if rows is None else np.array(rows, np.int32)
    request, done, left = PortfolioPacker(NAMES, "ok").pack(
        chosen, keys, notices, accounts, figures, written, 1234567890123
    )
    reader, commands = hiredis.Reader(), []
    reader.feed(request)
    while (command := reader.gets()) is not False:
        commands.append(command)
    assert not reader.has_data()
    return commands, done, left


@given(st.lists(st.tuples(known, known, positive, positive, known, known), min_size=1, max_size=20))
def test_a_portfolio_is_the_command_that_python_would_pack(rows: list[Any]) -> None:
    figures, accounts = np.zeros(len(rows), layout.FIGURES), np.zeros(len(rows), layout.ACCOUNT)
    written = np.zeros(len(rows), layout.WRITTEN)
    for row, (equity, balance, used, used_all, level, pnl) in enumerate(rows):
        accounts[row]["balance"] = balance
        figures[row]["equity"], figures[row]["open_pnl"], figures[row]["free_margin"] = equity, pnl, equity - used
        figures[row]["used_margin_executed"], figures[row]["used_margin_all"] = used, used_all
        figures[row]["margin_level_pct"] = level
    commands, done, left = packed(figures, accounts, written)
    assert (done, left) == (list(range(len(rows))), [])
    for row, (equity, balance, used, used_all, level, pnl) in enumerate(rows):
        texts = [fields.usd_text(value) for value in (equity, balance, equity - used, used, level, pnl, pnl)]
        values = [
            "ok",
            "",
            *texts,
            fields.exact_text(used),
            fields.exact_text(used_all),
            "1234567890123",
            "1234567890123",
        ]
        pairs = [word for pair in zip(NAMES, values, strict=True) for word in pair]
        assert commands[2 * row] == [word.encode() for word in ("HSET", f"key{row}", *pairs)]
        assert commands[2 * row + 1] == [b"PUBLISH", b"c", f"T:{row}".encode()]
    assert packed(figures, accounts, written)[1:] == ([], [])
    written["is_known"][0] = 0
    assert packed(figures, accounts, written)[1] == [0]


def test_only_news_are_packed_and_what_cannot_be_written_is_left_alone() -> None:
    figures, accounts = np.zeros(4, layout.FIGURES), np.zeros(4, layout.ACCOUNT)
    written = np.zeros(4, layout.WRITTEN)
    assert packed(figures, accounts, written, [0, 1, 2])[1] == [0, 1, 2]
    figures["equity"] = (0.001, 0.01, math.nan, 0.0)
    before = written.copy()
    assert packed(figures, accounts, written, [0, 1, 2])[1:] == ([1], [2])
    assert (written[[0, 2, 3]] == before[[0, 2, 3]]).all()
    figures["used_margin_all"][0] = 1e-9
    assert packed(figures, accounts, written, [0])[1:] == ([], [0])
    assert written[0] == before[0]


def test_long_names_and_keys_have_room() -> None:
    figures, accounts, written = np.zeros(1, layout.FIGURES), np.zeros(1, layout.ACCOUNT), np.zeros(1, layout.WRITTEN)
    names, key = tuple(f"{number:05d}" * 2_000 for number in range(13)), b"$9\r\nuser:{a}k\r\n" * 5_000
    request, done, _ = PortfolioPacker(names, "ok" * 10_000).pack(
        np.zeros(1, np.int32), [key], [b"x" * 100_000], accounts, figures, written, NOW_MS
    )
    assert done == [0]
    assert request.endswith(b"x" * 100_000)
    assert all(name.encode() in request for name in names)


def test_arrays_that_do_not_fit_are_refused() -> None:
    figures, accounts, written = np.zeros(1, layout.FIGURES), np.zeros(1, layout.ACCOUNT), np.zeros(2, layout.WRITTEN)
    with pytest.raises(ValueError, match="differ in length"):
        packed(figures, accounts, written)
    with pytest.raises(ValueError, match="rows"):
        packed(figures, accounts, written[:1], [1])
    with pytest.raises(ValueError, match="13"):
        PortfolioPacker(("a",), "ok")
