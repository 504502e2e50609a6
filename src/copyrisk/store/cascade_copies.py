"""Who copies a master, and what they have copied: read as it is now, for a cascade or the plan of one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from copyrisk import identifiers, keys
from copyrisk.errors import CopyriskError, InvalidId, Refused
from copyrisk.following import account_of
from copyrisk.identifiers import Account
from copyrisk.orders import FINISHED
from copyrisk.records import Order, read_order
from copyrisk.store.copy_states import ask, mapping
from copyrisk.store.functions import KEY_UNUSABLE, refused, text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType

_MEMBER_CHARS = 80


@dataclass(frozen=True, slots=True)
class Members:
    """Who copies a master at one moment.

    Attributes
    ----------
    followers : list of str
        Sorted.
    invalid : list of str
        Members of the set that are no ids, as they may be shown.
    has_master : bool
        Whether the master's account is there.
    """

    followers: list[str]
    invalid: list[str]
    has_master: bool


def read_members(pipe: Pipe, master: Account) -> Members:
    """Who copies a master now.

    Raises
    ------
    Refused
        `followers_unreadable`.
    StoreError, StoreUnavailable
    """
    members, has_master = pipe.exchange(
        [pack("SMEMBERS", keys.active_followers(master.id)), pack("EXISTS", keys.config(master))]
    )
    for reply in (members, has_master):
        failure = refused(reply)
        if failure is not None and failure.code == KEY_UNUSABLE:
            raise Refused("the set of the master's followers is none", code="followers_unreadable")
        if failure is not None:
            raise failure
    followers, invalid = [], []
    for member in sorted(members):
        try:
            followers.append(identifiers.check_account_id(text(member)))
        except InvalidId:
            invalid.append(ascii(text(member)[:_MEMBER_CHARS])[1:-1])
    return Members(followers, invalid, bool(has_master))


@dataclass(slots=True)
class CopiesOf:
    """What a follower has of a master.

    Attributes
    ----------
    orders : dict
        By order id, what is not ended.
    code : str
        Why that may not be all of it: `account_missing`, `orders_unreadable`, `order_unreadable`, `order_missing`,
        `outbox_unreadable`; empty if it is.
    owes : bool
        Whether something that follows from changes of the account is still to be brought about.
    """

    orders: dict[str, Order] = field(default_factory=dict)
    code: str = ""
    owes: bool = False


def find_copies(
    pipe: Pipe, master_id: str, followers: Sequence[str], owners: dict[str, bool]
) -> tuple[dict[str, CopiesOf], int]:
    """What followers have of a master now, and the server's clock (ms) before that was read.

    An order is a copy if it names a master's order. It is this master's unless `order_data` says that the order is
    another's: one that nobody knows any more counts as his.

    Parameters
    ----------
    owners : dict
        Whose a master's order is that was looked up before: whether this master's. What is new is added.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    found = {follower: CopiesOf() for follower in followers}
    time, *replies = ask(pipe, [pack("TIME"), *(request for one in followers for request in _account_requests(one))])
    asked: list[tuple[str, str]] = []
    for follower, ids, has_config, owed in zip(followers, replies[::3], replies[1::3], replies[2::3], strict=True):
        copies = found[follower]
        copies.owes = bool(owed)
        if ids is None or owed is None:
            copies.code = "orders_unreadable" if ids is None else "outbox_unreadable"
        elif not ids and not has_config:
            copies.code = "account_missing"
        asked += [(follower, text(order_id)) for order_id in ids or ()]
    for (follower, order_id), order in zip(asked, _read_orders(pipe, asked), strict=True):
        if isinstance(order, str):
            found[follower].code = found[follower].code or order
        elif order is not None and order.state not in FINISHED:
            found[follower].orders[order_id] = order
    named = {order.master_order_id for copies in found.values() for order in copies.orders.values()}
    _look_up_owners(pipe, master_id, named - owners.keys(), owners)
    for copies in found.values():
        orders = copies.orders.items()
        copies.orders = {own: order for own, order in orders if owners.get(order.master_order_id, True)}
    return found, int(time[0]) * 1000 + int(time[1]) // 1000


def _account_requests(follower: str) -> tuple[bytes, bytes, bytes]:
    account = account_of(follower)
    index = pack("SMEMBERS", keys.orders_index(account))
    return index, pack("EXISTS", keys.config(account)), pack("XLEN", keys.outbox(account))


def _read_orders(pipe: Pipe, asked: Sequence[tuple[str, str]]) -> list[Order | str | None]:
    """Orders that accounts list; why one cannot be read; `None` for one that is no copy."""
    requests: list[bytes] = []
    for follower, order_id in asked:
        account = account_of(follower)
        requests += (
            pack("HGETALL", keys.holding(account, order_id)),
            pack("GET", keys.order_record(account, order_id)),
        )
    replies = ask(pipe, requests)
    found: list[Order | str | None] = []
    for (follower, order_id), stored, record in zip(asked, replies[::2], replies[1::2], strict=True):
        try:
            identifiers.check_order_id(order_id)
            if stored is None:
                raise Refused("its key is of another type", code="order_unreadable")
            said = mapping(stored)
            if said and not said.get("master_order_id"):
                found.append(None)  # no copy, whatever else stands there
                continue
            order = read_order(account_of(follower), order_id, said, text(record))
        except (InvalidId, Refused):
            found.append("order_unreadable")
            continue
        # Listed, but neither a hash nor a record: it may have ended since it was listed, or it was lost.
        found.append(order if order is not None else "order_missing")
    return found


def _look_up_owners(pipe: Pipe, master_id: str, order_ids: Iterable[str], owners: dict[str, bool]) -> None:
    checked = []
    for order_id in sorted(order_ids):
        try:
            checked.append(identifiers.check_order_id(order_id))
        except InvalidId:
            continue
    replies = ask(pipe, [pack("HMGET", keys.order_data(order_id), "user_type", "user_id") for order_id in checked])
    for order_id, reply in zip(checked, replies, strict=True):
        if reply is not None and reply[0]:
            owners[order_id] = (text(reply[0]), text(reply[1])) == (AccountType.MASTER.value, master_id)


def read_ends(pipe: Pipe, copies: Sequence[tuple[Account, str]]) -> dict[str, Order | None]:
    """What became of orders, by id, as their records say; `None` for one that nobody knows any more.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    found: dict[str, Order | None] = {}
    for one, record in zip(copies, ask(pipe, [pack("GET", keys.order_record(*one)) for one in copies]), strict=True):
        try:
            found[one[1]] = read_order(*one, {}, text(record)) if record else None
        except CopyriskError:
            found[one[1]] = None
    return found
