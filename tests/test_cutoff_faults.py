"""Faults, on real servers: none may close a position of a healthy account, and none may make autocutoff blind.

The accounts of the house are healthy and near enough to their thresholds that any figure taken wrongly would close
them. After each fault, and wherever it leaves that to be known while it lasts, an account that is really critical is
liquidated within two ticks. Keys are spelled out by hand, as in `trading`.
"""

import itertools
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copyrisk.engine import Engine
from tests.chain import free_port
from tests.cutoff_desk import EPISODES, LEASE, NOTICES, TRAIL, CutoffDesk
from tests.fault_house import CASCADES, HEAD, KILLS, QUOTES, Behind, Daemons, House, Machine, Pair, at
from tests.postbox import bad_server
from tests.trading import process, until

#: What is no number, no word and no name of any grammar that such a name would have to keep to mean something.
GARBAGE = (
    "",
    "zzz",
    "nan",
    "inf",
    "-inf",
    "1e5",
    "9e99",
    "0x10",
    "1_000",
    "\x00\xff",
    "9" * 400,
    "[" * 3_000,
    "é",
    "- 1",
    "None",
)


def seldom(*values: Any) -> list[Any]:
    """Cases that add little to those that are always looked at."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture
def house(bundled_server: Any) -> House:
    made = House(bundled_server)
    made.tick(2)
    made.assert_untouched()
    made.keep()
    return made


def test_the_house_is_on_the_edge(house: House) -> None:
    """A tenth of the equity less, and everybody would be closed: what the tests below rest on."""
    for account in house.healthy:
        house.condemn(account)
    house.configure("demo:winner", wallet_balance="-9950")
    for account in ("live:hedged", "live:jpy", "live:gbp"):
        house.configure(account, wallet_balance={"live:hedged": "-450", "live:jpy": "250", "live:gbp": "1290"}[account])
    house.tick(4)  # they are many: the brake holds them until quotes come again
    assert house.closed() == house.healthy.keys()


# ---- keys that are gone

BOOKS = {
    "configurations": "user:*",
    "indexes": "user_orders_index:*",
    "orders": "user_holdings:*",
    "one order": "user_holdings:{live:hedged}:H2",
    "one index": "user_orders_index:{live:hedged}",
    "one configuration": "user:{demo:winner}:config",
    "quotes": "market:*",
    "one quote": "market:EURUSD",
    "one conversion": "market:GBPUSD",
    "terms": "groups:*",
}
OWN = {
    "portfolios": "user_portfolio:*",
    "episodes": EPISODES,
    "notices": NOTICES,
    "trail": TRAIL,
    "head": HEAD,
    "cascades": CASCADES,
    "tick": "copyrisk:tick",
    "ledgers": "copyrisk:*:ledger",
    "audits": "copyrisk:*:audit",
    "copies": "order_data:*",
    "holders": "symbol_holders:*",
}


_SELDOM_BOOKS = ("orders", "one index", "one configuration", "one quote")


@pytest.mark.parametrize("what", [what for what in BOOKS if what not in _SELDOM_BOOKS] + seldom(*_SELDOM_BOOKS))
def test_what_is_deleted_closes_nobody(house: House, what: str) -> None:
    """Who became critical meanwhile is closed once that is known."""
    first, second = house.spare(), house.spare()
    house.tick()
    house.keep()
    assert house.delete(BOOKS[what])
    house.tick(prints=not BOOKS[what].startswith("market"))
    house.condemned.add(first)
    house.tick(2, prints=not BOOKS[what].startswith("market"))
    house.assert_nobody_else_closed()
    house.mend()  # and with all else what the account has by now
    house.assert_sees(second)
    assert house.is_flat(first)


def test_everything_is_deleted_and_put_back(house: House) -> None:
    first, second = house.spare(), house.spare()
    house.tick()
    house.keep()
    house.client.flushall()
    house.tick()
    house.condemned.add(first)
    house.tick(2)
    house.mend()
    house.tick(3)  # to find the accounts again, to find that the lease is gone, to close
    assert house.is_flat(first)
    house.assert_sees(second)


_SELDOM = ("notices", "cascades", "tick", "audits", "holders")


@pytest.mark.parametrize("what", [what for what in OWN if what not in _SELDOM] + seldom(*_SELDOM))
def test_what_we_keep_is_deleted_and_nothing_comes_of_it(house: House, what: str) -> None:
    first, second = house.spare(), house.spare()
    house.tick(2)
    house.assert_sees(first)
    house.delete(OWN[what])
    house.condemn(second)
    house.tick(2)
    assert house.is_flat(second)
    house.assert_sees()


@pytest.mark.parametrize("key", [LEASE, NOTICES, TRAIL, *seldom(EPISODES, HEAD, CASCADES, KILLS, "copyrisk:tick")])
def test_what_we_keep_is_of_another_type_and_closes_nobody(house: House, key: str) -> None:
    """What can serve nobody is set aside; if it cannot be, nobody acts until it is mended."""
    first, second = house.spare(), house.spare()
    house.tick()
    house.client.delete(key)
    house.client.set(key, "x")
    house.condemn(first)
    house.tick(4)
    assert house.is_flat(first) is (key not in (LEASE, TRAIL, HEAD))
    house.assert_untouched()
    house.client.delete(key)
    house.tick(2)
    assert house.is_flat(first)
    house.assert_sees(second)


def test_nobody_holds_a_lease_for_longer_than_any_lease_is(house: House) -> None:
    far = {"owner": "another", "token": "1", "ends_ms": 99_999_999_999_999, "hold_ms": 99_999_999_999_999}
    house.drop_daemon()
    house.client.hset(LEASE, mapping=far)
    house.tick(2)
    house.assert_sees()


@pytest.mark.parametrize("how", ["deleted", "ended by a clock that went ahead"])
def test_a_lost_lease_is_taken_again_at_once(house: House, how: str) -> None:
    house.office.group("NZDUSD")
    house.price("0.65", "NZDUSD")
    house.account("live:nzd", "rock", "4000")
    house.position("live:nzd", "N", price="0.65", symbol="NZDUSD")
    house.tick(2)
    if how == "deleted":
        house.client.delete(LEASE)
    else:
        house.client.hset(LEASE, "ends_ms", 1)
    house.condemned.add("live:nzd")
    house.price("0.6105", "NZDUSD")  # -3,950 of 4,000
    house.tick(2)
    assert house.is_flat("live:nzd")
    house.assert_sees()


def test_a_lease_of_a_clock_that_went_back_is_taken_again(house: House) -> None:
    """It ends in hours, which is later than any lease: nobody knows how old it is."""
    house.client.hset(LEASE, mapping={"ends_ms": 9_999_999_999_999, "owner": "another", "token": "1"})
    house.drop_daemon()
    house.client.hset(LEASE, "ends_ms", 9_999_999_999_999)
    house.assert_sees()


@pytest.mark.parametrize("seed", [1, *seldom(*range(2, 12))])
def test_keys_broken_at_random(house: House, seed: int) -> None:
    """Deleted, of another type, or with garbage in a field: of all keys, one after the other, again and again."""
    dice = random.Random(seed)
    house.tick(2)
    house.keep()
    for _ in range(60):
        keys = sorted(house.client.keys("*"))
        for key in dice.sample(keys, k=dice.choice([1, 1, 3])):
            _break(house.client, key, dice)
        house.tick(prints=dice.random() < 0.7)
        house.assert_nobody_else_closed()
        if dice.random() < 0.3:
            house.mend()
    house.client.delete(LEASE)
    house.mend()
    house.drop_daemon()
    house.tick(2)
    house.assert_sees()


def _break(client: Any, key: bytes, dice: random.Random) -> None:
    how, kind = dice.random(), client.type(key)
    if key == b"copyrisk:events":
        return  # tells what was closed
    if how < 0.4:
        client.delete(key)
    elif kind == b"hash" and how < 0.8:
        client.hset(key, dice.choice(sorted(client.hkeys(key))), dice.choice(GARBAGE))
    else:
        client.delete(key)
        client.set(key, "x") if kind != b"string" else client.sadd(key, "x")


# ---- garbage in fields

CONFIG = ("wallet_balance", "leverage", "group", "auto_cutoff_level", "auto_liquidation_level", "status", "is_active")
ORDER = (
    *("order_id", "symbol", "order_type", "order_status", "execution_status", "order_price", "order_quantity"),
    *("margin", "contract_value", "commission", "swap", "stop_loss", "take_profit", "execution", "user_id"),
)
FIELDS = [
    *(("user:{*}:config", name) for name in (*CONFIG, "sending_orders", "copy_status", "email")),
    *(("user_holdings:*", name) for name in (*ORDER, "user_type", "created_at", "master_order_id")),
    *(("market:*", name) for name in ("bid", "ask", "ts")),
    *(("groups:*", name) for name in ("contract_size", "profit", "type", "spread", "min_lot", "crypto_margin_factor")),
    *(("user_portfolio:*", name) for name in ("equity", "margin_level", "calc_status")),
]
_MEANS_SOMETHING = re.compile(r"-?[0-9]+(\.[0-9]+)?|[A-Z-]+(_[A-Z]+)?", re.ASCII)
_JUNK = (st.sampled_from(GARBAGE) | st.text(max_size=40)).filter(lambda text: not _MEANS_SOMETHING.fullmatch(text))
_RELAXED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_RELAXED
@given(where=st.sampled_from(FIELDS), junk=_JUNK)
def test_garbage_in_a_field_closes_nobody(house: House, where: tuple[str, str], junk: str) -> None:
    """In that field of every hash that has it; a level that is none is the default one."""
    pattern, name = where
    victim = house.spare()
    house.keep()
    for key in house.client.keys(pattern):
        house.client.hset(key, name, junk.encode("utf-8", "surrogatepass"))
    house.tick(prints=pattern != "market:*")
    house.assert_nobody_else_closed()
    house.mend()
    house.assert_sees(victim)


LEDGER = ("version", "reserved_usd", "booked_usd", "protected_usd")


@pytest.mark.parametrize("names", [LEDGER, *seldom(*((name,) for name in LEDGER))], ids=",".join)
def test_garbage_in_a_ledger_hinders_nobody(house: House, names: tuple[str, ...]) -> None:
    for junk in GARBAGE:
        victim = house.spare()
        house.client.hset(f"copyrisk:{{{victim}}}:ledger", mapping=dict.fromkeys(names, junk))
        house.assert_sees(victim)


def test_garbage_for_the_token_of_a_ledger_hinders_nobody(house: House) -> None:
    for junk in GARBAGE:
        victim = house.spare()
        house.client.hset(f"copyrisk:{{{victim}}}:ledger", "fence:cutoff", junk)
        house.assert_sees(victim)


_HOUSE = [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in ((HEAD, "hash"), (HEAD, "first"), (CASCADES, "M"), (KILLS, "all"))
]


@pytest.mark.parametrize(("key", "name"), [(HEAD, "seq"), *_HOUSE])
def test_garbage_in_what_we_keep_hinders_nobody(house: House, key: str, name: str) -> None:
    for junk in GARBAGE:
        house.client.hset(key, name, junk)
        house.assert_sees()
    house.client.hset(key, name, "zzz")
    house.drop_daemon()
    house.tick(2)
    house.assert_sees()


def test_garbage_for_an_episode_hinders_nobody(house: House) -> None:
    house.client.hset(EPISODES, "nobody", "zzz")
    for junk in (*GARBAGE, "{}", "null", "[1]", '{"number":1e999,"is_open":true}', '{"number":null}'):
        victim = house.spare()
        for account in (victim, "live:thin", "live:gone"):
            house.client.hset(EPISODES, account, junk)
        house.drop_daemon()
        house.assert_sees(victim)


@pytest.mark.parametrize("key", ["ledger", "audit", "outbox", "order:O-live-L1"])
def test_an_account_whose_own_keys_are_of_another_type_hinders_nobody_else(house: House, key: str) -> None:
    broken_key = f"copyrisk:{{live:L1}}:{key}"
    house.client.delete(broken_key)
    house.client.execute_command(*(("SADD",) if key.startswith("order") else ("SET",)), broken_key, "x")
    house.condemn("live:L1")
    house.tick(2)
    house.assert_sees()
    house.client.delete(broken_key)
    house.until_flat("live:L1")
    house.assert_untouched()


# ---- quotes


def broken(mid: str) -> dict[str, dict[str, str]]:
    """What may stand in a quote; empty: the field is gone."""
    now_ms, exact = time.time_ns() // 1_000_000, Decimal(mid)
    off, high, low = f"{exact * Decimal('1.05'):f}", f"{exact * 10:f}", f"{exact / 10:f}"
    every: dict[str, dict[str, str]] = {
        "without bid": {"bid": "", "ask": off},
        "without ask": {"bid": off, "ask": ""},
        "crossed": {"bid": off, "ask": mid},
        "zero": {"bid": "0", "ask": "0"},
        "half zero": {"bid": "0", "ask": mid},
        "negative": {"bid": f"-{mid}", "ask": f"-{mid}"},
        "nan": {"bid": "nan", "ask": "NaN"},
        "infinite": {"bid": "inf", "ask": "inf"},
        "exponent": {"bid": "1e-9", "ask": "1e-9"},
        "stale": {"bid": off, "ask": off, "ts": str(now_ms - 3_600_000)},
        "from the future": {"bid": off, "ask": off, "ts": str(now_ms + 3_600_000)},
        "without time": {"bid": off, "ask": off, "ts": ""},
        "of 1970": {"bid": off, "ask": off, "ts": "0"},
        "ten times": {"bid": high, "ask": high},
        "a tenth": {"bid": low, "ask": low},
        "bid a tenth": {"bid": low, "ask": mid},
        "ask ten times": {"bid": mid, "ask": high},
    }
    return {how: {"ts": str(now_ms), **said} for how, said in every.items()}


HOW = tuple(broken("1"))
JUMPS = HOW[-4:]


def spoil(house: House, how: str, symbols: tuple[str, ...]) -> None:
    for symbol in symbols:
        for name, value in broken(QUOTES[symbol])[how].items():
            if value:
                house.client.hset(f"market:{symbol}", name, value)
            else:
                house.client.hdel(f"market:{symbol}", name)


@pytest.mark.parametrize(
    "symbols", [("GBPUSD",), tuple(QUOTES), *seldom(("EURUSD",), ("USDJPY",), ("EURGBP",))], ids="+".join
)
def test_bad_quotes_close_nobody(house: House, symbols: tuple[str, ...]) -> None:
    """Each for one tick: of a symbol, of a conversion, of all."""
    for how in HOW:
        victim = house.spare()
        house.tick()
        spoil(house, how, symbols)
        house.tick(prints=False)
        house.condemn(victim)
        house.assert_nobody_else_closed()
        house.tick(2)
        assert house.is_flat(victim), how
        house.assert_untouched()


@pytest.mark.parametrize("how", JUMPS)
def test_a_bad_print_that_stands_for_two_ticks_closes_nobody(house: House, how: str) -> None:
    spoil(house, how, tuple(QUOTES))
    house.tick(2, prints=False)
    house.tick()
    house.assert_untouched()
    house.assert_sees()


def test_a_bad_print_in_between_other_faults_closes_nobody(house: House) -> None:
    """The quote is unreadable for a tick, and what it says then is none: what it said before that counts."""
    for how in ("nan", "without bid", "stale", "zero"):
        spoil(house, how, tuple(QUOTES))
        house.tick(prints=False)
        spoil(house, "a tenth", tuple(QUOTES))
        house.tick(prints=False)
        house.tick()
        house.assert_untouched()
    house.assert_sees()


@pytest.mark.parametrize("who", ["it begins", "it takes over"])
def test_a_bad_print_in_a_daemons_first_tick_closes_nobody(house: House, who: str) -> None:
    second = house.new_daemon()
    if who == "it takes over":
        second.tick()
        second.tick()
    house.drop_daemon()
    spoil(house, "ten times", ("GBPUSD",))  # of one account: too few for the brake
    second.tick()
    house.print_quotes()
    second.tick()
    house.assert_untouched()


def test_a_bad_print_closes_nothing_more_of_who_is_critical(bundled_server: Any) -> None:
    desk = CutoffDesk(bundled_server, "barclays")
    desk.holder("live:1", "150", ("A", "1"), ("B", "1"))
    desk.steps(2)
    (asked,) = desk.requests()
    desk.price("0.1")
    desk.full_step()
    desk.price("1")
    desk.full_step()
    assert desk.requests() == [asked]


@pytest.mark.parametrize("why", ["a minute went by", "another daemon took over"])
def test_what_is_in_flight_is_not_closed_a_second_time_by_closing_another(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """One close is enough; by the time it is answered another order has lost more."""
    desk = CutoffDesk(bundled_server, "barclays")
    desk.office.group("GBPUSD")
    desk.price("1", "GBPUSD")
    desk.account("live:1", "barclays", "250")
    desk.position("live:1", "A", "1", "1.0005")
    desk.position("live:1", "B", "1", "1.0001", symbol="GBPUSD")
    desk.steps(2)
    (asked,) = desk.requests()
    assert asked["order_id"] == "A"
    desk.price("0.9995", "GBPUSD")
    desk.price("1.0004")
    if why == "a minute went by":
        clock = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 60.0)
    else:
        desk.drop_daemon()
    desk.steps(2)
    assert [request["order_id"] for request in desk.requests()] == ["A"]


@pytest.mark.parametrize(
    "name", ["margin", "record", *seldom("contract_value", "execution", "stop_loss", "take_profit")]
)
def test_an_order_that_cannot_be_read_shields_no_other(house: House, name: str) -> None:
    """It loses most and would be enough; its account is closed by what can be closed."""
    house.account("live:X", "rock", "5000")
    for order_id, price in (("A", "1.001"), ("B", "1.0005"), ("C", "1.0001")):
        house.position("live:X", order_id, price=price)
    house.tick()
    if name == "record":
        house.client.set("copyrisk:{live:X}:order:A", "zzz")
    else:
        house.client.hset("user_holdings:{live:X}:A", name, "zzz")
    house.configure("live:X", wallet_balance="300")  # 140 of 3,000; without B and C 140 of 1,000
    house.condemned.add("live:X")
    house.tick(3)
    assert house.index("live:X") == {"A"}
    house.assert_untouched()


def test_what_cannot_be_closed_is_not_noted_in_every_tick(house: House) -> None:
    victim = house.spare()
    house.client.set(f"copyrisk:{{{victim}}}:order:O-live-L2", "zzz")
    house.condemn(victim)
    house.tick(20)
    assert len(house.audit(victim)) <= 2


@pytest.mark.parametrize("what", ["terms", "group gone", "group garbage"])
def test_an_account_is_not_valued_by_the_terms_of_another_group(house: House, what: str) -> None:
    """Its group's are gone, for longer than a moment; or it is in another group, or none, for a moment."""
    house.office.group("EURUSD", "Micro", contract_size="1000")
    house.holder("live:micro", "200", ("X", "1"), group="Micro")
    house.client.hset("user_holdings:{live:micro}:X", "order_price", "1.005")  # -5; by the others' terms -500
    house.tick(2)
    if what == "terms":
        house.client.delete("groups:{Micro}:EURUSD")
        house.tick(4)
    else:
        house.configure("live:micro", group=None if what == "group gone" else "zzz")
        house.tick()
        house.configure("live:micro", group="Micro")
        house.tick(4)
    house.assert_untouched()


