"""The one thread that touches a SQLite file, and its transactions.

Belongs here: running jobs in order, many in one transaction, so that writers who wait together share one fsync.
Does not: SQL; a job brings its own.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

import structlog

from monoport.auth.storage.interface import StorageError

_log = structlog.get_logger()

T = TypeVar("T")

GROUP: Final = 256  # jobs in one transaction; bounds how long the first of them waits
BUSY_MS: Final = 5000  # a second process (a backup, an administrator's sqlite3) may hold the lock this long


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    writes: bool
    future: asyncio.Future[Any]


@final
class Worker:
    """Owns one connection in one thread.

    Args:
        connect: opens the connection; runs in the thread.
        written: called on the loop's thread after each transaction that wrote.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], written: Callable[[], None]) -> None:
        self._connect = connect
        self._written = written
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)

    async def open(self) -> None:
        """Start the thread and wait until its connection is there; raises StorageError."""
        self._thread.start()
        await self._opened

    async def call(self, run: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        """Run a job and return its result after its transaction was committed.

        A job must raise what its caller did wrong (StorageError) before it has written anything.
        """
        if self._closing:
            raise StorageError("the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(run, writes, future))
        return await future

    async def close(self) -> None:
        """Finish the jobs that wait, then close the connection."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        await asyncio.shield(self._ended)

    def _run(self) -> None:
        try:
            connection = self._connect()
        except (sqlite3.Error, StorageError, OSError) as error:
            failure = error if isinstance(error, StorageError) else StorageError(f"cannot open the store: {error}")
            self._tell(lambda: _settle(self._opened, None, failure))
            self._tell(lambda: _settle(self._ended, None, None))
            return
        self._tell(lambda: _settle(self._opened, None, None))
        while (batch := self._next_batch()) is not None:
            self._transact(connection, batch)
        connection.close()
        self._tell(lambda: _settle(self._ended, None, None))

    def _next_batch(self) -> list[_Job] | None:
        job = self._jobs.get()
        if job is None:
            return None
        batch = [job]
        while len(batch) < GROUP and not self._jobs.empty():
            job = self._jobs.get()
            if job is None:
                self._jobs.put(None)  # the end comes after this batch; nothing can have been queued behind it
                break
            batch.append(job)
        return batch

    def _transact(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        outcomes: list[tuple[asyncio.Future[Any], Any, Exception | None]] = []
        writes = any(job.writes for job in batch)
        try:
            connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            for job in batch:
                try:
                    outcomes.append((job.future, job.run(connection), None))
                except StorageError as error:
                    outcomes.append((job.future, None, error))
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  it is raised again, in each caller
            _roll_back(connection)
            outcomes = [(job.future, None, _failure(error)) for job in batch]
            writes = False
        self._tell(lambda: self._deliver(outcomes, writes))

    def _deliver(self, outcomes: list[tuple[asyncio.Future[Any], Any, Exception | None]], wrote: bool) -> None:
        for future, result, error in outcomes:
            _settle(future, result, error)
        if wrote:
            self._written()

    def _tell(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self._loop.is_closed():  # a closed loop has nobody left who waits
                raise


def _failure(cause: Exception) -> StorageError:
    failure = StorageError(f"the store failed: {cause}")
    failure.__cause__ = cause
    return failure


def _settle(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():  # its caller was cancelled; what it asked for is done all the same
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _roll_back(connection: sqlite3.Connection) -> None:
    if not connection.in_transaction:  # SQLite has rolled back by itself, as it does after some errors
        return
    try:
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        _log.error("the store cannot roll back, every later call will fail", error=str(error))
