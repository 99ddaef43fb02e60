"""The SSH proxy service: what it lets through, channel by channel, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import asyncssh
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from monoport.access.identity import Identity, Kind
from monoport.access.resources import Role, parse_document
from monoport.audit.log import MemoryLog
from monoport.net.memory import pair
from monoport.proxy import ssh as service
from monoport.proxy.connection import Connection
from monoport.proxy.plainssh import PlainSsh
from monoport.proxy.registry import Connections
from monoport.proxy.ssh import SshProxy
from monoport.proxy.tunnel import ReverseTunnels
from monoport.tunnel import dial, link
from monoport.tunnel.agent import Agent
from monoport.tunnel.channel import ChannelSession
from monoport.tunnel.reach import Proxy

from ..tunnel.world import CLUSTER, ROLE, Cas, World, node  # noqa: TID252

SOURCE = ("192.0.2.33", 40022)


class Shop(World):
    """A proxy with its SSH service, and what its users come with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        role = parse_document(ROLE)
        assert isinstance(role, Role)
        self.roles = {"access": role}
        self.audit = MemoryLog()
        self.connections = Connections()
        self.ssh = SshProxy(lambda: self.proxy_key, self.tunnels, self, self.audit)
        self.key = ec.generate_private_key(ec.SECP256R1())

    def certificate(self, name: str = "alice", logins: tuple[str, ...] = ("root",), hours: float = 1) -> str:
        expires = (datetime.now(UTC) + timedelta(hours=hours)).replace(microsecond=0)
        identity = Identity(
            Kind.USER, name, CLUSTER, ("access",), {"logins": logins}, principals=logins, expires=expires
        )
        return self.ca.sign(identity, self.key.public_key())

    def connection(self, stream) -> Connection:
        front = SimpleNamespace(connections=self.connections, cas=lambda: self.ca)
        return Connection("c-9", SOURCE, stream, front)  # type: ignore[arg-type]

    @asynccontextmanager
    async def signed_in(self, **options) -> AsyncIterator[link.ClientLink]:
        """A user's client, connected to the service."""
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = asyncssh.import_certificate(options.pop("certificate", None) or self.certificate())
        known = ([], [asyncssh.import_public_key(line) for line in self.ca.ssh_host], [])
        made = asyncssh.SSHClientConnectionOptions(
            **{
                "config": None,
                "host": "proxy.example.com",
                "username": "alice",
                "client_keys": [(asyncssh.import_private_key(pem), certificate)],
                "known_hosts": known,
                "agent_path": None,
                **options,
            }
        )
        ours, theirs = pair()
        self.last = self.connection(self.through(theirs))
        async with asyncio.TaskGroup() as group:
            self.serving = group.create_task(self.ssh.serve(self.last))
            async with link.calling(ours, made, link.ClientLink, ("proxy.example.com", 443)) as client:
                yield client


class PlainShop(Shop):
    """Its users come without TLS, where agents sign in too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ssh = PlainSsh(self.ssh, self.tunnels)


async def echo(preface, stream):
    await dial.accept(stream)
    await stream.write(f"{preface.host_id} {preface.source} {preface.connection}\n".encode())
    while data := await stream.read():
        await stream.write(data)
    stream.send_eof()


@pytest.fixture(params=[Shop, PlainShop], ids=["behind-tls", "plain"])
def shop(request) -> Shop:
    """The users' end is the same, whether ALPN has said that they come or only their certificate does."""
    found = request.param(Cas())
    found.listed = [node("n1", "web"), node("n2", "db")]
    return found


async def reach(client, host: str) -> bytes:
    session = ChannelSession()
    await client.create_connection(lambda: session, host, 3022, encoding=None)
    async with session.stream as stream:
        await stream.write(b"hallo")
        stream.send_eof()
        found = b""
        while data := await stream.read():
            found += data
        return found


@pytest.mark.parametrize("name", ["web", "web.example.com", "n1", "WEB", "web."])
async def test_a_node_by_every_name_and_any_port(shop, name):
    async with shop.running("n1", echo), shop.signed_in() as client:
        assert await reach(client, name) == b"n1 192.0.2.33:40022 c-9\nhallo"
    assert str(shop.last.identity) == "alice@example.com"
    assert shop.last.meter.bytes_in == 5


