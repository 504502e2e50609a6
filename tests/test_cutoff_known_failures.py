"""Each way in which liquidation is known to fail, as a regression test on a real server.

The numbers are those of the project's list of known failures; 1 to 5, 10 to 15, 34 and 35 concern autocutoff. What the
valuation makes of bad input: `test_known_failures`. Processes that are killed: `test_cutoff_chain`. Servers and files
that break: `test_cutoff_faults`. The cascade alone: `test_cascade_crash`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pytest

from copyrisk import crash
from copyrisk.daemon import make_engine
from copyrisk.embedded import EmbeddedServer
from copyrisk.following import FollowRequest
from copyrisk.store.connection import connect
from copyrisk.store.enrolment import follow
from copyrisk.store.pipe import Pipe
from tests.conftest import Server
from tests.copying_desk import MASTER, Died
from tests.cutoff_desk import EPISODES, NOTICES, CutoffDesk
from tests.test_notify_delivery import House
from tests.trading import assert_books, assert_paid, until

CONFIG, INDEX = "user:{live:1}:config", "user_orders_index:{live:1}"
HELD, PORTFOLIO = "user_holdings:{live:1}:A", "user_portfolio:{live:1}"
EURUSD = "market:EURUSD"


@pytest.fixture
def desk(bundled_server: Any) -> Iterator[CutoffDesk]:
    """With a healthy account: two lots bought and one sold, at a level of 90 %."""
    made = CutoffDesk(bundled_server)
    stand_up(made)
    yield made
    made.close()


@pytest.fixture
def provider(bundled_server: Any) -> Iterator[CutoffDesk]:
    made = CutoffDesk(bundled_server, "barclays")
    yield made
    made.close()


def stand_up(desk: CutoffDesk) -> None:
    desk.holder("live:1", "1800", ("A", "2"))
    desk.position("live:1", "B", "1", order_type="SELL")
    desk.step()


def set_balance(desk: CutoffDesk, account: str, balance: object) -> None:
    desk.client.hset(f"user:{{{account}}}:config", "wallet_balance", str(balance))


def assert_untouched(desk: CutoffDesk, ticks: int = 3, account: str = "live:1", lots: object = 3) -> None:
    """However often it is looked at, nobody is warned, nothing is sent and nothing is closed."""
    version = desk.version(account)
    for report in desk.steps(ticks):
        assert (report.warned, report.breached, report.closes, report.cancels) == (0, 0, 0, 0)
    assert (desk.warned(), desk.requests(), desk.closes(account)) == ([], [], [])
    assert desk.version(account) == version
    assert lots is None or desk.open_lots(account) == Decimal(str(lots))


def assert_not_blind(desk: CutoffDesk, account: str = "live:1", order_ids: str = "AB") -> None:
    """Once it is known to be critical it is closed, within two ticks."""
    set_balance(desk, account, 0)
    desk.steps(2)
    assert desk.is_flat(account)
    assert [close["order_id"] for close in desk.closes(account)] == list(order_ids)
    assert_books(desk)


# ---- 1: what cannot be read is no margin level of 0


def spoil_field(key: str, field: str, value: str) -> Callable[[Any], object]:
    return lambda client: client.hset(key, field, value)


def spoil_key(key: str) -> Callable[[Any], object]:
    """There is something else under it."""
    return lambda client: client.delete(key) and client.set(key, "x")


def spoil_gone(key: str) -> Callable[[Any], object]:
    return lambda client: client.delete(key)


UNREADABLE = {
    **{f"balance {value!r}": (CONFIG, spoil_field(CONFIG, "wallet_balance", value)) for value in ("", "x", "1e1")},
    **{f"leverage {value!r}": (CONFIG, spoil_field(CONFIG, "leverage", value)) for value in ("", "0", "-1", "nan")},
    **{f"no {key}": (key, spoil_gone(key)) for key in (CONFIG, INDEX, HELD, EURUSD, "groups:{Standard}:EURUSD")},
    **{f"other {key}": (key, spoil_key(key)) for key in (CONFIG, INDEX, HELD, EURUSD, "groups:{Standard}:EURUSD")},
    **{f"level {value!r}": (CONFIG, spoil_field(CONFIG, "auto_liquidation_level", value)) for value in ("x", "1000")},
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_kf01_what_cannot_be_read_closes_nobody(desk: CutoffDesk, what: str) -> None:
    key, spoil = UNREADABLE[what]
    before = desk.client.dump(key)
    spoil(desk.client)
    assert_untouched(desk, lots=None)
    assert len(desk.client.keys("user_holdings:{live:1}:*")) == (1 if what == f"no {HELD}" else 2)
    desk.client.restore(key, 0, before, replace=True)
    assert_untouched(desk)
    assert_not_blind(desk)


@pytest.mark.parametrize("portfolio", [{}, {"margin_level": "0.0"}, {"margin_level": "", "equity": "-5"}])
def test_kf01_a_portfolio_that_is_missing_or_says_0_closes_nobody(desk: CutoffDesk, portfolio: dict[str, str]) -> None:
    desk.client.delete(PORTFOLIO)
    if portfolio:
        desk.client.hset(PORTFOLIO, mapping=portfolio)
    assert_untouched(desk)
    assert_not_blind(desk)


@pytest.mark.parametrize("point", ["cutoff.said", "cutoff.stored", "cutoff.planned", "worker.decided"])
def test_kf01_a_connection_that_is_lost_in_the_middle_closes_nobody_else(
    desk: CutoffDesk, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    desk.holder("live:2", "90")
    cut_at(monkeypatch, desk, point)
    reports = [desk.full_step() for _ in range(2)]  # of an account that has changed nothing is decided in the same tick
    assert any(report.skipped or (report.cutoff and report.cutoff.failure) for report in reports)
    monkeypatch.undo()
    until(lambda: not desk.full_step().skipped and desk.is_flat("live:2"))
    assert len(desk.closes("live:2")) == 1 and desk.warned() == ["live:2"]
    assert desk.closes("live:1") == [] and desk.open_lots("live:1") == 3


def cut_at(patch: pytest.MonkeyPatch, desk: CutoffDesk, point: str) -> None:
    """All connections but ours are cut when the daemon gets there."""

    def reach(name: str) -> None:
        if name == point:
            own = int(desk.client.client_id())
            for there in desk.client.client_list():
                if int(there["id"]) != own:
                    desk.client.client_kill_filter(_id=there["id"])

    patch.setattr(crash, "reach", reach)


def test_kf01_an_account_that_becomes_unreadable_before_its_close_waits(
    desk: CutoffDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close that rests on the level needs a level that is known then."""
    desk.holder("live:2", "90")
    spoiled: list[str] = []

    def reach(name: str) -> None:
        if name == "cutoff.planned" and not spoiled:
            spoiled.append(name)
            desk.client.hset("user:{live:2}:config", "leverage", "0")

    monkeypatch.setattr(crash, "reach", reach)
    report = desk.step()
    assert (spoiled, report.breached, report.closes) == (["cutoff.planned"], 1, 0)
    assert [report.closes for report in desk.steps(3)] == [0, 0, 0] and desk.open_lots("live:2") == 1
    desk.client.hset("user:{live:2}:config", "leverage", "100")
    until(lambda: desk.step().closes == 1, 5)  # who could not be closed is asked again after a second
    assert desk.is_flat("live:2")
    assert_books(desk)


