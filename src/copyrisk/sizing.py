"""Lot sizing: how many lots of a master's order a follower gets, exactly, or why it gets none.

`size_lots` takes plain numbers. The replication engine builds rows once (`sizing_rows`), which hold integers and settled
rules, has them sized (`size_rows`), and keeps them: the same rows give the same answer again.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from copyrisk._sizing import (
    RoundingRule,
    SizeCode,
    SizingRule,
    size_ratio,
    size_steps,
    step_limits,
    whole_cents,
    whole_micro,
    whole_steps,
)
from copyrisk.layout import Rows
from copyrisk.sizing_terms import (
    ABOVE_MAX_RULES,
    BELOW_MIN_RULES,
    CORRECTIONS,
    DEFAULTS,
    MODES,
    POLICY_IN,
    ROUNDINGS,
    RULES,
    SIZED,
    SIZING_IN,
    AboveMax,
    BelowMin,
    Columns,
    Floats,
    LeverageCorrection,
    MoreTerms,
    Rounding,
    SizingMode,
    SizingTerms,
    columns_of,
)

__all__ = [
    "ABOVE_MAX_RULES",
    "BELOW_MIN_RULES",
    "POLICY_IN",
    "ROUNDINGS",
    "RULES",
    "SIZED",
    "SIZING_IN",
    "AboveMax",
    "BelowMin",
    "LeverageCorrection",
    "MoreTerms",
    "Rounding",
    "SizeCode",
    "SizingMode",
    "SizingTerms",
    "is_sized",
    "loss_per_lot",
    "lots_of",
    "size_lots",
    "size_reason",
    "size_rows",
    "size_steps",
    "sizing_rows",
]

Integers = npt.NDArray[np.int64]

_STEP_UNITS = 100_000_000  # lot steps are told in 1e-8 lots
_LARGEST_STEP = 1e14
_STEP_NOISE = 1e-9
_MICRO = 1_000_000
_PARTS = 10_000  # leverages and contract sizes are taken in 1e-4
_LARGEST = 1e15
_MOST = 9e18  # below 2**63
_KERNEL_MODES = np.array([RULES[mode] for mode in MODES], np.uint8)

#: The plain rule: what it knows besides the arguments of `size_lots`, what it takes as columns, what is one for all.
_PLAIN_DEFAULTS = {"lift_risk_limit": DEFAULTS["lift_risk_limit"]}
_PLAIN = {"lift_risk_limit", "master_lot_step"}
_PLAIN_NUMBERS = (("master_lots", "master_equity", "follower_equity", "multiplier"), ("min_lot", "max_lot"))
_COMMON = ("lot_step", "master_lot_step", "lift_risk_limit", "rounding", "below_min", "above_max")


def size_lots(
    master_lots: npt.ArrayLike,
    master_equity: npt.ArrayLike,
    follower_equity: npt.ArrayLike,
    *,
    lot_step: npt.ArrayLike = 0.01,
    min_lot: npt.ArrayLike = 0.01,
    max_lot: npt.ArrayLike = 100.0,
    multiplier: npt.ArrayLike = 1.0,
    below_min: npt.ArrayLike = BelowMin.SKIP,
    above_max: npt.ArrayLike = AboveMax.CLIP,
    rounding: npt.ArrayLike = Rounding.DOWN,
    **more: Unpack[MoreTerms],
) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Lots of the copies: ``floor(master_steps x follower_equity / master_equity x multiplier)`` steps, exactly.

    Parameters
    ----------
    master_lots, master_equity, follower_equity : array-like of float
        Lots of the master's order; both accounts' equity in USD (or balance, or free margin), taken in whole cents.
    lot_step, min_lot, max_lot : array-like of float
        Of the follower's symbol, in lots. Limits between two steps count as the next step inside them.
    multiplier : array-like of float
        Taken in whole millionths.
    below_min, above_max, rounding : BelowMin, AboveMax, Rounding or their words
    **more : MoreTerms
        Other modes, policies and corrections.

    Returns
    -------
    lots : float64
        Of the shape to which all arguments broadcast: the doubles nearest to the decimals; 0.0 without a size.
    codes : uint8
        `SizeCode`: `OK`, `CLIPPED`, `LIFTED`, or why there are no lots. Rows do not affect each other.

    Raises
    ------
    ShapeError
        Shapes that do not broadcast, or something else than numbers; names the argument.
    ConfigError
        A word that is none of the enum's.
    """
    terms: SizingTerms = {
        "lot_step": lot_step,
        "min_lot": min_lot,
        "max_lot": max_lot,
        "multiplier": multiplier,
        "below_min": below_min,
        "above_max": above_max,
        "rounding": rounding,
        **more,
    }
    figures = {"master_lots": master_lots, "master_equity": master_equity, "follower_equity": follower_equity}
    if not more.keys() - _PLAIN:
        shape, columns = columns_of({**figures, **_PLAIN_DEFAULTS, "master_lot_step": lot_step, **terms})
        found = _size_plainly(columns, math.prod(shape))
        if found is not None:
            return found[0].reshape(shape), found[1].reshape(shape)
    shape, columns = columns_of(_complete(figures, terms))
    sized = size_rows(_rows_of(columns, math.prod(shape)))
    return lots_of(sized["steps"], columns["lot_step"]).reshape(shape), sized["code"].reshape(shape)


