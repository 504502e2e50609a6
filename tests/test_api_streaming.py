"""Server-sent events: real servers, real sockets, readers that are slow, leave, come back, or may not stay."""

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import identifiers, signing
from copyrisk.api import callers, replaying, streaming, subscriber
from copyrisk.api.feeds import Feeds
from copyrisk.api.freshness import LIVE
from copyrisk.api.happenings import (
    EVENT_TOPICS,
    START,
    TRAIL_TOPICS,
    Happening,
    Place,
    Position,
    Topic,
    TrailReader,
    from_event,
    parse_position,
)
from copyrisk.api.streaming import Pace
from copyrisk.api.subscriber import Subscriber, queued
from copyrisk.api.watching import READ_AT_ONCE, portfolio_words
from copyrisk.audit import ORIGIN, AuditKind, Entry, chain, drafts_of
from copyrisk.embedded import EmbeddedServer
from copyrisk.settings import load_settings
from copyrisk.signing import MasterSecret
from copyrisk.store import library
from copyrisk.store.api_keys import KeyRecord, add_record, put_record
from copyrisk.store.pipe import Pipe
from copyrisk.store.trail import Trail
from copyrisk.vitals import Vitals
from tests.api_house import ALL_SCOPES, MASTER_SECRET, Caller, House, refusal, served
from tests.backoffice import now_ms
from tests.conftest import Server
from tests.trading import Desk, until

EVENTS = "copyrisk:events"
LIMIT_S = 20.0
FIGURES = ("equity_usd", "margin_level_pct", "used_margin_usd", "open_pnl_usd")


class Said(NamedTuple):
    event: str
    id: str
    data: Any


class Stream:
    """A reader of `GET /api/stream`."""

    def __init__(self, caller: Caller, query: str, *, last: str = "", buffer: int = 0) -> None:
        path = f"/api/stream?{query}"
        where = httpx.URL(caller.house.url)
        self._connection = http.client.HTTPConnection(where.host, where.port, timeout=LIMIT_S)
        if buffer:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            sock.settimeout(LIMIT_S)
            sock.connect((where.host, where.port))
            self._connection.sock = sock
        headers = caller.headers("GET", path) | ({"Last-Event-ID": last} if last else {})
        self._connection.request("GET", path, headers=headers)
        self.answer = self._connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.headers["content-type"].startswith("text/event-stream")
        self.last, self.key_id = last, caller.key_id

    def next(self, *events: str) -> Said:
        """The next event of these (all of them without any)."""
        while True:
            said = self._next()
            self.last = said.id or self.last
            if not events or said.event in events:
                return said

    def until(self, event: str, *, of: str) -> list[Said]:
        """What comes of one kind until one of another does, that one last."""
        found = [self.next(event, of)]
        while found[-1].event != of:
            found.append(self.next(event, of))
        return found

    def _next(self) -> Said:
        fields: dict[str, str] = {}
        while True:
            line = self.answer.readline().decode()
            if not line:
                raise EOFError
            if line == "\n" and "data" in fields:
                return Said(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
            name, _, value = line.rstrip("\n").partition(": ")
            fields[name] = value

    def close(self) -> None:
        self.answer.close()
        self._connection.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def readers(house: House) -> int:
    return len(house.api.feeds._all)


def orders_of(said: Said) -> str:
    return str(said.data["order_id"])


def announce(desk: Desk, account: str, order_id: str, **more: str) -> dict[str, str]:
    """An event as workers write it."""
    user_type, _, user_id = account.partition(":")
    order = {"order_id": order_id, "symbol": "EURUSD", "order_status": "OPEN", "order_quantity": "1.00", **more}
    return {
        "event_id": f"{account}:{order_id}",
        "event": "done",
        "type": "open",
        "user_type": user_type,
        "user_id": user_id,
        "order_id": order_id,
        "idempotency_key": "",
        "command_id": "1-0",
        "code": "ok",
        "message": "",
        "version": "7",
        "ts": "1700",
        "order": json.dumps(order, separators=(",", ":")),
    }


def publish(desk: Desk, *events: dict[str, str]) -> None:
    pipeline = desk.client.pipeline(transaction=False)
    for event in events:
        pipeline.xadd(EVENTS, event)
    pipeline.execute()


def portfolio(desk: Desk, account: str, **more: object) -> None:
    said = dict.fromkeys(("equity", "balance", "free_margin", "used_margin", "open_pnl", "total_pl"), "100.25")
    said |= {"used_margin_executed": "100.25", "used_margin_all": "100.25", "margin_level": "100.00"}
    said |= {"calc_status": "ok", "degraded_fields": "", "ts": "1700", "valued_ts": "1700"}
    given = {name: str(value) for name, value in (said | more).items()}
    desk.client.hset(f"user_portfolio:{{{account}}}", mapping=given)


def tick(desk: Desk, age_ms: int = 0) -> None:
    desk.client.hset("copyrisk:tick", mapping={"ts": now_ms() - age_ms, "tick": 1, "period_ms": 60_000})


def trail_of(desk: Desk) -> Trail:
    client = desk.new_client()
    library.load(client)
    return Trail(Pipe(client), writer="test")


@pytest.fixture(scope="module")
def _desk_and_house() -> Iterator[tuple[Desk, House]]:
    """Kept for all tests: what one of them leaves in the trail is nothing to those who follow it later."""
    with EmbeddedServer.start() as running, pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "PACE", Pace(heartbeat_s=0.05, recheck_s=0.05))
        patch.setattr(callers, "RECORD_MS", 50)
        desk = Desk(Server(running.url, running.pid))
        with served(desk, api__stream_period_ms=50) as house:
            yield desk, house
        desk.close()


