"""Who asks: a service with a key, which signs, or somebody with a token. Neither can be shown or pickled."""

import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from copyrisk import signing

#: Visible ASCII: anything else would be another header, or none.
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}", re.ASCII)


class Key:
    """A key of `copyrisk-run keys new`: its id, and its secret, which is never sent.

    Raises
    ------
    ValueError
        They are none of a key's.
    """

    __slots__ = ("_secret", "key_id")

    def __init__(self, key_id: str, secret: str) -> None:
        if not signing.is_key_id(key_id):
            raise ValueError("the first is the key's id, as `copyrisk-run keys new` prints it")
        if not secret.strip() or secret != secret.strip():
            raise ValueError("the second is the key's secret, without blanks around it")
        self.key_id, self._secret = key_id, secret

    def headers(self, method: str, target: bytes, body: bytes, idempotency_key: str) -> Mapping[str, str]:
        """The headers of one request, signed for now and for once."""
        return signing.signed_headers(self.key_id, self._secret, method, target, body, idempotency_key=idempotency_key)

    def __repr__(self) -> str:
        return f"Key({self.key_id!r}, ...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key stays in its process")


class Token:
    """A JSON Web Token, or a function that returns one.

    Parameters
    ----------
    source : str or callable
        A function is called for each request that is sent, so it should keep its token and renew it in good time.
    """

    __slots__ = ("_source",)

    def __init__(self, source: str | Callable[[], str]) -> None:
        self._source = source

    def headers(self, method: str, target: bytes, body: bytes, idempotency_key: str) -> Mapping[str, str]:
        """The headers of one request.

        Raises
        ------
        ValueError
            What the function returned is no token.
        """
        token = self._source if isinstance(self._source, str) else self._source()
        if _TOKEN.fullmatch(token) is None:
            raise ValueError("a token is visible ASCII without blanks")  # and is not shown
        said = {"Authorization": f"Bearer {token}"}
        return said | {signing.IDEMPOTENCY_HEADER: idempotency_key} if idempotency_key else said

    def __repr__(self) -> str:
        return "Token(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token stays in its process")


Credentials = Key | Token
