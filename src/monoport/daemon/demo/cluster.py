"""The processes of the demonstration: the front door, an agent that joined with a token, a real PostgreSQL.

Belongs here: their configurations, start, health and end. Does not belong here: what the user is shown.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from monoport.daemon.demo.postgres import PostgresServer, find
from monoport.errors import Failure

NAME = "demo.localhost"
USER = "demo"
READY = "monoport is ready"
START_SECONDS = 60.0  # a busy machine of two cores needs about two
STOP_SECONDS = 10.0  # sessions get five of them to end

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
DATABASE = """\
db_service:
  enabled: yes
  databases:
    - {{name: pg, protocol: postgres, uri: "localhost:{port}", static_labels: {{env: demo}}}}
"""
SETUP = "create role demo login; create database demo owner demo;"


@dataclass(slots=True)
class Process:
    """One `monoport start` and its log."""

    name: str
    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None


class Cluster:
    """Everything the demonstration runs. `steps` starts it piece by piece; `stop` ends whatever was started."""

    def __init__(self, root: Path, port: int, *, temporary: bool) -> None:
        self.root, self.port, self.temporary = root, port, temporary
        self.login = getpass.getuser()
        self.password = secrets.token_urlsafe(9)
        self.pin = ""
        self.database: PostgresServer | None = None
        self.processes: list[Process] = []
        self.front = root / "front.yaml"
        self._tools = Path(sys.executable).parent

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """What is started, in order, and the function that starts it and returns a note."""
        yield "auth service and proxy", self._start_front
        yield f"user {USER}, role access", self._add_user
        if find("postgres") and find("psql"):
            yield "PostgreSQL", self._start_database
        yield "agent, joined with a token", self._start_agent

    def tool(self, name: str) -> str:
        """The path of one of our commands."""
        return str(self._tools / name)

    @property
    def tools(self) -> Path:
        """The folder of our commands."""
        return self._tools

    def ended(self) -> Process | None:
        """A process that should run and does not."""
        return next((one for one in self.processes if one.process and one.process.poll() is not None), None)

    def stop(self) -> None:
        """End everything that was started, the last first."""
        for one in reversed(self.processes):
            if one.process is not None and one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
                try:
                    one.process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    one.process.kill()
                    one.process.wait()
        if self.database is not None:
            self.database.stop()

    def tctl(self, *words: str, stdin: str = "") -> str:
        """Run tctl beside the auth service; its output. Raises Failure with its own words."""
        done = subprocess.run(
            [self.tool("tctl"), "-c", str(self.front), *words], input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Failure(done.stderr.strip() or f"tctl {words[0]} failed")
        return done.stdout

    def _start_front(self) -> str:
        self.front.write_text(FRONT.format(root=self.root, name=NAME, port=self.port))
        self._start("front", self.front)
        return f"127.0.0.1:{self.port}"

    def _add_user(self) -> str:
        known = {row["name"] for row in json.loads(self.tctl("users", "ls", "--format=json"))}
        if USER in known:
            self.tctl("users", "rm", USER)
        words = ["--roles=access,auditor", f"--logins={self.login}", f"--db-users={USER}", f"--db-names={USER}"]
        self.tctl("users", "add", USER, *words, "--password-stdin", stdin=self.password + "\n")
        return f"may log in as {self.login} on nodes, as {USER} on databases"

    def _start_database(self) -> str:
        prefix = self.root / "postgres-server"
        self.tctl("auth", "sign", "--format=db", "--host=localhost,127.0.0.1", f"--out={prefix}")
        texts = [Path(f"{prefix}.{end}").read_text() for end in ("crt", "key", "cas")]
        server = PostgresServer(self.root / "pg", *texts, port=_free_port())
        new = not (server.folder / "data").exists()
        self.database = server
        server.start()
        if new:
            server.sql(SETUP)
        version = server.sql("show server_version").split()[0]
        return f"{version} on 127.0.0.1:{server.port}, takes certificates only"

    def _start_agent(self) -> str:
        token = json.loads(self.tctl("tokens", "add", "--type=node,db", "--format=json"))
        self.pin = token["ca_pin"]
        text = AGENT.format(root=self.root, port=self.port, pin=self.pin, token=token["token"])
        if self.database is not None:
            text += DATABASE.format(port=self.database.port)
        config = self.root / "agent.yaml"
        config.write_text(text)
        config.chmod(0o600)
        self._start("agent", config)
        self._wait(self._registered, "the agent's resources to be known")
        return "SSH node" + (" and database pg, dialled out" if self.database else ", dialled out")

    def _registered(self) -> bool:
        wanted = [("nodes", "node")] + ([("db", "pg")] if self.database else [])
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
        "TSH_HOME": f"{cluster.root}/tsh",
        "SSH_AUTH_SOCK": agent,
    }