@pytest.fixture
def house(_desk_and_house: tuple[Desk, House]) -> House:
    desk, house = _desk_and_house
    desk.client.delete(EVENTS, "copyrisk:tick", *desk.client.keys("user_portfolio:*"))
    until(lambda: readers(house) == 0)
    return house


@pytest.fixture
def desk(_desk_and_house: tuple[Desk, House]) -> Desk:
    return _desk_and_house[0]


# ---- orders, with real workers


def test_orders_come_as_they_are_stored_and_again_after_a_pause(redis_server: Any) -> None:
    desk = Desk(redis_server)
    desk.account("live:1")
    desk.account("live:2")
    with served(desk) as house:
        caller = house.caller(accounts=("live:1",))
        with Stream(caller, "topics=orders") as stream:
            begin = stream.next()
            assert (begin.event, begin.data) == ("begin", {"topics": ["orders"], "accounts": ["live:1"]})
            desk.open("live:2", "O1")
            desk.open("live:1", "O2")
            said = stream.next("orders")
            assert (said.data["account"], said.data["order_id"], said.data["code"]) == ("live:1", "O2", "ok")
            assert said.data["order"] == json.loads(desk.events(order_id="O2")[0]["order"])
            assert said.data["version"] == desk.version("live:1")
        desk.open("live:1", "O3")
        desk.open("live:2", "O4")
        with Stream(caller, "topics=orders", last=stream.last) as stream:
            assert orders_of(stream.next("orders")) == "O3"
            refused = desk.open("live:1", "O5", lots="0.001")
            said = stream.next("orders")
            assert (said.data["event"], said.data["code"], said.data["order"]) == ("refused", refused["code"], None)
        until(lambda: readers(house) == 0)
    desk.close()


def test_nothing_is_missed_and_nothing_comes_twice_however_often_a_reader_leaves(desk: Desk, house: House) -> None:
    caller, found, last = house.caller(), [], ""
    names = [f"O{i}" for i in range(300)]
    for start in range(0, 300, 30):
        with Stream(caller, "topics=orders", last=last) as stream:
            if not last:
                stream.next("begin")
            publish(desk, *(announce(desk, "live:1", name) for name in names[start : start + 30]))
            wanted = min(start + 17, 300) if start < 270 else 300  # the rest is left behind
            while len(found) < wanted:
                found.append(orders_of(stream.next("orders")))
            last = stream.last
    assert found == names


def test_copies_come_together_and_name_their_master(desk: Desk, house: House) -> None:
    with Stream(house.caller(accounts=("copy_follower:*",)), "topics=replications") as stream:
        stream.next("begin")
        publish(desk, announce(desk, "live:1", "X"), announce(desk, "copy_follower:9", "Y"))
        publish(desk, *(announce(desk, f"copy_follower:{i}", f"C{i}", master_order_id="M1") for i in range(250)))
        found: list[Any] = []
        while len(found) < 250:
            said = stream.next("replications")
            assert len(said.data["copies"]) <= 100
            found += said.data["copies"]
    assert [copy["order_id"] for copy in found] == [f"C{i}" for i in range(250)]
    assert found[7] == {
        "account": "copy_follower:7",
        "event_id": "copy_follower:7:C7",
        "event": "done",
        "type": "open",
        "order_id": "C7",
        "code": "ok",
        "symbol": "EURUSD",
        "order_type": None,
        "order_status": "OPEN",
        "order_quantity": "1.00",
        "order_price": None,
        "master_order_id": "M1",
        "ts_ms": 1700,
    }


# ---- the audit trail

