"""Calling the server-side functions of `functions.lua`, and reading what they answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from copyrisk import fields, keys
from copyrisk.errors import StoreError
from copyrisk.identifiers import Account
from copyrisk.stopping import lots_ending
from copyrisk.store.connection import OF_ONE_KEY, store_error
from copyrisk.store.library import CONFIG_FIELDS
from copyrisk.store.pipe import pack

_CLAIM_MS = 60_000
FUNCTIONS_MISSING = "functions_missing"
#: What a server says that has lost them.
NO_FUNCTION = "Function not found"
#: Code of a refusal that says nothing of other calls.
KEY_UNUSABLE = "key_unusable"


@dataclass(frozen=True, slots=True)
class AccountRead:
    """An account at one moment, as texts; what is absent is the empty text.

    Attributes
    ----------
    time_ms : int
        The server's clock.
    config_row, order_rows
        As `fields.ACCOUNT_COLUMNS` and `fields.ORDER_COLUMNS` ask for them.
    order : dict
        The hash of the order that was asked about.
    ending : mapping of bytes to float
        How many lots of which orders are being closed or taken back (infinite: all), if that was asked.
    """

    account: Account
    time_ms: int
    version: str
    reserved_usd: str
    booked_usd: str
    outbox_count: int
    config: Mapping[str, str]
    config_row: Sequence[bytes | None]
    order_ids: Sequence[bytes]
    order_rows: Sequence[Sequence[bytes | None]]
    order: Mapping[str, str]
    record: str
    answer: str
    ending: Mapping[bytes, float] = field(default_factory=dict)


def text(value: bytes | None) -> str:
    """What the server holds, as text; what is not UTF-8 is escaped and fails every grammar."""
    return "" if value is None else value.decode("utf-8", "backslashreplace")


def texts(flat: Sequence[bytes]) -> dict[str, str]:
    """A hash from its words."""
    return {text(flat[i]): text(flat[i + 1]) for i in range(0, len(flat), 2)}


def read_request(account: Account, order_id: str, answer_key: str, *, with_ending: bool = False) -> bytes:
    """Ask for an account, one of its orders, and the answer to a command; also for the orders that are ending."""
    return pack(
        "FCALL_RO",
        "copyrisk_read_v1",
        7,
        keys.config(account),
        keys.orders_index(account),
        keys.ledger(account),
        keys.outbox(account),
        keys.holding(account, order_id),
        keys.order_record(account, order_id),
        keys.answer(account, answer_key),
        keys.holding(account, ""),
        keys.order_record(account, "") if with_ending else "",
    )


def parse_read(account: Account, reply: Sequence[Any]) -> AccountRead:
    """The answer to `read_request`."""
    time_ms, (version, reserved, booked), outbox_count, config, ids, orders, order, record, answer, ending = reply
    named = {name: text(value) for name, value in zip(CONFIG_FIELDS, config, strict=True) if value is not None}
    return AccountRead(
        account,
        int(time_ms),
        *(text(version), text(reserved), text(booked)),
        int(outbox_count),
        named,
        config[: len(fields.ACCOUNT_COLUMNS.fields)],
        ids,
        orders,
        texts(order),
        text(record),
        text(answer),
        {ending[i]: lots_ending(text(ending[i + 1])) for i in range(0, len(ending), 2)},
    )


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one account, as it is handed to the server.

    Attributes
    ----------
    read : AccountRead
        What it rests on.
    deadline_ms : int
        By the server's clock.
    balance : str
        The new one; empty: as it is.
    booked_usd : str
        All that was ever booked to the account.
    order : dict
        All fields of the order's hash, empty when it is finished.
    follows : dict
        The outbox entry.
    fence, token : str
        Where in the ledger the token of who asks is kept, and that token; an older one is refused.
    """

    read: AccountRead
    order_id: str
    deadline_ms: int
    version: int
    balance: str
    reserved_usd: str
    booked_usd: str
    order: Mapping[str, str]
    absent: Sequence[str]
    record: str
    record_keep_ms: int | None
    answer_key: str
    answer: str
    answer_keep_ms: int
    audit: str
    follows: Mapping[str, Any]
    fence: str = ""
    token: str = ""


