"""What is not believed or not reached: forged host certificates, odd principals, paths that lead elsewhere."""

import os
import pwd
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncssh
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    SSHCertificateBuilder,
    SSHCertificateType,
    load_ssh_public_key,
)

from monoport.access.identity import SSH_EXTENSION, Identity, IdentityError, Kind, encode
from monoport.auth import keys
from monoport.auth.certificates import CertificateError, issue_host_ssh, issue_user_ssh
from monoport.net.memory import pair
from monoport.tunnel.dial import DialRefused
from monoport.tunnel.link import HostKey

from .conftest import CLUSTER, NODE

HOUR = timedelta(hours=1)


def host_certificate(world, *, ca=None, kind=SSHCertificateType.HOST, names=(NODE,), ends=HOUR) -> HostKey:
    """A key and a certificate that says it is the node's, wrong in one way."""
    made = keys.generate()
    now = datetime.now(UTC)
    builder = (
        SSHCertificateBuilder()
        .public_key(load_ssh_public_key(made.ssh_public.encode()))
        .type(kind)
        .key_id(b"x")
        .valid_after(int((now - 2 * HOUR).timestamp()))
        .valid_before(int((now + ends).timestamp()))
        .valid_principals([name.encode() for name in names])
    )
    signer = ca or world.authorities.host.ssh_signer
    return HostKey(made.private, builder.sign(signer).public_bytes().decode())


async def test_the_hand_made_certificate_is_believed_where_nothing_is_wrong_with_it(world, need):
    world.host = host_certificate(world)
    async with world.port() as port:
        assert (await world.run(need("ssh"), *world.openssh(port), "web", "echo in")).out == b"in\n"


@pytest.mark.parametrize(
    "wrong", ["another ca", "the user ca", "another name", "a longer name", "names in one", "expired"]
)
async def test_ssh_believes_no_forged_host_certificate(world, need, wrong):
    match wrong:
        case "another ca":
            world.host = host_certificate(world, ca=ec.generate_private_key(ec.SECP256R1()))
        case "the user ca":
            world.host = host_certificate(world, ca=world.authorities.user.ssh_signer)
        case "another name":
            world.host = host_certificate(world, names=("db", f"db.{CLUSTER}"))
        case "a longer name":
            world.host = host_certificate(world, names=(f"{NODE}.example.org", f"x{NODE}"))
        case "names in one":
            world.host = host_certificate(world, names=(f"db,{NODE}", f"{NODE} db"))
        case _:
            world.host = host_certificate(world, ends=-HOUR)
    async with world.port() as port:
        found = await world.run(need("ssh"), *world.openssh(port), "web", "echo in")
    assert (found.status, found.out) == (255, b""), found
    assert not world.events("session.start")


async def test_a_users_certificate_is_no_hosts(world, need):
    made = keys.generate()
    expires = (datetime.now(UTC) + HOUR).replace(microsecond=0)
    who = Identity(Kind.USER, "eve", CLUSTER, ("access",), principals=(NODE,), expires=expires)
    line = issue_user_ssh(world.authorities.user, made.ssh_public, who, datetime.now(UTC))
    world.host = HostKey(made.private, line)
    async with world.port() as port:
        found = await world.run(need("ssh"), *world.openssh(port), "web", "echo in")
    assert (found.status, found.out) == (255, b"")
    assert not world.events("session.start")


# principals


@pytest.mark.parametrize("principal", ["", "root,daemon", "a b", "*", "root\n", "\x1b[31mroot", "root\0"])
async def test_odd_principals_let_nobody_in_as_anybody(world, principal):
    expires = (datetime.now(UTC) + HOUR).replace(microsecond=0)
    try:
        identity = Identity(
            Kind.USER, "alice", CLUSTER, ("access",), {"logins": (principal,)}, principals=(principal,), expires=expires
        )
        line = issue_user_ssh(world.authorities.user, world.user_key.ssh_public, identity, datetime.now(UTC))
    except (IdentityError, CertificateError):
        return  # such a certificate is never made
    world.certificate = line
    for login in (world.login, "root", "daemon", "a"):
        with pytest.raises((ExceptionGroup, asyncssh.PermissionDenied)):
            async with world.connected(username=login):
                pass
    assert not world.events("session.start")


def test_host_certificates_without_names_are_never_made(world):
    expires = (datetime.now(UTC) + HOUR).replace(microsecond=0)
    nobody = Identity(Kind.HOST, NODE, CLUSTER, ("node",), principals=(), expires=expires)
    with pytest.raises((IdentityError, CertificateError)):
        issue_host_ssh(world.authorities.host, keys.generate().ssh_public, nobody, datetime.now(UTC))


