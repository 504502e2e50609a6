"""How replication goes, worked out from its counts; and what of that is within its targets."""

from collections.abc import Mapping
from typing import Any

from copyrisk.store.tallies import BUCKETS_MS

SUCCESS_TARGET_PCT, LATENCY_TARGET_MS = 99.9, 100
_REASON, _WITHIN = "reason:", "within_ms:"
_BOUNDS = (*(str(bound) for bound in BUCKETS_MS), "inf")


def progress_of(counts: Mapping[str, int]) -> dict[str, Any]:
    """What the counts of `store.tallies` come to; `None` for what cannot be told of nothing.

    `p50_ms` and `p99_ms` are upper bounds, as texts: latencies are only counted in buckets, the last of which is `inf`.
    """
    copied, failed = counts.get("copied", 0), counts.get("failed", 0)
    tried = copied + failed
    success_pct = 100.0 * copied / tried if tried else None
    p50, p99 = (latency_bound(counts, percent) for percent in (50, 99))
    why_not = {name.removeprefix(_REASON): count for name, count in counts.items() if name.startswith(_REASON)}
    return {
        **{name: counts.get(name, 0) for name in ("orders", "followers", "copied", "failed")},
        "success_pct": success_pct,
        "success_target_pct": SUCCESS_TARGET_PCT,
        "success_reached": None if success_pct is None else success_pct >= SUCCESS_TARGET_PCT,
        "why_not": dict(sorted(why_not.items(), key=lambda item: (-item[1], item[0]))),
        "within_ms": {bound: counts[_WITHIN + bound] for bound in _BOUNDS if _WITHIN + bound in counts},
        "p50_ms": p50,
        "p99_ms": p99,
        "latency_target_ms": LATENCY_TARGET_MS,
        "latency_reached": None if p99 is None else float(p99) <= LATENCY_TARGET_MS,
    }


def latency_bound(counts: Mapping[str, int], percent: int) -> str | None:
    """The smallest bucket bound that so many percent of the copies were within; `None` without copies."""
    within = [counts.get(_WITHIN + bound, 0) for bound in _BOUNDS]
    total, seen = sum(within), 0
    for bound, count in zip(_BOUNDS, within, strict=True):
        seen += count
        if total and 100 * seen >= percent * total:
            return bound
    return None