# ---- 2: no level falls between two comparisons


@pytest.mark.parametrize("level", ["10.00001", "10", "9.99999", "0", "-50"])
def test_kf02_at_and_below_the_critical_level_everybody_is_closed_and_nobody_above(
    desk: CutoffDesk, level: str
) -> None:
    desk.holder("live:2", Decimal(level) * 10)
    desk.steps(2)
    assert desk.is_flat("live:2") == (Decimal(level) <= 10)
    assert desk.warned() == ["live:2"]


@pytest.mark.parametrize("balance", ["nan", "-nan", "inf", "NaN", "-inf"])
def test_kf02_a_level_that_is_no_number_is_not_forgotten(desk: CutoffDesk, balance: str) -> None:
    set_balance(desk, "live:1", balance)
    assert_untouched(desk)
    assert desk.office.portfolio("live:1")["calc_status"] == "error"
    set_balance(desk, "live:1", "200")  # exactly 10 %
    desk.steps(2)
    assert desk.warned() == ["live:1"] and [close["order_id"] for close in desk.closes("live:1")] == ["A"]


# ---- 3: what has no price is not priced at 0

BAD_QUOTES: tuple[tuple[str | None, str | None], ...] = (
    *((None, "1"), ("1", None), (None, None), ("0", "1"), ("0", "0"), ("-1", "1"), ("1.1", "0.9")),
    *(("nan", "1"), ("1", "inf"), ("-inf", "1"), ("1", "1e400"), ("", "1"), ("1,0", "1")),
)


