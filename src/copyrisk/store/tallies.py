"""How replication goes, as counts that only grow: of each master, and of all of them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import structlog

from copyrisk import keys
from copyrisk.errors import StoreError
from copyrisk.replication import COPIED, MasterEvent
from copyrisk.store.decisions import Decision
from copyrisk.store.functions import text, texts
from copyrisk.store.pipe import Pipe, pack

log = structlog.get_logger(__name__)

#: Upper bounds of the latency buckets in ms, from the stream entry to the stored copy; a last one has no bound.
BUCKETS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000)
#: Reasons that are no decision of anybody: the copy should have been made.
FAILURES = ("account_unreadable", "account_unknown", "account_busy")
ALL = ""


class Tallies:
    """Counts."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def add(self, event: MasterEvent, decision: Decision) -> None:
        """Count what came of a decision.

        Raises
        ------
        StoreUnavailable
            The counts may have it or not.
        """
        counts = counts_of(decision)
        requests = [
            pack("HINCRBY", keys.replication_counts(whose), name, count)
            for whose in (event.master.id, ALL)
            for name, count in counts.items()
        ]
        for reply in self._pipe.exchange(requests):
            if isinstance(reply, Exception):  # whoever cannot be counted is copied all the same
                log.error("not_counted", order=event.order_id, reason=str(reply))

    def read(self, master_id: str = ALL) -> dict[str, int]:
        """The counts of a master, or of all.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        (reply,) = self._pipe.ask(pack("HGETALL", keys.replication_counts(master_id)))
        said: Mapping[str, str] = (
            {text(name): text(value) for name, value in reply.items()} if isinstance(reply, dict) else texts(reply)
        )
        try:
            return {name: int(value) for name, value in said.items()}
        except ValueError:
            raise StoreError("what is counted is no number", code="counts_unreadable") from None


def counts_of(decision: Decision) -> dict[str, int]:
    """`orders`, `followers`, `copied`, `failed`, `reason:<why not>`, and latencies as `within_ms:<bound>`."""
    assert decision.made is not None
    made: Any = decision.made
    results = Counter(text(result) for result in made["result"].tolist())
    copied = results.pop(COPIED.decode(), 0)
    failed = sum(results[reason] for reason in FAILURES)
    found = {"orders": 1, "followers": len(made), "copied": copied, "failed": failed}
    found |= {f"reason:{reason}": count for reason, count in results.items()}
    stored_ms = made["stored_us"][(made["result"] == COPIED) & (made["stored_us"] >= 0)] / 1e3
    places = np.bincount(np.searchsorted(BUCKETS_MS, stored_ms), minlength=len(BUCKETS_MS) + 1)
    for bound, count in zip((*BUCKETS_MS, "inf"), places.tolist(), strict=True):
        if count:
            found[f"within_ms:{bound}"] = count
    return {name: count for name, count in found.items() if count}
