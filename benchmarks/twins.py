"""Other ways to value the same workload, each as good as its kind gets, to measure the kernel against.

Every twin is prepared once (`prepare`) with whatever does not change from tick to tick and then computes, per tick
and from the quotes: open profit, equity, used margin of executed and of all orders, free margin, level and ladder
state of every account.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from benchmarks.workloads import N_SYMBOLS, Workload
from copyrisk import LadderState, OrderEffect, value_accounts

MAX_USD = 1e13  # what is not below it, NaN included, is unknown

Floats = npt.NDArray[np.float64]


@dataclass
class Result:
    """(a,) columns of one valuation."""

    open_pnl: Floats
    equity: Floats
    used_margin: Floats
    used_margin_all: Floats
    free_margin: Floats
    margin_level_pct: Floats
    state: npt.NDArray[Any]


class WrongResult(AssertionError):
    """A way of computing gave other figures than the kernel: its time means nothing."""


def check(result: Result, figures: npt.NDArray[Any]) -> None:
    """Refuse a result that is not the kernel's: states equal, figures of known accounts equal to 1e-9."""
    known = figures["state"] != LadderState.STATE_UNKNOWN
    pairs = {
        "open_pnl": result.open_pnl,
        "equity": result.equity,
        "used_margin_executed": result.used_margin,
        "used_margin_all": result.used_margin_all,
        "free_margin": result.free_margin,
        "margin_level_pct": result.margin_level_pct,
    }
    for name, values in pairs.items():
        if not np.allclose(values[known], figures[name][known], rtol=1e-9, atol=1e-6, equal_nan=True):
            raise WrongResult(name)
    if not np.array_equal(result.state, figures["state"]):
        raise WrongResult("state")


def _rates(work: Workload) -> tuple[Floats, Floats, Floats, Floats]:
    """By instrument: bid, ask, rate to USD (ask side), margin factor in USD."""
    bought, sold = work.leg_rates[0::2], work.leg_rates[1::2]
    factor = work.instruments["margin_factor"] * bought["gain"]
    return bought["price"].copy(), sold["price"].copy(), bought["gain"].copy(), factor


def _finish(work: Workload, pnl: Floats, margin: Floats, margin_all: Floats) -> Result:
    """From profit and margins (before leverage) of every account to its figures, in NumPy."""
    equity = work.accounts["balance"] + pnl
    used = margin / work.accounts["leverage"]
    level = np.where(used > 0, 100.0 * equity / np.where(used > 0, used, 1.0), 0.0)
    rung = np.where(
        level <= work.accounts["critical_level_pct"], 4, np.where(level <= work.accounts["warning_level_pct"], 3, 2)
    )
    known = (np.abs(equity) < MAX_USD) & (used >= 0) & (used < MAX_USD)
    state = np.where(known, np.where(used > 0, rung, 1), 0)
    return Result(pnl, equity, used, margin_all / work.accounts["leverage"], equity - used, level, state)


def kernel(work: Workload) -> Callable[[], Any]:
    """The kernel itself."""

    def run() -> Any:
        value_accounts(work.accounts, work.legs, work.leg_rates, work.instruments, work.figures)
        return work.figures

    return run


