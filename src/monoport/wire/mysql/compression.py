"""MySQL's compressed packets: what a client that negotiated zlib sends and reads, around the ordinary ones.

Belongs here: the framing. Source: MySQL Internals Manual, "Compression". A packet says how long its content is, and no
more than that, at most OUT bytes at a time, is ever inflated.
"""

import zlib

from monoport.wire.mysql.packets import ProtocolError

HEAD = 4  # octets before an ordinary packet: its length in three, its number
HEADER = 7  # octets: length as sent in three, number, length of the content in three, 0 if it is not compressed
OUT = 65_536  # bytes of content given out at once
BLOCK = 1 << 20  # bytes of content in one packet that we compress: clients keep a whole one
HOLD = 16_384  # bytes of the beginning of a packet that wait for its end; of a TLS record as many wait, too
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

    No ordinary packet is in more than two of them, and its head is in one: so servers send, and
    mysql-connector-python reads no further and waits for ever. Of one that is too long to be kept until it is whole,
    the second holds all the rest and is not compressed, since its length must be said before it has come.
    """

    __slots__ = ("_due", "_held", "number")

    def __init__(self, number: int = 0) -> None:
        self.number = number  # of the next compressed packet
        self._held = b""  # the beginning of a packet
        self._due = 0  # octets still to come of a packet's rest, whose header has been sent

    def add(self, content: bytes | memoryview) -> bytes:
        """Return compressed packets for `content`, but for the beginning of a packet at its end, which waits."""
        rest = bytes(content[: self._due])
        self._due -= len(rest)
        content = memoryview(self._held + content[len(rest) :] if self._held else content[len(rest) :])
        parts, start, end = [rest], 0, 0  # of the whole packets that go into the next compressed one
        while len(content) - end >= HEAD:
            following = end + HEAD + int.from_bytes(content[end : end + 3], "little")
            whole = following <= len(content)
            if not whole and len(content) - end <= HOLD:
                break
            if whole and following - start <= BLOCK:
                end = following
                continue
            if end > start:
                parts.append(self._packet(content[start:end]))
            start = end
            if not whole or following - start > BLOCK:
                parts += self._long(content[start:following], following - start)
                start = end = min(following, len(content))
        if end > start:
            parts.append(self._packet(content[start:end]))
        self._held = bytes(content[end:])
        return b"".join(parts)

    def _long(self, content: memoryview, size: int) -> list[bytes]:
        """Two compressed packets for an ordinary one of `size` octets, of which `content` has come."""
        first, rest = content[:BLOCK], content[BLOCK:]
        self._due = size - len(content)
        return [self._packet(first), _header(size - len(first), self._next(), 0), bytes(rest)]

    def _packet(self, content: bytes | memoryview) -> bytes:
        return deflated(content, self._next())

    def _next(self) -> int:
        number, self.number = self.number, (self.number + 1) & 0xFF
        return number


def deflated(content: bytes | memoryview, number: int) -> bytes:
    """Return the one packet of this number for some content, at most BLOCK bytes."""
    sent, size = bytes(content), 0
    if len(content) >= WORTH_IT and len(small := zlib.compress(content, LEVEL)) < len(content):
        sent, size = small, len(content)
    return _header(len(sent), number, size) + sent


def _header(sent: int, number: int, size: int) -> bytes:
    return sent.to_bytes(3, "little") + bytes((number,)) + size.to_bytes(3, "little")
