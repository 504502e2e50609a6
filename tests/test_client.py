"""The Python client against the real API and real workers; and what becomes of changes whose answers get lost."""

import asyncio
import contextlib
import json
import pickle
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import signing
from copyrisk.api import copying_models, orders, reading_models, report_models, risk_models
from copyrisk.api.documents import Shape
from copyrisk.client import (
    NEVER_AGAIN,
    ApiRefused,
    AsyncClient,
    BadAnswer,
    Client,
    Key,
    OutcomeUnknown,
    Retries,
    Token,
    Unavailable,
    copy_calls,
    copy_models,
    events,
    models,
    order_calls,
    read_calls,
    risk,
    streaming,
)
from copyrisk.client.describing import Call, number_text
from copyrisk.client.shapes import parse_json, read
from copyrisk.client.trying import Broken, Received, Send, Wait, carry_out
from copyrisk.daemon import make_engine
from copyrisk.embedded import EmbeddedServer
from copyrisk.errors import CopyriskError, InvalidId
from tests.api_house import Caller, House, opened, served, served_to_all, working
from tests.cascade_desk import EVENT, CascadeDesk
from tests.conftest import Server
from tests.postbox import certificate, server_context
from tests.proxies import Fate, Proxy
from tests.test_api_streaming import announce, publish
from tests.trading import Desk, until

LIMIT_S = 20.0
SOON = Retries(first_s=0.001, most_s=1.0)
BOTH = pytest.mark.parametrize("kind", ["blocking", "asyncio"])


