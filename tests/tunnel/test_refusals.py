"""What a tunnel does not do: wrong certificates, other requests, garbage, silence."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncssh
import pytest

from monoport.access.resources import parse_document
from monoport.net.memory import pair
from monoport.tunnel import dial, link
from monoport.tunnel import proxy as proxy_module
from monoport.tunnel.admission import LISTENER
from monoport.tunnel.channel import ChannelSession
from monoport.tunnel.dial import DialError
from monoport.tunnel.preface import Kind, Preface
from monoport.tunnel.reach import Proxy, ProxyClient, ProxyLink
from monoport.wire import frame

from .world import Cas, World, database, node, permit_for

PREFACE = Preface(connection="c-1", kind=Kind.SSH, target="n1")


async def nothing(preface, stream):
    await dial.accept(stream)


class Pauses:
    """A sleep that remembers how long it was asked for, and stops the agent after some."""

    def __init__(self, count: int) -> None:
        self.asked: list[float] = []
        self._count = count

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        if len(self.asked) >= self._count:
            raise asyncio.CancelledError


async def turned_away(world: World, name: str = "n1", **options) -> Pauses:
    """Run an agent that must not get its tunnel, for three attempts."""
    pauses = Pauses(3)
    async with asyncio.TaskGroup() as group:
        agent = world.agent(group, name, nothing, sleep=pauses, rand=lambda: 1.0, **options)
        running = group.create_task(agent.run())
        await asyncio.wait((running,))
        assert running.cancelled()
        assert not agent.connected.is_set()
        for stream in world.served:
            stream.abort()
    assert world.tunnels.agents() == []
    return pauses


async def test_pauses_grow_with_full_jitter_up_to_a_limit(world):
    world.up = False
    pauses = Pauses(8)
    drawn = iter([1.0, 0.5, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    async with asyncio.TaskGroup() as group:
        agent = world.agent(group, "n1", nothing, sleep=pauses, rand=lambda: next(drawn))
        await asyncio.wait((group.create_task(agent.run()),))
    assert pauses.asked == [1.0, 1.0, 4.0, 0.0, 5.0, 5.0, 5.0, 5.0]


async def test_an_agent_comes_back_at_once_after_a_long_tunnel(world, permit):
    now = 0.0
    pauses: list[float] = []
    dropped = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        dropped.set()
        await asyncio.sleep(0)

    async with world.running("n1", nothing, sleep=sleep, rand=lambda: 1.0, clock=lambda: now) as agent:
        now = 60.0
        world.served[0].abort()
        await dropped.wait()
        async with asyncio.timeout(10):
            await agent.connected.wait()
        (await world.tunnels.dial(permit, PREFACE)).abort()
    assert pauses[0] == 0.5


@pytest.mark.parametrize(
    "wrong", ["other ca", "user ca", "name", "role", "locked", "expired"], ids=lambda wrong: wrong.replace(" ", "-")
)
async def test_agents_that_are_not_let_in(world, wrong):
    key = world.ca.host_pair("n1", ("node",), ("n1",))
    match wrong:
        case "other ca":
            key = Cas().host_pair("n1", ("node",), ("n1",))
        case "user ca":
            impostor = Cas(host_key=world.ca.user_key)
            key = impostor.host_pair("n1", ("node",), ("n1",))
        case "name":
            key = world.ca.host_pair("n2", ("node",), ("n2", "n1"))
        case "role":
            key = world.ca.host_pair("n1", ("proxy",), ("n1",))
        case "locked":
            document = {"kind": "lock", "version": "v1", "metadata": {"name": "l"}, "spec": {"target": {"node": "n1"}}}
            world.locked.append(parse_document(document))
        case _:
            world.tunnels._now = lambda: datetime.now(UTC) + timedelta(hours=2)
    await turned_away(world, key=key)


@pytest.mark.parametrize("wrong", ["other ca", "name", "role"], ids=lambda wrong: wrong.replace(" ", "-"))
async def test_proxies_that_agents_do_not_believe(wrong):
    match wrong:
        case "other ca":
            world = World(Cas())
            world.proxy_key = Cas().host_pair("proxy-1", ("proxy",), ("proxy.example.com",))
        case "name":
            world = World(Cas(), proxy_names=("other.example.com",))
        case _:
            world = World(Cas(), proxy_roles=("node",))
    await turned_away(world)


async def agents_end(world: World, group: asyncio.TaskGroup):
    """An agent's SSH connection in the hands of the test."""
    stream = await world.connector(group)()
    agent = world.agent(group, "n1", nothing)
    where = Proxy("proxy.example.com", 443)
    options = agent._options(ProxyClient(world.ca, where, lambda: datetime.now(UTC)))
    return link.calling(stream, options, ProxyLink, ("proxy.example.com", 443))


