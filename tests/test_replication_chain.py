"""The engine of copies as a process that is killed, stopped and cut off: each order reaches each follower once.

Or it is recorded why not; and what a master closes is closed for all of them, whatever happened in between.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import copyrisk
from copyrisk.embedded import find_server
from copyrisk.replication import COPIED
from copyrisk.store.decisions import Decision, Decisions
from copyrisk.store.pipe import Pipe
from tests.chain import SYMBOLS, Chain, Running, free_port
from tests.provider import Speaker, until
from tests.trading import decoded, dump, held_by

#: How many orders of masters, and followers of each master, the long runs have; the goal is 1,000 and 200.
ORDERS, FOLLOWERS = (
    int(os.environ.get(f"COPYRISK_TEST_{name}", usual)) for name, usual in (("ORDERS", 40), ("FOLLOWERS", 200))
)
ORDERS_A_PART = 250  # the provider's book of more than that is too long to be told
MASTER_BALANCE = 100_000
ENVIRON: dict[str, object] = {
    "REPLICATION_SIGNAL_MAX_AGE_MS": 0,  # killed every second it is late, and what is too old would not be copied
    "REPLICATION_PRICE_DEVIATION_PCT": 0,
    "REPLICATION_RETRY_MS": 100,
    "REPLICATION_LEASE_MS": 500,
}
FINISHED = ("closed", "cancelled", "rejected")
#: Where the engine of copies can be made to die.
POINTS = (
    *("replicator.taken", "replicator.decided", "replicator.finished", "replicator.acknowledged"),
    *("copies.batch", "copies.made", "copies.effects", "copies.followed"),
    *("keeper.aimed", "keeper.followed", "keeper.closing", "limits.paused"),
)
MODULES = ("replicator", "fanout", "keeping", "limits")


# ---- masters and followers


@dataclass
class Life:
    """An order of a master, and what he is still going to do with it."""

    master: str
    lots: Decimal
    plan: list[str]


class Fault(Protocol):
    """What is done to the processes while masters trade."""

    def turn(self) -> None:
        """Do it if it is time."""


@dataclass
class Copiers:
    """Masters and those who copy them; what the masters do, drawn by lot."""

    chain: Chain
    flow: str
    masters: int = 2
    followers: int = FOLLOWERS
    lives: dict[str, Life] = field(default_factory=dict)
    limited: set[str] = field(default_factory=set)  # followers whose account stop loss closes what they copied
    has_pending: bool = False  # whether orders rest with the provider
    live_at_once: int = 8

    def __post_init__(self) -> None:
        self.dice, self.client = random.Random(self.chain.seed), self.chain.client
        self.balances: dict[str, Decimal] = {}
        for number in range(self.masters):
            self.add(f"strategy_provider:M{number}", MASTER_BALANCE)
            for place in range(self.followers):
                self.follow(f"M{number}", f"{number}-{place}", 10_000 * (1 + place % 20))

    def add(self, account: str, balance: object, **config: object) -> None:
        self.balances[account] = Decimal(str(balance))
        self.chain.office.account(account, **{"wallet_balance": balance, "sending_orders": self.flow, **config})

    def follow(self, master: str, follower: str, balance: object, **config: object) -> None:
        self.add(f"copy_follower:{follower}", balance, copy_status="active", **config)
        self.client.sadd(f"copy_master_followers:{master}:active", follower)
        self.client.set(f"copy_follower_master:{follower}:provider_id", master)

    # ---- what masters do

    def order(self, master: str = "M0", lots: object = "0.5", *plan: str, kind: str = "open", **said: object) -> str:
        """A master orders; the order's id."""
        order_id = f"MO{len(self.lives)}"
        self.lives[order_id] = Life(master, Decimal(str(lots)), list(plan))
        given = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": str(lots), "order_id": order_id, **said}
        self.chain.send(kind, f"strategy_provider:{master}", **given)
        return order_id

    def tell(self, order_id: str, kind: str = "close", **said: object) -> None:
        """A master does something with an order of his."""
        self.chain.send(kind, f"strategy_provider:{self.lives[order_id].master}", order_id=order_id, **said)

    def state(self, order_id: str) -> str:
        """Of a master's order; empty as long as it is not there."""
        stored = self.client.get(f"copyrisk:{{strategy_provider:{self.lives[order_id].master}}}:order:{order_id}")
        return str(json.loads(stored)["state"]) if stored else ""

    def begin(self) -> None:
        """Order something, drawn by lot, together with what is to become of it."""
        plan = self.dice.choice([["close"], ["close"], ["half", "close"], ["levels", "close"], ["half", "levels"], []])
        lots = Decimal(self.dice.randrange(10, 60, 2)) / 100
        said = {"symbol": self.dice.choice(list(SYMBOLS)), "order_type": self.dice.choice(["BUY", "SELL"])}
        self.order(f"M{self.dice.randrange(self.masters)}", lots, *plan, **said)

    def go_on(self) -> bool:
        """Do the next thing that is to be done with an order that is open; whether there was one."""
        for order_id, life in self.lives.items():
            if life.plan and self.state(order_id) == "open":
                what = life.plan.pop(0)
                if what == "half":
                    self.tell(order_id, order_quantity=str(life.lots / 2))
                elif what == "levels":
                    self.tell(order_id, "take_profit", take_profit="9000")
                else:
                    self.tell(order_id)
                return True
        return False

    def end_all(self) -> None:
        """Close or cancel all that there is."""
        for order_id in self.lives:
            state = self.state(order_id)
            if state in ("open", "pending"):
                self.tell(order_id, "close" if state == "open" else "cancel")

    def going(self) -> int:
        """How many orders have something before them."""
        return sum(bool(life.plan) for life in self.lives.values())

    def backlog(self) -> int:
        return int(self.client.xlen("copyrisk:replications"))

    def trade(self, orders: int, fault: "Fault | None" = None) -> None:
        """So many orders, each to the end of its plan, as fast as the engine of copies follows."""
        turn, deadline_s = 0, time.monotonic() + 60.0 + 10.0 * orders
        while orders or self.going():
            turn += 1
            assert time.monotonic() < deadline_s, (self.is_under_way(), self.lives)
            if self.backlog() < 6 and self.chain.in_flight().get("outstanding", 0) < 2_000:
                if orders and (self.going() < self.live_at_once or not turn % 9):
                    orders -= 1
                    self.begin()
                else:
                    self.go_on()
            if fault is not None:
                fault.turn()
            self.chain.wait(0.01)

    # ---- rest

    def is_under_way(self) -> dict[str, int]:
        busy = self.chain.in_flight() | {"waiting": self.client.hlen("copyrisk:waiting_copies"), "new": self.backlog()}
        busy["limited"] = sum(self.client.scard(f"user_orders_index:{{{account}}}") for account in self.limited)
        if self.has_pending and "outstanding" in busy:
            resting = [order for order in self.chain.orders() if order["order_status"] == "PENDING"]
            busy["outstanding"] -= len([order for order in resting if order["execution"] == "provider"])
        return {name: count for name, count in busy.items() if count}

    def settle(self, limit_s: float = 60.0) -> None:
        """Wait until nothing is under way."""
        deadline_s = time.monotonic() + limit_s
        while busy := self.is_under_way():
            assert time.monotonic() < deadline_s, busy
            self.chain.wait(0.05)


