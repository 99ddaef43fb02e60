"""A proxy that steps aside: what each side then holds, over a dial-back and over a channel, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from tests.net.conftest import secured, sockets

from monoport.net.memory import pair
from monoport.net.stream import EndOfStream, Stream
from monoport.net.tls import TlsStream
from monoport.tunnel.sealing import MAX_OPENING, step_aside, stepped_aside
from monoport.wire.frame import FrameError

Make = Callable[[], Awaitable[tuple[Stream, Stream]]]
PATIENCE = 10.0


@pytest.fixture
async def dial_back(tmp_path) -> AsyncIterator[tuple[Stream, Stream]]:
    """The proxy's end of a connection dialled back, and the agent's."""
    ends = await secured(sockets(), tmp_path)
    yield ends
    for end in ends:
        end.abort()


@pytest.fixture(params=["dial-back", "channel"])
async def dialled(request: pytest.FixtureRequest, dial_back) -> tuple[Stream, Stream]:
    """The proxy's end of a dialled stream, and the agent's."""
    return dial_back if request.param == "dial-back" else pair()


@pytest.fixture
async def outer(tmp_path) -> AsyncIterator[tuple[TlsStream, TlsStream]]:
    """The proxy's end of a client's TLS, and the client's."""
    proxy, client = await secured(sockets(), tmp_path)
    assert isinstance(proxy, TlsStream)
    assert isinstance(client, TlsStream)
    yield proxy, client
    proxy.abort()
    client.abort()


async def aside(client: TlsStream) -> Stream:
    """What our clients do once the proxy ends its TLS."""
    assert await client.read() == b""
    client.send_eof()
    return client.leave()


@asynccontextmanager
async def patience() -> AsyncIterator[asyncio.TaskGroup]:
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        yield group


async def test_client_and_agent_are_left_with_each_other(outer, dialled):
    proxy, client = outer
    near, agent = dialled
    await client.write(b"and more of it")
    async with patience() as group:
        stepping = group.create_task(step_aside(proxy, near, b"an opening "))
        stepped = group.create_task(stepped_aside(agent))
        left = group.create_task(aside(client))
    here, there = stepping.result()
    opening, far = stepped.result()
    assert opening == b"an opening and more of it"
    assert here is proxy.raw
    assert there is (near.raw if isinstance(near, TlsStream) else near)
    await left.result().write(b"hello, agent")
    assert await here.read_exactly(12) == b"hello, agent"
    await there.write(b"hello, agent")
    assert await far.read_exactly(12) == b"hello, agent"
    await far.write(b"hello, client")
    assert await there.read_exactly(13) == b"hello, client"
    await here.write(b"hello, client")
    assert await left.result().read_exactly(13) == b"hello, client"
    near.abort()  # whoever opened them still ends them
    proxy.abort()
    assert here.lost
    assert there.lost
    left.result().abort()
    far.abort()


async def test_a_client_that_says_too_much_before(outer, dialled):
    proxy, client = outer
    near, _ = dialled
    client.send(bytes(MAX_OPENING))
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(FrameError, match="said over"):
            await step_aside(proxy, near, b"x")


async def test_a_client_that_is_cut_before(outer, dialled):
    proxy, client = outer
    client.abort()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectionError):
            await step_aside(proxy, dialled[0], b"x")


@pytest.mark.parametrize("size", [0, MAX_OPENING + 1, 2**32 - 1])
async def test_an_opening_of_an_impossible_size(dialled, size):
    near, agent = dialled
    await near.write(size.to_bytes(4) + b"x")
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(FrameError, match=f"an opening of {size} bytes"):
            await stepped_aside(agent)


async def test_an_opening_that_breaks_off(dialled):
    near, agent = dialled
    await near.write((9).to_bytes(4) + b"short")
    near.send_eof()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(EndOfStream):
            await stepped_aside(agent)


async def test_a_proxy_that_goes_on_behind_the_opening(dial_back):
    near, agent = dial_back
    await near.write((5).to_bytes(4) + b"first" + b"select 1")
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(FrameError, match="more came than an opening"):
            await stepped_aside(agent)


async def test_an_agent_that_talks_before(outer, dial_back):
    proxy, client = outer
    near, agent = dial_back
    await agent.write(b"unasked")
    async with patience() as group:
        group.create_task(aside(client))
        with pytest.raises(FrameError, match="more came than an opening"):
            await step_aside(proxy, near, b"x")
