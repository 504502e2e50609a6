"""Warnings as e-mails: one message a warning, over connections that are used again while they are young.

`smtplib` in threads, and no library more: a delivery is one straight line of steps, and what may never happen, an
attempt without an end, is prevented from outside by breaking its connection (`notify_line.cut_off`).
"""

import queue
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from enum import StrEnum

from copyrisk.errors import Refused, TryLater
from copyrisk.gateway.messages import printable
from copyrisk.notify import Client, Notice, check_address
from copyrisk.notify_line import Deadline, cut_off, open_line
from copyrisk.notify_text import Templates

_HOST_NAME = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+", re.ASCII)
_IDLE_S, _MESSAGES = 5.0, 50  # how long a connection may wait for its next message, and how many it carries


class Security(StrEnum):
    """How the connection to the mail server is protected; certificates are always verified."""

    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"

    @property
    def port(self) -> int:
        """The usual port."""
        return {Security.NONE: 25, Security.STARTTLS: 587, Security.TLS: 465}[self]


@dataclass(frozen=True, slots=True)
class MailOptions:
    """The mail server, and who we are there.

    Attributes
    ----------
    user, password : str or None
        Both, or no login.
    context : SSLContext or None
        Needed unless `security` is `none`.
    timeout_ms : int
        Of a whole attempt: connecting, logging in, handing over the message.
    """

    host: str
    port: int
    security: Security
    from_address: str
    from_name: str = ""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    context: ssl.SSLContext | None = None
    timeout_ms: int = 10_000


class _Session(smtplib.SMTP):
    """A connection to the mail server, logged in. `line` is a duplicate of its socket, by which it can be broken."""

    def __init__(self, plain: socket.socket, options: MailOptions, timeout_s: float) -> None:
        self._plain, self._options = plain, options
        self.line = plain.dup()
        self.messages, self.used_s = 0, time.monotonic()
        try:
            super().__init__(options.host, options.port, _own_name(options), timeout_s)
            if options.security is Security.STARTTLS:
                self.starttls(context=options.context)
            if options.user is not None and options.password is not None:
                self.login(options.user, options.password)
        except BaseException:
            self.shut()
            raise

    def _get_socket(self, host: str, _port: int, _timeout: float) -> socket.socket:
        """How `smtplib` has subclasses make the connection; ours is there already."""
        if self._options.security is Security.TLS and self._options.context is not None:
            return self._options.context.wrap_socket(self._plain, server_hostname=host)
        return self._plain

    def is_usable(self) -> bool:
        """Whether it is young, and the server still answers."""
        if self.messages >= _MESSAGES or time.monotonic() - self.used_s > _IDLE_S:
            return False
        try:
            return self.noop()[0] == 250
        except (OSError, smtplib.SMTPException):
            return False

    def shut(self) -> None:
        """Close it without a word."""
        with suppress(OSError):
            self.close()
        self._plain.close()
        self.line.close()


