"""An order with all that is known of it: the contract's fields, and what copyrisk keeps beside them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from copyrisk.commands import Action
from copyrisk.decimals import ZERO, charge_text, decimal_text, money_text, parse_decimal
from copyrisk.errors import InvalidId, Refused
from copyrisk.identifiers import Account, check_order_id, check_symbol
from copyrisk.orders import FINISHED, HOLDING_LOTS, STATUSES, State, state_of
from copyrisk.terms import Flow, OrderType, SendingOrders

_REQUESTS_KEPT = 16

#: Fields of the order's hash that may be absent; the others are always written.
OPTIONAL_FIELDS = ("stop_loss", "take_profit", "master_order_id")


@dataclass(frozen=True, slots=True)
class Request:
    """What the provider was asked about an order, and what it has reported of it.

    `profit` is what the fills of a close made so far, in the profit currency; `price` the price of a `modify`, or the
    average one of all fills.
    """

    id: str
    action: str
    asked: Decimal = ZERO
    price: Decimal = ZERO
    sequence: int = 0
    filled: Decimal = ZERO
    profit: Decimal = ZERO
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """One order.

    Attributes
    ----------
    quantity : Decimal
        Lots: of a position those that are open, of any other order those asked for.
    flow : Flow or None
        Decided once, when the order was made; `None`: another service made it and did not say.
    asked, opened : Decimal
        Lots asked for; lots that were ever filled.
    margin_usd, whole_margin_usd : Decimal
        Of the lots that are open, and of all lots asked for, as of placing.
    commission_usd, swap_usd : Decimal
        Of the lots that are open.
    net_profit_usd, paid_commission_usd, paid_swap_usd : Decimal
        What closings have booked, and what of it was commission and swap.
    body : str
        Digest of the command that made it.
    attempts : int
        Requests made so far.
    made_version : int
        Of a copy, the account's version when it was made; else 0.
    """

    account: Account
    id: str
    symbol: str
    order_type: OrderType
    state: State
    flow: Flow | None
    price: Decimal
    quantity: Decimal
    created_at: str
    asked: Decimal
    opened: Decimal = ZERO
    margin_usd: Decimal = ZERO
    whole_margin_usd: Decimal = ZERO
    contract_value: Decimal = ZERO
    commission_usd: Decimal = ZERO
    swap_usd: Decimal = ZERO
    stop_loss: Decimal | None = None
    take_profit: Decimal | None = None
    master_order_id: str = ""
    net_profit_usd: Decimal = ZERO
    paid_commission_usd: Decimal = ZERO
    paid_swap_usd: Decimal = ZERO
    close_price: Decimal | None = None
    reason: str = ""
    body: str = ""
    attempts: int = 0
    made_version: int = 0
    requests: Mapping[str, Request] = field(default_factory=dict)

    @property
    def reserved_usd(self) -> Decimal:
        """Margin of lots that are still being filled; the valuation sees only those that are."""
        return self.whole_margin_usd - self.margin_usd if self.state is State.FILLING else ZERO

    def request_of(self, *actions: str) -> Request | None:
        """The latest request of one of these actions."""
        found = [request for request in self.requests.values() if request.action in actions]
        return found[-1] if found else None

    def with_request(self, request: Request) -> "Order":
        """The order with a new or changed request; of those that came to their end only the latest are kept."""
        requests = {**self.requests, request.id: request}
        kept = ("open", "place")
        done = [old.id for old in requests.values() if old.is_final and old.action not in kept and old.id != request.id]
        for old in done[:-_REQUESTS_KEPT]:
            del requests[old]
        return replace(self, requests=requests)


def order_fields(order: Order) -> dict[str, str]:
    """The fields of the order's hash (contract section 2), absent ones left out."""
    order_status, execution_status = STATUSES[order.state]
    found = {
        "order_id": order.id,
        "symbol": order.symbol,
        "order_type": order.order_type.value,
        "order_status": order_status.value,
        "execution_status": execution_status.value,
        "order_price": decimal_text(order.price),
        "order_quantity": decimal_text(order.opened if order.state is State.CLOSED else order.quantity),
        "margin": money_text(order.margin_usd if order.state in HOLDING_LOTS else order.whole_margin_usd),
        "contract_value": decimal_text(order.contract_value),
        "commission": charge_text(order.commission_usd),
        "swap": charge_text(order.swap_usd),
        "user_type": order.account.type.value,
        "user_id": order.account.id,
    }
    if order.flow is not None:
        found["execution"] = order.flow.value
    if order.created_at:
        found["created_at"] = order.created_at
    if order.stop_loss is not None:
        found["stop_loss"] = decimal_text(order.stop_loss)
    if order.take_profit is not None:
        found["take_profit"] = decimal_text(order.take_profit)
    if order.master_order_id:
        found["master_order_id"] = order.master_order_id
    return found


