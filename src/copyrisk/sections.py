"""The sections of the configuration: what may be set, its default, and what is checked about it.

Every section is a frozen dataclass whose defaults are the documented ones.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from copyrisk import identifiers
from copyrisk.audit_files import SEGMENT_BYTES
from copyrisk.conditions import LotLimits
from copyrisk.copying import CopyDefaults
from copyrisk.deciding import CopyOptions
from copyrisk.decimals import parse_decimal
from copyrisk.errors import InvalidId
from copyrisk.fields import INSTRUMENT_TYPES
from copyrisk.gateway.link import LinkSettings
from copyrisk.hours import MarketHours, minute_of_week
from copyrisk.levels import PROFILES
from copyrisk.monitors import MonitorOptions
from copyrisk.rules import CutoffOptions, ValuationRules
from copyrisk.sizing_terms import AboveMax, BelowMin, Rounding, SizingMode
from copyrisk.store.trail import STREAM_LIMIT
from copyrisk.terms import Hedging, MarginPrice, RateSide, StopOutMode
from copyrisk.workers import WorkerOptions

Check = Callable[[Any], Any]


def _setting(default: Any, check: Check) -> Any:
    return field(default=default, metadata={"check": check})


def _table_setting(key_check: Check, check: Check) -> Any:
    def check_table(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("a table")
        return {key_check(key): check(item) for key, item in value.items()}

    return field(default_factory=dict, metadata={"check": check_table, "table": True})


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _one_of(*allowed: str) -> Check:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return value

    return check


def _whole(lowest: int, highest: int) -> Check:
    def check(value: Any) -> int:
        expected = ValueError(f"a whole number from {lowest} to {highest}")
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise expected
        return value

    return check


def _percentage(value: Any) -> float:
    expected = ValueError("a number of percent from 0 to 1000")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise expected from None
    if isinstance(value, bool) or not math.isfinite(number) or not 0.0 <= number <= 1000.0:
        raise expected
    return number


def _niceness(value: Any) -> int:
    text = str(value)
    if (
        isinstance(value, bool | float)
        or not (text.isascii() and text.removeprefix("-").isdecimal())
        or not -20 <= int(text) <= 19
    ):
        raise ValueError("a whole number from -20 to 19")
    return int(text)


def _flag(value: Any) -> bool:
    allowed = {True: True, False: False, "true": True, "false": False}
    if not isinstance(value, bool | str) or value not in allowed:
        raise ValueError("true or false")
    return allowed[value]


def _hedging(value: Any) -> Hedging:
    try:
        return Hedging.parse(float(value) if isinstance(value, str) and value[:1].isdigit() else value)
    except (TypeError, ValueError):
        raise ValueError("max, sum, net or a percentage from 0 to 100") from None


def _symbol(value: Any) -> str:
    try:
        return identifiers.check_symbol(value)
    except InvalidId:
        raise ValueError("symbols as keys") from None


def _instrument_type(value: Any) -> int:
    if value not in [str(known) for known in INSTRUMENT_TYPES]:
        raise ValueError("instrument types 1 to 4 as keys")
    return int(value)


def _timezone(value: Any) -> str:
    try:
        return ZoneInfo(_text(value)).key
    except (ValueError, OSError, KeyError):  # no text, a folder of zones, no such zone
        raise ValueError("a time zone such as America/New_York") from None


def _week_time(value: Any) -> str:
    try:
        minute_of_week(_text(value))
    except ValueError:
        raise ValueError("a time of the week such as 'Sun 17:00'") from None
    return str(value)


def _lots(value: Any) -> Decimal:
    text = f"{value:f}" if isinstance(value, float | Decimal) else str(value)
    number = parse_decimal(text)
    if isinstance(value, bool) or number is None or number <= 0:
        raise ValueError("a number of lots above 0, such as 0.01")
    return number


_age_ms = _whole(0, 604_800_000)
_timeout_ms = _whole(10, 600_000)


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Which server, and how long it may take."""

    url: str | None = _setting(None, _text)
    server_path: str | None = _setting(None, _text)
    connect_timeout_ms: int = _setting(1_000, _timeout_ms)
    reply_timeout_ms: int = _setting(2_000, _timeout_ms)


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """The broker's database; without a URL there is none."""

    url: str | None = _setting(None, _text)
    id_column: str = _setting("id", _text)
    books_balance: bool = _setting(True, _flag)


@dataclass(frozen=True, slots=True)
class TickSettings:
    """The grid."""

    period_ms: int = _setting(200, _whole(10, 60_000))


@dataclass(frozen=True, slots=True)
class ValuationSettings:
    """The choices of valuation; see docs/semantics.md."""

    rate_side: str = _setting(RateSide.ASK.value, _one_of(*RateSide))
    margin_price: str = _setting(MarginPrice.CURRENT.value, _one_of(*MarginPrice))
    hedging: Hedging = _setting(ValuationRules().hedging, _hedging)
    hedging_by_symbol: Mapping[str, Hedging] = _table_setting(_symbol, _hedging)
    quote_max_age_ms: int = _setting(ValuationRules().quote_max_age_ms, _age_ms)
    quote_max_age_ms_by_type: Mapping[int, int] = _table_setting(_instrument_type, _age_ms)
    quote_max_age_ms_by_symbol: Mapping[str, int] = _table_setting(_symbol, _age_ms)


