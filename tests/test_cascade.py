"""Cascades with real servers: who is closed, who is not, what is kept of it, and what comes of trouble."""

import json
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk.cascade import Before, Cascade, Chase, Stage, Standing, parse_standing, standing_text, summarise
from copyrisk.errors import InvalidId, StoreError
from copyrisk.identifiers import parse_account
from tests.cascade_desk import EVENT, SAID, CascadeDesk, assert_ended
from tests.copying_desk import MASTER, names
from tests.trading import assert_books, assert_paid, dump, lend

LEASE = "copyrisk:{cutoff}:lease"
RECORD = f"copyrisk:{{cutoff}}:cascade:{EVENT}"


# ---- pure


def money(text: str) -> Decimal:
    return Decimal(text)


standings = st.builds(
    Standing,
    st.sampled_from([stage for stage in Stage if stage is not Stage.WAITING]),
    st.dictionaries(
        st.sampled_from(["copy-1", "copy-2", "O"]),
        st.builds(Before, st.sampled_from(["0", "0.37"]).map(money), st.sampled_from(["0.00", "-7.25"]).map(money)),
        max_size=3,
    ),
    *(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    st.decimals(0, 1000, places=2),
    st.none() | st.decimals(-1000, 1000, places=2),
    st.sampled_from(["", "quote_stale"]),
    *(st.integers(0, 10**13), st.integers(0, 10**13)),
)


@settings(max_examples=50)
@given(standings)
def test_a_standing_is_read_as_it_was_written(standing: Standing) -> None:
    assert parse_standing(standing_text(standing)) == standing
    assert parse_standing(standing_text(Standing())) == Standing()


@settings(max_examples=50)
@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5).map(json.dumps))
def test_a_text_that_is_no_standing_is_refused_in_known_ways(stored: str) -> None:
    try:
        parse_standing(stored)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    else:
        assert stored == ""


def test_what_cannot_be_closed_is_tried_more_and_more_seldom() -> None:
    chase, now_s = Chase(), 100.0
    waits = []
    for _ in range(12):
        chase.note("quote_stale", now_s)
        waits.append(round(chase.due_s - now_s, 6))
        now_s = chase.due_s
    assert waits == sorted(waits) and (waits[0], waits[-1]) == (0.1, 5.0)
    assert not chase.is_hopeless(now_s, 300.0) and chase.is_hopeless(100.0 + 300.1, 300.0)
    chase.note("", now_s)
    assert chase.due_s == now_s and not chase.is_hopeless(now_s + 1e9, 0.0)
    chase.note("in_flight", now_s)
    assert not chase.is_hopeless(now_s + 1e9, 0.0)  # only a report or an operator ends it
    for _ in range(8):
        chase.note("orders_unreadable", now_s)
    assert chase.is_hopeless(now_s, 300.0)


def test_a_result_that_is_not_known_of_one_is_not_known_of_all() -> None:
    one = Standing(Stage.DONE, result_usd=money("5"), closed=1, lots=money("0.5"))
    assert summarise({"A": one, "B": one}, 7)["result_usd"] == "10.00"
    assert summarise({"A": one, "B": Standing(Stage.DONE, result_usd=None, unknown=1)}, 7) == {
        "followers": 2,
        "done": 2,
        "flat": 0,
        "failed": 0,
        "failed_by_reason": {},
        "closed": 1,
        "cancelled": 0,
        "unknown": 1,
        "lots": "0.5",
        "result_usd": None,
        "duration_ms": 7,
    }


# ---- who is closed


