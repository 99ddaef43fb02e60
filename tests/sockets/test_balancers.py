"""Connections that load balancers open: whose address counts, and which headers are believed."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from structlog.testing import capture_logs

from monoport.net.arrival import Arrival, Limits
from monoport.net.balancers import Balancers
from monoport.net.listener import Listener
from monoport.net.ports import bind
from monoport.net.sockets import SocketStream, connect
from monoport.wire.proxyprotocol import V2

LOOPBACK = Balancers([ip_network("127.0.0.0/8")])
ELSEWHERE = Balancers([ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")])
LOCAL = V2 + b"\x20\x00\x00\x00"


def text(host: str, port: int = 40_000) -> bytes:
    return f"PROXY TCP4 {host} 198.51.100.7 {port} 443\r\n".encode()


def binary(host: str, port: int = 40_000) -> bytes:
    address = bytes(map(int, host.split(".")))
    return V2 + b"\x21\x11\x00\x0c" + address + bytes(4) + struct.pack(">HH", port, 443)


class Port:
    """A listener behind balancers that echoes, what it served, and what it turned away."""

    def __init__(self, limits: Limits, balancers: Balancers | None) -> None:
        self.sockets = bind("127.0.0.1", 0)
        self.number = self.sockets[0].getsockname()[1]
        self.served: list[tuple[tuple[str, int], bytes]] = []
        self.refused: list[tuple[str, str]] = []
        self.reasons: list[str] = []
        self.listener = Listener(self.sockets, self._serve, limits, self._refuse, balancers)

    async def _serve(self, arrival: Arrival) -> None:
        self.served.append((arrival.source, arrival.first))
        arrival.routed()
        arrival.settled()
        await arrival.stream.write(arrival.first)
        while data := await arrival.stream.read():
            await arrival.stream.write(data)

    def _refuse(self, _id: str, source: tuple[str, int], code: str, reason: str) -> None:
        self.refused.append((source[0], code))
        self.reasons.append(reason)

    async def dial(self, first: bytes) -> SocketStream:
        stream = await connect("127.0.0.1", self.number)
        stream.send(first)
        return stream


@asynccontextmanager
async def port(limits: Limits | None = None, balancers: Balancers | None = LOOPBACK) -> AsyncIterator[Port]:
    made = Port(limits or Limits(), balancers)
    task = asyncio.get_running_loop().create_task(made.listener.run())
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def ended(stream: SocketStream) -> bool:
    try:
        return await stream.read() == b""
    except ConnectionError:
        return True
    finally:
        stream.abort()


@pytest.mark.parametrize("header", [text("203.0.113.9"), binary("203.0.113.9")])
async def test_the_header_names_the_client_and_is_taken_off(header: bytes) -> None:
    async with port() as door:
        with capture_logs() as logs:
            client = await door.dial(header + b"hello")
            assert await client.read() == b"hello"
        assert door.served == [(("203.0.113.9", 40_000), b"hello")]
        assert [(line["source"], line["balancer"]) for line in logs] == [("203.0.113.9", "127.0.0.1")]
        client.abort()


@pytest.mark.parametrize("header", [text("203.0.113.9"), binary("203.0.113.9")])
async def test_a_header_may_come_in_pieces_and_the_hello_later(header: bytes) -> None:
    async with port() as door:
        for cut in range(1, len(header) + 1):
            client = await door.dial(header[:cut])
            await asyncio.sleep(0)  # the pieces are two writes; whether they arrive as one read makes no difference
            client.send(header[cut:])
            client.send(b"hello")
            assert await client.read_exactly(5) == b"hello"
            client.abort()
        assert {source for source, _ in door.served} == {("203.0.113.9", 40_000)}
        assert door.refused == []


@pytest.mark.parametrize("header", [b"", LOCAL, b"PROXY UNKNOWN\r\n"])
async def test_a_balancers_own_connection_keeps_its_address_and_is_not_limited_as_one_source(header: bytes) -> None:
    async with port(Limits(per_source=2)) as door:
        clients = [await door.dial(header + b"hello") for _ in range(5)]
        for client in clients:
            assert await client.read() == b"hello"
        assert {source[0] for source, _ in door.served} == {"127.0.0.1"}
        assert door.refused == []
        assert door.listener.taken == 5
        for client in clients:
            client.abort()


async def test_each_client_behind_a_balancer_has_its_own_share() -> None:
    async with port(Limits(per_source=2)) as door:
        one, two, other = [
            await door.dial(text(host) + b"x") for host in ("203.0.113.9", "203.0.113.9", "203.0.113.10")
        ]
        for client in (one, two, other):
            assert await client.read() == b"x"
        third = await door.dial(binary("203.0.113.9") + b"x")
        assert await ended(third)
        assert door.refused == [("203.0.113.9", "too_many_connections")]
        one.close()
        while True:  # until its share is free again
            again = await door.dial(text("203.0.113.9") + b"y")
            try:
                if await again.read() == b"y":
                    break
            except ConnectionError:
                continue
        for client in (two, other, again):
            client.abort()
    assert not door.listener._sources, "every share was given back"


async def test_slots_of_the_total_hold_for_balancers_too() -> None:
    async with port(Limits(connections=2)) as door:
        first, second = [await door.dial(text(f"203.0.113.{n}") + b"x") for n in (1, 2)]
        for client in (first, second):
            assert await client.read() == b"x"
        third = await door.dial(text("203.0.113.3") + b"x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(third.read(), 0.05)
        first.close()
        assert await third.read() == b"x"
        for client in (second, third):
            client.abort()


@pytest.mark.parametrize("balancers", [None, ELSEWHERE])
async def test_from_elsewhere_nothing_is_taken_off(balancers: Balancers | None) -> None:
    """Routing then refuses it by name: tests/routing, `test_row_proxy_header`."""
    async with port(balancers=balancers) as door:
        client = await door.dial(text("203.0.113.9") + b"hello")
        await client.read()
        assert door.served == [(("127.0.0.1", door.served[0][0][1]), text("203.0.113.9") + b"hello")]
        client.abort()


async def test_only_one_header_is_taken_off() -> None:
    async with port() as door:
        client = await door.dial(text("203.0.113.9") + text("203.0.113.10"))
        await client.read()
        assert door.served == [(("203.0.113.9", 40_000), text("203.0.113.10"))]
        client.abort()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"PROXY TCP4 203.0.113.9 198.51.100.7 x 443\r\n", "'x' is no port"),
        (b"PROXY " + b"x" * 200, "107"),
        (V2 + b"\x21\x11\xff\xff", "65551 octets, limit 4096"),
    ],
)
async def test_a_header_that_cannot_be_read_is_refused_by_name(sent: bytes, reason: str) -> None:
    async with port() as door:
        assert await ended(await door.dial(sent))
        assert door.refused == [("127.0.0.1", "malformed_proxy_header")]
        assert reason in door.reasons[0]
        assert door.served == []


@pytest.mark.parametrize("piece", [b"P", text("203.0.113.9")[:-1], binary("203.0.113.9")[:20]])
async def test_half_a_header_is_refused_in_time(piece: bytes) -> None:
    async with port(Limits(first_bytes=0.05)) as door:
        assert await ended(await door.dial(piece))
        assert door.refused == [("127.0.0.1", "incomplete")]
        assert "0.05 s" in door.reasons[0]
        client = await door.dial(piece)
        client.send_eof()
        assert await ended(client)
        assert f"after {len(piece)} bytes" in door.reasons[1]


async def test_a_client_that_says_nothing_behind_the_header_is_refused_in_time_by_its_own_address() -> None:
    async with port(Limits(first_bytes=0.05)) as door:
        assert await ended(await door.dial(text("203.0.113.9")))
        assert door.refused == [("203.0.113.9", "silence")]
        assert door.served == []


async def test_a_health_check_that_only_looks_is_no_refusal() -> None:
    async with port() as door:
        for header in (b"", LOCAL):
            client = await door.dial(header)
            client.send_eof()
            assert await ended(client)
        assert door.refused == []
        assert door.served == []


def test_which_addresses_are_balancers() -> None:
    for host in ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"):
        assert host in ELSEWHERE
    for host in ("127.0.0.1", "192.0.3.1", "2001:db8:0:1::1", "::1", "fe80::1%eth0", "::ffff:127.0.0.1"):
        assert host not in ELSEWHERE
    assert "fe80::1%eth0" in Balancers([ip_network("fe80::/10")])
