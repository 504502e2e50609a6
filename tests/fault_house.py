"""What the fault tests of autocutoff need: a house on the edge, and servers, replies and daemons that can be broken.

The accounts of the house are healthy and near enough to their thresholds that any figure taken wrongly would close
them. Keys are spelled out by hand, as in `trading`.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from copyrisk import crash
from copyrisk.daemon import make_engine
from copyrisk.embedded import find_server
from copyrisk.engine import Engine
from copyrisk.store.connection import connect
from tests.chain import Running, free_port
from tests.copying_desk import MASTER
from tests.cutoff_desk import CutoffDesk
from tests.trading import held_by, until

HEAD, CASCADES, KILLS = "copyrisk:{audit}:head", "copyrisk:{cutoff}:cascades", "copyrisk:kills"
QUOTES = {"EURUSD": "1", "USDJPY": "150", "EURGBP": "0.85", "GBPUSD": "1.25"}
THIN = ("live:thin", "demo:thin", "strategy_provider:thin", "copy_follower:thin")
COPIES = ("copy_follower:F0", "copy_follower:F1")
_OWN_TYPES = {
    **dict.fromkeys(("lease", "episodes", "cascades", "head", "ledger"), b"hash"),
    **dict.fromkeys(("notices", "trail", "audit", "outbox"), b"stream"),
    "order": b"string",
}


class House(CutoffDesk):
    """Healthy accounts of all kinds, each a wrong figure away from being closed, and others to be made critical."""

    def __init__(self, server: Any, flow: str = "rock", **flags: object) -> None:
        super().__init__(server, flow, **{"cutoff__lease_ms": 2_000, "cutoff__brake_min_accounts": 10} | flags)
        self.office.group("USDJPY", profit="JPY")
        self.office.group("EURGBP", profit="GBP")
        self._hair = Decimal(0)
        self.print_quotes()
        for account in THIN:
            self.holder(account, "120")  # 12 %
        self.holder("live:short", "120")
        self.client.hset("user_holdings:{live:short}:O-live-short", "order_type", "SELL")
        self.account("live:hedged", flow, "620")
        self.position("live:hedged", "H1", price="1.05")  # -5,000
        self.position("live:hedged", "H2", price="1.055", order_type="SELL")  # +5,500
        self.account("demo:winner", flow, "20")
        self.position("demo:winner", "W", price="0.9")  # +10,000
        self.account("live:jpy", flow, "330")
        self.position("live:jpy", "J", price="150.3", symbol="USDJPY")  # -30,000 JPY: 13 %
        self.account("live:gbp", flow, "1390")
        self.position("live:gbp", "G", price="0.86", symbol="EURGBP")  # -1,000 GBP: 13.2 %
        self.holder(MASTER, "120", ("MO", "1"))
        for copy in COPIES:
            self.follower(copy.partition(":")[2], "120")
            self.position(copy, f"C-{copy[-2:]}", master_order_id="MO")
        self.condemned: set[str] = set()
        self.healthy = self.stands()
        self._spare = 0
        self.spare()
        self._kept: dict[bytes, bytes] = {}

    # ---- time

    def print_quotes(self, **changed: str) -> None:
        """All quotes anew, a hair away from where they were: a print that differs in nothing confirms nothing."""
        self._hair = Decimal("0.000000001") - self._hair
        for symbol, mid in {**QUOTES, **changed}.items():
            with suppress(redis.ResponseError):  # who broke its key mends it
                self.price(Decimal(mid) + self._hair, symbol)

    def tick(self, count: int = 1, *, prints: bool = True) -> None:
        """Ticks, in which the market goes on; whatever fails, the daemon does not."""
        for _ in range(count):
            if prints:
                self.print_quotes()
            self.full_step()

    def ticks_in_time(self, count: int) -> None:
        """So many ticks, and another for each in which a machine with much to do did not hear the server in time."""
        for _ in range(10):
            self.print_quotes()
            count -= not (self.full_step().skipped or "").startswith("store_unavailable")
            if not count:
                return
        raise AssertionError("the server does not answer")

    # ---- who is what

    def stands(self) -> dict[str, tuple[object, set[str], object]]:
        """What every account has."""
        return {name: (self.balance(name), self.index(name), self.open_lots(name)) for name in self.accounts()}

    def open_lots(self, account: str) -> Decimal:
        """An order that is closed while it is asked for has none."""
        orders = [self.order(account, order_id) for order_id in self.index(account)]
        return sum((Decimal(order.get("order_quantity", "0")) for order in orders), Decimal(0))

    def spare(self) -> str:
        """Another account that is healthy by far, for now."""
        self._spare += 1
        return self.holder(f"live:L{self._spare}", "5000")

    def condemn(self, account: str) -> str:
        """An account of which nothing is left: from now on it is really critical."""
        self.condemned.add(account)
        self.configure(account, wallet_balance="50")
        return account

    def closed(self) -> set[str]:
        """Accounts of which anything was ever closed."""
        stopped = self.events(type="stop_out", event="done")
        return {f"{event['user_type']}:{event['user_id']}" for event in stopped}

    def assert_nobody_else_closed(self) -> None:
        assert self.closed() <= self.condemned
        assert not self.client.keys("copyrisk:{cutoff}:cascade:*")

    def assert_untouched(self) -> None:
        """Nothing was done to who is healthy."""
        self.assert_nobody_else_closed()
        now = self.stands()
        assert {name: now[name] for name in self.healthy} == self.healthy

    def assert_sees(self, account: str = "") -> None:
        """Who is really critical, as somebody is now at the latest, is liquidated within two ticks."""
        account = account or self.spare()
        self.condemn(account)
        self.tick(2)
        assert self.is_flat(account)
        self.assert_untouched()

    def until_flat(self, account: str, limit_s: float = 10.0) -> None:
        """Tick until it is; what could not be closed a moment ago waits a little."""
        deadline_s = time.monotonic() + limit_s
        while not self.is_flat(account):
            assert time.monotonic() < deadline_s, account
            self.tick()

    # ---- what is broken

    def keep(self) -> None:
        """Remember all keys that are not our own."""
        keys = [key for key in self.client.keys("*") if not key.startswith((b"copyrisk:", b"user_portfolio:"))]
        self._kept = {key: self.client.dump(key) for key in keys}

    def mend(self) -> None:
        """Put back what was kept and is not there as it was; and take away our own that are of no use."""
        for key, stored in self._kept.items():
            if self.client.dump(key) != stored:
                self.client.restore(key, 0, stored, replace=True)
        for key in self.client.keys("copyrisk:*"):
            wanted = _OWN_TYPES.get(key.decode().rpartition("}:")[2].partition(":")[0])
            if wanted is not None and self.client.type(key) != wanted:
                self.client.delete(key)
        for account in self.condemned:
            self.configure(account, wallet_balance="50")

    def delete(self, pattern: str) -> int:
        return sum(self.client.delete(key) for key in self.client.keys(pattern))


# ---- what the server answers


class Proxy:
    """Between a daemon and its server; what the server says may be spoiled on the way.

    Attributes
    ----------
    spoil : callable
        Takes the number of a connection and a piece of what the server says, returns what arrives; `None`: the
        connection is cut.
    target : str
        Path of the server's socket.
    mirrors : set of int
        Connections on which the server was asked to report changes: those that the book is read by.
    """

    def __init__(self, target: str, folder: Path) -> None:
        self.target, self.url = target, f"unix://{folder / 'proxy'}"
        self.spoil: Callable[[int, bytes], bytes | None] = lambda _number, said: said
        self.mirrors: set[int] = set()
        self._count = 0
        self._pairs: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "proxy"))
        self._listener.listen(16)
        self._listener.settimeout(0.05)
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._ends.is_set():
            with suppress(OSError):
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._count += 1
                self._pairs[self._count] = client, server
                server.connect(self.target)
                for way in (self._ask, self._answer):
                    self._threads.append(threading.Thread(target=way, args=(self._count, client, server)))
                    self._threads[-1].start()

    def _ask(self, number: int, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while said := client.recv(1 << 18):
                if b"TRACKING" in said:
                    self.mirrors.add(number)
                server.sendall(said)
        self.cut(number)

    def _answer(self, number: int, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while said := server.recv(1 << 18):
                arrives = self.spoil(number, said)
                if arrives is None:
                    break
                client.sendall(arrives)
        self.cut(number)

    def cut(self, number: int) -> None:
        for line in self._pairs.get(number, ()):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._ends.set()
        for number in list(self._pairs):
            self.cut(number)
        for thread in self._threads:
            thread.join()
        for pair in self._pairs.values():
            for line in pair:
                line.close()
        self._listener.close()


class Behind(House):
    """A house whose daemons speak to the server through a proxy."""

    def __init__(self, server: Any, folder: Path, *, timeout_ms: int = 400, **flags: object) -> None:
        self.proxy = Proxy(server.url.removeprefix("unix://"), folder)
        self.timeout_ms = timeout_ms
        super().__init__(server, **flags)

    def new_daemon(self, **options: Any) -> Engine:
        client = connect(self.proxy.url, connect_timeout_ms=1_000, reply_timeout_ms=self.timeout_ms)
        self._clients.append(client)
        return make_engine(client, self.settings, **options)


# ---- servers


@dataclass
class Machine:
    """A server of its own, on a socket and a port, that may be killed, stopped, and started again."""

    folder: Path
    port: int

    def __post_init__(self) -> None:
        self.url = f"unix://{self.folder / 'socket'}"
        self.popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def start(self, *more: str, waits: bool = True) -> None:
        paths = ["--unixsocket", str(self.folder / "socket"), "--dir", str(self.folder)]
        words = [*paths, "--port", str(self.port), "--save", "", "--logfile", str(self.folder / "log"), *more]
        self.popen = subprocess.Popen([str(find_server()), *words])
        if waits:
            until(self.answers, 20.0)

    def answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

    def say(self, what: signal.Signals) -> None:
        assert self.popen is not None
        self.popen.send_signal(what)

    def kill(self) -> None:
        if self.popen is not None:
            self.say(signal.SIGCONT)
            self.popen.kill()
            self.popen.wait()
            self.popen = None


class Pair:
    """A server and its replica; a daemon reaches whichever is the master behind one address."""

    def __init__(self, folder: Path) -> None:
        machines = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            machines.append(Machine(folder / name, free_port()))
        self.old, self.new = machines
        self.old.start("--repl-diskless-sync-delay", "0")
        self.new.start("--replicaof", f"127.0.0.1 {self.old.port}")
        until(lambda: self.new.client().info("replication")["master_link_status"] == "up", 20.0)
        self.house = Behind(self.old, folder, timeout_ms=1_000)

    def wait(self) -> None:
        """Until the replica has all that was written."""
        assert self.house.client.wait(1, 20_000) == 1

    def promote(self) -> None:
        """The replica is the master; who asks from now on reaches it."""
        with self.new.client() as client:
            client.replicaof("NO", "ONE")
        self.house.proxy.target = str(self.new.folder / "socket")
        for number in list(self.house.proxy._pairs):
            self.house.proxy.cut(number)

    def move(self) -> None:
        """The back office goes there, too."""
        self.house.server = self.new
        self.house.client = self.house.office.client = self.new.client()
        self.house._clients.append(self.house.client)

    def close(self) -> None:
        self.house.proxy.close()
        self.house.close()
        self.old.kill()
        self.new.kill()


# ---- daemons


@contextmanager
def at(point: str, act: Callable[[], object]) -> Iterator[None]:
    """Do something when a daemon of this process comes to a point for the first time."""
    left = [act]

    def reached(name: str) -> None:
        if name == point and left:
            left.pop()()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crash, "reach", reached)
        yield
    assert not left, "it did not come there"


#: Has a daemon stop itself where it comes to a named point, as `copyrisk.crash` has it die.
_STOPS = """
import os, signal, sys
from copyrisk import crash
point, _, count = os.environ.pop("STOP_AT").partition(":")
left = int(count or 1)
def reach(name):
    global left
    left -= name == point
    if name == point and not left:
        os.kill(os.getpid(), signal.SIGSTOP)
