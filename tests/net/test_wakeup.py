"""A task is resumed straight from where its event happens, and asyncio's rules still hold."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from monoport.net.wakeup import Wakeup


async def test_outside_any_task_the_waiter_runs_inside_the_call() -> None:
    loop = asyncio.get_running_loop()
    wakeup = Wakeup(loop)
    order: list[str] = []
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")

    async def wait() -> None:
        name.set("the waiter's own context")
        await wakeup
        order.append(name.get())

    task = loop.create_task(wait())
    await asyncio.sleep(0)
    happened = loop.create_future()

    def event() -> None:
        wakeup.wake()
        order.append("after wake")
        happened.set_result(None)

    loop.call_soon(event)
    await happened
    assert order == ["the waiter's own context", "after wake"]
    await task


async def test_from_inside_a_task_the_waiter_runs_later() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    order: list[str] = []

    async def wait() -> None:
        await wakeup
        order.append("waiter")

    task = asyncio.get_running_loop().create_task(wait())
    await asyncio.sleep(0)
    wakeup.wake()
    order.append("waker")
    await task
    assert order == ["waker", "waiter"]


async def test_an_event_before_the_wait_is_not_missed() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    wakeup.wake()
    await wakeup
    assert wakeup.done()


async def test_cancelling_the_task_wins_over_a_later_event() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())

    async def wait() -> None:
        await wakeup

    task = asyncio.get_running_loop().create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    wakeup.wake()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wakeup.cancel() is False


async def test_the_message_of_a_cancellation_arrives() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())

    async def wait() -> None:
        await wakeup

    task = asyncio.get_running_loop().create_task(wait())
    await asyncio.sleep(0)
    task.cancel("of this scope")
    with pytest.raises(asyncio.CancelledError, match="of this scope"):
        await task


async def test_one_task_only() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    wakeup.add_done_callback(lambda _: None)
    with pytest.raises(RuntimeError, match="one task"):
        wakeup.add_done_callback(lambda _: None)
