"""Deciding about the copies of a master's order: for every follower its size, or why it gets no copy.

What is decided rests on one look at the book, one reading of the market, and the followers' settings; the result says
all of it, so that it can be worked out again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from copyrisk._core import RowCode
from copyrisk._sizing import SizeCode
from copyrisk.copying import CopySettings
from copyrisk.decimals import EXACT, decimal_text
from copyrisk.errors import CopyriskError, Refused
from copyrisk.keys import Account
from copyrisk.fanout import Glance, need_terms
from copyrisk.layout import Rows
from copyrisk.limits import Limits
from copyrisk.market import InstrumentKey
from copyrisk.observer import Observer
from copyrisk.replication import DECIDED, MasterEvent, reversed_type
from copyrisk.risk import are_known
from copyrisk.situation import SymbolMarket
from copyrisk.sizing import size_reason, size_rows, sizing_rows
from copyrisk.sizing_terms import POLICY_IN, SizingMode
from copyrisk.store.decisions import Decision
from copyrisk.store.followers import follower_of
from copyrisk.store.markets import Markets

if TYPE_CHECKING:
    from copyrisk.policies import Policy

_GROUPS_LIMIT = 32_767
_NO_AGE = -1


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """Settings of the engine of copies.

    Attributes
    ----------
    batch : int
        Copies that are sent to the server together.
    signal_max_age_ms, equity_max_age_ms : int
        Of the master's order, and of the quotes that an equity rests on; 0: no limit.
    price_deviation_pct : float
        How far the market may have moved from the master's price; 0: no limit.
    corrects_contract_size : bool
        Whether a lot of a group counts for what it is worth of a lot of the master's group; else lots are lots.
    carries_remainders : bool
        Whether what rounding took from a follower is made up for later.
    """

    batch: int = 50
    signal_max_age_ms: int = 10_000
    equity_max_age_ms: int = 30_000
    price_deviation_pct: float = 1.0
    corrects_contract_size: bool = False
    carries_remainders: bool = False
    retry_ms: int = 500
    limits_check_ms: int = 1_000


class Decider:
    """Makes decisions; holds no state of its own."""

    def __init__(
        self, observer: Observer, markets: Markets, limits: Limits, options: CopyOptions, policy: "Policy | None"
    ) -> None:
        self._observer, self._markets, self._limits = observer, markets, limits
        self._options, self._policy = options, policy

    def decide(self, event: MasterEvent) -> tuple[Decision, Glance | None]:
        """Decide about everybody who copies the master now; returns also what was read for it.

        Raises
        ------
        StoreError, StoreUnavailable
            Nothing was decided.
        """
        observer = self._observer
        members, server_ms = observer.followers.members(event.master.id)
        before = observer.followers.rows_of(members)
        need_terms(observer, before[before >= 0], event.symbol)
        ledgers = observer.followers.ledgers(before) if (before >= 0).all() else None
        observer.look()
        table = _Followers(event, observer, members)
        glance = Glance(before, ledgers) if ledgers is not None and (table.rows == before).all() else None
        table.refuse_all(self._refusal_of_all(event, server_ms))
        table.refuse_by_settings()
        table.refuse(table.present, self._limits.refusals(table.rows_present()))
        groups = self._groups(event, table)
        table.refuse_by_group(groups, self._options.price_deviation_pct)
        table.refuse_old_equity(self._options.equity_max_age_ms)
        self._size(event, table, groups)
        header = _header(event, table, groups, self._markets, server_ms)
        return Decision(event.order_id, header, table.decided), glance

    def _refusal_of_all(self, event: MasterEvent, server_ms: int) -> str:
        limit_ms = self._options.signal_max_age_ms
        return "signal_too_old" if limit_ms and server_ms - event.ts_ms > limit_ms else ""

    def _groups(self, event: MasterEvent, table: "_Followers") -> list["_Group"]:
        """The market of each group that somebody is in, the master's first."""
        market = self._markets.market
        names = [table.master_group, *table.groups]
        rows = [market.ensure_instrument(InstrumentKey(name, event.symbol)) for name in names]
        self._markets.read(sorted(set(rows)))
        return [_Group(name, self._markets.of(row)) for name, row in zip(names, rows, strict=True)]

    def _size(self, event: MasterEvent, table: "_Followers", groups: list["_Group"]) -> None:
        """Size everybody against whom nothing stands."""
        decided, chosen = table.decided, np.flatnonzero(table.decided["reason"] == b"")
        if not len(chosen):
            return
        terms = _terms(event, table, groups, chosen, corrects_size=self._options.corrects_contract_size)
        if self._policy is not None:
            is_policy = terms["mode"] == SizingMode.POLICY.value
            if is_policy.any():
                terms["raw_lots"] = self._policy.raw_lots(_policy_rows(event, table, chosen, terms))
        master, follower = table.figures_of_modes(chosen, terms["mode"])
        rows = sizing_rows(float(event.asked), master, follower, **terms)
        sized = size_rows(rows)
        decided["sizing"][chosen], decided["sized"][chosen] = rows, sized
        codes = sized["code"]
        for code in np.unique(codes[~((codes >= SizeCode.OK) & (codes <= SizeCode.LIFTED))]).tolist():
            decided["reason"][chosen[codes == code]] = size_reason(code).encode()


