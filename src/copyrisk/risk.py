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
    moved_marks,
    price_legs,
    value_accounts,
    value_rows,
)
from copyrisk.book import Book
from copyrisk.errors import ShapeError, is_known, reason_name
from copyrisk.layout import Rows
from copyrisk.terms import CalcStatus, RateSide

CONVERSION_SIDES = {
    RateSide.ASK: ConversionSide.CONVERT_ASK,
    RateSide.SIDE: ConversionSide.CONVERT_WORSE,
    RateSide.MID: ConversionSide.CONVERT_MID,
}
_REASONS_LIMIT = 8
_FIRST_ACCOUNT_CODE = RowCode.ACCOUNT_MISSING


class Valuer:
    """Values a whole book, and again only what moved; keeps the buffers between ticks.

    An account's figures follow from its own row, its legs, and what the quotes make of the instruments it holds. So
    after a tick in which nothing else changed they are what they were, to the bit.

    Attributes
    ----------
    figures : (a,) Figures
        One row per account row, as of the last `value`.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._side = CONVERSION_SIDES[book.rules.rate_side]
        self._rates: Rows = np.zeros(0, layout.LEG_RATE)
        self._codes: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._suspects: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self.figures: Rows = np.zeros(0, layout.FIGURES)

    @property
    def rates(self) -> Rows:
        """(2i,) LegRate: what the quotes made of every instrument and side at the last `value`."""
        return self._rates

    def value(self, now_ms: int, market_is_open: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """Bring `figures` up to the book and its quotes as they are now.

        Returns
        -------
        (k,) int32
            Account rows that were valued; all others stand as they were.
        """
        book = self._book
        book.stale[self._suspects] = 1
        folded = book.fold()
        accounts, market = book.accounts, book.market
        if len(self.figures) != len(accounts):
            grown: Rows = np.zeros(len(accounts), layout.FIGURES)
            grown[: len(self.figures)] = self.figures
            self.figures = grown
        judge_quotes(market.quotes, now_ms, market_is_open)
        touched = (book.marks & np.uint64(self._price())) != 0
        touched[folded] = True
        rows = np.flatnonzero(touched).astype(np.int32)
        value_rows(rows, accounts, book.legs, self._rates, market.instruments, self.figures)
        if len(self._suspects):
            self.verify(self._suspects)
        return rows

    def _price(self) -> int:
        """Work the rates out anew; returns the bits of the symbols for which something moved."""
        instruments = self._book.market.instruments
        rates: Rows = np.zeros(2 * len(instruments), layout.LEG_RATE)
        price_legs(instruments, self._book.market.quotes, self._side, rates)
        moved = moved_marks(instruments, rates, self._rates, self._codes)
        self._rates, self._codes = rates, instruments["code"].copy()
        return moved

    def verify(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Value accounts from their orders, from scratch, and hold the result against `figures`.

        An account that differs, by a bit, becomes unknown; each `value` folds, values and verifies it again until it
        agrees.

        Returns
        -------
        (k,) int32
            Rows that differ.
        """
        book, count = self._book, len(rows)
        room = book.order_counts(rows)
        accounts, figures = book.accounts[rows], np.zeros(count, layout.FIGURES)
        accounts["first"], accounts["capacity"] = np.cumsum(room) - room, room
        legs: Rows = np.zeros(max(int(room.sum()), 1), layout.LEG)
        fold_accounts(
            np.arange(count, dtype=np.int32),
            accounts,
            book.order_heads[rows],
            book.orders,
            book.market.instruments,
            legs,
            np.zeros(count, np.uint64),
            np.empty(max(int(room.max(initial=0)), 1), layout.EXPOSURE),
            book.rules.nets_orders,
        )
        value_accounts(accounts, legs, self._rates, book.market.instruments, figures)
        wrong: npt.NDArray[np.int32] = rows[_bits(figures) != _bits(self.figures[rows])]
        self.withhold(wrong, RowCode.FIGURES_INCONSISTENT)
        self._suspects = np.union1d(np.setdiff1d(self._suspects, rows), wrong).astype(np.int32)
        return wrong

    def withhold(self, rows: npt.NDArray[np.int32], code: RowCode) -> None:
        """Make accounts unknown until the next `value`."""
        self.figures["state"][rows], self.figures["code"][rows] = LadderState.STATE_UNKNOWN, code
        self._book.stale[rows] = True


def _bits(rows: Rows) -> npt.NDArray[np.void]:
    """Rows as plain bytes: equal where every bit is."""
    return np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize)))


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
    known: npt.NDArray[np.bool_] = are_known(figures["code"]) & ~np.isnan(figures["used_margin_all"])
    return known


def are_known(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """`is_known` of many."""
    known: npt.NDArray[np.bool_] = (codes == RowCode.OK) | (codes == RowCode.MARKET_CLOSED)
    return known


def rounded(amount: float) -> float | None:
    """A figure as it is shown: two decimals; `None` for what is not finite."""
    return round(float(amount), 2) + 0.0 if math.isfinite(amount) else None


def reasons(book: Book, figures: Rows, row: int) -> list[str]:
    """Why an account is not fully known: `reason` or `reason:what`, each once, at most eight, in a stable order."""
    status = calc_status(figures[row])
    if status is CalcStatus.OK:
        return []
    if status is CalcStatus.ERROR:
        return [reason_name(int(figures[row]["code"]))]
    found: set[str] = set()
    for order_id, order_row in book.orders_of(row).items():
        order = book.orders[order_row]
        if order["code"] != RowCode.OK:
            found.add(f"{reason_name(order['code'])}:{order_id}")
        elif order["effect"] != OrderEffect.IDLE:
            instrument = int(order["instrument"])
            verdict = int(book.market.instruments[instrument]["code"])
            if not is_known(verdict):
                found.add(f"{reason_name(verdict)}:{book.market.instrument_keys[instrument].symbol}")
    # Nothing it holds is unknown: then what all of it adds up to is out of range.
    return sorted(found)[:_REASONS_LIMIT] or [reason_name(RowCode.FIGURES_OUT_OF_RANGE)]


def count_states(book: Book, figures: Rows) -> dict[LadderState, int]:
    """How many accounts stand on each rung."""
    counts = np.bincount(figures["state"][book.account_rows()], minlength=len(LadderState))
    return {state: int(counts[state]) for state in LadderState}


def count_unknown(book: Book, figures: Rows) -> dict[str, int]:
    """How many accounts are unknown for which reason."""
    codes = np.bincount(figures["code"][book.account_rows()], minlength=256)
    return {reason_name(code): int(codes[code]) for code in np.flatnonzero(codes).tolist() if not is_known(code)}


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
    marks = np.zeros(len(accounts), np.uint64)
    fold_accounts(rows, accounts, head, orders, instruments, loose, marks, scratch, net_orders)
    kept = accounts["n_legs"].astype(np.int64)
    first = np.cumsum(kept) - kept
    packed = loose[np.repeat(accounts["first"] - first, kept) + np.arange(int(kept.sum()))]
    accounts["first"], accounts["capacity"] = first, kept
    return packed
