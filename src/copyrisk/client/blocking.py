"""The client for programs without asyncio. It sends and waits; what, and what comes of it, is said elsewhere."""

import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator
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


class _Blocking(Generic[P, T]):
    """A method of `Client`: the description of a call, which is made when it is called."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self.describe, self.__doc__ = describe, describe.__doc__

    def __get__(self, client: "Client", owner: type | None = None) -> Callable[P, T]:
        def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return client.do(self.describe(*args, **kwargs))

        return update_wrapper(method, self.describe)


class Client:
    """Asks the API, and waits for its answers. Several threads may share one.

    Parameters
    ----------
    url : str
        `https://HOST` or `https://HOST:PORT`; `http://` only to this machine, unless `allow_plain_http`.
    credentials : Key or Token
    timeout_s : float
        Of each attempt: how long the server may say nothing. The API itself answers a change within
        `api.answer_timeout_ms`.
    retries : Retries
    tls : ssl.SSLContext or None
        `None`: certificates are checked against those that the system trusts.
    connections : int
        At most, streams among them.
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
        connections: int = 20,
    ) -> None:
        self._credentials, self._retries = credentials, retries or Retries()
        chosen = options(url, timeout_s, tls, connections, allow_plain_http=allow_plain_http)
        self._http = httpx.Client(**chosen)

    def do(self, call: Call[T]) -> T:
        """Carry out a call; a change again and again is one change, for its idempotency key is part of it.

        Raises
        ------
        ApiRefused, OutcomeUnknown, Unavailable, BadAnswer
        """
        doing = carry_out(call, self._credentials, self._retries)
        came: Received | Broken | None = None
        while True:
            try:
                step = doing.send(came)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Wait):
                time.sleep(step.seconds)
                came = None
            else:
                came = self._send(step)

    def _send(self, request: Send) -> Received | Broken:
        try:
            answer = self._http.request(
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
    ) -> "Stream":
        """Follow what happens; parameters as of `copyrisk.client.streaming.Feed`."""
        return Stream(self._http, Feed(self._credentials, topics, accounts, last_event_id, give_up_s))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    open_order = _Blocking(order_calls.open_order)
    close_order = _Blocking(order_calls.close_order)
    place_pending = _Blocking(order_calls.place_pending)
    modify_pending = _Blocking(order_calls.modify_pending)
    cancel_pending = _Blocking(order_calls.cancel_pending)
    set_stop_loss = _Blocking(order_calls.set_stop_loss)
    cancel_stop_loss = _Blocking(order_calls.cancel_stop_loss)
    set_take_profit = _Blocking(order_calls.set_take_profit)
    cancel_take_profit = _Blocking(order_calls.cancel_take_profit)
    open_master_order = _Blocking(order_calls.open_master_order)
    place_master_pending = _Blocking(order_calls.place_master_pending)
    close_master_order = _Blocking(order_calls.close_master_order)
    cancel_master_pending = _Blocking(order_calls.cancel_master_pending)
    follow = _Blocking(copy_calls.follow)
    change_settings = _Blocking(copy_calls.change_settings)
    pause = _Blocking(copy_calls.pause)
    resume = _Blocking(copy_calls.resume)
    unfollow = _Blocking(copy_calls.unfollow)
    relationship = _Blocking(copy_calls.relationship)
    followers = _Blocking(copy_calls.followers)
    relationships = _Blocking(copy_calls.relationships)
    check_relationships = _Blocking(copy_calls.check_relationships)
    outcome = _Blocking(read_calls.outcome)
    portfolio = _Blocking(read_calls.portfolio)
    orders = _Blocking(read_calls.orders)
    order = _Blocking(read_calls.order)
    history = _Blocking(read_calls.history)
    decision = _Blocking(read_calls.decision)
    cascades = _Blocking(read_calls.cascades)
    cascade = _Blocking(read_calls.cascade)
    audit = _Blocking(read_calls.audit)
    risk_summary = _Blocking(read_calls.risk_summary)
    ladder = _Blocking(read_calls.ladder)
    symbol_ladder = _Blocking(read_calls.symbol_ladder)
    what_if = _Blocking(read_calls.what_if)


class Stream:
    """What happens, as it happens: iterate over it, in a `with` block or until `close`; one thread.

    Attributes
    ----------
    last_event_id : str
        Up to where it was read: where another stream would go on.
    """

    def __init__(self, http: httpx.Client, feed: Feed) -> None:
        self._feed = feed
        self._events = _events(http, feed)

    @property
    def last_event_id(self) -> str:
        """Up to where it was read."""
        return self._feed.last_event_id

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Follow no longer."""
        self._events.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _events(http: httpx.Client, feed: Feed) -> Generator[Event, None, None]:
    while True:
        asked = feed.request()
        try:
            with http.stream(asked.method, asked.target, headers=asked.headers, timeout=STREAM_TIMEOUT) as answer:
                if feed.is_open(answer.status_code, answer.headers.get("content-type", "")):
                    for piece in answer.iter_bytes():
                        yield from feed.take(piece)
                    told = feed.lost("the server ended it")
                else:
                    told = feed.refused(received(answer, answer.read()))
        except (httpx.TransportError, httpx.DecodingError) as failure:
            told = feed.lost(broken(failure).reason)
        yield told
        time.sleep(feed.pause_s())
