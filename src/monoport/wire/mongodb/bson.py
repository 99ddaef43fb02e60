"""BSON documents, one level at a time: strict reading, and writing of the few documents that we send ourselves.

Belongs here: where the elements of a document begin and end, and what simple values mean. A nested document is stepped
over by its length until somebody asks for its elements; whatever it holds, it cannot change the level above it.
Source: https://bsonspec.org/spec.html (version 1.1)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, NamedTuple

MAX_DOCUMENT = 16 * 1024 * 1024 + 16 * 1024  # bytes: the server's limit of a document, and its room for the command
MAX_ELEMENTS = 256  # of a command: the longest known has about 40; what we look into element by element is bounded
SMALLEST = 5  # bytes: the length and the end of an empty document

DOUBLE, STRING, DOCUMENT, ARRAY, BINARY, OBJECT_ID, BOOLEAN, DATE, NULL = 1, 2, 3, 4, 5, 7, 8, 9, 10
INT32, TIMESTAMP, INT64 = 0x10, 0x11, 0x12
_REGEX, _POINTER, _SCOPED = 0x0B, 0x0C, 0x0F

_I32 = Struct("<i")
_I64 = Struct("<q")
_F64 = Struct("<d")

# Bytes of a value by its type; those that are not here say their own length.
_FIXED = {
    DOUBLE: 8, 0x06: 0, OBJECT_ID: 12, BOOLEAN: 1, DATE: 8, NULL: 0,
    INT32: 4, TIMESTAMP: 8, INT64: 8, 0x13: 16, 0x7F: 0, 0xFF: 0,
}  # fmt: skip
_TEXTS = (STRING, 0x0D, 0x0E)  # string, JavaScript, symbol


class BsonError(ValueError):
    """Bytes that are not a document; the text says how."""


class Element(NamedTuple):
    """One element: its type, its name, and where its value lies in the bytes that hold it."""

    kind: int
    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Raw:
    """A value as it is: its type and its bytes, to be written into another document."""

    kind: int
    value: bytes


def size(data: bytes, start: int, end: int, limit: int = MAX_DOCUMENT) -> int:
    """Return the length of the document that begins at `start` and lies within `end`. Raises BsonError."""
    if end - start < SMALLEST:
        raise BsonError(f"{end - start} bytes where a document begins")
    found: int = _I32.unpack_from(data, start)[0]
    if not SMALLEST <= found <= min(limit, end - start):
        raise BsonError(f"document says {found} bytes, there are {end - start}, limit {limit}")
    if data[start + found - 1]:
        raise BsonError("document does not end with NUL")
    return found


def elements(data: bytes, start: int, end: int, limit: int = MAX_ELEMENTS) -> list[Element]:
    """Return the elements of the one document that fills the bytes from `start` to `end`.

    Args: limit: elements at most.
    Raises BsonError.
    """
    if size(data, start, end) != end - start:
        raise BsonError("bytes behind the end of a document")
    position, last = start + 4, end - 1
    found: list[Element] = []
    while position < last:
        kind = data[position]
        stop = data.find(b"\0", position + 1, last)
        if stop < 0:
            raise BsonError("element without the end of its name")
        if len(found) == limit:
            raise BsonError(f"more than {limit} elements in one document")
        try:
            name = data[position + 1 : stop].decode()
        except UnicodeDecodeError:
            raise BsonError("element's name is not UTF-8") from None
        value = stop + 1
        position = value + _length(data, kind, value, last)
        if position > last:
            raise BsonError(f"element {name[:64]!r} is longer than its document")
        found.append(Element(kind, name, value, position))
    return found


def fields(data: bytes, start: int, end: int) -> dict[str, Element]:
    """Return the elements of a document by name, in order. Raises BsonError where a name comes twice."""
    listed = elements(data, start, end)
    found = {one.name: one for one in listed}
    if len(found) != len(listed):
        raise BsonError("a document names one field twice")
    return found


def _length(data: bytes, kind: int, at: int, last: int) -> int:
    fixed = _FIXED.get(kind)
    if fixed is not None:
        if kind == BOOLEAN and at < last and data[at] > 1:
            raise BsonError("a boolean is neither true nor false")
        return fixed
    if kind == _REGEX:
        return _cstring(data, _cstring(data, at, last), last) - at
    if last - at < 4:
        raise BsonError("element without its length")
    said: int = _I32.unpack_from(data, at)[0]
    if kind in (DOCUMENT, ARRAY):
        return size(data, at, last)
    if kind == BINARY:
        if said < 0:
            raise BsonError(f"binary of {said} bytes")
        return 5 + said
    if kind == _SCOPED:
        if said < 14:
            raise BsonError(f"code with scope of {said} bytes")
        return said
    if kind not in (*_TEXTS, _POINTER):
        raise BsonError(f"element of unknown type {kind:#04x}")
    if said < 1 or said > last - at - 4 or data[at + 3 + said]:
        raise BsonError(f"string says {said} bytes and does not end there")
    return 4 + said + (12 if kind == _POINTER else 0)


def _cstring(data: bytes, at: int, last: int) -> int:
    end = data.find(b"\0", at, last)
    if end < 0:
        raise BsonError("regular expression without an end")
    return end + 1


def text(data: bytes, element: Element) -> str:
    """Return a string's text. Raises BsonError if it is none, not UTF-8, or holds NUL."""
    if element.kind != STRING:
        raise BsonError(f"{element.name[:64]!r} is not a string")
    raw = data[element.start + 4 : element.end - 1]
    if b"\0" in raw:
        raise BsonError(f"{element.name[:64]!r} contains NUL")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BsonError(f"{element.name[:64]!r} is not UTF-8") from None