async def test_an_agent_may_ask_for_its_one_listener_and_nothing_else(world):
    async with asyncio.TaskGroup() as group:
        async with await agents_end(world, group) as made:
            with pytest.raises(asyncssh.ChannelListenError):
                await made.create_unix_server(ChannelSession, "/etc/other")
            await made.create_unix_server(ChannelSession, LISTENER)
            with pytest.raises(asyncssh.ChannelListenError):
                await made.create_unix_server(ChannelSession, LISTENER)
            with pytest.raises(asyncssh.ChannelListenError):
                await made.create_server(lambda *_: ChannelSession(), "127.0.0.1", 0)
            with pytest.raises(asyncssh.ChannelOpenError):
                await made.create_connection(ChannelSession, "127.0.0.1", 22)
            with pytest.raises(asyncssh.ChannelOpenError):
                await made.create_unix_connection(ChannelSession, "/run/docker.sock")
            with pytest.raises(asyncssh.ChannelOpenError):
                await made.run("id")
            with pytest.raises(asyncssh.ChannelOpenError):
                await made.start_sftp_client()
            with pytest.raises(asyncssh.ChannelOpenError):
                await made.open_tun()
        for stream in world.served:
            stream.abort()


async def test_an_agent_takes_no_channel_but_the_one_it_asked_for(world):
    async with world.running("n1", nothing):
        (tunnel,) = world.tunnels._tunnels["n1"]
        made = tunnel.link
        with pytest.raises(asyncssh.ChannelOpenError):
            await made.create_unix_connection(ChannelSession, "/other")
        with pytest.raises(asyncssh.ChannelOpenError):
            await made.create_connection(ChannelSession, "127.0.0.1", 22)
        with pytest.raises(asyncssh.ChannelOpenError):
            await made.create_agent_channel().open(ChannelSession)
        with pytest.raises(asyncssh.ChannelOpenError):
            await made.create_x11_channel().open(ChannelSession, "x", 0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n",
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        frame.encode({}),
        frame.encode({"version": 2}),
        frame.encode({"version": 1, "kind": "ssh"}),
        frame.encode({"version": 1, "kind": "shell", "connection": "c", "target": "t", "host_id": "n1"}),
        b"\0\0\0\x04[1]\n",
    ],
)
async def test_garbage_for_a_preface_ends_that_stream_only(world, permit, garbage):
    async with world.running("n1", nothing):
        (tunnel,) = world.tunnels._tunnels["n1"]
        session = ChannelSession()
        await tunnel.link.create_unix_connection(lambda: session, LISTENER, encoding=None)
        await session.stream.write(garbage)
        with pytest.raises(ConnectionError):
            await session.stream.read()
        (await world.tunnels.dial(permit, PREFACE)).abort()


async def test_a_preface_that_does_not_come_is_not_awaited_for_ever(world, permit, monkeypatch):
    monkeypatch.setattr(dial, "PREFACE_SECONDS", 0.05)
    monkeypatch.setattr(dial.receive, "__defaults__", (0.05,))
    async with world.running("n1", nothing):
        (tunnel,) = world.tunnels._tunnels["n1"]
        session = ChannelSession()
        await tunnel.link.create_unix_connection(lambda: session, LISTENER, encoding=None)
        with pytest.raises(ConnectionError):
            await session.stream.read()


async def test_an_agent_that_does_not_answer_is_given_up(world, permit, monkeypatch):
    monkeypatch.setattr(dial.ask, "__defaults__", (0.05,))
    started = asyncio.Event()

    async def silent(preface, stream):
        started.set()
        await stream.wait_closed()

    async with world.running("n1", silent):
        with pytest.raises(DialError, match=r'node "web": the agent did not answer'):
            await world.tunnels.dial(permit, PREFACE)
        assert started.is_set()
        assert world.tunnels.agents()[0].channels == 1  # until the agent has heard of it
        (tunnel,) = world.tunnels._tunnels["n1"]
        async with asyncio.timeout(10):
            while tunnel.channels:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_only_the_host_that_registered_a_resource_is_dialled(world):
    stranger = permit_for(node("n9", "web"))
    async with world.running("n1", nothing):
        with pytest.raises(DialError, match=r'^node "n9" is unknown$'):
            await world.tunnels.dial(stranger, replace(PREFACE, target="n9"))
        with pytest.raises(DialError, match=r"unknown"):
            await world.tunnels.dial(permit_for(world.listed[0]), replace(PREFACE, kind=Kind.DATABASE))


