"""Users, roles and locks: what is stored, what is refused, what a login brings."""

from datetime import timedelta

import pytest
from cryptography import x509

from monoport.access.fields import MAX_TTL
from monoport.access.identity import from_ssh, from_x509
from monoport.auth import messages
from monoport.auth.keys import generate
from monoport.auth.refusals import Conflict, Exists, Invalid, LoginLocked, NotFound, UserLocked, WrongPassword

PAIR = generate()
PASSWORD = "correct horse battery"


def login(user="alice", password=PASSWORD, **values):
    return messages.Authenticate(
        user=user, password=password, public_key=PAIR.public, ssh_public_key=PAIR.ssh_public, **values
    )


@pytest.fixture
def proxy(world):
    return world.host("proxy")


async def test_a_login_brings_both_certificates_for_the_users_key(world, proxy):
    await world.add_user(logins=("root", "alice"), db_users=("app",))
    answer = await world.auth.service.authenticate(proxy, login(source="192.0.2.7:5000"))
    identity = from_x509(x509.load_pem_x509_certificate(answer.certificate.encode()), answer.cas)
    assert (identity.name, identity.roles, identity.login_ip) == ("alice", ("access",), "192.0.2.7")
    assert identity.principals == answer.logins == ("alice", "root")
    assert identity.traits["db_users"] == ("app",)
    assert from_ssh(answer.ssh_certificate, answer.cas).principals == identity.principals
    assert (answer.cluster, answer.user, answer.expires) == ("example.com", "alice", identity.expires)
    left = answer.expires - world.clock()
    assert timedelta(hours=11, minutes=59) < left <= timedelta(hours=12)


async def test_roles_set_the_longest_and_the_user_may_ask_for_less(world, proxy, make_role):
    await world.put(make_role("brief", max_session_ttl="1h"))
    await world.add_user(roles=("access", "brief"))
    for ttl, longest in ((None, 3600), (86_400, 3600), (60, 60)):
        answer = await world.auth.service.authenticate(proxy, login(ttl=ttl))
        assert longest - 2 <= (answer.expires - world.clock()).total_seconds() <= longest


async def test_unknown_users_and_wrong_passwords_get_one_answer_after_one_verification(world, proxy):
    await world.add_user()
    passwords = world.auth._parts.users._passwords
    texts = set()
    for user in ("alice", "nobody", "no/body", "no\nbody", "../x", ""):
        before = passwords.verifications
        with pytest.raises(WrongPassword) as refused:
            await world.auth.service.authenticate(proxy, login(user, "wrong password"))
        texts.add(str(refused.value))
        assert passwords.verifications == before + 1
    assert texts == {"wrong user name or password"}


async def test_five_failures_lock_and_a_reset_unlocks(world, proxy):
    await world.add_user()
    for _ in range(5):
        with pytest.raises(WrongPassword):
            await world.auth.service.authenticate(proxy, login(password="wrong password"))
    with pytest.raises(LoginLocked):
        await world.auth.service.authenticate(proxy, login())
    await world.auth.administration.users_reset(world.admin, "alice", messages.NewPassword(password="another password"))
    with pytest.raises(WrongPassword):
        await world.auth.service.authenticate(proxy, login())
    assert await world.auth.service.authenticate(proxy, login(password="another password"))


async def test_logins_good_and_bad_are_in_the_audit_log(world, proxy):
    await world.add_user()
    with pytest.raises(WrongPassword):
        await world.auth.service.authenticate(proxy, login("mallory", "wrong password", source="192.0.2.9:1"))
    await world.auth.service.authenticate(proxy, login(source="192.0.2.7:1", connection="3fa1b2"))
    events = (await world.auth.administration.events(world.admin, 10, None, "user.login")).events
    seen = [(one.fields["user"], one.fields["success"], one.fields["source"]) for one in events]
    assert seen == [("alice@example.com", True, "192.0.2.7:1"), ("mallory@example.com", False, "192.0.2.9:1")]
    assert [one.fields["connection"] for one in events] == ["3fa1b2", ""]
    assert PASSWORD not in repr(events)
    assert world.auth.logins == {"ok": 1, "failed": 1}


async def test_a_locked_user_learns_it_only_with_the_right_password(world, proxy, make_lock):
    await world.add_user()
    await world.put(make_lock("stop", user="alice"))
    with pytest.raises(WrongPassword):
        await world.auth.service.authenticate(proxy, login(password="wrong password"))
    with pytest.raises(UserLocked, match="alice"):
        await world.auth.service.authenticate(proxy, login())
    await world.auth.administration.delete(world.admin, "lock", "stop")
    assert await world.auth.service.authenticate(proxy, login())


async def test_the_lock_on_a_removed_user_outlives_every_certificate_that_roles_may_have_allowed(world):
    await world.add_user()
    await world.auth.administration.delete(world.admin, "user", "alice")
    [lock] = await world.auth._parts.resources.locks()
    assert lock.in_force(world.clock() + MAX_TTL - timedelta(minutes=1))


