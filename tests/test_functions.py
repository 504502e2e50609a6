"""The server-side functions: each does all of its change or nothing, in one slot, whatever stands in its keys."""

import json
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import hiredis
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copyrisk.embedded import EmbeddedServer
from copyrisk.errors import StoreError
from copyrisk.identifiers import Account, parse_account
from copyrisk.store import library
from copyrisk.store.functions import (
    AccountRead,
    Change,
    change_request,
    claim_request,
    fill_request,
    hold_request,
    note_request,
    parse_read,
    put_request,
    read_request,
    refused,
)
from copyrisk.store.pipe import Pipe
from tests.backoffice import BackOffice
from tests.conftest import Server
from tests.trading import Desk, decoded, dump, until

LIVE = parse_account("live:1")
OPEN = {"order_id": "O1", "symbol": "EURUSD", "order_status": "OPEN", "execution_status": "EXECUTED"}
OWN = ("ledger", "order:O1", "answer:K", "audit", "outbox")


class Shop:
    """A server with the functions, and an account whose changes are written by hand."""

    def __init__(self, client: Any) -> None:
        self.client, self.office, self.pipe = client, BackOffice(client), Pipe(client)
        library.load(client)

    def call(self, request: bytes) -> Any:
        (reply,) = self.pipe.exchange([request])
        return reply

    def read(self, order_id: str = "O1", key: str = "K", account: Account = LIVE) -> AccountRead:
        return parse_read(account, self.call(read_request(account, order_id, key)))


def a_change(read: AccountRead, **chosen: Any) -> Change:
    usual: dict[str, Any] = {
        "order_id": "O1",
        "deadline_ms": read.time_ms + 60_000,
        "version": 7,
        "balance": "10050.00",
        "reserved_usd": "0.00",
        "booked_usd": "12.50",
        "order": OPEN,
        "absent": ("stop_loss",),
        "record": "{}",
        "record_keep_ms": None,
        "answer_key": "K",
        "answer": "answered",
        "answer_keep_ms": 60_000,
        "audit": "seen",
        "follows": {"version": 7},
    }
    return Change(read=read, **{**usual, **chosen})


@pytest.fixture
def shop(redis_server: Any) -> Iterator[Shop]:
    made = Shop(redis_server.client())
    made.office.account("live:1")
    yield made
    made.client.connection_pool.disconnect()


# ---- loading


def test_the_library_is_loaded_once_and_again_when_it_is_gone(redis_server: Any) -> None:
    client = redis_server.client()
    client.execute_command("FUNCTION", "FLUSH")
    pipe = Pipe(client)
    (reply,) = pipe.exchange([read_request(LIVE, "O1", "K")])
    missing = refused(reply)
    assert isinstance(missing, StoreError)
    assert missing.code == "functions_missing"
    for _ in range(2):
        library.load(client)
    (there,) = client.execute_command("FUNCTION", "LIST")
    assert library.LIBRARY.encode() in library.flattened(there)


def test_a_library_of_another_version_stays_beside_ours_and_an_altered_one_is_put_right(redis_server: Any) -> None:
    client = redis_server.client()
    other = "#!lua name=copyrisk_v0\nredis.register_function('copyrisk_read_v0', function() return 1 end)"
    client.execute_command("FUNCTION", "LOAD", "REPLACE", other)
    library.load(client)
    altered = library.library().replace("'late'", "'done'")
    client.execute_command("FUNCTION", "LOAD", "REPLACE", altered)
    library.load(client)
    found = library.flattened(client.execute_command("FUNCTION", "LIST", "WITHCODE"))
    assert library.library().encode() in found
    assert altered.encode() not in found
    assert client.execute_command("FCALL", "copyrisk_read_v0", 0) == 1
    client.execute_command("FUNCTION", "DELETE", "copyrisk_v0")


# ---- reading


def test_nothing_is_read_as_nothing(shop: Shop) -> None:
    read = shop.read(account=parse_account("demo:none"))
    assert (read.version, read.reserved_usd, read.outbox_count, read.record, read.answer) == ("", "", 0, "", "")
    assert (read.config, read.order_ids, read.order_rows, read.order) == ({}, [], [], {})
    assert abs(read.time_ms - time.time() * 1000) < 5_000