class Awaiting:
    """An `AsyncClient` that is used like the other one: whoever calls, waits."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self.client, self.runner = client, runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        return lambda *args, **kwargs: self.runner.run(_awaited(method, *args, **kwargs))

    @contextmanager
    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        stream = self.client.stream(*args, **kwargs)
        try:
            yield AwaitedStream(stream, self.runner)
        finally:
            self.runner.run(stream.close())


class AwaitedStream:
    def __init__(self, stream: Any, runner: asyncio.Runner) -> None:
        self.stream, self.runner = stream, runner

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.runner.run(_awaited(self.stream.__anext__))

    @property
    def last_event_id(self) -> str:
        return str(self.stream.last_event_id)


async def _awaited(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return await method(*args, **kwargs)


@contextmanager
def client_of(kind: str, url: str, key: Key | Token, **options: Any) -> Iterator[Any]:
    options = {"timeout_s": LIMIT_S, "retries": SOON, **options}
    if kind == "blocking":
        with Client(url, key, **options) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        client = AsyncClient(url, key, **options)
        try:
            yield Awaiting(client, runner)
        finally:
            runner.run(client.close())


def key_of(house: House, **grants: Any) -> Key:
    caller = house.caller(**grants)
    return Key(caller.key_id, caller.secret)


@pytest.fixture(scope="module")
def _one_house(_one_bundled_server: Any) -> Iterator[House]:
    with served_to_all(_one_bundled_server) as made:
        yield made


@pytest.fixture
def desk(bundled_server: Any) -> Iterator[CascadeDesk]:
    with opened(CascadeDesk, bundled_server) as made:
        yield made


@pytest.fixture
def house(_one_house: House, desk: CascadeDesk) -> House:
    return _one_house


@pytest.fixture
def proxy(house: House) -> Iterator[Proxy]:
    made = Proxy(int(house.url.rpartition(":")[2]))
    yield made
    made.close()


# ---- what there is


@BOTH
def test_orders_from_open_to_close(kind: str, house: House) -> None:
    house.desk.account("live:1")
    with client_of(kind, house.url, key_of(house)) as client, working(house.desk):
        opened = client.open_order("live:1", "EURUSD", "BUY", Decimal("1.0"), order_id="A", stop_loss="1.05")
        assert (opened.order_id, opened.order.order_quantity, opened.order.stop_loss) == ("A", 1, Decimal("1.05"))
        assert (opened.version, opened.order.margin) == (house.desk.version("live:1"), Decimal("1084.55"))
        assert client.set_stop_loss("live:1", "A", "1.06").order.stop_loss == Decimal("1.06")
        assert client.cancel_stop_loss("live:1", "A").order.stop_loss is None
        assert client.set_take_profit("live:1", "A", "1.2").order.take_profit == Decimal("1.2")
        assert client.cancel_take_profit("live:1", "A").order.take_profit is None
        (held,) = client.orders("live:1").orders
        assert (held.order_id, held.is_readable, held.net_profit) == ("A", True, None)
        assert client.close_order("live:1", "A", "0.4").order.order_quantity == Decimal("0.6")
        closed = client.close_order("live:1", "A").order
        assert (closed.order_status, closed.net_profit) == ("CLOSED", Decimal("-5.00"))
        one = client.order("live:1", "A")
        assert (one.is_open, one.order.net_profit) == (False, Decimal("-5.00"))
        placed = client.place_pending("live:1", "EURUSD", "BUY_LIMIT", 1, "1.08", idempotency_key="K").order_id
        assert client.modify_pending("live:1", placed, "1.07").order.order_price == Decimal("1.07")
        assert client.cancel_pending("live:1", placed).order.order_status == "CANCELLED"
        found = client.outcome("live:1", "K")
        assert (found.is_done, found.order_id, found.order.order_price) == (True, placed, Decimal("1.08"))
        with pytest.raises(ApiRefused, match="order_finished") as refused:
            client.close_order("live:1", "A", idempotency_key="L")
        assert (refused.value.code, refused.value.status) == ("order_finished", 409)
        assert not client.outcome("live:1", "L").is_done
        assert [entry["type"] for entry in client.history("live:1", limit=2).entries] == ["close", "cancel"]


@BOTH
def test_orders_of_masters(kind: str, house: House) -> None:
    house.desk.account("strategy_provider:M")
    with client_of(kind, house.url, key_of(house)) as client, working(house.desk):
        assert client.open_master_order("M", "EURUSD", "BUY", "0.5", order_id="A").order.user_id == "M"
        assert client.close_master_order("M", "A", "0.2").order.order_quantity == Decimal("0.3")
        pending = client.place_master_pending("M", "EURUSD", "SELL_LIMIT", 1, "1.2").order_id
        assert client.cancel_master_pending("M", pending).order.order_status == "CANCELLED"


@BOTH
def test_copying(kind: str, house: House, desk: CascadeDesk) -> None:
    with client_of(kind, house.url, key_of(house)) as client:
        made = client.follow("M", "F", investment="500", settings={"multiplier": Decimal("1.50")}, idempotency_key="K")
        assert (made.copy_status, made.master_id, made.open_copies) == ("active", "M", ())
        assert client.outcome("copy_follower:F", "K").data["copy_status"] == "active"
        there = client.relationship("F")
        assert there.account is not None and there.settings == {"multiplier": "1.5"}
        assert (there.copies_now, there.account.wallet_balance) == (True, 500)
        assert client.followers("M", limit=5).followers == (there,)
        assert client.pause("F").copy_status == "paused"
        assert [one.copy_status for one in client.relationships(master_id="M").relationships] == ["paused"]
        assert client.resume("F").copy_status == "active"
        assert client.change_settings("F", {"risk_pct": 2}).settings == {"multiplier": "1.5", "risk_pct": "2"}
        assert client.change_settings("F", unset=["multiplier"]).settings == {"risk_pct": "2"}
        assert client.check_relationships() == copy_models.RelationshipCheck(0, ())
        assert client.unfollow("F", keep_open=True).copy_status == "stopped"
        with pytest.raises(ApiRefused, match="nothing to change"):
            client.change_settings("F")


@BOTH
def test_figures_are_none_while_they_are_not_known(kind: str, house: House, desk: CascadeDesk) -> None:
    desk.account("live:1")
    with client_of(kind, house.url, key_of(house)) as client:
        never = client.portfolio("live:1")
        assert (never.state, never.equity, never.last_known) == ("absent", None, None)
        desk.open("live:1", "O")
        desk.tick()
        known = client.portfolio("live:1")
        assert known.equity == Decimal(desk.office.portfolio("live:1")["equity"]) and known.last_known is not None
        desk.client.hdel("market:EURUSD", "ask")
        desk.tick()
        unknown = client.portfolio("live:1")
        assert (unknown.state, unknown.equity) == ("unknown", None) and unknown.last_known == known.last_known
        desk.client.sadd("user_orders_index:{live:1}", "LOST")
        lost, held = client.orders("live:1").orders
        assert (lost.order_id, lost.is_readable, lost.order_price, held.is_readable) == ("LOST", False, None, True)


@BOTH
def test_what_was_decided_and_done(kind: str, house: House, desk: CascadeDesk) -> None:
    desk.followers(2)
    desk.open_master("O")
    desk.replicate()
    desk.begin()
    desk.cascade()
    with client_of(kind, house.url, key_of(house)) as client:
        decided = client.decision("O", limit=1)
        assert (decided.order["copied"], decided.followers[0]["lots"], decided.next) == (2, "0.1", "F0")
        assert client.decision("O", after="F0").followers[0]["follower"] == "F1"
        assert [one["id"] for one in client.cascades().cascades] == [EVENT]
        assert [one["stage"] for one in client.cascade(EVENT).followers] == ["done", "done"]
        trail = client.audit(kind="replication", limit=1)
        assert (len(trail.entries), trail.unreadable, trail.entries[0].kind) == (1, 0, "replication")
        assert client.audit(kind="replication", to_ms=1, account="live:1").entries == ()


@pytest.fixture(scope="module")
def risky() -> Iterator[House]:
    """An API with a desk, on a server of its own."""
    with EmbeddedServer.start() as running:
        desk = Desk(Server(running.url, running.pid))
        for account, balance in {"live:1": 10_000, "live:2": 120}.items():
            desk.account(account, balance=balance)
            desk.office.order(account, "O1")
        engine = make_engine(desk.new_client(), desk.settings, acts=False)
        engine.tick()
        engine.close()
        try:
            with served(desk, valuation__quote_max_age_ms=0, api__desk=True, api__desk_refresh_ms=200) as house:
                yield house
        finally:
            desk.close()


@BOTH
def test_the_desk(kind: str, risky: House) -> None:
    with client_of(kind, risky.url, key_of(risky), retries=Retries(200, 0.02, 5.0, LIMIT_S)) as client:
        summary = client.risk_summary()
        assert summary.accounts.total == 2 and summary.totals.used_margin_usd == Decimal("2169.1")
        assert [one.account for one in summary.closest] == ["live:2", "live:1"]
        (line,) = client.ladder().symbols
        assert (line.symbol, line.bid, line.accounts) == ("EURUSD", Decimal("1.0845"), 2)
        assert client.symbol_ladder("EURUSD").rungs[0].move_pct == Decimal("-0.25")
        told = client.what_if({"EURUSD": "-1"})
        assert (told.moves, told.liquidated.count) == ({"EURUSD": -1}, 1)
        assert isinstance(told.equity.after_usd, Decimal)
        with pytest.raises(ApiRefused, match="unknown_symbol"):
            client.symbol_ladder("NONE")
        with client.stream(["summary"]) as stream:
            told_now = next(one for one in stream if isinstance(one, events.SummaryNow))
        assert told_now.summary.accounts.total == 2


def test_both_clients_can_do_what_the_document_says(house: House) -> None:
    names = [name for name in vars(Client) if not name.startswith("_")]
    assert names == [name for name in vars(AsyncClient) if not name.startswith("_")]
    of_streams = {"do", "stream", "close"}
    modules = (order_calls, copy_calls, read_calls)
    described = {
        name
        for module in modules
        for name, one in vars(module).items()
        if getattr(one, "__module__", "") == module.__name__
    }
    assert {name for name in described if not name.startswith("_")} == set(names) - of_streams
    values = {"order_quantity": 1, "order_price": 1, "stop_loss": 1, "take_profit": 1, "moves": {"EURUSD": 1}}
    made = set()
    with Client(house.url, Token("t")) as client:
        document = house.client().get("/api/openapi.json").json()["paths"]
        for name in set(names) - of_streams:
            describe = next(getattr(module, name) for module in modules if hasattr(module, name))
            code = describe.__code__
            needed = code.co_varnames[: code.co_argcount - len(describe.__defaults__ or ())]
            words = {"account": "live:1", "symbol": "EURUSD", "idempotency_key": "K1"}
            call = describe(**{one: values.get(one, words.get(one, "X1")) for one in needed})
            assert getattr(client, name).__doc__ == describe.__doc__
            made.add((call.method.lower(), call.target.partition("?")[0]))
    offered = {(method, path) for path, item in document.items() for method in item if path != "/api/stream"}
    unmet = [one for one in offered if not any(_is_route(*one, *call) for call in made)]
    assert not unmet and all(any(_is_route(*one, *call) for one in offered) for call in made)


def _is_route(method: str, path: str, called: str, target: str) -> bool:
    return method == called and re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", path), target) is not None


def test_answers_have_the_fields_that_the_document_says() -> None:
    said = {
        name: one
        for module in (copying_models, orders, reading_models, report_models, risk_models)
        for name, one in vars(module).items()
        if isinstance(one, type) and issubclass(one, Shape)
    }
    renamed = {"AccountCounts": "Accounts", "RiskSummary": "Summary"}
    compared = 0
    for module in (copy_models, models, risk):
        for name, one in vars(module).items():
            if is_dataclass(one) and name not in ("Order",):
                shape = said[renamed.get(name, name)].model_fields
                ours = {field.metadata.get("json", field.name) for field in fields(one)}
                theirs = {field.alias or name for name, field in shape.items()}
                assert ours | {"code"} == theirs | {"code"}, name
                compared += 1
    assert compared > 40
    assert {field.name for field in fields(models.Order)} - {"fields", "is_readable"} == set(
        orders.OrderShape.model_fields
    )


# ---- what goes wrong


@BOTH
def test_exactly_one_order_whatever_is_lost(kind: str, house: House, proxy: Proxy) -> None:
    with client_of(kind, proxy.url, key_of(house)) as client, working(house.desk):
        for number, fate in enumerate(Fate):
            account = house.desk.account(f"live:{number}")
            for times in (1, 2, 9):  # fewer than there are attempts, and more
                _lose(client, proxy, account, [fate] * times)
            _lose(client, proxy, account, [Fate.BEFORE, Fate.AFTER, Fate.AWAY])
            _assert_once(house.desk, account)


def _lose(client: Any, proxy: Proxy, account: str, fates: list[Fate]) -> None:
    """Open an order, whose requests and answers get lost."""
    key = f"K{len(fates)}-{fates[-1].name}"
    proxy.seen.clear()
    proxy.fates.extend(fates)
    reached = not {*fates} <= {Fate.BEFORE, Fate.AWAY, Fate.NO_API}
    try:
        opened = client.open_order(
            account, "EURUSD", "BUY", "0.1", order_id=f"{account[5:]}-{key}", idempotency_key=key
        )
        assert len(fates) < 3 or fates[0] is Fate.THROUGH
        assert opened.order_id == f"{account[5:]}-{key}"
    except OutcomeUnknown as failure:
        unknown = failure
        assert len(fates) >= 3
        proxy.fates.clear()
        found = client.outcome(unknown.account, unknown.idempotency_key)
        assert (unknown.account, unknown.order_id) == (account, f"{account[5:]}-{key}")
        assert (found is not None) == reached
    proxy.fates.clear()
    sent = [one for one in proxy.seen if one.startswith(b"POST")]
    assert len({_header(one, b"x-copyrisk-nonce") for one in sent}) == len(sent) <= 3
    assert len({_header(one, b"idempotency-key") for one in sent}) == 1
    assert len({one.partition(b"\r\n\r\n")[2] for one in sent}) == 1


def _assert_once(desk: Desk, account: str) -> None:
    held = desk.index(account)
    assert len(held) >= 3
    opened = [one for one in desk.entries(f"copyrisk:{{{account}}}:audit") if '"type":"open"' in one["entry"]]
    assert len(opened) == len(held)


def _header(request: bytes, name: bytes) -> bytes:
    return next(line for line in request.split(b"\r\n") if line.lower().startswith(name + b":"))


@BOTH
def test_a_relationship_is_begun_once(kind: str, house: House, proxy: Proxy) -> None:
    with client_of(kind, proxy.url, key_of(house)) as client:
        proxy.fates.extend([Fate.AFTER, Fate.LATE])
        assert client.follow("M", "F", investment=500).copy_status == "active"
        assert len(proxy.seen) == 3
        proxy.fates.append(Fate.AFTER)
        assert client.relationship("F").copies_now


def test_without_workers_the_outcome_is_unknown_and_found_later(desk: CascadeDesk) -> None:
    desk.account("live:1")
    with (
        served(desk, api__answer_timeout_ms=50) as house,
        client_of("blocking", house.url, key_of(house)) as one,
        client_of("asyncio", house.url, key_of(house)) as other,
    ):
        doubts = []
        for client in (one, other):
            with pytest.raises(OutcomeUnknown) as unknown:
                client.open_order("live:1", "EURUSD", "BUY", "0.1")
            doubts.append((client, unknown.value))
            assert client.outcome(unknown.value.account, unknown.value.idempotency_key) is None
        with working(desk):
            for client, doubt in doubts:
                found = client.outcome(doubt.account, doubt.idempotency_key, wait_s=LIMIT_S)
                assert (found.is_done, found.order_id) == (True, doubt.order_id)


@BOTH
def test_nobody_there_is_no_unknown_outcome(kind: str, house: House, proxy: Proxy) -> None:
    key = key_of(house)
    proxy.close()
    with client_of(kind, proxy.url, key) as client:
        for call in (lambda: client.open_order("live:1", "EURUSD", "BUY", 1), client.cascades):
            with pytest.raises(Unavailable, match="unreachable"):
                call()


@BOTH
def test_a_server_that_cannot_show_who_it_is(kind: str, house: House, tmp_path: Path) -> None:
    trusts = ssl.create_default_context(cafile=certificate(tmp_path)[1])
    with contextlib.closing(Proxy(int(house.url.rpartition(":")[2]), server_context(tmp_path))) as proxy:
        url = proxy.url.replace("127.0.0.1", "localhost")
        with client_of(kind, url, key_of(house)) as client, pytest.raises(Unavailable, match="CERTIFICATE"):
            client.open_order("live:1", "EURUSD", "BUY", 1)
        assert proxy.seen == []
        with client_of(kind, url, key_of(house), tls=trusts) as client:
            assert client.cascades().cascades == ()


@BOTH
def test_refusals_have_their_codes(kind: str, house: House) -> None:
    with client_of(kind, house.url, key_of(house, accounts=("live:1",), scopes=("orders:write",))) as client:
        with pytest.raises(ApiRefused, match="account_forbidden"):
            client.open_order("live:2", "EURUSD", "BUY", 1)
        with pytest.raises(ApiRefused, match="missing_scope"):
            client.portfolio("live:1")
        with pytest.raises(ApiRefused, match="missing_scope"), client.stream(["orders"]) as stream:
            next(iter(stream))
    with client_of(kind, house.url, Key("key_0123456789", "crs_wrong")) as client:
        with pytest.raises(ApiRefused, match="invalid_signature") as refused:
            client.cascades()
        assert refused.value.status == 401
    tokens = iter(["first", "second"])
    with client_of(kind, house.url, Token(lambda: next(tokens))) as client, pytest.raises(ApiRefused, match="_token"):
        client.cascades()
    assert next(tokens) == "second"


class Late:
    """A caller whose clock is 90 s behind."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def headers(self, method: str, target: bytes, body: bytes, _: str) -> dict[str, str]:
        time_ms = time.time_ns() // 1_000_000 - 90_000
        return signing.signed_headers(self.caller.key_id, self.caller.secret, method, target, body, time_ms=time_ms)


