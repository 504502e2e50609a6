"""Relationships between masters and followers: read, paused, resumed and ended, for thousands at once.

A relationship is `provider_id` of the follower (the claim: whoever sets it first has the follower), a member in the
set of its master's active followers, and `copy_status` in its configuration. These keys lie in different slots, so each
step is of one key, and a process may die after each. Nothing that is half done copies:

| step of `enrolment.follow` | a crash after it leaves |
|---|---|
| a leftover `copy_status` becomes `stopped` | no relationship |
| `provider_id` claimed | a claim, and a follower that does not copy |
| configuration made, or settings put into it; `stopped` | the same |
| row in the database | the same, in the database, too |
| first portfolio | the same |
| into the master's set | a member that does not copy |
| `copy_status` becomes `active` | the relationship |

`follow` again goes on where it stopped; the check (`store.relation_check`) ends it. The others go the other way:

| step of `pause` and `unfollow` | a crash after it leaves |
|---|---|
| `copy_status` becomes `paused` or `stopped` | a member that does not copy |
| out of the master's set | a claim, and a follower that does not copy |
| row in the database | paused; of `unfollow` a claim that is still to be given up |
| `unfollow` gives up the claim | no relationship |

Either again, or the check, goes on. `resume` tells the database first, then the set, then `copy_status`.
A paused follower keeps its master but is in no set: who reads only the set must not open for it, and closes go to its
copies, wherever they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from copyrisk import crash, keys
from copyrisk.agreement import FollowerRow
from copyrisk.errors import InvalidId, Refused
from copyrisk.following import COPY_STATUS, CopyStatus, Outcome, account_of, check_follower, check_master, status_word
from copyrisk.store.functions import refused, text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.relation_steps import (
    Backing,
    Batch,
    give_up_request,
    is_account_id,
    join_request,
    leave_request,
    portions,
    scan,
    status_request,
    write_rows,
)
from copyrisk.terms import OrderStatus

_COPY_FIELDS = ("order_status", "execution_status", "master_order_id")
_FINISHED = (OrderStatus.CLOSED, OrderStatus.CANCELLED, OrderStatus.REJECTED, OrderStatus.SKIPPED)
_ACTIVE, _PAUSED, _STOPPED = CopyStatus.ACTIVE, CopyStatus.PAUSED, CopyStatus.STOPPED


def followers_of(pipe: Pipe, master: str) -> list[str]:
    """The followers that copy a master now, sorted; paused ones are not among them.

    Raises
    ------
    Refused, InvalidId, StoreError, StoreUnavailable
    """
    (reply,) = pipe.exchange([pack("SMEMBERS", keys.active_followers(check_master(master)))])
    fault = refused(reply)
    if fault is not None:
        raise fault
    return sorted(map(text, reply))


def masters_of(pipe: Pipe, followers: Sequence[str]) -> dict[str, str]:
    """The masters of those that have one, paused followers included. Raises as `followers_of`."""
    found: dict[str, str] = {}
    for some in portions(map(check_follower, followers)):
        answers = Batch(pipe).ask({follower: [pack("GET", keys.provider_of(follower))] for follower in some})
        found |= {follower: text(claim) for follower, (claim,) in answers.items() if claim is not None}
    return found


def master_of(pipe: Pipe, follower: str) -> str | None:
    """The master of a follower, `None` if it has none. Raises as `followers_of`."""
    return next(iter(masters_of(pipe, [follower]).values()), None)


def related_to(pipe: Pipe, master: str) -> list[str]:
    """All followers of a master, paused ones too, sorted; goes through the whole database. Raises as `followers_of`."""
    wanted = check_master(master)
    names = (text(keys.PROVIDER_OF.inside(key)) for key in scan(pipe, keys.PROVIDER_OF.pattern))
    found = masters_of(pipe, [name for name in names if is_account_id(name)])
    return sorted(follower for follower, master_id in found.items() if master_id == wanted)


@dataclass(frozen=True, slots=True)
class _Standing:
    """A follower's claim and `copy_status` (empty: none)."""

    master: str
    has_config: bool
    status: str
    open_copies: tuple[str, ...] = ()


