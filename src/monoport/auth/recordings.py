"""Recordings where they end up: one file each, whole and verified before its node is told that it may forget it.

Belongs here: files in data_dir/recordings, the index of what is there, taking a recording in parts. Does not: who may
(`recorded`), what is in a recording (`audit.asciicast`).

A recording that is on its way is `<id>.part`, a whole one `<id>.cast`; the index in `index.db` names the whole ones. A
file that the index does not name yet (a kill came between the two) is taken for one that is on its way.
"""

import asyncio
import hashlib
import os
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from monoport.audit.asciicast import MAX_LINE, CastError, decode_header
from monoport.audit.disk import sync_folder
from monoport.auth.refusals import Conflict, Exists, Invalid, NotFound, TooBusy

Result = TypeVar("Result")

MAX_RECORDING: Final = 512 * 1024 * 1024  # octets; a node stops at half of it
MAX_PART: Final = 512 * 1024  # octets of one request, half of what the HTTP server takes
MAX_PAGE: Final = 1000  # recordings in one answer
UNFINISHED: Final = 64  # recordings of one host on their way at a time: a node sends one after the other
STALE: Final = timedelta(days=7)  # without a part; the node that had it is gone
FREE: Final = 1024 * 1024 * 1024  # octets left on the disk, which users, roles and audit log need more
READ: Final = 262_144  # octets read at once

