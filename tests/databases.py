"""Real database servers: private ones, on unix sockets in a folder of their own, that end with this process."""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from glob import glob
from pathlib import Path
from typing import Any

KINDS = ("sqlite", "mariadb", "postgresql")
_START_SECONDS = 30.0
_NAMES = (f"broker_{number}" for number in itertools.count())


def program(name: str) -> str | None:
    """Where it is; Debian keeps PostgreSQL's out of the path."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return found or next(iter(sorted(glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)


def is_installed(kind: str) -> bool:
    wanted = {"sqlite": (), "mariadb": ("mariadbd", "mariadb-install-db"), "postgresql": ("initdb", "postgres")}[kind]
    return all(program(name) is not None for name in wanted)


class SqlServer:
    """A server of one kind that can be stopped, killed and started again; its data stay. SQLite needs none."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(prefix=f"copyrisk-{kind}-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            if kind != "sqlite":
                self._make()
                self.start()
        except BaseException:
            self.close()
            raise

    def url(self, name: str, user: str = "") -> str:
        """Of a database."""
        return {
            "sqlite": f"sqlite:///{self.folder}/{name}.db",
            "mariadb": f"mariadb://{user or 'root'}@localhost/{name}?unix_socket={self.folder}/socket",
            "postgresql": f"postgresql://{user or 'owner'}@/{name}?host={self.folder}",
        }[self.kind]

    def new_url(self) -> str:
        """Of an empty database."""
        name = next(_NAMES)
        if self.kind != "sqlite":
            self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, *statements: str) -> None:
        """As the server's owner."""
        with closing(self._connect()) as connection, closing(connection.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)

    def start(self) -> None:
        """Start, and wait until it answers."""
        if self.kind == "mariadb":
            options = ["--no-defaults", f"--datadir={self.folder}/data", f"--socket={self.folder}/socket"]
            options += ["--skip-networking", "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=2"]
            command: list[object] = [program("mariadbd"), *options, f"--pid-file={self.folder}/pid"]
        else:
            options = ["-D", f"{self.folder}/data", "-k", str(self.folder), "-c", "listen_addresses="]
            command = [program("postgres"), *options, "-c", "fsync=off", "-c", "shared_buffers=32MB"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                _as_nobody(["--pdeathsig", "KILL"], command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        self._wait_until_it_answers()

    def stop(self, *, kill: bool = False) -> None:
        """End it in order, or in the middle of whatever it does."""
        if self._process is None:
            return
        if kill:
            self._process.kill()
        elif self.kind == "postgresql":
            self._process.send_signal(2)  # do not wait for sessions
        else:
            self._process.terminate()
        self._process.wait(30)
        self._process = None
        if kill and self.kind == "postgresql":  # its children notice that a moment later
            time.sleep(0.5)
            (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        if os.getuid() == 0:
            shutil.chown(self.folder, "nobody")
        data = f"{self.folder}/data"
        if self.kind == "mariadb":
            options = ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]
            command: list[object] = [program("mariadb-install-db"), *options, f"--datadir={data}"]
        else:
            command = [program("initdb"), "-D", data, "-U", "owner", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(_as_nobody([], command), check=True, capture_output=True, cwd="/")

    def _connect(self) -> Any:
        if self.kind == "mariadb":
            import pymysql

            with socket.socket(socket.AF_UNIX) as listening:  # pymysql does not close its own if nobody listens
                listening.connect(f"{self.folder}/socket")
            return pymysql.connect(user="root", unix_socket=f"{self.folder}/socket", autocommit=True)
        import psycopg

        return psycopg.connect(user="owner", host=str(self.folder), dbname="postgres", autocommit=True)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._connect().close()
                return
            except Exception:
                is_over = self._process is None or self._process.poll() is not None
                if is_over or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:]) from None
                time.sleep(0.02)


def _as_nobody(options: list[str], command: list[object]) -> list[str]:
    """The command as a user that both servers accept: they refuse root."""
    user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    return ["setpriv", *user, *options, *map(str, command)] if user or options else [str(word) for word in command]


@contextmanager
def running(kind: str) -> Iterator[SqlServer]:
    """A server for the time of a `with`."""
    server = SqlServer(kind)
    try:
        yield server
    finally:
        server.close()