def test_a_clock_that_is_off_is_named(house: House) -> None:
    late: Any = Late(house.caller())
    with Client(house.url, late) as client, pytest.raises(ApiRefused, match="expired_signature: .* 90 s ago"):
        client.cascades()


# ---- streams


@BOTH
def test_a_stream_goes_on_where_it_was_left(
    kind: str, house: House, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_AGAIN", SOON)
    desk = house.desk
    desk.account("live:1")
    with (
        client_of(kind, proxy.url, key_of(house)) as client,
        client.stream(["orders", "portfolios"], ["live:1"]) as stream,
    ):
        told = iter(stream)
        assert next(told) == events.Begun(("orders", "portfolios"), ("live:1",))
        publish(desk, announce(desk, "live:1", "A"))
        first = _next(told, events.OrderEvent)
        assert (first.order_id, first.order.order_quantity, first.amount_usd) == ("A", Decimal("1.00"), None)
        assert _next(told, events.Status).state in ("stale", "unavailable")
        assert stream.last_event_id
        proxy.cut()
        publish(desk, *(announce(desk, "live:1", f"B{number}") for number in range(5)))
        publish(desk, announce(desk, "live:2", "X"))
        assert _next(told, events.Disconnected).reason
        assert _next(told, events.Begun).accounts == ("live:1",)
        assert [_next(told, events.OrderEvent).order_id for _ in range(5)] == [f"B{number}" for number in range(5)]
        resumed = stream.last_event_id
    publish(desk, announce(desk, "live:1", "C"))
    with (
        client_of(kind, house.url, key_of(house)) as client,
        client.stream(["orders"], ["live:1"], last_event_id=resumed) as stream,
    ):
        assert _next(iter(stream), events.OrderEvent).order_id == "C"
    until(lambda: not house.api.feeds._all, LIMIT_S)


def _next(told: Iterator[Any], kind: type) -> Any:
    return next(one for one in told if isinstance(one, kind))


@BOTH
def test_a_stream_that_cannot_be_opened_for_too_long(kind: str, house: House, proxy: Proxy) -> None:
    key = key_of(house)
    proxy.close()
    with (
        client_of(kind, proxy.url, key) as client,
        client.stream(["orders"], give_up_s=0.0) as stream,
        pytest.raises(Unavailable, match="could not be opened"),
    ):
        next(iter(stream))


SAID = [
    (b'event: gap\ndata: {"dropped":{"orders":3,"breaches":null},"from_id":"1.2-3"}\n\n', "Gap"),
    (b'event: status\ndata: {"state":"live","tick_ms":1,"tick_age_ms":2,"now_ms":3}\n\n', "Status"),
    (b"event: summary\ndata: null\n\n", "SummaryNow"),
    (b": here\n\n", ""),
    (b"event: later\ndata: {}\n\n", ""),
    (b'event: end\ndata: {"code":"server_stopping"}\n\n', ""),
    (
        b'event: breaches\nid: 9.1-0\ndata: {"seq":1,"ts_ms":2,"kind":"warning","account":"live:1","cause":"",'
        b'"reason":"","said":{"level":1.50}}\n\n',
        "Happened",
    ),
]


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_events_are_the_same_however_they_are_cut(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(SAID), max_size=8))
    whole = b"".join(text for text, _ in chosen)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    parser, found = events.EventParser("0.0-0"), []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += [type(event).__name__ for _, event in parser.take(whole[start:end])]
    assert found == [name for _, name in chosen if name]
    assert bool(parser.ended) == any(b"server_stopping" in text for text, _ in chosen)