def test_an_account_is_read_whole(shop: Shop) -> None:
    shop.office.order("live:1", "O1", stop_loss="1.08")
    shop.office.order("live:1", "O2", symbol="XAUUSD")
    shop.client.hset("copyrisk:{live:1}:ledger", mapping={"version": "5", "reserved_usd": "1.50"})
    shop.client.set("copyrisk:{live:1}:order:O1", "record")
    shop.client.set("copyrisk:{live:1}:answer:K", "answer")
    shop.client.xadd("copyrisk:{live:1}:outbox", {"entry": "x"})
    read = shop.read()
    assert (read.version, read.reserved_usd, read.outbox_count, read.record, read.answer) == (
        *("5", "1.50", 1, "record", "answer"),
    )
    assert read.config["wallet_balance"] == "10000"
    assert read.order["stop_loss"] == "1.08"
    by_id = dict(zip(read.order_ids, read.order_rows, strict=True))
    assert (by_id[b"O1"][0], by_id[b"O2"][0]) == (b"EURUSD", b"XAUUSD")


def test_reading_writes_nothing_and_serves_where_nothing_may_be_written(shop: Shop) -> None:
    shop.office.order("live:1", "O1")
    before = dump(shop.client)
    shop.read()
    assert dump(shop.client) == before
    shop.client.config_set("maxmemory", 1)
    try:
        assert shop.read().order["order_id"] == "O1"
    finally:
        shop.client.config_set("maxmemory", 0)


def test_an_account_with_more_orders_than_can_be_read_at_once_is_refused(shop: Shop) -> None:
    shop.client.sadd("user_orders_index:{live:1}", *range(5_001))
    failure = refused(shop.call(read_request(LIVE, "O1", "K")))
    assert failure is not None
    assert "5001 orders" in str(failure)


# ---- changing


def test_a_change_is_applied_whole(shop: Shop) -> None:
    shop.office.order("live:1", "O1", stop_loss="1.08", foreign="stays")
    reply = shop.call(change_request(a_change(shop.read())))
    assert reply[0] == b"done"
    assert shop.client.hget("user:{live:1}:config", "wallet_balance") == b"10050.00"
    order = decoded(shop.client.hgetall("user_holdings:{live:1}:O1"))
    assert order.items() >= OPEN.items()
    assert "stop_loss" not in order
    assert order["foreign"] == "stays"
    assert decoded(shop.client.hgetall("copyrisk:{live:1}:ledger")) == {
        "version": "7",
        "reserved_usd": "0.00",
        "booked_usd": "12.50",
    }
    assert shop.client.get("copyrisk:{live:1}:order:O1") == b"{}"
    assert shop.client.ttl("copyrisk:{live:1}:order:O1") == -1
    assert shop.client.get("copyrisk:{live:1}:answer:K") == b"answered"
    assert 0 < shop.client.pttl("copyrisk:{live:1}:answer:K") <= 60_000
    assert shop.client.xrange("copyrisk:{live:1}:outbox") == [(reply[1], {b"entry": b'{"version":7}'})]
    assert [said for _, said in shop.client.xrange("copyrisk:{live:1}:audit")] == [{b"entry": b"seen"}]


def test_a_finished_order_leaves_only_its_record(shop: Shop) -> None:
    shop.office.order("live:1", "O1")
    change = a_change(shop.read(), order={}, record_keep_ms=50_000, balance="", answer_key="", answer="")
    assert shop.call(change_request(change))[0] == b"done"
    assert shop.client.hget("user:{live:1}:config", "wallet_balance") == b"10000"
    assert not shop.client.exists("user_holdings:{live:1}:O1", "user_orders_index:{live:1}")
    assert not shop.client.keys("copyrisk:{live:1}:answer:*")
    assert 0 < shop.client.pttl("copyrisk:{live:1}:order:O1") <= 50_000


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("copyrisk:{live:1}:ledger", "version", "1"),
        ("user:{live:1}:config", "wallet_balance", "10000.00"),
        ("user:{live:1}:config", "leverage", "200"),
        ("user:{live:1}:config", "group", "VIP"),
        ("user_holdings:{live:1}:O1", "order_status", "CLOSED"),
        ("user_holdings:{live:1}:O1", "execution_status", "QUEUED"),
        ("user_orders_index:{live:1}", "", "O2"),
    ],
)
def test_what_is_no_longer_as_it_was_read_is_not_changed(shop: Shop, key: str, field: str, value: str) -> None:
    shop.office.order("live:1", "O1")
    change = change_request(a_change(shop.read()))
    if field:
        shop.client.hset(key, field, value)
    else:
        shop.client.sadd(key, value)
    before = dump(shop.client)
    assert shop.call(change) == [b"changed"]
    assert dump(shop.client) == before


