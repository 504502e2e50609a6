"""Booked prices and results against exact fractions: the half spread on the right side, one rounding, half up."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk.pricing import Spread, closing_price, execution_price, net_profit_usd, profit
from copyrisk.terms import Hedging

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
