"""What the server tells unasked: keys that changed, and wishes of other services."""

import json
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk import keys
from copyrisk._wire import READ
from copyrisk.book import Book, RowNumbers
from copyrisk.errors import InvalidId
from copyrisk.keys import Account
from copyrisk.store.link import Link
from copyrisk.store.pipe import pack

log = structlog.get_logger(__name__)

_ACCOUNTS_A_MESSAGE = 1_000


def _no_rows() -> RowNumbers:
    return np.zeros(0, np.int32)


@dataclass(slots=True)
class News:
    """What is to be read again: account rows by what changed, orders by account row and id, and keys of other shapes.

    `everything` when no list is complete; `wished` are accounts that a service wants calculated again.
    """

    config_rows: RowNumbers = field(default_factory=_no_rows)
    index_rows: RowNumbers = field(default_factory=_no_rows)
    order_owners: RowNumbers = field(default_factory=_no_rows)
    order_cells: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 65), np.uint8))
    others: list[bytes] = field(default_factory=list)
    wished: list[Account] = field(default_factory=list)
    everything: bool = False


class Notices:
    """Has a link told of changes, and sorts what it is told.

    Attributes
    ----------
    tracks : bool
        Whether the server reports changes.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self.tracks = False
        self._said_that_not = False

    def subscribe(self) -> None:
        """Ask a new connection to report; a server or user that may not is worked with as it is."""
        tracking = ["CLIENT", "TRACKING", "ON", "BCAST"]
        for prefix in keys.TRACKED_PREFIXES:
            tracking += ["PREFIX", prefix]
        self.tracks = self._accepted(pack(*tracking))
        if not self.tracks and not self._said_that_not:
            self._said_that_not = True
            log.warning("server_reports_no_changes", reason=self._link.error, instead="each tick reads everything")
        self._subscribe(keys.PORTFOLIO_FORCE_RECALC)

    def _subscribe(self, channel: str) -> None:
        """In RESP3 a message answers a subscription, but a reply refuses it: the PING behind it tells which came."""
        answers = np.zeros(2, np.uint8)
        self._link.replies.expect_statuses(answers)
        self._link.exchange([pack("SUBSCRIBE", channel) + pack("PING")], outstanding=1)
        if answers[0] == READ:
            self._link.exchange([pack("PING")])
            return
        log.warning("subscription_refused", channel=channel, reason=self._link.error)
        self._link.exchange([])

    def _accepted(self, command: bytes) -> bool:
        answers = np.zeros(1, np.uint8)
        self._link.replies.expect_statuses(answers)
        self._link.exchange([command])
        return bool(answers[0] == READ)

    def take(self, book: Book) -> News:
        """What came since the last call, without waiting for more."""
        self._link.drain()
        replies = self._link.replies
        changed = replies.take_changed(book.account_ids, keys.CONFIG, keys.ORDERS_INDEX, keys.HOLDING)
        flushed, overflowed = replies.take_flags()
        if flushed or overflowed:
            log.warning("everything_changed", reason="flushed" if flushed else "too many changes reported at once")
        wished = [account for _, payload in replies.take_messages() for account in _accounts_in(payload)]
        return News(*changed, wished=wished, everything=flushed or overflowed)


def _accounts_in(payload: bytes) -> list[Account]:
    """The accounts of a `portfolio_force_recalc` message; what cannot be read is logged and left out."""
    found = []
    try:
        users = json.loads(payload)["users"]
        if not isinstance(users, list) or len(users) > _ACCOUNTS_A_MESSAGE:
            raise ValueError(f"expected a list of at most {_ACCOUNTS_A_MESSAGE} users")
        for user in users:
            found.append(keys.account(str(user["user_type"]), str(user["user_id"])))
    except (ValueError, KeyError, TypeError, RecursionError, InvalidId) as refusal:
        log.warning("recalculation_refused", code="bad_message", reason=str(refusal)[:200])
    return found
