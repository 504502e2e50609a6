"""Connecting: every way a server can be wrong has its code, and none gives away a password."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from copyrisk.embedded import EmbeddedServer
from copyrisk.errors import StoreError, StoreUnavailable
from copyrisk.store.connection import check_server, connect, judge_server
from copyrisk.store.pipe import Pipe, ReplyError, pack


def checked(url: str) -> Any:
    return check_server(connect(url, connect_timeout_ms=500, reply_timeout_ms=500))


def code_of(url: str) -> str:
    with pytest.raises(StoreError) as failure:
        checked(url)
    assert "secret" not in str(failure.value)
    assert "\n" not in str(failure.value)
    return failure.value.code


def test_a_good_server_says_what_it_is(redis_server: Any) -> None:
    info = checked(redis_server.url)
    assert info.kind in ("Redis", "Valkey")
    assert info.version >= (7, 0)
    assert str(info).startswith(info.kind)


def test_versions_are_judged() -> None:
    assert judge_server({"redis_version": "7.0.15", "role": "master"}).version == (7, 0, 15)
    assert judge_server({"redis_version": "7.2.4", "valkey_version": "8.0.1"}).kind == "Valkey"
    policy = judge_server({"redis_version": "7.4.0", "maxmemory_policy": "allkeys-lru"})
    assert "allkeys-lru" in str(policy)
    for info, code in (
        ({"redis_version": "6.2.14"}, "server_too_old"),
        ({}, "server_not_redis"),
        ({"redis_version": "x"}, "server_not_redis"),
    ):
        with pytest.raises(StoreError) as failure:
            judge_server(info)
        assert failure.value.code == code


@pytest.mark.parametrize("url", ["http://x", "", "redis://host:port", "redis://host/x y", "unix:"])
def test_urls_that_are_none(url: str) -> None:
    assert code_of(url) in ("bad_redis_url", "server_unreachable")
    assert code_of("http://user:secret@x") == "bad_redis_url"


def test_nobody_there() -> None:
    assert code_of("redis://user:secret@127.0.0.1:1") == "server_unreachable"
    assert code_of("unix:///nowhere/at/all") == "server_unreachable"


def test_passwords_and_acl_users(tmp_path: Path) -> None:
    with EmbeddedServer.start(extra_args=["--requirepass", "secret"]) as server:
        path = server.url.removeprefix("unix://")
        assert code_of(server.url) == "server_auth_failed"
        assert code_of(f"unix://:wrongsecret@{path}") == "server_auth_failed"
        assert checked(f"unix://:secret@{path}").version >= (7, 0)
        admin = connect(f"unix://:secret@{path}", connect_timeout_ms=500, reply_timeout_ms=500)
        rights = [
            "~user*",
            "~market:*",
            "~groups:*",
            "~copyrisk:*",
            "&portfolio_updates",
            "+@all",
            "-@dangerous",
            "+info",
        ]
        admin.acl_setuser("risk", enabled=True, passwords=["+secret"], reset=True)
        admin.execute_command("ACL", "SETUSER", "risk", *rights)
        assert checked(f"unix://risk:secret@{path}").role == "master"
        admin.execute_command("ACL", "SETUSER", "risk", "-info")
        assert code_of(f"unix://risk:secret@{path}") == "server_no_permission"


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """A server that answers every request with the same bytes, or never."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                while True:
                    peer, _ = listener.accept()
                    threading.Thread(target=talk, args=(peer,), daemon=True).start()
            except OSError:
                return

        def talk(peer: socket.socket) -> None:
            with peer:
                try:
                    while peer.recv(4096):
                        if answer is not None:
                            peer.sendall(answer)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


def test_something_else_answers_or_nothing_does() -> None:
    with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        assert code_of(url) == "server_not_redis"
    with listening(None) as url, pytest.raises(StoreUnavailable) as failure:
        checked(url)
    assert failure.value.code == "store_unavailable"


def test_tls(tmp_path: Path) -> None:
    """The bundled server is built without TLS; Debian's has it."""
    program = shutil.which("redis-server")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("needs redis-server with TLS and openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            key,
            "-out",
            certificate,
            *subject,
        ],
        check=True,
        capture_output=True,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    more = ["--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no", "--bind", "127.0.0.1"]
    with EmbeddedServer.start(program, extra_args=[*options, *more]):
        assert checked(f"rediss://localhost:{port}?ssl_ca_certs={certificate}").kind == "Redis"
        assert code_of(f"rediss://localhost:{port}") == "server_unreachable"


# ---- the pipe


def pipe_to(server: Any) -> Pipe:
    return Pipe(connect(server.url, connect_timeout_ms=500, reply_timeout_ms=1000))


def test_replies_come_in_order_and_errors_in_their_place(redis_server: Any) -> None:
    pipe = pipe_to(redis_server)
    first = pipe.exchange([pack("CLIENT", "ID")])
    commands = [
        pack("SET", "a", 1),
        pack("HGET", "a", "f"),
        pack("GET", "a"),
        pack("GET", "none"),
        pack("LRANGE", "l", 0, 1),
    ]
    replies = pipe.exchange(commands)
    assert replies[0] == b"OK"
    assert isinstance(replies[1], ReplyError)
    assert replies[2:] == [b"1", None, []]
    many = pipe.exchange([pack("SET", f"k{n}", "v" * n) for n in range(5000)])
    assert many == [b"OK"] * 5000
    assert [len(value) for value in pipe.exchange([pack("GET", f"k{n}") for n in range(5000)])] == list(range(5000))
    assert pipe.exchange([]) == []
    assert pipe.exchange([pack("CLIENT", "ID")]) == first


def test_a_lost_connection_is_not_repeated_and_not_confused(redis_server: Any) -> None:
    pipe, other = pipe_to(redis_server), redis_server.client()
    pipe.exchange([pack("SET", "n", 0)])
    (own,) = pipe.exchange([pack("CLIENT", "ID")])
    other.client_kill_filter(_id=own)
    with pytest.raises(StoreUnavailable):
        pipe.exchange([pack("INCR", "n"), pack("GET", "n")])
    assert pipe.exchange([pack("GET", "n")]) == [b"0"]
    assert pipe.exchange([pack("CLIENT", "ID")]) != [own]


def test_a_server_that_stops_answering_is_left_after_its_time(redis_server: Any) -> None:
    pipe, other = pipe_to(redis_server), redis_server.client()
    pipe.exchange([pack("PING")])
    other.client_pause(3000)
    with pytest.raises(StoreUnavailable, match="in time"):
        pipe.exchange([pack("PING")])
    other.client_unpause()
    assert pipe.exchange([pack("PING")]) == [b"PONG"]
