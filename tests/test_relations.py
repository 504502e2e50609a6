"""Relationships on a real server: begun, paused, resumed, ended, killed at every step, corrupted, checked, repaired."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from copyrisk.agreement import FollowerRow
from copyrisk.book import Book
from copyrisk.engine import Engine
from copyrisk.errors import InvalidId, Refused, StoreError, StoreUnavailable
from copyrisk.fields import COPY_FIELDS
from copyrisk.following import SETTING_NAMES, FollowRequest, Outcome
from copyrisk.hours import MarketHours
from copyrisk.rules import ValuationRules
from copyrisk.sql.database import Database
from copyrisk.store import library
from copyrisk.store.enrolment import follow
from copyrisk.store.pipe import Pipe
from copyrisk.store.relation_check import check_relations
from copyrisk.store.relation_repair import repair
from copyrisk.store.relations import followers_of, master_of, masters_of, pause, related_to, resume, unfollow


def decoded(found: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in found.items()}


class Store:
    """A server with two masters, keys spelled by hand."""

    def __init__(self, server: Any, client: Any) -> None:
        self.url, self.client = server.url, client
        self.pipe = Pipe(client)
        library.load(client)
        self.begin()

    def begin(self) -> None:
        for master in ("M1", "M2"):
            self.account(f"strategy_provider:{master}", account_number=f"N{master}", sending_orders="rock")

    def account(self, tag: str, **config: str) -> None:
        said = {"wallet_balance": "10000", "leverage": "200", "group": "VIP", "auto_cutoff_level": "60", **config}
        self.client.hset(f"user:{{{tag}}}:config", mapping=said)

    def follow(self, master: str, *followers: str, amount: str | None = "500", **more: Any) -> list[str]:
        requests = [FollowRequest(name, amount) for name in followers]
        return [outcome.code for outcome in follow(self.pipe, master, requests, **more)]

    def config(self, follower: str) -> dict[str, str]:
        return decoded(self.client.hgetall(f"user:{{copy_follower:{follower}}}:config"))

    def portfolio(self, follower: str) -> dict[str, str]:
        return decoded(self.client.hgetall(f"user_portfolio:{{copy_follower:{follower}}}"))

    def claim(self, follower: str) -> str | None:
        found = self.client.get(f"copy_follower_master:{follower}:provider_id")
        return None if found is None else str(found.decode())

    def active(self, master: str) -> set[str]:
        return {name.decode() for name in self.client.smembers(f"copy_master_followers:{master}:active")}

    def copy(self, follower: str, order_id: str, **order: str) -> None:
        said = {"order_status": "OPEN", "execution_status": "EXECUTED", "master_order_id": "MO1", **order}
        self.client.hset(f"user_holdings:{{copy_follower:{follower}}}:{order_id}", mapping=said)
        self.client.sadd(f"user_orders_index:{{copy_follower:{follower}}}", order_id)

    def assert_agrees(self) -> None:
        """Both directions, read without the check."""
        members = [(name, master) for master in ("M1", "M2") for name in self.active(master)]
        assert len({name for name, _ in members}) == len(members)
        for name, master in members:
            assert self.claim(name) == master and self.config(name)["copy_status"] == "active"
        for key in self.client.scan_iter("copy_follower_master:*"):
            name = key.decode().split(":")[1]
            status = self.config(name)["copy_status"]
            assert status == ("active" if (name, self.claim(name)) in members else "paused")


@pytest.fixture
def store(bundled_server: Any) -> Iterator[Store]:
    with bundled_server.client() as client:
        store = Store(bundled_server, client)
        yield store
        store.pipe.close()


def codes(outcomes: list[Outcome]) -> list[str]:
    return [outcome.code for outcome in outcomes]


def found(store: Store, **more: Any) -> dict[str, tuple[str, ...]]:
    return {one.subject: one.codes for one in check_relations(store.pipe, **more)}


def test_a_new_follower_is_configured_by_its_master(store: Store) -> None:
    request = FollowRequest(
        "F1", "2500.50", "N7", "f@example.com", {"multiplier": "0.50", "symbols_denied": "XAUUSD, EURUSD"}
    )
    assert codes(follow(store.pipe, "M1", [request])) == ["done"]
    assert store.config("F1") == {
        "wallet_balance": "2500.5",
        "investment_amount": "2500.5",
        "leverage": "200",
        "group": "VIP",
        "sending_orders": "rock",
        "auto_cutoff_level": "60",
        "account_number": "N7",
        "email": "f@example.com",
        "status": "1",
        "is_active": "1",
        "copy_status": "active",
        "multiplier": "0.5",
        "symbols_denied": "XAUUSD,EURUSD",
    }
    assert store.claim("F1") == "M1" and store.active("M1") == {"F1"}
    assert followers_of(store.pipe, "strategy_provider:M1") == ["F1"] == related_to(store.pipe, "M1")
    assert master_of(store.pipe, "F1") == "M1" and masters_of(store.pipe, ["F1", "F2"]) == {"F1": "M1"}
    assert master_of(store.pipe, "copy_follower:F2") is None
    assert found(store) == {}


def test_the_first_portfolio_is_the_one_that_a_tick_writes(bundled_server: Any, store: Store) -> None:
    heard = store.client.pubsub()
    heard.subscribe("portfolio_updates")
    assert store.follow("M1", "F1", "F2", amount="1234.567") == ["done", "done"]
    ours = store.portfolio("F1")
    time.sleep(0.02)
    messages = [message for message in (heard.get_message(timeout=0.5) for _ in range(3)) if message]
    heard.close()
    assert [message["data"] for message in messages[1:]] == [b"copy_follower:F1", b"copy_follower:F2"]
    store.client.delete("user_portfolio:{copy_follower:F1}")
    engine = Engine(bundled_server.client(), Book(ValuationRules()), MarketHours(always_open=True), 200)
    engine.tick()
    engine.close()
    theirs = store.portfolio("F1")
    assert abs(int(ours.pop("ts")) - int(theirs.pop("ts"))) < 60_000
    assert ours.pop("valued_ts") and theirs.pop("valued_ts")
    assert ours == theirs and ours["equity"] == "1234.57" and ours["margin_level"] == "0.0"


def test_all_copy_settings_can_be_given() -> None:
    assert {*SETTING_NAMES, "status", "is_active", "sending_orders", "copy_status"} == set(COPY_FIELDS)


def test_an_existing_follower_keeps_all_but_its_copy_settings(store: Store) -> None:
    store.account(
        "copy_follower:F1", wallet_balance="77", leverage="30", email="old", copy_status="Paused", multiplier="3"
    )
    before = store.config("F1")
    request = FollowRequest("copy_follower:F1", "9999", "N9", "new", {"multiplier": "2", "reverse": "1"})
    assert codes(follow(store.pipe, "M1", [request])) == ["done"]
    assert store.config("F1") == {**before, "copy_status": "active", "multiplier": "2", "reverse": "1"}
    assert store.portfolio("F1")["equity"] == "77.0"


def test_accounts_with_orders_or_unusable_figures_are_left_to_the_tick(store: Store) -> None:
    store.account("copy_follower:F1")
    store.copy("F1", "O1", master_order_id="")
    store.account("copy_follower:F2", leverage="0")
    store.account("copy_follower:F3")
    store.client.hset("user_portfolio:{copy_follower:F3}", mapping={"calc_status": "degraded", "equity": "1"})
    assert store.follow("M1", "F1", "F2", "F3") == ["done"] * 3
    assert store.portfolio("F1") == {} == store.portfolio("F2")
    assert store.portfolio("F3")["equity"] == "1"


def test_each_refusal_has_its_code_and_costs_no_other(store: Store) -> None:
    store.account("copy_follower:SAME", account_number="NM1")
    store.client.set("user:{copy_follower:BROKEN}:config", "text")
    assert store.follow("M2", "OTHER") == ["done"]
    assert store.follow("M1", "HAS") == ["done"]
    requests = {
        "GOOD": FollowRequest("GOOD", "100"),
        "self_follow": FollowRequest("strategy_provider:M1", "100"),
        "self_follow ": FollowRequest("SAME"),
        "self_follow  ": FollowRequest("X1", "100", "NM1"),
        "not_a_follower": FollowRequest("live:1", "100"),
        "invalid_user_type": FollowRequest("admin:1", "100"),
        "invalid_account_id": FollowRequest("a}b", "100"),
        "invalid_account_id ": FollowRequest("a\n", "100"),
        "invalid_account_id  ": FollowRequest("", "100"),
        "already_following": FollowRequest("HAS"),
        "other_master": FollowRequest("OTHER"),
        "account_missing": FollowRequest("NOBODY"),
        "named_twice": FollowRequest("copy_follower:GOOD", "5"),
        "key_unusable": FollowRequest("BROKEN", "5"),
        "invalid_investment": FollowRequest("X2", "1e5"),
        "invalid_investment ": FollowRequest("X2", "0"),
        "invalid_investment  ": FollowRequest("X2", "-1"),
        "invalid_multiplier": FollowRequest("X3", "5", settings={"multiplier": "nan"}),
        "invalid_copy_sl_mode": FollowRequest("X3", "5", settings={"copy_sl_mode": "x"}),
        "invalid_symbols_allowed": FollowRequest("X3", "5", settings={"symbols_allowed": "EURUSD,,"}),
        "invalid_stop_copying_on_drawdown": FollowRequest("X3", "5", settings={"stop_copying_on_drawdown": "101"}),
        "unknown_setting": FollowRequest("X3", "5", settings={"wallet_balance": "9"}),
        "unknown_setting ": FollowRequest("X3", "5", settings={"copy_status": "active"}),
        "invalid_email": FollowRequest("X3", "5", email="a\nb"),
        "invalid_account_number": FollowRequest("X3", "5", account_number="9" * 65),
        "GOOD2": FollowRequest("GOOD2", "100"),
    }
    outcomes = codes(follow(store.pipe, "M1", list(requests.values())))
    assert outcomes == ["done" if name.startswith("GOOD") else name.strip() for name in requests]
    assert store.active("M1") == {"GOOD", "GOOD2", "HAS"} and store.active("M2") == {"OTHER"}
    assert {key.decode().split(":")[1] for key in store.client.scan_iter("copy_follower_master:*")} == {
        "GOOD",
        "GOOD2",
        "HAS",
        "OTHER",
    }
    assert not store.client.exists("user:{copy_follower:X1}:config", "user:{copy_follower:X3}:config")


@pytest.mark.parametrize(
    ("master", "code"),
    [
        ("copy_follower:F1", "follower_as_master"),
        ("live:1", "not_a_master"),
        ("NOBODY", "master_missing"),
        ("a}b", "invalid_account_id"),
        ("x:1", "invalid_user_type"),
    ],
)
def test_who_is_no_master_is_not_followed(store: Store, master: str, code: str) -> None:
    before = set(store.client.keys("*"))
    assert store.follow(master, "F1", "F2") == [code, code]
    assert set(store.client.keys("*")) == before


def test_the_same_number_is_another_person_of_another_type(store: Store) -> None:
    store.account("strategy_provider:5")
    assert store.follow("5", "5") == ["done"]
    assert store.follow("M1", "5") == ["other_master"]


def test_a_master_without_usable_terms_makes_no_accounts(store: Store) -> None:
    for config in ({"leverage": "0"}, {"leverage": "x"}, {"group": "a{b"}):
        store.account("strategy_provider:M3", **config)
        assert store.follow("M3", "F1") == ["master_unusable"]
        store.client.delete("user:{strategy_provider:M3}:config")
    store.client.set("copy_master_followers:M2:active", "text")
    assert store.follow("M2", "F1") == ["key_unusable"]
    assert store.config("F1") == {} and store.claim("F1") is None


def test_pause_and_resume(store: Store) -> None:
    store.follow("M1", "F1", "F2")
    for _ in range(2):
        assert codes(pause(store.pipe, ["F1", "NO", "a b", "live:1"])) == [
            "done",
            "account_missing",
            "invalid_account_id",
            "not_a_follower",
        ]
        assert store.config("F1")["copy_status"] == "paused" and store.claim("F1") == "M1"
        assert store.active("M1") == {"F2"} and found(store) == {}
    assert related_to(store.pipe, "M1") == ["F1", "F2"]
    assert store.follow("M1", "F1") == ["already_following"]
    assert store.follow("M2", "F1") == ["other_master"]
    for _ in range(2):
        assert codes(resume(store.pipe, ["F1", "F1", "NO"])) == ["done", "done", "account_missing"]
        assert store.active("M1") == {"F1", "F2"} and found(store) == {}
    store.client.hset("user:{copy_follower:F1}:config", "copy_status", "what")
    assert codes(resume(store.pipe, ["F1"])) == ["not_paused"]
    assert codes(unfollow(store.pipe, ["F2"])) == ["done"]
    assert codes(pause(store.pipe, ["F2"])) == ["not_following"] == codes(resume(store.pipe, ["F2"]))


def test_unfollow_leaves_nothing_and_may_be_repeated(store: Store) -> None:
    store.follow("M1", "F1", "F2")
    pause(store.pipe, ["F2"])
    for _ in range(2):
        assert codes(unfollow(store.pipe, ["F1", "F2"])) == ["done", "done"]
        assert not list(store.client.scan_iter("copy_*"))
        assert store.config("F1")["copy_status"] == "stopped" == store.config("F2")["copy_status"]
        assert found(store) == {}
    store.account("copy_follower:F3")
    assert codes(unfollow(store.pipe, ["F3", "F4"])) == ["not_following", "account_missing"]
    assert store.follow("M2", "F1") == ["done"]
    assert store.config("F1")["wallet_balance"] == "500"


def test_open_copies_stand_against_the_end(store: Store) -> None:
    store.follow("M1", "F1", "F2", "F3", "F4")
    store.copy("F1", "C2")
    store.copy("F1", "C1", order_status="QUEUED")
    store.copy("F1", "OWN", master_order_id="")
    store.copy("F2", "DONE", order_status="CLOSED")
    store.client.sadd("user_orders_index:{copy_follower:F3}", "LOST")
    outcomes = unfollow(store.pipe, ["F1", "F2", "F3", "F4"])
    assert codes(outcomes) == ["has_open_copies", "done", "orders_unreadable", "done"]
    assert outcomes[0].open_copies == ("C1", "C2") and store.active("M1") == {"F1", "F3"}
    outcomes = unfollow(store.pipe, ["F1", "F3"], keep_open=True)
    assert codes(outcomes) == ["done", "done"] and outcomes[0].open_copies == ("C1", "C2")
    assert not list(store.client.scan_iter("copy_*")) and found(store) == {}


def test_of_two_masters_at_once_one_has_the_follower(bundled_server: Any, store: Store) -> None:
    names = [f"F{number}" for number in range(300)]
    with bundled_server.client() as other, ThreadPoolExecutor(2) as threads:
        second = Store(bundled_server, other)
        asked = [threads.submit(one.follow, master, *names) for one, master in ((store, "M1"), (second, "M2"))]
        first, last = (each.result() for each in asked)
        second.pipe.close()
    assert all({one, two} == {"done", "other_master"} for one, two in zip(first, last, strict=True))
    assert found(store) == {}


@pytest.mark.parametrize("seed", range(3))
def test_commands_at_the_same_time_leave_nothing_that_cannot_be_repaired(
    bundled_server: Any, store: Store, seed: int
) -> None:
    def act(number: int) -> None:
        drawn = random.Random(f"{seed} {number}")
        with bundled_server.client() as client:
            pipe = Pipe(client)
            for _ in range(40):
                names = drawn.sample(["F1", "F2", "F3"], drawn.randint(1, 3))
                what = drawn.choice([unfollow, pause, resume, None, None])
                if what is None:
                    follow(pipe, drawn.choice(["M1", "M2"]), [FollowRequest(name, "500") for name in names])
                else:
                    what(pipe, names)
            pipe.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(act, range(4)))
    assert repair(store.pipe, check_relations(store.pipe)) == []
    assert found(store) == {}
    store.assert_agrees()


def test_a_key_that_may_not_be_read_ends_no_relationship(bundled_server: Any, store: Store) -> None:
    store.follow("M1", "F1")
    rights = ("on", ">secret", "+@all", "~copy_*", "~user:{strategy*")
    store.client.execute_command("ACL", "SETUSER", "half", "reset", *rights)
    with redis.Redis.from_url(bundled_server.url, username="half", password="secret") as client:
        pipe = Pipe(client)
        with pytest.raises(StoreError) as refused:
            check_relations(pipe)
        pipe.close()
    store.client.execute_command("ACL", "DELUSER", "half")
    assert refused.value.code == "key_unusable"


def test_a_claim_is_only_given_up_by_its_own(store: Store) -> None:
    """Two processes claim one follower: one has it, whoever comes later is refused."""
    store.follow("M1", "F1")
    store.client.hset("user:{copy_follower:F1}:config", "copy_status", "stopped")
    store.client.set("copy_follower_master:F1:provider_id", "M2")
    assert store.follow("M1", "F1") == ["other_master"]
    store.client.set("copy_follower_master:F1:provider_id", "a:b")
    assert codes(pause(store.pipe, ["F1"])) == ["master_invalid"] == codes(unfollow(store.pipe, ["F1"]))


def test_thousands_in_one_call_in_a_handful_of_round_trips(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    trips = 0
    exchange = store.pipe.exchange

    def counted(commands: Any) -> list[Any]:
        nonlocal trips
        trips += 1
        return exchange(commands)

    monkeypatch.setattr(store.pipe, "exchange", counted)
    names = [f"F{number}" for number in range(5_000)]
    started = time.monotonic()
    assert set(store.follow("M1", *names)) == {"done"}
    assert trips <= 5 * 15
    assert len(followers_of(store.pipe, "M1")) == 5_000
    trips = 0
    assert {one.code for one in pause(store.pipe, names)} == {one.code for one in resume(store.pipe, names)} == {"done"}
    assert {one.code for one in unfollow(store.pipe, names)} == {"done"}
    assert trips <= 5 * 20
    assert time.monotonic() - started < 10.0


def test_known_failure_32_keys_that_everything_relies_on_are_written_and_removed(store: Store) -> None:
    """Relationship keys were never written by the service that read them; look-up keys were never removed."""
    assert not list(store.client.scan_iter("copy_*"))
    assert store.follow("M1", "F1", "F2") == ["done", "done"]
    assert store.active("M1") == {"F1", "F2"} and store.claim("F1") == "M1" == store.claim("F2")
    unfollow(store.pipe, ["F1"])
    assert store.active("M1") == {"F2"} and store.claim("F1") is None
    unfollow(store.pipe, ["F2"])
    assert not list(store.client.scan_iter("copy_*"))


# The check


def damage_and_expect(store: Store) -> dict[str, tuple[str, ...]]:
    """Every kind of damage, each on a follower of its own."""
    names = [f"D{number:02}" for number in range(1, 18)]
    store.follow("M1", *names)
    pause(store.pipe, ["D03", "D15"])
    client = store.client
    client.srem("copy_master_followers:M1:active", "D01", "D06")
    client.delete("copy_follower_master:D02:provider_id")
    client.sadd("copy_master_followers:M1:active", "D03", "not an id", "GHOST")
    client.sadd("copy_master_followers:M2:active", "D04", "D06")
    client.delete("user:{copy_follower:D05}:config")
    client.hset("user:{copy_follower:D07}:config", "copy_status", "stopped")
    client.hset("user:{copy_follower:D08}:config", "copy_status", "what")
    client.hdel("user:{copy_follower:D09}:config", "copy_status")
    client.set("copy_follower_master:D10:provider_id", "M9")
    client.set("copy_follower_master:D11:provider_id", "no id")
    client.delete("copy_follower_master:D12:provider_id")
    client.sadd("copy_master_followers:M2:active", "D12")
    client.delete("copy_follower_master:D13:provider_id")
    client.srem("copy_master_followers:M1:active", "D13")
    client.delete("copy_follower_master:D14:provider_id")
    client.hset("copy_follower_master:D14:provider_id", "a", "b")
    client.set("user:{copy_follower:D15}:config", "text")
    client.set("copy_master_followers:M3:active", "text")
    client.set("copy_follower_master:a b:provider_id", "M1")
    client.sadd("copy_master_followers:{x}:active", "D17")
    client.set("copy_follower_master:LOST:provider_id", "M1")
    return {
        "copy_follower_master:a b:provider_id": ("invalid_key",),
        "copy_follower_master:D11:provider_id": ("master_invalid",),
        "copy_follower_master:D14:provider_id": ("wrong_type",),
        "copy_master_followers:{x}:active": ("invalid_key",),
        "copy_master_followers:M1:active": ("member_invalid",),
        "copy_master_followers:M3:active": ("wrong_type",),
        "D01": ("not_in_set",),
        "D02": ("in_set_without_master",),
        "D03": ("paused_in_set",),
        "D04": ("two_masters",),
        "D05": ("follower_missing",),
        "D06": ("other_master",),
        "D07": ("half_ended",),
        "D08": ("status_invalid",),
        "D09": ("status_absent",),
        "D10": ("master_missing",),
        "D11": ("in_set_without_master",),
        "D12": ("in_set_without_master", "two_masters", "status_without_master"),
        "D13": ("status_without_master",),
        "D14": ("in_set_without_master",),
        "D15": ("follower_missing",),
        "GHOST": ("in_set_without_master",),
        "LOST": ("follower_missing",),
    }


def test_every_kind_of_damage_is_found_and_repaired(store: Store) -> None:
    expected = damage_and_expect(store)
    differences = check_relations(store.pipe)
    assert {one.subject: one.codes for one in differences} == expected
    assert repair(store.pipe, differences) == []
    assert found(store) == {}
    # D01 comes back: two records agree that it copies; so does D09, of which none says otherwise. D02 and others pause.
    assert store.active("M1") == {"D01", "D04", "D09", "D16", "D17"} and store.active("M2") == set()
    paused = set(related_to(store.pipe, "M1")) - store.active("M1")
    assert paused == {"D02", "D03", "D06", "D08", "D11", "D14"}
    assert {store.config(name)["copy_status"] for name in paused} == {"paused"}
    assert {store.config(name)["copy_status"] for name in ("D07", "D10", "D12", "D13")} == {"stopped"}
    assert store.config("D05") == {} and store.client.get("user:{copy_follower:D15}:config") == b"text"


def test_what_has_changed_meanwhile_is_not_repaired(store: Store) -> None:
    store.follow("M1", "F1", "F2")
    store.client.srem("copy_master_followers:M1:active", "F1", "F2")
    differences = check_relations(store.pipe)
    pause(store.pipe, ["F1"])
    assert [one.subject for one in repair(store.pipe, differences)] == ["F1"]
    assert store.config("F1")["copy_status"] == "paused" and store.active("M1") == {"F2"}


def test_a_check_of_thousands_changes_nothing_and_is_quick(store: Store) -> None:
    store.follow("M1", *(f"F{number}" for number in range(3_000)))
    before, started = store.client.dbsize(), time.monotonic()
    assert check_relations(store.pipe) == []
    assert time.monotonic() - started < 5.0 and store.client.dbsize() == before


# Killed at every step

FOLLOW_POINTS = ("claimed", "configured", "recorded", "valued", "joined", "active")
WORDS = {
    "follow": ("follow", "M1", "F1", "F2", "--investment", "500"),
    "pause": ("pause", "F1", "F2"),
    "resume": ("resume", "F1", "F2"),
    "unfollow": ("unfollow", "F1", "F2"),
}
DEATHS = [
    *(("follow", f"relations.{point}") for point in FOLLOW_POINTS),
    *(("pause", f"relations.{point}") for point in ("paused", "left", "recorded")),
    *(("resume", f"relations.{point}") for point in ("recorded", "joined", "resumed")),
    *(("unfollow", f"relations.{point}") for point in ("stopped", "left", "recorded", "given_up")),
]


def run(store: Store, words: tuple[str, ...], crash_at: str = "") -> int:
    """The command as an operator gives it, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
    command = [sys.executable, "-m", "copyrisk.cli", "--redis", store.url, *words]
    ended = subprocess.run(
        command, env=clean | {"COPYRISK_CRASH_AT": crash_at}, stdout=subprocess.DEVNULL, timeout=60, check=False
    )
    return ended.returncode


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(("what", "point"), DEATHS)
def test_killed_at_every_step(store: Store, what: str, point: str) -> None:
    """Nothing half done copies; the same again goes on, or the check puts it right."""
    for goes_on in (True, False):
        store.client.flushdb()
        store.begin()
        if what != "follow":
            assert store.follow("M1", "F1", "F2") == ["done", "done"]
        if what == "resume":
            pause(store.pipe, ["F1", "F2"])
        assert run(store, WORDS[what], point) == -signal.SIGKILL
        for name in ("F1", "F2"):
            if store.config(name).get("copy_status") == "active":
                assert store.claim(name) == "M1" and name in store.active("M1")
        if goes_on:
            run(store, WORDS[what])  # 1 if it had been done: `already_following`
            wanted = {"follow": "active", "resume": "active", "pause": "paused", "unfollow": "stopped"}[what]
            assert {store.config(name)["copy_status"] for name in ("F1", "F2")} == {wanted}
        else:
            repair(store.pipe, check_relations(store.pipe))
        assert found(store) == {}
        store.assert_agrees()


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("point", ["strays", "switched_off", "left", "claimed", "recorded", "joined", "switched_on"])
def test_a_repair_that_is_killed_is_repaired(store: Store, point: str) -> None:
    damage_and_expect(store)
    assert run(store, ("followers", "--check", "--repair"), f"repair.{point}") == -signal.SIGKILL
    repair(store.pipe, check_relations(store.pipe))
    assert found(store) == {}
    store.assert_agrees()


