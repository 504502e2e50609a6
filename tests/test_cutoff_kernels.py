"""Autocutoff's kernels against exact twins: the ladder tick by tick, and plans order by order."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from copyrisk import layout
from copyrisk._core import LadderState, RowCode, price_legs, value_accounts
from copyrisk._cutoff import Edge, StopOut, order_pnls, plan_closes, step_ladder
from copyrisk.errors import ShapeError
from copyrisk.layout import Rows
from copyrisk.risk import CONVERSION_SIDES, Valuer
from tests import test_core_twin as books
from tests import twin
from tests.books import NOW_MS, OPEN, PlainBook

CRITICAL = LadderState.CRITICAL

# ------------------------------------------------------------------------------------------------- ladder

WARNING_PCT, CRITICAL_PCT, RECOVERY_PCT = 50, 10, 5


@dataclass
class SlowLadder:
    """The rules of the ladder in words, on exact levels (`None`: no margin)."""

    latches: bool
    rung: str = "NEVER"
    is_known: bool = False
    was_lost: bool = False
    is_latched: bool = False

    def step(self, level: Fraction | None, tick: str) -> set[str]:
        edges: set[str] = set()
        if tick == "unknown":
            if self.is_known:
                edges, self.was_lost = {"LOST"}, True
            self.is_known = False
            return edges
        if self.was_lost:
            edges.add("FOUND")
        self.is_known, self.was_lost = True, False
        if tick == "closed":
            return edges
        before, self.rung = self.rung, self.next(level)
        if before not in ("WARNING", "CRITICAL") and self.rung in ("WARNING", "CRITICAL"):
            edges.add("WARNED")
        if before in ("WARNING", "CRITICAL") and self.rung not in ("WARNING", "CRITICAL"):
            edges.add("RECOVERED")
        if before != "CRITICAL" and self.rung == "CRITICAL":
            edges.add("BREACHED")
        if before == "CRITICAL" and self.rung != "CRITICAL":
            edges.add("SAFE")
        return edges

    def next(self, level: Fraction | None) -> str:
        if level is None:
            self.is_latched = False
            return "NO_MARGIN"
        if level <= CRITICAL_PCT or self.is_latched:
            self.is_latched |= self.latches and level <= CRITICAL_PCT
            return "CRITICAL"
        if level <= WARNING_PCT:
            return "WARNING"
        is_above = level > WARNING_PCT + RECOVERY_PCT
        return "WARNING" if self.rung in ("WARNING", "CRITICAL") and not is_above else "HEALTHY"


class Ladder:
    """One account on the kernel's ladder."""

    def __init__(self, latches: bool) -> None:
        self.latches, self.rows = latches, np.zeros(1, layout.LADDER)
        self.account, self.figures = np.zeros(1, layout.ACCOUNT), np.zeros(1, layout.FIGURES)
        self.account["leverage"], self.account["read_code"], self.account["fold_code"] = 1.0, RowCode.OK, RowCode.OK
        self.account["warning_level_pct"], self.account["critical_level_pct"] = WARNING_PCT, CRITICAL_PCT

    def step(self, equity: float, used: float, tick: str = "open") -> set[str]:
        leg, rates = np.zeros(1, layout.LEG), np.zeros(2, layout.LEG_RATE)
        instrument = np.zeros(1, layout.INSTRUMENT)
        instrument["code"] = RowCode.MARKET_CLOSED if tick == "closed" else RowCode.OK
        self.account["n_executed"] = self.account["n_legs"] = 1 if used or tick == "closed" else 0
        self.account["balance"] = np.nan if tick == "unknown" else equity
        leg["margin_base"], rates["margin"], rates["gain"], rates["loss"] = used, 1.0, 1.0, 1.0
        value_accounts(self.account, leg, rates, instrument, self.figures)
        edges = np.zeros(1, np.uint8)
        rows = np.zeros(1, np.int32)
        step_ladder(rows, self.account, self.figures, RECOVERY_PCT, self.latches, self.rows, edges)
        return {edge.name for edge in Edge if edges[0] & edge}


ticks = st.tuples(
    st.sampled_from(["open", "open", "open", "open", "unknown", "closed"]),
    st.sampled_from([0, CRITICAL_PCT, WARNING_PCT, WARNING_PCT + RECOVERY_PCT, 60]),
    st.sampled_from([-1, 0, 1]),
    st.integers(0, 10**7),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ticks, max_size=25), st.booleans())
