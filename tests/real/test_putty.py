"""PuTTY's plink and psftp, by what `tsh config --putty` writes for them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .clients import Client, program
from .cluster import Cluster, Person

SETUP = "`tsh config --putty`, then "
TRUSTED = "key in the agent, hosts trusted by `tsh config --putty`: "
SESSION = "monoport-example.com"


@pytest.fixture
def putty(cluster: Cluster, alice: Person, login: str) -> Person:
    """Alice at a machine without ssh-agent, whose PuTTY `tsh config --putty` has set up."""
    person = cluster.person("alice")
    cluster.login(person, "--no-ssh-setup")
    assert f"plink -load {SESSION}" in person.tsh("config", "--putty").stdout
    return person


@pytest.mark.client(
    Client("plink", "ssh", SETUP + f"`plink -load {SESSION} LOGIN@node.example.com COMMAND`", program("plink", "-V"))
)
def test_plink_by_the_session(putty: Person, login: str, need) -> None:
    plink = [need("plink"), "-batch", "-load", SESSION]
    done = putty.run(*plink, f"{login}@node.example.com", "id -un; exit 4", code=4)
    assert done.stdout == f"{login}\n"
    cached = Path(putty.home / ".putty/sshhostkeys")
    assert not cached.exists() or not cached.read_text(), "the host was verified by its certificate"


@pytest.mark.client(
    Client("psftp", "ssh", SETUP + f"`psftp -load {SESSION} LOGIN@node.example.com`", program("psftp", "-V"))
)
def test_psftp_by_the_session(putty: Person, login: str, folder: Path, need) -> None:
    (folder / "sent").write_bytes(os.urandom(700_000))
    remote = f"/tmp/monoport-putty-{os.getpid()}"
    (folder / "batch").write_text(f"put {folder}/sent {remote}\nget {remote} {folder}/back\nrm {remote}\n")
    words = ["-batch", "-load", SESSION, "-b", folder / "batch", f"{login}@node.example.com"]
    putty.run(need("psftp"), *words)
    assert (folder / "back").read_bytes() == (folder / "sent").read_bytes()


@pytest.mark.client(
    Client(
        "plink",
        "ssh",
        f'{TRUSTED}`plink -proxycmd "tsh proxy ssh %host:%port" LOGIN@node.example.com COMMAND`',
        program("plink", "-V"),
    )
)
def test_plink_with_proxycmd_and_an_agent(alice: Person, putty: Person, login: str, need) -> None:
    agent = {"SSH_AUTH_SOCK": alice.environment["SSH_AUTH_SOCK"]}
    words = ["-batch", "-agent", "-proxycmd", "tsh proxy ssh %host:%port", f"{login}@node.example.com", "id -un"]
    assert putty.run(need("plink"), *words, **agent).stdout == f"{login}\n"


@pytest.mark.client(
    Client(
        "psftp",
        "ssh",
        f'{TRUSTED}`psftp -proxycmd "tsh proxy ssh %host:%port" LOGIN@node.example.com`',
        program("psftp", "-V"),
    )
)
def test_psftp_with_proxycmd_and_an_agent(alice: Person, putty: Person, login: str, folder: Path, need) -> None:
    (folder / "sent").write_bytes(os.urandom(300_000))
    remote = f"/tmp/monoport-putty-{os.getpid()}"
    (folder / "batch").write_text(f"put {folder}/sent {remote}\nget {remote} {folder}/back\nrm {remote}\n")
    agent = {"SSH_AUTH_SOCK": alice.environment["SSH_AUTH_SOCK"]}
    words = ["-batch", "-agent", "-proxycmd", "tsh proxy ssh %host:%port", "-b", folder / "batch"]
    putty.run(need("psftp"), *words, f"{login}@node.example.com", **agent)
    assert (folder / "back").read_bytes() == (folder / "sent").read_bytes()


def test_the_session_survives_a_new_login_and_goes_with_the_logout(
    cluster: Cluster, putty: Person, login, need
) -> None:
    cluster.login(putty, "--no-ssh-setup")
    words = [need("plink"), "-batch", "-load", SESSION, f"{login}@node.example.com", "true"]
    putty.run(*words)
    putty.tsh("logout")
    assert list((putty.home / ".putty").rglob("monoport*")) == []
    assert list((putty.home / ".tsh").rglob("*.ppk")) == []


def test_plink_refuses_a_host_of_another_ca(putty: Person, login: str, folder: Path, need) -> None:
    subprocess.run([need("ssh-keygen"), "-q", "-t", "ecdsa", "-N", "", "-f", folder / "ca"], check=True)
    authority = putty.home / ".putty/sshhostcas" / SESSION
    ours = authority.read_text().splitlines()[0]
    authority.write_text(authority.read_text().replace(ours, f"PublicKey={(folder / 'ca.pub').read_text().split()[1]}"))
    words = ["-batch", "-load", SESSION, f"{login}@node.example.com", "id -un"]
    done = putty.run(need("plink"), *words, code=1)
    assert "host key" in done.stderr.lower()
    assert done.stdout == ""
