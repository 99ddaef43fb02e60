"""One task's wait for one event, resumed without a turn of the event loop.

Belongs here: the awaitable that the streams are built on. Does not belong here: what is waited for.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import current_task
from collections.abc import Callable, Generator
from typing import Any


class Wakeup:
    """An awaitable for one task and one event, which `wake` announces.

    asyncio's Task waits on anything that has `_asyncio_future_blocking`, `get_loop`, `add_done_callback`,
    `result` and `cancel`. A Future would schedule the task for the loop's next turn; a Wakeup that is woken
    from the reactor's dispatch (no task is running then) steps the task at once, which saves a loop turn and a
    handle per event. Woken from inside a running task it falls back on `call_soon`: tasks do not nest.

    Whoever calls `wake` must do so as its last act, with its own state settled: the task may run to its end
    inside the call.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_cancelled", "_context", "_done", "_loop", "_message")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._callback: Callable[[Any], object] | None = None
        self._context: contextvars.Context | None = None
        self._done = False
        self._cancelled = False
        self._message: object = None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop whose tasks may wait here; asyncio asks."""
        return self._loop

    def add_done_callback(
        self, callback: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        """Take the step function of the one task that waits; asyncio calls it."""
        if self._callback is not None:
            raise RuntimeError("a Wakeup serves one task only")
        self._callback = callback
        self._context = context
        if self._done:
            self._loop.call_soon(callback, self, context=context)

    def done(self) -> bool:
        """Whether the event has come or the wait was cancelled."""
        return self._done

    def result(self) -> None:
        """What the task receives: nothing, or CancelledError with the message of `cancel`."""
        if self._cancelled:
            raise asyncio.CancelledError if self._message is None else asyncio.CancelledError(self._message)

    def cancel(self, msg: object = None) -> bool:
        """End the wait with CancelledError; False if the event has already come.

        msg: anyio's scopes, and with them Starlette's, know by it which cancellation is their own to swallow.
        """
        if self._done:
            return False
        self._done = self._cancelled = True
        self._message = msg
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)
        return True

    def wake(self) -> None:
        """Announce the event, and run the waiting task right now where that is allowed."""
        if self._done:
            return
        self._done = True
        callback, context = self._callback, self._context
        if callback is None:
            return
        self._callback = self._context = None  # the task holds this wakeup: no circle is left for the collector
        if context is not None and current_task(self._loop) is None:
            context.run(callback, self)
        else:
            self._loop.call_soon(callback, self, context=context)

    def __await__(self) -> Generator[Wakeup, None, None]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        self.result()