# ---- accounts that change


def test_a_change_in_two_steps_closes_nobody(house: House) -> None:
    """A back office takes a winner out of the index, a tick falls between, and then it credits the wallet."""
    house.position("demo:winner", "L")
    house.tick(2)
    house.client.srem("user_orders_index:{demo:winner}", "W")
    house.tick()
    house.configure("demo:winner", wallet_balance="10020")
    house.client.delete("user_holdings:{demo:winner}:W")
    house.tick(2)
    assert house.index("demo:winner") == {"L"}
    house.assert_nobody_else_closed()


@pytest.mark.parametrize("ticks", [1, 3])
def test_an_account_that_is_written_again_key_by_key_closes_nobody(house: House, ticks: int) -> None:
    """The loser of a hedge comes first, a tick falls between, then the winner."""
    kept = {key: house.client.dump(key) for key in house.client.keys("user*{live:hedged}*")}
    for key in kept:
        house.client.delete(key)
    house.tick(2)
    house.client.restore("user:{live:hedged}:config", 0, kept.pop(b"user:{live:hedged}:config"))
    house.tick(ticks)
    house.client.restore("user_holdings:{live:hedged}:H1", 0, kept.pop(b"user_holdings:{live:hedged}:H1"))
    house.client.sadd("user_orders_index:{live:hedged}", "H1")
    house.tick()
    house.client.restore("user_holdings:{live:hedged}:H2", 0, kept.pop(b"user_holdings:{live:hedged}:H2"))
    house.client.sadd("user_orders_index:{live:hedged}", "H2")
    house.tick(2)
    house.assert_untouched()


