"""Autocutoff's kernels alone, and what a tick of healthy accounts costs with autocutoff and without."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from benchmarks.house import N_SYMBOLS, house
from benchmarks.measure import Figure, load, ratio, seconds
from benchmarks.twins import WrongResult
from benchmarks.workloads import NOW_MS, workload
from copyrisk import layout
from copyrisk._core import ConversionSide, LadderState, OrderEffect, RowCode, judge_quotes, price_legs, value_accounts
from copyrisk._cutoff import Edge, StopOut, plan_closes, step_ladder
from copyrisk.daemon import make_engine
from copyrisk.layout import Rows
from copyrisk.settings import load_settings
from copyrisk.store.connection import connect

_MOST_OF_A_TICK = 1.05
_WARM_UP, _ROUNDS = 3, 30
_RECOVERY_PCT = 5.0


def figures(breached: int = 1_000, accounts: int = 10_000, pairs: int = 40) -> Iterator[Figure]:
    """Measure everything, each after its results were held against what they must be."""
    yield from _kernels(breached)
    yield _on_against_off(accounts, pairs)


def _kernels(breached: int) -> Iterator[Figure]:
    work = workload("small")
    value_accounts(work.accounts, work.legs, work.leg_rates, work.instruments, work.figures)
    rows = np.arange(len(work.accounts), dtype=np.int32)
    ladders: Rows = np.zeros(len(rows), layout.LADDER)
    edges = np.zeros(len(rows), np.uint8)

    def step() -> None:
        step_ladder(rows, work.accounts, work.figures, _RECOVERY_PCT, False, ladders, edges)

    step()
    states = work.figures["state"]
    expected = np.zeros(len(rows), np.uint8)
    expected[states == LadderState.WARNING] = Edge.WARNED
    expected[states == LadderState.CRITICAL] = Edge.WARNED | Edge.BREACHED
    if (edges != expected).any() or not expected.any():
        raise WrongResult("edges are not what the states say")
    ns = float(np.median([seconds(step) for _ in range(_ROUNDS)])) / len(rows) * 1e9
    if edges.any():
        raise WrongResult("edges without a change")
    yield Figure("step_ladder_ns_per_account", round(ns, 2), "ns", load=load())
    case = _Critical(breached)
    case.run()
    case.check()
    us = float(np.median([seconds(case.run) for _ in range(_ROUNDS)])) / len(case.rows) * 1e6
    yield Figure("plan_closes_us_per_account", round(us, 3), "us", load=load())


class _Critical:
    """Accounts at 1 to 9 % with five positions each, in symbols of their own: so sums of margins are all there is."""

    def __init__(self, accounts: int, each: int = 5) -> None:
        random = np.random.default_rng(2)
        self.quotes: Rows = np.zeros(each, layout.QUOTE)
        self.quotes["bid"] = self.quotes["ask"] = random.uniform(0.7, 1.5, each)
        self.quotes["ts_ms"], self.quotes["max_age_ms"] = NOW_MS, 30_000
        self.quotes["market"], self.quotes["read_code"] = 1, RowCode.OK
        self.instruments: Rows = np.zeros(each, layout.INSTRUMENT)
        self.instruments["contract_size"], self.instruments["margin_factor"] = 100_000.0, 1.0
        self.instruments["quote"], self.instruments["direct"], self.instruments["inverse"] = np.arange(each), -1, -1
        self.instruments["profit_is_usd"] = self.instruments["highest_price"] = True
        self.instruments["read_code"] = RowCode.OK
        judge_quotes(self.quotes, NOW_MS, np.ones(5, np.uint8))
        self.rates: Rows = np.zeros(2 * each, layout.LEG_RATE)
        price_legs(self.instruments, self.quotes, ConversionSide.CONVERT_ASK, self.rates)
        count = accounts * each
        self.orders: Rows = np.zeros(count, layout.ORDER)
        self.orders["instrument"] = np.tile(np.arange(each), accounts)
        self.orders["is_buy"] = random.random(count) < 0.5
        self.orders["lots"] = random.integers(1, 300, count) / 100
        mid = self.quotes["bid"][self.orders["instrument"]]
        self.orders["price"] = mid * random.normal(1.0, 0.003, count)
        self.orders["account"], self.orders["effect"] = np.repeat(np.arange(accounts), each), OrderEffect.EXECUTED
        self.orders["code"], self.orders["next"] = RowCode.OK, np.arange(1, count + 1)
        self.orders["next"][each - 1 :: each] = -1
        sign = np.where(self.orders["is_buy"], 1.0, -1.0)
        self.pnls = (sign * (mid - self.orders["price"]) * self.orders["lots"] * 100_000.0).reshape(accounts, each)
        self.margins = (mid * self.orders["lots"] * 1_000.0).reshape(accounts, each)
        self.equity = self.margins.sum(axis=1) * random.uniform(0.01, 0.09, accounts)
        self.accounts: Rows = np.zeros(accounts, layout.ACCOUNT)
        self.accounts["balance"], self.accounts["leverage"] = self.equity - self.pnls.sum(axis=1), 100.0
        self.accounts["warning_level_pct"], self.accounts["critical_level_pct"] = 50.0, 10.0
        self.accounts["read_code"], self.accounts["culprit"] = RowCode.OK, -1
        self.rows, self.heads = np.arange(accounts, dtype=np.int32), np.arange(0, count, each, dtype=np.int32)
        self.closing, self.limits = np.zeros(count, np.uint8), np.zeros(each, layout.LOT_LIMITS)
        self.closes, self.counts = np.zeros(count, layout.CLOSE), np.zeros(accounts, np.int32)

    def run(self) -> None:
        """Plan for all of them."""
        given = (self.rows, self.accounts, self.heads, self.orders, self.instruments, self.rates, self.closing)
        plan_closes(*given, self.limits, StopOut.LARGEST_LOSS, False, self.closes, self.counts)

    def check(self) -> None:
        """Each plan is the shortest list of the largest losses whose margin makes the account safe."""
        start = 0
        for row, count in enumerate(self.counts.tolist()):
            by_loss = np.argsort(self.pnls[row], kind="stable")
            left = self.margins[row].sum() - np.cumsum(self.margins[row][by_loss])
            needed = int(np.argmax(100.0 * self.equity[row] > 10.0 * left)) + 1
            planned = self.closes["order"][start : start + count] - self.heads[row]
            if planned.tolist() != by_loss[:needed].tolist():
                raise WrongResult(f"account {row}: {planned}, not {by_loss[:needed]}")
            start += count


def _on_against_off(accounts: int, pairs: int) -> Figure:
    """Ticks of healthy accounts that all move, of two daemons on one server: with autocutoff, over without."""
    with house(accounts) as there:
        flags = {"redis.url": there.url, "market.always_open": True, "cutoff.lease_ms": 60_000}
        loaded = load_settings(None, {}, flags)
        clients = [connect(there.url, connect_timeout_ms=1_000, reply_timeout_ms=10_000) for _ in range(2)]
        acting, other = (make_engine(client, loaded, acts=not number) for number, client in enumerate(clients))
        times: npt.NDArray[np.float64] = np.zeros((pairs + _WARM_UP, 2))
        for number, turn in enumerate(times):
            for place, engine in [(0, acting), (1, other)][:: 1 if number % 2 else -1]:
                there.move(N_SYMBOLS)
                report = engine.tick()
                there.check(report)
                turn[place] = report.duration_ms
                if report.cutoff is not None and (report.cutoff.failure or not report.cutoff.is_leader):
                    raise WrongResult(f"autocutoff did not act: {report.cutoff}")
        acting.close()
        other.close()
    on, off = times[_WARM_UP:].T
    versus = "the same tick without it"
    return ratio("cutoff_tick_vs_without", versus, on, off, target=_MOST_OF_A_TICK, at_most=True)
