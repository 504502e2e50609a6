"""The simulated provider: what it fills, at what price, how it errs, and that no client can disturb it."""

import json
import socket
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk import keys
from copyrisk.errors import ConfigError
from copyrisk.gateway.script import FaultScript, load_script, parse_script
from copyrisk.gateway.simulator import Simulator, SimulatorSettings
from tests.conftest import Server
from tests.provider import Provider, Speaker, end, placed, provider, provider_process, request, until


@pytest.fixture
def running() -> Iterator[Provider]:
    with provider() as started:
        yield started


@pytest.fixture
def client(running: Provider) -> Iterator[Speaker]:
    with Speaker(running.port, "tests") as speaker:
        assert speaker.hear() == {"type": "welcome", "version": 1}
        yield speaker


def heard(speaker: Speaker) -> tuple[str, int, str, str, str]:
    said = speaker.hear()
    assert said["type"] == "report", said
    return said["request_id"], said["sequence"], said["status"], said["filled_quantity"], said["average_price"]


# ---- orders


def test_a_market_order_fills_at_the_side_it_takes(client: Speaker, running: Provider) -> None:
    client.ask(request("a"))
    assert heard(client) == ("a", 1, "filled", "0.5", "1.1002")
    client.ask(request("b", side="SELL", order_quantity="0.2"))
    assert heard(client) == ("b", 1, "filled", "0.2", "1.1")
    book = running.control("book")
    assert book["net"] == [["live:U1", "EURUSD", "0.3"]]
    assert book["by_order"] == [["live:U1", "O-a", "0.5"], ["live:U1", "O-b", "0.2"]]


def test_a_close_takes_what_its_order_has_and_no_more(client: Speaker, running: Provider) -> None:
    client.ask(request("a"))
    heard(client)
    closing = {"action": "close", "side": "SELL", "target": "a", "order_id": "O-a"}
    client.ask(request("c", order_quantity="0.3", **closing))
    assert heard(client)[2] == "filled"
    client.ask(request("d", order_quantity="0.3", **closing))
    assert client.hear()["reason"] == "position_too_small"
    client.ask(request("e", order_quantity="0.2", **closing))
    assert heard(client)[2] == "filled"
    book = running.control("book")
    assert book["net"] == book["by_order"] == []


def test_a_request_that_comes_again_is_answered_and_not_filled_again(client: Speaker, running: Provider) -> None:
    for _ in range(3):
        client.ask(request("a"))
        assert heard(client) == ("a", 1, "filled", "0.5", "1.1002")
    assert running.control("book")["net"] == [["live:U1", "EURUSD", "0.5"]]


def test_without_a_quote_nothing_is_filled(client: Speaker) -> None:
    client.ask(request("a", symbol="GBPUSD"))
    said = client.hear()
    assert (said["status"], said["reason"], said["filled_quantity"]) == ("rejected", "no_quote", "0")


def test_a_placed_order_rests_until_its_price_comes(client: Speaker, running: Provider) -> None:
    client.ask(placed("p", "1.09"))
    assert heard(client) == ("p", 1, "accepted", "0", "0")
    client.ask(request("m", action="modify", target="p", order_price="1.095"))
    assert heard(client) == ("m", 1, "accepted", "0", "0")
    running.control("quote", symbol="EURUSD", bid="1.0940", ask="1.0949")
    assert heard(client) == ("p", 2, "filled", "0.5", "1.0949")
    client.ask(request("n", action="modify", target="p", order_price="1.08"))
    assert client.hear()["reason"] == "not_resting"


@pytest.mark.parametrize(
    ("order_type", "side", "price", "before", "after"),
    [
        ("BUY_LIMIT", "BUY", "1.05", ("1.0499", "1.0501"), ("1.0498", "1.0500")),
        ("BUY_STOP", "BUY", "1.20", ("1.1998", "1.1999"), ("1.1998", "1.2000")),
        ("SELL_LIMIT", "SELL", "1.20", ("1.1999", "1.2001"), ("1.2000", "1.2001")),
        ("SELL_STOP", "SELL", "1.05", ("1.0501", "1.0502"), ("1.0500", "1.0502")),
    ],
)
def test_each_pending_type_waits_for_its_own_side(
    order_type: str, side: str, price: str, before: tuple[str, str], after: tuple[str, str]
) -> None:
    with provider() as running, Speaker(running.port, "tests") as client:
        client.hear()
        running.control("quote", symbol="EURUSD", bid=before[0], ask=before[1])
        client.ask(request("p", action="place", order_type=order_type, side=side, order_price=price))
        assert heard(client)[2] == "accepted"
        with pytest.raises(TimeoutError):
            client.hear(0.03)
    with provider() as running, Speaker(running.port, "tests") as client:
        client.hear()
        running.control("quote", symbol="EURUSD", bid=after[0], ask=after[1])
        client.ask(request("p", action="place", order_type=order_type, side=side, order_price=price))
        assert heard(client)[2] == "accepted"
        assert heard(client)[2:4] == ("filled", "0.5")


