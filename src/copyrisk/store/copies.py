"""Copies as requests: what one decision says of thousands of followers is packed once, with blanks for the rest.

A class of followers has the same group, flow and side; ids, lots, margin and what the account must be as read are all
that differ. The order of the class is made by the very code that makes every other order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from copyrisk._templates import Template
from copyrisk.decimals import charge_text, decimal_text, money_text
from copyrisk.derived import derived_id
from copyrisk.identifiers import Account
from copyrisk.orders import Event
from copyrisk.records import order_fields, record_text, result_fields
from copyrisk.situation import Outcome
from copyrisk.steps import request_words
from copyrisk.store.changes import Cause, change_of
from copyrisk.store.effects import Effects, Waiting
from copyrisk.store.functions import AccountRead, Standing, copy_request, hold_request
from copyrisk.terms import AccountType

#: What is filled in, in the order of `CopyColumns.texts`.
_FOLLOWER, _ORDER, _REQUEST = "@follower@", "@order@", "@request@"
_DEADLINE, _VERSION, _NEW_VERSION = "@deadline@", "@version@", "@new_version@"
_BALANCE, _LEVERAGE, _COUNT = "@balance@", "@leverage@", "@count@"
_LOTS, _VALUE, _COMMISSION, _MARGIN = "@lots@", "@value@", "@commission@", "@margin@"
_REMAINDER = "@remainder@"
_BLANKS = (
    *(_FOLLOWER, _ORDER, _REQUEST, _DEADLINE, _VERSION, _NEW_VERSION, _BALANCE, _LEVERAGE, _COUNT),
    *(_LOTS, _VALUE, _COMMISSION, _MARGIN, _REMAINDER),
)
_PLACES = {blank: place for place, blank in enumerate(_BLANKS)}
_ACCOUNT = Account(AccountType.FOLLOWER, _FOLLOWER)


@dataclass(frozen=True, slots=True)
class CopyColumns:
    """What differs between copies of a class, a text for each of them."""

    followers: list[bytes]
    order_ids: list[bytes]
    request_ids: list[bytes] | bytes
    deadline: bytes
    versions: list[bytes]
    new_versions: list[int]
    balances: list[bytes]
    leverages: list[bytes]
    counts: list[bytes]
    amounts: list[tuple[bytes, bytes, bytes]]
    margins: list[bytes]
    margin_cents: list[int]
    remainders: list[bytes] | bytes = b""
    _texts: list[list[bytes] | bytes] = field(default_factory=list)

    def texts(self) -> list[list[bytes] | bytes]:
        """As they are filled in, in the order of the blanks."""
        if not self._texts:
            lots, values, commissions = (list(column) for column in zip(*self.amounts, strict=True))
            versions = [b"%d" % version for version in self.new_versions]
            self._texts.extend(
                [self.followers, self.order_ids, self.request_ids, self.deadline, self.versions, versions]
            )
            self._texts.extend([self.balances, self.leverages, self.counts, lots, values, commissions, self.margins])
            self._texts.append(self.remainders)
        return self._texts


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
    """

    def __init__(
        self, outcome: Outcome, cause: Cause, standing: tuple[str, str], now_ms: int, effects: Effects
    ) -> None:
        order = replace(outcome.order, account=_ACCOUNT, id=_ORDER)
        opening = order.request_of("open", "place")
        self._request_prefix = opening.action[:1] if opening else ""
        asked = request_words(order, opening) if opening else {}
        change = change_of(_read(now_ms), replace(outcome, order=order, request=asked), cause)
        is_filled = outcome.event is Event.OPENED
        said = _blanked(order_fields(order), is_filled=is_filled)
        group, copy_status = standing
        rests_on = Standing(_DEADLINE, _VERSION, _BALANCE, _LEVERAGE, group, copy_status, _COUNT)
        record = _record(record_text(order))
        copy = copy_request(_ACCOUNT, _ORDER, rests_on, said, version=_NEW_VERSION, record=record, remainder=_REMAINDER)
        self._copy = Template(copy, _PLACES)
        follows = _follows(change.follows, said | _blanked(result_fields(order), is_filled=is_filled))
        self._effects = Template(b"".join(effects.requests(Waiting(_ACCOUNT, b"", follows))), _PLACES)
        self._symbol = order.symbol

    def request_ids(self, followers: Sequence[bytes], order_ids: Sequence[bytes]) -> list[bytes] | bytes:
        """Of what the provider is asked for copies; empty if it is not asked."""
        if not self._request_prefix:
            return b""
        accounts = [str(Account(AccountType.FOLLOWER, follower.decode())) for follower in followers]
        return [
            derived_id(self._request_prefix, account, order_id.decode(), "1").encode()
            for account, order_id in zip(accounts, order_ids, strict=True)
        ]

    def copies(self, columns: CopyColumns, start: int, stop: int) -> bytes:
        """The calls that make copies."""
        return self._copy.fill(columns.texts(), start, stop)

    def effects(self, columns: CopyColumns, made: Sequence[int]) -> tuple[bytes, int]:
        """What follows once some of them are made, and how many commands that is; harmless if it was done before."""
        texts = [text if isinstance(text, bytes) else [text[i] for i in made] for text in columns.texts()]
        held: dict[Account, int | str] = {
            Account(AccountType.FOLLOWER, columns.followers[i].decode()): columns.new_versions[i] for i in made
        }
        holding = hold_request(self._symbol, held, holds=True)
        return self._effects.fill(texts, 0, len(made)) + holding, self._effects.commands * len(made) + 1


def _read(now_ms: int) -> AccountRead:
    """A follower's account as far as an order's first change needs it."""
    return AccountRead(_ACCOUNT, now_ms, "", "", "", 0, {}, (), (), (), {}, "", "")


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
    del found["holds"]  # the holders of a symbol are one key: they are told of many followers at once
    if "triggers" in follows:
        margin = {"margin": _MARGIN} if "margin" in follows["triggers"] else {}
        found["triggers"] = follows["triggers"] | margin
    if "request" in follows:
        found["request"] = follows["request"] | {"request_id": _REQUEST, "order_quantity": _LOTS}
    return found


def lots_bytes(lots: Decimal) -> bytes:
    """Lots as they are written in a copy."""
    return decimal_text(lots).encode()


def usd_bytes(amount: Decimal) -> bytes:
    """Margin as it is written in a copy."""
    return money_text(amount).encode()


def charge_bytes(amount: Decimal) -> bytes:
    """Commission as it is written in a copy."""
    return charge_text(amount).encode()
