"""Daemons that die in the middle of a liquidation or a cascade: nothing forgotten, nothing closed twice or too much."""

import json
import os
import re
import signal
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import copyrisk
from copyrisk import crash
from tests.chain import Chain
from tests.copying_desk import MASTER, Died
from tests.cutoff_chain import POINTS, Story, Told, build_house, nursery, points_of
from tests.cutoff_desk import LEASE, CutoffDesk
from tests.test_replication_chain import ENVIRON, Copiers, Keys, assert_all_well, assert_announced, start
from tests.trading import assert_books

FOLLOWER, LATE = "copy_follower:F", "copy_follower:LATE"
#: Houses in which daemons are killed, and rounds of the whole chain; the goal is 1,000 houses.
RUNS, SEED = (int(os.environ.get(f"COPYRISK_TEST_{name}", usual)) for name, usual in (("RUNS", 40), ("SEED", 1)))
HOUSES_OF_ONE_PLAN = 20
MODULES = (
    *("autocutoff", "liquidation", "cascading", "dispatch", "protecting", "halting", "audit_files", "plans", "alerts"),
    *("store/trail", "store/trail_stream", "store/episodes", "store/cascades", "store/protection"),
)


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


def test_a_master_who_was_cascaded_and_is_well_again_is_let_go(
    bundled_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of him was closed before his daemon died, so he is not flattened; nor planned for ever."""
    desk = CutoffDesk(bundled_server, cutoff__stop_out="flatten")
    desk.follower("F")
    desk.position(MASTER, "O")
    copied(desk)
    desk.configure(MASTER, wallet_balance="95")
    die_at(desk, monkeypatch, "cascade.begun")
    desk.configure(MASTER, wallet_balance="5000")
    die_at(desk, monkeypatch, "cascade.ended")
    desk.until_quiet(3.0)
    desk.steps()
    assert desk.is_flat(FOLLOWER) and desk.open_lots(MASTER) == 1
    assert desk.episode(MASTER)["is_critical"] is False


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


# ---- many deaths of processes


def test_every_point_is_tested() -> None:
    folder = Path(copyrisk.__file__).parent
    texts = [(folder / f"{module}.py").read_text() for module in MODULES]
    found = [name for text in texts for name in re.findall(r"crash\.reach\(\s*f?\"([^\"]+)\"", text)]
    assert sorted(found) == sorted(POINTS)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("flow", ["rock", "barclays"])
def test_killed_anywhere(bundled_server: Any, tmp_path: Path, flow: str) -> None:
    """In each house up to three daemons die by SIGKILL: at a point, at a moment, or while they wait for a reply."""
    began_s, told = time.monotonic(), Told()
    with nursery() as nurse:
        for place in range(max(1, RUNS // 2)):
            seed = SEED * 1_000_000 + place
            if not place % HOUSES_OF_ONE_PLAN:
                house = build_house(bundled_server, flow, seed)
            folder = tmp_path / str(seed)
            folder.mkdir()
            told.add(Story(bundled_server, nurse, folder, house, seed, points_of(seed)).run())
    print(f"{flow}: {told}, {time.monotonic() - began_s:.0f} s")
    assert told.kills.total() >= told.stories
    assert told.counts["closes"] > 10 * told.stories and told.counts["cascade_closes"] > 2 * told.stories


# ---- the whole chain


CHAIN_POINTS = (
    *("liquidation.closed", "worker.changed:3", "cascade.noted:2", "worker.delivered:2", "cascade.closed"),
    *("cutoff.owing:20", "cascade.begun", "cascade.ending", "worker.decided:3", "trail.stored:2", "cutoff.stored"),
)


def give(copiers: Copiers, account: str, balance: str) -> None:
    """Let an account, to which nothing is being booked, have so much."""
    key = f"user:{{{account}}}:config"
    before = Decimal(copiers.client.hget(key, "wallet_balance").decode())
    copiers.client.hset(key, "wallet_balance", balance)
    copiers.balances[account] += Decimal(balance) - before


def held(copiers: Copiers) -> set[str]:
    """Accounts that hold anything."""
    return {account for account, _ in Keys(copiers.client).holdings}


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("flow", ["rock", "barclays"])
def test_killed_in_the_whole_chain(bundled_server: Any, tmp_path: Path, flow: str) -> None:
    """Workers, the engine of copies, the gateway and the provider go on while daemons die, at a point in each round.

    Of two masters one is ruined, and two followers of the other: who is not ruined and does not copy him, keeps all.
    """
    points = CHAIN_POINTS[: min(len(CHAIN_POINTS), max(2, RUNS // 20))]
    environ = {**ENVIRON, "TICK_PERIOD_MS": 50, "CUTOFF_BRAKE_MIN_ACCOUNTS": 1_000}
    with Chain(bundled_server, tmp_path, environ=environ) as chain:
        copiers = Copiers(chain, flow, followers=10)
        start(chain, flow)
        deaths = 0
        for point in points:
            deaths += one_round(chain, copiers, point)
        assert deaths > len(points) // 2
        assert assert_all_well(copiers)["copied"] == 40 * len(points)
        assert_announced(copiers)
        closed = [one.decode() for one in chain.client.zrange("copyrisk:{cutoff}:cascades_done", 0, -1)]
        assert len(closed) == len(points) and not chain.client.exists("copyrisk:{cutoff}:cascades")


def one_round(chain: Chain, copiers: Copiers, point: str) -> int:
    """Both masters order twice, one is ruined, the daemon dies and comes again; how often it died."""
    for account in copiers.balances:
        give(copiers, account, "100000")
    chain.until(lambda: not copiers.is_under_way(), 60)
    orders = [copiers.order(f"M{number}", "0.5") for number in (0, 0, 1, 1)]
    chain.until(lambda: all(copiers.state(order_id) == "open" for order_id in orders), 60)
    copiers.settle()
    assert len(held(copiers)) == 22
    daemon = chain.processes["daemon"]
    daemon.kill()
    chain.client.hset(LEASE, "ends_ms", 0)
    daemon.start(point)
    ruined = ["strategy_provider:M0", "copy_follower:1-0", "copy_follower:1-1"]
    for account in ruined:
        give(copiers, account, "1.00")
    gone = {*ruined, *(f"copy_follower:0-{place}" for place in range(copiers.followers))}
    deaths = []

    def is_over() -> bool:
        if not daemon.is_alive:
            assert daemon.popen is not None
            assert daemon.popen.returncode == -signal.SIGKILL, daemon.log.read_text()[-3_000:]
            deaths.append(point)
            chain.client.hset(LEASE, "ends_ms", 0)
            daemon.start()
        return not (held(copiers) & gone) and not chain.client.exists("copyrisk:{cutoff}:cascades")

    chain.until(is_over, 60)
    copiers.settle()
    left = {"strategy_provider:M1", *(f"copy_follower:1-{place}" for place in range(2, copiers.followers))}
    assert held(copiers) == left
    for order_id in orders[2:]:
        copiers.tell(order_id)
    chain.until(lambda: not held(copiers), 60)
    copiers.settle()
    return len(deaths)
