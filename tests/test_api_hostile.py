"""The API and those who mean it no good: on the wire as it is served, with foreign accounts, stolen requests, bad clocks."""

import asyncio
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from copyrisk.api import guard, serve
from copyrisk.api.context import Api
from copyrisk.api.pages import POLICY
from copyrisk.api.scopes import Scope
from copyrisk.api.tokens import make_token
from copyrisk.embedded import EmbeddedServer
from copyrisk.vitals import Vitals
from tests.api_house import ALL_SCOPES, MASTER_SECRET, Caller, House, api_settings, data, refusal, served, until_sent, working
from tests.conftest import Server
from tests.trading import Desk, dump, process, until

EXECUTE, CLOSE = "/api/orders/instant/execute", "/api/orders/close"
BUY = {"user_type": "live", "user_id": "1", "symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1"}
PORTFOLIO = "/api/portfolios/live/1"
ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())
_LIMIT_S = 10.0


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Workers, and an API that takes signatures and tokens."""
    file = tmp_path_factory.mktemp("issuer") / "keys.pem"
    file.write_bytes(ISSUER_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with EmbeddedServer.start() as running:
        desk = Desk(Server(running.url, running.pid))
        for account in ("live:1", "live:2", "strategy_provider:M", "copy_follower:F"):
            desk.account(account)
        with working(desk), served(desk, api__token_keys_file=str(file)) as made:
            yield made
        desk.close()


@pytest.fixture(scope="module")
def caller(front: House) -> Caller:
    return front.caller()


def bearer(*scopes: str, accounts: tuple[str, ...] = ("*",), sub: str = "ann") -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(ISSUER_KEY, sub, scopes or ALL_SCOPES, accounts, 600)}"}


def connected(house: House) -> socket.socket:
    host, port = house.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=_LIMIT_S)


def read_all(there: socket.socket) -> bytes:
    """What comes until the other end closes; a reset is an end as well."""
    said = b""
    try:
        while piece := there.recv(1 << 16):
            said += piece
    except ConnectionError:
        pass
    return said


def exchanged(house: House, *pieces: bytes) -> bytes:
    """The answer to these bytes."""
    with connected(house) as there:
        for piece in pieces:
            there.sendall(piece)
        return read_all(there)


def head(method: str, target: str, headers: dict[str, str], version: str = "1.1") -> bytes:
    """The head of a request, after which the connection is closed."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode("latin-1")


def status_of(said: bytes) -> int:
    assert said.startswith(b"HTTP/1."), said[:200]
    return int(said[9:12])


def code_of(said: bytes) -> str:
    """`ok`, or the code of the refusal."""
    found = json.loads(said.rpartition(b"\r\n\r\n")[2])
    return "ok" if found["success"] else str(found["error_code"])


def is_alive(house: House) -> bool:
    return bool(house.client().get("/healthz").status_code == 200)


# ---- what goes over the wire


@pytest.mark.parametrize(
    ("wire", "signed", "code"),
    [
        (PORTFOLIO, PORTFOLIO, "ok"),
        (f"http://elsewhere:1{PORTFOLIO}", PORTFOLIO, "ok"),  # an absolute form names the same thing
        (f"{PORTFOLIO}?", PORTFOLIO, "ok"),
        ("/api/portfolios/live/%31", "/api/portfolios/live/%31", "ok"),
        ("/api/portfolios/live/%31", PORTFOLIO, "invalid_signature"),
        (PORTFOLIO, "/api/portfolios/live/%31", "invalid_signature"),
        ("/api/portfolios/live%2f1", PORTFOLIO, "invalid_signature"),
        ("/api/portfolios/live/2", PORTFOLIO, "invalid_signature"),
        (f"{PORTFOLIO}?a=1", PORTFOLIO, "unknown_parameter"),
        (f"{PORTFOLIO}/", f"{PORTFOLIO}/", "not_found"),
        (f"/{PORTFOLIO}", f"/{PORTFOLIO}", "not_found"),
        ("/api/x/../portfolios/live/1", PORTFOLIO, "not_found"),
        ("/api/./portfolios/live/1", PORTFOLIO, "not_found"),
        ("/api/portfolios/live/1;a=b", "/api/portfolios/live/1;a=b", "invalid_account_id"),
        ("/api/portfolios/live/%00", "/api/portfolios/live/%00", "invalid_account_id"),
        ("/api/portfolios/live/%ED%A0%80", "/api/portfolios/live/%ED%A0%80", "invalid_account_id"),
        ("/api/portfolios/live/1%0d%0aX:y", "/api/portfolios/live/1%0d%0aX:y", "invalid_account_id"),
        ("/api/portfolios/live/1%7D", "/api/portfolios/live/1%7D", "invalid_account_id"),
        ("/api/portfolios/LIVE/1", "/api/portfolios/LIVE/1", "invalid_user_type"),
    ],
)
def test_what_is_signed_is_what_is_routed(front: House, caller: Caller, wire: str, signed: str, code: str) -> None:
    assert code_of(exchanged(front, head("GET", wire, caller.headers("GET", signed)))) == code


