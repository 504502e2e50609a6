"""What sizes follow from, made whole: plain numbers into the rows of the kernel, which hold integers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk._sizing import SizingRule, step_limits, whole_cents, whole_micro, whole_steps
from copyrisk.layout import Rows
from copyrisk.sizing_terms import (
    CORRECTIONS,
    DEFAULTS,
    MODES,
    RULES,
    SIZING_IN,
    Columns,
    Floats,
    LeverageCorrection,
    SizingMode,
    SizingTerms,
)

Integers = npt.NDArray[np.int64]

_STEP_UNITS = 100_000_000  # lot steps are told in 1e-8 lots
_LARGEST_STEP = 1e14
_STEP_NOISE = 1e-9
_MICRO = 1_000_000
_PARTS = 10_000  # leverages and contract sizes are taken in 1e-4
_LARGEST = 1e15
_MOST = 9e18  # below 2**63
_KERNEL_MODES = np.array([RULES[mode] for mode in MODES], np.uint8)


def lots_of(steps: Integers, lot_step: npt.ArrayLike) -> Floats:
    """Whole steps as lots, the doubles nearest to the decimals; 0.0 where the step cannot be used."""
    units = step_units(np.asarray(lot_step, np.float64))
    common = np.gcd(units, _STEP_UNITS)
    lots: Floats = steps * (units // common) / (_STEP_UNITS // common)
    return lots


def complete(figures: Mapping[str, Any], terms: SizingTerms) -> dict[str, Any]:
    """All that a size follows from, by name, for `columns_of`."""
    given = {**figures, **DEFAULTS, **terms}
    unknown = terms.keys() - SizingTerms.__annotations__.keys()
    if unknown:
        raise TypeError(f"no such term of a size: {', '.join(sorted(unknown))}")
    given.setdefault("master_lot_step", given["lot_step"])
    return given


def rows_of(c: Columns, count: int) -> Rows:
    """(count,) SIZING_IN of the columns of all terms."""
    rows: Rows = np.zeros(count, SIZING_IN)
    step, master_step = step_units(c["lot_step"]), step_units(c["master_lot_step"])
    steps_per_lot = _STEP_UNITS / np.maximum(step, 1)
    for name in ("rounding", "below_min", "above_max", "carry_steps", "lift_risk_limit"):
        rows[name] = c[name]
    rows["follower_cents"] = _converted(whole_cents, c["follower_equity"])
    rows["master_cents"] = _converted(whole_cents, c["master_equity"])
    rows["master_steps"] = _converted(whole_steps, c["master_lots"], _STEP_UNITS / np.maximum(master_step, 1))
    with np.errstate(all="ignore"):  # what becomes NaN here is refused by the kernel
        rows["mode"] = _KERNEL_MODES[c["mode"]]
        rows["wanted_steps"] = _wanted_lots(c) * steps_per_lot
        rows["multiplier_micro"] = _converted(whole_micro, _multiplier(c))
        rows["lot_usd_nano"] = _integers(_lot_usd(c) * 1e9, _MOST)
        rows["ratio_num"], rows["ratio_den"] = _ratio_correction(c)
        rows["lots_num"], rows["lots_den"] = _lots_correction(c, step, master_step)
        least, most = _limits(c, steps_per_lot)
    rows["min_steps"], rows["max_steps"] = np.where(step > 0, least, 0), most
    return rows


def _is(c: Columns, mode: SizingMode) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = c["mode"] == MODES.index(mode)
    return found


def _wanted_lots(c: Columns) -> Floats:
    return np.where(_is(c, SizingMode.FIXED_LOTS), c["fixed_lots"], c["raw_lots"])


def _multiplier(c: Columns) -> Floats:
    """What the figure is multiplied with: a share of it, not more than all, or a multiple."""
    risked = np.where(c["risk_pct"] <= 100.0, c["risk_pct"] / 100.0, np.nan)
    by_value = np.where(_is(c, SizingMode.RISK), risked, c["target_leverage"])
    return np.where(_KERNEL_MODES[c["mode"]] == SizingRule.BY_VALUE, by_value, c["multiplier"])


def _lot_usd(c: Columns) -> Floats:
    return np.where(_is(c, SizingMode.RISK), c["loss_per_lot_usd"], c["lot_value_usd"])


def _limits(c: Columns, steps_per_lot: Floats) -> tuple[Integers, Integers]:
    """Fewest and most steps: of the symbol, of the strategy times the multiplier, of the risk."""
    usable = c["multiplier"] > 0.0  # else the row is refused for its multiplier
    strategy = np.where(usable & np.isfinite(c["strategy_max_lot"]), c["strategy_max_lot"] * c["multiplier"], np.inf)
    strategy = np.where(c["strategy_max_lot"] > 0.0, strategy, np.nan)
    hard = np.where(c["units"] > 0.0, c["hard_limit_lots"] / c["units"], np.inf)  # and so for its units
    most = np.minimum(np.minimum(c["max_lot"], strategy), hard)
    smallest, largest, per_lot = np.broadcast_arrays(c["min_lot"], most, steps_per_lot)
    min_steps, max_steps = np.empty(smallest.shape, np.int64), np.empty(smallest.shape, np.int64)
    step_limits(smallest, largest, per_lot, min_steps, max_steps)
    return min_steps, max_steps


def _ratio_correction(c: Columns) -> tuple[Integers, Integers]:
    """Leverages against each other, and what is left of the risk after two commissions."""
    follower, master = (_integers(c[name] * _PARTS, _LARGEST) for name in ("follower_leverage", "master_leverage"))
    cut = c["leverage_correction"] == CORRECTIONS.index(LeverageCorrection.CUT)
    none = c["leverage_correction"] == CORRECTIONS.index(LeverageCorrection.NONE)
    above = np.where(none, 1, np.where(cut & (master > 0), np.minimum(follower, master), follower))
    paid = np.where(c["commission_rate"] >= 0.0, 2.0 * np.rint(c["commission_rate"] * _MICRO), np.nan)
    left = _integers(_MICRO - paid, _MICRO)
    return quotient([above, left], [np.where(none, 1, master), np.array([_MICRO])])


def _lots_correction(c: Columns, step: Integers, master_step: Integers) -> tuple[Integers, Integers]:
    """From the master's lots, or from lots of a value, to steps of the follower's."""
    by_value = _KERNEL_MODES[c["mode"]] == SizingRule.BY_VALUE
    sizes = (_integers(c[name] * _PARTS, _LARGEST) for name in ("master_contract_size", "contract_size"))
    master_size, size = (np.where(by_value, 1, found) for found in sizes)
    return quotient(
        [np.where(by_value, _STEP_UNITS, master_step), master_size], [step, size, _integers(c["units"], _LARGEST)]
    )


def quotient(above: list[Integers], below: list[Integers]) -> tuple[Integers, Integers]:
    """The products as a quotient in lowest terms; 0 where a factor is not positive or a product too great."""
    usable = np.logical_and.reduce(np.broadcast_arrays(*(factor > 0 for factor in above + below)))
    tops, bottoms = ([np.maximum(factor, 1) for factor in factors] for factors in (above, below))
    for i in range(len(tops)):
        for j in range(len(bottoms)):
            common = np.gcd(tops[i], bottoms[j])
            tops[i], bottoms[j] = tops[i] // common, bottoms[j] // common
    products = []
    for factors in (tops, bottoms):
        product, size = np.ones(1, np.int64), np.ones(1)
        for factor in factors:
            size = size * factor
            product = product * np.where(size < _MOST, factor, 0)
        products.append(np.where(usable, product, 0))
    return products[0], products[1]


def _converted(conversion: Any, *columns: Floats) -> Integers:
    """A conversion of the kernel over columns, the longest of which says how many rows there are."""
    given = np.broadcast_arrays(*columns)
    found = np.empty(len(given[0]), np.int64)
    conversion(*given, found)
    return found


def _integers(values: Floats, most: float) -> Integers:
    """The nearest whole numbers; 0 where that is not from 1 to `most`."""
    rounded = np.rint(values)
    return np.where((rounded >= 1.0) & (rounded <= most), rounded, 0.0).astype(np.int64)


def step_units(lot_step: npt.NDArray[Any]) -> Integers:
    """Lot steps in 1e-8 lots; 0 for what is no decimal of as many places, or out of range."""
    with np.errstate(all="ignore"):
        units = lot_step * _STEP_UNITS
        return np.where(np.abs(units - np.rint(units)) <= _STEP_NOISE * units, _integers(units, _LARGEST_STEP), 0)
