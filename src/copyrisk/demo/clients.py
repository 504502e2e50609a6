"""Clients for the demo, played by a process of its own: they open, place, protect and close orders through the streams.

    python -m copyrisk.demo.clients --redis URL [--rate COMMANDS_PER_SECOND]

Seeded, and as clients are: some ask for more than their margin covers, and are refused.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from copyrisk import identifiers, keys
from copyrisk.commands import CommandType
from copyrisk.demo.market import SYMBOLS, Symbol
from copyrisk.errors import CopyriskError
from copyrisk.identifiers import Account
from copyrisk.store.connection import connect
from copyrisk.store.effects import add_request
from copyrisk.store.functions import text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import OrderType

STEP_MS = 100
_REMEMBERED = 5_000
_LEVEL_PCT = 0.1  # how far from the market levels and pending prices stand: near enough to be reached


class Clients:
    """So many accounts' owners, at one keyboard."""

    def __init__(self, accounts: Sequence[Account], seed: int = 1) -> None:
        self._accounts, self._random = accounts, np.random.default_rng(seed)
        self._orders: deque[tuple[Account, str, Symbol, bool]] = deque(maxlen=_REMEMBERED)
        self._number = 0

    def command(self, quotes: dict[str, tuple[float, float]]) -> dict[str, str] | None:
        """What one of them does next at these quotes."""
        drawn = self._random.random()
        if drawn < 0.45 or not self._orders:
            return self._open(quotes, pending=False)
        if drawn < 0.6:
            return self._open(quotes, pending=True)
        return self._protect(quotes) if drawn < 0.75 else self._close()

    def _open(self, quotes: dict[str, tuple[float, float]], *, pending: bool) -> dict[str, str] | None:
        symbol = SYMBOLS[int(self._random.integers(len(SYMBOLS)))]
        if symbol.name not in quotes:
            return None
        account = self._accounts[int(self._random.integers(len(self._accounts)))]
        is_buy = bool(self._random.random() < 0.5)
        self._number += 1
        order_id = f"client-{self._number}"
        said = {
            "symbol": symbol.name,
            "order_id": order_id,
            "order_type": (OrderType.BUY if is_buy else OrderType.SELL).value,
            "order_quantity": f"{int(self._random.integers(1, 50)) / 100:.2f}",
        }
        if pending:
            said["order_type"] = (OrderType.BUY_LIMIT if is_buy else OrderType.SELL_LIMIT).value
            said["order_price"] = self._away(symbol, quotes, below=is_buy)
        self._orders.append((account, order_id, symbol, is_buy))
        return _said(CommandType.PENDING if pending else CommandType.OPEN, account, said)

    def _protect(self, quotes: dict[str, tuple[float, float]]) -> dict[str, str] | None:
        account, order_id, symbol, is_buy = self._orders[int(self._random.integers(len(self._orders)))]
        if symbol.name not in quotes:
            return None
        kind = CommandType.STOP_LOSS if self._random.random() < 0.5 else CommandType.TAKE_PROFIT
        level = self._away(symbol, quotes, below=is_buy is (kind is CommandType.STOP_LOSS))
        return _said(kind, account, {"order_id": order_id, kind.value: level})

    def _close(self) -> dict[str, str]:
        account, order_id, _, _ = self._orders.popleft()
        return _said(CommandType.CLOSE, account, {"order_id": order_id})

    def _away(self, symbol: Symbol, quotes: dict[str, tuple[float, float]], *, below: bool) -> str:
        bid, ask = quotes[symbol.name]
        share = float(self._random.exponential(_LEVEL_PCT)) / 100.0 + 2 * symbol.point / bid
        price = bid * (1 - share) if below else ask * (1 + share)
        return f"{price:.{symbol.digits}f}"


def _said(kind: CommandType, account: Account, said: dict[str, str]) -> dict[str, str]:
    return {"type": kind.value, "user_type": account.type.value, "user_id": account.id, **said}


def find_accounts(pipe: Pipe) -> list[Account]:
    """Every account that has a configuration."""
    found, cursor = set[bytes](), b"0"
    while True:
        (reply,) = pipe.exchange([pack("SCAN", cursor, "MATCH", keys.CONFIG.pattern, "COUNT", 1000)])
        cursor, page = reply
        found.update(tag for key in page if (tag := keys.tag_of_key(key)) is not None)
        if cursor == b"0":
            return sorted(identifiers.parse_account(tag.decode()) for tag in found)


def _quotes(pipe: Pipe) -> dict[str, tuple[float, float]]:
    replies: list[Any] = pipe.exchange([pack("HMGET", keys.market(symbol.name), "bid", "ask") for symbol in SYMBOLS])
    return {
        symbol.name: (float(text(bid)), float(text(ask)))
        for symbol, (bid, ask) in zip(SYMBOLS, replies, strict=True)
        if bid is not None and ask is not None
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Send commands until the server goes away or the process is ended."""
    parser = argparse.ArgumentParser(prog="copyrisk.demo.clients")
    parser.add_argument("--redis", required=True)
    parser.add_argument("--rate", type=float, default=40.0)
    options = parser.parse_args(arguments)
    try:
        pipe = Pipe(connect(options.redis, connect_timeout_ms=1000, reply_timeout_ms=5000))
        clients = Clients(find_accounts(pipe))
        owed, due_s = 0.0, time.monotonic()
        while True:
            owed += options.rate * STEP_MS / 1000.0
            quotes = _quotes(pipe)
            commands = [command for _ in range(int(owed)) if (command := clients.command(quotes)) is not None]
            owed -= int(owed)
            pipe.exchange([add_request(keys.COMMANDS, command) for command in commands])
            due_s += STEP_MS / 1000.0
            time.sleep(max(0.0, due_s - time.monotonic()))
    except CopyriskError as failure:
        print(f"clients: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
