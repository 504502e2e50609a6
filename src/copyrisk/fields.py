"""Every hash field that is read or written, its grammar, and what its values mean.

What is read comes as columns (`_wire`): numbers, times, words and names, with a bit for each field that was absent or
not of its grammar. The functions here judge whole batches of them, without loops and without exceptions: a row that
cannot be used gets a code.
"""

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from copyrisk import identifiers, keys, layout
from copyrisk._columns import Columns
from copyrisk._core import OrderEffect, RowCode
from copyrisk._index import TextIndex
from copyrisk._wire import REFUSED_REPLY
from copyrisk.errors import InvalidId
from copyrisk.layout import Rows
from copyrisk.terms import ExecutionStatus, OrderStatus, OrderType

# What ends each row of columns: which fields were absent and which not of their grammar (a bit each, in order), and
# whether the reply came at all.
_READING = [("absent", "u4"), ("invalid", "u4"), ("reply", "u1")]

_WORDS = {
    "order_type": tuple(OrderType),
    "order_status": tuple(OrderStatus),
    "execution_status": tuple(ExecutionStatus),
}


def _columns(*fields: tuple[str, str]) -> Columns:
    return Columns(np.dtype([*fields, *_READING], align=True), _WORDS)


#: The hashes that are read; the type says what a field is (`_columns.pyi`).
ACCOUNT_COLUMNS = _columns(
    ("wallet_balance", "f8"),
    ("leverage", "f8"),
    ("group", "i4"),
    ("auto_cutoff_level", "f8"),
    ("auto_liquidation_level", "f8"),
)
ORDER_COLUMNS = _columns(
    ("symbol", "i4"),
    ("order_type", "u1"),
    ("order_status", "u1"),
    ("execution_status", "u1"),
    ("order_price", "f8"),
    ("order_quantity", "f8"),
    ("swap", "f8"),
    ("commission", "f8"),
)
#: What a decision about an order reads of a configuration besides.
DECISION_FIELDS = ("is_active", "status", "sending_orders")
#: What copying reads of a follower's configuration: whether and how it copies; what it is measured against.
COPY_FIELDS = (
    *("status", "is_active", "sending_orders", "copy_status", "multiplier", "max_lot_size", "below_min", "above_max"),
    *("rounding", "sizing_mode", "fixed_lots", "target_leverage", "risk_pct", "lift_risk_limit", "leverage_correction"),
    *("reverse", "sides_allowed", "symbols_allowed", "symbols_denied", "max_daily_loss", "stop_copying_on_drawdown"),
    *("copy_sl_mode", "copy_tp_mode", "sl_percentage", "sl_amount", "tp_percentage", "tp_amount"),
)
INVESTMENT = "investment_amount"
QUOTE_COLUMNS = _columns(("bid", "f8"), ("ask", "f8"), ("ts", "i8"))
INSTRUMENT_COLUMNS = _columns(("contract_size", "f8"), ("profit", "i4"), ("type", "f8"), ("crypto_margin_factor", "f8"))

EQUITY = "equity"
BALANCE = "balance"
FREE_MARGIN = "free_margin"
USED_MARGIN = "used_margin"
USED_MARGIN_EXECUTED = "used_margin_executed"
USED_MARGIN_ALL = "used_margin_all"
MARGIN_LEVEL = "margin_level"
OPEN_PNL = "open_pnl"
TOTAL_PL = "total_pl"
CALC_STATUS = "calc_status"
DEGRADED_FIELDS = "degraded_fields"
TS = "ts"
VALUED_TS = "valued_ts"

CRYPTO = 4
INSTRUMENT_TYPES = (1, 2, 3, CRYPTO)
USD_LIKE = ("USD", "USDT")

_NAMES_LIMIT = 65_536
_CURRENCY = re.compile(r"[A-Z]{3,8}", re.ASCII)


