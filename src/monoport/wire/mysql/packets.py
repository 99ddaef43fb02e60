"""MySQL's packets and the pieces they are made of: lengths, strings, capability flags, errors.

Belongs here: what both sides' messages share. Source: MySQL Internals Manual, "Client/Server Protocol"; MariaDB
documentation, "Client/Server Protocol".
"""

from enum import IntFlag

HEADER = 4  # octets before every packet: its length in three, its number in the last
MOST = 0xFFFFFF  # octets of one packet; a message of that length or more goes on in the next one
MAX_OPENING = 65_536  # octets of one packet before the login: names, attributes and what plug-ins send
MAX_USER = 384  # octets: MariaDB's 128 characters
MAX_DATABASE = 256  # octets: 64 characters
SQLSTATE = 5  # octets of an error's class

OK, EOF, ERR, INFILE = 0x00, 0xFE, 0xFF, 0xFB  # first octets of what a server says


class Capability(IntFlag):
    """What one side of a connection can do, as far as anything here depends on it."""

    LONG_PASSWORD = 1  # MariaDB calls it CLIENT_MYSQL: without it, further flags stand in what MySQL leaves empty
    FOUND_ROWS = 1 << 1
    LONG_FLAG = 1 << 2
    CONNECT_WITH_DB = 1 << 3
    NO_SCHEMA = 1 << 4
    COMPRESS = 1 << 5
    ODBC = 1 << 6
    LOCAL_FILES = 1 << 7
    IGNORE_SPACE = 1 << 8
    PROTOCOL_41 = 1 << 9
    INTERACTIVE = 1 << 10
    SSL = 1 << 11
    IGNORE_SIGPIPE = 1 << 12
    TRANSACTIONS = 1 << 13
    RESERVED = 1 << 14
    SECURE_CONNECTION = 1 << 15
    MULTI_STATEMENTS = 1 << 16
    MULTI_RESULTS = 1 << 17
    PS_MULTI_RESULTS = 1 << 18
    PLUGIN_AUTH = 1 << 19
    CONNECT_ATTRS = 1 << 20
    PLUGIN_AUTH_LENENC = 1 << 21
    EXPIRED_PASSWORDS = 1 << 22
    SESSION_TRACK = 1 << 23
    DEPRECATE_EOF = 1 << 24


class ProtocolError(ValueError):
    """A peer's bytes are no MySQL, or not at this place."""


def packet(number: int, payload: bytes) -> bytes:
    """Return one packet; `payload` is shorter than MOST."""
    return len(payload).to_bytes(3, "little") + bytes((number & 0xFF,)) + payload


def take(buffer: bytes | bytearray, limit: int = MAX_OPENING) -> tuple[int, bytes, int] | None:
    """Return number, payload and whole size of the packet that `buffer` begins with, None while it is incomplete.

    Raises ProtocolError: it is longer than `limit`, which is less than MOST.
    """
    if len(buffer) < HEADER:
        return None
    size = int.from_bytes(buffer[:3], "little")
    if size > limit:
        raise ProtocolError(f"packet of {size} bytes, limit {limit}")
    if len(buffer) < HEADER + size:
        return None
    return buffer[3], bytes(buffer[HEADER : HEADER + size]), HEADER + size


def error(number: int, code: int, state: str, text: str) -> bytes:
    """Return an ERR packet.

    Args:
        number: of the packet. code: of the error. state: SQLSTATE. text: for people.
    """
    return packet(number, b"\xff" + code.to_bytes(2, "little") + b"#" + state.encode("ascii") + text.encode()[:65_000])


def read_error(payload: bytes) -> tuple[int, str, str]:
    """Return code, SQLSTATE and text of an ERR packet's payload; raises ProtocolError."""
    if len(payload) < 3 or payload[0] != ERR:
        raise ProtocolError("no ERR packet")
    state, text = "HY000", payload[3:]
    if text[:1] == b"#" and len(text) > SQLSTATE:
        state, text = text[1 : 1 + SQLSTATE].decode("ascii", "replace"), text[1 + SQLSTATE :]
    return int.from_bytes(payload[1:3], "little"), state, text.decode(errors="backslashreplace")


def sized(number: int) -> bytes:
    """Return a length-encoded integer."""
    if number < 0xFB:
        return bytes((number,))
    for first, octets in ((0xFC, 2), (0xFD, 3), (0xFE, 8)):
        if number < 1 << 8 * octets:
            return bytes((first,)) + number.to_bytes(octets, "little")
    raise ValueError(f"{number} does not fit into eight octets")


def prefixed(data: bytes) -> bytes:
    """Return a length-encoded string."""
    return sized(len(data)) + data


class Reader:
    """Takes a packet's payload apart from its beginning; whatever is not there raises ProtocolError."""

    __slots__ = ("_data", "_place")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        """Octets not yet taken."""
        return len(self._data) - self._place

    def take(self, size: int) -> bytes:
        """The next `size` octets."""
        if size > self.left:
            raise ProtocolError(f"a field of {size} bytes does not fit, {self.left} are left")
        self._place += size
        return self._data[self._place - size : self._place]

    def number(self, octets: int) -> int:
        """A little-endian number of so many octets."""
        return int.from_bytes(self.take(octets), "little")

    def terminated(self, what: str, limit: int) -> bytes:
        """A string up to its zero octet."""
        end = self._data.find(b"\0", self._place)
        if end < 0:
            raise ProtocolError(f"{what} has no end")
        if end - self._place > limit:
            raise ProtocolError(f"{what} of {end - self._place} bytes, limit {limit}")
        return self.take(end - self._place + 1)[:-1]

    def sized(self) -> int:
        """A length-encoded integer."""
        first = self.number(1)
        if first < 0xFB:
            return first
        octets = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first)
        if octets is None:
            raise ProtocolError(f"no length begins with {first:#04x}")
        return self.number(octets)

    def prefixed(self) -> bytes:
        """A length-encoded string."""
        return self.take(self.sized())

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)