def test_what_was_copied_from_the_master_is_closed_and_nothing_else(redis_server: Any) -> None:
    desk = CascadeDesk(redis_server)
    frozen = names(desk.followers(3)) | {"FLAT"}
    desk.follower("FLAT", multiplier="0.0001")
    desk.account("strategy_provider:N", balance="100000")
    desk.follower("OTHER", master="N")
    assert desk.open("strategy_provider:N", "N1", lots="1")["code"] == "ok"
    desk.open_master("O", stop_loss="1.05", take_profit="1.2")  # an order with levels is closed like any other
    desk.open_master("P", order_type="BUY_LIMIT", price="1.05")
    assert desk.open("copy_follower:F0", "OWN", lots="0.1")["code"] == "ok"
    desk.client.srem("copy_master_followers:M:active", "F1")  # F1 came from N, and kept a copy open
    desk.client.sadd("copy_master_followers:N:active", "F1")
    assert desk.open("strategy_provider:N", "N2", lots="1")["code"] == "ok"
    desk.replicate()
    desk.client.srem("copy_master_followers:N:active", "F1")
    desk.client.sadd("copy_master_followers:M:active", "F1")
    desk.client.hset("user_holdings:{copy_follower:F2}:OWN2", mapping={"symbol": "?"})  # no copy, whatever it is
    desk.client.sadd("user_orders_index:{copy_follower:F2}", "OWN2")
    assert desk.begin() == "started"
    desk.follower("LATE")  # joined after the start
    assert desk.open(MASTER, "LATER", lots="1")["code"] == "ok"
    desk.client.srem("copy_master_followers:M:active", "F2")  # left after it
    desk.cascade()
    desk.client.srem("user_orders_index:{copy_follower:F2}", "OWN2")
    desk.client.delete("user_holdings:{copy_follower:F2}:OWN2")
    assert desk.stages() == dict.fromkeys(sorted(frozen - {"FLAT"}), "done") | {"FLAT": "flat"}
    assert {account: desk.index(f"copy_follower:{account}") for account in sorted(frozen)} == {
        "F0": {"OWN"},
        "F1": {order["order_id"] for order in [desk.copies("N2")["F1"]]},
        "F2": set(),
        "FLAT": set(),
    }
    assert set(desk.copies("N1")) == {"OTHER"}
    assert {said["n"][1] for name, said in desk.standings().items() if name != "FLAT"} == {1}  # the pending ones
    counts = {"followers": 4, "done": 3, "flat": 1, "failed": 0, "closed": 3, "cancelled": 3, "unknown": 0}
    said = {"failed_by_reason": {}, "lots": "0.3", "result_usd": "-1.50", "duration_ms": 0}
    assert desk.summary() | {"duration_ms": 0} == counts | said
    reasons = {json.loads(event["order"])["reason"] for event in desk.events(type="stop_out", event="done")}
    assert reasons == {"cascade"}
    assert_ended(desk, sorted(frozen))
    for name in ("F0", "F2"):
        assert_paid(desk, f"copy_follower:{name}", 10_000)
    desk.replicate()  # what the master asks afterwards finds nothing to do
    assert desk.copies("O") == desk.copies("P") == {}
    assert set(desk.copies("LATER")) == {"LATE", "F0", "F1"}


def test_an_order_whose_owner_nobody_knows_counts_as_the_masters(bundled_server: Any) -> None:
    desk = CascadeDesk(bundled_server)
    desk.follower("F")
    desk.open_master("O")
    desk.client.delete("order_data:O")
    desk.begin_and_cascade()
    assert desk.stages() == {"F": "done"}
    assert desk.copies() == {}


def test_those_worst_off_are_first(bundled_server: Any) -> None:
    desk = CascadeDesk(bundled_server)
    desk.followers(4)
    cascader = desk.cascader
    for place in range(3):
        cascader._book.ensure_accounts([f"copy_follower:F{place}".encode()])
        row = cascader._book.row_of(parse_account(f"copy_follower:F{place}"))
        assert row == place
    figures = cascader._figures().copy()
    figures.resize(3)
    figures["margin_level_pct"], figures["used_margin_executed"] = (70.0, float("nan"), 12.0), 1.0
    cascader._figures = lambda: figures
    assert cascader._worst_first(["F0", "F1", "F2", "F3"]) == ["F2", "F0", "F3", "F1"]


# ---- beginning


