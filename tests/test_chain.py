"""The whole chain, killed at named points and at random: no fill is lost, none applied twice, and the books agree."""

import contextlib
import json
import math
import random
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from copyrisk.book import Book
from copyrisk.engine import Engine
from copyrisk.sql.database import open_database
from copyrisk.store.connection import connect
from tests.chain import ACCOUNTS, COMMISSION_A_LOT, LEVERAGE, SYMBOLS, Chain, Clients, suspended
from tests.trading import decoded, settings_for

FAULTS: dict[str, Any] = {
    "seed": 5,
    "delay_ms": [0, 20],
    "partial": 0.5,
    "parts": 4,
    "cut": 0.1,
    "reject": 0.05,
    "swallow": 0.05,
    "drop": 0.08,
    "duplicate": 0.1,
    "reorder": 0.1,
    "disconnect": 0.01,
}
MONITOR_POINTS = ("fired", "sent")
WORKER_POINTS = ("taken", "decided", "changed", "delivered", "acknowledged")
GATEWAY_POINTS = ("taken", "intended", "sent", "acknowledged", "heard", "published", "settled")
ACCOUNT_TABLES = {
    "live": "live_users",
    "demo": "demo_users",
    "strategy_provider": "strategy_provider_accounts",
    "copy_follower": "copy_follower_accounts",
}
#: One wrong value each that the checks must notice.
TAMPERED = (
    ("user:{live:1}:config", "wallet_balance", "1000000.01"),
    ("order_data:O0", "order_quantity", "0.77"),
    ("copyrisk:{live:2}:ledger", "reserved_usd", "0.01"),
)
FINAL = ("CLOSED", "CANCELLED", "REJECTED")
AT_REST = {("OPEN", "EXECUTED"), ("PENDING", "PENDING")}


# ---- what the keys say


@dataclass
class Keys:
    """All keys of a server at the end of a run, and the provider's book."""

    client: Any
    book: dict[str, Any]
    audits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    records: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for account in ACCOUNTS:
            self.audits[account] = [json.loads(one["entry"]) for one in self.stream(f"copyrisk:{{{account}}}:audit")]
            start = f"copyrisk:{{{account}}}:order:"
            for key in self.keys(f"{start}*"):
                self.records[account, key.removeprefix(start)] = json.loads(self.client.get(key))

    def keys(self, pattern: str) -> list[str]:
        return sorted(key.decode() for key in self.client.scan_iter(pattern, 1_000))

    def hash(self, key: str) -> dict[str, str]:
        return decoded(self.client.hgetall(key))

    def stream(self, key: str) -> list[dict[str, str]]:
        return [decoded(said) for _, said in self.client.xrange(key)]

    def members(self, key: str) -> set[str]:
        return {member.decode() for member in self.client.smembers(key)}

    def held(self, account: str) -> dict[str, dict[str, str]]:
        """Orders of an account that are not finished, by id."""
        start = f"user_holdings:{{{account}}}:"
        return {key.removeprefix(start): self.hash(key) for key in self.keys(f"{start}*")}

    def changes(self, account: str) -> list[dict[str, Any]]:
        """The changes of an account, in the order in which they were made, `order` read."""
        done = [one for one in self.audits[account] if one.get("event") == "done"]
        return [{**one, "order": json.loads(one["order"])} for one in done]


def assert_all_well(chain: Chain, clients: Clients) -> Keys:
    """Everything that must be true once nothing is under way."""
    found = Keys(chain.client, chain.provider.control("book"))
    _assert_quiet(chain, found)
    _assert_answered(found, clients)
    for account in ACCOUNTS:
        _assert_announced(found, account)
        _assert_orders(found, account)
        _assert_prices(found, chain, account)
        _assert_paid(found, account)
    _assert_finished(found)
    _assert_holders(found)
    _assert_provider(found)
    _assert_requests(found)
    _assert_figures(chain, found)
    return found


