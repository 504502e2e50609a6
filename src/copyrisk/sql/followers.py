"""Whom each follower copies, in the table of followers: read whole, and written to rows that are there."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from copyrisk.agreement import FollowerRow, FollowerTable
from copyrisk.sql.faults import ROW_REFUSED, is_row_fault
from copyrisk.sql.shapes import Shape
from copyrisk.sql.tables import COPY_STATUS, MASTER
from copyrisk.sql.values import may_hold

_ROWS_AT_ONCE = 500
_Said = tuple[str | None, str | None]


def read_all(connection: sa.Connection, shape: Shape) -> FollowerTable:
    """Every follower's row; what is NULL or has no column is `None`."""
    table = shape.table
    found = connection.execute(sa.select(table)).mappings()
    rows = [FollowerRow(str(row[_id_of(table).name]), _word(row, MASTER), _word(row, COPY_STATUS)) for row in found]
    return FollowerTable({row.follower: row for row in rows}, MASTER in table.c, COPY_STATUS in table.c)


def write(connection: sa.Connection, shape: Shape, rows: Sequence[FollowerRow]) -> list[str | None]:
    """Write master and status, as far as there are columns and rows; `row_refused` for what the database refuses."""
    table = shape.table
    if MASTER not in table.c and COPY_STATUS not in table.c:
        return [None] * len(rows)
    latest = {row.follower: row for row in rows if may_hold(_id_of(table).type, row.follower)}
    held = sorted(latest.values(), key=lambda row: row.follower)  # two writers take their locks in the same order
    refused: set[str] = set()
    for start in range(0, len(held), _ROWS_AT_ONCE):
        refused |= _write_some(connection, table, held[start : start + _ROWS_AT_ONCE])
    return [ROW_REFUSED if row.follower in refused else None for row in rows]


def _write_some(connection: sa.Connection, table: sa.Table, rows: Sequence[FollowerRow]) -> set[str]:
    """Returns the followers whose rows were refused."""
    column, wanted = _id_of(table), {row.follower for row in rows}
    query = sa.select(column).where(column.in_(wanted)).order_by(column).with_for_update(key_share=True)
    # A collation may find `ABC` where `abc` is looked for, and that is another account.
    there = {str(found) for found in connection.execute(query).scalars()} & wanted
    chosen = sorted((row for row in rows if row.follower in there), key=lambda row: _sort_key(_said(row)))
    refused: set[str] = set()
    for said, group in groupby(chosen, _said):
        names = [row.follower for row in group]
        if not _is_taken(connection, table, said, names):
            refused |= {name for name in names if not _is_taken(connection, table, said, [name])}
    return refused


def _is_taken(connection: sa.Connection, table: sa.Table, said: _Said, names: Sequence[str]) -> bool:
    """Whether the database takes these values for these rows; if not, nothing of it is kept."""
    values = {name: value for name, value in zip((MASTER, COPY_STATUS), said, strict=True) if name in table.c}
    try:
        with connection.begin_nested():
            connection.execute(table.update().where(_id_of(table).in_(names)).values(values))
    except sa.exc.SQLAlchemyError as fault:
        if not is_row_fault(fault):
            raise
        return False
    return True


def _said(row: FollowerRow) -> _Said:
    return row.master, row.status


def _sort_key(said: _Said) -> tuple[str, str]:
    return said[0] or "", said[1] or ""


def _word(row: Any, name: str) -> str | None:
    value = row.get(name)
    return None if value is None else str(value)


def _id_of(table: sa.Table) -> sa.Column[Any]:
    return next(column for column in table.c if column.name not in (MASTER, COPY_STATUS))
