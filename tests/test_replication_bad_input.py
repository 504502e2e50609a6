"""What the engine of copies makes of what makes no sense: a code, no copy, no exception, and nobody else is touched."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copyrisk.derived import copy_id
from copyrisk.errors import InvalidId, Refused
from copyrisk.identifiers import parse_account
from copyrisk.replication import MasterEvent, parse_event
from tests.copying_desk import MASTER, STREAM, CopyDesk, assert_replicated
from tests.trading import dump, is_log

ORDER = {"symbol": "EURUSD", "order_type": "BUY", "order_price": "1.08455", "order_quantity": "1"}
EVENT = {
    "user_type": "strategy_provider",
    "user_id": "M",
    "order_id": "O",
    "version": "7",
    "change": "opened",
    "state": "open",
    "asked": "1",
    "order": json.dumps(ORDER),
    "ts": "1795272122368",
}
ODD = (
    "",
    " ",
    "x",
    "nan",
    "-1",
    "0",
    "1e3",
    "1" * 30,
    "\u0661",
    "{}",
    "null",
    "a\nb",
    "}:{",
    "\x00",
    "copyrisk:copies:O",
)
_RELAXED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def desk(bundled_server: Any) -> Iterator[CopyDesk]:
    made = CopyDesk(bundled_server)
    made.follower("A")
    made.follower("Z")
    yield made
    made.close()


def works_on(desk: CopyDesk, order_id: str = "after") -> None:
    """The next order is copied to whom it should be."""
    desk.quote()
    desk.open_master(order_id)
    results = desk.results(order_id)
    assert (results["A"], results["Z"]) == ("copied", "copied")


# ---- entries of the stream


def refused_code(fields: dict[str, str]) -> str:
    try:
        parse_event("1-1", fields)
    except (Refused, InvalidId) as refusal:
        return refusal.code
    return ""


def with_order(**said: Any) -> dict[str, str]:
    order = {name: value for name, value in {**ORDER, **said}.items() if value is not ...}
    return {**EVENT, "order": json.dumps(order)}


BAD_EVENTS = [
    ({}, "invalid_user_type"),
    ({**EVENT, "user_type": "live"}, "not_a_master"),
    ({**EVENT, "user_type": "copy_follower"}, "not_a_master"),
    ({**EVENT, "user_type": "demo"}, "not_a_master"),
    ({**EVENT, "user_type": "admin"}, "invalid_user_type"),
    ({**EVENT, "user_id": "M}:{M"}, "invalid_account_id"),
    ({**EVENT, "order_id": "O O"}, "invalid_order_id"),
    ({**EVENT, "order_id": ""}, "invalid_order_id"),
    ({**EVENT, "change": "part_reported"}, "event_invalid"),
    ({**EVENT, "change": "accept_reported"}, "event_invalid"),
    ({**EVENT, "change": "exploded"}, "event_invalid"),
    ({**EVENT, "state": "gone"}, "event_invalid"),
    ({**EVENT, "order": "[" * 100_000}, "event_invalid"),
    ({**EVENT, "order": "[]"}, "event_invalid"),
    ({**EVENT, "order": "5"}, "event_invalid"),
    ({**EVENT, "order": '"O"'}, "event_invalid"),
    ({**EVENT, "order": "NaN"}, "event_invalid"),
    ({**EVENT, "order": "9" * 10_000}, "event_invalid"),
    (with_order(symbol=None), "event_invalid"),
    (with_order(symbol="eurusd"), "event_invalid"),
    (with_order(symbol=["EURUSD"]), "event_invalid"),
    (with_order(order_type={}), "event_invalid"),
    (with_order(order_type="HOLD"), "event_invalid"),
    (with_order(order_price=1.5), "event_invalid"),
    (with_order(order_price="0"), "event_invalid"),
    (with_order(order_quantity="-1"), "event_invalid"),
    (with_order(stop_loss=None), "event_invalid"),
    (with_order(stop_loss="0"), "event_invalid"),
    (with_order(take_profit="1e1"), "event_invalid"),
    ({**EVENT, "asked": "0"}, "event_invalid"),
    ({**EVENT, "version": "7.0"}, "event_invalid"),
    ({**EVENT, "version": "9" * 16}, "event_invalid"),
    ({**EVENT, "ts": "-5"}, "event_invalid"),
    *(({name: value for name, value in EVENT.items() if name != left_out}, None) for left_out in EVENT),
    *((with_order(**{name: ...}), "event_invalid") for name in ORDER),
]


@pytest.mark.parametrize(("fields", "code"), BAD_EVENTS)
def test_an_event_that_makes_no_sense_has_a_code(fields: dict[str, str], code: str | None) -> None:
    found = refused_code(fields)
    assert found
    assert code in (None, found)


@given(st.dictionaries(st.sampled_from(list(EVENT)), st.one_of(st.text(max_size=20), st.sampled_from(ODD)), min_size=1))
def test_whatever_stands_in_an_event_is_read_or_refused(said: dict[str, str]) -> None:
    refused_code({**EVENT, **said})


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*ORDER, "stop_loss", "take_profit"]), _JSON))
def test_whatever_stands_in_an_events_order_is_read_or_refused(said: dict[str, Any]) -> None:
    refused_code({**EVENT, "order": json.dumps({**ORDER, **said})})


def test_bad_entries_become_dead_letters_and_the_good_ones_between_them_are_replicated(desk: CopyDesk) -> None:
    before = dump(desk.client, lambda key: is_log(key) or key.startswith("copyrisk:"))
    sendable = [(fields, code) for fields, code in BAD_EVENTS if fields]
    for fields, _ in sendable:
        desk.client.xadd(STREAM, fields)
    desk.replicate()
    letters = desk.letters()
    assert len(letters) == len(sendable)
    for letter, (_, code) in zip(letters, sendable, strict=True):
        assert letter == code or code is None
    assert dump(desk.client, lambda key: is_log(key) or key.startswith("copyrisk:")) == before
    works_on(desk)
    assert_replicated(desk, "after")


@given(
    st.dictionaries(st.sampled_from(list(EVENT)), st.one_of(st.binary(max_size=9), st.sampled_from(ODD)), min_size=1)
)
@_RELAXED
def test_any_bytes_in_an_entry_end_nothing(desk: CopyDesk, said: dict[str, Any]) -> None:
    desk.client.xadd(STREAM, {**EVENT, **said})
    desk.replicate()
    assert desk.client.xlen(STREAM) == 0
    assert "replication_failed" not in desk.letters()


def test_events_that_contradict_each_other_end_nothing(desk: CopyDesk) -> None:
    """Opened and finished, closed and open, more lots than were asked for, another symbol, another master."""
    desk.open_master()
    odd = [
        {**EVENT, "order_id": "O2", "state": "closed"},
        {**EVENT, "order_id": "O3", "asked": "0.000000000000000001"},
        {**EVENT, "order_id": "O4", "asked": "999999999999999999"},
        {**with_order(order_quantity="5"), "order_id": "O5"},
        {**with_order(symbol="NOSUCH"), "order_id": "O6"},
        {**with_order(order_price="0.000000000000000001"), "order_id": "O7"},
        {**with_order(order_price="999999999999999999"), "order_id": "O8"},
        {**with_order(stop_loss="999999999999999999"), "order_id": "O9"},
        {**EVENT, "order_id": "O10", "ts": "0"},
        {**EVENT, "order_id": "O", "user_id": "M2"},
        {**EVENT, "order_id": "O", "change": "closed", "state": "closed", "user_id": "M2", "version": "9" * 15},
        {**EVENT, "order_id": "O11", "user_id": "nobody"},
    ]
    now = str(desk.client.time()[0] * 1000)
    for event in odd:
        desk.client.xadd(STREAM, {**event, "ts": now if event["ts"] != "0" else "0"})
    desk.replicate()
    assert "replication_failed" not in desk.letters()
    assert desk.letters() == ["order_of_other_master"] * 2
    expected = {
        "O3": "master_lots_invalid",
        "O6": "instrument_missing",
        "O7": "price_deviation",
        "O8": "price_deviation",
        "O9": "invalid_stop_loss",
        "O10": "signal_too_old",
    }
    assert {order_id: set(desk.results(order_id).values()) for order_id in expected} == {
        order_id: {reason} for order_id, reason in expected.items()
    }
    assert desk.results("O11") == {}
    assert desk.lots("O") == {"A": Decimal("0.1"), "Z": Decimal("0.1")}
    works_on(desk)


# ---- equities and lots

EQUITIES = [
    ({"wallet_balance": "0"}, "master_equity_not_positive"),
    ({"wallet_balance": "-1"}, "master_equity_not_positive"),
    ({"wallet_balance": None}, "master_equity_unknown"),
    ({"wallet_balance": "nan"}, "master_equity_unknown"),
    ({"leverage": "0"}, "master_equity_unknown"),
    ({"group": "no such group"}, None),  # in the standard one
    ({"group": "}bad{"}, "master_equity_unknown"),
]


@pytest.mark.parametrize(("config", "reason"), EQUITIES)
def test_a_master_whose_equity_says_nothing_is_not_copied(
    desk: CopyDesk, config: dict[str, Any], reason: str | None
) -> None:
    desk.account("strategy_provider:M2", balance="100000")
    desk.follower("B", master="M2")
    desk.open(MASTER, "O")
    desk.configure(MASTER, **config)
    desk.open("strategy_provider:M2", "O2")
    desk.replicate()
    assert set(desk.results().values()) == {reason or "copied"}
    assert desk.results("O2") == {"B": "copied"}
    desk.configure(MASTER, wallet_balance="100000", leverage="100", group="Standard")
    works_on(desk)


def test_a_master_that_is_gone_or_cannot_be_read_is_not_copied(desk: CopyDesk) -> None:
    for order_id in ("gone", "odd"):
        desk.open(MASTER, order_id)
    (_, first), (_, second) = desk.client.xrange(STREAM)
    desk.client.delete(STREAM)
    desk.client.rename("user:{strategy_provider:M}:config", "kept")
    desk.client.xadd(STREAM, first)
    desk.replicate()
    assert set(desk.results("gone").values()) == {"master_equity_unknown"}
    desk.client.set("user:{strategy_provider:M}:config", "x")
    desk.client.xadd(STREAM, second)
    desk.replicate()
    assert set(desk.results("odd").values()) == {"master_equity_unknown"}
    desk.client.rename("kept", "user:{strategy_provider:M}:config")
    works_on(desk)


def test_lots_between_two_steps_are_not_copied(desk: CopyDesk) -> None:
    desk.open(MASTER, "O", lots="0.5")
    desk.office.group("EURUSD", lot_step="0.2", min_lot="0.2")
    desk.replicate()
    assert set(desk.results().values()) == {"lots_off_step"}


def test_a_copy_is_of_the_steps_of_its_own_group(desk: CopyDesk) -> None:
    """The master's 0.15 are 15 of its steps; of the follower's they are none and a half."""
    desk.office.group("EURUSD", "Coarse", lot_step="0.1", min_lot="0.1")
    desk.follower("C", "100000", group="Coarse")
    desk.open_master(lots="0.15")
    assert desk.results()["C"] == "copied"
    assert desk.lots()["C"] == Decimal("0.1")


# ---- followers

IDS = ("F}:{live:1", "", "x" * 65, "a b", "F\n", "\u0661", "copy_follower:A", "*", b"\xff\xfe", "nobody")


def test_members_that_are_nobody_have_a_reason_and_touch_no_other_key(desk: CopyDesk) -> None:
    desk.account("live:1")
    desk.client.sadd("copy_master_followers:M:active", *IDS)
    desk.open_master()
    results = desk.results()
    assert results.pop("A") == "copied"
    assert results.pop("Z") == "copied"
    assert set(results.values()) == {"account_missing", "invalid_account_id"}
    assert results["nobody"] == "account_missing"
    made = desk.decision().made
    assert made is not None
    assert len(made) == len(IDS) + 2
    assert desk.index("live:1") == set()
    assert not [key for key in desk.client.keys("*") if b"nobody" in key or b"}:{" in key]
    desk.close_master()
    assert desk.copies() == {}


@pytest.mark.parametrize("member", [b"A\x00", b"A\x00\x00", b"x" * 64 + b"y"])
def test_a_member_that_is_no_id_has_a_name_of_its_own_in_the_record(desk: CopyDesk, member: bytes) -> None:
    desk.follower("x" * 64)
    desk.client.sadd("copy_master_followers:M:active", member)
    desk.open_master()
    rows = desk.decision().rows["follower"].tolist()
    assert len(set(rows)) == len(rows) == 4


KEYS = ("user:{%s}:config", "user_orders_index:{%s}", "copyrisk:{%s}:ledger", "copyrisk:{%s}:remainders")


@pytest.mark.parametrize("key", [*KEYS, "user_holdings:{%s}:own", "user_portfolio:{%s}", "copyrisk:{%s}:copying"])
@pytest.mark.parametrize("kind", ["string", "list"])
def test_a_follower_with_a_key_of_another_type_is_left_out(desk: CopyDesk, key: str, kind: str) -> None:
    account = desk.follower("F", max_daily_loss="1000")
    desk.open(account, "own", lots="0.01")
    named = key % account
    desk.client.delete(named)
    if kind == "string":
        desk.client.set(named, "x")
    else:
        desk.client.rpush(named, "x")
    works_on(desk)
    harmless = ("copyrisk:{%s}:remainders", "user_portfolio:{%s}", "copyrisk:{%s}:copying")
    reason = desk.result("F", "after")
    assert reason == "copied" if key in harmless else reason != "copied"
    desk.close_master(order_id="after")
    desk.client.delete(named)
    assert desk.copies("after").keys() <= {"F"}


GARBAGE = [
    ("copyrisk:{%s}:ledger", "version", "x"),
    ("copyrisk:{%s}:ledger", "version", b"\xff\xfe"),
    ("copyrisk:{%s}:ledger", "version", "9" * 40),
    ("copyrisk:{%s}:ledger", "reserved_usd", "x"),
    ("copyrisk:{%s}:ledger", "booked_usd", "x"),
    ("user:{%s}:config", "group", ""),
    ("user:{%s}:config", "group", "Standard "),
    ("user:{%s}:config", "group", b"\xff"),
    ("user:{%s}:config", "copy_status", " active"),
    ("user:{%s}:config", "copy_status", "ACTIVE"),
    ("user:{%s}:config", "copy_status", b"\xff"),
    ("user:{%s}:config", "wallet_balance", " 10000"),
    ("user:{%s}:config", "wallet_balance", "+10000"),
    ("user:{%s}:config", "wallet_balance", "0x2710"),
    ("user:{%s}:config", "wallet_balance", "10000.0000000000000001"),
    ("user:{%s}:config", "wallet_balance", "1" * 300),
    ("user:{%s}:config", "leverage", "100."),
    ("user:{%s}:config", "leverage", "inf"),
    ("user:{%s}:config", "investment_amount", "x"),
    ("user:{%s}:config", "sending_orders", b"\xff"),
    ("user:{%s}:config", "symbols_denied", b"\xff\x00"),
]


@pytest.mark.parametrize(("key", "field", "value"), GARBAGE)
def test_garbage_in_a_followers_keys_costs_it_its_copy_at_most(
    desk: CopyDesk, key: str, field: str, value: Any
) -> None:
    account = desk.follower("F", max_daily_loss="1000")
    desk.client.hset(key % account, field, value)
    works_on(desk)
    assert desk.letters() == []
    is_copied = desk.result("F", "after") == "copied"
    assert is_copied == (
        "after" in {order["master_order_id"] for order in desk.copies("after").values() if order["user_id"] == "F"}
    )
    assert desk.result("F", "after") != "account_busy", "Python and the server read it differently"


@pytest.mark.parametrize("left", ["everything", "its holdings", "its configuration", "its record"])
def test_a_follower_that_is_removed_with_its_copy_open_waits_for_nothing(desk: CopyDesk, left: str) -> None:
    account = desk.follower("F")
    desk.open_master()
    own = desk.copies()["F"]["order_id"]
    desk.client.srem("copy_master_followers:M:active", "F")
    kept = {
        "everything": (),
        "its holdings": ("user_holdings",),
        "its configuration": ("user:",),
        "its record": (f":order:{own}",),
    }
    for key in desk.client.keys(f"*{{{account}}}*"):
        if not any(word in key.decode() for word in kept[left]):
            desk.client.delete(key)
    desk.close_master()
    if left == "its holdings":  # an order that somebody lost half of is closed as one of another service
        return
    desk.replicate()
    waiting = {said["follower"] for said in desk.waiting_copies().values()}
    assert desk.copies().keys() <= {"F"}
    if left in ("everything", "its configuration"):
        assert waiting == set(), desk.waiting_copies()


@pytest.mark.parametrize("when", ["set", "account"])
def test_a_follower_that_is_removed_between_decision_and_copy_gets_none(
    desk: CopyDesk, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    account = desk.follower("F")
    store = desk.replicator._decisions.store

    def remove(decision: Any) -> Any:
        if when == "account":
            desk.client.delete(f"user:{{{account}}}:config")
        desk.client.srem("copy_master_followers:M:active", "F")
        return store(decision)

    monkeypatch.setattr(desk.replicator._decisions, "store", remove)
    desk.open_master()
    # Whoever is in the set when it is decided copies; one that is no account any more does not.
    assert desk.result("F") == ("copied" if when == "set" else "account_missing")
    desk.close_master()
    assert desk.copies() == {}


# ---- the engine's own keys


@pytest.mark.parametrize(
    ("key", "code"),
    [("copy_master_followers:M:active", "followers_unreadable"), ("copyrisk:copies:O", "decision_unreadable")],
)
def test_a_key_of_another_type_is_a_dead_letter_and_holds_nobody_up(desk: CopyDesk, key: str, code: str) -> None:
    desk.account("strategy_provider:M2", balance="100000")
    desk.follower("B", master="M2")
    desk.replicate()
    desk.client.delete(key)
    desk.client.set(key, "x")
    desk.open(MASTER, "O")
    desk.open("strategy_provider:M2", "O2")
    for _ in range(3):
        desk.replicator.step(1)
    assert desk.letters() == [code]
    assert desk.results("O2") == {"B": "copied"}


HEADER = b'{"layout":1}\n'
GARBLED = (b"", b"x", b"{}", b"{}\n", HEADER + b"short", b"\xff\xfe\n", b'{"layout":99}\n', b"[]\n", b"5\n", HEADER)


@pytest.mark.parametrize("field", ["decided", "made", "target"])
@pytest.mark.parametrize("stored", GARBLED)
def test_a_record_that_cannot_be_read_is_never_decided_over(desk: CopyDesk, field: str, stored: bytes) -> None:
    desk.open_master()
    copies = desk.copies()
    desk.client.hset("copyrisk:copies:O", field, stored)
    desk.close_master()
    assert "replication_failed" not in desk.letters()
    assert desk.letters() in (["decision_unreadable"], [])
    if desk.letters():
        assert desk.copies() == copies
    works_on(desk)


WAITING = [
    b"x",
    b"[]",
    b"5",
    b"{}",
    b'{"follower":"A"}',
    b'{"follower":"A}","order_id":"O","reverse":false,"closes":false}',
    b'{"follower":5,"order_id":"O","reverse":false,"closes":false}',
    b'{"follower":"A","order_id":{},"reverse":false,"closes":false}',
    b'{"follower":"A","order_id":5,"reverse":false,"closes":false}',
    b'{"follower":"A","order_id":"}{","reverse":false,"closes":false}',
    b'{"follower":"A","order_id":"lost","reverse":false,"closes":false}',
    b'{"follower":"A","order_id":"broken","reverse":false,"closes":false}',
    b'{"follower":"A","order_id":"wrong","reverse":false,"closes":false}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("stored", WAITING)
def test_garbage_among_the_copies_that_wait_keeps_no_other_waiting(desk: CopyDesk, stored: bytes) -> None:
    desk.open_master()
    desk.configure("copy_follower:A", wallet_balance="x")
    desk.close_master()
    assert len(desk.waiting_copies()) == 1
    desk.client.hset("copyrisk:copies:broken", "target", "x")
    desk.client.set("copyrisk:copies:wrong", "x")
    desk.client.hset("copyrisk:waiting_copies", "copy-garbage", stored)
    desk.client.hset("copyrisk:waiting_copies", b"\xffid", stored)
    desk.drop_replicator()
    desk.configure("copy_follower:A", wallet_balance="10000")
    for _ in range(5):
        desk.replicator.step(20)
    assert desk.copies() == {}
    works_on(desk)


def test_counts_that_cannot_be_counted_keep_nobody_from_his_copy(desk: CopyDesk) -> None:
    for key in ("copyrisk:replication:M", "copyrisk:replication:"):
        desk.client.set(key, "x")
    works_on(desk)


@pytest.mark.parametrize("key", ["order_data:%s", "order_triggers:%s", "symbol_holders:EURUSD:copy_follower"])
def test_what_cannot_be_brought_about_for_one_is_brought_about_for_the_others(desk: CopyDesk, key: str) -> None:
    desk.open_master("first")
    own = copy_id("O", parse_account("copy_follower:A"))
    named = key.replace("%s", own)
    desk.client.delete(named)
    desk.client.set(named, "x")
    desk.open_master(stop_loss="1.07")
    assert desk.results() == {"A": "copied", "Z": "copied"}
    assert desk.data(desk.copies()["Z"]["order_id"])["order_status"] == "OPEN"
    assert desk.triggers(desk.copies()["Z"]["order_id"])["stop_loss"] == "1.07"
    assert desk.copies_ever().keys() == {"A", "Z"}


def test_an_event_of_the_kind_is_what_the_worker_writes(desk: CopyDesk) -> None:
    """What the tests above start from is a real event."""
    desk.open(MASTER, "O", stop_loss="1.07")
    (event,) = desk.entries(STREAM)
    parsed = parse_event("1-1", event)
    assert isinstance(parsed, MasterEvent)
    assert event.keys() == EVENT.keys()
    assert (parsed.creates, parsed.asked, parsed.stop_loss) == (True, Decimal(1), Decimal("1.07"))