FOLLOWED = [f"copy_follower:{i}" for i in range(150)]
ENTRIES = [
    Entry(AuditKind.WARNING, "live:1", "live:1:5", "level_at_or_below_warning", {"figures": {}, "quotes": {"A": 1}}),
    Entry(AuditKind.LIQUIDATION, "live:1", "live-1-5-1", "level_at_or_below_critical", {"plan": [{}] * 130}),
    Entry(AuditKind.LIQUIDATION, "live:1", "live-1-5-1", "done", {"results": []}),
    Entry(AuditKind.LIQUIDATION, "live:2", "live-2-5-1", "done", {"results": []}),
    Entry(AuditKind.BRAKE, reason="too_many_accounts_turned", said={"held": 7}),
    Entry(AuditKind.OPERATOR, cause="follow", said={"accounts": ["live:1"]}),
    Entry(AuditKind.KILL, "live:1", "operator:bob", "done"),
    Entry(AuditKind.KILL, "live:1", "symbol:EURUSD", "kill_switch"),
    Entry(
        AuditKind.CASCADE, "strategy_provider:M", "c1", "cascade_begins", {"accounts": FOLLOWED, "figures": {"a": 1}}
    ),
    Entry(AuditKind.CASCADE, "strategy_provider:M", "c1", "cascade_ends", {"failed_followers": {"3": "x", "4": "y"}}),
    Entry(AuditKind.PROTECTION, "live:1", "p1", "balance_below_zero", {"amount_usd": "5.00"}),
    Entry(AuditKind.REPLICATION, "strategy_provider:M", "r1", "decided", {"followers": {"to_be_copied": 3}}),
    Entry(AuditKind.WARNING, "live:9", "last", "level_at_or_below_warning"),
]


def told(stream: Stream) -> list[tuple[str, str, str]]:
    return [(said.event, said.data["cause"], said.data["reason"]) for said in told_whole(stream)]


def told_whole(stream: Stream) -> list[Said]:
    found: list[Said] = []
    while not found or found[-1].data["cause"] != "last":
        found.append(stream.next("breaches", "liquidations", "replications", "gap"))
    return found


def test_entries_of_the_trail_come_under_their_topics(desk: Desk, house: House) -> None:
    trail = trail_of(desk)
    trail.append([Entry(AuditKind.WARNING, "live:1", "before")])
    publish(desk, announce(desk, "live:1", "O1"))
    with Stream(house.caller(), "topics=breaches,liquidations,replications") as stream:
        begin = stream.next("begin")
        trail.append(ENTRIES)
        first = told_whole(stream)
    live = [(said.event, said.data["cause"], said.data["reason"]) for said in first]
    assert live == [
        ("breaches", "live:1:5", "level_at_or_below_warning"),
        ("breaches", "live-1-5-1", "level_at_or_below_critical"),
        ("liquidations", "live-1-5-1", "level_at_or_below_critical"),
        ("liquidations", "live-1-5-1", "done"),
        ("liquidations", "live-2-5-1", "done"),
        ("breaches", "", "too_many_accounts_turned"),
        ("liquidations", "symbol:EURUSD", "kill_switch"),
        ("liquidations", "c1", "cascade_begins"),
        ("liquidations", "c1", "cascade_ends"),
        ("liquidations", "p1", "balance_below_zero"),
        ("replications", "r1", "decided"),
        ("breaches", "last", "level_at_or_below_warning"),
    ]
    with Stream(house.caller(), "topics=breaches,liquidations,replications", last=begin.id) as stream:
        again = told_whole(stream)
    assert again == first
    for number, said in enumerate(again[:-1]):  # wherever a reader is cut off
        is_half = said.data["seq"] == again[number + 1].data["seq"]  # it is told of that entry again
        with Stream(house.caller(), "topics=breaches,liquidations,replications", last=said.id) as stream:
            assert told(stream) == live[number + (not is_half) :]


def test_who_follows_one_of_two_topics_is_told_once(desk: Desk, house: House) -> None:
    trail, caller = trail_of(desk), house.caller()
    trail.append([Entry(AuditKind.WARNING, "live:1", "before")])
    for topic in ("breaches", "liquidations"):
        with Stream(caller, f"topics={topic}") as stream:
            stream.next("begin")
            trail.append([Entry(AuditKind.LIQUIDATION, "live:1", "both", "level_at_or_below_critical")])
            seq = stream.next(topic).data["seq"]
        trail.append([Entry(AuditKind.LIQUIDATION, "live:1", "next", "level_at_or_below_critical")])
        for _ in "ab":
            with Stream(caller, f"topics={topic}", last=stream.last) as later:
                assert later.next(topic, "gap").data["seq"] == seq + 1


