"""Lot sizing against exact fractions: whole steps, limits, what is carried, and what cannot be used."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sizing import exact_sizes
from copyrisk import ConversionSide, ShapeError
from copyrisk._sizing import (
    OFF_STEP,
    UNKNOWN_AMOUNT,
    LimitRule,
    RoundingRule,
    SizingRule,
    ask_policy,
    size_ratio,
    step_limits,
    whole_cents,
    whole_micro,
    whole_steps,
)
from copyrisk.errors import ConfigError
from copyrisk.sizing import (
    POLICY_IN,
    SIZED,
    SIZING_IN,
    SizeCode,
    is_sized,
    loss_per_lot,
    lots_of,
    size_lots,
    size_reason,
    size_rows,
    size_steps,
    sizing_rows,
)

INF, NAN = math.inf, math.nan
HALF = Fraction(1, 2)


# ------------------------------------------------------------------------------------------------ the slow twin


def ladder(pct: Fraction) -> int:
    whole = math.floor(pct)
    if whole < 1:
        return 1
    return whole - whole % (1 if whole < 10 else 5 if whole < 100 else 10)


def raw_steps(row: Any) -> Fraction:
    """Unrounded steps of a SIZING_IN row that can be sized."""
    mode = row["mode"]
    if mode in (SizingRule.FIXED, SizingRule.POLICY):
        return Fraction(float(row["wanted_steps"]))
    ratio = Fraction(int(row["multiplier_micro"]), 10**6) * Fraction(int(row["ratio_num"]), int(row["ratio_den"]))
    if mode == SizingRule.RATIO:
        ratio *= Fraction(int(row["follower_cents"]), int(row["master_cents"]))
    if mode == SizingRule.BY_VALUE:
        ratio *= Fraction(int(row["follower_cents"]) * 10**7, int(row["lot_usd_nano"]))
    if row["rounding"] == RoundingRule.ROUND_LADDER:
        ratio = Fraction(ladder(100 * ratio), 100) if 100 * ratio < 10**12 + 1 else Fraction(0)
    steps = 1 if mode == SizingRule.BY_VALUE else int(row["master_steps"])
    return ratio * steps * Fraction(int(row["lots_num"]), int(row["lots_den"]))


def expected(row: Any) -> tuple[int, int]:
    """Steps and code of a SIZING_IN row that can be sized and carries nothing."""
    raw = raw_steps(row)
    if raw == 0:  # more than 1e12 percent
        return 0, SizeCode.OUT_OF_RANGE
    rounded = math.floor(raw + HALF) if row["rounding"] == RoundingRule.ROUND_NEAREST else math.floor(raw)
    if rounded > row["max_steps"]:
        is_clipped = row["above_max"] == LimitRule.LIMIT_ADJUST
        return (int(row["max_steps"]), SizeCode.CLIPPED) if is_clipped else (0, SizeCode.ABOVE_MAX)
    if rounded >= row["min_steps"]:
        return rounded, SizeCode.OK
    if row["below_min"] == LimitRule.LIMIT_SKIP:
        return 0, SizeCode.BELOW_MIN
    if row["min_steps"] > raw * Fraction(10**9 + 1, 10**9) * Fraction(min(float(row["lift_risk_limit"]), 1e30)):
        return 0, SizeCode.LIFT_TOO_RISKY
    return int(row["min_steps"]), SizeCode.LIFTED


def one_row(**fields: Any) -> Any:
    rows = np.zeros(1, SIZING_IN)
    plain: dict[str, Any] = dict.fromkeys(("ratio_num", "ratio_den", "lots_num", "lots_den", "lot_usd_nano"), 1)
    plain |= {"mode": SizingRule.RATIO, "rounding": RoundingRule.ROUND_DOWN, "below_min": 1, "above_max": 2}
    plain |= {"follower_cents": 100, "master_cents": 100, "multiplier_micro": 10**6, "master_steps": 1}
    for name, value in {**plain, "min_steps": 1, "max_steps": 10**4, "lift_risk_limit": INF, **fields}.items():
        rows[name] = value
    return rows


def size_one(row: Any) -> tuple[int, int]:
    sized = size_rows(row)[0]
    return int(sized["steps"]), int(sized["code"])


whole = st.integers(1, 10**15)
factor = st.one_of(st.integers(1, 1000), st.integers(1, 2**31))
quotients = st.fixed_dictionaries(
    {
        "mode": st.sampled_from([SizingRule.RATIO, SizingRule.MULTIPLE, SizingRule.BY_VALUE]),
        "follower_cents": whole,
        "master_cents": whole,
        "multiplier_micro": st.one_of(st.just(10**6), st.integers(1, 10**12)),
        "master_steps": st.integers(1, 10**9),
        "ratio_num": factor,
        "ratio_den": st.integers(1, 2**25),
        "lots_num": factor,
        "lots_den": st.integers(1, 2**25),
        "lot_usd_nano": st.integers(1, 2**62),
        "min_steps": st.integers(1, 100),
        "max_steps": st.integers(100, 10**12),
        "below_min": st.sampled_from(LimitRule),
        "above_max": st.sampled_from(LimitRule),
        "rounding": st.sampled_from([RoundingRule.ROUND_DOWN, RoundingRule.ROUND_NEAREST]),
        "lift_risk_limit": st.sampled_from([INF, 1.0, 5.0]),
    }
)


@given(quotients)
def test_rows_equal_exact_fractions(fields: dict[str, Any]) -> None:
    row = one_row(**fields)
    assert size_one(row) == expected(row[0])


@given(quotients)
def test_rows_on_the_ladder_equal_exact_fractions(fields: dict[str, Any]) -> None:
    mode = SizingRule.RATIO if fields["mode"] == SizingRule.BY_VALUE else fields["mode"]
    row = one_row(**fields | {"rounding": RoundingRule.ROUND_LADDER, "mode": mode})
    assert size_one(row) == expected(row[0])


@given(st.integers(1, 10**9), whole, st.integers(0, 10**9), st.integers(-1, 1), st.sampled_from(RoundingRule))
def test_quotients_beside_an_integer_or_a_half(
    steps: int, master: int, size: int, beside: int, rounding: RoundingRule
) -> None:
    """A follower who has just enough, or one cent too little, or one more, for a size or half a step more."""
    half = rounding == RoundingRule.ROUND_NEAREST
    follower = -(-(2 * size + half) * master // (2 * steps)) + beside
    if 1 <= follower <= 10**15 and rounding != RoundingRule.ROUND_LADDER:
        row = one_row(
            master_steps=steps, master_cents=master, follower_cents=follower, rounding=rounding, max_steps=10**12
        )
        assert size_one(row) == expected(row[0])


@given(st.floats(0, 1e11), st.sampled_from([RoundingRule.ROUND_DOWN, RoundingRule.ROUND_NEAREST]))
def test_sizes_that_are_doubles_are_taken_within_a_millionth_of_a_step(wanted: float, rounding: RoundingRule) -> None:
    row = one_row(mode=SizingRule.POLICY, wanted_steps=wanted, rounding=rounding, max_steps=10**12)
    steps, code = size_one(row)
    exact = Fraction(wanted) + (HALF if rounding == RoundingRule.ROUND_NEAREST else 0)
    assert math.floor(exact) <= steps <= math.floor(exact + Fraction(2, 10**6))
    assert code == (SizeCode.OK if steps else SizeCode.BELOW_MIN)


# ------------------------------------------------------------------------------------------------ plain numbers


def test_every_two_decimal_size_at_ratio_one_is_copied_unchanged() -> None:
    lots = np.arange(1, 10_001) / 100
    for equity in (1.0, 10_000.0, 1234.56, 0.01, 9.99e12):
        found, codes = size_lots(lots, equity, equity)
        assert np.array_equal(found, lots)
        assert (codes == SizeCode.OK).all()


def test_known_failure_24_lot_floors_in_doubles() -> None:
    """Of the 10,000 two-decimal sizes 573 change when the floor is taken of a double; here none does."""
    lots = np.arange(1, 10_001) / 100
    assert (np.floor(lots * 100) / 100 != lots).sum() == 573
    assert np.array_equal(size_lots(lots, 5000.0, 5000.0)[0], lots)
    assert size_lots(0.29, 1000, 1000)[0] == 0.29


STEPS = (0.01, 0.001, 0.1, 1, 0.25)
money = st.integers(1, 10**11).map(lambda cents: cents / 100)


@given(
    st.sampled_from(STEPS),
    st.integers(1, 10_000),
    money,
    money,
    st.one_of(st.just(10**6), st.integers(1, 10**9), st.integers(1, 1000).map(lambda times: times * 10**4)),
    st.sampled_from(["down", "nearest"]),
)
def test_plain_numbers_equal_exact_fractions(
    step: float, steps: int, master: float, follower: float, multiplier: int, rounding: str
) -> None:
    exact_step = Fraction(str(step))
    raw = Fraction(str(follower)) / Fraction(str(master)) * Fraction(multiplier, 10**6) * steps
    size = math.floor(raw + (HALF if rounding == "nearest" else 0))
    size = min(size, math.floor(100 / exact_step))
    given = (float(steps * exact_step), master, follower)
    terms = {"lot_step": step, "min_lot": step, "multiplier": multiplier / 10**6, "rounding": rounding}
    lots, _ = size_lots(*given, **terms)
    assert lots == float(size * exact_step)
    both = size_lots(*(np.full(2, value) for value in given), **terms | {"multiplier": np.full(2, multiplier / 1e6)})
    assert both[0].tolist() == [lots, lots]


number = st.one_of(
    st.sampled_from([NAN, INF, -INF, 0.0, -0.0, -1.0, 0.005, 0.125, 1.005, 1e9, 1e13, 1.1e13, 1e300, 5e-324]),
    st.integers(1, 10**6).map(lambda cents: cents / 100),
    st.floats(),
)
columns = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(number, min_size=n, max_size=n), min_size=6, max_size=6)
)


@given(
    columns, st.sampled_from(["down", "nearest"]), st.sampled_from(["skip", "lift"]), st.sampled_from(["clip", "skip"])
)
def test_many_at_once_are_what_each_is_alone_and_what_its_row_is(
    numbers: list[list[float]], rounding: str, below_min: str, above_max: str
) -> None:
    """Vectorised, one by one, and by the rows of the engine: the same bits, whatever stands in the numbers."""
    words = {"rounding": rounding, "below_min": below_min, "above_max": above_max}
    lots_to_most = [np.array(column) for column in numbers]

    def sizes(*figures: Any, **more: Any) -> tuple[bytes, bytes]:
        limits = {"multiplier": figures[3], "min_lot": figures[4], "max_lot": figures[5]}
        lots, codes = size_lots(*figures[:3], **limits, **words, **more)
        assert np.array_equal(lots > 0.0, (codes >= SizeCode.OK) & (codes <= SizeCode.LIFTED))
        assert (codes != SizeCode.UNKNOWN).all() and np.isfinite(lots).all()
        return lots.tobytes(), codes.tobytes()

    together = sizes(*lots_to_most)
    assert together == sizes(*lots_to_most, mode="balance")
    alone = [sizes(*(float(column[i]) for column in lots_to_most)) for i in range(len(lots_to_most[0]))]
    assert together == (b"".join(lots for lots, _ in alone), b"".join(codes for _, codes in alone))


def test_a_great_many_equal_integers() -> None:
    random = np.random.default_rng(7)
    count = 2_000
    given = (
        random.integers(1, 3_000, count) / 100,
        np.round(random.lognormal(9, 2, count) + 0.01, 2),
        np.round(random.lognormal(9, 2, count) + 0.01, 2),
    )
    terms = {"multiplier": random.integers(1, 500, count) / 100, "max_lot": random.integers(1, 10_000, count) / 100}
    lots, codes = size_lots(*given, **terms)
    assert (lots.tolist(), codes.tolist()) == exact_sizes(*given, **terms)


BAD = {
    "master_lots": {
        SizeCode.MASTER_LOTS_INVALID: [NAN, INF, -INF, 0.0, 1e-300, -0.01, 1e8],
        SizeCode.LOTS_OFF_STEP: [0.015, 0.0101],
    },
    "master_equity": {
        SizeCode.MASTER_EQUITY_UNKNOWN: [NAN, INF, -INF, 1.1e13],
        SizeCode.MASTER_EQUITY_NOT_POSITIVE: [0.0, -0.0, -5000.0, 0.004],
    },
    "follower_equity": {
        SizeCode.FOLLOWER_EQUITY_UNKNOWN: [NAN, INF, -INF, 1.1e13],
        SizeCode.FOLLOWER_EQUITY_NOT_POSITIVE: [0.0, -0.0, -5000.0, 0.0049],
    },
    "multiplier": {SizeCode.MULTIPLIER_INVALID: [NAN, INF, 0.0, -1.0, 1e-7, 1e7]},
    "min_lot": {SizeCode.LIMITS_INVALID: [NAN, INF, 0.0, -0.01, 51.0]},
    "max_lot": {SizeCode.LIMITS_INVALID: [NAN, 0.0, -1.0, 0.009]},
    "lot_step": {SizeCode.LIMITS_INVALID: [NAN, INF, 0.0, -0.01, 1 / 3, 1e-9]},
    "lift_risk_limit": {SizeCode.RULES_INVALID: [NAN, 0.0, -1.0]},
    "carry_steps": {SizeCode.CARRY_INVALID: [NAN, INF, 1.5]},
    "contract_size": {SizeCode.CORRECTION_INVALID: [NAN, INF, 0.0, -1.0]},
    "units": {SizeCode.CORRECTION_INVALID: [NAN, 0.0]},
}
CASES = [(name, code, value) for name, codes in BAD.items() for code, values in codes.items() for value in values]


@pytest.mark.parametrize(("name", "code", "value"), CASES)
def test_bad_input_in_a_row_is_that_rows_reason(name: str, code: SizeCode, value: float) -> None:
    """The other rows have the very bits that they have without it."""
    good = {"master_lots": 0.37, "master_equity": 1000.0, "follower_equity": 2500.0, "max_lot": 50.0}
    defaults = {"min_lot": 0.01, "lot_step": 0.01, "lift_risk_limit": 5.0, "contract_size": 1.0, "carry_steps": 0.0}
    column = np.full(5, {**defaults, "multiplier": 1.0, "units": 1.0, **good}[name])
    healthy, _ = size_lots(**{**good, name: column})
    column[2] = value
    lots, codes = size_lots(**{**good, name: column})
    assert codes.tolist() == [1, 1, code, 1, 1]
    assert lots[2] == 0.0 and math.copysign(1.0, lots[2]) == 1.0
    assert np.delete(lots, 2).tobytes() == np.delete(healthy, 2).tobytes()
    assert not is_sized(code) and size_reason(code) == code.name.lower()
    alone = size_lots(**{**good, name: value})
    assert (float(alone[0]), int(alone[1])) == (0.0, code)


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"mode": "fixed_lots"}, SizeCode.FIXED_LOTS_INVALID),
        ({"mode": "fixed_lots", "fixed_lots": 0.0}, SizeCode.FIXED_LOTS_INVALID),
        ({"mode": "fixed_lots", "fixed_lots": 0.004}, SizeCode.BELOW_MIN),
        ({"mode": "fixed_leverage", "target_leverage": 2}, SizeCode.LOT_VALUE_INVALID),
        ({"mode": "fixed_leverage", "lot_value_usd": 100_000}, SizeCode.MULTIPLIER_INVALID),
        ({"mode": "risk", "risk_pct": 101, "loss_per_lot_usd": 100}, SizeCode.MULTIPLIER_INVALID),
        ({"mode": "risk", "risk_pct": 1, "loss_per_lot_usd": NAN}, SizeCode.LOT_VALUE_INVALID),
        ({"mode": "risk", "risk_pct": 1, "loss_per_lot_usd": 1, "commission_rate": 0.5}, SizeCode.CORRECTION_INVALID),
        ({"mode": "risk", "risk_pct": 1, "loss_per_lot_usd": 1, "rounding": "ladder"}, SizeCode.RULES_INVALID),
        ({"mode": "policy"}, SizeCode.POLICY_INVALID),
        ({"mode": "policy", "raw_lots": -0.01}, SizeCode.POLICY_INVALID),
        ({"mode": "policy", "raw_lots": INF}, SizeCode.POLICY_INVALID),
        ({"mode": "policy", "raw_lots": 1e300}, SizeCode.POLICY_INVALID),
        ({"mode": "policy", "raw_lots": 0.0, "below_min": "lift"}, SizeCode.BELOW_MIN),
        ({"leverage_correction": "full", "master_leverage": 100}, SizeCode.CORRECTION_INVALID),
        ({"leverage_correction": "cut", "follower_leverage": 100}, SizeCode.CORRECTION_INVALID),
        ({"strategy_max_lot": NAN}, SizeCode.LIMITS_INVALID),
        ({"max_lot": 0.05, "min_lot": 0.1}, SizeCode.LIMITS_INVALID),
        (
            {"contract_size": 1e11, "master_contract_size": 1e-4, "lot_step": 1e6, "min_lot": 1e6},
            SizeCode.LIMITS_INVALID,
        ),
    ],
)
def test_terms_of_a_mode_that_cannot_be_used(terms: dict[str, Any], code: SizeCode) -> None:
    lots, found = size_lots(1.0, 1000, 1000, **terms)
    assert (float(lots), int(found)) == (0.0, code)


def test_modes_policies_and_corrections() -> None:
    def lots(*figures: Any, **terms: Any) -> Any:
        return size_lots(*figures, **terms)[0].tolist()

    assert lots(0.5, 1000, 9000, mode="multiplier", multiplier=1.5) == 0.75
    assert lots(1, 1000, 10_000, mode="fixed_leverage", target_leverage=3, lot_value_usd=110_000) == 0.27
    assert lots(1, 1000, 10_000, mode="risk", risk_pct=2, loss_per_lot_usd=loss_per_lot(1.1, 1.095, 1e5)) == 0.4
    assert lots(1, 1000, 1000, contract_size=10_000, master_contract_size=100_000) == 10
    assert lots(1, 1000, 1000, master_lot_step=0.001, lot_step=0.1, max_lot=50) == 1
    assert lots(0.015, 1000, 1000, master_lot_step=0.001) == 0.01
    correction = {"master_leverage": 100, "leverage_correction": ["none", "full", "cut", "cut"]}
    assert lots(1, 1000, 1000, follower_leverage=[50, 200, 200, 50], **correction) == [1, 2, 1, 0.5]
    assert lots(1, 1000, 1000, mode="policy", raw_lots=[0.29, 0.295, 1.0]) == [0.29, 0.29, 1]
    # Limits between two steps count as the next step inside them.
    assert lots(1, 1000, [1, 20], below_min="lift", min_lot=0.015, max_lot=0.019) == [0, 0]
    assert lots(1, 1000, [1, 90], below_min="lift", min_lot=0.015, max_lot=0.039) == [0.02, 0.03]
    assert size_lots(1, 1, 1e9, max_lot=INF)[0] == 1e9  # nothing limits it


def test_the_loss_of_a_lot_is_unknown_where_something_of_it_is() -> None:
    assert loss_per_lot([1.1, 1.0], [1.095, 1.005], 1e5, [1.0, 0.5]).tolist() == [500.0, 250.0]
    for bad in (NAN, INF, -INF, 0.0, -1.0):
        for place in range(4):
            given = [1.1, 1.0, 1e5, 1.0]
            given[place] = bad
            assert np.isnan(loss_per_lot(*given))
    assert np.isnan(loss_per_lot(INF, INF, 1.0))


def test_rows_are_sized_the_same_again_and_lots_are_the_nearest_doubles() -> None:
    rows = sizing_rows(0.37, 1000, [333.33, NAN, 1e12], rounding="nearest", carry_steps=0.25)
    first = size_rows(rows)
    assert first.tobytes() == size_rows(np.frombuffer(rows.tobytes(), SIZING_IN)).tobytes()
    assert first["raw_steps"][0] == 333.33 * 37 / 1000 and math.isnan(first["raw_steps"][1])
    assert first["carry_steps"][1] == 0.25
    for step in STEPS:
        steps = np.arange(1, 2000)
        assert lots_of(steps, step).tolist() == [float(k * Fraction(str(step))) for k in steps.tolist()]


def test_shapes_broadcast_and_nothing_is_a_size_too() -> None:
    lots, codes = size_lots([[1.0], [2.0]], 1000, [[500, 1000, 2000]])
    assert lots.tolist() == [[0.5, 1, 2], [1, 2, 4]] and codes.shape == (2, 3)
    assert size_lots(1.0, 1000, np.array([]))[0].shape == (0,)
    assert size_lots(1.0, 1000, np.array([]), mode="balance")[1].shape == (0,)
    assert size_lots(1.0, 1000, 1000)[0].shape == ()
    every_other = np.arange(1, 9, dtype=np.float64)[::2]
    assert size_lots(every_other, 1000, 1000)[0].tolist() == [1, 3, 5, 7]
    assert size_lots(np.array([1, 2], np.int32), 1000, np.array([500, 700], np.float32))[0].tolist() == [0.5, 1.4]


# ------------------------------------------------------------------------------------------------ the remainder


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 10**8)), min_size=1, max_size=60), st.integers(1, 10**7))
def test_with_a_carry_the_sum_stays_within_half_a_step_of_the_exact_one(
    orders: list[tuple[int, int]], master: int
) -> None:
    carry, sized_steps, exact = 0.0, 0, Fraction(0)
    for steps, follower in orders:
        row = one_row(
            master_steps=steps,
            follower_cents=follower,
            master_cents=master,
            rounding=RoundingRule.ROUND_NEAREST,
            carry_steps=carry,
            max_steps=10**12,
        )
        sized = size_rows(row)[0]
        carry, sized_steps = float(sized["carry_steps"]), sized_steps + int(sized["steps"])
        exact += raw_steps(row[0])
        assert abs(exact - sized_steps) <= HALF + Fraction(1, 10**6)
        assert abs(carry) <= 0.5 + 1e-6


def test_what_limits_took_is_not_carried() -> None:
    sized = size_rows(one_row(master_steps=33, master_cents=1000, rounding=2, min_steps=10, carry_steps=0.25))[0]
    assert (sized["steps"], sized["code"], sized["raw_steps"]) == (0, SizeCode.BELOW_MIN, 3.3)
    assert math.isclose(sized["carry_steps"], -0.45)
    # Nothing is lifted for a follower who has had what he is owed.
    owed = one_row(master_cents=1000, rounding=2, below_min=2, carry_steps=-0.5)
    assert size_one(owed) == (0, SizeCode.BELOW_MIN)


def test_three_thirds_are_one_step() -> None:
    carry, steps = 0.0, []
    for _ in range(6):
        sized = size_rows(one_row(master_cents=300, carry_steps=carry))[0]
        carry = float(sized["carry_steps"])
        steps.append(int(sized["steps"]))
    assert steps == [0, 0, 1, 0, 0, 1]


# ------------------------------------------------------------------------------------------------ calls


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ShapeError, match="follower_equity"):
        size_lots(np.ones(3), 1000, np.ones(2))
    with pytest.raises(ShapeError, match="multiplier"):
        size_lots(np.ones(3), 1000, 1000, multiplier=np.ones(4))
    for strange in ("0.01", b"1", [1.0, "x"], [[1.0], [1.0, 2.0]], 1j, True, object(), {"a": 1}):
        with pytest.raises(ShapeError, match="master_equity"):
            size_lots(1.0, strange, 1000)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rounding must be down or nearest or ladder, not 'up'"):
        size_lots(1.0, 1000, 1000, rounding="up")
    with pytest.raises(ConfigError, match="below_min"):
        size_lots(1.0, 1000, [1000, 2000], below_min=["skip", "clip"])
    with pytest.raises(TypeError, match="slippage"):
        size_lots(1.0, 1000, 1000, slippage=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="mode"):
        size_lots(1.0, 1000, 1000, mode=ConversionSide.CONVERT_MID)


@pytest.mark.parametrize("dtype", [SIZING_IN, SIZED, POLICY_IN])
def test_rows_have_no_hidden_padding(dtype: Any) -> None:
    assert dtype.itemsize == sum(dtype[field].itemsize for field in dtype.names)
    assert dtype.itemsize % 8 == 0
    assert all(offset % dtype[field].base.itemsize == 0 for field, (_, offset) in dtype.fields.items())


def test_arrays_of_another_kind_or_length_are_refused() -> None:
    rows, sized = np.zeros(2, SIZING_IN), np.zeros(2, SIZED)
    for other in (SIZED, "V136", SIZING_IN.newbyteorder(">")):
        with pytest.raises(ValueError, match="."):
            size_steps(np.zeros(2, other), sized)
    with pytest.raises(ShapeError, match="sized"):
        size_steps(rows, sized[:1])
    sized.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        size_steps(rows, sized)
    with pytest.raises(ShapeError, match="raw_lots"):
        ask_policy(1, np.zeros(2, POLICY_IN), np.zeros(1))
    with pytest.raises(ShapeError, match="address"):
        ask_policy(0, np.zeros(1, POLICY_IN), np.zeros(1))


def test_a_zeroed_row_has_no_lots() -> None:
    assert size_one(np.zeros(1, SIZING_IN)) == (0, SizeCode.RULES_INVALID)


@pytest.mark.parametrize("name", ["master_lots", "max_lot", "codes", "rules", "step", "strides", "mode"])
def test_the_plain_kernel_refuses_what_does_not_fit(name: str) -> None:
    columns: dict[str, Any] = {
        column: np.ones(2)
        for column in ("master_lots", "master_equity", "follower_equity", "multiplier", "min_lot", "max_lot")
    }
    given = {**columns, "rules": one_row(), "step": 10**6, "master_step": 10**6}
    given |= {"lots": np.zeros(2), "codes": np.zeros(2, np.uint8)}
    size_ratio(**given)
    assert given["lots"].tolist() == [1.0, 1.0]
    strange = {"step": 0, "rules": one_row(rounding=3), "codes": np.zeros(3, np.uint8)}
    wrong = {"strides": ("max_lot", np.ones(4)[::2]), "mode": ("rules", one_row(mode=2))}.get(
        name, (name, strange.get(name, np.ones(3)))
    )
    with pytest.raises(ShapeError, match=wrong[0]):
        size_ratio(**given | {wrong[0]: wrong[1]})


def test_conversions_to_whole_numbers() -> None:
    cents, steps = np.zeros(9, np.int64), np.zeros(5, np.int64)
    whole_cents(np.array([0.125, 0.375, 1.005, -0.125, NAN, -INF, 1e13, 1.1e13, 0.29]), cents)
    unknown = UNKNOWN_AMOUNT
    assert cents.tolist() == [12, 38, 100, -12, unknown, unknown, 10**15, unknown, 29]
    whole_steps(np.array([0.29, 0.1 + 0.2, 0.015, NAN, 1e300]), np.full(5, 100.0), steps)
    assert steps.tolist() == [29, 30, OFF_STEP, unknown, unknown]
    whole_micro(np.array([1.0, 0.3333333, 0.0, NAN, 1e7]), steps)
    assert steps.tolist() == [1_000_000, 333_333, 0, 0, 0]
    least, most = np.zeros(3, np.int64), np.zeros(3, np.int64)
    step_limits(np.array([0.015, 0.29, NAN]), np.array([0.019, INF, 0.0]), np.full(3, 100.0), least, most)
    assert (least.tolist(), most.tolist()) == ([2, 29, 0], [1, 10**12, 0])
    with pytest.raises(ShapeError, match="out"):
        whole_cents(np.zeros(1), steps)


@given(st.floats(-1e13, 1e13))
def test_cents_are_rounded_as_portfolios_are_written(usd: float) -> None:
    cents = np.zeros(1, np.int64)
    whole_cents(np.array([usd]), cents)
    assert cents[0] == round(Fraction(usd) * 100)
