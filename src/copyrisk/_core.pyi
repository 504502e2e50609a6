"""Kernels over packed arrays: quotes to rates, orders to legs, legs to figures.

All arrays are one-dimensional, C-contiguous NumPy arrays of the dtypes in `copyrisk.layout` (`Quote` is
`layout.QUOTE`, and so on); a wrong dtype raises `ValueError`, a wrong length `ShapeError`. The GIL is released
while a kernel runs, so arrays it writes must not be shared with another thread meanwhile. Codes are `RowCode`.
"""

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk.layout import Rows

class RowCode(IntEnum):
    UNKNOWN = 0
    OK = 1
    MARKET_CLOSED = 2
    QUOTE_MISSING = 10
    QUOTE_UNREADABLE = 11
    QUOTE_ONE_SIDED = 12
    QUOTE_NOT_POSITIVE = 13
    QUOTE_NOT_FINITE = 14
    QUOTE_CROSSED = 15
    QUOTE_WITHOUT_TIME = 16
    QUOTE_STALE = 17
    QUOTE_FROM_FUTURE = 18
    INSTRUMENT_MISSING = 30
    INSTRUMENT_UNREADABLE = 31
    CONTRACT_SIZE_INVALID = 32
    PROFIT_CURRENCY_INVALID = 33
    INSTRUMENT_TYPE_INVALID = 34
    CRYPTO_MARGIN_FACTOR_INVALID = 35
    CONVERSION_RATE_MISSING = 36
    ORDER_MISSING = 50
    ORDER_UNREADABLE = 51
    ORDER_ID_INVALID = 52
    ORDER_SYMBOL_INVALID = 53
    ORDER_TYPE_INVALID = 54
    ORDER_STATUS_INVALID = 55
    ORDER_PRICE_INVALID = 56
    ORDER_QUANTITY_INVALID = 57
    ORDER_SWAP_INVALID = 58
    ORDER_COMMISSION_INVALID = 59
    ACCOUNT_MISSING = 70
    ACCOUNT_UNREADABLE = 71
    WALLET_BALANCE_INVALID = 72
    LEVERAGE_INVALID = 73
    GROUP_INVALID = 74
    ORDERS_INDEX_UNREADABLE = 75
    FIGURES_OUT_OF_RANGE = 76
    FIGURES_INCONSISTENT = 77
    ACCOUNT_CHANGING = 78

class LadderState(IntEnum):
    STATE_UNKNOWN = 0
    NO_MARGIN = 1
    HEALTHY = 2
    WARNING = 3
    CRITICAL = 4

class OrderEffect(IntEnum):
    EFFECT_UNKNOWN = 0
    IDLE = 1
    EXECUTED = 2
    RESERVED = 3

class ConversionSide(IntEnum):
    CONVERT_ASK = 0
    CONVERT_WORSE = 1
    CONVERT_MID = 2

def judge_quotes(quotes: Rows, now_ms: int, market_is_open: npt.NDArray[np.uint8]) -> None:
    """Give every quote its code.

    Parameters
    ----------
    quotes : (q,) Quote
        `bid`, `ask` (NaN when absent), `ts_ms`, `max_age_ms`, `market`, `read_code` are read; `code` is written.
    now_ms : int
        Epoch ms that the age is counted to.
    market_is_open : (5,) uint8
        By instrument type 1 to 4; [0] serves quotes whose type is not known.

    Notes
    -----
    A quote is `OK`, `MARKET_CLOSED` (its last value still serves), or one of `QUOTE_*`: missing, one-sided, zero,
    negative, not finite, crossed, without a time, older than `max_age_ms`, or that much ahead of the clock.
    """

