"""The liquidation ladder: at which price of a symbol how many accounts and lots reach their levels.

Pure: the book is only read, by the kernel that follows its rates. What is unknown stays unknown and is counted. Results
are plain values for JSON: moves in percent, `None` for none.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from copyrisk import layout
from copyrisk._core import price_legs
from copyrisk._scenario import Reach, find_crossings
from copyrisk.book import Book
from copyrisk.errors import Refused, is_known
from copyrisk.layout import Rows
from copyrisk.market import Market
from copyrisk.risk import CONVERSION_SIDES

#: An account and a symbol it holds; `_scenario.pxd` documents every field.
CROSSING = np.dtype(
    [
        ("lots", "f8"),
        ("warning_down", "f8"),
        ("warning_up", "f8"),
        ("critical_down", "f8"),
        ("critical_up", "f8"),
        ("account", "i4"),
        ("quote", "i4"),
        ("code", "u1"),
        ("_pad0", "u1", (7,)),
    ]
)
RUNGS_PCT = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0)
_DIRECTIONS, _KINDS = ("down", "up"), ("warning", "critical")
_NEAREST = 25
# A move of exactly a rung belongs to it, whatever the last digits say.
_NOISE_PCT = 1e-9


class PricedMarket(NamedTuple):
    """A book's instruments and their rates by some quotes, in arrays of their own; `rates` as `price_legs` has them."""

    instruments: Rows
    quotes: Rows
    rates: Rows


def price_market(book: Book, quotes: Rows) -> PricedMarket:
    """Price a book's instruments by quotes that were judged."""
    instruments = book.market.instruments.copy()
    rates: Rows = np.zeros(2 * len(instruments), layout.LEG_RATE)
    price_legs(instruments, quotes, CONVERSION_SIDES[book.rules.rate_side], rates)
    return PricedMarket(instruments, quotes, rates)


def crossings(book: Book, figures: Rows) -> Rows:
    """How far each symbol must move to bring each account that holds it to its levels.

    Parameters
    ----------
    book : Book
        As it was valued last.
    figures : (a,) Figures
        Of that valuation.

    Returns
    -------
    (n,) CROSSING
        By account, then symbol; see `_scenario.find_crossings`.
    """
    rows = book.account_rows()
    found: Rows = np.zeros(int(book.accounts["n_executed"][rows].sum()), CROSSING)
    market = price_market(book, book.market.quotes)
    count = find_crossings(
        rows, book.accounts, book.legs, market.rates, market.instruments, market.quotes, figures, found
    )
    return found[:count]


def ladder_overview(book: Book, found: Rows, now_ms: int) -> dict[str, Any]:
    """Of every symbol that somebody holds the nearest crossings: `{now_ms, symbols}`.

    Each of `symbols`, by name, is `{symbol, bid, ask, accounts, lots, down, up}`; `down` and `up` are
    `{warning, critical}`, each `{price, move_pct}` or `None`. `found` is what `crossings` returns.
    """
    market, quotes = book.market, found["quote"]
    count = len(market.quotes)
    accounts, lots = np.bincount(quotes, minlength=count), np.bincount(quotes, found["lots"], minlength=count)
    nearest: dict[str, npt.NDArray[np.float64]] = {}
    for kind in _KINDS:
        for direction, nearer in zip(_DIRECTIONS, (np.fmax, np.fmin), strict=True):
            nearest[f"{kind}_{direction}"] = np.full(count, np.nan)
            nearer.at(nearest[f"{kind}_{direction}"], quotes, found[f"{kind}_{direction}"])
    held = sorted(np.flatnonzero(accounts).tolist(), key=lambda row: market.symbols[row])
    symbols = [
        {
            **_quote(market, row),
            "accounts": int(accounts[row]),
            "lots": as_lots(lots[row]),
            **{
                direction: {
                    kind: _crossing(market, row, direction, nearest[f"{kind}_{direction}"][row]) for kind in _KINDS
                }
                for direction in _DIRECTIONS
            },
        }
        for row in held
    ]
    return {"now_ms": now_ms, "symbols": symbols}


