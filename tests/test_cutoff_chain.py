"""Daemons that die in the middle of a liquidation or a cascade: nothing forgotten, nothing closed twice or too much."""

import json
import time
from typing import Any

import pytest

from copyrisk import crash
from tests.copying_desk import MASTER, Died
from tests.cutoff_desk import CutoffDesk
from tests.trading import assert_books

FOLLOWER, LATE = "copy_follower:F", "copy_follower:LATE"


# ---- single deaths, in this process


def die_at(desk: CutoffDesk, patch: pytest.MonkeyPatch, point: str, times: int = 1) -> None:
    """Tick until the daemon dies at a point, reached for the n-th time; another one is there at once."""
    left = [times]

    def reach(name: str) -> None:
        if name == point:
            left[0] -= 1
            if not left[0]:
                raise Died(name)

    with patch.context() as patched:
        patched.setattr(crash, "reach", reach)
        with pytest.raises(Died):
            _ticks(desk, 20)
    desk.drop_daemon()


def _ticks(desk: CutoffDesk, count: int) -> None:
    for _ in range(count):
        desk.full_step()


@pytest.fixture
def desk(bundled_server: Any) -> CutoffDesk:
    return CutoffDesk(bundled_server)


@pytest.fixture
def provider(bundled_server: Any) -> CutoffDesk:
    return CutoffDesk(bundled_server, "barclays")


def copied(desk: CutoffDesk, follower: str = FOLLOWER, order_id: str = "O") -> str:
    """A copy of a master's order; its id."""
    own = f"copy-{order_id}-{follower.partition(':')[2]}"
    desk.position(follower, own, "0.1", master_order_id=order_id)
    return own


def cascades(desk: CutoffDesk) -> list[str]:
    """Ids of cascades that have ended."""
    return [one.decode() for one in desk.client.zrange("copyrisk:{cutoff}:cascades_done", 0, -1)]