_ID: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII)  # nothing else becomes a file name
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS recordings (
    id TEXT PRIMARY KEY, user TEXT NOT NULL, login TEXT NOT NULL, host_id TEXT NOT NULL, node TEXT NOT NULL,
    connection TEXT NOT NULL, started TEXT NOT NULL, seconds REAL NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS recordings_by_start ON recordings (started, id);
CREATE INDEX IF NOT EXISTS recordings_by_user ON recordings (user, started, id);
"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording that is kept: whose session, where, when (ISO 8601, UTC), seconds long, octets, and its SHA-256."""

    id: str
    user: str
    login: str
    host_id: str
    node: str
    connection: str
    started: str
    seconds: float
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node says of a recording before it sends it: octets, SHA-256 in hex, seconds."""

    size: int
    sha256: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Filter:
    """Which recordings: of a user ("alice@cluster"), of a node (nodename or host id), not begun before an instant."""

    user: str = ""
    node: str = ""
    since: str = ""


_COLUMNS: Final = ", ".join(field.name for field in fields(Recorded))


def check_id(recording: str) -> str:
    """Return an id that is one; raises NotFound for everything else, such as a path."""
    if not _ID.fullmatch(recording):
        raise NotFound(f"no recording {recording[:64]!a}")
    return recording


class Vault:
    """Keeps recordings in one folder; everything happens in one thread, one thing after the other.

    Args:
        folder: made where it is missing. now: UTC. free: octets that stay free on the disk.
    """

    def __init__(self, folder: Path, now: Callable[[], datetime], free: int = FREE) -> None:
        self._folder, self._now, self._free = folder, now, free
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recordings")
        self._database: sqlite3.Connection | None = None
        self._owners: dict[str, str] = {}  # of what is on its way: its host

    # --- taking

    async def offer(self, recording: str, host_id: str, offer: Offer) -> int | None:
        """How many octets of a recording are here already; None if all of it is kept.

        Raises:
            Exists: another recording has this id. Invalid: bounds. TooBusy: no room now.
        """
        return await self._run(partial(self._offer, check_id(recording), host_id, offer))

    def _offer(self, recording: str, host_id: str, offer: Offer) -> int | None:
        if (kept := self._find(recording)) is not None:
            if (kept.host_id, kept.size, kept.sha256) != (host_id, offer.size, offer.sha256):
                raise Exists(f"recording {recording} is kept already, with other content")
            return None
        if not 0 < offer.size <= MAX_RECORDING or not _HASH.fullmatch(offer.sha256):
            raise Invalid(f"a recording has 1 to {MAX_RECORDING} octets and a SHA-256 in hex")
        if whole := self._whole(recording):
            os.replace(whole, self._part(recording))
        part = self._part(recording)
        if not part.exists():
            self._sweep()
            if sum(owner == host_id for owner in self._owners.values()) >= UNFINISHED:
                raise TooBusy(f"{UNFINISHED} recordings of this host are on their way already")
            self._room(offer.size)
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._owners[recording] = host_id
        return self._received(part, offer)

    def _received(self, part: Path, offer: Offer) -> int:
        size = part.stat().st_size
        if size > offer.size:  # of another try, with other content
            os.truncate(part, 0)
            return 0
        return size

    async def append(self, recording: str, offset: int, data: bytes) -> int:
        """Add one part; returns how many octets are here then.

        Raises:
            NotFound: it was not offered. Conflict: the part does not begin where the octets that are here end.
        """
        return await self._run(partial(self._append, check_id(recording), offset, data))

    def _append(self, recording: str, offset: int, data: bytes) -> int:
        part = self._part(recording)
        if recording not in self._owners or not part.exists():
            raise NotFound(f"recording {recording} was not offered")
        size = part.stat().st_size
        if offset != size:
            raise Conflict(f"the part begins at octet {offset}, and {size} are here")
        if len(data) > MAX_PART or size + len(data) > MAX_RECORDING:
            raise Invalid(f"a part has at most {MAX_PART} octets, a recording {MAX_RECORDING}")
        self._room(len(data))
        with part.open("ab") as file:
            file.write(data)
        return size + len(data)

    async def complete(self, recording: Recorded) -> bool:
        """Keep a recording whose parts are all here; durable on return. Whether it was not kept before.

        Raises:
            NotFound: it was not offered. Invalid: size or SHA-256 are not as offered, or it is no recording of this
            session; what was sent is dropped.
        """
        check_id(recording.id)
        return await self._run(partial(self._complete, recording))

    def _complete(self, recording: Recorded) -> bool:
        if (kept := self._find(recording.id)) is not None:
            if (kept.host_id, kept.sha256) != (recording.host_id, recording.sha256):
                raise Exists(f"recording {recording.id} is kept already, with other content")
            return False
        part = self._part(recording.id)
        if recording.id not in self._owners or not part.exists():
            raise NotFound(f"recording {recording.id} was not offered")
        try:
            _verify(part, recording)
        except Invalid:
            part.unlink()
            self._owners.pop(recording.id)
            raise
        os.replace(part, self._folder / f"{recording.id}.cast")
        sync_folder(self._folder)
        database = self._opened()
        with database:
            marks = ", ".join("?" * len(fields(Recorded)))
            database.execute(f"INSERT INTO recordings ({_COLUMNS}) VALUES ({marks})", astuple(recording))  # noqa: S608
        self._owners.pop(recording.id)
        return True

    def owner(self, recording: str) -> str:
        """The host that is sending it, "" if none is."""
        return self._owners.get(recording, "")

    # --- giving

    async def get(self, recording: str) -> Recorded:
        """What is known of a recording; raises NotFound."""
        found = await self._run(partial(self._find, check_id(recording)))
        if found is None:
            raise NotFound(f"no recording {recording}")
        return found

    async def list(self, wanted: Filter, limit: int, before: str | None = None) -> tuple[list[Recorded], str | None]:
        """Up to `limit` recordings, those that began last first, and what continues the listing."""
        where, values = ["1"], []
        for clause, value in (("user = ?", wanted.user), ("started >= ?", wanted.since)):
            if value:
                where.append(clause)
                values.append(value)
        if wanted.node:
            where.append("(node = ? OR host_id = ?)")
            values += [wanted.node, wanted.node]
        if before is not None:
            started, slash, last = before.rpartition("/")
            if not slash or not _ID.fullmatch(last) or len(started) > 40:
                raise Invalid("`before` must be the `next` of a page")
            where.append("(started, id) < (?, ?)")
            values += [started, last]
        count = max(1, min(limit, MAX_PAGE))
        query = (
            f"SELECT {_COLUMNS} FROM recordings WHERE {' AND '.join(where)} "  # noqa: S608 - only constants are joined
            "ORDER BY started DESC, id DESC LIMIT ?"
        )
        rows = await self._run(lambda: self._opened().execute(query, [*values, count + 1]).fetchall())
        found = [Recorded(*row) for row in rows[:count]]
        return found, f"{found[-1].started}/{found[-1].id}" if len(rows) > count else None

    async def read(self, recording: str, offset: int) -> bytes:
        """Up to READ octets; b"" at the end. Raises NotFound."""
        return await self._run(partial(self._read, check_id(recording), offset))

    def _read(self, recording: str, offset: int) -> bytes:
        try:
            with (self._folder / f"{recording}.cast").open("rb") as file:
                file.seek(offset)
                return file.read(READ)
        except FileNotFoundError:
            raise NotFound(f"no recording {recording}") from None

    async def remove(self, recording: str) -> Recorded:
        """Delete a recording for good and return what it was; raises NotFound."""
        found = await self.get(recording)
        await self._run(partial(self._remove, recording))
        return found

    def _remove(self, recording: str) -> None:
        database = self._opened()
        with database:
            database.execute("DELETE FROM recordings WHERE id = ?", (recording,))
        (self._folder / f"{recording}.cast").unlink(missing_ok=True)
        sync_folder(self._folder)

    async def close(self) -> None:
        """Close the index."""
        if self._database is not None:
            await self._run(self._database.close)
            self._database = None
        self._thread.shutdown()

    # --- in the thread

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _find(self, recording: str) -> Recorded | None:
        query = f"SELECT {_COLUMNS} FROM recordings WHERE id = ?"  # noqa: S608 - only constants are joined
        row = self._opened().execute(query, (recording,)).fetchone()
        return None if row is None else Recorded(*row)

    def _part(self, recording: str) -> Path:
        return self._folder / f"{recording}.part"

    def _whole(self, recording: str) -> Path | None:
        path = self._folder / f"{recording}.cast"
        return path if path.exists() else None

    def _room(self, size: int) -> None:
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < self._free + size:
            raise TooBusy("the auth service's disk has no room for recordings")

    def _sweep(self) -> None:
        """Forget what no part has come for in a long time."""
        before = (self._now() - STALE).timestamp()
        for path in self._folder.glob("*.part"):
            if path.stat().st_mtime < before:
                path.unlink()
                self._owners.pop(path.stem, None)

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._folder / "index.db"
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            database = sqlite3.connect(path, check_same_thread=False)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")  # a commit is on the disk before it returns
            database.executescript(_SCHEMA)
            self._database = database
        return self._database


def _verify(part: Path, recording: Recorded) -> None:
    """Raise Invalid unless the file is what was offered, and sync it."""
    digest, size = hashlib.sha256(), 0
    with part.open("rb") as file:
        try:
            inside = decode_header(file.readline(MAX_LINE)).id
        except CastError as error:
            raise Invalid(str(error)) from error
        if inside != recording.id:
            raise Invalid(f"the recording is not of session {recording.id}")
        file.seek(0)
        while data := file.read(READ):
            digest.update(data)
            size += len(data)
        if (size, digest.hexdigest()) != (recording.size, recording.sha256):
            raise Invalid(f"{size} octets came that are not the {recording.size} offered, or their SHA-256 is another")
        os.fsync(file.fileno())
