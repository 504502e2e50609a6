"""What answers look like: `{success, message, data}`, or `{success: false, error_code, message}` with a status."""

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from copyrisk.errors import CopyriskError, InvalidId, StoreError, TryLater

log = structlog.get_logger(__name__)

JSON = "application/json"
_PLACES, _FAULT_CHARS = 6, 1_000
#: Codes whose status does not follow from how they begin.
_STATUSES = {
    "body_timeout": 408,
    "too_many_moves": 422,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "rate_limited": 429,
    "too_many_streams": 429,
    "too_busy": 503,
    "desk_unavailable": 503,
    "book_stale": 503,
    "not_found": 404,
    "method_not_allowed": 405,
    "missing_credentials": 401,
    "ambiguous_credentials": 401,
    "invalid_signature": 401,
    "expired_signature": 401,
    "replayed_request": 401,
    "revoked_key": 401,
    "expired_key": 401,
    "invalid_token": 401,
    "expired_token": 401,
    "missing_scope": 403,
    "account_forbidden": 403,
    "flow_forbidden": 403,
    "unknown_field": 422,
    "unknown_parameter": 422,
    "invalid_json": 400,
}
#: How other codes begin, and their status; whatever else is refused, is refused for how things stand.
_BEGINNINGS = (("invalid_", 422), ("missing_", 422), ("unknown_", 404))
_REFUSED, _AWAY = 409, 503


class ApiError(CopyriskError):
    """A request that is not carried out, and nothing was changed.

    Attributes
    ----------
    status : int or None
        Its HTTP status where it is not that of its code.
    headers : mapping
    """

    code = "refused"

    def __init__(
        self, message: str, *, code: str, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.status, self.headers = status, dict(headers or {})


def status_of(code: str) -> int:
    """The HTTP status of an error code."""
    if code in _STATUSES:
        return _STATUSES[code]
    return next((status for beginning, status in _BEGINNINGS if code.startswith(beginning)), _REFUSED)


def status_of_failure(failure: CopyriskError) -> int:
    """The HTTP status of an error: that of its code, but what the store could not do is not the caller's fault."""
    if isinstance(failure, ApiError) and failure.status is not None:
        return failure.status
    if isinstance(failure, StoreError | TryLater):
        return _AWAY
    if isinstance(failure, InvalidId):
        return 422
    return status_of(failure.code)


def success(data: Any, message: str = "ok", status: int = 200) -> Response:
    """An answer to what was done or is known.

    Parameters
    ----------
    data : what JSON can say
        Numbers must be finite.
    """
    return success_text(json.dumps(data, allow_nan=False, separators=(",", ":")), message, status)


def success_text(data: str, message: str = "ok", status: int = 200) -> Response:
    """The same for data that is JSON already."""
    body = f'{{"success":true,"message":{json.dumps(message)},"data":{data}}}'
    return Response(body, status, media_type=JSON)


def refusal(code: str, message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer to what was not done."""
    said = {"success": False, "error_code": code, "message": message}
    return Response(json.dumps(said, separators=(",", ":")), status, headers=headers, media_type=JSON)


def refusal_of(failure: CopyriskError) -> Response:
    """The answer that an error gives."""
    headers = failure.headers if isinstance(failure, ApiError) else None
    return refusal(failure.code, str(failure), status_of_failure(failure), headers)


def failure_answer(method: str, path: str, failure: Exception) -> Response:
    """The answer that whatever was raised gives; a fault of ours is told to the log, and to nobody else what it is."""
    if isinstance(failure, CopyriskError):
        return refusal_of(failure)
    if isinstance(failure, ClientDisconnect):  # nobody reads it
        return refusal("incomplete_request", "the body ended early", 400)
    log.error("request_failed", path=path, method=method, fault=fault_text(failure))
    return refusal("internal_error", "something went wrong here; it is in the log", 500)


def fault_text(fault: BaseException) -> str:
    """What went wrong and where, in one line for the log."""
    places = traceback.extract_tb(fault.__traceback__)[-_PLACES:]
    where = " < ".join(f"{Path(place.filename).name}:{place.lineno}" for place in reversed(places))
    return f"{fault!r} at {where}"[:_FAULT_CHARS]
