"""The field's words as enums: one spelling for each value that crosses an edge."""

from dataclasses import dataclass
from enum import StrEnum

from copyrisk._core import LadderState

__all__ = [
    "ACCOUNT_TABLES",
    "LARGER_SIDE",
    "AccountType",
    "CalcStatus",
    "ExecutionStatus",
    "Flow",
    "Hedging",
    "HedgingMode",
    "LadderState",
    "MarginPrice",
    "OrderStatus",
    "OrderType",
    "RateSide",
    "SendingOrders",
]


class AccountType(StrEnum):
    """Whose account it is. There is no default type: any other value is refused by name."""

    LIVE = "live"
    DEMO = "demo"
    MASTER = "strategy_provider"
    FOLLOWER = "copy_follower"


ACCOUNT_TABLES = {
    AccountType.LIVE: "live_users",
    AccountType.DEMO: "demo_users",
    AccountType.MASTER: "strategy_provider_accounts",
    AccountType.FOLLOWER: "copy_follower_accounts",
}


class OrderType(StrEnum):
    """Market and pending order types."""

    BUY = "BUY"
    SELL = "SELL"
    BUY_LIMIT = "BUY_LIMIT"
    SELL_LIMIT = "SELL_LIMIT"
    BUY_STOP = "BUY_STOP"
    SELL_STOP = "SELL_STOP"

    @property
    def is_buy(self) -> bool:
        """Whether a fill of this order is long."""
        return self in (OrderType.BUY, OrderType.BUY_LIMIT, OrderType.BUY_STOP)

    @property
    def side(self) -> "OrderType":
        """What it is once it is filled."""
        return OrderType.BUY if self.is_buy else OrderType.SELL


class OrderStatus(StrEnum):
    """`order_status` of an order hash."""

    QUEUED = "QUEUED"
    OPEN = "OPEN"
    PENDING = "PENDING"
    PENDING_QUEUED = "PENDING-QUEUED"
    PENDING_CANCEL = "PENDING-CANCEL"
    MODIFY = "MODIFY"
    CLOSED = "CLOSED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    SKIPPED = "SKIPPED"


class ExecutionStatus(StrEnum):
    """`execution_status` of an order hash."""

    QUEUED = "QUEUED"
    PENDING = "PENDING"
    EXECUTED = "EXECUTED"
    REJECTED = "REJECTED"
    CLOSED = "CLOSED"
    CANCELLED = "CANCELLED"


class SendingOrders(StrEnum):
    """The two values of `sending_orders` that name a flow."""

    ROCK = "rock"
    BARCLAYS = "barclays"


class Flow(StrEnum):
    """How an order is executed; stored in the order's `execution`."""

    LOCAL = "local"
    PROVIDER = "provider"


class CalcStatus(StrEnum):
    """`calc_status` of a portfolio: `error` when the account itself cannot be read, `degraded` when
    something it holds cannot be priced."""

    OK = "ok"
    DEGRADED = "degraded"
    ERROR = "error"


class RateSide(StrEnum):
    """Which side of a conversion pair converts: `side` is the one that is worse for the account."""

    ASK = "ask"
    SIDE = "side"
    MID = "mid"


class MarginPrice(StrEnum):
    """At which price the margin of an order is taken (crypto always keeps its order price)."""

    CURRENT = "current"
    OPEN = "open"


class StopOutMode(StrEnum):
    """Which positions of a critical account are closed."""

    LARGEST_LOSS = "largest_loss"
    LARGEST_MARGIN = "largest_margin"
    SMALLEST_PARTIAL = "smallest_partial"
    FLATTEN = "flatten"


class LedgerKind(StrEnum):
    """Why an amount was booked to a wallet."""

    CLOSE = "close"
    NEGATIVE_BALANCE_PROTECTION = "negative_balance_protection"  # of no order


class HedgingMode(StrEnum):
    """How opposite positions of one account in one symbol share their margin."""

    MAX = "max"
    SUM = "sum"
    NET = "net"
    PERCENTAGE = "percentage"


@dataclass(frozen=True, slots=True)
class Hedging:
    """A hedging rule as the kernel takes it.

    The volume under margin is ``larger side + cover x smaller side`` for every mode; `MAX` charges it at
    the highest margin per lot of the symbol, the others at the volume-weighted one.
    """

    mode: HedgingMode
    cover: float

    @classmethod
    def parse(cls, value: str | float) -> "Hedging":
        """`max`, `sum`, `net`, or the percentage (0 to 100) of the covered volume that is charged."""
        if isinstance(value, str):
            fixed = {HedgingMode.MAX: 0.0, HedgingMode.SUM: 1.0, HedgingMode.NET: -1.0}
            if value not in fixed:
                raise ValueError(f"hedging must be max, sum, net or a percentage from 0 to 100, not {value!r}")
            return cls(HedgingMode(value), fixed[HedgingMode(value)])
        if isinstance(value, bool) or not 0.0 <= value <= 100.0:
            raise ValueError(f"hedging must be max, sum, net or a percentage from 0 to 100, not {value!r}")
        # Covered volume counts both legs: |b - s| + p x 2 min(b, s) = max(b, s) + (2p - 1) x min(b, s).
        return cls(HedgingMode.PERCENTAGE, 2.0 * value / 100.0 - 1.0)


#: The default: margin of the larger side.
LARGER_SIDE = Hedging(HedgingMode.MAX, 0.0)