@pytest.mark.parametrize(("bid", "ask"), BAD_QUOTES)
def test_kf03_a_quote_that_is_none_closes_nobody(desk: CutoffDesk, bid: str | None, ask: str | None) -> None:
    desk.client.delete(EURUSD)
    sides = {"bid": bid, "ask": ask, "ts": str(time.time_ns() // 1_000_000)}
    desk.client.hset(EURUSD, mapping={name: value for name, value in sides.items() if value is not None})
    assert_untouched(desk)
    desk.price("1")
    assert_not_blind(desk)


@pytest.mark.parametrize("quote", [{"bid": "150"}, {"ask": "150"}, {"bid": "nan", "ask": "1"}, {}])
def test_kf03_a_conversion_with_one_side_closes_nobody(desk: CutoffDesk, quote: dict[str, str]) -> None:
    desk.office.group("EURJPY", profit="JPY")
    desk.quote("150", "150", "EURJPY")
    desk.quote("150", "150", "USDJPY")
    desk.holder("live:2", "900")
    desk.position("live:2", "J", "1", "150.1", symbol="EURJPY")  # 66.67 lost, 1,000 of margin
    desk.step()
    desk.print_again()  # what was never seen before counts when it prints again
    desk.step()
    assert desk.open_lots("live:2") == 2
    desk.client.delete("market:USDJPY")
    desk.client.hset("market:USDJPY", mapping={"ts": str(time.time_ns() // 1_000_000), **quote})
    before = desk.warned()
    assert [report.closes for report in desk.steps(3)] == [0, 0, 0]
    assert desk.open_lots("live:2") == 2 and desk.warned() == before == ["live:2"]  # at 41.67 %, from before
    desk.quote("150", "150", "USDJPY")
    set_balance(desk, "live:2", "200")  # 133.33 of 2,000: without the one that loses most, 133.33 of 1,000
    desk.steps(2)
    assert desk.index("live:2") == {"O-live-2"}


# ---- 4: an order that cannot be priced does not drop out


@pytest.mark.parametrize(
    ("field", "value"),
    [("order_price", None), ("order_price", "0"), ("order_type", "HOLD"), ("order_quantity", "nan"), ("swap", "x")],
)
def test_kf04_the_worst_loser_is_not_invisible(desk: CutoffDesk, field: str, value: str | None) -> None:
    desk.account("live:2", balance="5000")
    desk.position("live:2", "SMALL", "1", "1.001")  # -100
    desk.position("live:2", "WORST", "1", "1.05")  # -5,000: without it the account is as healthy as can be
    key = "user_holdings:{live:2}:WORST"
    before = desk.client.dump(key)
    if value is None:
        desk.client.hdel(key, field)
    else:
        desk.client.hset(key, field, value)
    assert_untouched(desk, account="live:2", lots=None)
    desk.client.restore(key, 0, before, replace=True)
    desk.steps(2)
    assert [close["order_id"] for close in desk.closes("live:2")] == ["WORST", "SMALL"]
    assert desk.is_flat("live:2")


# ---- 5: nothing is decided on what is old


@pytest.mark.parametrize("age_s", [31, 3_600, None, -86_400])
def test_kf05_a_feed_that_stands_still_closes_nobody(desk: CutoffDesk, age_s: int | None) -> None:
    """Neither by the price that it shows nor by one that nobody sees; when it goes on, who is critical is closed."""
    ts = 0 if age_s is None else time.time_ns() // 1_000_000 - age_s * 1_000
    desk.quote("0.95", "0.95", ts=ts)  # 5,000 lost on the lot that is not hedged
    assert_untouched(desk)
    assert desk.office.portfolio("live:1")["calc_status"] == "degraded"
    desk.price("0.95")
    desk.steps(2)
    assert desk.is_flat("live:1")


def test_kf05_a_portfolio_of_1970_in_a_state_of_error_says_nothing(desk: CutoffDesk) -> None:
    said = {"margin_level": "1.0", "equity": "10", "calc_status": "error", "ts": "0", "valued_ts": "0"}
    for _ in range(3):
        desk.client.hset(PORTFOLIO, mapping=said)
        assert_untouched(desk, 1)
    assert_not_blind(desk)


def test_kf05_nobody_is_closed_while_the_market_is_closed(bundled_server: Any) -> None:
    other = "Tue" if time.strftime("%a") == "Mon" else "Mon"
    week: dict[str, Any] = {
        "market__always_open": False,
        "market__week_open": f"{other} 00:00",
        "market__week_close": f"{other} 00:01",
    }
    desk = CutoffDesk(bundled_server, **week)
    stand_up(desk)
    set_balance(desk, "live:1", "100")
    assert_untouched(desk)
    assert desk.office.portfolio("live:1")["margin_level"] == "5.0"
    desk.drop_daemon()
    desk._daemon = desk.new_daemon(always_open=True)  # it opens
    desk.steps(2)
    assert [close["code"] for close in desk.closes("live:1")] == ["ok", "ok"]


# ---- 10: a crash in the middle leaves no flag

POINTS = (
    *("trail.stored", "cutoff.said", "cutoff.stored", "cutoff.planned", "worker.decided", "worker.changed"),
    *("worker.delivered", "liquidation.closed"),
)


def crash_at(desk: CutoffDesk, patch: pytest.MonkeyPatch, point: str, times: int = 1, ticks: int = 3) -> bool:
    """The daemon dies when it gets to a point for the n-th time; whether it did."""
    left = [times]

    def reach(name: str) -> None:
        if name == point:
            left[0] -= 1
            if not left[0]:
                raise Died(name)

    with patch.context() as patched:
        patched.setattr(crash, "reach", reach)
        try:
            desk.steps(ticks)
        except Died:
            desk.drop_daemon()
            return True
    return False


@pytest.mark.parametrize(
    ("point", "mode"), [*((point, "largest_loss") for point in POINTS), ("worker.changed", "flatten")]
)
def test_kf10_after_a_crash_the_account_is_closed_now_and_the_next_time(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, point: str, mode: str
) -> None:
    desk = CutoffDesk(bundled_server, cutoff__stop_out=mode)
    desk.holder("live:1", "1800", ("A", "1"), ("B", "1"), ("C", "1"))
    desk.step()
    set_balance(desk, "live:1", "99")
    assert crash_at(desk, monkeypatch, point)
    desk.steps(2)
    assert desk.is_flat("live:1") and len(desk.closes("live:1")) == 3 and desk.warned() == ["live:1"]
    set_balance(desk, "live:1", "5000")
    assert desk.open("live:1", "D")["code"] == "ok"
    assert desk.step().liquidating == 0
    set_balance(desk, "live:1", "100")
    assert crash_at(desk, monkeypatch, point) and (desk.steps(2), desk.is_flat("live:1"))[1]
    assert [close["order_id"] for close in desk.closes("live:1")][3:] == ["D"]
    assert_books(desk)


# ---- 11: no more is closed than is needed, and nothing twice


def test_kf11_a_level_that_is_not_yet_rewritten_closes_nothing_more(desk: CutoffDesk) -> None:
    set_balance(desk, "live:1", "200")  # 10 % of 2,000; without A 20 % of 1,000
    for _ in range(5):
        desk.client.delete(PORTFOLIO)
        desk.client.set(PORTFOLIO, "it cannot be written")
        desk.full_step()
        desk.client.delete(PORTFOLIO)
        desk.client.hset(PORTFOLIO, mapping={"margin_level": "10.0", "calc_status": "ok"})
    assert [close["order_id"] for close in desk.closes("live:1")] == ["A"]
    assert desk.index("live:1") == {"B"}


@pytest.mark.parametrize("silent", [False, True], ids=["accepted", "silent"])
def test_kf11_with_the_provider_a_close_is_asked_for_once_and_no_other_in_its_stead(
    provider: CutoffDesk, silent: bool
) -> None:
    provider.holder("live:1", "2500", ("A", "1"), ("B", "1"), ("C", "1"))
    provider.step()
    set_balance(provider, "live:1", "250")  # 8.3 % of 3,000; of 2,000 12.5 %
    assert provider.step().closes == 1
    if not silent:
        provider.provider_says("accepted", "live:1")
    assert [report.closes for report in provider.steps(3)] == [0, 0, 0]
    (request,) = provider.requests()
    assert (request["action"], request["order_quantity"]) == ("close", "1")
    began_s = time.monotonic()
    while silent and time.monotonic() - began_s < 1.2:  # after a second an order is asked again
        assert provider.step().closes == 0
    provider.drop_daemon()  # nor does another process ask again
    assert [report.closes for report in provider.steps(3)] == [0, 0, 0]
    assert provider.requests() == [request]
    provider.provider_says("filled", "live:1", price="1", sequence=2)
    provider.until_quiet()
    assert provider.open_lots("live:1") == 2 and provider.requests() == [request]
    assert_paid(provider, "live:1", 250)
    assert_books(provider)


# ---- 12: whatever is open can be closed; without a flow:
#      test_cutoff.test_a_live_account_without_a_flow_is_closed_in_the_flow_of_its_orders


@pytest.mark.parametrize("flow", ["rock", "barclays"])
def test_kf12_orders_with_levels_are_no_exception_in_any_flow(redis_server: Any, flow: str) -> None:
    desk = CutoffDesk(redis_server, flow)
    for account in ("live:1", "demo:1", "strategy_provider:1", "copy_follower:1"):
        desk.account(account, flow, "5000")
        levels = {"stop_loss": "0.9", "take_profit": "1.1"}
        assert desk.open(account, f"A-{account.partition(':')[0]}", **levels)["code"] == "ok"
        desk.provider_says("filled", account, price="1")
        set_balance(desk, account, "100")
    desk.step()
    desk.provider_says("filled", price="1")
    desk.until_quiet()
    for account in desk.accounts():
        assert desk.is_flat(account), account
        assert desk.triggers(f"A-{account.partition(':')[0]}") == {}
    assert_books(desk)


@pytest.mark.parametrize("disabled", [{"is_active": "0"}, {"status": "suspended"}, {"group": "Standard"}])
def test_kf12_an_account_that_may_open_nothing_is_closed(desk: CutoffDesk, disabled: dict[str, str]) -> None:
    desk.client.hset(CONFIG, mapping=disabled)
    assert_untouched(desk)
    assert_not_blind(desk)


# ---- 13: the cascade happens


def copied_master(server: Any, flow: str = "rock") -> CutoffDesk:
    """A master with two orders that three followers copy; the fourth has joined and copied nothing."""
    desk = CutoffDesk(server, flow)
    desk.account(MASTER, flow, "50000", leverage="100")
    members = [FollowRequest(f"F{i}", "10000") for i in range(3)] + [FollowRequest("FLAT", "1")]
    assert {outcome.code for outcome in follow(Pipe(desk.new_client()), "M", members)} == {"done"}
    for order_id in ("O", "P"):
        desk.open_master(order_id)
        desk.provider_says("filled", price="1")
        desk.replicate()
        assert desk.copies(order_id).keys() == {"F0", "F1", "F2"}
    desk.position("copy_follower:F0", "OWN", "0.1")
    desk.steps(2)
    return desk


def cascade_of(desk: CutoffDesk) -> dict[str, str]:
    """Where the followers of the only cascade stand."""
    (key,) = desk.client.keys("copyrisk:{cutoff}:cascade:*")
    stored = {name.decode(): said for name, said in desk.client.hgetall(key).items()}
    assert "summary" in stored
    return {name[1:]: said.decode() for name, said in stored.items() if name.startswith(":")}


@pytest.mark.parametrize("flow", ["rock", "barclays"])
def test_kf13_a_critical_masters_followers_are_closed_too(redis_server: Any, flow: str) -> None:
    desk = copied_master(redis_server, flow)
    set_balance(desk, MASTER, "100")
    reports = desk.steps(2)
    desk.provider_says("filled", price="1")
    desk.until_quiet()
    if flow == "rock":
        assert sum(report.cascades_finished for report in reports) == 1
    assert desk.is_flat(MASTER) and desk.copies("O") == desk.copies("P") == {}
    assert desk.index("copy_follower:F0") == {"OWN"}
    assert cascade_of(desk).keys() == {"F0", "F1", "F2", "FLAT"}
    assert [entry["reason"] for entry in desk.trail("cascade")] == ["cascade_begins", "cascade_ends"]
    desk.replicate_until_settled()
    for name in ("F1", "F2"):
        assert_paid(desk, f"copy_follower:{name}", 10_000)
    assert_books(desk)


@pytest.mark.parametrize(
    ("point", "times"),
    [
        *((point, 1) for point in ("cutoff.planned", "cascade.recorded", "cascade.begun", "cutoff.cascaded")),
        *(("worker.changed", 1), ("liquidation.closed", 1), ("cascade.noted", 1), ("worker.changed", 2)),
    ],
)
def test_kf13_no_follower_is_forgotten_once_the_master_is_flat(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, point: str, times: int
) -> None:
    desk = copied_master(bundled_server)
    set_balance(desk, MASTER, "100")
    died = crash_at(desk, monkeypatch, point, times)
    assert died or times > 1
    if desk.client.keys("copyrisk:{cutoff}:cascade:*"):  # the list is frozen: from now on nobody leaves it
        desk.client.delete("copy_master_followers:M:active")
    desk.steps(3)
    desk.until_quiet()
    assert desk.is_flat(MASTER) and desk.copies("O") == desk.copies("P") == {}
    assert cascade_of(desk).keys() == {"F0", "F1", "F2", "FLAT"}
    for name in ("F1", "F2"):
        assert len({close["order_id"] for close in desk.closes(f"copy_follower:{name}")}) == 2
        assert len(desk.closes(f"copy_follower:{name}")) == 2
    assert_books(desk)


# ---- 14: one warning an episode, whatever the mail server does


def test_kf14_a_mail_server_that_is_down_repeats_no_warning(bundled_server: Any) -> None:
    desk = CutoffDesk(bundled_server)
    with ExitStack() as stack:
        house = House(bundled_server, stack)
        desk.holder("live:1", "450", email="a@example.com", account_number="7001")
        notifier = house.notifier()
        for _ in range(20):
            assert desk.step().warned <= 1
            notifier.step(0)
        until(lambda: bool(notifier.step(0)) and house.state(number=episode_of(desk))["smtp:code"] != "")
        assert len(desk.trail("warning")) == 1 and desk.client.xlen(NOTICES) == 1
        house.mail()
        house.deliver(notifier)
        desk.steps(5)
        house.deliver(notifier)
        assert house.office.addresses() == ["a@example.com"]
    desk.close()


def episode_of(desk: CutoffDesk) -> int:
    return int(desk.episode("live:1")["number"])


def test_kf14_a_mail_server_that_hangs_holds_up_no_close(bundled_server: Any) -> None:
    """Warnings are taken to clients by a process of its own; here nobody takes them at all."""
    desk = CutoffDesk(bundled_server)
    for number in range(30):
        desk.holder(f"live:{number}", "450")
    assert desk.step().warned == 30
    desk.holder("demo:1", "100")
    assert desk.step().closes == 1
    assert desk.client.xlen(NOTICES) == 31
    desk.close()


# ---- 15: nobody is kept waiting by somebody else


def test_kf15_one_bad_account_or_symbol_keeps_nobody_from_being_closed(desk: CutoffDesk) -> None:
    for number, (_, spoil) in enumerate(UNREADABLE.values()):
        desk.holder(f"demo:{number}", "90", (f"D{number}", "1"))
        spoil_of(spoil, number)(desk.client)
    desk.client.hset("market:XAUUSD", mapping={"bid": "0", "ts": "0"})
    desk.client.set("groups:{Standard}:XAUUSD", "x")
    desk.holder("demo:gold", "90", ("G", "1"))
    desk.position("demo:gold", "H", symbol="XAUUSD")
    desk.client.hset("user:{nobody:1}:config", "wallet_balance", "1")
    desk.client.hset("user:{live:1}\n}:config", "wallet_balance", "1")
    desk.client.hset(EPISODES, "nobody", "x")
    desk.holder("live:9", "100")
    desk.steps(2)
    assert desk.is_flat("live:9")
    assert desk.open_lots("live:1") == 3 and desk.closes("demo:gold") == []


def spoil_of(spoil: Callable[[Any], object], number: int) -> Callable[[Any], object]:
    """The same for another account; what belongs to all stays as it is."""

    class Elsewhere:
        def __init__(self, client: Any) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(key: str, *words: Any) -> Any:
                if "{live:1}" not in key:
                    return 0
                there = key.replace("{live:1}:A", f"{{demo:{number}}}:D{number}").replace("live:1", f"demo:{number}")
                return getattr(self._client, name)(there, *words)

            return call

    return lambda client: spoil(Elsewhere(client))


def test_kf15_one_that_cannot_be_closed_keeps_nobody_waiting(desk: CutoffDesk) -> None:
    """A spread wider than the price leaves nothing to sell at."""
    desk.office.group("GBPUSD", spread="1", spread_pip="10")
    desk.quote("1", "1", "GBPUSD")
    desk.holder("demo:1", "5000")
    desk.client.delete("user_orders_index:{demo:1}", "user_holdings:{demo:1}:O-demo-1", "order_data:O-demo-1")
    desk.client.delete("symbol_holders:EURUSD:demo")
    for number in range(40):  # the worst come first
        desk.position("demo:1", f"G{number}", "0.1", symbol="GBPUSD")
    for number in range(20):
        desk.holder(f"copy_follower:{number}", "5000")
    desk.step()
    desk.print_again()
    for account, balance in ({"demo:1": "-500"} | {f"copy_follower:{i}": "50" for i in range(20)}).items():
        set_balance(desk, account, balance)
    report = desk.step()
    assert (report.breached, report.closes) == (21, 20)
    assert all(desk.is_flat(f"copy_follower:{number}") for number in range(20))
    assert len(desk.index("demo:1")) == 40
    desk.client.hset("groups:{Standard}:GBPUSD", "spread", "0")
    desk.drop_daemon()  # it would ask again by itself, a few seconds later
    until(lambda: desk.step().liquidating == 0, 20)
    assert desk.is_flat("demo:1") and desk.open_lots("live:1") == 3
    assert_books(desk)


# ---- 34: clocks


@pytest.mark.parametrize("hours", [1, -2, 48])
def test_kf34_a_clock_of_ours_that_is_wrong_closes_nobody_and_gives_nobody_the_lease(
    desk: CutoffDesk, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    desk.holder("live:2", "1800", ("X", "2"))
    desk.step()
    second = desk.new_daemon()
    true_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + hours * 3_600_000_000_000)
    set_balance(desk, "live:2", "100")
    assert_untouched(desk, account="live:2", lots=2)
    report = second.tick().cutoff
    assert report is not None and not report.is_leader
    assert desk.step().is_leader
    monkeypatch.undo()
    desk.steps(2)
    assert desk.is_flat("live:2") and desk.open_lots("live:1") == 3 and len(desk.warned()) == 1


@pytest.mark.parametrize("hours", [0, 1, -2])
def test_kf34_a_dead_lease_ends_in_its_time_whatever_our_clock_says(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    desk = CutoffDesk(bundled_server, cutoff__lease_ms=400)
    stand_up(desk)
    first, second = desk.daemon, desk.new_daemon()
    true_ns, began_s = time.time_ns, time.monotonic()
    assert first.tick().cutoff.is_leader  # type: ignore[union-attr]
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + hours * 3_600_000_000_000)
    until(lambda: bool(second.tick().cutoff.is_leader))  # type: ignore[union-attr]
    assert time.monotonic() - began_s > 0.15  # what was left of it when it was renewed last
    assert not first.tick().cutoff.is_leader  # type: ignore[union-attr]
    desk.close()


# ---- 35: what a server takes in late


@pytest.mark.slow
@pytest.mark.fault
def test_kf35_a_close_that_the_server_takes_in_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stood still, with a close in its queue whose sender has gone; a failover: `test_cutoff_faults`."""
    with EmbeddedServer.start() as running:
        desk = CutoffDesk(Server(running.url, running.pid))
        stand_up(desk)
        client = connect(running.url, connect_timeout_ms=300, reply_timeout_ms=300)
        desk.drop_daemon()
        desk._daemon = make_engine(client, desk.settings)
        desk.step()
        set_balance(desk, "live:1", "150")
        calls: list[int] = []

        def reach(name: str) -> None:
            if name == "worker.decided" and not calls:
                calls.append(function_calls(desk))
                os.kill(running.pid, signal.SIGSTOP)

        monkeypatch.setattr(crash, "reach", reach)
        desk.full_step()
        report = None if calls else desk.full_step()  # of an account that has changed nothing is decided in that tick
        stood_s = time.monotonic()
        assert calls and (report is None or report.skipped)
        until(lambda: time.monotonic() - stood_s > 2.5)
        os.kill(running.pid, signal.SIGCONT)
        until(lambda: function_calls(desk) == calls[0] + 1)  # it was in the queue, and is taken in
        assert desk.closes("live:1") == [] and len(desk.index("live:1")) == 2
        set_balance(desk, "live:1", "1800")  # nor is it of use by now: the client has paid
        desk.price("1")
        until(lambda: not desk.full_step().skipped)
        assert desk.steps(2)[-1].liquidating == 0 and desk.open_lots("live:1") == 3
        set_balance(desk, "live:1", "150")
        desk.steps(2)
        assert [close["order_id"] for close in desk.closes("live:1")] == ["A"]
        assert_paid(desk, "live:1", 150)
        client.close()
        desk.close()


def function_calls(desk: CutoffDesk) -> int:
    return int(desk.client.info("commandstats")["cmdstat_fcall"]["calls"])
