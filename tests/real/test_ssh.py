"""SSH through the one port with real clients: tsh, and OpenSSH's ssh, scp and sftp."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import stat
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from .clients import Client, program
from .cluster import BIN, Cluster, Person, wait_until

OPENSSH = program("ssh", "-V")
CONFIG = "`tsh config >> ~/.ssh/config`, then "
RFD = ["-o", "ForwardAgent yes", "-o", "ProxyCommand tsh proxy ssh --user=%r %h:%p"]


def home(person: Person) -> list[str]:
    """Where ssh looks for what it takes from ~: it asks the system's accounts, not HOME, where that is."""
    return ["-o", f"UserKnownHostsFile {person.home}/.ssh/known_hosts"]


def test_login_writes_the_files_of_the_contract(cluster: Cluster, alice: Person) -> None:
    keys = alice.home / ".tsh" / "keys" / "localhost"
    for name in ("certs.pem", "alice", "alice-x509.pem", "alice-cert.pub"):
        assert (keys / name).exists(), name
    assert stat.S_IMODE((keys / "alice").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert (
        "user: alice" in alice.tsh("status").stdout.lower().replace("  ", " ")
        or "alice@example.com" in alice.tsh("status").stdout
    )


def test_ls_in_every_format(alice: Person) -> None:
    rows = json.loads(alice.tsh("ls", "--format=json").stdout)
    assert any("node" in row.values() for row in rows)
    assert "node" in alice.tsh("ls", "--format=yaml").stdout


@pytest.mark.client(Client("tsh ssh", "ssh", "`tsh ssh LOGIN@node`", program("tsh", "--version")))
def test_tsh_ssh_gives_output_and_exit_status(alice: Person, login: str) -> None:
    assert alice.tsh("ssh", f"{login}@node", "id -un").stdout == f"{login}\n"
    done = alice.tsh("ssh", f"{login}@node", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_tsh_ssh_carries_input_through_a_pipe(alice: Person, login: str) -> None:
    data = os.urandom(3_000_000)
    done = subprocess.run(
        [BIN / "tsh", "ssh", f"{login}@node", "cat"],
        input=data,
        capture_output=True,
        env=alice.env(),
        timeout=60,
        check=True,
    )
    assert done.stdout == data


@pytest.mark.client(
    Client(
        "OpenSSH ssh", "ssh", '`ssh -o "ProxyCommand tsh proxy ssh --user=%r %h:%p" LOGIN@node.example.com`', OPENSSH
    )
)
def test_openssh_word_for_word(alice: Person, login: str, need) -> None:
    done = alice.run(need("ssh"), *home(alice), *RFD, f"{login}@node.example.com", "id -un && ssh-add -l", stdin="")
    user, key = done.stdout.splitlines()[:2]
    assert user == login
    assert "ECDSA" in key
    assert "authenticity" not in done.stderr
    assert "Permanently added" not in done.stderr


def test_openssh_finds_the_node_by_every_name(cluster: Cluster, alice: Person, login: str, need) -> None:
    rows = json.loads(cluster.tctl("nodes", "ls", "--format=json").stdout)
    host_id = next(row["id"] for row in rows if "node" in row.values())  # other tests have nodes here too
    for host, known in (
        ("node.example.com", "node.example.com"),
        (host_id, "node.example.com"),
        ("node", "node.example.com"),
    ):
        words = ["-o", f"HostKeyAlias {known}", *home(alice), *RFD, f"{login}@{host}", "true"]
        assert alice.run(need("ssh"), *words, code=None).returncode == 0, host


@pytest.fixture
def config(alice: Person, folder: Path) -> Path:
    """What `tsh config` prints, as a file."""
    path = folder / "ssh_config"
    path.write_text(alice.tsh("config").stdout)
    return path


BARE = {"SSH_AUTH_SOCK": ""}  # a configuration needs no agent


@pytest.mark.client(Client("OpenSSH ssh", "ssh", CONFIG + "`ssh LOGIN@node.example.com`", OPENSSH))
def test_tsh_config_serves_ssh(alice: Person, login: str, config: Path, need) -> None:
    assert "Host *.example.com" in config.read_text()
    assert alice.run(need("ssh"), "-F", config, f"{login}@node.example.com", "echo hello", **BARE).stdout == "hello\n"


@pytest.mark.client(Client("OpenSSH scp", "ssh", CONFIG + "`scp FILE LOGIN@node.example.com:`", OPENSSH))
def test_tsh_config_serves_scp(alice: Person, login: str, folder: Path, config: Path, need) -> None:
    sent, back = folder / "sent", folder / "back"
    sent.write_bytes(os.urandom(1_500_000))
    remote = f"/tmp/monoport-{os.getpid()}"
    alice.run(need("scp"), "-F", config, sent, f"{login}@node.example.com:{remote}", **BARE)
    alice.run(need("scp"), "-F", config, f"{login}@node.example.com:{remote}", back, **BARE)
    assert back.read_bytes() == sent.read_bytes()
    alice.run(need("ssh"), "-F", config, f"{login}@node.example.com", f"rm {remote}", **BARE)


@pytest.mark.client(Client("OpenSSH sftp", "ssh", CONFIG + "`sftp LOGIN@node.example.com`", OPENSSH))
def test_tsh_config_serves_sftp(alice: Person, login: str, folder: Path, config: Path, need) -> None:
    sent = folder / "sent"
    sent.write_bytes(os.urandom(1_500_000))
    remote = f"/tmp/monoport-{os.getpid()}"
    listing = alice.run(
        need("sftp"),
        "-F",
        config,
        "-b",
        "-",
        f"{login}@node.example.com",
        stdin=f"put {sent} {remote}\nls -l {remote}\nget {remote} {folder}/back\nrm {remote}\n",
        **BARE,
    )
    assert remote in listing.stdout
    assert (folder / "back").read_bytes() == sent.read_bytes()


@pytest.mark.client(Client("tsh scp", "ssh", "`tsh scp -r FOLDER LOGIN@node:FOLDER`", program("tsh", "--version")))
def test_tsh_scp_both_ways_and_folders(alice: Person, login: str, folder: Path) -> None:
    tree = folder / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "file").write_bytes(os.urandom(200_000))
    remote = f"/tmp/monoport-tree-{os.getpid()}"
    alice.tsh("scp", "-r", tree, f"{login}@node:{remote}")
    alice.tsh("scp", "-r", f"{login}@node:{remote}", folder / "back")
    copies = list((folder / "back").rglob("file"))
    assert [path.read_bytes() for path in copies] == [(tree / "inner" / "file").read_bytes()]
    alice.tsh("ssh", f"{login}@node", f"rm -r {remote}")


def test_terminal_size_and_its_changes_reach_the_node(alice: Person, login: str) -> None:
    pid, master = pty.fork()
    if pid == 0:
        os.execvpe("tsh", ["tsh", "ssh", f"{login}@node"], alice.env())
    shown = b""

    def seen(what: bytes) -> bool:
        nonlocal shown
        if select.select([master], [], [], 0)[0]:
            shown += os.read(master, 4096)
        return what in shown

    # a shell that is no interactive one: it shares its process group with what it runs, so the signal reaches the trap
    script = """trap "stty size; exit 3" WINCH; echo wai""t; while :; do sleep 0.1; done"""
    os.write(master, f"exec sh -c '{script}'\n".encode())
    wait_until(lambda: seen(b"wait"), 20, "the remote shell's answer")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 41, 133, 0, 0))
    os.kill(pid, signal.SIGWINCH)
    wait_until(lambda: seen(b"41 133"), 20, f"the new size, saw {shown!r}")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    os.close(master)


