"""`copyrisk-run kill` and `revive`: what is printed and done, the exit codes, two operators at once."""

import argparse
import io
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from copyrisk import killing
from copyrisk.errors import ConfigError, CopyriskError, Refused, StoreError
from copyrisk.operations import COMMANDS, add_commands
from copyrisk.settings import load_settings
from copyrisk.store import kill_switch
from tests.test_permissions import limit
from tests.trading import Desk, decoded

KILLS = "copyrisk:kills"
TRAIL = "copyrisk:{audit}:trail"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def desk(bundled_server: Any) -> Any:
    """Two accounts with positions; master M with one of his own and a copy of it, which F holds."""
    made = Desk(bundled_server)
    for account in ("live:1", "strategy_provider:M", "copy_follower:F"):
        made.office.account(account)
    made.office.order("live:1", "A", order_quantity="0.5")
    made.office.order("live:1", "B", order_quantity="0.25", order_type="SELL")
    made.office.order("live:1", "P", order_type="BUY_LIMIT", order_status="PENDING", execution_status="PENDING")
    made.office.order("strategy_provider:M", "MO", symbol="GBPUSD")
    made.office.order("copy_follower:F", "C", symbol="GBPUSD", master_order_id="MO", order_quantity="0.1")
    made.office.order("copy_follower:F", "OWN", order_quantity="2")
    made.office.group("GBPUSD")
    made.client.sadd("copy_master_followers:M:active", "F")
    yield made
    made.close()


