"""An order's whole way through processes: from a client's command to the event that says that the order is open.

In local flow a worker fills it; in provider flow the command goes through worker, gateway and the simulated provider,
and the report through gateway and worker. Orders come one at a time, so each figure is a delay and no rate.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from benchmarks.house import SERVER
from benchmarks.measure import Figure, load
from benchmarks.twins import WrongResult
from copyrisk import keys
from copyrisk.embedded import EmbeddedServer
from copyrisk.identifiers import Account
from copyrisk.store.connection import connect
from copyrisk.terms import AccountType, Flow, SendingOrders

_SYMBOL, _LOTS, _BID, _ASK = "EURUSD", "0.01", "1.08450", "1.08455"
_ORDERS_EACH = 10  # more of an account would make each of its changes slower
_WARM_UP = 10
_FLOWS = {Flow.LOCAL: SendingOrders.ROCK, Flow.PROVIDER: SendingOrders.BARCLAYS}
_LIMIT_MS = 10_000


def figures(orders: int = 1_000) -> Iterator[Figure]:
    """Milliseconds from a command's `XADD` to its order's `OPEN` on the event stream, in both flows."""
    with _chain() as there:
        for flow in _FLOWS:
            ms = np.array([there.open(flow, number) * 1e3 for number in range(orders + _WARM_UP)])[_WARM_UP:]
            there.check(flow, orders + _WARM_UP)
            for percent in (50, 99):
                name = f"chain_open_{flow.value}_ms_p{percent}"
                yield Figure(name, round(float(np.percentile(ms, percent)), 3), "ms", load=load())


@dataclass
class _Chain:
    """A filled server, and processes that work on it."""

    client: Any
    port: int
    last_event: bytes = b"0-0"

    def open(self, flow: Flow, number: int) -> float:
        """Open an order; seconds until it is."""
        account, order_id = _account(flow, number), f"{flow.value}-{number}"
        if number % _ORDERS_EACH == 0:
            self._prepare(flow, account)
        said = {"type": "open", "user_type": account.type.value, "user_id": account.id, "order_id": order_id}
        lots = {"symbol": _SYMBOL, "order_type": "BUY", "order_quantity": _LOTS}
        started_s = time.perf_counter()
        self.client.xadd(keys.COMMANDS, said | lots)
        while not self._is_open(order_id, flow):
            pass
        return time.perf_counter() - started_s

    def _is_open(self, order_id: str, flow: Flow) -> bool:
        """Whether the next events say so; one that says anything else that is final is an error."""
        read: Any = self.client.xread({keys.EVENTS: self.last_event}, block=_LIMIT_MS)
        entries = (read[keys.EVENTS.encode()][0] if isinstance(read, dict) else read[0][1]) if read else []
        if not entries:
            raise WrongResult(f"{order_id} was not opened within {_LIMIT_MS} ms")
        for entry_id, event in entries:
            self.last_event = entry_id
            order = json.loads(event.get(b"order", b"{}"))
            if event[b"event"] != b"done" or order.get("order_id") != order_id or order["execution"] != flow.value:
                raise WrongResult(f"not what was asked for: {event}")
            if order["order_status"] == "OPEN" and order["order_quantity"] == _LOTS:
                return True
        return False

    def _prepare(self, flow: Flow, account: Account) -> None:
        """A new account, and a fresh quote."""
        config = {"wallet_balance": "100000", "leverage": "100", "group": keys.STANDARD_GROUP, "status": "1"}
        self.client.hset(keys.config(account), mapping={**config, "sending_orders": _FLOWS[flow].value})
        now_ms = time.time_ns() // 1_000_000
        self.client.hset(keys.market(_SYMBOL), mapping={"bid": _BID, "ask": _ASK, "ts": str(now_ms)})

    def check(self, flow: Flow, orders: int) -> None:
        """Every order is a position, and the provider has those that went through it, and only those."""
        held = 0
        for number in range(0, orders, _ORDERS_EACH):
            held += self.client.scard(keys.orders_index(_account(flow, number)))
        if held != orders:
            raise WrongResult(f"{held} orders are open, not {orders}")
        theirs = sum(Decimal(lots) for _, _, lots in _book(self.port)["by_order"])
        expected = Decimal(_LOTS) * (orders if flow is Flow.PROVIDER else 0)
        if theirs != expected:
            raise WrongResult(f"the provider has {theirs} lots, not {expected}")


def _account(flow: Flow, number: int) -> Account:
    return Account(AccountType.LIVE, f"{flow.value}-{number // _ORDERS_EACH}")


def _book(port: int) -> dict[str, Any]:
    """The provider's book."""
    with socket.create_connection(("127.0.0.1", port), 5.0) as asking, asking.makefile("rb") as answers:
        asking.sendall(b'{"control":"book"}\n')
        found: dict[str, Any] = json.loads(answers.readline())
        return found


@contextmanager
def _chain() -> Iterator[_Chain]:
    """A server with one symbol; a worker, a gateway and a provider, ready when the first order went through."""
    with EmbeddedServer.start(SERVER) as server, ExitStack() as running:
        client: Any = connect(server.url, connect_timeout_ms=1_000, reply_timeout_ms=2 * _LIMIT_MS)
        terms = {"contract_size": "100000", "profit": "USD", "type": "1"}
        client.hset(keys.group(keys.STANDARD_GROUP, _SYMBOL), mapping=terms)
        provider = running.enter_context(process(server.url, "simulator", SIMULATOR_PORT="0"))
        assert provider.stdout is not None
        port = int(provider.stdout.readline().rpartition(b":")[2])
        for role in ("workers", "gateway"):
            running.enter_context(process(server.url, role, PROVIDER_URL=f"tcp://127.0.0.1:{port}"))
        yield _Chain(client, port)


@contextmanager
def process(url: str, role: str, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of this role, on a market that never closes, for as long as the block lasts."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
    given = {"MARKET_ALWAYS_OPEN": "true", "LOG_LEVEL": "error", **settings}
    words = [sys.executable, "-m", "copyrisk.cli", "--redis", url, "--role", role]
    environ = clean | {f"COPYRISK_{name}": value for name, value in given.items()}
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()
