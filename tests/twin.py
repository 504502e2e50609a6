"""The slow twin: contract section 4, order by order, in exact fractions, knowing nothing of legs or kernels.

It reads the same texts as the decoders (`None`: the hash does not hold the field) and says which reasons make an
account unknown; where several hold at once, any of them may be the row's code. A hash that is `None` is missing,
one that is `UNREADABLE` was answered with an error.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

UNREADABLE: Final = "unreadable"
DEFAULT_LEVELS = (Fraction(50), Fraction(10))
_TOO_MUCH_USD = 10**13


@dataclass(frozen=True)
class Market:
    """What is not the account's: terms by (group, symbol), quotes by symbol, the time and the settings."""

    terms: Mapping[tuple[str, str], Any]
    quotes: Mapping[str, Any]
    now_ms: int
    five_day_open: bool
    rate_side: str
    margin_price: str
    hedging: str | int
    max_age_ms: int


@dataclass
class Expected:
    """Exact figures, or the reasons why there are none; `used_all` is `None` when only the reserve is unknown."""

    reasons: set[str]
    pnl: Fraction = Fraction(0)
    used: Fraction = Fraction(0)
    used_all: Fraction | None = Fraction(0)
    closed: bool = False
    warning_pct: Fraction = DEFAULT_LEVELS[0]
    critical_pct: Fraction = DEFAULT_LEVELS[1]
    gross: Fraction = Fraction(0)  # what was added up and taken away: doubles are exact to 1e-16 of this


@dataclass
class _Priced:
    """One order with effect in USD; `closed` when a quote it rests on is that of a closed market."""

    reasons: set[str]
    is_buy: bool = False
    lots: Fraction = Fraction(0)
    profit: Fraction = Fraction(0)
    per_lot: Fraction = Fraction(0)
    gross: Fraction = Fraction(0)
    closed: bool = False


def number(text: Any) -> Fraction | None:
    """A plain decimal; anything else is unknown."""
    return Fraction(text) if text is not None and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text) else None


def value(config: Any, orders: Sequence[Any], market: Market) -> Expected:
    """Value one account."""
    expected = Expected(set(_account_reasons(config)))
    executed: dict[str, list[_Priced]] = {}
    every: dict[str, list[_Priced]] = {}
    for order in orders:
        effect = _effect(order)
        bad = set(_order_reasons(order, effect))
        expected.reasons |= bad
        if bad or effect == "idle" or expected.reasons & {"ACCOUNT_MISSING", "ACCOUNT_UNREADABLE", "GROUP_INVALID"}:
            continue
        priced = _price(order, market.terms.get((config["group"] or "Standard", order["symbol"])), market)
        every.setdefault(order["symbol"], []).append(priced)
        if effect == "executed":
            executed.setdefault(order["symbol"], []).append(priced)
            expected.reasons |= priced.reasons
            expected.pnl += priced.profit + Fraction(order["swap"] or 0) - Fraction(order["commission"] or 0)
            expected.closed |= priced.closed
        expected.gross += priced.gross
    if expected.reasons:
        return expected
    leverage, balance = Fraction(config["leverage"]), Fraction(config["wallet_balance"])
    expected.used = sum((_margin(held, market.hedging) for held in executed.values()), Fraction(0)) / leverage
    expected.used_all = sum((_margin(held, market.hedging) for held in every.values()), Fraction(0)) / leverage
    if any(priced.reasons for held in every.values() for priced in held):
        expected.used_all = None
    expected.warning_pct, expected.critical_pct = _levels(config)
    if abs(balance + expected.pnl) >= _TOO_MUCH_USD or expected.used >= _TOO_MUCH_USD:
        expected.reasons.add("FIGURES_OUT_OF_RANGE")
    return expected


def rung(expected: Expected, equity: Fraction) -> str:
    """Where a known account stands; a threshold belongs to the worse side."""
    if expected.used == 0:
        return "NO_MARGIN"
    level = 100 * equity / expected.used
    if level <= expected.critical_pct:
        return "CRITICAL"
    return "WARNING" if level <= expected.warning_pct else "HEALTHY"


