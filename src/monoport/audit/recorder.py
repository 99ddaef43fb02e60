"""Recordings on the node's disk, written while their sessions run, and what a kill left of them.

Belongs here: one folder of asciicast files, its bounds, and its thread. Does not: the format (asciicast.py), where
recordings go from here (agents.node.upload), whether a session is recorded (access) or ends without (its session).

A growing file is `<id>.cast.part`; ended it is `<id>.cast`, and what will never be taken is `<id>.refused`. What was
recorded is written and synced FLUSH_SECONDS later at the most, which is what a kill or a power cut can cost.

`<id>.sha256` is the hash of what was written, from memory: damage on this disk is noticed before the auth service keeps
it. Of a recording that a kill cut short it is taken when that is found.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeVar, final

import structlog

from monoport.audit.asciicast import (
    MAX_LINE,
    MAX_SIDE,
    PIECE,
    CastError,
    Event,
    Header,
    Kind,
    Output,
    decode_event,
    decode_header,
    encode_event,
    encode_header,
)
from monoport.audit.disk import sync_folder, write_all
from monoport.errors import Failure

FLUSH_SECONDS: Final = 0.5  # half of the second that a crash may cost, so that a slow disk has the other half
FLUSH_BYTES: Final = 65_536  # written at once without waiting: `cat` of a large file
WAITING: Final = 1024 * 1024  # bytes of one session that may wait for the disk; then its output pauses
PART: Final = ".cast.part"
ENDED: Final = ".cast"
HASH: Final = ".sha256"
ASIDE: Final = ".refused"
TAIL: Final = 65_536  # bytes read at once when looking for the last whole line

Result = TypeVar("Result")

_log = structlog.get_logger()


class RecordingError(Failure):
    """A session cannot be recorded, or not any further."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds in bytes."""

    recording: int = 256 * 1024 * 1024  # of one: some days of work at a terminal, or an hour of `yes`
    folder: int = 4 * 1024 * 1024 * 1024  # of all that wait for the auth service
    free: int = 256 * 1024 * 1024  # left on the disk, so that recordings never cost the audit log its room


