"""The broker's database: whole accounts out of it, every order and booking into it once, on three databases."""

import contextlib
import gc
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copyrisk import identifiers
from copyrisk.errors import ConfigError, InvalidId, StoreError, StoreUnavailable
from copyrisk.sql.database import Database, open_database
from copyrisk.sql.tables import ORDER_NUMBERS, ORDER_TABLES
from copyrisk.terms import ACCOUNT_TABLES, AccountType
from tests.databases import SqlServer

LIVE_1 = identifiers.account("live", "U1")
TS_MS = 1_767_600_000_123


def execute(database: Database, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def rows(database: Database, query: str) -> list[dict[str, Any]]:
    with database.engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.text(query)).mappings()]


def number(value: object) -> Decimal:
    return Decimal(str(value))


def put(database: Database, table: str, **values: object) -> None:
    named = sa.table(table, *(sa.column(name) for name in values))
    with database.engine.begin() as connection:
        connection.execute(named.insert().values(**values))


def order_of(version: int, **other: str) -> dict[str, str]:
    return {
        "order_id": "O1",
        "symbol": "EURUSD",
        "order_type": "BUY",
        "order_status": "OPEN",
        "execution_status": "EXECUTED",
        "order_price": f"1.{version:04}",
        "order_quantity": "0.29",
        "created_at": "2026-01-05T09:00:00.250Z",
        **other,
    }


def entry_of(
    version: int, order: dict[str, Any] | None = None, amount: str | None = None, **other: str
) -> dict[str, str]:
    order_id = other.get("order_id", "O1")
    whose = f"{other.get('user_type', 'live')}:{other.get('user_id', 'U1')}"
    entry = {"entry_id": f"{whose}:{version}", "kind": "close", "amount_usd": amount, "balance_usd": "1000.5"}
    return {
        "user_type": "live",
        "user_id": "U1",
        "order_id": order_id,
        "version": str(version),
        "order": json.dumps({**order_of(version), "order_id": order_id, **(order or {})}),
        **({"entry": json.dumps(entry)} if amount is not None else {}),
        "ts": str(TS_MS + version),
        **other,
    }


# Connecting


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "sqlite://",
        "sqlite:///:memory:",
        "oracle://u:secret@h/d",
        "mysql+mysqldb://u:secret@h/d",
        "mariadb://u:secret@h",
        "postgresql://u:secret@h:port/d",
        "postgresql+asyncpg://u:secret@h/d",
        "redis://u:secret@h/0",
        "://secret",
    ],
)
def test_an_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_database(url)
    assert refused.value.code == "bad_database_url"
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("backend", ["mariadb", "postgresql"])
def test_nobody_there_and_an_unknown_option_say_so(backend: str, tmp_path: Any) -> None:
    pytest.importorskip({"mariadb": "pymysql", "postgresql": "psycopg"}[backend])
    for url, code in (
        (f"{backend}://u:secret@127.0.0.1:1/d", "database_unreachable"),
        (f"{backend}://u:secret@127.0.0.1:1/d?sslmod=secret", "bad_database_url"),
    ):
        with pytest.raises(ConfigError) as refused:
            open_database(url)
        assert refused.value.code == code
        assert "secret" not in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="unable to open") as refused:
        open_database(f"sqlite:///{tmp_path}/absent/x.db")
    assert refused.value.code == "database_unreachable"


