"""The desk's summary: what all accounts come to, how ticks and copies go, what cascades, what is halted. Pure.

Amounts are USD rounded to cents, levels percent to two decimals; `None` is what is not known.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from copyrisk._core import LadderState
from copyrisk.book import Book, RowNumbers
from copyrisk.cascade import Cascade, cascade_facts
from copyrisk.census import Census
from copyrisk.decimals import as_float
from copyrisk.kills import Kills
from copyrisk.layout import Rows
from copyrisk.progress import latency_bound
from copyrisk.risk import are_known, count_unknown, rounded
from copyrisk.store.tallies import BUCKETS_MS
from copyrisk.terms import AccountType

#: Bounds of the histogram's bins in percent; a first bin holds what is below, a last one what is above.
EDGES_PCT = (0, 10, 20, 50, 75, 100, 150, 200, 300, 500, 1_000)
CLOSEST = 25
#: What is said of replication is of so long.
WINDOW_MS = 60_000
_KNOWN_STATES = (LadderState.HEALTHY, LadderState.WARNING, LadderState.CRITICAL)
_BOOK_PARTS = ("accounts", "totals", "histogram", "closest", "unknown")
_COUNTED = ("orders", "followers", "copied", "failed")
_BEYOND_LAST = "within_ms:inf"


def state_name(state: LadderState) -> str:
    """`unknown`, `no_margin`, `healthy`, `warning` or `critical`."""
    return state.name.lower().removeprefix("state_")


# ---- accounts


def figures_of_book(book: Book, figures: Rows, census: Census) -> dict[str, Any]:
    """What is said of the accounts; the totals are without demo accounts, whose money is nobody's.

    Parameters
    ----------
    figures : (a,) Figures
    """
    rows, counts = book.account_rows(), census.count(figures)
    known = rows[are_known(figures["code"][rows])]
    money = known[~census.are(AccountType.DEMO, known)]
    return {
        "accounts": {
            "total": len(rows),
            "by_type": {
                kind.value: {state_name(state): counts[kind, state] for state in LadderState} for kind in AccountType
            },
        },
        "totals": {
            "equity_usd": rounded(figures["equity"][money].sum()),
            "used_margin_usd": rounded(figures["used_margin_executed"][money].sum()),
            "open_pnl_usd": rounded(figures["open_pnl"][money].sum()),
        },
        "histogram": _histogram(figures, known),
        "closest": _closest(book, figures, known),
        "unknown": count_unknown(book, figures),
    }


def withheld() -> dict[str, Any]:
    """What is said of the accounts when it is not known any more."""
    return dict.fromkeys(_BOOK_PARTS)


def _histogram(figures: Rows, known: RowNumbers) -> dict[str, Any]:
    """Accounts that use margin, by their margin level; a bound belongs to the bin above it."""
    levels = figures["margin_level_pct"][_on_ladder(figures, known)]
    counts = np.bincount(np.searchsorted(EDGES_PCT, levels, side="right"), minlength=len(EDGES_PCT) + 1)
    return {"edges_pct": list(EDGES_PCT), "counts": counts.tolist()}


def _on_ladder(figures: Rows, known: RowNumbers) -> RowNumbers:
    chosen: RowNumbers = known[np.isin(figures["state"][known], _KNOWN_STATES)]
    return chosen


def _closest(book: Book, figures: Rows, known: RowNumbers) -> list[dict[str, Any]]:
    """The accounts with the fewest points left to their next threshold below: warning, or once there critical.

    Who is below its critical level has less than none left and comes first.
    """
    rows = _on_ladder(figures, known)
    accounts: Any = book.accounts
    threshold = np.where(
        figures["state"][rows] == LadderState.HEALTHY,
        accounts["warning_level_pct"][rows],
        accounts["critical_level_pct"][rows],
    )
    left = figures["margin_level_pct"][rows] - threshold
    if len(rows) > CLOSEST:
        chosen = np.argpartition(left, CLOSEST)[:CLOSEST]
        rows, left = rows[chosen], left[chosen]
    order = np.lexsort((rows, left))
    return [_account_line(book, figures, row) for row in rows[order].tolist()]


def _account_line(book: Book, figures: Rows, row: int) -> dict[str, Any]:
    account: Any = book.accounts[row]
    figure: Any = figures[row]
    return {
        "account": str(book.account_at(row)),
        "state": state_name(LadderState(int(figure["state"]))),
        "margin_level_pct": rounded(figure["margin_level_pct"]),
        "warning_level_pct": rounded(account["warning_level_pct"]),
        "critical_level_pct": rounded(account["critical_level_pct"]),
        "equity_usd": rounded(figure["equity"]),
        "used_margin_usd": rounded(figure["used_margin_executed"]),
        "open_pnl_usd": rounded(figure["open_pnl"]),
    }


# ---- what the other processes say of themselves


def tick_facts(said: Mapping[str, str], now_ms: int) -> dict[str, Any] | None:
    """What the daemon's record of its last tick says; `None` if it says no time."""
    told = {name: as_float(said.get(name)) for name in ("ts", "duration_ms", "late_ticks", "period_ms")}
    ts, duration_ms = told["ts"], told["duration_ms"]
    if ts is None:
        return None
    return {
        "ts": int(ts),
        "age_ms": max(now_ms - int(ts), 0),
        "duration_ms": duration_ms,
        "late_ticks": _whole(told["late_ticks"]),
        "period_ms": _whole(told["period_ms"]),
    }


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


