"""The one marked line in the user's known_hosts."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from monoport.client.knownhosts import forget_hosts, trust_hosts
from monoport.client.names import Address
from monoport.client.profile import Home

from .conftest import Cas, signed_in

OTHERS = (
    b"github.com ssh-ed25519 AAAAC3Nz comment\r\n"
    b"|1|hash=|hash= ssh-rsa AAAA\n"
    b"\n"
    b"# monoport:example.com is mentioned here\n"
    b"@cert-authority *.example.com ssh-rsa AAAA somebody else's\n"
    b"\xff\xfe not text \x0c\x85\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".ssh" / "known_hosts"


def ours(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line.endswith(b" monoport:example.com")]


def test_the_file_is_made_private_with_one_line(home: Home, cas: Cas, path: Path) -> None:
    profile = signed_in(home, cas, 3080)
    trust_hosts(home, path, profile)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    kind, key = profile.ssh_host_cas[0].split()[:2]
    wanted = f"@cert-authority *.example.com,[*.example.com]:*,[localhost]:3080 {kind} {key} monoport:example.com\n"
    assert path.read_text() == wanted


def test_logging_in_again_changes_not_a_byte(home: Home, cas: Cas, path: Path) -> None:
    profile = signed_in(home, cas, 3080)
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHERS)
    trust_hosts(home, path, profile)
    first, inode = path.read_bytes(), path.stat().st_ino
    trust_hosts(home, path, profile)
    assert path.read_bytes() == first
    assert path.stat().st_ino == inode
    assert len(ours(path)) == 1


def test_a_new_ca_takes_the_lines_place_and_copies_of_it_go(home: Home, cas: Cas, path: Path) -> None:
    profile = signed_in(home, cas, 3080)
    trust_hosts(home, path, profile)
    line = path.read_bytes()
    path.write_bytes(line + OTHERS + line)
    new = replace(profile, cas=Cas().trusted.to_json())
    trust_hosts(home, path, new)
    content = path.read_bytes()
    assert len(ours(path)) == 1
    assert line not in content
    assert content.endswith(OTHERS)


@pytest.mark.parametrize("before", [b"", OTHERS, OTHERS[:-1] + b"\n", b"one\n", b"\n\n"])
def test_logout_restores_every_byte(home: Home, cas: Cas, path: Path, before: bytes) -> None:
    profile = signed_in(home, cas, 3080)
    path.parent.mkdir(parents=True)
    path.write_bytes(before)
    path.chmod(0o644)
    trust_hosts(home, path, profile)
    assert path.read_bytes().startswith(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    forget_hosts(home, path, "example.com")
    assert path.read_bytes() == before


def test_a_last_line_without_its_end_stays_a_line_of_its_own(home: Home, cas: Cas, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"host ssh-rsa AAAA")
    trust_hosts(home, path, signed_in(home, cas, 3080))
    assert path.read_bytes().startswith(b"host ssh-rsa AAAA\n@cert-authority ")


def test_two_clusters_have_a_line_each(home: Home, cas: Cas, path: Path) -> None:
    trust_hosts(home, path, signed_in(home, cas, 3080))
    trust_hosts(home, path, signed_in(home, Cas("other.net"), 3081, host="other"))
    assert path.read_bytes().count(b"@cert-authority") == 2
    forget_hosts(home, path, "other.net")
    assert len(ours(path)) == path.read_bytes().count(b"@cert-authority") == 1


def test_forgetting_makes_no_file(home: Home, path: Path) -> None:
    forget_hosts(home, path, "example.com")
    assert not path.exists()


@pytest.mark.parametrize(
    ("port", "also"),
    [(3023, ",[localhost]:3023"), (22, ",localhost"), (3080, "")],
    ids=["own", "usual", "the-one-port"],
)
def test_the_proxys_own_port_for_ssh_is_trusted_too(home: Home, cas: Cas, path: Path, port: int, also: str) -> None:
    profile = replace(signed_in(home, cas, 3080), plain_ssh=Address("localhost", port))
    trust_hosts(home, path, profile)
    assert path.read_text().split()[1] == f"*.example.com,[*.example.com]:*,[localhost]:3080{also}"
