"""A trading desk for tests: a back office, workers and a daemon on one server, and what its books must say.

Keys are spelled out by hand, as in `backoffice`, so that these tests do not lean on `keys.py`.
"""

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from copyrisk.book import Book
from copyrisk.commands import Kind
from copyrisk.engine import Engine
from copyrisk.monitors import Monitor
from copyrisk.roles import make_workers, run_workers
from copyrisk.settings import Settings, load_settings
from copyrisk.store.connection import connect
from copyrisk.workers import Workers
from tests.backoffice import BackOffice

BID, ASK = Decimal("1.0845"), Decimal("1.08455")
CONTRACT, LEVERAGE = 100_000, 100
ACCOUNT_TYPES = ("live", "demo", "strategy_provider", "copy_follower")
INPUTS = ("copyrisk:commands", "copyrisk:reports", "copyrisk:replayed", *(f"copyrisk:work:{kind}" for kind in Kind))
#: What every order of the contract says, whoever wrote it.
ORDER_FIELDS = (
    *("order_id", "symbol", "order_type", "order_status", "execution_status", "order_price", "order_quantity"),
    *("margin", "contract_value", "commission", "swap", "execution", "user_type", "user_id", "created_at"),
)


def decoded(found: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in found.items()}


def settings_for(url: str, **flags: object) -> Settings:
    """Settings by `section__key`; the market is always open and what failed is taken up again soon."""
    given = {"redis.url": url, "market.always_open": True, "workers.retry_ms": 50, "monitors.retry_ms": 50}
    return load_settings(None, {}, given | {name.replace("__", "."): value for name, value in flags.items()})


def held_by(client: Any, role: str) -> str:
    """Who has the lease of a role; the empty text: nobody."""
    said = decoded(client.hgetall(f"copyrisk:{{{role}}}:lease"))
    now_s, now_us = client.time()
    return said["owner"] if int(said.get("ends_ms", "0")) > now_s * 1000 + now_us // 1000 else ""


def lend(client: Any, role: str, owner: str, hold_ms: int) -> None:
    """Let somebody else have the lease of a role, as if the one who has it had been silent."""
    key = f"copyrisk:{{{role}}}:lease"
    client.hset(key, mapping={"ends_ms": 0})
    assert client.fcall("copyrisk_lease_v1", 1, key, owner, "", hold_ms, 0)[0] == b"own"


