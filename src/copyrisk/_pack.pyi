"""Arrays straight into requests of the server's protocol."""

from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk._index import TextIndex
from copyrisk.layout import Rows

def fixed_text(value: float) -> str | None:
    """A number with two decimals, correctly rounded, without a needless second zero.

    Rounded to even at an exact half; `None` for NaN and from 4e13 on.
    """

def exact_text(value: float) -> str | None:
    """A number with fifteen significant digits, without needless zeros.

    `None` for NaN, below 0.0001 (but for 0) and from 1e13 on.
    """

class PortfolioPacker:
    """Packs portfolios that say something new.

    Parameters
    ----------
    names : tuple of 13 str
        Fields in the order equity, free margin, level, open profit, total profit, used margin, used margin executed,
        used margin all, time, time of valuation, balance, status, reasons.
    ok : str
        The status that is written.
    key : tuple of 2 str
        A portfolio's key before and after `T:U`.
    channel : str
        Where each write is announced.
    """

    def __init__(self, names: tuple[str, ...], ok: str, key: tuple[str, str], channel: str) -> None: ...
    def pack(
        self,
        rows: npt.NDArray[np.int32],
        index: TextIndex,
        accounts: Rows,
        figures: Rows,
        written: Rows,
        now_ms: int,
    ) -> tuple[bytes, npt.NDArray[np.uint8]]:
        """Pack an HSET and a notice for each of these rows whose portfolio would say something else.

        Parameters
        ----------
        rows : (k,) int32
            Known accounts.
        index : TextIndex
            `T:U` of the accounts.
        accounts : (a,) Account
        figures : (a,) Figures
        written : (a,) Written
            What the server's portfolios say; updated for the rows that are packed.
        now_ms : int

        Returns
        -------
        request : bytes
            Two commands for each packed row.
        outcome : (k,) uint8
            0: says the same; 1: packed whole; 3: packed, but for the fields that say the same; 2: has a number that
            cannot be written here, nothing was packed or remembered.

        Raises
        ------
        ValueError
            Arrays that do not fit, or a row that is not in use.
        """

class Requests:
    """Lays commands out, a key of each made from a text of an index."""

    def by_row(
        self, head: bytes, before: bytes, after: bytes, tail: bytes, index: TextIndex, rows: npt.NDArray[np.int32]
    ) -> bytes:
        """A command for each row: `head`, the key `before` + text + `after` as a bulk string, `tail`.

        `KeyError` for a row that is not in use.
        """
    def by_cell(
        self,
        head: bytes,
        before: bytes,
        between: bytes,
        tail: bytes,
        index: TextIndex,
        rows: npt.NDArray[np.int32],
        cells: npt.NDArray[np.uint8],
    ) -> bytes:
        """The same with the key `before` + text + `between` + the cell's text."""

__pyx_capi__: dict[str, Any]
