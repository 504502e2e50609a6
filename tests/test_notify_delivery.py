"""Warnings with real servers: each reaches its client once, whatever is down, hangs, refuses or dies meanwhile."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from copyrisk.errors import StoreError
from copyrisk.notifier import Notifier
from copyrisk.notify_webhook import signature
from copyrisk.roles import run_notifier
from copyrisk.store import library
from copyrisk.store.connection import connect
from copyrisk.store.letters import list_letters, replay
from copyrisk.store.pipe import Pipe
from tests.postbox import (
    PASSWORD,
    SENDER,
    USER,
    PostOffice,
    Receiver,
    bad_server,
    certificate,
    free_port,
    mail_server,
    notice_fields,
    web_server,
)
from tests.trading import decoded, settings_for, until

NOTICES, LETTERS = "copyrisk:{cutoff}:notices", "copyrisk:dead_letters"
FAST = {"timeout_ms": 10_000, "takeover_ms": 20_000, "retry_ms": 10, "retry_max_ms": 50, "smtp_security": "none"}


class House:
    """A server with accounts whose clients are warned, and notifiers."""

    def __init__(self, server: Any, stack: ExitStack) -> None:
        self.server, self._stack = server, stack
        self.client: Any = stack.enter_context(server.client())
        self.office, self.mail_port = PostOffice(), free_port()

    def account(self, account: str, email: str | None = None, **more: str) -> None:
        name = account.replace(":", ".")
        config = {"account_number": f"N-{account}", "email": email or f"{name}@example.com", **more}
        self.client.hset(f"user:{{{account}}}:config", mapping=config)

    def warn(self, account: str, number: int = 1, *, age_ms: int = 0, **more: Any) -> str:
        now_s, _ = self.client.time()
        fields = notice_fields(account, number, now_s * 1_000 - age_ms)
        return str(self.client.xadd(NOTICES, {**fields, **more}).decode())

    def settings(self, **flags: object) -> Any:
        mail = {"sinks": "smtp", "smtp_host": "127.0.0.1", "smtp_port": self.mail_port, "smtp_from": SENDER}
        return settings_for(self.server.url, **{f"notify__{key}": v for key, v in (FAST | mail | flags).items()})

    def new_client(self) -> Any:
        return self._stack.enter_context(connect(self.server.url, connect_timeout_ms=2_000, reply_timeout_ms=5_000))

    def notifier(self, **flags: object) -> Notifier:
        client, chosen = self.new_client(), self.settings(**flags).notify
        library.load(client)
        made = Notifier(Pipe(client), chosen.make_sinks(), chosen.options())
        made._consumer.join()
        self._stack.callback(made.close)
        return made

    def mail(self, **more: Any) -> Any:
        return self._stack.enter_context(mail_server(self.office, self.mail_port, **more))

    def deliver(self, notifier: Notifier, limit_s: float = 20.0) -> None:
        """Step until nothing is left to do."""
        deadline_s = time.monotonic() + limit_s
        while self.client.xlen(NOTICES):
            if not notifier.step(0):
                time.sleep(0.001)
            assert time.monotonic() < deadline_s, "it did not come to an end"

    def letters(self) -> list[dict[str, str]]:
        return [decoded(said) for _, said in self.client.xrange(LETTERS)]

    def state(self, account: str = "live:1", number: int = 1) -> dict[str, str]:
        (key,) = self.client.keys(f"copyrisk:{{cutoff}}:notice:{account}:{number}:*")
        return decoded(self.client.hgetall(key))


@contextmanager
def opened(server: Any) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(server, stack)


@pytest.fixture
def house(bundled_server: Any) -> Iterator[House]:
    with opened(bundled_server) as made:
        made.account("live:1")
        made.account("live:2")
        yield made


# ---- mail


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_warning_is_sent_once_over_tls_with_a_login(redis_server: Any, tmp_path: Path, security: str) -> None:
    _, ca_file = certificate(tmp_path)
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    login = {"smtp_user": USER, "smtp_password_file": str(password), "smtp_ca_file": str(ca_file)}
    with opened(redis_server) as house:
        house.account("live:1")
        house.mail(folder=tmp_path, security=security)
        house.warn("live:1")
        house.deliver(house.notifier(smtp_host="localhost", smtp_security=security, **login))
        ((address, mail),) = house.office.mails
        assert address == "live.1@example.com" and "N-live:1" in mail["Subject"]
        assert house.state()["smtp:state"] == "sent" and house.letters() == []
        key = house.client.keys("copyrisk:{cutoff}:notice:*")[0]
        assert 0 < house.client.pttl(key) <= 604_800_000
        house.warn("live:1", 1)
        house.client.xtrim(NOTICES, maxlen=0)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ({"smtp_ca_file": None}, "smtp_tls_failed"),
        ({"smtp_host": "127.0.0.1"}, "smtp_tls_failed"),
        ({"smtp_password_file": "wrong"}, "smtp_login_refused"),
        ({"smtp_user": None, "smtp_password_file": None}, "sender_refused"),
        ({"smtp_security": "none", "smtp_user": None, "smtp_password_file": None}, "sender_refused"),
    ],
    ids=["unknown authority", "another name", "wrong password", "no login", "no TLS"],
)
def test_without_trust_or_login_nothing_is_sent_and_no_secret_is_shown(
    house: House, tmp_path: Path, flags: dict[str, Any], code: str
) -> None:
    _, ca_file = certificate(tmp_path)
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(PASSWORD if name == "right" else "hush hush")
    given = {"smtp_host": "localhost", "smtp_security": "starttls", "smtp_user": USER, "smtp_ca_file": str(ca_file)}
    given |= {"smtp_password_file": "right"} | flags
    if given["smtp_password_file"]:
        given["smtp_password_file"] = str(tmp_path / given["smtp_password_file"])
    house.mail(folder=tmp_path, security="starttls")
    house.warn("live:1")
    with structlog.testing.capture_logs() as lines:
        house.deliver(house.notifier(attempts=2, **{name: value for name, value in given.items() if value is not None}))
    (letter,) = house.letters()
    assert letter["code"] == code and house.office.mails == []
    assert "hush" not in str(letter) + str(lines) and PASSWORD not in str(letter) + str(lines)


def test_a_mail_server_that_is_down_delays_nothing_else_and_gets_them_all_when_it_is_back(house: House) -> None:
    receiver, accounts = Receiver(), [f"demo:{number}" for number in range(20)]
    for account in accounts:
        house.account(account)
        house.warn(account)
    with web_server(receiver) as port:
        notifier = house.notifier(sinks=["smtp", "webhook"], webhook_url=f"http://127.0.0.1:{port}/")
        until(lambda: bool(notifier.step(0)) and len(receiver.posts) == 20)
        until(lambda: bool(notifier.step(0)) and house.state("demo:19").get("smtp:code") == "smtp_unreachable")
        house.mail()
        house.deliver(notifier)
    assert house.office.addresses() == sorted(f"demo.{number}@example.com" for number in range(20))
    assert len(receiver.posts) == 20 and house.letters() == []


def dripping(line: socket.socket) -> None:
    """Says something now and then, and never comes to an end."""
    while True:
        line.sendall(b"220-")
        time.sleep(0.02)


@pytest.mark.parametrize("behave", [lambda line: line.recv(1), dripping], ids=["silent", "dripping"])
def test_servers_that_hang_are_given_up_in_time(house: House, behave: Any) -> None:
    house.warn("live:1")
    with bad_server(behave) as port:
        hanging = {"smtp_port": port, "webhook_url": f"http://127.0.0.1:{port}/", "timeout_ms": 150, "attempts": 2}
        began_s = time.monotonic()
        house.deliver(house.notifier(sinks="smtp,webhook", takeover_ms=400, **hanging))
    assert time.monotonic() - began_s < 5
    assert {letter["code"] for letter in house.letters()} == {"smtp_timeout", "webhook_timeout"}


@pytest.mark.parametrize(
    ("greeting", "code"),
    [(b"", "smtp_unreachable"), (b"HTTP/1.1 400 Bad\r\n\r\n", "smtp_failed"), (b"554 go away\r\n", "smtp_failed")],
)
def test_what_is_no_mail_server_is_no_reason_to_fall_over(house: House, greeting: bytes, code: str) -> None:
    def behave(line: socket.socket) -> None:
        line.sendall(greeting)
        line.close()

    house.warn("live:1")
    with bad_server(behave) as port:
        house.deliver(house.notifier(smtp_port=port, attempts=1))
    assert [letter["code"] for letter in house.letters()] == [code]


def test_a_slow_recipient_holds_up_nobody_else(house: House) -> None:
    answers = house.office.held["live.1@example.com"] = threading.Event()
    house.mail()
    house.warn("live:1")
    for number in range(20):
        house.warn("live:2", number)
    notifier = house.notifier(parallel=2)
    until(lambda: notifier.step(0) >= 0 and len(house.office.mails) == 20)
    assert house.office.addresses() == ["live.2@example.com"] * 20
    answers.set()
    house.deliver(notifier)
    assert len(house.office.mails) == 21


def test_4xx_is_tried_again_and_5xx_is_final(house: House) -> None:
    house.account("live:3")
    house.office.answers["live.1@example.com"] = ["450 later", "451 still later"]
    house.office.answers["DATA live.1@example.com"] = ["452 full"]
    house.office.answers["live.2@example.com"] = ["550 no such\x1b[2J user"]
    house.office.answers["DATA live.3@example.com"] = ["554 looks like spam"]
    house.mail()
    for account in ("live:1", "live:2", "live:3"):
        house.warn(account)
    house.deliver(house.notifier())
    assert house.office.addresses() == ["live.1@example.com"]
    assert house.state()["smtp:attempts"] == "4"
    letters = {letter["code"]: letter for letter in house.letters()}
    assert set(letters) == {"recipient_refused", "message_refused"}
    assert (
        "550 no such" in letters["recipient_refused"]["reason"] and letters["recipient_refused"]["reason"].isprintable()
    )


def test_connections_are_used_again_but_not_for_ever(house: House) -> None:
    house.mail()
    for number in range(60):
        house.warn("live:1", number)
    house.deliver(house.notifier(parallel=1))
    assert len(house.office.mails) == 60 and len(house.office.sessions) == 2
    assert len({mail["Message-ID"] for _, mail in house.office.mails}) == 60


# ---- what cannot be sent


@pytest.mark.parametrize("email", ["", "nobody", "a@b.cd\r\nBcc: x@y.zz", "a@b.cd, x@y.zz", b"\xff@b.cd"], ids=ascii)
def test_an_address_that_is_none_stops_only_its_own_warning(house: House, email: Any) -> None:
    house.mail()
    house.client.hset("user:{live:1}:config", "email", email)
    house.warn("live:1")
    house.warn("live:2")
    notifier = house.notifier()
    house.deliver(notifier)
    (letter,) = house.letters()
    assert letter["code"] == "email_invalid" and letter["stream"] == NOTICES
    assert house.office.addresses() == ["live.2@example.com"]
    house.account("live:1")  # mended, and put back
    pipe = Pipe(house.new_client())
    (buried,) = list_letters(pipe)
    assert buried.fields["sinks"] == "smtp"
    replay(pipe, buried.id)
    house.deliver(notifier)
    assert house.office.addresses() == ["live.1@example.com", "live.2@example.com"]
    house.client.xadd(NOTICES, buried.fields)  # the same once more
    house.deliver(notifier)
    assert len(house.office.mails) == 2 and len(house.letters()) == 0


def test_what_is_too_old_or_makes_no_sense_is_buried(house: House) -> None:
    house.mail()
    house.warn("live:1", age_ms=3_700_000)
    house.warn("live:1", kind="liquidation")
    house.warn("live:1", sinks="fax")
    house.client.xadd(NOTICES, {b"\xff": b"\xff"})
    house.client.xadd(NOTICES, {"notice_id": "live:1:1"})
    house.warn("live:2")
    house.deliver(house.notifier())
    found = sorted(letter["code"] for letter in house.letters())
    assert found == ["notice_invalid"] * 3 + ["notice_too_old", "sink_missing"]
    assert house.office.addresses() == ["live.2@example.com"]


def test_keys_that_hold_something_else(house: House) -> None:
    house.mail()
    house.client.delete("user:{live:1}:config")
    house.client.set("user:{live:1}:config", "garbage")
    house.warn("live:1")
    now_s, _ = house.client.time()
    fields = notice_fields("live:2", 7, now_s * 1_000)
    house.client.set(f"copyrisk:{{cutoff}}:notice:live:2:7:{fields['ts']}", "garbage")
    house.client.xadd(NOTICES, fields)
    house.warn("live:2", 8)
    house.deliver(house.notifier(attempts=3))
    assert sorted(letter["code"] for letter in house.letters()) == ["account_unreadable", "notice_unusable"]
    assert house.office.addresses() == ["live.2@example.com"]


# ---- webhooks


def test_a_webhook_gets_signed_json_over_verified_tls(house: House, tmp_path: Path) -> None:
    _, ca_file = certificate(tmp_path)
    (tmp_path / "secret").write_text("hush")
    receiver = Receiver()
    with web_server(receiver, tmp_path) as port:
        hook = {"sinks": "webhook", "webhook_url": f"https://localhost:{port}/hooks?a=b"}
        hook |= {"webhook_ca_file": str(ca_file), "webhook_secret_file": str(tmp_path / "secret")}
        house.warn("live:1")
        house.deliver(house.notifier(**hook))
        house.warn("live:2")
        del hook["webhook_ca_file"]
        house.deliver(house.notifier(**hook, attempts=1))
    ((path, headers, body),) = receiver.posts
    said = json.loads(body)
    assert path == "/hooks?a=b" and said["account_number"] == "N-live:1" and said["level_pct"] == "48.2"
    assert headers["Idempotency-Key"] == f"live:1:1:{said['ts']}"
    assert headers["X-Copyrisk-Signature"] == "sha256=" + signature("hush", headers["X-Copyrisk-Timestamp"], body)
    assert "@" not in body.decode()
    assert [letter["code"] for letter in house.letters()] == ["webhook_tls_failed"]


@pytest.mark.parametrize(
    ("statuses", "posts", "letter"),
    [
        ([500, 408, 429, 503], 5, None),
        ([200], 1, None),
        ([400], 1, "webhook_refused"),
        ([404], 1, "webhook_refused"),
        ([302, 307], 3, None),
        ([301] * 9, 6, "webhook_redirects"),
    ],
)
def test_what_a_webhook_answers(house: House, statuses: list[int], posts: int, letter: str | None) -> None:
    receiver = Receiver()
    receiver.statuses = statuses
    house.warn("live:1")
    with web_server(receiver) as port:
        house.deliver(house.notifier(sinks="webhook", webhook_url=f"http://127.0.0.1:{port}/hook", attempts=6))
    assert [path for path, _, _ in receiver.posts] == ["/hook"] * posts
    assert [found["code"] for found in house.letters()] == ([letter] if letter else [])


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 999999 x\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500]
)
def test_what_speaks_no_http_is_no_reason_to_fall_over(house: House, answer: bytes) -> None:
    def behave(line: socket.socket) -> None:
        line.recv(1 << 16)
        line.sendall(answer)
        line.close()

    house.warn("live:1")
    with bad_server(behave) as port:
        house.deliver(house.notifier(sinks="webhook", webhook_url=f"http://127.0.0.1:{port}/", attempts=1))
    assert [letter["code"] for letter in house.letters()] in (["webhook_failed"], ["webhook_unreachable"])


def test_the_console_shows_it(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.warn("live:1")
    house.deliver(house.notifier(sinks="console"))
    assert "account N-live:1" in capsys.readouterr().out


# ---- several notifiers, stores that fail


def test_two_notifiers_at_once_send_each_warning_once(house: House) -> None:
    house.mail()
    for number in range(40):
        house.warn("live:1", number)
    stop = threading.Event()
    threads = [
        threading.Thread(target=run_notifier, args=(house.new_client(), house.settings(), stop)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for number in range(40, 80):
        house.warn("live:2", number)
    until(lambda: house.client.xlen(NOTICES) == 0, 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(house.office.mails) == 80 and len({mail["Message-ID"] for _, mail in house.office.mails}) == 80


def test_two_notifiers_that_both_hold_a_warning_send_it_once(house: House) -> None:
    """The second takes over what the first is still working at, for a group knows no better."""
    answers = house.office.held["live.1@example.com"] = threading.Event()
    house.mail()
    house.warn("live:1")
    first, second = house.notifier(), house.notifier()
    first.step(0)
    second._admit(second._consumer.take_over(0, 10))
    second.step(0)
    assert len(second._held) == 1 and second._flying.total() == 0
    answers.set()
    until(lambda: first.step(0) + second.step(0) >= 0 and not first._held)
    second._sweep()
    assert len(house.office.mails) == 1 and not second._held


def test_a_delivery_whose_end_could_not_be_stored_is_not_repeated(house: House) -> None:
    house.mail()
    house.warn("live:1")
    notifier = house.notifier()
    notifier.step(0)
    until(lambda: len(house.office.mails) == 1)
    house.client.function_flush()
    with pytest.raises(StoreError, match="lost its functions"):
        until(lambda: notifier.step(0) < 0)
    library.load(house.new_client())
    house.deliver(notifier)
    assert len(house.office.mails) == 1 and house.state()["smtp:state"] == "sent"


def test_a_server_that_was_emptied_is_no_reason_to_fall_over(house: House) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=run_notifier, args=(house.new_client(), house.settings(), stop))
    house.warn("live:1")
    thread.start()
    until(lambda: bool(house.client.keys("copyrisk:{cutoff}:notice:*")))
    house.client.flushall()
    house.client.function_flush()
    house.mail()
    house.account("live:2")
    house.warn("live:2")
    until(lambda: "live.2@example.com" in house.office.addresses())
    until(lambda: house.client.xlen(NOTICES) == 0)
    stop.set()
    thread.join()
    assert house.office.addresses().count("live.2@example.com") == 1


def test_a_sink_that_breaks_unforeseen_is_tried_again(house: House) -> None:
    class Broken:
        name = "smtp"
        times = 0

        def deliver(self, *_words: Any) -> None:
            self.times += 1
            if self.times < 3:
                raise ZeroDivisionError

        def close(self) -> None:
            pass

    house.warn("live:1")
    client, broken = house.new_client(), Broken()
    library.load(client)
    notifier = Notifier(Pipe(client), [broken], house.settings().notify.options())
    notifier._consumer.join()
    house.deliver(notifier)
    notifier.close()
    assert (broken.times, house.state()["smtp:state"]) == (3, "sent")


@pytest.mark.slow
def test_a_thousand_warnings(house: House) -> None:
    house.mail()
    for number in range(1_000):
        house.warn("live:1", number)
    house.deliver(house.notifier(), 60)
    assert len({mail["Message-ID"] for _, mail in house.office.mails}) == len(house.office.mails) == 1_000
