"""Tokens of people: JSON Web Tokens under public keys that the settings name.

Only asymmetric algorithms, and of those only the ones that fit the type of the key: what a token says of itself never
chooses how it is checked.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from copyrisk.api.answers import ApiError
from copyrisk.api.scopes import Grant, Scope, known_scopes, parse_grant
from copyrisk.api.token_keys import TokenKey, algorithms_of, parse_keys
from copyrisk.errors import ConfigError, InvalidId

log = structlog.get_logger(__name__)

TOKEN_BYTES = 8_192
#: A look at the file, at most so often.
LOOK_S = 1.0
_FILE_BYTES = 1 << 20
_KNOWN_LIMIT = 1_000
_LAST_S = 253_402_300_799  # of the year 9999
_SUBJECT = re.compile(r"[\x21-\x7e]{1,128}")

PrivateKey: TypeAlias = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)


class Claims(NamedTuple):
    """What a token says, once it is known who says it."""

    subject: str
    scopes: frozenset[Scope]
    grant: Grant
    expires_s: int


class TokenKeys:
    """The keys of a file, read anew when it changes; and what was found out about tokens under them.

    Raises
    ------
    ConfigError
        `token_keys_unusable`: the file cannot be used as the process starts. A new one that cannot be used later is
        reported in the log, and the keys stay what they are.
    """

    def __init__(self, path: Path, *, audience: str, issuer: str | None = None, leeway_s: float = 30.0) -> None:
        self._path, self._audience, self._issuer, self._leeway_s = path, audience, issuer, leeway_s
        self._known: dict[bytes, Claims] = {}
        self._looked_s = time.monotonic()
        self._seen = self._mark()
        try:
            self._keys = self._read()
        except (OSError, ValueError) as failure:
            raise ConfigError(f"{path}: {_words(failure)}", code="token_keys_unusable") from None

    def known(self, token: str, now_s: float) -> Claims | None:
        """What a token says that was verified before and still holds; `None` says nothing of it.

        Raises
        ------
        ApiError
            `expired_token`.
        """
        self._look()
        claims = self._known.get(_digest(token))
        if claims is not None and now_s >= claims.expires_s + self._leeway_s:
            raise _expired()
        return claims

    def verify(self, token: str) -> Claims:
        """What a token says.

        Raises
        ------
        ApiError
            `invalid_token`, `expired_token`.
        """
        if len(token) > TOKEN_BYTES:
            raise _invalid(f"it is longer than {TOKEN_BYTES} bytes")
        self._look()
        claims = _claims_of(self._payload(token))
        self._known[_digest(token)] = claims
        if len(self._known) > _KNOWN_LIMIT:
            del self._known[next(iter(self._known))]
        return claims

    def _payload(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:
                raise _invalid("its header demands what is not known here")
            for one in self._candidates(header):
                try:
                    return self._decoded(token, one)
                except jwt.InvalidSignatureError:
                    continue
        except jwt.ExpiredSignatureError:
            raise _expired() from None
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as fault:
            raise _invalid(_WORDS.get(type(fault), "it cannot be read")) from None
        raise _invalid("no key here has signed it")

    def _decoded(self, token: str, one: TokenKey) -> Mapping[str, Any]:
        payload: dict[str, Any] = jwt.decode(
            token,
            one.key,
            algorithms=list(one.algorithms),
            audience=self._audience,
            issuer=self._issuer,
            leeway=self._leeway_s,
            options={"require": ["exp", "sub", "aud"]},
        )
        return payload

    def _candidates(self, header: Mapping[str, Any]) -> list[TokenKey]:
        """The keys that may have signed it: those of its `kid`; a key without an id, as in PEM files, fits any."""
        algorithm, kid = header.get("alg"), header.get("kid")
        fitting = [one for one in self._keys if algorithm in one.algorithms]
        return [one for one in fitting if None in (kid, one.kid) or one.kid == kid]

    def _look(self) -> None:
        """See whether the file is still the one that was read."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        mark = self._mark()
        if mark == self._seen:
            return
        self._seen = mark
        try:
            self._keys = self._read()
        except (OSError, ValueError) as failure:
            log.error("token_keys_kept", path=str(self._path), reason=_words(failure))
            return
        self._known.clear()
        log.info("token_keys_read", path=str(self._path), count=len(self._keys))

    def _mark(self) -> tuple[int, ...]:
        """What changes with the file; empty: it is not there."""
        try:
            about = os.stat(self._path)
        except OSError:
            return ()
        return (about.st_ino, about.st_dev, about.st_size, about.st_mtime_ns, about.st_ctime_ns)

    def _read(self) -> tuple[TokenKey, ...]:
        with self._path.open("rb") as file:
            return parse_keys(file.read(_FILE_BYTES))


_WORDS: Mapping[type[Exception], str] = {
    jwt.InvalidAudienceError: "it is for somebody else (aud)",
    jwt.InvalidIssuerError: "it is of somebody else (iss)",
    jwt.ImmatureSignatureError: "it is not valid yet (nbf, iat)",
    jwt.MissingRequiredClaimError: "it needs exp, sub and aud",
}


def _claims_of(payload: Mapping[str, Any]) -> Claims:
    subject, scope, accounts = payload["sub"], payload.get("scope", ""), payload.get("accounts", [])
    if not isinstance(subject, str) or _SUBJECT.fullmatch(subject) is None:
        raise _invalid("sub is 1 to 128 visible ASCII characters")
    if not isinstance(scope, str):
        raise _invalid("scope is a text of words with blanks between them")
    if not isinstance(accounts, list) or not all(isinstance(one, str) for one in accounts):
        raise _invalid("accounts is a list of texts")
    try:
        grant = parse_grant(accounts)
    except InvalidId as fault:
        raise _invalid(str(fault)) from None
    if payload["exp"] > _LAST_S:
        raise _invalid("exp is no time")
    return Claims(subject, known_scopes(scope.split()), grant, int(payload["exp"]))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _invalid(why: str) -> ApiError:
    return ApiError(f"the token is not valid: {why}", code="invalid_token")


def _expired() -> ApiError:
    return ApiError("the token has expired", code="expired_token")


def _words(failure: Exception) -> str:
    return str(getattr(failure, "strerror", None) or failure)


def make_token(
    private_key: PrivateKey,
    sub: str,
    scopes: Iterable[str],
    accounts: Iterable[str],
    expires_s: float,
    *,
    audience: str = "copyrisk",
    issuer: str | None = None,
    kid: str | None = None,
) -> str:
    """A token under a private key, from now on for `expires_s` seconds; for demos, tests and small houses."""
    now_s = time.time()
    claims: dict[str, Any] = {"sub": sub, "scope": " ".join(scopes), "accounts": list(accounts), "aud": audience}
    claims |= {"iat": int(now_s), "exp": int(now_s + expires_s)} | ({} if issuer is None else {"iss": issuer})
    algorithm = algorithms_of(private_key.public_key())[0]
    return jwt.encode(claims, private_key, algorithm, headers=None if kid is None else {"kid": kid})
