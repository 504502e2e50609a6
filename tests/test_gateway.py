"""The gateway: nothing is sent that is not written down, nothing reported is lost, nothing unanswered is decided."""

import json
import random
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import keys
from copyrisk.errors import ConfigError, CopyriskError, Refused
from copyrisk.gateway.digest import digest
from copyrisk.gateway.gateway import resolve, run_gateway
from copyrisk.gateway.lines import Lines, LinkLost
from copyrisk.gateway.link import LinkSettings, parse_provider_url
from copyrisk.gateway.messages import InvalidReport, ProviderReport, parse_report, parse_request
from copyrisk.gateway.records import (
    Finished,
    Record,
    RequestState,
    parse_finished,
    parse_record,
)
from copyrisk.gateway.session import GROUP, GatewaySettings
from copyrisk.gateway.watch import Backoff, Watch
from copyrisk.provider_reports import ReportStatus
from copyrisk.provider_reports import parse_report as parse_worker_report
from copyrisk.store.connection import connect
from tests.conftest import Server
from tests.provider import (
    Provider,
    Streams,
    end,
    gateway,
    gateway_process,
    placed,
    provider,
    provider_process,
    request,
    until,
)

ENDS = ("filled", "rejected", "cancelled")


@pytest.fixture
def streams(bundled_server: Server) -> Iterator[Streams]:
    client = bundled_server.client()
    yield Streams(client)
    client.close()


@pytest.fixture
def running() -> Iterator[Provider]:
    with provider() as started:
        yield started


def books_agree(streams: Streams, running: Provider) -> dict[str, dict[str, str]]:
    """Every request ended as the provider's books say, with its last report; the last reports by request."""
    found = {}
    for request_id, order in running.orders().items():
        last = streams.last(request_id)
        said = {name: str(order[name]) for name in ("status", "filled_quantity", "average_price", "sequence")}
        assert {name: last.get(name) for name in said} == said, request_id
        found[request_id] = last
    return found


# ---- one request, from end to end


def test_a_request_goes_out_and_its_report_comes_back(redis_server: Server, running: Provider) -> None:
    client = redis_server.client()
    streams = Streams(client)
    with gateway(redis_server.url, running.url):
        streams.ask(request("a", user_type="copy_follower", user_id="F-1", order_id="O_9"))
        until(streams.is_quiet)
        (report,) = streams.reports()
        assert report.pop("ts").isdecimal()
        assert report == {
            "request_id": "a",
            "user_type": "copy_follower",
            "user_id": "F-1",
            "order_id": "O_9",
            "action": "open",
            "status": "filled",
            "sequence": "1",
            "filled_quantity": "0.5",
            "average_price": "1.1002",
            "report_id": "R1",
            "reason": "",
        }
        assert until(lambda: running.orders()["a"]["acknowledged"]) == 1
    client.close()


def test_what_it_publishes_is_what_workers_read(streams: Streams, bundled_server: Server) -> None:
    with provider(partial=1.0) as running, gateway(bundled_server.url, running.url):
        streams.ask(request("a", order_quantity="1"), placed("p", "1.09"))
        until(lambda: streams.last("a").get("status") == "filled" and streams.last("p"))
        assert [parse_worker_report(said).request_id for said in streams.reports()].count("p") == 1
        parts = [parse_worker_report(said) for said in streams.reports("a")]
        assert [part.sequence for part in parts] == list(range(1, len(parts) + 1))
        assert parts[0].status == "partial"
        assert parts[-1].filled == 1


def test_a_pending_order_is_outstanding_until_its_end(
    streams: Streams, bundled_server: Server, running: Provider
) -> None:
    with gateway(bundled_server.url, running.url):
        streams.ask(placed("p", "1.09"))
        until(lambda: streams.outstanding().get("p", {}).get("state") == "working")
        assert streams.last("p")["status"] == "accepted"
        streams.ask(request("m", action="modify", target="p", order_price="1.095"))
        until(lambda: streams.last("m"))
        streams.ask(request("c", action="cancel", target="p"))
        until(streams.is_quiet)
        assert [streams.last(name)["status"] for name in "mcp"] == ["accepted", "accepted", "cancelled"]


def test_intent_is_written_down_before_the_effect(streams: Streams, bundled_server: Server) -> None:
    with provider(manual=True) as running, gateway(bundled_server.url, running.url):
        streams.ask(request("a"))
        until(lambda: streams.outstanding().get("a", {}).get("state") == "working")
        held = streams.outstanding()["a"]
        assert held["request"]["order_quantity"] == "0.5"
        assert (held["sequence"], held["filled_quantity"], held["sends"]) == (0, "0", 1)
        running.control("fill", request_id="a", order_quantity="0.1", price="1.1")
        until(lambda: streams.outstanding()["a"]["filled_quantity"] == "0.1")
        assert streams.last("a")["status"] == "partial"


