"""The program that becomes the login user: it drops its rights, then is a shell, a command, an SFTP server, a dialler.

Belongs here: what happens between the fork and the user's program. Not here: deciding whether it may (`server`),
starting and reaping it (`process`). It runs as `python -I -S` with the package's folder as an argument and imports as
little as it can, so that a session starts in milliseconds, and everything before it drops the right to read it.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Never

UMASK = 0o022
MAX_ORDER = 1_048_576  # bytes: a command may be as long as execve(2) allows, environment variables are filtered before
FAILED = 254  # exit status where the program could not be started, as sshd's
TTY_MODE = 0o620  # what login(1) gives a terminal: its group may write to it


class Order:
    """What the agent tells its child.

    `task` is "run", "sftp" or "sockets"; `command` None means a login shell; `uid` and `gid` are the login user's.
    """

    __slots__ = ("command", "environment", "gid", "home", "login", "shell", "task", "tty", "uid")

    def __init__(  # noqa: PLR0917  (a value; a dataclass would cost the child a third of its start)
        self,
        task: str,
        login: str,
        uid: int,
        gid: int,
        home: str,
        shell: str,
        tty: bool,
        command: str | None,
        environment: Mapping[str, str],
    ) -> None:
        self.task, self.login, self.uid, self.gid, self.home, self.shell = task, login, uid, gid, home, shell
        self.tty, self.command, self.environment = tty, command, environment

    def encode(self) -> bytes:
        """Return its fields, each ended by a NUL, which none of them can hold; raises ValueError if one does."""
        fields = [self.task, self.login, str(self.uid), str(self.gid), self.home, self.shell]
        fields += ["1" if self.tty else "", "" if self.command is None else f"={self.command}"]
        fields += [f"{name}={value}" for name, value in self.environment.items()]
        if any("\0" in field for field in fields):
            raise ValueError("a command or an environment variable holds a NUL")
        return b"".join(os.fsencode(field) + b"\0" for field in fields)

    @staticmethod
    def decode(data: bytes) -> Order:
        """Return what `encode` wrote."""
        task, login, uid, gid, home, shell, tty, command, *pairs = os.fsdecode(data).split("\0")[:-1]
        environment = dict(pair.split("=", 1) for pair in pairs)
        said = command[1:] if command else None
        return Order(task, login, int(uid), int(gid), home, shell, bool(tty), said, environment)


def main(arguments: list[str]) -> None:
    """Carry out the order on descriptor `arguments[0]`."""
    order = _read(int(arguments[0]))
    task = _task(order)
    if order.tty:
        _take_terminal(order)
    become(order)
    os.environ.clear()
    os.environ.update(order.environment)
    try:
        task()
    except (OSError, ValueError) as error:
        _fail(f"{order.task}: {error}")


def _task(order: Order) -> Callable[[], object]:
    """Return what the order asks for, with all that it imports."""
    if order.task == "sftp":
        from monoport.agents.node import files  # noqa: PLC0415  (only this task pays for it)

        return lambda: files.serve(0, 1)
    if order.task == "sockets":
        from monoport.agents.node import sockets  # noqa: PLC0415

        return lambda: sockets.serve(0)
    return lambda: _run(order)


def become(order: Order) -> None:
    """Drop every right that the login user does not have; raises where that cannot be done for certain."""
    if os.geteuid() == 0:
        os.initgroups(order.login, order.gid)
        os.setresgid(order.gid, order.gid, order.gid)
        os.setresuid(order.uid, order.uid, order.uid)
        if os.getresgid() != (order.gid,) * 3:
            raise PermissionError(f"cannot take the group of {order.login}")
    if os.getresuid() != (order.uid,) * 3:
        raise PermissionError(f"cannot become {order.login}")
    os.umask(UMASK)
    try:
        os.chdir(order.home)
    except OSError as error:
        os.chdir("/")
        if order.task == "run":
            os.write(2, f"Could not chdir to home directory {order.home}: {error.strerror}\n".encode())


def _read(descriptor: int) -> Order:
    data = b""
    while chunk := os.read(descriptor, 65_536):
        data += chunk
        if len(data) > MAX_ORDER:
            _fail(f"order of more than {MAX_ORDER} bytes")
    os.close(descriptor)
    return Order.decode(data)


def _take_terminal(order: Order) -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if os.geteuid() == 0:
        os.fchown(0, order.uid, -1)
        os.fchmod(0, TTY_MODE)


def _run(order: Order) -> Never:
    # Python ignores some signals, and the agent's limit of descriptors is a server's: the user's program gets neither
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    name = os.path.basename(order.shell)
    arguments = [f"-{name}"] if order.command is None else [name, "-c", order.command]
    try:
        os.execve(order.shell, arguments, order.environment)  # noqa: S606  (it is the user's shell)
    except OSError as error:
        _fail(f"{order.shell}: {error.strerror}")


def _fail(text: str) -> Never:
    os.write(2, f"{text}\n".encode())
    os._exit(FAILED)


def launch(descriptor: int) -> list[str]:
    """Return the command line that runs this module, reading its order from `descriptor`."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    code = "import sys; sys.path.append(sys.argv[1]); from monoport.agents.node.child import main; main(sys.argv[2:])"
    return [sys.executable, "-I", "-S", "-c", code, here, str(descriptor)]
