"""The kill switch in Redis: read with what a decision is about, set and taken away by operators.

It is one hash in a slot of its own. Whoever is about to open something reads it after what the decision rests on, so
that the decision's deadline (`DECISION_MS`) bounds how long after a kill an order may still be stored.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import structlog

from copyrisk import identifiers, keys
from copyrisk.book import Book, RowNumbers
from copyrisk.derived import COPY_PREFIX
from copyrisk.errors import InvalidId, Refused, StoreError
from copyrisk.identifiers import Account
from copyrisk.kills import NO_KILLS, TRADING_HALTED, Kills, orders_without_symbol, parse_kills, unreadable_switch
from copyrisk.store.functions import KEY_UNUSABLE, refused, text, texts, usable
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType

log = structlog.get_logger(__name__)

#: A switch of more is no switch; each wave of commands reads all of it.
KILLS_LIMIT = 1_000


class Opening(NamedTuple):
    """An order that is about to add lots: whose, on what, and whose order it says it copies (empty: none)."""

    account: Account
    symbol: str
    master_order_id: str = ""


class KillSwitch:
    """The switch as of the last reading.

    Attributes
    ----------
    kills : Kills
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._stored: dict[str, str] = {}
        self.kills: Kills = NO_KILLS

    @staticmethod
    def request() -> bytes:
        """Ask for it; to be sent behind whatever a decision rests on."""
        return pack("HGETALL", keys.KILLS)

    def take(self, reply: Any) -> Kills:
        """The answer to `request`.

        Raises
        ------
        StoreError, StoreUnavailable
            The server cannot be used; of a key that cannot be read the kills say so.
        """
        failure = refused(reply)
        if failure is not None:
            if failure.code != KEY_UNUSABLE:
                raise failure
            if self.kills.fault is None:
                log.critical("kill_switch_unreadable", reason=str(failure))
            self._stored, self.kills = {}, unreadable_switch(str(failure))
            return self.kills
        stored = texts(_flat(reply))
        if stored != self._stored or self.kills.fault is not None:
            self._stored, self.kills = stored, parse_kills(stored)
            for kill in self.kills.unreadable:
                log.critical("kill_unreadable", scope=kill.scope[:80], code=kill.code)
        return self.kills

    def read(self) -> Kills:
        """Read it now.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        (reply,) = self._pipe.exchange([self.request()])
        return self.take(reply)

    def refusals(self, openings: Sequence[Opening]) -> list[Refused | None]:
        """Why each of some orders may not add lots, as of the last reading; `None` for those that may.

        Only while masters are halted the server is asked whose orders are copied.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        kills = self.kills
        found = [kills.refusal(one.account, one.symbol) for one in openings]
        open_ones = [i for i, one in enumerate(openings) if found[i] is None and one.master_order_id]
        if not kills.masters or not open_ones:
            return found
        masters = self._masters_of([openings[i] for i in open_ones])
        for i, known in zip(open_ones, masters, strict=True):
            if known is None:
                found[i] = Refused("masters are halted, and whose copy this is cannot be told", code=TRADING_HALTED)
            else:
                found[i] = kills.refusal(openings[i].account, openings[i].symbol, known)
        return found

    def _masters_of(self, copies: Sequence[Opening]) -> list[set[str] | None]:
        """Who may be the master of each copy: whose order it names, and whom its account follows; `None`: not known."""
        asked = []
        for copy in copies:
            order = keys.order_data(copy.master_order_id)
            asked += [pack("HMGET", order, "user_type", "user_id"), pack("GET", keys.provider_of(copy.account.id))]
        replies = [usable(reply) for reply in self._pipe.exchange(asked)]
        found: list[set[str] | None] = []
        for copy, order, provider in zip(copies, replies[::2], replies[1::2], strict=True):
            known = [text(word) for word in order or () if word is not None]
            followed = text(provider) if provider and copy.account.type is AccountType.FOLLOWER else ""
            if len(known) == 2 and known[0] != AccountType.MASTER:  # another account's order: no copy of a master's
                found.append({followed} - {""})
                continue
            masters = {*known[1:], followed} - {""}
            found.append(masters or None)
        return found

    def held_back(self, pending: Mapping[int, tuple[Account, str, bytes]]) -> set[int]:
        """Which pending orders, whose price is there, must wait on: account, symbol and order id of each.

        A worker would refuse them, again and again; copies that another system made are left to it.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        if not pending:
            return set()
        kills = self.read()
        held = {i for i, (account, symbol, _) in pending.items() if kills.refusal(account, symbol) is not None}
        copies = {
            i: account
            for i, (account, _, order_id) in pending.items()
            if i not in held and account.type is AccountType.FOLLOWER and order_id.startswith(COPY_PREFIX.encode())
        }
        if not kills.masters or not copies:
            return held
        replies = self._pipe.exchange([pack("GET", keys.provider_of(account.id)) for account in copies.values()])
        return held | {i for i, reply in zip(copies, replies, strict=True) if text(usable(reply)) in kills.masters}


def set_kill(pipe: Pipe, scope: bytes, stands: bytes, said: str) -> bool:
    """Halt a scope (`kills.kill_text`), if what stands under it is what was read (empty: nothing); returns whether.

    Raises
    ------
    Refused
        `too_many_kills`.
    StoreError, StoreUnavailable
        `kill_switch_unreadable`: what is there is no switch; nothing opens.
    """
    return _change(pipe, scope, stands, said)


def take_away(pipe: Pipe, scope: bytes, stands: bytes) -> bool:
    """End what stands under a scope, if it is what was read; returns whether. Raises as `set_kill`."""
    return _change(pipe, scope, stands, "")


def _change(pipe: Pipe, scope: bytes, stands: bytes, said: str) -> bool:
    (reply,) = pipe.exchange([pack("FCALL", "copyrisk_kill_v1", 1, keys.KILLS, scope, stands, said, KILLS_LIMIT)])
    _raise_unusable(reply)
    if reply == b"full":
        raise Refused(f"{KILLS_LIMIT} scopes are halted already", code="too_many_kills")
    return bool(reply == b"done")


def read_stored(pipe: Pipe) -> tuple[dict[bytes, bytes], int]:
    """What stands in the switch, byte for byte, by scope; and the server's clock, in ms. Raises as `set_kill`."""
    reply, time = pipe.exchange([KillSwitch.request(), pack("TIME")])
    _raise_unusable(reply)
    _raise_unusable(time)
    return dict(zip(*[iter(_flat(reply))] * 2, strict=True)), int(time[0]) * 1000 + int(time[1]) // 1000


