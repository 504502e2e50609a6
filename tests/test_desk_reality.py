"""The desk's figures against what then really happens: quotes move, a daemon ticks, and what it does was foretold.

A street of accounts of all types stands on a real server; the API with its desk's process is asked, and a daemon of this
process acts. Nothing here is computed by the ladder's or the what-if's own formulas. Keys are spelled out by hand.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from copyrisk.api import desk as desk_module
from copyrisk.embedded import EmbeddedServer
from copyrisk.terms import AccountType
from tests.api_house import Caller, House, data, refusal, served
from tests.backoffice import now_ms
from tests.chain import free_port
from tests.conftest import Server
from tests.copying_desk import MASTER
from tests.cutoff_desk import LEASE, TRAIL, CutoffDesk
from tests.fault_house import Machine
from tests.trading import decoded, until

SUMMARY, LADDER, WHAT_IF = "/api/risk/summary", "/api/risk/ladder", "/api/risk/what-if"
FIGURE_PARTS = ("accounts", "totals", "histogram", "closest", "unknown")
QUOTES = {
    "EURUSD": (1.0845, 1.08455),
    "GBPUSD": (1.265, 1.2652),
    "USDJPY": (150.0, 150.02),
    "EURGBP": (0.857, 0.8572),
    "EURJPY": (162.7, 162.73),
    "XAUUSD": (2400.0, 2400.4),
    "BTCUSD": (60_000.0, 60_010.0),
}
TERMS: dict[str, dict[str, object]] = {
    "EURUSD": {},
    "GBPUSD": {},
    "USDJPY": {"profit": "JPY"},
    "EURGBP": {"profit": "GBP"},
    "EURJPY": {"profit": "JPY"},
    "XAUUSD": {"contract_size": 100, "type": 2},
    "BTCUSD": {"contract_size": 1, "type": 4, "crypto_margin_factor": "0.5"},
}
LOTS = {"XAUUSD": 5, "BTCUSD": 20}
#: Margin levels in percent that the accounts begin with, by turns; none is critical, some are in warning.
LEVELS = ("11", "14", "23", "44.5", "52", "57", "63", "71", "83.1", "96", "120", "155", "210", "400", "900", "2500")
#: A price is told to eight digits; this is more than what is lost there, and less than lies between two accounts.
NEAR = 1e-7
COPIERS = 8
#: No quote grows old and no tick leaves anybody for the next, however slow the machine. Who was warned a moment ago and
#: recovered is warned again: the desk's figures know no such pause.
FLAGS: dict[str, object] = {
    "valuation__quote_max_age_ms": 0,
    "cutoff__close_budget_ms": 5_000,
    "cutoff__warning_cooldown_ms": 0,
}
DESK = {"api__desk": True, "api__desk_refresh_ms": 200}
_LIMIT_S = 20.0


class Street(CutoffDesk):
    """Some sixty accounts, two masters whose copies the engine of copies made; it can be put back as it was."""

    def __init__(self, server: Any, *, seed: int = 1, **flags: object) -> None:
        super().__init__(server, **FLAGS | flags)
        self.configure(MASTER, wallet_balance="1000000")
        self.draw = random.Random(seed)
        for symbol, quote in QUOTES.items():
            self.office.group(symbol, **TERMS[symbol])
            self.quote(*quote, symbol)
        self.masters = {"M": MASTER, "N": self.account("strategy_provider:N", "rock", "500000")}
        self._kept: dict[bytes, bytes] = {}
        self._changed_ms = 0

    @property
    def forgives(self) -> bool:
        """Whether a flat account that owes something is put back to 0: no figure of the desk foresees that."""
        return self.settings.cutoff.profile == "retail_eu_uk"

    # ---- who lives there

    def build(self) -> None:
        """All accounts, each at a level of its own."""
        for number in range(44):
            self._crowd(
                f"{('live', 'live', 'demo', 'strategy_provider', 'copy_follower')[number % 5]}:{number}", number
            )
        self._master_and_copies("M", ("EURUSD", "BUY", "20"), ("USDJPY", "SELL", "12"))
        self._master_and_copies("N", ("EURGBP", "SELL", "14"), ("EURUSD", "BUY", "3"))
        self.holder("live:none", "500", ("L0", "0.01"))
        self.client.delete("user_holdings:{live:none}:L0")  # half an account: unknown
        self.account("live:flat", "rock", "700")
        self._set_levels()
        self.settled()
        self.keep()

    def _crowd(self, account: str, number: int) -> None:
        draw = self.draw
        own = {"auto_cutoff_level": "80", "auto_liquidation_level": "30"} if number % 7 == 3 else {}
        self.account(account, "rock", "10000000", leverage=draw.choice((30, 100, 200, 500)), **own)
        symbols = draw.sample(list(QUOTES), draw.choice((1, 1, 2, 3)))
        for place in range(draw.choice((1, 2, 3, 5))):
            symbol = symbols[place % len(symbols)]
            lots = f"{draw.randint(5, 300) / 100 * LOTS.get(symbol, 1):.2f}"
            price = QUOTES[symbol][0] * (1 + draw.uniform(-0.03, 0.03))
            costs = {"commission": "7.00", "swap": f"{draw.uniform(-20, 5):.2f}"}
            side = draw.choice(("BUY", "BUY", "SELL"))
            self.position(account, f"O{number}-{place}", lots, f"{price:.5f}", symbol=symbol, order_type=side, **costs)
        if number % 6 == 1:
            assert self.pend(account, f"P{number}", "BUY_LIMIT", "0.5", "1")["code"] == "ok"

    def _master_and_copies(self, name: str, *orders: tuple[str, str, str]) -> None:
        """Followers of one master, with positions of their own, and his orders with their copies."""
        for number in range(COPIERS):
            account = self.follower(f"{name}{number}", self.draw.randint(60_000, 400_000), master=name)
            if number % 2:
                self.position(account, f"OWN-{name}{number}", "1.5", "1.09", order_type="SELL")
        for place, (symbol, side, lots) in enumerate(orders):
            self.step()
            answer = self.open(self.masters[name], f"SP-{name}{place}", side, lots, symbol=symbol)
            assert answer["code"] == "ok", answer
            self.replicate()
            assert len(self.copies(f"SP-{name}{place}")) == COPIERS

    def _set_levels(self) -> None:
        """Balances such that each account that uses margin has its level of `LEVELS`."""
        self.step()
        levels = list(LEVELS)
        for place, account in enumerate(self.accounts()):
            shown, own = self.office.portfolio(account), decoded(self.client.hgetall(f"user:{{{account}}}:config"))
            if shown["calc_status"] != "ok" or Decimal(shown["used_margin"]) == 0:
                continue
            level = Decimal(levels[place % len(levels)])
            if account in self.masters.values():
                level = Decimal("64")
            elif "auto_liquidation_level" in own:
                level = max(level, Decimal("52.5"))
            missing = level / 100 * Decimal(shown["used_margin"]) - Decimal(shown["equity"])
            self.configure(account, wallet_balance=f"{self.balance(account) + missing:.2f}")
        self.step()

    # ---- time

    def move(self, symbol: str, factor: float) -> None:
        """The quote of the beginning, times a factor."""
        bid, ask = (side * factor for side in QUOTES[symbol])
        self.quote(f"{bid:.12f}", f"{ask:.12f}", symbol)

    def settled(self) -> None:
        """Everything that is under way comes to its end: closes, cascades, copies that follow."""
        deadline_s = time.monotonic() + _LIMIT_S
        while True:
            self.until_quiet()
            self.replicate()
            if not self.client.xlen("copyrisk:replications") and self.step().closes == 0:
                break
            assert time.monotonic() < deadline_s
        self._changed_ms = now_ms()

    def keep(self) -> None:
        """Remember everything."""
        keys = self.client.keys("*")
        with self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.dump(key)
            self._kept = dict(zip(keys, pipe.execute(), strict=True))

    def put_back(self) -> None:
        """All is as it was when it was kept, and who works there has just begun."""
        self._end_daemon()
        self._own = self._replicator = None
        with self.client.pipeline(transaction=True) as pipe:
            for key in self.client.keys("*"):
                if key not in self._kept and not key.startswith(b"copyrisk:api:"):
                    pipe.delete(key)
            for key, stored in self._kept.items():
                pipe.restore(key, 0, stored, replace=True)
            pipe.hset(LEASE, "ends_ms", 0)
            pipe.delete("copyrisk:{replicator}:lease")
            pipe.execute()
        self.step()
        self._changed_ms = now_ms()

    def _end_daemon(self) -> None:
        if self._daemon is not None:
            self._daemon.close()
        self.drop_daemon()

    # ---- what happened

    def mark(self) -> str:
        """Where the trail ends."""
        last = self.client.xrevrange(TRAIL, count=1)
        return last[0][0].decode() if last else "0"

    def since(self, mark: str) -> tuple[set[str], set[str]]:
        """Accounts that came to their warning level, and to their critical level, after a mark; by the trail."""
        warned, critical = set(), set()
        for _, stored in self.client.xrange(TRAIL, f"({mark}"):
            entry = json.loads(next(iter(stored.values())))
            if entry["reason"] == "level_at_or_below_warning":
                warned.add(entry["account"])
            elif entry["kind"] == "liquidation" and entry["reason"] == "level_at_or_below_critical":
                critical.add(entry["account"])
        return warned, critical

    def orders(self, account: str) -> list[dict[str, str]]:
        """Open orders, pending ones included."""
        found = (self.order(account, order_id) for order_id in sorted(self.index(account)))
        return [order for order in found if order]

    def lots_of(self, account: str, symbol: str) -> float:
        """Lots of open positions in a symbol, both sides."""
        return sum(
            float(order["order_quantity"])
            for order in self.orders(account)
            if order["symbol"] == symbol and order["execution_status"] == "EXECUTED"
        )

    def converted_by(self, symbol: str) -> set[str]:
        """Accounts that hold nothing in a symbol, but something that it converts: no ladder of it names them."""
        profits = {name: terms.get("profit", "USD") for name, terms in TERMS.items()}
        pairs = {name for name, profit in profits.items() if symbol in (f"{profit}USD", f"USD{profit}")}
        held = {account: {order["symbol"] for order in self.orders(account)} for account in self.accounts()}
        return {account for account, symbols in held.items() if symbols & pairs and symbol not in symbols}

    def copies_of(self, master: str) -> dict[str, dict[str, float]]:
        """Lots of the open copies of a master's orders, by account and order."""
        found = {
            account: {
                order["order_id"]: float(order["order_quantity"])
                for order in self.orders(account)
                if order.get("master_order_id", "").startswith(f"SP-{master}")
            }
            for account in followers_of(self, {self.masters[master]})
        }
        return {account: orders for account, orders in found.items() if orders}


