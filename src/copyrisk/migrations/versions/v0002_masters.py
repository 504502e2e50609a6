"""Whom a follower copies: the column `strategy_provider_id` of followers, in a table that is ours.

A broker's own table stays as it is: it may have the column, or lack it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TABLE, _COLUMN = "copy_follower_accounts", "strategy_provider_id"


def upgrade() -> None:
    """Add it, if `0001` made the table."""
    if _is_ours() and not _is_there():
        op.add_column(_TABLE, sa.Column(_COLUMN, sa.String(64)))


def downgrade() -> None:
    """Take it away again."""
    if _is_ours() and _is_there():
        op.drop_column(_TABLE, _COLUMN)


def _is_ours() -> bool:
    notes = sa.table("copyrisk_migrated", sa.column("table_name", sa.String), sa.column("column_name", sa.String))
    made = sa.select(notes).where(notes.c.table_name == _TABLE, notes.c.column_name == "")
    return op.get_bind().execute(made).first() is not None


def _is_there() -> bool:
    inspector = sa.inspect(op.get_bind())
    return inspector.has_table(_TABLE) and _COLUMN in {found["name"] for found in inspector.get_columns(_TABLE)}
