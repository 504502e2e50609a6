"""The triggers of all orders, and which of them a quote has reached."""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

class TriggerKind(IntEnum):
    NO_TRIGGER = 0
    BUY_STOP = 1
    SELL_STOP = 2
    BUY_LIMIT = 3
    SELL_LIMIT = 4
    STOP_LOSS_OF_BUY = 5
    TAKE_PROFIT_OF_BUY = 6
    STOP_LOSS_OF_SELL = 7
    TAKE_PROFIT_OF_SELL = 8

class Ladders:
    """All triggers, ordered by price. An order has at most a pending price, a stop loss and a take profit.

    Orders and symbols are rows of the caller (of a `TextIndex`, say); a row that passes to another order must be
    cleared before. Memory follows the greatest order row and the triggers that are set. Not to be used from another
    thread while a call runs: `set_many` and `fire` release the GIL.

    Parameters
    ----------
    order_limit, symbol_limit : int
        Rows must be below.

    Attributes
    ----------
    count : int
        Triggers that are set, those that wait included.

    Notes
    -----
    Each kind fires on

    ============================== ===================
    `BUY_STOP`                     ``ask >= price``
    `SELL_STOP`                    ``bid <= price``
    `BUY_LIMIT`                    ``ask <= price``
    `SELL_LIMIT`                   ``bid >= price``
    `STOP_LOSS_OF_BUY`             ``bid <= price``
    `TAKE_PROFIT_OF_BUY`           ``bid >= price``
    `STOP_LOSS_OF_SELL`            ``ask >= price``
    `TAKE_PROFIT_OF_SELL`          ``ask <= price``
    ============================== ===================

    in doubles, without tolerance. While an order has a pending price, its stop loss and take profit wait. An order
    fires once: then all its triggers are gone, until they are set again.
    """

    count: int
    order_limit: int
    symbol_limit: int

    def __init__(self, order_limit: int = ..., symbol_limit: int = ...) -> None: ...
    def __len__(self) -> int: ...
    def set(self, order: int, symbol: int, kind: int, price: float) -> None:
        """Set an order's trigger, in place of the one of the same role if it has one. O(log n).

        Raises
        ------
        ValueError
            A price that is not positive and finite, no such kind, or an order whose other triggers are of another
            symbol or side. Nothing is changed.
        ShapeError
            A row outside the limits. Nothing is changed.
        """
    def set_many(
        self,
        orders: npt.NDArray[np.int32],
        symbols: npt.NDArray[np.int32],
        kinds: npt.NDArray[np.uint8],
        prices: npt.NDArray[np.float64],
    ) -> None:
        """`set` one after the other, or, if one is refused, none.

        Parameters
        ----------
        orders, symbols : (n,) int32
        kinds : (n,) uint8
            `TriggerKind`.
        prices : (n,) float64

        Raises
        ------
        ValueError, ShapeError
            As `set`, naming the first that is refused, or arrays of different lengths.
        """
    def clear(self, order: int, kind: int = ...) -> None:
        """Take away all triggers of an order, or with `kind` the one of the same role; if there is none, nothing.

        Exits that waited for a pending price which is taken away wait no longer: without them, clear all.
        `ValueError` if `order` is negative or there is no such kind.
        """
    def fire(
        self, symbols: npt.NDArray[np.int32], bids: npt.NDArray[np.float64], asks: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
        """What fires at these quotes, held against the triggers one after the other.

        O(1) for each quote that fires nothing, O(log n) for each trigger that fires.

        Parameters
        ----------
        symbols : (q,) int32
        bids, asks : (q,) float64
            A quote fires nothing unless ``0 < bid <= ask`` and both are finite.

        Returns
        -------
        orders : (k,) int32
            Each once. All triggers of these orders are gone now: where one quote reaches both stop loss and take
            profit, only the stop loss is here.
        kinds : (k,) uint8
            `TriggerKind`.
        prices : (k,) float64
            As they were set; what an order fills at is the market.

        Notes
        -----
        Stop losses come first, then take profits, then pending orders. Among each: in the order of `symbols`; of one
        quote those on a falling bid before those on a rising ask (of take profits and limits: on a rising bid before
        those on a falling ask), each in the order in which the market, moving there, would have met their prices; at
        the same price by row.

        Raises
        ------
        ShapeError
            Arrays of different lengths, or a negative row. Nothing has fired.
        """
    def armed(self, symbol: int) -> int:
        """How many triggers watch a symbol; those that wait do not."""
    def nearest(self, symbol: int) -> tuple[float, float, float, float]:
        """The prices that fire next as bid falls, ask rises, bid rises, ask falls; NaN where there is none."""
    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
