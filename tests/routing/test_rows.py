"""The routing table of the design, row by row; each test is named after its row."""

import pytest

from monoport.routing.match import decide, match, missing, silence
from monoport.routing.outcome import Answer, Ask, Code, Kind, Refusal, Route, Show, Tls, Trust
from monoport.routing.table import build
from monoport.wire import alert
from monoport.wire.clienthello import ClientHello

from .conftest import POSTGRES, PUBLIC, SERVED

SSL_REQUEST = bytes.fromhex("00000008 04d2162f")
GSSENC_REQUEST = bytes.fromhex("00000008 04d21630")
CANCEL_REQUEST = bytes.fromhex("00000010 04d2162e 00000001 00000002")
START_UP = bytes.fromhex("00000020 00030000") + b"user\0alice\0"
NO_PROTOCOL = alert.fatal(120)

SSH_TLS = {"show": Show.CLUSTER, "ask": Ask.NONE, "trust": Trust.NONE}
WEB_TLS = {"show": Show.PUBLIC, "ask": Ask.NONE, "trust": Trust.NONE, "tls12": True}
APP_TLS = {"show": Show.PUBLIC, "ask": Ask.OPTIONAL, "trust": Trust.USER, "tls12": True}
USER_TLS = {"show": Show.CLUSTER, "ask": Ask.REQUIRED, "trust": Trust.USER}
DATABASE_TLS = {**USER_TLS, "tls12": True}
OUTER_TLS = {**DATABASE_TLS, "ask": Ask.OPTIONAL}

ROWS = {
    "PROXY v1/v2 header": "test_row_proxy_header",
    "SNI kube.<public address>": "test_row_kubernetes",
    "SNI bootstrap.teleport.cluster.local": "test_row_bootstrap",
    "SNI <token>.dial.teleport.cluster.local": "test_row_dial_back",
    "ALPN teleport-proxy-ssh, alias teleport-ssh-proxy": "test_row_ssh",
    "ALPN teleport-reversetunnel, alias teleport-reverse-tunnel": "test_row_reverse_tunnel",
    "ALPN teleport-postgres teleport-mysql teleport-mongodb": "test_row_database_alpn",
    "ALPN teleport-auth@<cluster>": "test_row_auth",
    "ALPN postgresql": "test_row_postgresql_direct",
    "SNI <database>.db.<public address>, no ALPN": "test_row_database_name",
    "SNI of an application": "test_row_application",
    "other SNI or none, ALPN h2, http/1.1 or none": "test_row_web",
    "ALPN offered, nothing known": "test_row_unknown_alpn",
    "SSH-": "test_row_ssh_plain",
    "SSLRequest": "test_row_ssl_request",
    "GSSENCRequest": "test_row_gssenc_request",
    "CancelRequest": "test_row_cancel_request",
    "silence": "test_row_silence",
    "an HTTP verb": "test_row_http_verb",
    "anything else": "test_row_anything_else",
}


def test_every_row_of_the_design_has_a_test():
    tests = {name for name in globals() if name.startswith("test_row_")}
    assert tests == set(ROWS.values())


def hello(server_name: str | None, *alpn: str) -> ClientHello:
    return ClientHello(server_name, alpn, (0x304,), 517)


def route(
    kind: Kind, rule: str, tls: dict | None, server_name: str | None, *alpn: str, select: str | None = None, **more
) -> Route:
    wanted = None if tls is None else Tls(alpn=select, **tls)
    return Route(kind, rule, wanted, server_name=server_name, alpn=alpn, **more)


def refused(outcome: object, code: Code, send: bytes = NO_PROTOCOL) -> bool:
    assert isinstance(outcome, Refusal), outcome
    assert outcome.reason.isprintable()
    assert (outcome.code, outcome.send) == (code, send)
    return True


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.1 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11"])
def test_row_proxy_header(first, whole, header):
    assert refused(match(header, first), Code.NOT_ENABLED, b"")
    assert refused(match(header, whole), Code.NOT_ENABLED, b"")
    assert match(header[:3], first) is None


@pytest.mark.parametrize("name", ["kube.proxy.example.com", "kube.alt.example.org"])
@pytest.mark.parametrize(
    ("alpn", "select"),
    [
        ((), None),
        (("h2", "http/1.1"), "http/1.1"),
        (("http/1.1",), "http/1.1"),
        (("spdy/3",), None),
        (("teleport-proxy-ssh",), None),
    ],
)
def test_row_kubernetes(first, whole, name, alpn, select):
    assert decide(hello(name, *alpn), whole) == route(
        Kind.KUBERNETES, "kubernetes", USER_TLS, name, *alpn, select=select
    )
    assert refused(decide(hello(name, *alpn), first), Code.NOT_ENABLED)


