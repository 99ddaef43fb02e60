"""The routing table: built once from a configuration, frozen, searched by match and explain.

Belongs here: what a configuration may ask of routing, the frozen table with its indexes, and the rejection of what
could not be told apart. Does not: the rows themselves (rows), a protocol's own octets (they come in as DatabaseRule).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from monoport.routing import names, rows
from monoport.routing.conditions import Begins, Named, Offers, Signature, Silence, Under
from monoport.routing.outcome import Kind
from monoport.routing.rows import DatabaseRule, TableError
from monoport.routing.rules import Rank, Rule
from monoport.wire.clienthello import ClientHello, HelloError
from monoport.wire.names import HostNameError, authority, canonical, host

__all__ = ["DatabaseRule", "State", "Table", "TableError", "build"]


@dataclass(frozen=True, slots=True)
class State:
    """What one state of a connection looks up: rules by exact SNI, by the domain above SNI, by ALPN, by first octet.

    hellos: the remaining rules for a ClientHello, in order. otherwise: the rule that always holds.
    """

    hosts: Mapping[str, Rule]
    domains: Mapping[str, Rule]
    protocols: Mapping[str, Rule]
    hellos: tuple[Rule, ...]
    openings: Mapping[int, tuple[Rule, ...]]
    malformed: Rule
    silence: Rule
    otherwise: Rule


@dataclass(frozen=True, slots=True)
class Table:
    """The whole table. publics: canonical public hosts, the first leads. rules: every row, indexed by states."""

    publics: tuple[str, ...]
    cluster: str
    served: frozenset[Kind]
    rules: tuple[Rule, ...]
    states: Mapping[str, State]


def build(
    public_addrs: Sequence[str],
    cluster: str,
    served: frozenset[Kind],
    protocols: Sequence[DatabaseRule] = (),
    applications: Mapping[str, str] = MappingProxyType({}),
    *,
    greeting: bool = True,
    agents: bool = False,
) -> Table:
    """Build the table of one proxy.

    Args:
        public_addrs: host or host:port of every public address; the first is what redirects fall back to.
        cluster: name of the proxy's own cluster, a host name; ALPN may spell it so or in its canonical form.
        served: the kinds that have a handler; rows of the others refuse.
        protocols: the database protocols that are served.
        applications: name of an application by its public host name.
        greeting: whether a client that stays silent is spoken to, where a protocol's server speaks first.
        agents: whether it is the table of a port for agents, where SSH without TLS is theirs alone.
    Raises:
        TableError: a name is illegal, or two rows could not be told apart.
    """
    if not public_addrs:
        raise TableError("a proxy needs at least one public address")
    try:
        publics = tuple(dict.fromkeys(host(address) for address in public_addrs))
        fallback = authority(public_addrs[0])
        clusters = tuple(dict.fromkeys((cluster, canonical(cluster))))
        apps = _canonical_applications(applications)
    except HostNameError as error:
        raise TableError(str(error)) from error
    _check_names(publics, clusters[-1], apps)
    rows.check_protocols(protocols, clusters)
    listed = rows.rows(
        publics,
        clusters,
        served,
        protocols=protocols,
        applications=apps,
        fallback=fallback,
        greeting=greeting,
        agents=agents,
    )
    _check_signatures(listed)
    said = frozenset[str]().union(*(rule.said for rule in listed))
    return Table(publics, cluster, served, listed, MappingProxyType({state: _state(listed, state) for state in said}))


def _canonical_applications(applications: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for address, application in applications.items():
        name = canonical(address)
        if name in found:
            raise TableError(f"applications {found[name]} and {application} share the name {name}")
        found[name] = application
    return found


def _check_names(publics: tuple[str, ...], cluster: str, applications: Mapping[str, str]) -> None:
    reserved = names.reserved_domains(publics)
    claims = [("public address", name) for name in publics] + [("cluster", cluster)]
    claims += [(f"application {application}", name) for name, application in applications.items()]
    for what, name in claims:
        if domain := names.within(name, reserved):
            raise TableError(f"{what} {name} lies in {domain}, which routing reserves")
    for name, application in applications.items():
        if name in publics:
            raise TableError(f"application {application} has the public address {name} of the proxy itself")


def _check_signatures(listed: Iterable[Rule]) -> None:
    """Reject first bytes that begin like a TLS record or like another rule's."""
    seen: list[tuple[Signature, str]] = []
    for rule in listed:
        for signature in rule.when.signatures if isinstance(rule.when, Begins) else ():
            if not signature or signature[0] in (None, rows.TLS_HANDSHAKE):
                raise TableError(f"the first bytes of {rule.name} could be those of TLS")
            for other, owner in seen:
                if all(None in (one, two) or one == two for one, two in zip(signature, other, strict=False)):
                    raise TableError(f"the first bytes of {rule.name} and {owner} cannot be told apart")
            seen.append((signature, rule.name))


def _state(listed: tuple[Rule, ...], said: str) -> State:
    """Index the rules of one state."""
    hosts: dict[str, Rule] = {}
    domains: dict[str, Rule] = {}
    protocols: dict[str, Rule] = {}
    hellos: list[Rule] = []
    openings: dict[int, tuple[Rule, ...]] = {}
    always: dict[type[object], Rule] = {}
    for rule in listed:
        if said not in rule.said:
            continue
        match rule.when:
            case Named() if rule.rank is Rank.FIRST:
                hosts.update(dict.fromkeys(rule.when.hosts, rule))
            case Under() if rule.rank is Rank.FIRST:
                domains.update(dict.fromkeys(rule.when.domains, rule))
            case Offers() if rule.rank is Rank.PRIVATE:
                protocols.update(dict.fromkeys(rule.when.protocols, rule))
            case Begins():
                for octet in {signature[0] for signature in rule.when.signatures}:
                    assert octet is not None  # _check_signatures has rejected it
                    openings[octet] = (*openings.get(octet, ()), rule)
            case _ if rule.takes is ClientHello:
                hellos.append(rule)
            case _:
                always[rule.takes] = rule
    return State(
        MappingProxyType(hosts),
        MappingProxyType(domains),
        MappingProxyType(protocols),
        tuple(hellos),
        MappingProxyType(openings),
        always[HelloError],
        always[Silence],
        always[object],
    )
