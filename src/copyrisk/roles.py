"""The processes besides the daemon, put together from settings: workers, monitors, the recorder."""

import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import redis
import structlog

from copyrisk.commands import Kind
from copyrisk.deciding import Decider
from copyrisk.dispatch import Dispatcher
from copyrisk.errors import ConfigError, StoreError
from copyrisk.fanout import Fanout
from copyrisk.keeping import Keeper
from copyrisk.limits import Limits
from copyrisk.monitors import Monitor
from copyrisk.notifier import Notifier
from copyrisk.observer import Observer
from copyrisk.recorder import Recorder
from copyrisk.redelivery import Redelivery
from copyrisk.replicator import ROLE, Replicator
from copyrisk.settings import Settings
from copyrisk.store import library
from copyrisk.store.appraisal import Appraiser
from copyrisk.store.connection import connect
from copyrisk.store.decisions import Decisions
from copyrisk.store.effects import Effects
from copyrisk.store.filler import Filler
from copyrisk.store.kill_switch import KillSwitch
from copyrisk.store.lease import Lease
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe
from copyrisk.store.remainders import Remainders
from copyrisk.store.settled import SettledSource
from copyrisk.store.streams import consumer_name
from copyrisk.store.tallies import Tallies
from copyrisk.store.trail import Trail, writer_name
from copyrisk.vitals import Vitals
from copyrisk.workers import Workers

if TYPE_CHECKING:
    from copyrisk.policies import Policy
    from copyrisk.sql.database import Database

log = structlog.get_logger(__name__)

ROLES = ("daemon", "workers", "replicator", "monitors", "recorder", "gateway", "notifier", "api", "simulator")
_RETRY_S = 1.0
#: What to install for databases of other kinds than SQLite.
_EXTRAS = {"mariadb": "mariadb", "mysql": "mariadb", "postgres": "postgresql"}


def client_of(settings: Settings, url: str) -> redis.Redis:
    """A client of a server, with the time limits of the settings."""
    return connect(
        url,
        connect_timeout_ms=settings.redis.connect_timeout_ms,
        reply_timeout_ms=settings.redis.reply_timeout_ms,
    )


def parse_kinds(only: str | None) -> frozenset[Kind]:
    """The kinds of work that `--only` names, separated by commas; all of them without it.

    Raises
    ------
    ConfigError
    """
    if only is None:
        return frozenset(Kind)
    names = [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in list(Kind)]
    if unknown:
        raise ConfigError(f"--only: no such work: {unknown[0]!r}; there is {', '.join(Kind)}")
    return frozenset(Kind(name) for name in names)


def open_database(settings: Settings, *, must_answer: bool = True) -> "Database | None":
    """The database that the settings name; `None` without one. Whoever opens it closes it.

    Parameters
    ----------
    must_answer : bool
        Whether it is an error if it cannot be reached now.

    Raises
    ------
    ConfigError
        `bad_database_url`, `bad_id_column`, `database_driver_missing`, `database_unreachable`.
    """
    chosen = settings.database
    if chosen.url is None:
        return None
    try:
        from copyrisk.sql import database  # noqa: PLC0415  # not installed where there is no database
    except ModuleNotFoundError as missing:
        extra = next((extra for start, extra in _EXTRAS.items() if chosen.url.startswith(start)), "sql")
        raise ConfigError(
            f"{missing.name} is not installed: install copyrisk[{extra}]", code="database_driver_missing"
        ) from None
    return database.open_database(
        chosen.url, id_column=chosen.id_column, books_balance=chosen.books_balance, must_answer=must_answer
    )


@contextmanager
def _opened(settings: Settings) -> "Iterator[Database | None]":
    """The database for as long as the block lasts; a process starts without it and gets it when it is back."""
    database = open_database(settings, must_answer=False)
    try:
        yield database
    finally:
        if database is not None:
            database.close()


@contextmanager
def watched(settings: Settings, url: str, role: str) -> Iterator[Vitals]:
    """The vitals of this process, served over HTTP for as long as the block lasts if the settings name a port.

    Raises
    ------
    ConfigError
        `cannot_listen`, `metrics_missing`.
    """
    seen, chosen = Vitals(role), settings.metrics
    if chosen.port is None:
        yield seen
        return
    try:
        from copyrisk.health import serving  # noqa: PLC0415  # not installed where nobody looks
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{missing.name} is not installed: install copyrisk[metrics]", code="metrics_missing"
        ) from None
    client = client_of(settings, url)
    with serving(seen, client, host=chosen.host, port=chosen.port, stall_ms=chosen.stall_ms):
        yield seen


def make_workers(
    client: redis.Redis,
    settings: Settings,
    kinds: Collection[Kind],
    database: "Database | None" = None,
    *,
    seen: Vitals | None = None,
) -> Workers:
    """Workers of some kinds, with the server's functions loaded.

    Parameters
    ----------
    database : Database or None
        That of the settings, if it is open already.

    Raises
    ------
    StoreError, StoreUnavailable, ConfigError
    """
    library.load(client)
    pipe = Pipe(client)
    database = database or open_database(settings, must_answer=False)
    effects = Effects(pipe, events_limit=settings.orders.events_limit, keeps_history=database is not None)
    filler = Filler(pipe, None if database is None else SettledSource(pipe, database))
    markets = Markets(pipe, filler, settings.rules(), settings.hours(), settings.lots())
    appraiser = Appraiser(markets, settings.rules())
    dispatcher = Dispatcher(pipe, appraiser, effects, filler)
    options = settings.worker_options()
    return Workers(Pipe(client), pipe, dispatcher, effects, kinds=kinds, options=options, seen=seen)


