"""Cascades: where each follower of a frozen list stands, and what came of them all. Pure: no store.

A follower waits until it is looked at. One without a copy is flat; of one with copies it is noted which, and what was
booked on them before, ahead of any close. So whoever carries on after a crash, and whoever closed them, what came of
them can be told from their orders' records.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from copyrisk.decimals import ZERO, decimal_text, money_text, parse_decimal
from copyrisk.orders import FINISHED, HOLDING_LOTS, State
from copyrisk.records import Order

#: Why a follower is not at its end although nothing is wrong.
IN_FLIGHT = "in_flight"
#: What no waiting mends: a few tries, and it has failed.
LASTING = frozenset(
    {
        "account_missing",
        "account_unreadable",
        "orders_unreadable",
        "order_unreadable",
        "order_missing",
        "outbox_unreadable",
    }
)
_ATTEMPTS = 8
_FIRST_RETRY_S, _SLOWEST_RETRY_S = 0.1, 5.0


class Stage(StrEnum):
    """Where a follower stands; nothing leaves the last three."""

    WAITING = "waiting"
    CLOSING = "closing"
    DONE = "done"
    FLAT = "flat"  # it had no copy when it was looked at first
    FAILED = "failed"


ENDED = (Stage.DONE, Stage.FLAT, Stage.FAILED)


class Before(NamedTuple):
    """What had been closed of a copy, and booked on it, when it was seen first."""

    lots: Decimal
    net_profit_usd: Decimal


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a follower stands.

    Attributes
    ----------
    copies : dict
        By order id, every copy that was ever seen in this cascade.
    closed, cancelled, unknown : int
        Copies whose positions were closed; that were taken back; of which nobody knows. Counted at the end.
    lots : Decimal
        That were closed, by whomever.
    result_usd : Decimal or None
        Of these lots; `None`: not known of all of them.
    code : str
        Why it failed.
    first_ms, last_ms : int
        When it was looked at first, when it came to its end, by the server's clock; 0: not yet.
    """

    stage: Stage = Stage.WAITING
    copies: Mapping[str, Before] = field(default_factory=dict)
    closed: int = 0
    cancelled: int = 0
    unknown: int = 0
    lots: Decimal = ZERO
    result_usd: Decimal | None = ZERO
    code: str = ""
    first_ms: int = 0
    last_ms: int = 0


@dataclass(slots=True)
class Cascade:
    """A cascade as it is stored.

    Attributes
    ----------
    said : dict
        What was known when it began: figures, cause.
    standings : dict
        By follower id, the frozen list.
    summary : dict or None
        `None`: it is running.
    """

    id: str
    master_id: str
    said: Mapping[str, Any]
    started_ms: int
    standings: dict[str, Standing]
    summary: Mapping[str, Any] | None = None
    finished_ms: int = 0


# ---- a follower's way


def sighted(standing: Standing, orders: Mapping[str, Order], now_ms: int) -> Standing:
    """The standing of a follower that has these copies now; equal to what it was if there is nothing new."""
    new = {own: _before(order) for own, order in orders.items() if own not in standing.copies}
    if not new:
        return standing
    return replace(
        standing,
        stage=Stage.CLOSING,
        copies={**standing.copies, **new},
        first_ms=standing.first_ms or now_ms,
    )


def _before(order: Order) -> Before:
    is_position = order.state in HOLDING_LOTS
    return Before(order.opened - order.quantity if is_position else ZERO, order.net_profit_usd)


def ended(standing: Standing, orders: Mapping[str, Order | None], code: str, now_ms: int) -> Standing:
    """The standing of a follower at its end: flat, done, or (with a code) failed.

    Parameters
    ----------
    orders : dict
        By order id, the copies that were seen, as their records say; `None` for one that nobody knows any more.
    """
    stage = Stage.FAILED if code else Stage.DONE if standing.copies else Stage.FLAT
    closed = cancelled = unknown = 0
    lots, result = ZERO, ZERO
    for own, before in standing.copies.items():
        order = orders.get(own)
        if order is None or (order.state not in FINISHED and not code):
            unknown += 1
            continue
        if order.state in (State.CANCELLED, State.REJECTED):
            cancelled += 1
            continue
        closed += order.state is State.CLOSED
        left = order.quantity if order.state in HOLDING_LOTS else ZERO
        lots += max(order.opened - left - before.lots, ZERO)
        result += order.net_profit_usd - before.net_profit_usd
    return replace(
        standing,
        stage=stage,
        closed=closed,
        cancelled=cancelled,
        unknown=unknown,
        lots=lots,
        result_usd=None if unknown else result,
        code=code,
        first_ms=standing.first_ms or now_ms,
        last_ms=now_ms,
    )