@pytest.mark.parametrize(("backend", "driver"), [("mariadb", "pymysql"), ("postgresql", "psycopg")])
def test_an_absent_driver_names_the_extra(backend: str, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(ConfigError, match=rf"install copyrisk\[{backend}\]") as refused:
        open_database(f"{backend}://u:secret@h/d")
    assert refused.value.code == "database_driver_missing"


def test_a_wrong_password_is_not_shown(sql_server: SqlServer) -> None:
    if sql_server.kind != "mariadb":
        pytest.skip("the others let everybody in here")
    sql_server.execute("CREATE USER 'joe'@'localhost' IDENTIFIED BY 'right'")
    with pytest.raises(ConfigError) as refused:
        open_database(sql_server.url("mysql", user="joe:s3cret"))
    assert refused.value.code == "database_unreachable"
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("name", ["", "id; DROP TABLE x", "a b", "i`d", "x" * 64, "1d", "id\n"])
def test_the_id_column_is_a_name(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_database("sqlite:///x.db", id_column=name)
    assert refused.value.code == "bad_id_column"


# Migrations


def table_names(database: Database) -> set[str]:
    return set(sa.inspect(database.engine).get_table_names())


def test_migrations_up_again_and_down(empty: Database) -> None:
    before = empty.check()
    assert before.revision is None and not before.is_ready and len(before.problems) == 10
    assert empty.migrate() == empty.migrate() == empty.check()
    assert empty.check().is_ready
    assert {*ACCOUNT_TABLES.values(), *ORDER_TABLES.values(), "groups", "copyrisk_ledger"} <= table_names(empty)
    empty.undo_migrations()
    assert table_names(empty) <= {"copyrisk_alembic_version"}
    assert empty.migrate().is_ready


BROKERS = (
    "CREATE TABLE live_users (id INTEGER PRIMARY KEY, name VARCHAR(80), wallet_balance DECIMAL(18,6), "
    "leverage INTEGER, {group} VARCHAR(255), status INTEGER, is_active INTEGER, email VARCHAR(255), "
    "password VARCHAR(255) NOT NULL)",
    "CREATE TABLE live_user_orders (id INTEGER PRIMARY KEY, order_id VARCHAR(255) NOT NULL UNIQUE, "
    "order_user_id INTEGER NOT NULL, symbol VARCHAR(255), order_type VARCHAR(4), order_status VARCHAR(255), "
    "order_price DECIMAL(18,8), order_quantity DECIMAL(18,8), contract_value DECIMAL(18,8), margin DECIMAL(18,8), "
    "stop_loss DECIMAL(18,8), take_profit DECIMAL(18,8), close_price DECIMAL(18,8), net_profit DECIMAL(18,8), "
    "swap DECIMAL(18,8), commission DECIMAL(18,8), created_at {time} NULL, updated_at {time} NULL, "
    "close_message VARCHAR(255))",
    "INSERT INTO live_users (id, name, wallet_balance, leverage, {group}, status, password) "
    "VALUES (17, 'Zoë', 1000.250000, 100, 'VIP', 1, 'hash'), (18, 'Ann', NULL, 0, NULL, 0, 'hash')",
    "INSERT INTO live_user_orders (id, order_id, order_user_id, symbol, order_type, close_message) "
    "VALUES (1, 'OLD', 17, 'EURUSD', 'BUY', 'kept')",
)


@pytest.fixture
def brokers(empty: Database) -> Database:
    """A broker's own tables, as they may be, and ours beside them."""
    is_mariadb = empty.engine.dialect.name == "mysql"
    words = {"group": "`group`" if is_mariadb else '"group"', "time": "DATETIME" if is_mariadb else "TIMESTAMP"}
    statements = [statement.format(**words) for statement in BROKERS]
    if is_mariadb or empty.engine.dialect.name == "postgresql":
        counted = (
            "INTEGER PRIMARY KEY AUTO_INCREMENT"
            if is_mariadb
            else "INTEGER PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY (START 100)"
        )
        statements[1] = statements[1].replace("id INTEGER PRIMARY KEY", f"id {counted}", 1)
    execute(empty, *statements)
    report = empty.migrate()
    assert report.is_ready
    assert "live_users.auto_cutoff_level" in report.absent and "live_users.email" not in report.absent
    return empty


def test_a_brokers_tables_serve_as_they_are(brokers: Database) -> None:
    found = brokers.account(identifiers.account("live", "17"))
    assert found == {"wallet_balance": "1000.25", "leverage": "100", "group": "VIP", "status": "1"}
    assert brokers.account(identifiers.account("live", "18")) == {"leverage": "0", "status": "0"}
    for other in ("017", "U1", "19", "-17", "17_", "9" * 19, "9" * 64):
        assert brokers.account(identifiers.account("live", other)) is None
    entry = entry_of(5, user_id="17", order={"user_id": "17", "margin": "1.123456789"})
    old = entry_of(6, user_id="17", order_id="OLD", order={"order_status": "CLOSED", "close_price": "1.25"})
    assert brokers.write_history([entry, old, old]) == [None, None, None]
    written = {row["order_id"]: row for row in rows(brokers, "SELECT * FROM live_user_orders")}
    assert written["O1"]["order_user_id"] == 17 and written["O1"]["version"] == 5
    assert str(written["O1"]["created_at"]).startswith("2026-01-05 09:00:00")
    assert round(number(written["O1"]["margin"]), 8) == Decimal("1.12345679")
    assert written["OLD"]["close_message"] == "kept" and written["OLD"]["order_status"] == "CLOSED"
    assert number(written["OLD"]["close_price"]) == Decimal("1.25") and written["OLD"]["created_at"] is None


def test_a_row_that_a_brokers_table_cannot_hold_stops_no_other(brokers: Database) -> None:
    fits = entry_of(5, user_id="17", order={"user_id": "17"})
    no_id = entry_of(6, order_id="O2")  # U1 is no integer
    if brokers.engine.dialect.name == "sqlite":
        wrong, code = fits, None  # its columns have no lengths
    else:
        wrong, code = entry_of(7, {"order_type": "BUY_LIMIT"}, user_id="17", order_id="O3", amount="1"), "row_refused"
    assert brokers.write_history([no_id, wrong, fits]) == ["row_refused", code, None]
    assert {row["order_id"] for row in rows(brokers, "SELECT order_id FROM live_user_orders")} == {"OLD", "O1"}
    assert rows(brokers, "SELECT * FROM copyrisk_ledger") == []


def test_undoing_leaves_the_brokers_tables(brokers: Database) -> None:
    brokers.undo_migrations()
    assert (
        {"live_users", "live_user_orders"}
        <= table_names(brokers)
        <= {"live_users", "live_user_orders", "copyrisk_alembic_version"}
    )
    assert "version" not in {column["name"] for column in sa.inspect(brokers.engine).get_columns("live_user_orders")}
    assert len(rows(brokers, "SELECT * FROM live_users")) == 2


def test_a_table_without_what_is_needed_is_not_used(empty: Database) -> None:
    execute(
        empty,
        "CREATE TABLE demo_users (id INTEGER, leverage INTEGER)",
        "CREATE TABLE demo_user_orders (order_id VARCHAR(64), order_user_id VARCHAR(64), margin INTEGER)",
    )
    problems = " ".join(empty.migrate().problems)
    for said in (
        "demo_users.wallet_balance: there",
        "demo_users: id must be unique",
        "demo_user_orders: order_id must",
    ):
        assert said in problems
    assert "demo_user_orders.margin: INTEGER cannot hold a decimal" in problems
    with pytest.raises(StoreError) as refused:
        empty.account(identifiers.account("demo", "1"))
    assert refused.value.code == "database_unfit"
    others = [entry_of(1), entry_of(1, user_type="strategy_provider", amount="1"), entry_of(1, order_id="o o")]
    unfit = entry_of(1, user_type="demo")
    assert empty.write_history([unfit, *others, unfit]) == ["try_later", None, None, "invalid_order_id", "try_later"]
    assert ledger_sum(empty) == 1
    empty.undo_migrations()
    execute(empty, "DROP TABLE demo_user_orders")
    assert "demo_users.wallet_balance: there" in empty.migrate().problems[0]
    assert empty.write_history([unfit, entry_of(2, user_type="demo", amount="1")]) == [None, "try_later"]
    assert ledger_sum(empty) == 0


def test_a_database_of_a_newer_version_is_left_alone(database: Database) -> None:
    execute(database, "UPDATE copyrisk_alembic_version SET version_num = '9999'")
    assert not database.check().is_ready
    with pytest.raises(StoreError) as refused:
        database.migrate()
    assert refused.value.code == "database_newer"


def test_two_migrate_at_once(sql_server: SqlServer) -> None:
    url = sql_server.new_url()
    start = threading.Barrier(3)

    def migrate(_: int) -> bool:
        with open_database(url) as mine:
            start.wait()
            return mine.migrate().is_ready

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(migrate, range(3))) == [True] * 3


# Accounts and groups


def test_an_account_of_each_type(database: Database) -> None:
    for kind, table in ACCOUNT_TABLES.items():
        put(database, table, id="U-1", wallet_balance="100.5", leverage="200", group="Pro", email=f"{kind}é@x.eu")
        found = database.account(identifiers.Account(kind, "U-1"))
        assert found == {"wallet_balance": "100.5", "leverage": "200", "group": "Pro", "email": f"{kind}é@x.eu"}
        assert database.account(identifiers.Account(kind, "U-2")) is None
        assert database.account(identifiers.Account(kind, "u-1")) is None
    more = {
        "copy_status": "active",
        "multiplier": "1.5",
        "reverse": True,
        "symbols_denied": "EURUSD,XAUUSD",
        "is_active": True,
    }
    put(database, "copy_follower_accounts", id="F", wallet_balance="0", leverage="1", **more)
    found = database.account(identifiers.Account(AccountType.FOLLOWER, "F"))
    assert found == {
        "wallet_balance": "0",
        "leverage": "1",
        **more,
        "multiplier": "1.5",
        "reverse": "1",
        "is_active": "1",
    }


def test_groups(database: Database) -> None:
    put(
        database,
        "groups",
        name="Standard",
        symbol="EURUSD",
        contract_size="100000",
        profit="USD",
        type=1,
        spread_pip="0.00001",
    )
    put(database, "groups", name="Standard", symbol="XAUUSD")
    assert database.group("Standard", "EURUSD") == {
        "contract_size": "100000", "profit": "USD", "type": "1", "spread_pip": "0.00001"
    }  # fmt: skip
    assert database.group("Standard", "XAUUSD") == {}
    assert database.group("standard", "EURUSD") is database.group("Standard", "GBPUSD") is None


LONG = "123456789012345678.123456789012345678"


def test_decimals_are_exact(database: Database) -> None:
    put(database, "live_users", id="U1", wallet_balance=f"-{LONG}", leverage="0.1")
    assert database.account(LIVE_1) == {"wallet_balance": f"-{LONG}", "leverage": "0.1"}
    order = {"order_price": LONG, "swap": f"-{LONG}", "margin": "0.000000000000000001", "net_profit": "0.10"}
    assert database.write_history([entry_of(1, order, amount=LONG)]) == [None]
    [row] = rows(database, "SELECT * FROM live_user_orders")
    assert {name: number(row[name]) for name in order} == {name: Decimal(text) for name, text in order.items()}
    assert number(rows(database, "SELECT * FROM copyrisk_ledger")[0]["amount_usd"]) == Decimal(LONG)


def test_what_is_no_number_is_not_taken_for_absent(brokers: Database) -> None:
    if brokers.engine.dialect.name == "postgresql":
        execute(
            brokers,
            "ALTER TABLE live_users ALTER wallet_balance TYPE NUMERIC",
            "UPDATE live_users SET wallet_balance = 'NaN'",
        )
        assert (brokers.account(identifiers.account("live", "17")) or {})["wallet_balance"] == "NaN"
    execute(brokers, "UPDATE live_users SET email = '" + "x" * 200 + "'")
    assert (brokers.account(identifiers.account("live", "17")) or {})["email"] == "x" * 200


def test_half_a_text_is_not_read(database: Database) -> None:
    put(database, "copy_follower_accounts", id="F", symbols_denied="EURUSD," * 1000)
    with pytest.raises(StoreError) as refused:
        database.account(identifiers.Account(AccountType.FOLLOWER, "F"))
    assert refused.value.code == "row_unreadable"


def test_a_brokers_floats_read_as_they_are_written(empty: Database) -> None:
    execute(
        empty,
        "CREATE TABLE demo_users "
        "(account_number VARCHAR(20) PRIMARY KEY, wallet_balance DOUBLE PRECISION, leverage INTEGER)",
        "INSERT INTO demo_users VALUES ('A7', 0.1, 50), ('A8', 1e20, 50)",
    )
    with open_database(empty.engine.url.render_as_string(False), id_column="account_number") as by_number:
        by_number.migrate()
        expected = {"wallet_balance": "0.1", "leverage": "50", "account_number": "A7"}
        assert by_number.account(identifiers.account("demo", "A7")) == expected
        assert (by_number.account(identifiers.account("demo", "A8")) or {})["wallet_balance"] == "100000000000000000000"


def test_other_types_of_ids(empty: Database) -> None:
    if empty.engine.dialect.name != "postgresql":
        pytest.skip("a type of PostgreSQL's own")
    execute(
        empty,
        "CREATE TABLE demo_users (id UUID PRIMARY KEY, wallet_balance NUMERIC, leverage INTEGER, is_active BOOLEAN)",
        "INSERT INTO demo_users VALUES ('0b9f7c5e-8f0e-4c0e-9d0a-0123456789ab', 5, 10, TRUE)",
    )
    empty.migrate()
    expected = {"wallet_balance": "5", "leverage": "10", "is_active": "1"}
    assert empty.account(identifiers.account("demo", "0b9f7c5e-8f0e-4c0e-9d0a-0123456789ab")) == expected
    assert empty.account(identifiers.account("demo", "0B9F7C5E-8F0E-4C0E-9D0A-0123456789AB")) is None
    assert empty.account(identifiers.account("demo", "U1")) is None


def test_a_collation_makes_no_two_ids_one(empty: Database) -> None:
    if empty.engine.dialect.name != "mysql":
        pytest.skip("only MariaDB's default")
    texts, times = ("order_type", "symbol", "order_status"), ("created_at", "updated_at")
    order_columns = ["order_id VARCHAR(64) PRIMARY KEY", "order_user_id VARCHAR(64)"]
    order_columns += [f"{name} TEXT" for name in texts] + [f"{name} DATETIME" for name in times]
    order_columns += [f"{name} DECIMAL(18,8)" for name in ORDER_NUMBERS]
    execute(
        empty,
        "CREATE TABLE live_users (id VARCHAR(64) PRIMARY KEY, wallet_balance INTEGER, leverage INTEGER)",
        f"CREATE TABLE live_user_orders ({', '.join(order_columns)})",
        "INSERT INTO live_users VALUES ('abc', 1, 1)",
    )
    empty.migrate()
    assert empty.account(identifiers.account("live", "ABC")) is None
    assert empty.account(identifiers.account("live", "abc")) == {"wallet_balance": "1", "leverage": "1"}
    first, same, other = entry_of(1), entry_of(2, order_id="o1"), entry_of(2, user_id="u1")
    assert empty.write_history([first, same, other]) == [None, "order_id_taken", "order_id_taken"]
    assert [row["version"] for row in rows(empty, "SELECT version FROM live_user_orders")] == [1]


@pytest.mark.parametrize(
    "text", ["", "x' OR '1'='1", "1; DROP TABLE live_users", "é", "a\n", "a" * 65, "a b", "%", "{a}"]
)
def test_ids_outside_the_grammar_never_reach_the_database(text: str, database: Database) -> None:
    asked: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *said: asked.append(said[2]))
    for call in (
        lambda: database.account(identifiers.Account(AccountType.LIVE, text)),
        lambda: database.account(identifiers.Account(text, "U1")),  # type: ignore[arg-type]
        lambda: database.group("Standard", text),
        lambda: database.group(f"{text}\n", "EURUSD"),
    ):
        with pytest.raises(InvalidId):
            call()
    entries = [entry_of(1, user_id=text), entry_of(1, order_id=text), entry_of(1, user_type=text)]
    assert database.write_history(entries) == ["invalid_account_id", "invalid_order_id", "invalid_user_type"]
    assert asked == []


