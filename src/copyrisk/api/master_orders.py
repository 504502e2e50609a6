"""Changes of masters' orders over HTTP, which their followers copy."""

from fastapi import APIRouter

from copyrisk.api.bodies import Form
from copyrisk.api.context import Api
from copyrisk.api.orders import LEVELS, PLACED, Change, change_routes
from copyrisk.commands import CommandType
from copyrisk.terms import AccountType

_PATH = "/api/copy-trading/orders/strategy-provider"
_MASTER = {"user_type": AccountType.MASTER.value}

CHANGES = (
    Change(
        _PATH,
        CommandType.OPEN,
        Form(("user_id", *PLACED), ("user_type", *LEVELS, "order_price")),
        "Open a master's market order.",
        _MASTER,
    ),
    Change(
        f"{_PATH}/pending",
        CommandType.PENDING,
        Form(("user_id", *PLACED, "order_price"), ("user_type", *LEVELS)),
        "Place a master's pending order.",
        _MASTER,
    ),
    Change(
        f"{_PATH}/close",
        CommandType.CLOSE,
        Form(("user_id", "order_id"), ("user_type", "order_quantity")),
        "Close a master's order.",
        _MASTER,
    ),
    Change(
        f"{_PATH}/{{order_id}}/cancel",
        CommandType.CANCEL,
        Form(("user_id",), ("user_type",)),
        "Cancel a master's pending order.",
        _MASTER,
    ),
)


def master_order_routes(api: Api) -> APIRouter:
    """Changes of masters' orders."""
    return change_routes(api, CHANGES, "copy trading")
