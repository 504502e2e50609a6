"""The book: packed arrays of quotes, instruments, accounts, orders and legs, with id <-> row maps.

It holds what is known and knows neither where it came from nor what time it is. A row keeps its number while
it lives; freed rows are used again. Everything comes in batches, and every setter says what it changed; the accounts
that must be folded again before the next valuation are marked `stale`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk import identifiers, layout
from copyrisk._core import RowCode, fold_accounts
from copyrisk._index import TextIndex
from copyrisk._lists import listed_orders, relink_orders
from copyrisk.identifiers import Account
from copyrisk.layout import Rows
from copyrisk.levels import judge_levels
from copyrisk.market import Market
from copyrisk.rules import ValuationRules
from copyrisk.segments import Segments
from copyrisk.table import Table, differ

_ACCOUNT_TEXT = 82  # the longest type, a colon, and the longest id
_ORDER_TEXT = 64

RowNumbers = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


class Book:
    """Packed arrays and the maps to their rows, laid out under one set of rules.

    Attributes
    ----------
    market : Market
        Quotes and instruments.
    account_ids, order_ids : TextIndex
        `T:U`; order ids, owned by their account's row.
    stale : (a,) bool
        Accounts to fold.
    born : (a,) int64
        0 for a free row, and another number whenever a row gets another account.
    births : int
        Changes when an account gets a row.
    """

    def __init__(self, rules: ValuationRules) -> None:
        self.rules, self.market = rules, Market(rules)
        self.account_ids, self.order_ids = TextIndex(_ACCOUNT_TEXT), TextIndex(_ORDER_TEXT)
        self._accounts, self._marks, self._order_head = Table(layout.ACCOUNT), Table("u8"), Table("i4")
        self._group, self._order_count, self._stale = Table("i4"), Table("i4"), Table("?")
        self._born, self._folds = Table("i8"), Table("i8")
        self._orders, self._order_symbol, self._is_listed = Table(layout.ORDER), Table("i4"), Table("u1")
        self._segments = Segments()
        self.births = self._fold_count = 0

    # ---- arrays for the kernels (views that the next insertion may replace)

    @property
    def accounts(self) -> Rows:
        """(a,) Account; a freed row is all zero, its code `UNKNOWN`."""
        rows: Rows = self._accounts.rows
        return rows

    @property
    def orders(self) -> Rows:
        """(o,) Order."""
        rows: Rows = self._orders.rows
        return rows

    @property
    def legs(self) -> Rows:
        """(l,) Leg; segments of accounts with unused room between them."""
        return self._segments.legs

    @property
    def marks(self) -> Any:
        """(a,) uint64: bits of the symbols an account holds, as of its last fold."""
        return self._marks.rows

    @property
    def stale(self) -> Any:
        """(a,) bool: accounts to fold."""
        return self._stale.rows

    @property
    def folds(self) -> Any:
        """(a,) int64: changes whenever an account is folded."""
        return self._folds.rows

    @property
    def born(self) -> Any:
        """(a,) int64."""
        return self._born.rows

    @property
    def order_heads(self) -> Any:
        """(a,) int32: first order of each account's list, -1 for none."""
        return self._order_head.rows

    # ---- accounts

    def row_of(self, account: Account) -> int:
        """Row of an account, -1 if it is not here."""
        return self.account_ids.row_of(str(account).encode())

    def account_at(self, row: int) -> Account:
        """The account of a row in use."""
        return identifiers.parse_account(self.account_ids.text(row).decode("ascii"))

    def account_rows(self) -> RowNumbers:
        """(n,) rows in use."""
        return self.account_ids.rows()

    def groups_of(self, rows: RowNumbers) -> RowNumbers:
        """(n,) rows of `market.names`: the groups of accounts."""
        groups: RowNumbers = self._group.rows[rows]
        return groups

    def ensure_accounts(self, tags: Iterable[bytes]) -> RowNumbers:
        """Rows of accounts by `T:U`, which must be checked; new ones are unknown until `set_accounts`."""
        used = len(self.account_ids)
        rows = np.fromiter(map(self.account_ids.put, tags), np.int32)
        if len(self.account_ids) == used:
            return rows
        for table in (
            self._accounts,
            self._marks,
            self._order_head,
            self._group,
            self._order_count,
            self._stale,
            self._born,
            self._folds,
        ):
            table.cover(self.account_ids.high)
        new = np.unique(rows[self.born[rows] == 0])
        self.births += 1
        self.born[new] = self.births
        self.order_heads[new], self._group.rows[new], self.stale[new] = -1, self.market.names.standard, 1
        self.accounts["culprit"][new] = -1
        self._write_accounts(new, np.zeros(len(new), layout.ACCOUNT_READ))
        return rows

    def set_accounts(self, rows: RowNumbers, read: Rows) -> tuple[Flags, Flags]:
        """Store configurations: (n,) rows, (n,) `layout.ACCOUNT_READ`.

        Returns
        -------
        changed : (n,) bool
        levels_replaced : (n,) bool
            Of those that changed: a level of the account's own does not hold (`levels.judge_levels`).
        """
        judged: Any = read.copy()
        judged["warning_level_pct"], judged["critical_level_pct"], replaced = judge_levels(read, self.rules)
        now: Any = self.accounts[rows]
        regrouped = self._group.rows[rows] != judged["group"]
        changed = regrouped | (now["read_code"] != judged["code"])
        for name in ("balance", "leverage", "warning_level_pct", "critical_level_pct"):
            changed |= differ(now[name], judged[name])
        if changed.any():
            self._write_accounts(rows[changed], judged[changed])
            self._rehome(self.order_rows_of(rows[regrouped]))
        return changed, changed & replaced

    def _write_accounts(self, rows: RowNumbers, judged: Rows) -> None:
        for name in ("balance", "leverage", "warning_level_pct", "critical_level_pct"):
            self.accounts[name][rows] = judged[name]
        self.accounts["read_code"][rows] = judged["code"]
        self._group.rows[rows] = judged["group"]
        self.stale[rows] = True

    def remove_accounts(self, rows: RowNumbers) -> None:
        """Forget accounts and their orders; their figures are unknown from the next valuation on."""
        self.list_orders(rows, np.zeros(len(rows), np.int32), np.zeros((0, _ORDER_TEXT + 1), np.uint8))
        self._segments.give_up(self.accounts, rows)
        for row in rows.tolist():
            self.account_ids.drop(row)
        self.accounts[rows] = np.zeros((), layout.ACCOUNT)
        self.born[rows], self.stale[rows], self.order_heads[rows] = 0, 1, -1

    # ---- orders

    def orders_of(self, account_row: int) -> dict[str, int]:
        """Order ids (what is not ASCII escaped) and rows of an account, the latest first."""
        found: dict[str, int] = {}
        row = int(self.order_heads[account_row])
        while row >= 0:
            found[self.order_ids.text(row).decode("ascii", "backslashreplace")] = row
            row = int(self.orders[row]["next"])
        return found

    def order_rows_of(self, account_rows: RowNumbers) -> RowNumbers:
        """(n,) rows of all orders of these accounts."""
        return listed_orders(account_rows, self.orders, self.order_heads)

    def list_orders(
        self, account_rows: RowNumbers, counts: npt.NDArray[np.int32], cells: npt.NDArray[np.uint8]
    ) -> tuple[Flags, RowNumbers]:
        """Let some accounts have exactly these orders.

        Parameters
        ----------
        account_rows : (k,) int32
            Each once.
        counts : (k,) int32
        cells : (sum of counts, 65) uint8
            Their order ids, one account after the other, as `_wire` reads members.

        Returns
        -------
        changed : (k,) bool
        new : (n,) int32
            Order rows that must be read: until then they make their account unknown, for half an account is not a
            healthy one. An id that is none stays unknown.
        """
        readable = identifiers.are_order_ids(cells)
        if not readable.all():
            # What is no id must not become one by being cut off: it would hide behind another order.
            cells = cells.copy()
            cells[:, 0] = np.clip(cells[:, 0], 1, _ORDER_TEXT)
            cells[~readable & identifiers.are_order_ids(cells), -1] = ord("?")
        rows, is_new = self.order_ids.put_cells(np.repeat(account_rows, counts), cells)
        for table in (self._orders, self._order_symbol, self._is_listed):
            table.cover(self.order_ids.high)
        new = rows[is_new]
        self.orders[new] = np.zeros((), layout.ORDER)
        self.orders["instrument"][new] = self._order_symbol.rows[new] = -1
        readable = readable[is_new]
        self.orders["code"][new] = np.where(readable, RowCode.ORDER_MISSING, RowCode.ORDER_ID_INVALID)
        removed = relink_orders(account_rows, counts, rows, self.orders, self.order_heads, self._is_listed.rows)
        self._order_count.rows[account_rows] = counts
        changed = np.zeros(len(self.accounts), np.bool_)
        if not (removed or len(new)):
            return changed[account_rows], new
        changed[self.orders["account"][np.concatenate([new, np.array(removed, np.int32)])]] = True
        for row in removed:
            self.order_ids.drop(row)
        self.orders[removed] = np.zeros((), layout.ORDER)
        self.stale[changed] = 1
        return changed[account_rows], new[readable]

    def hide_orders(self, account_rows: RowNumbers) -> Flags:
        """Let some accounts, whose index cannot be read, have unknown orders; returns which changed."""
        count = len(account_rows)
        unknown = np.zeros((count, _ORDER_TEXT + 1), np.uint8)
        changed, _ = self.list_orders(account_rows, np.ones(count, np.int32), unknown)
        self.orders["code"][self.order_rows_of(account_rows)] = RowCode.ORDERS_INDEX_UNREADABLE
        self.stale[account_rows] = True
        return changed

    def set_orders(self, rows: RowNumbers, read: Rows) -> Flags:
        """Store orders: (n,) rows, (n,) `layout.ORDER_READ`; returns which changed."""
        now: Any = self.orders[rows]
        changed: Flags = self._order_symbol.rows[rows] != read["symbol"]
        for name in ("lots", "price", "fees_usd", "effect", "is_buy", "code"):
            changed |= differ(now[name], read[name])
        rows, read = rows[changed], read[changed]
        for name in ("lots", "price", "fees_usd", "effect", "is_buy", "code"):
            self.orders[name][rows] = read[name]
        self._order_symbol.rows[rows] = read["symbol"]
        if len(rows):
            self._rehome(rows)
            self.stale[self.orders["account"][rows]] = True
        return changed

    def _rehome(self, order_rows: RowNumbers) -> None:
        """Point orders at their instruments: the symbol under their account's group."""
        symbols = self._order_symbol.rows[order_rows]
        self.orders["instrument"][order_rows] = -1
        order_rows = order_rows[symbols >= 0]
        groups = self._group.rows[self.orders["account"][order_rows]].astype(np.int64)
        pairs, which = np.unique((groups << 32) | symbols[symbols >= 0], return_inverse=True)
        found = [self.market.instrument_of(pair >> 32, pair & 0xFFFFFFFF) for pair in pairs.tolist()]
        self.orders["instrument"][order_rows] = np.array(found, np.int32)[which]

    # ---- legs

    def mark_stale(self, moved: int) -> None:
        """Have the accounts folded again that hold a symbol of these bits (`market.set_instrument`)."""
        self.stale[(self.marks & np.uint64(moved)) != 0] = 1

    def fold(self) -> RowNumbers:
        """Fold the orders of all stale accounts into legs; returns their rows."""
        if self._segments.are_wasteful:
            self._segments.clear(self.accounts)
            self.stale[self.account_rows()] = True
        rows = np.flatnonzero(self.stale).astype(np.int32)
        if len(rows):
            counts = self.order_counts(rows)
            self._segments.make_room(self.accounts, rows, counts)
            fold_accounts(
                rows,
                self.accounts,
                self.order_heads,
                self.orders,
                self.market.instruments,
                self.legs,
                self.marks,
                np.empty(max(int(counts.max()), 1), layout.EXPOSURE),
                self.rules.nets_orders,
            )
            self.stale[rows] = False
            self._fold_count += 1
            self.folds[rows] = self._fold_count
        return rows

    def order_counts(self, rows: RowNumbers) -> npt.NDArray[np.int32]:
        """How many orders each of these accounts has."""
        counts: npt.NDArray[np.int32] = self._order_count.rows[rows]
        return counts
