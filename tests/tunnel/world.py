"""A cluster's SSH CAs in memory, and a proxy and an agent joined by memory streams."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import SSHCertificateBuilder, SSHCertificateType

from monoport.access.decide import DatabaseLogin, Permit, Ssh, authorize
from monoport.access.identity import SSH_EXTENSION, Identity, Kind, encode
from monoport.access.resources import Database, Lock, Node, Role, parse_document
from monoport.audit.log import MemoryLog
from monoport.net.memory import pair
from monoport.net.stream import Stream
from monoport.proxy.connection import Connection
from monoport.proxy.plainssh import PlainSsh
from monoport.proxy.registry import Connections
from monoport.proxy.ssh import SshProxy
from monoport.tunnel.agent import Agent, Handler
from monoport.tunnel.link import HostKey
from monoport.tunnel.proxy import Tunnels
from monoport.tunnel.reach import Proxy

CLUSTER = "example.com"
SOURCE = ("192.0.2.7", 4711)


def line(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@dataclass
class Cas:
    """A cluster's CAs, and what they sign."""

    cluster: str = CLUSTER
    host_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    user_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    user: tuple[str, ...] = ()
    host: tuple[str, ...] = ()

    @property
    def ssh_user(self) -> tuple[str, ...]:
        return (line(self.user_key),)

    @property
    def ssh_host(self) -> tuple[str, ...]:
        return (line(self.host_key),)

    def sign(
        self, identity: Identity, public: ec.EllipticCurvePublicKey, *, principals: tuple[str, ...] | None = None
    ) -> str:
        kind = SSHCertificateType.USER if identity.kind is Kind.USER else SSHCertificateType.HOST
        builder = (
            SSHCertificateBuilder()
            .public_key(public)
            .type(kind)
            .key_id(str(identity).encode())
            .serial(1)
            .valid_after(int(time.time()) - 60)
            .valid_before(int(identity.expires.timestamp()))
            .add_extension(SSH_EXTENSION.encode(), encode(identity))
        )
        named = identity.principals if principals is None else principals
        if named:
            builder = builder.valid_principals([name.encode() for name in named])
        else:
            builder = builder.valid_for_all_principals()
        key = self.user_key if identity.kind is Kind.USER else self.host_key
        return builder.sign(key).public_bytes().decode()

    def host_pair(self, name: str, roles: tuple[str, ...], principals: tuple[str, ...]) -> HostKey:
        key = ec.generate_private_key(ec.SECP256R1())
        expires = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
        identity = Identity(Kind.HOST, name, self.cluster, roles, principals=principals, expires=expires)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        return HostKey(pem, self.sign(identity, key.public_key()))


ROLE = {
    "kind": "role",
    "version": "v1",
    "metadata": {"name": "access"},
    "spec": {
        "allow": {
            "logins": ["{{internal.logins}}"],
            "node_labels": {"*": "*"},
            "db_labels": {"*": "*"},
            "db_users": ["*"],
            "db_names": ["*"],
        }
    },
}


def node(name: str, hostname: str) -> Node:
    found = parse_document(
        {"kind": "node", "version": "v1", "metadata": {"name": name}, "spec": {"hostname": hostname, "host_id": name}}
    )
    assert isinstance(found, Node)
    return found


def database(name: str, host_id: str) -> Database:
    found = parse_document(
        {
            "kind": "db",
            "version": "v1",
            "metadata": {"name": name},
            "spec": {"protocol": "postgres", "host_id": host_id},
        }
    )
    assert isinstance(found, Database)
    return found


def permit_for(resource: Node | Database) -> Permit:
    role = parse_document(ROLE)
    user = Identity(
        Kind.USER,
        "alice",
        CLUSTER,
        ("access",),
        {"logins": ("root",)},
        principals=("root",),
        expires=datetime.now(UTC) + timedelta(hours=1),
    )
    found = authorize(
        user,
        resource,
        Ssh() if isinstance(resource, Node) else DatabaseLogin("app", "app"),
        {"access": role},
        (),
        datetime.now(UTC),
    )  # type: ignore[dict-item]
    assert isinstance(found, Permit)
    return found


@dataclass
class World:
    """One proxy's Tunnels, and agents that dial it through memory."""

    ca: Cas
    listed: list[Node] = field(default_factory=list)
    locked: list[Lock] = field(default_factory=list)
    stored: list[Database] = field(default_factory=list)
    proxy_names: tuple[str, ...] = ("proxy.example.com", CLUSTER)
    proxy_roles: tuple[str, ...] = ("proxy",)
    served: list[Stream] = field(default_factory=list)
    through: Callable[[Stream], Stream] = lambda stream: stream  # the wire between agent and proxy
    identified: Callable[[Identity], object] | None = None  # told who an agent is

    def __post_init__(self) -> None:
        self.proxy_key = self.ca.host_pair("proxy-1", self.proxy_roles, self.proxy_names)
        self.tunnels = Tunnels(lambda: self.proxy_key, self)
        self.up = True

    @property
    def cas(self) -> Cas:
        return self.ca

    @property
    def locks(self) -> list[Lock]:
        return self.locked

    def nodes(self) -> list[Node]:
        return self.listed

    def databases(self) -> list[Database]:
        return self.stored

    def connector(self, group: asyncio.TaskGroup) -> Callable[[], Awaitable[Stream]]:
        async def connect() -> Stream:
            if not self.up:
                raise ConnectionRefusedError("the proxy is down")
            ours, far = pair()
            theirs = self.through(far)
            self.served.append(theirs)
            group.create_task(self.serve(theirs, f"c{len(self.served)}"))
            return ours

        return connect

    async def serve(self, stream: Stream, connection: str) -> None:
        await self.tunnels.serve(stream, source=SOURCE, connection=connection, identified=self.identified)

    def agent(self, group: asyncio.TaskGroup, name: str, handler: Handler, **options: object) -> Agent:
        key = options.pop("key", None) or self.ca.host_pair(name, ("node",), (name, f"{name}.{CLUSTER}"))
        return Agent(
            Proxy("proxy.example.com", 443),
            name,
            lambda: key,  # type: ignore[arg-type,return-value]
            lambda: self.ca,
            handler,
            connect=self.connector(group),
            **options,  # type: ignore[arg-type]
        )

    @asynccontextmanager
    async def running(self, name: str, handler: Handler, **options: object) -> AsyncIterator[Agent]:
        """An agent with an open tunnel, stopped at the end."""
        async with asyncio.TaskGroup() as group:
            agent = self.agent(group, name, handler, **options)
            task = group.create_task(agent.run())
            async with asyncio.timeout(10):
                await agent.connected.wait()
            try:
                yield agent
            finally:
                task.cancel()
                for stream in self.served:
                    stream.abort()


class PlainWorld(World):
    """Agents come to its proxy without TLS, where users sign in too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.roles: dict[str, Role] = {}
        self.connections = Connections()
        users = SshProxy(lambda: self.proxy_key, self.tunnels, self, MemoryLog())
        self.plain = PlainSsh(users, self.tunnels)

    async def serve(self, stream: Stream, connection: str) -> None:
        world = self

        class Told(Connection):
            def identify(self, proof: bytes | Identity) -> Identity:
                if world.identified is not None:
                    assert isinstance(proof, Identity)
                    world.identified(proof)
                return super().identify(proof)

        front = SimpleNamespace(connections=self.connections, cas=lambda: self.ca)
        await self.plain.serve(Told(connection, SOURCE, stream, front))  # type: ignore[arg-type]
