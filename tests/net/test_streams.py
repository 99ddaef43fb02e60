"""What every stream promises, on every transport."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from monoport.net.meter import Meter
from monoport.net.relay import relay, relay_until_end
from monoport.net.sockets import SocketStream
from monoport.net.stream import LIMIT, EndOfStream, Stream, linger

from .conftest import secured

Make = Callable[[], Awaitable[tuple[Stream, Stream]]]
BIG = bytes(range(256)) * 12_000  # 3 MB: many records, many buffers


async def read_all(stream: Stream) -> bytes:
    pieces = []
    while piece := await stream.read():
        pieces.append(piece)
    return b"".join(pieces)


async def test_bytes_go_both_ways_and_each_direction_ends_by_itself(make: Make) -> None:
    a, b = await make()
    await a.write(b"hello")
    assert await b.read_exactly(5) == b"hello"

    async def send() -> None:
        for start in range(0, len(BIG), 100_000):
            await a.write(BIG[start : start + 100_000])
        a.send_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        got = group.create_task(read_all(b))
    assert got.result() == BIG
    await b.write(b"still here")
    b.send_eof()
    assert await read_all(a) == b"still here"


async def test_bytes_that_were_put_back_come_first(make: Make) -> None:
    a, b = await make()
    await a.write(b"two")
    b.unread(b"one ")
    assert await b.read_exactly(7) == b"one two"


async def test_an_end_in_the_middle_of_what_was_asked_for_says_how_far_it_came(make: Make) -> None:
    a, b = await make()
    await a.write(b"abc")
    a.send_eof()
    with pytest.raises(EndOfStream, match="3 of 10"):
        await b.read_exactly(10)


async def test_a_read_ends_at_its_timeout_and_the_stream_goes_on(make: Make) -> None:
    a, b = await make()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await b.read()
    await a.write(b"later")
    assert await b.read() == b"later"


async def test_a_cancelled_reader_is_gone_at_once(make: Make) -> None:
    a, b = await make()
    task = asyncio.get_running_loop().create_task(b.read())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await a.write(b"x")
    assert await b.read() == b"x"


async def test_two_readers_are_a_mistake(make: Make) -> None:
    _, b = await make()
    first = asyncio.get_running_loop().create_task(b.read())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="two tasks"):
        await b.read()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_writer_waits_for_a_peer_that_does_not_read_and_holds_no_more_than_the_limit(make: Make) -> None:
    a, b = await make()
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(1000):
            await a.write(b"x" * 16_384)
            written += 16_384

    task = asyncio.get_running_loop().create_task(write())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await asyncio.shield(task)
    assert written < 8_000_000  # kernel buffers and LIMIT, not everything
    waiting = getattr(a, "raw", a)
    while hasattr(waiting, "raw"):
        waiting = waiting.raw
    assert getattr(waiting, "waiting", 0) <= LIMIT
    got = 0
    while got < 16_384_000:
        got += len(await b.read())
    await task
    assert got == written


async def test_a_waiting_writer_can_be_cancelled(make: Make) -> None:
    a, _ = await make()

    async def flood() -> None:
        for _ in range(1000):
            await a.write(b"x" * 100_000)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flood(), 0.1)


async def test_an_abort_is_an_error_to_the_peer_and_to_readers_here(make: Make) -> None:
    a, b = await make()
    reading = asyncio.get_running_loop().create_task(a.read())
    await asyncio.sleep(0)
    a.abort(ValueError("because"))
    with pytest.raises(ValueError, match="because"):
        await reading
    assert a.lost
    try:
        while await b.read():
            pass
    except ConnectionError:
        return
    # A Unix socket has no reset, its peer sees an end; everyone else must have raised.
    assert type(b).__name__ == "SocketStream"


async def test_what_was_written_before_close_arrives(make: Make) -> None:
    a, b = await make()
    for _ in range(4):
        a.send(BIG[:300_000])
    a.close()
    assert await read_all(b) == BIG[:300_000] * 4
    await a.wait_closed()
    assert a.lost


async def test_leaving_the_block_closes_and_an_exception_aborts(make: Make) -> None:
    a, b = await make()
    async with a:
        await a.write(b"bye")
    assert await read_all(b) == b"bye"
    c, _ = await make()
    with pytest.raises(KeyError):
        async with c:
            raise KeyError
    assert c.lost


async def test_reading_after_close_is_an_error(make: Make) -> None:
    a, _ = await make()
    a.close()
    with pytest.raises(ConnectionError, match="this side"):
        await a.read()
    with pytest.raises(ConnectionError, match="this side"):
        await a.write(b"x")


async def test_the_relay_carries_bytes_and_half_closes(make: Make) -> None:
    client, here = await make()
    there, server = await make()
    meter = Meter()
    task = asyncio.get_running_loop().create_task(relay(here, there, meter=meter))
    await client.write(b"question")
    client.send_eof()
    assert await read_all(server) == b"question"

    async def answer() -> None:
        await server.write(BIG)
        server.send_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(answer())
        got = group.create_task(read_all(client))
    assert got.result() == BIG
    await task
    assert (meter.bytes_in, meter.bytes_out, meter.ended) == (8, len(BIG), "")


async def test_the_relay_holds_a_fast_sender_back_for_a_slow_reader(make: Make) -> None:
    client, here = await make()
    there, server = await make()
    meter = Meter()
    group = asyncio.get_running_loop()
    task = group.create_task(relay(here, there, meter=meter))

    async def flood() -> None:
        for _ in range(2000):
            await client.write(b"x" * 16_384)
        client.send_eof()

    flooding = group.create_task(flood())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.shield(flooding)
    assert meter.bytes_in < 16_000_000
    total = 0
    while piece := await server.read():
        total += len(piece)
    assert total == 2000 * 16_384
    await flooding
    server.send_eof()
    await task


async def test_the_relay_passes_a_reset_on(make: Make) -> None:
    client, here = await make()
    there, server = await make()
    meter = Meter()
    task = asyncio.get_running_loop().create_task(relay(here, there, meter=meter))
    await client.write(b"x")
    assert await server.read() == b"x"
    client.abort()
    try:
        ended = await server.read()
        server.send_eof()
    except ConnectionError:
        ended = None
    await task
    # Sockets of a pair are Unix sockets, which know no reset; TLS over them tells it from an end all the same.
    assert ended is None or type(server).__name__ == "SocketStream"


async def test_the_relay_ends_what_is_idle(make: Make) -> None:
    client, here = await make()
    there, server = await make()
    meter = Meter()
    await relay(here, there, idle=0.05, meter=meter)
    assert meter.ended == "idle for 0.05 s"
    assert await read_all(client) == b""
    assert await read_all(server) == b""


async def test_a_relay_until_the_end_of_one_leaves_both_to_go_on(make: Make) -> None:
    client, here = await make()
    there, server = await make()
    meter = Meter()
    task = asyncio.get_running_loop().create_task(relay_until_end(here, there, meter=meter))
    await client.write(b"open")
    assert await server.read() == b"open"
    await server.write(b"opened")
    server.send_eof()
    assert await client.read_exactly(6) == b"opened"
    assert await task
    assert (meter.bytes_in, meter.bytes_out) == (4, 6)
    await client.write(b"more")
    assert await here.read_exactly(4) == b"more"
    await there.write(b"went on")
    assert await server.read_exactly(7) == b"went on"
    await here.write(b"and back")
    assert await client.read_exactly(8) == b"and back"


async def test_a_relay_until_the_end_passes_on_the_end_of_the_other(make: Make) -> None:
    client, here = await make()
    there, server = await make()
    task = asyncio.get_running_loop().create_task(relay_until_end(here, there, meter=Meter()))
    client.send_eof()
    assert await server.read() == b""
    assert not task.done()
    server.send_eof()
    assert await task
    assert await here.read() == b"", "the end is there for whoever reads on"
    await here.write(b"x")
    assert await client.read() == b"x"


@pytest.mark.parametrize("first", ["client", "server"])
async def test_what_closes_goes_behind_the_last_byte_whoever_ends_first(make: Make, first: str) -> None:
    """The end of a client that has said all it will say is kept: behind an opening it would cut the opening off."""
    client, here = await make()
    there, server = await make()
    task = asyncio.get_running_loop().create_task(relay_until_end(here, there, meter=Meter(), closing=b" closed"))
    await client.write(b"open")
    if first == "client":
        client.send_eof()
    assert await server.read_exactly(4) == b"open"
    server.send_eof()
    assert await task
    there.send_eof()
    assert await read_all(server) == b" closed"
    if first == "client":
        assert await here.read() == b""


async def test_where_nothing_was_said_an_end_goes_on_at_once(make: Make) -> None:
    client, here = await make()
    there, server = await make()
    task = asyncio.get_running_loop().create_task(relay_until_end(here, there, meter=Meter(), closing=b" closed"))
    client.send_eof()
    assert await read_all(server) == b""
    server.send_eof()
    assert await task


@pytest.mark.parametrize("which", [0, 1])
async def test_a_relay_until_the_end_ends_with_a_reset(make: Make, which: int) -> None:
    client, here = await make()
    there, server = await make()
    meter = Meter()
    task = asyncio.get_running_loop().create_task(relay_until_end(here, there, meter=meter))
    await client.write(b"x")
    assert await server.read() == b"x"
    (here, there)[which].abort(ConnectionResetError("cut"))
    assert not await task
    assert meter.ended == "cut"
    assert here.lost
    assert there.lost


async def test_a_cancelled_relay_until_the_end_leaves_nothing_open(make: Make) -> None:
    _client, here = await make()
    there, _server = await make()
    task = asyncio.get_running_loop().create_task(relay_until_end(here, there, meter=Meter()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert here.lost
    assert there.lost


async def test_a_cancelled_relay_leaves_nothing_open(make: Make) -> None:
    _, here = await make()
    there, _ = await make()
    task = asyncio.get_running_loop().create_task(relay(here, there))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert here.lost
    assert there.lost


async def test_lingering_tells_the_peer_and_waits_for_its_end_or_the_time(make: Make) -> None:
    a, b = await make()
    a.send(b"no")
    linger(a, 5)
    await b.write(b"still talking")
    assert await read_all(b) == b"no"
    assert not a.lost
    b.close()
    await a.wait_closed()
    c, _ = await make()
    linger(c, 0.02)
    await c.wait_closed()
    assert c.lost


async def test_plain_sockets_are_joined_in_the_kernel_in_order_and_within_bounds() -> None:
    client, here = tcp()
    there, server = tcp()
    meter = Meter()
    task = asyncio.get_running_loop().create_task(relay(here, there, meter=meter))
    sent = random.Random(39).randbytes(40_000_000)

    async def send() -> None:
        for start in range(0, len(sent), 170_001):
            await client.write(sent[start : start + 170_001])
        client.send_eof()

    sending = asyncio.get_running_loop().create_task(send())
    with pytest.raises(TimeoutError):  # nobody reads: it stops
        await asyncio.wait_for(asyncio.shield(sending), 0.2)
    got = bytearray()
    while piece := await server.read(99_999):
        got += piece
    assert got == sent
    await sending
    await server.write(b"thanks")
    server.close()
    assert await read_all(client) == b"thanks"
    await task
    assert (meter.bytes_in, meter.bytes_out) == (len(sent), 6)
    for stream in (client, here, there):
        stream.abort()


async def test_a_reset_crosses_the_kernel_relay_even_while_it_is_full() -> None:
    client, here = tcp()
    there, server = tcp()
    meter = Meter()
    task = asyncio.get_running_loop().create_task(relay(here, there, meter=meter))

    async def flood() -> None:
        for _ in range(1000):
            await client.write(b"x" * 100_000)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flood(), 0.2)
    server.abort()
    await task
    assert "reset" in meter.ended
    with pytest.raises(ConnectionError):
        await client.read()
    here.abort()


async def test_a_reset_behind_both_ends_takes_nothing_from_a_slow_reader(tmp_path: Path) -> None:
    """A server that closes without reading our last record resets the connection, behind its own end."""
    client, here = tcp()
    there, server = await secured(tcp(), tmp_path)
    count = 0
    while not here.waiting:
        here.send(b"x" * 10_000)
        count += 10_000
    task = asyncio.get_running_loop().create_task(relay(here, there))
    client.send_eof()
    assert await server.read() == b""
    await server.write(b"the last words")
    server.send_eof()
    await task
    server.abort()
    await there.wait_closed()
    assert await read_all(client) == b"x" * count + b"the last words"
    await here.wait_closed()
    client.abort()


def tcp() -> tuple[SocketStream, SocketStream]:
    """Two streams over a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    return SocketStream(near), SocketStream(far)
