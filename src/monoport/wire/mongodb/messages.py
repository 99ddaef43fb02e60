"""MongoDB's messages as bytes: the header, OP_MSG, and what is left of the older kinds.

Belongs here: framing, sections, checksums, compression. What a command means lives in `commands`.
Source: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, TypeAlias

from monoport.wire.mongodb import bson

MAX_MESSAGE = 48_000_000  # bytes: maxMessageSizeBytes of every server
MAX_REPLY = 48 * 1024 * 1024 + 16 * 1024  # what a server may send: 48 MB of documents, however it counts them
MAX_SUMMED = 256 * 1024  # of a message with a checksum: 256 KiB take 25 ms to verify here, and no driver sends one
# Bytes of a message that comes compressed, when unpacked: nobody was offered it, and large requests are counted by the
# size that they come with.
MAX_UNPACKED = 1 << 20
MAX_SECTIONS = 2  # kind 1; commands with more of them are not known, and each may hold MAX_BATCH documents
MAX_BATCH = 100_000  # documents in one section: maxWriteBatchSize of every server

REPLY, UPDATE, INSERT, QUERY, GET_MORE, DELETE, KILL_CURSORS, COMPRESSED, MSG = (
    1, 2001, 2002, 2004, 2005, 2006, 2007, 2012, 2013,
)  # fmt: skip
CHECKSUM_PRESENT, MORE_TO_COME, EXHAUST_ALLOWED = 1, 2, 1 << 16  # flag bits of OP_MSG
_REQUIRED = 0xFFFF  # flag bits of which an unknown one must be refused

HEADER = Struct("<iiii")  # messageLength, requestID, responseTo, opCode
_U32 = Struct("<I")
_I32 = Struct("<i")
_COMPRESSION = Struct("<iiB")  # original opcode, uncompressed size, compressor
_NOOP, _ZLIB = 0, 2  # compressor ids


class ProtocolError(ValueError):
    """Bytes that break MongoDB's protocol; the text says how."""


