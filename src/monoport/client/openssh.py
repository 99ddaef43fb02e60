"""`tsh ssh` and `tsh scp`: the system's OpenSSH, carried by connections that we make.

Belongs here: starting the program and handing it its connections; terminal, window changes, signals, forwarding and the
exit status are OpenSSH's own. Does not belong here: the way to the node (ssh.py), configuration files (sshconfig.py).

The node is dialled before the program starts, so that a node that cannot be reached is one clear line and not three.
"""

import asyncio
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from monoport.client import fdpass
from monoport.client.busy import Busy, quiet
from monoport.client.foreground import run
from monoport.client.front import Front
from monoport.client.profile import Home, UserFiles
from monoport.client.ssh import Target, open_node, proxy_link
from monoport.client.sshconfig import identity_options
from monoport.errors import Failure
from monoport.net.relay import relay
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.tunnel.link import ClientLink

HELLO = 512  # bytes of the line with host and port that fdpass.py sends: a name has at most 255
HELLO_TIMEOUT = 10.0  # seconds for that line; fdpass.py sends it at once
INSTALL = "apt-get install openssh-client"


@dataclass(slots=True)
class Dialer:
    """Gives each connection of an ssh program its own channel over one link; `ready` are dialled ahead, by host."""

    link: ClientLink
    login: str
    report: Callable[[str], None]
    ready: dict[str, list[Stream]] = field(default_factory=dict)
    serving: int = 0  # connections of the program that have not ended
    over: asyncio.Event = field(default_factory=asyncio.Event)  # set while there are none

    async def prepare(self, host: str) -> None:
        """Dials a node; raises Failure if it cannot be reached."""
        node = await open_node(self.link, Target.parse(host, self.login))
        self.ready.setdefault(host, []).append(node)

    async def serve(self, local: SocketStream) -> None:
        """One connection of the program, from the line that names its node to its end."""
        self.serving += 1
        self.over.clear()
        try:
            async with local:
                async with asyncio.timeout(HELLO_TIMEOUT):
                    host, port = (await _line(local)).split(" ")
                ahead = self.ready.get(host)
                node = ahead.pop() if ahead else await open_node(self.link, Target.parse(f"{host}:{port}", self.login))
                async with node:
                    await relay(local, node)
        except Failure as error:
            self.report(str(error))
        except (ConnectionError, TimeoutError, ValueError):
            return  # the program is gone, or somebody of our own user knocked: nobody is there to be told
        finally:
            self.serving -= 1
            if not self.serving:
                self.over.set()


async def _line(stream: Stream) -> str:
    seen = b""
    while not seen.endswith(b"\n"):
        if len(seen) > HELLO:
            raise ValueError("not a line of fdpass.py")
        more = await stream.read(1)
        if not more:
            raise ConnectionResetError("ended before its line")
        seen += more
    return seen.decode().strip()


async def open_ssh(
    home: Home,
    front: Front,
    program: str,
    hosts: Sequence[str],
    *,
    login: str,
    arguments: Sequence[str],
    report: Callable[[str], None],
    busy: Busy = quiet,
    environment: Mapping[str, str] = os.environ,
    background: Callable[[], None] | None = None,
) -> int:
    """Runs `ssh`, `scp` or `sftp` with the cluster's nodes within its reach, and returns its exit status.

    Args:
        home: where the login is.
        front: the way to the proxy.
        program: "ssh", "scp" or "sftp".
        hosts: the nodes that it will connect to, as it will name them; they are dialled first.
        login: the login on them, for the proxy's own check.
        arguments: the program's words behind our options.
        report: called with one line for each node that cannot be reached.
        busy: announces the way to the nodes.
        environment: of the program.
        background: the program goes to the background by itself (`ssh -f`): called when it has done so, and its
            connections are then carried to their end.

    Raises:
        Failure: the program is not installed, or a node cannot be reached.
    """
    path = shutil.which(program, path=environment.get("PATH"))
    if path is None:
        raise Failure(f"{program} is not installed: {INSTALL}")
    paths = home.keys(front.profile)
    with tempfile.TemporaryDirectory(prefix="tsh-ssh-") as folder:
        socket_path = Path(folder) / "dial"
        async with AsyncExitStack() as stack:
            with busy(f"connecting to {', '.join(dict.fromkeys(hosts))} through {front.profile.proxy}"):
                link = await stack.enter_async_context(proxy_link(front, paths, login))
                dialer = Dialer(link, login, report)
                for host in dict.fromkeys(hosts):
                    await dialer.prepare(host)
            command = [path, *_options(paths, socket_path), *arguments]
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(_accept(socket_path, dialer))
                status = await run(command, environment)
                if background is not None and status == 0:
                    background()
                    await dialer.over.wait()
                serving.cancel()
    return status


async def _accept(path: Path, dialer: Dialer) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listening:
        listening.setblocking(False)
        listening.bind(str(path))
        listening.listen(8)
        async with asyncio.TaskGroup() as group:
            while True:
                accepted, _ = await loop.sock_accept(listening)
                group.create_task(dialer.serve(SocketStream(accepted)))


def _options(paths: UserFiles, socket_path: Path) -> list[str]:
    helper = [sys.executable, "-I", "-S", str(Path(fdpass.__file__).resolve()), str(socket_path)]
    command = shlex.join(helper).replace("%", "%%") + " %h %p"
    # A master that outlives this command would keep a connection that ends with it.
    options = {"ProxyCommand": command, "ProxyUseFdpass": "yes", "ControlPath": "none", **identity_options(paths)}
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
