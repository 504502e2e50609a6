"""Commands with blanks: what is the same for thousands of accounts is packed once, the rest is filled in."""

from collections.abc import Mapping, Sequence
from typing import Any

class Template:
    """Commands in which some texts, the blanks, are to be filled in.

    Parameters
    ----------
    packed : bytes
        Whole commands of the server's protocol, with a placeholder wherever a blank is.
    places : mapping of str to int
        Placeholders, `@name@` each, and which column of `fill` each is filled from: 0 to at most 31, each once. What is
        no blank must not look like one.

    Attributes
    ----------
    commands : int
        How many there are.

    Raises
    ------
    ValueError
        No whole commands, or other places.
    """

    commands: int

    def __init__(self, packed: bytes, places: Mapping[str, int]) -> None: ...
    def fill(self, columns: Sequence[list[bytes] | bytes], start: int, stop: int) -> bytes:
        """The commands, once for each row from `start` to `stop`.

        Parameters
        ----------
        columns : sequence
            A text for each row, or one for all of them.

        Raises
        ------
        ValueError, TypeError
            Columns that are too few or too short, or hold something else than bytes.
        """

__pyx_capi__: dict[str, Any]
