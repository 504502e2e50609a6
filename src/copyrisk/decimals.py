"""Exact numbers: the contract's grammar to `Decimal` and back. What is booked never passes through a float."""

import re
from decimal import ROUND_HALF_UP, Context, Decimal

CENT = Decimal("0.01")
ZERO = Decimal(0)

#: Wide enough that sums and products of numbers of the grammar are exact.
EXACT = Context(prec=120, rounding=ROUND_HALF_UP)

#: What a plain decimal without a sign matches as a whole.
PLAIN_PATTERN = r"[0-9]{1,18}(?:\.[0-9]{1,18})?"
_PLAIN = re.compile("-?" + PLAIN_PATTERN, re.ASCII)


def parse_decimal(text: str | None) -> Decimal | None:
    """The number of a plain decimal (no exponent, no `nan`, ASCII digits only); `None` for anything else."""
    if text is None or _PLAIN.fullmatch(text) is None:
        return None
    return Decimal(text)


def as_float(text: str | None) -> float | None:
    """The same as a float, for figures that are only shown."""
    number = parse_decimal(text)
    return None if number is None else float(number)


def decimal_text(value: Decimal) -> str:
    """Shortest plain text of a number: no exponent, no needless zeros, `-0` is `0`; at most 18 decimals, half up."""
    if -value.as_tuple().exponent > 18:  # type: ignore[operator]  # finite: it is no NaN
        value = value.quantize(Decimal((0, (1,), -18)), ROUND_HALF_UP, EXACT)
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def cents(value: Decimal) -> Decimal:
    """Two decimals, half up (away from zero); nothing has no sign."""
    rounded = value.quantize(CENT, ROUND_HALF_UP, EXACT)
    return rounded if rounded else abs(rounded)


def cents_of(amount: Decimal) -> int:
    """An amount of USD in whole cents, half up."""
    return int(cents(amount).scaleb(2))


def money_text(value: Decimal) -> str:
    """An amount of USD as it is written: two decimals."""
    return f"{cents(value):f}"


def charge_text(value: Decimal) -> str:
    """An amount in USD that others write as well: two decimals, or as many as they gave it."""
    return money_text(value) if value == cents(value) else decimal_text(value)