# Any interleaving, and any corruption


class Machine(RuleBasedStateMachine):
    """Commands and corruptions in any order; after a repair all agrees."""

    store: Store
    names = st.lists(st.sampled_from(["F1", "F2", "F3"]), min_size=1, max_size=3)
    name = st.sampled_from(["F1", "F2", "F3"])
    master = st.sampled_from(["M1", "M2"])

    @initialize()
    def empty(self) -> None:
        self.store.client.flushdb()
        self.store.begin()

    @rule(master=master, names=names)
    def follow(self, master: str, names: list[str]) -> None:
        self.store.follow(master, *names)

    @rule(names=names, keep_open=st.booleans())
    def unfollow(self, names: list[str], keep_open: bool) -> None:
        unfollow(self.store.pipe, names, keep_open=keep_open)

    @rule(names=names)
    def pause(self, names: list[str]) -> None:
        pause(self.store.pipe, names)

    @rule(names=names)
    def resume(self, names: list[str]) -> None:
        resume(self.store.pipe, names)

    @rule(name=name, value=st.sampled_from([None, "M1", "M2", "M9", "no id", b"\xff", ""]))
    def corrupt_claim(self, name: str, value: Any) -> None:
        key = f"copy_follower_master:{name}:provider_id"
        if value is None:
            self.store.client.delete(key)
        else:
            self.store.client.set(key, value)

    @rule(name=st.sampled_from(["F1", "F2", "F9", "no id", b"\xff"]), master=master, is_in=st.booleans())
    def corrupt_set(self, name: Any, master: str, is_in: bool) -> None:
        client, key = self.store.client, f"copy_master_followers:{master}:active"
        if client.type(key) == b"hash":
            return
        (client.sadd if is_in else client.srem)(key, name)

    @rule(name=name, value=st.sampled_from(["active", "Paused", "stopped", "what", ""]))
    def corrupt_status(self, name: str, value: str) -> None:
        if self.store.config(name):
            self.store.client.hset(f"user:{{copy_follower:{name}}}:config", "copy_status", value)

    @rule(name=name)
    def lose_configuration(self, name: str) -> None:
        self.store.client.delete(f"user:{{copy_follower:{name}}}:config")

    @rule(key=st.sampled_from(["copy_master_followers:M1:active", "copy_follower_master:F1:provider_id"]))
    def break_key(self, key: str) -> None:
        self.store.client.delete(key)
        self.store.client.hset(key, "a", "b")

    @rule()
    def repair(self) -> None:
        before = {name for name in ("F1", "F2", "F3") if self.store.config(name).get("copy_status") in ("active", "")}
        assert repair(self.store.pipe, check_relations(self.store.pipe)) == []
        assert check_relations(self.store.pipe) == []
        self.store.assert_agrees()
        assert self.store.active("M1") | self.store.active("M2") <= before  # a repair switches nobody on

    @invariant()
    def balances_stay(self) -> None:
        for name in ("F1", "F2", "F3"):
            config = self.store.config(name)
            assert config == {} or config["wallet_balance"] == "500"


