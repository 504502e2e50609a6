"""A simulated provider and a gateway for tests: in a thread, or as a process that may be killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from copyrisk import keys
from copyrisk.gateway.gateway import run_gateway
from copyrisk.gateway.link import LinkSettings
from copyrisk.gateway.script import parse_script
from copyrisk.gateway.session import GatewaySettings
from copyrisk.gateway.simulator import Simulator, SimulatorSettings, run_simulator
from copyrisk.store.connection import connect

QUOTES = {"EURUSD": ["1.1000", "1.1002"], "XAUUSD": ["2400.10", "2400.40"]}
#: Short, so that what has to be waited for in a test does not take long.
BRIEF: dict[str, int] = {
    "answer_timeout_ms": 60,
    "query_max_ms": 300,
    "recheck_ms": 150,
    "reconnect_min_ms": 5,
    "reconnect_max_ms": 50,
}


def request(request_id: str, **other: str) -> dict[str, str]:
    """A market order, unless something else is said."""
    return {
        "request_id": request_id,
        "action": "open",
        "user_type": "live",
        "user_id": "U1",
        "order_id": f"O-{request_id}",
        "symbol": "EURUSD",
        "side": "BUY",
        "order_type": "MARKET",
        "order_quantity": "0.5",
        "target": "",
        "ts": "1700000000000",
        **other,
    }


def placed(request_id: str, price: str, **other: str) -> dict[str, str]:
    """A buy limit."""
    return request(request_id, action="place", order_type="BUY_LIMIT", order_price=price, **other)


class Speaker:
    """A client of the simulator's protocol that says exactly what it is told."""

    def __init__(self, port: int, session: str = "") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 5.0)
        self._file = self._socket.makefile("rb")
        if session:
            self.say({"type": "hello", "version": 1, "session": session, "heartbeat_ms": 20_000})

    def say(self, message: Mapping[str, Any]) -> None:
        self.shout(json.dumps(message).encode() + b"\n")

    def shout(self, raw: bytes) -> None:
        self._socket.sendall(raw)

    def hear(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """The next message that is no heartbeat; empty once the connection is closed."""
        self._socket.settimeout(timeout_s)
        while True:
            try:
                line = self._file.readline()
            except ConnectionResetError:
                line = b""
            message: dict[str, Any] = json.loads(line) if line else {}
            if message.get("type") != "heartbeat":
                return message

    def ask(self, said: Mapping[str, str]) -> None:
        self.say({"type": "request", "request": said})

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> "Speaker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Provider:
    """A running simulator."""

    port: int
    process: "subprocess.Popen[str] | None" = None

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def control(self, what: str, **other: Any) -> dict[str, Any]:
        with Speaker(self.port) as speaker:
            speaker.say({"control": what, **other})
            return speaker.hear()

    def orders(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.control("book")["orders"]
        return found


@contextmanager
def provider(port: int = 0, redis_url: str | None = None, **script: Any) -> Iterator[Provider]:
    """A simulator in a thread."""
    told = parse_script({"quotes": QUOTES, **script} if redis_url is None else script)
    simulator, stop = Simulator(SimulatorSettings(port=port, redis_url=redis_url, script=told)), threading.Event()

    def turn() -> None:
        while not stop.is_set():
            simulator.turn(0.02)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield Provider(simulator.port)
    finally:
        stop.set()
        thread.join()
        simulator.close()


@contextmanager
def provider_process(**script: Any) -> Iterator[Provider]:
    """A simulator as a process."""
    process = _started("simulator", {"quotes": QUOTES, **script}, {})
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said.startswith("listening on 127.0.0.1:"), said
        yield Provider(int(said.rpartition(":")[2]), process)
    finally:
        end(process)


def end(process: "subprocess.Popen[str]") -> int:
    """Ask a process to end; its exit code."""
    if process.poll() is None:
        process.terminate()
    code = process.wait(10)
    if process.stdout is not None:
        process.stdout.close()
    return code


@contextmanager
def gateway(redis_url: str, provider_url: str, **settings: Any) -> Iterator[None]:
    """A gateway in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=_gateway, args=(redis_url, provider_url, stop), kwargs=settings)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def gateway_process(redis_url: str, provider_url: str, crash_at: str = "", **settings: Any) -> "subprocess.Popen[str]":
    """A gateway as a process, which dies at a named point."""
    said = {"redis_url": redis_url, "provider_url": provider_url, **settings}
    return _started("gateway", said, {"COPYRISK_CRASH_AT": crash_at} if crash_at else {})


def _gateway(redis_url: str, provider_url: str, stop: threading.Event, **settings: Any) -> None:
    client = connect(redis_url, connect_timeout_ms=2_000, reply_timeout_ms=2_000)
    beat_ms = settings.pop("heartbeat_ms", 1_000)
    link = LinkSettings(provider_url, connect_timeout_ms=500, heartbeat_ms=beat_ms)
    try:
        run_gateway(client, GatewaySettings(link, **{**BRIEF, **settings}), stop)
    finally:
        client.close()


def _started(role: str, said: Mapping[str, Any], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, __file__, role, json.dumps(said)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def until(is_so: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Wait until something is so; what it then is."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = is_so()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("it did not come about")


@dataclass
class Streams:
    """The gateway's ends in Redis."""

    client: redis.Redis
    sent: list[dict[str, str]] = field(default_factory=list)

    def ask(self, *requests: Mapping[str, str]) -> None:
        """Put requests on their stream."""
        pipe: Any = self.client.pipeline(transaction=False)
        for one in requests:
            pipe.xadd(keys.REQUESTS, dict(one))
        pipe.execute()

    def entries(self, stream: str) -> list[dict[str, str]]:
        rows: Any = self.client.xrange(stream)
        return [{name.decode(): value.decode() for name, value in row.items()} for _, row in rows]

    def reports(self, request_id: str = "") -> list[dict[str, str]]:
        return [one for one in self.entries(keys.REPORTS) if request_id in ("", one["request_id"])]

    def last(self, request_id: str) -> dict[str, str]:
        """The report with the highest number, empty if there is none."""
        return max(self.reports(request_id), key=lambda one: int(one["sequence"]), default={})

    def outstanding_ids(self) -> list[str]:
        held: Any = self.client.hkeys(keys.OUTSTANDING)
        return [name.decode() for name in held]

    def outstanding_state(self, request_id: str) -> str:
        held: Any = self.client.hget(keys.OUTSTANDING, request_id)
        return str(json.loads(held)["state"])

    def outstanding(self) -> dict[str, dict[str, Any]]:
        held: Any = self.client.hgetall(keys.OUTSTANDING)
        return {name.decode(): json.loads(value) for name, value in held.items()}

    def is_quiet(self) -> bool:
        """Whether everything that was asked has come to its end."""
        return not self.client.xlen(keys.REQUESTS) and not self.client.hlen(keys.OUTSTANDING)


def _main(role: str, said: dict[str, Any]) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if role == "simulator":
        settings = SimulatorSettings(script=parse_script(said))
        run_simulator(settings, stop)
    else:
        _gateway(said.pop("redis_url"), said.pop("provider_url"), stop, **said)


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