def test_who_sees_some_accounts_is_told_of_those_and_of_no_others(desk: Desk, house: House) -> None:
    mine = house.caller(accounts=("live:1", "live:9", "copy_follower:3"))
    trail = trail_of(desk)
    with (
        Stream(mine, "topics=breaches,liquidations,replications") as narrow,
        Stream(house.caller(), "topics=breaches,liquidations&accounts=live:1,copy_follower:3,live:9") as asked,
        Stream(house.caller(accounts=("strategy_provider:*", "live:9")), "topics=liquidations,breaches") as master,
    ):
        for stream in (narrow, asked, master):
            stream.next("begin")
        trail.append(ENTRIES)
        found = []
        while not found or found[-1].data["cause"] != "last":
            found.append(narrow.next("breaches", "liquidations", "replications"))
        assert told(asked) == [(said.event, said.data["cause"], said.data["reason"]) for said in found]
        of_master = [master.next("liquidations").data, master.next("liquidations").data]
    assert {said.data["account"] for said in found} == {"live:1", "live:9", None}
    (cascade,) = [said.data for said in found if said.data["account"] is None]
    assert (cascade["cause"], cascade["said"]) == ("c1", {"accounts": ["copy_follower:3"]})
    plan = next(said.data["said"] for said in found if said.event == "liquidations")
    assert (len(plan["plan"]), plan["cut"]) == (100, {"plan": 130})
    assert found[0].data["said"] == {"figures": {}}, "quotes are in the trail"
    assert of_master[0]["account"] == "strategy_provider:M"
    assert [one["said"] for one in of_master] == [{"figures": {"a": 1}, "accounts": []}, {"failed_followers": {}}]


def test_an_entry_of_several_parts_comes_whole_live_and_later(desk: Desk, house: House) -> None:
    trail = trail_of(desk)
    long = Entry(AuditKind.CASCADE, "strategy_provider:M", "long", "cascade_begins", {"text": "x" * 120_000, "n": 7})
    last = Entry(AuditKind.WARNING, "live:9", "last")
    with Stream(house.caller(), "topics=breaches,liquidations") as stream:
        begin = stream.next("begin")
        trail.append([long, last])
        said = stream.next("liquidations")
        assert (said.data["said"]["n"], len(said.data["said"]["text"])) == (7, 120_000)
        assert told(stream)[-1][1] == "last"
    with Stream(house.caller(), "topics=breaches,liquidations", last=begin.id) as stream:
        assert stream.next("liquidations").data == said.data


def test_who_leaves_amid_the_parts_of_an_entry_is_told_all_of_it_later() -> None:
    feeds = Feeds(load_settings(None, {}, {}), None, None, seen=Vitals())  # type: ignore[arg-type]  # nothing is read
    one = Subscriber("me", {Topic.ORDERS, Topic.LIQUIDATIONS}, None, lambda _: True, sees_all=True)
    one.begin(Position(START, START), Position(START, START))
    feeds.add(one)
    drafts = drafts_of(Entry(AuditKind.CASCADE, "live:1", said={"text": "x" * 60_000}), "test")
    lines, _ = chain(drafts_of(Entry(AuditKind.PROTECTION, "live:1"), "test") + drafts, ORIGIN)
    for seq, line in enumerate(lines, 1):
        feeds.take("copyrisk:{audit}:trail", f"{seq}-0", {"entry": line.decode()})
        feeds.take(EVENTS, f"{seq}-0", announce(None, "live:1", f"O{seq}"))  # type: ignore[arg-type]  # needs none
    text = b""
    while piece := one.take():
        text += piece
    last = len(lines)
    assert last > 3
    assert [said[:2] for said in parsed(text)] == [
        ("liquidations", "1.0-0"),
        *(("orders", f"1.{seq}-0") for seq in range(1, last)),
        ("liquidations", f"{last}.{last - 1}-0"),
        ("orders", f"{last}.{last}-0"),
    ]


def test_a_trail_that_begins_anew_is_a_gap(desk: Desk, house: House) -> None:
    trail = trail_of(desk)
    with Stream(house.caller(), "topics=breaches") as stream:
        stream.next("begin")
        trail.append([Entry(AuditKind.WARNING, "live:1", "a"), Entry(AuditKind.WARNING, "live:1", "b")])
        assert [stream.next("breaches").data["cause"] for _ in "ab"] == ["a", "b"]
        line = desk.client.xrevrange("copyrisk:{audit}:trail", count=1)[0][1][b"entry"]
        desk.client.xadd("copyrisk:{audit}:trail", {"entry": line}, id="900-0")
        assert stream.next("gap", "breaches").data["dropped"] == {"breaches": None}
        assert stream.next("gap", "breaches").event == "breaches"


# ---- what was missed and is gone


