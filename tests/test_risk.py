"""From a book to figures and words: flat arrays give the same, buffers are kept, an unknown reserve is said."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import ConversionSide, OrderEffect, RowCode, fold_all, layout, price_legs, value_accounts
from copyrisk._core import LadderState
from copyrisk.identifiers import parse_account
from copyrisk.market import InstrumentKey
from copyrisk.risk import Valuer, calc_status, count_states, reasons
from copyrisk.rules import ValuationRules
from copyrisk.terms import Hedging, RateSide
from tests.books import NOW_MS, OPEN, PlainBook, figures_of, fill_account, fill_market
from tests.decoders import AccountRow, InstrumentRow, OrderRow, QuoteRow

CLOSED = np.zeros(5, np.uint8)
TERMS = {"bid": "1.1", "ask": "1.1001", "contract_size": "100000", "profit": "USD", "type": "1"}
MARKET = [
    {**TERMS, "symbol": "EURUSD"},
    {**TERMS, "symbol": "EURGBP", "profit": "GBP"},
    {**TERMS, "symbol": "GBPUSD"},
    {**TERMS, "symbol": "BTCUSD", "type": "4", "crypto_margin_factor": "2"},
]
CONFIG = {"wallet_balance": "1000", "leverage": "100"}


def buy(symbol: str = "EURUSD", **changes: str) -> dict[str, str]:
    return {"symbol": symbol, "order_type": "BUY", "order_price": "1.1", "order_quantity": "0.1", **changes}


def queued(symbol: str) -> dict[str, str]:
    return buy(symbol, order_status="QUEUED", execution_status="QUEUED")


def book_of(*accounts: list[dict[str, str]], market: Any = MARKET, rules: ValuationRules | None = None) -> PlainBook:
    book = PlainBook(rules or ValuationRules())
    fill_market(book, market)
    for number, orders in enumerate(accounts):
        fill_account(book, f"live:{number}", CONFIG, orders)
    return book


orders_of_a_book = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([terms["symbol"] for terms in MARKET]),
        st.booleans(),
        st.integers(1, 300).map(lambda n: n / 100),
        st.sampled_from([OrderEffect.EXECUTED, OrderEffect.EXECUTED, OrderEffect.RESERVED, OrderEffect.IDLE]),
        st.sampled_from([RowCode.OK] * 6 + [RowCode.ORDER_PRICE_INVALID]),
    ),
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(orders_of_a_book, st.sampled_from([RateSide.ASK, RateSide.SIDE]))
def test_flat_arrays_give_what_a_book_gives(orders: list[Any], side: RateSide) -> None:
    rules = ValuationRules(rate_side=side)
    book = book_of([], [], [], [], [], rules=rules)
    for number, (account, symbol, is_buy, lots, effect, code) in enumerate(orders):
        book.set_order(account, f"O{number}", OrderRow(code, effect, symbol, is_buy, 1.1, lots, -0.25))
    by_book = figures_of(Valuer(book))

    accounts, flat = book.accounts.copy(), book.orders.copy()
    for name in ("first", "capacity", "n_executed", "n_legs", "fees_usd", "fold_code", "culprit"):
        accounts[name] = 0
    flat["next"] = flat["prev"] = 0
    legs = fold_all(accounts, flat, book.market.instruments, net_orders=rules.nets_orders)
    assert len(legs) == accounts["n_legs"].sum() == accounts["capacity"].sum()
    rates, figures = np.zeros(2 * len(book.market.instruments), layout.LEG_RATE), np.zeros(5, layout.FIGURES)
    sides = {RateSide.ASK: ConversionSide.CONVERT_ASK, RateSide.SIDE: ConversionSide.CONVERT_WORSE}
    price_legs(book.market.instruments, book.market.quotes, sides[side], rates)
    value_accounts(accounts, legs, rates, book.market.instruments, figures)
    assert (figures["state"] == by_book["state"]).all()
    assert (figures["code"] == by_book["code"]).all()
    known = figures["state"] != LadderState.STATE_UNKNOWN
    for name in ("equity", "used_margin_executed", "used_margin_all"):
        np.testing.assert_allclose(figures[name][known], by_book[name][known], rtol=1e-12, atol=1e-9)


def test_buffers_are_kept_until_the_book_grows() -> None:
    book = book_of([buy()], [buy("EURGBP")])
    valuer = Valuer(book)
    first = figures_of(valuer)
    before = first.copy()
    book.set_quote(book.market.quote_row["EURUSD"], QuoteRow(RowCode.OK, 1.2, 1.2001, NOW_MS))
    assert figures_of(valuer) is first
    assert first["equity"][0] > before["equity"][0]
    assert first[1].tobytes() == before[1].tobytes()
    fill_account(book, "demo:new", CONFIG, [])
    grown = figures_of(valuer)
    assert grown[:2].tobytes() == first.tobytes()
    assert grown["state"][2] == LadderState.NO_MARGIN


def test_nothing_is_folded_when_only_quotes_move() -> None:
    book = book_of([buy()], [buy("EURGBP")])
    assert (len(book.fold()), len(book.fold())) == (2, 0)
    book.set_quote(book.market.quote_row["EURUSD"], QuoteRow(RowCode.OK, 1.2, 1.2001, NOW_MS))
    assert len(book.fold()) == 0
    book.remove_order(1, "O0")
    assert book.fold().tolist() == [1]


def test_states_are_counted_without_the_rows_that_are_free() -> None:
    book = book_of([buy()], [buy()], [], [buy("XAUUSD")])
    valuer = Valuer(book)
    expected = {LadderState.HEALTHY: 2, LadderState.NO_MARGIN: 1, LadderState.STATE_UNKNOWN: 1}
    figures = figures_of(valuer)
    assert count_states(book, figures) == {state: expected.get(state, 0) for state in LadderState}
    book.remove_account(parse_account("live:1"))
    figures = figures_of(valuer)
    expected[LadderState.HEALTHY] = 1
    assert count_states(book, figures) == {state: expected.get(state, 0) for state in LadderState}
    assert sum(count_states(PlainBook(ValuationRules()), np.zeros(0, layout.FIGURES)).values()) == 0


MISSING = "instrument_missing:XAUUSD"


def test_an_unknown_reserve_is_said_whatever_made_it_unknown() -> None:
    faults = {
        MISSING: [],
        "contract_size_invalid:XAUUSD": [{**TERMS, "symbol": "XAUUSD", "contract_size": "0"}],
        "quote_crossed:XAUUSD": [{**TERMS, "symbol": "XAUUSD", "bid": "1.2"}],
        "conversion_rate_missing:XAUUSD": [{**TERMS, "symbol": "XAUUSD", "profit": "NOK"}],
    }
    for reason, instruments in faults.items():
        for other in ([], [buy()], [buy("XAUUSD")]):
            book = book_of([*other, queued("XAUUSD")], market=[*MARKET, *instruments])
            figures = figures_of(Valuer(book))
            assert reasons(book, figures, 0) == [reason]
            assert calc_status(figures[0]) == "degraded"
            if other != [buy("XAUUSD")]:
                assert figures["code"][0] == RowCode.OK
                assert figures["state"][0] == (LadderState.HEALTHY if other else LadderState.NO_MARGIN)
                assert np.isnan(figures["used_margin_all"][0])


def test_a_closed_market_does_not_hide_an_unknown_reserve() -> None:
    book = book_of([buy(), queued("XAUUSD")])
    figures = figures_of(Valuer(book), NOW_MS, CLOSED)
    assert figures["code"][0] == RowCode.MARKET_CLOSED
    assert calc_status(figures[0]) == "degraded"
    assert reasons(book, figures, 0) == [MISSING]


def test_reasons_name_each_thing_once_in_a_stable_order() -> None:
    bad = [buy("XAUUSD"), buy("XAUUSD"), buy("EURNOK"), buy(order_price="0"), buy(swap="x")]
    book = book_of(bad, list(reversed(bad)), [buy()])
    figures = figures_of(Valuer(book))
    assert reasons(book, figures, 0) == [
        "instrument_missing:EURNOK",
        MISSING,
        "order_price_invalid:O3",
        "order_swap_invalid:O4",
    ]
    assert reasons(book, figures, 1) == [
        "instrument_missing:EURNOK",
        MISSING,
        "order_price_invalid:O1",
        "order_swap_invalid:O0",
    ]
    assert reasons(book, figures, 2) == []


def test_an_account_that_cannot_be_read_gives_its_own_reason_only() -> None:
    book = book_of([])
    row = fill_account(book, "live:9", {**CONFIG, "leverage": "0"}, [buy("XAUUSD")])
    figures = figures_of(Valuer(book))
    assert calc_status(figures[row]) == "error"
    assert reasons(book, figures, row) == ["leverage_invalid"]


def test_crypto_goes_on_while_other_markets_are_closed() -> None:
    book = book_of([buy("BTCUSD")], [buy("EURUSD")], [buy("BTCUSD"), buy("EURUSD")])
    only_crypto = np.array([0, 0, 0, 0, 1], np.uint8)
    figures = figures_of(Valuer(book), NOW_MS, only_crypto)
    assert figures["code"].tolist() == [RowCode.OK, RowCode.MARKET_CLOSED, RowCode.MARKET_CLOSED]
    stale = figures_of(Valuer(book), NOW_MS + 30_001, only_crypto)
    assert stale["code"].tolist() == [RowCode.QUOTE_STALE, RowCode.MARKET_CLOSED, RowCode.QUOTE_STALE]


def test_sides_that_cancel_use_no_margin_however_their_lots_add_up() -> None:
    """0.1 + 0.2 is not 0.3 in doubles: what is left of it is no position, and no level can be critical on it."""
    lots = [("BUY", "0.1"), ("BUY", "0.2"), ("SELL", "0.3")]
    orders = [buy("EURUSD", order_type=side, order_quantity=quantity) for side, quantity in lots]
    market = [{**TERMS, "symbol": "EURUSD", "contract_size": "1"}]
    for hedging in ("net", 0):
        book = book_of(market=market, rules=ValuationRules(hedging=Hedging.parse(hedging)))
        row = fill_account(book, "live:1", {"wallet_balance": "-5", "leverage": "100"}, orders)
        figures = figures_of(Valuer(book))
        assert figures["used_margin_executed"][row] == figures["margin_level_pct"][row] == 0.0
        assert figures["state"][row] == LadderState.NO_MARGIN


SYMBOLS = [terms["symbol"] for terms in MARKET]
changes = st.one_of(
    st.tuples(st.just("quote"), st.sampled_from(SYMBOLS), st.sampled_from([1.1, 1.2, math.nan])),
    st.tuples(st.just("stale"), st.sampled_from(SYMBOLS), st.just(0.0)),
    st.tuples(st.just("order"), st.sampled_from(SYMBOLS), st.sampled_from([0.1, 0.5])),
    st.tuples(st.just("terms"), st.sampled_from(SYMBOLS), st.sampled_from([1.0, 100_000.0])),
    st.tuples(st.just("balance"), st.just("EURUSD"), st.sampled_from([5.0, 500.0])),
    st.tuples(st.just("market"), st.just("EURUSD"), st.sampled_from([0.0, 1.0])),
    st.tuples(st.just("wait"), st.just("EURUSD"), st.sampled_from([0.0, 29_000.0])),
    st.tuples(st.just("add"), st.just("EURUSD"), st.just(0.0)),
    st.tuples(st.just("remove"), st.just("EURUSD"), st.just(0.0)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(changes, st.integers(0, 5)), max_size=25), st.sampled_from([RateSide.ASK, RateSide.SIDE]))
def test_what_is_valued_again_and_what_is_left_is_as_from_scratch(sequence: list[Any], side: RateSide) -> None:
    book = book_of(*[[buy(symbol) for symbol in SYMBOLS[: 1 + n % 4]] for n in range(6)], rules=ValuationRules(side))
    valuer, is_open, at_ms = Valuer(book), OPEN.copy(), NOW_MS
    for (kind, symbol, value), number in sequence:
        row = book.row_of(parse_account(f"live:{number}"))
        if kind in ("quote", "stale"):
            ts_ms = at_ms - (31_000 if kind == "stale" else 0)
            book.set_quote(
                book.market.quote_row[symbol], QuoteRow(RowCode.OK, value or 1.1, (value or 1.1) * 1.001, ts_ms)
            )
        elif kind == "order" and row >= 0:
            book.set_order(row, f"N{number}", OrderRow(RowCode.OK, OrderEffect.EXECUTED, symbol, True, 1.1, value, 0.0))
        elif kind == "terms":
            instrument = book.market.instrument_row[InstrumentKey("Standard", symbol)]
            book.set_instrument(instrument, InstrumentRow(RowCode.OK, value, "USD", 1))
        elif kind == "balance" and row >= 0:
            book.set_account(row, AccountRow(RowCode.OK, value, 100.0))
        elif kind == "market":
            is_open[1:4] = int(value)
        elif kind == "wait":
            at_ms += int(value)
        elif kind == "add":
            fill_account(book, f"live:{number}", CONFIG, [buy()])
        elif kind == "remove" and row >= 0:
            book.remove_account(parse_account(f"live:{number}"))
        before = valuer.figures.copy()
        valued = valuer.value(at_ms, is_open)
        scratch = Valuer(book)
        scratch.value(at_ms, is_open)
        used = book.account_rows()
        assert valuer.figures[used].tobytes() == scratch.figures[used].tobytes()
        left = np.setdiff1d(np.arange(len(before)), valued)
        assert valuer.figures[left].tobytes() == before[left].tobytes()
        assert len(valuer.verify(used)) == 0


def test_only_holders_of_what_moved_are_valued() -> None:
    symbols = [f"SYM{number:02d}" for number in range(40)]
    market = [{**TERMS, "symbol": symbol} for symbol in symbols]
    book = book_of(*[[buy(symbols[n % 40]), buy(symbols[(n + 1) % 40])] for n in range(400)], market=market)
    valuer = Valuer(book)
    assert len(valuer.value(NOW_MS, OPEN)) == 400
    assert len(valuer.value(NOW_MS + 1, OPEN)) == 0
    book.set_quote(book.market.quote_row["SYM07"], QuoteRow(RowCode.OK, 1.2, 1.3, NOW_MS))
    assert sorted(n % 40 for n in valuer.value(NOW_MS, OPEN)) == [6] * 10 + [7] * 10


@pytest.mark.parametrize("harm", ["leg", "figure"])
def test_figures_that_are_not_those_from_scratch_make_the_account_unknown_until_they_are(harm: str) -> None:
    book = book_of([buy()], [buy("EURGBP")], [])
    valuer = Valuer(book)
    valuer.value(NOW_MS, OPEN)
    sound = valuer.figures.copy()
    if harm == "leg":
        book.legs["units"][book.accounts["first"][0]] *= 2
        book.set_quote(book.market.quote_row["EURUSD"], QuoteRow(RowCode.OK, 1.1, 1.1001, NOW_MS + 1))
        book.set_quote(book.market.quote_row["EURUSD"], QuoteRow(RowCode.OK, 1.2, 1.2001, NOW_MS))
        valuer.value(NOW_MS, OPEN)
    else:
        valuer.figures["equity"][0] += 1.0
    assert valuer.verify(book.account_rows()).tolist() == [0]
    assert (valuer.figures["state"][0], valuer.figures["code"][0]) == (0, RowCode.FIGURES_INCONSISTENT)
    assert reasons(book, valuer.figures, 0) == ["figures_inconsistent"]
    assert valuer.figures[1:].tobytes() == sound[1:].tobytes() or harm == "leg"
    assert 0 in valuer.value(NOW_MS, OPEN)
    assert valuer.figures["state"][0] == LadderState.HEALTHY
    assert len(valuer.verify(book.account_rows())) == 0
    assert len(valuer.value(NOW_MS, OPEN)) == 0
