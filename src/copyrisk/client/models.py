"""What the API knows of accounts, orders, cascades and audit. Amounts are USD; `None` is not known, never zero."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from copyrisk.client.failures import BadAnswer
from copyrisk.decimals import parse_decimal

# ---- orders


@dataclass(frozen=True, slots=True)
class Order:
    """An order, as far as its record can be read.

    Attributes
    ----------
    fields : mapping of str to str
        All that its record says, as text.
    is_readable : bool
        False: there is nothing but its id.
    """

    order_id: str
    symbol: str | None
    order_type: str | None
    order_status: str | None
    execution_status: str | None
    execution: str | None
    user_type: str | None
    user_id: str | None
    created_at: str | None
    master_order_id: str | None
    reason: str | None
    order_price: Decimal | None
    order_quantity: Decimal | None
    opened_quantity: Decimal | None
    stop_loss: Decimal | None
    take_profit: Decimal | None
    close_price: Decimal | None
    margin: Decimal | None
    contract_value: Decimal | None
    commission: Decimal | None
    swap: Decimal | None
    net_profit: Decimal | None
    fields: Mapping[str, str]
    is_readable: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Order":
        """Of a record; a number that is none is `None`. Raises `BadAnswer` without an id."""
        said = {name: value for name, value in data.items() if isinstance(value, str)}
        if "order_id" not in said:
            raise BadAnswer("an order without an id")
        texts = {name: said.get(name) for name in _ORDER_TEXTS if name != "order_id"}
        numbers = {name: parse_decimal(said.get(name)) for name in _ORDER_NUMBERS}
        is_readable = data.get("unreadable") is not True
        return cls(order_id=said["order_id"], **texts, **numbers, fields=said, is_readable=is_readable)  # type: ignore[arg-type]


_ORDER_NAMES = [one.name for one in fields(Order)]
_ORDER_TEXTS = _ORDER_NAMES[: _ORDER_NAMES.index("order_price")]
_ORDER_NUMBERS = _ORDER_NAMES[len(_ORDER_TEXTS) : _ORDER_NAMES.index("fields")]


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change has left, which is stored: the order after it, and the account's version."""

    order: Order
    order_id: str
    version: int
    event_id: str


@dataclass(frozen=True, slots=True)
class OrderPage:
    """Orders of an account that have not ended, by id; `next` is the `after` of the next page."""

    user_type: str
    user_id: str
    count: int
    orders: tuple[Order, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class OneOrder:
    """An order, as it is (`is_open`) or as it ended."""

    order_id: str
    is_open: bool
    order: Order

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "OneOrder":
        """Of an answer. Raises `BadAnswer`."""
        order_id, is_open, record = data.get("order_id"), data.get("is_open"), data.get("order")
        if not (isinstance(order_id, str) and isinstance(is_open, bool) and isinstance(record, dict)):
            raise BadAnswer("that is no order")
        return cls(order_id, is_open, Order.from_json({"order_id": order_id, **record}))


@dataclass(frozen=True, slots=True)
class KeyAnswer:
    """What was answered under an idempotency key.

    Attributes
    ----------
    outcome : str
        `done` or `refused`.
    order : Order or None
        After a change of an order.
    data : mapping or None
        After a change of copying.
    """

    outcome: str
    type: str
    idempotency_key: str
    order_id: str | None
    code: str
    message: str
    version: int | None
    event_id: str
    order: Order | None
    data: Mapping[str, Any] | None

    @property
    def is_done(self) -> bool:
        """Whether the change was made; if not, it was refused for good."""
        return self.outcome == "done"


# ---- accounts


@dataclass(frozen=True, slots=True)
class Figures:
    """USD; the margin level in percent."""

    equity: Decimal | None
    balance: Decimal | None
    free_margin: Decimal | None
    used_margin: Decimal | None
    used_margin_executed: Decimal | None
    used_margin_all: Decimal | None
    margin_level: Decimal | None
    open_pnl: Decimal | None
    total_pl: Decimal | None


@dataclass(frozen=True, slots=True)
class Portfolio(Figures):
    """An account's figures now.

    Attributes
    ----------
    state : str
        `known`; `unknown` (`degraded_fields` says why); `absent`: it was not valued yet; `stale`: nobody values
        accounts now; `unavailable`: nobody can tell whether. Unless it is `known`, all figures are `None`.
    last_known : Figures or None
        Of `valued_ts`: to be shown as old, not to be acted on.
    """

    user_type: str
    user_id: str
    state: str
    calc_status: str | None
    degraded_fields: tuple[str, ...]
    ts: int | None
    valued_ts: int | None
    age_ms: int | None
    last_known: Figures | None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """What happened to an account, newest first; `next` is the `before` of the next page."""

    user_type: str
    user_id: str
    entries: tuple[Mapping[str, Any], ...]
    next: str | None


# ---- reports


@dataclass(frozen=True, slots=True)
class DecisionPage:
    """What was decided about the copies of a master's order, and what does not come to the same again."""

    order: Mapping[str, Any]
    followers: tuple[Mapping[str, Any], ...]
    differs: Mapping[str, str]
    next: str | None


@dataclass(frozen=True, slots=True)
class CascadeList:
    """Those that are running, and the last that have ended."""

    cascades: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class CascadePage:
    """A cascade, follower by follower; `next` is the `after` of the next page."""

    cascade: Mapping[str, Any]
    followers: tuple[Mapping[str, Any], ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class TrailEntry:
    """An entry of the audit trail; `said` is `None` if it says more than one answer holds."""

    seq: int
    ts_ms: int
    kind: str
    account: str
    cause: str
    reason: str
    said: Mapping[str, Any] | None
    writer: str
    hash: str


@dataclass(frozen=True, slots=True)
class TrailPage:
    """Entries, newest first; `next` is the `before` of the next page, which may hold none; `None`: that was all."""

    entries: tuple[TrailEntry, ...]
    next: int | None
    looked_at: int
    unreadable: int