# Writing history


def test_an_order_is_as_its_highest_version_says(database: Database) -> None:
    stopped = entry_of(4, {"stop_loss": "1.05", "order_status": "OPEN"})
    closed = entry_of(9, {"order_status": "CLOSED", "net_profit": "-3.20", "close_price": "1.1"}, amount="-3.20")
    assert database.write_history([stopped]) == [None]
    assert rows(database, "SELECT stop_loss FROM live_user_orders")[0]["stop_loss"] is not None
    assert database.write_history([closed]) == [None]
    for again in (stopped, closed, entry_of(8), {**closed, "order": entry_of(9)["order"]}):
        assert database.write_history([again]) == [None]
    [row] = rows(database, "SELECT * FROM live_user_orders")
    assert (row["version"], row["order_status"], row["stop_loss"]) == (9, "CLOSED", None)
    assert str(row["created_at"]).startswith("2026-01-05 09:00:00.25")
    assert str(row["updated_at"]).startswith("2026-01-05 08:00:00.132")
    [booked] = rows(database, "SELECT * FROM copyrisk_ledger")
    assert number(booked["amount_usd"]) == Decimal("-3.2") and booked["order_quantity"] is None


def test_tables_by_type(database: Database) -> None:
    assert database.write_history([entry_of(1, user_type=kind) for kind in AccountType]) == [None] * 4
    for name in ORDER_TABLES.values():
        assert len(rows(database, f"SELECT * FROM {name}")) == 1


