"""The files of a spool: numbered segments of lines, and how far they were shipped.

Belongs here: writing, syncing, rotating, recovering and reading files, all blocking, in one thread.
Does not: who waits for it (spool.py).

A line counts once it is synced. A torn last line, left by a kill or a power cut, was acknowledged to nobody and is cut
off at the next start; a damaged line elsewhere is skipped and reported, never a reason to drop what follows it.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, final

import structlog

from monoport.audit.disk import sync_folder, write_all
from monoport.audit.events import MAX_EVENT, Event, EventError, parse, payload
from monoport.errors import Failure

_log = structlog.get_logger()

SEGMENT: Final = 16 * 1024 * 1024  # bytes after which a new file begins: small enough to delete in steps
CAPACITY: Final = 1024 * 1024 * 1024  # bytes of everything unshipped; beyond it sessions stop rather than fill the disk
READ: Final = 1024 * 1024  # bytes of events in one batch
MAX_LINE: Final = MAX_EVENT + 16  # with checksum and newline
_NAME: Final = re.compile(r"events-(\d{16})\.log", re.ASCII)


class SpoolError(Failure):
    """The spool cannot keep an event, so what it belongs to must not go on."""


class Position(NamedTuple):
    """A place between two lines: number of the segment, bytes from its beginning."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in the order of their appending, as their JSON, and the place behind them."""

    payloads: tuple[bytes, ...]
    end: Position
    lines: int = 0  # that were read, damaged ones too

    @property
    def events(self) -> tuple[Event, ...]:
        """The events themselves."""
        return tuple(parse(one) for one in self.payloads)


class Waiting(NamedTuple):
    """What was not shipped yet: how many events, and their bytes on disk."""

    events: int
    bytes: int


