"""The kernels against the slow twin, on random books with whatever can be wrong in them."""

from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import fields
from copyrisk._core import LadderState, RowCode
from copyrisk.book import Book
from copyrisk.errors import is_known
from copyrisk.hours import MarketHours
from copyrisk.risk import Valuer
from tests import twin
from tests.books import NOW_MS, fill_account, fill_market, rules_of

CLOSED = np.zeros(5, np.uint8)
OPEN = np.ones(5, np.uint8)

prices = st.integers(1, 2_000_000).map(lambda n: f"{n / 10_000:.4f}")
sides = st.one_of(prices, prices, prices, prices, st.sampled_from(["0", "-1", "nan", "inf", "", "1e3", None]))
times = st.sampled_from([NOW_MS, NOW_MS, NOW_MS, NOW_MS - 29_999, NOW_MS - 30_001, NOW_MS + 40_000, None])
hedgings = st.one_of(st.sampled_from(["max", "sum", "net"]), st.integers(0, 100))

SYMBOLS = ("EURUSD", "EURGBP", "USDJPY", "BTCUSD", "EURNOK")
PROFITS = {"EURUSD": "USD", "EURGBP": "GBP", "USDJPY": "JPY", "BTCUSD": "USD", "EURNOK": "NOK"}
PAIRS = ("GBPUSD", "USDGBP", "JPYUSD", "USDNOK")


@st.composite
def quotes(draw: st.DrawFn) -> dict[str, Any]:
    bid, ask = draw(sides), draw(sides)
    if draw(st.integers(0, 9)) and bid and ask and bid[:1].isdigit() and ask[:1].isdigit():
        bid, ask = sorted((bid, ask), key=Fraction) if "e" not in bid + ask else (bid, ask)
    return {"bid": bid, "ask": ask, "ts": draw(times)}


@st.composite
def markets(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    terms = {
        symbol: {
            "contract_size": draw(st.sampled_from(["1", "100", "100000", "100000", "0", "x"])),
            "profit": PROFITS[symbol],
            "type": "4" if symbol == "BTCUSD" else "1",
            "crypto_margin_factor": draw(st.sampled_from(["1", "2", "2.5", "bad"])),
        }
        for symbol in SYMBOLS
    }
    return terms, {symbol: draw(quotes()) for symbol in (*SYMBOLS, *PAIRS)}


orders = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(SYMBOLS),
        "order_type": st.sampled_from(["BUY", "SELL", "BUY", "SELL", "BUY", "SELL", "HOLD"]),
        "order_status": st.sampled_from(["OPEN", "OPEN", "OPEN", "QUEUED"]),
        "order_price": st.one_of(prices, prices, prices, st.sampled_from(["", "0"])),
        "order_quantity": st.integers(1, 5000).map(lambda n: f"{n / 100:.2f}"),
        "swap": st.sampled_from(["0", "-1.25", "3"]),
        "commission": st.sampled_from(["0", "7", "7", "?"]),
    }
)
accounts = st.tuples(
    st.fixed_dictionaries(
        {
            "wallet_balance": st.one_of(st.integers(-1000, 10**7).map(lambda n: f"{n / 100:.2f}"), st.just("")),
            "leverage": st.sampled_from(["1", "30", "100", "500", "500", "0"]),
        }
    ),
    st.lists(orders, max_size=7),
)


def build(book_accounts: list[Any], market: Any, rules: Any) -> tuple[Book, list[int]]:
    book = Book(rules)
    terms, quoted = market
    fill_market(book, [{"symbol": symbol, **terms[symbol], **quoted[symbol]} for symbol in SYMBOLS])
    rows = [fill_account(book, f"live:{n}", config, held) for n, (config, held) in enumerate(book_accounts)]
    for pair in PAIRS:
        if pair in book.quote_row:
            reply = [None if v is None else str(v).encode() for v in (quoted[pair][k] for k in fields.QUOTE_FIELDS)]
            book.set_quote(book.quote_row[pair], fields.decode_quote(reply))
    return book, rows


