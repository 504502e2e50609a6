"""One row found by its id, and rows written so that repetitions and late ones change nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from copyrisk.errors import Refused
from copyrisk.identifiers import Account
from copyrisk.sql.history import HistoryEntry, Row
from copyrisk.sql.shapes import Shape
from copyrisk.sql.tables import LEDGER, ORDERS, TableNeeds
from copyrisk.sql.values import field_text, may_hold
from copyrisk.sql.wallets import book, lock_wallets

#: What an order keeps from its first row on.
_NEVER_CHANGED = ("order_id", "order_user_id", "created_at")
#: What a ledger row must say if its id is there already.
_BOOKING_IDENTITY = ("user_type", "user_id", "order_id", "amount_usd")


def find_row(
    connection: sa.Connection, shape: Shape, needs: TableNeeds, wanted: tuple[str, ...]
) -> dict[str, str] | None:
    """The fields of the row with this id that are not NULL, as text; `None` if there is no row."""
    table = shape.table
    sought = [(table.c[name], text) for name, text in zip(needs.unique, wanted, strict=True)]
    if not all(may_hold(column.type, text) for column, text in sought):
        return None
    # A collation may find `ABC` where `abc` is looked for, and that is another account.
    for row in connection.execute(sa.select(table).where(*(column == text for column, text in sought))).mappings():
        if tuple(str(row[name]) for name in needs.unique) == wanted:
            there = {name: row[name] for name in needs.fields if name in row}
            return {name: field_text(name, value) for name, value in there.items() if value is not None}
    return None


def write_rows(connection: sa.Connection, entries: Sequence[HistoryEntry], shapes: Mapping[str, Shape]) -> set[Account]:
    """Insert bookings that are absent, add them to the balances, insert orders that are absent or replace older ones;
    all of it or, on an error, nothing.

    Parameters
    ----------
    shapes : mapping of str to Shape
        By name: the ledger, every order table that is written to, and of accounts those that are booked to.

    Returns
    -------
    set of Account
        Accounts whose amounts are in the ledger only: they have no balance to add to.

    Raises
    ------
    Refused
        `entry_id_taken`, `order_id_taken`, `row_refused`; the transaction must be rolled back.
    """
    unbooked: set[Account] = set()
    bookings = [entry.booking for entry in entries if entry.booking is not None]
    if bookings:
        wallets = lock_wallets(connection, booked_accounts(entries), shapes)
        unbooked = book(connection, _write_bookings(connection, shapes[LEDGER.name].table, bookings), wallets, shapes)
    for kind, needs in ORDERS.items():
        orders = [entry.order for entry in entries if entry.account.type is kind and entry.order is not None]
        if orders:
            _write_orders(connection, shapes[needs.name].table, orders)
    return unbooked


def booked_accounts(entries: Sequence[HistoryEntry]) -> set[Account]:
    """The accounts that entries book to."""
    return {entry.account for entry in entries if entry.booking is not None}


def _write_bookings(connection: sa.Connection, table: sa.Table, bookings: Sequence[Row]) -> list[Row]:
    """Returns those that were absent; certain if the rows of their accounts are held."""
    once = {row["entry_id"]: row for row in bookings}
    before = _rows_by_id(connection, (table.c.entry_id,), list(once))
    connection.execute(_insert_if_absent(connection.dialect.name, table), _in_order(once, "entry_id"))
    identity = (table.c.entry_id, *(table.c[name] for name in _BOOKING_IDENTITY))
    there = _rows_by_id(connection, identity, list(once))
    for row in bookings:
        if there.get(row["entry_id"]) != tuple(row[name] for name in _BOOKING_IDENTITY):
            raise Refused(f"the ledger says something else of {row['entry_id']}", code="entry_id_taken")
    return [row for entry_id, row in once.items() if entry_id not in before]


def _write_orders(connection: sa.Connection, table: sa.Table, orders: Sequence[Row]) -> None:
    latest: dict[str, Row] = {}
    for row in sorted(orders, key=lambda row: int(row["version"])):
        latest[row["order_id"]] = row
    connection.execute(_insert_or_renew(connection.dialect.name, table), _in_order(latest, "order_id"))
    there = _rows_by_id(connection, (table.c.order_id, table.c.order_user_id), list(latest))
    for row in orders:
        if there.get(row["order_id"]) != (row["order_user_id"],):
            raise Refused(f"order {row['order_id']} is another account's", code="order_id_taken")


def _in_order(rows: Mapping[str, Row], name: str) -> list[Row]:
    """Two writers take the locks of their rows in the same order, and none waits for the other for ever."""
    return sorted(rows.values(), key=lambda row: str(row[name]))


def _rows_by_id(
    connection: sa.Connection, columns: Sequence[sa.Column[Any]], ids: Sequence[str]
) -> dict[str, tuple[Any, ...]]:
    query = sa.select(*columns).where(columns[0].in_(ids))
    return {str(first): tuple(rest) for first, *rest in connection.execute(query)}


def _insert_if_absent(dialect: str, table: sa.Table) -> sa.Insert:
    if dialect == "mysql":
        same = mysql.insert(table)
        return same.on_duplicate_key_update(entry_id=same.inserted.entry_id)
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing(index_elements=["entry_id"])


def _insert_or_renew(dialect: str, table: sa.Table) -> sa.Insert:
    """Insert, or replace a row whose version is lower or was never set. One statement: of two writers the second
    compares with what the first has left. Whose row it is does not change, and is looked at afterwards."""
    # MariaDB evaluates one assignment after the other: the version, which all of them look at, is the last.
    names = [*(column.name for column in table.c if column.name not in (*_NEVER_CHANGED, "version")), "version"]
    if dialect == "mysql":
        statement = mysql.insert(table)
        newer = _is_newer(table, statement.inserted)
        return statement.on_duplicate_key_update(
            [(name, sa.case((newer, statement.inserted[name]), else_=table.c[name])) for name in names]
        )
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    wanted = insert(table)
    return wanted.on_conflict_do_update(
        index_elements=["order_id"],
        set_={name: wanted.excluded[name] for name in names},
        where=_is_newer(table, wanted.excluded),
    )


def _is_newer(table: sa.Table, given: Any) -> sa.ColumnElement[bool]:
    return sa.or_(table.c.version.is_(None), table.c.version < given.version)
