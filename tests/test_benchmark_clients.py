"""What exchanges are measured against: the floor drops all replies and no more, the redis-py twin is right."""

import errno
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from ctypes import c_int
from itertools import islice
from pathlib import Path

import hiredis
import numpy as np
import pytest

from benchmarks import floor, redispy
from tests.conftest import Server

PONG = b"+PONG\r\n"
PING = b"*1\r\n$4\r\nPING\r\n"
COMMANDS, VALUE = 50_000, b"x" * 80


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.connect(server.url.removeprefix("unix://"))
        sock.settimeout(10.0)
        yield sock


def answers(sock: socket.socket) -> bool:
    """Whether the connection is in step: the next command gets its own reply and nothing else."""
    sock.settimeout(10.0)
    sock.sendall(PING)
    return sock.recv(100) == PONG


# ---- the floor


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0], ids=["blocking", "non-blocking", "timeout"])
def test_the_floor_reads_exactly_the_replies_and_keeps_the_blocking_mode(
    bundled_server: Server, timeout: float | None
) -> None:
    with bundled_server.client() as client:
        client.hset("h", mapping={"a": "1", "b": "two"})
    request = b"".join(
        hiredis.pack_command(words) for words in (("HMGET", "h", "a", "no", "b"), ("PING",), ("GET", "h"))
    )
    refusal = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
    replies = b"*3\r\n$1\r\n1\r\n$-1\r\n$3\r\ntwo\r\n" + PONG + refusal
    with connected(bundled_server) as sock:
        run = floor.Floor(sock, request)
        assert run.reply_size == len(replies)
        sock.settimeout(timeout)
        mode = os.get_blocking(sock.fileno())
        for _ in range(100):
            assert 0.0 < run() < 10.0
            assert os.get_blocking(sock.fileno()) is mode
        assert answers(sock)


def test_a_huge_request_does_not_deadlock(bundled_server: Server) -> None:
    request = hiredis.pack_command(("ECHO", VALUE)) * COMMANDS
    assert len(request) >= 5_000_000
    with connected(bundled_server) as sock:
        run = floor.Floor(sock, request)
        assert run.reply_size == COMMANDS * len(b"$80\r\n" + VALUE + b"\r\n")
        assert run() < 10.0
        assert answers(sock)
    with bundled_server.client() as client:
        assert client.info("commandstats")["cmdstat_echo"]["calls"] >= 3 * COMMANDS


def test_replies_may_be_far_larger_than_the_request(bundled_server: Server) -> None:
    with bundled_server.client() as client:
        client.set("big", b"y" * 50_000)
    with connected(bundled_server) as sock:
        run = floor.Floor(sock, hiredis.pack_command(("GET", "big")) * 400)
        assert run.reply_size > 20_000_000
        assert run() < 10.0
        assert answers(sock)


def test_writes_have_settled_before_they_are_measured(bundled_server: Server) -> None:
    fields = [word for number in range(12) for word in (f"f{number}", "1")]
    request = hiredis.pack_command(("HSET", "h", *fields)) + hiredis.pack_command(("PUBLISH", "c", "m"))
    with connected(bundled_server) as sock:
        run = floor.Floor(sock, request)  # the first reply is `:12`, all others are `:0`
        assert run.reply_size == len(b":0\r\n:0\r\n")
        run()
        assert answers(sock)


def test_a_request_without_a_steady_reply_is_refused(bundled_server: Server) -> None:
    request = hiredis.pack_command(("APPEND", "k", "x" * 9)) + hiredis.pack_command(("GET", "k"))
    with connected(bundled_server) as sock, pytest.raises(ValueError, match="another size each time"):
        floor.Floor(sock, request)


def test_half_a_command_is_refused_before_it_is_sent(bundled_server: Server) -> None:
    with connected(bundled_server) as sock:
        with pytest.raises(ValueError, match="inside of a command"):
            floor.plain_exchange(sock, PING + PING[:-3])
        assert answers(sock)


