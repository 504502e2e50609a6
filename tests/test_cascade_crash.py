"""A cascade whose process dies at any point, among whatever else happens to the same copies: one end for everybody."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cascade_desk import EVENT, POINTS, CascadeDesk, assert_ended
from tests.copying_desk import MASTER
from tests.trading import assert_paid

FROZEN = ["F0", "F1", "FLAT"]


def stand_up(server: Any, flow: str = "rock") -> CascadeDesk:
    """Two followers with two copies each, one without any."""
    desk = CascadeDesk(server, flow)
    desk.followers(2)
    desk.follower("FLAT", multiplier="0.0001")
    for order_id in ("O", "P"):
        desk.open(MASTER, order_id)
        desk.replicate()
        desk.provider_says("filled")
        desk.replicate()
    assert len(desk.copies("O")) == len(desk.copies("P")) == 2
    return desk


def change_the_list(desk: CascadeDesk) -> None:
    """One joins, one leaves, as soon as the list is frozen."""
    if desk.running():
        desk.follower("LATE")
        desk.client.srem("copy_master_followers:M:active", "F1")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_another_process_goes_on(bundled_server: Any, monkeypatch: pytest.MonkeyPatch, point: str, times: int) -> None:
    """The master is flat before, so the state of his orders says nothing of who was to be closed."""
    desk = stand_up(bundled_server)
    assert desk.crash_in_cascade(monkeypatch, point, times) or times > 1
    is_begun = bool(desk.stored())
    change_the_list(desk)
    desk.close_master(order_id="O")
    desk.close_master(order_id="P")
    desk.begin_and_cascade()
    assert desk.begin() == "finished"
    frozen = FROZEN if is_begun else sorted(desk.stages())
    assert {"F0", "F1", "FLAT"} <= set(frozen)
    assert_ended(desk, frozen)
    for name in ("F0", "F1"):
        assert desk.index(f"copy_follower:{name}") == set()
        assert_paid(desk, f"copy_follower:{name}", 10_000)
    assert [entry.reason for entry in desk.entries_recorded][-1] == "cascade_ends"


@pytest.mark.parametrize("point", POINTS[1:7])
def test_another_process_goes_on_with_a_provider(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    desk = stand_up(bundled_server, "barclays")
    desk.crash_in_cascade(monkeypatch, point, meanwhile=lambda: desk.provider_says("filled"))
    change_the_list(desk)
    desk.cascade(meanwhile=lambda: desk.provider_says("filled"))
    assert_ended(desk, FROZEN)
    closes = [request["order_id"] for request in desk.requests() if request["action"] == "close"]
    assert len({request["request_id"] for request in desk.requests() if request["action"] == "close"}) == 4
    assert set(closes) == {own for said in desk.standings().values() for own in said["o"]}
    for name in ("F0", "F1"):
        assert_paid(desk, f"copy_follower:{name}", 10_000)


@pytest.mark.parametrize("point", ["worker.changed", "worker.delivered", "cascade.closed"])
def test_what_follows_from_a_close_is_brought_about_after_a_crash(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Nothing of the follower is left to be closed, but its holders, events and history may not say so yet."""
    desk = CascadeDesk(bundled_server)
    desk.follower("F")
    desk.open_master("O")
    (own,) = [order["order_id"] for order in desk.copies().values()]
    desk.crash_in_cascade(monkeypatch, point)
    assert desk.index("copy_follower:F") == set()
    desk.cascade()
    assert desk.data(own)["order_status"] == "CLOSED"
    assert desk.client.xlen("copyrisk:{copy_follower:F}:outbox") == 0
    assert desk.standings()["F"]["n"] == [1, 0, 0]
    assert_ended(desk, ["F"])


STEPS = ("cascade", "cascade", "replicate", "close", "half", "open", "levels", "client", "crash", "pause")


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=12), st.integers(0, 11))
def test_in_whatever_order_with_replication(bundled_server: Any, steps: list[str], begins: int) -> None:
    interleave(bundled_server, steps, begins)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8), st.integers(0, 7))
