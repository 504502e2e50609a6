"""The server's protocol straight into arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk._columns import Columns
from copyrisk._index import TextIndex
from copyrisk.layout import Rows

#: What a reply byte says: it has not come; it came; it is an error; it is a status and a number above 0.
NOT_READ: int
READ: int
REFUSED_REPLY: int
READ_COUNT: int
FAULTS: tuple[str, ...]

class Replies:
    """Reads what a server sends, in any pieces, into the arrays that were announced for it.

    Parameters
    ----------
    names : TextIndex
        Where names get their rows.

    Attributes
    ----------
    due : int
        Replies that were announced and have not come.
    fault : int
        Not 0 once the bytes made no sense, or answered something else than was asked; then nothing is taken any more.
    """

    due: int
    fault: int

    def __init__(self, names: TextIndex) -> None: ...
    def expect_rows(self, columns: Columns, out: Rows) -> None:
        """The next `len(out)` replies are of `HMGET` of these columns."""
    def expect_members(self, out: Rows) -> None:
        """The next `len(out)` replies are sets or lists of short texts; `out` is of `layout.MEMBERS`."""
    def expect_statuses(self, out: npt.NDArray[np.uint8]) -> None:
        """The next `len(out)` replies are anything: `READ`, `READ_COUNT`, or `REFUSED_REPLY` for an error."""
    def expect_page(self) -> None:
        """The next reply is of `SCAN`."""
    def room(self) -> memoryview:
        """Where the next bytes may be put; the call invalidates the view of the last one."""
    def fed(self, n: int) -> None:
        """Take `n` bytes that were put there.

        Raises
        ------
        ValueError
            A fault (one of `FAULTS`): the connection must be dropped.
        """
    def take_error(self) -> bytes:
        """The first error since the last call, one other than WRONGTYPE before it, cut to 200 bytes; empty for none."""
    def take_members(self) -> npt.NDArray[np.uint8]:
        """(m, 65) uint8: a byte for the size (255: longer than 64) and the text of each member since the last call."""
    def take_page(self) -> tuple[bytes, list[bytes]]:
        """Cursor and keys of the page."""
    def take_messages(self) -> list[tuple[bytes, bytes]]:
        """Channel and payload of the messages that were pushed since the last call."""
    def take_changed(
        self,
        accounts: TextIndex,
        config: tuple[bytes, bytes],
        index: tuple[bytes, bytes],
        holding: tuple[bytes, bytes],
    ) -> tuple[
        npt.NDArray[np.int32],
        npt.NDArray[np.int32],
        npt.NDArray[np.int32],
        npt.NDArray[np.uint8],
        list[bytes],
    ]:
        """Sort the keys that were pushed as changed since the last call.

        Parameters
        ----------
        accounts : TextIndex
            `T:U` of the accounts.
        config, index, holding : tuple of 2 bytes
            The three kinds of an account's keys: what stands before and after `T:U`; an order's goes on with its id.

        Returns
        -------
        config_rows, index_rows : (n,) int32
            Account rows.
        holding_rows : (n,) int32
            Account rows, and with them
        ids : (n, 65) uint8
            the orders' ids as cells.
        others : list of bytes
            Keys of other shapes, or of accounts that are not in the index.
        """
    def take_flags(self) -> tuple[bool, bool]:
        """Whether the server told that everything changed, and whether more was pushed than is kept."""

__pyx_capi__: dict[str, Any]
