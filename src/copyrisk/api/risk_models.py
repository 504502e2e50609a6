"""What the OpenAPI document says of the desk's figures. Amounts are USD, levels and moves percent; null: not known."""

from typing import Annotated, Any, Literal

from pydantic import Field

from copyrisk.api.documents import WHOLE_SYMBOL, Shape
from copyrisk.scenario import HIGHEST_PCT, LOWEST_PCT, MOST_MOVES

Count = Annotated[int, Field(ge=0)]
State = Literal["unknown", "no_margin", "healthy", "warning", "critical"]
Rung = Literal["warning", "critical"]


# ---- summary


class ByState(Shape):
    """How many accounts stand where."""

    unknown: Count
    no_margin: Count
    healthy: Count
    warning: Count
    critical: Count


class Accounts(Shape):
    """How many accounts there are."""

    total: Count
    by_type: dict[str, ByState]


class Totals(Shape):
    """Sums over the accounts that are known."""

    equity_usd: float | None
    used_margin_usd: float | None
    open_pnl_usd: float | None


class Histogram(Shape):
    """Accounts that use margin by their margin level: below the first bound, between each two, from the last one on."""

    edges_pct: list[float]
    counts: list[Count]


class AccountLine(Shape):
    """An account on the ladder."""

    account: str
    state: State
    margin_level_pct: float | None
    warning_level_pct: float | None
    critical_level_pct: float | None
    equity_usd: float | None
    used_margin_usd: float | None
    open_pnl_usd: float | None


class Tick(Shape):
    """The daemon's last tick; `duration_ms` is how long the one before took."""

    ts: int
    age_ms: Count
    duration_ms: float | None
    late_ticks: int | None
    period_ms: int | None


class CascadeLine(Shape):
    """How far a cascade has got: some followers are done, some had no copy (`flat`), some failed, others still wait."""

    id: str
    master: str
    state: Literal["running", "ended"]
    started_ms: int
    finished_ms: int | None
    followers: Count
    done: Count
    flat: Count
    failed: Count


class Replication(Shape):
    """The last minute; `p50_ms` and `p99_ms` are upper bounds, null without copies or above 5,000 ms: `slow_copies`."""

    events: Count
    copies: Count
    skipped: Count
    failed: Count
    p50_ms: int | None
    p99_ms: int | None
    slow_copies: Count
    last_event_ms: int | None


class Summary(Shape):
    """All accounts at a glance. Of a book that is too old `accounts` to `unknown` are null."""

    now_ms: int
    tick: Tick | None
    accounts: Accounts | None
    totals: Totals | None
    histogram: Histogram | None
    closest: list[AccountLine] | None
    unknown: dict[str, Count] | None
    cascades: list[CascadeLine] | None
    replication: Replication | None
    halted: list[str] | None
    book_age_ms: int | None


# ---- ladder


class Crossing(Shape):
    """Where the first account reaches a level."""

    price: float | None
    move_pct: float


class Crossings(Shape):
    """The nearest ones in one direction."""

    warning: Crossing | None
    critical: Crossing | None


class LadderLine(Shape):
    """A symbol."""

    symbol: str
    bid: float | None
    ask: float | None
    accounts: Count
    lots: float
    down: Crossings
    up: Crossings


class Ladder(Shape):
    """All symbols that are held."""

    now_ms: int
    symbols: list[LadderLine]


class Reached(Shape):
    """How many accounts, with how many lots of the symbol, have reached a level by there."""

    accounts: Count
    lots: float


class LadderRung(Shape):
    """A move from the current price; counts are of all crossings up to it."""

    direction: Literal["down", "up"]
    move_pct: float
    price: float | None
    warning: Reached
    critical: Reached


class Nearest(Shape):
    """An account's nearest crossing."""

    account: str
    kind: Rung
    price: float | None
    move_pct: float
    lots: float


class Already(Shape):
    """Accounts that stand there now."""

    warning: Count
    critical: Count


class SymbolLadder(Shape):
    """The liquidation ladder of a symbol; on no rung are accounts that are unknown, or rest on a closed market."""

    symbol: str
    bid: float | None
    ask: float | None
    now_ms: int
    accounts: Count
    lots: float
    unknown: Count
    closed: Count
    already: Already
    rungs: list[LadderRung]
    nearest: list[Nearest]


# ---- what if


class Warned(Shape):
    """An account that would be warned."""

    account: str
    margin_level_pct: float | None
    equity_usd: float | None


class Liquidated(Warned):
    """An account of which positions would be closed, and what it would come to afterwards."""

    closes: Count
    lots: float
    level_after_pct: float | None
    equity_after_usd: float | None


class WarnedList(Shape):
    """How many, and some of them."""

    count: Count
    accounts: list[Warned]


class LiquidatedList(Shape):
    """How many, and some of them."""

    count: Count
    accounts: list[Liquidated]


class MasterCascade(Shape):
    """Whose copies would be closed because their master's margin runs out."""

    master_id: str
    followers: Count
    copies: Count
    lots: float
    follower_ids: list[str] = Field(alias="list")


class CascadeSet(Shape):
    """How many masters cascade, and some of them, most copies first."""

    count: Count
    masters: list[MasterCascade] = Field(alias="list")


class EquityLeft(Shape):
    """All accounts that are known."""

    before_usd: float | None
    after_usd: float | None
    negative_usd: float | None
    negative_accounts: Count


class WhatIf(Shape):
    """What would come of moves; nothing is done. `closed`: would be at a level, but a market it holds is closed."""

    now_ms: int
    moves: dict[str, float]
    before: ByState
    after: ByState
    warned: WarnedList
    liquidated: LiquidatedList
    cascades: CascadeSet
    equity: EquityLeft
    unknown: Count
    closed: Count


#: The body of a what-if.
MOVES_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["moves"],
    "properties": {
        "moves": {
            "type": "object",
            "description": "by symbol, the move of its quote in percent",
            "minProperties": 1,
            "maxProperties": MOST_MOVES,
            "propertyNames": {"pattern": WHOLE_SYMBOL},
            "additionalProperties": {
                "anyOf": [
                    {"type": "number", "minimum": int(LOWEST_PCT), "maximum": int(HIGHEST_PCT)},
                    {"type": "string", "pattern": r"^-?[0-9]{1,4}(\.[0-9]{1,18})?$"},
                ]
            },
        }
    },
}
