"""Every workload, seeded and by name; tests and benchmarks take theirs from here."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from copyrisk import layout
from copyrisk._core import ConversionSide, OrderEffect, RowCode, judge_quotes, price_legs
from copyrisk.layout import Rows
from copyrisk.risk import fold_all

NOW_MS = 1_700_000_000_000
N_SYMBOLS = 64
_N_USD, _N_CRYPTO = 40, 4  # of the symbols: quoted in USD (the last of them crypto), the others in six currencies
_N_CURRENCIES = 6
_DEAD_SYMBOL = 50  # its feed has stopped: some accounts in a hundred are unknown
_QUEUED = 0.01  # of the orders are with the provider and reserve margin only


@dataclass(frozen=True)
class Size:
    """So many accounts with so many positions; `favourites` symbols an account trades (0: all different)."""

    accounts: int
    positions_each: int
    favourites: int


SIZES = {
    "small": Size(2_000, 5, 3),
    "million": Size(200_000, 5, 3),
    "million_unnetted": Size(200_000, 5, 0),
}


@dataclass
class Workload:
    """A valued book's inputs: flat orders as a store gives them, and the folded rows the kernel takes.

    Attributes
    ----------
    orders, instruments, quotes, accounts, legs, leg_rates : structured arrays of `copyrisk.layout`
    swap, commission : (o,) float64
        USD, as an order hash holds them; `orders["fees_usd"]` is their difference.
    figures : (a,) Figures
        Room for the result.
    """

    orders: Rows
    swap: npt.NDArray[np.float64]
    commission: npt.NDArray[np.float64]
    instruments: Rows
    quotes: Rows
    accounts: Rows
    legs: Rows
    leg_rates: Rows
    figures: Rows

    @property
    def bytes_touched(self) -> int:
        """What one valuation pass reads and writes."""
        return int(self.legs.nbytes + self.accounts.nbytes + self.figures.nbytes + self.leg_rates.nbytes)


def _market(random: np.random.Generator) -> tuple[Rows, Rows]:
    """Symbols and their quotes; behind them the pairs that convert their profit currencies."""
    quotes: Rows = np.zeros(N_SYMBOLS + _N_CURRENCIES, layout.QUOTE)
    mid = np.exp(random.uniform(-1.0, 1.0, len(quotes)))
    quotes["bid"], quotes["ask"] = mid * 0.9999, mid * 1.0001
    quotes["max_age_ms"], quotes["market"], quotes["read_code"] = 30_000, 1, RowCode.OK
    quotes["ts_ms"] = NOW_MS
    quotes["ts_ms"][_DEAD_SYMBOL] -= 60_000
    instruments: Rows = np.zeros(N_SYMBOLS, layout.INSTRUMENT)
    row = np.arange(N_SYMBOLS)
    instruments["contract_size"], instruments["margin_factor"] = 100_000.0, 1.0
    instruments["quote"], instruments["direct"], instruments["inverse"] = row, -1, -1
    instruments["profit_is_usd"], instruments["highest_price"] = row < _N_USD, True
    instruments["read_code"] = RowCode.OK
    crosses = row >= _N_USD
    pair = N_SYMBOLS + row % _N_CURRENCIES
    instruments["direct"][crosses & (row % 2 == 0)] = pair[crosses & (row % 2 == 0)]
    instruments["inverse"][crosses & (row % 2 == 1)] = pair[crosses & (row % 2 == 1)]
    crypto = (row >= _N_USD - _N_CRYPTO) & (row < _N_USD)
    instruments["margin_factor"][crypto], instruments["margin_at_open"][crypto] = 2.0, True
    return instruments, quotes


def _symbols(size: Size, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """(accounts, positions) symbol of each position: few symbols are in many accounts, many in few."""
    popularity = 1.0 / np.arange(1, N_SYMBOLS + 1)
    popularity /= popularity.sum()
    if size.favourites == 0:
        keys = random.exponential(size=(size.accounts, N_SYMBOLS)) / popularity
        return np.argpartition(keys, size.positions_each, axis=1)[:, : size.positions_each]
    favourites = random.choice(N_SYMBOLS, (size.accounts, size.favourites), p=popularity)
    chosen = random.integers(0, size.favourites, (size.accounts, size.positions_each))
    return np.take_along_axis(favourites, chosen, 1)


@cache
def workload(name: str, seed: int = 1) -> Workload:
    """Build a named workload; the same name and seed give the same bytes. Treat it as read-only but `figures`."""
    size = SIZES[name]
    random = np.random.default_rng(seed)
    instruments, quotes = _market(random)
    count = size.accounts * size.positions_each
    symbol = _symbols(size, random)
    # An account is mostly long or short in a symbol: one position in ten is a hedge.
    side = (symbol * 7 + np.arange(size.accounts)[:, None]) % 2 == 0
    orders: Rows = np.zeros(count, layout.ORDER)
    orders["instrument"] = symbol.ravel()
    orders["is_buy"] = (side ^ (random.random(symbol.shape) < 0.1)).ravel()
    orders["lots"] = random.integers(1, 300, count) / 100.0
    orders["price"] = quotes["bid"][orders["instrument"]] * random.normal(1.0, 0.003, count)
    swap, commission = random.integers(-200, 50, count) / 100.0, random.integers(0, 700, count) / 100.0
    orders["fees_usd"] = swap - commission
    orders["account"] = np.repeat(np.arange(size.accounts), size.positions_each)
    orders["effect"] = np.where(random.random(count) < _QUEUED, OrderEffect.RESERVED, OrderEffect.EXECUTED)
    orders["code"] = RowCode.OK
    accounts: Rows = np.zeros(size.accounts, layout.ACCOUNT)
    accounts["balance"] = random.integers(100_000, 10_000_000, size.accounts) / 100.0
    accounts["leverage"] = random.choice([30.0, 100.0, 200.0, 500.0], size.accounts)
    accounts["warning_level_pct"], accounts["critical_level_pct"], accounts["read_code"] = 50.0, 10.0, RowCode.OK
    legs = fold_all(accounts, orders, instruments)
    leg_rates: Rows = np.zeros(2 * len(instruments), layout.LEG_RATE)
    judge_quotes(quotes, NOW_MS, np.ones(5, np.uint8))
    price_legs(instruments, quotes, ConversionSide.CONVERT_ASK, leg_rates)
    figures: Rows = np.zeros(size.accounts, layout.FIGURES)
    return Workload(orders, swap, commission, instruments, quotes, accounts, legs, leg_rates, figures)