def _assert_quiet(chain: Chain, found: Keys) -> None:
    assert chain.in_flight() == {}
    for stream in ("copyrisk:dead_letters", "copyrisk:breaks"):
        assert found.stream(stream) == []
    for account in ACCOUNTS:
        assert found.client.xlen(f"copyrisk:{{{account}}}:outbox") == 0
        assert found.client.hget(f"copyrisk:{{{account}}}:ledger", "reserved_usd") in (None, b"0.00")
    for running in chain.processes.values():
        text = running.log.read_text()
        assert "Traceback" not in text, text[text.find("Traceback") - 2_000 :][:6_000]
        assert '"level": "critical"' not in text, text


def _assert_answered(found: Keys, clients: Clients) -> None:
    """Each command has its answer; one that came twice has the answer of the first."""
    events = found.stream("copyrisk:events")
    assert {event["event"] for event in events} <= {"done", "refused"}
    answered = {event["command_id"] for event in events}
    by_key = {event["idempotency_key"] for event in events}
    by_order = {event["order_id"] for event in events}
    for entry_id, said in clients.sent.items():
        is_twice = said.get("idempotency_key") in by_key or (
            said["type"] in ("open", "pending") and said["order_id"] in by_order
        )
        assert entry_id in answered or is_twice, said


def _assert_announced(found: Keys, account: str) -> None:
    """Versions without a gap, each announced, and never as two things."""
    user_type, _, user_id = account.partition(":")
    changes = [one for one in found.audits[account] if one.get("event") == "done"]
    versions = [int(one["version"]) for one in changes]
    assert versions == list(range(versions[0], versions[0] + len(versions))) if versions else True
    announced: dict[str, str] = {}
    for event in found.stream("copyrisk:events"):
        if (event["event"], event["user_type"], event["user_id"]) == ("done", user_type, user_id):
            assert announced.setdefault(event["version"], event["order"]) == event["order"]
            assert event["event_id"] == f"{account}:{event['version']}"
    assert announced == {one["version"]: one["order"] for one in changes}
    if versions:
        assert int(found.client.hget(f"copyrisk:{{{account}}}:ledger", "version")) == versions[-1]


def _assert_orders(found: Keys, account: str) -> None:
    """Index, hashes, canonical orders, triggers and our own records of one account."""
    held = found.held(account)
    assert set(held) == found.members(f"user_orders_index:{{{account}}}")
    newest = {change["order"]["order_id"]: change for change in found.changes(account)}
    assert newest.keys() == {order_id for owner, order_id in found.records if owner == account}
    for order_id, change in newest.items():
        said, data = change["order"], found.hash(f"order_data:{order_id}")
        assert {name: data.get(name) for name in said} == said, (order_id, data)
        assert data["copyrisk_version"] == change["version"]
        record = found.records[account, order_id]
        _assert_triggers(found, order_id, held.get(order_id))
        if said["order_status"] in FINAL:
            assert order_id not in held
            assert record["state"] == said["order_status"].lower()
            continue
        assert (said["order_status"], said["execution_status"]) in AT_REST
        assert record["state"] in ("open", "pending"), (order_id, record)
        own = said.keys() & (held[order_id].keys() - {"commission", "swap"})  # those of the lots that are open
        assert {name: held[order_id][name] for name in own} == {name: said[name] for name in own}
        assert (record["state"] == "pending") <= (said["execution"] == "local")


def _assert_triggers(found: Keys, order_id: str, order: dict[str, str] | None) -> None:
    stands = found.hash(f"order_triggers:{order_id}")
    compared = {name: value for name, value in stands.items() if name.endswith("_compare")}
    expected = {}
    if order is not None:
        expected = {f"{name}_compare": order[name] for name in ("stop_loss", "take_profit") if name in order}
        if order["order_status"] == "PENDING":
            expected["order_price_compare"] = order["order_price"]
    assert compared == expected, order_id
    if expected and order is not None:
        names = ("symbol", "order_type", "user_type", "user_id")
        assert {name: stands[name] for name in names} == {name: order[name] for name in names}
        assert found.client.ttl(f"order_triggers:{order_id}") == -1


def _assert_finished(found: Keys) -> None:
    """No claim and no trigger of an order that never came to be."""
    known = {order_id for _, order_id in found.records}
    for key in found.keys("order_triggers:*"):
        assert key.removeprefix("order_triggers:") in known
    for key in found.keys("order_data:*"):
        is_claim = found.client.hget(key, "order_id") is None
        assert key.removeprefix("order_data:") in known or (is_claim and found.client.ttl(key) >= 0), key


