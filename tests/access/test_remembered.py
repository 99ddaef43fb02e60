"""A session's permits: the same yes again, and never one that would be a no by now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from monoport.access import remembered
from monoport.access.decide import DatabaseLogin, Denied, Permit
from monoport.access.remembered import Remembered

SHOP = DatabaseLogin("reader", "shop")
ALLOWED = {"allow": {"db_labels": {"*": "*"}, "db_users": ["reader"], "db_names": ["shop", "books", "atlas"]}}


@pytest.fixture
def ask(make):
    """Ask with the same resource, roles and locks each time, or with others."""
    session, resource, roles, locks = Remembered(make.user()), make.database(), make.roles(dev=ALLOWED), ()

    def asked(action=SHOP, *, resource=resource, roles=roles, locks=locks, now=make.now):
        return session.authorize(resource, action, roles, locks, now)

    return asked


def test_a_yes_is_said_again(ask, make):
    permit = ask()
    assert isinstance(permit, Permit)
    assert ask(now=make.now + timedelta(minutes=1)) is permit


def test_each_action_has_an_answer_of_its_own(ask):
    ask()
    assert isinstance(ask(DatabaseLogin("reader", "wages")), Denied)
    assert isinstance(ask(DatabaseLogin("reader", "shop", ("replication",))), Denied)
    assert ask(DatabaseLogin("reader", "books")).action == DatabaseLogin("reader", "books")


def test_roles_that_changed_are_asked_anew(ask, make):
    ask()
    assert isinstance(ask(roles=make.roles(dev={"allow": {}})), Denied)
    assert isinstance(ask(), Permit)


def test_a_lock_is_seen_at_once(ask, make):
    ask()
    assert isinstance(ask(locks=(make.lock(user="alice"),)), Denied)


def test_labels_that_changed_are_seen_at_once(make):
    session = Remembered(make.user())
    roles = make.roles(dev={"allow": ALLOWED["allow"] | {"db_labels": {"env": "dev"}}})
    assert isinstance(session.authorize(make.database({"env": "dev"}), SHOP, roles, (), make.now), Permit)
    assert isinstance(session.authorize(make.database({"env": "live"}), SHOP, roles, (), make.now), Denied)


def test_a_permit_is_good_until_its_end(ask, make):
    permit = ask()
    assert isinstance(ask(now=permit.until), Denied), "the certificate has expired"


def test_a_no_is_found_anew(make):
    class Growing(dict[str, object], Mapping[str, object]):
        """Roles that change in place, as nobody who watches the cluster changes them."""

    session, resource = Remembered(make.user()), make.database()
    roles = Growing(make.roles(dev={"allow": {}}))
    assert isinstance(session.authorize(resource, SHOP, roles, (), make.now), Denied)
    roles.update(make.roles(dev=ALLOWED))
    assert isinstance(session.authorize(resource, SHOP, roles, (), make.now), Permit)


def test_only_so_many_are_kept(ask, monkeypatch):
    monkeypatch.setattr(remembered, "MOST", 2)
    first = ask()
    ask(DatabaseLogin("reader", "books"))
    assert ask() is first
    ask(DatabaseLogin("reader", "atlas"))
    again = ask()
    assert again == first
    assert again is not first