def test_a_cancel_ends_the_placed_request_too(client: Speaker) -> None:
    client.ask(placed("p", "1.09"))
    heard(client)
    client.ask(request("c", action="cancel", target="p"))
    assert heard(client) == ("c", 1, "accepted", "0", "0")
    assert heard(client) == ("p", 2, "cancelled", "0", "0")
    client.ask(request("d", action="cancel", target="p"))
    assert heard(client)[2] == "rejected"


def test_nobody_cancels_anothers_order(client: Speaker) -> None:
    client.ask(placed("p", "1.09"))
    heard(client)
    client.ask(request("c", action="cancel", target="p", user_id="U2"))
    assert heard(client)[2] == "rejected"


def test_quotes_are_read_from_redis(bundled_server: Server) -> None:
    redis = bundled_server.client()
    redis.hset(keys.market("EURUSD"), mapping={"bid": "1.2", "ask": "1.3"})
    redis.hset(keys.market("USDJPY"), mapping={"bid": "150", "ask": "nan"})
    with provider(redis_url=bundled_server.url) as running, Speaker(running.port, "tests") as client:
        client.hear()
        client.ask(request("a"))
        assert heard(client)[4] == "1.3"
        client.ask(request("b", symbol="USDJPY"))
        assert client.hear()["reason"] == "no_quote"
        client.ask(placed("p", "1.25"))
        assert heard(client)[2] == "accepted"
        redis.hset(keys.market("EURUSD"), mapping={"bid": "1.23", "ask": "1.24"})
        assert heard(client) == ("p", 2, "filled", "0.5", "1.24")
    redis.close()


# ---- faults


@given(
    lots=st.integers(1, 10**6), places=st.integers(0, 6), seed=st.integers(0, 9), request_id=st.text("abc", min_size=1)
)
def test_parts_are_the_whole(lots: int, places: int, seed: int, request_id: str) -> None:
    whole = Decimal(lots).scaleb(-places)
    parts = FaultScript(seed=seed, partial=1.0, parts=5).split(request_id, whole)
    assert sum(parts) == whole
    assert min(parts) > 0
    assert len(parts) <= 5


def test_the_same_seed_does_the_same() -> None:
    script = {"seed": 7, "partial": 0.5, "reject": 0.2, "cut": 0.5, "delay_ms": [0, 3]}
    books = []
    for _ in range(2):
        with provider(**script) as running, Speaker(running.port, "tests") as speaker:
            speaker.hear()
            for number in range(30):
                speaker.ask(request(f"r{number}"))
            ended = until(lambda running=running: _all_ended(running, 30))
            books.append({name: {**order, "acknowledged": 0} for name, order in ended.items()})
    assert books[0] == books[1]
    assert {order["status"] for order in books[0].values()} == {"filled", "rejected", "cancelled"}


def _all_ended(running: Provider, count: int) -> dict[str, dict[str, Any]]:
    orders = running.orders()
    ended = [order for order in orders.values() if order["status"] in ("filled", "rejected", "cancelled")]
    return orders if len(ended) == count else {}


def test_a_part_says_how_much_is_filled_in_all() -> None:
    with provider(seed=1, partial=1.0, parts=4) as running, Speaker(running.port, "tests") as client:
        client.hear()
        client.ask(request("a", order_quantity="1"))
        filled = [Decimal(0)]
        status, sequence = "", 0
        while status != "filled":
            _, sequence, status, lots, price = heard(client)
            assert (sequence, price) == (len(filled), "1.1002")
            assert Decimal(lots) > filled[-1]
            filled.append(Decimal(lots))
        assert filled[-1] == 1
        assert sequence > 1


def test_a_swallowed_request_was_never_there() -> None:
    with provider(swallow=1.0) as running, Speaker(running.port, "tests") as client:
        client.hear()
        client.ask(request("a"))
        client.say({"type": "query", "request_id": "a"})
        assert client.hear() == {"type": "not_known", "request_id": "a"}
        running.control("script", script={})
        client.ask(request("a"))
        assert heard(client)[2] == "filled"