def pause(pipe: Pipe, followers: Sequence[str], *, database: Backing | None = None) -> list[Outcome]:
    """Have followers get no new copies; they keep their master. Paused ones stay so.

    Returns
    -------
    list of Outcome
        One for each: `done`, `not_following`, `account_missing`, `invalid_account_id`, `not_a_follower`,
        `master_invalid` (to be repaired first), `key_unusable`.

    Raises
    ------
    StoreError, StoreUnavailable
        Any of it may have been done; it may be asked for again.
    """

    def steps(batch: Batch, some: list[str]) -> None:
        standing = _related(batch, some)
        there = list(batch.ask({follower: [status_request(follower, CopyStatus.PAUSED)] for follower in standing}))
        crash.reach("relations.paused")
        left = _leave(batch, {follower: standing[follower].master for follower in there})
        rows = [FollowerRow(follower, standing[follower].master, CopyStatus.PAUSED) for follower in left]
        _note(batch, left, write_rows(database, rows))
        crash.reach("relations.recorded")

    return _each(pipe, followers, steps)


def resume(pipe: Pipe, followers: Sequence[str], *, database: Backing | None = None) -> list[Outcome]:
    """Have paused followers copy again. Those that do stay so.

    Returns
    -------
    list of Outcome
        As `pause`; and `not_paused`: its `copy_status` is none; what the database answers (`database_unavailable`,
        `row_refused`): it must not say `paused` of one that copies.

    Raises
    ------
    StoreError, StoreUnavailable
        Any of it may have been done; it may be asked for again.
    """

    def steps(batch: Batch, some: list[str]) -> None:
        standing = _related(batch, some)
        for follower in [name for name, found in standing.items() if found.status not in (_PAUSED, _ACTIVE)]:
            status = standing.pop(follower).status
            batch.refuse(follower, Refused(f"its copy_status is {status[:40]!a}, not paused", code="not_paused"))
        rows = [FollowerRow(follower, found.master, CopyStatus.ACTIVE) for follower, found in standing.items()]
        for follower, code in write_rows(database, rows).items():
            del standing[follower]
            batch.refuse(follower, Refused("the database does not take it", code=code))
        crash.reach("relations.recorded")
        joined = batch.ask({name: [join_request(name, found.master)] for name, found in standing.items()})
        crash.reach("relations.joined")
        active = batch.ask({follower: [status_request(follower, CopyStatus.ACTIVE)] for follower in joined})
        _note(batch, active, {})
        crash.reach("relations.resumed")

    return _each(pipe, followers, steps)


def unfollow(
    pipe: Pipe, followers: Sequence[str], *, keep_open: bool = False, database: Backing | None = None
) -> list[Outcome]:
    """End relationships, with all that is kept of them. Those that are ended already stay so.

    Parameters
    ----------
    keep_open : bool
        End them although followers have open copies; these stay open, and the outcomes name them.

    Returns
    -------
    list of Outcome
        As `pause`; and `has_open_copies`, `orders_unreadable`: an order cannot be read, and might be a copy.

    Raises
    ------
    StoreError, StoreUnavailable
        Any of it may have been done; it may be asked for again.
    """

    def steps(batch: Batch, some: list[str]) -> None:
        standing = _with_copies(batch, _related(batch, some, is_ending=True), keep_open=keep_open)
        told = {name: [status_request(name, _STOPPED)] if found.has_config else [] for name, found in standing.items()}
        claimed = {follower: standing[follower].master for follower in batch.ask(told)}
        crash.reach("relations.stopped")
        left = _leave(batch, claimed)
        behind = write_rows(database, [FollowerRow(follower, None, CopyStatus.STOPPED) for follower in left])
        crash.reach("relations.recorded")
        gone = batch.ask({name: [give_up_request(name, claimed[name])] if claimed[name] else [] for name in left})
        _note(batch, gone, behind)
        for follower in gone:
            copies = standing[follower].open_copies
            batch.outcomes[follower] = replace(batch.outcomes[follower], open_copies=copies)
        crash.reach("relations.given_up")

    return _each(pipe, followers, steps)


