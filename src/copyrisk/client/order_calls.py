"""Changes of orders, as calls.

Accounts are `T:U`, numbers `Decimal`, `int` or text. Without an `idempotency_key` each call gets a new one.
"""

from copyrisk import identifiers
from copyrisk.client.describing import Call, Number, account_of, changing, number_text, path_of
from copyrisk.client.models import Changed
from copyrisk.identifiers import Account
from copyrisk.terms import AccountType


def _change(path: str, account: str | Account, key: str | None, fields: dict[str, str | None]) -> Call[Changed]:
    whose = account_of(account)
    said = {"user_type": whose.type.value, "user_id": whose.id, **fields}
    return changing(Changed, path, whose, said, key, order_id=fields.get("order_id"))


def _order(
    symbol: str,
    order_type: str,
    order_quantity: Number,
    order_price: Number | None,
    *,
    stop_loss: Number | None,
    take_profit: Number | None,
    order_id: str | None,
    sending_orders: str | None,
) -> dict[str, str | None]:
    return {
        "symbol": symbol,
        "order_type": order_type,
        "order_quantity": number_text(order_quantity),
        "order_price": number_text(order_price),
        "stop_loss": number_text(stop_loss),
        "take_profit": number_text(take_profit),
        "order_id": order_id,
        "sending_orders": sending_orders,
    }


def open_order(
    account: str | Account,
    symbol: str,
    order_type: str,
    order_quantity: Number,
    *,
    stop_loss: Number | None = None,
    take_profit: Number | None = None,
    order_id: str | None = None,
    sending_orders: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Changed]:
    """Open a market order (`BUY`, `SELL`)."""
    said = _order(
        symbol,
        order_type,
        order_quantity,
        None,
        stop_loss=stop_loss,
        take_profit=take_profit,
        order_id=order_id,
        sending_orders=sending_orders,
    )
    return _change("/api/orders/instant/execute", account, idempotency_key, said)


def place_pending(
    account: str | Account,
    symbol: str,
    order_type: str,
    order_quantity: Number,
    order_price: Number,
    *,
    stop_loss: Number | None = None,
    take_profit: Number | None = None,
    order_id: str | None = None,
    sending_orders: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Changed]:
    """Place a pending order (`BUY_LIMIT`, ...)."""
    said = _order(
        symbol,
        order_type,
        order_quantity,
        order_price,
        stop_loss=stop_loss,
        take_profit=take_profit,
        order_id=order_id,
        sending_orders=sending_orders,
    )
    return _change("/api/orders/pending/place", account, idempotency_key, said)


def close_order(
    account: str | Account,
    order_id: str,
    order_quantity: Number | None = None,
    *,
    idempotency_key: str | None = None,
) -> Call[Changed]:
    """Close an order, or so many lots of it."""
    said = {"order_id": order_id, "order_quantity": number_text(order_quantity)}
    return _change("/api/orders/close", account, idempotency_key, said)


def modify_pending(
    account: str | Account, order_id: str, order_price: Number, *, idempotency_key: str | None = None
) -> Call[Changed]:
    """Change the price of a pending order."""
    said = {"order_id": order_id, "order_price": number_text(order_price)}
    return _change("/api/orders/pending/modify", account, idempotency_key, said)


def cancel_pending(account: str | Account, order_id: str, *, idempotency_key: str | None = None) -> Call[Changed]:
    """Cancel a pending order."""
    return _change("/api/orders/pending/cancel", account, idempotency_key, {"order_id": order_id})


def set_stop_loss(
    account: str | Account, order_id: str, stop_loss: Number, *, idempotency_key: str | None = None
) -> Call[Changed]:
    """Set an order's stop loss."""
    said = {"order_id": order_id, "stop_loss": number_text(stop_loss)}
    return _change("/api/orders/stoploss/add", account, idempotency_key, said)


def cancel_stop_loss(account: str | Account, order_id: str, *, idempotency_key: str | None = None) -> Call[Changed]:
    """Cancel an order's stop loss."""
    return _change("/api/orders/stoploss/cancel", account, idempotency_key, {"order_id": order_id})


def set_take_profit(
    account: str | Account, order_id: str, take_profit: Number, *, idempotency_key: str | None = None
) -> Call[Changed]:
    """Set an order's take profit."""
    said = {"order_id": order_id, "take_profit": number_text(take_profit)}
    return _change("/api/orders/takeprofit/add", account, idempotency_key, said)


def cancel_take_profit(account: str | Account, order_id: str, *, idempotency_key: str | None = None) -> Call[Changed]:
    """Cancel an order's take profit."""
    return _change("/api/orders/takeprofit/cancel", account, idempotency_key, {"order_id": order_id})


# ---- masters, whom others copy

_MASTERS = ("copy-trading", "orders", "strategy-provider")


def _master_change(
    segments: tuple[str, ...], master_id: str, key: str | None, order_id: str | None, fields: dict[str, str | None]
) -> Call[Changed]:
    master = identifiers.account(AccountType.MASTER.value, master_id)
    said = {"user_id": master.id, **fields}
    return changing(Changed, path_of(*_MASTERS, *segments), master, said, key, order_id=order_id)


def open_master_order(
    master_id: str,
    symbol: str,
    order_type: str,
    order_quantity: Number,
    *,
    stop_loss: Number | None = None,
    take_profit: Number | None = None,
    order_id: str | None = None,
    sending_orders: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Changed]:
    """Open a master's market order."""
    said = _order(
        symbol,
        order_type,
        order_quantity,
        None,
        stop_loss=stop_loss,
        take_profit=take_profit,
        order_id=order_id,
        sending_orders=sending_orders,
    )
    return _master_change((), master_id, idempotency_key, order_id, said)


def place_master_pending(
    master_id: str,
    symbol: str,
    order_type: str,
    order_quantity: Number,
    order_price: Number,
    *,
    stop_loss: Number | None = None,
    take_profit: Number | None = None,
    order_id: str | None = None,
    sending_orders: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Changed]:
    """Place a master's pending order."""
    said = _order(
        symbol,
        order_type,
        order_quantity,
        order_price,
        stop_loss=stop_loss,
        take_profit=take_profit,
        order_id=order_id,
        sending_orders=sending_orders,
    )
    return _master_change(("pending",), master_id, idempotency_key, order_id, said)


def close_master_order(
    master_id: str, order_id: str, order_quantity: Number | None = None, *, idempotency_key: str | None = None
) -> Call[Changed]:
    """Close a master's order, or so many lots of it."""
    said = {"order_id": order_id, "order_quantity": number_text(order_quantity)}
    return _master_change(("close",), master_id, idempotency_key, order_id, said)


def cancel_master_pending(master_id: str, order_id: str, *, idempotency_key: str | None = None) -> Call[Changed]:
    """Cancel a master's pending order."""
    segments = (identifiers.check_order_id(order_id), "cancel")
    return _master_change(segments, master_id, idempotency_key, order_id, {})
