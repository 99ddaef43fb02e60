"""The real OpenSSH client, scp and sftp against a node."""

import asyncio
import os
import pwd
import stat
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _openssh(need) -> None:
    for name in ("ssh", "scp", "sftp"):
        need(name)


def home(world) -> Path:
    return Path(pwd.getpwnam(world.login).pw_dir)


async def test_exec_status_and_streams(world):
    async with world.port() as port:
        found = await world.run("ssh", *world.openssh(port), "web", "id -un; cat >&2; exit 42", stdin=b"through")
    assert found.status == 42
    assert found.out.decode().strip() == world.login
    assert found.err == b"through"


async def test_openssh_gets_the_cipher_that_costs_least(world):
    async with world.port() as port:
        found = await world.run("ssh", "-o", "LogLevel=DEBUG1", *world.openssh(port), "web", "true")
        other = await world.run("ssh", *world.openssh(port), "-o", "Ciphers=aes256-ctr", "web", "true")
    assert b"server->client cipher: aes128-gcm@openssh.com" in found.err
    assert other.status == 255


async def test_terminal(world):
    async with world.port() as port:
        found = await world.run("ssh", "-tt", *world.openssh(port), "web", "tty; stty size; exit 7")
    assert found.status == 7
    assert found.out.startswith(b"/dev/pts/")


async def test_megabytes_both_ways(world):
    data = os.urandom(1 << 20) * 16
    async with world.port() as port:
        found = await world.run("ssh", *world.openssh(port), "web", "cat", stdin=data)
    assert (found.status, found.out == data) == (0, True)


async def test_rekeying_in_the_middle(world):
    data = os.urandom(1 << 20) * 4
    async with world.port() as port:
        found = await world.run("ssh", "-o", "RekeyLimit=1M", *world.openssh(port), "web", "cat", stdin=data)
    assert (found.status, found.out == data) == (0, True)


async def test_many_sessions_on_one_connection(world):
    control = world.folder / "control"
    async with world.port() as port:
        base = ["ssh", *world.openssh(port), "-o", f"ControlPath={control}"]
        master = await asyncio.create_subprocess_exec(*map(str, base), "-o", "ControlMaster=yes", "-N", "web")
        try:
            await world.until(control.exists)
            found = await asyncio.gather(*(world.run(*base, "web", f"echo {number}") for number in range(8)))
        finally:
            master.terminate()
            await master.wait()
    assert [one.out.decode().strip() for one in found] == [str(number) for number in range(8)]


@pytest.mark.parametrize("legacy", [False, True])
async def test_scp_there_and_back(world, legacy, tmp_path):
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "one").write_bytes(os.urandom(3_000_000))
    (tree / "deep" / "two words").write_bytes(b"two")
    (tree / "empty").touch()
    (tree / "one").chmod(0o640)
    flags = ["-O"] if legacy else []
    async with world.port() as port:
        options = [*world.openssh(port), *flags, "-rp"]
        there = f"sent-{os.getpid()}-{legacy}"  # other workers use the same home
        sent = await world.run("scp", *options, tree, f"web:{there}")
        got = await world.run("scp", *options, f"web:{there}", tmp_path / "back")
        await world.run("ssh", *world.openssh(port), "web", f"rm -rf {there}")
    assert (sent.status, sent.err, got.status, got.err) == (0, b"", 0, b"")
    assert (tmp_path / "back" / "one").read_bytes() == (tree / "one").read_bytes()
    assert (tmp_path / "back" / "deep" / "two words").read_bytes() == b"two"
    assert stat.S_IMODE((tmp_path / "back" / "one").stat().st_mode) == 0o640
    assert int((tmp_path / "back" / "one").stat().st_mtime) == int((tree / "one").stat().st_mtime)
    assert world.events("scp.start" if legacy else "sftp.start")
    assert {event["exit"] for event in world.events("session.end")} == {"0"}


async def test_sftp_commands(world, tmp_path):
    (tmp_path / "up").write_bytes(b"x" * 700_000)
    batch = f"""
    mkdir dir
    put {tmp_path}/up dir/up
    chmod 600 dir/up
    ln -s up dir/link
    rename dir/up dir/moved
    ls -la dir
    df dir
    get dir/moved {tmp_path}/down
    rm dir/link
    rm dir/moved
    rmdir dir
    pwd
    """
    async with world.port() as port:
        found = await world.run("sftp", *world.openssh(port), "-b", "-", "web", stdin=batch.encode())
        missing = await world.run("sftp", *world.openssh(port), "-b", "-", "web", stdin=b"get /nowhere/file\n")
    assert (found.status, found.err) == (0, b"")
    assert (tmp_path / "down").read_bytes() == b"x" * 700_000
    assert f"Remote working directory: {home(world)}" in found.out.decode()
    assert "-rw-------" in found.out.decode()
    assert world.login[:8] in found.out.decode()
    assert missing.status == 1
    assert b"not found" in missing.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights that a user lacks")