@pytest.mark.parametrize("option", [b"force-command", b"source-address", b"verify-required", b"next-years@example.com"])
async def test_a_certificate_with_a_critical_option_is_refused_and_not_read_without_it(world, option):
    expires = (datetime.now(UTC) + HOUR).replace(microsecond=0)
    identity = Identity(
        Kind.USER, "alice", CLUSTER, ("access",), {"logins": (world.login,)}, principals=(world.login,), expires=expires
    )
    line = (
        SSHCertificateBuilder()
        .public_key(load_ssh_public_key(world.user_key.ssh_public.encode()))
        .type(SSHCertificateType.USER)
        .key_id(b"x")
        .valid_after(int(datetime.now(UTC).timestamp()) - 60)
        .valid_before(int(expires.timestamp()))
        .valid_principals([world.login.encode()])
        .add_critical_option(option, b"")
        .add_extension(SSH_EXTENSION.encode(), encode(identity))
        .sign(world.authorities.user.ssh_signer)
        .public_bytes()
        .decode()
    )
    near, far = pair()
    with pytest.raises(DialRefused, match="critical options"):
        await world.node.serve(replace(world.preface(), certificate=line), far)
    near.abort()


# files: never more than the login user's own rights


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that root alone may reach, in a folder that root alone may enter."""
    inner = tmp_path / "roots"
    inner.mkdir(mode=0o700)
    (inner / "secret").write_text("root's")
    return inner / "secret"


def ways(world, secret: Path) -> list[str]:
    """Paths that lead to it from a home folder."""
    return [str(secret), f"{'../' * 12}{str(secret).lstrip('/')}", f"./x/../../../..{secret}", "link", "links/secret"]


async def linked(world, client, secret: Path) -> None:
    made = await client.run(f"ln -sfn {secret} link; ln -sfn {secret.parent} links; mkdir -p x; echo mine > own")
    assert made.exit_status == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root is who could do it")
async def test_sftp_reaches_nothing_that_the_login_user_does_not(world, secret):
    async with world.connected() as client:
        await linked(world, client, secret)
        async with client.start_sftp_client() as sftp:
            for path in ways(world, secret):
                for act in (
                    lambda path=path: sftp.open(path, "rb"),
                    lambda path=path: sftp.open(path, "wb"),
                    lambda path=path: sftp.stat(path),
                    lambda path=path: sftp.chmod(path, 0o777),
                    lambda path=path: sftp.rename("own", f"{path}/new"),
                ):
                    with pytest.raises(asyncssh.SFTPError):
                        await act()
            for path in ("/etc/shadow", "/root/.ssh/authorized_keys", "/proc/1/environ"):
                with pytest.raises(asyncssh.SFTPError):
                    await sftp.open(path, "rb")
            assert await (await sftp.open("own", "rb")).read() == b"mine\n"
        await client.run("rm -r link links x own")
    assert secret.read_text() == "root's"
    assert secret.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="root is who could do it")
@pytest.mark.parametrize("legacy", [[], ["-O"]], ids=["sftp", "rcp"])
async def test_scp_reaches_nothing_that_the_login_user_does_not(world, secret, tmp_path, need, legacy):
    need("scp")
    mine = tmp_path / "mine"
    mine.write_text("mine")
    async with world.connected() as client:
        await linked(world, client, secret)
        async with world.port() as port:
            for path in ways(world, secret):
                taken = await world.run("scp", *legacy, *world.openssh(port), f"web:{path}", tmp_path / "taken")
                given = await world.run("scp", *legacy, *world.openssh(port), mine, f"web:{path}")
                assert taken.status != 0, path
                assert given.status != 0, path
                assert not (tmp_path / "taken").exists()
        await client.run("rm -r link links x own")
    assert secret.read_text() == "root's"


async def test_what_is_transferred_belongs_to_the_login_user(world, need):
    account = pwd.getpwnam(world.login)
    async with world.connected() as client:
        async with client.start_sftp_client() as sftp, sftp.open("made", "w") as file:
            await file.write("x")
        found = (Path(account.pw_dir) / "made").stat()
        await client.run("rm made")
    assert (found.st_uid, found.st_gid) == (account.pw_uid, account.pw_gid)


# escapes


async def test_escapes_in_names_commands_and_terminals_do_no_harm(world, need, capsys):
    title = "\x1b]0;owned\x07"
    async with world.port() as port:
        found = await world.run(need("ssh"), "-l", f"root{title}", *world.openssh(port), "web", "true")
    assert found.status == 255
    assert b"\x1b" not in found.err
    assert "\x1b" not in capsys.readouterr().out  # the log
    async with world.connected() as client:
        found = await client.run("echo $TERM", term_type=f"xterm{title}")
    assert found.stdout == "dumb\r\n"
