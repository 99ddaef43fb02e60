"""Local proxies: wrapping over loopback, certificates that change on disk, who may listen where."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pymongo
import pymysql
import pytest
from cryptography import x509

from monoport.client import localproxy, refusal
from monoport.client.front import Credentials, Front
from monoport.client.listening import MAX_PATH, is_loopback, listen, listen_unix
from monoport.client.localproxy import LocalProxy, Wrapping
from monoport.client.names import Address
from monoport.client.profile import Home, Profile
from monoport.errors import Failure
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.net.tls import TlsStream, serve_tls
from monoport.protocols import TABLE
from monoport.routing.names import sealed

from .conftest import NOWHERE, Cas, database_login, server_context, signed_in

ALPN = "teleport-postgres"
PATIENCE = 20.0  # seconds for what takes milliseconds


class Database:
    """What stands behind the proxy: notes the client's certificate, ALPN and SNI, then runs a conversation."""

    def __init__(self, talk: Callable[[Stream], Awaitable[None]]) -> None:
        self.talk = talk
        self.certificates: list[x509.Certificate | None] = []
        self.alpn: list[str | None] = []
        self.names: list[str | None] = []

    async def serve(self, raw: Stream, context: ssl.SSLContext) -> None:
        with suppress(ConnectionError):
            async with await serve_tls(raw, context) as stream:
                der = stream.peer_certificate
                self.certificates.append(x509.load_der_x509_certificate(der) if der else None)
                self.alpn.append(stream.selected_alpn)
                await self.talk(stream)

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext) -> AsyncIterator[int]:
        context.sni_callback = lambda _tls, name, _context: self.names.append(name)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)

        async def accept(group: asyncio.TaskGroup) -> None:
            while True:
                accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
                group.create_task(self.serve(SocketStream(accepted), context))

        with listening:
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(accept(group))
                try:
                    yield listening.getsockname()[1]
                finally:
                    accepting.cancel()


async def upper(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data.upper())


@asynccontextmanager
async def local(wrapping: Wrapping, report: Callable[[str], None] = pytest.fail) -> AsyncIterator[Address]:
    proxy = LocalProxy(wrapping, listen(NOWHERE, lends_identity=True), report)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        serving = group.create_task(proxy.serve())
        try:
            yield proxy.address
        finally:
            serving.cancel()


