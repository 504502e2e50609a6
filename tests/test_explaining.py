"""`copyrisk-run explain` and `replication`: what they say of a real engine's records, and what they make of garbage."""

import argparse
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk.errors import CopyriskError
from copyrisk.explaining import differences
from copyrisk.operations import COMMANDS, add_commands
from copyrisk.progress import latency_bound, progress_of
from copyrisk.replication import DECIDED
from copyrisk.replicator import Replicator
from copyrisk.roles import make_replicator
from copyrisk.settings import load_settings
from copyrisk.sizing import SIZED, is_sized, size_reason, size_rows, sizing_rows
from copyrisk.store.tallies import BUCKETS_MS
from tests.trading import ASK, Desk

Run = Callable[..., tuple[int, str]]
MASTER = "strategy_provider:M"
LIMITED = {"multiplier": "2", "max_lot_size": "0.2"}
#: Followers: their balance, and what else stands in their configurations.
FOLLOWERS: dict[str, tuple[str, dict[str, str]]] = {
    "F0": ("10000.55", {}),
    "F1": ("20000", LIMITED),
    "F2": ("10", {}),
    "F3": ("5000", {"copy_status": "paused"}),
}

#: How the record names a member of the set that is no id.
NO_ID = "?" + blake2b(b"b{a\x1b\n", digest_size=16).hexdigest()


class Copies:
    """A master's order and those who follow it."""

    def __init__(self, server: Any, flow: str = "rock") -> None:
        self.desk = Desk(server)
        self.url = server.url
        self.desk.account(MASTER, "rock", 100_000)
        for name, (balance, config) in FOLLOWERS.items():
            self.desk.account(f"copy_follower:{name}", flow, balance, **config)
        self.desk.client.sadd("copy_master_followers:M:active", *FOLLOWERS, "gone", "b{a\x1b\n")
        self.engine: Replicator = make_replicator(self.desk.new_client(), self.desk.settings)
        self.engine._consumer.join()

    def open(self, order_id: str = "MO1", lots: str = "1.5", **more: object) -> None:
        self.desk.open(MASTER, order_id, lots=lots, **more)
        self.replicate()

    def replicate(self) -> None:
        while self.desk.client.xlen("copyrisk:replications"):
            self.engine.step(1)

    def copy_of(self, follower: str) -> str:
        """The id of its only copy."""
        (own_id,) = self.desk.index(f"copy_follower:{follower}")
        return own_id

    def close(self) -> None:
        self.engine._observer.close()
        self.desk.close()


@pytest.fixture
def copies(bundled_server: Any) -> Iterator[Copies]:
    made = Copies(bundled_server)
    yield made
    made.close()