def test_nobody_takes_anothers_order_or_booking(database: Database) -> None:
    mine, his = entry_of(1, amount="5"), entry_of(2, user_id="U2", amount="7")
    other_amount = entry_of(1, amount="6")
    assert database.write_history([mine]) == [None]
    assert database.write_history([his, entry_of(2), other_amount]) == ["order_id_taken", None, "entry_id_taken"]
    [row] = rows(database, "SELECT * FROM live_user_orders")
    assert (row["order_user_id"], row["version"]) == ("U1", 2)
    assert [number(row["amount_usd"]) for row in rows(database, "SELECT * FROM copyrisk_ledger")] == [5]


BAD = (
    ({"user_type": "vip"}, "invalid_user_type"),
    ({"version": "-1"}, "invalid_version"),
    ({"version": str(2**63)}, "invalid_version"),
    ({"version": "1e3"}, "invalid_version"),
    ({"version": "٣"}, "invalid_version"),
    ({"ts": ""}, "invalid_ts"),
    ({"ts": "9" * 19}, "invalid_ts"),
    ({"order": "{"}, "invalid_order"),
    ({"order": "[]"}, "invalid_order"),
    ({"order": "[" * 9000}, "invalid_order"),
    ({"order": json.dumps({**order_of(1), "x": "y" * 20_000})}, "invalid_order"),
    ({"order": 7}, "invalid_order"),
    ({"entry": "nul"}, "invalid_entry"),
    ({"entry": "{}"}, "invalid_entry_id"),
    ({"entry": json.dumps({"entry_id": "a' b", "kind": "close"})}, "invalid_entry_id"),
    ({"entry": json.dumps({"entry_id": "a" * 161, "kind": "close"})}, "invalid_entry_id"),
    ({"entry": json.dumps({"entry_id": "a", "kind": "Ende!"})}, "invalid_kind"),
    ({"entry": json.dumps({"entry_id": "a", "kind": "close"})}, "invalid_amount_usd"),
    ({"entry": json.dumps({"entry_id": "a", "kind": "close", "amount_usd": 1.5})}, "invalid_amount_usd"),
)
BAD_ORDERS = (
    ({"order_id": "O2"}, "history_contradicts"),
    ({"user_id": 5}, "history_contradicts"),
    ({"user_type": "demo"}, "history_contradicts"),
    ({"symbol": "eur usd"}, "invalid_symbol"),
    ({"symbol": None}, "invalid_symbol"),
    ({"order_type": "BUY_MAYBE"}, "invalid_order_type"),
    ({"order_status": ["OPEN"]}, "invalid_order_status"),
    ({"order_price": "1e5"}, "invalid_order_price"),
    ({"order_price": ""}, "invalid_order_price"),
    ({"order_quantity": "nan"}, "invalid_order_quantity"),
    ({"swap": "1" * 19}, "invalid_swap"),
    ({"margin": 1.5}, "invalid_margin"),
    ({"commission": {"a": [1]}}, "invalid_commission"),
    ({"stop_loss": True}, "invalid_stop_loss"),
    ({"created_at": "x" * 65}, "invalid_created_at"),
)


