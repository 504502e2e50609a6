"""Triggers, against a list that is gone through; and what must not happen to anybody's stop loss."""

import math
import threading
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from copyrisk._triggers import Ladders, TriggerKind
from copyrisk.errors import ShapeError
from tests.ladders import CONDITIONS, SlowLadders, Trigger

K = TriggerKind
KINDS = list(CONDITIONS)
Row = tuple[int, int, int, float]
Quote = tuple[int, float, float]

# Few prices, some of them neighbours among the doubles, so that ties and near misses are common.
PRICES = [1.0, math.nextafter(1.0, 2), 1.1, 1.2, math.nextafter(1.2, 1), 1.3, 5e-324, 1.7e308]
BAD = [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0]
prices = st.sampled_from(PRICES)
orders, symbols, kinds = st.integers(0, 11), st.integers(0, 3), st.sampled_from(KINDS)
rows = st.tuples(orders, symbols, kinds, prices)
quotes = st.tuples(
    st.integers(0, 5),
    st.one_of(prices, st.sampled_from(PRICES + BAD)),
    st.one_of(prices, st.sampled_from(PRICES + BAD)),
)


def fire(ladders: Ladders, some: list[Quote]) -> list[tuple[int, int, float]]:
    """As the twin says it, its form checked."""
    found = ladders.fire(
        np.array([symbol for symbol, _, _ in some], np.int32),
        np.array([bid for _, bid, _ in some], np.float64),
        np.array([ask for _, _, ask in some], np.float64),
    )
    assert [array.dtype for array in found] == [np.int32, np.uint8, np.float64]
    return list(zip(*(array.tolist() for array in found), strict=True))


def set_many(ladders: Ladders, some: Sequence[Row]) -> None:
    ladders.set_many(
        np.array([row[0] for row in some], np.int32),
        np.array([row[1] for row in some], np.int32),
        np.array([row[2] for row in some], np.uint8),
        np.array([row[3] for row in some], np.float64),
    )


def one_symbol_each(some: list[Row]) -> list[Row]:
    """With symbol and side of an order's first trigger for all of its others."""
    first: dict[int, Row] = {}
    kept = []
    for order, symbol, kind, price in some:
        known = first.setdefault(order, (order, symbol, kind, price))
        if Trigger(order, 0, K(kind), price).is_buy == Trigger(order, 0, K(known[2]), price).is_buy:
            kept.append((order, known[1], kind, price))
    return kept


class TriggerMachine(RuleBasedStateMachine):
    """Whatever is set, cleared and quoted, the ladders and the list say the same."""

    @initialize()
    def begin(self) -> None:
        self.ladders, self.twin = Ladders(), SlowLadders()
        self.fired = self.was_set = 0

    @rule(row=rows)
    def set(self, row: Row) -> None:
        self._both("set", *row)

    @rule(row=rows, price=st.sampled_from(BAD))
    def set_a_bad_price(self, row: Row, price: float) -> None:
        with pytest.raises(ValueError, match="price"):
            self.ladders.set(*row[:3], price)

    @rule(some=st.lists(rows, max_size=40), fits=st.booleans())
    def set_many(self, some: list[Row], fits: bool) -> None:
        held = [(t.order, t.symbol, t.kind, t.price) for t in self.twin.triggers]
        if fits:
            some = one_symbol_each(held + some)[len(held) :]
        try:
            self.twin.set_many(some)
        except ValueError:
            with pytest.raises(ValueError, match=r"orders\[\d+\]"):
                set_many(self.ladders, some)
        else:
            set_many(self.ladders, some)

    @rule(order=st.one_of(orders, st.just(2**31 - 1)))
    def clear(self, order: int) -> None:
        self.ladders.clear(order)
        self.twin.clear(order)

    @rule(order=orders, kind=kinds)
    def clear_one(self, order: int, kind: TriggerKind) -> None:
        self.ladders.clear(order, kind)
        self.twin.clear(order, kind)

    @rule(some=st.lists(quotes, max_size=6))
    def fire(self, some: list[Quote]) -> None:
        expected = self.twin.fire(some)
        assert fire(self.ladders, some) == expected
        assert len({order for order, _, _ in expected}) == len(expected)
        assert not self.twin.fire(some)
        assert not fire(self.ladders, some)

    @rule(data=st.data())
    def set_and_clear_again_and_again(self, data: st.DataObject) -> None:
        for row in data.draw(st.lists(rows, min_size=20, max_size=60)):
            self._both("set", *row)
            if data.draw(st.booleans()):
                self.clear(row[0])

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "twin"):
            return
        assert len(self.ladders) == self.ladders.count == len(self.twin.triggers)
        armed = self.twin.armed()
        for symbol in range(-1, 6):
            assert self.ladders.armed(symbol) == sum(t.symbol == symbol for t in armed)
            np.testing.assert_array_equal(self.ladders.nearest(symbol), self.twin.nearest(symbol))

    def _both(self, name: str, *words: float) -> None:
        try:
            getattr(self.twin, name)(*words)
        except ValueError:
            with pytest.raises(ValueError, match="another symbol or side"):
                getattr(self.ladders, name)(*words)
        else:
            getattr(self.ladders, name)(*words)