def test_a_change_after_its_deadline_by_the_servers_clock_is_not_applied(shop: Shop) -> None:
    read = shop.read()
    before = dump(shop.client)
    assert shop.call(change_request(a_change(read, deadline_ms=read.time_ms - 1))) == [b"late"]
    assert dump(shop.client) == before
    until(lambda: shop.read().time_ms > read.time_ms + 2)
    assert shop.call(change_request(a_change(read, deadline_ms=read.time_ms + 2))) == [b"late"]
    assert dump(shop.client) == before


def test_a_command_that_was_answered_changes_nothing_again(shop: Shop) -> None:
    read = shop.read()
    assert shop.call(change_request(a_change(read)))[0] == b"done"
    before = dump(shop.client)
    for again in (read, shop.read()):
        assert shop.call(change_request(a_change(again, answer="another"))) == [b"repeated", b"answered"]
    assert shop.call(note_request(LIVE, "K", "refused", 1_000, "seen")) == [b"repeated", b"answered"]
    assert dump(shop.client) == before


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("kind", ["string", "set"])
def test_a_key_of_the_wrong_type_never_leaves_half_a_change(shop: Shop, name: str, kind: str) -> None:
    shop.office.order("live:1", "O1")
    change = change_request(a_change(shop.read()))
    key = f"copyrisk:{{live:1}}:{name}"
    shop.client.delete(key)
    if kind == "set":
        shop.client.sadd(key, "x")
    else:
        shop.client.set(key, "x")
    before = dump(shop.client)
    reply = shop.call(change)
    if not isinstance(reply, Exception) and reply[0] == b"done":
        assert name == "order:O1"  # the record is written anew, whatever stood there
        return
    assert dump(shop.client) == before


@pytest.mark.parametrize(
    "key",
    ["user:{live:1}:config", "user_orders_index:{live:1}", "user_holdings:{live:1}:O1", "copyrisk:{live:1}:ledger"],
)
def test_a_contract_key_of_the_wrong_type_is_an_error_and_changes_nothing(shop: Shop, key: str) -> None:
    shop.office.order("live:1", "O1")
    change = change_request(a_change(shop.read()))
    shop.client.delete(key)
    shop.client.set(key, "x")
    before = dump(shop.client)
    for request in (change, read_request(LIVE, "O1", "K")):
        failure = refused(shop.call(request))
        assert failure is not None
        assert failure.code != "functions_missing"
    assert dump(shop.client) == before


def test_a_full_server_refuses_a_change_whole(shop: Shop) -> None:
    change = change_request(a_change(shop.read()))
    before = dump(shop.client)
    shop.client.config_set("maxmemory", 1)
    try:
        assert refused(shop.call(change)) is not None
    finally:
        shop.client.config_set("maxmemory", 0)
    assert dump(shop.client) == before
    assert shop.call(change)[0] == b"done"


def test_a_note_is_kept_once_and_an_empty_one_only_audited(shop: Shop) -> None:
    assert shop.call(note_request(LIVE, "K", "refused", 50_000, "seen")) == [b"done"]
    assert shop.call(note_request(LIVE, "K", "another", 50_000, "seen")) == [b"repeated", b"refused"]
    assert shop.call(note_request(LIVE, "-", "", 50_000, "also")) == [b"done"]
    assert shop.client.xlen("copyrisk:{live:1}:audit") == 2
    assert 0 < shop.client.pttl("copyrisk:{live:1}:answer:K") <= 50_000
    assert not shop.client.exists("copyrisk:{live:1}:answer:-")


@pytest.mark.parametrize("name", ["answer:K", "audit"])
def test_a_note_is_never_kept_by_half(shop: Shop, name: str) -> None:
    shop.client.sadd(f"copyrisk:{{live:1}}:{name}", "x")
    before = dump(shop.client)
    assert refused(shop.call(note_request(LIVE, "K", "refused", 50_000, "seen"))) is not None
    assert dump(shop.client) == before


# ---- claims, and what lies in other slots


def test_an_order_id_is_claimed_by_one_account(shop: Shop) -> None:
    other = parse_account("demo:1")
    assert shop.call(claim_request(LIVE, "O1")) == b"claimed"
    assert shop.call(claim_request(LIVE, "O1")) == b"own"
    assert shop.call(claim_request(other, "O1")) == b"other"
    assert 0 < shop.client.pttl("order_data:O1") <= 60_000
    shop.client.hset("order_data:O2", mapping={"symbol": "EURUSD"})  # whose it is, it does not say
    assert shop.call(claim_request(LIVE, "O2")) == b"other"


