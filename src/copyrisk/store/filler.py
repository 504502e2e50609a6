"""Putting into Redis what only the database knows: configurations of accounts, terms of groups."""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from copyrisk import keys
from copyrisk.errors import StoreError, StoreUnavailable, TryLater
from copyrisk.identifiers import Account
from copyrisk.market import InstrumentKey
from copyrisk.store.functions import fill_request, refused
from copyrisk.store.pipe import Pipe

log = structlog.get_logger(__name__)

_ABSENT_S, _DOWN_S = 10.0, 2.0
_ABSENT_LIMIT = 10_000


class Source(Protocol):
    """Where accounts and groups are kept."""

    def account(self, account: Account) -> Mapping[str, str] | None:
        """Configuration of an account, `None` if there is no such account."""

    def group(self, name: str, symbol: str) -> Mapping[str, str] | None:
        """Terms of a group for a symbol, `None` if it has none."""


class Filler:
    """Fills hashes that are not there; what the source does not have is not asked for again for a while."""

    def __init__(self, pipe: Pipe, source: Source | None) -> None:
        self._pipe, self._source = pipe, source
        self._absent_until: dict[str, float] = {}
        self._down_until = 0.0

    def account(self, account: Account) -> bool:
        """Put an account's configuration into Redis; returns whether it is there now.

        Raises
        ------
        TryLater
            The source cannot tell now.
        """
        source = self._source
        return source is not None and self._fill(keys.config(account), lambda: source.account(account))

    def group(self, key: InstrumentKey) -> bool:
        """Put a group's terms for a symbol into Redis; returns whether they are there now; raises as `account`."""
        source = self._source
        return source is not None and self._fill(
            keys.group(key.group, key.symbol), lambda: source.group(key.group, key.symbol)
        )

    def _fill(self, key: str, ask: Callable[[], Mapping[str, str] | None]) -> bool:
        now_s = time.monotonic()
        if self._absent_until.get(key, 0.0) > now_s:
            return False
        if self._down_until > now_s:
            raise TryLater("the database did not answer a moment ago", code="database_unavailable")
        try:
            found = ask()
        except StoreError as failure:
            if isinstance(failure, StoreUnavailable):  # it may take long to say so; not for every command
                self._down_until = time.monotonic() + _DOWN_S
            log.error("database_cannot_tell", key=key, code=failure.code, reason=str(failure))
            raise TryLater(str(failure), code=failure.code) from None
        if not found:
            if len(self._absent_until) >= _ABSENT_LIMIT:
                self._absent_until.clear()
            self._absent_until[key] = now_s + _ABSENT_S
            return False
        (reply,) = self._pipe.exchange([fill_request(key, found)])
        refusal = refused(reply)
        if refusal is not None:
            raise refusal
        log.info("filled_from_database", key=key)
        return True
