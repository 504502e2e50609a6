"""Warnings before anything is sent: notices, addresses, texts, settings; what is inserted stays where it belongs."""

import json
from decimal import Decimal
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk.errors import ConfigError, Refused
from copyrisk.notify import Client, Notice, check_address, parse_notice
from copyrisk.notify_line import read_secret
from copyrisk.notify_mail import MailOptions, MailSink, Security
from copyrisk.notify_text import PLACEHOLDERS, Templates
from copyrisk.notify_webhook import body_of, parse_web_address
from copyrisk.settings import load_settings
from tests.postbox import SENDER, notice_fields

CLIENT = Client("L-1001", "client@example.com")
SMTP = {"notify.sinks": "smtp", "notify.smtp_host": "localhost", "notify.smtp_from": SENDER}


def a_notice(**said: Any) -> Notice:
    return parse_notice(notice_fields(**said))


def sink(templates: Templates | None = None, **more: Any) -> MailSink:
    return MailSink(MailOptions("127.0.0.1", 1, Security.NONE, SENDER, **more), templates or Templates())


# ---- notices


def test_a_notice_is_read_exactly() -> None:
    notice = a_notice()
    assert (str(notice.account), notice.key) == ("live:1", "live:1:1:1700000000000")
    assert notice.figures["equity_usd"] == Decimal("1234.5")
    assert (notice.positions[0].lots, notice.positions[1].pnl_usd) == (Decimal("1.5"), None)


BAD_FIELDS: list[dict[str, Any]] = [
    {"kind": "liquidation"},
    {"user_type": "admin"},
    {"user_id": "1}:{live:2"},
    {"user_id": "2"},
    {"notice_id": "live:1"},
    {"notice_id": "live:1:x"},
    {"notice_id": "live:1:1\r\nBcc: a@b.cd"},
    {"ts": "now"},
    {"ts": "1" * 15},
    {"said": ""},
    {"said": "[]"},
    {"said": "7"},
    {"said": "{}"},
    {"said": "{" * 5_000},
    {"said": "[" * 16_000},
    {"said": " " * 16_001},
]
BAD_SAID: list[dict[str, Any]] = [
    {"level_pct": None},
    {"level_pct": "nan"},
    {"level_pct": float("nan")},
    {"level_pct": float("inf")},
    {"level_pct": True},
    {"equity_usd": 1e15},
    {"equity_usd": "1e5"},
    {"equity_usd": [1]},
    {"positions": None},
    {"positions": [1]},
    {"positions": [{}]},
    {"positions": [{"order_id": "A", "symbol": "X", "side": "BUY", "lots": "x", "pnl_usd": 1}]},
]


@pytest.mark.parametrize("bad", BAD_FIELDS, ids=lambda bad: str(bad)[:30])
def test_a_notice_that_makes_no_sense_is_refused(bad: dict[str, str]) -> None:
    with pytest.raises(Refused) as failure:
        parse_notice({**notice_fields(), **bad})
    assert failure.value.code == "notice_invalid" and len(str(failure.value)) < 300
    for name in bad:
        with pytest.raises(Refused):
            parse_notice({key: value for key, value in notice_fields().items() if key != name})


@pytest.mark.parametrize("bad", BAD_SAID, ids=str)
def test_figures_that_are_none_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(Refused) as failure:
        parse_notice(notice_fields(**bad))
    assert failure.value.code == "notice_invalid"


# ---- addresses

GOOD_ADDRESSES = ["a@b.cd", "first.last+tag@sub.example.com", "o'neil@example.co", "x_y-z@1a.example", "a{b}|c@b.cd"]
BAD_ADDRESSES = [
    *("", " ", "a", "@", "a@", "@b.cd", "a@b", "a@b.", "a@.cd", "a@b..cd", "a@-b.cd", "a@b-.cd", "a@b.1"),
    *(".a@b.cd", "a.@b.cd", "a..b@b.cd", "a b@b.cd", " a@b.cd", "a@b.cd ", "a@b.cd\n", "a@b.cd\r\nBcc: x@y.zz"),
    *("a@b.cd,x@y.zz", "a@b.cd;x@y.zz", "a@@b.cd", "a@b@c.cd", "<a@b.cd>", "A <a@b.cd>", '"a b"@b.cd', "a(c)@b.cd"),
    *("a@[127.0.0.1]", "a@127.0.0.1", "é@b.cd", "a@é.cd", "a\x00@b.cd", "a\t@b.cd", "a\u2028@b.cd", "a\u202e@b.cd"),
    *("a" * 65 + "@b.cd", "a@" + "b" * 64 + ".cd", "a@" + "b." * 130 + "cd", "a@b.cd> SIZE=1", "x" * 10_000),
]