def test_a_cascade_is_begun_once(redis_server: Any) -> None:
    desk = CascadeDesk(redis_server)
    desk.followers(2)
    desk.open_master("O")
    assert desk.begin() == "started"
    before = dump(desk.client, lambda key: key == LEASE)
    assert desk.begin() == desk.begin("another-event") == "running"
    other = desk.new_cascader(owner="second")
    desk.client.delete(LEASE)
    assert other.begin(parse_account(MASTER), EVENT, SAID) == "running"
    assert other.begin(parse_account(MASTER), "another-event", SAID) == "running"
    assert dump(desk.client, lambda key: key == LEASE) == before
    desk.drop_cascader()
    desk.cascade()
    assert desk.begin() == "finished"
    assert desk.begin("another-event") == "started"
    desk.cascade()
    assert desk.stages("another-event") == {"F0": "flat", "F1": "flat"}
    ended = desk.client.zrange("copyrisk:{cutoff}:cascades_done", 0, -1)
    assert set(ended) == {EVENT.encode(), b"another-event"}  # by their ms, which may be the same one
    assert 0 < desk.client.pttl(RECORD) <= 30 * 86_400_000
    assert [entry.reason for entry in desk.entries_recorded] == ["cascade_begins", "cascade_ends"] * 2
    assert desk.entries_recorded[0].said["accounts"] == ["copy_follower:F0", "copy_follower:F1"]


@pytest.mark.parametrize(
    ("master", "code"),
    [
        ("strategy_provider:NOBODY", "unknown_master"),
        ("copy_follower:F", "unknown_master"),
        ("strategy_provider:ALONE", "no_followers"),
        ("strategy_provider:WRONG", "followers_unreadable"),
    ],
)
def test_a_cascade_that_cannot_be_begun_changes_nothing(bundled_server: Any, master: str, code: str) -> None:
    desk = CascadeDesk(bundled_server)
    desk.follower("F")
    desk.follower("LOST", master="NOBODY")
    for name in ("ALONE", "WRONG"):
        desk.account(f"strategy_provider:{name}")
    desk.client.set("copy_master_followers:WRONG:active", "F")
    before = dump(desk.client, lambda key: key == LEASE)
    assert desk.begin(master=master) == code
    assert dump(desk.client, lambda key: key == LEASE) == before
    assert desk.entries_recorded == []


@pytest.mark.parametrize("event", ["", "a b", "a}b", "x" * 129, "ä"])
def test_an_id_that_is_none_is_refused(bundled_server: Any, event: str) -> None:
    desk = CascadeDesk(bundled_server)
    desk.follower("F")
    with pytest.raises(InvalidId) as refused:
        desk.begin(event)
    assert refused.value.code == "invalid_cascade_id"
    assert not desk.running()


def test_a_long_list_is_frozen_whole(redis_server: Any) -> None:
    desk = CascadeDesk(redis_server)
    members = [f"follower-with-a-long-name-{place:06}" for place in range(10_010)]
    desk.client.sadd("copy_master_followers:M:active", "not an id", *members)
    assert desk.begin() == "started"
    assert desk.stages().keys() == {*members, "not an id"}
    assert desk.standings()["not an id"]["c"] == "invalid_account_id"
    assert "accounts" in desk.entries_recorded[0].said and not desk.entries_recorded[0].said["accounts"]
    assert desk.entries_recorded[0].said["followers"] == len(members) + 1


def test_nothing_is_begun_that_could_not_be_recorded(bundled_server: Any) -> None:
    desk = CascadeDesk(bundled_server)
    desk.followers(1)
    desk.open_master("O")

    def refuse(_entries: Any) -> None:
        raise StoreError("the trail is not there", code="trail_down")

    desk.cascader._record = refuse
    with pytest.raises(StoreError):
        desk.begin()
    assert not desk.running() and len(desk.copies()) == 1


# ---- through the provider