def test_a_bad_entry_is_returned_with_its_reason_and_stops_no_other(database: Database) -> None:
    faulty = [({**entry_of(1), **fields}, code) for fields, code in BAD]
    faulty += [(entry_of(1, order), code) for order, code in BAD_ORDERS]
    good = entry_of(2, amount="1")
    entries: list[Any] = [good, *(entry for entry, _ in faulty), {}, entry_of(3, order_id="O9")]
    assert database.write_history(entries) == [None, *(code for _, code in faulty), "invalid_user_type", None]
    assert {row["order_id"] for row in rows(database, "SELECT order_id FROM live_user_orders")} == {"O1", "O9"}


@pytest.mark.parametrize("said", ["yesterday", "", "99999999-99", "9" * 19, "2026-13-01", None])
def test_a_time_that_is_none_is_not_known(said: str | None, sql_server: SqlServer, database: Database) -> None:
    assert database.write_history([entry_of(1, {"created_at": said})]) == [None]
    assert rows(database, "SELECT created_at FROM live_user_orders") == [{"created_at": None}]


def test_more_entries_than_one_transaction_takes(database: Database) -> None:
    entries = [entry_of(number, order_id=f"O{number}", amount="0.01") for number in range(1, 1201)]
    random.Random(7).shuffle(entries)
    assert database.write_history(entries) == [None] * 1200
    assert database.write_history([]) == []
    assert ledger_sum(database) == 12


