"""The tables and columns that are read and written.

Brokers have these tables already, often with more columns, sometimes with other types: what a column really is comes
from the database (`shapes`); here stands what it must be able to hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from copyrisk.terms import ACCOUNT_TABLES, AccountType


class Kind(Enum):
    """What a column holds."""

    ANY = "any"  # read only, in whatever type it comes
    TEXT = "text"
    DECIMAL = "decimal"
    BALANCE = "balance exactly (two decimals at least)"  # text, or a decimal that the database adds to
    TIME = "time"
    VERSION = "version"


@dataclass(frozen=True)
class TableNeeds:
    """What must be known of a table before it is used.

    Attributes
    ----------
    columns : mapping of str to Kind
    unique : tuple of str
        Rows are found by these columns: there must be one row at most.
    optional : frozenset of str
        Columns that a broker's own table may lack: what they would say is not known.
    is_written : bool
        So it must be able to take back what a transaction has not finished.
    """

    name: str
    columns: Mapping[str, Kind]
    unique: tuple[str, ...]
    optional: frozenset[str] = field(default=frozenset())
    is_written: bool = False

    @property
    def fields(self) -> list[str]:
        """The columns that say something of the row that is found; it may be found by one of them."""
        return [name for name in self.columns if name not in self.unique or name in self.optional]


ORDER_TABLES = {
    AccountType.LIVE: "live_user_orders",
    AccountType.DEMO: "demo_user_orders",
    AccountType.MASTER: "strategy_provider_orders",
    AccountType.FOLLOWER: "copy_follower_orders",
}

#: Of an account, what is booked to.
BALANCE = "wallet_balance"
#: Without these an account cannot be valued.
_ACCOUNT_NEEDED = (BALANCE, "leverage")
_ACCOUNT_OPTIONAL = (
    "group",
    "status",
    "is_active",
    "sending_orders",
    "account_number",
    "email",
    "auto_cutoff_level",
    "auto_liquidation_level",
)
_FOLLOWER_OPTIONAL = (
    "copy_status",
    "multiplier",
    "max_lot_size",
    "below_min",
    "max_daily_loss",
    "stop_copying_on_drawdown",
    "copy_sl_mode",
    "copy_tp_mode",
    "sl_percentage",
    "sl_amount",
    "tp_percentage",
    "tp_amount",
    "investment_amount",
    "reverse",
    "symbols_allowed",
    "symbols_denied",
)
#: Of a follower: its master. Not part of its configuration: Redis has a key for it.
MASTER, COPY_STATUS = "strategy_provider_id", "copy_status"
_GROUP_NEEDED = ("contract_size", "profit", "type")
_GROUP_OPTIONAL = (
    "spread",
    "spread_pip",
    "commission_rate",
    "commission_type",
    "commission_value_type",
    "crypto_margin_factor",
    "min_lot",
    "max_lot",
    "lot_step",
)


def account_needs(kind: AccountType, id_column: str) -> TableNeeds:
    """Of the table of one type's accounts."""
    optional = _ACCOUNT_OPTIONAL + (_FOLLOWER_OPTIONAL if kind is AccountType.FOLLOWER else ())
    columns = {**dict.fromkeys((*_ACCOUNT_NEEDED, *optional), Kind.ANY), id_column: Kind.TEXT}
    return TableNeeds(ACCOUNT_TABLES[kind], columns, (id_column,), frozenset(optional))


def wallet_needs(kind: AccountType, id_column: str) -> TableNeeds:
    """Of the same table, to book to its balances."""
    columns = {BALANCE: Kind.BALANCE, id_column: Kind.TEXT}
    return TableNeeds(ACCOUNT_TABLES[kind], columns, (id_column,), is_written=True)


def follower_needs(id_column: str) -> TableNeeds:
    """Of the table of followers, to say whom each one copies."""
    columns = dict.fromkeys((MASTER, COPY_STATUS, id_column), Kind.TEXT)
    return TableNeeds(ACCOUNT_TABLES[AccountType.FOLLOWER], columns, (id_column,), frozenset((MASTER, COPY_STATUS)))


GROUPS = TableNeeds(
    "groups",
    {"name": Kind.TEXT, "symbol": Kind.TEXT, **dict.fromkeys((*_GROUP_NEEDED, *_GROUP_OPTIONAL), Kind.ANY)},
    ("name", "symbol"),
    frozenset(_GROUP_OPTIONAL),
)

#: Numbers of an order's history entry; the first two are never absent.
ORDER_NUMBERS = (
    "order_price",
    "order_quantity",
    "contract_value",
    "margin",
    "stop_loss",
    "take_profit",
    "close_price",
    "net_profit",
    "swap",
    "commission",
)
_ORDER_COLUMNS = {
    **dict.fromkeys(("order_id", "order_user_id", "symbol", "order_type", "order_status"), Kind.TEXT),
    **dict.fromkeys(ORDER_NUMBERS, Kind.DECIMAL),
    "created_at": Kind.TIME,
    "updated_at": Kind.TIME,
    "version": Kind.VERSION,
}
ORDERS = {kind: TableNeeds(name, _ORDER_COLUMNS, ("order_id",), is_written=True) for kind, name in ORDER_TABLES.items()}
LEDGER = TableNeeds(
    "copyrisk_ledger",
    {
        **dict.fromkeys(("entry_id", "user_type", "user_id", "order_id", "kind"), Kind.TEXT),
        **dict.fromkeys(("amount_usd", "balance_usd", "order_quantity", "close_price"), Kind.DECIMAL),
        "created_at": Kind.TIME,
    },
    ("entry_id",),
    is_written=True,
)


def all_needs(id_column: str, *, books_balance: bool) -> list[TableNeeds]:
    """Of every table."""
    wallets = [wallet_needs(kind, id_column) for kind in AccountType] if books_balance else []
    accounts = [account_needs(kind, id_column) for kind in AccountType]
    return [*accounts, follower_needs(id_column), GROUPS, *ORDERS.values(), LEDGER, *wallets]