def acting(chain: Chain) -> Running | None:
    """The process that holds the lease; `None` if it is nobody's, or a dead one's."""
    owner = held_by(chain.client, "replicator")
    there = [running for running in chain.processes.values() if running.popen is not None and running.is_alive]
    return next((one for one in there if one.popen is not None and f"-{one.popen.pid}-" in owner), None)


@dataclass
class Killer:
    """Kills the process that holds the lease up to two seconds after it began to work, and starts it again."""

    chain: Chain
    longest_s: float = 2.0
    kills: int = 0

    def __post_init__(self) -> None:
        self.dice, self._due_s = random.Random(self.chain.seed + 7), 0.0
        self._victim: Running | None = None

    def turn(self) -> None:
        """Kill it if it is time."""
        running, now_s = acting(self.chain), time.monotonic()
        if running is not self._victim:
            self._victim, self._due_s = running, now_s + self.dice.uniform(0.0, self.longest_s)
        if running is not None and now_s >= self._due_s:
            self._victim = None
            self.kills += 1
            running.kill()
            running.start()


# ---- what the keys say


class Keys:
    """What the keys of all accounts say, read in bulk."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.records: dict[tuple[str, str], dict[str, Any]] = {}
        self.holdings: dict[tuple[str, str], dict[str, str]] = {}
        names: dict[str, list[str]] = defaultdict(list)
        for key in client.scan_iter("*", 10_000):
            name = key.decode()
            kind = (
                name.partition(":")[0]
                if not name.startswith("copyrisk:{")
                else name.rpartition("}:")[2].partition(":")[0]
            )
            names[kind].append(name)
        self.names = names
        for name, stored in self._read("get", names["order"]):
            self.records[_owner(name), name.rpartition(":")[2]] = json.loads(stored)
        for name, stored in self._read("hgetall", names["user_holdings"]):
            self.holdings[_owner(name), name.rpartition(":")[2]] = decoded(stored)
        self.data = {
            name.partition(":")[2]: decoded(stored) for name, stored in self._read("hgetall", names["order_data"])
        }

    def _read(self, command: str, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
        for start in range(0, len(keys), 5_000):
            pipe = self.client.pipeline(transaction=False)
            for key in keys[start : start + 5_000]:
                getattr(pipe, command)(key)
            yield from zip(keys[start : start + 5_000], pipe.execute(), strict=True)

    def sizes(self, command: str, kind: str) -> dict[str, int]:
        return dict(self._read(command, self.names[kind]))

    def config(self, account: str, name: str) -> str:
        return str(self.client.hget(f"user:{{{account}}}:config", name).decode())


def _owner(key: str) -> str:
    return key[key.index("{") + 1 : key.index("}")]


def decisions(copiers: Copiers) -> dict[str, Decision]:
    """What was decided about each master's order that came to be."""
    made = Decisions(Pipe(copiers.client))
    found = {order_id: made.load(order_id) for order_id in copiers.lives if copiers.state(order_id)}
    assert all(decision is not None and decision.made is not None for decision in found.values())
    return {order_id: decision for order_id, decision in found.items() if decision is not None}


