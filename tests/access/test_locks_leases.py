"""Locks: whom they concern and until when. Leases: ended once, in time, whatever the others do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from monoport.access.lease import Leases
from monoport.access.locks import lock_for
from monoport.access.resources import parse_document, to_document


@pytest.mark.parametrize(
    ("target", "concerned"),
    [
        ({"user": "alice"}, True),
        ({"user": "alice@example.com"}, True),
        ({"user": "alice@other.com"}, False),
        ({"user": "ali"}, False),
        ({"role": "dev"}, True),
        ({"role": "ops"}, False),
        ({"node": "h1"}, True),
        ({"node": "web"}, True),
        ({"node": "h2"}, False),
        ({"login": "root"}, True),
        ({"login": "alice"}, False),
    ],
)
def test_whom_a_lock_concerns(make, target, concerned):
    found = lock_for(make.user(), [make.lock(**target)], make.now, nodes=("h1", "web"), login="root")
    assert (found is not None) is concerned


@pytest.mark.parametrize(
    ("target", "concerned"),
    [({"node": "h1"}, True), ({"node": "web"}, True), ({"node": "h2"}, False), ({"user": "h1"}, False),
     ({"role": "node"}, True)],
)  # fmt: skip
def test_a_host_is_concerned_by_locks_of_its_node(make, target, concerned):
    assert (lock_for(make.host(), [make.lock(**target)], make.now) is not None) is concerned


@pytest.mark.parametrize(
    ("issued", "concerned"),
    [(None, True), (timedelta(microseconds=-1), True), (timedelta(0), False), (timedelta(seconds=1), False)],
)
def test_a_lock_on_what_was_issued_before_an_instant_leaves_later_logins_alone(make, issued, concerned):
    lock = make.lock(user="alice")
    lock = lock.model_copy(update={"spec": lock.spec.model_copy(update={"issued_before": make.now})})
    assert parse_document(to_document(lock)) == lock
    identity = replace(make.user(), issued=None if issued is None else make.now + issued)
    assert (lock_for(identity, [lock], make.now) is not None) is concerned


def test_a_lock_ends_at_its_expiry(make):
    lock = make.lock("2030-01-02T03:04:06Z", user="alice")
    assert lock_for(make.user(), [lock], make.now) is lock
    assert lock_for(make.user(), [lock], make.now + timedelta(seconds=1)) is None
    assert lock_for(make.user(), [make.lock(user="alice")], make.now + timedelta(days=9999)) is not None


def test_a_lease_ends_when_its_certificate_does(make):
    leases, ended = Leases(), []
    leases.add(make.user(), make.now + timedelta(days=9), ended.append)
    assert leases.sweep(make.user().expires - timedelta(seconds=1), ()) == 0
    assert leases.sweep(make.user().expires, ()) == 1
    assert leases.sweep(make.user().expires, ()) == 0
    assert ended == ["certificate expired"]
    assert len(leases) == 0


def test_a_lease_ends_when_its_longest_time_is_over(make):
    leases, ended = Leases(), []
    leases.add(make.user(), make.now + timedelta(minutes=1), ended.append)
    assert leases.sweep(make.now + timedelta(minutes=1), ()) == 1
    assert ended == ["session reached its longest time"]


def test_locks_end_leases_of_their_targets_alone(make):
    leases, ended = Leases(), []
    far = make.now + timedelta(days=1)
    leases.add(make.user(), far, lambda why: ended.append(("alice", why)), nodes=["h1"], login="root")
    leases.add(make.user(name="bob"), far, lambda why: ended.append(("bob", why)), nodes=["h2"], login="bob")
    assert leases.sweep(make.now, [make.lock("2030-01-01T00:00:00Z", user="bob"), make.lock(login="root")]) == 1
    assert ended == [("alice", "locked: login root")]
    assert leases.sweep(make.now, [make.lock(node="h2")]) == 1
    assert ended[1:] == [("bob", "locked: node h2")]


def test_a_lease_says_why_its_use_must_have_ended(make):
    leases, ended = Leases(), []
    lease = leases.add(make.user(), make.now + timedelta(days=9), ended.append)
    gone = make.lock("2020-01-01T00:00:00Z", user="alice")
    assert lease.due(make.now, [gone]) == ""
    assert lease.due(make.now, [gone, make.lock(user="alice")]) == "locked: user alice"
    assert lease.due(make.user().expires, ()) == "certificate expired"
    assert ended == []
    assert len(leases) == 1


def test_a_closed_lease_is_forgotten(make):
    leases, ended = Leases(), []
    lease = leases.add(make.user(), make.now, ended.append)
    lease.close()
    lease.close()
    assert leases.sweep(make.now + timedelta(days=1), ()) == 0
    assert ended == []


def test_one_session_that_fails_to_end_keeps_no_other_alive(make):
    leases, ended = Leases(), []

    def broken(why: str) -> None:
        raise OSError(why)

    leases.add(make.user(), make.now, broken)
    leases.add(make.user(), make.now, ended.append)
    with pytest.raises(ExceptionGroup) as caught:
        leases.sweep(make.user().expires, ())
    assert len(caught.value.exceptions) == 1
    assert ended == ["certificate expired"]
    assert len(leases) == 0


def test_ending_a_lease_may_close_others(make):
    leases, ended = Leases(), []
    second = leases.add(make.user(), make.now, lambda _: ended.append("second"))
    leases.add(make.user(name="bob"), make.now, lambda _: (ended.append("first"), second.close()))
    leases.sweep(make.user().expires, ())
    assert ended == ["second", "first"]
