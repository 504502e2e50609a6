"""Routes of the desk: the summary, the liquidation ladder, what if. For callers who may see all accounts."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from copyrisk import identifiers
from copyrisk.api.answers import ApiError, success_text
from copyrisk.api.bodies import check_names, read_object
from copyrisk.api.context import Api
from copyrisk.api.desk import Desk
from copyrisk.api.documents import json_body, responses
from copyrisk.api.risk_models import MOVES_SCHEMA, Ladder, Summary, SymbolLadder, WhatIf
from copyrisk.api.scopes import Scope
from copyrisk.decimals import parse_decimal
from copyrisk.scenario import HIGHEST_PCT, LOWEST_PCT, MOST_MOVES


def risk_routes(api: Api) -> APIRouter:
    """`/api/risk/...`."""
    router = APIRouter(prefix="/api/risk", tags=["risk"])

    async def admitted(request: Request) -> Desk:
        caller = await api.access.admit(request, Scope.RISK_READ)
        if not caller.accounts.is_all:
            raise ApiError("the desk's figures are of all accounts, not only yours", code="account_forbidden")
        if api.desk is None:
            raise ApiError("this server keeps no desk (api.desk)", code="desk_unavailable")
        return api.desk

    @router.get("/summary", response_model=None, responses=responses(Summary))
    async def summary(request: Request) -> Response:
        """All accounts at a glance, renewed each `api.desk_refresh_ms`."""
        desk = await admitted(request)
        return _passed_on(await desk.summary())

    @router.get("/ladder", response_model=None, responses=responses(Ladder))
    async def ladder(request: Request) -> Response:
        """For each symbol, how far it must move until the first account reaches a level."""
        desk = await admitted(request)
        return _passed_on(await desk.ask("ladder"))

    @router.get("/ladder/{symbol}", response_model=None, responses=responses(SymbolLadder, 404))
    async def symbol_ladder(request: Request, symbol: Annotated[str, Path(examples=["EURUSD"])]) -> Response:
        """How many accounts and lots reach warning or critical at which price of a symbol."""
        desk = await admitted(request)
        return _passed_on(await desk.ask("ladder_of", symbol=identifiers.check_symbol(symbol)))

    @router.post(
        "/what-if",
        response_model=None,
        responses=responses(WhatIf, 404, body=True),
        openapi_extra=json_body(MOVES_SCHEMA),
    )
    async def what_if(request: Request) -> Response:
        """What would come of moves of quotes: who is warned, who is liquidated, which masters cascade; does nothing."""
        desk = await admitted(request)
        return _passed_on(await desk.ask("what_if", moves=parse_moves(await read_object(request))))

    return router


def _passed_on(said: bytes) -> Response:
    return success_text(said.decode())


def parse_moves(body: Mapping[str, Any]) -> dict[str, str]:
    """The moves of a body, in percent by symbol, as plain decimals.

    Parameters
    ----------
    body : mapping
        Numbers are the texts that were sent.

    Raises
    ------
    ApiError
        `unknown_field`, `missing_moves`, `invalid_moves`, `too_many_moves`, `invalid_move_pct`.
    InvalidId
        `invalid_symbol`.
    """
    check_names(body, ("moves",))
    if "moves" not in body:
        raise ApiError("moves is missing", code="missing_moves")
    moves = body["moves"]
    if not isinstance(moves, dict) or not moves:
        raise ApiError("moves: expected percentages by symbol", code="invalid_moves")
    if len(moves) > MOST_MOVES:
        raise ApiError(f"moves: at most {MOST_MOVES} symbols", code="too_many_moves")
    return {identifiers.check_symbol(symbol): _percent(symbol, said) for symbol, said in moves.items()}


def _percent(symbol: str, said: Any) -> str:
    number = parse_decimal(said) if isinstance(said, str) else None
    if number is None or not LOWEST_PCT <= number <= HIGHEST_PCT:
        raise ApiError(
            f"{symbol}: expected a plain number from {LOWEST_PCT} to {HIGHEST_PCT}, in percent", code="invalid_move_pct"
        )
    return str(said)
