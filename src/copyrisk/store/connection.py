"""Connecting to a server, judging it, and the words for what can go wrong.

redis-py opens connections: TLS, passwords, ACL users, sockets. It must not retry: nothing that changes state is
sent twice blindly, and a tick that waits for a dead server is late for all accounts.
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import hiredis
import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import NoBackoff
from redis.retry import Retry

from copyrisk.errors import StoreError, StoreUnavailable

T = TypeVar("T")

OLDEST_REDIS = (7, 0)
#: How errors begin that say something of the key that was asked for, and nothing of other commands.
OF_ONE_KEY = ("WRONGTYPE", "NOPERM")
#: How the error begins that no other user and no later time mends.
WRONG_TYPE = "WRONGTYPE"
_SCHEMES = ("redis://", "rediss://", "unix://")
#: What servers answer while they cannot serve, and the code it gets.
_ANSWERS = (
    ("NOAUTH", "server_auth_failed", "the server wants a password"),
    ("WRONGPASS", "server_auth_failed", "the server refused the user or password"),
    ("LOADING", "server_loading", "the server is still loading its data"),
    ("MASTERDOWN", "server_loading", "the server has lost its master"),
)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Which server it is."""

    kind: str
    version: tuple[int, ...]
    role: str
    maxmemory_policy: str

    def __str__(self) -> str:
        text = f"{self.kind} {'.'.join(map(str, self.version))}, {self.role}"
        return text if self.maxmemory_policy == "noeviction" else f"{text}, maxmemory-policy {self.maxmemory_policy}"


def connect(url: str, *, connect_timeout_ms: int, reply_timeout_ms: int) -> redis.Redis:
    """A client that connects when first used, never retries, and gives up after its time limits.

    Raises
    ------
    StoreError
        `bad_redis_url`.
    """
    retry = Retry(NoBackoff(), 0)
    return _made(redis.Redis.from_url, url, connect_timeout_ms, reply_timeout_ms, client_name="copyrisk", retry=retry)


def connect_async(
    url: str, *, connect_timeout_ms: int, reply_timeout_ms: int, connections: int, decodes: bool = False
) -> "redis.asyncio.Redis":
    """The same for an event loop: at most so many connections, for which commands wait in turn.

    Parameters
    ----------
    decodes : bool
        Whether replies are texts (what is not UTF-8 is escaped) instead of bytes.

    Raises
    ------
    StoreError
        `bad_redis_url`.
    """
    pool = _made(
        redis.asyncio.BlockingConnectionPool.from_url,
        url,
        connect_timeout_ms,
        reply_timeout_ms,
        max_connections=connections,
        timeout=reply_timeout_ms / 1000.0,
        client_name="copyrisk-api",
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
        decode_responses=decodes,
        encoding_errors="backslashreplace",
    )
    return redis.asyncio.Redis.from_pool(pool)


def _made(make: Callable[..., T], url: str, connect_timeout_ms: int, reply_timeout_ms: int, **options: Any) -> T:
    """What redis-py makes of a URL; raises as `connect`."""
    if not url.startswith(_SCHEMES):
        raise StoreError(f"the Redis URL must start with one of {', '.join(_SCHEMES)}", code="bad_redis_url")
    limits = {"socket_connect_timeout": connect_timeout_ms / 1000.0, "socket_timeout": reply_timeout_ms / 1000.0}
    try:
        return make(url, protocol=3, **limits, **options)
    except (ValueError, TypeError) as failure:
        raise StoreError(f"the Redis URL cannot be used: {failure}", code="bad_redis_url") from None


def open_connection(client: redis.Redis) -> Any:
    """A connection of a client, greeted and logged in.

    Raises
    ------
    redis.RedisError, OSError
    StoreError
        `protocol_fault`: the server's greeting makes no sense.
    """
    try:
        return client.connection_pool.get_connection()
    except (redis.RedisError, hiredis.HiredisError, OSError):
        raise
    except Exception as fault:  # whatever the parser makes of it
        raise StoreError(f"the server's greeting makes no sense: {fault!r}"[:200], code="protocol_fault") from fault


def drop(client: redis.Redis, connection: Any) -> None:
    """Close a connection that was taken from a client, whatever state it is in."""
    with contextlib.suppress(Exception):
        connection.disconnect()
    with contextlib.suppress(Exception):
        client.connection_pool.release(connection)


def check_server(client: redis.Redis) -> ServerInfo:
    """Ask the server what it is.

    Raises
    ------
    StoreError, StoreUnavailable
        `server_unreachable`, `server_auth_failed`, `server_no_permission`, `server_loading`, `server_too_old`,
        `server_not_redis`.
    """
    try:
        answer: Any = client.info()
    except (redis.RedisError, hiredis.HiredisError, OSError) as failure:
        raise store_error(failure) from None
    return judge_server(answer)


def judge_server(info: Mapping[str, Any]) -> ServerInfo:
    """What an `INFO` answer says; any Valkey will do (it also reports a `redis_version`), a Redis from 7.0."""
    kind = "Valkey" if "valkey_version" in info else "Redis"
    text = str(info.get("valkey_version") or info.get("redis_version") or "")
    if re.match(r"\d+\.\d+", text) is None:
        raise StoreError("the server does not say that it is Redis or Valkey", code="server_not_redis")
    version = tuple(int(part) for part in re.findall(r"\d+", text)[:3])
    if kind == "Redis" and version < OLDEST_REDIS:
        raise StoreError(f"the server is Redis {text}; 7.0 or later is needed", code="server_too_old")
    return ServerInfo(kind, version, str(info.get("role", "?")), str(info.get("maxmemory_policy", "noeviction")))


def store_error(failure: Exception) -> StoreError:
    """The error of this package for one of redis-py, hiredis or the socket; the text holds no secret."""
    if isinstance(failure, StoreError):
        return failure
    text = str(failure)
    for word, code, meaning in _ANSWERS:
        if word in text or (word == "WRONGPASS" and "invalid username-password" in text.lower()):
            return StoreError(meaning, code=code)
    if isinstance(failure, redis.exceptions.NoPermissionError):
        return StoreError("the server user lacks a permission", code="server_no_permission")
    if isinstance(failure, redis.AuthenticationError):
        return StoreError(f"the server refused the login: {text}", code="server_auth_failed")
    if isinstance(failure, redis.BusyLoadingError):
        return StoreError("the server is still loading its data", code="server_loading")
    if isinstance(failure, hiredis.HiredisError | redis.InvalidResponse | UnicodeDecodeError):
        return StoreError(f"what answers is not a Redis server: {text[:120]}", code="server_not_redis")
    if isinstance(failure, redis.TimeoutError | TimeoutError):
        return StoreUnavailable("the server did not answer in time")
    if isinstance(failure, redis.ConnectionError | OSError):
        return StoreUnavailable(f"no connection to the server: {text[:200]}", code="server_unreachable")
    return StoreError(f"the server refused: {text[:200]}")
