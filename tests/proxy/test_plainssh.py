"""SSH without TLS: users and agents at one door, and nobody through the other's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncssh
import pytest
from cryptography.hazmat.primitives import serialization

from monoport.access.resources import parse_document
from monoport.net.memory import pair
from monoport.proxy.plainssh import PlainSsh
from monoport.routing.outcome import Ask, Kind, Route, Show, Tls, Trust
from monoport.tunnel import link
from monoport.tunnel.admission import LISTENER
from monoport.tunnel.agent import Agent
from monoport.tunnel.channel import ChannelSession
from monoport.tunnel.link import HostKey
from monoport.tunnel.reach import Proxy

from ..tunnel.world import Cas, node  # noqa: TID252
from .test_ssh import Shop, echo, reach

PLAIN = Route(Kind.SSH, "ssh-plain", None)
BEHIND_TLS = Route(Kind.SSH, "ssh", Tls(Show.CLUSTER, Ask.NONE, Trust.NONE, "teleport-proxy-ssh"))


class Door(Shop):
    """A proxy's port, and what comes to it by plain TCP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.door = PlainSsh(self.ssh, self.tunnels)
        self.route = PLAIN
        self.host = self.ca.host_pair("n1", ("node",), ("n1",))

    @property
    def user(self) -> tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]:
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return asyncssh.import_private_key(pem), asyncssh.import_certificate(self.certificate())

    @asynccontextmanager
    async def client(self, **how: object) -> AsyncIterator[link.ClientLink]:
        """A client that tries `client_host_keys` as a host and `client_keys` as a user, or what `how` says."""
        known = ([], [asyncssh.import_public_key(line) for line in self.ca.ssh_host], [])
        options = asyncssh.SSHClientConnectionOptions(
            **{
                "config": None,
                "host": "proxy.example.com",
                "username": "n1",
                "client_host": "n1",
                "client_username": "n1",
                "client_host_keysign": False,
                "client_keys": None,
                "known_hosts": known,
                "agent_path": None,
                "preferred_auth": "hostbased,publickey",
                **how,
            }
        )
        ours, theirs = pair()
        self.last = self.connection(theirs)
        self.last.route = self.route
        async with asyncio.TaskGroup() as group:
            group.create_task(self.door.serve(self.last))
            async with link.calling(ours, options, link.ClientLink, ("proxy.example.com", 443)) as made:
                yield made

    async def refuses(self, **how: object) -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with self.client(**how):
                pass
        assert caught.group_contains(asyncssh.PermissionDenied)
        assert self.last.identity is None
        assert self.tunnels.agents() == []

    @asynccontextmanager
    async def agent(self, key: HostKey | None = None) -> AsyncIterator[Agent]:
        """An agent as it is behind TLS too, over a plain stream; `last` is its connection."""
        ours, theirs = pair()
        self.last = self.connection(theirs)
        self.last.route = self.route

        async def connect():
            return ours

        where, host = Proxy("proxy.example.com", 3024), key or self.host
        agent = Agent(where, "n1", lambda: host, lambda: self.ca, echo, connect=connect)
        async with asyncio.TaskGroup() as group:
            serving, running = group.create_task(self.door.serve(self.last)), group.create_task(agent.run())
            async with asyncio.timeout(10):
                await agent.connected.wait()
            yield agent
            running.cancel()
            theirs.abort()
            await serving


@pytest.fixture
def door() -> Door:
    found = Door(Cas())
    found.listed = [node("n1", "web")]
    return found


def lying(pair_: tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]) -> asyncssh.SSHKeyPair:
    """A certificate in the hands of somebody who has not got its key."""
    found = next(one for one in asyncssh.load_keypairs([pair_]) if one.has_cert)
    stranger = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    found.sign = asyncssh.load_keypairs([stranger])[0].sign
    return found


async def as_user(door: Door, client: link.ClientLink) -> None:
    """What a user's connection is good for, and for nothing else."""
    assert str(door.last.identity) == "alice@example.com"
    assert door.last.route == door.route
    with pytest.raises(asyncssh.ChannelListenError):
        await client.create_unix_server(ChannelSession, LISTENER)
    assert (await client.run("id")).exit_status == 1


