"""What a size of a copy may follow from: the words, the rows of the kernel, and plain numbers as columns."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt

from copyrisk._sizing import LimitRule, RoundingRule, SizingRule
from copyrisk.errors import ConfigError, ShapeError

Floats = npt.NDArray[np.float64]
#: Arguments by their names: columns of one length, or of one row; words are numbers by then.
Columns = dict[str, npt.NDArray[Any]]

#: What a follower's size follows from; `_sizing.pxd` documents every field of these three.
SIZING_IN = np.dtype(
    [
        ("follower_cents", "i8"),
        ("master_cents", "i8"),
        ("multiplier_micro", "i8"),
        ("master_steps", "i8"),
        ("ratio_num", "i8"),
        ("ratio_den", "i8"),
        ("lots_num", "i8"),
        ("lots_den", "i8"),
        ("lot_usd_nano", "i8"),
        ("wanted_steps", "f8"),
        ("carry_steps", "f8"),
        ("lift_risk_limit", "f8"),
        ("min_steps", "i8"),
        ("max_steps", "i8"),
        ("mode", "u1"),
        ("rounding", "u1"),
        ("below_min", "u1"),
        ("above_max", "u1"),
        ("_pad", "u1", (4,)),
    ]
)
SIZED = np.dtype([("steps", "i8"), ("raw_steps", "f8"), ("carry_steps", "f8"), ("code", "u1"), ("_pad", "u1", (7,))])
POLICY_IN = np.dtype(
    [
        ("master_lots", "f8"),
        ("master_equity", "f8"),
        ("master_balance", "f8"),
        ("master_free_margin", "f8"),
        ("master_leverage", "f8"),
        ("follower_equity", "f8"),
        ("follower_balance", "f8"),
        ("follower_free_margin", "f8"),
        ("follower_leverage", "f8"),
        ("multiplier", "f8"),
        ("price", "f8"),
        ("lot_value_usd", "f8"),
    ]
)


class SizingMode(StrEnum):
    """What a copy's size follows from; the first three differ in which figures are given as equities."""

    EQUITY = "equity"
    BALANCE = "balance"
    FREE_MARGIN = "free_margin"
    FIXED_LOTS = "fixed_lots"
    MULTIPLIER = "multiplier"
    FIXED_LEVERAGE = "fixed_leverage"
    RISK = "risk"
    POLICY = "policy"


class Rounding(StrEnum):
    """How a size becomes whole steps; `ladder` takes the ratio down to whole, fifth or tenth percent first."""

    DOWN = "down"
    NEAREST = "nearest"
    LADDER = "ladder"


class BelowMin(StrEnum):
    """What becomes of a size below the fewest lots allowed."""

    SKIP = "skip"
    LIFT = "lift"


class AboveMax(StrEnum):
    """What becomes of a size above the most lots allowed."""

    CLIP = "clip"
    SKIP = "skip"


class LeverageCorrection(StrEnum):
    """`full` multiplies by the follower's leverage over the master's, `cut` only where that is less than 1."""

    NONE = "none"
    FULL = "full"
    CUT = "cut"


#: Words of the configuration -> numbers of the kernel.
RULES = {
    SizingMode.EQUITY: SizingRule.RATIO,
    SizingMode.BALANCE: SizingRule.RATIO,
    SizingMode.FREE_MARGIN: SizingRule.RATIO,
    SizingMode.FIXED_LOTS: SizingRule.FIXED,
    SizingMode.MULTIPLIER: SizingRule.MULTIPLE,
    SizingMode.FIXED_LEVERAGE: SizingRule.BY_VALUE,
    SizingMode.RISK: SizingRule.BY_VALUE,
    SizingMode.POLICY: SizingRule.POLICY,
}
ROUNDINGS = {
    Rounding.DOWN: RoundingRule.ROUND_DOWN,
    Rounding.NEAREST: RoundingRule.ROUND_NEAREST,
    Rounding.LADDER: RoundingRule.ROUND_LADDER,
}
BELOW_MIN_RULES = {BelowMin.SKIP: LimitRule.LIMIT_SKIP, BelowMin.LIFT: LimitRule.LIMIT_ADJUST}
ABOVE_MAX_RULES = {AboveMax.SKIP: LimitRule.LIMIT_SKIP, AboveMax.CLIP: LimitRule.LIMIT_ADJUST}

#: Columns of `mode` and `leverage_correction` hold places in these.
MODES = tuple(SizingMode)
CORRECTIONS = tuple(LeverageCorrection)
_WORDS: dict[str, Mapping[Any, int]] = {
    "mode": {mode: row for row, mode in enumerate(MODES)},
    "rounding": ROUNDINGS,
    "below_min": BELOW_MIN_RULES,
    "above_max": ABOVE_MAX_RULES,
    "leverage_correction": {correction: row for row, correction in enumerate(CORRECTIONS)},
}


