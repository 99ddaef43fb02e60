"""What a host's own sshd needs of the agent beside it: the user CA, a host certificate, and lines of configuration.

Belongs here: these files, kept current. Does not belong here: relaying to sshd and answering it
(`agents.node.openssh`).
"""

from __future__ import annotations

import asyncio
import getpass
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    load_ssh_public_identity,
    load_ssh_public_key,
)

from monoport.agents.node import asking
from monoport.auth import keys
from monoport.daemon.member import Member
from monoport.errors import Failure

FOLDER = "openssh"  # in data_dir
LOOK_SECONDS = 60.0  # between looks at the CA, the host key and the certificate's end
LOOPBACK = ("127.0.0.1", "::1")  # the addresses that dialling loopback is done from
MAX_KEY = 16_384  # bytes of a public key file: RSA of 16384 bits takes 2.8 KiB

_log = structlog.get_logger()


class Sshd:
    """The files of one sshd, in a folder of the data folder.

    Args:
        data_dir: of this daemon. host_key: the file with sshd's public host key.
        member: the node that is certified.
    """

    def __init__(self, data_dir: Path, host_key: Path, member: Member) -> None:
        self.folder = data_dir / FOLDER
        self.socket = self.folder / "agent.sock"
        self._authority, self._certificate = self.folder / "user-ca.pub", self.folder / "host-cert.pub"
        self._host_key, self._member = host_key, member

    def configuration(self) -> str:
        """The lines for sshd_config(5)."""
        command = [sys.executable, "-I", "-S", str(Path(asking.__file__).resolve()), str(self.socket)]
        # /usr/bin/env: sshd starts nothing that lies in a folder of others than root, as a virtual environment may
        words = " ".join(word.replace("%", "%%") for word in map(shlex.quote, ["/usr/bin/env", *command]))
        return (
            "# Written by monoport; Include it from /etc/ssh/sshd_config.\n"
            f'HostCertificate "{self._certificate}"\n'
            # The agent dials from here. Who comes past the proxy has no lease that a lock or expiry would end.
            f"Match Address {','.join(LOOPBACK)}\n"
            f'    TrustedUserCAKeys "{self._authority}"\n'
            f"    AuthorizedPrincipalsCommand {words} %u %k\n"
            f"    AuthorizedPrincipalsCommandUser {getpass.getuser()}\n"
            "    AuthorizedPrincipalsFile none\n"
            "Match all\n"
        )

    async def prepare(self) -> None:
        """Write everything for the first time; raises Failure."""
        self._write_authority()
        if not self._certificate.exists() or self._due():
            await self._renew()
        path = self.folder / "sshd.conf"
        keys.write_private(path, self.configuration())
        _log.info("sshd is registered as a node", sshd_config=f"Include {path}")

    async def run(self) -> None:
        """Keep the files current until cancelled; what cannot be renewed now is tried again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self._write_authority()
                if self._due():
                    await self._renew()
            except (Failure, OSError) as error:
                _log.error("sshd's certificate is not renewed", error=str(error))

    def _write_authority(self) -> None:
        text = "".join(f"{line.strip()}\n" for line in self._member.cache.cas.ssh_user)
        if not self._authority.exists() or self._authority.read_text() != text:
            keys.write_private(self._authority, text)

    def _public(self) -> str:
        try:
            with self._host_key.open() as file:
                return " ".join(file.read(MAX_KEY).split()[:2])
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise Failure(f"ssh_service.openssh.host_key: {self._host_key}: {reason}") from error

    def _due(self) -> bool:
        """Whether half of the certificate's life is over, or sshd has another key."""
        found = load_ssh_public_identity(self._certificate.read_bytes())
        assert isinstance(found, SSHCertificate)
        public = found.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        began, ends = (datetime.fromtimestamp(at, UTC) for at in (found.valid_after, found.valid_before))
        return public != self._public() or datetime.now(UTC) >= began + (ends - began) / 2

    async def _renew(self) -> None:
        line = self._public()
        try:
            key = load_ssh_public_key(line.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Failure(f"ssh_service.openssh.host_key: {self._host_key} is no public key of SSH") from error
        public = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        granted = await self._member.client.renew_host(public, line)
        keys.write_private(self._certificate, granted.ssh_certificate.strip() + "\n")
        _log.info("sshd's host key is certified", file=str(self._certificate))
