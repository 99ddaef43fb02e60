"""The rows of the routing table, as data, in the order in which docs/routing.md has them.

Belongs here: which rules there are for a given proxy, and what a database protocol brings to them. Does not: the
search (match), the checks across rows and the indexes (table), and any protocol's own octets.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from monoport.errors import Failure
from monoport.routing import names
from monoport.routing.conditions import (
    Always,
    Begins,
    Http,
    Named,
    Offers,
    OffersOrNone,
    OffersReserved,
    Signature,
    Silence,
    Under,
    Within,
)
from monoport.routing.outcome import Ask, Code, Kind, Show, Tls, Trust
from monoport.routing.rules import Go, Rank, Redirect, Refuse, Reply, Rule
from monoport.wire import alert, http, proxyprotocol
from monoport.wire.clienthello import ClientHello, HelloError

TLS_HANDSHAKE = 0x16  # content type of the record that a ClientHello comes in
DECLINED = ":declined"  # behind a protocol's name: it asked for something that was declined, and may ask again

_HELLO = "ClientHello"
_HTTP_OR_NONE = (None, *names.HTTP_ALPN)


class TableError(Failure, ValueError):
    """A configuration that no routing table can serve; one line for a user."""


@dataclass(frozen=True, slots=True)
class DatabaseRule:
    """What a database protocol brings to routing; all of its octets are in here.

    name: the protocol. alpn: private names, outer certificate optional. direct_alpn: names that the protocol's own
    clients offer, certificate required. starttls: the whole plaintext request for TLS, answered by starttls_answer and
    followed by a ClientHello. declined: requests answered by declined_answer, after which the client asks again.
    cancel: how a plaintext message begins that the handler takes as it comes. plaintext: how a session without TLS
    begins, which is refused with plaintext_refusal. direct: direct_alpn is served without the request, too. by_name:
    TLS without ALPN to <database>.db.<public address> may be this protocol. greets: it is served to silent clients.
    """

    name: str
    alpn: tuple[str, ...] = ()
    direct_alpn: tuple[str, ...] = ()
    starttls: bytes = b""
    starttls_answer: bytes = b"S"
    declined: tuple[bytes, ...] = ()
    declined_answer: bytes = b"N"
    cancel: Signature = ()
    plaintext: Signature = ()
    plaintext_refusal: bytes = b""
    direct: bool = False
    by_name: bool = False
    greets: bool = False

    @property
    def sealed_alpn(self) -> tuple[str, ...]:
        """Names that our own clients offer beside `alpn`: the proxy opens the session, and then cannot read it.

        Of the canonical name alone: those clients know no other.
        """
        return tuple(map(names.sealed, self.alpn[:1]))


def check_protocols(protocols: Sequence[DatabaseRule], clusters: tuple[str, ...]) -> None:
    """Reject protocols that could not be told apart from each other or from routing's own rows.

    Raises:
        TableError: a name, an ALPN name or silence is claimed twice, or a claim is impossible.
    """
    seen: set[str] = set()
    own = (*names.SSH_ALPN, *names.TUNNEL_ALPN, *_auth_protocols(clusters))
    owners = dict.fromkeys(own, "routing") | dict.fromkeys(names.HTTP_ALPN, "the web")
    greeting = ""
    for protocol in protocols:
        if not protocol.name.isidentifier() or protocol.name in seen:
            raise TableError(f"database protocol {protocol.name!r} is no name or comes twice")
        seen.add(protocol.name)
        for name in (*protocol.alpn, *protocol.sealed_alpn, *protocol.direct_alpn):
            if not 0 < len(name) < 256 or name.startswith(names.AUTH_PREFIX):
                raise TableError(f"ALPN {name!r} cannot be a database protocol's")
            if name in owners:
                raise TableError(f"ALPN {name} of {protocol.name} belongs to {owners[name]}")
            owners[name] = protocol.name
        if protocol.greets and greeting:
            raise TableError(f"{greeting} and {protocol.name} both claim silent clients")
        greeting = protocol.name if protocol.greets else greeting


def rows(
    publics: tuple[str, ...],
    clusters: tuple[str, ...],
    served: frozenset[Kind],
    *,
    protocols: Sequence[DatabaseRule],
    applications: Mapping[str, str],
    fallback: str,
    greeting: bool = True,
    agents: bool = False,
) -> tuple[Rule, ...]:
    """Every rule, in order.

    Args:
        publics: canonical public hosts. clusters: the own cluster's name as configured, then as a canonical host name
            where that differs. applications: name by canonical host.
        fallback: host[:port] for redirects. served, protocols, greeting, agents: as for table.build().
    """
    domains = frozenset(map(names.databases, publics))
    reserved = names.reserved_domains(publics)
    states = frozenset({""}.union(*({protocol.name, protocol.name + DECLINED} for protocol in protocols)))
    database = Kind.DATABASE in served
    return (
        _plain("proxy-header", "PROXY header", (proxyprotocol.V1, proxyprotocol.V2), _UNASKED, "refused", served=True),
        *_by_name(publics, served),
        *_by_protocol(clusters, served),
        *(rule for protocol in protocols for rule in _private(protocol, domains, database)),
        *_reserved(),
        *_ordinary(served, protocols, applications, domains, reserved),
        *(rule for protocol in protocols for rule in _upgraded(protocol, domains, reserved, database)),
        _ssh(served, agents),
        *(rule for protocol in protocols for rule in _openings(protocol, database)),
        *_silence(protocols, states, database, greeting),
        _plain("http", "an HTTP verb", http.VERBS, Redirect(fallback), "308 to https", served=True),
        Rule("malformed-hello", _HELLO, HelloError, Always("cannot be parsed"), _MALFORMED, "refused", said=states),
        Rule("anything-else", "anything else", object, Always("no rule above holds"), _UNKNOWN, "refused", said=states),
    )


# The one header of a configured network has been read before routing sees the bytes.
_UNASKED = Refuse(Code.NOT_ENABLED, "a PROXY header from a source that may send none, or a second one")
_MALFORMED = Refuse(Code.MALFORMED_HELLO, "malformed ClientHello", alert.fatal(alert.DECODE_ERROR))
_UNKNOWN = Refuse(Code.UNKNOWN_PROTOCOL, "no protocol of this port begins so")


def _tls(
    show: Show, ask: Ask, trust: Trust, alpn: Iterable[str | None], tls12: bool = False
) -> Mapping[str | None, Tls]:
    """One value for each ALPN name that a row may select."""
    return MappingProxyType({name: Tls(show, ask, trust, name, tls12) for name in alpn})


def _plain(
    name: str,
    first: str,
    begins: Iterable[Iterable[int | None]],
    then: Go | Refuse | Reply | Redirect,
    to: str,
    *,
    served: bool,
) -> Rule:
    when = Begins(tuple(tuple(signature) for signature in begins))
    return Rule(name, first, bytes, when, then, to, Rank.FIRST, served=served)


def _ssh(served: frozenset[Kind], agents: bool) -> Rule:
    """The row of SSH without TLS, which says who has come only within."""
    kind, to = Kind.SSH, "SSH proxy for a user's certificate, reverse tunnel for a host's"
    if agents:
        kind, to = Kind.TUNNEL, "reverse tunnel"
    return _plain("ssh-plain", "SSH-", (b"SSH-",), Go(kind, None), to, served=kind in served)


def _by_name(publics: tuple[str, ...], served: frozenset[Kind]) -> Iterator[Rule]:
    """Rows whose SNI decides whatever the ALPN."""
    hosts: Mapping[str, str | None] = MappingProxyType({names.kubernetes(public): None for public in publics})
    go = Go(Kind.KUBERNETES, _tls(Show.CLUSTER, Ask.REQUIRED, Trust.USER, _HTTP_OR_NONE))
    on = go.kind in served
    yield Rule("kubernetes", _HELLO, ClientHello, Named(hosts), go, "Kubernetes", Rank.FIRST, served=on)
    hosts = MappingProxyType({names.BOOTSTRAP: None})
    go = Go(Kind.BOOTSTRAP, _tls(Show.CLUSTER, Ask.NONE, Trust.NONE, _HTTP_OR_NONE))
    on = go.kind in served
    yield Rule("bootstrap", _HELLO, ClientHello, Named(hosts), go, "first login and join", Rank.FIRST, served=on)
    go = Go(Kind.DIALBACK, _tls(Show.CLUSTER, Ask.REQUIRED, Trust.HOST, (None,)))
    on = go.kind in served
    yield Rule("dial-back", _HELLO, ClientHello, Under(frozenset({names.DIAL})), go, "dial-back", Rank.FIRST, served=on)


def _offers(name: str, when: Offers, go: Go, to: str, served: bool) -> Rule:
    return Rule(name, _HELLO, ClientHello, when, go, to, Rank.PRIVATE if served else Rank.RESERVED, served=served)


def _auth_protocols(clusters: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(protocol for cluster in clusters for protocol in names.auth_protocols(cluster))


def _by_protocol(clusters: tuple[str, ...], served: frozenset[Kind]) -> Iterator[Rule]:
    """Rows of routing's own private ALPN names."""
    for name, alpn, kind, to in (
        ("ssh", names.SSH_ALPN, Kind.SSH, "SSH proxy"),
        ("reverse-tunnel", names.TUNNEL_ALPN, Kind.TUNNEL, "reverse tunnel"),
    ):
        go = Go(kind, _tls(Show.CLUSTER, Ask.NONE, Trust.NONE, alpn))
        yield _offers(name, Offers(alpn), go, to, kind in served)
    when = Offers(_auth_protocols(clusters), target=clusters[0])
    yield _offers("auth", when, Go(Kind.AUTH, None, passthrough=True), "auth service", Kind.AUTH in served)


