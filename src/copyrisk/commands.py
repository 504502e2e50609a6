"""Commands as they arrive on their stream, held against the grammar once."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import TypeVar

from copyrisk import identifiers
from copyrisk.decimals import parse_decimal
from copyrisk.derived import COPY_PREFIX, DIGEST_BYTES, derived_id
from copyrisk.errors import InvalidId, Refused
from copyrisk.identifiers import Account
from copyrisk.orders import is_pending_type
from copyrisk.terms import OrderType, SendingOrders

#: Printable ASCII that may say who asked.
REQUESTER_CHARS = 160
_REQUESTER = re.compile(rf"[ -~]{{0,{REQUESTER_CHARS}}}", re.ASCII)
#: What makes no other command of one.
_NOT_SAID = ("idempotency_key", "requested_by")


W = TypeVar("W", bound=StrEnum)


class CommandType(StrEnum):
    """What a command asks for."""

    OPEN = "open"
    PENDING = "pending"
    MODIFY = "modify"
    CANCEL = "cancel"
    CLOSE = "close"
    STOP_LOSS = "stop_loss"
    TAKE_PROFIT = "take_profit"
    TRIGGER = "trigger"
    FOLLOW = "follow"  # a copy follows its master's order
    STOP_OUT = "stop_out"  # an order is closed or taken back, whoever's it is


class Trigger(StrEnum):
    """Why a monitor sends a command: a price was reached, or margin does not cover a pending order any more."""

    PENDING = "pending"
    STOP_LOSS = "stop_loss"
    TAKE_PROFIT = "take_profit"
    MARGIN = "margin"


class Action(StrEnum):
    """What a request asks for: market orders (`open`, `close`), or something about a pending order."""

    OPEN = "open"
    CLOSE = "close"
    PLACE = "place"
    MODIFY = "modify"
    CANCEL = "cancel"


#: What no stream may ask for.
INTERNAL = (CommandType.FOLLOW, CommandType.STOP_OUT)
#: Placing an order: these may come without an order id, and get one that follows from their cause.
PLACING = (CommandType.OPEN, CommandType.PENDING)


class Kind(StrEnum):
    """The workers' kinds of work; a worker may do only some of them."""

    OPEN = "open"
    CLOSE = "close"
    CANCEL = "cancel"
    REJECT = "reject"
    PENDING = "pending"
    STOP_LOSS = "stop_loss"
    TAKE_PROFIT = "take_profit"


@dataclass(frozen=True, slots=True)
class Target:
    """What a master's order asks of its copies.

    Attributes
    ----------
    share : Fraction or None
        Of the lots that were copied, how many may be open; `None`: as many as are.
    price : Decimal or None
        Of a pending order.
    """

    share: Fraction | None
    stop_loss: Decimal | None = None
    take_profit: Decimal | None = None
    price: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Why an order is closed that nobody asked to close.

    Attributes
    ----------
    reason : str
        What the order says of it afterwards.
    only_critical : bool
        Whether only if the account is critical by then.
    """

    reason: str
    only_critical: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A command that is well formed; whether it can be carried out is another question.

    Attributes
    ----------
    id : str
        Of its stream entry.
    key : str
        Idempotency key: the client's, or one that follows from the order id or the stream entry.
    body : str
        Digest of everything it says but the key: the same command again has the same.
    price : Decimal or None
        `order_price`, `stop_loss`, `take_profit` or `trigger_price`, whichever its type is about.
    sending_orders : SendingOrders or None
        Of an order that is placed: decides about its flow instead of the account's own setting.
    requested_by : str
        Who asked, for the account's audit; it is the same command whoever asks.
    """

    id: str
    type: CommandType
    account: Account
    order_id: str
    key: str
    client_key: str
    body: str
    symbol: str = ""
    order_type: OrderType | None = None
    quantity: Decimal | None = None
    price: Decimal | None = None
    stop_loss: Decimal | None = None
    take_profit: Decimal | None = None
    trigger: Trigger | None = None
    master_order_id: str = ""
    sending_orders: SendingOrders | None = None
    requested_by: str = ""
    target: Target | None = None
    cut: Cut | None = None


