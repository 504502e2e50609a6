"""Negative balances booked away on real servers: exactly what is owed, once, and only of who is flat for certain."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from copyrisk import crash, layout, protecting
from copyrisk._core import LadderState, RowCode
from copyrisk.audit import AuditKind, Entry
from copyrisk.book import Book
from copyrisk.commands import Kind
from copyrisk.errors import InvalidId, Refused, StoreError, StoreUnavailable
from copyrisk.protecting import Protector, candidates
from copyrisk.recorder import Recorder
from copyrisk.roles import make_workers
from copyrisk.rules import ValuationRules
from copyrisk.sql.database import Database
from copyrisk.sql.history import parse_history
from copyrisk.store import library, protection
from copyrisk.store.effects import Effects
from copyrisk.store.lease import Lease
from copyrisk.store.pipe import Pipe
from tests.copying_desk import Died
from tests.test_permissions import limit
from tests.test_wallets import balances, booked, put
from tests.trading import ACCOUNT_TYPES, Desk, assert_books, decoded, lend, until

KIND = "negative_balance_protection"
OWN = ("ledger", "audit", "outbox")
NOTED = "copyrisk:{cutoff}:protecting"
POINTS = ("protection.noted", "protection.changed", "protection.delivered")


class ProtectionDesk(Desk):
    """A desk with somebody who books negative balances away, one tick at a time."""

    def __init__(self, server: Any, **flags: object) -> None:
        super().__init__(server, **flags)
        self.recorded: list[Entry] = []
        self._protector: Protector | None = None

    def new_protector(self, owner: str = "first", hold_ms: int = 60_000, keeps_history: bool = True) -> Protector:
        client = self.new_client()
        library.load(client)
        pipe = Pipe(client)
        effects = Effects(pipe, events_limit=100_000, keeps_history=keeps_history)
        self.tick()
        assert self._engine is not None
        lease = Lease(pipe, "cutoff", owner, hold_ms)
        return Protector(pipe, self._engine.book, lease, effects, record=self.recorded.extend)

    @property
    def protector(self) -> Protector:
        self._protector = self._protector or self.new_protector()
        return self._protector

    def step(self, protector: Protector | None = None) -> int:
        """One tick of the daemon, then of who protects."""
        chosen = protector or self.protector
        self.tick()
        assert self._engine is not None
        return chosen.step(self._engine.figures, 1_767_600_000_000)

    def crash_at(self, patch: pytest.MonkeyPatch, point: str) -> None:
        """Who protects dies at this point; another one takes over."""

        def die() -> None:
            raise Died(point)

        with at(patch, point, die), pytest.raises(Died):
            self.step()
        self.client.delete("copyrisk:{cutoff}:lease")
        self._protector = None

    def ledger(self, account: str) -> dict[str, str]:
        return decoded(self.client.hgetall(f"copyrisk:{{{account}}}:ledger"))

    def stored_balance(self, account: str) -> str:
        return str(self.client.hget(f"user:{{{account}}}:config", "wallet_balance").decode())

    def history(self) -> list[Any]:
        """Amounts on their way to the database, each once."""
        found = [json.loads(said["entry"]) for said in self.entries("copyrisk:history")]
        return list({entry["entry_id"]: entry for entry in found}.values())

    def assert_protected(self, account: str, *amounts: str) -> None:
        """The account is at 0, and everything that says so says it of these amounts."""
        assert self.stored_balance(account) == "0.00"
        user_type, _, user_id = account.partition(":")
        protections = self.events(type=KIND, user_type=user_type, user_id=user_id)
        assert [event["amount_usd"] for event in protections] == list(amounts)
        assert [entry["amount_usd"] for entry in self.audit(account) if entry.get("change") == KIND] == list(amounts)
        assert Decimal(self.ledger(account)["protected_usd"]) == sum(map(Decimal, amounts))
        assert self.client.xlen(f"copyrisk:{{{account}}}:outbox") == 0
        assert not self.client.exists(NOTED)


@contextmanager
def at(patch: pytest.MonkeyPatch, point: str, action: Callable[[], object]) -> Iterator[None]:
    """Within it, something happens the first time that a point is reached, and it must be reached."""
    reached: list[str] = []

    def reach(name: str) -> None:
        if name == point and not reached:
            reached.append(name)
            action()

    with patch.context() as patched:
        patched.setattr(crash, "reach", reach)
        yield
    assert reached


@pytest.fixture
def desk(bundled_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProtectionDesk]:
    monkeypatch.setattr(protecting, "_RETRY_S", 0.0)
    made = ProtectionDesk(bundled_server)
    yield made
    made.close()


# ---- who is put back to 0, and what is said of it


def test_what_is_owed_is_booked_away(redis_server: Any) -> None:
    desk = ProtectionDesk(redis_server)
    accounts = [desk.account(f"{kind}:1", balance="-12.34") for kind in ACCOUNT_TYPES]
    other = desk.account("live:2", balance="0.01")
    assert (desk.step(), desk.step()) == (4, 0)
    for account in accounts:
        desk.assert_protected(account, "12.34")
    assert desk.stored_balance(other) == "0.01"
    version = desk.version("demo:1")
    (event,) = desk.events(user_type="demo")
    assert event == {
        "event_id": f"demo:1:{version}",
        "event": "done",
        "type": KIND,
        "code": "ok",
        "user_type": "demo",
        "user_id": "1",
        "order_id": "",
        "version": str(version),
        "amount_usd": "12.34",
        "balance_usd": "0.00",
        "ts": event["ts"],
        "idempotency_key": "",
        "command_id": "",
        "message": "",
    }
    booking = {"entry_id": f"demo:1:{version}", "kind": KIND, "amount_usd": "12.34", "balance_usd": "0.00"}
    assert booking in desk.history() and len(desk.history()) == 4
    (audited,) = desk.audit("demo:1")
    assert (audited["balance_before"], audited["balance"]) == ("-12.34", "0.00")
    ledger = desk.ledger("demo:1")
    assert "booked_usd" not in ledger and ledger["fence:cutoff"].isdecimal()
    assert_books(desk)
    desk.close()


def test_without_a_database_there_is_no_history(desk: ProtectionDesk) -> None:
    desk.account("live:1", balance="-5")
    assert desk.step(desk.new_protector(keeps_history=False)) == 1
    desk.assert_protected("live:1", "5.00")
    assert not desk.client.exists("copyrisk:history")


def test_every_digit_counts(desk: ProtectionDesk) -> None:
    owed = {
        "-0.01": "0.01",
        "-1": "1.00",
        "-0.005": "0.005",
        "-0.000000000000000001": "0.000000000000000001",
        "-123456789012.30": "123456789012.30",
    }
    for i, balance in enumerate(owed):
        desk.account(f"live:{i}", balance=balance)
    assert desk.step() == len(owed)
    for i, amount in enumerate(owed.values()):
        desk.assert_protected(f"live:{i}", amount)
    assert {entry["amount_usd"] for entry in desk.history()} == set(owed.values())


def test_nothing_is_booked_where_nothing_is_owed_for_certain(desk: ProtectionDesk) -> None:
    said = ["0", "0.00", "-0", "-0.00", "0.01", "x", "nan", "-inf", "-1e5", " -5", "", "--5", "-", None]
    for i, balance in enumerate(said):
        desk.account(f"live:{i}", balance=balance)
    assert [desk.step(), desk.step()] == [0, 0]
    for i, balance in enumerate(said):
        found = desk.client.hget(f"user:{{live:{i}}}:config", "wallet_balance")
        assert found == (None if balance is None else balance.encode())
        assert desk.ledger(f"live:{i}") == {}
    assert (desk.events(), desk.recorded) == ([], [])


def test_the_trail_knows_before_and_after(desk: ProtectionDesk) -> None:
    desk.account("live:1", balance="-7.5")
    seen: list[str] = []

    def record(entries: Sequence[Entry]) -> None:
        desk.recorded.extend(entries)
        seen.append(desk.stored_balance("live:1"))

    protector = desk.new_protector()
    protector._record = record
    assert desk.step(protector) == 1
    assert seen == ["-7.5", "0.00"]
    before, after = desk.recorded
    assert (before.kind, before.account, before.reason) == (AuditKind.PROTECTION, "live:1", "balance_below_zero")
    assert before.cause == after.cause == f"live:1:{desk.version('live:1')}"
    assert before.said == {"balance_usd": "-7.5", "amount_usd": "7.50", "version": desk.version("live:1")}
    assert after.reason == "done"


def test_if_the_trail_cannot_be_written_nothing_is_done(desk: ProtectionDesk) -> None:
    desk.account("live:1", balance="-7.5")

    def record(entries: Sequence[Entry]) -> None:
        raise StoreUnavailable("no trail")

    protector = desk.new_protector()
    protector._record = record
    with pytest.raises(StoreUnavailable):
        desk.step(protector)
    assert (desk.stored_balance("live:1"), desk.ledger("live:1")) == ("-7.5", {})


def test_a_loss_above_the_balance_and_a_late_fill_are_two_entries(desk: ProtectionDesk) -> None:
    """One lot bought at 1.08455, closed at 1.0645: 2,005 USD lost of 1,500; 30 more are booked later."""
    account = desk.account("live:1", balance="1500")
    assert desk.open(account, "A")["code"] == "ok"
    desk.quote("1.0645", "1.06455")
    assert desk.step() == 0
    assert desk.do("close", account, order_id="A")["code"] == "ok"
    assert desk.step() == 1
    desk.assert_protected(account, "505.00")
    assert desk.ledger(account)["booked_usd"] == "-2005.00"  # a loss is not hidden: limits look at it
    desk.client.hincrbyfloat("user:{live:1}:config", "wallet_balance", "-30")
    desk.client.hincrby("copyrisk:{live:1}:ledger", "version", 1)
    assert desk.step() == 1
    desk.assert_protected(account, "505.00", "30.00")
    versions = [int(event["version"]) for event in desk.events(user_id="1", event="done")]
    assert versions == sorted(set(versions))
    assert desk.ledger(account)["booked_usd"] == "-2005.00"
    assert_books(desk)


def test_a_sum_that_cannot_be_read_is_left_for_people(desk: ProtectionDesk) -> None:
    desk.account("live:1", balance="-1")
    desk.client.hset("copyrisk:{live:1}:ledger", "protected_usd", "x")
    assert desk.step() == 1
    assert (desk.stored_balance("live:1"), desk.ledger("live:1")["protected_usd"]) == ("0.00", "x")


# ---- who is not flat


def test_an_open_order_a_pending_one_and_one_in_flight(desk: ProtectionDesk) -> None:
    local = desk.account("live:1")
    assert desk.open(local, "A")["code"] == "ok"
    waiting = desk.account("live:2")
    assert desk.pend(waiting, "P", "BUY_LIMIT", "1.05")["code"] == "ok"
    provider = desk.account("live:3", "barclays")
    assert desk.open(provider, "F")["code"] == "ok"
    listed = desk.account("live:4")
    desk.client.sadd("user_orders_index:{live:4}", "GONE")
    for account in (local, waiting, provider, listed):
        desk.client.hset(f"user:{{{account}}}:config", "wallet_balance", "-10")
    assert [desk.step(), desk.step()] == [0, 0]
    assert desk.recorded == []
    desk.reported(desk.request(), "rejected", 1)
    assert desk.step() == 1
    desk.assert_protected(provider, "10.00")
    assert {desk.stored_balance(account) for account in (local, waiting, listed)} == {"-10"}


@pytest.mark.parametrize("reserved", ["0.01", "x"])
def test_margin_of_lots_that_are_being_filled(desk: ProtectionDesk, reserved: str) -> None:
    desk.account("live:1", balance="-10")
    desk.client.hset("copyrisk:{live:1}:ledger", "reserved_usd", reserved)
    with capture_logs() as logs:
        assert [desk.step(), desk.step()] == [0, 0]
    waits = [line["code"] for line in logs if line["event"] == "protection_waits"]
    assert waits == ["margin_reserved"]  # said once
    desk.client.hset("copyrisk:{live:1}:ledger", "reserved_usd", "0.00")
    assert desk.step() == 1


def test_what_an_earlier_change_left_behind_is_brought_about_first(desk: ProtectionDesk) -> None:
    account = desk.account("live:1")
    assert desk.open(account, "A")["code"] == "ok"
    assert desk.do("close", account, order_id="A")["code"] == "ok"
    left = {
        "version": desk.version(account),
        "order": desk.data("A"),
        "finished": True,
        "event": {"ts": "1", "event_id": "y"},
    }
    desk.client.xadd(f"copyrisk:{{{account}}}:outbox", {"entry": json.dumps(left)})
    desk.client.hset("user:{live:1}:config", "wallet_balance", "-3")
    assert [desk.step(), desk.step()] == [0, 1]
    assert len(desk.events(event_id="y")) == 1
    desk.assert_protected(account, "3.00")


def test_an_order_that_the_book_does_not_know_yet(desk: ProtectionDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It appears after the tick was read, or after the account was read, or after the account was decided about."""
    desk.account("live:1", balance="-10")
    protector = desk.protector
    desk.tick()
    desk.office.order("live:1", "A")
    assert desk._engine is not None
    assert protector.step(desk._engine.figures, 0) == 0
    assert desk.recorded == []
    desk.client.delete("user_orders_index:{live:1}", "user_holdings:{live:1}:A")
    with at(monkeypatch, "protection.noted", lambda: desk.office.order("live:1", "A")):
        assert desk.step() == 0
    assert [entry.reason for entry in desk.recorded] == ["balance_below_zero", "changed"]
    assert (desk.stored_balance("live:1"), desk.ledger("live:1")) == ("-10", {})