def numpy_textbook(work: Workload) -> Callable[[], Result]:
    """The formula of the contract, position by position: gather, convert, sum by account; margin by `max` side."""
    account, symbol = work.orders["account"].astype(np.int64), work.orders["instrument"].astype(np.int64)
    is_buy, lots, price = work.orders["is_buy"].astype(bool), work.orders["lots"].copy(), work.orders["price"].copy()
    executed = work.orders["effect"] == OrderEffect.EXECUTED
    swap, commission, size = work.swap, work.commission, work.instruments["contract_size"].copy()
    at_open = work.instruments["margin_at_open"].astype(bool)
    n = len(work.accounts)
    pair, pair_of = np.unique(account * N_SYMBOLS + symbol, return_inverse=True)
    bid, ask, rate, factor = _rates(work)

    def margin_of(counted: npt.NDArray[np.bool_], per_lot: Floats) -> Floats:
        bought = np.bincount(pair_of, lots * (counted & is_buy), len(pair))
        sold = np.bincount(pair_of, lots * (counted & ~is_buy), len(pair))
        highest = np.zeros(len(pair))
        with np.errstate(invalid="ignore"):  # an unknown price is NaN
            np.maximum.at(highest, pair_of, np.where(counted, per_lot, 0.0))
        return np.bincount(pair // N_SYMBOLS, np.maximum(bought, sold) * highest, n)

    def run() -> Result:
        moved = np.where(is_buy, bid[symbol] - price, price - ask[symbol])
        pnl = np.where(executed, moved * lots * size[symbol] * rate[symbol] + swap - commission, 0.0)
        per_lot = size[symbol] * np.where(at_open[symbol], price, ask[symbol]) * factor[symbol]
        margins = margin_of(executed, per_lot), margin_of(np.ones_like(executed), per_lot)
        return _finish(work, np.bincount(account, pnl, n), *margins)

    return run


@dataclass
class _Folded:
    """Executed positions by account: row of rates, signed units and cost, and where each account begins and ends."""

    leg: npt.NDArray[np.int64]
    units: Floats
    cost: Floats
    first: npt.NDArray[np.int64]


def _folded(work: Workload) -> _Folded:
    executed = work.orders["effect"] == OrderEffect.EXECUTED
    orders = work.orders[executed]
    symbol, is_buy = orders["instrument"].astype(np.int64), orders["is_buy"].astype(bool)
    units = orders["lots"] * work.instruments["contract_size"][symbol]
    signed = np.where(is_buy, units, -units)
    first = np.searchsorted(orders["account"], np.arange(len(work.accounts) + 1)).astype(np.int64)
    return _Folded(2 * symbol + ~is_buy, signed, signed * orders["price"], first)


def _fees(work: Workload) -> Floats:
    executed = work.orders["effect"] == OrderEffect.EXECUTED
    return np.bincount(work.orders["account"], np.where(executed, work.orders["fees_usd"], 0.0), len(work.accounts))


@dataclass
class _Bases:
    """Margin folded by account and symbol: of what, in which symbol, and where each account begins and ends."""

    base: Floats
    symbol: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]


