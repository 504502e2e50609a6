"""Changes of orders over HTTP: each route is one command of the streams, answered when what it changed is stored."""

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from copyrisk import identifiers
from copyrisk.api.answers import ApiError, success, success_text
from copyrisk.api.asking import Answered, Replayed
from copyrisk.api.bodies import Form, check_content_type, read_fields
from copyrisk.api.context import Api
from copyrisk.api.direct import Handler
from copyrisk.api.documents import ID_SCHEMA, KEY_PARAMETER, Shape, json_body, responses
from copyrisk.api.guard import check_query
from copyrisk.api.scopes import Scope
from copyrisk.commands import CommandType
from copyrisk.signing import IDEMPOTENCY_HEADER

#: What workers answer about something that is not there.
_NOT_THERE = ("order_not_found", "account_missing")
_WHOSE = ("user_type", "user_id")
PLACED, LEVELS = ("symbol", "order_type", "order_quantity"), ("stop_loss", "take_profit", "sending_orders", "order_id")


class OrderShape(Shape):
    """An order: decimal texts, as on the streams."""

    order_id: str
    symbol: str
    order_type: str
    order_status: str
    execution_status: str
    order_price: str
    order_quantity: str
    margin: str
    contract_value: str
    commission: str
    swap: str
    user_type: str
    user_id: str
    net_profit: str
    opened_quantity: str
    execution: str | None = None
    created_at: str | None = None
    stop_loss: str | None = None
    take_profit: str | None = None
    master_order_id: str | None = None
    close_price: str | None = None
    reason: str | None = None


class Changed(Shape):
    """What a change has left: the order after it, and the account's version."""

    order: OrderShape
    order_id: str
    code: Literal["ok"]
    version: int
    event_id: str


class Unknown(Shape):
    """A change whose outcome is not known yet: ask again with the same key, or for what it was answered."""

    outcome: Literal["unknown"]
    order_id: str
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Change:
    """A route.

    Attributes
    ----------
    fixed : mapping
        Fields that are what the route says, unless the body says the same.
    """

    path: str
    type: CommandType
    form: Form
    summary: str
    fixed: Mapping[str, str] = field(default_factory=dict)


class _LeanRoute(APIRoute):
    """A route whose function takes the request and returns the answer: nothing is looked up or checked around it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


CHANGES = (
    Change(
        "/api/orders/instant/execute",
        CommandType.OPEN,
        Form((*_WHOSE, *PLACED), (*LEVELS, "order_price")),
        "Open a market order.",
    ),
    Change("/api/orders/close", CommandType.CLOSE, Form((*_WHOSE, "order_id"), ("order_quantity",)), "Close an order."),
    Change(
        "/api/orders/pending/place",
        CommandType.PENDING,
        Form((*_WHOSE, *PLACED, "order_price"), LEVELS),
        "Place a pending order.",
    ),
    Change(
        "/api/orders/pending/modify",
        CommandType.MODIFY,
        Form((*_WHOSE, "order_id", "order_price")),
        "Change the price of a pending order.",
    ),
    Change("/api/orders/pending/cancel", CommandType.CANCEL, Form((*_WHOSE, "order_id")), "Cancel a pending order."),
    Change(
        "/api/orders/stoploss/add",
        CommandType.STOP_LOSS,
        Form((*_WHOSE, "order_id", "stop_loss")),
        "Set an order's stop loss.",
    ),
    Change("/api/orders/stoploss/cancel", CommandType.STOP_LOSS, Form((*_WHOSE, "order_id")), "Cancel a stop loss."),
    Change(
        "/api/orders/takeprofit/add",
        CommandType.TAKE_PROFIT,
        Form((*_WHOSE, "order_id", "take_profit")),
        "Set an order's take profit.",
    ),
    Change(
        "/api/orders/takeprofit/cancel", CommandType.TAKE_PROFIT, Form((*_WHOSE, "order_id")), "Cancel a take profit."
    ),
)


def order_routes(api: Api) -> APIRouter:
    """Changes of the orders of any account."""
    return change_routes(api, CHANGES, "orders")


def direct_handlers(api: Api) -> dict[str, Handler]:
    """By path, what answers the changes of orders that have nothing in their path."""
    return {change.path: _endpoint(api, change) for change in CHANGES}


def change_routes(api: Api, changes: tuple[Change, ...], tag: str) -> APIRouter:
    """The routes of some changes."""
    router = APIRouter(route_class=_LeanRoute, tags=[tag])
    for change in changes:
        in_path = [word[1:-1] for word in change.path.split("/") if word.startswith("{")]
        parameters = [KEY_PARAMETER] + [_path_parameter(name) for name in in_path]
        router.add_api_route(
            change.path,
            _endpoint(api, change),
            methods=["POST"],
            summary=change.summary,
            operation_id=change.path.removeprefix("/api/").replace("{", "").replace("}", "").replace("/", "_"),
            response_model=None,
            responses=responses(Changed, 404, 409, body=True, also={202: Unknown}),
            openapi_extra={"parameters": parameters} | json_body(change.form.schema()),
        )
    return router


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": ID_SCHEMA}


def _endpoint(api: Api, change: Change) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def endpoint(request: Request) -> Response:
        return await _carry_out(api, change, request)

    return endpoint


async def _carry_out(api: Api, change: Change, request: Request) -> Response:
    caller, mark = await api.access.identify(request, Scope.ORDERS_WRITE)
    if request.scope["query_string"]:
        await check_query(request)
    check_content_type(request.headers)
    fields = read_fields(await request.body(), change.form)
    for name, value in change.fixed.items():
        if fields.setdefault(name, value) != value:
            raise ApiError(f"{name} is {value} here", code=f"invalid_{name}")
    caller.check_account(identifiers.account(fields["user_type"], fields["user_id"]))
    if "sending_orders" in fields and not caller.has(Scope.ORDERS_FLOW):
        raise ApiError("this caller may not choose an order's flow", code="flow_forbidden")
    said = {"type": change.type.value, **fields, **request.path_params, "idempotency_key": idempotency_key(request)}
    try:
        return answer_of(await api.asker.ask({**said, "requested_by": caller.label}, mark))
    except Replayed:
        raise api.access.replayed(request, caller) from None


def idempotency_key(request: Request) -> str:
    """The key of a change.

    Raises
    ------
    ApiError, InvalidId
        `missing_idempotency_key`, `invalid_idempotency_key`.
    """
    given = request.headers.getlist(IDEMPOTENCY_HEADER)
    if not given:
        raise ApiError(f"a change needs the header {IDEMPOTENCY_HEADER}", code="missing_idempotency_key")
    if len(given) > 1:
        raise ApiError(f"one {IDEMPOTENCY_HEADER}, not {len(given)}", code="invalid_idempotency_key")
    return identifiers.check_idempotency_key(given[0])


def answer_of(answered: Answered) -> Response:
    """What a caller is told of its change.

    Raises
    ------
    ApiError
        The change was refused.
    """
    event = answered.event
    if event is None or event["event"] == "failed":
        said = {"outcome": "unknown", "order_id": answered.order_id, "idempotency_key": answered.idempotency_key}
        return success(said, "the outcome is not known yet", 202)
    code = event["code"]
    if event["event"] != "done":
        raise ApiError(event["message"] or code, code=code, status=404 if code in _NOT_THERE else None)
    rest = {
        "order_id": event["order_id"],
        "code": code,
        "version": int(event["version"]),
        "event_id": event["event_id"],
    }
    return success_text(f'{{"order":{event["order"]},{json.dumps(rest, separators=(",", ":"))[1:]}')
