"""A group's terms: what is absent has a default, what cannot be read is refused, and lots are counted exactly."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk.conditions import LotLimits, read_conditions
from copyrisk.errors import Refused

TERMS = {"contract_size": "100000", "type": "1"}
BAD = ["", " ", "nan", "inf", "1e5", "1_000", "١", "-1", "abc", "1" * 19]


def read(**terms: str) -> Any:
    return read_conditions(TERMS | terms, LotLimits())


def refusal(**terms: str) -> str:
    with pytest.raises(Refused) as refused:
        read(**terms)
    return refused.value.code


def test_what_a_group_leaves_open() -> None:
    found = read()
    assert found.lots == LotLimits(Decimal("0.01"), Decimal(100), Decimal("0.01"))
    assert found.spread.half == 0
    for is_entry in (True, False):
        assert found.commission.of(Decimal(5), Decimal(1_000_000), is_entry=is_entry) == 0


@pytest.mark.parametrize(
    ("field", "bad", "code"),
    [("contract_size", text, "instrument_invalid") for text in [*BAD, "0"]]
    + [("type", text, "instrument_invalid") for text in ("", "nan", "abc")]
    + [(field, text, "lot_limits_invalid") for field in ("min_lot", "max_lot", "lot_step") for text in [*BAD, "0"]]
    + [(field, text, "spread_invalid") for field in ("spread", "spread_pip") for text in BAD]
    + [(field, text, "commission_invalid") for field in ("commission_type", "commission_value_type") for text in BAD]
    + [("commission_rate", text, "commission_invalid") for text in BAD],
)
def test_what_is_set_and_cannot_be_read_is_refused(field: str, bad: str, code: str) -> None:
    complete = {"spread": "2", "spread_pip": "0.00001", "commission_rate": "3.5"}
    assert refusal(**(complete | {field: bad})) == code


@pytest.mark.parametrize("one", ["spread", "spread_pip"])
def test_half_a_spread_is_not_guessed_at(one: str) -> None:
    assert refusal(**{one: "1"}) == "spread_invalid"


@pytest.mark.parametrize(
    ("kind", "entry", "leaving"),
    [
        ("both", 7, 7),
        ("in", 7, 0),
        ("out", 0, 7),
        (" Both ", 7, 7),
        ("0", 7, 7),
        ("1", 7, 0),
        ("2", 0, 7),
        (None, 7, 7),
    ],
)
def test_when_commission_is_charged(kind: str | None, entry: int, leaving: int) -> None:
    said = {} if kind is None else {"commission_type": kind}
    found = read(commission_rate="3.5", **said).commission
    assert [found.of(Decimal(2), Decimal(0), is_entry=is_entry) for is_entry in (True, False)] == [entry, leaving]


@pytest.mark.parametrize(
    ("kind", "charged"), [("per_lot", "7.00"), ("percent", "35.00"), ("0", "7.00"), ("1", "35.00"), (None, "7.00")]
)
def test_what_commission_is_charged_on(kind: str | None, charged: str) -> None:
    said = {} if kind is None else {"commission_value_type": kind}
    found = read(commission_rate="3.5", **said).commission
    assert found.of(Decimal(2), Decimal(1000), is_entry=True) == Decimal(charged)


@given(st.integers(1, 10_000), st.sampled_from(["0.01", "0.1", "0.001", "0.25", "1", "0.03"]))
def test_lots_are_whole_steps_exactly(hundredths: int, step: str) -> None:
    """In doubles 0.29 is no multiple of 0.01."""
    limits = LotLimits(Decimal("0.01"), Decimal(100), Decimal(step))
    lots = Decimal(hundredths) / 100
    if (hundredths * 10) % int(Decimal(step) * 1000) == 0:
        limits.check(lots)
        return
    with pytest.raises(Refused) as refused:
        limits.check(lots)
    assert refused.value.code == "invalid_order_quantity"


@pytest.mark.parametrize(
    ("lots", "is_fine"),
    [
        ("0.1", True),
        ("10", True),
        ("0.09", False),
        ("10.01", False),
        ("0.105", False),
        ("0.10000000000000001", False),
        ("999999999999999999", False),
        ("0.000000000000000001", False),
        ("5.00", True),
    ],
)
def test_lot_limits_include_their_ends(lots: str, is_fine: bool) -> None:
    limits = LotLimits(Decimal("0.1"), Decimal(10), Decimal("0.01"))
    if is_fine:
        limits.check(Decimal(lots))
        return
    with pytest.raises(Refused) as refused:
        limits.check(Decimal(lots))
    assert refused.value.code == "invalid_order_quantity"
