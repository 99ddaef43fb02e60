"""A cluster in one process: auth service, proxy and agents as the daemon builds them, memory in place of the network.

Belongs here: what a story begins with, and the one way to the proxy's port (`connect`, `tls`). Does not belong here:
what a client of one protocol says; that is in the stories, in `psql` and in `ssh`.
"""

from __future__ import annotations

import asyncio
import getpass
import itertools
import os
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher

from monoport.access.claims import Destination
from monoport.audit.events import Event
from monoport.audit.log import MemoryLog
from monoport.auth import keys
from monoport.auth.client import AuthClient
from monoport.auth.keys import Credentials, KeyPair, load_chain
from monoport.auth.local import LocalAuth
from monoport.auth.messages import UserCertificates
from monoport.config import Config
from monoport.config.load import parse
from monoport.daemon import agents
from monoport.daemon.datadir import DataDirectory, open_data_directory
from monoport.daemon.frontdoor import Proxy
from monoport.daemon.member import Member, member
from monoport.net.arrival import Arrival
from monoport.net.deadlines import Deadlines
from monoport.net.memory import pair
from monoport.net.stream import Stream
from monoport.net.tls import TlsStream, connect_tls
from monoport.proxy.connection import serve
from monoport.tunnel import reach as tunnel

CLUSTER = "example.com"
PUBLIC = "proxy.example.com"  # the one name, and below it kube.… and *.db.…
LOGIN = getpass.getuser()  # a node that does not run as root serves no other
PASSWORD = "correct horse battery"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)  # argon2id at its smallest
PATIENCE = 10.0  # seconds that a story waits for what it says happens next


@dataclass(frozen=True)
class User:
    """Somebody who has signed in: a key, and certificates for it."""

    key: KeyPair
    certificates: UserCertificates

    @property
    def credentials(self) -> Credentials:
        """As TLS and the auth service want them."""
        return Credentials(self.certificates.certificate, self.key.private, self.certificates.cas)


class Trail:
    """The audit events of everyone in the cluster; `news` is set with each."""

    def __init__(self, news: asyncio.Event) -> None:
        self._kept, self._news = MemoryLog(), news

    @property
    def events(self) -> list[Event]:
        """Oldest first."""
        return self._kept.events

    async def emit(self, type_: str, /, **fields: object) -> None:
        """As every log."""
        await self.emit_all([(type_, fields)])

    async def emit_all(self, entries: Sequence[tuple[str, Mapping[str, object]]]) -> None:
        """As every log."""
        await self._kept.emit_all(entries)
        self._news.set()


