"""Nobody's stalled peer makes us hold more than its share, and nobody else waits for it."""

import asyncio
import os

import asyncssh
from asyncssh.constants import MSG_DEBUG, MSG_GLOBAL_REQUEST
from asyncssh.packet import Boolean, String

from monoport.net.stream import LIMIT
from monoport.tunnel import dial, link
from monoport.tunnel.preface import Kind, Preface

from .test_packets import opened

PREFACE = Preface(connection="c-1", kind=Kind.SSH, target="n1")
PIECE = b"x" * 16_384


async def test_a_full_transport_holds_every_channel_back(world, permit):
    taken: asyncio.Queue[int] = asyncio.Queue()

    async def count(preface, stream):
        await dial.accept(stream)
        total = 0
        while data := await stream.read():
            total += len(data)
        taken.put_nowait(total)

    async with world.running("n1", count):
        streams = [await world.tunnels.dial(permit, PREFACE) for _ in range(8)]
        agents_end = world.served[0]._peer
        agents_end.pause_reading()
        sent = [0] * len(streams)
        for number, stream in enumerate(streams):
            for _ in range(64):
                sent[number] += len(PIECE)
                if not stream.send(PIECE):
                    break
                await asyncio.sleep(0)
        # the transport's share once, not once a channel; and of each channel a piece and its high-water mark
        assert sum(sent) <= 2 * LIMIT + len(streams) * (len(PIECE) + LIMIT // 4)
        assert all(one.link.blocked for one in world.tunnels._tunnels["n1"])
        agents_end.resume_reading()
        for stream in streams:
            stream.send_eof()
        assert sorted([await taken.get() for _ in streams]) == sorted(sent)
        for stream in streams:
            stream.abort()


async def test_a_stalled_reader_stops_its_sender_and_no_other(world, permit):
    release = asyncio.Event()
    data = os.urandom(65_536) * 32

    async def serve(preface, stream):
        await dial.accept(stream)
        if preface.connection == "stalled":
            stream.pause_reading()
            await release.wait()
            stream.resume_reading()
        got = b""
        while piece := await stream.read():
            got += piece
        await stream.write(got[-5:])
        stream.send_eof()

    async with world.running("n1", serve):
        stalled = await world.tunnels.dial(permit, Preface("stalled", Kind.SSH, "n1"))
        sent = 0
        while stalled.send(data[sent : sent + 32_768]):
            sent += 32_768
            await asyncio.sleep(0)
        sent += 32_768
        assert sent <= LIMIT * 3
        other = await world.tunnels.dial(permit, PREFACE)
        await other.write(data)
        other.send_eof()
        assert await other.read_exactly(5) == data[-5:]
        release.set()
        stalled.send_eof()
        assert await stalled.read_exactly(5) == data[sent - 5 : sent]
        other.close()
        stalled.close()


async def test_closing_flushes_and_the_peer_sees_a_clean_end(world, permit):
    data = os.urandom(65_536) * 20
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def collect(preface, stream):
        await dial.accept(stream)
        total = b""
        while piece := await stream.read():
            total += piece
        got.set_result(total)

    async with world.running("n1", collect):
        stream = await world.tunnels.dial(permit, PREFACE)
        await stream.write(data)
        stream.close()
        assert await got == data
        await stream.wait_closed()


async def test_a_connection_that_is_left_before_a_slow_reader_has_read_all_is_a_cut(world, permit):
    """Its SSH peer says goodbye in order, and behind an EOF: the bytes that go with it are missing all the same."""
    seen: asyncio.Future[Exception | bytes] = asyncio.get_running_loop().create_future()

    async def slow(preface, stream):
        await dial.accept(stream)
        stream.pause_reading()
        await stream.wait_closed()
        try:
            seen.set_result(await stream.read())
        except ConnectionError as error:
            seen.set_result(error)

    async with world.running("n1", slow):
        stream = await world.tunnels.dial(permit, PREFACE)
        await stream.write(PIECE * 4)
        stream.send_eof()
        (tunnel,) = world.tunnels._tunnels["n1"]
        tunnel.link.disconnect(asyncssh.DISC_BY_APPLICATION, "bye")
        assert isinstance(await seen, ConnectionResetError)


async def test_a_reset_is_a_reset_at_the_other_end(world, permit):
    seen: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def watch(preface, stream):
        await dial.accept(stream)
        try:
            await stream.read()
        except ConnectionError as error:
            seen.set_result(error)

    async with world.running("n1", watch):
        stream = await world.tunnels.dial(permit, PREFACE)
        stream.abort()
        assert isinstance(await seen, ConnectionResetError)


async def test_a_peer_that_asks_and_asks_and_reads_no_answer_is_cut(world, permit, monkeypatch):
    monkeypatch.setattr(link, "UNREAD", 1000)
    async with opened(world, permit) as ends, asyncio.timeout(20):
        near, far = ends.link(ends.near), ends.link(ends.far)
        far._transport.pause_reading()
        while near._transport is not None:
            for _ in range(100):
                far.send_packet(MSG_GLOBAL_REQUEST, String(b"anything"), Boolean(True))
            await asyncio.sleep(0)
        assert near.blocked
        assert near._unread == 1001


async def test_what_comes_while_a_packet_is_dealt_with_waits_in_the_stream(world, permit):
    ended, dealt_with = asyncio.Event(), []

    async def slowly(*_packet):
        await ended.wait()
        dealt_with.append(1)

    async with opened(world, permit) as ends, asyncio.timeout(30):
        near, far = ends.link(ends.near), ends.link(ends.far)
        far._packet_handlers = {**far._packet_handlers, MSG_DEBUG: slowly}
        for _ in range(1000):
            near.send_packet(MSG_DEBUG, String(PIECE))
        most = 0
        for _ in range(1000):
            await asyncio.sleep(0)
            most = max(most, len(far._inpbuf))
        assert 0 < most < 2_000_000
        ended.set()
        await ends.near.write(PIECE)
        assert await ends.far.read_exactly(len(PIECE)) == PIECE
        assert len(dealt_with) == 1000
