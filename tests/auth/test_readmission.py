"""A name that comes back does not bring old certificates back; and what logins leave in the audit log."""

from datetime import timedelta

import pytest
from cryptography import x509

from monoport.access.identity import from_ssh, from_x509
from monoport.access.locks import lock_for
from monoport.auth import messages
from monoport.auth.keys import generate
from monoport.auth.passwords import MAX_FAILURES
from monoport.auth.permissions import may_emit
from monoport.auth.refusals import Forbidden, LoginLocked, WrongPassword
from monoport.errors import Failure

from .conftest import PASSWORD

PAIR = generate()
KEYS = {"public_key": PAIR.public, "ssh_public_key": PAIR.ssh_public}


def log_in(world, **values):
    request = messages.Authenticate(**{"user": "alice", "password": PASSWORD, **KEYS, **values})
    return world.auth.service.authenticate(world.host("proxy"), request)


def read(login):
    return from_x509(x509.load_pem_x509_certificate(login.certificate.encode()), login.cas)


async def locked(world, identity):
    return lock_for(identity, await world.auth._parts.resources.locks(), world.clock()) is not None


async def test_both_certificates_say_exactly_when_the_login_was_and_reissue_keeps_it(world):
    await world.add_user()
    before = world.clock()
    login = await log_in(world)
    identity = read(login)
    assert before <= identity.issued <= world.clock()
    assert from_ssh(login.ssh_certificate, login.cas).issued == identity.issued
    world.clock.advance(seconds=2)
    narrower = await world.auth.service.reissue(identity, messages.Reissue(public_key=PAIR.public))
    assert read(narrower).issued == identity.issued
    _, host = await world.auth.admit("node", "one")
    assert read(host).issued >= before


async def test_adding_a_removed_user_again_does_not_revive_their_certificates(world):
    await world.add_user()
    old = read(await log_in(world))
    for _ in range(2):
        await world.auth.administration.delete(world.admin, "user", "alice")
        assert await locked(world, old)
        await world.add_user()
        new = read(await log_in(world))
        assert (await locked(world, old), await locked(world, new)) == (True, False)
        with pytest.raises(Forbidden, match="locked"):
            await world.auth.service.reissue(old, messages.Reissue(public_key=PAIR.public))
        assert await world.auth.service.reissue(new, messages.Reissue(public_key=PAIR.public))
        old = new
    document = await world.auth.administration.get(world.admin, "user", "alice")
    await world.auth.administration.create(world.admin, document, True)
    assert not await locked(world, new), "a changed user is not a new one"


async def test_a_user_made_from_a_document_is_readmitted_too(world):
    await world.add_user()
    old = read(await log_in(world))
    document = await world.auth.administration.get(world.admin, "user", "alice")
    await world.auth.administration.delete(world.admin, "user", "alice")
    await world.auth.administration.create(world.admin, document, False)
    await world.auth.administration.users_reset(world.admin, "alice", messages.NewPassword(password=PASSWORD))
    assert not await locked(world, read(await log_in(world)))
    assert await locked(world, old)


async def test_a_clock_that_went_back_revives_nothing(world, clock):
    await world.add_user()
    old = read(await log_in(world))
    await world.auth.administration.delete(world.admin, "user", "alice")
    clock.passed -= timedelta(hours=1)
    await world.add_user()
    clock.passed += timedelta(hours=1)
    assert await locked(world, old)


async def test_a_reset_password_leaves_certificates_alone(world):
    await world.add_user()
    held = read(await log_in(world))
    await world.auth.administration.users_reset(world.admin, "alice", messages.NewPassword(password=PASSWORD))
    assert not await locked(world, held)


async def test_every_failed_login_is_in_the_audit_log(world):
    await world.add_user()
    with pytest.raises(Failure):
        await log_in(world, ssh_public_key=generate().ssh_public)
    for _ in range(MAX_FAILURES):
        with pytest.raises(WrongPassword):
            await log_in(world, password="wrong horse")
    with pytest.raises(LoginLocked):
        await log_in(world)
    found = (await world.auth.administration.events(world.admin, 10, None, "user.login")).events
    reasons = [one.fields["reason"] for one in found]
    assert [one.fields["success"] for one in found] == [False] * (MAX_FAILURES + 2)
    assert reasons[0].startswith("too many failed logins")
    assert reasons[1:-1] == ["wrong user name or password"] * MAX_FAILURES
    assert reasons[-1] == "right password, no certificate: public_key and ssh_public_key must be the same key"


@pytest.mark.parametrize(
    ("role", "yes", "no"),
    [
        (
            "node",
            (
                "session.start",
                "session.end",
                "session.deny",
                "sftp.start",
                "scp.start",
                "port.forward",
                "agent.forward",
            ),
            ("db.query", "db.session.start", "user.login", "host.join", "sessions", "session"),
        ),
        ("db", ("db.query", "db.session.deny", "db.copy"), ("session.start", "certificate.user", "dbx.query")),
        (
            "proxy",
            ("session.deny", "db.session.start", "db.session.deny", "db.session.end"),
            ("session.start", "db.query", "db.session.start.x", "user.login", "lock.delete"),
        ),
        ("app", (), ("app.start", "session.start", "db.query")),
        ("kube", (), ("kube.exec", "user.login")),
    ],
)
def test_hosts_emit_only_what_their_roles_see(world, role, yes, no):
    host = world.host(role)
    assert [one for one in yes if not may_emit(host, one)] == []
    assert [one for one in no if may_emit(host, one)] == []
