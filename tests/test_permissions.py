"""Each process works with a server user that may do what docs/settings.md says, and no more."""

import re
from pathlib import Path
from typing import Any

import pytest

from copyrisk.sql.database import open_database
from tests.copying_desk import MASTER, CopyDesk
from tests.provider import gateway, provider, until
from tests.trading import Desk


def documented(process: str) -> list[str]:
    """The rules of one process, with those of connecting."""
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith((f"| {process} |", "| connecting |"))]
    assert len(rows) == 2
    return [
        rule for row in rows for quoted in re.findall(r"`([^`]+)`", row) for rule in quoted.replace("\\|", "|").split()
    ]


def limit(desk: Desk, process: str) -> None:
    """From now on the processes that the desk starts are that user."""
    rules = ("reset", "on", ">pw", "resetkeys", "resetchannels", "-@all", *documented(process))
    desk.client.execute_command("ACL", "SETUSER", process, *rules)
    desk.server = type(desk.server)(desk.server.url.replace("unix://", f"unix://{process}:pw@"), desk.server.pid)


def lots(desk: Desk, account: str, order_id: str) -> Any:
    return desk.client.hget(f"user_holdings:{{{account}}}:{order_id}", "order_quantity")


def test_workers(redis_server: Any) -> None:
    desk = Desk(redis_server)
    desk.account("live:1")
    limit(desk, "workers")
    desk.client.function_flush()
    assert desk.open("live:1", "A", lots="1")["code"] == "ok"
    assert desk.do("stop_loss", "live:1", order_id="A", stop_loss="1")["code"] == "ok"
    assert desk.do("close", "live:1", order_id="A", order_quantity="0.4")["code"] == "ok"
    assert lots(desk, "live:1", "A") == b"0.6"
    assert desk.do("close", "live:1", order_id="A")["code"] == "ok"
    assert desk.entries("copyrisk:dead_letters") == []


def test_monitors(redis_server: Any) -> None:
    desk = Desk(redis_server)
    desk.account("live:1")
    assert desk.open("live:1", "A")["code"] == "ok"
    assert desk.do("stop_loss", "live:1", order_id="A", stop_loss="1.08")["code"] == "ok"
    limit(desk, "monitors")
    monitor = desk.new_monitor()
    desk.quote("1.07", "1.0701")
    assert monitor.step(1.0) == 1


def test_replicator(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are made, redelivered, moved, cancelled, closed, wait, reach a limit; nothing is lacking on the way."""
    desk = CopyDesk(redis_server, replication__carries_remainders=True)
    desk.followers(2)
    desk.follower("P", flow="barclays")
    desk.follower("L", copy_sl_mode="amount", sl_amount="100", investment_amount="10000")
    workers, own = desk.workers, desk.server
    limit(desk, "replicator")
    desk.client.function_flush()
    assert desk.replicator.step(1) == desk.new_replicator().step(1) == 0  # the second one finds the lease taken
    desk.open(MASTER, "O", stop_loss="1.07")
    desk.crash_at(monkeypatch, "copies.made")
    desk.open_master("P", order_type="BUY_LIMIT", price="1.05")
    desk.provider_says("filled", "copy_follower:P", "open")
    desk.provider_says("accepted", "copy_follower:P", "place")
    desk.master_does("modify", "P", order_price="1.06")
    desk.master_does("cancel", "P")
    desk.configure("copy_follower:F0", wallet_balance="x")
    desk.close_master("0.5")
    assert len(desk.lots()) == 4
    desk.configure("copy_follower:F0", wallet_balance="10000")
    desk.open_master("BIG", lots="3")
    desk.quote("1.0645", "1.06455")
    for _ in range(3):
        desk.replicate()
    assert "L" not in desk.copies("BIG")  # its stop loss closed them
    assert desk.client.hget("user:{copy_follower:L}:config", "copy_status") == b"paused"
    desk.close_master()
    assert (desk.results(), desk.letters()) == (dict.fromkeys(("F0", "F1", "L", "P"), "copied"), [])
    desk.replicator._lease.give_up()
    desk.replicator._consumer.leave()
    refused = {(seen["reason"], seen["object"]) for seen in desk.client.acl_log()}
    desk.client.acl_log_reset()
    assert refused - {("command", "client|setinfo"), ("command", "subscribe")} == set()
    assert workers is desk.workers
    desk.server = own


def test_gateway(redis_server: Any) -> None:
    desk = Desk(redis_server)
    desk.account("live:1", "barclays")
    assert desk.open("live:1", "A")["code"] == "ok"
    own = desk.server
    limit(desk, "gateway")
    with provider(quotes={"EURUSD": ["1.0845", "1.0846"]}) as there, gateway(desk.server.url, there.url):
        until(lambda: desk.client.xlen("copyrisk:reports"))
        until(lambda: not desk.client.hlen("copyrisk:outstanding"))
    desk.server = own


@pytest.mark.parametrize("times", [1, 2])
def test_recorder(redis_server: Any, tmp_path: Path, times: int) -> None:
    from copyrisk.recorder import Recorder
    from copyrisk.store.pipe import Pipe

    url = f"sqlite:///{tmp_path}/broker.db"
    with open_database(url) as database:
        database.migrate()
        desk = Desk(redis_server, database__url=url)
        desk.account("live:1")
        assert desk.open("live:1", "A")["code"] == "ok"
        limit(desk, "recorder")
        recorder = Recorder(Pipe(desk.new_client()), database)
        recorder._consumer.join()
        for _ in range(times):
            recorder.step(10)
        recorder._consumer.leave()
        assert desk.client.xlen("copyrisk:history") == 0
