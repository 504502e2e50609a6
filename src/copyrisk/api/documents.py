"""What the OpenAPI document says of parameters, bodies and answers. It describes; no answer is made of its models."""

from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from copyrisk.api.answers import JSON
from copyrisk.decimals import PLAIN_PATTERN
from copyrisk.identifiers import ID_PATTERN, KEY_PATTERN, SYMBOL_PATTERN
from copyrisk.signing import IDEMPOTENCY_HEADER
from copyrisk.terms import AccountType

T = TypeVar("T")

WHOLE_ID, WHOLE_SYMBOL = f"^{ID_PATTERN}$", f"^{SYMBOL_PATTERN}$"
ID_SCHEMA: Mapping[str, Any] = {"type": "string", "pattern": WHOLE_ID}
SYMBOL_SCHEMA: Mapping[str, Any] = {"type": "string", "pattern": WHOLE_SYMBOL}
ACCOUNT_TYPES = [kind.value for kind in AccountType]
#: A parameter of every change.
KEY_PARAMETER: Mapping[str, Any] = {
    "name": IDEMPOTENCY_HEADER,
    "in": "header",
    "required": True,
    "description": "the same key again is answered the same, and nothing is done twice; kept for 7 days",
    "schema": {"type": "string", "pattern": f"^{KEY_PATTERN}$"},
}


#: Whether what is stored of an account is known to be so now; figures are only of those that are.
PortfolioState = Literal["known", "unknown", "absent", "stale", "unavailable"]


class Shape(BaseModel):
    """What an answer's data looks like: these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Answer(Shape, Generic[T]):
    """Something was done, or is known."""

    success: Literal[True]
    message: str
    data: T


class Refusal(Shape):
    """Something was not done; `error_code` is stable, `message` is for people."""

    success: Literal[False]
    error_code: str
    message: str


_REASONS = {
    400: "The body is not JSON.",
    401: "No, wrong, expired or used credentials.",
    403: "The caller may not do this, or not with this account.",
    404: "There is no such thing.",
    408: "The body took too long.",
    409: "Refused as things stand; nothing was changed.",
    413: "The body is too large.",
    415: f"The body is not `{JSON}`.",
    422: "A field or parameter is missing, wrong or unknown; nothing was changed.",
    429: "Too many requests.",
    503: "The store, or what is needed for this answer, is away; try again.",
}
#: What any request may meet, and any with a body.
_ALWAYS, _WITH_BODY = (401, 403, 422, 429, 503), (400, 408, 413, 415)


def responses(
    data: Any, *statuses: int, body: bool = False, also: Mapping[int, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route.

    Parameters
    ----------
    data : type
        Of what `data` holds when all went well.
    *statuses : int
        Refusals besides those that any request may meet.
    body : bool
        Whether it takes a body.
    also : mapping of int to type
        What `data` holds in other answers that are no refusals.
    """
    refused = sorted({*_ALWAYS, *statuses, *(_WITH_BODY if body else ())})
    return {
        200: {"model": Answer[data], "description": "Done."},
        **{status: {"model": Answer[kind], "description": "Accepted."} for status, kind in (also or {}).items()},  # type: ignore[valid-type]
        **{status: {"model": Refusal, "description": _REASONS[status]} for status in refused},
    }


def decimal_schema(most: int | None = None) -> dict[str, Any]:
    """Of a number above 0 that is a plain decimal, as text or as a JSON number; one above `most` is refused as well."""
    number: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0}
    text = {"type": "string", "pattern": f"^{PLAIN_PATTERN}$"}
    return {"anyOf": [text, number if most is None else number | {"maximum": most}]}


def json_body(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes a JSON body of this schema."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": dict(schema)}}}}
