"""Changes of relationships that are asked for under an idempotency key: begun and answered once, as commands are.

The answer lies where the follower's commands have theirs, so a key names one thing, whatever kind of thing. Before an
act its key says that it was begun; the answer replaces that. Whoever finds it begun does the act again: it goes on
where it stopped, and what is done already stays as it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from copyrisk import identifiers, keys
from copyrisk.derived import derived_id
from copyrisk.errors import Refused, StoreError
from copyrisk.identifiers import Account
from copyrisk.store.changes import ANSWER_KEEP_MS, Cause, event_of, parse_answer
from copyrisk.store.functions import refused, text
from copyrisk.store.pipe import Pipe, pack

_BEGAN = "began"
#: The answer in place of what says that it was begun; another answer that is there holds, and is returned.
_END = """
local there = redis.call('GET', KEYS[1])
if there and there ~= ARGV[1] then return there end
redis.call('XLEN', KEYS[2])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[4])
return ''
"""
_DROP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True, slots=True)
class Act:
    """What is asked for.

    Attributes
    ----------
    key : str
        The client's idempotency key.
    said : mapping of str to str
        All that is asked; under the same key something else is another act.
    caller : str
        Who asks.
    """

    type: str
    account: Account
    key: str
    said: Mapping[str, Any]
    caller: str = ""
    is_again: bool = False

    @property
    def answer_key(self) -> str:
        """Where its answer is stored."""
        return keys.answer(self.account, f"key:{self.key}")

    @property
    def body(self) -> str:
        """Digest of all that it asks."""
        said = {"type": self.type, "account": str(self.account), **self.said}
        return derived_id("", json.dumps(said, sort_keys=True))

    @property
    def begun(self) -> str:
        """What says that it was begun."""
        return _json({"body": self.body, "event": {"event": _BEGAN, "type": self.type, "idempotency_key": self.key}})


@dataclass(frozen=True, slots=True)
class Ending:
    """How an act ends: its event, as JSON in answer and audit."""

    answer: str
    audit: str
    event: Mapping[str, str]


def begin(pipe: Pipe, act: Act) -> tuple[Act, dict[str, str] | None]:
    """Begin an act; returns it (`is_again` if it was begun before), and its answer if it has one.

    Raises
    ------
    InvalidId, Refused
        `invalid_idempotency_key`, `idempotency_conflict`, `answer_unreadable`; nothing was begun.
    StoreError, StoreUnavailable
    """
    identifiers.check_idempotency_key(act.key)
    (there,) = pipe.exchange([pack("SET", act.answer_key, act.begun, "NX", "GET", "PX", ANSWER_KEEP_MS)])
    _check(there)
    if there is None:
        return act, None
    if text(there) == act.begun:
        return replace(act, is_again=True), None
    return act, answered(act, text(there))


def ending_of(act: Act, code: str, message: str, data: Mapping[str, Any], *, ts_ms: int) -> Ending:
    """How it ends, with `ok` or the code of a refusal."""
    event = event_of(act.account, Cause("", act.type, client_key=act.key), "", ts_ms=ts_ms)
    event |= {"event_id": derived_id("act-", str(act.account), act.key), "code": code, "message": message}
    event |= {"event": "done" if code == "ok" else "refused", "data": _json(data)}
    return Ending(_json({"body": act.body, "event": event}), _json({**event, "caller": act.caller}), event)


def end(pipe: Pipe, act: Act, ending: Ending) -> dict[str, str]:
    """Store how an act ended; returns the event that holds: the first one.

    Raises
    ------
    Refused
        `idempotency_conflict`
    StoreError, StoreUnavailable
        It may be stored or not; the act may be asked for again.
    """
    words = (act.begun, ending.answer, ANSWER_KEEP_MS, ending.audit)
    (there,) = pipe.exchange([pack("EVAL", _END, 2, act.answer_key, keys.audit(act.account), *words)])
    _check(there)
    return answered(act, text(there)) if there else dict(ending.event)


def drop(pipe: Pipe, act: Act) -> None:
    """Forget that an act was begun that did nothing and may be tried again; raises as `end`."""
    (reply,) = pipe.exchange([pack("EVAL", _DROP, 1, act.answer_key, act.begun)])
    _check(reply)


def stored_answer(pipe: Pipe, account: Account, key: str) -> dict[str, str] | None:
    """The event that answered a key of an account's, command or act; `None`: none did (yet).

    Raises
    ------
    InvalidId, Refused
        `invalid_idempotency_key`, `answer_unreadable`.
    StoreError, StoreUnavailable
    """
    identifiers.check_idempotency_key(key)
    (there,) = pipe.exchange([pack("GET", keys.answer(account, f"key:{key}"))])
    _check(there)
    event = None if there is None else parse_answer(text(there))[1]
    return None if event is None or event.get("event") == _BEGAN else event


def answered(act: Act, there: str) -> dict[str, str]:
    """The event of a stored answer; `Refused` (`idempotency_conflict`, `answer_unreadable`) if it is another act's."""
    body, event = parse_answer(there)
    if body != act.body:
        raise Refused("another request had this idempotency key", code="idempotency_conflict")
    return event


def _json(said: Any) -> str:
    return json.dumps(said, separators=(",", ":"))


def _check(reply: Any) -> None:
    failure: StoreError | None = refused(reply)
    if failure is not None:
        raise failure