def _assert_holders(found: Keys) -> None:
    expected: dict[str, set[str]] = defaultdict(set)
    for account in ACCOUNTS:
        for order in found.held(account).values():
            expected[f"symbol_holders:{order['symbol']}:{order['user_type']}"].add(account)
    assert {key: found.members(key) for key in found.keys("symbol_holders:*")} == expected


# ---- what the provider says


def _assert_provider(found: Keys) -> None:
    """The provider's positions are ours in its flow, by account and symbol, and by order."""
    net: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    own: dict[tuple[str, str], Decimal] = {}
    for account in ACCOUNTS:
        for order_id, order in found.held(account).items():
            if order["execution"] == "provider":
                assert order["order_status"] == "OPEN"
                lots = Decimal(order["order_quantity"])
                net[account, order["symbol"]] += lots if order["order_type"] == "BUY" else -lots
                own[account, order_id] = lots
    theirs = {(account, symbol): Decimal(lots) for account, symbol, lots in found.book["net"]}
    assert {key: lots for key, lots in net.items() if lots} == theirs
    assert own == {(account, order_id): Decimal(lots) for account, order_id, lots in found.book["by_order"]}


def _assert_requests(found: Keys) -> None:
    """Each request came to the same end here and there, and neither side knows one that the other does not."""
    theirs, ours = found.book["orders"], set()
    for (account, order_id), record in found.records.items():
        opened, closed = Decimal(0), Decimal(0)
        for request_id, action, _, is_final, asked, price, filled, _ in record["requests"]:
            ours.add(request_id)
            there = theirs[request_id]
            assert is_final, (account, order_id, request_id)
            assert Decimal(filled) == Decimal(there["filled_quantity"]) <= Decimal(asked)
            assert there["acknowledged"] == there["sequence"] > 0, there
            if action in ("open", "place", "close") and Decimal(filled):
                assert Decimal(price) == Decimal(there["average_price"])
            opened += Decimal(filled) if action in ("open", "place") else 0
            closed += Decimal(filled) if action == "close" else 0
        if record["requests"]:
            assert Decimal(record["opened"]) == opened
            held = found.hash(f"user_holdings:{{{account}}}:{order_id}")
            assert opened - closed == (Decimal(held["order_quantity"]) if held else 0)
    assert theirs.keys() == ours


# ---- money


def _cents(value: Fraction) -> Fraction:
    """Two decimals, half up (away from zero)."""
    whole = math.floor(abs(value) * 100 + Fraction(1, 2))
    return Fraction(whole if value >= 0 else -whole, 100)


@dataclass
class Closing:
    """What closes of one order have done so far; `filled` and `gross` of the one that is under way."""

    lots: Fraction = Fraction(0)
    filled: Fraction = Fraction(0)
    gross: Fraction = Fraction(0)
    net: Fraction = Fraction(0)

    def result(self, order: dict[str, str], lots: Fraction) -> Fraction:
        """What so many lots more make, by the prices that the order says."""
        sign = 1 if order["order_type"] == "BUY" else -1
        moved = sign * (Fraction(order["close_price"]) - Fraction(order["order_price"]))
        self.filled += lots
        gross = moved * self.filled * SYMBOLS[order["symbol"]].contract
        made, self.gross = gross - self.gross, gross
        return _cents(made - 2 * lots * Fraction(COMMISSION_A_LOT))


def _steps(found: Keys, account: str) -> Iterator[tuple[dict[str, Any], Fraction]]:
    """The changes of an account, and what each is to book, worked out anew in fractions."""
    closings: dict[str, Closing] = defaultdict(Closing)
    for change in found.changes(account):
        order = change["order"]
        closing = closings[order["order_id"]]
        is_position = order["execution_status"] == "EXECUTED"
        after = Fraction(order["order_quantity"]) if is_position else Fraction(0)
        is_closing = change["change"].startswith("close") and change["change"] != "close_sent"
        booked = Fraction(0)
        if not is_closing or change["change"] in ("closed", "closed_in_part"):
            closing.filled = closing.gross = Fraction(0)  # what comes is another close
        if is_closing and closing.lots != after:
            assert after < closing.lots
            booked = closing.result(order, closing.lots - after)
            closing.net += booked
        assert Fraction(order["net_profit"]) == closing.net, change
        closing.lots = after
        yield change, booked


