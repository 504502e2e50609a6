"""Hashes that came as objects, as columns: held against the same grammar as those that go there straight."""

from collections.abc import Sequence

import numpy as np

from copyrisk._columns import Columns
from copyrisk._index import TextIndex
from copyrisk._wire import Replies
from copyrisk.layout import Rows

_NIL = b"$-1\r\n"


class TextColumns:
    """Turns rows of texts into columns."""

    def __init__(self, names: TextIndex) -> None:
        self._replies = Replies(names)

    def rows(self, columns: Columns, hashes: Sequence[Sequence[bytes | None]]) -> Rows:
        """(n,) rows of these columns; each hash has a text, or `None`, for each field in order."""
        out: Rows = np.zeros(len(hashes), columns.dtype)
        self._replies.expect_rows(columns, out)
        head = b"*%d\r\n" % len(columns.fields)
        data = b"".join(head + b"".join(map(_bulk, row)) for row in hashes)
        done = 0
        while done < len(data):
            room = self._replies.room()
            piece = data[done : done + len(room)]
            room[: len(piece)] = piece
            self._replies.fed(len(piece))
            done += len(piece)
        return out


def _bulk(value: bytes | None) -> bytes:
    return _NIL if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