@pytest.fixture
def run(bundled_server: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """Carry out a command line; its exit code and what it printed."""

    def carry_out(*words: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        add_commands(parser)
        options = parser.parse_args(words)
        capsys.readouterr()
        try:
            code = COMMANDS[options.command](load_settings(None, {}, {"redis.url": bundled_server.url}), options)
        except CopyriskError as failure:  # as the command line does
            return 1, f"{failure} [{failure.code}]\n"
        return code, capsys.readouterr().out

    return carry_out


def facts(run: Run, *words: str) -> Any:
    code, said = run(*words, "--json")
    assert code == 0
    return json.loads(said)


def lines_of(said: str) -> dict[str, str]:
    """By label; the last of a label."""
    return {line[:17].strip(): line[17:] for line in said.splitlines()}


# ---- explain


def test_the_whole_of_an_order(copies: Copies, run: Run) -> None:
    copies.open(stop_loss="1.08")
    entry = copies.desk.events(user_id="M")[0]
    code, said = run("explain", "MO1")
    told = lines_of(said)
    assert code == 0
    assert told["order"] == "MO1 of master M: BUY 1.5 EURUSD at 1.08455, stop_loss 1.08"
    assert told["event"].endswith(f"version {entry['version']}")
    assert told["master"] == "equity 99992.50, balance 100000.00, free_margin 98365.68, leverage 100.00"
    assert told["quote"].startswith("bid 1.0845, ask 1.08455, judged_ms 1")
    assert told["followers"] == "6: 2 copied, 0.35 lots"
    for reason in ("below_min", "copying_paused", "account_missing", "invalid_account_id"):
        assert f"{'':17}1 {reason}\n" in said
    assert told["target"] == "as it was opened" and told["waiting"] == "0 copies"
    assert told["recomputed"] == "the same, 3 sizes"
    assert told["latency"].startswith("p50 ") and "unknown" not in said
    order = facts(run, "explain", "MO1")["order"]
    times = order["times"]
    assert times["ordered_ms"] == int(entry["ts"]) <= times["received_ms"] <= times["decided_ms"]
    assert times["decided_ms"] - 1 <= times["first_stored_ms"] <= times["last_stored_ms"]
    assert order["latency_ms"]["max"] == pytest.approx(times["last_stored_ms"] - times["received_ms"], abs=0.001)


def test_every_follower_as_it_was_known_and_decided(copies: Copies, run: Run) -> None:
    copies.open()
    found = facts(run, "explain", "MO1")
    followers = {one["follower"]: one for one in found["followers"]}
    assert set(followers) == {*FOLLOWERS, "gone", NO_ID} and found["differs"] == {}
    for name, lots in (("F0", "0.15"), ("F1", "0.2")):
        one, sizing = followers[name], followers[name]["sizing"]
        balance, config = FOLLOWERS[name]
        ratio = Fraction(balance) * int(config.get("multiplier", "1")) / Fraction(sizing["master_usd"])
        assert (sizing["rule"], sizing["figure"], sizing["master_usd"]) == ("ratio", "equity", "99992.50")
        assert Decimal(sizing["follower_usd"]) == Decimal(balance)
        assert float(sizing["ratio"]) == pytest.approx(float(ratio), rel=1e-11)
        assert float(sizing["raw_lots"]) == pytest.approx(float(ratio) * 1.5, abs=1e-10)
        rest = Decimal(sizing["raw_lots"]) - Decimal(sizing["raw_lots"]).quantize(Decimal("0.01"), ROUND_DOWN)
        assert Decimal(sizing["remainder_after"]) == rest and sizing["remainder_before"] == "0"
        assert (sizing["min_lots"], sizing["max_lots"]) == ("0.01", config.get("max_lot_size", "100"))
        assert (one["lots"], one["code"], one["result"]) == (lots, "clipped" if name == "F1" else "ok", "copied")
        own = copies.desk.order(f"copy_follower:{name}", one["copy_id"])
        assert own["order_quantity"] == lots == one["copy"]["asked"] == one["copy"]["quantity"]
        assert own["margin"] == one["margin_usd"] == str((Decimal(lots) * 1000 * ASK).quantize(Decimal("0.01")))
        assert one["version"] == copies.desk.version(f"copy_follower:{name}")
        assert one["filled_ms"] == one["stored_ms"] and one["history"] == [] and one["waiting"] is None
    assert (followers["F2"]["result"], followers["F2"]["code"], followers["F2"]["lots"]) == ("below_min",) * 2 + ("0",)
    assert followers["F2"]["sizing"]["raw_lots"] == "0.0001500113" and followers["F2"]["copy"] is None
    for name, reason in (("F3", "copying_paused"), ("gone", "account_missing"), (NO_ID, "invalid_account_id")):
        one = followers[name]
        assert (one["result"], one["reason"], one["sizing"], one["lots"]) == (reason, reason, None, None)
        assert one["stored_ms"] is None and one["filled_ms"] is None and one["margin_usd"] is None
    assert followers[NO_ID]["copy_id"] == "" and followers["gone"]["group"] is None
    assert followers["F1"]["settings"] | {"multiplier": "2", "max_lot_size": "0.2"} == followers["F1"]["settings"]


def test_one_follower_by_its_name_or_by_its_copy(copies: Copies, run: Run) -> None:
    copies.open()
    own_id = copies.copy_of("F0")
    by_name = run("explain", "MO1", "--follower", "F0")
    assert by_name == run("explain", own_id) == run("explain", "MO1", "--follower", "copy_follower:F0")
    assert by_name == run("explain", own_id, "--follower", "F0")
    told = lines_of(by_name[1])
    assert by_name[0] == 0 and told["follower"] == f"F0, copy {own_id}"
    assert told["follower usd"] == "10000.55" and told["master usd"] == "99992.50" and told["multiplier"] == "1"
    assert told["lots"] == "0.15, ok" and told["min lots"] == "0.01" and told["raw lots"].startswith("0.15001")
    assert told["result"].startswith("copied, version 1") and told["result"].endswith("margin 162.68 USD")
    assert told["copy now"] == "state open, flow local, order_type BUY, quantity 0.15, asked 0.15, price 1.08455"
    assert told["recomputed"] == "the same"
    assert facts(run, "explain", own_id)["followers"] == [
        one for one in facts(run, "explain", "MO1")["followers"] if one["follower"] == "F0"
    ]
    paused = lines_of(run("explain", "MO1", "--follower", "F3")[1])
    assert paused["size"] == "none was asked for" and paused["result"] == "copying_paused"
    code, said = run("explain", "MO1", "--follower", "b{a")
    assert code == 1 and said.endswith("[invalid_account_id]\n") and said.count("\n") == 1


def test_what_happened_to_a_copy_later(copies: Copies, run: Run) -> None:
    copies.open()
    own_id = copies.copy_of("F0")
    copies.desk.do("close", MASTER, order_id="MO1", order_quantity="0.5")
    copies.replicate()
    order, (one,) = (facts(run, "explain", own_id)[name] for name in ("order", "followers"))
    assert order["target"] | {"share": "2/3"} == order["target"] and one["copy"]["quantity"] == "0.1"
    assert [(said["what"], said["code"]) for said in one["history"]] == [("closed_in_part", "ok")]
    copies.desk.do("close", MASTER, order_id="MO1")
    copies.replicate()
    assert not copies.desk.index("copy_follower:F0")
    code, said = run("explain", own_id)  # its record outlives it
    assert code == 0 and "target           share 0, version" in said and "state closed" in said
    (one,) = facts(run, "explain", own_id)["followers"]
    assert [said["what"] for said in one["history"]] == ["closed_in_part", "closed"]
    assert one["filled_ms"] == one["stored_ms"] is not None


def test_when_the_provider_filled_a_copy(bundled_server: Any, run: Run) -> None:
    copies = Copies(bundled_server, flow="barclays")
    copies.open()
    own_id = copies.copy_of("F0")
    assert facts(run, "explain", own_id)["followers"][0]["filled_ms"] is None
    assert lines_of(run("explain", own_id)[1])["filled"] == "unknown"
    request_id = copies.desk.record("copy_follower:F0", own_id)["requests"][0][0]
    named = {"request_id": request_id, "action": "open", "user_type": "copy_follower", "user_id": "F0"}
    for sequence, (status, lots) in enumerate((("partial", "0.05"), ("filled", "0.15")), 1):
        said = {**named, "order_id": own_id}
        copies.desk.reported(said, status, sequence, lots, average_price="1.0846")
    (one,) = facts(run, "explain", own_id)["followers"]
    assert [said["what"] for said in one["history"]] == ["part_reported", "fill_reported"]
    assert one["filled_ms"] == one["history"][1]["at_ms"] > one["stored_ms"] - 1
    assert one["copy"] | {"flow": "provider", "state": "open", "price": "1.0846"} == one["copy"]
    copies.close()


def test_copies_that_wait_are_shown_with_why(copies: Copies, run: Run) -> None:
    copies.open()
    own_id = copies.copy_of("F0")
    copies.desk.client.hset(
        "copyrisk:waiting_copies",
        mapping={
            own_id: json.dumps({"follower": "F0", "order_id": "MO1", "reverse": False, "code": "no_quote"}),
            "copy-other": json.dumps({"follower": "F9", "order_id": "MO2", "reverse": False, "code": "x"}),
            **{f"copy-{i}": garbage for i, garbage in enumerate((b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000))},
        },
    )
    code, said = run("explain", own_id)
    assert code == 0 and f"waiting          1 copies\n{'':17}{own_id} of F0: no_quote\n" in said
    assert lines_of(said)["waiting"] == "no_quote"


def test_a_decision_that_is_not_carried_out_yet(copies: Copies, run: Run) -> None:
    copies.open()
    copies.desk.client.hdel("copyrisk:copies:MO1", "made")
    code, said = run("explain", "MO1", "--follower", "F0")
    told = lines_of(said)
    assert code == 0 and told["followers"] == "6: 2 to be copied, 0.35 lots, not made yet"
    assert told["stored"] == "unknown" and told["latency"] == "unknown" and told["result"] == "not made yet"
    assert lines_of(run("explain", "MO1", "--follower", "F2")[1])["result"] == "below_min"


# ---- sizing again


def rows_for(equities: list[float]) -> Any:
    """What an engine would store of followers with these equities."""
    rows = np.zeros(len(equities), DECIDED)
    rows["sizing"] = sizing_rows(0.5, 10_000.0, equities)
    rows["sized"] = size_rows(np.ascontiguousarray(rows["sizing"]))
    for place, code in enumerate(rows["sized"]["code"].tolist()):
        rows["reason"][place] = b"" if is_sized(code) else size_reason(code).encode()
    return rows


EQUITIES = st.lists(st.sampled_from([float("nan"), 0.0, -1.0, 1.0, 199.99, 10_000.0, 1e9, 12_345.67]), min_size=1)
FIELDS = [name for name in SIZED.names or () if name != "_pad"]


@given(EQUITIES)
def test_what_an_engine_stores_comes_to_the_same(equities: list[float]) -> None:
    rows = rows_for(equities)
    assert differences(rows) == {}
    rows["sizing"][0], rows["sized"][0], rows["reason"][0] = 0, 0, b"copying_paused"  # nobody asked for a size
    assert differences(rows) == {}
    rows["reason"] = np.where(rows["reason"] == b"", b"order_ended", rows["reason"])  # it had a size, and was too late
    assert differences(rows) == {}


@given(EQUITIES, st.data())
def test_whatever_is_changed_is_found(equities: list[float], data: st.DataObject) -> None:
    rows = rows_for(equities)
    place = data.draw(st.integers(0, len(rows) - 1))
    field = data.draw(st.sampled_from([*FIELDS, "reason", "sizing"]))
    if field == "reason":
        was_sized = is_sized(int(rows["sized"]["code"][place]))
        rows["reason"][place] = b"" if not was_sized else rows["reason"][place]
        expected = set() if was_sized else {place}
    elif field == "sizing":
        rows["sizing"][place] = 0
        expected = {place}
    else:
        rows["sized"][field][place] = rows["sized"][field][place] + 1 if field != "raw_steps" else -1.0
        expected = {place}
    assert set(differences(rows)) == expected


def _rewritten(stored: bytes, change: Callable[[Any, Any], None]) -> bytes:
    said, _, packed = stored.partition(b"\n")
    header, rows = json.loads(said), np.frombuffer(packed, DECIDED).copy()
    change(header, rows)
    return json.dumps(header).encode() + b"\n" + rows.tobytes()


def test_a_record_that_was_tampered_with_does_not_come_to_the_same(copies: Copies, run: Run) -> None:
    copies.open()

    def richer(_: Any, rows: Any) -> None:
        rows["sizing"]["follower_cents"][rows["follower"] == b"F0"] *= 2

    key = "copyrisk:copies:MO1"
    copies.desk.client.hset(key, "decided", _rewritten(copies.desk.client.hget(key, "decided"), richer))
    code, said = run("explain", "MO1")
    assert code == 1 and lines_of(said)["recomputed"] == "different, 3 sizes"
    assert "F0: sized again: steps 15, not 30; raw_steps 15.00" in said
    code, said = run("explain", "MO1", "--json")
    assert code == 1 and list(json.loads(said)["differs"]) == ["F0"]
    assert run("explain", "MO1", "--follower", "F1")[0] == 1  # the record as a whole is not right
    assert lines_of(run("explain", "MO1", "--follower", "F1")[1])["recomputed"] == "the same"


# ---- what makes no sense


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("explain", "nope"), "order_unknown"),
        (("explain", "a b"), "invalid_order_id"),
        (("explain", "x" * 5_000), "invalid_order_id"),
        (("explain", "\x1b[2J\n{"), "invalid_order_id"),
        (("explain", "MO1", "--follower", "F9"), "follower_unknown"),
        (("explain", "MO1", "--follower", "live:1"), "not_a_follower"),
        (("explain", "MO1", "--follower", "x:1"), "invalid_user_type"),
        (("explain", "MO1", "--follower", ""), "invalid_account_id"),
        (("explain", "LO1"), "decision_missing"),
        (("explain", "MO9"), "decision_missing"),
        (("explain", "CO1"), "decision_missing"),
        (("explain", "CO2"), "follower_unknown"),
        (("explain", "CO3"), "invalid_order_id"),
        (("explain", "CO4"), "order_unknown"),
        (("replication", "a b"), "invalid_account_id"),
        (("replication", "live:1"), "not_a_master"),
    ],
)
def test_a_wrong_word_is_one_line_with_a_code(copies: Copies, run: Run, words: tuple[str, ...], code: str) -> None:
    copies.open()
    copies.desk.account("live:1")
    copies.desk.open("live:1", "LO1")
    copies.desk.client.hset("order_data:MO9", mapping={"user_type": "strategy_provider", "user_id": "M"})
    for number, order_id in (("1", "gone"), ("2", "MO1"), ("3", "{")):
        said = {"user_type": "copy_follower", "user_id": "F9", "master_order_id": order_id}
        copies.desk.client.hset(f"order_data:CO{number}", mapping=said)
    copies.desk.client.set("order_data:CO4", "no hash")
    exit_code, said = run(*words)
    assert exit_code == 1 and said.endswith(f"[{code}]\n") and said.count("\n") == 1


