"""The kill switch: what is halted, what a halt forbids, and what it closes. Pure: no store, no clock.

A kill forbids new lots and nothing else. What cannot be read of the switch forbids as well, and never closes anything.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from copyrisk import identifiers
from copyrisk.book import Book, Flags, RowNumbers
from copyrisk.errors import InvalidId, Refused
from copyrisk.identifiers import Account
from copyrisk.terms import AccountType

TRADING_HALTED, UNREADABLE = "trading_halted", "kill_switch_unreadable"
REASON_CHARS = 200
_SHOWN_CHARS = 80
_LAST_MS = 253_402_300_799_999  # of the year 9999


class ScopeKind(StrEnum):
    """What a kill is about."""

    ALL = "all"
    ACCOUNT = "account"
    MASTER = "master"
    SYMBOL = "symbol"


class KillPolicy(StrEnum):
    """What becomes of open positions and pending orders: they stay, or are closed and taken back."""

    KEEP = "keep"
    CLOSE = "close"


class Scope(NamedTuple):
    """The whole house, an account (`T:U`), a master (its id) with all copies of its orders, or a symbol."""

    kind: ScopeKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.name}" if self.name else self.kind.value


def parse_scope(text: str) -> Scope:
    """The scope of `all`, `account:T:U`, `master:M` or `symbol:S`.

    Raises
    ------
    InvalidId
        `invalid_scope`, or the code of an id.
    """
    word, separator, name = text.partition(":")
    if text == ScopeKind.ALL:
        return Scope(ScopeKind.ALL)
    if separator and word == ScopeKind.ACCOUNT:
        return Scope(ScopeKind.ACCOUNT, str(identifiers.parse_account(name)))
    if separator and word == ScopeKind.MASTER:
        return Scope(ScopeKind.MASTER, identifiers.check_account_id(name))
    if separator and word == ScopeKind.SYMBOL:
        return Scope(ScopeKind.SYMBOL, identifiers.check_symbol(name))
    shown = f"{text[:_SHOWN_CHARS]!a}"
    raise InvalidId(f"not all, account:TYPE:ID, master:ID or symbol:NAME: {shown}", code="invalid_scope")


@dataclass(frozen=True, slots=True)
class Kill:
    """What stands under a scope.

    Attributes
    ----------
    scope : str
        As it stands there.
    reason, by : str
        Why, and who; one line each.
    ts_ms : int
        Since when, by the server's clock.
    code : str
        `trading_halted`; of one whose scope is none: `kill_switch_unreadable`.
    is_readable : bool
        Whether scope and entry are what they should be.
    """

    scope: str
    policy: KillPolicy = KillPolicy.KEEP
    reason: str = ""
    by: str = ""
    ts_ms: int = 0
    code: str = TRADING_HALTED
    is_readable: bool = True

    def refusal(self) -> Refused:
        """Why no order is opened in its scope."""
        if self.code != TRADING_HALTED:
            return Refused(f"the kill switch has a scope that is none: {self.scope[:_SHOWN_CHARS]!a}", code=self.code)
        why = f": {self.reason}" if self.reason else ""
        return Refused(f"no new orders, {self.scope} is halted{why}", code=self.code)


def kill_text(policy: KillPolicy, reason: str, by: str, ts_ms: int) -> str:
    """What is stored under a scope."""
    said = {"policy": policy.value, "reason": one_line(reason), "by": one_line(by), "ts_ms": ts_ms}
    return json.dumps(said, separators=(",", ":"))


def one_line(text: str) -> str:
    """A text of people's as one line of bounded length."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:REASON_CHARS])


def parse_kill(scope: str, stored: str) -> Kill:
    """What stands under a scope; one that cannot be read halts, and closes nothing."""
    try:
        parse_scope(scope)
    except InvalidId:
        return Kill(scope, code=UNREADABLE, is_readable=False)
    try:
        said: Any = json.loads(stored)
        policy, reason, by, ts_ms = KillPolicy(said["policy"]), said["reason"], said["by"], said["ts_ms"]
        if not (isinstance(reason, str) and isinstance(by, str) and type(ts_ms) is int and 0 <= ts_ms <= _LAST_MS):
            raise ValueError("not the fields of a kill")
    except (ValueError, LookupError, TypeError, RecursionError):
        return Kill(scope, is_readable=False)
    return Kill(scope, policy, one_line(reason), one_line(by), ts_ms)


