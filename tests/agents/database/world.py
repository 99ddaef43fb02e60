"""A cluster small enough to hold in memory: CAs, a user, a proxy and a database agent, joined without a tunnel.

Belongs here: what the tests of the proxy's database handler and of the database agent set up alike.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from monoport.access.claims import Destination, Identity, Kind
from monoport.access.decide import Permit
from monoport.access.lease import Leases
from monoport.access.presets import PRESETS
from monoport.access.resources import Database, Lock, Resource, Role
from monoport.agents.database.agent import Databases as Agent
from monoport.audit.log import MemoryLog
from monoport.auth import keys
from monoport.auth.authorities import Authority, CaKind, TrustedCas, generate
from monoport.auth.certificates import (
    issue_database_client,
    issue_database_server,
    issue_host,
    issue_user,
)
from monoport.auth.messages import Certificate
from monoport.config.model import Database as Configured
from monoport.net.memory import pair
from monoport.net.stream import Stream
from monoport.proxy.cancels import Cancels
from monoport.proxy.contexts import Contexts, KeyPair
from monoport.proxy.database import Databases as Proxy
from monoport.routing.outcome import Trust
from monoport.tunnel import dial
from monoport.tunnel.preface import Accepted, Preface, Refused

CLUSTER = "example.com"
PUBLIC = "proxy.example.com"
HOST_ID = "0b2a6c4e-db-agent"
NOW = datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class User:
    """Certificate and key, PEM."""

    certificate: str
    key: str

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Write both where libpq reads them."""
        certificate, key = folder / "user.crt", folder / "user.key"
        certificate.write_text(self.certificate)
        key.write_text(self.key)
        key.chmod(0o600)
        return certificate, key

    @property
    def der(self) -> bytes:
        """The certificate as TLS has it."""
        return ssl.PEM_cert_to_DER_cert(self.certificate)


class Cluster:
    """The CAs of one cluster and what they sign."""

    def __init__(self) -> None:
        self.cas: dict[CaKind, Authority] = {kind: generate(kind, CLUSTER, NOW) for kind in CaKind}
        self.trusted = TrustedCas(CLUSTER, **{kind.value: (ca.pem,) for kind, ca in self.cas.items()})

    def user(
        self,
        name: str = "alice",
        *,
        destination: Destination | None = None,
        users: Sequence[str] = ("alice",),
        databases: Sequence[str] = ("app",),
        ttl: timedelta = timedelta(hours=1),
    ) -> User:
        """A user with the role `access`."""
        made = keys.generate()
        identity = Identity(
            Kind.USER,
            name,
            CLUSTER,
            roles=("access",),
            traits={"db_users": tuple(users), "db_names": tuple(databases)},
            expires=datetime.now(UTC).replace(microsecond=0) + ttl,
            destination=destination,
        )
        return User(issue_user(self.cas[CaKind.USER], made.public, identity, datetime.now(UTC)), made.private)

    def proxy(self) -> KeyPair:
        """What the proxy shows."""
        made = keys.generate()
        names = ("localhost", "127.0.0.1", PUBLIC, f"*.db.{PUBLIC}")
        identity = Identity(
            Kind.HOST, "proxy-1", CLUSTER, roles=("proxy",), principals=(PUBLIC,), expires=NOW + timedelta(days=1)
        )
        certificate = issue_host(self.cas[CaKind.HOST], made.public, identity, NOW, names)
        return KeyPair(certificate.encode(), made.private.encode())

    def database_server(self, *hosts: str) -> tuple[str, str, str]:
        """Certificate, key and the CA of its clients, for a real server."""
        made = keys.generate()
        certificate = issue_database_server(self.cas[CaKind.DB], made.public, hosts, NOW, NOW + timedelta(days=1))
        return certificate, made.private, self.cas[CaKind.DBCLIENT].pem


@dataclass
class Directory:
    """What proxy and agent know of the cluster."""

    cas: TrustedCas
    roles: Mapping[str, Role] = field(default_factory=lambda: dict(PRESETS))
    locks: Sequence[Lock] = ()
    known: list[Database] = field(default_factory=list)

    def databases(self) -> list[Database]:
        return self.known