@pytest.mark.parametrize("fault", ["drop", "disconnect"])
def test_what_was_not_acknowledged_is_repeated_in_the_next_session(fault: str) -> None:
    with provider(**{fault: 1.0}) as running:
        with Speaker(running.port, "tests") as client:
            client.hear()
            client.ask(request("a"))
            if fault == "drop":
                client.ask(request("b"))
                until(lambda: _all_ended(running, 2))
                client.say({"type": "query", "request_id": "b"})
                assert heard(client)[0] == "b"
                client.say({"type": "acknowledge", "request_id": "b", "sequence": 1})
                until(lambda: running.orders()["b"]["acknowledged"])
            else:
                assert client.hear() == {}
        with Speaker(running.port, "tests") as client:
            assert client.hear()["type"] == "welcome"
            assert heard(client)[:3] == ("a", 1, "filled")


def test_duplicates_and_reorders_are_what_they_are_called() -> None:
    with provider(duplicate=1.0) as running, Speaker(running.port, "tests") as client:
        client.hear()
        client.ask(request("a"))
        assert heard(client) == heard(client)
        running.control("script", script={"seed": 1, "reorder": 0.5, "partial": 1.0, "parts": 5})
        for number in range(20):
            client.ask(request(f"r{number}"))
        seen: dict[str, list[int]] = {}
        ended = until(lambda: _all_ended(running, 21))
        for _ in range(sum(order["sequence"] for name, order in ended.items() if name != "a")):
            request_id, sequence, *_ = heard(client)
            seen.setdefault(request_id, []).append(sequence)
        assert all(sorted(numbers) == list(range(1, len(numbers) + 1)) for numbers in seen.values())
        assert any(numbers != sorted(numbers) for numbers in seen.values())


def test_silence_is_silence_and_ends() -> None:
    with provider(silent=1.0, silent_ms=80) as running, Speaker(running.port, "tests") as client:
        client.hear()
        client.ask(request("a"))
        heard(client)
        client.say({"type": "query", "request_id": "a"})
        with pytest.raises(TimeoutError):
            client.hear(0.03)
    with provider(silent=1.0, silent_ms=30) as running, Speaker(running.port, "tests") as client:
        client.hear()
        client.ask(request("a"))
        heard(client)
        client.say({"type": "query", "request_id": "a"})
        assert heard(client)[0] == "a"


def test_a_test_may_command_fills_and_ends() -> None:
    with provider(manual=True) as running, Speaker(running.port, "tests") as client:
        client.hear()
        client.ask(request("a"))
        client.say({"type": "query", "request_id": "a"})
        assert client.hear() == {"type": "working", "request_id": "a"}
        assert running.control("fill", request_id="a", order_quantity="0.2", price="1.1")["ok"]
        assert heard(client) == ("a", 1, "partial", "0.2", "1.1")
        assert running.control("fill", request_id="a", order_quantity="0.1", price="1.4")["ok"]
        assert heard(client) == ("a", 2, "partial", "0.3", "1.2")
        assert running.control("fill", request_id="a", order_quantity="0.3", price="1.1")["code"] == "overfill"
        assert running.control("end", request_id="a", reason="by hand")["ok"]
        assert heard(client) == ("a", 3, "cancelled", "0.3", "1.2")
        assert running.control("end", request_id="a")["code"] == "order_done"
        client.ask(request("b"))
        until(lambda: "b" in running.orders())
        running.control("end", request_id="b")
        assert heard(client) == ("b", 1, "rejected", "0", "0")


def test_a_close_that_is_rejected_sets_nothing_aside() -> None:
    with provider(manual=True) as running, Speaker(running.port, "tests") as client:
        client.hear()
        client.ask(request("a"))
        until(lambda: "a" in running.orders())
        running.control("fill", request_id="a", order_quantity="0.5", price="1.1")
        for number in range(2):
            client.ask(request(f"c{number}", action="close", side="SELL", target="a", order_id="O-a"))
            until(lambda number=number: f"c{number}" in running.orders())
            assert running.control("end", request_id=f"c{number}")["ok"]
        assert {running.orders()[f"c{number}"]["status"] for number in range(2)} == {"rejected"}
        client.ask(request("d", action="close", side="SELL", target="a", order_id="O-a"))
        until(lambda: "d" in running.orders())
        assert running.control("fill", request_id="d", order_quantity="0.5", price="1.1")["ok"]
        assert running.control("book")["net"] == []


# ---- clients


def test_the_session_is_one_clients(client: Speaker, running: Provider) -> None:
    with Speaker(running.port, "others") as second:
        assert second.hear()["code"] == "session_in_use"
    client.ask(request("a"))
    assert heard(client)[2] == "filled"