def assert_all_well(copiers: Copiers) -> Counter[str]:
    """Everything that must be true once nothing is under way; how often what came of a follower."""
    found = Keys(copiers.client)
    assert copiers.is_under_way() == {}
    for stream in ("copyrisk:dead_letters", "copyrisk:breaks"):
        assert [decoded(said) for _, said in copiers.client.xrange(stream)] == []
    assert not any(found.sizes("xlen", "outbox").values())
    for running in copiers.chain.processes.values():
        text = running.log.read_text()
        assert "Traceback" not in text, text[text.find("Traceback") - 2_000 :][:6_000]
        assert '"level": "critical"' not in text, text[-6_000:]
    counts = _assert_one_each(copiers, found)
    _assert_in_line(copiers, found)
    _assert_slots_agree(found)
    _assert_paid(copiers, found)
    if copiers.flow != "rock":
        _assert_provider(copiers, found)
    return counts


def _assert_one_each(copiers: Copiers, found: Keys) -> Counter[str]:
    """One copy of each order in each follower's account, of the lots that were decided, or one reason."""
    counts: Counter[str] = Counter()
    expected: dict[tuple[str, str], Decimal] = {}
    for order_id, decision in decisions(copiers).items():
        master = copiers.lives[order_id].master
        followers = [name.decode() for name in decision.rows["follower"].tolist()]
        active = {name.decode() for name in copiers.client.smembers(f"copy_master_followers:{master}:active")}
        limited = {account.partition(":")[2] for account in copiers.limited}  # who reaches a limit is paused
        assert len(followers) == len(set(followers))
        assert active <= set(followers) <= active | limited
        assert decision.made is not None
        counts.update(result.decode() for result in decision.made["result"].tolist())
        assert all(decision.made["result"] != b"")
        for place in (decision.made["result"] == COPIED).nonzero()[0].tolist():
            row = decision.rows[place]
            step = Decimal(decision.header["groups"][int(row["group"])]["step"])
            expected[order_id, f"copy_follower:{followers[place]}"] = int(row["sized"]["steps"]) * step
    there = [
        (found.data[order_id]["master_order_id"], account, Decimal(record["asked"]))
        for (account, order_id), record in found.records.items()
        if account.startswith("copy_follower:")
    ]
    pairs = Counter((master_order_id, account) for master_order_id, account, _ in there)
    assert {pair: count for pair, count in pairs.items() if count > 1} == {}
    assert {(order_id, account): asked for order_id, account, asked in there} == expected
    return counts