def test_it_is_quick(streams: Streams, bundled_server: Server) -> None:
    took_ms = []
    with provider_process() as running:
        process = gateway_process(bundled_server.url, running.url, answer_timeout_ms=2_000)
        try:
            streams.ask(request("warm"))
            until(streams.is_quiet)
            for number in range(60):
                last: Any = streams.client.xrevrange(keys.REPORTS, count=1)
                started = time.perf_counter()
                streams.ask(request(f"r{number}"))
                assert streams.client.xread({keys.REPORTS: last[0][0]}, block=2_000)
                took_ms.append((time.perf_counter() - started) * 1e3)
        finally:
            assert end(process) == 0
    assert statistics.median(took_ms) < 20  # 1.5 ms on two idle cores, both ways and the provider included


# ---- repetitions


def test_a_request_that_comes_again_is_not_sent_again(streams: Streams, bundled_server: Server) -> None:
    with provider(manual=True) as running, gateway(bundled_server.url, running.url):
        streams.ask(request("a"), request("a"))
        until(lambda: "a" in streams.outstanding())
        running.control("fill", request_id="a", order_quantity="0.5", price="1.1")
        until(streams.is_quiet)
        assert [one["status"] for one in streams.reports("a")] == ["filled"]
        streams.ask(request("a"))
        until(lambda: len(streams.reports("a")) == 2)
        assert streams.reports("a")[0] == streams.reports("a")[1]
        assert running.control("book")["net"] == [["live:U1", "EURUSD", "0.5"]]


def test_another_request_under_the_same_id_goes_to_the_dead_letters(
    streams: Streams, bundled_server: Server, running: Provider
) -> None:
    with gateway(bundled_server.url, running.url):
        streams.ask(request("a"))
        until(streams.is_quiet)
        streams.ask(request("a", order_quantity="7"))
        (letter,) = until(lambda: streams.entries(keys.DEAD_LETTERS))
        assert letter["code"] == "request_id_reused"
        assert len(streams.reports()) == 1


def test_a_rejected_close_can_be_sent_again(streams: Streams, bundled_server: Server) -> None:
    with provider() as running, gateway(bundled_server.url, running.url):
        streams.ask(request("a"))
        until(streams.is_quiet)
        running.control("script", script={"reject": 1.0})
        closing = {"action": "close", "side": "SELL", "target": "a", "order_id": "O-a"}
        streams.ask(request("c1", **closing))
        until(streams.is_quiet)
        assert streams.last("c1")["status"] == "rejected"
        running.control("script", script={})
        streams.ask(request("c2", **closing))
        until(streams.is_quiet)
        assert streams.last("c2")["status"] == "filled"


# ---- no answer


def test_no_answer_is_unknown_and_never_rejected(streams: Streams, bundled_server: Server) -> None:
    with provider(silent=1.0, silent_ms=300, drop=1.0) as running, gateway(bundled_server.url, running.url):
        streams.ask(request("a"))
        until(lambda: streams.outstanding().get("a", {}).get("state") == "unknown")
        assert streams.reports() == []
        until(streams.is_quiet)
        assert books_agree(streams, running)["a"]["status"] == "filled"


def test_a_swallowed_request_is_sent_again_under_its_id(streams: Streams, bundled_server: Server) -> None:
    with provider(swallow=1.0) as running, gateway(bundled_server.url, running.url, query_max_ms=60):
        streams.ask(request("a"))
        until(lambda: streams.outstanding().get("a", {}).get("sends", 0) > 2)
        running.control("script", script={})
        until(streams.is_quiet)
        assert running.control("book")["net"] == [["live:U1", "EURUSD", "0.5"]]
        assert len(streams.reports("a")) == 1


def test_a_report_that_was_lost_is_asked_for_even_of_what_rests(streams: Streams, bundled_server: Server) -> None:
    with provider() as running, gateway(bundled_server.url, running.url):
        streams.ask(placed("p", "1.09"))
        until(lambda: streams.last("p"))
        running.control("script", script={"drop": 1.0})
        running.control("quote", symbol="EURUSD", bid="1.0", ask="1.05")
        until(streams.is_quiet)
        assert books_agree(streams, running)["p"]["status"] == "filled"


