"""The section `[notify]` of the configuration: how warnings reach clients, and what of it can be told to be wrong.

Secrets and files are read only where warnings are sent: other processes need not be allowed to read them.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

from copyrisk.errors import ConfigError, CopyriskError, Refused, TryLater
from copyrisk.notifier import NotifierOptions
from copyrisk.notify import FIGURES, Client, Sink, check_address, parse_notice
from copyrisk.notify_line import read_secret, verifying
from copyrisk.notify_mail import MailOptions, MailSink, Security
from copyrisk.notify_text import ConsoleSink, Templates, read_text
from copyrisk.notify_webhook import LOOPBACK, WebhookOptions, WebhookSink, parse_web_address
from copyrisk.sections import _one_of, _setting, _text, _timeout_ms, _whole

SINKS = ("console", "smtp", "webhook")
#: Variables that begin so are settings; a secret cannot stand in one.
_SETTINGS_PREFIX = "COPYRISK_"


def _sinks(value: Any) -> tuple[str, ...]:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        raise ValueError(f"some of {', '.join(SINKS)}, each once")
    if any(name not in SINKS for name in names):
        raise ValueError(f"some of {', '.join(SINKS)}, each once")
    return tuple(names)


def _address(value: Any) -> str:
    try:
        return check_address(_text(value))
    except Refused:
        raise ValueError("an e-mail address") from None


def _line(value: Any) -> str:
    if not _text(value).isprintable():
        raise ValueError("one line of text")
    return str(value)


def _host(value: Any) -> str:
    if not _line(value).isascii() or any(letter in value for letter in " /@"):
        raise ValueError("the name or address of a host")
    return str(value)


def _variable(value: Any) -> str:
    if _line(value).startswith(_SETTINGS_PREFIX) or "=" in value:
        raise ValueError(f"the name of an environment variable that does not begin with {_SETTINGS_PREFIX}")
    return str(value)


@dataclass(frozen=True, slots=True)
class NotifySettings:
    """Warnings to clients."""

    sinks: tuple[str, ...] = _setting(("console",), _sinks)
    parallel: int = _setting(NotifierOptions().parallel, _whole(1, 100))
    timeout_ms: int = _setting(10_000, _timeout_ms)
    retry_ms: int = _setting(NotifierOptions().retry_ms, _whole(10, 600_000))
    retry_max_ms: int = _setting(NotifierOptions().retry_max_ms, _whole(10, 3_600_000))
    attempts: int = _setting(NotifierOptions().attempts, _whole(1, 1_000))
    max_age_ms: int = _setting(NotifierOptions().max_age_ms, _whole(1_000, 86_400_000))
    takeover_ms: int = _setting(NotifierOptions().takeover_ms, _whole(100, 3_600_000))
    subject: str | None = _setting(None, _line)
    text_file: str | None = _setting(None, _text)
    smtp_host: str | None = _setting(None, _host)
    smtp_port: int | None = _setting(None, _whole(1, 65_535))
    smtp_security: str = _setting(Security.STARTTLS.value, _one_of(*Security))
    smtp_ca_file: str | None = _setting(None, _text)
    smtp_from: str | None = _setting(None, _address)
    smtp_from_name: str = _setting("", _line)
    smtp_user: str | None = _setting(None, _line)
    smtp_password_file: str | None = _setting(None, _text)
    smtp_password_env: str | None = _setting(None, _variable)
    webhook_url: str | None = _setting(None, _text)
    webhook_ca_file: str | None = _setting(None, _text)
    webhook_secret_file: str | None = _setting(None, _text)
    webhook_secret_env: str | None = _setting(None, _variable)

    def check(self) -> None:
        """Hold settings against one another.

        Raises
        ------
        ConfigError
            Which are missing or do not go together.
        """
        if self.takeover_ms < 2 * self.timeout_ms:
            raise ConfigError("notify.takeover_ms must be twice notify.timeout_ms or more, else attempts overlap")
        if self.retry_max_ms < self.retry_ms:
            raise ConfigError("notify.retry_max_ms is below notify.retry_ms")
        for name in ("smtp_password", "webhook_secret"):
            if getattr(self, f"{name}_file") is not None and getattr(self, f"{name}_env") is not None:
                raise ConfigError(f"notify.{name}_file and notify.{name}_env: set one of them")
        if self.webhook_url is not None:
            parse_web_address(self.webhook_url)
        elif "webhook" in self.sinks:
            raise ConfigError("notify.sinks names webhook: set notify.webhook_url")
        if "smtp" in self.sinks and (self.smtp_host is None or self.smtp_from is None):
            raise ConfigError("notify.sinks names smtp: set notify.smtp_host and notify.smtp_from")
        has_password = self.smtp_password_file is not None or self.smtp_password_env is not None
        if has_password != (self.smtp_user is not None):
            raise ConfigError("notify.smtp_user goes with notify.smtp_password_file or notify.smtp_password_env")
        if has_password and self.smtp_security == Security.NONE and self.smtp_host not in LOOPBACK:
            raise ConfigError("notify.smtp_security = none would send the password in the clear")
        Templates(self.subject)

    def options(self) -> NotifierOptions:
        """How the notifier goes about it."""
        return NotifierOptions(
            self.parallel, self.retry_ms, self.retry_max_ms, self.attempts, self.max_age_ms, self.takeover_ms
        )

    def make_sinks(self) -> list[Sink]:
        """The sinks, with their secrets, certificates and templates read.

        Raises
        ------
        ConfigError
            `secret_missing`, `file_unreadable`, `bad_template`.
        """
        text = None if self.text_file is None else read_text(self.text_file, "notify.text_file")
        templates = Templates(self.subject, text)
        return [self._sink(name, templates) for name in self.sinks]

    def _sink(self, name: str, templates: Templates) -> Sink:
        if name == "smtp":
            return MailSink(self._mail(), templates)
        return WebhookSink(self._webhook()) if name == "webhook" else ConsoleSink(templates)

    def _mail(self) -> MailOptions:
        assert self.smtp_host is not None and self.smtp_from is not None
        security = Security(self.smtp_security)
        secured = security is not Security.NONE
        return MailOptions(
            self.smtp_host,
            self.smtp_port or security.port,
            security,
            self.smtp_from,
            self.smtp_from_name,
            self.smtp_user,
            read_secret("notify.smtp_password", self.smtp_password_file, self.smtp_password_env),
            verifying("notify.smtp_ca_file", self.smtp_ca_file) if secured else None,
            self.timeout_ms,
        )

    def _webhook(self) -> WebhookOptions:
        assert self.webhook_url is not None
        address = parse_web_address(self.webhook_url)
        return WebhookOptions(
            address,
            read_secret("notify.webhook_secret", self.webhook_secret_file, self.webhook_secret_env),
            verifying("notify.webhook_ca_file", self.webhook_ca_file) if address.is_https else None,
            self.timeout_ms,
        )


def send_sample(sinks: list[Sink], email: str) -> dict[str, CopyriskError | None]:
    """Send a warning that names no account, and say of each sink what went wrong; `None`: it was delivered."""
    position = {"order_id": "SAMPLE", "symbol": "EURUSD", "side": "BUY", "lots": 1, "pnl_usd": -1}
    said = json.dumps({**dict.fromkeys(FIGURES, 1), "positions": [position]})
    named = {"notice_id": "demo:SAMPLE:1", "kind": "warning", "user_type": "demo", "user_id": "SAMPLE"}
    notice = parse_notice({**named, "ts": str(time.time_ns() // 1_000_000), "said": said})
    found: dict[str, CopyriskError | None] = {}
    for sink in sinks:
        try:
            sink.deliver(notice, Client("SAMPLE", email))
            found[sink.name] = None
        except (Refused, TryLater) as failure:
            found[sink.name] = failure
        sink.close()
    return found