def test_what_the_streams_no_longer_have_is_a_gap(desk: Desk, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = house.caller()
    publish(desk, *(announce(desk, "live:1", f"O{i}") for i in range(40)))
    first, last = (desk.client.xrange(EVENTS, count=1), desk.client.xrevrange(EVENTS, count=1))
    begins, ends = (found[0][0].decode() for found in (first, last))
    monkeypatch.setattr(replaying, "REPLAY_LIMIT", 25)
    monkeypatch.setattr(replaying, "_PAGE", 10)
    with Stream(caller, "topics=orders", last="0.0-0") as stream:  # nothing was ever taken away
        found = stream.until("orders", of="gap")
        assert [orders_of(said) for said in found[:-1]] == [f"O{i}" for i in range(30)]
    with Stream(caller, "topics=orders", last=found[-1].data["from_id"]) as stream:
        assert [orders_of(stream.next("orders", "gap")) for _ in range(10)] == [f"O{i}" for i in range(30, 40)]
    desk.client.xtrim(EVENTS, maxlen=20, approximate=False)
    with Stream(caller, "topics=orders") as stream:
        trail, _, now = stream.next("begin").id.partition(".")
    later = f"{int(ends.partition('-')[0]) + 9_999}-0"  # of another server, or from before it lost its data
    for since, topic in (
        *((f"{trail}.{begins}", "orders"), (f"{trail}.0-0", "orders"), (f"{trail}.{later}", "orders")),
        (f"{int(trail) + 1}.{now}", "breaches"),
    ):
        with Stream(caller, "topics=orders,breaches", last=since) as stream:
            assert stream.next("gap", "orders", "breaches").data == {"dropped": {topic: None}, "from_id": since}
    kept = desk.client.xrange(EVENTS, count=1)[0][0].decode()
    with Stream(caller, "topics=orders", last=f"0.{kept}") as stream:
        assert orders_of(stream.next("orders", "gap")) == "O21"


# ---- slow readers


def test_a_slow_reader_is_told_what_it_lost_and_holds_up_nobody(
    desk: Desk, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "QUEUE_LIMIT", 60)
    caller, padding = house.caller(), "x" * 16_000
    names = [f"O{i}" for i in range(600)]
    with Stream(caller, "topics=orders", buffer=4_096) as slow, Stream(caller, "topics=orders") as fast:
        slow.next("begin")
        fast.next("begin")
        for start in range(0, len(names), 30):
            publish(desk, *(announce(desk, "live:1", name, padding=padding) for name in names[start : start + 30]))
            for name in names[start : start + 30]:
                assert orders_of(fast.next("orders", "gap")) == name
        found = slow.until("orders", of="gap")
        publish(desk, announce(desk, "live:1", "last"))
        after = [slow.next("orders")]
        while orders_of(after[-1]) != "last":
            after.append(slow.next("orders"))
    before = len(found) - 1
    dropped = found[-1].data["dropped"]["orders"]
    assert [orders_of(said) for said in found[:-1]] == names[:before]
    assert [orders_of(said) for said in after] == [*names[before + dropped :], "last"]
    with Stream(caller, "topics=orders", last=found[-1].data["from_id"]) as again:
        missing = [orders_of(again.next("orders", "gap")) for _ in range(dropped)]
    assert missing == names[before : before + dropped]


def test_who_takes_nothing_is_let_go(bundled_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(bundled_server)
    monkeypatch.setattr(streaming, "PACE", Pace(stall_s=0.2))
    with served(desk) as house, Stream(house.caller(), "topics=orders", buffer=4_096) as slow:
        slow.next("begin")
        events = [announce(desk, "live:1", f"O{i}", padding="x" * 50_000) for i in range(20)]
        deadline_s = time.monotonic() + LIMIT_S
        while readers(house):
            publish(desk, *events)
            assert time.monotonic() < deadline_s
        with pytest.raises((EOFError, http.client.IncompleteRead, ConnectionError, ValueError)):
            slow.next("end")  # there is none: it would not have taken it


def test_streams_end_when_the_server_does(bundled_server: Any) -> None:
    desk = Desk(bundled_server)
    with served(desk) as house, contextlib.ExitStack() as stack:
        stream, stuck = (stack.enter_context(Stream(house.caller(), "topics=orders", buffer=4_096)) for _ in "ab")
        until(lambda: readers(house) == 2)
        events = [announce(desk, "live:1", f"O{i}", padding="x" * 50_000) for i in range(20)]
        stuck.next("begin")
        (one,) = [one for one in house.api.feeds._all if one.caller == f"key {stuck.key_id}"]
        while len(one._queue) <= len(events):  # its socket takes no more
            publish(desk, *events)
            while orders_of(stream.next("orders")) != "O19":
                pass
        began_s = time.monotonic()
        house.loop.call_soon_threadsafe(house.api.feeds.end)  # as the process does when it is asked to stop
        assert stream.next("end").data == {"code": "server_stopping"}
        with pytest.raises(EOFError):
            stream.next()
        until(lambda: readers(house) == 0)
        assert time.monotonic() - began_s < 5.0
        assert refusal(house.caller().get("/api/stream?topics=orders")) == (503, "server_stopping")
        stuck.close()
    desk.close()


def test_an_outage_is_told_and_what_happened_meanwhile_comes_after_it() -> None:
    with EmbeddedServer.start() as running, contextlib.ExitStack() as stack:
        desk = Desk(Server(running.url, running.pid))
        tick(desk)
        portfolio(desk, "live:1")
        house = stack.enter_context(served(desk, redis__reply_timeout_ms=200, api__stream_period_ms=50))
        stream = stack.enter_context(Stream(house.caller(), "topics=orders,portfolios&accounts=live:1"))
        assert stream.next("portfolios").data["state"] == "known"
        os.kill(running.pid, signal.SIGSTOP)
        try:
            assert stream.next("portfolios").data["state"] == "unavailable"
        finally:
            os.kill(running.pid, signal.SIGCONT)
        publish(desk, announce(desk, "live:1", "O1"))
        found = [stream.next("portfolios", "orders") for _ in range(2)]
        assert {said.data.get("state", "O1") for said in found} == {"known", "O1"}
        desk.close()


def test_silence_is_filled(house: House) -> None:
    with Stream(house.caller(), "topics=orders") as stream:
        stream.next("begin")
        stream.next("status")
        heard = [stream.answer.readline() for _ in range(4)]
    assert heard.count(b": here\n") == 2


# ---- who may be here


def test_a_key_that_is_revoked_or_expires_ends_its_stream(desk: Desk, house: House) -> None:
    caller, master = house.caller(), MasterSecret(MASTER_SECRET.encode())
    pipe, scopes = Pipe(desk.new_client()), ("orders:read",)
    brief = replace(caller, key_id=(key_id := signing.new_key_id()), secret=master.secret_of(key_id))
    add_record(pipe, KeyRecord(key_id, "brief", scopes, ("*",), now_ms(), expires_ms=now_ms() + 600), master)
    with Stream(caller, "topics=orders") as one, Stream(brief, "topics=orders") as other:
        one.next("begin")
        other.next("begin")
        put_record(pipe, KeyRecord(caller.key_id, "test", ALL_SCOPES, ("*",), 1, revoked_ms=now_ms()), master)
        assert one.next("end").data == {"code": "revoked_key"}
        assert other.next("end").data == {"code": "expired_key"}
    until(lambda: readers(house) == 0)


@pytest.mark.parametrize(
    ("query", "scopes", "accounts", "expected"),
    [
        ("", ALL_SCOPES, "*", (422, "missing_topics")),
        ("topics=", ALL_SCOPES, "*", (422, "missing_topics")),
        ("topics=orders,", ALL_SCOPES, "*", (422, "invalid_topics")),
        ("topics=Orders", ALL_SCOPES, "*", (422, "invalid_topics")),
        ("topics=orders&topics=orders", ALL_SCOPES, "*", (422, "invalid_parameter")),
        ("topics=orders&user_id=1", ALL_SCOPES, "*", (422, "unknown_parameter")),
        ("topics=orders&accounts=", ALL_SCOPES, "*", (422, "invalid_account")),
        ("topics=orders&accounts=live", ALL_SCOPES, "*", (422, "invalid_account")),
        ("topics=orders&accounts=live:1}", ALL_SCOPES, "*", (422, "invalid_account_id")),
        ("topics=orders&accounts=real:1", ALL_SCOPES, "*", (422, "invalid_user_type")),
        ("topics=orders&accounts=" + "live:1," * 1_000 + "live:1", ALL_SCOPES, "*", (422, "too_many_accounts")),
        ("topics=portfolios", ALL_SCOPES, "*", (422, "missing_accounts")),
        ("topics=portfolios", ALL_SCOPES, "live:*", (422, "missing_accounts")),
        ("topics=orders&accounts=live:1,live:2", ALL_SCOPES, "live:1", (403, "account_forbidden")),
        ("topics=orders", ("copy:read", "audit:read"), "*", (403, "missing_scope")),
        ("topics=orders,replications", ("orders:read",), "*", (403, "missing_scope")),
        ("topics=summary", ("orders:read",), "*", (403, "missing_scope")),
        ("topics=summary", ALL_SCOPES, "live:*", (403, "account_forbidden")),
        ("topics=summary", ALL_SCOPES, "*", (503, "desk_unavailable")),
    ],
)
def test_what_cannot_be_followed_is_refused(
    house: House, query: str, scopes: tuple[str, ...], accounts: str, expected: tuple[int, str]
) -> None:
    caller = house.caller(scopes=scopes, accounts=(accounts,))
    assert refusal(caller.get(f"/api/stream?{query}" if query else "/api/stream")) == expected
    assert readers(house) == 0


@pytest.mark.parametrize(
    "said", ["x", "1", "1.2", "1.2-", "1.2-x", "-1.2-3", "1.2-3-4", "٣.1-1", "1." + "9" * 25 + "-0", f"0.{1 << 64}-0"]
)
def test_an_id_that_is_none_is_refused(said: str) -> None:
    with pytest.raises(Exception, match="Last-Event-ID") as caught:
        parse_position(said)
    assert caught.value.code == "invalid_last_event_id"  # type: ignore[attr-defined]


def test_no_caller_and_nobody_can_open_streams_without_end(bundled_server: Any) -> None:
    desk = Desk(bundled_server)
    with served(desk, api__streams_limit=22) as house, contextlib.ExitStack() as stack:
        one, other = house.caller(), house.caller()
        for _ in range(20):
            stack.enter_context(Stream(one, "topics=orders"))
        assert refusal(one.get("/api/stream?topics=orders")) == (429, "too_many_streams")
        left = [stack.enter_context(Stream(other, "topics=orders")) for _ in range(2)]
        assert refusal(other.get("/api/stream?topics=orders")) == (503, "too_many_streams")
        left[0].close()
        until(lambda: readers(house) == 21)
        stack.enter_context(Stream(other, "topics=orders"))
        assert house.client().get("/api/stream?topics=orders").status_code == 401


# ---- portfolios


def test_portfolios_are_told_at_first_and_as_they_change(desk: Desk, house: House) -> None:
    tick(desk)
    portfolio(desk, "live:1")
    portfolio(desk, "live:2", calc_status="degraded", degraded_fields="quote_stale:EURUSD,quote_stale:X", ts="1900")
    desk.client.set("user_portfolio:{live:4}", "no hash")
    caller = house.caller()
    with Stream(caller, "topics=portfolios&accounts=live:1,live:2,live:3,live:4") as stream:
        first = {said.data["account"]: said.data for said in (stream.next("portfolios") for _ in range(4))}
        states = {account: (said["state"], said["equity_usd"]) for account, said in first.items()}
        unknown = ("unknown", None)
        assert states == {"live:1": ("known", 100.25), "live:2": unknown, "live:3": ("absent", None), "live:4": unknown}
        assert first["live:2"]["degraded_fields"] == ["quote_stale:EURUSD", "quote_stale:X"]
        assert first["live:4"]["degraded_fields"] == ["unreadable"]
        assert all(first["live:2"][name] is None for name in FIGURES)
        with Stream(caller, "topics=portfolios&accounts=live:1,live:3") as second:
            assert {second.next("portfolios").data["account"] for _ in range(2)} == {"live:1", "live:3"}
            portfolio(desk, "live:3", equity="-3.5")
            for one in (stream, second):
                said = one.next("portfolios").data
                assert (said["account"], said["state"], said["equity_usd"]) == ("live:3", "known", -3.5)
    until(lambda: readers(house) == 0)
    assert not house.api.feeds._watch._who


def test_old_figures_are_never_told_as_those_of_now(desk: Desk, house: House) -> None:
    portfolio(desk, "live:1")
    caller = house.caller()

    def state(stream: Stream, wanted: str) -> Any:
        while True:
            said = stream.next("portfolios").data
            if said["state"] == wanted:
                return said

    with Stream(caller, "topics=portfolios&accounts=live:1") as stream, Stream(caller, "topics=orders") as other:
        assert stream.next("status").data["state"] == "stale"  # nobody ticks
        assert state(stream, "stale")["equity_usd"] is None
        tick(desk, age_ms=10**9)  # its clock is far off, and it may have stood there for long
        until(lambda: house.api.feeds._watch._tick_ms is not None)
        assert house.api.feeds._watch._state == "stale"
        tick(desk, age_ms=10**9 - 1_000)
        assert state(stream, "known")["equity_usd"] == 100.25  # but it moves
        desk.client.rename("copyrisk:tick", "kept")
        desk.client.set("copyrisk:tick", "no hash")
        assert state(stream, "unavailable")["equity_usd"] is None
        desk.client.rename("kept", "copyrisk:tick")
        tick(desk)
        assert state(stream, "known")["equity_usd"] == 100.25
        assert [other.next("status").data["state"] for _ in range(4)] == ["stale", LIVE, "unavailable", LIVE]


def test_a_thousand_portfolios_are_read_in_turn(desk: Desk, house: House) -> None:
    tick(desk)
    caller, count = house.caller(), READ_AT_ONCE + 300
    named = [f"live:{i}" for i in range(count)]
    for account in named[::100]:
        portfolio(desk, account)
    parts = (",".join(named[:700]), ",".join(named[700:]))
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Stream(caller, f"topics=portfolios&accounts={part}")) for part in parts]
        first = [
            stream.next("portfolios").data for stream, n in zip(streams, (700, 600), strict=True) for _ in range(n)
        ]
        assert {said["account"] for said in first} == set(named)
        assert sum(said["state"] == "known" for said in first) == 13
        portfolio(desk, named[0], equity="1.5")
        portfolio(desk, named[-1], equity="2.5")
        assert [stream.next("portfolios").data["equity_usd"] for stream in streams] == [1.5, 2.5]