def test_an_account_that_never_comes_to_rest_is_closed_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something of it changes whenever it is read, as a robot does that changes its orders without end."""
    victim = house.spare()
    house.tick(2)
    notices = house.daemon._mirror._notices
    take, count = notices.take, itertools.count()

    def change_and_take(book: Any, **how: Any) -> Any:
        house.configure(victim, email=next(count))
        return take(book, **how)

    monkeypatch.setattr(notices, "take", change_and_take)
    house.condemn(victim)
    house.tick(10)
    assert house.is_flat(victim)
    house.assert_untouched()


def test_a_healthy_account_that_never_comes_to_rest_is_left_alone(house: House) -> None:
    """Its winner is closed and opened again without end, in one act each time; what is read may be of no moment."""
    house.position("demo:winner", "L")
    house.tick(2)
    house.healthy = {name: said for name, said in house.stands().items() if name in house.healthy}
    winner, ends = house.client.hgetall("user_holdings:{demo:winner}:W"), threading.Event()

    def trade() -> None:
        with house.server.client() as client:
            for turn in itertools.count():
                pipe = client.pipeline(transaction=True)
                if turn % 2:
                    pipe.hset("user_holdings:{demo:winner}:W", mapping=winner)
                    pipe.sadd("user_orders_index:{demo:winner}", "W")
                else:
                    pipe.srem("user_orders_index:{demo:winner}", "W")
                    pipe.delete("user_holdings:{demo:winner}:W")
                pipe.hset("user:{demo:winner}:config", "wallet_balance", "20" if turn % 2 else "10020")
                pipe.execute()
                if ends.is_set() and turn % 2:
                    return

    trader = threading.Thread(target=trade)
    trader.start()
    try:
        house.tick(25)
    finally:
        ends.set()
        trader.join()
    house.assert_untouched()
    house.assert_sees()


def test_an_account_that_changes_in_every_tick_is_closed_all_the_same(house: House) -> None:
    victim = house.spare()
    house.tick()
    house.condemned.add(victim)
    for cents in range(4):
        house.configure(victim, wallet_balance=f"50.0{cents}")
        house.tick()
    assert house.is_flat(victim)
    house.assert_untouched()


# ---- clocks


@pytest.mark.parametrize("hours", [-2, 5, *seldom(-48, 1, 200)])
@pytest.mark.parametrize("feed_moves", [False, True])
def test_the_daemons_clock_moves_by_hours(
    house: House, monkeypatch: pytest.MonkeyPatch, hours: int, *, feed_moves: bool
) -> None:
    """Alone, then all quotes are stale or from the future; or with that of the feed, then it may still decide."""
    first, clock = house.spare(), time.time_ns
    house.tick()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: clock() + hours * 3_600_000_000_000)
        if feed_moves:
            house.assert_sees()
        else:
            house.tick(2, prints=False)
            house.assert_nobody_else_closed()
        house.condemn(first)
        house.tick(prints=feed_moves)
    house.tick(2)
    assert house.is_flat(first)
    house.assert_sees()
    assert len(house.warned()) == len(set(house.warned()))


# ---- what the server answers


@contextmanager
def behind(server: Any, folder: Path, **flags: object) -> Iterator[Behind]:
    house = Behind(server, folder, **flags)
    try:
        house.tick(2)
        house.assert_untouched()
        house.keep()
        yield house
    finally:
        house.proxy.close()
        house.close()


def cut_at_random(dice: random.Random) -> Callable[[int, bytes], bytes | None]:
    return lambda _number, said: None if dice.random() < 0.2 else said


def truncated(dice: random.Random) -> Callable[[int, bytes], bytes | None]:
    """The rest of a piece never comes, nor anything after it in time."""
    return lambda _number, said: said[: dice.randrange(len(said))] if dice.random() < 0.2 else said


def late(dice: random.Random) -> Callable[[int, bytes], bytes | None]:
    def spoil(_number: int, said: bytes) -> bytes:
        time.sleep(0.6 if dice.random() < 0.05 else 0.0)
        return said

    return spoil


def garbled(dice: random.Random) -> Callable[[int, bytes], bytes | None]:
    """Bytes that are no digits become others that are none either: not a number that is another."""

    def spoil(_number: int, said: bytes) -> bytes:
        spoilt = bytearray(said)
        for _ in range(dice.randrange(4)):
            place = dice.randrange(len(spoilt))
            spoilt[place] = spoilt[place] if 48 <= spoilt[place] < 58 else dice.choice(b"\x00\xffx$*-\r\n")
        return bytes(spoilt)

    return spoil


def repeated(dice: random.Random) -> Callable[[int, bytes], bytes | None]:
    return lambda _number, said: said * 2 if dice.random() < 0.2 else said


def errors(*words: str) -> Callable[[random.Random], Callable[[int, bytes], bytes | None]]:
    """Of simple answers, some are errors instead."""

    def of(dice: random.Random) -> Callable[[int, bytes], bytes | None]:
        error = f"\r\n-{dice.choice(words)}\r\n".encode()
        return lambda _number, said: re.sub(rb"\r\n(\$-1|_)\r\n", error, said) if dice.random() < 0.5 else said

    return of


SPOILT = {
    "cut": cut_at_random,
    "truncated": truncated,
    "late": late,
    "garbled": garbled,
    "repeated": repeated,
    "errors": errors("ERR something", "BUSY busy", "LOADING loading", "MASTERDOWN gone", "TRYAGAIN later", "NOPERM no"),
}


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("how", SPOILT)
def test_answers_that_are_spoilt_close_nobody(bundled_server: Any, tmp_path: Path, how: str) -> None:
    dice = random.Random(how)
    with behind(bundled_server, tmp_path) as house:
        right = house.proxy.spoil
        for _ in range(12):
            victim = house.spare()
            house.tick()
            house.proxy.spoil = SPOILT[how](dice)
            house.tick(2)
            house.assert_nobody_else_closed()
            house.condemn(victim)
            house.tick(2)
            house.proxy.spoil = right
            house.until_flat(victim)
            house.assert_untouched()
        house.assert_sees()


@pytest.mark.parametrize("how", ["cut", *seldom("truncated")])
def test_a_daemon_that_was_cut_off_acts_within_two_ticks(bundled_server: Any, tmp_path: Path, how: str) -> None:
    with behind(bundled_server, tmp_path) as house:
        right = house.proxy.spoil
        for _ in range(3):
            victim = house.spare()
            house.tick()
            house.proxy.spoil = lambda _number, said: None if how == "cut" else said[: len(said) // 2]
            house.tick()
            house.condemn(victim)
            house.tick()
            house.proxy.spoil = right
            house.ticks_in_time(2)
            assert house.is_flat(victim)
            house.assert_untouched()


def test_a_greeting_that_makes_no_sense_is_a_failed_connection(bundled_server: Any, tmp_path: Path) -> None:
    with behind(bundled_server, tmp_path) as house:
        right, seen = house.proxy.spoil, set[int]()

        def spoil(number: int, said: bytes) -> bytes:
            is_first = number not in seen
            seen.add(number)
            return b"%1\r\n*1\r\n+a\r\n+b\r\n" if is_first else said

        for number in list(house.proxy._pairs):
            house.proxy.cut(number)
        house.proxy.spoil = spoil
        for _ in range(3):
            house.tick()
            house.assert_untouched()
        house.proxy.spoil = right
        house.tick()
        house.assert_sees()


def test_an_answer_too_many_does_not_go_on_for_ever(bundled_server: Any, tmp_path: Path) -> None:
    with behind(bundled_server, tmp_path) as house:
        right, told = house.proxy.spoil, list[int]()

        def spoil(number: int, said: bytes) -> bytes:
            is_new = number not in house.proxy.mirrors and said[:1] == b"*" and not told
            told.extend([number] * is_new)
            return said * 2 if is_new else said

        house.proxy.spoil = spoil
        house.condemn("live:L1")
        house.tick(2)
        assert told
        house.proxy.spoil = right
        house.ticks_in_time(2)
        assert house.is_flat("live:L1")
        house.assert_sees()


@pytest.mark.parametrize("who", ["the book", "the second look"])
def test_what_one_reader_is_told_wrongly_closes_nobody(bundled_server: Any, tmp_path: Path, who: str) -> None:
    """Balances of 1 USD: in the book that is critical, and a second look says that it is not."""
    with behind(bundled_server, tmp_path, cutoff__brake_min_accounts=1_000) as house:

        def spoil(number: int, said: bytes) -> bytes:
            is_told = (number in house.proxy.mirrors) is (who == "the book")
            return re.sub(rb"(?<=\n)(120|620|330|1390)(?=\r)", _one, said) if is_told else said

        house.proxy.spoil = spoil
        for account in house.healthy:
            house.configure(account, email="x")  # so that they are read again
        house.tick(4)
        house.assert_untouched()
        house.proxy.spoil = lambda _number, said: said
        for account in house.healthy:
            house.configure(account, email="y")
        house.tick(2)
        house.assert_sees()


def _one(found: re.Match[bytes]) -> bytes:
    return b"1".zfill(len(found[0]))


REFUSED = {
    "configuration": ("user:{", "user:*"),
    "index": ("user_orders_index:{", "user_orders_index:*"),
    "orders": ("user_holdings:{", "user_holdings:*"),
    "ledger and records": ("copyrisk:{", "copyrisk:*"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_keys_that_are_refused_close_nobody(redis_server: Any, what: str) -> None:
    """Of the account `live:thin`, for the daemon's user; the others are seen as ever."""
    house = House(redis_server)
    house.tick(2)
    start, every = REFUSED[what]
    patterns = {pattern for _, pattern in REFUSED.values()} - {every} | {f"{start}[^l]*", f"{start}live:[^t]*"}
    more = ("user_portfolio:*", "market:*", "groups:*", "copy_*", "order_*", "symbol_holders:*", "copyrisk:[^{]*")
    rules = [f"~{pattern}" for pattern in {*patterns, *more}]
    house.client.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "+@all", "&*", *rules)
    own, server = house.server, type(house.server)
    house.server = server(own.url.replace("unix://", "unix://limited:pw@"), own.pid)
    house.drop_daemon()
    house.tick(2)
    house.assert_sees()
    house.condemn("live:thin")
    del house.healthy["live:thin"]
    house.tick(2)
    house.assert_sees()
    assert not house.is_flat("live:thin")
    house.client.execute_command("ACL", "SETUSER", "limited", "~*")
    house.until_flat("live:thin")
    house.assert_untouched()