@pytest.mark.parametrize("address", GOOD_ADDRESSES)
def test_an_address_is_used_as_it_is(address: str) -> None:
    assert check_address(address) == address
    assert sink().compose(a_notice(), Client("1", address))["To"].addresses[0].addr_spec == address


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=lambda address: ascii(address)[:20])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(Refused) as failure:
        sink().deliver(a_notice(), Client("1", address))
    assert failure.value.code == "email_invalid"
    assert str(failure.value).isprintable() and len(str(failure.value)) < 150


# ---- the message


def test_the_message_says_what_the_client_must_know() -> None:
    message = sink(from_name="Broker Ltd, Ümläut").compose(a_notice(), CLIENT)
    assert message["Subject"] == "Margin warning: account L-1001 is at 48.20 %"
    assert message["From"].addresses[0].addr_spec == SENDER
    assert message["Message-ID"] == "<live.1.1.1700000000000@broker.example>"
    assert message["Message-ID"] == sink().compose(a_notice(), CLIENT)["Message-ID"]
    text = message.get_content()
    for said in (
        "48.20 %",
        "50.00 %",
        "10.00 %",
        "1,234.50 USD",
        "2,561.20 USD",
        "-8,765.50 USD",
        "2023-11-14 22:13:20",
    ):
        assert said in text
    assert "BUY 1.5 lots of EURUSD: -8,000.25 USD (order A1)" in text
    assert "SELL 0.1 lots of XAUUSD: unknown (order B2)" in text


def test_an_account_without_a_number_is_named_by_its_id() -> None:
    assert "live:1" in sink().compose(a_notice(), Client("", "a@b.cd"))["Subject"]


INJECTED = [
    "x\r\nBcc: v@w.xy",
    "x\nBcc: v@w.xy",
    "x\r\n\r\nbody",
    "\r",
    "\n.\r\n",
    "\x00\x1b[2J",
    "\u2028\u2029\x85\x0b\x0c",
    "é" * 300,
]


@pytest.mark.parametrize("text", INJECTED, ids=lambda text: ascii(text)[:20])
def test_nothing_that_is_inserted_begins_a_header_or_a_line(text: str) -> None:
    positions = [{"order_id": text, "symbol": text, "side": text, "lots": 1, "pnl_usd": -1}]
    assert_contained(text, a_notice(positions=positions))


@given(st.text(max_size=100))
def test_nothing_that_is_inserted_ever_does(text: str) -> None:
    assert_contained(text, a_notice())


def assert_contained(text: str, notice: Notice) -> None:
    templates = Templates("W $account_number $level_pct", "$account_number\n$positions\nend")
    plain = sink(templates).compose(a_notice(), CLIENT)
    sent = sink(templates).compose(notice, Client(text, "client@example.com")).as_bytes()
    found = message_from_bytes(sent, policy=default)
    assert found.keys() == plain.keys() and found["To"] == "client@example.com"
    lines = found.get_content().removesuffix("\r\n").split("\r\n")
    assert len(lines) == 2 + len(notice.positions) and all(line.isprintable() for line in lines)
    json.loads(body_of(notice, Client(text, "")))


# ---- templates


def test_own_templates_may_use_all_placeholders() -> None:
    every = " ".join(f"${name}" for name in PLACEHOLDERS)
    subject, text = Templates("$$ ${account_number}", every).render(a_notice(), CLIENT)
    assert subject == "$ L-1001"
    assert "$" not in text and "live:1:1" in text


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("$nobody", None),
        (None, "$nobody"),
        (None, "${account_number"),
        (None, "costs 5 $ a lot"),
        ("$positions", None),
        ("a\nb", None),
        ("a\r\nBcc: x", None),
        (None, "${account.__class__}"),
        (None, "$\u00e9"),
    ],
)
def test_templates_that_cannot_be_filled_in_are_refused_at_load(subject: str | None, text: str | None) -> None:
    with pytest.raises(ConfigError) as failure:
        Templates(subject, text)
    assert failure.value.code == "bad_template" and "\n" not in str(failure.value)


# ---- settings


