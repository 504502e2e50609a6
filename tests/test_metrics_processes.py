"""`/metrics`, `/healthz`, `/readyz` of real processes of every role, and of one whose server hangs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from copyrisk.embedded import EmbeddedServer
from copyrisk.sql.database import open_database
from copyrisk.vitals import METRICS
from tests.backoffice import BackOffice
from tests.chain import Chain
from tests.conftest import Server
from tests.trading import until

COMMAND = [sys.executable, "-m", "copyrisk.cli"]


def environment(**given: object) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("COPYRISK_")}
    return clean | {f"COPYRISK_{key}": str(value) for key, value in given.items()}


@dataclass
class Endpoint:
    """What a process serves."""

    port: int

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()
        except OSError:
            return 0, ""

    def health(self) -> tuple[int, Any]:
        status, body = self.page("/healthz")
        return status, json.loads(body or "{}")

    def parts(self) -> tuple[int, Any]:
        status, body = self.page("/readyz")
        return status, json.loads(body or "{}").get("parts", {})

    def figures(self) -> dict[tuple[str, ...], float]:
        """By name and values of the labels, in the order of their names."""
        families = text_string_to_metric_families(self.page("/metrics")[1])
        return {
            (
                sample.name.removeprefix("copyrisk_"),
                *(value for _, value in sorted(sample.labels.items())),
            ): sample.value
            for family in families
            for sample in family.samples
        }

    def types(self) -> set[str]:
        return set(re.findall(r"^# TYPE (copyrisk_\w+) ", self.page("/metrics")[1], re.MULTILINE))


@contextmanager
def running(url: str, log: Path, *arguments: str, **given: object) -> Iterator[tuple[Any, Endpoint]]:
    """A process that serves on a port of its own choice."""
    environ = environment(LOG_FORMAT="json", MARKET_ALWAYS_OPEN="true", **given)
    words = [*COMMAND, "--redis", url, "--metrics", "0", *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(words, env=environ, stdout=out, stderr=out)
    try:
        until(lambda: process.poll() is not None or _port(log) is not None, 20)
        port = _port(log)
        assert port is not None, log.read_text()
        yield process, Endpoint(port)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()


def _port(log: Path) -> int | None:
    found = re.search(r'"port": (\d+), "event": "metrics_served"', log.read_text())
    return int(found[1]) if found else None


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that a test may stop."""
    with EmbeddedServer.start() as server:
        yield Server(server.url, server.pid)


@pytest.mark.fault
def test_a_daemon_tells_what_it_does_and_when_its_server_hangs(own_server: Server, tmp_path: Path) -> None:
    office = BackOffice(own_server.client())
    office.eurusd_account("live:1")
    office.account("demo:2")
    office.account("demo:3", wallet_balance="none")
    limits = {"TICK_MS": 50, "REDIS_REPLY_TIMEOUT_MS": 200, "METRICS_STALL_MS": 400}
    with running(own_server.url, tmp_path / "log", **limits) as (process, endpoint):
        until(lambda: endpoint.parts()[0] == 200, 20)
        status, said = endpoint.health()
        assert (status, said["status"], said["role"], said["limit_ms"]) == (200, "ok", "daemon", 450)
        assert endpoint.types() == {name for name, one in METRICS.items() if not one.roles or "daemon" in one.roles}
        figures = endpoint.figures()
        assert figures["accounts", "healthy", "live"] == figures["accounts", "no_margin", "demo"] == 1
        assert figures["accounts", "unknown", "demo"] == 1
        assert sum(value for key, value in figures.items() if key[0] == "unknown_accounts") == 1
        assert (figures["orders",], figures["store_up",], figures["dead_letters",]) == (1, 1, 0)
        assert figures["portfolios_total", "written"] >= 3
        assert figures["ready", "loop"] == figures["ready", "store"] == 1
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            until(lambda: endpoint.health()[0] == 503 and endpoint.parts()[0] == 503)
            assert endpoint.health()[1]["status"] == "store_unavailable"
            until(lambda: endpoint.figures().get(("ticks_total", "store_unavailable"), 0) > 0)
            until(lambda: endpoint.parts()[1]["store"] == "store_unavailable")
            figures = endpoint.figures()
            assert figures["store_up",] == figures["ready", "store"] == 0
            assert ("dead_letters",) not in figures  # nobody knows
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        until(lambda: endpoint.health()[0] == endpoint.parts()[0] == 200)
        process.terminate()
        assert process.wait(timeout=10) == 0


WRONG: tuple[tuple[tuple[str, ...], dict[str, str], str], ...] = (
    (("--metrics", "{taken}"), {}, "[cannot_listen]"),
    (("--metrics", "{taken}", "--role", "workers"), {}, "[cannot_listen]"),
    (("--metrics", "0", "--metrics-host", "no.such.host.invalid"), {}, "[cannot_listen]"),
    (("--metrics", "70000"), {}, "must be from 0 to 65535"),
    (("--metrics", "all"), {}, "must be a number"),
    (("--metrics", "0", "--once"), {}, "goes with a process that stays"),
    (("--metrics", "0", "--check"), {}, "goes with a process that stays"),
    (("--metrics", "0", "dead-letters", "list"), {}, "goes with a process that stays"),
    ((), {"COPYRISK_METRICS_PORT": "-1"}, "COPYRISK_METRICS_PORT"),
    ((), {"COPYRISK_METRICS_STALL_MS": "1"}, "COPYRISK_METRICS_STALL_MS"),
    ((), {"COPYRISK_METRICS_PROT": "9300"}, "did you mean"),
)
#: Runs one command line after the other, for starting a process for each would take seconds.
RUN_ALL = """
import contextlib, io, json, os, sys
from copyrisk.cli import main
def run(words, environ):
    os.environ.update(environ)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
    for name in environ:
        del os.environ[name]
    return code, said.getvalue()
print(json.dumps([run(*one) for one in json.loads(sys.argv[1])]))
"""