@pytest.mark.parametrize("username", ["root", "alice", "-", "whoever"])
async def test_the_name_on_this_hop_confers_nothing(shop, username):
    async with shop.running("n1", echo), shop.signed_in(username=username) as client:
        assert (await reach(client, "web")).startswith(b"n1 ")


class Told(asyncssh.SSHClient):
    """Keeps what the server says before it lets nobody in."""

    def __init__(self) -> None:
        self.said = ""

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self.said += msg


async def test_a_refused_certificate_gets_one_line_and_a_plain_key_none(shop):
    client = Told()
    pem = shop.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = asyncssh.import_private_key(pem)
    shop.ca, trusted = Cas(), shop.ca
    foreign = [(key, asyncssh.import_certificate(shop.certificate(name))) for name in ("alice", "bob")]
    shop.ca = trusted
    with capture_logs() as logged, pytest.raises(ExceptionGroup) as caught:
        async with shop.signed_in(client_keys=[key, *foreign], client_factory=lambda: client):
            pass
    assert caught.group_contains(asyncssh.PermissionDenied)
    assert (
        client.said
        == "certificate refused: certificate was not signed by a user CA of this cluster [connection c-9]\r\n"
    )
    reasons = [line["reason"] for line in logged if line["event"] == "certificate refused"]
    assert reasons == ["certificate was not signed by a user CA of this cluster"] * 2


async def test_a_user_without_logins_signs_in_but_reaches_nothing(shop):
    identity = Identity(
        Kind.USER,
        "eve",
        CLUSTER,
        ("access",),
        {},
        expires=(datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0),
    )
    certificate = shop.ca.sign(identity, shop.key.public_key(), principals=("-monoport-no-login",))
    async with shop.running("n1", echo), shop.signed_in(certificate=certificate) as client:
        with pytest.raises(asyncssh.ChannelOpenError, match="access to node"):
            await reach(client, "web")


async def test_unknown_offline_and_denied_are_told_apart_and_only_the_log_says_why(shop):
    async with shop.signed_in() as client:
        with pytest.raises(
            asyncssh.ChannelOpenError, match=r'^node "nowhere" is unknown: tsh ls lists.* \[connection c-9\]$'
        ):
            await reach(client, "nowhere")
        with pytest.raises(asyncssh.ChannelOpenError, match=r'^node "web" is offline \[connection c-9\]$'):
            await reach(client, "web")
        shop.roles.clear()
        with pytest.raises(
            asyncssh.ChannelOpenError, match=r'^access to node "web" denied \[connection c-9\]$'
        ) as caught:
            await reach(client, "web")
    assert caught.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
    (event,) = shop.audit.events
    assert event.type == "session.deny"
    assert (event.fields["user"], event.fields["connection"]) == ("alice@example.com", "c-9")
    assert "access" in str(event.fields["rule"])


async def test_the_agents_refusal_reaches_the_user(shop):
    async def refuse(preface, stream):
        raise dial.DialRefused(dial.DENIED, "this node is closed")

    async with shop.running("n1", refuse), shop.signed_in() as client:
        with pytest.raises(asyncssh.ChannelOpenError, match="this node is closed"):
            await reach(client, "web")


async def test_a_name_that_two_nodes_have(shop):
    shop.listed.append(node("n3", "web"))
    async with shop.signed_in() as client:
        with pytest.raises(asyncssh.ChannelOpenError, match="2 nodes are called web"):
            await reach(client, "web")
        async with shop.running("n3", echo):
            assert (await reach(client, "web")).startswith(b"n3 ")
            async with shop.running("n1", echo):
                with pytest.raises(asyncssh.ChannelOpenError, match="2 nodes are called web"):
                    await reach(client, "web")
                assert (await reach(client, "n1")).startswith(b"n1 ")


async def test_every_channel_is_decided_by_itself(shop):
    async with shop.running("n1", echo), shop.signed_in() as client:
        assert (await reach(client, "web")).startswith(b"n1 ")
        document = shop.roles["access"].model_dump(mode="json")
        document["spec"]["deny"]["node_labels"] = {"*": ["*"]}
        shop.roles["access"] = Role.model_validate(document)
        with pytest.raises(asyncssh.ChannelOpenError, match="denied"):
            await reach(client, "web")


