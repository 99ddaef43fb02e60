"""A library's socket and our stream are one connection."""

from __future__ import annotations

import asyncio

from monoport.net.handoff import as_socket
from monoport.net.memory import pair


async def test_bytes_and_both_ends_cross_the_hand_off() -> None:
    near, far = pair()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        sock = as_socket(near, group)
        await far.write(b"question")
        assert await loop.sock_recv(sock, 100) == b"question"
        await loop.sock_sendall(sock, b"answer")
        assert await far.read() == b"answer"
        sock.close()
        assert await far.read() == b""
    assert near.lost


async def test_a_peer_that_is_gone_is_the_end_of_the_socket() -> None:
    near, far = pair()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        sock = as_socket(near, group)
        far.close()
        assert await loop.sock_recv(sock, 100) == b""
        sock.close()
