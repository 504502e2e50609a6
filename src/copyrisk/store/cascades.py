"""Cascades as they are stored: from the frozen list to the summary, written by whoever has the lease.

One hash for each cascade:
  header       JSON: `master`, and `said`, what was known when it began
  started_ms   by the server's clock
  :F           where follower F stands (`cascade.standing_text`); a colon is no letter of an id
  summary, finished_ms   of one that has ended; kept for 30 days from then
"""

import json
from collections.abc import Mapping
from typing import Any

import structlog

from copyrisk import identifiers, keys
from copyrisk.cascade import Cascade, Standing, parse_standing, standing_text
from copyrisk.errors import InvalidId, StoreError, StoreUnavailable
from copyrisk.store.changes import RECORD_KEEP_MS, Right
from copyrisk.store.copy_states import mapping
from copyrisk.store.functions import KEY_UNUSABLE, refused, text
from copyrisk.store.pipe import Pipe, pack

log = structlog.get_logger(__name__)

_AT_ONCE = 500  # a function takes so many words at once
_LISTED = 10_000
_FIELDS = ("header", "started_ms", "summary", "finished_ms")
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError, InvalidId)


class Cascades:
    """Reads and writes them."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def begin(self, cascade: Cascade, right: Right) -> str:
        """Store a new cascade, whole or not at all; returns `begun`, `known` (its id is), or the id of one that runs.

        Raises
        ------
        StoreError, StoreUnavailable
            `lease_lost`; with any other code it may have been stored or not.
        """
        header = json.dumps({"master": cascade.master_id, "said": cascade.said}, separators=(",", ":"), default=str)
        said = (cascade.master_id, cascade.id, header, keys.cascade(""), *_words(cascade.standings))
        code, *more = self._call("copyrisk_cascade_begin_v1", right, cascade.id, *said)
        if code == "running":
            return text(more[0])
        if code == "begun":
            cascade.started_ms = int(more[0])
        return str(code)

    def note(self, cascade_id: str, standings: Mapping[str, Standing], right: Right) -> None:
        """Store where some followers stand.

        Raises
        ------
        StoreError, StoreUnavailable
            `lease_lost`, `cascade_gone`: nothing of it was stored, or only the first of many.
        """
        words = _words(standings)
        for start in range(0, len(words), 2 * _AT_ONCE):
            part = words[start : start + 2 * _AT_ONCE]
            if self._call("copyrisk_cascade_note_v1", right, cascade_id, *part)[0] == "gone":
                raise StoreError(f"the record of cascade {cascade_id} is gone", code="cascade_gone")

    def end(self, cascade_id: str, master_id: str, summary: Mapping[str, Any], right: Right) -> int:
        """Store that a cascade has ended; returns when, 0 if its record is gone.

        Raises
        ------
        StoreError, StoreUnavailable
            `lease_lost`.
        """
        said = (master_id, cascade_id, json.dumps(summary, separators=(",", ":")), RECORD_KEEP_MS, _LISTED)
        code, *more = self._call("copyrisk_cascade_end_v1", right, cascade_id, *said)
        return int(more[0]) if code == "done" else 0

    def forget(self, master_id: str, cascade_id: str, right: Right) -> None:
        """Let a cascade whose record is gone stand in nobody's way; raises as `end`."""
        named = (keys.lease(right.role), keys.CASCADES)
        (reply,) = self._pipe.exchange(
            [pack("FCALL", "copyrisk_cascade_forget_v1", 2, *named, right.token, master_id, cascade_id)]
        )
        self._judged(reply)

    def _call(self, function: str, right: Right, cascade_id: str, *said: str | int) -> list[Any]:
        """Call a function; its answer, the word first."""
        named = (keys.lease(right.role), keys.CASCADES, keys.cascade(cascade_id), keys.CASCADES_DONE)
        return self._judged(self._pipe.exchange([pack("FCALL", function, 4, *named, right.token, *said)])[0])

    def _judged(self, reply: Any) -> list[Any]:
        failure = refused(reply)
        if failure is not None:
            raise failure
        code = text(reply[0])
        if code == "lost":
            raise StoreUnavailable("another process has the lease", code="lease_lost")
        return [code, *reply[1:]]

    def running(self) -> dict[str, str]:
        """Ids of the cascades that are not ended, by master.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        return mapping(self._pipe.ask(pack("HGETALL", keys.CASCADES))[0])

    def finished(self, limit: int) -> list[str]:
        """Ids of the latest cascades that have ended, the last one first; raises as `running`."""
        (reply,) = self._pipe.ask(pack("ZRANGE", keys.CASCADES_DONE, 0, limit - 1, "REV"))
        return [text(one) for one in reply]

    def state_of(self, cascade_id: str) -> str:
        """`running`, `finished`, or empty if there is none of this id; raises as `load`.

        One that cannot be read was begun, and nobody can carry it on: `finished`. Who is critical now gets another.
        """
        try:
            known = self.load(cascade_id, is_full=False)
        except StoreError as failure:
            if failure.code != "cascade_unreadable":
                raise
            log.critical("cascade_unreadable", cascade=cascade_id, reason=str(failure))
            return "finished"
        return "" if known is None else "running" if known.summary is None else "finished"

    def load(self, cascade_id: str, *, is_full: bool = True) -> Cascade | None:
        """A cascade (unless `is_full`, without its followers), `None` if there is none.

        A follower whose standing cannot be read waits to be looked at, which is always right.

        Raises
        ------
        InvalidId, StoreError, StoreUnavailable
            `cascade_unreadable`: what is there is no cascade.
        """
        said = self._read(cascade_id, is_full=is_full)
        try:
            return _parse(cascade_id, said) if said else None
        except _UNREADABLE as fault:
            raise StoreError(f"cascade {cascade_id}: {fault!r}"[:200], code="cascade_unreadable") from None

    def load_running(self, master_id: str, cascade_id: str) -> Cascade | None:
        """One that runs, whatever its header says; `None` if its followers cannot be told. Raises as `running`."""
        try:
            identifiers.check_account_id(master_id)
            said = self._read(cascade_id, is_full=True)
        except (InvalidId, StoreError) as failure:
            if failure.code not in ("cascade_unreadable", "invalid_account_id", "invalid_cascade_id"):
                raise
            return None
        if not said:
            return None
        try:
            return _parse(cascade_id, said)
        except _UNREADABLE as fault:
            log.critical("cascade_unreadable", cascade=cascade_id, reason=repr(fault)[:200])
            started = {"header": json.dumps({"master": master_id, "said": {}}), "started_ms": "0"}
            return _parse(cascade_id, {name: one for name, one in said.items() if name[:1] == ":"} | started)

    def _read(self, cascade_id: str, *, is_full: bool) -> dict[str, str]:
        key = keys.cascade(identifiers.check_cascade_id(cascade_id))
        (reply,) = self._pipe.exchange([pack("HGETALL", key) if is_full else pack("HMGET", key, *_FIELDS)])
        failure = refused(reply)
        if failure is not None:
            is_own = failure.code == KEY_UNUSABLE
            raise StoreError(f"cascade {cascade_id}: {failure}", code="cascade_unreadable") if is_own else failure
        if is_full:
            return mapping(reply)
        return {name: text(value) for name, value in zip(_FIELDS, reply, strict=True) if value is not None}


def _words(standings: Mapping[str, Standing]) -> list[str]:
    return [word for name, one in standings.items() for word in (f":{name}", standing_text(one))]


def _parse(cascade_id: str, said: Mapping[str, str]) -> Cascade:
    """The cascade of a hash; raises what is in `_UNREADABLE`."""
    header = json.loads(said["header"])
    summary = dict(json.loads(said["summary"])) if "summary" in said else None
    master_id, facts = identifiers.check_account_id(header["master"]), dict(header["said"])
    started_ms, finished_ms = int(said["started_ms"]), int(said.get("finished_ms", 0))
    standings = {}
    for name, stored in said.items():
        if not name.startswith(":"):
            continue
        try:
            standings[name[1:]] = parse_standing(stored)
        except _UNREADABLE as fault:
            log.critical("standing_unreadable", cascade=cascade_id, follower=name[1:], reason=repr(fault)[:200])
            standings[name[1:]] = Standing()
    return Cascade(cascade_id, master_id, facts, started_ms, standings, summary, finished_ms)
