"""Writing changed orders and booked amounts to the database: from the history stream, each exactly once.

Entries are acknowledged after the database has them; it knows by version and entry id what it has already. Those
that it cannot take as it is now stay where they are, and hold up no others.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from copyrisk import crash, keys, vitals
from copyrisk.errors import Refused
from copyrisk.store.pipe import Pipe
from copyrisk.store.streams import Consumer, Entry, consumer_name, keep_consuming
from copyrisk.vitals import Vitals

log = structlog.get_logger(__name__)

_GROUP = "database"
_BATCH, _WAIT_MS = 500, 500
#: Code of an entry that comes again.
_TRY_LATER = "try_later"


class History(Protocol):
    """Where history is written."""

    def write_history(self, entries: Sequence[Mapping[str, str]]) -> list[str | None]:
        """Write entries; of each `None`, `try_later`, or the code of its refusal. Raises `StoreError` for all."""


class Recorder:
    """Takes the history stream to the database.

    Parameters
    ----------
    retry_ms : int
        Entries that were handed out so long ago and are not acknowledged are taken up again, whoever had them.
    seen : Vitals or None
        Where entries are counted.
    """

    def __init__(self, pipe: Pipe, history: History, *, retry_ms: int = 2_000, seen: Vitals | None = None) -> None:
        name = consumer_name()
        self._consumer = Consumer(pipe, _GROUP, name, (keys.HISTORY,))
        self._history, self._retry_ms, self._vitals = history, retry_ms, seen or Vitals()
        self._sweep_s = 0.0

    def run(self, stop: threading.Event) -> None:
        """Write until `stop` is set; a store or database that fails is waited for."""
        step, retry_ms = (lambda: self.step(_WAIT_MS)), self._retry_ms
        keep_consuming(self._consumer, step, stop, retry_ms=retry_ms, seen=self._vitals)

    def step(self, wait_ms: int) -> int:
        """Write what is there, waiting so long for the first entry; returns how many are done with."""
        done = 0
        if time.monotonic() >= self._sweep_s:
            done = self._write(self._consumer.take_over(self._retry_ms, _BATCH))
            if not done:  # as long as old ones can be written there may be more
                self._sweep_s = time.monotonic() + self._retry_ms / 1000.0
        return done + self._write(self._consumer.read(_BATCH, 1 if done else wait_ms))

    def _write(self, entries: list[Entry]) -> int:
        if not entries:
            return 0
        crash.reach("recorder.taken")
        codes = self._history.write_history([entry.fields for entry in entries])
        crash.reach("recorder.written")
        written: list[Entry] = []
        for entry, code in zip(entries, codes, strict=True):
            if code is None:
                written.append(entry)
            elif code != _TRY_LATER:
                log.critical("dead_letter", code=code, stream=entry.stream, entry=entry.id)
                self._consumer.bury(entry, Refused("the database cannot take the entry", code=code))
                self._vitals.count(vitals.BURIED, code)
        self._consumer.acknowledge(written)
        later = codes.count(_TRY_LATER)
        parts = {"written": len(written), "later": later, "buried": len(codes) - len(written) - later}
        for result, count in parts.items():
            self._vitals.count(vitals.HISTORY, result, by=count)
        if later:
            log.warning("history_waits", entries=later, oldest=entries[codes.index(_TRY_LATER)].id)
        return len(entries) - later
