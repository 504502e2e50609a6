"""The whole chain as processes of `copyrisk-run`: clients, workers, monitors, the gateway and a simulated provider.

What is sent is drawn by lot from a seed; processes may be killed at any moment and started again. `tests/test_chain.py`
says what must be true of the keys afterwards. Keys are spelled out by hand, as in `backoffice`.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.backoffice import BackOffice
from tests.provider import Provider, Speaker
from tests.trading import INPUTS, decoded

BALANCE, POOR, LEVERAGE, COMMISSION_A_LOT = Decimal(1_000_000), Decimal(3_000), 100, Decimal(7)
#: Accounts of all four types and their flows, with what they begin with; the last one has no room for mistakes.
ACCOUNTS = {
    "live:1": ("rock", BALANCE),
    "live:2": ("barclays", BALANCE),
    "live:3": ("Barclays ", BALANCE),
    "demo:1": ("rock", BALANCE),
    "demo:2": ("barclays", BALANCE),
    "strategy_provider:1": ("rock", BALANCE),
    "strategy_provider:2": ("barclays", BALANCE),
    "copy_follower:1": ("rock", BALANCE),
    "copy_follower:2": (None, BALANCE),
    "copy_follower:3": ("barclays", POOR),
}
MS = 1e-3
_READY_S, _ANSWER_MS, _RETRY_MS = 20.0, 200, 500


@dataclass(frozen=True)
class Symbol:
    """A symbol's terms, such that every single result is a whole number of cents."""

    contract: int
    point: Decimal
    bid: Decimal
    points_wide: int
    type: int
    spread: int

    @property
    def half(self) -> Decimal:
        """What one execution here pays beyond the quote."""
        return self.spread * self.point / 2


SYMBOLS = {
    "EURUSD": Symbol(100_000, Decimal("0.00001"), Decimal("1.08450"), 5, 1, 2),
    "XAUUSD": Symbol(100, Decimal("0.01"), Decimal("2400.10"), 30, 2, 20),
}


