"""A note at the terminal for what takes longer than a moment.

Belongs here: when to say something and where. What is said, the caller knows.
"""

import asyncio
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from monoport.net import eventloop

Result = TypeVar("Result")

PATIENCE = 1.0  # seconds after which people begin to wonder


@contextmanager
def noting(what: str) -> Iterator[None]:
    """Says `what` on stderr, if that is a terminal and the body takes over a second; needs a running loop."""
    if not sys.stderr.isatty():
        yield
        return
    timer = asyncio.get_running_loop().call_later(PATIENCE, _say, what)
    try:
        yield
    finally:
        timer.cancel()


def wait_noting(coroutine: Coroutine[Any, Any, Result], what: str) -> Result:
    """Runs a coroutine to its end under a note."""

    async def noted() -> Result:
        with noting(what):
            return await coroutine

    return eventloop.run(noted())


def _say(what: str) -> None:
    sys.stderr.write(f"{what} ...\n")
    sys.stderr.flush()
