"""Around every request: limits of its body, headers of its answer, and what is counted of it."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from starlette.datastructures import MutableHeaders
from starlette.requests import Request

from copyrisk import vitals
from copyrisk.api.answers import ApiError, refusal
from copyrisk.vitals import Vitals

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
#: Of a request; each costs time before anybody is known to ask.
PARAMETERS = 32
_NOT_KEPT = ("Cache-Control", "no-store")


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: Application, *, body_bytes: int, seen: Vitals) -> None:
        self._app, self._body_bytes, self._seen = app, body_bytes, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status, said = time.perf_counter(), 0, 0

        async def bounded_receive() -> Message:
            nonlocal said
            message = await receive()
            said += len(message.get("body", b""))
            if said > self._body_bytes:
                raise ApiError(f"a body has at most {self._body_bytes} bytes", code="body_too_large")
            return message

        async def marked_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS:
                    headers[name] = value
                headers.setdefault(*_NOT_KEPT)
            await send(message)

        try:
            if scope["query_string"].count(b"&") >= PARAMETERS:
                answer = refusal("too_many_parameters", f"a request has at most {PARAMETERS} parameters", 422)
                await answer(scope, receive, marked_send)
                return
            await self._app(scope, bounded_receive, marked_send)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._seen.count(vitals.API_REQUESTS, route, str(status))
            self._seen.observe(vitals.API_SECONDS, [time.perf_counter() - began_s], route)


async def check_query(request: Request) -> None:
    """Refuse query parameters that the route does not know: one that is misspelled would be one that is not heeded.

    Raises
    ------
    ApiError
        `unknown_parameter`; `invalid_parameter`: it is there twice.
    """
    given = request.query_params
    if not given:
        return
    dependant = getattr(request.scope.get("route"), "dependant", None)
    known = {field.alias for field in dependant.query_params} if dependant else set()
    for name in given:
        if name not in known:
            raise ApiError(f"there is no parameter {name[:40]!a} here", code="unknown_parameter")
        if len(given.getlist(name)) > 1:
            raise ApiError(f"{name} is given more than once", code="invalid_parameter")
