"""Whose names are whose: the first host owns, others are refused with the way out, and what frees a name."""

import asyncio

import pytest
from cryptography import x509

from monoport.access.identity import from_ssh, from_x509
from monoport.auth import messages
from monoport.auth.hosts import LOCAL
from monoport.auth.keys import generate
from monoport.auth.local import LocalAuth
from monoport.auth.ownership import MAX_CLAIMED, QUIET
from monoport.auth.refusals import Forbidden, Invalid, NameOwned, NotFound, Removed, TokenUnknown

from .conftest import CLUSTER, fast_hasher

PAIR = generate()
KEYS = {"public_key": PAIR.public, "ssh_public_key": PAIR.ssh_public}


@pytest.fixture
def beat(world):
    return world.auth.service.heartbeat


async def token(world, *types, **names):
    made = await world.auth.administration.tokens_add(world.admin, messages.NewToken(types=types, **names))
    return made.token


async def join(world, value, name, *roles):
    """The identity of a host that joins with a token."""
    request = messages.Join(token=value, name=name, roles=roles, **KEYS)
    joined = await world.auth.service.join(world.host("proxy"), request)
    return read(joined)


def read(certificates):
    return from_x509(x509.load_pem_x509_certificate(certificates.certificate.encode()), certificates.cas)


async def admitted(world, role, name):
    return read((await world.auth.admit(role, name))[1])


def renew(world, host):
    return world.auth.service.renew(host, messages.Renew(**KEYS))


def remove(world, kind, name):
    return world.auth.administration.delete(world.admin, kind, name)


async def served(world):
    rows = await world.auth.administration.list(world.admin, "db")
    return sorted((one.name, one.spec.host_id) for one in rows)


async def events(world, event_type):
    return (await world.auth.administration.events(world.admin, 100, None, event_type)).events


