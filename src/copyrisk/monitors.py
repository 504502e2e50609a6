"""The monitors: pending orders, stop losses and take profits against every change of a quote.

All triggers lie in ladders, by price. The server reports which quotes and triggers change; what a quote reaches becomes
a command on the command stream. The worker that takes it decides on what it then reads: a trigger that comes twice, or
after its order has gone on, finds nothing to do. A trigger that stays although it fired is set again after a while. So
each fires once, whatever dies in between, and more than one monitor does no harm.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis
import structlog

from copyrisk import crash, fields, identifiers, keys, vitals
from copyrisk._core import RowCode, judge_quotes
from copyrisk._index import TextIndex
from copyrisk._triggers import Ladders, TriggerKind
from copyrisk.commands import CommandType, Trigger
from copyrisk.decimals import parse_decimal
from copyrisk.errors import CopyriskError, StoreError
from copyrisk.hours import MarketHours
from copyrisk.identifiers import Account
from copyrisk.market import InstrumentKey, Market
from copyrisk.rules import ValuationRules
from copyrisk.store.effects import add_request
from copyrisk.store.functions import text, texts
from copyrisk.store.kill_switch import KillSwitch
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.texts import TextColumns
from copyrisk.store.watch import Watch
from copyrisk.terms import CalcStatus, Flow, OrderType

log = structlog.get_logger(__name__)

_PENDING = {
    OrderType.BUY_STOP: TriggerKind.BUY_STOP,
    OrderType.SELL_STOP: TriggerKind.SELL_STOP,
    OrderType.BUY_LIMIT: TriggerKind.BUY_LIMIT,
    OrderType.SELL_LIMIT: TriggerKind.SELL_LIMIT,
}
_STOP_LOSSES = (TriggerKind.STOP_LOSS_OF_SELL, TriggerKind.STOP_LOSS_OF_BUY)
_TAKE_PROFITS = (TriggerKind.TAKE_PROFIT_OF_SELL, TriggerKind.TAKE_PROFIT_OF_BUY)
_TRIGGERS, _MARKET = keys.TRIGGERS_PREFIX.encode(), keys.MARKET_PREFIX.encode()
_PART = 1_000
_ORDER_TEXT = 64


@dataclass(frozen=True, slots=True)
class MonitorOptions:
    """How monitors go about it."""

    wait_ms: int = 200
    retry_ms: int = 2_000
    margin_check_ms: int = 1_000
    portfolio_max_age_ms: int = 5_000


@dataclass(frozen=True, slots=True)
class Watched:
    """An order with something that waits for a price; prices are the texts that stand in its hash."""

    account: Account
    symbol: str
    order_type: OrderType
    flow: str
    margin_usd: float
    is_pending: bool
    prices: Mapping[Trigger, str]


class Monitor:
    """Watches all triggers of the store, and counts in `vitals` what fires."""

    def __init__(self, client: redis.Redis, rules: ValuationRules, hours: MarketHours, options: MonitorOptions) -> None:
        self._pipe, self._hours, self._options = Pipe(client), hours, options
        self.vitals, self._switch = vitals.Vitals(), KillSwitch(self._pipe)
        self._watch = Watch(client, (keys.TRIGGERS_PREFIX, keys.MARKET_PREFIX))
        self._market = Market(rules)
        self._columns = TextColumns(self._market.names.index)
        self._reset()

    def _reset(self) -> None:
        self._ladders, self._ids = Ladders(), TextIndex(_ORDER_TEXT)
        self._watched: dict[int, Watched] = {}
        self._again: dict[int, float] = {}  # rows that fired, and when they are to be looked at again
        self._margins_s = 0.0

    @property
    def count(self) -> int:
        """Triggers that are watched."""
        return len(self._ladders)

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set; a store that fails is waited for, then everything is read anew."""
        while not stop.is_set():
            try:
                self.step(self._options.wait_ms / 1000.0)
                self.vitals.step_done()
            except StoreError as failure:
                log.error("monitors_wait", code=failure.code, reason=str(failure))
                self.vitals.step_failed(failure.code)
                self._watch.close()
                stop.wait(0.5)

    def step(self, timeout_s: float) -> int:
        """Take what changed, waiting so long for it, and send commands for what fires; returns how many."""
        changed = self._watch.changed(timeout_s)
        if changed is None:
            self._reset()
            ids = self._find_all()
            symbols = set(self._market.symbols)
        else:
            ids = {key[len(_TRIGGERS) :] for key in changed if key.startswith(_TRIGGERS)}
            symbols = {text(key[len(_MARKET) :]) for key in changed if key.startswith(_MARKET)}
        symbols |= self._read_triggers(ids | self._due())
        commands = self._fire(symbols & self._market.quote_row.keys())
        now_s = time.monotonic()
        if now_s - self._margins_s > self._options.margin_check_ms / 1000.0:
            self._margins_s = now_s
            commands += self._uncovered()
        crash.reach("monitor.fired")
        self._pipe.ask(*[add_request(keys.COMMANDS, command) for command in commands])
        crash.reach("monitor.sent")
        self.vitals.set(vitals.TRIGGERS, self.count)
        for command in commands:
            self.vitals.count(vitals.FIRED, command["trigger"])
        return len(commands)

    # ---- triggers

    def _find_all(self) -> set[bytes]:
        found: set[bytes] = set()
        cursor: bytes | str = "0"
        while True:
            pattern = keys.order_triggers("*")
            (reply,) = self._pipe.ask(pack("SCAN", cursor, "MATCH", pattern, "COUNT", 1_000, "TYPE", "hash"))
            cursor = reply[0]
            found.update(key[len(_TRIGGERS) :] for key in reply[1])
            if cursor == b"0":
                return found

    def _due(self) -> set[bytes]:
        now_s = time.monotonic()
        return {self._ids.text(row) for row, due_s in self._again.items() if due_s <= now_s and row in self._watched}

    def _read_triggers(self, ids: Iterable[bytes]) -> set[str]:
        """Read the triggers of these orders anew; returns their symbols."""
        every = sorted(ids)
        symbols: set[str] = set()
        for start in range(0, len(every), _PART):
            part = every[start : start + _PART]
            replies = self._pipe.exchange([pack("HGETALL", _TRIGGERS + order_id) for order_id in part])
            for order_id, reply in zip(part, replies, strict=True):
                watched = None if isinstance(reply, Exception) else _watched(order_id, reply)
                self._set(order_id, watched)
                if watched is not None:
                    symbols.add(watched.symbol)
        self._ensure_symbols(symbols)
        return symbols

    def _set(self, order_id: bytes, watched: Watched | None) -> None:
        row = self._ids.row_of(order_id)
        if row >= 0:
            self._ladders.clear(row)
            self._again.pop(row, None)
            self._watched.pop(row, None)
        if watched is None:
            if row >= 0:
                self._ids.drop(row)
            return
        row = row if row >= 0 else self._ids.put(order_id)
        if row < 0:
            log.error("triggers_not_watched", order=text(order_id)[:_ORDER_TEXT], reason="its id is too long")
            return
        self._watched[row] = watched
        symbol = self._market.ensure_quote(watched.symbol)
        for trigger, price in watched.prices.items():
            self._ladders.set(row, symbol, _kind(trigger, watched.order_type), float(price))

    # ---- quotes

    def _ensure_symbols(self, symbols: Iterable[str]) -> None:
        """Whose hours a symbol follows: that of its type in the `Standard` group."""
        new = [symbol for symbol in symbols if self._market.quotes[self._market.ensure_quote(symbol)]["ts_ms"] < 0]
        asked = [pack("HGET", keys.group(keys.STANDARD_GROUP, symbol), "type") for symbol in new]
        for symbol, reply in zip(new, self._pipe.exchange(asked), strict=True):
            kind = None if isinstance(reply, Exception) else parse_decimal(text(reply))
            is_known = kind is not None and kind in fields.INSTRUMENT_TYPES
            self._market.set_type(InstrumentKey(keys.STANDARD_GROUP, symbol), int(kind) if kind and is_known else 0)

    def _fire(self, symbols: Iterable[str]) -> list[dict[str, str]]:
        """Read these quotes; the commands for what they reach."""
        names = sorted(symbols)
        if not names:
            return []
        wanted = fields.QUOTE_COLUMNS.fields
        replies = self._pipe.exchange([pack("HMGET", keys.market(name), *wanted) for name in names])
        blank = [None] * len(wanted)
        hashes = [blank if isinstance(reply, Exception) else reply for reply in replies]
        read = fields.judge_quotes_read(self._columns.rows(fields.QUOTE_COLUMNS, hashes))
        rows = np.array([self._market.quote_row[name] for name in names], np.int32)
        for i, row in enumerate(rows.tolist()):
            self._market.set_quotes(row, read[i : i + 1])
        now_ms = time.time_ns() // 1_000_000
        judge_quotes(self._market.quotes, now_ms, self._hours.open_by_type(now_ms))
        quotes: Any = self._market.quotes[rows]
        usable = quotes["code"] == RowCode.OK
        chosen = quotes[usable]
        orders, kinds, _ = self._ladders.fire(
            rows[usable], np.ascontiguousarray(chosen["bid"]), np.ascontiguousarray(chosen["ask"])
        )
        quote_of = {int(row): (str(quote["bid"]), str(quote["ask"])) for row, quote in zip(rows, quotes, strict=True)}
        fired = {row: _trigger(TriggerKind(kind)) for row, kind in zip(orders.tolist(), kinds.tolist(), strict=True)}
        held = self._held_back([row for row, trigger in fired.items() if trigger is Trigger.PENDING])
        return [self._command(row, trigger, quote_of) for row, trigger in fired.items() if row not in held]

    def _held_back(self, rows: list[int]) -> set[int]:
        """Which of some pending orders a kill forbids to open now; they are looked at again like any that fired."""
        here = [(row, one) for row in rows if (one := self._watched[row]).flow != Flow.PROVIDER]
        held = self._switch.held_back({row: (one.account, one.symbol, self._ids.text(row)) for row, one in here})
        self._again |= dict.fromkeys(held, time.monotonic() + self._options.retry_ms / 1000.0)
        return held

    def _command(self, row: int, trigger: Trigger, quote_of: Mapping[int, tuple[str, str]]) -> dict[str, str]:
        watched = self._watched[row]
        if trigger is not Trigger.PENDING or watched.flow != Flow.PROVIDER:  # that one rests until it is filled there
            self._again[row] = time.monotonic() + self._options.retry_ms / 1000.0
        bid, ask = quote_of.get(self._market.quote_row[watched.symbol], ("", ""))
        return {
            "type": CommandType.TRIGGER.value,
            "user_type": watched.account.type.value,
            "user_id": watched.account.id,
            "order_id": self._ids.text(row).decode(),
            "trigger": trigger.value,
            "trigger_price": watched.prices.get(trigger, ""),
            "bid": bid,
            "ask": ask,
        }

    # ---- margin of pending orders that lie with the provider

    def _uncovered(self) -> list[dict[str, str]]:
        """Commands for pending orders with the provider that their account's free margin covers no longer.

        By the portfolio that the daemon wrote last, if it is fresh; the worker decides on exact figures.
        """
        rows = [
            row
            for row, watched in self._watched.items()
            if watched.is_pending and watched.flow == Flow.PROVIDER and row not in self._again
        ]
        if not rows:
            return []
        wanted = (fields.CALC_STATUS, fields.EQUITY, fields.USED_MARGIN_ALL)
        (ts, *replies) = self._pipe.exchange(
            [pack("HGET", keys.TICK, fields.TS)]
            + [pack("HMGET", keys.portfolio(self._watched[row].account), *wanted) for row in rows]
        )
        ticked = None if isinstance(ts, Exception) else parse_decimal(text(ts))
        if ticked is None or time.time_ns() // 1_000_000 - int(ticked) > self._options.portfolio_max_age_ms:
            return []
        found = []
        for row, reply in zip(rows, replies, strict=True):
            if isinstance(reply, Exception):
                continue
            status, equity, used = (text(value) for value in reply)
            has, uses = parse_decimal(equity), parse_decimal(used)
            if status != CalcStatus.OK or has is None or uses is None:
                continue
            if float(has - uses) < self._watched[row].margin_usd:
                found.append(self._command(row, Trigger.MARGIN, {}))
        return found