def _private(protocol: DatabaseRule, domains: frozenset[str], database: bool) -> Iterator[Rule]:
    """Rows of a database protocol's ALPN names."""
    to = f"{protocol.name} proxy"
    if protocol.alpn:
        tls = _tls(Show.CLUSTER, Ask.OPTIONAL, Trust.USER, protocol.alpn, tls12=True)
        go = Go(Kind.DATABASE, tls, protocol=protocol.name)
        yield _offers(protocol.name, Offers(protocol.alpn, domains), go, to, database)
        tls = _tls(Show.CLUSTER, Ask.REQUIRED, Trust.USER, protocol.sealed_alpn)
        go = Go(Kind.DATABASE, tls, protocol=protocol.name, sealed=True)
        when = Offers(protocol.sealed_alpn, domains)
        yield _offers(f"{protocol.name}-sealed", when, go, f"{to}, sealed", database)
    if protocol.direct_alpn:
        tls = _tls(Show.CLUSTER, Ask.REQUIRED, Trust.USER, protocol.direct_alpn, tls12=True)
        go = Go(Kind.DATABASE, tls, protocol=protocol.name)
        when = Offers(protocol.direct_alpn, domains)
        yield _offers(f"{protocol.name}-direct", when, go, f"direct TLS to the {to}", database and protocol.direct)


