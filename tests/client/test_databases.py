"""Certificates for databases, from a scripted auth service behind the proxy's port."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from monoport.access.identity import Destination
from monoport.auth.keys import load_chain
from monoport.client import databases
from monoport.client.databases import Wanted
from monoport.client.front import Credentials
from monoport.client.profile import Home, Profile
from monoport.errors import Failure

from .conftest import Cas, database_login, server_context, signed_in

TRAITS = {"db_users": ("alice",), "db_names": ("shop", "stock")}


@dataclass
class AuthService:
    """Lists `names` as PostgreSQL databases; reissues with whatever destination is asked for, or refuses."""

    cas: Cas
    names: tuple[str, ...] = ("orders",)
    refused: frozenset[str] = frozenset()
    lasts: timedelta = timedelta(minutes=30)
    asked: list[dict[str, Any]] = field(default_factory=list)
    alpn: list[str | None] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if (method, path) == ("GET", "/v1/resources/db"):
            spec = {"protocol": "postgres", "host_id": "agent-1"}
            row = {"kind": "db", "version": "v1", "spec": spec}
            return 200, {"resources": [row | {"metadata": {"name": name}} for name in self.names]}
        assert (method, path) == ("POST", "/v1/reissue"), path
        self.asked.append(body)
        wanted = body["destination"]
        if wanted["name"] in self.refused:
            return 403, {"error": {"code": "denied", "message": f"access to database {wanted['name']} denied"}}
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

        key = load_pem_public_key(body["public_key"].encode())
        line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        destination = Destination(**wanted)
        certificate, _ = self.cas.user(
            body["public_key"], line, destination=destination, traits=TRAITS, lasts=self.lasts
        )
        return 200, {
            "certificate": certificate,
            "ssh_certificate": "",
            "cas": self.cas.trusted.to_json(),
            "cluster": self.cas.cluster,
            "user": "alice",
            "expires": x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc.isoformat(),
            "logins": [],
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.alpn.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                method, path, _ = lines[0].split(" ")
                fields = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines[1:])}
                body = json.loads(await reader.readexactly(int(fields.get("content-length", "0"))) or b"{}")
                status, value = self.answer(method, path, body)
                data = json.dumps(value).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        context = server_context(self.cas, alpn=f"teleport-auth@{self.cas.cluster}")
        pair, certificate = self.cas.auth()
        load_chain(context, certificate, pair.private)
        context.sni_callback = lambda _tls, name, _context: self.server_names.append(name)
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context)
        async with server:
            yield server.sockets[0].getsockname()[1]


def profile_at(home: Home, cas: Cas, port: int) -> Profile:
    return signed_in(home, cas, port, traits=TRAITS)


async def test_login_asks_auth_through_the_proxy_and_writes_private_files(home: Home, cas: Cas) -> None:
    auth = AuthService(cas)
    async with auth.running() as port:
        profile = profile_at(home, cas, port)
        done = await databases.login(home, profile, Wanted("orders", database="shop"))
    assert set(auth.alpn) == {"teleport-auth@example.com"}
    assert set(auth.server_names) == {"example.com"}
    assert done.destination == Destination("db", "orders", "postgres", "alice", "shop")
    folder = home.keys(profile).folder / "alice-db" / "example.com"
    assert sorted(path.name for path in folder.iterdir()) == ["orders-x509.pem", "orders.key", "orders.pem"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for each in (folder, folder.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
    bundle = (folder / "orders.pem").read_text()
    assert "BEGIN CERTIFICATE" in bundle
    assert "BEGIN PRIVATE KEY" in bundle
    assert "PRIVATE" not in (folder / "orders-x509.pem").read_text()
    assert "PRIVATE" not in json.dumps(auth.asked)


async def test_what_the_user_may_choose_among_stays_open(home: Home, cas: Cas) -> None:
    async with AuthService(cas).running() as port:
        done = await databases.login(home, profile_at(home, cas, port), Wanted("orders"))
    assert (done.destination.user, done.destination.database) == ("alice", "")
    assert databases.describe(done.destination) == "alice"


async def test_an_unknown_database_is_named(home: Home, cas: Cas) -> None:
    auth = AuthService(cas)
    async with auth.running() as port:
        with pytest.raises(Failure, match="there is no database 'nothing' in example.com that you may use"):  # noqa: RUF043
            await databases.login(home, profile_at(home, cas, port), Wanted("nothing"))
    assert auth.asked == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", "-x"])
async def test_names_that_are_no_file_names_are_never_asked_for(home: Home, cas: Cas, name: str) -> None:
    with pytest.raises(Failure, match="cannot be the name of a database"):
        await databases.login(home, profile_at(home, cas, 1), Wanted(name))


async def test_a_refusal_gives_the_services_words_and_leaves_what_was_there(home: Home, cas: Cas) -> None:
    auth = AuthService(cas, refused=frozenset({"orders"}))
    async with auth.running() as port:
        profile = profile_at(home, cas, port)
        path = database_login(home, cas, profile, "orders")
        before = path.read_bytes()
        with pytest.raises(Failure, match="access to database orders denied"):
            await databases.login(home, profile, Wanted("orders"))
    assert path.read_bytes() == before


async def test_a_new_login_renews_every_database_under_its_path(home: Home, cas: Cas) -> None:
    auth = AuthService(cas, names=("orders", "stock", "old"), refused=frozenset({"old"}))
    said: list[str] = []
    async with auth.running() as port:
        profile = profile_at(home, cas, port)
        paths = [
            database_login(home, cas, profile, name, db_user="alice", lasts=timedelta(seconds=-5))
            for name in auth.names
        ]
        stranger = database_login(home, Cas(), profile, "strange")
        before = [path.read_bytes() for path in paths]
        await databases.renew(home, profile, said.append)
    assert [path.exists() for path in (*paths, stranger)] == [True, True, False, False]
    assert all(path.read_bytes() != old for path, old in zip(paths[:2], before, strict=False))
    assert all(each.good(datetime.now(UTC)) for each in databases.logins(home, profile))
    assert len(said) == 1
    assert "no longer logged in to database old" in said[0]
    assert [each["destination"]["user"] for each in auth.asked] == ["alice"] * 3


async def test_without_database_logins_a_new_login_asks_nothing(home: Home, cas: Cas) -> None:
    await databases.renew(home, profile_at(home, cas, 1), pytest.fail)


async def test_a_good_login_is_used_and_another_user_gets_a_certificate_elsewhere(
    home: Home, cas: Cas, tmp_path: Path
) -> None:
    auth = AuthService(cas)
    async with auth.running() as port:
        profile = profile_at(home, cas, port)
        path = database_login(home, cas, profile, "orders", db_user="alice")
        before = path.read_bytes()
        mine = await databases.borrow(home, profile, tmp_path, Wanted("orders"))
        assert mine.credentials.certificate == path
        assert auth.asked == []
        other = await databases.borrow(home, profile, tmp_path, Wanted("orders", "reader"))
        assert other.credentials == Credentials(tmp_path / "orders.pem", tmp_path / "orders.pem"), "both in one file"
        assert (await databases.current(home, profile, home.path, Wanted("orders"))).credentials.certificate == path
    assert path.read_bytes() == before


async def test_an_ending_certificate_is_replaced_before_it_is_used(home: Home, cas: Cas) -> None:
    auth = AuthService(cas)
    async with auth.running() as port:
        profile = profile_at(home, cas, port)
        database_login(home, cas, profile, "orders", lasts=timedelta(seconds=10))
        found = await databases.current(home, profile, home.path, Wanted("orders"))
    assert len(auth.asked) == 1
    assert found.good(datetime.now(UTC))


async def test_listing_shows_each_database_once_and_who_one_is_there(home: Home, cas: Cas) -> None:
    async with AuthService(cas, names=("stock", "orders", "orders")).running() as port:
        profile = profile_at(home, cas, port)
        database_login(home, cas, profile, "orders", db_user="alice", database="shop")
        rows = await databases.listing(home, profile)
    assert [(row["name"], row["protocol"], row["login"]) for row in rows] == [
        ("orders", "postgres", "alice in shop"),
        ("stock", "postgres", ""),
    ]


async def test_a_proxy_is_not_taken_for_the_auth_service(home: Home, cas: Cas) -> None:
    auth = AuthService(cas)
    server = await asyncio.start_server(
        auth.serve, "127.0.0.1", 0, ssl=server_context(cas, alpn=f"teleport-auth@{cas.cluster}")
    )
    async with server:
        profile = profile_at(home, cas, server.sockets[0].getsockname()[1])
        with pytest.raises(Failure):
            await databases.databases(home, profile)
    assert auth.asked == []
