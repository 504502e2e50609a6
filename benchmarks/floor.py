"""The floor: how long the server alone takes for a request, with a client that throws the replies away.

No client can be faster; what one adds to it is its own. The client is `floor.c`, compiled when first needed.
"""

import ctypes
import hashlib
import os
import select
import socket
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import hiredis

SOURCE = Path(__file__).with_suffix(".c")
BUILD = Path(__file__).parent.parent / "build"
_COMPILE = ("cc", "-O2", "-shared", "-fPIC")
_READ_BYTES = 1 << 18
_PATIENCE_S = 10.0


class Floor:
    """One prepared request on one connection, to be exchanged again and again.

    Its replies must have the same size each time. What a request changes the first time (`HSET` counts the fields it
    adds) has changed once this is made: it is exchanged until two replies in a row have the same size.

    Parameters
    ----------
    sock : socket
        Connected to the server, without TLS, in any blocking mode, with no reply due.
    request : bytes
        Whole commands.

    Attributes
    ----------
    reply_size : int
        Bytes of its replies.
    """

    def __init__(self, sock: socket.socket, request: bytes) -> None:
        self._sock, self._request = sock, request
        first, self.reply_size = plain_exchange(sock, request), plain_exchange(sock, request)
        if first != self.reply_size and plain_exchange(sock, request) != self.reply_size:
            raise ValueError("the replies of this request have another size each time")

    def __call__(self) -> float:
        """Exchange it and return the seconds it took."""
        return exchange(self._sock, self._request, self.reply_size)


def exchange(sock: socket.socket, request: bytes, reply_size: int) -> float:
    """Send a request, throw `reply_size` bytes of replies away, and return the seconds it took.

    Raises
    ------
    OSError
        The connection broke or stood still, or there were more replies (`EPROTO`); it is out of step then.
    """
    seconds: float = library().floor_exchange(sock.fileno(), request, len(request), reply_size)
    if seconds < 0:
        number = round(-seconds)
        raise OSError(number, os.strerror(number))
    return seconds


def plain_exchange(sock: socket.socket, request: bytes) -> int:
    """The same in Python, as far as the last reply; returns how many bytes all replies are."""
    due, size, reader, unsent = _commands_in(request), 0, hiredis.Reader(), memoryview(request)
    while due:
        readable, writable, _ = select.select([sock], [sock] if unsent else [], [], _PATIENCE_S)
        if not readable and not writable:
            raise TimeoutError("the server did not answer in time")
        if writable:
            unsent = unsent[sock.send(unsent, socket.MSG_DONTWAIT) :]
        if readable:
            received = sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            size += len(received)
            reader.feed(received)
            while due and reader.gets() is not False:
                due -= 1
    if reader.has_data():
        raise ValueError("more replies than commands: the connection was out of step")
    return size


def _commands_in(request: bytes) -> int:
    """How many commands these bytes are: a command is itself an array of the protocol."""
    reader, count = hiredis.Reader(), 0
    reader.feed(request)
    while reader.gets() is not False:
        count += 1
    if reader.has_data():
        raise ValueError("the request ends inside of a command")
    return count


@cache
def library() -> ctypes.CDLL:
    """The compiled client; `ctypes` lets other threads run during its calls."""
    loaded = ctypes.CDLL(str(compiled()))
    loaded.floor_exchange.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t]
    loaded.floor_exchange.restype = ctypes.c_double
    return loaded


def compiled() -> Path:
    """Compile the source unless that was done; the name tells which source a library is of."""
    digest = hashlib.sha256(" ".join(_COMPILE).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    path = BUILD / f"floor-{digest}.so"
    if not path.exists():
        BUILD.mkdir(exist_ok=True)
        # Under another name first: a second process must not load half a library.
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            made = Path(folder) / path.name
            command = [*_COMPILE, "-o", str(made), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"floor.c: {done.stderr[-500:]}")
            made.replace(path)
    return path
