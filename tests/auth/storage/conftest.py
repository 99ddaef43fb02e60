"""Every backend, opened for one test, with a clock that only the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monoport.auth.storage.interface import HISTORY, Storage
from monoport.auth.storage.memory import MemoryStorage
from monoport.auth.storage.sqlite import SqliteStorage


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def later(self, seconds: float) -> datetime:
        return self.now + timedelta(seconds=seconds)

    def advance(self, seconds: float) -> None:
        self.now = self.later(seconds)


Open = Callable[..., Awaitable[Storage]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
async def open_store(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[Open]:
    """`await open_store(history=…)` -> a store, closed after the test."""
    opened: list[Storage] = []

    async def open_one(history: int = HISTORY) -> Storage:
        if request.param == "memory":
            opened.append(MemoryStorage(clock, history))
        else:
            opened.append(await SqliteStorage.open(tmp_path / f"{len(opened)}.db", clock, history))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: Open) -> Storage:
    return await open_store()
