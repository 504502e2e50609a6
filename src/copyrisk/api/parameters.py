"""Parameters of a query, held against what they may be; FastAPI passes them on as the texts that came."""

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from fastapi import Query

from copyrisk.api.answers import ApiError
from copyrisk.api.documents import ACCOUNT_TYPES, WHOLE_ID

#: How many things one answer lists.
LIMIT, LIMIT_MOST = 100, 500
_SHOWN_CHARS = 40
_WHOLE_CHARS = 15


def whole(name: str, given: str, lowest: int, highest: int) -> int:
    """A whole number; `ApiError` (`invalid_` + name) for anything else."""
    if given.isascii() and given.isdecimal() and len(given) <= _WHOLE_CHARS and lowest <= int(given) <= highest:
        return int(given)
    raise ApiError(
        f"{name} is a whole number from {lowest} to {highest}, not {given[:_SHOWN_CHARS]!a}", code=f"invalid_{name}"
    )


class Page(NamedTuple):
    """Which part of a list is asked for: so many, behind a name."""

    after: str
    limit: int

    def of(self, names: Iterable[str]) -> tuple[list[str], str | None]:
        """The names of the page, sorted, and the `after` of the next one (`None`: this is the last)."""
        behind = sorted(name for name in names if name > self.after)
        return behind[: self.limit], behind[self.limit - 1] if len(behind) > self.limit else None


def limit_of(given: str) -> int:
    """How many things are asked for; raises as `whole`."""
    return whole("limit", given, 1, LIMIT_MOST)


def page_of(after: str, limit: str) -> Page:
    """A page by its parameters; raises as `whole`."""
    return Page(after, limit_of(limit))


def flag(name: str, given: str) -> bool:
    """`true` or `false`; `ApiError` (`invalid_` + name) for anything else."""
    if given not in ("true", "false"):
        raise ApiError(f"{name} is true or false, not {given[:_SHOWN_CHARS]!a}", code=f"invalid_{name}")
    return given == "true"


def parameter(meaning: str, kind: str = "string", **schema: Any) -> Any:
    """How the OpenAPI document describes a parameter that is passed on as text."""
    return Query(description=meaning, json_schema_extra={"type": kind, **schema})


Limit = Annotated[str, parameter("how many at most", "integer", minimum=1, maximum=LIMIT_MOST, default=LIMIT)]
UserType = Annotated[str, parameter("the account's type", enum=ACCOUNT_TYPES)]
UserId = Annotated[str, parameter("the account's id", pattern=WHOLE_ID)]
After = Annotated[str, parameter("only those behind this one: `next` of the page before")]
