"""Where the simulated provider has its prices from: the broker's own quotes in Redis, or fixed ones."""

from collections.abc import Iterable, Mapping

import redis
import structlog

from copyrisk import keys
from copyrisk.errors import StoreError
from copyrisk.gateway.script import parse_quote
from copyrisk.gateway.venue import Quote
from copyrisk.store.connection import connect
from copyrisk.store.functions import refused
from copyrisk.store.pipe import Pipe, pack

log = structlog.get_logger(__name__)

_TIMEOUT_MS = 2_000


class QuoteSource:
    """Quotes that are fixed, or were set by hand; the others are read from Redis, if it has a URL of one.

    Raises
    ------
    StoreError
        `bad_redis_url`.
    """

    def __init__(self, fixed: Mapping[str, Quote], redis_url: str | None) -> None:
        self.fixed = dict(fixed)
        client: redis.Redis | None = None
        if redis_url is not None:
            client = connect(redis_url, connect_timeout_ms=_TIMEOUT_MS, reply_timeout_ms=_TIMEOUT_MS)
        self._pipe = Pipe(client) if client is not None else None
        self._is_broken = False

    def read(self, symbols: Iterable[str]) -> dict[str, Quote]:
        """The quotes of these symbols that are known; none is made up for the others."""
        wanted = list(symbols)
        found = {symbol: self.fixed[symbol] for symbol in wanted if symbol in self.fixed}
        missing = [symbol for symbol in wanted if symbol not in found]
        if self._pipe is None or not missing:
            return found
        try:
            replies = self._pipe.exchange([pack("HMGET", keys.market(symbol), "bid", "ask") for symbol in missing])
        except StoreError as failure:
            if not self._is_broken:
                log.warning("quotes_unavailable", code=failure.code, reason=str(failure))
            self._is_broken = True
            return found
        self._is_broken = False
        for symbol, sides in zip(missing, replies, strict=True):
            if refused(sides) is None:
                quote = parse_quote(*(side.decode("ascii", "replace") if side else None for side in sides))
                if quote is not None:
                    found[symbol] = quote
        return found

    def close(self) -> None:
        """Drop the connection."""
        if self._pipe is not None:
            self._pipe.close()