def test_what_cannot_be_read_of_a_stream_is_not_left_out() -> None:
    for text in (b"event: orders\ndata: {}\n\n", b"event: gap\ndata: {\n\n", b'event: summary\ndata: {"now_ms":1}\n\n'):
        with pytest.raises(BadAnswer):
            events.EventParser().take(text)


# ---- laws, without a network


def _refusal(code: str, success: bool = False) -> bytes:
    return json.dumps({"success": success, "error_code": code, "message": "no"}).encode()


DONE = Received(
    200,
    {},
    b'{"success":true,"message":"ok","data":{"order":{"order_id":"O"},"order_id":"O","code":"ok","version":1,'
    b'"event_id":"E","follower_id":"F","copy_status":"paused","master_id":null,"open_copies":[],"behind":""}}',
)
#: What may come, whether the change may have been made then, and whether it settles it.
CAME: dict[str, tuple[Any, bool, bool]] = {
    "done": (DONE, True, True),
    "unknown": (Received(202, {}, b'{"success":true,"message":"?","data":{"order_id":"O"}}'), True, False),
    "refused": (Received(409, {}, _refusal("insufficient_margin")), False, True),
    "invalid": (Received(422, {}, _refusal("invalid_symbol")), False, True),
    "forbidden": (Received(403, {}, _refusal("account_forbidden")), False, False),
    "expired": (Received(401, {}, _refusal("expired_signature")), False, False),
    "no route": (Received(404, {}, _refusal("not_found")), False, False),
    "away": (Received(503, {}, _refusal("store_unavailable")), False, False),
    "too often": (Received(429, {"retry-after": "1"}, _refusal("rate_limited")), False, False),
    "fault": (Received(500, {}, _refusal("internal_error")), True, False),
    "gateway": (Received(502, {}, b"<html>"), True, False),
    "moved": (Received(301, {"location": "/"}, b""), True, False),
    "nonsense": (Received(200, {}, b"[]"), True, False),
    "nothing": (Received(200, {}, b'{"success":true,"message":"ok","data":{}}'), True, False),
    "not sent": (Broken("no route", is_sent=False), False, False),
    "lost": (Broken("reset", is_sent=True), True, False),
}
KEY = Key("key_0123456789", "crs_secret")