@example([("open", 55, 1, 100), ("open", 50, 0, 100), ("open", 55, 0, 7), ("open", 55, 1, 7)], False)
@example([("open", 10, 0, 3), ("open", 60, 1, 3), ("unknown", 0, 0, 3), ("open", 60, 0, 0), ("open", 60, 0, 3)], True)
def test_the_ladder_is_its_twin_to_the_cent(sequence: Sequence[tuple[str, int, int, int]], latches: bool) -> None:
    """At each threshold, and one cent of equity below and above it."""
    kernel, slow = Ladder(latches), SlowLadder(latches)
    for tick, level, cents, used in sequence:
        equity = used * level + cents  # cents: the margin is whole dollars, so the threshold is whole cents
        exact = Fraction(equity, used) if used else None
        expected = slow.step(exact, tick)
        assert kernel.step(equity / 100, float(used), tick) == expected
        ladder = kernel.rows[0]
        event(" ".join(sorted(expected)) or "no edge")
        assert slow.rung == ("NEVER" if ladder["rung"] == 0 else LadderState(ladder["rung"]).name)
        assert bool(ladder["is_latched"]) == slow.is_latched
        assert (ladder["state"] != 0) == slow.is_known


@settings(max_examples=80, deadline=None)
@given(st.lists(ticks, max_size=40), st.booleans())
def test_episodes_and_breaches_begin_and_end_in_turn(sequence: Sequence[Any], latches: bool) -> None:
    kernel, in_episode, is_critical, is_lost = Ladder(latches), False, False, False
    for tick, level, cents, used in sequence:
        edges = kernel.step((used * level + cents) / 100, float(used), tick)
        assert not edges & ({"RECOVERED"} if not in_episode else {"WARNED"})
        assert not edges & ({"SAFE"} if not is_critical else {"BREACHED"})
        assert not edges & ({"FOUND"} if not is_lost else {"LOST"})
        assert tick == "open" or not edges - {"LOST", "FOUND"}
        if "RECOVERED" in edges:
            assert used == 0 or Fraction(used * level + cents, used) > WARNING_PCT + RECOVERY_PCT
        if latches and "SAFE" in edges:
            assert used == 0
        in_episode = "WARNED" in edges or (in_episode and "RECOVERED" not in edges)
        is_critical = "BREACHED" in edges or (is_critical and "SAFE" not in edges)
        is_lost = "LOST" in edges or (is_lost and "FOUND" not in edges)
        assert not is_critical or in_episode


@pytest.mark.parametrize("used", [0.01, 3.0, 1084.55, 33_333.33, 7e9])
def test_noise_in_the_last_digits_ends_no_episode(used: float) -> None:
    at = used * (WARNING_PCT + RECOVERY_PCT) / 100
    for equity in (at, np.nextafter(at, np.inf), np.nextafter(at, -np.inf)):
        ladder = Ladder(latches=False)
        assert ladder.step(used * WARNING_PCT / 100, used) == {"WARNED"}
        assert ladder.step(float(equity), used) == set()
        assert ladder.step(at * (1 + 1e-9), used) == {"RECOVERED"}


def test_a_latched_account_is_critical_until_its_positions_are_gone() -> None:
    ladder = Ladder(latches=False)
    ladder.rows["is_latched"] = True
    assert ladder.step(100.0, 100.0) == {"WARNED", "BREACHED"}
    ladder.account["n_executed"] = 1
    ladder.figures["state"] = LadderState.NO_MARGIN  # a hedge without margin is a position, too
    edges = np.zeros(1, np.uint8)
    step_ladder(np.zeros(1, np.int32), ladder.account, ladder.figures, 5.0, False, ladder.rows, edges)
    assert edges[0] == 0
    assert ladder.step(100.0, 0.0) == {"RECOVERED", "SAFE"}


def test_a_state_without_a_code_that_has_figures_is_unknown() -> None:
    ladder = Ladder(latches=False)
    ladder.step(60.0, 100.0)
    edges = np.zeros(1, np.uint8)
    ladder.figures["state"], ladder.figures["code"] = CRITICAL, RowCode.FIGURES_INCONSISTENT
    step_ladder(np.zeros(1, np.int32), ladder.account, ladder.figures, 5.0, False, ladder.rows, edges)
    assert (edges[0], ladder.rows["rung"][0]) == (Edge.LOST, LadderState.HEALTHY)


