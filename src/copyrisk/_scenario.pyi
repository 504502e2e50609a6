"""The kernel of the liquidation ladder. Arrays are as in `_core.pyi`; `Crossing` is `copyrisk.scenario.CROSSING`."""

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk.layout import Rows

class Reach(IntEnum):
    NOT_KNOWN = 0
    AHEAD = 1
    AT_WARNING = 2
    AT_CRITICAL = 3
    MARKET_SHUT = 4

def find_crossings(
    rows: npt.NDArray[np.int32],
    accounts: Rows,
    legs: Rows,
    leg_rates: Rows,
    instruments: Rows,
    quotes: Rows,
    figures: Rows,
    crossings: Rows,
) -> int:
    """Find how far each symbol an account holds must move to bring the account to its levels.

    Bid and ask of the symbol are multiplied by 1 + move, wherever they serve: as price, as margin price, and as
    conversion rate of any position of the account. All else stays.

    Parameters
    ----------
    rows : (k,) int32
        Accounts to look at.
    accounts : (a,) Account
    legs : (l,) Leg
    leg_rates : (2 i,) LegRate
    instruments : (i,) Instrument
    quotes : (q,) Quote
    figures : (a,) Figures
        All as they stand after one valuation.
    crossings : (c,) Crossing
        Written: one row for each account and symbol with executed orders, accounts in the order of `rows`; at least as
        long as all executed legs of the accounts. Moves are relative (-0.01 is one percent down), the nearest to 0 of
        either direction, from -0.99 to 10; NaN where none of them does. `code` is a `Reach`.

    Returns
    -------
    int
        Rows of `crossings` that were written.

    Notes
    -----
    An account without margin reaches no level. One that stands at a level has no move to it, and no way back is
    looked for. If the market of the symbol is closed, its move is that of the opening, so every closed market counts as
    open.

    Raises
    ------
    ShapeError
        Arrays that do not fit, or a row that points outside; nothing is written.
    """

__pyx_capi__: dict[str, Any]
