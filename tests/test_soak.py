"""Back offices that write while the daemon ticks: nothing is missed, nothing reported is called an error."""

import multiprocessing
import random
import time
from typing import Any

import numpy as np
import pytest
import redis

from copyrisk import engine as engine_module
from copyrisk import identifiers
from copyrisk.book import Book
from copyrisk.engine import Engine
from copyrisk.hours import MarketHours
from copyrisk.rules import ValuationRules
from copyrisk.store.connection import connect
from tests.backoffice import BackOffice
from tests.books import OPEN

_ACCOUNTS, _SECONDS, _WRITERS = 300, 6.0, 2
_SYMBOLS = ("EURUSD", "GBPUSD", "EURGBP", "NOFEED")


def write_at_random(url: str, until_s: float, seed: int, kill: bool) -> None:
    """A back office of its own process: orders, balances, groups, terms, accounts that come and go."""
    office, dice = BackOffice(redis.Redis.from_url(url)), random.Random(seed)
    while time.time() < until_s:
        account, order_id = f"live:{dice.randrange(_ACCOUNTS)}", f"N{dice.randrange(6)}"
        lots, what = f"{dice.randrange(1, 50) / 100:.2f}", dice.random()
        if what < 0.4:
            office.order(account, order_id, symbol=dice.choice(_SYMBOLS), order_price="1.1", order_quantity=lots)
        elif what < 0.6:
            office.client.srem("user_orders_index:{" + account + "}", order_id)
            office.client.delete("user_holdings:{" + account + "}:" + order_id)
        elif what < 0.8:
            office.account(account, wallet_balance=lots, group=dice.choice(["Standard", "VIP"]))
        elif what < 0.85:
            office.group("EURUSD", "VIP", contract_size=dice.choice(["1000", "50000"]))
        elif what < 0.9:
            office.client.delete("user:{" + account + "}:config")
        elif what < 0.9005 and kill:
            for victim in office.client.client_list():
                if victim["name"] == "copyrisk":
                    office.client.client_kill_filter(_id=victim["id"])


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["lasting", "breaking"])
def test_a_mirror_under_fire_ends_up_equal(redis_server: Any, monkeypatch: Any, kill: bool) -> None:
    monkeypatch.setattr(engine_module, "_REREAD_WITHIN_S", 1.0)  # prove itself sixty times as often
    office = BackOffice(redis_server.client())
    for symbol in ("EURUSD", "GBPUSD", "EURGBP"):
        office.group(symbol, profit="GBP" if symbol == "EURGBP" else "USD")
        office.quote(symbol, "1.1", "1.2")
    for number in range(_ACCOUNTS):
        office.account(f"live:{number}")
    client = connect(redis_server.url, connect_timeout_ms=1000, reply_timeout_ms=5000)
    engine = Engine(client, Book(ValuationRules()), MarketHours(always_open=True), 20)
    until_s = time.time() + _SECONDS
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=write_at_random, args=(redis_server.url, until_s, seed, kill))
        for seed in range(_WRITERS)
    ]
    for writer in writers:
        writer.start()
    done = voids = 0
    while any(writer.is_alive() for writer in writers):
        report = engine.tick()
        voids += report.skipped is not None
        done += report.skipped is None
        time.sleep(0.01)
    while (report := engine.tick()).skipped is not None:
        pass
    engine.tick()
    assert done > 50
    assert (voids > 0) == kill
    assert (report.repaired, report.inconsistent) == (0, 0)
    assert_equal_to_one_that_starts(engine, redis_server.url)
    engine.close()


def assert_equal_to_one_that_starts(engine: Engine, url: str) -> None:
    client = connect(url, connect_timeout_ms=1000, reply_timeout_ms=5000)
    fresh = Engine(client, Book(ValuationRules()), MarketHours(always_open=True), 20)
    at_ms = time.time_ns() // 1_000_000
    for each in (engine, fresh):
        each._mirror.read(0.0)
        each._valuer.value(at_ms, OPEN)
    ours, theirs = engine.book, fresh.book
    names = {str(theirs.account_at(row)): row for row in theirs.account_rows().tolist()}
    assert {str(ours.account_at(row)) for row in ours.account_rows().tolist()} == set(names)
    assert len(ours.order_ids) == len(theirs.order_ids) > 0
    for name, row in names.items():
        found, wanted = engine.figures[ours.row_of(identifiers.parse_account(name))], fresh.figures[row]
        assert (found["state"], found["code"]) == (wanted["state"], wanted["code"]), name
        if found["state"]:
            np.testing.assert_allclose(found["equity"], wanted["equity"], rtol=1e-9, atol=1e-6)
    fresh.close()
