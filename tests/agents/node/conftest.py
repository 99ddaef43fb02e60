"""A node behind a loopback port, a user with certificates, and a system user to log in as when tests run as root."""

import asyncio
import os
import pwd
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncssh
import pytest

from monoport.access.forwarding import Forwarding
from monoport.access.identity import Identity, Kind
from monoport.access.resources import Lock, Role, parse_document
from monoport.access.resources import Node as Listed
from monoport.agents.node.agent import Node
from monoport.audit.log import MemoryLog
from monoport.auth import keys
from monoport.auth.authorities import Authorities, CaKind, generate
from monoport.auth.certificates import issue_host_ssh, issue_user_ssh
from monoport.net.memory import pair
from monoport.net.relay import relay
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.tunnel import dial
from monoport.tunnel.link import HostKey
from monoport.tunnel.preface import Accepted, Preface
from monoport.tunnel.preface import Kind as Wanted

CLUSTER = "example.com"
NODE = "5b1c9c0e-node"
LOGIN = "monoport-test"


@pytest.fixture(scope="session")
def login() -> Iterator[str]:
    """A login that the node can serve: a fresh system user as root, else whoever runs the tests."""
    if os.geteuid() != 0:
        yield pwd.getpwuid(os.geteuid()).pw_name
        return
    name = f"{LOGIN}-{os.getpid()}"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", name], check=True)
    try:
        yield name
    finally:
        # --force: a process that is just ending still counts as one
        subprocess.run(["userdel", "--force", "--remove", name], check=True, capture_output=True)


def role(**options: object) -> Role:
    """A role that grants every kind of forwarding but ports for others than this machine; `options` change that."""
    found = parse_document(
        {
            "kind": "role",
            "version": "v1",
            "metadata": {"name": "access"},
            "spec": {
                "allow": {"logins": ["{{internal.logins}}"], "node_labels": {"*": "*"}},
                "options": dict.fromkeys(Forwarding, True) | {Forwarding.GATEWAY: None} | options,
            },
        }
    )
    assert isinstance(found, Role)
    return found


@dataclass(frozen=True)
class Ran:
    """What a program left."""

    status: int
    out: bytes
    err: bytes