def _assert_in_line(copiers: Copiers, found: Keys) -> None:
    """Each copy holds the share that its master holds, with his levels; nothing of what he has closed."""
    for (account, order_id), record in found.records.items():
        if not account.startswith("copy_follower:"):
            assert record["state"] in ("open", "pending", *FINISHED), (account, order_id, record)
            continue
        master_order_id = found.data[order_id]["master_order_id"]
        master = f"strategy_provider:{copiers.lives[master_order_id].master}"
        own, theirs = found.holdings.get((account, order_id)), found.holdings.get((master, master_order_id))
        if theirs is None or account in copiers.limited:
            assert own is None, (account, own)
            assert record["state"] in FINISHED, (account, order_id, record)
            continue
        share = Decimal(theirs["order_quantity"]) / Decimal(found.records[master, master_order_id]["asked"])
        lots = Decimal(own["order_quantity"]) if own else Decimal(0)
        assert abs(lots - Decimal(record["asked"]) * share) <= Decimal("0.005"), (account, record, share)
        if own:
            assert record["state"] == found.records[master, master_order_id]["state"]
            names = ("stop_loss", "take_profit", "symbol", "order_type")
            assert [own.get(name) for name in names] == [theirs.get(name) for name in names], (account, order_id)


def _assert_slots_agree(found: Keys) -> None:
    """Indexes, canonical orders and holders say what the holdings say."""
    index: dict[str, set[str]] = defaultdict(set)
    holders: dict[str, set[str]] = defaultdict(set)
    for (account, order_id), order in found.holdings.items():
        index[account].add(order_id)
        holders[f"symbol_holders:{order['symbol']}:{order['user_type']}"].add(account)
        own = order.keys() - {"commission", "swap"}  # here of the lots that are open, there of all that ever were
        assert {name: found.data[order_id].get(name) for name in own} == {name: order[name] for name in own}
    for (_, order_id), record in found.records.items():
        if record["state"] in FINISHED:
            assert found.data[order_id]["order_status"] == record["state"].upper(), found.data[order_id]
    said = {
        _owner(key): {name.decode() for name in members}
        for key, members in found._read("smembers", found.names["user_orders_index"])
    }
    assert said == index
    held = {
        key: {name.decode() for name in members}
        for key, members in found._read("smembers", found.names["symbol_holders"])
    }
    assert held == holders


def _assert_paid(copiers: Copiers, found: Keys) -> None:
    """Each balance is what it was at first and the results of all its orders."""
    booked: dict[str, Decimal] = defaultdict(Decimal)
    for (account, order_id), record in found.records.items():
        booked[account] += Decimal(record["net_profit"])
        assert Decimal(found.data[order_id]["net_profit"]) == Decimal(record["net_profit"])
    for account, balance in copiers.balances.items():
        assert Decimal(found.config(account, "wallet_balance")) == balance + booked[account], account
        assert found.client.hget(f"copyrisk:{{{account}}}:ledger", "reserved_usd") in (None, b"0.00", b"0")


def book_of(chain: Chain) -> dict[str, Any]:
    """The provider's books, however long."""
    with Speaker(chain.provider.port) as speaker:
        speaker.say({"control": "book"})
        return speaker.hear(60.0)


def _assert_provider(copiers: Copiers, found: Keys) -> None:
    """The provider has filled one opening for each order and copy, and his positions are ours."""
    book = book_of(copiers.chain)
    ours: dict[str, tuple[str, Decimal]] = {}
    for (account, order_id), record in found.records.items():
        for request_id, action, _, is_final, asked, _, filled, _ in record["requests"]:
            assert is_final or record["state"] == "pending", (account, order_id, request_id)
            assert Decimal(filled) == (Decimal(asked) if action in ("open", "close") else 0)
            ours[request_id] = action, Decimal(filled)
    theirs = {name: (said["action"], Decimal(said["filled_quantity"])) for name, said in book["orders"].items()}
    assert theirs == ours
    placing = Counter(action in ("open", "place") for action, _ in theirs.values())
    assert placing[True] == sum(data["execution"] == "provider" for data in found.data.values())
    own: dict[tuple[str, str], Decimal] = {}
    net: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for (account, order_id), order in found.holdings.items():
        if order["execution"] == "local" or order["order_status"] == "PENDING":
            continue
        lots = own[account, order_id] = Decimal(order["order_quantity"])
        net[account, order["symbol"]] += lots if order["order_type"] == "BUY" else -lots
    assert {(account, order_id): Decimal(lots) for account, order_id, lots in book["by_order"]} == own
    there = {(account, symbol): Decimal(lots) for account, symbol, lots in book["net"]}
    assert there == {name: lots for name, lots in net.items() if lots}


