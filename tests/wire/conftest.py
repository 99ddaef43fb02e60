"""ClientHellos for the tests of wire: captured from Python's ssl, and built field by field."""

import ssl
from collections.abc import Callable, Sequence

import pytest


@pytest.fixture(scope="session")
def captured() -> Callable[..., bytes]:
    """`captured(sni, alpn)` -> the ClientHello that OpenSSL writes."""

    def capture(
        server_name: str | None, alpn: Sequence[str] = (), maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # Debian's Python has no minimum of its own
        context.maximum_version = maximum
        if alpn:
            context.set_alpn_protocols(list(alpn))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
        with pytest.raises(ssl.SSLWantReadError):
            session.do_handshake()
        return outgoing.read()

    return capture


def vector(width: int, payload: bytes) -> bytes:
    """A payload behind its length of `width` octets (RFC 8446 section 3.4)."""
    return len(payload).to_bytes(width, "big") + payload


class Hellos:
    """Writes hellos whose every length is right unless a test spoils it."""

    @staticmethod
    def extension(kind: int, payload: bytes) -> bytes:
        return kind.to_bytes(2, "big") + vector(2, payload)

    def sni(self, name: bytes, kind: int = 0) -> bytes:
        return self.extension(0, vector(2, bytes((kind,)) + vector(2, name)))

    def alpn(self, *names: bytes) -> bytes:
        return self.extension(16, vector(2, b"".join(vector(1, name) for name in names)))

    def versions(self, *numbers: int) -> bytes:
        return self.extension(43, vector(1, b"".join(number.to_bytes(2, "big") for number in numbers)))

    @staticmethod
    def body(
        extensions: bytes | None, session: bytes = b"s" * 32, suites: bytes = b"\x13\x01", methods: bytes = b"\0"
    ) -> bytes:
        """The structure itself; extensions None leaves even their length out."""
        start = b"\x03\x03" + bytes(32) + vector(1, session) + vector(2, suites) + vector(1, methods)
        return start if extensions is None else start + vector(2, extensions)

    @staticmethod
    def message(body: bytes, kind: int = 1) -> bytes:
        return bytes((kind,)) + vector(3, body)

    @staticmethod
    def records(message: bytes, sizes: Sequence[int] = (16_384,)) -> bytes:
        """The message in records of these sizes, the last size for all the rest."""
        found, position, turn = [], 0, 0
        while position < len(message):
            size = sizes[min(turn, len(sizes) - 1)]
            found.append(b"\x16\x03\x01" + vector(2, message[position : position + size]))
            position, turn = position + size, turn + 1
        return b"".join(found)

    def hello(self, *extensions: bytes) -> bytes:
        return self.records(self.message(self.body(b"".join(extensions))))


@pytest.fixture(scope="session")
def hellos() -> Hellos:
    return Hellos()
