"""What a call is: what is sent, and as what its answer is read. Nothing here touches a network."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Generic, TypeVar
from urllib.parse import quote, urlencode

from copyrisk import identifiers
from copyrisk.errors import InvalidId
from copyrisk.identifiers import Account

T = TypeVar("T")
#: Lots, prices, amounts, percentages. A `float` is refused: what is booked is what was sent, digit by digit.
Number = Decimal | int | str


@dataclass(frozen=True, slots=True)
class Change:
    """What makes a call one that changes something.

    Attributes
    ----------
    account : str
        `T:U`, whose answers its idempotency key is one of.
    order_id : str or None
        As it was given.
    is_one_step : bool
        Whether it is made whole or not at all; otherwise a 503 may come in the middle of it.
    """

    account: str
    idempotency_key: str
    order_id: str | None = None
    is_one_step: bool = True


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call; of a change, one change, however often it is made: its idempotency key is part of it.

    Attributes
    ----------
    target : str
        Path and query, percent-encoded.
    kind : type
        Of what its answer holds.
    body : bytes
        JSON; empty: none.
    change : Change or None
        `None`: it only asks.
    absent_code : str
        Of the refusal that means that there is no answer yet: then the call returns `None`.
    patience_s : float
        How long it is asked again while there is none.
    """

    method: str
    target: str
    kind: type[T]
    body: bytes = b""
    change: Change | None = None
    absent_code: str = ""
    patience_s: float = field(default=0.0, kw_only=True)


def path_of(*segments: str) -> str:
    """A path of segments; what would be another path as one of them is refused (`InvalidId`)."""
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidId(f"{segment!r} cannot be part of a path", code="invalid_id")
    return "/api/" + "/".join(quote(segment, safe="") for segment in segments)


def asking(kind: type[T], path: str, query: Mapping[str, object] | None = None) -> Call[T]:
    """A call that only asks; parameters that are `None` are left out."""
    given = {name: _word(value) for name, value in (query or {}).items() if value is not None}
    return Call("GET", f"{path}?{urlencode(given)}" if given else path, kind)


def changing(
    kind: type[T],
    path: str,
    account: Account,
    fields: Mapping[str, object] | None,
    idempotency_key: str | None,
    *,
    method: str = "POST",
    query: Mapping[str, object] | None = None,
    order_id: str | None = None,
    is_one_step: bool = True,
) -> Call[T]:
    """A call that changes something; fields and parameters that are `None` are left out.

    Raises
    ------
    InvalidId
        The idempotency key is none, or one that could not be asked for.
    """
    key = secrets.token_hex(16) if idempotency_key is None else identifiers.check_idempotency_key(idempotency_key)
    path_of(key)  # or nobody could ask for its answer
    body = b"" if fields is None else body_of(fields)
    target = asking(kind, path, query).target
    return Call(method, target, kind, body, Change(str(account), key, order_id, is_one_step))


def body_of(fields: Mapping[str, object]) -> bytes:
    """A JSON object; those that are `None` are left out."""
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def number_text(value: Number | None) -> str | None:
    """A number as it is sent: its digits.

    Raises
    ------
    TypeError
        A float or another type that is no `Number`.
    ValueError
        A `Decimal` that is not finite.
    """
    if value is None or type(value) is str:
        return value
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"{value} is no number that could be sent")
        return f"{value:f}"
    if type(value) is int:
        return str(value)
    raise TypeError(f"numbers are Decimal, int or text, not {type(value).__name__}: those are exact")


def account_of(account: str | Account) -> Account:
    """An account by `T:U`; raises `InvalidId`."""
    return identifiers.account(*account) if isinstance(account, Account) else identifiers.parse_account(account)


def _word(value: object) -> str:
    return ("false", "true")[value] if isinstance(value, bool) else str(value)
