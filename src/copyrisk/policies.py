"""Sizing by a user's own rule: a plain Python function, compiled by Numba, that the kernel calls without the GIL.

The function takes twelve numbers, the fields of `POLICY_IN` by name and in order, and returns raw lots. Limits and
rounding come after it as for any mode, and what it returns is checked: NaN, an infinity, a negative or a huge number is
the code `POLICY_INVALID` for that row and never a size; so is an exception in it.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from copyrisk._sizing import ask_policy
from copyrisk.errors import ConfigError
from copyrisk.layout import Rows
from copyrisk.sizing_terms import POLICY_IN, Floats

PARAMETERS: tuple[str, ...] = POLICY_IN.names or ()
_PLACE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,199}:[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)
_MESSAGE_LIMIT = 200


class Policy:
    """A compiled policy.

    Attributes
    ----------
    name : str
    """

    def __init__(self, name: str, compiled: Any) -> None:
        self.name = name
        self._compiled = compiled  # keeps the machine code at the address
        self._address = int(compiled.address)

    def raw_lots(self, inputs: Rows) -> Floats:
        """(n,) unrounded lots of (n,) POLICY_IN, as the function gave them; NaN where it raised.

        Raises
        ------
        ShapeError
        """
        lots = np.empty(len(inputs))
        ask_policy(self._address, inputs, lots)
        return lots


def load_policy(place: str) -> Policy:
    """The policy at `module:function`.

    Raises
    ------
    ConfigError
        `policy_not_found`: there is no such module or function, or the module cannot be imported; `policy_invalid`:
        it has other parameters, does not compile, or does not return a number; `numba_missing`.
    """
    if _PLACE.fullmatch(place) is None:
        raise ConfigError(f"a policy is named module:function, not {place[:60]!r}", code="policy_not_found")
    module_name, _, name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever an outsider's module does when it is imported
        raise ConfigError(f"policy {place}: {_in_one_line(error)}", code="policy_not_found") from None
    if not hasattr(module, name):
        raise ConfigError(f"policy {place}: the module has no {name}", code="policy_not_found")
    return compile_policy(getattr(module, name), name=place)


def compile_policy(function: Callable[..., float], *, name: str | None = None) -> Policy:
    """Compile a policy for the kernel.

    A division by zero gives an infinity or NaN, and Numba's cache is not used: with Numba's default a zero would stop
    all rows that follow, and its cache takes no notice of that setting.

    Raises
    ------
    ConfigError
        `policy_invalid`, `numba_missing`, as `load_policy`.
    """
    name = name or str(getattr(function, "__name__", "policy"))
    if not inspect.isfunction(function):
        raise ConfigError(f"policy {name}: must be a plain function", code="policy_invalid")
    if tuple(inspect.signature(function).parameters) != PARAMETERS:
        raise ConfigError(f"policy {name}: must take {', '.join(PARAMETERS)}, in this order", code="policy_invalid")
    numba = _numba()
    guarded = _guarded(numba, function)
    signature = numba.types.float64(numba.types.CPointer(numba.types.float64))
    try:
        return Policy(name, numba.cfunc(signature, error_model="numpy", cache=False)(guarded))
    except Exception as error:  # Numba's errors are of many kinds
        raise ConfigError(f"policy {name}: does not compile: {_in_one_line(error)}", code="policy_invalid") from None


def _guarded(numba: ModuleType, function: Callable[..., float]) -> Callable[..., float]:
    """A function that says NaN where the policy raises: an exception that reaches the kernel would be 0.0 and noise."""
    policy = numba.njit(error_model="numpy", cache=False)(function)
    nan = float("nan")

    def guarded(row):  # type: ignore[no-untyped-def]
        try:
            lots = policy(
                row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10], row[11]
            )
            return float(lots)
        except Exception:
            return nan

    return guarded


def _numba() -> ModuleType:
    try:
        import numba  # noqa: PLC0415 - an extra, which takes half a second to import
    except ImportError:
        raise ConfigError("policies need Numba: pip install copyrisk[numba]", code="numba_missing") from None
    module: ModuleType = numba
    return module


def _in_one_line(error: BaseException) -> str:
    """What an error says, short, without control characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter for letter in text if letter.isprintable())[:_MESSAGE_LIMIT]
