"""The client for asyncio. It sends and waits; what, and what comes of it, is said elsewhere."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from functools import update_wrapper
from typing import Generic, ParamSpec, TypeVar

import httpx

from copyrisk.client import copy_calls, order_calls, read_calls
from copyrisk.client.credentials import Credentials
from copyrisk.client.describing import Call
from copyrisk.client.events import Event
from copyrisk.client.streaming import Feed
from copyrisk.client.trying import Broken, Received, Retries, Send, Wait, carry_out
from copyrisk.client.wiring import STREAM_TIMEOUT, broken, options, received
from copyrisk.identifiers import Account

P = ParamSpec("P")
T = TypeVar("T")


class _Awaited(Generic[P, T]):
    """A method of `AsyncClient`: the description of a call, which is made when it is awaited."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self.describe, self.__doc__ = describe, describe.__doc__

    def __get__(self, client: "AsyncClient", owner: type | None = None) -> Callable[P, Awaitable[T]]:
        def method(*args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
            return client.do(self.describe(*args, **kwargs))

        return update_wrapper(method, self.describe)


class AsyncClient:
    """The same for asyncio; parameters as of `Client`.

    A task that is cancelled while it waits for a change does not know what became of it: give the change an
    `idempotency_key` of your own then.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        *,
        timeout_s: float = 5.0,
        retries: Retries | None = None,
        tls: ssl.SSLContext | None = None,
        allow_plain_http: bool = False,
        connections: int = 100,
    ) -> None:
        self._credentials, self._retries = credentials, retries or Retries()
        chosen = options(url, timeout_s, tls, connections, allow_plain_http=allow_plain_http)
        self._http = httpx.AsyncClient(**chosen)

    async def do(self, call: Call[T]) -> T:
        """Carry out a call, as `Client.do`."""
        doing = carry_out(call, self._credentials, self._retries)
        came: Received | Broken | None = None
        while True:
            try:
                step = doing.send(came)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
                came = None
            else:
                came = await self._send(step)

    async def _send(self, request: Send) -> Received | Broken:
        try:
            answer = await self._http.request(
                request.method, request.target, headers=request.headers, content=request.body or None
            )
        except (httpx.TransportError, httpx.DecodingError) as failure:
            return broken(failure)
        return received(answer, answer.content)

    def stream(
        self,
        topics: Iterable[str],
        accounts: Iterable[str | Account] | None = None,
        *,
        last_event_id: str = "",
        give_up_s: float | None = None,
    ) -> "AsyncStream":
        """Follow what happens; parameters as of `copyrisk.client.streaming.Feed`."""
        return AsyncStream(self._http, Feed(self._credentials, topics, accounts, last_event_id, give_up_s))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    open_order = _Awaited(order_calls.open_order)
    close_order = _Awaited(order_calls.close_order)
    place_pending = _Awaited(order_calls.place_pending)
    modify_pending = _Awaited(order_calls.modify_pending)
    cancel_pending = _Awaited(order_calls.cancel_pending)
    set_stop_loss = _Awaited(order_calls.set_stop_loss)
    cancel_stop_loss = _Awaited(order_calls.cancel_stop_loss)
    set_take_profit = _Awaited(order_calls.set_take_profit)
    cancel_take_profit = _Awaited(order_calls.cancel_take_profit)
    open_master_order = _Awaited(order_calls.open_master_order)
    place_master_pending = _Awaited(order_calls.place_master_pending)
    close_master_order = _Awaited(order_calls.close_master_order)
    cancel_master_pending = _Awaited(order_calls.cancel_master_pending)
    follow = _Awaited(copy_calls.follow)
    change_settings = _Awaited(copy_calls.change_settings)
    pause = _Awaited(copy_calls.pause)
    resume = _Awaited(copy_calls.resume)
    unfollow = _Awaited(copy_calls.unfollow)
    relationship = _Awaited(copy_calls.relationship)
    followers = _Awaited(copy_calls.followers)
    relationships = _Awaited(copy_calls.relationships)
    check_relationships = _Awaited(copy_calls.check_relationships)
    outcome = _Awaited(read_calls.outcome)
    portfolio = _Awaited(read_calls.portfolio)
    orders = _Awaited(read_calls.orders)
    order = _Awaited(read_calls.order)
    history = _Awaited(read_calls.history)
    decision = _Awaited(read_calls.decision)
    cascades = _Awaited(read_calls.cascades)
    cascade = _Awaited(read_calls.cascade)
    audit = _Awaited(read_calls.audit)
    risk_summary = _Awaited(read_calls.risk_summary)
    ladder = _Awaited(read_calls.ladder)
    symbol_ladder = _Awaited(read_calls.symbol_ladder)
    what_if = _Awaited(read_calls.what_if)


class AsyncStream:
    """What happens, as it happens: iterate over it, in an `async with` block or until `close`; one task.

    Attributes
    ----------
    last_event_id : str
        Up to where it was read: where another stream would go on.
    """

    def __init__(self, http: httpx.AsyncClient, feed: Feed) -> None:
        self._feed = feed
        self._events = _events(http, feed)

    @property
    def last_event_id(self) -> str:
        """Up to where it was read."""
        return self._feed.last_event_id

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def close(self) -> None:
        """Follow no longer."""
        await self._events.aclose()

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _events(http: httpx.AsyncClient, feed: Feed) -> AsyncGenerator[Event, None]:
    while True:
        asked = feed.request()
        try:
            async with http.stream(asked.method, asked.target, headers=asked.headers, timeout=STREAM_TIMEOUT) as answer:
                if feed.is_open(answer.status_code, answer.headers.get("content-type", "")):
                    async for piece in answer.aiter_bytes():
                        for event in feed.take(piece):
                            yield event
                    told = feed.lost("the server ended it")
                else:
                    told = feed.refused(received(answer, await answer.aread()))
        except (httpx.TransportError, httpx.DecodingError) as failure:
            told = feed.lost(broken(failure).reason)
        yield told
        await asyncio.sleep(feed.pause_s())
