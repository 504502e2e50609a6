"""What the audit trail says of copies: each decision about a master's order, before the first copy is made."""

from hashlib import sha256
from typing import Any

import pytest

from copyrisk.audit import Stored, parse_line
from copyrisk.errors import StoreError
from copyrisk.store.functions import KEY_UNUSABLE
from tests.copying_desk import CopyDesk

STREAM, HEAD = "copyrisk:{audit}:trail", "copyrisk:{audit}:head"


@pytest.fixture
def desk(bundled_server: Any) -> Any:
    made = CopyDesk(bundled_server)
    made.followers(3)
    made.follower("P", copy_status="paused")
    yield made
    made.close()


def replications(desk: CopyDesk) -> list[Stored]:
    found = [parse_line(said[b"entry"]) for _, said in desk.client.xrange(STREAM)]
    return [entry for entry in found if entry.kind == "replication"]


def test_a_decision_is_written_down_with_what_it_rests_on(desk: CopyDesk) -> None:
    desk.open_master("O", "1")
    desk.close_master()
    (entry,) = replications(desk)
    assert (entry.account, entry.reason) == ("strategy_provider:M", "decided")
    said = entry.said
    assert (said["order_id"], said["symbol"], said["order_type"], said["lots"]) == ("O", "EURUSD", "BUY", "1")
    assert sum(said["followers"].values()) == len(desk.results("O")) and said["followers"]["to_be_copied"] == 3
    assert said["decision_sha256"] == sha256(desk.client.hget("copyrisk:copies:O", "decided")).hexdigest()
    assert said["quote"]["bid"] and said["figures"]["equity"]


@pytest.mark.parametrize("point", ["trail.stored", "copies.batch", "copies.made"])
def test_it_is_there_before_the_first_copy_and_says_that_making_them_was_resumed(
    desk: CopyDesk, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    desk.send("open", "strategy_provider:M", order_id="O", symbol="EURUSD", order_type="BUY", order_quantity="1")
    desk.crash_at(monkeypatch, point)
    assert [entry.reason for entry in replications(desk)] == ["decided"]
    assert (len(desk.copies("O")) == 0) is (point == "trail.stored")
    desk.replicate()
    first, second = replications(desk)
    assert (second.reason, second.said["decision_sha256"]) == ("resumed", first.said["decision_sha256"])
    assert len(desk.copies("O")) == 3


def test_no_copy_is_made_that_cannot_be_written_down(desk: CopyDesk) -> None:
    desk.client.set(HEAD, "garbage")
    with pytest.raises(StoreError) as refused:
        desk.open_master("O", "1")
    assert refused.value.code == KEY_UNUSABLE
    assert not desk.copies("O")
    desk.client.delete(HEAD)
    desk.replicate()
    assert len(desk.copies("O")) == 3
