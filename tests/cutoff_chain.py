"""Daemons of `copyrisk-run` that are killed while they liquidate, and an exact model of what they may do.

A story is one house: accounts with positions, quotes, a daemon that dies at a point, what happens while nobody looks,
and daemons until all is quiet. `tests/test_cutoff_chain.py` tells many of them. Keys are spelled out by hand.
"""

import faulthandler
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from copyrisk import cli, crash
from copyrisk.store.pipe import Pipe
from tests.copying_desk import CopyDesk
from tests.cutoff_desk import EPISODES, LEASE, TRAIL, CutoffDesk
from tests.trading import INPUTS, assert_books, decoded

CONTRACT, LEVERAGE, CENT = 100_000, 100, Decimal("0.01")
POINT = Decimal("0.00001")
CASCADES, CASCADES_DONE = "copyrisk:{cutoff}:cascades", "copyrisk:{cutoff}:cascades_done"
#: Dies when commands have been sent, and no reply to them has been read.
SENT = "sent"
LEVELS = (("cutoff", "50"), ("liquidation", "10"))
ENDED = ("done", "flat")


# ---- processes, forked from one that has everything imported


class Nursery:
    """Starts processes of `copyrisk-run` in milliseconds: each is a fork of one that has imported it all."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "tests.cutoff_chain"]
        root = Path(__file__).absolute().parents[1]
        self._popen = subprocess.Popen(words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, words: Sequence[str], environ: Mapping[str, object], log: Path, crash_at: str = "") -> int:
        """Start `copyrisk-run WORDS` with these settings (`CUTOFF_LEASE_MS=200`), to die at a point; its pid."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
        clean |= {f"COPYRISK_{name}": str(value) for name, value in environ.items()}
        return int(self._ask(words=list(words), environ=clean, log=str(log), crash_at=crash_at))

    def code(self, pid: int) -> int | None:
        """The exit code of a process, negative if it was killed; `None` while it lives."""
        found = self._ask(pid=pid)
        return None if found is None else int(found)

    def _ask(self, **said: object) -> Any:
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.write(json.dumps(said).encode() + b"\n")
        self._popen.stdin.flush()
        return json.loads(self._popen.stdout.readline())

    def close(self) -> None:
        """End it, and whatever is left of its children."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait(20)
        self._popen.stdout.close()


def nurse() -> None:
    """What the nursery's process does until its input ends."""
    codes: dict[int, int | None] = {}
    gc.freeze()
    while line := sys.stdin.buffer.readline():
        said = json.loads(line)
        if "pid" in said:
            answer = codes[said["pid"]] = _code(said["pid"], codes)
        elif answer := os.fork():
            codes[answer] = None
        else:
            _live(said)
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
    for pid, code in codes.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)


