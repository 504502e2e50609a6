"""The command as its user runs it: keys in, `copyrisk-run`, portfolios out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from copyrisk.embedded import find_server
from tests.backoffice import BackOffice

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "portfolio.json").read_text())
COMMAND = [sys.executable, "-m", "copyrisk.cli"]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("COPYRISK_")}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env={**clean, **environ}, check=False
    )


def write_vectors(office: BackOffice) -> None:
    for symbol, (bid, ask) in VECTORS["quotes"].items():
        office.quote(symbol, bid, ask)
    for symbol, terms in VECTORS["groups"].items():
        office.group(symbol, **terms)
    for number, case in enumerate(VECTORS["cases"]):
        office.account(f"live:{number}", **case["config"])
        for position, order in enumerate(case["orders"]):
            office.order(f"live:{number}", f"O{number}_{position}", **order)


def test_portfolios_of_an_existing_back_office_are_reproduced(redis_server: Any) -> None:
    office = BackOffice(redis_server.client())
    write_vectors(office)
    done = run("--redis", redis_server.url, "--once")
    assert done.returncode == 0, done.stderr
    for number, case in enumerate(VECTORS["cases"]):
        written = office.portfolio(f"live:{number}")
        expected = case["portfolio"]
        assert {key: written.get(key) for key in expected} == expected, case["name"]
        assert written["degraded_fields"] == ""
        assert written["ts"] == written["valued_ts"]


def test_each_written_portfolio_is_announced(redis_server: Any) -> None:
    client = redis_server.client()
    BackOffice(client).eurusd_account("copy_follower:F1")
    listener = client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe("portfolio_updates")
    assert listener.get_message(timeout=5) is None
    assert run("--redis", redis_server.url, "--once").returncode == 0
    message = listener.get_message(timeout=5)
    assert message is not None and message["data"] == b"copy_follower:F1"
    assert client.hget("copyrisk:tick", "accounts") == b"1"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_daemon_follows_quotes_orders_and_accounts_until_it_is_told_to_end(
    redis_server: Any, how: signal.Signals
) -> None:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1")
    daemon = subprocess.Popen([*COMMAND, "--redis", redis_server.url, "--tick-ms", "50"], stderr=subprocess.PIPE)
    try:
        _wait_for(lambda: office.portfolio("live:1").get("equity") == "10050.0")
        office.quote("EURUSD", 1.0855, 1.0856)
        _wait_for(lambda: office.portfolio("live:1").get("equity") == "10150.0")
        office.order("live:1", "O2", order_type="SELL", order_price="1.0866", order_quantity="0.5")
        _wait_for(lambda: office.portfolio("live:1").get("equity") == "10200.0")
        office.account("demo:2", wallet_balance="77.5")
        _wait_for(lambda: office.portfolio("demo:2").get("equity") == "77.5")
        office.client.srem("user_orders_index:{live:1}", "O2")
        _wait_for(lambda: office.portfolio("live:1").get("equity") == "10150.0")
        daemon.send_signal(how)
        assert daemon.wait(timeout=10) == 0
    finally:
        daemon.kill()
        output = daemon.communicate()[1].decode()
    assert "Traceback" not in output


def _wait_for(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.mark.fault
def test_the_daemon_outlives_its_server(tmp_path: Path) -> None:
    """The server is killed and comes back empty; the back office writes its accounts again; the daemon was there."""
    socket, program = tmp_path / "s", str(find_server())
    server = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]

    def start() -> tuple[Any, BackOffice]:
        running = subprocess.Popen(server, stdout=subprocess.DEVNULL)
        client = redis.Redis(unix_socket_path=str(socket))
        _wait_for(lambda: socket.exists() and _answers(client))
        return running, BackOffice(client)

    running, office = start()
    office.eurusd_account("live:1")
    daemon = subprocess.Popen([*COMMAND, "--redis", f"unix://{socket}", "--tick-ms", "50"], stderr=subprocess.PIPE)
    try:
        _wait_for(lambda: office.portfolio("live:1").get("equity") == "10050.0")
        running.kill()
        running.wait()
        time.sleep(0.3)
        assert daemon.poll() is None
        running, office = start()
        _wait_for(lambda: office.client.hget("copyrisk:tick", "accounts") == b"0")
        office.eurusd_account("live:1")
        _wait_for(lambda: office.portfolio("live:1").get("equity") == "10050.0")
        daemon.terminate()
        assert daemon.wait(timeout=10) == 0
    finally:
        daemon.kill()
        running.kill()
        running.wait()
        output = daemon.communicate()[1].decode()
    assert "tick_skipped" in output
    assert "Traceback" not in output


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_ticks_ends_by_itself(bundled_server: Any) -> None:
    started = time.monotonic()
    assert run("--redis", bundled_server.url, "--ticks", "3", "--tick-ms", "100").returncode == 0
    assert time.monotonic() - started < 10


def test_check_names_the_server(redis_server: Any) -> None:
    done = run("--redis", redis_server.url, "--check")
    assert done.returncode == 0
    assert "server: ok" in done.stdout


def test_without_a_url_a_bundled_server_serves(tmp_path: Path) -> None:
    done = run("--once", COPYRISK_LOG_FORMAT="json")
    assert done.returncode == 0, done.stderr
    assert "bundled_server_started" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (("--redis", "unix:///nowhere/at.sock", "--once"), {}, "[server_unreachable]"),
        (("--redis", "redis://127.0.0.1:1/0", "--check"), {}, "[server_unreachable]"),
        (("--redis", "http://127.0.0.1", "--once"), {}, "[bad_redis_url]"),
        (("--config", "/nowhere.toml", "--once"), {}, "/nowhere.toml"),
        (("--tick-ms", "0", "--once"), {}, "period_ms"),
        (("--once",), {"COPYRISK_TICK_MS": "fast"}, "COPYRISK_TICK_MS"),
        (("--once",), {"COPYRISK_NO_SUCH": "1"}, "COPYRISK_NO_SUCH"),
        (("--once", "--check"), {}, "not allowed with"),
        (("--ticks", "0"), {}, "must be from 1"),
        (("--demo", "--speed", "fast"), {}, "must be a number"),
        (("--accounts", "5"), {}, "goes with --demo"),
        (("--demo", "--replay", "/nowhere.npz"), {}, "[bad_replay_file]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: tuple[str, ...], environ: dict[str, str], said: str) -> None:
    done = run(*arguments, **environ)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if "usage:" not in done.stderr:
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_wrong_key_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[tick]\nperiod = 100\n")
    done = run("--config", str(path), "--once")
    assert done.returncode != 0
    assert "period" in done.stderr and "Traceback" not in done.stderr
