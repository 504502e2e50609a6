"""The followers of one order, in the order of their ids: what is known of each, and what stands against a copy."""

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk._core import RowCode
from copyrisk.copying import CopySettings
from copyrisk.errors import CopyriskError, Refused
from copyrisk.layout import Rows
from copyrisk.observer import Observer
from copyrisk.replication import DECIDED, MasterEvent
from copyrisk.risk import are_known
from copyrisk.situation import SymbolMarket
from copyrisk.sizing_terms import SizingMode
from copyrisk.store.followers import follower_of

_NO_AGE = -1


class GroupMarket:
    """A group's market in the symbol of an order, and why nothing can be opened in it."""

    def __init__(self, name: str, market: SymbolMarket | None) -> None:
        assert market is not None, "it has been asked for"
        self.name, self.market = name, market
        self.refusal = ""
        try:
            self.conditions = market.agreed()
            market.tradable()
        except Refused as refusal:
            self.refusal = refusal.code

    def deviates(self, price: Decimal, *, is_buy: bool, limit_pct: float) -> bool:
        """Whether an order would open now further from a price than that."""
        now = self.market.opening_price(is_buy=is_buy)
        return abs(now - price) * 100 > price * Decimal(repr(limit_pct))

    def usd(self, amount: Decimal) -> float:
        """An amount of the profit currency, NaN without a rate."""
        try:
            return float(self.market.to_usd(amount))
        except CopyriskError:
            return float("nan")


