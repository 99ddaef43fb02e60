"""A cluster's auth service in one process: a clock in the test's hand, callers of every kind, connections in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher

from monoport.access.identity import Destination, Identity, Kind
from monoport.access.resources import Resource, parse_document
from monoport.auth.client import AuthClient
from monoport.auth.hosts import Host
from monoport.auth.keys import Credentials, KeyPair, generate
from monoport.auth.local import LocalAuth
from monoport.auth.messages import HostCertificates, UserCertificates
from monoport.auth.storage.memory import MemoryStorage

CLUSTER = "example.com"
PASSWORD = "correct horse battery"


class Clock:
    """The system's time and what the test has let pass."""

    def __init__(self) -> None:
        self.passed = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.passed

    def advance(self, **length: float) -> None:
        self.passed += timedelta(**length)


def fast_hasher() -> PasswordHasher:
    """argon2id at its smallest, so that tests do not wait for it."""
    return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def role(
    name: str, allow: dict[str, Any] | None = None, deny: dict[str, Any] | None = None, **options: Any
) -> Resource:
    spec = {"allow": allow or {}, "deny": deny or {}, "options": options}
    return parse_document({"kind": "role", "version": "v1", "metadata": {"name": name}, "spec": spec})


def node(host_id: str, hostname: str, **labels: str) -> Resource:
    metadata = {"name": host_id, "labels": labels}
    return parse_document(
        {"kind": "node", "version": "v1", "metadata": metadata, "spec": {"hostname": hostname, "host_id": host_id}}
    )


def database(name: str, host_id: str, **labels: str) -> Resource:
    spec = {"protocol": "postgres", "host_id": host_id}
    return parse_document({"kind": "db", "version": "v1", "metadata": {"name": name, "labels": labels}, "spec": spec})


def lock(name: str, **target: str) -> Resource:
    return parse_document({"kind": "lock", "version": "v1", "metadata": {"name": name}, "spec": {"target": target}})


@dataclass
class World:
    """The service and those who call it."""

    auth: LocalAuth
    clock: Clock
    group: asyncio.TaskGroup
    stack: AsyncExitStack
    data_dir: Path
    admin: Identity = field(init=False)

    def __post_init__(self) -> None:
        self.admin = self.host("admin", "admin.local")

    def host(self, role: str, name: str = "", principals: Sequence[str] = ()) -> Identity:
        """A host's identity, as its certificate would say."""
        expires = self.clock() + timedelta(days=1)
        host_id = name or f"{role}-1"
        return Identity(Kind.HOST, host_id, CLUSTER, roles=(role,), principals=tuple(principals), expires=expires)

    async def joined(
        self, role: str, name: str = "", principals: Sequence[str] = (), *, origin: str = "token/one", **record: Any
    ) -> Identity:
        """A host's identity, and the record that the service keeps of a host that joined; the first name is its own."""
        identity = self.host(role, name, principals)
        nodename = principals[0] if principals else identity.name
        await self.auth._parts.records.remember(Host(identity.name, nodename, (role,), origin=origin, **record))
        return identity

    def user(
        self,
        name: str = "alice",
        roles: Sequence[str] = ("access",),
        destination: Destination | None = None,
        **values: Any,
    ) -> Identity:
        """A user's identity, as a certificate would say."""
        values.setdefault("expires", self.clock() + timedelta(hours=8))
        return Identity(Kind.USER, name, CLUSTER, roles=tuple(roles), destination=destination, **values)

    async def add_user(self, name: str = "alice", roles: Sequence[str] = ("access",), **traits: Sequence[str]) -> None:
        from monoport.auth.messages import NewUser

        request = NewUser(
            name=name, roles=tuple(roles), traits={k: tuple(v) for k, v in traits.items()}, password=PASSWORD
        )
        await self.auth.administration.users_add(self.admin, request)

    async def put(self, *resources: Resource) -> None:
        """Stores roles and locks, force."""
        for resource in resources:
            await self.auth.administration.create(self.admin, resource, True)

    def client(self, pair: KeyPair, certificates: UserCertificates | HostCertificates) -> AuthClient:
        """A client with these certificates, over TLS over a stream in memory."""
        client = AuthClient(self.auth.dial(), Credentials(certificates.certificate, pair.private, certificates.cas))
        self.stack.push_async_callback(client.close)
        return client

    async def host_client(self, role: str, name: str, names: Sequence[str] = ()) -> tuple[AuthClient, str]:
        """A joined host's client and its id."""
        pair, certificates = await self.auth.admit(role, name, names)
        return self.client(pair, certificates), certificates.host_id

    def admin_client(self) -> AuthClient:
        folder = self.data_dir / "identity"
        credentials = Credentials((folder / "admin.crt").read_text(), (folder / "admin.key").read_text(), self.auth.cas)
        client = AuthClient(self.auth.dial(), credentials)
        self.stack.push_async_callback(client.close)
        return client

    async def user_client(self, name: str = "alice") -> AuthClient:
        """A client of a user who has just signed in."""
        proxy, _ = await self.host_client("proxy", "front")
        pair = generate()
        login = await proxy.authenticate(name, PASSWORD, public_key=pair.public, ssh_public_key=pair.ssh_public)
        return self.client(pair, login)

    @asynccontextmanager
    async def http(self, caller: Identity) -> AsyncIterator[httpx.AsyncClient]:
        """The API itself for one caller, without a connection."""
        app = self.auth.app

        async def identified(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": {"identity": caller}}, receive, send)

        transport = httpx.ASGITransport(app=identified)
        async with httpx.AsyncClient(transport=transport, base_url="http://auth") as client:
            yield client


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def world(tmp_path: Path, clock: Clock) -> AsyncIterator[World]:
    """A running service of the cluster example.com."""
    local = await LocalAuth.open(tmp_path, CLUSTER, now=clock, hasher=fast_hasher(), storage=MemoryStorage(clock))
    async with local, asyncio.TaskGroup() as group, AsyncExitStack() as stack:
        running = group.create_task(local.run())
        await local.ready.wait()
        stack.callback(running.cancel)
        yield World(local, clock, group, stack, tmp_path)


Make = Callable[..., Resource]


@pytest.fixture
def make_role() -> Make:
    return role


@pytest.fixture
def make_node() -> Make:
    return node


@pytest.fixture
def make_database() -> Make:
    return database


@pytest.fixture
def make_lock() -> Make:
    return lock
