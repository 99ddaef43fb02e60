"""asciicast version 2, the format of recordings: lines in, lines out, no I/O.

Belongs here: header, events, their bounds. Does not: files (recorder.py), what of a recording may reach a viewer's
terminal (client.replay). Source: docs.asciinema.org/manual/asciicast/v2.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast, final

from monoport.errors import Failure

VERSION: Final = 2
MAX_LINE: Final = 1024 * 1024  # bytes; PIECE characters that are all escaped as \u001b take 384 KiB
PIECE: Final = 65_536  # bytes of output in one event: what a reader must hold at once
MAX_SIDE: Final = 65_535  # columns or rows, as the kernel keeps them (struct winsize)
MAX_SECONDS: Final = 10 * 366 * 86_400  # of one recording; a certificate lives for days

Kind = Literal["o", "i", "r", "m"]  # output, input, resize, marker
KINDS: Final = ("o", "i", "r", "m")


class CastError(Failure):
    """Not a recording in this format."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line.

    Args:
        width, height: columns and rows at the beginning.
        timestamp: seconds since 1970 at the beginning.
        session: id, user, login, node, hostname, connection, source; our own key, which other players pass over.
        title: one line for people. command: what ran, None for a shell. term: the terminal's type.
    """

    width: int
    height: int
    timestamp: int
    session: Mapping[str, str] = field(default_factory=dict, hash=False)
    title: str = ""
    command: str | None = None
    term: str = ""

    @property
    def id(self) -> str:
        """The session's id, "" in recordings of other programs."""
        return self.session.get("id", "")


@dataclass(frozen=True, slots=True)
class Event:
    """One later line: seconds since the beginning, what it is, and its text ("80x24" for a resize)."""

    time: float
    kind: Kind
    data: str

    @property
    def size(self) -> tuple[int, int] | None:
        """Columns and rows of a resize, None where its text is none."""
        columns, cross, rows = self.data.partition("x")
        if self.kind != "r" or not cross or not all(one.isascii() and one.isdigit() for one in (columns, rows)):
            return None
        return (int(columns), int(rows)) if max(len(columns), len(rows)) <= 5 else None


def encode_header(header: Header) -> bytes:
    """Return the header's line."""
    document: dict[str, Any] = {
        "version": VERSION,
        "width": header.width,
        "height": header.height,
        "timestamp": header.timestamp,
    }
    if header.title:
        document["title"] = header.title
    if header.command is not None:
        document["command"] = header.command
    if header.term:
        document["env"] = {"TERM": header.term}
    if header.session:
        document["session"] = dict(header.session)
    return json.dumps(document).encode("ascii") + b"\n"


def encode_event(event: Event) -> bytes:
    """Return the event's line; times are kept to the microsecond."""
    return json.dumps([round(event.time, 6), event.kind, event.data], ensure_ascii=False).encode() + b"\n"


def decode_header(line: bytes) -> Header:
    """Return what the first line says; keys that are not known are passed over.

    Raises:
        CastError: it is no header of version 2.
    """
    document = _json(line, "first line")
    if not isinstance(document, dict) or "version" not in document:
        raise CastError("not a recording: the first line is no asciicast header")
    if document["version"] != VERSION:
        raise CastError(f"asciicast version {document['version']!a:.20}: only version {VERSION} is played")
    width, height = (_side(document.get(name)) for name in ("width", "height"))
    if width is None or height is None:
        raise CastError("not a recording: width and height must be numbers of columns and rows")
    environment = document.get("env")
    command = document.get("command")
    session = document.get("session")
    stamp = document.get("timestamp")
    return Header(
        width,
        height,
        int(stamp) if isinstance(stamp, int | float) and _number(stamp) and 0 <= stamp < 2**40 else 0,
        {k: v for k, v in session.items() if isinstance(v, str)} if isinstance(session, dict) else {},
        _text(document.get("title")),
        command if isinstance(command, str) else None,
        _text(environment.get("TERM")) if isinstance(environment, dict) else "",
    )


def decode_event(line: bytes) -> Event:
    """Return what a later line says.

    Raises:
        CastError: it is no event of a kind that we know.
    """
    document = _json(line, "next line")
    match document:
        case [time, str(kind), str(data)] if kind in KINDS and _number(time) and 0 <= time <= MAX_SECONDS:
            return Event(float(time), cast(Kind, kind), data)
    raise CastError("a line of the recording is no asciicast event")


@final
class Output:
    """Bytes of a terminal as text: characters split over two pieces stay whole, what is no UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def text(self, data: bytes, *, final: bool = False) -> str:
        """Return the text that is complete with `data`; with `final`, all of it."""
        return self._decoder.decode(data, final)


def _json(line: bytes, what: str) -> Any:
    if len(line) > MAX_LINE:
        raise CastError(f"not a recording: its {what} has {len(line)} bytes, limit {MAX_LINE}")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CastError(f"not a recording: its {what} is no JSON") from error


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _side(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE else None


def _text(value: object) -> str:
    return value[:1024] if isinstance(value, str) else ""
