"""What rounding took from followers: of each copy, and of each order that was too small to be copied.

A hash of each follower, by copy: master, symbol and lots (bought ones above 0), as long as the master's order lives.
Their sum is how far the follower's position is from the exact ratio.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from copyrisk import keys
from copyrisk.decimals import parse_decimal
from copyrisk.derived import copy_id
from copyrisk.identifiers import Account
from copyrisk.store.connection import OF_ONE_KEY, store_error
from copyrisk.store.decisions import Decision
from copyrisk.store.followers import follower_of
from copyrisk.store.functions import text, texts
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import OrderType

_AT_ONCE = 1_000


def remainder_text(master_id: str, symbol: str, lots: float) -> str:
    """What is kept of one copy."""
    return f"{master_id}:{symbol}:{lots:.12f}"


def remainder_texts(decision: Decision, places: Sequence[int]) -> list[str]:
    """What rounding takes from these followers of a decision."""
    header, rows = decision.header, decision.rows[list(places)]
    steps = [float(words.get("step", "nan")) for words in header["groups"]]
    sides = [1.0 if OrderType(words["order_type"]).is_buy else -1.0 for words in header["settings"]]
    taken = rows["sized"]["carry_steps"] - rows["sizing"]["carry_steps"]
    lots = taken * np.array(steps)[rows["group"]] * np.array(sides)[rows["settings"]]
    return [remainder_text(header["master"], header["symbol"], value) for value in lots.tolist()]


def _keys(decision: Decision, places: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Hash and field of what is kept of these followers' copies."""
    for member in decision.rows["follower"][list(places)].tolist():
        account = follower_of(member)
        if account is not None:
            yield keys.remainders(account), copy_id(decision.order_id, account)


class Remainders:
    """Reads and writes them."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def owed(self, followers: Sequence[Account], master_id: str, symbol: str) -> npt.NDArray[np.float64]:
        """(n,) lots that followers lack of the exact ratio in a master's orders on a symbol; NaN if it cannot be read.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        owed = np.zeros(len(followers))
        start = f"{master_id}:{symbol}:"
        for i, reply in enumerate(self._ask([pack("HGETALL", keys.remainders(one)) for one in followers])):
            if reply is None:
                owed[i] = np.nan
                continue
            said = {text(a): text(b) for a, b in reply.items()} if isinstance(reply, dict) else texts(reply)
            for value in said.values():
                if value.startswith(start):
                    lots = parse_decimal(value[len(start) :])
                    owed[i] += np.nan if lots is None else float(lots)
        return owed

    def keep(self, decision: Decision) -> None:
        """Keep what rounding took from those for whom it left nothing; of copies the calls that make them keep it.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        if decision.header["carries"]:
            places = np.flatnonzero(decision.rows["reason"] == b"below_min").tolist()
            named = zip(_keys(decision, places), remainder_texts(decision, places), strict=True)
            self._ask([pack("HSET", key, own, value) for (key, own), value in named])

    def forget(self, decision: Decision) -> None:
        """The master's order has ended, and with it what rounding took of it; raises as `keep`."""
        if decision.header["carries"]:
            self._ask([pack("HDEL", key, own) for key, own in _keys(decision, range(len(decision.rows)))])

    def _ask(self, requests: Sequence[bytes]) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(requests), _AT_ONCE):
            for reply in self._pipe.exchange(requests[start : start + _AT_ONCE]):
                if isinstance(reply, Exception) and not str(reply).startswith(OF_ONE_KEY):
                    raise store_error(redis.ResponseError(str(reply)))
                found.append(None if isinstance(reply, Exception) else reply)
        return found