class TestDatabases:
    async def test_another_tokens_host_cannot_take_a_database_that_is_served(self, world, beat, make_database):
        mine, other = [await join(world, await token(world, "db"), name, "db") for name in ("one", "two")]
        await beat(mine, make_database("prod", mine.name))
        with pytest.raises(NameOwned) as refused:
            await beat(other, make_database("prod", other.name))
        assert "\n" not in str(refused.value)
        assert '"tctl rm db/prod"' in str(refused.value)
        assert '"tctl tokens add --type=db --db=prod"' in str(refused.value)
        assert mine.name not in str(refused.value), "who owns it is for the audit log"
        assert [one.spec.host_id for one in await world.auth.administration.list(world.admin, "db")] == [mine.name]
        [claimed], [noted] = await events(world, "host.claimed"), await events(world, "host.refused")
        assert (claimed.fields["host_id"], claimed.fields["name"]) == (mine.name, "prod")
        assert (noted.fields["host_id"], noted.fields["operation"]) == (other.name, "heartbeat")
        assert noted.fields["reason"].startswith("owned by token/")

    async def test_hosts_of_one_token_own_together(self, world, beat, make_database):
        value = await token(world, "db")
        for name in ("one", "two"):
            host = await join(world, value, name, "db")
            await beat(host, make_database("prod", host.name))
        assert len(await world.auth.administration.list(world.admin, "db")) == 2

    async def test_a_refusal_repeated_by_heartbeats_is_noted_once_in_a_while(self, world, beat, make_database):
        await beat(await world.joined("db", "d1", origin="token/a"), make_database("prod", "d1"))
        other = await world.joined("db", "d2", origin="token/b")
        for seconds, noted in ((0, 1), (15, 1), (QUIET.total_seconds(), 2)):
            world.clock.advance(seconds=seconds)
            with pytest.raises(NameOwned):
                await beat(other, make_database("prod", "d2"))
            assert len(await events(world, "host.refused")) == noted

    async def test_ownership_outlives_silence_and_a_restart(self, world, beat, make_database, tmp_path, clock):
        await beat(await world.joined("db", "d1", origin="token/a"), make_database("prod", "d1"))
        clock.advance(hours=12)
        await world.auth.tick()
        assert await world.auth.administration.list(world.admin, "db") == ()
        other = await world.joined("db", "d2", origin="token/b")
        with pytest.raises(NameOwned):
            await beat(other, make_database("prod", "d2"))
        (tmp_path / "again").mkdir()
        again = await LocalAuth.open(
            tmp_path / "again", CLUSTER, now=clock, hasher=fast_hasher(), storage=world.auth._storage
        )
        with pytest.raises(NameOwned):
            await again.service.heartbeat(other, make_database("prod", "d2"))
        await again._parts.events.close()

    async def test_of_two_hosts_at_once_one_wins(self, world, beat, make_database):
        hosts = [await world.joined("db", f"d{n}", origin=f"token/{n}") for n in range(8)]
        beats = (beat(host, make_database("prod", host.name)) for host in hosts)
        results = await asyncio.gather(*beats, return_exceptions=True)
        assert results.count(None) == 1
        assert sum(isinstance(one, NameOwned) for one in results) == 7
        assert len(await events(world, "host.claimed")) == 1

    async def test_removing_the_database_frees_its_name(self, world, beat, make_database, clock):
        mine = await world.joined("db", "d1", origin="token/a")
        other = await world.joined("db", "d2", origin="token/b")
        await beat(mine, make_database("prod", "d1"))
        clock.advance(hours=1)  # no heartbeat: the resource is gone, its name is not
        await remove(world, "db", "prod")
        await beat(other, make_database("prod", "d2"), first=True)
        with pytest.raises(NameOwned):
            await beat(mine, make_database("prod", "d1"), first=True)
        for name in ("absent", "a/b", ""):
            with pytest.raises((NotFound, ValueError)):
                await remove(world, "db", name)

    async def test_what_is_removed_stays_away_until_its_agent_has_started_anew(self, world, beat, make_database, clock):
        one, two = [await world.joined("db", name, origin="token/a") for name in ("d1", "d2")]
        for host in (one, two):
            await beat(host, make_database("prod", host.name), first=True)
            await beat(host, make_database("kept", host.name), first=True)
        await remove(world, "db", "prod")
        for _ in range(2):
            for host in (one, two):
                clock.advance(seconds=20)
                with pytest.raises(Removed, match="restart its agent or run tctl db allow prod"):
                    await beat(host, make_database("prod", host.name))
                await beat(host, make_database("kept", host.name))
        assert await served(world) == [("kept", "d1"), ("kept", "d2")]
        assert not await world.auth._parts.ownership.owned("db", "prod"), "its name is free meanwhile"
        await beat(one, make_database("prod", "d1"), first=True)
        await beat(one, make_database("prod", "d1"))
        with pytest.raises(Removed):
            await beat(two, make_database("prod", "d2"))
        assert ("prod", "d1") in await served(world)
        assert ("prod", "d2") not in await served(world)
        await remove(world, "db", "prod")
        with pytest.raises(Removed):  # a second removal counts for who came back after the first
            await beat(one, make_database("prod", "d1"))

    async def test_an_administrator_allows_a_removed_database_again(self, world, beat, make_database):
        host = await world.joined("db", "d1", origin="token/a")
        await beat(host, make_database("prod", "d1"), first=True)
        await remove(world, "db", "prod")
        with pytest.raises(Forbidden):
            await world.auth.administration.databases_allow(host, "prod")
        with pytest.raises(Removed):
            await beat(host, make_database("prod", "d1"))
        await world.auth.administration.databases_allow(world.admin, "prod")
        await beat(host, make_database("prod", "d1"))
        assert await served(world) == [("prod", "d1")]
        assert [one.fields["name"] for one in await events(world, "db.allow")] == ["prod"]
        for name in ("prod", "absent", "a/b", ""):
            with pytest.raises(NotFound):
                await world.auth.administration.databases_allow(world.admin, name)

    async def test_a_heartbeat_on_its_way_while_its_database_is_removed_is_undone_by_the_next(
        self, world, beat, make_database
    ):
        host = await world.joined("db", "d1", origin="token/a")
        await beat(host, make_database("prod", "d1"), first=True)
        await world.auth._parts.removals.mark("prod")  # the removal has begun, and the heartbeat was past its question
        assert await served(world) == [("prod", "d1")]
        with pytest.raises(Removed):
            await beat(host, make_database("prod", "d1"))
        assert await served(world) == []

    async def test_what_was_never_there_leaves_no_mark(self, world, beat, make_database):
        with pytest.raises(NotFound):
            await remove(world, "db", "prod")
        await beat(await world.joined("db", "d1", origin="token/a"), make_database("prod", "d1"))

    async def test_a_name_is_free_when_none_of_its_owners_is_left(self, world, beat, make_database):
        for host_id in ("d1", "d2"):
            await beat(await world.joined("db", host_id, origin="token/a"), make_database("prod", host_id))
        other = await world.joined("db", "d3", origin="token/b")
        await remove(world, "node", "d1")
        with pytest.raises(NameOwned):
            await beat(other, make_database("prod", "d3"))
        await remove(world, "node", "d2")
        await beat(other, make_database("prod", "d3"))
        assert [one.spec.host_id for one in await world.auth.administration.list(world.admin, "db")] == ["d3"]

    async def test_the_auth_daemons_own_hosts_take_any_name_and_keep_it(self, world, beat, make_database):
        stranger = await world.joined("db", "d1", origin="token/a")
        await beat(stranger, make_database("prod", "d1"))
        own = await admitted(world, "db", "here")
        await beat(own, make_database("prod", own.name))
        with pytest.raises(NameOwned):
            await beat(stranger, make_database("prod", "d1"))
        assert (await events(world, "host.claimed"))[0].fields["previous"] == "token/a"

    async def test_a_token_that_names_databases_is_for_exactly_these_owned_or_not(self, world, beat, make_database):
        owner = await world.joined("db", "d1", origin="token/a")
        await beat(owner, make_database("prod", "d1"))
        named = await join(world, await token(world, "db", databases=("prod", "orders")), "two", "db")
        await beat(named, make_database("prod", named.name))
        await beat(named, make_database("orders", named.name))
        await beat(owner, make_database("prod", "d1"))
        with pytest.raises(NameOwned, match="not one that the token of this host is for"):
            await beat(named, make_database("free", named.name))
        with pytest.raises(NameOwned):
            await beat(owner, make_database("orders", "d1"))

    @pytest.mark.parametrize(
        ("types", "names"),
        [
            (("node",), {"databases": ("prod",)}),
            (("db",), {"nodes": ("web",)}),
            (("db",), {"databases": ("Not A Label",)}),
            (("node",), {"nodes": ("two words",)}),
        ],
    )
    async def test_names_that_fit_no_token_are_refused(self, world, types, names):
        with pytest.raises(Invalid):
            await token(world, *types, **names)

    async def test_one_host_does_not_take_names_without_end(self, world, beat, make_database):
        host = await world.joined("db", "d1")
        for number in range(MAX_CLAIMED):
            await world.auth._storage.put(f"/owners/db/x{number}", b'{"owner": "token/one", "host_id": "d1"}')
        with pytest.raises(Invalid, match="at most"):
            await beat(host, make_database("prod", "d1"))
        await beat(host, make_database("x1", "d1"))

    async def test_a_client_certificate_takes_a_registered_and_owned_database(self, world, beat, make_database):
        await world.add_user(db_users=("app",), db_names=("main",))
        user = world.user(traits={"db_users": ("app",), "db_names": ("main",)})
        pem = world.auth._parts.issuer.user(user, {}, PAIR.public, None).certificate
        ask = messages.DatabaseClient(public_key=PAIR.public, certificate=pem, name="prod", user="app", database="main")
        mine = await world.joined("db", "d1", origin="token/a")
        await beat(mine, make_database("prod", "d1"))
        answer = await world.auth.service.database_client(mine, ask)
        assert "OU=prod" in x509.load_pem_x509_certificate(answer.certificate.encode()).subject.rfc4514_string()
        stranger = await world.joined("db", "d2", origin="token/b")
        with pytest.raises(Forbidden, match="not registered by this agent"):
            await world.auth.service.database_client(stranger, ask)
        own = await admitted(world, "db", "here")
        await beat(own, make_database("prod", own.name))  # d1 is still listed, but the name is not its own any more
        with pytest.raises(NameOwned):
            await world.auth.service.database_client(mine, ask)
        assert (await events(world, "host.refused"))[0].fields["operation"] == "database_client"
        assert await world.auth.service.database_client(own, ask)


