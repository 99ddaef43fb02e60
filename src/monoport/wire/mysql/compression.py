"""MySQL's compressed packets: what a client that negotiated zlib sends and reads, around the ordinary ones.

Belongs here: the framing. Source: MySQL Internals Manual, "Compression". A packet says how long its content is, and no
more than that, at most OUT bytes at a time, is ever inflated.
"""

import zlib
from bisect import bisect_left

from monoport.wire.mysql.packets import ProtocolError

HEAD = 4  # octets before an ordinary packet: its length in three, its number
HEADER = 7  # octets: length as sent in three, number, length of the content in three, 0 if it is not compressed
OUT = 65_536  # bytes of content given out at once
BLOCK = 1 << 20  # bytes of content in one packet that we send: clients keep a whole one
WORTH_IT = 50  # bytes below which compressing saves nothing, as servers have it
LEVEL = 1  # the fastest: the client asked for less traffic, and everybody's sessions share this process


class Inflater:
    """Takes a client's compressed packets apart."""

    __slots__ = ("_head", "_inflate", "_left", "_raw", "_room", "number")

    def __init__(self) -> None:
        self.number = 0  # of the last packet
        self._head = bytearray()
        self._raw = bytearray()  # that has come and was not read yet
        self._left = 0  # of the present packet, as sent
        self._room = 0  # of its content, as announced; 0 if it is not compressed
        self._inflate: zlib._Decompress | None = None

    def add(self, data: bytes | memoryview) -> None:
        """Take what has come; `next` gives out what is in it."""
        self._raw += data

    def next(self) -> bytes:
        """Return the next content, at most OUT bytes; b"" where more has to come. Raises ProtocolError."""
        while True:
            inflate = self._inflate
            if not self._left and inflate is None:
                if len(self._raw) < HEADER:
                    return b""
                self._open()
                continue
            if inflate is None:
                size = min(self._left, len(self._raw), OUT)
                content = bytes(self._raw[:size])
                del self._raw[:size]
                self._left -= size
                return content
            if content := self._inflated(inflate):
                return content
            if self._inflate is not None and not (self._left and self._raw):
                return b""

    def _open(self) -> None:
        size = int.from_bytes(self._raw[:3], "little")
        self.number, self._room = self._raw[3], int.from_bytes(self._raw[4:7], "little")
        del self._raw[:HEADER]
        self._left = size
        if self._room:
            self._inflate = zlib.decompressobj()

    def _inflated(self, inflate: "zlib._Decompress") -> bytes:
        size = min(self._left, len(self._raw), OUT)
        try:
            content = inflate.decompress(inflate.unconsumed_tail + self._raw[:size], OUT)
        except zlib.error as error:
            raise ProtocolError(f"compressed packet: {error}") from error
        del self._raw[:size]
        self._left -= size
        self._room -= len(content)
        if self._room < 0 or inflate.unused_data or (inflate.eof and self._left):
            raise ProtocolError("a compressed packet holds more than it says")
        if not self._left and not inflate.unconsumed_tail and len(content) < OUT:
            if self._room or not inflate.eof:
                raise ProtocolError("a compressed packet holds less than it says")
            self._inflate = None
        return content


class Deflater:
    """Puts what a server sends, from the first octet of a packet on, into compressed packets.

    None of them ends within the four octets before a packet: mysql-connector-python 9 takes it that they are whole.
    """

    __slots__ = ("_held", "_left", "number")

    def __init__(self, number: int = 0) -> None:
        self.number = number  # of the next compressed packet
        self._held = b""  # the beginning of a packet's head
        self._left = 0  # octets of the present packet that are still to come

    def add(self, content: bytes | memoryview) -> bytes:
        """Return compressed packets for `content`, but for the beginning of a head at its end, which waits."""
        content = memoryview(self._held + content if self._held else content)
        heads, following = [], self._left
        while following + HEAD <= len(content):
            heads.append(following)
            following += HEAD + int.from_bytes(content[following : following + 3], "little")
        whole = min(following, len(content))
        self._left, self._held = max(0, following - len(content)), bytes(content[whole:])
        parts = []
        start = 0
        while start < whole:
            end = min(start + BLOCK, whole)
            before = bisect_left(heads, end)
            if before and end < heads[before - 1] + HEAD:
                end = heads[before - 1]
            parts.append(self._packet(content[start:end]))
            start = end
        return b"".join(parts)

    def _packet(self, content: bytes | memoryview) -> bytes:
        number, self.number = self.number, (self.number + 1) & 0xFF
        return deflated(content, number)


def deflated(content: bytes | memoryview, number: int) -> bytes:
    """Return the one packet of this number for some content, at most BLOCK bytes."""
    sent, size = bytes(content), 0
    if len(content) >= WORTH_IT and len(small := zlib.compress(content, LEVEL)) < len(content):
        sent, size = small, len(content)
    return len(sent).to_bytes(3, "little") + bytes((number,)) + size.to_bytes(3, "little") + sent
