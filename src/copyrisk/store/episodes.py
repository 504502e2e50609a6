"""Warning episodes of accounts: kept by the server, so that a restart neither repeats a warning nor forgets one."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import structlog

from copyrisk import identifiers, keys
from copyrisk.errors import CopyriskError, StoreUnavailable
from copyrisk.identifiers import Account
from copyrisk.store.changes import Right
from copyrisk.store.functions import KEY_UNUSABLE, refused, text
from copyrisk.store.pipe import Pipe, pack

log = structlog.get_logger(__name__)

_AT_ONCE = 500
_LOOKED_AT = 100


@dataclass(frozen=True, slots=True)
class Episode:
    """An account below its warning level, or one that was not long ago.

    Attributes
    ----------
    number : int
        Of the account's episodes.
    is_open : bool
    began_ms : int
    warned_ms : int
        When the client was warned last, in whichever episode; 0: never.
    breaches : int
        How often the account became critical, in all its episodes.
    is_critical, is_latched : bool
        Whether it is being closed, and whether until it is flat.
    owed_cascade : str
        Event of a master whose cascade is to begin; empty for none.
    stored : bytes
        As the server has it; empty if it does not.
    """

    number: int = 0
    is_open: bool = False
    began_ms: int = 0
    warned_ms: int = 0
    breaches: int = 0
    is_critical: bool = False
    is_latched: bool = False
    owed_cascade: str = ""
    stored: bytes = field(default=b"", compare=False)


@dataclass(frozen=True, slots=True)
class EpisodeStep:
    """What an account's episode was and is from now on (`None`: none), and the notice its client gets, if any."""

    account: Account
    before: Episode | None
    episode: Episode | None
    notice: Mapping[str, str] | None = None


_NAMES = [one.name for one in fields(Episode) if one.name != "stored"]


class Episodes:
    """Reads and writes them."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def load(self) -> dict[Account, Episode]:
        """All that are known; of one that cannot be read that is reported, and it begins anew.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        (reply,) = self._pipe.exchange([pack("HGETALL", keys.EPISODES)])
        self._check(reply)
        flat = [word for item in reply.items() for word in item] if isinstance(reply, dict) else reply
        found = {}
        for name, stored in zip(flat[::2], flat[1::2], strict=True):
            try:
                account = identifiers.parse_account(text(name))
            except CopyriskError as fault:
                log.critical("episode_unreadable", account=text(name)[:80], reason=str(fault))
                continue
            try:
                found[account] = _parse(stored)
            except (ValueError, TypeError, LookupError, RecursionError) as fault:
                log.critical("episode_unreadable", account=str(account), reason=repr(fault)[:200])
                found[account] = Episode(stored=stored)
        return found

    def _check(self, reply: Any) -> None:
        failure = refused(reply)
        if failure is not None:
            if failure.code == KEY_UNUSABLE:
                self._set_aside()
            raise failure

    def _set_aside(self) -> None:
        """Let keys of ours that something else stands in not keep anybody from being closed."""
        for key, kind in ((keys.EPISODES, b"hash"), (keys.NOTICES, b"stream")):
            (found,) = self._pipe.ask(pack("TYPE", key))
            if found not in (kind, b"none"):
                aside = f"{key}:aside:{time.time_ns()}"
                log.critical("key_set_aside", key=key, found=text(found), aside=aside)
                self._pipe.ask(pack("RENAME", key, aside))

    def have_begun(self, events: Mapping[Account, str]) -> set[Account]:
        """Accounts of which something was closed for an event, by their own audit streams.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        replies = self._pipe.exchange(
            [pack("XREVRANGE", keys.audit(account), "+", "-", "COUNT", _LOOKED_AT) for account in events]
        )
        found = set()
        for (account, event), reply in zip(events.items(), replies, strict=True):
            failure = refused(reply)
            if failure is not None and failure.code != KEY_UNUSABLE:
                raise failure
            needle = f'"cause":{json.dumps(event)}'.encode()
            if failure is None and any(needle in words[1] for _, words in reply):
                found.add(account)
        return found

    def store(self, steps: Sequence[EpisodeStep], right: Right) -> None:
        """Store episodes, each with its notice in one act.

        Raises
        ------
        StoreError, StoreUnavailable
            `lease_lost`, `episodes_changed`: nothing of the last batch was stored.
        """
        for start in range(0, len(steps), _AT_ONCE):
            words: list[str | bytes | int] = []
            for step in steps[start : start + _AT_ONCE]:
                said = [word for item in (step.notice or {}).items() for word in item]
                before = step.before.stored if step.before else b""
                words += [str(step.account), before, _packed(step.episode), len(said), *said]
            named = (keys.lease(right.role), keys.EPISODES, keys.NOTICES)
            (reply,) = self._pipe.exchange([pack("FCALL", "copyrisk_episodes_v1", 3, *named, right.token, *words)])
            self._check(reply)
            if reply == b"changed":
                raise StoreUnavailable("another process has written episodes", code="episodes_changed")
            if reply != b"done":
                raise StoreUnavailable("another process has the lease", code="lease_lost")


def as_stored(episode: Episode) -> Episode:
    """An episode once it is stored."""
    return replace(episode, stored=_packed(episode).encode())


def _packed(episode: Episode | None) -> str:
    if episode is None:
        return ""
    return json.dumps({name: getattr(episode, name) for name in _NAMES}, separators=(",", ":"))


def _parse(stored: bytes) -> Episode:
    said: dict[str, Any] = json.loads(stored)
    whole = {name: _typed(said[name], int) for name in ("number", "began_ms", "warned_ms", "breaches")}
    flags = {name: _typed(said[name], bool) for name in ("is_open", "is_critical", "is_latched")}
    return Episode(**whole, **flags, owed_cascade=_typed(said.get("owed_cascade", ""), str), stored=stored)


def _typed(value: Any, wanted: type) -> Any:
    if type(value) is not wanted:
        raise ValueError(f"no {wanted.__name__}: {str(value)[:40]}")
    return value
