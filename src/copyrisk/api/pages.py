"""The desk's page: its files as they were packaged, and the chart library of the installed plotly package.

The files are read once, at the start. Names come from that reading, never from the request: there is no way out of it.
"""

import asyncio
import gzip
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import Response

from copyrisk.api.answers import ApiError

if TYPE_CHECKING:
    from copyrisk.api.context import Api

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
}
_PAGE, _LIBRARY = "index.html", "plotly.js"
#: The hash of nothing: plotly puts in a style element that is empty, and fills it by rules.
_EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
#: Nothing from elsewhere, nothing inline, no frame around it, and it speaks to its own server alone.
POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {_EMPTY_STYLE}; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # kept, but asked about each time: after an upgrade no old half of the page is used
    "Vary": "Accept-Encoding",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_WORTH_PACKING = 1_000


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page, plain and compressed."""

    media_type: str
    plain: bytes
    packed: bytes
    tag: str


def page_routes(_api: "Api") -> APIRouter:
    """`/` and `/static/{name}`: open to anybody, for they hold no figures."""
    return static_routes()


def static_routes() -> APIRouter:
    """The same, without the parts of the API."""
    router, files = APIRouter(), _packaged()
    library_lock = asyncio.Lock()

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return _answer(request, files[_PAGE])

    @router.api_route("/static/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        if name == _LIBRARY:
            async with library_lock:  # two first requests do not compress it twice
                library = await asyncio.to_thread(_library)
            if library is not None:
                return _answer(request, library)
        elif name in files and name != _PAGE:
            return _answer(request, files[name])
        raise ApiError("there is no such file", code="not_found")

    return router


def _packaged() -> dict[str, PageFile]:
    folder = resources.files("copyrisk.api") / "static"
    return {
        file.name: _page_file(file, _TYPES[suffix]) for file in folder.iterdir() if (suffix := _suffix(file)) in _TYPES
    }


def _suffix(file: Traversable) -> str:
    return "." + file.name.rpartition(".")[2]


@cache
def _library() -> PageFile | None:
    """Plotly's own build, which its Python package brings along; `None` where that is not installed."""
    try:
        return _page_file(resources.files("plotly") / "package_data" / "plotly.min.js", _TYPES[".js"])
    except (ModuleNotFoundError, FileNotFoundError):
        return None


def _page_file(file: Traversable, media_type: str) -> PageFile:
    plain = file.read_bytes()
    packed = gzip.compress(plain, 6, mtime=0) if len(plain) >= _WORTH_PACKING else b""
    return PageFile(media_type, plain, packed, sha256(plain).hexdigest()[:32])


def _answer(request: Request, file: PageFile) -> Response:
    """The file, or that it has not changed; compressed if the caller reads that."""
    is_packed = bool(file.packed) and _reads_gzip(request.headers)
    tag = f'"{file.tag}{"-gz" if is_packed else ""}"'
    headers = {**_HEADERS, "ETag": tag}
    if tag in (known.strip().removeprefix("W/") for known in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if is_packed:
        headers["Content-Encoding"] = "gzip"
    return Response(file.packed if is_packed else file.plain, headers=headers, media_type=file.media_type)


def _reads_gzip(headers: Headers) -> bool:
    for part in headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
