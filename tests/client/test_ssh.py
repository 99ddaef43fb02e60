"""`tsh proxy ssh`: the way to a node, as ssh's ProxyCommand runs it."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from monoport.client.front import Front
from monoport.client.profile import Home
from monoport.client.ssh import Target, open_node, own_cluster, proxy_link
from monoport.errors import Failure
from monoport.net.stream import Stream

from .conftest import Cas, signed_in
from .sshproxy import SshProxy, echo

TSH = str(Path(sys.executable).with_name("tsh"))
PATIENCE = 30.0  # seconds for anything that takes milliseconds


async def start(home: Home, *words: str, **pipes: Any) -> asyncio.subprocess.Process:
    piped = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    environment = os.environ | {"TSH_HOME": str(home.path)}
    return await asyncio.create_subprocess_exec(TSH, *words, env=environment, **(piped | pipes))


async def run(home: Home, *words: str, send: bytes = b"") -> tuple[int | None, bytes, str]:
    process = await start(home, *words)
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate(send)
    return process.returncode, out, err.decode()


async def test_bytes_go_both_ways_and_the_end_comes_after_the_last_of_them(home: Home, cas: Cas) -> None:
    async def node(_host: str, _port: int, stream: Stream) -> None:
        seen = bytearray()
        while data := await stream.read():
            seen += data
        await stream.write(bytes(reversed(seen)))

    sent = os.urandom(1_000_000)
    async with SshProxy(cas, node).running() as proxy:
        signed_in(home, cas, proxy.address.port)
        status, out, err = await run(home, "proxy", "ssh", "--user=root", "node.example.com:2222", send=sent)
    assert (status, err) == (0, "")
    assert out == sent[::-1]
    assert proxy.opened == [("node.example.com", 2222)]
    assert proxy.users == ["root"]


async def test_it_ends_when_the_node_ends_though_standard_input_is_open(home: Home, cas: Cas) -> None:
    async def node(_host: str, _port: int, stream: Stream) -> None:
        await stream.write(b"bye")

    async with SshProxy(cas, node).running() as proxy:
        signed_in(home, cas, proxy.address.port)
        process = await start(home, "proxy", "ssh", "--user=root", "node")
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await process.stdout.read() == b"bye"
            assert await process.wait() == 0
    assert proxy.opened == [("node", 22)]


async def test_it_ends_when_its_client_has_gone(home: Home, cas: Cas) -> None:
    ended = asyncio.Event()

    async def node(_host: str, _port: int, stream: Stream) -> None:
        await stream.write(b"hello")
        try:
            while await stream.read():
                pass
        finally:
            ended.set()

    async with SshProxy(cas, node).running() as proxy:
        signed_in(home, cas, proxy.address.port)
        reading, writing = os.pipe()
        process = await start(home, "proxy", "ssh", "--user=root", "node", stdout=writing)
        os.close(writing)
        async with asyncio.timeout(PATIENCE):
            await asyncio.to_thread(os.read, reading, 5)
            os.close(reading)
            await process.wait()
            await ended.wait()
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.read()


async def test_a_refused_node_is_one_line(home: Home, cas: Cas) -> None:
    async with SshProxy(cas, echo, refused={"nowhere": "no node nowhere in example.com"}).running() as proxy:
        signed_in(home, cas, proxy.address.port)
        status, out, err = await run(home, "proxy", "ssh", "--user=root", "nowhere:22")
    assert (status, out) == (1, b"")
    assert err == "tsh: no node nowhere in example.com\n"


async def test_an_ended_login_is_one_line_and_never_reaches_the_proxy(home: Home, cas: Cas) -> None:
    async with SshProxy(cas, echo).running() as proxy:
        signed_in(home, cas, proxy.address.port, lasts=timedelta(seconds=-1))
        status, _, err = await run(home, "proxy", "ssh", "--user=root", "node:22")
    assert status == 1
    assert err.endswith(f"log in again: tsh login --proxy=localhost:{proxy.address.port} --user=alice\n")
    assert len(err.splitlines()) == 1
    assert proxy.users == []


async def test_a_certificate_that_the_proxy_does_not_take_says_to_log_in_again(home: Home, cas: Cas) -> None:
    async with SshProxy(cas, echo).running() as proxy:
        mine = signed_in(home, cas, proxy.address.port)
        stranger = Cas()
        pair_home = Home(home.path.with_name("stranger"))
        other = signed_in(pair_home, stranger, proxy.address.port)
        for name in ("key", "ssh_certificate"):
            getattr(home.keys(mine), name).write_bytes(getattr(pair_home.keys(other), name).read_bytes())
        with pytest.raises(Failure, match="refused your certificate, log in again"):
            async with proxy_link(Front(mine), home.keys(mine), "root"):
                pass


async def test_a_host_certificate_for_another_name_is_refused(home: Home, cas: Cas) -> None:
    async with SshProxy(cas, echo, ssh_names=("node-7",)).running() as proxy:
        profile = signed_in(home, cas, proxy.address.port)
        with pytest.raises(Failure, match="SSH host certificate of localhost"):
            async with proxy_link(Front(profile), home.keys(profile), "root"):
                pass
    assert proxy.opened == []


async def test_a_proxy_of_another_cluster_is_refused_before_ssh(home: Home, cas: Cas) -> None:
    async with SshProxy(Cas(), echo).running() as proxy:
        profile = signed_in(home, cas, proxy.address.port)
        with pytest.raises(Failure, match=r"the certificate of localhost.* does not verify"):
            async with proxy_link(Front(profile), home.keys(profile), "root"):
                pass
    assert proxy.users == []


async def test_several_nodes_over_one_connection(home: Home, cas: Cas) -> None:
    async with SshProxy(cas, echo).running() as proxy:
        profile = signed_in(home, cas, proxy.address.port)
        async with proxy_link(Front(profile), home.keys(profile), "root") as link:
            for number in range(3):
                async with await open_node(link, Target(f"node-{number}", 22, "root")) as node:
                    await node.write(b"ping")
                    assert await node.read_exactly(4) == b"ping"
    assert len(proxy.users) == 1
    assert len(proxy.opened) == 3


async def test_without_a_host_one_line_shows_the_right_form(home: Home) -> None:
    status, out, err = await run(home, "proxy", "ssh")
    assert (status, out) == (1, b"")
    assert err.startswith("tsh: tsh proxy ssh --user=LOGIN")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("host", ["node:x", "a b", "[::1", "node:99999"])
async def test_what_is_no_host_shows_the_right_form(home: Home, host: str) -> None:
    status, _, err = await run(home, "proxy", "ssh", "--user=root", host)
    assert status == 1
    assert "--user=%r %h:%p" in err
    assert len(err.splitlines()) == 1


def test_another_cluster_is_named(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 3080)
    own_cluster(profile, "")
    own_cluster(profile, "example.com")
    with pytest.raises(Failure, match=r"cluster .leaf\.example\.com. cannot be reached"):
        own_cluster(profile, "leaf.example.com")


async def test_a_proxy_that_is_gone_without_a_word_is_noticed_within_30_s(
    home: Home, cas: Cas, black_hole: Any, clock: Any
) -> None:
    async with SshProxy(cas, echo, through=black_hole.through).running() as proxy:
        profile = signed_in(home, cas, proxy.address.port)
        async with (
            proxy_link(Front(profile), home.keys(profile), "root") as link,
            await open_node(link, Target("node", 22, "root")) as node,
        ):
            await node.write(b"x")
            assert await node.read() == b"x"
            await clock.forward(60)
            assert not link.is_closed()
            black_hole.swallow()
            await clock.forward(30)
            assert link.is_closed()
            with pytest.raises(ConnectionError):
                await node.read()
            black_hole.cut()
