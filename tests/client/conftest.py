"""A cluster's CAs and a scripted proxy over loopback, for tests of the user's side."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from monoport.access.identity import Destination, Identity, Kind
from monoport.auth.authorities import Authority, CaKind, TrustedCas, generate
from monoport.auth.certificates import issue_host, issue_host_ssh, issue_user, issue_user_ssh
from monoport.auth.keys import KeyPair, load_chain
from monoport.auth.keys import generate as make_key
from monoport.client.names import Address
from monoport.client.profile import Home, Profile

CLUSTER = "example.com"
NAMES = ("localhost", "127.0.0.1", CLUSTER, "bootstrap.teleport.cluster.local")
PASSWORD = "correct horse"
NOWHERE = Address("127.0.0.1", 0)


class Cas:
    """Every CA of one cluster, and certificates from them."""

    def __init__(self, cluster: str = CLUSTER) -> None:
        self.cluster = cluster
        now = datetime.now(UTC)
        self.of: dict[CaKind, Authority] = {kind: generate(kind, cluster, now) for kind in CaKind}
        of = self.of
        self.trusted = TrustedCas(
            cluster,
            host=(of[CaKind.HOST].pem,),
            user=(of[CaKind.USER].pem,),
            db=(of[CaKind.DB].pem,),
            dbclient=(of[CaKind.DBCLIENT].pem,),
            ssh_user=(of[CaKind.USER].ssh_line,),
            ssh_host=(of[CaKind.HOST].ssh_line,),
        )

    def user(self, public: str, ssh_public: str, **parts: Any) -> tuple[str, str]:
        """A user's two certificates for the public keys."""
        now = datetime.now(UTC).replace(microsecond=0)
        lasts = parts.pop("lasts", timedelta(hours=1))
        fields: dict[str, Any] = {
            "roles": ("access",),
            "principals": ("alice", "root"),
            "expires": now + lasts,
            **parts,
        }
        identity = Identity(Kind.USER, fields.pop("name", "alice"), self.cluster, **fields)
        begun = min(now, identity.expires) - timedelta(minutes=10)
        ca = self.of[CaKind.USER]
        return (
            issue_user(ca, public, identity, begun),
            issue_user_ssh(ca, ssh_public, identity, begun, port_forwarding=True),
        )

    def proxy(self, names: tuple[str, ...] = NAMES) -> tuple[KeyPair, str, str]:
        """A proxy's key and its two certificates."""
        now = datetime.now(UTC).replace(microsecond=0)
        pair = make_key()
        identity = Identity(
            Kind.HOST, "proxy-1", self.cluster, roles=("proxy",), principals=names, expires=now + timedelta(hours=1)
        )
        ca = self.of[CaKind.HOST]
        return pair, issue_host(ca, pair.public, identity, now), issue_host_ssh(ca, pair.ssh_public, identity, now)

    def auth(self) -> tuple[KeyPair, str]:
        """The auth service's key and certificate."""
        now = datetime.now(UTC).replace(microsecond=0)
        pair = make_key()
        names = (self.cluster, "localhost")
        identity = Identity(
            Kind.HOST, "auth-1", self.cluster, roles=("auth",), principals=names, expires=now + timedelta(hours=1)
        )
        return pair, issue_host(self.of[CaKind.HOST], pair.public, identity, now)