# -------------------------------------------------------------------------------------------------- plans


def rates_of(book: PlainBook) -> Rows:
    market = book.market
    rates: Rows = np.zeros(2 * len(market.instruments), layout.LEG_RATE)
    price_legs(market.instruments, market.quotes, CONVERSION_SIDES[book.rules.rate_side], rates)
    return rates


def planned(
    book: PlainBook, figures: Rows | None, mode: StopOut, *, closing: Sequence[int] = (), **more: Any
) -> list[tuple[int, float, bool]]:
    """The plan for the only account: (number of the order, lots, whether it is a cancel)."""
    row = next(iter(book.accounts_held().values()))
    number_of = {order_row: int(order_id[1:]) for order_id, order_row in book.orders_of(row).items()}
    is_closing = np.zeros(len(book.orders), np.uint8)
    is_closing[[order_row for order_row, number in number_of.items() if number in closing]] = more.get("mark", 1)
    limits: Rows = np.zeros(len(book.market.instruments), layout.LOT_LIMITS)
    limits["step"], limits["smallest"] = more.get("limits", (np.nan, np.nan))
    closes, counts = np.zeros(len(number_of) + 1, layout.CLOSE), np.zeros(1, np.int32)
    closes["order"] = -7
    total = plan_closes(
        np.array([row], np.int32),
        book.accounts,
        book.order_heads,
        book.orders,
        book.market.instruments,
        rates_of(book),
        is_closing,
        limits,
        mode,
        book.rules.nets_orders,
        closes,
        counts,
        figures,
        more.get("ladders"),
    )
    assert counts.tolist() == [total]
    assert (closes["order"][total:] == -7).all()
    assert (closes["account"][:total] == row).all()
    return [(number_of[int(c["order"])], float(c["lots"]), bool(c["is_cancel"])) for c in closes[:total]]


HEDGINGS = st.one_of(st.sampled_from(["max", "sum", "net"]), st.integers(0, 100))
POSITION = {"order_status": "OPEN", "execution_status": "EXECUTED"}


@dataclass(frozen=True)
class Case:
    """An account and its market, in texts; all else follows from exact arithmetic."""

    config: dict[str, Any]
    orders: list[dict[str, Any]]
    market: twin.Market

    def expected(self, without: Sequence[int] = (), lots: Any = None) -> twin.Expected:
        """Its figures without some orders, and with other lots of some."""
        changed = [
            {**order, "order_quantity": str(lots[number])} if lots and number in lots else order
            for number, order in enumerate(self.orders)
            if number not in without
        ]
        return twin.value(self.config, changed, self.market)

    @property
    def equity(self) -> Fraction:
        return Fraction(self.config["wallet_balance"]) + self.expected().pnl

    def is_critical(self, expected: twin.Expected) -> bool:
        """With the margin that is left, at the equity that stays; thresholds themselves have a test of their own."""
        if expected.used == 0:
            return False
        level = 100 * self.equity / expected.used
        assume(abs(level - expected.critical_pct) > Fraction(1, 10**6))
        return level <= expected.critical_pct

    def pnl(self, number: int) -> Fraction:
        return twin.value(self.config, [self.orders[number]], self.market).pnl

    def positions(self) -> list[int]:
        return [number for number, order in enumerate(self.orders) if order["execution_status"] == "EXECUTED"]

    def valued(self) -> tuple[PlainBook, Rows]:
        book = books.build([("live:1", (self.config, self.orders))], self.market)
        valuer = Valuer(book)
        valuer.value(NOW_MS, OPEN)
        return book, valuer.figures


@st.composite
def cases(draw: st.DrawFn, symbols: Sequence[str] = ("EURUSD", "USDJPY", "BTCUSD"), size: int = 6) -> Case:
    """Accounts whose level is at critical or below, and some above; few symbols, so that hedges are frequent."""
    terms = {("Standard", symbol): draw(books.terms_of(symbol)) for symbol in symbols}
    quotes = {symbol: draw(books.quotes()) for symbol in (*symbols, "JPYUSD")}
    market = twin.Market(
        terms,
        quotes,
        NOW_MS,
        five_day_open=True,
        rate_side=draw(st.sampled_from(["ask", "side", "mid"])),
        margin_price=draw(st.sampled_from(["current", "open"])),
        hedging=draw(HEDGINGS),
        max_age_ms=0,
    )
    orders = draw(st.lists(books.orders, min_size=1, max_size=size))
    states = [(POSITION, "EXECUTED")] * 4 + [({"order_status": "PENDING", "execution_status": None}, "")]
    for order in orders:
        order.update(draw(st.sampled_from(states))[0], symbol=draw(st.sampled_from(tuple(symbols))))
    config = {"leverage": "100", "group": None, "auto_cutoff_level": "50", "auto_liquidation_level": "10"}
    case = Case({**config, "wallet_balance": "0"}, orders, market)
    flat = case.expected()
    level = draw(st.sampled_from([Fraction(n, 10) for n in (-20, 1, 20, 50, 90, 99, 101, 300)]))
    cents = round((flat.used * level / 100 - flat.pnl) * 100)
    return replace(case, config={**config, "wallet_balance": f"{cents // 100}.{cents % 100:02}" if cents >= 0 else "0"})


