"""Between a client and the API: a proxy that loses requests and answers, as it is told, one request after the other."""

import contextlib
import socket
import ssl
import threading
from collections import deque
from enum import Enum


class Fate(Enum):
    """What becomes of a request."""

    THROUGH = "it is answered"
    BEFORE = "the connection breaks before the server hears of it"
    AFTER = "the connection breaks when the server has answered"
    HALF = "the connection breaks in the middle of the answer"
    AWAY = "the proxy says that there is no server"
    LATE = "the proxy says that the server took too long, which has answered"
    NO_API = "somebody else answers"


_AWAY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\naway"
_LATE = b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 4\r\n\r\nlate"
_NO_API = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
_INSTEAD = {Fate.AWAY: _AWAY, Fate.NO_API: _NO_API}


class Proxy:
    """Of one server.

    Attributes
    ----------
    fates : deque of Fate
        Of the next requests; empty: they go through.
    seen : list of bytes
        Every request that came.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.fates: deque[Fate] = deque()
        self.seen: list[bytes] = []
        self._port, self._ends, self._tls = port, threading.Event(), tls
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._ends.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                client.settimeout(20.0)
                self._sockets.add(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self._tls is None:
                self._answer(client)
            else:
                with self._tls.wrap_socket(client, server_side=True) as inside:
                    self._answer(inside)

    def _answer(self, client: socket.socket) -> None:
        while request := _message(client):
            self.seen.append(request)
            fate = self.fates.popleft() if self.fates else Fate.THROUGH
            if fate is Fate.BEFORE:
                return
            if fate in _INSTEAD:
                client.sendall(_INSTEAD[fate])
            elif not self._pass_on(client, request, fate):
                return

    def _pass_on(self, client: socket.socket, request: bytes, fate: Fate) -> bool:
        with socket.create_connection(("127.0.0.1", self._port), timeout=20.0) as server:
            self._sockets.add(server)
            server.sendall(request)
            if b"/api/stream" in request.partition(b"\r\n")[0]:
                while piece := server.recv(65_536):
                    client.sendall(piece)
                return False
            answer = _message(server)
        if fate is Fate.LATE:
            client.sendall(_LATE)
        elif fate is Fate.HALF:
            client.sendall(answer[:-5])
        elif fate is Fate.THROUGH:
            client.sendall(answer)
        return fate in (Fate.LATE, Fate.THROUGH)

    def cut(self) -> None:
        """Break every connection that there is."""
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def close(self) -> None:
        """Take no more, and have no socket left open."""
        self._ends.set()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()


def _message(side: socket.socket) -> bytes:
    """A request or an answer; empty: there is no other one."""
    said = b""
    while b"\r\n\r\n" not in said:
        piece = side.recv(65_536)
        if not piece:
            return b""
        said += piece
    head, _, body = said.partition(b"\r\n\r\n")
    sizes = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    if b"/api/stream" in head.partition(b"\r\n")[0]:
        return said
    while len(body) < (sizes[0] if sizes else 0):
        body += side.recv(65_536)
    return head + b"\r\n\r\n" + body
