"""Records of the keys that services sign with: who a key is, what it may do, until when.

No secret is among them. Each carries a MAC by the master secret over all of it and the key's id: who may write to Redis
can take a key away, but can neither make one nor widen, revive or swap one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from copyrisk import keys
from copyrisk.errors import Refused
from copyrisk.signing import MasterSecret
from copyrisk.store.pipe import Pipe, pack

_RECORD_BYTES = 65_536
_MAC = "mac"


class BadRecord(Refused):
    """What stands there was not written by somebody who has the master secret."""

    code = "unreadable_key"


class KeyState(StrEnum):
    """Whether a key may be used."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key.

    Attributes
    ----------
    name : str
        For people.
    scopes, accounts : tuple of str
        What it may do, and to whom: `*`, `T:*`, `T:U`.
    made_ms : int
    expires_ms, revoked_ms : int or None
        `None`: never, not.
    """

    key_id: str
    name: str
    scopes: tuple[str, ...]
    accounts: tuple[str, ...]
    made_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None

    def state(self, now_ms: int) -> KeyState:
        """Whether it may be used now."""
        if self.revoked_ms is not None:
            return KeyState.REVOKED
        is_over = self.expires_ms is not None and now_ms >= self.expires_ms
        return KeyState.EXPIRED if is_over else KeyState.ACTIVE


_STORED = frozenset(one.name for one in fields(KeyRecord)) - {"key_id"} | {_MAC}


def record_text(record: KeyRecord, master: MasterSecret) -> str:
    """A record as it is stored."""
    said = asdict(record)
    mac = master.mac_of(_canonical(said))
    del said["key_id"]
    return json.dumps({**said, _MAC: mac})


def _canonical(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def parse_record(key_id: str, text: bytes, master: MasterSecret) -> KeyRecord:
    """A stored record.

    Raises
    ------
    BadRecord
        It is none, or its MAC is not that of this record under this id and this master secret.
    """
    try:
        said = json.loads(text) if len(text) <= _RECORD_BYTES else None
        if not isinstance(said, dict) or said.keys() != _STORED:
            raise ValueError
        mac = said.pop(_MAC)
        said["key_id"] = key_id
        if not isinstance(mac, str) or not master.is_mac(_canonical(said), mac):
            raise ValueError
    except (ValueError, RecursionError):
        raise BadRecord(f"the record of key {key_id} was not written with this master secret") from None
    return KeyRecord(**{**said, "scopes": tuple(said["scopes"]), "accounts": tuple(said["accounts"])})


def read_records(pipe: Pipe) -> dict[str, bytes]:
    """All of them as they are stored, by key id.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    (reply,) = pipe.ask(pack("HGETALL", keys.API_KEYS))
    flat = [word for item in reply.items() for word in item] if isinstance(reply, dict) else reply
    ids = (word.decode("utf-8", "backslashreplace") for word in flat[::2])
    return dict(zip(ids, flat[1::2], strict=True))


def add_record(pipe: Pipe, record: KeyRecord, master: MasterSecret) -> None:
    """Store a record under an id that has none.

    Raises
    ------
    Refused
        `key_exists`.
    StoreError, StoreUnavailable
    """
    (added,) = pipe.ask(pack("HSETNX", keys.API_KEYS, record.key_id, record_text(record, master)))
    if not added:
        raise Refused(f"there is a key {record.key_id} already", code="key_exists")


def put_record(pipe: Pipe, record: KeyRecord, master: MasterSecret) -> None:
    """Store a record in place of what stands there.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    pipe.ask(pack("HSET", keys.API_KEYS, record.key_id, record_text(record, master)))