def check_common(case: Case, plan: list[tuple[int, float, bool]]) -> list[tuple[int, Fraction]]:
    """What holds for every plan; returns the closes."""
    cancels = [number for number, _, is_cancel in plan if is_cancel]
    assert sorted(cancels) == [n for n in range(len(case.orders)) if n not in case.positions()]
    assert all(is_cancel for _, _, is_cancel in plan[: len(cancels)])
    closes = [(number, Fraction(repr(lots))) for number, lots, is_cancel in plan if not is_cancel]
    assert len({number for number, _ in closes}) == len(closes)
    for number, lots in closes:
        assert 0 < lots <= Fraction(case.orders[number]["order_quantity"])
    return closes


def expected_after(case: Case, closes: Sequence[tuple[int, Fraction]]) -> twin.Expected:
    left = {number: Fraction(case.orders[number]["order_quantity"]) - lots for number, lots in closes}
    whole = [number for number, lots in left.items() if lots == 0]
    return case.expected(whole, {number: str(float(lots)) for number, lots in left.items() if lots})


@settings(max_examples=50, deadline=None)
@given(cases())
def test_the_largest_losses_are_closed_and_no_more_than_needed(case: Case) -> None:
    book, figures = case.valued()
    plan = planned(book, figures, StopOut.LARGEST_LOSS)
    before = case.expected()
    assume(not before.reasons)
    if not case.is_critical(before):
        event("not critical")
        assert plan == []
        return
    closes = [number for number, _ in check_common(case, plan)]
    assert all(lots == float(case.orders[n]["order_quantity"]) for n, lots, is_cancel in plan if not is_cancel)
    rest = [number for number in case.positions() if number not in closes]
    noise = Fraction(1, 10**12) * (before.gross + 1)
    for better, worse in itertools.pairwise([case.pnl(number) for number in closes]):
        assert better <= worse + noise
    assert all(case.pnl(number) >= case.pnl(closes[-1]) - noise for number in rest if closes)
    if case.equity <= 0:
        event("nothing helps")
        assert rest == []
        return
    event(f"closes {len(closes)} and leaves {min(len(rest), 1)}")
    for count in range(len(closes)):
        assert case.is_critical(case.expected(closes[:count]))
    assert not case.is_critical(case.expected(closes))


@settings(max_examples=30, deadline=None)
@given(cases())
def test_what_frees_most_margin_is_closed_first(case: Case) -> None:
    book, figures = case.valued()
    plan = planned(book, figures, StopOut.LARGEST_MARGIN)
    before = case.expected()
    assume(not before.reasons)
    if not case.is_critical(before) or case.equity <= 0:
        return
    closes = [number for number, _ in check_common(case, plan)]
    for count, number in enumerate(closes):
        gone = closes[:count]
        assert case.is_critical(case.expected(gone))
        left = {n: case.expected([*gone, n]).used for n in case.positions() if n not in gone}
        assert left[number] <= min(left.values()) + Fraction(1, 10**8) * (before.gross + 1)
    assert not case.is_critical(case.expected(closes))


