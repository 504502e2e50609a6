"""Putting right what a check of relationships has found, if it is still so: switched off first, switched on last.

Better made while no relationships are begun or ended: what is half done twice in a row is taken for left behind.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from copyrisk import crash, keys
from copyrisk.agreement import FollowerRow, Seen, Verdict
from copyrisk.errors import TryLater
from copyrisk.following import CopyStatus, account_of
from copyrisk.store.filler import Filler
from copyrisk.store.functions import KEY_UNUSABLE, refused, text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.relation_check import Difference, configurations
from copyrisk.store.relation_steps import (
    AT_ONCE,
    Backing,
    Batch,
    give_up_request,
    join_request,
    leave_request,
    status_request,
    write_rows,
)
from copyrisk.store.settled import SettledSource


class _Case(NamedTuple):
    """A follower, as it is and as it should be."""

    seen: Seen
    verdict: Verdict

    @property
    def follower(self) -> str:
        return self.seen.follower

    @property
    def is_active(self) -> bool:
        return self.verdict.status is CopyStatus.ACTIVE


def repair(pipe: Pipe, differences: Sequence[Difference], database: Backing | None = None) -> list[Difference]:
    """Put right what `check_relations` found; the server's functions must be loaded.

    Returns
    -------
    list of Difference
        Those that are left: they have changed meanwhile, or cannot be put right now.

    Raises
    ------
    StoreError, StoreUnavailable
        Any of it may have been done; it may be asked for again.
    """
    left = _remove_strays(pipe, [one for one in differences if one.stray])
    filler = Filler(pipe, None if database is None else SettledSource(pipe, database))
    followers = [one for one in differences if one.records is not None]
    for start in range(0, len(followers), AT_ONCE):
        some = followers[start : start + AT_ONCE]
        cases = [_Case(one.records, one.verdict) for one in some if one.records is not None and one.verdict is not None]
        mended = _repair(pipe, _filled(_unchanged(pipe, cases), filler), database)
        left += [one for one in some if one.subject not in mended]
    return left


def _remove_strays(pipe: Pipe, strays: Sequence[Difference]) -> list[Difference]:
    requests = [pack("SREM", *one.stray) if len(one.stray) > 1 else pack("DEL", *one.stray) for one in strays]
    left = []
    for one, answer in zip(strays, pipe.exchange(requests), strict=True):
        fault = refused(answer)
        if fault is not None and fault.code != KEY_UNUSABLE:
            raise fault
        if fault is not None:
            left.append(one)
    crash.reach("repair.strays")
    return left


def _unchanged(pipe: Pipe, cases: Sequence[_Case]) -> list[_Case]:
    """Those of which the server still says what it said."""
    batch = Batch(pipe)
    wanted = {case.follower: [pack("GET", keys.provider_of(case.follower)), *_memberships(case)] for case in cases}
    answers = batch.ask(wanted)
    there = configurations(pipe, list(answers))
    still = []
    for case in cases:
        seen = case.seen
        if seen.follower in answers:
            claim, *members = answers[seen.follower]
            is_same = (text(claim) or None) == seen.claim and [bool(one) for one in members] == _are_members(seen)
            if is_same and there[seen.follower] == (seen.has_config, seen.status):
                still.append(case)
    return still


def _named(seen: Seen) -> list[str]:
    return sorted({*seen.sets, *([seen.claim] if seen.claim else [])})


def _memberships(case: _Case) -> list[bytes]:
    follower = case.follower
    return [pack("SISMEMBER", keys.active_followers(master), follower) for master in _named(case.seen)]


def _are_members(seen: Seen) -> list[bool]:
    return [master in seen.sets for master in _named(seen)]


def _filled(cases: Sequence[_Case], filler: Filler) -> list[_Case]:
    """Those that have the configuration that they need, some from the database now."""
    ready = []
    for case in cases:
        try:
            is_ready = case.seen.has_config or case.verdict.master is None or filler.account(account_of(case.follower))
        except TryLater:
            is_ready = False
        if is_ready:
            ready.append(case)
    return ready


def _repair(pipe: Pipe, cases: Sequence[_Case], database: Backing | None) -> set[str]:
    """Returns those that are right now."""
    batch, current = Batch(pipe), list(cases)

    def step(name: str, wanted: Callable[[_Case], list[bytes]]) -> None:
        done = batch.ask({case.follower: wanted(case) for case in current})
        current[:] = [case for case in current if case.follower in done]
        crash.reach(f"repair.{name}")

    step("switched_off", lambda case: [] if case.is_active else _switched(case))
    step("left", _leave)
    step("claimed", _claim)
    rows = [_row(case) for case in current if case.seen.row is not None]
    behind = write_rows(database, rows)
    crash.reach("repair.recorded")
    step("joined", lambda case: [join_request(case.follower, case.verdict.master or "")] if case.is_active else [])
    step("switched_on", lambda case: _switched(case) if case.is_active else [])
    return {case.follower for case in current} - behind.keys()


def _switched(case: _Case) -> list[bytes]:
    status = case.verdict.status
    return [] if status is None else [status_request(case.follower, status)]


def _leave(case: _Case) -> list[bytes]:
    stays = {case.verdict.master} if case.is_active else set()
    return [leave_request(case.follower, master) for master in sorted(case.seen.sets - stays)]


def _claim(case: _Case) -> list[bytes]:
    seen, master = case.seen, case.verdict.master
    if master is None:
        return [give_up_request(seen.follower, seen.claim)] if seen.claim is not None else []
    return [] if seen.claim is not None else [pack("SET", keys.provider_of(seen.follower), master, "NX")]


def _row(case: _Case) -> FollowerRow:
    return FollowerRow(case.follower, case.verdict.master, (case.verdict.status or CopyStatus.STOPPED).value)
