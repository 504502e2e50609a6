"""The liquidation ladder and the what-if of a house: each held against the whole valuation on quotes that moved."""

from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Figure, load, seconds
from benchmarks.twins import WrongResult
from benchmarks.workloads import N_SYMBOLS, NOW_MS
from copyrisk import layout
from copyrisk._core import LadderState, OrderEffect, RowCode
from copyrisk._cutoff import StopOut
from copyrisk._scenario import Reach
from copyrisk.book import Book
from copyrisk.layout import Rows
from copyrisk.market import InstrumentKey
from copyrisk.risk import Valuer
from copyrisk.rules import ValuationRules
from copyrisk.scenario import crossings, ladder_of_symbol, ladder_overview, what_if
from copyrisk.terms import RateSide

SIZES = (10_000, 40_000)
_ORDERS_EACH, _FAVOURITES, _ROUNDS = 5, 3, 9
_MOST_MS = 100.0
_OPEN = np.ones(5, np.uint8)
_CHECKED_PCT = ("-10", "5")
_MOVES = {"SYM00": Decimal("-3"), "SYM01": Decimal("2.5"), "SYM02": Decimal("-1")}


def figures(sizes: tuple[int, ...] = SIZES, rounds: int = _ROUNDS) -> Iterator[Figure]:
    """Measure everything, each after its results were held against a book that really moved."""
    for accounts in sizes:
        for side in (RateSide.ASK, RateSide.SIDE):
            book, valuer = _house(accounts, side)
            _check(book, valuer)
            name = f"{accounts}" if side is RateSide.ASK else f"side_{accounts}"
            yield from _measured(book, valuer, name, rounds)


def _measured(book: Book, valuer: Valuer, name: str, rounds: int) -> Iterator[Figure]:
    found = crossings(book, valuer.figures)
    runs = {
        f"ladder_crossings_ms_{name}": lambda: crossings(book, valuer.figures),
        f"ladder_overview_ms_{name}": lambda: ladder_overview(book, found, NOW_MS),
        f"ladder_of_symbol_ms_{name}": lambda: ladder_of_symbol(book, found, "SYM00", NOW_MS),
        f"what_if_ms_{name}": lambda: _asked(book, valuer.figures, _MOVES),
    }
    for label, run in runs.items():
        ms = float(np.median([seconds(run) for _ in range(rounds)])) * 1e3
        yield Figure(label, round(ms, 2), "ms", target=_MOST_MS, at_most=True, load=load())


def _asked(book: Book, figures: Rows, moves: dict[str, Decimal]) -> dict[str, object]:
    return what_if(book, figures, moves, stop_out=StopOut.LARGEST_LOSS, followers=lambda _: {}, now_ms=NOW_MS)


def _check(book: Book, valuer: Valuer) -> None:
    """Who is past a level after a move is who has a crossing on the way; and the what-if says the same states."""
    found, quotes, was = crossings(book, valuer.figures), book.market.quotes, valuer.figures.copy()
    for text in _CHECKED_PCT:
        move = float(text) / 100.0
        said = _asked(book, was, {"SYM00": Decimal(text)})["after"]
        before = quotes[0].copy()
        quotes["bid"][0] *= 1.0 + move
        quotes["ask"][0] *= 1.0 + move
        valuer.value(NOW_MS, _OPEN)
        states = valuer.figures["state"]
        mine = found[(found["quote"] == 0) & (found["code"] != Reach.AT_CRITICAL)]
        expected = np.abs(mine["critical_down" if move < 0 else "critical_up"]) <= abs(move)
        passed = states[mine["account"]] == LadderState.CRITICAL
        counted = np.bincount(states, minlength=len(LadderState)).tolist()
        quotes[0] = before
        valuer.value(NOW_MS, _OPEN)
        if (passed != expected).any() or not expected.any():
            raise WrongResult(f"a move of {text} % reaches others than the ladder says")
        if list(said.values()) != counted:  # type: ignore[attr-defined]
            raise WrongResult(f"a move of {text} % gives {counted}, not {said}")


