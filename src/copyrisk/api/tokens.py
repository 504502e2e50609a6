"""Tokens of people: JSON Web Tokens under public keys that the settings name.

Only asymmetric algorithms, and of those only the ones that fit the type of the key: what a token says of itself never
chooses how it is checked.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jwt
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from copyrisk.api.answers import ApiError
from copyrisk.api.scopes import Grant, Scope, known_scopes, parse_grant
from copyrisk.errors import ConfigError, InvalidId

log = structlog.get_logger(__name__)

TOKEN_BYTES = 8_192
#: A look at the file, at most so often.
LOOK_S = 1.0
_FILE_BYTES = 1 << 20
_KEYS_LIMIT = 32
_KNOWN_LIMIT = 1_000
_RSA_BITS = 2_048
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_JWK_CURVES = (None, "P-256", "P-384", "P-521", "Ed25519", "Ed448")
_JWK_KINDS: Mapping[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_LAST_S = 253_402_300_799  # of the year 9999
_SUBJECT = re.compile(r"[\x21-\x7e]{1,128}")

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
PrivateKey: TypeAlias = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)


class TokenKey(NamedTuple):
    """A public key, the algorithms it may be used with, and its id if it has one."""

    key: PublicKey
    algorithms: tuple[str, ...]
    kid: str | None = None


class Claims(NamedTuple):
    """What a token says, once it is known who says it."""

    subject: str
    scopes: frozenset[Scope]
    grant: Grant
    expires_s: int


def algorithms_of(key: Any) -> tuple[str, ...]:
    """What a public key may verify; empty for kinds that verify no tokens.

    Raises
    ------
    ValueError
        RSA of fewer than 2048 bits.
    """
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _RSA_BITS:
            raise ValueError(f"an RSA key has at least {_RSA_BITS} bits, this one {key.key_size}")
        return _RSA
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return (_CURVES[key.curve.name],)
    return ("EdDSA",) if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) else ()


def parse_keys(text: bytes) -> tuple[TokenKey, ...]:
    """The public keys of a PEM file (keys, certificates) or of a JWKS.

    Keys of a JWKS that are for something else (`use`, `key_ops`, a type that is not known) are left out.

    Raises
    ------
    ValueError
        It holds none, a secret or private one, one that is too small, or something else.
    """
    try:
        found = tuple(_of_jwks(text) if text.lstrip().startswith(b"{") else _of_pem(text))
    except TypeError:  # lists for words and the like
        raise ValueError("it is no JWKS") from None
    if not found:
        raise ValueError("there is no public key in it")
    if len(found) > _KEYS_LIMIT:
        raise ValueError(f"there are more than {_KEYS_LIMIT} keys in it")
    return found


def _of_pem(text: bytes) -> Iterable[TokenKey]:
    for block in _PEM.finditer(text):
        if b"PRIVATE" in block[1]:
            raise ValueError("there is a private key in it, which belongs to whoever issues tokens")
        is_certificate = block[1] == b"CERTIFICATE"
        try:
            key = _certified(block[0]) if is_certificate else serialization.load_pem_public_key(block[0])
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("there is something in it that is no public key") from None
        algorithms = algorithms_of(key)
        if not algorithms:
            raise ValueError("there is a key in it of a kind that signs no tokens here")
        yield TokenKey(key, algorithms)  # type: ignore[arg-type]  # others have no algorithms


def _certified(block: bytes) -> Any:
    return x509.load_pem_x509_certificate(block).public_key()


def _of_jwks(text: bytes) -> Iterable[TokenKey]:
    try:
        said = json.loads(text)
        listed = said.get("keys", [said])
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise ValueError
    except (ValueError, RecursionError):
        raise ValueError("it is no JWKS") from None
    for one in listed:
        if one.get("kty") == "oct" or "d" in one or "k" in one:
            raise ValueError("there is a secret or private key in it, which belongs to whoever issues tokens")
        is_known = one.get("kty") in _JWK_KINDS and one.get("crv") in _JWK_CURVES
        if not is_known or one.get("use", "sig") != "sig" or "verify" not in one.get("key_ops", ["verify"]):
            continue
        try:
            key = _JWK_KINDS[one["kty"]].from_jwk(json.dumps(one))
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
            raise ValueError(f"its key {str(one.get('kid'))[:40]!a} cannot be read") from None
        algorithms = tuple(name for name in algorithms_of(key) if one.get("alg", name) == name)
        kid = one.get("kid")
        if algorithms:
            yield TokenKey(key, algorithms, kid if isinstance(kid, str) else None)


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
    expires_s = int(payload["exp"])
    if expires_s > _LAST_S:
        raise _invalid("exp is no time")
    return Claims(subject, known_scopes(scope.split()), grant, expires_s)


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
