"""A desk whose master is copied, and whoever carries out cascades: what must be true of them whatever happened.

Keys are spelled out by hand, as in `trading`.
"""

import json
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from copyrisk import crash, layout
from copyrisk.audit import Entry
from copyrisk.book import Book
from copyrisk.cascading import Cascader
from copyrisk.dispatch import Dispatcher
from copyrisk.identifiers import parse_account
from copyrisk.store import library
from copyrisk.store.appraisal import Appraiser
from copyrisk.store.effects import Effects
from copyrisk.store.filler import Filler
from copyrisk.store.lease import Lease
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe
from tests.copying_desk import MASTER, CopyDesk, Died
from tests.trading import assert_books, decoded

EVENT = "cascade-1"
#: Points at which a process may die that begins a cascade or carries it out.
POINTS = (
    *("cascade.recorded", "cascade.begun", "cascade.noted", "worker.decided", "worker.changed", "worker.delivered"),
    *("cascade.closed", "cascade.ending", "cascade.ended"),
)
SAID = {"level_pct": 9.5, "cause": "stop_out"}


class CascadeDesk(CopyDesk):
    """A desk with processes that carry out cascades; each has its own connections and lease."""

    def __init__(self, server: Any, flow: str = "rock", **flags: object) -> None:
        super().__init__(server, flow, **flags)
        self.entries_recorded: list[Entry] = []
        self._cascader: Cascader | None = None

    def new_cascader(self, *, hold_ms: int = 60_000, limit_ms: int = 300_000, owner: str = "first") -> Cascader:
        client, settings = self.new_client(), self.settings
        library.load(client)
        pipe, rules = Pipe(client), settings.rules()
        effects, filler = Effects(pipe, events_limit=100_000, keeps_history=False), Filler(pipe, None)
        markets = Markets(pipe, filler, rules, settings.hours(), settings.lots())
        dispatcher = Dispatcher(pipe, Appraiser(markets, rules), effects, filler)
        lease = Lease(pipe, "cutoff", owner, hold_ms)
        figures = np.zeros(0, layout.FIGURES)
        return Cascader(
            pipe,
            dispatcher,
            Book(rules),
            lease,
            figures=lambda: figures,
            record=self.entries_recorded.extend,
            limit_ms=limit_ms,
        )

    @property
    def cascader(self) -> Cascader:
        self._cascader = self._cascader or self.new_cascader()
        return self._cascader

    def drop_cascader(self) -> None:
        """As if its process were gone: what it held in memory, and its lease."""
        self._cascader = None
        self.client.delete("copyrisk:{cutoff}:lease")

    def begin(self, event: str = EVENT, master: str = MASTER) -> str:
        return self.cascader.begin(parse_account(master), event, SAID)

    def cascade(self, limit_s: float = 10.0, *, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Carry on until nothing is running; what waits is asked at once."""
        deadline_s = time.monotonic() + limit_s
        while self.step().running:
            assert time.monotonic() < deadline_s, f"it was not done in time: {self.standings()}"
            meanwhile()

    def step(self, *, cascader: Cascader | None = None) -> Any:
        """A step of everything that is not at its end, however often it was tried."""
        chosen = cascader or self.cascader
        for running in chosen._running.values():
            for chase in running.chases.values():
                chase.due_s = 0.0
        return chosen.step(0.0)

    def begin_and_cascade(self, event: str = EVENT, *, meanwhile: Callable[[], object] = lambda: None) -> None:
        if self.begin(event) == "started" or self.running():
            self.cascade(meanwhile=meanwhile)

    def crash_in_cascade(
        self, patch: pytest.MonkeyPatch, point: str, times: int = 1, meanwhile: Callable[[], object] = lambda: None
    ) -> bool:
        """A process dies when it reaches a point for the n-th time; whether it got there."""
        left = [times]

        def reach(name: str) -> None:
            if name == point:
                left[0] -= 1
                if not left[0]:
                    raise Died(name)

        died = False
        with patch.context() as patched:
            patched.setattr(crash, "reach", reach)
            try:
                self.begin_and_cascade(meanwhile=meanwhile)
            except Died:
                died = True
        self.drop_cascader()
        return died

    # ---- what stands there

    def running(self) -> dict[str, str]:
        return decoded(self.client.hgetall("copyrisk:{cutoff}:cascades"))

    def stored(self, event: str = EVENT) -> dict[str, str]:
        return decoded(self.client.hgetall(f"copyrisk:{{cutoff}}:cascade:{event}"))

    def standings(self, event: str = EVENT) -> dict[str, Any]:
        found = {name[1:]: said for name, said in self.stored(event).items() if name.startswith(":")}
        return {name: json.loads(said) if said else {"s": "waiting"} for name, said in found.items()}

    def stages(self, event: str = EVENT) -> dict[str, str]:
        return {name: said["s"] for name, said in self.standings(event).items()}

    def summary(self, event: str = EVENT) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stored(event)["summary"])
        return found

    def closes_of(self, follower: str) -> list[dict[str, str]]:
        """Orders of a follower that a close ended or made smaller, one for each change."""
        changed = [json.loads(event["order"]) for event in self.events(user_id=follower, event="done")]
        return [order for order in changed if order["order_status"] == "CLOSED"]


def assert_ended(desk: CascadeDesk, frozen: Sequence[str], event: str = EVENT) -> None:
    """Every follower of the list has one end, the records say what the events say, and nothing was closed twice."""
    stages, summary = desk.stages(event), desk.summary(event)
    assert stages.keys() == set(frozen)
    assert set(stages.values()) <= {"done", "flat", "failed"}
    for stage in ("done", "flat", "failed"):
        assert summary[stage] == sum(one == stage for one in stages.values())
    assert not desk.running()
    for name, said in desk.standings(event).items():
        if said["s"] != "done":
            continue
        closes = {order["order_id"]: order for order in desk.closes_of(name)}
        assert len(closes) == len(desk.closes_of(name)), "closed twice"
        own = {order_id: order for order_id, order in closes.items() if order_id in said["o"]}
        result = sum((Decimal(order["net_profit"]) for order in own.values()), Decimal(0))
        before = sum((Decimal(net) for order_id, (_, net) in said["o"].items() if order_id in own), Decimal(0))
        assert said["n"] == [len(own), len(said["o"]) - len(own), 0]
        assert Decimal(said["u"]) == result - before
    assert_books(desk)
