"""Decisions about the copies of a master's order: stored before the first copy, and what came of them after the last.

One hash for each master's order:
  decided  what was known and decided of every follower: JSON, a newline, rows of `replication.DECIDED`
  made     what came of it, compressed: JSON, a newline, rows of `replication.MADE`
  target   JSON: what the order asks of its copies now, and as of which version of the master
Rows are little-endian structs; the JSON says their layout's number.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import redis

from copyrisk import keys
from copyrisk.commands import Target
from copyrisk.errors import StoreError
from copyrisk.layout import Rows
from copyrisk.replication import DECIDED, MADE, parse_target, target_words
from copyrisk.store.changes import RECORD_KEEP_MS
from copyrisk.store.connection import WRONG_TYPE, store_error
from copyrisk.store.functions import put_request
from copyrisk.store.pipe import Pipe, pack

_LAYOUT = 1
_NEEDED = ("event", "master", "symbol", "received_ms", "groups", "settings", "carries")


@dataclass(slots=True)
class Decision:
    """What was decided about the copies of one order.

    Attributes
    ----------
    header : dict
        The event and the master as they were known.
    rows : (n,) `replication.DECIDED`
    results : dict or None
        What is said of making the copies; `None`: it is not done.
    made : (n,) `replication.MADE` or None
    """

    order_id: str
    header: Mapping[str, Any]
    rows: Rows
    results: Mapping[str, Any] | None = None
    made: Rows | None = None
    target: Target | None = None
    target_version: int = 0


class Decisions:
    """Reads and writes them."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def load(self, order_id: str) -> Decision | None:
        """What was decided about an order, `None` if nothing was.

        Raises
        ------
        StoreError, StoreUnavailable
            `decision_unreadable`: what is there is no decision; nobody may decide again on top of it.
        """
        return self.look_up(order_id)[0]

    def look_up(self, order_id: str) -> tuple[Decision | None, Target | None, int]:
        """The same, and `target_of`; raises as `load`."""
        (reply,) = self._ask(pack("HMGET", keys.copies(order_id), "decided", "made", "target"))
        decided, made, target = reply
        try:
            aimed, version = _parse_target(target)
            if decided is None:
                return None, aimed, version
            header, rows = _parse(decided, DECIDED)
            for name in _NEEDED:
                header[name]
            found = Decision(order_id, header, rows, target=aimed, target_version=version)
            if made is not None:
                found.results, found.made = _parse(zlib.decompress(made), MADE)
        except (ValueError, LookupError, TypeError, RecursionError, zlib.error) as fault:
            raise StoreError(f"the decision about {order_id}: {fault}", code="decision_unreadable") from None
        return found, aimed, version

    def target_of(self, order_id: str) -> tuple[Target | None, int]:
        """What an order asks of its copies, and as of which version of its master; version 0 for nothing so far.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        (stored,) = self._ask(pack("HGET", keys.copies(order_id), "target"))
        try:
            return _parse_target(stored)
        except (ValueError, LookupError, TypeError, RecursionError) as fault:
            raise StoreError(f"the target of {order_id}: {fault}", code="decision_unreadable") from None

    def store(self, decision: Decision) -> Decision:
        """Make a decision durable; if there is one already, that one holds and is returned.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        key = keys.copies(decision.order_id)
        (stored,) = self._ask(pack("HSETNX", key, "decided", _packed(decision.header, decision.rows)))
        if stored:
            return decision
        there = self.load(decision.order_id)
        if there is None:
            raise StoreError(f"the decision about {decision.order_id} vanished", code="decision_unreadable")
        return there

    def finish(self, decision: Decision) -> None:
        """Store what came of a decision; from now on it is kept for so long.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        assert decision.results is not None and decision.made is not None
        key, made = keys.copies(decision.order_id), zlib.compress(_packed(decision.results, decision.made), 1)
        self._ask(pack("HSET", key, "made", made), pack("PEXPIRE", key, RECORD_KEEP_MS))

    def aim(self, order_id: str, target: Target, version: int) -> bool:
        """Store what an order asks of its copies now; returns whether nothing later is there.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        said = json.dumps({**target_words(target), "version": version})
        (reply,) = self._ask(put_request(keys.copies(order_id), version, {"target": said}, (), RECORD_KEEP_MS))
        return bool(reply) or self.target_of(order_id)[1] == version

    def _ask(self, *requests: bytes) -> list[Any]:
        replies = self._pipe.exchange(requests)
        for reply in replies:
            if isinstance(reply, Exception) and str(reply).startswith(WRONG_TYPE):
                raise StoreError(f"what is decided about an order: {reply}", code="decision_unreadable")
            if isinstance(reply, Exception):
                raise store_error(redis.ResponseError(str(reply)))
        return replies


def digest_of(decision: Decision) -> str:
    """SHA-256 of a decision as it is stored."""
    return sha256(_packed(decision.header, decision.rows)).hexdigest()


def _parse_target(stored: bytes | None) -> tuple[Target | None, int]:
    if stored is None:
        return None, 0
    said = json.loads(stored)
    return parse_target(said), int(said["version"])


def _packed(header: Mapping[str, Any], rows: Rows) -> bytes:
    said = json.dumps({**header, "layout": _LAYOUT}, separators=(",", ":"))
    return said.encode() + b"\n" + rows.tobytes()


def _parse(stored: bytes, dtype: np.dtype[np.void]) -> tuple[Mapping[str, Any], Rows]:
    said, _, rows = stored.partition(b"\n")
    header = json.loads(said)
    if header["layout"] != _LAYOUT:
        raise ValueError(f"of layout {header['layout']}, not {_LAYOUT}")
    return header, np.frombuffer(rows, dtype).copy()