HOSTILE = [
    b"\n",
    b"[]\n",
    b"{}\n",
    b"\xff\xfe\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"[" * 16_000 + b"\n",
    b'{"type":"hello","version":1,"session":"a b","heartbeat_ms":1000}\n',
    b'{"type":"hello","version":1,"session":"x","heartbeat_ms":"1000"}\n',
    b'{"type":"hello","version":1e9}\n',
    b'{"type":"hello","version":NaN}\n',
    b'{"type":"hello","version":1e999}\n',
    b'{"type":"query","request_id":"a"}\n',
    b'{"type":"request","request":{"request_id":"a"}}\n',
    b"x" * 100_000,
]


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
def test_who_talks_nonsense_is_dropped_and_disturbs_nobody(raw: bytes, client: Speaker, running: Provider) -> None:
    with Speaker(running.port) as hostile:
        hostile.shout(raw)
        assert hostile.hear() == {}
    client.ask(request("a"))
    assert heard(client)[2] == "filled"


@pytest.mark.parametrize(
    "said",
    [
        {"control": "nothing"},
        {"control": ["book"]},
        {"control": "quote", "symbol": "EURUSD", "bid": "1.2", "ask": "1.1"},
        {"control": "quote", "symbol": "EURUSD", "bid": 1, "ask": 2},
        {"control": "quote", "symbol": "eurusd", "bid": "1", "ask": "2"},
        {"control": "script", "script": []},
        {"control": "script", "script": {"drop": 2}},
        {"control": "fill", "request_id": "a", "order_quantity": "-1", "price": "1"},
        {"control": "end", "request_id": {}},
    ],
)
def test_a_command_that_makes_no_sense_is_refused(said: dict[str, Any], running: Provider) -> None:
    with Speaker(running.port) as speaker:
        speaker.say(said)
        assert speaker.hear()["ok"] is False
        speaker.say({"control": "book"})
        assert speaker.hear()["ok"] is True


def test_a_client_that_is_not_heard_loses_the_session(running: Provider) -> None:
    with Speaker(running.port) as speaker:
        speaker.say({"type": "hello", "version": 1, "session": "a", "heartbeat_ms": 20})
        assert speaker.hear()["type"] == "welcome"
        assert speaker.hear() == {}


def test_too_many_connections_are_turned_away(running: Provider) -> None:
    crowd = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(70)]
    try:
        crowd[-1].settimeout(5)
        assert crowd[-1].recv(1) == b""
    finally:
        for one in crowd:
            one.close()
    assert until(lambda: _books_or_none(running))["ok"]


def _books_or_none(running: Provider) -> dict[str, Any]:
    try:
        return running.control("book")
    except OSError:
        return {}


# ---- scripts, settings, processes


@pytest.mark.parametrize(
    "said",
    [
        {"reject": 1.5},
        {"reject": True},
        {"reject": "0.5"},
        {"rejct": 0.5},
        {"delay_ms": 5},
        {"delay_ms": [5, 1]},
        {"delay_ms": [0, 10**9]},
        {"seed": -1},
        {"manual": 1},
        {"quotes": {"EURUSD": [1.1, 1.2]}},
        {"quotes": {"EURUSD": ["1.2", "1.1"]}},
        {"quotes": {"eur usd": ["1.1", "1.2"]}},
        {"quotes": []},
    ],
)
def test_a_script_with_a_mistake_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="script") as caught:
        parse_script(said)
    assert caught.value.code == "bad_script"


def test_a_script_is_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "script.toml"
    path.write_text('seed = 3\ndrop = 0.25\ndelay_ms = [1, 9]\n[quotes]\nEURUSD = ["1.1", "1.2"]\n')
    script = load_script(path)
    assert (script.seed, script.drop, script.delay_ms) == (3, 0.25, (1, 9))
    assert script.quotes == {"EURUSD": (Decimal("1.1"), Decimal("1.2"))}
    for content in (b"seed = ", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            load_script(path)
    with pytest.raises(ConfigError):
        load_script(tmp_path / "none.toml")


def test_a_port_that_is_taken_is_an_error_of_the_settings(running: Provider) -> None:
    with pytest.raises(ConfigError) as caught:
        Simulator(SimulatorSettings(port=running.port))
    assert caught.value.code == "cannot_listen"


def test_as_a_process_it_says_where_it_listens_and_ends_cleanly() -> None:
    with provider_process(drop=1.0) as running:
        assert running.process is not None
        with Speaker(running.port, "tests") as client:
            client.hear()
            client.ask(request("a"))
            assert until(running.orders)["a"]["status"] == "filled"
            assert end(running.process) == 0
            assert client.hear() == {}


def test_the_book_is_one_line_of_json(client: Speaker, running: Provider) -> None:
    for number in range(300):
        client.ask(request(f"r{number}"))
    with socket.create_connection(("127.0.0.1", running.port)) as raw, raw.makefile("rb") as file:
        until(lambda: len(running.orders()) == 300)
        raw.sendall(b'{"control":"book"}\n')
        assert len(json.loads(file.readline())["orders"]) == 300