@pytest.fixture
def run(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Run:
    """Carry out a command line; its exit code and what it printed."""

    def carry_out(*words: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        add_commands(parser)
        options = parser.parse_args(words)
        code = COMMANDS[options.command](load_settings(None, {}, {"redis.url": desk.server.url}), options)
        return code, capsys.readouterr().out

    return carry_out


def stored(desk: Desk) -> dict[str, Any]:
    return {scope: json.loads(said) for scope, said in decoded(desk.client.hgetall(KILLS)).items()}


def trail(desk: Desk) -> list[dict[str, Any]]:
    return [json.loads(said["entry"]) for said in desk.entries(TRAIL)]


def acts(desk: Desk) -> list[tuple[str, str]]:
    return [(one["said"]["act"], one["said"]["scope"]) for one in trail(desk) if one["kind"] == "kill"]


HITS = {
    "all": ["3 accounts, 5 open positions, 1 orders that wait", "EURUSD  bought 2.50  sold 0.25"],
    "account:live:1": ["1 accounts, 2 open positions, 1 orders that wait", "EURUSD  bought 0.50  sold 0.25"],
    "symbol:EURUSD": ["2 accounts, 3 open positions, 1 orders that wait", "EURUSD  bought 2.50  sold 0.25"],
    "master:M": ["2 accounts, 2 open positions, 0 orders that wait", "GBPUSD  bought 1.10  sold 0.00"],
}


@pytest.mark.parametrize("scope", HITS)
def test_it_says_what_it_hits_then_does_it_and_says_so(run: Run, desk: Desk, scope: str) -> None:
    code, said = run("kill", scope, "--dry-run")
    assert code == 0 and all(line in said for line in HITS[scope]) and said.endswith("nothing was done\n")
    assert (stored(desk), trail(desk)) == ({}, [])
    code, said = run("kill", scope, "--yes", "--reason", "bad feed")
    assert code == 0 and said.index(HITS[scope][0]) < said.index(f"{scope} is halted; what is open there stays open")
    (entry,) = stored(desk).values()
    assert (entry["policy"], entry["reason"]) == ("keep", "bad feed") and entry["ts_ms"] > 1e12 and entry["by"]
    (noted,) = [one for one in trail(desk) if one["kind"] == "kill"]
    assert noted["reason"] == "bad feed" and noted["cause"].startswith("operator:")
    assert noted["account"] == ("live:1" if scope == "account:live:1" else "")
    assert noted["said"]["hits"]["positions"] == int(re.findall(r"(\d+) open", HITS[scope][0])[0])
    code, said = run("kill", "--list")
    assert code == 0 and re.fullmatch(
        rf"{scope}  policy keep, since 20[-\d]+T[:\d]+Z, by .+: bad feed\n1 scopes are halted\n", said
    )
    code, said = run("revive", scope, "--reason", "fixed")
    assert (code, said) == (0, f"{scope} trades again\n")
    assert (stored(desk), acts(desk)) == ({}, [("kill", scope), ("revive", scope)])


def test_twice_is_once_and_close_is_more_than_keep(run: Run, desk: Desk) -> None:
    assert run("kill", "all", "--yes")[0] == 0
    code, said = run("kill", "all", "--yes", "--reason", "again")
    assert code == 0 and "all is halted already: policy keep" in said and stored(desk)["all"]["reason"] == ""
    code, said = run("kill", "all", "--yes", "--policy", "close")
    assert code == 0 and "all is halted; what is open there is closed" in said
    assert "no daemon is at work" in said
    code, said = run("kill", "all", "--yes")  # nobody takes back a close by halting once more
    assert code == 0 and "halted already: policy close" in said and stored(desk)["all"]["policy"] == "close"
    assert acts(desk) == [("kill", "all"), ("kill", "all")]
    assert run("kill", "symbol:EURUSD", "--yes")[0] == 0
    assert run("revive", "all") == (0, "all trades again; 1 other scopes stay halted\n")
    assert run("revive", "all") == (0, "all is not halted\n")
    assert acts(desk)[2:] == [("kill", "symbol:EURUSD"), ("revive", "all")]


def test_a_daemon_at_work_is_no_cause_for_a_warning(run: Run, desk: Desk) -> None:
    desk.tick()
    assert "no daemon" not in run("kill", "all", "--dry-run", "--policy", "close")[1]


@pytest.mark.parametrize("scope", ["account:live:9", "master:Z", "symbol:XAUUSD"])
def test_what_is_not_there_yet_is_halted_with_a_warning(run: Run, desk: Desk, scope: str) -> None:
    code, said = run("kill", scope, "--yes")
    assert code == 0 and "warning: there is no" in said and "0 accounts, 0 open positions" in said
    assert stored(desk).keys() == {scope}


@pytest.mark.parametrize(
    "scope", ["", "ALL", "live:1", "account:x:1", "symbol:eurusd", "master:a b", "all\n", "\udcff"]
)
@pytest.mark.parametrize("command", ["kill", "revive"])
def test_no_scope_is_a_mistake_of_usage(run: Run, desk: Desk, command: str, scope: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        run(command, scope)
    assert str(refusal.value).isprintable()
    assert (stored(desk), trail(desk)) == ({}, [])


def test_mistakes_of_usage(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("kill",),
        ("kill", "all", "--yes", "--reason", "a\nb"),
        ("kill", "all", "--yes", "--reason", "x" * 201),
    ):
        with pytest.raises(ConfigError):
            run(*words)
    for words in (("kill", "all", "--policy", "burn"), ("revive",)):
        with pytest.raises(SystemExit) as ended:
            run(*words)
        assert ended.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("typed", "code"), [("yes\n", 0), (" Y \n", 0), ("no\n", 1), ("\n", 1), ("", 1), ("yes please\n", 1)]
)
def test_it_asks_on_a_terminal(run: Run, desk: Desk, monkeypatch: pytest.MonkeyPatch, typed: str, code: int) -> None:
    terminal = io.StringIO(typed)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    found, said = run("kill", "all")
    assert found == code and said.index("5 open positions") < said.index("halt all, policy keep? (yes/no)")
    assert ("all was not halted" in said) is (code == 1) is (stored(desk) == {})


def test_without_a_terminal_it_must_be_told(run: Run, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    with pytest.raises(ConfigError, match="--yes"):
        run("kill", "all")
    assert stored(desk) == {}


# ---- what stands there already


@pytest.mark.parametrize("scope", ["symbol:EURUSD", "nonsense", "\xff"])
def test_what_cannot_be_read_is_shown_and_can_be_taken_away(run: Run, desk: Desk, scope: str) -> None:
    desk.client.hset(KILLS, scope.encode("latin-1"), b"\xff{")
    code, said = run("kill", "--list")
    shown = said.partition("  ")[0]
    assert code == 0 and f"cannot be read: {'it' if ':' in scope else 'EVERYBODY'} is halted, nothing is closed" in said
    assert run("revive", shown) == (0, f"{shown} trades again\n")
    assert not desk.client.exists(KILLS)


def test_an_entry_that_cannot_be_read_is_replaced(run: Run, desk: Desk) -> None:
    desk.client.hset(KILLS, "all", b"\xff{")
    assert run("kill", "all", "--yes")[0] == 0
    assert stored(desk)["all"]["policy"] == "keep"


@pytest.mark.parametrize("words", [("kill", "all", "--yes"), ("kill", "--list"), ("revive", "all")])
def test_a_switch_that_is_none(run: Run, desk: Desk, words: tuple[str, ...]) -> None:
    desk.client.set(KILLS, "x")
    with pytest.raises(StoreError) as failure:
        run(*words)
    assert failure.value.code == "kill_switch_unreadable"
    assert desk.client.get(KILLS) == b"x"


def test_there_is_an_end_to_how_many(run: Run, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_switch, "KILLS_LIMIT", 1)
    assert run("kill", "symbol:EURUSD", "--yes")[0] == 0
    with pytest.raises(Refused) as refusal:
        run("kill", "all", "--yes")
    assert refusal.value.code == "too_many_kills"
    assert run("kill", "symbol:EURUSD", "--yes", "--policy", "close")[0] == 0


# ---- two operators, and a trail that cannot be written


def test_of_two_operators_at_once_none_undoes_the_other(
    run: Run, desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another one is quicker between the reading and the writing of this one."""
    real = killing.set_kill

    def late(*given: Any) -> bool:
        monkeypatch.setattr(killing, "set_kill", real)
        assert run("kill", "all", "--yes", "--policy", "close", "--reason", "first")[0] == 0
        return real(*given)

    monkeypatch.setattr(killing, "set_kill", late)
    code, said = run("kill", "all", "--yes", "--reason", "second")
    assert code == 0 and "all is halted already: policy close" in said
    assert (stored(desk)["all"]["policy"], stored(desk)["all"]["reason"]) == ("close", "first")
    taken = killing.take_away

    def later(*given: Any) -> bool:
        monkeypatch.setattr(killing, "take_away", taken)
        desk.client.hset(KILLS, "all", "changed")
        return taken(*given)

    monkeypatch.setattr(killing, "take_away", later)
    assert run("revive", "all") == (0, "all trades again\n")
    noted = [one["said"]["before"] for one in trail(desk) if one["kind"] == "kill" and one["said"]["act"] == "revive"]
    assert [before == "changed" for before in noted] == [False, True]  # the last entry is of what was taken away


def test_an_emergency_does_not_wait_for_the_trail_and_the_all_clear_does(run: Run, desk: Desk) -> None:
    desk.client.set("copyrisk:{audit}:head", "x")
    code, said = run("kill", "all", "--yes")
    assert code == 1 and "all is halted" in said and "warning: it is not in the audit trail" in said
    with pytest.raises(CopyriskError, match="nothing was done"):
        run("revive", "all")
    assert stored(desk).keys() == {"all"}


def test_what_it_hits_need_not_be_known(run: Run, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.client.delete("copy_master_followers:M:active")
    desk.client.set("copy_master_followers:M:active", "x")
    assert run("kill", "master:M", "--dry-run")[0] == 1
    code, said = run("kill", "master:M", "--yes")
    assert code == 0 and "what it hits cannot be told" in said and stored(desk).keys() == {"master:M"}


def test_an_operator_needs_what_the_documentation_says(run: Run, desk: Desk) -> None:
    own = desk.server
    desk.client.acl_log_reset()
    limit(desk, "kill-switch")
    desk.client.function_flush()
    for words in (
        ("kill", "master:M", "--yes"),
        ("kill", "symbol:EURUSD", "--yes"),
        ("kill", "--list"),
        ("revive", "master:M"),
    ):
        assert run(*words)[0] == 0
    seen = {(one["reason"], one["object"]) for one in desk.client.acl_log()}
    assert seen - {("command", "client|setinfo"), ("command", "subscribe")} == set()
    desk.server = own