def test_an_operator_resolves_what_the_provider_does_not(streams: Streams, bundled_server: Server) -> None:
    with provider(manual=True) as running:
        with gateway(bundled_server.url, running.url):
            streams.ask(request("a"), request("b"))
            until(lambda: len(streams.outstanding()) == 2 and streams.outstanding()["a"]["state"] == "working")
            running.control("fill", request_id="a", order_quantity="0.2", price="1.1")
            until(lambda: streams.last("a"))
            with pytest.raises(Refused, match="working") as caught:
                resolve(streams.client, "a", "filled", filled_quantity="0.5", average_price="1.1")
            assert caught.value.code == "request_not_unknown"
        forget(streams, "a", "b")
        for said, code in (
            ({"status": "filled", "filled_quantity": "0.4", "average_price": "1.1"}, "fill_incomplete"),
            ({"status": "cancelled", "filled_quantity": "0.1", "average_price": "1.1"}, "filled_quantity_decreased"),
            ({"status": "filled", "filled_quantity": "5", "average_price": "1.1"}, "overfill"),
            ({"status": "filled", "filled_quantity": "nan", "average_price": "1.1"}, "report_invalid"),
            ({"status": "nonsense"}, "report_invalid"),
            ({"status": "accepted"}, "status_not_final"),
        ):
            with pytest.raises(CopyriskError) as refused:
                resolve(streams.client, "a", **said)  # type: ignore[arg-type]
            assert refused.value.code == code
        report = resolve(streams.client, "a", "cancelled", filled_quantity="0.2", average_price="1.1", reason="phone")
        assert (report["sequence"], report["status"], report["order_id"]) == ("2", "cancelled", "O-a")
        assert streams.last("a") == report
        with pytest.raises(Refused) as again:
            resolve(streams.client, "a", "cancelled")
        assert again.value.code == "unknown_request"
        resolve(streams.client, "b", "rejected")
        running.control("fill", request_id="a", order_quantity="0.3", price="1.2")
        with gateway(bundled_server.url, running.url):
            (contradiction,) = until(lambda: streams.entries(keys.BREAKS))
        assert (contradiction["code"], contradiction["request_id"]) == ("report_after_the_end", "a")
        assert streams.last("a") == report


def test_what_an_operator_has_resolved_stays_resolved(streams: Streams, bundled_server: Server) -> None:
    with Impostor([b""] * 4) as impostor, gateway(bundled_server.url, impostor.url, heartbeat_ms=10_000):
        streams.ask(request("a"))
        until(lambda: streams.outstanding().get("a", {}).get("state") == "unknown")
        resolve(streams.client, "a", "rejected", reason="by telephone")
        assert streams.is_quiet()
        streams.ask(request("a"))  # and whoever asks again is told the same
        until(lambda: len(streams.reports("a")) == 2)
    assert {one["status"] for one in streams.reports("a")} == {"rejected"}


def forget(streams: Streams, *request_ids: str) -> None:
    """Have requests stand as unknown, as if the provider had not answered for a while."""
    for request_id in request_ids:
        held: Any = streams.client.hget(keys.OUTSTANDING, request_id)
        unknown = replace(parse_record(held.decode()), state=RequestState.UNKNOWN)
        streams.client.hset(keys.OUTSTANDING, request_id, unknown.to_json())


# ---- faults


@pytest.mark.parametrize(
    "script",
    [
        {"delay_ms": [0, 30]},
        {"partial": 1.0, "parts": 5},
        {"partial": 1.0, "cut": 0.5},
        {"reject": 0.5},
        {"swallow": 0.4},
        {"drop": 0.5, "partial": 0.5},
        {"duplicate": 1.0, "partial": 0.5},
        {"reorder": 0.5, "partial": 1.0, "delay_ms": [0, 5]},
        {"disconnect": 0.1, "partial": 0.5},
        {"silent": 0.05, "silent_ms": 50},
    ],
    ids=lambda script: next(iter(script)),
)
def test_each_fault_alone_loses_nothing(script: dict[str, Any], streams: Streams, bundled_server: Server) -> None:
    with provider(seed=11, **script) as running, gateway(bundled_server.url, running.url):
        streams.ask(*(request(f"r{number}", order_quantity="1") for number in range(40)))
        until(streams.is_quiet)
        assert len(books_agree(streams, running)) == 40
        assert streams.entries(keys.BREAKS) == streams.entries(keys.DEAD_LETTERS) == []


ALL_FAULTS = {
    "delay_ms": [0, 20],
    "partial": 0.4,
    "parts": 4,
    "cut": 0.1,
    "reject": 0.1,
    "swallow": 0.1,
    "drop": 0.1,
    "duplicate": 0.1,
    "reorder": 0.1,
    "disconnect": 0.02,
    "silent": 0.01,
    "silent_ms": 100,
}


