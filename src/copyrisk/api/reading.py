"""Accounts over HTTP: figures, orders, and what came of a change whose answer was not waited for."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from copyrisk import identifiers, keys
from copyrisk.api.access import Caller
from copyrisk.api.answers import ApiError, success
from copyrisk.api.context import Api
from copyrisk.api.documents import responses
from copyrisk.api.freshness import Ticks, check_exists, judge_portfolio, read_tick
from copyrisk.api.parameters import LIMIT, After, Limit, Page, UserId, UserType, page_of
from copyrisk.api.reading_models import KeyAnswer, OneOrder, OrderPage, Portfolio
from copyrisk.api.scopes import Scope
from copyrisk.errors import StoreError
from copyrisk.identifiers import Account
from copyrisk.store.act_answers import stored_answer
from copyrisk.store.copy_states import ask, mapping
from copyrisk.store.functions import text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.relation_views import PORTFOLIO_FIELDS

if TYPE_CHECKING:
    from copyrisk.sql.database import Database

#: An account with more orders than that is no account: nobody sorts them for a page.
_ORDERS_MOST = 50_000
#: Fields of `order_data` that are our own.
_OWN = "copyrisk_"


def reading_routes(api: Api) -> APIRouter:
    """`/api/portfolios`, `/api/orders`."""
    router = APIRouter(prefix="/api", tags=["accounts"])

    async def own(request: Request, user_type: str, user_id: str) -> Account:
        return (await seen(request, user_type, user_id))[1]

    async def seen(request: Request, user_type: str, user_id: str) -> tuple[Caller, Account]:
        caller = await api.access.admit(request, Scope.ORDERS_READ)
        account = identifiers.account(user_type, user_id)
        caller.check_account(account)
        return caller, account

    @router.get("/portfolios/{user_type}/{user_id}", response_model=None, responses=responses(Portfolio, 404))
    async def portfolio(request: Request, user_type: str, user_id: str) -> Response:
        """An account's figures as the daemon last wrote them."""
        account = await own(request, user_type, user_id)
        return success(await api.pool.run(read_portfolio, api.pool.database, api.feeds.ticks, account))

    @router.get("/orders", response_model=None, responses=responses(OrderPage, 404, 409))
    async def orders(
        request: Request, user_type: UserType, user_id: UserId, after: After = "", limit: Limit = str(LIMIT)
    ) -> Response:
        """The orders of an account that have not ended, by id."""
        account = await own(request, user_type, user_id)
        return success(await api.pool.run(read_orders, api.pool.database, account, page_of(after, limit)))

    @router.get("/orders/answers/{idempotency_key}", response_model=None, responses=responses(KeyAnswer, 404, 409))
    async def answer(request: Request, idempotency_key: str, user_type: UserType, user_id: UserId) -> Response:
        """What came of a change of an account under an idempotency key."""
        caller, account = await seen(request, user_type, user_id)
        event = await api.pool.run(stored_answer, account, idempotency_key)
        if event is None:
            raise ApiError("nothing was answered under this key (yet)", code="unknown_answer")
        if "data" in event:  # of what was done about copying
            caller.check_scope(Scope.COPY_READ)
        return success(_answer_facts(event))

    @router.get("/orders/{order_id}", response_model=None, responses=responses(OneOrder, 404, 409))
    async def order(request: Request, order_id: str, user_type: UserType, user_id: UserId) -> Response:
        """An order of an account, as it is or as it ended."""
        account = await own(request, user_type, user_id)
        return success(await api.pool.run(read_one, account, identifiers.check_order_id(order_id)))

    return router


# ---- figures


