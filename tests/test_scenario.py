"""The liquidation ladder against a bisecting twin on the whole valuation, and the what-if against books that moved."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from copyrisk import layout, scenario
from copyrisk._core import LadderState, OrderEffect, RowCode, price_legs, value_rows
from copyrisk._cutoff import StopOut, order_pnls
from copyrisk._scenario import Reach, find_crossings
from copyrisk.derived import copy_id
from copyrisk.errors import Refused, ShapeError
from copyrisk.identifiers import parse_account
from copyrisk.layout import Rows
from copyrisk.risk import CONVERSION_SIDES, Valuer
from copyrisk.scenario import CROSSING, crossings, ladder_of_symbol, ladder_overview, what_if
from tests.books import NOW_MS, OPEN, PlainBook, fill_account, fill_market, rules_of

# ---- books with every kind of conversion: none, direct, inverse, the symbol itself; crypto at its order's price

PRICES = {
    "EURUSD": 1.08455,
    "EURGBP": 0.8612,
    "GBPUSD": 1.2593,
    "USDJPY": 154.21,
    "EURJPY": 167.25,
    "BTCUSD": 68_123.45,
    "ETHJPY": 512_345.6,
    "CHFUSD": 1.1123,
}
PROFITS = {"EURGBP": "GBP", "USDJPY": "JPY", "EURJPY": "JPY", "ETHJPY": "JPY", "CHFUSD": "CHF"}
CRYPTO = ("BTCUSD", "ETHJPY")
LEVELS = {"auto_cutoff_level": "50", "auto_liquidation_level": "10"}
RULES = st.fixed_dictionaries(
    {
        "rate_side": st.sampled_from(["ask", "side", "mid"]),
        "margin_price": st.sampled_from(["current", "open"]),
        "hedging": st.sampled_from(["max", "sum", "net", 30]),
    }
)
positions = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(tuple(PRICES)),
        "order_type": st.sampled_from(["BUY", "SELL"]),
        "part": st.integers(950, 1050),  # of the price, in thousandths
        "order_quantity": st.sampled_from(["0.10", "0.30", "0.30", "1.00", "2.50"]),
        "execution_status": st.sampled_from(["EXECUTED"] * 7 + ["QUEUED"]),
    }
)
#: Levels from which accounts set out, in percent.
STARTS = st.sampled_from([-20.0, 9.9, 10.1, 30.0, 50.1, 60.0, 150.0, 400.0, 2_000.0])
held_accounts = st.tuples(st.lists(positions, min_size=1, max_size=7), STARTS)


def market_of(bids: Mapping[str, float] = PRICES, spread: float = 1.0002) -> list[dict[str, Any]]:
    return [
        {
            "symbol": symbol,
            "bid": f"{bid:.6f}",
            "ask": f"{bid * spread:.6f}",
            "contract_size": "10" if symbol in CRYPTO else "100000",
            "profit": PROFITS.get(symbol, "USD"),
            "type": "4" if symbol in CRYPTO else "1",
            "crypto_margin_factor": "2",
        }
        for symbol, bid in bids.items()
    ]


def order(given: Mapping[str, Any]) -> dict[str, Any]:
    price = f"{PRICES[given['symbol']] * given['part'] / 1000:.5f}"
    return {**{name: value for name, value in given.items() if name != "part"}, "order_price": price, "swap": "-1.25"}


class House:
    """A valued book whose accounts stand at given levels."""

    def __init__(self, accounts: Sequence[Any], rules: Mapping[str, Any] | None = None, **more: Any) -> None:
        self.book = PlainBook(rules_of(rules or {}))
        fill_market(self.book, market_of())
        config = {"wallet_balance": "0", "leverage": "100", **LEVELS}
        for number, (orders, _) in enumerate(accounts):
            fill_account(self.book, f"live:{number}", config, [order(one) for one in orders])
        self.open = more.get("open", OPEN)
        self.value()
        for row, (_, start_pct) in enumerate(accounts):
            figure = self.valuer.figures[row]
            balance = figure["used_margin_executed"] * start_pct / 100.0 - figure["open_pnl"]
            self.book.accounts["balance"][row] = round(balance, 2) if math.isfinite(balance) else 1_000.0
        self.value()

    def value(self) -> None:
        self.book.stale[:] = True
        self.valuer = Valuer(self.book)
        self.valuer.value(NOW_MS, self.open)

    @property
    def figures(self) -> Rows:
        return self.valuer.figures

    def moved(self, factors: Mapping[str, float]) -> None:
        """Let quotes really move."""
        for symbol, factor in factors.items():
            row = self.book.market.quote_row[symbol]
            for side in ("bid", "ask"):
                self.book.market.quotes[side][row] *= factor
        self.value()

    def what_if(self, moves: Mapping[str, str | float], **more: Any) -> dict[str, Any]:
        given: dict[str, Any] = {"stop_out": StopOut.LARGEST_LOSS, "followers": lambda _: {}, "now_ms": NOW_MS, **more}
        return what_if(self.book, self.figures, {s: Decimal(str(m)) for s, m in moves.items()}, **given)


# --------------------------------------------------------------------------------------------------- twin


class Twin:
    """One account valued in full, by the kernels of the tick, on quotes of which one is multiplied."""

    def __init__(self, house: House, row: int, quote: int) -> None:
        self.house, self.row, self.quote = house, row, quote
        self.account: Any = house.book.accounts[row]

    def above(self, factor: float, level_pct: float) -> tuple[float, float]:
        """Equity above the level in USD, and the used margin."""
        book = self.house.book
        quotes, instruments = book.market.quotes.copy(), book.market.instruments.copy()
        for side in ("bid", "ask"):
            quotes[side][self.quote] *= factor
        rates, figures = np.zeros(2 * len(instruments), layout.LEG_RATE), np.zeros(len(book.accounts), layout.FIGURES)
        price_legs(instruments, quotes, CONVERSION_SIDES[book.rules.rate_side], rates)
        value_rows(np.array([self.row], np.int32), book.accounts, book.legs, rates, instruments, figures)
        figure = figures[self.row]
        used = float(figure["used_margin_executed"])
        return float(figure["equity"]) - level_pct / 100.0 * used, used

    def gross(self) -> float:
        """What was added up and taken away: doubles are exact to 1e-16 of this."""
        book, first = self.house.book, self.account["first"]
        legs = book.legs[first : first + self.account["n_executed"]]
        rates = self.house.valuer.rates[legs["rate"]]
        each = (np.abs(legs["units"]) * rates["price"] + np.abs(legs["cost"])) * rates["loss"]
        return float(each.sum() + abs(self.account["balance"]))

    def check(self, move: float, level_pct: float, end: float) -> None:
        """That this is the first move on the way to `end` at which the level is reached; NaN: none is."""
        grid = np.geomspace(1.0, end, 32)
        values = [self.above(factor, level_pct)[0] for factor in grid]
        reached = next((k for k, value in enumerate(values) if value <= 0.0), None)
        noise = 1e-12 * self.gross() * max(1.0, end, 1.0 / (1.0 + move) if move > -1.0 else 1.0)
        if math.isnan(move):
            assert reached is None or min(values) > -noise
            return
        factor = 1.0 + move
        before = [value for at, value in zip(grid, values, strict=True) if abs(at - 1.0) < abs(move) * (1 - 1e-9)]
        assert min(before, default=1.0) > -noise
        if reached is None:  # it is touched between two points of the grid
            assert abs(self.above(factor, level_pct)[0]) <= noise
            return
        good, bad = (grid[reached - 1], grid[reached]) if reached else (1.0, 1.0)
        for _ in range(80):
            middle = 0.5 * (good + bad)
            good, bad = (middle, bad) if self.above(middle, level_pct)[0] > 0.0 else (good, middle)
        is_same = abs(factor - bad) <= 1e-9 * bad
        # A hedge may lie so flat on its level, or cross it twice between two points, that only the value decides.
        assert is_same or abs(self.above(factor, level_pct)[0]) <= noise


def check_crossings(house: House) -> set[int]:
    found, book, seen = crossings(house.book, house.figures), house.book, set()
    for one in found:
        twin, account = Twin(house, int(one["account"]), int(one["quote"])), book.accounts[one["account"]]
        warning_pct, critical_pct = float(account["warning_level_pct"]), float(account["critical_level_pct"])
        above_critical, used = twin.above(1.0, critical_pct)
        above_warning = twin.above(1.0, warning_pct)[0]
        assert one["lots"] == pytest.approx(lots_held(house, int(one["account"]), int(one["quote"])), abs=1e-9)
        seen.add(int(one["code"]))
        if one["code"] == Reach.AT_CRITICAL:
            assert above_critical <= 1e-12 * twin.gross() and used > 0
            assert np.isnan([one[f"{k}_{d}"] for k in ("warning", "critical") for d in ("up", "down")]).all()
            continue
        if used == 0.0:
            assert np.isnan([one[f"{k}_{d}"] for k in ("warning", "critical") for d in ("up", "down")]).all()
            continue
        levels = {"critical": critical_pct}
        if one["code"] == Reach.AT_WARNING:
            assert above_warning <= 1e-12 * twin.gross()
            assert math.isnan(one["warning_down"]) and math.isnan(one["warning_up"])
        else:
            assert one["code"] == Reach.AHEAD
            levels["warning"] = warning_pct
        for kind, level_pct in levels.items():
            for direction, end in (("down", 0.01), ("up", 11.0)):
                move = float(one[f"{kind}_{direction}"])
                assert math.isnan(move) or (-0.99 <= move <= 0.0 if direction == "down" else 0.0 <= move <= 10.0)
                event(f"{'none' if math.isnan(move) else 'found'} {direction}")
                twin.check(move, level_pct, end)
    return seen


def lots_held(house: House, row: int, quote: int) -> float:
    book = house.book
    return sum(
        float(o["lots"])
        for o in (book.orders[order_row] for order_row in book.orders_of(row).values())
        if o["effect"] == OrderEffect.EXECUTED and book.market.instruments["quote"][o["instrument"]] == quote
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(held_accounts, min_size=1, max_size=2), RULES)
def test_crossings_are_where_the_whole_valuation_reaches_the_levels(accounts: Any, rules: Any) -> None:
    check_crossings(House(accounts, rules))


@settings(max_examples=25, deadline=None)
@given(st.lists(positions, min_size=3, max_size=7), STARTS, RULES, st.booleans())
def test_curves_of_any_degree_are_followed(orders: Any, start_pct: float, rules: Any, is_inverse: bool) -> None:
    """A symbol that converts itself directly, and other positions inversely: up to a cubic with kinks."""
    symbols = ["CHFUSD", "EURGBP", "EURUSD", "CHFUSD"]
    orders = [{**one, "symbol": symbols[k % 4]} for k, one in enumerate(orders)]
    house = House([], rules)
    market = house.book.market
    row = next(i for i, key in enumerate(market.instrument_keys) if key.symbol == "EURGBP")
    market.instruments["direct" if is_inverse else "inverse"][row] = -1
    market.instruments["inverse" if is_inverse else "direct"][row] = market.quote_row["CHFUSD"]
    config = {"wallet_balance": "0", "leverage": "100", **LEVELS}
    fill_account(house.book, "live:1", config, [order(one) for one in orders])
    house.value()
    figure = house.figures[0]
    house.book.accounts["balance"][0] = figure["used_margin_executed"] * start_pct / 100.0 - figure["open_pnl"]
    house.value()
    check_crossings(house)


# ------------------------------------------------------------------------------------------ known figures


def buy(symbol: str = "EURUSD", lots: str = "1.00", **more: Any) -> dict[str, Any]:
    return {"symbol": symbol, "order_type": "BUY", "part": 1000, "order_quantity": lots, **more}


def sell(symbol: str = "EURUSD", lots: str = "1.00", **more: Any) -> dict[str, Any]:
    return {**buy(symbol, lots, **more), "order_type": "SELL"}


def crossing(house: House, number: int = 0) -> Any:
    return crossings(house.book, house.figures)[number]


def test_a_long_position_is_a_line() -> None:
    """balance + fees + units x (bid s - price) = level x units x ask s / leverage."""
    house = House([([buy()], 400.0)])
    balance, units, bid, ask = float(house.book.accounts["balance"][0]), 100_000.0, 1.08455, 1.084767
    one = crossing(house)
    for kind, level in (("warning", 0.5), ("critical", 0.1)):
        factor = (units * 1.08455 + 1.25 - balance) / (units * (bid - level * ask / 100.0))
        assert one[f"{kind}_down"] == pytest.approx(factor - 1.0, rel=1e-9)
        assert math.isnan(one[f"{kind}_up"])
    assert (one["code"], one["lots"]) == (Reach.AHEAD, 1.0)


def test_a_symbol_that_is_its_own_inverse_rate() -> None:
    """USDJPY in yen: the profit is units x (1 - price / (bid s)) in USD, and the margin does not move."""
    house = House([([buy("USDJPY")], 400.0)], {"rate_side": "mid"})
    balance = float(house.book.accounts["balance"][0]) - 1.25
    quote = house.book.market.quotes[house.book.market.quote_row["USDJPY"]]
    mid, used = 0.5 * (quote["bid"] + quote["ask"]), float(house.figures["used_margin_executed"][0])
    units_usd = 100_000.0 * float(quote["bid"]) / mid
    factor = 100_000.0 * 154.21 / mid / (balance + units_usd - 0.1 * used)
    assert crossing(house)["critical_down"] == pytest.approx(factor - 1.0, rel=1e-9)


def test_a_hedge_has_no_crossing_near() -> None:
    house = House([([buy(), sell()], 100.0)])
    one = crossing(house)
    assert math.isnan(one["critical_down"]) and one["critical_up"] > 1.0
    assert one["lots"] == 2.0


def test_who_stands_at_a_level_has_no_move_to_it() -> None:
    house = House([([buy()], 49.9), ([buy()], 9.9), ([buy()], 50.1), ([buy(execution_status="QUEUED")], 1.0)])
    found = crossings(house.book, house.figures)
    assert found["code"].tolist() == [Reach.AT_WARNING, Reach.AT_CRITICAL, Reach.AHEAD]
    assert np.isnan(found["warning_down"][:2]).all() and not np.isnan(found["critical_down"][[0, 2]]).any()
    assert abs(found["warning_down"][2]) < 1e-4 and found["critical_down"][2] < -1e-3


def test_unknown_accounts_and_shut_markets_are_told_apart() -> None:
    five_days_shut = np.array([1, 0, 0, 0, 1], np.uint8)
    house = House([([buy("EURUSD"), buy("BTCUSD")], 400.0), ([buy("BTCUSD")], 400.0)], open=five_days_shut)
    found = crossings(house.book, house.figures)
    symbols = [house.book.market.symbols[quote] for quote in found["quote"]]
    by_symbol = sorted(zip(found["account"].tolist(), symbols, found["code"].tolist(), strict=True))
    assert by_symbol == [(0, "BTCUSD", Reach.MARKET_SHUT), (0, "EURUSD", Reach.AHEAD), (1, "BTCUSD", Reach.AHEAD)]
    ladder = ladder_of_symbol(house.book, found, "BTCUSD", NOW_MS)
    assert (ladder["accounts"], ladder["closed"], ladder["unknown"]) == (2, 1, 0)
    house.valuer.withhold(np.array([0], np.int32), RowCode.ACCOUNT_CHANGING)
    found = crossings(house.book, house.figures)
    assert found["code"].tolist() == [Reach.NOT_KNOWN, Reach.NOT_KNOWN, Reach.AHEAD]
    assert np.isnan(found["critical_down"][:2]).all()


def test_an_empty_book_has_an_empty_ladder() -> None:
    house = House([])
    found = crossings(house.book, house.figures)
    assert len(found) == 0 and ladder_overview(house.book, found, 5) == {"now_ms": 5, "symbols": []}
    assert ladder_of_symbol(house.book, found, "EURUSD", 5)["nearest"] == []
    assert house.what_if({"EURUSD": -5})["equity"]["after_usd"] == 0.0


def test_arrays_that_do_not_fit_are_refused() -> None:
    house = House([([buy()], 400.0)])
    book, rates = house.book, house.valuer.rates
    rows, room = np.zeros(1, np.int32), np.zeros(1, CROSSING)
    sound = [rows, book.accounts, book.legs, rates, book.market.instruments, book.market.quotes, house.figures, room]
    assert find_crossings(*sound) == 1
    outside = book.legs.copy()
    outside["rate"] = 999
    for place, wrong, name in (
        (0, np.array([7], np.int32), "rows"),
        (2, outside, "legs"),
        (2, outside[:0], "accounts"),
        (3, rates[:1], "leg_rates"),
        (5, book.market.quotes[:0], "instruments"),
        (6, house.figures[:0], "figures"),
        (7, room[:0], "crossings"),
    ):
        with pytest.raises(ShapeError, match=name):
            find_crossings(*[wrong if k == place else given for k, given in enumerate(sound)])


# ------------------------------------------------------------------------------------------------ ladders


@settings(max_examples=15, deadline=None)
@given(st.lists(held_accounts, min_size=1, max_size=6), st.sampled_from(tuple(PRICES)))
def test_rungs_count_what_really_moved_quotes_would_reach(accounts: Any, symbol: str) -> None:
    """Of accounts that meet a level once, as the first rungs here, the rung says what a moved book says."""
    house = House(accounts)
    found = crossings(house.book, house.figures)
    ladder = ladder_of_symbol(house.book, found, symbol, NOW_MS)
    holders = found[found["quote"] == house.book.market.quote_row[symbol]]
    assert len(ladder["rungs"]) == 30 and ladder["accounts"] == len(holders)
    for rung in ladder["rungs"][::5]:
        moved = House(accounts)
        moved.moved({symbol: 1.0 + rung["move_pct"] / 100.0})
        states = moved.figures["state"][holders["account"][holders["code"] != Reach.AT_CRITICAL]]
        assert rung["critical"]["accounts"] >= int((states == LadderState.CRITICAL).sum())
        ahead = holders["account"][holders["code"] == Reach.AHEAD]
        worse = moved.figures["state"][ahead] >= LadderState.WARNING
        assert rung["warning"]["accounts"] >= int(worse.sum())
        if rung["move_pct"] == -0.25:
            assert rung["warning"]["accounts"] == int(worse.sum())


def test_the_ladder_of_a_symbol_in_full() -> None:
    house = House([([buy()], 400.0), ([buy()], 60.0), ([sell(lots="2.50")], 60.0), ([buy()], 30.0), ([buy()], 5.0)])
    found = crossings(house.book, house.figures)
    ladder = ladder_of_symbol(house.book, found, "EURUSD", NOW_MS)
    assert {key: ladder[key] for key in ("symbol", "bid", "ask", "now_ms", "accounts", "lots")} == {
        "symbol": "EURUSD",
        "bid": 1.08455,
        "ask": 1.084767,
        "now_ms": NOW_MS,
        "accounts": 5,
        "lots": 6.5,
    }
    assert ladder["already"] == {"warning": 1, "critical": 1}
    assert ladder["unknown"] == ladder["closed"] == 0
    rungs = {(rung["direction"], rung["move_pct"]): rung for rung in ladder["rungs"]}
    assert [key[1] for key in rungs][:3] == [-0.25, -0.5, -0.75]
    half = rungs["down", -0.5]
    assert half == {
        "direction": "down",
        "price": pytest.approx(1.08455 * 0.995, rel=1e-7),
        "move_pct": -0.5,
        "warning": {"accounts": 1, "lots": 1.0},
        "critical": {"accounts": 1, "lots": 1.0},
    }
    assert rungs["down", -0.75]["critical"] == {"accounts": 2, "lots": 2.0}
    assert rungs["down", -4.0]["warning"] == {"accounts": 2, "lots": 2.0}
    assert rungs["down", -50.0]["critical"] == {"accounts": 3, "lots": 3.0}
    assert rungs["up", 1.0]["critical"] == {"accounts": 1, "lots": 2.5}
    assert rungs["up", 1.0]["price"] == pytest.approx(1.084767 * 1.01, rel=1e-7)  # what is sold is closed at the ask
    found["warning_down"][0] = -0.0075 * (1.0 + 1e-15)  # at the rung, but for the last digit
    exactly = ladder_of_symbol(house.book, found, "EURUSD", NOW_MS)["rungs"]
    assert [rung["warning"]["accounts"] for rung in exactly[:3]] == [1, 1, 2]
    nearest = ladder["nearest"]
    assert [abs(one["move_pct"]) for one in nearest] == sorted(abs(one["move_pct"]) for one in nearest)
    assert {(one["account"], one["kind"]) for one in nearest[:2]} == {("live:1", "warning"), ("live:2", "warning")}
    assert len(nearest) == 7 and set(nearest[0]) == {"account", "kind", "price", "move_pct", "lots"}
    overview = ladder_overview(house.book, found, NOW_MS)["symbols"]
    assert [one["symbol"] for one in overview] == ["EURUSD"]
    assert overview[0]["down"]["warning"]["move_pct"] == max(
        one["move_pct"] for one in nearest if one["kind"] == "warning" and one["move_pct"] < 0
    )
    assert overview[0]["up"]["critical"]["price"] > 1.084767
    with pytest.raises(Refused) as refusal:
        ladder_of_symbol(house.book, found, "XAUUSD", NOW_MS)
    assert refusal.value.code == "unknown_symbol"


# ------------------------------------------------------------------------------------------------ what if


@settings(max_examples=20, deadline=None)
@given(st.lists(held_accounts, min_size=1, max_size=6), RULES, st.booleans())
def test_without_a_move_nothing_changes(accounts: Any, rules: Any, has_name: bool) -> None:
    house = House(accounts, rules)
    before = [array.tobytes() for array in (house.book.accounts, house.book.market.quotes, house.figures)]
    result = house.what_if({"EURUSD": "0", "USDJPY": "0.0"} if has_name else {})
    assert result["before"] == result["after"]
    assert result["warned"]["count"] == result["liquidated"]["count"] == result["closed"] == 0
    assert result["equity"]["before_usd"] == result["equity"]["after_usd"]
    assert [array.tobytes() for array in (house.book.accounts, house.book.market.quotes, house.figures)] == before


def test_what_demo_accounts_hold_is_nobodys_money() -> None:
    house = House([([], 0.0)])
    fill_account(house.book, "demo:7", {"wallet_balance": "700", "leverage": "100", **LEVELS}, [])
    house.book.accounts["balance"][house.book.row_of(parse_account("live:0"))] = 30.0
    house.value()
    said = house.what_if({})["equity"]
    assert (said["before_usd"], said["after_usd"], said["negative_accounts"]) == (30.0, 30.0, 0)


MOVES = st.dictionaries(
    st.sampled_from(tuple(PRICES)), st.sampled_from(["-50", "-5", "-1.25", "0.5", "3", "40"]), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None)
@given(st.lists(held_accounts, min_size=1, max_size=8), RULES, MOVES)
def test_moves_give_what_a_book_gives_whose_quotes_moved(accounts: Any, rules: Any, moves: Any) -> None:
    house, other = House(accounts, rules), House(accounts, rules)
    other.moved({symbol: float(1 + Decimal(move) / 100) for symbol, move in moves.items()})
    result = house.what_if(moves)
    was, now = house.figures["state"], other.figures["state"]
    assert result["before"] == {s.name.lower().removeprefix("state_"): int((was == s).sum()) for s in LadderState}
    assert result["after"] == {s.name.lower().removeprefix("state_"): int((now == s).sum()) for s in LadderState}
    warned = {one["account"]: one for one in result["warned"]["accounts"]}
    liquidated = {one["account"]: one for one in result["liquidated"]["accounts"]}
    for row in range(len(accounts)):
        name, figure = f"live:{row}", other.figures[row]
        assert (name in liquidated) == (now[row] == LadderState.CRITICAL > was[row])
        assert (name in warned) == (now[row] == LadderState.WARNING > was[row])
        one = warned.get(name) or liquidated.get(name)
        if one:
            assert one["equity_usd"] == pytest.approx(figure["equity"], abs=0.0051)
            assert one["margin_level_pct"] == pytest.approx(figure["margin_level_pct"], abs=0.0051)
    equity = other.figures["equity"]
    assert result["equity"]["after_usd"] == pytest.approx(equity.sum(), abs=0.0051, rel=1e-12)
    assert result["equity"]["negative_accounts"] == int((equity < 0).sum())
    assert result["equity"]["negative_usd"] == pytest.approx(equity[equity < 0].sum(), abs=0.0051, rel=1e-12)
    event(f"{len(liquidated)} liquidated")


def closed_in_turn(house: House, row: int) -> tuple[int, float, LadderState, float, float]:
    """Close the largest loss, book it, value the book anew, and so on: closes, lots, and what is left."""
    book, closes, lots = house.book, 0, 0.0
    for order_id, order_row in book.orders_of(row).items():
        if book.orders["effect"][order_row] != OrderEffect.EXECUTED:
            book.remove_order(row, order_id)
    house.value()
    # If equity is not above 0 no close helps: everything goes, a hedge without margin, too.
    everything = not house.figures["equity"][row] > 0.0
    while house.figures["state"][row] == LadderState.CRITICAL or (everything and book.orders_of(row)):
        held = book.orders_of(row)
        order_rows, pnls = np.array(list(held.values()), np.int32), np.zeros(len(held))
        order_pnls(order_rows, book.orders, book.market.instruments, house.valuer.rates, pnls)
        by_loss = sorted(zip(pnls, -book.orders["lots"][order_rows], order_rows, held, strict=True))
        pnl, minus_lots, _, order_id = by_loss[0]
        closes, lots = closes + 1, lots - float(minus_lots)
        book.accounts["balance"][row] += pnl
        book.remove_order(row, order_id)
        house.value()
    figure = house.figures[row]
    return closes, lots, LadderState(figure["state"]), float(figure["margin_level_pct"]), float(figure["equity"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(positions, min_size=1, max_size=6), st.sampled_from([12.0, 60.0])), min_size=1, max_size=4
    ),
    RULES,
    MOVES,
)
def test_what_is_left_is_what_closing_order_by_order_leaves(accounts: Any, rules: Any, moves: Any) -> None:
    house, other = House(accounts, rules), House(accounts, rules)
    other.moved({symbol: float(1 + Decimal(move) / 100) for symbol, move in moves.items()})
    for one in house.what_if(moves)["liquidated"]["accounts"]:
        row = house.book.row_of(parse_account(one["account"]))
        closes, lots, state, level_pct, equity = closed_in_turn(other, row)
        event(f"{closes} closes")
        assert (one["closes"], one["lots"]) == (closes, pytest.approx(lots, abs=1e-9))
        assert one["equity_after_usd"] == pytest.approx(equity, abs=0.0051, rel=1e-12)
        if state == LadderState.NO_MARGIN:
            assert one["level_after_pct"] is None
        else:
            assert one["level_after_pct"] == pytest.approx(level_pct, abs=0.0051, rel=1e-9)


def test_a_part_that_is_enough_is_closed_in_part_and_a_flattened_account_has_nothing() -> None:
    house = House([([buy(lots="2.50")], 60.0)])
    limits: Rows = np.zeros(len(house.book.market.instruments), layout.LOT_LIMITS)
    limits["step"] = limits["smallest"] = 0.01
    in_part = house.what_if({"EURUSD": "-0.55"}, stop_out=StopOut.SMALLEST_PARTIAL, lot_limits=limits)
    flat = house.what_if({"EURUSD": "-0.55"}, stop_out=StopOut.FLATTEN)
    (one,), (other,) = in_part["liquidated"]["accounts"], flat["liquidated"]["accounts"]
    assert 0 < one["lots"] < 2.5 and one["level_after_pct"] > 10.0
    assert (other["closes"], other["lots"], other["level_after_pct"]) == (1, 2.5, None)
    assert one["equity_after_usd"] == other["equity_after_usd"] == pytest.approx(one["equity_usd"], abs=0.011)
    # By hand: the margin is 1 % of the value at the ask, and the level above 10 % of it.
    level = one["equity_usd"] / (1.084767 * 0.9945 * 1_000 * (2.5 - one["lots"])) * 100
    assert one["level_after_pct"] == pytest.approx(level, abs=0.0051)


def test_masters_cascade_onto_the_copies_of_their_orders() -> None:
    house = House([])
    book, config = house.book, {"wallet_balance": "1100", "leverage": "100", **LEVELS}
    fill_account(book, "strategy_provider:M", config, [order(buy())])
    fill_account(book, "strategy_provider:N", {**config, "wallet_balance": "90000"}, [order(buy())])
    for follower, lots in (("F1", "0.40"), ("F2", "0.30"), ("F3", "0.20"), ("F4", "0.10")):
        row = fill_account(book, f"copy_follower:{follower}", {**config, "wallet_balance": "9000"}, [])
        copy = copy_id("O0", parse_account(f"copy_follower:{follower}"))
        book.hold(row, [copy, "own"])
        for name in (copy, "own"):
            given = (float(lots), 1.08455, 0.0, book.name("EURUSD"), OrderEffect.EXECUTED, True, RowCode.OK)
            order_row = np.array([book.orders_of(row)[name]], np.int32)
            book.set_orders(order_row, np.array([given], layout.ORDER_READ))
    house.value()
    asked: list[list[str]] = []

    def followers(masters: Sequence[str]) -> dict[str, list[str]]:
        asked.append(list(masters))
        return {"M": ["F1", "F2", "F3", "gone"]}

    result = house.what_if({"EURUSD": "-1"}, followers=followers)
    assert [one["account"] for one in result["liquidated"]["accounts"]] == ["strategy_provider:M"]
    listed = [{"master_id": "M", "followers": 3, "copies": 3, "lots": 0.9, "list": ["F1", "F2", "F3"]}]
    assert result["cascades"] == {"count": 1, "list": listed}
    assert house.what_if({"EURUSD": "-0.2"}, followers=followers)["cascades"] == {"count": 0, "list": []}
    assert asked == [["M"]]  # only those that would be liquidated, and nobody if there are none
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenario, "_LISTED", 0)
        assert house.what_if({"EURUSD": "-1"}, followers=followers)["cascades"] == {"count": 1, "list": []}


def test_nothing_is_done_about_shut_markets_unless_they_open() -> None:
    five_days_shut = np.array([1, 0, 0, 0, 1], np.uint8)
    house = House([([buy("EURUSD"), buy("BTCUSD")], 60.0), ([buy("BTCUSD")], 60.0)], open=five_days_shut)
    on_saturday = house.what_if({"BTCUSD": "-20"})
    assert [one["account"] for one in on_saturday["liquidated"]["accounts"]] == ["live:1"]
    assert (on_saturday["closed"], on_saturday["after"]["critical"]) == (1, 2)
    on_monday = house.what_if({"BTCUSD": "-20", "EURUSD": "-1"})
    assert (on_monday["liquidated"]["count"], on_monday["closed"]) == (2, 0)


def test_unknown_stays_unknown_and_is_counted() -> None:
    house = House([([buy()], 60.0), ([buy("EURGBP")], 60.0), ([buy()], 60.0)])
    house.valuer.withhold(np.array([2], np.int32), RowCode.ACCOUNT_CHANGING)
    quotes = house.book.market.quotes
    quotes["code"][house.book.market.quote_row["EURGBP"]] = RowCode.QUOTE_STALE
    house.figures["state"][1] = LadderState.STATE_UNKNOWN
    result = house.what_if({"EURUSD": "-5", "EURGBP": "-5"})
    assert result["unknown"] == result["before"]["unknown"] == result["after"]["unknown"] == 2
    assert result["liquidated"]["count"] == 1
    assert result["equity"]["before_usd"] == pytest.approx(float(house.figures["equity"][0]), abs=0.0051)


def test_a_moved_quote_is_judged_like_any_other() -> None:
    house = House([([buy()], 60.0)])
    quotes, row = house.book.market.quotes, house.book.market.quote_row["EURUSD"]
    quotes["bid"][row], quotes["ask"][row] = 1e308, 1.2e308
    assert house.what_if({"EURUSD": "1000"})["after"]["unknown"] == 1
    quotes["bid"][row], quotes["ask"][row] = 5e-324, 1.0
    assert house.what_if({"EURUSD": "-99"})["after"]["unknown"] == 1


@pytest.mark.parametrize(
    ("moves", "code"),
    [
        ({"XAUUSD": "1"}, "unknown_symbol"),
        ({"EURUSD": "-99.01"}, "invalid_move_pct"),
        ({"EURUSD": "1000.01"}, "invalid_move_pct"),
        ({"EURUSD": "NaN"}, "invalid_move_pct"),
        ({"EURUSD": "Infinity"}, "invalid_move_pct"),
        ({f"S{number}": "1" for number in range(51)}, "too_many_moves"),
    ],
)
def test_moves_that_make_no_sense_are_refused(moves: dict[str, str], code: str) -> None:
    with pytest.raises(Refused) as refusal:
        House([([buy()], 60.0)]).what_if(moves)
    assert refusal.value.code == code
