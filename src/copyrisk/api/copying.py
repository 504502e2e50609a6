"""Copy trading over HTTP: relationships begun, paused, resumed, ended, their settings changed; and who copies whom."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from copyrisk import fields, identifiers
from copyrisk.api.access import Caller
from copyrisk.api.answers import ApiError, success, success_text
from copyrisk.api.bodies import check_names, read_object
from copyrisk.api.context import Api
from copyrisk.api.copying_acts import (
    begin_following,
    end_following,
    pause_copying,
    resume_copying,
    set_copying,
)
from copyrisk.api.copying_bodies import parse_following, parse_settings_change
from copyrisk.api.copying_models import (
    FOLLOW_SCHEMA,
    SETTINGS_SCHEMA,
    Acted,
    FollowerPage,
    Relationship,
    RelationshipCheck,
    RelationshipPage,
    SettingsNow,
)
from copyrisk.api.documents import KEY_PARAMETER, json_body, responses
from copyrisk.api.freshness import Tick, Ticks, check_exists, judge_portfolio, read_tick
from copyrisk.api.orders import idempotency_key
from copyrisk.api.parameters import LIMIT, After, Limit, flag, page_of, parameter
from copyrisk.api.scopes import Scope
from copyrisk.decimals import as_float
from copyrisk.following import (
    COPY_STATUS,
    WALLET_BALANCE,
    CopyStatus,
    account_of,
    status_word,
)
from copyrisk.identifiers import Account
from copyrisk.store.act_answers import Act
from copyrisk.store.follower_settings import SettingsChange, settings_of
from copyrisk.store.pipe import Pipe
from copyrisk.store.relation_check import check_relations
from copyrisk.store.relation_steps import is_account_id
from copyrisk.store.relation_views import Relation, relations_of, scan_followers
from copyrisk.store.relations import followers_of
from copyrisk.terms import AccountType

if TYPE_CHECKING:
    from copyrisk.sql.database import Database

_SHOWN_CHARS = 40
_CURSOR_MOST = (1 << 64) - 1
#: What is answered about something that is not there.
_NOT_THERE = ("account_missing", "master_missing")
_WITH_KEY: dict[str, Any] = {"parameters": [KEY_PARAMETER]}


def copying_routes(api: Api) -> APIRouter:
    """`/api/copy-trading/...`, but for masters' orders."""
    router = APIRouter(prefix="/api/copy-trading", tags=["copy trading"])
    _add_changes(router, api)
    _add_states(router, api)
    _add_reads(router, api)
    return router


# ---- changes


def _add_changes(router: APIRouter, api: Api) -> None:
    @router.post(
        "/follow",
        response_model=None,
        responses=responses(Acted, 404, 409, body=True),
        openapi_extra=_WITH_KEY | json_body(FOLLOW_SCHEMA),
    )
    async def follow(request: Request) -> Response:
        """Have a follower copy a master; one without an account gets one with the amount `investment`."""
        caller = await api.access.admit(request, Scope.COPY_WRITE)
        wanted, said = parse_following(await read_object(request))
        caller.check_account(Account(AccountType.MASTER, wanted.master))
        act = _act(request, caller, "follow", wanted.request.follower, said)
        return _answered(await api.pool.run(begin_following, act, api.pool.database, wanted))

    @router.put(
        "/accounts/{follower_id}",
        response_model=None,
        responses=responses(SettingsNow, 404, 409, body=True),
        openapi_extra=_WITH_KEY | json_body(SETTINGS_SCHEMA),
    )
    async def put(request: Request, follower_id: str) -> Response:
        """Change a follower's copy settings; the next order of its master is copied by them."""
        caller = await api.access.admit(request, Scope.COPY_WRITE)
        values, unset = parse_settings_change(await read_object(request))
        act = _act(request, caller, "settings", follower_id, {"settings": values, "unset": unset})
        change = SettingsChange(act.account.id, values, unset)
        return _answered(await api.pool.run(set_copying, act, change, api.settings.copy_defaults()))


