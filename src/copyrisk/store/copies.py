"""Copies as requests: what one decision says of thousands of followers is packed once, with blanks for the rest.

A class of followers has the same group, flow and side; ids, lots, margin and what the account must be as read are all
that differ. The order of the class is made by the very code that makes every other order.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple

from copyrisk.commands import derived_id
from copyrisk.decimals import charge_text, decimal_text, money_text
from copyrisk.keys import Account
from copyrisk.orders import Event
from copyrisk.records import order_fields, record_text, result_fields
from copyrisk.situation import Outcome
from copyrisk.store.changes import Cause, change_of
from copyrisk.store.effects import Effects, Waiting
from copyrisk.store.functions import AccountRead, Standing, copy_request
from copyrisk.store.templates import Template
from copyrisk.terms import AccountType

#: What is filled in, in the order of `Copy`.
_FOLLOWER, _ORDER, _REQUEST = "@follower@", "@order@", "@request@"
_DEADLINE, _VERSION, _NEW_VERSION = "@deadline@", "@version@", "@new_version@"
_BALANCE, _LEVERAGE, _COUNT = "@balance@", "@leverage@", "@count@"
_LOTS, _VALUE, _COMMISSION, _MARGIN = "@lots@", "@value@", "@commission@", "@margin@"
_BLANKS = (
    *(_FOLLOWER, _ORDER, _REQUEST, _DEADLINE, _VERSION, _NEW_VERSION, _BALANCE, _LEVERAGE, _COUNT),
    *(_LOTS, _VALUE, _COMMISSION, _MARGIN),
)
_PLACES = {blank: place for place, blank in enumerate(_BLANKS)}
_ACCOUNT = Account(AccountType.FOLLOWER, _FOLLOWER)


class Copy(NamedTuple):
    """What is different in each copy of a class, as it is written."""

    follower: bytes
    order_id: bytes
    request_id: bytes
    deadline_ms: bytes
    version: bytes
    new_version: bytes
    balance: bytes
    leverage: bytes
    order_count: bytes
    lots: bytes
    contract_value: bytes
    commission: bytes
    margin: bytes


class CopyForm:
    """The requests of one class: the copy itself, then what follows from it in other slots.

    Parameters
    ----------
    outcome : Outcome
        What placing the order in an account of the class comes to; lots and margin are whatever they are.
    cause : Cause
    standing : tuple of two str
        Group and `copy_status` of the accounts of this class.
    now_ms : int
    effects : Effects

    Attributes
    ----------
    effect_commands : int
        How many there are for each copy.
    """

    def __init__(
        self, outcome: Outcome, cause: Cause, standing: tuple[str, str], now_ms: int, effects: Effects
    ) -> None:
        order = replace(outcome.order, account=_ACCOUNT, id=_ORDER)
        self._request_prefix = next(iter(order.requests.values())).action[:1] if order.requests else ""
        change = change_of(_read(now_ms), replace(outcome, order=order), cause)
        is_filled = outcome.event is Event.OPENED
        said = _blanked(order_fields(order), is_filled=is_filled)
        group, copy_status = standing
        rests_on = Standing(_DEADLINE, _VERSION, _BALANCE, _LEVERAGE, group, copy_status, _COUNT)
        record = _record(record_text(order))
        copy = copy_request(_ACCOUNT, _ORDER, rests_on, said, version=_NEW_VERSION, record=record)
        self._copy = Template(copy, _PLACES)
        follows = _follows(change.follows, said | _blanked(result_fields(order), is_filled=is_filled))
        self._effects = Template(b"".join(effects.requests(Waiting(_ACCOUNT, b"", follows))), _PLACES)
        self.effect_commands = self._effects.commands

    def request_id(self, follower: str, order_id: str) -> str:
        """Of what the provider is asked for a copy; empty if it is not asked."""
        if not self._request_prefix:
            return ""
        return derived_id(self._request_prefix, str(Account(AccountType.FOLLOWER, follower)), order_id, "1")

    def copy(self, copy: Copy) -> bytes:
        """The call that makes the copy."""
        return self._copy.fill(copy)

    def effects(self, copy: Copy) -> bytes:
        """What follows once it is made; harmless if it was done before."""
        return self._effects.fill(copy)


def _read(now_ms: int) -> AccountRead:
    """A follower's account as far as an order's first change needs it."""
    return AccountRead(_ACCOUNT, now_ms, "", "", 0, {}, (), (), (), {}, "", "")


def _blanked(said: Mapping[str, str], *, is_filled: bool) -> dict[str, str]:
    blanks = {"order_quantity": _LOTS, "margin": _MARGIN, "contract_value": _VALUE}
    if is_filled:
        blanks |= {"opened_quantity": _LOTS, "commission": _COMMISSION}
    return {name: blanks.get(name, value) for name, value in said.items()}


def _record(text: str) -> str:
    said = json.loads(text)
    said |= {"asked": _LOTS, "whole_margin": _MARGIN, "made": 0}
    if said["opened"] != "0":
        said["opened"] = _LOTS
    for request in said["requests"]:
        request[0], request[4] = _REQUEST, _LOTS
    # A number, and no text, in the record: the blank loses its quotes.
    return json.dumps(said, separators=(",", ":")).replace('"made":0', f'"made":{_NEW_VERSION}')


def _follows(follows: Mapping[str, Any], order: Mapping[str, str]) -> dict[str, Any]:
    event = follows["event"] | {"event_id": f"{_ACCOUNT}:{_NEW_VERSION}", "version": _NEW_VERSION}
    found = {**follows, "version": _NEW_VERSION, "order": order, "event": event}
    if "triggers" in follows:
        margin = {"margin": _MARGIN} if "margin" in follows["triggers"] else {}
        found["triggers"] = follows["triggers"] | margin
    if "request" in follows:
        found["request"] = follows["request"] | {"request_id": _REQUEST, "order_quantity": _LOTS}
    return found


def lots_text(lots: Decimal) -> bytes:
    """Lots as they are written in a copy."""
    return decimal_text(lots).encode()


def usd_text(amount: Decimal) -> bytes:
    """Margin as it is written in a copy."""
    return money_text(amount).encode()


def commission_text(amount: Decimal) -> bytes:
    """Commission as it is written in a copy."""
    return charge_text(amount).encode()
