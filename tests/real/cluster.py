"""A whole cluster as an administrator would set it up, from its three commands alone.

Belongs here: starting and stopping daemons, running tsh and tctl as other processes. Tests look only at what
those commands print, write and return.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
READY = "ready"
BALANCER = "127.0.0.3"  # a proxy of a Cluster believes the PROXY headers of this address
START_SECONDS = 30  # two cores that other tests keep busy
_GIVEN: set[int] = set()  # the kernel names a port again that was let go of a moment ago


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, and that was not given out before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port


def wait_until(true: Any, seconds: float, what: str) -> Any:
    """The first true value of `true()`, asked ten times a second for so many seconds; fails naming `what`."""
    deadline = time.monotonic() + seconds
    while True:
        value = true()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        select.select([], [], [], 0.1)


@dataclass
class Daemon:
    """One `monoport start` process and its log."""

    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until its log says that it is ready."""
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "monoport", "start", "-c", self.config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(
            lambda: self._ready(before), START_SECONDS, f"{self.config.name} ready; its log: {self.text()[-2000:]}"
        )

    def _ready(self, before: int) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.config.name} ended:\n{self.text()[-4000:]}"
        return "monoport is ready" in self.text()[before:]

    def text(self) -> str:
        """The whole log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """As `kill -9` does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As an init system does; it has ten seconds."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise


@dataclass
class Person:
    """One user's home folder and ssh-agent: tsh and other programs run as this person."""

    name: str
    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(
        self, *words: str | Path, stdin: str | bytes = "", code: int | None = 0, seconds: float = 60, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; `code` is the exit status it must have (None: any)."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [str(word) for word in words],
            input=data,
            capture_output=True,
            timeout=seconds,
            env=self.env(**extra),
            cwd=self.home,
            check=False,
        )
        result = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if code is not None:
            assert result.returncode == code, (
                f"{words}: exit {result.returncode}\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
            )
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def env(self, **extra: str) -> dict[str, str]:
        """Environment of this person's programs."""
        return {
            "HOME": str(self.home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "USER": self.name,
            "LANG": "C.UTF-8",
            **self.environment,
            **extra,
        }

    def tsh(self, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run tsh."""
        return self.run(BIN / "tsh", *words, **options)

    def start_agent(self) -> subprocess.Popen[bytes]:
        """Start an ssh-agent for this person; the caller ends it."""
        path = self.home / "agent.sock"
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
        wait_until(path.exists, 10, "ssh-agent's socket")
        self.environment["SSH_AUTH_SOCK"] = str(path)
        return agent


class Cluster:
    """Auth service and proxy in one daemon on one port, agents in others."""

    def __init__(self, root: Path, name: str = "example.com") -> None:
        self.root = root
        self.name = name
        self.port = free_port()
        self.ssh_port, self.tunnel_port = free_port(), free_port()
        self.postgres_port, self.mysql_port, self.mongo_port = free_port(), free_port(), free_port()
        self.daemons: list[Daemon] = []
        self.people: list[Path] = []
        self.config = root / "proxy.yaml"
        self.config.write_text(
            f"version: v3\n"
            f"teleport:\n  nodename: front\n  data_dir: {root}/front\n"
            f"auth_service:\n  enabled: yes\n  cluster_name: {name}\n"
            f"proxy_service:\n  enabled: yes\n  web_listen_addr: 127.0.0.1:{self.port}\n"
            f"  public_addr: ['localhost:{self.port}']\n"
            f"  listen_addr: 127.0.0.1:{self.ssh_port}\n"
            f"  tunnel_listen_addr: 127.0.0.1:{self.tunnel_port}\n"
            f"  postgres_listen_addr: 127.0.0.1:{self.postgres_port}\n"
            f"  mongo_listen_addr: 127.0.0.1:{self.mongo_port}\n"
            f"  proxy_protocol: {{networks: {BALANCER}}}\n"
            f"  mysql_listen_addr: 127.0.0.1:{self.mysql_port}\n"
            f"  mysql_on_silence: 500ms\n"
        )
        self.front = self.daemon(self.config)

    def daemon(self, config: Path) -> Daemon:
        """A daemon for this configuration, stopped with the cluster."""
        daemon = Daemon(config, config.with_suffix(".log"))
        self.daemons.append(daemon)
        return daemon

    def tctl(self, *words: str | Path, stdin: str = "", code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run tctl beside the auth service."""
        done = subprocess.run(
            [BIN / "tctl", "-c", self.config, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, f"tctl {words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def token(self, kinds: str, *words: str) -> dict[str, Any]:
        """A join token as `tctl tokens add --format=json` prints it."""
        value: dict[str, Any] = json.loads(
            self.tctl("tokens", "add", f"--type={kinds}", "--format=json", *words).stdout
        )
        return value

    def agent(
        self, name: str, kinds: str, services: str, *, token: dict[str, Any] | None = None, settings: str = ""
    ) -> Daemon:
        """An agent that joins with a token of its own, or this one, through the one port; not started yet.

        settings: further lines of its `teleport` section.
        """
        token = token or self.token(kinds)
        config = self.root / f"{name}.yaml"
        config.write_text(
            f"version: v3\n"
            f"teleport:\n  nodename: {name}\n  data_dir: {self.root}/{name}\n  proxy_server: localhost:{self.port}\n"
            f"  ca_pin: {token['ca_pin']}\n  join_params:\n    method: token\n    token_name: {token['token']}\n"
            + settings
            + services
        )
        return self.daemon(config)

    def add_user(self, name: str, *words: str, password: str = "correct horse battery") -> None:
        """A local user with the role `access` unless `words` say otherwise."""
        self.tctl("users", "add", name, *words, "--password-stdin", stdin=password + "\n")

    def person(self, name: str) -> Person:
        """A user at a new machine: a home folder of its own."""
        home = self.root / f"home-{name}-{len(self.people)}"
        home.mkdir(mode=0o700)
        self.people.append(home)
        return Person(name, home)

    def login(
        self,
        person: Person,
        *words: str,
        password: str = "correct horse battery",
        code: int | None = 0,
        port: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`tsh login` by CA pin, the password on standard input; `port`: of what stands in front of the cluster."""
        pin = re.search(r"sha256:[0-9a-f]{64}", self.tctl("status").stdout)
        assert pin, "tctl status shows the CA pin"
        return person.tsh(
            "login",
            f"--proxy=localhost:{port or self.port}",
            f"--user={person.name}",
            f"--ca-pin={pin[0]}",
            *words,
            stdin=password + "\n",
            code=code,
        )

    def stop(self) -> None:
        """Stop every daemon, agents first."""
        for daemon in reversed(self.daemons):
            daemon.stop()
