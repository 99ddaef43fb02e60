"""kill -9 at random moments, over and over: no acknowledged event is lost, and every start needs no hand.

Here for one spool; tests/auth/test_crash.py does the same to the auth service. The long ones run by `make soak`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from monoport.audit.segments import Segments

# Many tasks append events while a shipper acknowledges, and small files make it begin new ones all the time. It says
# the id of each event once that was acknowledged, and "shipped ID" before the spool may forget one.
WRITER = """
import asyncio, os, sys
from datetime import UTC, datetime
from pathlib import Path
from monoport.audit.events import EventIds, make
from monoport.audit.log import SpoolLog
from monoport.audit.spool import Spool

def say(line):
    os.write(1, line.encode() + b"\\n")  # one write: a kill cuts no line in two

async def main(folder):
    spool = await Spool.open(Path(folder), segment=4000)
    ids = EventIds(lambda: datetime.now(UTC))
    say("open")
    async def write():
        while True:
            event = make(ids, "test.kill", {"text": "x" * 200})
            await spool.append(event)
            say(event.id)
    async def ship():
        while True:
            await spool.wait_unshipped()
            batch = await spool.unshipped(7)
            say(" ".join(["shipped", *(event.id for event in batch.events)]))
            await spool.shipped(batch)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(write())
        group.create_task(ship())

asyncio.run(main(sys.argv[1]))
"""


def killed(folder: Path, after: float) -> tuple[set[str], set[str]]:
    """Run the writer, kill it so many seconds after it was open; return what it acknowledged and what it shipped."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer, writer.stdout:
        assert writer.stdout.readline() == "open\n"
        timer = threading.Timer(after, os.kill, (writer.pid, signal.SIGKILL))
        timer.start()
        lines = [line.rstrip("\n") for line in writer.stdout if line.endswith("\n")]
        timer.join()
    assert writer.returncode == -signal.SIGKILL
    shipped = {one for line in lines if line.startswith("shipped") for one in line.split()[1:]}
    return {line for line in lines if not line.startswith("shipped")}, shipped


def kill_and_look(folder: Path, times: int, chance: random.Random) -> int:
    """Kill a writer so often; after each, everything acknowledged was shipped or is there. Returns how many."""
    acknowledged: set[str] = set()
    shipped: set[str] = set()
    for number in range(times):
        new, sent = killed(folder, chance.uniform(0.0, 0.1))
        acknowledged |= new
        shipped |= sent
        spool = Segments(folder, segment=4000)
        position, here = spool.first, list[str]()
        while (batch := spool.read(position, 10_000)).events:
            here += [event.id for event in batch.events]
            position = batch.end
        spool.close()
        missing = acknowledged - shipped - set(here)
        assert not missing, f"kill {number + 1} lost {sorted(missing)}"
        assert len(here) == len(set(here)), "none is there twice"
    return len(acknowledged)


def test_twenty_kills_lose_no_acknowledged_event(tmp_path: Path) -> None:
    assert kill_and_look(tmp_path / "spool", 20, random.Random(5)) > 20


@pytest.mark.soak
def test_a_thousand_kills_lose_no_acknowledged_event(tmp_path: Path) -> None:
    assert kill_and_look(tmp_path / "spool", 1000, random.Random()) > 1000