class Desk:
    """One server with EURUSD at 1.0845 / 1.08455, and accounts that are added as they are needed."""

    def __init__(self, server: Any, **flags: object) -> None:
        self.server, self.settings = server, settings_for(server.url, **flags)
        self._clients: list[Any] = [server.client()]
        # A test that fails or forgets must not leave sockets to be found open in another one.
        self.close = weakref.finalize(self, _disconnect, self._clients)
        self.office = BackOffice(self._clients[0])
        self.client: Any = self.office.client
        self.office.group("EURUSD")
        self.quote()
        self._own: Workers | None = None
        self._engine: Engine | None = None

    def quote(self, bid: object = BID, ask: object = ASK, symbol: str = "EURUSD", **more: Any) -> None:
        self.office.quote(symbol, bid, ask, **more)

    def account(self, account: str, flow: str = "rock", balance: object = "10000", **config: object) -> str:
        self.office.account(account, wallet_balance=balance, sending_orders=flow, **config)
        return account

    def new_client(self) -> Any:
        made = connect(self.server.url, connect_timeout_ms=2_000, reply_timeout_ms=5_000)
        self._clients.append(made)
        return made

    def new_workers(self, kinds: Collection[Kind] = tuple(Kind)) -> Workers:
        made = make_workers(self.new_client(), self.settings, kinds)
        made._consumer.join()
        return made

    def new_monitor(self) -> Monitor:
        """One that has read all there is."""
        settings = self.settings
        made = Monitor(self.new_client(), settings.rules(), settings.hours(), settings.monitor_options())
        made.step(0)
        return made

    @property
    def workers(self) -> Workers:
        self._own = self._own or self.new_workers()
        return self._own

    # ---- asking

    def send(self, kind: str, account: str, **fields: object) -> str:
        user_type, _, user_id = account.partition(":")
        said = {"type": kind, "user_type": user_type, "user_id": user_id, **fields}
        return str(self.client.xadd("copyrisk:commands", said).decode())

    def do(self, kind: str, account: str, **fields: object) -> dict[str, str]:
        """The event that answers a command."""
        sent = self.send(kind, account, **fields)
        self.settle()
        return self.answer(sent)

    def open(self, account: str, order_id: str, order_type: str = "BUY", lots: object = "1", **more: object) -> Any:
        more = {"symbol": "EURUSD", "order_type": order_type, "order_quantity": lots, "order_id": order_id, **more}
        return self.do("open", account, **more)

    def pend(self, account: str, order_id: str, order_type: str, price: object, lots: object = "1", **more: Any) -> Any:
        more = {"symbol": "EURUSD", "order_type": order_type, "order_quantity": lots, "order_id": order_id, **more}
        return self.do("pending", account, order_price=price, **more)

    def report(self, request: dict[str, str], status: str, sequence: int, filled: object = "0", **more: object) -> str:
        """What the provider says of a request; not yet taken."""
        named = {name: request[name] for name in ("request_id", "action", "user_type", "user_id", "order_id")}
        said = {"status": status, "sequence": sequence, "filled_quantity": filled, "average_price": "0", **more}
        return str(self.client.xadd("copyrisk:reports", {**named, **said}).decode())

    def reported(self, request: dict[str, str], status: str, sequence: int, filled: object = "0", **more: Any) -> None:
        self.report(request, status, sequence, filled, **more)
        self.settle()

    def settle(self, limit_s: float = 10.0, workers: Workers | None = None) -> None:
        """Have the workers do what there is."""
        chosen = workers or self.workers
        deadline_s = time.monotonic() + limit_s
        while self.waiting():
            assert time.monotonic() < deadline_s, "it was not done in time"
            chosen.step(1)

    def waiting(self) -> int:
        """Entries that are not acknowledged."""
        return sum(self.client.xlen(stream) for stream in INPUTS)

    def tick(self) -> None:
        if self._engine is None:
            book, hours = Book(self.settings.rules()), self.settings.hours()
            self._engine = Engine(self.new_client(), book, hours, 200)
        assert self._engine.tick().skipped is None

    # ---- what stands there

    def entries(self, stream: str) -> list[dict[str, str]]:
        return [decoded(said) for _, said in self.client.xrange(stream)]

    def events(self, **like: str) -> list[dict[str, str]]:
        """Each once, however often it was announced."""
        every = {event["event_id"]: event for event in self.entries("copyrisk:events")}
        return [event for event in every.values() if like.items() <= event.items()]

    def answer(self, command_id: str) -> dict[str, str]:
        """The first event of a command."""
        found = self.events(command_id=command_id)
        assert found, f"no answer to {command_id}: {self.events()[-3:]}, {self.entries('copyrisk:dead_letters')}"
        return found[0]

    def requests(self) -> list[dict[str, str]]:
        return self.entries("copyrisk:requests")

    def request(self) -> dict[str, str]:
        """The latest."""
        return self.requests()[-1]

    def order(self, account: str, order_id: str) -> dict[str, str]:
        return decoded(self.client.hgetall(f"user_holdings:{{{account}}}:{order_id}"))

    def statuses(self, account: str, order_id: str) -> tuple[str, str]:
        order = self.order(account, order_id)
        return order.get("order_status", ""), order.get("execution_status", "")

    def data(self, order_id: str) -> dict[str, str]:
        return decoded(self.client.hgetall(f"order_data:{order_id}"))

    def triggers(self, order_id: str) -> dict[str, str]:
        found = decoded(self.client.hgetall(f"order_triggers:{order_id}"))
        found.pop("copyrisk_version", None)
        return found

    def index(self, account: str) -> set[str]:
        return {order_id.decode() for order_id in self.client.smembers(f"user_orders_index:{{{account}}}")}

    def holders(self, account_type: str, symbol: str = "EURUSD") -> set[str]:
        return {found.decode() for found in self.client.smembers(f"symbol_holders:{symbol}:{account_type}")}

    def balance(self, account: str) -> Decimal:
        return Decimal(self.client.hget(f"user:{{{account}}}:config", "wallet_balance").decode())

    def version(self, account: str) -> int:
        return int(self.client.hget(f"copyrisk:{{{account}}}:ledger", "version") or 0)

    def record(self, account: str, order_id: str) -> Any:
        return json.loads(self.client.get(f"copyrisk:{{{account}}}:order:{order_id}"))

    def audit(self, account: str) -> list[Any]:
        return [json.loads(said["entry"]) for said in self.entries(f"copyrisk:{{{account}}}:audit")]

    def accounts(self) -> list[str]:
        keys = self.client.keys("user:{*}:config")
        return sorted(key.decode().removeprefix("user:{").removesuffix("}:config") for key in keys)


