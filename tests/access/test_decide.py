"""Decisions: allow, deny, templates, locks, narrowed certificates, and who may make a permit."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.access import decide
from monoport.access.decide import (
    Allowed,
    DatabaseLogin,
    Denied,
    Permit,
    Ssh,
    authorize,
    authorize_verb,
    visible,
)
from monoport.access.forwarding import Forwarding
from monoport.access.identity import Destination
from monoport.access.presets import PRESETS
from monoport.access.resources import Recording, ResourceError

ANYTHING = {
    "logins": ["*"],
    "node_labels": {"*": "*"},
    "db_labels": {"*": "*"},
    "db_users": ["*"],
    "db_names": ["*"],
    "rules": [{"resources": ["*"], "verbs": ["*"]}],
}


def ask(make, identity, roles, *, login="root", labels=None, locks=(), now=None):
    return authorize(identity, make.node(labels), Ssh(login), roles, locks, now or make.now)


def ask_db(make, identity, roles, user="reader", name="shop", *, labels=None, locks=()):
    return authorize(identity, make.database(labels), DatabaseLogin(user, name), roles, locks, make.now)


def test_a_permit_says_who_what_until_when_and_why(make):
    roles = make.roles(dev={"allow": {"logins": ["root"], "node_labels": {"env": "dev"}}})
    permit = ask(make, make.user(), roles, labels={"env": "dev"})
    assert isinstance(permit, Permit)
    assert (permit.identity, permit.kind, permit.name, permit.host_id) == (make.user(), "node", "h1", "h1")
    assert permit.action == Ssh("root")
    assert permit.until == make.user().expires
    assert permit.rule == "role dev: allow.node_labels has env=dev and allow.logins has root"
    assert permit.options.record_session is Recording.BEST_EFFORT
    assert not permit.options.record_input
    assert not permit.options.forwarding[Forwarding.AGENT].granted
    assert not permit.options.forwarding[Forwarding.PORT].granted


@pytest.mark.parametrize(
    "said", list(itertools.product(["off", "best_effort", "strict", True, False], repeat=2)), ids=str
)
def test_the_strictest_recording_wins(make, said):
    order = {"off": 0, False: 0, "best_effort": 1, True: 1, "strict": 2}
    allow = {"logins": ["root"], "node_labels": "*"}
    roles = make.roles(
        one={"allow": allow, "options": {"record_session": said[0], "record_input": True}},
        two={"allow": allow, "options": {"record_session": said[1]}},
    )
    options = ask(make, make.user(roles=("one", "two")), roles).options
    assert options.record_session.strictness == max(order[one] for one in said)
    assert options.recorded_by == ("two" if order[said[1]] > order[said[0]] else "one")
    assert options.record_input


def test_a_role_that_does_not_allow_this_access_says_nothing_of_its_recording(make):
    roles = make.roles(
        here={"allow": {"logins": ["root"], "node_labels": "*"}, "options": {"record_session": "off"}},
        there={"allow": {"logins": ["root"], "node_labels": {"env": "prod"}}, "options": {"record_session": "strict"}},
    )
    assert ask(make, make.user(roles=("here", "there")), roles).options.record_session is Recording.OFF


@pytest.mark.parametrize("value", ["always", "", "STRICT", 1, None, ["strict"]], ids=repr)
def test_another_word_for_recording_is_refused_by_its_path(make, value):
    with pytest.raises(ResourceError, match="record_session"):
        make.roles(one={"options": {"record_session": value}})


def test_without_roles_everything_is_denied(make):
    answer = ask(make, make.user(roles=()), {})
    assert answer == Denied('login "root" to node "web" denied', "no role allows it: the certificate names no roles")


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ({"*": "*"}, {}, True),
        ("*", {"env": "dev"}, True),
        ({}, {"env": "dev"}, False),
        ({"env": "dev"}, {"env": "dev", "more": "x"}, True),
        ({"env": "dev"}, {"env": "prod"}, False),
        ({"env": "dev"}, {}, False),
        ({"env": ["dev", "test"]}, {"env": "test"}, True),
        ({"env": "*"}, {"env": "any"}, True),
        ({"env": "*"}, {}, False),
        ({"env": "dev", "team": "a"}, {"env": "dev"}, False),
        ({"env": "de"}, {"env": "dev"}, False),
    ],
)
def test_labels_match_all_keys_and_one_value_of_each(make, selector, labels, matches):
    allow = make.roles(dev={"allow": {"logins": ["root"], "node_labels": selector}})
    assert isinstance(ask(make, make.user(), allow, labels=labels), Permit) is matches
    deny = make.roles(dev={"allow": ANYTHING, "deny": {"node_labels": selector}})
    assert isinstance(ask(make, make.user(), deny, labels=labels), Denied) is matches


def test_labels_and_logins_must_be_allowed_by_the_same_role(make):
    roles = make.roles(
        a={"allow": {"logins": ["root"], "node_labels": {"env": "dev"}}},
        b={"allow": {"logins": ["alice"], "node_labels": {"env": "prod"}}},
    )
    answer = ask(make, make.user(roles=("a", "b")), roles, labels={"env": "prod"})
    assert answer == Denied(
        'login "root" to node "web" denied',
        "no role allows root by allow.logins; looked at role a: allow.node_labels has env=dev; "
        "role b: allow.logins has alice",
    )
    assert isinstance(ask(make, make.user(roles=("a", "b")), roles, login="alice", labels={"env": "prod"}), Permit)


def test_templates_stand_for_the_users_own_traits(make):
    roles = make.roles(
        dev={
            "allow": {
                "logins": ["{{internal.logins}}"],
                "node_labels": "*",
                "db_labels": "*",
                "db_users": ["{{ internal.db_users }}"],
                "db_names": ["{{internal.db_names}}"],
            }
        }
    )
    assert isinstance(ask(make, make.user(), roles), Permit)
    assert isinstance(ask_db(make, make.user(), roles), Permit)
    assert ask_db(make, make.user(), roles, user="owner") == Denied(
        'access to "orders" as database user "owner" denied',
        "no role allows owner by allow.db_users; looked at role dev: allow.db_users has {{ internal.db_users }}=reader",
    )
    assert ask_db(make, make.user(), roles, name="payroll") == Denied(
        'access to database "payroll" on "orders" denied',
        "no role allows payroll by allow.db_names; looked at role dev: allow.db_names has {{internal.db_names}}=shop",
    )
    assert isinstance(ask(make, make.user(traits={}), roles), Denied)


def test_a_login_must_be_among_the_certificates_principals_even_under_a_star(make):
    roles = make.roles(dev={"allow": ANYTHING})
    answer = ask(make, make.user(), roles, login="bob")
    assert answer == Denied('login "bob" to node "web" denied', "certificate: login bob is not among its principals")


def test_an_empty_database_name_is_matched_by_a_star_alone(make):
    assert isinstance(ask_db(make, make.user(), make.roles(dev={"allow": ANYTHING}), name=""), Permit)
    named = ANYTHING | {"db_names": ["shop"]}
    assert isinstance(ask_db(make, make.user(), make.roles(dev={"allow": named}), name=""), Denied)


def test_no_database_yet_is_no_question_of_names(make):
    named = make.roles(dev={"allow": ANYTHING | {"db_names": ["shop"]}})
    assert isinstance(ask_db(make, make.user(), named, name=None), Permit)
    assert isinstance(
        ask_db(make, make.user(), make.roles(dev={"allow": ANYTHING | {"db_users": []}}), name=None), Denied
    )


@pytest.mark.parametrize(
    ("deny", "rule", "reason"),
    [
        ({"db_labels": "*"}, "deny.db_labels has *", 'access to "orders" denied'),
        ({"db_users": ["reader"]}, "deny.db_users has reader", 'access to "orders" as database user "reader" denied'),
        ({"db_names": ["*"]}, "deny.db_names has * for shop", 'access to database "shop" on "orders" denied'),
        (
            {"db_users": ["{{internal.db_users}}"]},
            "deny.db_users has {{internal.db_users}} for reader",
            'access to "orders" as database user "reader" denied',
        ),
    ],
)
def test_each_denial_of_a_database_counts_by_itself(make, deny, rule, reason):
    roles = make.roles(dev={"allow": ANYTHING}, no={"deny": deny})
    answer = ask_db(make, make.user(roles=("dev", "no")), roles)
    assert answer == Denied(reason, f"role no: {rule}")


def ask_feature(make, roles):
    action = DatabaseLogin("reader", "shop", ("replication",))
    return authorize(make.user(roles=tuple(roles)), make.database(), action, roles, (), make.now)


def test_a_feature_of_a_database_is_denied_unless_a_role_names_it(make):
    answer = ask_feature(make, make.roles(dev={"allow": ANYTHING}))
    assert isinstance(answer, Denied)
    assert answer.reason == 'replication on "orders" denied'
    assert answer.rule.startswith("no role allows replication by allow.db_features; looked at role dev: ")
    named = ANYTHING | {"db_features": ["replication"]}
    permit = ask_feature(make, make.roles(dev={"allow": named}))
    assert isinstance(permit, Permit)
    assert permit.rule.endswith("allow.db_features has replication")
    assert isinstance(ask_feature(make, make.roles(dev={"allow": ANYTHING | {"db_features": ["*"]}})), Permit)
    other = make.roles(dev={"allow": ANYTHING}, elsewhere={"allow": named | {"db_labels": {"env": "test"}}})
    assert isinstance(ask_feature(make, other), Denied), "the role that has it must allow the database, too"


@pytest.mark.parametrize("denied", ["replication", "*"])
def test_a_denied_feature_wins(make, denied):
    roles = make.roles(dev={"allow": ANYTHING | {"db_features": ["*"]}}, no={"deny": {"db_features": [denied]}})
    assert ask_feature(make, roles) == Denied(
        'replication on "orders" denied',
        f"role no: deny.db_features has {denied}{' for replication' if denied == '*' else ''}",
    )


def test_a_denied_login_is_named_with_its_role(make):
    roles = make.roles(dev={"allow": ANYTHING}, no={"deny": {"logins": ["root"]}})
    assert ask(make, make.user(roles=("dev", "no")), roles).rule == "role no: deny.logins has root"


def test_a_role_that_is_gone_denies_since_nobody_knows_what_it_denied(make):
    roles = make.roles(dev={"allow": ANYTHING})
    assert ask(make, make.user(roles=("dev", "gone")), roles).rule == "role gone: does not exist"
    assert authorize_verb(make.user(roles=("dev", "gone")), "role", "read", roles, (), make.now) == Denied(
        "cannot read role: access denied", "role gone: does not exist"
    )


def test_any_login_is_enough_for_the_proxy(make):
    roles = make.roles(dev={"allow": {"logins": ["alice"], "node_labels": "*"}})
    permit = authorize(make.user(), make.node(), Ssh(), roles, (), make.now)
    assert isinstance(permit, Permit)
    assert permit.action == Ssh(None)
    nobody = authorize(make.user(principals=("root",)), make.node(), Ssh(), roles, (), make.now)
    assert nobody.reason == 'access to node "web" denied'
    assert "allow.logins" in nobody.rule
    none = authorize(make.user(principals=()), make.node(), Ssh(), roles, (), make.now)
    assert none == Denied('access to node "web" denied', "certificate: names no logins")


def test_hosts_reach_no_resources(make):
    roles = make.roles(node={"allow": ANYTHING})
    answer = ask(make, make.host(principals=("root",)), roles)
    assert answer.rule == "certificate: a host's, only users reach resources"


def test_actions_belong_to_their_resources(make):
    with pytest.raises(TypeError, match="Ssh is not an action on a Database"):
        authorize(make.user(), make.database(), Ssh("root"), {}, (), make.now)
    with pytest.raises(TypeError, match="DatabaseLogin is not an action on a Node"):
        authorize(make.user(), make.node(), DatabaseLogin("a", "b"), {}, (), make.now)


def test_options_come_from_the_roles_that_allow_this_very_access(make):
    roles = make.roles(
        dev={
            "allow": {"logins": ["root"], "node_labels": {"env": "dev"}},
            "options": {"forward_agent": True, "port_forwarding": True, "max_session_ttl": "1h"},
        },
        prod={
            "allow": {"logins": ["root"], "node_labels": {"env": "prod"}},
            "options": {"record_session": False, "max_session_ttl": "10m"},
        },
        both={"allow": {"logins": ["root"], "node_labels": "*"}, "options": {"max_session_ttl": "5m"}},
    )
    prod = ask(make, make.user(roles=("dev", "prod")), roles, labels={"env": "prod"})
    assert not prod.options.forwarding[Forwarding.AGENT].granted
    assert prod.options.record_session is Recording.OFF
    assert prod.until == make.now + timedelta(minutes=10)
    dev = ask(make, make.user(roles=("dev", "both")), roles, labels={"env": "dev"})
    assert dev.options.forwarding[Forwarding.AGENT].granted
    assert dev.options.forwarding[Forwarding.PORT].granted
    assert dev.options.record_session is Recording.BEST_EFFORT
    assert dev.until == make.now + timedelta(minutes=5)


@pytest.mark.parametrize(
    ("changes", "permitted"),
    [
        ({"usage": ("db",)}, True),
        ({"usage": ("ssh",)}, False),
        ({"destination": Destination("db", "orders")}, True),
        ({"destination": Destination("db", "orders", "postgres", "reader", "shop")}, True),
        ({"destination": Destination("db", "orders", "postgres", "owner")}, False),
        ({"destination": Destination("db", "orders", "postgres", "", "payroll")}, False),
        ({"destination": Destination("db", "other")}, False),
        ({"destination": Destination("app", "orders")}, False),
    ],
)
def test_a_narrowed_certificate_reaches_only_what_it_names(make, changes, permitted):
    roles = make.roles(dev={"allow": ANYTHING})
    answer = ask_db(make, make.user(**changes), roles)
    assert isinstance(answer, Permit) is permitted
    if not permitted:
        assert "narrowed to" in answer.rule


@pytest.mark.parametrize(
    ("destination", "told"),
    [
        (("postgres", "owner"), 'user "reader" of "orders" denied: this certificate is for user "owner"'),
        (("postgres", "", "payroll"), 'database "shop" of "orders" denied: this certificate is for database "payroll"'),
    ],
)
def test_who_has_a_narrower_certificate_is_told_what_it_is_for(make, destination, told):
    user = make.user(destination=Destination("db", "orders", *destination))
    assert ask_db(make, user, make.roles(dev={"allow": ANYTHING})).reason == told


def test_listings_show_what_labels_allow_whatever_the_login(make):
    labels = {"node_labels": {"env": "dev"}, "db_labels": {"env": "dev"}}
    roles = make.roles(dev={"allow": {"logins": ["nobody"], "db_users": ["nobody"], **labels}})
    for resource in (make.node({"env": "dev"}), make.database({"env": "dev"})):
        assert visible(make.user(), resource, roles, (), make.now)
        assert not visible(make.user(), resource, roles, (make.lock(user="alice"),), make.now)
    for resource in (make.node({"env": "prod"}), make.database({"env": "prod"})):
        assert not visible(make.user(), resource, roles, (), make.now)


USERS = "{{internal.db_users}}"


@pytest.mark.parametrize(
    ("allow", "deny", "shown"),
    [
        ([], [], False),
        (["reader"], [], True),
        (["reader"], ["writer"], True),
        (["reader"], ["reader"], False),
        (["reader", "writer"], ["reader"], True),
        (["reader", "writer"], ["writer", "reader"], False),
        (["reader"], ["*"], False),
        (["*"], [], True),
        (["*"], ["reader", USERS], True),
        (["*"], ["*"], False),
        ([USERS], [], True),
        ([USERS], ["reader"], False),
        ([USERS], [USERS], False),
        (["{{external.nothing}}"], [], False),
        (["{{external.nothing}}", "reader"], [], True),
        (["*"], ["{{external.nothing}}"], False),
        (["reader"], ["{{external.nothing}}"], False),
    ],
)
def test_listings_show_databases_of_which_a_user_is_left(make, allow, deny, shown):
    roles = make.roles(dev={"allow": {"db_labels": "*", "db_users": allow}}, no={"deny": {"db_users": deny}})
    assert visible(make.user(roles=("dev", "no")), make.database(), roles, (), make.now) is shown


def test_listings_count_database_users_of_roles_that_allow_the_labels(make):
    roles = make.roles(
        labels={"allow": {"db_labels": {"env": "dev"}}},
        users={"allow": {"db_labels": {"env": "prod"}, "db_users": ["*"]}},
    )
    both = make.user(roles=("labels", "users"))
    assert visible(both, make.database({"env": "prod"}), roles, (), make.now)
    assert not visible(both, make.database({"env": "dev"}), roles, (), make.now), "its users are another role's"


@pytest.mark.parametrize(("user", "shown"), [("reader", True), ("owner", False), ("writer", False), ("", True)])
def test_listings_for_a_narrowed_certificate_ask_for_its_database_user(make, user, shown):
    roles = make.roles(
        dev={"allow": {"db_labels": "*", "db_users": ["reader", "writer"]}, "deny": {"db_users": ["writer"]}}
    )
    narrowed = make.user(destination=Destination("db", "orders", "postgres", user))
    assert visible(narrowed, make.database(), roles, (), make.now) is shown


patterns = st.lists(
    st.sampled_from(["a", "b", "*", USERS, "{{external.none}}", "svc-{{internal.db_users}}"]), max_size=3
)


@given(patterns, patterns, st.lists(st.sampled_from(["a", "b", "*"]), max_size=2))
def test_a_listing_shows_a_database_just_if_some_login_would_be_permitted(make, allow, deny, values):
    roles = make.roles(dev={"allow": {"db_labels": "*", "db_users": allow}, "deny": {"db_users": deny}})
    identity = make.user(traits={"db_users": tuple(values)})
    logins = (DatabaseLogin(user, None) for user in ("a", "b", "*", "svc-a", "svc-b", "svc-*", "anybody"))
    answers = [authorize(identity, make.database(), login, roles, (), make.now) for login in logins]
    expected = any(isinstance(answer, Permit) for answer in answers)
    assert visible(identity, make.database(), roles, (), make.now) is expected


# --- verbs


def test_verbs_are_allowed_and_denied_by_rules(make):
    roles = make.roles(
        dev={"allow": {"rules": [{"resources": ["role", "user"], "verbs": ["read", "list"]}]}},
        no={"deny": {"rules": [{"resources": ["*"], "verbs": ["list"]}]}},
    )
    assert authorize_verb(make.user(), "role", "list", roles, (), make.now) == Allowed(
        "role dev: allow.rules has list of role"
    )
    both = make.user(roles=("dev", "no"))
    assert authorize_verb(both, "role", "read", roles, (), make.now) == Allowed(
        "role dev: allow.rules has read of role"
    )
    assert authorize_verb(both, "role", "list", roles, (), make.now) == Denied(
        "cannot list role: access denied", "role no: deny.rules has list of role"
    )
    assert authorize_verb(both, "token", "read", roles, (), make.now) == Denied(
        "cannot read token: access denied", "no role has read of token in allow.rules"
    )


def test_verbs_are_for_whole_certificates_in_force(make):
    roles = make.roles(dev={"allow": ANYTHING})
    for identity, locks in (
        (make.user(expires=make.now), ()),
        (make.user(), (make.lock(role="dev"),)),
        (make.user(usage=("db",)), ()),
        (make.user(destination=Destination("db", "orders")), ()),
        (make.host(), ()),
    ):
        assert isinstance(authorize_verb(identity, "role", "read", roles, locks, make.now), Denied)


def test_of_hosts_only_an_administrators_may_use_verbs(make):
    assert authorize_verb(make.host(roles=("admin",)), "role", "delete", {}, (), make.now) == Allowed(
        "system role admin"
    )
    assert isinstance(authorize_verb(make.host(roles=("auth", "proxy")), "role", "read", {}, (), make.now), Denied)


def test_without_an_instant_the_system_clock_decides_on_verbs(make):
    roles = make.roles(dev={"allow": ANYTHING})
    assert isinstance(authorize_verb(make.user(expires=make.now.replace(year=2020)), "role", "read", roles), Denied)
    assert isinstance(authorize_verb(make.user(expires=make.now.replace(year=2999)), "role", "read", roles), Allowed)


# --- presets


def test_the_preset_access_gives_users_their_own_and_no_verbs(make):
    alice = make.user(roles=("access",))
    permit = ask(make, alice, PRESETS)
    assert isinstance(permit, Permit)
    assert permit.options.forwarding[Forwarding.AGENT].granted
    assert permit.options.forwarding[Forwarding.PORT].granted
    assert isinstance(ask_db(make, alice, PRESETS), Permit)
    assert isinstance(ask_db(make, alice, PRESETS, user="owner"), Denied)
    assert isinstance(authorize_verb(alice, "role", "read", PRESETS, (), make.now), Denied)


def test_the_presets_editor_and_auditor_have_verbs_and_reach_nothing(make):
    editor, auditor = make.user(roles=("editor",)), make.user(roles=("auditor",))
    assert isinstance(authorize_verb(editor, "role", "delete", PRESETS, (), make.now), Allowed)
    assert isinstance(authorize_verb(editor, "event", "list", PRESETS, (), make.now), Denied)
    assert isinstance(authorize_verb(auditor, "event", "list", PRESETS, (), make.now), Allowed)
    assert isinstance(authorize_verb(auditor, "event", "delete", PRESETS, (), make.now), Denied)
    for identity in (editor, auditor):
        assert isinstance(ask(make, identity, PRESETS), Denied)
        assert isinstance(ask_db(make, identity, PRESETS), Denied)


# --- properties

words = st.sampled_from(["root", "alice", "reader", "shop", "*", "other"])
lists = st.lists(words, max_size=3)
selectors = st.dictionaries(st.sampled_from(["env", "team"]), st.sampled_from(["dev", "prod", "*"]), max_size=2)
selectors |= st.just({"*": "*"})
conditions = st.fixed_dictionaries(
    {"logins": lists, "node_labels": selectors, "db_labels": selectors, "db_users": lists, "db_names": lists}
)
labels = st.dictionaries(st.sampled_from(["env", "team"]), st.sampled_from(["dev", "prod"]), max_size=2)
specs = st.fixed_dictionaries({"allow": conditions, "deny": conditions})
hours = st.integers(-5, 5)


def both(make, identity, roles, labels, locks=(), now=None):
    return (
        ask(make, identity, roles, labels=labels, locks=locks, now=now),
        authorize(identity, make.database(labels), DatabaseLogin("reader", "shop"), roles, locks, now or make.now),
    )


@given(st.lists(specs, max_size=3), labels)
def test_a_denial_beats_any_allowance(make, allowing, labels):
    specs = {f"r{number}": spec for number, spec in enumerate(allowing)}
    specs |= {"all": {"allow": ANYTHING}, "no": {"deny": {"node_labels": "*", "db_labels": "*"}}}
    roles = make.roles(**specs)
    assert all(isinstance(answer, Denied) for answer in both(make, make.user(roles=tuple(roles)), roles, labels))


@given(st.lists(specs, max_size=3), labels)
def test_there_is_no_permit_without_an_allowance_that_matches(make, found, labels):
    roles = make.roles(**{f"r{number}": spec for number, spec in enumerate(found)})
    identity = make.user(roles=tuple(roles))
    for answer, fields in zip(
        both(make, identity, roles, labels),
        ({"logins": "root"}, {"db_users": "reader", "db_names": "shop"}),
        strict=True,
    ):
        selector = "node_labels" if "logins" in fields else "db_labels"
        allowed = any(
            _selected(spec["allow"][selector], labels)
            and all({"*", value} & set(spec["allow"][field]) for field, value in fields.items())
            for spec in found
        )
        denied = any(
            _selected(spec["deny"][selector], labels)
            or any({"*", value} & set(spec["deny"][field]) for field, value in fields.items())
            for spec in found
        )
        assert isinstance(answer, Permit) is (allowed and not denied)


def _selected(selector, labels):
    return bool(selector) and all(
        key == "*" or (key in labels and value in ("*", labels[key])) for key, value in selector.items()
    )


@given(st.lists(specs, max_size=2), labels, st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=999)))
def test_an_expired_identity_is_never_permitted(make, found, labels, late):
    roles = make.roles(all={"allow": ANYTHING}, **{f"r{number}": spec for number, spec in enumerate(found)})
    identity = make.user(roles=tuple(roles))
    answers = both(make, identity, roles, labels, now=identity.expires + late)
    assert [answer.rule for answer in answers] == ["certificate: expired"] * 2


@given(
    st.sampled_from([{"user": "alice"}, {"user": "alice@example.com"}, {"role": "all"}, {"node": "h1"}]),
    labels,
    st.none() | st.just("2031-01-01T00:00:00Z"),
)
def test_a_lock_in_force_always_denies(make, target, labels, expires):
    roles = make.roles(all={"allow": ANYTHING})
    lock = make.lock(expires, **target)
    answers = both(make, make.user(roles=("all",)), roles, labels, locks=(make.lock(user="bob"), lock))
    assert all(isinstance(answer, Denied) and answer.rule.startswith("lock l1: ") for answer in answers)


# --- nobody else makes a permit


@pytest.fixture
def permit(make):
    found = ask(make, make.user(), make.roles(dev={"allow": ANYTHING}))
    assert isinstance(found, Permit)
    return found


def test_a_permit_cannot_be_built_elsewhere(permit):
    fields = {field.name: getattr(permit, field.name) for field in dataclasses.fields(permit)}
    with pytest.raises(TypeError):
        Permit(**fields)
    with pytest.raises(TypeError, match=r"only access\.decide"):
        Permit(**fields, seal=decide._Seal())
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(permit, name="other")


def test_a_permit_cannot_be_copied_stored_changed_or_extended(permit):
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="ask again"):
            way(permit)
    with pytest.raises(dataclasses.FrozenInstanceError):
        permit.name = "other"


def test_a_permit_built_elsewhere_does_not_type_check(tmp_path, monkeypatch):
    from mypy import api

    code = "from monoport.access.decide import Permit\nPermit(identity=None)  # type: ignore[arg-type]\n"
    (tmp_path / "forger.py").write_text(code)
    monkeypatch.setenv("MYPYPATH", "src")
    said, _, status = api.run(["--strict", "--no-incremental", "--follow-imports=silent", str(tmp_path / "forger.py")])
    assert status == 1
    assert '"seal"' in said
