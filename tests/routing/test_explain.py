"""The explanation and the decision are one: the rule that won is the rule of the outcome, whatever comes."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monoport.routing.conditions import Silence
from monoport.routing.explain import Mark, explain, listing
from monoport.routing.match import decide, match, silence
from monoport.routing.outcome import Code, Kind
from monoport.routing.table import build
from monoport.wire.clienthello import ClientHello

LABELS = ["kube", "db", "shop", "dial", "bootstrap", "kubeapp", "token"]
PARENTS = [
    "proxy.example.com",
    "alt.example.org",
    "teleport.cluster.local",
    "grafana.example.com",
    "elsewhere",
    "example",
]
PROTOCOLS = [
    *("h2", "http/1.1", "spdy/3", "\n\n", "postgresql", "teleport-", "teleport-x", "teleport-auth@other"),
    *("teleport-proxy-ssh", "teleport-ssh-proxy", "teleport-reversetunnel", "teleport-reverse-tunnel"),
    *("teleport-postgres", "teleport-mysql", "teleport-mongodb", "teleport-auth@example"),
    "teleport-auth@6578616d706c65.teleport.cluster.local",
]
names = st.builds(
    lambda labels, parent: ".".join([*labels, parent]),
    st.lists(st.sampled_from(LABELS), max_size=3),
    st.sampled_from(PARENTS),
)
offered = st.lists(st.sampled_from(PROTOCOLS), max_size=5).map(tuple)
hellos = st.builds(ClientHello, st.none() | names, offered)
tables = st.sampled_from(["first", "whole", "bare"])
states = st.sampled_from(["", "postgres", "postgres:declined"])
plain = st.sampled_from(
    [
        b"SSH-2.0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\x16\x03\x01",
        b"\x16\x03\x01\0\0",
        b"\x16\x03",
        bytes.fromhex("0000000804d2162f"),
        bytes.fromhex("0000000804d21630"),
        bytes.fromhex("0000001004d2162e"),
        bytes.fromhex("0000002000030000"),
    ]
)
cut = st.builds(lambda data, end, tail: data[:end] + tail, plain, st.integers(0, 20), st.binary(max_size=2))


def won(steps: list) -> str | None:
    """The rule that won, None if more bytes are needed."""
    winners = [step.rule for step in steps if step.verdict is Mark.WON]
    undecided = [step.rule for step in steps if step.verdict is Mark.UNDECIDED]
    assert len(winners) == (0 if undecided else 1)
    assert all(step.why for step in steps)
    return winners[0] if winners else None


@settings(max_examples=600, deadline=None)
@given(hello=hellos, which=tables, said=states)
@example(hello=ClientHello("kube.proxy.example.com", ("teleport-proxy-ssh",)), which="first", said="")
def test_they_agree_on_every_hello(request, hello, which, said):
    table = request.getfixturevalue(which)
    steps = explain(hello, table, said)
    assert won(steps) == decide(hello, table, said).rule
    assert [step.rule for step in steps] == [rule.name for rule in table.rules]


@settings(max_examples=400, deadline=None)
@given(data=cut | st.binary(max_size=12), which=tables, said=states)
def test_they_agree_on_all_other_first_bytes(request, data, which, said):
    table = request.getfixturevalue(which)
    outcome, winner = match(data, table, said), won(explain(data, table, said))
    if winner == "http":  # it has won before the Host field is there
        assert outcome is None or outcome.rule == "http"
    else:
        assert (outcome and outcome.rule) == winner


@pytest.mark.parametrize("alpn", [("h2",), ("teleport-postgres",), ("teleport-mysql",)])
def test_they_agree_on_octets_of_openssl(first, captured, alpn):
    data = captured("proxy.example.com", *alpn)
    assert won(explain(data, first)) == match(data, first).rule
    assert won(explain(data[:-1], first)) is None


@settings(deadline=None)
@given(which=tables, said=states)
def test_they_agree_on_silence(request, which, said):
    table = request.getfixturevalue(which)
    assert won(explain(Silence(), table, said)) == silence(table, said=said).rule


def test_each_rule_says_why(first):
    hello = ClientHello("shop.db.proxy.example.com", ("h2", "teleport-postgres"))
    steps = {step.rule: (step.verdict, step.why) for step in explain(hello, first)}
    assert steps["postgres"] == (Mark.WON, "ALPN teleport-postgres")
    assert steps["web"] == (Mark.OUTRANKED, "it holds, but postgres decides first")
    assert steps["kubernetes"] == (Mark.LOST, "SNI is none of its names")
    assert steps["database-name"] == (Mark.LOST, "ALPN is offered")
    assert steps["postgres-upgraded"] == (Mark.LOST, "only after the request of postgres")
    kube = {step.rule: step.why for step in explain(ClientHello("kube.proxy.example.com", ()), first)}
    assert kube["kubernetes"].endswith("; it is not enabled here")
    upgraded = {step.rule: step.why for step in explain(hello, first, "postgres")}
    assert upgraded["ssh"] == "only at first"


def test_what_has_not_all_come_and_what_is_no_hello(first):
    assert won(explain(b"", first)) is None
    assert won(explain(b"\x16\x03\x01", first)) is None
    assert won(explain(b"\x16\x03\x01\0\0", first)) == "malformed-hello"


def test_a_state_that_was_never_said_is_an_error(first):
    with pytest.raises(KeyError):
        explain(b"", first, "mysql")


def test_the_listing_shows_every_rule_in_words(first, whole):
    for table in (first, whole):
        rows = listing(table)
        assert [row.rule for row in rows] == [rule.name for rule in table.rules]
        assert all(row.first_bytes and row.condition and row.goes_to for row in rows)
    rows = {row.rule: row for row in listing(first)}
    assert rows["ssh"].tls == "TLS 1.3, cluster certificate shown, no client certificate"
    assert rows["postgres"].tls == "TLS 1.2, 1.3, cluster certificate shown, user certificate optional"
    assert rows["auth"].tls == "passed through"
    assert rows["ssh-plain"].tls == "in the protocol, if any"
    assert rows["http"].tls == ""
    assert not rows["kubernetes"].served
    assert rows["kubernetes"].condition == "SNI kube.alt.example.org, kube.proxy.example.com, whatever the ALPN"
    assert rows["postgres-cancel"].condition == "00 00 ?? ?? 04 d2 16 2e"
    bare = {row.rule: row for row in listing(build(["a.example"], "a", frozenset({Kind.WEB})))}
    assert bare["application"].condition == "SNI (none configured), ALPN h2, http/1.1 or none"


def test_codes_are_plain_strings():
    assert f"{Code.NOT_ENABLED}" == "not_enabled"