@dataclass
class Scene:
    """A street, and the API that looks at it."""

    street: Street
    house: House
    caller: Caller

    def ask(self, path: str, body: object = None) -> Any:
        """What is said on figures that were read after the last change of the street."""
        first: int | None = None
        deadline_s = time.monotonic() + _LIMIT_S
        while True:
            assert time.monotonic() < deadline_s, "the desk's book does not go on"
            answer = self.caller.get(path) if body is None else self.caller.post(path, body, key=None)
            if answer.status_code == 503:
                time.sleep(0.02)
                continue
            said = data(answer)
            if first is None and said["now_ms"] > self.street._changed_ms:
                first = said["now_ms"]  # of a look that may have begun before the change
            elif first is not None and said["now_ms"] > first and said.get("accounts", 0) is not None:
                return said
            time.sleep(0.01)


@contextmanager
def scene(**flags: object) -> Iterator[Scene]:
    """A street on a server of its own, with an API whose settings are the street's."""
    with EmbeddedServer.start() as running:
        street = Street(Server(running.url, running.pid), **flags)
        try:
            street.build()
            with served(street, **FLAGS | DESK | {k: v for k, v in flags.items() if k != "seed"}) as house:
                caller = house.caller(scopes=("risk:read",))
                yield Scene(street, house, caller)
        finally:
            street._end_daemon()
            street.close()