def ledger_sum(database: Database) -> Decimal:
    return sum(
        (number(row["amount_usd"]) for row in rows(database, "SELECT amount_usd FROM copyrisk_ledger")), Decimal(0)
    )


NAMES = itertools.count()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_repeated_and_however_it_comes_the_outcome_is_the_same(
    database: Database, data: st.DataObject
) -> None:
    """Against a slow twin: per order the highest version, per booking one row."""
    salt = f"x{next(NAMES)}"
    written: dict[str, tuple[int, str]] = {}
    booked: dict[str, str] = {}
    cases = st.tuples(st.integers(0, 9), st.integers(0, 2), st.booleans())
    for batch in data.draw(st.lists(st.lists(cases, max_size=6), max_size=4)):
        entries = []
        for version, order, books in batch:
            order_id = f"{salt}-{order}"
            entry = entry_of(version, order_id=order_id)
            if books:
                booking = {
                    "entry_id": f"{order_id}:{version}",
                    "kind": "close",
                    "amount_usd": str(version),
                    "balance_usd": "0",
                }
                entry["entry"] = json.dumps(booking)
                booked[booking["entry_id"]] = booking["amount_usd"]
            entries.append(entry)
            written[order_id] = max(written.get(order_id, (-1, "")), (version, f"1.{version:04}"))
        assert database.write_history(entries) == [None] * len(entries)
    orders = rows(database, f"SELECT * FROM live_user_orders WHERE order_id LIKE '{salt}-%'")
    assert {row["order_id"]: (row["version"], number(row["order_price"])) for row in orders} == {
        order_id: (version, Decimal(price)) for order_id, (version, price) in written.items()
    }
    bookings = rows(database, f"SELECT * FROM copyrisk_ledger WHERE order_id LIKE '{salt}-%'")
    assert sorted((row["entry_id"], number(row["amount_usd"])) for row in bookings) == sorted(
        (entry_id, Decimal(amount)) for entry_id, amount in booked.items()
    )


