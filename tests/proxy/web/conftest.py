"""A web over memory, with an auth service that records what it is asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthError
from monoport.auth.messages import HostCertificates, UserCertificates
from monoport.config import Address
from monoport.net import memory
from monoport.net.stream import Stream
from monoport.proxy.connection import Connection
from monoport.proxy.web.app import Web
from monoport.proxy.web.site import Site
from monoport.routing.outcome import Kind, Route

CAS = TrustedCas("example.com", ssh_host=("ssh-ed25519 AAAA",))
EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)
PIN = "sha256:" + "ab" * 32


@dataclass
class Auth:
    """Stands in for the auth service beyond the client."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    refuses: AuthError | None = None

    async def authenticate(self, user: str, password: str, **others: Any) -> UserCertificates:
        self.asked.append({"user": user, "password": password, **others})
        if self.refuses:
            raise self.refuses
        return UserCertificates(
            certificate="PEM",
            ssh_certificate="SSH",
            cas=CAS,
            cluster="example.com",
            user=user,
            expires=EXPIRES,
            logins=("root",),
        )

    async def join(self, token: str, **others: Any) -> HostCertificates:
        self.asked.append({"token": token, **others})
        if self.refuses:
            raise self.refuses
        return HostCertificates(
            certificate="PEM", ssh_certificate="SSH", cas=CAS, cluster="example.com", host_id="h1", expires=EXPIRES
        )


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    def text(self) -> str:
        return self.body.decode()


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """One proxy's web; each request is a connection of its own."""

    auth: Auth
    clock: Clock
    web: Web

    @asynccontextmanager
    async def connection(
        self, kind: Kind = Kind.WEB, server_name: str | None = "example.com", source: str = "192.0.2.7"
    ) -> AsyncIterator[Stream]:
        client, server = memory.pair()
        route = Route(kind, "web", None, server_name=server_name)
        connection = Connection("c1", (source, 5), server, None, route=route)  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self.web.serve(connection))
            yield client
            if not client.lost:
                client.close()
            await serving

    async def ask(
        self, method: str, path: str, body: Any = None, host: str = "example.com", headers: str = "", **where: Any
    ) -> Answer:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        if data and "content-type" not in headers.lower():
            headers += "Content-Type: application/json\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n"
        head += f"{headers}\r\n"
        async with self.connection(**where) as client:
            await client.write(head.encode("latin-1") + data)
            received = b""
            while piece := await client.read():
                received += piece
        top, _, content = received.partition(b"\r\n\r\n")
        first, *lines = top.decode("latin-1").split("\r\n")
        parsed = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(first.split()[1]), parsed, content)


def make_site(certificate: bool = False) -> Site:
    addresses = (Address("example.com", 443), Address("10.1.2.3", 443))
    return Site("example.com", addresses, {"web_listen_addr": "0.0.0.0:443"}, certificate, lambda: (PIN,))


@pytest.fixture
def make_world() -> Callable[..., World]:
    def make(site: Site | None = None) -> World:
        auth, clock = Auth(), Clock()
        return World(auth, clock, Web(site or make_site(), auth, lambda: CAS, clock))  # type: ignore[arg-type]

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()