def price_legs(instruments: Rows, quotes: Rows, conversion_side: int, leg_rates: Rows) -> None:
    """Work out what the quotes make of each instrument: price, conversion to USD, margin per unit.

    Parameters
    ----------
    instruments : (i,) Instrument
        `code` is written: `OK`, `MARKET_CLOSED`, its own `read_code`, its quote's code, or
        `CONVERSION_RATE_MISSING` when neither conversion pair has a quote that is known.
    quotes : (q,) Quote
        As judged by `judge_quotes`.
    conversion_side : ConversionSide
    leg_rates : (2 i,) LegRate
        Written: row 2k for bought, 2k + 1 for sold legs of instrument k; NaN where it is not known.

    Raises
    ------
    ShapeError
        `leg_rates` of another length, an instrument that points outside `quotes`, or no such `conversion_side`.
    """

def fold_accounts(
    rows: npt.NDArray[np.int32],
    accounts: Rows,
    order_head: npt.NDArray[np.int32],
    orders: Rows,
    instruments: Rows,
    legs: Rows,
    marks: npt.NDArray[np.uint64],
    scratch: Rows,
    net_orders: bool = True,
) -> None:
    """Fold the orders of some accounts into legs.

    Parameters
    ----------
    rows : (k,) int32
        Accounts to fold.
    accounts : (a,) Account
        `first` and `capacity` say where the legs may go; `n_executed`, `n_legs`, `fees_usd`, `fold_code` and
        `culprit` are written.
    order_head : (a,) int32
        First order of each account's list, -1 for none.
    orders : (o,) Order
        Linked by `next`.
    instruments : (i,) Instrument
    legs : (l,) Leg
        Written inside the segments of `rows` only.
    marks : (a,) uint64
        Written for `rows`: one bit of 64 for each symbol the account holds (`moved_marks` has the same for symbols).
    scratch : (s,) Exposure
        At least as long as the longest list.
    net_orders : bool
        False keeps one leg per executed order, which `CONVERT_WORSE` needs.

    Raises
    ------
    ShapeError
        A list that leaves its array, or a segment or scratch that is too short; nothing is written.
    """

def value_accounts(accounts: Rows, legs: Rows, leg_rates: Rows, instruments: Rows, figures: Rows) -> None:
    """Value every account: profit, equity, margins, level, ladder state, code.

    Parameters
    ----------
    accounts : (a,) Account
    legs : (l,) Leg
        As folded by `fold_accounts` (each `rate` must lie inside `leg_rates`).
    leg_rates : (2 i,) LegRate
    instruments : (i,) Instrument
        As priced by `price_legs`; their codes explain the accounts that are unknown.
    figures : (a,) Figures
        Written, all USD: ``equity = balance + open_pnl``, ``margin_level_pct = 100 equity / used_margin_executed``
        (0.0 without margin). `state` is 0 and `code` the reason where they are unknown; the numbers of
        such a row mean nothing. Of a known row `used_margin_all` is NaN when a queued order cannot be priced.

    Raises
    ------
    ShapeError
        Arrays that do not fit, or a segment outside `legs`; rows after it are not written.
    """

def value_rows(
    rows: npt.NDArray[np.int32],
    accounts: Rows,
    legs: Rows,
    leg_rates: Rows,
    instruments: Rows,
    figures: Rows,
) -> None:
    """Value some accounts, to the same bits as `value_accounts` does.

    Parameters
    ----------
    rows : (k,) int32
        Accounts to value; the figures of others are not touched.

    Raises
    ------
    ShapeError
        As `value_accounts`, or a row that is not there.
    """

def moved_marks(instruments: Rows, leg_rates: Rows, rates_before: Rows, codes_before: npt.NDArray[np.uint8]) -> int:
    """The bits of the symbols whose rates or codes are not what they were: an account without them stands as it was.

    Parameters
    ----------
    instruments : (i,) Instrument
    leg_rates : (2 i,) LegRate
    rates_before : (2 b,) LegRate
    codes_before : (b,) uint8
        As they were; instruments beyond them are new.

    Raises
    ------
    ShapeError
        Arrays that do not fit.
    """

__pyx_capi__: dict[str, Any]
