"""Limits of followers: what reaches them, what they do, and that nothing unknown, deposited or restarted does."""

import time
from decimal import Decimal
from typing import Any

import pytest

from tests.copying_desk import MASTER, CopyDesk, assert_replicated

F = "copy_follower:F"


@pytest.fixture
def desk(bundled_server: Any) -> CopyDesk:
    return CopyDesk(bundled_server)


def check(desk: CopyDesk) -> None:
    """Have the limits checked on what is known now."""
    for _ in range(2):
        time.sleep(0.012)
        desk.replicator._look()
        desk.replicator.step(1)
    desk.replicate()


def status(desk: CopyDesk) -> str:
    return str(desk.client.hget(f"user:{{{F}}}:config", "copy_status").decode())


def fall(desk: CopyDesk, points: int) -> None:
    """Let the market fall by so many thousandths; a follower with one lot loses a hundred USD with each."""
    desk.quote(Decimal("1.0845") - Decimal(points) / 1000, Decimal("1.08455") - Decimal(points) / 1000)


def with_one_lot(desk: CopyDesk, **config: object) -> None:
    """Master and follower have 100,000 and one lot each; the follower's result is -5 USD."""
    desk.follower("F", 100_000, **config)
    desk.open_master(lots="1")
    assert desk.lots() == {"F": Decimal(1)}
    check(desk)


def opens(desk: CopyDesk, order_id: str) -> str:
    desk.open_master(order_id, lots="0.1")
    return desk.result("F", order_id)


def test_a_daily_loss_ends_new_copies_and_nothing_else(desk: CopyDesk) -> None:
    with_one_lot(desk, max_daily_loss="1000")
    fall(desk, 9)
    check(desk)
    assert opens(desk, "O2") == "copied"
    fall(desk, 10)
    check(desk)
    assert opens(desk, "O3") == "daily_loss_reached"
    assert (status(desk), desk.lots()) == ("active", {"F": Decimal(1)})
    fall(desk, 5)
    check(desk)
    assert opens(desk, "O4") == "copied", "it holds as long as the loss does"


def test_a_realised_loss_counts_and_a_withdrawal_does_not(desk: CopyDesk) -> None:
    with_one_lot(desk, max_daily_loss="1000")
    desk.configure(F, wallet_balance="50000")
    check(desk)
    assert opens(desk, "O2") == "copied"
    fall(desk, 15)
    desk.close_master()
    check(desk)
    assert desk.lots() == {}
    assert opens(desk, "O3") == "daily_loss_reached"


def test_a_new_day_begins_anew(desk: CopyDesk) -> None:
    with_one_lot(desk, max_daily_loss="1000")
    fall(desk, 15)
    check(desk)
    desk.client.hset(f"copyrisk:{{{F}}}:copying", "day", "2001-01-01")
    desk.drop_replicator()
    check(desk)
    assert opens(desk, "O2") == "copied"


def test_limits_are_remembered_across_a_restart(desk: CopyDesk) -> None:
    with_one_lot(desk, max_daily_loss="1000")
    desk.drop_replicator()
    fall(desk, 15)
    check(desk)
    assert opens(desk, "O2") == "daily_loss_reached"


def test_a_drawdown_from_the_peak_pauses_until_somebody_resumes(desk: CopyDesk) -> None:
    with_one_lot(desk, stop_copying_on_drawdown="2")
    fall(desk, -30)  # up by 3,000
    check(desk)
    fall(desk, -10)  # 2,000 below the peak of about 103,000: not 2 %
    check(desk)
    assert (status(desk), opens(desk, "O2")) == ("active", "copied")
    fall(desk, -9)
    check(desk)
    assert status(desk) == "paused"
    assert desk.lots() == {"F": Decimal(1)}, "it keeps what it has"
    assert opens(desk, "O3") == "drawdown_reached"
    desk.configure(F, copy_status="active")  # resumed, at this loss: a new peak
    check(desk)
    assert (status(desk), opens(desk, "O4")) == ("active", "copied")


@pytest.mark.parametrize(
    ("config", "points", "reason"),
    [
        ({"copy_sl_mode": "amount", "sl_amount": "500"}, 5, "account_stop_loss"),
        ({"copy_sl_mode": "percentage", "sl_percentage": "0.5"}, 5, "account_stop_loss"),
        ({"copy_tp_mode": "amount", "tp_amount": "500"}, -6, "account_take_profit"),
        ({"copy_tp_mode": "percentage", "tp_percentage": "0.5"}, -6, "account_take_profit"),
    ],
)
def test_the_accounts_own_stop_loss_and_take_profit_close_every_copy(
    desk: CopyDesk, config: dict[str, str], points: int, reason: str
) -> None:
    with_one_lot(desk, investment_amount="100000", **config)
    fall(desk, points - 1 if points > 0 else points + 1)
    check(desk)
    assert (status(desk), desk.lots()) == ("active", {"F": Decimal(1)})
    fall(desk, points)
    check(desk)
    desk.replicate_until_settled()
    assert (status(desk), desk.lots()) == ("paused", {})
    assert opens(desk, "O2") == reason
    assert desk.index(MASTER) == {"O", "O2"}, "the master goes on"
    assert_replicated(desk, "O", "O2")


def test_without_an_investment_a_percentage_is_none(desk: CopyDesk) -> None:
    with_one_lot(desk, copy_sl_mode="percentage", sl_percentage="0.5")
    fall(desk, 50)
    check(desk)
    assert (status(desk), opens(desk, "O2")) == ("active", "copied")


def test_nothing_is_done_on_a_dead_quote(desk: CopyDesk) -> None:
    with_one_lot(desk, copy_sl_mode="amount", sl_amount="500", investment_amount="100000", max_daily_loss="10")
    desk.quote("0.5", "0.6", ts=1)
    check(desk)
    assert (status(desk), desk.lots()) == ("active", {"F": Decimal(1)})


def at_its_stop_loss(server: Any) -> CopyDesk:
    """In provider flow, a follower whose one lot has just reached its account's stop loss."""
    desk = CopyDesk(server, "barclays")
    desk.follower("F", 100_000, copy_sl_mode="amount", sl_amount="500", investment_amount="100000")
    desk.open_master(lots="1")
    desk.provider_says("filled")
    fall(desk, 6)
    check(desk)
    return desk


def test_it_closes_in_provider_flow_when_the_copy_is_filled(bundled_server: Any) -> None:
    desk = at_its_stop_loss(bundled_server)
    assert status(desk) == "paused"
    assert [request["action"] for request in desk.unanswered(F)] == ["close"]
    check(desk)
    assert len(desk.unanswered(F)) == 1, "asked once"
    desk.provider_says("filled")
    desk.replicate_until_settled()
    assert desk.lots() == {}
    assert_replicated(desk)


def test_a_master_who_moves_its_levels_meanwhile_does_not_call_the_close_off(bundled_server: Any) -> None:
    desk = at_its_stop_loss(bundled_server)
    (own,) = desk.waiting_copies()
    desk.do("take_profit", MASTER, order_id="O", take_profit="1.2")
    check(desk)
    assert desk.waiting_copies()[own]["closes"] is True
    desk.provider_says("rejected", F)
    check(desk)
    assert [request["action"] for request in desk.unanswered(F)] == ["close"], "asked again"
    desk.provider_says("filled")
    desk.replicate_until_settled()
    assert desk.lots() == {}
