"""Ids that are pure functions of their causes: whatever is repeated, it is the same one."""

import hashlib
from collections.abc import Sequence

from copyrisk.identifiers import Account
from copyrisk.terms import AccountType

DIGEST_BYTES = 16

#: How the ids of copies begin; nobody else may choose such an id.
COPY_PREFIX = "copy-"


def derived_id(prefix: str, *cause: str) -> str:
    """An id that is a pure function of its cause: whatever is repeated, it is the same one."""
    digest = hashlib.blake2b("\n".join(cause).encode(), digest_size=DIGEST_BYTES).hexdigest()
    return prefix + digest


def copy_id(master_order_id: str, follower: Account) -> str:
    """The order id of a follower's copy of a master's order."""
    return derived_id(COPY_PREFIX, master_order_id, str(follower))


def copy_ids(master_order_id: str, follower_ids: Sequence[bytes]) -> list[bytes]:
    """`copy_id` for many followers, by their account ids."""
    start = hashlib.blake2b(f"{master_order_id}\n{AccountType.FOLLOWER}:".encode(), digest_size=DIGEST_BYTES)
    found = []
    for follower_id in follower_ids:
        digest = start.copy()
        digest.update(follower_id)
        found.append(f"{COPY_PREFIX}{digest.hexdigest()}".encode())
    return found
