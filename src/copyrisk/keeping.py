"""Keeping copies in line with their masters' orders: closes, cancels, stop losses, take profits, prices.

What an order asks is stored before anything is done about it. A copy that cannot follow now (it is still being filled,
a close is under way, there is no price) is put where it is found again, and asked until it is where it should be.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import redis
import structlog

from copyrisk import crash, identifiers, keys
from copyrisk.commands import Command, CommandType, Target
from copyrisk.derived import copy_id
from copyrisk.dispatch import Dispatcher
from copyrisk.errors import CopyriskError, StoreError
from copyrisk.identifiers import Account
from copyrisk.observer import Observer
from copyrisk.orders import FINISHED, State
from copyrisk.replication import COPIED, MasterEvent, reversed_target
from copyrisk.situation import Outcome
from copyrisk.store.changes import Cause
from copyrisk.store.connection import OF_ONE_KEY, store_error
from copyrisk.store.decisions import Decision, Decisions
from copyrisk.store.followers import follower_account
from copyrisk.store.functions import text
from copyrisk.store.lease import Lease
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType
from copyrisk.verdicts import Job

log = structlog.get_logger(__name__)

_AT_ONCE = 500
_STEPS = 4  # a close or cancel, levels, a price, and a look whether that was all
_SLOWEST_RETRY_MS = 10_000
_IN_FLIGHT = (State.CLOSING, State.MODIFYING, State.CANCELLING)


@dataclass(frozen=True, slots=True)
class CopyOf:
    """A copy, and the master's order that it follows; unless it `closes`, whatever that does."""

    follower: Account
    copy_id: str
    master_order_id: str
    reverse: bool
    closes: bool = False


class Keeper:
    """Has copies follow.

    Parameters
    ----------
    retry_ms : int
        How soon a copy that could not follow is asked again; later more and more seldom.
    """

    def __init__(
        self,
        pipe: Pipe,
        dispatcher: Dispatcher,
        observer: Observer,
        decisions: Decisions,
        *,
        lease: Lease,
        retry_ms: int,
    ) -> None:
        self._pipe, self._dispatcher, self._lease = pipe, dispatcher, lease
        self._observer, self._decisions, self._retry_ms = observer, decisions, retry_ms
        self._due_s: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._checked_s = 0.0

    def follow(self, event: MasterEvent, decision: Decision | None) -> None:
        """Have all copies of an order follow a change of it.

        Raises
        ------
        StoreError, StoreUnavailable
            Some may have followed; doing it again does no harm.
        """
        known = decision.target_version if decision else self._decisions.target_of(event.order_id)[1]
        if event.version < known or not self._decisions.aim(event.order_id, event.target, event.version):
            return
        crash.reach("keeper.aimed")
        copies = self._copies_made_elsewhere(event) if decision is None else copies_of(decision)
        self._pursue(self._but_those_that_close(copies), {event.order_id: event.target})

    def catch_up(self, decision: Decision) -> None:
        """Have all copies follow what was asked of them before they were made; raises as `follow`."""
        if decision.target is not None:
            self._pursue(self._but_those_that_close(copies_of(decision)), {decision.order_id: decision.target})

    def settle(self) -> None:
        """Ask those again that could not follow so far, if it is time; raises as `follow`."""
        now_s = time.monotonic()
        if now_s - self._checked_s < self._retry_ms / 1e3:
            return
        self._checked_s = now_s
        waiting = {copy.copy_id: copy for copy in read_waiting(self._pipe)}
        for gone in self._due_s.keys() - waiting.keys():
            del self._due_s[gone], self._tries[gone]
        due = [copy for copy in waiting.values() if self._due_s.get(copy.copy_id, 0.0) <= now_s]
        targets: dict[str, Target] = {}
        for order_id in {copy.master_order_id for copy in due if not copy.closes}:
            try:
                target, version = self._decisions.target_of(order_id)
            except StoreError as failure:
                if failure.code != "decision_unreadable":
                    raise
                log.critical("target_unreadable", order=order_id, reason=str(failure))
                continue
            if target is not None:
                targets[order_id] = target
            elif version == 0:  # it was asked so long ago that nobody knows any more what for
                self._forget([copy.copy_id for copy in due if copy.master_order_id == order_id and not copy.closes])
        self._pursue(due, targets)

    def _forget(self, copy_ids: Sequence[str]) -> None:
        log.error("waiting_copies_forgotten", copies=len(copy_ids), first=copy_ids[0])
        self._pipe.ask(pack("HDEL", keys.WAITING_COPIES, *copy_ids))

    def _but_those_that_close(self, copies: Sequence[CopyOf]) -> list[CopyOf]:
        """Copies without those that are to be closed anyhow: these stay where they wait."""
        closing = {one.copy_id for one in read_waiting(self._pipe) if one.closes}
        return [copy for copy in copies if copy.copy_id not in closing]

    # ---- asking copies

    def _pursue(self, copies: Sequence[CopyOf], targets: Mapping[str, Target]) -> None:
        for start in range(0, len(copies), _AT_ONCE):
            part = {copy: _job(copy, targets) for copy in copies[start : start + _AT_ONCE]}
            left = {copy: job for copy, job in part.items() if job is not None}
            for _ in range(_STEPS):
                self._dispatcher.carry_out(list(left.values()), right=self._lease.keep)
                crash.reach("keeper.followed")
                part |= left
                left = {copy: _again(job) for copy, job in left.items() if _has_more_to_do(job)}
                if not left:
                    break
            self._remember({copy: job for copy, job in part.items() if job is not None})

    def _remember(self, jobs: Mapping[CopyOf, Job]) -> None:
        """Note who could not follow, and forget who could."""
        done: list[CopyOf] = []
        late: list[CopyOf] = []
        for copy, job in jobs.items():
            code = _why_not(job)
            (late if code else done).append(copy)
            if code:
                self._put_off(copy, code)
        requests = [
            pack("HSET", keys.WAITING_COPIES, copy.copy_id, _packed(copy, _why_not(jobs[copy]))) for copy in late
        ]
        if done:
            requests.append(pack("HDEL", keys.WAITING_COPIES, *[copy.copy_id for copy in done]))
        self._pipe.ask(*requests)

    def _put_off(self, copy: CopyOf, code: str) -> None:
        tries = self._tries[copy.copy_id] = self._tries.get(copy.copy_id, 0) + 1
        wait_ms = min(self._retry_ms * 2 ** min(tries - 1, 16), _SLOWEST_RETRY_MS)
        self._due_s[copy.copy_id] = time.monotonic() + wait_ms / 1e3
        log.warning("copy_waits", follower=str(copy.follower), copy=copy.copy_id, code=code, tries=tries)

    def close_all(self, followers: Sequence[Account]) -> None:
        """Have every copy of some followers closed, whatever their masters do.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        held = [one for one in self._copies_held(followers) if not one.closes]
        requests = [
            pack("HSET", keys.WAITING_COPIES, one.copy_id, _packed(replace(one, closes=True), "")) for one in held
        ]
        self._pipe.ask(*requests)
        crash.reach("keeper.closing")
        self._pursue([replace(one, closes=True) for one in held], {})

    # ---- copies about which nothing was decided here

    def _copies_made_elsewhere(self, event: MasterEvent) -> list[CopyOf]:
        """Copies of an order that another system made: orders of today's followers that say so."""
        followers, book = self._observer.followers, self._observer.book
        self._observer.look()
        members, _ = followers.members(event.master.id)
        rows = followers.rows_of(members)
        held = self._copies_held([book.account_at(row) for row in rows[rows >= 0].tolist()])
        return [copy for copy in held if copy.master_order_id == event.order_id]

    def _copies_held(self, followers: Sequence[Account]) -> list[CopyOf]:
        """Orders of some followers that say whose copies they are."""
        book = self._observer.book
        rows = {follower: book.row_of(follower) for follower in followers}
        asked = [(one, order_id) for one, row in rows.items() if row >= 0 for order_id in book.orders_of(row)]
        replies = self._pipe.exchange([pack("HGET", keys.holding(*one), "master_order_id") for one in asked])
        found = []
        for (account, order_id), reply in zip(asked, replies, strict=True):
            if isinstance(reply, Exception) and not str(reply).startswith(OF_ONE_KEY):
                raise store_error(redis.ResponseError(str(reply)))
            if isinstance(reply, bytes) and reply:
                found.append(CopyOf(account, order_id, text(reply), reverse=False))
        return found