def read_portfolio(pipe: Pipe, database: "Database | None", ticks: Ticks, account: Account) -> dict[str, Any]:
    """An account's figures.

    Raises
    ------
    ApiError
        `unknown_account`
    StoreError, StoreUnavailable
    """
    tick = read_tick(pipe, ticks)
    (found,) = ask(pipe, [pack("HMGET", keys.portfolio(account), *PORTFOLIO_FIELDS)])
    check_exists(pipe, database, account)
    said = None if found is None else dict(zip(PORTFOLIO_FIELDS, (text(word or b"") for word in found), strict=True))
    known = judge_portfolio(said, tick.state, tick.ts_ms)
    return {
        "user_type": account.type.value,
        "user_id": account.id,
        "state": known.state,
        "calc_status": known.calc_status,
        "degraded_fields": known.degraded_fields,
        "ts": known.ts_ms,
        "valued_ts": known.valued_ts_ms,
        "age_ms": None if known.as_of_ms is None else max(0, tick.now_ms - known.as_of_ms),
        **known.figures,
        "last_known": None if known.valued_ts_ms is None else known.last_known,
    }


# ---- orders


def read_orders(pipe: Pipe, database: "Database | None", account: Account, page: Page) -> dict[str, Any]:
    """One page of an account's orders; raises as `read_portfolio`, and `ApiError` (`too_many_orders`)."""
    index = keys.orders_index(account)
    (count,) = pipe.ask(pack("SCARD", index))
    if count > _ORDERS_MOST:
        raise ApiError(f"the account has {count} orders", code="too_many_orders")
    if not count:
        check_exists(pipe, database, account)
    names = [text(name) for name in pipe.ask(pack("SMEMBERS", index))[0]]
    shown, following = page.of(names)
    found = ask(pipe, [pack("HGETALL", keys.holding(account, name)) for name in shown])
    rows = [_order(name, one) for name, one in zip(shown, found, strict=True)]
    said = {"user_type": account.type.value, "user_id": account.id}
    return {**said, "count": len(names), "orders": rows, "next": following}


def _order(order_id: str, found: Any) -> dict[str, str | bool]:
    said = mapping(found)
    return {**said, "order_id": order_id} if said else {"order_id": order_id, "unreadable": True}


def read_one(pipe: Pipe, account: Account, order_id: str) -> dict[str, Any]:
    """An order of the account's, as it is, or as it ended.

    Raises
    ------
    ApiError
        `unknown_order`: also for one of another account.
    StoreError, StoreUnavailable
    """
    holding, data = ask(
        pipe, [pack("HGETALL", keys.holding(account, order_id)), pack("HGETALL", keys.order_data(order_id))]
    )
    if holding is None or (data is None and not holding):  # whether it is open, or was, cannot be told
        raise StoreError(f"order {order_id} cannot be read", code="order_unreadable")
    now, ever = mapping(holding), mapping(data)
    is_own = ever.get("user_type") == account.type and ever.get("user_id") == account.id
    # Its results stand in `order_data` alone; a claim of the id by a command that was refused is no order.
    whole = {name: value for name, value in ever.items() if not name.startswith(_OWN)} if is_own else {}
    if not now and "order_status" not in whole:
        raise ApiError(f"{account} has no order {order_id}", code="unknown_order")
    return {"order_id": order_id, "is_open": bool(now), "order": {**whole, **now}}


# ---- answers


def _answer_facts(event: Mapping[str, str]) -> dict[str, Any]:
    """Of the event of a command or of an act."""
    try:
        return {
            "outcome": {"done": "done", "refused": "refused"}[event["event"]],
            "type": event["type"],
            "idempotency_key": event["idempotency_key"],
            "order_id": event["order_id"] or None,
            "code": event["code"],
            "message": event["message"],
            "version": int(event["version"]) if "version" in event else None,
            "event_id": event["event_id"],
            "order": dict(json.loads(event["order"])) if "order" in event else None,
            "data": dict(json.loads(event["data"])) if event.get("data", "{}") != "{}" else None,
        }
    except (ValueError, LookupError, TypeError) as fault:
        raise StoreError(f"the stored answer cannot be read: {fault!r}"[:200], code="answer_unreadable") from None
