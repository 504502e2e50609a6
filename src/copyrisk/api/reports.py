"""What was decided and done, over HTTP: decisions about copies, cascades, the audit trail, an account's history."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from copyrisk import identifiers, keys
from copyrisk.api.access import Caller
from copyrisk.api.answers import ApiError, success
from copyrisk.api.context import Api
from copyrisk.api.documents import responses
from copyrisk.api.freshness import check_exists
from copyrisk.api.happenings import without_others
from copyrisk.api.parameters import LIMIT, After, Limit, Page, limit_of, page_of, parameter, whole
from copyrisk.api.report_models import CascadeList, CascadePage, DecisionPage, HistoryPage, TrailPage
from copyrisk.api.scopes import Scope
from copyrisk.audit import AuditKind, Stored
from copyrisk.cascade import cascade_facts
from copyrisk.cascade_commands import list_cascades, standing_facts
from copyrisk.errors import InvalidId, Refused
from copyrisk.following import account_of, check_follower
from copyrisk.identifiers import Account
from copyrisk.reporting import decision_about, explained
from copyrisk.store.cascades import Cascades
from copyrisk.store.functions import text, texts
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.trail_search import Found, Wanted, search
from copyrisk.store.trail_stream import TrailStream
from copyrisk.terms import AccountType

_MS_MOST = 10**15 - 1
_STREAM_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}", re.ASCII)
#: What of an order those may know who see a follower and not the master.
_FOLLOWERS_KNOW = ("order_id", "master", "symbol", "order_type", "order_price", "lots", "times")
_NO_DECISION = ("order_unknown", "decision_missing", "follower_unknown")


def report_routes(api: Api) -> APIRouter:
    """`/api/decisions`, `/api/cascades`, `/api/audit`, `/api/accounts/.../history`."""
    router = APIRouter(prefix="/api", tags=["reports"])
    _add_decisions(router, api)
    _add_trails(router, api)
    return router


def _add_decisions(router: APIRouter, api: Api) -> None:
    @router.get("/decisions/{order_id}", response_model=None, responses=responses(DecisionPage, 404))
    async def decision(
        request: Request,
        order_id: str,
        follower: Annotated[str, parameter("this follower alone")] = "",
        after: After = "",
        limit: Limit = str(LIMIT),
    ) -> Response:
        """Why each follower got what it got of a master's order; given a copy, why that one is what it is."""
        caller = await api.access.admit(request, Scope.COPY_READ)
        named = check_follower(follower) if follower else None
        return success(await api.pool.run(_decision, caller, order_id, named, page_of(after, limit)))

    @router.get("/cascades", response_model=None, responses=responses(CascadeList))
    async def cascades(request: Request) -> Response:
        """Cascades that are running, and the last 50 that have ended."""
        caller = await api.access.admit(request, Scope.COPY_READ)
        found = await api.pool.run(lambda pipe: list_cascades(Cascades(pipe)))
        return success({"cascades": [one for one in found if _sees_master(caller, one.get("master"))]})

    @router.get("/cascades/{cascade_id}", response_model=None, responses=responses(CascadePage, 404))
    async def cascade(request: Request, cascade_id: str, after: After = "", limit: Limit = str(LIMIT)) -> Response:
        """A cascade, follower by follower."""
        caller = await api.access.admit(request, Scope.COPY_READ)
        return success(await api.pool.run(_cascade, caller, cascade_id, page_of(after, limit)))


def _add_trails(router: APIRouter, api: Api) -> None:
    @router.get("/audit", response_model=None, responses=responses(TrailPage))
    async def audit(
        request: Request,
        *,
        account: Annotated[str, parameter("T:U: entries that name or list it")] = "",
        kind: Annotated[str, parameter("entries of this kind", enum=[one.value for one in AuditKind])] = "",
        from_ms: Annotated[str, parameter("not before, ms since 1970", "integer", minimum=0)] = "0",
        to_ms: Annotated[str, parameter("not after, ms since 1970", "integer", minimum=0)] = str(_MS_MOST),
        before: Annotated[str, parameter("`next` of the call before", "integer", minimum=1)] = "",
        limit: Limit = str(LIMIT),
    ) -> Response:
        """Entries of the house's audit trail, newest first; those of the caller's accounts, unless it may see all."""
        caller = await api.access.admit(request, Scope.AUDIT_READ)
        wanted = Wanted(
            account=_account(account, caller),
            kind=_kind(kind),
            from_ms=whole("from_ms", from_ms, 0, _MS_MOST),
            to_ms=whole("to_ms", to_ms, 0, _MS_MOST),
            before=whole("before", before, 1, _MS_MOST) if before else None,
            limit=limit_of(limit),
        )
        found = await api.pool.run(_search, caller, wanted)
        return success(_trail_facts(found, caller))

    @router.get("/accounts/{user_type}/{user_id}/history", response_model=None, responses=responses(HistoryPage, 404))
    async def history(
        request: Request,
        user_type: str,
        user_id: str,
        before: Annotated[str, parameter("`next` of the page before")] = "",
        limit: Limit = str(LIMIT),
    ) -> Response:
        """What happened to an account: each change of it and each refusal, newest first."""
        caller = await api.access.admit(request, Scope.AUDIT_READ)
        account = identifiers.account(user_type, user_id)
        caller.check_account(account)
        if before and not _is_place(before):
            raise ApiError(f"no place in a history: {before[:40]!a}", code="invalid_before")
        return success(await api.pool.run(_history, api.pool.database, account, before, limit_of(limit)))


# ---- decisions


