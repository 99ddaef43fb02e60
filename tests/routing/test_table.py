"""Building the table: what a configuration may not ask for, and a protocol added from outside."""

import re
from dataclasses import replace

import pytest

from monoport.routing.match import decide, match, silence
from monoport.routing.outcome import Answer, Ask, Kind, Refusal, Route
from monoport.routing.table import DatabaseRule, TableError, build
from monoport.wire.clienthello import ClientHello

SERVED = frozenset(Kind)
POSTGRES = DatabaseRule("postgres", ("teleport-postgres",), ("postgresql",), bytes.fromhex("0000000804d2162f"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"public_addrs": []}, "at least one public address"),
        ({"public_addrs": ["a..b"]}, "illegal host name 'a..b'"),
        ({"public_addrs": ["a:0"]}, "illegal port"),
        ({"cluster": "my cluster"}, "illegal host name 'my cluster'"),
        ({"public_addrs": ["a.example", "kube.a.example"]}, "public address kube.a.example lies in kube.a.example"),
        ({"public_addrs": ["x.db.a.example", "a.example"]}, "public address x.db.a.example lies in db.a.example"),
        ({"public_addrs": ["x.teleport.cluster.local"]}, "lies in teleport.cluster.local"),
        ({"cluster": "x.db.proxy.example"}, "cluster x.db.proxy.example lies in"),
        ({"applications": {"a b": "x"}}, "illegal host name 'a b'"),
        ({"applications": {"a.example": "x", "A.example.": "y"}}, "applications x and y share the name a.example"),
        ({"applications": {"x.db.proxy.example": "x"}}, "application x x.db.proxy.example lies in db.proxy.example"),
        ({"applications": {"proxy.example": "x"}}, "application x has the public address proxy.example"),
        ({"protocols": [POSTGRES, POSTGRES]}, "'postgres' is no name or comes twice"),
        ({"protocols": [replace(POSTGRES, name="a:b")]}, "'a:b' is no name"),
        ({"protocols": [replace(POSTGRES, alpn=("",))]}, "ALPN '' cannot be a database protocol's"),
        ({"protocols": [replace(POSTGRES, alpn=("a" * 256,))]}, "cannot be a database protocol's"),
        ({"protocols": [replace(POSTGRES, alpn=("teleport-auth@other",))]}, "ALPN 'teleport-auth@other' cannot"),
        ({"protocols": [replace(POSTGRES, alpn=("h2",))]}, "ALPN h2 of postgres belongs to the web"),
        ({"protocols": [replace(POSTGRES, alpn=("teleport-ssh-proxy",))]}, "belongs to routing"),
        ({"protocols": [replace(POSTGRES, alpn=("postgresql",))]}, "ALPN postgresql of postgres belongs to postgres"),
        (
            {"protocols": [POSTGRES, DatabaseRule("other", ("postgresql",))]},
            "ALPN postgresql of other belongs to postgres",
        ),
        ({"protocols": [DatabaseRule("a", greets=True), DatabaseRule("b", greets=True)]}, "a and b both claim silent"),
        (
            {"protocols": [POSTGRES, DatabaseRule("b", starttls=POSTGRES.starttls)]},
            "b-request and postgres-request cannot",
        ),
        ({"protocols": [POSTGRES, DatabaseRule("b", starttls=b"\0\0")]}, "b-request and postgres-request cannot"),
        (
            {"protocols": [POSTGRES, DatabaseRule("b", plaintext=(0, None, None, 8))]},
            "b-plaintext and postgres-request",
        ),
        ({"protocols": [DatabaseRule("b", cancel=tuple(b"GET"))]}, "http and b-cancel cannot be told apart"),
        ({"protocols": [DatabaseRule("b", starttls=b"SSH-2")]}, "b-request and ssh-plain cannot be told apart"),
        ({"protocols": [DatabaseRule("b", starttls=b"\x16\x03")]}, "first bytes of b-request could be those of TLS"),
        ({"protocols": [DatabaseRule("b", cancel=(None, 1))]}, "first bytes of b-cancel could be those of TLS"),
        ({"protocols": [DatabaseRule("b", declined=(b"",))]}, "first bytes of b-declined-1 could be those of TLS"),
    ],
)
def test_what_could_not_be_told_apart_is_rejected(change, words):
    good = {"public_addrs": ["proxy.example"], "cluster": "example", "served": SERVED, "protocols": [POSTGRES]}
    assert build(**good)
    with pytest.raises(TableError, match=re.escape(words)):
        build(**{**good, **change})


