"""Public keys that verify people's tokens, out of a PEM file or a JWKS, each with the algorithms that fit its type."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

_KEYS_LIMIT = 32
_RSA_BITS = 2_048
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_JWK_CURVES = (None, "P-256", "P-384", "P-521", "Ed25519", "Ed448")
_JWK_KINDS: Mapping[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey


class TokenKey(NamedTuple):
    """A public key, the algorithms it may be used with, and its id if it has one."""

    key: PublicKey
    algorithms: tuple[str, ...]
    kid: str | None = None


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
