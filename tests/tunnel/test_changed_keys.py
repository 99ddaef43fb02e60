"""While keys are exchanged, however long the peer takes, what waits is bounded, and nothing of it is lost."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_KEXINIT

from monoport.net.stream import HIGH_WATER
from monoport.tunnel import packets

from .test_packets import Ends, opened


def stalled(ends: Ends) -> Any:
    """The near end's connection, in the middle of an exchange whose next step the far end never takes."""
    near, far = ends.link(ends.near), ends.link(ends.far)
    far._packet_handlers = {**far._packet_handlers, MSG_KEXINIT: lambda *_: True}
    near._rekey_bytes = 1
    ends.near.send(b"x")
    ends.near.send(b"y")
    assert not near._kex_complete
    return near


async def test_data_holds_its_writer_back_whatever_the_window(world, permit):
    async with opened(world, permit) as ends:
        link, channel = stalled(ends), ends.near._channel()
        channel._send_window = 1 << 31
        piece = bytes(65_536)
        sent = sum(ends.near.send(piece) for _ in range(64))
        assert sent < 4
        assert MSG_CHANNEL_DATA not in [kind for kind, _ in link._deferred_packets]
        assert channel._send_window == 1 << 31
        assert channel.get_write_buffer_size() > HIGH_WATER


@pytest.mark.parametrize("by_time", [False, True], ids=["by bytes", "by time"])
async def test_what_waited_goes_on_with_new_keys_by_itself(world, permit, by_time):
    data = os.urandom(200_000)
    async with opened(world, permit) as ends, asyncio.timeout(10):
        link = ends.link(ends.near)
        if by_time:
            link._rekey_seconds, link._rekey_time = 3600, time.monotonic()
        else:
            link._rekey_bytes = 1
            ends.near.send(data[:1])
            data = data[1:]
            assert await ends.far.read_exactly(1)
            link._rekey_bytes = 1 << 30
            link._rekey_bytes_sent = 1 << 30
        first = link._send_encryption
        ends.near.send(data)
        assert not link._kex_complete, "data alone has begun the exchange"
        ends.near.send_eof()
        assert await ends.far.read_exactly(len(data)) == data
        assert await ends.far.read() == b""
        assert link._send_encryption is not first


async def test_answers_that_wait_are_counted(world, permit, monkeypatch):
    monkeypatch.setattr(packets, "DEFERRED", 100)
    async with opened(world, permit) as ends, asyncio.timeout(10):
        link, far = stalled(ends), ends.link(ends.far)
        asked = asyncio.gather(*(far._make_global_request(b"x") for _ in range(200)), return_exceptions=True)
        await ends.near.wait_closed()
        await asked
        assert link._transport is None
        assert len(link._deferred_packets) < 200