@pytest.mark.parametrize(
    "name", ["kubeapp.proxy.example.com", "kubernetes.proxy.example.com", "kube.example.com", "kube"]
)
def test_look_alikes_of_kube_are_ordinary_names(first, name):
    assert decide(hello(name, "h2"), first) == route(Kind.WEB, "web", WEB_TLS, name, "h2", select="h2")


@pytest.mark.parametrize(
    ("alpn", "select"), [((), None), (("http/1.1", "h2"), "http/1.1"), (("teleport-proxy-ssh",), None)]
)
def test_row_bootstrap(first, bare, alpn, select):
    name = "bootstrap.teleport.cluster.local"
    assert decide(hello(name, *alpn), first) == route(Kind.BOOTSTRAP, "bootstrap", SSH_TLS, name, *alpn, select=select)
    assert refused(decide(hello(name, *alpn), bare), Code.NOT_ENABLED)


def test_row_dial_back(first, whole):
    name = "0f3a.dial.teleport.cluster.local"
    wanted = {"show": Show.CLUSTER, "ask": Ask.REQUIRED, "trust": Trust.HOST}
    assert decide(hello(name), whole) == route(Kind.DIALBACK, "dial-back", wanted, name, target="0f3a")
    assert refused(decide(hello(name), first), Code.NOT_ENABLED)
    for other in ("dial.teleport.cluster.local", "a.b.dial.teleport.cluster.local"):
        assert refused(decide(hello(other), whole), Code.NOT_ENABLED)


@pytest.mark.parametrize("alpn", ["teleport-proxy-ssh", "teleport-ssh-proxy"])
@pytest.mark.parametrize("name", ["proxy.example.com", "elsewhere", None])
def test_row_ssh(first, bare, name, alpn):
    assert decide(hello(name, alpn), first) == route(Kind.SSH, "ssh", SSH_TLS, name, alpn, select=alpn)
    assert refused(decide(hello(name, alpn), bare), Code.NOT_ENABLED)


@pytest.mark.parametrize("alpn", ["teleport-reversetunnel", "teleport-reverse-tunnel"])
def test_row_reverse_tunnel(first, bare, alpn):
    wanted = route(Kind.TUNNEL, "reverse-tunnel", SSH_TLS, "proxy.example.com", alpn, select=alpn)
    assert decide(hello("proxy.example.com", alpn), first) == wanted
    assert refused(decide(hello("proxy.example.com", alpn), bare), Code.NOT_ENABLED)


@pytest.mark.parametrize("protocol", ["postgres", "mysql", "mongodb"])
@pytest.mark.parametrize(
    ("name", "target"), [("proxy.example.com", None), ("shop.db.alt.example.org", "shop"), (None, None)]
)
def test_row_database_alpn(first, whole, protocol, name, target):
    alpn = f"teleport-{protocol}"
    wanted = route(Kind.DATABASE, protocol, OUTER_TLS, name, alpn, select=alpn, protocol=protocol, target=target)
    assert decide(hello(name, alpn), whole) == wanted
    if protocol == "postgres":
        assert decide(hello(name, alpn), first) == wanted
    else:
        assert refused(decide(hello(name, alpn), first), Code.NOT_ENABLED)
        assert refused(decide(hello(name, alpn, "h2"), first), Code.NOT_ENABLED)


@pytest.mark.parametrize("alpn", ["teleport-auth@example", "teleport-auth@6578616d706c65.teleport.cluster.local"])
@pytest.mark.parametrize("name", ["example", "6578616d706c65.teleport.cluster.local", None])
def test_row_auth(first, bare, name, alpn):
    wanted = route(Kind.AUTH, "auth", None, name, alpn, passthrough=True, target="example")
    assert decide(hello(name, alpn), first) == wanted
    assert refused(decide(hello(name, alpn), bare), Code.NOT_ENABLED)


@pytest.mark.parametrize("alpn", ["teleport-auth@other", "teleport-auth@", "teleport-auth@zz.teleport.cluster.local"])
def test_the_auth_service_of_a_cluster_that_is_not_known(first, alpn):
    assert refused(decide(hello("proxy.example.com", alpn), first), Code.UNKNOWN_CLUSTER)


