"""Accounts of the database, as long as nothing that was booked to them is still on its way there.

A balance that lacks an amount of the history would be wrong for good once Redis has it: the amount is added to the
database's balance later, and to that of Redis never.
"""

from collections.abc import Mapping
from typing import Any

import redis

from copyrisk import keys
from copyrisk.errors import StoreError
from copyrisk.identifiers import Account
from copyrisk.store.connection import store_error
from copyrisk.store.filler import Source
from copyrisk.store.functions import text, texts
from copyrisk.store.letters import list_letters
from copyrisk.store.pipe import Pipe, pack

_PAGE = 1_000
#: Reading on would take too long; so much means that nobody writes history now.
_PAGES = 20


class SettledSource:
    """A source that hands out an account when all that was booked to it has arrived."""

    def __init__(self, pipe: Pipe, source: Source) -> None:
        self._pipe, self._source = pipe, source

    def account(self, account: Account) -> Mapping[str, str] | None:
        """Configuration of an account, `None` if there is no such account.

        Raises
        ------
        StoreError, StoreUnavailable
            `history_pending`: something of the account is on its way, or nobody can tell; and what the source raises.
        """
        # In this order: an entry goes from the outbox to the history, then to the database or the dead letters, and
        # is always at the next place before it leaves the last one.
        if self._waits_in_outbox(account) or self._waits_in_history(account) or self._lies_dead(account):
            raise StoreError(f"history of {account} has not arrived in the database", code="history_pending")
        return self._source.account(account)

    def group(self, name: str, symbol: str) -> Mapping[str, str] | None:
        """Terms of a group for a symbol, `None` if it has none."""
        return self._source.group(name, symbol)

    def _waits_in_outbox(self, account: Account) -> bool:
        return bool(self._ask(pack("XLEN", keys.outbox(account))))

    def _waits_in_history(self, account: Account) -> bool:
        start = "-"
        for _ in range(_PAGES):
            entries = self._ask(pack("XRANGE", keys.HISTORY, start, "+", "COUNT", _PAGE))
            if any(_books_to(account, texts(words)) for _, words in entries):
                return True
            if len(entries) < _PAGE:
                return False
            start = f"({text(entries[-1][0])}"
        return True

    def _lies_dead(self, account: Account) -> bool:
        letters = list_letters(self._pipe, _PAGE)
        if len(letters) == _PAGE:
            return True
        return any(letter.stream == keys.HISTORY and _books_to(account, letter.fields) for letter in letters)

    def _ask(self, request: bytes) -> Any:
        (reply,) = self._pipe.exchange([request])
        if isinstance(reply, Exception):
            raise store_error(redis.ResponseError(str(reply)))
        return reply


def _books_to(account: Account, said: Mapping[str, str]) -> bool:
    whose = said.get("user_type"), said.get("user_id")
    return bool(said.get("entry")) and whose == (account.type.value, account.id)
