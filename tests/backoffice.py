"""Writes keys as an existing back office does: spelled out by hand, so that these tests do not lean on `keys.py`."""

import time
from typing import Any

import redis

EURUSD = {"contract_size": "100000", "profit": "USD", "type": "1"}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class BackOffice:
    def __init__(self, client: redis.Redis) -> None:
        self.client: Any = client

    def quote(self, symbol: str, bid: object, ask: object, ts: object = None) -> None:
        mapping = {"bid": str(bid), "ask": str(ask), "ts": str(now_ms() if ts is None else ts)}
        self.client.hset(f"market:{symbol}", mapping=mapping)

    def group(self, symbol: str, name: str = "Standard", **terms: object) -> None:
        mapping = {**EURUSD, **{key: str(value) for key, value in terms.items()}}
        self.client.hset("groups:{" + name + "}:" + symbol, mapping=mapping)

    def account(self, account: str, **config: object) -> None:
        given = {"wallet_balance": "10000", "leverage": "100", "group": "Standard", "status": "1", **config}
        mapping = {key: str(value) for key, value in given.items() if value is not None}
        self.client.hset("user:{" + account + "}:config", mapping=mapping)

    def order(self, account: str, order_id: str, **order: object) -> None:
        user_type, user_id = account.split(":")
        given = {
            "order_id": order_id,
            "symbol": "EURUSD",
            "order_type": "BUY",
            "order_status": "OPEN",
            "execution_status": "EXECUTED",
            "order_price": "1.084",
            "order_quantity": "1.0",
            "user_type": user_type,
            "user_id": user_id,
            **order,
        }
        mapping = {key: str(value) for key, value in given.items() if value is not None}
        self.client.hset("user_holdings:{" + account + "}:" + order_id, mapping=mapping)
        self.client.sadd("user_orders_index:{" + account + "}", order_id)

    def portfolio(self, account: str) -> dict[str, str]:
        found = self.client.hgetall("user_portfolio:{" + account + "}")
        return {key.decode(): value.decode() for key, value in found.items()}

    def wish(self, mirror: Any, message: str) -> None:
        """Ask for a recalculation, and wait until this mirror has heard: the answer may be ahead of the message."""
        assert self.client.publish("portfolio_force_recalc", message) >= 1
        mirror._notices._ear.wait_for_reports()

    def eurusd_account(self, account: str = "live:1", **config: object) -> None:
        """A healthy account: one lot of EURUSD bought at 1.084, the market at 1.0845 / 1.08455."""
        self.group("EURUSD")
        self.quote("EURUSD", 1.0845, 1.08455)
        self.account(account, **config)
        self.order(account, "O1")
