"""A trading desk whose master is copied: followers, an engine that is stepped by hand, what its books must say.

Keys are spelled out by hand, as in `trading`.
"""

import json
import time
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from copyrisk import crash
from copyrisk.replicator import Replicator
from copyrisk.roles import make_replicator
from copyrisk.store.decisions import Decision, Decisions
from copyrisk.store.pipe import Pipe
from tests.trading import Desk, assert_books, decoded

MASTER = "strategy_provider:M"
STREAM = "copyrisk:replications"
#: Points of the engine at which a process may die; those of the following of copies come with every close.
MAKING = (
    *("replicator.taken", "replicator.decided", "copies.batch", "copies.made", "copies.effects", "copies.followed"),
    *("replicator.finished", "replicator.acknowledged"),
)
FOLLOWING = (
    *("replicator.taken", "keeper.aimed", "worker.decided", "worker.changed", "worker.delivered", "keeper.followed"),
    "replicator.acknowledged",
)


class Died(BaseException):
    """What ends an engine in the middle of its work: nothing may catch it."""


class CopyDesk(Desk):
    """A desk with master M, whose orders are copied; with `flow` that of master and followers."""

    def __init__(self, server: Any, flow: str = "rock", master_balance: object = "100000", **flags: object) -> None:
        mine = {"retry_ms": 10, "limits_check_ms": 10, "lease_ms": 60_000}
        super().__init__(server, **{f"replication__{name}": value for name, value in mine.items()} | flags)
        self.flow = flow
        self.account(MASTER, flow, master_balance)
        self._replicator: Replicator | None = None
        self._reported: set[str] = set()
        self._decisions = Decisions(Pipe(self.new_client()))

    def follower(self, name: str, balance: object = "10000", master: str = "M", **config: Any) -> str:
        """An account that copies the master."""
        said = {"flow": self.flow, "copy_status": "active", **config}
        account = self.account(f"copy_follower:{name}", str(said.pop("flow")), balance, **said)
        self.client.sadd(f"copy_master_followers:{master}:active", name)
        return account

    def followers(self, count: int, balance: object = "10000") -> list[str]:
        return [self.follower(f"F{i}", balance) for i in range(count)]

    def configure(self, account: str, **config: object) -> None:
        """Change a configuration; `None` takes a field away."""
        key = f"user:{{{account}}}:config"
        for name, value in config.items():
            if value is None:
                self.client.hdel(key, name)
            else:
                self.client.hset(key, name, str(value))

    # ---- the engine

    def new_replicator(self) -> Replicator:
        made = make_replicator(self.new_client(), self.settings)
        made._consumer.join()
        return made

    @property
    def replicator(self) -> Replicator:
        self._replicator = self._replicator or self.new_replicator()
        return self._replicator

    def drop_replicator(self) -> None:
        """As if its process were gone: what it held in memory, and its lease."""
        self._replicator = None
        self.client.delete("copyrisk:{replicator}:lease")

    def replicate(self, limit_s: float = 10.0) -> None:
        """Have the engine and the workers do what there is, until nothing is left."""
        deadline_s = time.monotonic() + limit_s
        self.look_around()
        while self.client.xlen(STREAM) or self.waiting():
            assert time.monotonic() < deadline_s, "it was not done in time"
            self.settle()
            if self.client.xlen(STREAM):
                self.replicator.step(1)
        self.look_around()

    def look_around(self) -> None:
        """A step that takes over what others left, looks, asks copies that wait; it does not wait for new entries.

        A server that has nothing else to do wakes who waits for 1 ms after as much as 100 ms. Copies that wait are
        asked however often they were asked before: a test must not hang on which machine is how fast.
        """
        self.let_time_pass()
        self.replicator._owes_pending = True
        self.replicator.step(1)

    def replicate_until_settled(self, limit_s: float = 10.0) -> None:
        """The same, until no copy waits to follow."""
        deadline_s = time.monotonic() + limit_s
        while True:
            self.replicate()
            if not self.waiting_copies():
                return
            assert time.monotonic() < deadline_s, f"copies wait: {self.waiting_copies()}"

    def let_time_pass(self) -> None:
        """Have copies that wait asked now, however often they were asked before."""
        self.replicator._keeper._due_s.update(dict.fromkeys(self.replicator._keeper._due_s, 0.0))
        self.replicator._keeper._checked_s = 0.0

    def crash_at(self, patch: pytest.MonkeyPatch, point: str, times: int = 1) -> None:
        """The engine dies when it reaches a point for the n-th time; another one goes on."""
        left = [times]

        def reach(name: str) -> None:
            if name == point:
                left[0] -= 1
                if not left[0]:
                    raise Died(name)

        with patch.context() as patched:
            patched.setattr(crash, "reach", reach)
            with pytest.raises(Died):
                self.replicate()
        self.drop_replicator()

    # ---- the master

    def open_master(self, order_id: str = "O", lots: object = "1", order_type: str = "BUY", **more: object) -> Any:
        """Have the master open an order (pending, if it has a price), and copies be made."""
        if "_" in order_type:
            answer = self.pend(MASTER, order_id, order_type, more.pop("price"), lots, **more)
        else:
            answer = self.open(MASTER, order_id, order_type, lots, **more)
        assert answer["code"] == "ok", answer
        self.replicate()
        return answer

    def master_does(self, kind: str, order_id: str = "O", **more: object) -> Any:
        answer = self.do(kind, MASTER, order_id=order_id, **more)
        assert answer["code"] == "ok", answer
        self.replicate()
        return answer

    def close_master(self, lots: object = None, order_id: str = "O") -> Any:
        return self.master_does("close", order_id, **({} if lots is None else {"order_quantity": lots}))

    # ---- the provider

    def unanswered(self, account: str = "", action: str = "") -> list[dict[str, str]]:
        """Requests that nothing was reported of, each once however often it was sent."""
        every = {request["request_id"]: request for request in self.requests()}
        return [
            request
            for request_id, request in every.items()
            if request_id not in self._reported
            and action in ("", request["action"])
            and account in ("", f"{request['user_type']}:{request['user_id']}")
        ]

    def provider_says(
        self, status: str, account: str = "", action: str = "", filled: object = None, **more: Any
    ) -> int:
        """Report the same of all requests that wait for it; the engine is not asked."""
        chosen = self.unanswered(account, action)
        for request in chosen:
            lots = filled if filled is not None else request["order_quantity"] if status == "filled" else "0"
            price = more.get("price", "1.08455" if request["side"] == "BUY" else "1.0845")
            if status != "accepted" or request["action"] in ("modify", "cancel"):
                self._reported.add(request["request_id"])
            self.report(
                request, status, int(more.get("sequence", 1)), lots, average_price=price if lots != "0" else "0"
            )
        self.settle()
        return len(chosen)

    # ---- what stands there

    def copies(self, order_id: str = "O") -> dict[str, dict[str, str]]:
        """Copies of an order that are open or wait, by follower; none has two."""
        found: dict[str, dict[str, str]] = {}
        for key in self.client.keys("user_holdings:{copy_follower:*"):
            order = decoded(self.client.hgetall(key))
            if order.get("master_order_id") == order_id:
                assert order["user_id"] not in found, "copied twice"
                found[order["user_id"]] = order
        return found

    def lots(self, order_id: str = "O") -> dict[str, Decimal]:
        return {follower: Decimal(order["order_quantity"]) for follower, order in sorted(self.copies(order_id).items())}

    def said(self, name: str, order_id: str = "O") -> set[str]:
        """What the copies say in a field; the empty text for who does not have it."""
        return {order.get(name, "") for order in self.copies(order_id).values()}

    def decision(self, order_id: str = "O") -> Decision:
        found = self._decisions.load(order_id)
        assert found is not None, f"nothing was decided: {self.entries('copyrisk:dead_letters')}"
        return found

    def results(self, order_id: str = "O") -> dict[str, str]:
        """What came of each follower."""
        found = self.decision(order_id)
        assert found.made is not None, "it was decided, and not carried out"
        names = found.rows["follower"].tolist()
        return {
            name.decode("latin-1"): result.decode()
            for name, result in zip(names, found.made["result"].tolist(), strict=True)
        }

    def result(self, follower: str = "F", order_id: str = "O") -> str:
        return self.results(order_id)[follower]

    def waiting_copies(self) -> dict[str, Any]:
        return {own: json.loads(said) for own, said in decoded(self.client.hgetall("copyrisk:waiting_copies")).items()}

    def tallies(self, master: str = "M") -> dict[str, int]:
        found = decoded(self.client.hgetall(f"copyrisk:replication:{master}"))
        return {name: int(value) for name, value in found.items()}

    def copies_ever(self, order_id: str = "O") -> dict[str, str]:
        """Ids of the copies that were ever made of an order, by follower, from what was announced."""
        found: dict[str, str] = {}
        for event in self.events(type="copy", event="done"):
            order = json.loads(event["order"])
            if order["master_order_id"] == order_id:
                assert found.setdefault(event["user_id"], event["order_id"]) == event["order_id"], "copied twice"
        return found

    def letters(self) -> list[str]:
        return [letter["code"] for letter in self.entries("copyrisk:dead_letters")]