def mixed_requests(count: int, seed: int) -> list[dict[str, str]]:
    """Opens, and for every third one a pending order, a change and a cancel of it."""
    lot, found = random.Random(seed), []
    while len(found) < count:
        name, lots = f"r{len(found)}", f"{lot.randint(1, 300) / 100:.2f}"
        found.append(request(name, order_quantity=lots, user_id=f"U{lot.randint(1, 9)}"))
        if lot.random() < 0.3:
            user = f"U{lot.randint(1, 9)}"
            found.append(placed(f"p{name}", "1.05", order_quantity=lots, user_id=user))
            found.append(request(f"m{name}", action="modify", target=f"p{name}", order_price="1.06", user_id=user))
            found.append(request(f"c{name}", action="cancel", target=f"p{name}", user_id=user))
    return found[:count]


def has_ended(streams: Streams, running: Provider, count: int) -> bool:
    """Whether all requests have come to where they stay: their end, or resting at the provider."""
    if streams.client.xlen(keys.REQUESTS) or len(running.orders()) < count:
        return False
    held = streams.outstanding().values()
    return all(one["request"]["action"] == "place" and one["status"] == "accepted" for one in held)


@pytest.mark.fault
def test_all_faults_together_lose_nothing(streams: Streams, bundled_server: Server) -> None:
    asked = mixed_requests(300, seed=5)
    with provider_process(seed=5, **ALL_FAULTS) as running:
        process = gateway_process(bundled_server.url, running.url, heartbeat_ms=60)
        try:
            streams.ask(*asked)
            until(lambda: has_ended(streams, running, 300), 30)
        finally:
            assert end(process) == 0
        last = until(lambda: books_agree(streams, running))
        assert set(last) == {one["request_id"] for one in asked}
        assert net_of(asked, last) == {(a, s): Decimal(lots) for a, s, lots in running.control("book")["net"]}
    assert streams.entries(keys.BREAKS) == streams.entries(keys.DEAD_LETTERS) == []


def net_of(asked: list[dict[str, str]], last: dict[str, dict[str, str]]) -> dict[tuple[str, str], Decimal]:
    """The positions that follow from the reports alone."""
    net: dict[tuple[str, str], Decimal] = {}
    for one in asked:
        place = (f"{one['user_type']}:{one['user_id']}", one["symbol"])
        filled = Decimal(last[one["request_id"]]["filled_quantity"])
        net[place] = net.get(place, Decimal(0)) + (filled if one["side"] == "BUY" else -filled)
    return {place: lots for place, lots in net.items() if lots}


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("seed", range(4))
def test_all_faults_and_a_gateway_that_is_killed_again_and_again(
    seed: int, streams: Streams, bundled_server: Server
) -> None:
    asked, lot = mixed_requests(300, seed=seed), random.Random(seed)
    with provider_process(seed=seed, **ALL_FAULTS) as running:
        for start in range(0, 300, 60):
            process = gateway_process(bundled_server.url, running.url, heartbeat_ms=60)
            streams.ask(*asked[start : start + 60])
            until(lambda start=start: len(running.orders()) > start)
            time.sleep(lot.uniform(0.0, 0.2))
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        with gateway(bundled_server.url, running.url, heartbeat_ms=60):
            until(lambda: has_ended(streams, running, 300), 30)
            last = books_agree(streams, running)
        assert net_of(asked, last) == {(a, s): Decimal(lots) for a, s, lots in running.control("book")["net"]}
    assert streams.entries(keys.BREAKS) == streams.entries(keys.DEAD_LETTERS) == []


CRASHES = ("taken", "intended", "sent", "acknowledged", "heard", "published", "settled")


@pytest.mark.fault
@pytest.mark.parametrize("step", CRASHES)
def test_a_gateway_that_is_killed_between_two_steps_loses_nothing(
    step: str, streams: Streams, bundled_server: Server
) -> None:
    with provider(partial=0.5) as running:
        streams.ask(*(request(f"r{number}", order_quantity="1") for number in range(20)))
        killed = gateway_process(bundled_server.url, running.url, f"gateway.{step}")
        assert killed.wait(20) == -9
        assert killed.stdout is not None
        killed.stdout.close()
        with gateway(bundled_server.url, running.url):
            until(streams.is_quiet)
        assert len(books_agree(streams, running)) == 20
        assert running.control("book")["net"] == [["live:U1", "EURUSD", "20"]]
    assert streams.entries(keys.BREAKS) == []
    assert streams.client.xpending(keys.REQUESTS, GROUP)["pending"] == 0


