"""Warnings to clients: what a notice says, whom it goes to, and what a sink is that takes it there.

No store: a notice comes as the fields of its stream entry, and its client is handed in.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from copyrisk import identifiers
from copyrisk.decimals import parse_decimal
from copyrisk.errors import InvalidId, Refused
from copyrisk.gateway.messages import printable
from copyrisk.identifiers import Account

FIGURES = ("level_pct", "warning_level_pct", "critical_level_pct", "equity_usd", "used_margin_usd", "open_pnl_usd")
_ID = re.compile(rf"([a-z_]{{1,32}}:{identifiers.ID_PATTERN}):[0-9]{{1,15}}", re.ASCII)
_TIME = re.compile(r"[0-9]{1,14}", re.ASCII)
_ADDRESS = re.compile(
    r"([A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*)"
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)",
    re.ASCII,
)
_SAID_CHARS, _WORD_CHARS = 16_000, 64
_POSITIONS = 20
_HIGHEST = Decimal(10) ** 15


@dataclass(frozen=True, slots=True)
class Position:
    """One that hurts; `pnl_usd` is its open profit, `None` if it is not known."""

    order_id: str
    symbol: str
    side: str
    lots: Decimal
    pnl_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning that is to reach a client.

    Attributes
    ----------
    id : str
        `T:U:N`, the N-th episode of the account.
    ts_ms : int
        When the level was seen.
    figures : dict
        By the names of `FIGURES`, in percent and USD.
    sinks : sequence of str
        The only ones that it concerns; empty for all that there are.
    """

    id: str
    account: Account
    ts_ms: int
    figures: Mapping[str, Decimal]
    positions: Sequence[Position]
    sinks: Sequence[str] = ()

    @property
    def key(self) -> str:
        """What tells it from every other, also of a house whose numbers began anew."""
        return f"{self.id}:{self.ts_ms}"


@dataclass(frozen=True, slots=True)
class Client:
    """Whom an account belongs to, as far as a warning needs it; what is absent is empty."""

    account_number: str
    email: str


class Sink(Protocol):
    """A way to the client. Several threads use it at once; a delivery does not outlast its time limit by much."""

    @property
    def name(self) -> str:
        """The word of the settings."""

    def deliver(self, notice: Notice, client: Client) -> None:
        """Take a notice to its client.

        Raises
        ------
        Refused
            It will never be taken.
        TryLater
            It was not taken, or it is not known whether it was.
        """

    def close(self) -> None:
        """Let go of what is open."""


def parse_notice(fields: Mapping[str, str]) -> Notice:
    """The notice of a stream entry.

    Raises
    ------
    Refused
        `notice_invalid`.
    """
    try:
        return _parse(fields)
    except (InvalidId, LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as fault:
        raise Refused(f"a notice that makes no sense: {printable(repr(fault))}", code="notice_invalid") from None


def _parse(fields: Mapping[str, str]) -> Notice:
    account = identifiers.account(fields["user_type"], fields["user_id"])
    found = _ID.fullmatch(fields["notice_id"])
    if fields["kind"] != "warning" or found is None or found[1] != str(account):
        raise ValueError("its kind, or its id and account")
    if _TIME.fullmatch(fields["ts"]) is None or len(fields["said"]) > _SAID_CHARS:
        raise ValueError("its ts, or more said than there can be")
    said = json.loads(fields["said"], parse_float=Decimal, parse_int=Decimal, parse_constant=_no_number)
    figures = {name: _number(said[name]) for name in FIGURES}
    positions = [_position(one) for one in said["positions"][:_POSITIONS]]
    sinks = tuple(name for name in fields.get("sinks", "").split(",") if name)
    return Notice(fields["notice_id"], account, int(fields["ts"]), figures, positions, sinks)


def _no_number(text: str) -> Decimal:
    raise ValueError(f"{text} is no number")


def _number(said: Any) -> Decimal:
    value = parse_decimal(said) if isinstance(said, str) else said
    if not isinstance(value, Decimal) or not abs(value) < _HIGHEST:
        raise ValueError("a figure that is none")
    return value


def _position(said: Mapping[str, Any]) -> Position:
    texts = [printable(str(said[name]), _WORD_CHARS) for name in ("order_id", "symbol", "side")]
    pnl = said["pnl_usd"]
    return Position(texts[0], texts[1], texts[2], _number(said["lots"]), None if pnl is None else _number(pnl))


def check_address(text: str) -> str:
    """Return `text` if it is an e-mail address that a mail can be sent to as it is.

    ASCII only, no quotes, no comments, no display name, a domain of two labels or more.

    Raises
    ------
    Refused
        `email_invalid`.
    """
    found = _ADDRESS.fullmatch(text) if len(text) <= 254 else None
    if found is None or len(found[1]) > 64:
        why = f"{printable(text, _WORD_CHARS)!a} is no e-mail address" if text else "the account has no e-mail address"
        raise Refused(why, code="email_invalid")
    return text
