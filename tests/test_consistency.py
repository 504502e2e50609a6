"""Torn reads, huge values, passing errors, junk and flushes: never a figure that was of no moment."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from copyrisk import identifiers
from copyrisk._core import LadderState, RowCode
from copyrisk.book import Book
from copyrisk.engine import Engine
from copyrisk.errors import StoreUnavailable
from copyrisk.hours import MarketHours
from copyrisk.rules import ValuationRules
from copyrisk.store import portfolios
from copyrisk.store.connection import connect
from copyrisk.store.link import Link
from copyrisk.store.mirror import Mirror
from tests.backoffice import BackOffice

LIVE = identifiers.account("live", "1")


@pytest.fixture
def server(redis_server: Any) -> Any:
    return redis_server


@pytest.fixture
def office(redis_server: Any) -> Iterator[BackOffice]:
    client = redis_server.client()
    yield BackOffice(client)
    client.flushall()
    client.close()


def engine_on(server: Any, period_ms: int = 200, timeout_ms: int = 1000) -> Engine:
    client = connect(server.url, connect_timeout_ms=1000, reply_timeout_ms=timeout_ms)
    return Engine(client, Book(ValuationRules()), MarketHours(always_open=True), period_ms)


def mirror_on(server: Any) -> tuple[Book, Link, Mirror]:
    book = Book(ValuationRules())
    link = Link(connect(server.url, connect_timeout_ms=1000, reply_timeout_ms=1000), book.market.names.index)
    return book, link, Mirror(link, book)


def test_one_huge_value_does_not_void_the_ticks_of_everybody(server: Any, office: BackOffice) -> None:
    office.eurusd_account("live:1")
    engine = engine_on(server)
    assert engine.tick().skipped is None
    office.account("live:2")
    office.client.hset("user:{live:2}:config", "wallet_balance", b"1" * 40_000_000)
    found = [engine.tick().skipped for _ in range(4)]
    office.client.flushall()
    assert None in found, found


def test_one_huge_order_index_does_not_void_the_ticks_of_everybody(server: Any, office: BackOffice) -> None:
    office.eurusd_account("live:1")
    engine = engine_on(server)
    assert engine.tick().skipped is None
    office.account("live:2")
    pipeline = office.client.pipeline(transaction=False)
    for part in range(40):
        pipeline.sadd("user_orders_index:{live:2}", b"%d" % part + b"x" * 1_000_000)
    pipeline.execute()
    found = [engine.tick().skipped for _ in range(4)]
    office.client.flushall()
    assert None in found, found


@pytest.mark.parametrize("accounts", [3, 6])
def test_every_account_is_verified_in_turn(server: Any, office: BackOffice, accounts: int) -> None:
    office.group("EURUSD")
    office.quote("EURUSD", 1.0845, 1.08455)
    for number in range(accounts):
        office.account(f"live:{number}")
        office.order(f"live:{number}", "O1")
    engine = engine_on(server)
    engine.tick()
    engine.figures["equity"][:] += 1.0  # as a flipped bit would do
    for _ in range(40 * accounts):  # each account is read again 40 times
        time.sleep(0.002)
        engine.tick()
    wrong = [a for a in range(accounts) if abs(engine.figures["equity"][a] - 10050.0) > 1e-6]
    assert not wrong, f"never verified: {wrong}"


def dump_restore(office: BackOffice, pipeline: Any) -> None:
    held = {key: office.client.dump(key) for key in office.client.keys("*") if not key.startswith(b"user_portfolio")}
    pipeline.flushall()
    for key, value in held.items():
        pipeline.restore(key, 0, value)


def test_portfolios_are_written_whole_after_a_flush(server: Any, office: BackOffice) -> None:
    office.eurusd_account("live:1")
    engine = engine_on(server)
    engine.tick()
    pipeline = office.client.pipeline(transaction=True)
    dump_restore(office, pipeline)
    pipeline.execute()
    with capture_logs() as lines:
        for _ in range(3):
            assert engine.tick().skipped is None
    assert "everything_changed" in [line["event"] for line in lines]
    assert office.portfolio("live:1").get("equity") == "10050.0"


def test_a_portfolio_that_vanished_is_never_written_in_part(server: Any, office: BackOffice) -> None:
    office.eurusd_account("live:1")
    engine = engine_on(server)
    engine.tick()
    whole = set(office.portfolio("live:1"))
    office.client.delete("user_portfolio:{live:1}")
    for bid in (1.0855, 1.0865, 1.0875):
        office.quote("EURUSD", bid, bid + 0.0001)
        engine.tick()
    assert set(office.portfolio("live:1")) == whole


def test_a_passing_error_does_not_outlast_itself(server: Any, office: BackOffice) -> None:
    office.eurusd_account("live:1")
    engine = engine_on(server, timeout_ms=5000)
    assert engine.tick().states[LadderState.HEALTHY] == 1
    office.client.config_set("busy-reply-threshold", 1)
    other = redis.Redis.from_url(server.url)

    def loop() -> None:
        with suppress(redis.ResponseError):
            other.eval("while true do end", 0)

    office.account("live:1", wallet_balance="9000")  # is reported, and read in the next tick
    thread = threading.Thread(target=loop)
    thread.start()
    time.sleep(0.1)
    engine.tick()
    while True:
        with suppress(redis.ResponseError):
            office.client.script_kill()
            break
    thread.join()
    office.client.config_set("busy-reply-threshold", 5000)
    office.quote("EURUSD", 1.0845, 1.08455)
    reports = [engine.tick() for _ in range(3)]
    assert reports[-1].states[LadderState.HEALTHY] == 1, reports[-1].unknown_by_reason


def test_an_index_that_turns_unreadable_is_no_inconsistency(server: Any, office: BackOffice) -> None:
    office.eurusd_account("live:1")
    engine = engine_on(server)
    engine.tick()
    index = "user_orders_index:{live:1}"
    office.client.delete(index)
    office.client.sadd(index, b"\x00")
    engine.tick()
    office.client.delete(index)
    office.client.set(index, "no set")
    reports = [engine.tick() for _ in range(6)]
    assert [report.inconsistent for report in reports] == [0] * 6
    assert reports[-1].unknown_by_reason == {"orders_index_unreadable": 1}


def test_a_flush_while_a_slice_is_read_is_no_error(server: Any, office: BackOffice) -> None:
    office.account("live:1")
    office.account("live:2")
    book, link, mirror = mirror_on(server)
    mirror.read(0.0)
    take = mirror._notices.take

    def take_then_flush(book: Book) -> Any:
        news = take(book)
        office.client.flushall()
        office.account("live:2", wallet_balance="5")
        mirror._notices.take = take
        # its own report explains live:2, the flush live:1
        return news

    mirror._notices.take = take_then_flush
    with pytest.raises(StoreUnavailable):
        mirror.read(1.0)
    mirror.read(0.0)
    link.close()
    assert str(book.account_at(book.account_rows()[0])) == "live:2"
    assert mirror.repaired == 0


def test_one_bad_user_does_not_cost_the_others_their_recalculation(server: Any, office: BackOffice) -> None:
    office.eurusd_account("live:1")
    office.account("live:2")
    book, link, mirror = mirror_on(server)
    mirror.read(0.0)
    users = [{"user_type": "admin", "user_id": "1"}, {"user_type": "live", "user_id": "1"}]
    office.wish(mirror, json.dumps({"users": users}))
    mirror.read(0.0)
    wished = mirror.wished.tolist()
    link.close()
    assert wished == [book.row_of(LIVE)]


def test_junk_names_do_not_use_up_the_room_for_symbols(server: Any, office: BackOffice) -> None:
    office.group("EURUSD")
    office.group("GBPUSD")
    office.quote("EURUSD", 1.1, 1.1001)
    office.quote("GBPUSD", 1.1, 1.1001)
    book, link, mirror = mirror_on(server)
    mirror.read(0.0)
    for turn in range(14):
        pipeline = office.client.pipeline(transaction=False)
        for number in range(5_000):
            pipeline.hset(f"user:{{live:{number}}}:config", mapping={"group": f"}}junk {turn} {number}"})
        pipeline.execute()
        mirror.read(0.0)
    office.account("live:x")
    office.order("live:x", "O1", symbol="GBPUSD")
    mirror.read(0.0)
    row = book.row_of(identifiers.account("live", "x"))
    code = book.orders[book.orders_of(row)["O1"]]["code"]
    link.close()
    office.client.flushall()
    assert code == RowCode.OK, RowCode(code).name


def test_without_reports_a_new_account_is_in_the_next_tick(server: Any, office: BackOffice) -> None:
    for number in range(20_000):
        office.client.set(f"filler:{number}", "1")
    office.client.execute_command(
        "ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "&*", "+@all", "-client|tracking"
    )
    book = Book(ValuationRules())
    url = server.url.replace("unix://", "unix://limited:pw@")
    link = Link(connect(url, connect_timeout_ms=1000, reply_timeout_ms=1000), book.market.names.index)
    mirror = Mirror(link, book)
    mirror.read(0.0)
    office.eurusd_account("live:1")
    mirror.read(0.0)
    mirror.read(0.0)
    link.close()
    assert book.row_of(LIVE) >= 0


class Torn:
    """A socket that lets somebody else act before the first SMEMBERS of a request."""

    def __init__(self, sock: Any, act: Any) -> None:
        self._sock, self._act = sock, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        at = data.find(b"*2\r\n$8\r\nSMEMBERS")
        if self._act is not None and at >= 0:
            self._sock.sendall(data[:at])
            time.sleep(0.05)  # the server has read that far: it takes 16 KB at a time
            act, self._act = self._act, None
            act()
            data = data[at:]
        self._sock.sendall(data)


def test_an_account_that_changed_while_it_was_read_is_not_decided_on(server: Any, office: BackOffice) -> None:
    """A profit is realised in one MULTI: no moment knew the account without both the order and the money."""
    office.eurusd_account("live:1", wallet_balance="100", leverage="100")
    office.order("live:1", "BIG", order_price="1.034", order_quantity="1")  # + 5,050
    engine = engine_on(server)
    engine.tick()
    before = engine.figures["equity"][0]

    def realise() -> None:
        pipeline = office.client.pipeline(transaction=True)
        pipeline.hset("user:{live:1}:config", "wallet_balance", "5150")
        pipeline.srem("user_orders_index:{live:1}", "BIG")
        pipeline.delete("user_holdings:{live:1}:BIG")
        pipeline.execute()

    link = engine._mirror._link
    link._sock = Torn(link._sock, realise)
    office.client.hset("user:{live:1}:config", "email", "x")  # so that it is read in this tick
    office.client.sadd("user_orders_index:{live:1}", "X")
    office.client.srem("user_orders_index:{live:1}", "X")
    engine.tick()
    figure = engine.figures[0]
    assert figure["state"] == LadderState.STATE_UNKNOWN or abs(figure["equity"] - before) < 1, figure


def test_the_market_of_a_symbol_follows_the_standard_row(server: Any, office: BackOffice) -> None:
    office.group("EURUSD", "Standard", type="4", crypto_margin_factor="1")
    office.group("EURUSD", "VIP", type="1")
    office.quote("EURUSD", 1.0845, 1.08455)
    office.account("live:1", group="VIP")  # nobody in Standard holds it
    office.order("live:1", "O1")
    book, link, mirror = mirror_on(server)
    mirror.read(0.0)
    link.close()
    assert book.market.quotes["market"][book.market.quote_row["EURUSD"]] == 4


def test_the_market_of_a_symbol_does_not_depend_on_history(server: Any, office: BackOffice) -> None:
    office.group("EURUSD", "ECN", type="4", crypto_margin_factor="1")
    office.group("EURUSD", "VIP", type="1", crypto_margin_factor="1")
    office.quote("EURUSD", 1.0845, 1.08455)
    for number, group in enumerate(("VIP", "ECN")):
        office.account(f"live:{number}", group=group)
        office.order(f"live:{number}", "O1")
    book, link, mirror = mirror_on(server)
    mirror.read(0.0)
    found = []
    for group, kind in (("VIP", "1"), ("ECN", "4")):  # there and back again: Redis holds the same after each turn
        for size in ("1", "100000"):
            office.group("EURUSD", group, type=kind, crypto_margin_factor="1", contract_size=size)
            mirror.read(0.0)
            mirror.read(0.0)
        found.append(int(book.market.quotes["market"][book.market.quote_row["EURUSD"]]))
    link.close()
    assert found[0] == found[1], found


def test_a_change_that_was_complete_before_the_tick_is_not_read_by_half(server: Any, office: BackOffice) -> None:
    for number in range(50):
        office.account(f"copy_follower:{number}")
    office.eurusd_account("live:1", wallet_balance="100", leverage="100")
    office.order("live:1", "BIG", order_price="1.034", order_quantity="1")  # + 5,050
    engine = engine_on(server, timeout_ms=5000)
    engine.tick()
    row = engine.book.row_of(LIVE)
    before = engine.figures["equity"][row]
    engine._mirror._next = row + 1  # it is not its turn in the slice
    pipeline = office.client.pipeline(transaction=True)
    pipeline.hset("user:{live:1}:config", "wallet_balance", "5150")
    pipeline.srem("user_orders_index:{live:1}", "BIG")
    pipeline.delete("user_holdings:{live:1}:BIG")
    for number in range(20_000):  # as when swaps are booked at night
        pipeline.hset(f"user_holdings:{{demo:{number}}}:ORDER", "swap", "1")
    pipeline.execute()
    time.sleep(0.2)
    other = redis.Redis.from_url(server.url)
    busy = "local n = 0 for i = 1, 6e7 do n = n + i % 3 end return n"
    thread = threading.Thread(target=lambda: other.eval(busy, 0))
    thread.start()  # a server that is at something else: nothing more comes while the tick takes its reports
    time.sleep(0.05)
    report = engine.tick()
    thread.join()
    assert report.skipped is None
    figure = engine.figures[row]
    assert figure["state"] == LadderState.STATE_UNKNOWN or abs(figure["equity"] - before) < 1, figure


def test_accounts_that_stay_unknown_cost_nothing_while_another_symbol_moves(
    server: Any, office: BackOffice, monkeypatch: Any
) -> None:
    office.group("EURUSD")
    office.group("GBPUSD")
    for number in range(200):
        office.account(f"live:{number}")
        office.order(f"live:{number}", "A")
        office.order(f"live:{number}", "B", symbol="GBPUSD")
    office.quote("EURUSD", 1.1, 1.1001, 1)  # dead
    office.quote("GBPUSD", 1.1, 1.1001)
    engine = engine_on(server)
    engine.tick()
    asked, reasons = [], portfolios.reasons
    monkeypatch.setattr(portfolios, "reasons", lambda *given: (asked.append(1), reasons(*given))[1])
    office.quote("GBPUSD", 1.2, 1.2001)
    report = engine.tick()
    assert report.written == 0
    assert len(asked) < 20, f"{len(asked)} portfolios put into words, none of them written"