def test_a_provider_that_is_away_is_waited_for(streams: Streams, bundled_server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with gateway(bundled_server.url, f"tcp://127.0.0.1:{port}"):
        streams.ask(request("a"))
        time.sleep(0.1)
        assert streams.reports() == []
        assert streams.outstanding() == {}
        with provider(port=port) as running:
            until(streams.is_quiet)
            books_agree(streams, running)
        streams.ask(request("b"))
        time.sleep(0.1)
        with provider(port=port) as running:
            until(streams.is_quiet)
            books_agree(streams, running)


def test_after_each_drop_it_connects_again(streams: Streams, bundled_server: Server, running: Provider) -> None:
    with gateway(bundled_server.url, running.url):
        for number in range(5):
            running.control("disconnect")
            streams.ask(request(f"r{number}"))
            until(streams.is_quiet)
        assert len(books_agree(streams, running)) == 5


def test_a_broken_connection_to_redis_loses_nothing(streams: Streams, bundled_server: Server) -> None:
    with provider(delay_ms=[0, 30], partial=0.5) as running, gateway(bundled_server.url, running.url):
        for number in range(60):
            streams.ask(request(f"r{number}", order_quantity="1"))
            if number % 10 == 5:
                streams.client.client_kill_filter(_type="normal", skipme=True)
        until(streams.is_quiet)
        assert len(books_agree(streams, running)) == 60


def test_a_server_that_has_lost_everything_is_set_up_again(
    streams: Streams, bundled_server: Server, running: Provider
) -> None:
    with gateway(bundled_server.url, running.url):
        streams.ask(request("a"))
        until(streams.is_quiet)
        streams.client.flushall()
        streams.ask(request("b"))
        until(lambda: streams.last("b"))


def test_a_request_left_by_another_gateway_is_taken_over(
    streams: Streams, bundled_server: Server, running: Provider
) -> None:
    streams.ask(request("a"))
    streams.client.xgroup_create(keys.REQUESTS, GROUP, "0")
    assert streams.client.xreadgroup(GROUP, "somebody", {keys.REQUESTS: ">"})
    with gateway(bundled_server.url, running.url):
        until(lambda: streams.last("a"))
        until(streams.is_quiet)


@pytest.mark.fault
def test_of_two_gateways_one_works_and_the_other_stands_by(streams: Streams, bundled_server: Server) -> None:
    with provider_process(seed=3, partial=0.3, delay_ms=[0, 10]) as running:
        with ExitStack() as stack:
            first = gateway_process(bundled_server.url, running.url)
            stack.callback(end, first)
            second = gateway_process(bundled_server.url, running.url)
            stack.callback(end, second)
            streams.ask(*(request(f"r{number}", order_quantity="1") for number in range(100)))
            until(lambda: len(streams.reports()) > 20)
            first.kill()
            streams.ask(*(request(f"s{number}", order_quantity="1") for number in range(100)))
            until(streams.is_quiet, 20)
        assert len(books_agree(streams, running)) == 200
        assert running.control("book")["net"] == [["live:U1", "EURUSD", "200"]]


# ---- what cannot be understood


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"request_id": "a b"}, "invalid_request_id"),
        ({"request_id": ""}, "invalid_request_id"),
        ({"action": "buy"}, "invalid_action"),
        ({"user_type": "admin"}, "invalid_user_type"),
        ({"user_id": "}x{"}, "invalid_account_id"),
        ({"order_id": "x" * 65}, "invalid_order_id"),
        ({"symbol": "eurusd"}, "invalid_symbol"),
        ({"side": "BUY_LIMIT"}, "invalid_side"),
        ({"order_quantity": "1e5"}, "invalid_order_quantity"),
        ({"order_quantity": "0"}, "invalid_order_quantity"),
        ({"order_quantity": "-1"}, "invalid_order_quantity"),
        ({"order_quantity": "nan"}, "invalid_order_quantity"),
        ({"order_quantity": "1" * 19}, "invalid_order_quantity"),
        ({"action": "place", "order_type": "BUY_LIMIT"}, "invalid_order_price"),
        ({"action": "place", "order_type": "SELL_LIMIT", "order_price": "1"}, "invalid_order_type"),
        ({"order_type": "BUY_LIMIT"}, "invalid_order_type"),
        ({"action": "cancel"}, "invalid_target"),
        ({"target": "{x}"}, "invalid_target"),
        ({"ts": "yesterday"}, "invalid_ts"),
    ],
)
def test_a_request_outside_the_grammar_is_refused(wrong: dict[str, str], code: str) -> None:
    with pytest.raises(CopyriskError) as caught:
        parse_request(request("a", **{k: v for k, v in wrong.items() if k != "request_id"}) | wrong)
    assert caught.value.code == code


