"""The processes of the demonstration: the front door, an agent that joined with a token, real databases, an ssh-agent.

Belongs here: their configurations, start, health and end. Does not belong here: what the user is shown.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from monoport.daemon.demo.databases import MARIADB, Files, Kind, Server, installed
from monoport.errors import Failure

NAME = "demo.localhost"
USER = "demo"
READY = "monoport is ready"
START_SECONDS = 60.0  # a busy machine of two cores needs about two
STOP_SECONDS = 10.0  # sessions get five of them to end
SIGN_OUT_SECONDS = 30.0  # an ssh-agent that does not answer is given five of them
SILENCE = "2s"  # a busy machine's own clients have always spoken by then

FRONT = """\
version: v3
teleport:
  nodename: front
  data_dir: {root}/front
  log: {{format: json}}
auth_service:
  enabled: yes
  cluster_name: {name}
proxy_service:
  enabled: yes
  web_listen_addr: 127.0.0.1:{port}
  public_addr: ["localhost:{port}"]
"""
AGENT = """\
version: v3
teleport:
  nodename: node
  data_dir: {root}/agent
  proxy_server: localhost:{port}
  ca_pin: {pin}
  join_params: {{method: token, token_name: {token}}}
ssh_service:
  enabled: yes
  labels: {{env: demo}}
"""
GREETING = """\
  mysql_on_silence: {silence}
"""
DATABASES = """\
db_service:
  enabled: yes
  databases:
"""
DATABASE = """\
    - {{name: {name}, protocol: {protocol}, uri: "localhost:{port}", static_labels: {{env: demo}}}}
