"""Orders over HTTP: answered when they are stored, once each, unknown when it is not known, and of nobody else."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from copyrisk import keys
from copyrisk.api.answers import ApiError
from copyrisk.api.asking import Answered, Asker
from copyrisk.api.line import Line
from copyrisk.api.tail import Tail
from copyrisk.embedded import EmbeddedServer
from copyrisk.errors import CopyriskError, StoreError
from copyrisk.store.connection import connect_async
from tests.api_house import Caller, House, data, refusal, served, until_sent, working
from tests.conftest import KINDS, Server
from tests.trading import Desk, assert_paid, until

MASTER_PATH = "/api/copy-trading/orders/strategy-provider"
BUY = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1"}
LIMIT = {"symbol": "EURUSD", "order_type": "BUY_LIMIT", "order_quantity": "1", "order_price": "1.08"}
OF = {"user_type": "live", "user_id": "1"}


@pytest.fixture(scope="module", params=[kind for kind, path in KINDS.items() if kind == "bundled" or path])
def shop(request: pytest.FixtureRequest) -> Iterator[House]:
    """An API at whose server workers work; each test has accounts of its own."""
    with EmbeddedServer.start(KINDS[request.param]) as running:
        desk = Desk(Server(running.url, running.pid))
        with served(desk) as made, working(desk):
            yield made
        desk.close()


@pytest.fixture
def bundled_desk(bundled_server: Server) -> Iterator[Desk]:
    made = Desk(bundled_server)
    yield made
    made.close()


@pytest.fixture
def house(bundled_desk: Desk) -> Iterator[House]:
    """An API at whose server nobody works."""
    with served(bundled_desk) as made:
        yield made


def whose(account: str) -> dict[str, str]:
    user_type, _, user_id = account.partition(":")
    return {"user_type": user_type, "user_id": user_id}


@contextmanager
def background(*calls: Callable[[], Any]) -> Iterator[list[Any]]:
    """What these answer, once the block has ended."""
    answers: list[Any] = []
    with ThreadPoolExecutor(len(calls)) as threads:
        under_way = [threads.submit(call) for call in calls]
        yield answers
        answers += [call.result() for call in under_way]


# ---- life cycles


@pytest.mark.parametrize("account", ["live:1", "demo:1", "strategy_provider:1", "copy_follower:1"])
def test_a_position_from_open_to_close(shop: House, account: str) -> None:
    desk, caller, of = shop.desk, shop.caller(), whose(account)
    desk.account(account)
    opened = data(caller.post("/api/orders/instant/execute", {**of, **BUY, "order_id": f"A{of['user_type']}"}))
    one = {**of, "order_id": f"A{of['user_type']}"}
    assert (opened["order_id"], opened["code"], opened["version"]) == (one["order_id"], "ok", desk.version(account))
    assert opened["event_id"] == f"{account}:{desk.version(account)}"
    assert desk.order(account, one["order_id"]).items() <= opened["order"].items()
    assert data(caller.post("/api/orders/stoploss/add", {**one, "stop_loss": 1.08}))["order"]["stop_loss"] == "1.08"
    assert data(caller.post("/api/orders/takeprofit/add", {**one, "take_profit": "1.1"}))["order"]["take_profit"]
    assert "stop_loss" not in data(caller.post("/api/orders/stoploss/cancel", one))["order"]
    assert "take_profit" not in data(caller.post("/api/orders/takeprofit/cancel", one))["order"]
    part = data(caller.post("/api/orders/close", {**one, "order_quantity": 0.4}))["order"]
    assert (part["net_profit"], part["order_quantity"]) == ("-2.00", "0.6")
    closed = data(caller.post("/api/orders/close", one))["order"]
    assert (closed["net_profit"], closed["order_status"]) == ("-5.00", "CLOSED")
    assert refusal(caller.post("/api/orders/close", one)) == (409, "order_finished")
    assert_paid(desk, account, 10_000)


def test_a_pending_order(shop: House) -> None:
    shop.desk.account("live:2")
    caller, of = shop.caller(), whose("live:2")
    placed = data(caller.post("/api/orders/pending/place", {**of, **LIMIT, "take_profit": 1.2}))
    one = {**of, "order_id": placed["order_id"]}
    assert placed["order"]["order_status"] == "PENDING"
    moved = data(caller.post("/api/orders/pending/modify", {**one, "order_price": 1.0790}))
    assert moved["order"]["order_price"] == "1.079"
    assert data(caller.post("/api/orders/pending/cancel", one))["order"]["order_status"] == "CANCELLED"
    assert shop.desk.index("live:2") == set()


def test_orders_of_a_master(shop: House) -> None:
    shop.desk.account("strategy_provider:7")
    caller, master = shop.caller(), {"user_id": "7"}
    opened = data(caller.post(MASTER_PATH, {**master, **BUY, "user_type": "strategy_provider"}))
    assert opened["order"]["user_type"] == "strategy_provider"
    pending = data(caller.post(f"{MASTER_PATH}/pending", {**master, **LIMIT}))
    cancelled = data(caller.post(f"{MASTER_PATH}/{pending['order_id']}/cancel", master))
    assert cancelled["order"]["order_status"] == "CANCELLED"
    closed = data(caller.post(f"{MASTER_PATH}/close", {**master, "order_id": opened["order_id"]}))
    assert closed["order"]["order_status"] == "CLOSED"
    told = [entry["change"] for entry in shop.desk.entries("copyrisk:replications") if entry["user_id"] == "7"]
    assert told == ["opened", "placed", "cancelled", "closed"]
    assert refusal(caller.post(MASTER_PATH, {**master, **BUY, "user_type": "live"})) == (422, "invalid_user_type")


# ---- what is sent


def test_numbers_are_sent_on_as_they_were_written(house: House) -> None:
    house.desk.account("live:1")
    caller = house.caller()
    body = b'{"user_type":"live","user_id":"1","symbol":"EURUSD","order_type":"BUY","order_quantity":0.2900,'
    with background(lambda: caller.post("/api/orders/instant/execute", body + b'"stop_loss":"1.050"}', "k1")) as said:
        until_sent(house, 1)
        (command,) = house.desk.entries("copyrisk:commands")
        assert command == {"type": "open", **OF, **BUY, "order_quantity": "0.2900", "stop_loss": "1.050"} | {
            "idempotency_key": "k1",
            "requested_by": f"key {caller.key_id}",
        }
        house.desk.settle()
    assert data(said[0])["order"]["order_quantity"] == "0.29"


def commands_sent(house: House) -> int:
    """How many commands there ever were."""
    return int(house.desk.client.xinfo_stream("copyrisk:commands")["entries-added"])


def test_the_flow_of_one_order(shop: House) -> None:
    shop.desk.account("live:3", "rock")
    shop.desk.account("demo:3", "rock")
    before, of, plain = commands_sent(shop), whose("live:3"), shop.caller(scopes=("orders:write",))
    body = {**of, **BUY, "sending_orders": " Barclays"}
    assert refusal(plain.post("/api/orders/instant/execute", body)) == (403, "flow_forbidden")
    assert commands_sent(shop) == before
    allowed = shop.caller(scopes=("orders:write", "orders:flow"))
    queued = data(allowed.post("/api/orders/instant/execute", body))["order"]
    assert (queued["order_status"], queued["execution"]) == ("QUEUED", "provider")
    at_home = data(allowed.post("/api/orders/instant/execute", {**body, "user_type": "demo"}))["order"]
    assert (at_home["order_status"], at_home["execution"]) == ("OPEN", "local")
    own = data(plain.post("/api/orders/pending/place", {**of, **LIMIT}))["order"]
    assert own["execution"] == "local"


# ---- whose


def test_nobody_trades_for_another(shop: House) -> None:
    for account in ("live:4", "live:5"):
        shop.desk.account(account)
    mine, theirs = shop.caller(accounts=("live:4",)), shop.caller(accounts=("live:5",))
    data(theirs.post("/api/orders/instant/execute", {**whose("live:5"), **BUY, "order_id": "theirs"}))
    before, sent = shop.desk.order("live:5", "theirs"), commands_sent(shop)
    changes = (("close", {}), ("stoploss/add", {"stop_loss": "1.0"}), ("pending/cancel", {}))
    for path, body in changes:
        answer = mine.post(f"/api/orders/{path}", {**whose("live:5"), "order_id": "theirs", **body})
        assert refusal(answer) == (403, "account_forbidden")
    assert commands_sent(shop) == sent
    for path, body in changes:
        said = {**whose("live:4"), **body}
        strangers = mine.post(f"/api/orders/{path}", {**said, "order_id": "theirs"})
        nobodys = mine.post(f"/api/orders/{path}", {**said, "order_id": "no-one"})
        assert refusal(strangers) == refusal(nobodys) == (404, "order_not_found")
        assert strangers.text.replace("theirs", "no-one") == nobodys.text
    assert shop.desk.order("live:5", "theirs") == before
    gone = shop.caller().post("/api/orders/close", {**whose("live:99"), "order_id": "theirs"})
    assert refusal(gone) == (404, "account_missing")


def test_a_caller_without_the_scope(shop: House) -> None:
    caller, before = shop.caller(scopes=("orders:read", "orders:flow")), commands_sent(shop)
    assert refusal(caller.post("/api/orders/instant/execute", {**OF, **BUY})) == (403, "missing_scope")
    assert commands_sent(shop) == before


# ---- once


def test_a_key_is_answered_once_and_for_all(shop: House) -> None:
    shop.desk.account("live:6")
    caller, body = shop.caller(), {**whose("live:6"), **BUY}
    first = caller.post("/api/orders/instant/execute", body, "k")
    again = caller.post("/api/orders/instant/execute", body, "k")
    assert data(first) == data(again)
    other = caller.post("/api/orders/instant/execute", {**body, "order_quantity": "2"}, "k")
    assert refusal(other) == (409, "idempotency_conflict")
    no_order = {**whose("live:6"), "order_id": "no"}
    refused = [caller.post("/api/orders/close", no_order, "k2") for _ in range(2)]
    assert [refusal(answer) for answer in refused] == [(404, "order_not_found")] * 2
    assert len(shop.desk.index("live:6")) == 1


def test_many_with_one_key_at_once(house: House) -> None:
    house.desk.account("live:1")
    callers, body = [house.caller() for _ in range(4)], {**OF, **BUY}

    def post(caller: Caller, lots: str) -> Callable[[], Any]:
        return lambda: caller.post("/api/orders/instant/execute", {**body, "order_quantity": lots}, "k")

    with background(*(post(caller, "1") for caller in callers[:3])) as alike:
        until_sent(house, 3)
        with background(post(callers[3], "2")) as other:
            until_sent(house, 4)
            house.desk.settle()
    assert refusal(other[0]) == (409, "idempotency_conflict")
    assert len({data(answer)["event_id"] for answer in alike}) == 1
    assert len(house.desk.index("live:1")) == 1


# ---- unknown


def test_what_is_not_known_is_answered_later(bundled_desk: Desk) -> None:
    bundled_desk.account("live:1")
    with served(bundled_desk, api__answer_timeout_ms=100) as house:
        caller, body = house.caller(), {**OF, **BUY}
        unknown = data(caller.post("/api/orders/instant/execute", body, "k"), 202)
        assert (unknown["outcome"], unknown["idempotency_key"]) == ("unknown", "k")
        bundled_desk.settle()
        found = data(caller.post("/api/orders/instant/execute", body, "k"))  # nobody works: it is what is stored
        assert (found["order_id"], found["order"]["order_status"]) == (unknown["order_id"], "OPEN")
        bundled_desk.settle()
    assert bundled_desk.index("live:1") == {unknown["order_id"]}


def test_a_dead_letter_is_unknown(house: House) -> None:
    house.desk.account("live:1")
    caller = house.caller()
    with background(lambda: caller.post("/api/orders/close", {**OF, "order_id": "A"}, "k")) as said:
        until_sent(house, 1)
        ((entry_id, _),) = house.desk.client.xrange("copyrisk:commands")
        failed = {**OF, "event": "failed", "idempotency_key": "k", "command_id": entry_id, "code": "job_failed"}
        house.desk.client.xadd("copyrisk:events", failed)
    assert data(said[0], 202) == {"outcome": "unknown", "order_id": "A", "idempotency_key": "k"}


def test_too_many_wait(bundled_desk: Desk) -> None:
    bundled_desk.account("live:1")
    with served(bundled_desk, api__waiting_limit=1) as house:
        callers = [house.caller(), house.caller()]
        with background(lambda: callers[0].post("/api/orders/instant/execute", {**OF, **BUY})) as said:
            until_sent(house, 1)
            busy = callers[1].post("/api/orders/instant/execute", {**OF, **BUY})
            assert (refusal(busy), busy.headers["Retry-After"]) == ((503, "too_busy"), "1")
            assert bundled_desk.client.xlen("copyrisk:commands") == 1
            bundled_desk.settle()
        data(said[0])
        assert house.api.asker.waiting == 0


def test_the_accounts_audit_says_who_asked(shop: House) -> None:
    shop.desk.account("live:1")
    caller = shop.caller()
    opened = data(caller.post("/api/orders/instant/execute", {**OF, **BUY}))
    refusal(caller.post("/api/orders/close", {**OF, "order_id": "nowhere"}))
    entries = shop.desk.client.xrevrange("copyrisk:{live:1}:audit", count=2)[::-1]
    found = [json.loads(said[b"entry"]) for _, said in entries]
    assert [one["order_id"] for one in found] == [opened["order_id"], "nowhere"]
    assert {one["requested_by"] for one in found} == {f"key {caller.key_id}"}


def test_a_server_that_has_lost_its_functions_gets_them_again(house: House) -> None:
    house.desk.account("live:1")
    caller = house.caller()
    house.desk.client.function_flush()
    order = {**OF, **BUY}
    assert refusal(caller.post("/api/orders/instant/execute", order, "lost")) == (503, "functions_missing")
    assert not house.desk.client.exists("copyrisk:commands")
    with background(lambda: caller.post("/api/orders/instant/execute", order, "lost")) as said:
        until_sent(house, 1)
        house.desk.settle()
    assert data(said[0])["order"]["order_status"] == "OPEN"
    house.desk.client.function_flush()
    house.desk.account("copy_follower:F")
    pause = "/api/copy-trading/accounts/F/pause"  # whose first call is one of the audit trail
    assert refusal(caller.post(pause, key="pause")) == (503, "functions_missing")
    assert refusal(caller.post(pause, key="pause"))[1] == "not_following"


# ---- asking itself


ASKED = {"type": "open", **OF, **BUY, "idempotency_key": "k"}


async def nothing_is_lost() -> None:
    raise AssertionError("the server has its functions")


@asynccontextmanager
async def asking(url: str, *, follows: str = "", timeout_ms: int = 5_000, limit: int = 10) -> AsyncIterator[Asker]:
    """An asker; `follows`: where it hears of events."""
    limits: Any = {"connect_timeout_ms": 1_000, "reply_timeout_ms": 2_000}
    client = connect_async(url, connections=2, **limits)
    line = Line(client)
    asker = Asker(line, timeout_ms=timeout_ms, waiting_limit=limit, load=nothing_is_lost)
    followed = connect_async(follows or url, connections=1, decodes=True, **limits)
    tail = Tail(followed, {keys.EVENTS: lambda _, entry_id, fields: asker.take(entry_id, fields)}, block_ms=500)
    running = None
    if follows:
        await tail.start()
        running = asyncio.create_task(tail.run())
    try:
        yield asker
    finally:
        while running is not None and not running.done():  # `wait_for` of Python 3.11 may miss a cancellation
            running.cancel()
            await asyncio.wait([running], timeout=0.05)
        await line.close()
        await tail.close()
        await client.aclose()
        await followed.aclose()


@asynccontextmanager
async def broken_line(server: Server, *, swallows: bytes) -> AsyncIterator[str]:
    """A way to the server that breaks after a request with these bytes has got there, before its reply is back."""
    path = server.url.removeprefix("unix://").partition("?")[0]
    open_ends: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(path)
        open_ends.extend((writer, back))
        try:
            while said := await reader.read(65_536):
                back.write(said)
                answer = await there.read(65_536)
                if swallows in said:
                    return
                writer.write(answer)
        finally:
            writer.close()
            back.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    finally:
        listening.close()
        await listening.wait_closed()
        await asyncio.gather(*(end.wait_closed() for end in open_ends), return_exceptions=True)


def asked(question: Callable[[], Awaitable[Any]]) -> Any:
    async def ask() -> Any:
        return await question()

    return asyncio.run(ask())


@pytest.mark.parametrize("works", [True, False])
def test_a_reply_that_is_lost_is_waited_for_and_never_asked_for_again(bundled_desk: Desk, works: bool) -> None:
    bundled_desk.account("live:1")

    async def question() -> Answered:
        server = bundled_desk.server
        async with (
            broken_line(server, swallows=b"XADD") as url,
            asking(url, follows=server.url, timeout_ms=5_000 if works else 200) as asker,
        ):
            waits = asyncio.create_task(asker.ask(ASKED))
            await asyncio.to_thread(until, lambda: bundled_desk.client.xlen("copyrisk:commands") == 1)
            if works:
                await asyncio.to_thread(bundled_desk.settle)
            return await waits

    answered = asked(question)
    assert (answered.event is not None) is works
    assert bundled_desk.client.xinfo_stream("copyrisk:commands")["entries-added"] == 1
    if works:
        assert json.loads(answered.event["order"])["order_id"] == answered.order_id


def test_an_event_that_nobody_heard_of_is_looked_for(bundled_desk: Desk) -> None:
    bundled_desk.account("live:1")

    async def question() -> Answered:
        async with asking(bundled_desk.server.url, timeout_ms=300) as asker:
            waits = asyncio.create_task(asker.ask(ASKED))
            await asyncio.to_thread(until, lambda: bundled_desk.client.xlen("copyrisk:commands") == 1)
            await asyncio.to_thread(bundled_desk.settle)
            return await waits

    answered = asked(question)
    assert answered.event is not None and answered.event["event"] == "done"


@pytest.mark.parametrize(
    ("setting", "value", "usual"), [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")], ids=["full", "alone"]
)
def test_what_the_server_refuses_changes_nothing(bundled_desk: Desk, setting: str, value: str, usual: str) -> None:
    async def question() -> str:
        async with asking(bundled_desk.server.url) as asker:
            bundled_desk.client.config_set(setting, value)
            try:
                with pytest.raises(StoreError) as refused:
                    await asker.ask(ASKED)
            finally:
                bundled_desk.client.config_set(setting, usual)
            sent = asyncio.create_task(asker.ask(ASKED))  # the line is as good as before
            await asyncio.to_thread(until, lambda: bundled_desk.client.exists("copyrisk:commands"))
            sent.cancel()
            await asyncio.gather(sent, return_exceptions=True)
            assert asker.waiting == 0
            return refused.value.code

    assert asked(question) == "store_error"
    assert bundled_desk.client.xlen("copyrisk:commands") == 1


def test_without_a_server_nothing_was_sent() -> None:
    async def question() -> str:
        async with asking("redis://127.0.0.1:1/0") as asker:
            with pytest.raises(StoreError) as refused:
                await asker.ask(ASKED)
            return refused.value.code

    assert asked(question) == "server_unreachable"


def test_many_ask_over_one_line(shop: House) -> None:
    for n in range(20):
        shop.desk.account(f"demo:m{n}")

    async def question() -> list[Answered]:
        url = shop.desk.server.url
        async with asking(url, follows=url, limit=400) as asker:
            said = [ASKED | whose(f"demo:m{n % 20}") | {"idempotency_key": f"k{n}"} for n in range(200)]
            return await asyncio.gather(*(asker.ask(fields) for fields in said))

    answers = asked(question)
    assert [answered.idempotency_key for answered in answers] == [f"k{n}" for n in range(200)]
    for n, answered in enumerate(answers):
        assert answered.event is not None
        assert (answered.event["idempotency_key"], answered.event["user_id"]) == (f"k{n}", f"m{n % 20}")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"idempotency_key": ""}, "missing_idempotency_key"),
        ({"type": "follow"}, "unknown_command"),
        ({"order_quantity": "nan"}, "invalid_order_quantity"),
    ],
)
def test_what_makes_no_sense_is_not_sent(bundled_desk: Desk, fields: dict[str, str], code: str) -> None:
    async def question() -> str:
        async with asking(bundled_desk.server.url) as asker:
            with pytest.raises(CopyriskError) as refused:
                await asker.ask(ASKED | fields)
            return refused.value.code

    assert asked(question) == code
    assert not bundled_desk.client.exists("copyrisk:commands")


def test_the_stored_answer_of_another_command_is_a_conflict(bundled_desk: Desk) -> None:
    bundled_desk.account("live:1")
    bundled_desk.do("open", "live:1", **BUY, idempotency_key="k")

    async def question() -> str:
        async with asking(bundled_desk.server.url, timeout_ms=50) as asker:
            with pytest.raises(ApiError) as refused:
                await asker.ask(ASKED | {"order_quantity": "2"})
            return refused.value.code

    assert asked(question) == "idempotency_conflict"