@dataclass(frozen=True, slots=True)
class CutoffSettings:
    """Thresholds of accounts that set none of their own, and what is done at them."""

    acts: bool = _setting(True, _flag)
    stop_out: str = _setting(StopOutMode.LARGEST_LOSS.value, _one_of(*StopOutMode))
    recovery_pct: float = _setting(CutoffOptions().recovery_pct, _percentage)
    warning_cooldown_ms: int = _setting(CutoffOptions().warning_cooldown_ms, _age_ms)
    brake_share_pct: float = _setting(CutoffOptions().brake_share_pct, _percentage)
    brake_min_accounts: int = _setting(CutoffOptions().brake_min_accounts, _whole(1, 1_000_000_000))
    quote_jump_pct: float = _setting(CutoffOptions().quote_jump_pct, _percentage)
    close_budget_ms: int = _setting(CutoffOptions().close_budget_ms, _timeout_ms)
    cascade_budget_ms: int = _setting(CutoffOptions().cascade_budget_ms, _timeout_ms)
    lease_ms: int = _setting(2_000, _whole(200, 60_000))

    profile: str = _setting("none", _one_of(*PROFILES))
    warning_level_pct: float = _setting(ValuationRules().warning_level_pct, _percentage)
    critical_level_pct: float = _setting(ValuationRules().critical_level_pct, _percentage)
    negative_balance_protection: bool = _setting(False, _flag)


@dataclass(frozen=True, slots=True)
class MarketSettings:
    """Trading week of instrument types 1 to 3."""

    timezone: str = _setting(MarketHours().timezone, _timezone)
    week_open: str = _setting(MarketHours().week_open, _week_time)
    week_close: str = _setting(MarketHours().week_close, _week_time)
    always_open: bool = _setting(MarketHours().always_open, _flag)


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """The HTTP endpoint of a process; without a port there is none."""

    port: int | None = _setting(None, _whole(0, 65_535))
    host: str = _setting("127.0.0.1", _text)
    stall_ms: int = _setting(5_000, _whole(100, 600_000))


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Log lines on stderr."""

    format: str = _setting("console", _one_of("console", "json"))
    level: str = _setting("info", _one_of("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True)
class OrderSettings:
    """Lots of symbols whose group sets no limits, and what is announced."""

    min_lot: Decimal = _setting(LotLimits().smallest, _lots)
    max_lot: Decimal = _setting(LotLimits().largest, _lots)
    lot_step: Decimal = _setting(LotLimits().step, _lots)
    events_limit: int = _setting(100_000, _whole(1_000, 100_000_000))


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The consumers of the order streams."""

    batch: int = _setting(WorkerOptions().batch, _whole(1, 10_000))
    retry_ms: int = _setting(WorkerOptions().retry_ms, _whole(10, 600_000))
    attempts: int = _setting(WorkerOptions().attempts, _whole(1, 1_000_000))


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """Pending orders, stop losses and take profits."""

    retry_ms: int = _setting(MonitorOptions().retry_ms, _whole(10, 600_000))
    margin_check_ms: int = _setting(MonitorOptions().margin_check_ms, _whole(10, 600_000))


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """Copying masters' orders; what a follower's own configuration says comes first."""

    batch: int = _setting(CopyOptions().batch, _whole(1, 1_000))
    retry_ms: int = _setting(CopyOptions().retry_ms, _whole(10, 600_000))
    lease_ms: int = _setting(2_000, _whole(200, 60_000))
    nice: int = _setting(-5, _niceness)
    signal_max_age_ms: int = _setting(CopyOptions().signal_max_age_ms, _age_ms)
    equity_max_age_ms: int = _setting(CopyOptions().equity_max_age_ms, _age_ms)
    price_deviation_pct: float = _setting(CopyOptions().price_deviation_pct, _percentage)
    corrects_contract_size: bool = _setting(CopyOptions().corrects_contract_size, _flag)
    carries_remainders: bool = _setting(CopyOptions().carries_remainders, _flag)
    limits_check_ms: int = _setting(CopyOptions().limits_check_ms, _whole(10, 600_000))
    sizing_mode: str = _setting(CopyDefaults().sizing_mode.value, _one_of(*SizingMode))
    policy: str | None = _setting(None, _text)
    rounding: str = _setting(CopyDefaults().rounding.value, _one_of(*Rounding))
    below_min: str = _setting(CopyDefaults().below_min.value, _one_of(*BelowMin))
    above_max: str = _setting(CopyDefaults().above_max.value, _one_of(*AboveMax))


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The house's audit trail; without a folder it is in Redis only."""

    folder: str | None = _setting(None, _text)
    segment_bytes: int = _setting(SEGMENT_BYTES, _whole(1 << 16, 1 << 30))
    stream_limit: int = _setting(STREAM_LIMIT, _whole(1_000, 1_000_000_000))


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """The link to the liquidity provider; defaults as the gateway has them."""

    url: str = _setting("tcp://127.0.0.1:7711", _text)
    session: str = _setting(LinkSettings("").session, _text)
    answer_timeout_ms: int = _setting(2_000, _timeout_ms)


@dataclass(frozen=True, slots=True)
class SimulatedProviderSettings:
    """The simulated provider."""

    host: str = _setting("127.0.0.1", _text)
    port: int = _setting(7711, _whole(0, 65_535))
    script: str | None = _setting(None, _text)