def _decision(pipe: Pipe, caller: Caller, order_id: str, follower: str | None, page: Page) -> dict[str, Any]:
    """One page of a decision: of a master's order whoever the caller sees, of a copy its follower.

    Raises
    ------
    ApiError
        `unknown_decision`: there is none, or nothing of it is the caller's.
    InvalidId, StoreError, StoreUnavailable
    """
    unknown = ApiError(f"nothing is known of copies of order {order_id[:64]!a}", code="unknown_decision")
    try:
        decision, owner = decision_about(pipe, order_id)
    except Refused as refusal:
        raise (unknown if refusal.code in _NO_DECISION else refusal) from None
    if owner is not None and follower not in (None, owner):
        raise unknown
    sees_all = _sees_master(caller, str(decision.header["master"]))
    members = [text(name) for name in decision.rows["follower"].tolist()]
    chosen = owner or follower
    places = [
        place
        for place in range(len(members))
        if chosen in (None, members[place]) and (sees_all or _sees_follower(caller, members[place]))
    ]
    if not places and (chosen is not None or not sees_all):
        raise unknown
    place_by_name = {members[place]: place for place in places}
    shown, following = page.of(place_by_name)
    found = explained(pipe, decision, [place_by_name[name] for name in shown])
    order = found.order if sees_all else {name: found.order[name] for name in _FOLLOWERS_KNOW}
    return {
        "order": order,
        "followers": found.followers,
        "differs": {name: what for name, what in found.differs.items() if name in shown},
        "next": following,
    }


def _sees_master(caller: Caller, master_id: str | None) -> bool:
    return caller.accounts.is_all or (master_id is not None and caller.sees(Account(AccountType.MASTER, master_id)))


def _sees_follower(caller: Caller, name: str) -> bool:
    return caller.sees(account_of(name))


# ---- cascades


def _cascade(pipe: Pipe, caller: Caller, cascade_id: str, page: Page) -> dict[str, Any]:
    """One page of a cascade; raises `ApiError` (`unknown_cascade`) as `_decision` does."""
    found = Cascades(pipe).load(cascade_id)
    sees_all = found is not None and _sees_master(caller, found.master_id)
    seen = [] if found is None else [one for one in found.standings if sees_all or _sees_follower(caller, one)]
    if found is None or not (sees_all or seen):
        raise ApiError("there is no such cascade, or it is not kept any more", code="unknown_cascade")
    shown, following = page.of(seen)
    facts = cascade_facts(found) | {"said": dict(found.said)}
    if not sees_all:
        facts = {name: facts[name] for name in ("id", "master", "state", "started_ms", "finished_ms")}
    rows = [{"follower": name, **standing_facts(found.standings[name])} for name in shown]
    return {"cascade": facts, "followers": rows, "next": following}


# ---- the trail


def _account(given: str, caller: Caller) -> str:
    if not given:
        return ""
    account = identifiers.parse_account(given)
    caller.check_account(account)
    return str(account)


def _kind(given: str) -> str:
    if given and given not in list(AuditKind):
        raise ApiError(f"kind is one of {', '.join(AuditKind)}, not {given[:40]!a}", code="invalid_kind")
    return given


def _search(pipe: Pipe, caller: Caller, wanted: Wanted) -> Found:
    return search(TrailStream(pipe), wanted, lambda entry, said: _may_see(caller, entry, said))


def _may_see(caller: Caller, entry: Stored, said: Mapping[str, Any]) -> bool:
    """Whether an entry is of the caller's account, or lists the caller's accounts and no others."""
    if caller.accounts.is_all:
        return True
    listed = said.get("accounts")
    named: Sequence[Any] = [entry.account] if entry.account else listed if isinstance(listed, list) else []
    return bool(named) and all(_sees(caller, name) for name in named)


def _sees(caller: Caller, name: Any) -> bool:
    try:
        return caller.sees(identifiers.parse_account(str(name)))
    except InvalidId:
        return False


def _trail_facts(found: Found, caller: Caller) -> dict[str, Any]:
    def told(said: Mapping[str, Any]) -> dict[str, Any]:
        return dict(said) if caller.accounts.is_all else without_others(said, caller.sees)

    entries = [
        {
            "seq": entry.link.seq,
            "ts_ms": entry.ts_ms,
            **{name: getattr(entry, name) for name in ("kind", "account", "cause", "reason")},
            "said": None if said is None else told(said),
            "writer": entry.writer,
            "hash": entry.link.hash,
        }
        for entry, said in found.entries
    ]
    return {
        "entries": entries,
        "next": found.before,
        "looked_at": found.looked_at,
        "unreadable": found.unreadable,
    }


# ---- an account's history


def _is_place(text: str) -> bool:
    """Whether something may stand before it in a stream."""
    parts = [int(part) for part in text.split("-")] if _STREAM_ID.fullmatch(text) else [0]
    return any(parts) and max(parts) < 1 << 64


def _history(pipe: Pipe, database: Any, account: Account, before: str, limit: int) -> dict[str, Any]:
    """One page of an account's own audit; raises as `read_portfolio`."""
    start = f"({before}" if before else "+"
    (found,) = pipe.ask(pack("XREVRANGE", keys.audit(account), start, "-", "COUNT", limit + 1))
    if not found:
        check_exists(pipe, database, account)
    following = text(found[limit - 1][0]) if len(found) > limit else None
    entries = [_history_facts(text(entry_id), words) for entry_id, words in found[:limit]]
    return {"user_type": account.type.value, "user_id": account.id, "entries": entries, "next": following}


def _history_facts(entry_id: str, words: Sequence[bytes]) -> dict[str, Any]:
    """What an entry says; of one that cannot be read, that it is so."""
    at = {"id": entry_id, "ts_ms": int(entry_id.partition("-")[0])}
    try:
        said = dict(json.loads(texts(words)["entry"]))
        inside = {name: json.loads(said[name]) for name in ("order", "data") if name in said}
        return {**said, **inside, **at}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {**at, "unreadable": True}
