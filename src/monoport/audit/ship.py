"""Sending spooled events on until another process keeps them.

Belongs here: order, retry and acknowledgement. Does not: how they travel; the caller brings that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from monoport.audit.spool import Spool
from monoport.errors import Failure

_log = structlog.get_logger()

FIRST_DELAY: Final = 0.5  # seconds
LAST_DELAY: Final = 30.0  # seconds: events may be late, never lost
BATCH: Final = 256  # events sent at once
GATHER: Final = 0.2  # seconds after a batch with room left: a request costs both ends as much as a hundred events


async def ship(
    spool: Spool,
    send: Callable[[Sequence[bytes]], Awaitable[object]],
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    rand: Callable[[], float] = random.random,
    gather: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Send what the spool holds, in order, until cancelled; the receiver may see an event twice and goes by its id.

    Args:
        spool: where events wait.
        send: takes events as their JSON and returns once the receiver keeps them; raises Failure or OSError if it may
            not have them.
        sleep, rand: pausing and jitter, so that tests need neither time nor luck.
        gather: pausing behind what was sent: busy times make few requests, an event of a quiet time goes at once.
    """
    failures = 0
    while True:
        try:
            await spool.wait_unshipped()
            batch = await spool.unshipped(BATCH)
            if batch.payloads:
                await send(batch.payloads)
            await spool.shipped(batch)  # a full disk may refuse even that: the same events are then sent again
        except (Failure, OSError) as error:
            failures += 1
            pause = min(LAST_DELAY, FIRST_DELAY * 2 ** min(failures, 16)) * (0.5 + rand() / 2)
            _log.warning("events not shipped", error=str(error), again_in=round(pause, 2))
            await sleep(pause)
            continue
        failures = 0
        if 0 < len(batch.payloads) < BATCH:
            await gather(GATHER)