@final
class Segments:
    """An open spool folder, recovered if it had to be.

    Args:
        folder: made if it is not there, for its owner alone.
        segment: bytes after which a new file begins.
        capacity: bytes that may wait.

    Raises:
        SpoolError: if the folder cannot be used.
    """

    def __init__(self, folder: Path, *, segment: int = SEGMENT, capacity: int = CAPACITY) -> None:
        self._folder = folder
        self._limit = segment
        self._capacity = capacity
        self._broken = ""
        self._torn: int | None = None  # size to which the file must be cut back before anything is added to it
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sizes = dict(self._scan())
            self._current = max(self._sizes, default=0)
            self._file = self._create() if not self._sizes else self._recover()
            self.position = self._load_position()
            # Replaced, never changed: the loop's thread looks at it for the metrics.
            self.waiting = Waiting(sum(1 for _ in self._lines(self.position)), self._bytes_behind(self.position))
        except OSError as error:
            raise SpoolError(f"cannot open the spool {folder}: {error.strerror or error}") from error

    def write(self, lines: Sequence[bytes]) -> None:
        """Append whole lines and sync them; when it returns they are durable.

        Raises:
            SpoolError: if they are not. After a failed sync nothing more goes into that file, as what the kernel still
                holds of it is unknown (the fsync errors of 2018, PostgreSQL wiki "Fsync Errors"): the next write
                begins another.
        """
        data = b"".join(lines)
        before = self._append(data)
        self._sizes[self._current] = before + len(data)
        self.waiting = Waiting(self.waiting.events + len(lines), self.waiting.bytes + len(data))

    def probe(self) -> None:
        """Write and sync as much as the largest line, and take it back; raises SpoolError if that failed.

        A kill in between leaves a torn line, which the next start cuts off like any other.
        """
        before = self._append(b"\0" * MAX_LINE)
        self._torn = before
        self._undo(before)

    def _append(self, data: bytes) -> int:
        """Write and sync bytes behind what counts; return how many counted before. Raises SpoolError."""
        if self._broken:
            self._replace()
        if self._torn is not None:
            self._undo(self._torn)
        if sum(self._sizes.values()) + len(data) > self._capacity:
            raise SpoolError(f"the spool {self._folder} is full: limit {self._capacity} bytes")
        before = self._sizes[self._current]
        try:
            if before >= self._limit:
                self._rotate()
                before = 0
            write_all(self._file, data)
        except OSError as error:
            self._torn = before
            with suppress(SpoolError):  # a disk may be read-only for a while: the next write begins by trying again
                self._undo(before)
            raise SpoolError(f"cannot write to the spool {self._folder}: {error.strerror or error}") from error
        try:
            os.fdatasync(self._file)
        except OSError as error:
            self._broken = f"cannot sync the spool {self._folder}: {error.strerror or error}"
            raise SpoolError(self._broken) from error
        return before

    def _replace(self) -> None:
        """Go on after a failed sync or repair: what was acknowledged stays in its file, and nothing is added to that.

        Only a file in which nothing counts is used again. Raises SpoolError while the disk takes nothing.
        """
        try:
            if self._sizes[self._current]:
                self._rotate()
            else:
                os.ftruncate(self._file, 0)
        except OSError as error:
            raise SpoolError(self._broken) from error
        self._broken, self._torn = "", None

    def read(self, start: Position, limit: int) -> Batch:
        """Return up to `limit` events, and about `READ` bytes, behind `start`.

        Raises:
            SpoolError: if a file cannot be read.
        """
        found: list[bytes] = []
        end, taken, lines = start, 0, 0
        try:
            for line, end in self._lines(start):
                taken += len(line)
                lines += 1
                try:
                    found.append(payload(line))
                except EventError as error:
                    _log.error("audit spool", error=str(error), segment=end.segment, offset=end.offset)
                if len(found) >= limit or taken >= READ:
                    break
        except OSError as error:
            raise SpoolError(f"cannot read the spool {self._folder}: {error.strerror or error}") from error
        return Batch(tuple(found), end, lines)

    def acknowledge(self, position: Position, lines: int = 0) -> None:
        """Remember that everything before `position` was shipped, and drop the files that hold nothing else.

        lines: how many that were; it keeps `waiting` right.

        It is written without a sync: losing it means shipping again, which receivers notice by the events' ids.

        Raises:
            SpoolError: if it cannot be written.
        """
        if position <= self.position:
            return
        self.position = position
        behind = self._bytes_behind(position)
        self.waiting = Waiting(max(0, self.waiting.events - lines) if behind else 0, behind)
        try:
            # Files first: on a full disk they are the room in which the position can be written.
            for number in [number for number in self._sizes if number < position.segment]:
                self._path(number).unlink(missing_ok=True)
                del self._sizes[number]
            waiting = self._folder / "shipped.new"
            waiting.write_text(json.dumps({"segment": position.segment, "offset": position.offset}))
            waiting.replace(self._folder / "shipped")
        except OSError as error:
            raise SpoolError(f"cannot write to the spool {self._folder}: {error.strerror or error}") from error

    @property
    def first(self) -> Position:
        """The place before the oldest line."""
        return Position(min(self._sizes), 0)

    @property
    def pending(self) -> bool:
        """Whether anything was not shipped yet."""
        return self._bytes_behind(self.position) > 0

    def _bytes_behind(self, position: Position) -> int:
        segment, offset = position
        return sum(
            size - offset if number == segment else size for number, size in self._sizes.items() if number >= segment
        )

    def close(self) -> None:
        """Close the file; nothing may be called any more. A disk that fails is logged: all that counts is synced."""
        try:
            os.close(self._file)
        except OSError as error:
            _log.warning("audit spool", unclosed=str(self._path(self._current)), error=error.strerror or str(error))

    def _lines(self, start: Position) -> Iterator[tuple[bytes, Position]]:
        """Yield lines and the place behind each, up to what is durable."""
        for number in sorted(number for number in self._sizes if number >= start.segment):
            offset = start.offset if number == start.segment else 0
            with self._path(number).open("rb") as file:
                file.seek(offset)
                while offset < self._sizes[number] and (line := file.readline(MAX_LINE)):
                    offset += len(line)
                    yield line, Position(number, offset)

    def _scan(self) -> Iterator[tuple[int, int]]:
        for entry in os.scandir(self._folder):
            if found := _NAME.fullmatch(entry.name):
                yield int(found[1]), entry.stat().st_size

    def _path(self, number: int) -> Path:
        return self._folder / f"events-{number:016}.log"

    def _create(self) -> int:
        number = self._current + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        path = self._path(number)
        file = os.open(path, flags, 0o600)
        try:
            sync_folder(self._folder)
        except OSError:  # the file before it stays the current one, in name as in deed
            os.close(file)
            with suppress(OSError):  # where even that fails, the next try finds the file in its way and is refused
                path.unlink()
            raise
        self._current = number
        self._sizes[number] = 0
        return file

    def _rotate(self) -> None:
        old, self._file = self._file, self._create()
        os.close(old)

    def _recover(self) -> int:
        path = self._path(self._current)
        whole = _whole_lines(path)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        torn = self._sizes[self._current] - whole
        if torn:
            _log.warning("audit spool", recovered=str(path), torn_bytes=torn)
            os.ftruncate(file, whole)
            self._sizes[self._current] = whole
        os.fsync(file)
        return file

    def _undo(self, size: int) -> None:
        try:
            os.ftruncate(self._file, size)
        except OSError as error:
            text = f"cannot repair the spool {self._folder}: {error.strerror or error}"
            if error.errno == errno.EIO:  # the disk itself: what it holds is unknown from here on
                self._broken = text
            raise SpoolError(text) from error
        self._torn = None

    def _load_position(self) -> Position:
        try:
            document = json.loads((self._folder / "shipped").read_bytes())
            position = Position(int(document["segment"]), int(document["offset"]))
        except FileNotFoundError:
            return self.first
        except (ValueError, KeyError, TypeError):
            _log.warning("audit spool", unreadable=str(self._folder / "shipped"), shipping_again=True)
            return self.first
        if position.segment not in self._sizes or position.offset > self._sizes[position.segment]:
            # A power cut can take back what was shipped before it was synced here; what is here was not shipped twice.
            return max(self.first, min(position, Position(self._current, self._sizes[self._current])))
        return position


def _whole_lines(path: Path) -> int:
    """Return how many bytes of the file end with a newline."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - READ)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0
