"""Laws of autocutoff on a real server, held against exact arithmetic: who is closed, of what, how much; who is warned.

Before every tick the level of each account is worked out in fractions from what stands on the server (`twin`). Random
houses: types, lots, sides, hedges, currencies, own levels, all modes; quotes that wander, and balances that put a level
exactly at a threshold, one cent below it and one above.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st

from copyrisk.cutoff_report import CutoffReport
from tests import twin
from tests.backoffice import now_ms
from tests.cutoff_desk import CutoffDesk
from tests.trading import decoded

#: Of doubles, in percentage points of a level: nearer to a threshold than this, and not at it, nobody can tell.
NOISE = Fraction(1, 10**7)
HALF_A_CENT = Fraction(1, 200)
_STEP = Decimal("0.01")
MODES = ("largest_loss", "largest_margin", "smallest_partial", "flatten")
TYPES = ("live", "demo", "strategy_provider", "copy_follower")


@dataclass(frozen=True)
class Symbol:
    """What a symbol is, and how it is quoted: in whole points."""

    point: Decimal
    mid: int
    size: str = "100000"
    profit: str = "USD"
    type: str = "1"


SYMBOLS = {
    "EURUSD": Symbol(Decimal("0.00001"), 110_000),
    "EURGBP": Symbol(Decimal("0.00001"), 85_000, profit="GBP"),
    "USDJPY": Symbol(Decimal("0.001"), 150_000, profit="JPY"),
    "XAUUSD": Symbol(Decimal("0.01"), 200_000, size="100", type="2"),
    "BTCUSD": Symbol(Decimal("0.1"), 500_000, size="1", type="4"),
    "GBPUSD": Symbol(Decimal("0.00001"), 125_000),  # nobody holds it: it converts
}
HELD = tuple(symbol for symbol in SYMBOLS if symbol != "GBPUSD")
#: Which of them a position is valued by.
BEHIND = {symbol: {symbol} | ({"GBPUSD"} if symbol == "EURGBP" else set()) for symbol in HELD}


# ---- houses


@dataclass(frozen=True)
class Holding:
    symbol: str
    is_buy: bool
    lots: int  # hundredths
    away: int  # what it was opened at, in thousandths of the first price away from it
    fees: tuple[str, str]
    waits: bool


@dataclass(frozen=True)
class Holder:
    """An account; its balance comes from the first step."""

    type: str
    leverage: str
    levels: tuple[str, str] | None
    orders: Sequence[Holding]


@dataclass(frozen=True)
class Nudge:
    """A deposit or withdrawal that puts the level where it is wanted, so many cents aside."""

    at: str
    cents: int


@dataclass(frozen=True)
class Step:
    """What happens before two ticks: by how many thousandths quotes move, what is wrong with one, who pays in."""

    moves: Mapping[str, int]
    nudges: Sequence[Nudge | None]
    fault: tuple[str, str] | None


@dataclass(frozen=True)
class Story:
    mode: str
    hedging: str | int
    rate_side: str
    margin_price: str
    cooldown_ms: int
    costs: bool
    holders: Sequence[Holder]
    steps: Sequence[Step]


few_lots = st.one_of(st.sampled_from([10, 20, 100]), st.integers(1, 300))
holdings = st.builds(
    Holding,
    symbol=st.sampled_from(HELD),
    is_buy=st.booleans(),
    lots=few_lots,
    away=st.integers(-20, 20),
    fees=st.sampled_from([("0", "0"), ("7.35", "-1.27"), ("0", "3.333")]),
    waits=st.sampled_from([False, False, False, False, False, True]),
)
hedged = holdings.flatmap(
    lambda one: st.just([one, Holding(one.symbol, not one.is_buy, one.lots, -one.away, one.fees, waits=False)])
)
orders = st.one_of(
    st.lists(holdings, min_size=1, max_size=6),
    st.tuples(hedged, st.lists(holdings, max_size=4)).map(lambda two: [*two[0], *two[1]]),
)
holders = st.builds(
    Holder,
    type=st.sampled_from(TYPES),
    leverage=st.sampled_from(["30", "100", "500"]),
    levels=st.sampled_from([None, None, ("80", "30"), ("120.5", "100"), ("10", "10"), ("5", "0"), ("20", "40")]),
    orders=orders,
)
nudges = st.one_of(
    st.builds(
        Nudge, at=st.sampled_from(["critical", "critical", "warning", "recovery"]), cents=st.sampled_from([-1, 0, 1])
    ),
    st.builds(Nudge, at=st.sampled_from(["critical", "healthy", "nothing"]), cents=st.integers(-10_000, 10_000)),
)
faults = st.sampled_from(
    [*[None] * 8, *((symbol, kind) for symbol in SYMBOLS for kind in ("stale", "one side", "crossed", "gone"))]
)


def steps_of(count: int) -> st.SearchStrategy[list[Step]]:
    every = st.tuples(*[nudges] * count)
    some = st.tuples(*[st.one_of(st.none(), nudges)] * count)
    moves = st.fixed_dictionaries({symbol: st.integers(-30, 30) for symbol in SYMBOLS})
    first, later = (st.builds(Step, moves=moves, nudges=who, fault=faults) for who in (every, some))
    return st.tuples(first, st.lists(later, max_size=4)).map(lambda two: [two[0], *two[1]])


def stories(modes: Sequence[str] = MODES, costs: Sequence[bool] = (False, True)) -> st.SearchStrategy[Story]:
    def of(holders: list[Holder]) -> st.SearchStrategy[Story]:
        return st.builds(
            Story,
            mode=st.sampled_from(modes),
            hedging=st.sampled_from(["max", "max", "sum", "net", 0, 50, 100]),
            rate_side=st.sampled_from(["ask", "side", "mid"]),
            margin_price=st.sampled_from(["current", "open"]),
            cooldown_ms=st.sampled_from([0, 10_800_000]),
            costs=st.sampled_from(costs),
            holders=st.just(holders),
            steps=steps_of(len(holders)),
        )

    return st.lists(holders, min_size=1, max_size=4).flatmap(of)


# ---- the exact model


@dataclass
class Seen:
    """An account before a tick: what follows from the texts on the server."""

    level: Fraction | None  # None: no margin is used, or it is not known
    is_known: bool
    warning: Fraction
    critical: Fraction
    equity: Fraction = Fraction(0)
    used: Fraction = Fraction(0)
    lots: dict[str, Decimal] = field(default_factory=dict)
    pnls: dict[str, Fraction] = field(default_factory=dict)  # of positions
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def is_critical(self) -> bool:
        return self.is_known and self.level is not None and self.level <= self.critical

    def check_that_it_can_be_told(self) -> None:
        """A level that is next to a threshold, and not at it, says nothing of doubles."""
        for threshold in (self.critical, self.warning, self.warning + 5):
            assume(self.level is None or self.level == threshold or abs(self.level - threshold) > NOISE)


@dataclass
class Rungs:
    """Episodes of one account, by the contract's words."""

    is_latching: bool
    in_episode: bool = False
    is_latched: bool = False
    episodes: int = 0

    def take(self, seen: Seen) -> None:
        if not seen.is_known:
            return
        self.is_latched = self.is_latching and (self.is_latched or seen.is_critical) and bool(seen.pnls)
        if seen.level is None and not self.is_latched:
            self.in_episode = False
        elif self.is_latched or (seen.level is not None and seen.level <= seen.warning):
            self.episodes += not self.in_episode
            self.in_episode = True
        elif seen.level is not None and seen.level > seen.warning + 5:
            self.in_episode = False


