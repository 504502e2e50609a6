"""How a follower wants to copy: the copy settings of its configuration, each read once and held against its grammar.

What is absent is as the broker's settings say; what is there and cannot be read is never guessed at: such a follower is
not copied, and the reason names the field.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from copyrisk.decimals import ZERO, parse_decimal
from copyrisk.errors import InvalidId
from copyrisk.fields import COPY_FIELDS
from copyrisk.identifiers import check_symbol
from copyrisk.sizing_terms import AboveMax, BelowMin, LeverageCorrection, Rounding, SizingMode
from copyrisk.terms import OrderType

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
_ACTIVE = ("1", "true", "active")
_SYMBOLS_LIMIT = 500


@dataclass(frozen=True, slots=True)
class CopyDefaults:
    """What the broker's settings say where a follower says nothing."""

    sizing_mode: SizingMode = SizingMode.EQUITY
    rounding: Rounding = Rounding.DOWN
    below_min: BelowMin = BelowMin.SKIP
    above_max: AboveMax = AboveMax.CLIP
    lift_risk_limit: float = float("inf")
    leverage_correction: LeverageCorrection = LeverageCorrection.NONE


@dataclass(frozen=True, slots=True)
class AccountLimit:
    """A stop loss or take profit of the whole account: percent of the investment, or an amount of USD."""

    value: Decimal
    is_percent: bool

    def usd(self, investment: Decimal | None) -> Decimal | None:
        """In USD; `None` if it is measured against an investment that nobody knows."""
        if not self.is_percent:
            return self.value
        return None if investment is None or investment <= 0 else investment * self.value / 100


@dataclass(frozen=True, slots=True)
class CopySettings:
    """One follower's settings; thousands may have the same.

    Attributes
    ----------
    refusal : str
        Why nothing may be copied at all: `follower_inactive`, `copying_paused`, `copying_stopped`, or
        `<field>_invalid`; empty if nothing stands against it.
    max_lots : Decimal or None
    symbols_allowed : frozenset of str or None
        `None`: all of them.
    """

    refusal: str = ""
    copy_status: str = ""
    sending_orders: str | None = None
    sizing_mode: SizingMode = SizingMode.EQUITY
    rounding: Rounding = Rounding.DOWN
    below_min: BelowMin = BelowMin.SKIP
    above_max: AboveMax = AboveMax.CLIP
    leverage_correction: LeverageCorrection = LeverageCorrection.NONE
    multiplier: Decimal = Decimal(1)
    max_lots: Decimal | None = None
    fixed_lots: Decimal = ZERO
    target_leverage: Decimal = ZERO
    risk_pct: Decimal = ZERO
    lift_risk_limit: float = float("inf")
    reverse: bool = False
    sides_allowed: str = "both"
    symbols_allowed: frozenset[str] | None = None
    symbols_denied: frozenset[str] = field(default_factory=frozenset)
    max_daily_loss_usd: Decimal | None = None
    drawdown_pct: Decimal | None = None
    stop_loss: AccountLimit | None = None
    take_profit: AccountLimit | None = None

    def refuses(self, symbol: str, order_type: OrderType) -> str:
        """Why this follower does not copy orders like this one; empty if it does."""
        if self.refusal:
            return self.refusal
        if symbol in self.symbols_denied or (self.symbols_allowed is not None and symbol not in self.symbols_allowed):
            return "symbol_denied"
        is_buy = order_type.is_buy is not self.reverse
        if self.sides_allowed != "both" and is_buy is not (self.sides_allowed == "buy"):
            return "side_denied"
        return ""


class _Unusable(Exception):
    """A field is there and cannot be read; the text says which."""


def parse_settings(values: Sequence[str | None], default: CopyDefaults) -> CopySettings:
    """The settings of a configuration's `COPY_FIELDS`; what cannot be read is a refusal, never an exception."""
    there = dict(zip(COPY_FIELDS, values, strict=True))
    said = {name: value.strip() for name, value in there.items() if value is not None}
    status = there["copy_status"] or ""  # as it stands: the call that makes a copy compares it
    try:
        return replace(_settings(said, default), copy_status=status)
    except _Unusable as unusable:
        return CopySettings(refusal=f"{unusable}_invalid", copy_status=status)


