"""Booking to the balances of accounts' rows: each amount once, exactly, whatever is repeated, refused or killed."""

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from copyrisk.decimals import EXACT
from copyrisk.errors import StoreUnavailable
from copyrisk.sql.database import Database, open_database
from copyrisk.terms import ACCOUNT_TABLES
from tests.databases import SqlServer

LONG = "123456789012345678.123456789012345678"
Accounts = dict[str, Decimal | None]


def execute(database: Database, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def put(database: Database, account: str, balance: object) -> None:
    user_type, _, user_id = account.partition(":")
    table = sa.table(ACCOUNT_TABLES[user_type], *(sa.column(name) for name in ("id", "wallet_balance", "leverage")))  # type: ignore[index]
    with database.engine.begin() as connection:
        connection.execute(table.insert().values(id=user_id, wallet_balance=balance, leverage="100"))


def balances(database: Database) -> Accounts:
    found: Accounts = {}
    with database.engine.connect() as connection:
        for kind, table in ACCOUNT_TABLES.items():
            for name, balance in connection.execute(sa.text(f"SELECT id, wallet_balance FROM {table}")):
                found[f"{kind}:{name}"] = None if balance is None else Decimal(str(balance))
    return found


def booked(database: Database) -> dict[str, Decimal]:
    """Sums of the ledger by account."""
    found: dict[str, Decimal] = defaultdict(Decimal)
    with database.engine.connect() as connection:
        query = sa.text("SELECT user_type, user_id, amount_usd FROM copyrisk_ledger")
        for user_type, user_id, amount in connection.execute(query):
            account = f"{user_type}:{user_id}"
            found[account] = EXACT.add(found[account], Decimal(str(amount)))
    return dict(found)


def entry(version: int, amount: str | None, account: str = "live:U1", **order: str) -> dict[str, str]:
    user_type, _, user_id = account.partition(":")
    order_id = order.pop("order_id", f"{user_type}-{user_id}-{version}")
    said = {
        "symbol": "EURUSD",
        "order_type": "BUY",
        "order_status": "CLOSED",
        "order_price": "1",
        "order_quantity": "1",
    }
    booking = {"entry_id": f"{account}:{version}", "kind": "close", "amount_usd": amount, "balance_usd": "0"}
    return {
        "user_type": user_type,
        "user_id": user_id,
        "order_id": order_id,
        "version": str(version),
        "ts": "1767600000123",
        "order": json.dumps({**said, **order}),
        **({} if amount is None else {"entry": json.dumps(booking)}),
    }


def write(database: Database, entries: list[dict[str, str]]) -> None:
    """As the recorder does: what is not written comes again."""
    while True:
        try:
            assert database.write_history(entries) == [None] * len(entries)
            return
        except StoreUnavailable:
            pass


# What is booked


def test_each_amount_is_added_once(database: Database) -> None:
    for account, balance in (("live:U1", "1000.25"), ("live:U2", "5"), ("demo:U1", "7")):
        put(database, account, balance)
    closes = [entry(1, "-3.20"), entry(2, "0.10"), entry(2, "0.10"), entry(3, None), entry(1, "1", "demo:U1")]
    for _ in range(3):
        assert database.write_history(closes) == [None] * len(closes)
    assert balances(database) == {"live:U1": Decimal("997.15"), "live:U2": 5, "demo:U1": 8}
    execute(database, "UPDATE live_users SET wallet_balance = '1000' WHERE id = 'U1'")  # somebody else books, too
    assert database.write_history([entry(4, "0.5"), *closes]) == [None] * 6
    assert balances(database)["live:U1"] == Decimal("1000.5")


def test_amounts_are_exact(database: Database) -> None:
    put(database, "live:U1", f"-{LONG}")
    put(database, "live:U2", "0")
    tiny = ["0.000000000000000001"] * 5 + ["-0.1"] * 3 + ["0.3"]
    assert database.write_history([entry(i, amount, "live:U2") for i, amount in enumerate(tiny)]) == [None] * 9
    assert database.write_history([entry(1, LONG), entry(2, LONG), entry(3, "0.01")]) == [None] * 3
    assert balances(database) == {
        "live:U1": EXACT.add(Decimal(LONG), Decimal("0.01")),
        "live:U2": Decimal("0.000000000000000005"),
    }


def test_a_balance_that_cannot_hold_the_sum_is_left_as_it_is(database: Database) -> None:
    put(database, "live:U1", "9" * 18)
    put(database, "live:U2", "1")
    entries = [entry(1, "2"), entry(1, "1", "live:U2"), entry(2, "-1")]
    assert database.write_history(entries) == ["row_refused", None, None]
    assert balances(database) == {"live:U1": Decimal("9" * 18) - 1, "live:U2": 2}
    assert booked(database) == {"live:U1": -1, "live:U2": 1}


def test_what_is_refused_books_nothing(database: Database) -> None:
    put(database, "live:U1", "100")
    put(database, "live:U2", "100")
    assert database.write_history([entry(1, "5", order_id="O1")]) == [None]
    wrong_amount, anothers_order = entry(1, "6", order_id="O1"), entry(7, "50", "live:U2", order_id="O1")
    entries = [wrong_amount, entry(2, "1"), anothers_order, entry(3, "x"), entry(8, "2", "live:U2")]
    codes = ["entry_id_taken", None, "order_id_taken", "invalid_amount_usd", None]
    for _ in range(2):
        assert database.write_history(entries) == codes
        assert balances(database) == {"live:U1": 106, "live:U2": 102}


def test_without_the_setting_balances_are_left_alone(database: Database) -> None:
    put(database, "live:U1", "100")
    with open_database(database.engine.url.render_as_string(False), books_balance=False) as other:
        assert other.write_history([entry(1, "5")]) == [None]
    assert database.write_history([entry(1, "5")]) == [None]  # is in the ledger, so it has been dealt with
    assert balances(database) == {"live:U1": 100}
    assert booked(database) == {"live:U1": 5}


def test_no_row_or_no_balance_is_not_zero(database: Database) -> None:
    put(database, "live:U2", None)
    put(database, "live:u1", "1")
    entries = [entry(1, "5"), entry(1, "5", "live:U2"), entry(2, "5")]
    with capture_logs() as logged:
        for part in (entries[:1], entries[1:], [entry(3, "5")]):
            assert database.write_history(part) == [None] * len(part)
    told = [line["account"] for line in logged if line["event"] == "balance_not_booked"]
    assert told == ["live:U1", "live:U2"]
    assert balances(database) == {"live:u1": 1, "live:U2": None}
    assert booked(database) == {"live:U1": 15, "live:U2": 5}
    put(database, "live:U1", "20")  # what the ledger says by then is in it
    assert database.write_history([*entries, entry(4, "5")]) == [None] * 4
    assert balances(database)["live:U1"] == 25


def test_a_balance_that_is_no_number_is_not_one(database: Database) -> None:
    if database.engine.dialect.name == "mysql":
        pytest.skip("its decimals are numbers")
    if database.engine.dialect.name == "postgresql":
        execute(database, "ALTER TABLE live_users ALTER wallet_balance TYPE NUMERIC")
    put(database, "live:U1", "NaN")
    assert database.write_history([entry(1, "5")]) == [None]
    with database.engine.connect() as connection:
        assert str(connection.execute(sa.text("SELECT wallet_balance FROM live_users")).scalar_one()) == "NaN"


# A broker's own tables


def test_a_brokers_decimals(empty: Database) -> None:
    execute(
        empty,
        "CREATE TABLE live_users (id INTEGER PRIMARY KEY, wallet_balance DECIMAL(18,6), leverage INTEGER)",
        "CREATE TABLE demo_users (id VARCHAR(20) PRIMARY KEY, wallet_balance VARCHAR(20), leverage INTEGER)",
        "INSERT INTO live_users VALUES (17, 1000.250000, 100), (18, 3, 100)",
        "INSERT INTO demo_users VALUES ('U1', '0.1', 100)",
    )
    assert empty.migrate().is_ready
    entries = [entry(i, "-0.01", "live:17") for i in range(20)] + [entry(1, "0.2", "demo:U1"), entry(1, "1", "live:A")]
    assert empty.write_history(entries) == [None] * 22
    found = balances(empty)
    assert (found["live:17"], found["live:18"], found["demo:U1"]) == (Decimal("1000.05"), 3, Decimal("0.3"))
    # More digits than the column has: the sum would be another, and the next ones wrong for ever.
    refused = None if empty.engine.dialect.name == "sqlite" else "row_refused"
    assert empty.write_history([entry(90, "0.0000001", "live:17"), entry(91, "1", "live:18")]) == [refused, None]
    assert balances(empty)["live:18"] == 4


def test_a_uuid_that_is_none_has_no_row(empty: Database) -> None:
    if empty.engine.dialect.name != "postgresql":
        pytest.skip("a type of PostgreSQL's own")
    known = "0b9f7c5e-8f0e-4c0e-9d0a-0123456789ab"
    execute(
        empty,
        "CREATE TABLE demo_users (id UUID PRIMARY KEY, wallet_balance NUMERIC, leverage INTEGER)",
        f"INSERT INTO demo_users VALUES ('{known}', 5, 10)",
    )
    assert empty.migrate().is_ready
    names = [known, known.upper(), "U1"]
    assert empty.write_history([entry(1, "1", f"demo:{name}") for name in names]) == [None] * 3
    assert balances(empty) == {f"demo:{known}": 6}


def test_a_collation_makes_no_two_accounts_one(empty: Database) -> None:
    if empty.engine.dialect.name != "mysql":
        pytest.skip("only MariaDB's default")
    columns = "(id VARCHAR(64) PRIMARY KEY, wallet_balance DECIMAL(18,2), leverage INTEGER)"
    execute(empty, f"CREATE TABLE live_users {columns}", "INSERT INTO live_users VALUES ('abc', 1, 1)")
    assert empty.migrate().is_ready
    assert empty.write_history([entry(1, "5", "live:ABC"), entry(1, "7", "live:abc")]) == [None, None]
    assert balances(empty) == {"live:abc": 8}


@pytest.mark.parametrize("kind", ["DOUBLE PRECISION", "INTEGER", "DECIMAL(18,1)", "MyISAM"])
def test_columns_that_would_not_be_exact_are_not_booked_to(empty: Database, kind: str) -> None:
    dialect = empty.engine.dialect.name
    if (dialect == "sqlite" and kind != "INTEGER") or (dialect != "mysql" and kind == "MyISAM"):
        pytest.skip("it holds them")
    column, engine = ("DECIMAL(18,2)", "ENGINE=MyISAM") if kind == "MyISAM" else (kind, "")
    columns = f"(id VARCHAR(9) PRIMARY KEY, wallet_balance {column}, leverage INTEGER)"
    execute(empty, f"CREATE TABLE live_users {columns} {engine}", "INSERT INTO live_users VALUES ('U1', 1, 1)")
    (problem,) = empty.migrate().problems
    assert problem.startswith("live_users")
    entries = [entry(1, "5"), entry(2, None), entry(1, "7", "demo:U1")]
    assert empty.write_history(entries) == ["try_later", None, None]
    assert balances(empty) == {"live:U1": 1}
    with open_database(empty.engine.url.render_as_string(False), books_balance=False) as other:
        assert other.check().is_ready
        assert other.write_history(entries) == [None] * 3


# Repetitions, at random and at once

NAMES = itertools.count()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_balance_is_what_it_was_and_what_the_ledger_says(database: Database, data: st.DataObject) -> None:
    """Against a slow twin that takes one entry after the other."""
    accounts = [f"{kind}:A{next(NAMES)}" for kind in ("live", "live", "demo")]
    expected = dict(zip(accounts, (Decimal("1000.01"), None, Decimal(0)), strict=True))
    for account in accounts[:1] + accounts[2:]:
        put(database, account, str(expected[account]))
    known: dict[tuple[str, int], str] = {}
    cents = st.sampled_from(["0.01", "-0.01", "12.34", "0", "-1000000.99"])
    cases = st.tuples(st.sampled_from(accounts), st.integers(1, 4), cents)
    for batch in data.draw(st.lists(st.lists(cases, max_size=6), max_size=4)):
        codes = []
        for account, version, amount in batch:
            before = known.setdefault((account, version), amount)
            codes.append(None if Decimal(before) == Decimal(amount) else "entry_id_taken")
        assert database.write_history([entry(version, amount, account) for account, version, amount in batch]) == codes
    for (account, _), amount in known.items():
        if (before_usd := expected[account]) is not None:
            expected[account] = before_usd + Decimal(amount)
    found = balances(database)
    assert {account: found.get(account) for account in accounts} == expected


def test_eight_writers_of_the_same_entries(database: Database) -> None:
    accounts = [f"{kind}:U{i}" for kind in ("live", "demo", "copy_follower") for i in range(3)]
    for account in accounts:
        put(database, account, "1000.01")
    entries = [entry(i, f"{i - 30}.{i % 100:02}", accounts[i % len(accounts)]) for i in range(1, 91)]
    retries: list[int] = []

    def book(seed: int) -> None:
        mine = entries * 2
        random.Random(seed).shuffle(mine)
        for start in range(0, len(mine), 15):
            part = mine[start : start + 15]
            while True:
                try:
                    assert database.write_history(part) == [None] * len(part)
                    break
                except StoreUnavailable:  # a deadlock twice over: not acknowledged, so it comes again
                    retries.append(seed)

    def deposit() -> None:
        """Somebody else books to the same rows."""
        for _ in range(20):
            if database.engine.dialect.name == "sqlite":  # there the balances are text
                return
            execute(database, "UPDATE live_users SET wallet_balance = wallet_balance + 0.05 WHERE id = 'U0'")

    with ThreadPoolExecutor(9) as pool:
        pool.submit(deposit)
        list(pool.map(book, range(8)))
    assert len(retries) < 40
    sums, found = booked(database), balances(database)
    assert sum(sums.values()) == sum(Decimal(f"{i - 30}.{i % 100:02}") for i in range(1, 91))
    deposited = 0 if database.engine.dialect.name == "sqlite" else 1
    for account in accounts:
        assert found[account] == Decimal("1000.01") + sums[account] + (deposited if account == "live:U0" else 0)


# Faults


@contextmanager
def held(database: Database, account_table: str) -> Iterator[None]:
    """The rows of the table (SQLite: the file) are locked by somebody else."""
    with database.engine.execution_options(copyrisk_writes=True).begin() as connection:
        connection.exec_driver_sql(f"UPDATE {account_table} SET leverage = leverage")
        yield


def test_a_row_that_is_locked_is_waited_for(database: Database) -> None:
    put(database, "live:U1", "100")
    with ThreadPoolExecutor(1) as pool:
        with held(database, "live_users"):
            written = pool.submit(database.write_history, [entry(1, "5")])
            time.sleep(0.3)
            assert not written.done()
        assert written.result() == [None]
    assert balances(database) == {"live:U1": 105}


def test_a_row_that_stays_locked_books_nothing(database: Database) -> None:
    put(database, "live:U1", "100")
    impatience = {
        "sqlite": "PRAGMA busy_timeout=100",
        "mysql": "SET innodb_lock_wait_timeout=1",
        "postgresql": "SET lock_timeout='100ms'",
    }[database.engine.dialect.name]

    with open_database(database.engine.url.render_as_string(False)) as impatient:
        sa.event.listen(
            impatient.engine, "checkout", lambda connection, *_: connection.cursor().execute(impatience) and None
        )
        with held(database, "live_users"), pytest.raises(StoreUnavailable) as fault:
            impatient.write_history([entry(1, "5")])
        assert fault.value.code == "database_unavailable"
        assert (balances(database), booked(database)) == ({"live:U1": 100}, {})
        assert impatient.write_history([entry(1, "5")]) == [None]
    assert balances(database) == {"live:U1": 105}


@pytest.mark.fault
@pytest.mark.parametrize("point", ["INSERT INTO copyrisk_ledger", "UPDATE live_users", "INSERT INTO live_user_orders"])
def test_a_session_killed_half_way(database: Database, sql_server: SqlServer, point: str) -> None:
    if sql_server.kind == "sqlite":
        pytest.skip("it has no sessions to kill")
    put(database, "live:U1", "100")
    kills = 0

    def kill(connection: sa.Connection, cursor: Any, statement: str, *_: object) -> None:
        nonlocal kills
        if point not in statement or kills == 3:
            return
        kills += 1
        raw: Any = connection.connection.dbapi_connection
        if sql_server.kind == "mariadb":
            sql_server.execute(f"KILL {raw.thread_id()}")
        else:
            sql_server.execute(f"SELECT pg_terminate_backend({raw.info.backend_pid})")

    sa.event.listen(database.engine, "after_cursor_execute", kill)
    with pytest.raises(StoreUnavailable):  # killed in the first attempt and in the second
        database.write_history([entry(1, "5")])
    assert (balances(database), booked(database)) == ({"live:U1": 100}, {})
    assert database.write_history([entry(1, "5")]) == [None]  # once more in the first
    assert kills == 3
    assert (balances(database), booked(database)) == ({"live:U1": 105}, {"live:U1": 5})


@pytest.mark.fault
@pytest.mark.parametrize("point", ["INSERT INTO copyrisk_ledger", "UPDATE live_users", "INSERT INTO live_user_orders"])
def test_a_writer_killed_half_way(database: Database, point: str) -> None:
    script = """
import json, os, signal, sys
import sqlalchemy as sa
from copyrisk.sql.database import open_database
database = open_database(sys.argv[1])
def kill(connection, cursor, statement, *_):
    if sys.argv[3] in statement:
        os.kill(os.getpid(), signal.SIGKILL)
sa.event.listen(database.engine, "after_cursor_execute", kill)
database.write_history(json.loads(sys.argv[2]))
"""
    put(database, "live:U1", "100")
    entries = [entry(1, "5"), entry(2, "6")]
    url = database.engine.url.render_as_string(False)
    killed = subprocess.run([sys.executable, "-c", script, url, json.dumps(entries), point], check=False)
    assert killed.returncode == -signal.SIGKILL
    write(database, entries)
    write(database, entries)
    assert (balances(database), booked(database)) == ({"live:U1": 111}, {"live:U1": 11})
