"""The audit event: a value, its identifier and its one line on disk.

Belongs here: events, ids, bounds and encoding. Does not: keeping (spool.py), meaning of an event's type (its emitter).
"""

from __future__ import annotations

import json
import math
import random
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar, final

from monoport.errors import Failure

MAX_EVENT: Final = 64 * 1024  # bytes of a line: one statement's text and what surrounds it
MAX_TEXT: Final = 16 * 1024  # characters of one field; a longer SQL statement keeps its beginning
MAX_FIELDS: Final = 64  # per object and list
MAX_NAME: Final = 64  # characters of a field's name
MAX_DEPTH: Final = 4  # of objects and lists in each other

T = TypeVar("T")

_dumps: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_KEYS: Final = {"id", "time", "type", "fields"}
_TYPE: Final = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+){1,3}", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)

Clock = Callable[[], datetime]


class EventError(Failure):
    """Not an event."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Args:
        id: a UUID of version 7: later events sort behind earlier ones of the same process; duplicates have the same.
        time: UTC.
        type: what happened, such as "session.start", "db.query", "user.login".
        fields: JSON values by name.
    """

    id: str
    time: datetime
    type: str
    fields: Mapping[str, object] = field(default_factory=dict, hash=False)
    _payload: bytes = field(init=False, default=b"", repr=False, compare=False)  # its JSON, once that was made

    @property
    def payload(self) -> bytes:
        """The event as `to_json` has it, ASCII."""
        if not self._payload:
            object.__setattr__(self, "_payload", _payload(self.id, self.time, self.type, self.fields))
        return self._payload


@final
class EventIds:
    """Makes UUIDs of version 7 that always grow, even when the clock stands still or goes back (RFC 9562 section 5.7).

    Args:
        clock: UTC.
        randbits: returns that many random bits.
    """

    def __init__(self, clock: Clock, randbits: Callable[[int], int] | None = None) -> None:
        self._clock = clock
        self._randbits = randbits or random.SystemRandom().getrandbits
        self._last = 0

    def __call__(self) -> tuple[str, datetime]:
        """Return the next id and the time it was made at."""
        now = self._clock()
        milliseconds = int(now.timestamp() * 1000)
        # 48 bits of time and 74 of chance; counting up from the last keeps order within a millisecond
        value = (milliseconds & (1 << 48) - 1) << 74 | self._randbits(74)
        if value <= self._last:
            value = self._last + 1 + self._randbits(32)
        self._last = value
        stamp, middle, low = value >> 74, value >> 62 & 0xFFF, value & (1 << 62) - 1
        digits = f"{stamp << 80 | 0x7 << 76 | middle << 64 | 0b10 << 62 | low:032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}", now


