"""What became of copies: what they are now, and what has happened to them since they were made."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from copyrisk import keys
from copyrisk.errors import Refused
from copyrisk.identifiers import Account
from copyrisk.orders import Event
from copyrisk.records import read_order
from copyrisk.store.functions import KEY_UNUSABLE, refused, text, texts
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import ExecutionStatus

#: An order in an account.
Held = tuple[Account, str]

_AT_ONCE = 500
_PAGE, _PAGES = 1_000, 20
_SHOWN = ("execution_status", "order_quantity", "order_price")
#: After these an order is filled, if it is executed at all.
_FILLING = (Event.FILL_REPORTED, Event.TRIGGERED, Event.REJECT_REPORTED, Event.END_REPORTED)


def read_copy_states(pipe: Pipe, copies: Sequence[Held], since_ms: int) -> list[dict[str, Any]]:
    """`copy`, `history`, `filled_ms` of some copies, in order; `None` for what is not known.

    Parameters
    ----------
    copies : sequence of (Account, str)
        Followers, and their copies' order ids.
    since_ms : int
        From when on, by the server's clock, the followers' audits are read.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    found = []
    for start in range(0, len(copies), _AT_ONCE):
        part = copies[start : start + _AT_ONCE]
        orders = ask(pipe, [pack("HGETALL", keys.holding(*one)) for one in part])
        records = ask(pipe, [pack("GET", keys.order_record(*one)) for one in part])
        histories = _histories(pipe, part, since_ms)
        for one, order, record, history in zip(part, orders, records, histories, strict=True):
            found.append({"copy": _now(*one, order, record), "history": history, "filled_ms": _filled_ms(history)})
    return found


def ask(pipe: Pipe, requests: Sequence[bytes]) -> list[Any]:
    """Replies; `None` for that of a key that cannot be used.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    replies = pipe.exchange(requests)
    for place, reply in enumerate(replies):
        failure = refused(reply)
        if failure is not None:
            if failure.code != KEY_UNUSABLE:
                raise failure
            replies[place] = None
    return replies


def mapping(reply: Any) -> dict[str, str]:
    """A hash, whichever protocol it came by; empty for nothing."""
    if isinstance(reply, Mapping):
        return {text(name): text(value) for name, value in reply.items()}
    return texts(reply or ())


def _now(account: Account, own_id: str, order_reply: Any, record: bytes | None) -> dict[str, Any] | None:
    try:
        order = read_order(account, own_id, mapping(order_reply), text(record))
    except Refused as refusal:
        return {"state": refusal.code}
    if order is None:
        return None
    said = ("quantity", "asked", "price", "stop_loss", "take_profit")
    numbers = {name: getattr(order, name) for name in said}
    return {
        "state": order.state.value,
        "flow": order.flow.value if order.flow else None,
        "order_type": order.order_type.value,
        **{name: None if number is None else str(number) for name, number in numbers.items()},
    }


def _histories(pipe: Pipe, copies: Sequence[Held], since_ms: int) -> list[list[dict[str, Any]]]:
    """What the audits say of each copy, oldest first; of very long ones only the beginning is read."""
    found: list[list[dict[str, Any]]] = [[] for _ in copies]
    starts = dict.fromkeys(range(len(copies)), f"{since_ms}-0")
    for _ in range(_PAGES):
        asked = [pack("XRANGE", keys.audit(copies[i][0]), start, "+", "COUNT", _PAGE) for i, start in starts.items()]
        replies = dict(zip(starts, ask(pipe, asked), strict=True))
        starts = {}
        for i, reply in replies.items():
            entries: Sequence[tuple[bytes, Sequence[bytes]]] = reply or []
            found[i] += [told for entry in entries if (told := _told(entry, copies[i][1])) is not None]
            if len(entries) == _PAGE:
                starts[i] = f"({text(entries[-1][0])}"
        if not starts:
            break
    return found


def _told(entry: tuple[bytes, Sequence[bytes]], own_id: str) -> dict[str, Any] | None:
    """What an audit entry says of a copy; `None` if it is about something else."""
    entry_id, words = entry
    try:
        said = json.loads(texts(words)["entry"])
        if said["order_id"] != own_id:
            return None
        order = json.loads(said["order"]) if "order" in said else {}
        return {
            "at_ms": int(text(entry_id).partition("-")[0]),
            "what": str(said.get("change") or said["type"]),
            "code": str(said["code"]),
            **{name: str(order[name]) for name in _SHOWN if name in order},
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _filled_ms(history: Sequence[Mapping[str, Any]]) -> int | None:
    """When an order was filled that was not filled as it was made; `None` for not yet, or not known."""
    for said in history:
        if said["what"] in _FILLING and said.get("execution_status") == ExecutionStatus.EXECUTED:
            return int(said["at_ms"])
    return None
