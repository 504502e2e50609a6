"""What a link to a liquidity provider is, and the one there is: JSON lines over TCP, as the simulator speaks them.

A link carries: it sends what it is given once, hands out what came, and says when it is of no use any more. What is
outstanding, what is asked again and what a report means is for the gateway. A link has one session with the provider
at a time, and it is the provider that refuses a second one: who holds the session is the gateway that works.
"""

import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from copyrisk.errors import ConfigError, CopyriskError
from copyrisk.gateway.lines import Lines, LinkLost
from copyrisk.gateway.messages import (
    Heard,
    NoSuchRequest,
    OutboundRequest,
    StillWorking,
    parse_report,
    printable,
)
from copyrisk.identifiers import check_order_id

PROTOCOL_VERSION = 1
_SILENT_BEATS = 3


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Where the provider is.

    Attributes
    ----------
    url : str
        `tcp://host:port`.
    session : str
        Who we are at the provider, an id; it lets one of a name in.
    connect_timeout_ms : int
        For the connection and the provider's welcome.
    heartbeat_ms : int
        Either side says something at least this often; one that is silent three times as long is gone.
    """

    url: str
    session: str = "copyrisk"
    connect_timeout_ms: int = 2_000
    heartbeat_ms: int = 1_000


class ProviderLink(Protocol):
    """A session with a provider. Every method may raise `LinkLost`; then the link is to be closed."""

    @property
    def backlog(self) -> int:
        """Bytes that the provider has not taken yet."""

    def fileno(self) -> int:
        """What to `poll` for something to receive."""

    def send(self, request: OutboundRequest) -> None:
        """Ask for something. The provider takes a request id once, whatever comes under it later."""

    def query(self, request_id: str) -> None:
        """Ask what has become of a request: its newest report, `StillWorking` or `NoSuchRequest` follows."""

    def acknowledge(self, request_id: str, sequence: int) -> None:
        """The request's reports up to this one are safe here; others are repeated in the next session."""

    def receive(self) -> list[Heard]:
        """What has come by now, without waiting."""

    def tend(self) -> None:
        """Send what waits and heartbeats that are due, and find out whether the provider is still there."""

    def close(self) -> None:
        """End the session."""


class TcpLink:
    """A session with the simulator, or with what speaks its protocol (`docs/gateway.md`)."""

    def __init__(self, settings: LinkSettings) -> None:
        self._beat_s = settings.heartbeat_ms / 1e3
        deadline_s = time.monotonic() + settings.connect_timeout_ms / 1e3
        self._lines = Lines(_connected(settings))
        self._early: list[Heard] = []
        self._heard_s = self._sent_s = time.monotonic()
        try:
            self._log_on(settings, deadline_s)
        except BaseException:
            self.close()
            raise

    def _log_on(self, settings: LinkSettings, deadline_s: float) -> None:
        self._put(
            {
                "type": "hello",
                "version": PROTOCOL_VERSION,
                "session": settings.session,
                "heartbeat_ms": settings.heartbeat_ms,
            }
        )
        poll = select.poll()
        poll.register(self._lines.fileno(), select.POLLIN)
        while (left_s := deadline_s - time.monotonic()) > 0:
            poll.poll(left_s * 1e3)
            messages = self._lines.receive()
            if not messages:
                continue
            if messages[0].get("type") == "refused":
                in_use = messages[0].get("code") == "session_in_use"
                reason = printable(str(messages[0].get("reason", "")))
                raise LinkLost(
                    f"the provider refused the session: {reason}", code="session_in_use" if in_use else "link_refused"
                )
            if messages[0].get("type") != "welcome" or messages[0].get("version") != PROTOCOL_VERSION:
                raise LinkLost("the provider does not speak this protocol", code="link_garbage")
            self._early = self._understood(messages[1:])
            self._heard_s = time.monotonic()
            return
        raise LinkLost("the provider does not answer the logon", code="link_silent")

    @property
    def backlog(self) -> int:
        """Bytes that the provider has not taken yet."""
        return self._lines.backlog

    def fileno(self) -> int:
        """The socket's."""
        return self._lines.fileno()

    def send(self, request: OutboundRequest) -> None:
        """Send a request."""
        self._put({"type": "request", "request": request.texts()})

    def query(self, request_id: str) -> None:
        """Ask what has become of a request."""
        self._put({"type": "query", "request_id": request_id})

    def acknowledge(self, request_id: str, sequence: int) -> None:
        """Say that reports are safe."""
        self._put({"type": "acknowledge", "request_id": request_id, "sequence": sequence})

    def receive(self) -> list[Heard]:
        """What has come by now."""
        heard, self._early = self._early, []
        if not heard or not self._lines.is_ended:
            messages = self._lines.receive()
            if messages:
                self._heard_s = time.monotonic()
            heard += self._understood(messages)
        return heard

    def tend(self) -> None:
        """Flush, send a heartbeat if one is due, and give up a provider that is silent."""
        self._lines.flush()
        now_s = time.monotonic()
        if now_s - self._heard_s > _SILENT_BEATS * self._beat_s:
            raise LinkLost("nothing was heard of the provider", code="link_silent")
        if now_s - self._sent_s >= self._beat_s:
            self._put({"type": "heartbeat"})

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()

    def _put(self, message: Mapping[str, Any]) -> None:
        self._sent_s = time.monotonic()
        self._lines.put(message)

    def _understood(self, messages: list[dict[str, Any]]) -> list[Heard]:
        try:
            return [heard for message in messages if (heard := _heard(message)) is not None]
        except LinkLost:
            raise
        except CopyriskError as failure:
            raise LinkLost(f"the provider said something unreadable: {failure}", code="link_garbage") from None


def _heard(message: Mapping[str, Any]) -> Heard | None:
    kind = message.get("type")
    if kind == "heartbeat":
        return None
    if kind == "report":
        return parse_report(message)
    if kind == "working":
        return StillWorking(_request_id(message))
    if kind == "not_known":
        return NoSuchRequest(_request_id(message))
    raise LinkLost(f"a message of unknown type: {str(kind)[:40]!a}", code="link_garbage")


def _request_id(message: Mapping[str, Any]) -> str:
    said = message.get("request_id")
    return check_order_id(said if isinstance(said, str) else "")


def connect_provider(settings: LinkSettings) -> ProviderLink:
    """A session with the provider of this URL; its scheme says which kind of link it is.

    Raises
    ------
    ConfigError
        `bad_provider_url`.
    LinkLost
        `link_unreachable`, `session_in_use`, `link_refused`, `link_silent`, `link_garbage`.
    """
    return TcpLink(settings)


def _connected(settings: LinkSettings) -> socket.socket:
    host, port = parse_provider_url(settings.url)
    try:
        return socket.create_connection((host, port), settings.connect_timeout_ms / 1e3)
    except OSError as failure:
        raise LinkLost(f"no connection to the provider: {failure}", code="link_unreachable") from None


def parse_provider_url(url: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`.

    Raises
    ------
    ConfigError
        `bad_provider_url`.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.scheme != "tcp" or parts.path:
        raise ConfigError("the provider's URL must be tcp://host:port", code="bad_provider_url")
    return host, port
