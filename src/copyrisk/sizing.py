"""Lot sizing: how many lots of a master's order a follower gets, exactly, or why it gets none.

`size_lots` takes plain numbers. The replication engine builds rows (`sizing_rows`), which hold integers and settled
rules, has them sized (`size_rows`), and keeps them: the same rows give the same answer again.
"""

import math
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from copyrisk._sizing import (
    OFF_STEP,
    UNKNOWN_AMOUNT,
    RoundingRule,
    SizeCode,
    SizingRule,
    size_ratio,
    size_steps,
)
from copyrisk.layout import Rows
from copyrisk.sizing_input import complete, lots_of, quotient, rows_of, step_units
from copyrisk.sizing_terms import (
    ABOVE_MAX_RULES,
    BELOW_MIN_RULES,
    DEFAULTS,
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
    "OFF_STEP",
    "POLICY_IN",
    "ROUNDINGS",
    "RULES",
    "SIZED",
    "SIZING_IN",
    "UNKNOWN_AMOUNT",
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

#: The plain rule: what it takes as columns, what is one for all rows, and the terms that it knows.
_PLAIN_NUMBERS = (("master_lots", "master_equity", "follower_equity", "multiplier"), ("min_lot", "max_lot"))
_COMMON = ("lot_step", "master_lot_step", "lift_risk_limit", "rounding", "below_min", "above_max")
_PLAIN = {"multiplier", "min_lot", "max_lot", *_COMMON}
_PLAIN_DEFAULTS = {"lift_risk_limit": DEFAULTS["lift_risk_limit"]}


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
    }
    figures = {"master_lots": master_lots, "master_equity": master_equity, "follower_equity": follower_equity}
    return _sizes(figures, {**terms, **more})


def _sizes(figures: dict[str, Any], terms: SizingTerms) -> tuple[Floats, npt.NDArray[np.uint8]]:
    if not terms.keys() - _PLAIN:
        shape, columns = columns_of({**figures, **_PLAIN_DEFAULTS, "master_lot_step": terms["lot_step"], **terms})
        found = _size_plainly(columns, math.prod(shape))
        if found is not None:
            return found[0].reshape(shape), found[1].reshape(shape)
    shape, columns = columns_of(complete(figures, terms))
    sized = size_rows(rows_of(columns, math.prod(shape)))
    return lots_of(sized["steps"], columns["lot_step"]).reshape(shape), sized["code"].reshape(shape)


def _size_plainly(c: Columns, count: int) -> tuple[Floats, npt.NDArray[np.uint8]] | None:
    """Sizes by the ratio, under the same rules for all rows; `None` where these are not that plain."""
    if any(len(c[name]) != 1 for name in _COMMON) or c["rounding"][0] == RoundingRule.ROUND_LADDER:
        return None
    step, master_step = step_units(c["lot_step"]), step_units(c["master_lot_step"])
    if not (step[0] and master_step[0] and c["lift_risk_limit"][0] > 0.0):
        return None
    rules: Rows = np.ones(1, SIZING_IN)
    rules["mode"], rules["carry_steps"] = SizingRule.RATIO, 0.0
    for name in ("rounding", "below_min", "above_max", "lift_risk_limit"):
        rules[name] = c[name]
    rules["lots_num"], rules["lots_den"] = quotient([master_step], [step])
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
    shape, columns = columns_of(complete(figures, terms))
    return rows_of(columns, math.prod(shape))


def size_rows(rows: Rows) -> Rows:
    """(n,) SIZED of (n,) SIZING_IN."""
    sized: Rows = np.empty(len(rows), SIZED)
    size_steps(rows, sized)
    return sized


def loss_per_lot(
    entry: npt.ArrayLike, stop: npt.ArrayLike, contract_size: npt.ArrayLike, usd_rate: npt.ArrayLike = 1.0
) -> Floats:
    """USD that one lot loses from `entry` to `stop`; NaN where a price, size or rate is unknown or not positive.

    `usd_rate` converts the profit currency to USD. Prices are taken to nine decimals.
    """
    prices = [np.asarray(price, np.float64) for price in (entry, stop, contract_size, usd_rate)]
    known = np.logical_and.reduce(np.broadcast_arrays(*(np.isfinite(price) & (price > 0.0) for price in prices)))
    with np.errstate(all="ignore"):
        distance = np.abs(np.rint(prices[0] * 1e9) - np.rint(prices[1] * 1e9))
        return np.where(known, distance * prices[2] * prices[3] / 1e9, np.nan)


def size_reason(code: int) -> str:
    """The stable lower-case word of a `SizeCode`."""
    return SizeCode(code).name.lower()


def is_sized(code: int) -> bool:
    """Whether a row with this code has lots."""
    return code in (SizeCode.OK, SizeCode.CLIPPED, SizeCode.LIFTED)
