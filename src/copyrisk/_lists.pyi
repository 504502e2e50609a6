"""The orders of each account, linked in lists through the order rows."""

from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk.layout import Rows

def relink_orders(
    account_rows: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int32],
    listed: npt.NDArray[np.int32],
    orders: Rows,
    order_head: npt.NDArray[np.int32],
    is_listed: npt.NDArray[np.uint8],
) -> list[int]:
    """Make the lists of some accounts hold just these orders.

    Parameters
    ----------
    account_rows : (k,) int32
        Each once.
    counts : (k,) int32
        How many of `listed` are each account's, one account after the other.
    listed : (m,) int32
        Order rows: of the account's list, or of none yet.
    orders : (o,) Order
        `account`, `next` and `prev` are written.
    order_head : (a,) int32
    is_listed : (o,) uint8
        Scratch, all 0 before and after.

    Returns
    -------
    list of int
        Order rows that are in no list any more.

    Raises
    ------
    ShapeError
        Arrays that do not fit.
    """

def listed_orders(
    account_rows: npt.NDArray[np.int32], orders: Rows, order_head: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """(n,) int32: rows of all orders in the lists of some accounts, each account once.

    `ShapeError` if a list leaves `orders`.
    """

__pyx_capi__: dict[str, Any]