def test_a_copy_is_not_another_followers(copies: Copies, run: Run) -> None:
    copies.open()
    code, said = run("explain", copies.copy_of("F0"), "--follower", "F1")
    assert code == 1 and said.endswith("[follower_unknown]\n")


def _without(name: str) -> Callable[[Any, Any], None]:
    return lambda header, _: header.pop(name)


def _with(name: str, value: Any) -> Callable[[Any, Any], None]:
    return lambda header, _: header.update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        *(
            _without(name)
            for name in ("event", "lots", "received_ms", "master_figures", "groups", "settings", "layout")
        ),
        *(
            _with(name, value)
            for name in ("received_ms", "groups", "settings", "quote")
            for value in (None, "x", [], -7)
        ),
        _with("groups", [{"step": "x"}] * 3),
        _with("settings", [[]]),
        _with("received_ms", 10**30),
        _with("layout", 2),
        lambda _, rows: rows["settings"].__setitem__(slice(None), 10**6),
        lambda _, rows: rows["group"].__setitem__(slice(None), 9_999),
    ],
)
def test_a_decision_that_is_none_is_one_line_with_a_code(copies: Copies, run: Run, change: Any) -> None:
    copies.open()
    key = "copyrisk:copies:MO1"
    copies.desk.client.hset(key, "decided", _rewritten(copies.desk.client.hget(key, "decided"), change))
    for more in ((), ("--follower", "F0"), ("--json",)):
        code, said = run("explain", "MO1", *more)
        shown_at_all = more == () and code == 0  # what is not needed for what is asked need not be there
        assert shown_at_all or (code == 1 and said.endswith("[decision_unreadable]\n") and said.count("\n") == 1)