def _add_states(router: APIRouter, api: Api) -> None:
    documented = responses(Acted, 404, 409, body=True)

    @router.delete("/accounts/{follower_id}", response_model=None, responses=documented, openapi_extra=_WITH_KEY)
    async def delete(
        request: Request,
        follower_id: str,
        keep_open: Annotated[str, parameter("although copies are open, which stay open", "boolean")] = "false",
    ) -> Response:
        """End what is between a follower and its master."""
        caller = await api.access.admit(request, Scope.COPY_WRITE)
        is_kept = flag("keep_open", keep_open)
        await _check_empty(request)
        act = _act(request, caller, "unfollow", follower_id, {"keep_open": is_kept})
        return _answered(await api.pool.run(end_following, act, api.pool.database, keep_open=is_kept))

    @router.post("/accounts/{follower_id}/pause", response_model=None, responses=documented, openapi_extra=_WITH_KEY)
    async def pause(request: Request, follower_id: str) -> Response:
        """Have a follower get no new copies; what is open stays with its master's closes."""
        caller = await api.access.admit(request, Scope.COPY_WRITE)
        await _check_empty(request)
        act = _act(request, caller, "pause", follower_id, {})
        return _answered(await api.pool.run(pause_copying, act, api.pool.database))

    @router.post("/accounts/{follower_id}/resume", response_model=None, responses=documented, openapi_extra=_WITH_KEY)
    async def resume(request: Request, follower_id: str) -> Response:
        """Have a paused follower copy again."""
        caller = await api.access.admit(request, Scope.COPY_WRITE)
        await _check_empty(request)
        act = _act(request, caller, "resume", follower_id, {})
        return _answered(await api.pool.run(resume_copying, act, api.pool.database))


def _act(request: Request, caller: Caller, kind: str, follower_id: str, said: Mapping[str, Any]) -> Act:
    """The act, of an account of the caller's."""
    account = identifiers.account(AccountType.FOLLOWER.value, follower_id)
    caller.check_account(account)
    return Act(kind, account, idempotency_key(request), said, caller.label)


async def _check_empty(request: Request) -> None:
    if await request.body():
        check_names(await read_object(request), ())


def _answered(event: Mapping[str, str]) -> Response:
    """What the caller is told of its change; raises `ApiError` if it was refused."""
    if event["event"] == "done" and "data" in event:
        return success_text(event["data"], "done")
    raise ApiError(
        event["message"] or event["code"], code=event["code"], status=404 if event["code"] in _NOT_THERE else None
    )


# ---- reads


def _add_reads(router: APIRouter, api: Api) -> None:
    checking = asyncio.Lock()

    @router.get("/accounts/{follower_id}", response_model=None, responses=responses(Relationship, 404))
    async def get(request: Request, follower_id: str) -> Response:
        """A follower, its master and its settings."""
        caller = await api.access.admit(request, Scope.COPY_READ)
        account = identifiers.account(AccountType.FOLLOWER.value, follower_id)
        caller.check_account(account)
        tick, (found,) = await api.pool.run(_current, api.feeds.ticks, [follower_id])
        if not found.has_config and found.code == "ok":
            raise ApiError(f"there is no account {account}", code="unknown_account")
        return success(_facts(found, tick, caller))

    @router.get("/masters/{master_id}/followers", response_model=None, responses=responses(FollowerPage, 404))
    async def followers(request: Request, master_id: str, after: After = "", limit: Limit = str(LIMIT)) -> Response:
        """Who copies a master now, by id; paused ones are among the relationships."""
        caller = await api.access.admit(request, Scope.COPY_READ)
        account = identifiers.account(AccountType.MASTER.value, master_id)
        caller.check_account(account)
        names = await api.pool.run(_follower_names, api.pool.database, account)
        shown, following = page_of(after, limit).of(names)
        tick, found = await api.pool.run(_followers, api.feeds.ticks, shown)
        rows = [_facts(one, tick, caller) for one in found]
        return success({"master_id": master_id, "count": len(names), "followers": rows, "next": following})

    @router.get("/relationships", response_model=None, responses=responses(RelationshipPage, 409))
    async def relationships(
        request: Request,
        master_id: Annotated[str, parameter("only those of this master")] = "",
        cursor: Annotated[str, parameter("where to go on: `next` of the page before")] = "0",
    ) -> Response:
        """Relationships of the caller's accounts, paused ones too, in no order; each may come twice."""
        caller = await api.access.admit(request, Scope.COPY_READ)
        if master_id:
            identifiers.check_account_id(master_id)
        start = whole_cursor(cursor)
        names, following = await api.pool.run(_names, caller, start)
        tick, found = await api.pool.run(_current, api.feeds.ticks, names)
        seen = [one for one in found if one.master and master_id in ("", one.master) and _may_see(caller, one)]
        return success({"relationships": [_facts(one, tick, caller) for one in seen], "next": following})

    @router.get("/relationships/check", response_model=None, responses=responses(RelationshipCheck, 409))
    async def check(request: Request) -> Response:
        """Hold all records of all relationships against each other; one at a time."""
        caller = await api.access.admit(request, Scope.COPY_READ)
        if not caller.accounts.is_all:
            raise ApiError("the check is of all accounts, and the caller may see some", code="account_forbidden")
        if checking.locked():
            raise ApiError("a check is running", code="too_busy", headers={"Retry-After": "5"})
        async with checking:
            return success(await api.pool.run(_checked, api.pool.database))


