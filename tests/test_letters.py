"""What cannot be done: entries of outsiders that make no sense, keys that hold something else, and dead letters."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from copyrisk.commands import Kind
from copyrisk.errors import StoreError
from copyrisk.store.letters import list_letters, replay
from copyrisk.store.pipe import Pipe
from tests.trading import Desk, assert_books, dump, is_log, run_threads, until

OPEN: dict[str, Any] = {
    "type": "open",
    "user_type": "live",
    "user_id": "1",
    "symbol": "EURUSD",
    "order_type": "BUY",
    "order_quantity": "1",
}


@pytest.fixture
def desk(bundled_server: Any) -> Any:
    """An account with an order, one with an order at the provider, and a witness that nothing may touch."""
    made = Desk(bundled_server, workers__attempts=3, workers__retry_ms=10)
    made.account("live:1")
    made.account("live:2", "barclays")
    made.account("demo:9")
    assert made.open("live:1", "A")["code"] == "ok"
    assert made.open("live:2", "B")["code"] == "ok"
    assert made.open("demo:9", "W")["code"] == "ok"
    yield made
    made.close()


def is_log_or_claim(key: str) -> bool:
    return is_log(key) or key in ("copyrisk:dead_letters", "order_data:NEW")


def assert_alive(desk: Desk) -> None:
    """The next command of another account is carried out."""
    assert desk.do("stop_loss", "demo:9", order_id="W", stop_loss="1")["code"] == "ok"
    assert desk.do("stop_loss", "demo:9", order_id="W")["code"] == "ok"


def letters(desk: Desk) -> list[dict[str, str]]:
    return desk.entries("copyrisk:dead_letters")


# ---- entries of outsiders

BAD_COMMANDS: list[tuple[str, dict[Any, Any]]] = [
    ("unknown_command", {"x": "y"}),
    ("unknown_command", {b"\xff\xfe\x00": b"\xff" * 20}),
    ("unknown_command", {**OPEN, "type": "steal"}),
    ("unknown_command", {**OPEN, "type": "OPEN"}),
    ("unknown_command", {**OPEN, "type": b"open\xff"}),
    ("unknown_command", {**OPEN, "type": "open\n"}),
    ("invalid_user_type", {"type": "open"}),
    ("invalid_user_type", {**OPEN, "user_type": "admin"}),
    ("invalid_user_type", {**OPEN, "user_type": "LIVE"}),
    ("invalid_account_id", {**OPEN, "user_id": ""}),
    ("invalid_account_id", {**OPEN, "user_id": "1}:{live:2"}),
    ("invalid_account_id", {**OPEN, "user_id": "1\n"}),
    ("invalid_account_id", {**OPEN, "user_id": "\u0661"}),
    ("invalid_account_id", {**OPEN, "user_id": b"1\x00"}),
    ("invalid_account_id", {**OPEN, "user_id": "1" * 65}),
    ("invalid_order_id", {**OPEN, "order_id": "O}1"}),
    ("invalid_order_id", {**OPEN, "type": "close", "order_id": ""}),
    ("invalid_order_id", {**OPEN, "master_order_id": "{"}),
    ("invalid_idempotency_key", {**OPEN, "idempotency_key": "a b"}),
    ("invalid_idempotency_key", {**OPEN, "idempotency_key": "k" * 129}),
    ("invalid_symbol", {**OPEN, "symbol": "{a}"}),
    ("invalid_order_quantity", {**OPEN, "order_quantity": "1e2"}),
    ("invalid_order_quantity", {**OPEN, "order_quantity": "-1"}),
    ("invalid_order_quantity", {**OPEN, "order_quantity": "\u0661"}),
    ("invalid_order_quantity", {**OPEN, "order_quantity": "0"}),
    ("invalid_stop_loss", {**OPEN, "stop_loss": "inf"}),
    ("invalid_trigger", {**OPEN, "type": "trigger", "order_id": "A", "trigger": "all"}),
    ("entry_too_large", {**OPEN, "note": "x" * 1_000_000}),
    ("entry_too_large", {**OPEN, "order_quantity": "1" * 2_000}),
    ("entry_too_large", {**OPEN, **{f"f{number}": "x" for number in range(1_000)}}),
    ("entry_too_large", {**OPEN, "n" * 2_000: "x"}),
    ("order_not_found", {**OPEN, "type": "close", "order_id": "W"}),
    ("order_exists", {**OPEN, "order_id": "W"}),
    ("order_not_found", {**OPEN, "type": "cancel", "order_id": "W", "user_type": "demo", "user_id": "nobody"}),
]


@pytest.mark.parametrize(("code", "said"), BAD_COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_command_that_makes_no_sense_gets_its_code_and_changes_nothing(
    desk: Desk, code: str, said: dict[Any, Any]
) -> None:
    before = dump(desk.client, is_log_or_claim)
    sent = desk.client.xadd("copyrisk:commands", said).decode()
    desk.settle()
    event = desk.answer(sent)
    expected = {code, "account_missing"} if said.get("user_id") == "nobody" else {code}
    assert event["event"] == "refused" and event["code"] in expected
    assert len(json.dumps(event)) < 3_000
    assert dump(desk.client, is_log_or_claim) == before
    assert letters(desk) == []
    assert_alive(desk)


def report_of(desk: Desk, **said: Any) -> dict[Any, Any]:
    """A report of the request that is open, altered."""
    named = {name: desk.request()[name] for name in ("request_id", "action", "user_type", "user_id", "order_id")}
    usual = {"status": "filled", "sequence": "1", "filled_quantity": "1", "average_price": "1.0845"}
    return {**named, **usual, **said}


BAD_REPORTS: list[tuple[str, dict[Any, Any]]] = [
    ("unknown_order", {"order_id": "NONE"}),
    ("unknown_order", {"user_id": "1"}),
    ("account_missing", {"user_id": "nobody"}),
    ("unknown_request", {"request_id": "r0"}),
    ("unknown_request", {"user_type": "demo", "user_id": "9", "order_id": "W"}),
    ("overfill", {"filled_quantity": "1.01"}),
    ("overfill", {"filled_quantity": "999999999999999999", "status": "partial"}),
    ("fill_incomplete", {"filled_quantity": "0.5"}),
    ("report_invalid", {"average_price": "0"}),
    ("report_invalid", {"average_price": "nan"}),
    ("report_invalid", {"average_price": "-1"}),
    ("report_invalid", {"filled_quantity": "1e0"}),
    ("report_invalid", {"filled_quantity": "0"}),
    ("report_invalid", {"filled_quantity": ""}),
    ("report_invalid", {"sequence": "0"}),
    ("report_invalid", {"sequence": ""}),
    ("report_invalid", {"sequence": "9" * 400}),
    ("report_invalid", {"status": "FILLED"}),
    ("report_invalid", {"status": b"\xff\xfe"}),
    ("invalid_user_type", {"user_type": "x"}),
    ("invalid_account_id", {"user_id": "2}:{live:1"}),
    ("invalid_order_id", {"order_id": "B\n"}),
    ("invalid_order_id", {"request_id": ""}),
    ("entry_too_large", {"reason": "x" * 1_000_000}),
    ("entry_too_large", {f"f{number}": "x" for number in range(1_000)}),
]


@pytest.mark.parametrize(("code", "said"), BAD_REPORTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_report_that_contradicts_the_books_is_set_aside(desk: Desk, code: str, said: dict[Any, Any]) -> None:
    before = dump(desk.client, is_log_or_claim)
    desk.client.xadd("copyrisk:reports", report_of(desk, **said))
    desk.settle()
    (aside,) = desk.entries("copyrisk:breaks")
    assert aside["code"] == code
    assert json.loads(aside["report"])["action"] == "open"
    assert dump(desk.client, is_log_or_claim) == before
    desk.client.xadd("copyrisk:reports", report_of(desk))
    desk.settle()
    assert desk.statuses("live:2", "B") == ("OPEN", "EXECUTED")
    assert_alive(desk)


def test_a_report_that_says_nothing_at_all_is_set_aside(desk: Desk) -> None:
    for said in ({"x": "y"}, {b"\xff": b"\xff" * 100}, {"status": "filled"}):
        desk.client.xadd("copyrisk:reports", said)
    desk.settle()
    assert len(desk.entries("copyrisk:breaks")) == 3
    assert_alive(desk)


def test_fewer_lots_than_before_and_lots_after_the_end_are_set_aside(desk: Desk) -> None:
    for sequence, status, lots in ((1, "partial", "0.5"), (2, "partial", "0.4"), (3, "cancelled", "0.6")):
        desk.client.xadd("copyrisk:reports", report_of(desk, sequence=sequence, status=status, filled_quantity=lots))
    desk.client.xadd("copyrisk:reports", report_of(desk, sequence=4))
    desk.settle()
    codes = [aside["code"] for aside in desk.entries("copyrisk:breaks")]
    assert codes == ["filled_quantity_decreased", "report_after_the_end"]
    assert desk.order("live:2", "B")["order_quantity"] == "0.6"
    assert_books(desk)


# ---- names that only workers may use


@pytest.mark.parametrize("handed_on", [False, True])
def test_an_outsider_cannot_pass_a_command_off_as_a_report(desk: Desk, handed_on: bool) -> None:
    forged = {**OPEN, **report_of(desk, average_price="1"), "user_id": "2", "_stream": "copyrisk:reports"}
    before = desk.order("live:2", "B")
    desk.client.xadd("copyrisk:commands", forged)
    if handed_on:
        first, second = desk.new_workers([Kind.CANCEL]), desk.new_workers([Kind.OPEN])
        until(lambda: first.step(1) + second.step(1) == 0)
    desk.settle()
    assert desk.order("live:2", "B") == before


def test_an_outsider_cannot_pass_a_command_off_as_a_report_through_a_dead_letter(desk: Desk) -> None:
    forged = {**OPEN, **report_of(desk, average_price="1"), "user_id": "2", "_stream": "copyrisk:reports"}
    before = desk.order("live:2", "B")
    config = desk.client.dump("user:{live:2}:config")
    desk.client.set("user:{live:2}:config", "x")
    desk.client.xadd("copyrisk:commands", forged)
    desk.settle()
    desk.client.delete("user:{live:2}:config")
    desk.client.restore("user:{live:2}:config", 0, config)
    pipe = Pipe(desk.new_client())
    for letter in list_letters(pipe):
        replay(pipe, letter.id)
    desk.settle()
    assert desk.order("live:2", "B") == before


@pytest.mark.parametrize("handed_on", [False, True])
def test_an_outsider_cannot_give_an_entry_another_id(desk: Desk, handed_on: bool) -> None:
    forged = {**OPEN, "type": "close", "order_id": "A", "order_quantity": "0.1"}
    first = desk.client.xadd("copyrisk:commands", {**forged, "order_id": "NONE"}).decode()
    desk.settle()
    sent = desk.client.xadd("copyrisk:commands", {**forged, "_id": first, "_stream": "copyrisk:commands"}).decode()
    if handed_on:
        handing = desk.new_workers([Kind.CANCEL])
        handing.step(1)
        assert desk.client.xlen("copyrisk:work:close") == 1
    desk.settle()
    assert desk.answer(sent)["code"] == "ok"
    assert desk.answer(first)["code"] == "order_not_found"


# ---- keys that hold something else

Spoil = Callable[[Any, str], None]


def as_text(client: Any, key: str) -> None:
    client.delete(key)
    client.set(key, "garbage")


def as_set(client: Any, key: str) -> None:
    client.delete(key)
    client.sadd(key, "garbage", b"\xff")


def as_hash(client: Any, key: str) -> None:
    client.delete(key)
    client.hset(key, mapping={"version": "garbage", b"\xff": b"\xff"})


SPOILED = [
    *((key, spoil) for key in ("user:{live:1}:config", "user_holdings:{live:1}:A") for spoil in (as_text, as_set)),
    *((key, spoil) for key in ("user_orders_index:{live:1}",) for spoil in (as_text, as_set, as_hash)),
    *((f"copyrisk:{{live:1}}:{name}", as_text) for name in ("ledger", "audit", "outbox", "answer:key:k", "order:A")),
    *((f"copyrisk:{{live:1}}:{name}", as_set) for name in ("ledger", "audit", "outbox", "answer:key:k", "order:A")),
    *((f"copyrisk:{{live:1}}:{name}", as_hash) for name in ("ledger", "audit", "outbox")),
    *((key, spoil) for key in ("order_data:A", "order_data:NEW", "order_triggers:A") for spoil in (as_text, as_set)),
    ("symbol_holders:EURUSD:live", as_text),
    ("copyrisk:{symbol_holders:EURUSD:live}", as_text),
]


@pytest.mark.parametrize(("key", "spoil"), SPOILED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_key_that_holds_something_else_stops_only_its_account(desk: Desk, key: str, spoil: Spoil) -> None:
    spoil(desk.client, key)
    for said in (
        {**OPEN, "order_id": "NEW", "idempotency_key": "k"},
        {**OPEN, "type": "stop_loss", "order_id": "A", "stop_loss": "1.08"},
        {**OPEN, "type": "close", "order_id": "A"},
    ):
        desk.client.xadd("copyrisk:commands", said)
    others = [desk.send("take_profit", "demo:9", order_id="W", take_profit=price) for price in ("1.2", "1.3")]
    for _ in range(20):
        desk.workers.step(1)  # never raises
        if not desk.waiting():
            break
    assert desk.waiting() == 0
    assert [desk.answer(sent)["code"] for sent in others] == ["ok", "ok"]
    assert desk.client.xlen("copyrisk:{demo:9}:outbox") == 0
    assert {json.loads(letter["fields"])["user_id"] for letter in letters(desk)} <= {"1"}
    assert desk.balance("demo:9") == 10_000
    assert_alive(desk)


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        "7",
        "null",
        '""',
        '{"state":"open"}',
        '{"state":"flying"}',
        pytest.param("9" * 6_000, id="huge number"),
        b"\xff\xfe",
    ],
)
def test_a_record_that_makes_no_sense_leaves_the_order_alone(desk: Desk, record: Any) -> None:
    desk.client.set("copyrisk:{live:1}:order:A", record)
    before = desk.order("live:1", "A"), desk.balance("live:1")
    event = desk.do("close", "live:1", order_id="A")
    assert event["code"] == "order_unreadable"
    assert (desk.order("live:1", "A"), desk.balance("live:1")) == before
    assert_alive(desk)


@pytest.mark.parametrize("field", ["asked", "opened", "whole_margin", "net_profit", "requests", "close_price"])
@pytest.mark.parametrize("value", ["x", None, "NaN", "Infinity", ["x"], {"a": 1}], ids=repr)
def test_a_number_of_a_record_that_is_none_leaves_the_order_alone(desk: Desk, field: str, value: Any) -> None:
    if (field, value) in (("close_price", None), ("requests", None)):
        return  # that may be
    record = desk.record("live:1", "A")
    desk.client.set("copyrisk:{live:1}:order:A", json.dumps({**record, field: value}))
    before = desk.order("live:1", "A"), desk.balance("live:1")
    assert desk.do("close", "live:1", order_id="A")["code"] == "order_unreadable"
    assert (desk.order("live:1", "A"), desk.balance("live:1")) == before
    assert_alive(desk)


@pytest.mark.parametrize("answer", ["{", "[]", "{}", '{"body":1}', '{"body":"","event":7}', b"\xff"])
def test_an_answer_that_makes_no_sense_is_not_given(desk: Desk, answer: Any) -> None:
    desk.client.set("copyrisk:{live:1}:answer:key:k", answer)
    sent = desk.send("close", "live:1", order_id="A", idempotency_key="k")
    desk.settle()
    assert desk.answer(sent)["event"] in ("refused", "failed")
    assert desk.statuses("live:1", "A") == ("OPEN", "EXECUTED")
    assert_alive(desk)


@pytest.mark.parametrize("entry", [{"entry": "{"}, {"x": "y"}, {"entry": "[]"}, {"entry": '{"version":"x"}'}])
def test_an_outbox_entry_that_makes_no_sense_does_not_hold_up_the_account(desk: Desk, entry: dict[str, str]) -> None:
    desk.client.xadd("copyrisk:{live:1}:outbox", entry)
    assert desk.do("close", "live:1", order_id="A")["code"] == "ok"
    assert desk.data("A")["order_status"] == "CLOSED"
    assert_alive(desk)


@pytest.mark.parametrize("version", ["garbage", "9" * 5_000, "9" * 30, b"\xff", "\u0661"])
def test_a_ledger_that_makes_no_sense_is_never_taken_for_zero(desk: Desk, version: Any) -> None:
    desk.client.hset("copyrisk:{live:1}:ledger", mapping={"version": version, "reserved_usd": version})
    assert desk.do("open", "live:1", **{**OPEN, "order_id": "NEW"})["event"] in ("refused", "failed")
    assert desk.index("live:1") == {"A"}
    desk.do("close", "live:1", order_id="A")
    reserved = desk.client.hget("copyrisk:{live:1}:ledger", "reserved_usd")
    assert reserved == (version if isinstance(version, bytes) else version.encode())
    assert_alive(desk)


def test_one_accounts_unfinished_effects_hold_up_no_other(desk: Desk) -> None:
    """Both changes in one wave, in the same millisecond: their outbox entries have the same id."""
    as_text(desk.client, "symbol_holders:EURUSD:live")
    for _ in range(5):
        desk.client.delete("copyrisk:dead_letters")
        desk.send(*("open", "live:1"), symbol="EURUSD", order_type="BUY", order_quantity="0.01")
        other = desk.send("take_profit", "demo:9", order_id="W", take_profit="1.2")
        desk.settle()
        assert desk.answer(other)["code"] == "ok"
        assert desk.client.xlen("copyrisk:{demo:9}:outbox") == 0
        announced = [said for said in desk.entries("copyrisk:events") if said["command_id"] == other]
        assert len(announced) == 1
    desk.client.delete("symbol_holders:EURUSD:live")
    desk.do("stop_loss", "live:1", order_id="A", stop_loss="1")
    assert desk.client.xlen("copyrisk:{live:1}:outbox") == 0
    assert desk.holders("live") == {"live:1"}


def test_a_command_stream_that_is_none_does_not_stop_the_reports(bundled_server: Any) -> None:
    desk = Desk(bundled_server)
    desk.account("live:2", "barclays")
    desk.open("live:2", "B")
    request = desk.request()
    desk.client.delete("copyrisk:commands")
    desk.client.set("copyrisk:commands", "x")
    stop, threads = run_threads(desk, 1)
    try:
        desk.report(request, "filled", 1, "1", average_price="1.0845")
        until(lambda: desk.statuses("live:2", "B") == ("OPEN", "EXECUTED"), 5)
    finally:
        stop.set()
        threads[0].join()


# ---- dead letters


def run_cli(desk: Desk, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
    command = [sys.executable, "-m", "copyrisk.cli", "--redis", desk.server.url, "dead-letters", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=clean, check=False)


def unbooked(desk: Desk) -> str:
    """A close that the provider filled, and whose result nothing converts to USD; returns its request."""
    desk.office.group("EURNOK", profit="NOK")
    desk.quote("11.5", "11.51", "EURNOK")
    desk.quote("10.0", "10.0", "USDNOK")
    assert (
        desk.do("open", "live:2", symbol="EURNOK", order_type="BUY", order_quantity="0.1", order_id="N")["code"] == "ok"
    )
    desk.reported(desk.request(), "filled", 1, "0.1", average_price="11.51")
    assert desk.do("close", "live:2", order_id="N")["code"] == "ok"
    desk.client.delete("market:USDNOK")
    desk.reported(desk.request(), "filled", 1, "0.1", average_price="11.61")
    return desk.request()["request_id"]


def test_a_fill_that_cannot_be_booked_is_kept_listed_and_applied_once(desk: Desk) -> None:
    request_id = unbooked(desk)
    (letter,) = letters(desk)
    assert (letter["stream"], letter["code"], letter["deliveries"]) == (
        "copyrisk:reports",
        "conversion_rate_missing",
        "3",
    )
    assert desk.statuses("live:2", "N") == ("OPEN", "EXECUTED")
    assert desk.balance("live:2") == 10_000
    listed = run_cli(desk, "list")
    assert listed.returncode == 0
    assert "conversion_rate_missing" in listed.stdout and request_id in listed.stdout
    ((letter_id, _),) = desk.client.xrange("copyrisk:dead_letters")
    desk.quote("10.0", "10.0", "USDNOK")
    assert run_cli(desk, "replay", letter_id.decode()).returncode == 0
    desk.settle()
    assert desk.balance("live:2") == Decimal("10100.00")
    assert letters(desk) == []
    again = run_cli(desk, "replay", letter_id.decode())
    assert again.returncode == 1
    assert "no_such_letter" in again.stderr and "Traceback" not in again.stderr
    desk.settle()
    assert desk.balance("live:2") == Decimal("10100.00")
    assert desk.entries("copyrisk:breaks") == []
    assert_books_of_one(desk)


def assert_books_of_one(desk: Desk) -> None:
    assert desk.index("live:2") == {"B"}
    assert desk.data("N")["order_status"] == "CLOSED"


def test_a_letter_replayed_too_early_comes_back_and_is_still_applied_once(desk: Desk) -> None:
    unbooked(desk)
    assert "0 dead letters" in run_cli(desk, "list").stdout or letters(desk)
    assert run_cli(desk, "replay", "all").returncode == 0
    desk.settle()
    (letter,) = letters(desk)
    assert letter["code"] == "conversion_rate_missing"
    desk.quote("10.0", "10.0", "USDNOK")
    ((_, said),) = desk.client.xrange("copyrisk:dead_letters")
    desk.client.xadd("copyrisk:dead_letters", said)  # buried twice: the worker died in between
    pipe = Pipe(desk.new_client())
    for found in list_letters(pipe):
        replay(pipe, found.id)
    desk.settle()
    assert desk.balance("live:2") == Decimal("10100.00")


def test_what_comes_back_in_time_is_no_dead_letter(bundled_server: Any) -> None:
    desk = Desk(bundled_server, workers__attempts=1_000, workers__retry_ms=10)
    desk.account("live:2", "barclays")
    for _ in range(30):
        if desk.client.exists("copyrisk:work:open"):
            break
        desk.workers.step(1)
    desk.office.group("EURNOK", profit="NOK")
    desk.quote("11.5", "11.51", "EURNOK")
    desk.quote("10.0", "10.0", "USDNOK")
    desk.do("open", "live:2", symbol="EURNOK", order_type="BUY", order_quantity="0.1", order_id="N")
    desk.reported(desk.request(), "filled", 1, "0.1", average_price="11.51")
    desk.do("close", "live:2", order_id="N")
    desk.client.delete("market:USDNOK")
    desk.report(desk.request(), "filled", 1, "0.1", average_price="11.61")
    for _ in range(10):
        desk.workers.step(1)
    assert desk.waiting() == 1
    desk.quote("10.0", "10.0", "USDNOK")
    desk.settle()
    assert desk.balance("live:2") == Decimal("10100.00")
    assert letters(desk) == []


def test_a_command_that_failed_is_told_so_and_replayed_under_its_own_name(desk: Desk) -> None:
    config = desk.client.dump("user:{live:1}:config")
    as_text(desk.client, "user:{live:1}:config")
    sent = desk.send("close", "live:1", order_id="A", idempotency_key="k")
    desk.settle()
    event = desk.answer(sent)
    assert (event["event"], event["code"], event["idempotency_key"]) == ("failed", "account_unreadable", "k")
    desk.client.delete("user:{live:1}:config")
    desk.client.restore("user:{live:1}:config", 0, config)
    assert run_cli(desk, "replay", "all").returncode == 0
    desk.settle()
    (done,) = desk.events(event="done", command_id=sent)
    assert (done["code"], done["idempotency_key"]) == ("ok", "k")
    again = desk.send("close", "live:1", order_id="A", idempotency_key="k")
    desk.settle()
    assert not desk.events(command_id=again)
    assert desk.balance("live:1") == Decimal("9995.00")


def test_letters_that_cannot_be_put_back_stay(desk: Desk) -> None:
    pipe = Pipe(desk.new_client())
    for said in (
        {"x": "y"},
        {"stream": "user:{live:1}:config", "fields": '{"a":"b"}'},
        {"stream": "copyrisk:commands", "fields": "[1]"},
        {"stream": "copyrisk:commands", "fields": '{"a":1}'},
        {"stream": "copyrisk:commands", "fields": "{}"},
        {b"\xff": b"\xff"},
    ):
        letter_id = desk.client.xadd("copyrisk:dead_letters", said).decode()
        with pytest.raises(StoreError) as raised:
            replay(pipe, letter_id)
        assert raised.value.code == "letter_unreadable"
    assert len(list_letters(pipe)) == 6
    failed = run_cli(desk, "replay", "all")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    for odd in ("x", "1-1", "-", "+", "0", "1-1-1", "$"):
        with pytest.raises(StoreError):
            replay(pipe, odd)


def test_a_listing_shows_what_outsiders_wrote_and_nothing_it_would_do(desk: Desk) -> None:
    as_text(desk.client, "user:{live:1}:config")
    desk.client.xadd("copyrisk:commands", {**OPEN, "note": "\x1b[2J\r\nnone  copyrisk:commands fake: letter\x07"})
    desk.settle()
    listed = run_cli(desk, "list")
    assert listed.returncode == 0
    assert not [sign for sign in listed.stdout if ord(sign) < 32 and sign != "\n"]
    assert len(listed.stdout.splitlines()) == 3