def parse_command(entry_id: str, fields: Mapping[str, str]) -> Command:
    """The command of a stream entry.

    Raises
    ------
    InvalidId, Refused
        `unknown_command`, `invalid_user_type`, `invalid_account_id`, `invalid_order_id`, `invalid_symbol`,
        `invalid_order_type`, `invalid_order_quantity`, `invalid_order_price`, `invalid_stop_loss`,
        `invalid_take_profit`, `invalid_trigger`, `invalid_trigger_price`, `invalid_sending_orders`,
        `invalid_requested_by`, `invalid_idempotency_key`.
    """
    kind = word_of(CommandType, fields.get("type", ""), "unknown_command")
    if kind in INTERNAL:
        raise Refused(f"nobody may ask for {kind.value!r}", code="unknown_command")
    account = identifiers.account(fields.get("user_type", ""), fields.get("user_id", ""))
    client_key = fields.get("idempotency_key", "")
    if client_key:
        identifiers.check_idempotency_key(client_key)
    given_id = fields.get("order_id", "")
    if given_id or kind not in PLACING:
        identifiers.check_order_id(given_id)
    if kind in PLACING and given_id.startswith(COPY_PREFIX):
        raise InvalidId(f"order ids with {COPY_PREFIX!r} are those of copies", code="invalid_order_id")
    # Without a key of the client's the same order id is the same order, and any other entry a cause of its own.
    cause = f"order:{given_id}" if kind in PLACING and given_id else f"entry:{entry_id}"
    key = f"key:{client_key}" if client_key else cause
    named = kind.value if kind in (CommandType.STOP_LOSS, CommandType.TAKE_PROFIT) else "order_quantity"
    if kind not in PLACING and fields.get(named) == "":  # absent it would mean all of it, or none at all
        raise Refused(f"{named} is empty: leave it out, or say what it is", code=f"invalid_{named}")
    return Command(
        id=entry_id,
        type=kind,
        account=account,
        order_id=given_id or derived_id("", str(account), key),
        key=key,
        client_key=client_key,
        body=_digest(fields),
        requested_by=_requester(fields.get("requested_by", "")),
        quantity=_positive(fields, "order_quantity", required=kind in PLACING),
        **_of_type(kind, fields),  # type: ignore[arg-type]
    )


def _of_type(kind: CommandType, fields: Mapping[str, str]) -> dict[str, object]:
    """What only some types have."""
    if kind in PLACING:
        order_type = word_of(OrderType, fields.get("order_type", ""), "invalid_order_type")
        if is_pending_type(order_type) is not (kind is CommandType.PENDING):
            raise Refused(f"{order_type} is no order type of '{kind}'", code="invalid_order_type")
        master = fields.get("master_order_id", "")
        return {
            "symbol": identifiers.check_symbol(fields.get("symbol", "")),
            "order_type": order_type,
            "price": _positive(fields, "order_price", required=True) if kind is CommandType.PENDING else None,
            "stop_loss": _positive(fields, "stop_loss"),
            "take_profit": _positive(fields, "take_profit"),
            "master_order_id": identifiers.check_order_id(master) if master else "",
            "sending_orders": _sending_orders(fields),
        }
    if kind is CommandType.MODIFY:
        return {"price": _positive(fields, "order_price", required=True)}
    if kind in (CommandType.STOP_LOSS, CommandType.TAKE_PROFIT):
        return {"price": _positive(fields, kind.value)}
    if kind is CommandType.TRIGGER:
        trigger = word_of(Trigger, fields.get("trigger", ""), "invalid_trigger")
        return {"trigger": trigger, "price": _positive(fields, "trigger_price", required=trigger is not Trigger.MARGIN)}
    return {}


def _requester(text: str) -> str:
    if _REQUESTER.fullmatch(text) is None:
        raise Refused(f"requested_by is at most {REQUESTER_CHARS} printable characters", code="invalid_requested_by")
    return text


def _sending_orders(fields: Mapping[str, str]) -> SendingOrders | None:
    """Case and space do not matter, as in the account's own setting; but what is said here must name a flow."""
    said = fields.get("sending_orders")
    return None if said is None else word_of(SendingOrders, said.strip().lower(), "invalid_sending_orders")


def kind_of_command(command: Command) -> Kind:
    """Whose work a command is."""
    if command.trigger in (Trigger.STOP_LOSS, Trigger.TAKE_PROFIT):
        return Kind(command.trigger)
    is_pending = command.type in (CommandType.MODIFY, CommandType.TRIGGER)
    return Kind.PENDING if is_pending else Kind(command.type)


def _digest(fields: Mapping[str, str]) -> str:
    said = {name: value for name, value in fields.items() if name not in _NOT_SAID}
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()


def _positive(fields: Mapping[str, str], name: str, *, required: bool = False) -> Decimal | None:
    text = fields.get(name, "")
    if not text and not required:
        return None
    value = parse_decimal(text)
    if value is None or value <= 0:
        raise Refused(f"{name} must be a plain decimal above 0, not {text[:40]!a}", code=f"invalid_{name}")
    return value


def word_of(words: type[W], text: str, code: str) -> W:
    """The word that a text is.

    Raises
    ------
    Refused
        With this code.
    """
    try:
        return words(text)
    except ValueError:
        raise Refused(f"must be one of {', '.join(words)}, not {text[:40]!a}", code=code) from None