@dataclass(frozen=True, slots=True)
class Section:
    """A document sequence: its name, and where its documents lie in the message."""

    name: str
    documents: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Msg:
    """An OP_MSG of a client: the whole message, where its one body lies, and its document sequences."""

    request_id: int
    flags: int
    data: bytes
    body: tuple[int, int]
    sections: tuple[Section, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether the client waits for a reply."""
        return not self.flags & MORE_TO_COME


@dataclass(frozen=True, slots=True)
class Query:
    """An OP_QUERY, with which some drivers still ask for hello: the collection and where the query lies."""

    request_id: int
    collection: str
    data: bytes
    body: tuple[int, int]


Message: TypeAlias = Msg | Query


class Framer:
    """Cuts a stream into whole messages, however it was split.

    Args: limit: bytes of one message.
    """

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._buffer = bytearray()
        self._limit = limit

    @property
    def waiting(self) -> int:
        """Bytes that are buffered."""
        return len(self._buffer)

    @property
    def size(self) -> int:
        """Bytes that the next message says it has, 0 if it has not said so yet."""
        return int(_I32.unpack_from(self._buffer)[0]) if len(self._buffer) >= 4 else 0

    def add(self, data: bytes | memoryview) -> None:
        """Take bytes."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the next whole message, None if it is not there yet. Raises ProtocolError."""
        if len(self._buffer) < 4:
            return None
        size = self.size
        if not HEADER.size <= size <= self._limit:
            raise ProtocolError(f"message of {size} bytes, limit {self._limit}")
        if len(self._buffer) < size:
            return None
        whole = bytes(memoryview(self._buffer)[:size])
        if len(self._buffer) == size:
            self._buffer = bytearray()  # gives a large buffer back
        else:
            del self._buffer[:size]
        return whole

    def receive(self, data: bytes) -> bytes | None:
        """Take bytes and return the next whole message. Raises ProtocolError."""
        self.add(data)
        return self.take()


def parse(data: bytes, *, limit: int = MAX_MESSAGE, inflated: bool = False) -> Message:
    """Read one whole message of a client, of at most `limit` bytes when unpacked. Raises ProtocolError."""
    _, request_id, response_to, opcode = HEADER.unpack_from(data)
    if response_to:
        raise ProtocolError("a request that says it is a response")
    try:
        match opcode:
            case 2013:
                return _msg(data, request_id)
            case 2004:
                return _query(data, request_id)
            case 2012 if not inflated:
                return parse(_inflate(data, request_id, min(limit, MAX_UNPACKED)), inflated=True)
    except bson.BsonError as error:
        raise ProtocolError(str(error)) from error
    raise ProtocolError(f"message of kind {opcode}, which MongoDB itself no longer takes")


def _msg(data: bytes, request_id: int) -> Msg:
    end = len(data)
    if end < HEADER.size + 4 + 1 + bson.SMALLEST:
        raise ProtocolError(f"OP_MSG of {end} bytes")
    flags = _U32.unpack_from(data, HEADER.size)[0]
    if flags & _REQUIRED & ~(CHECKSUM_PRESENT | MORE_TO_COME):
        raise ProtocolError(f"OP_MSG with unknown flags {flags:#x}")
    if flags & CHECKSUM_PRESENT:
        end -= 4
        verify(data)
    position = HEADER.size + 4
    body: tuple[int, int] | None = None
    sections: list[Section] = []
    while position < end:
        kind, position = data[position], position + 1
        if kind == 0:
            if body is not None:
                raise ProtocolError("OP_MSG with two bodies")
            body = position, position + bson.size(data, position, end)
            position = body[1]
        elif kind == 1:
            section, position = _section(data, position, end)
            sections.append(section)
        else:
            raise ProtocolError(f"OP_MSG with a section of unknown kind {kind}")
        if len(sections) > MAX_SECTIONS:
            raise ProtocolError(f"OP_MSG with more than {MAX_SECTIONS} document sequences")
    if body is None:
        raise ProtocolError("OP_MSG without a body")
    if len({one.name for one in sections}) != len(sections):
        raise ProtocolError("OP_MSG with two document sequences of one name")
    return Msg(request_id, flags, data, body, tuple(sections))


def _section(data: bytes, position: int, end: int) -> tuple[Section, int]:
    if end - position < 4:
        raise ProtocolError("document sequence without its length")
    size = _I32.unpack_from(data, position)[0]
    if not 5 <= size <= end - position:
        raise ProtocolError(f"document sequence says {size} bytes, there are {end - position}")
    end = position + size
    stop = data.find(b"\0", position + 4, end)
    if stop < 0:
        raise ProtocolError("document sequence without the end of its name")
    name = data[position + 4 : stop].decode(errors="backslashreplace")
    documents = []
    position = stop + 1
    while position < end:
        last = position + bson.size(data, position, end)
        documents.append((position, last))
        position = last
        if len(documents) > MAX_BATCH:
            raise ProtocolError(f"document sequence of more than {MAX_BATCH} documents")
    return Section(name, tuple(documents)), end


def _query(data: bytes, request_id: int) -> Query:
    stop = data.find(b"\0", HEADER.size + 4)
    if stop < 0:
        raise ProtocolError("OP_QUERY without a collection's end")
    collection = data[HEADER.size + 4 : stop].decode(errors="backslashreplace")
    start = stop + 1 + 8  # numberToSkip and numberToReturn
    end = start + bson.size(data, start, len(data))
    if end != len(data):
        bson.elements(data, end, len(data))  # returnFieldsSelector
    return Query(request_id, collection, data, (start, end))


def _inflate(data: bytes, request_id: int, limit: int) -> bytes:
    """Return the message inside an OP_COMPRESSED, which nobody here has offered to take, but some may send."""
    if len(data) < HEADER.size + _COMPRESSION.size:
        raise ProtocolError(f"OP_COMPRESSED of {len(data)} bytes")
    opcode, size, compressor = _COMPRESSION.unpack_from(data, HEADER.size)
    packed = memoryview(data)[HEADER.size + _COMPRESSION.size :]
    if not 0 <= size <= limit - HEADER.size:
        raise ProtocolError(f"OP_COMPRESSED of {size} bytes when unpacked, limit {limit}")
    if compressor == _NOOP:
        plain = bytes(packed)
    elif compressor == _ZLIB:
        unpacker = zlib.decompressobj()
        try:
            plain = unpacker.decompress(packed, size + 1)
        except zlib.error as error:
            raise ProtocolError(f"OP_COMPRESSED cannot be unpacked: {error}") from error
        if unpacker.unused_data or not unpacker.eof:
            raise ProtocolError("OP_COMPRESSED does not end where its message does")
    else:
        raise ProtocolError(f"OP_COMPRESSED with compressor {compressor}, which was not offered")
    if len(plain) != size:
        raise ProtocolError(f"OP_COMPRESSED says {size} bytes when unpacked, there are {len(plain)}")
    return HEADER.pack(HEADER.size + size, request_id, 0, opcode) + plain


def msg(document: Mapping[str, Any], *, request_id: int, response_to: int = 0) -> bytes:
    """Return an OP_MSG with one body, without flags."""
    body = b"\0\0\0\0\0" + bson.encode(document)
    return HEADER.pack(HEADER.size + len(body), request_id, response_to, MSG) + body


def reply(document: Mapping[str, Any], *, request_id: int, response_to: int) -> bytes:
    """Return an OP_REPLY with one document, the answer to an OP_QUERY."""
    body = _U32.pack(8) + b"\0" * 12 + _I32.pack(1) + bson.encode(document)  # flag AwaitCapable, as servers set it
    return HEADER.pack(HEADER.size + len(body), request_id, response_to, REPLY) + body


def answer(document: Mapping[str, Any], to: Message, request_id: int = 0) -> bytes:
    """Return `document` as the answer to a message, in the form in which that was asked."""
    make = msg if isinstance(to, Msg) else reply
    return make(document, request_id=request_id, response_to=to.request_id)


def reply_body(data: bytes) -> tuple[int, int]:
    """Return where the document of a server's OP_MSG lies; its checksum, if any, is verified. Raises ProtocolError."""
    opcode = HEADER.unpack_from(data)[3]
    if opcode != MSG:
        raise ProtocolError(f"server answers with a message of kind {opcode}")
    try:
        return _msg(data, 0).body
    except bson.BsonError as error:
        raise ProtocolError(str(error)) from error


# checksums


def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli's polynomial, reflected
        found.append(crc)
    return tuple(found)


_CRC32C = _table()


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of `data`. Source: RFC 3720 section B.4."""
    table, crc = _CRC32C, 0xFFFFFFFF
    for octet in data:
        crc = table[(crc ^ octet) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def verify(data: bytes) -> None:
    """Check the checksum at the end of a whole message. Raises ProtocolError."""
    if len(data) > MAX_SUMMED:
        raise ProtocolError(f"message of {len(data)} bytes with a checksum, limit {MAX_SUMMED}")
    if crc32c(memoryview(data)[:-4]) != _U32.unpack_from(data, len(data) - 4)[0]:
        raise ProtocolError("message with a wrong checksum")
