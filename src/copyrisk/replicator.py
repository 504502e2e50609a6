"""The engine of copies: takes changes of masters' orders from their stream, one after the other, and replicates them.

One loop, one wait. Each entry is carried to its end before the next is begun, so copies see their master's changes in
his order; it is acknowledged last, so whatever ends this process is gone on with where it stopped. Of several such
processes one holds the lease; the others wait for it.
"""

import contextlib
import os
import secrets
import socket
import threading
import time

import structlog

from copyrisk import crash, keys
from copyrisk.candidates import Glance
from copyrisk.deciding import Decider
from copyrisk.errors import CopyriskError, InvalidId, Refused, StoreError, TryLater
from copyrisk.fanout import Fanout
from copyrisk.keeping import Keeper
from copyrisk.limits import Limits
from copyrisk.observer import Observer
from copyrisk.redelivery import Redelivery
from copyrisk.replication import MasterEvent, parse_event
from copyrisk.store.decisions import Decision, Decisions
from copyrisk.store.lease import Lease
from copyrisk.store.pipe import Pipe
from copyrisk.store.remainders import Remainders
from copyrisk.store.streams import Consumer, Entry, keep_consuming
from copyrisk.store.tallies import Tallies

log = structlog.get_logger(__name__)

GROUP, ROLE = "replicator", "replicator"
_WAIT_MS = 100
_LEASE_MS = 5_000
_REREAD_WITHIN_S = 60.0
_AT_ONCE = 100
_ATTEMPTS = 20


class Replicator:
    """Replicates masters' orders, for as long as it holds the lease.

    Parameters
    ----------
    read_pipe : Pipe
        For waiting on the stream.
    """

    def __init__(
        self,
        read_pipe: Pipe,
        lease: Lease,
        observer: Observer,
        *,
        decisions: Decisions,
        decider: Decider,
        fanout: Fanout,
        keeper: Keeper,
        redelivery: Redelivery,
        remainders: Remainders,
        tallies: Tallies,
        limits: Limits,
        retry_ms: int,
    ) -> None:
        self._lease, self._observer, self._decisions = lease, observer, decisions
        self._decider, self._fanout, self._keeper, self._tallies = decider, fanout, keeper, tallies
        self._limits, self._redelivery, self._remainders = limits, redelivery, remainders
        self._consumer = Consumer(read_pipe, GROUP, consumer_name(), (keys.REPLICATIONS,))
        self._retry_ms = retry_ms
        self._owes_pending = True
        self._looked_s = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Replicate until `stop` is set; a store that fails is waited for.

        Raises
        ------
        StoreError
            `functions_missing`: whoever runs us loads them and starts anew.
        """
        keep_consuming(self._consumer, lambda: self.step(_WAIT_MS), stop, retry_ms=self._retry_ms)
        with contextlib.suppress(StoreError):
            self._lease.give_up()
        self._observer.close()

    def step(self, wait_ms: int) -> int:
        """Take what is there, waiting so long for the first entry, and replicate it; returns how many entries."""
        if not self._lease.hold():
            self._owes_pending = True
            self._look()
            time.sleep(wait_ms / 1e3)
            return 0
        entries = self._entries(wait_ms)
        for entry in entries:
            self._owes_pending = True  # until it is acknowledged
            self._replicate(entry)
            self._owes_pending = False
        if not entries:
            self._look()
        self._keeper.settle()
        self._limits.check(self._keeper)
        return len(entries)

    def _entries(self, wait_ms: int) -> list[Entry]:
        if not self._owes_pending:
            return self._consumer.read(_AT_ONCE, wait_ms)
        self._look()
        # Only who holds the lease reads: whatever is pending is nobody's work any more.
        pending: list[Entry] = []
        while found := self._consumer.take_over(0, _AT_ONCE):
            known = {entry.id for entry in pending}
            if all(entry.id in known for entry in found):
                break
            pending += [entry for entry in found if entry.id not in known]
        self._owes_pending = False
        return sorted(pending, key=lambda entry: tuple(map(int, entry.id.split("-"))))

    def _look(self) -> None:
        now_s = time.monotonic()
        share = min(1.0, (now_s - self._looked_s) / _REREAD_WITHIN_S)
        self._looked_s = now_s
        self._observer.look(share)

    def _replicate(self, entry: Entry) -> None:
        crash.reach("replicator.taken")
        self._lease.hold()
        try:
            event = parse_event(entry.id, entry.fields)
            self._carry_out(event)
        except (InvalidId, Refused) as fault:
            self._bury(entry, fault)
            return
        except StoreError as failure:
            if failure.code != "decision_unreadable" and entry.deliveries < _ATTEMPTS:
                raise
            self._bury(entry, failure)
            return
        except Exception as fault:
            log.exception("replication_failed", entry=entry.id)
            self._bury(entry, TryLater(f"{type(fault).__name__}: {fault}", code="replication_failed"))
            return
        self._consumer.acknowledge([entry])
        crash.reach("replicator.acknowledged")

    def _carry_out(self, event: MasterEvent) -> None:
        decision = self._decisions.load(event.order_id)
        if decision is not None and decision.header["master"] != event.master.id:
            raise Refused(f"order {event.order_id} is another master's", code="order_of_other_master")
        if not event.creates:
            self._keeper.follow(event, decision)
            if decision is not None and event.target.share == 0:
                self._remainders.forget(decision)
            return
        glance = None
        if decision is None:
            own, glance = self._decide(event)
            decision = self._decisions.store(own)
            glance = glance if decision is own else None
            crash.reach("replicator.decided")
        if decision.results is None:
            self._make(event, decision, glance)
        if decision.target_version > event.version:  # it went on before its copies were made
            self._keeper.catch_up(decision)

    def _decide(self, event: MasterEvent) -> tuple[Decision, Glance | None]:
        target, version = self._decisions.target_of(event.order_id)
        decision, glance = self._decider.decide(event)
        decision.target, decision.target_version = target, version
        if target is not None and target.share == 0:
            unopened = decision.rows["reason"] == b""
            decision.rows["reason"][unopened] = b"order_ended"
        return decision, glance

    def _make(self, event: MasterEvent, decision: Decision, glance: Glance | None) -> None:
        self._remainders.keep(decision)
        found = self._fanout.make(event, decision, glance, until_ms=self._lease.ends_ms)
        self._redelivery.bring_about(decision, found)
        decision.results = {"order_id": event.order_id, "found": len(found)}
        self._decisions.finish(decision)
        crash.reach("replicator.finished")
        self._tallies.add(event, decision)

    def _bury(self, entry: Entry, failure: CopyriskError) -> None:
        log.critical("dead_letter", code=failure.code, reason=str(failure), stream=entry.stream, entry=entry.id)
        self._consumer.bury(entry, failure)


def consumer_name() -> str:
    """A name that no other process has or had."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
