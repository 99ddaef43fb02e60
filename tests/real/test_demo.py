"""The demonstration as a visitor meets it: it checks itself, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from pathlib import Path

from .cluster import BIN, free_port


def test_every_printed_command_works(need) -> None:
    for program in ("ssh", "scp", "ssh-agent", "psql", "postgres", "curl"):
        need(program)
    words = [BIN / "monoport", "demo", "--check", "--port", str(free_port())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    worked = re.search(r"(\d+) of (\d+) commands worked, all through port \d+", done.stdout)
    assert worked, done.stdout
    assert worked[1] == worked[2]
    for arrived in ("teleport-proxy-ssh", "teleport-postgres", "teleport-auth@demo.localhost", "pg.db.localhost"):
        assert arrived in done.stdout


def test_ctrl_c_stops_it_and_removes_it() -> None:
    words = [BIN / "monoport", "demo", "--port", str(free_port())]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        shown = ""
        for line in demo.stdout:
            shown += line
            if "Ctrl-C stops everything" in line:
                break
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0, shown + rest
    assert "Traceback" not in shown + rest
    folder = re.search(r"TSH_HOME=(\S+)/tsh", shown)
    assert folder, shown
    assert not Path(folder[1]).exists()
    left = subprocess.run(["pgrep", "-f", folder[1]], capture_output=True, text=True, check=False)
    assert left.stdout == "", "a process of the demonstration is still there"


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [BIN / "monoport", "demo", "--port", str(port)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on: it is in use" in done.stderr
    assert "front.yaml" not in done.stderr, "nobody has written it"
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
