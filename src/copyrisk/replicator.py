"""The engine of copies: takes changes of masters' orders from their stream, one after the other, and replicates them.

One loop, one wait. Each entry is carried to its end before the next is begun, so copies see their master's changes in
his order; it is acknowledged last, so whatever ends this process is gone on with where it stopped. Of several such
processes one holds the lease; the others wait for it.
"""

import contextlib
import gc
import threading
import time
from collections import Counter
from typing import Any

import structlog

from copyrisk import audit, crash, keys, vitals
from copyrisk.candidates import Glance
from copyrisk.commands import Target
from copyrisk.deciding import Decider
from copyrisk.errors import CopyriskError, InvalidId, Refused, StoreError, StoreUnavailable, TryLater
from copyrisk.fanout import Fanout
from copyrisk.keeping import Keeper
from copyrisk.limits import Limits
from copyrisk.observer import Observer
from copyrisk.redelivery import Redelivery
from copyrisk.replication import COPIED, MasterEvent, parse_event
from copyrisk.store.decisions import Decision, Decisions, digest_of
from copyrisk.store.functions import text
from copyrisk.store.lease import Lease
from copyrisk.store.pipe import Pipe
from copyrisk.store.remainders import Remainders
from copyrisk.store.streams import Consumer, Entry, consumer_name, keep_consuming
from copyrisk.store.tallies import FAILURES, Tallies
from copyrisk.store.trail import Trail
from copyrisk.vitals import Vitals

log = structlog.get_logger(__name__)

GROUP, ROLE = "replicator", "replicator"
_WAIT_MS = 100
_CLAIM_S = 1.0
_REREAD_WITHIN_S = 60.0
_AT_ONCE = 100
_ATTEMPTS = 20