def test_what_is_wrong_is_said_in_one_line(bundled_server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        asked = [
            (["--redis", bundled_server.url, *(word.format(taken=port) for word in words)], given)
            for words, given, _ in WRONG
        ]
        words = [sys.executable, "-c", RUN_ALL, json.dumps(asked)]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for (given, _, expected), (code, said) in zip(WRONG, json.loads(done.stdout), strict=True):
        assert code == 2, (given, said)
        assert expected in said and "Traceback" not in said, (given, said)
        if "usage:" not in said:
            assert len(said.strip().splitlines()) == 1, (given, said)


def test_who_is_asked_for_nothing_needs_no_client_of_prometheus(bundled_server: Server) -> None:
    script = (
        "import sys\nsys.modules['prometheus_client'] = None\nfrom copyrisk.cli import main\n"
        "assert main(['--redis', sys.argv[1], '--ticks', '1']) == 0\n"
        "sys.exit(main(['--redis', sys.argv[1], '--metrics', '0']))"
    )
    words = [sys.executable, "-c", script, bundled_server.url]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    expected = "copyrisk-run: prometheus_client is not installed: install copyrisk[metrics] [metrics_missing]"
    assert done.stderr.strip().splitlines()[-1] == expected


ROLES = ("daemon", "workers", "replicator", "monitors", "recorder", "gateway", "notifier", "simulator")


@pytest.mark.slow
@pytest.mark.fault
def test_every_role_tells_what_it_does(bundled_server: Server, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'history'}"
    with open_database(url) as database:
        database.migrate()
    with Chain(bundled_server, tmp_path) as chain:
        chain.moves = False
        chain.feed()
        given = {
            "LOG_LEVEL": "info",
            "METRICS_STALL_MS": 2_000,
            "DATABASE_URL": url,
            "SIMULATOR_SCRIPT": _script(tmp_path),
        }
        for role in ROLES:
            chain.start(role, role, "--metrics", "0", **given)
        logs = {role: chain.processes[role].log for role in ROLES}
        chain.until(lambda: all(_port(log) for log in logs.values()), 40)
        endpoints = {role: Endpoint(_port(log) or 0) for role, log in logs.items()}
        for role, endpoint in endpoints.items():
            chain.until(lambda endpoint=endpoint: endpoint.parts()[0] == 200, 40)
            assert endpoint.health()[0] == 200
            expected = {name for name, one in METRICS.items() if not one.roles or role in one.roles}
            assert endpoint.types() == expected, role
            assert endpoint.figures()["build_info", role, _version()] == 1
        assert endpoints["replicator"].parts()[1]["lease"] == "held"
        assert endpoints["workers"].parts()[1]["functions"] == "ok"
        assert endpoints["gateway"].parts()[1]["link"] == "up"
        _trade(chain, {role: endpoint.figures for role, endpoint in endpoints.items()})
        chain.processes["simulator"].kill()
        chain.until(lambda: endpoints["gateway"].figures()["gateway_link_up",] == 0, 20)
        chain.until(lambda: endpoints["gateway"].parts() == (503, endpoints["gateway"].parts()[1]), 20)
        assert endpoints["gateway"].health()[0] == 200  # it does what it can
    assert not any("Traceback" in log.read_text() for log in logs.values())


def _trade(chain: Chain, figures: dict[str, Callable[[], dict[tuple[str, ...], float]]]) -> None:
    """Have something to count for each of them."""
    said = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "0.5"}
    chain.send("open", "live:1", order_id="L", **said)
    chain.send("open", "live:2", order_id="P", **said)
    chain.until(lambda: figures["workers"]().get(("worker_entries_total", "open", "done"), 0) >= 3, 20)
    chain.until(lambda: figures["gateway"]().get(("gateway_answer_seconds_count",), 0) == 1, 20)
    chain.until(lambda: figures["gateway"]().get(("gateway_requests", "outstanding")) == 0, 20)
    chain.until(lambda: figures["recorder"]().get(("history_rows_total", "written"), 0) >= 2, 20)
    chain.send("pending", "live:1", order_id="W", **(said | {"order_type": "BUY_LIMIT", "order_price": "1.0"}))
    chain.until(lambda: figures["monitors"]().get(("triggers",)) == 1, 20)
    chain.offset["EURUSD"] = -10_000  # points: what is published from here on
    chain.until(lambda: figures["monitors"]().get(("triggers_fired_total", "pending"), 0) >= 1, 20)
    chain.until(lambda: figures["workers"]().get(("stream_lag_entries", "workers", "copyrisk:commands")) == 0, 20)
    chain.until(lambda: figures["workers"]().get(("stream_oldest_seconds", "copyrisk:commands")) == 0, 20)


def _script(folder: Path) -> Path:
    path = folder / "script.toml"
    path.write_text("")
    return path


def _version() -> str:
    from copyrisk import __version__

    return __version__
