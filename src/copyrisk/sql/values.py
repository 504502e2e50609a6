"""Values on their way: types that carry them exactly, and what Redis has for what a column says."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from copyrisk.decimals import decimal_text, parse_decimal
from copyrisk.errors import StoreError

_FIELD_CHARS = 4096
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class DecimalText(sa.types.TypeDecorator[Decimal]):
    """A decimal in a text column: SQLite has no decimal, and a float would not be what was booked."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> str | None:
        """As a plain decimal."""
        return None if value is None else decimal_text(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        """What is no number is none."""
        return None if value is None else parse_decimal(str(value))


class WholeText(sa.types.TypeDecorator[str]):
    """An id in a column of integers: 17 is `17`, and `017` is none of them."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> int | None:
        """As an integer.

        Raises
        ------
        ValueError
            It is not how an integer is written.
        """
        if value is None:
            return None
        if not is_whole(value):
            raise ValueError("not an integer")
        return int(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> str | None:
        """As text."""
        return None if value is None else str(value)


def is_whole(text: str) -> bool:
    """Whether an integer column of 64 bits may hold this id."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) <= 18 and str(int(text)) == text


def may_hold(kind: sa.types.TypeEngine[Any], text: str) -> bool:
    """Whether a column of ids may hold this one; of what it may not hold there is no row."""
    if isinstance(kind, WholeText):
        return is_whole(text)
    return not isinstance(kind, sa.Uuid) or _UUID.fullmatch(text) is not None


class UtcTime(sa.types.TypeDecorator[datetime]):
    """An instant in UTC, whatever the column keeps of a time zone: every session is in UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Aware for PostgreSQL; the others have no time zones."""
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Aware."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def field_text(name: str, value: object) -> str:
    """The text of a field in Redis: plain decimals, `1` and `0` for true and false, other text as it is.

    What is no plain decimal (`NaN`) is still said, so that it is refused and not taken for absent.

    Raises
    ------
    StoreError
        `row_unreadable`: it is too long, and half of it would say something else.
    """
    if isinstance(value, bytes):  # MariaDB's BIT, and text of binary columns
        value = (
            int.from_bytes(value) if len(value) == 1 and value < b"\x02" else value.decode("utf-8", "backslashreplace")
        )
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        value = Decimal(repr(value))  # the shortest text that is this float
    if isinstance(value, Decimal):
        return decimal_text(value) if value.is_finite() else str(value)
    text = str(value)
    if len(text) > _FIELD_CHARS:
        raise StoreError(f"{name} has more than {_FIELD_CHARS} characters", code="row_unreadable")
    return text
