"""The API and those who mean it no good: on the wire, with accounts of others, stolen requests, and broken servers."""

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk.api import guard, wire
from copyrisk.api.line import Line
from copyrisk.api.pages import POLICY
from copyrisk.api.scopes import Scope
from copyrisk.api.tokens import make_token
from copyrisk.audit import AuditKind, Entry
from copyrisk.embedded import EmbeddedServer
from copyrisk.errors import StoreError
from copyrisk.signing import MasterSecret
from copyrisk.store.api_keys import KeyRecord, put_record
from copyrisk.store.connection import connect_async
from copyrisk.store.pipe import Pipe
from copyrisk.store.trail import Trail
from tests.api_house import ALL_SCOPES, MASTER_SECRET, Caller, House, data, refusal, served, until_sent, working
from tests.backoffice import now_ms
from tests.conftest import Server
from tests.postbox import certificate
from tests.trading import Desk, dump, is_log, process, until

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


@contextmanager
def no_faults(house: House, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing of what is done meanwhile is a fault of ours: neither routes nor the server around them log one."""

    async def idle() -> None:
        while any(getattr(task.get_coro(), "__name__", "") == "run_asgi" for task in asyncio.all_tasks()):
            await asyncio.sleep(0.001)

    caplog.clear()
    with structlog.testing.capture_logs() as lines:
        yield
        asyncio.run_coroutine_threadsafe(idle(), house.loop).result(_LIMIT_S)
    assert [line for line in lines if line["log_level"] in ("error", "critical")] == []
    assert [one.getMessage() for one in caplog.records if one.exc_info or one.levelname in ("ERROR", "CRITICAL")] == []


def forgive(house: House) -> None:
    """Have whoever was refused too often start anew: all tests come from one address."""
    house.loop.call_soon_threadsafe(house.api.access._failures._full_s.clear)


@pytest.fixture(autouse=True)
def _forgiven(front: House) -> None:
    forgive(front)


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


def read_one(there: socket.socket) -> bytes:
    """One answer, whether the connection ends with it or not; empty: it ended without one."""
    said = b""
    with suppress(ConnectionError):
        while piece := there.recv(1 << 16):
            said += piece
            length = re.search(rb"\r\ncontent-length: (\d+)\r\n", said)
            if length and len(said.partition(b"\r\n\r\n")[2]) >= int(length[1]):
                break
    return said


def exchanged(house: House, *pieces: bytes) -> bytes:
    """The answer to these bytes."""
    with connected(house) as there:
        for piece in pieces:
            there.sendall(piece)
        return read_all(there)


def stands(house: House) -> tuple[dict[str, bytes], int]:
    """All there is but nonces, and the workers' streams, which change as they are read; and how much was done."""
    read = ("copyrisk:api:", "copyrisk:work:", "copyrisk:commands", "copyrisk:reports", "copyrisk:replayed")
    return dump(house.desk.client, lambda key: key.startswith(read)), house.desk.client.xlen("copyrisk:events")


def books(house: House) -> dict[str, bytes]:
    """The same without what only says what was asked and answered."""
    return {key: said for key, said in stands(house)[0].items() if not is_log(key) and "{audit}" not in key}


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


WHOLE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("said", [b"", WHOLE[:15], WHOLE[:-2]])
def test_who_does_not_say_what_it_wants_is_let_go(front: House, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEAD_S", 0.1)
    with connected(front) as there:
        there.sendall(said)
        read_all(there)


def test_a_head_that_begins_behind_a_request_has_a_limit_too(front: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEAD_S", 0.1)
    with connected(front) as there:
        there.settimeout(1.0)
        there.sendall(WHOLE + WHOLE[:10])
        assert status_of(there.recv(1 << 16)) == 200
        there.sendall(WHOLE[10:11])  # ends the time that a connection may rest
        read_all(there)


def test_requests_that_come_together_are_not_too_many(front: House) -> None:
    with connected(front) as there:
        there.settimeout(1.0)
        try:
            there.sendall(WHOLE * 2_000)
        except ConnectionError:
            return
        assert read_all(there).count(b"HTTP/1.1 200") < 200


def test_a_body_that_trickles_is_not_waited_for(front: House, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_S", 0.2)
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


def test_who_leaves_leaves_no_traceback(front: House, caplog: pytest.LogCaptureFixture) -> None:
    sent = bearer() | {"Content-Length": "40", "Content-Type": "application/json", "Idempotency-Key": "left"}
    for method, path in (("POST", EXECUTE), ("PUT", "/api/copy-trading/accounts/F"), ("POST", "/api/risk/what-if")):
        with no_faults(front, caplog), connected(front) as there:
            there.sendall(head(method, path, sent) + b'{"user_type"')
            there.shutdown(socket.SHUT_WR)
            read_all(there)


def test_who_leaves_with_requests_under_way_leaves_no_traceback(front: House, caplog: pytest.LogCaptureFixture) -> None:
    with no_faults(front, caplog), connected(front) as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leaves with a reset
        there.sendall(b"GET /static/plotly.js HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        there.recv(1)


def test_heads_with_thousands_of_parts_are_refused(
    front: House, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    many = f"{PORTFOLIO}?{'a&' * 1_000}"
    assert code_of(exchanged(front, head("GET", many, caller.headers("GET", many)))) == "too_many_parameters"
    for body in (b"", b"x", b"xy" + WHOLE * 3):
        lines = {f"a{number}": "b" for number in range(1_000)} | ({"Content-Length": "2"} if body else {})
        with no_faults(front, caplog):
            said = exchanged(front, head("POST", EXECUTE, caller.headers("POST", EXECUTE) | lines) + body)
        assert said == b"" or status_of(said) in (400, 431)


# ---- tokens


ODD_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"exp": 10**400}, "invalid_token"),
    ({"exp": 1e300}, "invalid_token"),
    ({"exp": -1}, "expired_token"),
    ({"exp": True}, "expired_token"),
    ({"exp": None}, "invalid_token"),
    ({"exp": "soon"}, "invalid_token"),
    ({"nbf": 10**400}, "invalid_token"),
    ({"iat": 10**400}, "invalid_token"),
    ({"aud": [["copyrisk"]]}, "invalid_token"),
    ({"aud": {"copyrisk": 1}}, "invalid_token"),
    ({"accounts": "*"}, "invalid_token"),
    ({"accounts": {"*": 1}}, "invalid_token"),
    ({"accounts": ["live:1", {}]}, "invalid_token"),
    ({"accounts": [" *"]}, "invalid_token"),
    ({"accounts": ["live:**"]}, "invalid_token"),
    ({"accounts": ["LIVE:*"]}, "invalid_token"),
    ({"accounts": ["live:1\n"]}, "invalid_token"),
    ({"accounts": ["live:\ud800"]}, "invalid_token"),
    ({"accounts": []}, "account_forbidden"),
    ({"accounts": ["live:11", "demo:1", "live:"[:-1] + ":0"]}, "account_forbidden"),
    ({"scope": ["orders:read"]}, "invalid_token"),
    ({"scope": "orders:read,risk:read"}, "missing_scope"),
    ({"scope": "ORDERS:READ"}, "missing_scope"),
    ({"scope": "*"}, "missing_scope"),
    ({"sub": "a\u202eb"}, "invalid_token"),
    ({"sub": ["ann"]}, "invalid_token"),
]


def test_tokens_with_odd_claims(front: House) -> None:
    client, found = front.client(), []
    for claims, code in ODD_CLAIMS:
        usual = {"sub": "odd", "scope": "orders:read", "accounts": ["*"], "aud": "copyrisk", "exp": 4_000_000_000}
        said = {"Authorization": f"Bearer {jwt.encode({**usual, **claims}, ISSUER_KEY, 'ES256')}"}
        forgive(front)
        for _ in range(2):  # the second time it is known
            found.append((claims, code, refusal(client.get(PORTFOLIO, headers=said))[1]))
    assert [(claims, code) for claims, expected, code in found if code != expected] == []


def test_nothing_is_fetched_that_a_token_names(front: House) -> None:
    """Neither from the network nor from files: its signature counts under the keys of the house alone."""
    stranger = ec.generate_private_key(ec.SECP256R1())
    claims = {"sub": "odd", "scope": "orders:read", "accounts": ["*"], "aud": "copyrisk", "exp": 4_000_000_000}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/keys"
        own = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(stranger.public_key()))
        for named in ({"jku": url}, {"x5u": url}, {"jwk": own}, {"kid": "../../../etc/passwd"}, {"kid": "\0"}):
            forged = jwt.encode(claims, stranger, "ES256", headers=named)
            code = refusal(front.client().get(PORTFOLIO, headers={"Authorization": f"Bearer {forged}"}))[1]
            assert code == "invalid_token", named
        with pytest.raises(BlockingIOError):
            listening.accept()


# ---- routes: nobody comes in without a right, or to what is not his


OF = "user_type=live&user_id=1"
#: Every route below /api: what it needs, and for whom it asks; a route that is new must be put in here.
ROUTES: list[tuple[str, str, Any, Scope]] = [
    ("POST", EXECUTE, BUY, Scope.ORDERS_WRITE),
    ("POST", CLOSE, {"user_type": "live", "user_id": "1", "order_id": "A"}, Scope.ORDERS_WRITE),
    *(
        (
            "POST",
            f"/api/orders/{name}",
            {"user_type": "live", "user_id": "1", "order_id": "A", **more},
            Scope.ORDERS_WRITE,
        )
        for name, more in (
            ("pending/modify", {"order_price": "1"}),
            ("pending/cancel", {}),
            ("stoploss/add", {"stop_loss": "1"}),
            ("stoploss/cancel", {}),
            ("takeprofit/add", {"take_profit": "1"}),
            ("takeprofit/cancel", {}),
        )
    ),
    (
        "POST",
        "/api/orders/pending/place",
        {**BUY, "order_type": "BUY_LIMIT", "order_price": "1"},
        Scope.ORDERS_WRITE,
    ),
]
_MASTERS, _COPYING = "/api/copy-trading/orders/strategy-provider", "/api/copy-trading"
_PLACED = {name: BUY[name] for name in ("symbol", "order_type", "order_quantity")}
ROUTES += [
    ("POST", _MASTERS, {"user_id": "M", **_PLACED}, Scope.ORDERS_WRITE),
    ("POST", f"{_MASTERS}/close", {"user_id": "M", "order_id": "A"}, Scope.ORDERS_WRITE),
    ("POST", f"{_MASTERS}/A/cancel", {"user_id": "M"}, Scope.ORDERS_WRITE),
    (
        "POST",
        f"{_MASTERS}/pending",
        {"user_id": "M", **_PLACED, "order_type": "BUY_LIMIT", "order_price": "1"},
        Scope.ORDERS_WRITE,
    ),
    ("POST", f"{_COPYING}/follow", {"master_id": "M", "follower_id": "F", "investment": "1"}, Scope.COPY_WRITE),
    ("PUT", f"{_COPYING}/accounts/F", {"multiplier": "2"}, Scope.COPY_WRITE),
    ("DELETE", f"{_COPYING}/accounts/F", None, Scope.COPY_WRITE),
    ("POST", f"{_COPYING}/accounts/F/pause", None, Scope.COPY_WRITE),
    ("POST", f"{_COPYING}/accounts/F/resume", None, Scope.COPY_WRITE),
    ("GET", f"{_COPYING}/accounts/F", None, Scope.COPY_READ),
    ("GET", f"{_COPYING}/masters/M/followers", None, Scope.COPY_READ),
    ("GET", f"{_COPYING}/relationships/check", None, Scope.COPY_READ),
    ("GET", PORTFOLIO, None, Scope.ORDERS_READ),
    ("GET", f"/api/orders?{OF}", None, Scope.ORDERS_READ),
    ("GET", f"/api/orders/A?{OF}", None, Scope.ORDERS_READ),
    ("GET", f"/api/orders/answers/k?{OF}", None, Scope.ORDERS_READ),
    ("GET", "/api/accounts/live/1/history", None, Scope.AUDIT_READ),
    ("GET", "/api/audit?account=live:1", None, Scope.AUDIT_READ),
    ("GET", "/api/risk/summary", None, Scope.RISK_READ),
    ("GET", "/api/risk/ladder", None, Scope.RISK_READ),
    ("GET", "/api/risk/ladder/EURUSD", None, Scope.RISK_READ),
    ("POST", "/api/risk/what-if", {"moves": {"EURUSD": "1"}}, Scope.RISK_READ),
    ("GET", "/api/stream?topics=portfolios&accounts=live:1", None, Scope.ORDERS_READ),
    ("GET", "/api/stream?topics=orders&accounts=live:1", None, Scope.ORDERS_READ),
    ("GET", "/api/stream?topics=replications&accounts=live:1", None, Scope.COPY_READ),
    ("GET", "/api/stream?topics=summary", None, Scope.RISK_READ),
]
#: Those that leave out what is not the caller's, or say that it is not there.
FILTERED: list[tuple[str, str, Any, Scope]] = [
    ("GET", f"{_COPYING}/relationships", None, Scope.COPY_READ),
    ("GET", "/api/decisions/A", None, Scope.COPY_READ),
    ("GET", "/api/cascades", None, Scope.COPY_READ),
    ("GET", "/api/cascades/X", None, Scope.COPY_READ),
    ("GET", "/api/audit", None, Scope.AUDIT_READ),
]
EVERY = ROUTES + FILTERED


def test_the_table_of_routes_is_whole(front: House) -> None:
    document = front.client().get("/api/openapi.json").json()
    known = {
        (method.upper(), re.sub(r"\{\w+\}", "*", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    for method, path, _, _ in EVERY:
        bare = path.partition("?")[0]
        known -= {
            one for one in known if one[0] == method and re.fullmatch(re.escape(one[1]).replace(r"\*", r"[^/]+"), bare)
        }
    assert known == set()


def test_nobody_comes_in_without_credentials_or_with_too_few(front: House) -> None:
    nobody, before = front.client(), stands(front)
    none, most = front.caller(scopes=()), {scope: front.caller(scopes=tuple(set(Scope) - {scope})) for scope in Scope}
    for method, path, body, scope in EVERY:
        forgive(front)
        said = nobody.request(method, path, json=body, headers={"Idempotency-Key": "k"})
        assert refusal(said) == (401, "missing_credentials"), (method, path)
        assert refusal(none.send(method, path, body)) == (403, "missing_scope"), (method, path)
        assert refusal(most[scope].send(method, path, body)) == (403, "missing_scope"), (method, path)
    assert stands(front) == before


#: Grants that look like those of live:1, M and F, and are not.
ALIENS = ("live:2", "live:11", "demo:1", "demo:*", "strategy_provider:F", "copy_follower:M", "strategy_provider:m")


def test_nobody_reaches_the_account_of_another(front: House) -> None:
    before, alien = stands(front), front.caller(accounts=ALIENS)
    for method, path, body, _ in ROUTES:
        assert refusal(alien.send(method, path, body)) == (403, "account_forbidden"), (method, path)
    there = [alien.send(method, path, body).json() for method, path, body, _ in FILTERED]
    assert there[0]["data"]["relationships"] == there[2]["data"]["cascades"] == there[4]["data"]["entries"] == []
    assert [one["error_code"] for one in (there[1], there[3])] == ["unknown_decision", "unknown_cascade"]
    assert stands(front) == before


def test_an_order_of_another_is_as_good_as_none(front: House) -> None:
    """Whether somebody else's order, or answer, is there cannot be told from what is answered of it."""
    own, other = front.caller(accounts=("live:1",)), front.caller(accounts=("live:2",))
    data(other.post(EXECUTE, {**BUY, "user_id": "2", "order_id": "THEIRS"}, "their-key"))
    said = []
    for order_id, key in (("THEIRS", "their-key"), ("NOBODYS", "nobodys-key")):
        whose = {"user_type": "live", "user_id": "1", "order_id": order_id}
        answers = [own.post(CLOSE, whose), own.post("/api/orders/pending/cancel", whose)]
        answers += [own.post("/api/orders/stoploss/add", {**whose, "stop_loss": "1.0"})]
        answers += [own.get(f"/api/orders/{order_id}?{OF}"), own.get(f"/api/decisions/{order_id}")]
        answers += [own.get(f"/api/orders/answers/{key}?{OF}")]
        said.append([(one.status_code, one.text.replace(order_id, "*")) for one in answers])
    assert said[0] == said[1]
    assert front.desk.statuses("live:2", "THEIRS") == ("OPEN", "EXECUTED")


def test_a_stream_tells_nobody_of_others(front: House) -> None:
    """Neither what happens, nor, by an id that somebody else was given, what has happened."""
    own, other = front.caller(accounts=("live:1",)), front.caller(accounts=("live:2",))
    data(other.post(EXECUTE, {**BUY, "user_id": "2", "order_id": "HIDDEN"}))
    path = "/api/stream?topics=orders,replications"
    given = own.headers("GET", path) | {"Last-Event-ID": "0.0-0"}
    with own.client.stream("GET", path, headers=given) as stream:
        lines = stream.iter_lines()
        assert any("event: begin" in line for line in lines)
        data(other.post(EXECUTE, {**BUY, "user_id": "2", "order_id": "HIDDEN2"}))
        data(own.post(EXECUTE, {**BUY, "order_id": "SHOWN"}))
        seen = []
        for line in lines:
            seen.append(line)
            if "SHOWN" in line:
                break
    assert "SHOWN" in seen[-1] and not any("HIDDEN" in line or '"live:2"' in line for line in seen)


def test_an_entry_says_nothing_of_others(front: House) -> None:
    said = {"accounts": ["copy_follower:F", "copy_follower:secret"], "failed_followers": {"secret": "x", "F": "y"}}
    pipe = Pipe(front.desk.new_client())
    Trail(pipe, writer="test").append([Entry(AuditKind.CASCADE, "strategy_provider:M", "x", "cascade_begins", said)])
    pipe.close()
    owner = front.caller(accounts=("strategy_provider:M", "copy_follower:F"))
    (entry,) = data(owner.get("/api/audit?account=strategy_provider:M"))["entries"]
    assert entry["said"] == {"accounts": ["copy_follower:F"], "failed_followers": {"F": "y"}}
    assert "secret" in front.caller().get("/api/audit?account=strategy_provider:M").text


def test_answers_of_copy_trading_need_its_scope(front: House) -> None:
    data(front.caller().send("PUT", f"{_COPYING}/accounts/F", {"multiplier": "2"}, "an-act"))
    path = "/api/orders/answers/an-act?user_type=copy_follower&user_id=F"
    assert data(front.caller(scopes=("orders:read", "copy:read")).get(path))["data"]["settings"]["multiplier"] == "2"
    assert refusal(front.caller(scopes=("orders:read",)).get(path)) == (403, "missing_scope")


# ---- changes: once each, whatever is sent how often and by whom


def test_a_key_is_of_one_account_and_of_one_thing(front: House) -> None:
    one, other = front.caller(accounts=("live:1",)), front.caller(accounts=("live:2",))
    first = data(one.post(EXECUTE, BUY, "same-key"))
    second = data(other.post(EXECUTE, {**BUY, "user_id": "2"}, "same-key"))
    assert first["order_id"] != second["order_id"]
    whose = {"user_type": "live", "user_id": "1", "order_id": first["order_id"]}
    for path, body in (
        (EXECUTE, {**BUY, "order_quantity": "2"}),
        (CLOSE, whose),
        ("/api/orders/pending/cancel", whose),
    ):
        assert refusal(one.post(path, body, "same-key")) == (409, "idempotency_conflict")
    assert data(front.caller(accounts=("live:*",)).post(EXECUTE, BUY, "same-key"))["event_id"] == first["event_id"]
    assert front.desk.statuses("live:1", first["order_id"]) == ("OPEN", "EXECUTED")


def test_commands_and_acts_with_one_key_are_one_thing(front: House) -> None:
    """Orders are done by workers, relationships by the API: they meet at the key."""
    caller = front.caller()
    order = {**BUY, "user_type": "copy_follower", "user_id": "F"}
    for number in range(4):
        key, calls = f"mixed-{number}", []
        for turn in range(4):
            calls += [lambda key=key: caller.post(EXECUTE, order, key)]
            calls += [lambda key=key: caller.send("PUT", f"{_COPYING}/accounts/F", {"multiplier": "3"}, key)]
            del turn
        with ThreadPoolExecutor(8) as threads:
            answers = [work.result() for work in [threads.submit(call) for call in calls]]
        codes = {"ok" if one.is_success else refusal(one)[1] for one in answers}
        done = {one.text for one in answers if one.is_success}
        assert codes <= {"ok", "idempotency_conflict"} and len(done) == 1, (codes, done)


def test_one_signed_request_comes_in_once_whatever_process_it_is_sent_to(front: House) -> None:
    with served(front.desk) as second:
        for number in range(5):
            raw, key = json.dumps(BUY).encode(), f"twice-{number}"
            signed = front.caller().headers("POST", EXECUTE, raw, key)
            forgive(front)
            forgive(second)
            clients = [(front.client() if place % 2 else second.client()) for place in range(8)]
            with ThreadPoolExecutor(8) as threads:
                sent = [threads.submit(one.post, EXECUTE, content=raw, headers=signed) for one in clients]
                codes = sorted("ok" if one.result().is_success else refusal(one.result())[1] for one in sent)
            assert codes == ["ok"] + 7 * ["replayed_request"]
            assert len(front.desk.events(idempotency_key=key)) == 1


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.sampled_from(("put", "insert", "cut")), st.uuids())
def test_a_request_that_was_changed_on_its_way_does_what_was_signed_or_nothing(
    front: House, caller: Caller, place: float, byte: int, how: str, key: Any
) -> None:
    """One byte of it is another one, there is one more, or it ends there."""
    body = json.dumps({**BUY, "order_quantity": "0.01"}).encode()
    sent = caller.headers("POST", EXECUTE, body, str(key)) | {"Content-Length": str(len(body))}
    raw = head("POST", EXECUTE, sent) + body
    at = int(place * len(raw))
    changed = raw[:at] + (b"" if how == "cut" else bytes([byte]) + raw[at + (how == "put") :])
    before = front.desk.client.xlen("copyrisk:events")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "HEAD_S", 0.2)  # of those that lack something
        patch.setattr(wire, "MESSAGE_S", 0.2)
        with connected(front) as there:
            there.sendall(changed)
            if how == "cut":  # no wait: it cannot be whole
                there.shutdown(socket.SHUT_WR)
            said = read_one(there)
    if said and status_of(said) == 200 and b"POST" in changed[:8]:
        order = json.loads(said.rpartition(b"\r\n\r\n")[2])["data"]["order"]
        assert (order["user_id"], order["symbol"], order["opened_quantity"]) == ("1", "EURUSD", "0.01")
        (event,) = front.desk.events(idempotency_key=str(key))
        assert event["order_id"] == order["order_id"]
    else:
        assert not said or 200 < status_of(said) < 500, (changed, said)
        assert front.desk.client.xlen("copyrisk:events") == before, changed


# ---- what is read of a body


HOSTILE_TEXTS = [
    "\0",
    "\ud800",
    "\u202e1",
    "1\n2",
    "{1}",
    "a" * 60_000,
    "\ufeff1",
    "\N{FULLWIDTH DIGIT ONE}",
    "__proto__",
]

#: A name is a name, and numbers of accounts and addresses are any printable text.
MAY_BE = {(name, text) for name in ("email", "account_number") for text in HOSTILE_TEXTS if text.isprintable()}
MAY_BE |= {("follower_id", "__proto__")}


def test_texts_that_are_none_reach_nothing(front: House, caller: Caller) -> None:
    before = books(front)
    follow = {"master_id": "M", "follower_id": "new", "investment": "100", "email": "a@b.c", "account_number": "7"}
    for text in HOSTILE_TEXTS:
        for name in follow:
            if len(text) < 1_000 and (name, text) in MAY_BE:
                continue
            code = refusal(caller.post(f"{_COPYING}/follow", {**follow, name: text}))
            assert code[0] in (404, 409, 413, 422), (name, text[:9], code)
        chosen: list[Any] = [{"multiplier": text}, {"symbols_allowed": text}, {"unset": [text]}, {text[:30]: "1"}]
        for body in chosen:
            assert refusal(caller.send("PUT", f"{_COPYING}/accounts/F", body))[0] in (413, 422), (body, text[:9])
        moves: list[Any] = [{"moves": {"EURUSD": text}}, {"moves": {text: "1"}}, {text: 1}]
        for body in moves:
            assert refusal(caller.post("/api/risk/what-if", body))[0] in (413, 422, 503), (body, text[:9])
    assert books(front) == before


NO_BODIES = [
    b"[" * 30_000,
    b'{"a":' * 10_000,
    b'{"user_type":"live","user_type":"live"}',
    b'{"user_id":{"a":1,"a":2}}',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\0}\0",
    b"{} {}",
    b'{"a":1}garbage',
    b'"live"',
    b"null",
    b"",
    b"{'user_id':'1'}",
    b'{"user_id":"\xff"}',
    b'{"user_id":"\x01"}',
    b"\0",
]


def test_bodies_that_are_none_are_the_callers_mistake(caller: Caller) -> None:
    for raw in NO_BODIES:
        for method, path in (("POST", EXECUTE), ("POST", f"{_COPYING}/follow"), ("PUT", f"{_COPYING}/accounts/F")):
            answer = caller.send(method, path, raw, headers={"Content-Type": "application/json"})
            assert refusal(answer)[1] in ("invalid_json", "unknown_field"), (path, raw[:20])
    for number in ("1" * 5_000, "1e400", "-0", "1E1", "0x1", "1." + "0" * 400, "NaN", "Infinity", "true", "null"):
        raw = json.dumps(BUY).replace('"order_quantity": "1"', f'"order_quantity": {number}').encode()
        assert refusal(caller.post(EXECUTE, raw))[1] in ("invalid_order_quantity", "invalid_json"), number


# ---- pages of others, and what is never shown


def test_a_page_of_elsewhere_can_do_nothing(front: House) -> None:
    """No answer lets another origin read it, a change needs a header that such a page cannot send without asking."""
    client, origin = front.client(), {"Origin": "https://elsewhere.example", "Cookie": "session=1"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}
    for method, path, headers in (
        ("OPTIONS", EXECUTE, {**origin, **asks}),
        ("GET", PORTFOLIO, {**origin, **bearer()}),
        ("GET", PORTFOLIO, origin),
        ("POST", f"{_COPYING}/accounts/F/pause", origin),
        ("GET", "/", origin),
        ("GET", "/api/openapi.json", origin),
        ("GET", "/nowhere", origin),
    ):
        answer = client.request(method, path, headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control-")], path
        assert "set-cookie" not in answer.headers
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert (answer.headers["x-content-type-options"], answer.headers["x-frame-options"]) == ("nosniff", "DENY")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        sent = {**origin, **bearer(), "Content-Type": kind, "Idempotency-Key": "form"}
        assert refusal(client.post(EXECUTE, content=json.dumps(BUY), headers=sent)) == (415, "unsupported_media_type")


def test_what_outsiders_wrote_is_data_and_nothing_else(front: House, caller: Caller) -> None:
    """Names out of Redis go out as JSON, and the page has neither a way to parse markup nor leave to run it."""
    evil = "<img src=x onerror=alert(1)>"
    front.desk.client.hset("user:{copy_follower:F}:config", mapping={"email": evil, "group": evil})
    front.desk.client.set("copy_follower_master:F:provider_id", evil)
    for path in (
        f"{_COPYING}/accounts/F",
        f"{_COPYING}/relationships",
        f"/api/orders/{'%3Cimg%3E'}?{OF}",
        "/%3Cscript%3E",
    ):
        answer = caller.get(path)
        assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == (
            "application/json",
            "nosniff",
        )
    page = front.client().get("/")
    assert page.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY and "script-src 'self';" in POLICY and "*" not in POLICY
    folder = Path(guard.__file__).parent / "static"
    forbidden = re.compile(
        r"\.innerHTML|\.outerHTML\s*=[^=]|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|"
        r"javascript:|createContextualFragment|setHTML|parseFromString"
    )
    for file in folder.iterdir():
        assert forbidden.search(file.read_text()) is None, file.name
    html = (folder / "index.html").read_text()
    assert re.search(r"<script(?![^>]*src=)|\son\w+=|style=|<base|http-equiv", html) is None
    front.desk.client.delete("copy_follower_master:F:provider_id")


def test_nothing_secret_is_in_what_anybody_may_read(front: House, caller: Caller) -> None:
    client = front.client()
    shown = [client.get(path) for path in ("/", "/api/openapi.json", "/healthz", "/readyz", "/nowhere", PORTFOLIO)]
    shown += [caller.get(PORTFOLIO), caller.send("GET", PORTFOLIO, headers={"X-Copyrisk-Signature": "0" * 64})]
    for answer in shown:
        said = answer.text + str(answer.headers)
        for secret in (
            MASTER_SECRET,
            caller.secret,
            caller.key_id,
            front.desk.server.url,
            "Traceback",
            "site-packages",
        ):
            assert secret not in said
        assert "server" not in answer.headers
    assert MASTER_SECRET not in repr(front.settings) + repr(front.api.settings.api) + repr(front.api.access)


# ---- floods, and what stays of them


def test_silent_connections_leave_room_again(bundled_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is connected is served on; who comes too late is dropped, until those who said nothing are let go."""
    monkeypatch.setattr(wire, "HEAD_S", 0.3)
    desk = Desk(bundled_server)
    with served(desk, api__connections_limit=10) as house, ExitStack() as open_ones:
        regular = house.client()
        assert regular.get("/healthz").is_success
        silent = [open_ones.enter_context(connected(house)) for _ in range(20)]
        dropped = silent[9:]
        assert [read_all(one) for one in dropped] == [b""] * len(dropped)
        assert regular.get("/healthz").is_success
        assert [read_all(one) for one in silent] == [b""] * len(silent)
        assert is_alive(house)
    desk.close()


@pytest.mark.slow
def test_who_never_shakes_hands_is_let_go(own_desk: Desk, tmp_path: Path) -> None:
    key, made = certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {"API_PORT": port, "API_SECRET": MASTER_SECRET, "API_DESK": "false"}
    with (
        process(own_desk.server.url, "api", API_TLS_CERTIFICATE=made, API_TLS_KEY=key, **environ),
        httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=False, trust_env=False) as client,
    ):
        until(lambda: is_up(client), 30.0)
        with socket.create_connection(("127.0.0.1", port), timeout=2 * wire.HEAD_S) as silent:
            assert read_all(silent) == b""
        assert is_up(client)


def test_what_is_kept_of_callers_goes_away_by_itself(front: House) -> None:
    caller, client = front.caller(), front.desk.client
    assert caller.get(PORTFOLIO).is_success
    nonces = list(client.scan_iter("copyrisk:api:nonce:*", count=1_000))
    longest_ms = 2 * front.settings.api.clock_skew_ms + 60_000
    assert nonces and all(0 < client.pttl(name) <= longest_ms for name in nonces)
    before = client.dbsize()
    for number in range(20):  # refusals before the signature is known leave nothing
        forged = caller.headers("GET", PORTFOLIO) | {"X-Copyrisk-Signature": f"{number:064x}"}
        assert refusal(caller.client.get(PORTFOLIO, headers=forged)) == (401, "invalid_signature")
        late = caller.headers("GET", PORTFOLIO, time_ms=number)
        assert refusal(caller.client.get(PORTFOLIO, headers=late)) == (401, "expired_signature")
    assert client.dbsize() == before
    assert (front.api.asker.waiting, front.api.asker._waiters) == (0, {})


def test_a_key_that_is_revoked_while_its_request_arrives_does_nothing(front: House) -> None:
    caller, before = front.caller(), front.desk.client.xlen("copyrisk:events")
    master = MasterSecret(MASTER_SECRET.encode())
    assert caller.get(PORTFOLIO).is_success  # its record is known
    body = json.dumps(BUY).encode()
    with connected(front) as there:
        sent = caller.headers("POST", EXECUTE, body, "in-flight") | {"Content-Length": str(len(body))}
        there.sendall(head("POST", EXECUTE, sent) + body[:-1])
        pipe = Pipe(front.desk.new_client())
        put_record(pipe, KeyRecord(caller.key_id, "test", ALL_SCOPES, ("*",), now_ms(), revoked_ms=now_ms()), master)
        pipe.close()
        until(lambda: code_of_get(caller) == "revoked_key", 5.0)
        there.sendall(body[-1:])
        assert code_of(read_all(there)) == "revoked_key"
    assert front.desk.client.xlen("copyrisk:events") == before


def code_of_get(caller: Caller) -> str:
    answer = caller.get(PORTFOLIO)
    return "ok" if answer.is_success else refusal(answer)[1]


# ---- the server behind it


@asynccontextmanager
async def babbling(server: Server, *, at: bytes) -> AsyncIterator[str]:
    """A way to the server on which a request with these bytes is answered with what no server says."""
    path, writers = server.url.removeprefix("unix://").partition("?")[0], list[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(path)
        writers.extend((writer, back))
        with suppress(ConnectionError):
            while said := await reader.read(1 << 16):
                back.write(said)
                answer = await there.read(1 << 16)
                writer.write(b"@@ what?\r\n" if at in said else answer)
        writer.close()
        back.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    finally:
        listening.close()
        await listening.wait_closed()
        await asyncio.gather(*(one.wait_closed() for one in writers), return_exceptions=True)


def test_an_answer_that_makes_no_sense_is_an_error_once(bundled_server: Server) -> None:
    async def asked() -> Any:
        async with babbling(bundled_server, at=b"nonce") as url:
            client = connect_async(url, connections=2, connect_timeout_ms=1_000, reply_timeout_ms=1_000)
            line = Line(client)
            try:
                async with asyncio.timeout(2.0):
                    with pytest.raises(StoreError):
                        await line.call("SET", "nonce", "1")
                    return await line.call("PING")
            finally:
                await line.close()
                await client.aclose()

    assert asyncio.run(asked()) in (b"PONG", "PONG")


def placed(caller: Caller, key: str, account: str = "1") -> httpx.Response:
    return caller.post(EXECUTE, {**BUY, "user_id": account, "order_quantity": "0.01"}, key)


@pytest.fixture
def own_desk() -> Iterator[Desk]:
    """One on a server of its own, which may be broken."""
    with EmbeddedServer.start() as running:
        desk = Desk(Server(running.url, running.pid))
        desk.account("live:1")
        yield desk
        desk.close()


def check_once(desk: Desk, caller: Caller, keys: Iterable[str]) -> None:
    """Each key is answered now, always the same, and there is one order and one event for each."""
    for key in keys:
        first, second = data(placed(caller, key)), data(placed(caller, key))
        assert first == second
        assert len(desk.events(idempotency_key=key)) == 1
        assert desk.statuses("live:1", first["order_id"]) == ("OPEN", "EXECUTED")


@pytest.mark.fault
def test_a_server_that_is_a_replica_for_a_while(own_desk: Desk) -> None:
    """Failed over: nothing is done, nothing is a fault, and it goes on as soon as there is a master."""
    desk = own_desk
    with working(desk), served(desk) as house:
        caller = house.caller()
        data(placed(caller, "before"))
        desk.client.replicaof("127.0.0.1", "1")
        try:
            for number in range(5):
                assert placed(caller, f"while-{number}").status_code == 503
                assert caller.get(PORTFOLIO).status_code == 503
        finally:
            desk.client.replicaof("NO", "ONE")
        check_once(desk, caller, ("before", *(f"while-{number}" for number in range(5))))
        assert len(desk.index("live:1")) == 6


@pytest.mark.fault
@pytest.mark.slow
def test_a_server_that_stands_still(own_desk: Desk) -> None:
    """For three seconds: answers are 200, 202 or 503, and later each key has been carried out once, or not at all."""
    desk = own_desk
    keys = [f"still-{number}" for number in range(40)]
    with working(desk), served(desk, api__answer_timeout_ms=500, redis__reply_timeout_ms=1_000) as house:
        callers = [house.caller() for _ in range(8)]
        data(placed(callers[0], "before"))
        with ThreadPoolExecutor(8) as threads:
            work = [threads.submit(placed, callers[place % 8], key) for place, key in enumerate(keys[:20])]
            os.kill(desk.server.pid, signal.SIGSTOP)
            try:
                work += [threads.submit(placed, callers[place % 8], key) for place, key in enumerate(keys[20:])]
                time.sleep(3.0)
            finally:
                os.kill(desk.server.pid, signal.SIGCONT)
            answers = {key: one.result() for key, one in zip(keys, work, strict=True)}
        assert {one.status_code for one in answers.values()} <= {200, 202, 503}
        until(lambda: placed(callers[0], "before").status_code == 200, _LIMIT_S)
        check_once(desk, callers[1], keys)
        for key, answer in answers.items():
            if answer.status_code == 200:
                assert data(placed(callers[2], key)) == data(answer)
        assert len(desk.index("live:1")) == 41


@pytest.mark.fault
@pytest.mark.slow
def test_a_server_that_comes_back_empty(own_desk: Desk) -> None:
    """Without persistence: callers are strangers, accounts are not there, and nothing is said to be done."""
    desk = own_desk
    with working(desk), served(desk) as house:
        caller = house.caller()
        for number in range(3):
            data(placed(caller, f"lost-{number}"))
        desk.client.flushall()
        desk.client.function_flush()
        desk.client.client_kill_filter(_type="normal", skipme=True)
        until(lambda: code_of_get(caller) == "unknown_key", _LIMIT_S)
        again = house.caller()
        seen: set[int] = set()

        def is_working() -> bool:
            answer = placed(again, f"empty-{len(seen)}-{time.monotonic_ns()}")
            seen.add(answer.status_code)
            return answer.status_code == 404

        until(is_working, _LIMIT_S)
        assert seen <= {202, 404, 409, 503}
        assert desk.index("live:1") == set()


@pytest.mark.fault
@pytest.mark.slow
def test_an_api_that_is_killed_with_a_change_under_way(own_desk: Desk) -> None:
    """Between the command and its answer: who asks another process with the same key gets the one answer."""
    desk = own_desk
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {"API_PORT": port, "API_SECRET": MASTER_SECRET, "API_DESK": "false"}
    with served(desk) as house, process(desk.server.url, "api", **environ) as doomed:
        caller = house.caller()
        other = Caller(house, caller.key_id, caller.secret, house.client())
        other.client.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        until(lambda: is_up(other.client), 30.0)
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(placed, other, "killed")
            until_sent(house, 1)
            doomed.kill()
            with pytest.raises(httpx.TransportError):
                asked.result()
        with working(desk):
            check_once(desk, caller, ["killed"])
        assert len(desk.index("live:1")) == 1


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:
        return False
