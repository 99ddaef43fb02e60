"""A note at the terminal for what takes longer than a moment.

Belongs here: when to say something and where. What is said, the command knows.
"""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

PATIENCE = 1.0  # seconds after which people begin to wonder


def wait_noting(coroutine: Coroutine[Any, Any, Result], note: str) -> Result:
    """Runs a coroutine to its end; says `note` on stderr, at a terminal, if that takes over a second."""

    async def noted() -> Result:
        if not sys.stderr.isatty():
            return await coroutine
        timer = asyncio.get_running_loop().call_later(PATIENCE, _say, note)
        try:
            return await coroutine
        finally:
            timer.cancel()

    return asyncio.run(noted())


def _say(note: str) -> None:
    sys.stderr.write(f"{note} ...\n")
    sys.stderr.flush()