def test_row_postgresql_direct(first, whole):
    name = "shop.db.proxy.example.com"
    wanted = route(
        Kind.DATABASE,
        "postgres-direct",
        DATABASE_TLS,
        name,
        "postgresql",
        select="postgresql",
        protocol="postgres",
        target="shop",
    )
    assert decide(hello(name, "postgresql"), whole) == wanted
    assert refused(decide(hello(name, "postgresql"), first), Code.NOT_ENABLED)


def test_postgresql_is_reserved_where_nobody_speaks_it(bare):
    assert refused(decide(hello(None, "postgresql", "h2"), bare), Code.NOT_ENABLED)


def test_row_database_name(first, whole):
    for name in ("shop.db.proxy.example.com", "shop.db.alt.example.org"):
        assert decide(hello(name), whole) == route(Kind.DATABASE, "database-name", DATABASE_TLS, name, target="shop")
        assert refused(decide(hello(name), first), Code.NOT_ENABLED)


def test_row_application(first, whole):
    name = "grafana.example.com"
    for alpn, select in (((), None), (("h2", "http/1.1"), "http/1.1"), (("http/1.1",), "http/1.1")):
        wanted = route(Kind.APPLICATION, "application", APP_TLS, name, *alpn, select=select, target="grafana")
        assert decide(hello(name, *alpn), whole) == wanted
        assert refused(decide(hello(name, *alpn), first), Code.NOT_ENABLED)
    assert refused(decide(hello(name, "spdy/3"), whole), Code.UNKNOWN_ALPN)


@pytest.mark.parametrize("name", ["proxy.example.com", "alt.example.org", "elsewhere", "example", None])
@pytest.mark.parametrize(
    ("alpn", "select"),
    [((), None), (("h2", "http/1.1"), "http/1.1"), (("http/1.1", "h2"), "http/1.1"), (("\n\n", "h2"), "h2")],
)
def test_row_web(first, bare, name, alpn, select):
    assert decide(hello(name, *alpn), first) == route(Kind.WEB, "web", WEB_TLS, name, *alpn, select=select)
    assert refused(decide(hello(name, *alpn), bare), Code.NOT_ENABLED)


@pytest.mark.parametrize(
    "alpn", [("spdy/3",), ("acme-tls/1", "http/1.0"), ("\n\n",), ("H2",), ("xteleport-proxy-ssh",), ("\x1b[2J",)]
)
def test_row_unknown_alpn(first, whole, alpn):
    assert refused(decide(hello("proxy.example.com", *alpn), first), Code.UNKNOWN_ALPN)
    assert refused(decide(hello("proxy.example.com", *alpn), whole), Code.UNKNOWN_ALPN)


def test_row_ssh_plain(first, bare):
    assert match(b"SSH-2.0-OpenSSH_9.2p1\r\n", first) == Route(Kind.SSH, "ssh-plain", None)
    assert {match(b"SSH-"[:end], first) for end in range(4)} == {None}
    agents = build(PUBLIC, "example", SERVED, [POSTGRES], agents=True)
    assert match(b"SSH-2.0-monoport\r\n", agents) == Route(Kind.TUNNEL, "ssh-plain", None)
    users = build(PUBLIC, "example", frozenset({Kind.SSH}), [POSTGRES], agents=True)
    assert refused(match(b"SSH-2.0", users), Code.NOT_ENABLED, b"")
    assert refused(match(b"SSH-2.0", bare), Code.NOT_ENABLED, b"")


@pytest.mark.parametrize(
    ("name", "alpn", "select", "target"),
    [
        ("shop.db.proxy.example.com", (), None, "shop"),
        ("shop.db.alt.example.org", ("postgresql",), "postgresql", "shop"),
        ("shop.db.proxy.example.com", ("teleport-postgres",), "teleport-postgres", "shop"),
        ("proxy.example.com", ("h2", "postgresql"), "postgresql", None),
        (None, (), None, None),
    ],
)
def test_row_ssl_request(first, name, alpn, select, target):
    assert match(SSL_REQUEST, first) == Answer(b"S", 8, "postgres", "postgres-request")
    assert {match(SSL_REQUEST[:end], first) for end in range(8)} == {None}
    wanted = route(
        Kind.DATABASE, "postgres-upgraded", DATABASE_TLS, name, *alpn, select=select, protocol="postgres", target=target
    )
    assert decide(hello(name, *alpn), first, "postgres") == wanted


def test_bytes_behind_a_plaintext_request_are_refused(first):
    for request in (SSL_REQUEST, GSSENC_REQUEST):
        for behind in (b"\x16", START_UP, b"\0"):
            assert refused(match(request + behind, first), Code.BYTES_BEHIND_REQUEST, b"")


