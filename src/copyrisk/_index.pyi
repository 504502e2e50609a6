"""Short texts with stable row numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt

class TextIndex:
    """A text, under the row of what owns it, has a row for as long as it is here.

    Parameters
    ----------
    width : int
        The longest text, 1 to 255 bytes.
    limit : int
        The most texts; further ones are refused.

    Attributes
    ----------
    count : int
        Rows in use.
    high : int
        Rows used so far: every row in use is below.
    """

    width: int
    limit: int
    count: int
    high: int

    def __init__(self, width: int, limit: int = ...) -> None: ...
    def __len__(self) -> int: ...
    def row_of(self, text: bytes, owner: int = 0) -> int:
        """The row of a text, -1 if it is not here."""
    def put(self, text: bytes, owner: int = 0) -> int:
        """The row of a text, a new one if need be; -1 for an empty or too long one, and above the limit."""
    def drop(self, row: int) -> None:
        """Free a row; `KeyError` if it is not in use."""
    def is_used(self, row: int) -> bool:
        """Whether a row is in use."""
    def text(self, row: int) -> bytes:
        """The text of a row; `KeyError` if it is not in use."""
    def rows(self) -> npt.NDArray[np.int32]:
        """(count,) rows in use, ascending."""
    def put_cells(
        self, owners: npt.NDArray[np.int32], cells: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """`put` for many.

        Parameters
        ----------
        owners : (n,) int32
        cells : (n, w) uint8
            A byte for the size, then the text; of a larger size, as much of the text as there is.

        Returns
        -------
        rows : (n,) int32
        is_new : (n,) bool
        """
    def find_cells(self, owners: npt.NDArray[np.int32], cells: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """`row_of` for many; arguments as of `put_cells`."""
    def cells(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """(n, 1 + width) uint8: the texts of rows as `put_cells` takes them."""

def made_of(cells: npt.NDArray[np.uint8], allowed: bytes) -> npt.NDArray[np.bool_]:
    """(n,) bool: cells, as `TextIndex.put_cells` takes them, with a text that fits and of allowed characters only.

    Parameters
    ----------
    cells : (n, w) uint8
    allowed : bytes
        256 of them, not 0 for each character that may occur.
    """

__pyx_capi__: dict[str, Any]
