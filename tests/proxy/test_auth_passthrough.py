"""The auth service behind the one port: untouched bytes, ends passed on, and an alert when it is away."""

import asyncio

import pytest

from monoport.net import memory
from monoport.net.stream import Stream
from monoport.proxy.auth import AuthService
from monoport.proxy.connection import Connection, Refused
from monoport.routing.outcome import Kind, Route

ROUTE = Route(Kind.AUTH, "auth", None, passthrough=True, target="example.com")


def connect(stream: Stream) -> Connection:
    return Connection("c1", ("192.0.2.7", 5), stream, None, route=ROUTE)  # type: ignore[arg-type]


async def test_bytes_pass_both_ways_with_what_was_read_first() -> None:
    client, front = memory.pair()
    back, server = memory.pair()
    front.unread(b"\x16\x03\x01 hello ")

    async def dial() -> Stream:
        return back

    connection = connect(front)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(AuthService(dial).serve(connection))
        await client.write(b"and more")
        assert await server.read_exactly(18) == b"\x16\x03\x01 hello and more"
        await server.write(b"answer")
        assert await client.read() == b"answer"
        client.send_eof()
        assert await server.read() == b""
        await server.write(b"last")
        server.send_eof()
        assert await client.read() == b"last"
        assert await client.read() == b""
        await serving
    assert (connection.meter.bytes_in, connection.meter.bytes_out) == (18, 10)
    assert back.lost


@pytest.mark.parametrize("error", [ConnectionRefusedError("refused"), TimeoutError()])
async def test_an_auth_service_that_is_away_is_an_alert_with_a_reason(error: Exception) -> None:
    async def dial() -> Stream:
        raise error

    _, front = memory.pair()
    with pytest.raises(Refused) as caught:
        await AuthService(dial).serve(connect(front))
    refusal = caught.value.refusal
    assert refusal.code == "auth_unreachable"
    assert refusal.send == b"\x15\x03\x03\x00\x02\x02\x50"
    assert refusal.reason.startswith("auth service unreachable: ")
