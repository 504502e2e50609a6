"""The processes besides the daemon, put together from settings: workers, monitors."""

import threading
from collections.abc import Collection

import redis
import structlog

from copyrisk.commands import Kind
from copyrisk.dispatch import Dispatcher
from copyrisk.errors import ConfigError, StoreError
from copyrisk.monitors import Monitor
from copyrisk.settings import Settings
from copyrisk.store import functions
from copyrisk.store.appraisal import Appraiser
from copyrisk.store.effects import Effects
from copyrisk.store.filler import Filler
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe
from copyrisk.workers import Workers

log = structlog.get_logger(__name__)

ROLES = ("daemon", "workers", "monitors")
_RETRY_S = 1.0


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


def make_workers(client: redis.Redis, settings: Settings, kinds: Collection[Kind]) -> Workers:
    """Workers of some kinds, with the server's functions loaded.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    functions.load(client)
    pipe = Pipe(client)
    effects = Effects(pipe, events_limit=settings.orders.events_limit, keeps_history=False)
    filler = Filler(pipe, None)
    markets = Markets(pipe, filler, settings.rules(), settings.hours(), settings.lots())
    appraiser = Appraiser(markets, settings.rules())
    dispatcher = Dispatcher(pipe, appraiser, effects, filler)
    return Workers(Pipe(client), pipe, dispatcher, effects, kinds=kinds, options=settings.worker_options())


def run_workers(client: redis.Redis, settings: Settings, kinds: Collection[Kind], stop: threading.Event) -> None:
    """Work until `stop` is set; a server that lost its functions gets them again."""
    log.info("workers_started", kinds=",".join(sorted(kinds)))
    while not stop.is_set():
        try:
            make_workers(client, settings, kinds).run(stop)
        except StoreError as failure:
            log.error("workers_wait", code=failure.code, reason=str(failure))
            stop.wait(_RETRY_S)
    log.info("workers_ended")


def run_monitors(client: redis.Redis, settings: Settings, stop: threading.Event) -> None:
    """Watch triggers until `stop` is set."""
    log.info("monitors_started")
    Monitor(client, settings.rules(), settings.hours(), settings.monitor_options()).run(stop)
    log.info("monitors_ended")
