"""The simulated provider's connections: who is there, who has the session, who is silent."""

import selectors
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from copyrisk.errors import ConfigError
from copyrisk.gateway.lines import Lines, LinkLost

log = structlog.get_logger(__name__)

_BACKLOG_BYTES = 1 << 26
_CONNECTIONS_LIMIT = 64
_SILENT_BEATS = 3


@dataclass(slots=True, eq=False)
class Peer:
    """A connection; one with a `session` is a client's, others only command."""

    lines: Lines
    heard_s: float
    session: str = ""
    beat_s: float = 0.0
    sent_s: float = 0.0
    silent_until_s: float = 0.0


class Peers:
    """All connections of a listening socket.

    Raises
    ------
    ConfigError
        `cannot_listen`.
    """

    def __init__(self, host: str, port: int) -> None:
        self._there: list[Peer] = []
        try:
            self._listener = socket.create_server((host, port))
        except (OSError, OverflowError) as failure:
            raise ConfigError(f"cannot listen on {host}:{port}: {failure}", code="cannot_listen") from None
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.port = int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Close them all."""
        for peer in list(self._there):
            self.drop(peer)
        self._selector.close()
        self._listener.close()

    def wait(self, longest_s: float) -> list[tuple[Peer, dict[str, Any]]]:
        """What was said, waiting at most so long for it."""
        heard = []
        for key, _ in self._selector.select(longest_s):
            peer = key.data
            if peer is None:
                self._accept()
                continue
            try:
                peer.lines.flush()
                messages = peer.lines.receive()
            except LinkLost as failure:
                self.drop(peer, failure)
                continue
            if messages:
                peer.heard_s = time.monotonic()
            heard += [(peer, message) for message in messages]
        return heard

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except OSError:
            return
        if len(self._there) >= _CONNECTIONS_LIMIT:
            connected.close()
            return
        peer = Peer(Lines(connected, backlog_bytes=_BACKLOG_BYTES), time.monotonic())
        self._there.append(peer)
        self._selector.register(peer.lines, selectors.EVENT_READ, peer)

    def with_session(self, name: str = "") -> Peer | None:
        """The connection that has this session, or any session."""
        return next((peer for peer in self._there if peer.session and name in ("", peer.session)), None)

    def put(self, peer: Peer, message: Mapping[str, Any]) -> None:
        """Say something, unless the connection is gone."""
        if peer not in self._there:
            return
        try:
            peer.lines.put(message)
        except LinkLost as failure:
            self.drop(peer, failure)
            return
        peer.sent_s = time.monotonic()

    def drop(self, peer: Peer, failure: LinkLost | None = None) -> None:
        """Close a connection."""
        if failure is not None and failure.code != "link_closed":
            log.warning("client_dropped", code=failure.code, reason=str(failure))
        if peer in self._there:
            self._there.remove(peer)
            if peer.lines in self._selector.get_map():
                self._selector.unregister(peer.lines)
            peer.lines.close()

    def silence(self, peer: Peer, seconds: float) -> None:
        """Neither read nor say anything for a while; the connection stays, and a dead client goes unnoticed."""
        peer.silent_until_s = time.monotonic() + seconds
        if peer.lines in self._selector.get_map():
            self._selector.unregister(peer.lines)

    def is_silent(self, peer: Peer) -> bool:
        """Whether nothing is said to it now."""
        return time.monotonic() < peer.silent_until_s

    def tend(self) -> None:
        """Wake those whose silence is over, send what waits and heartbeats, drop clients that are gone."""
        now_s = time.monotonic()
        for peer in list(self._there):
            if now_s < peer.silent_until_s:
                continue
            if peer.silent_until_s:
                peer.silent_until_s, peer.heard_s = 0.0, now_s
                self._selector.register(peer.lines, selectors.EVENT_READ, peer)
            if peer.lines.backlog:
                self._selector.modify(peer.lines, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)
            else:
                self._selector.modify(peer.lines, selectors.EVENT_READ, peer)
            if not peer.session:
                continue
            if now_s - peer.heard_s > _SILENT_BEATS * peer.beat_s:
                self.drop(peer, LinkLost("the client is silent", code="link_silent"))
            elif now_s - peer.sent_s > peer.beat_s:
                self.put(peer, {"type": "heartbeat"})
