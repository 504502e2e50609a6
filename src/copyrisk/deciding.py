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
from copyrisk.book import RowNumbers
from copyrisk.candidates import Glance, halted_reasons, need_terms
from copyrisk.cohort import Cohort, GroupMarket
from copyrisk.copying import CopySettings
from copyrisk.decimals import EXACT, decimal_text
from copyrisk.layout import Rows
from copyrisk.limits import Limits
from copyrisk.market import InstrumentKey
from copyrisk.observer import Observer
from copyrisk.replication import MasterEvent, reversed_target, reversed_type
from copyrisk.sizing import size_reason, size_rows, sizing_rows
from copyrisk.sizing_terms import POLICY_IN, Rounding, SizingMode
from copyrisk.store.decisions import Decision
from copyrisk.store.kill_switch import KillSwitch
from copyrisk.store.markets import Markets
from copyrisk.store.remainders import Remainders

if TYPE_CHECKING:
    from copyrisk.policies import Policy

_LOOKS = 5


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
    signal_max_age_ms: int = 30_000
    equity_max_age_ms: int = 30_000
    price_deviation_pct: float = 1.0
    corrects_contract_size: bool = False
    carries_remainders: bool = False
    retry_ms: int = 500
    limits_check_ms: int = 1_000


class Decider:
    """Makes decisions; holds no state of its own."""

    def __init__(
        self,
        observer: Observer,
        markets: Markets,
        limits: Limits,
        remainders: Remainders,
        *,
        switch: KillSwitch,
        options: CopyOptions,
        policy: "Policy | None",
    ) -> None:
        self._observer, self._markets, self._limits, self._switch = observer, markets, limits, switch
        self._remainders, self._options, self._policy = remainders, options, policy

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
        self._look(event, before)
        table = Cohort(event, observer, members)
        glance = Glance(before, ledgers) if ledgers is not None and (table.rows == before).all() else None
        table.refuse(table.present, halted_reasons(self._switch.read(), event, observer, table.rows_present()))
        table.refuse_all(self._refusal_of_all(event, table, server_ms))
        table.refuse(table.present, self._limits.refusals(table.rows_present()))
        table.refuse_by_settings()
        groups = self._groups(event, table)
        table.refuse_by_group(groups, self._options.price_deviation_pct)
        table.refuse_old_equity(self._options.equity_max_age_ms)
        self._size(event, table, groups)
        header = _header(event, table, groups, self._markets, server_ms)
        header["carries"] = self._options.carries_remainders
        return Decision(event.order_id, header, table.decided), glance

    def _look(self, event: MasterEvent, before: RowNumbers) -> None:
        """See everybody; who changes just now is unknown for this look, and looked at again a few times."""
        observer = self._observer
        for _ in range(_LOOKS):
            observer.look()
            rows = np.append(before, observer.book.row_of(event.master))
            if (observer.figures["code"][rows[rows >= 0]] != RowCode.ACCOUNT_CHANGING).all():
                return

    def _refusal_of_all(self, event: MasterEvent, table: Cohort, server_ms: int) -> str:
        options = self._options
        if options.signal_max_age_ms and server_ms - event.ts_ms > options.signal_max_age_ms:
            return "signal_too_old"
        is_old = options.equity_max_age_ms and table.master_age_ms > options.equity_max_age_ms
        return "master_equity_too_old" if is_old else ""

    def _groups(self, event: MasterEvent, table: Cohort) -> list[GroupMarket]:
        """The market of each group that somebody is in, the master's first."""
        market = self._markets.market
        names = [table.master_group, *table.groups]
        rows = [market.ensure_instrument(InstrumentKey(name, event.symbol)) for name in names]
        self._markets.read(sorted(set(rows)))
        return [GroupMarket(name, self._markets.of(row)) for name, row in zip(names, rows, strict=True)]

    def _size(self, event: MasterEvent, table: Cohort, groups: list[GroupMarket]) -> None:
        """Size everybody against whom nothing stands."""
        decided, chosen = table.decided, np.flatnonzero(table.decided["reason"] == b"")
        if not len(chosen):
            return
        terms = _terms(event, table, groups, chosen, corrects_size=self._options.corrects_contract_size)
        if self._policy is not None:
            is_policy = terms["mode"] == SizingMode.POLICY.value
            if is_policy.any():
                terms["raw_lots"] = self._policy.raw_lots(_policy_rows(event, table, chosen, terms))
        if self._options.carries_remainders:
            terms |= self._carried(event, table, chosen, terms["lot_step"])
        master, follower = table.figures_of_modes(chosen, terms["mode"])
        rows = sizing_rows(float(event.asked), master, follower, **terms)
        sized = size_rows(rows)
        decided["sizing"][chosen], decided["sized"][chosen] = rows, sized
        codes = sized["code"]
        for code in np.unique(codes[~((codes >= SizeCode.OK) & (codes <= SizeCode.LIFTED))]).tolist():
            decided["reason"][chosen[codes == code]] = size_reason(code).encode()

    def _carried(
        self, event: MasterEvent, table: Cohort, chosen: npt.NDArray[np.intp], lot_step: npt.NDArray[np.float64]
    ) -> dict[str, Any]:
        """What followers are owed from before, in steps of this order's direction; it is made up for by half steps."""
        followers = self._observer.followers.accounts_of(table.rows[chosen])
        owed = self._remainders.owed(followers, event.master.id, event.symbol)
        is_sold = np.array([settings.reverse is event.order_type.is_buy for settings in table.settings])
        signed = np.where(is_sold[table.settings_of[chosen]], -owed, owed)
        return {"rounding": Rounding.NEAREST.value, "carry_steps": np.clip(signed / lot_step, -1.0, 1.0)}


