"""The explanation of a decision looks at what decides, and ends with it; what a login would be; what a change takes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.access.decide import DatabaseLogin, Denied, Permit, Ssh, authorize
from monoport.access.explain import Step, explain
from monoport.access.findings import look
from monoport.access.lease import Leases
from monoport.access.presets import PRESETS
from monoport.access.question import ask_node
from monoport.access.resources import User, parse_document
from monoport.access.supposed import USER_TTL, restricts, signed_in


def user(roles=("dev",), **traits) -> User:
    spec = {"roles": list(roles), "traits": {name: list(values) for name, values in traits.items()}}
    found = parse_document({"kind": "user", "metadata": {"name": "alice"}, "spec": spec})
    assert isinstance(found, User)
    return found


def test_every_rule_of_every_role_is_shown_and_the_one_that_decided(make):
    roles = make.roles(
        dev={"allow": {"logins": ["{{internal.logins}}"], "node_labels": {"env": "dev"}}},
        ops={"allow": {"logins": ["root"], "node_labels": {"env": ["prod", "test"]}}, "deny": {"logins": ["admin"]}},
    )
    identity = make.user(roles=("dev", "ops"), principals=("root", "admin"), traits={"logins": ("root", "admin")})
    assert explain(identity, make.node({"env": "prod"}), Ssh("root"), roles, (), make.now) == (
        Step("locks", "no match", "none of 0 is for alice@example.com or what it would use"),
        Step("role dev: deny.node_labels", "no match", "it has nothing; wanted: env=prod"),
        Step("role dev: deny.logins", "no match", "it has nothing; wanted: root"),
        Step("role ops: deny.node_labels", "no match", "it has nothing; wanted: env=prod"),
        Step("role ops: deny.logins", "no match", "it has admin; wanted: root"),
        Step("role dev: allow.node_labels", "no match", "it has env=dev; wanted: env=prod"),
        Step("role dev: allow.logins", "allows", "has {{internal.logins}} for root; wanted: root"),
        Step("role ops: allow.node_labels", "allows", "has env=prod; wanted: env=prod"),
        Step("role ops: allow.logins", "allows", "has root; wanted: root"),
        Step(
            "decision",
            "allowed",
            "role ops: allow.node_labels has env=prod and allow.logins has root; until 2030-01-02 04:04:05 UTC",
        ),
    )
    denied = explain(identity, make.node({"env": "prod"}), Ssh("admin"), roles, (), make.now)
    assert Step("role ops: deny.logins", "denies", "has admin; wanted: admin") in denied
    assert denied[-1] == Step("decision", "denied", "role ops: deny.logins has admin")


def test_a_list_that_does_not_match_says_what_it_lacks(make):
    question = ask_node(make.node({"env": "prod"}), "root")
    labels, logins = look(make.role(allow={"logins": ["admin"]}), "allow", question, {})
    assert (labels.rule, logins.rule) == ("allow.node_labels has no env=prod", "allow.logins has no root")


def test_locks_and_missing_roles_are_steps_too(make):
    steps = explain(
        make.user(roles=("dev", "gone")),
        make.database(),
        DatabaseLogin("reader", "shop"),
        make.roles(dev={}),
        [make.lock(user="alice")],
        make.now,
    )
    assert steps[0] == Step("lock l1", "denies", "user alice")
    assert Step("role gone", "denies", "it does not exist, and nobody knows what it denied") in steps
    assert steps[-1] == Step("decision", "denied", "lock l1: user alice")


def test_a_node_without_a_login_is_explained_by_its_labels(make):
    roles = make.roles(dev={"allow": {"logins": ["root"], "node_labels": "*"}})
    steps = explain(make.user(), make.node(), Ssh(), roles, (), make.now)
    assert [step.rule for step in steps] == [
        *("locks", "role dev: deny.node_labels", "role dev: allow.node_labels", "decision"),
    ]
    assert steps[-1].verdict == "allowed"


@given(st.sampled_from(["root", "alice", "bob"]), st.sampled_from(["dev", "prod"]), st.booleans())
def test_the_last_step_is_the_decision_itself(make, login, env, locked):
    roles = make.roles(dev={"allow": {"logins": ["root"], "node_labels": {"env": "dev"}}})
    locks = [make.lock(login=login)] if locked else []
    arguments = (make.user(), make.node({"env": env}), Ssh(login), roles, locks, make.now)
    decision, last = authorize(*arguments), explain(*arguments)[-1]
    assert (last.verdict == "allowed") is isinstance(decision, Permit)
    assert last.why == decision.rule if isinstance(decision, Denied) else last.why.startswith(decision.rule)


def test_an_action_that_is_none_on_the_resource(make):
    with pytest.raises(TypeError, match="Ssh is not an action on a Database"):
        explain(make.user(), make.database(), Ssh(), {}, (), make.now)


# --- what a login would be


def test_a_user_as_if_signed_in(make):
    alice = user(("access", "gone"), logins=("root",), team=("red",))
    identity = signed_in(alice, "example.com", PRESETS, make.now)
    assert (identity.principals, identity.roles, identity.issued) == (("root",), ("access", "gone"), make.now)
    assert identity.expires == make.now + USER_TTL
    short = signed_in(alice, "example.com", PRESETS, make.now, timedelta(minutes=5), "192.0.2.1")
    assert (short.expires, short.login_ip) == (make.now + timedelta(minutes=5), "192.0.2.1")


# --- what a change takes away

DENY = {"deny": {"logins": ["x{{external.banned}}"], "db_labels": {"team": "{{external.off}}"}, "db_users": ["no"]}}


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        (user(), user(), False),
        (user(), user(("dev", "more")), False),
        (user(("dev", "more")), user(), True),
        (user(logins=("a",)), user(logins=("a", "b")), False),
        (user(logins=("a", "b")), user(logins=("b", "a")), False),
        (user(logins=("a",)), user(logins=("b",)), True),
        (user(logins=("a",)), user(), True),
        (user(), user(team=("red",)), False),
        (user(), user(("dev", "gone")), True),
        (user(), user(("dev", "no")), True),
        (user(), user(("dev", "brief")), True),
        (user(), user(("dev", "recorded")), False),
        (user(), user(("dev", "still")), True),
        (user(("quiet",)), user(("quiet", "recorded")), True),
        (user(("dev", "no")), user(("dev", "no"), team=("red",)), False),
        (user(("dev", "no")), user(("dev", "no"), banned=("red",)), True),
        (user(("dev", "no"), off=("a",)), user(("dev", "no"), off=("a", "b")), True),
        (user(("gone",)), user(("gone",), team=("red",)), False),
    ],
)
def test_what_a_change_takes_from_certificates_of_before(make, before, after, taken):
    roles = make.roles(
        dev={},
        more={"allow": {"logins": ["root"]}},
        no=DENY,
        brief={"options": {"max_session_ttl": "1h"}},
        recorded={"options": {"record_session": True}},
        still={"options": {"port_forwarding": False}},
        quiet={"options": {"record_session": False}},
    )
    assert restricts(before, after, roles) is taken


def test_who_was_changed_is_told_to_sign_in_again(make):
    lock = make.lock(user="alice")
    lock = lock.model_copy(update={"spec": lock.spec.model_copy(update={"issued_before": make.now})})
    roles = make.roles(dev={"allow": {"logins": ["*"], "node_labels": "*"}})
    again = "; your rights were changed: sign in again with tsh login"
    for login, what in (("root", 'login "root" to node "web" denied'), (None, 'access to node "web" denied')):
        answer = authorize(make.user(), make.node(), Ssh(login), roles, [lock], make.now)
        assert answer == Denied(what + again, "lock l1: user alice")
    leases, said = Leases(), []
    leases.add(make.user(), make.user().expires, said.append)
    assert leases.sweep(make.now, [lock]) == 1
    assert said == ["user alice was changed: sign in again"]