@dataclass
class World:
    """A cluster with one node and one user; everything that a test may want to change is a field."""

    folder: Path
    login: str
    authorities: Authorities = field(init=False)
    roles: dict[str, Role] = field(default_factory=lambda: {"access": role()})
    locks: list[Lock] = field(default_factory=list)
    audit: MemoryLog = field(default_factory=MemoryLog)
    through: Callable[[Stream], Stream] = lambda stream: stream  # the wire to the node
    lifetime: timedelta = timedelta(hours=1)
    ahead: timedelta = timedelta(0)  # the node's clock

    def __post_init__(self) -> None:
        now = datetime.now(UTC)
        self.authorities = Authorities(CLUSTER, {kind: (generate(kind, CLUSTER, now),) for kind in CaKind})
        self.cas = self.authorities.trusted()
        self.listed = parse_document(
            {
                "kind": "node",
                "version": "v1",
                "metadata": {"name": NODE},
                "spec": {"hostname": "web", "host_id": NODE},
            }
        )
        assert isinstance(self.listed, Listed)
        host = keys.generate()
        expires = (now + timedelta(hours=1)).replace(microsecond=0)
        identity = Identity(
            Kind.HOST, NODE, CLUSTER, ("node",), principals=(NODE, "web", f"web.{CLUSTER}"), expires=expires
        )
        self.host = HostKey(host.private, issue_host_ssh(self.authorities.host, host.ssh_public, identity, now))
        self.node = Node(lambda: self.listed, lambda: self.host, self, self.audit, now=self.now, tick=0.05)
        self.user_key = keys.generate()
        self.certificate = self.sign()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def sign(self, name: str = "alice", logins: tuple[str, ...] | None = None, **permissions: bool) -> str:
        """A user certificate for the user's key."""
        logins = (self.login,) if logins is None else logins
        identity = Identity(
            Kind.USER,
            name,
            CLUSTER,
            ("access",),
            {"logins": logins},
            principals=logins,
            expires=(datetime.now(UTC) + self.lifetime).replace(microsecond=0),
        )
        wanted = {"forward_agent": True, "port_forwarding": True, "x11_forwarding": True} | permissions
        return issue_user_ssh(self.authorities.user, self.user_key.ssh_public, identity, datetime.now(UTC), **wanted)

    def preface(self) -> Preface:
        return Preface("c-1", Wanted.SSH, NODE, self.certificate, "192.0.2.9:50000", NODE)

    def events(self, kind: str) -> list[dict[str, object]]:
        return [dict(event.fields) for event in self.audit.events if event.type == kind]

    async def event(self, kind: str) -> dict[str, object]:
        """The first event of that kind, once it is there."""
        await self.until(lambda: self.events(kind))
        return self.events(kind)[0]

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until `condition()` holds (another process's doing has no event); fails after 20 s."""
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    @asynccontextmanager
    async def port(self, preface: Preface | None = None) -> AsyncIterator[int]:
        """A loopback port that leads to the node as if the proxy had dialled it."""
        async with asyncio.TaskGroup() as group:
            listening = socket.create_server(("127.0.0.1", 0))
            listening.setblocking(False)
            loop = asyncio.get_running_loop()

            async def accept() -> None:
                while True:
                    found, _ = await loop.sock_accept(listening)
                    group.create_task(self._dialled(found, preface or self.preface()))

            accepting = group.create_task(accept())
            try:
                yield listening.getsockname()[1]
            finally:
                accepting.cancel()
                listening.close()

    async def _dialled(self, found: object, preface: Preface) -> None:
        near, far = pair()
        async with asyncio.TaskGroup() as group, SocketStream(found) as client:  # type: ignore[arg-type]
            group.create_task(self._serve(preface, self.through(far)))
            assert await dial.ask(near, preface) == Accepted()
            async with near:
                await relay(client, near)

    async def _serve(self, preface: Preface, far: object) -> None:
        await self.node.serve(await dial.receive(far), far)  # type: ignore[arg-type]
        far.close()  # type: ignore[attr-defined]

    @asynccontextmanager
    async def connected(self, **options: object) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """An asyncssh client that is logged in."""
        key = asyncssh.import_private_key(self.user_key.private)
        certificate = asyncssh.import_certificate(str(options.pop("certificate", self.certificate)))
        known = ([], [asyncssh.import_public_key(self.cas.ssh_host[0])], [])
        async with (
            self.port() as port,
            asyncssh.connect(
                "127.0.0.1",
                port,
                **{
                    "username": self.login,
                    "client_keys": [(key, certificate)],
                    "known_hosts": known,
                    "host_key_alias": NODE,
                    "agent_path": None,
                    "config": None,
                    **options,
                },
            ) as made,
        ):
            yield made

    def openssh(self, port: int) -> list[str]:
        """Options for ssh, scp and sftp."""
        key = self.folder / "key"
        if not key.exists():
            key.write_text(self.user_key.private)
            key.chmod(0o600)
        (self.folder / "key-cert.pub").write_text(f"{self.certificate.strip()}\n")
        (self.folder / "known_hosts").write_text(f"@cert-authority * {self.cas.ssh_host[0].strip()}\n")
        options = {
            "IdentityFile": key,
            "CertificateFile": self.folder / "key-cert.pub",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "HostName": "127.0.0.1",
            "HostKeyAlias": NODE,
            "Port": port,
            "BatchMode": "yes",
            "User": self.login,
            "LogLevel": "ERROR",
        }
        return ["-F", "/dev/null", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]

    async def run(self, *command: object, stdin: bytes = b"", env: dict[str, str] | None = None) -> Ran:
        """Run a program to its end."""
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin)
        assert process.returncode is not None
        return Ran(process.returncode, out, err)


@pytest.fixture
def world(tmp_path: Path, login: str) -> World:
    return World(tmp_path, login)


@pytest.fixture
def lock() -> Callable[..., Lock]:
    def make(**target: str) -> Lock:
        found = parse_document(
            {"kind": "lock", "version": "v1", "metadata": {"name": "l1"}, "spec": {"target": target}}
        )
        assert isinstance(found, Lock)
        return found

    return make


@pytest.fixture
def make_role() -> Callable[..., Role]:
    return role
