"""Two tables: what the first release serves, and everything there is; and ClientHellos as OpenSSL writes them."""

import ssl
from collections.abc import Callable, Sequence

import pytest

from monoport.routing.outcome import Kind
from monoport.routing.table import DatabaseRule, Table, build

SSL_REQUEST = bytes.fromhex("00000008 04d2162f")
GSSENC_REQUEST = bytes.fromhex("00000008 04d21630")

POSTGRES = DatabaseRule(
    name="postgres",
    alpn=("teleport-postgres",),
    direct_alpn=("postgresql",),
    starttls=SSL_REQUEST,
    declined=(GSSENC_REQUEST,),
    cancel=(0, 0, None, None, 0x04, 0xD2, 0x16, 0x2E),
    plaintext=(0, 0, None, None, 0, 3),
    plaintext_refusal=b"E: use sslmode=verify-full",
)
POSTGRES_DIRECT = DatabaseRule(
    name="postgres",
    alpn=("teleport-postgres",),
    direct_alpn=("postgresql",),
    starttls=SSL_REQUEST,
    declined=(GSSENC_REQUEST,),
    cancel=(0, 0, None, None, 0x04, 0xD2, 0x16, 0x2E),
    direct=True,
)
MYSQL = DatabaseRule(name="mysql", alpn=("teleport-mysql",), greets=True)
MONGODB = DatabaseRule(name="mongodb", alpn=("teleport-mongodb",), by_name=True)
SERVED = frozenset({Kind.SSH, Kind.TUNNEL, Kind.DATABASE, Kind.WEB, Kind.BOOTSTRAP, Kind.AUTH})
PUBLIC = ("proxy.example.com:3080", "alt.example.org")
APPLICATIONS = {"grafana.example.com": "grafana"}


@pytest.fixture(scope="session")
def first() -> Table:
    """What the first release serves: SSH, tunnels, PostgreSQL, web, bootstrap, auth."""
    return build(PUBLIC, "example", SERVED, [POSTGRES], APPLICATIONS)


@pytest.fixture(scope="session")
def whole() -> Table:
    """Everything that the table has rows for."""
    return build(PUBLIC, "example", frozenset(Kind), [POSTGRES_DIRECT, MYSQL, MONGODB], APPLICATIONS)


@pytest.fixture(scope="session")
def bare() -> Table:
    """Nothing served at all."""
    return build(PUBLIC, "example", frozenset(), [POSTGRES, MYSQL], APPLICATIONS)


@pytest.fixture(scope="session")
def captured() -> Callable[..., bytes]:
    """`captured(sni, *alpn)` -> the ClientHello that OpenSSL writes."""

    def capture(server_name: str | None, *alpn: str) -> bytes:
        return _capture(server_name, alpn)

    return capture


def _capture(server_name: str | None, alpn: Sequence[str]) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Debian's Python has no minimum of its own
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()
