"""Where warnings go in tests: a mail server and a receiver of webhooks that can be told to fail."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

SENDER, USER, PASSWORD = "alerts@broker.example", "alerts", "correct horse"
FIGURES = {
    "level_pct": 48.2,
    "warning_level_pct": 50.0,
    "critical_level_pct": 10.0,
    "equity_usd": 1234.5,
    "used_margin_usd": 2561.2,
    "open_pnl_usd": -8765.5,
}
POSITIONS = [
    {"order_id": "A1", "symbol": "EURUSD", "side": "BUY", "lots": 1.5, "pnl_usd": -8000.25},
    {"order_id": "B2", "symbol": "XAUUSD", "side": "SELL", "lots": 0.1, "pnl_usd": None},
]


def notice_fields(account: str = "live:1", number: int = 1, ts: int = 1_700_000_000_000, **said: Any) -> dict[str, str]:
    """An entry as the daemon writes it."""
    user_type, _, user_id = account.partition(":")
    more = {**FIGURES, "positions": POSITIONS, **said}
    named = {"notice_id": f"{account}:{number}", "kind": "warning", "user_type": user_type, "user_id": user_id}
    return {**named, "ts": str(ts), "said": json.dumps(more)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of `localhost` that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, made = folder / "key.pem", folder / "cert.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*words, *names, "-keyout", key, "-out", made], check=True, capture_output=True)
    return key, made


def server_context(folder: Path) -> ssl.SSLContext:
    key, made = folder / "key.pem", folder / "cert.pem"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made, key)
    return context


class PostOffice:
    """A mail server.

    Attributes
    ----------
    mails : list
        What it took, in order.
    answers : dict
        By recipient (or `DATA recipient`), what it answers, one after the other, before it takes a mail.
    held : dict
        By recipient, what it waits for before it answers.
    """

    def __init__(self) -> None:
        self.mails: list[tuple[str, EmailMessage]] = []
        self.answers: dict[str, list[str]] = defaultdict(list)
        self.sessions: set[Any] = set()
        self.held: dict[str, threading.Event] = {}

    async def handle_RCPT(self, _server: Any, session: Any, envelope: Any, address: str, _options: Any) -> str:  # noqa: N802
        self.sessions.add(session.peer)
        while address in self.held and not self.held[address].is_set():
            await asyncio.sleep(0.002)
        if self.answers[address]:
            return self.answers[address].pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        (address,) = envelope.rcpt_tos
        if self.answers[f"DATA {address}"]:
            return self.answers[f"DATA {address}"].pop(0)
        found = message_from_bytes(envelope.content, policy=default)
        assert isinstance(found, EmailMessage)
        self.mails.append((address, found))
        return "250 taken"

    def addresses(self) -> list[str]:
        return sorted(address for address, _ in self.mails)


def _login(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
    is_right = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=is_right, handled=False)


@contextmanager
def mail_server(office: PostOffice, port: int, folder: Path | None = None, security: str = "none") -> Iterator[None]:
    """A running mail server; with TLS it wants a login."""
    more: dict[str, Any] = {}
    if security != "none":
        assert folder is not None
        is_plain = security == "starttls"  # else it does not know that it speaks over TLS
        more = {"authenticator": _login, "auth_required": is_plain, "auth_require_tls": is_plain}
        more["ssl_context" if security == "tls" else "tls_context"] = server_context(folder)
        more["require_starttls"] = is_plain
    name = "localhost" if security == "tls" else "127.0.0.1"
    controller = Controller(office, hostname=name, port=port, ready_timeout=10, **more)
    controller.start()
    try:
        yield
    finally:
        controller.stop()


class Receiver:
    """A web server that takes what is posted; `statuses` are answered first, one after the other."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: list[int] = []


@contextmanager
def web_server(receiver: Receiver, folder: Path | None = None) -> Iterator[int]:
    """A running web server, and its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.posts.append((self.path, dict(self.headers), body))
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_words: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if folder is not None:
            server.socket = server_context(folder).wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@contextmanager
def bad_server(behave: Callable[[socket.socket], object]) -> Iterator[int]:
    """Something that listens, takes connections and does that with them, and its port."""
    stopped = threading.Event()
    taken: list[socket.socket] = []

    def handle(line: socket.socket) -> None:
        with suppress(OSError):
            behave(line)

    def serve() -> None:
        while not stopped.is_set():
            with suppress(OSError):
                line, _ = listener.accept()
                taken.append(line)
                threading.Thread(target=handle, args=(line,), daemon=True).start()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            stopped.set()
            thread.join()
            for line in taken:
                line.close()
