"""The messages of MySQL's opening: the server's greeting, the client's answer, what plug-ins say.

Belongs here: reading and writing them. In which order they come, a front and the agent's login decide.
Source: MySQL Internals Manual, "Connection Phase Packets".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from monoport.wire.mysql.packets import (
    ERR,
    MAX_DATABASE,
    MAX_USER,
    Capability,
    ProtocolError,
    Reader,
    prefixed,
    read_error,
    sized,
)

VERSION = 10  # of the protocol: all since MySQL 3.21
NONCE = 20  # octets of the scramble that proofs are made of
MAX_ATTRIBUTES = 8192  # octets; servers keep 512 to 65,535 of them
MAX_VERSION = 128  # octets of what a server calls itself
MAX_PLUGIN = 64  # octets of a plug-in's name
SSL_REQUEST = 32  # octets of an answer that ends where the user would stand
UTF8MB4 = 45  # utf8mb4_general_ci, which every server since 5.5 knows
AUTOCOMMIT = 2  # status flag

NATIVE, SHA2, CLEAR, SHA256 = (
    "mysql_native_password",
    "caching_sha2_password",
    "mysql_clear_password",
    "sha256_password",
)
MORE, SWITCH = 1, 0xFE  # first octets of what a server's plug-in says, and of its wish for another one
FAST_OK, FULL = 3, 4  # of caching_sha2_password: the proof was enough; the password itself is wanted


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server says first.

    thread: the number by which others can stop what this connection runs. nonce: NONCE octets, none of them zero.
    """

    version: str
    thread: int
    nonce: bytes = field(repr=False)
    capabilities: Capability
    plugin: str
    charset: int = UTF8MB4

    def encode(self) -> bytes:
        """Return the payload."""
        flags = int(self.capabilities)
        return (
            bytes((VERSION,))
            + self.version.encode("ascii")
            + b"\0"
            + self.thread.to_bytes(4, "little")
            + self.nonce[:8]
            + b"\0"
            + (flags & 0xFFFF).to_bytes(2, "little")
            + bytes((self.charset,))
            + AUTOCOMMIT.to_bytes(2, "little")
            + (flags >> 16).to_bytes(2, "little")
            + bytes((NONCE + 1,))
            + bytes(10)
            + self.nonce[8:]
            + b"\0"
            + self.plugin.encode("ascii")
            + b"\0"
        )


