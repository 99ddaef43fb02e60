"""A wire that can be cut without either end noticing, and a clock that can be turned forward.

Belongs here: what tests of keep-alives share. Not here: what must notice.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

from monoport.net.memory import pair
from monoport.net.stream import Stream

TURNS = 40  # of the loop in one second of the clock: more than a probe and its answer need


class BlackHole:
    """Streams led through it go on until `swallow`; then nothing passes and nothing ends, as on a dead line."""

    def __init__(self) -> None:
        self._tasks = asyncio.TaskGroup()
        self._running: list[asyncio.Task[None]] = []
        self._open = True
        self._ends: list[Stream] = []

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        for task in self._running:
            task.cancel()
        await self._tasks.__aexit__(*raised)  # type: ignore[arg-type]

    def through(self, stream: Stream) -> Stream:
        """The stream's other side, behind the hole."""
        near, far = pair()
        self._ends += (stream, near)
        for source, sink in ((stream, near), (near, stream)):
            self._running.append(self._tasks.create_task(self._carry(source, sink)))
        return far

    def swallow(self) -> None:
        """From now on nothing passes."""
        self._open = False

    def cut(self) -> None:
        """Reset everything that still hangs on the line, so that a test can end."""
        for stream in self._ends:
            stream.abort()

    async def _carry(self, source: Stream, sink: Stream) -> None:
        with suppress(ConnectionError):
            while data := await source.read():
                if self._open:
                    await sink.write(data)
            if self._open:
                sink.close()


class Clock:
    """The running loop's clock, which a test turns forward: its timers come when they are due, without the wait."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ahead, self._real = 0.0, self._loop.time
        self._loop.time = self._now  # type: ignore[method-assign]

    def _now(self) -> float:
        return self._real() + self._ahead

    async def forward(self, seconds: int) -> None:
        """Let that time pass, a second at once, and all that happens in it."""
        for _ in range(seconds):
            self._ahead += 1.0
            for _ in range(TURNS):
                await asyncio.sleep(0)

    def stop(self) -> None:
        """Give the loop its own clock back."""
        self._loop.time = self._real  # type: ignore[method-assign]
