"""The application: routes, how errors become answers, and the OpenAPI document."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from copyrisk import __version__
from copyrisk.api.answers import JSON, failure_answer, refusal, success
from copyrisk.api.guard import check_query
from copyrisk.errors import CopyriskError
from copyrisk.signing import KEY_HEADER, NONCE_HEADER, SIGNATURE_HEADER, TIME_HEADER

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
_SECURITY = {
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "key": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
    "time": {"type": "apiKey", "in": "header", "name": TIME_HEADER},
    "nonce": {"type": "apiKey", "in": "header", "name": NONCE_HEADER},
    "signature": {"type": "apiKey", "in": "header", "name": SIGNATURE_HEADER},
}


def make_app(routers: Sequence[APIRouter]) -> FastAPI:
    """The application of these routes."""
    app = FastAPI(
        title="copyrisk",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in routers:
        app.include_router(router, dependencies=[Depends(check_query)])
    for kind in (CopyriskError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _on_failure)
    app.add_exception_handler(RequestValidationError, _on_parameter)
    app.add_exception_handler(HTTPException, _on_http)
    app.openapi = _documented(app, app.openapi)  # type: ignore[method-assign]
    document = functools.cache(lambda: json.dumps(app.openapi(), separators=(",", ":")).encode())  # takes half a second

    @app.get("/api/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(await asyncio.to_thread(document), media_type=JSON)

    return app


def _documented(app: FastAPI, make: Any) -> Any:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document: dict[str, Any] = make()
            components = document.setdefault("components", {})
            components["securitySchemes"] = _SECURITY
            document["security"] = [{"token": []}, {"key": [], "time": [], "nonce": [], "signature": []}]
            for unused in ("HTTPValidationError", "ValidationError"):
                components.get("schemas", {}).pop(unused, None)
        return app.openapi_schema or {}

    return openapi


async def _on_failure(request: Request, failure: Exception) -> Response:
    return failure_answer(request.method, request.url.path, failure)


async def _on_parameter(_: Request, failure: Exception) -> Response:
    """What FastAPI itself refuses: a parameter that is absent or of another type."""
    assert isinstance(failure, RequestValidationError)
    first = failure.errors()[0]
    name = str(first["loc"][-1]).lower().replace("-", "_")
    begins = "missing" if first["type"] == "missing" else "invalid"
    return refusal(f"{begins}_{name}", f"{name}: {first['msg']}", 422)


async def _on_http(_: Request, failure: Exception) -> Response:
    assert isinstance(failure, HTTPException)
    code = _HTTP_CODES.get(failure.status_code, f"http_{failure.status_code}")
    return refusal(code, str(failure.detail), failure.status_code, failure.headers)


def health_routes(is_ready: Callable[[], Awaitable[Mapping[str, bool]]], needed: Collection[str]) -> APIRouter:
    """`/healthz` and `/readyz`, which anybody may ask.

    Parameters
    ----------
    needed : collection of str
        Parts without which no order can be taken; what is told of others sends nobody elsewhere.
    """
    router = APIRouter()

    @router.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return success({"alive": True})

    @router.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        parts = await is_ready()
        absent = sorted(name for name in needed if not parts[name])
        return refusal("not_ready", ", ".join(absent), 503) if absent else success(dict(parts))

    return router
