"""Booking to the balances of accounts' rows: locked first and in one order, raised by what is new in the ledger.

Whoever books an account's entries holds its row, so what the ledger lacks then is booked by nobody else.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from copyrisk.decimals import EXACT, ZERO
from copyrisk.errors import Refused
from copyrisk.identifiers import Account
from copyrisk.sql.faults import ROW_REFUSED
from copyrisk.sql.history import Row
from copyrisk.sql.shapes import Shape
from copyrisk.sql.tables import BALANCE
from copyrisk.sql.values import DecimalText, may_hold
from copyrisk.terms import ACCOUNT_TABLES, AccountType

#: Balances by account; `None`: NULL or no number. An account that has no row is not among them.
Wallets = dict[Account, Decimal | None]


def lock_wallets(connection: sa.Connection, accounts: Iterable[Account], shapes: Mapping[str, Shape]) -> Wallets:
    """Hold the rows of these accounts to the end of the transaction, and read their balances.

    Parameters
    ----------
    shapes : mapping of str to Shape
        By name. Types of accounts whose table is not among them are not booked to.
    """
    wanted = set(accounts)
    found: Wallets = {}
    for kind in AccountType:  # two writers take the locks in the same order, and none waits for the other for ever
        shape = shapes.get(ACCOUNT_TABLES[kind])
        ids = sorted(account.id for account in wanted if account.type is kind)
        if shape is not None and ids:
            found |= {Account(kind, name): balance for name, balance in _lock(connection, shape.table, ids).items()}
    return found


def _lock(connection: sa.Connection, table: sa.Table, ids: Sequence[str]) -> dict[str, Decimal | None]:
    column = _id_of(table)
    held = [text for text in ids if may_hold(column.type, text)]
    if not held:
        return {}
    query = sa.select(column, table.c[BALANCE]).where(column.in_(held)).order_by(column)
    rows = connection.execute(query.with_for_update(key_share=True))
    # A collation may find `ABC` where `abc` is looked for, and that is another account.
    return {name: _known(balance) for name, balance in ((str(row[0]), row[1]) for row in rows) if name in held}


def _known(balance: Decimal | None) -> Decimal | None:
    return balance if balance is not None and balance.is_finite() else None


def book(
    connection: sa.Connection, bookings: Sequence[Row], wallets: Wallets, shapes: Mapping[str, Shape]
) -> set[Account]:
    """Add to the balances what has just been inserted into the ledger.

    Returns
    -------
    set of Account
        Those that have no row, or no balance in it: there is nothing to add to.

    Raises
    ------
    Refused
        `row_refused`: a balance does not hold the sum; the transaction must be rolled back.
    """
    sums: dict[Account, Decimal] = {}
    for row in bookings:
        account = Account(AccountType(row["user_type"]), row["user_id"])
        if ACCOUNT_TABLES[account.type] in shapes:
            sums[account] = EXACT.add(sums.get(account, ZERO), row["amount_usd"])
    wanted = {
        account: EXACT.add(before, amount)
        for account, amount in sums.items()
        if (before := wallets.get(account)) is not None
    }
    for kind in {account.type for account in wanted}:
        table = shapes[ACCOUNT_TABLES[kind]].table
        said = wanted if _is_text(table) else sums
        chosen = sorted(account for account in wanted if account.type is kind)
        connection.execute(_addition(table), [{"the_id": one.id, "the_sum": said[one]} for one in chosen])
    after = lock_wallets(connection, wanted, shapes)
    for account, balance in wanted.items():
        if after.get(account) != balance:
            raise Refused(f"the balance of {account} does not take {sums[account]:f}", code=ROW_REFUSED)
    return sums.keys() - wanted.keys()


def _addition(table: sa.Table) -> sa.Update:
    """To the row `the_id`: the database adds `the_sum` to a number; what stands in text is replaced by it."""
    column = table.c[BALANCE]
    said: Any = sa.bindparam("the_sum", type_=column.type)
    new = said if _is_text(table) else column + said
    return table.update().where(_id_of(table) == sa.bindparam("the_id")).values({BALANCE: new})


def _is_text(table: sa.Table) -> bool:
    return isinstance(table.c[BALANCE].type, DecimalText)


def _id_of(table: sa.Table) -> sa.Column[Any]:
    """The other of its two columns."""
    return next(column for column in table.c if column.name != BALANCE)
