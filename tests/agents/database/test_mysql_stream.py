"""A client's compression: kilobytes that travel may be megabytes here, and are read no faster than those go on."""

from __future__ import annotations

import asyncio

from monoport.agents.database.mysql_stream import CompressedStream
from monoport.net.memory import pair
from monoport.net.stream import CHUNK, Gone
from monoport.wire.mysql.compression import deflated

MEGABYTE = bytes(1 << 20)  # a kilobyte when compressed


class Slow(Gone):
    """Takes one piece in each turn of the loop."""

    def __init__(self, stream: CompressedStream) -> None:
        self.stream, self.got = stream, 0

    def data_received(self, data: bytes | memoryview) -> None:
        self.got += len(data)
        self.stream.pause_reading()
        self.stream.loop.call_soon(self.stream.resume_reading)


class Quick(Gone):
    """Takes whatever comes, and counts what came in one turn of the loop."""

    def __init__(self, stream: CompressedStream) -> None:
        self.stream, self.got, self.most, self.ended = stream, 0, 0, asyncio.Event()
        self._now = 0

    def data_received(self, data: bytes | memoryview) -> None:
        if not self._now:
            self.stream.loop.call_soon(self._turned)
        self._now += len(data)
        self.got += len(data)
        self.most = max(self.most, self._now)

    def _turned(self) -> None:
        self._now = 0

    def eof_received(self) -> None:
        self.ended.set()


async def test_a_client_is_read_no_faster_than_what_it_says_goes_on() -> None:
    client, near = pair()
    stream = CompressedStream(near)
    taking = Slow(stream)
    stream.start(taking)
    packed = deflated(MEGABYTE, 0) * 16
    sent = 0
    while client.send(packed) and sent < 4_000_000:
        sent += len(packed)
        await asyncio.sleep(0)
    assert sent < 1_000_000
    assert taking.got
    stream.abort()


async def test_much_out_of_little_leaves_turns_to_others() -> None:
    client, near = pair()
    stream = CompressedStream(near)
    taking = Quick(stream)
    stream.start(taking)
    for _ in range(2):
        client.send(deflated(MEGABYTE, 0) * 8)
    client.send_eof()
    await taking.ended.wait()
    assert taking.got == 16 * len(MEGABYTE)
    assert taking.most <= 2 * CHUNK
    stream.abort()