class Auth:
    """The auth service as the agent sees it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.asked: list[str] = []
        self.beats: list[Resource] = []
        self.first: list[bool] = []  # of each heartbeat, refused ones included
        self.ttl = timedelta(hours=1)
        self.error: Exception | None = None

    async def database_client_certificate(
        self,
        public_key: str,
        user: str,
        ttl: timedelta | None = None,
        *,
        certificate: str,
        name: str,
        database: str = "",
        connection: str = "",
    ) -> Certificate:
        if self.error is not None:
            raise self.error
        self.asked.append(user)
        expires = datetime.now(UTC).replace(microsecond=0) + self.ttl
        ca = self._cluster.cas[CaKind.DBCLIENT]
        issued = issue_database_client(ca, public_key, user, datetime.now(UTC), expires, database=name)
        return Certificate(certificate=issued, expires=expires, cas=self._cluster.trusted)

    async def heartbeat(self, resource: Resource, *, first: bool = False) -> None:
        self.first.append(first)
        if self.error is not None:
            raise self.error
        self.beats.append(resource)


class Tunnels:
    """Dials the agents by memory streams: the same frames as through a tunnel, without SSH."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self.agents: dict[str, Agent] = {}
        self.prefaces: list[Preface] = []

    async def dial(self, permit: Permit, preface: Preface) -> Stream:
        agent = self.agents.get(permit.host_id)
        if agent is None:
            raise dial.DialError(f'database "{preface.target}" is offline')
        self.prefaces.append(preface)
        near, far = pair()
        self._group.create_task(self._serve(agent, far))
        match await dial.ask(near, Preface(**{**_fields(preface), "host_id": permit.host_id})):
            case Accepted():
                return near
            case Refused(code, reason):
                raise dial.DialError(reason, code)

    async def _serve(self, agent: Agent, stream: Stream) -> None:
        preface = await dial.receive(stream)
        try:
            await agent.serve(preface, stream)
            stream.close()
        except dial.DialRefused as refused:
            await dial.refuse(stream, refused.code, str(refused))
        except ConnectionError:
            stream.abort()


def _fields(preface: Preface) -> dict[str, Any]:
    return {name: getattr(preface, name) for name in preface.__dataclass_fields__}


def configured(
    name: str = "orders", port: int = 5432, host: str = "localhost", *, protocol: str = "postgres", **tls: Any
) -> Configured:
    """A database as an agent's configuration names it."""
    return Configured.model_validate(
        {"name": name, "protocol": protocol, "uri": f"{host}:{port}", "static_labels": {"env": "test"}, "tls": tls}
    )


@dataclass
class World:
    """One proxy and one agent."""

    cluster: Cluster
    auth: Auth
    directory: Directory
    tunnels: Tunnels
    agent: Agent
    proxy: Proxy
    contexts: Contexts
    cancels: Cancels
    leases: Leases
    audit: MemoryLog
    agent_audit: MemoryLog

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        """The fields of every event of a type, the proxy's first."""
        return [one.fields for one in (*self.audit.events, *self.agent_audit.events) if one.type == kind]


@asynccontextmanager
async def world(cluster: Cluster, *databases: Configured) -> AsyncIterator[World]:
    """Both ends of one cluster's databases; what they serve ends with the block."""
    directory, auth = Directory(cluster.trusted), Auth(cluster)
    audit, agent_audit, leases = MemoryLog(), MemoryLog(), Leases()
    cancels = Cancels()
    contexts = Contexts(cluster.proxy(), trust={Trust.USER: cluster.trusted.user, Trust.HOST: cluster.trusted.host})
    async with asyncio.TaskGroup() as group:
        tunnels = Tunnels(group)
        agent = Agent(HOST_ID, databases, directory, auth, agent_audit, leases=leases)
        directory.known.extend(agent.resources)
        tunnels.agents[HOST_ID] = agent
        proxy = Proxy(contexts, tunnels, directory, audit, cancels=cancels)
        yield World(cluster, auth, directory, tunnels, agent, proxy, contexts, cancels, leases, audit, agent_audit)
