"""Documents: what is accepted, what is refused, and with which words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.access.duration import format_duration, parse_duration
from monoport.access.fields import MAX_TTL
from monoport.access.presets import PRESETS
from monoport.access.resources import ResourceError, parse_document, to_document
from monoport.access.roles import logins_for, session_ttl


def doc(kind="role", name="x", version="v1", spec=None, **metadata):
    return {"kind": kind, "version": version, "metadata": {"name": name, **metadata}, "spec": spec or {}}


ACCEPTED = [
    doc(),
    doc(spec={"allow": {"node_labels": "*", "rules": [{"resources": ["*"], "verbs": ["read"]}]}}),
    doc(spec={"deny": {"node_labels": {"env": ["a", "b"], "team": "*"}}, "options": {"max_session_ttl": "1h30m"}}),
    doc(spec={"allow": {"kubernetes_resources": [{"kind": "pod", "namespace": "web", "verbs": ["get"]}]}}),
    doc("node", "h1", spec={"hostname": "web", "host_id": "h1"}, labels={"env": "dev"}, description="a node"),
    doc("db", "orders", spec={"protocol": "postgres", "host_id": "h1"}, expires="2030-01-01T00:00:00Z"),
    doc("lock", spec={"target": {"user": "alice"}, "message": "left", "expires": "2030-01-01T01:00:00+01:00"}),
    doc("lock", spec={"target": {"node": "h1"}}, expires=datetime(2030, 1, 1)),
    doc("token", "secret", spec={"types": ["node", "db"]}),
    doc("user", "alice@example.com", spec={"roles": ["access"], "traits": {"logins": ["root"]}}),
]


@pytest.mark.parametrize("document", ACCEPTED, ids=lambda one: f"{one['kind']}/{one['metadata']['name']}")
def test_a_resource_survives_its_document(document):
    resource = parse_document(document)
    assert resource.name == document["metadata"]["name"]
    assert parse_document(to_document(resource)) == resource


def test_expiries_are_utc_and_the_earlier_counts():
    lock = parse_document(
        doc(
            "lock", spec={"target": {"user": "a"}, "expires": "2030-01-01T02:00:00+01:00"}, expires=datetime(2030, 1, 2)
        )
    )
    assert lock.spec.expires == datetime(2030, 1, 1, 1, tzinfo=UTC)
    assert lock.metadata.expires == datetime(2030, 1, 2, tzinfo=UTC)
    assert lock.in_force(datetime(2030, 1, 1, 0, 59, tzinfo=UTC))
    assert not lock.in_force(datetime(2030, 1, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "expected a document with kind, version, metadata and spec"),
        ({}, "kind: expected one of role, node, db, lock, token, user"),
        ({"kind": ["role"]}, "kind: expected one of"),
        ({"kind": "rolle"}, "kind: expected one of"),
        ({"kind": "role"}, "role: metadata: is missing"),
        ({"kind": "role", "metadata": 3}, "role: metadata: input should be"),
        (doc(version="v9"), "role/x: version: input should be 'v1'"),
        (doc(name="a/b"), "role/a/b: metadata.name: must not contain /"),
        (doc(name="a\nb"), "role: metadata.name: holds characters that do not print"),
        (doc(name=""), "role/: metadata.name: must not be empty"),
        (doc(name="n" * 256), "metadata.name: string should have at most 255 characters"),
        (doc(colour="red"), "role/x: metadata.colour: unknown key"),
        (doc(expires="soon"), "role/x: metadata.expires: invalid isoformat string"),
        (doc(expires=5), "role/x: metadata.expires: input should be a valid datetime"),
        (doc(spec={"allow": {"logins": "root"}}), "role/x: spec.allow.logins: input should be a valid tuple"),
        (doc(spec={"allow": {"logins": [3]}}), "role/x: spec.allow.logins.0: input should be a valid string"),
        (doc(spec={"allow": {"logins": ["{{internal.colour}}"]}}), "expected one of {{internal.logins}}, "),
        (doc(spec={"allow": {"logins": ["{{external.logins}}"]}}), "expected one of {{internal.logins}}, "),
        (doc(spec={"allow": {"logins": ["{{logins}}"]}}), "or {{external.NAME}}, once, with or without text around it"),
        (doc(spec={"allow": {"logins": ["{{external.a}}{{external.b}}"]}}), "or {{external.NAME}}, once"),
        (doc(spec={"allow": {"logins": ["external.a}}"]}}), "or {{external.NAME}}, once"),
        (doc(spec={"deny": {"db_users": ["{{external.-a}}"]}}), "'-a' is no name of a trait: expected letters"),
        (doc(spec={"allow": {"node_labels": {"{{external.a}}": "b"}}}), "templates are not allowed here"),
        (doc("node", "h1", spec={"hostname": "w", "host_id": "h1"}, labels={"a": "{{b}}"}), "templates are not allow"),
        (doc(spec={"allow": {"node_labels": {"*": "dev"}}}), "the label '*' takes only the value '*'"),
        (doc(spec={"allow": {"node_labels": {"a": []}}}), "role/x: spec.allow.node_labels.a: tuple should have"),
        (doc(spec={"allow": {"node_labels": 5}}), "role/x: spec.allow.node_labels: input should be"),
        (doc(spec={"allow": {"rules": [{"resources": ["rol"], "verbs": ["read"]}]}}), "unknown resources 'rol'"),
        (doc(spec={"allow": {"rules": [{"resources": ["role"], "verbs": ["eat"]}]}}), "unknown verbs 'eat'"),
        (doc(spec={"options": {"max_session_ttl": "12"}}), "expected a duration such as 8h, 30m or 1h30m"),
        (doc(spec={"options": {"max_session_ttl": 3600}}), "max_session_ttl: input should be a valid timedelta"),
        (doc(spec={"options": {"max_session_ttl": "31d"}}), "max_session_ttl: input should be less than"),
        (doc(spec={"options": {"forward_agent": "yes", "port_forwarding": 1}}), "valid boolean (and 1 more)"),
        (doc("node", "h1", spec={"hostname": "web", "host_id": "h2"}), "node/h1: metadata.name must be spec.host_id"),
        (doc("db", "Orders", spec={"protocol": "postgres", "host_id": "h"}), "must be a lower-case DNS label"),
        (doc("db", "kube", spec={"protocol": "postgres", "host_id": "h"}), "DNS label other than db, kube"),
        (doc("db", "o", spec={"protocol": "Postgres", "host_id": "h"}), "spec.protocol: expected a lower-case DNS"),
        (doc("db", "o", spec={"protocol": "postgres", "host_id": "h", "uri": "x"}), "db/o: spec.uri: unknown key"),
        (doc("lock", spec={"target": {}}), "lock/x: spec.target: expected exactly one of user, role, node, login"),
        (doc("lock", spec={"target": {"user": "a", "role": "b"}}), "expected exactly one of user, role, node, login"),
        (doc("token", spec={"types": []}), "token/x: spec.types: tuple should have at least 1 item"),
        (doc("token", spec={"types": ["admin"]}), "token/x: spec.types.0: input should be 'node'"),
        (doc("user", spec={"password": "x"}), "user/x: spec.password: unknown key"),
    ],
)
def test_a_wrong_document_is_refused_with_the_path_of_what_is_wrong(document, said):
    with pytest.raises(ResourceError) as caught:
        parse_document(document)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_lists_are_bounded():
    with pytest.raises(ResourceError, match="at most 256"):
        parse_document(doc(spec={"allow": {"logins": [f"l{number}" for number in range(257)]}}))


def test_presets_are_documents_like_any_other():
    assert set(PRESETS) == {"access", "editor", "auditor"}
    for name, role in PRESETS.items():
        assert role.name == name
        assert parse_document(to_document(role)) == role


def test_logins_of_a_certificate_come_from_roles_and_traits(make):
    traits = {"logins": ("alice", "root")}
    own = make.role(allow={"logins": ["{{internal.logins}}", "deploy"]})
    star = make.role(allow={"logins": ["*"]})
    deny = make.role(deny={"logins": ["root"]})
    assert logins_for([own], traits) == ("alice", "deploy", "root")
    assert logins_for([star], traits) == ("alice", "root")
    assert logins_for([own, deny], traits) == ("alice", "deploy")
    assert logins_for([own, make.role(deny={"logins": ["*"]})], traits) == ()
    assert logins_for([own], {"logins": ("*",)}) == ("deploy",)
    assert logins_for([star], {}) == ()


def test_the_shortest_role_sets_how_long_a_certificate_lives(make):
    hour = make.role(options={"max_session_ttl": "1h"})
    assert session_ttl([hour, make.role()], MAX_TTL) == timedelta(hours=1)
    assert session_ttl([], MAX_TTL) == MAX_TTL


@given(st.integers(1, 10**8))
def test_durations_are_read_as_they_are_written(seconds):
    assert parse_duration(format_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "0s", "1", "h", "1m1h", "1.5h", "-1h", "1h ", "1H", "１h", "9999999h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


def test_days_count():
    assert parse_duration("2d1h") == timedelta(days=2, hours=1)
