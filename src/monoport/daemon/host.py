"""One role of this host in its cluster: its certificates, where they come from, and their renewal.

Belongs here: `data_dir/identity/<role>.*`, joining with a token, renewing in time. Does not belong here: what the role
does with its certificates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509

from monoport.access.identity import Kind, from_ssh, from_x509
from monoport.auth import keys
from monoport.auth.authorities import TrustedCas, pin
from monoport.auth.client import AuthClient
from monoport.auth.keys import Credentials
from monoport.auth.messages import HostCertificates
from monoport.client import front
from monoport.client.names import Address
from monoport.client.webapi import WebApi
from monoport.config import Config
from monoport.errors import Failure
from monoport.tunnel.link import HostKey

_log = structlog.get_logger()


@dataclass(slots=True)
class Host:
    """The certificates that one role of this host holds at the moment; `renew` replaces them in place."""

    role: str
    host_id: str
    credentials: Credentials
    ssh_certificate: str
    issued: datetime
    expires: datetime

    @property
    def key(self) -> HostKey:
        """The SSH host key and its certificate."""
        return HostKey(self.credentials.key, self.ssh_certificate)

    def trust(self, cas: TrustedCas) -> None:
        """Believe these CAs from now on, as the watch tells them."""
        self.credentials = Credentials(self.credentials.certificate, self.credentials.key, cas)

    def carries(self, names: Sequence[str]) -> bool:
        """Whether the certificate is for all of these names."""
        if not names:
            return True  # agents are no TLS servers and have none
        parsed = x509.load_pem_x509_certificate(self.credentials.certificate.encode())
        found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        shown = {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}
        return shown.issuperset(names)

    def renewal_due(self, now: datetime) -> bool:
        """Whether half of the certificate's life is over."""
        return now >= self.issued + (self.expires - self.issued) / 2


