"""The short way of a channel's data: the same bytes as asyncssh's, and every fault left to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from asyncssh.channel import SSHChannel
from asyncssh.constants import MSG_CHANNEL_DATA

from monoport.tunnel import dial, packets, transport
from monoport.tunnel.channel import ChannelStream
from monoport.tunnel.link import WINDOW, Link
from monoport.tunnel.packets import Gcm
from monoport.tunnel.preface import Kind, Preface

PREFACE = Preface(connection="c-1", kind=Kind.SSH, target="n1")
SIZES = (1, 2, 15, 16, 17, 255, 4096, 32_767, 32_768, 65_537, 131_072, 131_073, 300_000)


@dataclass
class Ends:
    """Both ends of a channel, and the connections that carry it."""

    near: ChannelStream
    far: ChannelStream

    @staticmethod
    def link(stream: ChannelStream) -> Any:
        return stream._channel()._conn

    def caught(self, data: bytes) -> list[bytes]:
        """The packets in which the near end would send data, kept from the far end."""
        wire, parts = self.link(self.near)._transport, []
        wire.write = parts.append
        try:
            self.near.send(data)
        finally:
            del wire.write
        return [parts[n] + parts[n + 1] for n in range(0, len(parts), 2)]

    def deliver(self, *packets: bytes) -> None:
        """Have the far end receive packets, in one piece."""
        self.link(self.far).data_received(b"".join(packets))


@asynccontextmanager
async def opened(world: Any, permit: Any) -> AsyncIterator[Ends]:
    arrived: asyncio.Future[ChannelStream] = asyncio.get_running_loop().create_future()

    async def hold(_preface: Preface, stream: ChannelStream) -> None:
        await dial.accept(stream)
        arrived.set_result(stream)
        await stream.wait_closed()

    async with world.running("n1", hold):
        near = await world.tunnels.dial(permit, PREFACE)
        ends = Ends(near, await arrived)
        assert isinstance(ends.link(near)._send_encryption, Gcm)
        assert isinstance(ends.link(ends.far)._recv_encryption, Gcm)
        yield ends
        near.abort()


@pytest.mark.parametrize("slice_", [7, 65_536], ids=["in crumbs", "whole"])
async def test_data_of_every_size_both_ways(world, permit, monkeypatch, slice_):
    monkeypatch.setattr(transport, "SLICE", slice_)
    data = [os.urandom(size) for size in (SIZES if slice_ > 7 else SIZES[:8])]
    whole = b"".join(data)
    async with opened(world, permit) as ends, asyncio.TaskGroup() as group:

        async def say(stream: ChannelStream) -> None:
            for piece in data:
                await stream.write(piece)

        for stream in (ends.near, ends.far):
            group.create_task(say(stream))
        for stream in (ends.near, ends.far):
            assert await stream.read_exactly(len(whole)) == whole


async def test_asyncssh_sees_none_of_it(world, permit, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("data took the long way")

    async with opened(world, permit) as ends:
        monkeypatch.setattr(SSHChannel, "_process_data", never)
        monkeypatch.setitem(SSHChannel._packet_handlers, MSG_CHANNEL_DATA, never)
        for stream, other in ((ends.near, ends.far), (ends.far, ends.near)):
            await stream.write(b"x" * 1000)
            assert await other.read_exactly(1000) == b"x" * 1000
            assert ends.link(stream)._send_seq == ends.link(other)._recv_seq


async def test_keys_change_in_the_middle(world, permit):
    data = os.urandom(2_000_000)
    async with opened(world, permit) as ends, asyncio.TaskGroup() as group:
        link = ends.link(ends.near)
        first, link._rekey_bytes = link._send_encryption, 300_000
        group.create_task(ends.near.write(data))
        assert await ends.far.read_exactly(len(data)) == data
        await ends.far.write(data[:1000])
        assert await ends.near.read_exactly(1000) == data[:1000]
        assert link._send_encryption is not first


async def test_no_nonce_is_used_twice(world, permit):
    async with opened(world, permit) as ends:
        cipher = ends.link(ends.near)._send_encryption
        used = [cipher._nonce()]
        for _ in range(3):
            ends.caught(b"x")
            used.append(cipher._nonce())
        assert len(set(used)) == 4


async def gone(ends: Ends) -> None:
    """The far end has ended the connection, and none of its channel's data was bad."""
    async with asyncio.timeout(5):
        await ends.far.wait_closed()
    assert ends.link(ends.far)._transport is None
    with pytest.raises(ConnectionError):
        await ends.far.read()