def carried(call: Call[Any], came: list[Any], retries: Retries | None = None) -> tuple[Any, list[Send]]:
    """What a call returns that gets these answers, and what was sent."""
    doing, sent, answers = carry_out(call, KEY, retries or Retries(attempts=len(came))), [], iter(came)
    said = None
    while True:
        try:
            step = doing.send(said)
        except StopIteration as end:
            return end.value, sent
        said = None
        if isinstance(step, Send):
            sent.append(step)
            said = next(answers)
        else:
            assert isinstance(step, Wait) and 0 <= step.seconds <= 2.0


@given(names=st.lists(st.sampled_from(sorted(CAME)), min_size=1, max_size=4), is_one_step=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_change_that_may_be_made_is_never_told_as_refused(names: list[str], is_one_step: bool) -> None:
    call: Call[Any] = order_calls.open_order("live:1", "EURUSD", "BUY", 1, idempotency_key="K")
    if not is_one_step:
        call = copy_calls.pause("F", idempotency_key="K")
    looked: list[str] = []

    def answers() -> Iterator[Any]:
        for name in names:
            looked.append(name)
            yield CAME[name][0]

    sent: list[Send] = []
    doing, said, stream = carry_out(call, KEY, Retries(attempts=len(names))), None, answers()
    made, settled = False, False
    try:
        while True:
            step = doing.send(said)
            said = None
            if isinstance(step, Send):
                sent.append(step)
                said = next(stream)
                is_away = looked[-1] == "away"
                settled = CAME[looked[-1]][2]
                made |= CAME[looked[-1]][1] or (is_away and not is_one_step)
    except StopIteration:
        assert looked[-1] == "done"
    except OutcomeUnknown:
        assert made and not settled
    except (ApiRefused, Unavailable):
        assert settled or not made
    assert len({(one.method, one.target, one.body, one.headers["Idempotency-Key"]) for one in sent}) == 1
    assert len({one.headers["X-Copyrisk-Nonce"] for one in sent}) == len(sent) == len(looked)


@given(names=st.lists(st.sampled_from(sorted(CAME)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_question_is_never_an_unknown_outcome(names: list[str]) -> None:
    with contextlib.suppress(ApiRefused, Unavailable, BadAnswer):
        carried(read_calls.cascades(), [CAME[name][0] for name in names])


def test_when_it_is_not_sent_again() -> None:
    call = order_calls.open_order("live:1", "EURUSD", "BUY", 1)
    lost, often = CAME["lost"][0], Received(429, {"retry-after": "60"}, _refusal("rate_limited"))
    for retries in (NEVER_AGAIN, Retries(within_s=0.0)):
        with pytest.raises(OutcomeUnknown):
            carried(call, [lost], retries)
    with pytest.raises(Unavailable, match="rate_limited") as away:
        carried(call, [often], Retries())
    assert away.value.retry_after_s == 60


# ---- what is given to it


@pytest.mark.parametrize("secretive", [KEY, Token("crs_secret"), Token(lambda: "crs_secret")])
def test_secrets_are_not_shown(secretive: Key | Token) -> None:
    assert "crs_secret" not in f"{secretive!r} {secretive}"
    with pytest.raises(TypeError):
        pickle.dumps(secretive)
    with pytest.raises(Unavailable) as away, Client("http://127.0.0.1:9", secretive, retries=NEVER_AGAIN) as client:
        client.cascades()
    assert "crs_secret" not in repr(away.value)
    with pytest.raises(ValueError, match="token") as wrong:
        Token("crs_secret\n").headers("GET", b"/", b"", "")
    assert "crs_secret" not in str(wrong.value)


@pytest.mark.parametrize(
    "url", ["http://broker.example", "https://h/api", "https://h?x=1", "https://u:p@h", "ftp://h", "h", "https://"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="address|encryption"):
        Client(url, KEY)


def test_addresses() -> None:
    for url, flags in (("https://broker.example:8443", {}), ("http://broker.example", {"allow_plain_http": True})):
        Client(url, KEY, **flags).close()


def test_numbers_are_exact() -> None:
    assert [number_text(one) for one in (Decimal("1E+2"), Decimal("0.10"), 7, "1.50")] == ["100", "0.10", "7", "1.50"]
    wrong: Any
    for wrong in (0.1, True, b"1", [1]):
        with pytest.raises(TypeError, match="exact"):
            order_calls.open_order("live:1", "EURUSD", "BUY", wrong)
    for text in ("NaN", "Infinity"):
        with pytest.raises(ValueError, match="no number"):
            number_text(Decimal(text))


def test_ids_cannot_become_other_paths() -> None:
    wrong: list[Callable[[str], Any]] = [
        read_calls.cascade,
        lambda said: read_calls.outcome("live:1", said),
        lambda said: read_calls.order("live:1", said),
        lambda said: read_calls.portfolio(f"live:{said}"),
        lambda said: order_calls.cancel_pending("live:1", "O", idempotency_key=said),
        copy_calls.pause,
        read_calls.symbol_ladder,
    ]
    for describe in wrong:
        for said in ("", ".", "..", "a/b", "a?b", "é", "a\n", "x" * 200):
            with pytest.raises(InvalidId):
                describe(said)


@given(words=st.text(max_size=20), key=st.from_regex(r"[A-Za-z0-9_.:-]{1,20}", fullmatch=True))
@settings(max_examples=50, deadline=None)
def test_what_is_signed_is_what_is_sent(words: str, key: str) -> None:
    calls: list[Call[Any]] = [copy_calls.followers("M", after=words), read_calls.decision("O", follower=words)]
    if key not in (".", ".."):
        calls += [read_calls.outcome("live:1", key), read_calls.cascade(key)]
    with httpx.Client(base_url="http://127.0.0.1", verify=False) as client:
        for call in calls:
            assert client.build_request("GET", call.target).url.raw_path.decode() == call.target


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Decimal, '"x"'),
        (Decimal, "true"),
        (int, "1.5"),
        (int, "true"),
        (tuple[int, ...], "{}"),
        (copy_models.SettingsNow, '{"follower_id":"F"}'),
        (copy_models.SettingsNow, '{"follower_id":"F","settings":{"a":1}}'),
        (models.OneOrder, "{}"),
    ],
)
def test_answers_of_another_shape(kind: Any, text: str) -> None:
    with pytest.raises(BadAnswer):
        read(kind, parse_json(text.encode()))


def test_what_is_no_json() -> None:
    for text in (b"", b"NaN", b"[1e", b"\xff", b"[" * 100_000):
        with pytest.raises(BadAnswer):
            parse_json(text)
    assert parse_json(b"[1.10, 2]") == [Decimal("1.10"), 2]
    assert issubclass(BadAnswer, CopyriskError)


def test_it_needs_neither_redis_nor_the_server() -> None:
    wrong = (
        "redis",
        "hiredis",
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "structlog",
        "sqlalchemy",
        "copyrisk.api",
    )
    code = f"import sys, copyrisk.client; print([name for name in {wrong!r} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_the_example_of_the_documentation(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "client.md").read_text()
    key = house.caller()
    house.desk.account("live:17")
    for name, value in (("API_KEY_ID", key.key_id), ("API_KEY_SECRET", key.secret), ("API_URL", house.url)):
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    with working(house.desk):
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(block, "client.md", "exec"), names)
    assert "OPEN 1.08455" in capsys.readouterr().out.splitlines()
    for name in vars(Client):
        assert name.startswith("_") or f"`{name}`" in page or f"`client.{name}" in page or name == "close", name
