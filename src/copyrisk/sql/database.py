"""A broker's database: accounts and groups are read from it, orders and bookings written to it, exactly once.

Synchronous. Each call is one transaction (a history of more than 500 entries: one for each 500), tried again once if
the connection is lost or the server chose it as the victim of a deadlock: whatever is repeated changes nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

import sqlalchemy as sa
import structlog

from copyrisk import identifiers
from copyrisk.agreement import FollowerRow, FollowerTable
from copyrisk.errors import ConfigError, InvalidId, Refused, StoreError, StoreUnavailable
from copyrisk.identifiers import Account
from copyrisk.sql import followers, schema
from copyrisk.sql.connect import WRITES, make_engine
from copyrisk.sql.faults import ROW_REFUSED, is_row_fault, may_pass, translated
from copyrisk.sql.history import HistoryEntry, parse_history
from copyrisk.sql.rows import booked_accounts, find_row, write_rows
from copyrisk.sql.schema import SchemaReport
from copyrisk.sql.shapes import Shape, find_shape
from copyrisk.sql.tables import GROUPS, LEDGER, ORDERS, TableNeeds, account_needs, follower_needs, wallet_needs
from copyrisk.sql.wallets import lock_wallets

log = structlog.get_logger(__name__)

_ATTEMPTS = 2
_ENTRIES_AT_ONCE = 500
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)

_TOLD_LIMIT = 10_000
#: Code of an entry whose table cannot be used as it is: whoever hands it over keeps it, and comes again.
TRY_LATER = "try_later"

R = TypeVar("R")


def open_database(
    url: str, *, id_column: str = "id", books_balance: bool = True, must_answer: bool = True
) -> "Database":
    """Connect.

    Parameters
    ----------
    url : str
        `sqlite:///file`, `mariadb://user:password@host/name` or `postgresql://user:password@host/name`.
    id_column : str
        The column of the account tables that holds the account's id, as text or as an integer.
    books_balance : bool
        Whether what is booked is added to `wallet_balance` of the account's row.
    must_answer : bool
        Whether it is an error if the database cannot be reached now; otherwise it is with each call.

    Raises
    ------
    ConfigError
        `bad_database_url`, `database_driver_missing`, `database_unreachable`, `bad_id_column`. The password is in
        none of the messages.
    """
    if _COLUMN_NAME.fullmatch(id_column) is None:
        raise ConfigError(f"not the name of a column: {id_column[:40]!a}", code="bad_id_column")
    return Database(make_engine(url, must_answer=must_answer), id_column, books_balance=books_balance)


class Database:
    """An open database; a context manager that closes it. Threads may share it.

    Attributes
    ----------
    engine : sqlalchemy.Engine
    """

    def __init__(self, engine: sa.Engine, id_column: str, *, books_balance: bool) -> None:
        self.engine = engine
        self._id_column, self._books_balance = id_column, books_balance
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._told: set[str] = set()

    def account(self, account: Account) -> dict[str, str] | None:
        """Fields of the account's configuration, as Redis has them; `None` if it has no row.

        What is NULL, or has no column, is not among them. What is not of its field's grammar is: those who read the
        configuration refuse it, and do not take it for absent.

        Raises
        ------
        InvalidId
            Nothing is asked of the database then.
        StoreUnavailable, StoreError
            `database_unavailable`; `database_unfit`, `row_unreadable`, `database_error`.
        """
        checked = identifiers.account(account.type, account.id)
        return self._row(account_needs(checked.type, self._id_column), (checked.id,))

    def group(self, name: str, symbol: str) -> dict[str, str] | None:
        """Fields of a group's terms for a symbol, as Redis has them; `None` if there is no row. Raises as `account`."""
        return self._row(GROUPS, (identifiers.check_group(name), identifiers.check_symbol(symbol)))

    def write_history(self, entries: Sequence[Mapping[str, str]]) -> list[str | None]:
        """Write changed orders and booked amounts; what is already there, or newer, stays as it is.

        Returns
        -------
        list of (str or None)
            For each entry `None` if the database now holds it; `try_later` if a table that it needs is unfit or not
            allowed, which somebody can put right; else the code for which it is refused, as it would be again:
            those of `history.parse_history`, `order_id_taken` (the row is another account's), `entry_id_taken` (the
            ledger says something else under that id), `row_refused` (the database does).

        Raises
        ------
        StoreUnavailable
            `database_unavailable`; nothing may be acknowledged then.
        """
        codes: list[str | None] = [None] * len(entries)
        rows: dict[int, HistoryEntry] = {}
        for place, fields in enumerate(entries):
            try:
                rows[place] = parse_history(fields)
            except (InvalidId, Refused) as refusal:
                codes[place] = refusal.code
        places = list(rows)
        for start in range(0, len(places), _ENTRIES_AT_ONCE):
            some = places[start : start + _ENTRIES_AT_ONCE]
            for place, code in zip(some, self._write([rows[place] for place in some]), strict=True):
                codes[place] = code
        return codes

    def followers(self) -> FollowerTable:
        """What the table of followers says of masters and copying. Raises as `account`."""
        needs = follower_needs(self._id_column)
        return self._run(lambda connection: followers.read_all(connection, self._shape(connection, needs)))

    def write_followers(self, rows: Sequence[FollowerRow]) -> list[str | None]:
        """Say in followers' rows whom they copy: for each `None`, or `row_refused`. Who has no row gets none.

        Raises as `account`.
        """
        needs = follower_needs(self._id_column)
        return self._run(lambda it: followers.write(it, self._shape(it, needs), rows), writes=True)

    def check(self) -> SchemaReport:
        """Which revision the tables are of, what is in the way and what is missing; nothing is changed.

        Tables are looked at anew, by later reads and writes, too.
        """
        self._shapes.clear()
        self._told.clear()
        return self._run(
            lambda connection: schema.report(connection, self._id_column, books_balance=self._books_balance)
        )

    def migrate(self) -> SchemaReport:
        """Make the tables that are absent, and the column `version` of order tables that lack it; then `check`.

        Raises
        ------
        StoreUnavailable, StoreError
            `database_unavailable`; `database_newer`, `database_error`.
        """
        self._run(schema.upgrade, writes=True)
        return self.check()

    def undo_migrations(self) -> None:
        """Drop what `migrate` made, with all that is in it, and nothing else. Raises as `migrate`."""
        self._run(schema.downgrade, writes=True)
        self.check()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> "Database":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Callable[[sa.Connection], R], *, writes: bool = False) -> R:
        """One transaction, tried again once."""
        engine = self.engine.execution_options(**{WRITES: writes})
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with engine.begin() as connection:
                    return work(connection)
            except sa.exc.SQLAlchemyError as fault:
                if attempt == _ATTEMPTS or not may_pass(fault):
                    self._shapes.clear()  # a column may have gone
                    raise translated(fault) from None
        raise AssertionError("unreachable")

    def _shape(self, connection: sa.Connection, needs: TableNeeds) -> Shape:
        """What the table is like, as first seen since `check` or an error.

        Raises
        ------
        StoreError
            `database_unfit`: it cannot be used as it is.
        """
        key = (needs.name, *needs.columns)
        shape = self._shapes.get(key)
        if shape is None:
            shape = find_shape(connection, needs)
            if shape.problems:  # not kept: they can be put right meanwhile
                raise StoreError(f"the database must be migrated: {shape.problems[0]}", code="database_unfit")
            self._shapes[key] = shape
        return shape

    def _row(self, needs: TableNeeds, wanted: tuple[str, ...]) -> dict[str, str] | None:
        try:
            return self._run(lambda connection: find_row(connection, self._shape(connection, needs), needs, wanted))
        except StoreError as fault:
            if fault.code == ROW_REFUSED:  # the id is none that its column could hold
                return None
            raise

    def _write(self, entries: Sequence[HistoryEntry]) -> list[str | None]:
        """All in one transaction; if that cannot be, each in a savepoint, to tell which ones stand in the way."""
        try:
            return self._run(lambda it: self._write_at_once(it, entries), writes=True)
        except (Refused, StoreError) as fault:
            if isinstance(fault, StoreError) and fault.code != ROW_REFUSED:
                return self._write_by_type(entries, fault)
        try:
            return self._run(lambda it: self._write_singly(it, entries), writes=True)
        except StoreError as fault:
            return self._write_by_type(entries, fault)

    def _write_by_type(self, entries: Sequence[HistoryEntry], fault: StoreError) -> list[str | None]:
        """The entries of each type of accounts by themselves; a type that fails is for later."""
        if isinstance(fault, StoreUnavailable):
            raise fault
        codes: list[str | None] = [TRY_LATER] * len(entries)
        kinds = {entry.account.type for entry in entries}
        if len(kinds) == 1:
            self._tell("history_not_written", user_type=next(iter(kinds)).value, code=fault.code, reason=str(fault))
            return codes
        for kind in kinds:
            places = [place for place, entry in enumerate(entries) if entry.account.type is kind]
            for place, code in zip(places, self._write([entries[place] for place in places]), strict=True):
                codes[place] = code
        return codes

    def _write_at_once(self, connection: sa.Connection, entries: Sequence[HistoryEntry]) -> list[str | None]:
        shapes = self._fit_shapes(connection, entries)
        is_fit = [shapes.keys() >= self._tables_of(entry).keys() for entry in entries]
        fit = [entry for entry, is_one in zip(entries, is_fit, strict=True) if is_one]
        self._tell_unbooked(write_rows(connection, fit, shapes))
        return [None if is_one else TRY_LATER for is_one in is_fit]

    def _write_singly(self, connection: sa.Connection, entries: Sequence[HistoryEntry]) -> list[str | None]:
        shapes = self._fit_shapes(connection, entries)
        lock_wallets(connection, booked_accounts(entries), shapes)  # all of them, in order
        codes: list[str | None] = []
        for entry in entries:
            code = None if shapes.keys() >= self._tables_of(entry).keys() else TRY_LATER
            try:
                if code is None:
                    with connection.begin_nested():
                        self._tell_unbooked(write_rows(connection, [entry], shapes))
            except Refused as refusal:
                code = refusal.code
            except sa.exc.SQLAlchemyError as fault:
                if not is_row_fault(fault):
                    raise
                code = ROW_REFUSED
            codes.append(code)
        return codes

    def _tables_of(self, entry: HistoryEntry) -> dict[str, TableNeeds]:
        """The tables that an entry is written to, by name."""
        needs = [] if entry.order is None else [ORDERS[entry.account.type]]
        if entry.booking is not None:
            needs.append(LEDGER)
            if self._books_balance:
                needs.append(wallet_needs(entry.account.type, self._id_column))
        return {need.name: need for need in needs}

    def _fit_shapes(self, connection: sa.Connection, entries: Sequence[HistoryEntry]) -> dict[str, Shape]:
        """Of the tables that entries are written to, by name, those that can be used."""
        shapes: dict[str, Shape] = {}
        for needs in {name: need for entry in entries for name, need in self._tables_of(entry).items()}.values():
            try:
                shapes[needs.name] = self._shape(connection, needs)
            except StoreError as fault:
                self._tell("history_not_written", table=needs.name, code=fault.code, reason=str(fault))
        return shapes

    def _tell_unbooked(self, accounts: set[Account]) -> None:
        for account in sorted(accounts):
            self._tell("balance_not_booked", account=str(account), reason="no row, or no balance in it")

    def _tell(self, event: str, **said: str) -> None:
        """Log it once, until `check`."""
        line = f"{event} {said}"
        if line in self._told:
            return
        if len(self._told) >= _TOLD_LIMIT:
            self._told.clear()
        self._told.add(line)
        log.error(event, **said)
