"""Server-sent events: who follows what, and how it is sent."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from copyrisk import identifiers
from copyrisk.api.answers import ApiError
from copyrisk.api.callers import Caller
from copyrisk.api.context import Api
from copyrisk.api.documents import responses
from copyrisk.api.happenings import Position, Topic, parse_position, written
from copyrisk.api.replaying import End, ends, replay
from copyrisk.api.scopes import Scope
from copyrisk.api.subscriber import Subscriber, event_text
from copyrisk.errors import CopyriskError, StoreError
from copyrisk.identifiers import Account

log = structlog.get_logger(__name__)

#: Accounts that one stream may name.
ACCOUNTS_LIMIT = 1_000
_SCOPES = {
    Topic.PORTFOLIOS: Scope.ORDERS_READ,
    Topic.ORDERS: Scope.ORDERS_READ,
    Topic.BREACHES: Scope.ORDERS_READ,
    Topic.LIQUIDATIONS: Scope.ORDERS_READ,
    Topic.REPLICATIONS: Scope.COPY_READ,
    Topic.SUMMARY: Scope.RISK_READ,
}
_GONE, _STALLED = "gone", "stalled"  # nobody is there to be told
_HEARTBEAT = b": here\n\n"
_LAST_WORDS_S = 0.5
_RETRY_MS = 1_000

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long what may take.

    Attributes
    ----------
    heartbeat_s : float
        Something is sent at least so often.
    stall_s : float
        Who takes nothing for so long is let go.
    recheck_s : float
        How often it is asked whether the caller may still be here.
    """

    heartbeat_s: float = 15.0
    stall_s: float = 30.0
    recheck_s: float = 1.0


PACE = Pace()


def stream_routes(api: Api) -> APIRouter:
    """`GET /api/stream`."""
    router, pace = APIRouter(), PACE

    @router.get(
        "/api/stream",
        tags=["stream"],
        summary="Portfolios, breaches, liquidations, replications, orders and the summary as server-sent events",
        response_model=None,
        response_class=EventStream,
        status_code=200,
        responses={status: said for status, said in responses(None).items() if status != 200},
    )
    async def stream(
        request: Request,
        topics: Annotated[str, Query(description="comma-separated: " + ", ".join(Topic))] = "",
        accounts: Annotated[str | None, Query(description=f"`T:U,T:U`, at most {ACCOUNTS_LIMIT}")] = None,
        last_event_id: Annotated[str | None, Header(description="of the last event that was received")] = None,
    ) -> Response:
        first = topics.partition(",")[0]
        scope = _SCOPES[Topic(first)] if first in set(Topic) else Scope.ORDERS_READ
        caller = await api.access.admit(request, scope)
        wanted = _topics(topics, caller)
        since = None if last_event_id is None else parse_position(last_event_id)
        return EventStream(api, caller, _subscriber(caller, wanted, accounts), since, pace)

    return router


def _topics(said: str, caller: Caller) -> set[Topic]:
    if not said:
        raise ApiError(f"topics are one or more of {', '.join(Topic)}", code="missing_topics")
    found = set()
    for name in said.split(","):
        if name not in set(Topic):
            raise ApiError(f"no topic is called {name[:40]!a}; there is {', '.join(Topic)}", code="invalid_topics")
        topic = Topic(name)
        caller.check_scope(_SCOPES[topic])
        found.add(topic)
    if Topic.SUMMARY in found and not caller.accounts.is_all:
        raise ApiError("the summary is about all accounts", code="account_forbidden")
    return found


