"""Heartbeats, the watch and the cache: who may say what, who is told what, and what survives auth going away."""

import asyncio

import pytest

from monoport.auth.cache import Cache
from monoport.auth.client import AuthError, AuthUnavailable, Cas, Put, Ready, Removed
from monoport.auth.inventory import MAX_PER_HOST, TTL
from monoport.auth.refusals import Forbidden, Invalid


@pytest.fixture
def beat(world):
    return world.auth.service.heartbeat


class TestHeartbeats:
    async def test_a_node_is_there_until_it_falls_silent(self, world, beat, make_node, clock):
        host = await world.joined("node", "h1", ["one"])
        await beat(host, make_node("h1", "one"))
        clock.advance(seconds=TTL.total_seconds() - 1)
        assert len(await world.auth.administration.list(world.admin, "node")) == 1
        await beat(host, make_node("h1", "one"))
        clock.advance(seconds=TTL.total_seconds() - 1)
        assert len(await world.auth.administration.list(world.admin, "node")) == 1
        clock.advance(seconds=2)
        assert await world.auth.administration.list(world.admin, "node") == ()

    async def test_hosts_speak_only_for_themselves(self, world, beat, make_node, make_database, make_role):
        host = await world.joined("node", "h1", ["one"])
        for resource in (make_node("h2", "one"), make_node("h1", "another-host"), make_database("prod", "h1")):
            with pytest.raises(Forbidden):
                await beat(host, resource)
        with pytest.raises(Forbidden):
            await beat(await world.joined("db", "d1"), make_database("prod", "d2"))
        with pytest.raises(Forbidden):
            await beat(await world.joined("db", "d1", ["one"]), make_node("d1", "one"))
        with pytest.raises(Invalid):
            await beat(host, make_role("root"))

    async def test_two_agents_may_serve_one_database(self, world, beat, make_database):
        for host_id in ("d1", "d2"):
            await beat(await world.joined("db", host_id), make_database("prod", host_id))
        found = await world.auth.administration.list(world.admin, "db")
        assert [(one.name, one.spec.host_id) for one in found] == [("prod", "d1"), ("prod", "d2")]

    async def test_one_agent_cannot_register_without_end(self, world, beat, make_database):
        host = await world.joined("db", "d1")
        for number in range(MAX_PER_HOST):
            await beat(host, make_database(f"db{number}", "d1"))
        with pytest.raises(Invalid, match="at most"):
            await beat(host, make_database("one-more", "d1"))
        await beat(await world.joined("db", "d2"), make_database("one-more", "d2"))

    async def test_repeating_oneself_writes_nothing_but_news_does(self, world, beat, make_node):
        host = await world.joined("node", "h1", ["one"])
        await beat(host, make_node("h1", "one"))
        before = (await world.auth._storage.snapshot("/resources")).revision
        await beat(host, make_node("h1", "one"))
        assert (await world.auth._storage.snapshot("/resources")).revision == before
        await beat(host, make_node("h1", "one", env="new"))
        assert (await world.auth._storage.snapshot("/resources")).revision == before + 1


async def until_ready(changes):
    """The changes up to Ready."""
    seen = []
    async for change in changes:
        if isinstance(change, Ready):
            return seen
        seen.append(change)
    raise AssertionError("the watch ended before it was ready")


class TestWatch:
    async def test_a_proxy_gets_the_snapshot_then_every_change(self, world, beat, make_node, make_lock):
        await beat(await world.joined("node", "h1", ["one"]), make_node("h1", "one"))
        proxy, _ = await world.host_client("proxy", "front")
        changes = proxy.watch()
        seen = await until_ready(changes)
        assert seen[0] == Cas(world.auth.cas)
        names = {(one.resource.kind, one.resource.name) for one in seen if isinstance(one, Put)}
        assert names == {("role", "access"), ("role", "auditor"), ("role", "editor"), ("node", "h1")}
        await world.put(make_lock("stop", user="mallory"))
        assert (await anext(changes)).resource.name == "stop"
        await world.auth.administration.delete(world.admin, "lock", "stop")
        assert await anext(changes) == Removed("lock", "stop")
        world.clock.advance(minutes=2)
        await world.auth.tick()
        assert await anext(changes) == Removed("node", "h1")
        await changes.aclose()

    async def test_an_agent_is_not_told_of_other_resources_and_nobody_of_users_or_tokens(
        self, world, beat, make_node, make_lock
    ):
        await beat(await world.joined("node", "h1", ["one"]), make_node("h1", "one"))
        agent, _ = await world.host_client("db", "agent")
        changes = agent.watch()
        seen = await until_ready(changes)
        assert {one.resource.kind for one in seen if isinstance(one, Put)} == {"role"}
        await world.add_user("mallory")
        await beat(await world.joined("node", "h2", ["two"]), make_node("h2", "two"))
        await world.put(make_lock("stop", user="mallory"))
        assert (await anext(changes)).resource.name == "stop", "nothing else came before it"
        await changes.aclose()

    async def test_a_user_may_not_watch(self, world):
        await world.add_user()
        alice = await world.user_client()
        with pytest.raises(AuthError) as refused:
            await until_ready(alice.watch())
        assert refused.value.code == "access_denied"

    async def test_a_quiet_watch_says_that_it_lives(self, world):
        from monoport.auth import api

        app = api.build(world.auth.service, world.auth.administration, world.auth.recordings, sign_of_life=0.01)
        lines = asyncio.Queue()

        async def receive():
            await asyncio.Event().wait()

        async def send(message):
            await lines.put(message.get("body", b""))

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/watch",
            "query_string": b"",
            "headers": [],
            "root_path": "",
        }
        task = world.group.create_task(
            app({**scope, "raw_path": b"", "state": {"identity": world.host("proxy")}}, receive, send)
        )
        while b'"alive"' not in await lines.get():
            continue
        task.cancel()