TestTriggers = TriggerMachine.TestCase
TestTriggers.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("price", [1.0845, 1e-9, 67_000.1])
def test_a_price_fires_when_it_is_met_and_not_one_double_before(kind: TriggerKind, price: float) -> None:
    below, above = math.nextafter(price, 0), math.nextafter(price, math.inf)
    for side in (below, price, above):
        for bid, ask in ((side, side), (side, 2 * side), (side / 2, side)):
            ladders = Ladders()
            ladders.set(7, 3, kind, price)
            expected = [(7, kind, price)] if CONDITIONS[kind](bid, ask, price) else []
            assert fire(ladders, [(2, bid, ask), (3, bid, ask), (4, bid, ask)]) == expected
            assert len(ladders) == 1 - len(expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())
def test_a_quote_that_is_none_fires_nothing(kind: TriggerKind) -> None:
    ladders = Ladders()
    set_many(ladders, [(order, 0, kind, price) for order, price in enumerate((5e-324, 1.0, 1.7e308))])
    quotes = [(bid, ask) for bad in BAD for bid, ask in ((bad, bad), (bad, 1.0), (1.0, bad), (bad, 2.0), (2.0, bad))]
    for bid, ask in [*quotes, (1.0000001, 1.0), (1.7e308, 5e-324)]:
        assert not fire(ladders, [(0, bid, ask)])
    assert len(ladders) == 3


@pytest.mark.parametrize(("loss", "profit"), [(K.STOP_LOSS_OF_BUY, K.TAKE_PROFIT_OF_BUY),
                                              (K.STOP_LOSS_OF_SELL, K.TAKE_PROFIT_OF_SELL)])  # fmt: skip
def test_the_stop_loss_wins_a_tie_and_both_are_gone(loss: TriggerKind, profit: TriggerKind) -> None:
    for first, second in ((loss, profit), (profit, loss)):
        ladders = Ladders()
        ladders.set(0, 0, first, 1.1)
        ladders.set(0, 0, second, 1.1)
        assert fire(ladders, [(0, 1.1, 1.1)]) == [(0, loss, 1.1)]
        assert len(ladders) == ladders.armed(0) == 0


def test_of_two_quotes_of_a_symbol_the_first_counts() -> None:
    ladders = Ladders()
    set_many(ladders, [(0, 0, K.STOP_LOSS_OF_BUY, 1.0), (0, 0, K.TAKE_PROFIT_OF_BUY, 1.2)])
    assert fire(ladders, [(0, 1.2, 1.2), (0, 0.9, 0.9)]) == [(0, K.TAKE_PROFIT_OF_BUY, 1.2)]
    assert len(ladders) == 0


def test_exits_wait_until_the_pending_order_has_gone() -> None:
    triggers = [(0, 0, K.TAKE_PROFIT_OF_BUY, 1.06), (0, 0, K.STOP_LOSS_OF_BUY, 1.04), (0, 0, K.BUY_LIMIT, 1.05)]
    for some in (triggers, triggers[::-1]):
        ladders = Ladders()
        set_many(ladders, some)
        assert (len(ladders), ladders.armed(0)) == (3, 1)
        assert not fire(ladders, [(0, 1.07, 1.0701)])  # beyond the take profit of what has not been bought
        assert fire(ladders, [(0, 1.03, 1.0301)]) == [(0, K.BUY_LIMIT, 1.05)]  # and not the stop loss with it
        assert len(ladders) == 0


def test_exits_wait_though_one_of_them_is_taken_away_or_replaced() -> None:
    ladders = Ladders()
    set_many(ladders, [(0, 0, K.SELL_STOP, 1.0), (0, 0, K.STOP_LOSS_OF_SELL, 1.2), (0, 0, K.TAKE_PROFIT_OF_SELL, 1.19)])
    ladders.clear(0, K.TAKE_PROFIT_OF_SELL)
    assert (len(ladders), ladders.armed(0)) == (2, 1)
    ladders.set(0, 0, K.STOP_LOSS_OF_SELL, 1.1)
    assert (len(ladders), ladders.armed(0)) == (2, 1)
    assert not fire(ladders, [(0, 1.15, 1.15)])


