"""Standard input and output as a Stream."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from monoport.client.stdio import StdioStream
from monoport.errors import Failure
from monoport.net import memory
from monoport.net.relay import relay


class Pipes:
    """Two pipes: `to` is what the stream reads, `back` what it has written."""

    def __init__(self) -> None:
        self.stream_reads, self.to = os.pipe()
        self.back, self.stream_writes = os.pipe()

    def stream(self) -> StdioStream:
        return StdioStream(self.stream_reads, self.stream_writes)

    def close(self, *descriptors: int) -> None:
        for descriptor in descriptors or (self.stream_reads, self.to, self.back, self.stream_writes):
            try:
                os.close(descriptor)
            except OSError:
                continue


@pytest.fixture
def pipes():
    made = Pipes()
    yield made
    made.close()


async def test_bytes_and_ends_in_both_directions(pipes: Pipes) -> None:
    async with asyncio.timeout(10), pipes.stream() as stream:
        os.write(pipes.to, b"in")
        assert await stream.read() == b"in"
        await stream.write(b"out")
        assert os.read(pipes.back, 10) == b"out"
        pipes.close(pipes.to)
        assert await stream.read() == b""
        await stream.write(b"still")
        stream.send_eof()
        assert os.read(pipes.back, 10) == b"still"
        assert os.read(pipes.back, 10) == b""


async def test_more_than_a_pipe_holds_waits_and_arrives_whole(pipes: Pipes) -> None:
    data = os.urandom(3_000_000)

    def drain() -> bytes:
        seen = bytearray()
        while piece := os.read(pipes.back, 65_536):
            seen += piece
        return bytes(seen)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        drained = group.create_task(asyncio.to_thread(drain))
        async with pipes.stream() as stream:
            for start in range(0, len(data), 50_000):
                await stream.write(data[start : start + 50_000])
            pipes.close(pipes.to)
    assert drained.result() == data


async def test_a_full_pipe_says_stop_and_room_says_go(pipes: Pipes) -> None:
    async with asyncio.timeout(10):
        stream = pipes.stream()
        while stream.send(b"x" * 65_536):
            pass
        writing = asyncio.get_running_loop().run_in_executor(None, os.read, pipes.back, 1_000_000)
        await stream.write(b"")
        assert await writing
        stream.abort()


async def test_a_reader_that_leaves_ends_the_stream(pipes: Pipes) -> None:
    async with asyncio.timeout(10):
        stream = pipes.stream()
        pipes.close(pipes.back)
        await stream.wait_closed()
        with pytest.raises(BrokenPipeError):
            await stream.read()


async def test_relay_carries_the_last_bytes_out_before_it_ends(pipes: Pipes) -> None:
    async with asyncio.timeout(10):
        near, far = memory.pair()
        async with asyncio.TaskGroup() as group:
            stream = pipes.stream()
            group.create_task(relay(stream, near))
            await far.write(b"last words")
            far.close()
            assert await asyncio.to_thread(os.read, pipes.back, 100) == b"last words"
            assert await asyncio.to_thread(os.read, pipes.back, 100) == b""
            pipes.close(pipes.to)
        assert stream.lost


async def test_files_are_refused_in_words(tmp_path: Path, pipes: Pipes) -> None:
    with (tmp_path / "file").open("wb+") as file, pytest.raises(Failure, match="must be pipes"):
        StdioStream(file.fileno(), pipes.stream_writes)
    assert os.get_blocking(pipes.stream_writes)