@pytest.mark.parametrize("field", ["decided", "made", "target"])
@pytest.mark.parametrize(
    "stored", [b"", b"\n", b"{}\n", b"[]\n", b'{"layout":1}\n', b"\xff", zlib.compress(b'{"layout":1}\n'), b"null"]
)
def test_garbage_in_a_record_is_one_line(copies: Copies, run: Run, field: str, stored: bytes) -> None:
    copies.open()
    copies.desk.client.hset("copyrisk:copies:MO1", field, stored)
    for more in ((), ("--follower", "F0"), ("--json",)):
        code, said = run("explain", "MO1", *more)
        assert code == 1 and said.count("\n") == 1
        assert said.endswith(("[decision_unreadable]\n", "[follower_unknown]\n" if more else ""))


def test_keys_of_a_wrong_type_are_unknown_or_one_line(copies: Copies, run: Run) -> None:
    copies.open()
    own_id, client = copies.copy_of("F0"), copies.desk.client
    for key in (
        f"user_holdings:{{copy_follower:F0}}:{own_id}",
        f"copyrisk:{{copy_follower:F0}}:order:{own_id}",
        "copyrisk:{copy_follower:F0}:audit",
        "copyrisk:waiting_copies",
    ):
        client.delete(key)
        client.rpush(key, "x")
    code, said = run("explain", own_id)
    assert code == 0 and lines_of(said)["copy now"] == "unknown" and lines_of(said)["result"].startswith("copied")
    client.delete("copyrisk:copies:MO1")
    client.rpush("copyrisk:copies:MO1", "x")
    code, said = run("explain", "MO1")
    assert code == 1 and said.count("\n") == 1 and said.endswith("]\n")


