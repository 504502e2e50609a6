"""From the quote that breaks a threshold to the stored close, with the daemon as a process of its own.

One account, a tenth of all accounts in one tick, and a master with a thousand followers, while every symbol gets
another price in every tick. A close counts from when the server had stored it, as the id of its entry in the account's
audit stream says; quote and entry are timed by the same machine's clock.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from benchmarks import cutoff_kernels
from benchmarks.house import N_SYMBOLS, PERIOD_MS, House, house
from benchmarks.measure import Figure, load
from benchmarks.twins import WrongResult
from copyrisk import keys
from copyrisk.identifiers import Account
from copyrisk.store.connection import connect
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType

#: What falls, and what never moves: the first costs one lot 1,000 USD of margin and, at the fall, 1,000 of equity.
_FALLS, _STILL = "FALLS", "STILL"
_HIGH, _LOW = "1.00000", "0.99000"
_BALANCE, _LEFT = Decimal("1080.00"), Decimal("80.00")
_RICH = Decimal("100000.00")
_STILL_LOTS = ("0.01", "0.02", "0.03", "0.04")
_PRINT_S, _POLL_S, _LIMIT_S = 0.05, 0.005, 60.0
_TWO_TICKS_MS, _CASCADE_MS = 2.0 * PERIOD_MS, 1_000.0
_MASTER = Account(AccountType.MASTER, "1")


@dataclass(frozen=True)
class Plan:
    """How much to measure: accounts, of them those that break at once and those that follow, and rounds of each."""

    accounts: int
    breached: int
    followers: int
    singles: int
    rounds: int
    pairs: int


FULL = Plan(10_000, 1_000, 1_000, 50, 5, 40)
QUICK = Plan(300, 30, 20, 2, 1, 3)


def figures(plan: Plan = FULL) -> Iterator[Figure]:
    """Delays, then the kernels alone, and what a tick of healthy accounts costs more."""
    with house(plan.accounts - plan.breached - plan.followers - 1) as there:
        bench = _Bench(there, plan)
        with _daemon(bench):
            yield from _single(bench, plan.singles)
            yield from _many(bench, plan.rounds, "")
            yield from _cascades(bench, plan.rounds)
        with _daemon(bench, CUTOFF_BRAKE_SHARE_PCT="100"):
            yield from _many(bench, plan.rounds, "_without_brake")
    yield from cutoff_kernels.figures(plan.breached, plan.accounts, plan.pairs)


# ---- from the quote to the close


def _single(bench: "_Bench", rounds: int) -> Iterator[Figure]:
    times = [bench.round(bench.breached[:1]) for _ in range(rounds + 1)][1:]
    ms, ticks = np.array([time.last_ms for time in times]), [time.ticks for time in times]
    for percent in (50, 99):
        value, target = round(float(np.percentile(ms, percent)), 1), _TWO_TICKS_MS if percent == 99 else None
        yield Figure(f"cutoff_ms_p{percent}", value, "ms", target=target, at_most=target is not None, load=load())
    yield Figure("cutoff_ticks_max", max(ticks), "ticks", target=2, at_most=True, load=load())


def _many(bench: "_Bench", rounds: int, suffix: str) -> Iterator[Figure]:
    """So many in one tick: when the first and the last of their closes were stored."""
    times = [bench.round(bench.breached) for _ in range(rounds)]
    name = f"cutoff_{len(bench.breached)}{suffix}"
    first, last = (round(float(np.median([getattr(time, which) for time in times])), 1) for which in _ENDS)
    yield Figure(f"{name}_first_ms", first, "ms", load=load())
    yield Figure(f"{name}_last_ms", last, "ms", target=_TWO_TICKS_MS, at_most=True, load=load())
    ticks = round(float(np.median([time.ticks for time in times])))
    yield Figure(f"{name}_last_ticks", ticks, "ticks", target=2, at_most=True, load=load())


def _cascades(bench: "_Bench", rounds: int) -> Iterator[Figure]:
    times = [bench.cascade() for _ in range(rounds)]
    name = f"cascade_{len(bench.followers)}"
    last = round(float(np.median([time.last_ms for time in times])), 1)
    yield Figure(f"{name}_last_ms", last, "ms", target=_CASCADE_MS, at_most=True, load=load())
    took = round(float(np.median([time.last_ms - time.first_ms for time in times])), 1)
    yield Figure(f"{name}_first_to_last_ms", took, "ms", load=load())


_ENDS = ("first_ms", "last_ms")


@dataclass(frozen=True)
class _Delay:
    """From the write of the quote to the first and the last stored close, and how many ticks began in between."""

    first_ms: float
    last_ms: float
    ticks: int


@dataclass
class _Bench:
    """A filled server with accounts that break when a quote falls; results are held against what must stand there."""

    house: House
    plan: Plan
    price: str = _HIGH
    _rounds: int = 0
    _cascades: set[bytes] = field(default_factory=set)
    _ticks: dict[int, int] = field(default_factory=dict)  # by number: when it was valued

    def __post_init__(self) -> None:
        self.client: Any = self.house.client
        self._lock = threading.Lock()
        self._pipe, self._printing = Pipe(self.client), Pipe(_client(self.house.url))
        self._random = np.random.default_rng(1)
        self.breached = [Account(AccountType.LIVE, f"b{number}") for number in range(self.plan.breached)]
        self.followers = [Account(AccountType.FOLLOWER, f"f{number}") for number in range(self.plan.followers)]
        terms = ("contract_size", 100_000, "profit", "USD", "type", 1)
        self._ask(pack("HSET", keys.group(keys.STANDARD_GROUP, symbol), *terms) for symbol in (_FALLS, _STILL))
        for number, lots in enumerate(_STILL_LOTS):
            self._ask(
                request
                for account in self.breached
                for request in _position(account, f"{account.id}-s{number}", _STILL, lots)
            )
        self._ask(pack("SADD", keys.active_followers(_MASTER.id), follower.id) for follower in self.followers)
        self.print()

    def print(self) -> None:
        """Let both symbols print, as they are."""
        with self._lock:
            prices = ((_FALLS, self.price), (_STILL, _HIGH))
            stamp = ("ts", _now_ms())
            self._printing.exchange(
                [pack("HSET", keys.market(symbol), "bid", price, "ask", price, *stamp) for symbol, price in prices]
            )

    def round(self, accounts: Sequence[Account]) -> _Delay:
        """Let some accounts break; every one of them must have closed the one position, and nothing else."""
        order_ids = self._arm(accounts)
        began_ms = self._fall()
        self._wait(lambda: self._are_gone(order_ids), "not everybody was closed")
        for account, held, balance in zip(accounts, self._held(accounts), self._balances(accounts), strict=True):
            if held != len(_STILL_LOTS) or balance != _LEFT:
                raise WrongResult(f"{account} has {held} orders and {balance} USD")
        return self._delay(order_ids, began_ms)

    def cascade(self) -> _Delay:
        """Let the master break; every follower must have closed its copy, and be recorded so."""
        self._configure(self.followers, _RICH)
        master_order = self._arm([_MASTER], others=0)[_MASTER]
        copies = {follower: self._order_id(follower) for follower in self.followers}
        self._ask(
            request
            for follower, own in copies.items()
            for request in _position(follower, own, _STILL, "0.10", master_order_id=master_order)
        )
        self._wait(lambda: self._are_valued(self.followers, _RICH), "followers are not valued")
        self._let_a_part_of_a_tick_pass()
        began_ms = self._fall()
        self._wait(lambda: not self.client.exists(keys.CASCADES) and self._are_gone(copies), "the cascade did not end")
        self._check_cascade(copies)
        return self._delay(copies, began_ms)

    # ---- single steps

    def _arm(self, accounts: Sequence[Account], others: int = len(_STILL_LOTS)) -> dict[Account, str]:
        """Give accounts a position and the balance that makes them healthy, and wait until the daemon says so."""
        self._rounds += 1
        self._set_price(_HIGH)
        self._configure(accounts, _BALANCE)
        order_ids = {account: self._order_id(account) for account in accounts}
        self._ask(request for account in accounts for request in _position(account, order_ids[account], _FALLS, "1"))
        self._wait(lambda: self._are_valued(accounts, _BALANCE), "accounts are not valued")
        if set(self._held(accounts)) != {1 + others}:
            raise WrongResult("accounts hold what they should not")
        self._let_a_part_of_a_tick_pass()
        return order_ids

    def _order_id(self, account: Account) -> str:
        return f"{account.id}-{self._rounds}"

    def _configure(self, accounts: Sequence[Account], balance: Decimal) -> None:
        said = {"leverage": 100, "group": keys.STANDARD_GROUP, "status": 1, "sending_orders": "rock"}
        words = [str(word) for item in said.items() for word in item]
        self._ask(pack("HSET", keys.config(account), "wallet_balance", str(balance), *words) for account in accounts)

    def _fall(self) -> float:
        """Let the quote fall; when it was sent, in ms."""
        self._ticks.clear()
        began_ms = time.time_ns() / 1e6
        self._set_price(_LOW)
        return began_ms

    def _set_price(self, price: str) -> None:
        self.price = price
        self.print()

    def _let_a_part_of_a_tick_pass(self) -> None:
        time.sleep((2 + self._random.random()) * PERIOD_MS / 1e3)

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline_s = time.monotonic() + _LIMIT_S
        while not condition():
            self._note_tick()
            if time.monotonic() > deadline_s:
                raise WrongResult(otherwise)
            time.sleep(_POLL_S)
        self._note_tick()

    def _note_tick(self) -> None:
        """Remember when the last tick was valued; its record is written at its end."""
        said = self.client.hgetall(keys.TICK)
        if said:
            self._ticks[int(said[b"tick"])] = int(said[b"ts"])

    def _are_valued(self, accounts: Sequence[Account], equity: Decimal) -> bool:
        """Whether the daemon has taken in what they are now."""
        said = self._ask(pack("HMGET", keys.portfolio(account), "equity", "used_margin") for account in accounts)
        return all(None not in found and float(found[0]) == equity and float(found[1]) > 0 for found in said)

    def _are_gone(self, order_ids: dict[Account, str]) -> bool:
        """Whether the last of them are; all are looked at when that is so."""
        every = list(order_ids.items())
        for some in (every[:1], every[-1:], every):
            if any(self._ask(pack("EXISTS", keys.holding(*one)) for one in some)):
                return False
        return True

    def _held(self, accounts: Sequence[Account]) -> list[int]:
        return [int(found) for found in self._ask(pack("SCARD", keys.orders_index(account)) for account in accounts)]

    def _balances(self, accounts: Sequence[Account]) -> list[Decimal]:
        found = self._ask(pack("HGET", keys.config(account), "wallet_balance") for account in accounts)
        return [Decimal(balance.decode()) for balance in found]

    def _delay(self, order_ids: dict[Account, str], began_ms: float) -> _Delay:
        """By the entries of the closes, of which there must be one of each order."""
        stored = []
        newest = self._ask(pack("XREVRANGE", keys.audit(account), "+", "-", "COUNT", 2) for account in order_ids)
        for order_id, entries in zip(order_ids.values(), newest, strict=True):
            own = [entry_id for entry_id, said in entries if json.loads(said[1])["order_id"] == order_id]
            if len(own) != 1:
                raise WrongResult(f"{order_id} was closed {len(own)} times")
            stored.append(int(own[0].partition(b"-")[0]))
        until_ms = max(stored)
        self._wait(lambda: bool(self._ticks) and max(self._ticks.values()) > until_ms, "the daemon does not tick")
        ticks = sum(began_ms < valued_ms <= until_ms for valued_ms in self._ticks.values())
        return _Delay(min(stored) - began_ms, until_ms - began_ms, ticks)

    def _check_cascade(self, copies: dict[Account, str]) -> None:
        (cascade_id,) = self._ask([pack("ZREVRANGE", keys.CASCADES_DONE, 0, 0)])[0]
        if cascade_id in self._cascades:
            raise WrongResult("the master's fall began no cascade")
        self._cascades.add(cascade_id)
        summary = json.loads(self.client.hget(keys.cascade(cascade_id.decode()), "summary"))
        if summary["done"] != len(copies) or summary["failed"] or summary["flat"]:
            raise WrongResult(f"not every follower was closed: {summary}")
        if any(self._held([*copies, _MASTER])):
            raise WrongResult("somebody holds something")

    def _ask(self, requests: Iterable[bytes]) -> list[Any]:
        replies = self._pipe.exchange(list(requests))
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


def _position(account: Account, order_id: str, symbol: str, lots: str, **more: str) -> Iterator[bytes]:
    size = Decimal(lots) * 100_000
    order = {
        "order_id": order_id,
        "symbol": symbol,
        "order_type": "BUY",
        "order_status": "OPEN",
        "execution_status": "EXECUTED",
        "order_price": _HIGH,
        "order_quantity": lots,
        "margin": f"{size / 100:.2f}",
        "contract_value": f"{size:.2f}",
        "commission": "0",
        "swap": "0",
        "execution": "local",
        "user_type": account.type.value,
        "user_id": account.id,
        "created_at": "2026-01-05T09:00:00Z",
        **more,
    }
    words = [word for item in order.items() for word in item]
    yield pack("HSET", keys.holding(account, order_id), *words)
    yield pack("SADD", keys.orders_index(account), order_id)
    yield pack("HSET", keys.order_data(order_id), *words)


# ---- processes


@contextmanager
def _daemon(bench: _Bench, **settings: str) -> Iterator[None]:
    """A daemon that values everybody, while every symbol moves."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
    given = {"MARKET_ALWAYS_OPEN": "true", "LOG_LEVEL": "error", **settings}
    environ = clean | {f"COPYRISK_{name}": value for name, value in given.items()}
    words = [sys.executable, "-m", "copyrisk.cli", "--redis", bench.house.url, "--role", "daemon"]
    bench.client.delete(keys.TICK)
    with ExitStack() as stack:
        stack.enter_context(_printing(bench))
        running = stack.enter_context(subprocess.Popen(words, env=environ))
        stack.callback(running.kill)
        bench._wait(lambda: bool(bench.client.exists(keys.TICK)), "the daemon did not start")
        stack.enter_context(_moving(bench.house))
        yield
    bench._wait(lambda: not bench.client.exists(keys.lease("cutoff")) or _is_over(bench), "the lease did not end")


def _is_over(bench: _Bench) -> bool:
    return int(bench.client.hget(keys.lease("cutoff"), "ends_ms") or 0) < _now_ms()


@contextmanager
def _printing(bench: _Bench) -> Iterator[None]:
    with _again_and_again(bench.print, _PRINT_S):
        yield


@contextmanager
def _moving(there: House) -> Iterator[None]:
    """Every symbol gets another price in every tick."""
    with _again_and_again(lambda: there.move(N_SYMBOLS), PERIOD_MS / 1e3):
        yield


@contextmanager
def _again_and_again(act: Callable[[], object], every_s: float) -> Iterator[None]:
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _client(url: str) -> Any:
    return connect(url, connect_timeout_ms=1_000, reply_timeout_ms=10_000)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
