"""The slow twin: contract section 4, order by order, in exact fractions, knowing nothing of legs or kernels.

`None` stands for unknown. Inputs are texts, as a hash holds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

STALE_MS = 30_000


@dataclass
class Expected:
    """Exact figures of an account; all `None` when it is unknown, `used_all` alone when only the reserve is."""

    pnl: Fraction | None
    used: Fraction | None = None
    used_all: Fraction | None = None
    closed: bool = False
    gross: Fraction = Fraction(0)  # what was added up and taken away: doubles are exact to 1e-16 of this


def number(text: Any) -> Fraction | None:
    """A plain decimal; anything else is unknown."""
    try:
        value = Fraction(str(text))
    except (ValueError, ZeroDivisionError):
        return None
    return value if set(str(text)) <= set("0123456789.-") and str(text)[:1] != "." else None


def quote_of(
    quotes: Mapping[str, Mapping[str, Any]], symbol: str, now_ms: int, open_: bool
) -> tuple[Fraction, Fraction] | None:
    """Bid and ask if they make a usable quote."""
    quote = quotes.get(symbol, {})
    bid, ask = number(quote.get("bid")), number(quote.get("ask"))
    if bid is None or ask is None or bid <= 0 or ask <= 0 or bid > ask:
        return None
    if open_ and (quote.get("ts") is None or abs(now_ms - int(quote["ts"])) > STALE_MS):
        return None
    return bid, ask


def rates(quotes: Any, currency: str, now_ms: int, open_: bool, side: str) -> tuple[Fraction, Fraction] | None:
    """What a unit of the currency is worth as a profit, and as a loss or margin."""
    if currency in ("USD", "USDT"):
        return Fraction(1), Fraction(1)
    direct = quote_of(quotes, currency + "USD", now_ms, open_)
    if direct is not None:
        bid, ask = direct
    else:
        inverse = quote_of(quotes, "USD" + currency, now_ms, open_)
        if inverse is None:
            return None
        bid, ask = 1 / inverse[1], 1 / inverse[0]
        if side == "mid":
            return (2 / (inverse[0] + inverse[1]),) * 2
        if side == "ask":
            return (1 / inverse[1],) * 2
    return {"ask": (ask, ask), "mid": ((bid + ask) / 2,) * 2, "side": (bid, ask)}[side]


def margin(orders: Sequence[Any], cover: Fraction, highest: bool) -> Fraction:
    """Margin of one symbol before leverage, from (is_buy, lots, margin per lot) of its orders."""
    bought = sum((lots for is_buy, lots, _ in orders if is_buy), Fraction(0))
    sold = sum((lots for is_buy, lots, _ in orders if not is_buy), Fraction(0))
    if not orders:
        return Fraction(0)
    volume = max(bought, sold) + cover * min(bought, sold)
    per_lot = max(each for _, _, each in orders)
    average = sum((lots * each for _, lots, each in orders), Fraction(0)) / (bought + sold)
    return volume * (per_lot if highest else average)


def value(
    config: Mapping[str, Any],
    orders: Sequence[Mapping[str, Any]],
    market: tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Mapping[str, Any]]],
    rules: Mapping[str, Any],
    now_ms: int,
    open_: bool,
) -> Expected:
    """Value one account; `market` is its group's terms by symbol, and the quotes."""
    balance, leverage = number(config.get("wallet_balance")), number(config.get("leverage"))
    if balance is None or leverage is None or leverage <= 0:
        return Expected(None)
    pnl = Fraction(0)
    executed: dict[str, list[Any]] = {}
    every: dict[str, list[Any]] = {}
    gross = Fraction(0)
    reserve_known = True
    for order in orders:
        queued = order["order_status"] == "QUEUED"
        lots, price = number(order.get("order_quantity")), number(order.get("order_price"))
        swap, commission = number(order.get("swap", "0")), number(order.get("commission", "0"))
        if order["order_type"] not in ("BUY", "SELL") or swap is None or commission is None:
            return Expected(None)
        if lots is None or lots <= 0 or price is None or price <= 0:
            return Expected(None)
        priced = _price(order, lots, price, market, rules, now_ms, open_)
        if priced is None:
            if not queued:
                return Expected(None)
            reserve_known = False
            continue
        profit, per_lot, amount = priced
        gross += amount
        entry = (order["order_type"] == "BUY", lots, per_lot)
        every.setdefault(order["symbol"], []).append(entry)
        if not queued:
            executed.setdefault(order["symbol"], []).append(entry)
            pnl += profit + swap - commission
    cover, highest = rules["cover"], rules["highest"]
    used = sum((margin(of, cover, highest) for of in executed.values()), Fraction(0)) / leverage
    used_all = sum((margin(of, cover, highest) for of in every.values()), Fraction(0)) / leverage
    return Expected(pnl, used, used_all if reserve_known else None, closed=not open_ and bool(executed), gross=gross)


def _price(
    order: Any, lots: Fraction, price: Fraction, market: Any, rules: Any, now_ms: int, open_: bool
) -> tuple[Fraction, Fraction, Fraction] | None:
    """Profit in USD, margin per lot before leverage and gross amount, or `None`."""
    terms = market[0].get(order["symbol"])
    quote = quote_of(market[1], order["symbol"], now_ms, open_)
    if terms is None or quote is None:
        return None
    size = number(terms["contract_size"])
    converted = rates(market[1], terms["profit"], now_ms, open_, rules["rate_side"])
    if converted is None or size is None or size <= 0:
        return None
    moved = (quote[0] - price) if order["order_type"] == "BUY" else (price - quote[1])
    gross = moved * lots * size
    crypto = terms["type"] == "4"
    factor = number(terms["crypto_margin_factor"]) if crypto else Fraction(1)
    if factor is None:
        return None
    at = price if crypto or rules["margin_price"] == "open" else quote[1]
    profit = gross * (converted[0] if gross >= 0 else converted[1])
    return profit, size * at * factor * converted[1], (price + quote[1]) * lots * size * factor * converted[1]
