"""What is done in threads: the store's synchronous calls, each thread with a connection of its own."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import redis

from copyrisk.api.answers import ApiError
from copyrisk.errors import StoreError
from copyrisk.store import library
from copyrisk.store.functions import FUNCTIONS_MISSING
from copyrisk.store.pipe import Pipe

if TYPE_CHECKING:
    from copyrisk.sql.database import Database

P = ParamSpec("P")
R = TypeVar("R")
#: How many calls may wait for each thread before others are refused.
_WAITING_EACH = 32


class Pool:
    """Threads that do what takes time.

    Attributes
    ----------
    database : Database or None
    """

    def __init__(self, client: redis.Redis, threads: int, database: "Database | None" = None) -> None:
        self._client, self._limit = client, threads * _WAITING_EACH
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="copyrisk-api")
        self._own = threading.local()
        self._pipes: list[Pipe] = []
        self._busy = 0
        self.database = database

    async def run(self, function: Callable[Concatenate[Pipe, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of a function that gets the thread's connection first.

        Raises
        ------
        ApiError
            `too_busy`
        CopyriskError
            What the function raises.
        """
        if self._busy >= self._limit:
            raise ApiError("too many requests are being worked on", code="too_busy", headers={"Retry-After": "1"})
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._call, function, args, kwargs)
        self._busy += 1
        work.add_done_callback(self._one_less)
        return await asyncio.shield(work)  # whoever asked may leave; what was begun is brought to its end

    def _one_less(self, _: "asyncio.Future[Any]") -> None:
        self._busy -= 1

    def _call(self, function: Callable[..., R], args: Any, kwargs: Any) -> R:
        try:
            return function(self._pipe(), *args, **kwargs)
        except StoreError as failure:
            if failure.code == FUNCTIONS_MISSING:
                self.load_functions()  # for the next one
            raise

    def load_functions(self) -> None:
        """Have the server hold the functions again that it has lost.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        library.load(self._client)

    def _pipe(self) -> Pipe:
        pipe: Pipe | None = getattr(self._own, "pipe", None)
        if pipe is None:
            pipe = self._own.pipe = Pipe(self._client)
            self._pipes.append(pipe)
        return pipe

    def close(self) -> None:
        """Wait for what is being done, and drop the connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for pipe in self._pipes:
            pipe.close()