def result_fields(order: Order) -> dict[str, str]:
    """What is said of an order besides the fields of its hash, or instead: commission and swap of all its lots."""
    found = {
        "net_profit": money_text(order.net_profit_usd),
        "opened_quantity": decimal_text(order.opened),
        "commission": charge_text(order.commission_usd + order.paid_commission_usd),
        "swap": charge_text(order.swap_usd + order.paid_swap_usd),
    }
    if order.close_price is not None:
        found["close_price"] = decimal_text(order.close_price)
    if order.reason:
        found["reason"] = order.reason
    return found


def record_text(order: Order) -> str:
    """Our record of an order, as JSON."""
    return json.dumps(
        {
            "state": order.state.value,
            "asked": decimal_text(order.asked),
            "opened": decimal_text(order.opened),
            "whole_margin": money_text(order.whole_margin_usd),
            "net_profit": money_text(order.net_profit_usd),
            "paid_commission": charge_text(order.paid_commission_usd),
            "paid_swap": charge_text(order.paid_swap_usd),
            "close_price": None if order.close_price is None else decimal_text(order.close_price),
            "reason": order.reason,
            "body": order.body,
            "attempts": order.attempts,
            "requests": [_request_list(request) for request in order.requests.values()],
            # A finished order has no hash any more; a late report must still find out what it was.
            "last": order_fields(order) if order.state in FINISHED else None,
        }
        | ({"made": order.made_version} if order.made_version else {}),
        separators=(",", ":"),
    )


def _request_list(request: Request) -> list[Any]:
    numbers = (request.asked, request.price, request.filled, request.profit)
    return [request.id, request.action, request.sequence, request.is_final, *(str(number) for number in numbers)]


def _request(values: Any) -> Request:
    request_id, action, sequence, is_final, *texts = _typed(values, list)
    numbers = [Decimal(_typed(text, str)) for text in texts]  # results have more decimals than the grammar
    if action not in list(Action) or _typed(sequence, int) < 0 or not all(number.is_finite() for number in numbers):
        raise ValueError(f"no request: {str(values)[:40]}")
    asked, price, filled, profit = numbers
    checked_id = check_order_id(_typed(request_id, str))
    return Request(checked_id, action, asked, price, sequence, filled, profit, _typed(is_final, bool))


def read_order(account: Account, order_id: str, stored: Mapping[str, str], record: str | None) -> Order | None:
    """The order that a hash and our record of it describe; `None` if there is neither.

    Raises
    ------
    Refused
        `order_unreadable`: one of its fields is not of its grammar. Nothing can be decided about it.
    """
    if not stored and not record:
        return None
    try:
        known = _read_record(record) if record else None
        # An order that has ended does not come back, whoever writes its hash anew.
        said = known["last"] if known and known["state"] in FINISHED else stored
        return _order(account, order_id, said, known)
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError, InvalidId) as fault:
        raise Refused(f"order {order_id} cannot be read: {str(fault)[:80]!a}", code="order_unreadable") from None