def test_too_small_a_size_is_noticed(bundled_server: Server) -> None:
    with connected(bundled_server) as sock, pytest.raises(OSError, match=f"Errno {errno.EPROTO}"):
        floor.exchange(sock, PING * 3, 2 * len(PONG))


# ---- the floor against peers that no server is


@contextmanager
def peer(behave: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A connection to a thread of this process, which can only run while the client leaves Python to it."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10.0)

    def run() -> None:
        with closing(theirs):  # whatever goes wrong there, ours is told
            behave(theirs)

    thread = threading.Thread(target=run)
    thread.start()
    with closing(ours):
        yield ours
    thread.join()


def test_a_peer_that_reads_nothing_before_its_replies_are_taken_does_not_deadlock() -> None:
    size, piece = 4_000_000, 400_000  # a piece is more than a socket holds

    def strict(theirs: socket.socket) -> None:
        done = 0
        while done < size:
            received = theirs.recv(piece)
            theirs.sendall(received * 3)
            done += len(received)

    with peer(strict) as sock:
        assert floor.exchange(sock, b"x" * size, 3 * size) < 10.0


def test_a_peer_that_hangs_up_is_an_error() -> None:
    def hangs_up(theirs: socket.socket) -> None:
        theirs.recv(7)
        theirs.shutdown(socket.SHUT_RDWR)

    with peer(hangs_up) as sock, pytest.raises((ConnectionResetError, BrokenPipeError)):
        floor.exchange(sock, b"x" * 4_000_000, 100)


@pytest.mark.parametrize("request_size", [10, 4_000_000], ids=["does not answer", "does not read"])
def test_a_connection_that_stands_still_is_given_up(request_size: int) -> None:
    patience = c_int.in_dll(floor.library(), "floor_patience_ms")
    before, patience.value = patience.value, 50
    ours, theirs = socket.socketpair()
    try:
        with closing(ours), closing(theirs), pytest.raises(TimeoutError):
            floor.exchange(ours, b"x" * request_size, 100)
    finally:
        patience.value = before


# ---- how the floor is compiled


def test_it_is_compiled_when_the_source_changed_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "floor.c"
    source.write_text(floor.SOURCE.read_text())
    monkeypatch.setattr(floor, "SOURCE", source)
    monkeypatch.setattr(floor, "BUILD", tmp_path / "build")
    first = floor.compiled()
    made = first.stat().st_mtime_ns
    assert floor.compiled() == first and first.stat().st_mtime_ns == made
    source.write_text(source.read_text() + "\n")
    assert floor.compiled() != first
    source.write_text("double floor_exchange(\n")
    with pytest.raises(RuntimeError, match=r"floor\.c: .*error"):
        floor.compiled()
    assert len(list((tmp_path / "build").iterdir())) == 2


# ---- the redis-py twin

FIELDS = (
    "symbol",
    "order_type",
    "order_status",
    "execution_status",
    "order_price",
    "order_quantity",
    "swap",
    "commission",
)
N_ORDERS = 4_321  # two full batches and a part of one


def test_the_twin_reads_back_every_order(bundled_server: Server) -> None:
    symbols, types = ("EURUSD", "XAUUSD", "BTCUSD.x"), ("BUY", "SELL")
    keys = [f"user_holdings:{{live:{number // 5}}}:{number}" for number in range(N_ORDERS)]
    hashes = [
        {
            "symbol": symbols[number * 7 % 3],
            "order_type": types[number % 2],
            "order_status": "OPEN",
            "execution_status": "EXECUTED",
            "order_price": f"{1 + number / 1000:.5f}",
            "order_quantity": f"{number % 300 / 100:.2f}",
            "swap": f"{-number / 100:.2f}",
            "commission": "7",
            "created_at": "2026-01-05T09:00:00Z",
        }
        for number in range(N_ORDERS)
    ]
    with bundled_server.client() as client:
        pipe = client.pipeline(transaction=False)
        for key, pairs in zip(keys, hashes, strict=True):
            pipe.hset(key, mapping=pairs)
        pipe.execute()
        orders = redispy.read_orders(client, keys, FIELDS)
    assert len(orders.rows) == N_ORDERS
    for name in FIELDS[:4]:
        assert sorted(orders.words[name]) == sorted({pairs[name] for pairs in hashes})
        assert [orders.words[name][code] for code in orders.rows[name]] == [pairs[name] for pairs in hashes]
    for name in FIELDS[4:]:
        assert orders.rows[name].tolist() == [float(pairs[name]) for pairs in hashes]


def test_the_twin_knows_what_it_could_not_read(bundled_server: Server) -> None:
    with bundled_server.client() as client:
        client.hset("partly", mapping={"symbol": "EURUSD", "order_price": "1.5", "swap": "much"})
        client.set("no hash", "1")
        client.hset("whole", mapping=dict(zip(FIELDS, ("EURUSD", "BUY", "OPEN", "EXECUTED", 2, 3, 4, 5), strict=True)))
        orders = redispy.read_orders(client, ["partly", "not there", "no hash", "whole"], FIELDS)
        assert redispy.read_orders(client, [], FIELDS).rows.shape == (0,)
    assert orders.rows["symbol"].tolist() == [0, -1, -1, 0]
    assert orders.words["order_type"] == ["BUY"] and orders.rows["order_type"].tolist() == [-1, -1, -1, 0]
    assert np.array_equal(orders.rows["order_price"], [1.5, math.nan, math.nan, 2.0], equal_nan=True)
    assert np.array_equal(orders.rows["swap"], [math.nan, math.nan, math.nan, 4.0], equal_nan=True)


def portfolios(count: int) -> tuple[list[str], list[str], dict[str, np.ndarray]]:
    random = np.random.default_rng(3)
    tags = [f"live:{number}" for number in range(count)]
    keys = [f"user_portfolio:{{{tag}}}" for tag in tags]
    return keys, tags, {name: random.normal(0.0, 1e5, count) for name in redispy.FIGURE_FIELDS}


def test_the_twin_writes_and_announces_every_portfolio(bundled_server: Server) -> None:
    keys, tags, figures = portfolios(2_345)
    figures["equity"][:3] = 1234.5, -0.125, 1e12
    with bundled_server.client() as client, client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("portfolio_updates")
        assert listener.get_message(timeout=10.0) is None  # the subscription itself
        assert redispy.write_portfolios(client, keys, tags, figures, 1_700_000_000_123) == 0
        assert [client.hget(key, "equity") for key in keys[:3]] == [b"1234.50", b"-0.12", b"1000000000000.00"]
        for row, key in enumerate(keys):
            wanted = {name.encode(): b"%.2f" % figures[name][row] for name in redispy.FIGURE_FIELDS}
            assert client.hgetall(key) == wanted | {b"ts": b"1700000000123", b"valued_ts": b"1700000000123"}
        assert client.dbsize() == len(keys)
        heard = islice(iter(lambda: listener.get_message(timeout=10.0), None), len(tags))
        assert [message["data"] for message in heard] == [tag.encode() for tag in tags]
        assert listener.get_message() is None


def test_the_twin_counts_what_the_server_refused(bundled_server: Server) -> None:
    keys, tags, figures = portfolios(2_500)
    with bundled_server.client() as client:
        for row in (0, 999, 1_000, 2_499):
            client.set(keys[row], "no hash")
        assert redispy.write_portfolios(client, keys, tags, figures, 1) == 4
        assert client.hget(keys[2_498], "ts") == b"1"
        with pytest.raises(ValueError, match="zip"):
            redispy.write_portfolios(client, keys, tags[:-1], figures, 1)
