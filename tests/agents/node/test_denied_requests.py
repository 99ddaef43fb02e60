"""Requests that a node never serves, and what is written about them."""

import signal

import asyncssh
import pytest
from asyncssh.packet import String

from monoport.errors import Failure
from monoport.tunnel.channel import ChannelSession


async def test_network_devices_and_other_subsystems_are_refused(world):
    async with world.connected() as client:
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.open_tun()
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.open_tap()
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.create_session(asyncssh.SSHClientSession, subsystem="netconf")
        assert (await client.run("echo still here")).stdout == "still here\n"


async def test_a_second_program_on_one_channel_is_refused(world):
    async with world.connected() as client:
        channel, _ = await client.create_session(asyncssh.SSHClientSession, "cat", encoding=None)
        assert await channel._make_request(b"exec", String("id")) is False
        assert await channel._make_request(b"subsystem", String("sftp")) is False
    assert len(world.events("session.start")) == 1


async def test_a_command_that_no_program_can_take(world):
    async with world.connected() as client:
        found = await client.run("echo a\0b")
        long = await client.run("x" * 200_000)
    assert found.exit_status == 254
    assert "NUL" in found.stderr
    assert long.exit_status == 254
    assert "too long" in long.stderr


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Failure("the spool is full")])
async def test_nothing_goes_on_where_it_cannot_be_recorded(world, monkeypatch, error):
    async def full(kind, /, **fields):
        raise error

    async with world.connected() as client:
        monkeypatch.setattr(world.audit, "emit", full)
        found = await client.run("touch ~/went-on")
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.create_connection(ChannelSession, "127.0.0.1", 1)
        monkeypatch.undo()
        after = await client.run("ls ~/went-on")
    assert found.exit_status == 254
    assert after.exit_status == 2


async def test_a_client_that_asks_on_and_on_is_sent_away(world, make_role):
    world.roles["access"] = make_role(remote_port_forwarding=None)
    async with world.connected() as client:
        for _ in range(65):
            with pytest.raises((asyncssh.ChannelListenError, asyncssh.DisconnectError)):
                await client.create_server(lambda *_: ChannelSession(), "127.0.0.1", 0)
        await client.wait_closed()
    assert len(world.events("session.deny")) == 64


async def test_signals_that_the_agent_ignores_are_the_programs_own_again(world):
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        async with world.connected() as client:
            found = await client.run("grep SigIgn /proc/self/status")
    finally:
        signal.signal(signal.SIGUSR2, before)
    settable = sum(1 << (number - 1) for number in signal.valid_signals())  # the C library keeps 32 and 33 to itself
    assert int(found.stdout.split()[1], 16) & settable == 0
