"""From the JSON of answers to dataclasses: each value held against the type that it should have, numbers exact.

What the server says beyond that is left out: a newer server may say more.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from copyrisk.client.failures import BadAnswer
from copyrisk.decimals import parse_decimal

T = TypeVar("T")


def parse_json(text: bytes) -> Any:
    """What a JSON text says; numbers with a point are `Decimal`. Raises `BadAnswer`."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, RecursionError) as fault:
        raise BadAnswer(f"no JSON: {str(fault)[:200]}") from None


def read(kind: type[T], data: Any, where: str = "data") -> T:
    """`data` as a value of a type.

    Parameters
    ----------
    kind : type
        A dataclass, `Decimal`, `int`, `str`, `bool`, `X | None`, `tuple[X, ...]`, `Mapping[str, X]` or `Any`. A
        dataclass with a class method `from_json` reads itself.

    Raises
    ------
    BadAnswer
        It is none.
    """
    value: T = _read(kind, data, where)
    return value


def _read(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return (
            None if data is None else _read(next(one for one in get_args(kind) if one is not type(None)), data, where)
        )
    if origin is tuple:
        return tuple(_read(get_args(kind)[0], item, where) for item in _held(list, data, where))
    if origin is Mapping:
        inner = get_args(kind)[1]
        return {name: _read(inner, item, f"{where}.{name}") for name, item in _held(dict, data, where).items()}
    if kind is Decimal:
        return _number(data, where)
    if is_dataclass(kind):
        return _read_fields(kind, _held(dict, data, where), where)
    return _held(kind, data, where)


def _read_fields(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    if hasattr(kind, "from_json"):
        return kind.from_json(data)
    values = {}
    for name, said, inner, is_needed in _columns(kind):
        if said in data:
            values[name] = _read(inner, data[said], f"{where}.{said}")
        elif is_needed:
            raise BadAnswer(f"{where}.{said} is missing")
    return kind(**values)


@cache
def _columns(kind: Any) -> tuple[tuple[str, str, Any, bool], ...]:
    """Of each field its name here and in JSON, its type, and whether it must be there."""
    hints = get_type_hints(kind)
    return tuple(
        (one.name, one.metadata.get("json", one.name), hints[one.name], one.default is MISSING) for one in fields(kind)
    )


def _held(kind: type, data: Any, where: str) -> Any:
    if type(data) is not kind:
        raise BadAnswer(f"{where} should be of type {kind.__name__}, not {type(data).__name__}")
    return data


def _number(data: Any, where: str) -> Decimal:
    if type(data) in (int, Decimal):
        return Decimal(data)
    number = parse_decimal(data) if isinstance(data, str) else None
    if number is None:
        raise BadAnswer(f"{where} should be a number")
    return number


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")
