"""The desk's figures against what then really happens: quotes move, a daemon ticks, and what it does was foretold.

A street of accounts of all types stands on a real server; the API with its desk's process is asked, and a daemon acts.
Nothing here is computed by the formulas of the ladder or the what-if. Keys are spelled out by hand.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from copyrisk.api import desk as desk_module
from copyrisk.derived import copy_id
from copyrisk.embedded import EmbeddedServer
from copyrisk.identifiers import parse_account
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
    "replication__signal_max_age_ms": 0,
    "replication__equity_max_age_ms": 0,
    "cutoff__close_budget_ms": 5_000,
    "cutoff__warning_cooldown_ms": 0,
    "valuation__quote_max_age_ms_by_symbol": {"XAGUSD": 60_000},
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
        self.changed()

    def changed(self) -> None:
        """What the desk says from now on must be of what stands there now."""
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
        self.changed()

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
def scene(api_flags: Mapping[str, object] | None = None, seed: int = 1, **flags: object) -> Iterator[Scene]:
    """A street on a server of its own, with an API whose settings are the street's and `api_flags`."""
    with EmbeddedServer.start() as running:
        street = Street(Server(running.url, running.pid), seed=seed, **flags)
        try:
            street.build()
            with served(street, **FLAGS | DESK | flags | dict(api_flags or {})) as house:
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


@pytest.mark.slow
def test_also_of_a_symbol_that_converts_its_own_profits(there: Scene) -> None:
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
    assert {street.masters[one["master_id"]] for one in said["cascades"]["list"]} == fallen
    copiers = {account for one in said["cascades"]["list"] for account in copies[one["master_id"]]}
    assert {account for account in before if before[account] != after[account]} == critical | copiers
    for account, one in liquidated.items():
        _assert_left(street, one, before[account], after[account], is_shared=account in copiers)
    assert said["cascades"]["count"] == len(fallen)
    for one in said["cascades"]["list"]:
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
    assert said["cascades"]["count"] == 1 and said["liquidated"]["count"] > 8
    said = assert_foretold(there, {"USDJPY": "2.4", "BTCUSD": "-9.5", "EURGBP": "2.8"})
    assert said["cascades"]["count"] == 2 and said["warned"]["count"] > 2