def test_every_header_of_a_signature_is_there_once(front: House, caller: Caller) -> None:
    for name in ("X-Copyrisk-Key", "X-Copyrisk-Time", "X-Copyrisk-Nonce", "X-Copyrisk-Signature", "authorization"):
        given = caller.headers("GET", PORTFOLIO)
        doubled = head("GET", PORTFOLIO, {**given, name.upper() + " ": "x"})
        assert status_of(exchanged(front, doubled)) == 400  # a blank before the colon hides nothing
        twice = head("GET", PORTFOLIO, given | {"X-A": f"b\r\n{name}: {given.get(name, 'Bearer x')}"})
        assert code_of(exchanged(front, twice)) == "ambiguous_credentials"
        under = {key.replace("-", "_") if key == name else key: value for key, value in given.items()}
        assert code_of(exchanged(front, head("GET", PORTFOLIO, under))) == (
            "ok" if name == "authorization" else "missing_credentials"
        )


NO_REQUESTS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    b"GET /healthz HTTP/1.1\nX: a\r\r\n\r\n",
    b"POST %b HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % CLOSE.encode(),
    b"POST %b HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345" % CLOSE.encode(),
    b"POST %b HTTP/1.1\r\nContent-Length: -5\r\n\r\n" % CLOSE.encode(),
    b"POST %b HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n" % CLOSE.encode(),
    b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n" % CLOSE.encode(),
    b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n" % CLOSE.encode(),
]


def test_what_is_no_request_is_refused_at_once(front: House) -> None:
    for said in NO_REQUESTS:
        answer = exchanged(front, said)
        assert status_of(answer) in (400, 401), (said, answer)
        assert b"Traceback" not in answer
        assert len(re.findall(rb"HTTP/1\.1 \d", answer)) <= 2, (said, answer)
    assert is_alive(front)


def test_requests_that_come_together_are_answered_each_by_its_own_signature(front: House, caller: Caller) -> None:
    alien = front.caller(accounts=("live:2",))
    both = [one.headers("GET", PORTFOLIO) for one in (caller, alien)]
    first = head("GET", PORTFOLIO, both[0]).replace(b"Connection: close\r\n", b"")
    said = exchanged(front, first + head("GET", PORTFOLIO, both[1]))
    assert re.findall(rb"HTTP/1\.1 (\d+)", said) == [b"200", b"403"]


def test_old_and_odd_ways_to_send_a_body(front: House, caller: Caller) -> None:
    body = json.dumps(BUY | {"user_id": "nobody"}).encode()
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"

    def signed(key: str) -> dict[str, str]:
        return caller.headers("POST", EXECUTE, body, key)

    length, coding = {"Content-Length": str(len(body))}, {"Transfer-Encoding": "chunked"}
    waits = {**length, "Expect": "100-continue"}
    assert code_of(exchanged(front, head("POST", EXECUTE, signed("w1") | length, "1.0"), body)) == "account_missing"
    assert code_of(exchanged(front, head("POST", EXECUTE, signed("w2") | coding), chunked)) == "account_missing"
    assert code_of(exchanged(front, head("POST", EXECUTE, signed("w3") | waits), body)) == "account_missing"
    short = {"Content-Length": str(len(body) - 1)}
    assert code_of(exchanged(front, head("POST", EXECUTE, signed("w4") | short), body)) == "invalid_signature"
    for coding_said in ("gzip", "identity", ""):
        odd = signed(f"w5{coding_said}") | length | {"Content-Encoding": coding_said}
        assert code_of(exchanged(front, head("POST", EXECUTE, odd), body)) == "unsupported_media_type"