@pytest.mark.parametrize(("target", "says"), [("{login}@nowhere", "nowhere"), ("root2@node", "root2")])
def test_unknown_node_and_refused_login_are_named(alice: Person, login: str, target: str, says: str) -> None:
    done = alice.tsh("ssh", target.format(login=login), "true", code=None)
    assert done.returncode not in (0, 7)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr  # ours, and ssh's own


def test_a_user_without_the_login_is_refused_by_the_node_too(cluster: Cluster, login: str) -> None:
    bob = cluster.person("bob")
    cluster.login(bob, "--no-ssh-setup")
    done = bob.tsh("ssh", f"{login}@node", "true", code=None)
    assert done.returncode != 0
    assert login in done.stderr
    assert not (bob.home / ".ssh" / "known_hosts").exists()


def test_local_forwarding_reaches_a_service_beside_the_node(
    cluster: Cluster, alice: Person, login: str, folder: Path, need
) -> None:
    config = folder / "ssh_config"
    config.write_text(alice.tsh("config").stdout)
    done = alice.run(
        need("ssh"),
        "-F",
        config,
        "-W",
        f"127.0.0.1:{cluster.port}",
        f"{login}@node.example.com",
        stdin="GET / HTTP/1.0\r\n\r\n",
    )
    assert "308" in done.stdout


def test_every_session_is_in_the_audit_log(cluster: Cluster, alice: Person, login: str) -> None:
    alice.tsh("ssh", f"{login}@node", "echo audited-command")
    events = wait_until(
        lambda: [
            row
            for row in json.loads(cluster.tctl("events", "ls", "--format=json").stdout)
            if "audited-command" in json.dumps(row)
        ],
        10,
        "the command in tctl events ls",
    )
    assert any("alice@example.com" in json.dumps(event) for event in events)