async def ask(address: Address, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_plain_bytes_come_back_through_tls_with_the_protocols_alpn(home: Home, cas: Cas) -> None:
    database = Database(upper)
    async with database.running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        async with local(Wrapping(Front(profile), ALPN, None)) as address:
            assert await ask(address, b"select 1;") == b"SELECT 1;"
    assert database.alpn == [ALPN]
    assert database.names == ["localhost"]
    assert database.certificates == [None]


async def test_a_megabyte_and_a_half_close_pass_whole(home: Home, cas: Cas) -> None:
    async def echo_size(stream: Stream) -> None:
        (size,) = struct.unpack("!I", await stream.read_exactly(4))
        await stream.write(await stream.read_exactly(size))

    data = os.urandom(1_000_000)
    async with Database(echo_size).running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        async with local(Wrapping(Front(profile), ALPN, None)) as address:
            assert await ask(address, struct.pack("!I", len(data)) + data) == data


async def test_the_database_certificate_is_presented_and_read_again_when_it_changes(home: Home, cas: Cas) -> None:
    database = Database(upper)
    async with database.running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        path = database_login(home, cas, profile, "orders", db_user="first")
        wrapping = Wrapping(Front(profile), ALPN, Credentials(path, home.keys(profile).key))
        async with local(wrapping) as address:
            await ask(address, b"x")
            await ask(address, b"x")
            first = path.read_bytes()
            database_login(home, cas, profile, "orders", db_user="second")
            await ask(address, b"x")
            second = path.read_bytes()
    wanted = [x509.load_pem_x509_certificate(pem) for pem in (first, first, second)]
    assert database.certificates == wanted
    assert first != second


async def test_a_sealed_session_goes_on_with_the_certificate_that_it_began_with(home: Home, cas: Cas) -> None:
    """Also where that is renewed, and another connection takes the new one, while this one shakes hands."""
    agents = Database(upper)
    context = server_context(cas, alpn=sealed(ALPN))

    async def step_aside(stream: Stream) -> None:
        assert isinstance(stream, TlsStream)
        stream.send_eof()
        while await stream.read():
            pass
        await agents.serve(stream.leave(), server_context(cas, alpn=ALPN))

    database = Database(step_aside)
    said: list[str] = []
    async with database.running(context) as port:
        profile = signed_in(home, cas, port)
        path = database_login(home, cas, profile, "orders", db_user="first")
        wrapping = Wrapping(Front(profile), ALPN, Credentials(path, home.keys(profile).key))

        def renewed(*_: object) -> None:
            database_login(home, cas, profile, "orders", db_user="second")
            wrapping.context()

        async with local(wrapping, said.append) as address:
            context.sni_callback = renewed
            with suppress(ConnectionError):
                await ask(address, b"x")
    assert "cannot be believed" in said[0], "the server of this test is no agent"
    assert agents.certificates == database.certificates
    assert agents.certificates != [None]


def test_both_contexts_of_a_sealed_session_are_of_one_login(
    home: Home, cas: Cas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a new one is written between the two."""
    profile = signed_in(home, cas, 1)
    path = database_login(home, cas, profile, "orders", db_user="first")
    key = home.keys(profile).key
    read: list[bytes] = []

    def agents(*_: object) -> ssl.SSLContext:
        read.append(path.read_bytes())
        if len(read) == 1:
            database_login(home, cas, profile, "orders", db_user="the second")
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr(localproxy, "agent_context", agents)
    Wrapping(Front(profile), ALPN, Credentials(path, key)).context()
    assert read[-1] == path.read_bytes()


async def test_a_login_being_written_does_not_stop_connections(home: Home, cas: Cas) -> None:
    """Key and certificate are two files: between the two renames they do not fit, and then what we had still works."""
    database = Database(upper)
    async with database.running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        path = database_login(home, cas, profile, "orders")
        key = home.keys(profile).key
        old = key.read_text()
        async with local(Wrapping(Front(profile), ALPN, Credentials(path, key))) as address:
            await ask(address, b"x")
            from monoport.auth.keys import generate

            key.write_text(generate().private)
            assert await ask(address, b"y") == b"Y"
            path.unlink()
            assert await ask(address, b"z") == b"Z"
            key.write_text(old)
            database_login(home, cas, profile, "orders")
            assert await ask(address, b"z") == b"Z"
    assert len(database.certificates) == 4
    assert None not in database.certificates


async def test_an_inner_tls_passes_through_untouched(home: Home, cas: Cas) -> None:
    """Without --tunnel the client's own TLS, which brings its own certificate, is inside ours."""
    inner_alpn: list[str | None] = []

    async def inner(outer: Stream) -> None:
        async with await serve_tls(outer, server_context(cas, alpn="inner")) as stream:
            inner_alpn.append(stream.selected_alpn)
            await upper(stream)

    async with Database(inner).running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        async with local(Wrapping(Front(profile), ALPN, None)) as address:
            context = ssl.create_default_context(cadata=profile.host_cas[0])
            context.set_alpn_protocols(["inner"])
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname="localhost"
            )
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"PING"
            writer.close()
    assert inner_alpn == ["inner"]


async def test_what_cannot_be_joined_is_said_once_and_the_next_connection_works(home: Home, cas: Cas) -> None:
    said: list[str] = []
    database = Database(upper)
    async with database.running(server_context(cas, alpn="something-else")) as port:
        profile = signed_in(home, cas, port)
        async with local(Wrapping(Front(profile), ALPN, None), said.append) as address:
            with suppress(ConnectionError):
                assert await ask(address, b"x") == b""
            with suppress(ConnectionError):
                assert await ask(address, b"x") == b""
    assert len(said) == 2
    assert all(ALPN in line or "TLS" in line for line in said)
    assert all(re.search(r" \[from 127\.0\.0\.1:\d+\]$", line) for line in said), "as the front door's log names us"


def expired() -> None:
    raise Failure("your certificate has expired")


@asynccontextmanager
async def refusing(profile: Profile, protocol: str, said: Callable[[str], None]) -> AsyncIterator[Address]:
    """A local proxy that joins nobody, as after the end of a login."""
    wrapping = Wrapping(Front(profile), TABLE[protocol].alpn[0], None)
    proxy = LocalProxy(wrapping, listen(NOWHERE, lends_identity=True), said, TABLE[protocol].front, expired)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        serving = group.create_task(proxy.serve())
        try:
            yield proxy.address
        finally:
            serving.cancel()


def by_psycopg(port: int) -> None:
    # With TLS asked for and declined first, as libpq does unless told otherwise.
    psycopg.connect(host="127.0.0.1", port=port, user="alice", dbname="shop", sslmode="prefer", gssencmode="disable")


def by_pymysql(port: int) -> None:
    pymysql.connect(host="127.0.0.1", port=port, user="alice", database="shop", password="habit")


def by_pymongo(port: int) -> None:
    uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    with pymongo.MongoClient(uri, serverSelectionTimeoutMS=60_000) as client:  # longer than this test may take
        client.shop.people.find_one()


@pytest.mark.parametrize(
    ("protocol", "client", "shows"),
    [
        ("postgres", by_psycopg, psycopg.OperationalError),
        ("mysql", by_pymysql, pymysql.err.OperationalError),
        ("mongodb", by_pymongo, pymongo.errors.OperationFailure),
    ],
)
async def test_a_client_shows_why_it_cannot_be_joined(
    home: Home, cas: Cas, protocol: str, client: Callable[[int], None], shows: type[Exception]
) -> None:
    said: list[str] = []
    async with refusing(signed_in(home, cas, 1), protocol, said.append) as address:
        with pytest.raises(shows, match="your certificate has expired"):
            await asyncio.to_thread(client, address.port)
    assert set(said) == {"your certificate has expired"}, "nothing of the proxy, which was not asked"


@pytest.mark.parametrize("protocol", TABLE)
@pytest.mark.parametrize("data", [b"", b"x" * 100_000, b"\0" * 100_000])
async def test_a_client_that_makes_no_sense_is_told_all_the_same(
    home: Home, cas: Cas, protocol: str, data: bytes
) -> None:
    said: list[str] = []
    async with refusing(signed_in(home, cas, 1), protocol, said.append) as address:
        assert b"your certificate has expired" in await ask(address, data)
    assert said == ["your certificate has expired"]


@pytest.mark.parametrize("protocol", TABLE)
async def test_a_client_that_says_nothing_is_told_after_a_while(
    home: Home, cas: Cas, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr(refusal, "PATIENCE", 0.01)
    async with refusing(signed_in(home, cas, 1), protocol, [].append) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        assert b"your certificate has expired" in await reader.read()
        writer.close()


async def test_a_client_that_never_ends_its_opening_is_not_heard_for_ever(
    home: Home, cas: Cas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal, "MAX_READ", 10)
    monkeypatch.setattr(refusal, "PATIENCE", 2 * PATIENCE)
    async with refusing(signed_in(home, cas, 1), "mongodb", [].append) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"\0\1\0\0" + b"x" * 7)
        assert b"your certificate has expired" in await reader.read()
        writer.close()


async def test_a_cancel_request_gets_no_answer(home: Home, cas: Cas) -> None:
    async with refusing(signed_in(home, cas, 1), "postgres", [].append) as address:
        assert await ask(address, struct.pack(">IIII", 16, 80_877_102, 1, 2)) == b""


def test_a_socket_that_a_killed_process_left_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (left,) = listen_unix(path)
    with pytest.raises(Failure, match="address already in use"):
        listen_unix(path)
    left.close()
    (again,) = listen_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again.close()
    path.unlink()
    path.write_text("mine")
    with pytest.raises(Failure, match="a file that is no socket"):
        listen_unix(path)
    assert path.read_text() == "mine"


def test_a_path_that_is_too_long_for_a_socket_is_said_with_its_length(tmp_path: Path) -> None:
    path = tmp_path / ("s" * (MAX_PATH - len(os.fsencode(tmp_path)) - 1))
    (listening,) = listen_unix(path)
    listening.close()
    with pytest.raises(Failure, match=rf"{MAX_PATH + 1} bytes, and a socket's path has {MAX_PATH} at most"):
        listen_unix(path.with_name(path.name + "s"))


async def test_a_stranger_at_the_proxys_address_gets_nothing(home: Home, cas: Cas) -> None:
    said: list[str] = []
    database = Database(upper)
    async with database.running(server_context(Cas(), alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        path = database_login(home, cas, profile, "orders")
        wrapping = Wrapping(Front(profile), ALPN, Credentials(path, home.keys(profile).key))
        async with local(wrapping, said.append) as address:
            with suppress(ConnectionError):
                assert await ask(address, b"secret") == b""
    assert "does not verify" in said[0]
    assert database.alpn == []


async def test_many_connections_at_once(home: Home, cas: Cas) -> None:
    async with Database(upper).running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        async with local(Wrapping(Front(profile), ALPN, None)) as address:
            answers = await asyncio.gather(*(ask(address, b"n%d" % number) for number in range(40)))
    assert sorted(answers) == sorted(b"N%d" % number for number in range(40))


async def test_a_connection_that_breaks_off_is_said_once_with_both_its_ends(
    home: Home, cas: Cas, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "monoport.client")
    said: list[str] = []
    sources: list[str] = []
    heard = asyncio.Event()

    async def row(stream: Stream) -> None:
        sources.append(source(stream))
        await stream.write(b"half a row")
        stream.abort()

    def report(line: str) -> None:
        said.append(line)
        heard.set()

    async with Database(row).running(server_context(cas, alpn=ALPN)) as port:
        wrapping = Wrapping(Front(signed_in(home, cas, port)), ALPN, None)
        async with local(wrapping, report) as address:
            client, ours = await half_a_row(address)
            await heard.wait()
            client.close()
    [line], [theirs] = said, sources
    assert line.startswith(f"connection of {ours} broke off: ")
    assert line.endswith(f" [from {theirs}]")
    assert caplog.messages == [f"connection of {ours} joined [from {theirs}]"], "for who debugs"


async def test_a_program_that_breaks_off_by_itself_is_told_nothing(
    home: Home, cas: Cas, caplog: pytest.LogCaptureFixture
) -> None:
    """Drivers drop the connections of their monitors with answers unread, which is a reset: no news to who sees it."""
    caplog.set_level("DEBUG", "monoport.client")
    sources: list[str] = []
    ended = asyncio.Event()

    async def row(stream: Stream) -> None:
        sources.append(source(stream))
        await stream.write(b"half a row")
        with suppress(ConnectionError):
            await stream.read()
        ended.set()

    async with Database(row).running(server_context(cas, alpn=ALPN)) as port:
        wrapping = Wrapping(Front(signed_in(home, cas, port)), ALPN, None)
        async with local(wrapping) as address:
            client, ours = await half_a_row(address)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
            client.close()
            await ended.wait()
    [theirs] = sources
    assert caplog.messages == [
        f"connection of {ours} joined [from {theirs}]",
        f"connection of {ours} ended by itself: [Errno 104] Connection reset by peer [from {theirs}]",
    ]


def source(stream: Stream) -> str:
    """Where a connection to the proxy comes from."""
    host, port = stream.raw._sock.getpeername()  # type: ignore[attr-defined]
    return f"{host}:{port}"


async def half_a_row(address: Address) -> tuple[socket.socket, str]:
    """A program that has read as much, and its address."""
    client = socket.create_connection((address.host, address.port))
    client.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(client, 100) == b"half a row"
    return client, "{}:{}".format(*client.getsockname())


async def test_stopping_ends_connections_that_are_open(home: Home, cas: Cas) -> None:
    async with Database(upper).running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        async with local(Wrapping(Front(profile), ALPN, None)) as address:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"X"
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.host, address.port)


def test_missing_certificates_are_named(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    keys = home.keys(profile)
    wrapping = Wrapping(Front(profile), ALPN, Credentials(keys.database("example.com", "none"), keys.key))
    with pytest.raises(Failure, match=r"none-x509\.pem.* log in"):
        wrapping.context()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.com", "127.0.0.1.example.com"])
def test_a_lent_identity_stays_on_loopback(host: str) -> None:
    with pytest.raises(Failure, match="--share-identity"):
        listen(Address(host, 0), lends_identity=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.9.10"])
def test_loopback_may_be_listened_on(host: str) -> None:
    for each in listen(Address(host, 0), lends_identity=True):
        assert each.getsockname()[0].startswith("127.")
        each.close()


def test_sharing_must_be_said() -> None:
    for each in listen(Address("0.0.0.0", 0), lends_identity=True, share_identity=True):
        each.close()
    for each in listen(Address("0.0.0.0", 0), lends_identity=False):
        each.close()
    assert is_loopback("::1")


def test_a_port_in_use_is_named() -> None:
    (taken,) = listen(NOWHERE, lends_identity=True)
    port = taken.getsockname()[1]
    with pytest.raises(Failure, match=f"cannot listen on 127.0.0.1:{port}: address already in use"):
        listen(Address("127.0.0.1", port), lends_identity=True)
    taken.close()


def test_an_ended_certificate_is_left_to_the_proxy_to_refuse(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    path = database_login(home, cas, profile, "orders", lasts=timedelta(seconds=-1))
    context: Any = Wrapping(Front(profile), ALPN, Credentials(path, home.keys(profile).key)).context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
