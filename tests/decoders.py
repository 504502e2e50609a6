"""The slow twin of `copyrisk.fields`: one hash at a time, in plain Python."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from copyrisk import identifiers, keys
from copyrisk._core import OrderEffect, RowCode
from copyrisk.errors import InvalidId
from copyrisk.fields import CRYPTO, INSTRUMENT_TYPES, order_effect
from copyrisk.terms import ExecutionStatus, OrderStatus, OrderType

Reply: TypeAlias = Sequence[bytes | None] | Exception

# Plain decimals only: no nan, inf, exponent, underscore, sign but minus, or digits outside ASCII.
_DECIMAL = re.compile(rb"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")
_EPOCH_MS = re.compile(rb"[0-9]{1,15}(\.[0-9]+)?")
_CURRENCY = re.compile(r"[A-Z]{3,8}", re.ASCII)
_TEXT_LIMIT_BYTES = 64


class AccountRow(NamedTuple):
    """Configuration of one account; `levels_valid` is false where a threshold could not be read."""

    code: int
    balance: float = math.nan
    leverage: float = 0.0
    group: str = keys.STANDARD_GROUP
    warning_level_pct: float | None = None
    critical_level_pct: float | None = None
    levels_valid: bool = True


class OrderRow(NamedTuple):
    """One order, as far as its account's figures need it; `fees_usd` is swap - commission."""

    code: int
    effect: int = OrderEffect.EFFECT_UNKNOWN
    symbol: str = ""
    is_buy: bool = False
    price: float = math.nan
    lots: float = math.nan
    fees_usd: float = math.nan


class QuoteRow(NamedTuple):
    """One quote; NaN and -1 stand for what the hash does not hold."""

    code: int
    bid: float = math.nan
    ask: float = math.nan
    ts_ms: int = -1


class InstrumentRow(NamedTuple):
    """Contract terms of a symbol for a group."""

    code: int
    contract_size: float = math.nan
    profit_currency: str = ""
    type: int = 0
    crypto_margin_factor: float = 1.0


def decimal_of(value: bytes | None) -> float:
    """The number of a plain decimal, NaN for anything else."""
    if value is None or _DECIMAL.fullmatch(value) is None:
        return math.nan
    return float(value)


def _text(value: bytes | None) -> str:
    """Short ASCII text; anything else comes back empty, which no grammar accepts."""
    if value is None or len(value) > _TEXT_LIMIT_BYTES or not value.isascii():
        return ""
    return value.decode("ascii")


def _level_pct(value: bytes | None) -> tuple[float | None, bool]:
    """A threshold (None: use the default) and whether it was readable."""
    if value is None:
        return None, True
    level = decimal_of(value)
    return (level, True) if level >= 0.0 else (None, False)


def decode_account(reply: Reply) -> AccountRow:
    """Read `ACCOUNT_FIELDS` of a configuration hash."""
    if isinstance(reply, Exception):
        return AccountRow(RowCode.ACCOUNT_UNREADABLE)
    if all(value is None for value in reply):
        return AccountRow(RowCode.ACCOUNT_MISSING)
    balance, leverage = decimal_of(reply[0]), decimal_of(reply[1])
    if math.isnan(balance):
        return AccountRow(RowCode.WALLET_BALANCE_INVALID)
    if not leverage > 0.0:
        return AccountRow(RowCode.LEVERAGE_INVALID)
    group = keys.STANDARD_GROUP if reply[2] is None else _text(reply[2])
    try:
        identifiers.check_group(group)
    except InvalidId:
        return AccountRow(RowCode.GROUP_INVALID)
    warning, warning_valid = _level_pct(reply[3])
    critical, critical_valid = _level_pct(reply[4])
    return AccountRow(RowCode.OK, balance, leverage, group, warning, critical, warning_valid and critical_valid)


def _effect(status: bytes | None, execution: bytes | None) -> OrderEffect:
    try:
        return order_effect(
            None if status is None else OrderStatus(_text(status)),
            None if execution is None else ExecutionStatus(_text(execution)),
        )
    except ValueError:
        return OrderEffect.EFFECT_UNKNOWN


