"""Relationships over HTTP: begun, paused, resumed, ended, set; once each whatever is repeated, and of nobody else."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from copyrisk import crash
from copyrisk.agreement import FollowerRow, FollowerTable
from copyrisk.api.copying_acts import (
    Following,
    begin_following,
    end_following,
    pause_copying,
    resume_copying,
    set_copying,
)
from copyrisk.copying import CopyDefaults
from copyrisk.errors import CopyriskError, StoreUnavailable
from copyrisk.following import SETTING_NAMES, FollowRequest
from copyrisk.identifiers import parse_account
from copyrisk.store import library
from copyrisk.store.act_answers import Act, begin, drop, end, ending_of, stored_answer
from copyrisk.store.follower_settings import SettingsChange, change_settings
from copyrisk.store.pipe import Pipe
from tests.api_house import Caller, House, data, opened, refusal, served_to_all
from tests.backoffice import now_ms
from tests.copying_desk import MASTER, CopyDesk, Died
from tests.trading import dump

ROOT = "/api/copy-trading"
FOLLOW: dict[str, object] = {"master_id": "M", "follower_id": "F", "investment": "500"}
ACCOUNT, TAG = f"{ROOT}/accounts/F", "copy_follower:F"


@pytest.fixture(scope="module")
def _one_house(_one_bundled_server: Any) -> Iterator[House]:
    with served_to_all(_one_bundled_server) as made:
        yield made


@pytest.fixture
def desk(bundled_server: Any) -> Iterator[CopyDesk]:
    with opened(CopyDesk, bundled_server) as made:
        yield made


@pytest.fixture
def house(_one_house: House, desk: CopyDesk) -> House:
    return _one_house


@pytest.fixture
def caller(house: House) -> Caller:
    return house.caller()


def state(desk: CopyDesk) -> dict[str, bytes]:
    """All there is but what callers leave."""
    return dump(desk.client, lambda key: key.startswith("copyrisk:api:"))


def config(desk: CopyDesk, tag: str = TAG) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in desk.client.hgetall(f"user:{{{tag}}}:config").items()}


def operators(desk: CopyDesk) -> list[Any]:
    every = [json.loads(said["entry"]) for said in desk.entries("copyrisk:{audit}:trail")]
    return [one for one in every if one["kind"] == "operator"]


def test_from_the_first_to_the_last_day(desk: CopyDesk, caller: Caller) -> None:
    made = data(
        caller.post(f"{ROOT}/follow", FOLLOW | {"multiplier": 1.50, "symbols_denied": "XAUUSD", "email": "a@b.example"})
    )
    acted = {"follower_id": "F", "copy_status": "active", "master_id": "M", "open_copies": [], "behind": ""}
    assert made == acted
    there = {
        "follower_id": "F",
        "code": "ok",
        "master_id": "M",
        "copy_status": "active",
        "copies_now": True,
        "settings": {"multiplier": "1.5", "symbols_denied": "XAUUSD"},
        "account": {
            "wallet_balance": 500.0,
            "investment_amount": 500.0,
            "equity": 500.0,
            "state": "known",
            "calc_status": "ok",
        },
    }
    silent = there | {"account": there["account"] | {"equity": None, "state": "stale"}}
    assert data(caller.get(ACCOUNT)) == silent  # nobody values accounts: what is stored may be of any time
    assert data(caller.get(f"{ROOT}/masters/M/followers"))["followers"] == [silent]
    assert data(caller.get(f"{ROOT}/relationships"))["relationships"] == [silent]
    desk.client.hset("copyrisk:tick", mapping={"ts": now_ms(), "period_ms": 60_000})
    assert data(caller.get(ACCOUNT)) == there
    page = {"master_id": "M", "count": 1, "followers": [there], "next": None}
    assert data(caller.get(f"{ROOT}/masters/M/followers")) == page
    assert data(caller.post(f"{ACCOUNT}/pause")) == acted | {"copy_status": "paused"}
    assert data(caller.get(f"{ROOT}/masters/M/followers")) == page | {"count": 0, "followers": []}
    paused = there | {"copy_status": "paused", "copies_now": False}
    assert data(caller.get(f"{ROOT}/relationships?master_id=M")) == {"relationships": [paused], "next": None}
    assert data(caller.get(f"{ROOT}/relationships/check")) == {"count": 0, "differences": []}
    assert data(caller.post(f"{ACCOUNT}/resume"))["copy_status"] == "active"
    said = data(caller.send("PUT", ACCOUNT, {"multiplier": "3", "reverse": "1", "unset": ["symbols_denied"]}))
    assert said == {"follower_id": "F", "settings": {"multiplier": "3", "reverse": "1"}}
    assert data(caller.send("DELETE", ACCOUNT))["copy_status"] == "stopped"
    assert data(caller.get(f"{ROOT}/relationships")) == {"relationships": [], "next": None}
    assert [one["cause"] for one in operators(desk)] == ["follow", "pause", "resume", "settings", "unfollow"]
    assert {one["said"]["user"] for one in operators(desk)} == {f"key {caller.key_id}"}
    assert {tuple(one["said"]["accounts"]) for one in operators(desk)} == {(TAG,)}
    assert "a@b.example" not in str(operators(desk))
    assert [entry["type"] for entry in desk.audit(TAG)] == ["follow", "pause", "resume", "settings", "unfollow"]


CHANGES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", f"{ROOT}/follow", FOLLOW),
    ("PUT", ACCOUNT, {"multiplier": 2}),
    ("POST", f"{ACCOUNT}/pause", None),
    ("POST", f"{ACCOUNT}/resume", None),
    ("DELETE", ACCOUNT, None),
]


def test_what_is_repeated_is_answered_the_same_and_not_done_again(desk: CopyDesk, caller: Caller) -> None:
    for number, (method, path, body) in enumerate(CHANGES):
        first = caller.send(method, path, body, f"K{number}")
        before = state(desk)
        for earlier, (how, where, what) in enumerate(CHANGES[: number + 1]):
            again = caller.send(how, where, what, f"K{earlier}")
            assert again.status_code == 200, (number, earlier, again.text)
        assert data(again) == data(first)
        assert state(desk) == before
    assert refusal(caller.send("PUT", ACCOUNT, {"multiplier": 3}, "K1")) == (409, "idempotency_conflict")
    assert refusal(caller.post(f"{ACCOUNT}/pause", None, "K0")) == (409, "idempotency_conflict")
    assert state(desk) == before


def test_a_key_names_one_thing_whatever_kind_of_thing(desk: CopyDesk, caller: Caller) -> None:
    desk.follower("F")
    assert desk.open(TAG, "O", idempotency_key="K")["code"] == "ok"
    assert refusal(caller.post(f"{ACCOUNT}/pause", None, "K")) == (409, "idempotency_conflict")
    assert config(desk)["copy_status"] == "active"
    data(caller.send("PUT", ACCOUNT, {"multiplier": 2}, "L"))
    assert desk.open(TAG, "P", idempotency_key="L")["code"] == "idempotency_conflict"


def test_refusals_are_remembered_and_leave_everything_as_it_is(desk: CopyDesk, caller: Caller) -> None:
    data(caller.post(f"{ROOT}/follow", FOLLOW))
    before = config(desk)
    assert refusal(caller.post(f"{ROOT}/follow", FOLLOW, "K")) == (409, "already_following")
    assert refusal(caller.post(f"{ROOT}/follow", FOLLOW | {"master_id": "X"})) == (404, "master_missing")
    desk.account("strategy_provider:N")
    assert refusal(caller.post(f"{ROOT}/follow", FOLLOW | {"master_id": "N"})) == (409, "other_master")
    desk.client.hset(f"user_holdings:{{{TAG}}}:C", mapping={"order_status": "OPEN", "master_order_id": "O"})
    desk.client.sadd(f"user_orders_index:{{{TAG}}}", "C")
    assert refusal(caller.send("DELETE", ACCOUNT, None, "D")) == (409, "has_open_copies")
    assert config(desk) == before
    assert data(caller.send("DELETE", f"{ACCOUNT}?keep_open=true"))["open_copies"] == ["C"]
    assert refusal(caller.send("DELETE", ACCOUNT, None, "D")) == (409, "has_open_copies")
    assert refusal(caller.post(f"{ROOT}/follow", FOLLOW, "K")) == (409, "already_following")
    assert refusal(caller.post(f"{ACCOUNT}/resume")) == (409, "not_following")


def test_nothing_is_kept_of_accounts_that_there_are_not(desk: CopyDesk, caller: Caller) -> None:
    body = {"master_id": "M", "follower_id": "NOBODY"}
    none = f"{ROOT}/accounts/NOBODY"
    for method, path, said in (
        ("POST", f"{ROOT}/follow", body),
        ("PUT", none, {"multiplier": 2}),
        ("POST", f"{none}/pause", None),
        ("POST", f"{none}/resume", None),
        ("DELETE", none, None),
    ):
        assert refusal(caller.send(method, path, said)) == (404, "account_missing"), path
    assert refusal(caller.get(none)) == (404, "unknown_account")
    assert not desk.client.keys("*NOBODY*")


# ---- settings


def test_the_next_order_is_copied_by_the_new_settings(desk: CopyDesk, caller: Caller) -> None:
    desk.follower("F", "100000")
    desk.open_master("O")
    desk.replicate()
    data(caller.send("PUT", ACCOUNT, {"multiplier": "0.5"}))
    desk.open_master("P")
    desk.replicate()
    assert (desk.lots("O"), desk.lots("P")) == ({"F": Decimal("1")}, {"F": Decimal("0.5")})


def test_settings_that_would_keep_anything_from_being_copied_are_refused(desk: CopyDesk, caller: Caller) -> None:
    desk.follower("F")
    before = config(desk)
    for body, code in (
        ({"sizing_mode": "fixed_lots"}, "invalid_fixed_lots"),
        ({"copy_sl_mode": "percentage"}, "invalid_sl_percentage"),
        ({"copy_tp_mode": "amount", "tp_percentage": 5}, "invalid_tp_amount"),
    ):
        assert refusal(caller.send("PUT", ACCOUNT, body)) == (422, code)
        assert config(desk) == before
    data(caller.send("PUT", ACCOUNT, {"copy_sl_mode": "percentage", "sl_percentage": 5}))
    assert refusal(caller.send("PUT", ACCOUNT, {"unset": ["sl_percentage"]})) == (422, "invalid_sl_percentage")
    desk.configure(TAG, rounding="sideways")  # another service's: not this change's fault
    data(caller.send("PUT", ACCOUNT, {"multiplier": 2}))
    assert config(desk)["multiplier"] == "2"


class Meddled(Pipe):
    """A connection on which somebody else's change comes first."""

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        if commands and b"EVAL" in commands[0][:20] and b"HDEL" in commands[0]:
            (name, value), *rest = self.meddling or [("", "")]
            self.meddling = rest
            if name:
                self._client.hset(f"user:{{{TAG}}}:config", name, value)
        return super().exchange(commands)

    meddling: list[tuple[str, str]]