def test_in_some_order_with_replication(bundled_server: Any, steps: list[str], begins: int) -> None:
    interleave(bundled_server, steps, begins)


def interleave(server: Any, steps: list[str], begins: int) -> None:
    """The master trades, his orders are replicated, clients close, processes die, while the cascade goes on."""
    with server.client() as client:
        client.flushall()
    desk = stand_up(server)
    seen = {f"{name}:{own}" for name in ("F0", "F1") for own in desk.index(f"copy_follower:{name}")}
    opened = 0
    for place, what in enumerate(steps):
        if place == min(begins, len(steps) - 1):
            assert desk.begin() == "started"
        if what == "cascade":
            desk.step()
        elif what == "replicate":
            desk.replicate()
        elif what == "crash":
            desk.drop_cascader()
        elif what == "pause":
            desk.configure("copy_follower:F0", copy_status="paused")
        elif what == "client":
            for own in sorted(desk.index("copy_follower:F1")):
                desk.send("close", "copy_follower:F1", order_id=own)
        elif what == "open":
            opened += 1
            desk.open(MASTER, f"N{opened}")
        elif what == "levels":
            desk.send("stop_loss", MASTER, order_id="P", stop_loss="1.05")
        else:
            desk.send("close", MASTER, order_id="O", **({"order_quantity": "0.5"} if what == "half" else {}))
        desk.settle()
    if EVENT in desk.running().values():
        desk.cascade()
    desk.settle()
    left = {f"{name}:{own}" for name in ("F0", "F1") for own in desk.index(f"copy_follower:{name}")}
    assert not left & seen, "what was copied before the start is closed"
    desk.replicate()
    assert_ended(desk, FROZEN)
    for name in ("F0", "F1"):
        assert_paid(desk, f"copy_follower:{name}", 10_000)


# ---- known failures of systems of this kind


def test_known_failure_10_and_13_a_crash_leaves_no_flag_and_nobody_is_forgotten(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag that a dead process left behind stops no later cascade; the list outlives the master's orders."""
    desk = stand_up(bundled_server)
    desk.crash_in_cascade(monkeypatch, "cascade.begun")
    desk.close_master(order_id="O")
    desk.client.srem("copy_master_followers:M:active", *FROZEN)
    desk.cascade()
    assert_ended(desk, FROZEN)
    desk.client.sadd("copy_master_followers:M:active", *FROZEN)
    assert desk.begin("next") == "started"
    desk.cascade()
    assert set(desk.stages("next").values()) == {"flat"}


def test_known_failure_12_orders_with_levels_are_closed_too(bundled_server: Any) -> None:
    desk = CascadeDesk(bundled_server)
    desk.follower("F")
    desk.open_master("O", stop_loss="1.05", take_profit="1.2")
    desk.begin_and_cascade()
    assert desk.copies() == {} and desk.stages() == {"F": "done"}
    assert_ended(desk, ["F"])


def test_known_failure_22_one_event_makes_one_cascade(bundled_server: Any) -> None:
    desk = stand_up(bundled_server)
    assert [desk.begin() for _ in range(3)] == ["started", "running", "running"]
    desk.cascade()
    assert [desk.begin() for _ in range(3)] == ["finished"] * 3
    assert len([entry for entry in desk.entries_recorded if entry.reason == "cascade_begins"]) == 1
    assert_ended(desk, FROZEN)


def test_known_failure_23_a_copy_still_queued_is_not_skipped(bundled_server: Any) -> None:
    desk = CascadeDesk(bundled_server, "barclays")
    desk.follower("F")
    desk.open(MASTER, "O")
    desk.replicate()
    desk.provider_says("filled", MASTER)
    desk.replicate()
    assert desk.said("order_status") == {"QUEUED"}
    desk.begin()
    for _ in range(3):
        assert desk.step().running == 1
    desk.provider_says("filled", "copy_follower:F", "open")
    desk.cascade(meanwhile=lambda: desk.provider_says("filled"))
    assert desk.stages() == {"F": "done"}
    assert_ended(desk, ["F"])
