"""The listener over loopback: slots, deadlines, draining, and running out of descriptors."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from monoport.net import listener as listening
from monoport.net.arrival import Arrival, LateError, Limits
from monoport.net.listener import Listener
from monoport.net.ports import ListenError, bind
from monoport.net.sockets import ConnectError, SocketStream, connect, connect_unix
from monoport.net.stream import EndOfStream


async def echo(arrival: Arrival) -> None:
    arrival.routed()
    arrival.settled()
    await arrival.stream.write(arrival.first)
    while data := await arrival.stream.read():
        await arrival.stream.write(data)


class Refusals:
    """What the listener turned away; `seen` is set with each."""

    def __init__(self) -> None:
        self.codes: list[str] = []
        self.reasons: list[str] = []
        self.seen = asyncio.Event()

    def __call__(self, _id: str, _source: object, code: str, reason: str) -> None:
        self.codes.append(code)
        self.reasons.append(reason)
        self.seen.set()


@asynccontextmanager
async def running(
    limits: Limits,
    serve: Callable[[Arrival], Awaitable[None]] = echo,
    refused: Refusals | None = None,
    *,
    greets: float | None = None,
) -> AsyncIterator[tuple[Listener, int]]:
    sockets = bind("127.0.0.1", 0)
    listener = Listener(
        sockets, serve, limits, refused, greets={} if greets is None else dict.fromkeys(sockets, greets)
    )
    port = sockets[0].getsockname()[1]
    task = asyncio.get_running_loop().create_task(listener.run())
    await asyncio.sleep(0)
    try:
        yield listener, port
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def ended(stream: SocketStream) -> bool:
    try:
        return await stream.read() == b""
    except ConnectionError:
        return True
    finally:
        stream.abort()


async def test_many_clients_are_served_side_by_side() -> None:
    async with running(Limits()) as (_, port):
        clients = [await connect("127.0.0.1", port) for _ in range(50)]
        for number, client in enumerate(clients):
            await client.write(b"%d" % number)
        for number, client in enumerate(clients):
            assert await client.read() == b"%d" % number
            client.close()


def kept_alive(sock: socket.socket) -> tuple[int, ...]:
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    timing = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    return (sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *timing)


# 0.0.0.0 is this machine too, by an address that nothing takes for loopback.
@pytest.mark.parametrize(("host", "probed"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
async def test_a_peer_that_vanishes_is_noticed_at_both_ends(host: str, probed: bool) -> None:
    accepted: list[tuple[int, ...]] = []

    async def look(arrival: Arrival) -> None:
        assert isinstance(arrival.stream, SocketStream)
        accepted.append(kept_alive(arrival.stream.socket))
        await echo(arrival)

    async with running(Limits(), look) as (_, port), await connect(host, port) as client:
        await client.write(b"here")
        assert await client.read_exactly(4) == b"here"
        assert accepted == [(1, 60, 15, 4)]
        assert (kept_alive(client.socket) == (1, 60, 15, 4)) is probed, "on loopback it would cost each dial four calls"


async def test_a_silent_client_is_turned_away_in_time_by_name() -> None:
    refused = Refusals()
    async with running(Limits(first_bytes=0.05), refused=refused) as (listener, port):
        client = await connect("127.0.0.1", port)
        assert await ended(client)
        assert refused.codes == ["silence"]
        assert "0.05 s" in refused.reasons[0]
        assert listener.taken == 0


@pytest.mark.parametrize("after", [0.0, 0.05])
async def test_a_silent_client_is_served_where_it_is_to_be_greeted(after: float) -> None:
    async def greet(arrival: Arrival) -> None:
        arrival.routed()
        arrival.settled()
        await arrival.stream.write(b"nothing yet" if not arrival.first else arrival.first)

    async with running(Limits(), greet, greets=after) as (_, port), await connect("127.0.0.1", port) as client:
        assert await client.read() == b"nothing yet"


async def test_who_speaks_or_leaves_in_time_is_not_greeted() -> None:
    refused = Refusals()
    async with running(Limits(first_bytes=0.05), refused=refused, greets=4.0) as (_, port):
        async with await connect("127.0.0.1", port) as client:
            await client.write(b"first")
            assert await client.read_exactly(5) == b"first"
        async with await connect("127.0.0.1", port) as client:
            client.send_eof()
            assert await client.read() == b""
        assert await ended(await connect("127.0.0.1", port))  # the deadline for first bytes holds all the same
        assert refused.codes == ["silence"]


async def test_five_hundred_silent_clients_hold_nobody_up() -> None:
    refused = Refusals()
    async with running(Limits(first_bytes=0.4), refused=refused) as (listener, port):
        silent = [await connect("127.0.0.1", port) for _ in range(500)]
        began = asyncio.get_running_loop().time()
        working = await connect("127.0.0.1", port)
        for _ in range(20):
            await working.write(b"ping")
            assert await working.read_exactly(4) == b"ping"
        assert asyncio.get_running_loop().time() - began < 0.4
        assert listener.taken == 501
        assert all(await asyncio.gather(*map(ended, silent)))
        assert refused.codes == ["silence"] * 500
        await working.write(b"still")
        assert await working.read_exactly(5) == b"still"
        working.close()


async def test_first_bytes_that_drip_do_not_extend_the_deadline() -> None:
    outcome: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def drink(arrival: Arrival) -> None:
        try:
            while True:
                await arrival.more()
        except Exception as error:
            outcome.set_result(error)
            raise

    async with running(Limits(first_bytes=0.1), drink) as (_, port):
        client = await connect("127.0.0.1", port)
        while not outcome.done():
            client.send(b".")
            await asyncio.wait([outcome], timeout=0.02)
        assert isinstance(outcome.result(), LateError)
        client.abort()


async def test_a_client_that_ends_early_is_told_from_one_that_is_late() -> None:
    outcome: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def more(arrival: Arrival) -> None:
        try:
            await arrival.more()
        except EndOfStream as error:
            outcome.set_result(error)

    async with running(Limits(), more) as (_, port):
        client = await connect("127.0.0.1", port)
        client.send(b"half")
        client.send_eof()
        assert "after 4 bytes" in str(await outcome)
        client.abort()


async def test_one_source_gets_its_share_and_no_more() -> None:
    refused = Refusals()
    async with running(Limits(per_source=3), refused=refused) as (_, port):
        clients = [await connect("127.0.0.1", port) for _ in range(3)]
        for client in clients:
            await client.write(b"x")
            assert await client.read() == b"x"
        fourth = await connect("127.0.0.1", port)
        assert await ended(fourth)
        assert refused.codes == ["too_many_connections"]
        clients[0].close()
        while True:  # until the slot is free again
            again = await connect("127.0.0.1", port)
            again.send(b"y")
            try:
                if await again.read() == b"y":
                    break
            except ConnectionError:
                continue
        for client in (*clients, again):
            client.abort()


async def test_loopback_is_exempt_unless_a_share_is_set_and_networks_count_as_one() -> None:
    async with running(Limits()) as (listener, _):
        assert listener._share("127.0.0.1") == ("127.0.0.1", None)
        assert listener._share("::1") == ("::1", None)
        assert listener._share("::ffff:127.0.0.1") == ("127.0.0.1", None)
        assert listener._share("192.0.2.7") == ("192.0.2.7", listening.PER_SOURCE)
        assert listener._share("::ffff:192.0.2.7") == ("192.0.2.7", listening.PER_SOURCE)
        assert listener._share("2001:db8::1")[0] == listener._share("2001:db8::ffff:2")[0] == "2001:db8::/64"
    async with running(Limits(per_source=2)) as (listener, _):
        assert listener._share("127.0.0.1") == ("127.0.0.1", 2)


async def test_with_every_slot_taken_newcomers_wait_for_one() -> None:
    async with running(Limits(connections=2)) as (listener, port):
        first, second = [await connect("127.0.0.1", port) for _ in range(2)]
        for client in (first, second):
            await client.write(b"x")
            assert await client.read() == b"x"
        third = await connect("127.0.0.1", port)  # by the kernel; nobody accepts it yet
        await third.write(b"y")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(third.read(), 0.05)
        assert listener.taken == 2
        first.close()
        assert await third.read() == b"y"
        second.abort()
        third.abort()


async def test_out_of_descriptors_it_rests_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "REST", 0.05)
    async with running(Limits()) as (listener, port):
        real = listening.socket.socket._accept  # type: ignore[attr-defined]
        calls = 0

        def exhausted(sock: socket.socket) -> Any:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return real(sock)

        monkeypatch.setattr(listening.socket.socket, "_accept", exhausted, raising=False)
        with capture_logs() as logs:
            client = await connect("127.0.0.1", port)
            await client.write(b"x")
            assert await client.read() == b"x"
        assert calls <= 5  # one try a rest, no spinning
        assert [line["event"] for line in logs].count("cannot accept connections") == 2
        client.abort()
        assert listener.taken <= 1


async def test_one_connections_error_is_logged_with_its_id_and_ends_nobody_else() -> None:
    async def serve(arrival: Arrival) -> None:
        if arrival.first == b"bug":
            raise ZeroDivisionError
        await echo(arrival)

    async with running(Limits(), serve) as (_, port):
        healthy, sick = [await connect("127.0.0.1", port) for _ in range(2)]
        await healthy.write(b"x")
        assert await healthy.read() == b"x"
        with capture_logs() as logs:
            await sick.write(b"bug")
            assert await ended(sick)
        broke = [line for line in logs if line["event"] == "connection broke"]
        assert len(broke) == 1
        assert broke[0]["connection"]
        await healthy.write(b"y")
        assert await healthy.read() == b"y"
        healthy.abort()


async def test_draining_lets_the_running_end_and_refuses_the_new() -> None:
    sockets = bind("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    listener = Listener(sockets, echo, Limits())
    task = asyncio.get_running_loop().create_task(listener.run())
    await asyncio.sleep(0)
    client = await connect("127.0.0.1", port)
    await client.write(b"x")
    assert await client.read() == b"x"
    listener.drain(5)
    await asyncio.sleep(0)
    with pytest.raises(ConnectError, match="refused"):
        await connect("127.0.0.1", port)
    await client.write(b"y")
    assert await client.read() == b"y"
    client.close()
    await task


async def test_draining_ends_what_is_left_after_the_grace() -> None:
    sockets = bind("127.0.0.1", 0)
    listener = Listener(sockets, echo, Limits())
    task = asyncio.get_running_loop().create_task(listener.run())
    await asyncio.sleep(0)
    client = await connect("127.0.0.1", sockets[0].getsockname()[1])
    await client.write(b"x")
    assert await client.read() == b"x"
    listener.drain(0.05)
    await task
    assert await ended(client)


async def test_two_daemons_on_one_port_get_a_clear_error() -> None:
    async with running(Limits()) as (_, port):
        with pytest.raises(ListenError, match="in use"):
            bind("127.0.0.1", port)


async def test_dialling_names_address_and_reason(tmp_path: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ConnectError, match=rf"127\.0\.0\.1:{port}: Connection refused"):
            await connect("127.0.0.1", port)
        with pytest.raises(ConnectError, match=rf"localhost:{port}: Connection refused"):
            await connect("localhost", port)
    with pytest.raises(ConnectError, match="no-such-host"):
        await connect("no-such-host.invalid", 1)
    with pytest.raises(ConnectError, match="No such file"):
        await connect_unix(tmp_path / "nothing")


async def test_a_reset_is_seen_and_passed_on_by_tcp() -> None:
    outcome: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def serve(arrival: Arrival) -> None:
        try:
            await arrival.stream.read()
        except ConnectionResetError as error:
            outcome.set_result(error)
        arrival.stream.abort()

    async with running(Limits(), serve) as (_, port):
        client = await connect("127.0.0.1", port)
        await client.write(b"x")
        client.abort()
        assert isinstance(await outcome, ConnectionResetError)
