"""How the daemon writes its log: one line an event, text for people or JSON for machines.

Belongs here: structlog's set-up. Does not belong here: what is logged.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from functools import partial

import structlog

from monoport.audit.printable import printable

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


def configure(severity: str, form: str) -> None:
    """Send the log to standard error.

    severity: debug, info, warn or error. form: text or json. Text is coloured only at a terminal; control
    characters of anyone's input are escaped in both forms.
    """
    colours = form != "json" and sys.stderr.isatty()
    structlog.configure(
        # One processor where every connection writes a line; at a terminal people read, and structlog paints.
        processors=[_begin, structlog.dev.ConsoleRenderer(pad_event_to=28, sort_keys=False)]
        if colours
        else [_begin, _json if form == "json" else _text],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[severity]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # one system call a line
        cache_logger_on_first_use=True,
    )
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(_Others(form))
    logging.basicConfig(handlers=[others], level=max(LEVELS[severity], logging.WARNING), force=True)


_encode = json.JSONEncoder(default=repr).encode  # made once: json.dumps with a default makes an encoder per call


_now = partial(datetime.now, UTC)


def _begin(_logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Level, time and traceback; and control characters escaped, so that a line is one line and moves no cursor."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = value.encode("unicode_escape").decode("ascii")
    event["level"] = method
    event["timestamp"] = _now().isoformat(timespec="milliseconds")[:-6] + "Z"
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(_logger, method, event)
        if "exception" in event:
            event["exception"] = _set_off(event["exception"])
    return event


def _set_off(trace: str) -> str:
    """A traceback, which may quote anyone: escaped, and indented so that none of its lines looks like an event."""
    return "\n".join(f"    {printable(line)}" for line in trace.split("\n"))


class _Others(logging.Formatter):
    """What libraries log by the standard library's means, in the daemon's form and escaped as carefully."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._write = _json if form == "json" else _text

    def format(self, record: logging.LogRecord) -> str:
        event = {"event": record.getMessage(), "logger": record.name, "exc_info": record.exc_info}
        if not record.exc_info:
            del event["exc_info"]
        return self._write(None, "", _begin(None, record.levelname.lower(), event))


def _json(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    return _encode(event)


def _text(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    """The console's form without its colours, at a sixth of its cost."""
    stamp, level, what = event.pop("timestamp"), event.pop("level"), event.pop("event", "")
    trace = event.pop("exception", None)
    parts = [f"{stamp} [{level:<8}] {what!s:<28}"]
    for name, value in event.items():
        if isinstance(value, str):
            parts.append(f"{name}={value!r}" if " " in value else f"{name}={value}")
        else:
            parts.append(f"{name}={printable(str(value))}")
    return " ".join(parts) if trace is None else " ".join(parts) + "\n" + str(trace)