def test_after_ssl_request_other_services_are_out_of_reach(first, bare):
    for name in (
        "a.b.db.proxy.example.com",
        "db.proxy.example.com",
        "kube.proxy.example.com",
        "bootstrap.teleport.cluster.local",
    ):
        assert refused(decide(hello(name), first, "postgres"), Code.NOT_ENABLED)
    for alpn in ("h2", "teleport-proxy-ssh", "teleport-auth@example", "spdy/3"):
        assert refused(decide(hello("proxy.example.com", alpn), first, "postgres"), Code.UNKNOWN_ALPN)
    for data in (b"SSH-2.0", SSL_REQUEST, START_UP, b"GET / HTTP/1.1\r\n\r\n", b"\0"):
        assert refused(match(data, first, "postgres"), Code.UNKNOWN_PROTOCOL, b"")
    assert refused(match(SSL_REQUEST, bare), Code.NOT_ENABLED, b"")
    assert refused(decide(hello(None), bare, "postgres"), Code.NOT_ENABLED)


def test_row_gssenc_request(first, captured):
    assert match(GSSENC_REQUEST, first) == Answer(b"N", 8, "postgres:declined", "postgres-declined-1")
    said = "postgres:declined"
    assert match(SSL_REQUEST, first, said) == Answer(b"S", 8, "postgres", "postgres-request")
    assert match(CANCEL_REQUEST, first, said) == Route(Kind.DATABASE, "postgres-cancel", None, protocol="postgres")
    for data in (GSSENC_REQUEST, b"SSH-2.0", b"GET / HTTP/1.1\r\n\r\n"):
        assert refused(match(data, first, said), Code.UNKNOWN_PROTOCOL, b"")
    assert refused(match(captured("shop.db.proxy.example.com"), first, said), Code.UNKNOWN_PROTOCOL)


def test_row_cancel_request(first, bare):
    assert match(CANCEL_REQUEST, first) == Route(Kind.DATABASE, "postgres-cancel", None, protocol="postgres")
    long_key = bytes.fromhex("0000002c 04d2162e") + bytes(36)  # protocol 3.2 has longer keys
    assert match(long_key, first) == match(CANCEL_REQUEST, first)
    assert refused(match(CANCEL_REQUEST, bare), Code.NOT_ENABLED, b"")


def test_postgresql_without_tls_is_told_so_in_its_own_protocol(first):
    assert refused(match(START_UP, first), Code.PLAINTEXT_DATABASE, b"E: use sslmode=verify-full")
    assert refused(match(START_UP, first, "postgres:declined"), Code.PLAINTEXT_DATABASE, b"E: use sslmode=verify-full")


def test_row_silence(first, whole, bare):
    assert match(b"", first) is None
    assert refused(silence(first, seconds=5), Code.SILENCE, b"")
    assert refused(silence(bare, seconds=5), Code.SILENCE, b"")
    assert silence(whole, seconds=1) == Route(Kind.DATABASE, "mysql-greeting", None, protocol="mysql")
    assert refused(silence(whole, seconds=1, said="postgres"), Code.SILENCE, b"")
    stuck = silence(whole, b"\x16\x03\x01", seconds=2.5)
    assert refused(stuck, Code.INCOMPLETE, b"")
    assert "3 octets in 2.5 s" in stuck.reason
    assert "3 octets (16 03 01)" in silence(whole, b"\x16\x03\x01").reason
    assert silence(first, seconds=5).reason == "the client sent nothing in 5 s"
    assert silence(first).reason == "the client sent nothing"


@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_row_http_verb(first, verb):
    outcome = match(f"{verb} /web HTTP/1.1\r\nHost: Alt.example.org:3080\r\n\r\n".encode(), first)
    assert (outcome.code, outcome.rule) == (Code.PLAINTEXT_HTTP, "http")
    assert outcome.send.startswith(b"HTTP/1.1 308 ")
    assert b"\r\nLocation: https://alt.example.org:3080/web\r\n" in outcome.send
    nameless = match(f"{verb} / HTTP/1.0\r\n\r\n".encode(), first)
    assert b"\r\nLocation: https://proxy.example.com:3080/\r\n" in nameless.send
    assert match(f"{verb} / HTTP/1.1\r\nHost: a".encode(), first) is None