class Names:
    """Symbols, groups and currencies: each has a row, and is held against the grammars once.

    Attributes
    ----------
    index : TextIndex
    standard : int
        Row of the fallback group.
    """

    def __init__(self) -> None:
        self.index = TextIndex(64, _NAMES_LIMIT)
        self.standard = self.index.put(keys.STANDARD_GROUP.encode())
        self._is: Rows = np.zeros(0, [("symbol", "?"), ("group", "?"), ("currency", "?"), ("usd", "?")])

    def text(self, row: int) -> str:
        """The name of a row; what is not ASCII is escaped."""
        return self.index.text(row).decode("ascii", "backslashreplace")

    def are(self, grammar: str, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Which rows (-1: none) are a `symbol`, `group`, `currency`, or a currency that counts as `usd`."""
        known = len(self._is)
        if self.index.high > known:
            self._is = np.concatenate([self._is, np.zeros(self.index.high - known, self._is.dtype)])
            for row in range(known, self.index.high):
                self._is[row] = _grammars_of(self.index.text(row))
        found: npt.NDArray[np.bool_] = self._is[grammar][rows]
        found &= rows >= 0
        return found


def _grammars_of(name: bytes) -> tuple[bool, bool, bool, bool]:
    text = name.decode("ascii", "replace")
    return (
        _passes(identifiers.check_symbol, text),
        _passes(identifiers.check_group, text),
        _CURRENCY.fullmatch(text) is not None,
        text in USD_LIKE,
    )


def _passes(check: Callable[[str], str], text: str) -> bool:
    try:
        check(text)
    except InvalidId:
        return False
    return True


def _bit(columns: Columns, field: str) -> int:
    return 1 << columns.fields.index(field)


def _is_empty(columns: Columns, read: Rows) -> npt.NDArray[np.bool_]:
    empty: npt.NDArray[np.bool_] = read["absent"] == (1 << len(columns.fields)) - 1
    return empty


def judge_accounts(read: Rows, names: Names) -> Rows:
    """(n,) `layout.ACCOUNT_READ` of configuration hashes.

    A level that the account does not set, or sets to something that is none (`levels_valid` false), is NaN.
    """
    rows: Rows = np.zeros(len(read), layout.ACCOUNT_READ)
    in_standard = (read["absent"] & _bit(ACCOUNT_COLUMNS, "group")) != 0
    code = np.full(len(read), RowCode.OK, np.uint8)
    code[~(in_standard | names.are("group", read["group"]))] = RowCode.GROUP_INVALID
    code[~(read["leverage"] > 0.0)] = RowCode.LEVERAGE_INVALID
    code[np.isnan(read["wallet_balance"])] = RowCode.WALLET_BALANCE_INVALID
    code[_is_empty(ACCOUNT_COLUMNS, read)] = RowCode.ACCOUNT_MISSING
    code[read["reply"] == REFUSED_REPLY] = RowCode.ACCOUNT_UNREADABLE
    ok = code == RowCode.OK
    rows["code"], rows["levels_valid"] = code, True
    rows["balance"] = np.where(ok, read["wallet_balance"], np.nan)
    rows["leverage"] = np.where(ok, read["leverage"], 0.0)
    rows["group"] = np.where(ok & ~in_standard, read["group"], names.standard)
    for ours, field in (("warning_level_pct", "auto_cutoff_level"), ("critical_level_pct", "auto_liquidation_level")):
        usable = read[field] >= 0.0
        rows[ours] = np.where(ok & usable, read[field], np.nan)
        rows["levels_valid"] &= ~ok | usable | ((read["absent"] & _bit(ACCOUNT_COLUMNS, field)) != 0)
    return rows


_FINISHED = (OrderStatus.CLOSED, OrderStatus.CANCELLED, OrderStatus.REJECTED, OrderStatus.SKIPPED)
_WAITING = (OrderStatus.PENDING, OrderStatus.PENDING_QUEUED, OrderStatus.PENDING_CANCEL)
_EFFECT_OF_EXECUTION = {
    ExecutionStatus.EXECUTED: OrderEffect.EXECUTED,
    ExecutionStatus.QUEUED: OrderEffect.RESERVED,
    ExecutionStatus.PENDING: OrderEffect.RESERVED,
}


def order_effect(order_status: OrderStatus | None, execution_status: ExecutionStatus | None) -> OrderEffect:
    """What an order with these two states does to its account (`None`: the hash has no such field).

    `order_status` decides whether the order lives; of a living one `execution_status` decides whether it is a
    position. Hashes of services that write only one of the two are read by that one; contradictions
    (OPEN but REJECTED) are unknown.
    """
    if order_status in _FINISHED or order_status in _WAITING:
        return OrderEffect.IDLE
    if order_status is OrderStatus.QUEUED:
        return OrderEffect.RESERVED
    if execution_status is None:
        return OrderEffect.EFFECT_UNKNOWN if order_status is None else OrderEffect.EXECUTED
    if order_status is None and execution_status not in _EFFECT_OF_EXECUTION:
        return OrderEffect.IDLE
    return _EFFECT_OF_EXECUTION.get(execution_status, OrderEffect.EFFECT_UNKNOWN)


# By the numbers of the two words: 0 is absent; the last, for what is no such word, stays unknown.
_EFFECTS = np.zeros((len(OrderStatus) + 2, len(ExecutionStatus) + 2), np.uint8)
for _i, _status in enumerate((None, *OrderStatus)):
    for _k, _execution in enumerate((None, *ExecutionStatus)):
        _EFFECTS[_i, _k] = order_effect(_status, _execution)
_IS_BUY = np.array([False, *(order_type.is_buy for order_type in OrderType)])


def _word(read: Rows, field: str) -> npt.NDArray[np.intp]:
    """Number of each row's word, one above the last for what is none."""
    unknown = (read["invalid"] & _bit(ORDER_COLUMNS, field)) != 0
    return np.where(unknown, len(_WORDS[field]) + 1, read[field])


def _charge_usd(read: Rows, field: str) -> npt.NDArray[np.float64]:
    """Swap or commission: absent means none was charged, unreadable is NaN."""
    return np.where(read["absent"] & _bit(ORDER_COLUMNS, field), 0.0, read[field])


def judge_orders(read: Rows, names: Names) -> Rows:
    """(n,) `layout.ORDER_READ` of order hashes; of an order without effect only the states matter."""
    rows: Rows = np.zeros(len(read), layout.ORDER_READ)
    effect = _EFFECTS[_word(read, "order_status"), _word(read, "execution_status")]
    swap, commission = _charge_usd(read, "swap"), _charge_usd(read, "commission")
    code = np.full(len(read), RowCode.OK, np.uint8)
    code[np.isnan(commission)] = RowCode.ORDER_COMMISSION_INVALID
    code[np.isnan(swap)] = RowCode.ORDER_SWAP_INVALID
    code[~(read["order_quantity"] > 0.0)] = RowCode.ORDER_QUANTITY_INVALID
    code[~(read["order_price"] > 0.0)] = RowCode.ORDER_PRICE_INVALID
    code[read["order_type"] == 0] = RowCode.ORDER_TYPE_INVALID
    code[~names.are("symbol", read["symbol"])] = RowCode.ORDER_SYMBOL_INVALID
    code[effect == OrderEffect.IDLE] = RowCode.OK
    code[effect == OrderEffect.EFFECT_UNKNOWN] = RowCode.ORDER_STATUS_INVALID
    code[_is_empty(ORDER_COLUMNS, read)] = RowCode.ORDER_MISSING
    code[read["reply"] == REFUSED_REPLY] = RowCode.ORDER_UNREADABLE
    counts = (code == RowCode.OK) & (effect != OrderEffect.IDLE)
    rows["code"], rows["effect"] = code, np.where(code == RowCode.OK, effect, OrderEffect.EFFECT_UNKNOWN)
    rows["symbol"] = np.where(counts, read["symbol"], -1)
    rows["is_buy"] = counts & _IS_BUY[read["order_type"]]
    for ours, value in (
        ("lots", read["order_quantity"]),
        ("price", read["order_price"]),
        ("fees_usd", swap - commission),
    ):
        rows[ours] = np.where(counts, value, np.nan)
    return rows


def judge_quotes_read(read: Rows) -> Rows:
    """(n,) `layout.QUOTE_READ`; whether the numbers make a quote is for the kernel to judge."""
    rows: Rows = np.zeros(len(read), layout.QUOTE_READ)
    unreadable = (read["reply"] == REFUSED_REPLY) | (read["invalid"] != 0)
    rows["bid"], rows["ask"], rows["ts_ms"] = read["bid"], read["ask"], read["ts"]
    rows["code"] = np.where(unreadable, RowCode.QUOTE_UNREADABLE, RowCode.OK)
    return rows


def judge_instruments(read: Rows, names: Names) -> Rows:
    """(n,) `layout.INSTRUMENT_READ` of a group's terms for a symbol."""
    rows: Rows = np.zeros(len(read), layout.INSTRUMENT_READ)
    is_crypto = read["type"] == CRYPTO
    factor = np.where(is_crypto, read["crypto_margin_factor"], 1.0)
    code = np.full(len(read), RowCode.OK, np.uint8)
    code[~(factor > 0.0)] = RowCode.CRYPTO_MARGIN_FACTOR_INVALID
    code[~np.isin(read["type"], INSTRUMENT_TYPES)] = RowCode.INSTRUMENT_TYPE_INVALID
    code[~names.are("currency", read["profit"])] = RowCode.PROFIT_CURRENCY_INVALID
    code[~(read["contract_size"] > 0.0)] = RowCode.CONTRACT_SIZE_INVALID
    code[_is_empty(INSTRUMENT_COLUMNS, read)] = RowCode.INSTRUMENT_MISSING
    code[read["reply"] == REFUSED_REPLY] = RowCode.INSTRUMENT_UNREADABLE
    ok = code == RowCode.OK
    rows["code"], rows["profit_currency"] = code, np.where(ok, read["profit"], -1)
    rows["type"] = np.where(ok, read["type"], 0)
    rows["contract_size"] = np.where(ok, read["contract_size"], np.nan)
    rows["crypto_margin_factor"] = np.where(ok, factor, 1.0)
    return rows


def usd_text(value: float) -> str:
    """A figure as it is written: two decimals, correctly rounded, without a needless second zero (`500.0`).

    `_pack` writes nearly all figures, to the same text; this and `exact_text` write those that it leaves to its caller.
    """
    text = f"{value:.2f}"
    if text.endswith("0"):
        text = text[:-1]
    return "0.0" if text == "-0.0" else text


def exact_text(value: float) -> str:
    """An unrounded figure: fifteen significant digits, which every double holds, so that `0.1 + 0.2` reads `0.3`."""
    text = f"{value:.15g}"
    if "e" in text:
        text = f"{value:.15f}".rstrip("0")
    if "." not in text:
        return f"{text}.0"
    return f"{text}0" if text.endswith(".") else text
