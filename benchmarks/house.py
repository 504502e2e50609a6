"""A broker's house on a real server: so many accounts with five orders each, in 64 symbols that move when told to."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import redis

from copyrisk import keys
from copyrisk._core import LadderState
from copyrisk.book import Book
from copyrisk.embedded import EmbeddedServer
from copyrisk.engine import Engine, TickReport
from copyrisk.hours import MarketHours
from copyrisk.identifiers import Account
from copyrisk.rules import ValuationRules
from copyrisk.store.connection import connect
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType

#: The system's Redis if there is one: what brokers run, and up to twice as fast as the bundled Valkey.
SERVER = shutil.which("redis-server")
N_SYMBOLS = 64
ORDERS_EACH = 5
PERIOD_MS = 200
_GROUPS = ("Standard", "VIP")
_CURRENCIES = ("USD", "USD", "USD", "EUR")  # of the symbols, in turn
_SYMBOLS = ("EURUSD", *(f"SYM{number:02d}" for number in range(1, N_SYMBOLS)))
_BATCH_ACCOUNTS = 500


@dataclass
class House:
    """A filled server and the prices on it.

    Attributes
    ----------
    url : str
    client : redis.Redis
    accounts : int
    kinds : tuple of AccountType
        Of the accounts, in turn.
    """

    url: str
    client: redis.Redis
    accounts: int
    kinds: tuple[AccountType, ...] = (AccountType.LIVE, AccountType.DEMO)
    _pipe: Pipe = field(init=False)
    _mid: np.ndarray = field(init=False)
    _random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._pipe, self._random = Pipe(self.client), np.random.default_rng(1)
        self._mid = np.round(np.exp(self._random.uniform(-0.5, 0.5, N_SYMBOLS)), 5)

    def engine(self) -> Engine:
        """An engine that knows nothing yet."""
        return engine_on(self.client)

    def check(self, report: TickReport) -> None:
        """A tick that did not do everything is not measured."""
        if report.skipped or report.accounts != self.accounts or report.states[LadderState.STATE_UNKNOWN]:
            raise AssertionError(f"a tick that did not value every account: {report}")

    def move(self, count: int) -> None:
        """Give the last `count` symbols another price, and all of them a fresh time."""
        moved = slice(N_SYMBOLS - count, N_SYMBOLS)
        self._mid[moved] *= np.exp(self._random.normal(0.0, 2e-4, count))
        now_ms = int(self.client.time()[0]) * 1000
        self._send(
            [
                pack("HSET", keys.market(name), "bid", f"{mid:.5f}", "ask", f"{mid * 1.0001:.5f}", "ts", now_ms)
                for name, mid in zip(_SYMBOLS, self._mid.tolist(), strict=True)
            ]
        )

    def fill(self) -> None:
        """Write everything a back office would have written."""
        self.move(0)
        self._send(
            [
                pack("HSET", keys.group(group, name), "contract_size", 100_000, "profit", currency, "type", 1)
                for group in _GROUPS
                for name, currency in zip(_SYMBOLS, _CURRENCIES * (N_SYMBOLS // 4), strict=True)
            ]
        )
        for start in range(0, self.accounts, _BATCH_ACCOUNTS):
            commands: list[bytes] = []
            for number in range(start, min(start + _BATCH_ACCOUNTS, self.accounts)):
                self._add_account(commands, number)
            self._send(commands)

    def _add_account(self, commands: list[bytes], number: int) -> None:
        account = Account(self.kinds[number % len(self.kinds)], f"{number + 1}")
        config = {
            "wallet_balance": f"{self._random.uniform(20_000, 90_000):.2f}",
            "leverage": 100,
            "group": _GROUPS[number % 10 == 0],
            "status": 1,
            "sending_orders": "rock",
            "account_number": f"{number:08d}",
            "auto_cutoff_level": 50,
            "auto_liquidation_level": 10,
        }
        commands.append(pack("HSET", keys.config(account), *_flat(config)))
        for position, symbol in enumerate(self._random.choice(N_SYMBOLS, ORDERS_EACH, replace=False).tolist()):
            order_id, price = f"{number + 1}0{position}", self._mid[symbol] * self._random.normal(1.0, 0.003)
            order = {
                "order_id": order_id,
                "symbol": _SYMBOLS[symbol],
                "order_type": ("BUY", "SELL")[position % 2],
                "order_status": "OPEN",
                "execution_status": "EXECUTED",
                "order_price": f"{price:.5f}",
                "order_quantity": f"{self._random.integers(1, 50) / 100:.2f}",
                "margin": "271.13",
                "contract_value": "25000.00",
                "commission": "1.75",
                "swap": "-0.42",
                "execution": "local",
                "user_type": account.type.value,
                "user_id": account.id,
                "created_at": "2026-01-05T09:00:00Z",
            }
            commands.append(pack("HSET", keys.holding(account, order_id), *_flat(order)))
            commands.append(pack("SADD", keys.orders_index(account), order_id))
            commands.append(pack("HSET", keys.order_data(order_id), *_flat(order)))

    def _send(self, commands: list[bytes]) -> None:
        for reply in self._pipe.exchange(commands):
            if isinstance(reply, Exception):
                raise reply


def engine_on(client: redis.Redis) -> Engine:
    """An engine for a house on this server."""
    return Engine(client, Book(ValuationRules()), MarketHours(always_open=True), PERIOD_MS)


def _flat(mapping: dict[str, object]) -> list[str]:
    return [str(word) for item in mapping.items() for word in item]


@contextmanager
def house(accounts: int, *kinds: AccountType) -> Iterator[House]:
    """Start a server and fill it, with accounts of these kinds in turn (default: live and demo)."""
    with EmbeddedServer.start(SERVER) as server:
        client = connect(server.url, connect_timeout_ms=1000, reply_timeout_ms=10_000)
        made = House(server.url, client, accounts, *([kinds] if kinds else []))
        made.fill()
        yield made