def test_a_copy_or_an_audit_that_cannot_be_read_is_said_to_be_so(copies: Copies, run: Run) -> None:
    copies.open()
    own_id, client = copies.copy_of("F0"), copies.desk.client
    client.hset(f"user_holdings:{{copy_follower:F0}}:{own_id}", "order_quantity", "1e5")
    for garbage in ("", "[]", "null", "{}", f'{{"order_id":"{own_id}"}}', "[" * 100_000, "\x1b[2J"):
        client.xadd("copyrisk:{copy_follower:F0}:audit", {"entry": garbage})
    odd = {"order_id": own_id, "code": "x\x1b[2J", "type": "follow", "order": "[]"}
    client.xadd("copyrisk:{copy_follower:F0}:audit", {"entry": json.dumps({**odd, "order": "{}"})})
    client.xadd("copyrisk:{copy_follower:F0}:audit", {"entry": json.dumps(odd)})
    client.xadd("copyrisk:{copy_follower:F0}:audit", {"no": "entry"})
    code, said = run("explain", own_id)
    assert code == 0 and lines_of(said)["copy now"] == "state order_unreadable"
    assert "follow, code x?[2J" in said and "\x1b" not in said


# ---- replication


def test_the_counts_of_all_masters_and_of_one(copies: Copies, run: Run) -> None:
    code, said = run("replication")
    told = lines_of(said)
    assert code == 0 and told["orders"] == "0" and told["success"] == "unknown, target 99.9 %"
    assert told["latency p99"] == "unknown, target 100 ms" and told["lease"] == "nobody has it"
    copies.open()
    copies.open("MO2")
    code, said = run("replication")
    told = lines_of(said)
    assert code == 0 and told["master"] == "all of them"
    of_one = lines_of(run("replication", "strategy_provider:M")[1])
    assert told | {"master": "M", "lease": of_one["lease"]} == of_one
    assert (told["orders"], told["followers"], told["copied"], told["failed"]) == ("2", "12", "4", "0")
    assert told["success"].startswith("100")
    for reason in ("below_min", "copying_paused", "account_missing", "invalid_account_id"):
        assert f"{'':17}2 {reason}\n" in said
    found = facts(run, "replication", "M")
    assert found["master"] == "M" and sum(found["within_ms"].values()) == 4
    assert found["p50_ms"] in found["within_ms"] and found["latency_reached"] == (float(found["p99_ms"]) <= 100)
    assert facts(run, "replication", "N")["orders"] == 0 and facts(run, "replication")["master"] is None