@dataclass(frozen=True, slots=True)
class Kills:
    """All that is halted.

    Attributes
    ----------
    everybody : Kill or None
        What halts the whole house: `all`, or a scope that is none, for whoever wrote it wanted something halted.
    accounts, masters, symbols : mapping of str to Kill
    fault : Refused or None
        Why the switch could not be read as a whole: then nothing opens.
    """

    everybody: Kill | None = None
    accounts: Mapping[str, Kill] = field(default_factory=dict)
    masters: Mapping[str, Kill] = field(default_factory=dict)
    symbols: Mapping[str, Kill] = field(default_factory=dict)
    unreadable: tuple[Kill, ...] = ()
    fault: Refused | None = None

    def every(self) -> list[Kill]:
        """Each of them, once."""
        named = [kill for part in (self.accounts, self.masters, self.symbols) for kill in part.values()]
        house = [self.everybody] if self.everybody is not None else []
        return list(dict.fromkeys([*house, *named, *self.unreadable]))

    def of_all(self, symbol: str, master: str = "") -> Refused | None:
        """Why nobody opens an order on a symbol (or a copy of an order of a master), `None` if somebody may."""
        if self.fault is not None:
            return self.fault
        found = self.everybody or self.symbols.get(symbol) or self.masters.get(master)
        return None if found is None else found.refusal()

    def refusal(self, account: Account, symbol: str, masters: Collection[str] = ()) -> Refused | None:
        """Why an account opens nothing on a symbol, `None` if it may.

        Parameters
        ----------
        masters : collection of str
            Whose orders the order may be a copy of.
        """
        refusal = self.of_all(symbol)
        if refusal is not None:
            return refusal
        own = self.masters.get(account.id) if account.type is AccountType.MASTER else None
        copied = [kill for master in masters if (kill := self.masters.get(master)) is not None]
        found = self.accounts.get(str(account)) or own or next(iter(copied), None)
        return None if found is None else found.refusal()

    def closing(self) -> list[Scope]:
        """The scopes in which all that is open is to be closed."""
        return [parse_scope(kill.scope) for kill in self.every() if kill.policy is KillPolicy.CLOSE]

    def masters_to_close(self) -> list[str]:
        """Masters whose orders' copies are to be closed, besides their own orders; sorted."""
        return sorted(scope.name for scope in self.closing() if scope.kind is ScopeKind.MASTER)

    def symbols_to_close(self) -> list[str]:
        """Symbols on which all is to be closed and taken back, sorted; none if that is so for the whole house."""
        closing = self.closing()
        if any(scope.kind is ScopeKind.ALL for scope in closing):
            return []
        return sorted(scope.name for scope in closing if scope.kind is ScopeKind.SYMBOL)


#: Nothing is halted.
NO_KILLS = Kills()


def unreadable_switch(why: str) -> Kills:
    """The kills when the switch cannot be read as a whole."""
    return Kills(fault=Refused(f"the kill switch cannot be read: {why[:_SHOWN_CHARS]}", code=UNREADABLE))


def parse_kills(stored: Mapping[str, str]) -> Kills:
    """The kills that stand in the hash, by scope."""
    parts: dict[ScopeKind, dict[str, Kill]] = {kind: {} for kind in ScopeKind}
    unreadable = []
    for text in sorted(stored):
        kill = parse_kill(text, stored[text])
        if not kill.is_readable:
            unreadable.append(kill)
        if kill.code == TRADING_HALTED:
            scope = parse_scope(text)
            parts[scope.kind][scope.name] = kill
    nameless = next((kill for kill in unreadable if kill.code == UNREADABLE), None)
    return Kills(
        parts[ScopeKind.ALL].get("") or nameless,
        parts[ScopeKind.ACCOUNT],
        parts[ScopeKind.MASTER],
        parts[ScopeKind.SYMBOL],
        tuple(unreadable),
    )


def orders_in(book: Book, scopes: Collection[Scope]) -> RowNumbers:
    """(n,) order rows of the book in some scopes, ascending; of a master its own orders, not the copies of them.

    The book knows the symbols of orders that count; of others (`orders_without_symbol`) it does not.
    """
    rows = book.order_ids.rows()
    if not scopes or not len(rows):
        return rows[:0]
    if any(scope.kind is ScopeKind.ALL for scope in scopes):
        return rows
    orders: Any = book.orders[rows]
    names = {kind: [scope.name for scope in scopes if scope.kind is kind] for kind in ScopeKind}
    owners = [identifiers.parse_account(name) for name in names[ScopeKind.ACCOUNT]]
    owners += [Account(AccountType.MASTER, name) for name in names[ScopeKind.MASTER]]
    owner_rows = [row for row in map(book.row_of, owners) if row >= 0]
    is_in: Flags = np.isin(orders["account"], owner_rows)
    quotes = [book.market.quote_row[name] for name in names[ScopeKind.SYMBOL] if name in book.market.quote_row]
    if quotes:
        # What row -1 stands for, an order whose symbol is not known, is in no symbol's scope.
        of_symbol = np.append(np.isin(book.market.instruments["quote"], quotes), False)
        is_in |= of_symbol[orders["instrument"]]
    chosen: RowNumbers = rows[is_in]
    return chosen


def orders_without_symbol(book: Book) -> RowNumbers:
    """(n,) order rows, ascending, whose symbol the book does not know: they wait for a price, or cannot be read."""
    rows = book.order_ids.rows()
    orders: Any = book.orders[rows]
    chosen: RowNumbers = rows[orders["instrument"] < 0]
    return chosen


def orders_to_close(book: Book, kills: Kills) -> RowNumbers:
    """(n,) order rows that kills with policy `close` ask to be closed or taken back, ascending: as `orders_in`.

    Besides these: orders without symbol that are on `kills.symbols_to_close()`, and copies of orders of
    `kills.masters_to_close()`.
    """
    return orders_in(book, kills.closing())