def test_eight_writers_of_the_same_history(database: Database) -> None:
    entries = [entry_of(version, order_id=f"O{version % 5}", amount=f"{version}.01") for version in range(1, 61)]

    def write(seed: int) -> None:
        mine = entries * 2
        random.Random(seed).shuffle(mine)
        for start in range(0, len(mine), 8):
            part = mine[start : start + 8]
            while True:
                try:
                    assert database.write_history(part) == [None] * len(part)
                    break
                except StoreUnavailable:  # a deadlock twice over: not acknowledged, so it comes again
                    retries.append(seed)

    retries: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(retries) < 40
    found = {
        row["order_id"]: (row["version"], number(row["order_price"]))
        for row in rows(database, "SELECT * FROM live_user_orders")
    }
    assert found == {f"O{version % 5}": (version, Decimal(f"1.{version:04}")) for version in range(56, 61)}
    assert ledger_sum(database) == sum(Decimal(f"{version}.01") for version in range(1, 61))


# Faults


def killer(database: Database, sql_server: SqlServer, *, times: int) -> Callable[[], int]:
    """Kills the session of the writer between booking and order, so many times; answers how often it has."""
    done = 0

    def kill(connection: sa.Connection, cursor: Any, statement: str, *_: object) -> None:
        nonlocal done
        if "INSERT INTO copyrisk_ledger" not in statement or done == times:
            return
        done += 1
        raw: Any = connection.connection.dbapi_connection
        if sql_server.kind == "mariadb":
            sql_server.execute(f"KILL {raw.thread_id()}")
        else:
            sql_server.execute(f"SELECT pg_terminate_backend({raw.info.backend_pid})")

    sa.event.listen(database.engine, "after_cursor_execute", kill)
    return lambda: done


@pytest.mark.fault
@pytest.mark.parametrize("times", [1, 2])
def test_a_session_killed_half_way(database: Database, sql_server: SqlServer, times: int) -> None:
    if sql_server.kind == "sqlite":
        pytest.skip("it has no sessions to kill")
    kills = killer(database, sql_server, times=times)
    if times == 1:
        assert database.write_history([entry_of(1, amount="5")]) == [None]
    else:
        with pytest.raises(StoreUnavailable) as fault:
            database.write_history([entry_of(1, amount="5")])
        assert fault.value.code == "database_unavailable"
        assert rows(database, "SELECT * FROM copyrisk_ledger") == rows(database, "SELECT * FROM live_user_orders") == []
        assert database.write_history([entry_of(1, amount="5")]) == [None]
    assert kills() == times
    assert ledger_sum(database) == 5 and len(rows(database, "SELECT * FROM live_user_orders")) == 1


