"""TLS over streams: names of failures, truncation, protocols, certificates, and the shared engine."""

from __future__ import annotations

import asyncio
import random
import ssl
import weakref
from datetime import timedelta
from pathlib import Path

import pytest

from monoport.net.memory import pair
from monoport.net.stream import INBOX, Gone, Inbox, Stream, TruncatedError, linger
from monoport.net.tls import HandshakeError, TlsError, TlsStream, connect_tls, serve_tls

from .conftest import secured, server_context, sockets
from .pki import cluster


async def both(
    server: ssl.SSLContext, client: ssl.SSLContext, alpn: str | None = None
) -> tuple[TlsStream | BaseException, TlsStream | BaseException]:
    a, b = pair()
    found = await asyncio.gather(
        serve_tls(a, server, alpn=alpn),
        connect_tls(b, client, server_hostname="localhost"),
        return_exceptions=True,
    )
    return found[0], found[1]


def asking(folder: Path) -> ssl.SSLContext:
    context = server_context(folder)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=cluster().users.pem)
    return context


async def test_the_certificate_and_protocol_are_known_afterwards(tmp_path: Path) -> None:
    context = asking(tmp_path)
    context.set_alpn_protocols(["one"])
    client = cluster().client("two", "one")
    leaf = cluster().user()
    leaf.load(client, tmp_path)
    server, far = await both(context, client, "one")
    assert isinstance(server, TlsStream)
    assert isinstance(far, TlsStream)
    assert server.selected_alpn == far.selected_alpn == "one"
    assert server.peer_certificate == ssl.PEM_cert_to_DER_cert(leaf.certificate.decode())
    assert server.version == "TLSv1.3"


async def test_an_agreed_protocol_that_was_not_routed_is_refused(tmp_path: Path) -> None:
    server, _ = await both(server_context(tmp_path, "one"), cluster().client("two"), "one")
    assert isinstance(server, HandshakeError)
    assert "routed as one" in str(server)


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("none", "did not return a certificate"),
        ("expired", "certificate has expired"),
        ("stranger", "certificate not accepted"),
        ("for servers", "unsuitable certificate purpose"),
    ],
)
async def test_a_wrong_client_certificate_is_named_on_both_sides(tmp_path: Path, which: str, reason: str) -> None:
    client = cluster().client()
    leaf = {
        "none": lambda: None,
        "expired": cluster().expired,
        "stranger": lambda: cluster().user(cluster().strangers),
        "for servers": cluster().for_servers,
    }[which]()
    if leaf is not None:
        leaf.load(client, tmp_path)
    server, far = await both(asking(tmp_path), client)
    assert isinstance(server, HandshakeError)
    assert reason in str(server)
    # In TLS 1.3 the client is done before the server has judged; it hears of it with its first read.
    if isinstance(far, TlsStream):
        with pytest.raises(TlsError, match="alert"):
            await far.read()
    else:
        assert isinstance(far, HandshakeError)


async def test_a_client_that_does_not_believe_the_server_says_why(tmp_path: Path) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=cluster().strangers.pem)
    server, far = await both(server_context(tmp_path), client)
    assert isinstance(far, HandshakeError)
    assert "certificate not accepted" in str(far)
    assert isinstance(server, HandshakeError)
    assert "alert" in str(server)


async def test_garbage_is_a_named_failure_with_an_alert(tmp_path: Path) -> None:
    a, b = pair()
    await b.write(b"\x16\x03\x01\x00\x05hello, is anybody there")
    with pytest.raises(HandshakeError):
        await serve_tls(a, server_context(tmp_path))
    assert (await b.read())[:2] == b"\x15\x03"


async def test_an_end_in_the_middle_of_the_handshake_is_named(tmp_path: Path) -> None:
    a, b = pair()
    b.send_eof()
    with pytest.raises(HandshakeError, match="in the middle"):
        await serve_tls(a, server_context(tmp_path))
    assert a.lost


async def test_a_silent_handshake_can_be_timed_out(tmp_path: Path) -> None:
    a, _ = pair()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await serve_tls(a, server_context(tmp_path))
    assert a.lost


async def test_a_connection_cut_without_close_notify_is_not_a_clean_end(tmp_path: Path) -> None:
    raw = pair()
    server, client = await secured(raw, tmp_path)
    await client.write(b"all of it?")
    raw[1].send_eof()
    assert await server.read_exactly(10) == b"all of it?"
    with pytest.raises(TruncatedError):
        await server.read()


