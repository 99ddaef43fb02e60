"""`tsh ssh` with what people give ssh: forwardings of every kind, terminals, escapes, pipes, the background."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from .cluster import BIN, Cluster, Person, free_port, wait_until


@pytest.fixture
def shouting() -> Iterator[int]:
    """A service on loopback that answers in capitals when it has read everything: its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    made, _ = listening.accept()
                except OSError:
                    return
                with made, made.makefile("rb") as reading:
                    made.sendall(reading.read().upper())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@contextmanager
def running(person: Person, *words: object, up: Callable[[], object]) -> Iterator[subprocess.Popen[bytes]]:
    """A tsh that runs until the body ends, once `up()` is true."""
    process = subprocess.Popen(
        [BIN / "tsh", *map(str, words)],
        env=person.env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until(lambda: process.poll() is not None or up(), 30, f"tsh {' '.join(map(str, words))}")
        assert process.poll() is None, process.stdout.read() if process.stdout else b""
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def listens(where: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(where) == 0


def say(where: tuple[str, int] | str, data: bytes) -> bytes:
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(family) as made:
        made.settimeout(20)
        made.connect(where)
        made.sendall(data)
        made.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: made.recv(65_536), b""))


def test_every_forwarding_of_ports_and_sockets_at_once(
    cluster: Cluster, alice: Person, login: str, folder: Path, shouting: int, need
) -> None:
    first, second, socks, remote = (free_port() for _ in range(4))
    local, far = folder / "local.sock", f"/tmp/monoport-forward-{os.getpid()}.sock"
    to = f"127.0.0.1:{shouting}"
    options = ["-N", "-L", f"{first}:{to}", "-L", f"127.0.0.2:{second}:{to}", "-L", f"{local}:{to}"]
    options += ["-D", socks, "-R", f"{remote}:{to}", "-R", f"{far}:{to}", "-o", "ExitOnForwardFailure=yes"]
    with running(
        alice, "ssh", *options, f"{login}@node", up=lambda: listens(("127.0.0.1", remote)) and Path(far).exists()
    ):
        data = os.urandom(300_000).lower()
        for where in (("127.0.0.1", first), ("127.0.0.2", second), str(local), ("127.0.0.1", remote), far):
            assert say(where, data) == data.upper(), where
        page = alice.run(
            need("curl"),
            "-sk",
            "--socks5-hostname",
            f"127.0.0.1:{socks}",
            f"https://localhost:{cluster.port}/webapi/ping",
        )
        assert json.loads(page.stdout)["cluster_name"] == cluster.name
    wait_until(lambda: not listens(("127.0.0.1", remote)) and not Path(far).exists(), 10, "the end of what listened")
    rows = wait_until(lambda: closed(cluster, shouting, 5), 10, "five forwardings in the audit log")
    assert {row["kind"] for row in rows} == {"port", "remote_port", "remote_unix"}
    assert all(row["login"] == login and row["user"] == "alice@example.com" for row in rows)
    assert all(row["bytes_in"] == row["bytes_out"] == 300_000 for row in rows if row["bytes_in"])


def closed(cluster: Cluster, port: int, least: int) -> list[dict[str, object]]:
    """The ends of forwarded connections, once there are enough with bytes."""
    rows = [row for row in events(cluster) if row.get("type") == "port.close"]
    full = [row for row in rows if row["bytes_in"] == 300_000]
    return full if len(full) >= least else []


def events(cluster: Cluster) -> list[dict[str, object]]:
    rows = json.loads(cluster.tctl("events", "ls", "--format=json", "--limit=1000").stdout)
    return [{**row, **row.get("fields", {})} for row in rows]


def test_what_is_not_granted_is_refused_in_one_line(alice: Person, login: str) -> None:
    done = alice.tsh(
        "ssh", "-o", "ExitOnForwardFailure=yes", "-R", f"*:{free_port()}:127.0.0.1:1", f"{login}@node", "true", code=255
    )
    assert done.stderr.startswith("Error: remote port forwarding failed for listen port")
    assert len(done.stderr.splitlines()) == 1


def test_the_agent_goes_along_with_a(alice: Person, login: str, need) -> None:
    need("ssh-add")
    assert "ECDSA" in alice.tsh("ssh", "-A", f"{login}@node", "ssh-add -l").stdout
    assert alice.tsh("ssh", f"{login}@node", "ssh-add -l", code=2).stdout == ""