def _size_plainly(c: Columns, count: int) -> tuple[Floats, npt.NDArray[np.uint8]] | None:
    """Sizes by the ratio, under the same rules for all rows; `None` where these are not that plain."""
    if any(len(c[name]) != 1 for name in _COMMON) or c["rounding"][0] == RoundingRule.ROUND_LADDER:
        return None
    step, master_step = _step_units(c["lot_step"]), _step_units(c["master_lot_step"])
    if not (step[0] and master_step[0]):
        return None
    rules: Rows = np.ones(1, SIZING_IN)
    rules["mode"], rules["carry_steps"] = SizingRule.RATIO, 0.0
    for name in ("rounding", "below_min", "above_max", "lift_risk_limit"):
        rules[name] = c[name]
    rules["lots_num"], rules["lots_den"] = _quotient([master_step], [step])
    lots, codes = np.empty(count), np.empty(count, np.uint8)
    figures, limits = (
        [np.broadcast_to(np.ascontiguousarray(c[name]), count) for name in names] for names in _PLAIN_NUMBERS
    )
    lot_steps = int(step[0]), int(master_step[0])
    size_ratio(figures[0], figures[1], figures[2], figures[3], limits[0], limits[1], rules, *lot_steps, lots, codes)
    return lots, codes


def sizing_rows(
    master_lots: npt.ArrayLike,
    master_equity: npt.ArrayLike,
    follower_equity: npt.ArrayLike,
    **terms: Unpack[SizingTerms],
) -> Rows:
    """(n,) SIZING_IN: the rows from which the kernel sizes; what cannot be used gets its code there.

    Parameters and exceptions are those of `size_lots`; arrays of more dimensions become one.
    """
    figures = {"master_lots": master_lots, "master_equity": master_equity, "follower_equity": follower_equity}
    shape, columns = columns_of(_complete(figures, terms))
    return _rows_of(columns, math.prod(shape))


def size_rows(rows: Rows) -> Rows:
    """(n,) SIZED of (n,) SIZING_IN."""
    sized: Rows = np.empty(len(rows), SIZED)
    size_steps(rows, sized)
    return sized


def lots_of(steps: Integers, lot_step: npt.ArrayLike) -> Floats:
    """Whole steps as lots, the doubles nearest to the decimals; 0.0 where the step cannot be used."""
    units = _step_units(np.asarray(lot_step, np.float64))
    common = np.gcd(units, _STEP_UNITS)
    lots: Floats = steps * (units // common) / (_STEP_UNITS // common)
    return lots


def loss_per_lot(
    entry: npt.ArrayLike, stop: npt.ArrayLike, contract_size: npt.ArrayLike, usd_rate: npt.ArrayLike = 1.0
) -> Floats:
    """USD that one lot loses from `entry` to `stop`; NaN where a price, size or rate is unknown or not positive.

    `usd_rate` converts the profit currency to USD. Prices are taken to nine decimals.
    """
    prices = [np.asarray(price, np.float64) for price in (entry, stop, contract_size, usd_rate)]
    distance = np.abs(np.rint(prices[0] * 1e9) - np.rint(prices[1] * 1e9))
    known = np.logical_and.reduce(np.broadcast_arrays(*(np.isfinite(price) & (price > 0.0) for price in prices)))
    return np.where(known, distance * prices[2] * prices[3] / 1e9, np.nan)


def size_reason(code: int) -> str:
    """The stable lower-case word of a `SizeCode`."""
    return SizeCode(code).name.lower()


def is_sized(code: int) -> bool:
    """Whether a row with this code has lots."""
    return code in (SizeCode.OK, SizeCode.CLIPPED, SizeCode.LIFTED)


def _complete(figures: Mapping[str, Any], terms: SizingTerms) -> dict[str, Any]:
    given = {**figures, **DEFAULTS, **terms}
    unknown = terms.keys() - SizingTerms.__annotations__.keys()
    if unknown:
        raise TypeError(f"no such term of a size: {', '.join(sorted(unknown))}")
    given.setdefault("master_lot_step", given["lot_step"])
    return given


def _rows_of(c: Columns, count: int) -> Rows:
    rows: Rows = np.zeros(count, SIZING_IN)
    step, master_step = _step_units(c["lot_step"]), _step_units(c["master_lot_step"])
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
    most = np.minimum(np.minimum(c["max_lot"], strategy), c["hard_limit_lots"] / c["units"])
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
    left = np.where(
        c["commission_rate"] >= 0.0, _integers(_MICRO - 2.0 * np.rint(c["commission_rate"] * _MICRO), _MOST), 0
    )
    return _quotient([above, left], [np.where(none, 1, master), np.array([_MICRO])])


def _lots_correction(c: Columns, step: Integers, master_step: Integers) -> tuple[Integers, Integers]:
    """From the master's lots, or from lots of a value, to steps of the follower's."""
    by_value = _KERNEL_MODES[c["mode"]] == SizingRule.BY_VALUE
    sizes = (_integers(c[name] * _PARTS, _LARGEST) for name in ("master_contract_size", "contract_size"))
    master_size, size = (np.where(by_value, 1, found) for found in sizes)
    return _quotient(
        [np.where(by_value, _STEP_UNITS, master_step), master_size], [step, size, _integers(c["units"], _LARGEST)]
    )


def _quotient(above: list[Integers], below: list[Integers]) -> tuple[Integers, Integers]:
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


def _step_units(lot_step: npt.NDArray[Any]) -> Integers:
    """Lot steps in 1e-8 lots; 0 for what is no decimal of as many places, or out of range."""
    with np.errstate(all="ignore"):
        units = lot_step * _STEP_UNITS
        return np.where(np.abs(units - np.rint(units)) <= _STEP_NOISE * units, _integers(units, _LARGEST_STEP), 0)