def change_request(change: Change) -> bytes:
    """Hand over a change."""
    account, read = change.read.account, change.read
    words = [word for item in change.order.items() for word in item]
    return pack(
        "FCALL",
        "copyrisk_change_v1",
        8,
        keys.config(account),
        keys.orders_index(account),
        keys.ledger(account),
        keys.holding(account, change.order_id),
        keys.order_record(account, change.order_id),
        keys.answer(account, change.answer_key),
        keys.audit(account),
        keys.outbox(account),
        change.order_id,
        change.deadline_ms,
        read.version,
        read.config.get("wallet_balance", ""),
        read.config.get("leverage", ""),
        read.config.get("group", ""),
        len(read.order_ids),
        read.order.get("order_status", ""),
        read.order.get("execution_status", ""),
        change.version,
        change.balance,
        change.reserved_usd,
        change.record,
        "" if change.record_keep_ms is None else change.record_keep_ms,
        change.answer,
        change.answer_keep_ms,
        change.audit,
        json.dumps(change.follows, separators=(",", ":")),
        "put" if change.order else "finish",
        change.booked_usd,
        change.fence,
        change.token,
        len(words),
        *words,
        *(change.absent if change.order else ()),
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """What a copy rests on in its follower's account, as texts; the server compares it with what is there.

    Attributes
    ----------
    deadline_ms : str
        Until when it may be relied on, by the server's clock.
    version : str
        Of the account, empty if it never changed.
    orders : str
        How many it has.
    """

    deadline_ms: str
    version: str
    balance: str
    leverage: str
    group: str
    copy_status: str
    orders: str


def copy_request(
    account: Account,
    order_id: str,
    standing: Standing,
    order: Mapping[str, str],
    *,
    version: str,
    record: str,
    remainder: str,
) -> bytes:
    """Make a copy; answered `done`, `exists` (with its record), `changed` or `late`."""
    return pack(
        "FCALL",
        "copyrisk_copy_v1",
        6,
        keys.config(account),
        keys.orders_index(account),
        keys.ledger(account),
        keys.holding(account, order_id),
        keys.order_record(account, order_id),
        keys.remainders(account),
        order_id,
        standing.deadline_ms,
        standing.version,
        standing.balance,
        standing.leverage,
        standing.group,
        standing.copy_status,
        standing.orders,
        version,
        record,
        remainder,
        *(word for item in order.items() for word in item),
    )


def note_request(account: Account, answer_key: str, answer: str, keep_ms: int, audit: str) -> bytes:
    """Record a refusal, or (empty `answer`) something that changed nothing."""
    named = (keys.answer(account, answer_key), keys.audit(account))
    return pack("FCALL", "copyrisk_note_v1", 2, *named, answer, keep_ms, audit)


def claim_request(account: Account, order_id: str) -> bytes:
    """Claim an order id; answered `claimed`, `own` or `other`."""
    return pack("FCALL", "copyrisk_claim_v1", 1, keys.order_data(order_id), account.type.value, account.id, _CLAIM_MS)


def put_request(
    key: str, version: int | str, said: Mapping[str, str], absent: Sequence[str], keep_ms: int | None
) -> bytes:
    """Write a hash as of a version."""
    words, keep = [word for item in said.items() for word in item], "" if keep_ms is None else keep_ms
    return pack("FCALL", "copyrisk_put_v1", 1, key, version, keep, len(words), *words, *absent)


def hold_request(symbol: str, held: Mapping[Account, int | str], *, holds: bool) -> bytes:
    """Put accounts of one type, each as of its version, in or out of a symbol's holders."""
    kind = next(iter(held)).type
    named = keys.symbol_holders(symbol, kind), keys.holder_versions(symbol, kind)
    words = [word for account, version in held.items() for word in (str(account), version)]
    return pack("FCALL", "copyrisk_hold_v1", 2, *named, "1" if holds else "0", *words)


def fill_request(key: str, said: Mapping[str, str]) -> bytes:
    """Write a hash where there is none."""
    return pack("FCALL", "copyrisk_fill_v1", 1, key, *(word for item in said.items() for word in item))


def refused(reply: Any) -> StoreError | None:
    """The error of a refused call; `functions_missing`: the server lost them; `KEY_UNUSABLE`: of this call only."""
    if not isinstance(reply, Exception):
        return None
    if NO_FUNCTION in str(reply):
        return StoreError("the server has lost its functions", code=FUNCTIONS_MISSING)
    if str(reply).startswith((*OF_ONE_KEY, "TOOMANY")):
        return StoreError(f"a key cannot be used: {reply}", code=KEY_UNUSABLE)
    return store_error(redis.ResponseError(str(reply)))


def is_unusable(reply: Any) -> bool:
    """Whether a key of one account cannot be used; any other refusal is raised."""
    failure = refused(reply)
    if failure is not None and failure.code != KEY_UNUSABLE:
        raise failure
    return failure is not None


def usable(reply: Any) -> Any:
    """The answer about one key, `None` if that key cannot be used; any other refusal is raised."""
    return None if is_unusable(reply) else reply
