"""The four steps of a connection, with clients that do what they should not at each of them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest

from monoport.access.resources import parse_document
from monoport.errors import Failure
from monoport.net.arrival import Arrival, Limits
from monoport.net.balancers import Balancers
from monoport.net.deadlines import Deadlines
from monoport.net.listener import Listener
from monoport.net.memory import pair
from monoport.net.ports import bind
from monoport.net.sockets import connect
from monoport.net.stream import Stream
from monoport.net.tls import HandshakeError, TlsError, TlsStream, connect_tls
from monoport.proxy.connection import Connection, FrontDoor, serve
from monoport.proxy.contexts import Contexts, KeyPair
from monoport.proxy.registry import REFUSALS, Connections
from monoport.routing.outcome import Kind, Refusal, Trust
from monoport.routing.rows import DatabaseRule
from monoport.routing.table import build

from ..net.pki import CLUSTER, cluster  # noqa: TID252  # tests are no package

POSTGRES = DatabaseRule("postgres", alpn=("teleport-postgres",), direct_alpn=("postgresql",), direct=True)
SSH = "teleport-proxy-ssh"


class Door:
    """A front door whose handlers echo, and what they saw."""

    def __init__(self) -> None:
        made = cluster()
        served = frozenset({Kind.SSH, Kind.TUNNEL, Kind.DATABASE, Kind.WEB, Kind.AUTH})
        self.connections = Connections()
        self.seen: list[Connection] = []
        self.echoing: Callable[[Connection], Awaitable[None]] = echo
        self.front = FrontDoor(
            table=build(["proxy.example.com"], CLUSTER, served, [POSTGRES]),
            contexts=Contexts(
                KeyPair(made.proxy.certificate, made.proxy.key),
                (),
                {Trust.USER: made.trusted.user, Trust.HOST: made.trusted.host},
            ),
            connections=self.connections,
            handlers=dict.fromkeys(served, self._handle),
            cas=lambda: made.trusted,
        )

    async def _handle(self, connection: Connection) -> None:
        self.seen.append(connection)
        await self.echoing(connection)

    def client(self, first_bytes: float = 5, handshake: float = 5) -> tuple[Stream, asyncio.Task[None]]:
        """A connection in memory: its client's end, and the task that serves it."""
        loop = asyncio.get_running_loop()
        near, far = pair()
        late = Deadlines[Arrival](loop, first_bytes, lambda one: one.late("first message", first_bytes))
        later = Deadlines[Arrival](loop, handshake, lambda one: one.late("finished TLS handshake", handshake))
        arrival = Arrival("c1", near, ("192.0.2.1", 40000), late, later)

        async def live() -> None:
            try:
                await arrival.more()
                await serve(arrival, self.front)
            finally:  # as the listener does
                near.abort()
                arrival.routed()
                arrival.settled()

        return far, loop.create_task(live())

    @property
    def codes(self) -> list[str]:
        return [str(turned.refusal.code) for turned in self.connections.refusals]


async def echo(connection: Connection) -> None:
    while data := await connection.stream.read():
        connection.meter.bytes_in += len(data)
        await connection.stream.write(data)


