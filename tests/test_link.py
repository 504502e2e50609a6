"""Ticks through a line that stalls, tears, cuts to pieces and lies: void or right, never wrong."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from copyrisk.book import Book
from copyrisk.engine import Engine
from copyrisk.hours import MarketHours
from copyrisk.rules import ValuationRules
from copyrisk.store.connection import connect
from tests.backoffice import BackOffice

Harm = Callable[[bytes], "bytes | None"]
_ACCOUNTS = 40


def unharmed(received: bytes) -> bytes | None:
    return received


class Line:
    """A socket that passes everything on to a server; what comes back goes through `harm` (`None`: hang up)."""

    def __init__(self, path: Path, server: str) -> None:
        self.harm: Harm = unharmed
        self.pieces = False
        self._server, self.url = server, f"unix://{path}"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._server)
            threading.Thread(target=self._pass_on, args=(near, far, None), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(far, near, self), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, line: "Line | None") -> None:
        try:
            while received := source.recv(1 << 16):
                passed = received if line is None else line.harm(received)
                if passed is None:
                    break
                size = 1 if line is not None and line.pieces else len(passed)
                for start in range(0, len(passed), max(size, 1)):
                    target.sendall(passed[start : start + size])
        except OSError:
            pass
        finally:
            for end in (source, target):
                end.close()

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def line(bundled_server: Any, tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path / "line", bundled_server.url.removeprefix("unix://"))
    yield made
    made.close()


@pytest.fixture
def office(bundled_server: Any) -> BackOffice:
    made = BackOffice(bundled_server.client())
    made.eurusd_account("live:0")
    for number in range(1, _ACCOUNTS):
        made.account(f"live:{number}")
        made.order(f"live:{number}", f"O{number}")
    return made


@pytest.fixture
def engine(line: Line, office: BackOffice) -> Iterator[Engine]:
    client = connect(line.url, connect_timeout_ms=1000, reply_timeout_ms=400)
    made = Engine(client, Book(ValuationRules()), MarketHours(always_open=True), 200)
    yield made
    made.close()


def assert_right(engine: Engine, office: BackOffice) -> None:
    """All portfolios say the same, and what they should."""
    bid = float(office.client.hget("market:EURUSD", "bid"))
    expected = 10_000 + round((bid - 1.084) * 100_000, 2)
    for number in range(_ACCOUNTS):
        assert float(office.portfolio(f"live:{number}")["equity"]) == pytest.approx(expected, abs=0.006)


def test_replies_may_come_byte_by_byte(line: Line, office: BackOffice, engine: Engine) -> None:
    line.pieces = True
    assert engine.tick().skipped is None
    assert_right(engine, office)


def torn(dice: random.Random) -> Harm:
    """Passes a part of what is received, then hangs up."""
    passed: list[bytes] = []

    def harm(received: bytes) -> bytes | None:
        if passed:
            return None
        passed.append(received[: dice.randrange(len(received))])
        return passed[0]

    return harm


def silent(received: bytes) -> bytes | None:
    time.sleep(0.6)
    return received


def changed(dice: random.Random) -> Harm:
    """Puts something else in place of some bytes: mostly the protocol breaks, sometimes only a value does."""

    def harm(received: bytes) -> bytes | None:
        at = dice.randrange(len(received))
        return received[:at] + dice.randbytes(dice.randrange(1, 5)) + received[at + 1 :]

    return harm


def doubled(received: bytes) -> bytes | None:
    return received + received


@pytest.mark.parametrize("how", ["torn", "silent", "doubled"])
def test_a_line_that_fails_makes_ticks_void_and_the_next_sound_one_right(
    line: Line, office: BackOffice, engine: Engine, how: str
) -> None:
    dice = random.Random(how)
    assert engine.tick().skipped is None
    for round_ in range(6):
        line.harm = {"torn": torn(dice), "silent": silent, "doubled": doubled}[how]
        office.quote("EURUSD", 1.08 + round_ / 1000, 1.09)
        report = engine.tick()
        assert report.skipped is not None
        line.harm = unharmed
        for _ in range(3):
            report = engine.tick()
            if report.skipped is None:
                break
        assert report.skipped is None
        assert_right(engine, office)


@pytest.mark.slow
def test_bytes_that_are_changed_on_the_way_end_no_daemon(line: Line, office: BackOffice, engine: Engine) -> None:
    """What is still of the protocol cannot be told from what was written; but it goes with the next full reading."""
    dice = random.Random(5)
    skipped = 0
    for round_ in range(150):
        line.harm = changed(dice) if round_ % 2 else unharmed
        skipped += engine.tick().skipped is not None
    assert skipped > 30
    line.harm = unharmed
    engine.close()
    while engine.tick().skipped is not None:
        pass
    assert_right(engine, office)