def number(data: bytes, element: Element) -> float | None:
    """Return a number or a boolean as a number, None if the element is neither."""
    match element.kind:
        case 1:
            return float(_F64.unpack_from(data, element.start)[0])
        case 0x10:
            return int(_I32.unpack_from(data, element.start)[0])
        case 0x12:
            return int(_I64.unpack_from(data, element.start)[0])
        case 8:
            return data[element.start]
    return None


def binary(data: bytes, element: Element) -> bytes:
    """Return the bytes of a binary. Raises BsonError if it is none."""
    if element.kind != BINARY:
        raise BsonError(f"{element.name[:64]!r} is not binary")
    return data[element.start + 5 : element.end]


def raw(data: bytes, element: Element) -> Raw:
    """Return an element's value as it is."""
    return Raw(element.kind, data[element.start : element.end])


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a document of str, bool, int, float, None, bytes, Raw, mappings and sequences of them.

    Integers become 32 bits wide where they fit, else 64. Raises BsonError for a name with NUL, TypeError for other
    values.
    """
    body = b"".join(_element(name, value) for name, value in document.items())
    return _I32.pack(SMALLEST + len(body)) + body + b"\0"


def _element(name: str, value: Any) -> bytes:
    if "\0" in name:
        raise BsonError("a name contains NUL")
    kind, body = _value(value)
    return bytes((kind,)) + name.encode() + b"\0" + body


def _value(value: Any) -> tuple[int, bytes]:
    match value:
        case Raw(kind, body):
            return kind, body
        case None:
            return NULL, b""
        case bool():
            return BOOLEAN, bytes((value,))
        case int():
            if -(1 << 31) <= value < 1 << 31:
                return INT32, _I32.pack(value)
            return INT64, _I64.pack(value)
        case float():
            return DOUBLE, _F64.pack(value)
        case str():
            data = value.encode() + b"\0"
            return STRING, _I32.pack(len(data)) + data
        case bytes():
            return BINARY, _I32.pack(len(value)) + b"\0" + value
        case Mapping():
            return DOCUMENT, encode(value)
        case Sequence():
            return ARRAY, encode({str(place): one for place, one in enumerate(value)})
    raise TypeError(f"no BSON for {type(value).__name__}")