class Identities:
    """The certificates of every role of this daemon, in its data folder."""

    def __init__(self, data_dir: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._data_dir = data_dir
        self._now = now

    def load(self, role: str, cluster: str = "") -> Host | None:
        """What was written before, or None if there is nothing that is still good.

        cluster: where it must belong, "" for any.
        """
        certificate, key, ssh_certificate = keys.identity_files(self._data_dir, role)
        cas = self._data_dir / "identity" / f"{role}.cas.json"
        try:
            self._complete(role)
            trusted = TrustedCas.from_json(cas.read_text())
            host = _host(role, certificate.read_text(), key.read_text(), ssh_certificate.read_text(), trusted)
        except FileNotFoundError:
            return None
        except (Failure, ValueError, OSError) as error:
            _log.warning("the identity of this host cannot be read: it joins anew", role=role, error=str(error))
            return None
        if cluster and trusted.cluster != cluster:
            raise Failure(f"{self._data_dir} belongs to the cluster {trusted.cluster}, not to {cluster}")
        return host if host.expires > self._now() else None

    def keep(self, role: str, pair: keys.KeyPair, granted: HostCertificates) -> Host:
        """Write down what a join or renewal brought and return it."""
        host = _host(role, granted.certificate, pair.private, granted.ssh_certificate, granted.cas)
        certificate, key, ssh_certificate = keys.identity_files(self._data_dir, role)
        parts = {
            certificate.name: granted.certificate,
            ssh_certificate.name: granted.ssh_certificate,
            f"{role}.cas.json": json.dumps(granted.cas.to_json()),
            key.name: pair.private,
        }
        # All of it in one step first: a process killed between the files finds there what the others are to be.
        keys.write_private(self._next(role), json.dumps(parts))
        self._complete(role)
        return host

    def _next(self, role: str) -> Path:
        return self._data_dir / "identity" / f"{role}.next.json"

    def _complete(self, role: str) -> None:
        """Finish what `keep` has begun; raises ValueError or OSError."""
        following = self._next(role)
        if not following.exists():
            return
        parts = json.loads(following.read_text())
        folder = following.parent
        for name in sorted(parts):
            if name.startswith(f"{role}.") and name == Path(name).name:
                keys.write_private(folder / name, str(parts[name]))
        following.unlink()

    async def renew(self, host: Host, client: AuthClient, names: Sequence[str] | None = None) -> None:
        """Replace a host's certificates by fresh ones; raises AuthError."""
        pair = keys.generate()
        fresh = self.keep(host.role, pair, await client.renew_host(pair.public, pair.ssh_public, names))
        host.credentials, host.ssh_certificate = fresh.credentials, fresh.ssh_certificate
        host.issued, host.expires = fresh.issued, fresh.expires
        _log.info("host certificate renewed", role=host.role, expires=host.expires.isoformat(timespec="seconds"))


def _host(role: str, certificate: str, key: str, ssh_certificate: str, cas: TrustedCas) -> Host:
    parsed = x509.load_pem_x509_certificate(certificate.encode())
    identity = from_x509(parsed, cas)
    if identity.kind is not Kind.HOST:
        raise Failure(f"{identity} is no host")
    if from_ssh(ssh_certificate, cas).name != identity.name:
        raise Failure(f"the SSH certificate of {identity} is another host's")
    credentials = Credentials(certificate, key, cas)
    credentials.context()  # raises Failure where certificate and key do not fit
    return Host(role, identity.name, credentials, ssh_certificate, parsed.not_valid_before_utc, identity.expires)


async def join(config: Config, role: str, identities: Identities) -> Host:
    """Join the cluster as one role, with the token of the configuration, through a proxy or at the auth service itself.

    The bootstrap name there is verified by CA pin: neither DNS nor public certificates are needed.
    Raises Failure: nobody to join at, no pin or no token is configured, or the cluster refused.
    """
    teleport = config.teleport
    server = teleport.proxy_server or teleport.auth_server
    if server is None:
        message = "expected host:port of a proxy of the cluster to join, or of its auth service"
        raise Failure(f"neither teleport.proxy_server nor teleport.auth_server is set: {message}")
    if not teleport.join_params.token_name:
        raise Failure("teleport.join_params.token_name is not set: expected a token of `tctl tokens add`")
    if not teleport.ca_pin:
        raise Failure("teleport.ca_pin is not set: expected the pin that `tctl status` prints")
    address = Address(server.host, server.port)
    whom = "the proxy" if teleport.proxy_server is not None else "the auth service"
    trusted = await _pinned(address, teleport.ca_pin, whom)
    context = front.cluster_context(trusted, front.HTTP_ALPN)
    pair = keys.generate()
    async with await front.dial(address, context, front.BOOTSTRAP, whom=whom) as stream:
        answer = await WebApi(stream, front.BOOTSTRAP).post(
            "/webapi/join",
            {
                "token": teleport.join_params.token_name,
                "name": teleport.nodename,
                "roles": [role],
                "public_key": pair.public,
                "ssh_public_key": pair.ssh_public,
                "names": [],
            },
        )
    granted = HostCertificates.model_validate(answer)
    if not set(granted.cas.host) & set(trusted):
        raise Failure(f"{address} answered with CAs that the pin does not vouch for")
    _log.info("joined", cluster=granted.cluster, role=role, host=granted.host_id)
    return identities.keep(role, pair, granted)


async def _pinned(address: Address, pins: Sequence[str], whom: str) -> tuple[str, ...]:
    """The host CAs that the cluster offers and a pin vouches for; nothing secret travels on this connection."""
    async with await front.dial(address, front.blind_context(), front.BOOTSTRAP, whom=whom) as stream:
        offered = TrustedCas.from_json(await WebApi(stream, front.BOOTSTRAP).get("/webapi/cas"))
    found = tuple(pem for pem in offered.host if pin(pem) in pins)
    if not found:
        seen = ", ".join(pin(pem) for pem in offered.host) or "none"
        expected = ", ".join(pins)
        raise Failure(f"the cluster at {address} has another CA than ca_pin says: expected {expected}, got {seen}")
    return found
