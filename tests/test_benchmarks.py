"""The benchmarks measure what they say: twins agree, wrong results are refused, the output keeps its form."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cutoff, cutoff_kernels, measure, replication, tick, twins
from benchmarks.house import ORDERS_EACH, house
from benchmarks.workloads import workload
from copyrisk._core import LadderState
from copyrisk.daemon import make_engine
from copyrisk.derived import copy_id
from copyrisk.identifiers import Account
from copyrisk.settings import load_settings
from copyrisk.terms import AccountType

TWINS = [twins.numpy_textbook, twins.numpy_best, twins.numba_folded, twins.numba_netted]


@pytest.mark.parametrize("prepare", TWINS, ids=lambda prepare: prepare.__name__)
def test_every_twin_agrees_with_the_kernel_and_a_wrong_one_is_refused(prepare: Any) -> None:
    work = workload("small")
    twins.kernel(work)()
    result = prepare(work)()
    twins.check(result, work.figures)
    for name in ("open_pnl", "used_margin", "used_margin_all", "state"):
        right = getattr(result, name).copy()
        wrong = right.copy()
        wrong[7] += 1
        setattr(result, name, wrong)
        with pytest.raises(twins.WrongResult):
            twins.check(result, work.figures)
        setattr(result, name, right)


def test_the_workload_holds_what_makes_valuation_hard() -> None:
    work = workload("small")
    twins.kernel(work)()
    assert len(work.orders) / 2 < len(work.legs) < len(work.orders)
    assert set(np.unique(work.figures["state"])) >= {0, LadderState.HEALTHY, LadderState.WARNING, LadderState.CRITICAL}
    assert (work.accounts["n_legs"] > work.accounts["n_executed"]).any()
    assert work.instruments["margin_at_open"].any() and not work.instruments["profit_is_usd"].all()


def test_a_ratio_has_an_interval_and_its_worse_end_decides() -> None:
    over, under = np.full(9, 4.0), np.array([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 4.0])
    figure = measure.ratio("x", "y", over, under, target=2.0)
    assert figure.value == figure.low == 2.0
    assert figure.reached
    assert not measure.Figure("x", 3.0, "ratio", "y", 1.9, 4.0, target=2.0).reached
    assert not measure.Figure("x", 1.0, "ratio", "y", 0.9, 1.7, target=1.6, at_most=True).reached
    assert set(figure.as_json()) >= {"name", "value", "unit", "versus", "low", "high"}


def _paused(client: Any, _: str) -> None:
    client.hset("user:{copy_follower:2}:config", "copy_status", "paused")


def _other_lots(client: Any, order_id: str) -> None:
    client.hset(_held(order_id), "order_quantity", "0.07")


def _taken_away(client: Any, order_id: str) -> None:
    client.delete(_held(order_id))


def _held(order_id: str) -> str:
    return f"user_holdings:{{copy_follower:2}}:{copy_id(order_id, Account(AccountType.FOLLOWER, '2'))}"


@pytest.mark.parametrize(("before", "after"), [(_paused, None), (None, _other_lots), (None, _taken_away)])
def test_copies_that_are_not_right_are_no_measurement(before: Any, after: Any) -> None:
    with house(3, AccountType.FOLLOWER) as there:
        bench = replication._Bench(there)
        bench.follow(3)
        engine, sent = replication._engine(there)
        order_id, sent_us = bench.send()
        engine.step(1_000)
        assert bench.check(order_id) > sent_us and sum(count for _, count in sent.copies) == 3
        assert there.client.scard("user_orders_index:{copy_follower:2}") == ORDERS_EACH
        order_id, _ = bench.send()
        if before is not None:
            before(there.client, order_id)
        engine.step(1_000)
        if after is not None:
            after(there.client, order_id)
        with pytest.raises(twins.WrongResult):
            bench.check(order_id)


def test_plans_that_are_not_right_are_no_measurement() -> None:
    case = cutoff_kernels._Critical(50)
    case.run()
    case.check()
    assert 50 < case.counts.sum() < 250
    case.closes["order"][7] += 1
    with pytest.raises(twins.WrongResult):
        case.check()


class _InThisProcess(cutoff._Bench):
    """Has a daemon tick while it waits, and spoils what was closed before that is looked at."""

    engine: Any = None
    spoil: Any = None

    def _wait(self, condition: Any, otherwise: str) -> None:
        deadline_s = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline_s, otherwise
            self.print()
            self.engine.tick()
            self._note_tick()

    def _are_gone(self, order_ids: Any) -> bool:
        if not super()._are_gone(order_ids):
            return False
        if self.spoil is not None:
            self.spoil(self.client)
        return True


def _other_balance(client: Any) -> None:
    client.hset("user:{live:b1}:config", "wallet_balance", "81.00")


def _another_order(client: Any) -> None:
    client.sadd("user_orders_index:{live:b1}", "X")


def _closed_twice(client: Any) -> None:
    ((_, said),) = client.xrevrange("copyrisk:{live:b1}:audit", count=1)
    client.xadd("copyrisk:{live:b1}:audit", said)


@pytest.mark.parametrize("spoil", [None, _other_balance, _another_order, _closed_twice])
def test_closes_that_are_not_right_are_no_measurement(spoil: Any) -> None:
    with house(3) as there:
        bench = _InThisProcess(there, cutoff.Plan(6, 2, 0, 0, 0, 0))
        flags = {"redis.url": there.url, "market.always_open": True, "cutoff.lease_ms": 60_000}
        bench.engine = make_engine(there.client, load_settings(None, {}, flags))
        bench.spoil = spoil
        if spoil is None:
            done = bench.round(bench.breached)
            assert 0 < done.first_ms <= done.last_ms and done.ticks >= 1
            return
        with pytest.raises(twins.WrongResult):
            bench.round(bench.breached)


@pytest.mark.slow
def test_json_lines_hold_the_headline_figures() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--json", "--quick"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    figures = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    wanted = {"kernel_ns_per_position", "kernel_vs_numpy_textbook", "kernel_vs_numpy_best", "kernel_vs_numba"}
    wanted |= {"kernel_vs_bandwidth", "snapshot_us_per_hash", "snapshot_vs_floor", "snapshot_vs_redispy"}
    wanted |= {"write_us_per_account", "write_vs_floor", "write_vs_redispy", "accounts_per_tick", "cold_start_s_1000"}
    wanted |= {f"tick_ms_{p}_{move}_{size}" for p in ("p50", "p99") for move in tick.MOVES for size in tick.QUICK.sizes}
    wanted |= {f"memory_bytes_per_account_{size}" for size in tick.QUICK.sizes}
    wanted |= {"size_lots_ns_per_follower", "sizing_policy_ns_per_follower", "replication_vs_floor"}
    wanted |= {f"replication_ms_{p}_{size}" for p in ("p50", "p99") for size in replication.QUICK.rounds}
    wanted |= {"cutoff_ms_p50", "cutoff_ms_p99", "cutoff_ticks_max", "cutoff_tick_vs_without"}
    wanted |= {f"cutoff_{cutoff.QUICK.breached}{brake}_last_ms" for brake in ("", "_without_brake")}
    wanted |= {f"cascade_{cutoff.QUICK.followers}_last_ms", "step_ladder_ns_per_account", "plan_closes_us_per_account"}
    wanted |= {f"{way}_order_ms_p{percent}" for way in ("stream", "http") for percent in (50, 99)}
    wanted |= {"http_vs_stream_ms_p50", "http_vs_stream_ms_p99", "http_order_cpu_us"}
    assert wanted <= set(figures)
    for name, figure in figures.items():
        assert (figure["value"] > 0 or "valued_idle" in name or "http_vs" in name) and figure["unit"]
        assert ("versus" in figure) == ("_vs_" in name)


def test_value_accounts(benchmark: Any) -> None:
    work = workload("small")
    figures = benchmark(twins.kernel(work))
    assert figures["state"].max() == LadderState.CRITICAL


@pytest.mark.parametrize("prepare", TWINS[1:3], ids=lambda prepare: prepare.__name__)
def test_twins(benchmark: Any, prepare: Any) -> None:
    work = workload("small")
    twins.kernel(work)()
    twins.check(benchmark(prepare(work)), work.figures)
