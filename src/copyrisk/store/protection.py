"""Negative balances booked away: which accounts owe the broker for certain, and the one call that puts one back to 0.

The amount is no result of trading: it is summed up in `protected_usd` of the account's ledger, and `booked_usd`, by
which losses are told, stays as it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import structlog

from copyrisk import identifiers, keys
from copyrisk.decimals import ZERO, charge_text, money_text, parse_decimal
from copyrisk.errors import InvalidId
from copyrisk.identifiers import Account
from copyrisk.store.changes import DECISION_MS, Cause, Right, event_of, next_version
from copyrisk.store.effects import Waiting
from copyrisk.store.functions import AccountRead, is_unusable, parse_read, read_request, refused, text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import LedgerKind

log = structlog.get_logger(__name__)

KIND = LedgerKind.NEGATIVE_BALANCE_PROTECTION
_NOTHING = "-"  # in the place of an order's id and of a command's key, which nobody asks about here


@dataclass(frozen=True, slots=True)
class Standing:
    """An account at one moment, and all that was ever booked away of it, as text.

    The sum is asked for a moment later; if it is another by then, so is the account's version, and nothing is changed.
    """

    read: AccountRead
    protected_usd: str


def read_standings(pipe: Pipe, accounts: Sequence[Account]) -> list[Standing | None]:
    """Read accounts; `None` for one that has a key which cannot be used.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    requests = [read_request(account, _NOTHING, _NOTHING) for account in accounts]
    sums = [pack("HGET", keys.ledger(account), "protected_usd") for account in accounts]
    replies = pipe.exchange([*requests, *sums])
    found: list[Standing | None] = []
    for account, reply, sum_reply in zip(accounts, replies, replies[len(accounts) :], strict=False):
        is_usable = not (is_unusable(reply) or is_unusable(sum_reply))
        found.append(Standing(parse_read(account, reply), text(sum_reply)) if is_usable else None)
    return found


def obstacle(standing: Standing | None) -> str:
    """Code of what is in the way of booking the balance away; empty if the account is flat and owes for certain.

    `account_unreadable`, `not_flat` (it has orders), `effects_wait` (what follows from an earlier change is not brought
    about), `margin_reserved` (lots are being filled, or nobody can tell), `balance_unreadable`, `balance_not_negative`.
    """
    if standing is None:
        return "account_unreadable"
    read = standing.read
    balance = parse_decimal(read.config.get("wallet_balance"))
    if read.order_ids:
        return "not_flat"
    if read.outbox_count:
        return "effects_wait"
    if parse_decimal(read.reserved_usd or "0") != ZERO:
        return "margin_reserved"
    if balance is None:
        return "balance_unreadable"
    return "" if balance < ZERO else "balance_not_negative"


@dataclass(frozen=True, slots=True)
class Protection:
    """A balance that is to be booked away.

    Attributes
    ----------
    entry_id : str
        Of the ledger, and of the event: account and version.
    amount_usd : Decimal
        Above 0, all its digits.
    """

    standing: Standing
    version: int
    entry_id: str
    amount_usd: Decimal

    @property
    def account(self) -> Account:
        """Whose balance it is."""
        return self.standing.read.account

    @property
    def follows(self) -> dict[str, Any]:
        """The outbox entry."""
        amount = charge_text(self.amount_usd)
        booking = {"entry_id": self.entry_id, "kind": KIND.value, "amount_usd": amount, "balance_usd": money_text(ZERO)}
        return {"version": self.version, "order": None, "event": self.event, "entry": booking}

    @property
    def event(self) -> dict[str, str]:
        """What is announced."""
        return event_of(self.account, Cause("", KIND.value), "", ts_ms=self.standing.read.time_ms) | {
            "event_id": self.entry_id,
            "event": "done",
            "code": "ok",
            "version": str(self.version),
            "amount_usd": charge_text(self.amount_usd),
            "balance_usd": money_text(ZERO),
        }


