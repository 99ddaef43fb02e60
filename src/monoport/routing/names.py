"""The names that routing itself reserves: SNI under teleport.cluster.local and the public addresses, private ALPN.

Belongs here: how reserved names are spelled and recognised. Does not: which of them are served (table).
"""

LOCAL = "teleport.cluster.local"  # the domain of names that exist inside the cluster only
BOOTSTRAP = f"bootstrap.{LOCAL}"
DIAL = f"dial.{LOCAL}"

SSH_ALPN = ("teleport-proxy-ssh", "teleport-ssh-proxy")  # RFD 39 uses both spellings
TUNNEL_ALPN = ("teleport-reversetunnel", "teleport-reverse-tunnel")  # likewise
AUTH_PREFIX = "teleport-auth@"
HTTP_ALPN = ("http/1.1", "h2")  # in the order of our preference: the web speaks HTTP/1.1 and only declines h2
RESERVED_PREFIX = "teleport-"
RESERVED_ALPN = frozenset({"postgresql"})  # registered by IANA for PostgreSQL; reserved whether or not it is served


SEALED = "-sealed"  # behind a database protocol's own ALPN name: the session goes on inside TLS from user to agent


def sealed(protocol: str) -> str:
    """The ALPN name by which a client asks that the proxy cannot read its session."""
    return protocol + SEALED


def kubernetes(public: str) -> str:
    """The name under which Kubernetes clients reach a public address."""
    return f"kube.{public}"


def databases(public: str) -> str:
    """The domain under a public address that holds one name for each database."""
    return f"db.{public}"


def auth_protocols(cluster: str) -> tuple[str, str]:
    """The ALPN names of a cluster's auth service: plain, and hex under the local domain."""
    return f"{AUTH_PREFIX}{cluster}", f"{AUTH_PREFIX}{cluster.encode().hex()}.{LOCAL}"


def reserved_domains(publics: tuple[str, ...]) -> tuple[str, ...]:
    """The domains that, with every name under them, are never ordinary names.

    Args:
        publics: canonical public addresses.
    """
    return LOCAL, *map(kubernetes, publics), *map(databases, publics)


def within(name: str, domains: tuple[str, ...]) -> str | None:
    """The one of these domains that the name is or lies under, None if it is an ordinary name."""
    return next((domain for domain in domains if name == domain or name.endswith("." + domain)), None)


def reserved_protocol(name: str) -> bool:
    """Whether an ALPN name is reserved, served or not."""
    return name.startswith(RESERVED_PREFIX) or name in RESERVED_ALPN