def _charge_usd(value: bytes | None) -> float:
    """Swap or commission: absent means none was charged, unreadable is NaN."""
    return 0.0 if value is None else decimal_of(value)


def decode_order(reply: Reply) -> OrderRow:
    """Read `ORDER_FIELDS` of an order hash; of an order without effect only the states matter."""
    if isinstance(reply, Exception):
        return OrderRow(RowCode.ORDER_UNREADABLE)
    if all(value is None for value in reply):
        return OrderRow(RowCode.ORDER_MISSING)
    effect = _effect(reply[2], reply[3])
    if effect is OrderEffect.EFFECT_UNKNOWN:
        return OrderRow(RowCode.ORDER_STATUS_INVALID)
    if effect is OrderEffect.IDLE:
        return OrderRow(RowCode.OK, effect)
    symbol = _text(reply[0])
    try:
        identifiers.check_symbol(symbol)
    except InvalidId:
        return OrderRow(RowCode.ORDER_SYMBOL_INVALID)
    try:
        is_buy = OrderType(_text(reply[1])).is_buy
    except ValueError:
        return OrderRow(RowCode.ORDER_TYPE_INVALID)
    price, lots = decimal_of(reply[4]), decimal_of(reply[5])
    swap, commission = _charge_usd(reply[6]), _charge_usd(reply[7])
    if not price > 0.0:
        return OrderRow(RowCode.ORDER_PRICE_INVALID)
    if not lots > 0.0:
        return OrderRow(RowCode.ORDER_QUANTITY_INVALID)
    if math.isnan(swap):
        return OrderRow(RowCode.ORDER_SWAP_INVALID)
    if math.isnan(commission):
        return OrderRow(RowCode.ORDER_COMMISSION_INVALID)
    return OrderRow(RowCode.OK, effect, symbol, is_buy, price, lots, swap - commission)


def _price(value: bytes | None) -> tuple[float, bool]:
    """One side of a quote (NaN when absent) and whether it was readable."""
    price = decimal_of(value)
    return price, value is None or not math.isnan(price)


def decode_quote(reply: Reply) -> QuoteRow:
    """Read `QUOTE_FIELDS`; whether the numbers make a quote is for the kernel to judge."""
    if isinstance(reply, Exception):
        return QuoteRow(RowCode.QUOTE_UNREADABLE)
    bid, bid_readable = _price(reply[0])
    ask, ask_readable = _price(reply[1])
    # Feeds write the time with a fraction now and then; the millisecond is what counts.
    time_readable = reply[2] is None or _EPOCH_MS.fullmatch(reply[2]) is not None
    if not (bid_readable and ask_readable and time_readable):
        return QuoteRow(RowCode.QUOTE_UNREADABLE)
    return QuoteRow(RowCode.OK, bid, ask, -1 if reply[2] is None else int(reply[2].partition(b".")[0]))


def decode_instrument(reply: Reply) -> InstrumentRow:
    """Read `INSTRUMENT_FIELDS` of a group's terms for a symbol."""
    if isinstance(reply, Exception):
        return InstrumentRow(RowCode.INSTRUMENT_UNREADABLE)
    if all(value is None for value in reply):
        return InstrumentRow(RowCode.INSTRUMENT_MISSING)
    contract_size, profit, type_ = decimal_of(reply[0]), _text(reply[1]), decimal_of(reply[2])
    if not contract_size > 0.0:
        return InstrumentRow(RowCode.CONTRACT_SIZE_INVALID)
    if _CURRENCY.fullmatch(profit) is None:
        return InstrumentRow(RowCode.PROFIT_CURRENCY_INVALID)
    if type_ not in INSTRUMENT_TYPES:
        return InstrumentRow(RowCode.INSTRUMENT_TYPE_INVALID)
    factor = decimal_of(reply[3]) if type_ == CRYPTO else 1.0
    if not factor > 0.0:
        return InstrumentRow(RowCode.CRYPTO_MARGIN_FACTOR_INVALID)
    return InstrumentRow(RowCode.OK, contract_size, profit, int(type_), factor)
