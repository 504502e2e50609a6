"""The exceptions of copyrisk and the words for its row codes.

Calls get exceptions, rows get codes: a row that cannot be computed carries a `RowCode` (numbered in
`_core.pxd`, where the kernels see it too) and the pass goes on; only a call that makes no sense raises.
"""

from copyrisk._core import RowCode

__all__ = [
    "ConfigError",
    "CopyriskError",
    "InvalidId",
    "Refused",
    "RowCode",
    "ShapeError",
    "StoreError",
    "StoreUnavailable",
    "TryLater",
    "UnsupportedFlow",
    "is_known",
    "reason_name",
]


class CopyriskError(Exception):
    """Base of all errors of this package; `code` is stable, the message is one line for people."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigError(CopyriskError):
    """A setting, file or flag that cannot be used."""

    code = "bad_configuration"


class InvalidId(CopyriskError):
    """An id outside the grammar of the contract; no key is ever built from it."""

    code = "invalid_id"


class ShapeError(CopyriskError, ValueError):
    """An array of the wrong length or type was handed to a kernel."""

    code = "bad_shape"


class StoreError(CopyriskError):
    """The server answered, and the answer means that it cannot be used."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """The server did not answer (in time): what was asked is unknown, nothing may be decided on it."""

    code = "store_unavailable"


class Refused(CopyriskError):
    """A command that is not carried out; its code is the answer, and nothing was changed."""

    code = "refused"


class TryLater(CopyriskError):
    """What has to be done cannot be done now, and must not be dropped: it is tried again."""

    code = "try_later"


class UnsupportedFlow(Refused):
    """The account's `sending_orders` names no flow that its type may use."""

    code = "unsupported_flow"


def is_known(code: int) -> bool:
    """Whether an account with this code has figures (`MARKET_CLOSED`: not to be acted on)."""
    return code in (RowCode.OK, RowCode.MARKET_CLOSED)


def reason_name(code: int) -> str:
    """The stable lower-case word of a row code, as written to `degraded_fields`."""
    return RowCode(code).name.lower()