def _reserved() -> Iterator[Rule]:
    """Rows for private ALPN names that nobody has claimed."""
    for name, prefix, code, reason in (
        ("other-cluster", names.AUTH_PREFIX, Code.UNKNOWN_CLUSTER, "auth service of a cluster that is not known here"),
        ("reserved-alpn", "", Code.NOT_ENABLED, "ALPN is reserved for a protocol that is not enabled here"),
    ):
        when = OffersReserved(prefix)
        yield Rule(name, _HELLO, ClientHello, when, Refuse(code, reason), "refused", Rank.RESERVED)


def _ordinary(
    served: frozenset[Kind],
    protocols: Sequence[DatabaseRule],
    applications: Mapping[str, str],
    domains: frozenset[str],
    reserved: tuple[str, ...],
) -> Iterator[Rule]:
    """Rows for hellos without a private ALPN name."""
    go = Go(Kind.DATABASE, _tls(Show.CLUSTER, Ask.REQUIRED, Trust.USER, (None,), tls12=True))
    on = go.kind in served and any(protocol.by_name for protocol in protocols)
    to = "database by its own protocol"
    yield Rule("database-name", _HELLO, ClientHello, Under(domains, bare=True), go, to, served=on)
    refuse = Refuse(Code.NOT_ENABLED, "SNI is reserved and nothing is enabled under it here")
    yield Rule("reserved-name", _HELLO, ClientHello, Within(reserved), refuse, "refused")
    go = Go(Kind.APPLICATION, _tls(Show.PUBLIC, Ask.OPTIONAL, Trust.USER, _HTTP_OR_NONE, tls12=True))
    when = Named(MappingProxyType(dict(applications)), http=True)
    yield Rule("application", _HELLO, ClientHello, when, go, "application", served=go.kind in served)
    go = Go(Kind.WEB, _tls(Show.PUBLIC, Ask.NONE, Trust.NONE, _HTTP_OR_NONE, tls12=True))
    yield Rule("web", _HELLO, ClientHello, Http(), go, "web", served=go.kind in served)
    yield Rule("unknown-alpn", _HELLO, ClientHello, Always("ALPN offered, nothing known"), _UNKNOWN_ALPN, "refused")


