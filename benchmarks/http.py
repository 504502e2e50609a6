"""An instant order through HTTP against the same order through the stream, at so many a second.

Both ways lead to the same worker process. Orders come at random moments (the same ones both ways) whether earlier ones
were answered or not, and each is timed from the moment at which it was due; rounds of both ways take turns. The client
is as lean as a client can be, for it shares the processors with what it measures.
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hiredis
import numpy as np
import uvloop

from benchmarks.chain import process
from benchmarks.house import SERVER
from benchmarks.measure import Figure, difference, load
from benchmarks.twins import WrongResult
from copyrisk import keys
from copyrisk.embedded import EmbeddedServer
from copyrisk.identifiers import Account
from copyrisk.signing import MasterSecret, signed_headers
from copyrisk.store import library
from copyrisk.store.api_keys import KeyRecord, add_record
from copyrisk.store.connection import connect
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType

_SYMBOL, _LOTS = "EURUSD", "0.01"
_PER_SECOND, _ACCOUNTS, _CONNECTIONS = 500, 2_000, 64
_SECRET, _KEY, _PATH = b"benchmark-" * 4, "key_of_the_benchmark", "/api/orders/instant/execute"
_LIMIT_S = 20.0
#: A message of Redis' protocol that ends a head of HTTP.
_HEAD_END = b"\r\n\r\n"
Send = Callable[[int, dict[str, str]], Awaitable[None]]


def figures(seconds: float = 4.0, rounds: int = 6) -> Iterator[Figure]:
    """Milliseconds of both ways at 500 orders a second, and by how much the slow end of HTTP's is slower."""
    with _house() as there, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stream, http = runner.run(_measure(there, seconds, rounds))
        there.check()
    for name, ms in (("stream", stream), ("http", http)):
        for percent in (50, 99):
            value = float(np.median(np.percentile(ms, percent, axis=1)))
            yield Figure(f"{name}_order_ms_p{percent}", round(value, 2), "ms", load=load())
    p50s, p99s = (np.percentile(http, percent, axis=1) - np.percentile(stream, percent, axis=1) for percent in (50, 99))
    yield Figure("http_order_cpu_us", round(there.cpu_us_each, 1), "us", load=load())
    yield difference("http_vs_stream_ms_p50", "the same orders through the stream", p50s, "ms")
    yield difference("http_vs_stream_ms_p99", "the same orders through the stream", p99s, "ms", target=3.0)