def assert_announced(copiers: Copiers) -> None:
    """Every version of every account has been announced, as one thing."""
    announced: dict[str, dict[int, str]] = defaultdict(dict)
    for _, said in copiers.client.xrange("copyrisk:events"):
        event = decoded(said)
        if event["event"] == "done":
            account = f"{event['user_type']}:{event['user_id']}"
            first = announced[account].setdefault(int(event["version"]), event["order"])
            # Of a copy whose engine died it may be said once more, then with what became of it meanwhile.
            assert first == event["order"] or event["type"] == "copy", event
    for account in copiers.balances:
        last = copiers.client.hget(f"copyrisk:{{{account}}}:ledger", "version")
        versions = sorted(announced[account])
        assert versions == list(range(versions[0], int(last) + 1)) if last else not versions, account


# ---- runs


def parts_of(orders: int) -> list[int]:
    return [min(ORDERS_A_PART, orders - start) for start in range(0, orders, ORDERS_A_PART)]


def start(chain: Chain, flow: str, *, replicator: bool = True) -> None:
    """All processes that replication needs."""
    chain.start("workers-0", "workers")
    chain.start("daemon", "daemon")
    if flow != "rock":
        chain.start_simulator()
        chain.start("gateway", "gateway")
    if replicator:
        chain.start("replicator", "replicator")


def run_killed(server: Any, folder: Path, flow: str, orders: int) -> tuple[Counter[str], int]:
    """Masters trade while the engine of copies is killed; results and kills."""
    with Chain(server, folder, environ=ENVIRON) as chain:
        copiers = Copiers(chain, flow)
        start(chain, flow)
        chain.start("replicator-2", "replicator")
        killer = Killer(chain)
        copiers.trade(orders, killer)
        copiers.settle()
        counts = assert_all_well(copiers)
        assert Keys(chain.client).holdings
        copiers.end_all()
        while copiers.is_under_way():
            killer.turn()
            chain.wait(0.01)
        copiers.settle()
        assert assert_all_well(copiers) == counts
        assert Keys(chain.client).holdings == {}
        return counts, killer.kills


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("flow", ["rock", "barclays"])
def test_killed_every_second(bundled_server: Any, tmp_path: Path, flow: str) -> None:
    began_s = time.monotonic()
    for part in parts_of(ORDERS):
        bundled_server.client().flushall()
        counts, kills = run_killed(bundled_server, tmp_path, flow, part)
        print(flow, part, counts, f"{kills} kills", f"{time.monotonic() - began_s:.0f} s")
        assert kills > 3
        assert counts["copied"] > 0.9 * counts.total()


# ---- every point


def test_every_point_is_tested() -> None:
    folder = Path(copyrisk.__file__).parent
    texts = [(folder / f"{module}.py").read_text() for module in MODULES]
    found = [name for text in texts for name in re.findall(r"crash\.reach\(\s*f?\"([^\"]+)\"", text)]
    assert sorted(found) == sorted(POINTS)