@dataclass(slots=True)
class Chase:
    """How a follower that is not at its end is gone after: when it is due, and why it is not there yet.

    Attributes
    ----------
    due_s, since_s : float
        When it is looked at again; since when the same trouble lasts. Of this process's steady clock.
    """

    due_s: float = 0.0
    since_s: float = 0.0
    tries: int = 0
    code: str = ""

    def note(self, code: str, now_s: float) -> None:
        """Take what came of a round (empty: all it could do was done), and put off what could not be done."""
        if not code:
            self.due_s, self.tries, self.code = now_s, 0, ""
            return
        if not self.tries or _kind(code) != _kind(self.code):
            self.since_s, self.tries = now_s, 0
        self.tries, self.code = self.tries + 1, code
        self.due_s = now_s + min(_FIRST_RETRY_S * 2.0 ** min(self.tries - 1, 16), _SLOWEST_RETRY_S)

    def is_hopeless(self, now_s: float, limit_s: float) -> bool:
        """Whether nobody needs to try again. What is with the provider ends by its reports, or by an operator."""
        if self.code in LASTING:
            return self.tries >= _ATTEMPTS
        return bool(self.code) and self.code != IN_FLIGHT and now_s - self.since_s > limit_s


def _kind(code: str) -> str:
    """What is counted is for how long the same kind of trouble lasts."""
    return code if code == IN_FLIGHT else "lasting" if code in LASTING else "passing"


# ---- all of them


@dataclass(frozen=True, slots=True)
class CascadeProgress:
    """What one step of all cascades did, and what is left.

    Attributes
    ----------
    running, waiting : int
        Cascades, and followers of them that are not at their ends.
    finished : int
        Cascades that ended in this step.
    closes, refused : int
        Closes and cancels that were stored or sent to the provider in this step; those that could not be.
    """

    running: int = 0
    waiting: int = 0
    finished: int = 0
    closes: int = 0
    refused: int = 0


def summarise(standings: Mapping[str, Standing], duration_ms: int) -> dict[str, Any]:
    """What came of a cascade, as words and numbers of JSON."""
    every = list(standings.values())
    results = [one.result_usd for one in every]
    return {
        "followers": len(every),
        **{stage.value: sum(one.stage is stage for one in every) for stage in ENDED},
        "failed_by_reason": dict(Counter(one.code for one in every if one.stage is Stage.FAILED)),
        **{name: sum(getattr(one, name) for one in every) for name in ("closed", "cancelled", "unknown")},
        "lots": decimal_text(sum((one.lots for one in every), ZERO)),
        "result_usd": None if None in results else money_text(sum((one or ZERO for one in results), ZERO)),
        "duration_ms": duration_ms,
    }


def cascade_facts(cascade: Cascade) -> dict[str, Any]:
    """What is said of a cascade, without its followers, wherever it is said; while it runs there is no result yet.

    Of `followers` some are `done` (had copies, which are closed), `flat` (had none) or `failed`; the others are not at
    their end. What a cascade that has ended says of that is as it was stored.
    """
    so_far = summarise(cascade.standings, 0) | {"duration_ms": None, "result_usd": None}
    return {
        "id": cascade.id,
        "master": cascade.master_id,
        "state": "running" if cascade.summary is None else "ended",
        "started_ms": cascade.started_ms,
        "finished_ms": cascade.finished_ms or None,
        **(so_far if cascade.summary is None else cascade.summary),
    }


def standing_text(standing: Standing) -> str:
    """A standing as it is stored; the empty text for a follower that waits.

    JSON: `s` stage, `o` copies with the lots closed and the USD booked before, `n` closed, cancelled and unknown, `l`
    lots, `u` result in USD or null, `c` code, `t` first and last ms.
    """
    if standing.stage is Stage.WAITING:
        return ""
    said = {
        "s": standing.stage.value,
        "o": {own: [decimal_text(one.lots), money_text(one.net_profit_usd)] for own, one in standing.copies.items()},
        "n": [standing.closed, standing.cancelled, standing.unknown],
        "l": decimal_text(standing.lots),
        "u": None if standing.result_usd is None else money_text(standing.result_usd),
        "c": standing.code,
        "t": [standing.first_ms, standing.last_ms],
    }
    return json.dumps(said, separators=(",", ":"))


def parse_standing(stored: str) -> Standing:
    """The standing of such a text.

    Raises
    ------
    ValueError, LookupError, TypeError, AttributeError, RecursionError
        It is none.
    """
    if not stored:
        return Standing()
    said = json.loads(stored)
    closed, cancelled, unknown = map(int, said["n"])
    first_ms, last_ms = map(int, said["t"])
    return Standing(
        Stage(said["s"]),
        {str(own): Before(_exact(lots), _exact(net)) for own, (lots, net) in said["o"].items()},
        *(closed, cancelled, unknown, _exact(said["l"])),
        None if said["u"] is None else _exact(said["u"]),
        str(said["c"]),
        *(first_ms, last_ms),
    )


def _exact(text: Any) -> Decimal:
    value = parse_decimal(text)
    if value is None:
        raise ValueError(f"no number: {str(text)[:40]}")
    return value