def _disconnect(clients: list[Any]) -> None:
    for client in clients:
        client.connection_pool.disconnect()


def dump(client: Any, without: Callable[[str], bool] = lambda _: False) -> dict[str, bytes]:
    """Every key of a server, as the server would dump it."""
    keys = sorted(key.decode("latin-1") for key in client.keys("*"))
    return {key: client.dump(key.encode("latin-1")) for key in keys if not without(key)}


def is_log(key: str) -> bool:
    """Keys that only say what was asked and answered."""
    return key.endswith(":audit") or ":answer:" in key or key in (*INPUTS, "copyrisk:events", "copyrisk:breaks")


# ---- what must be true after every step


def assert_books(desk: Desk) -> None:
    """The contract's hashes agree with each other, and the daemon values every account from them."""
    holders: dict[tuple[str, str], set[str]] = defaultdict(set)
    desk.tick()
    for account in desk.accounts():
        held = {key.decode().rpartition(":")[2] for key in desk.client.keys(f"user_holdings:{{{account}}}:*")}
        assert held == desk.index(account)
        orders = [desk.order(account, order_id) for order_id in sorted(held)]
        for order in orders:
            _assert_order(desk, order)
            holders[order["symbol"], account.partition(":")[0]].add(account)
        assert desk.client.xlen(f"copyrisk:{{{account}}}:outbox") == 0
        _assert_reserved(desk, account, sorted(held))
        _assert_figures(desk, account, orders)
    for key in desk.client.keys("symbol_holders:*"):
        _, symbol, account_type = key.decode().split(":")
        assert desk.holders(account_type, symbol) == holders.pop((symbol, account_type)), key
    assert not holders


def _assert_order(desk: Desk, order: dict[str, str]) -> None:
    missing = set(ORDER_FIELDS) - order.keys()
    assert not missing
    data = desk.data(order["order_id"])
    own = order.keys() - {"commission", "swap"}  # in the hash of the lots that are open, there of all that ever were
    assert {name: data.get(name) for name in own} == {name: order[name] for name in own}
    assert desk.client.ttl(f"order_data:{order['order_id']}") == -1
    triggers = desk.triggers(order["order_id"])
    levels = {name for name in ("stop_loss", "take_profit") if name in order}
    waits = order["order_type"].endswith(("LIMIT", "STOP")) and order["order_status"] != "PENDING-QUEUED"
    record = f"copyrisk:{{{order['user_type']}:{order['user_id']}}}:order:{order['order_id']}"
    closing = b'"state":"closing"' in (desk.client.get(record) or b"")  # what is being closed needs no second reason
    if not waits and not (levels and order["execution_status"] == "EXECUTED" and not closing):
        assert triggers == {}
        return
    assert desk.client.ttl(f"order_triggers:{order['order_id']}") == -1
    named = {name: order[name] for name in ("symbol", "order_type", "user_type", "user_id", *levels)}
    compared = {f"{name}_compare": order[name] for name in levels}
    if waits:
        compared["order_price_compare"] = order["order_price"]
    assert named.items() | compared.items() <= triggers.items()
    assert {name for name in triggers if name.endswith("_compare")} == compared.keys()


