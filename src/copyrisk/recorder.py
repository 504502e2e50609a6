"""Writing changed orders and booked amounts to the database: from the history stream, each exactly once.

Entries are acknowledged after the database has them; it knows by version and entry id what it has already.
"""

import os
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from copyrisk import crash, keys
from copyrisk.errors import Refused, StoreError
from copyrisk.store.pipe import Pipe
from copyrisk.store.streams import Consumer, Entry

log = structlog.get_logger(__name__)

_GROUP = "database"
_BATCH, _WAIT_MS, _RETRY_MS = 500, 500, 2_000


class History(Protocol):
    """Where history is written."""

    def write_history(self, entries: Sequence[Mapping[str, str]]) -> list[str | None]:
        """Write entries; of each `None`, or the code of its refusal. Raises `StoreError` if nothing can be written."""


class Recorder:
    """Takes the history stream to the database."""

    def __init__(self, pipe: Pipe, history: History) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._consumer = Consumer(pipe, _GROUP, name, (keys.HISTORY,))
        self._history = history

    def run(self, stop: threading.Event) -> None:
        """Write until `stop` is set; a store or database that fails is waited for."""
        joined = False
        while not stop.is_set():
            try:
                if not joined:
                    self._consumer.join()
                    joined = True
                self.step(_WAIT_MS)
            except StoreError as failure:
                log.error("recorder_waits", code=failure.code, reason=str(failure))
                joined = False
                stop.wait(_RETRY_MS / 1000.0)

    def step(self, wait_ms: int) -> int:
        """Write what is there, waiting so long for the first entry; returns how many entries."""
        entries = self._consumer.take_over(_RETRY_MS, _BATCH) or self._consumer.read(_BATCH, wait_ms)
        if not entries:
            return 0
        crash.reach("recorder.taken")
        codes = self._history.write_history([entry.fields for entry in entries])
        crash.reach("recorder.written")
        written: list[Entry] = []
        for entry, code in zip(entries, codes, strict=True):
            if code is None:
                written.append(entry)
            else:
                log.critical("dead_letter", code=code, stream=entry.stream, entry=entry.id)
                self._consumer.bury(entry, Refused("the database cannot take the entry", code=code))
        self._consumer.acknowledge(written)
        return len(entries)
