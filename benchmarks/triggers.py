"""The triggers of 100,000 orders: what a change of a quote costs when none fires, and when some do."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Figure, load, seconds
from benchmarks.twins import WrongResult
from benchmarks.workloads import N_SYMBOLS
from copyrisk._triggers import Ladders, TriggerKind

ORDERS, ROUNDS = 100_000, 2_000
_TARGET_US = 100.0
_FIRE_AT_ONCE = 100
_PENDING = 0.3  # of the orders; the others have a stop loss and a take profit
_MARKET, _SPREAD, _NEAREST, _FARTHEST = 1.1, 0.0001, 0.0005, 0.05
_Floats = npt.NDArray[np.float64]
_Rows = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint8], _Floats]


@dataclass(frozen=True)
class _Book:
    """Triggers as `Ladders.set_many` takes them, none within `_NEAREST` of the market, and the market's quotes."""

    rows: _Rows
    symbols: npt.NDArray[np.int32]
    bids: _Floats
    asks: _Floats


def figures(orders: int = ORDERS, rounds: int = ROUNDS) -> Iterator[Figure]:
    """Measure everything, checking what fires before its time counts."""
    book = _book(orders)
    ladders = Ladders()
    loading = [seconds(lambda: Ladders().set_many(*book.rows)) for _ in range(5)]
    ladders.set_many(*book.rows)
    _check(ladders, book)
    one = book.symbols[:1], book.bids[:1], book.asks[:1]
    scan_one = [seconds(lambda: ladders.fire(*one)) for _ in range(rounds)]
    scan_all = [seconds(lambda: ladders.fire(book.symbols, book.bids, book.asks)) for _ in range(rounds)]
    if len(ladders) != len(book.rows[0]):
        raise WrongResult("something fired while the market stood still")
    yield _figure("trigger_scan_us", scan_one, 1e6, "us", target=_TARGET_US)
    yield _figure("trigger_scan_all_symbols_us", scan_all, 1e6, "us", target=_TARGET_US)
    yield _figure("trigger_fire_100_us", _firing(ladders, book, rounds // 10), 1e6, "us")
    yield _figure("trigger_set_ns", _setting(ladders, book, rounds), 1e9, "ns")
    yield _figure("trigger_load_ms", loading, 1e3, "ms")


def _figure(name: str, times: list[float], scale: float, unit: str, *, target: float | None = None) -> Figure:
    value = round(float(np.median(times)) * scale, 3)
    return Figure(name, value, unit, target=target, at_most=target is not None, load=load())


def _book(orders: int) -> _Book:
    random = np.random.default_rng(3)
    is_buy = random.random(orders) < 0.5
    pending = random.random(orders) < _PENDING
    is_stop = random.random(orders) < 0.5
    symbol = random.integers(0, N_SYMBOLS, orders).astype(np.int32)
    up, down = (_MARKET + sign * random.uniform(_NEAREST, _FARTHEST, orders) for sign in (1, -1))
    row = np.arange(orders, dtype=np.int32)
    pending_kind = np.where(
        is_stop,
        np.where(is_buy, TriggerKind.BUY_STOP, TriggerKind.SELL_STOP),
        np.where(is_buy, TriggerKind.BUY_LIMIT, TriggerKind.SELL_LIMIT),
    )
    loss = np.where(is_buy, TriggerKind.STOP_LOSS_OF_BUY, TriggerKind.STOP_LOSS_OF_SELL)
    profit = np.where(is_buy, TriggerKind.TAKE_PROFIT_OF_BUY, TriggerKind.TAKE_PROFIT_OF_SELL)
    has = np.concatenate([pending, ~pending, ~pending])
    price = np.concatenate(
        [np.where(is_buy == is_stop, up, down), np.where(is_buy, down, up), np.where(is_buy, up, down)]
    )
    mixed = random.permutation(np.flatnonzero(has))
    return _Book(
        (
            np.tile(row, 3)[mixed],
            np.tile(symbol, 3)[mixed],
            np.concatenate([pending_kind, loss, profit]).astype(np.uint8)[mixed],
            price[mixed],
        ),
        np.arange(N_SYMBOLS, dtype=np.int32),
        np.full(N_SYMBOLS, _MARKET),
        np.full(N_SYMBOLS, _MARKET + _SPREAD),
    )


def _falling(book: _Book) -> tuple[_Rows, float]:
    """All triggers of the `_FIRE_AT_ONCE` orders that a fall of the first symbol's bid fires, and that bid."""
    _, symbol, kind, price = book.rows
    watches = (symbol == 0) & np.isin(kind, (TriggerKind.SELL_STOP, TriggerKind.STOP_LOSS_OF_BUY))
    bid = float(np.sort(price[watches])[-min(_FIRE_AT_ONCE, int(watches.sum()))])
    reached = watches & (price >= bid)
    again = np.isin(book.rows[0], book.rows[0][reached])
    order, symbol, kind, price = book.rows
    return (order[again], symbol[again], kind[again], price[again]), bid


def _check(ladders: Ladders, book: _Book) -> None:
    """Nothing fires at the market, and at the fall just what the conditions say; afterwards all is as it was."""
    if len(ladders.fire(book.symbols, book.bids, book.asks)[0]):
        raise WrongResult("something fired at the market")
    again, bid = _falling(book)
    orders, _, prices = ladders.fire(book.symbols[:1], np.array([bid]), book.asks[:1])
    reached = np.isin(again[2], (TriggerKind.SELL_STOP, TriggerKind.STOP_LOSS_OF_BUY)) & (again[3] >= bid)
    if not np.array_equal(np.sort(orders), np.sort(again[0][reached])) or not (prices >= bid).all():
        raise WrongResult(f"{len(orders)} orders fired, expected {reached.sum()}")
    ladders.set_many(*again)
    if len(ladders) != len(book.rows[0]):
        raise WrongResult(f"{len(ladders)} triggers, expected {len(book.rows[0])}")


def _firing(ladders: Ladders, book: _Book, rounds: int) -> list[float]:
    again, bid = _falling(book)
    quote = book.symbols[:1], np.array([bid]), book.asks[:1]
    times = []
    for _ in range(rounds):
        times.append(seconds(lambda: ladders.fire(*quote)))
        ladders.set_many(*again)
    return times


def _setting(ladders: Ladders, book: _Book, rounds: int) -> list[float]:
    """Seconds for a `set` that moves a trigger to another price: means of a hundred."""
    random = np.random.default_rng(4)
    times = []
    for _ in range(rounds // 100):
        some = random.integers(0, len(book.rows[0]), 100)
        words = list(zip(*(column[some].tolist() for column in book.rows), strict=True))
        times.append(seconds(lambda words=words: _move(ladders, words)) / len(words))  # type: ignore[misc]
    return times


def _move(ladders: Ladders, words: list[tuple[int, int, int, float]]) -> None:
    for order, symbol, kind, price in words:
        ladders.set(order, symbol, kind, price * 1.00001)
