"""The brake: a bad print closes nobody, a real gap closes everybody, nobody is held for more than two ticks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import layout
from copyrisk._core import LadderState, RowCode
from copyrisk.book import Book
from copyrisk.brake import Brake
from copyrisk.market import InstrumentKey
from copyrisk.rules import ValuationRules

SYMBOLS = ("EURUSD", "GBPUSD", "USDJPY", "EURJPY")


class House:
    """Accounts that each hold one symbol, and what the brake says of them tick after tick."""

    def __init__(self, accounts: int = 100, **options: float) -> None:
        chosen: Any = {"share_pct": 5.0, "min_accounts": 10, "jump_pct": 10.0} | options
        self.book, self.brake = Book(ValuationRules()), Brake(**chosen)
        self.rows = self.book.ensure_accounts([b"live:%d" % i for i in range(accounts)])
        for symbol in SYMBOLS:
            row = self.book.market.ensure_instrument(InstrumentKey("Standard", symbol))
            terms = np.zeros((), layout.INSTRUMENT_READ)
            terms["contract_size"], terms["type"], terms["code"] = 1.0, 1, RowCode.OK
            terms["profit_currency"] = self.book.market.names.index.put(symbol[3:].encode())
            self.book.market.set_instrument(row, terms)
        for i in range(len(SYMBOLS)):
            bit = int(self.book.market.instruments[i]["quote"]) & 63
            self.book.marks[self.rows[i :: len(SYMBOLS)]] = np.uint64(1 << bit)
        self.ts_ms = 0
        for _ in range(2):  # what is seen for the first time is not believed
            for symbol in SYMBOLS:
                self.print(symbol, 1.0)
            assert self.tick([]) == set()

    def print(self, symbol: str, mid: float) -> None:
        """A quote comes."""
        self.ts_ms += 1
        quote = self.book.market.quotes[self.book.market.ensure_quote(symbol)]
        quote["bid"], quote["ask"], quote["ts_ms"] = mid - 1e-5, mid + 1e-5, self.ts_ms
        quote["read_code"] = quote["code"] = RowCode.OK

    def tick(self, critical: Any, lost: int = 0) -> set[int]:
        """These accounts are critical and were not judged so before; which of them are held?"""
        figures = np.zeros(len(self.book.accounts), layout.FIGURES)
        figures["state"][list(critical)] = LadderState.CRITICAL
        self.brake.follow(self.book)
        turned, nobody = np.array(sorted(critical), np.int32), np.zeros(0, np.int32)
        return set(self.brake.judge(self.book, figures, turned, nobody, lost)[0].tolist())

    def holders(self, symbol: str) -> list[int]:
        return self.rows[SYMBOLS.index(symbol) :: len(SYMBOLS)].tolist()


def test_a_few_accounts_on_a_steady_market_are_not_held() -> None:
    house = House()
    house.print("EURUSD", 1.05)
    assert house.tick(house.holders("EURUSD")[:5]) == set()
    assert not house.brake.is_on


def test_a_bad_print_is_waited_out() -> None:
    house = House()
    hit = house.holders("EURUSD")[:3]
    house.print("EURUSD", 10.0)
    assert house.tick(hit) == set(hit)
    house.print("EURUSD", 1.0)  # they are healthy again
    assert house.tick([]) == set()
    assert len(house.brake.held) == 0


def test_a_real_gap_is_confirmed_by_the_next_print() -> None:
    house = House()
    hit = house.holders("EURUSD")[:3]
    house.print("EURUSD", 0.5)
    assert house.tick(hit) == set(hit)
    house.print("EURUSD", 0.501)
    assert house.tick(hit) == set()


def test_without_another_print_two_ticks_are_enough() -> None:
    house = House()
    hit = house.holders("EURUSD")[:3]
    house.print("EURUSD", 0.5)
    assert [house.tick(hit), house.tick(hit), house.tick(hit)] == [set(hit), set(hit), set()]


def test_a_market_in_free_fall_holds_nobody_for_longer() -> None:
    house = House()
    hit, price = house.holders("EURUSD")[:3], 1.0
    held = []
    for _ in range(3):
        price *= 0.8
        house.print("EURUSD", price)
        held.append(bool(house.tick(hit)))
    assert held == [True, True, False]


def test_a_jump_holds_who_is_converted_by_it() -> None:
    house = House()
    assert house.book.market.instruments[3]["inverse"] == house.book.market.quote_row["USDJPY"]
    house.print("USDJPY", 100.0)
    hit = [house.holders(symbol)[0] for symbol in SYMBOLS]
    assert house.tick(hit) == {hit[2], hit[3]}  # EURJPY is valued by it


@pytest.mark.parametrize(("turned", "lost", "is_on"), [(6, 0, False), (10, 0, True), (5, 5, True), (0, 10, True)])
def test_too_many_at_once_make_every_quote_suspect(turned: int, lost: int, is_on: bool) -> None:
    house = House()
    hit = house.rows[:turned].tolist()
    house.print("EURUSD", 1.01)
    assert house.tick(hit, lost) == (set(hit) if is_on else set())
    assert house.brake.is_on is is_on


def test_the_share_counts_in_a_large_house() -> None:
    house = House(accounts=1000)
    hit = house.rows[:50].tolist()
    assert house.tick(hit) == set() and not house.brake.is_on  # exactly 5 %
    house = House(accounts=1000)
    hit = house.rows[:51].tolist()
    assert house.tick(hit) == set(hit) and house.brake.is_on


def test_only_who_holds_what_was_not_confirmed_goes_on_waiting() -> None:
    house = House()
    hit = house.rows[:40].tolist()
    assert house.tick(hit) == set(hit)
    house.print("EURUSD", 1.01)
    house.print("GBPUSD", 1.01)
    waiting = {row for symbol in ("USDJPY", "EURJPY") for row in house.holders(symbol)} & set(hit)
    assert house.tick(hit) == waiting and house.brake.is_on
    assert house.tick(waiting) == set() and not house.brake.is_on


def test_a_quote_that_is_not_usable_confirms_nothing() -> None:
    house = House()
    hit = house.holders("EURUSD")[:3]
    house.print("EURUSD", 0.5)
    assert house.tick(hit) == set(hit)
    house.print("EURUSD", 0.5)
    house.book.market.quotes[house.book.market.quote_row["EURUSD"]]["code"] = RowCode.QUOTE_STALE
    assert house.tick(hit) == set(hit)


def test_jumps_may_be_turned_off() -> None:
    house = House(jump_pct=0.0)
    house.print("EURUSD", 100.0)
    assert house.tick(house.holders("EURUSD")[:3]) == set()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(SYMBOLS), st.floats(0.1, 10.0), max_size=4),
            st.sets(st.integers(0, 99), max_size=60),
        ),
        max_size=12,
    )
)
def test_nobody_is_held_for_more_than_two_ticks_in_a_row(story: list[tuple[dict[str, float], set[int]]]) -> None:
    house = House()
    in_a_row: dict[int, int] = {}
    for prints, critical in story:
        for symbol, mid in prints.items():
            house.print(symbol, mid)
        held = house.tick(critical)
        assert held <= critical and set(house.brake.held.tolist()) == held
        in_a_row = {row: in_a_row.get(row, 0) + 1 for row in held}
        assert max(in_a_row.values(), default=0) <= 2


def test_who_is_critical_already_waits_for_a_bad_print_as_well() -> None:
    house = House()
    standing = np.array(house.holders("EURUSD")[:2] + house.holders("GBPUSD")[:2], np.int32)
    figures, nobody = np.zeros(len(house.book.accounts), layout.FIGURES), np.zeros(0, np.int32)
    held = []
    for price in (10.0, None, None):
        if price:
            house.print("EURUSD", price)
        house.brake.follow(house.book)
        held.append(house.brake.judge(house.book, figures, nobody, standing, 0)[1].tolist())
    assert held == [standing[:2].tolist()] * 2 + [[]]
    assert not house.brake.is_on


def test_a_quote_that_is_seen_for_the_first_time_must_print_again() -> None:
    house = House()
    fresh = Brake(share_pct=5.0, min_accounts=10, jump_pct=10.0)
    house.brake = fresh
    hit = house.holders("EURUSD")[:3]
    assert house.tick(hit) == set(hit)
    house.print("EURUSD", 1.0)
    assert house.tick(hit) == set()


def test_who_was_changed_in_this_tick_is_looked_at_again_in_the_next() -> None:
    house = House()
    row = house.rows[7]
    house.book.folds[row] += 1
    assert house.tick([row]) == {row}
    assert house.tick([row]) == set()
    for _ in range(2):
        house.book.folds[row] += 1
        assert house.tick([row]) == {row}
    house.book.folds[row] += 1  # whoever changes all the time is not shielded for ever
    assert house.tick([row]) == set()


def test_one_side_that_jumps_must_itself_print_again() -> None:
    house = House()
    hit = house.holders("EURUSD")[:3]
    quote = house.book.market.quotes[house.book.market.quote_row["EURUSD"]]
    quote["bid"], quote["ts_ms"] = 0.85, 1_000
    assert house.tick(hit) == set(hit)  # the mid has moved by 7.5 % only
    quote["ask"], quote["ts_ms"] = 1.0002, 1_001
    assert house.tick(hit) == set(hit)
    assert house.tick(hit) == set()
