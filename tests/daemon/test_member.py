"""One role as a member of its cluster: entered when the cluster is known, named as configured, renewed in time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from monoport.auth import keys
from monoport.auth.transport import Dial
from monoport.config import Config
from monoport.config.load import parse
from monoport.daemon import member as module
from monoport.daemon.datadir import open_data_directory
from monoport.daemon.frontdoor import Proxy
from monoport.daemon.host import Identities
from monoport.daemon.member import Member, certificate_names, member
from monoport.errors import Failure
from monoport.net.stream import Stream

from .conftest import Auth

PATIENCE = 10.0  # seconds for what must happen


@asynccontextmanager
async def joined(config: Config, auth: Auth, role: str = "proxy") -> AsyncIterator[Member]:
    data, lock = open_data_directory(config.teleport.data_dir)
    try:
        async with member(role, config, data, auth.local) as found:
            yield found
    finally:
        os.close(lock)


@pytest.mark.parametrize(
    ("public", "names"),
    [
        ("proxy.example.com", ["proxy.example.com", "kube.proxy.example.com", "*.db.proxy.example.com"]),
        ("proxy.example.com:443", ["proxy.example.com", "kube.proxy.example.com", "*.db.proxy.example.com"]),
        ("[2001:db8::1]:3080", ["2001:db8::1"]),
    ],
)
async def test_the_names_of_a_proxys_certificate(auth: Auth, tmp_path: Path, public: str, names: list[str]) -> None:
    """They follow from the public addresses, and the auth service grants every one of them."""
    config = parse(
        f"version: v3\nteleport: {{data_dir: {tmp_path / 'data'}}}\nproxy_service: {{enabled: yes, "
        f"public_addr: ['{public}', '{public}']}}\nauth_service: {{cluster_name: example.com}}\n",
        "x",
    )
    assert certificate_names(config) == tuple(names)
    await auth.start()
    async with joined(config, auth) as proxy:
        assert proxy.host.carries(names)
        assert Proxy(config, proxy).front.table.publics


async def test_a_new_public_address_brings_a_new_certificate(auth: Auth, tmp_path: Path) -> None:
    await auth.start()
    text = (
        f"version: v3\nteleport: {{data_dir: {tmp_path / 'data'}}}\nproxy_service: {{enabled: yes, public_addr: %s}}\n"
    )
    async with joined(parse(text % "[one.example.com]", "x"), auth) as before:
        assert not before.host.carries(["two.example.com"])
    async with joined(parse(text % "[one.example.com, two.example.com]", "x"), auth) as after:
        assert after.host.carries(["one.example.com", "two.example.com"])
        assert after.host.host_id == before.host.host_id


async def test_it_is_entered_when_the_cluster_is_known(
    auth: Auth, configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, a proxy would refuse everybody: it knows no roles."""
    await auth.start()
    asked, open_ = asyncio.Event(), asyncio.Event()
    dial = auth.local.dial()

    def slow() -> Dial:
        async def wait() -> Stream:
            asked.set()
            await open_.wait()
            return await dial()

        return wait

    monkeypatch.setattr(auth.local, "dial", slow)
    entered, leave = asyncio.Event(), asyncio.Event()
    roles: set[str] = set()

    async def be() -> None:
        async with joined(configured(), auth) as proxy:
            roles.update(proxy.cache.roles)
            entered.set()
            await leave.wait()

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        group.create_task(be())
        await asked.wait()
        assert not entered.is_set()
        open_.set()
        await entered.wait()
        assert roles >= {"access", "editor", "auditor"}
        leave.set()


async def test_a_renewal_that_cannot_be_written_ends_nothing(
    auth: Auth, configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the old certificate is good for as long again, and the next try may succeed."""
    await auth.start()
    config = configured()
    write, done = keys.write_private, asyncio.Event()
    failures = iter([OSError(28, "No space left on device"), ConnectionResetError("as bad")])

    def full(path: Path, text: str) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        write(path, text)

    async with asyncio.timeout(PATIENCE), joined(config, auth) as proxy:
        old = proxy.host.credentials.certificate
        proxy.host.issued -= 2 * (proxy.host.expires - proxy.host.issued)  # long ago
        monkeypatch.setattr(module, "RENEWAL_SECONDS", 0)
        monkeypatch.setattr(keys, "write_private", full)
        async with asyncio.TaskGroup() as group:
            identities = Identities(config.teleport.data_dir)
            renewing = group.create_task(module._renew(proxy.host, proxy.client, identities, done.set))
            await done.wait()
            renewing.cancel()
        assert next(failures, None) is None
        assert proxy.host.credentials.certificate != old
        assert identities.load("proxy") == proxy.host


async def test_a_host_without_identity_and_token(tmp_path: Path) -> None:
    data, lock = open_data_directory(tmp_path / "data")
    text = (
        f"version: v3\nteleport: {{data_dir: {tmp_path}, proxy_server: 'localhost:1'}}\nssh_service: {{enabled: yes}}\n"
    )
    try:
        with pytest.raises(
            Failure, match=r"^this host cannot join as node: teleport\.join_params\.token_name is not set"
        ):
            async with member("node", parse(text, "x"), data, None):
                pass
    finally:
        os.close(lock)
