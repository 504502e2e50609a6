"""Which warning and critical level an account has: its own, or the defaults where its own make no sense."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from copyrisk.layout import Rows
from copyrisk.rules import ValuationRules

#: No level is above it; the settings know no higher ones either.
HIGHEST_PCT = 1_000.0


@dataclass(frozen=True, slots=True)
class Profile:
    """What a regime asks of the section `cutoff`, and the defaults of that section under it."""

    critical_floor_pct: float = 0.0
    protects_balance: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)


PROFILES = {
    "none": Profile(),
    "retail_eu_uk": Profile(
        critical_floor_pct=50.0,
        protects_balance=True,
        defaults={"warning_level_pct": 100.0, "critical_level_pct": 50.0, "negative_balance_protection": True},
    ),
}

Levels = npt.NDArray[np.float64]


def judge_levels(read: Rows, rules: ValuationRules) -> tuple[Levels, Levels, npt.NDArray[np.bool_]]:
    """Levels of accounts, as they hold.

    Parameters
    ----------
    read : (n,) layout.ACCOUNT_READ
        `warning_level_pct` and `critical_level_pct` are NaN where the account sets none, or none that can be read
        (then `levels_valid` is false).
    rules : ValuationRules
        The defaults, and how low a critical level may be.

    Returns
    -------
    warning_pct, critical_pct : (n,) float64
        A level that is absent is the default one, and so is one that cannot be read, is negative or above 1000, or a
        critical one that is below the floor. If the critical level is then above the warning level, nobody could be
        warned: both are the defaults.
    replaced : (n,) bool
        Accounts one of whose own levels does not hold.
    """
    warning, warning_replaced = _judged(read["warning_level_pct"], 0.0, rules.warning_level_pct)
    critical, critical_replaced = _judged(
        read["critical_level_pct"], rules.critical_floor_pct, rules.critical_level_pct
    )
    reversed_ = critical > warning
    warning[reversed_], critical[reversed_] = rules.warning_level_pct, rules.critical_level_pct
    return warning, critical, warning_replaced | critical_replaced | reversed_ | ~read["levels_valid"]


def _judged(given: Levels, lowest_pct: float, default_pct: float) -> tuple[Levels, npt.NDArray[np.bool_]]:
    """Levels with the default where they are none or cannot be, and where they cannot be."""
    usable = (given >= lowest_pct) & (given <= HIGHEST_PCT)
    return np.where(usable, given, default_pct), ~usable & ~np.isnan(given)
