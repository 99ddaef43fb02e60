"""Which names a host's certificates may carry.

Belongs here: that one question. A certificate for a name of the front door would let an agent stand in for it.
"""

import ipaddress
from collections.abc import Iterable, Sequence

from monoport.auth.refusals import Invalid
from monoport.wire.names import HostNameError, canonical

INTERNAL = "teleport.cluster.local"  # routing's own names: bootstrap, dial-back, auth in hex
MAX_NAMES = 64  # a front door's public addresses and applications


def principals(host_id: str, name: str, cluster: str) -> tuple[str, ...]:
    """The names by which a host is found: its own, the same within the cluster, and its id; raises Invalid."""
    return tuple(dict.fromkeys((*nodenames(name, cluster), host_id)))


def nodenames(name: str, cluster: str) -> tuple[str, ...]:
    """The names by which a node is found besides its id; raises Invalid."""
    own = canonical_name(name)
    return tuple(dict.fromkeys((own, f"{own}.{cluster}")))


def check_agent_name(name: str, cluster: str, taken: Iterable[str]) -> None:
    """Raises Invalid if an agent's nodename belongs to the cluster's front door.

    Args:
        taken: names on the certificates of the cluster's proxies, wildcards too.
    """
    own = canonical_name(name)
    if own in {"kube", "db"}:
        raise Invalid(f"the name {own} is reserved: set another teleport.nodename")
    reserved = {*(_plain(one) for one in taken), cluster.lower(), "localhost"}
    for one in (own, f"{own}.{cluster}"):
        if one == INTERNAL or one.endswith(f".{INTERNAL}") or _is_address(one) or _covered(one, reserved):
            raise Invalid(f"the name {one} belongs to the cluster's front door: set another teleport.nodename")


def proxy_names(cluster: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names on a proxy's TLS certificate: those it asks for and those of routing itself.

    Raises:
        Invalid: one of them is neither a host name, a wildcard of one, nor an address, or there are too many.
    """
    if len(names) > MAX_NAMES:
        raise Invalid(f"{len(names)} names for one proxy, limit {MAX_NAMES}")
    asked = [one if _is_address(one) else _wild(one) for one in names]
    routing = (f"bootstrap.{INTERNAL}", f"*.dial.{INTERNAL}", cluster, "localhost", "127.0.0.1", "::1")
    return tuple(dict.fromkeys((*asked, *routing)))


def _wild(name: str) -> str:
    return f"*.{canonical_name(name[2:])}" if name.startswith("*.") else canonical_name(name)


def canonical_name(name: str) -> str:
    """A host name in its one form; raises Invalid."""
    try:
        return canonical(name)
    except HostNameError as error:
        raise Invalid(str(error)) from error


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _covered(name: str, reserved: Iterable[str]) -> bool:
    parent = f"*.{name.partition('.')[2]}"
    return any(one in (name, parent) for one in reserved)
