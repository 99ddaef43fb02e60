"""The daemon's log: one line an event, whatever strangers and libraries put into it."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest
import structlog

from monoport.daemon import logs

HOSTILE = "root\x1b[2J\r\n2030-01-01T00:00:00Z [info    ] login user=root\u202e\x07"

pytestmark = pytest.mark.usefixtures("process")


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def written(form: str, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What reaches standard error."""
    error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    logs.configure("info", form)
    return error


def lines(written: io.StringIO) -> list[str]:
    text = written.getvalue()
    assert text.replace("\n", "").isprintable(), ascii(text)
    assert text.endswith("\n")
    return text[:-1].split("\n")


def test_control_characters_of_others_are_escaped(written: io.StringIO) -> None:
    structlog.get_logger().info(
        "refused", sni=HOSTILE, alpn=(HOSTILE,), raw=HOSTILE.encode(), error=ValueError(HOSTILE)
    )
    (line,) = lines(written)
    assert "refused" in line
    assert r"\x1b[2J\r\n" in line.replace("\\\\", "\\")


def test_json_is_one_object_a_line(written: io.StringIO, form: str) -> None:
    structlog.get_logger().warning("refused", connection="c1", bytes_in=3, user=None)
    structlog.get_logger().info("next")
    first, second = lines(written)
    if form == "json":
        event = json.loads(first)
        assert event.pop("timestamp").endswith("Z")
        assert event == {"event": "refused", "connection": "c1", "bytes_in": 3, "user": None, "level": "warning"}
        assert json.loads(second)["event"] == "next"
    else:
        assert "[warning ] refused" in first
        assert first.endswith("connection=c1 bytes_in=3 user=None")


def test_no_line_of_a_traceback_passes_for_an_event(written: io.StringIO, form: str) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        structlog.get_logger().exception("connection broke")
    first, *rest = lines(written)
    if form == "json":
        assert not rest
        assert "Traceback" in json.loads(first)["exception"]
    else:
        assert "connection broke" in first
        assert rest
        assert all(line.startswith("    ") for line in rest)


def test_libraries_log_in_the_same_form(written: io.StringIO, form: str) -> None:
    logging.getLogger("asyncssh").warning("from %s", HOSTILE)
    logging.getLogger("asyncssh").info("chatter")
    (line,) = lines(written)
    assert "asyncssh" in line
    if form == "json":
        assert json.loads(line)["logger"] == "asyncssh"


def test_a_librarys_traceback(written: io.StringIO, form: str) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("asyncio").exception("task failed")
    _, *rest = lines(written)
    assert all(line.startswith("    ") for line in rest)
    assert (not rest) == (form == "json")


@pytest.mark.parametrize("severity", logs.LEVELS)
def test_severity(severity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    logs.configure(severity, "json")
    for method in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), method)("said")
    said = [json.loads(line)["level"] for line in error.getvalue().splitlines()]
    assert said == ["debug", "info", "warning", "error"][list(logs.LEVELS).index(severity) :]
