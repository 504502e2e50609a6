"""What the simulated provider does wrong, and when: drawn by lot, but the same for the same seed.

Every draw is a pure function of seed, request and occasion, not of the order in which things happen to arrive; so a
run can be repeated, whatever the machine does in between.
"""

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from copyrisk.decimals import parse_decimal
from copyrisk.errors import ConfigError, InvalidId
from copyrisk.identifiers import check_symbol

_LONGEST_MS = 600_000
_MOST_PARTS = 100
_SCRIPT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FaultScript:
    """How often what happens; every share is from 0 to 1.

    Attributes
    ----------
    delay_ms : (int, int)
        Shortest and longest wait before each step of a request.
    partial, parts : float, int
        Share of the orders that are filled in parts, and the most parts.
    cut : float
        Share of the orders filled in parts whose rest is cancelled after the first part.
    reject : float
        Share of the requests that are rejected.
    swallow : float
        Share of the requests that are not noticed at all.
    drop, duplicate, reorder : float
        Share of the reports that are not sent (until the request is asked about, or the session begins anew), that are
        sent twice, and that are sent `reorder_ms` too late.
    disconnect : float
        Share of the reports instead of which the connection is closed.
    silent, silent_ms : float, int
        Share of the reports after which nothing is read or sent for a while.
    manual : bool
        Market orders wait for a control message.
    quotes : mapping
        Bid and ask by symbol.
    """

    seed: int = 0
    delay_ms: tuple[int, int] = (0, 0)
    partial: float = 0.0
    parts: int = 3
    cut: float = 0.0
    reject: float = 0.0
    swallow: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_ms: int = 20
    disconnect: float = 0.0
    silent: float = 0.0
    silent_ms: int = 1_000
    manual: bool = False
    quotes: Mapping[str, tuple[Decimal, Decimal]] = field(default_factory=dict)

    def happens(self, fault: str, request_id: str, occasion: int) -> bool:
        """Whether a fault comes about on the n-th occasion of a request."""
        share: float = getattr(self, fault)
        return share > 0.0 and self._lot(fault, request_id, occasion).random() < share

    def delay_s(self, request_id: str, step: int) -> float:
        """The wait before the n-th step of a request."""
        return self._lot("delay", request_id, step).uniform(*self.delay_ms) / 1e3

    def split(self, request_id: str, lots: Decimal) -> list[Decimal]:
        """The parts in which so many lots are filled, each in the last decimal place of the whole (at least 0.01)."""
        if not self.happens("partial", request_id, 0):
            return [lots]
        unit = min(Decimal("0.01"), Decimal((0, (1,), int(lots.as_tuple().exponent))))
        units = int(lots / unit)
        lot = self._lot("parts", request_id, 0)
        cuts = min(lot.randint(2, max(2, self.parts)) - 1, units - 1)
        ends = sorted(lot.sample(range(1, units), cuts)) if cuts > 0 else []
        return [(end - start) * unit for start, end in zip([0, *ends], [*ends, units], strict=True)]

    def _lot(self, what: str, request_id: str, occasion: int) -> random.Random:
        return random.Random(f"{self.seed}:{what}:{request_id}:{occasion}")


def parse_script(said: Mapping[str, Any]) -> FaultScript:
    """The script of a table.

    Raises
    ------
    ConfigError
        `bad_script`, naming what is wrong.
    """
    known = {item.name: item.default for item in fields(FaultScript)}
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name not in known:
            raise _bad(name, f"one of {', '.join(known)}")
        values[name] = _CHECKS.get(name, _share)(name, value)
    return FaultScript(**values)


def load_script(path: Path) -> FaultScript:
    """The script of a TOML file.

    Raises
    ------
    ConfigError
        `bad_script`.
    """
    try:
        with path.open("rb") as file:
            said = tomllib.loads(file.read(_SCRIPT_BYTES).decode())
    except (OSError, ValueError) as failure:
        raise ConfigError(f"the script {path} cannot be read: {failure}", code="bad_script") from None
    return parse_script(said)


def parse_quote(bid: object, ask: object) -> tuple[Decimal, Decimal] | None:
    """Bid and ask as numbers; `None` if they are no quote."""
    numbers = [parse_decimal(side) if isinstance(side, str) else None for side in (bid, ask)]
    if numbers[0] is None or numbers[1] is None or not 0 < numbers[0] <= numbers[1]:
        return None
    return numbers[0], numbers[1]


def _bad(name: str, expected: str) -> ConfigError:
    return ConfigError(f"script: {name[:40]!a} must be {expected}", code="bad_script")


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise _bad(name, "a share from 0 to 1")
    return float(value)


def _whole(name: str, value: Any) -> int:
    highest = {"parts": _MOST_PARTS, "seed": (1 << 63) - 1}.get(name, _LONGEST_MS)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
        raise _bad(name, f"a whole number from 0 to {highest}")
    return value


def _range(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _bad(name, "two whole numbers")
    shortest, longest = (_whole(name, side) for side in value)
    if shortest > longest:
        raise _bad(name, "two whole numbers, the lower one first")
    return shortest, longest


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _bad(name, "true or false")
    return value


def _quotes(name: str, value: Any) -> dict[str, tuple[Decimal, Decimal]]:
    found = {}
    for symbol, sides in value.items() if isinstance(value, Mapping) else [("", None)]:
        quote = parse_quote(*sides) if isinstance(sides, list | tuple) and len(sides) == 2 else None
        try:
            if quote is not None:
                found[check_symbol(symbol)] = quote
        except InvalidId:
            quote = None
        if quote is None:
            raise _bad(name, "symbols with bid and ask as texts")
    return found


_CHECKS = {
    "seed": _whole,
    "parts": _whole,
    "reorder_ms": _whole,
    "silent_ms": _whole,
    "delay_ms": _range,
    "manual": _flag,
    "quotes": _quotes,
}
