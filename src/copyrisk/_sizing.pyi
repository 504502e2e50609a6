"""Lot sizing in whole steps, exactly; `_sizing.pxd` documents the fields of the rows, `sizing.py` builds them.

Rows get a `SizeCode`, calls get exceptions: an array of another dtype raises `ValueError`, of another length
`ShapeError`. The GIL is released while a kernel runs.
"""

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk.layout import Rows

UNKNOWN_AMOUNT: int
OFF_STEP: int

class SizeCode(IntEnum):
    UNKNOWN = 0
    OK = 1
    CLIPPED = 2
    LIFTED = 3
    BELOW_MIN = 10
    ABOVE_MAX = 11
    LIFT_TOO_RISKY = 12
    MASTER_EQUITY_UNKNOWN = 20
    MASTER_EQUITY_NOT_POSITIVE = 21
    FOLLOWER_EQUITY_UNKNOWN = 22
    FOLLOWER_EQUITY_NOT_POSITIVE = 23
    MASTER_LOTS_INVALID = 30
    LOTS_OFF_STEP = 31
    MULTIPLIER_INVALID = 32
    LIMITS_INVALID = 33
    CORRECTION_INVALID = 34
    LOT_VALUE_INVALID = 35
    FIXED_LOTS_INVALID = 36
    RULES_INVALID = 37
    CARRY_INVALID = 38
    POLICY_INVALID = 40
    OUT_OF_RANGE = 41

class SizingRule(IntEnum):
    RATIO = 1
    MULTIPLE = 2
    FIXED = 3
    BY_VALUE = 4
    POLICY = 5

class RoundingRule(IntEnum):
    ROUND_DOWN = 1
    ROUND_NEAREST = 2
    ROUND_LADDER = 3

class LimitRule(IntEnum):
    LIMIT_SKIP = 1
    LIMIT_ADJUST = 2

def whole_cents(usd: npt.NDArray[np.float64], out: npt.NDArray[np.int64]) -> None:
    """Money in cents, as portfolios are written: the nearest, the even one at an exact half.

    `UNKNOWN_AMOUNT` for NaN, infinities, and amounts of more than ten trillion USD.
    """

def whole_steps(
    lots: npt.NDArray[np.float64], steps_per_lot: npt.NDArray[np.float64], out: npt.NDArray[np.int64]
) -> None:
    """Lots in whole steps: `OFF_STEP` further than a millionth of a step from one, `UNKNOWN_AMOUNT` for no number."""

def whole_micro(numbers: npt.NDArray[np.float64], out: npt.NDArray[np.int64]) -> None:
    """Positive numbers in millionths, rounded; 0 for what is not positive, above a million, or no number."""

def step_limits(
    min_lot: npt.NDArray[np.float64],
    max_lot: npt.NDArray[np.float64],
    steps_per_lot: npt.NDArray[np.float64],
    min_steps: npt.NDArray[np.int64],
    max_steps: npt.NDArray[np.int64],
) -> None:
    """The fewest and the most whole steps inside the limits; 0 for what is no limit. `max_lot` may be infinite."""

def size_steps(rows: Rows, sized: Rows) -> None:
    """Size every row.

    Parameters
    ----------
    rows : (n,) SizingIn
    sized : (n,) Sized
        Written: `steps` (0 without a size), `raw_steps`, `carry_steps`, `code`.

    Raises
    ------
    ShapeError
        `sized` of another length.
    """

def size_ratio(
    master_lots: npt.NDArray[np.float64],
    master_equity: npt.NDArray[np.float64],
    follower_equity: npt.NDArray[np.float64],
    multiplier: npt.NDArray[np.float64],
    min_lot: npt.NDArray[np.float64],
    max_lot: npt.NDArray[np.float64],
    rules: Rows,
    step: int,
    master_step: int,
    lots: npt.NDArray[np.float64],
    codes: npt.NDArray[np.uint8],
) -> None:
    """Size many rows by the ratio under the same rules, from plain numbers, to what `size_steps` gives.

    Parameters
    ----------
    master_lots, master_equity, follower_equity, multiplier, min_lot, max_lot : (n,) float64
        Contiguous, or one number for all rows as a broadcast array (stride 0), which is converted once.
    rules : (1,) SizingIn
        `rounding` (not `ROUND_LADDER`), `below_min`, `above_max`, `lift_risk_limit`, `lots_num`, `lots_den`; `mode` is
        `RATIO`, the ratio has no correction, and there is no carry.
    step, master_step : int
        The follower's and the master's lot step in 1e-8 lots, from 1.
    lots : (n,) float64
        Written: the doubles nearest to the decimals, 0.0 without a size.
    codes : (n,) uint8
        Written: `SizeCode`.

    Raises
    ------
    ShapeError
        Arrays of another length, a step below 1, or other rules; nothing is written.
    """

def ask_policy(address: int, inputs: Rows, raw_lots: npt.NDArray[np.float64]) -> None:
    """Call a C function for every row.

    Parameters
    ----------
    address : int
        Of the function, which takes a pointer to a row and returns a double. It must need neither the GIL nor Python;
        nothing checks that.
    inputs : (n,) PolicyIn
    raw_lots : (n,) float64
        Written: what it gave.

    Raises
    ------
    ShapeError
        No address, or `raw_lots` of another length.
    """

__pyx_capi__: dict[str, Any]