def _assert_paid(found: Keys, account: str) -> None:
    """The balance is what it was at first and each close's result, once, to the cent."""
    balance = Fraction(ACCOUNTS[account][1])
    for change, booked in _steps(found, account):
        balance += booked
        assert Fraction(change["balance"] or balance) == balance, change
        assert bool(change["balance"]) or booked == 0, change
    assert Fraction(found.client.hget(f"user:{{{account}}}:config", "wallet_balance").decode()) == balance


def _assert_prices(found: Keys, chain: Chain, account: str) -> None:
    """What was filled here was filled at a quote that was there, half the spread beyond it."""
    for change in found.changes(account):
        order = change["order"]
        if order["execution"] != "local" or change["change"] not in ("opened", "triggered", "closed", "closed_in_part"):
            continue
        is_close = change["change"].startswith("closed")
        is_ask = (order["order_type"] == "BUY") is not is_close
        half = SYMBOLS[order["symbol"]].half
        quotes = chain.published[order["symbol"]]
        prices = {ask + half for _, ask in quotes} if is_ask else {bid - half for bid, _ in quotes}
        assert Decimal(order["close_price" if is_close else "order_price"]) in prices, change


def _assert_figures(chain: Chain, found: Keys) -> None:
    """A daemon that knows nothing yet values every account, as anyone would by hand."""
    settings = settings_for(chain.server.url)
    client = connect(chain.server.url, connect_timeout_ms=2_000, reply_timeout_ms=5_000)
    chain.feed()
    engine = Engine(client, Book(settings.rules()), settings.hours(), 200)
    report = engine.tick()
    engine.close()
    assert report.skipped is None
    assert report.accounts == len(ACCOUNTS)
    quotes = {name: found.hash(f"market:{name}") for name in SYMBOLS}
    for account in ACCOUNTS:
        balance = Decimal(found.client.hget(f"user:{{{account}}}:config", "wallet_balance").decode())
        equity, used = _valued(list(found.held(account).values()), quotes)
        portfolio = found.hash(f"user_portfolio:{{{account}}}")
        assert (portfolio["calc_status"], portfolio["degraded_fields"]) == ("ok", ""), account
        expected = {"equity": balance + equity, "used_margin": used, "used_margin_all": used, "balance": balance}
        for name, value in expected.items():
            assert abs(Decimal(portfolio[name]) - value) < Decimal("0.006"), (account, name)


def _valued(orders: list[dict[str, str]], quotes: dict[str, dict[str, str]]) -> tuple[Decimal, Decimal]:
    """Profit and used margin of an account's positions."""
    lots: dict[tuple[str, bool], Decimal] = defaultdict(Decimal)
    equity = used = Decimal(0)
    for order in orders:
        if order["execution_status"] != "EXECUTED":
            continue
        symbol, is_buy = order["symbol"], order["order_type"] == "BUY"
        bid, ask = (Decimal(quotes[symbol][side]) for side in ("bid", "ask"))
        price, own = Decimal(order["order_price"]), Decimal(order["order_quantity"])
        equity += ((bid - price) if is_buy else (price - ask)) * own * SYMBOLS[symbol].contract
        equity += Decimal(order["swap"]) - Decimal(order["commission"])
        lots[symbol, is_buy] += own
    for symbol, terms in SYMBOLS.items():
        larger = max(lots[symbol, True], lots[symbol, False])
        used += larger * Decimal(quotes[symbol]["ask"]) * terms.contract / LEVERAGE
    return equity, used


# ---- runs


def trade(chain: Chain, clients: Clients, commands: int, every_s: float = 0.01) -> None:
    """So many commands, one after the other, while quotes move."""
    for _ in range(commands):
        clients.act()
        chain.wait(every_s)