def test_with_a_provider_it_lasts_until_the_reports_are_in(bundled_server: Any) -> None:
    desk = CascadeDesk(bundled_server, "barclays")
    frozen = sorted(names(desk.followers(3)))
    desk.open(MASTER, "O")
    desk.replicate()
    desk.provider_says("filled")
    desk.open(MASTER, "P")
    desk.replicate()
    desk.provider_says("filled", MASTER)
    desk.provider_says("filled", "copy_follower:F0", "open")  # the others' are still being opened
    desk.replicate()
    assert desk.begin() == "started"
    assert desk.step().running == desk.step().running == 1
    assert set(desk.stages().values()) == {"closing"}
    assert len(desk.unanswered(action="close")) == 4  # and not asked a second time
    desk.provider_says("rejected", "copy_follower:F1", "close", reason="market")
    desk.provider_says("filled", action="open")
    desk.provider_says("filled", action="close")
    assert desk.step().running == 1
    assert len(desk.unanswered(action="close")) == 3  # F1 once more, and what was opened meanwhile
    assert desk.stages() == {"F0": "done", "F1": "closing", "F2": "closing"}
    desk.provider_says("filled", action="close")
    desk.cascade()
    assert_ended(desk, frozen)
    assert (desk.summary()["closed"], desk.copies("O"), desk.copies("P")) == (6, {}, {})


# ---- several processes


def test_who_has_not_the_lease_does_nothing(bundled_server: Any) -> None:
    desk = CascadeDesk(bundled_server)
    desk.followers(3)
    desk.open_master("O")
    desk.begin()
    other = desk.new_cascader(owner="second")
    before = dump(desk.client)
    assert other.begin(parse_account(MASTER), "another-event", SAID) == "running"
    with pytest.raises(StoreError, match="another process has the lease"):
        other.step(0.0)
    assert dump(desk.client) == before
    desk.cascade()
    assert_ended(desk, ["F0", "F1", "F2"])


@pytest.mark.parametrize("lost_at", ["cascade.noted", "worker.decided", "cascade.closed"])
def test_a_lease_lost_in_the_middle(bundled_server: Any, monkeypatch: pytest.MonkeyPatch, lost_at: str) -> None:
    """The one that was stopped goes on with what it had decided: nothing of that is stored any more."""
    desk = CascadeDesk(bundled_server)
    frozen = sorted(names(desk.followers(4)))
    desk.open_master("O")
    desk.open_master("P")
    assert desk.begin() == "started"
    first, second = desk.cascader, desk.new_cascader(owner="second")

    def reach(name: str) -> None:
        if name == lost_at and desk.client.hget(LEASE, "owner") == b"first":
            lend(desk.client, "cutoff", "elsewhere", 60_000)
            desk.client.delete(LEASE)
            assert second._lease.hold()

    with monkeypatch.context() as patched:
        patched.setattr("copyrisk.crash.reach", reach)
        with suppress(StoreError):
            first.step(0.0)  # what it had in hand, it may still have had the right to send
        with pytest.raises(StoreError, match="another process has the lease"):
            first.step(0.0)
    desk._cascader = second
    desk.cascade()
    assert_ended(desk, frozen)


def test_an_old_right_stores_nothing(redis_server: Any) -> None:
    """Whatever a clone or a process that was stopped sends: the function itself holds its token against the lease."""
    desk = CascadeDesk(redis_server)
    desk.followers(1)
    desk.begin()
    right = desk.cascader._lease.keep()
    assert desk.cascader._lease.hold()
    cascades, before = desk.cascader._cascades, dump(desk.client, lambda key: key == LEASE)
    for act in (
        lambda: cascades.begin(Cascade("other", "N", {}, 0, {"F0": Standing()}), right),
        lambda: cascades.note(EVENT, {"F0": Standing(Stage.FLAT)}, right),
        lambda: cascades.end(EVENT, "M", {}, right),
        lambda: cascades.forget("M", EVENT, right),
    ):
        with pytest.raises(StoreError, match="another process has the lease"):
            act()
    assert dump(desk.client, lambda key: key == LEASE) == before
    right = desk.cascader._lease.keep()
    desk.client.hset("copyrisk:{cutoff}:cascades", "N", "one-that-is-gone")
    assert cascades.begin(Cascade("other", "N", {}, 0, {"F0": Standing()}), right) == "begun"
    assert desk.running() == {"M": EVENT, "N": "other"}


# ---- trouble