#: Streets that are built and run by other rules.
RULES: dict[str, dict[str, Any]] = {
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
def test_on_streets_by_other_rules(flags: dict[str, Any]) -> None:
    with scene(**flags) as there:
        assert sum(walk(there, symbol) for symbol in QUOTES) > 50
        assert sum(assert_rungs(there, symbol, *RUNGS_PCT) for symbol in ("EURUSD", "BTCUSD")) > 20
        for moves in MOVES:
            assert_foretold(there, moves)


# ---- the summary


def stands_by_hand(street: Street) -> dict[str, dict[str, Any]]:
    """Every account's state and figures, by what the daemon wrote and the account's own levels."""
    found = {}
    for account in street.accounts():
        shown, own = street.office.portfolio(account), decoded(street.client.hgetall(f"user:{{{account}}}:config"))
        warning, critical = (
            float(own.get(name, usual)) for name, usual in (("auto_cutoff_level", 50), ("auto_liquidation_level", 10))
        )
        if shown["calc_status"] != "ok":
            found[account] = {"state": "unknown"}
            continue
        level = float(shown["margin_level"])
        state = "critical" if level <= critical else "warning" if level <= warning else "healthy"
        if not float(shown["used_margin"]):
            state = "no_margin"
        points = level - (warning if state == "healthy" else critical)
        found[account] = {"state": state, "level": level, "points": points, **shown}
    return found


def assert_summary(there: Scene) -> dict[str, Any]:
    """The summary is that of the portfolios that stand there; returns it."""
    said, stands = there.ask(SUMMARY), stands_by_hand(there.street)
    by_type = {kind: dict.fromkeys(said["accounts"]["by_type"][kind], 0) for kind in said["accounts"]["by_type"]}
    for account, one in stands.items():
        by_type[account.partition(":")[0]][one["state"]] += 1
    assert said["accounts"] == {"total": len(stands), "by_type": by_type}
    money = [one for name, one in stands.items() if one["state"] != "unknown" and not name.startswith("demo:")]
    for total, name in (("equity_usd", "equity"), ("used_margin_usd", "used_margin"), ("open_pnl_usd", "open_pnl")):
        assert said["totals"][total] == pytest.approx(sum(float(one[name]) for one in money), abs=0.01 * len(money))
    ladder = {name: one for name, one in stands.items() if one["state"] not in ("unknown", "no_margin")}
    edges = said["histogram"]["edges_pct"]
    bins = Counter(sum(one["level"] >= edge for edge in edges) for one in ladder.values())
    assert said["histogram"]["counts"] == [bins[place] for place in range(len(edges) + 1)]
    nearest = sorted(ladder, key=lambda name: ladder[name]["points"])[:25]
    points = [one["margin_level_pct"] - one[_next_level(one)] for one in said["closest"]]
    assert points == pytest.approx([ladder[name]["points"] for name in nearest], abs=0.02)
    for one in said["closest"]:
        own = ladder[one["account"]]
        assert one["state"] == own["state"], one
        assert one["margin_level_pct"] == pytest.approx(own["level"], abs=0.011)
        assert one["equity_usd"] == pytest.approx(float(own["equity"]), abs=0.011)
    assert sum(said["unknown"].values()) == sum(one["state"] == "unknown" for one in stands.values())
    return said


def _next_level(one: Mapping[str, Any]) -> str:
    return "warning_level_pct" if one["state"] == "healthy" else "critical_level_pct"


def test_the_summary_is_that_of_the_portfolios(there: Scene) -> None:
    street = there.street
    said = assert_summary(there)
    assert said["unknown"] == {"order_missing": 1} and said["halted"] == [] and said["cascades"] == []
    street.office.group("XAGUSD", contract_size=5000, type=2)
    street.quote("30", "30.1", "XAGUSD")
    for number, account in enumerate(("live:old", "demo:old", "copy_follower:old")):
        street.account(account, "rock", "5000")
        street.position(account, f"AG{number}", "0.1", "30", symbol="XAGUSD")
    street.account("live:leverage", "rock", "50", leverage="0")
    street.configure("live:1", wallet_balance="1e400")
    street.client.hset("copyrisk:kills", "symbol:XAUUSD", json.dumps({"at_ms": now_ms()}))
    street.move("GBPUSD", 0.995)
    street.settled()
    street.quote("30", "30.1", "XAGUSD", ts=now_ms() - 600_000)
    street.full_step()
    street.changed()
    said = assert_summary(there)
    assert said["unknown"] == {
        "order_missing": 1,
        "quote_stale": 3,
        "leverage_invalid": 1,
        "wallet_balance_invalid": 1,
    }
    assert said["halted"] == ["symbol:XAUUSD"]
    assert said["tick"]["ts"] == int(street.client.hget("copyrisk:tick", "ts")) and said["book_age_ms"] < 5_000
    street.quote("30", "30.1", "XAGUSD")
    street.client.delete("copyrisk:kills")
    street.step()
    street.changed()
    said = assert_summary(there)
    assert "quote_stale" not in said["unknown"] and said["halted"] == []


def test_copies_and_a_cascade_are_told_while_they_go_on(there: Scene) -> None:
    street = there.street
    street.configure(MASTER, wallet_balance="900000")
    before = there.ask(SUMMARY)["replication"]
    assert street.open(MASTER, "SP-M9", "BUY", "1", symbol="GBPUSD")["code"] == "ok"
    street.replicate()
    street.step()
    street.account("strategy_provider:B", "barclays", "9999")
    street.position("strategy_provider:B", "SP-B0", "2")
    for number in range(3):
        account = street.follower(f"B{number}", "90000", master="B", flow="barclays")
        if number:
            street.position(account, copy_id("SP-B0", parse_account(account)), "1", master_order_id="SP-B0")
    street.step()
    street.changed()
    after = assert_summary(there)["replication"]
    grown = {name: after[name] - before[name] for name in ("events", "copies", "skipped", "failed")}
    copied = len(street.copies("SP-M9"))
    assert grown == {"events": 1, "copies": copied, "skipped": COPIERS - copied, "failed": 0} and copied > 0
    street.configure("strategy_provider:B", wallet_balance="-16800")
    street.step()
    street.changed()
    (cascade,) = assert_summary(there)["cascades"]
    assert {**cascade, "id": "", "started_ms": 0} == {
        "id": "",
        "master": "B",
        "state": "running",
        "started_ms": 0,
        "finished_ms": None,
        "followers": 3,
        "done": 0,
        "flat": 1,
        "failed": 0,
    }
    street.provider_says("filled", price="1.0845")
    street.until_quiet()
    street.changed()
    (ended,) = assert_summary(there)["cascades"]
    assert ended == {**cascade, "state": "ended", "done": 2, "finished_ms": ended["finished_ms"]}
    assert ended["finished_ms"] >= cascade["started_ms"]


# ---- a weekend


@pytest.mark.slow
def test_the_ladder_of_a_weekend_is_that_of_mondays_gap() -> None:
    """Crypto trades meanwhile: who rests on a closed market besides is not touched, and the ladder says so."""
    other = "Tue" if time.strftime("%a") == "Mon" else "Mon"
    week = {"always_open": False, "week_open": f"{other} 00:00", "week_close": f"{other} 00:01"}
    with scene(api_flags={f"market__{name}": value for name, value in week.items()}) as there:
        street, is_open = there.street, there.street.settings
        closed = there.house.settings
        assert not closed.market.always_open
        for symbol in ("EURUSD", "USDJPY"):
            walk(there, symbol)  # the daemon's market has opened
        assert_foretold(there, {"EURUSD": "-2.5"})
        street.settings = closed
        holders = {name: {order["symbol"] for order in street.orders(name)} for name in street.accounts()}
        resting = {name for name, symbols in holders.items() if "BTCUSD" in symbols and symbols != {"BTCUSD"}}
        assert walk(there, "BTCUSD") > 0
        assert there.ask(f"{LADDER}/BTCUSD")["closed"] == len(resting) > 2
        assert_rungs(there, "BTCUSD", *RUNGS_PCT)
        said = assert_foretold(there, {"BTCUSD": "-30"})
        assert said["closed"] > 0
        street.put_back()
        assert_summary(there)
        street.settings = is_open
        said = assert_foretold(there, {"BTCUSD": "-30", "GBPUSD": "0.0001"})
        assert said["closed"] == 0


# ---- faults


MAX_AGE_MS = 1_000


@dataclass
class Watch:
    """An API that is asked again and again while something breaks; nothing old may pass for fresh."""

    house: House
    caller: Caller

    def look(self) -> dict[str, Any] | None:
        """The summary, if one is told."""
        asked_ms = now_ms()
        answer = self.caller.get(SUMMARY)
        if answer.status_code != 200:
            assert answer.status_code in (401, 503), answer.text
            return None
        return self._fresh(data(answer), asked_ms)

    def look_inside(self) -> dict[str, Any] | None:
        """The same of what the API would tell, where nobody can be admitted."""
        asked_ms, said = now_ms(), self.inside()
        return None if said is None else self._fresh(said, asked_ms)

    def inside(self) -> dict[str, Any] | None:
        """What the API would tell."""
        desk = self.house.api.desk
        assert desk is not None
        latest = desk.latest
        return None if latest is None else dict(json.loads(latest))

    def _fresh(self, said: dict[str, Any], asked_ms: int) -> dict[str, Any] | None:
        told = {part: said[part] for part in FIGURE_PARTS if said[part] is not None}
        if not told:
            return None
        assert told.keys() == set(FIGURE_PARTS)
        assert asked_ms - said["now_ms"] + said["book_age_ms"] <= MAX_AGE_MS + 5, said["book_age_ms"]  # of rounding
        return said

    def until_equity(self, equity: float, limit_s: float = 30.0) -> None:
        """Until that is what the house is said to have."""

        def is_told() -> bool:
            said = self.look()
            return said is not None and said["totals"]["equity_usd"] == equity

        until(is_told, limit_s)

    @property
    def pid(self) -> int:
        """Of the desk's process, once there is one."""
        desk = self.house.api.desk
        assert desk is not None
        until(lambda: desk.pid is not None)
        assert desk.pid is not None
        return desk.pid


@contextmanager
def watched(server: Any) -> Iterator[tuple[CutoffDesk, Watch]]:
    """A house with one account of 5,000 USD, and its API."""
    desk = CutoffDesk(server, **FLAGS)
    desk.client.hset(f"user:{{{MASTER}}}:config", "wallet_balance", "0")
    desk.account("live:1", "rock", "5000")
    try:
        with served(desk, **FLAGS | DESK, api__desk_max_age_ms=MAX_AGE_MS, redis__reply_timeout_ms=500) as house:
            watch = Watch(house, house.caller(scopes=("risk:read",)))
            watch.until_equity(5_000.0)
            yield desk, watch
    finally:
        desk.close()


def children() -> dict[int, str]:
    """State by process of all that are ours."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid():
                found[int(entry.name)] = state
    return found


@pytest.mark.slow
@pytest.mark.fault
def test_a_desk_that_is_killed_twenty_times_leaves_nothing(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "_PAUSE_S", 0.01)
    monkeypatch.setattr(desk_module, "_LONGEST_PAUSE_S", 0.01)
    with watched(bundled_server) as (desk, watch):
        before: tuple[set[int], int] | None = None
        for number in range(21):
            killed = watch.pid
            os.kill(killed, signal.SIGKILL)
            desk.configure("live:1", wallet_balance=f"{6_000 + number}")
            until(lambda killed=killed: watch.pid != killed)
            watch.until_equity(6_000.0 + number)
            assert "Z" not in children().values() and killed not in children()
            if before is None:
                before = set(children()) - {watch.pid}, len(os.listdir("/proc/self/fd"))
        assert before is not None and set(children()) - {watch.pid} == before[0]
        assert len(os.listdir("/proc/self/fd")) < before[1] + 10
        last = watch.pid
    assert last not in children()


@pytest.mark.slow
@pytest.mark.fault
def test_a_desk_that_stands_still_tells_nothing_old(bundled_server: Any) -> None:
    with watched(bundled_server) as (desk, watch):
        os.kill(watch.pid, signal.SIGSTOP)
        stopped_s = time.monotonic()
        desk.configure("live:1", wallet_balance="7000")
        until(lambda: watch.look() is None)
        while time.monotonic() < stopped_s + 3.0:
            watch.look()
            time.sleep(0.01)
        assert watch.look() is None
        assert refusal(watch.caller.get(f"{LADDER}/EURUSD")) == (503, "desk_unavailable")
        os.kill(watch.pid, signal.SIGCONT)
        watch.until_equity(7_000.0)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, free_port())
    made.start()
    yield made
    made.kill()


@pytest.mark.slow
@pytest.mark.fault
def test_a_server_that_stands_still_makes_the_figures_old(machine: Machine) -> None:
    with watched(machine) as (desk, watch):
        desk.configure("live:1", wallet_balance="7000")
        watch.until_equity(7_000.0)
        pid = watch.pid
        machine.say(signal.SIGSTOP)
        stopped_s = time.monotonic()
        ages: set[int] = set()
        while time.monotonic() < stopped_s + 6.0 or not ages:
            said = watch.inside()
            watch.look_inside()
            ages |= {said["book_age_ms"]} if said is not None and said["accounts"] is None else set()
            assert time.monotonic() < stopped_s + 60.0, "nobody says that the figures are old"
            time.sleep(0.01)
        assert min(ages) > MAX_AGE_MS
        assert watch.look_inside() is None and watch.look() is None  # who asks cannot even be known
        machine.say(signal.SIGCONT)
        desk.configure("live:1", wallet_balance="7500")
        watch.until_equity(7_500.0)
        assert watch.pid == pid and list(children().values()).count("Z") == 0


@pytest.mark.slow
@pytest.mark.fault
def test_a_server_that_comes_back_empty_holds_nobody(machine: Machine) -> None:
    with watched(machine) as (desk, watch):
        machine.kill()
        until(lambda: watch.look_inside() is None)
        machine.start()
        watch.caller = watch.house.caller(scopes=("risk:read",))
        desk.account("live:2", "rock", "300")
        watch.until_equity(300.0)
        said = watch.look()
        assert said is not None and said["accounts"]["total"] == 1 and said["unknown"] == {}
        desk.office.group("EURUSD")
        desk.quote("1", "1")
        desk.holder("live:3", "550")
        watch.until_equity(850.0)
        (closest,) = (watch.look() or {})["closest"]
        assert (closest["account"], closest["margin_level_pct"]) == ("live:3", 55.0)
