"""The auth service's own port: joining under the bootstrap name, and everything else as the service takes it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from monoport.auth import keys
from monoport.auth.client import AuthClient, tcp
from monoport.auth.keys import Credentials
from monoport.client.webapi import WebApi
from monoport.config import Config
from monoport.config.load import parse
from monoport.daemon.authdoor import AuthDoor
from monoport.daemon.host import Identities, join
from monoport.errors import Failure
from monoport.net.ports import bind
from monoport.net.sockets import connect
from monoport.net.stream import Stream
from monoport.net.tls import connect_tls
from monoport.proxy.web import app
from monoport.routing.names import BOOTSTRAP

from ..scenarios.cluster import CLUSTER  # noqa: TID252 # tests are no package
from .conftest import Auth

PATIENCE = 20.0  # seconds for what must happen, on a busy machine


@dataclass
class Door:
    """The port, and what comes to it."""

    auth: Auth
    port: int
    folder: Path
    stack: AsyncExitStack

    async def raw(self) -> Stream:
        stream = await connect("127.0.0.1", self.port, PATIENCE)
        self.stack.callback(stream.abort)
        return stream

    def context(self) -> ssl.SSLContext:
        """Of a client that knows the cluster's CA and has no certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata="".join(self.auth.local.cas.host))
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def get(
        self, path: str, *, name: str = BOOTSTRAP, host: str = BOOTSTRAP, context: ssl.SSLContext | None = None
    ) -> dict[str, Any]:
        stream = await connect_tls(await self.raw(), context or self.context(), server_hostname=name)
        return await WebApi(stream, host).get(path)

    def administrator(self) -> Credentials:
        certificate, key, _ = keys.identity_files(self.auth.local.data_dir, "admin")
        return Credentials(certificate.read_text(), key.read_text(), self.auth.local.cas)

    async def token(self, *types: str) -> str:
        async with AuthClient(self.auth.local.dial(), self.administrator) as client:
            return (await client.tokens_add(types)).token

    def config(self, token: str, pin: str = "") -> Config:
        text = (
            f"version: v3\n"
            f"teleport:\n  data_dir: {self.folder}\n  auth_server: 127.0.0.1:{self.port}\n"
            f"  ca_pin: {pin or self.auth.local.pins[0]}\n  join_params: {{token_name: {token}}}\n"
            f"proxy_service: {{enabled: yes}}\n"
        )
        return parse(text, "door.yaml")


@pytest.fixture
async def door(auth: Auth, tmp_path: Path) -> AsyncIterator[Door]:
    await auth.start()
    sockets = bind("127.0.0.1", 0)
    async with asyncio.timeout(PATIENCE * 3), asyncio.TaskGroup() as group, AsyncExitStack() as stack:
        running = group.create_task(AuthDoor(auth.local).run(sockets))
        stack.callback(running.cancel)
        while not sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # noqa: ASYNC110
            await asyncio.sleep(0)
        yield Door(auth, sockets[0].getsockname()[1], tmp_path / "host", stack)


async def test_a_proxy_joins_and_is_served_by_its_certificate(door: Door) -> None:
    identities = Identities(door.folder)
    host = await join(door.config(await door.token("proxy")), "proxy", identities)
    assert identities.load("proxy", CLUSTER) == host
    async with AuthClient(tcp("127.0.0.1", door.port), lambda: host.credentials) as client:
        assert (await client.status()).cluster == CLUSTER
        await identities.renew(host, client, ("proxy.example.com",))
    assert host.carries(["proxy.example.com", BOOTSTRAP])


async def test_another_pin_gets_no_token(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    post = WebApi.post

    async def heard(self: WebApi, path: str, value: dict[str, object]) -> dict[str, object]:
        said.append(path)
        return await post(self, path, value)

    monkeypatch.setattr(WebApi, "post", heard)
    token = await door.token("proxy")
    with pytest.raises(Failure, match="has another CA than ca_pin says"):
        await join(door.config(token, "sha256:" + "0" * 64), "proxy", Identities(door.folder))
    assert said == []
    await join(door.config(token), "proxy", Identities(door.folder))
    assert said == ["/webapi/join"]


async def test_tokens_count_as_at_a_proxy(door: Door) -> None:
    for token, why in ((await door.token("node"), "is for node"), ("never-made-token", "unknown")):
        with pytest.raises(Failure) as refused:
            await join(door.config(token), "proxy", Identities(door.folder))
        assert "token" in str(refused.value), why
    assert not (door.folder / "identity").exists()


async def test_nothing_else_is_there_without_a_certificate(door: Door) -> None:
    assert (await door.get("/webapi/cas"))["cluster"] == CLUSTER
    for path in ("/webapi/ping", "/webapi/login", "/", "/v1/status", "/v1/cas"):
        with pytest.raises(Failure, match=f"there is nothing at {path}$"):
            await door.get(path)
    with pytest.raises(Failure, match="does not serve that host"):
        await door.get("/webapi/cas", host="elsewhere.example.com")
    with pytest.raises((OSError, Failure), match=r"certificate required|broke off"):
        await door.get("/webapi/cas", name=CLUSTER)


async def test_who_shows_a_certificate_under_the_name_of_joining_is_nobody(door: Door) -> None:
    context = door.administrator().context()
    context.set_alpn_protocols(["http/1.1"])
    with pytest.raises(Failure, match="there is nothing at /v1/status"):
        await door.get("/v1/status", context=context)


@pytest.fixture
def two_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "JOIN_BURST", 2)
    monkeypatch.setattr(app, "JOIN_SECONDS", 3600.0)


async def test_tries_are_limited_by_source(two_tries: None, door: Door) -> None:
    for reason in ("token", "token", "too many tries"):
        with pytest.raises(Failure, match=reason):
            await join(door.config("never-made-token"), "proxy", Identities(door.folder))


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\0" * 16])
async def test_what_is_no_hello_is_ended(door: Door, first: bytes) -> None:
    stream = await door.raw()
    await stream.write(first)
    with contextlib.suppress(ConnectionError):
        while await stream.read():
            pass


async def test_a_hello_that_comes_octet_by_octet(door: Door) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = door.context().wrap_bio(incoming, outgoing, server_hostname=BOOTSTRAP)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    raw = await door.raw()
    for octet in outgoing.read():
        await raw.write(bytes((octet,)))
        await asyncio.sleep(0)
    while session.selected_alpn_protocol() is None:
        incoming.write(await raw.read())
        with contextlib.suppress(ssl.SSLWantReadError):
            session.do_handshake()
    assert session.selected_alpn_protocol() == "http/1.1"
