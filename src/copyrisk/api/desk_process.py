"""The desk's process: keeps the desk's book, looks at the server, and answers what the desk asks.

It is a process so that valuing never holds up an order's answer. `desk.Desk` starts it with a socket as its standard
input. It reads a pickled `BookOptions`, and from then on

    takes    {"id": n, "what": word, "arguments": {...}}, one at a time
    answers  `ANSWER` or `REFUSAL` {"code", "message", "status"} under that id
    sends    `SUMMARY` after each look at the server, asked or not

each as a `HEADER` and so many bytes of JSON. It ends when the socket does.
"""

import contextlib
import gc
import json
import math
import os
import pickle
import select
import socket
import struct
import sys
import time
from typing import Any

import structlog

from copyrisk.api.desk_book import BookOptions, DeskBook
from copyrisk.errors import CopyriskError, StoreError
from copyrisk.log import configure_logging
from copyrisk.store.connection import connect

log = structlog.get_logger(__name__)

#: Bytes that follow, the kind, an id, and until when (`time.monotonic`) it may be passed on.
HEADER = struct.Struct("!IBQd")
#: Bytes of a request, or of the options.
LENGTH = struct.Struct("!I")
SUMMARY, ANSWER, REFUSAL = 0, 1, 2
FRAME_LIMIT = 16 << 20

_NICE, _AWAY = 5, 503
#: A code that only a fault of ours has.
_FAULT = "desk_unavailable"


def _take_exactly(sock: socket.socket, count: int) -> bytes | None:
    """So many bytes; `None` if the other side has ended."""
    found = bytearray()
    while len(found) < count:
        part = sock.recv(min(count - len(found), 1 << 18))
        if not part:
            return None
        found += part
    return bytes(found)


def _take_frame(sock: socket.socket) -> bytes | None:
    head = _take_exactly(sock, LENGTH.size)
    return None if head is None else _take_exactly(sock, LENGTH.unpack(head)[0])


def _send(sock: socket.socket, kind: int, number: int, good_until_s: float, said: Any) -> None:
    body = json.dumps(said, allow_nan=False, separators=(",", ":")).encode()
    sock.sendall(HEADER.pack(len(body), kind, number, good_until_s) + body)


def serve(sock: socket.socket, book: DeskBook, refresh_s: float) -> None:
    """Look and answer until the other side has ended."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _serve(sock, book, refresh_s)


def _serve(sock: socket.socket, book: DeskBook, refresh_s: float) -> None:
    due_s, hindered, looks, is_frozen = time.monotonic(), "", 0, False
    while True:
        if select.select([sock], [], [], max(0.0, due_s - time.monotonic()))[0]:
            request = _take_frame(sock)
            if request is None:
                return
            _answer(sock, book, request)
        now_s = time.monotonic()
        if now_s < due_s:
            continue
        try:
            book.look()
            if hindered:
                log.info("desk_goes_on")
            hindered = ""
        except StoreError as failure:
            if failure.code != hindered:
                log.error("desk_waits", code=failure.code, reason=str(failure))
            hindered = failure.code
        looks += 1
        _send(sock, SUMMARY, looks, book.good_until_s(), book.summary())
        if not is_frozen and book.is_current:
            gc.collect()  # what was built lives as long as the process: walking it again and again would be for nothing
            gc.freeze()
            is_frozen = True
        due_s = max(due_s + refresh_s, time.monotonic())


def _answer(sock: socket.socket, book: DeskBook, request: bytes) -> None:
    asked = json.loads(request)
    try:
        said = book.answer(asked["what"], asked["arguments"])
        _send(sock, ANSWER, asked["id"], book.good_until_s(), said)
    except CopyriskError as refusal:
        status = _AWAY if isinstance(refusal, StoreError) else None
        _send(sock, REFUSAL, asked["id"], math.inf, _refused(refusal.code, str(refusal), status))
    except Exception:
        log.exception("desk_question_failed", what=asked["what"])
        _send(
            sock, REFUSAL, asked["id"], math.inf, _refused(_FAULT, "something went wrong here; it is in the log", _AWAY)
        )


def _refused(code: str, message: str, status: int | None) -> dict[str, Any]:
    """`status`: the HTTP status, where it is not that of the code."""
    return {"code": code, "message": message, "status": status}


def main() -> int:
    """Be the process; returns its exit code."""
    os.nice(_NICE)
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as sock:
        stored = _take_frame(sock)
        if stored is None:
            return 0
        options: BookOptions = pickle.loads(stored)  # what our own parent has made
        configure_logging(options.log_format, options.log_level)
        client = connect(
            options.url, connect_timeout_ms=options.connect_timeout_ms, reply_timeout_ms=options.reply_timeout_ms
        )
        book = DeskBook(client, options)
        try:
            serve(sock, book, options.refresh_ms / 1e3)
        finally:
            book.close()
            client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
