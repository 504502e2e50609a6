"""The book under any sequence of changes equals a book built from scratch."""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from copyrisk import identifiers, segments
from copyrisk._core import OrderEffect, RowCode
from copyrisk.market import InstrumentKey
from copyrisk.risk import Valuer, calc_status, count_states, reasons
from copyrisk.rules import ValuationRules
from copyrisk.terms import MarginPrice, RateSide
from tests.books import NOW_MS, PlainBook, figures_of, fill_account, fill_market, value_one
from tests.decoders import AccountRow, InstrumentRow, OrderRow, QuoteRow

SYMBOLS = ("EURUSD", "EURGBP", "XAUUSD")
PAIRS = ("GBPUSD", "USDGBP")
GROUPS = ("Standard", "VIP")

NAMES = ("live:0", "live:1", "demo:0")
names = st.sampled_from(NAMES)
order_ids = st.integers(0, 11).map(lambda n: f"O{n}")
cents = st.integers(1, 500).map(lambda n: n / 100)


class Changes(RuleBasedStateMachine):
    """Applies the same changes to a book and to plain dictionaries.

    Legs are laid out anew after every few moves here, not after thousands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.compact_above, segments._COMPACT_ABOVE_LEGS = segments._COMPACT_ABOVE_LEGS, 4
        self.chosen = ValuationRules()
        self.configs: dict[str, AccountRow] = {}
        self.held: dict[str, dict[str, OrderRow]] = {}
        self.terms: dict[InstrumentKey, InstrumentRow] = {}
        self.quotes: dict[str, QuoteRow] = {}

    def teardown(self) -> None:
        segments._COMPACT_ABOVE_LEGS = self.compact_above

    @initialize(side=st.sampled_from([RateSide.ASK, RateSide.SIDE]), price=st.sampled_from(MarginPrice))
    def market(self, side: RateSide, price: MarginPrice) -> None:
        self.chosen = ValuationRules(rate_side=side, margin_price=price)
        self.book = PlainBook(self.chosen)
        self.valuer = Valuer(self.book)
        for symbol in SYMBOLS:
            self.change_terms("Standard", symbol, 100.0, "GBP" if symbol == "EURGBP" else "USD", RowCode.OK)
        for symbol in (*SYMBOLS, "GBPUSD"):
            self.change_quote(symbol, 1.5, RowCode.OK)
        for name in NAMES:
            self.set_account(name, 5.0, "Standard", RowCode.OK)

    @rule(
        group=st.sampled_from(GROUPS),
        symbol=st.sampled_from(SYMBOLS),
        size=st.sampled_from([1.0, 100.0, 100_000.0]),
        profit=st.sampled_from(["USD", "GBP"]),
        code=st.sampled_from([RowCode.OK] * 5 + [RowCode.INSTRUMENT_UNREADABLE]),
    )
    def change_terms(self, group: str, symbol: str, size: float, profit: str, code: RowCode) -> None:
        key, terms = InstrumentKey(group, symbol), InstrumentRow(code)
        if code == RowCode.OK:
            terms = InstrumentRow(code, size, profit, 1)
        self.terms[key] = terms
        self.book.set_instrument(self.book.market.ensure_instrument(key), terms)

    @rule(
        symbol=st.sampled_from((*SYMBOLS, *PAIRS)),
        bid=cents,
        code=st.sampled_from([RowCode.OK] * 5 + [RowCode.QUOTE_UNREADABLE]),
    )
    def change_quote(self, symbol: str, bid: float, code: RowCode) -> None:
        self.quotes[symbol] = QuoteRow(code, bid, bid * 1.01, NOW_MS) if code == RowCode.OK else QuoteRow(code)
        self.book.set_quote(self.book.market.ensure_quote(symbol), self.quotes[symbol])

    @rule(name=names, balance=cents, group=st.sampled_from(GROUPS), code=st.sampled_from([1, 1, 1, 1, 72]))
    def set_account(self, name: str, balance: float, group: str, code: int) -> None:
        row = AccountRow(code, balance, 100.0, group)
        self.configs[name] = row
        self.held.setdefault(name, {})
        self.book.set_account(self.book.ensure_account(identifiers.parse_account(name)), row)

    @rule(name=names)
    def remove_account(self, name: str) -> None:
        if name in self.configs:
            del self.configs[name], self.held[name]
            self.book.remove_account(identifiers.parse_account(name))

    @rule(
        name=names,
        ids=st.lists(order_ids, min_size=1, max_size=4, unique=True),
        symbol=st.sampled_from(SYMBOLS),
        is_buy=st.booleans(),
        lots=cents,
        effect=st.sampled_from([OrderEffect.EXECUTED, OrderEffect.EXECUTED, OrderEffect.RESERVED, OrderEffect.IDLE]),
        code=st.sampled_from([RowCode.OK] * 9 + [RowCode.ORDER_PRICE_INVALID]),
    )
    def set_orders(
        self, name: str, ids: list[str], symbol: str, is_buy: bool, lots: float, effect: int, code: int
    ) -> None:
        for order_id in ids if name in self.configs else ():
            order = OrderRow(code, effect, symbol, is_buy, 1.25, lots, -0.5)
            self.held[name][order_id] = order
            self.book.set_order(self.book.row_of(identifiers.parse_account(name)), order_id, order)

    @rule(name=names, order_id=order_ids)
    def remove_order(self, name: str, order_id: str) -> None:
        if name in self.configs and order_id in self.held[name]:
            del self.held[name][order_id]
            self.book.remove_order(self.book.row_of(identifiers.parse_account(name)), order_id)

    @rule(name=names)
    def remove_all_orders(self, name: str) -> None:
        for order_id in list(self.held.get(name, {})):
            self.remove_order(name, order_id)

    def from_scratch(self) -> PlainBook:
        fresh = PlainBook(self.chosen)
        for key, terms in self.terms.items():
            fresh.set_instrument(fresh.market.ensure_instrument(key), terms)
        for symbol, quote in self.quotes.items():
            fresh.set_quote(fresh.market.ensure_quote(symbol), quote)
        for name, config in self.configs.items():
            row = fresh.ensure_account(identifiers.parse_account(name))
            fresh.set_account(row, config)
            for order_id, order in self.held[name].items():
                fresh.set_order(row, order_id, order)
        return fresh

    @invariant()
    def equals_a_book_from_scratch(self) -> None:
        if not self.quotes:
            return
        fresh = self.from_scratch()
        found, wanted = figures_of(self.valuer), figures_of(Valuer(fresh))
        rows = self.book.accounts_held()
        assert set(rows) == set(self.configs)
        for account, row in fresh.accounts_held().items():
            ours, theirs = found[rows[account]], wanted[row]
            assert (ours["state"], ours["code"]) == (theirs["state"], theirs["code"])
            assert reasons(self.book, found, rows[account]) == reasons(fresh, wanted, row)
            if ours["state"]:
                for figure in ("equity", "used_margin_executed", "used_margin_all"):
                    np.testing.assert_allclose(ours[figure], theirs[figure], rtol=1e-12, atol=1e-9)
        free = set(range(len(self.book.accounts))) - set(rows.values())
        assert all(found[row]["state"] == 0 for row in free)

    @invariant()
    def rows_are_used_again_and_room_is_bounded(self) -> None:
        if not self.quotes:
            return
        assert len(self.book.accounts) <= len(NAMES)
        assert len(self.book.orders) <= len(NAMES) * 12
        # A segment has at most half as much again as its account once needed, and holes at most as much as is used.
        assert len(self.book.legs) <= 2 * len(NAMES) * (12 + 12 // 2 + 1) + 2 * 12


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


EURUSD = {"symbol": "EURUSD", "bid": "1.1", "ask": "1.1001", "contract_size": "100000", "profit": "USD", "type": "1"}


def buy(lots: str = "0.1") -> dict[str, str]:
    return {"symbol": "EURUSD", "order_type": "BUY", "order_price": "1.1", "order_quantity": lots}


def test_segments_that_grow_leave_holes_that_are_laid_out_anew(monkeypatch: Any) -> None:
    monkeypatch.setattr(segments, "_COMPACT_ABOVE_LEGS", 16)
    book = PlainBook(ValuationRules())
    fill_market(book, [EURUSD])
    rows = [fill_account(book, f"live:{n}", {"wallet_balance": "1000", "leverage": "100"}, []) for n in range(20)]
    valuer = Valuer(book)
    for size in range(1, 60):
        for row in rows:
            book.set_order(row, f"N{size}", OrderRow(RowCode.OK, OrderEffect.EXECUTED, "EURUSD", True, 1.1, 0.1, 0.0))
        figures = figures_of(valuer)
        np.testing.assert_allclose(figures["used_margin_executed"][rows], size * 0.1 * 1100.1)
    # Left where they are, the holes would by now be twice as long as what is used.
    assert len(book.legs) < 2.5 * 59 * len(rows)


def test_an_account_that_closed_everything_survives_a_new_layout(monkeypatch: Any) -> None:
    """Its segment lay behind what is left, and it needs no other."""
    monkeypatch.setattr(segments, "_COMPACT_ABOVE_LEGS", 16)
    book = PlainBook(ValuationRules())
    fill_market(book, [EURUSD])
    config = {"wallet_balance": "1000", "leverage": "100"}
    rows = [fill_account(book, f"live:{n}", config, [buy()] * 10) for n in range(20)]
    valuer = Valuer(book)
    figures_of(valuer)
    for number in range(5, 19):
        book.remove_account(identifiers.parse_account(f"live:{number}"))
    for order_id in list(book.orders_of(rows[19])):
        book.remove_order(rows[19], order_id)
    figures = figures_of(valuer)
    assert len(book.legs) == 5 * 10
    np.testing.assert_allclose(figures["used_margin_executed"][rows[:5]], 10 * 110.01)
    assert figures["equity"][rows[19]] == 1000.0


def test_an_account_whose_group_changes_trades_on_the_new_terms() -> None:
    book = PlainBook(ValuationRules())
    fill_market(book, [EURUSD])
    fill_market(book, [{**EURUSD, "contract_size": "1000"}], "VIP")
    row = fill_account(book, "live:1", {"wallet_balance": "1000", "leverage": "100"}, [buy("1")])
    np.testing.assert_allclose(figures_of(Valuer(book))[row]["used_margin_executed"], 1100.1)
    book.set_account(row, AccountRow(RowCode.OK, 1000.0, 100.0, "VIP"))
    np.testing.assert_allclose(figures_of(Valuer(book))[row]["used_margin_executed"], 11.001)


def test_a_conversion_pair_is_checked_for_age_even_if_its_own_terms_are_missing() -> None:
    book = PlainBook(ValuationRules())
    book.market.ensure_instrument(InstrumentKey("Standard", "GBPUSD"))  # held by somebody, but nobody has terms for it
    fill_market(book, [{**EURUSD, "symbol": "EURGBP", "profit": "GBP"}])
    book.set_quote(book.market.quote_row["GBPUSD"], QuoteRow(RowCode.OK, 1.25, 1.2501, NOW_MS - 60_000))
    row = fill_account(book, "live:1", {"wallet_balance": "1000", "leverage": "100"}, [{**buy(), "symbol": "EURGBP"}])
    assert figures_of(Valuer(book))[row]["code"] == RowCode.CONVERSION_RATE_MISSING


def test_a_queued_order_that_cannot_be_priced_does_not_hide_the_level() -> None:
    queued = {**buy(), "symbol": "XAUUSD", "order_status": "QUEUED"}
    book = PlainBook(ValuationRules())
    fill_market(book, [EURUSD, {**EURUSD, "symbol": "XAUUSD", "bid": None}])
    row = fill_account(book, "live:1", {"wallet_balance": "5", "leverage": "100"}, [buy(), queued])
    figures = figures_of(Valuer(book))
    assert figures[row]["code"] == RowCode.OK
    assert np.isnan(figures[row]["used_margin_all"])
    assert calc_status(figures[row]) == "degraded"
    assert figures[row]["margin_level_pct"] < 10
    assert reasons(book, figures, row) == ["quote_one_sided:XAUUSD"]
    assert sum(count_states(book, figures).values()) == 1


def test_reasons_are_limited_and_sorted() -> None:
    book = PlainBook(ValuationRules())
    bad = [{**buy(), "order_price": ""} for _ in range(12)]
    row = fill_account(book, "live:1", {"wallet_balance": "1000", "leverage": "100"}, bad)
    figures = figures_of(Valuer(book))
    found = reasons(book, figures, row)
    assert len(found) == 8
    assert found == sorted(found)


def test_side_conversion_keeps_profit_and_loss_apart() -> None:
    """1 lot of profit and 1 lot of loss in JPY do not cancel when each converts at its worse side."""
    usdjpy = {**EURUSD, "symbol": "USDJPY", "bid": "100", "ask": "110", "profit": "JPY"}
    orders = [
        {**buy("1"), "symbol": "USDJPY", "order_price": "90"},
        {**buy("1"), "symbol": "USDJPY", "order_price": "110"},
    ]
    config = {"wallet_balance": "1000000", "leverage": "100"}
    figures = value_one(config, [usdjpy], orders, {"rate_side": "side"})
    np.testing.assert_allclose(figures["open_pnl"], 1_000_000 / 110 - 1_000_000 / 100)
    assert value_one(config, [usdjpy], orders, {"rate_side": "ask"})["open_pnl"] == 0.0


@pytest.mark.parametrize(
    ("warning", "critical", "stands", "levels"),
    [
        (60.0, 20.0, True, (60.0, 20.0)),
        (None, None, True, (50.0, 10.0)),
        (20.0, 60.0, False, (50.0, 10.0)),
        (None, 60.0, False, (50.0, 10.0)),
        (5.0, None, False, (50.0, 10.0)),
        (30.0, 30.0, True, (30.0, 30.0)),
    ],
)
def test_nobody_is_critical_before_a_warning_could_reach_him(
    warning: float | None, critical: float | None, stands: bool, levels: tuple[float, float]
) -> None:
    book = PlainBook(ValuationRules())
    row = book.ensure_account(identifiers.parse_account("live:1"))
    assert book.set_account(row, AccountRow(RowCode.OK, 1.0, 1.0, "Standard", warning, critical)) == stands
    assert (book.accounts[row]["warning_level_pct"], book.accounts[row]["critical_level_pct"]) == levels


def test_where_groups_disagree_on_a_type_the_standard_one_decides_for_all() -> None:
    def age(*loaded: tuple[str, str]) -> int:
        book = PlainBook(ValuationRules(quote_max_age_ms_by_type={4: 99_000}))
        for group, type_ in loaded:
            fill_market(book, [{**EURUSD, "type": type_, "crypto_margin_factor": "2"}], group)
        return int(book.market.quotes[book.market.quote_row["EURUSD"]]["max_age_ms"])

    assert age(("VIP", "4")) == 99_000
    assert age(("VIP", "4"), ("Standard", "1")) == age(("Standard", "1"), ("VIP", "4")) == 30_000


def test_a_reserve_beyond_all_bounds_is_unknown() -> None:
    queued = {**buy("9" * 18), "order_status": "QUEUED"}
    book = PlainBook(ValuationRules())
    fill_market(book, [EURUSD])
    row = fill_account(book, "live:1", {"wallet_balance": "1000", "leverage": "100"}, [buy(), queued])
    figures = figures_of(Valuer(book))
    assert np.isnan(figures[row]["used_margin_all"])
    assert reasons(book, figures, row) == ["figures_out_of_range"]
