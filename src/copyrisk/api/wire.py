"""How connections are held: limits of what comes before a request is one, and of who takes no answer.

The server has none of its own for heads, trailers, connections that say nothing, and answers that nobody reads.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from copyrisk.api.answers import refusal

#: How long a head may take, from the connection or its first byte; a whole request; and an answer to leave.
HEAD_S, MESSAGE_S, LEAVE_S = 10.0, 15.0, 30.0
#: Bytes of a request that are not of its body: its head (a stream may name 1,000 accounts), chunk sizes, trailers.
FRAME_BYTES = 128 << 10
#: Headers of a request; and requests that wait on a connection behind the one that is being answered.
HEADERS, PIPELINED = 100, 16


class Protocol(HttpToolsProtocol):
    """One connection; `protocol_of` makes one that knows how many there may be."""

    connections_limit = 0
    _frame_bytes = 0
    _is_in_head = _is_in_message = False
    _deadline: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection, unless there are too many: files must be left for the store and the log."""
        super().connection_made(transport)
        if len(self.connections) > self.connections_limit:
            transport.abort()
        else:
            self._end_in(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it, and tell whoever is answering a request that others came behind."""
        self._end_in(None)
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and count those that are not of a body."""
        self._frame_bytes += len(data)
        if self._deadline is None and not self._is_in_message:  # the first byte of another request
            self._end_in(HEAD_S)
        super().data_received(data)
        if self._frame_bytes > FRAME_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins, perhaps behind another in the same packet."""
        self._is_in_head = self._is_in_message = True
        if self._deadline is None:
            self._end_in(HEAD_S)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what comes behind the body is none: it was not there when the request was judged."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._is_in_head = False
        if self.transport.is_closing():  # the parser goes on with what it has
            return
        if len(self.headers) > HEADERS or len(self.pipeline) > PIPELINED:
            self.transport.abort()
            return
        self._end_in(MESSAGE_S, self._too_slow)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, which has a limit of its own."""
        self._frame_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole; its answer may take what it takes."""
        self._frame_bytes, self._is_in_message = 0, False
        self._end_in(None)
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for long: close, and do not wait for who does not read the last answer."""
        super().timeout_keep_alive_handler()
        self._end_in(LEAVE_S)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request."""
        del msg
        self._refuse(b"400 Bad Request", refusal("invalid_request", "that is no HTTP request", 400))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _too_slow(self) -> None:
        """The body did not come in time; if it is answered already, that is all there is to say."""
        if self._running is not self.cycle or self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(b"408 Request Timeout", refusal("body_timeout", "the body took too long", 408))

    def _refuse(self, status: bytes, answer: Response) -> None:
        """Answer in the usual shape, and close."""
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\n" % status
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(answer.body) + answer.body)
        self.transport.close()
        self._end_in(LEAVE_S)

    def _end_in(self, after_s: float | None, how: Callable[[], None] | None = None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if after_s is None else self.loop.call_later(after_s, how or self.transport.abort)


def protocol_of(connections_limit: int) -> type[Protocol]:
    """The protocol of a server that holds at most so many connections."""
    return type("Limited", (Protocol,), {"connections_limit": connections_limit})
