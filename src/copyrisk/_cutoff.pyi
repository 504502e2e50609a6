"""Kernels of autocutoff: where accounts stand on the margin ladder, and what to close of the critical ones.

Arrays are as in `_core.pyi`; `Ladder`, `LotLimits` and `Close` are those of `copyrisk.layout`.
"""

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk.layout import Rows

class Edge(IntEnum):
    WARNED = 1
    BREACHED = 2
    RECOVERED = 4
    SAFE = 8
    LOST = 16
    FOUND = 32

class StopOut(IntEnum):
    LARGEST_LOSS = 1
    LARGEST_MARGIN = 2
    SMALLEST_PARTIAL = 3
    FLATTEN = 4

def step_ladder(
    rows: npt.NDArray[np.int32],
    accounts: Rows,
    figures: Rows,
    recovery_pct: float,
    latches: bool,
    ladders: Rows,
    edges: npt.NDArray[np.uint8],
) -> None:
    """Move accounts on the margin ladder, and say what happened to them.

    Parameters
    ----------
    rows : (k,) int32
        Accounts to move.
    accounts : (a,) Account
        Their levels, and whether they hold positions.
    figures : (a,) Figures
        As valued in this tick.
    recovery_pct : float
        Percentage points above the warning level that end an episode.
    latches : bool
        Whether an account that becomes critical stays so until its positions are gone.
    ladders : (a,) Ladder
        What is remembered of them, written for `rows`. The caller zeroes the row of an account that is new, and may set
        or clear `is_latched`; to go on with an episode of an earlier run, set its `rung`.
    edges : (k,) uint8
        Written: bits of `Edge`.

    Notes
    -----
    An account that is unknown, or known from the quotes of a closed market only, keeps its rung: of it nothing but
    `LOST` and `FOUND` is said. An episode begins at the warning level or below, also if the account is critical at
    once, and ends when the level is above the warning level and `recovery_pct`, or no margin is used. A threshold
    belongs to the worse side, the one of recovery, too. A latched account is critical until it has neither margin nor
    positions.

    Raises
    ------
    ShapeError
        Arrays that do not fit, a row that is not there, a `recovery_pct` that is negative or no number; nothing is
        written.
    """

def order_pnls(
    order_rows: npt.NDArray[np.int32],
    orders: Rows,
    instruments: Rows,
    leg_rates: Rows,
    out: npt.NDArray[np.float64],
) -> None:
    """Profit of single positions in USD, with swap and commission, by the formula of the valuation.

    Parameters
    ----------
    order_rows : (k,) int32
    orders : (o,) Order
    instruments : (i,) Instrument
    leg_rates : (2 i,) LegRate
        As priced by `price_legs`.
    out : (k,) float64
        Written; NaN of an order that is no position, or cannot be priced.

    Raises
    ------
    ShapeError
        Arrays that do not fit, or a row that is not there; nothing is written.
    """

def plan_closes(
    rows: npt.NDArray[np.int32],
    accounts: Rows,
    order_head: npt.NDArray[np.int32],
    orders: Rows,
    instruments: Rows,
    leg_rates: Rows,
    closing: npt.NDArray[np.uint8],
    lot_limits: Rows,
    mode: int,
    net_orders: bool,
    closes: Rows,
    counts: npt.NDArray[np.int32],
    figures: Rows | None = None,
    ladders: Rows | None = None,
) -> int:
    """Plan what to cancel and close of critical accounts so that each is above its critical level.

    Parameters
    ----------
    rows : (k,) int32
        Accounts to plan for. One that is not critical (and not latched), unknown, or on a closed market gets nothing:
        by what its orders are worth at `leg_rates`, or by its figures if they are given.
    accounts : (a,) Account
    order_head : (a,) int32
    orders : (o,) Order
        Linked by `next`.
    instruments : (i,) Instrument
    leg_rates : (2 i,) LegRate
        As priced by `price_legs`.
    closing : (o,) uint8
        1 where a close or cancel is under way: that order counts as gone, as a whole, and is not planned again. 2 where
        it cannot be closed now: its margin counts, and it is not planned.
    lot_limits : (i,) LotLimits
        For closes in part.
    mode : StopOut
    net_orders : bool
        As in `fold_accounts`.
    closes : (c,) Close
        Written, one account after the other, at least as long as all orders of the accounts: first every order that is
        no position as a cancel, then each position at most once, in the order in which they should be sent. If equity
        is not above 0 no close helps, and all positions are closed, the largest loss first.
    counts : (k,) int32
        Written: closes of each account.
    figures : (a,) Figures, optional
    ladders : (a,) Ladder, optional
        Of a latched account everything is closed, whatever the mode and even if it is not critical any more; without
        ladders none is latched.

    Returns
    -------
    int
        Rows of `closes` that were written.

    Notes
    -----
    Equity stays as it is, for a close at the current price moves profit into the balance; spread and commission of the
    close itself are not foreseen. Ties go to more lots, then to the lower row. With `SMALLEST_PARTIAL` the lots of a
    close in part are whole steps, at least the smallest lot, and leave at least that open.

    Raises
    ------
    ShapeError
        Arrays that do not fit, no such `mode`, or a list that leaves its array; nothing is written.
    """

__pyx_capi__: dict[str, Any]
