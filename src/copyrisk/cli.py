"""`copyrisk-run`: the daemon, its single tick, its check and its demo; the other processes; looking into the store."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console

from copyrisk import __version__
from copyrisk.audit_files import TrailFile
from copyrisk.commands import Kind
from copyrisk.daemon import make_engine
from copyrisk.demo.run import DemoOptions, run_demo
from copyrisk.embedded import EmbeddedServer
from copyrisk.engine import Engine, TickReport
from copyrisk.errors import ConfigError, CopyriskError
from copyrisk.gateway.gateway import run_gateway
from copyrisk.gateway.simulator import run_simulator
from copyrisk.log import configure_logging
from copyrisk.metrics import note_tick
from copyrisk.operations import COMMANDS, add_commands
from copyrisk.roles import (
    ROLES,
    client_of,
    parse_kinds,
    run_monitors,
    run_notifier,
    run_recorder,
    run_replicator,
    run_workers,
    watched,
)
from copyrisk.settings import Settings, load_settings
from copyrisk.store.connection import check_server
from copyrisk.vitals import Vitals

log = structlog.get_logger(__name__)

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_READER_LEFT = 128 + signal.SIGPIPE  # as a shell has it
_REPORT_EVERY_MS = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors are one line on stderr, never a traceback."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.only is not None and options.role != "workers":
        parser.error("--only goes with --role workers")
    if options.metrics is not None and (options.once or options.check or options.demo or options.command):
        parser.error("--metrics goes with a process that stays")
    demo_only = {"--accounts": options.accounts, "--replay": options.replay, "--speed": options.speed}
    given = [flag for flag, value in demo_only.items() if value is not None]
    if given and not options.demo:
        parser.error(f"{given[0]} goes with --demo")
    try:
        settings = _settings(options)
        configure_logging(settings.log.format, settings.log.level)
        stop = _stop_on_signals()
        if options.check:
            return _check(settings)
        if options.demo:
            return _demo(settings, options, stop)
        if options.command is not None:
            return COMMANDS[options.command](settings, options)
        with _server(settings) as url:
            if options.role == "daemon" and options.once:
                return _once(settings, url)
            with watched(settings, url, options.role) as seen:
                if options.role != "daemon":
                    return _role(settings, url, options, stop, seen)
                return _daemon(settings, url, stop, seen, ticks=options.ticks)
    except BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_READER_LEFT
    except CopyriskError as failure:
        print(f"copyrisk-run: {failure} [{failure.code}]", file=sys.stderr)
        return EXIT_USAGE if isinstance(failure, ConfigError) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="copyrisk-run",
        epilog="Every setting: docs/settings.md.",
        description="Values every account on a Redis server each tick and writes its portfolio back.",
    )
    parser.add_argument("--version", action="version", version=f"copyrisk {__version__}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (TOML); environment variables win over it"
    )
    parser.add_argument("--redis", metavar="URL", help="redis://, rediss:// or unix:// (default: a bundled server)")
    parser.add_argument("--tick-ms", type=int, metavar="MS", help="length of a tick (default 200)")
    parser.add_argument("--ticks", type=_count, metavar="N", help="end after N ticks")
    parser.add_argument("--role", choices=ROLES, default="daemon", help="which process to be (default: the daemon)")
    parser.add_argument("--only", metavar="WORK,...", help=f"with --role workers: some of {', '.join(Kind)}")
    parser.add_argument("--metrics", type=_port, metavar="PORT", help="serve /metrics, /healthz, /readyz (0: any port)")
    parser.add_argument("--metrics-host", metavar="HOST", help="where they are served (default 127.0.0.1)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--once", action="store_true", help="one full tick over everything, then end")
    what.add_argument("--check", action="store_true", help="check settings and server, say what is wrong, and end")
    what.add_argument("--demo", action="store_true", help="seed accounts, play quotes, show the daemon at work")
    demo = parser.add_argument_group("with --demo")
    demo.add_argument("--accounts", type=_count, metavar="N", help="accounts to seed (default 1000)")
    demo.add_argument("--replay", type=Path, metavar="FILE", help="play the quotes of an .npz file")
    demo.add_argument("--speed", type=_speed, metavar="X", help="times as fast as real time (default 1)")
    add_commands(parser)
    return parser


def _number(text: str, kind: type[Any], lowest: float, highest: float) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(f"must be from {lowest:g} to {highest:g}, not {text}")
    return value


def _count(text: str) -> int:
    return int(_number(text, int, 1, 10_000_000))


def _port(text: str) -> int:
    return int(_number(text, int, 0, 65_535))


def _speed(text: str) -> float:
    return float(_number(text, float, 0.001, 100_000))


def _settings(options: argparse.Namespace) -> Settings:
    flags = {
        "redis.url": options.redis,
        "tick.period_ms": options.tick_ms,
        "metrics.port": options.metrics,
        "metrics.host": options.metrics_host,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    return load_settings(options.config, os.environ, given)


def _stop_on_signals() -> threading.Event:
    """SIGTERM and SIGINT end the loop after the tick that is running; a second one ends at once."""
    stop = threading.Event()

    def ask_to_stop(signum: int, _frame: object) -> None:
        if stop.is_set():
            raise SystemExit(128 + signum)
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    return stop


@contextmanager
def _server(settings: Settings) -> Iterator[str]:
    """URL of the configured server, or of a bundled one that lives as long as this block."""
    if settings.redis.url is not None:
        yield settings.redis.url
        return
    with EmbeddedServer.start(settings.redis.server_path) as server:
        log.info("bundled_server_started", url=server.url)
        yield server.url


def _check(settings: Settings) -> int:
    with _server(settings) as url:
        info = check_server(client_of(settings, url))
    settings.notify.make_sinks()
    if settings.audit.folder:
        TrailFile(Path(settings.audit.folder), settings.audit.segment_bytes).close()
    print(f"settings: ok, tick {settings.tick.period_ms} ms, warnings to {', '.join(settings.notify.sinks)}")
    print(f"autocutoff: {_cutoff_words(settings)}")
    print(f"server: ok, {info}")
    return EXIT_OK


def _cutoff_words(settings: Settings) -> str:
    """What a daemon would do to accounts."""
    cutoff, trail = settings.cutoff, settings.audit.folder or "Redis alone"
    if not cutoff.acts:
        return "off, accounts are valued only"
    levels = f"warns at {cutoff.warning_level_pct:g} %, closes at {cutoff.critical_level_pct:g} % ({cutoff.stop_out})"
    protects = ", protects negative balances" if cutoff.negative_balance_protection else ""
    return f"{levels}, profile {cutoff.profile}{protects}, brake at {cutoff.brake_share_pct:g} %, trail in {trail}"


def _role(settings: Settings, url: str, options: argparse.Namespace, stop: threading.Event, seen: Vitals) -> int:
    client = client_of(settings, url)
    log.info("started", role=options.role, server=str(check_server(client)))
    if options.role == "workers":
        run_workers(client, settings, parse_kinds(options.only), stop, seen)
    elif options.role == "replicator":
        run_replicator(client, settings, stop, seen)
    elif options.role == "monitors":
        run_monitors(client, settings, stop, seen)
    elif options.role == "recorder":
        run_recorder(client, settings, stop, seen)
    elif options.role == "notifier":
        run_notifier(client, settings, stop, seen)
    elif options.role == "gateway":
        run_gateway(client, settings.gateway(), stop, seen)
    elif options.role == "api":
        _api(settings, url, stop, seen)
    else:
        run_simulator(settings.simulated_provider(url), stop, seen=seen)
    return EXIT_OK


def _api(settings: Settings, url: str, stop: threading.Event, seen: Vitals) -> None:
    try:
        from copyrisk.api.serve import run_api  # noqa: PLC0415  # not installed where nobody answers HTTP
    except ModuleNotFoundError as missing:
        raise ConfigError(f"{missing.name} is not installed: install copyrisk[api]", code="api_missing") from None
    run_api(settings, url, stop, seen)


def _engine(settings: Settings, url: str, *, acts: bool | None = None) -> Engine:
    client = client_of(settings, url)
    log.info("started", server=str(check_server(client)), tick_ms=settings.tick.period_ms)
    return make_engine(client, settings, acts=acts)


def _once(settings: Settings, url: str) -> int:
    report = _engine(settings, url, acts=False).tick()  # another daemon may be acting
    _log_report(report)
    return EXIT_FAILED if report.skipped or report.refused else EXIT_OK


def _daemon(settings: Settings, url: str, stop: threading.Event, seen: Vitals, *, ticks: int | None) -> int:
    engine, reported_ms = _engine(settings, url), 0
    for report in engine.run(stop, ticks=ticks):
        note_tick(seen, report)
        if report.ts_ms - reported_ms >= _REPORT_EVERY_MS:
            reported_ms = report.ts_ms
            _log_report(report)
    engine.close()
    log.info("ended")
    return EXIT_OK


def _log_report(report: TickReport) -> None:
    if report.skipped:
        return  # the engine has logged why
    log.info(
        "tick",
        number=report.number,
        accounts=report.accounts,
        orders=report.orders,
        written=report.written,
        refused=report.refused,
        unknown=sum(report.unknown_by_reason.values()),
        refused_keys=report.refused_keys,
        repaired=report.repaired,
        inconsistent=report.inconsistent,
        read_ms=round(report.read_ms, 2),
        value_ms=round(report.value_ms, 2),
        write_ms=round(report.write_ms, 2),
        late_ticks=report.late_ticks,
    )


def _demo(settings: Settings, options: argparse.Namespace, stop: threading.Event) -> int:
    chosen = DemoOptions(options.accounts or 1000, options.replay, options.speed or 1.0, options.ticks)
    return run_demo(settings, chosen, Console(), stop)


if __name__ == "__main__":
    sys.exit(main())