@pytest.fixture(scope="module")
def _one_scene() -> Iterator[Scene]:
    with scene() as made:
        yield made


@pytest.fixture
def there(_one_scene: Scene) -> Scene:
    """As it was at the beginning."""
    _one_scene.street.put_back()
    return _one_scene


def followers_of(street: Street, accounts: set[str]) -> set[str]:
    """Followers whose copies are closed because of these accounts."""
    names = [name for name, account in street.masters.items() if account in accounts]
    return {f"copy_follower:{name}{number}" for name in names for number in range(COPIERS)}


# ---- the ladder


def crossings_told(ladder: Mapping[str, Any], direction: str) -> list[tuple[float, str, str]]:
    """By how much the quote moves, which account, which level; the nearest first."""
    sign, side = (-1, ladder["bid"]) if direction == "down" else (1, ladder["ask"])
    listed = [one for one in ladder["nearest"] if sign * one["move_pct"] > 0]
    return sorted((sign * (one["price"] / side - 1), one["account"], one["kind"]) for one in listed)


def walk(there: Scene, symbol: str) -> int:
    """Go from crossing to crossing; just before each nobody is touched, just behind it exactly who was named."""
    there.street.put_back()
    ladder = there.ask(f"{LADDER}/{symbol}")
    return _walk(there.street, symbol, -1, crossings_told(ladder, "down")) + _walk(
        there.street, symbol, 1, crossings_told(ladder, "up")
    )


