"""The identity value: its bounds, and its one encoding."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.access.claims import MAX_ENCODED, MAX_GENERATION, MAX_VALUES, SYSTEM_ROLES, USAGES
from monoport.access.identity import Destination, Identity, IdentityError, Kind, decode, encode

EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)

names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
principals = names.filter(lambda name: not set(name) & set(",* "))
destinations = st.builds(
    Destination, st.sampled_from(["db", "app", "kube"]), names, st.just("") | names, st.just("") | names, st.just("")
)


@st.composite
def identities(draw: st.DrawFn) -> Identity:
    kind = draw(st.sampled_from(Kind))
    roles = names if kind is Kind.USER else st.sampled_from(sorted(SYSTEM_ROLES))
    return Identity(
        kind,
        draw(names),
        draw(names.filter(lambda name: "@" not in name)),
        tuple(draw(st.lists(roles, max_size=4))),
        draw(st.dictionaries(names, st.lists(names, max_size=4).map(tuple), max_size=4)),
        tuple(draw(st.lists(principals, max_size=4))),
        expires=draw(st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))),
        destination=draw(st.none() | destinations),
        usage=tuple(draw(st.lists(st.sampled_from(sorted(USAGES)), max_size=2))),
        login_ip=draw(st.just("") | st.ip_addresses().map(str)),
        generation=draw(st.integers(0, MAX_GENERATION)),
        issued=draw(st.none() | st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC))),
    )


@given(identities())
def test_what_was_encoded_is_what_is_decoded(identity):
    assert decode(encode(identity), identity.expires) == identity


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_garbage_is_refused_and_nothing_else_is_raised(data):
    with pytest.raises(IdentityError):
        decode(data, EXPIRES)


@given(identities(), st.data())
def test_a_changed_document_decodes_to_a_valid_identity_or_is_refused(identity, data):
    document = json.loads(encode(identity))
    key = data.draw(st.sampled_from(sorted(document)))
    document[key] = data.draw(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()) | st.just({}))
    try:
        changed = decode(json.dumps(document).encode(), EXPIRES)
    except IdentityError:
        return
    assert decode(encode(changed), EXPIRES) == changed


def test_an_identity_is_user_at_cluster_and_a_key_of_dictionaries(make):
    alice = make.user()
    assert str(alice) == "alice@example.com"
    assert {alice: 1}[make.user()] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ""}, "name: must not be empty"),
        ({"name": "x" * 256}, "name: has 256 characters, limit 255"),
        ({"name": "a\nb"}, "do not print"),
        ({"name": "a\u202eb"}, "do not print"),
        ({"name": "a\x1b[31m"}, "do not print"),
        ({"name": "\ud800"}, "do not print"),
        ({"name": " a"}, "space"),
        ({"name": "a "}, "space"),
        ({"cluster": "a@b"}, "cluster: must not contain @"),
        ({"roles": ("",)}, "roles: must not be empty"),
        ({"roles": ("r",) * (MAX_VALUES + 1)}, "roles: has 257 entries, limit 256"),
        ({"kind": Kind.HOST, "roles": ("access",)}, "a host's roles are"),
        ({"principals": ("a,b",)}, "principals: must not contain"),
        ({"principals": ("*",)}, "principals: must not contain"),
        ({"principals": ("a b",)}, "principals: must not contain"),
        ({"traits": {"": ()}}, "traits: must not be empty"),
        ({"traits": {"logins": ("\0",)}}, "traits.logins: holds characters"),
        ({"usage": ("fly",)}, "usage: expected some of"),
        ({"expires": datetime(2030, 1, 1)}, "expires: must be in UTC"),
        ({"expires": datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=1)))}, "expires: must be in UTC"),
        ({"issued": datetime(2029, 1, 1)}, "issued: must be in UTC"),
        ({"issued": datetime(1970, 1, 1, tzinfo=UTC)}, "issued: must be in UTC, after 1970"),
        ({"generation": -1}, "generation: must be between"),
        ({"generation": MAX_GENERATION + 1}, "generation: must be between"),
        ({"login_ip": "10.0.0.256"}, "login_ip: expected an IP address"),
    ],
)
def test_values_out_of_bounds_make_no_identity(make, changes, said):
    with pytest.raises(IdentityError, match=said):
        make.user(**changes)


@pytest.mark.parametrize("parts", [("host", "x"), ("db", ""), ("db", "x", "\n"), ("db", "x", "", "\x7f")])
def test_malformed_destinations_make_no_identity(parts):
    with pytest.raises(IdentityError):
        Destination(*parts)


def document(**changes: Any) -> dict[str, Any]:
    return {"v": 1, "kind": "user", "name": "alice", "cluster": "c"} | changes


def test_when_it_was_issued_is_exact(make):
    alice = make.user(issued=EXPIRES - timedelta(microseconds=1), destination=Destination("db", "orders", "postgres"))
    assert decode(encode(alice), alice.expires) == alice


def test_the_least_document_is_a_user_without_rights():
    assert decode(json.dumps(document()).encode(), EXPIRES) == Identity(Kind.USER, "alice", "c", expires=EXPIRES)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        document(v=2),
        document(v=True),
        document(v="1"),
        document(kind="robot"),
        document(kind=None),
        document(name=["alice"]),
        document(cluster=7),
        document(roles="admin"),
        document(roles=[1]),
        document(traits=[]),
        document(traits={"logins": "root"}),
        document(principals={"root": 1}),
        document(destination=[]),
        document(destination={"kind": "db"}),
        document(destination={"kind": "db", "name": "x", "port": "1"}),
        document(usage=None),
        document(login_ip=1),
        document(generation=1.0),
        document(generation=True),
        document(issued=0),
        document(issued=1.5),
        document(issued=10**18),
        document(admin=True),
        {"kind": "user"},
    ],
)
def test_documents_of_another_shape_are_refused(wrong):
    with pytest.raises(IdentityError):
        decode(json.dumps(wrong).encode(), EXPIRES)


@pytest.mark.parametrize(
    "text",
    [
        b'{"v":1,"kind":"user","name":"alice","name":"root","cluster":"c"}',
        b'{"v":1,"kind":"user","name":"alice","cluster":"c","generation":NaN}',
        b"[" * 5000,
        b"\xff",
        b" " * (MAX_ENCODED + 1),
    ],
)
def test_json_that_readers_could_understand_differently_is_refused(text):
    with pytest.raises(IdentityError):
        decode(text, EXPIRES)


def test_an_identity_too_large_for_a_certificate_is_refused(make):
    large = make.user(traits={"logins": tuple(f"{number:0200}" for number in range(100))})
    with pytest.raises(IdentityError, match=f"limit {MAX_ENCODED}"):
        encode(large)