class World:
    """A house on a server, and what is known of it exactly."""

    def __init__(self, server: Any, story: Story, **flags: object) -> None:
        with server.client() as client:
            client.flushall()
        chosen: dict[str, Any] = {
            "cutoff__stop_out": story.mode,
            "cutoff__warning_cooldown_ms": story.cooldown_ms,
            "valuation__hedging": story.hedging,
            "valuation__rate_side": story.rate_side,
            "valuation__margin_price": story.margin_price,
        }
        self.desk, self.story = CutoffDesk(server, **chosen | flags), story
        self.mids = {symbol: known.mid for symbol, known in SYMBOLS.items()}
        self.terms: dict[tuple[str, str], Any] = {}
        costs = {"spread": "3", "commission_rate": "3.5", "commission_type": "0", "commission_value_type": "0"}
        for symbol, known in SYMBOLS.items():
            said = {
                "contract_size": known.size,
                "profit": known.profit,
                "type": known.type,
                "crypto_margin_factor": "2",
            }
            self.terms["Standard", symbol] = said
            more = {"spread_pip": str(known.point), **costs} if story.costs else {}
            self.desk.office.group(symbol, **said, **more, min_lot="0.01", lot_step="0.01")
        self.accounts = [f"{holder.type}:{number}" for number, holder in enumerate(story.holders)]
        for account, holder in zip(self.accounts, story.holders, strict=True):
            self._settle_in(account, holder)
        self.rungs = {account: Rungs(story.mode == "flatten") for account in self.accounts}
        self.was_critical: set[str] = set()
        self.opened = {account: self.lots(account) for account in self.accounts}
        self.balances = dict.fromkeys(self.accounts, Decimal(0))
        self.publish()
        for _ in range(3):  # nobody is known until he is paid in; quotes are, and who has changed, a tick later
            self.desk.full_step()
            self.publish()

    def _settle_in(self, account: str, holder: Holder) -> None:
        names = ("auto_cutoff_level", "auto_liquidation_level")
        levels = dict(zip(names, holder.levels, strict=True)) if holder.levels else {}
        self.desk.account(account, "rock", "none", leverage=holder.leverage, **levels)
        for number, order in enumerate(holder.orders):
            known, side = SYMBOLS[order.symbol], "BUY" if order.is_buy else "SELL"
            price = known.point * (known.mid + known.mid * order.away // 1000)
            waits = {"order_type": f"{side}_LIMIT", "order_status": "PENDING", "execution_status": "PENDING"}
            said = {"symbol": order.symbol, "order_type": side, "commission": order.fees[0], "swap": order.fees[1]}
            lots = Decimal(order.lots) / 100
            order_id = f"{account.replace(':', '-')}-{number}"
            self.desk.position(account, order_id, lots, price, **said | (waits if order.waits else {}))

    # ---- what happens

    def move(self, step: Step) -> None:
        for symbol, thousandths in step.moves.items():
            self.mids[symbol] += self.mids[symbol] * thousandths // 1000
        self.publish()

    def publish(self) -> None:
        for symbol, mid in self.mids.items():
            point = SYMBOLS[symbol].point
            self.desk.quote(point * (mid - 1), point * (mid + 2), symbol)

    def break_quote(self, symbol: str, kind: str) -> None:
        key, client = f"market:{symbol}", self.desk.client
        if kind == "stale":
            client.hset(key, "ts", time.time_ns() // 1_000_000 - 60_000)
        elif kind == "one side":
            client.hdel(key, "bid")
        elif kind == "crossed":
            client.hset(key, "bid", "999999")
        else:
            client.delete(key)

    def nudge(self, account: str, nudge: Nudge) -> None:
        key = f"user:{{{account}}}:config"
        if self.desk.client.hget(key, "wallet_balance") == b"none":
            self.desk.client.hset(key, "wallet_balance", "0")
        seen = self.see(account)
        if not seen.is_known:
            return
        at = {"critical": seen.critical, "warning": seen.warning, "recovery": seen.warning + 5}
        at |= {"healthy": Fraction(300), "nothing": Fraction(-20)}
        pnl = seen.equity - Fraction(seen.config["wallet_balance"])
        wanted = at[nudge.at] * seen.used / 100 - pnl
        exact = wanted * 10**12
        balance = Decimal(int(exact)).scaleb(-12) if exact.denominator == 1 else Decimal(round(wanted * 100)).scaleb(-2)
        event("at a threshold" if exact.denominator == 1 and not nudge.cents else "next to a threshold")
        self.balances[account] = balance + Decimal(nudge.cents).scaleb(-2) - self.booked(account)
        self.desk.client.hset(f"user:{{{account}}}:config", "wallet_balance", f"{self.balance(account):f}")

    # ---- what is there

    def market(self) -> twin.Market:
        names = ("bid", "ask", "ts")
        quotes: dict[str, Any] = {}
        for symbol in SYMBOLS:
            said = decoded(self.desk.client.hgetall(f"market:{symbol}"))
            quotes[symbol] = {name: said.get(name) for name in names} if said else None
        now_ms, story = time.time_ns() // 1_000_000, self.story
        rules = (story.rate_side, story.margin_price, story.hedging)
        return twin.Market(self.terms, quotes, now_ms, True, *rules, max_age_ms=30_000)

    def see(self, account: str) -> Seen:
        said = decoded(self.desk.client.hgetall(f"user:{{{account}}}:config"))
        names = ("wallet_balance", "leverage", "group", "auto_cutoff_level", "auto_liquidation_level")
        config, market = {name: said.get(name) for name in names}, self.market()
        orders = {order_id: self.order(account, order_id) for order_id in sorted(self.desk.index(account))}
        found = twin.value(config, list(orders.values()), market)
        lots = {order_id: Decimal(order["order_quantity"]) for order_id, order in orders.items()}
        if found.reasons:
            return Seen(None, False, found.warning_pct, found.critical_pct, lots=lots, orders=orders, config=config)
        equity = Fraction(said["wallet_balance"]) + found.pnl
        level = 100 * equity / found.used if found.used else None
        made = Seen(level, True, found.warning_pct, found.critical_pct, equity, found.used, lots)
        made.orders, made.config = orders, config
        for order_id, order in orders.items():
            if order["execution_status"] == "EXECUTED":
                made.pnls[order_id] = twin.value(config, [order], market).pnl
        return made

    def order(self, account: str, order_id: str) -> dict[str, Any]:
        said = self.desk.order(account, order_id)
        names = ("symbol", "order_type", "order_status", "execution_status", "order_price", "order_quantity")
        return {name: said.get(name) for name in (*names, "swap", "commission")}

    def lots(self, account: str) -> dict[str, Decimal]:
        return {i: Decimal(self.order(account, i)["order_quantity"]) for i in self.desk.index(account)}

    def used(self, seen: Seen, order_ids: Sequence[str]) -> Fraction:
        """Margin of some orders alone."""
        return twin.value(seen.config, [seen.orders[order_id] for order_id in order_ids], self.market()).used

    def booked(self, account: str) -> Decimal:
        """Of everything that was ever closed, as it was announced."""
        last = {entry["order_id"]: entry for entry in self.desk.audit(account)}
        return sum((Decimal(order_of(entry)["net_profit"]) for entry in last.values()), Decimal(0))

    def balance(self, account: str) -> Decimal:
        return self.balances[account] + self.booked(account)

    # ---- a tick, and what must be true of it

    def tick(self) -> CutoffReport:
        before = {account: self.see(account) for account in self.accounts}
        versions = {account: self.desk.version(account) for account in self.accounts}
        for seen in before.values():
            seen.check_that_it_can_be_told()
        self.was_critical |= {account for account, seen in before.items() if seen.is_critical}
        report = tick(self.desk)
        held = self.held()
        for account, seen in before.items():
            if account not in held:
                self.rungs[account].take(seen)
            self._check(account, seen, self.desk.version(account) != versions[account], is_held=account in held)
        return report

    def held(self) -> set[str]:
        """Whom the brake held back; it may for two ticks, which `close_out` sees to."""
        daemon = self.desk.daemon
        assert daemon._autocutoff is not None
        return {str(daemon.book.account_at(row)) for row in daemon._autocutoff._brake.held.tolist()}

    def _check(self, account: str, seen: Seen, has_changed: bool, *, is_held: bool) -> None:
        assert not (is_held and has_changed), f"{account} was held back, and closed"
        is_cause = account in self.was_critical if self.story.mode == "flatten" else seen.is_critical
        assert is_cause or not has_changed, f"{account} at {seen.level} was closed"
        assert seen.is_known or not has_changed, f"{account} was closed, and not known"
        left = self.lots(account)
        assert left.keys() <= seen.lots.keys()
        assert all(0 < lots <= seen.lots[order_id] for order_id, lots in left.items())
        if self.story.mode != "smallest_partial":
            assert all(lots == seen.lots[order_id] for order_id, lots in left.items())
        if seen.is_critical and not is_held:
            event("critical")
            assert has_changed, f"{account} at {seen.level} is left as it was"
            assert not any(order["order_status"] == "PENDING" for order in map(self._raw(account), left))
        if has_changed and self.story.mode == "largest_loss":
            self._check_that_it_is_the_shortest_prefix(seen, left)
        if self.story.mode == "smallest_partial":
            self._check_that_no_step_less_would_do(seen, left)

    def _raw(self, account: str) -> Any:
        return lambda order_id: self.order(account, order_id)

    def _check_that_it_is_the_shortest_prefix(self, seen: Seen, left: Mapping[str, Decimal]) -> None:
        closed = sorted((order_id for order_id in seen.pnls if order_id not in left), key=lambda i: seen.pnls[i])
        kept = [order_id for order_id in seen.pnls if order_id in left]
        event(f"{len(closed)} closed, {'some' if kept else 'none'} kept")
        if not closed:  # what waits for a price is taken back; margin only positions take
            return
        assert all(seen.pnls[closed[-1]] <= seen.pnls[order_id] + NOISE for order_id in kept)
        ties = [order_id for order_id in closed if abs(seen.pnls[order_id] - seen.pnls[closed[-1]]) <= NOISE]
        rounding = HALF_A_CENT * len(closed)
        used = [self.used(seen, [*kept, last]) for last in ties]
        assert any(one and 100 * (seen.equity - rounding) / one <= seen.critical + NOISE for one in used), (
            "fewer would have been enough"
        )

    def _check_that_no_step_less_would_do(self, seen: Seen, left: Mapping[str, Decimal]) -> None:
        """With a step more of what was closed in part, the account would still be critical."""
        for order_id, lots in left.items():
            if seen.lots[order_id] - lots <= _STEP:
                continue
            event("closed in part")
            held = {**left, order_id: lots + _STEP}
            orders = [{**seen.orders[i], "order_quantity": str(lots)} for i, lots in held.items() if i in seen.pnls]
            used = twin.value(seen.config, orders, self.market()).used
            rounding = HALF_A_CENT * len(seen.pnls)
            assert 100 * (seen.equity - rounding) / used <= seen.critical + NOISE, f"{order_id}: less would have done"

    def check_the_end(self) -> None:
        """What was closed and what is left adds up; all that was booked is in the balance; who was to be is warned."""
        for account in self.accounts:
            assert self.desk.balance(account) == self.balance(account), account
            left, closed = self.lots(account), dict[str, Decimal]()
            for entry in self.desk.audit(account):
                if entry["change"].startswith("close"):
                    closed[entry["order_id"]] = closed.get(entry["order_id"], Decimal(0)) + lots_closed(entry, closed)
            for order_id, lots in self.opened[account].items():
                gone = closed.get(order_id, Decimal(0)) + left.get(order_id, Decimal(0))
                assert gone == lots or (not gone and self.desk.data(order_id)["order_status"] == "CANCELLED"), order_id
            expected = self.rungs[account].episodes
            if self.story.cooldown_ms:
                expected = min(expected, 1)
            assert self.desk.warned().count(account) == expected, account
        assert len({notice["notice_id"] for notice in self.desk.notices()}) == len(self.desk.notices())
        assert len(self.desk.trail("warning")) == len(self.desk.notices())


def order_of(entry: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = json.loads(entry["order"])
    return found


def lots_closed(entry: Mapping[str, Any], before: Mapping[str, Decimal]) -> Decimal:
    """Of one change: what was opened, less what is left and what was closed before."""
    order = order_of(entry)
    left = Decimal(0) if order["order_status"] == "CLOSED" else Decimal(order["order_quantity"])
    return Decimal(order["opened_quantity"]) - left - before.get(entry["order_id"], Decimal(0))


@contextmanager
def living(server: Any, story: Story, **flags: object) -> Iterator[World]:
    world = World(server, story, **flags)
    try:
        yield world
    finally:
        world.desk.close()


def tick(desk: CutoffDesk) -> CutoffReport:
    """One, whoever is held back in it."""
    report = desk.full_step()
    assert report.skipped is None and report.cutoff is not None and not report.cutoff.failure, report.cutoff
    return report.cutoff


def run(server: Any, story: Story) -> None:
    with living(server, story) as world:
        for step in story.steps:
            world.move(step)
            for account, nudge in zip(world.accounts, step.nudges, strict=True):
                if nudge is not None:
                    world.nudge(account, nudge)
            if step.fault is not None:
                world.break_quote(*step.fault)
                world.tick()
                world.publish()
            close_out(world)
        world.check_the_end()


def close_out(world: World) -> None:
    """Two ticks of the same prices are enough; what closes cost may make it one more for each order that is left."""
    for ticks in range(12):
        if ticks >= 2 and not any(world.see(account).is_critical for account in world.accounts):
            return
        world.publish()
        if ticks >= 2:
            assert world.story.costs, "after two ticks somebody is still critical"
        world.tick()
    raise AssertionError("it does not come to an end")


options: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def told(*at: str | tuple[str, int], mode: str = "largest_loss") -> Story:
    """One account with a hedge and a loser, whose level goes where it is told to."""
    nudges = [Nudge(*(one if isinstance(one, tuple) else (one, 0))) for one in at]
    holding = Holding("EURUSD", is_buy=True, lots=100, away=0, fees=("0", "0"), waits=False)
    others = [replace(holding, is_buy=False, lots=20), replace(holding, symbol="XAUUSD", lots=30, away=2)]
    holder = Holder("live", "100", None, [holding, *others])
    steps = [Step(dict.fromkeys(SYMBOLS, 0), [nudge], None) for nudge in nudges]
    return Story(mode, "max", "ask", "current", 0, costs=False, holders=[holder], steps=steps)


#: Through every threshold: a warning ends above the recovery, and the next one begins at the warning again.
LADDER: tuple[str | tuple[str, int], ...] = (
    *("healthy", ("warning", 1), "warning", "recovery", "warning", ("recovery", 1), ("warning", 1), ("warning", -1)),
    *(("critical", 1), "healthy", ("critical", 1), ("critical", -1)),
)


@settings(max_examples=20, **options)
@given(story=stories())
@example(told(*LADDER))
@example(told(*LADDER, "critical", "critical", mode="flatten"))
@example(told("healthy", "critical", "critical", "critical"))
@example(told("healthy", ("critical", -5_000), "critical", ("critical", -2_000), mode="smallest_partial"))
def test_who_is_critical_is_closed_and_nobody_else(bundled_server: Any, story: Story) -> None:
    run(bundled_server, story)


@pytest.mark.slow
@settings(max_examples=400, **options)
@given(story=stories())
def test_who_is_critical_is_closed_and_nobody_else_in_many_houses(bundled_server: Any, story: Story) -> None:
    run(bundled_server, story)


# ---- prints that are wrong

HEALTHY = Nudge("healthy", 0)
BRAKE = {"cutoff__brake_min_accounts": 2}


@st.composite
def gaps(draw: st.DrawFn) -> tuple[Story, str, Fraction, str]:
    """A house in which everybody is healthy, and a quote that moves by more than a tenth."""
    story = draw(stories(modes=("largest_loss", "flatten"), costs=(False,)))
    held = [order.symbol for holder in story.holders for order in holder.orders]
    symbol = draw(st.sampled_from([*held, "GBPUSD"]))
    factor = Fraction(draw(st.sampled_from(["0.1", "10", "0.85", "1.2", "0.5", "0.01"])))
    return story, symbol, factor, draw(st.sampled_from(["bid", "ask", "both", "both"]))


def stand_healthy(world: World) -> None:
    for account in world.accounts:
        world.nudge(account, HEALTHY)
    world.publish()
    world.tick()
    world.publish()
    world.tick()


def print_wrong(world: World, symbol: str, factor: Fraction, side: str) -> bool:
    """Print a quote a factor away; whether it is a quote at all."""
    quote = decoded(world.desk.client.hgetall(f"market:{symbol}"))
    sides = {name: Fraction(quote[name]) * (factor if side in (name, "both") else 1) for name in ("bid", "ask")}
    world.desk.quote(f"{float(sides['bid']):.8f}", f"{float(sides['ask']):.8f}", symbol)
    return sides["bid"] <= sides["ask"]


@settings(max_examples=15, **options)
@given(case=gaps(), quiet=st.booleans())
def test_a_bad_print_closes_and_warns_nobody(bundled_server: Any, case: Any, quiet: bool) -> None:
    """Of one tick, whatever it makes of whom: the next one is right again, or nothing prints for a tick."""
    story, symbol, factor, side = case
    with living(bundled_server, story, **BRAKE) as world:
        stand_healthy(world)
        print_wrong(world, symbol, factor, side)
        would_be = [account for account in world.accounts if world.see(account).is_critical]
        event(f"{'some' if would_be else 'none'} would be closed")
        for _ in range(1 + quiet):
            assert tick(world.desk).closes == 0
        world.publish()
        for _ in range(3):
            report = tick(world.desk)
            assert (report.warned, report.breached, report.closes, report.cancels) == (0, 0, 0, 0)
            world.publish()
        assert world.desk.notices() == [] and world.desk.trail("warning") == []
        assert all(world.desk.version(account) == 0 for account in world.accounts)


@settings(max_examples=10, **options)
@given(case=gaps(), prints=st.sampled_from([1, 3]))
def test_a_real_gap_closes_within_two_ticks_of_it(bundled_server: Any, case: Any, prints: int) -> None:
    """Whether it prints again or stands still."""
    story, symbol, factor, _ = case
    with living(bundled_server, story, **BRAKE) as world:
        stand_healthy(world)
        print_wrong(world, symbol, factor, "both")
        critical = [account for account in world.accounts if world.see(account).is_critical]
        event(f"{'some' if critical else 'none'} critical")
        for number in range(3):
            if 0 < number < prints:
                world.desk.print_again()
            tick(world.desk)
        assert not any(world.see(account).is_critical for account in world.accounts)
        assert {account for account in world.accounts if world.desk.audit(account)} == set(critical)


LONG_AND_SHORT = {"live:long": "BUY", "live:short": "SELL"}


def stand_with_a_cushion(server: Any) -> CutoffDesk:
    """Two that lose an eighth of the price without being critical."""
    desk = CutoffDesk(server)
    for account, side in LONG_AND_SHORT.items():
        desk.account(account, "rock", "13000")
        desk.position(account, f"O-{side}", order_type=side)
    desk.steps(2)
    return desk


@pytest.mark.parametrize(("bid", "ask"), [("0.85", "1"), ("1", "1.15")])
def test_one_side_that_jumps_closes_nobody(bundled_server: Any, bid: str, ask: str) -> None:
    desk = stand_with_a_cushion(bundled_server)
    desk.quote(bid, ask)
    assert tick(desk).closes == 0
    desk.price("1")
    assert [report.closes for report in desk.steps(3)] == [0, 0, 0]


def test_a_side_that_jumped_is_not_confirmed_by_the_other_one(bundled_server: Any) -> None:
    """Writers may update one side at a time: the next print is the ask's, and says nothing of the bid."""
    desk = stand_with_a_cushion(bundled_server)
    desk.client.hset("market:EURUSD", mapping={"bid": "0.1", "ts": now_ms()})
    assert tick(desk).closes == 0
    desk.client.hset("market:EURUSD", mapping={"ask": "1.00001", "ts": now_ms() + 1})
    assert tick(desk).closes == 0
    desk.price("1")
    assert [report.closes for report in desk.steps(3)] == [0, 0, 0]


def test_a_balance_of_many_digits_keeps_them(bundled_server: Any) -> None:
    desk = CutoffDesk(bundled_server)
    desk.holder("live:1", "99.123456")
    desk.steps(2)
    assert desk.is_flat("live:1") and desk.balance("live:1") == Decimal("99.123456")
