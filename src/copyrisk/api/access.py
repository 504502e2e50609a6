"""Who asks, and whether they may: signed requests of services, tokens of people, scopes, accounts, rates.

A signature is looked at before anything else is: nobody without a secret learns which keys there are, or has anything
written. The secret of a key follows from the master secret and its id, so for keys that do not exist it is worked out
as well, and the answer is the same.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from starlette.requests import ClientDisconnect, Request

from copyrisk import keys
from copyrisk.api.answers import ApiError, status_of_failure
from copyrisk.api.callers import Caller, KeyCallers, caller_of_claims
from copyrisk.api.line import Line, Mark
from copyrisk.api.rates import Buckets, peer_name, retry_after
from copyrisk.api.scopes import Scope
from copyrisk.api.tokens import TokenKeys
from copyrisk.api_sections import ApiSettings
from copyrisk.keyring import master_secret
from copyrisk.signing import (
    IDEMPOTENCY_HEADER,
    KEY_HEADER,
    NONCE_HEADER,
    SIGNATURE_HEADER,
    TIME_HEADER,
    MasterSecret,
    Unsignable,
    canonical_text,
    is_key_id,
    is_signed,
)

__all__ = ["Access", "Caller"]

log = structlog.get_logger(__name__)

#: How much longer a nonce is kept than its request could be sent again: clocks of several processes may differ by it.
NONCE_SLACK_MS = 60_000
#: Refusals that a peer may have: at once, and a second.
_FAILURES, _FAILURES_PER_S = 50, 2.0
_BEARER = "bearer "
_AUTHORIZATION = b"authorization"
_IDEMPOTENCY = IDEMPOTENCY_HEADER.lower().encode()
_HEADERS = (KEY_HEADER, TIME_HEADER, NONCE_HEADER, SIGNATURE_HEADER)
_SIGNING = tuple(name.lower().encode() for name in _HEADERS)
_WATCHED = frozenset((_AUTHORIZATION, _IDEMPOTENCY, *_SIGNING))
_WRONG_SIGNATURE = "the signature is not that of this request"


def wall_clock_ms() -> int:
    """Unix time."""
    return time.time_ns() // 1_000_000


#: Refusals of who has shown a key's secret; of others the name of a key is only what they say.
_OF_SHOWN_SECRETS = ("expired_signature", "replayed_request", "unknown_key", "revoked_key", "expired_key")


class Access:
    """Lets callers in, or not.

    Parameters
    ----------
    line : Line
    now_ms, now_s : callable
        Unix time; and a clock that nobody sets, for rates.

    Raises
    ------
    ConfigError
        `api_secret_missing`, `api_secret_exposed`, `api_secret_unreadable`, `token_keys_unusable`.
    """

    def __init__(
        self,
        settings: ApiSettings,
        line: Line,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._master: MasterSecret = master_secret(settings)
        self._tokens = _token_keys(settings)
        self._line, self._now_ms, self._now_s, self._skew_ms = line, now_ms, now_s, settings.clock_skew_ms
        self._callers = Buckets(settings.rate_per_s, settings.rate_burst)
        self._failures = Buckets(_FAILURES_PER_S, _FAILURES)
        self._keys = KeyCallers(line, self._master, now_ms)

    async def admit(self, request: Request, scope: Scope) -> Caller:
        """Who asks, if they may do such things. Of a signed request the whole body has been read then.

        Raises
        ------
        ApiError
            `missing_credentials`, `ambiguous_credentials`, `invalid_signature`, `expired_signature`,
            `replayed_request`, `unknown_key`, `revoked_key`, `expired_key`, `invalid_token`, `expired_token`,
            `missing_scope`, `rate_limited`, `invalid_idempotency_key`, `incomplete_request`.
        StoreError, StoreUnavailable
            It cannot be told; nothing was done.
        """
        caller, mark = await self.identify(request, scope)
        if mark is not None and await self._line.call("SET", mark.key, "1", "NX", "PX", mark.keep_ms) is None:
            raise self.replayed(request, caller)
        return caller

    async def identify(self, request: Request, scope: Scope) -> tuple[Caller, Mark | None]:
        """The same for who sets the mark with what is done; if it was there, nothing is, and `replayed` is raised.

        Raises
        ------
        ApiError, StoreError, StoreUnavailable
            As `admit`.
        """
        try:
            caller, mark = await self._identify(request)
        except ApiError as refusal:
            raise self._refused(request, refusal) from None
        caller.check_scope(scope)
        return caller, mark

    def replayed(self, request: Request, caller: Caller) -> ApiError:
        """What somebody is told who sends a request that was sent before; the caller's rate is not theirs."""
        self._callers.give_back(caller.name)
        return self._refused(request, ApiError("this request was sent before", code="replayed_request"))

    async def recheck(self, caller: Caller) -> None:
        """Whether somebody who was let in may still stay, as the reader of a long stream does.

        Raises
        ------
        ApiError
            `unknown_key`, `revoked_key`, `expired_key`, `expired_token`.
        StoreError, StoreUnavailable
        """
        if caller.is_service:
            await self._keys.find(caller.name)
        elif caller.expires_ms is not None and self._now_ms() >= caller.expires_ms + self._skew_ms:
            raise ApiError("the token has expired", code="expired_token")

    async def _identify(self, request: Request) -> tuple[Caller, Mark | None]:
        given = _credentials(request)
        is_signed_request = any(name in given for name in _SIGNING)
        if _AUTHORIZATION not in given:
            if not is_signed_request:
                raise ApiError("who are you? a token, or a signature", code="missing_credentials")
            return await self._of_signature(request, given)
        if is_signed_request:
            raise ApiError("a token or a signature, not both", code="ambiguous_credentials")
        return self._of_token(request, given[_AUTHORIZATION]), None

    # ---- tokens

    def _of_token(self, request: Request, authorization: str) -> Caller:
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise ApiError("the authorization is 'Bearer' and a token", code="missing_credentials")
        if self._tokens is None:
            raise ApiError("no tokens are taken here", code="invalid_token")
        token = authorization[len(_BEARER) :].strip()
        claims = self._tokens.known(token, self._now_ms() / 1e3)
        if claims is None:
            wait_s = self._failures.wait_s(_peer(request), self._now_s())
            if wait_s:  # finding out about a token costs more than sending one
                raise _too_often(wait_s)
            claims = self._tokens.verify(token)
        self._take(f"token {claims.subject}")
        return caller_of_claims(claims)

    # ---- signatures

    async def _of_signature(self, request: Request, given: Mapping[bytes, str]) -> tuple[Caller, Mark]:
        if not all(name in given for name in _SIGNING):
            raise ApiError(f"a signed request has {', '.join(_HEADERS)}", code="missing_credentials")
        key_id, time_ms, nonce, signature = (given[name] for name in _SIGNING)
        if not is_key_id(key_id):
            raise ApiError(_WRONG_SIGNATURE, code="invalid_signature")
        try:
            body = await request.body()
        except ClientDisconnect:
            raise ApiError("the body ended early", code="incomplete_request", status=400) from None
        try:
            key = given.get(_IDEMPOTENCY, "")
            method, target = request.scope["method"], _target(request)
            text = canonical_text(method, target, body, time_ms=time_ms, nonce=nonce, idempotency_key=key)
        except Unsignable as fault:
            raise ApiError(str(fault), code=fault.code) from None
        if not is_signed(self._master.secret_of(key_id), text, signature):
            raise ApiError(_WRONG_SIGNATURE, code="invalid_signature")
        self._check_time(int(time_ms))
        caller = await self._keys.find(key_id)
        self._take(key_id)  # before its nonce is written anywhere
        # Nobody sends this request again while its time is accepted.
        return caller, Mark(keys.api_nonce(key_id, nonce), 2 * self._skew_ms + NONCE_SLACK_MS)

    def _check_time(self, said_ms: int) -> None:
        now_ms = self._now_ms()
        if abs(now_ms - said_ms) > self._skew_ms:
            late = "ago" if said_ms < now_ms else "ahead"
            raise ApiError(
                f"the request was signed {abs(now_ms - said_ms) / 1e3:.0f} s {late}; "
                f"at most {self._skew_ms / 1e3:g} s are taken for clocks that differ",
                code="expired_signature",
            )

    # ---- rates

    def _take(self, name: str) -> None:
        wait_s = self._callers.take(name, self._now_s())
        if wait_s:
            raise _too_often(wait_s)

    def _refused(self, request: Request, refusal: ApiError) -> ApiError:
        """What a caller without standing is told: why; or, if it has happened too often, to wait."""
        if status_of_failure(refusal) != 401:
            return refusal
        peer = _peer(request)
        wait_s = self._failures.take(peer, self._now_s())
        if wait_s:
            return _too_often(wait_s)
        named = {"key": request.headers.get(KEY_HEADER)} if refusal.code in _OF_SHOWN_SECRETS else {}
        log.warning("access_refused", code=refusal.code, peer=peer, **named)
        refusal.headers["WWW-Authenticate"] = "Bearer"
        return refusal


def _token_keys(settings: ApiSettings) -> TokenKeys | None:
    if settings.token_keys_file is None:
        return None
    path, leeway_s = Path(settings.token_keys_file), settings.clock_skew_ms / 1e3
    return TokenKeys(path, audience=settings.token_audience, issuer=settings.token_issuer, leeway_s=leeway_s)


def _credentials(request: Request) -> dict[bytes, str]:
    """The headers that say who asks; each may be there once."""
    given: dict[bytes, str] = {}
    for name, value in request.scope["headers"]:
        if name in _WATCHED:
            if name in given:
                code = "invalid_idempotency_key" if name == _IDEMPOTENCY else "ambiguous_credentials"
                raise ApiError(f"the header {name.decode()} is there more than once", code=code)
            given[name] = value.decode("latin-1")
    return given


def _target(request: Request) -> bytes:
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return b"%b?%b" % (path, query) if query else path


def _peer(request: Request) -> str:
    return peer_name(None if request.client is None else request.client.host)


def _too_often(wait_s: float) -> ApiError:
    headers = {"Retry-After": retry_after(wait_s)}
    return ApiError("that is too often: wait", code="rate_limited", headers=headers)
