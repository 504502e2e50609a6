"""`copyrisk-run cascade`: the plan before it happens, what is running and has ended, and what it is refused with."""

import argparse
import json
from collections.abc import Callable
from typing import Any

import pytest

from copyrisk.errors import CopyriskError
from copyrisk.operations import COMMANDS, add_commands
from tests.cascade_desk import EVENT, CascadeDesk
from tests.test_permissions import limit
from tests.trading import dump, settings_for

Run = Callable[..., str]


@pytest.fixture
def desk(bundled_server: Any) -> CascadeDesk:
    return CascadeDesk(bundled_server)


@pytest.fixture
def run(desk: CascadeDesk, capsys: pytest.CaptureFixture[str]) -> Run:
    """Carry out a command line; what it printed. Nothing may be written by it."""

    def carry_out(*words: str) -> str:
        parser = argparse.ArgumentParser()
        add_commands(parser)
        options = parser.parse_args(["cascade", *words])
        before = dump(desk.client)
        capsys.readouterr()
        assert COMMANDS[options.command](desk.settings, options) == 0
        assert dump(desk.client) == before
        return capsys.readouterr().out

    return carry_out


def test_the_plan_is_what_happens(desk: CascadeDesk, run: Run) -> None:
    desk.followers(2)
    desk.follower("SMALL", "1000")
    desk.open_master("O")
    desk.open_master("P", order_type="BUY_LIMIT", price="1.05")
    assert desk.open("copy_follower:F1", "OWN", lots="0.1")["code"] == "ok"
    desk.follower("LATE")
    desk.quote("1.0745", "1.07455")
    none = "no margin used"
    assert run("M", "--dry-run").splitlines() == [
        f"F0  2 copies  EURUSD 0.1  result -100.50 USD  equity 9899.5, level 9212.69 % -> equity 9899.5, {none}",
        "F1  2 copies  EURUSD 0.1  result -100.50 USD  "
        "equity 9799.0, level 4559.58 % -> equity 9799.0, level 9119.17 %",
        f"LATE  flat  result 0.00 USD  equity 10000.0, {none} -> equity 10000.0, {none}",
        f"SMALL  2 copies  EURUSD 0.01  result -10.05 USD  equity 989.95, level 9212.69 % -> equity 989.95, {none}",
        "4 followers of M, 6 copies: EURUSD 0.21",
        "expected result -211.05 USD; nothing was done",
    ]
    plan = json.loads(run("strategy_provider:M", "--dry-run", "--json"))
    desk.begin_and_cascade()
    assert desk.summary()["result_usd"] == plan["result_usd"]
    results = {name: said["u"] for name, said in desk.standings().items()}
    assert results == {one["follower"]: one["result_usd"] for one in plan["followers"]}
    desk.tick()
    for one in plan["followers"]:
        portfolio = desk.office.portfolio(f"copy_follower:{one['follower']}")
        assert portfolio["equity"] == one["after"]["equity_usd"]


def test_what_is_not_known_stays_unknown(desk: CascadeDesk, run: Run) -> None:
    desk.followers(3)
    desk.open_master("O")
    desk.client.sadd("copy_master_followers:M:active", "no id", "GONE")
    desk.client.hset("user:{copy_follower:F1}:config", "wallet_balance", "garbage")
    own = desk.copies()["F2"]["order_id"]
    desk.client.hset(f"user_holdings:{{copy_follower:F2}}:{own}", "order_price", "garbage")
    said = run("M", "--dry-run").splitlines()
    assert said[:4] == [
        "F0  1 copy  EURUSD 0.1  result -0.50 USD  equity 9999.5, level 9219.95 % -> equity 9999.5, no margin used",
        "F1  1 copy  EURUSD 0.1  result -0.50 USD  unknown -> unknown",
        "F2  order_unreadable  result unknown  unknown -> unknown",
        "GONE  account_missing  result unknown  unknown -> unknown",
    ]
    assert said[4:] == [
        "no id  invalid_account_id",
        "5 followers of M, 2 copies: EURUSD 0.2",
        "expected result unknown; nothing was done",
    ]
    desk.client.delete("market:EURUSD")
    assert run("M", "--dry-run").splitlines()[0] == (
        "F0  1 copy  EURUSD 0.1  result unknown (quote_missing)  unknown -> unknown"
    )


