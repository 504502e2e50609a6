"""Leases: of the processes of a role one may act, and what it sends carries the end of its lease and a fencing token.

The end is judged by the server's one clock: a process that was stopped for a while and goes on finds its calls refused,
whoever has the lease by then. The token rises with every renewal, and only who was given the last one can renew: of a
process and its clone one goes on, and what an account was changed under a later token, an earlier one changes no more.
"""

import math
import time

from copyrisk import keys
from copyrisk.errors import StoreUnavailable
from copyrisk.store.changes import Right
from copyrisk.store.functions import refused, text
from copyrisk.store.pipe import Pipe, pack


class Lease:
    """One process's claim to a role.

    Attributes
    ----------
    right : Right or None
        What it gives; `None` if it is not held.
    """

    def __init__(self, pipe: Pipe, role: str, owner: str, hold_ms: int) -> None:
        self._pipe, self._role, self._owner, self._hold_ms = pipe, role, owner, hold_ms
        self.right: Right | None = None
        self._token, self._above = "", 0
        self._held_s = -math.inf

    def hold(self) -> bool:
        """Take or prolong it; returns whether it is held.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        self.right, asked_s = None, time.monotonic()
        self.right = self._ask(self._hold_ms)
        if self.right is not None:
            self._held_s, self._token = asked_s, self.right.token
        return self.right is not None

    def _ask(self, hold_ms: int) -> Right | None:
        key = keys.lease(self._role)
        (reply,) = self._pipe.exchange(
            [pack("FCALL", "copyrisk_lease_v1", 1, key, self._owner, self._token, hold_ms, self._above)]
        )
        failure = refused(reply)
        if failure is not None:
            raise failure
        return Right(self._role, int(reply[1]), text(reply[2])) if reply[0] == b"own" else None

    def keep(self) -> Right:
        """Prolong it if half of it is over, and return what it gives.

        Raises
        ------
        StoreError, StoreUnavailable
            `lease_lost`: another process may act by now, and this one may not.
        """
        is_young = time.monotonic() - self._held_s < self._hold_ms / 2e3
        if not (self.right and is_young):
            self.hold()
        if self.right is None:
            raise StoreUnavailable("another process has the lease", code="lease_lost")
        return self.right

    def doubt(self) -> None:
        """Ask before it is used again."""
        self._held_s = -math.inf

    def rise_above(self, token: str) -> None:
        """Have the next token be above this one, which was found where ours should have been the highest.

        Whoever has the lease by now keeps it; then this one is not given another token.
        """
        self._above = max(self._above, int(token))
        self.doubt()

    def give_up(self) -> None:
        """Let somebody else have it at once.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        self._ask(0)
        self.right, self._token = None, ""