def _watched(order_id: bytes, reply: Any) -> Watched | None:
    """What a trigger hash says; `None` if nothing waits there, or what stands there makes no sense."""
    said = texts([word for item in reply.items() for word in item] if isinstance(reply, dict) else reply)
    if "symbol" not in said:
        return None
    try:
        identifiers.check_order_id(text(order_id))
        account = identifiers.account(said.get("user_type", ""), said.get("user_id", ""))
        order_type, symbol = OrderType(said.get("order_type", "")), identifiers.check_symbol(said["symbol"])
        prices = {
            trigger: said[name]
            for trigger, name in (
                (Trigger.PENDING, "order_price_compare"),
                (Trigger.STOP_LOSS, "stop_loss"),
                (Trigger.TAKE_PROFIT, "take_profit"),
            )
            if said.get(name)
        }
        if any((parse_decimal(price) or 0) <= 0 for price in prices.values()):
            raise ValueError("a price that is none")
        if Trigger.PENDING in prices and order_type not in _PENDING:
            raise ValueError(f"a pending price of a {order_type}")
    except (CopyriskError, ValueError) as fault:
        log.error("triggers_not_watched", order=text(order_id)[:_ORDER_TEXT], reason=str(fault))
        return None
    margin = parse_decimal(said.get("margin"))
    flow, is_pending = said.get("execution", ""), Trigger.PENDING in prices
    return Watched(account, symbol, order_type, flow, float(margin or 0), is_pending, prices)


def _kind(trigger: Trigger, order_type: OrderType) -> TriggerKind:
    if trigger is Trigger.PENDING:
        return _PENDING[order_type]
    return (_STOP_LOSSES if trigger is Trigger.STOP_LOSS else _TAKE_PROFITS)[order_type.is_buy]


def _trigger(kind: TriggerKind) -> Trigger:
    if kind in _STOP_LOSSES:
        return Trigger.STOP_LOSS
    return Trigger.TAKE_PROFIT if kind in _TAKE_PROFITS else Trigger.PENDING
