"""One shell into which lines are pasted, one after the other.

Belongs here: feeding it, and telling where the output of a line ends. Does not belong here: which lines (commands.py).
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from monoport.errors import Failure

READ = 65_536  # bytes at once
MAX_OUTPUT = 1 << 20  # bytes of one line: those of the demonstration write a few KiB


@dataclass(frozen=True, slots=True)
class Done:
    """What a line wrote, and its exit status: None if it did not end in time, or ended the shell."""

    status: int | None
    output: str


class Shell:
    """A bash that reads line by line, whose programs find an empty standard input; a context manager.

    A line fails where any part of a pipe does.

    Args:
        environment: what it begins with.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        script, self._script = os.pipe()
        self._output, output = os.pipe()
        try:
            self._bash = subprocess.Popen(
                ["bash", "--noprofile", "--norc", "-o", "pipefail", f"/dev/fd/{script}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(script,),
                env=environment,
                start_new_session=True,  # so that all that a line has started can be ended
            )
        except OSError as error:
            self._close()
            raise Failure(f"bash cannot be started: {error.strerror}") from error
        finally:
            os.close(script)
            os.close(output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it and whatever a line has left running."""
        try:
            os.killpg(self._bash.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, and all that it started
        self._bash.wait()
        self._close()

    def _close(self) -> None:
        os.close(self._script)
        os.close(self._output)

    def run(self, line: str, seconds: float) -> Done:
        """Run a line and return what became of it. After a status of None the shell takes no more lines."""
        mark = secrets.token_hex(16)
        try:
            os.write(self._script, f"{line}\nprintf '%s %s\\n' {mark} $?\n".encode())
        except BrokenPipeError:
            return Done(None, "the shell has ended")
        deadline = time.monotonic() + seconds
        seen = b""
        while len(seen) <= MAX_OUTPUT:
            output, found, status = seen.partition(mark.encode())
            if found and status.endswith(b"\n"):
                return Done(int(status), output.decode(errors="replace"))
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._output], [], [], left)[0]:
                return Done(None, f"no end within {seconds:g} s: {seen[-500:].decode(errors='replace')}")
            data = os.read(self._output, READ)
            if not data:
                return Done(None, f"it ended the shell: {seen[-500:].decode(errors='replace')}")
            seen += data
        return Done(None, f"more than {MAX_OUTPUT} bytes of output")