def test_settings_that_change_meanwhile_are_read_again(redis_server: Any) -> None:
    desk = CopyDesk(redis_server)
    library.load(desk.client)
    desk.follower("F", sl_percentage="4")
    pipe = Meddled(desk.new_client())
    pipe.meddling = [("sl_percentage", "5"), ("max_lot_size", "2"), ("wallet_balance", "1"), ("never", "reached")]
    change = SettingsChange("F", {"copy_sl_mode": "percentage"}, ["max_lot_size"])
    event = set_copying(pipe, act("settings"), change, CopyDefaults())
    assert event["code"] == "ok", event
    there = config(desk)
    assert (there["copy_sl_mode"], there["sl_percentage"], "max_lot_size" in there) == ("percentage", "5", False)
    assert pipe.meddling == [("never", "reached")]
    pipe.meddling = [("multiplier", str(number)) for number in range(2, 40)]
    with pytest.raises(CopyriskError) as busy:
        change_settings(pipe, act("settings", "K2"), change, CopyDefaults())
    assert busy.value.code == "account_busy"
    pipe.close()
    desk.close()


def test_changes_of_many_at_once_are_all_kept(desk: CopyDesk, caller: Caller) -> None:
    data(caller.post(f"{ROOT}/follow", FOLLOW))
    names = ("multiplier", "max_lot_size", "max_daily_loss", "stop_copying_on_drawdown", "tp_amount", "sl_amount")
    with ThreadPoolExecutor(len(names)) as threads:
        answers = list(threads.map(lambda name: caller.send("PUT", ACCOUNT, {name: 7}), names))
    assert [answer.status_code for answer in answers] == [200] * len(names)
    assert {name: config(desk)[name] for name in names} == dict.fromkeys(names, "7")
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: caller.post(f"{ACCOUNT}/pause", None, "ONE"), range(6)))
    assert {answer.text for answer in answers} == {answers[0].text}
    assert data(answers[0])["copy_status"] == "paused"
    assert [entry["type"] for entry in desk.audit(TAG)].count("pause") == 1