def test_every_command_goes_the_whole_way(bundled_server: Any, tmp_path: Path) -> None:
    with Chain(bundled_server, tmp_path) as chain:
        chain.start_all()
        clients = Clients(chain)
        trade(chain, clients, 60)
        chain.until(lambda: chain.events("trigger"), 5)
        chain.settle(10)
        found = assert_all_well(chain, clients)
        assert {record["state"] for record in found.records.values()} >= {"open", "closed"}
        assert len(found.book["orders"]) > 10
        for key, name, value in TAMPERED:
            stood = chain.client.hget(key, name)
            chain.client.hset(key, name, value)
            with pytest.raises(AssertionError):
                assert_all_well(chain, clients)
            chain.client.hset(key, name, stood)


def test_a_lost_last_report_is_asked_for_soon(bundled_server: Any, tmp_path: Path) -> None:
    """Of a market order that is filled in part more is to come; it is no pending order that may rest for long."""
    with Chain(bundled_server, tmp_path) as chain:
        chain.start_all(seed=1, partial=1.0, drop=0.3, delay_ms=[1, 10])
        for number in range(20):
            said = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "0.3", "order_id": f"O{number}"}
            chain.send("open", "live:2", **said)
        chain.settle(10)
        assert {order["order_quantity"] for order in chain.orders()} == {"0.3"}


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(
    ("role", "point"),
    [
        *(("workers", f"worker.{point}") for point in WORKER_POINTS),
        *(("gateway", f"gateway.{point}") for point in GATEWAY_POINTS),
    ],
)
def test_killed_at_a_point(bundled_server: Any, tmp_path: Path, role: str, point: str) -> None:
    """It dies there again and again, each time a little later, and is started again; then it lives."""
    with Chain(bundled_server, tmp_path) as chain:
        chain.start_all(**FAULTS)
        clients = Clients(chain)
        chain.wait_for_simulator()
        name = {"workers": "workers-0"}.get(role, role)
        for passing in (1, 2, 4):
            chain.processes[name].kill()
            chain.processes[name].start(f"{point}:{passing}")
            # How often a point is passed depends on what comes together: trade until it has been.
            deadline_s = time.monotonic() + 30.0
            while chain.processes[name].is_alive and time.monotonic() < deadline_s:
                trade(chain, clients, 15)
                with contextlib.suppress(AssertionError):
                    chain.until(lambda: not chain.processes[name].is_alive, 2)
            assert_killed(chain, name)
        chain.processes[name].start()
        trade(chain, clients, 10)
        chain.calm()
        chain.settle()
        assert_all_well(chain, clients)


def assert_killed(chain: Chain, name: str) -> None:
    popen = chain.processes[name].popen
    assert popen is not None
    assert popen.returncode == -signal.SIGKILL, chain.processes[name].log.read_text()


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("point", MONITOR_POINTS)
def test_monitors_killed_at_a_point(bundled_server: Any, tmp_path: Path, point: str) -> None:
    """They die when they first find something to fire; the next ones find it, too, or that it has been done."""
    with Chain(bundled_server, tmp_path) as chain:
        chain.start_all()
        clients = Clients(chain)
        for _ in range(3):
            chain.processes["monitors"].kill()
            trade(chain, clients, 20)
            chain.until(lambda: not chain.in_flight_but_resting(), 10)
            chain.until(chain.reached, 20)
            chain.processes["monitors"].start(f"monitor.{point}")
            chain.until(lambda: not chain.processes["monitors"].is_alive, 20)
            assert_killed(chain, "monitors")
        chain.processes["monitors"].start()
        chain.settle()
        assert_all_well(chain, clients)


@pytest.mark.slow
@pytest.mark.fault
def test_killed_at_random(bundled_server: Any, tmp_path: Path) -> None:
    """One process after the other, every 100 to 300 ms, while the provider errs; then nothing disturbs it."""
    with Chain(bundled_server, tmp_path) as chain:
        chain.start_all(workers=2, **FAULTS, silent=0.005)
        chain.start("daemon", "daemon")
        clients, dice = Clients(chain), random.Random(3)
        chain.wait_for_simulator()
        names = [name for name in chain.processes if name != "simulator"]
        end_s = time.monotonic() + 20
        while time.monotonic() < end_s:
            trade(chain, clients, dice.randint(3, 9), 0.033)
            chain.kill_random(names)
        chain.calm()
        chain.settle(60)
        found = assert_all_well(chain, clients)
        assert len(found.records) > 200