async def test_removing_a_user_locks_what_they_still_hold_and_the_name_can_come_back(world, proxy):
    await world.add_user()
    alice = world.user()
    await world.auth.administration.delete(world.admin, "user", "alice")
    with pytest.raises(WrongPassword):
        await world.auth.service.authenticate(proxy, login())
    locks = await world.auth._parts.resources.locks()
    assert [one.spec.target.user for one in locks] == ["alice"]
    assert locks[0].in_force(alice.expires - timedelta(seconds=1))
    await world.add_user()
    assert await world.auth.service.authenticate(proxy, login())
    with pytest.raises(NotFound):
        await world.auth.administration.delete(world.admin, "user", "nobody")


async def test_a_user_created_from_a_document_has_no_password_until_one_is_set(world, proxy):
    from monoport.access.resources import parse_document

    document = {"kind": "user", "version": "v1", "metadata": {"name": "dora"}, "spec": {"roles": ["access"]}}
    await world.auth.administration.create(world.admin, parse_document(document), False)
    with pytest.raises(WrongPassword):
        await world.auth.service.authenticate(proxy, login("dora"))
    await world.auth.administration.users_reset(world.admin, "dora", messages.NewPassword(password=PASSWORD))
    assert await world.auth.service.authenticate(proxy, login("dora"))
    document["spec"] = {"roles": ["auditor"]}
    await world.auth.administration.create(world.admin, parse_document(document), True)
    answer = await world.auth.service.authenticate(proxy, login("dora"))
    assert answer.roles == ("auditor",), "the password stayed, the roles are new"


async def test_what_makes_no_sense_is_refused_by_name(world, make_role):
    with pytest.raises(Invalid, match="no role nix: there are access, auditor, editor"):
        await world.add_user(roles=("nix",))
    for name in ("..", "-rf", "a/b", "a b", ".hidden", "x" * 65):
        with pytest.raises((Invalid, ValueError)):
            await world.add_user(name)
    await world.add_user()
    with pytest.raises(Exists):
        await world.add_user()
    with pytest.raises(Exists):
        await world.auth.administration.create(world.admin, make_role("access"), False)
    with pytest.raises(Conflict, match="held by alice"):
        await world.auth.administration.delete(world.admin, "role", "access")
    await world.auth.administration.delete(world.admin, "role", "auditor")
    with pytest.raises(NotFound):
        await world.auth.administration.get(world.admin, "role", "auditor")


async def test_presets_come_once(world):
    await world.auth.administration.delete(world.admin, "role", "auditor")
    await world.auth._parts.resources.seed()
    assert set(await world.auth._parts.resources.roles()) == {"access", "editor"}


async def test_users_see_only_what_is_in_reach(world, make_role, make_node, make_database):
    labels = {"node_labels": {"env": "dev"}, "db_labels": {"env": "dev"}}
    await world.put(make_role("dev", {"logins": ["x"], "db_users": ["x"], **labels}))
    await world.put(make_role("nobody", labels))
    for index, env in enumerate(("dev", "prod")):
        host = await world.joined("node", f"h{index}", [env])
        await world.auth.service.heartbeat(host, make_node(f"h{index}", env, env=env))
        agent = await world.joined("db", f"d{index}")
        await world.auth.service.heartbeat(agent, make_database(env, f"d{index}", env=env))
    dev = world.user(roles=("dev",))
    assert [one.spec.hostname for one in await world.auth.administration.list(dev, "node")] == ["dev"]
    assert [one.name for one in await world.auth.administration.list(dev, "db")] == ["dev"]
    nobody = world.user(roles=("nobody",))
    assert [one.spec.hostname for one in await world.auth.administration.list(nobody, "node")] == ["dev"]
    assert await world.auth.administration.list(nobody, "db") == (), "no database user of it is allowed"
    assert (await world.auth.administration.get(dev, "node", "dev")).name == "h0"
    with pytest.raises(NotFound):
        await world.auth.administration.get(dev, "node", "prod")
    assert len(await world.auth.administration.list(world.admin, "node")) == 2


async def test_signing_without_a_login(world):
    await world.add_user(logins=("root",))
    request = messages.SignUser(user="alice", public_key=PAIR.public, ssh_public_key=PAIR.ssh_public, ttl=7200)
    signed = await world.auth.administration.sign_user(world.admin, request)
    assert signed.logins == ("root",)
    assert timedelta(hours=1, minutes=59) < signed.expires - world.clock() <= timedelta(hours=2)
    server = messages.SignServer(hosts=("db.internal", "10.0.0.1"), public_key=PAIR.public)
    certificate = x509.load_pem_x509_certificate(
        (await world.auth.administration.sign_database_server(world.admin, server)).certificate.encode()
    )
    ca = x509.load_pem_x509_certificate(world.auth.cas.db[0].encode())
    certificate.verify_directly_issued_by(ca)