class TestNodes:
    async def test_a_nodename_is_the_first_hosts(self, world):
        web = await join(world, await token(world, "node"), "web", "node")
        value = await token(world, "node")
        for name in ("web", "WEB", "web.", "web.example.com"):
            with pytest.raises(NameOwned, match="tctl rm node/web") as refused:
                await join(world, value, name, "node")
            assert '"tctl tokens add --type=node --node=web"' in str(refused.value)
        assert [one.id for one in await world.auth._parts.records.list()] == [web.name], "the refused left nothing"
        failed = await events(world, "host.join")
        assert [one.fields["success"] for one in failed] == [False, False, False, False, True]
        assert failed[0].fields["code"] == "name_owned"
        assert await renew(world, web)

    async def test_a_reimaged_host_joins_with_the_same_token_or_one_that_names_it(self, world, beat, make_node):
        value = await token(world, "node")
        first = await join(world, value, "web", "node")
        again = await join(world, value, "web", "node")
        named = await join(world, await token(world, "node", nodes=("web",)), "web", "node")
        for host in (first, again, named):
            await beat(host, make_node(host.name, "web"))
            assert await renew(world, host)
        with pytest.raises(NameOwned, match="not one that the token"):
            await join(world, await token(world, "node", nodes=("web",)), "other", "node")

    async def test_removing_a_node_ends_its_identity_and_frees_the_name(self, world, beat, make_node):
        web = await join(world, await token(world, "node"), "web", "node")
        await beat(web, make_node(web.name, "web"))
        await remove(world, "node", "web")
        assert await world.auth.administration.list(world.admin, "node") == ()
        for refused in (renew(world, web), beat(web, make_node(web.name, "web"))):
            with pytest.raises(Forbidden, match="was removed: it has to join again"):
                await refused
        other = await join(world, await token(world, "node"), "web", "node")
        with pytest.raises(NotFound):
            await remove(world, "node", web.name)
        await remove(world, "node", other.name)
        assert await join(world, await token(world, "node"), "web", "node")

    async def test_by_id_only_that_host_is_removed(self, world):
        value = await token(world, "node")
        first = await join(world, value, "web", "node")
        again = await join(world, value, "web", "node")
        await remove(world, "node", first.name)
        assert await renew(world, again)
        with pytest.raises(NameOwned):
            await join(world, await token(world, "node"), "web", "node")

    async def test_of_two_hosts_joining_at_once_one_wins(self, world):
        values = [await token(world, "node") for _ in range(6)]
        joining = (join(world, value, "web", "node") for value in values)
        results = await asyncio.gather(*joining, return_exceptions=True)
        won = [one for one in results if not isinstance(one, NameOwned)]
        assert len(won) == 1
        assert [one.id for one in await world.auth._parts.records.list()] == [won[0].name]

    async def test_the_auth_daemons_node_takes_its_name_from_others_and_is_not_removed(self, world, beat, make_node):
        web = await join(world, await token(world, "node"), "web", "node")
        own = await admitted(world, "node", "web")
        with pytest.raises(NameOwned):
            await renew(world, web)
        await remove(world, "node", own.name)
        assert await renew(world, own)
        assert [one.origin for one in await world.auth._parts.records.list() if one.id == own.name] == [LOCAL]

    async def test_a_proxy_is_not_called_like_somebody_elses_node(self, world):
        await join(world, await token(world, "node"), "web", "node")
        value = await token(world, "proxy")
        with pytest.raises(NameOwned):
            await join(world, value, "web", "proxy")
        request = messages.Join(token=value, name="edge", roles=("proxy",), names=("web.example.com",), **KEYS)
        with pytest.raises(NameOwned):
            await world.auth.service.join(world.host("proxy"), request)
        assert await join(world, await token(world, "proxy", nodes=("web",)), "web", "proxy")

    async def test_the_auth_daemons_proxy_may_be_called_like_a_node(self, world):
        await join(world, await token(world, "node"), "web", "node")
        assert await renew(world, await admitted(world, "proxy", "web"))

    async def test_no_host_is_called_like_the_id_of_another(self, world):
        value = await token(world, "node", "db")
        other = await join(world, value, "one", "db")
        with pytest.raises(Invalid, match="id of another host"):
            await join(world, value, other.name, "node")

    async def test_a_host_that_is_no_node_has_only_its_id_on_its_ssh_certificate(self, world):
        for role, named in (("db", False), ("app", False), ("kube", False), ("node", True), ("proxy", True)):
            _, certificates = await world.auth.admit(role, "one")
            found_by = from_ssh(certificates.ssh_certificate, certificates.cas).principals
            assert ("one" in found_by) is named
            assert certificates.host_id in found_by
            assert named or found_by == (certificates.host_id,)

    async def test_a_record_from_before_there_were_origins_owns_by_itself(self, world, beat, make_database):
        old = b'{"id": "d0", "name": "old", "roles": ["db"], "names": [], "seen": ""}'
        await world.auth._storage.put("/hosts/d0", old)
        await beat(world.host("db", "d0"), make_database("prod", "d0"))
        with pytest.raises(NameOwned):
            await beat(await world.joined("db", "d1"), make_database("prod", "d1"))


async def test_failed_joins_are_in_the_audit_log(world, clock):
    value = await token(world, "db", ttl=60)
    for wrong in ("never-made", value):
        with pytest.raises(Forbidden.__base__):
            await join(world, wrong, "one", "node")
    clock.advance(minutes=2)
    with pytest.raises(Forbidden.__base__):
        await join(world, value, "one", "db")
    found = await events(world, "host.join")
    assert [one.fields["code"] for one in found] == ["token_expired", "token_type", "token_unknown"]
    assert {(one.fields["success"], one.fields["name"]) for one in found} == {(False, "one")}
    assert "never-made" not in repr(found)
    assert TokenUnknown.code == "token_unknown"