def flipped(packet: bytes, at: int) -> bytes:
    return packet[:at] + bytes((packet[at] ^ 1,)) + packet[at:][1:]


@pytest.mark.parametrize("at", [3, 4, 5, 20, -17, -16, -1])
async def test_a_packet_that_was_changed_ends_the_connection(world, permit, at):
    async with opened(world, permit) as ends:
        (packet,) = ends.caught(b"x" * 64)
        changed = flipped(packet, at % len(packet))
        ends.deliver(changed + bytes(64) if at == 3 else changed)  # one octet longer is what it waits for
        await gone(ends)


async def test_a_packet_that_comes_again_ends_the_connection(world, permit):
    async with opened(world, permit) as ends:
        (packet,) = ends.caught(b"once")
        ends.deliver(packet, packet)
        assert await ends.far.read_exactly(4) == b"once"
        await gone(ends)


async def test_more_than_the_window_ends_the_connection(world, permit):
    async with opened(world, permit) as ends:
        ends.far.pause_reading()
        ends.near._channel()._send_window = 2 * WINDOW
        packets = ends.caught(b"x" * (WINDOW + 1))
        ends.deliver(*packets)
        async with asyncio.timeout(5):
            await ends.far.wait_closed()
        assert ends.link(ends.far)._transport is None


def sealed(ends: Ends, packet: Callable[[Link, int], bytes]) -> bytes:
    """A packet of the near end's own making."""
    link = ends.link(ends.near)
    plain = packet(link, ends.near._channel()._send_chan)
    length = len(plain).to_bytes(4, "big")
    link._send_seq += 1
    return length + link._send_encryption.seal(length, plain)


def made(channel: int, size: int, data: bytes, padding: int) -> bytes:
    numbers = channel.to_bytes(4, "big") + size.to_bytes(4, "big")
    return bytes((padding, MSG_CHANNEL_DATA)) + numbers + data + bytes(padding)


@pytest.mark.parametrize(
    "packet",
    [
        lambda _, channel: made(channel, 23, b"x" * 22, 16),
        lambda _, channel: made(channel, 21, b"x" * 22, 16),
        lambda _, channel: made(channel, 0xFFFFFFFF, b"x" * 22, 16),
        lambda _, channel: made(channel + 1, 22, b"x" * 22, 16),
        lambda _, channel: made(0xFFFFFFFF, 22, b"x" * 22, 16),
        lambda _, channel: made(channel, 22, b"x" * 22, 0),
        lambda _, channel: made(channel, 22, b"x" * 22, 16).replace(b"\x10\x5e", b"\x10\x5d", 1),
        lambda _, channel: bytes((200, MSG_CHANNEL_DATA)) + channel.to_bytes(4, "big") + bytes(26),
        lambda _, channel: bytes((16, MSG_CHANNEL_DATA)) + channel.to_bytes(4, "big")[:3] + bytes(16) + bytes(12),
    ],
    ids=[
        "long",
        "short",
        "huge",
        "next-channel",
        "no-channel",
        "no-padding",
        "no-data",
        "all-padding",
        "half-a-number",
    ],
)
async def test_a_packet_that_lies_ends_the_connection(world, permit, packet):
    async with opened(world, permit) as ends:
        ends.deliver(sealed(ends, packet))
        await gone(ends)


@pytest.mark.parametrize(
    "plain", [b"", b"\4", bytes((4, MSG_CHANNEL_DATA)) + bytes(4), bytes((4, MSG_CHANNEL_DATA)) + bytes(8)]
)
async def test_a_packet_with_room_for_no_data_ends_the_connection(world, permit, plain):
    async with opened(world, permit) as ends:
        ends.deliver(sealed(ends, lambda *_: plain) + bytes(16))  # asyncssh reads a block before it looks
        await gone(ends)