# ---- bad input

_ODD: tuple[object, ...] = (
    "rounding",
    ["multiplier"],
    ["copy_status"],
    [1],
    [["rounding"]],
    ["rounding", "rounding"],
    None,
)
_NO_AMOUNT: tuple[object, ...] = (0, -1, "", None, True)
_NO_FACTOR: tuple[object, ...] = (0, "", "1e3", "٣", [], {})
BAD: list[tuple[str, str, object, int, str]] = [
    ("POST", "/follow", {}, 422, "invalid_account_id"),
    ("POST", "/follow", FOLLOW | {"master_id": 7}, 422, "invalid_account_id"),
    ("POST", "/follow", FOLLOW | {"follower_id": "a b"}, 422, "invalid_account_id"),
    ("POST", "/follow", FOLLOW | {"follower_id": "F\n"}, 422, "invalid_account_id"),
    ("POST", "/follow", FOLLOW | {"follower_id": "F}"}, 422, "invalid_account_id"),
    ("POST", "/follow", FOLLOW | {"follower_id": None}, 422, "invalid_account_id"),
    ("POST", "/follow", FOLLOW | {"copy_status": "active"}, 422, "unknown_field"),
    ("POST", "/follow", FOLLOW | {"email": "a\nb"}, 422, "invalid_email"),
    ("POST", "/follow", FOLLOW | {"email": 5}, 422, "invalid_email"),
    ("POST", "/follow", FOLLOW | {"account_number": "9" * 65}, 422, "invalid_account_number"),
    *(("POST", "/follow", FOLLOW | {"investment": bad}, 422, "invalid_investment") for bad in _NO_AMOUNT),
    *(("PUT", "/accounts/F", {"multiplier": bad}, 422, "invalid_multiplier") for bad in _NO_FACTOR),
    ("PUT", "/accounts/F", b'{"multiplier": 1e400}', 422, "invalid_multiplier"),
    ("PUT", "/accounts/F", b'{"multiplier": NaN}', 422, "invalid_multiplier"),
    ("PUT", "/accounts/F", b'{"multiplier": 1, "multiplier": 2}', 400, "invalid_json"),
    ("PUT", "/accounts/F", b"[1]", 400, "invalid_json"),
    ("PUT", "/accounts/F", {"reverse": 1}, 422, "invalid_reverse"),
    ("PUT", "/accounts/F", {"symbols_denied": "eurusd"}, 422, "invalid_symbols_denied"),
    ("PUT", "/accounts/F", {"rounding": None}, 422, "invalid_rounding"),
    ("PUT", "/accounts/F", {"copy_status": "active"}, 422, "unknown_field"),
    ("PUT", "/accounts/F", {"wallet_balance": "9"}, 422, "unknown_field"),
    ("PUT", "/accounts/F", {}, 422, "missing_settings"),
    ("PUT", "/accounts/F", {"unset": []}, 422, "missing_settings"),
    *(("PUT", "/accounts/F", {"multiplier": 2, "unset": bad}, 422, "invalid_unset") for bad in _ODD),
    ("PUT", "/accounts/a%20b", {"multiplier": 2}, 422, "invalid_account_id"),
    ("POST", "/accounts/F/pause", {"until": "monday"}, 422, "unknown_field"),
    ("POST", "/accounts/F%0A/pause", None, 422, "invalid_account_id"),
    ("DELETE", "/accounts/F?keep_open=yes", None, 422, "invalid_keep_open"),
    ("DELETE", "/accounts/F?force=true", None, 422, "unknown_parameter"),
    ("GET", "/accounts/%C3%A9", None, 422, "invalid_account_id"),
    ("GET", "/masters/M/followers?limit=0", None, 422, "invalid_limit"),
    ("GET", "/masters/M/followers?limit=1_0", None, 422, "invalid_limit"),
    ("GET", "/relationships?cursor=-1", None, 422, "invalid_cursor"),
    ("GET", "/relationships?cursor=99999999999999999999", None, 422, "invalid_cursor"),
    ("GET", "/relationships?check=true", None, 422, "unknown_parameter"),
    ("GET", "/relationships/check?master_id=M", None, 422, "unknown_parameter"),
    ("GET", "/masters/NOBODY/followers", None, 404, "unknown_account"),
    ("GET", "/relationships?master_id=*", None, 422, "invalid_account_id"),
]