@pytest.mark.parametrize(
    "data", [b"\0\0\0\0\0\0", b"get / http", b"SSX", b"\x80\x2e\x01", b"\xff", b"GETX", b"EHLO a\r\n", b"\r\n"]
)
def test_row_anything_else(first, whole, bare, data):
    for table in (first, whole, bare):
        outcome = match(data, table)
        if outcome is None:  # "\r\n" may become a PROXY header
            outcome = match(data + b"\r\r", table)
        assert refused(outcome, Code.UNKNOWN_PROTOCOL, b"")


def test_what_must_at_least_follow(captured):
    assert missing(b"GE") == 1
    hello = captured("a.example", "h2")
    assert missing(hello[:1]) > 1
    assert missing(hello[:5]) == len(hello) - 5


def test_a_malformed_hello_is_closed_with_decode_error(first):
    for said in ("", "postgres", "postgres:declined"):
        outcome = match(b"\x16\x03\x01\x00\x00\x01", first, said)
        assert refused(outcome, Code.MALFORMED_HELLO, alert.fatal(50))
        assert outcome.rule == "malformed-hello"


# Rank


@pytest.mark.parametrize(
    ("alpn", "rule"),
    [
        (("teleport-postgres", "teleport-proxy-ssh"), "postgres"),
        (("teleport-proxy-ssh", "teleport-postgres"), "ssh"),
        (("postgresql", "teleport-proxy-ssh"), "postgres-direct"),
        (("teleport-proxy-ssh", "postgresql"), "ssh"),
        (("h2", "http/1.1", "teleport-reversetunnel"), "reverse-tunnel"),
        (("spdy/3", "\n\n", "teleport-auth@example", "h2"), "auth"),
        (("teleport-new-thing", "teleport-proxy-ssh"), "ssh"),
    ],
)
def test_the_clients_order_decides_among_private_names_and_http_ranks_below(whole, alpn, rule):
    assert decide(hello("proxy.example.com", *alpn), whole).rule == rule


@pytest.mark.parametrize("alpn", ["teleport-mysql", "teleport-x", "teleport-", "postgresql", "teleport-tcp-ping"])
@pytest.mark.parametrize("beside", [(), ("h2",), ("http/1.1", "spdy/3")])
def test_reserved_alpn_never_reaches_the_web(first, alpn, beside):
    assert refused(decide(hello("proxy.example.com", *beside, alpn), first), Code.NOT_ENABLED)
    assert refused(decide(hello("grafana.example.com", alpn, *beside), first), Code.NOT_ENABLED)


@pytest.mark.parametrize(
    "name",
    [
        "teleport.cluster.local",
        "x.teleport.cluster.local",
        "x.bootstrap.teleport.cluster.local",
        "db.proxy.example.com",
        "a.b.db.proxy.example.com",
        "x.kube.proxy.example.com",
        "x.db.alt.example.org",
    ],
)
@pytest.mark.parametrize("alpn", [("h2",), ("http/1.1",), ("spdy/3",)])
def test_reserved_names_never_reach_the_web(first, whole, name, alpn):
    assert refused(decide(hello(name, *alpn), first), Code.NOT_ENABLED)
    assert refused(decide(hello(name, *alpn), whole), Code.NOT_ENABLED)


# From octets


@pytest.mark.parametrize(
    ("name", "alpn", "rule"),
    [
        ("Proxy.Example.COM", ("h2", "http/1.1"), "web"),
        ("proxy.example.com", ("teleport-proxy-ssh",), "ssh"),
        ("KUBE.proxy.example.com", ("h2",), "kubernetes"),
        ("shop.db.proxy.example.com", (), "database-name"),
        (None, (), "web"),
    ],
)
def test_hellos_of_openssl_octet_by_octet(whole, captured, name, alpn, rule):
    data = captured(name, *alpn)
    assert {match(data[:end], whole) for end in range(len(data))} == {None}
    outcome = match(data, whole)
    assert outcome.rule == rule
    assert outcome == match(data + b"early data", whole)
    assert (outcome.server_name, outcome.alpn) == (name and name.lower(), alpn)


def test_a_state_that_was_never_said_is_an_error(first):
    with pytest.raises(KeyError, match="mysql"):
        match(b"", first, "mysql")


def test_what_a_client_offers_is_escaped_and_cut_in_reasons(first):
    outcome = decide(hello("proxy.example.com", "\x1b[2J\r\n", *["x" * 255] * 20), first)
    assert refused(outcome, Code.UNKNOWN_ALPN)
    assert len(outcome.reason) < 600
    assert "\\x1b[2J\\r\\n" in outcome.reason
