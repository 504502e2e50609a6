"""Orders on their way to the database, and accounts on their way back: real workers, recorders and databases."""

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from copyrisk.commands import Kind
from copyrisk.errors import ConfigError, StoreError, StoreUnavailable, TryLater
from copyrisk.recorder import Recorder
from copyrisk.roles import make_workers, run_recorder
from copyrisk.sql.database import Database
from copyrisk.store.filler import Filler
from copyrisk.store.letters import list_letters, replay
from copyrisk.store.pipe import Pipe
from copyrisk.store.settled import SettledSource
from copyrisk.terms import ACCOUNT_TABLES
from tests.databases import SqlServer
from tests.test_wallets import balances, booked, entry, execute, held, put
from tests.trading import Desk, process, until

RETRY_MS = 50


def url_of(database: Database) -> str:
    return database.engine.url.render_as_string(False)


@pytest.fixture
def desk(bundled_server: Any, database: Database) -> Iterator[Desk]:
    """A desk whose accounts are in the database, and its terms, too; Redis has the quotes."""
    made = Desk(bundled_server, database__url=url_of(database))
    made.client.delete("groups:{Standard}:EURUSD")
    put_row(database, "groups", name="Standard", symbol="EURUSD", contract_size="100000", profit="USD", type=1)
    made._own = make_workers(made.new_client(), made.settings, tuple(Kind), database)
    made._own._consumer.join()
    yield made
    made.close()


@pytest.fixture
def recorder(desk: Desk, database: Database) -> Recorder:
    return joined(desk, database)


def joined(desk: Desk, database: Database) -> Recorder:
    made = Recorder(Pipe(desk.new_client()), database, retry_ms=RETRY_MS)
    made._consumer.join()
    return made


def put_row(database: Database, table: str, **values: object) -> None:
    named = sa.table(table, *(sa.column(name) for name in values))
    with database.engine.begin() as connection:
        connection.execute(named.insert().values(**values))


def new_account(database: Database, account: str, balance: str = "10000") -> str:
    kind, _, name = account.partition(":")
    terms = {"leverage": "100", "group": "Standard", "status": "1", "sending_orders": "rock"}
    put_row(database, ACCOUNT_TABLES[kind], id=name, wallet_balance=balance, **terms)  # type: ignore[index]
    return account


def orders(database: Database, table: str = "live_user_orders") -> dict[str, tuple[str, int]]:
    with database.engine.connect() as connection:
        found = connection.execute(sa.text(f"SELECT order_id, order_status, version FROM {table}")).all()
    return {order_id: (status, version) for order_id, status, version in found}


def record(recorder: Recorder, desk: Desk) -> None:
    """Everything that can be recorded now, also what another recorder has left."""
    until(lambda: recorder.step(1) == 0 and desk.client.xlen("copyrisk:history") == 0)


def send(desk: Desk, *entries: dict[str, str]) -> None:
    for said in entries:
        desk.client.xadd("copyrisk:history", said)


def trade(desk: Desk, account: str, count: int = 3, name: str = "") -> None:
    """Open orders, close all but the first, each in two parts."""
    ids = [f"{account[-2:]}{name}-{i}" for i in range(count)]
    for order_id in ids:
        assert desk.open(account, order_id)["code"] == "ok"
    desk.quote("1.0855", "1.08555")
    for order_id in ids[1:]:
        assert desk.do("close", account, order_id=order_id, order_quantity="0.4")["code"] == "ok"
        assert desk.do("close", account, order_id=order_id)["code"] == "ok"
    desk.quote()


def assert_recorded(desk: Desk, database: Database, account: str, *, start: str = "10000") -> None:
    """The database has what the last event of each order says, and as much as Redis has in the wallet."""
    said: dict[str, tuple[str, int]] = {}
    for event in desk.events(user_id=account.partition(":")[2], event="done"):
        said[event["order_id"]] = (json.loads(event["order"])["order_status"], int(event["version"]))
    assert {name: row for name, row in orders(database).items() if name in said} == said
    paid = booked(database)[account]
    assert balances(database)[account] == desk.balance(account) == Decimal(start) + paid