def followers_of_masters(pipe: Pipe, masters: Collection[str]) -> dict[str, list[Account]]:
    """Who copies each of some masters now, sorted; members that are no ids are left out, and logged.

    Raises
    ------
    StoreError, StoreUnavailable
        `key_unusable`: the set of one of them cannot be read; nothing can be said of its followers.
    """
    replies = pipe.exchange([pack("SMEMBERS", keys.active_followers(master)) for master in masters])
    found: dict[str, list[Account]] = {}
    for master, reply in zip(masters, replies, strict=True):
        failure = refused(reply)
        if failure is not None:
            raise failure
        found[master] = []
        for member in sorted(map(text, reply)):
            try:
                found[master].append(Account(AccountType.FOLLOWER, identifiers.check_account_id(member)))
            except InvalidId as fault:
                log.error("follower_unreadable", master=master, reason=str(fault))
    return found


def waiting_on(pipe: Pipe, book: Book, symbols: Collection[str]) -> RowNumbers:
    """(n,) rows of the orders on some symbols of which the book does not know it, ascending: their hashes say so.

    It asks for all such orders of the house. On a halted symbol no new ones come, so that asking every few seconds,
    for those that could not be taken back yet, is often enough.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    rows, asked = [], []
    if symbols:
        for row in orders_without_symbol(book).tolist():
            try:
                order_id = identifiers.check_order_id(text(book.order_ids.text(row)))
            except InvalidId:
                continue
            rows.append(row)
            asked.append(
                pack("HGET", keys.holding(book.account_at(int(book.orders["account"][row])), order_id), "symbol")
            )
    replies = [usable(reply) for reply in pipe.exchange(asked)]
    found = [row for row, reply in zip(rows, replies, strict=True) if text(reply) in symbols]
    return np.array(found, np.int32)


def _raise_unusable(reply: Any) -> None:
    failure = refused(reply)
    if failure is None:
        return
    if failure.code == KEY_UNUSABLE:
        raise StoreError(f"{keys.KILLS} cannot be used, so nothing opens: {failure}", code="kill_switch_unreadable")
    raise failure


def _flat(reply: Any) -> list[bytes]:
    """The words of a hash that came flat, or (with the newer protocol) as a map."""
    return [word for item in reply.items() for word in item] if isinstance(reply, dict) else reply
