"""Following streams: every entry that is appended from now on is handed on, once and in order."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import redis.asyncio
import structlog

from copyrisk.api.answers import fault_text
from copyrisk.api.line import Line
from copyrisk.errors import StoreError

log = structlog.get_logger(__name__)

#: Takes the stream, the entry's id and its fields.
Taker = Callable[[str, str, Mapping[str, str]], None]
_AT_ONCE = 200
_RETRY_S = 0.2
_LOOK_AGAIN_S = 5.0


class Tail:
    """Reads some streams over a connection of its own, whose replies are texts.

    Where it stands is kept over an outage: what was appended meanwhile is handed on afterwards, as far as the streams
    still hold it.

    Attributes
    ----------
    is_up : bool
        Whether the last read was answered.
    """

    def __init__(self, client: "redis.asyncio.Redis", takers: Mapping[str, Taker], *, block_ms: int) -> None:
        self._line, self._takers, self._block_ms = Line(client), takers, block_ms
        self._ids: dict[str, str] = {}
        self.is_up = False

    async def start(self) -> None:
        """Begin at the streams' ends.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        self._ids = {stream: await self._last(stream) for stream in self._takers}
        self.is_up = True

    async def run(self) -> None:
        """Hand on what comes, until cancelled."""
        try:
            await self._follow()
        finally:
            self.is_up = False

    async def close(self) -> None:
        """Drop the connection."""
        await self._line.close()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        looked_s = loop.time()
        while True:
            try:
                if not self._ids:
                    await self.start()
                how = ("COUNT", _AT_ONCE, "BLOCK", self._block_ms)
                found = await self._line.call("XREAD", *how, "STREAMS", *self._ids, *self._ids.values())
                if not self.is_up:
                    log.info("tail_goes_on")
                self.is_up = True
                self._hand_on(found or {})
                if loop.time() - looked_s > _LOOK_AGAIN_S:
                    looked_s = loop.time()
                    await self._look_again()
            except StoreError as failure:
                if self.is_up:
                    log.error("tail_waits", reason=str(failure))
                self.is_up = False
                await asyncio.sleep(_RETRY_S)

    def _hand_on(self, found: Any) -> None:
        for stream, entries in found.items():
            taker = self._takers[stream]
            for entry_id, words in entries:
                self._ids[stream] = entry_id
                fields = dict(zip(words[::2], words[1::2], strict=True)) if words else {}
                try:
                    taker(stream, entry_id, fields)
                except Exception as fault:  # one entry must not end the others' answers
                    log.critical("entry_not_taken", stream=stream, entry=entry_id, fault=fault_text(fault))

    async def _look_again(self) -> None:
        """Begin anew where a stream was deleted and started over with lower ids."""
        for stream, known in list(self._ids.items()):
            last = await self._last(stream)
            if _parts(last) < _parts(known):
                log.warning("stream_began_anew", stream=stream, known=known, last=last)
                self._ids[stream] = "0-0"

    async def _last(self, stream: str) -> str:
        """The id that was given out last; that of an entry which was taken away since, too."""
        try:
            said = await self._line.call("XINFO", "STREAM", stream)
        except StoreError as refusal:
            if "no such key" not in str(refusal).lower():
                raise
            return "0-0"
        return str(said["last-generated-id"])


def _parts(entry_id: str) -> tuple[int, int]:
    first, _, second = entry_id.partition("-")
    return int(first), int(second or 0)
