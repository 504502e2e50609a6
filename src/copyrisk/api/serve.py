"""The process that answers HTTP: its parts put together, served until it is asked to stop."""

import asyncio
import gc
import resource
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import redis
import structlog
import uvicorn
import uvloop

from copyrisk import keys
from copyrisk.api.access import Access
from copyrisk.api.answers import fault_text
from copyrisk.api.app import health_routes, make_app
from copyrisk.api.asking import Asker
from copyrisk.api.context import Api
from copyrisk.api.copying import copying_routes
from copyrisk.api.desk import Desk
from copyrisk.api.direct import Direct
from copyrisk.api.feeds import Feeds
from copyrisk.api.guard import Guard
from copyrisk.api.line import Line
from copyrisk.api.master_orders import master_order_routes
from copyrisk.api.orders import direct_handlers, order_routes
from copyrisk.api.pages import page_routes
from copyrisk.api.pool import Pool
from copyrisk.api.reading import reading_routes
from copyrisk.api.reports import report_routes
from copyrisk.api.risk import risk_routes
from copyrisk.api.streaming import stream_routes
from copyrisk.api.tail import Tail, Taker
from copyrisk.api.wire import HEAD_S, protocol_of
from copyrisk.api_sections import ApiSettings
from copyrisk.errors import ConfigError
from copyrisk.roles import client_of, open_database
from copyrisk.settings import Settings
from copyrisk.store.connection import connect_async
from copyrisk.vitals import Vitals

if TYPE_CHECKING:
    from copyrisk.sql.database import Database

log = structlog.get_logger(__name__)

Loop = Callable[[], Coroutine[Any, Any, None]]

_CONNECTIONS = 32
_BLOCK_MS = 1_000
_KEEP_ALIVE_S = 75
_UNTAKEN_MS = 40_000
_FILES_BESIDE = 200
_STEP_S = 0.1
_AGAIN_S = 0.5
#: How long answers that are under way may take once the process is asked to stop.
_GRACE_S = 5
ROUTES = (
    order_routes,
    master_order_routes,
    copying_routes,
    reading_routes,
    report_routes,
    risk_routes,
    stream_routes,
    page_routes,
)


class _Loop(uvloop.Loop):
    """One whose TLS handshakes have the time that heads have: before them no connection is counted."""

    async def create_server(self, *given: Any, **named: Any) -> Any:
        """A server."""
        if named.get("ssl") is not None:
            named.setdefault("ssl_handshake_timeout", HEAD_S)
        return await super().create_server(*given, **named)


class _Server(uvicorn.Server):
    """Signals are the command line's affair."""

    def capture_signals(self) -> Any:
        """Leave them alone."""
        return nullcontext()


def run_api(settings: Settings, url: str, stop: threading.Event, seen: Vitals) -> None:
    """Answer until `stop` is set.

    Raises
    ------
    ConfigError
        `api_secret_missing`, `cannot_listen`, `tls_unusable`, and what `Access` raises.
    StoreError, StoreUnavailable
        The server cannot be used as it starts.
    """
    _allow_files(settings.api.connections_limit + _FILES_BESIDE)
    client = client_of(settings, url)
    database = open_database(settings, must_answer=False)
    try:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(_serve(made(settings, url, client, database, seen), stop))
    finally:
        if database is not None:
            database.close()
        client.close()


