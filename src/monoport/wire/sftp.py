"""SFTP version 3, the version that OpenSSH speaks: packets in, packets out (draft-ietf-secsh-filexfer-02).

Belongs here: the codec. Not here: files (`agents.node.files`). A child without site-packages runs it: it imports the
standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

VERSION = 3
MAX_PACKET = 262_144  # bytes; OpenSSH's own limit (sftp-common.h), and what `limits@openssh.com` announces
MAX_DATA = MAX_PACKET - 1_024  # of one READ or WRITE: a packet less its longest header
MAX_PATH = 4_096  # PATH_MAX on Linux


class SftpError(ValueError):
    """A packet that cannot be read; the connection is not in step any more."""


class Request(IntEnum):
    """Types of packets that a client sends."""

    INIT = 1
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    EXTENDED = 200


class Reply(IntEnum):
    """Types of packets that a server sends."""

    VERSION = 2
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED_REPLY = 201


class Status(IntEnum):
    """Outcomes of a request."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    OP_UNSUPPORTED = 8


READ, WRITE, APPEND, CREATE, TRUNCATE, EXCLUSIVE = 1, 2, 4, 8, 16, 32  # flags of OPEN (section 6.3)
_SIZE, _OWNER, _MODE, _TIMES, _EXTENDED = 1, 2, 4, 8, 0x8000_0000  # flags of attributes (section 5)


@dataclass(frozen=True, slots=True)
class Attributes:
    """A file's attributes; None is "not said". Sizes in bytes, times in seconds since 1970."""

    size: int | None = None
    owner: tuple[int, int] | None = None
    mode: int | None = None
    times: tuple[int, int] | None = None


class Fields:
    """Reads one packet's fields in order; raises SftpError where they are not there."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def _take(self, count: int) -> memoryview:
        start = self._at
        self._at += count
        if self._at > len(self._data):
            raise SftpError(f"packet of {len(self._data)} bytes ends inside a field")
        return self._data[start : self._at]

    def byte(self) -> int:
        return self._take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def data(self) -> memoryview:
        return self._take(self.u32())

    def text(self) -> bytes:
        """Return a short string; raises SftpError above MAX_PATH bytes or with a NUL, which no path can hold."""
        found = bytes(self.data())
        if len(found) > MAX_PATH or b"\0" in found:
            raise SftpError("string is no path")
        return found

    def attributes(self) -> Attributes:
        flags = self.u32()
        size = self.u64() if flags & _SIZE else None
        owner = (self.u32(), self.u32()) if flags & _OWNER else None
        mode = self.u32() if flags & _MODE else None
        times = (self.u32(), self.u32()) if flags & _TIMES else None
        if flags & _EXTENDED:
            for _ in range(min(self.u32(), MAX_PACKET)):
                self.data()
                self.data()
        return Attributes(size, owner, mode, times)


def split(buffer: bytearray) -> memoryview | None:
    """Return the first packet of `buffer` (type, then fields, without its length), or None while more bytes are needed.

    Raises SftpError for a length out of bounds.
    """
    if len(buffer) < 4:
        return None
    length = int.from_bytes(buffer[:4], "big")
    if not 1 <= length <= MAX_PACKET:
        raise SftpError(f"packet of {length} bytes, limit {MAX_PACKET}")
    return None if len(buffer) < 4 + length else memoryview(buffer)[4 : 4 + length]


def string(data: bytes) -> bytes:
    """Return `data` with its length before it."""
    return len(data).to_bytes(4, "big") + data


def packet(kind: Reply, request: int, fields: bytes) -> bytes:
    """Return one reply to the request of that number."""
    return struct.pack(">IBI", 5 + len(fields), kind, request) + fields


def version(extensions: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the server's VERSION packet with the extensions it knows."""
    body = b"".join(string(name) + string(value) for name, value in extensions)
    return struct.pack(">IBI", 5 + len(body), Reply.VERSION, VERSION) + body


def status(request: int, code: Status, text: str = "") -> bytes:
    """Return a STATUS packet."""
    said = (text or code.name.replace("_", " ").capitalize()).encode()
    return packet(Reply.STATUS, request, code.to_bytes(4, "big") + string(said) + string(b"en"))


def names(request: int, entries: Iterable[tuple[bytes, bytes, Attributes]]) -> bytes:
    """Return a NAME packet: names, their long forms for people, and attributes."""
    found = [string(name) + string(long) + attributes(attrs) for name, long, attrs in entries]
    return packet(Reply.NAME, request, len(found).to_bytes(4, "big") + b"".join(found))


def attributes(attrs: Attributes) -> bytes:
    """Return encoded attributes."""
    flags, body = 0, b""
    if attrs.size is not None:
        flags |= _SIZE
        body += attrs.size.to_bytes(8, "big")
    if attrs.owner is not None:
        flags |= _OWNER
        body += struct.pack(">II", *attrs.owner)
    if attrs.mode is not None:
        flags |= _MODE
        body += attrs.mode.to_bytes(4, "big")
    if attrs.times is not None:
        flags |= _TIMES
        body += struct.pack(">II", *(min(max(time, 0), 0xFFFF_FFFF) for time in attrs.times))
    return flags.to_bytes(4, "big") + body
