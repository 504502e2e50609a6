"""One connection to the server that many requests share: what is asked at the same moment goes out together."""

import asyncio
import contextlib
from collections import deque
from typing import Any, NamedTuple

import redis
import redis.asyncio

from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.store.connection import store_error
from copyrisk.store.functions import FUNCTIONS_MISSING, NO_FUNCTION
from copyrisk.store.pipe import pack

_STEP_S = 0.1


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
    """One connection for many who ask: each request goes out at once, replies come in the same order.

    Nothing is sent twice. When the connection breaks, all who wait for a reply are told that it is lost.
    """

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self._pool = client.connection_pool
        self._connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
        self._is_replica = False
        self._waiting: list[Asked] = []
        self._due: deque[Asked] = deque()
        self._breaks = 0
        self._writing: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None

    def send(self, packed: bytes) -> Asked:
        """Have a command sent; not if its `reply` was cancelled by then."""
        request = Asked(packed)
        self._waiting.append(request)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
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
        for task in (self._writing, self._reading):
            while task is not None and not task.done():  # what the client library waits for can swallow it
                task.cancel()
                await asyncio.wait([task], timeout=_STEP_S)
        with contextlib.suppress(redis.RedisError, OSError):
            await self._connection.disconnect()

    # ---- out

    async def _write(self) -> None:
        """Send what waits, together what came together, without waiting for the replies to what was sent before."""
        while self._waiting:
            failure = await self._connect()
            batch, self._waiting = self._waiting, []
            asked = [request for request in batch if not request.reply.done()]
            if failure is not None:
                for request in asked:
                    request.answer(failure)
            elif asked:
                await self._send(asked)

    async def _connect(self) -> StoreError | None:
        """Be connected, to the master; or why not."""
        if self._is_replica and self._reading is not None:
            await asyncio.wait([self._reading])  # whoever is due is refused as well; then somewhere else
        if self._due:
            return None  # looking at the connection now would take replies for something else
        try:
            if self._is_replica:
                self._is_replica = False
                await self._connection.disconnect(nowait=True)
            await self._pool.ensure_connection(self._connection)
        except Exception as refusal:
            await self._connection.disconnect(nowait=True)  # greeted by half: the next one begins anew
            return store_error(refusal)
        return None

    async def _send(self, asked: list[Asked]) -> None:
        breaks = self._breaks
        for request in asked:
            request.is_sent = True
        self._due.extend(asked)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        try:
            await self._connection.send_packed_command([request.packed for request in asked], check_health=False)
        except Exception as failure:
            if self._breaks == breaks:
                await self._break(failure)
        if self._breaks != breaks:  # it may have been sent anew, and what comes is nobody's reply
            await self._connection.disconnect(nowait=True)

    # ---- in

    async def _read(self) -> None:
        """Take replies as long as some are due on this connection."""
        breaks = self._breaks
        while self._due and self._breaks == breaks:
            try:
                reply = await self._reply()
            except Exception as failure:  # whatever it is: nobody else would tell those who wait
                if self._breaks == breaks:
                    await self._break(failure)
                return
            if self._breaks == breaks:
                self._due.popleft().answer(reply)

    async def _break(self, failure: Exception) -> None:
        """Tell all who wait for a reply that none comes."""
        self._breaks += 1
        lost = Lost(f"the connection broke: {str(failure)[:200]}", code="store_unavailable")
        while self._due:
            self._due.popleft().answer(lost)
        reading = self._reading
        if reading is not None and reading is not asyncio.current_task():
            reading.cancel()
            self._reading = None
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