@pytest.fixture(scope="session")
def cas() -> Cas:
    """The cluster's CAs."""
    return Cas()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty TSH_HOME."""
    return Home(tmp_path / "tsh")


@dataclass
class Seen:
    """One request as the scripted proxy saw it."""

    server_name: str
    method: str
    path: str
    body: dict[str, Any] | None


@dataclass
class WebProxy:
    """Answers the web API; `answers` maps a path to a JSON object, or to a function of the request's body."""

    cas: Cas
    answers: dict[str, Any] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    address: Address = NOWHERE
    server_names: list[str] = field(default_factory=list)
    version: str = "0.1.0"

    def __post_init__(self) -> None:
        self.answers = {
            "/webapi/ping": lambda _: self.ping(),
            "/webapi/cas": lambda _: (200, self.cas.trusted.to_json()),
            "/webapi/login": self.login,
        } | self.answers

    def ping(self) -> tuple[int, Any]:
        ssh = {"public_addr": f"localhost:{self.address.port}", "listen_addr": f"127.0.0.1:{self.address.port}"}
        return 200, {
            "server_version": self.version,
            "min_client_version": "0.1.0",
            "cluster_name": self.cas.cluster,
            "proxy": {"tls_routing_enabled": True, "ssh": ssh},
        }

    def login(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["password"] != PASSWORD:
            return 401, {"error": {"code": "wrong_password", "message": "wrong user name or password"}}
        certificate, ssh_certificate = self.cas.user(body["public_key"], body["ssh_public_key"], name=body["user"])
        return 200, {
            "certificate": certificate,
            "ssh_certificate": ssh_certificate,
            "cas": self.cas.trusted.to_json(),
            "cluster": self.cas.cluster,
            "user": body["user"],
            "expires": "2030-01-01T00:00:00Z",
            "logins": ["alice", "root"],
        }

    @property
    def passwords(self) -> list[str]:
        return [str(each.body["password"]) for each in self.seen if each.body and "password" in each.body]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = self.server_names[-1]
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
                length = int({key.lower(): value for key, value in fields.items()}.get(b"content-length", b"0"))
                body = json.loads(await reader.readexactly(length)) if length else None
                self.seen.append(Seen(name, method, path, body))
                status, value = self.answers[path](body)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext) -> AsyncIterator[WebProxy]:
        def remember(_: Any, server_name: str | None, __: Any) -> None:
            self.server_names.append(server_name or "")

        context.sni_callback = remember  # called without a name, too
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context)
        self.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        async with server:
            yield self


def server_context(cas: Cas, names: tuple[str, ...] = NAMES, alpn: str = "http/1.1") -> ssl.SSLContext:
    """A context with a certificate of the host CA, which asks for user certificates but needs none."""
    pair, certificate, _ = cas.proxy(names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_chain(context, certificate, pair.private)
    context.set_alpn_protocols([alpn])
    context.load_verify_locations(cadata=cas.of[CaKind.USER].pem)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def signed_in(home: Home, cas: Cas, port: int, *, host: str = "localhost", **parts: Any) -> Profile:
    """A profile with all its files, as a login at this port would have left them."""
    paths_of = parts.pop("user", "alice")
    pair = make_key()
    ports = parts.pop("database_ports", {})
    certificate, ssh_certificate = cas.user(pair.public, pair.ssh_public, name=paths_of, **parts)
    expires = datetime.now(UTC) + parts.get("lasts", timedelta(hours=1))
    profile = Profile(
        proxy=Address(host, port),
        user=paths_of,
        cluster=cas.cluster,
        server_name="localhost",
        expires=expires,
        cas=cas.trusted.to_json(),
        logins=("alice", "root"),
        trust="pin",
        database_ports=ports,
    )
    paths = home.keys(profile)
    paths.folder.mkdir(parents=True, mode=0o700)
    for path, text in (
        (paths.key, pair.private),
        (paths.certificate, certificate),
        (paths.ssh_certificate, ssh_certificate + "\n"),
        (paths.cas, cas.of[CaKind.HOST].pem),
        (paths.known_hosts, f"@cert-authority * {cas.of[CaKind.HOST].ssh_line}\n"),
    ):
        path.write_text(text)
        path.chmod(0o600)
    home.save(profile)
    return profile


def database_login(home: Home, cas: Cas, profile: Profile, name: str, **parts: Any) -> Path:
    """A database certificate on disk for the profile's key; returns its path."""
    paths = home.keys(profile)
    from monoport.client.keys import load

    pair = load(paths.key.read_text())
    protocol, user, database = parts.pop("protocol", "postgres"), parts.pop("db_user", ""), parts.pop("database", "")
    destination = Destination("db", name, protocol, user, database)
    certificate, _ = cas.user(pair.public, pair.ssh_public, destination=destination, name=profile.user, **parts)
    path = paths.database(profile.cluster, name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(certificate)
    path.chmod(0o600)
    return path
