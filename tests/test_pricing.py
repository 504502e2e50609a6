"""Booked prices and results against exact fractions: the half spread on the right side, one rounding, half up."""

from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk import layout
from copyrisk._core import ConversionSide, RowCode, price_legs
from copyrisk.decimals import EXACT, cents
from copyrisk.errors import TryLater
from copyrisk.pricing import (
    Commission,
    Spread,
    closing_price,
    conversion_rate,
    execution_price,
    net_profit_usd,
    profit,
    share_of,
)
from copyrisk.situation import Quote
from copyrisk.terms import Hedging, RateSide
from tests.order_twin import conditions, half_up, market

prices = st.decimals("0.00001", "100000", places=5)
lots = st.decimals("0.01", "1000", places=2)
sizes = st.sampled_from([Decimal(1), Decimal(100), Decimal(100_000)])
spreads = st.builds(Spread, st.integers(0, 500).map(Decimal), st.sampled_from([Decimal("0.00001"), Decimal("0.01")]))


@given(st.booleans(), prices, prices, spreads)
def test_each_side_pays_half_the_spread(is_buy: bool, bid: Decimal, ask: Decimal, spread: Spread) -> None:
    half = Fraction(spread.spread) * Fraction(spread.spread_pip) / 2
    quote: dict[str, Any] = {"bid": bid, "ask": ask, "spread": spread}
    assert Fraction(execution_price(is_buy=True, **quote)) == Fraction(ask) + half
    assert Fraction(execution_price(is_buy=False, **quote)) == Fraction(bid) - half
    assert closing_price(is_buy=is_buy, **quote) == execution_price(is_buy=not is_buy, **quote)


@given(prices, prices, lots, sizes)
def test_what_one_side_wins_the_other_loses(opened: Decimal, closed: Decimal, volume: Decimal, size: Decimal) -> None:
    trip = {"lots": volume, "contract_size": size, "open_price": opened, "close_price": closed}
    bought = profit(is_buy=True, **trip)
    assert Fraction(bought) == (Fraction(closed) - Fraction(opened)) * Fraction(volume) * Fraction(size)
    assert profit(is_buy=False, **trip) == -bought


@given(st.booleans(), prices, st.decimals(0, 1, places=5), spreads, lots, sizes)
def test_a_round_trip_at_one_quote_never_wins(
    is_buy: bool, bid: Decimal, width: Decimal, spread: Spread, volume: Decimal, size: Decimal
) -> None:
    quote: dict[str, Any] = {"bid": bid, "ask": bid + width, "spread": spread}
    opened, closed = execution_price(is_buy=is_buy, **quote), closing_price(is_buy=is_buy, **quote)
    lost = profit(is_buy=is_buy, lots=volume, contract_size=size, open_price=opened, close_price=closed)
    assert Fraction(lost) == -(Fraction(width) + 2 * Fraction(spread.half)) * Fraction(volume) * Fraction(size)


ZERO = Decimal(0)


@pytest.mark.parametrize(
    ("result", "booked"),
    [
        ("0.005", "0.01"),
        ("0.00499999", "0.00"),
        ("-0.005", "-0.01"),
        ("2.675", "2.68"),  # the double nearest to it lies below
        ("1.115", "1.12"),
        ("-1.115", "-1.12"),
        ("123456789012.345", "123456789012.35"),
        ("7", "7.00"),
    ],
)
def test_half_a_cent_goes_up(result: str, booked: str) -> None:
    found = net_profit_usd(profit_usd=Decimal(result), commission_entry=ZERO, commission_exit=ZERO, swap=ZERO)
    assert str(found) == booked


def test_commissions_are_taken_and_swap_is_added_before_the_one_rounding() -> None:
    """Rounded part by part it would be 10.00."""
    tenth_cent = Decimal("0.001")
    found = net_profit_usd(
        profit_usd=Decimal("10.004"), commission_entry=tenth_cent, commission_exit=tenth_cent, swap=Decimal("0.003")
    )
    assert found == Decimal("10.01")
    found = net_profit_usd(
        profit_usd=Decimal("-15"), commission_entry=Decimal("3.5"), commission_exit=Decimal("3.25"), swap=Decimal("-1")
    )
    assert found == Decimal("-22.75")