def protection_of(standing: Standing) -> Protection:
    """What is to be booked to an account that has no `obstacle`."""
    read = standing.read
    balance = parse_decimal(read.config["wallet_balance"])
    assert balance is not None and balance < ZERO, "nobody is protected from what is not owed"
    version = next_version(read.version, read.time_ms)
    return Protection(standing, version, f"{read.account}:{version}", -balance)


class Unchanged(NamedTuple):
    """Why nothing was changed: `changed`, `late`, `account_unreadable`, `fenced` (with the later token)."""

    code: str
    token: str = ""


def protect(pipe: Pipe, protections: Sequence[Protection], right: Right) -> list[Waiting | Unchanged]:
    """Book balances away, each only if the account is still what was read.

    Returns
    -------
    list of (Waiting or Unchanged)
        For each what follows from it in other slots, or why nothing was changed.

    Raises
    ------
    StoreError, StoreUnavailable
        Any of them may be done or not; who reads the accounts again knows.
    """
    replies = pipe.exchange([_request(one, right) for one in protections])
    found: list[Waiting | Unchanged] = []
    for one, reply in zip(protections, replies, strict=True):
        if is_unusable(reply):
            found.append(Unchanged("account_unreadable"))
        elif reply[0] == b"done":
            found.append(Waiting(one.account, reply[1], one.follows))
        else:
            found.append(Unchanged(*map(text, reply)))
    return found


def _request(one: Protection, right: Right) -> bytes:
    account, read = one.account, one.standing.read
    before = read.config["wallet_balance"]
    audit = {**one.event, "change": KIND.value, "balance": money_text(ZERO), "balance_before": before, "cause": ""}
    return pack(
        "FCALL",
        "copyrisk_protect_v1",
        5,
        keys.config(account),
        keys.orders_index(account),
        keys.ledger(account),
        keys.audit(account),
        keys.outbox(account),
        min(read.time_ms + DECISION_MS, right.ends_ms),
        read.version,
        before,
        read.reserved_usd,
        one.version,
        money_text(ZERO),
        _added(one.standing.protected_usd, one.amount_usd),
        _json(audit),
        _json(one.follows),
        f"fence:{right.role}",
        right.token,
    )


def _added(stored: str, amount: Decimal) -> str:
    """A sum in the ledger; one that cannot be read stays as it is, for somebody to put it right."""
    known = parse_decimal(stored or "0")
    return stored if known is None else charge_text(known + amount)


# ---- whose outboxes are to be looked at after a crash


def remember(pipe: Pipe, accounts: Sequence[Account]) -> None:
    """Note, before anything is done, whose balances are about to be booked away. Raises as `forget`."""
    if accounts:
        _ask(pipe, pack("SADD", keys.PROTECTING, *(str(account) for account in accounts)))


def remembered(pipe: Pipe, limit: int) -> list[Account]:
    """At most so many of those that are noted; raises as `forget`."""
    found = []
    for member in _ask(pipe, pack("SRANDMEMBER", keys.PROTECTING, limit)):
        try:
            found.append(identifiers.parse_account(text(member)))
        except InvalidId as fault:
            log.critical("protecting_unreadable", member=text(member)[:80], code=fault.code)
            _ask(pipe, pack("SREM", keys.PROTECTING, member))
    return found


def forget(pipe: Pipe, accounts: Sequence[Account]) -> None:
    """Note that everything that follows was brought about.

    Raises
    ------
    StoreError, StoreUnavailable
        `KEY_UNUSABLE`: what they are noted in is something else.
    """
    if accounts:
        _ask(pipe, pack("SREM", keys.PROTECTING, *(str(account) for account in accounts)))


def _ask(pipe: Pipe, request: bytes) -> Any:
    (reply,) = pipe.exchange([request])
    failure = refused(reply)
    if failure is not None:
        raise failure
    return reply


def _json(said: Mapping[str, Any]) -> str:
    return json.dumps(said, separators=(",", ":"))
