"""What rounding took from followers is made up for: positions stay within half a step of the exact ratio."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tests.copying_desk import CopyDesk, assert_replicated

STEP, HALF = Fraction(1, 100), Fraction(1, 200)


@pytest.fixture
def desk(bundled_server: Any) -> CopyDesk:
    """The follower has 0.37 of its master's equity; quotes stand still and an order costs nothing."""
    desk = CopyDesk(bundled_server, replication__carries_remainders=True)
    desk.quote("1.0845", "1.0845")
    desk.follower("F", 37_000)
    return desk


def position(desk: CopyDesk, orders: int) -> Fraction:
    return sum((Fraction(lots) for i in range(orders) for lots in desk.lots(f"O{i}").values()), Fraction(0))


def remainders(desk: CopyDesk) -> dict[bytes, bytes]:
    return dict(desk.client.hgetall("copyrisk:{copy_follower:F}:remainders"))


def test_many_small_orders_add_up_to_the_ratio(desk: CopyDesk) -> None:
    exact = Fraction(0)
    for i in range(8):
        desk.open_master(f"O{i}", lots="0.01")
        exact += Fraction(37, 10_000)
        assert abs(position(desk, i + 1) - exact) <= HALF + Fraction(1, 10**9)
    assert position(desk, 8) == Fraction(3, 100)
    assert {desk.result("F", f"O{i}") for i in range(8)} == {"copied", "below_min"}
    for i in range(8):
        desk.close_master(order_id=f"O{i}")
    assert (position(desk, 8), remainders(desk)) == (0, {})
    assert_replicated(desk, *(f"O{i}" for i in range(8)))


def test_sold_lots_count_against_bought_ones(desk: CopyDesk) -> None:
    desk.open_master("O0", lots="0.02")  # 0.0074: 0.01, 0.0026 too much
    desk.open_master("O1", lots="0.03", order_type="SELL")  # 0.0111 and 0.0026: 0.01
    desk.open_master("O2", lots="0.02", order_type="SELL")  # 0.0074 and 0.0037: 0.01
    assert [desk.lots(f"O{i}")["F"] for i in range(3)] == [Decimal("0.01")] * 3
    exact = Fraction(37, 100) * (Fraction(2, 100) - Fraction(3, 100) - Fraction(2, 100))
    assert abs(Fraction(-1, 100) - exact) <= HALF


def test_another_symbol_and_a_restart_change_nothing(desk: CopyDesk) -> None:
    desk.office.group("GBPUSD")
    desk.quote("1.2", "1.2", symbol="GBPUSD")
    desk.open_master("O0", lots="0.01")
    assert desk.result("F", "O0") == "below_min"
    desk.drop_replicator()
    desk.open_master("X", lots="0.01", symbol="GBPUSD")
    assert desk.result("F", "X") == "below_min"
    desk.open_master("O1", lots="0.01")
    assert desk.lots("O1") == {"F": Decimal("0.01")}


def test_a_decision_that_is_carried_out_again_keeps_the_same(desk: CopyDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.open("strategy_provider:M", "O0", "BUY", "0.02")
    desk.crash_at(monkeypatch, "copies.made")
    desk.replicate()
    once = remainders(desk)
    assert len(once) == 1
    assert_replicated(desk, "O0")
    assert Decimal(next(iter(once.values())).decode().rpartition(":")[2]) == Decimal("-0.0026")


def test_partial_closes_end_at_exactly_zero(desk: CopyDesk) -> None:
    desk.open_master("O0", lots="0.50")
    held = [desk.lots("O0")["F"]]
    for _ in range(4):
        desk.close_master("0.11", "O0")
        held.append(desk.lots("O0").get("F", Decimal(0)))
    desk.close_master(order_id="O0")
    assert held == [Decimal("0.19"), Decimal("0.15"), Decimal("0.11"), Decimal("0.06"), Decimal("0.02")]
    assert (desk.lots("O0"), remainders(desk)) == ({}, {})


def test_what_cannot_be_read_sizes_nothing(desk: CopyDesk) -> None:
    desk.client.set("copyrisk:{copy_follower:F}:remainders", "x")
    desk.open_master("O0", lots="1")
    assert desk.result("F", "O0") == "carry_invalid"


def test_without_the_setting_nothing_is_kept(bundled_server: Any) -> None:
    desk = CopyDesk(bundled_server)
    desk.follower("F", 37_000)
    desk.open_master("O0", lots="0.02")
    assert (desk.result("F", "O0"), remainders(desk)) == ("below_min", {})
