"""`explain` and `replication`: what was decided about copies and came of it, and how replication goes as a whole."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from copyrisk import identifiers, keys
from copyrisk.derived import copy_id
from copyrisk.errors import ConfigError, Refused, StoreError
from copyrisk.explaining import Explanation, Facts, explanation, place_of, received_ms
from copyrisk.following import check_master
from copyrisk.gateway.messages import printable
from copyrisk.progress import progress_of
from copyrisk.replicator import GROUP, ROLE
from copyrisk.roles import client_of
from copyrisk.settings import Settings
from copyrisk.store.copy_states import ask, mapping, read_copy_states
from copyrisk.store.decisions import Decision, Decisions
from copyrisk.store.followers import follower_of
from copyrisk.store.functions import text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.tallies import ALL, Tallies
from copyrisk.telling import explanation_lines, replication_lines
from copyrisk.terms import AccountType

_SHOWN_CHARS = 4_000


def add_reporting_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`explain`, `replication`."""
    why = commands.add_parser("explain", help="what was known, decided and done about the copies of a master's order")
    why.add_argument("order_id", metavar="ORDER_ID", help="of the master's order, or of a copy")
    why.add_argument("--follower", metavar="FOLLOWER", help="tell of this one in full")
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


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        print(printable(line, _SHOWN_CHARS))


# ---- explain


def _explain(settings: Settings, options: argparse.Namespace) -> int:
    with _opened(settings, "explain") as pipe:
        found = _explained(pipe, options.order_id, options.follower, is_full=options.json)
    if options.json:
        print(
            json.dumps({"order": found.order, "followers": found.followers, "differs": dict(found.differs)}, indent=1)
        )
    else:
        _tell(explanation_lines(found))
    return 1 if found.differs else 0


def _explained(pipe: Pipe, order_id: str, given: str | None, *, is_full: bool) -> Explanation:
    """Of a copy, its follower alone; of a master's order whom is asked for, or (`is_full`) everybody."""
    follower = None if given is None else _follower_id(given)
    decision, owner = decision_about(pipe, order_id)
    if owner is not None and follower not in (None, owner):
        raise Refused(f"this is a copy of {owner}'s, not of {follower}'s", code="follower_unknown")
    follower = owner or follower
    places = list(range(len(decision.rows))) if is_full else []
    if follower is not None:
        places = [place_of(decision, follower)]
    return explained(pipe, decision, places)


def decision_about(pipe: Pipe, order_id: str) -> tuple[Decision, str | None]:
    """What was decided about the copies of a master's order; given one of the copies, also whose it is.

    Raises
    ------
    InvalidId, Refused
        `invalid_order_id`, `order_unknown`, `decision_missing`.
    StoreError, StoreUnavailable
    """
    identifiers.check_order_id(order_id)
    decision, owner = Decisions(pipe).load(order_id), None
    if decision is None:
        order_id, owner = _copied_by(pipe, order_id)
        decision = Decisions(pipe).load(order_id)
    if decision is None:
        raise Refused(f"nothing was decided here about copies of order {order_id}", code="decision_missing")
    return decision, owner


def explained(pipe: Pipe, decision: Decision, places: Sequence[int]) -> Explanation:
    """A decision, and what became of the copies of some followers, by place; raises as `explanation`."""
    waiting = _waiting(pipe, decision.order_id)
    return explanation(decision, waiting, places, _states(pipe, decision, places))


def _follower_id(given: str) -> str:
    account = identifiers.parse_account(given if ":" in given else f"{AccountType.FOLLOWER}:{given}")
    if account.type is not AccountType.FOLLOWER:
        raise Refused(f"{account} is no follower", code="not_a_follower")
    return account.id


def _copied_by(pipe: Pipe, order_id: str) -> tuple[str, str]:
    """The master's order, and the follower, of a copy."""
    (reply,) = ask(pipe, [pack("HMGET", keys.order_data(order_id), "master_order_id", "user_type", "user_id")])
    master_order_id, user_type, user_id = map(text, reply or (None, None, None))
    if not user_type:
        raise Refused(f"there is no order {order_id}, or it is not kept any more", code="order_unknown")
    if user_type != AccountType.FOLLOWER or not master_order_id:
        raise Refused(f"{order_id} is no copy, and nothing was decided about copies of it", code="decision_missing")
    return identifiers.check_order_id(master_order_id), identifiers.check_account_id(user_id)


def _waiting(pipe: Pipe, order_id: str) -> dict[str, Facts]:
    """Copies of an order that could not follow it so far, and why."""
    (reply,) = ask(pipe, [pack("HGETALL", keys.WAITING_COPIES)])
    found = {}
    for own_id, stored in mapping(reply).items():
        try:
            said = json.loads(stored)
            if said["order_id"] == order_id:
                found[own_id] = {"follower": str(said["follower"]), "code": str(said.get("code", ""))}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # it is about no order, then
    return found


def _states(pipe: Pipe, decision: Decision, places: Sequence[int]) -> dict[int, Facts]:
    """What became of copies, by place."""
    members, held = decision.rows["follower"].tolist(), {}
    for place in places:
        account = follower_of(members[place])
        if account is not None:
            held[place] = (account, copy_id(decision.order_id, account))
    found = read_copy_states(pipe, list(held.values()), received_ms(decision))
    return dict(zip(held, found, strict=True))


# ---- replication


def _replication(settings: Settings, options: argparse.Namespace) -> int:
    master = ALL if options.master is None else check_master(options.master)
    with _opened(settings, "replication") as pipe:
        try:
            counts = Tallies(pipe).read(master)
        except ValueError as fault:
            raise StoreError(f"the counts of replication: {str(fault)[:80]!a}", code="counts_unreadable") from None
        found = {"master": master or None, **progress_of(counts), **_engine(pipe)}
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _tell(replication_lines(found))
    return 0


def _engine(pipe: Pipe) -> Facts:
    """What waits for the engine of copies, and which process it is."""
    lease, stream = keys.lease(ROLE), keys.REPLICATIONS
    asked = [pack("HLEN", keys.WAITING_COPIES), pack("XLEN", stream), pack("XRANGE", stream, "-", "+", "COUNT", 1)]
    waiting, length, first, time, held = ask(pipe, [*asked, pack("TIME"), pack("HMGET", lease, "owner", "ends_ms")])
    now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
    holder, ends_ms = held or (None, None)
    left_ms = int(ends_ms or 0) - now_ms
    group: dict[str, Any] = {}
    if length:
        (groups,) = ask(pipe, [pack("XINFO", "GROUPS", stream)])
        group = next((one for one in map(_info, groups or ()) if one["name"] == GROUP.encode()), {})
    none = 0 if length == 0 else None
    return {
        "waiting_copies": waiting,
        "entries": length,
        "entries_taken": group.get("pending", none),
        "entries_not_taken": group.get("lag", none),
        "oldest_entry_ms": now_ms - int(text(first[0][0]).partition("-")[0]) if first else None,
        "lease_holder": text(holder) if left_ms > 0 else None,
        "lease_left_ms": left_ms if left_ms > 0 else None,
    }


def _info(said: Any) -> dict[str, Any]:
    pairs = said.items() if isinstance(said, Mapping) else zip(said[::2], said[1::2], strict=True)
    return {text(name): value for name, value in pairs}


REPORTING: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
    "explain": _explain,
    "replication": _replication,
}