def ladder_of_symbol(book: Book, found: Rows, symbol: str, now_ms: int) -> dict[str, Any]:
    """How many accounts and lots reach their levels at which price of one symbol.

    Parameters
    ----------
    found : (n,) CROSSING
        What `crossings` returns.

    Returns
    -------
    dict
        `{symbol, bid, ask, now_ms, accounts, lots, unknown, closed, already, rungs, nearest}`. `unknown`: accounts that
        are; `closed`: accounts that rest on another symbol whose market is closed; both are on no rung. `already`:
        accounts that stand at the warning level (and not at the critical one), and at the critical one. `rungs`: of
        each direction and move, what is reached up to there, without those that are there already. Prices are those
        that positions which lose by the move are closed at: the bid when it falls, the ask when it rises.

    Raises
    ------
    Refused
        `unknown_symbol`.
    """
    market, row = book.market, quote_row(book.market, symbol)
    mine = found[found["quote"] == row]
    codes = np.bincount(mine["code"], minlength=len(Reach))
    return {
        **_quote(market, row),
        "now_ms": now_ms,
        "accounts": len(mine),
        "lots": as_lots(mine["lots"].sum()),
        "unknown": int(codes[Reach.NOT_KNOWN]),
        "closed": int(codes[Reach.MARKET_SHUT]),
        "already": {"warning": int(codes[Reach.AT_WARNING]), "critical": int(codes[Reach.AT_CRITICAL])},
        "rungs": [rung for direction in _DIRECTIONS for rung in _rungs(market, row, mine, direction)],
        "nearest": list(_nearest(book, row, mine)),
    }


def _rungs(market: Market, row: int, mine: Rows, direction: str) -> Iterator[dict[str, Any]]:
    for step_pct in RUNGS_PCT:
        move_pct = -step_pct if direction == "down" else step_pct
        rung: dict[str, Any] = {"direction": direction, **_at(market, row, direction, move_pct / 100.0)}
        for kind in _KINDS:
            reached = 100.0 * np.abs(mine[f"{kind}_{direction}"]) <= step_pct + _NOISE_PCT
            rung[kind] = {"accounts": int(reached.sum()), "lots": as_lots(mine["lots"][reached].sum())}
        yield rung


def _nearest(book: Book, row: int, mine: Rows) -> Iterator[dict[str, Any]]:
    """The crossings nearest to the price of now, of either direction."""
    named = [(kind, direction) for kind in _KINDS for direction in _DIRECTIONS]
    moves = np.concatenate([mine[f"{kind}_{direction}"] for kind, direction in named])
    there = np.flatnonzero(~np.isnan(moves))
    first = there[np.argsort(np.abs(moves[there]), kind="stable")[:_NEAREST]]
    for place in first.tolist():
        (kind, direction), one = named[place // len(mine)], mine[place % len(mine)]
        where = _at(book.market, row, direction, float(moves[place]))
        yield {"account": account_name(book, int(one["account"])), "kind": kind, **where, "lots": as_lots(one["lots"])}


def _crossing(market: Market, row: int, direction: str, move: float) -> dict[str, Any] | None:
    return None if math.isnan(move) else _at(market, row, direction, float(move))


def _at(market: Market, row: int, direction: str, move: float) -> dict[str, Any]:
    quote = market.quotes[row]
    side = float(quote["bid" if direction == "down" else "ask"])
    price = _price(side * (1.0 + move)) if is_known(int(quote["code"])) else None
    return {"price": price, "move_pct": round(100.0 * move, 4) + 0.0}


def _quote(market: Market, row: int) -> dict[str, Any]:
    quote = market.quotes[row]
    known = is_known(int(quote["code"]))
    bid, ask = (float(quote[side]) if known else None for side in ("bid", "ask"))
    return {"symbol": market.symbols[row], "bid": bid, "ask": ask}


# ---- words and numbers


def quote_row(market: Market, symbol: str) -> int:
    """Row of a symbol's quote; raises `Refused`, `unknown_symbol`."""
    row = market.quote_row.get(symbol)
    if row is None:
        raise Refused(f"nobody holds {symbol[:40]!a}", code="unknown_symbol")
    return row


def account_name(book: Book, row: int) -> str:
    """`T:U`."""
    return book.account_ids.text(row).decode("ascii")


def as_lots(lots: float) -> float:
    """Lots as they are shown: eight places, without the noise of sums."""
    return round(float(lots), 8) + 0.0


def _price(price: float) -> float:
    """To eight significant digits: more than quotes have."""
    return float(f"{price:.8g}")