def hello(context: ssl.SSLContext, name: str = "proxy.example.com") -> bytes:
    """A ClientHello as OpenSSL writes it."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(received, sent, False, name).do_handshake()
    return sent.read()


async def dial(door: Door, *alpn: str, context: ssl.SSLContext | None = None) -> tuple[TlsStream, asyncio.Task[None]]:
    far, task = door.client()
    context = context or cluster().client(*alpn)
    return await connect_tls(far, context, server_hostname="proxy.example.com"), task


async def drained(stream: Stream) -> bytes:
    pieces = []
    try:
        while piece := await stream.read():
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)


async def test_a_connection_is_routed_secured_served_and_counted() -> None:
    door = Door()
    stream, task = await dial(door, SSH)
    await stream.write(b"SSH-2.0-test\r\n")
    assert await stream.read() == b"SSH-2.0-test\r\n"
    assert stream.selected_alpn == SSH
    (row,) = door.connections.rows()
    assert (row["state"], row["kind"], row["alpn"], row["source"]) == ("ssh", "ssh", [SSH], "192.0.2.1:40000")
    stream.close()
    await task
    assert len(door.connections) == 0
    assert door.connections.closed_by_kind[Kind.SSH] == 1
    assert door.connections.bytes_in == 14
    assert door.connections.rows() == []


class Chopped(Stream):
    """Sends what it is given in pieces that end at `cuts`, each in a turn of its own."""

    def __init__(self, inner: Stream, cuts: list[int]) -> None:
        super().__init__(inner.loop)
        self._inner, self._cuts, self._sent = inner, cuts, 0

    def start(self, receiver: object) -> None:
        self._inner.start(receiver)  # type: ignore[arg-type]

    def send(self, data: bytes | bytearray | memoryview) -> bool:
        at = 0
        for cut in [*self._cuts, self._sent + len(data)]:
            here = min(max(cut - self._sent, at), len(data))
            self._inner.send(bytes(data[at:here]))
            at = here
        self._sent += len(data)
        return True

    def send_eof(self) -> None:
        self._inner.send_eof()

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def close(self) -> None:
        self._inner.close()

    def abort(self, error: Exception | None = None) -> None:
        self._inner.abort(error)


class Prefixed(Chopped):
    """Sends what it is given first behind `header`, in one piece with it."""

    def __init__(self, inner: Stream, header: bytes) -> None:
        super().__init__(inner, [])
        self._header = header

    def send(self, data: bytes | bytearray | memoryview) -> bool:
        header, self._header = self._header, b""
        return super().send(header + bytes(data))


async def test_a_hello_may_be_split_at_every_byte() -> None:
    door = Door()
    context = cluster().client(SSH)
    size = len(hello(context))
    for cut in [*range(1, size, 5), size - 1, size]:
        far, task = door.client()
        stream = await connect_tls(Chopped(far, [cut]), context, server_hostname="proxy.example.com")
        await stream.write(b"x")
        assert await stream.read() == b"x"
        stream.abort()
        await task
    assert door.codes == []


async def test_a_hello_may_come_byte_by_byte() -> None:
    door = Door()
    far, task = door.client()
    stream = await connect_tls(
        Chopped(far, list(range(1, 2000))), cluster().client(SSH), server_hostname="proxy.example.com"
    )
    await stream.write(b"x")
    assert await stream.read() == b"x"
    stream.close()
    await task


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "malformed_hello"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 600, "malformed_hello"),
        (b"\x16\x03\x01\x40\x00\x01\x01\x00\x00" + b"\x00" * 16_380, "malformed_hello"),
        (b"\x00\x01\x02\x03 nothing that anybody speaks", "unknown_protocol"),
        (b"GET / HTTP/1.1\r\nHost: proxy.example.com\r\n\r\n", "plaintext_http"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name_and_closed(sent: bytes, code: str) -> None:
    door = Door()
    far, task = door.client()
    far.send(sent)
    far.send_eof()
    answer = await drained(far)
    await task
    assert door.codes == [code]
    assert not door.seen
    if code == "plaintext_http":
        assert answer.startswith(b"HTTP/1.1 308 ")


async def test_an_oversized_hello_is_refused_before_it_is_whole() -> None:
    door = Door()
    far, task = door.client()
    record = b"\x16\x03\x03\x40\x00"
    far.send(record + b"\x01\x02\x00\x00\x03\x03" + bytes(32) + b"\x00\x00\x02\x13\x01\x01\x00\xff\xff" + bytes(16_335))
    for _ in range(5):
        far.send(record + bytes(16_384))
    await drained(far)
    await task
    assert door.codes == ["malformed_hello"]


@pytest.mark.parametrize("keep", [1, 5, 60, 200])
async def test_a_truncated_hello_is_refused_by_name(keep: int) -> None:
    door = Door()
    far, task = door.client()
    far.send(hello(cluster().client(SSH))[:keep])
    far.send_eof()
    await drained(far)
    await task
    assert door.codes == ["incomplete"]


async def test_a_slow_hello_is_refused_in_time() -> None:
    door = Door()
    far, task = door.client(first_bytes=0.05)
    far.send(hello(cluster().client(SSH))[:100])
    await drained(far)
    await task
    assert door.codes in (["incomplete"], ["silence"])
    assert not door.seen


async def test_an_unknown_protocol_gets_alert_120_before_any_tls_library_sees_it() -> None:
    door = Door()
    far, task = door.client()
    far.send(hello(cluster().client("no-such-protocol")))
    assert await far.read() == b"\x15\x03\x03\x00\x02\x02\x78"
    far.close()
    await task
    assert door.codes == ["unknown_alpn"]


async def test_a_client_that_goes_silent_in_the_handshake_is_refused_in_time() -> None:
    door = Door()
    far, task = door.client(handshake=0.05)
    far.send(hello(cluster().client(SSH)))
    assert (await far.read())[:1] == b"\x16"
    await drained(far)
    await task
    assert door.codes == ["late_handshake"]
    assert "0.05 s" in door.connections.refusals[0].refusal.reason


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("none", "did not return a certificate"),
        ("expired", "certificate has expired"),
        ("stranger", "certificate not accepted"),
        ("for servers", "unsuitable certificate purpose"),
        ("host", "certificate not accepted"),
    ],
)
async def test_a_required_certificate_must_be_right(tmp_path: Path, which: str, reason: str) -> None:
    door = Door()
    context = cluster().client("postgresql")
    leaf = {
        "none": lambda: None,
        "expired": cluster().expired,
        "stranger": lambda: cluster().user(cluster().strangers),
        "for servers": cluster().for_servers,
        "host": lambda: cluster().proxy,
    }[which]()
    if leaf is not None:
        leaf.load(context, tmp_path)
    far, task = door.client()
    with pytest.raises((TlsError, ConnectionError)):
        await (await connect_tls(far, context, server_hostname="proxy.example.com")).read()
    far.abort()
    await task
    assert door.codes == ["handshake_failed"]
    assert reason in door.connections.refusals[0].refusal.reason
    assert not door.seen


async def test_an_optional_certificate_is_read_where_there_is_one(tmp_path: Path) -> None:
    door = Door()
    stream, task = await dial(door, "teleport-postgres")
    await stream.write(b"x")
    assert await stream.read() == b"x"
    assert door.seen[0].identity is None
    stream.close()
    await task
    context = cluster().client("teleport-postgres")
    cluster().user().load(context, tmp_path)
    stream, task = await dial(door, context=context)
    await stream.write(b"x")
    assert await stream.read() == b"x"
    assert str(door.seen[1].identity) == "alice@example.com"
    assert door.connections.rows()[0]["user"] == "alice@example.com"
    stream.close()
    await task
    assert len(door.connections.leases) == 0


async def test_a_wrong_certificate_is_refused_even_where_none_is_needed(tmp_path: Path) -> None:
    door = Door()
    context = cluster().client("teleport-postgres")
    cluster().user(cluster().strangers).load(context, tmp_path)
    far, task = door.client()
    with pytest.raises(HandshakeError):
        raise HandshakeError(str(await drained(await connect_tls(far, context, server_hostname="proxy.example.com"))))
    await task
    assert door.codes == ["handshake_failed"]


async def identified(door: Door, folder: Path) -> tuple[TlsStream, asyncio.Task[None]]:
    context = cluster().client("postgresql")
    cluster().user().load(context, folder)
    stream, task = await dial(door, context=context)
    await stream.write(b"x")
    assert await stream.read() == b"x"
    return stream, task


async def test_a_session_ends_when_its_certificate_does(tmp_path: Path) -> None:
    door = Door()
    stream, task = await identified(door, tmp_path)
    identity = door.seen[0].identity
    assert identity is not None
    assert door.connections.sweep(identity.expires - timedelta(seconds=1), ()) == 0
    assert door.connections.sweep(identity.expires, ()) == 1
    with pytest.raises(ConnectionError):
        await stream.read()
    await task
    assert "expired" in door.seen[0].ended


async def test_a_session_ends_when_its_user_is_locked(tmp_path: Path) -> None:
    door = Door()
    stream, task = await identified(door, tmp_path)
    lock = parse_document(
        {"kind": "lock", "version": "v1", "metadata": {"name": "l1"}, "spec": {"target": {"user": "alice"}}}
    )
    assert door.connections.sweep(datetime.now(UTC), [lock]) == 1  # type: ignore[list-item]
    with pytest.raises(ConnectionError):
        await stream.read()
    await task
    assert "lock" in door.seen[0].ended


async def test_the_watch_sweeps_by_its_clock(tmp_path: Path) -> None:
    door = Door()
    stream, task = await identified(door, tmp_path)
    watch = asyncio.get_running_loop().create_task(
        door.connections.watch(lambda: (), lambda: datetime.now(UTC) + timedelta(hours=2), 0.01)
    )
    with pytest.raises(ConnectionError):
        await stream.read()
    await task
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


async def test_a_session_that_cannot_be_proven_ends() -> None:
    """A certificate that TLS verifies but that carries no identity."""
    door = Door()
    stream, task = await dial(door, SSH)
    await stream.write(b"x")
    assert await stream.read() == b"x"
    with pytest.raises(Failure):
        door.seen[0].identify(ssl.PEM_cert_to_DER_cert(cluster().hosts.pem))
    stream.close()
    await task


async def test_a_half_close_reaches_the_handler_and_its_answer_the_client() -> None:
    door = Door()

    async def count(connection: Connection) -> None:
        total = 0
        while data := await connection.stream.read():
            total += len(data)
        await connection.stream.write(b"%d" % total)

    door.echoing = count
    stream, task = await dial(door, SSH)
    await stream.write(b"x" * 70_000)
    stream.send_eof()
    assert await drained(stream) == b"70000"
    await task


async def test_a_handlers_failure_is_shown_and_a_bug_is_raised_to_the_listener() -> None:
    door = Door()

    async def fails(_: Connection) -> None:
        raise Failure("node two is down")

    door.echoing = fails
    stream, task = await dial(door, SSH)
    assert await drained(stream) == b""
    await task
    assert door.seen[0].ended == "node two is down"

    async def breaks(_: Connection) -> None:
        raise ZeroDivisionError

    door.echoing = breaks
    stream, task = await dial(door, SSH)
    with pytest.raises(ZeroDivisionError):
        await task
    assert await drained(stream) == b""
    assert len(door.connections) == 0


async def test_passed_through_bytes_reach_the_handler_untouched() -> None:
    door = Door()
    sent = hello(cluster().client(f"teleport-auth@{CLUSTER}"))
    far, task = door.client()
    far.send(sent)
    got = b""
    while len(got) < len(sent):
        got += await far.read()
    assert got == sent
    far.close()
    await task


def test_only_the_last_refusals_are_kept_and_strangers_names_are_made_harmless() -> None:
    connections = Connections()
    for number in range(REFUSALS + 10):
        connections.refused(str(number), ("2001:db8::1", 1), Refusal("unknown_alpn", "nobody speaks that"))
    rows = connections.rows()
    assert len(rows) == REFUSALS
    assert rows[0]["id"] == "10"
    assert rows[0]["source"] == "[2001:db8::1]:1"
    assert connections.refused_by_code["unknown_alpn"] == REFUSALS + 10


async def test_five_hundred_silent_handshakes_hold_nobody_up() -> None:
    door = Door()
    sockets = bind("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    limits = Limits(first_bytes=6, handshake=6.5)  # seconds, ample for serving ten on a busy machine
    listener = Listener(sockets, lambda arrival: serve(arrival, door.front), limits, door.connections.turned_away)
    task = asyncio.get_running_loop().create_task(listener.run())
    await asyncio.sleep(0)
    first = hello(cluster().client(SSH))
    silent = []
    for number in range(500):
        client = await connect("127.0.0.1", port)
        client.send(first if number % 2 else first[:50])
        silent.append(client)
    for _ in range(10):
        working = await connect_tls(
            await connect("127.0.0.1", port), cluster().client(SSH), server_hostname="proxy.example.com"
        )
        await working.write(b"ping")
        assert await working.read_exactly(4) == b"ping"
        working.close()
    assert door.connections.refused_by_code.total() == 0, "served while all of them were silent"
    for client in silent:
        await drained(client)
        client.abort()
    assert door.connections.refused_by_code["late_handshake"] == 250
    assert sum(door.connections.refused_by_code.values()) == 500
    listener.drain(5)
    await task


async def test_a_header_of_a_balancer_and_the_hello_in_one_segment_and_a_second_header() -> None:
    door = Door()
    sockets = bind("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    refused, balancers = door.connections.turned_away, Balancers([ip_network("127.0.0.1")])
    listener = Listener(sockets, lambda arrival: serve(arrival, door.front), Limits(), refused, balancers)
    task = asyncio.get_running_loop().create_task(listener.run())
    await asyncio.sleep(0)
    header = b"PROXY TCP4 203.0.113.9 198.51.100.7 40000 443\r\n"
    raw = await connect("127.0.0.1", port)
    prefixed = Prefixed(raw, header)
    stream = await connect_tls(prefixed, cluster().client(SSH), server_hostname="proxy.example.com")
    await stream.write(b"x")
    assert await stream.read() == b"x"
    assert [row["source"] for row in door.connections.rows()] == ["203.0.113.9:40000"]
    stream.abort()
    twice = await connect("127.0.0.1", port)
    twice.send(header * 2)
    assert await drained(twice) == b""
    turned = door.connections.refusals[-1]
    assert (turned.source[0], turned.refusal.code, turned.refusal.rule) == (
        "203.0.113.9",
        "not_enabled",
        "proxy-header",
    )
    broken = await connect("127.0.0.1", port)
    broken.send(b"PROXY TCP4 x\r\n")
    assert await drained(broken) == b""
    assert door.codes[-1] == "malformed_proxy_header"
    twice.abort()
    broken.abort()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
