"""The what-if: what a move of some prices would do to the accounts of a book, and the ladder beside it.

Pure: the book is only read, and everything is worked out on copies by the kernels that value it. What is unknown stays
unknown and is counted. Results are plain values for JSON: USD in cents, levels and moves in percent, `None` for none.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from copyrisk import layout
from copyrisk._core import LadderState, OrderEffect, RowCode, judge_quotes, value_accounts, value_rows
from copyrisk._cutoff import StopOut, order_pnls, plan_closes
from copyrisk.book import Book, RowNumbers
from copyrisk.census import Census
from copyrisk.cover import split_lots
from copyrisk.derived import copy_ids
from copyrisk.errors import Refused
from copyrisk.identifiers import Account
from copyrisk.layout import Rows
from copyrisk.liquidation_ladder import (
    CROSSING,
    PricedMarket,
    account_name,
    as_lots,
    crossings,
    ladder_of_symbol,
    ladder_overview,
    price_market,
    quote_row,
)
from copyrisk.risk import are_known, fold_all, rounded
from copyrisk.terms import AccountType

__all__ = ["CROSSING", "crossings", "ladder_of_symbol", "ladder_overview", "what_if"]

LOWEST_PCT, HIGHEST_PCT, MOST_MOVES = Decimal(-99), Decimal(1000), 50
_LISTED, _FOLLOWERS_LISTED = 100, 50
#: Of some masters, by id, the ids of those who copy each actively; what it raises, the what-if raises.
Followers = Callable[[Sequence[str]], Mapping[str, Sequence[str]]]
_SHUT, _TRADED = 1, 2  # markets as `judge_quotes` is told of them here


class _StopOuts(NamedTuple):
    """How critical accounts are closed: on which market, and in which order."""

    market: PricedMarket
    mode: StopOut
    lot_limits: Rows


def what_if(
    book: Book,
    figures: Rows,
    moves: Mapping[str, Decimal],
    *,
    stop_out: StopOut,
    followers: Followers,
    now_ms: int,
    lot_limits: Rows | None = None,
) -> dict[str, Any]:
    """What would come of it if these symbols moved at once: who is warned, who is liquidated, and onto whom that falls.

    Parameters
    ----------
    book : Book
        As it was valued last.
    figures : (a,) Figures
        Of that valuation.
    moves : dict
        Percent by symbol, from -99 to 1000: bid and ask are multiplied by 1 + move / 100.
    stop_out : StopOut
    followers : callable
        Asked once, of the masters that would be liquidated: by master id, the ids of those who copy it actively.
    lot_limits : (i,) layout.LOT_LIMITS, optional
        For closes in part; without them positions are closed as a whole.

    Returns
    -------
    dict, as in `docs/ladder.md`

    Raises
    ------
    Refused
        `unknown_symbol`, `invalid_move_pct`, `too_many_moves`.
    """
    market = _moved(book, moves)
    rows, after = book.account_rows(), _valued(book, figures, market)
    was, now = figures["state"][rows], after["state"][rows]
    known, acts = now != LadderState.STATE_UNKNOWN, after["code"][rows] == RowCode.OK
    money = rows[known & ~Census(book).are(AccountType.DEMO, rows)]
    worse = known & (now > was)
    warned = _lowest_first(after, rows[acts & worse & (now == LadderState.WARNING)])
    critical = _lowest_first(after, rows[acts & worse & (now == LadderState.CRITICAL)])
    return {
        "now_ms": now_ms,
        "moves": {symbol: float(move) for symbol, move in moves.items()},
        "before": _states(was),
        "after": _states(now),
        "warned": _listed(book, after, warned),
        "liquidated": _liquidated(book, _stop_outs(market, stop_out, lot_limits), after, critical),
        "cascades": _cascades(book, critical, followers),
        "equity": _equity(figures["equity"][money], after["equity"][money]),
        "unknown": int((~known).sum()),
        "closed": int((~acts & worse & (now >= LadderState.WARNING)).sum()),
    }


def _stop_outs(market: PricedMarket, mode: StopOut, lot_limits: Rows | None) -> _StopOuts:
    none: Rows = np.full(len(market.instruments), np.nan, layout.LOT_LIMITS)
    return _StopOuts(market, mode, none if lot_limits is None else lot_limits)


def _valued(book: Book, figures: Rows, market: PricedMarket) -> Rows:
    """(a,) Figures on another market; what was unknown before, for whatever reason, no move makes known."""
    after: Rows = np.zeros(len(figures), layout.FIGURES)
    value_rows(book.account_rows(), book.accounts, book.legs, market.rates, market.instruments, after)
    unknown = (figures["state"] == LadderState.STATE_UNKNOWN) | ~are_known(after["code"])
    after["state"][unknown] = LadderState.STATE_UNKNOWN
    return after


def _moved(book: Book, moves: Mapping[str, Decimal]) -> PricedMarket:
    """The market after the moves; its quotes judged anew, but for their age, which was judged before."""
    if len(moves) > MOST_MOVES:
        raise Refused(f"at most {MOST_MOVES} symbols can be moved at once", code="too_many_moves")
    quotes = book.market.quotes.copy()
    usable, shut = are_known(quotes["code"]), quotes["code"] == RowCode.MARKET_CLOSED
    opens = False
    for symbol, move in moves.items():
        if not (move.is_finite() and LOWEST_PCT <= move <= HIGHEST_PCT):
            raise Refused(f"a move is a percentage from {LOWEST_PCT} to {HIGHEST_PCT}", code="invalid_move_pct")
        row = quote_row(book.market, symbol)
        with np.errstate(over="ignore", under="ignore"):  # what comes of that is judged below
            for side in ("bid", "ask"):
                quotes[side][row] *= float(1 + move / 100)
        opens |= bool(shut[row])
    quotes["read_code"] = np.where(usable, RowCode.OK, quotes["code"])
    quotes["market"], quotes["max_age_ms"] = np.where(shut, _SHUT, _TRADED), 0
    is_open = np.ones(5, np.uint8)
    is_open[_SHUT] = opens  # a move of a symbol whose market is closed is that of the opening
    judge_quotes(quotes, 0, is_open)
    return price_market(book, quotes)


def _lowest_first(after: Rows, rows: RowNumbers) -> RowNumbers:
    sorted_rows: RowNumbers = rows[np.argsort(after["margin_level_pct"][rows], kind="stable")]
    return sorted_rows


def _listed(book: Book, after: Rows, rows: RowNumbers) -> dict[str, Any]:
    listed = [
        {
            "account": account_name(book, row),
            "margin_level_pct": rounded(after["margin_level_pct"][row]),
            "equity_usd": rounded(after["equity"][row]),
        }
        for row in rows[:_LISTED].tolist()
    ]
    return {"count": len(rows), "accounts": listed}


def _liquidated(book: Book, outs: _StopOuts, after: Rows, rows: RowNumbers) -> dict[str, Any]:
    """Who is liquidated, the lowest levels first, and what is left of those that are listed."""
    listed = rows[:_LISTED]
    closes = _plan(book, outs, after, listed)
    left = _without(book, outs.market, listed, closes)
    found = _listed(book, after, rows)
    closed = closes[closes["is_cancel"] == 0]
    for row, figure, one in zip(listed.tolist(), left, found["accounts"], strict=True):
        mine = closed[closed["account"] == row]
        one["closes"], one["lots"] = len(mine), as_lots(mine["lots"].sum())
        has_margin = figure["state"] not in (LadderState.NO_MARGIN, LadderState.STATE_UNKNOWN)
        one["level_after_pct"] = rounded(figure["margin_level_pct"]) if has_margin else None
        one["equity_after_usd"] = rounded(figure["equity"])
    return found


def _plan(book: Book, outs: _StopOuts, after: Rows, rows: RowNumbers) -> Rows:
    """(n,) Close of these accounts, as liquidation plans them."""
    closes: Rows = np.zeros(int(book.order_counts(rows).sum()), layout.CLOSE)
    total = plan_closes(
        rows,
        book.accounts,
        book.order_heads,
        book.orders,
        outs.market.instruments,
        outs.market.rates,
        np.zeros(len(book.orders), np.uint8),
        outs.lot_limits,
        outs.mode,
        book.rules.nets_orders,
        closes,
        np.zeros(len(rows), np.int32),
        after,
    )
    return closes[:total]


def _without(book: Book, market: PricedMarket, rows: RowNumbers, closes: Rows) -> Rows:
    """(k,) Figures of accounts once these closes are done: their profits are in the balance, their margin is free."""
    place = np.zeros(len(book.accounts), np.int32)
    place[rows] = np.arange(len(rows))
    lots = np.zeros(len(book.orders))
    lots[closes["order"]] = np.where(closes["is_cancel"] != 0, math.inf, closes["lots"])
    order_rows = book.order_rows_of(rows)
    gone, left = split_lots(book.orders[order_rows], lots[order_rows])
    left["account"] = place[left["account"]]
    profits = np.zeros(len(gone))
    order_pnls(np.arange(len(gone), dtype=np.int32), gone, market.instruments, market.rates, profits)
    profits[gone["effect"] != OrderEffect.EXECUTED] = 0.0
    accounts, figures = book.accounts[rows], np.zeros(len(rows), layout.FIGURES)
    np.add.at(accounts["balance"], left["account"], profits)
    legs = fold_all(accounts, left, market.instruments, net_orders=book.rules.nets_orders)
    value_accounts(accounts, legs, market.rates, market.instruments, figures)
    return figures


def _cascades(book: Book, rows: RowNumbers, followers: Followers) -> dict[str, Any]:
    """Of masters among these accounts the copies of their orders that would be closed; most copies first."""
    masters = [account for row in rows.tolist() if (account := book.account_at(row)).type is AccountType.MASTER]
    who = followers([master.id for master in masters]) if masters else {}
    every = [_cascade(book, master, who.get(master.id, ())) for master in masters]
    found = [cascade for cascade in every if cascade["copies"]]
    found.sort(key=lambda cascade: (-cascade["copies"], cascade["master_id"]))
    return {"count": len(found), "list": found[:_LISTED]}


def _cascade(book: Book, master: Account, follower_ids: Sequence[str]) -> dict[str, Any]:
    """An order is a copy if its id is the one that the engine of copies gives to it."""
    ids = [follower.encode() for follower in follower_ids]
    rows = [book.row_of(Account(AccountType.FOLLOWER, follower)) for follower in follower_ids]
    hit: set[str] = set()
    copies, lots = 0, 0.0
    for order_id in book.orders_of(book.row_of(master)):
        for follower, row, copy in zip(follower_ids, rows, copy_ids(order_id, ids), strict=True):
            order_row = book.order_ids.row_of(copy, row) if row >= 0 else -1
            if order_row < 0:
                continue
            order = book.orders[order_row]
            hit.add(follower)
            copies += 1
            lots += float(order["lots"]) if order["effect"] == OrderEffect.EXECUTED else 0.0
    listed = sorted(hit)[:_FOLLOWERS_LISTED]
    return {"master_id": master.id, "followers": len(hit), "copies": copies, "lots": as_lots(lots), "list": listed}


def _states(states: npt.NDArray[Any]) -> dict[str, int]:
    counts = np.bincount(states, minlength=len(LadderState))
    words = ("unknown", "no_margin", "healthy", "warning", "critical")
    return {word: int(counts[state]) for word, state in zip(words, LadderState, strict=True)}


def _equity(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> dict[str, Any]:
    """What the accounts come to that hold money; those of demo accounts is nobody's."""
    negative = after[after < 0.0]
    return {
        "before_usd": rounded(before.sum()),
        "after_usd": rounded(after.sum()),
        "negative_usd": rounded(negative.sum()),
        "negative_accounts": len(negative),
    }
