"""The spool's files: torn tails, damage, rotation, acknowledgement, full and failing disks."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monoport.audit import segments as module
from monoport.audit.events import encode, make
from monoport.audit.segments import Position, Segments, SpoolError


@pytest.fixture
def line(ids):
    return lambda number: encode(make(ids, "test.line", {"n": number}))


def numbers(segments, start=None, limit=10_000):
    return [event.fields["n"] for event in segments.read(start or segments.first, limit).events]


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("events-"))


def test_folder_and_files_are_their_owners_alone(tmp_path, line):
    segments = Segments(tmp_path / "spool")
    segments.write([line(1)])
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "spool" / files(tmp_path / "spool")[0]).stat().st_mode) == 0o600
    segments.close()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=10), st.data())
def test_a_tail_torn_anywhere_costs_only_what_was_torn(tmp_path_factory, line, groups, data):
    folder = tmp_path_factory.mktemp("spool")
    segments = Segments(folder, segment=600)
    written = 0
    for size in groups:
        segments.write([line(written + number) for number in range(size)])
        written += size
    segments.close()
    last = folder / files(folder)[-1]
    content = last.read_bytes()
    keep = data.draw(st.integers(0, len(content)))
    last.write_bytes(content[:keep] + data.draw(st.binary(max_size=30)).replace(b"\n", b"-"))
    whole = content[:keep].count(b"\n")
    segments = Segments(folder, segment=600)
    expected = list(range(written - content.count(b"\n") + whole))
    assert numbers(segments) == expected
    segments.write([line(999)])
    assert numbers(segments) == [*expected, 999]
    segments.close()


def test_a_large_torn_tail_is_found_too(tmp_path, line, monkeypatch):
    monkeypatch.setattr(module, "READ", 64)
    segments = Segments(tmp_path)
    segments.write([line(1)])
    segments.close()
    path = tmp_path / files(tmp_path)[0]
    path.write_bytes(path.read_bytes() + b"\0" * 1000)
    segments = Segments(tmp_path)
    assert numbers(segments) == [1]
    segments.close()
    path.write_bytes(b"\0" * 1000)
    segments = Segments(tmp_path)
    assert path.stat().st_size == 0
    segments.close()


def test_damage_in_the_middle_hides_no_line_behind_it(tmp_path, line):
    segments = Segments(tmp_path)
    segments.write([line(1), line(2), line(3)])
    segments.close()
    path = tmp_path / files(tmp_path)[0]
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\0" * (len(second) - 1) + b"\n" + b"x" * 200_000 + b"\n" + third)
    segments = Segments(tmp_path)
    assert numbers(segments) == [1, 3]
    segments.close()


def test_segments_rotate_and_are_read_across(tmp_path, line):
    segments = Segments(tmp_path, segment=300)
    for number in range(20):
        segments.write([line(number)])
    assert len(files(tmp_path)) > 3
    assert numbers(segments) == list(range(20))
    batch = segments.read(segments.first, 7)
    assert [event.fields["n"] for event in batch.events] == list(range(7))
    assert numbers(segments, batch.end) == list(range(7, 20))
    segments.close()
    segments = Segments(tmp_path, segment=300)
    assert numbers(segments) == list(range(20))
    segments.close()


def test_one_batch_is_bounded_in_bytes(tmp_path, line, monkeypatch):
    monkeypatch.setattr(module, "READ", 500)
    segments = Segments(tmp_path)
    segments.write([line(number) for number in range(20)])
    assert 1 < len(segments.read(segments.first, 100).events) < 20
    segments.close()


def test_what_was_shipped_is_not_shipped_again_and_its_files_go(tmp_path, line):
    segments = Segments(tmp_path, segment=300)
    for number in range(20):
        segments.write([line(number)])
    count = len(files(tmp_path))
    segments.acknowledge(segments.read(segments.position, 15).end)
    segments.acknowledge(Position(1, 0))  # going back is not
    segments.close()
    segments = Segments(tmp_path, segment=300)
    assert numbers(segments, segments.position) == list(range(15, 20))
    assert len(files(tmp_path)) < count
    assert numbers(segments)[0] > 0
    assert segments.pending
    segments.acknowledge(segments.read(segments.position, 15).end)
    assert not segments.pending
    segments.write([line(20)])
    assert segments.pending
    assert numbers(segments, segments.position) == [20]
    segments.close()


@pytest.mark.parametrize("content", ["", "x", "{}", "[]", '{"segment": "a", "offset": 1}'])
def test_an_unreadable_mark_ships_again(tmp_path, line, content):
    segments = Segments(tmp_path)
    segments.write([line(1)])
    segments.acknowledge(segments.read(segments.position, 1).end)
    segments.close()
    (tmp_path / "shipped").write_text(content)
    segments = Segments(tmp_path)
    assert numbers(segments, segments.position) == [1]
    segments.close()


@pytest.mark.parametrize("mark", ['{"segment": 1, "offset": 99999}', '{"segment": 7, "offset": 3}'])
def test_a_mark_ahead_of_the_files_is_taken_back_to_their_end(tmp_path, line, mark):
    segments = Segments(tmp_path)
    segments.write([line(1)])
    segments.close()
    (tmp_path / "shipped").write_text(mark)
    segments = Segments(tmp_path)
    assert not segments.pending
    segments.write([line(2)])
    assert numbers(segments, segments.position) == [2]
    segments.close()


def test_a_full_spool_refuses_until_something_was_shipped(tmp_path, line):
    segments = Segments(tmp_path, segment=200, capacity=1000)
    written = 1000 // (len(line(0)) + 1)
    for number in range(written):
        segments.write([line(number)])
    with pytest.raises(SpoolError, match="is full: limit 1000 bytes"):
        segments.write([line(written), line(written)])
    assert numbers(segments) == list(range(written))
    segments.acknowledge(segments.read(segments.position, written).end)
    segments.write([line(written)])
    assert numbers(segments, segments.position) == [written]
    segments.close()


def failing(function, error, times=1):
    left = [times]

    def wrapper(*arguments):
        if left[0]:
            left[0] -= 1
            raise OSError(error, os.strerror(error))
        return function(*arguments)

    return wrapper


def test_a_failed_write_leaves_nothing_half_and_the_next_may_succeed(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path)
    segments.write([line(1)])
    write = os.write
    fails = failing(write, errno.ENOSPC)
    monkeypatch.setattr(os, "write", lambda file, data: fails(file, data) if len(data) < 50 else write(file, data[:60]))
    with pytest.raises(SpoolError, match="No space left on device"):
        segments.write([line(2)])
    monkeypatch.undo()
    segments.write([line(3)])
    assert numbers(segments) == [1, 3]
    segments.close()


def always(error):
    def fail(*_arguments):
        raise OSError(error, os.strerror(error))

    return fail


def test_after_a_failed_sync_nothing_more_goes_into_that_file(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path)
    segments.write([line(1)])
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", always(errno.EIO))
        for number in (2, 3, 4):
            with pytest.raises(SpoolError, match="cannot sync the spool"):
                segments.write([line(number)])
        with pytest.raises(SpoolError, match="cannot sync the spool"):
            segments.probe()
    assert files(tmp_path) == ["events-0000000000000001.log", "events-0000000000000002.log"], "one more, not one a try"
    segments.write([line(5)])
    assert numbers(segments) == [1, 5]
    segments.close()
    again = Segments(tmp_path)
    assert [number for number in numbers(again) if number in {1, 5}] == [1, 5]
    again.close()


def test_where_not_even_another_file_can_be_made_it_is_tried_again(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path)
    segments.write([line(1)])
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", always(errno.EIO))
        disk.setattr(os, "open", always(errno.ENOSPC))
        for _ in range(2):
            with pytest.raises(SpoolError, match="cannot sync the spool"):
                segments.write([line(2)])
    segments.write([line(3)])
    assert numbers(segments) == [1, 3]
    segments.close()


def test_a_probe_leaves_nothing_and_fails_like_a_write(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path, capacity=200_000)
    segments.write([line(1)])
    size = (tmp_path / files(tmp_path)[0]).stat().st_size
    segments.probe()
    assert (tmp_path / files(tmp_path)[0]).stat().st_size == size
    assert segments.waiting.events == 1
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", always(errno.ENOSPC))
        with pytest.raises(SpoolError, match="No space left on device"):
            segments.probe()
    segments.write([line(number) for number in range(2, 1200)])
    with pytest.raises(SpoolError, match="is full: limit"):
        segments.probe()
    segments.close()


def test_a_kill_during_a_probe_leaves_a_torn_line(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path)
    segments.write([line(1)])
    with monkeypatch.context() as disk:
        disk.setattr(os, "ftruncate", always(errno.EROFS))
        with pytest.raises(SpoolError, match="cannot repair"):
            segments.probe()
    segments.close()
    again = Segments(tmp_path)
    assert numbers(again) == [1]
    again.write([line(2)])
    assert numbers(again) == [1, 2]
    again.close()


def test_on_a_full_disk_what_was_shipped_makes_room(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path, segment=10)
    for number in range(3):
        segments.write([line(number)])
    with monkeypatch.context() as disk:
        disk.setattr("pathlib.Path.write_text", always(errno.ENOSPC))
        batch = segments.read(segments.position, 9)
        with pytest.raises(SpoolError, match="No space left"):
            segments.acknowledge(batch.end, batch.lines)
    assert len(files(tmp_path)) == 1, "files that were shipped are gone all the same"
    assert (segments.waiting.events, segments.pending) == (0, False)
    segments.close()
    again = Segments(tmp_path, segment=10)
    assert numbers(again) == [2], "shipped again at most"
    again.close()


def test_a_file_that_can_be_repaired_again_is_written_again(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path)
    segments.write([line(1)])
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", lambda file, data: os.pwrite(file, data[:7], 0) and failing(os.write, errno.EROFS)())
        disk.setattr(os, "ftruncate", failing(os.ftruncate, errno.EROFS))
        with pytest.raises(SpoolError):
            segments.write([line(2)])
    segments.write([line(3)])
    assert numbers(segments) == [1, 3]
    segments.close()
    again = Segments(tmp_path)
    assert numbers(again) == [1, 3]
    again.close()


def test_a_file_that_cannot_be_repaired_is_not_written_any_more(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path)
    monkeypatch.setattr(os, "write", always(errno.EIO))
    monkeypatch.setattr(os, "ftruncate", always(errno.EIO))
    with pytest.raises(SpoolError, match="cannot write"):
        segments.write([line(1)])
    with pytest.raises(SpoolError, match="cannot repair"):
        segments.write([line(1)])
    segments.close()


def test_a_failed_rotation_leaves_the_old_file_in_use(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path, segment=10)
    segments.write([line(1)])
    monkeypatch.setattr(os, "open", failing(os.open, errno.EMFILE))
    with pytest.raises(SpoolError, match="Too many open files"):
        segments.write([line(2)])
    monkeypatch.undo()
    segments.write([line(3)])
    assert numbers(segments) == [1, 3]
    segments.close()


def test_a_new_file_whose_folder_cannot_be_synced_is_none(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path, segment=1)
    segments.write([line(0)])
    before = files(tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", failing(os.fsync, errno.EIO))
        with pytest.raises(SpoolError, match="cannot write"):
            segments.write([line(1)])
        assert files(tmp_path) == before
    with monkeypatch.context() as disk:  # a write that fails next must cost nothing that was acknowledged
        disk.setattr(os, "write", failing(os.write, errno.ENOSPC))
        with pytest.raises(SpoolError, match="cannot write"):
            segments.write([line(1)])
    segments.write([line(2)])
    assert numbers(segments) == [0, 2]
    segments.close()
    assert numbers(Segments(tmp_path)) == [0, 2]


def test_a_failed_write_after_a_rotation_leaves_nothing_pending(tmp_path, line, monkeypatch):
    segments = Segments(tmp_path, segment=10)
    segments.write([line(1)])
    segments.acknowledge(segments.read(segments.position, 9).end)
    monkeypatch.setattr(os, "write", failing(os.write, errno.ENOSPC))
    with pytest.raises(SpoolError):
        segments.write([line(2)])
    assert not segments.pending
    segments.close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path, line):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match=r"cannot open the spool .*file"):
        Segments(tmp_path / "file")
    segments = Segments(tmp_path / "spool")
    segments.write([line(1)])
    end = segments.read(segments.first, 1).end
    for path in (tmp_path / "spool").iterdir():
        path.unlink()
    with pytest.raises(SpoolError, match="cannot read the spool"):
        segments.read(segments.first, 1)
    (tmp_path / "spool").rmdir()
    with pytest.raises(SpoolError, match="cannot write to the spool"):
        segments.acknowledge(end)
    segments.close()


def test_what_waits_is_known_without_reading(tmp_path, line):
    """Events and bytes, over files, acknowledgements and a restart; damaged lines count until they are passed."""
    lines = [line(number) for number in range(10)]
    segments = Segments(tmp_path, segment=300)
    assert segments.waiting == (0, 0)
    for one in lines:
        segments.write([one])
    assert segments.waiting == (10, sum(map(len, lines)))
    batch = segments.read(segments.position, 4)
    segments.acknowledge(batch.end, batch.lines)
    assert segments.waiting == (6, sum(map(len, lines[4:])))
    segments.close()

    segments = Segments(tmp_path, segment=300)
    assert segments.waiting == (6, sum(map(len, lines[4:])))
    assert segments.pending
    batch = segments.read(segments.position, 100)
    segments.acknowledge(batch.end, batch.lines)
    assert segments.waiting == (0, 0)
    assert not segments.pending
    segments.close()