@settings(max_examples=50, deadline=None)
@given(cases(), st.sampled_from([("0.01", "0.01"), ("0.01", "0.05"), ("0.1", "0.1"), ("0.05", "0.1"), ("1", "1")]))
def test_parts_are_whole_steps_and_leave_enough(case: Case, limits: tuple[str, str]) -> None:
    book, figures = case.valued()
    step, smallest = map(Fraction, limits)
    plan = planned(book, figures, StopOut.SMALLEST_PARTIAL, limits=tuple(map(float, limits)))
    before = case.expected()
    assume(not before.reasons)
    if not case.is_critical(before):
        assert plan == []
        return
    closes = check_common(case, plan)
    if case.equity <= 0:
        assert len(closes) == len(case.positions())
        return
    for number, lots in closes:
        left = Fraction(case.orders[number]["order_quantity"]) - lots
        assert left == 0 or (left >= smallest and lots >= smallest and (lots / step).denominator == 1)
        event("in part" if left else "whole")
    assert not case.is_critical(expected_after(case, closes))
    number, lots = closes[-1]
    if len(closes) == 1 and lots > smallest and (lots / step).denominator == 1:
        # One step less of the only close is not enough, if it may be one step less.
        assume(Fraction(case.orders[number]["order_quantity"]) - lots + step >= smallest)
        assert case.is_critical(expected_after(case, [(number, lots - step)]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("ABC")), min_size=1, max_size=5), st.integers(1, 99))
def test_parts_are_the_fewest_lots(held: Sequence[tuple[int, str]], level: int) -> None:
    """Without hedges, in whole lots: against all ways to close."""
    prices = {"A": "1", "B": "3.5", "C": "2"}
    symbols = {"A": "EURUSD", "B": "GBPUSD", "C": "AUDUSD"}
    terms = {
        ("Standard", s): {"contract_size": "100", "profit": "USD", "type": "1", "crypto_margin_factor": "1"}
        for s in symbols.values()
    }
    quotes = {symbols[name]: {"bid": price, "ask": price, "ts": str(NOW_MS)} for name, price in prices.items()}
    market = twin.Market(terms, quotes, NOW_MS, True, "ask", "current", "max", 0)
    orders = [
        {"symbol": symbols[name], "order_type": "BUY", "order_price": prices[name], "order_quantity": str(lots)}
        | {"swap": "0", "commission": "0", **POSITION}
        for lots, name in held
    ]
    config = {"leverage": "1", "group": None, "auto_cutoff_level": "100", "auto_liquidation_level": "99.5"}
    rates = [100 * Fraction(prices[name]) for _, name in held]
    used = sum((lots * rate for (lots, _), rate in zip(held, rates, strict=True)), Fraction(0))
    equity = Fraction(round(used * level), 100)
    case = Case({**config, "wallet_balance": str(float(equity))}, orders, market)
    book, figures = case.valued()
    closes = check_common(case, planned(book, figures, StopOut.SMALLEST_PARTIAL, limits=(1.0, 1.0)))

    def is_enough(ways: Sequence[int]) -> bool:
        left = used - sum((count * rate for count, rate in zip(ways, rates, strict=True)), Fraction(0))
        return 200 * equity > 199 * left

    assert is_enough([int(dict(closes).get(number, 0)) for number in range(len(held))])
    every_way = itertools.product(*(range(lots + 1) for lots, _ in held))
    assert sum(lots for _, lots in closes) == min(sum(ways) for ways in every_way if is_enough(ways))


@pytest.mark.parametrize(("hedging", "lots"), [("max", "0.02"), ("sum", "0.01"), ("50", "0.02"), ("net", None)])
def test_a_hedge_is_closed_on_both_sides(hedging: str, lots: str | None) -> None:
    """One lot each way, a margin of 1,000 or 2,000; as little as is enough is closed of each side."""
    case = hedged(hedging, balance="100" if hedging != "sum" else "200")
    book, figures = case.valued()
    before = case.expected()
    plan = planned(book, figures, StopOut.SMALLEST_PARTIAL, limits=(0.01, 0.01))
    if lots is None:
        assert (before.used, plan) == (0, [])
        return
    closes = check_common(case, plan)
    assert twin.rung(expected_after(case, closes), case.equity) != "CRITICAL"
    assert sum(given for _, given in closes) == Fraction(lots)


def test_the_highest_price_goes_with_its_order() -> None:
    """Margin at the highest open price: the smaller order frees more, for it is the one that makes the other dear."""
    case = hedged("max", "0")
    orders = [
        {**case.orders[0], "order_price": price, "order_quantity": lots} for price, lots in (("2", "1"), ("1", "1.2"))
    ]
    market = replace(case.market, margin_price="open")
    case = Case({**case.config, "wallet_balance": "100200"}, orders, market)
    book, figures = case.valued()
    assert planned(book, figures, StopOut.LARGEST_MARGIN) == [(0, 1.0, False)]