def test_a_request_that_cannot_be_understood_is_a_dead_letter(
    streams: Streams, bundled_server: Server, running: Provider
) -> None:
    wrong = request("a", order_quantity="-1")
    with gateway(bundled_server.url, running.url):
        streams.ask(wrong, request("b"), {"\ud7ff": "?"})
        until(streams.is_quiet)
        letters = until(lambda: len(streams.entries(keys.DEAD_LETTERS)) == 2 and streams.entries(keys.DEAD_LETTERS))
    assert [letter["code"] for letter in letters] == ["invalid_order_quantity", "invalid_action"]
    assert letters[0]["stream"] == keys.REQUESTS
    assert json.loads(letters[0]["fields"]) == wrong
    assert streams.last("b")["status"] == "filled"


REPORT = {
    "type": "report",
    "request_id": "a",
    "sequence": 1,
    "status": "filled",
    "filled_quantity": "0.5",
    "average_price": "1.1",
    "report_id": "R1",
    "reason": "",
    "ts": "1700000000000",
}

CONTRADICTIONS = [
    ({"filled_quantity": "-0.5"}, "report_invalid"),
    ({"filled_quantity": "NaN"}, "report_invalid"),
    ({"filled_quantity": "5e-1"}, "report_invalid"),
    ({"filled_quantity": 0.5}, "report_invalid"),
    ({"filled_quantity": "0"}, "report_invalid"),
    ({"average_price": "0"}, "report_invalid"),
    ({"average_price": "1.1.1"}, "report_invalid"),
    ({"status": "done"}, "report_invalid"),
    ({"status": ["filled"]}, "report_invalid"),
    ({"report_id": "\n"}, "report_invalid"),
    ({"ts": "now"}, "report_invalid"),
    ({"filled_quantity": "0.6"}, "overfill"),
    ({"filled_quantity": "0.4"}, "fill_incomplete"),
    ({"request_id": "nobody"}, "unknown_request"),
]
GARBAGE = [
    b"\n",
    b"\x00\xff\n",
    b"{}\n",
    b"[1]\n",
    b'"text"\n',
    b'{"type":"report"}\n',
    json.dumps({**REPORT, "sequence": 0}).encode() + b"\n",
    json.dumps({**REPORT, "sequence": True}).encode() + b"\n",
    json.dumps({**REPORT, "sequence": 10**30}).encode() + b"\n",
    json.dumps({**REPORT, "request_id": "{x}"}).encode() + b"\n",
    json.dumps({**REPORT, "request_id": None}).encode() + b"\n",
    b'{"type":"working","request_id":["a"]}\n',
    b'{"type":"not_known"}\n',
    b"{" * 10_000 + b"\n",
    b'{"a":' * 3_000 + b"\n",
    b"9" * 10_000 + b"\n",
    b"x" * 40_000,
    json.dumps({**REPORT, "reason": "x" * 20_000}).encode() + b"\n",
]