async def test_a_damaged_record_ends_the_connection(tmp_path: Path) -> None:
    raw = pair()
    server, _ = await secured(raw, tmp_path)
    raw[1].send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(TlsError, match=r"mac|decrypt"):
        await server.read()


async def test_records_may_come_byte_by_byte(tmp_path: Path) -> None:
    a, near = pair()
    far, b = pair()

    async def drip(source: Stream, sink: Stream) -> None:
        while data := await source.read():
            for at in range(len(data)):
                sink.send(data[at : at + 1])
        sink.send_eof()

    async with asyncio.TaskGroup() as group:
        drips = [group.create_task(drip(near, far)), group.create_task(drip(far, near))]
        server, client = await secured((a, b), tmp_path)
        await client.write(b"slowly")
        assert await server.read_exactly(6) == b"slowly"
        await server.write(b"x" * 5000)
        assert await client.read_exactly(5000) == b"x" * 5000
        for task in drips:
            task.cancel()


async def test_connections_that_share_the_engine_never_see_each_other(tmp_path: Path) -> None:
    """Many interleaved connections, some of which break in the middle of a record."""
    dice = random.Random(39)
    count = 24
    raws = [pair() for _ in range(count)]
    ends = [await secured(raw, tmp_path) for raw in raws]
    expected = [bytearray() for _ in range(count)]
    for _ in range(200):
        which = dice.randrange(count)
        piece = bytes([which]) * dice.randrange(1, 40_000)
        if which % 6 == 5:
            raws[which][1].send(b"\x17\x03\x03\x40\x00" + dice.randbytes(3000))  # a record that never ends
        else:
            expected[which] += piece
            ends[which][1].send(piece)
        if dice.random() < 0.2:
            await asyncio.sleep(0)
    for which in range(count):
        if which % 6 != 5:
            ends[which][1].send_eof()
            got = bytearray()
            while piece := await ends[which][0].read():
                got += piece
            assert got == expected[which]


async def test_a_server_closes_after_a_certificate_that_ends_soon_too(tmp_path: Path) -> None:
    client = cluster().client()
    cluster().user(lifetime=timedelta(minutes=2)).load(client, tmp_path)
    server, far = await both(asking(tmp_path), client)
    assert isinstance(server, TlsStream)
    assert isinstance(far, TlsStream)
    far.close()
    assert await server.read() == b""


async def left(a: TlsStream, b: TlsStream) -> tuple[Stream, Stream]:
    """Both ends of a connection whose TLS is over."""
    for end in (a, b):
        end.send_eof()
    assert await a.read() == await b.read() == b""
    return a.leave(), b.leave()


@pytest.mark.parametrize("below", ["memory", "socket"])
async def test_what_follows_tls_goes_on_underneath(tmp_path: Path, below: str) -> None:
    a, b = await secured(sockets() if below == "socket" else pair(), tmp_path)
    assert isinstance(a, TlsStream)
    assert isinstance(b, TlsStream)
    await a.write(b"the last protected word")
    a.send_eof()
    assert await b.read() == b"the last protected word"
    assert await b.read() == b""
    plain = b.leave()
    await plain.write(b"in the clear")  # behind our close_notify, at once
    assert await a.read() == b""
    there = a.leave()
    assert await there.read_exactly(12) == b"in the clear"
    await there.write(b"and back")
    assert await plain.read_exactly(8) == b"and back"
    for _ in range(2):  # TLS again, twice
        again, far = await secured((there, plain), tmp_path)
        await again.write(b"protected again")
        assert await far.read_exactly(15) == b"protected again"
        assert isinstance(again, TlsStream)
        assert isinstance(far, TlsStream)
        there, plain = await left(again, far)
    plain.send_eof()
    assert await there.read() == b""
    there.send_eof()
    assert await plain.read() == b""
    a.abort()
    b.abort()
    there.abort()
    plain.abort()