# There and back


def test_orders_end_in_the_database_once(desk: Desk, database: Database, recorder: Recorder) -> None:
    accounts = [new_account(database, f"live:U{i}") for i in range(3)]
    for account in accounts:
        trade(desk, account)
    entries = desk.entries("copyrisk:history")
    record(recorder, desk)
    for account in accounts:
        assert_recorded(desk, database, account)
    assert len(booked(database)) == 3
    send(desk, *entries, *entries)
    record(recorder, desk)
    for account in accounts:
        assert_recorded(desk, database, account)
    assert desk.client.xlen("copyrisk:dead_letters") == 0


def test_accounts_and_terms_are_filled_when_a_command_needs_them(desk: Desk, database: Database) -> None:
    new_account(database, "copy_follower:F1", "500")
    assert desk.open("copy_follower:F2", "X")["code"] == "account_missing"
    assert desk.open("copy_follower:F1", "O1", lots="0.1")["code"] == "ok"
    assert desk.balance("copy_follower:F1") == 500
    assert desk.client.hget("groups:{Standard}:EURUSD", "contract_size") == b"100000"


def test_a_lost_configuration_comes_back_with_the_right_balance(
    desk: Desk, database: Database, recorder: Recorder
) -> None:
    account = new_account(database, "live:U1")
    trade(desk, account, 2)
    assert desk.do("close", account, order_id="U1-0")["code"] == "ok"
    record(recorder, desk)
    before = desk.balance(account)
    assert before != 10_000
    desk.client.delete(f"user:{{{account}}}:config")
    assert desk.open(account, "O9")["code"] == "ok"
    assert desk.balance(account) == before
    trade(desk, account, 2, "more")
    record(recorder, desk)
    assert_recorded(desk, database, account)


def pending_places(desk: Desk, account: str, recorder: Recorder) -> Iterator[Callable[[], Any]]:
    """An amount at each place that it passes; calling what is yielded moves it on."""
    desk.client.xadd(f"copyrisk:{{{account}}}:outbox", {"entry": "{}"})
    yield lambda: desk.client.delete(f"copyrisk:{{{account}}}:outbox")
    send(desk, *(entry(i, "1", f"demo:D{i}") for i in range(1_500)), entry(1, "0.5", account))
    yield lambda: record(recorder, desk)
    send(desk, entry(1, "7", account))  # contradicts the ledger
    record(recorder, desk)
    (letter,) = list_letters(Pipe(desk.new_client()))
    assert letter.code == "entry_id_taken"
    yield lambda: desk.client.xdel("copyrisk:dead_letters", letter.id)


def test_an_account_is_not_filled_while_something_of_it_is_on_its_way(
    desk: Desk, database: Database, recorder: Recorder
) -> None:
    account, other = new_account(database, "live:U1"), new_account(database, "live:U2")
    pipe = Pipe(desk.new_client())
    source = SettledSource(pipe, database)
    for move_on in pending_places(desk, account, recorder):
        with pytest.raises(StoreError) as pending:
            source.account(_account(account))
        assert pending.value.code == "history_pending"
        with pytest.raises(TryLater) as later:
            Filler(pipe, source).account(_account(account))
        assert later.value.code == "history_pending"
        assert source.account(_account(other)) is not None
        assert source.group("Standard", "EURUSD") is not None
        move_on()
        assert source.account(_account(account)) is not None
    assert Filler(pipe, source).account(_account(account))
    assert desk.balance(account) == Decimal("10000.5")


def _account(text: str) -> Any:
    from copyrisk.identifiers import parse_account

    return parse_account(text)


def test_a_key_of_a_wrong_type_is_an_error_of_the_store(desk: Desk, database: Database) -> None:
    account = new_account(database, "live:U1")
    desk.client.set(f"copyrisk:{{{account}}}:outbox", "x")
    source = SettledSource(Pipe(desk.new_client()), database)
    with pytest.raises(StoreError):
        source.account(_account(account))
    assert source.account(_account("live:U2")) is None


