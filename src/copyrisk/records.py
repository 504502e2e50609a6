"""An order with all that is known of it: the contract's fields, and what copyrisk keeps beside them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from copyrisk.decimals import ZERO, decimal_text, money_text, parse_decimal
from copyrisk.errors import InvalidId, Refused
from copyrisk.keys import Account, check_symbol
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
        done = [old.id for old in requests.values() if old.is_final and old.action not in ("open", "place")]
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
        "commission": money_text(order.commission_usd),
        "swap": money_text(order.swap_usd),
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
        "commission": money_text(order.commission_usd + order.paid_commission_usd),
        "swap": money_text(order.swap_usd + order.paid_swap_usd),
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
            "paid_commission": money_text(order.paid_commission_usd),
            "paid_swap": money_text(order.paid_swap_usd),
            "close_price": None if order.close_price is None else decimal_text(order.close_price),
            "reason": order.reason,
            "body": order.body,
            "attempts": order.attempts,
            "requests": [_request_list(request) for request in order.requests.values()],
            # A finished order has no hash any more; a late report must still find out what it was.
            "last": order_fields(order) if order.state in FINISHED else None,
        },
        separators=(",", ":"),
    )


def _request_list(request: Request) -> list[Any]:
    numbers = (request.asked, request.price, request.filled, request.profit)
    return [request.id, request.action, request.sequence, request.is_final, *(str(number) for number in numbers)]


def _request(values: list[Any]) -> Request:
    asked, price, filled, profit = (Decimal(text) for text in values[4:])
    return Request(values[0], values[1], asked, price, values[2], filled, profit, values[3])


def read_order(account: Account, order_id: str, stored: Mapping[str, str], record: str | None) -> Order | None:
    """The order that a hash and our record of it describe; `None` if there is neither.

    Raises
    ------
    Refused
        `order_unreadable`: one of its fields is not of its grammar. Nothing can be decided about it.
    """
    try:
        known = json.loads(record) if record else {}
        said = stored or known.get("last")
        return _order(account, order_id, said, known, is_stored=bool(stored)) if said else None
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, InvalidId) as fault:
        raise Refused(f"order {order_id} cannot be read: {fault}", code="order_unreadable") from None


def _order(account: Account, order_id: str, said: Mapping[str, str], known: Any, *, is_stored: bool) -> Order:
    recorded = State(known["state"]) if known else None
    state = state_of(said.get("order_status", ""), said.get("execution_status", ""), recorded)
    if state is None:
        raise ValueError("order_status")
    if not is_stored and recorded is not None:
        state = recorded
    quantity, margin = _number(said, "order_quantity"), _number(said, "margin", ZERO)
    stop_loss, take_profit = said.get("stop_loss"), said.get("take_profit")
    return Order(
        account=account,
        id=order_id,
        symbol=check_symbol(said["symbol"]),
        order_type=OrderType(said["order_type"]),
        state=state,
        flow=_flow(said.get("execution", "")),
        price=_number(said, "order_price"),
        quantity=quantity,
        created_at=said.get("created_at", ""),
        asked=Decimal(known["asked"]) if known else quantity,
        opened=Decimal(known["opened"]) if known else quantity if state in HOLDING_LOTS else ZERO,
        margin_usd=margin if state in HOLDING_LOTS else ZERO,
        whole_margin_usd=Decimal(known["whole_margin"]) if known else margin,
        contract_value=_number(said, "contract_value", ZERO),
        commission_usd=_number(said, "commission", ZERO),
        swap_usd=_number(said, "swap", ZERO),
        stop_loss=None if not stop_loss else _number(said, "stop_loss"),
        take_profit=None if not take_profit else _number(said, "take_profit"),
        master_order_id=said.get("master_order_id", ""),
        net_profit_usd=Decimal(known["net_profit"]) if known else ZERO,
        paid_commission_usd=Decimal(known["paid_commission"]) if known else ZERO,
        paid_swap_usd=Decimal(known["paid_swap"]) if known else ZERO,
        close_price=Decimal(known["close_price"]) if known and known["close_price"] else None,
        reason=known.get("reason", ""),
        body=known.get("body", ""),
        attempts=known.get("attempts", 0),
        requests={values[0]: _request(values) for values in known.get("requests", [])},
    )


def _number(said: Mapping[str, str], name: str, default: Decimal | None = None) -> Decimal:
    if name not in said and default is not None:
        return default
    value = parse_decimal(said.get(name))
    if value is None:
        raise ValueError(name)
    return value


def _flow(execution: str) -> Flow | None:
    """The flow that an order was opened in; other services may leave it out, or write the account's setting."""
    if not execution:
        return None
    by_setting = {SendingOrders.ROCK.value: Flow.LOCAL, SendingOrders.BARCLAYS.value: Flow.PROVIDER}
    return by_setting.get(execution) or Flow(execution)
