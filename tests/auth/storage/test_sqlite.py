"""What only a file can get wrong: reopening, kills, other processes, foreign and newer files."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from monoport.auth.storage.interface import StorageError
from monoport.auth.storage.sqlite import SCHEMA_VERSION, SqliteStorage

WRITER = """
import asyncio, sys
from pathlib import Path
from monoport.auth.storage.sqlite import SqliteStorage

async def main(path, name):
    store = await SqliteStorage.open(Path(path), history=1_000_000)
    async def write(lane):
        number = 0
        while True:
            await store.put(f"/{name}/{lane}", str(number).encode())
            print(lane, number, flush=True)
            number += 1
    async with asyncio.TaskGroup() as group:
        for lane in range(4):
            group.create_task(write(lane))

asyncio.run(main(*sys.argv[1:]))
"""


EVERYTHING = 1_000_000  # changes: as many as a quick writer makes while a slow one waits, so that all can be counted


def start_writer(path: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)


def kill_after(writer: subprocess.Popen[str], lines: int) -> dict[str, int]:
    """Kill -9 once so many writes were acknowledged; return the last one of each lane that reached us."""
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(lines)]
    os.kill(writer.pid, signal.SIGKILL)
    said += writer.stdout.read().splitlines(keepends=True)
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    return {lane: int(number) for lane, number in (line.split() for line in said if line.endswith("\n"))}


async def test_what_was_written_is_there_when_reopened(tmp_path):
    path = tmp_path / "auth.db"
    store = await SqliteStorage.open(path)
    first = await store.put("/a", b"1")
    last = await store.delete("/a")
    await store.put("/b", b"2")
    await store.close()
    store = await SqliteStorage.open(path)
    assert [item.key for item in await store.range("/")] == ["/b"]
    assert (await store.snapshot("/")).revision == last + 1
    changes = store.watch("/", first)
    assert (await anext(changes)).revision == last
    await changes.aclose()
    await store.close()


async def test_the_file_is_its_owners_alone(tmp_path):
    path = tmp_path / "auth.db"
    store = await SqliteStorage.open(path)
    await store.put("/a", b"secret")
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await store.close()


async def test_kill_9_loses_no_acknowledged_write_and_the_next_open_needs_no_hand(tmp_path):
    path = tmp_path / "auth.db"
    chance = random.Random(7)
    for kill in range(8):
        acknowledged = kill_after(start_writer(path, f"k{kill}"), chance.randint(1, 60))
        store = await SqliteStorage.open(path)
        for lane, number in acknowledged.items():
            item = await store.get(f"/k{kill}/{lane}")
            assert item is not None
            assert int(item.value) >= number
        revisions = [item.revision for item in await store.range("/")]
        assert len(set(revisions)) == len(revisions)
        assert await store.put("/after", b"") > max(revisions)
        await store.close()
    (verdict,) = sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone()
    assert verdict == "ok"


async def test_a_second_process_corrupts_nothing_and_repeats_no_revision(tmp_path):
    path = tmp_path / "auth.db"
    store = await SqliteStorage.open(path, history=EVERYTHING)
    other = start_writer(path, "other")
    assert other.stdout is not None
    mine = []
    for _ in range(50):
        await asyncio.to_thread(other.stdout.readline)
        mine.append(await store.put("/mine", b""))
    acknowledged = kill_after(other, 1)
    snapshot = await store.snapshot("/")
    assert mine == sorted(set(mine))
    assert {item.key for item in snapshot.items} >= {"/mine", *(f"/other/{lane}" for lane in acknowledged)}
    seen = []
    changes = store.watch("/", 0)
    while not seen or seen[-1] < snapshot.revision:
        seen.append((await anext(changes)).revision)
    await changes.aclose()
    assert seen == list(range(1, snapshot.revision + 1))
    await store.close()


async def test_a_newer_schema_is_named(tmp_path):
    path = tmp_path / "auth.db"
    await (await SqliteStorage.open(path)).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(StorageError, match=r"auth\.db has schema 2, this version of monoport knows 1"):
        await SqliteStorage.open(path)


async def test_a_foreign_database_is_left_alone(tmp_path):
    path = tmp_path / "auth.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE photographs (name)")
    db.close()
    with pytest.raises(StorageError, match="is not a store of monoport"):
        await SqliteStorage.open(path)


async def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "auth.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError, match="cannot open the store: file is not a database"):
        await SqliteStorage.open(path)
    assert path.read_bytes() == b"not a database at all" * 100


async def test_a_missing_folder_and_a_planted_link_are_refused(tmp_path):
    with pytest.raises(StorageError, match="cannot open the store"):
        await SqliteStorage.open(tmp_path / "no" / "auth.db")
    (tmp_path / "auth.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(StorageError, match="cannot open the store"):
        await SqliteStorage.open(tmp_path / "auth.db")


async def test_a_failing_file_fails_the_call_and_not_the_store(tmp_path):
    path = tmp_path / "auth.db"
    store = await SqliteStorage.open(path)
    await store.put("/a", b"1")
    other = sqlite3.connect(path)
    other.execute("DROP TABLE changes")
    other.close()
    with pytest.raises(StorageError, match="the store failed: no such table"):
        await store.put("/a", b"2")
    assert (await store.get("/a")).value == b"1"
    await store.close()