"""


@dataclass(slots=True)
class Process:
    """One `monoport start` and its log."""

    name: str
    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None


class Cluster:
    """Everything the demonstration runs. `steps` starts it piece by piece; `stop` ends whatever was started.

    Args: its folder, the one port, whether the folder goes at the end, which databases (None: what is installed).
    """

    def __init__(self, root: Path, port: int, *, temporary: bool, kinds: tuple[Kind, ...] | None = None) -> None:
        self.root, self.port, self.temporary = root, port, temporary
        self.login = getpass.getuser()
        self.password = secrets.token_urlsafe(9)
        self.pin = ""
        self.kinds = installed() if kinds is None else kinds
        self.home = root / "tsh"
        self.agent_socket = root / "ssh-agent.sock"
        self.servers: dict[str, Server] = {}
        self._ssh_agent: subprocess.Popen[bytes] | None = None
        self.processes: list[Process] = []
        self.front = root / "front.yaml"
        self._tools = Path(sys.executable).parent

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """What is started, in order, and the function that starts it and returns a note."""
        yield "auth service and proxy", self._start_front
        yield f"user {USER}, role access", self._add_user
        for kind in self.kinds:
            yield kind.title, partial(self._start_database, kind)
        yield "agent, joined with a token", self._start_agent
        if self.has_ssh_agent:
            yield "ssh-agent of its own", self._start_ssh_agent

    def tool(self, name: str) -> str:
        """The path of one of our commands."""
        return str(self._tools / name)

    @property
    def tools(self) -> Path:
        """The folder of our commands."""
        return self._tools

    @property
    def has_ssh_agent(self) -> bool:
        """Whether the lines to paste may name an ssh-agent of the demonstration's."""
        return shutil.which("ssh-agent") is not None

    def ended(self) -> Process | None:
        """A process that should run and does not."""
        return next((one for one in self.processes if one.process and one.process.poll() is not None), None)

    def sign_out(self) -> str:
        """Undo every login of the lines to paste: known_hosts, and the caller's ssh-agent; what could not be undone."""
        if not self.home.exists():
            return ""
        try:
            done = subprocess.run(
                [self.tool("tsh"), "logout", "--all"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SIGN_OUT_SECONDS,
                env={**os.environ, "TSH_HOME": str(self.home)},
                start_new_session=True,  # a second Ctrl-C is not for it
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"tsh logout did not end within {SIGN_OUT_SECONDS:g} s"
        return done.stderr.strip()

    def stop(self) -> None:
        """End everything that was started, the last first."""
        if self._ssh_agent is not None:
            self._ssh_agent.terminate()
            self._ssh_agent.wait()
        for one in reversed(self.processes):
            if one.process is not None and one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
                try:
                    one.process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    one.process.kill()
                    one.process.wait()
        for server in reversed(self.servers.values()):
            server.stop()

    def tctl(self, *words: str, stdin: str = "") -> str:
        """Run tctl beside the auth service; its output. Raises Failure with its own words."""
        done = subprocess.run(
            [self.tool("tctl"), "-c", str(self.front), *words], input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Failure(done.stderr.strip() or f"tctl {words[0]} failed")
        return done.stdout

    def _start_front(self) -> str:
        greeting = GREETING.format(silence=SILENCE) if MARIADB in self.kinds else ""
        self.front.write_text(FRONT.format(root=self.root, name=NAME, port=self.port) + greeting)
        self._start("front", self.front)
        return f"127.0.0.1:{self.port}"

    def _add_user(self) -> str:
        known = {row["name"] for row in json.loads(self.tctl("users", "ls", "--format=json"))}
        if USER in known:
            self.tctl("users", "rm", USER)
        words = ["--roles=access,auditor", f"--logins={self.login}", f"--db-users={USER}", f"--db-names={USER}"]
        self.tctl("users", "add", USER, *words, "--password-stdin", stdin=self.password + "\n")
        return f"may log in as {self.login} on nodes, as {USER} on databases"

    def _start_database(self, kind: Kind) -> str:
        prefix = self.root / f"{kind.name}-server"
        self.tctl("auth", "sign", "--format=db", "--host=localhost,127.0.0.1", f"--out={prefix}")
        texts = [Path(f"{prefix}.{end}").read_text() for end in ("crt", "key", "cas")]
        port = _free_port()
        keep = partial(self.servers.__setitem__, kind.name)
        version = kind.start(Files(self.root / kind.name, *texts), port, NAME, USER, keep)
        return f"{version} on 127.0.0.1:{port}, takes certificates only"

    def _start_agent(self) -> str:
        token = json.loads(self.tctl("tokens", "add", "--type=node,db", "--format=json"))
        self.pin = token["ca_pin"]
        text = AGENT.format(root=self.root, port=self.port, pin=self.pin, token=token["token"])
        if self.kinds:
            text += DATABASES
        for kind in self.kinds:
            text += DATABASE.format(name=kind.name, protocol=kind.protocol, port=self.servers[kind.name].port)
        config = self.root / "agent.yaml"
        config.write_text(text)
        config.chmod(0o600)
        self._start("agent", config)
        self._wait(self._registered, "the agent's resources to be known")
        names = "".join(f", database {kind.name}" for kind in self.kinds)
        return f"SSH node{names}; dialled out"

    def _start_ssh_agent(self) -> str:
        self.agent_socket.unlink(missing_ok=True)
        self._ssh_agent = agent = subprocess.Popen(
            ["ssh-agent", "-D", "-a", str(self.agent_socket)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait(lambda: self.agent_socket.exists() or agent.poll() is not None, "the ssh-agent")
        if agent.poll() is not None:
            raise Failure(f"ssh-agent did not start at {self.agent_socket}")
        return "yours is left alone"

    def _registered(self) -> bool:
        wanted = [("nodes", "node"), *(("db", kind.name) for kind in self.kinds)]
        return all(f'"{name}"' in self.tctl(kind, "ls", "--format=json") for kind, name in wanted)

    def _start(self, name: str, config: Path) -> None:
        log = config.with_suffix(".log")
        one = Process(name, config, log)
        with log.open("wb") as file:
            one.process = subprocess.Popen(
                [self.tool("monoport"), "start", "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is ours: processes are stopped in their turn
            )
        self.processes.append(one)
        self._wait(lambda: READY in log.read_text(errors="replace"), f"the {name} to be ready", one)

    def _wait(self, true: Callable[[], bool], what: str, one: Process | None = None) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not true():
            if one is not None and one.process is not None and one.process.poll() is not None:
                lines = one.log.read_text(errors="replace").strip().splitlines()
                raise Failure(_said(lines[-1], one.config) if lines else f"the {one.name} ended at once")
            if time.monotonic() > deadline:
                raise Failure(f"waited {START_SECONDS:g} s for {what}; see {self.root}")
            select.select([], [], [], 0.05)


def _said(line: str, config: Path) -> str:
    """A daemon's last line without the place in a configuration that nobody here has written."""
    return re.sub(rf"^monoport: (?:{re.escape(str(config))}:\d+:\d+: )?", "", line)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(cluster: Cluster, agent: str) -> dict[str, str]:
    """The environment of somebody who pasted the set-up lines, with an ssh-agent at this socket."""
    return {
        **os.environ,
        "PATH": f"{cluster.tools}:{os.environ.get('PATH', '')}",
        "TSH_HOME": str(cluster.home),
        "SSH_AUTH_SOCK": agent,
    }