@dataclass
class Running:
    """A process, and how to start it again."""

    words: list[str]
    environ: dict[str, str]
    log: Path
    popen: "subprocess.Popen[bytes] | None" = None

    def start(self, crash_at: str = "") -> None:
        """Start it, to die at a named point."""
        with self.log.open("ab") as log:
            environ = self.environ | ({"COPYRISK_CRASH_AT": crash_at} if crash_at else {})
            self.popen = subprocess.Popen(self.words, env=environ, stdout=log, stderr=log)

    @property
    def is_alive(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Chain:
    """Processes on one server; quotes that move whenever it waits for something."""

    server: Any
    folder: Path
    seed: int = 1
    environ: Mapping[str, object] = field(default_factory=dict)
    processes: dict[str, Running] = field(default_factory=dict)
    moves: bool = True

    def __post_init__(self) -> None:
        self.office = BackOffice(self.server.client())
        self.client: Any = self.office.client
        self.provider = Provider(free_port())
        self.dice = random.Random(self.seed)
        self.offset = dict.fromkeys(SYMBOLS, 0)  # of the bid, in points
        self.published: dict[str, set[tuple[Decimal, Decimal]]] = {name: set() for name in SYMBOLS}
        self._fed_s = 0.0
        for name, terms in SYMBOLS.items():
            said: dict[str, Any] = {"contract_size": terms.contract, "type": terms.type, "spread": terms.spread}
            charged: dict[str, Any] = {
                "spread_pip": terms.point,
                "commission_rate": COMMISSION_A_LOT,
                "min_lot": "0.01",
            }
            self.office.group(name, **said, **charged)
        for account, (flow, balance) in ACCOUNTS.items():
            self.office.account(account, wallet_balance=balance, sending_orders=flow, leverage=LEVERAGE)
        self.feed()

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, *_: object) -> None:
        for running in self.processes.values():
            running.kill()

    # ---- processes

    def start(self, name: str, role: str, *arguments: str, crash_at: str = "", **environ: object) -> Running:
        """Start a process; settings are written `WORKERS_RETRY_MS=50`."""
        given = {
            "MARKET_ALWAYS_OPEN": "true",
            "WORKERS_RETRY_MS": _RETRY_MS,
            "MONITORS_RETRY_MS": _RETRY_MS,
            "PROVIDER_URL": self.provider.url,
            "PROVIDER_ANSWER_TIMEOUT_MS": _ANSWER_MS,
            "SIMULATOR_PORT": self.provider.port,
            "LOG_LEVEL": "warning",
            "LOG_FORMAT": "json",
            **self.environ,
            **environ,
        }
        clean = {key: value for key, value in os.environ.items() if not key.startswith("COPYRISK_")}
        clean |= {f"COPYRISK_{key}": str(value) for key, value in given.items()}
        words = [sys.executable, "-m", "copyrisk.cli", "--redis", self.server.url, "--role", role, *arguments]
        made = self.processes[name] = Running(words, clean, self.folder / f"{name}.log")
        made.start(crash_at)
        return made

    def start_simulator(self, **script: Any) -> None:
        """The provider, with a script of faults."""
        path = self.folder / "script.toml"
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in script.items()))
        self.start("simulator", "simulator", SIMULATOR_SCRIPT=path)

    def start_all(self, workers: int = 1, **script: Any) -> None:
        """The provider, a gateway, monitors and workers."""
        self.start_simulator(**script)
        self.start("gateway", "gateway")
        self.start("monitors", "monitors")
        for number in range(workers):
            self.start(f"workers-{number}", "workers")

    def wait_for_simulator(self) -> None:
        self.until(self._listens, _READY_S)

    def _listens(self) -> bool:
        try:
            Speaker(self.provider.port).close()
        except OSError:
            return False
        return True

    def kill_random(self, names: list[str]) -> None:
        """Kill one of these processes and start it again."""
        running = self.processes[self.dice.choice(names)]
        running.kill()
        running.start()

    def cut_connections(self) -> int:
        """Have the server close every connection of the processes; how many."""
        own = self.client.client_id()
        others = [there["id"] for there in self.client.client_list() if int(there["id"]) != own]
        return sum(self.client.client_kill_filter(_id=other) for other in others)

    def calm(self) -> None:
        """From here on the provider makes no mistakes; with a new session it repeats what was not acknowledged."""
        self.provider.control("script", script={})
        self.provider.control("disconnect")

    # ---- time

    def feed(self, step: int = 4) -> None:
        """Publish quotes a few points further on, not too far from where they began."""
        for name, terms in SYMBOLS.items():
            if self.moves:
                drawn = self.dice.randint(-step, step) - round(self.offset[name] / 25)
                self.offset[name] += drawn
            self._publish(name, terms)
        self._fed_s = time.monotonic()

    def _publish(self, name: str, terms: Symbol) -> None:
        bid = terms.bid + self.offset[name] * terms.point
        ask = bid + terms.points_wide * terms.point
        self.published[name].add((bid, ask))
        self.office.quote(name, bid, ask)

    def wait(self, seconds: float) -> None:
        """Let so much time go by while quotes move."""
        end_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < end_s:
            if now_s - self._fed_s > 0.02:
                self.feed()
            time.sleep(min(0.005, max(0.0, end_s - now_s)))

    def until(self, condition: Callable[[], Any], limit_s: float) -> Any:
        """Wait for something to become true while quotes move; what it then is."""
        deadline_s = time.monotonic() + limit_s
        while not (found := condition()):
            assert time.monotonic() < deadline_s, f"it did not happen in time: {condition} {self.in_flight()}"
            self.wait(0.02)
        return found

    # ---- rest

    def in_flight(self) -> dict[str, int]:
        """What is under way, all of it seen in one moment."""
        pipe = self.client.pipeline(transaction=True)
        for stream in (*INPUTS, "copyrisk:requests"):
            pipe.xlen(stream)
        pipe.hlen("copyrisk:outstanding")
        names = (*INPUTS, "copyrisk:requests", "outstanding")
        return {name: found for name, found in zip(names, pipe.execute(), strict=True) if found}

    def is_recorded(self) -> bool:
        """Whether all history has gone to the database."""
        return not self.client.xlen("copyrisk:history")

    def reached(self) -> list[str]:
        """Orders with something that fires here at the quotes as they stand."""
        found: list[str] = []
        for key in self.client.scan_iter("order_triggers:*", 1_000):
            said = decoded(self.client.hgetall(key))
            if "symbol" in said and _is_reached(said, decoded(self.client.hgetall(f"market:{said['symbol']}"))):
                found.append(key.decode().partition(":")[2])
        return found

    def orders(self) -> Iterator[dict[str, str]]:
        """The hashes of all orders."""
        for key in self.client.scan_iter("user_holdings:*", 1_000):
            if found := decoded(self.client.hgetall(key)):  # it may have been finished meanwhile
                yield found

    def settle(self, limit_s: float = 40.0) -> None:
        """Let everything come to rest; what then still waits with the provider is taken back by its clients."""
        self.moves = False
        deadline_s = time.monotonic() + limit_s
        while True:
            assert time.monotonic() < deadline_s, f"no rest: {self.in_flight()}"
            self.until(lambda: not self.in_flight_but_resting() and not self.reached(), deadline_s - time.monotonic())
            resting = [order for order in self.orders() if _rests(order)]
            if not resting:
                break
            for order in resting:
                self.send("cancel", f"{order['user_type']}:{order['user_id']}", order_id=order["order_id"])
        self.until(lambda: not self.in_flight() and not self.reached(), deadline_s - time.monotonic())

    def in_flight_but_resting(self) -> bool:
        """Whether anything is under way, apart from what is with the provider and closes."""
        busy = self.in_flight()
        busy.pop("outstanding", None)
        return bool(busy) or any(_is_in_flight(order) for order in self.orders())

    def events(self, kind: str) -> int:
        """How many changes something of this type has caused so far."""
        every = (decoded(said) for _, said in self.client.xrange("copyrisk:events"))
        return sum(event["event"] == "done" and event["type"] == kind for event in every)

    # ---- clients

    def send(self, kind: str, account: str, **said: object) -> str:
        """Put a command on its stream; its entry's id."""
        user_type, _, user_id = account.partition(":")
        fields = {"type": kind, "user_type": user_type, "user_id": user_id, **said}
        return str(self.client.xadd("copyrisk:commands", fields).decode())