# ---- races


@pytest.mark.parametrize("deposit", ["90", "-9.99", "-10.0", "x"])
def test_a_balance_that_the_back_office_writes_meanwhile_stays(
    desk: ProtectionDesk, monkeypatch: pytest.MonkeyPatch, deposit: str
) -> None:
    desk.account("live:1", balance="-10")
    write = lambda: desk.client.hset("user:{live:1}:config", "wallet_balance", deposit)  # noqa: E731
    with at(monkeypatch, "protection.noted", write):
        assert desk.step() == 0
    assert (desk.stored_balance("live:1"), desk.events(), desk.ledger("live:1")) == (deposit, [], {})
    expected = {"-9.99": ["9.99"], "-10.0": ["10.00"]}.get(deposit, [])
    assert desk.step() == len(expected)
    assert [event["amount_usd"] for event in desk.events()] == expected


@pytest.mark.parametrize("name", ["version", "reserved_usd"])
def test_a_change_of_the_ledger_meanwhile(desk: ProtectionDesk, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    desk.account("live:1", balance="-10")
    with at(monkeypatch, "protection.noted", lambda: desk.client.hset("copyrisk:{live:1}:ledger", name, "0")):
        assert desk.step() == 0
    assert (desk.stored_balance("live:1"), desk.ledger("live:1")) == ("-10", {name: "0"})
    assert desk.step() == 1
    desk.assert_protected("live:1", "10.00")


@pytest.mark.parametrize("name", OWN)
def test_a_key_that_becomes_another_type_meanwhile(
    desk: ProtectionDesk, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    desk.account("live:1", balance="-10")
    with at(monkeypatch, "protection.noted", lambda: desk.client.set(f"copyrisk:{{live:1}}:{name}", "x")):
        assert desk.step() == 0
    assert desk.stored_balance("live:1") == "-10"
    desk.client.delete(f"copyrisk:{{live:1}}:{name}")
    assert desk.ledger("live:1") == {}
    assert desk.step() == 1
    desk.assert_protected("live:1", "10.00")


def test_a_decision_that_is_too_old_changes_nothing(desk: ProtectionDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.account("live:1", balance="-10")
    with monkeypatch.context() as patched:
        patched.setattr(protection, "DECISION_MS", -1)
        assert desk.step() == 0
    assert [entry.reason for entry in desk.recorded] == ["balance_below_zero", "late"]
    assert desk.step() == 1


def test_of_two_who_protect_one_acts(desk: ProtectionDesk) -> None:
    desk.account("live:1", balance="-10")
    first, second = desk.protector, desk.new_protector("second")
    assert desk.step(first) == 1
    desk.account("live:2", balance="-10")
    with pytest.raises(StoreUnavailable, match="lease"):
        desk.step(second)
    assert desk.stored_balance("live:2") == "-10"
    assert desk.step(first) == 1
    desk.assert_protected("live:2", "10.00")


def test_who_was_stopped_and_goes_on_finds_his_right_over(
    desk: ProtectionDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He was stopped between his decision and his call; the lease is another's by then."""
    desk.account("live:1", balance="-10")
    protector = desk.protector
    right = protector._lease.keep()
    lend(desk.client, "cutoff", "other", 60_000)
    monkeypatch.setattr(protector._lease, "keep", lambda: right._replace(ends_ms=1))
    assert desk.step() == 0
    assert (desk.stored_balance("live:1"), desk.recorded[-1].reason) == ("-10", "late")


def test_an_account_changed_under_a_later_token(desk: ProtectionDesk) -> None:
    desk.account("live:1", balance="-10")
    token = int(desk.protector._lease.keep().token) + 1_000
    desk.client.hset("copyrisk:{live:1}:ledger", "fence:cutoff", token)
    assert desk.step() == 0
    assert (desk.stored_balance("live:1"), desk.recorded[-1].reason) == ("-10", "fenced")
    assert desk.step() == 1  # whoever still has the lease may go above
    assert int(desk.ledger("live:1")["fence:cutoff"]) > token
    desk.assert_protected("live:1", "10.00")


# ---- crashes


@pytest.mark.parametrize("point", POINTS)
def test_whoever_dies_everything_is_there_once(redis_server: Any, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    monkeypatch.setattr(protecting, "_RETRY_S", 0.0)
    desk = ProtectionDesk(redis_server)
    accounts = [desk.account(f"live:{i}", balance=f"-{i}.25") for i in range(1, 4)]
    desk.crash_at(monkeypatch, point)
    assert desk.client.scard(NOTED) == 3
    desk.step()
    desk.step()
    for i, account in enumerate(accounts, 1):
        desk.assert_protected(account, f"{i}.25")
    assert sorted(entry["amount_usd"] for entry in desk.history()) == ["1.25", "2.25", "3.25"]
    assert_books(desk)
    desk.close()


def test_a_worker_brings_about_what_was_left_when_it_touches_the_account(
    desk: ProtectionDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.account("live:1", balance="-10")
    desk.crash_at(monkeypatch, "protection.changed")
    assert desk.open("live:1", "A")["code"] == "insufficient_margin"
    desk.step()
    desk.assert_protected("live:1", "10.00")


def test_a_reply_that_is_lost(desk: ProtectionDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.account("live:1", balance="-10")
    protect = protection.protect

    def lost(*words: Any) -> Any:
        protect(*words)
        raise StoreUnavailable("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(protection, "protect", lost)
        with pytest.raises(StoreUnavailable):
            desk.step()
    assert desk.step() == 0
    desk.assert_protected("live:1", "10.00")


# ---- limits, and what is not what it should be


def test_a_tick_has_its_bound_and_nobody_is_kept_waiting_by_who_cannot_be_helped(
    desk: ProtectionDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protecting, "_AT_ONCE", 4)
    for i in range(6):
        desk.account(f"demo:{i}", balance="-1")
        desk.client.hset(f"copyrisk:{{demo:{i}}}:ledger", "reserved_usd", "5")
    desk.protector  # noqa: B018  # the book has these first
    for i in range(6):
        desk.account(f"live:{i}", balance="-1")
    assert sum(desk.step() for _ in range(3)) == 6
    assert {desk.stored_balance(f"live:{i}") for i in range(6)} == {"0.00"}
    assert {desk.stored_balance(f"demo:{i}") for i in range(6)} == {"-1"}


def test_who_was_refused_waits_a_second(bundled_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, clock = ProtectionDesk(bundled_server), [100.0]
    monkeypatch.setattr(protecting, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    desk.account("live:1", balance="-1")
    desk.client.hset("copyrisk:{live:1}:ledger", "reserved_usd", "5")
    assert desk.step() == 0
    desk.client.hset("copyrisk:{live:1}:ledger", "reserved_usd", "0")
    clock[0] += 0.99
    assert desk.step() == 0
    clock[0] += 0.02
    assert desk.step() == 1
    desk.close()


def test_a_key_of_another_type_holds_up_its_own_account_only(redis_server: Any) -> None:
    desk = ProtectionDesk(redis_server)
    spoiled = ("user_orders_index:{live:0}", *(f"copyrisk:{{live:{i}}}:{name}" for i, name in enumerate(OWN, 1)))
    for i in range(5):
        desk.account(f"live:{i}", balance=f"-{i + 1}")
    protector = desk.protector
    desk.tick()
    assert desk._engine is not None
    for key in spoiled:
        desk.client.set(key, "x")
    with capture_logs() as logs:
        assert protector.step(desk._engine.figures, 0) == 1
    assert [line["code"] for line in logs if line["event"] == "protection_waits"] == ["account_unreadable"] * 4
    assert [desk.stored_balance(f"live:{i}") for i in range(4)] == ["-1", "-2", "-3", "-4"]
    desk.assert_protected("live:4", "5.00")
    desk.client.delete(*spoiled)
    assert [desk.ledger(f"live:{i}") for i in range(4)] == [{}] * 4
    desk.close()


def test_what_is_noted_wrongly(desk: ProtectionDesk) -> None:
    desk.account("live:1", balance="-1")
    desk.client.sadd(NOTED, "live:9", "live:{x}", b"\xff", "", "root:1")
    assert desk.step() == 1
    desk.assert_protected("live:1", "1.00")
    desk.account("live:1", balance="-1")
    desk.client.set(NOTED, "x")
    with capture_logs() as logs:
        assert desk.step() == 0
    assert [line["event"] for line in logs if line["log_level"] == "critical"] == ["protection_impossible"]
    desk.client.delete(NOTED)
    assert desk.step() == 1


def test_a_server_without_the_functions_is_an_error(desk: ProtectionDesk) -> None:
    desk.account("live:1", balance="-1")
    protector = desk.protector
    desk.client.function_flush()
    with pytest.raises(StoreError) as failure:
        desk.step(protector)
    assert failure.value.code == "functions_missing"
    library.load(desk.client)


def test_what_the_servers_user_may_do_is_enough(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protecting, "_RETRY_S", 0.0)
    desk = ProtectionDesk(redis_server)
    desk.tick()
    own = desk.server
    desk.account("live:1", balance="-1")
    limit(desk, "protection")
    desk.client.function_flush()
    desk.client.acl_log_reset()
    desk.crash_at(monkeypatch, "protection.changed")
    desk.account("live:2", balance="-2")
    assert desk.step() == 1
    desk.assert_protected("live:1", "1.00")
    desk.assert_protected("live:2", "2.00")
    refused = {(seen["reason"], seen["object"]) for seen in desk.client.acl_log() if seen["username"] == "protection"}
    desk.client.acl_log_reset()
    assert refused - {("command", "client|setinfo")} == set()
    desk.server = own
    desk.close()


# ---- the candidates, and their slow twin

ROW = st.tuples(
    st.sampled_from([-1.0, -0.01, 0.0, -0.0, 0.01, float("nan"), float("-inf")]),
    st.integers(0, 2),
    st.sampled_from(list(LadderState)),
    st.sampled_from([RowCode.OK, RowCode.UNKNOWN, RowCode.MARKET_CLOSED, RowCode.ACCOUNT_CHANGING]),
)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(ROW, max_size=12), gone=st.sets(st.integers(0, 11)), known=st.integers(0, 12))
def test_candidates_are_who_is_flat_and_below(rows: list[Any], gone: set[int], known: int) -> None:
    book = Book(ValuationRules())
    numbers = book.ensure_accounts(f"live:{i}".encode() for i in range(len(rows)))
    figures = np.zeros(min(known, len(rows)), layout.FIGURES)
    for i, (balance, orders, state, code) in enumerate(rows):
        book.accounts["balance"][numbers[i]] = balance
        cells = np.zeros((orders, 65), np.uint8)
        for j in range(orders):
            name = f"O{i}-{j}".encode()
            cells[j, 0], cells[j, 1 : 1 + len(name)] = len(name), list(name)
        book.list_orders(numbers[i : i + 1], np.array([orders], np.int32), cells)
        if i < len(figures):
            figures[i]["state"], figures[i]["code"] = state, code
    book.remove_accounts(numbers[sorted(i for i in gone if i < len(rows))])
    wanted = [
        i
        for i, (balance, orders, state, code) in enumerate(rows[: len(figures)])
        if balance < 0 and not orders and state == LadderState.NO_MARGIN and code == RowCode.OK and i not in gone
    ]
    assert candidates(book, figures).tolist() == wanted


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(balance=st.decimals(-100_000, 100_000, places=4))
def test_afterwards_nobody_owes_and_nothing_is_lost(desk: ProtectionDesk, balance: Decimal) -> None:
    """What was there and what was booked is what is there, to the last digit."""
    desk.client.delete("copyrisk:{live:1}:ledger")
    desk.account("live:1", balance=f"{balance:f}")
    desk.step()
    given_away = Decimal(desk.ledger("live:1").get("protected_usd", "0"))
    assert desk.balance("live:1") == max(balance, Decimal(0)) == balance + given_away


# ---- the database


def test_the_books_of_the_database_add_up(bundled_server: Any, database: Database) -> None:
    """A loss and what is booked away, in whatever order they come, each once; nothing of it is an order."""
    desk = ProtectionDesk(bundled_server, database__url=database.engine.url.render_as_string(False))
    desk._own = make_workers(desk.new_client(), desk.settings, tuple(Kind), database)
    desk._own._consumer.join()
    account = desk.account("live:1", balance="1500")
    put(database, account, "1500")
    assert desk.open(account, "A")["code"] == "ok"
    desk.quote("1.0645", "1.06455")
    assert desk.do("close", account, order_id="A")["code"] == "ok"
    assert desk.step() == 1
    entries = desk.entries("copyrisk:history")
    for said in [*reversed(entries), *entries]:
        desk.client.xadd("copyrisk:history", said)
    recorder = Recorder(Pipe(desk.new_client()), database, retry_ms=50)
    recorder._consumer.join()
    until(lambda: recorder.step(1) == 0 and desk.client.xlen("copyrisk:history") == 0)
    assert desk.client.xlen("copyrisk:dead_letters") == 0
    assert balances(database)[account] == desk.balance(account) == 0
    assert booked(database) == {account: Decimal(-1500)}
    with database.engine.connect() as connection:
        query = "SELECT kind, order_id, amount_usd, order_quantity FROM copyrisk_ledger ORDER BY entry_id"
        found = [
            (kind, order, Decimal(str(paid)), lots) for kind, order, paid, lots in connection.exec_driver_sql(query)
        ]
        orders = connection.exec_driver_sql("SELECT COUNT(*) FROM live_user_orders").scalar_one()
    assert [row[:3] for row in found] == [("close", "A", Decimal("-2005")), (KIND, "", Decimal(505))]
    assert (found[1][3], orders) == (None, 1)
    desk.close()


def test_history_of_no_order() -> None:
    booking = {"entry_id": "live:1:7", "kind": KIND, "amount_usd": "5.00", "balance_usd": "0.00"}
    whole = {"user_type": "live", "user_id": "1", "version": "7", "ts": "1", "entry": json.dumps(booking)}
    parsed = parse_history(whole)
    assert parsed.order is None and parsed.booking is not None
    assert (parsed.booking["order_id"], parsed.booking["amount_usd"]) == ("", Decimal(5))
    wrong: list[tuple[dict[str, str], str]] = [
        ({"order_id": "O1"}, "history_contradicts"),
        ({"order": "{}"}, "history_contradicts"),
        ({"entry": json.dumps({**booking, "kind": "close"})}, "invalid_order_id"),
        ({"entry": ""}, "invalid_order_id"),
        ({"entry": json.dumps({**booking, "amount_usd": "x"})}, "invalid_amount_usd"),
        ({"ts": "x"}, "invalid_ts"),
        ({"user_id": "{"}, "invalid_account_id"),
    ]
    for more, code in wrong:
        with pytest.raises((Refused, InvalidId)) as failure:
            parse_history({**whole, **more})
        assert failure.value.code == code