@contextmanager
def configured(client: Any, name: str, value: int) -> Iterator[None]:
    """The server with another setting."""
    before = client.config_get(name)[name]
    client.config_set(name, value)
    try:
        yield
    finally:
        client.config_set(name, before)


@contextmanager
def busy(server: Any) -> Iterator[None]:
    """A server that is at a script that does not end."""
    with server.client() as client, configured(client, "busy-reply-threshold", 1), server.client() as other:

        def loop() -> None:
            with suppress(redis.ResponseError):
                other.eval("while true do end", 0)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            until(lambda: not _pings(client))
            yield
        finally:
            until(lambda: _kills(client))
            thread.join()


def _pings(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.ResponseError:
        return False


def _kills(client: Any) -> bool:
    """Have the script end; whether it had begun."""
    try:
        return bool(client.script_kill())
    except redis.ResponseError:
        return False


def test_a_busy_server_closes_nobody(house: House) -> None:
    victim = house.spare()
    house.tick()
    house.condemn(victim)
    with busy(house.server):
        for _ in range(3):
            house.full_step()
    house.assert_nobody_else_closed()
    house.tick(2)
    assert house.is_flat(victim)
    house.assert_sees()


def test_a_server_without_room_closes_nobody(house: House) -> None:
    victim = house.spare()
    house.tick()
    house.condemn(victim)
    with configured(house.client, "maxmemory", 1):
        house.tick(3, prints=False)
        assert not house.is_flat(victim)
    house.assert_nobody_else_closed()
    house.tick(2)
    assert house.is_flat(victim)
    house.assert_sees()


def test_a_server_that_has_no_room_any_more_closes_nobody_else(house: House) -> None:
    """From the moment on in which it is decided to close."""
    victim = house.spare()
    house.tick()
    house.condemn(victim)
    with configured(house.client, "maxmemory", 0):
        with at("worker.decided", lambda: house.client.config_set("maxmemory", 1)):
            house.tick(2, prints=False)
        house.tick(prints=False)
        house.assert_nobody_else_closed()
    house.tick(2)
    assert house.is_flat(victim)
    house.assert_sees()


# ---- servers that go and come


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "first").mkdir()
    made = Machine(tmp_path / "first", free_port())
    made.start()
    yield made
    made.kill()


