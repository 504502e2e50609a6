"""Quotes for the demo, played by a process of its own: a seeded random walk, or a file of recorded updates.

    python -m copyrisk.demo.feed --redis URL [--replay FILE] [--speed X]

Every 100 ms it writes the quotes that moved, with `ts` = now, and announces them. A replay keeps the recorded
distances in time (gaps above five seconds, such as a weekend, shrink to that) and starts over at its end, so that
a demo runs as long as somebody watches.
"""

import argparse
import math
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from copyrisk import keys
from copyrisk.demo.market import BY_NAME, SYMBOLS, Symbol
from copyrisk.errors import ConfigError, CopyriskError
from copyrisk.store.connection import connect
from copyrisk.store.pipe import Pipe, pack

STEP_MS = 100
_LONGEST_GAP_MS = 5_000
_SECONDS_A_YEAR = 365.0 * 86_400
_RATIO_OF_DEMO_TIME = 60.0  # the walk moves as a market does in a minute each second, or nothing would happen

Quote = tuple[str, str, str]


class Feed(Protocol):
    """Where quotes come from."""

    symbols: Sequence[str]

    def first(self) -> list[Quote]:
        """A quote of every symbol, to seed accounts from."""

    def steps(self) -> Iterator[list[Quote]]:
        """The quotes (symbol, bid, ask) that moved in each step, without end."""


class SyntheticFeed:
    """A seeded geometric random walk of every symbol of the demo's market."""

    def __init__(self, seed: int = 1, table: Sequence[Symbol] = SYMBOLS) -> None:
        self._table = table
        self.symbols: Sequence[str] = [symbol.name for symbol in table]
        self._random = np.random.default_rng(seed)
        self._mid = np.array([symbol.price for symbol in table])
        per_year = np.array([symbol.volatility_pct for symbol in table]) / 100.0
        self._per_step = per_year * math.sqrt(STEP_MS / 1000.0 * _RATIO_OF_DEMO_TIME / _SECONDS_A_YEAR)

    def first(self) -> list[Quote]:
        """The prices the walk starts from."""
        return [self._quote(index) for index in range(len(self._table))]

    def steps(self) -> Iterator[list[Quote]]:
        """Each step moves about two thirds of the symbols."""
        while True:
            shock = self._random.standard_normal(len(self._mid)) * self._per_step
            self._mid *= np.exp(shock)
            yield [self._quote(int(index)) for index in np.flatnonzero(self._random.random(len(shock)) < 0.65)]

    def _quote(self, index: int) -> Quote:
        symbol = self._table[index]
        half = symbol.spread_points * symbol.point / 2.0
        mid = float(self._mid[index])
        return symbol.name, f"{mid - half:.{symbol.digits}f}", f"{mid + half:.{symbol.digits}f}"


class ReplayFeed:
    """Recorded updates: arrays `symbols`, `price_scale`, `ts_ms`, `symbol`, `bid`, `ask` of an `.npz` file.

    Raises
    ------
    ConfigError
        `bad_replay_file`: not such a file, or one whose numbers make no quotes.
    """

    def __init__(self, path: Path, speed: float = 1.0) -> None:
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("symbols", "price_scale", "ts_ms", "symbol", "bid", "ask")}
        except KeyError as missing:
            raise ConfigError(f"{path}: no array {missing.args[0]}", code="bad_replay_file") from None
        except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as failure:
            reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else "not an .npz of quotes"
            raise ConfigError(f"{path}: {reason}", code="bad_replay_file") from None
        complaint = _complaint(arrays)
        if complaint:
            raise ConfigError(f"{path}: {complaint}", code="bad_replay_file")
        self.symbols: Sequence[str] = [str(name) for name in arrays["symbols"]]
        self._scale = [float(scale) for scale in arrays["price_scale"]]
        self._symbol, self._bid, self._ask = arrays["symbol"], arrays["bid"], arrays["ask"]
        gaps = np.minimum(np.diff(arrays["ts_ms"], prepend=arrays["ts_ms"][:1]), _LONGEST_GAP_MS)
        self._due_ms: npt.NDArray[np.float64] = np.cumsum(gaps) / speed

    def first(self) -> list[Quote]:
        """The first update of every symbol."""
        indices = [int(np.argmax(self._symbol == number)) for number in range(len(self.symbols))]
        return [self._quote(index) for index in indices]

    def steps(self) -> Iterator[list[Quote]]:
        """The last update of each symbol in each step; from the start again at the end."""
        position, clock_ms = 0, 0.0
        while True:
            clock_ms += STEP_MS
            end = int(np.searchsorted(self._due_ms, clock_ms, "right"))
            last = {int(self._symbol[index]): index for index in range(position, end)}
            yield [self._quote(index) for index in last.values()]
            position = end
            if position >= len(self._due_ms):
                position, clock_ms = 0, 0.0

    def _quote(self, index: int) -> Quote:
        number = int(self._symbol[index])
        scale = self._scale[number]
        digits = max(0, round(math.log10(scale)))
        bid, ask = int(self._bid[index]) / scale, int(self._ask[index]) / scale
        return self.symbols[number], f"{bid:.{digits}f}", f"{ask:.{digits}f}"