def _code(pid: int, codes: Mapping[int, int | None]) -> int | None:
    known = codes[pid]
    if known is not None:
        return known
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _live(said: dict[str, Any]) -> None:
    """Be `copyrisk-run`; does not return."""
    log = os.open(said["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for place, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(file, place)
    os.environ.clear()
    os.environ.update(said["environ"])
    faulthandler.register(signal.SIGUSR1)
    point, _, count = said["crash_at"].partition(":")
    if point == SENT:
        _die_when_sent(int(count))
    else:
        crash._AT, crash._left = point, int(count or 1)
    code = 1
    try:
        code = cli.main(said["words"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_when_sent(count: int) -> None:
    collect, left = Pipe._collect, [count]

    def die_or_collect(*args: Any) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        collect(*args)

    Pipe._collect = die_or_collect  # type: ignore[method-assign, assignment]


@contextmanager
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


# ---- an account, in exact numbers


@dataclass
class Lots:
    """A position."""

    is_buy: bool
    lots: Decimal
    price: Decimal
    master_order_id: str = ""

    def profit(self, mid: Decimal, lots: Decimal | None = None) -> Decimal:
        moved = mid - self.price if self.is_buy else self.price - mid
        return moved * CONTRACT * (self.lots if lots is None else lots)


@dataclass
class Holder:
    """An account by the contract: no spread, no charges, EURUSD only, the larger side takes the margin."""

    balance: Decimal
    warning: Decimal = Decimal(50)
    critical: Decimal = Decimal(10)
    positions: dict[str, Lots] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    closing: dict[str, Decimal] = field(default_factory=dict)  # lots that are with the provider to be closed

    def copy(self) -> "Holder":
        lots = {name: Lots(**vars(one)) for name, one in self.positions.items()}
        return Holder(self.balance, self.warning, self.critical, lots, set(self.pending), dict(self.closing))

    def equity(self, mid: Decimal) -> Decimal:
        return self.balance + sum((one.profit(mid) for one in self.positions.values()), Decimal(0))

    def used(self, mid: Decimal, *, counts_closing: bool = True) -> Decimal:
        sides = {True: Decimal(0), False: Decimal(0)}
        for name, one in self.positions.items():
            sides[one.is_buy] += one.lots - (0 if counts_closing else self.closing.get(name, 0))
        return max(sides.values()) * mid * CONTRACT / LEVERAGE

    def is_at(self, level: Decimal, mid: Decimal, *, counts_closing: bool = True) -> bool:
        """Whether its margin level is so low; what is being closed counts as open, or as gone."""
        used = self.used(mid, counts_closing=counts_closing)
        return used > 0 and self.equity(mid) * 100 <= level * used

    def is_critical(self, mid: Decimal, *, counts_closing: bool = True) -> bool:
        return self.is_at(self.critical, mid, counts_closing=counts_closing)


def read_holder(client: Any, account: str) -> Holder:
    """An account as it stands there."""
    said = decoded(client.hgetall(f"user:{{{account}}}:config"))
    warning, critical = (Decimal(said.get(f"auto_{name}_level", usual)) for name, usual in LEVELS)
    holder = Holder(Decimal(said["wallet_balance"]), warning, critical)
    ids = sorted(one.decode() for one in client.smembers(f"user_orders_index:{{{account}}}"))
    pipe = client.pipeline(transaction=False)
    for order_id in ids:
        pipe.hgetall(f"user_holdings:{{{account}}}:{order_id}")
        pipe.get(f"copyrisk:{{{account}}}:order:{order_id}")
    replies = pipe.execute()
    for order_id, stored, record in zip(ids, replies[::2], replies[1::2], strict=True):
        order = decoded(stored)
        if order["execution_status"] != "EXECUTED":
            holder.pending.add(order_id)
            continue
        lots, price = Decimal(order["order_quantity"]), Decimal(order["order_price"])
        copied = order.get("master_order_id", "")
        holder.positions[order_id] = Lots(order["order_type"] == "BUY", lots, price, copied)
        if record and json.loads(record)["state"] == "closing":
            holder.closing[order_id] = lots
    return holder


# ---- a house of accounts


@dataclass
class House:
    """The keys of a house where everybody is well, to be put back as often as it is wanted."""

    flow: str
    keys: dict[bytes, bytes]
    holders: dict[str, Holder]
    masters: dict[str, str]  # owners of masters' orders
    active: dict[str, set[str]]  # followers by master
    spare: dict[str, str]  # who has copied a master, and left; by name

    def put_back(self, client: Any) -> None:
        client.flushall()
        pipe = client.pipeline(transaction=False)
        for key, stored in self.keys.items():
            pipe.restore(key, 0, stored)
        pipe.execute()


MASTERS, FOLLOWERS = 3, 4


def build_house(server: Any, flow: str, seed: int) -> House:
    """Masters whose orders are really copied, and others; positions at several prices, orders that wait."""
    with server.client() as client:
        client.flushall()
    desk, dice = CutoffDesk(server, flow), random.Random(seed)
    masters: dict[str, str] = {}
    for number in range(MASTERS):
        desk.account(f"strategy_provider:M{number}", flow, 1_000_000)
        for place in range(FOLLOWERS):
            desk.follower(f"F{number}{place}", dice.randint(4, 10) * 100_000, master=f"M{number}")
        desk.follower(f"S{number}", 600_000, master=f"M{number}")
        for order in range(dice.randint(1, 3)):
            masters[f"MO{number}{order}"] = f"strategy_provider:M{number}"
    others = [*(f"live:{i}" for i in range(8)), *(f"demo:{i}" for i in range(3))]
    for account in others:
        desk.account(account, "rock" if account == "live:7" else flow, 1_000_000)
    orders = list(masters.items())
    orders += [(f"O{i}", dice.choice(others)) for i in range(24)]
    orders += [(f"E{i}", account) for i, account in enumerate(others)]
    orders += [(f"OF{i}", f"copy_follower:F{i % MASTERS}{i % FOLLOWERS}") for i in range(6)]
    dice.shuffle(orders)
    for order_id, account in orders:
        mid = 1 + dice.randint(-100, 100) * POINT
        desk.price(mid)
        lots, levels = Decimal(dice.randint(10, 200)) / 100, {}
        if dice.random() < 0.2:
            levels = {"stop_loss": "0.5", "take_profit": "1.5"}
        side = dice.choice(["BUY", "BUY", "SELL"])
        answer = desk.open(account, order_id, side, str(lots), **(levels if side == "BUY" else {}))
        assert answer["code"] == "ok", answer
        _fill(desk, mid)
    for i in range(4):
        account = dice.choice([*others, "strategy_provider:M0", "copy_follower:F10"])
        assert desk.pend(account, f"P{i}", "BUY_LIMIT", "0.9", "0.1")["code"] == "ok"
        masters |= {f"P{i}": account} if account.startswith("strategy_provider") else {}
        for _ in range(2):  # and the copies of a master's
            desk.provider_says("accepted", action="place")
            _fill(desk, mid)
    for number in range(MASTERS):
        desk.client.srem(f"copy_master_followers:M{number}:active", f"S{number}")
    names = [key for key in desk.client.keys("*") if not key.endswith(b":lease")]
    pipe = desk.client.pipeline(transaction=False)
    for key in names:
        pipe.dump(key)
    holders = {account: read_holder(desk.client, account) for account in desk.accounts()}
    assert not any(one.closing for one in holders.values())
    active = {f"M{i}": {f"F{i}{k}" for k in range(FOLLOWERS)} for i in range(MASTERS)}
    spare = {f"S{i}": f"M{i}" for i in range(MASTERS)}
    keys = dict(zip(names, pipe.execute(), strict=True))
    desk.close()
    return House(flow, keys, holders, masters, active, spare)


def _fill(desk: CopyDesk, mid: Decimal) -> None:
    """Have the provider fill all that was sent to it, and copies be made, until there is nothing more."""
    for _ in range(10):
        done = desk.provider_says("filled", action="open", price=str(mid))
        desk.replicate_until_settled()
        if not done:
            return
    raise AssertionError("it did not end")


# ---- a story


@dataclass
class Told:
    """What came of stories."""

    stories: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Told") -> None:
        self.stories += other.stories
        self.kills += other.kills
        self.counts += other.counts

    def __str__(self) -> str:
        kills = dict(sorted(self.kills.items()))
        return f"{self.stories} runs, {self.kills.total()} kills: {kills}, {dict(self.counts)}"


#: Where a daemon can be made to die while it liquidates, cascades, or writes of it.
POINTS = (
    *("cutoff.said", "cutoff.stored", "cutoff.planned", "cutoff.owing", "cutoff.cascaded", "liquidation.closed"),
    *("cascade.recorded", "cascade.begun", "cascade.noted", "cascade.closed", "cascade.ending", "cascade.ended"),
    *("worker.decided", "worker.changed", "worker.delivered", "trail.stored", "trail.filed", "trail.written"),
    *("protection.noted", "protection.changed", "protection.delivered"),
)
MOMENT = "moment"
_KINDS = (*POINTS, MOMENT, SENT)
#: How far below or above its critical level an account is put, in percent of its margin, and how often.
FATES = {"deep": (-30, 5, 15), "critical": (5, 10, 20), "at": (10, 10, 10), "cent": (10, 10, 5), "near": (10, 15, 15)}
FATES |= {"warned": (11, 50, 10), "well": (60, 400, 25)}
MODES = ("largest_loss", "largest_loss", "largest_margin", "smallest_partial", "flatten")
LIMIT_S = 60.0


def points_of(seed: int) -> list[str]:
    """Where the daemons of a story die, one after the other: each kind in turn, then by lot."""
    dice = random.Random(seed)
    kinds = [_KINDS[seed % len(_KINDS)], *dice.choices(_KINDS, k=dice.choice([0, 0, 1, 2]))]
    passings = {MOMENT: [1], SENT: range(1, 81)}
    return [f"{kind}:{dice.choice(passings.get(kind, [1, 1, 1, 2, 3]))}" for kind in kinds]


class Story:
    """One house, and daemons that die in it; everything is drawn from the seed but for what the clock decides."""

    def __init__(self, server: Any, nursery: Nursery, folder: Path, house: House, seed: int, points: Sequence[str]):
        self.server, self.nursery, self.folder, self.house = server, nursery, folder, house
        self.seed, self.points, self.dice = seed, points, random.Random(seed)
        self.told = Told(1)
        self.desk = CutoffDesk(server, house.flow)
        self.client = self.desk.client
        house.put_back(self.client)
        self.holders = {account: one.copy() for account, one in house.holders.items()}
        self.start = self._ends()
        self.active = {master: set(names) for master, names in house.active.items()}
        self.epochs = {master: [frozenset(names)] for master, names in house.active.items()}
        self.quotes: list[tuple[int, Decimal]] = []
        self.paid: dict[str, list[tuple[int, Decimal]]] = defaultdict(list)  # by account: not before when, and how much
        self.killed: set[str] = set()  # accounts that a kill says are to be closed
        self.standby: int | None = None
        self.turmoil = self.dice.choice([0, 0, 4, 10])  # how often something happens while a daemon is at work
        self.asked: set[tuple[str, str]] = set()  # closes that clients asked for
        self.answered: dict[str, int] = {}  # how often something was reported of a request; -1: all there will be
        self.prices: dict[str, str] = {}  # at which a close was filled in part
        self.rejected: set[str] = set()  # orders of which a close was rejected once
        self.mode = self.dice.choice(MODES)
        self.protects = any(point.startswith("protection") for point in points) or self.dice.random() < 0.3
        self.has_file = any(point.startswith("trail") for point in points) or self.dice.random() < 0.3
        self.replicates = self.dice.random() < 0.4
        self.mid = Decimal(1)
        self.pids: list[int] = []

    def _ends(self) -> dict[str, str]:
        """Where the streams of accounts end, and that of events."""
        names = [f"copyrisk:{{{account}}}:audit" for account in self.holders] + ["copyrisk:events"]
        found = {name: self.client.xrevrange(name, count=1) for name in names}
        return {name: entries[0][0].decode() if entries else "0-0" for name, entries in found.items()}

    @property
    def logs(self) -> Path:
        return self.folder / "daemon.log"

    def run(self) -> Told:
        """Tell it to its end; what is wrong is an `AssertionError` that names the seed."""
        try:
            self._set_up()
            for point in self.points:
                self._live(point)
                self._meanwhile()
            self._live("")
            Judge(self).judge()
        except Exception as failure:
            failure.add_note(f"flow {self.house.flow}, seed {self.seed}, points {self.points}, mode {self.mode}")
            raise
        finally:
            for pid in self.pids:
                if self.nursery.code(pid) is None:
                    os.kill(pid, signal.SIGKILL)
            self.desk.close()
        return self.told

    # ---- what there is

    def _set_up(self) -> None:
        self.logs.write_text("")
        mid = 1 + self.dice.randint(-150, 150) * POINT
        unlucky = f"strategy_provider:M{self.dice.randrange(MASTERS)}"
        for account, holder in self.holders.items():
            if not holder.positions:
                continue
            if self.dice.random() < 0.2:
                holder.warning = Decimal(self.dice.choice([30, 80]))
                holder.critical = Decimal(self.dice.choice([5, 20]))
                self.desk.configure(account, auto_cutoff_level=holder.warning, auto_liquidation_level=holder.critical)
            kinds, weights = list(FATES), [one[2] for one in FATES.values()]
            fate = "critical" if account == unlucky else self.dice.choices(kinds, weights)[0]
            holder.balance = self._balance(holder, fate, mid)
            self.desk.configure(account, wallet_balance=f"{holder.balance:.2f}")
        if self.dice.random() < 0.3:  # it comes when a daemon is there already
            self._price(mid + self.dice.choice([-1, 1]) * self.dice.randint(1, 80) * POINT)
            self.later: Decimal | None = mid
        else:
            self._price(mid)
            self.later = None

    def _balance(self, holder: Holder, fate: str, mid: Decimal) -> Decimal:
        low, high, _ = FATES[fate]
        level = Decimal(self.dice.randint(low * 100, high * 100)) / 1000 * holder.critical / 10
        used, profit = holder.used(mid), holder.equity(mid) - holder.balance
        exact = level * 10 / 100 * used - profit
        return exact.quantize(CENT) + (CENT if fate == "cent" else 0)

    def _price(self, mid: Decimal) -> None:
        self.quotes.append((time.time_ns() // 1_000_000, mid))
        self.mid = mid
        self._print()

    def _print(self) -> None:
        """The same quote anew: one that is seen for the first time is trusted when it comes again."""
        self.desk.price(self.mid)
        self.printed_s = time.monotonic()

    # ---- what happens

    def _live(self, point: str) -> None:
        """A daemon, until it dies: at its point, at a moment, or when it has nothing to do; without one, at the end."""
        if self.quotes and self.dice.random() < 0.8:
            self.client.hset(LEASE, "ends_ms", 0)  # else what the dead one has must end by itself
        is_moment = point.startswith(MOMENT)
        pid = self._start("" if is_moment else point)
        if self.standby is not None:  # it may have taken over meanwhile
            time.sleep(self.dice.uniform(0.0, 0.3))
            os.kill(self.standby, signal.SIGKILL)
            self.standby = None
        has_standby = point and not self.has_file and self.dice.random() < 0.2
        due_s, how = float("inf"), point
        quiet = Quiet(self, pid, is_final=not point)
        deadline_s = time.monotonic() + LIMIT_S
        while (code := self.nursery.code(pid)) is None:
            assert time.monotonic() < deadline_s, f"no rest: {quiet.why}, {self._log()}"
            is_acting = quiet.is_acting()
            if is_acting and self.later is not None:
                self._price(self.later)
                self.later = None
            if is_acting and has_standby:
                self.standby, has_standby = self._start(""), False
            if is_acting and is_moment and due_s == float("inf"):
                due_s = time.monotonic() + self.dice.uniform(0.0, 0.06)
            self._turn(is_final=not point)
            if time.monotonic() >= due_s:
                os.kill(pid, signal.SIGKILL)
            elif quiet.is_so():
                how = "at rest" if point else ""
                os.kill(pid, signal.SIGKILL)
                due_s = float("inf")
            time.sleep(0.002)
        assert code == -signal.SIGKILL, self.logs.read_text()[-6_000:]
        if how:
            self.told.kills[how.partition(":")[0]] += 1

    def _log(self) -> str:
        """What the daemons have said, and where those that live are."""
        for pid in self.pids:
            if self.nursery.code(pid) is None:
                os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)
        lines = [f"tick {self.client.hgetall('copyrisk:tick')}, lease {self.client.hgetall(LEASE)}, now {time.time()}"]
        lines += self.logs.read_text().splitlines()
        return "\n".join(line for line in lines if "tick_late" not in line and "account_unknown" not in line)[-6_000:]

    def _start(self, crash_at: str) -> int:
        environ = {
            "MARKET_ALWAYS_OPEN": "true",
            "CUTOFF_STOP_OUT": self.mode,
            "CUTOFF_LEASE_MS": 400,
            "CUTOFF_BRAKE_MIN_ACCOUNTS": 10 if self.dice.random() < 0.2 else 1_000,
            "CUTOFF_NEGATIVE_BALANCE_PROTECTION": str(self.protects).lower(),
            "LOG_LEVEL": "warning",
            "LOG_FORMAT": "json",
        }
        if self.has_file:
            environ["AUDIT_FOLDER"] = self.folder / "audit"
        words = ["--redis", self.server.url, "--tick-ms", "20"]
        self.pids.append(self.nursery.start(words, environ, self.logs, crash_at))
        return self.pids[-1]

    def _turn(self, *, is_final: bool) -> None:
        """What others do meanwhile: the provider, the workers, the engine of copies."""
        if time.monotonic() - self.printed_s > 0.03:
            self._print()
        if self.turmoil and self.dice.random() < 0.1:
            self.turmoil -= 1
            self._happen()
        if self.house.flow != "rock" and self.dice.random() < 0.5:
            self._answer()
        if self.desk.waiting():
            self.desk.settle()
        if is_final or self.replicates:
            self._replicate()

    def _replicate(self) -> None:
        if self.client.xlen("copyrisk:replications") or self.client.exists("copyrisk:waiting_copies"):
            self.desk.look_around()
            self.desk.replicator.step(1)

    def _answer(self) -> None:
        """Have the provider say something of closes and cancels that wait for it."""
        every = {request["request_id"]: request for request in self.desk.requests()}
        for request_id, request in every.items():
            said = self.answered.get(request_id, 0)
            if request["action"] not in ("close", "cancel") or said < 0 or self.dice.random() < 0.3:
                continue
            if request["action"] == "cancel":
                place = next(one for one in every.values() if _is_placing(one, request["order_id"]))
                self.desk.report(request, "accepted", 1)
                self.desk.report(place, "cancelled", 2)
                self.answered[request_id] = -1
                continue
            lots, half = Decimal(request["order_quantity"]), Decimal(request["order_quantity"]) / 2
            price = str(self.mid + self.dice.choice([0, 0, -1, 1]) * POINT)
            if not said and request["order_id"] not in self.rejected and self.dice.random() < 0.1:
                self.rejected.add(request["order_id"])
                self.desk.report(request, "rejected", 1)
                self.answered[request_id] = -1
            elif not said and half == half.quantize(CENT) and self.dice.random() < 0.2:
                self.desk.report(request, "partial", 1, str(half), average_price=price)
                self.answered[request_id] = 1
                self.prices[request_id] = price
            else:
                price = self.prices.get(request_id, price)
                self.desk.report(request, "filled", said + 1, str(lots), average_price=price)
                self.answered[request_id] = -1

    def _meanwhile(self) -> None:
        """What happens while no daemon is there, or the next one takes over."""
        dice = self.dice
        for _ in range(dice.choice([0, 1, 2, 5])):
            self._happen()
        names = [name for name, one in self.holders.items() if one.positions and name not in self.killed]
        for account in dice.sample(names, 4):  # who was well is not any more
            now = read_holder(self.client, account)
            if now.positions and not now.is_critical(self.mid):
                self._pay(account, self._balance(now, "critical", self.mid) - now.balance)
        if dice.random() < 0.3:
            self._change_followers()
        if dice.random() < 0.15:
            self._kill_switch(dice.choice(names))
        if dice.random() < 0.3:
            self._replicate()

    def _happen(self) -> None:
        """Something that has nothing to do with daemons."""
        dice = self.dice
        account = dice.choice([account for account, one in self.holders.items() if one.positions])
        what = dice.choice(["price", "pay", "close"])
        if what == "price":
            self._price(self.mid + dice.choice([-1, 1]) * dice.randint(1, 60) * POINT)
        elif what == "pay":
            self._pay(account, Decimal(dice.randint(-20_000, 300_000)) / 100)
        elif there := sorted(self.desk.index(account)):
            order_id = dice.choice(there)
            self.asked.add((account, order_id))
            self.desk.send("close", account, order_id=order_id)

    def _pay(self, account: str, amount: Decimal) -> None:
        key = f"user:{{{account}}}:config"

        def change(pipe: Any) -> None:
            after = Decimal(pipe.hget(key, "wallet_balance").decode()) + amount
            pipe.multi()
            pipe.hset(key, "wallet_balance", f"{after:.2f}")

        self.paid[account].append((time.time_ns() // 1_000_000, amount))
        self.client.transaction(change, key)

    def _kill_switch(self, account: str) -> None:
        """Somebody has all of an account closed, and of a master his copies, too."""
        kind, _, name = account.partition(":")
        scope = f"master:{name}" if kind == "strategy_provider" else f"account:{account}"
        said = {"policy": "close", "reason": "test", "by": "risk", "ts_ms": time.time_ns() // 1_000_000}
        self.killed.add(account)
        self.client.hset("copyrisk:kills", scope, json.dumps(said))

    def _change_followers(self) -> None:
        """One leaves each master, one joins."""
        for spare, master in self.house.spare.items():
            leaves = self.dice.choice(sorted(self.active[master] - {spare}))
            pipe = self.client.pipeline(transaction=True)
            pipe.srem(f"copy_master_followers:{master}:active", leaves)
            pipe.sadd(f"copy_master_followers:{master}:active", spare)
            pipe.execute()
            self.active[master] = self.active[master] - {leaves} | {spare}
            self.epochs[master].append(frozenset(self.active[master]))


def _is_placing(request: Mapping[str, str], order_id: str) -> bool:
    return request["order_id"] == order_id and request["action"] == "place"


class Quiet:
    """Whether a daemon has nothing to do any more: nothing is under way, and it has looked a few times since."""

    def __init__(self, story: Story, pid: int, *, is_final: bool) -> None:
        self._story, self._pid, self._is_final = story, pid, is_final
        self._seen: Any = None
        self._tick, self._ticks = b"", 0
        self.why: Any = "it does not act"

    def is_acting(self) -> bool:
        """Whether it has the lease, or who stands by: it may have stood still for a while."""
        owner = (self._story.client.hget(LEASE, "owner") or b"").decode()
        return any(f"-{pid}-" in owner for pid in (self._pid, self._story.standby))

    def is_so(self) -> bool:
        if not self.is_acting():
            return False
        pipe = self._story.client.pipeline(transaction=False)
        pipe.hget("copyrisk:tick", "tick").xlen(TRAIL).hlen(CASCADES).exists("copyrisk:{cutoff}:protecting")
        pipe.hlen("copyrisk:waiting_copies" if self._is_final else "none")
        streams = [*INPUTS, *["copyrisk:replications"] * self._is_final]
        streams += [f"copyrisk:{{{account}}}:outbox" for account in self._story.holders]
        for stream in streams:
            pipe.xlen(stream)
        tick, *seen = pipe.execute()
        if tick != self._tick:
            self._tick, self._ticks = tick, self._ticks + 1
        if seen != self._seen:
            self._seen, self._ticks = seen, 0
        names = ("cascades", "protecting", "copies", *streams)
        if busy := {name: count for name, count in zip(names, seen[1:], strict=True) if count}:
            self.why = busy
            return False
        if self._ticks < 4:
            return False
        self.why = forgotten(self._story)
        if self.why:
            self._ticks = 0
        return not self.why


def forgotten(story: Story) -> dict[str, str]:
    """Who should be closed, or should be more so than they are; nobody, once a daemon had time."""
    found = {}
    episodes = {name: json.loads(said) for name, said in decoded(story.client.hgetall(EPISODES)).items()}
    for account in story.holders:
        now = read_holder(story.client, account)
        if episodes.get(account, {}).get("is_critical"):
            found[account] = f"{now} as of {episodes[account]}"
        elif account in story.killed and (now.positions or now.pending):
            found[account] = f"{now} is not halted"
        elif now.closing or now.is_critical(story.mid):
            found[account] = f"{now}: {now.equity(story.mid)} / {now.used(story.mid)}"
        elif story.protects and now.balance < 0 and not now.positions and not now.pending:
            found[account] = f"owes {now.balance}"
    return found


# ---- what must be true of it


class Judge:
    """Replays what every account says was done to it, in exact numbers, and holds it against what may be done."""

    def __init__(self, story: Story) -> None:
        self.story, self.client, self.desk = story, story.client, story.desk
        self.cascades = {one.decode(): self._cascade(one.decode()) for one in self.client.zrange(CASCADES_DONE, 0, -1)}
        self.trail = self.desk.trail()
        self.own: dict[str, set[str]] = defaultdict(set)  # events for which accounts were closed
        self.low: set[str] = set()  # accounts that were at their warning level, maybe
        self.counts = story.told.counts
        self.asked: dict[tuple[str, str], list[Decimal]] = defaultdict(list)  # lots of the closes that were sent
        for request in {one["request_id"]: one for one in self.desk.requests()}.values():  # in their first order
            if request["action"] == "close":
                account = f"{request['user_type']}:{request['user_id']}"
                self.asked[account, request["order_id"]].append(Decimal(request["order_quantity"]))

    def judge(self) -> None:
        for account, holder in self.story.holders.items():
            self._replay(account, holder.copy())
        self._followers()
        self._warnings()
        self._announced()
        self._records()
        self._trail()
        assert_books(self.desk)
        log = self.story.logs.read_text()
        assert "Traceback" not in log, log[-6_000:]
        alarms = [line for line in log.splitlines() if '"level": "critical"' in line]
        assert all("brake_on" in line or "lease_lost" in line for line in alarms), alarms  # on a machine that stalls
        for stream in ("copyrisk:dead_letters", "copyrisk:breaks"):
            assert self.desk.entries(stream) == []
        self.counts["accounts"] += len(self.story.holders)
        self.counts["cascades"] += len(self.cascades)

    # ---- one account

    def _replay(self, account: str, holder: Holder) -> None:
        """Every change was allowed when it was made, is booked to the cent, and has led to what stands there now."""
        story, net, begun = self.story, defaultdict[str, Decimal](Decimal), set[str]()
        due = story.paid[account][:]
        self._look(account, holder)
        for said in self._changes(account):
            order_id, event, cause = said["order_id"], said["change"], said["cause"]
            self._receive(account, holder, due, said, net)
            where = f"{account} {order_id}: {event} by {said['type']} {cause} of {holder}"
            if said["type"] == "negative_balance_protection":
                assert story.protects and holder.balance < 0 and not holder.positions and not holder.pending, where
                assert Decimal(said["amount_usd"]) == -holder.balance, where
                assert self._told("protection", account, reason="balance_below_zero"), where
                holder.balance = Decimal(0)
                self.counts["protected"] += 1
                continue
            order = json.loads(said["order"])
            if said["type"] == "stop_out":
                self._allowed(account, holder, said, order, is_begun=cause in begun)
                begun.add(cause)
            elif said["type"] == "close":
                assert (account, order_id) in story.asked, where
            else:
                assert said["type"].startswith(("report_", "follow")), where
            self._apply(holder, said, order, net, where)
            self._look(account, holder)
        for _, amount in due:
            holder.balance += amount
            self._look(account, holder)
        now = read_holder(self.client, account)
        assert now == holder, f"{account}: {now} is not {holder}"
        assert not (story.mode == "flatten" and self.own[account] and now.positions), f"{account} is left with {now}"

    def _receive(self, account: str, holder: Holder, due: list[tuple[int, Decimal]], said: Any, net: Any) -> None:
        """Take what came from outside before a change: what makes its balance right; else all that came before."""
        order = json.loads(said.get("order", "{}"))
        booked = Decimal(order["net_profit"]) - net[said["order_id"]] if order else Decimal(said["amount_usd"])
        while due and due[0][0] <= int(said["ts"]):
            if said["balance"] and Decimal(said["balance"]) == holder.balance + booked:
                return
            holder.balance += due.pop(0)[1]
            self._look(account, holder)

    def _changes(self, account: str) -> list[dict[str, str]]:
        key = f"copyrisk:{{{account}}}:audit"
        entries = self.client.xrange(key, min=f"({self.story.start[key]}")
        found = [json.loads(said[b"entry"]) for _, said in entries]
        return [said for said in found if said.get("event") == "done"]

    def _allowed(self, account: str, holder: Holder, said: Any, order: Any, *, is_begun: bool) -> None:
        """A close that nobody asked for: of a critical account, or of a copy in a cascade that its owner is in."""
        cause, order_id = said["cause"], said["order_id"]
        where = f"{account} {order_id} for {cause}: {holder}"
        if cause == "kill":
            assert account in self.story.killed and order.get("reason", "kill") == "kill", where
            assert any(one["kind"] == "kill" for one in self.trail), where
            self.counts["kill_closes"] += 1
            return
        if cause.startswith(f"{account.replace(':', '-')}-"):
            assert order.get("reason", "stop_out") == "stop_out", where
            self.own[account].add(cause)
            self.counts["closes"] += 1
            if not (self.story.mode == "flatten" and is_begun):
                mids, maybe = self._mids(said, order), [holder]
                if not said["balance"]:  # what came at about that time may have come just before or just after
                    for ms, amount in reversed(self.story.paid[account]):
                        if abs(ms - int(said["ts"])) < 2_500:
                            maybe.append(replace(maybe[-1], balance=maybe[-1].balance - amount))
                is_critical = any(one.is_critical(mid, counts_closing=False) for mid in mids for one in maybe)
                assert is_critical, f"{where} at {mids}"
            plans = self._told("liquidation", account, cause, "level_at_or_below_critical")
            assert any(step["order_id"] == order_id for plan in plans for step in plan["said"]["plan"]), where
            return
        assert order.get("reason", "cascade") == "cascade" and cause in self.cascades, where
        master = self.cascades[cause]["master"]
        assert account.partition(":")[2] in self.cascades[cause]["followers"], where
        assert self.story.house.masters[order["master_order_id"]] == f"strategy_provider:{master}", where
        assert self._told("cascade", f"strategy_provider:{master}", cause, "cascade_begins"), where
        self.counts["cascade_closes"] += 1

    def _mids(self, said: Any, order: Any) -> list[Decimal]:
        """At which it may have been decided: a close here was, at its price."""
        if said["change"] in ("closed", "closed_in_part"):
            return [Decimal(order["close_price"])]
        ts = int(said["ts"])
        before = [mid for ms, mid in self.story.quotes if ms <= ts - 2_500][-1:]
        return before + [mid for ms, mid in self.story.quotes if ts - 2_500 < ms <= ts + 10]

    def _apply(self, holder: Holder, said: Any, order: Any, net: dict[str, Decimal], where: str) -> None:
        order_id, booked = said["order_id"], Decimal(order["net_profit"]) - net[said["order_id"]]
        net[order_id] += booked
        if order_id in holder.pending:
            assert booked == 0, where
            if order["order_status"] == "CANCELLED":
                holder.pending.remove(order_id)
            return
        one = holder.positions[order_id]  # of one that was closed before there is none
        left = Decimal(0) if order["order_status"] == "CLOSED" else Decimal(order["order_quantity"])
        assert 0 <= left <= one.lots, where
        if booked or left < one.lots:
            expected = one.profit(Decimal(order["close_price"]), one.lots - left)
            assert booked == expected, f"{where} booked {booked}, not {expected}"
            holder.balance += booked
            assert Decimal(said["balance"]) == holder.balance, where
        if said["change"] == "close_sent":
            holder.closing[order_id] = self.asked[f"{said['user_type']}:{said['user_id']}", order_id].pop(0)
        elif said["change"] == "close_part_reported":
            holder.closing[order_id] -= one.lots - left
        else:
            holder.closing.pop(order_id, None)
        one.lots = left
        if not left:
            del holder.positions[order_id]

    def _look(self, account: str, holder: Holder) -> None:
        if any(holder.is_at(holder.warning, mid) for _, mid in self.story.quotes):
            self.low.add(account)

    # ---- followers

    def _cascade(self, cascade_id: str) -> dict[str, Any]:
        said = decoded(self.client.hgetall(f"copyrisk:{{cutoff}}:cascade:{cascade_id}"))
        header = json.loads(said["header"])
        followers = {name[1:]: json.loads(one) if one else {} for name, one in said.items() if name[:1] == ":"}
        found = {"master": header["master"], "said": header["said"], "started_ms": int(said["started_ms"])}
        return {**found, "followers": followers, "summary": said["summary"]}

    def _followers(self) -> None:
        """Each critical master's followers at one moment are at their ends, without a copy."""
        assert not self.client.exists(CASCADES)
        for account in {owner for owner in self.story.house.masters.values() if self.own[owner]}:
            for cause in self.own[account] - self.cascades.keys():
                # One that could not begin because another was running may be in one that began later.
                first_ms = min(int(said["ts"]) for said in self._changes(account) if said["cause"] == cause)
                own = [one for one in self.cascades.values() if f"strategy_provider:{one['master']}" == account]
                started_ms = [one["started_ms"] for one in own]
                assert max(started_ms, default=0) >= first_ms, f"{cause} closed him at {first_ms}: {started_ms}"
        for cascade_id, one in self.cascades.items():
            master, followers = one["master"], one["followers"]
            if cascade_id.startswith("kill-"):
                assert f"strategy_provider:{master}" in self.story.killed
            elif "resumed" not in one["said"]:  # of one that was owed by a dead process the figures are those of later
                figures = one["said"]["figures"]
                assert figures["level_pct"] <= figures["critical_level_pct"], cascade_id
            assert frozenset(followers) in self.story.epochs[master], (cascade_id, followers)
            assert {said["s"] for said in followers.values()} <= set(ENDED), followers
            assert json.loads(one["summary"])["followers"] == len(followers)
            for name in followers:
                left = read_holder(self.client, f"copy_follower:{name}").positions.values()
                owners = {self.story.house.masters.get(lots.master_order_id) for lots in left}
                assert f"strategy_provider:{master}" not in owners, (cascade_id, name)

    # ---- what was said

    def _told(self, kind: str, account: str, cause: str = "", reason: str = "") -> list[dict[str, Any]]:
        return [
            one
            for one in self.trail
            if (one["kind"], one["account"], one["reason"]) == (kind, account, reason) and cause in ("", one["cause"])
        ]

    def _warnings(self) -> None:
        """One to each account that fell so low, none to the others; each is in the trail."""
        notices = self.desk.notices()
        counts = Counter(f"{notice['user_type']}:{notice['user_id']}" for notice in notices)
        assert all(count == 1 for count in counts.values()), counts  # an episode that began anew is within three hours
        assert counts.keys() <= self.low, counts.keys() - self.low
        must = {account for account, own in self.own.items() if own}
        for account in self.story.holders:
            now = read_holder(self.client, account)
            episode = self.desk.episode(account)
            if now.is_at(now.warning, self.story.mid):
                must.add(account)
                assert episode["is_open"], (account, episode)
        assert must <= counts.keys(), must - counts.keys()
        for notice in notices:
            account = f"{notice['user_type']}:{notice['user_id']}"
            assert self._told("warning", account, notice["notice_id"], "level_at_or_below_warning"), notice
        self.counts["warnings"] += len(notices)

    def _announced(self) -> None:
        """Every version of every account has been announced, as one thing."""
        announced: dict[str, dict[int, str]] = defaultdict(dict)
        for _, fields in self.client.xrange("copyrisk:events", min=f"({self.story.start['copyrisk:events']}"):
            event = decoded(fields)
            if event["event"] == "done":
                account, said = f"{event['user_type']}:{event['user_id']}", event.get("order", "")
                assert announced[account].setdefault(int(event["version"]), said) == said, event
        for account in self.story.holders:
            versions = [int(said["version"]) for said in self._changes(account)]
            assert sorted(announced[account]) == versions, account
            assert versions == list(range(versions[0], versions[0] + len(versions))) if versions else True, account

    def _records(self) -> None:
        """Orders that have ended say so everywhere; what the provider was asked twice is the same."""
        for account in self.story.holders:
            for said in self._changes(account):
                order = json.loads(said.get("order", "{}"))
                if order.get("order_status") in ("CLOSED", "CANCELLED"):
                    data = self.desk.data(said["order_id"])
                    assert (data["order_status"], data["net_profit"]) == (order["order_status"], order["net_profit"])
        asked: dict[str, dict[str, str]] = {}
        for request in self.desk.requests():
            request.pop("ts")
            assert asked.setdefault(request["request_id"], request) == request

    def _trail(self) -> None:
        """Nothing of the trail is lost, changed or torn, in Redis or in the file."""
        story = self.story
        environ = {"AUDIT_FOLDER": story.folder / "audit"} if story.has_file else {}
        log = story.folder / "verify.log"
        pid = story.nursery.start(["--redis", story.server.url, "audit", "verify"], environ, log)
        deadline_s = time.monotonic() + LIMIT_S
        while (code := story.nursery.code(pid)) is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
        assert code == 0, log.read_text()[-3_000:]


if __name__ == "__main__":
    nurse()