class ReplicationWindow:
    """How replication went in the last minute, from counts that only grow."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, Mapping[str, int]]] = deque()

    def take(self, now_ms: int, counts: Mapping[str, int]) -> None:
        """Remember what is counted now; counts that shrank were begun anew, and so is this."""
        if self._seen and any(counts.get(name, 0) < count for name, count in self._seen[-1][1].items()):
            self._seen.clear()
        self._seen.append((now_ms, counts))
        while len(self._seen) > 1 and self._seen[1][0] <= now_ms - WINDOW_MS:
            self._seen.popleft()

    def facts(self, last_event_ms: int | None) -> dict[str, Any]:
        """Events, copies and who got none since the oldest counts that are remembered.

        `p50_ms` and `p99_ms` are upper bounds, `None` without copies or above the largest bound; `slow_copies` are the
        copies above that.
        """
        latest = self._seen[-1][1] if self._seen else {}
        before = self._seen[0][1] if self._seen else {}
        grown = {name: count - before.get(name, 0) for name, count in latest.items()}
        orders, followers, copied, failed = (grown.get(name, 0) for name in _COUNTED)
        p50, p99 = (_bound(grown, percent) for percent in (50, 99))
        return {
            "events": orders,
            "copies": copied,
            "skipped": max(followers - copied - failed, 0),
            "failed": failed,
            "p50_ms": p50,
            "p99_ms": p99,
            "slow_copies": grown.get(_BEYOND_LAST, 0),
            "last_event_ms": last_event_ms,
        }


def _bound(counts: Mapping[str, int], percent: int) -> int | None:
    bound = latency_bound(counts, percent)
    return int(bound) if bound in {str(known) for known in BUCKETS_MS} else None


def cascade_line(cascade: Cascade) -> dict[str, Any]:
    """Of what is said of a cascade, how far it has got."""
    said = cascade_facts(cascade)
    return {
        **{name: said[name] for name in ("id", "master", "state", "started_ms", "finished_ms")},
        **{name: _count(said, name) for name in ("followers", "done", "flat", "failed")},
    }


def _count(said: Mapping[str, Any], name: str) -> int:
    found = said.get(name)
    return found if type(found) is int else 0  # stored, so anything may stand there


def halted(kills: Kills) -> list[str]:
    """The scopes of the kill switch; one that cannot be read as a whole halts all."""
    return ["all"] if kills.fault is not None else [kill.scope for kill in kills.every()]


def newest_first(cascades: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cascades that run, then those that have ended."""
    return sorted(cascades, key=lambda one: (one["state"] != "running", -one["started_ms"], one["id"]))