def _account_reasons(config: Any) -> Iterator[str]:
    if config is None:
        yield "ACCOUNT_MISSING"
    elif config == UNREADABLE:
        yield "ACCOUNT_UNREADABLE"
    else:
        leverage = number(config["leverage"])
        if number(config["wallet_balance"]) is None:
            yield "WALLET_BALANCE_INVALID"
        if leverage is None or leverage <= 0:
            yield "LEVERAGE_INVALID"
        if config["group"] is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,31}", config["group"]):
            yield "GROUP_INVALID"


def _levels(config: Any) -> tuple[Fraction, Fraction]:
    """Warning and critical level; what is absent or makes no sense is the default."""
    given = [number(config[name]) for name in ("auto_cutoff_level", "auto_liquidation_level")]
    warning, critical = (level if level is not None and level >= 0 else None for level in given)
    effective = (
        DEFAULT_LEVELS[0] if warning is None else warning,
        DEFAULT_LEVELS[1] if critical is None else critical,
    )
    return effective if effective[1] <= effective[0] else DEFAULT_LEVELS


_ENDED = {"CLOSED", "CANCELLED", "REJECTED", "SKIPPED", "PENDING", "PENDING-QUEUED", "PENDING-CANCEL"}
_EXECUTIONS = {"EXECUTED": "executed", "QUEUED": "reserved", "PENDING": "reserved"}
_STATUSES = {*_ENDED, "OPEN", "MODIFY", "QUEUED", None}


def _effect(order: Any) -> str | None:
    """`executed`, `reserved`, `idle`, or `None` when its two states contradict or say nothing."""
    if order in (None, UNREADABLE):
        return None
    status, execution = order["order_status"], order["execution_status"]
    if status not in _STATUSES or execution not in {*_EXECUTIONS, "REJECTED", "CLOSED", "CANCELLED", None}:
        return None
    if status in _ENDED or (status is None and execution in ("REJECTED", "CLOSED", "CANCELLED")):
        return "idle"
    if status == "QUEUED":
        return "reserved"
    if execution is None:
        return None if status is None else "executed"
    return _EXECUTIONS.get(execution)


def _order_reasons(order: Any, effect: str | None) -> Iterator[str]:
    if order is None:
        yield "ORDER_MISSING"
    elif order == UNREADABLE:
        yield "ORDER_UNREADABLE"
    elif effect is None:
        yield "ORDER_STATUS_INVALID"
    elif effect != "idle":
        if not re.fullmatch(r"[A-Z0-9][A-Z0-9._#-]{0,31}", order["symbol"] or ""):
            yield "ORDER_SYMBOL_INVALID"
        if order["order_type"] not in ("BUY", "SELL"):
            yield "ORDER_TYPE_INVALID"
        if (number(order["order_price"]) or 0) <= 0:
            yield "ORDER_PRICE_INVALID"
        if (number(order["order_quantity"]) or 0) <= 0:
            yield "ORDER_QUANTITY_INVALID"
        for name in ("swap", "commission"):
            if order[name] is not None and number(order[name]) is None:
                yield f"ORDER_{name.upper()}_INVALID"


def _terms_reasons(terms: Any) -> Iterator[str]:
    if terms is None:
        yield "INSTRUMENT_MISSING"
    elif terms == UNREADABLE:
        yield "INSTRUMENT_UNREADABLE"
    else:
        if (number(terms["contract_size"]) or 0) <= 0:
            yield "CONTRACT_SIZE_INVALID"
        if not re.fullmatch(r"[A-Z]{3,8}", terms["profit"] or ""):
            yield "PROFIT_CURRENCY_INVALID"
        if terms["type"] not in ("1", "2", "3", "4"):
            yield "INSTRUMENT_TYPE_INVALID"
        if terms["type"] == "4" and (number(terms["crypto_margin_factor"]) or 0) <= 0:
            yield "CRYPTO_MARGIN_FACTOR_INVALID"


@dataclass
class _Quote:
    """A quote and what is said against it: nothing, or that its market is closed, when it serves."""

    verdict: str
    bid: Fraction = field(default=Fraction(0))
    ask: Fraction = field(default=Fraction(0))

    @property
    def serves(self) -> bool:
        return self.verdict in ("OK", "MARKET_CLOSED")


