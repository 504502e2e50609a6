"""Outcomes as changes of the store: what is written in the account's slot, and what must follow in others."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from copyrisk.commands import Command
from copyrisk.decimals import ZERO, charge_text, decimal_text, money_text, parse_decimal
from copyrisk.errors import Refused
from copyrisk.identifiers import Account
from copyrisk.orders import FINISHED, REPLICATED, State
from copyrisk.provider_reports import Report
from copyrisk.records import OPTIONAL_FIELDS, Order, order_fields, record_text, result_fields
from copyrisk.situation import Outcome
from copyrisk.store.functions import AccountRead, Change
from copyrisk.terms import AccountType

DAY_MS = 86_400_000
#: A retried command finds its answer for so long; a late report finds its order.
ANSWER_KEEP_MS, RECORD_KEEP_MS = 7 * DAY_MS, 30 * DAY_MS
#: How old, by the server's clock, what was read may be when a change rests on it.
DECISION_MS = 2_000
_VERSION_DIGITS = 15  # of epoch ms there are 13; the server's numbers are exact to 15


class Right(NamedTuple):
    """The right of one process to act for a role.

    Attributes
    ----------
    ends_ms : int
        By the server's clock.
    token : str
        A number that is higher than that of any right to the role before.
    """

    role: str
    ends_ms: int
    token: str


@dataclass(frozen=True, slots=True)
class Cause:
    """What asked for a change.

    Attributes
    ----------
    entry_id : str
        Of its stream entry.
    answer_key, body : str
        Under which it is answered once, and its digest; empty if it is no command of a client.
    """

    entry_id: str
    type: str
    answer_key: str = ""
    client_key: str = ""
    body: str = ""
    requested_by: str = ""


def cause_of(command: Command) -> Cause:
    """A command; those of monitors are safe to repeat by the order's state, and are to be tried anew."""
    key = "" if command.trigger else command.key
    return Cause(command.id, command.type.value, key, command.client_key, command.body, command.requested_by)


def cause_of_report(entry_id: str, report: Report) -> Cause:
    """A report of the provider; its sequence within its request tells whether it is new."""
    return Cause(entry_id, f"report_{report.action}_{report.status}")


def next_version(version: str, time_ms: int) -> int:
    """The version after a change; the first is the server's clock, so that a lost ledger begins above its end."""
    is_number = version.isascii() and version.isdecimal() and len(version) <= _VERSION_DIGITS
    return int(version) + 1 if is_number else time_ms


def change_of(read: AccountRead, outcome: Outcome, cause: Cause, right: Right | None = None) -> Change:
    """The change that an outcome makes of what was read, made by whoever has this right (`None`: by anybody)."""
    order, version = outcome.order, next_version(read.version, read.time_ms)
    is_finished = order.state in FINISHED
    said = order_fields(order)
    full = said | result_fields(order)
    event = event_of(read.account, cause, order.id, ts_ms=read.time_ms) | {
        "event_id": f"{read.account}:{version}",
        "event": "done",
        "code": "ok",
        "version": str(version),
    }
    whole_event = event | {"order": _json(full)}
    balance = _balance_after(read, outcome)
    booked = outcome.booking.amount_usd if outcome.booking else ZERO
    stored = {} if is_finished else said
    return Change(
        read=read,
        order_id=order.id,
        deadline_ms=min(read.time_ms + DECISION_MS, right.ends_ms if right else sys.maxsize),
        version=version,
        balance=balance,
        reserved_usd=_added(read.reserved_usd, outcome.reserved_change_usd),
        booked_usd=_added(read.booked_usd, booked),
        order=stored,
        absent=[name for name in OPTIONAL_FIELDS if name not in stored],
        record=record_text(order),
        record_keep_ms=RECORD_KEEP_MS if is_finished else None,
        answer_key=cause.answer_key,
        answer=_answer(cause, whole_event) if cause.answer_key else "",
        answer_keep_ms=ANSWER_KEEP_MS,
        audit=_json(
            {
                **whole_event,
                "change": outcome.event.value,
                "balance": balance,
                **asked_by(cause),
                "cause": cause.entry_id,
            }
        ),
        follows={"version": version, "order": full, "finished": is_finished, "event": event}
        | _follows(read, outcome, version, balance),
        fence=f"fence:{right.role}" if right else "",
        token=right.token if right else "",
    )


def _added(stored: str, amount: Decimal) -> str:
    """A sum in the ledger; one that cannot be read stays as it is, for somebody to put it right."""
    known = parse_decimal(stored or "0")
    return stored if known is None else money_text(known + amount)


