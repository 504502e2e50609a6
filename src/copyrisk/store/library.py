"""The library of server-side functions, and loading it."""

from collections.abc import Mapping
from importlib import resources
from typing import Any, cast

import hiredis
import redis

from copyrisk import fields, keys
from copyrisk.store.connection import store_error

LIBRARY = "copyrisk_v1"
CONFIG_FIELDS = (*fields.ACCOUNT_COLUMNS.fields, *fields.DECISION_FIELDS)


def library() -> str:
    """The library's source, with the fields put in."""
    source = resources.files("copyrisk.store").joinpath("functions.lua").read_text()
    for name, spelled in (("config_fields", CONFIG_FIELDS), ("order_fields", fields.ORDER_COLUMNS.fields)):
        source = source.replace(f"<<{name}>>", ", ".join(f"'{field}'" for field in spelled))
    return source.replace("<<standard_group>>", keys.STANDARD_GROUP)


def load(client: redis.Redis) -> None:
    """Have the server hold the library as it is here; one of another version stays beside it.

    Raises
    ------
    StoreError, StoreUnavailable
    """
    source, server = library(), cast(Any, client)
    try:
        there = server.execute_command("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE")
        if source.encode() not in flattened(there):
            server.execute_command("FUNCTION", "LOAD", "REPLACE", source)
    except (redis.RedisError, hiredis.HiredisError, OSError) as failure:
        raise store_error(failure) from failure


def flattened(answer: Any) -> list[Any]:
    """All values of nested lists and maps."""
    if isinstance(answer, Mapping):
        return [value for item in answer.values() for value in flattened(item)]
    if isinstance(answer, list | tuple):
        return [value for item in answer for value in flattened(item)]
    return [answer.encode() if isinstance(answer, str) else answer]
