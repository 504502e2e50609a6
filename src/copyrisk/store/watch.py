"""Hearing which keys change, for loops that keep no book: a connection of its own that the server reports on."""

import contextlib
import select
from collections.abc import Iterator, Sequence
from typing import Any

import hiredis
import redis
import structlog

from copyrisk.errors import StoreUnavailable
from copyrisk.store.connection import drop, store_error
from copyrisk.store.pipe import pack

log = structlog.get_logger(__name__)

_READ_BYTES = 1 << 16
_UNTRACKED_WAIT_S = 0.05


class Watch:
    """Keys under some prefixes, as they change.

    Attributes
    ----------
    tracks : bool
        Whether the server reports; else `changed` says "everything" at every call.
    """

    def __init__(self, client: redis.Redis, prefixes: Sequence[str]) -> None:
        self._client, self._prefixes = client, tuple(prefixes)
        self._connection: Any = None
        self._sock: Any = None
        self._reader = hiredis.Reader()
        self.tracks = True

    def changed(self, timeout_s: float) -> set[bytes] | None:
        """Keys that changed since the last call, waiting so long for the first; `None`: any of them may have.

        Raises
        ------
        StoreError, StoreUnavailable
            The next call opens a new connection, and says "everything".
        """
        with self._failing():
            if self._connection is None:
                self._open()
                return None
            if not self.tracks:
                select.select([], [], [], min(timeout_s, _UNTRACKED_WAIT_S))
                return None
            return self._take(timeout_s)

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            drop(self._client, self._connection)
            self._connection = self._sock = None

    def _open(self) -> None:
        self._connection = self._client.connection_pool.get_connection()
        self._sock = self._connection._sock
        self._reader = hiredis.Reader()
        words = [word for prefix in self._prefixes for word in ("PREFIX", prefix)]
        self._sock.sendall(pack("CLIENT", "TRACKING", "ON", "BCAST", *words))
        while (reply := self._reader.gets()) is False:
            self._receive()
        self.tracks = not isinstance(reply, Exception)
        if not self.tracks:
            log.warning("not_tracking", reason=str(reply), meaning="everything is read every 50 ms")

    def _take(self, timeout_s: float) -> set[bytes] | None:
        found: set[bytes] = set()
        everything = False
        while not (found or everything):
            if not self._is_readable(timeout_s):
                return found
            while True:
                self._receive()
                if not self._is_readable(0.0):
                    break
            while (pushed := self._reader.gets()) is not False:
                if isinstance(pushed, list) and pushed[:1] == [b"invalidate"]:
                    everything |= pushed[1] is None  # the database was flushed
                    found.update(pushed[1] or ())
        return None if everything else found

    def _is_readable(self, timeout_s: float) -> bool:
        pending = getattr(self._sock, "pending", lambda: 0)()  # what TLS has read ahead
        return bool(pending) or bool(select.select([self._sock], [], [], timeout_s)[0])

    def _receive(self) -> None:
        received = self._sock.recv(_READ_BYTES)
        if not received:
            raise StoreUnavailable("the server closed the connection", code="server_unreachable")
        self._reader.feed(received)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, redis.RedisError, hiredis.HiredisError) as failure:
            self.close()
            raise store_error(failure) from failure
        except BaseException:
            self.close()
            raise