def test_what_waits_for_the_engine_and_which_it_is(copies: Copies, run: Run) -> None:
    copies.open()
    copies.engine.step(1)
    copies.desk.open(MASTER, "MO2")
    copies.desk.client.hset("copyrisk:waiting_copies", "copy-1", "{}")
    found = facts(run, "replication")
    assert (found["entries"], found["entries_taken"], found["entries_not_taken"]) == (1, 0, 1)
    assert found["waiting_copies"] == 1 and 0 <= found["oldest_entry_ms"] < 10_000
    assert found["lease_holder"] and found["lease_left_ms"] > 0
    copies.engine._consumer.read(1, 1)
    told = lines_of(run("replication")[1])
    assert told["entries"].startswith("1, 1 of them taken, 0 not; the oldest waits ") and told["waiting copies"] == "1"
    assert told["lease"].startswith(found["lease_holder"])
    copies.replicate()
    assert lines_of(run("replication")[1])["entries"] == "0, 0 of them taken, 0 not"


def test_counts_that_cannot_be_read_are_one_line(copies: Copies, run: Run) -> None:
    client = copies.desk.client
    for key in ("copyrisk:waiting_copies", "copyrisk:replications", "copyrisk:{replicator}:lease"):
        client.delete(key)
        client.rpush(key, "x")
    code, said = run("replication")
    told = lines_of(said)
    assert code == 0 and told["waiting copies"] == "unknown" and told["lease"] == "nobody has it"
    assert told["entries"] == "unknown, unknown of them taken, unknown not"
    client.hset("copyrisk:replication:", "orders", "many\x1b")
    code, said = run("replication")
    assert code == 1 and said.endswith("[counts_unreadable]\n") and said.count("\n") == 1 and "\x1b" not in said
    client.delete("copyrisk:replication:")
    client.set("copyrisk:replication:", "x")
    code, said = run("replication")
    assert code == 1 and said.endswith("]\n") and said.count("\n") == 1


