"""The spool for many tasks, under kill -9, and shipping from it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monoport.audit.events import make, parse
from monoport.audit.log import SpoolLog
from monoport.audit.ship import GATHER, ship
from monoport.audit.spool import Spool, SpoolError

WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from monoport.audit.events import EventIds, make, parse
from monoport.audit.spool import Spool

async def main(folder):
    spool = await Spool.open(Path(folder), segment=20000)
    ids = EventIds(lambda: datetime.now(UTC))
    async def write():
        while True:
            event = make(ids, "test.kill", {"text": "x" * 300})
            await spool.append(event)
            print(event.id, flush=True)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(write())

asyncio.run(main(sys.argv[1]))
"""


async def everything(spool: Spool) -> list[str]:
    found: list[str] = []
    batch = await spool.read()
    while batch.events:
        found += [event.id for event in batch.events]
        batch = await spool.read(batch.end)
    return found


def write_until_killed(folder: Path, lines: int) -> list[str]:
    """Append in another process, kill it -9 after so many acknowledgements; return all that reached us."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(lines)]
    os.kill(writer.pid, signal.SIGKILL)
    said += writer.stdout.read().splitlines(keepends=True)
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    return [line.strip() for line in said if line.endswith("\n")]


async def test_kill_9_loses_no_acknowledged_event(tmp_path: Path):
    chance = random.Random(3)
    acknowledged: list[str] = []
    for _ in range(20):
        acknowledged += write_until_killed(tmp_path, chance.randint(1, 80))
    spool = await Spool.open(tmp_path)
    found = await everything(spool)
    await spool.close()
    assert len(acknowledged) >= 20
    assert set(acknowledged) <= set(found)
    assert len(set(found)) == len(found)


@pytest.fixture
async def spool(tmp_path):
    spool = await Spool.open(tmp_path / "spool", segment=2000)
    yield spool
    await spool.close()


async def test_events_of_many_tasks_share_syncs(spool, ids, monkeypatch):
    syncs = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (syncs.append(file), sync(file)))
    events = [make(ids, "test.many", {"n": number}) for number in range(500)]
    async with asyncio.TaskGroup() as group:
        for event in events:
            group.create_task(spool.append(event))
    assert 1 <= len(syncs) < 100
    assert await everything(spool) == [event.id for event in events]


async def test_those_who_waited_together_share_the_next_sync_too(spool, ids, monkeypatch):
    """Where a sync is longer than the pause between hand-overs: the first to come back waits for company alone."""
    monkeypatch.setattr("monoport.audit.spool.SPACING", 0.0)
    syncs = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (syncs.append(file), sync(file)))
    rounds = 20

    async def ask() -> None:
        for _ in range(rounds):
            await spool.append(make(ids, "test.one", {}))

    await asyncio.gather(*(ask() for _ in range(4)))
    assert len(syncs) <= rounds + 2, "the first came alone, and those behind it went ahead of it"


async def test_an_event_is_on_disk_when_append_returns(spool, ids, tmp_path):
    event = make(ids, "test.one", {})
    await spool.append(event)
    assert any(event.id.encode() in path.read_bytes() for path in (tmp_path / "spool").iterdir())


async def test_a_failing_disk_fails_every_event_of_the_group(spool, ids, monkeypatch):
    def fail(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    log = SpoolLog(spool)
    results = await asyncio.gather(*(log.emit("test.fail", n=n) for n in range(5)), return_exceptions=True)
    assert all(isinstance(result, SpoolError) for result in results)
    assert (await spool.unshipped()).events == ()


async def test_a_cancelled_append_disturbs_nobody(spool, ids):
    first, second = make(ids, "test.one", {}), make(ids, "test.two", {})
    async with asyncio.TaskGroup() as group:
        doomed = group.create_task(spool.append(first))
        group.create_task(spool.append(second))
        await asyncio.sleep(0)
        doomed.cancel()
    assert second.id in await everything(spool)


async def test_closing_finishes_what_waits_and_refuses_more(tmp_path, ids):
    spool = await Spool.open(tmp_path)
    event = make(ids, "test.last", {})
    async with asyncio.TaskGroup() as group:
        group.create_task(spool.append(event))
        await asyncio.sleep(0)
        await spool.close()
    await spool.close()
    with pytest.raises(SpoolError, match="closed"):
        await spool.append(event)
    spool = await Spool.open(tmp_path)
    assert await everything(spool) == [event.id]
    await spool.close()


async def test_closing_ends_on_a_disk_that_fails_then(tmp_path, ids):
    spool = await Spool.open(tmp_path)
    await spool.append(make(ids, "test.closing", {}))
    os.close(spool._files()._file)
    async with asyncio.timeout(5):
        await spool.close()


async def test_errors_of_reading_reach_the_reader(spool, ids, tmp_path):
    await spool.append(make(ids, "test.one", {}))
    for path in (tmp_path / "spool").iterdir():
        path.unlink()
    with pytest.raises(SpoolError, match="cannot read"):
        await spool.unshipped()


async def test_a_folder_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError):
        await Spool.open(tmp_path / "file")


def test_a_loop_that_ended_harms_nothing(tmp_path, ids):
    async def leave_behind() -> Spool:
        spool = await Spool.open(tmp_path)
        task = asyncio.get_running_loop().create_task(spool.append(make(ids, "test.one", {})))
        await asyncio.sleep(0)
        task.cancel()
        return spool

    spool = asyncio.run(leave_behind())
    spool._jobs.put(None)
    spool._thread.join(10)
    assert not spool._thread.is_alive()


# --- shipping


class Receiver:
    """Takes events, after as many failures as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.seen: list[str] = []
        self.pauses: list[float] = []
        self.news = asyncio.Condition()

    async def send(self, events) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionRefusedError("auth is away")
        async with self.news:
            self.seen += [parse(event).id for event in events]
            self.news.notify_all()

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def wait_for(self, count: int) -> None:
        async with self.news:
            await self.news.wait_for(lambda: len(self.seen) >= count)