_UNKNOWN_ALPN = Refuse(Code.UNKNOWN_ALPN, "none of the offered ALPN names is known here")


def _upgraded(
    protocol: DatabaseRule, domains: frozenset[str], reserved: tuple[str, ...], database: bool
) -> Iterator[Rule]:
    """Rows for the ClientHello behind a plaintext request for TLS, or within TLS that brought no certificate."""
    if not (protocol.starttls or protocol.greets or protocol.by_name):
        return
    first, said = f"ClientHello after the request of {protocol.name}", frozenset({protocol.name})
    refuse = Refuse(Code.NOT_ENABLED, f"SNI is reserved and names no database of {protocol.name}")
    when = Within(reserved, besides=domains)
    yield Rule(f"{protocol.name}-upgraded-reserved", first, ClientHello, when, refuse, "refused", said=said)
    alpn = (*protocol.alpn, *protocol.direct_alpn)
    go = Go(
        Kind.DATABASE, _tls(Show.CLUSTER, Ask.REQUIRED, Trust.USER, (None, *alpn), tls12=True), protocol=protocol.name
    )
    to = f"{protocol.name} proxy"
    when2 = OffersOrNone(alpn, domains)
    yield Rule(f"{protocol.name}-upgraded", first, ClientHello, when2, go, to, said=said, served=database)
    always = Always("ALPN offered, nothing known")
    yield Rule(f"{protocol.name}-upgraded-alpn", first, ClientHello, always, _UNKNOWN_ALPN, "refused", said=said)


def _openings(protocol: DatabaseRule, database: bool) -> Iterator[Rule]:
    """Rows for a database protocol's first bytes before any TLS."""
    name, to = protocol.name, f"{protocol.name} proxy"
    start, again = frozenset({""}), frozenset({"", name + DECLINED})

    def opening(kind: str, begins: Signature, then: Go | Refuse | Reply, to: str, said: frozenset[str]) -> Rule:
        first = f"{kind.partition('-')[0]} of {name}"
        return Rule(f"{name}-{kind}", first, bytes, Begins((begins,)), then, to, Rank.FIRST, said, database)

    if protocol.starttls:
        reply = Reply(protocol.starttls_answer, len(protocol.starttls), name)
        yield opening("request", tuple(protocol.starttls), reply, f"TLS of the {to}", again)
    for number, request in enumerate(protocol.declined, 1):
        reply = Reply(protocol.declined_answer, len(request), name + DECLINED)
        yield opening(f"declined-{number}", tuple(request), reply, f"declined by the {to}", start)
    if protocol.cancel:
        yield opening("cancel", protocol.cancel, Go(Kind.DATABASE, None, protocol=name), to, again)
    if protocol.plaintext:
        reason = f"{name} without TLS, which this port does not speak"
        refuse = Refuse(Code.PLAINTEXT_DATABASE, reason, protocol.plaintext_refusal)
        yield opening("plaintext", protocol.plaintext, refuse, "refused", again)


def _silence(
    protocols: Sequence[DatabaseRule], states: frozenset[str], database: bool, greeting: bool
) -> Iterator[Rule]:
    """Rows for clients that wait for the server to speak."""
    name = next((protocol.name for protocol in protocols if protocol.greets and database), None)
    if name is not None:
        go, to = Go(Kind.DATABASE, None, protocol=name), f"{name} proxy, which greets"
        yield Rule(f"{name}-greeting", "silence", Silence, Always("no bytes came"), go, to, served=greeting)
        states -= {""}
    refuse = Refuse(Code.SILENCE, "the client sent nothing")
    yield Rule("silence", "silence", Silence, Always("no bytes came"), refuse, "refused", said=states)
