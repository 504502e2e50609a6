"""An entry of the history stream, held against the grammar: what it makes the database say, or why it is refused."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

from copyrisk import identifiers
from copyrisk.decimals import parse_decimal
from copyrisk.errors import Refused
from copyrisk.identifiers import Account
from copyrisk.sql.tables import ORDER_NUMBERS
from copyrisk.terms import LedgerKind, OrderStatus, OrderType

_JSON_CHARS = 16_384
_TIME_CHARS = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HIGHEST_VERSION = 2**63 - 1
_HIGHEST_MS = 253_402_300_799_999  # the end of the year 9999

_WHOLE = re.compile(r"[0-9]{1,19}", re.ASCII)
_ENTRY_ID = re.compile(r"[A-Za-z0-9_.:-]{1,160}", re.ASCII)
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)

#: Numbers that an order always has.
_NEEDED_NUMBERS = ("order_price", "order_quantity")

#: Kinds of bookings that are of no order; their `order_id` in the ledger is empty.
_WITHOUT_ORDER = (LedgerKind.NEGATIVE_BALANCE_PROTECTION,)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Rows of one change: of the order as it is then, if it is of one, and of the amount that was booked, if any."""

    account: Account
    order: Row | None
    booking: Row | None


def parse_history(fields: Mapping[str, str]) -> HistoryEntry:
    """The rows of a stream entry (docs/orders.md).

    Raises
    ------
    InvalidId, Refused
        `invalid_user_type`, `invalid_account_id`, `invalid_order_id`, `invalid_symbol`, `invalid_version`,
        `invalid_ts`, `invalid_order`, `invalid_entry`, `invalid_entry_id`, `invalid_kind`, `history_contradicts`, or
        `invalid_` and the name of the order's or the booking's field.
    """
    account = identifiers.account(_text(fields, "user_type"), _text(fields, "user_id"))
    booking = _booking(_json(fields, "entry")) if fields.get("entry") else None
    is_of_order = booking is None or booking["kind"] not in _WITHOUT_ORDER
    order_id = identifiers.check_order_id(_text(fields, "order_id")) if is_of_order else ""
    written = _EPOCH + timedelta(milliseconds=_whole(fields, "ts", _HIGHEST_MS))
    said = {"order_id": order_id, "user_type": account.type.value, "user_id": account.id}
    booking = None if booking is None else {**said, **booking, "created_at": written}
    if not is_of_order:
        if fields.get("order_id") or fields.get("order"):
            raise Refused("the entry names an order that it cannot be about", code="history_contradicts")
        return HistoryEntry(account, None, booking)
    order = _json(fields, "order")
    for name, value in said.items():
        if order.get(name, value) != value:
            raise Refused(f"{name} of the order is another than that of the entry", code="history_contradicts")
    row: Row = {
        "order_id": order_id,
        "order_user_id": account.id,
        "symbol": identifiers.check_symbol(_text(order, "symbol")),
        "order_type": _word(OrderType, order, "order_type"),
        "order_status": _word(OrderStatus, order, "order_status"),
        **{name: _number(order, name, needed=name in _NEEDED_NUMBERS) for name in ORDER_NUMBERS},
        "created_at": _time(order, "created_at"),
        "updated_at": written,
        "version": _whole(fields, "version", _HIGHEST_VERSION),
    }
    return HistoryEntry(account, row, booking)


def _booking(entry: Mapping[str, Any]) -> Row:
    """A row of the ledger, but for whose it is and when."""
    found: Row = {"entry_id": _text(entry, "entry_id"), "kind": _text(entry, "kind")}
    for name, pattern in (("entry_id", _ENTRY_ID), ("kind", _KIND)):
        if pattern.fullmatch(found[name]) is None:
            raise Refused(f"not a valid {name}: {found[name][:40]!a}", code=f"invalid_{name}")
    for name, needed in (
        ("amount_usd", True),
        ("balance_usd", True),
        ("order_quantity", False),
        ("close_price", False),
    ):
        found[name] = _number(entry, name, needed=needed)
    return found


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A text, empty if it is absent or something else: every grammar refuses that."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _json(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    text = _text(fields, name)
    try:
        found = json.loads(text) if len(text) <= _JSON_CHARS else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(f"{name} is not JSON of fields: {text[:40]!a}", code=f"invalid_{name}")
    return found


def _whole(fields: Mapping[str, Any], name: str, highest: int) -> int:
    text = _text(fields, name)
    if _WHOLE.fullmatch(text) is None or int(text) > highest:
        raise Refused(f"{name} must be a whole number, not {text[:40]!a}", code=f"invalid_{name}")
    return int(text)


def _number(fields: Mapping[str, Any], name: str, *, needed: bool) -> Decimal | None:
    """A plain decimal; `None`, which is not zero, if it is absent, null or empty and may be."""
    value = fields.get(name)
    if not needed and value in (None, ""):
        return None
    found = parse_decimal(value) if isinstance(value, str) else None
    if found is None:
        raise Refused(f"{name} must be the text of a plain decimal, not {value!a:.40}", code=f"invalid_{name}")
    return found


def _word(words: type[StrEnum], fields: Mapping[str, Any], name: str) -> str:
    text = _text(fields, name)
    if text not in list(words):
        raise Refused(f"{name} must be one of {', '.join(words)}, not {text[:40]!a}", code=f"invalid_{name}")
    return text


def _time(fields: Mapping[str, Any], name: str) -> datetime | None:
    """ISO 8601 (without a zone: UTC) or epoch ms; what services of a broker's own write otherwise is not known."""
    text = _text(fields, name)
    if len(text) > _TIME_CHARS:
        raise Refused(f"{name} is too long: {text[:40]!a}", code=f"invalid_{name}")
    try:
        if _WHOLE.fullmatch(text) is not None and len(text) > len("20260105"):
            return _EPOCH + timedelta(milliseconds=int(text))
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