@pytest.mark.parametrize(
    ("status", "ts", "valued", "changes", "expected"),
    [
        ("ok", "9", "9", {}, ("known", 100.0)),
        ("degraded", "9", "9", {}, ("known", None)),  # all but what is reserved
        ("degraded", "9", "8", {}, ("unknown", None)),
        ("error", "9", "9", {}, ("unknown", None)),
        ("", "9", "9", {}, ("unknown", None)),
        ("ok", "9", "9", {0: b"nan"}, ("unknown", None)),
        ("ok", "9", "9", {6: b""}, ("unknown", None)),
    ],
)
def test_what_is_known_of_a_portfolio(status: str, ts: str, valued: str, changes: Any, expected: Any) -> None:
    raw = [b"100"] * 9 + [status.encode(), b"", ts.encode(), valued.encode()]
    for place, word in changes.items():
        raw[place] = word
    said = portfolio_words(identifiers.parse_account("live:1"), raw, LIVE, 9)
    assert (said["state"], said["used_margin_all_usd"]) == expected
    assert (said["equity_usd"] is None) == (expected[0] == "unknown")


# ---- the summary


def test_the_summary_comes_with_each_refresh(bundled_server: Any) -> None:
    desk = Desk(bundled_server)
    desk.account("live:1")
    with (
        served(desk, api__desk=True, api__desk_refresh_ms=200) as house,
        Stream(house.caller(), "topics=summary") as stream,
    ):
        found = [stream.next("summary").data for _ in range(3)]
        assert found[-1]["accounts"]["total"] == 1