async def test_sftp_has_the_users_rights_only(world, tmp_path):
    batch = f"get /etc/shadow {tmp_path}/shadow\n"
    async with world.port() as port:
        found = await world.run("sftp", *world.openssh(port), "-b", "-", "web", stdin=batch.encode())
    assert found.status == 1
    assert b"ermission denied" in found.err


async def test_local_forwarding_to_tcp_and_unix(world, tmp_path):
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    tcp = await asyncio.start_server(shout, "127.0.0.1", 0)
    target = tcp.sockets[0].getsockname()[1]
    async with world.port() as port:
        found = await world.run("ssh", *world.openssh(port), "-W", f"127.0.0.1:{target}", "web", stdin=b"tcp")
        refused = await world.run("ssh", *world.openssh(port), "-W", "127.0.0.1:1", "web")
        folder = home(world) / "sockets"
        await world.run("ssh", *world.openssh(port), "web", f"mkdir -p {folder}; chmod 777 {folder}")
        unix = await asyncio.start_unix_server(shout, folder / "s")
        (folder / "s").chmod(0o777)
        local = tmp_path / "local"
        command = ["ssh", *world.openssh(port), "-N", "-L", f"{local}:{folder}/s", "web"]
        forwarder = await asyncio.create_subprocess_exec(*map(str, command))
        try:
            await world.until(local.exists)
            reader, writer = await asyncio.open_unix_connection(local)
            writer.write(b"unix")
            writer.write_eof()
            assert await reader.read() == b"UNIX"
            writer.close()
        finally:
            forwarder.terminate()
            await forwarder.wait()
        unix.close()
        await world.run("ssh", *world.openssh(port), "web", f"rm -rf {folder}")
    tcp.close()
    assert (found.status, found.out) == (0, b"TCP")
    assert refused.status != 0
    assert b"stdio forwarding failed" in refused.err
    assert [event["target"] for event in world.events("port.forward")][:2] == [f"127.0.0.1:{target}", "127.0.0.1:1"]


@pytest.fixture
async def agent(world, need, tmp_path):
    """The environment of a running ssh-agent that holds the user's key."""
    need("ssh-agent")
    need("ssh-add")
    socket = tmp_path / "agent"
    running = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", socket, stdout=subprocess.DEVNULL)
    env = {"SSH_AUTH_SOCK": str(socket)}
    try:
        await world.until(socket.exists)
        world.openssh(0)  # writes the key
        added = await world.run("ssh-add", world.folder / "key", env=env)
        assert added.status == 0, added.err
        yield env
    finally:
        running.terminate()
        await running.wait()


async def test_the_agent_is_really_forwarded(world, agent):
    script = 'ssh-add -l; stat -c "%U %a" "$SSH_AUTH_SOCK" "$(dirname $SSH_AUTH_SOCK)"; echo $SSH_AUTH_SOCK'
    async with world.port() as port:
        options = world.openssh(port)
        found = await world.run("ssh", "-A", *options, "web", script, env=agent)
        without = await world.run("ssh", *options, "web", "ssh-add -l", env=agent)
    lines = found.out.decode().splitlines()
    assert "ECDSA" in lines[0]
    assert f"{world.login} 600" in lines
    assert f"{world.login} 700" in lines
    await world.until(lambda: not Path(lines[-1]).parent.exists())
    assert without.status == 2
    assert len(world.events("agent.forward")) == 1


async def test_roles_decide_about_forwarding(world, make_role, agent):
    world.roles["access"] = make_role(port_forwarding=False, forward_agent=False)
    async with world.port() as port:
        options = world.openssh(port)
        found = await world.run("ssh", *options, "-W", "127.0.0.1:1", "web")
        forwarded = await world.run("ssh", "-A", *options, "web", "echo [$SSH_AUTH_SOCK]", env=agent)
    assert found.status != 0
    assert forwarded.out == b"[]\n"
    denied = [(event["what"], event["reason"]) for event in world.events("session.deny")]
    assert denied == [("port", "port forwarding is not allowed"), ("agent", "agent forwarding is not allowed")]


async def test_certificates_decide_about_forwarding_too(world):
    world.certificate = world.sign(port_forwarding=False, forward_agent=False)
    async with world.port() as port:
        found = await world.run("ssh", *world.openssh(port), "-W", "127.0.0.1:1", "web")
    assert found.status != 0
    assert world.events("session.deny")[0]["reason"] == "port forwarding is not allowed"
