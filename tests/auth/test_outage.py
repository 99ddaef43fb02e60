"""An audit log of the auth service that cannot be written: what is refused, what goes on, and how it ends."""

from __future__ import annotations

import asyncio

import pytest

from monoport.audit import outage
from monoport.audit.events import EventIds, make
from monoport.audit.outage import NotRecorded, OnFailure
from monoport.auth.client import AuthError

from .conftest import PASSWORD
from .test_readmission import log_in

PATIENCE = 20.0  # seconds for what must happen


async def fill(world):
    """Let SQLite take no more pages, which is its own SQLITE_FULL, as on a full disk."""
    await events(world)._run(lambda database: database.execute("PRAGMA max_page_count = 1").fetchall())


async def free(world):
    await events(world)._run(lambda database: database.execute("PRAGMA max_page_count = 100000").fetchall())
    async with asyncio.timeout(PATIENCE):
        while world.auth.outage.problem:  # noqa: ASYNC110 - each turn is one of its tries
            await asyncio.sleep(0)


def events(world):
    return world.auth._parts.events


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(outage, "PAUSE", 0)


async def refused(world):
    """Fill the log, and notice it."""
    await fill(world)
    while not world.auth.outage.problem:  # a page that is there may still take some
        try:
            await world.auth.service.record("test.full", text="x" * 3000)
        except NotRecorded:
            return


async def test_logins_joins_and_changes_are_refused_and_come_back_by_themselves(world, soon):
    await world.add_user()
    await log_in(world)
    world.auth.outage._begun = asyncio.Event()  # nobody tries again until the test says so
    await refused(world)
    assert world.auth.outage.refuses
    assert "full" in world.auth.outage.problem
    with pytest.raises(NotRecorded, match="the audit log cannot be written; tell your administrator"):
        await log_in(world)
    with pytest.raises(NotRecorded):
        await world.add_user("bob")
    assert [user.name for user in await world.auth.administration.list(world.admin, "user")] == ["alice"]
    proxy, _ = await world.host_client("proxy", "front")
    with pytest.raises(AuthError, match="audit log cannot be written") as caught:
        await proxy.authenticate("alice", PASSWORD, public_key="x", ssh_public_key="x")
    assert caught.value.code == "audit_unavailable"


async def test_it_ends_without_a_restart(world, soon):
    await world.add_user()
    await refused(world)
    await free(world)
    await log_in(world)
    await world.add_user("bob")


async def test_an_agents_events_are_not_acknowledged_meanwhile(world, soon):
    node, _ = await world.host_client("node", "one")
    await fill(world)
    event = make(EventIds(world.clock), "session.start", {"text": "x" * 10_000})
    with pytest.raises(AuthError, match="audit log cannot be written"):
        await node.emit([event])
    await free(world)
    await node.emit([event])
    found = await world.auth.administration.events(world.admin, 10, None, "session.start")
    assert [one.id for one in found.events] == [event.id]


async def test_where_configured_so_logins_go_on_and_are_noted_later(world, soon):
    await world.add_user()
    world.auth.outage.on_failure = OnFailure.CONTINUE
    await fill(world)
    for number in range(100):
        await world.auth.service.record("test.full", n=number, text="x" * 3000)
    assert await log_in(world)
    assert world.auth.outage.problem
    assert not world.auth.outage.refuses
    await free(world)
    found = await world.auth.administration.events(world.admin, 1000, None, "test.full")
    assert {event.fields["n"] for event in found.events} == set(range(100))
