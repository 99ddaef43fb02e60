"""How the daemon writes its log: one line an event, text for people or JSON for machines.

Belongs here: structlog's set-up. Does not belong here: what is logged.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


def configure(severity: str, form: str) -> None:
    """Send the log to standard error.

    severity: debug, info, warn or error. form: text or json. Text is coloured only at a terminal; control
    characters of anyone's input are escaped in both forms.
    """
    renderer: Any
    if form == "json":
        renderer = _json
    elif sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer(pad_event_to=28, sort_keys=False)
    else:
        renderer = _text
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escape,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[severity]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # one system call a line
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stderr, level=max(LEVELS[severity], logging.WARNING), format="%(name)s: %(message)s")


_encode = json.JSONEncoder(default=repr).encode  # made once: json.dumps with a default makes an encoder per call


def _json(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    return _encode(event)


def _text(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    """The console's form without its colours, at a sixth of its cost: every connection is a line."""
    stamp, level, what = event.pop("timestamp", ""), event.pop("level", ""), event.pop("event", "")
    trace = event.pop("exception", None)
    parts = [f"{stamp} [{level:<8}] {what!s:<28}"]
    for name, value in event.items():
        text = value if isinstance(value, str) else repr(value)
        parts.append(f"{name}={text!r}" if " " in text and isinstance(value, str) else f"{name}={text}")
    return " ".join(parts) if trace is None else " ".join(parts) + "\n" + str(trace)


def _escape(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape control characters in every string field, so that a log line is one line and moves no cursor."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = value.encode("unicode_escape").decode("ascii")
    return event