def _quote(market: Market, symbol: str, open_: bool) -> _Quote:
    raw = market.quotes.get(symbol)
    if raw == UNREADABLE:
        return _Quote("QUOTE_UNREADABLE")
    given = {"bid": None, "ask": None, "ts": None} if raw is None else raw
    bid, ask, ts = number(given["bid"]), number(given["ask"]), number(given["ts"])
    if any(text is not None and number(text) is None for text in given.values()) or (ts is not None and ts < 0):
        return _Quote("QUOTE_UNREADABLE")
    if bid is None or ask is None:
        return _Quote("QUOTE_MISSING" if bid is None and ask is None else "QUOTE_ONE_SIDED")
    if bid <= 0 or ask <= 0:
        return _Quote("QUOTE_NOT_POSITIVE")
    if bid > ask:
        return _Quote("QUOTE_CROSSED")
    return _Quote(_age_verdict(ts, market) if open_ else "MARKET_CLOSED", bid, ask)


def _age_verdict(ts: Fraction | None, market: Market) -> str:
    if market.max_age_ms == 0:
        return "OK"
    if ts is None:
        return "QUOTE_WITHOUT_TIME"
    age = market.now_ms - ts
    if abs(age) <= market.max_age_ms:
        return "OK"
    return "QUOTE_STALE" if age > 0 else "QUOTE_FROM_FUTURE"


def _rates(market: Market, currency: str) -> tuple[Fraction, Fraction, str] | None:
    """What a unit is worth in USD as a profit, and as a loss or margin; and the verdict of the pair."""
    if currency in ("USD", "USDT"):
        return Fraction(1), Fraction(1), "OK"
    direct = _quote(market, currency + "USD", market.five_day_open)
    inverse = _quote(market, "USD" + currency, market.five_day_open)
    if direct.serves:
        bid, ask = direct.bid, direct.ask
        profit, loss = {"ask": (ask, ask), "side": (bid, ask), "mid": ((bid + ask) / 2,) * 2}[market.rate_side]
        return profit, loss, direct.verdict
    if inverse.serves:
        bid, ask = inverse.bid, inverse.ask
        divisors = {"ask": (ask, ask), "side": (ask, bid), "mid": ((bid + ask) / 2,) * 2}[market.rate_side]
        return 1 / divisors[0], 1 / divisors[1], inverse.verdict
    return None


def _price(order: Any, terms: Any, market: Market) -> _Priced:
    """Profit and margin per lot (before leverage) of one good order."""
    reasons = set(_terms_reasons(terms))
    crypto = not reasons and terms["type"] == "4"
    quote = _quote(market, order["symbol"], crypto or market.five_day_open)
    if not quote.serves:
        reasons.add(quote.verdict)
    rates = None if reasons & {"INSTRUMENT_MISSING", "INSTRUMENT_UNREADABLE"} else _rates(market, terms["profit"] or "")
    if rates is None:
        reasons.add("CONVERSION_RATE_MISSING")
    if reasons or rates is None:
        return _Priced(reasons)
    lots, price = Fraction(order["order_quantity"]), Fraction(order["order_price"])
    size, is_buy = Fraction(terms["contract_size"]), order["order_type"] == "BUY"
    gain, loss, rate_verdict = rates
    result = ((quote.bid - price) if is_buy else (price - quote.ask)) * lots * size
    at = price if crypto or market.margin_price == "open" else quote.ask
    factor = Fraction(terms["crypto_margin_factor"]) if crypto else Fraction(1)
    closed = "MARKET_CLOSED" in (quote.verdict, rate_verdict)
    gross = (price + quote.ask) * lots * size * max(factor, Fraction(1)) * max(gain, loss)
    profit = result * (gain if result >= 0 else loss)
    return _Priced(set(), is_buy, lots, profit, size * at * factor * loss, gross, closed)


def _margin(held: Sequence[_Priced], hedging: str | int) -> Fraction:
    """Margin of one symbol before leverage."""
    bought = sum((order.lots for order in held if order.is_buy), Fraction(0))
    sold = sum((order.lots for order in held if not order.is_buy), Fraction(0))
    if bought + sold == 0:
        return Fraction(0)
    average = sum((order.lots * order.per_lot for order in held), Fraction(0)) / (bought + sold)
    if hedging == "max":
        return max(bought, sold) * max(order.per_lot for order in held)
    if hedging == "sum":
        return (bought + sold) * average
    if hedging == "net":
        return abs(bought - sold) * average
    return (abs(bought - sold) + Fraction(hedging) / 100 * 2 * min(bought, sold)) * average
