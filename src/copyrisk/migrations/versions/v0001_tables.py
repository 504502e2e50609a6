"""Account tables, groups, order tables and the ledger, where they are absent.

A broker's own tables stay as they are, but for the column `version` of order tables. What was made is noted in
`copyrisk_migrated`, so that a downgrade drops that and nothing of the broker's.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_NOTES = "copyrisk_migrated"
_ACCOUNT_TABLES = ("live_users", "demo_users", "strategy_provider_accounts", "copy_follower_accounts")
_ORDER_TABLES = ("live_user_orders", "demo_user_orders", "strategy_provider_orders", "copy_follower_orders")
#: Ids that differ in case are different ids.
_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def _decimal() -> sa.types.TypeEngine[Any]:
    """18 digits before and 18 after the point; text in SQLite, whose numbers are floats."""
    return sa.Numeric(36, 18).with_variant(sa.String(40), "sqlite")


def _time() -> sa.types.TypeEngine[Any]:
    return sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=3), "mysql")


def _account_columns(name: str) -> list[sa.Column[Any]]:
    columns: list[sa.Column[Any]] = [
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("wallet_balance", _decimal()),
        sa.Column("leverage", _decimal()),
        sa.Column("group", sa.String(32)),
        sa.Column("status", sa.String(32)),
        sa.Column("is_active", sa.Boolean()),
        sa.Column("sending_orders", sa.String(32)),
        sa.Column("account_number", sa.String(64)),
        sa.Column("email", sa.String(320)),
        sa.Column("auto_cutoff_level", _decimal()),
        sa.Column("auto_liquidation_level", _decimal()),
    ]
    if name != "copy_follower_accounts":
        return columns
    limits = ("multiplier", "max_lot_size", "max_daily_loss", "stop_copying_on_drawdown", "investment_amount")
    levels = ("sl_percentage", "sl_amount", "tp_percentage", "tp_amount")
    words = ("copy_status", "below_min", "copy_sl_mode", "copy_tp_mode")
    return [
        *columns,
        *(sa.Column(number, _decimal()) for number in (*limits, *levels)),
        *(sa.Column(word, sa.String(16)) for word in words),
        sa.Column("reverse", sa.Boolean()),
        sa.Column("symbols_allowed", sa.Text()),
        sa.Column("symbols_denied", sa.Text()),
    ]


def _group_columns() -> list[sa.Column[Any]]:
    terms = ("contract_size", "spread", "spread_pip", "commission_rate", "crypto_margin_factor")
    lots = ("min_lot", "max_lot", "lot_step")
    return [
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("symbol", sa.String(32), primary_key=True),
        sa.Column("profit", sa.String(8)),
        sa.Column("type", sa.Integer()),
        sa.Column("commission_type", sa.String(16)),
        sa.Column("commission_value_type", sa.String(16)),
        *(sa.Column(number, _decimal()) for number in (*terms, *lots)),
    ]


def _order_columns() -> list[sa.Column[Any]]:
    numbers = (
        "contract_value",
        "margin",
        "stop_loss",
        "take_profit",
        "close_price",
        "net_profit",
        "swap",
        "commission",
    )
    return [
        sa.Column("order_id", sa.String(64), primary_key=True),
        sa.Column("order_user_id", sa.String(64), nullable=False, index=True),
        sa.Column("symbol", sa.String(32), nullable=False),
        sa.Column("order_type", sa.String(16), nullable=False),
        sa.Column("order_status", sa.String(16), nullable=False),
        sa.Column("order_price", _decimal(), nullable=False),
        sa.Column("order_quantity", _decimal(), nullable=False),
        *(sa.Column(number, _decimal()) for number in numbers),
        sa.Column("created_at", _time()),
        sa.Column("updated_at", _time(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    ]


def _ledger_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("entry_id", sa.String(160), primary_key=True),
        sa.Column("user_type", sa.String(32), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False, index=True),
        sa.Column("order_id", sa.String(64), nullable=False, index=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("amount_usd", _decimal(), nullable=False),
        sa.Column("balance_usd", _decimal(), nullable=False),
        sa.Column("order_quantity", _decimal()),
        sa.Column("close_price", _decimal()),
        sa.Column("created_at", _time(), nullable=False),
    ]


def upgrade() -> None:
    """Make what is absent."""
    inspector = sa.inspect(op.get_bind())
    if not inspector.has_table(_NOTES):
        made = ("table_name", "column_name")
        op.create_table(_NOTES, *(sa.Column(name, sa.String(64), primary_key=True) for name in made), **_OPTIONS)
    wanted = {
        **{name: _account_columns(name) for name in _ACCOUNT_TABLES},
        "groups": _group_columns(),
        **{name: _order_columns() for name in _ORDER_TABLES},
        "copyrisk_ledger": _ledger_columns(),
    }
    for name, columns in wanted.items():
        if not inspector.has_table(name):
            _note(name)
            op.create_table(name, *columns, **_OPTIONS)
        elif name in _ORDER_TABLES and "version" not in {found["name"] for found in inspector.get_columns(name)}:
            _note(name, "version")
            op.add_column(name, sa.Column("version", sa.BigInteger()))  # no row is newer than one that has none


def downgrade() -> None:
    """Drop what `upgrade` made."""
    connection = op.get_bind()
    inspector = sa.inspect(connection)
    for name, column in connection.execute(_notes().select()).all():
        if not inspector.has_table(name):
            continue
        if not column:
            op.drop_table(name)
        elif column in {found["name"] for found in inspector.get_columns(name)}:
            op.drop_column(name, column)
    op.drop_table(_NOTES)


def _notes() -> sa.TableClause:
    return sa.table(_NOTES, sa.column("table_name", sa.String), sa.column("column_name", sa.String))


def _note(table: str, column: str = "") -> None:
    """Before it is made: MariaDB commits at every table, and a crash in between must not make it the broker's."""
    notes = _notes()
    made = {"table_name": table, "column_name": column}
    known = sa.select(notes).where(notes.c.table_name == table, notes.c.column_name == column)
    if op.get_bind().execute(known).first() is None:
        op.get_bind().execute(notes.insert().values(made))