crash.reach = reach
from copyrisk.cli import main
sys.exit(main())
"""


@dataclass
class Daemons:
    """Daemons as processes; what they log is looked at in the end."""

    house: House
    folder: Path

    def __post_init__(self) -> None:
        self.running: dict[str, Running] = {}

    def start(self, name: str, stop_at: str = "") -> Running:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("COPYRISK_")}
        said = {"MARKET_ALWAYS_OPEN": "true", "CUTOFF_LEASE_MS": 500, "CUTOFF_BRAKE_MIN_ACCOUNTS": 1_000}
        environ = clean | {f"COPYRISK_{key}": str(value) for key, value in said.items()} | {"STOP_AT": stop_at}
        words = [sys.executable, "-c", _STOPS, "--redis", self.house.server.url, "--tick-ms", "50"]
        made = self.running[name] = Running(words, environ, self.folder / f"{name}.log")
        made.start()
        return made

    def leads(self, name: str) -> bool:
        popen = self.running[name].popen
        return popen is not None and f"-{popen.pid}-" in held_by(self.house.client, "cutoff")

    def is_stopped(self, name: str) -> bool:
        popen = self.running[name].popen
        assert popen is not None
        return Path(f"/proc/{popen.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def until(self, condition: Callable[[], Any], limit_s: float = 30.0) -> None:
        """Wait for something while quotes come."""
        deadline_s = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline_s, self.logs()
            self.house.print_quotes()
            time.sleep(0.02)

    def say(self, name: str, what: signal.Signals) -> None:
        popen = self.running[name].popen
        assert popen is not None
        popen.send_signal(what)

    def logs(self) -> str:
        return "".join(running.log.read_text()[-3_000:] for running in self.running.values())

    def close(self) -> None:
        for running in self.running.values():
            running.kill()
