"""Texts and their rows, against a dict and a list."""

import faulthandler
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from copyrisk._index import TextIndex

NO_ROW = -1
# Few texts and owners, so that the same ones meet again; long common beginnings and ends, zeros and odd sizes, so that
# texts which differ in little only are told apart.
texts = st.one_of(
    st.sampled_from([b"", b"a", b"b", b"a\0", b"\0", b"\0\0", b"aaaaaaaa", b"aaaaaaab", b"aaaaaaaa\0", b"baaaaaaa"]),
    st.sampled_from([b"x" * size for size in (1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 254, 255, 256)]),
    st.binary(max_size=3),
    st.integers(0, 200).map(lambda number: b"live:%d" % number),
)
owners = st.sampled_from([0, 1, 2, -1, 2**31 - 1, -(2**31)])


def cells_of(some: Iterable[bytes], width: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A byte for the size and the text, as far as it goes."""
    listed = list(some)
    cells = np.zeros((len(listed), 1 + width), np.uint8)
    for cell, text in zip(cells, listed, strict=True):
        cell[0] = min(len(text), 255)
        cell[1 : 1 + len(text)] = np.frombuffer(text[:width], np.uint8)
    return cells


class Twin:
    """What a `TextIndex` does, row by row."""

    def __init__(self, width: int, limit: int) -> None:
        self.width, self.limit = width, limit
        self.of_row: dict[int, tuple[int, bytes]] = {}
        self.row_of: dict[tuple[int, bytes], int] = {}
        self.freed: list[int] = []
        self.high = 0

    def put(self, text: bytes, owner: int) -> int:
        """A row that is there, else the last freed one, else the next."""
        if (owner, text) in self.row_of:
            return self.row_of[owner, text]
        if not 1 <= len(text) <= self.width or len(self.of_row) >= self.limit:
            return NO_ROW
        if self.freed:
            row = self.freed.pop()
        else:
            row, self.high = self.high, self.high + 1
        self.of_row[row], self.row_of[owner, text] = (owner, text), row
        return row

    def drop(self, row: int) -> None:
        del self.row_of[self.of_row.pop(row)]
        self.freed.append(row)


class IndexMachine(RuleBasedStateMachine):
    """Whatever is done, in whatever order, the index and its twin say the same."""

    @initialize(width=st.sampled_from([1, 7, 8, 9, 64, 255]), limit=st.sampled_from([0, 1, 5, 100, 2**30 - 1]))
    def begin(self, width: int, limit: int) -> None:
        self.index, self.twin = TextIndex(width, limit), Twin(width, limit)
        assert (self.index.width, self.index.limit) == (width, limit)

    @rule(text=texts, owner=owners)
    def put(self, text: bytes, owner: int) -> None:
        assert self.index.put(text, owner) == self.twin.put(text, owner)

    @rule(some=st.lists(st.tuples(owners, texts), max_size=40), spare=st.integers(0, 3))
    def put_cells(self, some: list[tuple[int, bytes]], spare: int) -> None:
        width = min(self.twin.width + spare, 255)
        shown = [(owner, text[:width]) for owner, text in some]  # a cell holds no more
        before = set(self.twin.of_row)
        expected, is_new = [], []
        for owner, text in shown:
            row = self.twin.put(text, owner)
            expected.append(row)
            is_new.append(row != NO_ROW and row not in before)
            before.add(row)
        rows, fresh = self.index.put_cells(
            np.array([owner for owner, _ in some], np.int32), cells_of((text for _, text in some), width)
        )
        assert rows.dtype == np.int32
        assert fresh.dtype == np.bool_
        assert rows.tolist() == expected
        assert fresh.tolist() == is_new

    @rule(start=st.integers(0, 3000), count=st.integers(50, 400), owner=owners)
    def put_many(self, start: int, count: int, owner: int) -> None:
        many = [b"%d" % number for number in range(start, start + count)]
        rows, _ = self.index.put_cells(np.full(count, owner, np.int32), cells_of(many, self.twin.width))
        assert rows.tolist() == [self.twin.put(text[: self.twin.width], owner) for text in many]

    @precondition(lambda self: self.twin.of_row)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.twin.of_row)))
        self.index.drop(row)
        self.twin.drop(row)

    @precondition(lambda self: self.twin.of_row)
    @rule(step=st.integers(2, 9), backwards=st.booleans())
    def drop_many(self, step: int, backwards: bool) -> None:
        for row in sorted(self.twin.of_row, reverse=backwards)[::step]:
            self.index.drop(row)
            self.twin.drop(row)

    @rule(row=st.one_of(st.integers(-3, 70), st.sampled_from([-(2**31), 2**31 - 1])))
    def rows_that_are_not_used(self, row: int) -> None:
        if row in self.twin.of_row:
            return
        assert not self.index.is_used(row)
        for refused in (self.index.drop, self.index.text):
            with pytest.raises(KeyError):
                refused(row)
        with pytest.raises(KeyError):
            self.index.cells(np.array([*self.twin.of_row, row], np.int32))

    @rule(some=st.lists(st.tuples(owners, texts), max_size=20))
    def find(self, some: list[tuple[int, bytes]]) -> None:
        expected = [self.twin.row_of.get(pair, NO_ROW) for pair in some]
        assert [self.index.row_of(text, owner) for owner, text in some] == expected
        found = self.index.find_cells(
            np.array([owner for owner, _ in some], np.int32), cells_of((text[:255] for _, text in some), 255)
        )
        known = [self.twin.row_of.get((owner, text[:255]), NO_ROW) for owner, text in some]
        assert found.tolist() == known

    @rule()
    def compare(self) -> None:
        for (owner, text), row in self.twin.row_of.items():
            assert self.index.row_of(text, owner) == row
            assert self.index.text(row) == text
            assert self.index.is_used(row)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "twin"):
            return
        rows = sorted(self.twin.of_row)
        assert len(self.index) == self.index.count == len(rows)
        assert self.index.high == self.twin.high
        found = self.index.rows()
        assert found.dtype == np.int32
        assert found.tolist() == rows
        cells = self.index.cells(found)
        assert cells.shape == (len(rows), 1 + self.twin.width)
        assert (cells == cells_of((self.twin.of_row[row][1] for row in rows), self.twin.width)).all()

    def teardown(self) -> None:
        if hasattr(self, "twin"):
            self.compare()


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_rows_stay_through_seven_doublings() -> None:
    index, twin = TextIndex(12), Twin(12, 2**30)
    for number in range(8_500):
        text, owner = b"%d" % (number * 7919), number % 3
        row = index.put(text, owner)
        assert row == twin.put(text, owner)
        if number % 5 == 4:
            gone = next(iter(twin.of_row))
            index.drop(gone)
            twin.drop(gone)
    assert index.high > 64 * 2**6
    assert index.rows().tolist() == sorted(twin.of_row)
    for (owner, text), row in twin.row_of.items():
        assert index.row_of(text, owner) == row
        assert index.text(row) == text


@given(st.permutations(range(60)), st.permutations(range(60)))
@settings(max_examples=50, deadline=None)
def test_what_is_dropped_is_gone_and_the_rest_is_found(put: list[int], drop: list[int]) -> None:
    # 60 of 64 rows: the table is as full as it gets, and runs of neighbours are long.
    index = TextIndex(4)
    rows = {number: index.put(b"%d" % number) for number in put}
    for done, number in enumerate(drop, 1):
        index.drop(rows[number])
        for other in range(60):
            expected = NO_ROW if other in drop[:done] else rows[other]
            assert index.row_of(b"%d" % other) == expected


def test_room_is_not_used_up_by_what_was_dropped() -> None:
    index = TextIndex(8)
    faulthandler.dump_traceback_later(60, exit=True, file=2)  # a table without a free slot is searched for ever
    for number in range(5_000):
        row = index.put(b"%d" % number)
        assert row == 0
        assert index.row_of(b"other") == NO_ROW
        index.drop(row)
    faulthandler.cancel_dump_traceback_later()
    assert index.high == 1


def test_the_limit_refuses_new_texts_only() -> None:
    index = TextIndex(3, 2)
    assert [index.put(text) for text in (b"a", b"b", b"c", b"a", b"b")] == [0, 1, -1, 0, 1]
    assert index.put(b"a", 1) == NO_ROW
    index.drop(0)
    assert index.put(b"c") == 0
    rows, fresh = index.put_cells(np.zeros(3, np.int32), cells_of([b"c", b"d", b"b"], 3))
    assert rows.tolist() == [0, -1, 1]
    assert not fresh.any()
    assert index.count == index.high == 2


def test_a_size_above_the_cell_is_the_text_there_is() -> None:
    index = TextIndex(8)
    cells = cells_of([b"abcd"], 4)
    cells[0, 0] = 255
    rows, fresh = index.put_cells(np.zeros(1, np.int32), cells)
    assert rows.tolist() == index.find_cells(np.zeros(1, np.int32), cells).tolist() == [0]
    assert fresh.tolist() == [True]
    assert index.text(0) == b"abcd"


def test_a_wider_cell_is_not_cut_to_the_width() -> None:
    index = TextIndex(4)
    assert index.put(b"abcd") == 0
    cells, owner = cells_of([b"abcde"], 8), np.zeros(1, np.int32)
    assert index.find_cells(owner, cells).tolist() == index.put_cells(owner, cells)[0].tolist() == [-1]


def test_empty_and_odd_arrays() -> None:
    index, none = TextIndex(4), np.zeros(0, np.int32)
    assert index.rows().tolist() == []
    assert index.rows().dtype == np.int32
    assert index.cells(none).shape == (0, 5)
    assert index.find_cells(none, np.zeros((0, 5), np.uint8)).tolist() == []
    assert index.put_cells(np.zeros(2, np.int32), np.ones((2, 1), np.uint8))[0].tolist() == [-1, -1]
    for refused in (index.put_cells, index.find_cells):
        with pytest.raises(ValueError, match="differ in length"):
            refused(np.zeros(2, np.int32), np.zeros((1, 5), np.uint8))
        with pytest.raises(ValueError, match="differ in length"):
            refused(np.zeros(2, np.int32), np.zeros((2, 0), np.uint8))


@pytest.mark.parametrize("width", [0, -1, 256, 2**31 - 1])
def test_a_width_that_no_cell_has_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="width"):
        TextIndex(width)
