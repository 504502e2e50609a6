"""JSON objects over a socket, one a line: bounded both ways, never waiting, nothing believed."""

import json
import math
import socket
from collections.abc import Mapping
from typing import Any

from copyrisk.errors import CopyriskError

LINE_BYTES = 16_384
BACKLOG_BYTES = 1 << 20
_READ_BYTES = 1 << 16


class LinkLost(CopyriskError):
    """The connection is of no use any more; what was asked over it is unknown."""

    code = "link_lost"


class Lines:
    """The messages of one connected socket, which it owns.

    Parameters
    ----------
    line_bytes : int
        A longer line is taken for an attack or a fault.
    backlog_bytes : int
        What may wait to be taken by the other side.
    """

    def __init__(
        self, connected: socket.socket, *, line_bytes: int = LINE_BYTES, backlog_bytes: int = BACKLOG_BYTES
    ) -> None:
        connected.setblocking(False)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._line_bytes, self._backlog_bytes = connected, line_bytes, backlog_bytes
        self._received, self._unsent = bytearray(), bytearray()
        self.is_ended = False

    def fileno(self) -> int:
        """The socket's, for `poll`."""
        return self._socket.fileno()

    @property
    def backlog(self) -> int:
        """Bytes that the other side has not taken yet."""
        return len(self._unsent)

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come by now, without waiting.

        Those that came before the other side closed the connection are still handed out, once, and `is_ended` is set.

        Raises
        ------
        LinkLost
            `link_closed`, `link_lost`; `link_garbage`: a line is too long or no JSON object.
        """
        if self.is_ended:
            raise LinkLost("the other side closed the connection", code="link_closed")
        try:
            piece = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as failure:
            raise LinkLost(f"the connection broke: {failure.strerror}") from None
        self.is_ended = not piece
        start = len(self._received)
        self._received += piece
        end = self._received.rfind(b"\n", start)
        if end < 0:
            if len(self._received) > self._line_bytes:
                raise LinkLost("a line is too long", code="link_garbage")
            return []
        lines = bytes(self._received[:end]).split(b"\n")
        del self._received[: end + 1]
        if len(self._received) > self._line_bytes:
            raise LinkLost("a line is too long", code="link_garbage")
        return [self._message(line) for line in lines]

    def _message(self, line: bytes) -> dict[str, Any]:
        if len(line) > self._line_bytes:
            raise LinkLost("a line is too long", code="link_garbage")
        try:
            said = json.loads(line, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise LinkLost(f"no JSON object: {line[:60]!r}", code="link_garbage")
        return said

    def put(self, message: Mapping[str, Any]) -> None:
        """Have a message sent, now or when the other side takes it.

        Raises
        ------
        LinkLost
            `link_clogged`: too much waits already; `link_lost`.
        """
        self._unsent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self.flush()
        if len(self._unsent) > self._backlog_bytes:
            raise LinkLost("the other side does not take what it is sent", code="link_clogged")

    def flush(self) -> None:
        """Send what waits, as far as the other side takes it.

        Raises
        ------
        LinkLost
        """
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as failure:
            raise LinkLost(f"the connection broke: {failure.strerror}") from None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number
