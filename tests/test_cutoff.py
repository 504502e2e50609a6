"""Autocutoff on real servers: warnings, liquidation, restarts, leases. The figures are worked out by hand."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.cutoff_desk import CutoffDesk
from tests.trading import assert_books

TYPES = ("live", "demo", "strategy_provider", "copy_follower")


@pytest.fixture
def desk(redis_server: Any) -> CutoffDesk:
    return CutoffDesk(redis_server)


@pytest.fixture
def provider(redis_server: Any) -> CutoffDesk:
    return CutoffDesk(redis_server, "barclays")


# ---- the thresholds


@pytest.mark.parametrize("kind", TYPES)
def test_exactly_10_percent_is_closed_and_a_cent_more_is_not(desk: CutoffDesk, kind: str) -> None:
    desk.holder(f"{kind}:at", "100.00")
    desk.holder(f"{kind}:above", "100.01")
    desk.holder(f"{kind}:below", "99.99")
    report = desk.step()
    assert (report.breached, report.closes, report.delayed_ticks) == (2, 2, [1, 1])
    assert desk.is_flat(f"{kind}:at") and desk.is_flat(f"{kind}:below") and not desk.is_flat(f"{kind}:above")
    assert desk.step().closes == 0
    assert_books(desk)


@pytest.mark.parametrize("kind", TYPES)
def test_exactly_50_percent_is_warned_of_and_a_cent_more_is_not(desk: CutoffDesk, kind: str) -> None:
    desk.holder(f"{kind}:at", "500.00")
    desk.holder(f"{kind}:above", "500.01")
    desk.holder(f"{kind}:below", "499.99")
    assert desk.step().warned == 2
    assert sorted(desk.warned()) == [f"{kind}:at", f"{kind}:below"]
    assert [desk.open_lots(f"{kind}:{name}") for name in ("at", "above", "below")] == [1, 1, 1]


def test_an_account_has_its_own_levels(desk: CutoffDesk) -> None:
    desk.holder("live:1", "300", auto_cutoff_level="80", auto_liquidation_level="30")
    desk.holder("live:2", "300", auto_cutoff_level="20", auto_liquidation_level="30")  # makes no sense: the defaults
    report = desk.step()
    assert (report.warned, report.breached) == (2, 1)
    assert desk.is_flat("live:1") and desk.open_lots("live:2") == 1


def test_what_is_not_known_is_neither_warned_nor_closed(desk: CutoffDesk) -> None:
    desk.holder("live:balance", "none")
    desk.holder("live:empty", "")
    desk.holder("live:nan", "nan")
    desk.holder("live:order", "50")
    desk.position("live:order", "X", price="")
    desk.holder("live:gone", "50")
    desk.client.sadd("user_orders_index:{live:gone}", "nobody")
    desk.holder("live:leverage", "50", leverage="0")
    desk.holder("live:symbol", "50")
    desk.position("live:symbol", "S", symbol="XAUUSD")
    report = desk.step()
    assert (report.warned, report.breached, report.closes) == (0, 0, 0)
    assert all(not desk.is_flat(account) for account in desk.accounts() if account.startswith("live:"))
    assert desk.notices() == [] and desk.trail() == []


# ---- liquidation


def test_the_largest_loss_first_and_only_as_many_as_are_needed(desk: CutoffDesk) -> None:
    desk.account("live:1", "rock", "300")
    desk.position("live:1", "A", "1", "1.0005")  # -50
    desk.position("live:1", "B", "1", "1.001")  # -100
    desk.position("live:1", "C", "1", "1.0002")  # -20
    desk.position("live:1", "D", "0.5", "0.9994")  # +30: equity 160, margin 3,500
    report = desk.step()
    # without B: 160 / 2,500 = 6.4 %, without A too: 160 / 1,500 = 10.67 %
    assert (report.closes, desk.index("live:1")) == (2, {"C", "D"})
    assert [close["order_id"] for close in desk.closes("live:1")] == ["B", "A"]
    assert desk.balance("live:1") == 150
    assert desk.step().liquidating == 0
    assert_books(desk)


def test_what_loses_more_than_there_is_is_closed_to_the_last_lot(desk: CutoffDesk) -> None:
    desk.account("live:1", "rock", "100")
    for order_id, price in (("A", "1.01"), ("B", "1.02"), ("C", "1.03")):
        desk.position("live:1", order_id, "1", price)
    desk.step()
    assert desk.is_flat("live:1") and desk.balance("live:1") == -5900
    assert_books(desk)


@pytest.mark.parametrize("level", [0, 1, 5, 9])
def test_an_account_without_equity_is_closed(desk: CutoffDesk, level: int) -> None:
    desk.holder("live:1", str(level * 10))
    desk.steps()
    assert desk.is_flat("live:1")


def test_pending_orders_of_a_critical_account_are_taken_back_first(desk: CutoffDesk) -> None:
    desk.account("live:1", "rock", "5000")
    assert desk.pend("live:1", "P", "BUY_LIMIT", "0.9", "1")["code"] == "ok"
    desk.position("live:1", "A")
    desk.client.hset("user:{live:1}:config", "wallet_balance", "100")
    report = desk.step()
    assert (report.cancels, report.closes) == (1, 1)
    assert [entry["order_id"] for entry in desk.audit("live:1")[-2:]] == ["P", "A"]
    assert desk.is_flat("live:1") and desk.data("P")["order_status"] == "CANCELLED"
    assert_books(desk)


def test_orders_with_a_stop_loss_are_no_exception(desk: CutoffDesk) -> None:
    desk.account("live:1", "rock", "5000")
    assert desk.open("live:1", "A", stop_loss="0.9", take_profit="1.1")["code"] == "ok"
    desk.client.hset("user:{live:1}:config", "wallet_balance", "100")
    desk.step()
    assert desk.is_flat("live:1") and desk.triggers("A") == {}
    assert_books(desk)


@pytest.mark.parametrize("flow", ["", "elsewhere"])
def test_a_live_account_without_a_flow_is_closed_in_the_flow_of_its_orders(desk: CutoffDesk, flow: str) -> None:
    desk.holder("live:1", "100")
    desk.client.hset("user:{live:1}:config", "sending_orders", flow)
    desk.step()
    assert desk.is_flat("live:1")


def test_a_deposit_that_comes_first_saves_the_account(desk: CutoffDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.holder("live:1", "100")
    deposit = desk.client.hset
    liquidator = desk.daemon._autocutoff._liquidator  # type: ignore[union-attr]
    carry_out = liquidator.carry_out

    def after_a_deposit(*args: Any) -> Any:
        deposit("user:{live:1}:config", "wallet_balance", "5000")
        return carry_out(*args)

    monkeypatch.setattr(liquidator, "carry_out", after_a_deposit)
    report = desk.step()
    assert (report.breached, report.closes) == (1, 0)
    monkeypatch.undo()
    assert desk.step().liquidating == 0
    assert desk.open_lots("live:1") == 1


def test_flatten_closes_everything_once_it_has_begun(redis_server: Any) -> None:
    desk = CutoffDesk(redis_server, cutoff__stop_out="flatten")
    desk.account("live:1", "rock", "300")
    for order_id in "ABCD":
        desk.position("live:1", order_id, "1", "1.0001")
    desk.holder("live:2", "300")
    assert desk.step().closes == 4
    assert desk.is_flat("live:1") and desk.open_lots("live:2") == 1
    assert desk.episode("live:1")["is_latched"] is True
    assert desk.step().liquidating == 0


def test_smallest_partial_closes_as_few_lots_as_it_takes(redis_server: Any) -> None:
    desk = CutoffDesk(redis_server, cutoff__stop_out="smallest_partial")
    desk.holder("live:1", "90", ("A", "1"))
    desk.step()
    # 90 / x > 10 % needs a margin below 900: 0.11 lots less
    assert desk.open_lots("live:1") == Decimal("0.89")
    assert desk.step().liquidating == 0
    assert_books(desk)


# ---- the provider's flow


def test_closes_with_the_provider_are_sent_once_and_count_as_closed(provider: CutoffDesk) -> None:
    provider.holder("live:1", "150", ("A", "1"), ("B", "1"))
    assert provider.step().closes == 1
    assert len(provider.unanswered("live:1", "close")) == 1
    assert [report.closes for report in provider.steps(3)] == [0, 0, 0]
    assert len(provider.requests()) == 1
    provider.provider_says("filled", "live:1", price="1")
    provider.until_quiet()
    assert provider.open_lots("live:1") == 1 and len(provider.requests()) == 1
    assert_books(provider)


def test_a_close_that_the_provider_rejects_is_sent_again(provider: CutoffDesk) -> None:
    provider.holder("live:1", "100")
    provider.step()
    provider.provider_says("rejected", "live:1")
    provider.daemon._autocutoff._liquidator.under_way.forget()  # type: ignore[union-attr]  # as if a second had passed
    provider.step()
    assert len(provider.requests()) == 2
    provider.provider_says("filled", "live:1", price="1")
    provider.until_quiet()
    assert provider.is_flat("live:1")
    assert_books(provider)


# ---- warnings


def test_one_warning_an_episode(desk: CutoffDesk) -> None:
    desk.holder("live:1", "500", email="a@example.com", account_number="7001")
    desk.steps(3)
    (notice,) = desk.notices()
    assert notice["kind"] == "warning" and notice["user_id"] == "1"
    said = notice["said"]
    assert (said["level_pct"], said["equity_usd"], said["used_margin_usd"]) == (50.0, 500.0, 1000.0)
    assert said["positions"] == [
        {"order_id": "O-live-1", "symbol": "EURUSD", "side": "BUY", "lots": 1.0, "pnl_usd": 0.0}
    ]
    (entry,) = desk.trail("warning")
    assert entry["account"] == "live:1" and entry["cause"] == notice["notice_id"]
    assert entry["said"]["quotes"]["EURUSD"]["bid"] == 1.0 and entry["said"]["quotes"]["EURUSD"]["age_ms"] >= 0


def test_an_episode_ends_five_points_above_the_threshold(redis_server: Any) -> None:
    desk = CutoffDesk(redis_server, cutoff__warning_cooldown_ms=0)
    desk.holder("live:1", "500")
    desk.step()
    for balance, warnings in (("550", 1), ("499", 1), ("550.01", 1), ("500", 2)):
        desk.client.hset("user:{live:1}:config", "wallet_balance", balance)
        desk.step()
        assert len(desk.warned()) == warnings, balance
    assert len({notice["notice_id"] for notice in desk.notices()}) == 2


def test_within_the_cool_down_a_new_episode_is_warned_of_at_its_end(redis_server: Any) -> None:
    desk = CutoffDesk(redis_server, cutoff__warning_cooldown_ms=400)
    desk.holder("live:1", "500")
    desk.step()
    for balance in ("900", "400"):
        desk.client.hset("user:{live:1}:config", "wallet_balance", balance)
        desk.step()
    first = desk.notices()[0]
    while len(desk.notices()) == 1:
        desk.step()
    assert int(desk.notices()[1]["ts"]) - int(first["ts"]) >= 400
    desk.steps(3)
    assert len(desk.notices()) == 2


@pytest.mark.parametrize("when", ["at once", "while down"])
def test_a_restart_neither_repeats_a_warning_nor_forgets_one(desk: CutoffDesk, when: str) -> None:
    desk.holder("live:1", "500")
    desk.holder("live:2", "900")
    desk.step()
    desk.drop_daemon()
    if when == "while down":
        desk.client.hset("user:{live:2}:config", "wallet_balance", "400")
    desk.steps(3)
    assert desk.warned() == (["live:1", "live:2"] if when == "while down" else ["live:1"])


# ---- whose turn it is


def test_of_two_daemons_one_acts(desk: CutoffDesk) -> None:
    desk.holder("live:1", "900")
    assert desk.step().is_leader
    first, second = desk.daemon, desk.new_daemon()
    assert first.tick().cutoff.is_leader and not second.tick().cutoff.is_leader  # type: ignore[union-attr]
    desk.client.hset("user:{live:1}:config", "wallet_balance", "100")
    for _ in range(3):
        second.tick()
    assert not desk.is_flat("live:1")
    for _ in range(2):
        first.tick()
    assert desk.is_flat("live:1") and len(desk.closes("live:1")) == 1


def test_a_daemon_that_stood_still_closes_nothing_after_another_took_over(
    desk: CutoffDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.holder("live:1", "2000", ("A", "1"), ("B", "1"))
    desk.step()
    first = desk.daemon
    desk.client.hset("user:{live:1}:config", "wallet_balance", "100")
    liquidator = first._autocutoff._liquidator  # type: ignore[union-attr]
    carry_out = liquidator.carry_out

    def after_standing_still(*args: Any) -> Any:
        desk.drop_daemon()
        desk.client.hset("user:{live:1}:config", "wallet_balance", "150")
        desk.step()  # another daemon takes over and closes what is needed
        desk.client.hset("user:{live:1}:config", "wallet_balance", "90")  # and the account is critical again
        return carry_out(*args)

    monkeypatch.setattr(liquidator, "carry_out", after_standing_still)
    assert first.tick().cutoff.held == 1  # type: ignore[union-attr]
    report = first.tick().cutoff
    assert report is not None and (report.closes, report.refused) == (0, 1), report
    assert len(desk.index("live:1")) == 1 and len(desk.closes("live:1")) == 1
    monkeypatch.undo()
    again = first.tick().cutoff
    assert again is not None and not again.is_leader
    assert desk.step().closes == 1 and desk.is_flat("live:1")


def test_portfolios_are_written_whatever_hinders_autocutoff(desk: CutoffDesk) -> None:
    desk.holder("live:1", "400")
    desk.client.set("copyrisk:{cutoff}:episodes", "x")
    report = desk.full_step()
    assert report.cutoff is not None and report.cutoff.failure and report.skipped is None
    assert desk.office.portfolio("live:1")["margin_level"] == "40.0"
    desk.client.delete("copyrisk:{cutoff}:episodes")
    assert desk.step().warned == 1 and desk.warned() == ["live:1"]


def test_a_server_that_lost_its_functions_gets_them_again(desk: CutoffDesk) -> None:
    desk.holder("live:1", "400")
    desk.step()
    desk.client.function_flush()
    desk.holder("live:2", "100")
    while (report := desk.full_step().cutoff) is None or report.failure or report.held:
        pass
    desk.step()
    assert desk.is_flat("live:2")


def test_a_fault_of_ours_keeps_no_portfolio_from_being_written(
    desk: CutoffDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.holder("live:2", "900")
    desk.step()
    desk.holder("live:1", "100")

    def fail(*_: Any) -> Any:
        raise RuntimeError("a fault")

    monkeypatch.setattr(desk.daemon._autocutoff._liquidator, "plan", fail)  # type: ignore[union-attr]
    assert desk.full_step().cutoff.held == 1  # type: ignore[union-attr]
    report = desk.full_step()
    assert report.cutoff is not None and report.cutoff.failure == "internal_error" and report.skipped is None
    assert desk.office.portfolio("live:2")["margin_level"] == "90.0"
    monkeypatch.undo()
    assert desk.step().closes == 1 and desk.is_flat("live:1")


def test_a_user_may_do_no_more_than_is_documented(desk: CutoffDesk) -> None:
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    wanted = ("reading", "writing", "connecting", "hearing of changes", "closing")
    rows = [line for line in page.splitlines() if line.startswith(tuple(f"| {name} |" for name in wanted))]
    assert len(rows) == len(wanted)
    rules = [
        rule for row in rows for quoted in re.findall(r"`([^`]+)`", row) for rule in quoted.replace("\\|", "|").split()
    ]
    keys = ("reset", "on", ">pw", "resetkeys", "resetchannels", "-@all")
    desk.client.execute_command("ACL", "SETUSER", "daemon", *keys, *[rule for rule in rules if rule[0] in "~+&"])
    desk.server = type(desk.server)(desk.server.url.replace("unix://", "unix://daemon:pw@"), desk.server.pid)
    desk.client.function_flush()
    desk.holder("live:1", "100", ("A", "1"), ("B", "1"))
    desk.holder("live:2", "400")
    desk.followers(2)
    desk.holder("strategy_provider:M", "100", ("O", "1"))
    desk.position("copy_follower:F0", "copy-x", "1", master_order_id="O")
    report = desk.step()
    assert (report.warned, report.breached, report.closes) == (3, 2, 4)
    while desk.step().cascades_running:
        pass
    assert desk.is_flat("copy_follower:F0") and desk.warned() and desk.trail("cascade")
