"""Notifiers killed at every point of their work, what their server user may do, and their commands."""

import argparse
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from copyrisk.operations import COMMANDS, add_commands
from copyrisk.settings import Settings, load_settings
from tests.postbox import SENDER, PostOffice, free_port, mail_server
from tests.test_notify_delivery import NOTICES, opened
from tests.test_permissions import documented
from tests.trading import process, until

POINTS = {"notice.begun": 1, "notice.delivered": 2, "notice.marked": 1}


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_point_no_warning_is_forgotten(bundled_server: Any, point: str) -> None:
    """Repeated is only what the mail server took and nobody could note any more: the same message with the same id."""
    with opened(bundled_server) as house:
        house.mail()
        house.account("live:1")
        house.warn("live:1")
        mail = {"SINKS": "smtp", "SMTP_HOST": "127.0.0.1", "SMTP_PORT": house.mail_port, "SMTP_FROM": SENDER}
        times = {"TIMEOUT_MS": 2_000, "TAKEOVER_MS": 4_000, "SMTP_SECURITY": "none"}
        environ = {f"NOTIFY_{name}": value for name, value in {**mail, **times}.items()}
        with process(house.server.url, "notifier", CRASH_AT=point, **environ) as killed:
            assert killed.wait(20) == -signal.SIGKILL
        assert house.client.xlen(NOTICES) == 1
        with process(house.server.url, "notifier", **environ) as second:
            until(lambda: house.client.xlen(NOTICES) == 0, 20)
            second.terminate()
            assert second.wait(20) == 0
        assert [message["Message-ID"] for _, message in house.office.mails] == [
            house.office.mails[0][1]["Message-ID"]
        ] * POINTS[point]
        assert house.state()["smtp:state"] == "sent" and house.letters() == []


def test_a_notifier_needs_no_more_than_its_documented_permissions(redis_server: Any) -> None:
    with opened(redis_server) as house:
        house.mail()
        house.account("live:1")
        house.account("live:2", email="nobody")
        house.warn("live:1")
        house.warn("live:2")
        rules = ("reset", "on", ">pw", "resetkeys", "resetchannels", "-@all", *documented("notifier"))
        house.client.execute_command("ACL", "SETUSER", "notifier", *rules)
        house.client.function_flush()
        own = house.server
        house.server = type(own)(own.url.replace("unix://", "unix://notifier:pw@"), own.pid)
        notifier = house.notifier()
        house.deliver(notifier)
        notifier._sweep()
        notifier._consumer.leave()
        house.server = own
        assert house.office.addresses() == ["live.1@example.com"]
        assert [letter["code"] for letter in house.letters()] == ["email_invalid"]
        refused = {(seen["reason"], seen["object"]) for seen in house.client.acl_log()}
        house.client.acl_log_reset()
        assert refused - {("command", "client|setinfo")} == set()


# ---- commands


def mail_settings(**flags: object) -> tuple[Settings, int]:
    port = free_port()
    given = {"sinks": "smtp", "smtp_host": "127.0.0.1", "smtp_port": port, "smtp_from": SENDER, "smtp_security": "none"}
    return load_settings(None, {}, {f"notify.{name}": value for name, value in {**given, **flags}.items()}), port


def command(settings: Settings, *words: str) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser)
    options = parser.parse_args(words)
    return COMMANDS[options.command](settings, options)


def test_a_sample_can_be_sent_to_try_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    office, (settings, port) = PostOffice(), mail_settings()
    assert command(settings, "notify", "test", "--to", "me@example.com") == 1
    assert "smtp: not delivered" in capsys.readouterr().out
    with mail_server(office, port):
        assert command(settings, "notify", "test", "--to", "me@example.com") == 0
        assert command(settings, "notify", "test", "--to", "me") == 1
        assert command(settings, "notify", "test") == 1
    assert office.addresses() == ["me@example.com"]


def test_check_reads_what_only_the_notifier_reads(bundled_server: Any) -> None:
    words = [sys.executable, "-m", "copyrisk.cli", "--redis", bundled_server.url, "--check"]
    environ = {**os.environ, "COPYRISK_NOTIFY_TEXT_FILE": "no/such/file"}
    ended = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "[file_unreadable]" in ended.stderr
