"""The HTTP endpoint of a process: `/metrics`, `/healthz`, `/readyz`, in threads of its own.

It hands out numbers that are finished and never asks the loop, nor the server, for anything: a loop that hangs is
told, not waited for.
"""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

import redis
import structlog

from copyrisk import __version__, vitals
from copyrisk.errors import ConfigError
from copyrisk.exposition import CONTENT_TYPE, Exposition
from copyrisk.metrics import Poll, Poller
from copyrisk.vitals import Vitals

log = structlog.get_logger(__name__)

_AT_ONCE = 16
_REQUEST_S = 5.0
_START_S = 120.0  # reading a large house for the first time takes a while
_FUNCTIONS_OF = ("workers", "replicator")
_STOP_S = 0.1  # so long ending may take
_JSON = "application/json"
_ERRORS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 414: "too_long", 431: "too_long"}

Answer = tuple[int, str, bytes]


def judge_loop(seen: Vitals, stall_ms: int, now_s: float) -> tuple[bool, str]:
    """Whether the loop turns, and the word for it: `ok`, `starting`, `loop_stalled`, or the code of what failed."""
    age_s = seen.step_age_s(now_s)
    if age_s is None:
        is_young = now_s - seen.started_s < _START_S
        return is_young, "starting" if is_young else seen.failure or "loop_stalled"
    if age_s - seen.rest_s <= stall_ms / 1e3:
        return True, "ok"
    return False, seen.failure or "loop_stalled"


def judge_parts(seen: Vitals, poll: Poll | None, stall_ms: int, now_s: float) -> dict[str, tuple[bool, str]]:
    """Of each part of the work whether it is as it must be, and the word for it."""
    turns, word = judge_loop(seen, stall_ms, now_s)
    parts = {"loop": (turns and word == "ok", word)}
    if poll is None:
        parts["store"] = False, "starting"
    elif poll.failure or now_s - poll.at_s > poll.every_s + stall_ms / 1e3:
        parts["store"] = False, poll.failure or "store_unavailable"
    else:
        parts["store"] = True, "ok"
    if (seen.role in _FUNCTIONS_OF or "lease" in seen.parts) and poll is not None:
        told = {True: (True, "ok"), False: (False, "functions_missing"), None: (False, "unknown")}
        parts["functions"] = told[poll.has_functions]
    return parts | dict(seen.parts)


class Endpoint:
    """What is answered to whom."""

    def __init__(self, seen: Vitals, poller: Poller, stall_ms: int) -> None:
        self._vitals, self._poller, self._stall_ms = seen, poller, stall_ms
        self._exposition = Exposition(seen)
        seen.set(vitals.BUILD, 1, __version__, seen.role)
        self._pages: dict[str, Callable[[], Answer]] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    def answer(self, path: str) -> Answer:
        """Status, content type and body."""
        page = self._pages.get(path)
        return _refusal(404) if page is None else page()

    def _metrics(self) -> Answer:
        now_s = time.monotonic()
        age_s = self._vitals.step_age_s(now_s)
        self._vitals.replace(vitals.STEP_AGE, {} if age_s is None else {(): age_s})
        parts = judge_parts(self._vitals, self._poller.latest, self._stall_ms, now_s)
        self._vitals.replace(vitals.READY, {(part,): is_ready for part, (is_ready, _) in parts.items()})
        return 200, CONTENT_TYPE, self._exposition.text()

    def _healthz(self) -> Answer:
        now_s = time.monotonic()
        turns, word = judge_loop(self._vitals, self._stall_ms, now_s)
        age_s = self._vitals.step_age_s(now_s)
        said = {
            "status": word,
            "role": self._vitals.role,
            "step_age_ms": None if age_s is None else round(age_s * 1e3),
            "limit_ms": round(self._stall_ms + self._vitals.rest_s * 1e3),
        }
        return _page(200 if turns else 503, said)

    def _readyz(self) -> Answer:
        parts = judge_parts(self._vitals, self._poller.latest, self._stall_ms, time.monotonic())
        is_ready = all(good for good, _ in parts.values())
        words = {part: word for part, (_, word) in parts.items()}
        said = {"status": "ready" if is_ready else "not_ready", "role": self._vitals.role, "parts": words}
        return _page(200 if is_ready else 503, said)


def _page(status: int, said: dict[str, Any]) -> Answer:
    return status, _JSON, json.dumps(said).encode() + b"\n"


def _refusal(status: int) -> Answer:
    return _page(status, {"error": _ERRORS.get(status, "internal_error" if status >= 500 else "bad_request")})


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    timeout = _REQUEST_S
    default_request_version = "HTTP/1.0"  # else what cannot be read is answered without a status

    def do_GET(self) -> None:
        self._send(*self._answer())

    do_HEAD = do_GET  # noqa: N815  # the body is left away below

    def _answer(self) -> Answer:
        try:
            return self.server.endpoint.answer(self.path.partition("?")[0])
        except Exception:
            log.exception("endpoint_failed")
            return _refusal(500)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status == 405:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library finds wrong with a request, in a word; nothing of the request is repeated."""
        self.close_connection = True
        self._send(*_refusal(405 if code == 501 else code))

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # as the standard library calls it
        """Requests are no log lines."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = False
    request_queue_size = 4 * _AT_ONCE

    def __init__(self, family: socket.AddressFamily, address: Any, endpoint: Endpoint) -> None:
        self.address_family, self.endpoint = family, endpoint
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Listen; without asking a name server who we are, as the standard library does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; whoever comes when all are taken is hung up on."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hangs up in the middle is no error of ours."""
        fault = sys.exception()
        if not isinstance(fault, OSError):
            log.error("endpoint_failed", reason=f"{type(fault).__name__}: {fault}")


@contextlib.contextmanager
def serving(seen: Vitals, client: redis.Redis, *, host: str, port: int, stall_ms: int) -> Iterator[int]:
    """Serve for as long as the block lasts.

    Parameters
    ----------
    client : redis.Redis
        For the connection over which it is asked what waits.
    port : int
        0: any free one.
    stall_ms : int
        A loop that completes no step for so long is not healthy.

    Yields
    ------
    int
        The port.

    Raises
    ------
    ConfigError
        `cannot_listen`.
    """
    poller = Poller(client, seen, stall_ms / 1e3)
    server = _listening(host, port, Endpoint(seen, poller, stall_ms))
    thread = threading.Thread(target=server.serve_forever, args=(_STOP_S,), name="metrics-endpoint", daemon=True)
    thread.start()
    poller.start()
    log.info("metrics_served", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        poller.stop()


def _listening(host: str, port: int, endpoint: Endpoint) -> _Server:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return _Server(family, address, endpoint)
    except (OSError, UnicodeError) as failure:
        reason = getattr(failure, "strerror", None) or str(failure)
        raise ConfigError(f"metrics cannot listen on {host}:{port}: {reason}", code="cannot_listen") from None