@pytest.mark.fault
def test_a_server_that_comes_back_empty_closes_nobody(machine: Machine) -> None:
    """The back office writes its accounts again; of who it begins with nobody is taken for critical."""
    house = House(machine)
    house.tick(2)
    first, second = house.spare(), house.spare()
    house.tick()
    house.keep()
    machine.kill()
    for _ in range(2):
        assert house.full_step().skipped is not None
    machine.start()
    house.client.connection_pool.disconnect()
    house.tick(2)
    house.condemned.add(first)
    house.mend()
    house.tick(2)
    house.until_flat(first)  # the server has neither our functions nor a lease
    house.assert_sees(second)
    house.close()


@pytest.mark.slow
@pytest.mark.fault
def test_a_server_that_is_loading_closes_nobody(machine: Machine) -> None:
    """For as long as it reads its own data it answers so, and then it has what there was."""
    house = House(machine)
    house.tick(2)
    victim = house.spare()
    house.tick()
    house.condemn(victim)
    house.client.save()
    machine.kill()
    slow = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    machine.start(*slow, waits=False)
    found = set[str | None]()
    deadline_s = time.monotonic() + 60
    while not machine.answers():
        assert time.monotonic() < deadline_s
        found.add((house.full_step().skipped or "").partition(":")[0])
    assert "server_loading" in found
    house.client.connection_pool.disconnect()
    house.until_flat(victim)
    house.assert_sees()
    house.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    made.house.tick(2)
    made.house.keep()
    yield made
    made.close()


