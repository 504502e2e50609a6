"""Changes of relationships, each asked for under a key: begun, written into the audit trail, done, answered.

Runs in a thread, with the thread's connection. A process may end at any step; the same request again goes on:

| what was done when it ended | what the same request does |
|---|---|
| nothing, or the key says that it was begun | all of it |
| the audit trail says it | all of it, with a second entry of the trail |
| some or all of the relationship's steps | the others; those that are done stay as they are (`store.relations`) |
| the answer was stored | gives that answer, and nothing else |

`follow` alone could find its own work and take it for another's (`already_following`): if its key says that it was
begun and everything is as it asks for, it is done.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from copyrisk import crash
from copyrisk.api.answers import ApiError
from copyrisk.auditing import record_act
from copyrisk.copying import CopyDefaults
from copyrisk.errors import Refused, TryLater
from copyrisk.following import CopyStatus, FollowRequest, Outcome, check_request
from copyrisk.store.act_answers import Act, begin, drop, end, ending_of
from copyrisk.store.enrolment import follow
from copyrisk.store.follower_settings import SettingsChange, change_settings
from copyrisk.store.pipe import Pipe
from copyrisk.store.relation_views import relations_of
from copyrisk.store.relations import master_of, pause, resume, unfollow

if TYPE_CHECKING:
    from copyrisk.sql.database import Database

Event = dict[str, str]
#: What of a request says who somebody is.
IDENTITY = "identity"
_MISSING, _FOLLOWS_ALREADY = "account_missing", "already_following"
#: What may pass by itself: it is not what the request is answered from now on.
_MAY_PASS = frozenset(
    (
        *("database_unavailable", "database_unfit", "database_error", "database_newer", "row_unreadable"),
        *("history_pending", "key_unusable", "try_later"),
    )
)


@dataclass(frozen=True, slots=True)
class Following:
    """Who is to follow whom."""

    master: str
    request: FollowRequest


def begin_following(pipe: Pipe, act: Act, database: "Database | None", wanted: Following) -> Event:
    """Have a follower copy a master; returns the event that answers.

    Raises
    ------
    ApiError, InvalidId, Refused, TryLater
        `account_missing`, `idempotency_conflict`, and what may pass: nothing is stored under the key.
    StoreError, StoreUnavailable
        Any of it may have been done; it may be asked for again.
    """

    def work(act: Act) -> Outcome:
        (outcome,) = follow(pipe, wanted.master, [wanted.request], database=database)
        if outcome.code == _FOLLOWS_ALREADY and act.is_again and _is_as_asked(pipe, wanted):
            return Outcome(outcome.follower)
        return outcome

    return _carry_out(pipe, act, work, CopyStatus.ACTIVE, wanted.master)


def _is_as_asked(pipe: Pipe, wanted: Following) -> bool:
    candidate = check_request(wanted.request, wanted.master)
    (there,) = relations_of(pipe, [candidate.follower])
    return there.is_active and there.master == wanted.master and candidate.settings.items() <= there.config.items()


def pause_copying(pipe: Pipe, act: Act, database: "Database | None") -> Event:
    """Have a follower get no new copies; returns and raises as `begin_following`."""
    return _carry_out(pipe, act, lambda it: pause(pipe, [it.account.id], database=database)[0], CopyStatus.PAUSED)


def resume_copying(pipe: Pipe, act: Act, database: "Database | None") -> Event:
    """Have a paused follower copy again; returns and raises as `begin_following`."""
    return _carry_out(pipe, act, lambda it: resume(pipe, [it.account.id], database=database)[0], CopyStatus.ACTIVE)


def end_following(pipe: Pipe, act: Act, database: "Database | None", *, keep_open: bool) -> Event:
    """End a relationship; returns and raises as `begin_following`."""

    def work(it: Act) -> Outcome:
        return unfollow(pipe, [it.account.id], keep_open=keep_open, database=database)[0]

    return _carry_out(pipe, act, work, CopyStatus.STOPPED)


def set_copying(pipe: Pipe, act: Act, change: SettingsChange, default: CopyDefaults) -> Event:
    """Change a follower's copy settings; returns and raises as `begin_following`."""
    act, answer = begin(pipe, act)
    if answer is not None:
        return answer
    _record(pipe, act)
    try:
        return change_settings(pipe, act, change, default)
    except Refused as refusal:
        if refusal.code != _MISSING:
            raise
        raise _missing(pipe, act, str(refusal)) from None


def _carry_out(
    pipe: Pipe, act: Act, work: Callable[[Act], Outcome], status: CopyStatus, master: str | None = None
) -> Event:
    act, answer = begin(pipe, act)
    if answer is not None:
        return answer
    _record(pipe, act)
    master = master or master_of(pipe, act.account.id)
    outcome = work(act)
    crash.reach("acts.done")
    if outcome.code == _MISSING:
        raise _missing(pipe, act, outcome.message)
    if outcome.code in _MAY_PASS:
        raise TryLater(outcome.message or outcome.code, code=outcome.code)
    code = "ok" if outcome.is_done else outcome.code
    said = _said(act, outcome, status, master) if outcome.is_done else {}
    return end(pipe, act, ending_of(act, code, outcome.message, said, ts_ms=time.time_ns() // 1_000_000))


def _missing(pipe: Pipe, act: Act, message: str) -> ApiError:
    """Nothing is kept of accounts that there are not."""
    drop(pipe, act)
    return ApiError(message, code=_MISSING, status=404)


def _record(pipe: Pipe, act: Act) -> None:
    """Write down what is about to be done, and for whom."""
    crash.reach("acts.begun")
    known = {name: value for name, value in act.said.items() if name != IDENTITY}  # the trail is for ever
    said = {"accounts": [str(act.account)], "idempotency_key": act.key, **known}
    record_act(pipe, act.type, user=act.caller, **said)
    crash.reach("acts.recorded")


def _said(act: Act, outcome: Outcome, status: CopyStatus, master: str | None) -> Mapping[str, Any]:
    return {
        "follower_id": act.account.id,
        "copy_status": status.value,
        "master_id": master,
        "open_copies": list(outcome.open_copies),
        "behind": outcome.behind,
    }
