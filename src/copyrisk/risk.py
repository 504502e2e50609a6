"""Valuation of the book: one call that turns quotes into every account's figures, and the words for what is unknown."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

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
from copyrisk.book import Book
from copyrisk.errors import ShapeError, is_known, reason_name
from copyrisk.layout import Rows
from copyrisk.terms import CalcStatus, RateSide

_CONVERSION_SIDE = {
    RateSide.ASK: ConversionSide.CONVERT_ASK,
    RateSide.SIDE: ConversionSide.CONVERT_WORSE,
    RateSide.MID: ConversionSide.CONVERT_MID,
}
_REASONS_LIMIT = 8
_FIRST_ACCOUNT_CODE = RowCode.ACCOUNT_MISSING


class Valuer:
    """Values a whole book; keeps the buffers between ticks.

    Attributes
    ----------
    figures : (a,) Figures
        One row per account row, of the last `value`.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._side = _CONVERSION_SIDE[book.rules.rate_side]
        self._leg_rates: Rows = np.zeros(0, layout.LEG_RATE)
        self.figures: Rows = np.zeros(0, layout.FIGURES)

    def value(self, now_ms: int, market_is_open: npt.NDArray[np.uint8]) -> Rows:
        """Value every account of the book from its quotes as they are now; returns `figures`."""
        book = self._book
        book.fold()
        if len(self._leg_rates) != 2 * len(book.instruments):
            self._leg_rates = np.zeros(2 * len(book.instruments), layout.LEG_RATE)
        if len(self.figures) != len(book.accounts):
            self.figures = np.zeros(len(book.accounts), layout.FIGURES)
        judge_quotes(book.quotes, now_ms, market_is_open)
        price_legs(book.instruments, book.quotes, self._side, self._leg_rates)
        value_accounts(book.accounts, book.legs, self._leg_rates, book.instruments, self.figures)
        return self.figures


def calc_status(figure: Any) -> CalcStatus:
    """`calc_status` of a row of figures: `error` is the account's own row, `degraded` something it holds."""
    code = int(figure["code"])
    if is_known(code):
        return CalcStatus.DEGRADED if math.isnan(figure["used_margin_all"]) else CalcStatus.OK
    if code == RowCode.UNKNOWN or code >= _FIRST_ACCOUNT_CODE:
        return CalcStatus.ERROR
    return CalcStatus.DEGRADED


def fully_known(figures: Rows) -> npt.NDArray[np.bool_]:
    """(a,) bool: rows with all their figures, those whose `calc_status` is `ok`."""
    known: npt.NDArray[np.bool_] = np.isin(figures["code"], (RowCode.OK, RowCode.MARKET_CLOSED))
    known &= ~np.isnan(figures["used_margin_all"])
    return known


def reasons(book: Book, figures: Rows, row: int) -> list[str]:
    """Why an account is not fully known: `reason` or `reason:what`, each once, at most eight, in a stable order."""
    status = calc_status(figures[row])
    if status is CalcStatus.OK:
        return []
    if status is CalcStatus.ERROR:
        return [reason_name(int(figures[row]["code"]))]
    found: set[str] = set()
    for order_id, order_row in book.orders_of[row].items():
        order = book.orders[order_row]
        if order["code"] != RowCode.OK:
            found.add(f"{reason_name(order['code'])}:{order_id}")
        elif order["effect"] != OrderEffect.IDLE:
            instrument = int(order["instrument"])
            verdict = int(book.instruments[instrument]["code"])
            if not is_known(verdict):
                found.add(f"{reason_name(verdict)}:{book.instrument_keys[instrument].symbol}")
    # Nothing it holds is unknown: then what all of it adds up to is out of range.
    return sorted(found)[:_REASONS_LIMIT] or [reason_name(RowCode.FIGURES_OUT_OF_RANGE)]


def count_states(book: Book, figures: Rows) -> dict[LadderState, int]:
    """How many accounts stand on each rung."""
    in_use = np.fromiter(book.account_of, np.int64, len(book.account_of))
    counts = np.bincount(figures["state"][in_use], minlength=len(LadderState))
    return {state: int(counts[state]) for state in LadderState}


def fold_all(accounts: Rows, orders: Rows, instruments: Rows, *, net_orders: bool = True) -> Rows:
    """Fold flat arrays of orders into legs, for callers who keep no `Book`.

    Parameters
    ----------
    accounts : (a,) Account
        `first`, `capacity`, `n_executed`, `n_legs`, `fees_usd`, `fold_code` and `culprit` are written.
    orders : (o,) Order
        In any order; `account` says whose. `next` is written.
    instruments : (i,) Instrument

    Returns
    -------
    (l,) Leg
        Legs of consecutive accounts, one after the other.

    Raises
    ------
    ShapeError
        An order of an account that is not there; nothing is written.
    """
    outside = (orders["account"] < 0) | (orders["account"] >= len(accounts))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ShapeError(f"orders: expected account rows below {len(accounts)}, found row {row} that points outside")
    count = np.bincount(orders["account"], minlength=len(accounts))
    by_account = np.argsort(orders["account"], kind="stable").astype(np.int32)
    end = np.cumsum(count)
    orders["next"][by_account[:-1]] = by_account[1:]
    orders["next"][by_account[end[count > 0] - 1]] = -1
    head = np.full(len(accounts), -1, np.int32)
    head[count > 0] = by_account[(end - count)[count > 0]]
    accounts["first"], accounts["capacity"] = end - count, count
    loose: Rows = np.zeros(len(orders), layout.LEG)
    scratch = np.empty(max(int(count.max(initial=0)), 1), layout.EXPOSURE)
    rows = np.arange(len(accounts), dtype=np.int32)
    fold_accounts(rows, accounts, head, orders, instruments, loose, scratch, net_orders)
    kept = accounts["n_legs"].astype(np.int64)
    first = np.cumsum(kept) - kept
    packed = loose[np.repeat(accounts["first"] - first, kept) + np.arange(int(kept.sum()))]
    accounts["first"], accounts["capacity"] = first, kept
    return packed
