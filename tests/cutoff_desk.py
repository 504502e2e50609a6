"""A trading desk whose daemon warns and closes, one tick at a time; keys are spelled out by hand, as in `trading`."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from copyrisk.cutoff_report import CutoffReport
from copyrisk.daemon import make_engine
from copyrisk.engine import Engine, TickReport
from tests.backoffice import now_ms
from tests.copying_desk import CopyDesk
from tests.trading import CONTRACT, decoded

EPISODES, NOTICES, TRAIL = "copyrisk:{cutoff}:episodes", "copyrisk:{cutoff}:notices", "copyrisk:{audit}:trail"
LEASE = "copyrisk:{cutoff}:lease"
_LONGEST_TICKS = 3  # two that hold, and one that acts
_COUNTS = ("warned", "breached", "recovered", "closes", "cancels", "refused", "protected", "cascades_finished")


class CutoffDesk(CopyDesk):
    """EURUSD at 1.00000 / 1.00000, so that one lot takes 1,000 USD of margin and a point of equity is a level of 0.1 %.

    Accounts are made with one open lot each: what they have left is their balance.
    """

    def __init__(self, server: Any, flow: str = "rock", **flags: object) -> None:
        mine = {"cutoff__lease_ms": 60_000, "cutoff__brake_min_accounts": 1_000}
        super().__init__(server, flow, **mine | flags)
        self.quote("1", "1")
        self._daemon: Engine | None = None

    # ---- the daemon

    @property
    def daemon(self) -> Engine:
        if self._daemon is None:
            self._daemon = self.new_daemon()
        return self._daemon

    def new_daemon(self, **options: Any) -> Engine:
        return make_engine(self.new_client(), self.settings, **options)

    def drop_daemon(self) -> None:
        """As if its process were gone: what it held in memory, and its lease."""
        self._daemon = None
        self.client.hset(LEASE, "ends_ms", 0)

    def step(self) -> CutoffReport:
        """What the next tick does; if the brake holds somebody back, that and the next one or two, added up.

        Quotes print again in between. Nothing may fail.
        """
        reports: list[CutoffReport] = []
        for _ in range(_LONGEST_TICKS):
            report = self.full_step()
            assert report.skipped is None and report.cutoff is not None and not report.cutoff.failure, report.cutoff
            reports.append(report.cutoff)
            if not report.cutoff.held:
                return together(reports)
            self.print_again()
        raise AssertionError(f"held for longer than two ticks: {reports}")

    def full_step(self) -> TickReport:
        return self.daemon.tick()

    def steps(self, count: int = 2) -> list[CutoffReport]:
        return [self.step() for _ in range(count)]

    def until_quiet(self, limit_s: float = 10.0) -> None:
        """Tick, with the workers at work, until nobody is being closed any more."""
        deadline_s = time.monotonic() + limit_s
        while True:
            self.settle()
            report = self.step()
            if not (report.liquidating or report.held or report.cascades_running):
                return
            assert time.monotonic() < deadline_s, report

    # ---- accounts

    def holder(self, account: str, balance: object, *orders: tuple[str, object], **config: object) -> str:
        """An account with a balance and positions of EURUSD bought at 1.0: (order id, lots), by default one lot."""
        self.account(account, str(config.pop("flow", self.flow)), balance, **config)
        for order_id, lots in orders or ((f"O-{account.replace(':', '-')}", "1"),):
            self.position(account, order_id, lots)
        return account

    def position(self, account: str, order_id: str, lots: object = "1", price: object = "1", **order: object) -> None:
        said = decoded(self.client.hgetall(f"user:{{{account}}}:config"))
        symbol, size = str(order.get("symbol", "EURUSD")), Decimal(str(lots)) * CONTRACT
        given = {
            "execution": {"rock": "local", "barclays": "provider"}[said["sending_orders"]],
            "margin": f"{size / Decimal(said['leverage']):.2f}" if Decimal(said["leverage"]) else "0",
            "contract_value": f"{size:f}",
            "commission": "0",
            "swap": "0",
            "created_at": "2026-01-05T10:00:00.000Z",
            **order,
        }
        self.office.order(account, order_id, order_quantity=lots, order_price=price, **given)
        self.client.hset(
            f"order_data:{order_id}", mapping=self.client.hgetall(f"user_holdings:{{{account}}}:{order_id}")
        )
        self.client.sadd(f"symbol_holders:{symbol}:{account.partition(':')[0]}", account)

    def price(self, mid: object, symbol: str = "EURUSD") -> None:
        """A quote without a spread."""
        self.quote(mid, mid, symbol)

    def print_again(self) -> None:
        """Every quote comes again, as it is."""
        for key in self.client.keys("market:*"):
            self.client.hset(key, "ts", max(int(self.client.hget(key, "ts")) + 1, now_ms()))

    # ---- what stands there

    def open_lots(self, account: str) -> Decimal:
        orders = [self.order(account, order_id) for order_id in self.index(account)]
        return sum((Decimal(order["order_quantity"]) for order in orders), Decimal(0))

    def is_flat(self, account: str) -> bool:
        return not self.index(account)

    def notices(self) -> list[dict[str, Any]]:
        return [{**notice, "said": json.loads(notice["said"])} for notice in self.entries(NOTICES)]

    def warned(self) -> list[str]:
        return [f"{notice['user_type']}:{notice['user_id']}" for notice in self.notices()]

    def episode(self, account: str) -> dict[str, Any]:
        stored = self.client.hget(EPISODES, account)
        return {} if stored is None else dict(json.loads(stored))

    def trail(self, kind: str = "", account: str = "") -> list[dict[str, Any]]:
        found = [json.loads(next(iter(said.values()))) for _, said in self.client.xrange(TRAIL)]
        return [one for one in found if kind in ("", one["kind"]) and account in ("", one["account"])]

    def closes(self, account: str) -> list[dict[str, str]]:
        """The closes that were stored, from the account's own audit."""
        return [entry for entry in self.audit(account) if entry.get("change", "").startswith("close")]


def together(reports: Sequence[CutoffReport]) -> CutoffReport:
    """Some ticks as one: what they did added up, all else as after the last."""
    counts = {name: sum(getattr(report, name) for report in reports) for name in _COUNTS}
    delays = [delay for report in reports for delay in report.delayed_ticks]
    return replace(reports[-1], delayed_ticks=delays, **counts)
