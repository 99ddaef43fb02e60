"""The key-value interface that every backend implements, and what its words mean.

Belongs here: values, errors and the rules for keys. Does not: any backend, any meaning of a key.

Every change gets the next revision of one counter, so a revision orders all changes of a store. A write has
happened, durably, when its call returns. A key past its expiry is gone for every call at once; watchers hear of it
when `sweep` has run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from monoport.errors import Failure

MAX_KEY: Final = 1024  # bytes of UTF-8; names are at most 255 characters, keys have a few parts
MAX_VALUE: Final = 1024 * 1024  # bytes; the largest document is a role of some hundred KiB
HISTORY: Final = 8192  # changes kept for watchers that fall behind; older watchers must begin with a snapshot again
BATCH: Final = 256  # changes read for a watcher at once: all it ever holds in memory

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the system clock's time, UTC."""
    return datetime.now(UTC)


class StorageError(Failure):
    """The store cannot do it: its file is broken, full, or written by a newer version."""


class AlreadyExistsError(StorageError):
    """`create` found the key."""


class ConflictError(StorageError):
    """The key has another revision than the caller saw, or is gone."""


class NotFoundError(StorageError):
    """`delete` did not find the key."""


class CompactedError(StorageError):
    """The history that a watch asks for is not kept: take a snapshot and watch from its revision."""


@dataclass(frozen=True, slots=True)
class Item:
    """One stored value.

    Args:
        key: begins with "/".
        value: at most `MAX_VALUE` bytes.
        revision: of the write that made it.
        expires: UTC instant, or None.
    """

    key: str
    value: bytes
    revision: int
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One change, in the order of revisions; `item` is None when the key was deleted or expired."""

    revision: int
    key: str
    item: Item | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Items in byte order of their keys, as of a revision from which a watch goes on without a gap."""

    revision: int
    items: tuple[Item, ...]


class Storage(ABC):
    """One store; its calls may be made by many tasks at once, on one loop.

    Every call raises ValueError for keys and values out of bounds and StorageError when the store itself fails.
    """

    @abstractmethod
    async def get(self, key: str) -> Item | None:
        """Return the item under `key`, or None."""

    @abstractmethod
    async def put(self, key: str, value: bytes, expires: datetime | None = None) -> int:
        """Write unconditionally and return the new revision."""

    @abstractmethod
    async def create(self, key: str, value: bytes, expires: datetime | None = None) -> int:
        """Write only if the key is not there; return the new revision. Raises AlreadyExistsError."""

    @abstractmethod
    async def compare_and_swap(self, key: str, value: bytes, revision: int, expires: datetime | None = None) -> int:
        """Write only if the key is at `revision`; return the new revision. Raises ConflictError."""

    @abstractmethod
    async def delete(self, key: str, revision: int | None = None) -> int:
        """Remove the key, if `revision` is given only at that revision; return the revision of the removal.

        Raises NotFoundError if it is not there, ConflictError if it has another revision.
        """

    @abstractmethod
    async def snapshot(self, prefix: str) -> Snapshot:
        """Return `prefix` and everything under it: "/a" covers "/a" and "/a/b", never "/ab"; "/" covers all."""

    async def range(self, prefix: str) -> list[Item]:
        """Return the items of `snapshot(prefix)`."""
        return list((await self.snapshot(prefix)).items)

    @abstractmethod
    async def sweep(self) -> int:
        """Remove what has expired, so that watchers hear of it; return how many. To be called about once a second."""

    @abstractmethod
    def watch(self, prefix: str, after_revision: int) -> AsyncIterator[Change]:
        """Yield every change under `prefix` after `after_revision`, in order, once each, and wait for more.

        A slow reader costs nothing but history. Raises CompactedError when that is gone; ends when the store closes.
        """

    @abstractmethod
    async def close(self) -> None:
        """End all watches and free what the store holds; it may be called again."""


def check_key(key: str) -> str:
    """Return `key` if it is one: "/", then parts without control characters, none empty.

    Raises:
        ValueError: otherwise.
    """
    parts = key.split("/")
    if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY:
        raise ValueError(f"key is longer than {MAX_KEY} bytes")
    if parts[0] or len(parts) < 2 or not all(parts[1:]) or not key.isprintable():
        raise ValueError(f"not a key: {key!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Return the key that `prefix` names, without its last slash: "" for "/".

    Raises:
        ValueError: if it is not one.
    """
    trimmed = prefix.removesuffix("/")
    if trimmed:
        check_key(trimmed)
    elif not prefix:
        raise ValueError("a prefix begins with /")
    return trimmed


def check_value(value: bytes, expires: datetime | None) -> None:
    """Refuse what no backend may store.

    Raises:
        ValueError: for too long a value or an expiry without a time zone.
    """
    if len(value) > MAX_VALUE:
        raise ValueError(f"value takes {len(value)} bytes, limit {MAX_VALUE}")
    if expires is not None and expires.tzinfo is None:
        raise ValueError("expires has no time zone")


def covers(prefix: str, key: str) -> bool:
    """Tell whether `key` is `prefix`, as `check_prefix` returns it, or under it."""
    return key == prefix or key.startswith(prefix + "/")