def ratio_lots(master_lots: object, master_equity: object, follower_equity: object) -> Decimal:
    """Lots of a copy in steps of 0.01, by the contract's formula in exact numbers."""
    steps = Fraction(str(master_lots)) * 100 * Fraction(str(follower_equity)) / Fraction(str(master_equity))
    return Decimal(int(steps)).scaleb(-2)


def assert_replicated(desk: CopyDesk, *order_ids: str) -> None:
    """Each pair of order and follower has exactly one copy or one reason, and all that follows from copies is there."""
    for order_id in order_ids or ("O",):
        results = desk.results(order_id)
        announced = desk.copies_ever(order_id)
        copied = {follower for follower, result in results.items() if result == "copied"}
        assert announced.keys() == copied
        assert desk.copies(order_id).keys() <= copied
        for follower, own in announced.items():
            record = desk.record(f"copy_follower:{follower}", own)
            assert record["made"] > 0
            assert desk.data(own)["master_order_id"] == order_id
        made = desk.decision(order_id).made
        assert made is not None
        assert (made["version"][made["result"] == b"copied"] > 0).all()
    _assert_requests(desk)
    assert_books(desk)


def _assert_requests(desk: CopyDesk) -> None:
    """Of each order the provider was asked what its record says; whatever was sent twice says the same."""
    asked: dict[str, dict[str, str]] = {}
    for request in desk.requests():
        request.pop("ts")
        assert asked.setdefault(request["request_id"], request) == request
    for account in desk.accounts():
        for order_id in desk.index(account):
            if not desk.client.exists(f"copyrisk:{{{account}}}:order:{order_id}"):
                continue
            for request_id, action, _, _, lots, *_ in desk.record(account, order_id)["requests"]:
                request = asked[request_id]
                assert (request["action"], request["order_id"]) == (action, order_id)
                assert f"{request['user_type']}:{request['user_id']}" == account
                assert Decimal(request["order_quantity"]) == Decimal(lots)


def names(accounts: Sequence[str]) -> set[str]:
    return {account.partition(":")[2] for account in accounts}