def die_until_done(copiers: Copiers, point: str, limit_s: float = 60.0) -> int:
    """Have the engine die at a point, each time after twice as many passings, until all is done; how often it died."""
    chain, deaths, passings = copiers.chain, 0, 1
    running = chain.processes["replicator"]
    running.kill()
    running.start(f"{point}:{passings}")
    deadline_s = time.monotonic() + limit_s
    while copiers.is_under_way():
        assert time.monotonic() < deadline_s, copiers.is_under_way()
        chain.wait(0.02)
        if not running.is_alive:
            assert running.popen is not None
            assert running.popen.returncode == -signal.SIGKILL, running.log.read_text()[-3_000:]
            deaths += 1
            passings *= 2
            running.start(f"{point}:{passings}")
    return deaths


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(bundled_server: Any, tmp_path: Path, point: str) -> None:
    """With all kinds of events before it, then with closes of everything."""
    environ = {**ENVIRON, "REPLICATION_BATCH": 2, "REPLICATION_LIMITS_CHECK_MS": 50, "REPLICATION_LEASE_MS": 300}
    with Chain(bundled_server, tmp_path, environ=environ) as chain:
        copiers = Copiers(chain, "barclays", masters=1, followers=4)
        copiers.follow("M0", "R1", 20_000, sending_orders="rock")
        copiers.follow("M0", "R2", 50_000, sending_orders="rock")
        copiers.follow("M0", "L1", 20_000, investment_amount="20000", copy_sl_mode="amount", sl_amount="0.01")
        copiers.limited.add("copy_follower:L1")
        start(chain, "barclays", replicator=False)
        kept, halved, closed, *_ = (copiers.order() for _ in range(4))
        waits = copiers.order(lots="0.4", kind="pending", order_type="BUY_LIMIT", order_price="1.05")
        chain.until(lambda: {copiers.state(order_id) for order_id in copiers.lives} == {"open", "pending"}, 20)
        copiers.tell(kept, "take_profit", take_profit="1.2")
        copiers.tell(halved, order_quantity="0.2")
        copiers.tell(closed)
        copiers.tell(waits, "modify", order_price="1.06")
        chain.until(lambda: copiers.backlog() >= 9, 20)
        copiers.has_pending = True
        chain.start("replicator", "replicator")
        deaths = die_until_done(copiers, point)
        counts = assert_all_well(copiers)
        assert_announced(copiers)
        assert counts["copied"] > 20
        copiers.end_all()
        deaths += die_until_done(copiers, point)
        assert deaths
        assert assert_all_well(copiers) == counts
        assert_announced(copiers)
        assert Keys(chain.client).holdings == {}


# ---- stopped and continued


def in_the_middle(chain: Chain, begun: Callable[[], Any], limit_s: float = 20.0) -> Running:
    """The process that acts, stopped as soon as something is seen to have begun; whoever calls continues it."""
    deadline_s = time.monotonic() + limit_s
    while not begun():
        assert time.monotonic() < deadline_s
    running = acting(chain)
    assert running is not None
    assert running.popen is not None
    running.popen.send_signal(signal.SIGSTOP)
    return running


def taken_profits(copiers: Copiers) -> Counter[str]:
    """What followers' orders say of their take profits."""
    found = Keys(copiers.client).holdings
    return Counter(order.get("take_profit", "") for (owner, _), order in found.items() if "follower" in owner)


def says_nothing(key: str) -> bool:
    """Keys that are not about orders and accounts, or may say the same twice."""
    if key.startswith(("copyrisk:{replicator}", "copyrisk:{cutoff}", "copyrisk:{audit}")):
        return True
    return not key.startswith(("user", "order_", "symbol_holders", "copyrisk:{", "copyrisk:copies", "copyrisk:waiting"))


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("what", ["copies", "levels"])
def test_stopped_in_the_middle_it_does_nothing_more(bundled_server: Any, tmp_path: Path, what: str) -> None:
    """Another one goes on when its lease has ended; what it still does once it is continued changes nothing."""
    with Chain(bundled_server, tmp_path, environ=ENVIRON) as chain:
        copiers = Copiers(chain, "rock", masters=1, followers=1_000)
        start(chain, "rock")
        chain.processes.pop("daemon").kill()  # what it writes would be seen as changes
        chain.start("replicator-2", "replicator")
        chain.until(lambda: acting(chain), 20)
        first = "user_orders_index:{copy_follower:0-0}"
        if what == "levels":
            order_id = copiers.order()
            chain.until(lambda: chain.client.exists(f"copyrisk:copies:{order_id}") and not copiers.is_under_way(), 20)
            copiers.tell(order_id, "take_profit", take_profit="1.2")
            (own,) = chain.client.smembers(first)
            holding = f"user_holdings:{{copy_follower:0-0}}:{own.decode()}"
            stopped = in_the_middle(chain, lambda: chain.client.hexists(holding, "take_profit"))
            assert 0 < taken_profits(copiers)["1.2"] < 1_000
        else:
            order_id = copiers.order()
            stopped = in_the_middle(chain, lambda: chain.client.exists(first))
            assert 0 < len(Keys(chain.client).holdings) - 1 < 1_000
        chain.until(lambda: acting(chain) not in (None, stopped) and not copiers.is_under_way(), 20)
        copiers.tell(order_id, "take_profit", take_profit="1.3")
        chain.until(lambda: copiers.backlog() or taken_profits(copiers)["1.3"], 20)
        copiers.settle()
        assert taken_profits(copiers) == {"1.3": 1_000}
        before = dump(chain.client, says_nothing)
        assert stopped.popen is not None
        stopped.popen.send_signal(signal.SIGCONT)
        chain.wait(2.0)
        assert dump(chain.client, says_nothing) == before
        assert acting(chain) not in (None, stopped)
        assert assert_all_well(copiers) == {"copied": 1_000}


