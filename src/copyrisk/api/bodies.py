"""JSON bodies as exact text: the fields of a command, each held against what it may be; numbers as they were sent."""

import json
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request

from copyrisk.api.answers import JSON, ApiError
from copyrisk.api.documents import ACCOUNT_TYPES, ID_SCHEMA, SYMBOL_SCHEMA, decimal_schema
from copyrisk.decimals import parse_decimal
from copyrisk.terms import OrderType, SendingOrders

_SHOWN_CHARS = 40


class Field(NamedTuple):
    """What a field may be.

    Attributes
    ----------
    code : str
        Of the refusal, as on the streams.
    schema : mapping
        For the OpenAPI document.
    """

    code: str
    schema: Mapping[str, Any]
    is_number: bool = False


def _id(meaning: str) -> dict[str, Any]:
    return {**ID_SCHEMA, "description": meaning}


def _number(name: str, meaning: str) -> Field:
    return Field(f"invalid_{name}", {**decimal_schema(), "description": meaning}, is_number=True)


#: Every field that a change of an order may have.
FIELDS: dict[str, Field] = {
    "user_type": Field("invalid_user_type", {"type": "string", "enum": ACCOUNT_TYPES}),
    "user_id": Field("invalid_account_id", _id("the account's id")),
    "order_id": Field("invalid_order_id", _id("the order's id")),
    "symbol": Field("invalid_symbol", SYMBOL_SCHEMA),
    "order_type": Field("invalid_order_type", {"type": "string", "enum": [kind.value for kind in OrderType]}),
    "order_quantity": _number("order_quantity", "lots"),
    "order_price": _number("order_price", "price of a pending order; a market order has the market's"),
    "stop_loss": _number("stop_loss", "price"),
    "take_profit": _number("take_profit", "price"),
    "sending_orders": Field(
        "invalid_sending_orders",
        {
            "type": "string",
            "enum": [word.value for word in SendingOrders],
            "description": "the flow of this order; needs the scope orders:flow",
        },
    ),
}


class Form(NamedTuple):
    """The fields of a body."""

    needs: tuple[str, ...]
    may_have: tuple[str, ...] = ()

    def schema(self) -> dict[str, Any]:
        """As JSON schema."""
        properties = {name: dict(FIELDS[name].schema) for name in (*self.needs, *self.may_have)}
        return {
            "type": "object",
            "properties": properties,
            "required": list(self.needs),
            "additionalProperties": False,
        }


class _Number(str):
    """A JSON number, as it was written."""

    __slots__ = ()


def check_content_type(headers: Headers) -> None:
    """Raise `ApiError` (`unsupported_media_type`) unless the body is said to be JSON in UTF-8, not compressed."""
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != JSON or charset not in ("", "charset=utf-8") or "content-encoding" in headers:
        raise ApiError(f"the body must be {JSON} in UTF-8", code="unsupported_media_type")


def read_fields(raw: bytes, form: Form) -> dict[str, str]:
    """The fields of a body, as exact text.

    Raises
    ------
    ApiError
        `invalid_json`: no JSON object, or a name in it twice; `unknown_field`; the code of a field that is absent,
        empty, or neither text nor, where it is a number, a plain decimal above 0.
    """
    said = parse_object(raw)
    check_names(said, (*form.needs, *form.may_have))
    for name in form.needs:
        if name not in said:
            raise ApiError(f"{name} is missing", code=FIELDS[name].code)
    return {name: _text(name, value) for name, value in said.items()}


def check_names(given: Iterable[str], known: Container[str]) -> None:
    """Refuse fields that nobody reads (`ApiError`, `unknown_field`): one misspelled would be one that is not heeded."""
    for name in given:
        if name not in known:
            raise ApiError(f"there is no field {name[:_SHOWN_CHARS]!a} here", code="unknown_field")


def _text(name: str, value: object) -> str:
    field = FIELDS[name]
    if field.is_number:
        number = parse_decimal(value) if isinstance(value, str) else None
        if number is None or number <= 0:
            raise ApiError(f"{name} must be a plain decimal above 0", code=field.code)
    elif not isinstance(value, str) or isinstance(value, _Number) or not value:
        raise ApiError(f"{name} must be a text", code=field.code)
    return str(value)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_float=_Number, parse_int=_Number, parse_constant=lambda _: None
)


async def read_object(request: Request) -> dict[str, Any]:
    """The object in a request's body; raises as `check_content_type` and `parse_object`."""
    check_content_type(request.headers)
    return parse_object(await request.body())


def parse_object(raw: bytes) -> dict[str, Any]:
    """The object in a JSON body: numbers are texts of a type of their own, `NaN` and the like are `None`.

    Raises
    ------
    ApiError
        `invalid_json`: it is none, or a name stands twice in it.
    """
    try:
        found = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as fault:
        reason = "too deep" if isinstance(fault, RecursionError) else str(fault)
        raise ApiError(f"the body cannot be read: {reason[:200]!a}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError("the body must be one JSON object", code="invalid_json")
    return found