def test_exits_are_armed_when_the_pending_price_is_taken_away() -> None:
    ladders = Ladders()
    set_many(ladders, [(0, 0, K.STOP_LOSS_OF_SELL, 1.2), (0, 0, K.TAKE_PROFIT_OF_SELL, 1.0), (0, 0, K.SELL_LIMIT, 1.1)])
    ladders.clear(0, K.SELL_STOP)  # of the same role
    assert ladders.armed(0) == 2
    assert fire(ladders, [(0, 1.2, 1.2)]) == [(0, K.STOP_LOSS_OF_SELL, 1.2)]


def test_what_fires_comes_in_order_however_it_was_set() -> None:
    falling = [(4, 1, K.STOP_LOSS_OF_BUY, 1.3), (2, 1, K.STOP_LOSS_OF_BUY, 1.2), (3, 1, K.STOP_LOSS_OF_BUY, 1.2)]
    rising = [(9, 1, K.STOP_LOSS_OF_SELL, 0.7), (1, 1, K.STOP_LOSS_OF_SELL, 0.8)]
    other = [(0, 0, K.STOP_LOSS_OF_BUY, 9.0)]
    profits = [(6, 1, K.TAKE_PROFIT_OF_BUY, 0.9), (5, 1, K.TAKE_PROFIT_OF_SELL, 1.1)]
    pending = [(8, 1, K.SELL_STOP, 1.0), (10, 1, K.BUY_STOP, 1.0), (7, 0, K.SELL_LIMIT, 0.5)]
    expected = [(order, int(kind), price) for order, _, kind, price in falling + rising + other + profits + pending]
    every = falling + rising + other + profits + pending
    for seed in range(20):
        ladders = Ladders()
        set_many(ladders, [every[i] for i in np.random.default_rng(seed).permutation(len(every))])
        assert fire(ladders, [(1, 1.0, 1.0), (0, 1.0, 1.0)]) == expected


@given(st.lists(rows, max_size=60), st.lists(quotes, max_size=30))
@settings(max_examples=100, deadline=None)
def test_nothing_fires_twice(some: list[Row], walk: list[Quote]) -> None:
    some = one_symbol_each(some)
    ladders = Ladders()
    set_many(ladders, some)
    fired = [order for quote in walk for order, _, _ in fire(ladders, [quote])]
    assert len(set(fired)) == len(fired)
    set_many(ladders, some)
    again = [order for order, _, _ in fire(ladders, walk)]
    assert sorted(again) == sorted(fired)


def test_100_000_orders_fire_what_numpy_says() -> None:
    random = np.random.default_rng(5)
    n = 100_000
    ladders = Ladders()
    symbol = random.integers(0, 64, n).astype(np.int32)
    kind = random.integers(1, 9, n).astype(np.uint8)
    price = np.round(random.normal(1.1, 0.05, n), 4)
    ladders.set_many(np.arange(n, dtype=np.int32), symbol, kind, price)
    left = np.ones(n, bool)
    for _ in range(20):
        bid = np.round(random.normal(1.1, 0.02, 64), 4)
        ask = bid + 0.0002
        b, a = bid[symbol], ask[symbol]
        reached = np.select(
            [np.isin(kind, (1, 7)), np.isin(kind, (2, 5)), np.isin(kind, (3, 8))], [a >= price, b <= price, a <= price],
            b >= price,
        ) & left  # fmt: skip
        found, kinds_found, prices_found = ladders.fire(np.arange(64, dtype=np.int32), bid, ask)
        np.testing.assert_array_equal(np.sort(found), np.flatnonzero(reached))
        np.testing.assert_array_equal(kinds_found, kind[found])
        np.testing.assert_array_equal(prices_found, price[found])
        left &= ~reached
    assert len(ladders) == left.sum()


@pytest.mark.parametrize("kind", [K.BUY_STOP, K.SELL_STOP])
def test_a_big_ladder_stays_in_order_through_random_changes(kind: TriggerKind) -> None:
    rising = kind == K.BUY_STOP
    for seed in range(60):
        random = np.random.default_rng(seed)
        ladders = Ladders()
        held = {order: float(price) for order, price in enumerate(random.permutation(200) + 1)}
        set_many(ladders, [(order, 0, kind, price) for order, price in held.items()])
        for order in random.integers(0, 200, 150).tolist():
            if random.random() < 0.6:
                ladders.clear(order)
                held.pop(order, None)
            else:
                held[order] = float(random.integers(1, 300))
                ladders.set(order, 0, kind, held[order])
        far = 1e9 if rising else 1e-9
        expected = sorted(held.items(), key=lambda pair: (pair[1] if rising else -pair[1], pair[0]))
        assert fire(ladders, [(0, far, far)]) == [(order, int(kind), price) for order, price in expected]


