"""Packed commands with blanks: what is the same for thousands of accounts is packed once."""

import re
from collections.abc import Mapping, Sequence
from operator import itemgetter

_WORD = re.compile(rb"\$(\d+)\r\n")
_COMMAND = re.compile(rb"\*(\d+)\r\n")


class Template:
    """Commands in which some texts, the blanks, are to be filled in.

    Parameters
    ----------
    packed : bytes
        Whole commands, with a placeholder wherever a blank is.
    placeholders : mapping of str to int
        What stands in the commands for a blank, and the place of its text among the `values` of `fill`. No placeholder
        may be part of another or occur in what is no blank: who makes them up sees to it.
    """

    def __init__(self, packed: bytes, placeholders: Mapping[str, int]) -> None:
        self._places = {name.encode(): place for name, place in placeholders.items()}
        self._count = len(placeholders)
        self._any = re.compile(b"|".join(map(re.escape, self._places)))
        self._sizes: dict[tuple[int, tuple[int, ...]], int] = {}
        self.commands = 0
        fixed: list[bytes] = []
        blanks: list[int] = []
        at = 0
        while at < len(packed):
            head = _COMMAND.match(packed, at)
            assert head is not None, "whole commands only"
            fixed.append(head[0])
            at = head.end()
            for _ in range(int(head[1])):
                at = self._add_word(packed, at, fixed, blanks)
            self.commands += 1
        self._format = b"".join(fixed)
        self._pick = itemgetter(*blanks) if len(blanks) > 1 else None

    def _add_word(self, packed: bytes, at: int, fixed: list[bytes], blanks: list[int]) -> int:
        size = _WORD.match(packed, at)
        assert size is not None, "whole commands only"
        end = size.end() + int(size[1])
        word = packed[size.end() : end]
        used = tuple(sorted(self._places[name] for name in self._any.findall(word)))
        if not used:
            fixed.append(packed[at : end + 2].replace(b"%", b"%%"))
            return end + 2
        plain = self._any.sub(b"", word)
        key = len(plain), used
        blanks.append(self._count + self._sizes.setdefault(key, len(self._sizes)))
        fixed.append(b"$%b\r\n")
        done = 0
        for found in self._any.finditer(word):
            fixed += [word[done : found.start()].replace(b"%", b"%%"), b"%b"]
            blanks.append(self._places[found[0]])
            done = found.end()
        fixed += [word[done:].replace(b"%", b"%%"), b"\r\n"]
        return end + 2

    def fill(self, values: Sequence[bytes]) -> bytes:
        """The commands with these texts in their blanks."""
        sizes = list(map(len, values))
        texts = [*values, *[b"%d" % (fixed + sum([sizes[i] for i in used])) for fixed, used in self._sizes]]
        return self._format % (self._pick(texts) if self._pick else ())