class ServerRefusal(Exception):
    """A server's own ERR packet; the text is the server's."""

    def __init__(self, code: int, state: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.state = state


def read_greeting(payload: bytes) -> Greeting:
    """Read what a server says first.

    Raises ServerRefusal: it says an error instead. ProtocolError: it is no MySQL server, or one before 4.1.
    """
    if payload[:1] == bytes((ERR,)):
        raise ServerRefusal(*read_error(payload))
    reader = Reader(payload)
    if (version := reader.number(1)) != VERSION:
        raise ProtocolError(f"protocol version {version}, not {VERSION}")
    name = reader.terminated("server version", MAX_VERSION)
    thread = reader.number(4)
    nonce = reader.take(8)
    reader.take(1)
    flags = reader.number(2)
    charset = reader.number(1)
    reader.take(2)
    flags |= reader.number(2) << 16
    length = reader.number(1)
    reader.take(10)
    nonce += reader.take(max(13, length - 8)).rstrip(b"\0")[: NONCE - 8]
    plugin = reader.terminated("plug-in", MAX_PLUGIN) if flags & Capability.PLUGIN_AUTH else b""
    text = "".join(char if char.isprintable() else "?" for char in name.decode("ascii", "replace"))
    return Greeting(
        text.replace("\ufffd", "?"), thread, nonce, Capability(flags), plugin.decode("ascii", "replace"), charset
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client says to the greeting: who it is, where it wants to be, and what its plug-in made of the nonce."""

    capabilities: Capability
    user: str = ""
    database: str = ""
    proof: bytes = field(default=b"", repr=False)
    plugin: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    charset: int = UTF8MB4
    max_packet: int = 1 << 24

    @property
    def wants_tls(self) -> bool:
        """It is only the request for TLS; the rest comes inside."""
        return bool(self.capabilities & Capability.SSL)

    def encode(self, *, tls_request: bool = False) -> bytes:
        """Return the payload, or its beginning, which asks for TLS."""
        flags = self.capabilities
        head = int(flags).to_bytes(4, "little") + self.max_packet.to_bytes(4, "little")
        head += bytes((self.charset,)) + bytes(23)
        if tls_request:
            return head
        proof = prefixed(self.proof) if flags & Capability.PLUGIN_AUTH_LENENC else sized(len(self.proof)) + self.proof
        parts = [head, self.user.encode(), b"\0", proof]
        if flags & Capability.CONNECT_WITH_DB:
            parts += [self.database.encode(), b"\0"]
        if flags & Capability.PLUGIN_AUTH:
            parts += [self.plugin.encode("ascii"), b"\0"]
        if flags & Capability.CONNECT_ATTRS:
            pairs = [text.encode() for pair in self.attributes.items() for text in pair]
            parts.append(prefixed(b"".join(map(prefixed, pairs))))
        return b"".join(parts)


def read_answer(payload: bytes, *, inside: bool) -> Answer:
    """Read a client's answer to the greeting.

    Args:
        payload: of its packet. inside: TLS has begun, so that the flag for it only repeats the request.
    Raises ProtocolError: malformed, over-long, or of a client before 4.1.
    """
    reader = Reader(payload)
    flags = Capability(reader.number(4) & 0xFFFFFFFF)
    if not flags & Capability.PROTOCOL_41:
        raise ProtocolError("a client of a version before 4.1")
    largest = reader.number(4)
    charset = reader.number(1)
    reader.take(23)
    if flags & Capability.SSL and not inside and len(payload) == SSL_REQUEST:
        return Answer(flags, charset=charset, max_packet=largest)
    flags &= ~Capability.SSL
    user = reader.terminated("user name", MAX_USER)
    proof = _proof(reader, flags)
    database = reader.terminated("database name", MAX_DATABASE) if flags & Capability.CONNECT_WITH_DB else b""
    plugin = b""
    if flags & Capability.PLUGIN_AUTH and reader.left:
        plugin = reader.terminated("plug-in", MAX_PLUGIN)
    attributes = _attributes(reader) if flags & Capability.CONNECT_ATTRS and reader.left else {}
    return Answer(
        flags, _text(user), _text(database), proof, plugin.decode("ascii", "replace"), attributes, charset, largest
    )


def _proof(reader: Reader, flags: Capability) -> bytes:
    if flags & Capability.PLUGIN_AUTH_LENENC:
        return reader.prefixed()
    if flags & Capability.SECURE_CONNECTION:
        return reader.take(reader.number(1))
    return reader.terminated("password", MAX_USER)


def _attributes(reader: Reader) -> dict[str, str]:
    size = reader.sized()
    if size > MAX_ATTRIBUTES:
        raise ProtocolError(f"connection attributes of {size} bytes, limit {MAX_ATTRIBUTES}")
    inner, found = Reader(reader.take(size)), {}
    while inner.left:
        name = _text(inner.prefixed())
        found[name] = _text(inner.prefixed())
    return found


def _text(raw: bytes) -> str:
    """Names are in the client's character set, which is ASCII or UTF-8 wherever names are."""
    return raw.decode(errors="backslashreplace")


def switch(plugin: str, nonce: bytes) -> bytes:
    """Return the payload by which a server asks for another plug-in."""
    return bytes((SWITCH,)) + plugin.encode("ascii") + b"\0" + nonce + b"\0"


def read_switch(payload: bytes) -> tuple[str, bytes]:
    """Return the plug-in that a server asks for, and its nonce; raises ProtocolError."""
    reader = Reader(payload[1:])
    if not reader.left:
        raise ProtocolError("the server asks for passwords of a version before 4.1")
    plugin = reader.terminated("plug-in", MAX_PLUGIN)
    return plugin.decode("ascii", "replace"), reader.rest().rstrip(b"\0")[:NONCE]
