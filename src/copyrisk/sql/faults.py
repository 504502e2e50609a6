"""What an error of a database means: try once more, refuse the row, or stop until it is back."""

import sqlalchemy as sa

from copyrisk.errors import CopyriskError, StoreError, StoreUnavailable

_SHOWN_CHARS = 200

#: Code of what the database does not take, and would not take again.
ROW_REFUSED = "row_refused"

#: Errors of MariaDB that come of what a row says: NULL, twice, out of range, no date, no default, wrong, too long,
#: a foreign key, a trigger's word, a check.
_ROW_ERRORS = frozenset({1048, 1062, 1264, 1265, 1292, 1364, 1366, 1406, 1452, 1644, 4025})
#: And those that another attempt may not meet: lock wait, deadlock, killed, the row changed meanwhile.
_PASSING_ERRORS = frozenset({1205, 1213, 1927, 1020})
#: And those of one table: what is asked of it is not allowed to us. Others say as much without a code of their own.
_TABLE_ERRORS = frozenset({1142, 1143})
#: PostgreSQL: classes of a row's errors (data, integrity) and an exception raised by a trigger.
_ROW_STATES = ("22", "23", "P0001")
_PASSING_STATES = ("40", "55P03")


def _number(fault: sa.exc.DBAPIError) -> int:
    """The error number of MariaDB; 0 if it is of another database."""
    first = fault.orig.args[0] if fault.orig is not None and fault.orig.args else 0
    return first if isinstance(first, int) else 0


def _state(fault: sa.exc.DBAPIError) -> str:
    """The SQLSTATE of PostgreSQL; empty if it is of another database."""
    return getattr(fault.orig, "sqlstate", None) or ""


def is_row_fault(fault: Exception) -> bool:
    """Whether the database refuses what a row says, as it would again."""
    if not isinstance(fault, sa.exc.DBAPIError):
        return isinstance(fault, sa.exc.StatementError)  # a value that its column's type cannot bind
    if isinstance(fault, sa.exc.IntegrityError | sa.exc.DataError):
        return True
    return _number(fault) in _ROW_ERRORS or _state(fault).startswith(_ROW_STATES)


def may_pass(fault: Exception) -> bool:
    """Whether the whole transaction may be tried again at once: a deadlock, a lost connection."""
    if not isinstance(fault, sa.exc.DBAPIError):
        return False
    return (
        fault.connection_invalidated or _number(fault) in _PASSING_ERRORS or _state(fault).startswith(_PASSING_STATES)
    )


def translated(fault: Exception) -> CopyriskError:
    """The error that callers see: `row_refused`, `database_unavailable` if it may be back later, `database_error`."""
    said = one_line(fault)
    if is_row_fault(fault):
        return StoreError(f"the database refuses a value: {said}", code=ROW_REFUSED)
    if isinstance(fault, sa.exc.TimeoutError) or may_pass(fault):
        return StoreUnavailable(f"the database does not answer: {said}", code="database_unavailable")
    if isinstance(fault, sa.exc.OperationalError | sa.exc.InterfaceError) and not _is_of_a_table(fault):
        return StoreUnavailable(f"the database cannot be used now: {said}", code="database_unavailable")
    return StoreError(f"the database refuses: {said}", code="database_error")


def _is_of_a_table(fault: sa.exc.DBAPIError) -> bool:
    """Whether the database is there but a table is not, or not for us."""
    return _number(fault) in _TABLE_ERRORS or getattr(fault.orig, "sqlite_errorname", "") == "SQLITE_ERROR"


def one_line(fault: Exception) -> str:
    """What the driver says, without the statement and its values."""
    said = fault.orig if isinstance(fault, sa.exc.DBAPIError) else fault
    lines = str(said).strip().splitlines()
    return (lines[0] if lines else type(said).__name__)[:_SHOWN_CHARS]