def test_what_cannot_be_meant_is_refused_and_changes_nothing(desk: CopyDesk, caller: Caller) -> None:
    desk.follower("F")
    before = state(desk)
    for method, path, body, status, code in BAD:
        assert refusal(caller.send(method, ROOT + path, body)) == (status, code), (path, body)
    for method, path, body in CHANGES:
        assert refusal(caller.send(method, path, body, None)) == (422, "missing_idempotency_key")
        assert refusal(caller.send(method, path, body, "a b")) == (422, "invalid_idempotency_key")
    for name in SETTING_NAMES:
        assert refusal(caller.send("PUT", ACCOUNT, {name: None})) == (422, f"invalid_{name}")
        assert refusal(caller.send("PUT", ACCOUNT, {name: "{x}"})) == (422, f"invalid_{name}")
    assert state(desk) == before


def test_nobody_changes_or_sees_what_is_not_its_own(desk: CopyDesk, house: House) -> None:
    for name in ("F", "G"):
        desk.follower(name, "100")
        desk.client.set(f"copy_follower_master:{name}:provider_id", "M")
    before = state(desk)
    reader = house.caller(scopes=("copy:read",))
    other = house.caller(accounts=("copy_follower:G", "live:*"))
    for method, path, body in CHANGES:
        assert refusal(reader.send(method, path, body)) == (403, "missing_scope")
        assert refusal(other.send(method, path, body)) == (403, "account_forbidden")
    assert refusal(house.caller(accounts=(TAG,)).post(f"{ROOT}/follow", FOLLOW)) == (403, "account_forbidden")
    for path in ("/accounts/F", "/masters/M/followers", "/relationships/check"):
        assert refusal(other.get(ROOT + path)) == (403, "account_forbidden")
    assert state(desk) == before
    seen = [one["follower_id"] for one in data(other.get(f"{ROOT}/relationships"))["relationships"]]
    assert seen == ["G"]
    master = house.caller(accounts=("strategy_provider:M",))
    rows = data(master.get(f"{ROOT}/masters/M/followers"))["followers"]
    assert [(one["follower_id"], one["account"]) for one in rows] == [("F", None), ("G", None)]
    desk.follower("H", "100", master="N")
    desk.client.set("copy_follower_master:H:provider_id", "N")
    for who, seen in (((MASTER,), "FG"), ((MASTER, "copy_follower:H"), "FGH"), (("copy_follower:*",), "FGH")):
        rows = data(house.caller(accounts=who).get(f"{ROOT}/relationships"))["relationships"]
        assert "".join(sorted(one["follower_id"] for one in rows)) == seen, who


