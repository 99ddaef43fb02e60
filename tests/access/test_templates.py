"""Templates: what a trait brings is a value, in every list of a role; what cannot be expanded grants nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.access.decide import DatabaseLogin, Denied, Permit, Ssh, authorize, visible
from monoport.access.findings import MAX_TOLD
from monoport.access.roles import logins_for

TEAM = "{{external.team}}"


def reach(make, roles, traits, *, login="red", labels=None, held=("dev",)):
    identity = make.user(roles=held, traits=traits, principals=("red", "root"))
    return authorize(identity, make.node(labels), Ssh(login), roles, (), make.now)


def query(make, roles, traits, user="red", name="red", *, labels=None, held=("dev",)):
    identity = make.user(roles=held, traits=traits)
    return authorize(identity, make.database(labels), DatabaseLogin(user, name), roles, (), make.now)


FIELDS = {"logins": [TEAM], "node_labels": {"team": TEAM}, "db_labels": {"team": [TEAM, "blue"]}}
FIELDS |= {"db_users": [TEAM], "db_names": ["x", TEAM]}


def test_every_list_of_a_role_takes_templates(make):
    roles = make.roles(dev={"allow": FIELDS})
    traits = {"team": ("green", "red")}
    ssh = reach(make, roles, traits, labels={"team": "red"})
    assert isinstance(ssh, Permit)
    assert ssh.rule == (
        "role dev: allow.node_labels has team={{external.team}} and allow.logins has {{external.team}} for red"
    )
    assert isinstance(query(make, roles, traits, labels={"team": "red"}), Permit)
    assert isinstance(query(make, roles, traits, labels={"team": "blue"}), Permit)
    assert isinstance(query(make, roles, traits, labels={"team": "yellow"}), Denied)
    assert isinstance(reach(make, roles, traits, labels={"team": "yellow"}), Denied)
    assert isinstance(reach(make, roles, traits, login="root", labels={"team": "red"}), Denied)


def test_text_may_stand_around_a_template(make):
    roles = make.roles(dev={"allow": {"node_labels": "*", "logins": ["svc-{{ external.team }}-ro"]}})
    identity = make.user(traits={"team": ("red",)}, principals=("svc-red-ro", "red"))
    assert isinstance(authorize(identity, make.node(), Ssh("svc-red-ro"), roles, (), make.now), Permit)
    assert isinstance(authorize(identity, make.node(), Ssh("red"), roles, (), make.now), Denied)
    assert logins_for(roles.values(), {"team": ("red", "blue")}) == ("svc-blue-ro", "svc-red-ro")


@pytest.mark.parametrize("traits", [{}, {"team": ()}, {"Team": ("red",)}, {"other": ("red",)}])
def test_a_template_without_a_value_grants_nothing(make, traits):
    for field in FIELDS:
        wide = {name: "*" if name.endswith("labels") else ["*"] for name in FIELDS}
        roles = make.roles(dev={"allow": wide | {field: FIELDS[field]}})
        ssh = reach(make, roles, traits, labels={"team": "red"})
        assert isinstance(ssh, Denied) is (field in {"logins", "node_labels"})
        database = query(make, roles, traits, labels={"team": "red"})
        assert isinstance(database, Denied) is field.startswith("db_")
    assert logins_for(make.roles(dev={"allow": FIELDS}).values(), traits) == ()


@pytest.mark.parametrize("value", ["*", TEAM, "{{internal.logins}}", "r*", "re?", ".*"])
def test_a_value_is_never_a_wildcard_nor_a_template_again(make, value):
    roles = make.roles(dev={"allow": FIELDS})
    traits = {"team": (value,), "logins": ("red", "root")}
    own = "plain" if "{{" in value else value  # a label cannot be written like a template
    for labels in ({"team": "red"}, {"team": own}):
        assert isinstance(reach(make, roles, traits, labels=labels), Denied)
        assert isinstance(query(make, roles, traits, labels=labels), Denied)
    assert not visible(make.user(traits=traits), make.node({"team": "red"}), roles, (), make.now)
    assert "red" not in logins_for(roles.values(), traits)
    assert isinstance(query(make, roles, traits, value, value, labels={"team": "blue"}), Permit), "itself it is"


WIDE = {"logins": ["*"], "node_labels": "*", "db_labels": "*", "db_users": ["*"], "db_names": ["*"]}


@pytest.mark.parametrize("traits", [{}, {"team": ()}, {"team": ("*",)}, {"team": ("blue", "*")}, {"team": ("red",)}])
@pytest.mark.parametrize("field", list(FIELDS))
def test_a_denial_is_not_weakened_by_what_a_template_lacks(make, field, traits):
    roles = make.roles(dev={"allow": WIDE}, no={"deny": {field: FIELDS[field]}})
    held = ("dev", "no")
    ssh = reach(make, roles, traits, labels={"team": "red"}, held=held)
    assert isinstance(ssh, Denied) is (field in {"logins", "node_labels"})
    database = query(make, roles, traits, labels={"team": "red"}, held=held)
    assert isinstance(database, Denied) is field.startswith("db_")
    answer = ssh if isinstance(ssh, Denied) else database
    assert answer.rule.startswith(f"role no: deny.{field} has ")
    assert "denied" in answer.reason
    assert "no" not in answer.reason.split(), "the client does not learn which role"


def test_a_denial_by_template_denies_its_values_alone(make):
    roles = make.roles(dev={"allow": WIDE}, no={"deny": {"db_users": [TEAM], "node_labels": {"team": TEAM}}})
    traits = {"team": ("blue",)}
    held = ("dev", "no")
    assert isinstance(query(make, roles, traits, user="red", held=held), Permit)
    assert isinstance(query(make, roles, traits, user="blue", held=held), Denied)
    assert isinstance(reach(make, roles, traits, labels={"team": "red"}, held=held), Permit)
    assert isinstance(reach(make, roles, {}, labels={"env": "x"}, held=held), Permit), "no such label, no such denial"


def test_the_rule_says_what_a_template_did(make):
    roles = make.roles(dev={"allow": WIDE}, no={"deny": {"logins": [TEAM]}})
    held = ("dev", "no")
    says = {
        (): "role no: deny.logins has {{external.team}}, which has no value: that denies everything",
        ("*",): "role no: deny.logins has {{external.team}}, which is any: that denies everything",
        ("red",): "role no: deny.logins has {{external.team}} for red",
    }
    for values, rule in says.items():
        assert reach(make, roles, {"team": values}, held=held).rule == rule
    roles = make.roles(dev={"allow": FIELDS})
    assert reach(make, roles, {}, labels={"team": "red"}).rule == (
        "no role allows team=red by allow.node_labels; looked at "
        "role dev: allow.node_labels has team={{external.team}}=nothing"
    )
    assert query(make, make.roles(dev={}), {}).rule == (
        "no role allows no labels by allow.db_labels; looked at role dev: allow.db_labels has nothing"
    )


def test_what_was_looked_at_is_told_within_bounds(make):
    many = {f"r{number}": {"allow": {"logins": ["someone-else"] * 20, "node_labels": "*"}} for number in range(50)}
    roles = make.roles(**many)
    rule = reach(make, roles, {}, held=tuple(roles)).rule
    assert len(rule) == MAX_TOLD
    assert rule.endswith("…")


values = st.lists(st.sampled_from(["*", TEAM, "red", "root", "blue"]), max_size=3)


@given(values, values)
def test_traits_alone_never_reach_what_they_do_not_name(make, teams, logins):
    roles = make.roles(dev={"allow": FIELDS | {"logins": [TEAM, "{{internal.logins}}"]}})
    traits = {"team": tuple(teams), "logins": tuple(logins)}
    answer = reach(make, roles, traits, labels={"team": "red"})
    assert isinstance(answer, Permit) is ("red" in teams)
    assert isinstance(query(make, roles, traits, labels={"team": "red"}), Permit) is ("red" in teams)
