"""Data connections that agents open because the tunnel asked: who may, how often, and what serves where they do not."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncssh
import pytest
from structlog.testing import capture_logs

from monoport.access.identity import Identity, Kind
from monoport.net.memory import pair
from monoport.net.stream import Stream
from monoport.tunnel import dial, dialback
from monoport.tunnel.dial import DialError, DialRefused
from monoport.tunnel.dialback import SPARES, FrameError, Orders, Tokens, Unexpected
from monoport.tunnel.preface import Kind as Wanted
from monoport.tunnel.preface import Preface
from monoport.tunnel.proxy import CHANNELS

from .world import CLUSTER, Cas, World, database, node, permit_for

LATER = datetime.now(UTC) + timedelta(hours=1)
ASKED = Preface("c-1", Wanted.DATABASE, "pg")


def db_host(name: str = "d1", roles: tuple[str, ...] = ("db",)) -> Identity:
    return Identity(Kind.HOST, name, CLUSTER, roles, expires=LATER)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Backs:
    """The agents' way back to the proxy, in memory: what the dial-back row's handler does."""

    def __init__(self, world: World, identity: Identity | None = None) -> None:
        self.world = world
        self.identity = identity or db_host()
        self.names: list[str] = []
        self.proxies: list[Stream] = []
        self.fault: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def __call__(self, server_name: str) -> Stream:
        self.names.append(server_name)
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        ours, theirs = pair()
        self.proxies.append(theirs)
        self.world.tunnels.dialled_back(server_name.partition(".")[0], self.identity, theirs)
        return ours


@pytest.fixture
def world() -> World:
    found = World(Cas())
    found.stored = [database("pg", "d1")]
    return found


def running(
    world: World,
    handler: Callable[[Preface, Stream], Awaitable[None]],
    backs: Backs | None,
    roles: tuple[str, ...] = ("db",),
):
    key = world.ca.host_pair("d1", roles, ("d1", f"d1.{CLUSTER}"))
    return world.running("d1", handler, key=key, dial_back=backs)


async def echo(preface: Preface, stream: Stream) -> None:
    await dial.accept(stream)
    while data := await stream.read():
        await stream.write(data)


async def ordering(world: World) -> None:
    """Wait until the channel of orders is open."""
    while not any(row.channels for row in world.tunnels.agents()):  # noqa: ASYNC110  a turn of the loop at a time
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)


async def once(world: World) -> Stream:
    stream = await world.tunnels.dial(permit_for(world.stored[0]), ASKED)
    await stream.write(b"ping")
    assert await stream.read_exactly(4) == b"ping"
    return stream


async def test_a_database_session_has_a_connection_of_its_own_and_the_next_one_waits_ready(world):
    backs = Backs(world)
    async with running(world, echo, backs):
        await ordering(world)
        stream = await once(world)
        assert stream in backs.proxies
        assert all(name.endswith(".dial.teleport.cluster.local") for name in backs.names)
        assert len(backs.names) == len(set(backs.names)) == 1 + SPARES
        again = await once(world)  # no order is awaited: it was there
        assert again in backs.proxies
        assert again is not stream
        assert [row.channels for row in world.tunnels.agents()] == [1]  # the one over which orders are sent
        stream.close()
        again.close()


@pytest.mark.parametrize("roles", [("node",), ("db",)])
async def test_ssh_too_has_a_connection_of_its_own(world, roles):
    world.listed = [node("d1", "web")]
    backs = Backs(world, db_host(roles=roles))
    async with running(world, echo, backs, roles):
        await ordering(world)
        async with await world.tunnels.dial(permit_for(world.listed[0]), Preface("c", Wanted.SSH, "d1")) as stream:
            assert stream in backs.proxies
            await stream.write(b"ping")
            assert await stream.read_exactly(4) == b"ping"


async def test_what_carries_little_goes_through_the_tunnel(world):
    backs = Backs(world)
    async with running(world, echo, backs):
        await ordering(world)
        asked = Preface("c", Wanted.CANCEL, "pg", process_id=1, secret=b"secret")
        async with await world.tunnels.dial(permit_for(world.stored[0]), asked) as stream:
            await stream.write(b"ping")
            assert await stream.read_exactly(4) == b"ping"
        assert not backs.names


async def test_a_session_outlives_its_tunnel(world):
    backs = Backs(world)
    async with running(world, echo, backs):
        await ordering(world)
        stream = await once(world)
        for served in world.served:
            served.abort()
        await stream.write(b"still")
        assert await stream.read_exactly(5) == b"still"
        stream.close()


async def test_a_refusal_comes_over_the_connection_dialled_back(world):
    async def refuse(preface, stream):
        raise DialRefused(dial.DENIED, "not you")

    async with running(world, refuse, Backs(world)):
        await ordering(world)
        with pytest.raises(DialError, match="not you") as caught:
            await world.tunnels.dial(permit_for(world.stored[0]), ASKED)
        assert caught.value.code == dial.DENIED


async def test_a_channel_serves_where_the_agent_cannot_dial_and_it_is_not_asked_again_at_once(world):
    backs = Backs(world)
    backs.fault = ConnectionRefusedError("no way there")
    async with running(world, echo, backs):
        await ordering(world)
        with capture_logs() as logs:
            first = await once(world)
        assert first not in backs.proxies
        assert "no way there" in str(logs)
        asked = len(backs.names)
        second = await once(world)
        assert second not in backs.proxies
        assert len(backs.names) == asked
        first.close()
        second.close()


async def test_an_agent_that_does_not_come_in_time_is_given_up(world, monkeypatch):
    monkeypatch.setattr(dialback, "WAIT_SECONDS", 0.01)
    backs = Backs(world)
    backs.gate = asyncio.Event()
    async with running(world, echo, backs):
        await ordering(world)
        with capture_logs() as logs:
            stream = await once(world)
        assert stream not in backs.proxies
        assert [one["connection"] for one in logs if one["event"] == "no dial-back in time"] == [ASKED.connection]
        backs.gate.set()
        stream.close()


async def test_an_agent_without_a_way_back_serves_by_channels(world):
    async with running(world, echo, None):
        async with await once(world) as stream:
            assert stream is not None
        assert [row.channels for row in world.tunnels.agents()] == [0]


async def test_a_spare_that_has_died_is_no_failure(world):
    backs = Backs(world)
    async with running(world, echo, backs):
        await ordering(world)
        stream = await once(world)
        for spare in backs.proxies:
            if spare is not stream:
                spare.abort()
        again = await once(world)
        stream.close()
        again.close()


async def test_spares_are_dropped_when_nobody_asks_any_more(world, monkeypatch):
    monkeypatch.setattr(dialback, "SPARE_SECONDS", 0.01)
    backs = Backs(world)
    async with running(world, echo, backs):
        await ordering(world)
        stream = await once(world)
        for spare in backs.proxies:
            if spare is not stream:
                await spare.wait_closed()
        stream.close()


@pytest.mark.parametrize(
    "identity", [db_host("d2"), db_host(roles=("proxy",)), Identity(Kind.USER, "d1", CLUSTER, ("db",), expires=LATER)]
)
async def test_only_the_agent_that_was_asked_may_come(world, identity, monkeypatch):
    monkeypatch.setattr(dialback, "WAIT_SECONDS", 0.01)
    backs = Backs(world, identity)
    turned_away = []
    redeem = world.tunnels.dialled_back

    def watched(token: str, identity: Identity, stream: Stream) -> None:
        try:
            redeem(token, identity, stream)
        except Unexpected as error:
            turned_away.append(str(error))
            raise ConnectionResetError("turned away") from error

    monkeypatch.setattr(world.tunnels, "dialled_back", watched)
    async with running(world, echo, backs):
        await ordering(world)
        stream = await once(world)
        assert stream not in backs.proxies
        assert turned_away
        stream.close()


def test_tokens_are_good_once_in_time_and_for_one_host():
    clock = Clock()
    tokens = Tokens(clock)
    orders = Orders("d1", tokens, clock)
    token = tokens.issue(orders)
    assert dial.TOKEN.fullmatch(token)
    assert tokens.redeem(token, "d1") is orders
    with pytest.raises(Unexpected, match="no dial-back is awaited"):
        tokens.redeem(token, "d1")
    token = tokens.issue(orders)
    with pytest.raises(Unexpected, match="d1 was awaited, d2 came"):
        tokens.redeem(token, "d2")
    with pytest.raises(Unexpected, match="no dial-back"):  # used up by the wrong host
        tokens.redeem(token, "d1")
    token = tokens.issue(orders)
    clock.now += dialback.TOKEN_SECONDS
    with pytest.raises(Unexpected, match="more than 10 s"):
        tokens.redeem(token, "d1")


def test_tokens_that_nobody_came_with_are_forgotten():
    clock = Clock()
    tokens = Tokens(clock)
    orders = Orders("d1", tokens, clock)
    for _ in range(100):
        tokens.issue(orders)
    clock.now += dialback.TOKEN_SECONDS
    tokens.issue(orders)
    assert len(tokens) == 1


@pytest.mark.parametrize("frame", [{}, {"dial": 7}, {"dial": "x" * 32}, {"dial": "a" * 31}, {"dial": "../" + "a" * 29}])
async def test_an_order_that_is_none_ends_the_channel_of_orders(frame):
    from monoport.wire.frame import FrameError, encode

    ours, theirs = pair()
    await theirs.write(encode(frame))
    with pytest.raises(FrameError):
        await dial.ordered(ours)


async def test_an_agent_dials_no_more_than_its_limit(world, monkeypatch):
    backs = Backs(world)
    async with running(world, echo, backs) as agent:
        await ordering(world)
        monkeypatch.setattr(agent, "_channels", CHANNELS)
        with pytest.raises(DialError):  # nor does it take a channel
            await once(world)
        assert not backs.names


async def test_an_agent_cannot_report_more_failures_than_it_has_orders():
    clock = Clock()
    orders = Orders("d1", Tokens(clock), clock)
    ours, theirs = pair()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        serving = group.create_task(_raised(orders.serve(ours)))
        asking = group.create_task(orders.connection("c1"))
        for _ in range(1 + SPARES):
            await dial.ordered(theirs)
        for _ in range(1 + SPARES):
            dial.failed(theirs, "no way")
        assert await asking is None
        assert not serving.done()
        dial.failed(theirs, "no way")
    assert "more failures than orders" in str(serving.result())


async def _raised(work: Awaitable[None]) -> FrameError:
    with pytest.raises(FrameError) as raised:
        await work
    return raised.value


async def test_orders_are_opened_again_when_their_channel_could_not_be_or_has_ended(world):
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    world.tunnels._sleep = sleep
    refused = 0
    backs = Backs(world)
    async with running(world, echo, backs) as agent:
        opened = agent._opened

        def shy(*arguments: object) -> object:
            nonlocal refused
            refused += 1
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "not yet")

        await ordering(world)
        tunnel = world.tunnels._tunnels["d1"][0]
        agent._opened = shy
        tunnel.orders._control.abort()
        while refused < 3:  # noqa: ASYNC110  a turn of the loop at a time
            await asyncio.sleep(0)
        agent._opened = opened
        while tunnel.orders._control is None or tunnel.orders._control.lost:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert pauses[0] == 0.05
        assert pauses == sorted(pauses)
