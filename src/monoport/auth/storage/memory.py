"""The store in memory, for tests and demonstrations; nothing survives it.

Belongs here: this backend alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator
from datetime import datetime
from typing import final

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


@final
class MemoryStorage(Storage):
    """A dictionary with revisions.

    Args:
        clock: UTC; decides what has expired.
        history: changes kept for watchers.
    """

    def __init__(self, clock: Clock = utc_now, history: int = HISTORY) -> None:
        self._clock = clock
        self._history = history
        self._items: dict[str, Item] = {}
        self._changes: list[Change] = []
        self._revision = 0
        self._wakeups = Wakeups()

    async def get(self, key: str) -> Item | None:
        self._open()
        return self._alive(check_key(key))

    async def put(self, key: str, value: bytes, expires: datetime | None = None) -> int:
        self._open()
        return self._write(check_key(key), value, expires)

    async def create(self, key: str, value: bytes, expires: datetime | None = None) -> int:
        self._open()
        if self._alive(check_key(key)) is not None:
            raise AlreadyExistsError(f"{key} exists already")
        return self._write(key, value, expires)

    async def compare_and_swap(self, key: str, value: bytes, revision: int, expires: datetime | None = None) -> int:
        self._open()
        self._expect(self._alive(check_key(key)), key, revision)
        return self._write(key, value, expires)

    async def delete(self, key: str, revision: int | None = None) -> int:
        self._open()
        item = self._alive(check_key(key))
        if revision is not None:
            self._expect(item, key, revision)
        elif item is None:
            raise NotFoundError(f"{key} does not exist")
        return self._remove(key)

    async def snapshot(self, prefix: str) -> Snapshot:
        self._open()
        wanted = check_prefix(prefix)
        keys = sorted(key for key in self._items if covers(wanted, key))  # code points sort as their UTF-8 does
        return Snapshot(self._revision, tuple(item for key in keys if (item := self._alive(key)) is not None))

    async def sweep(self) -> int:
        self._open()
        expired = [key for key in self._items if self._alive(key) is None]
        for key in expired:
            self._remove(key)
        return len(expired)

    async def watch(self, prefix: str, after_revision: int) -> AsyncIterator[Change]:
        wanted = check_prefix(prefix)

        async def read(position: int) -> tuple[list[Change], int]:
            oldest = self._changes[0].revision if self._changes else self._revision + 1
            if not oldest - 1 <= position <= self._revision:
                raise CompactedError(f"changes after revision {position} are not kept")
            begin = bisect_right(self._changes, position, key=lambda change: change.revision)
            batch = self._changes[begin : begin + BATCH]
            reached = batch[-1].revision if batch else position
            return [change for change in batch if covers(wanted, change.key)], reached

        async for change in self._wakeups.follow(after_revision, read):
            yield change

    async def close(self) -> None:
        self._wakeups.close()

    def _open(self) -> None:
        if self._wakeups.closed:
            raise StorageError("the store is closed")

    def _alive(self, key: str) -> Item | None:
        item = self._items.get(key)
        return item if item is not None and (item.expires is None or self._clock() < item.expires) else None

    def _expect(self, item: Item | None, key: str, revision: int) -> None:
        if item is None or item.revision != revision:
            found = "is gone" if item is None else f"is at revision {item.revision}"
            raise ConflictError(f"{key} {found}, expected revision {revision}")

    def _write(self, key: str, value: bytes, expires: datetime | None) -> int:
        check_value(value, expires)
        item = Item(key, bytes(value), self._revision + 1, expires)
        self._items[key] = item
        return self._record(key, item)

    def _remove(self, key: str) -> int:
        del self._items[key]
        return self._record(key, None)

    def _record(self, key: str, item: Item | None) -> int:
        self._revision += 1
        self._changes.append(Change(self._revision, key, item))
        del self._changes[: -self._history]
        self._wakeups.wake()
        return self._revision
