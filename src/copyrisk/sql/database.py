"""A broker's database: accounts and groups are read from it, orders and bookings written to it, exactly once.

Synchronous. Each call is one transaction (a history of more than 500 entries: one for each 500), tried again once if
the connection is lost or the server chose it as the victim of a deadlock: whatever is repeated changes nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

import sqlalchemy as sa

from copyrisk import keys
from copyrisk.errors import ConfigError, InvalidId, Refused, StoreError
from copyrisk.keys import Account
from copyrisk.sql import schema
from copyrisk.sql.connect import WRITES, make_engine
from copyrisk.sql.faults import ROW_REFUSED, is_row_fault, may_pass, translated
from copyrisk.sql.history import HistoryEntry, parse_history
from copyrisk.sql.rows import find_row, write_rows
from copyrisk.sql.schema import SchemaReport
from copyrisk.sql.shapes import Shape, find_shape
from copyrisk.sql.tables import GROUPS, LEDGER, ORDERS, TableNeeds, account_needs

_ATTEMPTS = 2
_ENTRIES_AT_ONCE = 500
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)

R = TypeVar("R")


def open_database(url: str, *, id_column: str = "id") -> "Database":
    """Connect.

    Parameters
    ----------
    url : str
        `sqlite:///file`, `mariadb://user:password@host/name` or `postgresql://user:password@host/name`.
    id_column : str
        The column of the account tables that holds the account's id, as text or as an integer.

    Raises
    ------
    ConfigError
        `bad_database_url`, `database_driver_missing`, `database_unreachable`, `bad_id_column`. The password is in
        none of the messages.
    """
    if _COLUMN_NAME.fullmatch(id_column) is None:
        raise ConfigError(f"not the name of a column: {id_column[:40]!a}", code="bad_id_column")
    return Database(make_engine(url), id_column)


class Database:
    """An open database; a context manager that closes it. Threads may share it.

    Attributes
    ----------
    engine : sqlalchemy.Engine
    """

    def __init__(self, engine: sa.Engine, id_column: str) -> None:
        self.engine = engine
        self._id_column = id_column
        self._shapes: dict[str, Shape] = {}

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
        checked = keys.account(account.type, account.id)
        return self._row(account_needs(checked.type, self._id_column), (checked.id,))

    def group(self, name: str, symbol: str) -> dict[str, str] | None:
        """Fields of a group's terms for a symbol, as Redis has them; `None` if there is no row. Raises as `account`."""
        return self._row(GROUPS, (keys.check_group(name), keys.check_symbol(symbol)))

    def write_history(self, entries: Sequence[Mapping[str, str]]) -> list[str | None]:
        """Write changed orders and booked amounts; what is already there, or newer, stays as it is.

        Returns
        -------
        list of (str or None)
            For each entry `None` if the database now holds it, else the code for which it is refused, as it would
            be again: those of `history.parse_history`, `order_id_taken` (the row is another account's),
            `entry_id_taken` (the ledger says something else under that id), `row_refused` (the database does).

        Raises
        ------
        StoreUnavailable, StoreError
            As for `account`; nothing may be acknowledged then.
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

    def check(self) -> SchemaReport:
        """Which revision the tables are of, what is in the way and what is missing; nothing is changed.

        Tables are looked at anew, by later reads and writes, too.
        """
        self._shapes.clear()
        return self._run(lambda connection: schema.report(connection, self._id_column))

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
        shape = self._shapes.get(needs.name)
        if shape is None:
            shape = find_shape(connection, needs)
            if shape.problems:  # not kept: they can be put right meanwhile
                raise StoreError(f"the database must be migrated: {shape.problems[0]}", code="database_unfit")
            self._shapes[needs.name] = shape
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
            self._run(lambda it: write_rows(it, entries, self._shapes_of(it, entries)), writes=True)
        except (Refused, StoreError) as fault:
            if isinstance(fault, StoreError) and fault.code != ROW_REFUSED:
                raise
            return self._run(lambda it: self._write_singly(it, entries), writes=True)
        return [None] * len(entries)

    def _write_singly(self, connection: sa.Connection, entries: Sequence[HistoryEntry]) -> list[str | None]:
        shapes = self._shapes_of(connection, entries)
        codes: list[str | None] = []
        for entry in entries:
            code = None
            try:
                with connection.begin_nested():
                    write_rows(connection, [entry], shapes)
            except Refused as refusal:
                code = refusal.code
            except sa.exc.SQLAlchemyError as fault:
                if not is_row_fault(fault):
                    raise
                code = ROW_REFUSED
            codes.append(code)
        return codes

    def _shapes_of(self, connection: sa.Connection, entries: Sequence[HistoryEntry]) -> dict[str, Shape]:
        needs = [LEDGER, *(ORDERS[kind] for kind in {entry.account.type for entry in entries})]
        return {need.name: self._shape(connection, need) for need in needs}
