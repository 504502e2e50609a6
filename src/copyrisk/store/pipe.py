"""One connection, many commands, one wait: requests as bytes out, replies of `hiredis` in.

redis-py opens the connection (TLS, authentication, handshake) and hands over its socket; its own pipeline
would spend four times as long per reply. A request is sent in parts, the next one while the replies of the
last are still coming, so neither side has to hold everything at once. Nothing is ever sent twice: after any
failure the connection is dropped and what was asked is unknown.
"""

import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import hiredis
import redis

from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.store.connection import drop, open_connection, store_error

_PART_COMMANDS = 2_000
_READ_BYTES = 1 << 18


class ReplyError(Exception):
    """The server answered one command with an error; other replies of the same exchange are not touched."""


class Pipe:
    """A dedicated connection of a redis-py client, opened when first needed and after each failure."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._connection: Any = None
        self._reader = _new_reader()

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands, a part at a time, and return their replies in order.

        Raises
        ------
        StoreError, StoreUnavailable
            The server cannot be reached or used. Any of the commands may have been executed or not.
        """
        replies: list[Any] = []
        try:
            sock = self._socket()
            for start in range(0, len(commands), _PART_COMMANDS):
                sock.sendall(b"".join(commands[start : start + _PART_COMMANDS]))
                self._collect(sock, replies, start)
            self._collect(sock, replies, len(commands))
            self._check_silence()
        except (OSError, redis.RedisError, hiredis.HiredisError) as failure:
            self.close()
            raise store_error(failure) from failure
        except BaseException:
            self.close()  # interrupted half-way: the next exchange must not read this one's replies
            raise
        return replies

    def ask(self, *commands: bytes) -> list[Any]:
        """The same for commands that are not to be refused: the first error among the replies is raised.

        Raises
        ------
        StoreError, StoreUnavailable
            Any of the commands may have been executed or not.
        """
        replies = self.exchange(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise store_error(redis.ResponseError(str(reply)))
        return replies

    def exchange_parts(self, parts: Iterable[tuple[bytes, int]]) -> Iterator[list[Any]]:
        """Send parts of packed commands as they are made, each while the server is at the one before.

        Parameters
        ----------
        parts : iterable of (bytes, int)
            Commands, and how many they are.

        Yields
        ------
        list
            The replies of each part. Whoever stops early loses the connection.

        Raises
        ------
        StoreError, StoreUnavailable
            Any of the commands may have been executed or not.
        """
        due: list[int] = []
        try:
            sock = self._socket()
            for commands, count in parts:
                sock.sendall(commands)
                due.append(count)
                if len(due) > 1:
                    yield self._replies(sock, due.pop(0))
            while due:
                yield self._replies(sock, due.pop(0))
            self._check_silence()
        except (OSError, redis.RedisError, hiredis.HiredisError) as failure:
            self.close()
            raise store_error(failure) from failure
        except BaseException:
            self.close()
            raise

    def _check_silence(self) -> None:
        """What the server says unasked would be taken for the answer to the next command."""
        if self._reader.has_data():
            self.close()
            raise StoreError("the server said more than it was asked", code="protocol_fault")

    def _replies(self, sock: socket.socket, count: int) -> list[Any]:
        replies: list[Any] = []
        self._collect(sock, replies, count)
        return replies

    def close(self) -> None:
        """Drop the connection; the next exchange opens another."""
        if self._connection is not None:
            drop(self._client, self._connection)
            self._connection = None
        self._reader = _new_reader()

    def _socket(self) -> socket.socket:
        if self._connection is None:
            self._connection = open_connection(self._client)
        connected: socket.socket = self._connection._sock
        return connected

    def _collect(self, sock: socket.socket, replies: list[Any], wanted: int) -> None:
        reader = self._reader
        while len(replies) < wanted:
            reply = reader.gets()
            if reply is not False:
                replies.append(reply)
                continue
            received = sock.recv(_READ_BYTES)
            if not received:
                raise StoreUnavailable("the server closed the connection", code="server_unreachable")
            reader.feed(received)


def _new_reader() -> hiredis.Reader:
    return hiredis.Reader(replyError=ReplyError)


def pack(*words: str | bytes | int) -> bytes:
    """One command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # the stub has one word too few
    return packed
