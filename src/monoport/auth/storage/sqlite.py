"""The embedded store: one SQLite file, written ahead and synced on every commit.

Belongs here: schema and SQL. Does not: threads and transactions (worker.py).

A second process on the same file corrupts nothing (revisions are counted in the file), but does not wake the watches
of the first: one auth service to a data folder is the daemon's promise.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, final

from monoport.auth.storage.interface import (
    BATCH,
    HISTORY,
    AlreadyExistsError,
    Change,
    Clock,
    CompactedError,
    ConflictError,
    Item,
    NotFoundError,
    Snapshot,
    Storage,
    StorageError,
    check_key,
    check_prefix,
    check_value,
    covers,
    utc_now,
)
from monoport.auth.storage.wakeup import Wakeups
from monoport.auth.storage.worker import BUSY_MS, Worker

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x6D6F6E6F  # "mono": tells our files from other SQLite files

_SCHEMA: Final = (
    "CREATE TABLE counter (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL) STRICT",
    "INSERT INTO counter VALUES (1, 0)",
    "CREATE TABLE items (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, expires INTEGER)"
    " STRICT, WITHOUT ROWID",
    "CREATE INDEX expiring ON items (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE changes (revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB, expires INTEGER) STRICT",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

Row = tuple[str, bytes, int, int | None]


@final
class SqliteStorage(Storage):
    """One SQLite file; made by `open`."""

    def __init__(self, path: Path, clock: Clock, history: int) -> None:
        self._clock = clock
        self._history = history
        self._wakeups = Wakeups()
        self._worker = Worker(lambda: _connect(path), self._wakeups.wake)

    @classmethod
    async def open(cls, path: Path, clock: Clock = utc_now, history: int = HISTORY) -> SqliteStorage:
        """Open the store at `path`, or make it, readable by its owner alone.

        Args:
            path: the file; its folder exists.
            clock: UTC; decides what has expired.
            history: changes kept for watchers.

        Raises:
            StorageError: if the file cannot be opened, is not ours, or was written by a newer version.
        """
        storage = cls(path, clock, history)
        await storage._worker.open()
        return storage

    async def get(self, key: str) -> Item | None:
        check_key(key)
        now = _stamp(self._clock())
        return await self._worker.call(lambda db: _alive(db, key, now), writes=False)

    async def put(self, key: str, value: bytes, expires: datetime | None = None) -> int:
        check_key(key)
        check_value(value, expires)
        return await self._worker.call(lambda db: self._write(db, key, value, expires), writes=True)

    async def create(self, key: str, value: bytes, expires: datetime | None = None) -> int:
        check_key(key)
        check_value(value, expires)
        now = _stamp(self._clock())

        def job(db: sqlite3.Connection) -> int:
            if _alive(db, key, now) is not None:
                raise AlreadyExistsError(f"{key} exists already")
            return self._write(db, key, value, expires)

        return await self._worker.call(job, writes=True)

    async def compare_and_swap(self, key: str, value: bytes, revision: int, expires: datetime | None = None) -> int:
        check_key(key)
        check_value(value, expires)
        now = _stamp(self._clock())

        def job(db: sqlite3.Connection) -> int:
            _expect(_alive(db, key, now), key, revision)
            return self._write(db, key, value, expires)

        return await self._worker.call(job, writes=True)

    async def delete(self, key: str, revision: int | None = None) -> int:
        check_key(key)
        now = _stamp(self._clock())

        def job(db: sqlite3.Connection) -> int:
            item = _alive(db, key, now)
            if revision is not None:
                _expect(item, key, revision)
            elif item is None:
                raise NotFoundError(f"{key} does not exist")
            return self._remove(db, key)

        return await self._worker.call(job, writes=True)

    async def snapshot(self, prefix: str) -> Snapshot:
        wanted = check_prefix(prefix)
        now = _stamp(self._clock())

        def job(db: sqlite3.Connection) -> Snapshot:
            rows = db.execute(
                # '0' is the byte after '/': the range holds exactly what begins with the prefix and a slash
                "SELECT key, value, revision, expires FROM items"
                " WHERE (key = ? OR (key >= ? AND key < ?)) AND (expires IS NULL OR expires > ?) ORDER BY key",
                (wanted, wanted + "/", wanted + "0", now),
            )
            return Snapshot(_revision(db), tuple(_item(row) for row in rows))

        return await self._worker.call(job, writes=False)

    async def sweep(self) -> int:
        now = _stamp(self._clock())

        def job(db: sqlite3.Connection) -> int:
            expired = db.execute("SELECT key FROM items WHERE expires <= ? ORDER BY expires", (now,)).fetchall()
            for (key,) in expired:
                self._remove(db, key)
            return len(expired)

        if await self._worker.call(lambda db: _any_expired(db, now), writes=False):
            return await self._worker.call(job, writes=True)
        return 0

    async def watch(self, prefix: str, after_revision: int) -> AsyncIterator[Change]:
        wanted = check_prefix(prefix)

        async def read(position: int) -> tuple[list[Change], int]:
            return await self._worker.call(lambda db: _changes(db, wanted, position), writes=False)

        async for change in self._wakeups.follow(after_revision, read):
            yield change

    async def close(self) -> None:
        self._wakeups.close()
        await self._worker.close()

    def _write(self, db: sqlite3.Connection, key: str, value: bytes, expires: datetime | None) -> int:
        stamp = None if expires is None else _stamp(expires)
        revision = self._record(db, key, value, stamp)
        db.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", (key, value, revision, stamp))
        return revision

    def _remove(self, db: sqlite3.Connection, key: str) -> int:
        db.execute("DELETE FROM items WHERE key = ?", (key,))
        return self._record(db, key, None, None)

    def _record(self, db: sqlite3.Connection, key: str, value: bytes | None, stamp: int | None) -> int:
        row: tuple[int] = db.execute("UPDATE counter SET revision = revision + 1 RETURNING revision").fetchone()
        revision = row[0]
        db.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", (revision, key, value, stamp))
        db.execute("DELETE FROM changes WHERE revision <= ?", (revision - self._history,))
        return revision


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))  # SQLite would make it 0644
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_MS / 1000, cached_statements=32)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL would lose acknowledged commits at power loss
        db.execute("PRAGMA secure_delete = ON")  # spent tokens and old password hashes leave the file
        db.execute("BEGIN IMMEDIATE")
        _prepare(db, path)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables == 0 and application == 0:
        for statement in _SCHEMA:
            db.execute(statement)
    elif application != APPLICATION_ID:
        raise StorageError(f"{path} is not a store of monoport")
    elif version != SCHEMA_VERSION:
        raise StorageError(f"{path} has schema {version}, this version of monoport knows {SCHEMA_VERSION}")


def _stamp(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _item(row: Row) -> Item:
    key, value, revision, stamp = row
    return Item(key, value, revision, None if stamp is None else _EPOCH + stamp * _MICROSECOND)


def _alive(db: sqlite3.Connection, key: str, now: int) -> Item | None:
    row = db.execute(
        "SELECT key, value, revision, expires FROM items WHERE key = ? AND (expires IS NULL OR expires > ?)", (key, now)
    ).fetchone()
    return None if row is None else _item(row)


def _expect(item: Item | None, key: str, revision: int) -> None:
    if item is None or item.revision != revision:
        found = "is gone" if item is None else f"is at revision {item.revision}"
        raise ConflictError(f"{key} {found}, expected revision {revision}")


def _any_expired(db: sqlite3.Connection, now: int) -> bool:
    return db.execute("SELECT 1 FROM items WHERE expires <= ? LIMIT 1", (now,)).fetchone() is not None


def _revision(db: sqlite3.Connection) -> int:
    row: tuple[int] = db.execute("SELECT revision FROM counter").fetchone()
    return row[0]


def _changes(db: sqlite3.Connection, prefix: str, position: int) -> tuple[list[Change], int]:
    current = _revision(db)
    (oldest,) = db.execute("SELECT min(revision) FROM changes").fetchone()
    if not (current + 1 if oldest is None else oldest) - 1 <= position <= current:
        raise CompactedError(f"changes after revision {position} are not kept")
    rows = db.execute(
        "SELECT key, value, revision, expires FROM changes WHERE revision > ? ORDER BY revision LIMIT ?",
        (position, BATCH),
    ).fetchall()
    found = [
        Change(revision, key, None if value is None else _item((key, value, revision, stamp)))
        for key, value, revision, stamp in rows
        if covers(prefix, key)
    ]
    return found, rows[-1][2] if rows else position