def test_a_pipe_through_a_command_keeps_every_byte(alice: Person, login: str, folder: Path) -> None:
    tree = folder / "tree"
    tree.mkdir()
    (tree / "all bytes").write_bytes(bytes(range(256)) * 5_000)
    script = f"tsh ssh {login}@node 'tar c -C {tree} .' | (mkdir tree && tar x -C tree); echo ${{PIPESTATUS[0]}}"
    done = alice.run("bash", "-c", script)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert (alice.home / "tree" / "all bytes").read_bytes() == bytes(range(256)) * 5_000
    back = f"tar c tree | tsh ssh {login}@node 'tar t; cat >&2; exit 3' 2>/dev/null; echo ${{PIPESTATUS[1]}}"
    assert alice.run("bash", "-c", back).stdout.splitlines() == ["tree/", "tree/all bytes", "3"]


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, person: Person, *words: str) -> None:
        self.seen = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execvpe(words[0], list(words), person.env(TERM="xterm"))
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))

    def wait_for(self, what: bytes) -> None:
        """Read until it has shown that."""

        def shown() -> bool:
            while select.select([self.master], [], [], 0)[0]:
                try:
                    data = os.read(self.master, 4096)
                except OSError:  # the program has ended
                    break
                if not data:
                    break
                self.seen += data
            return what in self.seen

        wait_until(shown, 30, f"{what!r}, saw {self.seen!r}")

    def end(self) -> int:
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.master)
        return os.waitstatus_to_exitcode(status)


def test_a_command_gets_a_terminal_with_t_alone(alice: Person, login: str) -> None:
    assert alice.tsh("ssh", f"{login}@node", "tty", code=1).stdout == "not a tty\n"
    terminal = Terminal(alice, "tsh", "ssh", "-t", f"{login}@node", "tty; stty size; echo $TERM; exit 4")
    terminal.wait_for(b"xterm")
    assert b"/dev/pts/" in terminal.seen
    assert b"40 100" in terminal.seen
    assert terminal.end() == 4


def test_escapes_show_help_and_end_the_session(alice: Person, login: str) -> None:
    terminal = Terminal(alice, "tsh", "ssh", f"{login}@node")
    os.write(terminal.master, b"echo rea''dy\r")
    terminal.wait_for(b"ready")
    os.write(terminal.master, b"\r~?")
    terminal.wait_for(b"Supported escape sequences")
    os.write(terminal.master, b"\r~.")
    terminal.wait_for(b"Connection to node closed")
    assert terminal.end() == 255


def test_the_environment_is_filtered(alice: Person, login: str) -> None:
    passed = {"LANG": "de_DE.UTF-8", "LC_TIME": "C", "COLORTERM": "truecolor", "LD_PRELOAD": "", "EDITOR": "vi"}
    options = [word for name in (*passed, "BASH_ENV") for word in ("-o", f"SendEnv={name}")]
    found = alice.tsh("ssh", *options, f"{login}@node", "env", **{**passed, "BASH_ENV": "/tmp/x"}).stdout.splitlines()
    assert {"LANG=de_DE.UTF-8", "LC_TIME=C", "COLORTERM=truecolor"} <= set(found)
    assert not [row for row in found if row.startswith(("LD_PRELOAD=", "EDITOR=", "BASH_ENV="))]


def test_a_forwarding_in_the_background_gives_the_prompt_back(alice: Person, login: str, shouting: int) -> None:
    port = free_port()
    options = ["-f", "-N", "-L", f"{port}:127.0.0.1:{shouting}", "-o", "ExitOnForwardFailure=yes"]
    done = alice.tsh("ssh", *options, f"{login}@node")  # returns, and its pipes are closed
    assert (done.stdout, done.stderr) == ("", "")
    assert say(("127.0.0.1", port), b"still there") == b"STILL THERE"
    ours = f"127.0.0.1:{shouting}"
    for entry in Path("/proc").iterdir():
        words = (entry / "cmdline").read_bytes() if entry.name.isdigit() and (entry / "cmdline").exists() else b""
        if words.startswith(b"/usr/bin/ssh\0") and ours.encode() in words:
            os.kill(int(entry.name), signal.SIGTERM)
    wait_until(lambda: not listens(("127.0.0.1", port)), 10, "the end of ssh")


def test_what_fails_in_the_background_is_said_before_the_prompt(alice: Person, login: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        options = ["-f", "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:1", "-o", "ExitOnForwardFailure=yes"]
        done = alice.tsh("ssh", *options, f"{login}@node", code=255)
    assert "Address already in use" in done.stderr
    assert "nowhere" in alice.tsh("ssh", "-f", "-N", f"{login}@nowhere", code=1).stderr


def test_escapes_in_a_command_reach_no_terminal_of_an_administrator(
    cluster: Cluster, alice: Person, login: str
) -> None:
    alice.tsh("ssh", f"{login}@node", "true '\x1b]0;owned\x07'; echo")
    shown = wait_until(
        lambda: (text := cluster.tctl("events", "ls", "--limit=1000").stdout) and "owned" in text and text,
        10,
        "the command in tctl events ls",
    )
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert all("\x1b" not in daemon.text() for daemon in cluster.daemons)


@pytest.mark.soak
def test_a_proxy_that_hangs_ends_the_session_within_30_s(cluster: Cluster, alice: Person, login: str) -> None:
    terminal = Terminal(alice, "tsh", "ssh", f"{login}@node")
    os.write(terminal.master, b"echo rea''dy\r")
    terminal.wait_for(b"ready")
    front = cluster.front.process
    assert front is not None
    front.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert terminal.end() == 255
        assert time.monotonic() - began < 31
    finally:
        front.send_signal(signal.SIGCONT)
