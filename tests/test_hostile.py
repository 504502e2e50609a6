"""A database in which anything may be wrong: nothing raises, nothing healthy changes, every loss has a reason."""

import random
from typing import Any

import pytest

from copyrisk._core import LadderState
from copyrisk.book import Book
from copyrisk.engine import Engine
from copyrisk.errors import is_known
from copyrisk.hours import MarketHours
from copyrisk.rules import ValuationRules
from copyrisk.store.connection import connect
from tests.backoffice import BackOffice, now_ms

ACCOUNTS = 40
ROUNDS = 12
JUNK = [
    *(b"", b"0", b"-0", b"-1", b"nan", b"inf", b"-inf", b"1e5", b"1_000", b"+1", b" 1", b"1 ", b"0x1", b"1.", b".1"),
    *(b"1" * 40, b"9" * 18, b"0." + b"0" * 17 + b"1", "٣".encode(), b"\x00", b"\xff\xfe", b"\r\n$-1\r\n", b"a}:{b"),
    *(b"EURUSD\n", b"x" * 100_000, b"OPEN", b"CLOSED", b"BUY", b"SELL", b"JPY", b"4", b"Standard", b"null", b"None"),
]


def corrupt(client: Any, key: bytes, dice: random.Random) -> None:
    """Do something bad to one key, whatever its type."""
    act = dice.randrange(8)
    if act == 0:
        client.delete(key)
    elif act == 1:
        client.delete(key)
        client.set(key, dice.choice(JUNK))
    elif act == 2:
        client.delete(key)
        client.rpush(key, *dice.sample(JUNK, 3))
    elif client.type(key) == b"hash":
        field = dice.choice(client.hkeys(key) or [b"x"])
        if act == 3:
            client.hdel(key, field)
        else:
            client.hset(key, field, dice.choice(JUNK))
    elif client.type(key) == b"set":
        client.sadd(key, dice.choice(JUNK) or b"empty")


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_written_healthy_accounts_stay_and_others_have_a_reason(redis_server: Any, seed: int) -> None:
    dice, client = random.Random(seed), redis_server.client()
    office = BackOffice(client)
    office.group("EURUSD")
    office.group("EURGBP", profit="GBP")
    office.group("BTCUSD", type="4", contract_size="1", crypto_margin_factor="2")
    office.group("XAUUSD", type="2", contract_size="100")
    for number in range(ACCOUNTS):
        office.account(f"live:{number}")
        for order in range(3):
            symbol = dice.choice(["EURUSD", "EURGBP", "BTCUSD"])
            office.order(
                f"live:{number}", f"O{number}_{order}", symbol=symbol, order_price="1.1", order_quantity="0.01"
            )
    office.account("demo:witness")
    office.order("demo:witness", "W", symbol="XAUUSD", order_price="2399", order_quantity="0.1")
    safe = {b"user:{demo:witness}:config", b"user_orders_index:{demo:witness}", b"user_holdings:{demo:witness}:W"}
    safe |= {b"market:XAUUSD", b"groups:{Standard}:XAUUSD"}
    client_of_engine = connect(redis_server.url, connect_timeout_ms=1000, reply_timeout_ms=5000)
    engine = Engine(client_of_engine, Book(ValuationRules()), MarketHours(always_open=True), 200)
    for round_ in range(ROUNDS):
        stamp = now_ms()
        for symbol, bid, ask in (
            ("EURUSD", 1.1, 1.1001),
            ("EURGBP", 0.85, 0.8501),
            ("BTCUSD", 60000, 60010),
            ("GBPUSD", 1.27, 1.2701),
        ):
            if client.type(f"market:{symbol}") in (b"hash", b"none") and round_ % 3 == 0:
                office.quote(symbol, bid, ask, stamp)
        office.quote("XAUUSD", 2400, 2400.5, stamp)
        targets = [
            key for key in client.keys("*") if key not in safe and not key.startswith((b"user_portfolio", b"copyrisk"))
        ]
        for key in dice.sample(targets, min(len(targets), 8)):
            corrupt(client, key, dice)
        report = engine.tick()
        assert report.skipped is None
        check(engine, office)
    assert report.unknown_by_reason, "nothing was corrupted: the test tests nothing"


def check(engine: Engine, office: BackOffice) -> None:
    for row in engine.book.account_rows().tolist():
        account = engine.book.account_at(row)
        figure, portfolio = engine.figures[row], office.portfolio(str(account))
        if str(account) == "demo:witness":
            assert figure["state"] == LadderState.HEALTHY
            assert (portfolio["equity"], portfolio["calc_status"]) == ("10010.0", "ok")
        elif is_known(figure["code"]):
            assert figure["state"] != LadderState.STATE_UNKNOWN
            assert portfolio["calc_status"] in ("ok", "degraded")
            assert all(
                set(portfolio[name]) <= set("0123456789.-") for name in ("equity", "margin_level", "used_margin")
            )
        else:
            assert figure["state"] == LadderState.STATE_UNKNOWN
            assert portfolio["calc_status"] in ("error", "degraded")
            assert portfolio["degraded_fields"]
