"""Orders through the worker: placing and closing, one by one and in batches, against the bare server calls.

The bare calls are the very requests that the worker sent, kept and sent once more, in the same parts, to a second
server that was filled alike: what is left of the time is what the server and the wire need.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from benchmarks.house import House, house
from benchmarks.measure import Figure, load, ratio, seconds
from benchmarks.twins import WrongResult
from copyrisk import keys
from copyrisk.conditions import LotLimits
from copyrisk.dispatch import Dispatcher
from copyrisk.hours import MarketHours
from copyrisk.identifiers import Account
from copyrisk.rules import ValuationRules
from copyrisk.store import changes, library
from copyrisk.store.appraisal import Appraiser
from copyrisk.store.effects import Effects
from copyrisk.store.filler import Filler
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType
from copyrisk.workers import GROUP, WorkerOptions, Workers

_SYMBOL = "EURUSD"
_NEVER_LATE_MS = 10**10
_Times = npt.NDArray[np.float64]


@dataclass
class _Sent:
    """What a worker has sent, exchange by exchange."""

    exchanges: list[tuple[bytes, int]] = field(default_factory=list)


class _Recorded(Pipe):
    """A pipe that keeps what it sends."""

    def __init__(self, client: redis.Redis, sent: _Sent) -> None:
        super().__init__(client)
        self._sent = sent

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Send, and keep what was sent."""
        if commands:
            self._sent.exchanges.append((b"".join(commands), len(commands)))
        return super().exchange(commands)


def figures(accounts: int = 2_000, singles: int = 500, batch: int = 100) -> Iterator[Figure]:
    """Milliseconds of an order that comes alone, orders a second when many wait, and both against the bare calls."""
    with house(accounts) as there, house(accounts) as twin, _never_late():
        worker = _Bench(there, twin)
        for name, command in (("open", _open), ("close", _close)):
            ours, bare = worker.run([command(number) for number in range(singles)], 1)
            ms = ours * 1e3
            yield Figure(f"order_{name}_ms_p50", round(float(np.median(ms)), 3), "ms", load=load())
            yield Figure(f"order_{name}_ms_p99", round(float(np.percentile(ms, 99)), 3), "ms", load=load())
            yield ratio(f"order_{name}_vs_bare_calls", "the same requests, sent without deciding", ours, bare)
        for name, command in (("opens", _open), ("closes", _close)):
            every = [command(number) for number in range(singles, accounts)]
            ours, bare = worker.run(every, batch)
            yield Figure(f"{name}_per_second", round(batch / float(np.median(ours))), "orders/s", load=load())
            yield ratio(f"{name}_batched_vs_bare_calls", "the same requests, sent without deciding", ours, bare)


@contextmanager
def _never_late() -> Iterator[None]:
    """The second sending comes after the deadline of the first."""
    kept, changes.DECISION_MS = changes.DECISION_MS, _NEVER_LATE_MS
    try:
        yield
    finally:
        changes.DECISION_MS = kept


class _Bench:
    """A worker on one server, and its requests on the other."""

    def __init__(self, there: House, twin: House) -> None:
        self._there, self._twin, self._sent = there, twin, _Sent()
        self._pipe, self._bare = Pipe(there.client), Pipe(twin.client)
        client, pipe = there.client, _Recorded(there.client, self._sent)
        for server in (client, twin.client):
            library.load(server)
        effects, filler = Effects(pipe, events_limit=100_000, keeps_history=False), Filler(pipe, None)
        rules = ValuationRules()
        markets = Markets(pipe, filler, rules, MarketHours(always_open=True), LotLimits())
        appraiser = Appraiser(markets, rules)
        self._reader = _Recorded(client, self._sent)
        dispatcher = Dispatcher(pipe, appraiser, effects, filler)
        self._workers = Workers(self._reader, pipe, dispatcher, effects, options=WorkerOptions(retry_ms=600_000))
        for stream in (keys.COMMANDS, keys.REPORTS):
            for server in (client, twin.client):
                server.xgroup_create(stream, GROUP, "0", mkstream=True)
        self._workers._consumer.streams = (keys.COMMANDS, keys.REPORTS)
        self._entries = 0

    def run(self, commands: list[dict[str, str]], batch: int) -> tuple[_Times, _Times]:
        """Seconds of each batch: through the worker, and of its requests alone."""
        ours, bare = [], []
        for start in range(0, len(commands), batch):
            part = commands[start : start + batch]
            if len(part) < batch:
                break
            self._add(part)
            self._there.move(0)
            self._twin.move(0)
            self._sent.exchanges.clear()
            ours.append(seconds(lambda: self._workers.step(100)))
            self._check(batch)
            bare.append(seconds(self._resend))
        return np.array(ours), np.array(bare)

    def _add(self, commands: list[dict[str, str]]) -> None:
        """The same entries with the same ids in both streams."""
        for command in commands:
            self._entries += 1
            words = [word for item in command.items() for word in item]
            request = pack("XADD", keys.COMMANDS, f"{self._entries}-1", *words)
            for pipe in (self._pipe, self._bare):
                pipe.exchange([request])

    def _resend(self) -> None:
        for request, count in self._sent.exchanges:
            self._bare.exchange([request, *[b""] * (count - 1)])

    def _check(self, batch: int) -> None:
        """An order that was refused costs less, and does not count."""
        newest: Any = self._there.client.xrevrange(keys.EVENTS, count=batch)
        if len(newest) < batch or any(entry[b"code"] != b"ok" for _, entry in newest):
            raise WrongResult(f"a command was not carried out: {newest[:1]}")


def _account(number: int) -> Account:
    return Account((AccountType.LIVE, AccountType.DEMO)[number % 2], f"{number + 1}")


def _named(number: int, **said: str) -> dict[str, str]:
    account = _account(number)
    return {"user_type": account.type.value, "user_id": account.id, "order_id": f"bench-{number}", **said}


def _open(number: int) -> dict[str, str]:
    return _named(number, type="open", symbol=_SYMBOL, order_type="BUY", order_quantity="0.01")


def _close(number: int) -> dict[str, str]:
    return _named(number, type="close")
