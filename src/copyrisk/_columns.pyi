"""How the fields of a hash become columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

class Columns:
    """How the fields of a hash become columns.

    Parameters
    ----------
    dtype : dtype
        One column a field, of its name: `f8` a plain decimal (else NaN), `i8` epoch milliseconds (else -1), `i4` the
        row of a name (else -1), `u1` the number of a word from 1 on (else 0), `S` a short text (else empty). Besides
        them `absent` and `invalid` (u4, a bit for each column in order) and `reply` (u1, `READ` or `REFUSED_REPLY`).
    words : dict
        The words of each `u1` column.

    Attributes
    ----------
    fields : tuple of str
        In the order in which they must be asked for.
    """

    dtype: np.dtype[np.void]
    fields: tuple[str, ...]

    def __init__(self, dtype: np.dtype[np.void], words: Mapping[str, Sequence[str]]) -> None: ...

__pyx_capi__: dict[str, Any]
