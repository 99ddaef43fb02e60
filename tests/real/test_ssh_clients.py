"""Programs that use SSH, and the port's own SSH: all by the user's certificate, none with a question about keys."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .clients import Client, distribution, program
from .cluster import BIN, Cluster, Person, wait_until

CONFIG = "`tsh config >> ~/.ssh/config`, then "
OPENSSH = program("ssh", "-V")
QUESTIONS = ("authenticity", "Permanently added", "password", "passphrase", "(yes/no")


@pytest.fixture
def config(alice: Person, folder: Path) -> Path:
    """What `tsh config` prints, as a file; `ssh -F` reads it and nothing else."""
    path = folder / "ssh_config"
    path.write_text(alice.tsh("config").stdout)
    return path


@pytest.fixture
def remote(alice: Person, login: str) -> str:
    """A folder of the login's on the node, with its path."""
    return alice.tsh("ssh", f"{login}@node", "mktemp -d").stdout.strip()


def asked_nothing(done: subprocess.CompletedProcess[str]) -> None:
    assert not any(question in done.stderr for question in QUESTIONS), done.stderr


def trusting(person: Person) -> list[str]:
    """Where ssh looks for what it takes from ~: it asks the system's accounts, not HOME, where that is."""
    return ["-F", "none", "-o", f"UserKnownHostsFile {person.home}/.ssh/known_hosts", "-o", "BatchMode yes"]


@pytest.mark.client(
    Client("rsync", "ssh", CONFIG + "`rsync -a FOLDER/ LOGIN@node.example.com:FOLDER/`", program("rsync", "--version"))
)
def test_rsync_both_ways(alice: Person, login: str, folder: Path, config: Path, remote: str, need) -> None:
    tree = folder / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "big").write_bytes(os.urandom(1_500_000))
    (tree / "link").symlink_to("inner/big")
    rsync = [need("rsync"), "-a", "-e", f"ssh -F {config}"]
    asked_nothing(alice.run(*rsync, f"{tree}/", f"{login}@node.example.com:{remote}/"))
    with (tree / "inner" / "big").open("ab") as file:
        file.write(b"and more")
    done = alice.run(*rsync, "--stats", "--no-whole-file", f"{tree}/", f"{login}@node.example.com:{remote}/")
    assert "Matched data: 0 bytes" not in done.stdout, "the second run sends differences alone"
    alice.run(*rsync, f"{login}@node.example.com:{remote}/", f"{folder}/back/")
    assert (folder / "back/inner/big").read_bytes() == (tree / "inner/big").read_bytes()
    assert (folder / "back/link").is_symlink()


@pytest.mark.client(
    Client("git", "ssh", CONFIG + "`git clone LOGIN@node.example.com:repository.git`", program("git", "--version"))
)
def test_git_clones_and_pushes(alice: Person, login: str, folder: Path, config: Path, remote: str, need) -> None:
    git = need("git")
    alice.run(need("ssh"), "-F", config, f"{login}@node.example.com", f"git init -q --bare {remote}")
    extra = {"GIT_SSH_COMMAND": f"ssh -F {config}", "GIT_CONFIG_GLOBAL": "/dev/null"}
    asked_nothing(alice.run(git, "clone", f"{login}@node.example.com:{remote}", folder / "work", **extra))
    (folder / "work" / "file").write_bytes(os.urandom(300_000))
    commit = ["-c", "user.name=Alice", "-c", "user.email=alice@example.com", "commit", "-qm", "one file"]
    for words in (["add", "file"], commit, ["push", "-q", "origin", "HEAD"]):
        asked_nothing(alice.run(git, "-C", folder / "work", *words, **extra))
    alice.run(git, "clone", "-q", f"ssh://{login}@node.example.com{remote}", folder / "again", **extra)
    assert (folder / "again/file").read_bytes() == (folder / "work/file").read_bytes()


@pytest.fixture
def control() -> Iterator[Path]:
    """A folder for the sockets of shared connections: its path leaves them room in the 107 bytes that a path has."""
    with tempfile.TemporaryDirectory(prefix="cp-", dir="/tmp") as made:
        yield Path(made)


@pytest.mark.client(
    Client("Ansible", "ssh", CONFIG + "`ansible -i inventory all -m ping`", distribution("ansible-core"))
)
def test_ansible_by_its_ssh_plugin(
    alice: Person, login: str, folder: Path, config: Path, remote: str, control: Path, need
) -> None:
    """As it comes: its ssh keeps one connection to each host (ControlMaster), which all its tasks share."""
    inventory = folder / "inventory"
    options = f"-F {config}"
    inventory.write_text(f"node.example.com ansible_user={login} ansible_ssh_common_args='{options}'\n")
    extra = {
        "ANSIBLE_LOCAL_TEMP": f"{folder}/local",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(control),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PYTHON_INTERPRETER": "auto_silent",
    }
    ansible = [BIN / "ansible", "-i", inventory, "all", "-m"]
    done = alice.run(*ansible, "ping", seconds=90, **extra)
    assert '"ping": "pong"' in done.stdout
    asked_nothing(done)
    (folder / "file").write_bytes(b"by ansible\n")
    words = [*ansible, "copy", "-a", f"src={folder}/file dest={remote}/file mode=0640"]
    assert "CHANGED" in alice.run(*words, seconds=90, **extra).stdout
    assert "SUCCESS" in alice.run(*words, seconds=90, **extra).stdout, "the second time there is nothing to do"
    (master,) = control.iterdir()
    ended = alice.run(need("ssh"), "-F", config, "-o", f"ControlPath {master}", "-O", "exit", "node.example.com")
    assert "Exit request sent" in ended.stderr
    wait_until(lambda: not master.exists(), 10, "the end of the shared connection")