def copies_of(decision: Decision) -> list[CopyOf]:
    """The copies of an order, as far as they were made."""
    results = decision.rows["reason"] if decision.made is None else decision.made["result"]
    wanted = b"" if decision.made is None else COPIED
    found = []
    for place in (results == wanted).nonzero()[0].tolist():
        row = decision.rows[place]
        account = follower_account(row["follower"])
        reverse = bool(decision.header["settings"][int(row["settings"])]["reverse"])
        found.append(CopyOf(account, copy_id(decision.order_id, account), decision.order_id, reverse))
    return found


def read_waiting(pipe: Pipe) -> list[CopyOf]:
    """Copies that could not follow their masters so far.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    (reply,) = pipe.ask(pack("HGETALL", keys.WAITING_COPIES))
    flat = [word for item in reply.items() for word in item] if isinstance(reply, dict) else reply
    found = []
    for own, stored in zip(flat[::2], flat[1::2], strict=True):
        try:
            said = json.loads(stored)
            account = identifiers.account(AccountType.FOLLOWER.value, said["follower"])
            own_id, master_id = identifiers.check_order_id(text(own)), identifiers.check_order_id(said["order_id"])
            found.append(CopyOf(account, own_id, master_id, bool(said["reverse"]), bool(said["closes"])))
        except (ValueError, LookupError, TypeError, CopyriskError) as fault:
            log.critical("waiting_copy_unreadable", copy=text(own), reason=repr(fault))
    return found


def _packed(copy: CopyOf, code: str) -> str:
    return json.dumps(
        {"follower": copy.follower.id, "order_id": copy.master_order_id, "reverse": copy.reverse, "closes": copy.closes}
        | {"code": code}
    )


def _job(copy: CopyOf, targets: Mapping[str, Target]) -> Job | None:
    target = Target(Fraction(0)) if copy.closes else targets.get(copy.master_order_id)
    if target is None:
        return None
    command = Command(
        id=copy.copy_id,
        type=CommandType.FOLLOW,
        account=copy.follower,
        order_id=copy.copy_id,
        key="",
        client_key="",
        body="",
        target=reversed_target(target) if copy.reverse else target,
    )
    return Job(Cause(copy.master_order_id, command.type.value), copy.follower, copy.copy_id, command)


def _again(job: Job) -> Job:
    return Job(job.cause, job.account, job.order_id, job.work)


def _has_more_to_do(job: Job) -> bool:
    """Whether a copy took a step that may not have been its last, and can take another at once."""
    verdict = job.verdict
    return isinstance(verdict, Outcome) and verdict.order.state not in (*FINISHED, *_IN_FLIGHT)


def _why_not(job: Job) -> str:
    """Why a copy is not where it should be; empty if it is."""
    verdict = job.verdict
    if isinstance(verdict, Outcome):
        return "" if verdict.order.state in FINISHED else "in_flight"
    if not isinstance(verdict, CopyriskError) or verdict.code == "account_missing":  # nobody is there who could follow
        return ""
    return verdict.code