class Cohort:
    """The followers of one event, in the order of their ids, and what is decided about each.

    Attributes
    ----------
    rows : (n,) int32
        Of the book, -1 for who is not in it.
    present : (k,) intp
        Places of those who are.
    master_age_ms : int
        Of the oldest quote that the master's equity rests on.
    settings_of : (n,) intp
        Places of their settings in `settings`.
    """

    def __init__(self, event: MasterEvent, observer: Observer, members: Sequence[bytes]) -> None:
        self._event, self._observer = event, observer
        book = observer.book
        self.decided: Rows = np.zeros(len(members), DECIDED)
        self.decided["group"], self.decided["equity_age_ms"] = -1, _NO_AGE
        self.rows = observer.followers.rows_of(members)
        self.refuse(np.flatnonzero(self.rows < 0), b"account_missing")
        bad = [i for i in np.flatnonzero(self.rows < 0).tolist() if follower_of(members[i]) is None]
        self.decided["reason"][bad] = b"invalid_account_id"
        named = list(members)
        for i in bad:  # a name of its own, that is no id: the record has no room for whatever somebody put there
            named[i] = b"?" + hashlib.blake2b(members[i], digest_size=16).hexdigest().encode()
        self.decided["follower"] = named
        self.present = np.flatnonzero(self.rows >= 0)
        self.master_row = book.row_of(event.master)
        rows = self.rows_present()
        numbers, self.numbers = np.unique(observer.followers.numbers_of(rows), return_inverse=True)
        self.settings: list[CopySettings] = [observer.followers.settings[number] for number in numbers.tolist()]
        self.settings_of = np.zeros(len(members), np.intp)
        self.settings_of[self.present] = self.numbers
        names, places = np.unique(book.groups_of(rows), return_inverse=True)
        self.groups = [book.market.names.text(name) for name in names.tolist()]
        self.decided["group"][self.present] = places + 1  # the master's group is the first
        self.decided["equity_age_ms"][self.present] = self._ages(rows)
        self.master_age_ms = 0
        if self.master_row >= 0:
            self.master_age_ms = int(self._ages(np.array([self.master_row], np.int32))[0])
        group = book.groups_of(np.array([self.master_row], np.int32))[0] if self.master_row >= 0 else -1
        self.master_group = book.market.names.text(int(group)) if group >= 0 else book.market.names.text(0)

    def rows_present(self) -> npt.NDArray[np.int32]:
        """(k,) rows of the book."""
        found: npt.NDArray[np.int32] = self.rows[self.present]
        return found

    def _ages(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Ages of the oldest quotes that equities rest on, 0 for those that rest on none; of open markets only."""
        book, market = self._observer.book, self._observer.book.market
        quotes, instruments = market.quotes, market.instruments
        of_quote = np.where(quotes["code"] == RowCode.OK, self._observer.now_ms - quotes["ts_ms"], 0)
        of_quote = np.append(of_quote, 0)  # what row -1 stands for: no quote
        direct, inverse = instruments["direct"], instruments["inverse"]
        known = are_known(np.append(quotes["code"], RowCode.UNKNOWN).astype(np.uint8))
        converting = np.where(known[direct], direct, inverse)
        ages = np.maximum(of_quote[instruments["quote"]], of_quote[converting])
        accounts = book.accounts[rows]
        oldest = np.zeros(len(rows), np.int64)
        for i in range(int(accounts["n_executed"].max(initial=0))):
            has = np.flatnonzero(accounts["n_executed"] > i)
            legs = book.legs[accounts["first"][has] + i]
            oldest[has] = np.maximum(oldest[has], ages[legs["rate"] // 2])
        return oldest

    # ---- refusals: the first one holds

    def refuse(self, places: npt.NDArray[np.intp], reasons: Any) -> None:
        """Refuse some, each for its reason; an empty one refuses nobody."""
        before = self.decided["reason"][places]
        self.decided["reason"][places] = np.where(before == b"", reasons, before)

    def refuse_all(self, reason: str) -> None:
        """Refuse everybody."""
        self.refuse(np.arange(len(self.decided)), reason.encode())

    def refuse_by_settings(self) -> None:
        """Refuse those whose settings do."""
        event = self._event
        reasons = [settings.refuses(event.symbol, event.order_type).encode() for settings in self.settings]
        if reasons:
            self.refuse(self.present, np.array(reasons, "S40")[self.numbers])

    def refuse_by_group(self, groups: Sequence[GroupMarket], deviation_pct: float) -> None:
        """Refuse those for whom the symbol cannot be traded, or only far from the master's price."""
        event, is_market = self._event, self._event.order_type == self._event.order_type.side
        for place, group in enumerate(groups):
            if place == 0:
                continue
            members = np.flatnonzero(self.decided["group"] == place)
            reason = group.refusal
            if not reason and is_market and deviation_pct:
                try:
                    is_far = group.deviates(event.price, is_buy=event.order_type.is_buy, limit_pct=deviation_pct)
                    reason = "price_deviation" if is_far else ""
                except Refused as refusal:
                    reason = refusal.code
            self.refuse(members, reason.encode())

    def refuse_old_equity(self, limit_ms: int) -> None:
        """Refuse those whose equity rests on a quote that is too old."""
        if limit_ms:
            self.refuse(np.flatnonzero(self.decided["equity_age_ms"] > limit_ms), b"equity_too_old")

    # ---- figures

    def figures_of_modes(self, chosen: npt.NDArray[np.intp], modes: npt.NDArray[np.str_]) -> tuple[Any, Any]:
        """The master's and the followers' figures that their modes take; NaN for what is not known."""
        rows = self.rows[chosen]
        conditions = [modes == SizingMode.BALANCE.value, modes == SizingMode.FREE_MARGIN.value]
        found = []
        for of in (np.full(len(rows), self.master_row), rows):
            figures = [self.figure(name, of) for name in ("balance", "free_margin", "equity")]
            found.append(np.select(conditions, figures[:2], figures[2]))
        return found[0], found[1]

    def figure(self, name: str, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """A figure of accounts in USD, NaN where it is not known."""
        figures, book = self._observer.figures, self._observer.book
        is_here = (rows >= 0) & (rows < len(figures))
        place = np.where(is_here, rows, 0)
        known = is_here & are_known(figures["code"][place]) if len(figures) else is_here
        if not len(figures):
            return np.full(len(rows), np.nan)
        source = book.accounts if name in ("balance", "leverage") else figures
        return np.where(known, source[name][place], np.nan)