def holdings(client: Any) -> dict[bytes, Any]:
    keys = [*client.keys("user_holdings:*"), *client.keys("user:*")]
    return {key: client.hgetall(key) for key in keys}


@pytest.mark.slow
@pytest.mark.fault
def test_a_master_that_is_resumed_after_the_deadline_does_none_of_what_was_asked_of_it(pair: Pair) -> None:
    """It stands still between decision and change; the replica is promoted; what waits in its socket is too late."""
    house = pair.house
    victims = [house.spare() for _ in range(5)]
    house.tick()
    for victim in victims:
        house.condemn(victim)
    pair.wait()
    before, calls = holdings(house.client), list[int]()

    def stand_still() -> None:
        calls.append(calls_of(house.client))
        pair.old.say(signal.SIGSTOP)

    with at("worker.decided", stand_still):
        while not calls:
            house.full_step()
    stopped_s = time.monotonic()
    pair.promote()
    pair.move()
    for victim in victims:
        house.until_flat(victim)
    closes = {victim: house.closes(victim) for victim in victims}
    until(lambda: time.monotonic() - stopped_s > 2.2)  # what was decided holds for two seconds
    pair.old.say(signal.SIGCONT)
    with pair.old.client() as old:
        until(lambda: calls_of(old) == calls[0] + len(victims), 20.0)
        assert holdings(old) == before
        assert not old.keys("copyrisk:{live:L*}:audit") and not old.exists("copyrisk:events")
    assert {victim: house.closes(victim) for victim in victims} == closes
    assert all(len(found) == 1 for found in closes.values())
    house.assert_untouched()
    house.assert_sees()


