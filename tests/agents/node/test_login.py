"""Who is let in, and what those who are not get to know."""

import asyncio
import os
import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncssh
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    SSHCertificateBuilder,
    SSHCertificateType,
    load_ssh_public_key,
)

from monoport.access.identity import SSH_EXTENSION, Identity, Kind, encode
from monoport.agents.node import account
from monoport.agents.node.account import AccountError
from monoport.net.memory import pair
from monoport.tunnel import dial
from monoport.tunnel.dial import DialRefused
from monoport.tunnel.preface import Kind as Wanted


class Client(asyncssh.SSHClient):
    """Keeps what the server says before it lets nobody in."""

    said = ""

    def auth_banner_received(self, msg: str, lang: str) -> None:
        Client.said += msg


async def refused(world, **options) -> str:
    """Try to log in, which must fail; return what the client was told."""
    Client.said = ""
    with pytest.raises(ExceptionGroup) as caught:
        async with world.connected(client_factory=Client, **options):
            pass
    assert caught.group_contains(asyncssh.PermissionDenied)
    return Client.said


async def test_a_login_that_the_certificate_does_not_name(world):
    assert await refused(world, username="daemon") == "login daemon is not allowed [connection c-1]\r\n"
    (event,) = world.events("session.deny")
    assert (event["login"], event["user"], event["what"]) == ("daemon", "alice@example.com", "login")


async def test_principals_match_exactly(world):
    assert "not allowed" in await refused(world, username=world.login.upper())
    assert "not allowed" in await refused(world, username=world.login[:-1])


async def test_a_login_that_the_role_denies_says_what_but_not_why(world, make_role):
    denying = make_role()
    document = denying.model_dump(mode="json")
    document["spec"]["deny"]["logins"] = [world.login]
    world.roles["access"] = type(denying).model_validate(document)
    world.certificate = world.sign(logins=(world.login, "daemon"))  # the node may be reached as somebody
    said = await refused(world)
    assert said == f'login "{world.login}" to node "web" denied [connection c-1]\r\n'
    assert "deny" in str(world.events("session.deny")[0]["rule"])


async def test_another_users_certificate_than_the_announced(world):
    bob = world.sign("bob")
    assert "certificate refused" in await refused(world, certificate=bob)
    assert "bob@example.com is not alice@example.com" in str(world.events("session.deny")[0]["rule"])


async def test_a_lock_keeps_the_user_out(world, lock):
    world.locks.append(lock(login=world.login))
    world.certificate = world.sign(logins=(world.login, "daemon"))
    assert "denied" in await refused(world)


async def test_an_expired_certificate(world):
    world.lifetime = timedelta(seconds=1)
    fresh = world.certificate
    short = world.sign()
    world.ahead = timedelta(minutes=5)
    world.certificate = fresh
    assert "expired" in await refused(world, certificate=short)


async def test_several_refused_certificates_get_one_line_and_a_record_each(world):
    key = asyncssh.import_private_key(world.user_key.private)
    lines = [world.sign("bob"), world.sign(logins=("daemon",)), world.sign("carol", logins=("daemon",))]
    keys = [(key, asyncssh.import_certificate(line)) for line in lines]
    assert await refused(world, client_keys=[*keys, key]) == "certificate refused [connection c-1]\r\n"
    assert [event["reason"] for event in world.events("session.deny")] == [
        "certificate refused",
        f"login {world.login} is not allowed",
    ]


async def test_a_login_without_an_account(world):
    nobody = world.sign(logins=("no-such-account",))
    said = await refused(world, username="no-such-account", certificate=nobody)
    assert said == "login no-such-account does not exist [connection c-1]\r\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lock an account")
async def test_locked_expired_and_shell_less_accounts(world, tmp_path):
    def set_account(*arguments: str) -> None:
        subprocess.run(["usermod", *arguments, world.login], check=True)

    set_account("--password", "!$6$x$y")
    assert f"login {world.login} is locked" in await refused(world)
    set_account("--password", "!", "--expiredate", "1")
    assert f"login {world.login} has expired" in await refused(world)
    set_account("--expiredate", "", "--shell", "/nowhere/shell")
    assert f"login {world.login} has no usable shell" in await refused(world)
    set_account("--shell", "/usr/sbin/nologin")
    try:
        async with world.connected() as client:
            found = await client.run("id")
            with pytest.raises(asyncssh.ChannelOpenError):
                await client.start_sftp_client()
    finally:
        set_account("--shell", "/bin/bash")
    assert found.exit_status == 1
    assert "not available" in found.stdout