class MoreTerms(TypedDict, total=False):
    """What a size may follow from besides; each a number or word for all followers, or an array of one for each.

    `master_lot_step` (default `lot_step`), `strategy_max_lot` (times the multiplier it limits as `max_lot` does),
    `lift_risk_limit` (lift to at most so many times what the ratio gives; default no limit), `carry_steps` (steps owed
    from before), `leverage_correction` with `master_leverage` and `follower_leverage`, `master_contract_size` with
    `contract_size` (the follower's). By mode: `fixed_lots`; `target_leverage` and `lot_value_usd`; `risk_pct` and
    `loss_per_lot_usd` (see `loss_per_lot`), `commission_rate` (of the amount at risk, paid twice), `hard_limit_lots`,
    `units` (equal parts of which one is sized); `raw_lots` (what a policy gave).
    """

    mode: npt.ArrayLike
    master_lot_step: npt.ArrayLike
    strategy_max_lot: npt.ArrayLike
    lift_risk_limit: npt.ArrayLike
    carry_steps: npt.ArrayLike
    leverage_correction: npt.ArrayLike
    master_leverage: npt.ArrayLike
    follower_leverage: npt.ArrayLike
    master_contract_size: npt.ArrayLike
    contract_size: npt.ArrayLike
    fixed_lots: npt.ArrayLike
    target_leverage: npt.ArrayLike
    lot_value_usd: npt.ArrayLike
    risk_pct: npt.ArrayLike
    loss_per_lot_usd: npt.ArrayLike
    commission_rate: npt.ArrayLike
    hard_limit_lots: npt.ArrayLike
    units: npt.ArrayLike
    raw_lots: npt.ArrayLike


class SizingTerms(MoreTerms, total=False):
    """All terms of a size; the defaults are those of `size_lots`."""

    lot_step: npt.ArrayLike
    min_lot: npt.ArrayLike
    max_lot: npt.ArrayLike
    multiplier: npt.ArrayLike
    below_min: npt.ArrayLike
    above_max: npt.ArrayLike
    rounding: npt.ArrayLike


DEFAULTS: SizingTerms = {
    "lot_step": 0.01,
    "min_lot": 0.01,
    "max_lot": 100.0,
    "multiplier": 1.0,
    "below_min": BelowMin.SKIP,
    "above_max": AboveMax.CLIP,
    "rounding": Rounding.DOWN,
    "mode": SizingMode.EQUITY,
    "strategy_max_lot": math.inf,
    "lift_risk_limit": math.inf,
    "carry_steps": 0.0,
    "leverage_correction": LeverageCorrection.NONE,
    "master_leverage": math.nan,
    "follower_leverage": math.nan,
    "master_contract_size": 1.0,
    "contract_size": 1.0,
    "fixed_lots": math.nan,
    "target_leverage": math.nan,
    "lot_value_usd": math.nan,
    "risk_pct": math.nan,
    "loss_per_lot_usd": math.nan,
    "commission_rate": 0.0,
    "hard_limit_lots": math.inf,
    "units": 1.0,
    "raw_lots": math.nan,
}


def columns_of(given: Mapping[str, Any]) -> tuple[tuple[int, ...], Columns]:
    """The shape to which all arguments broadcast, and each as a column of its rows, or of one row that stands for all.

    Raises
    ------
    ShapeError
        Shapes that do not broadcast, or something else than numbers; names the argument.
    ConfigError
        A word that is none of the enum's.
    """
    arrays = {
        name: _as_rules(name, value) if name in _WORDS else _as_numbers(name, value) for name, value in given.items()
    }
    shape: tuple[int, ...] = ()
    for name, array in arrays.items():
        try:
            shape = np.broadcast_shapes(shape, array.shape) if array.ndim else shape
        except ValueError:
            raise ShapeError(f"{name}: expected a shape that broadcasts with {shape}, found {array.shape}") from None
    return shape, {name: _as_column(array, shape) for name, array in arrays.items()}


def _as_column(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return array.reshape(1) if array.size == 1 else np.broadcast_to(array, shape).reshape(-1)


def _as_numbers(name: str, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Numbers as doubles: also of `Decimal`; `None` is unknown."""
    try:
        found = np.asarray(value)
        if found.dtype.kind in "fiuO":
            return found.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError):
        raise ShapeError(f"{name}: expected numbers, found {type(value).__name__}") from None
    raise ShapeError(f"{name}: expected numbers, found {found.dtype}")


def _as_rules(name: str, value: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Words as the numbers that stand for them."""
    table = _WORDS[name]
    if isinstance(value, str) and value in table:
        return np.array(int(table[value]), np.uint8)
    words, places = np.unique(np.asarray(value, dtype=object).astype(str), return_inverse=True)
    strange = [word for word in words.tolist() if word not in table]
    if strange:
        raise ConfigError(f"{name} must be {' or '.join(table)}, not {strange[0]!r}")
    numbers = np.array([int(table[word]) for word in words.tolist()], np.uint8)
    return cast(npt.NDArray[np.uint8], numbers[places].reshape(np.shape(value)))
