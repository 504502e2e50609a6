"""What the server tells unasked: keys that changed, and wishes of other services."""

import json
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk import identifiers, keys
from copyrisk._wire import READ
from copyrisk.book import Book, RowNumbers
from copyrisk.errors import InvalidId, StoreError
from copyrisk.identifiers import Account
from copyrisk.store.link import Link
from copyrisk.store.pipe import pack

log = structlog.get_logger(__name__)

_ACCOUNTS_A_MESSAGE = 1_000
_DEAF_TICKS = 50  # before the listening connection is tried again
_NEVER_ALLOWED = ("NOPERM", "ERR")


def _no_rows() -> RowNumbers:
    return np.zeros(0, np.int32)


@dataclass(slots=True)
class News:
    """What is to be read again: account rows by what changed, orders by account row and id, and keys of other shapes.

    `everything` when no list is complete.
    """

    config_rows: RowNumbers = field(default_factory=_no_rows)
    index_rows: RowNumbers = field(default_factory=_no_rows)
    order_owners: RowNumbers = field(default_factory=_no_rows)
    order_cells: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 65), np.uint8))
    others: list[bytes] = field(default_factory=list)
    everything: bool = False

    def rows(self) -> RowNumbers:
        """Accounts of which something changed."""
        return np.concatenate([self.config_rows, self.index_rows, self.order_owners])


class Notices:
    """Has a link told of changes, and sorts what it is told.

    Attributes
    ----------
    tracks : bool
        Whether the server reports changes.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        # The server cuts a connection that subscribes off when it falls 32 MB behind, and large hashes do that.
        self._ear = link.another()
        self._deaf_for = 0
        self.tracks = False
        self._said_that_not = False

    def subscribe(self) -> None:
        """Ask a new connection to report; a server or user that may not is worked with as it is."""
        tracking = ["CLIENT", "TRACKING", "ON", "BCAST"]
        for prefix in keys.TRACKED_PREFIXES:
            tracking += ["PREFIX", prefix]
        answers = np.zeros(1, np.uint8)
        self._link.replies.expect_statuses(answers)
        self._link.exchange([pack(*tracking)])
        self.tracks = bool(answers[0] == READ)
        if not self.tracks and not self._link.error.startswith(_NEVER_ALLOWED):
            self._link.close()  # not now; the next connection is asked again
            raise StoreError(f"the server refused to report changes: {self._link.error}", code="server_busy")
        if not self.tracks and not self._said_that_not:
            self._said_that_not = True
            log.warning("server_reports_no_changes", reason=self._link.error, instead="each tick reads everything")

    def take(self, book: Book, *, wait: bool = False) -> News:
        """What came since the last call; with `wait` all that the server has to report up to now."""
        if wait:
            self._link.wait_for_reports()
        else:
            self._link.drain()
        replies = self._link.replies
        changed = replies.take_changed(book.account_ids, keys.CONFIG, keys.ORDERS_INDEX, keys.HOLDING)
        flushed, overflowed = replies.take_flags()
        if flushed or overflowed:
            log.warning("everything_changed", reason="flushed" if flushed else "too many changes reported at once")
        return News(*changed, everything=flushed or overflowed)

    def wishes(self) -> list[Account]:
        """Accounts that other services wanted calculated again since the last call."""
        self._deaf_for = max(self._deaf_for - 1, 0)
        if self._deaf_for:
            return []
        try:
            if self._ear.open():
                self._listen(keys.PORTFOLIO_FORCE_RECALC)
            self._ear.drain()
        except StoreError as failure:
            self._deaf_for = _DEAF_TICKS
            log.warning("wishes_not_heard", code=failure.code, reason=str(failure))
            return []
        return [account for _, payload in self._ear.replies.take_messages() for account in _accounts_in(payload)]

    def _listen(self, channel: str) -> None:
        """In RESP3 a message answers a subscription, but a reply refuses it: the PING behind it tells which came."""
        answers = np.zeros(2, np.uint8)
        self._ear.replies.expect_statuses(answers)
        self._ear.exchange([pack("SUBSCRIBE", channel) + pack("PING")], outstanding=1)
        if answers[0] == READ:
            self._ear.exchange([pack("PING")])
            return
        log.warning("subscription_refused", channel=channel, reason=self._ear.error)
        self._ear.exchange([])

    def close(self) -> None:
        """Drop the connection that listens."""
        self._ear.close()


def _accounts_in(payload: bytes) -> list[Account]:
    """The accounts of a `portfolio_force_recalc` message; what cannot be read is logged and left out."""
    try:
        users = json.loads(payload)["users"]
        if not isinstance(users, list) or len(users) > _ACCOUNTS_A_MESSAGE:
            raise ValueError(f"expected a list of at most {_ACCOUNTS_A_MESSAGE} users")
    except (ValueError, KeyError, TypeError, RecursionError) as refusal:
        log.warning("recalculation_refused", code="bad_message", reason=str(refusal)[:200])
        return []
    found, refused = [], []
    for user in users:
        try:
            found.append(identifiers.account(str(user["user_type"]), str(user["user_id"])))
        except (KeyError, TypeError, InvalidId) as refusal:
            refused.append(str(refusal)[:200])
    if refused:
        log.warning("recalculation_refused", code="bad_message", users=len(refused), reason=refused[0])
    return found
