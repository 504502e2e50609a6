"""A group's exact trading conditions for a symbol: what may be ordered, and what an execution costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from copyrisk.decimals import EXACT, ZERO, parse_decimal
from copyrisk.errors import Refused
from copyrisk.pricing import Commission, Spread

#: `commission_type`: charged on entry, on exit.
_COMMISSION_TYPES = {
    "both": (True, True),
    "in": (True, False),
    "out": (False, True),
    "0": (True, True),
    "1": (True, False),
    "2": (False, True),
}
#: `commission_value_type`: whether the rate is percent of the value.
_COMMISSION_VALUES = {"per_lot": False, "percent": True, "0": False, "1": True}


@dataclass(frozen=True, slots=True)
class LotLimits:
    """Lots of one order."""

    smallest: Decimal = Decimal("0.01")
    largest: Decimal = Decimal(100)
    step: Decimal = Decimal("0.01")

    def check(self, lots: Decimal) -> None:
        """Refuse lots outside the limits or between two steps (`invalid_order_quantity`)."""
        if not self.smallest <= lots <= self.largest:
            raise Refused(
                f"an order must have {self.smallest} to {self.largest} lots, not {lots}", code="invalid_order_quantity"
            )
        self.check_step(lots)

    def check_step(self, lots: Decimal) -> None:
        """Refuse lots that are no whole number of steps."""
        if EXACT.remainder(lots, self.step):
            raise Refused(f"lots come in steps of {self.step}, not {lots}", code="invalid_order_quantity")


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of one symbol for one group; what the group leaves open is as its defaults say."""

    contract_size: Decimal
    instrument_type: int
    spread: Spread
    commission: Commission
    lots: LotLimits


def read_conditions(terms: Mapping[str, str], default: LotLimits) -> Conditions:
    """Conditions of a `groups:{G}:S` hash whose contract size and type have been judged to be usable.

    A group that sets no lot limits has the default ones, one that sets no spread or commission charges none; what is
    set and cannot be read is never guessed at.

    Raises
    ------
    Refused
        `lot_limits_invalid`, `spread_invalid`, `commission_invalid`, `instrument_invalid`.
    """
    size, kind = parse_decimal(terms.get("contract_size")), parse_decimal(terms.get("type"))
    if size is None or size <= 0 or kind is None:
        raise Refused("the symbol's contract size or type cannot be read", code="instrument_invalid")
    lots = LotLimits(
        _positive(terms, "min_lot", default.smallest),
        _positive(terms, "max_lot", default.largest),
        _positive(terms, "lot_step", default.step),
    )
    return Conditions(size, int(kind), _spread(terms), _commission(terms), lots)


def _positive(terms: Mapping[str, str], field: str, default: Decimal) -> Decimal:
    if field not in terms:
        return default
    value = parse_decimal(terms[field])
    if value is None or value <= 0:
        raise Refused(f"the group's {field} cannot be read", code="lot_limits_invalid")
    return value


def _spread(terms: Mapping[str, str]) -> Spread:
    if "spread" not in terms and "spread_pip" not in terms:
        return Spread(ZERO, ZERO)
    points, pip = parse_decimal(terms.get("spread")), parse_decimal(terms.get("spread_pip"))
    if points is None or pip is None or points < 0 or pip < 0:
        raise Refused("the group's spread cannot be read", code="spread_invalid")
    return Spread(points, pip)


def _commission(terms: Mapping[str, str]) -> Commission:
    if "commission_rate" not in terms:
        return Commission(ZERO, is_percent=False, on_entry=False, on_exit=False)
    rate = parse_decimal(terms["commission_rate"])
    sides = _COMMISSION_TYPES.get(terms.get("commission_type", "both").strip().lower())
    is_percent = _COMMISSION_VALUES.get(terms.get("commission_value_type", "per_lot").strip().lower())
    if rate is None or rate < 0 or sides is None or is_percent is None:
        raise Refused("the group's commission cannot be read", code="commission_invalid")
    return Commission(rate, is_percent, *sides)
