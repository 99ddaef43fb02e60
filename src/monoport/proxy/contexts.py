"""Which TLS context a route gets.

Belongs here: one `ssl.SSLContext` per trust domain, certificate and protocol, chosen before the handshake. Does not
belong here: reading certificate files (`daemon`), issuing certificates (`auth`), the handshake itself (`net.tls`).

Contexts are never shared between trust domains and never swapped during a handshake: a swap in an SNI callback does
not enforce CERT_REQUIRED, and a session ticket of one name would resume under another.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cryptography import x509

from monoport.errors import Failure
from monoport.routing.outcome import Ask, Show, Tls, Trust

# Forward-secret AEAD suites only, for the routes that still accept TLS 1.2 (RFC 9325 section 4.2).
TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


QUICK = 1024  # routes remembered by identity: more than a table has, in case values are made per connection


class ContextError(Failure):
    """A certificate, its key or a CA cannot be used; the text says which and why."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate chain and its private key, both PEM; `origin` names them in errors."""

    certificate: bytes
    key: bytes
    origin: str = "certificate"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The DNS names of the certificate, lower case, wildcards as `*.rest`."""
        try:
            leaf = x509.load_pem_x509_certificate(self.certificate)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        except ValueError as error:
            raise ContextError(f"{self.origin}: not a PEM certificate: {error}") from error
        return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))

    def serves(self, server_name: str) -> bool:
        """Whether the certificate is for `server_name` (RFC 6125 section 6.4: a wildcard is one whole label)."""
        return server_name in self.names or f"*.{server_name.partition('.')[2]}" in self.names


@dataclass(frozen=True, slots=True)
class _Certificates:
    cluster: KeyPair
    public: tuple[KeyPair, ...]
    trust: Mapping[Trust, str]  # PEM, concatenated


class Contexts:
    """The contexts of a proxy, made when first needed and kept until the certificates change."""

    def __init__(
        self, cluster: KeyPair, public: Sequence[KeyPair] = (), trust: Mapping[Trust, Sequence[str]] | None = None
    ) -> None:
        """See `update`."""
        self._made: dict[tuple[Tls, int], ssl.SSLContext] = {}
        self.update(cluster, public, trust or {})

    def update(self, cluster: KeyPair, public: Sequence[KeyPair], trust: Mapping[Trust, Sequence[str]]) -> None:
        """Use these certificates for every handshake from now on; running connections keep theirs.

        cluster: the host CA's certificate for this proxy. public: `https_keypairs`; empty: the cluster's is shown.
        trust: the PEM certificates of the CAs whose client certificates verify. Raises ContextError, changing nothing.
        """
        fresh = _Certificates(
            cluster,
            tuple(public) or (cluster,),
            {domain: "\n".join(authorities) for domain, authorities in trust.items() if authorities},
        )
        made: dict[tuple[Tls, int], ssl.SSLContext] = {}
        for number, pair in enumerate((fresh.cluster, *fresh.public)):
            tls = Tls(Show.PUBLIC if number else Show.CLUSTER, Ask.NONE, Trust.NONE, None)
            _ = pair.names
            made[tls, max(0, number - 1)] = _build(tls, pair, None)
        for tls in (Tls(Show.CLUSTER, Ask.REQUIRED, domain, None) for domain in fresh.trust):
            made[tls, 0] = _build(tls, fresh.cluster, fresh.trust[tls.trust])
        self._certificates, self._made = fresh, made
        # A table's routes carry the same few Tls values for ever: found by identity, which the kept value secures.
        self._quick: dict[tuple[int, int], tuple[Tls, ssl.SSLContext]] = {}

    def context(self, tls: Tls, server_name: str | None = None) -> ssl.SSLContext:
        """The context for a route's `tls`; among several public certificates the one for `server_name`, else the first.

        Raises ContextError when client certificates are asked for and no CA is known that could verify them.
        """
        number = 0
        if tls.show is Show.PUBLIC and server_name is not None and len(self._certificates.public) > 1:
            number = self._number(server_name)
        quick = self._quick.get((id(tls), number))
        if quick is not None:
            return quick[1]
        context = self._made.get((tls, number))
        if context is None:
            certificates = self._certificates
            pair = certificates.cluster if tls.show is Show.CLUSTER else certificates.public[number]
            context = self._made[tls, number] = _build(tls, pair, certificates.trust.get(tls.trust))
        if len(self._quick) < QUICK:
            self._quick[id(tls), number] = (tls, context)
        return context

    def _number(self, server_name: str) -> int:
        for number, pair in enumerate(self._certificates.public):
            if pair.serves(server_name):
                return number
        return 0


def _build(tls: Tls, pair: KeyPair, authorities: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if tls.tls12 else ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(TLS12_CIPHERS)
    if tls.alpn is not None:
        context.set_alpn_protocols([tls.alpn])
    _load(context, pair)
    if tls.ask is Ask.NONE:
        # Browsers come back: one ticket, not OpenSSL's two. Our own clients keep no sessions between processes.
        context.num_tickets = 1 if tls.show is Show.PUBLIC else 0
        return context
    # A resumed session would skip the certificate check: no tickets where one is asked for.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    if authorities is None:
        raise ContextError(f"no {tls.trust} CA is known: client certificates cannot be verified")
    try:
        context.load_verify_locations(cadata=authorities)
    except (ssl.SSLError, ValueError) as error:
        raise ContextError(f"the {tls.trust} CA cannot be used: {error}") from error
    context.verify_mode = ssl.CERT_REQUIRED if tls.ask is Ask.REQUIRED else ssl.CERT_OPTIONAL
    return context


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Give OpenSSL the pair through a file in memory only: `load_cert_chain` takes nothing but paths."""
    fd = os.memfd_create("key pair", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(pair.certificate.rstrip() + b"\n" + pair.key)
        context.load_cert_chain(f"/proc/self/fd/{fd}", password="")  # empty: an encrypted key must not prompt
    except (ssl.SSLError, ValueError) as error:
        raise ContextError(f"{pair.origin}: certificate and key cannot be used together: {error}") from error
    finally:
        os.close(fd)
