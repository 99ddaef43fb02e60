"""Recordings on the node's disk: written as they go, bounded, and whole again after a kill."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monoport.audit import recorder
from monoport.audit.asciicast import Event as Line
from monoport.audit.asciicast import Header, decode_event, decode_header, encode_event, encode_header
from monoport.audit.recorder import Limits, RecordingError, Recordings, duration, noted_hash

ID = "0b5fd6f3-0a8e-4c1e-9a55-5d1f5a3c7e21"
EASY = Limits(free=0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def header(identifier: str = ID) -> Header:
    return Header(80, 24, 1_900_000_000, {"id": identifier, "user": "alice@example.com"})


def lines(path: Path) -> list[Line]:
    first, *rest = path.read_bytes().splitlines()
    assert decode_header(first).id
    return [decode_event(one) for one in rest]


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  a file has no event
            await asyncio.sleep(0)


async def test_what_was_seen_is_kept_in_order_with_its_times(tmp_path):
    clock = Clock()
    recordings = Recordings(tmp_path / "r", EASY, clock=clock)
    tape = await recordings.begin(header(), pytest.fail)
    tape.output("žluť".encode()[:5])
    clock.now += 1.5
    tape.output("žluť".encode()[5:])
    tape.resize(132, 0)
    tape.input(b"ls\r")
    clock.now += 1
    tape.output(b"\xff\xc5")
    await tape.finish()
    (path,) = recordings.ended()
    assert path.name == f"{ID}.cast"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [(one.time, one.kind, one.data) for one in lines(path)] == [
        (0.0, "o", "žlu"),
        (1.5, "o", "ť"),
        (1.5, "r", "132x1"),
        (1.5, "i", "ls\r"),
        (2.5, "o", "\ufffd"),
        (2.5, "o", "\ufffd"),
    ]
    assert duration(path) == 2.5
    assert recordings.news.is_set()
    assert noted_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_suffix(".sha256").stat().st_mode & 0o777 == 0o600
    await recordings.remove(path)
    assert recordings.ended() == list(recordings.folder.iterdir()) == []


async def test_the_hash_is_of_what_was_written_whatever_the_disk_makes_of_it(tmp_path):
    recordings = Recordings(tmp_path, EASY)
    tape = await recordings.begin(header(), pytest.fail)
    tape.output(b"x" * 3 * recorder.FLUSH_BYTES)
    await until(lambda: tape._writing is None)
    path = tmp_path / f"{ID}.cast.part"
    sound = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(500)
        file.write(b"y")
    await tape.finish()
    (path,) = recordings.ended()
    assert noted_hash(path) == hashlib.sha256(sound).hexdigest() != hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_hash_that_cannot_be_kept_costs_no_recording_and_one_without_its_file_goes(tmp_path, monkeypatch):
    recordings = Recordings(tmp_path, EASY)
    tape = await recordings.begin(header(), pytest.fail)
    real = os.open

    def full(path, *arguments):
        if str(path).endswith(".sha256"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", full)
    await tape.finish()
    monkeypatch.undo()
    (path,) = recordings.ended()
    assert (noted_hash(path), recordings.counts) == ("", (1, 0))
    recordings.put_aside(path)
    (tmp_path / f"{ID}.sha256").write_text("kept beside what was put aside")
    (tmp_path / f"{uuid.uuid4()}.sha256").write_text("of a recording that is gone")
    assert Recordings(tmp_path, EASY).counts == (0, 1)
    assert {one.name for one in tmp_path.iterdir()} == {f"{ID}.refused", f"{ID}.sha256"}


async def test_it_is_on_the_disk_half_a_second_later_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "FLUSH_SECONDS", 0.0)  # the timer, without the wait
    recordings = Recordings(tmp_path, EASY)
    tape = await recordings.begin(header(), pytest.fail)
    tape.output(b"seen")
    path = tmp_path / f"{ID}.cast.part"
    await until(lambda: b"seen" in path.read_bytes())
    tape.output(b"more")
    await until(lambda: b"more" in path.read_bytes())


async def test_much_output_is_written_at_once_and_asks_to_wait_while_it_is(tmp_path):
    recordings = Recordings(tmp_path, EASY)
    tape = await recordings.begin(header(), pytest.fail)
    room = asyncio.Event()
    for _ in range(20):
        tape.output(b"x" * recorder.PIECE)
    assert tape.wait_for_room(room.set)
    async with asyncio.timeout(20):
        await room.wait()
    assert not tape.wait_for_room(pytest.fail)
    await tape.finish()
    (path,) = recordings.ended()
    assert sum(len(one.data) for one in lines(path)) == 20 * recorder.PIECE


@given(cut=st.integers(0, 10_000), texts=st.lists(st.text(max_size=40), max_size=10))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_is_ended_cleanly(tmp_path, cut, texts):
    folder = tmp_path / str(uuid.uuid4())
    folder.mkdir()
    events = [Line(float(n), "o", text.encode("utf-8", "replace").decode()) for n, text in enumerate(texts)]
    data = encode_header(header()) + b"".join(map(encode_event, events))
    data = data[: min(cut, len(data))]
    (folder / f"{ID}.cast.part").write_bytes(data)

    async def start() -> list[Path]:
        return Recordings(folder, EASY).ended()

    found = asyncio.run(start())
    whole = data.count(b"\n")
    if not whole:
        assert list(folder.iterdir()) == []
        return
    assert [one.name for one in found] == [f"{ID}.cast"]
    assert noted_hash(found[0]) == hashlib.sha256(found[0].read_bytes()).hexdigest()
    *kept, mark = lines(found[0])
    assert kept == events[: whole - 1]
    assert (mark.kind, mark.time) == ("m", kept[-1].time if kept else 0.0)


async def test_a_file_whose_header_is_of_another_session_is_dropped(tmp_path):
    (tmp_path / f"{uuid.uuid4()}.cast.part").write_bytes(encode_header(header()))
    assert Recordings(tmp_path, EASY).ended() == []
    assert list(tmp_path.iterdir()) == []


async def test_a_recording_that_is_too_large_stops_and_keeps_its_beginning(tmp_path):
    said: list[str] = []
    recordings = Recordings(tmp_path, Limits(recording=3000, free=0))
    tape = await recordings.begin(header(), said.append)
    tape.output(b"a" * 1000)
    await until(lambda: True)
    tape.output(b"b" * 70_000)
    await until(lambda: said)
    tape.output(b"c" * 1000)
    await tape.finish()
    assert said == ["the recording has reached its limit of 3000 bytes"]
    (path,) = recordings.ended()
    assert path.stat().st_size <= 3000
    assert lines(path) == [] or lines(path)[0].data.startswith("a")


async def test_a_full_folder_refuses_new_recordings_until_one_has_gone(tmp_path):
    recordings = Recordings(tmp_path, Limits(folder=20_000, free=0))
    tape = await recordings.begin(header(), pytest.fail)
    tape.output(b"x" * 15_000)
    await tape.finish()
    other = header(str(uuid.uuid4()))
    second = await recordings.begin(other, said := [].append)
    second.output(b"x" * 15_000)
    await second.finish()
    assert "20000 bytes" in second.failure
    with pytest.raises(RecordingError, match="fill their"):
        Recordings(tmp_path, Limits(folder=100, free=0))._room(1)
    await recordings.remove(recordings.folder / f"{ID}.cast")
    third = await recordings.begin(header(str(uuid.uuid4())), said)
    third.output(b"x" * 15_000)
    await third.finish()
    assert not third.failure


async def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path, monkeypatch):
    said: list[str] = []
    recordings = Recordings(tmp_path, EASY)
    tape = await recordings.begin(header(), said.append)
    tape.output(b"kept" * 16_384)
    await until(lambda: tape._writing is None)
    real = os.write

    def full(file: int, data: bytes) -> int:
        if b"lost" in bytes(data[:100]):
            real(file, bytes(data[:10]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    monkeypatch.setattr(os, "write", full)
    tape.output(b"lost" * 20_000)
    await tape.finish()
    assert said == ["the recording cannot be written: No space left on device"]
    (path,) = recordings.ended()
    assert "".join(one.data for one in lines(path)) == "kept" * 16_384


async def test_a_disk_with_little_left_takes_no_recording(tmp_path):
    recordings = Recordings(tmp_path, Limits(free=2**62))
    with pytest.raises(RecordingError, match="no space left on the node's disk"):
        await recordings.begin(header(), pytest.fail)
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="cannot be used: Not a directory"):
        Recordings(tmp_path / "file" / "recordings")
