"""A host's identity on disk: private, whole after a crash at any moment, renewed in time, and of this cluster."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monoport.auth import keys
from monoport.daemon.host import Host, Identities
from monoport.errors import Failure

from .conftest import Auth

FILES = {"node.crt", "node.key", "node.ssh-cert.pub", "node.cas.json"}


class Crash(Exception):
    """The process is killed here."""


@pytest.fixture
def identities(tmp_path: Path) -> Identities:
    return Identities(tmp_path)


async def joined(identities: Identities, auth: Auth) -> Host:
    return identities.keep("node", *await auth.local.admit("node", "web"))


async def test_what_is_written_is_private_and_read_again(identities: Identities, auth: Auth, tmp_path: Path) -> None:
    host = await joined(identities, auth)
    written = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "identity").iterdir()}
    assert written == dict.fromkeys(FILES, 0o600)
    assert Identities(tmp_path).load("node", auth.local.cas.cluster) == host
    assert Identities(tmp_path).load("proxy") is None


async def test_a_renewal_killed_at_any_moment_leaves_a_whole_identity(
    identities: Identities, auth: Auth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose token has expired could not join again: the old identity or the new one must be there."""
    old = await joined(identities, auth)
    pair, granted = await auth.local.admit("node", "web")
    write = keys.write_private
    for moment in range(1 + len(FILES)):
        identities = Identities(tmp_path)
        identities.keep("node", keys.KeyPair(old.credentials.key, "", ""), _granted(old, granted))
        left = iter(range(moment))

        def killed(path: Path, text: str, left: object = left) -> None:
            if next(left, None) is None:  # type: ignore[call-overload]
                raise Crash
            write(path, text)

        monkeypatch.setattr(keys, "write_private", killed)
        with pytest.raises(Crash):
            identities.keep("node", pair, granted)
        monkeypatch.setattr(keys, "write_private", write)

        found = Identities(tmp_path).load("node")
        assert found is not None
        assert found.credentials.key == (pair.private if moment else old.credentials.key)
        found.key.pair()
        assert {path.name for path in (tmp_path / "identity").iterdir()} == FILES


def _granted(host: Host, granted: object) -> object:
    """What the auth service granted when this host joined."""
    return granted.model_copy(  # type: ignore[attr-defined]
        update={"certificate": host.credentials.certificate, "ssh_certificate": host.ssh_certificate}
    )


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("text", ["", "half of it", "\xff", "{}"])
async def test_damaged_files_are_replaced_not_a_crash(
    identities: Identities, auth: Auth, tmp_path: Path, name: str, text: str
) -> None:
    await joined(identities, auth)
    (tmp_path / "identity" / name).write_bytes(text.encode("latin-1"))
    assert identities.load("node") is None
    again = await joined(identities, auth)
    assert identities.load("node") == again


async def test_a_damaged_journal_is_no_crash(identities: Identities, auth: Auth, tmp_path: Path) -> None:
    host = await joined(identities, auth)
    journal = tmp_path / "identity" / "node.next.json"
    for text in ("", "[]", json.dumps({"node.crt": 3}), json.dumps({"../x": "y"})):
        journal.write_text(text)
        assert identities.load("node") in (None, host)
        assert not (tmp_path / "x").exists()
        host = await joined(identities, auth)
        assert identities.load("node") == host


async def test_it_is_of_one_cluster(identities: Identities, auth: Auth, tmp_path: Path) -> None:
    await joined(identities, auth)
    with pytest.raises(Failure) as refused:
        identities.load("node", "example.net")
    assert str(refused.value) == f"{tmp_path} belongs to the cluster example.com, not to example.net"


async def test_what_has_expired_is_no_identity(identities: Identities, auth: Auth, tmp_path: Path) -> None:
    host = await joined(identities, auth)
    assert Identities(tmp_path, lambda: host.expires).load("node") is None
    assert Identities(tmp_path, lambda: host.expires - timedelta(seconds=1)).load("node") == host


async def test_renewal_is_due_after_half_of_its_life(identities: Identities, auth: Auth) -> None:
    host = await joined(identities, auth)
    half = host.issued + (host.expires - host.issued) / 2
    assert not host.renewal_due(half - timedelta(seconds=1))
    assert host.renewal_due(half)
    assert not host.renewal_due(datetime.now(UTC))


async def test_a_proxys_certificate_carries_its_names(identities: Identities, auth: Auth) -> None:
    names = ("proxy.example.com", "*.db.proxy.example.com", "192.0.2.7", "2001:db8::1")
    host = identities.keep("proxy", *await auth.local.admit("proxy", "front", names))
    assert host.carries(names)
    assert host.carries(())
    assert not host.carries((*names, "more.example.com"))
