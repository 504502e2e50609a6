"""Making the tables that are absent, and saying what is there: alembic, with the revisions in `copyrisk/migrations`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from copyrisk.errors import StoreError
from copyrisk.sql.shapes import find_shape
from copyrisk.sql.tables import all_needs

#: A broker may use alembic, too, with a version table of his own.
VERSION_TABLE = "copyrisk_alembic_version"

_LOCK_NAME = "copyrisk_migrate"
_LOCK_NUMBER = 0x636F7079
_LOCK_SECONDS = 10


@dataclass(frozen=True)
class SchemaReport:
    """How the database stands to what is needed.

    Attributes
    ----------
    revision, head : str or None, str
        What it was migrated to (`None`: never), and what this version of copyrisk wants.
    problems : tuple of str
        What is in the way of reading or writing, a line each.
    absent : tuple of str
        Optional columns, as `table.column`, that a broker's own tables have not: what they would say is not known.
    """

    revision: str | None
    head: str
    problems: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def is_ready(self) -> bool:
        """Whether everything can be read and written."""
        return self.revision == self.head and not self.problems


def report(connection: sa.Connection, id_column: str, *, books_balance: bool) -> SchemaReport:
    """Look at every table; nothing is changed."""
    shapes = [find_shape(connection, needs) for needs in all_needs(id_column, books_balance=books_balance)]
    return SchemaReport(
        revision=MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision(),
        head=ScriptDirectory.from_config(_config(None)).get_current_head() or "",
        problems=tuple(dict.fromkeys(problem for shape in shapes for problem in shape.problems)),
        absent=tuple(dict.fromkeys(f"{shape.table.name}.{name}" for shape in shapes for name in shape.absent)),
    )


def upgrade(connection: sa.Connection) -> None:
    """Bring the database to the newest revision; a second time changes nothing.

    Raises
    ------
    StoreError
        `database_newer`: it is of a revision that this version does not know. `database_locked`: another process
        has been migrating for ten seconds.
    """
    with _alone(connection), _known_revision():
        command.upgrade(_config(connection), "head")


def downgrade(connection: sa.Connection) -> None:
    """Drop what `upgrade` made. Raises as `upgrade`."""
    with _alone(connection), _known_revision():
        command.downgrade(_config(connection), "base")


@contextmanager
def _known_revision() -> Iterator[None]:
    try:
        yield
    except CommandError as fault:
        raise StoreError(f"the database is of a newer version: {fault}", code="database_newer") from None


def _config(connection: sa.Connection | None) -> Config:
    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _alone(connection: sa.Connection) -> Iterator[None]:
    """Of two processes that migrate one waits; SQLite's transaction has the whole file anyway."""
    name = connection.dialect.name
    if name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout='{_LOCK_SECONDS}s'")
        connection.exec_driver_sql(f"SET LOCAL statement_timeout='{2 * _LOCK_SECONDS}s'")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_NUMBER)))
    elif name == "mysql":
        got = connection.execute(sa.select(sa.func.get_lock(_LOCK_NAME, _LOCK_SECONDS))).scalar_one()
        if got != 1:
            raise StoreError("another process is migrating the database", code="database_locked")
    try:
        yield
    finally:
        if name == "mysql" and not connection.invalidated:
            connection.execute(sa.select(sa.func.release_lock(_LOCK_NAME)))
