"""Lot limits of many instruments for the kernels, from the terms that decisions are made on."""

from collections.abc import Sequence

import numpy as np

from copyrisk import layout
from copyrisk.errors import Refused
from copyrisk.layout import Rows
from copyrisk.market import InstrumentKey
from copyrisk.store.markets import Markets


def read_lot_limits(markets: Markets, instruments: Sequence[InstrumentKey]) -> Rows:
    """(n,) `layout.LOT_LIMITS`; NaN where terms cannot be used: such positions are closed as a whole.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    rows = [markets.market.ensure_instrument(key) for key in instruments]
    markets.read(rows)
    found: Rows = np.full(len(rows), np.nan, layout.LOT_LIMITS)
    for i, row in enumerate(rows):
        market = markets.of(row)
        try:
            limits = market.agreed().lots if market else None
        except Refused:
            continue
        if limits is not None:
            found["step"][i], found["smallest"][i] = float(limits.step), float(limits.smallest)
    return found
