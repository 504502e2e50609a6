"""From a URL to an engine: which drivers, how long they may take, in which session they speak."""

from typing import Any

import sqlalchemy as sa

from copyrisk.errors import ConfigError
from copyrisk.sql.faults import one_line

_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}
_EXTRAS = {"mysql+pymysql": "mariadb", "postgresql+psycopg": "postgresql"}

_CONNECT_SECONDS = 5
_REPLY_SECONDS = 15
_LOCK_SECONDS = 10
_POOL_SIZE = 4
_POOL_SECONDS = 10
_RECYCLE_SECONDS = 1800

_DRIVER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": _LOCK_SECONDS},
    "mysql": {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _REPLY_SECONDS,
        "write_timeout": _REPLY_SECONDS,
        "charset": "utf8mb4",
    },
    "postgresql": {
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives_idle": _REPLY_SECONDS,
        "tcp_user_timeout": _REPLY_SECONDS * 1000,
    },
}
#: What each session is told first. What is not kept whole must be an error, and all times are UTC.
_SESSION: dict[str, tuple[str, ...]] = {
    "sqlite": ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"),
    "mysql": (
        "SET time_zone='+00:00'",
        "SET sql_mode=CONCAT_WS(',', @@sql_mode, 'STRICT_ALL_TABLES', 'NO_ENGINE_SUBSTITUTION')",
        f"SET innodb_lock_wait_timeout={_LOCK_SECONDS}",
    ),
    "postgresql": (
        "SET TIME ZONE 'UTC'",
        f"SET statement_timeout='{_REPLY_SECONDS}s'",
        f"SET lock_timeout='{_LOCK_SECONDS}s'",
        f"SET idle_in_transaction_session_timeout='{_REPLY_SECONDS}s'",
    ),
}
#: Execution option of a transaction that writes; SQLite takes its lock at once then, and not in the middle.
WRITES = "copyrisk_writes"


def make_engine(url: str, *, must_answer: bool = True) -> sa.Engine:
    """An engine that has connected once, or (without `must_answer`) has tried to.

    Raises
    ------
    ConfigError
        `bad_database_url`, `database_driver_missing`, `database_unreachable`. The message names server and database,
        never user or password.
    """
    parsed = _parse(url)
    shown = _shown(parsed)
    dialect = parsed.get_backend_name()
    options: dict[str, Any] = {} if dialect == "sqlite" else {"isolation_level": "READ COMMITTED"}
    try:
        engine = sa.create_engine(
            parsed,
            connect_args=_DRIVER_ARGUMENTS[dialect],
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_SIZE,
            pool_timeout=_POOL_SECONDS,
            pool_pre_ping=True,
            pool_recycle=_RECYCLE_SECONDS,
            hide_parameters=True,
            **options,
        )
    except ModuleNotFoundError:
        extra = _EXTRAS.get(parsed.drivername, dialect)
        raise ConfigError(f"{shown}: install copyrisk[{extra}]", code="database_driver_missing") from None
    _prepare_sessions(engine, dialect)
    try:
        with engine.connect():
            pass
    except sa.exc.OperationalError as fault:
        if not must_answer:
            return engine
        said = _without(parsed.password, one_line(fault))
        engine.dispose()
        raise ConfigError(f"{shown}: {said}", code="database_unreachable") from None
    except (sa.exc.DBAPIError, TypeError, ValueError) as fault:  # options that the driver does not know
        said = _without(parsed.password, one_line(fault))
        engine.dispose()
        raise ConfigError(f"{shown}: {said}", code="bad_database_url") from None
    return engine


def _parse(url: str) -> sa.URL:
    examples = "sqlite:///file, mariadb://user:password@host/name or postgresql://user:password@host/name"
    try:
        parsed = sa.make_url(url)
        driver = _DRIVERS.get(parsed.get_backend_name())
    except (sa.exc.ArgumentError, ValueError):  # these quote the URL, with its password
        raise ConfigError(f"not the URL of a database; known are {examples}", code="bad_database_url") from None
    if driver is None or parsed.drivername not in (parsed.get_backend_name(), driver, "mariadb+pymysql"):
        raise ConfigError(f"{parsed.drivername[:40]!a} is not supported; known are {examples}", code="bad_database_url")
    if not parsed.database or parsed.database == ":memory:":
        wanted = "a file" if driver.startswith("sqlite") else "the name of the database"
        raise ConfigError(f"the database's URL lacks {wanted}; known are {examples}", code="bad_database_url")
    return parsed.set(drivername=driver)


def _shown(url: sa.URL) -> str:
    """Where the database is, without who asks."""
    socket = url.query.get("unix_socket", url.query.get("host", ""))
    return f"database {url.get_backend_name()} {url.host or socket} {url.database}".replace("  ", " ")


def _without(password: object, said: str) -> str:
    return said.replace(str(password), "***") if password else said


def _prepare_sessions(engine: sa.Engine, dialect: str) -> None:
    @sa.event.listens_for(engine, "connect")
    def tell_session(connection: Any, _: object) -> None:
        if dialect == "sqlite":
            connection.isolation_level = None  # transactions begin where we say, see below
        cursor = connection.cursor()
        for statement in _SESSION[dialect]:
            cursor.execute(statement)
        cursor.close()
        connection.commit()

    if dialect == "sqlite":

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            writes = connection.get_execution_options().get(WRITES, False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
