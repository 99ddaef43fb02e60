"""A control group (version 2) for each child, out of which the login user's processes cannot step by setsid.

Belongs here: making, killing and removing such groups below the agent's own. Not here: when (`process`).
Source: Linux kernel, Documentation/admin-guide/cgroup-v2.rst (cgroup.kill: Linux 5.14 and later).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_PREFIX = "monoport"


class Group:
    """One group and everything that its first process ever starts, whatever sessions they make."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def kill(self) -> None:
        """Kill every process in it, in one step that none of them can outrun; raises OSError."""
        (self._path / "cgroup.kill").write_text("1")

    def remove(self) -> None:
        """Remove it if nothing runs in it any more; what a user has left running keeps it."""
        with suppress(OSError):  # busy: `enclose` tries again
            self._path.rmdir()


def enclose(pid: int) -> Group:
    """Put a process, which must not have started anything yet, into a group of its own.

    Raises:
        OSError: no cgroup v2 here, not ours to write, or a kernel without cgroup.kill.
    """
    if os.geteuid() != 0:
        raise PermissionError("a login that owns its group could leave it: only root makes them")
    above = _own()
    _sweep(above)
    group = Group(above / f"{_PREFIX}-{os.getpid()}-{pid}")
    group._path.mkdir()
    try:
        if not (group._path / "cgroup.kill").exists():
            raise OSError(f"{group._path} has no cgroup.kill: it came with Linux 5.14")
        (group._path / "cgroup.procs").write_text(str(pid))
    except OSError:
        group.remove()
        raise
    return group


def _own() -> Path:
    """The folder of the agent's own group; raises OSError if there is none (proc(5): cgroup, mountinfo)."""
    lines = Path("/proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines()
    name = next((line[3:] for line in lines if line.startswith("0::")), None)
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, behind = line.partition(" - ")
        if name is not None and behind.startswith("cgroup2 "):
            root, mount = before.split()[3:5]
            below = name.removeprefix(root.rstrip("/"))
            return Path(mount + below.rstrip("/"))
    raise OSError("no cgroup v2 is mounted")


def _sweep(above: Path) -> None:
    """Remove what has become empty of this agent's groups, and of those whose agent is gone."""
    for path in above.glob(f"{_PREFIX}-*-*"):
        agent = path.name.split("-")[1]
        if agent == str(os.getpid()) or not Path("/proc", agent).exists():
            Group(path).remove()
