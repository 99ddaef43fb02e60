"""Moving a login's bytes, what a password's proof is tied to, and servers of a few lines that play foul in it."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import threading
from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from monoport.agents.database.postgres_login import end_point, open_session
from monoport.net.memory import pair
from monoport.net.stream import Stream
from monoport.wire.postgres.backend import Backend
from monoport.wire.postgres.login import Login
from monoport.wire.postgres.messages import error_response, message

from .postgres_door import opened, psql
from .scripted import KEY, OK, READY, Play, Script, read_message, read_packet
from .world import Cluster

# Of P-256, signed with SHA-1, which the libraries of today no longer write: openssl req -x509 -sha1
SHA1 = b64decode(
    "MIIBbTCCARSgAwIBAgIUIN6PBWIz9vH8gPvAyWzbe4B0ff4wCQYHKoZIzj0EATAMMQowCAYDVQQDDAF4MCAXDTI2MT"
    "EzMDA3NDk0OVoYDzIxMjYxMTA2MDc0OTQ5WjAMMQowCAYDVQQDDAF4MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"
    "BjCe2c0jDklUO6Z7GUtwbisZWHqd9+i0CPz6B/f0x90Rpl3d9JioXHF6YYadLZZoU0sZkzv9vsdLPjUmrMCjQ6NTMF"
    "EwHQYDVR0OBBYEFPtH7zwOE2mgWteW86a9gQn4PLv7MB8GA1UdIwQYMBaAFPtH7zwOE2mgWteW86a9gQn4PLv7MA8G"
    "A1UdEwEB/wQFMAMBAf8wCQYHKoZIzj0EAQNIADBFAiEAmMU/OXP8W2pK+oMyFNQxt48zL4gQu6QBVRqcWU9UdjgCID"
    "jQjPbHdRmweIezRtNKPH2qD5na+ePdPchbFnzKyhDE"
)
_SHA1_SIGNATURE = bytes.fromhex("06072a8648ce3d0401")  # ecdsa-with-SHA1


def signed(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, algorithm: hashes.HashAlgorithm | None
) -> bytes:
    name = x509.Name([])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now + timedelta(days=1))
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def test_a_channel_is_known_by_the_hash_that_signed_its_certificate() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for algorithm, digest in ((hashes.SHA256(), "sha256"), (hashes.SHA384(), "sha384"), (hashes.SHA512(), "sha512")):
        certificate = signed(key, algorithm)
        assert end_point(certificate) == hashlib.new(digest, certificate).digest()
    assert end_point(SHA1) == hashlib.sha256(SHA1).digest(), "RFC 5929: never a weaker hash"


def test_what_has_no_channel_binding() -> None:
    assert end_point(signed(ed25519.Ed25519PrivateKey.generate(), None)) is None
    assert SHA1.count(_SHA1_SIGNATURE) == 2
    assert end_point(SHA1.replace(_SHA1_SIGNATURE, _SHA1_SIGNATURE[:-1] + b"\x7f")) is None
    assert end_point(b"no certificate") is None


class Watched(Backend):
    """Notes which threads its keys are derived in."""

    def __init__(self, login: Login | None) -> None:
        super().__init__(99, b"ours", 0, (), login)
        self.threads: list[tuple[bool, int]] = []

    def receive(self, data: bytes) -> bytes:
        self.threads.append((self.admitted, threading.get_ident()))
        return super().receive(data)


@pytest.mark.parametrize("login", [None, Login("alice", "secret", "nonce", verified=True)])
async def test_keys_are_derived_off_the_loop(login: Login | None) -> None:
    (server, far), (client, near) = pair(), pair()
    backend = Watched(login)
    if login is not None:
        await far.write(message(b"R", struct.pack("!I", 3)) + OK)
    else:
        await far.write(OK)

    async def rest(stream: Stream) -> None:
        assert await stream.read_exactly(len(b"startup")) == b"startup"
        if login is not None:
            assert await read_message(stream) == (b"p", b"secret\0")
        await stream.write(KEY + READY)

    async with asyncio.TaskGroup() as group:
        group.create_task(rest(far))
        said = await open_session(server, b"startup", backend, client)
    assert said.endswith(READY)
    assert (await near.read()).startswith(OK), "the client hears of nothing before AuthenticationOk"
    here = threading.get_ident()
    assert [(admitted, thread == here) for admitted, thread in backend.threads] == [
        (False, login is None),
        (True, True),
    ]


async def _asks(stream: Stream, body: bytes) -> None:
    await read_packet(stream)
    await stream.write(message(b"R", body))


async def leaves(stream: Stream) -> None:
    await _asks(stream, b"\0\0\0\5salt")
    await read_message(stream)


async def repeats(stream: Stream) -> None:
    """A server that has the password's word repeated to whoever listens."""
    await _asks(stream, b"\0\0\0\3")
    _, said = await read_message(stream)
    text = said.rstrip(b"\0").decode()
    await stream.write(error_response("FATAL", "53300", f"no room for {text}", hint=text))
    await stream.read()


async def counts(stream: Stream) -> None:
    await _asks(stream, b"\0\0\0\12SCRAM-SHA-256\0\0")
    _, said = await read_message(stream)
    nonce = said.rpartition(b"r=")[2]
    await stream.write(message(b"R", b"\0\0\0\13r=" + nonce + b"more,s=c2FsdA==,i=999999999"))
    await stream.read()


async def hurries(stream: Stream) -> None:
    await _asks(stream, b"\0\0\0\12SCRAM-SHA-256\0\0")
    await read_message(stream)
    await stream.write(OK + KEY + READY)
    await stream.read()


async def kerberos(stream: Stream) -> None:
    await _asks(stream, b"\0\0\0\7")
    await stream.read()


@pytest.fixture
def file(tmp_path: Path, need: Callable[[str], str]) -> Path:
    need("psql")
    found = tmp_path / "passwords"
    found.write_text("alice:open sesame\n")
    found.chmod(0o600)
    return found


@pytest.mark.parametrize(
    ("play", "says"),
    [
        (leaves, "cannot be logged in to: it ends the connection in the middle"),
        (repeats, "breaks off its agent's login"),
        (counts, "it breaks SCRAM: the server asks for 999999999 iterations, expected 4096 to 1000000"),
        (hurries, "it lets us in before it has proven that it knows the password"),
        (kerberos, "asks for GSSAPI authentication, but its agent has a password"),
    ],
)
async def test_servers_that_play_foul(
    cluster: Cluster, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], play: Play, says: str
) -> None:
    async with (
        Script(cluster, play).running() as server,
        opened(cluster, server, tmp_path, password_file=file) as door,
    ):
        code, out, err = await psql(door, door.dsn(cluster.user()), "-wc", "select 1")
    assert (code, out) == (2, "")
    assert says in err
    assert "sesame" not in err + capsys.readouterr().out
