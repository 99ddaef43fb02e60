"""Terminal sessions are recorded as their roles say, and strict ones end where they cannot be."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import asyncssh
import pytest

from monoport.agents.node.agent import Node
from monoport.audit import recorder
from monoport.audit.asciicast import Header, decode_event, decode_header
from monoport.audit.recorder import Limits, Recordings

FULL = Limits(free=2**62)


def record(world, make_role, limits: Limits | None = None, **options: object) -> Recordings:
    """A node that keeps recordings, and a role that says which."""
    world.roles["access"] = make_role(**options)
    recordings = Recordings(world.folder / "recordings", limits or Limits(free=0))
    world.node = Node(
        lambda: world.listed, lambda: world.host, world, world.audit, recordings=recordings, now=world.now, tick=0.05
    )
    return recordings


async def lines(world, recordings: Recordings) -> tuple:
    """Header and events of the one recording, once it has ended."""
    await world.event("session.end")
    await world.until(recordings.ended)
    first, *rest = recordings.ended()[0].read_bytes().splitlines()
    return decode_header(first), [decode_event(one) for one in rest]


def shown(events: list) -> str:
    return "".join(one.data for one in events if one.kind == "o")


async def test_a_terminal_is_recorded_with_whose_and_where(world, make_role):
    recordings = record(world, make_role)
    async with (
        world.connected() as client,
        client.create_process(
            "echo ready; read x; stty size; echo $x", term_type="xterm", term_size=(100, 30)
        ) as process,
    ):
        await process.stdout.readuntil("ready\r\n")
        process.change_terminal_size(120, 40)
        process.stdin.write("secret\n")
        await process.stdout.read()
    header, events = await lines(world, recordings)
    start, end = world.events("session.start")[0], world.events("session.end")[0]
    assert (header.width, header.height, header.term) == (100, 30, "xterm")
    assert header.command == "echo ready; read x; stty size; echo $x"
    assert dict(header.session) == {
        "id": start["session"], "user": "alice@example.com", "login": world.login, "node": start["node"],
        "hostname": "web", "connection": "c-1", "source": "192.0.2.9:50000",
    }  # fmt: skip
    assert header.title == f"alice@example.com as {world.login} on web"
    assert recordings.ended()[0].name == f"{start['session']}.cast"
    assert "40 120\r\nsecret" in shown(events)
    assert [one.data for one in events if one.kind == "r"] == ["120x40"]
    assert "i" not in {one.kind for one in events}
    assert end["recording"] == "kept"


async def test_what_is_typed_is_recorded_only_where_a_role_says_so(world, make_role):
    recordings = record(world, make_role, record_input=True)
    async with world.connected() as client:
        await client.run("stty -echo; read x", input="hidden\n", term_type="xterm")
    _, events = await lines(world, recordings)
    assert "".join(one.data for one in events if one.kind == "i") == "hidden\n"


@pytest.mark.parametrize("options", [{"record_session": "off"}, {"record_session": False}], ids=str)
async def test_off_records_nothing(world, make_role, options):
    recordings = record(world, make_role, **options)
    async with world.connected() as client:
        await client.run("echo hello", term_type="xterm")
    assert (await world.event("session.end"))["recording"] == "off"
    assert list(recordings.folder.iterdir()) == []


async def test_without_a_terminal_the_command_is_in_the_audit_log_and_its_output_nowhere(world, make_role):
    recordings = record(world, make_role, record_session="strict")
    async with world.connected() as client:
        assert (await client.run("echo hello")).stdout == "hello\n"
    assert "recording" not in await world.event("session.end")
    assert world.events("session.start")[0]["command"] == "echo hello"
    assert list(recordings.folder.iterdir()) == []


async def test_a_strict_session_does_not_begin_where_it_cannot_be_recorded(world, make_role):
    record(world, make_role, FULL, record_session="strict")
    async with world.connected() as client:
        found = await client.run("echo hello", term_type="xterm")
    assert "hello" not in str(found.stdout)
    assert found.stderr == "monoport: the session cannot be recorded: no space left on the node's disk\n"
    assert found.exit_status == 254
    failed = await world.event("session.recording.failed")
    assert (failed["record_session"], failed["user"]) == ("strict", "alice@example.com")
    assert failed["session"] == world.events("session.start")[0]["session"]


async def test_a_node_without_a_place_for_recordings_refuses_strict_sessions(world, make_role):
    world.roles["access"] = make_role(record_session="strict")
    async with world.connected() as client:
        found = await client.run("echo hello", term_type="xterm")
    assert "keeps no recordings" in str(found.stderr)


async def test_best_effort_goes_on_and_says_so_in_the_audit_log(world, make_role):
    record(world, make_role, FULL, record_session="best_effort")
    async with world.connected() as client:
        found = await client.run("echo hello", term_type="xterm")
    assert found.stdout == "hello\r\n"
    assert "no space left" in str((await world.event("session.recording.failed"))["reason"])
    assert "no space left" in str((await world.event("session.end"))["recording"])


@pytest.mark.parametrize("mode", ["strict", "best_effort"])
async def test_a_disk_that_fills_in_the_middle(world, make_role, monkeypatch, mode):
    recordings = record(world, make_role, record_session=mode)
    monkeypatch.setattr(recorder, "FLUSH_SECONDS", 0.0)
    real = os.write

    def full(file: int, data: bytes) -> int:
        if b"second" in bytes(data) and b'"o"' in bytes(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    monkeypatch.setattr(os, "write", full)
    script = "stty -echo; echo first; read x; echo sec''ond; read x; echo third"
    async with (
        world.connected() as client,
        client.create_process(script, term_type="xterm", stderr=asyncssh.STDOUT) as process,
    ):
        out = await process.stdout.readuntil("first\r\n")
        part = next(recordings.folder.glob("*.part"))
        await world.until(lambda: b"first" in part.read_bytes())
        process.stdin.write("\n")
        out += await process.stdout.readuntil("second\r\n")
        await world.event("session.recording.failed")
        process.stdin.write("\n")
        out += await process.stdout.read()
        ended = await process.wait()
    if mode == "strict":
        assert out.endswith("session ended: the recording cannot be written: No space left on device\r\n")
        assert "third" not in out
        assert ended.exit_status == 254
    else:
        assert out.endswith("third\r\n")
        assert ended.exit_status == 0
    _, events = await lines(world, recordings)
    assert shown(events).endswith("first\r\n")  # what was kept stays and is sent on
    assert len(world.events("session.recording.failed")) == 1


async def test_the_end_of_a_permit_is_in_the_recording(world, make_role, lock):
    recordings = record(world, make_role)
    async with world.connected() as client, client.create_process("echo here; sleep 60", term_type="xterm") as process:
        await process.stdout.readuntil("here\r\n")
        world.locks.append(lock(user="alice"))
        await process.wait_closed()
    _, events = await lines(world, recordings)
    assert (events[-1].kind, events[-1].data[:14]) == ("m", "session ended:")


async def test_much_output_arrives_whole_on_both_sides(world, make_role):
    recordings = record(world, make_role)
    async with world.connected() as client:
        found = await client.run("stty -opost; seq 300000", term_type="xterm")
    _, events = await lines(world, recordings)
    assert shown(events) == found.stdout
    assert shown(events).endswith("300000\n")


async def test_sessions_have_an_id_of_their_own(world, make_role):
    record(world, make_role)
    async with world.connected() as client:
        await asyncio.gather(*(client.run("true", term_type="xterm") for _ in range(3)))
    await world.until(lambda: len(world.events("session.end")) == 3)
    assert len({one["session"] for one in world.events("session.start")}) == 3
    assert {one["session"] for one in world.events("session.start")} == {
        one["session"] for one in world.events("session.end")
    }


def test_the_folder_of_a_dead_agent_is_taken_over(tmp_path: Path) -> None:
    async def begin() -> None:
        folder = Recordings(tmp_path, Limits(free=0))
        tape = await folder.begin(Header(80, 24, 1, {"id": "0" * 8 + "-0000-4000-8000-" + "0" * 12}), pytest.fail)
        tape.output(b"x" * 100_000)  # and no end
        while tape._writing is not None:
            await asyncio.wait((tape._writing,))

    asyncio.run(begin())

    async def again() -> list[Path]:
        return Recordings(tmp_path, Limits(free=0)).ended()

    (path,) = asyncio.run(again())
    assert b"xxxx" in path.read_bytes()
    assert decode_event(path.read_bytes().splitlines()[-1]).kind == "m"
