"""The shortest way to the routes that orders take: found by their path, without what a framework does around a request.

FastAPI describes these routes and could serve them; it needs more processor time for that than everything else of an
order's answer together.
"""

from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from copyrisk.api.answers import failure_answer
from copyrisk.api.guard import Application, Receive, Scope, Send

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Direct:
    """An ASGI application in front of another.

    Parameters
    ----------
    handlers : mapping
        By path, what answers a `POST` there.
    """

    def __init__(self, app: Application, handlers: Mapping[str, Handler]) -> None:
        self._app = app
        self._handlers = {path: (handler, SimpleNamespace(path=path)) for path, handler in handlers.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        found = self._handlers.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        handler, scope["route"] = found
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except Exception as failure:
            response = failure_answer(request.method, request.url.path, failure)
        await response(scope, receive, send)