@pytest.mark.parametrize("how", ["gone", "blink"])
def test_a_master_is_not_closed_before_his_cascade_has_begun(
    desk: CutoffDesk, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """At the second look the order that it asks for is gone, or the master is well for a moment; and then he is not."""
    desk.follower("F")
    desk.position(MASTER, "O", "1", "1.0001")
    desk.position(MASTER, "P", "1")
    copied(desk, order_id="P")
    desk.step()
    desk.configure(MASTER, wallet_balance="95")
    liquidator = desk.daemon._autocutoff._liquidator  # type: ignore[union-attr]
    confirmed = liquidator.confirmed

    def look(plans: Any) -> Any:
        if how == "gone":
            desk.do("close", MASTER, order_id="O")
            return confirmed(plans)
        desk.configure(MASTER, wallet_balance="2000")
        found = confirmed(plans)
        desk.configure(MASTER, wallet_balance="95")
        return found

    monkeypatch.setattr(liquidator, "confirmed", look)
    desk.step()
    monkeypatch.undo()
    desk.until_quiet()
    assert desk.is_flat(MASTER) and desk.is_flat(FOLLOWER)
    assert len(cascades(desk)) == 1


def test_a_cascade_that_waits_for_another_survives_a_crash(provider: CutoffDesk) -> None:
    """A second event while the first one's cascade waits for the provider; who joined in between is in the second."""
    desk = provider
    desk.follower("F")
    desk.follower("LATE", master="X")
    for order_id in ("O", "P"):
        desk.position(MASTER, order_id)
    copied(desk)
    desk.configure(MASTER, wallet_balance="150")
    desk.step()
    desk.provider_says("filled", MASTER, price="1")
    desk.steps()
    (left,) = desk.index(MASTER)
    assert desk.episode(MASTER)["is_critical"] is False and not cascades(desk)
    desk.client.sadd("copy_master_followers:M:active", "LATE")
    own = copied(desk, LATE, left)
    desk.configure(MASTER, wallet_balance="90")
    desk.step()
    desk.provider_says("filled", MASTER, price="1")
    assert desk.is_flat(MASTER)
    desk.drop_daemon()
    desk.step()
    desk.provider_says("filled", FOLLOWER, price="1")
    deadline_s = time.monotonic() + 10.0
    while not desk.is_flat(LATE):
        assert time.monotonic() < deadline_s, "forgotten"
        desk.step()
        desk.provider_says("filled", LATE, price="1")
    assert desk.data(own)["reason"] == "cascade" and len(desk.requests()) == 4


def test_flatten_that_had_not_begun_is_not_begun_by_a_restart(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = CutoffDesk(bundled_server, cutoff__stop_out="flatten")
    desk.holder("live:1", "100")
    die_at(desk, monkeypatch, "cutoff.stored")
    desk.configure("live:1", wallet_balance="5000")
    desk.steps(3)
    assert desk.open_lots("live:1") == 1


@pytest.mark.parametrize("point", ["worker.changed", "liquidation.closed"])
def test_flatten_that_had_begun_goes_on_after_a_restart(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """By then the account is well; but half a house is no house."""
    desk = CutoffDesk(bundled_server, cutoff__stop_out="flatten")
    desk.holder("live:1", "300", *((name, "1") for name in "ABC"))
    die_at(desk, monkeypatch, point)
    desk.configure("live:1", wallet_balance="5000")
    desk.until_quiet()
    assert desk.is_flat("live:1")
    assert_books(desk)


def test_a_master_who_is_half_flat_is_flattened_by_the_daemon_after_the_next(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """His cascade is over by then; a second look finds him well, as it should after half of it."""
    desk = CutoffDesk(bundled_server, cutoff__stop_out="flatten")
    desk.follower("F")
    for order_id in "AB":
        desk.position(MASTER, order_id)
    copied(desk, order_id="A")
    desk.configure(MASTER, wallet_balance="150")
    die_at(desk, monkeypatch, "worker.changed")
    assert len(desk.index(MASTER)) == 1
    die_at(desk, monkeypatch, "cascade.ended")
    desk.until_quiet()
    desk.steps()
    assert desk.is_flat(MASTER) and desk.is_flat(FOLLOWER)


@pytest.mark.parametrize("point", ["worker.changed", "liquidation.closed"])
def test_what_follows_from_a_kill_s_close_is_brought_about_after_a_crash(
    desk: CutoffDesk, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """An account that never was critical, and has nothing left that anybody could ask for."""
    desk.holder("live:1", "5000")
    desk.step()
    said = {"policy": "close", "reason": "test", "by": "risk", "ts_ms": 1_770_000_000_000}
    desk.client.hset("copyrisk:kills", "account:live:1", json.dumps(said))
    die_at(desk, monkeypatch, point)
    desk.steps(3)
    assert desk.is_flat("live:1")
    assert_books(desk)


@pytest.mark.parametrize("who", ["another daemon", "the client"])
def test_a_close_in_flight_counts_whoever_sent_it(provider: CutoffDesk, who: str) -> None:
    """It will do; that another order's loss is the larger one meanwhile is no reason to close that one, too."""
    desk = provider
    desk.office.group("GBPUSD")
    desk.price("1", "GBPUSD")
    desk.account("live:1", "barclays", "5000" if who == "the client" else "300")
    desk.position("live:1", "A", "1", "1.0010")  # -100
    desk.position("live:1", "B", "1", "1.0005", symbol="GBPUSD")  # -50: 150 / 2,000 = 7.5 %; 15 % without A
    if who == "the client":
        assert desk.do("close", "live:1", order_id="A")["code"] == "ok"
        desk.configure("live:1", wallet_balance="300")
    else:
        desk.step()
        desk.drop_daemon()
    assert [request["order_id"] for request in desk.requests()] == ["A"]
    desk.price("1.0006")
    desk.price("0.9995", "GBPUSD")  # -40 and -100: 160 / 2,000 = 8 %; 16 % without A
    desk.steps(3)
    assert {request["order_id"] for request in desk.requests()} == {"A"}


def test_a_master_who_recovered_and_is_critical_again_is_cascaded_again(
    desk: CutoffDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looked when he was flat, and traded, and was copied again."""
    desk.follower("F")
    desk.position(MASTER, "O")
    copied(desk)
    desk.configure(MASTER, wallet_balance="95")
    desk.step()
    assert desk.is_flat(MASTER) and desk.is_flat(FOLLOWER) and desk.episode(MASTER)["is_critical"]
    desk.drop_daemon()
    desk.position(MASTER, "P")
    copied(desk, order_id="P")
    desk.until_quiet()
    desk.steps()
    assert desk.is_flat(MASTER) and desk.is_flat(FOLLOWER)