def _margin_bases(work: Workload) -> tuple[_Bases, _Bases]:
    """Margin of executed orders, and what the queued ones add to it (few rows)."""
    account, symbol = work.orders["account"].astype(np.int64), work.orders["instrument"].astype(np.int64)
    units = work.orders["lots"] * work.instruments["contract_size"][symbol]
    is_buy, executed = work.orders["is_buy"].astype(bool), work.orders["effect"] == OrderEffect.EXECUTED
    pair, pair_of = np.unique(account * N_SYMBOLS + symbol, return_inverse=True)
    at_open = work.instruments["margin_at_open"].astype(bool)[pair % N_SYMBOLS]

    def base(counted: npt.NDArray[np.bool_]) -> Floats:
        highest = np.zeros(len(pair))
        np.maximum.at(highest, pair_of, np.where(counted, work.orders["price"], 0.0))
        bought = np.bincount(pair_of, units * (counted & is_buy))
        sold = np.bincount(pair_of, units * (counted & ~is_buy))
        return np.maximum(bought, sold) * np.where(at_open, highest, 1.0)

    def rows(values: Floats, of: npt.NDArray[np.bool_]) -> _Bases:
        chosen = np.bincount(pair_of, of, len(pair)) > 0
        first = np.searchsorted(pair[chosen] // N_SYMBOLS, np.arange(len(work.accounts) + 1)).astype(np.int64)
        return _Bases(values[chosen], pair[chosen] % N_SYMBOLS, first)

    mine, every = base(executed), base(np.ones_like(executed))
    return rows(mine, executed), rows(every - mine, ~executed)


def _sums(values: Floats, first: npt.NDArray[np.int64]) -> Floats:
    """Sums between consecutive bounds; `reduceat` gives an empty range the value after it, so those are put right."""
    padded = np.append(values, 0.0)
    sums = np.add.reduceat(padded, first[:-1])
    sums[first[1:] == first[:-1]] = 0.0
    return sums


def numpy_best(work: Workload) -> Callable[[], Result]:
    """Folded constants per position, sorted by account, `reduceat` and buffers that are used again.

    Margin volumes do not change with the quotes either, so they are folded to one number per account and symbol.
    """
    folded, fees = _folded(work), _fees(work)
    mine, queued = _margin_bases(work)
    queued_account = np.repeat(np.arange(len(work.accounts)), np.diff(queued.first))
    bid, ask, rate, factor = _rates(work)
    at_open = work.instruments["margin_at_open"].astype(bool)
    price_usd, cost_rate = np.empty(2 * N_SYMBOLS), np.empty(2 * N_SYMBOLS)
    first, second, third = np.empty(len(folded.units)), np.empty(len(folded.units)), np.empty(len(mine.base))

    def run() -> Result:
        price_usd[0::2], price_usd[1::2] = bid * rate, ask * rate
        cost_rate[0::2] = cost_rate[1::2] = rate
        np.take(price_usd, folded.leg, out=first, mode="clip")
        np.multiply(first, folded.units, out=first)
        np.take(cost_rate, folded.leg, out=second, mode="clip")
        np.multiply(second, folded.cost, out=second)
        np.subtract(first, second, out=first)
        margin_usd = np.where(at_open, factor, ask * factor)
        np.take(margin_usd, mine.symbol, out=third, mode="clip")
        np.multiply(third, mine.base, out=third)
        margin = _sums(third, mine.first)
        reserve = np.bincount(queued_account, queued.base * margin_usd[queued.symbol], len(margin))
        return _finish(work, _sums(first, folded.first) + fees, margin, margin + reserve)

    return run


@numba.njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _numba_loop(
    first: Any, leg: Any, units: Any, cost: Any, price: Any, rate: Any,
    base_first: Any, base: Any, base_symbol: Any, queued_first: Any, queued: Any, queued_symbol: Any, margin_usd: Any,
    balance: Any, fees: Any, leverage: Any, warning: Any, critical: Any, out: Any, state: Any,
) -> None:  # fmt: skip
    for account in range(len(balance)):
        pnl = fees[account]
        for i in range(first[account], first[account + 1]):
            pnl += (units[i] * price[leg[i]] - cost[i]) * rate[leg[i]]
        margin = 0.0
        for i in range(base_first[account], base_first[account + 1]):
            margin += base[i] * margin_usd[base_symbol[i]]
        equity = balance[account] + pnl
        used = margin / leverage[account]
        for i in range(queued_first[account], queued_first[account + 1]):
            margin += queued[i] * margin_usd[queued_symbol[i]]
        level = 100.0 * equity / used if used > 0.0 else 0.0
        out[0, account] = pnl
        out[1, account] = equity
        out[2, account] = used
        out[3, account] = margin / leverage[account]
        out[4, account] = equity - used
        out[5, account] = level
        if not (abs(equity) < MAX_USD and 0.0 <= used < MAX_USD):
            state[account] = 0
        elif used == 0.0:
            state[account] = 1
        elif level <= critical[account]:
            state[account] = 4
        else:
            state[account] = 3 if level <= warning[account] else 2


def _numba(work: Workload, *columns: Any) -> Callable[[], Result]:
    bid, ask, rate, factor = _rates(work)
    at_open = work.instruments["margin_at_open"].astype(bool)
    price, rates, fees = np.empty(2 * N_SYMBOLS), np.repeat(rate, 2), _fees(work)
    names = ("leverage", "warning_level_pct", "critical_level_pct")
    balance = work.accounts["balance"].copy()
    leverage, warning, critical = (work.accounts[name].copy() for name in names)
    out, state = np.empty((6, len(balance))), np.empty(len(balance), np.uint8)
    positions, bases = columns[:4], columns[4:]

    def run() -> Result:
        price[0::2], price[1::2] = bid, ask
        margin_usd = np.where(at_open, factor, ask * factor)
        _numba_loop(
            *positions, price, rates, *bases, margin_usd, balance, fees, leverage, warning, critical, out, state
        )
        return Result(out[0], out[1], out[2], out[3], out[4], out[5], state)

    return run


def _columns(bases: _Bases) -> tuple[Any, Any, Any]:
    return bases.first, bases.base, bases.symbol.astype(np.int32)


def numba_folded(work: Workload) -> Callable[[], Result]:
    """Folded columns, one row per position, one compiled loop over accounts; margin folded by account and symbol."""
    folded = _folded(work)
    mine, queued = _margin_bases(work)
    positions = (folded.first, folded.leg.astype(np.int32), folded.units, folded.cost)
    return _numba(work, *positions, *_columns(mine), *_columns(queued))


def numba_netted(work: Workload) -> Callable[[], Result]:
    """The same loop over the kernel's own netted legs, as columns: what is left is the layout and the compiler."""
    count = work.accounts["n_legs"].astype(np.int64)
    account = np.repeat(np.arange(len(count)), count)
    reserved = np.arange(len(work.legs)) - work.accounts["first"][account] >= work.accounts["n_executed"][account]

    def rows(chosen: npt.NDArray[np.bool_]) -> tuple[Any, Any, Any, Any, Any]:
        legs = work.legs[chosen]
        first = np.searchsorted(account[chosen], np.arange(len(count) + 1)).astype(np.int64)
        names = ("rate", "units", "cost", "margin_base")
        return first, *(legs[name].copy() for name in names)  # type: ignore[return-value]

    first, rate, units, cost, base = rows(~reserved)
    queued_first, queued_rate, _, _, queued = rows(reserved)
    return _numba(
        work, first, rate, units, cost, first, base, rate // 2, queued_first, queued, queued_rate // 2
    )  # fmt: skip