def run_workers(
    client: redis.Redis, settings: Settings, kinds: Collection[Kind], stop: threading.Event, seen: Vitals | None = None
) -> None:
    """Work until `stop` is set; a server that lost its functions gets them again."""
    with _opened(settings) as database:
        log.info("workers_started", kinds=",".join(sorted(kinds)))
        while not stop.is_set():
            try:
                make_workers(client, settings, kinds, database, seen=seen).run(stop)
            except StoreError as failure:
                if seen is not None:
                    seen.step_failed(failure.code)
                log.error("workers_wait", code=failure.code, reason=str(failure))
                stop.wait(_RETRY_S)
        log.info("workers_ended")


def make_replicator(
    client: redis.Redis, settings: Settings, database: "Database | None" = None, *, seen: Vitals | None = None
) -> Replicator:
    """The engine of copies, with the server's functions loaded.

    Raises
    ------
    StoreError, StoreUnavailable, ConfigError
    """
    library.load(client)
    pipe, options, rules = Pipe(client), settings.copy_options(), settings.rules()
    database = database or open_database(settings, must_answer=False)
    effects = Effects(pipe, events_limit=settings.orders.events_limit, keeps_history=database is not None)
    filler = Filler(pipe, None if database is None else SettledSource(pipe, database))
    markets = Markets(pipe, filler, rules, settings.hours(), settings.lots())
    dispatcher = Dispatcher(pipe, Appraiser(markets, rules), effects, filler)
    observer = Observer(client, pipe, rules, settings.hours(), settings.copy_defaults())
    lease = Lease(pipe, ROLE, consumer_name(), settings.replication.lease_ms)
    decisions, remainders, switch = Decisions(pipe), Remainders(pipe), KillSwitch(pipe)
    limits = Limits(pipe, observer, check_ms=options.limits_check_ms, database=database)
    return Replicator(
        Pipe(client),
        lease,
        observer,
        decisions=decisions,
        decider=Decider(
            observer, markets, limits, remainders, switch=switch, options=options, policy=_policy(settings)
        ),
        fanout=Fanout(pipe, observer, markets, effects, switch=switch, lease=lease, batch=options.batch),
        keeper=Keeper(pipe, dispatcher, observer, decisions, lease=lease, retry_ms=options.retry_ms),
        redelivery=Redelivery(pipe, effects),
        remainders=remainders,
        tallies=Tallies(pipe),
        limits=limits,
        trail=Trail(pipe, writer=writer_name()),
        retry_ms=options.retry_ms,
        seen=seen,
    )


def _policy(settings: Settings) -> "Policy | None":
    """The sizing policy that the settings name; compiling it needs what only few have installed."""
    if settings.replication.policy is None:
        return None
    from copyrisk.policies import load_policy  # noqa: PLC0415

    return load_policy(settings.replication.policy)


def run_replicator(client: redis.Redis, settings: Settings, stop: threading.Event, seen: Vitals | None = None) -> None:
    """Copy masters' orders until `stop` is set; a server that lost its functions gets them again."""
    _ask_for_priority(settings.replication.nice)
    with _opened(settings) as database:
        log.info("replicator_started")
        while not stop.is_set():
            try:
                make_replicator(client, settings, database, seen=seen).run(stop)
            except StoreError as failure:
                if seen is not None:
                    seen.step_failed(failure.code)
                log.error("replicator_waits", code=failure.code, reason=str(failure))
                stop.wait(_RETRY_S)
        log.info("replicator_ended")


def _ask_for_priority(nice: int) -> None:
    """Run before or behind other processes of this machine, as far as the system lets us."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except PermissionError:
        log.info("priority_not_granted", nice=nice)


def run_recorder(client: redis.Redis, settings: Settings, stop: threading.Event, seen: Vitals | None = None) -> None:
    """Write history to the database until `stop` is set.

    Raises
    ------
    ConfigError
        There is no database; and what `open_database` raises.
    """
    with _opened(settings) as database:
        if database is None:
            raise ConfigError("the recorder writes to a database: set database.url", code="database_missing")
        log.info("recorder_started")
        Recorder(Pipe(client), database, retry_ms=settings.workers.retry_ms, seen=seen).run(stop)
        log.info("recorder_ended")


def run_monitors(client: redis.Redis, settings: Settings, stop: threading.Event, seen: Vitals | None = None) -> None:
    """Watch triggers until `stop` is set."""
    log.info("monitors_started")
    monitor = Monitor(client, settings.rules(), settings.hours(), settings.monitor_options())
    monitor.vitals = seen or Vitals()
    monitor.run(stop)
    log.info("monitors_ended")


def run_notifier(client: redis.Redis, settings: Settings, stop: threading.Event, seen: Vitals | None = None) -> None:
    """Send warnings to clients until `stop` is set; a server that lost its functions gets them again.

    Raises
    ------
    ConfigError
        What `NotifySettings.make_sinks` raises.
    """
    chosen = settings.notify
    notifier = Notifier(Pipe(client), chosen.make_sinks(), chosen.options(), seen=seen)
    log.info("notifier_started", sinks=",".join(chosen.sinks))
    try:
        while not stop.is_set():
            try:
                library.load(client)
                notifier.run(stop)
            except StoreError as failure:
                log.error("notifier_waits", code=failure.code, reason=str(failure))
                stop.wait(_RETRY_S)
    finally:
        notifier.close()
    log.info("notifier_ended")
