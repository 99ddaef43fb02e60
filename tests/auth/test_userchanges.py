"""Changing a user who is signed in: what is taken away ends what runs, what is added waits for the next login."""

from __future__ import annotations

import pytest

from monoport.access.locks import lock_for
from monoport.access.resources import parse_document
from monoport.auth import messages
from monoport.auth.client import AuthError
from monoport.auth.refusals import Forbidden, Invalid, NotFound
from monoport.errors import Failure

from .test_readmission import PAIR, log_in, read


def change(world, name="alice", roles=None, **traits):
    return world.auth.administration.users_update(world.admin, name, messages.UserChange(roles=roles, traits=traits))


async def locked(world, identity):
    return lock_for(identity, await world.auth._parts.resources.locks(), world.clock()) is not None


async def test_what_is_added_counts_from_the_next_login_on(world):
    await world.add_user(logins=("alice",))
    old = read(await log_in(world))
    assert await change(world, logins=("alice", "root"), team=("red",)) is False
    assert not await locked(world, old)
    again = await world.auth.service.reissue(old, messages.Reissue(public_key=PAIR.public))
    assert read(again).principals == ("alice",), "a reissue only narrows"
    new = read(await log_in(world))
    assert new.principals == ("alice", "root")
    assert new.traits == {"logins": ("alice", "root"), "team": ("red",)}


async def test_what_is_taken_away_ends_what_was_issued_before(world):
    await world.add_user(logins=("alice", "root"))
    for logins in (("root",), ()):
        old = read(await log_in(world))
        assert await change(world, logins=logins) is True
        assert await locked(world, old)
        with pytest.raises(Forbidden, match="is locked: sign in again with tsh login"):
            await world.auth.service.reissue(old, messages.Reissue(public_key=PAIR.public))
        new = read(await log_in(world))
        assert not await locked(world, new)
        assert new.principals == logins
    await world.add_user("bob")
    assert not await locked(world, read(await log_in(world, user="bob"))), "nobody else is concerned"


async def test_roles_and_the_password_survive_what_is_not_named(world):
    await world.add_user(roles=("access", "auditor"), logins=("alice",))
    await change(world, team=("red", "blue"))
    user = await world.auth.administration.get(world.admin, "user", "alice")
    assert user.spec.roles == ("access", "auditor")
    assert user.spec.traits == {"logins": ("alice",), "team": ("red", "blue")}
    assert await change(world, roles=("access",)) is True
    assert read(await log_in(world)).roles == ("access",)


async def test_a_document_over_a_user_is_a_change_like_any_other(world):
    await world.add_user(logins=("alice", "root"))
    old = read(await log_in(world))
    spec = {"roles": ["access"], "traits": {"logins": ["alice"]}}
    document = parse_document({"kind": "user", "metadata": {"name": "alice"}, "spec": spec})
    await world.auth.administration.create(world.admin, document, True)
    assert await locked(world, old)
    await world.auth.administration.create(
        world.admin,
        document.model_copy(update={"metadata": document.metadata.model_copy(update={"name": "bob"})}),
        True,
    )
    assert (await world.auth.administration.get(world.admin, "user", "bob")).spec.traits == {"logins": ("alice",)}


async def test_a_clock_that_goes_back_unlocks_nothing(world):
    await world.add_user(logins=("alice", "root"))
    old = read(await log_in(world))
    await change(world, logins=("root",))
    world.clock.advance(hours=-1)
    await change(world, logins=())
    world.clock.advance(hours=1)
    assert await locked(world, old)


@pytest.mark.parametrize(
    ("roles", "traits", "said"),
    [
        (("nix",), {}, "no role nix: there are access, auditor, editor"),
        (None, {"db_users": ("*",)}, r"trait db_users: '\*' is no value: only a role allows everything"),
        (None, {"team": ("{{internal.logins}}",)}, "templates belong into roles"),
        (None, {"a b": ("x",)}, "'a b' is no name of a trait"),
        (None, {"internal.logins": ("x",)}, "trait internal.logins: roles write it so, users have it as logins"),
        (None, {"team": ("a\nb",)}, "holds characters that do not print"),
        (None, {f"t{n}": tuple(f"{n}{'x' * 200}{m}" for m in range(40)) for n in range(4)}, "limit 16384"),
    ],
)
async def test_what_cannot_be_is_said_in_one_line_and_changes_nothing(world, roles, traits, said):
    await world.add_user(logins=("alice",))
    with pytest.raises(Failure, match=said) as caught:
        await change(world, roles=roles, **traits)
    assert "\n" not in str(caught.value)
    user = await world.auth.administration.get(world.admin, "user", "alice")
    assert (user.spec.roles, user.spec.traits) == (("access",), {"logins": ("alice",)})
    if roles is None:
        with pytest.raises(Failure, match=said):
            await world.add_user("bob", **traits)


async def test_who_may_change_whom(world):
    await world.add_user()
    with pytest.raises(NotFound, match='no user "bob"'):
        await change(world, "bob", logins=("x",))
    with pytest.raises(Forbidden, match="cannot update user"):
        await world.auth.administration.users_update(world.user(), "alice", messages.UserChange(roles=("editor",)))
    with pytest.raises(Invalid):
        await change(world, roles=("nix",))
    async with world.http(world.admin) as http:
        assert (await http.post("/v1/users/alice/update", json={"roles": []})).status_code == 400
        assert (await http.post("/v1/users/alice/update", json={"role": ["a"]})).status_code == 400


async def test_the_client_changes_users_and_the_log_says_so(world):
    await world.add_user(logins=("alice",))
    admin = world.admin_client()
    assert await admin.users_update("alice", traits={"team": ("red",)}) is False
    assert await admin.users_update("alice", ("auditor",), {"team": ()}) is True
    with pytest.raises(AuthError, match="no user"):
        await admin.users_update("bob", ("access",))
    events = (await admin.events_list(10, event_type="user.update")).events
    assert [event.fields["signed_out"] for event in events] == [True, False]
    assert events[0].fields["roles"] == ["auditor"]
    assert events[1].fields["traits"] == {"logins": ["alice"], "team": ["red"]}