async def test_waiting_for_something_to_ship_ends_when_there_is(spool, ids):
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(spool.wait_unshipped())
        for _ in range(5):
            assert (await spool.unshipped()).events == ()
        assert not waiting.done()
        await spool.append(make(ids, "test.one", {}))
    assert waiting.done()


async def test_events_are_shipped_in_order_as_they_come(spool, ids):
    receiver = Receiver()
    events = [make(ids, "test.ship", {"n": number}) for number in range(600)]
    async with asyncio.TaskGroup() as group:
        shipping = group.create_task(ship(spool, receiver.send))
        for event in events[:300]:
            await spool.append(event)
        await receiver.wait_for(300)
        for event in events[300:]:
            await spool.append(event)
        await receiver.wait_for(600)
        shipping.cancel()
    assert receiver.seen == [event.id for event in events]


async def test_events_of_busy_times_travel_together(spool, ids):
    sent: list[int] = []
    events = [make(ids, "test.ship", {"n": number}) for number in range(101)]
    done = asyncio.Event()

    async def send(batch):
        sent.append(len(batch))

    async def gather(seconds):
        assert seconds == GATHER
        if len(sent) > 1:
            done.set()
            return
        for event in events[1:]:
            await spool.append(event)

    await spool.append(events[0])
    async with asyncio.TaskGroup() as group:
        shipping = group.create_task(ship(spool, send, gather=gather))
        await asyncio.wait_for(done.wait(), 20)
        shipping.cancel()
    assert sent == [1, 100], "the first at once, what came in the pause behind it in one request"


async def test_shipping_tries_again_with_growing_pauses_and_loses_nothing(spool, ids):
    receiver = Receiver(failures=8)
    event = make(ids, "test.ship", {})
    await spool.append(event)
    async with asyncio.TaskGroup() as group:
        shipping = group.create_task(ship(spool, receiver.send, sleep=receiver.sleep, rand=lambda: 1.0))
        await receiver.wait_for(1)
        shipping.cancel()
    assert receiver.seen == [event.id]
    assert receiver.pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


async def test_a_place_that_cannot_be_written_down_ends_nothing(spool, ids, tmp_path):
    """A full or read-only disk may keep the events and refuse to note that they were shipped."""
    [folder] = list(tmp_path.rglob("events-*.log"))
    in_the_way = folder.parent / "shipped.new"
    in_the_way.mkdir()
    receiver = Receiver()
    event = make(ids, "test.ship", {})

    async def sleep(seconds: float) -> None:
        await receiver.sleep(seconds)
        in_the_way.rmdir()

    await spool.append(event)
    async with asyncio.TaskGroup() as group:
        shipping = group.create_task(ship(spool, receiver.send, sleep=sleep, rand=lambda: 1.0))
        await receiver.wait_for(1)
        later = make(ids, "test.ship", {})
        await spool.append(later)
        await receiver.wait_for(2)
        shipping.cancel()
    assert receiver.seen == [event.id, later.id], "only a restart in between would ship the first again"
    assert receiver.pauses == [1.0]


async def test_what_was_shipped_before_a_restart_is_not_shipped_again(tmp_path, ids):
    receiver = Receiver()
    spool = await Spool.open(tmp_path)
    first, second = make(ids, "test.ship", {}), make(ids, "test.ship", {})
    await spool.append(first)
    await spool.shipped(await spool.unshipped())
    await spool.append(second)
    await spool.close()
    spool = await Spool.open(tmp_path)
    async with asyncio.TaskGroup() as group:
        shipping = group.create_task(ship(spool, receiver.send))
        await receiver.wait_for(1)
        shipping.cancel()
    assert receiver.seen == [second.id]
    await spool.close()


async def test_damage_alone_is_passed_over_and_what_follows_is_shipped(tmp_path, ids, monkeypatch):
    monkeypatch.setattr("monoport.audit.segments.READ", 1000)
    (tmp_path / "events-0000000000000001.log").write_bytes(b"damaged\n" * 300)
    receiver = Receiver()
    spool = await Spool.open(tmp_path)
    async with asyncio.TaskGroup() as group:
        shipping = group.create_task(ship(spool, receiver.send))
        event = make(ids, "test.ship", {})
        await spool.append(event)
        await receiver.wait_for(1)
        shipping.cancel()
    assert receiver.seen == [event.id]
    await spool.close()


async def test_many_who_wait_are_synced_in_groups_of_a_bounded_size(spool, ids, monkeypatch):
    monkeypatch.setattr("monoport.audit.spool.GROUP", 10)
    syncs = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (syncs.append(file), sync(file)))
    events = [make(ids, "test.group", {}) for _ in range(35)]
    await asyncio.gather(*(spool.append(event) for event in events))
    assert await everything(spool) == [event.id for event in events]
    assert len(syncs) == 5, "the first alone, three times ten, and the rest"
