"""Leases: of the processes of a role one may act, and what it sends carries the end of its lease as a deadline.

Both ends are judged by the server's one clock: a process that was stopped for a while and goes on finds its calls
refused, whoever has the lease by then.
"""

import math
import time

from copyrisk import keys
from copyrisk.errors import StoreUnavailable
from copyrisk.store.functions import refused
from copyrisk.store.pipe import Pipe, pack


class Lease:
    """One process's claim to a role.

    Attributes
    ----------
    ends_ms : int
        By the server's clock; 0 if it is not held.
    """

    def __init__(self, pipe: Pipe, role: str, owner: str, hold_ms: int) -> None:
        self._pipe, self._key, self._owner, self._hold_ms = pipe, keys.lease(role), owner, hold_ms
        self.ends_ms = 0
        self._held_s = -math.inf

    def hold(self) -> bool:
        """Take or prolong it; returns whether it is held.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        self.ends_ms, asked_s = 0, time.monotonic()
        (reply,) = self._pipe.exchange([pack("FCALL", "copyrisk_lease_v1", 1, self._key, self._owner, self._hold_ms)])
        failure = refused(reply)
        if failure is not None:
            raise failure
        if reply[0] == b"own":
            self.ends_ms, self._held_s = int(reply[1]), asked_s
        return bool(self.ends_ms)

    def keep(self) -> int:
        """Prolong it if half of it is over, and return when it ends.

        Raises
        ------
        StoreError, StoreUnavailable
            `lease_lost`: another process may act by now, and this one may not.
        """
        is_young = time.monotonic() - self._held_s < self._hold_ms / 2e3
        if not (self.ends_ms and is_young) and not self.hold():
            raise StoreUnavailable("another process has the lease", code="lease_lost")
        return self.ends_ms

    def give_up(self) -> None:
        """Let somebody else have it at once.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        if self.hold():
            self._pipe.exchange([pack("DEL", self._key)])
            self.ends_ms = 0
