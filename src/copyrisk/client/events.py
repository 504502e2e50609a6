"""What a stream tells, as dataclasses. Amounts are USD; `None` is not known, never zero."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from copyrisk.client.failures import BadAnswer
from copyrisk.client.models import Order
from copyrisk.client.risk import RiskSummary
from copyrisk.client.shapes import parse_json, read


@dataclass(frozen=True, slots=True)
class Begun:
    """The stream is connected, for the first time or again; `accounts` is `None` for all that the caller may see."""

    topics: tuple[str, ...]
    accounts: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Nothing is told until the next `Begun`: portfolios and summaries that were told are not those of now any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Something was left out; `dropped` says of each topic how much (`None`: not known), after `from_id`."""

    dropped: Mapping[str, int | None]
    from_id: str


@dataclass(frozen=True, slots=True)
class Status:
    """Whether portfolios are those of now: `live`; `stale`: nobody values accounts; `unavailable`: nobody can tell."""

    state: str
    tick_ms: int | None
    tick_age_ms: int | None
    now_ms: int


@dataclass(frozen=True, slots=True)
class PortfolioNow:
    """An account's figures; all are `None` unless `state` is `known`."""

    account: str
    state: str
    equity_usd: Decimal | None
    balance_usd: Decimal | None
    free_margin_usd: Decimal | None
    used_margin_usd: Decimal | None
    used_margin_executed_usd: Decimal | None
    used_margin_all_usd: Decimal | None
    margin_level_pct: Decimal | None
    open_pnl_usd: Decimal | None
    calc_status: str | None
    degraded_fields: tuple[str, ...]
    ts_ms: int | None
    valued_ts_ms: int | None
    as_of_ms: int | None


@dataclass(frozen=True, slots=True)
class Happened:
    """An entry of the audit trail, under the topic that was followed: a breach, a liquidation, a replication."""

    topic: str
    seq: int
    ts_ms: int
    kind: str
    account: str | None
    cause: str
    reason: str
    said: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Copy:
    """What became of a copy; the order's fields as far as they are known."""

    account: str
    event_id: str
    event: str
    type: str
    order_id: str
    code: str
    symbol: str | None
    order_type: str | None
    order_status: str | None
    order_quantity: Decimal | None
    order_price: Decimal | None
    master_order_id: str | None
    ts_ms: int


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies that were made or changed one after the other."""

    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """The answer to a command, or a change of an order; at least once, and again with the same `event_id`."""

    event_id: str
    event: str
    type: str
    account: str
    order_id: str | None
    idempotency_key: str | None
    code: str
    message: str
    version: int | None
    order: Order | None
    amount_usd: Decimal | None
    balance_usd: Decimal | None
    ts_ms: int


@dataclass(frozen=True, slots=True)
class SummaryNow:
    """The desk's summary; `None`: there is none now, and the one before does not hold any more."""

    summary: RiskSummary | None


@dataclass(frozen=True, slots=True)
class _End:
    """Why the server ends the stream."""

    code: str


Event = Begun | Disconnected | Gap | Status | PortfolioNow | Happened | Copies | OrderEvent | SummaryNow


def _trail(topic: str) -> Callable[[Any], Event]:
    def reading(data: Any) -> Event:
        if isinstance(data, dict) and "copies" in data:
            return read(Copies, data, topic)
        return read(Happened, {**data, "topic": topic} if isinstance(data, dict) else data, topic)

    return reading


_READERS: Mapping[str, Callable[[Any], Event | _End]] = {
    "begin": lambda data: read(Begun, data, "begin"),
    "gap": lambda data: read(Gap, data, "gap"),
    "status": lambda data: read(Status, data, "status"),
    "portfolios": lambda data: read(PortfolioNow, data, "portfolios"),
    "orders": lambda data: read(OrderEvent, data, "orders"),
    "summary": lambda data: SummaryNow(None if data is None else read(RiskSummary, data, "summary")),
    "end": lambda data: read(_End, data, "end"),
    **{topic: _trail(topic) for topic in ("breaches", "liquidations", "replications")},
}


class EventParser:
    """From pieces of a stream of server-sent events to events.

    Attributes
    ----------
    last_event_id : str
        Of the last event that was read and had one.
    ended : str
        Code of why the server ended it; empty: it did not.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id, self.ended = last_event_id, ""
        self._rest = b""
        self._fields: dict[str, str] = {}

    def restart(self) -> None:
        """Begin with another connection; half an event of the one before is none."""
        self._rest, self._fields, self.ended = b"", {}, ""

    def take(self, piece: bytes) -> list[tuple[str, Event]]:
        """The events that are whole now, each with the `last_event_id` after it.

        Raises
        ------
        BadAnswer
            That is no stream of events, or one that cannot be read: it is not left out in silence.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _LINE_BYTES:
            raise BadAnswer("a line of the stream has no end")
        found: list[tuple[str, Event]] = []
        for line in lines:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            if text:
                name, _, value = text.partition(":")
                self._fields[name] = value.removeprefix(" ")
                continue
            said, self._fields = self._fields, {}
            self.last_event_id = said.get("id", self.last_event_id)
            if "data" not in said or said.get("event", "") not in _READERS:
                continue  # a sign of life; or what only newer readers know
            event = _READERS[said["event"]](parse_json(said["data"].encode()))
            if isinstance(event, _End):
                self.ended = event.code
            else:
                found.append((self.last_event_id, event))
        return found


#: No event is as long.
_LINE_BYTES = 64 << 20