def test_other_methods_are_refused_and_do_nothing(front: House, caller: Caller) -> None:
    before = front.desk.client.xlen("copyrisk:events")
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        override = {"X-HTTP-Method-Override": "POST", "X-HTTP-Method": "POST"}
        said = exchanged(front, head(method, EXECUTE, caller.headers(method, EXECUTE) | override))
        assert status_of(said) == 405, (method, said)
    assert front.desk.client.xlen("copyrisk:events") == before


def test_trailers_are_no_headers(front: House, caller: Caller) -> None:
    body = json.dumps(BUY).encode()
    before = front.desk.index("live:1")
    signed = caller.headers("POST", EXECUTE, body) | {"Transfer-Encoding": "chunked"}
    with connected(front) as there:
        there.sendall(head("POST", EXECUTE, signed) + b"%x\r\n%b\r\n" % (len(body), body))
        time.sleep(0.05)  # the head alone is looked at; how long that takes does not matter to a server that is right
        there.sendall(b"0\r\nIdempotency-Key: nobody-signed-this\r\n\r\n")
        said = read_all(there)
    assert code_of(said) == "missing_idempotency_key"
    assert front.desk.index("live:1") == before


@pytest.mark.parametrize("begins", [b"GET /healthz HTTP/1.1\r\n", b"GET /healthz?", b"GET /healthz HTTP/1.1\r\nX: "])
def test_a_head_without_end_is_ended(front: House, begins: bytes) -> None:
    piece = b"a" * 60_000 if not begins.endswith(b"\n") else b"X-A: " + b"a" * 60_000 + b"\r\n"
    with connected(front) as there:
        there.settimeout(0.5)
        try:
            there.sendall(begins)
            for _ in range(100):
                there.sendall(piece)
        except ConnectionError:
            return
        read_all(there)  # an answer, and the end, is as good; that nothing comes is not


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_who_does_not_say_what_it_wants_is_let_go(
    front: House, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copyrisk.api.wire.HEAD_S", 0.1)
    with connected(front) as there:
        there.sendall(said)
        there.settimeout(1.0)
        read_all(there)


def test_a_body_that_trickles_is_not_waited_for(
    front: House, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.2)
    with connected(front) as there:
        there.sendall(head("POST", EXECUTE, caller.headers("POST", EXECUTE, b"x") | {"Content-Length": "40"}))
        there.settimeout(0.05)
        said = b""
        for _ in range(20):
            there.sendall(b" ")
            try:
                said = there.recv(1 << 16)
                break
            except TimeoutError:
                continue
    assert status_of(said) == 408


def test_nobody_says_of_itself_who_it_is(front: House) -> None:
    client = front.client()
    with structlog.testing.capture_logs() as lines:
        for number in range(60):
            answer = client.get(PORTFOLIO, headers={"X-Forwarded-For": f"198.51.100.{number}, {'x' * 300}"})
    assert refusal(answer) == (429, "rate_limited")
    assert {line["peer"] for line in lines if line["event"] == "access_refused"} == {"127.0.0.1"}


@pytest.mark.xfail(strict=True, reason="defect 8: who leaves with a token leaves a traceback")
def test_who_leaves_leaves_no_traceback(front: House, caplog: pytest.LogCaptureFixture) -> None:
    sent = bearer() | {"Content-Length": "40", "Content-Type": "application/json", "Idempotency-Key": "left"}
    with structlog.testing.capture_logs() as lines, connected(front) as there:
        there.sendall(head("POST", EXECUTE, sent) + b'{"user_type"')
        there.shutdown(socket.SHUT_WR)
        read_all(there)
    assert [line for line in lines if line["event"] == "request_failed"] == []
    assert [one for one in caplog.records if one.exc_info] == []