async def _measure(there: "_House", seconds: float, rounds: int) -> tuple[Any, Any]:
    """(rounds, orders) milliseconds of the stream and of HTTP."""
    stream, http = _StreamWay(there), _HttpWay(there)
    await stream.open()
    await http.open()
    count = int(_PER_SECOND * seconds)
    for way in (stream, http):  # connections are made, code is warm
        await _round(there, way, max(count // 4, 20), 1)
    found: dict[bool, list[Any]] = {True: [], False: []}
    cpu_s = there.cpu_s()
    for number in range(rounds):
        for way in (stream, http) if number % 2 else (http, stream):
            found[way is http].append(await _round(there, way, count, number))
    there.cpu_us_each = (there.cpu_s() - cpu_s) * 1e6 / (count * rounds)
    return np.array(found[False]), np.array(found[True])


async def _round(there: "_House", way: "_StreamWay | _HttpWay", count: int, seed: int) -> Any:
    """(orders,) milliseconds, from when each was due."""
    due = np.cumsum(np.random.default_rng(seed).exponential(1.0 / _PER_SECOND, count)).tolist()
    there.quote()
    way.expect(count)
    started = time.perf_counter() + 0.05
    for at in due:
        while (wait := started + at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        way.send(started + at, there.next_order())
    async with asyncio.timeout(_LIMIT_S):
        await way.done()
    return np.array(way.seconds) * 1e3


@dataclass
class _Way:
    """What both ways have."""

    there: "_House"
    seconds: list[float] = field(default_factory=list)
    _wanted: int = 0
    _done: asyncio.Event = field(default_factory=asyncio.Event)

    def expect(self, count: int) -> None:
        """Begin a round of so many orders."""
        self.seconds, self._wanted, self._done = [], count, asyncio.Event()

    async def done(self) -> None:
        """Until all are answered."""
        await self._done.wait()

    def note(self, due: float) -> None:
        """An order that was due then is open."""
        self.seconds.append(time.perf_counter() - due)
        if len(self.seconds) == self._wanted:
            self._done.set()


class _StreamWay(_Way):
    """`XADD`, and the event: as a service does that follows the streams."""

    async def open(self) -> None:
        """Connect."""
        self._due: dict[str, float] = {}
        self._writer = (await asyncio.open_unix_connection(self.there.socket))[1]
        reader, writer = await asyncio.open_unix_connection(self.there.socket)
        self._following = asyncio.create_task(self._follow(reader, writer))

    def send(self, due: float, order: dict[str, str]) -> None:
        """Ask for an order."""
        self._due[order["order_id"]] = due
        words = [word for item in {"type": "open", **order}.items() for word in item]
        self._writer.write(pack("XADD", keys.COMMANDS, "*", *words))

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read events as they come."""
        last, replies = "$", hiredis.Reader()
        while True:
            writer.write(pack("XREAD", "COUNT", 200, "BLOCK", 1_000, "STREAMS", keys.EVENTS, last))
            while (reply := replies.gets()) is False:
                replies.feed(await reader.read(1 << 16))
            for entry_id, words in reply[0][1] if reply else ():
                last = entry_id
                event = dict(zip(words[::2], words[1::2], strict=True))
                due = self._due.pop(event[b"order_id"].decode(), None)
                if due is not None:
                    _check(json.loads(event[b"order"]))
                    self.note(due)


class _HttpWay(_Way):
    """Signed requests over connections that stay."""

    async def open(self) -> None:
        """Connect."""
        self._free: list[_Connection] = []
        self._waiting: list[tuple[float, bytes]] = []
        loop = asyncio.get_running_loop()
        for _ in range(_CONNECTIONS):
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.there.port)

    def send(self, due: float, order: dict[str, str]) -> None:
        """Ask for an order, as soon as a connection is free."""
        body = json.dumps(order, separators=(",", ":")).encode()
        headers = signed_headers(
            _KEY, self.there.secret, "POST", _PATH.encode(), body, idempotency_key=order["order_id"]
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"POST {_PATH} HTTP/1.1\r\nHost: desk\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        self._waiting.append((due, f"{head}{lines}\r\n".encode() + body))
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._free:
            self._free.pop().ask(*self._waiting.pop(0))

    def is_gone(self, connection: "_Connection") -> None:
        """A connection has ended; an answer that was under way is missed in the end."""
        if connection in self._free:
            self._free.remove(connection)

    def is_free(self, connection: "_Connection") -> None:
        """A connection has nothing to do."""
        self._free.append(connection)
        self._go_on()


class _Connection(asyncio.Protocol):
    """One request after another."""

    def __init__(self, way: _HttpWay) -> None:
        self._way, self._due, self._got = way, 0.0, b""

    def connection_made(self, transport: Any) -> None:
        """Ready."""
        self._transport = transport
        self._way.is_free(self)

    def connection_lost(self, _: Exception | None) -> None:
        """One that was never used is let go by the other side."""
        self._way.is_gone(self)

    def ask(self, due: float, request: bytes) -> None:
        """Send a request."""
        self._due, self._got = due, b""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Take the answer, whole or in pieces."""
        self._got += data
        head, ended, body = self._got.partition(_HEAD_END)
        if not ended:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            raise WrongResult(f"an order was not opened: {body[:300]!r}")
        _check(json.loads(body)["data"]["order"])
        self._way.note(self._due)
        self._way.is_free(self)


def _check(order: dict[str, Any]) -> None:
    if order["order_status"] != "OPEN" or order["order_quantity"] != _LOTS:
        raise WrongResult(f"not what was asked for: {order}")


@dataclass
class _House:
    """A server with accounts, a worker and the API."""

    client: Any
    socket: str
    port: int
    secret: str
    api_pid: int
    orders: int = 0
    cpu_us_each: float = 0.0

    def cpu_s(self) -> float:
        """Processor time of the API so far."""
        words = Path(f"/proc/{self.api_pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def quote(self) -> None:
        """A fresh quote."""
        now_ms = time.time_ns() // 1_000_000
        self.client.hset(keys.market(_SYMBOL), mapping={"bid": "1.08450", "ask": "1.08455", "ts": str(now_ms)})

    def fill(self) -> None:
        """Accounts that may trade."""
        terms = {"contract_size": "100000", "profit": "USD", "type": "1"}
        self.client.hset(keys.group(keys.STANDARD_GROUP, _SYMBOL), mapping=terms)
        config = {"wallet_balance": "100000", "leverage": "100", "group": keys.STANDARD_GROUP, "status": "1"}
        for number in range(_ACCOUNTS):
            self.client.hset(keys.config(_account(number)), mapping={**config, "sending_orders": "rock"})

    def next_order(self) -> dict[str, str]:
        """An order of the next account in turn."""
        self.orders += 1
        account = _account(self.orders % _ACCOUNTS)
        said = {"user_type": account.type.value, "user_id": account.id, "order_id": f"bench-{self.orders}"}
        return {**said, "symbol": _SYMBOL, "order_type": "BUY", "order_quantity": _LOTS}

    def check(self) -> None:
        """Every order is a position, once."""
        held = sum(self.client.scard(keys.orders_index(_account(number))) for number in range(_ACCOUNTS))
        if held != self.orders:
            raise WrongResult(f"{held} orders are open, not {self.orders}")


def _account(number: int) -> Account:
    return Account(AccountType.LIVE, f"http-{number}")


@contextmanager
def _house() -> Iterator[_House]:
    with EmbeddedServer.start(SERVER) as server, TemporaryDirectory() as folder, ExitStack() as running:
        client: Any = connect(server.url, connect_timeout_ms=1_000, reply_timeout_ms=10_000)
        library.load(client)
        master = MasterSecret(_SECRET)
        pipe = Pipe(client)
        add_record(pipe, KeyRecord(_KEY, "benchmark", ("orders:write",), ("*",), 0), master)
        pipe.close()
        secret_file = Path(folder, "secret")
        secret_file.write_bytes(_SECRET)
        secret_file.chmod(0o600)
        port = _free_port()
        rates = {"API_RATE_PER_S": "100000", "API_RATE_BURST": "100000"}
        secrets = {"API_SECRET_FILE": str(secret_file), "API_PORT": str(port), "API_DESK": "false"}
        running.enter_context(process(server.url, "workers"))
        api = running.enter_context(process(server.url, "api", **rates, **secrets))
        path = client.connection_pool.connection_kwargs["path"]
        there = _House(client, path, port, master.secret_of(_KEY), api.pid)
        there.fill()
        _wait_for(port)
        yield there


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    ends_s = time.monotonic() + _LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > ends_s:
                raise WrongResult("the API does not answer") from None
            time.sleep(0.05)
