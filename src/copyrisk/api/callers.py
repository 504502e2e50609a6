"""Callers who were let in; and those that keys stand for, as their records in Redis say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from copyrisk import keys
from copyrisk.api.answers import ApiError
from copyrisk.api.line import Line
from copyrisk.api.scopes import Grant, Scope, known_scopes, parse_grant
from copyrisk.api.tokens import Claims
from copyrisk.commands import REQUESTER_CHARS
from copyrisk.identifiers import Account
from copyrisk.signing import MasterSecret
from copyrisk.store.api_keys import BadRecord, KeyRecord, KeyState, parse_record

log = structlog.get_logger(__name__)

#: A record is read again after so long: a key that is revoked may do nothing more by then.
RECORD_MS = 1_000
_RECORDS_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who was let in.

    Attributes
    ----------
    name : str
        Id of the key, or `sub` of the token.
    is_service : bool
        Whether it was a key.
    expires_ms : int or None
        Until when; `None`: no end is known.
    """

    name: str
    scopes: frozenset[Scope]
    accounts: Grant
    is_service: bool
    expires_ms: int | None = None

    def has(self, scope: Scope) -> bool:
        """Whether it may do such things at all."""
        return scope in self.scopes

    def sees(self, account: Account) -> bool:
        """Whether an account is the caller's."""
        return self.accounts.covers(account)

    def check_scope(self, scope: Scope) -> None:
        """Refuse what is beyond the caller's scopes.

        Raises
        ------
        ApiError
            `missing_scope`.
        """
        if scope not in self.scopes:
            raise ApiError(f"this needs the scope {scope}", code="missing_scope")

    @property
    def label(self) -> str:
        """Who it is, as records say it: printable, and never longer than `REQUESTER_CHARS`."""
        kind = "key" if self.is_service else "person"
        return "".join(sign if " " <= sign <= "~" else "?" for sign in f"{kind} {self.name}")[:REQUESTER_CHARS]

    def check_account(self, account: Account) -> None:
        """Refuse an account that is not the caller's; the answer does not tell whether it exists.

        Raises
        ------
        ApiError
            `account_forbidden`.
        """
        if not self.accounts.covers(account):
            raise ApiError(f"the account {account} is not yours", code="account_forbidden")


def caller_of_claims(claims: Claims) -> Caller:
    """Whom a token stands for."""
    return Caller(claims.subject, claims.scopes, claims.grant, is_service=False, expires_ms=claims.expires_s * 1_000)


def _caller_of_record(record: KeyRecord) -> Caller:
    scopes, grant = known_scopes(record.scopes), parse_grant(record.accounts)
    return Caller(record.key_id, scopes, grant, is_service=True, expires_ms=record.expires_ms)


class _Known(NamedTuple):
    """A record as it was when it was read."""

    record: KeyRecord
    caller: Caller
    read_ms: int


class KeyCallers:
    """Whom keys stand for; their records are remembered for `RECORD_MS`, and not a moment longer.

    A key that was seen revoked stays so for this process, whatever is put in the place of its record.
    """

    def __init__(self, line: Line, master: MasterSecret, now_ms: Callable[[], int]) -> None:
        self._line, self._master, self._now_ms = line, master, now_ms
        self._known: dict[str, _Known] = {}
        self._revoked: set[str] = set()

    async def find(self, key_id: str) -> Caller:
        """The caller that a key stands for, to be asked by who has shown its secret.

        Raises
        ------
        ApiError
            `unknown_key`, `revoked_key`, `expired_key`.
        StoreError, StoreUnavailable
        """
        known, now_ms = self._known.get(key_id), self._now_ms()
        if known is None or not 0 <= now_ms - known.read_ms < RECORD_MS:
            known = await self._read(key_id, now_ms)
        state = known.record.state(now_ms)
        if state is KeyState.REVOKED or key_id in self._revoked:
            raise ApiError("the key was revoked", code="revoked_key")
        if state is KeyState.EXPIRED:
            raise ApiError("the key has expired", code="expired_key")
        return known.caller

    async def _read(self, key_id: str, now_ms: int) -> _Known:
        self._known.pop(key_id, None)
        text = await self._line.call("HGET", keys.API_KEYS, key_id)
        if not isinstance(text, bytes):
            raise _unknown()
        try:
            record = parse_record(key_id, text, self._master)
        except BadRecord:
            log.critical("api_key_forged", key_id=key_id)
            raise _unknown() from None
        if record.revoked_ms is not None:
            self._revoked.add(key_id)
        elif key_id in self._revoked:  # an older record was put back
            log.critical("api_key_revived", key_id=key_id)
        known = self._known[key_id] = _Known(record, _caller_of_record(record), now_ms)
        if len(self._known) > _RECORDS_LIMIT:
            del self._known[next(iter(self._known))]
        return known


def _unknown() -> ApiError:
    return ApiError("there is no such key", code="unknown_key", status=401)
