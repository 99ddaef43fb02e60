"""A proxy dials through an agent's tunnel, over memory."""

import pytest

from monoport.tunnel import dial
from monoport.tunnel.dial import DialError, DialRefused
from monoport.tunnel.preface import Kind, Preface

PREFACE = Preface(connection="c-1", kind=Kind.SSH, target="n1", certificate="x" * 3000, source="192.0.2.1:5")


async def test_bytes_go_both_ways_and_each_direction_ends_by_itself(world, permit):
    seen = []

    async def echo(preface, stream):
        seen.append(preface)
        await dial.accept(stream)
        total = b""
        while data := await stream.read():
            total += data
        await stream.write(total[::-1])
        stream.send_eof()

    async with world.running("n1", echo):
        stream = await world.tunnels.dial(permit, PREFACE)
        await stream.write(b"abc" * 100_000)
        stream.send_eof()
        answer = await stream.read_exactly(300_000)
        assert answer == (b"abc" * 100_000)[::-1]
        assert await stream.read() == b""
        stream.close()
        await stream.wait_closed()
    assert [(one.connection, one.host_id, one.certificate) for one in seen] == [("c-1", "n1", "x" * 3000)]


async def test_refusal_reaches_the_caller_in_its_own_words(world, permit):
    async def refuse(preface, stream):
        raise DialRefused(dial.DENIED, "login root is not allowed")

    async with world.running("n1", refuse):
        with pytest.raises(DialError, match="login root is not allowed"):
            await world.tunnels.dial(permit, PREFACE)


async def test_a_node_without_a_tunnel_is_offline(world, permit):
    with pytest.raises(DialError, match=r'^node "web" is offline$'):
        await world.tunnels.dial(permit, PREFACE)
