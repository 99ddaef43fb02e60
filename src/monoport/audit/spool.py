"""Durable events for many tasks at once: whoever waits together shares one sync.

Belongs here: the spool's thread and what awaits it. Does not: files (segments.py), sending events on (ship.py).
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, final

from monoport.audit.events import Event, encode
from monoport.audit.segments import CAPACITY, SEGMENT, Batch, Position, Segments, SpoolError, Waiting

__all__ = ["Batch", "Position", "Spool", "SpoolError", "Waiting"]

GROUP: Final = 1024  # appends in one sync; bounds how long the first of them waits
# Seconds between two hand-overs. One, with its sync, costs some 100 us of processor time, for one line
# as for fifty: a busy spool pays for at most 500 a second, and an idle one's event never waits for it.
SPACING: Final = 0.002
# Seconds that events wait for company behind a hand-over of several: whoever waited for those goes on at the same
# moment, and is back about then. Without it every other sync held one event.
COMPANY: Final = 0.001

T = TypeVar("T")

_Append = tuple[list[bytes], asyncio.Future[None]]  # the lines of one call, and who waits for them
_Outcome = tuple[asyncio.Future[Any], object, Exception | None]  # who waits, and the result or what failed


@dataclass(frozen=True, slots=True)
class _Lines:
    appends: list[_Append]


@dataclass(frozen=True, slots=True)
class _Call:
    run: Callable[[], Any]
    future: asyncio.Future[Any]


@final
class Spool:
    """One folder of events; made by `open`, on the loop that uses it."""

    def __init__(self, folder: Path, segment: int, capacity: int) -> None:
        self._open = lambda: Segments(folder, segment=segment, capacity=capacity)
        self._segments: Segments | None = None
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Lines | _Call | None] = queue.SimpleQueue()
        self._gathered: list[_Append] = []  # since the last hand-over
        self._next = 0.0  # when the next hand-over may be, by the loop's clock
        self._syncing = 0  # groups that the thread has not answered: what comes meanwhile goes together
        self._company = False  # the last hand-over held events of several callers
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._news = asyncio.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    @classmethod
    async def open(cls, folder: Path, *, segment: int = SEGMENT, capacity: int = CAPACITY) -> Spool:
        """Open or make the spool in `folder`, after recovering what a kill left torn.

        Args:
            folder: of this spool alone.
            segment: bytes after which a new file begins.
            capacity: bytes that may wait.

        Raises:
            SpoolError: if the folder cannot be used.
        """
        spool = cls(folder, segment, capacity)
        spool._segments = await asyncio.to_thread(spool._open)
        spool._thread.start()
        return spool

    async def append(self, *events: Event) -> None:
        """Keep events, all or none of them; when it returns, they survive a kill and a power cut.

        Raises:
            SpoolError: if they could not be kept: what they belong to must not go on.
        """
        if self._closing:
            raise SpoolError("the spool is closed")
        future: asyncio.Future[None] = self._loop.create_future()
        self._gathered.append(([encode(event) for event in events], future))
        if self._timer is None and not self._syncing:
            self._soon()
        await future

    async def unshipped(self, limit: int = 256) -> Batch:
        """Return the oldest events that were not acknowledged with `shipped`; the same again until they are."""
        segments = self._files()
        return await self._call(lambda: segments.read(segments.position, limit))

    async def shipped(self, batch: Batch) -> None:
        """Acknowledge a batch: another process keeps its events now."""
        segments = self._files()
        await self._call(lambda: segments.acknowledge(batch.end, batch.lines))

    async def read(self, start: Position | None = None, limit: int = 256) -> Batch:
        """Return events behind `start`, from the oldest that is still here if None."""
        segments = self._files()
        return await self._call(lambda: segments.read(start or segments.first, limit))

    @property
    def waiting(self) -> Waiting:
        """What was not shipped yet, as the spool's thread has last counted it; asking costs that thread nothing."""
        return self._files().waiting

    async def wait_unshipped(self) -> None:
        """Wait until there is something to ship."""
        segments = self._files()
        while not await self._call(lambda: segments.pending):
            self._news.clear()
            if not await self._call(lambda: segments.pending):
                await self._news.wait()

    async def probe(self) -> None:
        """Try whether events could be kept now, without keeping one; raises SpoolError if not."""
        await self._call(self._files().probe)

    async def close(self) -> None:
        """Finish what waits and close the files; it may be called again."""
        if not self._closing:
            self._closing = True
            self._hand_over()
            self._jobs.put(None)
        await asyncio.shield(self._ended)

    def _files(self) -> Segments:
        assert self._segments is not None
        return self._segments

    async def _call(self, run: Callable[[], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._submit(_Call(run, future))
        return await future

    def _submit(self, job: _Call) -> None:
        if self._closing:
            raise SpoolError("the spool is closed")
        self._jobs.put(job)

    def _soon(self) -> None:
        """Give the thread what was gathered, as soon as it may be."""
        now = self._loop.time()
        begin = max(self._next, now + COMPANY) if self._company else self._next
        if now >= begin:
            self._hand_over()
        else:
            self._timer = self._loop.call_at(begin, self._hand_over)

    def _hand_over(self) -> None:
        """Give the thread what was gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next = self._loop.time() + SPACING
        gathered, self._gathered = self._gathered, []
        self._company = len(gathered) > 1
        for start in range(0, len(gathered), GROUP):
            self._syncing += 1
            self._jobs.put(_Lines(gathered[start : start + GROUP]))

    def _run(self) -> None:
        segments = self._files()
        while (job := self._jobs.get()) is not None:
            if isinstance(job, _Lines):
                self._write(segments, job.appends)
            else:
                self._answer(job)
        segments.close()
        self._tell([(self._ended, None, None)])

    def _write(self, segments: Segments, appends: list[_Append]) -> None:
        failure: Exception | None = None
        try:
            segments.write([line for lines, _ in appends for line in lines])
        except Exception as error:  # noqa: BLE001  it is raised again, in each caller
            failure = error
        self._tell([(future, None, failure) for _, future in appends], synced=True)

    def _answer(self, job: _Call) -> None:
        try:
            self._tell([(job.future, job.run(), None)])
        except Exception as error:  # noqa: BLE001  it is raised again, in the caller
            self._tell([(job.future, None, error)])

    def _tell(self, outcomes: list[_Outcome], *, synced: bool = False) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, outcomes, synced)
        except RuntimeError:
            if not self._loop.is_closed():  # a closed loop has nobody left who waits
                raise

    def _deliver(self, outcomes: list[_Outcome], synced: bool) -> None:
        for future, result, error in outcomes:
            if future.done():  # its caller was cancelled; the event is kept all the same
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        if synced:
            self._news.set()
            self._syncing -= 1
            if self._gathered and self._timer is None and not self._syncing:
                self._soon()
