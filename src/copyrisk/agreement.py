"""Whether the records of a relationship agree, and what they should be if they do not.

It stands in several records that cannot be changed at once: the follower's `provider_id`, its master's set, its
configuration, its row in the database. `copy_status` of the configuration is the last one to be switched on and the
first one to be switched off, so whatever is half done does not copy. Plain data; `store.relation_check` reads, writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from copyrisk.following import CopyStatus, status_word


@dataclass(frozen=True, slots=True)
class FollowerRow:
    """A follower's row in the database; `None`: NULL, or there is no such column."""

    follower: str
    master: str | None
    status: str | None


@dataclass(frozen=True, slots=True)
class FollowerTable:
    """The rows of all followers, and which of the two columns the table has."""

    rows: Mapping[str, FollowerRow]
    has_master: bool
    has_status: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """All records of one follower.

    Attributes
    ----------
    claim : str or None
        The master that its `provider_id` names.
    sets : frozenset of str
        The masters among whose active followers it is.
    has_config : bool
    status : str
        `copy_status` of the configuration, as `status_word` has it; empty if absent.
    row : FollowerRow or None
    known : frozenset of str
        Of the masters that are named here, those that exist.
    """

    follower: str
    claim: str | None
    sets: frozenset[str]
    has_config: bool
    status: str
    row: FollowerRow | None = None
    known: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, and how it should be.

    Attributes
    ----------
    codes : tuple of str
        Empty if nothing is.
    master : str or None
    status : str or None
        `None`: it has no configuration, and gets none.
    """

    codes: tuple[str, ...]
    master: str | None
    status: CopyStatus | None


def judge(seen: Seen, table: FollowerTable | None = None) -> Verdict:
    """Hold a follower's records against each other; in doubt it does not copy (see docs/relations.md)."""
    verdict = _unclaimed(seen) if seen.claim is None else _claimed(seen, seen.claim)
    codes, row = list(verdict.codes), seen.row
    status = verdict.status if seen.has_config or verdict.master is not None else None
    if row is not None and table is not None and not any(code.startswith("table_") for code in codes):
        is_related = bool(seen.claim or seen.sets or row.master or status is CopyStatus.STOPPED)
        other_master = table.has_master and row.master != verdict.master
        other_status = table.has_status and status is not None and status_word(row.status or "") != status
        codes += ["table_behind"] * (is_related and (other_master or other_status))
    return Verdict(tuple(codes), verdict.master, status)


def _status_of(seen: Seen) -> str:
    """Of the configuration, or of the row from which it will be filled."""
    if seen.has_config:
        return seen.status
    return status_word(seen.row.status or "") if seen.row is not None else ""


def _unclaimed(seen: Seen) -> Verdict:
    recorded, status = seen.row.master if seen.row is not None else None, _status_of(seen)
    named: Sequence[str] = sorted({*seen.sets, *([recorded] if recorded else [])})
    codes = ["in_set_without_master"] * bool(seen.sets)
    if len(named) == 1 and named[0] in seen.known and status != CopyStatus.STOPPED and (seen.has_config or seen.row):
        codes += ["master_lost"] * (not seen.sets)
        codes += ["config_missing"] * (not seen.has_config)
        return Verdict(tuple(codes), named[0], CopyStatus.PAUSED)
    codes += ["two_masters"] * (len(named) > 1)
    if seen.has_config and status not in ("", CopyStatus.STOPPED):
        codes.append("status_without_master")
    is_told = seen.has_config and (status != "" or bool(codes))
    return Verdict(tuple(codes), None, CopyStatus.STOPPED if is_told else None)


def _claimed(seen: Seen, master: str) -> Verdict:
    status, row, others = _status_of(seen), seen.row, seen.sets - {master}
    ended = (
        ("master_missing", master not in seen.known),
        ("follower_missing", not seen.has_config and row is None),
        ("half_ended", status == CopyStatus.STOPPED),
    )
    for code, is_so in ended:
        if is_so:
            return Verdict((code,), None, CopyStatus.STOPPED)
    is_absent = status == "" and master in seen.sets  # who copies such a one takes it for active
    is_active = status == CopyStatus.ACTIVE or is_absent
    doubts = (
        ("status_invalid", not is_active and status != CopyStatus.PAUSED),
        ("other_master", bool(others) and master not in seen.sets),
        ("table_other_master", row is not None and row.master not in (None, master)),
        (
            "table_not_active",
            is_active and row is not None and status_word(row.status or "active") != CopyStatus.ACTIVE,
        ),
    )
    codes = [code for code, is_so in doubts if is_so]
    copies = is_active and not codes
    codes += ["status_absent"] * is_absent
    codes += ["two_masters"] * (bool(others) and master in seen.sets)
    codes += ["not_in_set"] * (copies and master not in seen.sets)
    codes += ["paused_in_set"] * (status == CopyStatus.PAUSED and master in seen.sets)
    codes += ["config_missing"] * (not seen.has_config)
    return Verdict(tuple(codes), master, CopyStatus.ACTIVE if copies else CopyStatus.PAUSED)
