"""Reissue may only narrow and never outlives the login; database clients are certified for a user and an agent."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from monoport.access.identity import Destination, Identity, Kind, from_x509
from monoport.auth import messages
from monoport.auth.keys import generate
from monoport.auth.narrowing import narrow
from monoport.auth.refusals import Forbidden, Invalid, NotFound

PAIR = generate()


def reissue(**values):
    return messages.Reissue(public_key=PAIR.public, **values)


def to(name="prod", **parts):
    return messages.RouteTo(kind="db", name=name, **parts)


def read(answer):
    return from_x509(x509.load_pem_x509_certificate(answer.certificate.encode()), answer.cas)


@pytest.fixture
async def prod(world, make_database):
    """The database `prod` behind one agent, and alice, who may use it as app."""
    await world.add_user(logins=("root", "alice"), db_users=("app",), db_names=("main",))
    agent = await world.joined("db", "agent-1")
    await world.auth.service.heartbeat(agent, make_database("prod", "agent-1", env="prod"))
    return agent


def alice(world, **values):
    values.setdefault("traits", {"logins": ("root", "alice"), "db_users": ("app",), "db_names": ("main",)})
    values.setdefault("principals", ("alice", "root"))
    return world.user(**values)


@pytest.mark.usefixtures("prod")
async def test_a_narrowed_certificate_names_its_database_and_has_no_ssh_side(world):
    caller = alice(world, login_ip="192.0.2.7")
    answer = await world.auth.service.reissue(
        caller, reissue(destination=to(user="app", database="main"), ssh_public_key=PAIR.ssh_public)
    )
    identity = read(answer)
    assert identity.destination == Destination("db", "prod", "postgres", "app", "main")
    assert (identity.usage, identity.login_ip) == (("db",), "192.0.2.7")
    assert answer.ssh_certificate == ""
    assert identity.expires <= caller.expires


@pytest.mark.usefixtures("prod")
@pytest.mark.parametrize("wanted", [None, 60, 10**7])
async def test_it_never_outlives_the_login(world, wanted):
    caller = alice(world, expires=world.clock() + timedelta(minutes=30))
    answer = await world.auth.service.reissue(caller, reissue(ttl=wanted))
    longest = caller.expires if wanted != 60 else world.clock() + timedelta(seconds=60)
    assert answer.expires <= longest


@pytest.mark.usefixtures("prod")
async def test_what_was_taken_from_the_user_since_is_not_given_again(world, make_role):
    caller = alice(world, roles=("access", "auditor"))
    answer = await world.auth.service.reissue(caller, reissue(ssh_public_key=PAIR.ssh_public))
    assert read(answer).roles == ("access",), "alice is no auditor, whatever her certificate says"
    await world.put(make_role("access", {"logins": ["alice"]}))
    answer = await world.auth.service.reissue(caller, reissue(ssh_public_key=PAIR.ssh_public))
    assert read(answer).principals == ("alice",)
    await world.auth.administration.delete(world.admin, "user", "alice")
    await world.auth.administration.delete(world.admin, "lock", "removed-alice")
    with pytest.raises(Forbidden, match="was removed"):
        await world.auth.service.reissue(caller, reissue())


@pytest.mark.usefixtures("prod")
async def test_what_was_given_to_the_user_since_needs_a_new_login(world):
    caller = alice(world, traits={"logins": ("alice",)}, principals=("alice",))
    identity = read(await world.auth.service.reissue(caller, reissue()))
    assert (identity.principals, identity.traits) == (("alice",), {"logins": ("alice",)})


@pytest.mark.usefixtures("prod")
async def test_a_certificate_for_one_database_cannot_become_one_for_another(world, make_database):
    await world.auth.service.heartbeat(await world.joined("db", "agent-2"), make_database("other", "agent-2"))
    held = Destination("db", "prod", "postgres", "app", "main")
    caller = alice(world, destination=held, usage=("db",))
    with pytest.raises((Forbidden, NotFound)):
        await world.auth.service.reissue(caller, reissue(destination=to("other")))
    for parts in ({}, {"user": "app"}, {"user": "app", "database": ""}):
        with pytest.raises(Forbidden, match="another destination"):
            await world.auth.service.reissue(caller, reissue(destination=to(**parts)))
    assert read(await world.auth.service.reissue(caller, reissue())).destination == held
    again = await world.auth.service.reissue(caller, reissue(destination=to(user="app", database="main")))
    assert read(again).destination == held


@pytest.mark.usefixtures("prod")
@pytest.mark.parametrize("database", ["", "main", "wages"])
async def test_a_database_user_that_no_role_allows_is_refused_at_once(world, database):
    with pytest.raises(Forbidden, match='database user "postgres"'):
        await world.auth.service.reissue(alice(world), reissue(destination=to(user="postgres", database=database)))


@pytest.mark.usefixtures("prod")
async def test_a_database_user_alone_is_enough(world):
    answer = await world.auth.service.reissue(alice(world), reissue(destination=to(user="app")))
    assert read(answer).destination == Destination("db", "prod", "postgres", "app", "")


@pytest.mark.usefixtures("prod")
async def test_refusals_name_what_was_refused(world):
    caller = alice(world)
    with pytest.raises(NotFound, match='no database "absent"'):
        await world.auth.service.reissue(caller, reissue(destination=to("absent")))
    with pytest.raises(Forbidden, match='"postgres"') as caught:
        await world.auth.service.reissue(caller, reissue(destination=to(user="postgres", database="main")))
    assert "by allow.db_users; looked at role access" in caught.value.rule
    assert "role" not in str(caught.value)
    assert caught.value.about == {"database": "prod", "db_user": "postgres", "db_name": "main"}
    with pytest.raises(Forbidden, match='"secret"'):
        await world.auth.service.reissue(caller, reissue(destination=to(user="app", database="secret")))
    with pytest.raises(Invalid, match="speaks postgres, not mysql"):
        await world.auth.service.reissue(caller, reissue(destination=to(protocol="mysql")))
    with pytest.raises(Invalid, match="not served yet"):
        await world.auth.service.reissue(caller, reissue(destination=messages.RouteTo(kind="app", name="x")))


WORDS = st.lists(st.sampled_from("abcdef"), unique=True).map(tuple)
TRAITS = st.dictionaries(st.sampled_from(["logins", "db_users"]), WORDS)


@given(WORDS, WORDS, WORDS, WORDS, TRAITS, TRAITS, st.integers(1, 99), st.integers(1, 99))
def test_nothing_is_in_a_reissued_identity_that_was_not_in_the_certificate(r1, r2, p1, p2, t1, t2, e1, e2):
    from datetime import UTC, datetime

    start = datetime(2030, 1, 1, tzinfo=UTC)
    held = Identity(Kind.USER, "a", "c", roles=r1, principals=p1, traits=t1, expires=start + timedelta(hours=e1))
    now = Identity(Kind.USER, "a", "c", roles=r2, principals=p2, traits=t2, expires=start + timedelta(hours=e2))
    new = narrow(held, now, None)
    for one in (held, now):
        assert set(new.roles) <= set(one.roles)
        assert set(new.principals) <= set(one.principals)
        assert all(set(values) <= set(one.traits.get(name, ())) for name, values in new.traits.items())
        assert new.expires <= one.expires
    assert set(new.roles) == set(r1) & set(r2)


class TestDatabaseClient:
    """An agent asks to be a database user for the user whose certificate it got."""

    def ask(self, certificate, **values):
        values = {"name": "prod", "user": "app", "database": "main", **values}
        return messages.DatabaseClient(public_key=PAIR.public, certificate=certificate, **values)

    def certificate(self, world, **values):
        issuer = world.auth._parts.issuer
        return issuer.user(alice(world, **values), {}, PAIR.public, None).certificate

    async def test_the_common_name_is_the_database_user_and_the_ca_its_own(self, world, prod):
        request = self.ask(self.certificate(world))
        answer = await world.auth.service.database_client(prod, request)
        certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
        assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "app"
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(world.auth.cas.dbclient[0].encode()))
        assert answer.expires - world.clock() <= timedelta(hours=1)
        [event] = (await world.auth.administration.events(world.admin, 10, None, "certificate.database_client")).events
        assert (event.fields["user"], event.fields["db_user"], event.fields["database"]) == (
            "alice@example.com",
            "app",
            "prod",
        )

    async def test_it_never_outlives_the_users_certificate(self, world, prod):
        ends = world.clock() + timedelta(minutes=5)
        answer = await world.auth.service.database_client(prod, self.ask(self.certificate(world, expires=ends)))
        assert answer.expires <= ends

    @pytest.mark.parametrize("wrong", [{"user": "postgres"}, {"database": "secret"}, {"name": "absent"}])
    async def test_the_role_is_asked_again(self, world, prod, wrong):
        with pytest.raises(Forbidden):
            await world.auth.service.database_client(prod, self.ask(self.certificate(world), **wrong))

    async def test_an_agent_that_has_not_registered_the_database_is_refused(self, world, prod):
        with pytest.raises(Forbidden, match="not registered by this agent"):
            await world.auth.service.database_client(
                await world.joined("db", "agent-2"), self.ask(self.certificate(world))
            )

    async def test_a_locked_or_expired_user_a_host_and_garbage_are_refused(self, world, prod, make_lock):
        _, host = await world.auth.admit("node", "node-one")
        for pem in (host.certificate, "garbage", world.auth.cas.user[0]):
            with pytest.raises(Forbidden):
                await world.auth.service.database_client(prod, self.ask(pem))
        good = self.certificate(world)
        await world.put(make_lock("stop", user="alice"))
        with pytest.raises(Forbidden):
            await world.auth.service.database_client(prod, self.ask(good))
        await world.auth.administration.delete(world.admin, "lock", "stop")
        assert await world.auth.service.database_client(prod, self.ask(good))
        short = self.certificate(world, expires=world.clock() + timedelta(minutes=5))
        world.clock.advance(minutes=6)
        with pytest.raises(Forbidden, match="not accepted"):
            await world.auth.service.database_client(prod, self.ask(short))

    async def test_a_certificate_narrowed_to_another_database_is_refused(self, world, prod):
        elsewhere = self.certificate(world, destination=Destination("db", "other"), usage=("db",))
        with pytest.raises(Forbidden):
            await world.auth.service.database_client(prod, self.ask(elsewhere))