def _allow_files(wanted: int) -> None:
    """Have as many files open as the limits of connections ask for, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            log.warning("few_files", allowed=allowed, wanted=wanted)


async def _serve(making: AbstractAsyncContextManager[tuple[Api, Tail]], stop: threading.Event) -> None:
    async with making as (api, tail):
        chosen, seen = api.settings.api, api.vitals
        listening = listen(chosen.host, chosen.port)
        server = _Server(config_of(chosen, application(api, tail)))
        gc.collect()
        gc.freeze()  # what is there now stays; going through it again and again would hold up answers
        serving = asyncio.create_task(server.serve([listening]))
        log.info("api_started", url=url_of(chosen, listening))
        while not serving.done():
            seen.step_done()
            if stop.is_set() and not server.should_exit:
                server.should_exit = True
                api.feeds.end()
            await asyncio.sleep(_STEP_S)
        await serving
    log.info("api_ended")


def application(api: Api, tail: Tail) -> Guard:
    """All routes, guarded."""

    async def is_ready() -> dict[str, bool]:
        return {"store": tail.is_up, "desk": api.desk is None or api.desk.is_up}

    app = make_app([*(make(api) for make in ROUTES), health_routes(is_ready, needed=("store",))])
    return Guard(Direct(app, direct_handlers(api)), body_bytes=api.settings.api.body_bytes, seen=api.vitals)


@asynccontextmanager
async def made(
    settings: Settings, url: str, client: redis.Redis, database: "Database | None", seen: Vitals
) -> AsyncIterator[tuple[Api, Tail]]:
    """The parts for as long as the block lasts, inside a running event loop.

    Raises
    ------
    ConfigError, StoreError, StoreUnavailable
    """
    chosen = settings.api
    limits: dict[str, Any] = {
        "connect_timeout_ms": settings.redis.connect_timeout_ms,
        "reply_timeout_ms": settings.redis.reply_timeout_ms,
    }
    asked = connect_async(url, connections=_CONNECTIONS, **limits)
    followed = connect_async(url, connections=1, decodes=True, **limits)
    pool = Pool(client, chosen.threads, database)
    async with AsyncExitStack() as stack:
        stack.callback(pool.close)
        stack.push_async_callback(asked.aclose)
        stack.push_async_callback(followed.aclose)
        line = Line(asked)
        stack.push_async_callback(line.close)
        access = Access(chosen, line)
        asker = Asker(
            line,
            timeout_ms=chosen.answer_timeout_ms,
            waiting_limit=chosen.waiting_limit,
            load=lambda: pool.run(lambda _: pool.load_functions()),
            seen=seen,
        )
        desk = Desk(settings, url) if chosen.desk else None
        feeds = Feeds(settings, asked, desk, seen=seen)
        block_ms = min(_BLOCK_MS, settings.redis.reply_timeout_ms // 2)
        takers = {keys.EVENTS: _both(asker, feeds), keys.AUDIT_TRAIL: feeds.take}
        tail = Tail(followed, takers, block_ms=block_ms)
        stack.push_async_callback(tail.close)
        await asyncio.to_thread(pool.load_functions)
        await tail.start()
        if desk is not None:
            await desk.start()
            stack.push_async_callback(desk.stop)
        async with _running(tail.run, feeds.run):
            yield Api(settings, access, asker, pool, feeds, desk, asked, seen), tail


def _both(asker: Asker, feeds: Feeds) -> Taker:
    def take(stream: str, entry_id: str, fields: Mapping[str, str]) -> None:
        asker.take(entry_id, fields)
        feeds.take(stream, entry_id, fields)

    return take


@asynccontextmanager
async def _running(*loops: Loop) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(_kept(loop)) for loop in loops]
    try:
        yield
    finally:
        while left := [task for task in tasks if not task.done()]:
            for task in left:  # once is not enough: what the client library waits for can swallow it
                task.cancel()
            await asyncio.wait(left, timeout=_STEP_S)
        await asyncio.gather(*tasks, return_exceptions=True)


async def _kept(loop: Loop) -> None:
    """Run a loop, again whatever ends it: without the tail every change would be sent and answered 202."""
    while True:
        try:
            await loop()
        except Exception as fault:
            log.critical("loop_failed", loop=loop.__qualname__, fault=fault_text(fault))
        await asyncio.sleep(_AGAIN_S)


def config_of(chosen: ApiSettings, app: Guard) -> uvicorn.Config:
    """How it is served.

    Raises
    ------
    ConfigError
        `tls_unusable`
    """
    config = uvicorn.Config(
        app,
        http=protocol_of(chosen.connections_limit),
        loop="none",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        log_level="critical",
        server_header=False,
        date_header=False,
        proxy_headers=chosen.trusted_proxies is not None,
        forwarded_allow_ips=chosen.trusted_proxies or "",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=chosen.tls_certificate,
        ssl_keyfile=chosen.tls_key,
    )
    try:
        config.load()
    except OSError as failure:  # those of `ssl` are among them
        reason = f"api.tls_certificate and api.tls_key cannot be used: {failure.strerror or failure}"
        raise ConfigError(reason, code="tls_unusable") from None
    return config


def listen(host: str, port: int) -> socket.socket:
    """A socket there; peers that take nothing are given up by the system as well.

    Raises
    ------
    ConfigError
        `cannot_listen`
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNTAKEN_MS)
        listening.bind(address)
    except (OSError, UnicodeError) as failure:
        reason = getattr(failure, "strerror", None) or str(failure)
        raise ConfigError(f"the API cannot listen on {host}:{port}: {reason}", code="cannot_listen") from None
    return listening


def url_of(chosen: ApiSettings, listening: socket.socket) -> str:
    """Where it can be reached, as far as this host knows."""
    scheme = "http" if chosen.tls_certificate is None else "https"
    host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
    return f"{scheme}://{host}:{listening.getsockname()[1]}/"
