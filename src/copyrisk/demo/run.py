"""The demo from end to end: server, accounts, quotes, daemon, view, and a clean end."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from copyrisk import _launcher
from copyrisk.daemon import make_engine
from copyrisk.demo.access import DeskAccess, desk_access, missing
from copyrisk.demo.feed import open_feed
from copyrisk.demo.seed import seed
from copyrisk.demo.trades import Trades
from copyrisk.demo.view import open_view
from copyrisk.embedded import EmbeddedServer
from copyrisk.engine import Engine
from copyrisk.settings import Settings
from copyrisk.store.connection import check_server, connect
from copyrisk.store.pipe import Pipe

_DESK_PORT = 8080
_ROLES = ("simulator", "gateway", "workers", "replicator", "monitors", "notifier")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the flags of `--demo` choose."""

    accounts: int = 1000
    replay: Path | None = None
    speed: float = 1.0
    ticks: int | None = None


def run_demo(settings: Settings, options: DemoOptions, console: Console, stop: threading.Event) -> int:
    """Run the demo until `stop` is set or its ticks are done; returns the exit code.

    Raises
    ------
    CopyriskError
        No server, a bad replay file, or a database that is not empty.
    """
    feed = open_feed(options.replay, options.speed)
    url = settings.redis.url
    with nullcontext() if url else EmbeddedServer.start(settings.redis.server_path) as server:
        url = url or (server.url if server else "")
        client = connect(
            url,
            connect_timeout_ms=settings.redis.connect_timeout_ms,
            reply_timeout_ms=settings.redis.reply_timeout_ms,
        )
        console.print(f"server: {check_server(client)}", highlight=False)
        pipe = Pipe(client)
        with _progress(console) as bar:
            task = bar.add_task("seeding accounts", total=options.accounts)
            report = seed(pipe, options.accounts, feed.first(), progress=lambda done: bar.advance(task, done))
        console.print(f"seeded {report.accounts} accounts with {report.orders} orders", highlight=False)
        # The demo's market never sleeps, whatever the weekday.
        engine = make_engine(client, settings, always_open=True)
        with _desk(console) as desk, children(url, options, desk):
            return _watch(engine, Trades(pipe), options.ticks, console, stop)


def _watch(engine: Engine, trades: Trades, ticks: int | None, console: Console, stop: threading.Event) -> int:
    durations_ms: list[float] = []
    late = skipped = 0
    with open_view(console, trades) as view:
        for report in engine.run(stop, ticks=ticks):
            view.show(report, engine)
            durations_ms.append(report.duration_ms)
            late, skipped = report.late_ticks, skipped + (report.skipped is not None)
    p50, p99 = np.percentile(durations_ms[1:] or durations_ms or [0.0], [50, 99])
    first = durations_ms[0] if durations_ms else 0.0
    console.print(
        f"{len(durations_ms)} ticks: first {first:.0f} ms, then p50 {p50:.1f} ms, p99 {p99:.1f} ms; "
        f"late {late}, skipped {skipped}",
        highlight=False,
    )
    return 0


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _free_port(wished: int = 0) -> int:
    """A port that nobody listens on: the one that is wished for, or any."""
    try:
        with socket.create_server(("127.0.0.1", wished)) as server:
            port: int = server.getsockname()[1]
            return port
    except OSError:
        return _free_port()


@contextmanager
def _desk(console: Console) -> Iterator[DeskAccess | None]:
    """The way to the desk's page, if what serves it is installed."""
    absent = missing()
    if absent:
        console.print(f"no desk's page: {absent} is not installed (pip install 'copyrisk[api]')", highlight=False)
        yield None
        return
    with desk_access(_free_port(_DESK_PORT)) as desk:
        console.print("the desk's page, with orders, figures, ladder and what-if:", highlight=False)
        console.print(desk.link, highlight=False, soft_wrap=True, style="link " + desk.link)
        yield desk


@contextmanager
def children(url: str, options: DemoOptions, desk: DeskAccess | None = None) -> Iterator[None]:
    """Quotes, clients, and whoever carries out their orders: processes of their own, which end with this one."""
    launcher = [sys.executable, "-IS", _launcher.__file__, str(os.getpid())]
    feed = ["copyrisk.demo.feed", "--redis", url, "--speed", str(options.speed)]
    if options.replay is not None:
        feed += ["--replay", str(options.replay.resolve())]
    names = _ROLES if desk is None else (*_ROLES, "api")
    roles = [["copyrisk.cli", "--redis", url, "--role", role] for role in names]
    modules = [feed, *roles, ["copyrisk.demo.clients", "--redis", url]]
    port = _free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_API_")},
        "COPYRISK_MARKET_ALWAYS_OPEN": "true",
        "COPYRISK_LOG_LEVEL": "error",
        "COPYRISK_SIMULATOR_PORT": str(port),
        "COPYRISK_PROVIDER_URL": f"tcp://127.0.0.1:{port}",
        **(desk.environment if desk else {}),
    }
    processes = [
        subprocess.Popen(
            [*launcher, sys.executable, "-m", *module],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for module in modules
    ]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
