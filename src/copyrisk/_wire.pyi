"""Figures straight into requests of the server's protocol."""

import numpy as np
import numpy.typing as npt

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
        Fields in the order status, reasons, equity, balance, free margin, used margin, level, open profit, total
        profit, used margin executed, used margin all, time, time of valuation.
    ok : str
        The status that is written.
    """

    def __init__(self, names: tuple[str, ...], ok: str) -> None: ...
    def pack(
        self,
        rows: npt.NDArray[np.int32],
        keys: list[bytes],
        notices: list[bytes],
        accounts: Rows,
        figures: Rows,
        written: Rows,
        now_ms: int,
    ) -> tuple[bytes, list[int], list[int]]:
        """Pack an HSET and a notice for each of these rows whose portfolio would say something else.

        Parameters
        ----------
        rows : (k,) int32
            Known accounts.
        keys, notices : list of bytes
            By row: the portfolio's key as a protocol string, and the whole command that announces it.
        accounts : (a,) Account
        figures : (a,) Figures
        written : (a,) Written
            What the server's portfolios say; updated for the rows that are packed.
        now_ms : int

        Returns
        -------
        request : bytes
            Two commands for each packed row.
        packed : list of int
        left : list of int
            Rows with a number that cannot be written here; nothing was packed or remembered for them.

        Raises
        ------
        ValueError
            Arrays that do not fit.
        """