class _Group:
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


class _Followers:
    """The followers of one event, in the order of their ids, and what is decided about each.

    Attributes
    ----------
    rows : (n,) int32
        Of the book, -1 for who is not in it.
    present : (k,) intp
        Places of those who are.
    """

    def __init__(self, event: MasterEvent, observer: Observer, members: Sequence[bytes]) -> None:
        self._event, self._observer = event, observer
        book = observer.book
        self.decided: Rows = np.zeros(len(members), DECIDED)
        self.decided["group"], self.decided["equity_age_ms"] = -1, _NO_AGE
        self.decided["follower"] = members
        self.rows = observer.followers.rows_of(members)
        self.refuse(np.flatnonzero(self.rows < 0), b"account_missing")
        bad = [i for i in np.flatnonzero(self.rows < 0).tolist() if follower_of(members[i]) is None]
        self.decided["reason"][bad] = b"invalid_account_id"
        self.present = np.flatnonzero(self.rows >= 0)
        self.master_row = book.row_of(event.master)
        rows = self.rows_present()
        numbers, self.numbers = np.unique(observer.followers.numbers_of(rows), return_inverse=True)
        self.settings: list[CopySettings] = [observer.followers.settings[number] for number in numbers.tolist()]
        self.decided["settings"][self.present] = self.numbers
        names, places = np.unique(book.groups_of(rows), return_inverse=True)
        self.groups = [book.market.names.text(name) for name in names.tolist()][:_GROUPS_LIMIT]
        self.decided["group"][self.present] = places + 1  # the master's group is the first
        self.decided["equity_age_ms"][self.present] = self._ages(rows)
        group = book.groups_of(np.array([self.master_row], np.int32))[0] if self.master_row >= 0 else -1
        self.master_group = book.market.names.text(int(group)) if group >= 0 else book.market.names.text(0)

    def rows_present(self) -> npt.NDArray[np.int32]:
        """(k,) rows of the book."""
        found: npt.NDArray[np.int32] = self.rows[self.present]
        return found

    def _ages(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Ages of the oldest quotes that equities rest on, 0 for those that rest on none; of open markets only."""
        book, market = self._observer.book, self._observer.book.market
        quotes = market.quotes[market.instruments["quote"]]
        ages = np.where(quotes["code"] == RowCode.OK, self._observer.now_ms - quotes["ts_ms"], 0)
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

    def refuse_by_group(self, groups: Sequence[_Group], deviation_pct: float) -> None:
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


def _terms(
    event: MasterEvent,
    table: _Followers,
    groups: Sequence[_Group],
    chosen: npt.NDArray[np.intp],
    *,
    corrects_size: bool,
) -> dict[str, Any]:
    """What the sizes of some followers follow from, besides figures."""
    place = table.decided["settings"][chosen]
    by_settings = {
        name: np.array([getattr(settings, name).value for settings in table.settings])[place]
        for name in ("below_min", "above_max", "rounding", "leverage_correction")
    }
    numbers = {
        name: np.array([float(getattr(settings, name)) for settings in table.settings])[place]
        for name in ("multiplier", "fixed_lots", "target_leverage", "risk_pct", "lift_risk_limit")
    }
    largest = np.array([np.inf if s.max_lots is None else float(s.max_lots) for s in table.settings])[place]
    group = table.decided["group"][chosen]
    by_group = {name: column[group] for name, column in _columns_of(event, groups, corrects_size=corrects_size).items()}
    return {
        "mode": np.array([settings.sizing_mode.value for settings in table.settings])[place],
        **by_settings,
        **numbers,
        **by_group,
        "max_lot": np.minimum(by_group["max_lot"], largest),
        "master_leverage": table.figure("leverage", np.full(len(chosen), table.master_row)),
        "follower_leverage": table.figure("leverage", table.rows[chosen]),
    }


def _columns_of(
    event: MasterEvent, groups: Sequence[_Group], *, corrects_size: bool
) -> dict[str, npt.NDArray[np.float64]]:
    """What sizes take of each group; NaN, which sizes nothing, where it refuses."""
    names = ("lot_step", "min_lot", "max_lot", "contract_size", "lot_value_usd", "loss_per_lot_usd")
    found = {name: np.full(len(groups), np.nan) for name in names}
    for i, group in enumerate(groups):
        if group.refusal:
            continue
        conditions = group.conditions
        size, lots = conditions.contract_size, conditions.lots
        with localcontext(EXACT):
            value = group.usd(size * event.price)
            loss = -group.usd(-size * abs(event.price - event.stop_loss)) if event.stop_loss else float("nan")
        numbers = (lots.step, lots.smallest, lots.largest, size, value, loss)
        for name, number in zip(names, numbers, strict=True):
            found[name][i] = float(number)
    found["master_lot_step"] = np.full(len(groups), found["lot_step"][0])
    if corrects_size:
        found["master_contract_size"] = np.full(len(groups), found["contract_size"][0])
    else:
        del found["contract_size"]
    return found


def _policy_rows(event: MasterEvent, table: _Followers, chosen: npt.NDArray[np.intp], terms: Mapping[str, Any]) -> Rows:
    rows: Rows = np.zeros(len(chosen), POLICY_IN)
    master, follower = np.full(len(chosen), table.master_row), table.rows[chosen]
    rows["master_lots"], rows["price"] = float(event.asked), float(event.price)
    rows["multiplier"], rows["lot_value_usd"] = terms["multiplier"], terms["lot_value_usd"]
    for name in ("equity", "balance", "free_margin", "leverage"):
        rows[f"master_{name}"] = table.figure(name, master)
        rows[f"follower_{name}"] = table.figure(name, follower)
    return rows


def _header(
    event: MasterEvent, table: _Followers, groups: Sequence[_Group], markets: Markets, server_ms: int
) -> dict[str, Any]:
    """All that was the same for every follower, as JSON holds it."""
    quote = groups[0].market.quote
    master = np.array([table.master_row])
    figures = {
        name: _rounded(table.figure(name, master)[0]) for name in ("equity", "balance", "free_margin", "leverage")
    }
    return {
        "event": event.entry_id,
        "master": event.master.id,
        "order_id": event.order_id,
        "version": event.version,
        "symbol": event.symbol,
        "order_type": event.order_type.value,
        "order_price": decimal_text(event.price),
        "lots": decimal_text(event.asked),
        "stop_loss": None if event.stop_loss is None else decimal_text(event.stop_loss),
        "take_profit": None if event.take_profit is None else decimal_text(event.take_profit),
        "ordered_ms": event.ts_ms,
        "received_ms": int(event.entry_id.partition("-")[0]),
        "decided_ms": server_ms,
        "master_figures": figures,
        "quote": {"bid": decimal_text(quote.bid), "ask": decimal_text(quote.ask), "judged_ms": markets.now_ms},
        "groups": [_group_words(group) for group in groups],
        "settings": [_settings_words(settings, event) for settings in table.settings],
    }


def _group_words(group: _Group) -> dict[str, Any]:
    if group.refusal:
        return {"group": group.name, "refusal": group.refusal}
    lots = group.conditions.lots
    limits = {name: decimal_text(getattr(lots, name)) for name in ("smallest", "largest", "step")}
    return {"group": group.name, **limits, "contract_size": decimal_text(group.conditions.contract_size)}


def _settings_words(settings: CopySettings, event: MasterEvent) -> dict[str, Any]:
    order_type = reversed_type(event.order_type) if settings.reverse else event.order_type
    return {
        "sizing_mode": settings.sizing_mode.value,
        "multiplier": decimal_text(settings.multiplier),
        "max_lot_size": None if settings.max_lots is None else decimal_text(settings.max_lots),
        "rounding": settings.rounding.value,
        "below_min": settings.below_min.value,
        "above_max": settings.above_max.value,
        "reverse": settings.reverse,
        "order_type": order_type.value,
    }


def _rounded(value: float) -> str | None:
    return None if np.isnan(value) else f"{value:.2f}"


def follower_account(decided: Any) -> Account:
    """Of a decided row, whose id has been checked."""
    account = follower_of(bytes(decided["follower"]))
    assert account is not None
    return account