# ---- laws

STEPS = st.lists(st.one_of(st.tuples(st.booleans(), st.booleans()), st.none()), max_size=120)


@settings(max_examples=50)
@given(STEPS, st.integers(1, 6))
def test_everything_is_told_once_in_order_or_is_in_a_gap_that_says_from_where(
    steps: list[tuple[bool, bool] | None], limit: int
) -> None:
    """Entries of both streams, some for the reader; `None`: something of what waits is sent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subscriber, "QUEUE_LIMIT", limit)
        one = Subscriber("me", set(Topic) - {Topic.SUMMARY}, None, lambda _: True, sees_all=True)
        one.begin(Position(START, START), Position(START, START))
        seen, made, pieces = Position(START, START), deque[tuple[Position, str]](), []
        for number, step in enumerate([*steps, None, None]):
            if step is None:
                pieces.append(one.take())
                continue
            is_trail, is_mine = step
            place = Place((seen.trail if is_trail else seen.events).first + 1)
            seen = Position(place, seen.events) if is_trail else Position(seen.trail, place)
            if is_mine:
                topic = Topic.BREACHES if is_trail else Topic.ORDERS
                one.offer(queued(Happening(topic, None, {}), b'{"n":%d}' % number, place, seen))
                made.append((seen, topic))
    last = Position(START, START)
    for event, event_id, _ in parsed(b"".join(pieces)):
        if event == "gap":
            said = json.loads(_)
            assert said["from_id"] == str(last)
            counts = Counter(made.popleft()[1] for _ in range(sum(said["dropped"].values())))
            assert counts == said["dropped"]
        else:
            position, topic = made.popleft()
            assert (event, event_id) == (topic, str(position))
            assert parse_position(event_id) == position
            last = position
    assert not made


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_what_came_before_it_was_known_where_to_begin_is_told_once(kinds: list[bool], trail: int, events: int) -> None:
    """Entries of both streams are offered, then it turns out up to where the streams themselves are read."""
    one, seen, rest = Subscriber("me", set(Topic), None, lambda _: True, sees_all=True), Position(START, START), []
    for is_trail in kinds:
        place = Place((seen.trail if is_trail else seen.events).first + 1)
        seen = Position(place, seen.events) if is_trail else Position(seen.trail, place)
        topic = Topic.BREACHES if is_trail else Topic.ORDERS
        one.offer(queued(Happening(topic, None, {}), b"{}", place, seen))
        if place.first > (trail if is_trail else events):
            rest.append((topic, str(Position(max(seen.trail, Place(trail)), max(seen.events, Place(events))))))
    now = Position(Place(trail), Place(events))
    one.begin(now, now)
    found = []
    while piece := one.take():
        found += [said[:2] for said in parsed(piece)]
    assert found == rest


def parsed(text: bytes) -> list[tuple[str, str, str]]:
    found = []
    for block in text.decode().split("\n\n")[:-1]:
        fields = dict(line.partition(": ")[::2] for line in block.split("\n"))
        found.append((fields["event"], fields.get("id", ""), fields["data"]))
    return found


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(["user_type", "user_id", "order", "ts", "version", "code", "event"]), st.text()))
def test_whatever_stands_in_an_entry_is_taken_or_left_but_breaks_nothing(changed: dict[str, str]) -> None:
    event = announce(None, "live:1", "O1") | changed  # type: ignore[arg-type]
    for happening in from_event(event, EVENT_TOPICS):
        text = subscriber.event_text("orders", subscriber.written(happening.data), "0.1-1")
        assert text.count(b"\n") == 4


@settings(max_examples=30)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_whatever_stands_in_the_trail_is_taken_or_left(line: Any) -> None:
    reader = TrailReader()
    assert reader.take(json.dumps(line)) == []
    good = {"account": "live:1", "cause": "c", "kind": "warning", "reason": "r", "seq": 1, "ts_ms": 2, "said": line}
    for happening in reader.take(json.dumps(good)):
        assert happening.topic in TRAIL_TOPICS
        subscriber.written(happening.told(lambda _: False, sees_all=False))
