"""Configuration: a TOML file, environment variables over it, command-line flags over both.

Unknown keys and wrong values are errors that name where they stand and what is expected.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from copyrisk.api_sections import ApiSettings
from copyrisk.conditions import LotLimits
from copyrisk.copying import CopyDefaults
from copyrisk.deciding import CopyOptions
from copyrisk.errors import ConfigError
from copyrisk.gateway.link import LinkSettings
from copyrisk.gateway.script import FaultScript, load_script
from copyrisk.gateway.session import GatewaySettings
from copyrisk.gateway.simulator import SimulatorSettings
from copyrisk.hours import MarketHours
from copyrisk.levels import PROFILES
from copyrisk.monitors import MonitorOptions
from copyrisk.notify_sections import NotifySettings
from copyrisk.rules import CutoffOptions, ValuationRules
from copyrisk.sections import (
    AuditSettings,
    Check,
    CutoffSettings,
    DatabaseSettings,
    LogSettings,
    MarketSettings,
    MetricsSettings,
    MonitorSettings,
    OrderSettings,
    ProviderSettings,
    RedisSettings,
    ReplicationSettings,
    SimulatedProviderSettings,
    TickSettings,
    ValuationSettings,
    WorkerSettings,
)
from copyrisk.sizing_terms import AboveMax, BelowMin, Rounding, SizingMode
from copyrisk.terms import MarginPrice, RateSide
from copyrisk.workers import WorkerOptions

ENVIRONMENT_PREFIX = "COPYRISK_"
#: Not settings: how the kernels are built, where fault tests crash, and the short name for the length of a tick.
_ENVIRONMENT_IGNORED = ("COPYRISK_DEBUG", "COPYRISK_CRASH_AT")
_ENVIRONMENT_ALIASES = {"COPYRISK_TICK_MS": "COPYRISK_TICK_PERIOD_MS"}


@dataclass(frozen=True, slots=True)
class Settings:
    """All sections."""

    redis: RedisSettings = field(default_factory=RedisSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    tick: TickSettings = field(default_factory=TickSettings)
    valuation: ValuationSettings = field(default_factory=ValuationSettings)
    cutoff: CutoffSettings = field(default_factory=CutoffSettings)
    market: MarketSettings = field(default_factory=MarketSettings)
    orders: OrderSettings = field(default_factory=OrderSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    monitors: MonitorSettings = field(default_factory=MonitorSettings)
    replication: ReplicationSettings = field(default_factory=ReplicationSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    provider: ProviderSettings = field(default_factory=ProviderSettings)
    simulator: SimulatedProviderSettings = field(default_factory=SimulatedProviderSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    notify: NotifySettings = field(default_factory=NotifySettings)
    api: ApiSettings = field(default_factory=ApiSettings)
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
            PROFILES[self.cutoff.profile].critical_floor_pct,
        )

    def hours(self) -> MarketHours:
        """The trading week."""
        market = self.market
        return MarketHours(market.timezone, market.week_open, market.week_close, market.always_open)

    def lots(self) -> LotLimits:
        """Lot limits of groups that set none."""
        return LotLimits(self.orders.min_lot, self.orders.max_lot, self.orders.lot_step)

    def worker_options(self) -> WorkerOptions:
        """How workers go about it."""
        return WorkerOptions(self.workers.batch, self.workers.retry_ms, self.workers.attempts)

    def gateway(self) -> GatewaySettings:
        """How the gateway reaches the provider."""
        link = LinkSettings(self.provider.url, self.provider.session)
        return GatewaySettings(link, answer_timeout_ms=self.provider.answer_timeout_ms)

    def simulated_provider(self, redis_url: str | None) -> SimulatorSettings:
        """The simulated provider, which takes its quotes from this server."""
        chosen = self.simulator
        script = load_script(Path(chosen.script)) if chosen.script else FaultScript()
        return SimulatorSettings(chosen.host, chosen.port, redis_url, script)

    def monitor_options(self) -> MonitorOptions:
        """How monitors go about it."""
        return MonitorOptions(retry_ms=self.monitors.retry_ms, margin_check_ms=self.monitors.margin_check_ms)

    def cutoff_options(self) -> CutoffOptions:
        """How autocutoff goes about it."""
        return CutoffOptions(**{name.name: getattr(self.cutoff, name.name) for name in fields(CutoffOptions)})

    def copy_options(self) -> CopyOptions:
        """How the engine of copies goes about it."""
        chosen = self.replication
        return CopyOptions(
            batch=chosen.batch,
            signal_max_age_ms=chosen.signal_max_age_ms,
            equity_max_age_ms=chosen.equity_max_age_ms,
            price_deviation_pct=chosen.price_deviation_pct,
            corrects_contract_size=chosen.corrects_contract_size,
            carries_remainders=chosen.carries_remainders,
            retry_ms=chosen.retry_ms,
            limits_check_ms=chosen.limits_check_ms,
        )

    def copy_defaults(self) -> CopyDefaults:
        """How followers copy who do not say it."""
        chosen = self.replication
        return CopyDefaults(
            SizingMode(chosen.sizing_mode),
            Rounding(chosen.rounding),
            BelowMin(chosen.below_min),
            AboveMax(chosen.above_max),
        )


SECTIONS: dict[str, type[Any]] = {
    "redis": RedisSettings,
    "database": DatabaseSettings,
    "tick": TickSettings,
    "valuation": ValuationSettings,
    "cutoff": CutoffSettings,
    "market": MarketSettings,
    "orders": OrderSettings,
    "workers": WorkerSettings,
    "monitors": MonitorSettings,
    "replication": ReplicationSettings,
    "audit": AuditSettings,
    "provider": ProviderSettings,
    "simulator": SimulatedProviderSettings,
    "metrics": MetricsSettings,
    "notify": NotifySettings,
    "api": ApiSettings,
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
            _may_stand_in_file(section, key, f"{path}")
            given[section, key] = (value, f"{path}: {section}.{key}")
    for name, value in environ.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name not in _ENVIRONMENT_IGNORED:
            given[_of_environment(name)] = (value, name)
    for name, flag in flags.items():
        section, _, key = name.partition(".")
        given[section, key] = (flag, f"command line: {name}")
    _lay_under(given)
    built = {
        section: kind(
            **{key: _checked(kind, key, *given[section, key]) for key in _keys(section) if (section, key) in given}
        )
        for section, kind in SECTIONS.items()
    }
    settings = Settings(**built)
    settings.notify.check()
    settings.api.check()
    _check_cutoff(settings)
    return settings


def _lay_under(given: dict[tuple[str, str], tuple[object, str]]) -> None:
    """Have the profile's defaults stand where nothing is given."""
    name, _ = given.get(("cutoff", "profile"), ("none", ""))
    profile = PROFILES.get(name) if isinstance(name, str) else None
    for key, value in profile.defaults.items() if profile else ():
        given.setdefault(("cutoff", key), (value, f"cutoff.profile = {name}"))


def _check_cutoff(settings: Settings) -> None:
    chosen = settings.cutoff
    settings.rules()  # its levels are not below the floor
    if chosen.critical_level_pct > chosen.warning_level_pct:
        raise ConfigError(
            f"cutoff.critical_level_pct ({chosen.critical_level_pct:g}) is above "
            f"cutoff.warning_level_pct ({chosen.warning_level_pct:g})"
        )
    if PROFILES[chosen.profile].protects_balance and not chosen.negative_balance_protection:
        raise ConfigError(
            f"cutoff.negative_balance_protection must be true under cutoff.profile = {chosen.profile}",
            code="protection_required",
        )


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


def _may_stand_in_file(section: str, key: str, path: str) -> None:
    (setting,) = (known for known in fields(SECTIONS[section]) if known.name == key)
    if setting.metadata.get("environment_only"):
        variable = f"{ENVIRONMENT_PREFIX}{section}_{key}".upper()
        raise ConfigError(f"{path}: {section}.{key} is a secret: set {variable}, or {section}.{key}_file")


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
        is_private = key.endswith("url") or key == "secret"  # a URL may carry a password
        shown = "a value" if is_private else repr(value)[:80]
        raise ConfigError(f"{where}: expected {expected}, found {shown}") from None