# What cannot be written


def test_what_the_database_refuses_is_a_dead_letter(desk: Desk, database: Database, recorder: Recorder) -> None:
    account = new_account(database, "live:U1")
    bad = entry(1, "1", account, order_price="x")
    send(desk, {"nonsense": "1"}, bad, entry(2, "1", account))
    record(recorder, desk)
    pipe = Pipe(desk.new_client())
    letters = list_letters(pipe)
    assert [letter.code for letter in letters] == ["invalid_user_type", "invalid_order_price"]
    assert [letter.fields for letter in letters] == [{"nonsense": "1"}, bad]
    assert booked(database) == {account: 1}
    replay(pipe, letters[1].id)
    record(recorder, desk)
    assert len(list_letters(pipe)) == 2


def test_a_table_that_is_unfit_holds_up_its_own_entries_only(
    desk: Desk, database: Database, recorder: Recorder
) -> None:
    new_account(database, "demo:D")
    new_account(database, "live:U1")
    execute(database, "ALTER TABLE demo_user_orders RENAME TO elsewhere")
    stuck = [entry(i, "1", "demo:D") for i in range(1_100)]  # more than are taken at once
    send(desk, *stuck)
    until(lambda: recorder.step(1) == 0 and pending(desk) == 1_100)
    for i in range(1, 4):
        time.sleep(RETRY_MS / 1000)  # all of them are due again
        send(desk, entry(i, "1", "live:U1"))
        recorder.step(1)
        assert booked(database) == {"live:U1": i}
    assert (pending(desk), desk.client.xlen("copyrisk:history")) == (1_100, 1_100)
    assert desk.client.xlen("copyrisk:dead_letters") == 0
    execute(database, "ALTER TABLE elsewhere RENAME TO demo_user_orders")
    record(recorder, desk)
    assert booked(database) == {"live:U1": 3, "demo:D": 1_100}
    assert balances(database)["demo:D"] == 11_100


def pending(desk: Desk) -> int:
    """Entries that were handed out and are not acknowledged."""
    return int(desk.client.xpending("copyrisk:history", "database")["pending"])


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # pymysql, when nobody listens
def test_a_database_that_is_down_loses_nothing(
    desk: Desk, database: Database, recorder: Recorder, sql_server: SqlServer
) -> None:
    account = new_account(database, "live:U1")
    trade(desk, account, 1)
    record(recorder, desk)
    if sql_server.kind == "sqlite":
        execute_here = "PRAGMA busy_timeout=50"
        sa.event.listen(database.engine, "checkout", lambda raw, *_: raw.execute(execute_here) and None)
        with held(database, "live_users"):
            assert_waits(desk, recorder, account)
    else:
        sql_server.stop()
        try:
            assert_waits(desk, recorder, account)
            gc.collect()
        finally:
            sql_server.start()
    record(recorder, desk)
    assert_recorded(desk, database, account)


def assert_waits(desk: Desk, recorder: Recorder, account: str) -> None:
    assert desk.do("close", account, order_id="U1-0")["code"] == "ok"  # trading goes on
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            until(lambda: recorder.step(1) < 0)  # until what was handed out is taken up again
    assert (desk.client.xlen("copyrisk:history"), pending(desk)) == (1, 1)


# Processes


@pytest.mark.fault
@pytest.mark.parametrize("point", ["recorder.taken", "recorder.written"])
def test_a_recorder_killed_half_way(desk: Desk, database: Database, point: str) -> None:
    account = new_account(database, "live:U1")
    trade(desk, account)
    environ = {"DATABASE_URL": url_of(database)}
    with process(desk.server.url, "recorder", CRASH_AT=point, **environ) as dying:
        until(lambda: dying.poll() is not None, 20)
        assert dying.returncode == -9
    assert desk.client.xlen("copyrisk:history") > 0
    with process(desk.server.url, "recorder", **environ) as running:
        until(lambda: desk.client.xlen("copyrisk:history") == 0, 20)
        running.terminate()
        assert running.wait(10) == 0
    assert_recorded(desk, database, account)


