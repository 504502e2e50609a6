"""What a caller may do, and to which accounts."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from copyrisk import identifiers
from copyrisk.errors import InvalidId
from copyrisk.identifiers import Account
from copyrisk.terms import AccountType

_ALL = "*"


class Scope(StrEnum):
    """One kind of thing to do."""

    ORDERS_WRITE = "orders:write"
    ORDERS_FLOW = "orders:flow"
    ORDERS_READ = "orders:read"
    COPY_WRITE = "copy:write"
    COPY_READ = "copy:read"
    RISK_READ = "risk:read"
    AUDIT_READ = "audit:read"


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Scopes by name.

    Raises
    ------
    InvalidId
        `invalid_scope`.
    """
    found = set()
    for name in names:
        try:
            found.add(Scope(name))
        except ValueError:
            known = ", ".join(Scope)
            raise InvalidId(f"no scope is called {name[:40]!a}; there is {known}", code="invalid_scope") from None
    return frozenset(found)


def known_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Those of the names that are scopes; whoever issues tokens has words of its own beside ours."""
    return frozenset(Scope(name) for name in names if name in set(Scope))


@dataclass(frozen=True, slots=True)
class Grant:
    """Accounts: all of them, all of some types, and single ones."""

    is_all: bool = False
    types: frozenset[AccountType] = frozenset()
    accounts: frozenset[Account] = frozenset()

    def covers(self, account: Account) -> bool:
        """Whether an account is among them."""
        return self.is_all or account.type in self.types or account in self.accounts

    def words(self) -> tuple[str, ...]:
        """As `parse_grant` takes them."""
        types = (f"{one}:{_ALL}" for one in sorted(self.types))
        return (_ALL,) if self.is_all else (*types, *sorted(map(str, self.accounts)))


def parse_grant(words: Iterable[str]) -> Grant:
    """Accounts by words: `*`, `T:*` for all of a type, `T:U` for one.

    Raises
    ------
    InvalidId
        `invalid_account_grant`.
    """
    is_all, types, accounts = False, set(), set()
    for word in words:
        user_type, _, user_id = word.partition(":")
        try:
            if word == _ALL:
                is_all = True
            elif user_id == _ALL:
                types.add(AccountType(user_type))
            else:
                accounts.add(identifiers.parse_account(word))
        except (ValueError, InvalidId):
            raise InvalidId(
                f"accounts are '*', 'TYPE:*' or 'TYPE:ID', not {word[: identifiers.SHOWN_CHARS]!a}",
                code="invalid_account_grant",
            ) from None
    return Grant(is_all, frozenset(types), frozenset(accounts))
