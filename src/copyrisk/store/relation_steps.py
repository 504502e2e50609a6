"""What changes of relationships are made of: requests of one key, many followers in an exchange, each by itself."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from copyrisk import identifiers, keys
from copyrisk.agreement import FollowerRow, FollowerTable
from copyrisk.errors import CopyriskError, InvalidId, StoreError
from copyrisk.following import COPY_STATUS, CopyStatus, Outcome, account_of
from copyrisk.store.filler import Source
from copyrisk.store.functions import KEY_UNUSABLE, refused
from copyrisk.store.pipe import Pipe, pack

AT_ONCE = 1_000
_SCAN_COUNT = 10_000
#: Whoever gives up a claim gives up only that one: the follower may have been claimed by another master meanwhile.
_GIVE_UP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Backing(Source, Protocol):
    """The broker's database."""

    def followers(self) -> FollowerTable:
        """What it says of masters and copying."""

    def write_followers(self, rows: Sequence[FollowerRow]) -> list[str | None]:
        """Say whom followers copy; for each `None`, or why it was refused."""


class Batch:
    """Some followers on their way through the steps, each until it is refused."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.outcomes: dict[str, Outcome] = {}

    def ask(self, wanted: Mapping[str, Sequence[bytes]]) -> dict[str, list[Any]]:
        """One exchange: the answers to each follower's requests; one whose keys cannot be used is refused.

        Raises
        ------
        StoreError, StoreUnavailable
            Any of it may have been done.
        """
        answers = iter(self._pipe.exchange([request for requests in wanted.values() for request in requests]))
        found = {follower: [next(answers) for _ in requests] for follower, requests in wanted.items()}
        for follower in list(found):
            fault = next(filter(None, map(refused, found[follower])), None)
            if fault is not None:
                if fault.code != KEY_UNUSABLE:
                    raise fault
                del found[follower]
                self.refuse(follower, fault)
        return found

    def refuse(self, follower: str, fault: CopyriskError) -> None:
        """No further step for this one."""
        self.outcomes[follower] = Outcome(follower, fault.code, str(fault))


def is_account_id(name: str) -> bool:
    """Whether what stands in a key or value is an account's id."""
    try:
        identifiers.check_account_id(name)
    except InvalidId:
        return False
    return True


def give_up_request(follower: str, master: str) -> bytes:
    """Delete the claim if it is this one."""
    return pack("EVAL", _GIVE_UP, 1, keys.provider_of(follower), master)


def status_request(follower: str, status: CopyStatus) -> bytes:
    """Write `copy_status`."""
    return pack("HSET", keys.config(account_of(follower)), COPY_STATUS, status.value)


def join_request(follower: str, master: str) -> bytes:
    """Put a follower into its master's set."""
    return pack("SADD", keys.active_followers(master), follower)


def leave_request(follower: str, master: str) -> bytes:
    """Take a follower out of its master's set."""
    return pack("SREM", keys.active_followers(master), follower)


def portions(items: Iterable[str]) -> Iterator[list[str]]:
    """At most `AT_ONCE` of them at a time, each once."""
    distinct = list(dict.fromkeys(items))
    return (distinct[start : start + AT_ONCE] for start in range(0, len(distinct), AT_ONCE))


def write_rows(database: Backing | None, rows: Sequence[FollowerRow]) -> dict[str, str]:
    """Tell the database; returns why, by follower, for those that it does not take (now)."""
    if database is None or not rows:
        return {}
    try:
        codes = database.write_followers(rows)
    except StoreError as fault:
        codes = [fault.code] * len(rows)
    return {row.follower: code for row, code in zip(rows, codes, strict=True) if code is not None}


def scan(pipe: Pipe, pattern: str) -> set[bytes]:
    """All keys of a pattern.

    Raises
    ------
    StoreError, StoreUnavailable
        `server_is_cluster`: this server has only some of them.
    """
    (said,) = pipe.exchange([pack("INFO", "cluster")])
    if b"cluster_enabled:1" in _bytes(said):
        raise StoreError("one server of a cluster does not have all keys", code="server_is_cluster")
    found: set[bytes] = set()
    cursor = b"0"
    while True:
        (reply,) = pipe.exchange([pack("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)])
        fault = refused(reply)
        if fault is not None:
            raise fault
        cursor = reply[0]
        found.update(reply[1])
        if cursor == b"0":
            return found


def _bytes(reply: Any) -> bytes:
    fault = refused(reply)
    if fault is not None:
        raise fault
    return reply if isinstance(reply, bytes) else str(reply).encode()