def test_a_claim_that_is_made_again_holds_as_long_as_a_new_one(shop: Shop) -> None:
    shop.call(claim_request(LIVE, "O1"))
    shop.client.pexpire("order_data:O1", 500)  # the first claim is nearly over; a change may rest on the second
    assert shop.call(claim_request(LIVE, "O1")) == b"own"
    assert shop.client.pttl("order_data:O1") > 2_000


def test_a_claim_shortens_nothing_of_an_order(shop: Shop) -> None:
    shop.call(put_request("order_data:O1", 1, {"user_type": "live", "user_id": "1"}, (), None))
    shop.call(put_request("order_data:O2", 1, {"user_type": "live", "user_id": "1"}, (), 500_000))
    for order_id in ("O1", "O2"):
        assert shop.call(claim_request(LIVE, order_id)) == b"own"
    assert shop.client.ttl("order_data:O1") == -1
    assert shop.client.pttl("order_data:O2") > 400_000


def test_an_order_keeps_the_claimed_key_for_good_and_a_finished_one_for_a_while(shop: Shop) -> None:
    shop.call(claim_request(LIVE, "O1"))
    assert shop.call(put_request("order_data:O1", 5, {"order_id": "O1"}, (), None)) == 1
    assert shop.client.ttl("order_data:O1") == -1
    assert shop.call(put_request("order_data:O1", 6, {"order_id": "O1"}, (), 50_000)) == 1
    assert 0 < shop.client.pttl("order_data:O1") <= 50_000


