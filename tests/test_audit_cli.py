"""`copyrisk-run audit`, and what operators do: what is printed, the exit codes, and who did it, before it was done."""

import argparse
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from copyrisk import auditing
from copyrisk.audit import AuditKind, Entry, parse_line
from copyrisk.audit_files import TrailFile, segments
from copyrisk.auditing import operator_name
from copyrisk.errors import ConfigError, InvalidId, Refused, StoreError
from copyrisk.operations import COMMANDS, add_commands
from copyrisk.settings import load_settings
from copyrisk.store import functions, library
from copyrisk.store.pipe import Pipe
from copyrisk.store.trail import Trail

STREAM, HEAD = "copyrisk:{audit}:trail", "copyrisk:{audit}:head"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(bundled_server: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """Carry out a command line; its exit code and what it printed."""

    def carry_out(*words: str, url: str | None = bundled_server.url, **flags: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        add_commands(parser)
        options = parser.parse_args(words)
        given = {name.replace("__", "."): value for name, value in flags.items()} | ({"redis.url": url} if url else {})
        capsys.readouterr()
        code = COMMANDS[options.command](load_settings(None, {}, given), options)
        return code, capsys.readouterr().out

    return carry_out


@pytest.fixture
def folder(bundled_server: Any, tmp_path: Path) -> Path:
    """A trail of five entries in Redis, the first four of them in a folder as well."""
    with bundled_server.client() as client:
        library.load(client)
        file = TrailFile(tmp_path / "trail")
        trail = Trail(Pipe(client), file=file, writer="host:1")
        said = {"accounts": ["copy_follower:F1", "copy_follower:F2"]}
        trail.append(
            [
                Entry(AuditKind.WARNING, "live:1", "tick 7", "=level", {"level_pct": 48.5}, 1_700_000_000_000),
                Entry(AuditKind.CASCADE, "strategy_provider:M", "C1", "flat", said, 1_700_000_001_000),
                Entry(AuditKind.LIQUIDATION, "live:1", "tick 8", "critical\n", {"closes": ["O1"]}, 1_700_000_002_000),
            ]
        )
        file.close()
        Trail(Pipe(client), writer="host:2").append([Entry(AuditKind.KILL, "live:1", "all", "asked for")])
    return tmp_path / "trail"


def lines_of(client: Any) -> list[bytes]:
    return [said[b"entry"] for _, said in client.xrange(STREAM)]


def test_verify_says_where_the_trail_is_broken(
    run: Run, folder: Path, bundled_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "_SETTLE_S", 0.0)
    with bundled_server.client() as client:
        last = parse_line(lines_of(client)[-1]).link
        noted = parse_line(lines_of(client)[2]).link
    assert run("audit", "verify") == (0, f"5 in the stream, 0 findings; the last entry is {last}\n")
    code, said = run("audit", "verify", "--folder", str(folder), "--expect", str(noted))
    # Nobody keeps the file: its last entry is not there.
    assert code == 1 and said.splitlines()[0].startswith("file: file_behind: the file ends at 4, the stream at 5")
    file = TrailFile(folder)
    with bundled_server.client() as client:
        Trail(Pipe(client), file=file, writer="host:1").follow()
    file.close()
    whole = f"5 in the file and 5 in the stream, 0 findings; the last entry is {last}\n"
    assert run("audit", "verify", "--expect", str(noted), audit__folder=str(folder)) == (0, whole)
    assert run("audit", "verify", "--folder", str(folder), url=None)[0] == 0
    wrong = noted._replace(hash=last.hash)
    code, said = run("audit", "verify", "--expect", str(wrong))
    assert code == 1 and "--expect: expected_differs" in said
    (segment,) = segments(folder)
    text = (folder / segment).read_text()
    (folder / segment).write_text(text.replace("48.5", "58.5"))
    code, said = run("audit", "verify", "--folder", str(folder))
    assert code == 1 and said.startswith(f"{segment} line 2: changed: entry 2 does not have the hash")
    assert run("audit", "verify", "--folder", str(folder), "--from", "3")[0] == 0
    with bundled_server.client() as client:
        client.xdel(STREAM, "3-0")
    code, said = run("audit", "verify")
    assert code == 1 and said.startswith("stream 4-0: missing: entries 3 to 3 are not in the stream\n")


def test_show_finds_what_is_about_an_account(run: Run, folder: Path) -> None:
    for more in ((), ("--folder", str(folder))):
        code, said = run("audit", "show", "live:1", *more)
        lines = said.splitlines()
        assert (code, len(lines), lines[-1]) == (0, 4, "3 entries")
        assert lines[0] == '2  2023-11-14T22:13:20.000Z  warning  live:1 =level  [tick 7]  {"level_pct": 48.5}'
        assert lines[1].startswith("4  2023-11-14T22:13:22.000Z  liquidation  live:1 critical?")
    assert "cascade" in run("audit", "show", "copy_follower:F2")[1]
    assert run("audit", "show", "live:2") == (0, "0 entries\n")
    assert run("audit", "show", "live:1", "--kind", "kill")[1].splitlines()[-1] == "1 entries"
    assert run("audit", "show", "all", "--limit", "2")[1].splitlines()[-1] == "2 entries"
    assert run("audit", "show", "all", "--since", "2023-11-14T22:13:21Z")[1].splitlines()[-1] == "4 entries"
    assert run("audit", "show", "all", "--since", "1700000002000")[1].splitlines()[-1] == "3 entries"


def test_export_gives_the_lines_themselves_or_a_table(run: Run, folder: Path, bundled_server: Any) -> None:
    with bundled_server.client() as client:
        lines = lines_of(client)
    for more in ((), ("--folder", str(folder))):
        assert run("audit", "export", *more) == (0, "".join(line.decode() + "\n" for line in lines))
    bounds = ("--since", "2023-11-14T22:13:20", "--until", "2023-11-14T22:13:21+00:00")
    table = list(csv.DictReader(io.StringIO(run("audit", "export", "--format", "csv", *bounds)[1])))
    assert [row["seq"] for row in table] == ["2", "3"]
    assert table[0]["reason"] == "'=level" and json.loads(table[0]["said"]) == {"level_pct": 48.5}
    assert {row["hash"] for row in table} == {parse_line(line).link.hash for line in lines[1:3]}


def test_what_is_no_entry_is_left_out_and_said(
    run: Run, folder: Path, bundled_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with bundled_server.client() as client:
        client.xadd(STREAM, {"other": "x"}, "6-0")
        client.xadd(STREAM, {"entry": b"\xff\n"}, "7-0")
    assert run("audit", "show", "all")[1].splitlines()[-1] == "5 entries"
    assert run("audit", "export")[1].count("\n") == 5
    code, said = run("audit", "verify")
    assert code == 1 and "stream 6-0: unreadable" in said and "stream 7-0: unreadable" in said


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--expect", "7"),
        ("verify", "--expect", "7:\u0661"),
        ("verify", "--from", "0"),
        ("verify", "--folder", "/nowhere/at/all"),
        ("show", "nobody"),
        ("show", "admin:1"),
        ("show", "live:{1}"),
        ("show", "live:1", "--limit", "0"),
        ("show", "live:1", "--since", "yesterday"),
        ("show", "live:1", "--since", "9999-99-99"),
        ("export", "--until", "1e99"),
    ],
)
def test_arguments_that_make_no_sense_are_one_line(run: Run, words: tuple[str, ...]) -> None:
    with pytest.raises((ConfigError, InvalidId)) as refused:
        run("audit", *words)
    assert "\n" not in str(refused.value)


def test_without_a_server_or_folder_it_says_so(run: Run) -> None:
    for action in ("verify", "export"):
        with pytest.raises(ConfigError):
            run("audit", action, url=None)


def test_the_program_itself(bundled_server: Any, folder: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
    words = [sys.executable, "-m", "copyrisk.cli", "--redis", bundled_server.url, "audit"]
    done = subprocess.run([*words, "show", "live:{"], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "[invalid_account_id]" in done.stderr
    reads, writes = os.pipe()
    os.close(reads)  # who reads has seen enough
    try:
        done = subprocess.run([*words, "export"], env=clean, stdout=writes, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (1, b"")


# ---- what operators do


def acts(client: Any) -> list[tuple[str, dict[str, Any]]]:
    found = [parse_line(line) for line in lines_of(client)]
    assert {entry.kind for entry in found[1:]} <= {"operator"}
    assert {entry.said.get("user") for entry in found[1:]} == {operator_name()}
    return [(entry.cause, dict(entry.said)) for entry in found[1:]]


def test_what_operators_do_is_written_down(run: Run, bundled_server: Any) -> None:
    with bundled_server.client() as client:
        config = {"wallet_balance": "10000", "leverage": "100", "sending_orders": "rock"}
        client.hset("user:{strategy_provider:M1}:config", mapping=config)
        run("follow", "M1", "F1", "copy_follower:F2", "--investment", "500", "--multiplier", "2")
        run("pause", "F2")
        run("resume", "F2")
        run("unfollow", "F1")
        client.sadd("copy_master_followers:M1:active", "GONE")
        run("followers", "--check")
        run("followers", "--check", "--repair")
        run("followers", "M1")
        with pytest.raises((Refused, StoreError)):
            run("requests", "resolve", "r1", "--status", "rejected")
        client.xadd("copyrisk:dead_letters", {"stream": "copyrisk:commands", "fields": '{"type": "open"}'})
        run("dead-letters", "list")
        run("dead-letters", "replay", "all")
        found = acts(client)
    assert [cause for cause, _ in found] == [
        *("follow", "pause", "resume", "unfollow"),
        *("followers --repair", "requests resolve", "dead-letters replay"),
    ]
    assert found[0][1]["accounts"] == ["copy_follower:F1", "copy_follower:F2"]
    assert found[0][1]["master"] == "M1" and found[0][1]["settings"] == {"multiplier": "2"}
    assert found[5][1]["request_id"] == "r1"
    assert run("audit", "show", "copy_follower:F2")[1].splitlines()[-1] == "3 entries"
    assert run("audit", "verify")[0] == 0


def test_what_cannot_be_written_down_is_not_done(run: Run, bundled_server: Any) -> None:
    with bundled_server.client() as client:
        client.hset("user:{strategy_provider:M1}:config", mapping={"wallet_balance": "1", "leverage": "1"})
        client.set(HEAD, "garbage")
        letter = client.xadd("copyrisk:dead_letters", {"stream": "copyrisk:commands", "fields": '{"type": "open"}'})
        for words in (
            ("follow", "M1", "F1", "--investment", "500"),
            ("pause", "F1"),
            ("requests", "resolve", "r1", "--status", "rejected"),
            ("dead-letters", "replay", letter.decode()),
        ):
            with pytest.raises(StoreError) as refused:
                run(*words)
            assert refused.value.code == functions.KEY_UNUSABLE
        assert not client.exists("user:{copy_follower:F1}:config", "copyrisk:replayed")
        assert client.xlen("copyrisk:dead_letters") == 1
