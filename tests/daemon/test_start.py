"""The life of a daemon: ready, drained by SIGTERM, stopped with one clear line when a service fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from monoport.auth.authorities import TrustedCas
from monoport.client.webapi import WebApi
from monoport.config import Address, Config, ConfigError
from monoport.daemon import agents, authdoor, start
from monoport.daemon.agents import Service
from monoport.daemon.datadir import open_data_directory
from monoport.errors import Failure
from monoport.net.arrival import Limits
from monoport.net.sockets import ConnectError, connect
from monoport.net.tls import connect_tls

from ..scenarios.cluster import PUBLIC  # noqa: TID252 # tests are no package

PATIENCE = 20.0  # seconds for what must happen, on a busy machine

pytestmark = pytest.mark.usefixtures("process")


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[tuple[start._Daemon, int]]:
    """A daemon that is ready, and its web port; it has stopped when the body has made it stop."""
    data, lock = open_data_directory(config.teleport.data_dir)
    bound = start._bind(config)
    port = bound["web"][0].getsockname()[1]
    daemon = start._Daemon(config, data, bound)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        task = group.create_task(daemon.run())
        await daemon.ready.wait()
        yield daemon, port
        await task
    os.close(lock)


async def web(config: Config, port: int) -> WebApi:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    cas = TrustedCas.from_json((config.teleport.data_dir / "cas.json").read_text())
    context.load_verify_locations(cadata="".join(cas.host))
    raw = await connect("127.0.0.1", port, PATIENCE)
    return WebApi(await connect_tls(raw, context, server_hostname=PUBLIC), PUBLIC)


async def test_sigterm_drains(configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """No new connections; running ones go on for their grace; then everything ends and the sockets are gone."""
    monkeypatch.setattr("monoport.daemon.frontdoor.GRACE_SECONDS", 0.5)
    config = configured()
    async with running(config) as (daemon, port):
        client = await web(config, port)
        await client.get("/webapi/ping")

        os.kill(os.getpid(), signal.SIGTERM)
        await daemon.stopping.wait()
        await asyncio.sleep(0)  # a turn of the loop, in which the listener closes
        with pytest.raises(ConnectError, match="refused"):
            await connect("127.0.0.1", port, PATIENCE)
        assert (await client.get("/webapi/ping"))["cluster_name"] == config.cluster_name

    with pytest.raises(Failure, match="broke off"):
        await client.get("/webapi/ping")
    data = config.teleport.data_dir
    assert not (data / "daemon.sock").exists()
    assert not (data / "auth.sock").exists()


async def test_the_auth_services_own_port_has_no_deadline_of_the_front_door(
    configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch lasts for days: what limits strangers' first bytes and handshakes does not end it."""
    monkeypatch.setattr(authdoor, "Limits", partial(Limits, first_bytes=0.2, handshake=0.2))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = configured()
    service = config.auth_service.model_copy(update={"listen_addr": Address("127.0.0.1", port)})
    async with running(config.model_copy(update={"auth_service": service})) as (daemon, _):
        assert daemon.auth is not None
        raw = await connect("127.0.0.1", port, PATIENCE)
        context = daemon.auth.credentials.context()
        async with await connect_tls(raw, context, server_hostname=config.cluster_name) as stream:
            with pytest.raises(TimeoutError):  # rather than the connection's end
                await asyncio.wait_for(stream.read(), 0.5)
        os.kill(os.getpid(), signal.SIGTERM)


async def test_without_connections_it_stops_at_once(configured: Callable[..., Config]) -> None:
    async with running(configured()) as (_, _port):
        began = asyncio.get_running_loop().time()
        os.kill(os.getpid(), signal.SIGINT)
    assert asyncio.get_running_loop().time() - began < start.TICK * 4  # less than the grace of connections


def test_the_failure_of_one_service_stops_the_daemon_with_one_line(
    configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = agents.make

    def failing(*arguments: object) -> Service:
        made = make(*arguments)  # type: ignore[arg-type]

        async def beat() -> None:
            raise Failure("the node's inventory is on fire")

        return Service(made.agent, beat, made.leases, made.member)

    monkeypatch.setattr(agents, "make", failing)
    config = configured("ssh_service: {enabled: yes}")
    for _ in range(2):  # the second time too: neither the data folder nor a port is held by what has failed
        with pytest.raises(Failure) as failed:
            start.run(config)
        assert str(failed.value) == "the node's inventory is on fire"


def test_an_error_in_a_service_is_not_swallowed(
    configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(start.admin, "serve", failing)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        start.run(configured())


def test_an_address_in_use_is_told_where_it_was_written_before_anything_starts(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = configured(proxy=f", mongo_listen_addr: '127.0.0.1:{port}'")
        with pytest.raises(ConfigError) as failed:
            start.run(config)
    line = "proxy_service: {enabled: yes, web_listen_addr: '127.0.0.1:0', public_addr: ['proxy.example.com:443'], "
    column = len(line + "mongo_listen_addr: ") + 1
    assert str(failed.value) == (
        f"{tmp_path / 'monoport.yaml'}:4:{column}: proxy_service.mongo_listen_addr: 127.0.0.1:{port} cannot be "
        "listened on: it is in use; expected a free address of this host (does another daemon run?)"
    )
    assert not (tmp_path / "data" / "auth.db").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_one_address_for_two_keys_is_told_at_the_second(configured: Callable[..., Config], host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = configured(proxy=f", tunnel_listen_addr: '127.0.0.1:{port}', mongo_listen_addr: '{host}:{port}'")
    with pytest.raises(ConfigError, match=f"{host}:{port} is taken by proxy_service.tunnel_listen_addr; expected"):
        start.run(config)


def test_the_first_failure_for_a_user_is_shown() -> None:
    fault, failure = ZeroDivisionError(), Failure("one line")
    assert start._first(ExceptionGroup("", [fault, ExceptionGroup("", [failure, Failure("another")])])) is failure
    assert start._first(ExceptionGroup("", [ExceptionGroup("", [fault])])) is fault
