"""Other ways to value the same workload, each as good as its kind gets, to measure the kernel against.

Every twin is prepared once (`prepare`) with whatever does not change from tick to tick and then computes, per tick
and from the quotes: open profit, equity, used margin, free margin, level and ladder state of every account.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from benchmarks.workloads import N_SYMBOLS, Workload
from copyrisk import value_accounts

Floats = npt.NDArray[np.float64]


@dataclass
class Result:
    """(a,) columns of one valuation."""

    open_pnl: Floats
    equity: Floats
    used_margin: Floats
    free_margin: Floats
    margin_level_pct: Floats
    state: npt.NDArray[Any]


class WrongResult(AssertionError):
    """A way of computing gave other figures than the kernel: its time means nothing."""


def check(result: Result, figures: npt.NDArray[Any]) -> None:
    """Refuse a result that is not the kernel's: 1e-9 relative, states equal."""
    pairs = {
        "open_pnl": result.open_pnl,
        "equity": result.equity,
        "used_margin_executed": result.used_margin,
        "free_margin": result.free_margin,
        "margin_level_pct": result.margin_level_pct,
    }
    for name, values in pairs.items():
        if not np.allclose(values, figures[name], rtol=1e-9, atol=1e-6):
            raise WrongResult(name)
    if not np.array_equal(result.state, figures["state"]):
        raise WrongResult("state")


def _rates(work: Workload) -> tuple[Floats, Floats, Floats, Floats]:
    """By instrument: bid, ask, rate to USD (ask side), margin factor in USD."""
    bought, sold = work.leg_rates[0::2], work.leg_rates[1::2]
    factor = work.instruments["margin_factor"] * bought["gain"]
    return bought["price"].copy(), sold["price"].copy(), bought["gain"].copy(), factor


