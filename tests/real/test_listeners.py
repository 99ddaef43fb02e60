"""Every address that the proxy opens beside the one port, with the clients that it is there for."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from monoport.daemon.host import Host, Identities
from monoport.net import sockets
from monoport.net.stream import Stream
from monoport.tunnel import dial
from monoport.tunnel.agent import Agent
from monoport.tunnel.preface import Preface
from monoport.tunnel.reach import Proxy

from .clients import Client, distribution, program
from .cluster import BIN, Cluster, Person
from .postgres import straight

OPENSSH = program("ssh", "-V")
POSTGRES = "straight to `postgres_listen_addr`: "


def test_ping_names_every_address(cluster: Cluster, alice: Person) -> None:
    context = ssl.create_default_context(cafile=f"{alice.home}/.tsh/keys/localhost/certs.pem")
    with urllib.request.urlopen(f"https://localhost:{cluster.port}/webapi/ping", context=context) as answer:
        proxy = json.load(answer)["proxy"]
    assert proxy["ssh"] == {
        "listen_addr": f"127.0.0.1:{cluster.ssh_port}",
        "tunnel_listen_addr": f"127.0.0.1:{cluster.tunnel_port}",
        "web_listen_addr": f"127.0.0.1:{cluster.port}",
        "public_addr": f"localhost:{cluster.port}",
    }
    assert proxy["db"] == {
        "postgres_listen_addr": f"127.0.0.1:{cluster.postgres_port}",
        "mysql_listen_addr": f"127.0.0.1:{cluster.mysql_port}",
        "mongo_listen_addr": f"127.0.0.1:{cluster.mongo_port}",
    }


# listen_addr


@pytest.fixture
def known(alice: Person, folder: Path) -> Path:
    """A configuration for ssh that trusts what `tsh login` has written, and asks nothing."""
    config = folder / "known"
    config.write_text(f"UserKnownHostsFile {alice.home}/.ssh/known_hosts\nBatchMode yes\n")
    return config


@pytest.mark.client(
    Client(
        "OpenSSH ssh", "ssh", "to `listen_addr`: `ssh -J PROXY:PORT LOGIN@node.example.com`, key in the agent", OPENSSH
    )
)
def test_ssh_jumps_by_the_port_for_ssh(cluster: Cluster, alice: Person, login: str, known: Path, need) -> None:
    jump = ["-F", known, "-J", f"localhost:{cluster.ssh_port}", f"{login}@node.example.com", "id -un"]
    assert alice.run(need("ssh"), *jump).stdout == f"{login}\n"


@pytest.mark.client(
    Client(
        "OpenSSH ssh",
        "ssh",
        'to `listen_addr`: `ssh -o "ProxyCommand ssh -p PORT -W %h:%p PROXY" LOGIN@node.example.com`',
        OPENSSH,
    )
)
def test_ssh_of_the_port_for_ssh_as_a_proxy_command(
    cluster: Cluster, alice: Person, login: str, known: Path, need
) -> None:
    inner = f"ProxyCommand {need('ssh')} -F {known} -p {cluster.ssh_port} -W %h:%p localhost"
    done = alice.run(need("ssh"), "-F", known, "-o", inner, f"{login}@node.example.com", "id -un")
    assert done.stdout == f"{login}\n"


def test_the_configuration_of_tsh_jumps_there_without_an_agent(
    cluster: Cluster, alice: Person, login: str, folder: Path, need
) -> None:
    config = folder / "config"
    config.write_text(alice.tsh("config").stdout)
    for port in (cluster.ssh_port, cluster.port):
        jump = ["-F", config, "-J", f"localhost:{port}", f"{login}@node.example.com", "id -un"]
        assert alice.run(need("ssh"), *jump, SSH_AUTH_SOCK="").stdout == f"{login}\n"


# tunnel_listen_addr


@asynccontextmanager
async def plain_agent(cluster: Cluster, port: int) -> AsyncIterator[Host]:
    """The node's own agent once more, by its certificate and without TLS: it says hello to whoever comes."""

    async def greet(preface: Preface, stream: Stream) -> None:
        await dial.accept(stream)
        await stream.write(f"hello from {preface.host_id}\n".encode())
        stream.send_eof()

    host = Identities(cluster.root / "node").load("node")
    assert host is not None
    where = Proxy("localhost", port)
    async with asyncio.TaskGroup() as group:
        agent = Agent(
            where,
            host.host_id,
            lambda: host.key,
            lambda: host.credentials.cas,
            greet,
            connect=lambda: sockets.connect("127.0.0.1", port, 10),
        )
        running = group.create_task(agent.run())
        async with asyncio.timeout(30):
            await agent.connected.wait()
        yield host
        running.cancel()


@pytest.mark.parametrize("door", ["tunnel_port", "ssh_port", "port"])
async def test_an_agent_without_tls_is_dialled(cluster: Cluster, alice: Person, door: str) -> None:
    """It is the newest tunnel of its host, so that it is asked first; the daemon's own is there as before."""
    async with plain_agent(cluster, getattr(cluster, door)) as host:
        words = [BIN / "tsh", "proxy", "ssh", "--user=anyone", "node.example.com:22"]
        done = await asyncio.to_thread(alice.run, *words)
        assert done.stdout == f"hello from {host.host_id}\n"
        rows = json.loads((await asyncio.to_thread(cluster.tctl, "conns", "ls", "--format=json")).stdout)
        mine = [row for row in rows if row["user"] == f"{host.host_id}@example.com"]
        tunnels = [row["alpn"] for row in mine if row["route"] == "tunnel"]
        assert sorted(tunnels) == ["", "teleport-reversetunnel"]


def test_the_port_for_agents_lets_in_no_user(cluster: Cluster, alice: Person, known: Path, need) -> None:
    trust = ["-F", known, "-o", f"UserKnownHostsFile {alice.home}/.tsh/keys/localhost/known_hosts"]
    done = alice.run(need("ssh"), *trust, "-p", str(cluster.tunnel_port), "localhost", code=255)
    assert re.search(r"Permission denied \(hostbased\)", done.stderr), done.stderr


# postgres_listen_addr


@pytest.mark.client(
    Client("psql", "postgres", POSTGRES + "`host=pg.db.localhost sslmode=verify-full …`", program("psql", "--version"))
)
def test_psql_by_the_port_for_postgresql(cluster: Cluster, dba: Person, need) -> None:
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    done = dba.run(need("psql"), straight(cluster, dba, port=cluster.postgres_port), "-Atc", "select current_user")
    assert done.stdout == "alice\n"


@pytest.mark.client(Client("psycopg", "postgres", POSTGRES + "`sslnegotiation=direct`", distribution("psycopg")))
def test_libpq_of_17_with_direct_tls_by_the_port_for_postgresql(cluster: Cluster, dba: Person) -> None:
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    words = straight(cluster, dba, port=cluster.postgres_port) + " sslnegotiation=direct"
    with psycopg.connect(words) as connection:
        assert connection.execute("select current_user").fetchone() == ("alice",)


def test_the_port_for_postgresql_wants_a_certificate(cluster: Cluster, dba: Person, need) -> None:
    words = straight(cluster, dba, port=cluster.postgres_port)
    bare = re.sub(r"sslcert=\S+ sslkey=\S+", "sslcert=/none sslkey=/none", words)
    assert "/none" in bare
    done = dba.run(need("psql"), bare, "-Atc", "select 1", code=2)
    assert "certificate required" in done.stderr, done.stderr
