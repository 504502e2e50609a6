"""Real servers: the bundled one, and Debian's `redis-server` where it is installed."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from hypothesis import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from copyrisk.embedded import EmbeddedServer
from copyrisk.sql.database import Database, open_database
from tests.databases import KINDS as SQL_KINDS
from tests.databases import SqlServer, is_installed, running

# CI decides about a change and must not turn red by the luck of the draw; elsewhere examples are new each time.
# How long an example takes says more of the machine's other work than of the code.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")

KINDS = {"bundled": None, "debian": shutil.which("redis-server")}


@dataclass(frozen=True)
class Server:
    url: str
    pid: int

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))


@pytest.fixture(scope="session", params=[kind for kind, path in KINDS.items() if kind == "bundled" or path])
def _server_of_each_kind(request: pytest.FixtureRequest) -> Iterator[Server]:
    with EmbeddedServer.start(KINDS[request.param]) as running:
        yield Server(running.url, running.pid)


@pytest.fixture
def redis_server(_server_of_each_kind: Server) -> Server:
    """An empty server of each kind."""
    with _server_of_each_kind.client() as client:
        client.flushall()
    return _server_of_each_kind


@pytest.fixture(scope="session")
def _one_bundled_server() -> Iterator[Server]:
    with EmbeddedServer.start() as running:
        yield Server(running.url, running.pid)


@pytest.fixture
def bundled_server(_one_bundled_server: Server) -> Server:
    """An empty bundled server."""
    with _one_bundled_server.client() as client:
        client.flushall()
    return _one_bundled_server


@pytest.fixture(scope="session", params=SQL_KINDS)
def sql_server(request: pytest.FixtureRequest) -> Iterator[SqlServer]:
    """A database server of each kind."""
    if not is_installed(request.param):
        assert os.environ.get("CI") != "true", f"{request.param} is not installed"
        pytest.skip(f"{request.param} is not installed")
    with running(request.param) as server:
        yield server


@pytest.fixture
def empty(sql_server: SqlServer) -> Iterator[Database]:
    """A database without tables."""
    with open_database(sql_server.new_url()) as opened:
        yield opened


@pytest.fixture
def database(empty: Database) -> Database:
    """A database with our tables."""
    assert empty.migrate().is_ready
    return empty
