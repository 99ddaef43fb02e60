"""`tsh proxy ssh --listen`: clients without a proxy command, and with --tunnel without keys of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .clients import Client, program
from .cluster import BIN, Cluster, Person, wait_until

TUNNEL = "`tsh proxy ssh --listen 127.0.0.1:2222 --tunnel node`, then "


@contextmanager
def listening(person: Person, *words: str, said: list[str] | None = None) -> Iterator[int]:
    """The port of `tsh proxy ssh --listen` while the body runs; its lines on stderr are in `said` afterwards."""
    command = [BIN / "tsh", "proxy", "ssh", "--listen", "127.0.0.1:0", *words]
    with subprocess.Popen(command, env=person.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as proxy:
        line = proxy.stdout.readline().decode()
        found = re.match(r"127\.0\.0\.1:(\d+) leads to node", line)
        assert found, (line, proxy.stderr.read())
        yield int(found[1])
        proxy.send_signal(signal.SIGINT)
        status, text = proxy.wait(10), proxy.stderr.read().decode()
        assert status == 0, text
        assert "Traceback" not in text
        if said is not None:
            said += text.splitlines()


@pytest.fixture
def port(alice: Person) -> Iterator[int]:
    with listening(alice, "--tunnel", "node") as found:
        yield found


@pytest.fixture
def words(folder: Path, port: int) -> list[str]:
    """Options of an ssh that has neither key nor certificate, and remembers the local port's key."""
    known = ["-o", f"UserKnownHostsFile {folder}/known", "-o", "StrictHostKeyChecking accept-new"]
    return [
        "-F",
        "none",
        "-i",
        "/nowhere",
        "-o",
        "IdentitiesOnly yes",
        *known,
        "-o",
        "BatchMode yes",
        "-o",
        f"Port {port}",
    ]


@pytest.mark.client(
    Client("OpenSSH ssh without a key", "ssh", TUNNEL + "`ssh -p 2222 LOGIN@127.0.0.1`", program("ssh", "-V"))
)
def test_ssh_without_a_key(alice: Person, login: str, words: list[str], need) -> None:
    ssh = [need("ssh"), *words, f"{login}@127.0.0.1"]
    done = alice.run(*ssh, "id -un; echo err >&2; exit 7", code=7, SSH_AUTH_SOCK="")
    assert done.stdout == f"{login}\n"
    assert "err" in done.stderr
    data = os.urandom(3_000_000)
    back = subprocess.run(
        [*map(str, ssh), "cat"],
        input=data,
        capture_output=True,
        env=alice.env(SSH_AUTH_SOCK=""),
        timeout=60,
        check=True,
    )
    assert back.stdout == data
    assert "15 67" in alice.run(*ssh[:1], "-tt", *ssh[1:], "stty rows 15 cols 67; stty size", SSH_AUTH_SOCK="").stdout
    killed = alice.run(*ssh, "kill -TERM $$", code=None, SSH_AUTH_SOCK="")
    assert killed.returncode == 255


@pytest.mark.client(
    Client("OpenSSH sftp without a key", "ssh", TUNNEL + "`sftp -P 2222 LOGIN@127.0.0.1`", program("ssh", "-V"))
)
def test_sftp_without_a_key(alice: Person, login: str, words: list[str], folder: Path, need) -> None:
    (folder / "sent").write_bytes(os.urandom(1_200_000))
    remote = f"/tmp/monoport-local-{os.getpid()}"
    batch = f"put {folder}/sent {remote}\nget {remote} {folder}/back\nrm {remote}\n"
    alice.run(need("sftp"), *words, "-b", "-", f"{login}@127.0.0.1", stdin=batch, SSH_AUTH_SOCK="")
    assert (folder / "back").read_bytes() == (folder / "sent").read_bytes()


def test_nothing_but_sessions_is_served(cluster: Cluster, alice: Person, login: str, words: list[str], need) -> None:
    forward = ["-W", f"127.0.0.1:{cluster.port}", f"{login}@127.0.0.1"]
    done = alice.run(need("ssh"), *words, *forward, code=255, SSH_AUTH_SOCK="")
    assert "open failed" in done.stderr


def test_a_login_that_is_refused_is_named(alice: Person, login: str, words: list[str], need) -> None:
    done = alice.run(need("ssh"), *words, "mallory@127.0.0.1", "true", code=255, SSH_AUTH_SOCK="")
    assert "node: " in done.stderr
    assert done.stdout == ""
    done = alice.run(need("ssh"), *words, f"{login}@127.0.0.1", "echo still here", SSH_AUTH_SOCK="")
    assert done.stdout == "still here\n", "one connection's fault stays its own"


def test_without_tunnel_the_client_brings_its_own_certificate(
    cluster: Cluster, alice: Person, login: str, need
) -> None:
    said: list[str] = []
    with listening(alice, "--debug", "node", said=said) as port:
        known = f"UserKnownHostsFile {alice.home}/.ssh/known_hosts"
        words = [
            "-F",
            "none",
            "-o",
            known,
            "-o",
            "HostKeyAlias node.example.com",
            "-p",
            str(port),
            "-o",
            "BatchMode yes",
        ]
        assert alice.run(need("ssh"), *words, f"{login}@127.0.0.1", "id -un").stdout == f"{login}\n"
        refused = alice.run(need("ssh"), *words, f"{login}@127.0.0.1", "id -un", code=255, SSH_AUTH_SOCK="")
        assert "Permission denied" in refused.stderr
    joined = re.compile(r"connection of 127\.0\.0\.1:\d+ joined \[from 127\.0\.0\.1:(\d+)\]")
    ours = [found[1] for found in map(joined.fullmatch, said) if found]
    assert len(set(ours)) == len(said) == 2, said
    named = lambda: all(f"source=127.0.0.1:{one}" in cluster.front.text() for one in ours)  # noqa: E731
    wait_until(named, 15, "the front's log names them so")


def test_an_identity_is_lent_on_loopback_alone(alice: Person) -> None:
    done = alice.tsh("proxy", "ssh", "--listen", "0.0.0.0:0", "--tunnel", "node", code=1)
    assert "--share-identity" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