def _read_record(text: str) -> dict[str, Any]:
    """Our record of an order, each value of its type."""
    said = _typed(json.loads(text), dict)
    for name, wanted in (("reason", str), ("body", str), ("attempts", int)):
        _typed(said[name], wanted)
    numbers = ("asked", "opened", "whole_margin", "net_profit", "paid_commission", "paid_swap")
    last: dict[str, Any] = _typed(said["last"] or {}, dict)
    return {
        **said,
        **{name: _exact(said[name]) for name in numbers},
        "state": State(said["state"]),
        "close_price": None if said["close_price"] is None else _exact(said["close_price"]),
        "requests": [_request(values) for values in _typed(said["requests"], list)],
        "last": {name: _typed(value, str) for name, value in last.items()},
        "made": _typed(said.get("made", 0), int),
    }


def _typed(value: Any, wanted: type) -> Any:
    if type(value) is not wanted:
        raise ValueError(f"no {wanted.__name__}: {str(value)[:40]}")
    return value


def _exact(text: Any) -> Decimal:
    value = parse_decimal(_typed(text, str))
    if value is None:
        raise ValueError(f"no number: {text[:40]}")
    return value


def _order(account: Account, order_id: str, said: Mapping[str, str], known: Mapping[str, Any] | None) -> Order:
    state = state_of(said.get("order_status", ""), said.get("execution_status", ""), known["state"] if known else None)
    if state is None:
        raise ValueError("order_status")
    quantity, margin = _above_0(said, "order_quantity"), _number(said, "margin", ZERO)
    stop_loss, take_profit = said.get("stop_loss"), said.get("take_profit")
    return Order(
        account=account,
        id=order_id,
        symbol=check_symbol(said["symbol"]),
        order_type=OrderType(said["order_type"]),
        state=state,
        flow=_flow(said.get("execution", "")),
        price=_above_0(said, "order_price"),
        quantity=quantity,
        created_at=said.get("created_at", ""),
        asked=known["asked"] if known else quantity,
        opened=known["opened"] if known else quantity if state in HOLDING_LOTS else ZERO,
        margin_usd=margin if state in HOLDING_LOTS else ZERO,
        whole_margin_usd=known["whole_margin"] if known else margin,
        contract_value=_number(said, "contract_value", ZERO),
        commission_usd=_number(said, "commission", ZERO),
        swap_usd=_number(said, "swap", ZERO),
        stop_loss=None if not stop_loss else _number(said, "stop_loss"),
        take_profit=None if not take_profit else _number(said, "take_profit"),
        master_order_id=said.get("master_order_id", ""),
        net_profit_usd=known["net_profit"] if known else ZERO,
        paid_commission_usd=known["paid_commission"] if known else ZERO,
        paid_swap_usd=known["paid_swap"] if known else ZERO,
        close_price=known["close_price"] if known else None,
        reason=known["reason"] if known else "",
        body=known["body"] if known else "",
        attempts=known["attempts"] if known else 0,
        made_version=known["made"] if known else 0,
        requests={request.id: request for request in known["requests"]} if known else {},
    )


def _number(said: Mapping[str, str], name: str, default: Decimal | None = None) -> Decimal:
    if name not in said and default is not None:
        return default
    value = parse_decimal(said.get(name))
    if value is None:
        raise ValueError(name)
    return value


def _above_0(said: Mapping[str, str], name: str) -> Decimal:
    value = _number(said, name)
    if value <= 0:
        raise ValueError(name)
    return value


def _flow(execution: str) -> Flow | None:
    """The flow that an order was opened in; other services may leave it out, or write the account's setting."""
    setting = execution.strip().lower()
    if not setting:
        return None
    by_setting = {SendingOrders.ROCK.value: Flow.LOCAL, SendingOrders.BARCLAYS.value: Flow.PROVIDER}
    return by_setting.get(setting) or Flow(setting)
