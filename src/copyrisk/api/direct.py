"""The shortest way to the routes that orders take: found by their path, without what a framework does around a request.

FastAPI describes these routes and could serve them; it needs more processor time for that than everything else of an
order's answer together.
"""

from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from copyrisk.api.answers import fault_answer, gone_answer, refusal_of
from copyrisk.api.guard import Application, Receive, Scope, Send
from copyrisk.errors import CopyriskError

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
        response = await _answered(handler, request)
        await response(scope, receive, send)


async def _answered(handler: Handler, request: Request) -> Response:
    """The answer, or what an error says, as the application answers everywhere."""
    try:
        return await handler(request)
    except CopyriskError as failure:
        return refusal_of(failure)
    except ClientDisconnect:
        return gone_answer()
    except Exception as fault:
        return fault_answer(request.method, request.url.path, fault)
