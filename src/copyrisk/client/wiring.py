"""What both clients have in common of `httpx`: how it is set up, and what its answers and failures mean."""

import ssl
from typing import Any

import httpx

from copyrisk.client.streaming import SILENT_S
from copyrisk.client.trying import Broken, Received

_CONNECT_S = 3.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: Errors before anything of a request has left.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


STREAM_TIMEOUT = httpx.Timeout(_CONNECT_S, read=SILENT_S)


def options(
    url: str, timeout_s: float, tls: ssl.SSLContext | None, connections: int, *, allow_plain_http: bool
) -> dict[str, Any]:
    """How `httpx` is to be set up; parameters as of `Client`.

    Raises
    ------
    ValueError
        The address is none of a server, or would be spoken to without encryption.
    """
    where = httpx.URL(url)
    if where.scheme not in ("http", "https") or not where.host or where.path != "/" or where.query or where.userinfo:
        raise ValueError("the address is https://HOST or https://HOST:PORT, and nothing else: the path is signed")
    if where.scheme == "http" and where.host not in _LOOPBACK and not allow_plain_http:
        raise ValueError("without encryption anybody on the way could read, and answer: https://, or allow_plain_http")
    return {
        "base_url": where,
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
        "verify": tls or ssl.create_default_context(),
        "limits": httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        "trust_env": False,  # no proxy that somebody put into the environment
    }


def received(answer: httpx.Response, body: bytes) -> Received:
    """An answer with a body that was read."""
    return Received(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, body)


def broken(failure: httpx.TransportError | httpx.DecodingError) -> Broken:
    """A failure: what it was, and whether something had left by then."""
    return Broken(f"{type(failure).__name__}: {failure}"[:300], not isinstance(failure, _NOT_SENT))
