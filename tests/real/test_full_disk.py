"""A disk that is really full, under daemons that run: each protocol says so in its own words, and it ends by itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .cluster import Cluster, Person, wait_until


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which `front` and `node` are small file systems of their own; mounting them takes root."""
    root = tmp_path_factory.mktemp("full")
    mounted: list[Path] = []
    try:
        for name in ("front", "node"):
            folder = root / name
            folder.mkdir(mode=0o700)
            words = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(folder)]
            done = subprocess.run(words, check=False, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"a real full disk takes root who may mount: {done.stderr.strip()}")
            mounted.append(folder)
        yield root
    finally:
        for folder in mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def own(disks: Path, login: str) -> Iterator[Cluster]:
    made = Cluster(disks, "full.example.com")
    try:
        made.front.start()
        made.add_user("alice", "--roles=access", f"--logins={login}")
        made.agent("node", "node", "ssh_service:\n  enabled: yes\n").start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def user(own: Cluster) -> Person:
    person = own.person("alice")
    own.login(person, "--no-ssh-setup")
    wait_until(lambda: "node" in person.tsh("ls").stdout, 15, "the node in tsh ls")
    return person


def fill(folder: Path) -> Path:
    """Write a file until there is no space left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def refused(person: Person, where: str) -> str:
    """What `tsh ssh` says once it is refused; the last page of a file may still take an event or two."""
    done = wait_until(
        lambda: (found := person.tsh("ssh", where, "echo", "x" * 500, code=None)).returncode and found, 30, "a refusal"
    )
    return str(done.stderr)


def test_an_ssh_node_with_a_full_disk(own: Cluster, user: Person, login: str) -> None:
    where = f"{login}@node"
    assert user.tsh("ssh", where, "echo", "before").stdout == "before\n"
    ballast = fill(own.root / "node")
    said = refused(user, where)
    assert "monoport: the audit log cannot be written; tell your administrator" in said
    assert "No space" not in said, "files of the host are not the user's business"
    ballast.unlink()
    works = lambda: user.tsh("ssh", where, "echo", "after", code=None).stdout == "after\n"  # noqa: E731
    wait_until(works, 15, "sessions again, without a restart")
    log = own.daemons[-1].text()
    assert "No space left on device" in log
    assert "the audit log is written again" in log


def test_logins_where_the_auth_service_has_a_full_disk(own: Cluster) -> None:
    ballast = fill(own.root / "front")
    person = own.person("alice")
    failed = wait_until(
        lambda: (found := own.login(person, "--no-ssh-setup", code=None)).returncode and found, 60, "a refused login"
    )
    assert failed.stderr.count("\n") == 1, failed.stderr
    assert "cannot be written" in failed.stderr or "storage does not answer" in failed.stderr
    status = own.tctl("status", code=None)
    assert "new sessions are refused" in status.stdout
    ballast.unlink()
    wait_until(lambda: own.login(person, "--no-ssh-setup", code=None).returncode == 0, 20, "a login, without a restart")
    assert "every event is kept" in own.tctl("status").stdout
