"""Events with a clock and chance that only the test moves."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from monoport.audit.events import EventIds


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ids(clock: Clock) -> EventIds:
    return EventIds(clock, random.Random(1).getrandbits)
