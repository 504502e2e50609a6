"""Relationships as they stand, for those who look: some followers' in two exchanges, or all of them a bit at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from copyrisk import fields, keys
from copyrisk.errors import StoreError
from copyrisk.following import COPY_STATUS, INHERITED, SETTING_NAMES, WALLET_BALANCE, account_of
from copyrisk.store.functions import refused, text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.relation_steps import Batch, is_account_id

_CONFIG = tuple(
    dict.fromkeys((COPY_STATUS, WALLET_BALANCE, fields.INVESTMENT, "status", "is_active", *INHERITED, *SETTING_NAMES))
)
#: Figures of a portfolio; and with them what says whether they are those of now.
FIGURES = (
    *(fields.EQUITY, fields.BALANCE, fields.FREE_MARGIN, fields.USED_MARGIN, fields.USED_MARGIN_EXECUTED),
    *(fields.USED_MARGIN_ALL, fields.MARGIN_LEVEL, fields.OPEN_PNL, fields.TOTAL_PL),
)
PORTFOLIO_FIELDS = (*FIGURES, fields.CALC_STATUS, fields.DEGRADED_FIELDS, fields.TS, fields.VALUED_TS)
_SCAN_COUNT, _SCANS = 2_000, 10


@dataclass(frozen=True, slots=True)
class Relation:
    """What there is of one follower.

    Attributes
    ----------
    code : str
        `ok`, or why it cannot be told.
    master : str
        Whoever claims it; empty: nobody.
    is_active : bool
        Whether it is in its master's set: it copies now.
    config, portfolio : mapping of str to str
        Those of their fields that are shown and are there.
    """

    follower: str
    code: str = "ok"
    master: str = ""
    has_config: bool = False
    is_active: bool = False
    config: Mapping[str, str] = field(default_factory=dict)
    portfolio: Mapping[str, str] = field(default_factory=dict)


def relations_of(pipe: Pipe, followers: Sequence[str]) -> list[Relation]:
    """Relationships of these checked ids, in order.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    batch = Batch(pipe)
    looked = batch.ask({name: _requests(name) for name in dict.fromkeys(followers)})
    claims = {name: text(answers[0]) for name, answers in looked.items()}
    joined = batch.ask(
        {
            name: [pack("SISMEMBER", keys.active_followers(master), name)]
            for name, master in claims.items()
            if is_account_id(master)
        }
    )
    found = []
    for name in followers:
        if name in batch.outcomes:
            found.append(Relation(name, batch.outcomes[name].code))
            continue
        _, exists, config, portfolio = looked[name]
        is_active = bool(joined[name][0]) if name in joined else False
        said = (_there(_CONFIG, config), _there(PORTFOLIO_FIELDS, portfolio))
        found.append(Relation(name, "ok", claims[name], bool(exists), is_active, *said))
    return found


def _requests(follower: str) -> list[bytes]:
    account = account_of(follower)
    return [
        pack("GET", keys.provider_of(follower)),
        pack("EXISTS", keys.config(account)),
        pack("HMGET", keys.config(account), *_CONFIG),
        pack("HMGET", keys.portfolio(account), *PORTFOLIO_FIELDS),
    ]


def _there(names: Sequence[str], values: Sequence[bytes | None]) -> dict[str, str]:
    return {name: text(value) for name, value in zip(names, values, strict=True) if value is not None}


def scan_followers(pipe: Pipe, cursor: str) -> tuple[list[str], str]:
    """Ids of some followers that have a master, paused ones too; and where to go on (`0`: this was the last of them).

    Each call goes through a bounded part of the database, and finds none, some, or one that an earlier call found.

    Parameters
    ----------
    cursor : str
        `0`, or what the call before has returned.

    Raises
    ------
    StoreError, StoreUnavailable
        `server_is_cluster`: this server has only some of them.
    """
    said, *_ = pipe.ask(pack("INFO", "cluster"))
    if "cluster_enabled:1" in (text(said) if isinstance(said, bytes) else str(said)):
        raise StoreError("one server of a cluster does not have all keys", code="server_is_cluster")
    names: dict[str, None] = {}
    for _ in range(_SCANS):
        request = pack("SCAN", cursor, "MATCH", keys.PROVIDER_OF.pattern, "COUNT", _SCAN_COUNT)
        (reply,) = pipe.exchange([request])
        cursor, found = _scanned(reply)
        inside = (text(keys.PROVIDER_OF.inside(key)) for key in found)
        names |= dict.fromkeys(name for name in inside if is_account_id(name))
        if cursor == "0":
            break
    return list(names), cursor


def _scanned(reply: Any) -> tuple[str, Sequence[bytes]]:
    failure = refused(reply)
    if failure is not None:
        raise failure
    return text(reply[0]), reply[1]
