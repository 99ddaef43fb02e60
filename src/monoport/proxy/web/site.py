"""What the web pages and the web API say about this proxy: values only.

Belongs here: the answer of ping and find, which names are ours, what a page shows. Does not belong here: HTTP.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from monoport import __version__
from monoport.config import Address, Config
from monoport.protocols import table
from monoport.protocols.description import Description
from monoport.wire import names

MIN_CLIENT_VERSION = "0.1.0"  # the first version there is
_LOCAL = ("localhost", "127.0.0.1", "[::1]")  # names that every proxy's own certificate carries


@dataclass(frozen=True, slots=True)
class Site:
    """One proxy as its clients see it.

    cluster: the cluster's name. addresses: the public ones, canonical first. listeners: key of the configuration ->
    where such clients are served: there it listens, or, for those that the one port greets, the public address.
    certificate: whether `https_keypairs` shows browsers a certificate of the user's own choice.
    pins: gives the pins of the cluster's CA as they are now. greets: protocols that the one port speaks to clients that
    say nothing. protocols: the database protocols served.
    """

    cluster: str
    addresses: tuple[Address, ...]
    listeners: dict[str, str]
    certificate: bool
    pins: Callable[[], tuple[str, ...]]
    greets: frozenset[str] = frozenset()
    protocols: Mapping[str, Description] = field(default_factory=table)

    @property
    def address(self) -> Address:
        """The canonical public address."""
        return self.addresses[0]

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts, in canonical form, that a request of the web may be addressed to."""
        return frozenset({*(names.host(str(address)) for address in self.addresses), self.cluster, *_LOCAL})

    def describe(self) -> dict[str, Any]:
        """The answer of `GET /webapi/ping` and `/webapi/find`: clients decide from it whether to wrap."""
        return {
            "server_version": __version__,
            "min_client_version": MIN_CLIENT_VERSION,
            "cluster_name": self.cluster,
            "auth": {"type": "local", "second_factor": "off"},
            "proxy": {
                "tls_routing_enabled": True,
                "kube": {"enabled": False, "public_addr": "", "listen_addr": ""},
                "ssh": {
                    "listen_addr": self.listeners.get("listen_addr", ""),
                    "tunnel_listen_addr": self.listeners.get("tunnel_listen_addr", ""),
                    "web_listen_addr": self.listeners.get("web_listen_addr", ""),
                    "public_addr": str(self.address),
                },
                "db": {key: self.listeners.get(key, "") for key in _databases(self.protocols)},
            },
        }


def site(config: Config, cluster: str, pins: Callable[[], tuple[str, ...]]) -> Site:
    """Make the site of a configuration.

    Args:
        config: with the proxy service enabled.
        cluster: the cluster's name; the certificate of this host says it where the auth service is elsewhere.
        pins: gives the pins of the cluster's CA as they are now.
    """
    proxy = config.proxy_service
    keys = ("web_listen_addr", "listen_addr", "tunnel_listen_addr", *_databases(config.protocols))
    listeners = {key: str(value) for key in keys if (value := getattr(proxy, key)) is not None}
    greets = frozenset(proxy.on_silence())
    for name in greets:  # who has no port of their own that greets them comes to the one port
        if key := config.protocols[name].listen_key:
            listeners.setdefault(key, str(proxy.public_addr[0]))
    return Site(cluster, proxy.public_addr, listeners, bool(proxy.https_keypairs), pins, greets, config.protocols)


def _databases(protocols: Mapping[str, Description]) -> tuple[str, ...]:
    """The keys of ports that database protocols have for themselves."""
    return tuple(one.listen_key for one in protocols.values() if one.listen_key)


def is_ours(host: str, ours: frozenset[str], server_name: str | None) -> bool:
    """Whether a request with this Host belongs on the connection that it came on.

    A name must be one of ours. A bare IP address is accepted when the client named no server in its ClientHello, as
    clients do for addresses (RFC 6066 section 3): no other site's name can lead a browser here with one.

    Args:
        host: the Host header. ours: hosts in canonical form. server_name: the SNI, None if there was none.
    """
    try:
        canonical = names.host(host)
    except names.HostNameError:
        return False
    if canonical in ours:
        return True
    if server_name is not None:
        return False
    try:
        ip_address(canonical.strip("[]"))
    except ValueError:
        return False
    return True