@pytest.mark.client(
    Client("OpenSSH ssh", "ssh", "`ssh -J PROXY:PORT LOGIN@node.example.com`, key in the agent", OPENSSH)
)
def test_ssh_jumps_through_the_ports_own_ssh(cluster: Cluster, alice: Person, login: str, folder: Path, need) -> None:
    config = folder / "known"  # -J takes no options for the jump, but its configuration
    config.write_text(f"UserKnownHostsFile {alice.home}/.ssh/known_hosts\nBatchMode yes\n")
    jump = ["-F", config, "-J", f"localhost:{cluster.port}", f"{login}@node.example.com"]
    done = alice.run(need("ssh"), *jump, "id -un")
    assert done.stdout == f"{login}\n"
    asked_nothing(done)
    refused = alice.run(
        need("ssh"), "-F", config, "-J", f"localhost:{cluster.port}", f"{login}@nowhere.example.com", code=255
    )
    assert 'node "nowhere.example.com" is unknown' in refused.stderr


def test_ssh_jumps_by_the_configuration_without_an_agent(
    cluster: Cluster, alice: Person, login: str, config: Path, need
) -> None:
    jump = ["-F", config, "-J", f"localhost:{cluster.port}", f"{login}@node.example.com", "id -un"]
    done = alice.run(need("ssh"), *jump, SSH_AUTH_SOCK="")
    assert done.stdout == f"{login}\n"
    asked_nothing(done)


@pytest.mark.soak
def test_a_jump_through_a_proxy_that_hangs_ends_within_30_s(
    cluster: Cluster, alice: Person, login: str, config: Path, need
) -> None:
    words = [need("ssh"), "-F", config, "-J", f"localhost:{cluster.port}", f"{login}@node.example.com", "echo up; cat"]
    front = cluster.front.process
    assert front is not None
    with subprocess.Popen(words, env=alice.env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        front.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert session.wait(60) == 255
            assert time.monotonic() - began < 31
        finally:
            front.send_signal(signal.SIGCONT)
            session.kill()


@pytest.mark.client(
    Client("OpenSSH ssh", "ssh", '`ssh -o "ProxyCommand ssh -p PORT -W %h:%p PROXY" LOGIN@node.example.com`', OPENSSH)
)
def test_plain_ssh_as_the_proxy_command(cluster: Cluster, alice: Person, login: str, need) -> None:
    known = f"{alice.home}/.ssh/known_hosts"
    inner = f"{need('ssh')} -F none -o 'UserKnownHostsFile {known}' -p {cluster.port} -W %h:%p localhost"
    done = alice.run(
        need("ssh"), *trusting(alice), "-o", f"ProxyCommand {inner}", f"{login}@node.example.com", "id -un"
    )
    assert done.stdout == f"{login}\n"
    asked_nothing(done)


@pytest.mark.client(
    Client("OpenSSH ssh", "ssh", "`ssh -p PORT PROXY`: the port's own SSH, which says how to go on", OPENSSH)
)
def test_plain_ssh_to_the_port_says_how_to_go_on(cluster: Cluster, alice: Person, need) -> None:
    done = alice.run(need("ssh"), *trusting(alice), "-p", str(cluster.port), "anyone@localhost", code=1)
    assert "tsh ssh LOGIN@NODE" in done.stderr
    assert "ssh -J PROXY:PORT" in done.stderr
    asked_nothing(done)


def test_the_ports_own_ssh_wants_a_certificate(cluster: Cluster, alice: Person, folder: Path, need) -> None:
    key = folder / "key"
    subprocess.run([need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    words = ["-i", key, "-o", "IdentitiesOnly yes", "-p", str(cluster.port), "alice@localhost"]
    done = alice.run(need("ssh"), *trusting(alice), *words, code=255, SSH_AUTH_SOCK="")
    assert "Permission denied (hostbased,publickey)" in done.stderr  # the one for users, the other for agents


def test_an_impostor_at_the_ports_address_is_refused(alice: Person, cluster: Cluster, folder: Path, need) -> None:
    known = folder / "known_hosts"
    key = folder / "other-ca"
    subprocess.run([need("ssh-keygen"), "-q", "-t", "ecdsa", "-N", "", "-f", key], check=True)
    known.write_text(f"@cert-authority [localhost]:{cluster.port} {key.with_suffix('.pub').read_text()}")
    words = ["-F", "none", "-o", f"UserKnownHostsFile {known}", "-o", "BatchMode yes", "-p", str(cluster.port)]
    done = alice.run(need("ssh"), *words, "localhost", code=255)
    assert "Host key verification failed" in done.stderr