@pytest.mark.parametrize("price", BAD)
def test_no_trigger_has_a_price_that_is_none(price: float) -> None:
    ladders = Ladders()
    ladders.set(1, 0, K.BUY_STOP, 1.5)
    with pytest.raises(ValueError, match=r"prices\[0\]: expected a positive, finite price"):
        ladders.set(1, 0, K.BUY_STOP, price)
    with pytest.raises(ValueError, match=r"prices\[2\]"):
        set_many(ladders, [(1, 0, K.BUY_STOP, 1.4), (2, 0, K.BUY_STOP, 1.3), (3, 0, K.BUY_STOP, price)])
    assert len(ladders) == 1
    assert ladders.nearest(0)[1] == 1.5


@pytest.mark.parametrize("kind", [0, 9, -1, 255, 257, 2**31 - 1])
def test_no_trigger_is_of_a_kind_that_is_none(kind: int) -> None:
    ladders = Ladders()
    with pytest.raises(ValueError, match=r"kinds\[0\]: expected a TriggerKind"):
        ladders.set(0, 0, kind, 1.0)
    with pytest.raises(ValueError, match=r"kinds\[1\]: expected a TriggerKind"):
        set_many(ladders, [(0, 0, K.BUY_STOP, 1.0), (1, 0, 9, 1.0)])
    if kind != 0:  # which clears all
        with pytest.raises(ValueError, match="TriggerKind"):
            ladders.clear(0, kind)
    assert len(ladders) == 0


def test_an_order_has_one_symbol_and_one_side() -> None:
    ladders = Ladders()
    ladders.set(0, 0, K.STOP_LOSS_OF_BUY, 1.0)
    for symbol, kind in ((1, K.TAKE_PROFIT_OF_BUY), (0, K.TAKE_PROFIT_OF_SELL), (1, K.STOP_LOSS_OF_BUY)):
        with pytest.raises(ValueError, match=r"orders\[0\]: row 0 has triggers of another symbol or side"):
            ladders.set(0, symbol, kind, 1.0)
        with pytest.raises(ValueError, match=r"orders\[1\]: row 0"):
            set_many(ladders, [(1, 0, K.BUY_STOP, 1.0), (0, symbol, kind, 1.0)])
    with pytest.raises(ValueError, match=r"orders\[\d\]: row 1"):
        set_many(ladders, [(1, 0, K.BUY_STOP, 1.0), (1, 1, K.STOP_LOSS_OF_BUY, 1.0)])
    assert len(ladders) == 1
    ladders.clear(0)
    ladders.set(0, 1, K.STOP_LOSS_OF_SELL, 1.0)  # the row is another order's now
    assert fire(ladders, [(0, 1.0, 1.0), (1, 1.0, 1.0)]) == [(0, K.STOP_LOSS_OF_SELL, 1.0)]


def test_rows_outside_the_limits_are_refused_and_change_nothing() -> None:
    ladders = Ladders(order_limit=100, symbol_limit=10)
    ladders.set(99, 9, K.BUY_STOP, 1.0)
    for order, symbol in ((100, 0), (-1, 0), (0, 10), (0, -1), (-(2**31), 0), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ShapeError, match=r"\[0\]: expected a row below"):
            ladders.set(order, symbol, K.BUY_STOP, 1.0)
    with pytest.raises(ShapeError, match=r"orders\[1\]"):
        set_many(ladders, [(1, 0, K.BUY_STOP, 1.0), (100, 0, K.BUY_STOP, 1.0)])
    with pytest.raises(ShapeError, match=r"symbols\[1\]"):
        fire(ladders, [(9, 1.0, 1.0), (-1, 1.0, 1.0)])
    with pytest.raises(ValueError, match="order"):
        ladders.clear(-1)
    ladders.clear(2**31 - 1)
    assert not fire(ladders, [(2**31 - 1, 1.0, 1.0)])
    assert fire(ladders, [(9, 1.0, 1.0)]) == [(99, K.BUY_STOP, 1.0)]
    for limits in ((0, 1), (1, 0), (2**28 + 1, 1), (1, 2**24 + 1)):
        with pytest.raises(ValueError, match="order_limit, symbol_limit"):
            Ladders(*limits)


