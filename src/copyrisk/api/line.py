"""One connection to the server that many requests share: what is asked at the same moment goes out together."""

import asyncio
import contextlib
from typing import Any, NamedTuple

import redis
import redis.asyncio

from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.store.connection import store_error
from copyrisk.store.functions import FUNCTIONS_MISSING, NO_FUNCTION
from copyrisk.store.pipe import pack


class Mark(NamedTuple):
    """A key that is set with what a request does, and for how long; if it is there, nothing is done."""

    key: str
    keep_ms: int


class Lost(StoreUnavailable):
    """The connection broke when a request was under way: it may have been carried out or not."""


class Asked:
    """A packed command and its reply to come; `is_sent` from when the server may know it."""

    __slots__ = ("is_sent", "packed", "reply")

    def __init__(self, packed: bytes) -> None:
        self.packed, self.is_sent = packed, False
        self.reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answer(self, reply: Any) -> None:
        """Hand over the reply, or why there is none."""
        if self.reply.done():  # whoever asked has left
            return
        if isinstance(reply, StoreError):
            self.reply.set_exception(reply)
            self.reply.exception()  # it may be that nobody looks
        else:
            self.reply.set_result(reply)


class Line:
    """One connection for many who ask: what came together is sent together, and nothing is sent twice."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self._pool = client.connection_pool
        self._connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
        self._is_replica = False
        self._waiting: list[Asked] = []
        self._at_work: asyncio.Task[None] | None = None

    def send(self, packed: bytes) -> Asked:
        """Have a command sent; not if its `reply` was cancelled by then."""
        request = Asked(packed)
        self._waiting.append(request)
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.create_task(self._work())
        return request

    async def call(self, *words: str | bytes | int) -> Any:
        """The reply to a command.

        Raises
        ------
        StoreError, StoreUnavailable
            It may have been carried out or not.
        """
        return await self.send(pack(*words)).reply

    async def close(self) -> None:
        """End what is under way, and disconnect."""
        if self._at_work is not None:
            self._at_work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._at_work
        with contextlib.suppress(redis.RedisError, OSError):
            await self._connection.disconnect()

    async def _work(self) -> None:
        while self._waiting:
            try:
                await self._pool.ensure_connection(self._connection)
                failure = None
            except Exception as refusal:
                failure = store_error(refusal)
                await self._connection.disconnect(nowait=True)  # greeted by half: the next one begins anew
            batch, self._waiting = self._waiting, []
            asked = [request for request in batch if not request.reply.done()]
            if failure is None:
                await self._exchange(asked)
            else:
                for request in asked:
                    request.answer(failure)

    async def _exchange(self, asked: list[Asked]) -> None:
        due = iter(asked)
        try:
            for request in asked:
                request.is_sent = True
            await self._connection.send_packed_command([request.packed for request in asked], check_health=False)
            for request in due:
                request.answer(await self._reply())
            if self._is_replica:  # the next one finds the new master
                self._is_replica = False
                await self._connection.disconnect(nowait=True)
        except Exception as failure:  # whatever it is: nobody else would tell those who wait
            lost = Lost(f"the connection broke: {str(failure)[:200]}", code="store_unavailable")
            for request in asked:
                request.answer(lost)
            await self._connection.disconnect(nowait=True)

    async def _reply(self) -> Any:
        """The next reply; a refusal is one as well: nothing was done."""
        try:
            return await self._connection.read_response()
        except (redis.ResponseError, redis.BusyLoadingError, redis.AuthenticationError) as refusal:
            self._is_replica |= isinstance(refusal, redis.exceptions.ReadOnlyError)
            if NO_FUNCTION in str(refusal):
                return StoreError("the server has lost its functions", code=FUNCTIONS_MISSING)
            return store_error(refusal)
