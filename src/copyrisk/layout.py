"""The packed rows of the kernels as NumPy dtypes; `_core.pxd` documents every field.

The kernels check these against their C structs at each call, so the two cannot drift apart unnoticed.
"""

from typing import TypeAlias

import numpy as np

#: A one-dimensional array of one of these dtypes.
Rows: TypeAlias = np.ndarray[tuple[int], np.dtype[np.void]]

QUOTE = np.dtype(
    [
        ("bid", "f8"),
        ("ask", "f8"),
        ("ts_ms", "i8"),
        ("max_age_ms", "i8"),
        ("market", "u1"),
        ("read_code", "u1"),
        ("code", "u1"),
        ("_pad0", "u1"),
        ("_pad1", "i4"),
        ("_pad2", "i8"),
    ]
)

INSTRUMENT = np.dtype(
    [
        ("contract_size", "f8"),
        ("margin_factor", "f8"),
        ("cover", "f8"),
        ("quote", "i4"),
        ("direct", "i4"),
        ("inverse", "i4"),
        ("profit_is_usd", "u1"),
        ("margin_at_open", "u1"),
        ("highest_price", "u1"),
        ("read_code", "u1"),
        ("code", "u1"),
        ("_pad0", "u1"),
        ("_pad1", "u2"),
        ("_pad2", "i4"),
    ]
)

ORDER = np.dtype(
    [
        ("lots", "f8"),
        ("price", "f8"),
        ("fees_usd", "f8"),
        ("account", "i4"),
        ("instrument", "i4"),
        ("next", "i4"),
        ("prev", "i4"),
        ("effect", "u1"),
        ("is_buy", "u1"),
        ("code", "u1"),
        ("_pad0", "u1"),
        ("_pad1", "i4"),
    ]
)

LEG = np.dtype([("units", "f8"), ("cost", "f8"), ("margin_base", "f8"), ("rate", "i4"), ("_pad0", "i4")])

LEG_RATE = np.dtype([("price", "f8"), ("gain", "f8"), ("loss", "f8"), ("margin", "f8")])

ACCOUNT = np.dtype(
    [
        ("balance", "f8"),
        ("fees_usd", "f8"),
        ("leverage", "f8"),
        ("warning_level_pct", "f8"),
        ("critical_level_pct", "f8"),
        ("first", "i4"),
        ("n_executed", "i4"),
        ("n_legs", "i4"),
        ("capacity", "i4"),
        ("culprit", "i4"),
        ("read_code", "u1"),
        ("fold_code", "u1"),
        ("_pad0", "u2"),
    ]
)

EXPOSURE = np.dtype(
    [
        ("bought_units", "f8"),
        ("sold_units", "f8"),
        ("value", "f8"),
        ("highest_price", "f8"),
        ("bought_units_all", "f8"),
        ("sold_units_all", "f8"),
        ("value_all", "f8"),
        ("highest_price_all", "f8"),
        ("instrument", "i4"),
        ("leg", "i4"),
        ("n_reserved", "i4"),
        ("_pad0", "i4"),
    ]
)

FIGURES = np.dtype(
    [
        ("open_pnl", "f8"),
        ("equity", "f8"),
        ("used_margin_executed", "f8"),
        ("used_margin_all", "f8"),
        ("free_margin", "f8"),
        ("margin_level_pct", "f8"),
        ("culprit", "i4"),
        ("state", "u1"),
        ("code", "u1"),
        ("_pad0", "u2"),
    ]
)

#: Rows of autocutoff; `_cutoff.pxd` documents every field.
LADDER = np.dtype([("rung", "u1"), ("state", "u1"), ("is_latched", "u1"), ("is_lost", "u1")])
LOT_LIMITS = np.dtype([("step", "f8"), ("smallest", "f8")])
CLOSE = np.dtype([("lots", "f8"), ("order", "i4"), ("account", "i4"), ("is_cancel", "u1"), ("_pad0", "u1", (7,))])

#: What a portfolio says, as integers; `_pack.pyx` documents every field.
WRITTEN = np.dtype([("cents", "i8", (7,)), ("exact", "f8", (2,)), ("is_known", "i8")])

#: A set as `_wire` reads it: `count` cells from `first`; `reply` says whether it came, as in `fields.py`.
MEMBERS = np.dtype([("first", "i8"), ("count", "i4"), ("reply", "u1"), ("_pad", "u1", (3,))])

#: Hashes once they are judged (`fields`): names are rows of `fields.Names`, codes are `RowCode`.
ACCOUNT_READ = np.dtype(
    [
        ("balance", "f8"),
        ("leverage", "f8"),
        ("warning_level_pct", "f8"),
        ("critical_level_pct", "f8"),
        ("group", "i4"),
        ("code", "u1"),
        ("levels_valid", "?"),
    ]
)
ORDER_READ = np.dtype(
    [
        ("lots", "f8"),
        ("price", "f8"),
        ("fees_usd", "f8"),
        ("symbol", "i4"),
        ("effect", "u1"),
        ("is_buy", "u1"),
        ("code", "u1"),
    ]
)
QUOTE_READ = np.dtype([("bid", "f8"), ("ask", "f8"), ("ts_ms", "i8"), ("code", "u1")])
INSTRUMENT_READ = np.dtype(
    [
        ("contract_size", "f8"),
        ("crypto_margin_factor", "f8"),
        ("profit_currency", "i4"),
        ("type", "u1"),
        ("code", "u1"),
    ]
)
