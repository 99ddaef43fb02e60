"""Starting, watching and ending the children that run as the login user.

Belongs here: the agent's side of `child`. Not here: SSH.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import structlog

from monoport.agents.node import cgroup, child

ROUNDS = 4  # of SIGKILL: a look at /proc takes a millisecond or two, and a new group may be made meanwhile
GRACE = 2.0  # seconds between SIGHUP and SIGKILL when a session must end, well inside the 5 s that it has


_log = structlog.get_logger()


class Child:
    """One running child, leader of its own session and, where the system has them, alone in its own control group.

    Args: the order it carries out and the descriptors that become its 0, 1 and 2, which stay the caller's to close.
    Raises OSError where nothing can be started, ValueError where the order cannot be written down.
    """

    def __init__(self, order: child.Order, stdin: int, stdout: int, stderr: int) -> None:
        instructions = order.encode()
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[os.waitid_result] = self._loop.create_future()
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                child.launch(reading),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(reading,),
                start_new_session=True,
                cwd="/",
                env={},
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        try:
            self._handle = os.pidfd_open(self.pid)
        except BaseException:
            self._process.kill()
            self._process.wait()
            os.close(writing)
            raise
        self._group = _enclose(self.pid)  # before it reads its order: nothing of the user's runs outside
        self._instruct(writing, instructions)
        self._loop.add_reader(self._handle, self._ended)

    @property
    def pid(self) -> int:
        """The child's process, group and session."""
        return self._process.pid

    def _instruct(self, descriptor: int, data: bytes) -> None:
        """Write the order; one that is larger than a pipe goes on as the child reads."""
        os.set_blocking(descriptor, False)
        left = memoryview(data)

        def go_on() -> None:
            nonlocal left
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:
                return
            except BrokenPipeError:  # it is gone already; its exit status says why
                left = left[:0]
            if not left:
                self._loop.remove_writer(descriptor)
                os.close(descriptor)

        self._loop.add_writer(descriptor, go_on)
        go_on()

    def _ended(self) -> None:
        self._loop.remove_reader(self._handle)
        # WNOWAIT: the dead child keeps its number until `reap`, so that signals to its group cannot reach a stranger
        found = os.waitid(os.P_PIDFD, self._handle, os.WEXITED | os.WNOWAIT)
        if not self.exited.done() and found is not None:
            self.exited.set_result(found)

    def signal_group(self, number: int, group: int | None = None) -> None:
        """Signal one process group of the child's, by default its first."""
        try:
            os.killpg(group or self.pid, number)
        except ProcessLookupError:
            pass

    async def gone(self) -> None:
        """Wait for the child's end, for GRACE seconds at most."""
        await asyncio.wait((self.exited,), timeout=GRACE)

    async def hang_up(self) -> None:
        """Tell everything in the child's session that its terminal is gone, and give it GRACE seconds to end."""
        self.signal_all(signal.SIGHUP)
        await self.gone()

    async def end(self) -> None:
        """End everything that the child has started: SIGHUP, then SIGKILL after GRACE seconds.

        What has left the child's session is reached only where it has a control group.
        """
        await self.hang_up()
        if self._group is not None:
            try:
                self._group.kill()
            except OSError as error:
                _log.error("control group not killed", error=str(error))
        for _ in range(ROUNDS):
            self.signal_all(signal.SIGKILL)
            await asyncio.sleep(0)
        await self.gone()

    def signal_all(self, number: int) -> None:
        """Signal every process group of the child's session.

        By groups, not one by one: for the kernel that is one step, which a process that forks and exits cannot outrun.
        """
        for group in {self.pid, *_groups(self.pid)}:
            self.signal_group(number, group)

    def forget(self) -> None:
        """Hang up what is left of the first group, and let the child go."""
        self.signal_group(signal.SIGHUP)
        self.let_go()

    def let_go(self) -> None:
        """Reap the child as soon as it has ended."""
        if self.exited.done():
            self._reap()
        else:
            self.exited.add_done_callback(lambda _ended: self._reap())

    def _reap(self) -> None:
        os.waitpid(self.pid, 0)
        self._process.returncode = 0  # subprocess must not wait for the number again
        os.close(self._handle)
        if self._group is not None:
            self._group.remove()


def _enclose(pid: int) -> cgroup.Group | None:
    try:
        return cgroup.enclose(pid)
    except OSError as error:
        _without(str(error))
        return None


@cache  # said once for each reason
def _without(reason: str) -> None:
    _log.warning("sessions have no control group: a lock does not reach what calls setsid", reason=reason)


def _groups(session: int) -> Iterator[int]:
    """The group of every process of a session that still runs (proc(5): stat, behind the last parenthesis)."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields and int(fields[3]) == session and fields[0] not in b"ZX":
            yield int(fields[2])