_PUTS = st.lists(
    st.tuples(st.integers(1, 6), st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"))), min_size=1, max_size=8
)
_RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(_PUTS)
@_RELAXED
def test_puts_in_any_order_leave_the_latest_version(shop: Shop, puts: list[tuple[int, dict[str, str]]]) -> None:
    shop.client.delete("order_data:O1")
    expected: dict[str, str] = {}
    latest = 0
    for version, said in puts:
        absent = [name for name in "abc" if name not in said]
        applied = shop.call(put_request("order_data:O1", version, said, absent, None))
        assert applied == int(version > latest)
        if version > latest:
            latest, expected = version, said
    assert decoded(shop.client.hgetall("order_data:O1")) == {**expected, "copyrisk_version": str(latest)}


@given(st.lists(st.tuples(st.sampled_from(["live:1", "live:2"]), st.integers(1, 6), st.booleans()), max_size=12))
@_RELAXED
def test_holders_in_any_order_are_as_of_the_latest_version(shop: Shop, holds: list[tuple[str, int, bool]]) -> None:
    shop.client.flushdb()
    latest: dict[str, tuple[int, bool]] = {}
    for account, version, is_held in holds:
        shop.call(hold_request("EURUSD", {parse_account(account): version}, holds=is_held))
        if version > latest.get(account, (0, False))[0]:
            latest[account] = (version, is_held)
    held = {account.encode() for account, (_, is_held) in latest.items() if is_held}
    assert shop.client.smembers("symbol_holders:EURUSD:live") == held


def test_versions_as_long_as_the_servers_clock_are_told_apart(shop: Shop) -> None:
    now = int(time.time() * 1000)
    assert shop.call(put_request("order_data:O1", now + 1, {"a": "1"}, (), None)) == 1
    assert shop.call(put_request("order_data:O1", now, {"a": "2"}, (), None)) == 0
    assert shop.call(put_request("order_data:O1", now + 2, {"a": "3"}, (), None)) == 1


def test_a_hash_is_filled_only_where_there_is_none(shop: Shop) -> None:
    assert shop.call(fill_request("user:{live:1}:config", {"wallet_balance": "1"})) == 0
    assert shop.call(fill_request("user:{live:2}:config", {"wallet_balance": "1"})) == 1
    assert shop.client.hget("user:{live:1}:config", "wallet_balance") == b"10000"


# ---- clusters

NEEDS_DEBIAN = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server is installed")


def _free_port() -> int:
    """A port that is free, and the one of the cluster's own talk, 10,000 above it."""
    while True:
        with socket.socket() as found, socket.socket() as above:
            found.bind(("127.0.0.1", 0))
            port: int = found.getsockname()[1]
            if port > 55_000:
                continue
            try:
                above.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


@contextmanager
def _cluster(slots: Sequence[tuple[int, int]]) -> Iterator[list[Any]]:
    """Primaries that own these slots; a client for each."""
    with ExitStack() as stack:
        ports = [_free_port() for _ in slots]
        clients: list[Any] = []
        for epoch, (port, (first, last)) in enumerate(zip(ports, slots, strict=True), 1):
            words = ("--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes")
            server = EmbeddedServer.start(shutil.which("redis-server"), extra_args=words)
            stack.enter_context(server)
            client = stack.enter_context(redis.Redis(port=port))
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            clients.append(client)
        for port in ports[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        for client in clients:
            until(partial(_is_whole, client, len(slots)), 20)
        yield clients


def _is_whole(client: Any, nodes: int) -> bool:
    said = client.execute_command("CLUSTER INFO")
    return bool(said["cluster_state"] == "ok" and said["cluster_known_nodes"] == str(nodes))


def _requests(account: Account, order_id: str) -> list[bytes]:
    """A call of every function but the change."""
    return [
        read_request(account, order_id, "K"),
        claim_request(account, order_id),
        note_request(account, "N", "refused", 1_000, "seen"),
        put_request(f"order_data:{order_id}", 3, {"order_id": order_id}, ("reason",), None),
        put_request(f"order_triggers:{order_id}", 3, {"symbol": "EURUSD"}, (), 1_000),
        hold_request("EURUSD", {account: 3}, holds=True),
        fill_request(f"user:{{{account}}}:config", {"wallet_balance": "1"}),
        fill_request("groups:{Standard}:EURUSD", {"type": "1"}),
    ]


@pytest.fixture(scope="module")
def one_of_a_cluster() -> Iterator[Any]:
    with _cluster([(0, 16_383)]) as (client,):
        yield client


@NEEDS_DEBIAN
def test_kf31_no_function_leaves_its_slot(one_of_a_cluster: Any) -> None:
    shop = Shop(one_of_a_cluster)
    for account in map(parse_account, ("live:1", "demo:2", "strategy_provider:M", "copy_follower:F")):
        shop.office.account(str(account))
        shop.office.order(str(account), "O1")
        for request in _requests(account, f"O{account.id}"):
            assert refused(shop.call(request)) is None
        read = shop.read(account=account)
        assert shop.call(change_request(a_change(read)))[0] == b"done"
        finish = a_change(shop.read(account=account, key="L"), order={}, answer_key="L")
        assert shop.call(change_request(finish))[0] == b"done"


@NEEDS_DEBIAN
def test_kf31_workers_say_that_a_server_of_a_cluster_is_not_for_them(one_of_a_cluster: Any) -> None:
    client = one_of_a_cluster
    client.flushall()
    port = client.connection_pool.connection_kwargs["port"]
    desk = Desk(Server(f"redis://127.0.0.1:{port}/0", 0))
    desk.account("live:1")
    with pytest.raises(StoreError) as raised:
        desk.open("live:1", "A")
    assert raised.value.code == "server_is_cluster"
    assert desk.client.xlen("copyrisk:commands") == 1


@NEEDS_DEBIAN
@pytest.mark.slow
def test_kf31_accounts_in_different_slots_of_three_servers() -> None:
    with _cluster([(0, 5_460), (5_461, 10_922), (10_923, 16_383)]) as clients:
        for client in clients:
            library.load(client)
        port = clients[0].connection_pool.connection_kwargs["port"]
        cluster: Any = redis.RedisCluster(host="127.0.0.1", port=port)

        def call(request: bytes) -> Any:
            reader = hiredis.Reader()
            reader.feed(request)
            name, *words = reader.gets()
            return cluster.execute_command(
                name.decode(), *words, target_nodes=cluster.get_node_from_key(words[2].decode())
            )

        served = set()
        for number in range(30):
            account = parse_account(f"live:{number}")
            served.add(cluster.get_node_from_key(f"user:{{{account}}}:config").port)
            for request in _requests(account, f"O{number}"):
                call(request)
            read = parse_read(account, call(read_request(account, "O1", "K")))
            assert call(change_request(a_change(read)))[0] == b"done"
            assert json.loads(cluster.xrange(f"copyrisk:{{{account}}}:outbox")[0][1][b"entry"]) == {"version": 7}
        assert len(served) == 3
        assert cluster.scard("symbol_holders:EURUSD:live") == 30
        cluster.close()