def test_three_recorders_at_once(desk: Desk, database: Database) -> None:
    put(database, "live:U1", "0")
    send(desk, *(entry(i, f"0.{i % 100:02}") for i in range(900)))
    stop = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(joined(desk, database).run, stop)
        try:
            until(lambda: desk.client.xlen("copyrisk:history") == 0, 20)
        finally:
            stop.set()
    assert balances(database) == {"live:U1": booked(database)["live:U1"]} == {"live:U1": Decimal("445.5")}


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    named = {f"COPYRISK_{name}": value for name, value in environ.items()}
    command = [sys.executable, "-m", "copyrisk.cli", *words]
    return subprocess.run(command, env=named, capture_output=True, text=True, check=False)


def test_the_command_of_the_database(empty: Database) -> None:
    url = url_of(empty)
    before = run("database", "check", DATABASE_URL=url)
    assert before.returncode == 1 and "problem: live_users: there is no such table" in before.stdout
    assert "not ready, revision none of 0002" in before.stdout
    after = run("database", "migrate", DATABASE_URL=url)
    assert (after.returncode, after.stdout) == (0, "database: ready, revision 0002 of 0002\n")
    by_number = run("database", "check", DATABASE_URL=url, DATABASE_ID_COLUMN="number")
    assert by_number.returncode == 1 and "live_users.number: there is no such column" in by_number.stdout


@pytest.mark.parametrize(
    ("url", "code"),
    [
        (None, "database_missing"),
        ("mongodb://u:secret@h/d", "bad_database_url"),
        ("mariadb://u:secret@127.0.0.1:1/d", "database_unreachable"),
        ("postgresql://u:secret@127.0.0.1:1/d", "database_unreachable"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(url: str | None, code: str) -> None:
    failed = run("database", "check", **({} if url is None else {"DATABASE_URL": url}))
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1 and f"[{code}]" in failed.stderr
    assert "secret" not in failed.stderr


def test_the_recorder_needs_a_database(bundled_server: Any) -> None:
    desk = Desk(bundled_server)
    with pytest.raises(ConfigError) as missing:
        run_recorder(desk.new_client(), desk.settings, threading.Event())
    assert missing.value.code == "database_missing"


@pytest.mark.parametrize(
    ("url", "extra"),
    [("sqlite:///x.db", "sql"), ("mariadb://u:secret@h/d", "mariadb"), ("postgresql://u:secret@h/d", "postgresql")],
)
def test_what_is_not_installed_is_named(url: str, extra: str) -> None:
    script = "import sys; sys.modules['sqlalchemy'] = None; from copyrisk import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "database", "check"]
    failed = subprocess.run(command, env={"COPYRISK_DATABASE_URL": url}, capture_output=True, text=True, check=False)
    said = f"copyrisk-run: sqlalchemy is not installed: install copyrisk[{extra}] [database_driver_missing]\n"
    assert (failed.returncode, failed.stderr) == (2, said)


def test_without_a_database_nothing_of_it_is_imported(tmp_path: Path) -> None:
    script = "import sys, copyrisk.cli\nassert not {'sqlalchemy', 'alembic'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_workers_start_without_the_database(bundled_server: redis.Redis, tmp_path: Path) -> None:
    desk = Desk(bundled_server, database__url=f"sqlite:///{tmp_path}/absent/x.db")
    desk.account("live:U1")
    assert desk.open("live:U1", "O1")["code"] == "ok"
    assert desk.client.xlen("copyrisk:history") == 1
    # Whether there is such an account cannot be told now: nobody says that there is none.
    answer = desk.open("live:U2", "O2")
    assert (answer["event"], answer["code"]) == ("failed", "database_unavailable")
    assert desk.client.xlen("copyrisk:dead_letters") == 1