def _settings(said: dict[str, str], default: CopyDefaults) -> CopySettings:
    mode = SizingMode(_word(said, "sizing_mode", tuple(SizingMode), default.sizing_mode))
    lift = _number(said, "lift_risk_limit")
    return CopySettings(
        refusal=_refusal(said),
        sending_orders=said.get("sending_orders"),
        sizing_mode=mode,
        rounding=Rounding(_word(said, "rounding", tuple(Rounding), default.rounding)),
        below_min=BelowMin(_word(said, "below_min", tuple(BelowMin), default.below_min)),
        above_max=AboveMax(_word(said, "above_max", tuple(AboveMax), default.above_max)),
        leverage_correction=LeverageCorrection(
            _word(said, "leverage_correction", tuple(LeverageCorrection), default.leverage_correction)
        ),
        multiplier=_number(said, "multiplier") or Decimal(1),
        max_lots=_number(said, "max_lot_size"),
        fixed_lots=_needed(said, "fixed_lots", mode is SizingMode.FIXED_LOTS),
        target_leverage=_needed(said, "target_leverage", mode is SizingMode.FIXED_LEVERAGE),
        risk_pct=_needed(said, "risk_pct", mode is SizingMode.RISK),
        lift_risk_limit=default.lift_risk_limit if lift is None else float(lift),
        reverse=_flag(said, "reverse"),
        sides_allowed=_word(said, "sides_allowed", ("both", "buy", "sell"), "both"),
        symbols_allowed=_symbols(said, "symbols_allowed") or None,
        symbols_denied=_symbols(said, "symbols_denied"),
        max_daily_loss_usd=_number(said, "max_daily_loss"),
        drawdown_pct=_number(said, "stop_copying_on_drawdown"),
        stop_loss=_limit(said, "copy_sl_mode", "sl_percentage", "sl_amount"),
        take_profit=_limit(said, "copy_tp_mode", "tp_percentage", "tp_amount"),
    )


def _refusal(said: dict[str, str]) -> str:
    if not all(said.get(name, "1").lower() in _ACTIVE for name in ("status", "is_active")):
        return "follower_inactive"
    status = said.get("copy_status", "").lower() or "active"
    if status == "active":
        return ""
    if status in ("paused", "stopped"):
        return f"copying_{status}"
    raise _Unusable("copy_status")


def _word(said: dict[str, str], name: str, words: Sequence[str], default: str) -> str:
    word = said.get(name, "").lower() or default
    if word not in words:
        raise _Unusable(name)
    return word


def _number(said: dict[str, str], name: str) -> Decimal | None:
    """A number above 0; absent or empty is none, and so is 0: a limit of nothing would be none that anybody wants."""
    text = said.get(name, "")
    if not text:
        return None
    value = parse_decimal(text)
    if value is None or value < 0 or (value == 0 and name == "multiplier"):
        raise _Unusable(name)
    return value or None


def _needed(said: dict[str, str], name: str, needed: bool) -> Decimal:
    value = _number(said, name)
    if value is None and needed:
        raise _Unusable(name)
    return value or ZERO


def _flag(said: dict[str, str], name: str) -> bool:
    word = said.get(name, "").lower()
    if word not in _YES and word not in _NO:
        raise _Unusable(name)
    return word in _YES


def _symbols(said: dict[str, str], name: str) -> frozenset[str]:
    """Symbols separated by commas or spaces."""
    text = said.get(name, "")
    found = frozenset(text.replace(",", " ").split())
    if len(found) > _SYMBOLS_LIMIT or (text and not found):
        raise _Unusable(name)
    try:
        return frozenset(map(check_symbol, found))
    except InvalidId:
        raise _Unusable(name) from None


def _limit(said: dict[str, str], mode_name: str, percentage: str, amount: str) -> AccountLimit | None:
    mode = _word(said, mode_name, ("none", "percentage", "amount"), "none")
    if mode == "none":
        return None
    return AccountLimit(_needed(said, percentage if mode == "percentage" else amount, True), mode == "percentage")