def _each(pipe: Pipe, followers: Sequence[str], steps: Callable[[Batch, list[str]], None]) -> list[Outcome]:
    """Carry out steps for the ids that are none others than followers'; an outcome for each, in order."""
    ids: dict[str, str] = {}
    batch = Batch(pipe)
    for given in followers:
        try:
            ids[given] = check_follower(given)
        except (InvalidId, Refused) as refusal:
            batch.refuse(given, refusal)
    for some in portions(ids.values()):
        steps(batch, some)
    return [batch.outcomes[ids.get(given, given)] for given in followers]


def _related(batch: Batch, some: Sequence[str], *, is_ending: bool = False) -> dict[str, _Standing]:
    """Those that have a master; of the others, while ending, those that do not know that they have none."""
    wanted = {
        follower: [
            pack("GET", keys.provider_of(follower)),
            pack("EXISTS", keys.config(account_of(follower))),
            pack("HGET", keys.config(account_of(follower)), COPY_STATUS),
        ]
        for follower in some
    }
    found: dict[str, _Standing] = {}
    for follower, (claim, exists, status) in batch.ask(wanted).items():
        standing = _Standing(text(claim), bool(exists), status_word(text(status)))
        try:
            if _has_ended(standing, is_ending=is_ending):
                batch.outcomes[follower] = Outcome(follower)
            else:
                found[follower] = standing
        except Refused as refusal:
            batch.refuse(follower, refusal)
    return found


def _has_ended(standing: _Standing, *, is_ending: bool) -> bool:
    """Whether it has been ended before; raises `Refused` if nothing can be done with it."""
    if standing.master and not is_account_id(standing.master):
        raise Refused("what stands for its master is no id; check and repair", code="master_invalid")
    if is_ending and (standing.master or standing.status):
        return not standing.master and standing.status == _STOPPED
    if not standing.has_config:
        raise Refused("there is no such follower", code="account_missing")
    if not standing.master or standing.status == _STOPPED:
        raise Refused("it follows nobody", code="not_following")
    return False


def _with_copies(batch: Batch, standing: Mapping[str, _Standing], *, keep_open: bool) -> dict[str, _Standing]:
    """Those that may leave, with their open copies."""
    lists = batch.ask({name: [pack("SMEMBERS", keys.orders_index(account_of(name)))] for name in standing})
    wanted = {
        name: [pack("HMGET", keys.HOLDING.of(account_of(name)) + text(order), *_COPY_FIELDS) for order in orders]
        for name, (orders,) in lists.items()
    }
    free: dict[str, _Standing] = {}
    for name, answers in batch.ask(wanted).items():
        ids, copies, unread = list(map(text, lists[name][0])), [], False
        for order_id, (order_status, execution_status, master_order) in zip(ids, answers, strict=True):
            unread = unread or (order_status is None and execution_status is None)
            if text(master_order) and text(order_status) not in _FINISHED:
                copies.append(order_id)
        if copies and not keep_open:
            batch.refuse(name, Refused(f"{len(copies)} copies are open: {_some(copies)}", code="has_open_copies"))
            batch.outcomes[name] = replace(batch.outcomes[name], open_copies=tuple(sorted(copies)))
        elif unread and not keep_open:
            batch.refuse(name, Refused("an order of it cannot be read", code="orders_unreadable"))
        else:
            free[name] = replace(standing[name], open_copies=tuple(sorted(copies)))
    return free


def _some(ids: Iterable[str]) -> str:
    shown = sorted(ids)
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _leave(batch: Batch, masters: Mapping[str, str]) -> list[str]:
    wanted = {name: [leave_request(name, master)] if master else [] for name, master in masters.items()}
    left = list(batch.ask(wanted))
    crash.reach("relations.left")
    return left


def _note(batch: Batch, followers: Iterable[str], behind: Mapping[str, str]) -> None:
    for follower in followers:
        batch.outcomes[follower] = Outcome(follower, behind=behind.get(follower, ""))
