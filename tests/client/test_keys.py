"""Certificates for our key, for others, and for keys of kinds that nobody here reads."""

from __future__ import annotations

import base64

import pytest

from monoport.auth.keys import generate
from monoport.client.keys import owns_ssh


def line(kind: str, *fields: bytes) -> str:
    data = b"".join(len(field).to_bytes(4, "big") + field for field in (kind.encode(), *fields))
    return f"{kind} {base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    "kind",
    [
        "ssh-dss-cert-v01@openssh.com",
        "sk-ssh-ed25519-cert-v01@openssh.com",
        "webauthn-sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
        "ssh-mldsa-cert-v01@example.com",
    ],
)
def test_a_certificate_of_a_foreign_kind_is_for_another_key(kind: str) -> None:
    assert owns_ssh(generate(), line(kind, b"n" * 32, b"k" * 32)) is False


def test_a_key_is_no_certificate() -> None:
    pair = generate()
    assert owns_ssh(pair, pair.ssh_public) is False
    with pytest.raises(ValueError, match=r"."):
        owns_ssh(pair, "ssh-ed25519-cert-v01@openssh.com !!")
