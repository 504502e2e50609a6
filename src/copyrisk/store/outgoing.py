"""Warnings on their way out: who may try to deliver one now, and what came of it.

A hash for each warning, with fields for each sink (`copyrisk_notice_begin` and `_end` in `functions.lua`). That an
attempt begins is stored before it does, so of several notifiers one tries at a time, and one that is restarted does not
repeat what was delivered. Of an attempt whose end was never stored nobody knows whether it succeeded.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from copyrisk import keys
from copyrisk.errors import CopyriskError
from copyrisk.notify import Client, Notice
from copyrisk.store.effects import add_request
from copyrisk.store.functions import is_unusable, text, usable
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.streams import Entry

GROUP = "notifier"
_KEEP_MS = 604_800_000
_REASON_CHARS = 500


class Claim(NamedTuple):
    """What an attempt is told that wants to begin.

    Attributes
    ----------
    state : str
        `yours`; or `over`: it was delivered or given up; `wait`: not now; `old`; `unusable`: its hash holds something
        else.
    attempt : int
        Which one it is, from 1.
    is_repeat : bool
        Whether the end of the one before is not known.
    wait_ms : int
    client : Client or None
        `None`: cannot be read.
    """

    state: str
    attempt: int = 0
    is_repeat: bool = False
    wait_ms: int = 0
    client: Client | None = None


class Ended(NamedTuple):
    """An attempt that is over.

    Attributes
    ----------
    state : str
        `sent`, `waiting`, `failed`.
    failure : CopyriskError or None
        Why it is not `sent`.
    """

    notice: Notice
    entry: Entry
    sink: str
    attempt: int
    state: str
    failure: CopyriskError | None = None
    wait_ms: int = 0


class Outgoing:
    """The state of warnings.

    Parameters
    ----------
    owner : str
        The name of this process among the consumers.
    takeover_ms : int
        How long others leave an attempt alone that does not end.
    """

    def __init__(self, pipe: Pipe, owner: str, *, takeover_ms: int, max_age_ms: int) -> None:
        self._pipe, self._owner = pipe, owner
        self._takeover_ms, self._max_age_ms = takeover_ms, max_age_ms

    def begin(self, wanted: Sequence[tuple[Notice, Entry, str]]) -> list[Claim]:
        """Claim an attempt for each notice, entry and sink; whose attempt it is must make it now.

        Raises
        ------
        StoreError, StoreUnavailable
            Nothing may be delivered.
        """
        requests = []
        for notice, entry, sink in wanted:
            said = (sink, self._owner, self._takeover_ms, entry.id, notice.ts_ms, self._max_age_ms, _KEEP_MS)
            requests.append(pack("FCALL", "copyrisk_notice_begin_v1", 1, keys.notice(notice.key), *said))
            requests.append(pack("HMGET", keys.config(notice.account), "account_number", "email"))
        replies = self._pipe.exchange(requests)
        return [_claim(replies[i], replies[i + 1]) for i in range(0, len(replies), 2)]

    def end(self, ended: Sequence[Ended]) -> list[str]:
        """Store what came of attempts; what failed for good is put where people see it, before it is marked.

        Returns
        -------
        list of str
            `done`; `over`: it had been delivered before; `other`: another notifier has it by now; `unusable`.

        Raises
        ------
        StoreError, StoreUnavailable
            Any of it may be stored or not; the same again is harmless but for a second letter.
        """
        self._asked([self._letter(one) for one in ended if one.state == "failed"])
        requests = []
        for one in ended:
            code = "" if one.failure is None else one.failure.code
            said = (one.sink, self._owner, one.attempt, one.state, one.wait_ms, code, _KEEP_MS)
            requests.append(pack("FCALL", "copyrisk_notice_end_v1", 1, keys.notice(one.notice.key), *said))
        return ["unusable" if reply is None else text(reply) for reply in self._asked(requests)]

    def keep(self, entries: Sequence[Entry]) -> set[str]:
        """Say that these entries are still worked at; returns the ids of those that nobody is done with yet.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        if not entries:
            return set()
        ids = [entry.id for entry in entries]
        (reply,) = self._asked([pack("XCLAIM", keys.NOTICES, GROUP, self._owner, 0, *ids, "JUSTID")])
        return {text(entry_id) for entry_id in reply or ()}

    def _letter(self, one: Ended) -> bytes:
        """A dead letter of one sink: put back, it concerns only that one."""
        assert one.failure is not None
        letter = {
            "stream": one.entry.stream,
            "entry_id": one.entry.id,
            "code": one.failure.code,
            "reason": f"{one.sink}, attempt {one.attempt}: {one.failure}"[:_REASON_CHARS],
            "deliveries": str(one.attempt),
            "fields": json.dumps({**one.entry.fields, "sinks": one.sink}),
        }
        return add_request(keys.DEAD_LETTERS, letter)

    def _asked(self, requests: Sequence[bytes]) -> list[Any]:
        """The replies; `None` where a key cannot be used. Any other refusal is raised."""
        return [usable(reply) for reply in self._pipe.exchange(requests)]


def _claim(reply: Any, config: Any) -> Claim:
    if is_unusable(reply):
        return Claim("unusable")
    state = text(reply[0])
    if state == "wait":
        return Claim(state, wait_ms=int(reply[1]))
    if state != "yours":
        return Claim(state)
    client = None if is_unusable(config) else Client(text(config[0]), text(config[1]))
    return Claim(state, int(reply[1]), text(reply[2]) == "sending", client=client)
