"""The daemon's own connection: requests in parts, replies straight into arrays, changed keys as the server tells them.

redis-py opens the connection (TLS, authentication, RESP3 handshake) and hands over its socket. A part of the request
is sent, then the replies of the part before it are read, so that server and client work at the same time and neither
has to hold everything. Nothing is ever sent twice: after any failure the connection is dropped and what was asked is
unknown. What answers something else than was asked is a failure, too.
"""

import contextlib
import ssl
from collections.abc import Iterable, Iterator
from typing import Any

import hiredis
import numpy as np
import redis

from copyrisk._index import TextIndex
from copyrisk._wire import Replies
from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.store.connection import drop, open_connection, store_error

_PING = b"*1\r\n$4\r\nPING\r\n"
_NOTHING_WORKS = ("server_auth_failed", "server_loading")  # an error of this kind is not one of a single command
_NOTHING_THERE = (BlockingIOError, ssl.SSLWantReadError)


class Link:
    """One connection of a redis-py client, opened when first needed and after each failure.

    Attributes
    ----------
    replies : Replies
        Announce in it what an exchange will be answered with; a new one with each connection.
    error : str
        The first error among the replies of the last exchange, or empty.
    connections : int
        How many have been opened; a server behind a new one may have lost what it was told before.
    """

    def __init__(self, client: redis.Redis, names: TextIndex) -> None:
        self._client, self._names = client, names
        self._connection: Any = None
        self._sock: Any = None
        self.replies = Replies(names)
        self.error = ""
        self.connections = 0

    def another(self) -> "Link":
        """A link to the same server, for what must not share a connection with the reads."""
        return Link(self._client, self._names)

    def open(self) -> bool:
        """Connect if there is no connection; returns whether it is a new one.

        Raises
        ------
        StoreError, StoreUnavailable
            The server cannot be reached or used.
        """
        if self._connection is not None:
            return False
        with self._failing():
            self._connection = open_connection(self._client)
            self._sock = self._connection._sock
        self.replies = Replies(self._names)
        self.connections += 1
        return True

    def close(self) -> None:
        """Drop the connection; what was expected of it will not come."""
        if self._connection is not None:
            drop(self._client, self._connection)
            self._connection = self._sock = None

    def exchange(self, parts: Iterable[bytes], *, outstanding: int = 0) -> None:
        """Send the parts of a request and take all replies that are expected, but for the last `outstanding` ones.

        A part may be made, and its replies announced, when its turn comes.

        Raises
        ------
        StoreError, StoreUnavailable
            Any of the commands may have been executed or not.
        """
        with self._failing():
            before = self.replies.due
            for part in parts:
                own = self.replies.due - before
                self._sock.sendall(part)
                while self.replies.due > max(own, outstanding):
                    self._receive()
                before = self.replies.due
            while self.replies.due > outstanding:
                self._receive()
            self.error = self.replies.take_error().decode("ascii", "replace")
            if self.error and (refused := store_error(redis.ResponseError(self.error))).code in _NOTHING_WORKS:
                raise refused

    def wait_for_reports(self) -> None:
        """Take what the server sends unasked up to now: it reports a change before it answers a later command."""
        self.replies.expect_statuses(np.zeros(1, np.uint8))
        self.exchange([_PING])

    def drain(self) -> None:
        """Take what the server has sent unasked, without waiting."""
        with self._failing():
            timeout = self._sock.gettimeout()
            self._sock.settimeout(0.0)
            try:
                while self._receive():
                    pass
            except _NOTHING_THERE:
                pass
            finally:
                self._sock.settimeout(timeout)

    def _receive(self) -> bool:
        received = self._sock.recv_into(self.replies.room())
        if not received:
            raise StoreUnavailable("the server closed the connection", code="server_unreachable")
        try:
            self.replies.fed(received)
        except ValueError as fault:
            raise StoreError(f"the server's answer makes no sense: {fault}", code="protocol_fault") from None
        return True

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Drop the connection on any failure: the next exchange must not read this one's replies."""
        try:
            yield
        except (OSError, redis.RedisError, hiredis.HiredisError, StoreError) as failure:
            self.close()
            raise store_error(failure) from failure
        except BaseException:
            self.close()
            raise