def _subscriber(caller: Caller, topics: Collection[Topic], said: str | None) -> Subscriber:
    grant = caller.accounts
    accounts: Collection[Account] | None = None
    if said is not None:
        names = said.split(",", ACCOUNTS_LIMIT)
        if len(names) > ACCOUNTS_LIMIT:
            raise ApiError(f"at most {ACCOUNTS_LIMIT} accounts", code="too_many_accounts", status=422)
        accounts = {identifiers.parse_account(name) for name in names}
        for account in accounts:
            caller.check_account(account)
    elif not grant.is_all and not grant.types:
        accounts = grant.accounts
    if Topic.PORTFOLIOS in topics and not (accounts and len(accounts) <= ACCOUNTS_LIMIT):
        raise ApiError("whose portfolios? accounts=T:U,T:U", code="missing_accounts")
    kind = "key" if caller.is_service else "token"
    return Subscriber(f"{kind} {caller.name}", topics, accounts, grant.covers, sees_all=grant.is_all)


class EventStream(Response):
    """The answer that goes on.

    Parameters
    ----------
    since : Position or None
        Up to where the reader was told before; `None`: it begins now.
    """

    media_type = "text/event-stream"

    def __init__(self, api: Api, caller: Caller, one: Subscriber, since: Position | None, pace: Pace) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._api, self._caller, self._one, self._since, self._pace = api, caller, one, since, pace
        self._limit: asyncio.Timeout | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Send until either side ends it.

        Raises
        ------
        ApiError, StoreUnavailable
            Before anything was sent.
        """
        one = self._one
        self._api.feeds.add(one)  # before it is looked where the streams end: what comes after that is queued
        helpers: list[asyncio.Task[None]] = []
        try:
            now = await ends(self._api.redis)
            here = Position(now[0].last, now[1].last)
            one.begin(self._since or here, here)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            helpers += (asyncio.create_task(self._until_gone(receive)), asyncio.create_task(self._until_over()))
            await self._pump(send, now)
        finally:
            self._api.feeds.remove(one)
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _pump(self, send: Send, now: tuple[End, End]) -> None:
        one = self._one
        try:
            await self._send(send, self._beginning())
            if self._since is not None:
                await self._catch_up(send, self._since, now)
            while not one.ended:
                piece = one.take()
                if not piece:
                    try:
                        async with asyncio.timeout(self._pace.heartbeat_s):
                            await one.wake.wait()
                            continue
                    except TimeoutError:
                        piece = _HEARTBEAT
                await self._send(send, piece)
            if one.ended != _GONE:
                await self._send(send, event_text("end", written({"code": one.ended})))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.warning("stream_stalled", caller=one.caller)
            one.end(_STALLED)
        except OSError:
            one.end(_GONE)

    async def _catch_up(self, send: Send, since: Position, now: tuple[End, End]) -> None:
        try:
            async for piece in replay(self._api.redis, self._one, since, now):
                if self._one.ended:
                    return
                if piece:
                    await self._send(send, piece)
        except StoreError as failure:
            self._one.end(failure.code)  # whoever comes back begins where it was

    async def _send(self, send: Send, piece: bytes) -> None:
        """Raises `TimeoutError` if nothing is taken for too long."""
        try:
            async with asyncio.timeout(_LAST_WORDS_S if self._one.ended else self._pace.stall_s) as self._limit:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            self._limit = None

    def _beginning(self) -> bytes:
        one = self._one
        accounts = None if one.accounts is None else sorted(map(str, one.accounts))
        said = {"topics": sorted(topic.value for topic in one.topics), "accounts": accounts}
        return b"retry: %d\n" % _RETRY_MS + event_text("begin", written(said), str(one.told))

    async def _until_gone(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except (OSError, CopyriskError):  # a body that is too large, for one
            pass
        self._one.end(_GONE)

    async def _until_over(self) -> None:
        """End it when the caller may not be here any more; when it is over, whatever is being sent must hurry."""
        while not self._one.ended:
            try:
                async with asyncio.timeout(self._pace.recheck_s):
                    await self._one.over.wait()
            except TimeoutError:
                await self._recheck()
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + _LAST_WORDS_S)

    async def _recheck(self) -> None:
        try:
            await self._api.access.recheck(self._caller)
        except StoreError:
            pass  # it cannot be told, and nothing new can be told to it either
        except ApiError as refusal:
            self._one.end(refusal.code)
