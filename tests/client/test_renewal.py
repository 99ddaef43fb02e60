"""A login that a local proxy keeps good: renewed before its end and after a new `tsh login`; told when it cannot be."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monoport.client import databases, files
from monoport.client.databases import Wanted
from monoport.client.profile import Home, Profile
from monoport.client.renewal import LEAD, LOOK, Keeper
from monoport.errors import Failure

from .conftest import Cas, database_login, signed_in
from .test_databases import TRAITS, AuthService


class World:
    """A keeper whose clock we turn."""

    def __init__(self, home: Home, cas: Cas, profile: Profile, **login: object) -> None:
        self.home, self.cas = home, cas
        self.time = datetime.now(UTC)
        self.said: list[str] = []
        self.adopted: list[Profile] = []
        database_login(home, cas, profile, "orders", db_user="alice", **login)
        found = databases.find(home, profile, "orders")
        assert found is not None
        self.keeper = Keeper(home, profile, found, self.adopted.append, self.said.append, now=lambda: self.time)

    async def at(self, instant: datetime) -> None:
        self.time = instant
        await self.keeper.look()

    @property
    def path(self) -> Path:
        return self.keeper.login.credentials.certificate


async def test_a_certificate_is_renewed_in_place_before_its_end_and_not_sooner(home: Home, cas: Cas) -> None:
    auth = AuthService(cas, lasts=timedelta(minutes=50))
    async with auth.running() as port:
        world = World(home, cas, signed_in(home, cas, port, traits=TRAITS), lasts=timedelta(minutes=20))
        ends, before = world.keeper.login.expires, world.path.read_bytes()
        await world.at(ends - LEAD - timedelta(seconds=1))
        assert auth.asked == []
        await world.at(ends - LEAD)
        assert [one["destination"]["user"] for one in auth.asked] == ["alice"]
        assert world.keeper.login.expires > ends
        await world.at(ends - LEAD + timedelta(seconds=LOOK))
        assert len(auth.asked) == 1
    assert world.path.read_bytes() != before
    assert world.said == []


async def test_a_short_certificate_is_renewed_in_its_last_third(home: Home, cas: Cas) -> None:
    auth = AuthService(cas)
    async with auth.running() as port:
        world = World(home, cas, signed_in(home, cas, port, traits=TRAITS), lasts=timedelta(seconds=60))
        ends = world.keeper.login.expires
        await world.at(ends - timedelta(seconds=25))
        assert auth.asked == []
        await world.at(ends - timedelta(seconds=15))
        assert len(auth.asked) == 1


async def test_a_failed_renewal_is_told_in_one_line_and_tried_again(home: Home, cas: Cas) -> None:
    auth = AuthService(cas, lasts=timedelta(minutes=50), refused=frozenset({"orders"}))
    async with auth.running() as port:
        world = World(home, cas, signed_in(home, cas, port, traits=TRAITS), lasts=timedelta(minutes=20))
        due = world.keeper.login.expires - LEAD
        tries = []
        for tick in range(20):
            await world.at(due + timedelta(seconds=LOOK * tick))
            tries.append(len(world.said))
        assert tries[:8] == [1, 2, 2, 3, 3, 3, 3, 4], "after 15, 30, 60 seconds and so on"
        assert all("\n" not in line and "access to database orders denied" in line for line in world.said)
        assert "next try in 15 s" in world.said[0]
        assert "next try in 30 s" in world.said[1]
        auth.refused = frozenset()
        await world.at(due + timedelta(minutes=20))
    assert world.said[-1].startswith("the certificate for database orders is renewed, until ")
    world.keeper.check()


async def test_the_end_of_the_login_is_told_once_and_a_new_login_goes_on(home: Home, cas: Cas) -> None:
    auth = AuthService(cas, lasts=timedelta(hours=2))
    async with auth.running() as port:
        profile = signed_in(home, cas, port, traits=TRAITS)
        world = World(home, cas, profile, lasts=timedelta(hours=1))
        ends = world.keeper.login.expires
        for seconds in (0, 15, 30):
            await world.at(ends - LEAD + timedelta(seconds=seconds))
        assert len(world.said) == 1
        assert "tsh login --proxy=localhost:" in world.said[0]
        assert auth.asked == []
        world.time = ends
        with pytest.raises(Failure, match="has expired, log in again: tsh login"):
            world.keeper.check()

        renewed = Profile(**{name: getattr(profile, name) for name in profile.__dataclass_fields__})
        object.__setattr__(renewed, "expires", ends + timedelta(hours=8))
        home.save(renewed)
        await world.at(ends + timedelta(seconds=1))
        assert world.adopted == [renewed]
        assert len(auth.asked) == 1, "the new login lasts longer than the certificate"
        world.keeper.check()
    assert len(world.said) == 1


async def test_what_another_tsh_has_written_is_taken(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    world = World(home, cas, profile, lasts=timedelta(minutes=1))
    path = database_login(home, cas, profile, "orders", db_user="alice", lasts=timedelta(minutes=59))
    os.utime(path, ns=(1, 1))
    world.time += timedelta(minutes=5)
    world.keeper.check()
    assert world.keeper.login.expires > world.time + timedelta(minutes=50)


async def test_logging_out_ends_it(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    world = World(home, cas, profile)
    databases.logout(home, profile, "orders")
    with pytest.raises(Failure, match="you have logged out of database orders"):
        await world.keeper.look()
    files.replace(world.path, b"x")
    home.forget(profile)
    with pytest.raises(Failure, match=r"you have logged out of example\.com"):
        await world.keeper.look()


async def test_somebody_elses_login_is_not_taken(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 1)
    world = World(home, cas, profile)
    bob = Profile(**{name: getattr(profile, name) for name in profile.__dataclass_fields__} | {"user": "bob"})
    home.save(bob)
    await world.keeper.look()
    assert world.adopted == []
    assert world.keeper.profile is profile


async def test_a_login_in_a_private_folder_is_renewed_there(home: Home, cas: Cas, tmp_path: Path) -> None:
    auth = AuthService(cas, lasts=timedelta(minutes=10))
    async with auth.running() as port:
        profile = signed_in(home, cas, port, traits=TRAITS)
        database_login(home, cas, profile, "orders", db_user="alice")
        mine = await databases.current(home, profile, tmp_path, Wanted("orders", "reader"))
        assert mine.credentials.certificate == tmp_path / "orders.pem"
        time = [datetime.now(UTC)]
        keeper = Keeper(home, profile, mine, lambda _: None, pytest.fail, now=lambda: time[0])
        before = mine.credentials.certificate.read_bytes()
        time = [mine.expires - timedelta(minutes=1)]
        await keeper.look()
    assert mine.credentials.certificate.read_bytes() != before
    assert [one["destination"]["user"] for one in auth.asked] == ["reader", "reader"]
    found = databases.find(home, profile, "orders")
    assert found is not None
    assert found.destination.user == "alice", "the login on disk stays as it is"