def test_an_agent_that_is_not_root_serves_its_own_login_only(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(AccountError, match="does not run as root"):
        account.find("daemon")


def test_nologin_is_shown(monkeypatch, tmp_path, login):
    if account.find(login).uid == 0:
        pytest.skip("nologin does not concern root")
    monkeypatch.setattr(account, "NOLOGIN", tmp_path / "nologin")
    (tmp_path / "nologin").write_text("back at noon\n")
    with pytest.raises(AccountError, match=r"^back at noon$"):
        account.find(login)


def forged(world, ca: ec.EllipticCurvePrivateKey, kind: SSHCertificateType, principals, option=None) -> str:
    """A certificate that is wrong in one way."""
    identity = Identity(
        Kind.USER,
        "alice",
        "example.com",
        ("access",),
        {"logins": (world.login,)},
        principals=(world.login,),
        expires=(datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0),
    )
    builder = (
        SSHCertificateBuilder()
        .public_key(load_ssh_public_key(world.user_key.ssh_public.encode()))
        .type(kind)
        .key_id(b"x")
        .valid_after(int(datetime.now(UTC).timestamp()) - 60)
        .valid_before(int(identity.expires.timestamp()))
        .add_extension(SSH_EXTENSION.encode(), encode(identity))
    )
    builder = builder.valid_principals(principals) if principals else builder.valid_for_all_principals()
    if option:
        builder = builder.add_critical_option(option, b"")
    return builder.sign(ca).public_bytes().decode()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("other ca", "was not signed by a user CA"),
        ("host ca", "was not signed by a user CA"),
        ("no principals", "no principals"),
        ("other principals", "principals are not those"),
        ("critical option", "critical options"),
        ("host type", "certificate"),
    ],
)
async def test_certificates_that_do_not_hold(world, what, said):
    user, host = world.authorities.user.ssh_signer, world.authorities.host.ssh_signer
    mine, login = SSHCertificateType.USER, [world.login.encode()]
    match what:
        case "other ca":
            line = forged(world, ec.generate_private_key(ec.SECP256R1()), mine, login)
        case "host ca":
            line = forged(world, host, mine, login)
        case "no principals":
            line = forged(world, user, mine, [])
        case "other principals":
            line = forged(world, user, mine, [b"root", *login])
        case "critical option":
            line = forged(world, user, mine, login, b"verify-required")
        case _:
            line = forged(world, host, SSHCertificateType.HOST, login)
    near, far = pair()
    with pytest.raises(DialRefused, match=said):
        await world.node.serve(replace(world.preface(), certificate=line), far)
    (event,) = world.events("session.deny")
    assert (event["what"], event["rule"]) == ("node", "certificate: not accepted")
    near.abort()
    if what not in {"host type", "critical option"}:  # asyncssh as a client does not even offer those
        assert "certificate refused" in await refused(world, certificate=line)


async def test_a_plain_key_is_no_certificate(world):
    key = asyncssh.import_private_key(world.user_key.private)
    assert not await refused(world, client_keys=[key])
    assert not world.audit.events


async def test_a_stolen_certificate_without_its_key(world):
    stranger = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    pair_of_both = asyncssh.load_keypairs([(stranger, None)])[0]
    certificate = asyncssh.import_certificate(world.certificate)
    pair_of_both.public_data = certificate.public_data
    pair_of_both.algorithm = certificate.algorithm
    assert not await refused(world, client_keys=[pair_of_both])


@pytest.mark.parametrize("change", [{"target": "another"}, {"kind": Wanted.DATABASE}])
async def test_what_the_node_does_not_serve(world, change):
    near, far = pair()
    with pytest.raises(DialRefused) as caught:
        await world.node.serve(replace(world.preface(), **change), far)
    assert caught.value.code == dial.NOT_SERVED
    near.abort()


async def test_a_user_whose_roles_do_not_reach_the_node(world):
    world.roles.clear()
    near, far = pair()
    with pytest.raises(DialRefused, match=re.escape('access to node "web" denied')) as caught:
        await world.node.serve(world.preface(), far)
    assert caught.value.code == dial.DENIED
    near.abort()


async def test_garbage_in_place_of_ssh_ends_the_connection(world):
    async with world.port() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01 this is not SSH\r\n" * 10)
        assert (await reader.read()).startswith(b"SSH-2.0-monoport")
        writer.close()


async def test_attempts_are_limited(world):
    strangers = [asyncssh.generate_private_key("ecdsa-sha2-nistp256") for _ in range(40)]
    with pytest.raises(ExceptionGroup) as caught:
        async with world.connected(client_keys=strangers):
            pass
    assert caught.group_contains(asyncssh.DisconnectError, match="more than 32 attempts")
