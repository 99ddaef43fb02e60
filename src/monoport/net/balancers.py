"""Load balancers in front of the port: who is believed, and the PROXY header that they send first.

Belongs here: `Balancers`, `introduce`. Does not belong here: the header's octets (`wire.proxyprotocol`), and counting
connections by source (`listener`).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

import structlog

from monoport.net.arrival import Arrival
from monoport.wire import proxyprotocol

_log = structlog.get_logger()


class Balancers:
    """The addresses whose connections may begin with a PROXY header."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._networks = tuple(networks)

    def __contains__(self, host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        return any(address in network for network in self._networks)


async def introduce(arrival: Arrival) -> bool:
    """Take the PROXY header, if there is one, off the first bytes of a connection that a balancer has opened.

    What is left of `arrival.first` may be empty. A connection without a header, and one that the balancer opened for
    itself (a health check), keeps the balancer's address.

    Returns: whether the header named a client, whose address and port `arrival.source` is now.
    Raises: ProxyHeaderError, LateError, EndOfStream, ConnectionError.
    """
    while (header := proxyprotocol.parse(arrival.first)) is None:
        await arrival.more()
    arrival.first = arrival.first[header.size :]
    if header.source is None:
        return False
    _log.debug("PROXY header", connection=arrival.id, source=header.source[0], balancer=arrival.source[0])
    arrival.source = header.source
    return True