class Cluster:
    """One port, and what stands behind it; made by `running`."""

    def __init__(self, config: Config, local: LocalAuth, stack: AsyncExitStack) -> None:
        self.config = config
        self.auth = local
        self.news = asyncio.Event()
        self.audit = Trail(self.news)
        self.services: list[agents.Service] = []
        self._stack = stack
        self._sources = itertools.count(40_000)

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path, *, more: str = "") -> AsyncIterator[Cluster]:
        """A cluster with its auth service and its proxy, and nobody else yet; `more`: keys of proxy_service."""
        config = parse(
            f"version: v3\n"
            f"teleport: {{data_dir: {folder}}}\n"
            f"auth_service: {{enabled: yes, cluster_name: {CLUSTER}}}\n"
            f"proxy_service: {{enabled: yes, web_listen_addr: '127.0.0.1:0', public_addr: ['{PUBLIC}:443']{more}}}\n",
            "cluster.yaml",
        )
        async with AsyncExitStack() as stack:
            local = await stack.enter_async_context(await LocalAuth.open(folder, CLUSTER, hasher=CHEAP))
            made = cls(config, local, stack)
            await made._run(local.run())
            await local.ready.wait()
            front = await made._member("proxy", config)
            made.known = front.cache
            made.known.subscribe(lambda _change: made.news.set())
            made.proxy = Proxy(config, front)
            made.admin = await stack.enter_async_context(AuthClient(local.dial(), made._administrator()))
            made.door = await stack.enter_async_context(asyncio.TaskGroup())
            yield made
            for connection in made.proxy.connections:
                connection.end("the story is over")

    # the one port

    def connect(self, *, silent: bool = False) -> Stream:
        """A TCP connection to the proxy's port, as far as anyone can tell; `silent`: it has waited to be greeted."""
        client, port = pair()
        self.door.create_task(self._accept(port, silent))
        return client

    async def tls(
        self,
        *alpn: str,
        sni: str = PUBLIC,
        user: User | None = None,
        context: ssl.SSLContext | None = None,
    ) -> TlsStream:
        """TLS to the port that trusts nobody but the cluster's host CA, unless `context` is another.

        Raises HandshakeError where the proxy says no.
        """
        context = context or self.trusting(user)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return await connect_tls(self.connect(), context, server_hostname=sni)

    def trusting(self, user: User | None = None) -> ssl.SSLContext:
        """A client's context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata="".join(self.auth.cas.host))
        if user is not None:
            load_chain(context, user.certificates.certificate, user.key.private)
        return context

    async def _accept(self, stream: Stream, silent: bool) -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines[Arrival](loop, PATIENCE, lambda arrival: arrival.late("progress", PATIENCE))
        source = ("192.0.2.7", next(self._sources))
        arrival = Arrival(f"c{source[1]}", stream, source, deadlines, deadlines)  # type: ignore[arg-type]
        try:
            if not silent:
                await arrival.more()
            await serve(arrival, self.proxy.front)
        except ConnectionError:
            stream.abort()
        finally:
            deadlines.stop()

    # who is there

    async def user(
        self, name: str = "alice", *, db: Destination | None = None, roles: tuple[str, ...] = ("access",)
    ) -> User:
        """A user who has signed in, and by `db` asked for a certificate that is for one database only."""
        traits = {"logins": (LOGIN,), "db_users": ("alice",), "db_names": ("app",)}
        await self.admin.users_add(name, roles, traits, PASSWORD)
        key = keys.generate()
        found = User(key, await self.admin.sign_user(name, key.public, key.ssh_public))
        if db is None:
            return found
        async with AuthClient(self.auth.dial(), found.credentials) as client:
            return User(key, await client.reissue(db, None, key.public))

    async def node(self, name: str, *, alpn: str = tunnel.ALPN) -> Member:
        """A node behind the reverse tunnel, which it has opened by this spelling of the protocol's name."""
        joined = await self._agent("node", name, "ssh_service: {enabled: yes}", alpn)
        await self.until(lambda: any(node.spec.hostname == name for node in self.known.nodes()))
        return joined

    async def database(self, name: str, port: int, protocol: str = "postgres") -> Member:
        """An agent behind the reverse tunnel with one database, whose server is on this port of loopback."""
        registered = f"{{name: {name}, protocol: {protocol}, uri: 'localhost:{port}'}}"
        section = f"db_service: {{enabled: yes, databases: [{registered}]}}"
        joined = await self._agent("db", "db-host", section, tunnel.ALPN)
        await self.until(lambda: any(database.name == name for database in self.known.databases()))
        return joined

    async def _agent(self, role: str, name: str, section: str, alpn: str) -> Member:
        teleport = f"teleport: {{nodename: {name}, proxy_server: '{PUBLIC}:443'}}"
        config = parse(f"version: v3\n{teleport}\n{section}\n", "agent.yaml")
        joined = await self._member(role, config)
        data = DataDirectory(self.auth.data_dir / f"agent-{name}")
        service = agents.make(config, joined, data, connect=lambda: self.tls(alpn))
        self.services.append(service)
        await self._run(service.run())
        async with asyncio.timeout(PATIENCE):
            await service.agent.connected.wait()
        return joined

    async def _member(self, role: str, config: Config) -> Member:
        folder = self.auth.data_dir / f"{role}-{next(self._sources)}"
        data, lock = open_data_directory(folder)
        self._stack.callback(os.close, lock)
        joined = await self._stack.enter_async_context(member(role, config, data, self.auth))
        return replace(joined, audit=self.audit)

    def _administrator(self) -> Credentials:
        certificate, key, _ = keys.identity_files(self.auth.data_dir, "admin")
        return Credentials(certificate.read_text(), key.read_text(), self.auth.cas)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Have this go on until the story is over."""
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._stack.callback(group.create_task(work).cancel)

    # what happens

    def sweep(self, now: datetime) -> None:
        """The daemon's ticker, at a time of the story's choice: what has expired or is locked then, ends."""
        self.proxy.sweep(now)
        for service in self.services:
            service.sweep(now)

    async def until(self, true: Callable[[], object]) -> None:
        """Wait for something that an audit event says, or that the proxy learns by its watch."""
        async with asyncio.timeout(PATIENCE):
            while not true():
                self.news.clear()
                await self.news.wait()

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        """The fields of every audit event of a type, whoever recorded it."""
        return [event.fields for event in self.audit.events if event.type == kind]

    def refused(self) -> str:
        """The code of the proxy's last refusal, as `tctl conns ls` shows it."""
        return self.proxy.connections.refusals[-1].refusal.code
