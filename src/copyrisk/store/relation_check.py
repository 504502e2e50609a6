"""All records of relationships held against each other: what differs, and what would put it right.

What is right in which case: `agreement.judge`, and docs/relations.md. Relationships that are being begun or
ended meanwhile may be seen half done.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from copyrisk import keys
from copyrisk.agreement import FollowerTable, Seen, Verdict, judge
from copyrisk.following import COPY_STATUS, account_of, status_word
from copyrisk.identifiers import Account
from copyrisk.store.functions import refused, text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.relation_steps import AT_ONCE, Backing, is_account_id, portions, scan
from copyrisk.terms import AccountType


@dataclass(frozen=True, slots=True)
class Difference:
    """A follower whose records do not agree, or a key that nobody can read.

    Attributes
    ----------
    subject : str
        The follower's id, or the key.
    codes : tuple of str
    seen, mend : str
        What is there, and what a repair makes of it; for people.
    records, verdict
        Of a follower.
    stray : tuple of bytes
        A key to be deleted, or a key and a member to be taken out of it.
    """

    subject: str
    codes: tuple[str, ...]
    seen: str
    mend: str
    records: Seen | None = None
    verdict: Verdict | None = None
    stray: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Reading:
    """Everything that was found."""

    claims: dict[str, str] = field(default_factory=dict)
    sets: dict[str, set[str]] = field(default_factory=dict)  # by follower
    strays: list[Difference] = field(default_factory=list)

    def stray(self, code: str, key: bytes, *member: bytes) -> None:
        mend = "taken out" if member else "deleted"
        seen = f"member {text(member[0])[:80]!a}" if member else "key"
        self.strays.append(Difference(text(key)[:200], (code,), seen, mend, stray=(key, *member)))


def check_relations(pipe: Pipe, database: Backing | None = None) -> list[Difference]:
    """What does not agree, keys first, then followers in order; nothing is changed.

    Goes through the whole database of the server, and the whole table of followers.

    Raises
    ------
    StoreError, StoreUnavailable
        `server_is_cluster`; and what the database answers.
    """
    reading = _Reading()
    _read_claims(pipe, reading)
    _read_sets(pipe, reading)
    table = None if database is None else database.followers()
    named = {*reading.claims, *reading.sets, *_configured(pipe)}
    if table is not None:
        named |= {name for name, row in table.rows.items() if row.master is not None and is_account_id(name)}
    found: list[Difference] = []
    known: dict[str, bool] = {}
    for some in portions(sorted(named)):
        records = _records(pipe, some, reading, table)
        _look_up_masters(pipe, database, records, known)
        found += [one for one in (_difference(seen, known, table) for seen in records) if one is not None]
    return reading.strays + found


def _asked(pipe: Pipe, keys_asked: Sequence[bytes], *command: str) -> list[tuple[bytes, Any]]:
    """Each key with the answer to a command about it."""
    pairs: list[tuple[bytes, Any]] = []
    for start in range(0, len(keys_asked), AT_ONCE):
        some = keys_asked[start : start + AT_ONCE]
        pairs += zip(some, pipe.exchange([pack(*command, key) for key in some]), strict=True)
    return pairs


def _is_unusable(reading: _Reading, key: bytes, answer: Any) -> bool:
    fault = refused(answer)
    if fault is None:
        return False
    if not _is_wrong_type(answer):  # nothing follows from what we may not read
        raise fault
    reading.stray("wrong_type", key)
    return True


def _named_by(reading: _Reading, shape: keys.Shape, found: Iterable[bytes]) -> dict[bytes, str]:
    """The id in each key; a key without one is a stray."""
    named: dict[bytes, str] = {}
    for key in sorted(found):
        name = text(shape.inside(key))
        if is_account_id(name):
            named[key] = name
        else:
            reading.stray("invalid_key", key)
    return named


def _read_claims(pipe: Pipe, reading: _Reading) -> None:
    named = _named_by(reading, keys.PROVIDER_OF, scan(pipe, keys.PROVIDER_OF.pattern))
    for key, claim in _asked(pipe, list(named), "GET"):
        if _is_unusable(reading, key, claim) or claim is None:
            continue
        if is_account_id(text(claim)):
            reading.claims[named[key]] = text(claim)
        else:
            reading.stray("master_invalid", key)


def _read_sets(pipe: Pipe, reading: _Reading) -> None:
    named = _named_by(reading, keys.ACTIVE_FOLLOWERS, scan(pipe, keys.ACTIVE_FOLLOWERS.pattern))
    for key, members in _asked(pipe, list(named), "SMEMBERS"):
        if _is_unusable(reading, key, members):
            continue
        for member in sorted(members):
            if is_account_id(text(member)):
                reading.sets.setdefault(text(member), set()).add(named[key])
            else:
                reading.stray("member_invalid", key, member)


def _configured(pipe: Pipe) -> set[str]:
    """Followers that have a configuration."""
    start = f"{AccountType.FOLLOWER.value}:"
    tags = (text(keys.CONFIG.inside(key)) for key in scan(pipe, keys.CONFIG.of(f"{start}*")))
    return {name for name in (tag.removeprefix(start) for tag in tags) if is_account_id(name)}


def _records(pipe: Pipe, some: Sequence[str], reading: _Reading, table: FollowerTable | None) -> list[Seen]:
    """What stands of some followers; a configuration that is no hash is none."""
    records = []
    for name, (has_config, status) in configurations(pipe, some).items():
        row = table.rows.get(name) if table is not None else None
        sets = frozenset(reading.sets.get(name, ()))
        records.append(Seen(name, reading.claims.get(name), sets, has_config, status, row))
    return records


def configurations(pipe: Pipe, followers: Sequence[str]) -> dict[str, tuple[bool, str]]:
    """Whether each follower has a configuration, and its `copy_status`; one that is no hash is none."""
    accounts = [keys.config(account_of(name)) for name in followers]
    answers = pipe.exchange([request for key in accounts for request in (pack("TYPE", key), _status_of(key))])
    found = {}
    for place, name in enumerate(followers):
        kind, status = answers[2 * place], answers[2 * place + 1]
        fault = refused(kind) or refused(status)
        if fault is not None and not _is_wrong_type(status):
            raise fault
        is_hash = fault is None and _is_hash(kind)
        found[name] = (is_hash, status_word(text(status)) if is_hash else "")
    return found


def _status_of(key: str) -> bytes:
    return pack("HGET", key, COPY_STATUS)


def _is_wrong_type(answer: object) -> bool:
    return isinstance(answer, Exception) and str(answer).startswith("WRONGTYPE")


def _is_hash(kind: bytes | str) -> bool:
    return kind in (b"hash", "hash")


def _look_up_masters(pipe: Pipe, database: Backing | None, records: Iterable[Seen], known: dict[str, bool]) -> None:
    """Whether the masters that are named there exist."""
    named = {master for seen in records for master in _masters(seen)} - known.keys()
    accounts = [Account(AccountType.MASTER, master) for master in sorted(named) if is_account_id(master)]
    for account, (_, exists) in zip(
        accounts, _asked(pipe, [keys.config(one).encode() for one in accounts], "EXISTS"), strict=True
    ):
        fault = refused(exists)
        if fault is not None:
            raise fault
        known[account.id] = bool(exists) or (database is not None and database.account(account) is not None)


def _masters(seen: Seen) -> set[str]:
    recorded = seen.row.master if seen.row is not None else None
    return {*seen.sets, *(master for master in (seen.claim, recorded) if master)}


def _difference(seen: Seen, known: Mapping[str, bool], table: FollowerTable | None) -> Difference | None:
    there = frozenset(master for master in _masters(seen) if known.get(master))
    seen = Seen(seen.follower, seen.claim, seen.sets, seen.has_config, seen.status, seen.row, there)
    verdict = judge(seen, table)
    if not verdict.codes:
        return None
    says = [f"master {seen.claim or 'none'}", f"in the sets of {', '.join(sorted(seen.sets)) or 'nobody'}"]
    says.append(f"copy_status {seen.status or 'absent'}" if seen.has_config else "no configuration")
    if seen.row is not None:
        says.append(f"database: {seen.row.master or 'none'}, {seen.row.status or 'no status'}")
    mend = f"{verdict.status.value} with {verdict.master}" if verdict.master and verdict.status else "follows nobody"
    return Difference(seen.follower, verdict.codes, "; ".join(says), mend, seen, verdict)