def hedged(hedging: str, balance: str) -> Case:
    terms = {"contract_size": "100000", "profit": "USD", "type": "1", "crypto_margin_factor": "1"}
    quote = {"bid": "1", "ask": "1", "ts": str(NOW_MS)}
    rule: str | int = int(hedging) if hedging.isdecimal() else hedging
    market = twin.Market({("Standard", "EURUSD"): terms}, {"EURUSD": quote}, NOW_MS, True, "ask", "current", rule, 0)
    orders = [
        {"symbol": "EURUSD", "order_type": side, "order_price": "1", "order_quantity": "1", "swap": "0"}
        | {"commission": "0", **POSITION}
        for side in ("BUY", "SELL")
    ]
    config = {"leverage": "100", "group": None, "auto_cutoff_level": "50", "auto_liquidation_level": "10"}
    return Case({**config, "wallet_balance": balance}, orders, market)


@pytest.mark.parametrize("mode", StopOut)
def test_exactly_critical_is_critical_and_one_cent_above_is_not(mode: StopOut) -> None:
    for balance, is_planned in (("99.99", True), ("100", True), ("100.01", False)):
        case = hedged("max", balance)
        book, figures = case.valued()
        assert bool(planned(book, figures, mode, limits=(0.01, 0.01))) == is_planned


@settings(max_examples=25, deadline=None)
@given(cases(), st.sets(st.integers(0, 5)), st.sampled_from(StopOut))
def test_what_is_under_way_counts_as_gone(case: Case, closing: set[int], mode: StopOut) -> None:
    book, figures = case.valued()
    before = case.expected()
    assume(not before.reasons and case.is_critical(before))
    plan = planned(book, figures, mode, closing=sorted(closing), limits=(0.01, 0.01))
    assert not {number for number, _, _ in plan} & closing
    closes = [(number, Fraction(repr(lots))) for number, lots, is_cancel in plan if not is_cancel]
    whole = [(n, Fraction(case.orders[n]["order_quantity"])) for n in sorted(closing) if n in case.positions()]
    if case.equity > 0 and mode != StopOut.FLATTEN:
        assert not case.is_critical(expected_after(case, closes + whole))
        if not case.is_critical(expected_after(case, whole)):
            event("nothing more is needed")
            assert closes == []
    else:
        assert {number for number, _ in closes} == set(case.positions()) - closing


@settings(max_examples=25, deadline=None)
@given(books.books(max_accounts=1), st.sampled_from(StopOut))
def test_nothing_is_closed_of_who_is_healthy_or_unknown(book: Any, mode: StopOut) -> None:
    """Whatever is wrong in the book; and with figures that claim that the account is critical."""
    [held], market = book
    expected = twin.value(*held, market)
    built = books.build([("live:1", held)], market)
    valuer = Valuer(built)
    valuer.value(market.now_ms, np.array([market.five_day_open] * 4 + [True], np.uint8))
    claimed = valuer.figures.copy()
    claimed["state"], claimed["code"] = CRITICAL, RowCode.OK
    plan = planned(built, claimed, mode, limits=(0.01, 0.01))
    if expected.reasons or expected.closed:
        event("unknown or closed")
        assert plan == []
    elif valuer.figures["state"][0] != CRITICAL:
        event("healthy")
        assert plan == []
    figures = valuer.figures.copy()
    figures["code"] = RowCode.FIGURES_INCONSISTENT
    assert planned(built, figures, mode) == []


def test_what_cannot_be_closed_now_keeps_its_margin() -> None:
    case = hedged("sum", "200")
    book, figures = case.valued()
    for mode in StopOut:
        assert planned(book, figures, mode, closing=[0], mark=2) == [(1, 1.0, False)]
        gone = [] if mode != StopOut.FLATTEN else [(1, 1.0, False)]
        assert planned(book, figures, mode, closing=[0], mark=1) == gone


def test_of_a_latched_account_everything_is_closed() -> None:
    case = hedged("max", "5000")
    book, figures = case.valued()
    ladders = np.zeros(len(book.accounts), layout.LADDER)
    assert planned(book, figures, StopOut.LARGEST_LOSS, ladders=ladders) == []
    ladders["is_latched"] = True
    assert len(planned(book, figures, StopOut.LARGEST_LOSS, ladders=ladders)) == 2
    figures["code"] = RowCode.MARKET_CLOSED
    assert planned(book, figures, StopOut.LARGEST_LOSS, ladders=ladders) == []


