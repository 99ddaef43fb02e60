"""Disks that are full or broken, real ones too: what is refused, what waits, and that it ends without a restart."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from monoport.audit import outage as module
from monoport.audit.log import SpoolLog
from monoport.audit.outage import NotRecorded, OnFailure, Outage
from monoport.audit.spool import Spool

PATIENCE = 20.0  # seconds for what must happen


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte of its own; mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a real full disk takes root who may mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until there is no space left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with (folder / "more").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.write(bytes(4096))
    return ballast


async def until_refused(log: SpoolLog, first: int) -> list[int]:
    """Emit events until one is refused, and return the numbers of those that were taken before."""
    taken: list[int] = []
    try:
        for number in range(first, first + 1000):  # what is left of the last page may still take a few
            await log.emit("session.start", n=number, text="x" * 1000)
            taken.append(number)
    except NotRecorded:
        return taken
    raise AssertionError("a full disk took a thousand events")


async def kept(spool: Spool) -> list[object]:
    batch = await spool.read(limit=100_000)
    return [event.fields.get("n", event.fields.get("lost")) for event in batch.events]


class Pauses:
    """`sleep` that lets a test go on between two tries."""

    def __init__(self) -> None:
        self.at = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        assert seconds == module.PAUSE
        self.at.set()
        await self.go.wait()
        self.go.clear()

    async def once(self) -> None:
        """Let one try happen, and wait until it has."""
        async with asyncio.timeout(PATIENCE):
            await self.at.wait()
            self.at.clear()
            self.go.set()
            await self.at.wait()

    async def last(self, outage: Outage) -> None:
        """Let tries happen until events can be kept again."""
        async with asyncio.timeout(PATIENCE):
            while outage.problem:
                self.go.set()
                await asyncio.sleep(0)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    made = Pauses()
    watch = Outage.watch
    monkeypatch.setattr(Outage, "watch", lambda self, *work: watch(self, *work, sleep=made))
    return made


async def test_a_full_disk_refuses_and_takes_events_again_without_a_restart(small_disk: Path, pauses: Pauses) -> None:
    spool = await Spool.open(small_disk / "spool")
    log = SpoolLog(spool)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(log.run())
        await log.emit("session.start", n=1)
        ballast = fill(small_disk)
        with capture_logs() as lines:
            taken = [1, *await until_refused(log, 2)]
        assert [line["log_level"] for line in lines] == ["error"]
        assert "No space left on device" in log.outage.problem
        await log.emit("session.end", n="late", text="x" * 8000)
        await log.emit("session.deny", n="denied", text="x" * 8000)
        assert log.outage.waiting == 2
        assert log.outage.refuses
        await pauses.once()
        assert log.outage.refuses, "still full"
        ballast.unlink()
        with capture_logs() as lines:
            await pauses.last(log.outage)
        assert [(line["event"], line["late"], line["lost"]) for line in lines] == [
            ("the audit log is written again", 2, 0)
        ]
        await log.emit("session.start", n="after")
        assert await kept(spool) == [*taken, "late", "denied", "after"]
        running.cancel()
    await spool.close()
    again = await Spool.open(small_disk / "spool")
    assert await kept(again) == [*taken, "late", "denied", "after"]
    await again.close()


async def test_a_full_disk_where_sessions_go_on(small_disk: Path, pauses: Pauses) -> None:
    spool = await Spool.open(small_disk / "spool")
    log = SpoolLog(spool, outage=Outage("node", OnFailure.CONTINUE))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(log.run())
        ballast = fill(small_disk)
        numbers = list(range(300))
        with capture_logs() as lines:
            for number in numbers:
                await log.emit("session.start", n=number, text="x" * 1000)
        assert [line["follows"] for line in lines] == ["sessions go on unrecorded"], "loud, and once"
        assert log.outage.waiting
        assert not log.outage.refuses
        assert log.outage.problem
        ballast.unlink()
        await pauses.last(log.outage)
        assert sorted(await kept(spool)) == numbers, "nothing was lost that memory could hold"
        running.cancel()
    await spool.close()


def failing(error: int):
    def fail(*_arguments: object) -> int:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize("call", ["write", "fdatasync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS])
async def test_any_failure_of_the_disk_ends_without_a_restart(
    tmp_path: Path, pauses: Pauses, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    spool = await Spool.open(tmp_path / "spool")
    log = SpoolLog(spool)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(log.run())
        await log.emit("session.start", n=1)
        working = getattr(os, call)
        with monkeypatch.context() as disk:
            disk.setattr(
                os, call, lambda file, *data: (failing(error) if _of(file, tmp_path) else working)(file, *data)
            )
            for _ in range(2):
                with pytest.raises(NotRecorded):
                    await log.emit("session.start", n=2)
            await pauses.once()
            assert os.strerror(error) in log.outage.problem
        await pauses.last(log.outage)
        await log.emit("session.start", n=3)
        assert await kept(spool) == [1, 3]
        running.cancel()
    await spool.close()
    again = await Spool.open(tmp_path / "spool")
    assert [number for number in await kept(again) if number != 2] == [1, 3]
    await again.close()


def _of(file: int, folder: Path) -> bool:
    return str(Path(f"/proc/self/fd/{file}").readlink()).startswith(str(folder))


async def test_what_memory_cannot_hold_is_counted_and_noted(
    tmp_path: Path, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 1000)
    spool = await Spool.open(tmp_path / "spool")
    log = SpoolLog(spool, outage=Outage("node", OnFailure.CONTINUE))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(log.run())
        with monkeypatch.context() as disk:
            disk.setattr("monoport.audit.segments.write_all", failing(errno.ENOSPC))
            for number in range(20):
                await log.emit("db.query", n=number, text="x" * 150)
            waiting = log.outage.waiting
            assert 0 < waiting < 20
            assert log.outage.lost == 20 - waiting
            health = log.outage.health
            assert (health.waiting, health.lost, health.on_failure) == (waiting, 20 - waiting, "continue")
        await pauses.last(log.outage)
        assert await kept(spool) == [*range(waiting), 20 - waiting]
        assert [event.type for event in (await spool.read()).events][-1] == "audit.gap"
        running.cancel()
    await spool.close()


async def test_what_still_waits_at_the_end_is_said_to_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = await Spool.open(tmp_path / "spool")
    log = SpoolLog(spool)
    monkeypatch.setattr("monoport.audit.segments.write_all", failing(errno.ENOSPC))
    with capture_logs() as lines:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(log.run())
            await log.emit("session.end", n=1)
            await asyncio.sleep(0)
            running.cancel()
    assert (lines[-1]["event"], lines[-1]["events"]) == ("audit events lost", 1)
    await spool.close()


async def test_an_outage_that_lasts_is_said_again_every_minute(pauses: Pauses) -> None:
    from monoport.audit.segments import SpoolError

    now = [0.0]
    outage = Outage("spool", clock=lambda: now[0])
    tries: list[None] = []

    async def probe() -> None:
        tries.append(None)
        if len(tries) < 4:
            raise SpoolError("full")

    async def never(_value: object) -> None:
        raise AssertionError("nothing waits")

    async with asyncio.TaskGroup() as group:
        with capture_logs() as lines:
            outage.begin("full")
            watching = group.create_task(outage.watch(probe, never, never))
            for _ in range(3):
                await pauses.once()
                now[0] += 40.0
            await pauses.last(outage)
            watching.cancel()
    assert [(line["event"], line.get("for_s", line.get("after_s"))) for line in lines] == [
        ("the audit log cannot be written", None),
        ("the audit log still cannot be written", 80),
        ("the audit log is written again", 120),
    ]


LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from monoport.audit.log import SpoolLog
from monoport.audit.outage import NotRecorded
from monoport.audit.spool import Spool

async def main(folder):
    spool = await Spool.open(Path(folder))
    log = SpoolLog(spool)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(log.run())
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        taken = 0
        try:
            while True:
                await log.emit("session.start", n=taken, text="x" * 300)
                taken += 1
        except NotRecorded:
            print(taken, log.outage.problem.rpartition(": ")[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        async with asyncio.timeout(20):
            while log.outage.problem:
                await asyncio.sleep(0.05)
        await log.emit("session.start", n=taken)
        batch = await spool.read(limit=1000)
        print([event.fields["n"] for event in batch.events] == list(range(taken + 1)))
        running.cancel()
    await spool.close()

asyncio.run(main(sys.argv[1]))
"""


def test_a_file_that_may_grow_no_more_is_a_full_disk_without_root(tmp_path: Path) -> None:
    """The kernel's own refusal, in another process, since the limit is a process's."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "spool")], capture_output=True, text=True, timeout=60, check=True
    )
    first, second = (line for line in done.stdout.splitlines() if "[" not in line)
    assert first.endswith("File too large"), done.stdout
    assert int(first.split()[0]) > 3
    assert second == "True"