def make(ids: EventIds, type_: str, fields: Mapping[str, object]) -> Event:
    """Return a new event; what is too long, too many or too deep is cut, and the field `truncated` says so.

    Args:
        ids: gives identifier and time.
        type_: two to four dotted words.
        fields: values by name; what JSON does not know is written as text.

    Raises:
        EventError: for a malformed type.
    """
    if not _TYPE.fullmatch(type_):
        raise EventError(f"not a type of event: {type_!a}")
    identifier, now = ids()
    now = now if now.tzinfo is UTC else now.astimezone(UTC)
    if _plain(fields):
        event = Event(identifier, now, type_, dict(fields))
        if len(event.payload) <= MAX_EVENT:
            return event
    for limit in (MAX_TEXT, MAX_TEXT // 16, MAX_TEXT // 256):
        cut = _Cut(limit)
        kept = {name[:MAX_NAME]: cut.value(value, 1) for name, value in list(fields.items())[:MAX_FIELDS]}
        if cut.happened or len(fields) > MAX_FIELDS or limit < MAX_TEXT:
            kept["truncated"] = True
        event = Event(identifier, now, type_, kept)
        if len(event.payload) <= MAX_EVENT:
            return event
    return Event(identifier, now, type_, {"truncated": True})


def to_json(event: Event) -> dict[str, object]:
    """Return the event as an object of JSON types."""
    return {"id": event.id, "time": _stamp(event.time), "type": event.type, "fields": dict(event.fields)}


def from_json(document: object) -> Event:
    """Return the event that `to_json` wrote.

    Raises:
        EventError: if it has another shape or its id or type is malformed.
    """
    if not isinstance(document, dict) or document.keys() != _KEYS:
        raise EventError("not an audit event")
    identifier, time, type_, fields = document["id"], document["time"], document["type"], document["fields"]
    texts = isinstance(identifier, str) and isinstance(time, str) and isinstance(type_, str)
    if not texts or not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise EventError("not an audit event")
    if not _ID.fullmatch(identifier) or not _TYPE.fullmatch(type_):
        raise EventError("not an audit event")
    return Event(identifier, _instant(time), type_, fields)


def encode(event: Event) -> bytes:
    """Return the event's line on disk: CRC-32 in hex, a space, JSON, a newline.

    Raises:
        EventError: if its JSON takes more than `MAX_EVENT` bytes.
    """
    data = event.payload
    if len(data) > MAX_EVENT:
        raise EventError(f"event {event.id} takes {len(data)} bytes, limit {MAX_EVENT}")
    return b"%08x %s\n" % (zlib.crc32(data), data)


def payload(line: bytes) -> bytes:
    """Return the JSON in a line that `encode` wrote, as it was written.

    Raises:
        EventError: if anything of it is missing or changed.
    """
    data = line[9:-1]
    if line[:9] != b"%08x " % zlib.crc32(data) or line[-1:] != b"\n":
        raise EventError("a line of the spool is damaged")
    return data


def parse(data: bytes) -> Event:
    """Return the event whose JSON this is.

    Raises:
        EventError: if it is none.
    """
    try:
        return from_json(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise EventError("a line of the spool is not an event") from error


def decode(line: bytes) -> Event:
    """Return the event that `encode` wrote as this line; raises EventError."""
    return parse(payload(line))


def _payload(identifier: str, time: datetime, type_: str, fields: Mapping[str, object]) -> bytes:
    # The first three need no escapes: they are ours, or were matched when they came.
    text = f'{{"id":"{identifier}","time":"{_stamp(time)}","type":"{type_}","fields":{_dumps(fields)}}}'
    return text.encode("ascii")


def _stamp(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _plain(fields: Mapping[str, object]) -> bool:
    """Whether the fields can stand as they are; most events' can, and are spared a copy of every value."""
    if len(fields) > MAX_FIELDS:
        return False
    for name, value in fields.items():
        kind = type(value)
        if kind is str:
            fits = len(value) <= MAX_TEXT  # type: ignore[arg-type]
        elif kind is int:
            fits = -(2**63) < value < 2**63  # type: ignore[operator]
        else:
            fits = value is None or kind is bool
        if not fits or len(name) > MAX_NAME:
            return False
    return True


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is None:
            raise EventError("an event's time has no zone")
        return instant.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # the second: another year in UTC than there is
        raise EventError("an event's time is malformed") from error


@final
class _Cut:
    """Makes bounded JSON of anything, and remembers whether it had to leave something out."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.happened = False

    def value(self, value: object, depth: int) -> object:
        match value:
            case None | bool():
                return value
            case int() if abs(value) < 2**63:
                return int(value)
            case float() if math.isfinite(value):
                return float(value)
            case str():
                return self._text(value)
            case datetime():
                return value.isoformat()
            case Mapping() if depth < MAX_DEPTH:
                pairs = self._some(list(value.items()))
                return {self._text(str(name)): self.value(one, depth + 1) for name, one in pairs}
            case list() | tuple() | set() | frozenset() if depth < MAX_DEPTH:
                return [self.value(one, depth + 1) for one in self._some(list(value))]
            case _:
                return self._text(str(value))

    def _text(self, text: str) -> str:
        if len(text) > self._limit:
            self.happened = True
            return text[: self._limit]
        return str(text)

    def _some(self, values: list[T]) -> list[T]:
        if len(values) > MAX_FIELDS:
            self.happened = True
        return values[:MAX_FIELDS]