@given(*[st.decimals(-(10**6), 10**6, places=4) for _ in range(4)])
def test_net_profit_is_rounded_half_up_once(profit: Decimal, entry: Decimal, exit_: Decimal, swap: Decimal) -> None:
    booked = net_profit_usd(profit_usd=profit, commission_entry=entry, commission_exit=exit_, swap=swap)
    exact = Fraction(profit) - Fraction(entry) - Fraction(exit_) + Fraction(swap)
    half_up = abs(exact) * 100 + Fraction(1, 2)
    assert abs(booked) == Decimal(half_up.numerator // half_up.denominator) / 100


@pytest.mark.parametrize("bad", ["most", "50%", -1, 101, float("nan"), True])
def test_hedging_rules_are_checked(bad: Any) -> None:
    with pytest.raises(ValueError, match="hedging must be"):
        Hedging.parse(bad)


# ---- conversion, commission and shares

quotes = st.tuples(st.decimals("0.00001", 100000, places=5), st.decimals(0, 10, places=5)).map(
    lambda of: (of[0], of[0] + of[1])
)
SIDES = {
    RateSide.ASK: ConversionSide.CONVERT_ASK,
    RateSide.SIDE: ConversionSide.CONVERT_WORSE,
    RateSide.MID: ConversionSide.CONVERT_MID,
}
usd = st.decimals(-(10**9), 10**9, places=4)


def factor(side: RateSide, bid: Decimal, ask: Decimal, *, inverse: bool, is_loss: bool) -> Fraction:
    """What an amount is worth in USD, for each unit of it: of two rates the one that is worse for the account."""
    low, high = Fraction(bid), Fraction(ask)
    usable = {RateSide.ASK: [high], RateSide.MID: [(low + high) / 2], RateSide.SIDE: [low, high]}[side]
    factors = [1 / rate if inverse else rate for rate in usable]
    return max(factors) if is_loss else min(factors)


@given(st.sampled_from(RateSide), quotes, st.booleans(), usd)
def test_each_side_converts_at_its_rate(
    side: RateSide, quote: tuple[Decimal, Decimal], inverse: bool, amount: Decimal
) -> None:
    bid, ask = quote
    rate = conversion_rate(side, bid, ask, inverse=inverse, amount_is_loss=amount < 0)
    expected = Fraction(amount) * factor(side, bid, ask, inverse=inverse, is_loss=amount < 0)
    with localcontext(EXACT):
        assert abs(Fraction(rate.to_usd(amount)) - expected) <= abs(expected) * Fraction(1, 10**100)
        assert Fraction(cents(rate.to_usd(amount))) == half_up(expected)


@given(st.sampled_from(RateSide), quotes, st.booleans())
def test_booked_results_convert_as_the_valuation_does(
    side: RateSide, quote: tuple[Decimal, Decimal], inverse: bool
) -> None:
    """The kernel's rates, in doubles, are these; a result that is booked is the one that was shown."""
    bid, ask = quote
    rows = np.zeros(2, layout.QUOTE)
    rows["bid"], rows["ask"], rows["code"] = [1.0, float(bid)], [1.5, float(ask)], RowCode.OK
    instrument, rates = np.zeros(1, layout.INSTRUMENT), np.zeros(2, layout.LEG_RATE)
    instrument["contract_size"], instrument["margin_factor"], instrument["read_code"] = 1, 1, RowCode.OK
    instrument["direct"], instrument["inverse"] = (-1, 1) if inverse else (1, -1)
    price_legs(instrument, rows, SIDES[side], rates)
    for name, is_loss in (("gain", False), ("loss", True)):
        rate = conversion_rate(side, bid, ask, inverse=inverse, amount_is_loss=is_loss)
        assert rates[name].tolist() == pytest.approx([float(rate.to_usd(Decimal(1)))] * 2, rel=1e-14)
    assert (rates["price"] == [1.0, 1.5]).all()


@pytest.mark.parametrize(
    ("direct", "inverse", "usd"),
    [
        (("0.5", RowCode.OK), ("4", RowCode.OK), "50"),  # the direct pair goes first
        (("0.5", RowCode.MARKET_CLOSED), ("4", RowCode.OK), "50"),  # its last quote still counts
        (("0.5", RowCode.QUOTE_STALE), ("4", RowCode.OK), "25"),
        (("0.5", RowCode.UNKNOWN), ("4", RowCode.MARKET_CLOSED), "25"),
        (("0.5", RowCode.QUOTE_STALE), ("4", RowCode.QUOTE_CROSSED), None),
        (("0.5", RowCode.UNKNOWN), ("4", RowCode.UNKNOWN), None),
    ],
)
def test_which_pair_converts(direct: tuple[str, RowCode], inverse: tuple[str, RowCode], usd: str | None) -> None:
    pairs = [Quote(Decimal(rate), Decimal(rate), code) for rate, code in (direct, inverse)]
    there = market(direct=pairs[0], inverse=pairs[1])
    if usd is not None:
        assert there.to_usd(Decimal(100)) == Decimal(usd)
        return
    with pytest.raises(TryLater) as later:
        there.to_usd(Decimal(100))
    assert later.value.code == "conversion_rate_missing"


def test_an_amount_in_usd_needs_no_rate() -> None:
    assert market().to_usd(Decimal("-1.23456")) == Decimal("-1.23456")


@given(
    st.decimals(0, 100, places=4), st.booleans(), st.booleans(), st.booleans(), lots, st.decimals(0, 10**9, places=4)
)
def test_commission_is_charged_where_it_says(
    rate: Decimal, is_percent: bool, on_entry: bool, on_exit: bool, volume: Decimal, value: Decimal
) -> None:
    terms = Commission(rate, is_percent, on_entry, on_exit)
    whole = Fraction(value) * Fraction(rate) / 100 if is_percent else Fraction(volume) * Fraction(rate)
    for is_entry, is_charged in ((True, on_entry), (False, on_exit)):
        found = terms.of(volume, value, is_entry=is_entry)
        assert Fraction(found) == (half_up(whole) if is_charged else 0)


@pytest.mark.parametrize("side", RateSide)
@pytest.mark.parametrize("pair", ["direct", "inverse"])
def test_percent_of_a_value_in_another_currency_converts_as_a_loss(side: RateSide, pair: str) -> None:
    """What is charged is taken from the account, so it converts at the side that is worse."""
    conversion = Quote(Decimal("0.8"), Decimal("1.6"), RowCode.OK)
    terms = conditions(size="1000", commission=Commission(Decimal(1), True, True, True))
    there = market(terms=terms, side=side, **{pair: conversion})  # type: ignore[arg-type]
    rate = factor(side, conversion.bid, conversion.ask, inverse=pair == "inverse", is_loss=True)
    for is_entry in (True, False):
        found = there.commission_usd(Decimal(2), Decimal(3), is_entry=is_entry)
        assert Fraction(found) == half_up(60 * rate)


@given(st.decimals(-(10**6), 10**6, places=2), st.lists(st.integers(1, 500), min_size=1, max_size=12))
def test_shares_add_up_to_the_whole(amount: Decimal, parts: list[int]) -> None:
    """Taken one after the other of what is left: none is more than what is left, and the last one takes all of it."""
    left, lots_left = amount, sum(parts)
    for part in parts:
        share = share_of(left, Decimal(part) / 100, Decimal(lots_left) / 100)
        expected = Fraction(left) if part == lots_left else half_up(Fraction(left) * part / lots_left)
        assert Fraction(share) == expected
        assert abs(share) <= abs(left) and share * left >= 0
        left, lots_left = left - share, lots_left - part
    assert left == 0