def _walk(street: Street, symbol: str, sign: int, told: list[tuple[float, str, str]]) -> int:
    street.put_back()
    gone, count = street.converted_by(symbol), 0
    while told:
        together = [one for one in told if one[0] < told[0][0] + 5 * NEAR]
        for offset, due in ((told[0][0] - NEAR, []), (together[-1][0] + NEAR, together)):
            mark = street.mark()
            street.move(symbol, 1 + sign * offset)
            street.step()
            warned, critical = street.since(mark)
            expected = {kind: {who for _, who, at in due if at == kind} - gone for kind in ("warning", "critical")}
            assert critical - gone == expected["critical"], (symbol, sign * offset)
            assert warned - critical - gone == expected["warning"] - expected["critical"], (symbol, sign * offset)
            count += len(expected["warning"] | expected["critical"])
            gone |= critical | followers_of(street, critical)
        told = told[len(together) :]
    return count


def assert_rungs(there: Scene, symbol: str, *moves_pct: float) -> int:
    """The rungs of these moves, each at once: exactly as many accounts and lots as it counts."""
    street, count = there.street, 0
    street.put_back()
    ladder = there.ask(f"{LADDER}/{symbol}")
    lots = {account: street.lots_of(account, symbol) for account in street.accounts()}
    holders, converted = {account for account, held in lots.items() if held}, street.converted_by(symbol)
    assert (len(holders), sum(lots.values())) == pytest.approx((ladder["accounts"], ladder["lots"]))
    for rung in (rung for rung in ladder["rungs"] if abs(rung["move_pct"]) in moves_pct):
        street.put_back()
        mark = street.mark()
        street.move(symbol, 1 + rung["move_pct"] / 100 * (1 + 1e-9))
        street.step()
        for kind, reached in zip(("warning", "critical"), street.since(mark), strict=True):
            mine = reached & holders
            found = {"accounts": len(mine), "lots": pytest.approx(sum(lots[account] for account in mine))}
            assert (rung[kind], reached - holders - converted) == (found, set()), (symbol, rung, kind, mine)
            count += len(mine)
    return count


def test_the_daemon_does_what_the_ladder_says_where_it_says_it(there: Scene) -> None:
    assert walk(there, "EURUSD") > 15
    assert walk(there, "USDJPY") > 5


def test_a_rung_counts_whom_the_daemon_warns_and_closes(there: Scene) -> None:
    assert assert_rungs(there, "EURUSD", 0.5, 3.0, 20.0) > 20


# ---- the what-if


Positions = dict[str, dict[str, float]]


def positions(street: Street) -> Positions:
    """Lots by order of every account, of what is executed."""
    return {
        account: {
            order["order_id"]: float(order["order_quantity"])
            for order in street.orders(account)
            if order["execution_status"] == "EXECUTED"
        }
        for account in street.accounts()
    }


def assert_foretold(there: Scene, moves: Mapping[str, str]) -> dict[str, Any]:
    """Ask what would happen, make it happen, and compare account by account; returns what was said."""
    street = there.street
    street.put_back()
    said = there.ask(WHAT_IF, {"moves": moves})
    before, mark = positions(street), street.mark()
    copies = {name: street.copies_of(name) for name in street.masters}
    for symbol, move in moves.items():
        street.move(symbol, 1 + float(move) / 100)
    street.settled()
    warned, critical = street.since(mark)
    after = positions(street)
    liquidated = {one["account"]: one for one in said["liquidated"]["accounts"]}
    assert {one["account"] for one in said["warned"]["accounts"]} == warned - critical
    assert liquidated.keys() == critical
    assert (said["warned"]["count"], said["liquidated"]["count"]) == (len(warned - critical), len(critical))
    fallen = critical & set(street.masters.values())
    assert {street.masters[one["master_id"]] for one in said["cascades"]} == fallen
    copiers = {account for one in said["cascades"] for account in copies[one["master_id"]]}
    assert {account for account in before if before[account] != after[account]} == critical | copiers
    for account, one in liquidated.items():
        _assert_left(street, one, before[account], after[account], is_shared=account in copiers)
    for one in said["cascades"]:
        _assert_cascade(street, one, copies[one["master_id"]])
    _assert_money(street, said)
    return said


