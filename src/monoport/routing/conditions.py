"""When a row of the routing table holds: conditions on first bytes, as frozen values.

Belongs here: the test of one condition, its words for people, and what it reads from the client (ALPN to select,
target). Does not: which conditions there are in a table, their order, and what follows from them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from monoport.routing import names
from monoport.wire.clienthello import ClientHello, HelloError

Signature = tuple[int | None, ...]  # an octet each, None is any octet


@dataclass(frozen=True, slots=True)
class Silence:
    """No bytes at all, for as long as the caller waited."""


First = ClientHello | HelloError | bytes | Silence  # what a connection began with


@dataclass(frozen=True, slots=True)
class Hit:
    """A condition holds: at which of the client's ALPN names, with which one to select, and the target it names."""

    position: int = 0
    alpn: str | None = None
    target: str | None = None


HIT = Hit()
Verdict = Hit | str | None  # it holds; why it does not, constant for speed; or too few bytes to say


@dataclass(frozen=True, slots=True)
class Named:
    """SNI is one of these names (with the target each stands for); http: and ALPN is h2, http/1.1 or none."""

    hosts: Mapping[str, str | None]
    http: bool = False

    def test(self, hello: ClientHello) -> Verdict:
        if hello.server_name is None or hello.server_name not in self.hosts:
            return "SNI is none of its names"
        alpn = _http(hello)
        if self.http and alpn is None and hello.alpn:
            return "ALPN holds neither h2 nor http/1.1"
        return Hit(0, alpn, self.hosts[hello.server_name])

    def __str__(self) -> str:
        return f"SNI {_list(self.hosts) or '(none configured)'}, " + (
            "ALPN h2, http/1.1 or none" if self.http else "whatever the ALPN"
        )


@dataclass(frozen=True, slots=True)
class Under:
    """SNI is one label, the target, under one of these domains; bare: and no ALPN is offered."""

    domains: frozenset[str]
    bare: bool = False

    def test(self, hello: ClientHello) -> Verdict:
        label = label_under(hello.server_name, self.domains)
        if label is None:
            return "SNI is not one label under its domains"
        if self.bare and hello.alpn:
            return "ALPN is offered"
        return Hit(0, None, label)

    def __str__(self) -> str:
        return f"SNI {_list(f'<name>.{domain}' for domain in self.domains)}, " + (
            "no ALPN" if self.bare else "whatever the ALPN"
        )


@dataclass(frozen=True, slots=True)
class Offers:
    """ALPN holds one of these names; the target is fixed, or the label of an SNI under one of these domains."""

    protocols: tuple[str, ...]
    domains: frozenset[str] = frozenset()
    target: str | None = None

    def test(self, hello: ClientHello) -> Verdict:
        for position, name in enumerate(hello.alpn):
            if name in self.protocols:
                return Hit(position, name, self.target or label_under(hello.server_name, self.domains))
        return "ALPN holds none of its names"

    def __str__(self) -> str:
        return f"ALPN {_list(self.protocols)}"


@dataclass(frozen=True, slots=True)
class OffersReserved:
    """ALPN holds a reserved name that begins with this prefix."""

    prefix: str = ""

    def test(self, hello: ClientHello) -> Verdict:
        for position, name in enumerate(hello.alpn):
            if name.startswith(self.prefix) and names.reserved_protocol(name):
                return Hit(position, name)
        return "ALPN holds no such name"

    def __str__(self) -> str:
        besides = () if self.prefix else sorted(names.RESERVED_ALPN)
        return ", ".join((f"any other ALPN {self.prefix or names.RESERVED_PREFIX}*", *besides))


@dataclass(frozen=True, slots=True)
class Within:
    """SNI is one of these domains or lies under one; names of one label under `besides` are left out."""

    domains: tuple[str, ...]
    besides: frozenset[str] = frozenset()

    def test(self, hello: ClientHello) -> Verdict:
        name = hello.server_name
        if name is None or label_under(name, self.besides) or names.within(name, self.domains) is None:
            return "SNI is not reserved"
        return HIT

    def __str__(self) -> str:
        return f"any other SNI in {_list(self.domains)}"


@dataclass(frozen=True, slots=True)
class Http:
    """ALPN is h2, http/1.1 or none, whatever the SNI."""

    def test(self, hello: ClientHello) -> Verdict:
        alpn = _http(hello)
        if alpn is None and hello.alpn:
            return "ALPN holds neither h2 nor http/1.1"
        return Hit(0, alpn)

    def __str__(self) -> str:
        return "any other SNI or none, ALPN h2, http/1.1 or none"


@dataclass(frozen=True, slots=True)
class OffersOrNone:
    """ALPN holds one of these names or is not offered; an SNI of one label under these domains names the target."""

    protocols: tuple[str, ...]
    domains: frozenset[str]

    def test(self, hello: ClientHello) -> Verdict:
        alpn = next((name for name in hello.alpn if name in self.protocols), None)
        if alpn is None and hello.alpn:
            return "ALPN holds none of its names"
        return Hit(0, alpn, label_under(hello.server_name, self.domains))

    def __str__(self) -> str:
        return f"ALPN {_list(self.protocols)} or none"


@dataclass(frozen=True, slots=True)
class Begins:
    """The first bytes fit one of these signatures."""

    signatures: tuple[Signature, ...]

    def test(self, first: bytes) -> Verdict:
        partial = False
        for signature in self.signatures:
            if fits(signature, first):
                if len(first) >= len(signature):
                    return HIT
                partial = True
        return None if partial else "the first bytes are others"

    def __str__(self) -> str:
        return " or ".join(_octets(signature) for signature in self.signatures)


@dataclass(frozen=True, slots=True)
class Always:
    """Whatever reaches this row."""

    words: str

    def test(self, _: First) -> Verdict:
        return HIT

    def __str__(self) -> str:
        return self.words


HelloCondition = Named | Under | Offers | OffersReserved | Within | Http | OffersOrNone
Condition = HelloCondition | Begins | Always


def fits(signature: Signature, first: bytes) -> bool:
    """Whether the first bytes begin as the signature does, as far as both go."""
    return all(want is None or want == got for want, got in zip(signature, first, strict=False))


def label_under(name: str | None, domains: frozenset[str]) -> str | None:
    """The one label that a name has in front of one of these domains."""
    if name is None:
        return None
    label, _, parent = name.partition(".")
    return label if parent in domains else None


def sni(hello: ClientHello) -> str:
    """The server name in words; it is canonical and so safe to log."""
    return "no SNI" if hello.server_name is None else f"SNI {hello.server_name}"


def alpn_of(hello: ClientHello) -> str:
    """The offered protocols in words, escaped, for they may hold any octet, and cut to what a log line can carry."""
    if not hello.alpn:
        return "no ALPN"
    shown = [ascii(name[:64])[1:-1] for name in hello.alpn[:6]]  # clients in use offer fewer and shorter names
    return "ALPN " + ", ".join(shown) + (", ..." if len(hello.alpn) > len(shown) else "")


def _http(hello: ClientHello) -> str | None:
    """The HTTP version to select: ours, in our order, whatever the client would rather have."""
    return next((name for name in names.HTTP_ALPN if name in hello.alpn), None)


def _list(parts: Iterable[str]) -> str:
    return ", ".join(sorted(parts))


def _octets(signature: Signature) -> str:
    text = bytes(octet for octet in signature if octet is not None)
    if None not in signature and text.isascii() and text.decode().isprintable():
        return f"`{text.decode()}`"
    return " ".join("??" if octet is None else f"{octet:02x}" for octet in signature)
