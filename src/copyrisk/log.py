"""Log lines: structlog to stderr, for people or as JSON, with passwords taken out of URLs."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_PASSWORD = re.compile(r"(\w+://[^\s:/@]*):[^\s@]*@")


def redacted(text: str) -> str:
    """The text with the password of every URL in it replaced."""
    return _PASSWORD.sub(r"\1:***@", text)


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[key] = redacted(value)
    return event


def _to_stderr(*_: Any) -> structlog.PrintLogger:
    """Whatever stderr is by then: a live view puts lines above itself."""
    return structlog.PrintLogger(sys.stderr)


def configure_logging(form: str, level: str) -> None:
    """Set the form (`console` or `json`) and the lowest level of all log lines of this process."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=_to_stderr,
        cache_logger_on_first_use=False,
    )
