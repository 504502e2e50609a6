"""`explain` and `replication`: what was decided about copies and came of it, and how replication goes as a whole."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import redis

from copyrisk import keys
from copyrisk.commands import copy_id
from copyrisk.errors import ConfigError, Refused, StoreError
from copyrisk.explaining import Explanation, Facts, explanation, place_of
from copyrisk.following import check_master
from copyrisk.gateway.messages import printable
from copyrisk.keys import Account
from copyrisk.orders import Event
from copyrisk.progress import Progress, progress
from copyrisk.records import read_order
from copyrisk.replicator import GROUP, ROLE
from copyrisk.roles import client_of
from copyrisk.settings import Settings
from copyrisk.store.connection import OF_ONE_KEY, store_error
from copyrisk.store.decisions import Decision, Decisions
from copyrisk.store.followers import follower_of
from copyrisk.store.functions import text, texts
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.tallies import Tallies
from copyrisk.terms import AccountType, ExecutionStatus, Flow

_SHOWN_CHARS = 4_000
_AT_ONCE, _PAGES = 1_000, 20
#: After these a copy is filled, if it is executed at all.
_FILLING = (Event.FILL_REPORTED, Event.TRIGGERED, Event.REJECT_REPORTED, Event.END_REPORTED)
_UNREADABLE = {"state": "unreadable"}


def add_reporting_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`explain`, `replication`."""
    why = commands.add_parser("explain", help="what was known, decided and done about the copies of a master's order")
    why.add_argument("order_id", metavar="ORDER_ID", help="of the master's order, or of a copy")
    why.add_argument("--follower", metavar="FOLLOWER", help="this one in full")
    how = commands.add_parser("replication", help="how replication goes, of all masters or of one")
    how.add_argument("master", nargs="?", metavar="MASTER")
    for parser in (why, how):
        parser.add_argument("--json", action="store_true", help="everything, as a JSON object")


@contextmanager
def _opened(settings: Settings, what: str) -> Iterator[Pipe]:
    if settings.redis.url is None:
        raise ConfigError(f"{what}: say which server with --redis")
    client = client_of(settings, settings.redis.url)
    pipe = Pipe(client)
    try:
        yield pipe
    finally:
        pipe.close()
        client.close()


def _ask(pipe: Pipe, requests: Sequence[bytes]) -> list[Any]:
    """Replies; `None` for those of keys that hold something else."""
    replies = pipe.exchange(requests)
    for place, reply in enumerate(replies):
        if isinstance(reply, Exception):
            if not str(reply).startswith((*OF_ONE_KEY, "ERR no such key")):
                raise store_error(redis.ResponseError(str(reply)))
            replies[place] = None
    return replies


# ---- explain


def _explain(settings: Settings, options: argparse.Namespace) -> int:
    with _opened(settings, "explain") as pipe:
        found = _explained(pipe, options.order_id, options.follower, is_full=options.json)
    if options.json:
        print(json.dumps({"order": found.order, "followers": found.followers, "differs": dict(found.differs)}, indent=1))
    else:
        for line in explanation_lines(found):
            print(printable(line, _SHOWN_CHARS))
    return 1 if found.differs else 0


def _explained(pipe: Pipe, order_id: str, follower: str | None, *, is_full: bool) -> Explanation:
    keys.check_order_id(order_id)
    chosen = None if follower is None else _follower_id(follower)
    decision = Decisions(pipe).load(order_id)
    if decision is None:
        order_id, owner = _order_copied(pipe, order_id)
        if chosen not in (None, owner):
            raise Refused(f"this is a copy of {owner}, not of {chosen}", code="follower_unknown")
        chosen, decision = owner, Decisions(pipe).load(order_id)
    if decision is None:
        raise Refused(f"nothing is known here of copies of order {order_id}", code="decision_missing")
    places = list(range(len(decision.rows))) if is_full else []
    if chosen is not None:
        places = [place_of(decision, chosen)]
    copies = _copies(pipe, decision, places)
    return explanation(decision, _waiting(pipe, order_id), places, copies)


def _follower_id(given: str) -> str:
    account = keys.parse_account(given) if ":" in given else keys.account(AccountType.FOLLOWER.value, given)
    if account.type is not AccountType.FOLLOWER:
        raise Refused(f"{account} is no follower", code="not_a_follower")
    return account.id


def _order_copied(pipe: Pipe, order_id: str) -> tuple[str, str]:
    """The master's order, and the follower, of a copy."""
    (reply,) = _ask(pipe, [pack("HMGET", keys.order_data(order_id), "master_order_id", "user_type", "user_id")])
    master_order_id, user_type, user_id = ("", "", "") if reply is None else map(text, reply)
    if not user_type:
        raise Refused(f"there is no order {order_id}, or no more", code="order_unknown")
    if user_type == AccountType.FOLLOWER and master_order_id:
        return keys.check_order_id(master_order_id), keys.check_account_id(user_id)
    raise Refused(f"order {order_id} is none that was copied, and no copy", code="order_not_copied")


def _waiting(pipe: Pipe, order_id: str) -> dict[str, Facts]:
    """Copies of an order that could not follow it so far, and why."""
    (reply,) = _ask(pipe, [pack("HGETALL", keys.WAITING_COPIES)])
    found = {}
    for own_id, stored in _mapping(reply).items():
        try:
            said = json.loads(stored)
            if said["order_id"] == order_id:
                found[own_id] = {"follower": str(said["follower"]), "code": str(said.get("code", ""))}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # whoever has it follow says so
    return found


def _mapping(reply: Any) -> dict[str, str]:
    if isinstance(reply, Mapping):
        return {text(name): text(value) for name, value in reply.items()}
    return texts(reply or ())


def _copies(pipe: Pipe, decision: Decision, places: Sequence[int]) -> dict[int, Facts]:
    """What became of copies, by place: as they are now, and what happened to them since."""
    members = decision.rows["follower"].tolist()
    accounts = {place: account for place in places if (account := follower_of(members[place])) is not None}
    named = {place: (account, copy_id(decision.order_id, account)) for place, account in accounts.items()}
    requests = []
    for one in named.values():
        requests += [pack("HGETALL", keys.holding(*one)), pack("GET", keys.order_record(*one))]
    replies = _ask(pipe, requests)
    since_ms = str(decision.header.get("received_ms", "0"))
    histories = _histories(pipe, named, since_ms if since_ms.isdecimal() else "0")
    found = {}
    for i, (place, one) in enumerate(named.items()):
        now = _state_now(*one, *replies[2 * i : 2 * i + 2])
        found[place] = {"copy": now, "history": histories[place], "filled_ms": _filled_ms(now, histories[place])}
    return found


def _state_now(account: Account, own_id: str, hash_reply: Any, record: Any) -> Facts | None:
    try:
        order = read_order(account, own_id, _mapping(hash_reply), text(record) or None)
    except Refused:
        return _UNREADABLE
    if order is None:
        return None
    return {
        "state": order.state.value,
        "flow": order.flow.value if order.flow else None,
        "order_type": order.order_type.value,
        "lots_asked": str(order.asked),
        "lots": str(order.quantity),
        "price": str(order.price),
        "stop_loss": None if order.stop_loss is None else str(order.stop_loss),
        "take_profit": None if order.take_profit is None else str(order.take_profit),
    }