async def test_a_packet_that_is_too_long_ends_the_connection_before_it_has_come(world, permit):
    async with opened(world, permit) as ends:
        ends.deliver((ends.link(ends.far)._max_recv_pktlen + 1).to_bytes(4, "big") + bytes(16))
        await gone(ends)


async def test_data_behind_the_end_ends_the_connection(world, permit):
    async with opened(world, permit) as ends:
        ends.near.send_eof()
        assert await ends.far.read() == b""
        ends.deliver(sealed(ends, lambda _, channel: made(channel, 22, b"x" * 22, 16)))
        async with asyncio.timeout(5):
            await ends.far.wait_closed()
        assert ends.link(ends.far)._transport is None


@pytest.mark.parametrize("all_of_it", [False, True], ids=["the channel", "the connection"])
async def test_what_follows_in_the_same_piece_finds_that_it_has_just_gone(world, permit, all_of_it):
    async with opened(world, permit) as ends:
        seen: list[bytes] = []

        class Leaving:
            def data_received(self, data: bytes | memoryview) -> None:
                seen.append(bytes(data))
                link.abort() if all_of_it else ends.far.abort()

            def eof_received(self) -> None: ...

            def connection_lost(self, error: Exception | None) -> None: ...

            def resume_writing(self) -> None: ...

        link = ends.link(ends.far)
        ends.far.start(Leaving())
        ends.deliver(*ends.caught(b"first"), *ends.caught(b"second"))
        assert seen == [b"first"]
        assert (link._transport is None) is all_of_it, "the tunnel goes on"


async def test_crumbs_that_wait_are_put_together(world, permit, monkeypatch):
    monkeypatch.setattr(packets, "BURST", 20_000)
    data = os.urandom(10_000)
    async with opened(world, permit) as ends:
        near, far = ends.near._channel(), ends.far._channel()
        ends.far.pause_reading()
        near._send_pktsize = 1
        window = far._recv_window
        ends.deliver(*ends.caught(data))
        assert len(far._recv_buf) < 10
        assert far._recv_window == window - len(data)
        near._send_pktsize = 7000
        ends.deliver(*ends.caught(data))
        ends.far.resume_reading()
        assert await ends.far.read_exactly(20_000) == data + data


async def test_crumbs_of_two_kinds_stay_apart(world, permit):
    async with opened(world, permit) as ends:
        far = ends.far._channel()
        ends.far.pause_reading()
        for data, kind in ((b"out", None), (b"err", 1), (b"or", 1), (b"put", None)):
            far._accept_data(data, kind)
        assert list(far._recv_buf) == [(b"out", None), (b"error", 1), (b"put", None)]


async def test_a_reader_that_takes_piece_by_piece_is_sent_no_more_than_the_window(world, permit):
    data = os.urandom(2_000_000)
    async with opened(world, permit) as ends, asyncio.timeout(20), asyncio.TaskGroup() as group:
        far = ends.far._channel()
        ends.near._channel()._send_pktsize = 8192
        taken = bytearray()

        class Slow:
            def data_received(self, piece: bytes | memoryview) -> None:
                taken.extend(piece)
                ends.far.pause_reading()

            def eof_received(self) -> None: ...

            def connection_lost(self, error: Exception | None) -> None: ...

            def resume_writing(self) -> None: ...

        ends.far.start(Slow())
        group.create_task(ends.near.write(data))
        held = 0
        while len(taken) < len(data):
            ends.far.resume_reading()
            await asyncio.sleep(0)
            held = max(held, sum(len(piece) for piece, _ in far._recv_buf) + far._recv_window)
        assert bytes(taken) == data
        assert held <= WINDOW


async def test_a_peer_that_wants_single_octets_gets_so_many_in_one_turn(world, permit):
    data = os.urandom(5000)
    async with opened(world, permit) as ends, asyncio.timeout(20):
        near = ends.near._channel()
        near._send_pktsize = 1
        before = ends.link(ends.near)._send_seq
        ends.near.send(data)
        ends.near.send_eof()
        assert ends.link(ends.near)._send_seq - before <= 200
        assert near.get_write_buffer_size() >= len(data) - 200
        assert await ends.far.read_exactly(len(data)) == data
        assert await ends.far.read() == b""
