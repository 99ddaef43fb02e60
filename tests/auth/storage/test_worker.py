"""The storage thread: shared commits, failures that reach their callers, endings."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from monoport.auth.storage.interface import StorageError
from monoport.auth.storage.worker import GROUP, Worker


def connect() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE t (n)")
    return db


def insert(number):
    return lambda db: db.execute("INSERT INTO t VALUES (?)", (number,)).rowcount


def count(db):
    return db.execute("SELECT count(*) FROM t").fetchone()[0]


@pytest.fixture
async def commits():
    return []


@pytest.fixture
async def worker(commits):
    worker = Worker(connect, lambda: commits.append(1))
    await worker.open()
    yield worker
    await worker.close()


async def test_writers_who_wait_together_share_a_commit(worker, commits):
    async with asyncio.TaskGroup() as group:
        for number in range(2 * GROUP):
            group.create_task(worker.call(insert(number), writes=True))
    assert 2 <= len(commits) < GROUP
    assert await worker.call(count, writes=False) == 2 * GROUP


async def test_a_job_that_fails_after_writing_takes_its_transaction_along(worker, commits):
    def broken(db):
        insert(1)(db)
        raise ZeroDivisionError("no")

    with pytest.raises(StorageError, match="the store failed: no") as caught:
        await worker.call(broken, writes=True)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert await worker.call(count, writes=False) == 0
    assert commits == []


async def test_a_job_that_ends_its_transaction_is_no_disaster(worker):
    with pytest.raises(StorageError, match="cannot commit"):
        await worker.call(lambda db: db.execute("ROLLBACK").rowcount, writes=True)
    assert await worker.call(insert(1), writes=True) == 1


async def test_a_store_that_cannot_roll_back_says_so_in_every_later_call(worker):
    class Stuck(sqlite3.Connection):
        def execute(self, sql, *rest):
            if sql == "ROLLBACK":
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *rest)

    stuck = Worker(lambda: sqlite3.connect(":memory:", isolation_level=None, factory=Stuck), lambda: None)
    await stuck.open()
    for _ in range(2):
        with pytest.raises(StorageError, match="the store failed"):
            await stuck.call(insert(1), writes=True)
    await stuck.close()


async def test_closing_finishes_what_waits(commits):
    worker = Worker(connect, lambda: commits.append(1))
    await worker.open()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker.call(insert(number), writes=True)) for number in range(10)]
        await asyncio.sleep(0)
        await worker.close()
    assert [task.result() for task in tasks] == [1] * 10


async def test_closing_after_a_failed_opening_returns():
    def refuse():
        raise StorageError("no")

    worker = Worker(refuse, lambda: None)
    with pytest.raises(StorageError, match="no"):
        await worker.open()
    await worker.close()


def test_a_loop_that_ended_before_its_answer_harms_nothing():
    async def leave_behind() -> Worker:
        worker = Worker(connect, lambda: None)
        await worker.open()
        task = asyncio.get_running_loop().create_task(worker.call(count, writes=False))
        await asyncio.sleep(0)
        task.cancel()
        return worker

    worker = asyncio.run(leave_behind())
    worker._jobs.put(None)
    worker._thread.join(10)
    assert not worker._thread.is_alive()
