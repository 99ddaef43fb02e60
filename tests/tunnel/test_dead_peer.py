"""Both ends of a tunnel notice within 30 s that the other is gone without a word."""

import asyncio

from monoport.tunnel import dial


async def test_both_ends_of_a_tunnel_notice_a_dead_line(world, black_hole, clock):
    async def hold(preface, stream):
        await dial.accept(stream)
        await stream.read()

    pauses = asyncio.Event()

    async def stay_away(_seconds):
        pauses.set()
        await asyncio.Event().wait()

    world.through = black_hole.through
    async with world.running("n1", hold, sleep=stay_away) as agent:
        await clock.forward(60)
        assert agent.connected.is_set()
        assert [row.host_id for row in world.tunnels.agents()] == ["n1"]
        black_hole.swallow()
        await clock.forward(30)
        assert pauses.is_set()
        assert not agent.connected.is_set()
        assert world.tunnels.agents() == []
