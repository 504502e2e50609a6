"""The text of a warning, from templates, and the sink that only shows it.

All that is inserted is one line without control characters, so no value can begin a line or a header of its own.
"""

import re
import string
import sys
from datetime import UTC, datetime
from pathlib import Path

import structlog

from copyrisk.errors import ConfigError, TryLater
from copyrisk.gateway.messages import printable
from copyrisk.notify import FIGURES, Client, Notice, Position

log = structlog.get_logger(__name__)

#: What templates may insert.
PLACEHOLDERS = ("account_number", "account", "account_type", "notice_id", "time", "positions", *FIGURES)
_WORD_CHARS, _SUBJECT_CHARS, _TEMPLATE_CHARS = 64, 200, 65_536

SUBJECT = "Margin warning: account $account_number is at $level_pct %"
TEXT = """Dear client,

the margin level of your account $account_number has fallen to $level_pct % ($time).

  margin level       $level_pct %
  equity             $equity_usd USD
  used margin        $used_margin_usd USD
  open profit        $open_pnl_usd USD
  you are warned at  $warning_level_pct %
  stop-out at        $critical_level_pct %

Your positions with the largest losses:

$positions

If the level falls to $critical_level_pct % or below, positions are closed without your order. Closing positions or
paying in raises the level.
"""


class _Template(string.Template):
    """`$name` or `${name}`; `$$` is a dollar."""

    flags = re.ASCII


class Templates:
    """Subject and text of a warning.

    Parameters
    ----------
    subject, text : str or None
        Templates; `None`: the built-in ones.

    Raises
    ------
    ConfigError
        `bad_template`: a `$` that begins no placeholder, an unknown placeholder, a subject of several lines.
    """

    def __init__(self, subject: str | None = None, text: str | None = None) -> None:
        self._subject, self._text = _Template(subject or SUBJECT), _Template(text or TEXT)
        if not self._subject.template.isprintable():
            raise ConfigError("the subject of warnings must be one line", code="bad_template")
        for what, template in (("subject", self._subject), ("text", self._text)):
            if not template.is_valid():
                raise ConfigError(f"the {what} of warnings: a $ that begins no $name; write $$", code="bad_template")
            allowed = [name for name in PLACEHOLDERS if (what, name) != ("subject", "positions")]
            for name in template.get_identifiers():
                if name not in allowed:
                    known = ", ".join(f"${each}" for each in allowed)
                    raise ConfigError(f"the {what} of warnings: no ${name}; there is {known}", code="bad_template")

    def render(self, notice: Notice, client: Client) -> tuple[str, str]:
        """Subject and text of a warning."""
        words = _words(notice, client)
        subject = self._subject.substitute(words)
        return printable(subject, _SUBJECT_CHARS), self._text.substitute(words)


def _words(notice: Notice, client: Client) -> dict[str, str]:
    figures = {name: f"{value:,.2f}" for name, value in notice.figures.items()}
    seen = datetime.fromtimestamp(notice.ts_ms / 1000.0, UTC)
    return {
        "account_number": printable(client.account_number, _WORD_CHARS) or str(notice.account),
        "account": str(notice.account),
        "account_type": notice.account.type.value,
        "notice_id": notice.id,
        "time": f"{seen:%Y-%m-%d %H:%M:%S} UTC",
        "positions": "\n".join(_line(position) for position in notice.positions) or "  none",
        **figures,
    }


def _line(position: Position) -> str:
    pnl = "unknown" if position.pnl_usd is None else f"{position.pnl_usd:,.2f} USD"
    return (
        f"  {position.side} {position.lots.normalize():f} lots of {position.symbol}: {pnl} (order {position.order_id})"
    )


def read_text(path: str, what: str, limit: int = _TEMPLATE_CHARS) -> str:
    """A file of the settings.

    Raises
    ------
    ConfigError
        `file_unreadable`.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(limit + 1)
    except OSError as failure:
        raise ConfigError(f"{what} {path}: {failure.strerror or failure}", code="file_unreadable") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {path}: not UTF-8", code="file_unreadable") from None
    if len(text) > limit or "\0" in text:
        raise ConfigError(f"{what} {path}: too long, or no text", code="file_unreadable")
    return text


class ConsoleSink:
    """A log line, and the text on standard output: for a broker that has set nothing else."""

    name = "console"

    def __init__(self, templates: Templates) -> None:
        self._templates = templates

    def deliver(self, notice: Notice, client: Client) -> None:
        """As `Sink` says."""
        subject, text = self._templates.render(notice, client)
        level_pct = float(notice.figures["level_pct"])
        log.warning("client_warned", account=str(notice.account), notice=notice.id, level_pct=level_pct)
        try:
            sys.stdout.write(f"{subject}\n\n{text}\n")  # at once: threads must not mix their lines
            sys.stdout.flush()
        except (OSError, ValueError) as failure:  # closed, full, or a terminal that lacks the letters
            raise TryLater(f"standard output: {failure!r}", code="console_failed") from None

    def close(self) -> None:
        """Nothing is open."""