async def as_agent(door: Door, client: link.ClientLink) -> None:
    """What an agent's connection is good for, and for nothing else."""
    await client.create_unix_server(ChannelSession, LISTENER)
    assert str(door.last.identity) == "n1@example.com"
    assert (door.last.state, door.last.route.kind, door.last.route.rule) == (Kind.TUNNEL, Kind.TUNNEL, "ssh-plain")
    with pytest.raises(asyncssh.ChannelOpenError):
        await client.create_connection(ChannelSession, "web", 3022)
    with pytest.raises(asyncssh.ChannelOpenError):
        await client.create_unix_connection(ChannelSession, LISTENER)
    with pytest.raises(asyncssh.ChannelOpenError):
        await client.run("id")
    with pytest.raises(asyncssh.ChannelListenError):
        await client.create_server(lambda *_: ChannelSession(), "", 0)


async def test_a_user_reaches_a_node_whose_agent_came_by_the_same_door(door):
    async with door.agent():
        agents = door.last
        async with door.client(client_keys=[door.user]) as client:
            assert await reach(client, "web") == b"n1 192.0.2.33:40022 c-9\nhallo"
            await as_user(door, client)
        assert (str(agents.identity), agents.route.kind) == ("n1@example.com", Kind.TUNNEL)
    assert door.tunnels.agents() == []


async def test_a_host_is_served_as_a_host_alone(door):
    async with door.client(client_host_keys=[door.host.pair()]) as client:
        await as_agent(door, client)
        assert [row.host_id for row in door.tunnels.agents()] == ["n1"]


async def test_a_certificate_of_one_kind_is_not_good_for_the_other(door):
    """Not as a key where it is a host's, not as a host where it is a user's, whoever the CA is."""
    await door.refuses(client_keys=[door.host.pair()])
    await door.refuses(client_host_keys=[door.user])
    await door.refuses(client_host_keys=[door.user], client_keys=[door.host.pair()])
    crossed = Cas(user_key=door.ca.host_key, host_key=door.ca.user_key)
    await door.refuses(client_host_keys=[crossed.host_pair("n1", ("node",), ("n1",)).pair()])


async def test_who_fails_as_the_one_may_still_be_the_other(door):
    foreign = Cas().host_pair("n1", ("node",), ("n1",))
    async with door.agent(), door.client(client_host_keys=[foreign.pair()], client_keys=[door.user]) as client:
        assert (await reach(client, "web")).startswith(b"n1 ")
        await as_user(door, client)


async def test_a_certificate_that_was_only_shown_gives_nothing(door):
    """The proxy answers that it would take it; without its key the connection is that of what is proven then."""
    order = {"preferred_auth": "publickey,hostbased"}
    async with door.client(client_keys=[lying(door.user)], client_host_keys=[door.host.pair()], **order) as client:
        await as_agent(door, client)
    async with door.client(client_host_keys=[lying(door.host.pair())], client_keys=[door.user]) as client:
        await as_user(door, client)
        assert door.tunnels.agents() == []
    await door.refuses(client_keys=[lying(door.user)], client_host_keys=[lying(door.host.pair())])


async def test_a_name_of_users_in_alpn_lets_in_no_host(door):
    door.route = BEHIND_TLS
    await door.refuses(client_host_keys=[door.host.pair()])
    async with door.client(client_keys=[door.user]) as client:
        await as_user(door, client)


@pytest.mark.parametrize("ends", ["expired", "locked"])
async def test_an_agent_is_ended_by_its_expiry_or_a_lock(door, ends):
    lock = {"kind": "lock", "version": "v1", "metadata": {"name": "l"}, "spec": {"target": {"node": "n1"}}}
    later = datetime.now(UTC) + timedelta(hours=2)
    async with door.agent():
        async with asyncio.timeout(10):
            assert door.connections.sweep(datetime.now(UTC), ()) == 0
            if ends == "expired":
                assert door.connections.sweep(later, ()) == 1
            else:
                assert door.connections.sweep(datetime.now(UTC), [parse_document(lock)]) == 1
            while door.tunnels.agents():  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert ("expired" if ends == "expired" else "locked") in door.last.ended


async def test_both_kinds_of_try_share_one_limit(door, monkeypatch):
    monkeypatch.setattr(link, "ATTEMPTS", 2)
    foreign = [Cas().host_pair("n1", ("node",), ("n1",)).pair() for _ in range(2)]
    with pytest.raises(ExceptionGroup) as caught:
        async with door.client(client_host_keys=foreign, client_keys=[door.user]):
            pass
    assert caught.group_contains(asyncssh.DisconnectError, match="more than 2 attempts")


async def test_an_agent_that_asks_for_nothing_is_not_kept(door, monkeypatch):
    monkeypatch.setattr(link, "AGENT_LOGIN", 0.05)
    async with door.client(client_host_keys=[door.host.pair()]) as client:
        await client.wait_closed()
    assert door.last.ended
    assert door.tunnels.agents() == []