BOUNDS = [*map(str, BUCKETS_MS), "inf"]


@given(st.lists(st.sampled_from(BOUNDS)), st.integers(1, 100))
def test_a_bound_is_that_of_the_sorted_latencies(bounds: list[str], percent: int) -> None:
    counts = {f"within_ms:{bound}": bounds.count(bound) for bound in set(bounds)}
    ordered = sorted(bounds, key=BOUNDS.index)
    rank = -(-percent * len(ordered) // 100)
    assert latency_bound(counts, percent) == (ordered[rank - 1] if ordered else None)


@pytest.mark.parametrize(
    ("copied", "failed", "reached"), [(0, 0, None), (999, 1, True), (998, 1, False), (0, 1, False), (1, 0, True)]
)
def test_the_success_rate_is_of_what_should_have_been_copied(copied: int, failed: int, reached: bool | None) -> None:
    found = progress_of({"copied": copied, "failed": failed, "followers": 10**6, "reason:below_min": 7})
    assert found["success_reached"] is reached
    assert found["success_pct"] == (100 * copied / (copied + failed) if copied + failed else None)


def test_slow_copies_miss_the_target() -> None:
    counts = {"within_ms:100": 99, "within_ms:inf": 1}
    assert progress_of(counts)["latency_reached"] is True
    found = progress_of(counts | {"within_ms:inf": 2})
    assert (found["p50_ms"], found["p99_ms"], found["latency_reached"]) == ("100", "inf", False)


# ---- the process


def test_without_a_server_it_says_what_is_missing(tmp_path: Any) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}

    def process(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "copyrisk.cli", *words]
        ended = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60, check=False)
        return ended.returncode, ended.stderr

    for words in (("explain", "MO1"), ("replication",)):
        code, said = process(*words)
        assert code == 2 and said.endswith("[bad_configuration]\n") and said.count("\n") == 1
    code, said = process("--redis", "redis://127.0.0.1:1", "explain", "MO1")
    assert code == 1 and said.endswith("[server_unreachable]\n") and said.count("\n") == 1