def close(found: float, exact: Fraction, gross: Fraction) -> bool:
    return abs(Fraction(float(found)) - exact) <= Fraction(1, 10**13) * (gross + 10**5)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(accounts, min_size=1, max_size=4),
    markets(),
    st.sampled_from(["ask", "side", "mid"]),
    st.sampled_from(["current", "open"]),
    hedgings,
    st.booleans(),
)
def test_the_kernels_agree_with_the_twin(
    held: list[Any], market: Any, rate_side: str, margin_price: str, hedging: Any, is_open: bool
) -> None:
    chosen = {"rate_side": rate_side, "margin_price": margin_price, "hedging": hedging}
    rules = rules_of(chosen)
    book, rows = build(held, market, rules)
    figures = Valuer(book).value(NOW_MS, OPEN if is_open else CLOSED)
    exact_rules = {
        **chosen,
        "cover": Fraction(rules.hedging.cover).limit_denominator(1000),
        "highest": hedging == "max",
    }
    for row, (config, account_orders) in zip(rows, held, strict=True):
        # Type 4 is always open, so in a closed market its quotes must still be fresh: leave those books out.
        if not is_open and any(order["symbol"] == "BTCUSD" for order in account_orders):
            continue
        expected = twin.value(config, account_orders, market, exact_rules, NOW_MS, is_open)
        found = figures[row]
        if expected.pnl is None:
            assert found["state"] == LadderState.STATE_UNKNOWN
            assert not is_known(found["code"])
            continue
        assert expected.used is not None
        assert is_known(found["code"]), RowCode(found["code"])
        assert (found["code"] == RowCode.MARKET_CLOSED) == expected.closed
        scale = expected.gross
        balance = Fraction(config["wallet_balance"])
        assert close(found["open_pnl"], expected.pnl, scale)
        assert close(found["equity"], balance + expected.pnl, scale)
        assert close(found["used_margin_executed"], expected.used, scale)
        assert close(found["free_margin"], balance + expected.pnl - expected.used, scale)
        if expected.used_all is not None:
            assert close(found["used_margin_all"], expected.used_all, scale)
        else:
            assert np.isnan(found["used_margin_all"])
        check_ladder(found, balance + expected.pnl, expected.used)


def check_ladder(found: Any, equity: Fraction, used: Fraction) -> None:
    if used == 0:
        assert found["state"] in (LadderState.NO_MARGIN, LadderState.HEALTHY, LadderState.CRITICAL)
        return
    level = 100 * equity / used
    if min(abs(level - 50), abs(level - 10)) < Fraction(1, 10**6):
        return  # within what doubles can tell at these sizes; the thresholds have tests of their own
    wanted = LadderState.CRITICAL if level <= 10 else LadderState.WARNING if level <= 50 else LadderState.HEALTHY
    assert found["state"] == wanted


@settings(max_examples=60, deadline=None)
@given(st.lists(accounts, min_size=2, max_size=6), markets(), st.randoms(use_true_random=False))
def test_an_account_is_valued_alone(held: list[Any], market: Any, random: Any) -> None:
    """Whoever else is in the book, and in which order, an account's bytes stay the same."""
    book, rows = build(held, market, rules_of({}))
    together = Valuer(book).value(NOW_MS, OPEN)
    shuffled = list(enumerate(held))
    random.shuffle(shuffled)
    other, other_rows = build([account for _, account in shuffled], market, rules_of({}))
    apart = Valuer(other).value(NOW_MS, OPEN)
    for place, (number, _) in enumerate(shuffled):
        one, two = together[rows[number]], apart[other_rows[place]]
        assert (one["state"], one["code"]) == (two["state"], two["code"])
        if one["state"]:
            names = [name for name in together.dtype.names or () if name != "culprit"]
            assert all(one[name].tobytes() == two[name].tobytes() for name in names)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 500), st.sampled_from([10, 20, 33, 50]))
def test_thresholds_are_exact_to_the_cent(lots_cents: int, leverage: int, level: int) -> None:
    """At the threshold is beyond it; one cent of equity above is not."""
    # One unit a lot at price 1: margin = lots / leverage. Take a balance that makes the level exact.
    used = Fraction(lots_cents, 100) / leverage
    balance = used * level / 100
    cents = -(-balance * 100 // 1)
    above = Fraction(cents + 1, 100)
    instrument = {"symbol": "EURUSD", "bid": "1", "ask": "1", "contract_size": "1", "profit": "USD", "type": "1"}
    order = {"symbol": "EURUSD", "order_type": "BUY", "order_price": "1", "order_quantity": f"{lots_cents / 100:.2f}"}

    def state_at(equity: Fraction) -> int:
        book = Book(rules_of({"warning_level_pct": float(level), "critical_level_pct": 0.0}))
        fill_market(book, [instrument])
        config = {"wallet_balance": f"{float(equity):.2f}", "leverage": str(leverage)}
        row = fill_account(book, "live:1", config, [order])
        return int(Valuer(book).value(NOW_MS, OPEN)[row]["state"])

    assert state_at(above) == LadderState.HEALTHY
    if balance * 100 == cents:
        assert state_at(balance) == LadderState.WARNING


def test_hours_reach_the_kernel() -> None:
    assert (MarketHours(always_open=True).open_by_type(NOW_MS) == OPEN).all()
