"""Configuration: a TOML file, environment variables over it, command-line flags over both.

Every section is a frozen dataclass whose defaults are the documented ones; unknown keys and wrong values are
errors that name where they stand and what is expected.
"""

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from copyrisk import keys
from copyrisk.errors import ConfigError, InvalidId
from copyrisk.fields import INSTRUMENT_TYPES
from copyrisk.hours import MarketHours, minute_of_week
from copyrisk.rules import ValuationRules
from copyrisk.terms import Hedging, MarginPrice, RateSide

ENVIRONMENT_PREFIX = "COPYRISK_"
#: Not settings: how the kernels are built, and the short name for the length of a tick.
_ENVIRONMENT_IGNORED = ("COPYRISK_DEBUG",)
_ENVIRONMENT_ALIASES = {"COPYRISK_TICK_MS": "COPYRISK_TICK_PERIOD_MS"}

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
        return keys.check_symbol(value)
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
    """Thresholds of accounts that set none of their own."""

    warning_level_pct: float = _setting(ValuationRules().warning_level_pct, _percentage)
    critical_level_pct: float = _setting(ValuationRules().critical_level_pct, _percentage)


@dataclass(frozen=True, slots=True)
class MarketSettings:
    """Trading week of instrument types 1 to 3."""

    timezone: str = _setting(MarketHours().timezone, _timezone)
    week_open: str = _setting(MarketHours().week_open, _week_time)
    week_close: str = _setting(MarketHours().week_close, _week_time)
    always_open: bool = _setting(MarketHours().always_open, _flag)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Log lines on stderr."""

    format: str = _setting("console", _one_of("console", "json"))
    level: str = _setting("info", _one_of("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True)
class Settings:
    """All sections."""

    redis: RedisSettings = field(default_factory=RedisSettings)
    tick: TickSettings = field(default_factory=TickSettings)
    valuation: ValuationSettings = field(default_factory=ValuationSettings)
    cutoff: CutoffSettings = field(default_factory=CutoffSettings)
    market: MarketSettings = field(default_factory=MarketSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def rules(self) -> ValuationRules:
        """The rules that the book is laid out under."""
        chosen = self.valuation
        return ValuationRules(
            RateSide(chosen.rate_side),
            MarginPrice(chosen.margin_price),
            chosen.hedging,
            chosen.hedging_by_symbol,
            chosen.quote_max_age_ms,
            chosen.quote_max_age_ms_by_type,
            chosen.quote_max_age_ms_by_symbol,
            self.cutoff.warning_level_pct,
            self.cutoff.critical_level_pct,
        )

    def hours(self) -> MarketHours:
        """The trading week."""
        market = self.market
        return MarketHours(market.timezone, market.week_open, market.week_close, market.always_open)


SECTIONS: dict[str, type[Any]] = {
    "redis": RedisSettings,
    "tick": TickSettings,
    "valuation": ValuationSettings,
    "cutoff": CutoffSettings,
    "market": MarketSettings,
    "log": LogSettings,
}


def load_settings(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """Read the file, lay environment and flags over it, and check every value.

    Parameters
    ----------
    path : Path or None
        TOML file.
    environ : mapping
        `COPYRISK_<SECTION>_<KEY>` for every setting that is not a table.
    flags : mapping
        `section.key` to value.

    Raises
    ------
    ConfigError
        One line that names the place, the value found and what is expected.
    """
    given: dict[tuple[str, str], tuple[object, str]] = {}
    for section, keys_and_values in _read(path).items():
        _known(section, SECTIONS, f"{path}", "section")
        if not isinstance(keys_and_values, dict):
            raise ConfigError(f"{path}: {section} must be a section: [{section}]")
        for key, value in keys_and_values.items():
            _known(key, _keys(section), f"{path}, section [{section}]", "key")
            given[section, key] = (value, f"{path}: {section}.{key}")
    for name, value in environ.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name not in _ENVIRONMENT_IGNORED:
            given[_of_environment(name)] = (value, name)
    for name, flag in flags.items():
        section, _, key = name.partition(".")
        given[section, key] = (flag, f"command line: {name}")
    built = {
        section: kind(
            **{key: _checked(kind, key, *given[section, key]) for key in _keys(section) if (section, key) in given}
        )
        for section, kind in SECTIONS.items()
    }
    settings = Settings(**built)
    if settings.cutoff.critical_level_pct > settings.cutoff.warning_level_pct:
        raise ConfigError(
            f"cutoff.critical_level_pct ({settings.cutoff.critical_level_pct:g}) is above "
            f"cutoff.warning_level_pct ({settings.cutoff.warning_level_pct:g})"
        )
    return settings


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise ConfigError(f"{path}: {failure.strerror or failure}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as failure:
        raise ConfigError(f"{path}: not TOML: {failure}") from None


def _keys(section: str) -> list[str]:
    return [known.name for known in fields(SECTIONS[section])]


def _known(name: str, allowed: Any, where: str, what: str) -> None:
    if name not in allowed:
        close = difflib.get_close_matches(name, list(allowed), 1, 0.5)
        hint = f", did you mean {close[0]}?" if close else f", known are {', '.join(allowed)}"
        raise ConfigError(f"{where}: unknown {what} {name!r}{hint}", code="unknown_setting")


def _of_environment(name: str) -> tuple[str, str]:
    known = {
        f"{ENVIRONMENT_PREFIX}{section}_{setting.name}".upper(): (section, setting.name)
        for section, kind in SECTIONS.items()
        for setting in fields(kind)
        if not setting.metadata.get("table")
    }
    name = _ENVIRONMENT_ALIASES.get(name, name)
    _known(name, known, "environment", "variable")
    return known[name]


def _checked(kind: type[Any], key: str, value: object, where: str) -> Any:
    check: Check = {setting.name: setting.metadata["check"] for setting in fields(kind)}[key]
    try:
        return check(value)
    except ValueError as expected:
        shown = "a value" if key == "url" else repr(value)[:80]  # a URL may carry a password
        raise ConfigError(f"{where}: expected {expected}, found {shown}") from None