def test_whatever_happened_a_repair_makes_all_records_agree(store: Store) -> None:
    Machine.store = store
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=checks)
    )


# With a database


class Rows:
    """Rows of followers and masters."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def put(self, table: str, **values: object) -> None:
        named = sa.table(table, *(sa.column(name) for name in values))
        with self.database.engine.begin() as connection:
            connection.execute(named.insert().values(**values))

    def set(self, follower: str, **values: object) -> None:
        named = sa.table("copy_follower_accounts", sa.column("id"), *(sa.column(name) for name in values))
        with self.database.engine.begin() as connection:
            connection.execute(named.update().where(named.c.id == follower).values(**values))

    def follower(self, name: str) -> tuple[str | None, str | None]:
        row = self.database.followers().rows[name]
        return row.master, row.status


@pytest.fixture
def rows(database: Database) -> Rows:
    rows = Rows(database)
    for name in ("F1", "F2", "F3", "f1"):
        rows.put("copy_follower_accounts", id=name, wallet_balance=70, leverage=100)
    rows.put("strategy_provider_accounts", id="M5", wallet_balance=900, leverage=50, group="VIP")
    return rows


def test_the_database_has_what_redis_lacks_and_is_told(store: Store, rows: Rows) -> None:
    database = rows.database
    assert store.follow("M5", "F1", "F2", "NEW", amount=None, database=database) == ["done", "done", "account_missing"]
    assert store.config("F1")["wallet_balance"] == "70" and "strategy_provider_id" not in store.config("F1")
    assert store.follow("M5", "NEW", database=database) == ["done"] and store.config("NEW")["leverage"] == "50"
    assert rows.follower("F1") == ("M5", "active") and rows.follower("f1") == (None, None)
    pause(store.pipe, ["F1"], database=database)
    assert rows.follower("F1") == ("M5", "paused")
    resume(store.pipe, ["F1"], database=database)
    assert rows.follower("F1") == ("M5", "active") and found(store, database=database) == {}
    unfollow(store.pipe, ["F1"], database=database)
    assert rows.follower("F1") == (None, "stopped") and found(store, database=database) == {}


def test_the_check_holds_the_tables_against_the_keys(store: Store, rows: Rows) -> None:
    database = rows.database
    store.follow("M5", "F1", "F2", "F3", "f1", "NEW", database=database)
    rows.set("F1", strategy_provider_id="M1")
    rows.set("F2", copy_status="paused")
    rows.set("F3", strategy_provider_id=None)
    store.client.delete("copy_follower_master:f1:provider_id", "user:{copy_follower:f1}:config")
    store.client.srem("copy_master_followers:M5:active", "f1")
    differences = check_relations(store.pipe, database)
    assert {one.subject: one.codes for one in differences} == {
        "F1": ("table_other_master",),
        "F2": ("table_not_active",),
        "F3": ("table_behind",),
        "f1": ("master_lost", "config_missing", "table_behind"),
    }
    assert repair(store.pipe, differences, database) == []
    assert found(store, database=database) == {}
    assert rows.follower("F1") == ("M5", "paused") == rows.follower("F2") == rows.follower("f1")
    assert rows.follower("F3") == ("M5", "active") and store.active("M5") == {"F3", "NEW"}
    assert store.config("f1")["wallet_balance"] == "70" and store.claim("f1") == "M5"


def test_all_of_redis_lost_comes_back_paused(store: Store, rows: Rows) -> None:
    database = rows.database
    store.follow("M5", "F1", "F2", "F3", database=database)
    unfollow(store.pipe, ["F3"], database=database)
    store.client.flushdb()
    assert set(found(store, database=database)) == {"F1", "F2"}
    assert repair(store.pipe, check_relations(store.pipe, database), database) == []
    assert found(store, database=database) == {} and store.active("M5") == set()
    assert related_to(store.pipe, "M5") == ["F1", "F2"]
    assert codes(resume(store.pipe, ["F1", "F2"], database=database)) == ["done", "done"]
    assert store.active("M5") == {"F1", "F2"}


def test_rows_are_written_singly_where_one_stands_in_the_way(rows: Rows) -> None:
    long = FollowerRow("F2", "M" * 100, "active")
    written = rows.database.write_followers(
        [
            FollowerRow("F1", "M1", "active"),
            long,
            FollowerRow("ABSENT", "M1", "active"),
            FollowerRow("F3", "M1", "active"),
        ]
    )
    takes_all = rows.database.engine.dialect.name == "sqlite"  # its columns have no lengths
    assert written == [None, None if takes_all else "row_refused", None, None]
    assert rows.follower("F1") == rows.follower("F3") == ("M1", "active")
    assert set(rows.database.followers().rows) == {"F1", "F2", "F3", "f1"}


def test_a_brokers_table_may_lack_the_columns(store: Store, empty: Database) -> None:
    with empty.engine.begin() as connection:
        columns = "id INTEGER PRIMARY KEY, wallet_balance DECIMAL(18,6), leverage INTEGER"
        connection.exec_driver_sql(f"CREATE TABLE copy_follower_accounts ({columns})")
        connection.exec_driver_sql("INSERT INTO copy_follower_accounts VALUES (7, 55, 100)")
    report = empty.migrate()
    assert report.is_ready and report.absent.count("copy_follower_accounts.copy_status") == 1
    assert "copy_follower_accounts.strategy_provider_id" in report.absent
    assert store.follow("M1", "7", "F9", amount=None, database=empty) == ["done", "account_missing"]
    assert found(store, database=empty) == {}
    empty.undo_migrations()
    assert [column["name"] for column in sa.inspect(empty.engine).get_columns("copy_follower_accounts")] == [
        "id",
        "wallet_balance",
        "leverage",
    ]


class Down:
    """A database that does not answer."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object) -> None:
            raise StoreUnavailable("down", code="database_unavailable")

        return fail