class MailSink:
    """Hands warnings to a mail server; safe to use from several threads at once."""

    name = "smtp"

    def __init__(self, options: MailOptions, templates: Templates) -> None:
        self._options, self._templates = options, templates
        self._idle: queue.LifoQueue[_Session] = queue.LifoQueue()

    def deliver(self, notice: Notice, client: Client) -> None:
        """As `Sink` says; it is delivered once the server has taken responsibility for the message.

        Raises
        ------
        Refused
            `email_invalid`, `recipient_refused`, `message_refused`.
        TryLater
            `smtp_timeout`, `smtp_unreachable`, `smtp_tls_failed`, `smtp_login_refused`, `sender_refused`,
            `recipient_delayed`, `message_delayed`, `smtp_failed`.
        """
        recipient = check_address(client.email)
        message = self.compose(notice, client).as_bytes()
        deadline = Deadline(self._options.timeout_ms)
        try:
            with self._session(deadline) as session:
                session.sendmail(self._options.from_address, [recipient], message)
        except (OSError, smtplib.SMTPException, ValueError) as failure:
            raise _judged(failure, is_late=deadline.is_over) from None

    def compose(self, notice: Notice, client: Client) -> EmailMessage:
        """The message. Its id is a function of the notice: a second one with it is the same again.

        Raises
        ------
        Refused
            `email_invalid`.
        """
        subject, text = self._templates.render(notice, client)
        sender = self._options.from_address
        message = EmailMessage(policy=SMTP)
        message["From"] = Address(self._options.from_name, addr_spec=sender)
        message["To"] = Address(addr_spec=check_address(client.email))
        message["Subject"] = subject
        message["Date"] = formatdate()
        message["Message-ID"] = f"<{notice.key.replace(':', '.')}@{sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text, charset="utf-8", cte="quoted-printable")
        return message

    @contextmanager
    def _session(self, deadline: Deadline) -> Iterator[_Session]:
        """A connection for one message; after a failure it is closed."""
        session = self._used(deadline) or self._new(deadline)
        try:
            with cut_off(session.line, deadline):
                yield session
        except BaseException:
            session.shut()
            raise
        session.messages, session.used_s = session.messages + 1, time.monotonic()
        self._idle.put(session)

    def _used(self, deadline: Deadline) -> _Session | None:
        while True:
            try:
                session = self._idle.get_nowait()
            except queue.Empty:
                return None
            try:
                with cut_off(session.line, deadline):
                    is_usable = session.is_usable()
            except BaseException:
                session.shut()
                raise
            if is_usable:
                return session
            session.shut()

    def _new(self, deadline: Deadline) -> _Session:
        plain = open_line(self._options.host, self._options.port, deadline)
        with plain.dup() as line:
            try:
                with cut_off(line, deadline):
                    return _Session(plain, self._options, deadline.left_s())
            except BaseException:
                plain.close()
                raise

    def close(self) -> None:
        """Say goodbye on connections that wait, without waiting for an answer."""
        with suppress(queue.Empty):
            while True:
                session = self._idle.get_nowait()
                with suppress(OSError, smtplib.SMTPException):
                    session.putcmd("QUIT")
                session.shut()


def _own_name(options: MailOptions) -> str:
    """What we say we are: this host, if it has a full name, else the domain that we write from."""
    name = socket.gethostname()
    return name if _HOST_NAME.fullmatch(name) else options.from_address.rpartition("@")[2]


def _judged(failure: Exception, *, is_late: bool) -> Refused | TryLater:
    """What a failure means for the message. What a server answers to a login is not shown: it may repeat it."""
    if isinstance(failure, smtplib.SMTPAuthenticationError):
        return TryLater(f"the mail server refused the login ({failure.smtp_code})", code="smtp_login_refused")
    if isinstance(failure, smtplib.SMTPRecipientsRefused):
        code, answer = next(iter(failure.recipients.values()))
        return _of_answer("recipient", code, answer)
    if isinstance(failure, smtplib.SMTPSenderRefused):
        said = _shown(failure.smtp_code, failure.smtp_error)
        return TryLater(f"the mail server refused our address: {said}", code="sender_refused")
    if isinstance(failure, smtplib.SMTPDataError):
        return _of_answer("message", failure.smtp_code, failure.smtp_error)
    if is_late or isinstance(failure, TimeoutError):
        return TryLater("the mail server did not take the message in time", code="smtp_timeout")
    if isinstance(failure, ssl.SSLError):
        return TryLater(f"no TLS with the mail server: {printable(str(failure))}", code="smtp_tls_failed")
    if isinstance(failure, smtplib.SMTPResponseException):
        return TryLater(_shown(failure.smtp_code, failure.smtp_error), code="smtp_failed")
    code_word = "smtp_failed" if isinstance(failure, smtplib.SMTPNotSupportedError) else "smtp_unreachable"
    return TryLater(f"the mail server: {printable(str(failure))}", code=code_word)


def _of_answer(what: str, code: int, answer: bytes | str) -> Refused | TryLater:
    """5xx is for good, anything else may be better later."""
    said = f"the mail server on the {what}: {_shown(code, answer)}"
    return Refused(said, code=f"{what}_refused") if 500 <= code < 600 else TryLater(said, code=f"{what}_delayed")


def _shown(code: int, answer: bytes | str) -> str:
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    return printable(f"{code} {text}")
