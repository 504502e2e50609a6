"""The desk: keeps the process of the desk's book going, and asks it."""

import asyncio
import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import structlog

from copyrisk import _launcher
from copyrisk.api.answers import ApiError
from copyrisk.api.desk_book import BookOptions
from copyrisk.api.desk_process import ANSWER, FRAME_LIMIT, HEADER, LENGTH, REFUSAL, SUMMARY
from copyrisk.settings import ENVIRONMENT_PREFIX, Settings
from copyrisk.terms import StopOutMode

log = structlog.get_logger(__name__)

#: How long a question may take, and how many may wait.
ASK_S, WAITING_LIMIT = 5.0, 32
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
#: A process that sends no summary for so long, besides its period, hangs. Reading everything at first takes a while.
_SILENT_S = 60.0
_REAP_S = 2.0
_UNAVAILABLE = "desk_unavailable"


@dataclass(frozen=True, slots=True)
class _Said:
    """What the process answered, and until when it may be passed on."""

    kind: int
    body: bytes
    good_until_s: float

    @property
    def is_good(self) -> bool:
        return time.monotonic() <= self.good_until_s


class Desk:
    """Asks the desk's book.

    Attributes
    ----------
    latest : bytes or None
        The last summary, as JSON; `None` while there is none, or the last one is too old to be told.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self._options, self._refresh_s = options_of(settings, url), settings.api.desk_refresh_ms / 1e3
        self._keeper: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[_Said]] = {}
        self._number = self._serial = 0
        self._summary: _Said | None = None
        self._news = asyncio.Condition()

    @property
    def latest(self) -> bytes | None:
        """The last summary."""
        return self._summary.body if self._summary is not None and self._summary.is_good else None

    @property
    def is_up(self) -> bool:
        """Whether there is a summary to be told."""
        return self.latest is not None

    @property
    def pid(self) -> int | None:
        """Of the process; `None` while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process, and start it again whenever it ends, until `stop`."""
        self._keeper = asyncio.create_task(self._keep(), name="desk")

    async def stop(self) -> None:
        """End the process."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None

    async def summary(self) -> bytes:
        """The last summary, as JSON.

        Raises
        ------
        ApiError
            `desk_unavailable`
        """
        latest = self.latest
        if latest is None:
            raise ApiError("the desk's figures are not there (yet)", code=_UNAVAILABLE)
        return latest

    async def next(self, after: int) -> tuple[int, bytes]:
        """The latest summary as soon as its number is above `after`, and its number; to begin with, `after` is 0."""
        async with self._news:
            while self._serial <= after or (latest := self.latest) is None:
                await self._news.wait()
            return self._serial, latest

    async def ask(self, what: str, **arguments: Any) -> bytes:
        """The answer to a question (`DeskBook.answer`), as JSON.

        Raises
        ------
        ApiError
            `desk_unavailable`, `too_busy`, `book_stale`, and what the question's own function refuses.
        """
        if self._writer is None:
            raise ApiError("the desk's figures are not there (yet)", code=_UNAVAILABLE)
        if len(self._asked) >= WAITING_LIMIT:
            raise ApiError("too many ask the desk at once", code="too_busy", headers={"Retry-After": "1"})
        self._number += 1
        number, answer = self._number, asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            request = json.dumps({"id": number, "what": what, "arguments": arguments}).encode()
            self._writer.write(LENGTH.pack(len(request)) + request)
            async with asyncio.timeout(ASK_S):
                said: _Said = await answer
        except TimeoutError:
            raise ApiError("the desk did not answer in time", code=_UNAVAILABLE) from None
        finally:
            self._asked.pop(number, None)
        if said.kind == REFUSAL:
            refused = json.loads(said.body)
            raise ApiError(refused["message"], code=refused["code"], status=refused["status"])
        if not said.is_good:
            raise ApiError("the figures are too old to be told", code="book_stale")
        return said.body

    # ---- the process

    async def _keep(self) -> None:
        pause_s = _PAUSE_S
        while True:
            began_s = time.monotonic()
            try:
                await self._follow()
            except (OSError, EOFError, TimeoutError) as failure:
                log.error("desk_ended", reason=repr(failure), code=None if self._process is None else self._end())
            except Exception:  # the desk must not stay away for a fault of ours
                log.exception("desk_failed")
            finally:
                self._end()
            pause_s = _PAUSE_S if time.monotonic() - began_s > _LONGEST_PAUSE_S else min(2 * pause_s, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def _follow(self) -> None:
        """Start the process and take what it says, until it ends."""
        ours, its = socket.socketpair()
        try:
            with its:
                self._process = _started(its)
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        stored = pickle.dumps(self._options)
        self._writer.write(LENGTH.pack(len(stored)) + stored)
        while True:
            async with asyncio.timeout(_SILENT_S + self._refresh_s):
                length, kind, number, good_until_s = HEADER.unpack(await reader.readexactly(HEADER.size))
                if length > FRAME_LIMIT or kind not in (SUMMARY, ANSWER, REFUSAL):
                    raise OSError("what the desk's process says makes no sense")
                said = _Said(kind, await reader.readexactly(length), good_until_s)
            if kind == SUMMARY:
                async with self._news:
                    self._summary, self._serial = said, self._serial + 1
                    self._news.notify_all()
            elif (waiting := self._asked.get(number)) is not None and not waiting.done():
                waiting.set_result(said)

    def _end(self) -> int | None:
        """End the process, if it has not; nobody waits for it any more. Returns its exit code."""
        process, self._process, self._summary = self._process, None, None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ApiError("the desk's process has ended", code=_UNAVAILABLE))
        if process is None:
            return None
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_REAP_S)
        return None


def _started(its: socket.socket) -> "subprocess.Popen[bytes]":
    """The process, which ends with the thread that starts it, and is told no setting that it does not need."""
    launcher = [sys.executable, "-IS", _launcher.__file__, str(os.getpid())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return subprocess.Popen(
        [*launcher, sys.executable, "-m", "copyrisk.api.desk_process"],
        stdin=its.fileno(),
        stdout=subprocess.DEVNULL,
        env=environment,
    )


def options_of(settings: Settings, url: str) -> BookOptions:
    """What the process must know of the settings, and the server's URL."""
    chosen = settings.api
    return BookOptions(
        url,
        settings.redis.connect_timeout_ms,
        settings.redis.reply_timeout_ms,
        settings.rules(),
        settings.hours(),
        settings.lots(),
        StopOutMode(settings.cutoff.stop_out),
        chosen.desk_refresh_ms,
        chosen.desk_max_age_ms,
        settings.log.format,
        settings.log.level,
    )
