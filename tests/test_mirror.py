"""The mirror on real servers: whatever changes there is in the book after the next read, or the read fails."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from structlog.testing import capture_logs

from copyrisk import identifiers, keys
from copyrisk._core import LadderState, RowCode
from copyrisk.book import Book
from copyrisk.embedded import EmbeddedServer
from copyrisk.engine import Engine
from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.hours import MarketHours
from copyrisk.risk import Valuer
from copyrisk.rules import ValuationRules
from copyrisk.store.connection import check_server, connect
from copyrisk.store.link import Link
from copyrisk.store.mirror import Mirror
from copyrisk.store.pipe import pack
from tests.backoffice import BackOffice, now_ms
from tests.books import OPEN

LIVE = identifiers.account("live", "1")


@dataclass
class Mirrored:
    """A back office, and a mirror that reads nothing but what is reported unless it is told to."""

    office: BackOffice
    link: Link
    book: Book
    mirror: Mirror

    @classmethod
    def of(cls, url: str, office: BackOffice) -> "Mirrored":
        book = Book(ValuationRules())
        link = Link(connect(url, connect_timeout_ms=1000, reply_timeout_ms=1000), book.market.names.index)
        return cls(office, link, book, Mirror(link, book))

    def read(self, share: float = 0.0) -> None:
        self.mirror.read(share)

    def order(self, order_id: str = "O1", account: identifiers.Account = LIVE) -> Any:
        return self.book.orders[self.book.orders_of(self.book.row_of(account))[order_id]]

    def account(self, account: identifiers.Account = LIVE) -> Any:
        return self.book.accounts[self.book.row_of(account)]


@pytest.fixture
def mirrored(redis_server: Any) -> Iterator[Mirrored]:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1")
    office.account("demo:2")
    made = Mirrored.of(redis_server.url, office)
    made.read()
    yield made
    made.link.close()


def test_what_changed_is_read_and_nothing_else(mirrored: Mirrored) -> None:
    office, lots = mirrored.office, mirrored.order()["lots"]
    assert (lots, mirrored.account()["balance"]) == (1.0, 10_000.0)
    office.order("live:1", "O1", order_quantity="2.5")
    mirrored.read()
    assert mirrored.order()["lots"] == 2.5
    office.account("live:1", wallet_balance="77")
    mirrored.read()
    assert mirrored.account()["balance"] == 77.0
    office.order("live:1", "O2", order_type="SELL")
    mirrored.read()
    assert mirrored.order("O2")["code"] == RowCode.OK
    office.client.srem("user_orders_index:{live:1}", "O1")
    mirrored.read()
    assert list(mirrored.book.orders_of(mirrored.book.row_of(LIVE))) == ["O2"]
    office.client.hset("groups:{Standard}:EURUSD", "contract_size", "5")
    mirrored.read()
    assert mirrored.book.market.instruments["contract_size"][0] == 5.0


def test_a_tick_is_one_exchange_and_a_second_look_if_something_changed(mirrored: Mirrored, monkeypatch: Any) -> None:
    exchanges, exchange = [], mirrored.link.exchange
    monkeypatch.setattr(mirrored.link, "exchange", lambda parts: (exchanges.append(1), exchange(parts)))
    mirrored.read()
    mirrored.office.order("live:1", "O1", order_quantity="3")
    mirrored.office.order("live:1", "NEW", order_quantity="4")  # its hash was reported with the index
    mirrored.office.account("live:1", wallet_balance="5")
    mirrored.read()
    assert len(exchanges) == 1 + 2
    assert (mirrored.order("NEW")["lots"], mirrored.order()["lots"]) == (4.0, 3.0)


def test_keys_that_vanish_or_expire_are_seen(mirrored: Mirrored) -> None:
    client = mirrored.office.client
    client.delete("user_holdings:{live:1}:O1")
    mirrored.read()
    assert mirrored.order()["code"] == RowCode.ORDER_MISSING
    mirrored.office.order("live:1", "O1")
    client.pexpire("user_holdings:{live:1}:O1", 20)
    mirrored.read()
    assert mirrored.order()["code"] == RowCode.OK
    deadline = time.monotonic() + 5
    while client.exists("user_holdings:{live:1}:O1"):
        assert time.monotonic() < deadline
    mirrored.read()
    assert mirrored.order()["code"] == RowCode.ORDER_MISSING
    client.delete("user:{demo:2}:config")
    mirrored.read()
    assert mirrored.book.row_of(identifiers.account("demo", "2")) == -1


def test_accounts_that_appear_are_seen_at_once(mirrored: Mirrored) -> None:
    mirrored.office.account("copy_follower:F9", wallet_balance="9")
    mirrored.office.order("strategy_provider:M1", "X", order_quantity="0.3")  # orders without a configuration
    mirrored.read()
    assert mirrored.account(identifiers.account("copy_follower", "F9"))["balance"] == 9.0
    master = identifiers.account("strategy_provider", "M1")
    assert mirrored.account(master)["read_code"] == RowCode.ACCOUNT_MISSING
    assert mirrored.order("X", master)["lots"] == 0.3


def test_a_flush_empties_the_book(mirrored: Mirrored) -> None:
    mirrored.office.client.flushall()
    mirrored.link.wait_for_reports()  # the answer to who flushed may be ahead of the report
    with capture_logs() as lines:
        mirrored.read()
    assert len(mirrored.book.account_ids) == len(mirrored.book.order_ids) == 0
    assert [line["reason"] for line in lines if line["event"] == "everything_changed"] == ["flushed"]
    mirrored.office.eurusd_account("live:1")
    mirrored.read()
    assert mirrored.order()["code"] == RowCode.OK


def kill_daemons(client: Any) -> None:
    for victim in client.client_list():
        if victim["name"] == "copyrisk":
            client.client_kill_filter(_id=victim["id"])


def test_what_changed_while_the_connection_was_lost_is_seen(mirrored: Mirrored) -> None:
    kill_daemons(mirrored.office.client)
    mirrored.office.order("live:1", "O1", order_quantity="9")
    mirrored.office.account("live:3")
    with pytest.raises(StoreUnavailable):
        mirrored.read()
    mirrored.read()
    assert mirrored.order()["lots"] == 9.0
    assert mirrored.account(identifiers.account("live", "3"))["read_code"] == RowCode.OK
    mirrored.office.order("live:1", "O1", order_quantity="8")
    mirrored.read()
    assert mirrored.order()["lots"] == 8.0


def pile_up(mirrored: Mirrored, megabytes: int) -> None:
    pipeline = mirrored.office.client.pipeline(transaction=False)
    for number in range(megabytes * 20):
        pipeline.set(f"user:{number}" + "x" * 50_000, "1", px=5_000)
    mirrored.office.order("live:1", "O1", order_quantity="6")
    pipeline.execute()
    mirrored.office.order("live:1", "O1", order_quantity="7")


def test_more_reports_than_are_kept_are_answered_by_reading_everything(mirrored: Mirrored) -> None:
    pile_up(mirrored, 30)
    with capture_logs() as lines:
        with suppress(StoreUnavailable):  # what did not fit into the socket came with the answers
            mirrored.read()
        mirrored.read()
    assert mirrored.order()["lots"] == 7.0
    assert "too many changes reported at once" in [line.get("reason") for line in lines]


def test_more_reports_than_the_server_keeps_cost_the_connection(mirrored: Mirrored) -> None:
    pile_up(mirrored, 40)
    with pytest.raises(StoreUnavailable):
        mirrored.read()
    mirrored.read()
    assert mirrored.order()["lots"] == 7.0


def test_orders_written_by_the_daemon_itself_come_back_and_portfolios_do_not(mirrored: Mirrored) -> None:
    answers = np.zeros(2, np.uint8)
    mirrored.link.replies.expect_statuses(answers)
    own = pack("HSET", keys.holding(LIVE, "O1"), "order_quantity", "4") + pack("HSET", keys.portfolio(LIVE), "ts", "1")
    mirrored.link.exchange([own])
    news = mirrored.mirror._notices.take(mirrored.book)
    assert (news.order_owners.tolist(), news.others) == ([mirrored.book.row_of(LIVE)], [])
    assert len(news.config_rows) == len(news.index_rows) == 0


def test_the_slice_repairs_counts_and_reports_what_nobody_reported(mirrored: Mirrored) -> None:
    mirrored.order()["lots"] = 99.0
    mirrored.account(identifiers.account("demo", "2"))["balance"] = 1.0
    with capture_logs() as lines:
        mirrored.read(1.0)
    assert mirrored.order()["lots"] == 1.0
    assert mirrored.mirror.repaired == 2
    differed = {line["account"] for line in lines if line["event"] == "mirror_differed"}
    assert differed == {"live:1", "demo:2"}
    mirrored.read(1.0)
    mirrored.read()
    assert mirrored.mirror.repaired == 2


def test_a_difference_that_was_reported_is_no_error(mirrored: Mirrored) -> None:
    for lots in ("2", "3"):
        mirrored.office.order("live:1", "O1", order_quantity=lots)
        mirrored.read(1.0)
    assert mirrored.mirror.repaired == 0


def test_every_account_is_read_again_in_turn(mirrored: Mirrored) -> None:
    for number in range(3, 10):
        mirrored.office.account(f"live:{number}")
    mirrored.read()
    seen = []
    for _ in range(3):
        mirrored.read(1 / 3)
        seen += mirrored.mirror.reread.tolist()
    assert sorted(seen) == mirrored.book.account_rows().tolist()


def test_a_wish_to_recalculate_is_followed(mirrored: Mirrored) -> None:
    users = [{"user_type": "live", "user_id": "1"}, {"user_type": "live", "user_id": "nobody"}]
    mirrored.order()["lots"] = 99.0
    mirrored.office.wish(mirrored.mirror, json.dumps({"users": users}))
    mirrored.read()
    assert mirrored.order()["lots"] == 1.0
    assert mirrored.mirror.wished.tolist() == [mirrored.book.row_of(LIVE)]
    mirrored.read()
    assert mirrored.mirror.wished.tolist() == []


@pytest.mark.parametrize(
    "message",
    ["", "{", "[]", "5", "null", '{"users": 5}', '{"users": [5]}', '{"users": [{"user_type": "live"}]}',
     '{"users": [{"user_type": "live", "user_id": "1}:x"}]}', '{"users": [{"user_type": "admin", "user_id": "1"}]}',
     '{"users": ' + "[" * 50_000, "\xff", "x" * 70_000, '{"users": [' + ",".join(["{}"] * 1001) + "]}"],
)  # fmt: skip
def test_a_wish_that_makes_no_sense_is_refused(bundled_server: Any, message: str) -> None:
    office = BackOffice(bundled_server.client())
    office.eurusd_account("live:1")
    mirrored = Mirrored.of(bundled_server.url, office)
    mirrored.read()
    office.wish(mirrored.mirror, message)
    with capture_logs() as lines:
        mirrored.read()
    assert [line["code"] for line in lines if line["event"] == "recalculation_refused"] == ["bad_message"]
    assert mirrored.mirror.wished.tolist() == []
    assert mirrored.order()["code"] == RowCode.OK
    mirrored.link.close()


def limited_url(server: Any, *rules: str) -> str:
    server.client().execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "&*", "+@all", *rules)
    return str(server.url).replace("unix://", "unix://limited:pw@")


def test_without_reports_everything_is_read_each_tick_and_that_is_said_once(redis_server: Any) -> None:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1")
    mirrored = Mirrored.of(limited_url(redis_server, "-client|tracking", "-subscribe"), office)
    with capture_logs() as lines:
        mirrored.read()
        for lots in (2.0, 3.0):
            office.order("live:1", "O1", order_quantity=lots)
            office.account("live:5")
            mirrored.read()
            assert mirrored.order()["lots"] == lots
        for _ in range(3):
            mirrored.read()
    assert mirrored.account(identifiers.account("live", "5"))["read_code"] == RowCode.OK
    assert [line["event"] for line in lines].count("server_reports_no_changes") == 1
    assert [line["event"] for line in lines].count("subscription_refused") == 1
    assert mirrored.mirror.repaired == 0
    mirrored.link.close()


def documented_rules() -> list[str]:
    """The rules of docs/settings.md, as they stand there."""
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    table = page.partition("## What the server's user must be allowed")[2]
    return [rule for quoted in re.findall(r"`([^`]+)`", table) for rule in quoted.replace("\\|", "|").split()]


def test_the_documented_permissions_are_enough(redis_server: Any) -> None:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1")
    url = limited_url(redis_server, "resetkeys", "resetchannels", "-@all", *documented_rules())
    check_server(connect(url, connect_timeout_ms=1000, reply_timeout_ms=1000))
    client = connect(url, connect_timeout_ms=1000, reply_timeout_ms=1000)
    with capture_logs() as lines:
        report = Engine(client, Book(ValuationRules()), MarketHours(always_open=True), 200).tick()
    assert (report.skipped, report.written, report.refused) == (None, 1, 0)
    assert lines == []
    assert office.portfolio("live:1")["equity"] == "10050.0"


def test_a_server_that_may_not_be_scanned_cannot_be_used(bundled_server: Any) -> None:
    mirrored = Mirrored.of(limited_url(bundled_server, "-scan"), BackOffice(bundled_server.client()))
    with pytest.raises(StoreError) as refusal:
        mirrored.read()
    assert refusal.value.code == "server_no_permission"
    mirrored.link.close()


def test_a_server_that_is_slow_delays_and_one_that_is_silent_fails(mirrored: Mirrored) -> None:
    client = mirrored.office.client
    client.execute_command("CLIENT", "PAUSE", 300, "ALL")
    started = time.monotonic()
    mirrored.read()
    assert time.monotonic() - started > 0.2
    client.execute_command("CLIENT", "PAUSE", 1500, "ALL")
    with pytest.raises(StoreUnavailable):
        mirrored.read()
    client.execute_command("CLIENT", "UNPAUSE")
    mirrored.read()
    assert mirrored.order()["code"] == RowCode.OK


def test_a_price_update_is_in_the_next_tick(redis_server: Any) -> None:
    office = BackOffice(redis_server.client())
    office.eurusd_account("live:1")
    client = connect(redis_server.url, connect_timeout_ms=1000, reply_timeout_ms=1000)
    engine = Engine(client, Book(ValuationRules()), MarketHours(always_open=True), 200)
    engine.tick()
    office.quote("EURUSD", "1.0855", "1.0856")
    office.client.publish("market_price_updates", "EURUSD")
    engine.tick()
    assert office.portfolio("live:1")["equity"] == "10150.0"
    office.client.delete("user_portfolio:{live:1}")
    while engine.tick().written == 0:  # until a sample has seen that it is gone
        time.sleep(0.002)
    assert office.portfolio("live:1")["equity"] == "10150.0"
    assert engine.tick().written == 0
    office.wish(engine._mirror, '{"users": [{"user_type": "live", "user_id": "1"}]}')
    assert engine.tick().written == 1
    assert office.portfolio("live:1")["equity"] == "10150.0"


class Changes(RuleBasedStateMachine):
    """Random changes of a back office: after each read, a mirror that has followed equals one that starts."""

    accounts = st.sampled_from(["live:1", "demo:2", "copy_follower:3"])
    ids = st.sampled_from(["A", "B", "C"])
    symbols = st.sampled_from(["EURUSD", "EURGBP", "XAUUSD"])
    lots = st.sampled_from(["0.1", "2", "nan"])
    groups = st.sampled_from(["Standard", "VIP", "}"])

    def __init__(self) -> None:
        super().__init__()
        self.office = BackOffice(redis.Redis.from_url(SERVER[0]))
        self.office.client.flushall()
        for symbol in ("EURUSD", "GBPUSD", "EURGBP"):
            self.office.quote(symbol, "1.1", "1.2")
            self.office.group(symbol, profit="GBP" if symbol == "EURGBP" else "USD")
        self.mirrored = Mirrored.of(SERVER[0], self.office)
        self.valuer = Valuer(self.mirrored.book)

    def teardown(self) -> None:
        self.mirrored.link.close()

    @rule(account=accounts, group=groups, balance=st.sampled_from(["1000", "5", "x"]))
    def configure(self, account: str, group: str, balance: str) -> None:
        self.office.account(account, group=group, wallet_balance=balance)

    @rule(account=accounts, order_id=ids, symbol=symbols, lots=lots, side=st.sampled_from(["BUY", "SELL"]))
    def order(self, account: str, order_id: str, symbol: str, lots: str, side: str) -> None:
        with suppress(redis.ResponseError):  # its index may be spoilt
            self.office.order(account, order_id, symbol=symbol, order_quantity=lots, order_type=side, order_price="1.1")

    @rule(account=accounts, order_id=ids)
    def close(self, account: str, order_id: str) -> None:
        with suppress(redis.ResponseError):
            self.office.client.srem("user_orders_index:{" + account + "}", order_id)

    @rule(account=accounts, order_id=ids)
    def lose(self, account: str, order_id: str) -> None:
        self.office.client.delete("user_holdings:{" + account + "}:" + order_id)

    @rule(account=accounts)
    def spoil(self, account: str) -> None:
        self.office.client.set("user_orders_index:{" + account + "}", "not a set")

    @rule(account=accounts)
    def forget(self, account: str) -> None:
        self.office.client.delete("user:{" + account + "}:config", "user_orders_index:{" + account + "}")

    @rule(symbol=symbols, group=st.sampled_from(["Standard", "VIP"]), size=st.sampled_from(["1", "100000", "-1"]))
    def change_terms(self, symbol: str, group: str, size: str) -> None:
        self.office.group(symbol, group, contract_size=size)

    @rule(symbol=symbols, bid=st.sampled_from(["1.1", "1.15", "0"]))
    def quote(self, symbol: str, bid: str) -> None:
        self.office.quote(symbol, bid, "1.2")

    @rule()
    def lose_connection(self) -> None:
        self.mirrored.link.close()

    @rule()
    def lose_everything(self) -> None:
        self.office.client.flushall()

    @invariant()
    def equals_a_mirror_that_starts(self) -> None:
        fresh = Mirrored.of(SERVER[0], self.office)
        fresh.read()
        self.mirrored.read()
        at_ms = now_ms()
        self.valuer.value(at_ms, OPEN)
        fresh_valuer = Valuer(fresh.book)
        fresh_valuer.value(at_ms, OPEN)
        fresh.link.close()
        ours, theirs = self.mirrored.book, fresh.book
        accounts = {str(theirs.account_at(row)): row for row in theirs.account_rows().tolist()}
        assert {str(ours.account_at(row)) for row in ours.account_rows().tolist()} == set(accounts)
        for name, row in accounts.items():
            own = ours.row_of(identifiers.parse_account(name))
            assert set(ours.orders_of(own)) == set(theirs.orders_of(row))
            found, wanted = self.valuer.figures[own], fresh_valuer.figures[row]
            assert (found["state"], found["code"]) == (wanted["state"], wanted["code"])
            if found["state"] != LadderState.STATE_UNKNOWN:
                for figure in ("equity", "used_margin_executed", "used_margin_all"):
                    np.testing.assert_allclose(found[figure], wanted[figure], rtol=1e-12)


SERVER: list[str] = []


@pytest.mark.slow
def test_a_mirror_that_follows_equals_one_that_starts() -> None:
    with EmbeddedServer.start() as server:
        SERVER[:] = [server.url]
        Changes.TestCase.settings = settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        Changes.TestCase("runTest").runTest()
