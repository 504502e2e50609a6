"""The slow twin of `copyrisk._triggers`: a list of triggers, each held against each quote."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from copyrisk._triggers import TriggerKind

#: When each kind fires, from bid, ask and price.
CONDITIONS: dict[TriggerKind, Callable[[float, float, float], bool]] = {
    TriggerKind.BUY_STOP: lambda bid, ask, price: ask >= price,
    TriggerKind.SELL_STOP: lambda bid, ask, price: bid <= price,
    TriggerKind.BUY_LIMIT: lambda bid, ask, price: ask <= price,
    TriggerKind.SELL_LIMIT: lambda bid, ask, price: bid >= price,
    TriggerKind.STOP_LOSS_OF_BUY: lambda bid, ask, price: bid <= price,
    TriggerKind.TAKE_PROFIT_OF_BUY: lambda bid, ask, price: bid >= price,
    TriggerKind.STOP_LOSS_OF_SELL: lambda bid, ask, price: ask >= price,
    TriggerKind.TAKE_PROFIT_OF_SELL: lambda bid, ask, price: ask <= price,
}
STOP_LOSSES = {TriggerKind.STOP_LOSS_OF_BUY, TriggerKind.STOP_LOSS_OF_SELL}
TAKE_PROFITS = {TriggerKind.TAKE_PROFIT_OF_BUY, TriggerKind.TAKE_PROFIT_OF_SELL}
ROLES = (STOP_LOSSES, TAKE_PROFITS, set(CONDITIONS) - STOP_LOSSES - TAKE_PROFITS)
#: By condition, and whether the higher price is met first.
LADDERS = (
    ({TriggerKind.SELL_STOP, TriggerKind.STOP_LOSS_OF_BUY}, True),
    ({TriggerKind.BUY_STOP, TriggerKind.STOP_LOSS_OF_SELL}, False),
    ({TriggerKind.SELL_LIMIT, TriggerKind.TAKE_PROFIT_OF_BUY}, False),
    ({TriggerKind.BUY_LIMIT, TriggerKind.TAKE_PROFIT_OF_SELL}, True),
)


@dataclass(frozen=True)
class Trigger:
    order: int
    symbol: int
    kind: TriggerKind
    price: float

    @property
    def role(self) -> int:
        return next(role for role, kinds in enumerate(ROLES) if self.kind in kinds)

    @property
    def ladder(self) -> int:
        return next(number for number, (kinds, _) in enumerate(LADDERS) if self.kind in kinds)

    @property
    def is_buy(self) -> bool:
        return self.kind.name.startswith("BUY") or self.kind.name.endswith("BUY")


class SlowLadders:
    """What `Ladders` does, trigger by trigger."""

    def __init__(self) -> None:
        self.triggers: list[Trigger] = []

    def set(self, order: int, symbol: int, kind: int, price: float) -> None:
        self.set_many([(order, symbol, kind, price)])

    def set_many(self, rows: Iterable[tuple[int, int, int, float]]) -> None:
        """All, or `ValueError` and none."""
        kept = list(self.triggers)
        for order, symbol, kind, price in rows:
            if kind not in list(TriggerKind)[1:] or not (math.isfinite(price) and price > 0):
                raise ValueError
            new = Trigger(order, symbol, TriggerKind(kind), price)
            if any(t.order == order and (t.symbol, t.is_buy) != (symbol, new.is_buy) for t in kept):
                raise ValueError
            kept = [t for t in kept if (t.order, t.role) != (order, new.role)] + [new]
        self.triggers = kept

    def clear(self, order: int, kind: int = 0) -> None:
        roles = {Trigger(order, 0, TriggerKind(kind), 1.0).role} if kind else {0, 1, 2}
        self.triggers = [t for t in self.triggers if t.order != order or t.role not in roles]

    def armed(self) -> list[Trigger]:
        """Those that do not wait for a pending price of their order."""
        pending = {t.order for t in self.triggers if t.role == 2}
        return [t for t in self.triggers if t.role == 2 or t.order not in pending]

    def fire(self, quotes: Sequence[tuple[int, float, float]]) -> list[tuple[int, int, float]]:
        """(order, kind, price) of what fires."""
        fired: list[tuple[tuple[float, ...], Trigger]] = []
        for number, (symbol, bid, ask) in enumerate(quotes):
            if not all(math.isfinite(side) and side > 0 for side in (bid, ask)) or bid > ask:
                continue
            reached = [t for t in self.armed() if t.symbol == symbol and CONDITIONS[t.kind](bid, ask, t.price)]
            losses = {t.order for t in reached if t.role == 0}
            for t in reached:
                if t.role == 0 or t.order not in losses:
                    price = -t.price if LADDERS[t.ladder][1] else t.price
                    fired.append(((t.role, number, t.ladder, price, t.order), t))
            gone = {t.order for t in reached}
            self.triggers = [t for t in self.triggers if t.order not in gone]
        return [(t.order, int(t.kind), t.price) for _, t in sorted(fired, key=lambda pair: pair[0])]

    def nearest(self, symbol: int) -> list[float]:
        """By ladder; NaN where there is none."""
        found = []
        for kinds, highest in LADDERS:
            prices = [t.price for t in self.armed() if t.symbol == symbol and t.kind in kinds]
            found.append((max if highest else min)(prices) if prices else math.nan)
        return found
