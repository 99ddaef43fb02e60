"""The terminal's foreground: another program on it while we carry its connections, or waiting to be stopped.

Belongs here: starting a program, signals, its exit status. Does not belong here: which program and why.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # the terminal sends these to every process in its foreground itself
ENDING = (signal.SIGTERM, signal.SIGHUP)


async def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a program in the foreground, on our own terminal, and returns its exit status, 128 + n for signal n.

    Signals of the terminal reach it by themselves; a SIGTERM or SIGHUP for us is passed on.
    """
    process: asyncio.subprocess.Process | None = None
    early: list[signal.Signals] = []

    def pass_on(number: signal.Signals) -> None:
        if process is None:
            early.append(number)
        elif process.returncode is None:
            process.send_signal(number)

    with _handling(TERMINAL, lambda _: None), _handling(ENDING, pass_on):
        process = await asyncio.create_subprocess_exec(*command, env=dict(environment))
        for number in early:
            process.send_signal(number)
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            raise
    return status if status >= 0 else 128 - status


async def until_stopped() -> None:
    """Returns at SIGINT, SIGTERM or SIGHUP."""
    stopped = asyncio.Event()
    with _handling((signal.SIGINT, *ENDING), lambda _: stopped.set()):
        await stopped.wait()


@contextmanager
def _handling(numbers: Sequence[signal.Signals], act: Callable[[signal.Signals], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, act, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