def calls_of(client: Any) -> int:
    """How many functions a server has carried out that may write."""
    return int(client.info("commandstats").get("cmdstat_fcall", {"calls": 0})["calls"])


@pytest.mark.slow
@pytest.mark.fault
def test_a_close_that_a_failover_loses_is_made_again_under_the_same_id(tmp_path: Path) -> None:
    """The link to the replica is cut; what the master acknowledged then is not there any more."""
    pair = Pair(tmp_path)
    try:
        house = pair.house
        house.flow = "barclays"
        victim = house.spare()
        house.tick(2)
        pair.wait()
        with pair.new.client() as client:
            client.config_set("replica-read-only", "yes")
            client.replicaof("127.0.0.1", 1)  # nobody is there
        house.condemn(victim)
        house.tick(2)
        (asked,) = house.requests()
        pair.old.kill()
        pair.promote()
        pair.move()
        assert house.requests() == []
        house.condemn(victim)
        deadline_s = time.monotonic() + 10
        while not house.requests():
            assert time.monotonic() < deadline_s
            house.tick()
        (again,) = house.requests()
        assert again["request_id"] == asked["request_id"] and again["order_id"] == asked["order_id"]
        house.assert_untouched()
    finally:
        pair.close()


@pytest.mark.slow
@pytest.mark.fault
def test_what_a_replica_has_acknowledged_no_failover_loses(pair: Pair) -> None:
    house = pair.house
    victims = [house.spare() for _ in range(20)]
    house.tick()
    for victim in victims:
        house.condemn(victim)
    for victim in victims:
        house.until_flat(victim)
    pair.wait()
    pair.old.kill()
    pair.promote()
    pair.move()
    house.tick(3)
    assert all(house.is_flat(victim) and len(house.closes(victim)) == 1 for victim in victims)
    house.assert_sees()


# ---- the mail server


@pytest.mark.parametrize("how", ["silent", *seldom("down")])
def test_a_mail_server_that_fails_delays_no_tick(house: House, how: str) -> None:
    """The notifier is a process of its own."""
    warned = [house.holder(f"live:W{i}", "400", email=f"w{i}@example.com") for i in range(50)]
    silence = threading.Event()
    with bad_server(lambda _line: silence.wait(30)) as port:
        mail = {"SINKS": "smtp", "SMTP_HOST": "127.0.0.1", "SMTP_PORT": port if how == "silent" else 1}
        said = {**mail, "SMTP_SECURITY": "none", "SMTP_FROM": "a@example.com", "TIMEOUT_MS": 1_000}
        with process(house.server.url, "notifier", **{f"NOTIFY_{name}": value for name, value in said.items()}):
            house.tick(3)
            until(lambda: house.client.keys("copyrisk:{cutoff}:notice:live:W*"), 30)
            victim = house.spare()
            house.tick()
            house.condemn(victim)
            for _ in range(10):
                report = house.full_step()
                assert report.cutoff is not None and report.cutoff.took_ms < 10_000
            assert house.is_flat(victim)
            silence.set()
    assert set(warned) <= set(house.warned())  # none is sent, and none is given up
    house.assert_untouched()


# ---- more daemons than one


def cloned(house: House, first: Engine) -> Engine:
    """Another daemon with the same name and token, as a copied machine has it."""
    second = house.new_daemon()
    second.tick()
    ours, theirs = second._autocutoff._lease, first._autocutoff._lease  # type: ignore[union-attr]
    for name in ("_owner", "_token", "_above", "_held_s", "right"):
        setattr(ours, name, getattr(theirs, name))
    return second


@pytest.mark.parametrize("flow", ["rock", "barclays"])
@pytest.mark.parametrize("seed", [0, *seldom(*range(1, 6))])
def test_a_cloned_daemon_closes_nothing_twice(bundled_server: Any, flow: str, seed: int) -> None:
    """Both act for as long as both believe that they may; each account has two orders, and one close is enough."""
    dice = random.Random(seed)
    house = House(bundled_server, flow)
    house.tick()
    victims = [house.holder(f"live:V{i}", "5000", (f"A{i}", "1"), (f"B{i}", "1")) for i in range(10)]
    house.tick()
    daemons = [house.daemon, cloned(house, house.daemon)]
    for victim in victims:
        house.configure(victim, wallet_balance="150")
        house.condemned.add(victim)
        for _ in range(dice.randrange(3)):
            dice.choice(daemons).tick()
    for _ in range(4):
        for daemon in daemons:
            house.print_quotes()
            daemon.tick()
    if flow == "barclays":
        assert len(house.requests()) == len({request["request_id"] for request in house.requests()}) == len(victims)
    else:
        assert [house.open_lots(victim) for victim in victims] == [1] * len(victims)
        assert [len(house.closes(victim)) for victim in victims] == [1] * len(victims)
    house.assert_untouched()


def test_a_cloned_daemon_warns_nobody_twice(house: House) -> None:
    daemons = [house.daemon, cloned(house, house.daemon)]
    first = house.spare()
    for daemon in daemons * 2:
        daemon.tick()
    house.configure(first, wallet_balance="400")
    for daemon in daemons * 2:
        daemon.tick()
    assert house.warned().count(first) == 1