@pytest.mark.fault
def test_a_writer_killed_half_way(database: Database) -> None:
    script = """
import json, os, signal, sys
import sqlalchemy as sa
from copyrisk.sql.database import open_database
database = open_database(sys.argv[1])
def kill(connection, cursor, statement, *_):
    if "INSERT INTO live_user_orders" in statement:
        os.kill(os.getpid(), signal.SIGKILL)
sa.event.listen(database.engine, "after_cursor_execute", kill)
database.write_history([json.loads(sys.argv[2])])
"""
    entry = entry_of(1, amount="5")
    url = database.engine.url.render_as_string(False)
    killed = subprocess.run([sys.executable, "-c", script, url, json.dumps(entry)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert database.write_history([entry, entry]) == [None, None]
    assert ledger_sum(database) == 5 and len(rows(database, "SELECT * FROM live_user_orders")) == 1


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # pymysql, when nobody listens
@pytest.mark.parametrize("kill", [False, True])
def test_a_server_that_goes_and_comes_back(database: Database, sql_server: SqlServer, *, kill: bool) -> None:
    if sql_server.kind == "sqlite":
        pytest.skip("it has no server")
    put(database, "live_users", id="U1", wallet_balance="5", leverage="1")
    assert database.write_history([entry_of(1, amount="5")]) == [None]
    sql_server.stop(kill=kill)
    try:
        for call in (
            lambda: database.account(LIVE_1),
            lambda: database.write_history([entry_of(2, amount="6")]),
            database.check,
            database.migrate,
        ):
            with pytest.raises(StoreUnavailable) as fault:
                call()
            assert fault.value.code == "database_unavailable"
            assert "\n" not in str(fault.value)
            del fault
        gc.collect()
    finally:
        sql_server.start()
    assert database.account(LIVE_1) == {"wallet_balance": "10", "leverage": "1"}
    assert database.write_history([entry_of(1, amount="5"), entry_of(2, amount="6")]) == [None, None]
    assert ledger_sum(database) == 11
    assert database.account(LIVE_1) == {"wallet_balance": "16", "leverage": "1"}


def test_a_table_that_goes_away_stops_only_its_own(database: Database) -> None:
    mine, other = entry_of(2, amount="1"), entry_of(1, user_type="demo", amount="2")
    assert database.write_history([entry_of(1), entry_of(1, user_type="demo")]) == [None, None]
    for table in ("live_user_orders", "live_users"):
        execute(database, f"ALTER TABLE {table} RENAME TO elsewhere")
        for _ in range(2):  # as it was seen before, and as it is
            assert database.write_history([mine, other, mine]) == ["try_later", None, "try_later"]
        assert ledger_sum(database) == 2
        execute(database, f"ALTER TABLE elsewhere RENAME TO {table}")
    execute(database, "ALTER TABLE copyrisk_ledger RENAME TO elsewhere")
    assert database.write_history([mine, entry_of(3)]) in (["try_later", None], ["try_later", "try_later"])
    assert database.write_history([mine, entry_of(3)]) == ["try_later", None]
    execute(database, "ALTER TABLE elsewhere RENAME TO copyrisk_ledger")
    assert database.write_history([mine]) == [None]
    assert ledger_sum(database) == 3


def test_a_table_that_is_not_allowed_stops_only_its_own(database: Database, sql_server: SqlServer) -> None:
    if sql_server.kind == "sqlite":
        pytest.skip("it has no users")
    name, table = database.engine.url.database, "live_user_orders"
    if sql_server.kind == "mariadb":
        sql_server.execute("CREATE USER IF NOT EXISTS 'clerk'@'localhost'")
        tables = [*ACCOUNT_TABLES.values(), *ORDER_TABLES.values(), "copyrisk_ledger"]
        clerk = "'clerk'@'localhost'"
        for found in tables:
            sql_server.execute(f"GRANT SELECT, INSERT, UPDATE ON {name}.{found} TO {clerk}")
        deny, allow = f"REVOKE INSERT ON {name}.{table} FROM {clerk}", f"GRANT INSERT ON {name}.{table} TO {clerk}"
        sql_server.execute(deny)
    else:
        with contextlib.suppress(Exception):
            sql_server.execute("CREATE USER clerk")
        execute(database, "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO clerk")
        deny, allow = f"REVOKE INSERT ON {table} FROM clerk", f"GRANT INSERT ON {table} TO clerk"
        execute(database, deny)
    with open_database(sql_server.url(str(name), user="clerk")) as clerks:
        both = [entry_of(1, amount="1"), entry_of(1, user_type="demo", amount="2")]
        assert clerks.write_history(both) == ["try_later", None]
        assert ledger_sum(database) == 2
        execute(database, allow)
        assert clerks.write_history(both) == [None, None]
    assert ledger_sum(database) == 3
