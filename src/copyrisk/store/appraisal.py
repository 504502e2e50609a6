"""Accounts for the length of a decision: their figures by the same kernels that value the whole book.

A wave of accounts, a few rows each, is laid out flat and valued once, with the orders that are to be placed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from copyrisk import fields, identifiers, layout
from copyrisk._core import ConversionSide, LadderState, RowCode
from copyrisk.cover import are_covered, margin_usd, new_orders, profits_now, split_lots, value_now, value_with
from copyrisk.decimals import ZERO, parse_decimal
from copyrisk.errors import InvalidId, reason_name
from copyrisk.layout import Rows
from copyrisk.levels import judge_levels
from copyrisk.records import Order
from copyrisk.risk import CONVERSION_SIDES, fully_known
from copyrisk.rules import ValuationRules
from copyrisk.situation import SymbolMarket
from copyrisk.store.functions import AccountRead, text
from copyrisk.store.markets import Markets


@dataclass(frozen=True, slots=True)
class MarginVerdict:
    """Whether an account can carry an order: the order's own margin, and `ok` or why not."""

    margin_usd: Decimal
    code: str
    message: str = ""


class Appraiser:
    """Values accounts, a wave at a time."""

    def __init__(self, markets: Markets, rules: ValuationRules) -> None:
        self._markets, self._rules = markets, rules
        self._side: ConversionSide = CONVERSION_SIDES[rules.rate_side]
        self._reads: Sequence[AccountRead] = ()
        self._instruments: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._accounts: Rows = np.zeros(0, layout.ACCOUNT_READ)
        self._orders: Rows = np.zeros(0, layout.ORDER)

    @property
    def now_ms(self) -> int:
        """When the quotes were judged."""
        return self._markets.now_ms

    def lay_out(self, reads: Sequence[AccountRead], symbols: Sequence[str]) -> None:
        """Take accounts, each once, and of each the symbol that its decision is about (empty: none).

        Raises
        ------
        StoreError, StoreUnavailable
        """
        market, columns = self._markets.market, self._markets.columns
        self._reads = reads
        configs = columns.rows(fields.ACCOUNT_COLUMNS, [read.config_row for read in reads])
        self._accounts = fields.judge_accounts(configs, market.names)
        groups = self._accounts["group"].tolist()
        asked = [
            market.instrument_of(group, market.names.index.put(symbol.encode())) if symbol else -1
            for group, symbol in zip(groups, symbols, strict=True)
        ]
        self._instruments = np.array(asked, np.int32)
        self._orders = self._lay_out_orders(groups)
        held = self._orders["instrument"].tolist()
        self._markets.read(sorted({*asked, *held} - {-1}))

    def _lay_out_orders(self, groups: list[int]) -> Rows:
        """(n,) Order: of all accounts, one after the other."""
        market = self._markets.market
        hashes = [row for read in self._reads for row in read.order_rows]
        judged = fields.judge_orders(self._markets.columns.rows(fields.ORDER_COLUMNS, hashes), market.names)
        owners = np.repeat(np.arange(len(self._reads)), [len(read.order_ids) for read in self._reads])
        orders = _rows_of(judged, owners)
        orders["code"][[not _is_id(order_id) for read in self._reads for order_id in read.order_ids]] = (
            RowCode.ORDER_ID_INVALID
        )
        orders["instrument"] = [
            market.instrument_of(groups[owner], symbol) if symbol >= 0 else -1
            for owner, symbol in zip(owners.tolist(), judged["symbol"].tolist(), strict=True)
        ]
        return orders

    def market_of(self, i: int) -> SymbolMarket | None:
        """The market of the symbol that the decision about the i-th account is about."""
        return self._markets.of(int(self._instruments[i]))

    def judge(self, candidates: Sequence[tuple[int, Order]]) -> list[MarginVerdict]:
        """Whether accounts (by their place in the wave) could carry an order each, with all they carry already."""
        if not candidates:
            return []
        places, orders = np.array([i for i, _ in candidates]), [order for _, order in candidates]
        new = new_orders(
            [float(order.asked) for order in orders],
            [float(order.price) for order in orders],
            [order.order_type.is_buy for order in orders],
            self._instruments[places],
        )
        accounts, held = self._account_rows(places), self._held(candidates)
        nets_orders, market = self._rules.nets_orders, self._markets.market
        figures, alone = value_with(accounts, held, new, market, self._side, nets_orders=nets_orders)
        return [self._verdict(i, figures[k : k + 1], alone[k : k + 1]) for k, (i, _) in enumerate(candidates)]

    def are_critical(self, places: Sequence[int]) -> dict[int, bool]:
        """Whether some accounts (by their place in the wave) are critical now; absent: it is not known.

        What rests on the last quote of a closed market is not known: nothing may be decided on it. Lots that are
        being closed count as closed: without their margin, their profit booked.
        """
        if not places:
            return {}
        chosen = np.array(places)
        place = np.full(len(self._reads), -1, np.int32)
        place[chosen] = np.arange(len(chosen))
        held = self._orders.copy()
        held["account"] = place[held["account"]]
        under_way = np.array([read.ending.get(own, 0.0) for read in self._reads for own in read.order_ids])
        accounts, is_own = self._account_rows(chosen), held["account"] >= 0
        gone, own = split_lots(held[is_own], under_way[is_own])
        np.add.at(accounts["balance"], gone["account"], profits_now(gone, self._markets.market, self._side))
        nets_orders = self._rules.nets_orders
        figures = value_now(accounts, own, self._markets.market, self._side, nets_orders=nets_orders)
        states, codes = figures["state"].tolist(), figures["code"].tolist()
        return {
            i: states[k] == LadderState.CRITICAL for k, i in enumerate(places) if states[k] and codes[k] == RowCode.OK
        }

    def _held(self, candidates: Sequence[tuple[int, Order]]) -> Rows:
        """The orders that these accounts have, without the candidates, as of their places among the candidates."""
        place = np.full(len(self._reads), -1, np.int32)
        place[[i for i, _ in candidates]] = np.arange(len(candidates))
        held = self._orders.copy()
        held["account"] = place[held["account"]]
        own = {(i, order.id.encode()) for i, order in candidates}
        is_other = [(i, order_id) not in own for i, read in enumerate(self._reads) for order_id in read.order_ids]
        kept: Rows = held[(held["account"] >= 0) & np.array(is_other, np.bool_)]
        return kept

    def _account_rows(self, places: npt.NDArray[np.int64]) -> Rows:
        judged = self._accounts[places]
        rows: Rows = np.zeros(len(places), layout.ACCOUNT)
        rows["balance"], rows["leverage"], rows["read_code"] = judged["balance"], judged["leverage"], judged["code"]
        rows["warning_level_pct"], rows["critical_level_pct"], _ = judge_levels(judged, self._rules)
        rows["culprit"] = -1
        return rows

    def _verdict(self, i: int, figures: Rows, alone: Rows) -> MarginVerdict:
        """Of the account's figures with the order, and those of the order alone."""
        for row in (figures, alone):
            if not fully_known(row)[0]:
                reason = reason_name(int(row["code"][0]))
                return MarginVerdict(ZERO, "account_unknown", f"the account's figures are not known: {reason}")
        reserved = parse_decimal(self._reads[i].reserved_usd or "0")
        if reserved is None:
            return MarginVerdict(ZERO, "account_unknown", "the account's reserved margin cannot be read")
        is_covered = are_covered(figures, alone, np.array([float(reserved)]))[0]
        margin = margin_usd(float(alone["used_margin_all"][0]))
        return MarginVerdict(margin, "ok" if is_covered else "insufficient_margin")


def _rows_of(judged: Rows, owners: npt.NDArray[np.int64]) -> Rows:
    rows: Rows = np.zeros(len(judged), layout.ORDER)
    for name in ("lots", "price", "fees_usd", "effect", "is_buy", "code"):
        rows[name] = judged[name]
    rows["account"], rows["instrument"], rows["next"] = owners, -1, -1
    return rows


def _is_id(order_id: bytes) -> bool:
    try:
        identifiers.check_order_id(text(order_id))
    except InvalidId:
        return False
    return True