def test_followers_come_in_pages(desk: CopyDesk, caller: Caller) -> None:
    names = sorted(f"F{number}" for number in range(25))
    desk.client.sadd("copy_master_followers:M:active", *names, "b{a}\n")
    desk.client.set("user:{copy_follower:F3}:config", "no hash")
    found, after = [], ""
    while True:
        page = data(caller.get(f"{ROOT}/masters/M/followers?limit=10&after={after}"))
        found += page["followers"]
        after = page["next"]
        if after is None:
            break
    assert page["count"] == 26
    codes = {one["follower_id"]: one["code"] for one in found}
    assert "absent" not in {one["account"]["state"] for one in found if one["code"] != "ok"}  # it cannot be told
    assert sorted(codes) == [*names, "b{a}\n"]
    assert {name: code for name, code in codes.items() if code != "ok"} == {
        "F3": "key_unusable",
        "b{a}\n": "invalid_account_id",
    }


def test_the_first_answer_of_an_act_holds(desk: CopyDesk) -> None:
    pipe = Pipe(desk.new_client())
    begun, _ = begin(pipe, act("pause"))
    first = end(pipe, begun, ending_of(begun, "ok", "", {"n": "1"}, ts_ms=1))
    again = end(pipe, begun, ending_of(begun, "not_following", "", {}, ts_ms=2))  # of another process, a moment later
    assert again == first == stored_answer(pipe, begun.account, "K")
    assert [entry["code"] for entry in desk.audit(TAG)] == ["ok"]
    drop(pipe, begun)
    assert stored_answer(pipe, begun.account, "K") == first
    pipe.close()