def test_arrays_of_different_lengths_are_refused() -> None:
    ladders = Ladders()
    i, b, f = np.zeros(2, np.int32), np.ones(2, np.uint8), np.ones(2)
    for name, words in (("symbols", (i, i[:1], b, f)), ("kinds", (i, i, b[:1], f)), ("prices", (i, i, b, f[:1]))):
        with pytest.raises(ShapeError, match=f"{name}: expected 2, found 1"):
            ladders.set_many(*words)
    for name, quote in (("bids", (i, f[:1], f)), ("asks", (i, f, f[:1]))):
        with pytest.raises(ShapeError, match=f"{name}: expected 2, found 1"):
            ladders.fire(*quote)
    with pytest.raises(ValueError, match="dtype"):
        ladders.fire(i.astype(np.int64), f, f)
    assert len(ladders) == 0


def test_nothing_at_all_is_fine() -> None:
    ladders = Ladders()
    set_many(ladders, [])
    assert not fire(ladders, [])
    assert not fire(ladders, [(0, 1.0, 1.0)])
    ladders.clear(0)
    assert np.isnan(ladders.nearest(0)).all()
    assert len(ladders) == ladders.armed(0) == ladders.nbytes == 0


def test_memory_follows_what_is_set_through_a_million_changes() -> None:
    ladders = Ladders()
    live = [(order, order % 4, K.STOP_LOSS_OF_BUY, 1.0 + order / 1000) for order in range(100)]
    set_many(ladders, live)
    before = ladders.nbytes
    n = 250_000
    random = np.random.default_rng(2)
    of, at = random.integers(0, 100, n).tolist(), (1 + random.random(n)).tolist()
    for order, price in zip(of, at, strict=True):
        ladders.set(order, order % 4, K.TAKE_PROFIT_OF_BUY, price)
        ladders.set(order, order % 4, K.STOP_LOSS_OF_BUY, price)
        ladders.clear(order, K.TAKE_PROFIT_OF_BUY)
        ladders.set(order, order % 4, K.BUY_STOP, price)
        ladders.clear(order)
        ladders.set(order, order % 4, K.STOP_LOSS_OF_BUY, price)
    assert len(ladders) == ladders.count == 100
    assert ladders.nbytes <= 2 * before


def test_memory_is_given_back_when_a_symbol_empties() -> None:
    ladders = Ladders()
    n = 20_000
    rows = np.arange(n, dtype=np.int32)
    for number in range(3):
        ladders.set_many(rows, np.full(n, number, np.int32), np.full(n, K.BUY_STOP, np.uint8), np.linspace(1, 2, n))
        full = ladders.nbytes
        assert full < n * 200
        if number == 1:
            assert len(fire(ladders, [(1, 3.0, 3.0)])) == n
        else:
            for order in range(n):
                ladders.clear(order)
        assert len(ladders) == 0
        assert full - ladders.nbytes >= n * 16 - 64


def test_a_walk_there_and_back_fires_each_side_once_in_the_order_of_prices() -> None:
    ladders = Ladders()
    n = 1_000
    levels = np.round(np.linspace(1.0, 2.0, n), 6)
    set_many(ladders, [(i, 0, K.STOP_LOSS_OF_BUY, float(price)) for i, price in enumerate(levels)])
    set_many(ladders, [(n + i, 0, K.STOP_LOSS_OF_SELL, 2.0 + float(price)) for i, price in enumerate(levels)])
    found = [row for bid in np.linspace(2.5, 0.5, 300) for row in fire(ladders, [(0, float(bid), 2.5)])]
    falling = [price for order, _, price in found if order < n]
    assert len(falling) == n
    assert all(before >= after for before, after in pairwise(falling))
    assert len(found) == n  # the sold ones are above 3.0, the ask never was
    assert len(fire(ladders, [(0, 4.0, 4.0)])) == n


def test_the_scan_runs_without_the_lock() -> None:
    # Two ladders of their own in two threads: no state is shared between them.
    def run(result: list[int], seed: int) -> None:
        ladders = Ladders()
        n = 20_000
        price = np.random.default_rng(seed).random(n) + 1
        rows = np.arange(n, dtype=np.int32)
        for _ in range(5):
            ladders.set_many(rows, rows % 8, np.full(n, K.SELL_LIMIT, np.uint8), price)
            eight = np.arange(8, dtype=np.int32)
            result.append(len(ladders.fire(eight, np.full(8, 3.0), np.full(8, 3.0))[0]))

    results: list[list[int]] = [[], []]
    threads = [threading.Thread(target=run, args=(result, seed)) for seed, result in enumerate(results)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[20_000] * 5] * 2