def test_each_failure_has_its_reason_and_costs_nobody_else(redis_server: Any) -> None:
    desk = CascadeDesk(redis_server)
    desk.followers(4)
    desk.follower("GONE")
    desk.office.group("XAUUSD")
    desk.quote("2000", "2000.5", "XAUUSD")
    desk.open_master("O")
    desk.client.delete("user:{copy_follower:GONE}:config", *desk.client.keys("*{copy_follower:GONE}*"))
    desk.client.rename("user_orders_index:{copy_follower:F0}", "kept:index")
    desk.client.set("user_orders_index:{copy_follower:F0}", "garbage")
    own = desk.copies()["F1"]["order_id"]
    desk.client.hset(f"user_holdings:{{copy_follower:F1}}:{own}", "order_quantity", "garbage")
    desk.client.sadd("user_orders_index:{copy_follower:F2}", "LOST")
    assert desk.begin() == "started"
    desk.cascade()
    said = {name: (one["s"], one["c"]) for name, one in desk.standings().items()}
    assert said == {
        "F0": ("failed", "orders_unreadable"),
        "F1": ("failed", "order_unreadable"),
        "F2": ("failed", "order_missing"),
        "F3": ("done", ""),
        "GONE": ("failed", "account_missing"),
    }
    assert desk.summary()["failed_by_reason"] == dict.fromkeys(
        ("orders_unreadable", "order_unreadable", "order_missing", "account_missing"), 1
    )
    assert desk.standings()["F2"]["n"] == [1, 0, 0]  # what could be closed was
    assert desk.entries_recorded[-1].said["failed_followers"]["F0"] == "orders_unreadable"


def test_without_a_quote_it_is_tried_until_the_limit(bundled_server: Any) -> None:
    desk = CascadeDesk(bundled_server)
    desk.followers(2)
    desk.open_master("O")
    desk.client.delete("market:EURUSD")
    assert desk.begin() == "started"
    for _ in range(12):  # however often
        assert desk.step().refused == 2
    assert set(desk.stages().values()) == {"closing"}
    desk.quote()
    desk.cascade()
    assert set(desk.stages().values()) == {"done"}
    desk.open_master("P")
    desk.client.delete("market:EURUSD")
    desk.drop_cascader()
    desk._cascader = desk.new_cascader(limit_ms=0)
    desk.begin("second")
    desk.cascade()
    assert {(one["s"], one["c"]) for one in desk.standings("second").values()} == {("failed", "quote_missing")}
    assert desk.summary("second")["closed"] == 0
    assert len(desk.copies("P")) == 2


def test_a_record_that_cannot_be_read_stops_nobody(redis_server: Any) -> None:
    desk = CascadeDesk(redis_server)
    frozen = sorted(names(desk.followers(3)))
    desk.open_master("O")
    desk.begin()
    desk.client.hset(RECORD, mapping={"header": "{", "started_ms": "soon", ":F1": "[]"})
    desk.drop_cascader()
    desk.cascade()
    assert desk.stages() == dict.fromkeys(frozen, "done") and not desk.copies()


@pytest.mark.parametrize("left", ["nothing", "another_type"])
def test_a_record_that_is_lost_does_not_stand_in_the_way(bundled_server: Any, left: str) -> None:
    desk = CascadeDesk(bundled_server)
    desk.followers(2)
    desk.open_master("O")
    desk.begin()
    desk.client.delete(RECORD)
    if left == "another_type":
        desk.client.set(RECORD, "garbage")
    else:
        with pytest.raises(StoreError) as gone:
            desk.step()
        assert gone.value.code == "cascade_gone"
    desk.drop_cascader()
    desk.step()
    assert not desk.running() and len(desk.copies()) == 2
    assert desk.begin("next") == "started"
    desk.cascade()
    assert not desk.copies()


def test_many_copies_of_one_account_are_closed_in_turns(bundled_server: Any) -> None:
    desk = CascadeDesk(bundled_server, master_balance="1000000")
    desk.follower("F", "1000000")
    for place in range(13):
        assert desk.open(MASTER, f"O{place}", lots="0.1")["code"] == "ok"
    desk.replicate()
    desk.begin()
    assert [desk.step().closes for _ in range(2)] == [10, 3]
    desk.cascade()
    assert desk.summary()["closed"] == 13
    assert_books(desk)
