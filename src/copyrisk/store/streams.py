"""Streams with consumer groups: new entries, entries of consumers that died, entries that fail for good."""

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis
import structlog

from copyrisk import keys
from copyrisk.errors import CopyriskError, StoreError
from copyrisk.store.connection import OF_ONE_KEY, store_error
from copyrisk.store.effects import add_request
from copyrisk.store.functions import FUNCTIONS_MISSING, texts
from copyrisk.store.pipe import Pipe, pack
from copyrisk.vitals import Vitals

log = structlog.get_logger(__name__)

_MESSAGE_CHARS = 500
_GONE_MS = 86_400_000
_CLAIMED_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stream, and how often it has been handed out."""

    stream: str
    id: str
    fields: dict[str, str]
    deliveries: int = 1


class Consumer:
    """One member of a group that reads some streams."""

    def __init__(self, pipe: Pipe, group: str, name: str, streams: Sequence[str]) -> None:
        self._pipe, self._group, self._name = pipe, group, name
        self.streams = self._wanted = tuple(streams)
        self._cursors = dict.fromkeys(streams, "0-0")

    @property
    def group(self) -> str:
        """The group it is a member of."""
        return self._group

    def join(self) -> None:
        """Make the groups where they are missing; they start at the beginning of their streams.

        A key that is no stream, or may not be used, is left out: the others are read.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        requests = [pack("XGROUP", "CREATE", stream, self._group, "0", "MKSTREAM") for stream in self._wanted]
        usable = []
        for stream, reply in zip(self._wanted, self._pipe.exchange(requests), strict=True):
            if not isinstance(reply, Exception) or str(reply).startswith("BUSYGROUP"):
                usable.append(stream)
            elif str(reply).startswith(OF_ONE_KEY):
                log.critical("stream_not_read", stream=stream, reason=str(reply))
            else:
                raise store_error(redis.ResponseError(str(reply)))
        if not usable:
            raise StoreError("none of the streams can be read", code="no_stream")
        self.streams = tuple(usable)

    def leave(self) -> None:
        """Take the name out of the groups, and the names of others that died long ago; never one with open entries.

        What a consumer was handed and has not acknowledged would go with its name.
        """
        for stream in self.streams:
            (reply,) = self._pipe.exchange([pack("XINFO", "CONSUMERS", stream, self._group)])
            consumers = [item if isinstance(item, dict) else _paired(item) for item in self._checked(reply)]
            gone = [
                item[b"name"]
                for item in consumers
                if item[b"pending"] == 0 and (item[b"name"] == self._name.encode() or item[b"idle"] > _GONE_MS)
            ]
            for answer in self._pipe.exchange(
                [pack("XGROUP", "DELCONSUMER", stream, self._group, name) for name in gone]
            ):
                self._checked(answer)

    def read(self, count: int, wait_ms: int) -> list[Entry]:
        """New entries of all streams, waiting so long for the first of them (0: not at all); empty if none came.

        Raises
        ------
        StoreError, StoreUnavailable
            `no_group`: the server has lost the group; `join` makes it anew.
        """
        newest = [">"] * len(self.streams)
        group = ("XREADGROUP", "GROUP", self._group, self._name, "COUNT", count)
        block = ("BLOCK", wait_ms) if wait_ms else ()  # 0 would be for ever
        (reply,) = self._pipe.exchange([pack(*group, *block, "STREAMS", *self.streams, *newest)])
        answer = self._checked(reply)
        pairs = answer.items() if isinstance(answer, dict) else answer or ()
        return [self._entry(stream.decode(), *entry) for stream, entries in pairs for entry in entries]

    def take_over(self, idle_ms: int, count: int) -> list[Entry]:
        """Entries that somebody was handed and has not acknowledged for so long, whoever it was."""
        found: list[Entry] = []
        for stream in self.streams:
            claim = pack(
                *("XAUTOCLAIM", stream, self._group, self._name, idle_ms, self._cursors[stream], "COUNT", count)
            )
            (reply,) = self._pipe.exchange([claim])
            answer = self._checked(reply)
            self._cursors[stream] = answer[0].decode()
            entries = [self._entry(stream, *entry) for entry in answer[1] if entry[1] is not None]
            if entries:
                found += self._with_deliveries(stream, entries)
        return found

    def take_over_all(self) -> list[Entry]:
        """Everything that anybody was handed and has not acknowledged, in the order of their ids.

        For who alone may read the streams: nobody else is at work on them.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        found: list[Entry] = []
        for stream in self.streams:
            cursor = "0-0"
            while True:
                claim = ("XAUTOCLAIM", stream, self._group, self._name, 0, cursor, "COUNT", _CLAIMED_AT_ONCE)
                (reply,) = self._pipe.exchange([pack(*claim)])
                answer = self._checked(reply)
                found += [self._entry(stream, *entry) for entry in answer[1] if entry[1] is not None]
                cursor = answer[0].decode()
                if cursor == "0-0":
                    break
        return sorted(found, key=lambda entry: tuple(map(int, entry.id.split("-"))))

    def _with_deliveries(self, stream: str, entries: list[Entry]) -> list[Entry]:
        bounds = ("XPENDING", stream, self._group, entries[0].id, entries[-1].id, 10 * len(entries), self._name)
        (reply,) = self._pipe.exchange([pack(*bounds)])
        deliveries = {row[0].decode(): int(row[3]) for row in self._checked(reply)}
        return [Entry(stream, entry.id, entry.fields, deliveries.get(entry.id, 1)) for entry in entries]

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Be done with entries: they leave the group and the stream."""
        if entries:
            for reply in self._pipe.exchange([request for entry in entries for request in self.done(entry)]):
                self._checked(reply)

    def done(self, entry: Entry) -> tuple[bytes, bytes]:
        """The requests that acknowledge an entry."""
        return pack("XACK", entry.stream, self._group, entry.id), pack("XDEL", entry.stream, entry.id)

    def bury(self, entry: Entry, failure: CopyriskError) -> None:
        """Put an entry that fails again and again where people see it, and be done with it."""
        letter = {
            "stream": entry.stream,
            "entry_id": entry.id,
            "code": failure.code,
            "reason": str(failure)[:_MESSAGE_CHARS],
            "deliveries": str(entry.deliveries),
            "fields": json.dumps(entry.fields),
        }
        for reply in self._pipe.exchange([add_request(keys.DEAD_LETTERS, letter), *self.done(entry)]):
            self._checked(reply)

    def _entry(self, stream: str, entry_id: bytes, words: Sequence[bytes]) -> Entry:
        return Entry(stream, entry_id.decode(), texts(words))

    def _checked(self, reply: Any) -> Any:
        if not isinstance(reply, Exception):
            return reply
        failure = store_error(redis.ResponseError(str(reply)))
        if str(reply).startswith(("NOGROUP", *OF_ONE_KEY)):
            failure.code = "no_group"
        if str(reply).startswith("CROSSSLOT"):
            failure = StoreError("several streams cannot be read at once on a cluster", code="server_is_cluster")
        raise failure


def consumer_name() -> str:
    """A name that no other process has or had."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def keep_consuming(
    consumer: Consumer, step: Callable[[], object], stop: threading.Event, *, retry_ms: int, seen: Vitals | None = None
) -> None:
    """Take step after step until `stop` is set, then leave the group; a store that fails is waited for.

    Raises
    ------
    StoreError
        `functions_missing`, which waiting does not mend; nothing is noted of it.
    """
    joined, seen = False, seen or Vitals()
    while not stop.is_set():
        try:
            if not joined:
                consumer.join()
                seen.reads(consumer.group, consumer.streams)
                joined = True
            step()
            seen.step_done()
        except StoreError as failure:
            log.error("consumer_waits", code=failure.code, reason=str(failure))
            if failure.code == FUNCTIONS_MISSING:
                raise
            seen.step_failed(failure.code)
            joined = False
            stop.wait(retry_ms / 1000.0)
    with contextlib.suppress(StoreError):
        consumer.leave()


def _paired(flat: Sequence[Any]) -> dict[Any, Any]:
    return {flat[i]: flat[i + 1] for i in range(0, len(flat), 2)}