@final
class Recordings:
    """One node's folder of recordings; made on the loop that uses it.

    Args:
        folder: of these recordings alone; made where it is missing.
        limits: what they may take.
        clock: seconds that never go back.

    Raises:
        RecordingError: the folder cannot be used.
    """

    def __init__(
        self, folder: Path, limits: Limits | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.limits, self.clock = folder, limits or Limits(), clock
        self.news = asyncio.Event()  # a recording has ended; who waits clears it
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recordings")
        self._used = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in folder.glob(f"*{PART}"):
                _end_torn(path)
            for path in folder.glob(f"*{HASH}"):
                if not any(path.with_suffix(kept).exists() for kept in (ENDED, ASIDE)):
                    path.unlink()  # a kill came between the two
            self._used = sum(one.stat().st_size for one in folder.iterdir() if one.suffix != HASH)
        except OSError as error:
            raise RecordingError(f"recordings folder {folder} cannot be used: {error.strerror or error}") from error

    async def begin(self, header: Header, failed: Callable[[str], object]) -> Recorder:
        """Return a recorder whose header is written; `failed` is called once if it must stop before its end.

        Raises:
            RecordingError: nothing can be recorded now.
        """
        path = self.folder / f"{header.id}{PART}"
        line = encode_header(header)
        try:
            file = await self._in_thread(lambda: self._create(path, line))
        except OSError as error:
            raise RecordingError(f"the session cannot be recorded: {error.strerror or error}") from error
        return Recorder(self, path, file, line, failed)

    def ended(self) -> list[Path]:
        """Return the recordings that wait for upload, the oldest first."""
        return sorted(self.folder.glob(f"*{ENDED}"), key=lambda path: (path.stat().st_mtime_ns, path.name))

    @property
    def counts(self) -> tuple[int, int]:
        """How many recordings wait for the auth service, and how many it has refused for good."""
        waiting, refused = (sum(1 for _ in self.folder.glob(f"*{kind}")) for kind in (ENDED, ASIDE))
        return waiting, refused

    def put_aside(self, path: Path) -> None:
        """Keep a recording that will not be sent; raises OSError."""
        path.rename(path.with_suffix(ASIDE))

    async def remove(self, path: Path) -> None:
        """Delete a recording that the auth service keeps; raises OSError."""
        await self._in_thread(lambda: self._remove(path))

    def close(self) -> None:
        """Finish what is being written."""
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # in the thread, which alone counts what is used

    def _create(self, path: Path, line: bytes) -> int:
        self._room(len(line))
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            write_all(file, line)
            os.fdatasync(file)
        except OSError:
            os.close(file)
            path.unlink()
            raise
        self._used += len(line)
        return file

    def _remove(self, path: Path) -> None:
        size = path.stat().st_size
        path.unlink()
        path.with_suffix(HASH).unlink(missing_ok=True)
        sync_folder(self.folder)
        self._used -= size

    def _append(self, file: int, data: bytes, size: int) -> None:
        """Write and sync; on failure the file is as it was. Raises RecordingError."""
        if size + len(data) > self.limits.recording:
            raise RecordingError(f"the recording has reached its limit of {self.limits.recording} bytes")
        self._room(len(data))
        try:
            write_all(file, data)
            os.fdatasync(file)
        except OSError as error:
            with suppress(OSError):  # what is torn then is cut when the agent starts again
                os.ftruncate(file, size)
            raise RecordingError(f"the recording cannot be written: {error.strerror or error}") from error
        self._used += len(data)

    def _end(self, path: Path, file: int, digest: str) -> None:
        """Sync, close, note the hash and give the file its name."""
        try:
            os.fsync(file)
        finally:
            os.close(file)
        _name_ended(path, digest)

    def _room(self, size: int) -> None:
        limit = self.limits.folder
        if self._used + size > limit:
            raise RecordingError(f"recordings that the auth service does not have yet fill their {limit} bytes")
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < self.limits.free + size:
            raise RecordingError("the session cannot be recorded: no space left on the node's disk")


@final
class Recorder:
    """One growing recording; made by `Recordings.begin`."""

    def __init__(self, home: Recordings, path: Path, file: int, line: bytes, failed: Callable[[str], object]) -> None:
        self._home, self._path, self._file, self._size, self._failed = home, path, file, len(line), failed
        self._digest = hashlib.sha256(line)  # of what has been written
        self._loop = asyncio.get_running_loop()
        self._started = home.clock()
        self._output, self._input = Output(), Output()
        self._lines: list[bytes] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._room: Callable[[], object] | None = None
        self.failure = ""  # why it stopped, once it has

    def output(self, data: bytes) -> None:
        """Keep what the terminal said."""
        self._text("o", self._output, data)

    def input(self, data: bytes) -> None:
        """Keep what the user typed."""
        self._text("i", self._input, data)

    def resize(self, columns: int, rows: int) -> None:
        """Keep a new size of the terminal."""
        columns, rows = (min(max(side, 1), MAX_SIDE) for side in (columns, rows))
        self._add("r", f"{columns}x{rows}")

    def mark(self, text: str) -> None:
        """Keep a remark of ours."""
        self._add("m", text)

    def wait_for_room(self, room: Callable[[], object]) -> bool:
        """Whether more than WAITING bytes wait for the disk; then `room` is called once when they do not any more."""
        if self._waiting <= WAITING or self.failure:
            return False
        self._room = room
        return True

    async def finish(self) -> None:
        """Write what waits and end the recording; it then waits for upload. It may be called once."""
        pairs: tuple[tuple[Kind, Output], ...] = (("o", self._output), ("i", self._input))
        for kind, decoder in pairs:
            if rest := decoder.text(b"", final=True):
                self._add(kind, rest)
        self._cancel_timer()
        while self._writing is not None or (self._lines and not self.failure):
            self._flush()
            if self._writing is not None:
                await asyncio.wait((self._writing,))
        try:
            digest = self._digest.hexdigest()
            await self._home._in_thread(lambda: self._home._end(self._path, self._file, digest))
        except OSError as error:
            self._fail(f"the recording cannot be ended: {error.strerror or error}")
            return
        self._home.news.set()

    def _text(self, kind: Kind, decoder: Output, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            if text := decoder.text(data[start : start + PIECE]):
                self._add(kind, text)

    def _add(self, kind: Kind, text: str) -> None:
        if self.failure:
            return
        line = encode_event(Event(max(0.0, self._home.clock() - self._started), kind, text))
        self._lines.append(line)
        self._waiting += len(line)
        if self._waiting >= FLUSH_BYTES:
            self._flush()
        elif self._timer is None and self._writing is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._cancel_timer()
        if self._writing is not None or not self._lines or self.failure:
            return
        data = b"".join(self._lines)
        self._lines.clear()
        work = partial(self._write, data)
        self._writing = self._loop.run_in_executor(self._home._thread, work)
        self._writing.add_done_callback(lambda done: self._written(done, len(data)))

    def _write(self, data: bytes) -> None:
        """In the thread."""
        self._home._append(self._file, data, self._size)
        self._digest.update(data)

    def _written(self, done: asyncio.Future[None], size: int) -> None:
        self._writing = None
        error = done.exception()
        if error is None:
            self._size += size
            self._waiting -= size
        else:
            self._fail(str(error))
        if self._room is not None and (self._waiting <= WAITING or self.failure):
            room, self._room = self._room, None
            room()
        if self._lines and self._timer is None and not self.failure:
            if self._waiting >= FLUSH_BYTES:
                self._flush()
            else:
                self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def _fail(self, reason: str) -> None:
        self._lines.clear()
        self.failure = reason
        self._failed(reason)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _end_torn(path: Path) -> None:
    """End what a kill left unfinished: cut a torn last line, say in the recording that it was cut, name it as ended."""
    with path.open("r+b") as file:
        whole = _whole_lines(file)
        file.seek(0)
        try:
            header = decode_header(file.readline(MAX_LINE))
        except CastError:
            header = None
        if header is None or f"{header.id}{PART}" != path.name:
            _log.warning("a recording without a beginning is dropped", file=str(path))
            path.unlink()
            return
        file.truncate(whole)
        file.seek(whole)
        file.write(encode_event(Event(_last_time(file, whole), "m", "the node's agent was stopped here")))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _name_ended(path, digest)
    _log.warning("recording of an interrupted session recovered", file=path.name.removesuffix(PART))


def _name_ended(path: Path, digest: str) -> None:
    """Give a recording that is written the name of an ended one, its hash beside it."""
    ended = path.with_name(path.name.removesuffix(PART) + ENDED)
    try:
        file = os.open(ended.with_suffix(HASH), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(file, f"{digest}\n".encode())
        finally:
            os.close(file)
    except OSError as error:  # a full disk: the recording itself is there
        ended.with_suffix(HASH).unlink(missing_ok=True)
        _log.warning("a recording's hash is not kept", recording=ended.stem, error=error.strerror)
    path.rename(ended)
    sync_folder(path.parent)


def noted_hash(path: Path) -> str:
    """The SHA-256, in hex, of an ended recording as it was written; "" where none was noted. Raises OSError."""
    try:
        return path.with_suffix(HASH).read_text("ascii", "replace").strip()
    except FileNotFoundError:
        return ""


def _whole_lines(file: BinaryIO) -> int:
    """How many bytes end with a newline."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - TAIL)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def duration(path: Path) -> float:
    """Seconds between the beginning of an ended recording and its last event; raises OSError."""
    with path.open("rb") as file:
        return _last_time(file, file.seek(0, os.SEEK_END))


def _last_time(file: BinaryIO, end: int) -> float:
    """The time of the last event before byte `end`, 0 without one; leaves the file at `end`."""
    begin = max(0, end - MAX_LINE - 1)
    file.seek(begin)
    lines = file.read(end - begin).splitlines()
    try:
        return decode_event(lines[-1]).time if lines else 0.0
    except CastError:  # the header
        return 0.0
