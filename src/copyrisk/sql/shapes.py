"""What a table of this database really is: its columns, how their values are bound, and what is in the way."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from copyrisk.sql.tables import Kind, TableNeeds
from copyrisk.sql.values import DecimalText, UtcTime, WholeText

#: MariaDB's engines that keep what a transaction did although it was rolled back.
_NOT_TRANSACTIONAL = ("myisam", "aria", "memory", "csv", "archive", "mrg_myisam")


@dataclass(frozen=True)
class Shape:
    """A table as it is found.

    Attributes
    ----------
    table : sqlalchemy.Table
        Only the columns that are needed and there; an account's or group's own columns with types that hand over what
        the driver says.
    problems : tuple of str
        Why it cannot be used; empty if it can.
    absent : tuple of str
        Optional columns that it has not.
    """

    table: sa.Table
    problems: tuple[str, ...]
    absent: tuple[str, ...]


def find_shape(connection: sa.Connection, needs: TableNeeds) -> Shape:
    """Look at the table in the database."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(needs.name):
        return Shape(sa.Table(needs.name, sa.MetaData()), (f"{needs.name}: there is no such table",), ())
    found = {column["name"]: column["type"] for column in inspector.get_columns(needs.name)}
    columns: list[sa.Column[Any]] = []
    problems: list[str] = []
    for name, kind in needs.columns.items():
        if name not in found:
            if name not in needs.optional:
                problems.append(f"{needs.name}.{name}: there is no such column")
            continue
        bound = _bound_type(kind, found[name], connection.dialect.name)
        if bound is None:
            problems.append(f"{needs.name}.{name}: {type(found[name]).__name__} cannot hold a {kind.value}")
        else:
            columns.append(sa.Column(name, bound))
    if not _has_unique(inspector, needs):
        problems.append(f"{needs.name}: {', '.join(needs.unique)} must be unique")
    if needs.is_written and (engine := _engine(inspector, needs.name)).lower() in _NOT_TRANSACTIONAL:
        problems.append(f"{needs.name}: {engine} has no transactions")
    absent = tuple(name for name in needs.columns if name in needs.optional and name not in found)
    return Shape(sa.Table(needs.name, sa.MetaData(), *columns), tuple(problems), absent)


def _bound_type(kind: Kind, found: sa.types.TypeEngine[Any], dialect: str) -> sa.types.TypeEngine[Any] | None:
    """The type that binds a value of this kind to a column of the type that was found; `None`: it cannot hold it."""
    is_text = isinstance(found, sa.String) and not isinstance(found, sa.Enum)
    bound: sa.types.TypeEngine[Any] | None = None
    if kind is Kind.ANY:
        bound = sa.types.NullType()
    elif kind is Kind.TEXT:
        bound = _text_type(found, is_text=is_text)
    elif kind is Kind.DECIMAL and isinstance(found, sa.Numeric | sa.Float | sa.String):
        # SQLite takes the text for the number itself, if its column is one of numbers.
        bound = DecimalText() if is_text or dialect == "sqlite" else sa.Numeric(36, 18)
    elif kind is Kind.BALANCE:
        bound = _balance_type(found, is_text=is_text, is_sqlite=dialect == "sqlite")
    elif kind is Kind.TIME and isinstance(found, sa.DateTime):
        bound = UtcTime()
    elif kind is Kind.VERSION and isinstance(found, sa.Integer):
        bound = sa.BigInteger()
    return bound


def _balance_type(
    found: sa.types.TypeEngine[Any], *, is_text: bool, is_sqlite: bool
) -> sa.types.TypeEngine[Any] | None:
    """Text to which we add, or a decimal to which the database does; a float would drift from what was booked."""
    is_float = isinstance(found, sa.Float)
    is_number = is_float or isinstance(found, sa.Numeric)
    if is_text or (is_sqlite and is_number):  # what SQLite then holds is compared after every booking
        return DecimalText()
    if is_float or not isinstance(found, sa.Numeric) or (found.scale is not None and found.scale < 2):
        return None
    return sa.Numeric(36, 18)


def _engine(inspector: sa.Inspector, table: str) -> str:
    """Of a table of MariaDB; empty if it is another database's."""
    if inspector.dialect.name != "mysql":
        return ""
    options = inspector.get_table_options(table)
    return next((str(value) for name, value in options.items() if name.endswith("_engine")), "")


def _text_type(found: sa.types.TypeEngine[Any], *, is_text: bool) -> sa.types.TypeEngine[Any] | None:
    if is_text:
        return sa.String()
    if isinstance(found, sa.Enum):  # PostgreSQL wants it by its name
        return found
    if isinstance(found, sa.Integer) or (isinstance(found, sa.Numeric) and not found.scale):
        return WholeText()
    return sa.Uuid(as_uuid=False) if isinstance(found, sa.Uuid) else None


def _has_unique(inspector: sa.Inspector, needs: TableNeeds) -> bool:
    wanted = set(needs.unique)
    sets = [set(inspector.get_pk_constraint(needs.name)["constrained_columns"])]
    sets += [set(found["column_names"]) for found in inspector.get_unique_constraints(needs.name)]
    # What SQLite makes of UNIQUE is an index, and found for certain only as such.
    options: dict[str, Any] = {"include_auto_indexes": True} if inspector.dialect.name == "sqlite" else {}
    for index in inspector.get_indexes(needs.name, **options):
        if index["unique"] and not any(option.endswith("_where") for option in index.get("dialect_options", {})):
            sets.append({name for name in index["column_names"] if name is not None})
    return wanted in sets