async def test_who_has_left_tls_still_owns_what_is_underneath(tmp_path: Path) -> None:
    a, b = await secured(pair(), tmp_path)
    assert isinstance(a, TlsStream)
    assert isinstance(b, TlsStream)
    closed = asyncio.get_running_loop().create_task(a.wait_closed())
    plain, far = await left(a, b)
    await asyncio.sleep(0)
    assert not a.lost
    assert not closed.done()
    async with a:  # as its owner ends it
        await plain.write(b"x")
    assert plain.lost
    assert a.lost
    await closed
    assert await far.read() == b"x"
    assert await far.read() == b""
    b.abort(ConnectionResetError("ended by an administrator"))
    assert far.lost
    with pytest.raises(ConnectionResetError, match="administrator"):
        far.recall()


async def test_nothing_of_tls_is_kept_that_was_left(tmp_path: Path) -> None:
    a, b = await secured(pair(), tmp_path)
    assert isinstance(a, TlsStream)
    assert isinstance(b, TlsStream)
    kept = weakref.ref(a._ssl)
    plain, _ = await left(a, b)
    await asyncio.sleep(0)  # whoever was woken by the end still stands on the stack of the one who read it
    assert kept() is None
    a.send(b"unheard")
    a.send_eof()
    assert not plain.lost
    a.abort()
    b.abort()


async def test_tls_is_left_at_its_end_only(tmp_path: Path) -> None:
    a, b = await secured(pair(), tmp_path)
    assert isinstance(a, TlsStream)
    with pytest.raises(RuntimeError):
        a.leave()
    await b.write(b"unread")
    b.send_eof()
    assert await a.read(2) == b"un"
    with pytest.raises(RuntimeError):
        a.leave()
    b.abort()
    assert await a.read() == b"read"
    with pytest.raises(ConnectionError):
        await a.read()
    with pytest.raises(ConnectionError):
        a.leave()


async def test_a_peer_that_ends_both_is_seen_to_have_ended_underneath_too(tmp_path: Path) -> None:
    a, b = await secured(sockets(), tmp_path)
    assert isinstance(a, TlsStream)
    assert isinstance(b, TlsStream)
    b.send_eof()
    b.raw.send_eof()
    assert await a.read() == b""
    while not a._peer_gone:  # noqa: ASYNC110  # the end of the socket, behind that of TLS
        await asyncio.sleep(0)
    assert await a.leave().read() == b""
    a.abort()
    b.abort()


async def test_nobody_lingers_for_a_peer_that_has_ended(tmp_path: Path) -> None:
    a, b = await secured(pair(), tmp_path)
    b.send_eof()
    assert await a.read() == b""
    await a.write(b"the last word")
    linger(a, 60)
    async with asyncio.timeout(5):
        await a.wait_closed()
    assert await b.read_exactly(13) == b"the last word"
    assert await b.read() == b""


async def test_only_so_much_may_come_behind_the_end(tmp_path: Path) -> None:
    a, b = await secured(pair(), tmp_path)
    assert isinstance(a, TlsStream)
    assert isinstance(b, TlsStream)
    b.send_eof()
    assert await a.read() == b""
    b.raw.send(bytes(INBOX))
    await asyncio.sleep(0)
    assert not a.lost
    b.raw.send(b"x")
    await a.wait_closed()
    with pytest.raises(TlsError, match="goes on behind its end"):
        a.leave()


async def test_what_is_delivered_stays_as_it_is_while_tls_within_is_read(tmp_path: Path) -> None:
    """As in a tunnel: its bytes hold several packets, and behind the first of them another TLS is decrypted."""
    outer, far = await secured(pair(), tmp_path)
    inner, other = await secured(pair(), tmp_path)
    seen: list[bytes] = []

    class Outer(Gone):
        def data_received(self, data: bytes | memoryview) -> None:
            inner.data_received(packed)  # type: ignore[attr-defined]
            seen.append(bytes(data))

    class Inner(Gone):
        def data_received(self, data: bytes | memoryview) -> None:
            seen.append(bytes(data))

    inner.start(Inner())
    held = inner.raw._receiver  # type: ignore[attr-defined]
    inner.raw.start(catch := Inbox(inner.raw))  # type: ignore[attr-defined]
    await other.write(b"within " * 2000)
    while not catch.data:  # noqa: ASYNC110
        await asyncio.sleep(0)
    packed, catch.data = catch.data, b""
    inner.raw.start(held)  # type: ignore[attr-defined]
    outer.start(Outer())
    await far.write(b"outside " * 2000)
    while len(seen) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert seen == [b"within " * 2000, b"outside " * 2000]
    for end in (outer, far, inner, other):
        end.abort()