def _is_in_flight(order: dict[str, str]) -> bool:
    return order["order_status"] in ("QUEUED", "PENDING-QUEUED", "MODIFY", "PENDING-CANCEL")


def _rests(order: dict[str, str]) -> bool:
    """Whether it is a pending order with the provider."""
    return order["order_status"] == "PENDING" and order["execution"] == "provider"


def _is_reached(said: dict[str, str], quote: dict[str, str]) -> bool:
    bid, ask = Decimal(quote["bid"]), Decimal(quote["ask"])
    kind, is_buy = said["order_type"], said["order_type"].startswith("BUY")
    waits = said.get("order_price_compare")
    if waits is not None:
        price = Decimal(waits)
        reached = {
            "BUY_LIMIT": ask <= price,
            "BUY_STOP": ask >= price,
            "SELL_LIMIT": bid >= price,
            "SELL_STOP": bid <= price,
        }
        return reached[kind] and said["execution"] == "local"
    loss, gain = said.get("stop_loss_compare"), said.get("take_profit_compare")
    leaves = bid if is_buy else ask
    sign = 1 if is_buy else -1
    below = loss is not None and sign * (leaves - Decimal(loss)) <= 0
    return below or (gain is not None and sign * (leaves - Decimal(gain)) >= 0)


class Clients:
    """Clients that command at random, also what makes no sense any more, and some things twice."""

    def __init__(self, chain: Chain, accounts: tuple[str, ...] = tuple(ACCOUNTS)) -> None:
        self.chain, self.accounts, self.dice = chain, accounts, random.Random(chain.seed + 1)
        self.sent: dict[str, dict[str, str]] = {}
        self.made: list[tuple[str, str, str]] = []  # account, order id, symbol

    def act(self, count: int = 1) -> None:
        """Send so many commands."""
        for _ in range(count):
            drawn = self.dice.random()
            if drawn < 0.35 or not self.made:
                self._open()
            elif drawn < 0.55:
                self._pend()
            else:
                self._follow()

    def _send(self, kind: str, account: str, **said: object) -> None:
        words = {name: str(value) for name, value in said.items()}
        if self.dice.random() < 0.4:
            words["idempotency_key"] = f"k{len(self.sent)}"
        for _ in range(1 + (self.dice.random() < 0.05)):
            self.sent[self.chain.send(kind, account, **words)] = {"type": kind, "account": account, **words}

    def _new(self) -> tuple[str, str, str]:
        account, symbol = self.accounts[len(self.made) % len(self.accounts)], self.dice.choice(list(SYMBOLS))
        made = account, f"O{len(self.made)}", symbol
        self.made.append(made)
        return made

    def _price(self, symbol: str, points: int) -> Decimal:
        terms = SYMBOLS[symbol]
        return terms.bid + (self.chain.offset[symbol] + points) * terms.point

    def _levels(self, symbol: str, base: int, is_buy: bool) -> dict[str, Decimal]:
        """A stop loss and a take profit as near as they may be, or none."""
        sign, found = (1 if is_buy else -1), {}
        wide = SYMBOLS[symbol].points_wide + 4
        if self.dice.random() < 0.4:
            found["stop_loss"] = self._price(symbol, base - sign * self.dice.randint(wide, wide + 40))
        if self.dice.random() < 0.4:
            found["take_profit"] = self._price(symbol, base + sign * self.dice.randint(wide, wide + 40))
        return found

    def _open(self) -> None:
        account, order_id, symbol = self._new()
        is_buy, lots = self.dice.random() < 0.5, Decimal(self.dice.randint(1, 60)) / 100
        said = {"symbol": symbol, "order_type": "BUY" if is_buy else "SELL", "order_quantity": lots}
        self._send("open", account, order_id=order_id, **said, **self._levels(symbol, 0, is_buy))

    def _pend(self) -> None:
        account, order_id, symbol = self._new()
        kind = self.dice.choice(["BUY_LIMIT", "SELL_LIMIT", "BUY_STOP", "SELL_STOP"])
        is_buy = kind.startswith("BUY")
        away = self.dice.randint(3, 30)
        points = SYMBOLS[symbol].points_wide + away if kind in ("BUY_STOP", "SELL_LIMIT") else -away
        lots = Decimal(self.dice.randint(1, 60)) / 100
        said = {
            "symbol": symbol,
            "order_type": kind,
            "order_quantity": lots,
            "order_price": self._price(symbol, points),
        }
        self._send("pending", account, order_id=order_id, **said, **self._levels(symbol, points, is_buy))

    def _follow(self) -> None:
        """Something about an order that is there; now and then about one that is not, or not any more."""
        account, order_id, symbol = self.dice.choice(self.made)
        there = sorted(self.chain.client.smembers(f"user_orders_index:{{{account}}}"))
        if there and self.dice.random() < 0.85:
            order_id = self.dice.choice(there).decode()
        order = decoded(self.chain.client.hgetall(f"user_holdings:{{{account}}}:{order_id}"))
        kinds = (
            ["cancel", "modify", "modify"] if order.get("order_status") == "PENDING" else ["close", "close", "close"]
        )
        kind = self.dice.choice([*kinds, "stop_loss", "take_profit", self.dice.choice(["cancel", "modify", "close"])])
        self._send(kind, account, order_id=order_id, **self._change(kind, order.get("symbol", symbol), order))

    def _change(self, kind: str, symbol: str, order: dict[str, str]) -> dict[str, object]:
        """What a command about an order says; mostly something that is possible."""
        away = self.dice.choice([-1, 1]) * self.dice.randint(8, 80)
        if kind == "close" and self.dice.random() < 0.5:
            return {"order_quantity": Decimal(self.dice.randint(1, 30)) / 100}
        if kind == "modify":
            is_above = order.get("order_type") in ("BUY_STOP", "SELL_LIMIT")
            return {"order_price": self._price(symbol, (1 if is_above else -1) * abs(away) // 2)}
        if kind in ("stop_loss", "take_profit") and self.dice.random() < 0.8:
            is_above = (order.get("order_type", "").startswith("BUY")) is (kind == "take_profit")
            return {kind: self._price(symbol, abs(away) if is_above else -abs(away))}
        return {}


@contextmanager
def suspended(running: Running) -> Iterator[None]:
    """Keep a process from running for a while; its connections stay, and it says nothing."""
    assert running.popen is not None
    running.popen.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        running.popen.send_signal(signal.SIGCONT)
