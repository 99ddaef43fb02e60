"""The demonstration as a visitor meets it: it checks itself, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .cluster import BIN, free_port, wait_until


@dataclass
class Demo:
    """One that runs, and what it has shown."""

    process: subprocess.Popen[str]
    shown: str

    @property
    def lines(self) -> list[str]:
        """What is there to paste."""
        _, _, pasted = self.shown.partition("paste these, line by line:")
        return [line.strip() for line in pasted.splitlines() if re.match(r"  [^ #]", line)]

    def line(self, begin: str) -> str:
        """The one line that has this in it."""
        (found,) = [line for line in self.lines if begin in line]
        return found

    def stop(self) -> str:
        """Ctrl-C; what it said then."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, self.shown + rest
        assert "Traceback" not in self.shown + rest
        return rest


@contextmanager
def running(**environment: str) -> Iterator[Demo]:
    words = [BIN / "monoport", "demo", "--port", str(free_port())]
    env = {**os.environ, **environment}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        assert process.stdout is not None
        shown = ""
        for line in process.stdout:
            shown += line
            if "Ctrl-C stops everything" in line:
                break
        assert process.poll() is None, shown
        try:
            yield Demo(process, shown)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


def check(**environment: str) -> str:
    words = [BIN / "monoport", "demo", "--check", "--port", str(free_port())]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=110,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    worked = re.search(r"(\d+) of (\d+) commands worked, all through port \d+", done.stdout)
    assert worked, done.stdout
    assert worked[1] == worked[2]
    return done.stdout


@pytest.fixture
def bare(need: Callable[[str], str], tmp_path: Path) -> str:
    """A PATH on which there is a shell and nothing that the demonstration might start."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("bash", "sh", "env", "uname", "cat"):
        (folder / program).symlink_to(need(program))
    return str(folder)


def test_every_printed_command_works(need: Callable[[str], str]) -> None:
    for program in ("ssh", "scp", "ssh-agent", "psql", "postgres", "mariadb", "mariadbd", "curl"):
        need(program)
    shown = check()  # in our real home: ssh looks for known_hosts there, whatever $HOME says
    assert "not installed here" not in shown
    ways = (
        *("teleport-proxy-ssh", "teleport-postgres", "teleport-mysql", "teleport-auth@demo.localhost"),
        "pg.db.localhost",
    )
    for arrived in ways:
        assert arrived in shown
    assert re.search(r"^mariadb --no-defaults .*… +- +- +database", shown, re.MULTILINE), shown


def test_lines_whose_programs_are_missing_are_left_out_and_named(bare: str, tmp_path: Path) -> None:
    shown = check(HOME=str(tmp_path), PATH=bare)
    packages = re.findall(r"- (.*) (?:is|are) not installed here +apt-get install (\S+), and start again", shown)
    assert ("ssh, ssh-agent, ssh-add, scp", "openssh-client") in packages
    assert ("curl", "curl") in packages
    assert ("MariaDB", "mariadb-server") in packages
    assert {package for _, package in packages} & {"postgresql", "postgresql-client"}
    with running(HOME=str(tmp_path), PATH=bare) as demo:
        assert {line.split()[0] for line in demo.lines} <= {"export", "echo", "tsh", "tctl"}
        assert not any("ssh-agent" in line or "tsh ssh" in line or "tsh scp" in line for line in demo.lines)
        assert demo.line("tsh login")
        demo.stop()


@pytest.fixture
def agent(need: Callable[[str], str], tmp_path: Path) -> Iterator[str]:
    """An ssh-agent of somebody's own: its socket."""
    path = tmp_path / "agent"
    with subprocess.Popen([need("ssh-agent"), "-D", "-a", path], stdout=subprocess.DEVNULL) as process:
        wait_until(path.exists, 10, "the ssh-agent")
        yield str(path)
        process.terminate()


@pytest.mark.parametrize("own", [False, True], ids=["the demonstration's agent", "an agent of one's own"])
def test_ctrl_c_stops_it_and_undoes_what_was_pasted(own: bool, agent: str, tmp_path: Path) -> None:
    def paste(*lines: str) -> str:
        shell = ["bash", "-e", "-o", "pipefail", "-c", "\n".join(lines)]
        return subprocess.run(shell, env=environment, capture_output=True, text=True, check=True).stdout

    environment = {**os.environ, "HOME": str(tmp_path), "SSH_AUTH_SOCK": agent}
    known_hosts = tmp_path / ".ssh" / "known_hosts"
    known_hosts.parent.mkdir(mode=0o700)
    known_hosts.write_text("[elsewhere]:22 ssh-ed25519 AAAA\n")
    with running(HOME=str(tmp_path), SSH_AUTH_SOCK=agent) as demo:
        export = demo.line("export ")
        kept = [f"export SSH_AUTH_SOCK={agent}"] if own else []
        assert "demo" in paste(export, *kept, demo.line("tsh login"), "ssh-add -l")
        assert "@cert-authority *.demo.localhost" in known_hosts.read_text()
        if own:
            assert "demo" in paste("ssh-add -l")
        demo.stop()
    folder = re.search(r"TSH_HOME=(\S+)/tsh", export)
    assert folder, export
    assert not Path(folder[1]).exists()
    left = subprocess.run(["pgrep", "-f", folder[1]], capture_output=True, text=True, check=False)
    assert left.stdout == "", "a process of the demonstration is still there"
    assert known_hosts.read_text() == "[elsewhere]:22 ssh-ed25519 AAAA\n"
    assert "no identities" in paste("ssh-add -l || true")


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [BIN / "monoport", "demo", "--port", str(port)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on: it is in use" in done.stderr
    assert "front.yaml" not in done.stderr, "nobody has written it"
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