def test_public_addresses_are_canonical_and_counted_once():
    table = build(["Proxy.Example:443", "proxy.example.:3080", "bücher.example", "[::1]:3080"], "Example", SERVED)
    assert table.publics == ("proxy.example", "xn--bcher-kva.example", "[::1]")
    assert table.cluster == "Example"
    redirect = match(b"GET / HTTP/1.0\r\n\r\n", table)
    assert isinstance(redirect, Refusal)
    assert b"Location: https://proxy.example:443/\r\n" in redirect.send


def test_a_cluster_is_found_as_configured_and_in_canonical_form():
    table = build(["proxy.example"], "Example", SERVED)
    for alpn in (
        "teleport-auth@Example",
        "teleport-auth@example",
        f"teleport-auth@{b'Example'.hex()}.teleport.cluster.local",
    ):
        outcome = decide(ClientHello(None, (alpn,)), table)
        assert isinstance(outcome, Route)
        assert (outcome.kind, outcome.target) == (Kind.AUTH, "Example")


def test_a_protocol_is_added_by_a_value_alone():
    made_up = DatabaseRule(
        name="quelle",
        alpn=("teleport-quelle", "quelle/2"),
        direct_alpn=("quelle",),
        starttls=b"\x01TLS?",
        starttls_answer=b"\x02YES",
        declined=(b"\x01ZIP?", b"\x01KRB?"),
        declined_answer=b"\x02NO",
        cancel=(0x01, None, ord("!")),
        plaintext=(0x03,),
        plaintext_refusal=b"\x04no",
        direct=True,
        by_name=True,
        greets=True,
    )
    table = build(["proxy.example"], "example", SERVED, [POSTGRES, made_up])

    def chosen(*alpn: str, said: str = "") -> tuple[str, str | None, Ask]:
        outcome = decide(ClientHello("shop.db.proxy.example", alpn), table, said)
        assert isinstance(outcome, Route)
        assert outcome.tls is not None
        assert (outcome.kind, outcome.target) == (Kind.DATABASE, "shop")
        return outcome.rule, outcome.tls.alpn, outcome.tls.ask

    assert chosen("quelle/2") == ("quelle", "quelle/2", Ask.OPTIONAL)
    assert chosen("quelle") == ("quelle-direct", "quelle", Ask.REQUIRED)
    assert chosen() == ("database-name", None, Ask.REQUIRED)
    assert chosen("quelle", said="quelle") == ("quelle-upgraded", "quelle", Ask.REQUIRED)
    assert chosen("postgresql", said="postgres") == ("postgres-upgraded", "postgresql", Ask.REQUIRED)
    assert match(b"\x01TLS?", table) == Answer(b"\x02YES", 5, "quelle", "quelle-request")
    assert match(b"\x01ZIP?", table) == Answer(b"\x02NO", 5, "quelle:declined", "quelle-declined-1")
    assert match(b"\x01KRB?", table) == Answer(b"\x02NO", 5, "quelle:declined", "quelle-declined-2")
    assert match(b"\x01?!", table) == Route(Kind.DATABASE, "quelle-cancel", None, protocol="quelle")
    assert match(b"\x03", table) == Refusal(
        "plaintext_database", match(b"\x03", table).reason, b"\x04no", "quelle-plaintext"
    )
    assert match(b"\x01", table) is None
    assert silence(table) == Route(Kind.DATABASE, "quelle-greeting", None, protocol="quelle")


def test_rule_names_are_unique(whole, first):
    for table in (whole, first):
        names = [rule.name for rule in table.rules]
        assert len(names) == len(set(names))


def test_equal_routes_share_one_tls_value(first):
    one, two = (decide(ClientHello(name, ("h2",)), first) for name in ("a.example", "b.example"))
    assert isinstance(one, Route)
    assert isinstance(two, Route)
    assert one.tls is two.tls