def _assert_left(
    street: Street, one: Mapping[str, Any], before: Mapping[str, float], after: Mapping[str, float], *, is_shared: bool
) -> None:
    """What is left of a liquidated account; of one whose copies a cascade closed besides, only its equity."""
    account, shown = one["account"], street.office.portfolio(one["account"])
    assert shown["calc_status"] == "ok"
    equity = max(one["equity_after_usd"], 0.0) if street.forgives and not after else one["equity_after_usd"]
    assert float(shown["equity"]) == pytest.approx(equity, abs=0.011 + 0.005 * one["closes"]), account
    closed = [lots - after.get(order_id, 0.0) for order_id, lots in before.items() if after.get(order_id) != lots]
    if is_shared:
        return
    assert (len(closed), sum(closed)) == (one["closes"], pytest.approx(one["lots"])), account
    level = float(shown["margin_level"]) if float(shown["used_margin"]) else None
    assert level == (None if level is None else pytest.approx(one["level_after_pct"], abs=0.02)), account
    assert (level is None) == (one["level_after_pct"] is None), account
    assert not any(order["order_status"] == "PENDING" for order in street.orders(account)), account


def _assert_cascade(street: Street, one: Mapping[str, Any], before: Mapping[str, Mapping[str, float]]) -> None:
    """A cascade leaves no copy of that master's orders, and there were as many as it said."""
    assert one["list"] == sorted(account.partition(":")[2] for account in before)
    lots = [lots for orders in before.values() for lots in orders.values()]
    assert (one["followers"], one["copies"]) == (len(before), len(lots))
    assert one["lots"] == pytest.approx(sum(lots))
    assert not street.copies_of(one["master_id"])


def _assert_money(street: Street, said: Mapping[str, Any]) -> None:
    """Equity over all accounts that are known; closing at the current price changes none."""
    known = {
        account: float(shown["equity"])
        for account in street.accounts()
        if (shown := street.office.portfolio(account))["calc_status"] == "ok" and not account.startswith("demo:")
    }
    assert said["unknown"] == 1
    if street.forgives:
        return
    negative = [equity for equity in known.values() if equity < 0]
    assert said["equity"]["after_usd"] == pytest.approx(sum(known.values()), abs=1.0)
    assert said["equity"]["negative_usd"] == pytest.approx(sum(negative), abs=1.0)
    assert said["equity"]["negative_accounts"] == len(negative)


def test_what_if_says_what_then_happens(there: Scene) -> None:
    said = assert_foretold(there, {"EURUSD": "-2.5"})
    assert len(said["cascades"]) == 1 and said["liquidated"]["count"] > 8
    said = assert_foretold(there, {"USDJPY": "2.4", "BTCUSD": "-9.5", "EURGBP": "2.8"})
    assert len(said["cascades"]) == 2 and said["warned"]["count"] > 2


#: Streets that are built and run by other rules.
RULES: dict[str, dict[str, object]] = {
    "another street": {"seed": 2},
    "side": {"seed": 3, "valuation__rate_side": "side"},
    "mid, open": {"seed": 4, "valuation__rate_side": "mid", "valuation__margin_price": "open"},
    "sum": {"seed": 5, "valuation__hedging": "sum", "cutoff__stop_out": "flatten"},
    "net": {"seed": 6, "valuation__hedging": "net", "cutoff__stop_out": "largest_margin"},
    "half": {"seed": 7, "valuation__hedging": "50", "cutoff__stop_out": "smallest_partial"},
    "partial": {"seed": 8, "valuation__rate_side": "side", "cutoff__stop_out": "smallest_partial"},
    "retail": {"seed": 9, "cutoff__profile": "retail_eu_uk", "cutoff__warning_level_pct": 80},
}
MOVES = (
    {"EURUSD": "-0.4"},
    {"EURUSD": "-6"},
    {"EURUSD": "2.2", "GBPUSD": "-1.5"},
    {"USDJPY": "3.5", "EURJPY": "-3", "BTCUSD": "-15"},
    {"GBPUSD": "9", "XAUUSD": "-4", "EURGBP": "1.4"},
    {"EURUSD": "-40", "XAUUSD": "70"},
)


RUNGS_PCT = (0.25, 0.75, 2.0, 5.0, 15.0, 50.0)


@pytest.mark.slow
@pytest.mark.parametrize("flags", RULES.values(), ids=RULES)
def test_on_streets_by_other_rules(flags: dict[str, object]) -> None:
    with scene(**flags) as there:
        assert sum(walk(there, symbol) for symbol in QUOTES) > 50
        assert sum(assert_rungs(there, symbol, *RUNGS_PCT) for symbol in ("EURUSD", "BTCUSD")) > 20
        for moves in MOVES:
            assert_foretold(there, moves)
