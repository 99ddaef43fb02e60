"""The loop that sleeps on the reactor's set: asyncio's own descriptors, timers and threads work on it as ever."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
import threading

import pytest

from monoport.net import eventloop
from monoport.net.reactor import READ, Reactor
from monoport.net.sockets import SocketStream

ours = pytest.mark.asyncio(loop_factories=["monoport"])


def streams() -> tuple[SocketStream, SocketStream]:
    one, other = socket.socketpair()
    return SocketStream(one), SocketStream(other)


@ours
async def test_connections_are_served_without_asyncio_seeing_them() -> None:
    loop = asyncio.get_running_loop()
    here, there = streams()
    here.send(b"hello")
    assert await there.read() == b"hello"
    with pytest.raises(KeyError):
        loop._selector.get_key(there.socket.fileno())  # type: ignore[attr-defined]
    here.close()
    there.close()


@ours
async def test_asyncio_reads_and_writes_beside_connections() -> None:
    here, there = streams()
    near, far = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=near)
    other, answers = await asyncio.open_connection(sock=far)
    for number in range(50):
        here.send(b"%d" % number)
        writer.write(b"%d\n" % number)
        assert await there.read() == b"%d" % number
        assert await other.readline() == b"%d\n" % number
        answers.write(b"ok\n")
        assert await reader.readline() == b"ok\n"
    writer.close()
    answers.close()
    here.close()
    there.close()


@ours
async def test_a_connection_that_is_always_ready_holds_up_neither_timers_nor_descriptors() -> None:
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    there.send(b"never read")
    served = 0

    def ready(_mask: int) -> None:
        nonlocal served
        served += 1

    reactor = Reactor.of(loop)
    reactor.register(here.fileno(), READ, ready)
    near, far = os.pipe()
    readable = asyncio.Event()
    loop.add_reader(near, readable.set)
    try:
        os.write(far, b"x")
        async with asyncio.timeout(5):
            await readable.wait()
            await asyncio.sleep(0.01)
    finally:
        reactor.unregister(here.fileno())
        loop.remove_reader(near)
        for one in (near, far):
            os.close(one)
        here.close()
        there.close()
    assert served > 1


@ours
async def test_other_threads_processes_and_signals_wake_it() -> None:
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    threading.Thread(target=loop.call_soon_threadsafe, args=(woken.set,)).start()
    signalled = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, signalled.set)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(20):
            await woken.wait()
            await signalled.wait()
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", "print('hi')", stdout=-1)
            said, _ = await child.communicate()
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
    assert said == b"hi\n"


@ours
async def test_a_receiver_that_fails_ends_its_connection_alone() -> None:
    loop = asyncio.get_running_loop()
    told: list[str] = []
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    here, there = socket.socketpair()
    there.send(b"x")

    def broken(_mask: int) -> None:
        raise RuntimeError("a bug")

    Reactor.of(loop).register(here.fileno(), READ, broken)
    near, far = streams()
    near.send(b"still here")
    assert await far.read() == b"still here"
    assert len(told) == 1
    for one in (here, there, near, far):
        one.close()


def test_run_closes_what_it_made() -> None:
    async def main() -> select.epoll:
        loop = asyncio.get_running_loop()
        return loop._selector.epoll  # type: ignore[attr-defined, no-any-return]

    assert eventloop.run(main()).closed
