"""Followers as the engine of copies needs them: who follows whom, how each wants to copy, what their ledgers say."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from copyrisk import fields, identifiers, keys
from copyrisk._pack import Requests
from copyrisk.book import Book, RowNumbers
from copyrisk.copying import CopyDefaults, CopySettings, parse_settings
from copyrisk.decimals import parse_decimal
from copyrisk.errors import InvalidId, Refused
from copyrisk.identifiers import Account
from copyrisk.store.connection import OF_ONE_KEY, WRONG_TYPE, store_error
from copyrisk.store.functions import text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.table import Table
from copyrisk.terms import AccountType

_AT_ONCE = 1_000
_SETTINGS_MORE = 1_000
_TAG = f"{AccountType.FOLLOWER.value}:".encode()
_UNREADABLE = CopySettings(refusal="account_unreadable")


@dataclass(frozen=True, slots=True)
class Ledgers:
    """What accounts' ledgers say, in order.

    Attributes
    ----------
    time_ms : int
        The server's clock, before any of them was read.
    versions : list of str
        Empty for an account that never changed, `None` for one that cannot be read.
    reserved_usd, booked_usd : (n,) float64
        NaN for what is no number.
    """

    time_ms: int
    versions: list[str | None]
    reserved_usd: npt.NDArray[np.float64]
    booked_usd: npt.NDArray[np.float64]


class Followers:
    """Settings of followers by account row, as of the last `refresh` of that row.

    Attributes
    ----------
    settings : list of CopySettings
        Each that occurs, once.
    kinds : list of int
        For each of them, the first of `settings` that is the same as far as an order is concerned, whatever its size.
    """

    def __init__(self, pipe: Pipe, book: Book, default: CopyDefaults) -> None:
        self._pipe, self._book, self._default = pipe, book, default
        self._requests = Requests()
        self.settings: list[CopySettings] = [_UNREADABLE]
        self.kinds: list[int] = [0]
        self._number_of: dict[tuple[bytes | None, ...], int] = {}
        self._kind_of: dict[tuple[str, str, str | None], int] = {}
        self._numbers, self._investments = Table("i4"), Table("f8")

    def refresh(self, rows: RowNumbers) -> None:
        """Read the settings of these accounts; of those that are no followers nothing is read.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        book = self._book
        if len(self.settings) > 2 * len(book.account_ids) + _SETTINGS_MORE:
            self._forget_unused()
        self._numbers.cover(book.account_ids.high)
        self._investments.cover(book.account_ids.high)
        for row, reply in self._ask(keys.CONFIG, (*fields.COPY_FIELDS, fields.INVESTMENT), self.followers_among(rows)):
            if reply is None:
                self._numbers.rows[row], self._investments.rows[row] = 0, np.nan
                continue
            *values, investment = reply
            amount = parse_decimal(text(investment))
            self._numbers.rows[row] = self._number(tuple(values))
            self._investments.rows[row] = np.nan if amount is None else float(amount)

    def followers_among(self, rows: RowNumbers) -> RowNumbers:
        """Those of some rows in use that are followers."""
        index, born = self._book.account_ids, self._book.born
        kept = [row for row in rows.tolist() if born[row] and index.text(row).startswith(_TAG)]
        return np.array(kept, np.int32)

    def _forget_unused(self) -> None:
        """Renumber the settings that somebody has; of others nobody asks."""
        used, numbers = np.unique(np.append(self._numbers.rows, 0), return_inverse=True)
        kept = [self.settings[number] for number in used.tolist()]
        place = {number: i for i, number in enumerate(used.tolist())}
        self._numbers.rows[:] = numbers[:-1]
        self._number_of = {values: place[number] for values, number in self._number_of.items() if number in place}
        self.settings, self.kinds, self._kind_of = [], [], {}
        for settings in kept:
            self._add(settings)

    def _add(self, settings: CopySettings) -> None:
        kind = (settings.refusal, settings.copy_status, settings.sending_orders)
        self.kinds.append(self._kind_of.setdefault(kind, len(self.settings)))
        self.settings.append(settings)

    def _number(self, values: tuple[bytes | None, ...]) -> int:
        number = self._number_of.get(values)
        if number is None:
            number = self._number_of[values] = len(self.settings)
            words = [None if value is None else text(value) for value in values]
            self._add(parse_settings(words, self._default))
        return number

    def numbers_of(self, rows: RowNumbers) -> npt.NDArray[np.int32]:
        """(n,) places in `settings`."""
        self._numbers.cover(self._book.account_ids.high)
        found: npt.NDArray[np.int32] = self._numbers.rows[rows]
        return found

    def investments_of(self, rows: RowNumbers) -> npt.NDArray[np.float64]:
        """(n,) USD, NaN for what is not known."""
        self._investments.cover(self._book.account_ids.high)
        found: npt.NDArray[np.float64] = self._investments.rows[rows]
        return found

    def members(self, master_id: str) -> tuple[list[bytes], int]:
        """Ids of those who copy a master now, sorted; and the server's clock, in ms.

        Raises
        ------
        Refused
            `followers_unreadable`.
        StoreError, StoreUnavailable
        """
        members, time = self._pipe.exchange([pack("SMEMBERS", keys.active_followers(master_id)), pack("TIME")])
        if isinstance(members, Exception):
            if str(members).startswith(WRONG_TYPE):
                raise Refused("the set of the master's followers is none", code="followers_unreadable")
            raise store_error(redis.ResponseError(str(members)))
        return sorted(members), _ms(time)

    def rows_of(self, ids: Iterable[bytes]) -> RowNumbers:
        """(n,) account rows of followers, -1 for those that are nobody."""
        row_of = self._book.account_ids.row_of
        return np.array([row_of(_TAG + follower) for follower in ids], np.int32)

    def accounts_of(self, rows: RowNumbers) -> list[Account]:
        """Accounts of rows in use."""
        return [self._book.account_at(row) for row in rows.tolist()]

    def ledgers(self, rows: RowNumbers) -> Ledgers:
        """Ask for the versions of accounts; whatever is read of them afterwards is of these versions, or later.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        asked = self._requests_of(keys.LEDGER, ("version", "reserved_usd", "booked_usd"), rows)
        # The clock in the same exchange, ahead of all: what is read is not older.
        time, *replies = self._pipe.exchange([pack("TIME"), *asked, *[b""] * (len(rows) - len(asked))])
        versions: list[str | None] = []
        amounts = np.zeros((2, len(rows)))
        for i, reply in enumerate(map(_usable, replies)):
            stored = None if reply is None else reply[0]
            versions.append(None if reply is None or (stored and not stored.isascii()) else text(stored))
            for k, stored in enumerate(reply[1:] if reply else ()):
                if stored is not None:
                    amount = parse_decimal(text(stored))
                    amounts[k, i] = np.nan if amount is None else float(amount)
        return Ledgers(_ms(time), versions, amounts[0], amounts[1])

    def _ask(self, shape: keys.Shape, names: Sequence[str], rows: RowNumbers) -> list[tuple[int, Any]]:
        """Fields of a hash of each account; `None` for one that cannot be read."""
        asked = self._requests_of(shape, names, rows)
        replies = self._pipe.exchange([*asked, *[b""] * (len(rows) - len(asked))])
        return list(zip(rows.tolist(), map(_usable, replies), strict=True))

    def _requests_of(self, shape: keys.Shape, names: Sequence[str], rows: RowNumbers) -> list[bytes]:
        """Commands for some accounts each, packed together."""
        head = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(names))
        tail = b"".join(b"$%d\r\n%b\r\n" % (len(name), name.encode()) for name in names)
        parts = (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))
        return [self._requests.by_row(head, *shape, tail, self._book.account_ids, part) for part in parts]


def _ms(time: Sequence[bytes]) -> int:
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _usable(reply: Any) -> Any:
    if not isinstance(reply, Exception):
        return reply
    if str(reply).startswith(OF_ONE_KEY):
        return None
    raise store_error(redis.ResponseError(str(reply)))


def follower_of(member: bytes) -> Account | None:
    """The follower of a member of a master's set; `None` for what is no id."""
    try:
        return Account(AccountType.FOLLOWER, identifiers.check_account_id(text(member)))
    except InvalidId:
        return None


def follower_account(member: bytes) -> Account:
    """The follower of a decided row."""
    return Account(AccountType.FOLLOWER, text(member))