# ---- crashes


def act(kind: str, key: str = "K", **said: Any) -> Act:
    return Act(kind, parse_account(TAG), key, said, "somebody")


def carry_out(kind: str, pipe: Pipe, database: Any = None, key: str = "K") -> dict[str, str]:
    if kind == "follow":
        return begin_following(pipe, act(kind, key), database, Following("M", FollowRequest("F", "500")))
    if kind == "settings":
        return set_copying(pipe, act(kind, key), SettingsChange("F", {"multiplier": "2"}), CopyDefaults())
    if kind == "unfollow":
        return end_following(pipe, act(kind, key), database, keep_open=False)
    return {"pause": pause_copying, "resume": resume_copying}[kind](pipe, act(kind, key), database)


BEFORE = {"follow": (), "pause": ("follow",), "resume": ("follow", "pause"), "unfollow": ("follow",)}
STEPS = {
    "follow": ("claimed", "configured", "recorded", "valued", "joined", "active"),
    "pause": ("paused", "left", "recorded"),
    "resume": ("recorded", "joined", "resumed"),
    "unfollow": ("stopped", "left", "recorded", "given_up"),
    "settings": (),
}
ACTS = ("acts.begun", "acts.recorded", "acts.done")


@pytest.mark.parametrize("kind", STEPS)
def test_killed_at_any_step_the_same_request_goes_on(
    kind: str, desk: CopyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(desk.new_client())
    points = [*ACTS[: 2 if kind == "settings" else 3], *(f"relations.{step}" for step in STEPS[kind])]
    expected: dict[str, str] | None = None
    for point in ["", *points]:
        desk.client.flushall()
        desk.account("strategy_provider:M")
        for number, earlier in enumerate(BEFORE.get(kind, ("follow",))):
            assert carry_out(earlier, pipe, key=f"before{number}")["code"] == "ok"
        if point:
            die_at(monkeypatch, point, kind, pipe)
            assert stored_answer(pipe, parse_account(TAG), "K") is None
        event = carry_out(kind, pipe)
        assert event["code"] == "ok", point
        now = config(desk) | {"in": str(desk.client.smembers("copy_master_followers:M:active"))}
        expected = expected or now
        assert now == expected, point
        assert carry_out(kind, pipe) == event == stored_answer(pipe, parse_account(TAG), "K")
        assert [one["type"] for one in desk.audit(TAG)].count(kind) == 1
    pipe.close()


def die_at(monkeypatch: pytest.MonkeyPatch, point: str, kind: str, pipe: Pipe) -> None:
    def reach(name: str) -> None:
        if name == point:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(crash, "reach", reach)
        with pytest.raises(Died):
            carry_out(kind, pipe)


def test_whose_work_was_begun_by_another_key_is_not_taken_for_its_own(
    desk: CopyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(desk.new_client())
    die_at(monkeypatch, "acts.begun", "follow", pipe)
    assert carry_out("follow", pipe, key="L")["code"] == "ok"
    desk.configure(TAG, multiplier="3")
    asked = Following("M", FollowRequest("F", "500", settings={"multiplier": "2"}))
    assert begin_following(pipe, act("follow", "L2"), None, asked)["code"] == "already_following"
    assert carry_out("follow", pipe)["code"] == "ok"  # begun before, and as it asks for
    pipe.close()


class Away:
    """A database that does not answer."""

    def account(self, account: Any) -> None:
        return None

    def group(self, name: str, symbol: str) -> None:
        return None

    def followers(self) -> FollowerTable:
        raise AssertionError

    def write_followers(self, rows: Sequence[FollowerRow]) -> list[str | None]:
        raise StoreUnavailable("away", code="database_unavailable")


def test_what_may_pass_is_not_remembered(desk: CopyDesk) -> None:
    pipe = Pipe(desk.new_client())
    for kind in ("follow", "resume"):
        with pytest.raises(CopyriskError) as failure:
            carry_out(kind, pipe, Away(), key=kind)
        assert failure.value.code == "database_unavailable"
        assert carry_out(kind, pipe, key=kind)["code"] == "ok"
        event = carry_out("pause", pipe, Away(), key=f"{kind} p".replace(" ", "-"))
        assert json.loads(event["data"])["behind"] == "database_unavailable"
    pipe.close()