def _terms(
    event: MasterEvent,
    table: Cohort,
    groups: Sequence[GroupMarket],
    chosen: npt.NDArray[np.intp],
    *,
    corrects_size: bool,
) -> dict[str, Any]:
    """What the sizes of some followers follow from, besides figures."""
    place = table.settings_of[chosen]
    by_settings = {
        name: np.array([getattr(settings, name).value for settings in table.settings])[place]
        for name in ("below_min", "above_max", "rounding", "leverage_correction")
    }
    is_reverse = np.array([settings.reverse for settings in table.settings], np.bool_)[place]
    numbers = {
        name: np.array([float(getattr(settings, name)) for settings in table.settings])[place]
        for name in ("multiplier", "fixed_lots", "target_leverage", "risk_pct", "lift_risk_limit")
    }
    largest = np.array([np.inf if s.max_lots is None else float(s.max_lots) for s in table.settings])[place]
    group = table.decided["group"][chosen]
    by_group = {name: column[group] for name, column in _columns_of(event, groups, corrects_size=corrects_size).items()}
    targets = event.target, reversed_target(event.target)
    losses = [_losses_usd(event, groups, target.stop_loss) for target in targets]
    return {
        "mode": np.array([settings.sizing_mode.value for settings in table.settings])[place],
        **by_settings,
        **numbers,
        **by_group,
        "loss_per_lot_usd": np.where(is_reverse, losses[1][group], losses[0][group]),
        "max_lot": np.minimum(by_group["max_lot"], largest),
        "master_leverage": table.figure("leverage", np.full(len(chosen), table.master_row)),
        "follower_leverage": table.figure("leverage", table.rows[chosen]),
    }


def _columns_of(
    event: MasterEvent, groups: Sequence[GroupMarket], *, corrects_size: bool
) -> dict[str, npt.NDArray[np.float64]]:
    """What sizes take of each group; NaN, which sizes nothing, where it refuses."""
    names = ("lot_step", "min_lot", "max_lot", "contract_size", "lot_value_usd")
    found = {name: np.full(len(groups), np.nan) for name in names}
    for i, group in enumerate(groups):
        if group.refusal:
            continue
        conditions = group.conditions
        size, lots = conditions.contract_size, conditions.lots
        with localcontext(EXACT):
            value = group.usd(size * event.price)
        limits = (float(number) for number in (lots.step, lots.smallest, lots.largest, size))
        for name, number in zip(names, (*limits, value), strict=True):
            found[name][i] = number
    found["master_lot_step"] = np.full(len(groups), found["lot_step"][0])
    if corrects_size:
        found["master_contract_size"] = np.full(len(groups), found["contract_size"][0])
    else:
        del found["contract_size"]
    return found


def _losses_usd(event: MasterEvent, groups: Sequence[GroupMarket], stop: Decimal | None) -> npt.NDArray[np.float64]:
    """What a lot loses from the order's price to a stop, by group."""
    found = np.full(len(groups), np.nan)
    for i, group in enumerate(groups):
        if stop is not None and not group.refusal:
            with localcontext(EXACT):
                found[i] = -group.usd(-group.conditions.contract_size * abs(event.price - stop))
    return found


def _policy_rows(event: MasterEvent, table: Cohort, chosen: npt.NDArray[np.intp], terms: Mapping[str, Any]) -> Rows:
    rows: Rows = np.zeros(len(chosen), POLICY_IN)
    master, follower = np.full(len(chosen), table.master_row), table.rows[chosen]
    rows["master_lots"], rows["price"] = float(event.asked), float(event.price)
    rows["multiplier"], rows["lot_value_usd"] = terms["multiplier"], terms["lot_value_usd"]
    for name in ("equity", "balance", "free_margin", "leverage"):
        rows[f"master_{name}"] = table.figure(name, master)
        rows[f"follower_{name}"] = table.figure(name, follower)
    return rows


def _header(
    event: MasterEvent, table: Cohort, groups: Sequence[GroupMarket], markets: Markets, server_ms: int
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
        "settings": _number_settings(event, table),
    }


def _number_settings(event: MasterEvent, table: Cohort) -> list[dict[str, Any]]:
    """Write into the decision whose settings are which, and return each of them once."""
    places: dict[tuple[Any, ...], int] = {}
    found: list[dict[str, Any]] = []
    place_of: list[int] = []
    for settings in table.settings:
        words = _settings_words(settings, event)
        place = places.setdefault(tuple(words.values()), len(found))
        if place == len(found):
            found.append(words)
        place_of.append(place)
    if place_of:
        table.decided["settings"] = np.array(place_of)[table.settings_of]
    return found


def _group_words(group: GroupMarket) -> dict[str, Any]:
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