def _assert_reserved(desk: Desk, account: str, order_ids: list[str]) -> None:
    """Margin of lots that are still being filled."""
    expected = Decimal(0)
    for order_id in order_ids:
        if not desk.client.exists(f"copyrisk:{{{account}}}:order:{order_id}"):
            continue
        record = desk.record(account, order_id)
        if record["state"] == "filling":
            expected += Decimal(record["whole_margin"]) - Decimal(desk.order(account, order_id)["margin"])
    reserved = desk.client.hget(f"copyrisk:{{{account}}}:ledger", "reserved_usd") or b"0"
    assert Decimal(reserved.decode()) == expected


def _assert_figures(desk: Desk, account: str, orders: list[dict[str, str]]) -> None:
    """The figures of an account that holds EURUSD only, by hand."""
    quote = decoded(desk.client.hgetall("market:EURUSD"))
    bid, ask = Decimal(quote["bid"]), Decimal(quote["ask"])
    portfolio = desk.office.portfolio(account)
    assert (portfolio["calc_status"], portfolio["degraded_fields"]) == ("ok", ""), account
    lots: dict[tuple[bool, bool], Decimal] = defaultdict(Decimal)  # by whether executed, whether bought
    equity = desk.balance(account)
    for order in orders:
        executed, is_buy = order["execution_status"] == "EXECUTED", order["order_type"].startswith("BUY")
        if executed or order["order_status"] in ("QUEUED", "MODIFY"):
            lots[executed, is_buy] += Decimal(order["order_quantity"])
        if executed:
            price, size = Decimal(order["order_price"]), Decimal(order["order_quantity"]) * CONTRACT
            equity += ((bid - price) if is_buy else (price - ask)) * size
            equity += Decimal(order["swap"]) - Decimal(order["commission"])
    a_lot = ask * CONTRACT / LEVERAGE
    used = max(lots[True, True], lots[True, False]) * a_lot
    used_all = max(lots[True, True] + lots[False, True], lots[True, False] + lots[False, False]) * a_lot
    for name, value in (("equity", equity), ("used_margin", used), ("used_margin_all", used_all)):
        assert abs(Decimal(portfolio[name]) - value) < Decimal("0.006"), (account, name)


def assert_paid(desk: Desk, account: str, balance: object) -> None:
    """The wallet is what it was at first and what every change of it booked: each once, to the cent."""
    booked: dict[str, Decimal] = {}
    user_type, _, user_id = account.partition(":")
    changes = desk.events(user_type=user_type, user_id=user_id, event="done")
    for event in sorted(changes, key=lambda event: int(event["version"])):
        order = json.loads(event["order"])
        booked[order["order_id"]] = Decimal(order["net_profit"])  # of all that was closed so far
    assert desk.balance(account) == Decimal(str(balance)) + sum(booked.values(), Decimal(0))


# ---- processes


def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Wait for something to become true."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.001)


@contextmanager
def process(url: str, role: str, *arguments: str, **environ: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process of copyrisk; its settings are written `WORKERS_RETRY_MS=50`. What it logs goes to our stderr."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
    given = {"MARKET_ALWAYS_OPEN": "true", "WORKERS_RETRY_MS": 50, "MONITORS_RETRY_MS": 50, **environ}
    words = [sys.executable, "-m", "copyrisk.cli", "--redis", url, "--role", role, *arguments]
    running = subprocess.Popen(words, env=clean | {f"COPYRISK_{name}": str(value) for name, value in given.items()})
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.wait()


def run_threads(desk: Desk, count: int) -> tuple[threading.Event, list[threading.Thread]]:
    """So many workers at once, each with its own client; what ends them, and the threads to wait for."""
    stop = threading.Event()
    made = [
        threading.Thread(target=run_workers, args=(desk.new_client(), desk.settings, tuple(Kind), stop))
        for _ in range(count)
    ]
    for thread in made:
        thread.start()
    return stop, made