class Impostor:
    """A provider that lets everybody in, and answers a request with whatever it was given, then with the truth."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.05)
        self.url = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self.sessions, self.acknowledged = 0, list[tuple[str, int]]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Impostor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                connected, _ = self._server.accept()
            except TimeoutError:
                continue
            lines = Lines(connected)
            try:
                while not self._stop.is_set():
                    for message in lines.receive():
                        self._answer(connected, message)
                    time.sleep(0.002)
            except (LinkLost, OSError):
                pass
            finally:
                lines.close()

    def _answer(self, connected: socket.socket, message: dict[str, Any]) -> None:
        if message["type"] == "hello":
            self.sessions += 1
            connected.sendall(b'{"type":"welcome","version":1}\n')
        elif message["type"] == "acknowledge":
            self.acknowledged.append((message["request_id"], message["sequence"]))
        elif message["type"] in ("request", "query"):
            truth = json.dumps({**REPORT, "sequence": 9}).encode() + b"\n"
            connected.sendall(self._answers.pop(0) if self._answers else truth)


def test_garbage_costs_the_provider_its_connection_and_nothing_else(streams: Streams, bundled_server: Server) -> None:
    with Impostor(list(GARBAGE)) as impostor, gateway(bundled_server.url, impostor.url):
        streams.ask(request("a"))
        until(streams.is_quiet, 20)
        assert impostor.sessions == len(GARBAGE) + 1
    assert [one["sequence"] for one in streams.reports()] == ["9"]
    assert streams.entries(keys.BREAKS) == []


def test_a_report_that_makes_no_sense_is_a_break_and_changes_nothing(streams: Streams, bundled_server: Server) -> None:
    twice = [2 * (json.dumps({**REPORT, **wrong}).encode() + b"\n") for wrong, _ in CONTRADICTIONS]
    with Impostor(twice) as impostor, gateway(bundled_server.url, impostor.url, recheck_ms=20):
        streams.ask(request("a"))
        until(streams.is_quiet, 20)
        found = streams.entries(keys.BREAKS)
        # Of an outstanding request a contradiction is reported once, however often it is said.
        assert [one["code"] for one in found] == [*(code for _, code in CONTRADICTIONS), "unknown_request"]
        for one in found:
            assert json.loads(one["report"])["request_id"] == one["request_id"]
            assert one["ts"].isdecimal()
        assert impostor.sessions == 1
        until(lambda: set(impostor.acknowledged) == {("a", 1), ("a", 9), ("nobody", 1)})
    assert [one["sequence"] for one in streams.reports()] == ["9"]


def test_a_provider_that_forgets_what_it_had_does_not_get_it_again(streams: Streams, bundled_server: Server) -> None:
    part = {**REPORT, "status": "partial", "filled_quantity": "0.2"}
    answers = [json.dumps(part).encode() + b"\n"] + 2 * [b'{"type":"not_known","request_id":"a"}\n']
    with Impostor(answers) as impostor, gateway(bundled_server.url, impostor.url):
        streams.ask(request("a"))
        (found,) = until(lambda: streams.entries(keys.BREAKS))
        assert found["code"] == "request_forgotten"
        until(streams.is_quiet)
    assert [one["status"] for one in streams.reports()] == ["partial", "filled"]


def test_a_provider_that_says_nothing_is_left(streams: Streams, bundled_server: Server) -> None:
    with Impostor([b""] * 100) as impostor, gateway(bundled_server.url, impostor.url, heartbeat_ms=20):
        streams.ask(request("a"))
        until(lambda: impostor.sessions > 2)
        assert until(lambda: streams.outstanding()["a"]["state"] == "unknown")
        assert streams.reports() == []


def test_with_too_much_unanswered_requests_wait_on_their_stream(streams: Streams, bundled_server: Server) -> None:
    with (
        provider(swallow=1.0) as running,
        gateway(bundled_server.url, running.url, unanswered_limit=10, answer_timeout_ms=100),
    ):
        streams.ask(*(request(f"r{number}") for number in range(300)))
        until(streams.outstanding)
        time.sleep(0.2)
        assert len(streams.outstanding()) <= 10 + 2 * 64
        running.control("script", script={})
        until(streams.is_quiet)
        assert len(books_agree(streams, running)) == 300


def test_a_record_that_cannot_be_read_is_left_and_asked_about(
    streams: Streams, bundled_server: Server, running: Provider
) -> None:
    streams.client.hset(keys.OUTSTANDING, "a", "{}")
    streams.client.hset(keys.OUTSTANDING, "z", b"\xff")
    with gateway(bundled_server.url, running.url):
        streams.ask(request("a"), request("b"))
        until(lambda: streams.last("b"))
        until(lambda: streams.entries(keys.BREAKS))
    assert streams.entries(keys.BREAKS)[0]["code"] == "request_forgotten"  # it may have been sent: not again
    assert set(streams.outstanding_ids()) == {"a", "z"}
    assert streams.outstanding_state("a") == "unknown"


@pytest.mark.parametrize(
    "url", ["", "http://x:1", "tcp://x", "tcp://x:y", "tcp://:1", "tcp://x:1/path", "tcp://x:70000"]
)
def test_a_url_that_is_none_is_an_error_of_the_settings(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_provider_url(url)
    assert caught.value.code == "bad_provider_url"


def test_it_ends_when_told_even_while_nothing_answers() -> None:
    stop, client = threading.Event(), connect("unix:///nowhere/socket", connect_timeout_ms=100, reply_timeout_ms=100)
    link = LinkSettings("tcp://127.0.0.1:1")
    thread = threading.Thread(target=run_gateway, args=(client, GatewaySettings(link), stop))
    thread.start()
    time.sleep(0.05)
    stop.set()
    thread.join(2)
    assert not thread.is_alive()


# ---- laws


@st.composite
def histories(draw: st.DrawFn) -> list[ProviderReport]:
    """The reports of one request for 1 lot, as an honest provider makes them."""
    cuts = draw(st.lists(st.integers(1, 99), unique=True, max_size=6).map(sorted))
    last = draw(st.sampled_from([ReportStatus.FILLED, ReportStatus.CANCELLED]))
    found = []
    for number, lots in enumerate([*cuts, 100], 1):
        is_last = lots == 100
        filled = Decimal(cuts[-1] if is_last and last is ReportStatus.CANCELLED and cuts else lots) / 100
        if is_last and last is ReportStatus.CANCELLED and not cuts:
            filled = Decimal(0)
        price = Decimal("1.1") if filled else Decimal(0)
        status = last if is_last else ReportStatus.PARTIAL
        found.append(ProviderReport("a", status, number, filled, price, f"R{number}", "", "1"))
    return found


def fresh_record() -> Record:
    return Record(parse_request(request("a", order_quantity="1")), RequestState.SENT, 1, sends=1)


@given(reports=histories(), data=st.data())
def test_in_whatever_order_and_number_reports_come_the_end_is_the_same(
    reports: list[ProviderReport], data: st.DataObject
) -> None:
    others = data.draw(st.lists(st.sampled_from(reports), max_size=12))
    heard = data.draw(st.permutations([*others, reports[-1]]))
    whole = digest({"a": fresh_record()}, heard, 0)
    assert whole.breaks == []
    final = whole.finished["a"]
    assert final.record == replace(fresh_record().after(reports[-1]))
    assert final.report == reports[-1].texts(final.record.request)
    published = [int(one["sequence"]) for one in whole.reports]
    assert published == sorted(set(published))
    assert whole.acknowledged == {"a": reports[-1].sequence}
    known: Record | Finished = fresh_record()
    one_by_one = []
    for one in heard:
        step = digest({"a": known}, [one], 0)
        known = step.finished.get("a") or step.working.get("a") or known
        one_by_one += step.reports
    assert known == final
    assert one_by_one == whole.reports


@given(reports=histories(), data=st.data())
def test_filled_lots_never_go_back_whatever_is_said(reports: list[ProviderReport], data: st.DataObject) -> None:
    liar = st.builds(
        lambda one, lots, sequence: replace(one, filled=Decimal(lots) / 100, sequence=sequence),
        st.sampled_from(reports),
        st.integers(0, 200),
        st.integers(1, 9),
    )
    filled, known = Decimal(0), fresh_record()
    for one in data.draw(st.lists(liar, max_size=12)):
        step = digest({"a": known}, [one], 0)
        for said in step.reports:
            assert filled <= Decimal(said["filled_quantity"]) <= 1
            filled = Decimal(said["filled_quantity"])
        if step.finished:
            return
        known = step.working.get("a", known)
        assert known.filled == filled


@given(reports=histories())
def test_records_survive_being_kept(reports: list[ProviderReport]) -> None:
    record = replace(fresh_record(), disputed="x\ud800")
    for report in reports:
        record = record.after(report)
        assert parse_record(record.to_json()) == record
    finished = Finished(record, reports[-1].texts(record.request))
    assert parse_finished(finished.to_json()) == finished


@given(text=st.text() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_what_is_no_record_is_refused(text: str) -> None:
    for parse in (parse_record, parse_finished):
        with pytest.raises(Refused):
            parse(text)


@given(
    said=st.fixed_dictionaries(
        {name: st.just(value) | st.text() | st.integers() | st.none() for name, value in REPORT.items()}
    )
)
def test_a_report_is_valid_invalid_or_garbage(said: dict[str, Any]) -> None:
    try:
        report = parse_report(said)
    except CopyriskError:
        return
    assert report.request_id == said["request_id"]
    if isinstance(report, InvalidReport):
        assert json.loads(report.said)["sequence"] == report.sequence
    else:
        assert report.filled >= 0
        assert report.reason.isprintable()


@given(st.lists(st.tuples(st.sampled_from("sanxf"), st.sampled_from("pqr"), st.floats(0, 1)), max_size=40))
@settings(max_examples=200)
def test_the_watch_counts_as_a_plain_table_does(steps: list[tuple[str, str, float]]) -> None:
    watch, expected, there, now_s = Watch(Backoff(1.0, 8.0), 5.0), dict[str, float](), set[str](), 0.0
    for what, name, passed_s in steps:
        now_s += passed_s
        if what == "f":
            watch.forget(name)
            expected.pop(name, None)
            there.discard(name)
            continue
        there.add(name)
        if what == "a":
            watch.answered(name, now_s)
            expected.pop(name, None)
        elif what == "x":
            watch.ask_in(name, now_s)
        else:
            (watch.sent if what == "s" else watch.asked)(name, now_s)
            expected.setdefault(name, now_s + 1.0)
        assert (set(watch), watch.unanswered) == (there, len(expected))
    late = dict(watch.due(now_s + 100.0, 100))
    assert late == {name: name in expected for name in there}
