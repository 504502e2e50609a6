"""Bringing about what lies outside an account's slot: from its outbox, any number of times, with the same result."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from copyrisk import keys
from copyrisk.identifiers import Account
from copyrisk.store.changes import DAY_MS
from copyrisk.store.functions import KEY_UNUSABLE, hold_request, put_request, refused, text, texts
from copyrisk.store.pipe import Pipe, pack

log = structlog.get_logger(__name__)

_AT_ONCE = 1_000
_FINISHED_KEEP_MS = 30 * DAY_MS
_UNTRIGGERED_KEEP_MS = 600_000
_TRIGGER_FIELDS = (
    *("symbol", "order_type", "user_type", "user_id", "execution", "margin", "state"),
    *("stop_loss", "take_profit", "stop_loss_compare", "take_profit_compare", "order_price_compare"),
)
_ORDER_FIELDS = ("stop_loss", "take_profit", "close_price", "reason")


class Waiting(NamedTuple):
    """An outbox entry."""

    account: Account
    entry_id: bytes
    follows: Mapping[str, Any]


class Effects:
    """Delivers outboxes.

    Parameters
    ----------
    events_limit : int
        About how many events are kept.
    keeps_history : bool
        Whether there is a database that orders are to be written to.
    """

    def __init__(self, pipe: Pipe, *, events_limit: int, keeps_history: bool) -> None:
        self._pipe, self._events_limit, self._keeps_history = pipe, events_limit, keeps_history

    def read_outboxes(self, accounts: Sequence[Account]) -> list[Waiting]:
        """Everything that waits in these accounts' outboxes, in order."""
        replies = self._pipe.exchange(
            [pack("XRANGE", keys.outbox(account), "-", "+", "COUNT", _AT_ONCE) for account in accounts]
        )
        found = []
        for account, reply in zip(accounts, replies, strict=True):
            if _fails(reply):
                continue
            for entry_id, words in reply:
                try:
                    waiting = Waiting(account, entry_id, json.loads(texts(words)["entry"]))
                    int(waiting.follows["version"])
                    self.requests(waiting)
                    found.append(waiting)
                except (LookupError, ValueError, TypeError, AttributeError) as fault:
                    log.critical("outbox_unreadable", account=str(account), entry=text(entry_id), reason=repr(fault))
        return found

    def deliver(self, waiting: Sequence[Waiting]) -> set[tuple[Account, bytes]]:
        """Bring about what these entries say, then take them out of their outboxes.

        Returns
        -------
        set of (Account, bytes)
            Accounts and ids of entries of which something could not be brought about; they stay where they are.

        Raises
        ------
        StoreError, StoreUnavailable
            Some may have been brought about and will be again; none is lost.
        """
        requests = [self.requests(one) for one in waiting]
        replies = iter(self._pipe.exchange([request for of_one in requests for request in of_one]))
        failed = {
            (one.account, one.entry_id)
            for one, of_one in zip(waiting, requests, strict=True)
            if any([_fails(next(replies)) for _ in of_one])  # noqa: C419  # each has its reply, whatever came before
        }
        done = [one for one in waiting if (one.account, one.entry_id) not in failed]
        for reply in self._pipe.exchange([pack("XDEL", keys.outbox(one.account), one.entry_id) for one in done]):
            _fails(reply)
        return failed

    def requests(self, one: Waiting) -> list[bytes]:
        """The commands that bring about what an entry says."""
        order: dict[str, str] | None = one.follows["order"]  # null: of a change that is of no order
        found = [] if order is None else _order_requests(one, order)
        order_json = {} if order is None else {"order": json.dumps(order, separators=(",", ":"))}
        if self._keeps_history:
            found.append(add_request(keys.HISTORY, _history(one, order_json)))
        found.append(self.event_request({**one.follows["event"], **order_json}))
        return found

    def event_request(self, event: Mapping[str, str]) -> bytes:
        """Announce an event."""
        return add_request(keys.EVENTS, event, limit=self._events_limit)


def _order_requests(one: Waiting, order: Mapping[str, str]) -> list[bytes]:
    """What a change of an order has follow, but for history and event."""
    follows, version = one.follows, str(one.follows["version"])
    order_id, is_finished = order["order_id"], follows["finished"]
    absent = [name for name in _ORDER_FIELDS if name not in order]
    found = [put_request(keys.order_data(order_id), version, order, absent, _FINISHED_KEEP_MS if is_finished else None)]
    if "replicates" in follows:
        found.append(add_request(keys.REPLICATIONS, _replication(one)))
    if "triggers" in follows:
        found.append(_put_triggers(order_id, version, follows["triggers"]))
    if "holds" in follows:
        found.append(hold_request(order["symbol"], {one.account: version}, holds=follows["holds"]))
    if "request" in follows:
        found.append(add_request(keys.REQUESTS, follows["request"]))
    return found


def _put_triggers(order_id: str, version: str, triggers: Mapping[str, str]) -> bytes:
    absent = [name for name in _TRIGGER_FIELDS if name not in triggers]
    # The version stays for a while after the triggers are gone: an older entry must not bring them back.
    return put_request(
        keys.order_triggers(order_id), version, triggers, absent, None if triggers else _UNTRIGGERED_KEEP_MS
    )


def _replication(one: Waiting) -> dict[str, str]:
    """What the copies of a master's order are told."""
    follows = one.follows
    return {
        "user_type": one.account.type.value,
        "user_id": one.account.id,
        "order_id": follows["order"]["order_id"],
        "version": str(follows["version"]),
        **follows["replicates"],
        "order": json.dumps(follows["order"], separators=(",", ":")),
        "ts": follows["event"]["ts"],
    }


def _history(one: Waiting, order_json: Mapping[str, str]) -> dict[str, str]:
    follows = one.follows
    found = {
        "user_type": one.account.type.value,
        "user_id": one.account.id,
        "version": str(follows["version"]),
        "ts": follows["event"]["ts"],
    }
    if order_json:
        found |= {"order_id": follows["order"]["order_id"], **order_json}
    if "entry" in follows:
        found["entry"] = json.dumps(follows["entry"], separators=(",", ":"))
    return found


def add_request(stream: str, said: Mapping[str, str], *, limit: int | None = None) -> bytes:
    """Append an entry to a stream."""
    words = [word for item in said.items() for word in item]
    bound: tuple[str | int, ...] = () if limit is None else ("MAXLEN", "~", limit)
    return pack("XADD", stream, *bound, "*", *words)


def ask_request(mark: str, keep_ms: int, said: Mapping[str, str]) -> bytes:
    """Append a command, unless this mark is there already; answered with the entry's id, or with nothing.

    Parameters
    ----------
    mark : str
        The key that says for `keep_ms` that the request was made.
    """
    words = [word for item in said.items() for word in item]
    return pack("FCALL", "copyrisk_ask_v1", 2, mark, keys.COMMANDS, keep_ms, *words)


def _fails(reply: Any) -> bool:
    """Whether a key cannot be used; any other refusal is raised."""
    failure = refused(reply)
    if failure is None:
        return False
    if failure.code != KEY_UNUSABLE:
        raise failure
    log.error("effect_failed", reason=str(failure))
    return True
