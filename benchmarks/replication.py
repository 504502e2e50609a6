"""A master's order on its way to its followers' copies, with the engine and the daemon as processes of their own.

From the `XADD` of the master's stream entry to the last copy stored, as the engine's record says by the wall clock that
both read, while every account moves at every tick; and the engine alone against the bare server: the very calls that
it made, kept and sent once more to a second server that was filled alike.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import redis

from benchmarks.floor import exchange
from benchmarks.house import N_SYMBOLS, PERIOD_MS, House, house
from benchmarks.measure import Figure, load, ratio
from benchmarks.twins import WrongResult
from copyrisk import fanout, keys
from copyrisk.derived import copy_id
from copyrisk.identifiers import Account
from copyrisk.replication import COPIED
from copyrisk.replicator import ROLE, Replicator
from copyrisk.roles import make_replicator
from copyrisk.settings import load_settings
from copyrisk.store import library
from copyrisk.store.connection import connect
from copyrisk.store.decisions import Decision, Decisions
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType

_SYMBOL, _LOTS, _STEP = "EURUSD", "0.50", Fraction(1, 100)
_MASTER = Account(AccountType.MASTER, "1")
_MASTER_CONFIG = {"wallet_balance": "50000", "leverage": "100", "group": keys.STANDARD_GROUP, "sending_orders": "rock"}
_P99_MS = {100: 15.0, 1_000: 60.0, 10_000: 500.0}
_VS_FLOOR = 2.0
_LIMIT_S, _POLL_S = 30.0, 0.005
_SETTLED_PER_S = 15_000  # accounts
_TICKS_LATE = 25
_NEVER_LATE_MS = 10**10
_COPY_CALL, _DONE = b"copyrisk_copy", b"*1\r\n$4\r\ndone\r\n"


@dataclass(frozen=True)
class Plan:
    """How much to measure: accounts that move, rounds by number of followers, and pairs against the floor."""

    accounts: int
    rounds: dict[int, int]
    against_floor: int
    pairs: int


FULL = Plan(10_000, {100: 200, 1_000: 60, 10_000: 15}, 1_000, 25)
QUICK = Plan(200, {20: 3, 200: 2}, 50, 3)


def figures(plan: Plan = FULL) -> Iterator[Figure]:
    """Milliseconds at every number of followers, and the engine against the floor."""
    with _processes(plan.accounts) as there:
        for followers, rounds in plan.rounds.items():
            yield from _latencies(there, followers, rounds)
    yield from _against_floor(plan.against_floor, plan.pairs)


def _latencies(there: "_Bench", followers: int, rounds: int) -> Iterator[Figure]:
    there.follow(followers)
    there.round()  # whatever is done only once
    stored_ms, settled_ms = np.array([there.round() for _ in range(rounds)]).T
    there.check_tick()
    for percent in (50, 99):
        target = _P99_MS.get(followers) if percent == 99 else None
        value = round(float(np.percentile(stored_ms, percent)), 2)
        name = f"replication_ms_p{percent}_{followers}"
        yield Figure(name, value, "ms", target=target, at_most=target is not None, load=load())
    yield Figure(f"replication_settled_ms_{followers}", round(float(np.median(settled_ms)), 2), "ms", load=load())


@dataclass
class _Bench:
    """A filled server; rounds are held against what must stand there before their times count."""

    house: House
    followers: list[Account] = field(default_factory=list)
    _rounds: int = 0

    def __post_init__(self) -> None:
        self.client: Any = self.house.client
        self._pipe = Pipe(self.client)
        self._decisions = Decisions(Pipe(self.client))
        self._random = np.random.default_rng(1)
        self.client.hset(keys.config(_MASTER), mapping=_MASTER_CONFIG)

    def follow(self, count: int) -> None:
        """Have the first so many accounts copy the master, and nobody else."""
        self.followers = [Account(AccountType.FOLLOWER, str(number + 1)) for number in range(count)]
        self.client.delete(keys.active_followers(_MASTER.id))
        self.client.sadd(keys.active_followers(_MASTER.id), *(follower.id for follower in self.followers))

    def send(self) -> tuple[str, int]:
        """The master opens an order at the market: its id, and when its entry was sent, in us."""
        self._rounds += 1
        order_id, price = f"bench-{self._rounds}", self.client.hget(keys.market(_SYMBOL), "ask").decode()
        order = {"symbol": _SYMBOL, "order_type": "BUY", "order_price": price, "order_quantity": _LOTS}
        said = {"user_type": _MASTER.type.value, "user_id": _MASTER.id, "order_id": order_id, "change": "opened"}
        said |= {"version": str(self._rounds), "state": "open", "asked": _LOTS, "order": json.dumps(order)}
        sent_us = time.time_ns() // 1_000
        self.client.xadd(keys.REPLICATIONS, said | {"ts": str(sent_us // 1_000)})
        return order_id, sent_us

    def round(self) -> tuple[float, float]:
        """Milliseconds until the last copy was stored, and until all that follows was brought about."""
        self._let_settle()
        order_id, sent_us = self.send()
        while not self._pipe.exchange([pack("HEXISTS", keys.copies(order_id), "made")])[0]:
            if time.time_ns() // 1_000 - sent_us > _LIMIT_S * 1e6:
                raise WrongResult(f"{order_id} was not replicated within {_LIMIT_S} s")
            time.sleep(_POLL_S)
        settled_us = time.time_ns() // 1_000
        stored_us = self.check(order_id)
        if not sent_us < stored_us <= settled_us:
            raise WrongResult("copies were stored before their order, or after all was done")
        return (stored_us - sent_us) / 1e3, (settled_us - sent_us) / 1e3

    def check(self, order_id: str) -> int:
        """Hold all copies of an order against exact sizes, and take them away; when the last was stored, in us."""
        decision = self._decisions.load(order_id)
        if decision is None or decision.made is None or len(decision.rows) != len(self.followers):
            raise WrongResult(f"{order_id}: not everybody was decided about")
        if not (decision.made["result"] == COPIED).all() or (decision.made["stored_us"] < 0).any():
            raise WrongResult(f"{order_id}: not copied: {set(decision.made['result'].tolist())}")
        expected = dict(zip(decision.rows["follower"].tolist(), _exact_lots(decision), strict=True))
        copies = [(follower, copy_id(order_id, follower)) for follower in self.followers]
        held = self._ask(pack("HGET", keys.holding(*one), "order_quantity") for one in copies)
        for (follower, _), lots in zip(copies, held, strict=True):
            if lots is None or Fraction(lots.decode()) != expected[follower.id.encode()]:
                raise WrongResult(f"{order_id}: {follower} holds {lots}, not {expected[follower.id.encode()]}")
        self.take_away(copies)
        return int(decision.header["received_ms"]) * 1_000 + int(decision.made["stored_us"].max())

    def check_tick(self) -> None:
        """Whether the daemon values all accounts, the master's among them, to this day.

        It may be taking in what was just taken away: an account that changes while it is read is unknown for a tick.
        """
        _wait_until(self._all_are_valued, "the daemon does not value every account")

    def _all_are_valued(self) -> bool:
        tick = {name.decode(): float(value) for name, value in self.client.hgetall(keys.TICK).items()}
        age_ms = time.time_ns() // 1_000_000 - tick["ts"]
        every = tick["accounts"] == self.house.accounts + 1 and not tick["unknown"]
        return every and age_ms <= _TICKS_LATE * PERIOD_MS

    def _let_settle(self) -> None:
        """Let everybody take in what was taken away, then begin at any moment of a tick."""
        time.sleep(len(self.followers) / _SETTLED_PER_S + (1 + self._random.random()) * PERIOD_MS / 1e3)

    def take_away(self, copies: Iterable[tuple[Account, str]]) -> None:
        """As if there had been none; the accounts' versions stay. Every copy and its record must have been there."""
        replies = self._ask(
            request
            for follower, own_id in copies
            for request in (
                pack("DEL", keys.holding(follower, own_id), keys.order_record(follower, own_id)),
                pack("SREM", keys.orders_index(follower), own_id),
                pack("DEL", keys.order_data(own_id)),
            )
        )
        if set(replies[::3]) != {2}:
            raise WrongResult("not every follower has its copy")

    def _ask(self, requests: Iterable[bytes]) -> list[Any]:
        replies = self._pipe.exchange(list(requests))
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


