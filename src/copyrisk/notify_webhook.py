"""Warnings as JSON to a web address of the broker: one `POST` each, signed, repeated until it is taken."""

import hashlib
import hmac
import http.client
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from copyrisk.decimals import decimal_text
from copyrisk.errors import ConfigError, Refused, TryLater
from copyrisk.gateway.messages import printable
from copyrisk.notify import Client, Notice
from copyrisk.notify_line import Deadline, cut_off, open_line

#: This machine.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: 4xx that say "not now".
_LATER = (408, 425, 429)


@dataclass(frozen=True, slots=True)
class WebAddress:
    """Where to."""

    host: str
    port: int
    target: str
    is_https: bool


def parse_web_address(url: str) -> WebAddress:
    """The parts of a URL.

    Raises
    ------
    ConfigError
        `bad_webhook_url`: it is not `https://host[:port]/...`; `http://` goes to this machine only. The text does not
        repeat the URL: its path may be a secret.
    """
    try:
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("letters that no URL has")
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError("it must be https://host/path")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise ValueError("no user, password or fragment belongs there")
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError("http:// goes to this machine only: clients' data is not sent in the clear")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as fault:
        raise ConfigError(f"notify.webhook_url: {fault}", code="bad_webhook_url") from None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return WebAddress(parts.hostname, port, target, parts.scheme == "https")


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """The receiver.

    Attributes
    ----------
    secret : str or None
        Key of the signature; `None`: not signed.
    context : SSLContext or None
        Needed for `https`.
    timeout_ms : int
        Of a whole attempt.
    """

    address: WebAddress
    secret: str | None = field(default=None, repr=False)
    context: ssl.SSLContext | None = None
    timeout_ms: int = 10_000


class WebhookSink:
    """Posts warnings; safe to use from several threads at once. Redirects are not followed, proxies not used."""

    name = "webhook"

    def __init__(self, options: WebhookOptions) -> None:
        self._options = options

    def deliver(self, notice: Notice, client: Client) -> None:
        """As `Sink` says; it is delivered once the receiver has answered 2xx.

        Raises
        ------
        Refused
            `webhook_refused`: 4xx but 408, 425 and 429.
        TryLater
            `webhook_timeout`, `webhook_unreachable`, `webhook_tls_failed`, `webhook_redirects`, `webhook_failed`.
        """
        deadline = Deadline(self._options.timeout_ms)
        try:
            status = self._post(notice, body_of(notice, client), deadline)
        except (OSError, http.client.HTTPException, ValueError) as failure:
            raise _judged(failure, is_late=deadline.is_over) from None
        if 200 <= status < 300:
            return
        said = f"the receiver answered {status}"
        if 400 <= status < 500 and status not in _LATER:
            raise Refused(said, code="webhook_refused")
        raise TryLater(said, code="webhook_redirects" if 300 <= status < 400 else "webhook_failed")

    def _post(self, notice: Notice, body: bytes, deadline: Deadline) -> int:
        to = self._options.address
        plain = open_line(to.host, to.port, deadline)
        line = plain.dup()
        connection = http.client.HTTPConnection(to.host, to.port)
        try:
            with cut_off(line, deadline):
                connection.sock = plain
                if to.is_https and self._options.context is not None:
                    connection.sock = self._options.context.wrap_socket(plain, server_hostname=to.host)
                connection.request("POST", to.target, body, self._headers(notice, body))
                answer = connection.getresponse()
                answer.close()  # the status says it all; a body that never ends must not make it unknown
                return answer.status
        finally:
            connection.close()
            plain.close()
            line.close()

    def _headers(self, notice: Notice, body: bytes) -> dict[str, str]:
        found = {"Content-Type": "application/json", "Idempotency-Key": notice.key, "Connection": "close"}
        if self._options.secret is not None:
            stamp = str(int(time.time()))
            found["X-Copyrisk-Timestamp"] = stamp
            found["X-Copyrisk-Signature"] = "sha256=" + signature(self._options.secret, stamp, body)
        return found

    def close(self) -> None:
        """Nothing is open."""


def signature(secret: str, stamp: str, body: bytes) -> str:
    """HMAC-SHA256, in hex, of the time in seconds, a dot, and the body."""
    return hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def body_of(notice: Notice, client: Client) -> bytes:
    """What is posted: what the e-mail says, numbers as texts."""
    said: Mapping[str, Any] = {
        "kind": "warning",
        "notice_id": notice.id,
        "user_type": notice.account.type.value,
        "user_id": notice.account.id,
        "account_number": printable(client.account_number),
        "ts": notice.ts_ms,
        **{name: decimal_text(value) for name, value in notice.figures.items()},
        "positions": [
            {
                "order_id": one.order_id,
                "symbol": one.symbol,
                "side": one.side,
                "lots": decimal_text(one.lots),
                "pnl_usd": None if one.pnl_usd is None else decimal_text(one.pnl_usd),
            }
            for one in notice.positions
        ],
    }
    return json.dumps(said, separators=(",", ":")).encode()


def _judged(failure: Exception, *, is_late: bool) -> TryLater:
    if is_late or isinstance(failure, TimeoutError):
        return TryLater("the receiver did not answer in time", code="webhook_timeout")
    if isinstance(failure, ssl.SSLError):
        return TryLater(f"no TLS with the receiver: {printable(str(failure))}", code="webhook_tls_failed")
    if isinstance(failure, OSError | http.client.RemoteDisconnected):
        return TryLater(f"the receiver: {printable(str(failure))}", code="webhook_unreachable")
    return TryLater(f"what answers speaks no HTTP: {type(failure).__name__}", code="webhook_failed")