class Script:
    """A client whose watches are scripted: each ends with an error, the last never does."""

    def __init__(self, *watches):
        self.watches = list(watches)
        self.hold = asyncio.Event()

    async def watch(self):
        for change in self.watches.pop(0):
            yield change
        if not self.watches:
            await self.hold.wait()
        raise AuthUnavailable("gone")


class TestCache:
    async def test_it_follows_the_cluster(self, world, beat, make_node, make_database, make_lock):
        proxy, _ = await world.host_client("proxy", "front")
        cache = Cache(proxy)
        with pytest.raises(RuntimeError):
            cache.cas  # noqa: B018
        told = asyncio.Queue()
        stop = cache.subscribe(told.put_nowait)
        running = world.group.create_task(cache.run())
        await cache.ready.wait()
        assert set(cache.roles) == {"access", "auditor", "editor"}
        assert (cache.nodes(), cache.databases(), cache.locks, cache.cas) == ([], [], (), world.auth.cas)
        while not isinstance(await told.get(), Ready):
            continue
        await beat(await world.joined("node", "h1", ["one"]), make_node("h1", "one"))
        assert (await told.get()).resource.name == "h1"
        assert [one.spec.hostname for one in cache.nodes()] == ["one"]
        await beat(await world.joined("db", "d1"), make_database("prod", "d1"))
        await told.get()
        assert [one.name for one in cache.databases()] == ["prod"]
        await world.put(make_lock("stop", user="mallory"))
        await told.get()
        assert [one.name for one in cache.locks] == ["stop"]
        stop()
        running.cancel()

    async def test_it_keeps_the_last_state_while_auth_is_away_and_reconnects_with_growing_pauses(
        self, make_role, make_node
    ):
        one, two = make_role("one"), make_role("two")
        script = Script([Put(one), Put(make_node("h1", "a")), Ready()], [], [Put(two)], [Put(two), Ready()])
        pauses, states = [], []

        async def sleep(seconds):
            pauses.append(seconds)
            states.append((set(cache.roles), [node.name for node in cache.nodes()], cache.connected))

        cache = Cache(script, sleep=sleep, rand=lambda: 1.0)
        snapshots = asyncio.Queue()
        cache.subscribe(lambda change: snapshots.put_nowait(change) if isinstance(change, Ready) else None)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(cache.run())
            for _ in range(2):
                await snapshots.get()
            assert (set(cache.roles), cache.nodes(), cache.connected) == ({"two"}, [], True)
            running.cancel()
        assert states == [({"one"}, ["h1"], False)] * 3, "half a snapshot is never seen"
        assert pauses == sorted(pauses)
        assert pauses[0] < pauses[-1] <= 5.0

    async def test_it_survives_a_restart_of_the_service(self, tmp_path, clock, make_role):
        from monoport.auth.client import AuthClient, unix
        from monoport.auth.keys import Credentials
        from monoport.auth.local import LocalAuth

        from .conftest import CLUSTER, fast_hasher

        (tmp_path / "data").mkdir()
        cache = None
        for wave in range(3):
            local = await LocalAuth.open(tmp_path / "data", CLUSTER, now=clock, hasher=fast_hasher())
            async with local, asyncio.TaskGroup() as group:
                serving = group.create_task(local.run())
                await local.ready.wait()
                if cache is None:
                    pair, host = await local.admit("proxy", "front")
                    credentials = Credentials(host.certificate, pair.private, host.cas)
                    client = AuthClient(unix(tmp_path / "data" / "auth.sock"), credentials)
                    cache = Cache(client, sleep=lambda _: asyncio.sleep(0.001))
                    following = asyncio.get_running_loop().create_task(cache.run())
                ready = asyncio.Event()
                end = cache.subscribe(lambda change, ready=ready: ready.set() if isinstance(change, Ready) else None)
                await ready.wait()
                end()
                assert f"wave{wave - 1}" in cache.roles or wave == 0
                await local.administration.create(_admin(clock), make_role(f"wave{wave}"), False)
                serving.cancel()
            assert "access" in cache.roles, "auth is away and its last word stands"
        following.cancel()
        await asyncio.wait([following])
        await client.close()


def _admin(clock):
    from datetime import timedelta

    from monoport.access.identity import Identity, Kind

    return Identity(Kind.HOST, "admin.local", "example.com", roles=("admin",), expires=clock() + timedelta(days=1))
