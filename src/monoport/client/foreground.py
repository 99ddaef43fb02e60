"""The terminal's foreground: another program on it while we carry its connections, or waiting to be stopped.

Belongs here: starting a program, signals, its exit status. Does not belong here: which program and why.
"""

import asyncio
import signal
from collections.abc import Mapping, Sequence


async def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a program in the foreground, on our own terminal, and returns its exit status, 128 + n for signal n.

    Signals of the terminal reach it by themselves; a SIGTERM or SIGHUP for us is passed on.
    """
    loop = asyncio.get_running_loop()
    process = await asyncio.create_subprocess_exec(*command, env=dict(environment))

    def pass_on(number: int) -> None:
        if process.returncode is None:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, lambda: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, pass_on, number)
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
    return status if status >= 0 else 128 - status


async def until_stopped() -> None:
    """Returns at SIGINT, SIGTERM or SIGHUP."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
