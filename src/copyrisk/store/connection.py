"""Interim."""
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from copyrisk.errors import StoreError, StoreUnavailable


def connect(url, *, connect_timeout_ms, reply_timeout_ms):
    return redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_connect_timeout=connect_timeout_ms/1e3, socket_timeout=reply_timeout_ms/1e3, client_name="copyrisk")


def store_error(exc):
    if isinstance(exc, StoreError):
        return exc
    return StoreUnavailable(f"{exc}")