class Replicator:
    """Replicates masters' orders, for as long as it holds the lease.

    Parameters
    ----------
    read_pipe : Pipe
        For waiting on the stream.
    seen : Vitals or None
        Where events and copies are counted.
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
        trail: Trail,
        retry_ms: int,
        seen: Vitals | None = None,
    ) -> None:
        self._lease, self._observer, self._decisions = lease, observer, decisions
        self._decider, self._fanout, self._keeper, self._tallies = decider, fanout, keeper, tallies
        self._limits, self._redelivery, self._remainders, self._trail = limits, redelivery, remainders, trail
        self._consumer = Consumer(read_pipe, GROUP, consumer_name(), (keys.REPLICATIONS,))
        self._retry_ms, self._vitals = retry_ms, seen or Vitals()
        self._owes_pending = True
        self._looked_s = self._claimed_s = time.monotonic()
        self._failures: Counter[str] = Counter()

    def run(self, stop: threading.Event) -> None:
        """Replicate until `stop` is set; a store that fails is waited for.

        Raises
        ------
        StoreError
            `functions_missing`: whoever runs us loads them and starts anew.
        """
        self._begin()
        step, retry_ms = (lambda: self.step(_WAIT_MS, stop)), self._retry_ms
        keep_consuming(self._consumer, step, stop, retry_ms=retry_ms, seen=self._vitals)
        with contextlib.suppress(StoreError):
            self._lease.give_up()
        self._observer.close()

    def _begin(self) -> None:
        """Read everything once. It lives as long as the process: the garbage collector need not walk it in an event."""
        with contextlib.suppress(StoreError):  # then the first step does
            self._look()
        gc.collect()
        gc.freeze()

    def step(self, wait_ms: int, stop: threading.Event | None = None) -> int:
        """Take what is there, waiting so long for the first entry, and replicate it; returns how many entries.

        Those that are left when `stop` is set, or the lease is lost, wait for the next who holds the lease.
        """
        is_held = self._lease.hold()
        self._vitals.set(vitals.LEASE_HELD, is_held, ROLE)
        self._vitals.say("lease", "held" if is_held else "standby", is_ready=True)
        if not is_held:
            self._owes_pending = True
            self._look()
            time.sleep(wait_ms / 1e3)
            return 0
        entries = self._entries(wait_ms)
        owes, self._owes_pending = self._owes_pending, True  # until all are acknowledged
        for entry in entries:
            if stop is not None and stop.is_set():
                return len(entries)
            self._replicate(entry)
        self._owes_pending = owes
        if not entries:
            self._look()
        self._keeper.settle()
        self._limits.check(self._keeper)
        return len(entries)

    def _entries(self, wait_ms: int) -> list[Entry]:
        if self._owes_pending:
            self._look()
            self._owes_pending = False
            # Only who holds the lease reads: whatever is pending is nobody's work any more.
            return self._consumer.take_over_all()
        entries = self._consumer.read(_AT_ONCE, wait_ms)
        if not entries and time.monotonic() - self._claimed_s > _CLAIM_S:
            # Who lost the lease between asking for it and reading may have been handed something.
            self._claimed_s = time.monotonic()
            entries = self._consumer.take_over_all()
        return entries

    def _look(self) -> None:
        now_s = time.monotonic()
        share = min(1.0, (now_s - self._looked_s) / _REREAD_WITHIN_S)
        self._looked_s = now_s
        self._observer.look(share)

    def _replicate(self, entry: Entry) -> None:
        crash.reach("replicator.taken")
        self._lease.keep()
        try:
            event = parse_event(entry.id, entry.fields)
            self._carry_out(event)
        except (InvalidId, Refused) as fault:
            self._bury(entry, fault)
            return
        except StoreUnavailable:
            raise
        except StoreError as failure:
            self._failures[entry.id] += 1
            if failure.code != "decision_unreadable" and self._failures[entry.id] < _ATTEMPTS:
                raise
            self._bury(entry, failure)
            return
        except Exception as fault:
            log.exception("replication_failed", entry=entry.id)
            self._bury(entry, TryLater(f"{type(fault).__name__}: {fault}", code="replication_failed"))
            return
        self._failures.pop(entry.id, None)
        self._consumer.acknowledge([entry])
        self._vitals.count(vitals.EVENTS, "made" if event.creates else "followed")
        self._vitals.step_done()  # those that are left may take a while
        crash.reach("replicator.acknowledged")

    def _carry_out(self, event: MasterEvent) -> None:
        decision, target, version = self._decisions.look_up(event.order_id)
        if decision is not None and decision.header["master"] != event.master.id:
            raise Refused(f"order {event.order_id} is another master's", code="order_of_other_master")
        if not event.creates:
            self._keeper.follow(event, decision)
            if decision is not None and event.target.share == 0:
                self._remainders.forget(decision)
            return
        glance = None
        if decision is None:
            own, glance = self._decide(event, target, version)
            decision = self._decisions.store(own)
            glance = glance if decision is own else None
            crash.reach("replicator.decided")
        if decision.results is None:
            self._make(event, decision, glance)
        if decision.target_version > event.version:  # it went on before its copies were made
            self._keeper.catch_up(decision)

    def _decide(self, event: MasterEvent, target: Target | None, version: int) -> tuple[Decision, Glance | None]:
        decision, glance = self._decider.decide(event)
        decision.target, decision.target_version = target, version
        if target is not None and target.share == 0:
            unopened = decision.rows["reason"] == b""
            decision.rows["reason"][unopened] = b"order_ended"
        return decision, glance

    def _make(self, event: MasterEvent, decision: Decision, glance: Glance | None) -> None:
        self._lease.keep()
        self._trail.append([decision_entry(event, decision, "resumed" if glance is None else "decided")])
        self._remainders.keep(decision)
        found = self._fanout.make(event, decision, glance)
        self._redelivery.bring_about(decision, found)
        decision.results = {"order_id": event.order_id, "found": len(found)}
        self._lease.keep()
        self._tallies.add(event, decision)
        self._measure(event, decision)
        self._decisions.finish(decision)
        crash.reach("replicator.finished")

    def _measure(self, event: MasterEvent, decision: Decision) -> None:
        made: Any = decision.made
        for reason, count in Counter(made["result"].tolist()).items():
            word = text(reason)
            if reason == COPIED:
                self._vitals.count(vitals.COPIES, "made", "", by=count)
            else:
                self._vitals.count(vitals.COPIES, "failed" if word in FAILURES else "skipped", word, by=count)
        stored = made["stored_us"][(made["result"] == COPIED) & (made["stored_us"] >= 0)]
        if len(stored):
            self._vitals.observe(vitals.COPY_SECONDS, (stored / 1e6).tolist())
            self._vitals.observe(vitals.REPLICATION_SECONDS, [time.time() - event.ts_ms / 1e3])

    def _bury(self, entry: Entry, failure: CopyriskError) -> None:
        log.critical("dead_letter", code=failure.code, reason=str(failure), stream=entry.stream, entry=entry.id)
        self._consumer.bury(entry, failure)
        self._vitals.count(vitals.EVENTS, "buried")
        self._vitals.count(vitals.BURIED, failure.code)


def decision_entry(event: MasterEvent, decision: Decision, reason: str) -> audit.Entry:
    """What the audit trail says of a decision: its order, why how many followers get no copy, and its digest."""
    counts = Counter(text(why) or "to_be_copied" for why in decision.rows["reason"].tolist())
    header = decision.header
    said = {
        "order_id": event.order_id,
        "symbol": event.symbol,
        "order_type": event.order_type.value,
        "lots": event.asked,
        "price": event.price,
        "version": event.version,
        "figures": header.get("master_figures"),
        "quote": header.get("quote"),
        "decided_ms": header.get("decided_ms"),
        "followers": dict(counts),
        "decision_sha256": digest_of(decision),
    }
    return audit.Entry(audit.AuditKind.REPLICATION, str(event.master), event.entry_id, reason, said)
