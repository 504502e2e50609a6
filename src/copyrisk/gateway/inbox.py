"""Waiting for requests without standing still: a blocking read on a connection of its own, watched with others."""

import time
from typing import Any

import hiredis
import redis

from copyrisk import keys
from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.store.connection import drop, store_error
from copyrisk.store.functions import refused, texts
from copyrisk.store.pipe import ReplyError, pack
from copyrisk.store.streams import Entry

_BLOCK_MS = 1_000
_LATE_S = 5.0
_READ_BYTES = 1 << 16


class Inbox:
    """New entries of the requests' stream, for one consumer of a group.

    `ask` sends the read; when the connection turns readable, `take` has the answer. An entry that is handed to a
    connection which is closed meanwhile stays with the group and is taken over from there.
    """

    def __init__(self, client: redis.Redis, group: str, consumer: str, count: int) -> None:
        self._client = client
        read = ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "BLOCK", _BLOCK_MS)
        self._read = pack(*read, "STREAMS", keys.REQUESTS, ">")
        self._reader = hiredis.Reader(replyError=ReplyError)
        self._asked_s: float | None = None
        try:
            self._connection: Any = client.connection_pool.get_connection()
        except (OSError, redis.RedisError, hiredis.HiredisError) as failure:
            raise store_error(failure) from failure

    def fileno(self) -> int:
        """What to `poll`."""
        return int(self._connection._sock.fileno())

    def ask(self) -> None:
        """Ask for entries, unless an answer is still to come.

        Raises
        ------
        StoreUnavailable
            Nor will it come: it is long overdue.
        """
        if self._asked_s is not None:
            if time.monotonic() - self._asked_s > _BLOCK_MS / 1e3 + _LATE_S:
                raise StoreUnavailable("the server did not answer in time")
            return
        self._asked_s = time.monotonic()
        try:
            self._connection._sock.sendall(self._read)
        except OSError as failure:
            raise store_error(failure) from failure

    def take(self) -> list[Entry]:
        """The entries that have come; call it when the connection is readable.

        Raises
        ------
        StoreError, StoreUnavailable
            `no_group`: the server has lost the group.
        """
        sock = self._connection._sock
        try:
            self._feed(sock.recv(_READ_BYTES))
            while getattr(sock, "pending", int)():  # TLS: already here, and no `poll` would tell
                self._feed(sock.recv(_READ_BYTES))
            answer = self._reader.gets()
        except (OSError, hiredis.HiredisError) as failure:
            raise store_error(failure) from failure
        if answer is False:
            return []
        self._asked_s = None
        failed: StoreError | None = refused(answer)
        if failed is not None:
            failed.code = "no_group" if str(answer).startswith("NOGROUP") else failed.code
            raise failed
        pairs = answer.items() if isinstance(answer, dict) else answer or ()
        return [Entry(keys.REQUESTS, name.decode(), texts(words)) for _, rows in pairs for name, words in rows]

    def close(self) -> None:
        """Drop the connection."""
        drop(self._client, self._connection)

    def _feed(self, received: bytes) -> None:
        if not received:
            raise StoreUnavailable("the server closed the connection", code="server_unreachable")
        self._reader.feed(received)
