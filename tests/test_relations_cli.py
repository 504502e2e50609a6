"""`copyrisk-run follow`, `unfollow`, `pause`, `resume`, `followers`: what is printed, and the exit codes."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from copyrisk.errors import ConfigError
from copyrisk.operations import COMMANDS, add_commands
from copyrisk.settings import load_settings
from copyrisk.sql.database import open_database

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(bundled_server: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """Carry out a command line; its exit code and what it printed."""
    with bundled_server.client() as client:
        config = {"wallet_balance": "10000", "leverage": "100", "sending_orders": "rock"}
        client.hset("user:{strategy_provider:M1}:config", mapping=config)

    def carry_out(*words: str, **flags: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        add_commands(parser)
        options = parser.parse_args(words)
        given = {"redis.url": bundled_server.url} | {name.replace("__", "."): value for name, value in flags.items()}
        code = COMMANDS[options.command](load_settings(None, {}, given), options)
        return code, capsys.readouterr().out

    return carry_out


def test_from_the_first_to_the_last_day(run: Run) -> None:
    assert run("follow", "M1", "F1", "F2", "--investment", "500", "--multiplier", "2", "--set", "reverse=1") == (
        0,
        "F1  done\nF2  done\n2 follow M1, 0 refused\n",
    )
    code, said = run("follow", "M1", "F1", "NO", "a b")
    assert code == 1 and said.splitlines() == [
        "F1  already_following: it follows M1 already",
        "NO  account_missing: there is no such account, and no amount to begin with",
        "a b  invalid_account_id: not a valid account id: 'a b'",
        "0 follow M1, 3 refused",
    ]
    assert run("pause", "F2") == (0, "F2  done\n1 paused, 0 refused\n")
    assert run("followers", "M1") == (
        0,
        "F1  copy_status active  multiplier 2  wallet_balance 500  equity 500.0  calc_status ok\n"
        "F2  copy_status paused  multiplier 2  wallet_balance 500  equity 500.0  calc_status ok\n"
        "1 copy M1 now, 1 do not\n",
    )
    code, said = run("followers", "strategy_provider:M1", "--json")
    assert code == 0 and [(one["follower"], one["in_set"]) for one in json.loads(said)] == [("F1", True), ("F2", False)]
    assert run("resume", "F2") == (0, "F2  done\n1 copy again, 0 refused\n")
    assert run("unfollow", "F1", "F2", "NO")[0] == 1
    assert run("unfollow", "F1", "F2") == (0, "F1  done\nF2  done\n2 follow nobody now, 0 refused\n")
    assert run("followers", "M1") == (0, "0 copy M1 now, 0 do not\n")


def test_open_copies_are_named(run: Run, bundled_server: Any) -> None:
    run("follow", "M1", "F1", "--investment", "5")
    with bundled_server.client() as client:
        order = {"order_status": "OPEN", "master_order_id": "MO"}
        client.hset("user_holdings:{copy_follower:F1}:C1", mapping=order)
        client.sadd("user_orders_index:{copy_follower:F1}", "C1")
    code, said = run("unfollow", "F1")
    assert code == 1 and said.startswith("F1  has_open_copies: 1 copies are open: C1\n")
    code, said = run("unfollow", "F1", "--keep-open")
    assert code == 0 and said.startswith("F1  done  copies left open: C1\n")


def test_thousands_come_from_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("".join(f"F{number}\n" for number in range(1_500)) + "\n")
    (tmp_path / "csv").write_bytes(
        "\ufefffollower, investment, multiplier, account_number, symbols_allowed\r\n"
        'G1, 700, 0.5, N1, "EURUSD,XAUUSD"\r\nG2,,,,\r\nF3,1,x,,\r\n'.encode()
    )
    code, said = run("follow", "M1", "--file", str(tmp_path / "plain"), "--investment", "50")
    assert code == 0 and said.endswith("1500 follow M1, 0 refused\n")
    code, said = run("follow", "M1", "--file", str(tmp_path / "csv"), "--investment", "60")
    assert code == 1 and said.startswith("G1  done\nG2  done\nF3  invalid_multiplier")
    shown = run("followers", "M1")[1]
    assert "G1  copy_status active  multiplier 0.5  wallet_balance 700" in shown
    assert "G2  copy_status active  multiplier 1  wallet_balance 60" in shown
    assert run("pause", "--file", str(tmp_path / "plain"), "G1")[1].endswith("1501 paused, 0 refused\n")
    assert run("followers", "M1")[1].endswith("1 copy M1 now, 1501 do not\n")


@pytest.mark.parametrize(
    "content",
    [
        b"follower,wallet_balance\nF1,9",
        b"follower,follower\nF1,F1",
        b"F1,F2\n",
        b"follower,email\nF1\n",
        b"\xff",
        b'"F1',
    ],
)
def test_a_file_that_cannot_be_used_says_so(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        run("follow", "M1", "--file", str(tmp_path / "bad"), "--investment", "5")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ("follow", "M1"),
        ("unfollow",),
        ("pause",),
        ("resume", "--file", "/nowhere/at/all"),
        ("followers",),
        ("followers", "M1", "--check"),
        ("followers", "M1", "--repair"),
        ("follow", "M1", "F1", "--set", "wallet_balance=5"),
        ("follow", "M1", "F1", "--set", "reverse"),
    ],
)
def test_what_makes_no_sense_is_a_mistake_of_usage(run: Run, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        run(*words)


def test_the_check_reports_before_anything_is_changed(run: Run, bundled_server: Any) -> None:
    run("follow", "M1", "F1", "F2", "--investment", "5")
    assert run("followers", "--check") == (0, "0 differences\n")
    with bundled_server.client() as client:
        client.delete("copy_follower_master:F1:provider_id")
        client.sadd("copy_master_followers:M1:active", "a b\n\x1b[2J")
        expected = (
            "copy_master_followers:M1:active  member_invalid  member 'a b\\n\\x1b[2J'  -> taken out\n"
            "F1  in_set_without_master  master none; in the sets of M1; copy_status active  -> paused with M1\n"
        )
        assert run("followers", "--check") == (1, expected + "2 differences\n")
        assert client.smembers("copy_master_followers:M1:active") == {b"F1", b"F2", b"a b\n\x1b[2J"}
        code, said = run("followers", "--check", "--json")
        assert code == 1 and [one["codes"] for one in json.loads(said)] == [
            ["member_invalid"],
            ["in_set_without_master"],
        ]
        assert run("followers", "--check", "--repair") == (0, expected + "2 repaired, 0 left\n")
        assert run("followers", "--check") == (0, "0 differences\n")
        assert client.smembers("copy_master_followers:M1:active") == {b"F2"}


def test_the_database_is_told_and_checked(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/broker.db"
    with open_database(url) as database:
        database.migrate()
        with database.engine.begin() as connection:
            row = "INSERT INTO copy_follower_accounts (id, wallet_balance, leverage) VALUES ('F1', '70', '100')"
            connection.exec_driver_sql(row)
        assert run("follow", "M1", "F1", database__url=url)[0] == 0
        assert database.followers().rows["F1"].master == "M1"
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE copy_follower_accounts SET copy_status = 'paused'")
        code, said = run("followers", "--check", "--repair", database__url=url)
        assert code == 0 and said.startswith("F1  table_not_active  ")
        assert run("followers", "--check", database__url=url) == (0, "0 differences\n")


def test_a_process_ends_with_one_line_and_a_code(bundled_server: Any) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}

    def process(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "copyrisk.cli", *words]
        ended = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in ended.stderr
        return ended.returncode, ended.stderr

    with bundled_server.client() as client:
        client.set("copy_follower_master:F1:provider_id", "M1")
    assert process("--redis", bundled_server.url, "followers", "--check") == (1, "")
    assert process("--redis", bundled_server.url, "followers", "--check", "--repair") == (0, "")
    code, said = process("--redis", bundled_server.url, "followers", "copy_follower:1")
    assert code == 1 and said.endswith("[follower_as_master]\n") and said.count("\n") == 1
    assert process("--redis", bundled_server.url, "followers", "--check") == (0, "")
    code, said = process("follow", "M1", "F1")
    assert code == 2 and said.endswith("[bad_configuration]\n")
    code, said = process("--redis", "redis://127.0.0.1:1", "pause", "F1")
    assert code == 1 and said.endswith("[server_unreachable]\n")