def _complaint(arrays: dict[str, npt.NDArray[Any]]) -> str | None:
    """What is wrong with a replay's arrays, in words."""
    symbols, scale = arrays["symbols"], arrays["price_scale"]
    times, number, bid, ask = (arrays[name] for name in ("ts_ms", "symbol", "bid", "ask"))
    unknown = [str(name) for name in symbols.flat if str(name) not in BY_NAME]
    if symbols.ndim != 1 or not symbols.size or unknown:
        return f"symbols the demo's market does not have: {', '.join(unknown)[:80]}" if unknown else "no symbols"
    if any(array.dtype.kind not in "iu" for array in (scale, times, number, bid, ask)):
        return "times, prices and scales must be whole numbers"
    if (
        not times.size
        or any(array.shape != times.shape for array in (number, bid, ask))
        or scale.shape != symbols.shape
    ):
        return "arrays of different lengths"
    if np.any(np.diff(times.astype(np.int64)) < 0):
        return "updates out of time order"
    if set(np.unique(number).tolist()) != set(range(len(symbols))):
        return "symbol numbers that do not fit the symbols"
    if np.any(scale <= 0) or np.any(bid <= 0) or np.any(ask < bid):
        return "prices that make no quotes"
    return None


def open_feed(replay: Path | None, speed: float) -> Feed:
    """The feed that the options ask for."""
    return SyntheticFeed() if replay is None else ReplayFeed(replay, speed)


def quote_commands(quotes: Sequence[Quote]) -> list[bytes]:
    """Write and announce quotes as of now."""
    now_ms = time.time_ns() // 1_000_000
    commands = []
    for symbol, bid, ask in quotes:
        commands.append(pack("HSET", keys.market(symbol), "bid", bid, "ask", ask, "ts", now_ms))
        commands.append(pack("PUBLISH", keys.MARKET_PRICE_UPDATES, symbol))
    return commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Play quotes until the server goes away or the process is ended."""
    parser = argparse.ArgumentParser(prog="copyrisk.demo.feed")
    parser.add_argument("--redis", required=True)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--speed", type=float, default=1.0)
    options = parser.parse_args(arguments)
    try:
        feed = open_feed(options.replay, options.speed)
        pipe = Pipe(connect(options.redis, connect_timeout_ms=1000, reply_timeout_ms=5000))
        every = {symbol: (symbol, bid, ask) for symbol, bid, ask in feed.first()}
        due_s = time.monotonic()
        for number, quotes in enumerate(feed.steps()):
            every.update({quote[0]: quote for quote in quotes})
            # All of them once a second: a symbol that rests is not a feed that froze.
            pipe.exchange(quote_commands(list(every.values()) if number % 10 == 0 else quotes))
            due_s += STEP_MS / 1000.0
            time.sleep(max(0.0, due_s - time.monotonic()))
    except CopyriskError as failure:
        print(f"feed: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