@dataclass
class Stopper:
    """Stops the process that holds the lease for longer than that, again and again."""

    chain: Chain
    stops: int = 0

    def __post_init__(self) -> None:
        self.dice, self._due_s = random.Random(self.chain.seed + 8), 0.0
        self._stopped: Running | None = None

    def turn(self) -> None:
        """Stop it, or continue it, if it is time."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        if self._stopped is not None:
            self._say(self._stopped, signal.SIGCONT)
            self._stopped, self._due_s = None, now_s + self.dice.uniform(0.0, 0.5)
        elif (running := acting(self.chain)) is not None:
            self._say(running, signal.SIGSTOP)
            self._stopped, self._due_s = running, now_s + self.dice.uniform(0.3, 1.5)
            self.stops += 1

    @staticmethod
    def _say(running: Running, what: signal.Signals) -> None:
        assert running.popen is not None
        running.popen.send_signal(what)


@pytest.mark.slow
@pytest.mark.fault
def test_stopped_now_and_then(bundled_server: Any, tmp_path: Path) -> None:
    with Chain(bundled_server, tmp_path, environ=ENVIRON) as chain:
        copiers = Copiers(chain, "barclays", followers=100)
        start(chain, "barclays")
        chain.start("replicator-2", "replicator")
        stopper = Stopper(chain)
        copiers.trade(20, stopper)
        while copiers.is_under_way():
            stopper.turn()
            chain.wait(0.01)
        assert stopper.stops > 3
        assert assert_all_well(copiers)["copied"] > 1_900


# ---- the server goes and comes


@dataclass
class Blips:
    """Cuts all connections, or has the server answer nobody for a while, again and again."""

    chain: Chain
    count: int = 0

    def __post_init__(self) -> None:
        self.dice, self._due_s = random.Random(self.chain.seed + 9), 0.0

    def turn(self) -> None:
        """Do so if it is time."""
        now_s = time.monotonic()
        if now_s < self._due_s or acting(self.chain) is None:
            return
        self._due_s = now_s + self.dice.uniform(0.3, 1.5)
        self.count += 1
        if self.dice.random() < 0.6:
            self.chain.cut_connections()
        else:
            self.chain.client.execute_command("CLIENT", "PAUSE", self.dice.choice([200, 900]), "ALL")


@pytest.mark.slow
@pytest.mark.fault
def test_connections_cut_and_answers_late(bundled_server: Any, tmp_path: Path) -> None:
    with Chain(bundled_server, tmp_path, environ=ENVIRON | {"REDIS_REPLY_TIMEOUT_MS": 500}) as chain:
        copiers = Copiers(chain, "barclays", followers=100)
        start(chain, "barclays")
        chain.wait_for_simulator()
        for name, terms in SYMBOLS.items():  # of its own: cut off from Redis the provider would have none, and reject
            ask = terms.bid + terms.points_wide * terms.point
            assert chain.provider.control("quote", symbol=name, bid=str(terms.bid), ask=str(ask))["ok"]
        chain.until(lambda: acting(chain), 20)
        blips = Blips(chain)
        copiers.trade(20, blips)
        copiers.settle()
        assert blips.count > 3
        assert assert_all_well(copiers)["copied"] > 1_900


@dataclass
class Durable:
    """A server that writes all it is told to disk before it answers, and may be killed."""

    folder: Path
    port: int

    def __post_init__(self) -> None:
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["--port", str(self.port), "--dir", str(self.folder), "--save", "", "--appendonly", "yes"]
        log = ["--appendfsync", "always", "--logfile", str(self.folder / "server.log")]
        self._popen = subprocess.Popen([str(find_server()), *words, *log])
        until(self._answers, 20.0)

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait()


@dataclass
class Restarts:
    """Kills the server every now and then and starts it again."""

    chain: Chain
    server: Durable
    count: int = 0

    def __post_init__(self) -> None:
        self.dice, self._due_s = random.Random(self.chain.seed + 10), 0.0

    def turn(self) -> None:
        """Do so if it is time."""
        now_s = time.monotonic()
        if not self._due_s and acting(self.chain):
            self._due_s = now_s + self.dice.uniform(0.0, 0.7)
        elif self._due_s and now_s >= self._due_s:
            self._due_s = 0.0
            self.count += 1
            self.server.kill()
            self.chain.client.connection_pool.disconnect()
            self.server.start()
            self.chain.feed()  # quotes have grown old meanwhile, and what is ordered on such is refused


@pytest.mark.slow
@pytest.mark.fault
def test_server_killed_and_started_again(tmp_path: Path) -> None:
    server = Durable(tmp_path, free_port())
    server.start()
    try:
        with Chain(server, tmp_path, environ=ENVIRON) as chain:
            copiers = Copiers(chain, "rock", followers=100)
            start(chain, "rock")
            restarts = Restarts(chain, server)
            copiers.trade(20, restarts)
            copiers.settle()
            assert restarts.count > 2
            assert assert_all_well(copiers)["copied"] > 1_900
            chain.client.connection_pool.disconnect()
    finally:
        server.kill()


# ---- asked to end


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_ends_it_within_a_second(bundled_server: Any, tmp_path: Path, *, busy: bool) -> None:
    """It gives its lease up, and the next one goes on at once."""
    with Chain(bundled_server, tmp_path, environ=ENVIRON | {"REPLICATION_LEASE_MS": 60_000}) as chain:
        copiers = Copiers(chain, "rock", masters=1, followers=500)
        start(chain, "rock", replicator=False)
        orders = [copiers.order(lots="0.3") for _ in range(20 if busy else 0)]
        chain.until(lambda: copiers.backlog() == len(orders), 20)
        running = chain.start("replicator", "replicator")
        chain.until(lambda: acting(chain) and (not busy or copiers.backlog() < len(orders)), 20)
        assert running.popen is not None
        running.popen.terminate()
        assert running.popen.wait(1.0) == 0
        assert not held_by(chain.client, "replicator")
        assert bool(copiers.backlog()) is busy
        running.start()
        chain.until(lambda: acting(chain) is running, 5)
        copiers.settle()
        assert assert_all_well(copiers)["copied"] == 500 * len(orders)


# ---- what a second look would refuse


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("point", ["copies.batch:3", "copies.made", "copies.followed"])
def test_a_copy_that_is_there_is_not_judged_again(bundled_server: Any, tmp_path: Path, point: str) -> None:
    """Margin for one copy, not for two; one is paused and one unfollows before its engine is back: all are closed."""
    with Chain(bundled_server, tmp_path, environ=ENVIRON | {"REPLICATION_BATCH": 2}) as chain:
        copiers = Copiers(chain, "rock", masters=1, followers=10)
        start(chain, "rock", replicator=False)
        order_id = copiers.order(lots=60)
        running = chain.start("replicator", "replicator", crash_at=point)
        chain.until(lambda: not running.is_alive, 20)
        held = sorted({account for account, _ in Keys(chain.client).holdings if "follower" in account})
        assert len(held) >= 4
        chain.client.hset(f"user:{{{held[0]}}}:config", "copy_status", "paused")
        chain.client.srem("copy_master_followers:M0:active", held[1].partition(":")[2])
        running.start()
        copiers.settle()
        chain.client.sadd("copy_master_followers:M0:active", held[1].partition(":")[2])
        assert assert_all_well(copiers) == {"copied": 10}
        copiers.tell(order_id)
        chain.until(lambda: not Keys(chain.client).holdings, 20)
        copiers.settle()
        assert_all_well(copiers)
