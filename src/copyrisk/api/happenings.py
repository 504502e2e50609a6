"""What entries of the audit trail and of the events' stream become for those who follow them. Pure: no store, no clock.

An entry becomes happenings, each of one topic, with the accounts that it is about. Who does not see all of these
accounts is told what concerns his own, and nothing else.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from copyrisk import identifiers
from copyrisk.api.answers import ApiError
from copyrisk.audit import AuditKind
from copyrisk.errors import CopyriskError
from copyrisk.identifiers import Account
from copyrisk.terms import AccountType

#: Of a list or table that an entry says, so many items are sent; `cut` says how many there were.
ITEMS = 100
_PARTS = 1_000
_ID_DIGITS = 20
_COPY_FIELDS = ("symbol", "order_type", "order_status", "order_quantity", "order_price", "master_order_id")
_BREACH = "level_at_or_below_critical"
_OPERATOR = "operator:"
_OMITTED = ("quotes",)  # of thousands of accounts at once; the trail has them

Sees = Callable[[Account], bool]


class Topic(StrEnum):
    """What can be followed."""

    PORTFOLIOS = "portfolios"
    BREACHES = "breaches"
    LIQUIDATIONS = "liquidations"
    REPLICATIONS = "replications"
    ORDERS = "orders"
    SUMMARY = "summary"


#: What comes from the audit trail, and what from the events.
TRAIL_TOPICS = frozenset({Topic.BREACHES, Topic.LIQUIDATIONS, Topic.REPLICATIONS})
EVENT_TOPICS = frozenset({Topic.ORDERS, Topic.REPLICATIONS})


class Place(NamedTuple):
    """Where an entry stands in its stream; of the trail, `first` is its number."""

    first: int
    second: int = 0

    def __str__(self) -> str:
        return f"{self.first}-{self.second}"


START = Place(0)


def parse_place(entry_id: str) -> Place:
    """The place of a stream's id, as the server writes it."""
    first, _, second = entry_id.partition("-")
    return Place(int(first), int(second or 0))


class Position(NamedTuple):
    """Up to where somebody was told: the last entry of the trail, and the last event."""

    trail: Place
    events: Place

    def __str__(self) -> str:
        return f"{self.trail.first}.{self.events}"


def parse_position(text: str) -> Position:
    """The position of `TRAIL.MS-N`.

    Raises
    ------
    ApiError
        `invalid_last_event_id`.
    """
    trail, _, event = text.partition(".")
    first, _, second = event.partition("-")
    digits = (trail, first, second)
    if not all(word.isascii() and word.isdecimal() and len(word) <= _ID_DIGITS for word in digits):
        raise ApiError("Last-Event-ID is no id of this stream", code="invalid_last_event_id")
    found = Position(Place(int(trail)), Place(int(first), int(second)))
    if max(found.trail.first, *found.events) >= 1 << 64:  # the server would not take it
        raise ApiError("Last-Event-ID is no id of this stream", code="invalid_last_event_id")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Happening:
    """Something that happened.

    Attributes
    ----------
    account : Account or None
        Whom it is about; `None`: nobody, or all.
    others : tuple of Account
        Whom it is about as well.
    data : mapping
        What is said of it to who sees everything.
    is_copy : bool
        Whether it is sent together with others of its kind.
    """

    topic: Topic
    account: Account | None
    data: Mapping[str, Any]
    others: tuple[Account, ...] = ()
    is_copy: bool = False

    def is_for(self, sees: Sees, *, sees_all: bool) -> bool:
        """Whether somebody who sees these accounts is to be told."""
        if sees_all or (self.account is not None and sees(self.account)):
            return True
        return any(sees(other) for other in self.others)

    def told(self, sees: Sees, *, sees_all: bool) -> Mapping[str, Any]:
        """What is said of it to somebody for whom it is."""
        if "said" not in self.data:
            return self.data
        said: dict[str, Any] = dict(self.data["said"])
        data = dict(self.data)
        if not sees_all:
            if self.account is None or not sees(self.account):
                said, data["account"] = {"accounts": said["accounts"]} if self.others else {}, None
            said = without_others(said, sees)
        return {**data, "said": _cut(said)}


def without_others(said: Mapping[str, Any], sees: Sees) -> dict[str, Any]:
    """What an entry of the trail says, but for the names of accounts that are not seen."""
    left = dict(said)
    if isinstance(left.get("accounts"), list):
        left["accounts"] = [name for name in left["accounts"] if _sees_name(sees, str(name))]
    if isinstance(left.get("failed_followers"), dict):
        failed = left["failed_followers"].items()
        left["failed_followers"] = {
            name: code for name, code in failed if _sees_name(sees, f"{AccountType.FOLLOWER}:{name}")
        }
    return left


def _sees_name(sees: Sees, name: str) -> bool:
    try:
        return sees(identifiers.parse_account(name))
    except CopyriskError:
        return False