@pytest.mark.slow
@pytest.mark.fault
def test_provider_and_connections_go_and_come(bundled_server: Any, tmp_path: Path) -> None:
    with Chain(bundled_server, tmp_path) as chain:
        for role in ("workers", "monitors", "gateway"):
            chain.start(role, role)
        clients = Clients(chain)
        trade(chain, clients, 60, 0.05)
        assert chain.in_flight().get("copyrisk:requests", 0) > 10  # not dropped, not rejected
        chain.start_simulator(**FAULTS)
        chain.wait_for_simulator()
        trade(chain, clients, 30)
        with suspended(chain.processes["simulator"]):
            trade(chain, clients, 60, 0.06)
        for _ in range(4):
            trade(chain, clients, 10, 0.03)
            chain.until(chain.cut_connections, 10)
        chain.calm()
        chain.settle()
        assert_all_well(chain, clients)


@pytest.mark.slow
@pytest.mark.fault
def test_many_of_each_and_a_database(bundled_server: Any, tmp_path: Path) -> None:
    """Two gateways, monitors and recorders, three workers that share the work: one may die."""
    url = f"sqlite:///{tmp_path}/broker.db"
    prepare_database(tmp_path / "broker.db", url)
    with Chain(bundled_server, tmp_path, environ={"DATABASE_URL": url}) as chain:
        chain.start_all(**FAULTS)
        chain.start("workers-opening", "workers", "--only", "open,pending,reject")
        chain.start("workers-closing", "workers", "--only", "close,cancel,stop_loss,take_profit")
        for role in ("gateway", "monitors", "recorder"):
            chain.start(f"{role}-2", role)
        chain.start("recorder", "recorder")
        clients = Clients(chain)
        chain.wait_for_simulator()
        for name in ("gateway", "workers-0", "monitors", "recorder"):
            trade(chain, clients, 25, 0.02)
            chain.processes[name].kill()
        trade(chain, clients, 25, 0.02)
        chain.processes["gateway"].start()
        chain.processes["gateway-2"].kill()
        chain.processes["workers-0"].start()
        trade(chain, clients, 25, 0.02)
        chain.calm()
        chain.settle()
        chain.until(chain.is_recorded, 20)
        assert_recorded(assert_all_well(chain, clients), tmp_path / "broker.db")


# ---- the database


def prepare_database(path: Path, url: str) -> None:
    """Our tables, and every account's row."""
    with open_database(url) as database:
        assert database.migrate().is_ready
    with closing(sqlite3.connect(path)) as sql, sql:
        for account, (_, balance) in ACCOUNTS.items():
            kind, _, user_id = account.partition(":")
            sql.execute(
                f"INSERT INTO {ACCOUNT_TABLES[kind]} (id, wallet_balance, leverage) VALUES (?, ?, ?)",
                (user_id, str(balance), str(LEVERAGE)),
            )


def assert_recorded(found: Keys, path: Path) -> None:
    """Each close is in the ledger once, and the balances there are those of the store."""
    with closing(sqlite3.connect(path)) as sql:
        ledger = sql.execute(
            "SELECT user_type, user_id, order_id, amount_usd, balance_usd FROM copyrisk_ledger"
        ).fetchall()
        for account, (_, balance) in ACCOUNTS.items():
            kind, _, user_id = account.partition(":")
            booked = [row for row in ledger if row[:2] == (kind, user_id)]
            steps = [(change, amount) for change, amount in _steps(found, account) if change["balance"]]
            expected = [(change["order"]["order_id"], amount, Fraction(change["balance"])) for change, amount in steps]
            assert sorted((row[2], Fraction(row[3]), Fraction(row[4])) for row in booked) == sorted(expected)
            ((there,),) = sql.execute(
                f"SELECT wallet_balance FROM {ACCOUNT_TABLES[kind]} WHERE id = ?", (user_id,)
            ).fetchall()
            assert Fraction(there) == Fraction(balance) + sum(amount for _, amount in steps)