def test_a_database_that_is_down_keeps_nobody_copying(store: Store) -> None:
    store.follow("M1", "F1", "F2")
    down: Any = Down()
    assert store.follow("M1", "F3", database=down) == ["database_unavailable"]
    store.account("copy_follower:F4")
    assert store.follow("M1", "F4", database=down) == ["database_unavailable"]
    assert store.claim("F4") is None and "F4" not in store.active("M1")
    (paused,) = pause(store.pipe, ["F1"], database=down)
    assert paused.is_done and paused.behind == "database_unavailable"
    assert codes(resume(store.pipe, ["F1"], database=down)) == ["database_unavailable"]
    assert store.config("F1")["copy_status"] == "paused"
    (ended,) = unfollow(store.pipe, ["F2"], database=down)
    assert ended.is_done and ended.behind == "database_unavailable" and store.claim("F2") is None


def test_ids_that_are_none_reach_no_key(store: Store) -> None:
    for bad in ("a b", "", "x" * 65, "a}b"):
        with pytest.raises(InvalidId):
            followers_of(store.pipe, bad)
        with pytest.raises(InvalidId):
            masters_of(store.pipe, [bad])
    with pytest.raises(Refused):
        followers_of(store.pipe, "copy_follower:F1")
    letters = random.Random(7)
    for _ in range(200):
        name = "".join(letters.choice("ab:{}\n\0é *?[]%") for _ in range(letters.randint(0, 9)))
        pause(store.pipe, [name])
        unfollow(store.pipe, [name])
        store.follow(name, name)
        store.follow("M1", name)
    assert not [key for key in store.client.keys("*") if b"}b" in key or b"\n" in key]
