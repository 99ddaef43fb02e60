"""A lock reaches what has left its session, where the system has control groups to hold it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monoport.agents.node import cgroup, process


@pytest.fixture
def enclosed():
    """A process in a control group of its own, and the group."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        try:
            group = cgroup.enclose(running.pid)
        except OSError as error:
            running.kill()
            pytest.skip(f"no control groups for sessions here: {error}")
        yield running, group
        running.kill()
        running.wait()
        group.remove()


def folder(pid: int) -> Path:
    return cgroup._own() / f"monoport-{os.getpid()}-{pid}"


def test_a_group_holds_its_process_and_goes_with_it(enclosed):
    running, group = enclosed
    assert (folder(running.pid) / "cgroup.procs").read_text().split() == [str(running.pid)]
    group.remove()
    assert folder(running.pid).exists()
    group.kill()
    running.wait()
    group.remove()
    assert not folder(running.pid).exists()


def test_groups_that_were_left_are_removed_by_the_next(enclosed):
    left = cgroup._own() / "monoport-4194999-1"  # above the largest pid (PID_MAX_LIMIT, 2^22)
    left.mkdir()
    busy, _ = enclosed
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        group = cgroup.enclose(other.pid)
        assert not left.exists()
        assert folder(busy.pid).exists()
        other.kill()
        other.wait()
        group.remove()


LEAVES = "setsid sh -c 'echo $$; exec sleep 1000 </dev/null >/dev/null 2>&1' &"


@pytest.mark.usefixtures("enclosed")
async def test_a_lock_ends_what_has_left_its_session(world, lock, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.05)
    async with world.connected() as client:
        started = await client.create_process(f"{LEAVES} wait")
        number = int(await started.stdout.readline())
        world.locks.append(lock(user="alice"))
        await world.event("session.end")
    await world.until(lambda: not runs(number))


@pytest.mark.usefixtures("enclosed")
async def test_what_a_user_leaves_running_on_purpose_outlives_the_session(world):
    async with world.connected() as client:
        found = await client.run(LEAVES)
        number = int(found.stdout)
    await world.event("session.end")
    assert runs(number)
    group = cgroup.Group(next(path for path in cgroup._own().glob("monoport-*") if str(number) in procs(path)))
    group.kill()
    await world.until(lambda: not runs(number))


def procs(path: Path) -> list[str]:
    return (path / "cgroup.procs").read_text().split()


def runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_without_control_groups_sessions_run_and_end_as_before(world, lock, monkeypatch):
    def none(pid: int) -> cgroup.Group:
        raise OSError("no cgroup v2 is mounted")

    monkeypatch.setattr(cgroup, "enclose", none)
    monkeypatch.setattr(process, "GRACE", 0.05)
    async with world.connected() as client:
        started = await client.create_process("echo $$; trap '' HUP; while :; do sleep 0.1; done")
        number = int(await started.stdout.readline())
        world.locks.append(lock(user="alice"))
        await world.event("session.end")
    await world.until(lambda: not runs(number))