def _house(accounts: int, side: RateSide) -> tuple[Book, Valuer]:
    """A valued book: three favourite symbols an account, five orders, levels from 5 % up; one symbol in four in EUR."""
    random, book = np.random.default_rng(3), Book(ValuationRules(rate_side=side))
    mid = _fill_market(book, random)
    tags = [f"live:{number}".encode() for number in range(accounts)]
    rows = book.ensure_accounts(tags)
    config: Rows = np.zeros(accounts, layout.ACCOUNT_READ)
    config["leverage"], config["group"] = random.choice([30.0, 100.0, 200.0], accounts), book.market.names.standard
    config["warning_level_pct"], config["critical_level_pct"] = np.nan, np.nan
    config["code"], config["levels_valid"] = RowCode.OK, True
    book.set_accounts(rows, config)
    _fill_orders(book, rows, mid, random)
    valuer = Valuer(book)
    valuer.value(NOW_MS, _OPEN)
    level = np.exp(random.uniform(np.log(0.05), np.log(30.0), accounts))
    config["balance"] = valuer.figures["used_margin_executed"][rows] * level - valuer.figures["open_pnl"][rows]
    book.set_accounts(rows, config)
    valuer.value(NOW_MS, _OPEN)
    return book, valuer


def _fill_market(book: Book, random: np.random.Generator) -> npt.NDArray[np.float64]:
    names, market = book.market.names, book.market
    terms: Rows = np.zeros(1, layout.INSTRUMENT_READ)
    terms["contract_size"], terms["crypto_margin_factor"], terms["type"], terms["code"] = 100_000.0, 1.0, 1, RowCode.OK
    for number in range(N_SYMBOLS):
        terms["profit_currency"] = names.index.put(b"EUR" if number % 4 == 3 else b"USD")
        market.set_instrument(market.ensure_instrument(InstrumentKey("Standard", f"SYM{number:02d}")), terms[0])
    mid: npt.NDArray[np.float64] = np.exp(random.uniform(-1.0, 1.0, len(market.quotes)))
    quotes: Rows = np.zeros(len(mid), layout.QUOTE_READ)
    quotes["bid"], quotes["ask"], quotes["ts_ms"], quotes["code"] = mid * 0.9999, mid * 1.0001, NOW_MS, RowCode.OK
    market.set_quotes(0, quotes)
    return mid


def _fill_orders(
    book: Book, rows: npt.NDArray[np.int32], mid: npt.NDArray[np.float64], random: np.random.Generator
) -> None:
    count, names, market = len(rows) * _ORDERS_EACH, book.market.names, book.market
    favourites = random.integers(0, N_SYMBOLS, (len(rows), _FAVOURITES))
    chosen = np.take_along_axis(favourites, random.integers(0, _FAVOURITES, (len(rows), _ORDERS_EACH)), 1).ravel()
    places = np.array([market.quote_row[f"SYM{number:02d}"] for number in range(N_SYMBOLS)])
    cells = np.zeros((count, 65), np.uint8)
    ids = np.array([f"O{number:07d}".encode() for number in range(count)], "S8")
    cells[:, 0], cells[:, 1:9] = 8, ids.view(np.uint8).reshape(count, 8)
    _, new = book.list_orders(rows, np.full(len(rows), _ORDERS_EACH, np.int32), cells)
    read: Rows = np.zeros(count, layout.ORDER_READ)
    symbols = np.array([names.index.put(f"SYM{number:02d}".encode()) for number in range(N_SYMBOLS)], np.int32)
    read["symbol"], read["lots"] = symbols[chosen], random.integers(1, 300, count) / 100.0
    read["price"] = mid[places][chosen] * random.normal(1.0, 0.003, count)
    read["is_buy"], read["effect"], read["code"] = random.random(count) < 0.5, OrderEffect.EXECUTED, RowCode.OK
    book.set_orders(new, read)
