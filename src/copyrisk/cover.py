"""Whether accounts can carry one more order each: the same kernels that value the book, with the order added."""

from decimal import Decimal

import numpy as np
import numpy.typing as npt

from copyrisk import layout
from copyrisk._core import ConversionSide, OrderEffect, RowCode, price_legs, value_accounts
from copyrisk._cutoff import order_pnls
from copyrisk.decimals import cents
from copyrisk.layout import Rows
from copyrisk.market import Market
from copyrisk.risk import fold_all, fully_known

#: Doubles that should be equal may differ by this; a ten-thousandth of a cent opens no position.
GRACE_USD = 1e-6


def new_orders(
    lots: npt.ArrayLike, prices: npt.ArrayLike, is_buy: npt.ArrayLike, instruments: npt.NDArray[np.int32]
) -> Rows:
    """(n,) Order: one for each of n accounts, that would reserve margin."""
    rows: Rows = np.zeros(len(instruments), layout.ORDER)
    rows["lots"], rows["price"], rows["is_buy"], rows["instrument"] = lots, prices, is_buy, instruments
    rows["account"], rows["next"] = np.arange(len(rows)), -1
    rows["effect"], rows["code"] = OrderEffect.RESERVED, RowCode.OK
    return rows


def value_with(
    accounts: Rows, held: Rows, new: Rows, market: Market, side: ConversionSide, *, nets_orders: bool
) -> tuple[Rows, Rows]:
    """Value accounts as if each had one more order.

    Parameters
    ----------
    accounts : (n,) Account
    held : (o,) Order
        Those they have; `account` says whose.
    new : (n,) Order
        As `new_orders` makes them.

    Returns
    -------
    figures : (n,) Figures
    alone : (n,) Figures
        Of the new order in an account of its own: what it is charged when there is nothing to offset it.
    """
    count = len(accounts)
    alone = new.copy()
    alone["account"] += count
    twice = np.concatenate([accounts, accounts])
    figures = value_now(twice, np.concatenate([held, new, alone]), market, side, nets_orders=nets_orders)
    return figures[:count], figures[count:]


def value_now(accounts: Rows, held: Rows, market: Market, side: ConversionSide, *, nets_orders: bool) -> Rows:
    """(n,) Figures of accounts with these orders, by the quotes as they were judged last; arguments as `value_with`."""
    figures: Rows = np.zeros(len(accounts), layout.FIGURES)
    rates: Rows = np.zeros(2 * len(market.instruments), layout.LEG_RATE)
    price_legs(market.instruments, market.quotes, side, rates)
    legs = fold_all(accounts, held, market.instruments, net_orders=nets_orders)
    value_accounts(accounts, legs, rates, market.instruments, figures)
    return figures


def split_lots(orders: Rows, under_way: npt.NDArray[np.float64]) -> tuple[Rows, Rows]:
    """Orders as two: the lots that are being closed (o,), and those that stay; fees go with the lots."""
    share = np.clip(np.divide(under_way, orders["lots"], out=np.zeros(len(orders)), where=orders["lots"] > 0), 0.0, 1.0)
    gone, left = orders.copy(), orders.copy()
    for name in ("lots", "fees_usd"):
        gone[name] *= share
        left[name] *= 1.0 - share
    gone["effect"][share == 0.0] = left["effect"][share == 1.0] = OrderEffect.IDLE
    return gone, left


def profits_now(orders: Rows, market: Market, side: ConversionSide) -> npt.NDArray[np.float64]:
    """(o,) USD: the profit of single positions by the quotes as they were judged last; 0 of what is no position."""
    rates: Rows = np.zeros(2 * len(market.instruments), layout.LEG_RATE)
    price_legs(market.instruments, market.quotes, side, rates)
    found = np.zeros(len(orders))
    order_pnls(np.arange(len(orders), dtype=np.int32), orders, market.instruments, rates, found)
    found[orders["effect"] != OrderEffect.EXECUTED] = 0.0
    return found


def are_covered(figures: Rows, alone: Rows, reserved_usd: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(n,) bool: accounts that are known and whose free margin covers the order, with what else is reserved."""
    known = fully_known(figures) & fully_known(alone)
    covered: npt.NDArray[np.bool_] = known & (
        figures["equity"] - figures["used_margin_all"] - reserved_usd >= -GRACE_USD
    )
    return covered


def margin_usd(alone: float) -> Decimal:
    """An order's own margin as it is booked, of `used_margin_all` of the order alone."""
    return cents(Decimal(repr(alone)))
