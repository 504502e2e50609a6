"""How services sign requests: one text for each request, and a MAC over it; and where the secrets of keys come from.

For both ends, so it needs nothing but Python. Whoever signs has a key id and its secret. The server has a master
secret, from which it works every key's secret out; so none is stored anywhere.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from typing import NoReturn

from copyrisk.errors import CopyriskError

KEY_HEADER = "X-Copyrisk-Key"
TIME_HEADER = "X-Copyrisk-Time"
NONCE_HEADER = "X-Copyrisk-Nonce"
SIGNATURE_HEADER = "X-Copyrisk-Signature"
IDEMPOTENCY_HEADER = "Idempotency-Key"

#: First line of every text that is signed; another way to sign would have another one.
SCHEME = "copyrisk-hmac-sha256-1"
#: How the secret of a key begins, for programs that look for secrets where none should be.
SECRET_PREFIX = "crs_"
#: A master secret of fewer bytes could be guessed.
MASTER_BYTES = 32

_METHOD = re.compile(r"[A-Z]{1,16}", re.ASCII)
_TARGET = re.compile(rb"/[\x21-\x7e\x80-\xff]*")
_TIME = re.compile(r"0|[1-9][0-9]{0,14}", re.ASCII)
_NONCE = re.compile(r"[A-Za-z0-9_-]{16,64}", re.ASCII)
_SIGNATURE = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{8,64}", re.ASCII)
_LINE = re.compile(r"[\x20-\x7e\x80-\xff]*")


class Unsignable(CopyriskError):
    """A part of a request that no signed request has."""

    code = "invalid_signature"


def canonical_text(
    method: str, target: bytes, body: bytes = b"", *, time_ms: str, nonce: str, idempotency_key: str = ""
) -> bytes:
    """What is signed: seven lines, none of which can hold the end of a line, so no two requests have the same.

    Parameters
    ----------
    method : str
        In capitals.
    target : bytes
        Path and query as they go over the wire, percent-encoded; with `?` only before a query that is not empty.
    time_ms : str
        When it is sent, Unix time in ms, as in its header.
    nonce : str
        16 to 64 of `A-Za-z0-9_-`; never used before with this key.
    idempotency_key : str
        As in its header; empty: there is none.

    Raises
    ------
    Unsignable
        A part is not as described here.
    """
    if not (_METHOD.fullmatch(method) and _TARGET.fullmatch(target)):
        raise Unsignable("the method or the path is not one that can be signed")
    if not (_TIME.fullmatch(time_ms) and _NONCE.fullmatch(nonce)):
        raise Unsignable("the time is whole ms since 1970, the nonce 16 to 64 of A-Z, a-z, 0-9, _ and -")
    if _LINE.fullmatch(idempotency_key) is None:
        raise Unsignable("the idempotency key is not one that can be signed")
    lines = (SCHEME, method, target.decode("latin-1"), time_ms, nonce, hashlib.sha256(body).hexdigest())
    return "\n".join((*lines, idempotency_key)).encode("latin-1")


def sign(secret: str, text: bytes) -> str:
    """HMAC-SHA256 of a text under a key's secret, 64 lower-case hexadecimal digits."""
    return hmac.digest(secret.encode(), text, "sha256").hex()


def is_signed(secret: str, text: bytes, signature: str) -> bool:
    """Whether a signature is that of the text; takes as long whatever is wrong with it."""
    return hmac.compare_digest(sign(secret, text), signature if _SIGNATURE.fullmatch(signature) else "0" * 64)


def new_nonce() -> str:
    """144 random bits, 24 characters."""
    return secrets.token_urlsafe(18)


def new_key_id() -> str:
    """A key id that was never used: 80 random bits."""
    return f"key_{secrets.token_hex(10)}"


def is_key_id(text: str) -> bool:
    """Whether a text may be a key's id."""
    return _KEY_ID.fullmatch(text) is not None


def signed_headers(
    key_id: str,
    secret: str,
    method: str,
    target: bytes,
    body: bytes = b"",
    *,
    idempotency_key: str = "",
    time_ms: int | None = None,
    nonce: str | None = None,
) -> dict[str, str]:
    """The headers of one request; `canonical_text` says what the parts are.

    Parameters
    ----------
    time_ms : int or None
        `None`: now, by this machine's clock.
    nonce : str or None
        `None`: a new one.

    Raises
    ------
    Unsignable
    """
    said_ms = str(time.time_ns() // 1_000_000 if time_ms is None else time_ms)
    once = new_nonce() if nonce is None else nonce
    text = canonical_text(method, target, body, time_ms=said_ms, nonce=once, idempotency_key=idempotency_key)
    headers = {KEY_HEADER: key_id, TIME_HEADER: said_ms, NONCE_HEADER: once, SIGNATURE_HEADER: sign(secret, text)}
    return {**headers, IDEMPOTENCY_HEADER: idempotency_key} if idempotency_key else headers


class MasterSecret:
    """What the secrets of all keys follow from, and what vouches for their records. It cannot be shown or pickled.

    Raises
    ------
    ValueError
        It has fewer than `MASTER_BYTES` bytes without the blanks around it.
    """

    __slots__ = ("_of_records", "_of_secrets")

    def __init__(self, secret: bytes) -> None:
        stripped = secret.strip()
        if len(stripped) < MASTER_BYTES:
            raise ValueError(f"at least {MASTER_BYTES} bytes")
        self._of_secrets = hmac.digest(stripped, b"copyrisk api secrets 1", "sha256")
        self._of_records = hmac.digest(stripped, b"copyrisk api records 1", "sha256")

    def secret_of(self, key_id: str) -> str:
        """The secret of a key; as quickly of one that does not exist."""
        digest = hmac.digest(self._of_secrets, key_id.encode(), "sha256")
        return SECRET_PREFIX + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def mac_of(self, text: bytes) -> str:
        """What shows that a record was written by somebody who has this secret."""
        return hmac.digest(self._of_records, text, "sha256").hex()

    def is_mac(self, text: bytes, mac: str) -> bool:
        """Whether `mac` is that of the text."""
        return hmac.compare_digest(self.mac_of(text), mac if _SIGNATURE.fullmatch(mac) else "0" * 64)

    def __repr__(self) -> str:
        return "MasterSecret(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a master secret stays in its process")