POINTS = (
    *("cutoff.said", "cutoff.stored", "cutoff.planned", "cutoff.cascaded", "trail.stored", "liquidation.closed"),
    *("worker.decided", "worker.changed", "worker.delivered"),
    *("cascade.recorded", "cascade.begun", "cascade.noted", "cascade.closed", "cascade.ending", "cascade.ended"),
)


@pytest.fixture
def daemons(bundled_server: Any, tmp_path: Path) -> Iterator[Daemons]:
    made = Daemons(House(bundled_server), tmp_path)
    yield made
    made.close()
    assert "Traceback" not in made.logs()


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("point", POINTS)
def test_a_daemon_that_stood_still_anywhere_does_nothing_more_of_it(daemons: Daemons, point: str) -> None:
    """Another takes over, and closes what is to be closed; the first one goes on, and then takes over in its turn."""
    house = daemons.house
    victims = [house.holder(f"live:V{i}", "5000", (f"A{i}", "1"), (f"B{i}", "1")) for i in range(8)]
    house.holder("strategy_provider:X", "5000", ("XO", "1"))
    for i in range(4):
        house.follower(f"X{i}", "5000", "X")
        house.position(f"copy_follower:X{i}", f"XC{i}", master_order_id="XO")
    house.healthy = {name: said for name, said in house.stands().items() if name in house.healthy}
    daemons.start("one", point)
    daemons.until(lambda: daemons.leads("one") and (daemons.is_stopped("one") or len(house.warned()) >= 10))
    for victim in victims:
        house.configure(victim, wallet_balance="150")
    house.configure("strategy_provider:X", wallet_balance="50")
    house.condemned |= {*victims, "strategy_provider:X", *(f"copy_follower:X{i}" for i in range(4))}
    daemons.until(lambda: daemons.is_stopped("one"))
    daemons.start("two")
    safe = lambda: all(house.open_lots(victim) == 1 for victim in victims)  # noqa: E731
    flat = lambda: all(house.is_flat(name) for name in house.condemned - {*victims})  # noqa: E731
    ended = lambda: not house.client.hlen(CASCADES)  # noqa: E731
    daemons.until(lambda: daemons.leads("two") and safe() and flat() and ended())
    for victim in victims[:4]:  # what was decided about these is true no more
        house.configure(victim, wallet_balance="9000")
    for victim in victims[4:]:
        house.configure(victim, wallet_balance="101")
    daemons.say("one", signal.SIGCONT)
    daemons.until(lambda: "lease" in daemons.running["one"].log.read_text() or daemons.leads("one"))
    daemons.running["two"].kill()
    daemons.until(lambda: daemons.leads("one"))
    house.condemn("live:L1")
    daemons.until(lambda: house.is_flat("live:L1"))
    assert safe() and flat() and ended()
    assert {name: len(house.closes(name)) for name in house.condemned} == dict.fromkeys(house.condemned, 1)
    assert len(house.warned()) == len({*house.warned()})
    now = house.stands()
    assert {name: now[name] for name in house.healthy} == house.healthy


@pytest.mark.slow
@pytest.mark.fault
def test_a_daemon_that_stands_still_until_the_market_is_back_closes_nobody(daemons: Daemons) -> None:
    """Nobody else acts meanwhile; what it decided two seconds ago it decides anew."""
    house = daemons.house
    victims = [house.holder(f"live:V{i}", "1000", (f"A{i}", "1")) for i in range(8)]
    daemons.start("one", "worker.decided")
    daemons.until(lambda: daemons.leads("one") and len(house.warned()) >= 10)
    for account in house.healthy:
        house.configure(account, wallet_balance="100000")
    house.healthy = house.stands()
    house.print_quotes(EURUSD="0.9905")  # -950: 5 %
    deadline_s = time.monotonic() + 30
    while not daemons.is_stopped("one"):
        assert time.monotonic() < deadline_s, daemons.logs()
        house.print_quotes(EURUSD="0.9905")
        time.sleep(0.02)
    stopped_s = time.monotonic()
    daemons.until(lambda: time.monotonic() - stopped_s > 2.2)
    daemons.say("one", signal.SIGCONT)
    house.condemned.add("live:L1")
    house.condemn("live:L1")
    daemons.until(lambda: house.is_flat("live:L1"))
    assert [house.open_lots(victim) for victim in victims] == [1] * 8
    del house.healthy["live:L1"]
    house.assert_untouched()


@pytest.mark.slow
@pytest.mark.fault
def test_two_daemons_that_are_stopped_in_turn_close_each_once(daemons: Daemons) -> None:
    house, dice = daemons.house, random.Random(4)
    for name in ("one", "two"):
        daemons.start(name)
    daemons.until(lambda: daemons.leads("one") or daemons.leads("two"))
    victims = []
    for turn in range(12):
        name = dice.choice(["one", "two"])
        new = [
            house.holder(f"live:V{turn}-{i}", "5000", (f"A{turn}-{i}", "1"), (f"B{turn}-{i}", "1")) for i in range(5)
        ]
        house.condemned |= {*new}
        victims += new
        ends_s = time.monotonic() + dice.uniform(0.0, 0.2)
        daemons.until(lambda ends_s=ends_s: time.monotonic() > ends_s)
        for victim in new:
            house.configure(victim, wallet_balance="150")
        ends_s = time.monotonic() + dice.uniform(0.0, 0.1)
        daemons.until(lambda ends_s=ends_s: time.monotonic() > ends_s)
        daemons.say(name, signal.SIGSTOP)
        daemons.until(lambda new=new: all(house.open_lots(victim) == 1 for victim in new))
        daemons.say(name, signal.SIGCONT)
    daemons.until(lambda: all(house.open_lots(victim) == 1 for victim in victims))
    assert [len(house.closes(victim)) for victim in victims] == [1] * len(victims)
    assert len(house.warned()) == len({*house.warned()})
    house.assert_untouched()
