"""What every registered protocol must hold, without a connection: routes, its front, its documents."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport import protocols
from monoport.config.model import ProxyService
from monoport.protocols.description import Description
from monoport.routing.match import decide, match
from monoport.routing.outcome import Answer, Ask, Kind, Refusal, Route, Trust
from monoport.routing.table import Table, build
from monoport.wire.clienthello import ClientHello
from monoport.wire.front import Cancel, Closed, Login, Secured, Send, StartTls, Step, Why

from .ends import ends

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "monoport"
# Where a protocol's name may stand: the configuration's keys are a contract, one ALPN name is reserved in any case, and
# the demo starts real servers.
NAMING = ("config/model.py", "routing/names.py", "daemon/demo/")
PUBLIC = "proxy.example.com"
FAR_TOO_MUCH = 1 << 20  # bytes; any opening is a few kilobytes


@pytest.fixture(scope="module")
def table() -> Table:
    """Every protocol, and nothing else, behind one port."""
    return build([PUBLIC], "example", frozenset({Kind.DATABASE}), [one.routing for one in protocols.TABLE.values()])


def test_every_private_alpn_name_leads_to_it(protocol: Description, table: Table) -> None:
    for name in protocol.alpn:
        route = decide(ClientHello(server_name=PUBLIC, alpn=(name,)), table)
        assert isinstance(route, Route), route
        assert (route.kind, route.protocol, route.alpn) == (Kind.DATABASE, protocol.name, (name,))
        assert route.tls is not None
        assert (route.tls.alpn, route.tls.ask, route.tls.trust) == (name, Ask.OPTIONAL, Trust.USER)


def test_our_own_clients_may_have_it_sealed(protocol: Description, table: Table) -> None:
    (name,) = protocol.routing.sealed_alpn
    route = decide(ClientHello(server_name=PUBLIC, alpn=(name, protocol.alpn[0])), table)
    assert isinstance(route, Route), route
    assert (route.kind, route.protocol, route.sealed) == (Kind.DATABASE, protocol.name, True)
    assert route.tls is not None
    assert (route.tls.alpn, route.tls.ask, route.tls.trust, route.tls.tls12) == (name, Ask.REQUIRED, Trust.USER, False)


def test_its_own_clients_need_a_certificate(protocol: Description, table: Table) -> None:
    said = ""
    if protocol.routing.starttls:
        answer = match(protocol.routing.starttls, table)
        assert isinstance(answer, Answer), answer
        assert (answer.send, answer.consumed) == (protocol.routing.starttls_answer, len(protocol.routing.starttls))
        said = answer.said
    for name in protocol.direct_alpn:
        hello = ClientHello(server_name=PUBLIC, alpn=(name,))
        for state in {said, "" if protocol.routing.direct else said}:
            route = decide(hello, table, state)
            assert isinstance(route, Route), route
            assert (route.kind, route.protocol) == (Kind.DATABASE, protocol.name)
            assert route.tls is not None
            assert (route.tls.alpn, route.tls.ask, route.tls.trust) == (name, Ask.REQUIRED, Trust.USER)
        if not protocol.routing.direct:
            refusal = decide(hello, table)
            assert isinstance(refusal, Refusal), refusal
            assert refusal.code == "not_enabled"


def test_it_is_documented(protocol: Description) -> None:
    pages = [ROOT / "docs" / "protocols" / f"{name}.md" for name in (protocol.name, *protocol.aliases)]
    page = next((page.read_text() for page in pages if page.exists()), "")
    assert page.startswith(f"# {protocol.title}\n"), f"none of {', '.join(page.name for page in pages)}"
    assert all(f"`{name}`" in page for name in (*protocol.alpn, *protocol.routing.sealed_alpn))
    assert f"`{protocol.name}`" in (ROOT / "docs" / "configuration.md").read_text()


def test_its_keys_are_in_the_configuration(protocol: Description) -> None:
    """The model spells them out, for they are a contract with whoever writes one; a description only names them."""
    fields = ProxyService.model_fields
    for key, value in ((protocol.listen_key, "127.0.0.1:9"), (protocol.silence_key, "1s")):
        if key:
            assert key in fields, f"config/model.py has no proxy_service.{key}"
            assert getattr(ProxyService.model_validate({"enabled": True, key: value}), key) is not None
    assert bool(protocol.silence_key) <= protocol.routing.greets


def test_the_configuration_has_no_key_of_a_protocol_that_is_not_there() -> None:
    own = {"web_listen_addr", "listen_addr", "tunnel_listen_addr"}
    ends = ("_listen_addr", "_on_silence")
    found = {key for key in ProxyService.model_fields if key.endswith(ends)}
    named = {key for one in protocols.TABLE.values() for key in (one.listen_key, one.silence_key) if key}
    assert found - own - {"kube_listen_addr"} == named


def test_the_administrator_of_a_real_server_is_told_what_to_set(protocol: Description) -> None:
    paths = {"certificate": "/s.crt", "key": "/s.key", "cas": "/s.cas", "bundle": "/s.pem", "cluster": "example.com"}
    text = protocol.server.format(**paths)
    assert text.endswith("\n")
    assert all(paths[name] in text for name in ("certificate", "key", "cas"))


def test_nothing_outside_of_its_own_files_names_it(protocol: Description) -> None:
    """Program text, not words for people: a name of it as a value of its own, or one of its keys."""
    words = {protocol.name, *protocol.aliases, *protocol.alpn, *protocol.direct_alpn}
    words |= {key for key in (protocol.listen_key, protocol.silence_key) if key}
    files = {path.relative_to(SOURCE).as_posix(): path for path in SOURCE.rglob("*.py")}
    others = {name: path for name, path in files.items() if protocol.name not in name and not name.startswith(NAMING)}
    elsewhere = [
        (name, node.lineno, word)
        for name, path in others.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant | ast.Attribute)
        and (word := node.value if isinstance(node, ast.Constant) else node.attr) in words
    ]
    assert not elsewhere


@pytest.mark.parametrize("why", Why)
def test_every_refusal_has_words(protocol: Description, why: Why) -> None:
    said = protocol.front().refuse(why, "access denied")
    assert b"access denied" in said
    assert said == protocol.front().refuse(why, "access denied")  # of its own, whatever came before


@given(data=st.data(), secured=st.sampled_from(Secured))
def test_its_front_survives_whatever_comes(data: st.DataObject, secured: Secured) -> None:
    protocol = data.draw(st.sampled_from(tuple(protocols.TABLE.values())))
    steps = opened(protocol, secured, data.draw(st.lists(st.binary(max_size=64), max_size=20)))
    check(steps, secured)


@given(data=st.data(), secured=st.sampled_from(Secured))
def test_its_front_survives_openings_with_errors_in_them(data: st.DataObject, secured: Secured) -> None:
    protocol = data.draw(st.sampled_from(tuple(protocols.TABLE.values())))
    began = [*protocol.routing.declined, protocol.routing.starttls, ends(protocol).opening("alice", "app")]
    whole = bytearray(b"".join(data.draw(st.permutations(began))))
    for place, octet in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4)):
        whole[place] = octet
    cut = data.draw(st.integers(0, len(whole)))
    check(opened(protocol, secured, [bytes(whole[:cut]), bytes(whole[cut:])]), secured)


@pytest.mark.parametrize("secured", Secured)
@pytest.mark.parametrize("octet", [b"\0", b"\1", b"\xff"])
def test_its_front_does_not_listen_for_ever(protocol: Description, secured: Secured, octet: bytes) -> None:
    steps = opened(protocol, secured, (octet * 1024 for _ in range(FAR_TOO_MUCH // 1024)))
    assert isinstance(steps[-1], Closed | StartTls)  # which then listens no longer than a handshake may take


@pytest.mark.parametrize("secured", Secured)
def test_nobody_logs_in_without_a_certificate(protocol: Description, peer: Any, secured: Secured) -> None:
    *_, last = opened(protocol, secured, [peer.opening("alice", "app")])
    assert isinstance(last, Login if secured is Secured.CERTIFIED else StartTls | Closed)


def opened(protocol: Description, secured: Secured, chunks: Iterable[bytes]) -> list[Step]:
    """Every step until one that ends the opening, or asks for TLS, which no garbage will bring about."""
    front = protocol.front()
    steps = []
    step = front.begin(secured)
    remaining = iter(chunks)
    while True:
        if step is None:
            chunk = next(remaining, None)
            if chunk is None:
                return steps
            step = front.receive(chunk)
            continue
        steps.append(step)
        if not isinstance(step, Send):
            return steps
        assert len(steps) < 1000, "a front that talks to itself"
        step = front.receive(b"")


def check(steps: list[Step], secured: Secured) -> None:
    """The outcomes are the closed ones, and each says what it must."""
    for step in steps:
        match step:
            case Send(data):
                assert data
            case StartTls():
                assert secured is not Secured.CERTIFIED
            case Login(_user, _database, forward):
                assert secured is Secured.CERTIFIED
                assert forward
            case Closed(reason):
                assert reason.isprintable()
                assert reason
            case Cancel(_process_id, secret):
                assert secret
            case _:
                raise AssertionError(step)
