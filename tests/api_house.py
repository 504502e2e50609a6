"""The whole API for tests: served in a thread on a free port, against a real server, with callers that sign."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, TypeVar

import httpx
import uvicorn
import uvloop

from copyrisk import signing
from copyrisk.api.context import Api
from copyrisk.api.serve import application, config_of, listen, made
from copyrisk.commands import Kind
from copyrisk.roles import run_workers
from copyrisk.settings import Settings
from copyrisk.signing import MasterSecret
from copyrisk.store import library
from copyrisk.store.api_keys import KeyRecord, add_record
from copyrisk.store.pipe import Pipe
from copyrisk.vitals import Vitals
from tests.backoffice import now_ms
from tests.trading import Desk, settings_for, until

MASTER_SECRET = "a master secret that only tests know"
ALL_SCOPES = (
    *("orders:write", "orders:flow", "orders:read", "copy:write", "copy:read"),
    *("risk:read", "audit:read"),
)
_LIMIT_S = 20.0
SomeDesk = TypeVar("SomeDesk", bound=Desk)
_numbers = count(1)


def api_settings(url: str, **flags: object) -> Settings:
    """Settings by `section__key`, as of `settings_for`, with a secret and without the desk's book."""
    given = {"api__port": 0, "api__desk": False, "api__answer_timeout_ms": 5_000, **flags}
    settings = settings_for(url, **given)
    return replace(settings, api=replace(settings.api, secret=MASTER_SECRET))


@dataclass
class Caller:
    """A service with a key: signs what it sends."""

    house: "House"
    key_id: str
    secret: str
    client: httpx.Client

    def headers(self, method: str, path: str, body: bytes = b"", key: str = "", **more: Any) -> dict[str, str]:
        """The headers of one request."""
        said = signing.signed_headers(
            self.key_id, self.secret, method, path.encode(), body, idempotency_key=key, **more
        )
        return {**said, "Content-Type": "application/json"} if body else said

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        key: str | None = "",
        headers: Mapping[str, str | None] | None = None,
    ) -> httpx.Response:
        """The answer to a request; `body` is JSON, or bytes as they are; `key` empty: a new one, `None`: none."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        is_change = method != "GET" and key is not None
        chosen = (key or f"key-{next(_numbers)}") if is_change else ""
        said = self.headers(method, path, raw, chosen) | (headers or {})
        return self.client.request(
            method, path, content=raw, headers={name: value for name, value in said.items() if value is not None}
        )

    def post(self, path: str, body: object = None, key: str | None = "", **more: Any) -> httpx.Response:
        """A change."""
        return self.send("POST", path, body, key, **more)

    def get(self, path: str) -> httpx.Response:
        """What is known."""
        return self.send("GET", path)


@dataclass
class House:
    """An API that is being served."""

    desk: Desk
    settings: Settings
    url: str
    api: Api
    loop: asyncio.AbstractEventLoop
    clients: list[httpx.Client] = field(default_factory=list)

    def caller(self, *, scopes: tuple[str, ...] = ALL_SCOPES, accounts: tuple[str, ...] = ("*",)) -> Caller:
        """A new service."""
        master, key_id = MasterSecret(MASTER_SECRET.encode()), signing.new_key_id()
        pipe = Pipe(self.desk.new_client())
        add_record(pipe, KeyRecord(key_id, "test", scopes, accounts, now_ms()), master)
        pipe.close()
        return Caller(self, key_id, master.secret_of(key_id), self.client())

    def client(self) -> httpx.Client:
        """One that signs nothing."""
        made = httpx.Client(base_url=self.url, timeout=_LIMIT_S, verify=False, trust_env=False)  # reads no CAs
        self.clients.append(made)
        return made

    def close(self) -> None:
        """Have no socket left open."""
        for client in self.clients:
            client.close()


@contextmanager
def served(desk: Desk, *, seen: Vitals | None = None, **flags: object) -> Iterator[House]:
    """The API on the desk's server; nobody works there unless `working` has somebody do so."""
    settings, ready, stop = api_settings(desk.server.url, **flags), Future[tuple[str, Api, Any]](), threading.Event()
    thread = threading.Thread(target=_serve, args=(settings, desk, ready, stop, seen or Vitals()))
    thread.start()
    try:
        url, api, loop = ready.result(_LIMIT_S)
        house = House(desk, settings, url, api, loop)
        try:
            yield house
        finally:
            house.close()
    finally:
        stop.set()
        thread.join(_LIMIT_S)
    assert not thread.is_alive(), f"the API did not end: {asyncio.all_tasks(loop)}"


@contextmanager
def opened(make: Callable[[Any], SomeDesk], server: Any) -> Iterator[SomeDesk]:
    """A desk on a server that has the functions."""
    desk = make(server)
    try:
        library.load(desk.client)
        yield desk
    finally:
        desk.close()


@contextmanager
def served_to_all(server: Any) -> Iterator[House]:
    """The API for many tests: of its state nothing matters but what is on the server, which is emptied for each."""
    with opened(Desk, server) as desk, served(desk) as house:
        yield house


@contextmanager
def working(desk: Desk) -> Iterator[None]:
    """Workers in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=run_workers, args=(desk.new_client(), desk.settings, tuple(Kind), stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_LIMIT_S)


def _serve(
    settings: Settings, desk: Desk, ready: "Future[tuple[str, Api, Any]]", stop: threading.Event, seen: Vitals
) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings, desk, ready, stop, seen))
    except BaseException as failure:
        if ready.done():
            raise
        ready.set_exception(failure)


async def _run(
    settings: Settings, desk: Desk, ready: "Future[tuple[str, Api, Any]]", stop: threading.Event, seen: Vitals
) -> None:
    async with made(settings, desk.server.url, desk.new_client(), None, seen) as (api, tail):
        app = application(api, tail)
        listening = listen("127.0.0.1", 0)
        server = uvicorn.Server(config_of(settings.api, app))
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            assert not serving.done(), "the API did not start"
            await asyncio.sleep(0.001)
        port = listening.getsockname()[1]
        ready.set_result((f"http://127.0.0.1:{port}", api, asyncio.get_running_loop()))
        while not stop.is_set():
            await asyncio.sleep(0.005)
        api.feeds.end()
        server.should_exit = True
        await serving


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an answer that refuses, which has the shape of one."""
    said = answer.json()
    assert (said.keys(), said["success"]) == ({"success", "error_code", "message"}, False), said
    return answer.status_code, said["error_code"]


def data(answer: httpx.Response, status: int = 200) -> Any:
    """What an answer holds, which has the shape of one."""
    said = answer.json()
    assert answer.status_code == status, said
    assert (said.keys(), said["success"]) == ({"success", "message", "data"}, True), said
    return said["data"]


def until_sent(house: House, how_many: int) -> None:
    """Wait until so many commands wait for a worker."""
    until(lambda: house.desk.client.xlen("copyrisk:commands") == how_many, _LIMIT_S)