def _balance_after(read: AccountRead, outcome: Outcome) -> str:
    if outcome.booking is None:
        return ""
    before = parse_decimal(read.config.get("wallet_balance"))
    assert before is not None, "nothing is booked to a balance that cannot be read"
    return charge_text(before + outcome.booking.amount_usd)


def event_of(account: Account, cause: Cause, order_id: str, *, ts_ms: int) -> dict[str, str]:
    """What every event says of what caused it."""
    return {
        "type": cause.type,
        "user_type": account.type.value,
        "user_id": account.id,
        "order_id": order_id,
        "idempotency_key": cause.client_key,
        "command_id": cause.entry_id,
        "message": "",
        "ts": str(ts_ms),
    }


def asked_by(cause: Cause) -> dict[str, str]:
    """What the account's audit says of what asked, and who, if anybody was named."""
    named = {"requested_by": cause.requested_by} if cause.requested_by else {}
    return {**named, "cause": cause.entry_id}


def _answer(cause: Cause, event: Mapping[str, str]) -> str:
    return _json({"body": cause.body, "event": event})


def refusal_of(event: Mapping[str, str], code: str, message: str) -> dict[str, str]:
    """The event that refuses."""
    return {**event, "event_id": event["command_id"], "event": "refused", "code": code, "message": message}


def refusal_answer(cause: Cause, event: Mapping[str, str]) -> str:
    """What a command that was refused is answered from now on; empty for one that may be tried again."""
    return _answer(cause, event) if cause.answer_key else ""


def parse_answer(stored: str) -> tuple[str, dict[str, str]]:
    """Digest of the command that was answered, and the event that answered it."""
    try:
        found = json.loads(stored)
        return found["body"], dict(found["event"])
    except (LookupError, ValueError, TypeError) as fault:
        raise Refused(f"what the command was answered cannot be read: {fault}", code="answer_unreadable") from None


def _follows(read: AccountRead, outcome: Outcome, version: int, balance: str) -> dict[str, Any]:
    """What of the outbox entry only some changes have."""
    order, is_finished = outcome.order, outcome.order.state in FINISHED
    follows: dict[str, Any] = {}
    if (outcome.before is None) or is_finished:
        follows["holds"] = not is_finished or _holds_otherwise(read, order)
    triggers = trigger_fields(order)
    if triggers or (outcome.before is not None and trigger_fields(outcome.before)):
        follows["triggers"] = triggers
    if read.account.type is AccountType.MASTER and outcome.event in REPLICATED:
        asked, state = decimal_text(order.asked), order.state.value
        follows["replicates"] = {"change": outcome.event.value, "state": state, "asked": asked}
    if outcome.request:
        follows["request"] = {**outcome.request, "ts": str(read.time_ms)}
    if outcome.booking is not None:
        follows["entry"] = {
            "entry_id": f"{read.account}:{version}",
            "kind": "close",
            "amount_usd": money_text(outcome.booking.amount_usd),
            "balance_usd": balance,
            "order_quantity": f"{outcome.booking.lots:f}",
            "close_price": f"{outcome.booking.price:f}",
        }
    return follows


def _holds_otherwise(read: AccountRead, order: Order) -> bool:
    """Whether another order of the account is on the same symbol (the first of an order's columns)."""
    symbol, own = order.symbol.encode(), order.id.encode()
    return any(
        row[0] == symbol and order_id != own for order_id, row in zip(read.order_ids, read.order_rows, strict=True)
    )


def trigger_fields(order: Order) -> dict[str, str]:
    """The fields of `order_triggers:O`; empty if nothing of the order waits for a price, or a close is under way."""
    waits = order.state in (State.PENDING, State.MODIFYING, State.CANCELLING)
    has_levels = order.stop_loss is not None or order.take_profit is not None
    if not waits and not (has_levels and order.state in (State.FILLING, State.OPEN)):
        return {}
    said = order_fields(order)
    levels = {name: said[name] for name in ("stop_loss", "take_profit") if name in said}
    names = ("symbol", "order_type", "user_type", "user_id", "execution", "margin")
    found = {name: said[name] for name in names if name in said} | levels | {"state": order.state.value}
    found |= {f"{name}_compare": level for name, level in levels.items()}
    if waits:
        found["order_price_compare"] = said["order_price"]
    return found


def _json(said: Any) -> str:
    return json.dumps(said, separators=(",", ":"))