def _exact_lots(decision: Decision) -> list[Fraction]:
    """Lots by the equities that were recorded, which must be plausible: no follower has nothing, or a master's all."""
    rows = decision.rows["sizing"]
    figures = zip(rows["follower_cents"].tolist(), rows["master_cents"].tolist(), strict=True)
    found = [Fraction(_LOTS) * Fraction(follower, master) // _STEP * _STEP for follower, master in figures]
    if not all(Fraction(1, 10) < lots < 2 for lots in found):
        raise WrongResult(f"equities that these accounts never had: {min(found)} to {max(found)} lots")
    return found


# ---- with processes, while everything moves


@contextmanager
def _processes(accounts: int) -> Iterator[_Bench]:
    """A house of followers in which everything moves; the daemon and the engine, ready when the first order went."""
    with house(accounts, AccountType.FOLLOWER) as there, ExitStack() as running:
        bench = _Bench(there)
        for role in ("daemon", "replicator"):
            running.enter_context(_process(there.url, role))
        running.enter_context(_moving(there))
        first = keys.portfolio(Account(AccountType.FOLLOWER, "1"))
        _wait_until(lambda: bool(bench.client.exists(first)), "the daemon did not value the accounts")
        _wait_until(lambda: bool(bench.client.exists(keys.lease(ROLE))), "the engine did not start")
        bench.follow(1)
        bench.round()
        yield bench


@contextmanager
def _process(url: str, role: str) -> Iterator[None]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
    environ = clean | {"COPYRISK_MARKET_ALWAYS_OPEN": "true", "COPYRISK_LOG_LEVEL": "error"}
    words = [sys.executable, "-m", "copyrisk.cli", "--redis", url, "--role", role]
    with subprocess.Popen(words, env=environ) as running:
        try:
            yield
        finally:
            running.kill()


@contextmanager
def _moving(there: House) -> Iterator[None]:
    """Every symbol gets another price in every tick."""
    stop = threading.Event()

    def move() -> None:
        while not stop.wait(PERIOD_MS / 1e3):
            there.move(N_SYMBOLS)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield
    finally:
        stop.set()
        mover.join()


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline_s = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise WrongResult(otherwise)
        time.sleep(0.01)


# ---- against the bare server


class _Recorded(Pipe):
    """A pipe that keeps the parts in which copies were made."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self.copies: list[tuple[bytes, int]] = []

    def exchange_parts(self, parts: Iterable[tuple[bytes, int]]) -> Iterator[list[Any]]:
        """Send, and keep what was sent."""
        return super().exchange_parts(self._kept(parts))

    def _kept(self, parts: Iterable[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
        for requests, count in parts:
            if _COPY_CALL in requests[:100]:
                self.copies.append((requests, count))
            yield requests, count


def _against_floor(followers: int, pairs: int) -> Iterator[Figure]:
    """The engine from entry to last copy, over the bare server's time for the same calls; nothing else runs."""
    with house(followers, AccountType.FOLLOWER) as there, house(followers, AccountType.FOLLOWER) as twin, _never_late():
        bench, bare = _Bench(there), _Bench(twin)
        for one in (bench, bare):
            one.follow(followers)
        engine, sent = _engine(there)
        library.load(twin.client)
        connection: Any = twin.client.connection_pool.get_connection()
        times = []
        for _ in range(pairs + 2):
            there.move(0)
            twin.move(0)
            engine.step(1)  # what was taken away and moved is known
            sent.copies.clear()
            order_id, sent_us = bench.send()
            engine.step(1_000)
            stored_us = bench.check(order_id)
            requests = b"".join(part for part, _ in sent.copies)
            made = sum(count for _, count in sent.copies)
            if made != followers:
                raise WrongResult(f"{made} calls for {followers} copies")
            floor_s = exchange(connection._sock, requests, made * len(_DONE))
            bare.take_away([(follower, copy_id(order_id, follower)) for follower in bare.followers])
            times.append(((stored_us - sent_us) / 1e6, floor_s))
        twin.client.connection_pool.release(connection)
    ours, floor = np.array(times[2:]).T
    yield Figure(f"replication_alone_ms_{followers}", round(float(np.median(ours)) * 1e3, 2), "ms", load=load())
    yield Figure(f"replication_floor_ms_{followers}", round(float(np.median(floor)) * 1e3, 2), "ms", load=load())
    versus = "the same atomic calls, sent at once, replies thrown away"
    yield ratio("replication_vs_floor", versus, ours, floor, target=_VS_FLOOR, at_most=True)


def _engine(there: House) -> tuple[Replicator, _Recorded]:
    client = connect(there.url, connect_timeout_ms=1_000, reply_timeout_ms=10_000)
    flags = {"redis.url": there.url, "market.always_open": True, "replication.lease_ms": 60_000}
    engine, sent = make_replicator(client, load_settings(None, {}, flags)), _Recorded(client)
    engine._consumer.join()
    engine._fanout._pipe = sent
    engine.step(1)
    return engine, sent


@contextmanager
def _never_late() -> Iterator[None]:
    """The second sending may come after the deadline of the first."""
    kept, fanout.DECISION_MS = fanout.DECISION_MS, _NEVER_LATE_MS
    try:
        yield
    finally:
        fanout.DECISION_MS = kept