@settings(max_examples=25, deadline=None)
@given(books.books(max_accounts=1))
def test_profits_of_single_orders_add_up(book: Any) -> None:
    [(config, held)], market = book
    built = books.build([("live:1", (config, held))], market)
    valuer = Valuer(built)
    valuer.value(market.now_ms, np.array([market.five_day_open] * 4 + [True], np.uint8))
    rows = {int(order_id[1:]): row for order_id, row in built.orders_of(0).items()}
    pnls = np.zeros(len(rows))
    order_pnls(np.array(list(rows.values()), np.int32), built.orders, built.market.instruments, rates_of(built), pnls)
    for number, pnl in zip(rows, pnls.tolist(), strict=True):
        alone = twin.value(config, [held[number]], market)
        is_position = isinstance(held[number], dict) and not alone.reasons and alone.used > 0
        if is_position:
            books.assert_close(pnl, alone.pnl, alone.gross)
        elif not alone.reasons:
            assert np.isnan(pnl)


# ------------------------------------------------------------------------------------------------- shapes


def arguments() -> dict[str, Any]:
    orders = np.zeros(2, layout.ORDER)
    orders["next"], orders["code"], orders["effect"] = [1, -1], RowCode.OK, 2
    return {
        "rows": np.zeros(1, np.int32),
        "accounts": np.zeros(1, layout.ACCOUNT),
        "order_head": np.zeros(1, np.int32),
        "orders": orders,
        "instruments": np.zeros(1, layout.INSTRUMENT),
        "leg_rates": np.zeros(2, layout.LEG_RATE),
        "closing": np.zeros(2, np.uint8),
        "lot_limits": np.zeros(1, layout.LOT_LIMITS),
        "mode": StopOut.LARGEST_LOSS,
        "net_orders": True,
        "closes": np.zeros(2, layout.CLOSE),
        "counts": np.full(1, -7, np.int32),
        "figures": np.zeros(1, layout.FIGURES),
        "ladders": np.zeros(1, layout.LADDER),
    }


def beyond(name: str, field: str, value: int) -> Any:
    rows = arguments()[name].copy()
    rows[field][1] = value
    return rows


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, array[:-1])
            for name, array in arguments().items()
            if isinstance(array, np.ndarray) and name != "rows"
        ),
        ("rows", np.array([1], np.int32)),
        ("rows", np.array([-1], np.int32)),
        ("order_head", np.array([2], np.int32)),
        ("orders", beyond("orders", "next", 0)),
        ("orders", beyond("orders", "next", 2)),
        ("orders", beyond("orders", "instrument", 1)),
        ("orders", beyond("orders", "instrument", -1)),
        ("mode", 0),
        ("mode", 5),
    ],
)
def test_a_plan_that_makes_no_sense_writes_nothing(name: str, value: Any) -> None:
    given = arguments()
    assert plan_closes(**given) == 0
    given = {**arguments(), name: value}
    with pytest.raises(ShapeError):
        plan_closes(**given)
    assert given["counts"].tolist() in ([-7], [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", np.array([1], np.int32)),
        ("figures", np.zeros(2, layout.FIGURES)),
        ("ladders", np.zeros(2, layout.LADDER)),
        ("edges", np.zeros(2, np.uint8)),
        ("recovery_pct", -1.0),
        ("recovery_pct", float("nan")),
    ],
)
def test_a_step_that_makes_no_sense_writes_nothing(name: str, value: Any) -> None:
    given: dict[str, Any] = {
        "rows": np.zeros(1, np.int32),
        "accounts": np.zeros(1, layout.ACCOUNT),
        "figures": np.zeros(1, layout.FIGURES),
        "recovery_pct": 5.0,
        "latches": False,
        "ladders": np.zeros(1, layout.LADDER),
        "edges": np.full(1, 7, np.uint8),
    }
    with pytest.raises(ShapeError, match=name):
        step_ladder(**{**given, name: value})
    assert given["edges"][0] == 7
    out: npt.NDArray[np.float64] = np.zeros(1)
    orders, instruments, rates = (arguments()[key] for key in ("orders", "instruments", "leg_rates"))
    with pytest.raises(ShapeError):
        order_pnls(np.array([2], np.int32), orders, instruments, rates, out)
    with pytest.raises(ShapeError):
        order_pnls(np.zeros(1, np.int32), orders, instruments, rates[:1], out)