def _finish(work: Workload, pnl: Floats, margin: Floats) -> Result:
    """From profit and margin (before leverage) of every account to its figures, in NumPy."""
    equity = work.accounts["balance"] + pnl
    used = margin / work.accounts["leverage"]
    level = np.where(used > 0, 100.0 * equity / np.where(used > 0, used, 1.0), 0.0)
    state = np.where(
        used > 0,
        np.where(
            level <= work.accounts["critical_level_pct"],
            4,
            np.where(level <= work.accounts["warning_level_pct"], 3, 2),
        ),
        1,
    )
    return Result(pnl, equity, used, equity - used, level, state)


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
    fees, size = work.orders["fees_usd"].copy(), work.instruments["contract_size"].copy()
    at_open = work.instruments["margin_at_open"].astype(bool)
    n = len(work.accounts)
    pair, pair_of = np.unique(account * N_SYMBOLS + symbol, return_inverse=True)
    bid, ask, rate, factor = _rates(work)

    def run() -> Result:
        moved = np.where(is_buy, bid[symbol] - price, price - ask[symbol])
        pnl = moved * lots * size[symbol] * rate[symbol] + fees
        margin_price = np.where(at_open[symbol], price, ask[symbol])
        per_lot = size[symbol] * margin_price * factor[symbol]
        bought = np.bincount(pair_of, lots * is_buy, len(pair))
        sold = np.bincount(pair_of, lots * ~is_buy, len(pair))
        highest = np.zeros(len(pair))
        np.maximum.at(highest, pair_of, per_lot)
        margin = np.bincount(pair // N_SYMBOLS, np.maximum(bought, sold) * highest, n)
        return _finish(work, np.bincount(account, pnl, n), margin)

    return run


def numpy_best(work: Workload) -> Callable[[], Result]:
    """Folded constants per position, sorted by account, `reduceat` and buffers that are used again.

    Margin volumes do not change with the quotes either, so they are folded to one number per account and symbol.
    """
    symbol = work.orders["instrument"].astype(np.int64)
    units = work.orders["lots"] * work.instruments["contract_size"][symbol]
    signed = np.where(work.orders["is_buy"].astype(bool), units, -units)
    cost = signed * work.orders["price"]
    leg = 2 * symbol + (signed < 0)
    start = np.flatnonzero(np.diff(work.orders["account"], prepend=-1))
    fees = np.add.reduceat(work.orders["fees_usd"], start)
    base, base_symbol, base_start = _margin_bases(work)
    bid, ask, rate, factor = _rates(work)
    at_open = work.instruments["margin_at_open"].astype(bool)
    price_usd, cost_rate = np.empty(2 * N_SYMBOLS), np.empty(2 * N_SYMBOLS)
    first, second, third = np.empty(len(signed)), np.empty(len(signed)), np.empty(len(base))

    def run() -> Result:
        price_usd[0::2], price_usd[1::2] = bid * rate, ask * rate
        cost_rate[0::2] = cost_rate[1::2] = rate
        np.take(price_usd, leg, out=first, mode="clip")
        np.multiply(first, signed, out=first)
        np.take(cost_rate, leg, out=second, mode="clip")
        np.multiply(second, cost, out=second)
        np.subtract(first, second, out=first)
        pnl = np.add.reduceat(first, start) + fees
        np.take(np.where(at_open, factor, ask * factor), base_symbol, out=third, mode="clip")
        np.multiply(third, base, out=third)
        return _finish(work, pnl, np.add.reduceat(third, base_start))

    return run


def _margin_bases(work: Workload) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Margin base of every account and symbol, its symbol, and where each account begins."""
    account, symbol = work.orders["account"].astype(np.int64), work.orders["instrument"].astype(np.int64)
    units = work.orders["lots"] * work.instruments["contract_size"][symbol]
    is_buy = work.orders["is_buy"].astype(bool)
    pair, pair_of = np.unique(account * N_SYMBOLS + symbol, return_inverse=True)
    highest = np.zeros(len(pair))
    np.maximum.at(highest, pair_of, work.orders["price"])
    bought, sold = np.bincount(pair_of, units * is_buy), np.bincount(pair_of, units * ~is_buy)
    pair_symbol = pair % N_SYMBOLS
    at_open = work.instruments["margin_at_open"].astype(bool)[pair_symbol]
    base = np.maximum(bought, sold) * np.where(at_open, highest, 1.0)
    return base, pair_symbol, np.flatnonzero(np.diff(pair // N_SYMBOLS, prepend=-1))


@numba.njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _numba_loop(
    first: Any, leg: Any, units: Any, cost: Any, price: Any, rate: Any, base_first: Any, base: Any, base_symbol: Any,
    margin_usd: Any, balance: Any, fees: Any, leverage: Any, warning: Any, critical: Any, out: Any, state: Any,
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
        level = 100.0 * equity / used if used > 0.0 else 0.0
        out[0, account] = pnl
        out[1, account] = equity
        out[2, account] = used
        out[3, account] = equity - used
        out[4, account] = level
        if used <= 0.0:
            state[account] = 1
        else:
            state[account] = 2 + (level <= warning[account]) + (level <= critical[account])


def _numba(work: Workload, columns: tuple[Any, Any, Any, Any], bases: tuple[Any, Any, Any]) -> Callable[[], Result]:
    first, leg, units, cost = columns
    base_first, base, base_symbol = bases
    bid, ask, rate, factor = _rates(work)
    at_open = work.instruments["margin_at_open"].astype(bool)
    price, rates = np.empty(2 * N_SYMBOLS), np.repeat(rate, 2)
    fees = np.bincount(work.orders["account"], work.orders["fees_usd"], len(work.accounts))
    names = ("leverage", "warning_level_pct", "critical_level_pct")
    balance = work.accounts["balance"].copy()
    leverage, warning, critical = (work.accounts[name].copy() for name in names)
    out, state = np.empty((5, len(balance))), np.empty(len(balance), np.uint8)

    def run() -> Result:
        price[0::2], price[1::2] = bid, ask
        margin_usd = np.where(at_open, factor, ask * factor)
        _numba_loop(
            first, leg, units, cost, price, rates, base_first, base, base_symbol, margin_usd,
            balance, fees, leverage, warning, critical, out, state,
        )  # fmt: skip
        return Result(out[0], out[1], out[2], out[3], out[4], state)

    return run


def numba_folded(work: Workload) -> Callable[[], Result]:
    """Folded columns, one row per position, one compiled loop over accounts."""
    symbol = work.orders["instrument"].astype(np.int32)
    units = work.orders["lots"] * work.instruments["contract_size"][symbol]
    signed = np.where(work.orders["is_buy"].astype(bool), units, -units)
    leg = (2 * symbol + (signed < 0)).astype(np.int32)
    first = np.searchsorted(work.orders["account"], np.arange(len(work.accounts) + 1)).astype(np.int64)
    base, base_symbol, base_start = _margin_bases(work)
    base_first = np.append(base_start, len(base)).astype(np.int64)
    columns = (first, leg, signed, signed * work.orders["price"])
    return _numba(work, columns, (base_first, base, base_symbol.astype(np.int32)))


def numba_netted(work: Workload) -> Callable[[], Result]:
    """The same loop over the kernel's own netted legs, as columns: what is left is the layout and the compiler."""
    first = np.append(work.accounts["first"], len(work.legs)).astype(np.int64)
    legs = work.legs
    columns = (first, legs["rate"].copy(), legs["units"].copy(), legs["cost"].copy())
    return _numba(work, columns, (first, legs["margin_base"].copy(), (legs["rate"] // 2).astype(np.int32)))