async def test_an_agent_that_is_down_is_said_and_another_can_be_asked(world):
    served: list[str] = []

    async def serve(preface, stream):
        served.append(preface.host_id)
        await dial.accept(stream)

    world.stored = [database("pg", "n1"), database("pg", "n2")]
    here, there = map(permit_for, world.stored)
    async with world.running("n2", serve):
        wanted = Preface("c-1", Kind.DATABASE, "pg")
        with pytest.raises(DialError, match=r'^database "pg" is offline$'):
            await world.tunnels.dial(here, wanted)
        (await world.tunnels.dial(there, wanted)).abort()
        assert served.pop() == "n2"
        with pytest.raises(DialError, match=r'^node "web" is offline$'):
            await world.tunnels.dial(permit_for(world.listed[0]), PREFACE)
        assert served == []


async def test_a_newer_tunnel_of_the_same_host_is_asked_first(world, permit):
    asked: list[str] = []

    def handler(name):
        async def serve(preface, stream):
            asked.append(name)
            await dial.accept(stream)

        return serve

    async with world.running("n1", handler("old")), world.running("n1", handler("new")):
        (await world.tunnels.dial(permit, PREFACE)).abort()
        assert len(world.tunnels.agents()) == 2
    assert asked == ["new"]


async def test_an_older_tunnel_is_tried_where_the_newer_does_not_serve(world, permit):
    async def other(preface, stream):
        raise dial.DialRefused(dial.NOT_SERVED, "not here")

    async with world.running("n1", nothing), world.running("n1", other):
        (await world.tunnels.dial(permit, PREFACE)).abort()


async def test_a_cancelled_dial_leaves_no_channel(world, permit):
    async def never(preface, stream):
        await stream.wait_closed()

    async with world.running("n1", never):
        (tunnel,) = world.tunnels._tunnels["n1"]
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            dialling = group.create_task(world.tunnels.dial(permit, PREFACE))
            while not tunnel.channels:  # noqa: ASYNC110
                await asyncio.sleep(0)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            while tunnel.channels:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_channels_of_one_tunnel_are_limited(world, permit, monkeypatch):
    monkeypatch.setattr(proxy_module, "CHANNELS", 2)
    async with world.running("n1", hold):
        held = [await world.tunnels.dial(permit, PREFACE) for _ in range(2)]
        with pytest.raises(DialError, match="already serves 2 connections"):
            await world.tunnels.dial(permit, PREFACE)
        for stream in held:
            stream.abort()


async def hold(preface, stream):
    await dial.accept(stream)
    await stream.wait_closed()


async def test_a_silent_agent_is_noticed(world, permit, monkeypatch):
    monkeypatch.setattr(proxy_module, "KEEPALIVE", 0.02)
    async with world.running("n1", hold):
        world.served[0].pause_reading()  # as when its machine has lost power
        async with asyncio.timeout(10):
            while world.tunnels.agents():  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_silence_before_authentication_is_limited(world, monkeypatch):
    monkeypatch.setattr(link, "AGENT_LOGIN", 0.05)
    ours, theirs = pair()
    await world.tunnels.serve(theirs, source=("192.0.2.1", 1), connection="c-1")
    assert theirs.lost
    ours.abort()


@pytest.mark.parametrize("garbage", [b"", b"SSH-2.0-x\r\n", b"\x16\x03\x01" * 400, b"SSH-1.5-old\r\n", b"x" * 9000])
async def test_garbage_in_place_of_ssh(world, garbage):
    ours, theirs = pair()
    async with asyncio.TaskGroup() as group:
        group.create_task(world.tunnels.serve(theirs, source=("192.0.2.1", 1), connection="c-1"))
        await ours.write(garbage)
        ours.send_eof()
    ours.abort()
    assert world.tunnels.agents() == []


async def test_turning_an_agent_away_after_it_was_identified(world):
    def no(identity):
        raise ConnectionRefusedError(f"{identity} is not wanted")

    world.identified = no
    await turned_away(world)
