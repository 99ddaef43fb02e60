"""OpenSSL's own client and server at the other end."""

from __future__ import annotations

import asyncio
import re
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from monoport.net.arrival import Arrival, Limits
from monoport.net.listener import Listener
from monoport.net.ports import bind
from monoport.net.sockets import connect
from monoport.net.tls import HandshakeError, TlsStream, connect_tls, serve_tls

from ..net.conftest import server_context  # noqa: TID252  # tests are no package
from ..net.pki import cluster  # noqa: TID252

Need = Callable[[str], str]


@asynccontextmanager
async def upper(folder: Path) -> AsyncIterator[int]:
    """Answers every line in upper case, over TLS with ALPN `shout`; its port."""
    context = server_context(folder, "shout")

    async def serve(arrival: Arrival) -> None:
        arrival.routed()
        arrival.stream.unread(arrival.first)
        async with await serve_tls(arrival.stream, context, alpn="shout") as stream:
            arrival.settled()
            while data := await stream.read():
                await stream.write(data.upper())

    sockets = bind("127.0.0.1", 0)
    listener = Listener(sockets, serve, Limits())
    task = asyncio.get_running_loop().create_task(listener.run())
    await asyncio.sleep(0)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        listener.drain(0)
        await task


async def s_client(need: Need, folder: Path, port: int, *options: str) -> Process:
    (folder / "ca.pem").write_text(cluster().hosts.pem)
    return await asyncio.create_subprocess_exec(
        *(
            need("openssl"),
            "s_client",
            "-quiet",
            "-no_ign_eof",
            "-connect",
            f"127.0.0.1:{port}",
            "-servername",
            "localhost",
        ),
        *("-CAfile", str(folder / "ca.pem"), "-verify_return_error", "-verify_hostname", "localhost", *options),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )


async def test_s_client_talks_to_our_server(need: Need, tmp_path: Path) -> None:
    async with upper(tmp_path) as port:
        client = await s_client(need, tmp_path, port, "-alpn", "shout")
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"hello over there\n")
        assert await client.stdout.readline() == b"HELLO OVER THERE\n"
        big = b"x" * 1_000_000 + b"\n"
        client.stdin.write(big)
        assert await client.stdout.readexactly(len(big)) == big.upper()
        client.stdin.close()
        assert await client.wait() == 0


async def test_s_client_with_another_protocol_is_not_served(need: Need, tmp_path: Path) -> None:
    async with upper(tmp_path) as port:
        client = await s_client(need, tmp_path, port, "-alpn", "whisper")
        said, _ = await client.communicate(b"hello\n")
        assert said == b""
        assert client.returncode is not None


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_our_client_talks_to_s_server(need: Need, tmp_path: Path, version: str) -> None:
    leaf = cluster().proxy
    (tmp_path / "server.pem").write_bytes(leaf.certificate + leaf.key)
    server = await asyncio.create_subprocess_exec(
        *(need("openssl"), "s_server", "-accept", "127.0.0.1:0", "-cert", str(tmp_path / "server.pem"), "-rev"),
        version,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert server.stdout is not None
    try:
        port = 0
        while not port:
            line = (await server.stdout.readline()).decode()
            assert line, "s_server ended"
            found = re.search(r"ACCEPT .*:(\d+)", line)
            port = int(found[1]) if found else 0
        raw = await connect("127.0.0.1", port)
        stream: TlsStream = await connect_tls(raw, cluster().client(), server_hostname="localhost")
        assert stream.version == version[1:].replace("tls1_", "TLSv1.")
        await stream.write(b"straight\n")
        assert await stream.read_exactly(9) == b"thgiarts\n"
        stream.close()
        raw = await connect("127.0.0.1", port)
        with pytest.raises(HandshakeError, match="Hostname mismatch"):
            await connect_tls(raw, cluster().client(), server_hostname="elsewhere.example.com")
    finally:
        server.kill()
        await server.communicate()
