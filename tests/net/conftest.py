"""Pairs of streams, each transport in turn: memory, sockets, TLS over both, TLS in TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from monoport.net.memory import pair
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.net.tls import connect_tls, serve_tls

from .pki import cluster

Pair = tuple[Stream, Stream]


def server_context(folder: Path, *alpn: str) -> ssl.SSLContext:
    """A server's context with the cluster's proxy certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cluster().proxy.load(context, folder)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def sockets() -> Pair:
    """Two streams over a socket pair."""
    a, b = socket.socketpair()
    return SocketStream(a), SocketStream(b)


async def secured(ends: Pair, folder: Path) -> Pair:
    """TLS over both ends; the first is the server."""
    async with asyncio.TaskGroup() as group:
        server = group.create_task(serve_tls(ends[0], server_context(folder)))
        client = group.create_task(connect_tls(ends[1], cluster().client(), server_hostname="localhost"))
    return server.result(), client.result()


@pytest.fixture(params=["memory", "socket", "tls-memory", "tls-socket", "tls-in-tls"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Pair]]]:
    """Makes pairs of one transport, and ends them after the test."""
    made: list[Stream] = []

    async def one() -> Pair:
        ends = sockets() if "socket" in request.param or "in" in request.param else pair()
        for _ in range(str(request.param).count("tls")):
            ends = await secured(ends, tmp_path)
        made.extend(ends)
        return ends

    yield one
    for stream in made:
        stream.abort()
