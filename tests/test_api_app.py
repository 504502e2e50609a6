"""The API around its routes: how errors become answers, limits of bodies, parameters, the tail of streams, the pool."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import hiredis
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import APIRouter, Request
from redis.asyncio.connection import AbstractConnection
from starlette.responses import Response

from copyrisk.api import serve
from copyrisk.api.answers import ApiError, status_of, success
from copyrisk.api.app import health_routes, make_app
from copyrisk.api.guard import Guard
from copyrisk.api.line import Line, Lost
from copyrisk.api.pool import Pool
from copyrisk.api.tail import Tail
from copyrisk.api.tokens import make_token
from copyrisk.api_sections import ApiSettings
from copyrisk.errors import ConfigError, InvalidId, Refused, StoreError, StoreUnavailable
from copyrisk.store.connection import connect_async
from copyrisk.store.pipe import Pipe, pack
from copyrisk.vitals import API_REQUESTS, Vitals
from tests.trading import process, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette")


def routes() -> APIRouter:
    router = APIRouter()

    @router.post("/echo", response_model=None)
    async def echo(request: Request) -> Response:
        return success({"bytes": len(await request.body())})

    @router.get("/named", response_model=None)
    async def named(count: int, name: str = "") -> Response:
        return success({"count": count, "name": name})

    @router.get("/fails/{how}", response_model=None)
    async def fails(how: str) -> Response:
        raise {
            "refused": Refused("no margin", code="insufficient_margin"),
            "id": InvalidId("bad", code="invalid_symbol"),
            "away": StoreUnavailable("gone"),
            "limited": ApiError("slow down", code="rate_limited", headers={"Retry-After": "2"}),
            "fault": ZeroDivisionError("the secret is 42"),
        }[how]

    return router


def asked(method: str, path: str, *, body_bytes: int = 1_000, ready: bool = True, **more: Any) -> httpx.Response:
    async def is_ready() -> dict[str, bool]:
        return {"store": ready, "desk": False}

    async def ask() -> httpx.Response:
        app = Guard(make_app([routes(), health_routes(is_ready, needed=("store",))]), body_bytes=body_bytes, seen=SEEN)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


SEEN = Vitals("api")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/fails/refused", 409, "insufficient_margin"),
        ("/fails/id", 422, "invalid_symbol"),
        ("/fails/away", 503, "store_unavailable"),
        ("/fails/limited", 429, "rate_limited"),
        ("/fails/fault", 500, "internal_error"),
        ("/nowhere", 404, "not_found"),
        ("/echo", 405, "method_not_allowed"),
        ("/named", 422, "missing_count"),
        ("/named?count=x", 422, "invalid_count"),
        ("/named?count=1&nmae=x", 422, "unknown_parameter"),
        ("/named?count=1&count=2", 422, "invalid_parameter"),
    ],
)
def test_every_error_is_an_answer_of_the_usual_shape(path: str, status: int, code: str) -> None:
    answer = asked("GET", path)
    said = answer.json()
    assert (answer.status_code, said["error_code"]) == (status, code)
    assert said.keys() == {"success", "error_code", "message"} and said["success"] is False
    assert "42" not in answer.text and "Traceback" not in answer.text


def test_the_usual_answer() -> None:
    answer = asked("GET", "/named?count=3&name=x")
    assert answer.json() == {"success": True, "message": "ok", "data": {"count": 3, "name": "x"}}
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_a_refusal_says_when_to_come_back() -> None:
    assert asked("GET", "/fails/limited").headers["retry-after"] == "2"


def test_bodies_are_bounded_whether_their_length_is_said_or_not() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    assert asked("POST", "/echo", content=b"x" * 1_000).json()["data"] == {"bytes": 1_000}
    for content in (b"x" * 1_001, pieces()):
        answer = asked("POST", "/echo", content=content)
        assert (answer.status_code, answer.json()["error_code"]) == (413, "body_too_large")


def test_readiness() -> None:
    assert asked("GET", "/readyz").status_code == 200
    answer = asked("GET", "/readyz", ready=False)
    assert (answer.status_code, answer.json()["error_code"]) == (503, "not_ready")


def test_requests_are_counted_by_route_not_by_path() -> None:
    asked("GET", "/fails/refused")
    asked("GET", "/" + "x" * 50)
    numbers = SEEN.numbers(API_REQUESTS)
    assert numbers["/fails/{how}", "409"] >= 1
    assert {route for route, _ in numbers} <= {"/echo", "/named", "/fails/{how}", "/readyz", "none"}


def test_the_document_names_the_ways_to_sign() -> None:
    document = make_app([routes()]).openapi()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert "HTTPValidationError" not in json.dumps(document["components"].get("schemas", {}).keys().__repr__())


@pytest.mark.parametrize(
    ("code", "status"),
    [("invalid_symbol", 422), ("unknown_order", 404), ("insufficient_margin", 409), ("replayed_request", 401)],
)
def test_statuses_follow_from_codes(code: str, status: int) -> None:
    assert status_of(code) == status


# ---- the pool


def test_a_thread_has_a_connection_of_its_own_and_errors_come_through(bundled_server: Any) -> None:
    def name(pipe: Pipe, given: str) -> tuple[bytes, str]:
        return pipe.ask(pack("PING"))[0], given

    def fails(_: Pipe) -> None:
        raise ConfigError("no")

    async def use() -> None:
        pool = Pool(bundled_server.client(), 2)
        try:
            assert await pool.run(name, "x") == (b"PONG", "x")
            with pytest.raises(ConfigError):
                await pool.run(fails)
        finally:
            pool.close()

    asyncio.run(use())


def test_what_waits_for_a_thread_is_bounded(bundled_server: Any) -> None:
    go = threading.Event()

    def wait(_: Pipe) -> bool:
        return go.wait(10)

    async def use() -> None:
        pool = Pool(bundled_server.client(), 1)
        try:
            waiting = [asyncio.create_task(pool.run(wait)) for _ in range(32)]
            await asyncio.sleep(0)
            with pytest.raises(ApiError) as refused:
                await pool.run(wait)
            assert refused.value.code == "too_busy"
            go.set()
            assert all(await asyncio.gather(*waiting))
        finally:
            go.set()
            pool.close()

    asyncio.run(use())


# ---- the line


def test_whatever_breaks_a_line_whoever_waits_hears_of_it(bundled_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        client = connect_async(bundled_server.url, connect_timeout_ms=1_000, reply_timeout_ms=2_000, connections=1)
        line = Line(client)
        assert await line.call("SET", "k", "1") == b"OK"

        async def fail(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("a fault of ours")

        for name in ("read_response", "send_packed_command"):
            with monkeypatch.context() as broken:
                broken.setattr(AbstractConnection, name, fail)
                async with asyncio.timeout(5):
                    for _ in range(2):  # on the connection that was there, and on a new one
                        with pytest.raises(StoreError):
                            await line.call("GET", "k")
            assert await line.call("GET", "k") == b"1"
        await line.close()
        await client.aclose()

    asyncio.run(use())


# ---- the tail


def follow(server: Any, during: Callable[[Any], Any], until: Callable[[list[str]], bool]) -> list[str]:
    """The values of the entries that were handed on, while something is done to a stream."""
    seen: list[str] = []

    async def use() -> None:
        client = connect_async(
            server.url, connect_timeout_ms=1_000, reply_timeout_ms=2_000, connections=1, decodes=True
        )
        writer = server.client()

        def take(_: str, __: str, fields: Any) -> None:
            seen.append(fields["n"])
            if fields["n"] == "bad":
                raise ValueError("bad")

        writer.xadd("s", {"n": "before"})
        tail = Tail(client, {"s": take}, block_ms=50)
        await tail.start()
        running = asyncio.create_task(tail.run())
        await during(writer)
        async with asyncio.timeout(15):
            while not until(seen):
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await tail.close()
        await client.aclose()
        writer.close()

    asyncio.run(use())
    return seen


def test_what_comes_later_is_handed_on_once_and_in_order(bundled_server: Any) -> None:
    async def during(writer: Any) -> None:
        for n in range(500):
            writer.xadd("s", {"n": str(n)})

    assert follow(bundled_server, during, lambda seen: len(seen) >= 500) == [str(n) for n in range(500)]


def test_one_bad_entry_does_not_end_it(bundled_server: Any) -> None:
    async def during(writer: Any) -> None:
        writer.xadd("s", {"n": "bad"})
        writer.xadd("s", {"n": "good"})

    assert follow(bundled_server, during, lambda seen: len(seen) >= 2) == ["bad", "good"]


def test_a_broken_connection_loses_nothing(bundled_server: Any) -> None:
    async def during(writer: Any) -> None:
        for n in range(20):
            writer.xadd("s", {"n": str(n)})
            if n % 5 == 0:
                for client in writer.client_list():
                    if client["name"] == "copyrisk-api":
                        writer.client_kill(client["addr"])
            await asyncio.sleep(0.01)

    assert follow(bundled_server, during, lambda seen: len(seen) >= 20) == [str(n) for n in range(20)]


def test_what_was_handed_on_is_not_handed_on_again_when_the_last_entry_is_taken_away(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copyrisk.api.tail._LOOK_AGAIN_S", 0.02)

    looks: list[str] = []
    look = Tail._look_again

    async def counted(tail: Tail) -> None:
        await look(tail)
        looks.append("look")

    monkeypatch.setattr(Tail, "_look_again", counted)
    writer, ids = bundled_server.client(), list[Any]()

    async def during(_: Any) -> None:
        ids.extend(writer.xadd("s", {"n": n}) for n in ("kept", "gone"))

    def until(seen: list[str]) -> bool:
        if len(ids) == 2 and "gone" in seen:
            writer.xdel("s", ids.pop())
            looks.clear()
        if len(ids) == 1 and len(looks) >= 3:
            ids.clear()
            writer.xadd("s", {"n": "last"})
        return "last" in seen

    assert follow(bundled_server, during, until) == ["kept", "gone", "last"]
    writer.close()


def test_a_stream_that_began_anew_is_followed(bundled_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("copyrisk.api.tail._LOOK_AGAIN_S", 0.05)

    async def during(writer: Any) -> None:
        writer.xadd("s", {"n": "old"})
        await asyncio.sleep(0.1)
        writer.delete("s")
        writer.xadd("s", {"n": "new"}, id="1-0")

    assert follow(bundled_server, during, lambda seen: "new" in seen)[-1] == "new"


# ---- the process


def test_a_loop_that_fails_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_AGAIN_S", 0.0)
    began: list[int] = []

    async def loop() -> None:
        began.append(len(began))
        if len(began) < 3:
            raise ZeroDivisionError("a fault of ours")
        await asyncio.Event().wait()

    async def use() -> None:
        async with serve._running(loop), asyncio.timeout(5):
            while len(began) < 3:
                await asyncio.sleep(0)

    asyncio.run(use())
    assert began == [0, 1, 2]


def test_a_certificate_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for path in (broken, tmp_path / "absent.pem"):
        chosen = ApiSettings(tls_certificate=str(path), tls_key=str(path))
        with pytest.raises(ConfigError) as refused:
            serve.config_of(chosen, Guard(make_app([]), body_bytes=1_000, seen=SEEN))
        assert refused.value.code == "tls_unusable"


@pytest.mark.slow
def test_the_process_ends_when_it_is_asked_to_and_tells_who_still_reads(bundled_server: Any, tmp_path: Path) -> None:
    key, public = ec.generate_private_key(ec.SECP256R1()), tmp_path / "keys.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    bearer = {"Authorization": f"Bearer {make_token(key, 'ann', ['orders:read'], ['*'], 60)}"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {"API_PORT": port, "API_SECRET": "s" * 40, "API_TOKEN_KEYS_FILE": public}
    with (
        process(bundled_server.url, "api", **environ) as running,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client,
    ):
        until(lambda: is_ready(client), 30.0)
        (desk,) = children_of(running.pid)
        with client.stream("GET", "/api/stream?topics=breaches", headers=bearer) as stream:
            pieces = stream.iter_text()
            assert "event: begin" in next(pieces)
            running.terminate()
            assert "server_stopping" in "".join(pieces)
        assert running.wait(15) == 0
        until(lambda: not Path(f"/proc/{desk}").exists(), 5.0)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:
        return False


def children_of(pid: int) -> list[int]:
    return [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]


# ---- the line


class Slow:
    """A server that answers commands only once so many have come, each with its number; or breaks then."""

    def __init__(self, wanted: int, *, breaks: int = 0) -> None:
        self.wanted, self.breaks, self.seen = wanted, breaks, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reading, come = hiredis.Reader(), 0
        while data := await reader.read(1 << 16):
            reading.feed(data)
            while (words := reading.gets()) is not False:
                if words[0].upper() in (b"HELLO", b"CLIENT"):
                    hello = words[0].upper() == b"HELLO"
                    writer.write(b"%1\r\n$5\r\nproto\r\n:3\r\n" if hello else b"+OK\r\n")
                    continue
                come += 1
                self.seen += 1
                if come % self.wanted == 0:
                    if self.breaks:
                        self.breaks -= 1
                        writer.close()
                        return
                    for number in range(come - self.wanted, come):
                        writer.write(b":%d\r\n" % number)
        writer.close()


def over_a_line(slow: Slow, ask: Callable[[Line], Any]) -> Any:
    """What comes of asking a slow server."""

    async def use() -> Any:
        server = await asyncio.start_server(slow.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = connect_async(
            f"redis://127.0.0.1:{port}", connect_timeout_ms=2_000, reply_timeout_ms=5_000, connections=2
        )
        line = Line(client)
        try:
            async with asyncio.timeout(20):
                return await ask(line)
        finally:
            await line.close()
            await client.aclose()
            server.close()

    return asyncio.run(use())


def test_requests_do_not_wait_for_the_replies_to_others() -> None:
    async def ask(line: Line) -> list[int]:
        replies = []
        for n in range(3):
            replies.append(line.send(pack("GET", str(n))).reply)
            await asyncio.sleep(0.02)
        return await asyncio.gather(*replies)

    assert over_a_line(Slow(3), ask) == [0, 1, 2]


def test_a_break_is_told_to_all_who_wait_and_to_nobody_who_comes_later() -> None:
    slow = Slow(2, breaks=1)

    async def ask(line: Line) -> list[Any]:
        lost = await asyncio.gather(*(line.call("GET", str(n)) for n in range(2)), return_exceptions=True)
        return [*map(type, lost), *await asyncio.gather(*(line.call("GET", str(n)) for n in range(4)))]

    assert over_a_line(slow, ask) == [Lost, Lost, 0, 1, 2, 3]
    assert slow.seen == 6  # nothing was sent twice