def whole_cursor(given: str) -> str:
    """A cursor of the server's; `ApiError` (`invalid_cursor`) for what is none."""
    if not (given.isascii() and given.isdecimal() and len(given) <= 20 and int(given) <= _CURSOR_MOST):
        raise ApiError(f"no cursor: {given[:_SHOWN_CHARS]!a}", code="invalid_cursor")
    return str(int(given))


def _current(pipe: Pipe, ticks: Ticks, names: Sequence[str]) -> tuple[Tick, list[Relation]]:
    """Relationships of these ids, and whether their portfolios are those of now."""
    return read_tick(pipe, ticks), relations_of(pipe, names)


def _follower_names(pipe: Pipe, database: "Database | None", master: Account) -> list[str]:
    """Who copies a master; raises as `check_exists`."""
    names = followers_of(pipe, master.id)
    if not names:
        check_exists(pipe, database, master)
    return list(names)


def _followers(pipe: Pipe, ticks: Ticks, shown: Sequence[str]) -> tuple[Tick, list[Relation]]:
    """The same of members of a master's set, which may be anything."""
    tick, found = _current(pipe, ticks, list(filter(is_account_id, shown)))
    known = {one.follower: one for one in found}
    return tick, [known.get(name) or Relation(name, "invalid_account_id") for name in shown]


def _names(pipe: Pipe, caller: Caller, cursor: str) -> tuple[list[str], str | None]:
    """Some of the followers among whose relationships are those that a caller may see, and where to go on."""
    grant = caller.accounts
    if grant.is_all or AccountType.FOLLOWER in grant.types or _masters(caller):
        names, following = scan_followers(pipe, cursor)
        return names, None if following == "0" else following
    return [one.id for one in grant.accounts if one.type is AccountType.FOLLOWER], None


def _masters(caller: Caller) -> bool:
    grant = caller.accounts
    return AccountType.MASTER in grant.types or any(one.type is AccountType.MASTER for one in grant.accounts)


def _may_see(caller: Caller, one: Relation) -> bool:
    return caller.sees(account_of(one.follower)) or caller.sees(Account(AccountType.MASTER, one.master))


def _facts(one: Relation, tick: Tick, caller: Caller) -> dict[str, Any]:
    config, status = one.config, status_word(one.config.get(COPY_STATUS, "")) or None
    known = judge_portfolio(one.portfolio if one.code == "ok" else None, tick.state, tick.ts_ms)
    account = {
        "wallet_balance": as_float(config.get(WALLET_BALANCE)),
        "investment_amount": as_float(config.get(fields.INVESTMENT)),
        "state": known.state,
        "equity": known.figures[fields.EQUITY],
        "calc_status": known.calc_status,
    }
    return {
        "follower_id": one.follower[:80],
        "code": one.code,
        "master_id": one.master[:80] or None,
        "copy_status": status,
        "copies_now": one.is_active and status in (None, CopyStatus.ACTIVE),
        "settings": settings_of(config),
        "account": account if caller.sees(account_of(one.follower)) else None,
    }


def _checked(pipe: Pipe, database: "Database | None") -> dict[str, Any]:
    found: Sequence[Any] = check_relations(pipe, database)
    shown = [{"subject": one.subject, "codes": list(one.codes), "seen": one.seen, "mend": one.mend} for one in found]
    return {"count": len(found), "differences": shown[:500]}
