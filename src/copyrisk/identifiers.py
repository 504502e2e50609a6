"""The grammar of ids, and what an account is called.

Full-match ASCII-only patterns: an id with braces or a newline, built into a key, would name another account's keys.
"""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from copyrisk._index import made_of
from copyrisk.errors import InvalidId
from copyrisk.terms import AccountType

#: What an account's and an order's id, a symbol, and an idempotency key match as a whole.
ID_PATTERN = r"[A-Za-z0-9_-]{1,64}"
SYMBOL_PATTERN = r"[A-Z0-9][A-Z0-9._#-]{0,31}"
KEY_PATTERN = r"[A-Za-z0-9_.:-]{1,128}"

_ID = re.compile(ID_PATTERN, re.ASCII)
_SYMBOL = re.compile(SYMBOL_PATTERN, re.ASCII)
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,31}", re.ASCII)
_IDEMPOTENCY_KEY = re.compile(KEY_PATTERN, re.ASCII)

#: How much of what is no id an error shows.
SHOWN_CHARS = 80
_ID_CHARACTERS = bytes(_ID.fullmatch(chr(code)) is not None for code in range(256))


class Account(NamedTuple):
    """An account's type and id; `str()` of it is `T:U`, the inside of its hash tag."""

    type: AccountType
    id: str

    def __str__(self) -> str:
        return f"{self.type}:{self.id}"


def check_idempotency_key(value: str) -> str:
    """Return `value` if it may name a command's outcome, else raise `InvalidId`."""
    return _checked(_IDEMPOTENCY_KEY, "idempotency key", value)


def _checked(pattern: re.Pattern[str], what: str, value: str) -> str:
    if pattern.fullmatch(value) is None:
        raise InvalidId(f"not a valid {what}: {value[:SHOWN_CHARS]!a}", code=f"invalid_{what.replace(' ', '_')}")
    return value


def check_account_id(value: str) -> str:
    """Return `value` if it is an account id, else raise `InvalidId`."""
    return _checked(_ID, "account id", value)


def check_order_id(value: str) -> str:
    """Return `value` if it is an order id, else raise `InvalidId`."""
    return _checked(_ID, "order id", value)


def are_order_ids(cells: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(n,) bool for (n, 65) cells, a byte for the size and the text: which are order ids."""
    return made_of(cells, _ID_CHARACTERS)


def check_symbol(value: str) -> str:
    """Return `value` if it is a symbol, else raise `InvalidId`."""
    return _checked(_SYMBOL, "symbol", value)


def check_group(value: str) -> str:
    """Return `value` if it is a group name, else raise `InvalidId`."""
    return _checked(_GROUP, "group", value)


def account(user_type: str, user_id: str) -> Account:
    """Check both parts; any type but the four of the contract is refused by name."""
    try:
        checked_type = AccountType(user_type)
    except ValueError:
        raise InvalidId(f"unknown account type: {user_type[:SHOWN_CHARS]!a}", code="invalid_user_type") from None
    return Account(checked_type, check_account_id(user_id))


def parse_account(text: str) -> Account:
    """The account of `T:U`, as in channel payloads and `symbol_holders`."""
    user_type, separator, user_id = text.partition(":")
    if not separator:
        raise InvalidId(f"not an account (type:id): {text[:SHOWN_CHARS]!a}", code="invalid_account")
    return account(user_type, user_id)


def check_cascade_id(value: str) -> str:
    """Return `value` if it may name a cascade, else raise `InvalidId`."""
    return _checked(_IDEMPOTENCY_KEY, "cascade id", value)