async def test_nothing_else_is_served(shop):
    async with shop.signed_in() as client:
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.create_unix_connection(ChannelSession, "/run/docker.sock")
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(lambda *_: ChannelSession(), "", 0)
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_unix_server(ChannelSession, "/monoport/dial")
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.open_tun()
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.start_sftp_client()


@pytest.mark.parametrize("command", [None, "id"])
async def test_a_plain_ssh_gets_a_hint(shop, command):
    async with shop.signed_in() as client:
        found = await client.run(command, term_type=None if command else "xterm")
    assert found.exit_status == 1
    assert "tsh ssh" in found.stderr
    assert found.stdout == ""


async def test_certificates_that_do_not_hold(shop):
    good = shop.ca
    wrong = [
        Cas().sign(user(shop), shop.key.public_key()),
        Cas(user_key=good.host_key).sign(user(shop), shop.key.public_key()),
        good.sign(user(shop), shop.key.public_key(), principals=("root", "admin")),
        good.sign(user(shop), shop.key.public_key(), principals=()),
    ]
    for certificate in wrong:
        with pytest.raises(ExceptionGroup) as caught:
            async with shop.signed_in(certificate=certificate):
                pass
        assert caught.group_contains(asyncssh.PermissionDenied)
        assert shop.last.identity is None


def user(shop: Shop) -> Identity:
    return Identity(
        Kind.USER,
        "alice",
        CLUSTER,
        ("access",),
        {"logins": ("root",)},
        principals=("root",),
        expires=(datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0),
    )


async def test_the_end_of_the_certificate_ends_the_connection(shop):
    async with shop.running("n1", echo), shop.signed_in() as client:
        session = ChannelSession()
        await client.create_connection(lambda: session, "web", 22, encoding=None)
        assert shop.connections.sweep(datetime.now(UTC), ()) == 0
        assert shop.connections.sweep(datetime.now(UTC) + timedelta(hours=2), ()) == 1
        await client.wait_closed()
    assert shop.last.ended == "certificate expired"


async def test_channels_of_one_connection_are_limited(shop, monkeypatch):
    monkeypatch.setattr(service, "CHANNELS", 1)

    async def hold(preface, stream):
        await dial.accept(stream)
        await stream.wait_closed()

    async with shop.running("n1", hold), shop.signed_in() as client:
        session = ChannelSession()
        await client.create_connection(lambda: session, "web", 22, encoding=None)
        with pytest.raises(asyncssh.ChannelOpenError, match="more than 1"):
            await reach(client, "web")
        session.stream.abort()


async def test_silence_before_signing_in_is_limited(shop, monkeypatch):
    monkeypatch.setattr(link, "USER_LOGIN", 0.05)
    ours, theirs = pair()
    await shop.ssh.serve(shop.connection(theirs))
    assert theirs.lost
    ours.abort()


async def test_the_handler_of_tunnels_leases_the_agent(shop):
    key = shop.ca.host_pair("n1", ("node",), ("n1",))
    handler = ReverseTunnels(shop.tunnels)
    ours, theirs = pair()
    connection = shop.connection(theirs)

    async def connect():
        return ours

    async with asyncio.TaskGroup() as group:
        group.create_task(handler.serve(connection))
        agent = Agent(Proxy("proxy.example.com", 443), "n1", lambda: key, lambda: shop.ca, echo, connect=connect)
        running = group.create_task(agent.run())
        await agent.connected.wait()
        assert str(connection.identity) == "n1@example.com"
        shop.connections.sweep(datetime.now(UTC) + timedelta(hours=2), ())
        running.cancel()
    assert connection.ended == "certificate expired"


async def test_a_user_who_is_gone_without_a_word_is_noticed_within_30_s(shop, black_hole, clock):
    shop.through = black_hole.through
    async with shop.signed_in() as client:
        await clock.forward(60)
        assert not client.is_closed()
        black_hole.swallow()
        await clock.forward(10)
        assert not shop.serving.done()
        await clock.forward(20)
        assert shop.serving.done()


async def test_the_proxy_itself_gives_no_files_to_anybody(shop):
    async with shop.signed_in() as client:
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.start_sftp_client()
        for command in ("scp -f /etc/shadow", "scp -f ../../etc/shadow", "scp -t /tmp", "cat /etc/passwd"):
            found = await client.run(command)
            assert (found.exit_status, found.stdout) == (1, "")
            assert "this is the proxy" in found.stderr
