"""A connection that is over is freed at once: circles of objects would wait for the collector, and cost its time."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from monoport.net.arrival import Arrival, Limits
from monoport.net.listener import Listener
from monoport.net.ports import bind
from monoport.net.relay import relay
from monoport.net.sockets import connect
from monoport.net.stream import Gone, Stream
from monoport.net.tls import connect_tls, serve_tls

from ..net.conftest import server_context  # noqa: TID252  # tests are no package
from ..net.pki import cluster  # noqa: TID252


class Closer(Gone):
    """Ends a stream when its peer does."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def eof_received(self) -> None:
        self.stream.close()


async def gone(*listeners: Listener) -> None:
    """Wait until every connection is over."""
    while any(listener.taken for listener in listeners):  # noqa: ASYNC110  a turn of the loop at a time
        await asyncio.sleep(0)


@pytest.fixture
def kept() -> Iterator[list[object]]:
    """Everything that only the collector could free, from now on."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield gc.garbage
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_a_relayed_connection_leaves_nothing_to_the_collector(
    tmp_path: Path, kept: list[object], ending: str
) -> None:
    context, ours = server_context(tmp_path), cluster().client()

    async def echo(arrival: Arrival) -> None:
        arrival.routed()
        arrival.settled()
        await arrival.stream.write(arrival.first)
        arrival.stream.start(Closer(arrival.stream))
        await arrival.stream.wait_closed()

    async def proxy(arrival: Arrival) -> None:
        arrival.routed()
        arrival.stream.unread(arrival.first)
        stream = await serve_tls(arrival.stream, context)
        arrival.settled()
        async with await connect("127.0.0.1", backends[0].getsockname()[1]) as backend:
            await relay(stream, backend, idle=60)

    backends, fronts = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
    backend, front = Listener(backends, echo, Limits()), Listener(fronts, proxy, Limits())
    async with asyncio.TaskGroup() as group:
        group.create_task(backend.run())
        group.create_task(front.run())
        await asyncio.sleep(0)
        port = fronts[0].getsockname()[1]

        async def once() -> None:
            client = await connect_tls(await connect("127.0.0.1", port), ours, server_hostname="localhost")
            await client.write(b"ping")
            assert await client.read_exactly(4) == b"ping"
            client.close() if ending == "close" else client.abort()
            await client.wait_closed()

        await once()
        await gone(front, backend)
        gc.collect()
        kept.clear()
        for _ in range(5):
            await once()
        await gone(front, backend)
        gc.collect()
        found = Counter(type(thing).__name__ for thing in kept)
        front.drain(0)
        backend.drain(0)
    assert not found
