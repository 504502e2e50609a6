"""What mail and webhooks share: connections whose time limits hold whatever the other side does, TLS, secrets."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from copyrisk.errors import ConfigError
from copyrisk.notify_text import read_text

_SECRET_CHARS = 1_024


def read_secret(what: str, file: str | None, variable: str | None) -> str | None:
    """A secret from a file (without the newline at its end) or an environment variable; `None` if neither is named.

    Raises
    ------
    ConfigError
        `secret_missing`, `file_unreadable`; the text never holds the secret.
    """
    if file is not None:
        found = read_text(file, what, _SECRET_CHARS).removesuffix("\n")
    elif variable is not None:
        found = os.environ.get(variable, "")
    else:
        return None
    if not found or not found.isascii() or not found.isprintable():
        source = file if file is not None else f"${variable}"
        raise ConfigError(f"{what}: nothing in {source}, or no plain ASCII text", code="secret_missing")
    return found


def verifying(what: str, ca_file: str | None) -> ssl.SSLContext:
    """TLS that holds certificates and names against the system's authorities, or those of a file.

    Raises
    ------
    ConfigError
        `file_unreadable`.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as failure:
        raise ConfigError(f"{what} {ca_file}: {failure}", code="file_unreadable") from None


class Deadline:
    """When an attempt must be over."""

    def __init__(self, timeout_ms: int) -> None:
        self._ends_s = time.monotonic() + timeout_ms / 1000.0

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._ends_s

    def left_s(self) -> float:
        """What is left of it, more than 0.

        Raises
        ------
        TimeoutError
        """
        if self.is_over:
            raise TimeoutError("it took too long")
        return max(self._ends_s - time.monotonic(), 0.001)


def open_line(host: str, port: int, deadline: Deadline) -> socket.socket:
    """A TCP connection, not one that came too late. Raises `OSError`."""
    line = socket.create_connection((host, port), deadline.left_s())
    if deadline.is_over:
        line.close()
        raise TimeoutError("it took too long")
    return line


@contextmanager
def cut_off(line: socket.socket, deadline: Deadline) -> Iterator[None]:
    """Break a connection when the time is up: time limits of sockets do not stop who sends a byte now and then.

    Parameters
    ----------
    line : socket
        A duplicate of the connection's, which stays what it is while TLS goes over the connection.
    """

    def shut() -> None:
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline.left_s(), shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
