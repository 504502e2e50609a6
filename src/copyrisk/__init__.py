"""copyrisk: account valuation and risk for brokers that run on Redis.

Other services import the kernels from here: `judge_quotes`, `price_legs`, `fold_all`, `value_accounts` on
arrays of the dtypes in `copyrisk.layout`, with `RowCode` and `LadderState` for what they answer; and `size_lots`, the
lots of followers' copies, with `SizeCode`.
"""

from importlib.metadata import PackageNotFoundError, version

from copyrisk import layout
from copyrisk._core import (
    ConversionSide,
    LadderState,
    OrderEffect,
    RowCode,
    fold_accounts,
    judge_quotes,
    price_legs,
    value_accounts,
)
from copyrisk.errors import CopyriskError, ShapeError
from copyrisk.flow import select_flow
from copyrisk.risk import fold_all
from copyrisk.sizing import AboveMax, BelowMin, Rounding, SizeCode, SizingMode, size_lots

try:
    __version__ = version("copyrisk")
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = "0+source"

__all__ = [
    "AboveMax",
    "BelowMin",
    "ConversionSide",
    "CopyriskError",
    "LadderState",
    "OrderEffect",
    "Rounding",
    "RowCode",
    "ShapeError",
    "SizeCode",
    "SizingMode",
    "__version__",
    "fold_accounts",
    "fold_all",
    "judge_quotes",
    "layout",
    "price_legs",
    "select_flow",
    "size_lots",
    "value_accounts",
]
