"""The desk's figures. Amounts are USD, levels and moves percent; `None` is not known, never zero."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class ByState:
    """How many accounts stand where."""

    unknown: int
    no_margin: int
    healthy: int
    warning: int
    critical: int


@dataclass(frozen=True, slots=True)
class AccountCounts:
    """How many accounts there are."""

    total: int
    by_type: Mapping[str, ByState]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the accounts that are known."""

    equity_usd: Decimal | None
    used_margin_usd: Decimal | None
    open_pnl_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Accounts by margin level: below the first bound, between each two, from the last one on."""

    edges_pct: tuple[Decimal, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AccountLine:
    """An account near its levels."""

    account: str
    state: str
    margin_level_pct: Decimal | None
    warning_level_pct: Decimal | None
    critical_level_pct: Decimal | None
    equity_usd: Decimal | None
    used_margin_usd: Decimal | None
    open_pnl_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Tick:
    """The daemon's last tick."""

    ts: int
    age_ms: int
    duration_ms: Decimal | None
    late_ticks: int | None
    period_ms: int | None


@dataclass(frozen=True, slots=True)
class CascadeLine:
    """How far a cascade has got: some followers are done, some had no copy (`flat`), some failed, others still wait."""

    id: str
    master: str
    state: str
    started_ms: int
    finished_ms: int | None
    followers: int
    done: int
    flat: int
    failed: int


@dataclass(frozen=True, slots=True)
class Replication:
    """The last minute; the percentiles are upper bounds."""

    events: int
    copies: int
    skipped: int
    failed: int
    p50_ms: int | None
    p99_ms: int | None
    slow_copies: int
    last_event_ms: int | None


@dataclass(frozen=True, slots=True)
class RiskSummary:
    """All accounts at a glance. Of a book that is too old `accounts` to `unknown` are `None`."""

    now_ms: int
    tick: Tick | None
    accounts: AccountCounts | None
    totals: Totals | None
    histogram: Histogram | None
    closest: tuple[AccountLine, ...] | None
    unknown: Mapping[str, int] | None
    cascades: tuple[CascadeLine, ...] | None
    replication: Replication | None
    halted: tuple[str, ...] | None
    book_age_ms: int | None


# ---- ladder


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where the first account reaches a level."""

    price: Decimal | None
    move_pct: Decimal


@dataclass(frozen=True, slots=True)
class Crossings:
    """The nearest ones in one direction."""

    warning: Crossing | None
    critical: Crossing | None


@dataclass(frozen=True, slots=True)
class LadderLine:
    """A symbol."""

    symbol: str
    bid: Decimal | None
    ask: Decimal | None
    accounts: int
    lots: Decimal
    down: Crossings
    up: Crossings


@dataclass(frozen=True, slots=True)
class Ladder:
    """All symbols that are held."""

    now_ms: int
    symbols: tuple[LadderLine, ...]


@dataclass(frozen=True, slots=True)
class Reached:
    """How many accounts, with how many lots of the symbol, have reached a level by there."""

    accounts: int
    lots: Decimal


@dataclass(frozen=True, slots=True)
class LadderRung:
    """A move from the current price; counts are of all crossings up to it."""

    direction: str
    move_pct: Decimal
    price: Decimal | None
    warning: Reached
    critical: Reached


@dataclass(frozen=True, slots=True)
class Nearest:
    """An account's nearest crossing."""

    account: str
    kind: str
    price: Decimal | None
    move_pct: Decimal
    lots: Decimal


@dataclass(frozen=True, slots=True)
class Already:
    """Accounts that stand there now."""

    warning: int
    critical: int


@dataclass(frozen=True, slots=True)
class SymbolLadder:
    """The liquidation ladder of a symbol."""

    symbol: str
    bid: Decimal | None
    ask: Decimal | None
    now_ms: int
    accounts: int
    lots: Decimal
    unknown: int
    closed: int
    already: Already
    rungs: tuple[LadderRung, ...]
    nearest: tuple[Nearest, ...]


# ---- what if


@dataclass(frozen=True, slots=True)
class Warned:
    """An account that would be warned."""

    account: str
    margin_level_pct: Decimal | None
    equity_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Liquidated(Warned):
    """An account of which positions would be closed, and what it would come to afterwards."""

    closes: int
    lots: Decimal
    level_after_pct: Decimal | None
    equity_after_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class WarnedList:
    """How many, and some of them."""

    count: int
    accounts: tuple[Warned, ...]


@dataclass(frozen=True, slots=True)
class LiquidatedList:
    """How many, and some of them."""

    count: int
    accounts: tuple[Liquidated, ...]


@dataclass(frozen=True, slots=True)
class MasterCascade:
    """Whose copies would be closed because their master's margin runs out; `follower_ids` are some of them."""

    master_id: str
    followers: int
    copies: int
    lots: Decimal
    follower_ids: tuple[str, ...] = field(metadata={"json": "list"})


@dataclass(frozen=True, slots=True)
class CascadeSet:
    """How many masters cascade; `masters` are some of them, most copies first."""

    count: int
    masters: tuple[MasterCascade, ...] = field(metadata={"json": "list"})


@dataclass(frozen=True, slots=True)
class EquityLeft:
    """All accounts that are known."""

    before_usd: Decimal | None
    after_usd: Decimal | None
    negative_usd: Decimal | None
    negative_accounts: int


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What would come of moves; nothing is done."""

    now_ms: int
    moves: Mapping[str, Decimal]
    before: ByState
    after: ByState
    warned: WarnedList
    liquidated: LiquidatedList
    cascades: CascadeSet
    equity: EquityLeft
    unknown: int
    closed: int
