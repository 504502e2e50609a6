"""What a broker sets about valuation and autocutoff, in immutable values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from copyrisk.errors import ConfigError
from copyrisk.fields import CRYPTO
from copyrisk.terms import LARGER_SIDE, Hedging, MarginPrice, RateSide


@dataclass(frozen=True, slots=True)
class ValuationRules:
    """The choices of contract section 4; `by_symbol` wins over `by_type` over the default.

    The two levels are those of accounts that set none of their own; no account's critical level is below the floor.

    Raises
    ------
    ConfigError
        `level_below_floor`.
    """

    rate_side: RateSide = RateSide.ASK
    margin_price: MarginPrice = MarginPrice.CURRENT
    hedging: Hedging = LARGER_SIDE
    hedging_by_symbol: Mapping[str, Hedging] = field(default_factory=dict)
    quote_max_age_ms: int = 30_000
    quote_max_age_ms_by_type: Mapping[int, int] = field(default_factory=dict)
    quote_max_age_ms_by_symbol: Mapping[str, int] = field(default_factory=dict)
    warning_level_pct: float = 50.0
    critical_level_pct: float = 10.0
    critical_floor_pct: float = 0.0

    def __post_init__(self) -> None:
        if self.critical_level_pct < self.critical_floor_pct:
            raise ConfigError(
                f"cutoff.critical_level_pct ({self.critical_level_pct:g}) is below the floor "
                f"({self.critical_floor_pct:g}) of cutoff.profile",
                code="level_below_floor",
            )

    @property
    def nets_orders(self) -> bool:
        """Whether orders may be folded before conversion (not when each converts at its own worse side)."""
        return self.rate_side is not RateSide.SIDE

    def hedging_of(self, symbol: str) -> Hedging:
        """The hedging rule of a symbol."""
        return self.hedging_by_symbol.get(symbol, self.hedging)

    def margin_at_open(self, instrument_type: int) -> bool:
        """Whether margin is charged at the order's price; crypto always keeps it."""
        return instrument_type == CRYPTO or self.margin_price is MarginPrice.OPEN

    def max_age_ms(self, symbol: str, instrument_type: int) -> int:
        """How old a quote may be; 0 turns the check off."""
        by_type = self.quote_max_age_ms_by_type.get(instrument_type, self.quote_max_age_ms)
        return self.quote_max_age_ms_by_symbol.get(symbol, by_type)


@dataclass(frozen=True, slots=True)
class CutoffOptions:
    """How autocutoff goes about it; see `sections.CutoffSettings`."""

    recovery_pct: float = 5.0
    warning_cooldown_ms: int = 10_800_000
    brake_share_pct: float = 5.0
    brake_min_accounts: int = 10
    quote_jump_pct: float = 10.0
    close_budget_ms: int = 400
    cascade_budget_ms: int = 300
