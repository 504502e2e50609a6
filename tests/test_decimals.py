"""Exact numbers in and out: only the contract's grammar is read, and what is written is read as the same number."""

import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk.decimals import cents, decimal_text, money_text, parse_decimal
from tests.order_twin import half_up

PLAIN = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", re.ASCII)
plain = st.from_regex(PLAIN, fullmatch=True)
amounts = st.decimals(-(10**17), 10**17, places=6)


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", " ", "-", "nan", "NaN", "sNaN", "inf", "-Infinity", "1e5", "1E5", "1_000", "+1", "--1", "1.", ".5"),
        *("1.2.3", "0x10", "1,5", " 1", "1 ", "1\n", "\n1", "١٢", "１", "²", "1\0"),
        *("1" * 19, "0." + "1" * 19, "1" * 100_000),
    ],
)
def test_what_is_no_plain_decimal_is_no_number(text: str | None) -> None:
    assert parse_decimal(text) is None


@given(st.one_of(plain, st.text(alphabet="0123456789.-+eE_ \n٣nai", max_size=24)))
def test_exactly_the_grammar_is_read_and_read_exactly(text: str) -> None:
    found = parse_decimal(text)
    assert (found is not None) == bool(PLAIN.fullmatch(text))
    if found is not None:
        assert Fraction(found) == Fraction(text)


@given(plain)
def test_what_is_written_is_read_as_the_same_number_and_is_the_shortest(text: str) -> None:
    value = Decimal(text)
    written = decimal_text(value)
    assert parse_decimal(written) == value
    assert written == decimal_text(Decimal(written))
    assert len(written) <= len(text)
    assert not re.search(r"\.[0-9]*0$|\.$|^-0$", written)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0E+3", "0"),
        ("1E+3", "1000"),
        ("1E-7", "0.0000001"),
        ("-0", "0"),
        ("-0.00", "0"),
        ("100", "100"),
        ("100.00", "100"),
        ("-1.50", "-1.5"),
        ("5E-19", "0.000000000000000001"),
        ("-5E-19", "-0.000000000000000001"),
        ("4E-19", "0"),
        ("-4E-19", "0"),
        ("0.9999999999999999999", "1"),
    ],
)
def test_numbers_as_text(value: str, text: str) -> None:
    assert decimal_text(Decimal(value)) == text


@given(amounts)
def test_cents_are_rounded_half_away_from_zero(amount: Decimal) -> None:
    assert Fraction(cents(amount)) == half_up(Fraction(amount))
    assert Fraction(money_text(amount)) == half_up(Fraction(amount))


@given(amounts)
def test_money_has_two_decimals_and_no_zero_has_a_sign(amount: Decimal) -> None:
    assert re.fullmatch(r"-?[0-9]+\.[0-9]{2}", money_text(amount))
    assert money_text(amount) != "-0.00"


@pytest.mark.parametrize("amount", ["-0.001", "-0.00499", "-0", "-0E-9"])
def test_less_than_half_a_cent_of_loss_is_nothing(amount: str) -> None:
    assert money_text(Decimal(amount)) == "0.00"
