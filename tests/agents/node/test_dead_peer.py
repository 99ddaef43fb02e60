"""A client that is gone without a word is noticed within 30 s; one that is only silent is left alone."""


async def test_a_client_that_is_gone_without_a_word_is_noticed_within_30_s(world, black_hole, clock):
    world.through = black_hole.through
    async with world.connected() as client:
        await client.create_process("sleep 1000")
        await world.event("session.start")
        await clock.forward(60)
        assert world.node.connections == 1  # it answers every probe
        black_hole.swallow()
        await clock.forward(10)
        assert world.node.connections == 1
        await clock.forward(20)
        await world.until(lambda: world.node.connections == 0)
        await world.event("session.end")
        black_hole.cut()
    assert [event["exit"] for event in world.events("session.end")] == ["disconnected"]