def _cut(said: dict[str, Any]) -> dict[str, Any]:
    """The same with the beginnings of long lists and tables."""
    cut = {}
    for name, value in said.items():
        if isinstance(value, list | dict) and len(value) > ITEMS:
            cut[name] = len(value)
            said[name] = value[:ITEMS] if isinstance(value, list) else dict(list(value.items())[:ITEMS])
    return {**said, "cut": cut} if cut else said


_encoded = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def written(data: Any) -> bytes:
    """JSON, in one line."""
    return _encoded(data).encode()


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _read(text: str) -> Any:
    return json.loads(text, parse_constant=_no_number)


# ---- the audit trail


class TrailReader:
    """Lines of the trail, one after the other; what was said in parts is put together."""

    def __init__(self) -> None:
        self._parts: list[Mapping[str, Any]] = []

    @property
    def is_between(self) -> bool:
        """Whether no entry is waiting for further parts."""
        return not self._parts

    def forget(self) -> None:
        """What comes next does not go on from what came last."""
        self._parts = []

    def take(self, line: str) -> list[Happening]:
        """What an entry says, one happening a topic; nothing of what is no entry, or not yet whole."""
        try:
            entry = _read(line)
            said, number, count = entry["said"], entry["said"].get("part"), entry["said"].get("of")
            if isinstance(number, int) and isinstance(count, int) and "text" in said:
                return self._part(entry, number, count)
            self._parts = []
            return _from_entry(entry, said)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, CopyriskError):
            self._parts = []
            return []

    def _part(self, entry: Mapping[str, Any], number: int, count: int) -> list[Happening]:
        if number == 1:
            self._parts = []
        if number != len(self._parts) + 1 or count > _PARTS:
            self._parts = []
            return []
        self._parts.append(entry)
        if number < count:
            return []
        whole = "".join(part["said"]["text"] for part in self._parts)
        self._parts = []
        return _from_entry(entry, _read(whole))


def _from_entry(entry: Mapping[str, Any], said: Mapping[str, Any]) -> list[Happening]:
    topics = _topics_of(entry)
    if not topics:
        return []
    account = identifiers.parse_account(entry["account"]) if entry["account"] else None
    others = _accounts(said.get("accounts"))
    data = {
        "seq": int(entry["seq"]),
        "ts_ms": int(entry["ts_ms"]),
        "kind": str(entry["kind"]),
        "account": None if account is None else str(account),
        "cause": str(entry["cause"]),
        "reason": str(entry["reason"]),
        "said": {name: value for name, value in said.items() if name not in _OMITTED},
    }
    return [Happening(topic, account, data, others) for topic in topics]


def _topics_of(entry: Mapping[str, Any]) -> Sequence[Topic]:
    kind, reason = entry["kind"], entry["reason"]
    if kind == AuditKind.LIQUIDATION:
        return (Topic.BREACHES, Topic.LIQUIDATIONS) if reason == _BREACH else (Topic.LIQUIDATIONS,)
    if kind in (AuditKind.WARNING, AuditKind.BRAKE):
        return (Topic.BREACHES,)
    if kind in (AuditKind.CASCADE, AuditKind.PROTECTION):
        return (Topic.LIQUIDATIONS,)
    if kind == AuditKind.KILL and not str(entry["cause"]).startswith(_OPERATOR):  # what is closed for it
        return (Topic.LIQUIDATIONS,)
    return (Topic.REPLICATIONS,) if kind == AuditKind.REPLICATION else ()


def _accounts(listed: Any) -> tuple[Account, ...]:
    found = []
    for name in listed if isinstance(listed, list) else ():
        try:
            found.append(identifiers.parse_account(name))
        except (CopyriskError, TypeError, AttributeError):
            continue
    return tuple(found)


# ---- events


def from_event(fields: Mapping[str, str], wanted: frozenset[Topic]) -> list[Happening]:
    """What an event says, as far as somebody wants it; nothing of what is no event of an account."""
    try:
        account = identifiers.account(fields["user_type"], fields["user_id"])
        order = _read(fields["order"]) if fields.get("order") else None
        ts_ms, version = int(fields["ts"]), fields.get("version")
        found = []
        if Topic.ORDERS in wanted:
            data = {
                "event_id": fields["event_id"],
                "event": fields["event"],
                "type": fields["type"],
                "account": str(account),
                "order_id": fields.get("order_id") or None,
                "idempotency_key": fields.get("idempotency_key") or None,
                "code": fields["code"],
                "message": fields.get("message", ""),
                "version": None if version is None else int(version),
                "order": order,
                "amount_usd": fields.get("amount_usd"),
                "balance_usd": fields.get("balance_usd"),
                "ts_ms": ts_ms,
            }
            found.append(Happening(Topic.ORDERS, account, data))
        if Topic.REPLICATIONS in wanted and isinstance(order, dict) and order.get("master_order_id"):
            named = {name: fields.get(name, "") for name in ("event_id", "event", "type", "order_id", "code")}
            copy = {"account": str(account), **named, **{name: order.get(name) for name in _COPY_FIELDS}}
            found.append(Happening(Topic.REPLICATIONS, account, {**copy, "ts_ms": ts_ms}, is_copy=True))
    except (ValueError, LookupError, TypeError, RecursionError, CopyriskError):
        return []
    return found