def test_those_that_run_and_those_that_have_ended(desk: CascadeDesk, run: Run) -> None:
    assert run("--list") == "no cascade is running, and none has ended\n"
    desk.followers(2)
    desk.open_master("O")
    desk.follower("FLAT")
    desk.begin()
    assert run("--list") == f"{EVENT}  M  running  3 followers: 0 done, 0 flat, 0 failed\n"
    assert run("--show", EVENT).splitlines()[2:] == ["F0  waiting", "F1  waiting", "FLAT  waiting"]
    desk.cascade()
    took = desk.summary()["duration_ms"]
    ended = f"{EVENT}  M  ended  3 followers: 2 done, 1 flat, 0 failed  -1.00 USD  in {took} ms"
    assert run("--list") == ended + "\n"
    first, said, *rest = run("--show", EVENT).splitlines()
    assert first == ended and json.loads(said)["cause"] == "stop_out"
    assert rest == ["F0  done  1 closed  0.1 lots  -0.50 USD", "F1  done  1 closed  0.1 lots  -0.50 USD", "FLAT  flat"]
    shown = json.loads(run("--show", EVENT, "--json"))
    assert shown["standings"]["F0"]["copies"] == list(desk.standings()["F0"]["o"])
    assert [one["id"] for one in json.loads(run("--list", "--json"))] == [EVENT]
    desk.client.set(f"copyrisk:{{cutoff}}:cascade:{EVENT}", "garbage")
    assert run("--list") == f"{EVENT}  cascade_unreadable\n"
    desk.client.delete(f"copyrisk:{{cutoff}}:cascade:{EVENT}")
    assert run("--list") == "no cascade is running, and none has ended\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "bad_configuration"),
        (("M",), "bad_configuration"),
        (("--dry-run",), "bad_configuration"),
        (("M", "--list"), "bad_configuration"),
        (("M", "--show", EVENT), "bad_configuration"),
        (("NOBODY", "--dry-run"), "unknown_master"),
        (("ALONE", "--dry-run"), "no_followers"),
        (("WRONG", "--dry-run"), "followers_unreadable"),
        (("M", "--dry-run"), "cascade_running"),
        (("copy_follower:F0", "--dry-run"), "follower_as_master"),
        (("live:1", "--dry-run"), "not_a_master"),
        (("M}", "--dry-run"), "invalid_account_id"),
        (("--show", "another"), "cascade_unknown"),
        (("--show", "a b"), "invalid_cascade_id"),
        (("--show", "garbage"), "cascade_unreadable"),
    ],
)
def test_bad_input(desk: CascadeDesk, run: Run, words: tuple[str, ...], code: str) -> None:
    desk.followers(1)
    desk.account("strategy_provider:ALONE")
    desk.account("strategy_provider:WRONG")
    desk.client.set("copy_master_followers:WRONG:active", "F0")
    desk.client.hset("copyrisk:{cutoff}:cascade:garbage", "header", "{")
    desk.open_master("O")
    desk.begin()
    before = dump(desk.client)
    with pytest.raises(CopyriskError) as refused:
        run(*words)
    assert refused.value.code == code
    assert "\n" not in str(refused.value)
    assert dump(desk.client) == before
    assert desk.copies().keys() == {"F0"}


def test_a_user_may_do_no_more_than_is_documented(redis_server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    desk = CascadeDesk(redis_server)
    desk.followers(2)
    desk.follower("FLAT", multiplier="0.0001")
    desk.open_master("O", stop_loss="1.05")
    desk.open_master("P", order_type="BUY_LIMIT", price="1.05")
    limit(desk, "cascades")
    desk.settings = settings_for(desk.server.url)
    carried = argparse.Namespace(command="cascade", master="M", dry_run=True, lists=False, show=None, json=False)
    assert COMMANDS["cascade"](desk.settings, carried) == 0
    desk.begin()
    desk.cascade()
    desk.client.delete("copyrisk:{cutoff}:cascade:gone")
    desk.cascader._cascades.forget("M", "gone", desk.cascader._lease.keep())
    carried = argparse.Namespace(command="cascade", master=None, dry_run=False, lists=True, show=None, json=False)
    assert COMMANDS["cascade"](desk.settings, carried) == 0
    assert "2 done, 1 flat, 0 failed" in capsys.readouterr().out
    refused = {(seen["reason"], seen["object"]) for seen in desk.client.acl_log()}
    desk.client.acl_log_reset()
    assert refused - {("command", "client|setinfo")} == set()