@pytest.mark.parametrize(
    ("given_flags", "said"),
    [
        ({"notify.sinks": "fax"}, "some of console, smtp, webhook"),
        ({"notify.sinks": ""}, "some of"),
        ({"notify.sinks": "console,console"}, "each once"),
        ({"notify.sinks": 3}, "some of"),
        ({"notify.sinks": "smtp"}, "set notify.smtp_host"),
        ({"notify.sinks": "webhook"}, "set notify.webhook_url"),
        ({**SMTP, "notify.smtp_from": "me"}, "an e-mail address"),
        ({**SMTP, "notify.smtp_from": "a@b.cd\r\nBcc: x@y.zz"}, "an e-mail address"),
        ({**SMTP, "notify.smtp_from_name": "a\nb"}, "one line"),
        ({**SMTP, "notify.smtp_host": "mail host"}, "a host"),
        ({**SMTP, "notify.smtp_port": 0}, "from 1 to 65535"),
        ({**SMTP, "notify.smtp_security": "ssl"}, "one of none, starttls, tls"),
        ({**SMTP, "notify.smtp_user": "u"}, "goes with notify.smtp_password_file"),
        ({**SMTP, "notify.smtp_password_env": "P"}, "goes with"),
        ({**SMTP, "notify.smtp_password_env": "COPYRISK_PASSWORD"}, "does not begin with COPYRISK_"),
        ({**SMTP, "notify.smtp_password_env": "P", "notify.smtp_password_file": "f"}, "set one of them"),
        (
            {
                **SMTP,
                "notify.smtp_host": "mx.example.com",
                "notify.smtp_user": "u",
                "notify.smtp_password_env": "P",
                "notify.smtp_security": "none",
            },
            "in the clear",
        ),
        ({"notify.webhook_url": "http://example.com/x"}, "to this machine only"),
        ({"notify.webhook_url": "https://user:secret@example.com/x"}, "no user, password"),
        ({"notify.webhook_url": "ftp://example.com"}, "https://"),
        ({"notify.webhook_url": "https://example.com:99999/"}, "notify.webhook_url"),
        ({"notify.webhook_url": "https://ex ample.com/"}, "notify.webhook_url"),
        ({"notify.webhook_url": "https://[::1/secret"}, "notify.webhook_url"),
        ({"notify.subject": "$who"}, "no $who"),
        ({"notify.takeover_ms": 10_000}, "twice"),
        ({"notify.retry_ms": 20_000, "notify.retry_max_ms": 10_000}, "below"),
        ({"notify.parallel": 0}, "from 1 to 100"),
    ],
)
def test_bad_settings_refuse_to_load_with_one_line(given_flags: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as failure:
        load_settings(None, {}, given_flags)
    assert said in str(failure.value) and "\n" not in str(failure.value) and "secret" not in str(failure.value)


def test_secrets_come_from_a_file_or_a_variable_and_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("hush hush\n")
    monkeypatch.setenv("MAIL_PASSWORD", "hush")
    assert read_secret("p", str(file), None) == "hush hush"
    assert read_secret("p", None, "MAIL_PASSWORD") == "hush"
    assert read_secret("p", None, None) is None
    settings = load_settings(None, {}, {**SMTP, "notify.smtp_user": "u", "notify.smtp_password_env": "MAIL_PASSWORD"})
    (made,) = settings.notify.make_sinks()
    assert "hush" not in repr(settings) + repr(made) + repr(vars(made))
    file.write_text("two\nlines hush")
    for source in ((str(file), None), (str(tmp_path), None), (str(tmp_path / "no"), None), (None, "NO_SUCH_VARIABLE")):
        with pytest.raises(ConfigError) as failure:
            read_secret("p", *source)
        assert "hush" not in str(failure.value) and "\n" not in str(failure.value)


def test_files_that_cannot_be_used_refuse_in_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"\xff\xfe$")
    for flags in ({"notify.text_file": str(bad)}, {**SMTP, "notify.smtp_ca_file": str(bad)}):
        with pytest.raises(ConfigError) as failure:
            load_settings(None, {}, flags).notify.make_sinks()
        assert failure.value.code == "file_unreadable" and "\n" not in str(failure.value)


def test_a_web_address_is_taken_apart() -> None:
    found = parse_web_address("https://hooks.example.com/a?b=c")
    assert (found.host, found.port, found.target, found.is_https) == ("hooks.example.com", 443, "/a?b=c", True)
    assert parse_web_address("http://127.0.0.1:8080").target == "/"
