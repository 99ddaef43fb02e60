"""Every kind of forwarding: what a role grants works as the login user, and each refusal says which rule it was."""

import asyncio
import os
import pwd
import socket
import stat
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest
from asyncssh.packet import Boolean, String, UInt32

from monoport.access.forwarding import Forwarding
from monoport.agents.node import display, forwarding, rights
from monoport.agents.node.opener import Opener
from monoport.errors import Failure
from monoport.tunnel.channel import ChannelSession

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


class Said(asyncssh.SSHClient):
    """Keeps what the server says about requests that it answers with no."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def debug_msg_received(self, msg: str, lang: str, always_display: bool) -> None:
        assert always_display
        self.lines.append(msg)


@asynccontextmanager
async def shouting():
    """A service on the machine's loopback that answers in capitals when it has read everything."""

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def said_by(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer


def kinds(world) -> list[tuple[object, object]]:
    return [(event["what"], event["rule"]) for event in world.events("session.deny")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# what is granted works, and is recorded with its bytes


async def test_a_remote_port_reaches_a_service_beside_the_client(world):
    async with shouting() as target, world.connected() as client:
        async with await client.forward_remote_port("localhost", 0, "127.0.0.1", target) as listener:
            port = listener.get_port()
            answer = await said_by(*await asyncio.open_connection("127.0.0.1", port), b"x" * 1_000_000)
            assert answer == b"X" * 1_000_000
            await world.event("port.close")
        with pytest.raises(OSError, match=str(port)):
            await asyncio.open_connection("127.0.0.1", port)
    (listening,) = world.events("port.listen")
    assert (listening["kind"], listening["target"], listening["login"]) == (
        "remote_port",
        f"localhost:{port}",
        world.login,
    )
    (begun,) = world.events("port.forward")
    assert (begun["kind"], begun["target"]) == ("remote_port", f"localhost:{port}")
    assert str(begun["origin"]).startswith("127.0.0.1:")
    assert begun["rule"] == "role access: options.remote_port_forwarding is true"
    (ended,) = world.events("port.close")
    assert (ended["bytes_in"], ended["bytes_out"], ended["error"]) == (1_000_000, 1_000_000, "")


async def test_a_remote_socket_is_the_login_users_own_and_goes_with_the_forwarding(world):
    account = pwd.getpwnam(world.login)
    path = Path(account.pw_dir) / "remote.sock"
    async with shouting() as target, world.connected() as client:
        async with await client.forward_remote_path_to_port(str(path), "127.0.0.1", target):
            found = path.lstat()
            assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (account.pw_uid, 0o600)
            assert await said_by(*await asyncio.open_unix_connection(path), b"unix") == b"UNIX"
        await world.until(lambda: not path.exists())
        await client.forward_remote_path_to_port("remote.sock", "127.0.0.1", target)  # relative: to ~
        assert path.exists()  # and it goes with the connection
    await world.until(lambda: not path.exists())
    assert [event["kind"] for event in world.events("port.listen")] == ["remote_unix", "remote_unix"]
    assert (await world.event("port.close"))["bytes_in"] == 4


async def test_each_forwarding_of_a_client_is_decided_with_the_roles_of_that_moment(world, make_role):
    async with shouting() as target, world.connected() as client:
        listener = await client.forward_remote_port("localhost", 0, "127.0.0.1", target)
        _, session = await client.create_connection(ChannelSession, "127.0.0.1", target)
        session.stream.close()
        await world.event("port.close")
        world.roles["access"] = make_role(port_forwarding=False, remote_port_forwarding=False)
        with pytest.raises(asyncssh.ChannelOpenError, match="port forwarding is not allowed"):
            await client.create_connection(ChannelSession, "127.0.0.1", target)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.get_port())
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
        await world.until(lambda: len(world.events("session.deny")) == 2)
        with pytest.raises(OSError, match=r"\d"):
            await asyncio.open_connection("127.0.0.1", listener.get_port())
    assert kinds(world) == [
        ("port", "role access: options.port_forwarding is false"),
        ("remote_port", "role access: options.remote_port_forwarding is false"),
    ]


async def test_a_session_is_decided_with_the_roles_of_that_moment(world):
    async with world.connected() as client:
        assert (await client.run("echo before")).stdout == "before\n"
        world.roles.clear()
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.run("echo after")
        await world.event("session.deny")
    assert kinds(world) == [("session", "role access: does not exist")]


async def test_a_destination_that_nobody_serves_is_recorded_with_why(world):
    async with world.connected() as client:
        with pytest.raises(asyncssh.ChannelOpenError, match="refused"):
            await client.create_connection(ChannelSession, "127.0.0.1", 1)
    (ended,) = world.events("port.close")
    assert (ended["target"], ended["bytes_in"]) == ("127.0.0.1:1", 0)
    assert "refused" in str(ended["error"])


# each kind without its right


@pytest.mark.parametrize("how", ["unset", "false", "certificate"])
async def test_each_kind_without_its_right(world, make_role, how):
    ports = (Forwarding.PORT, Forwarding.UNIX, Forwarding.REMOTE_PORT, Forwarding.REMOTE_UNIX)
    everything = (*ports, Forwarding.AGENT, Forwarding.X11)
    if how == "certificate":
        world.certificate = world.sign(forward_agent=False, port_forwarding=False, x11_forwarding=False)
        rules = [f"certificate: has no permit-{name}" for name in ("agent-forwarding", "X11-forwarding")]
        rules = ["certificate: has no permit-port-forwarding"] * 4 + rules
    else:
        world.roles["access"] = make_role(**dict.fromkeys(everything, None if how == "unset" else False))
        rules = [f"role access: options.{one} is false" for one in everything]
        if how == "unset":
            rules = [f"no role that allows this access has options.{one}" for one in everything]
    client_side = Said()
    async with world.connected(client_factory=lambda: client_side) as client:
        with pytest.raises(asyncssh.ChannelOpenError, match=r"^port forwarding is not allowed \[connection c-1\]$"):
            await client.create_connection(ChannelSession, "127.0.0.1", 22)
        with pytest.raises(asyncssh.ChannelOpenError, match="forwarding to Unix sockets is not allowed"):
            await client.create_unix_connection(ChannelSession, "/run/x")
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(lambda *_: ChannelSession(), "127.0.0.1", 0)
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_unix_server(ChannelSession, "/tmp/socket")
        channel, _ = await client.create_session(asyncssh.SSHClientSession, "cat", encoding=None)
        assert await channel._make_request(b"auth-agent-req@openssh.com") is False
        assert await x11(channel) is False
        assert (await client.run("echo still here")).stdout == "still here\n"
    assert [event["what"] for event in world.events("session.deny")] == [
        "port", "unix", "remote_port", "remote_unix", "agent", "x11",
    ]  # fmt: skip
    assert [rule for _what, rule in kinds(world)] == rules
    assert not world.events("port.forward")
    assert client_side.lines == [
        "remote forwarding of 127.0.0.1:0: remote port forwarding is not allowed [connection c-1]",
        "remote forwarding of /tmp/socket: forwarding from Unix sockets is not allowed [connection c-1]",
        "X11 forwarding: X11 forwarding is not allowed [connection c-1]",
    ]


# where a remote port may listen


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "*", "192.0.2.7", "localhost.example.com", "127.0.0.1.nip.io"])
async def test_other_addresses_than_loopback_take_gateway_ports(world, host):
    async with world.connected() as client:
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(lambda *_: ChannelSession(), host, 0)
    (event,) = world.events("session.deny")
    assert event["reason"] == "listening on other addresses than loopback is not allowed"
    assert event["rule"] == "no role that allows this access has options.gateway_ports"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2"])
async def test_loopback_means_loopback_alone(world, host):
    async with world.connected() as client:
        listener = await client.create_server(lambda *_: ChannelSession(), host, 0)
        rows = await asyncio.to_thread(lambda: "".join(map(Path.read_text, map(Path, TABLES))))
        port = f":{listener.get_port():04X} "
        bound = [row.split()[1].split(":")[0] for row in rows.splitlines() if port in row and " 0A " in row]
        assert bound
        assert set(bound) <= {"0100007F", "0200007F", "00000000000000000000000001000000"}


async def test_gateway_ports_opens_every_address(world, make_role):
    world.roles["access"] = make_role(gateway_ports=True)
    async with shouting() as target, world.connected() as client:
        listener = await client.forward_remote_port("", 0, "127.0.0.1", target)
        answer = await said_by(*await asyncio.open_connection("127.0.0.3", listener.get_port()), b"any")
    assert answer == b"ANY"
    assert "gateway_ports is true" in str(world.events("port.listen")[0]["rule"])


@pytest.mark.skipif(os.geteuid() != 0, reason="the login is this very user, who may be root nowhere")
async def test_ports_below_1024_are_roots(world):
    async with world.connected() as client:
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(lambda *_: ChannelSession(), "localhost", 1023)
    assert kinds(world) == [("remote_port", "the login is not root")]


async def test_ports_and_paths_in_use_are_refused_and_nothing_of_others_is_removed(world):
    path = Path(pwd.getpwnam(world.login).pw_dir) / "taken"
    client_side = Said()
    async with shouting() as target, world.connected(client_factory=lambda: client_side) as client:
        await client.run(f"echo mine > {path}")
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(lambda *_: ChannelSession(), "127.0.0.1", target)
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_unix_server(ChannelSession, str(path))
        for odd in ("", "\0abstract", "/" + "x" * 200):
            with pytest.raises(asyncssh.ChannelListenError):
                await client.create_unix_server(ChannelSession, odd)
        for port in (65_536, 2**32 - 1):
            with pytest.raises(asyncssh.ChannelListenError):
                await client.create_server(lambda *_: ChannelSession(), "127.0.0.1", port)
        assert path.read_text() == "mine\n"
        await client.run(f"rm {path}")
    assert len(client_side.lines) == 7
    assert all("already in use" in line for line in client_side.lines[:2])
    assert not world.events("port.listen"), "nothing did"


async def test_what_cannot_be_recorded_listens_no_more(world, monkeypatch):
    path = Path(pwd.getpwnam(world.login).pw_dir) / "unrecorded.sock"
    made, listen = [], Opener.listen

    async def listened(self, hosts, port):
        made.extend(found := await listen(self, hosts, port))
        return found

    monkeypatch.setattr(Opener, "listen", listened)
    async with world.connected() as client:
        monkeypatch.setattr(world.audit, "emit", failing(world.audit.emit, "port.listen"))
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(lambda *_: ChannelSession(), "localhost", 0)
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_unix_server(ChannelSession, str(path))
        await world.until(lambda: not path.exists())
        assert [one.fileno() for one in made] == [-1] * len(made) != []


def failing(emit, name):
    """The log, but for events of this type: its disk is full."""

    async def refuse(kind, /, **fields):
        if kind == name:
            raise Failure("the spool is full")
        return await emit(kind, **fields)

    return refuse


@pytest.mark.skipif(os.geteuid() != 0, reason="root is who could do it")
async def test_sockets_are_opened_and_made_with_the_login_users_rights_alone(world, tmp_path):
    inner = tmp_path / "roots"
    inner.mkdir(mode=0o700)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(inner / "s"))
    listening.listen()
    linked = Path(pwd.getpwnam(world.login).pw_dir) / "link"
    async with world.connected() as client:
        await client.run(f"ln -sf {inner}/s {linked}")
        for path in (str(inner / "s"), f"/tmp/../{inner}/s", str(linked)):
            with pytest.raises(asyncssh.ChannelOpenError, match="ermission denied"):
                await client.create_unix_connection(ChannelSession, path)
        for path in ("/root/s", "/etc/s", f"{inner}/t"):
            with pytest.raises(asyncssh.ChannelListenError):
                await client.create_unix_server(ChannelSession, path)
        await client.run(f"rm {linked}")
    listening.close()
    assert [path.name for path in inner.iterdir()] == ["s"]


async def test_listeners_are_limited(world, monkeypatch):
    monkeypatch.setattr(forwarding, "LISTENERS", 2)
    client_side = Said()
    async with world.connected(client_factory=lambda: client_side) as client:
        one = await client.create_server(lambda *_: ChannelSession(), "localhost", 0)
        await client.create_server(lambda *_: ChannelSession(), "localhost", 0)
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(lambda *_: ChannelSession(), "localhost", 0)
        one.close()
        await one.wait_closed()
        await client.create_server(lambda *_: ChannelSession(), "localhost", 0)
    assert client_side.lines == ["remote forwarding of localhost:0: more than 2 listeners [connection c-1]"]


async def test_who_goes_on_asking_for_what_is_refused_is_sent_away(world, make_role, monkeypatch):
    monkeypatch.setattr(rights, "DENIALS", 2)
    world.roles["access"] = make_role(port_forwarding=False)
    async with asyncio.timeout(20), world.connected() as client:
        for _ in range(2):
            with pytest.raises(asyncssh.ChannelOpenError, match="port forwarding is not allowed"):
                await client.open_connection("127.0.0.1", 1)
        with pytest.raises(asyncssh.Error):
            await client.open_connection("127.0.0.1", 1)
        await client.wait_closed()
    assert len(world.events("session.deny")) == 2


async def test_escapes_in_a_path_are_printed_harmlessly(world, make_role):
    world.roles["access"] = make_role(remote_unix_forwarding=False)
    client_side = Said()
    async with world.connected(client_factory=lambda: client_side) as client:
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_unix_server(ChannelSession, "/tmp/\x1b]0;title\x07")
    (line,) = client_side.lines
    assert line.startswith("remote forwarding of /tmp/\\x1b]0;title\\x07: ")


# X11


async def x11(channel, *, protocol: str = "MIT-MAGIC-COOKIE-1", cookie: str = "0f" * 16, screen: int = 1) -> bool:
    """Ask for a display, as ssh does before it starts the command."""
    return await channel._make_request(b"x11-req", Boolean(False), String(protocol), String(cookie), UInt32(screen))


@pytest.mark.parametrize(
    ("protocol", "cookie"),
    [("", "00"), ("A\nremove :0", "00"), ("x" * 65, "00"), ("MIT", ""), ("MIT", "00" * 257)],
    ids=["no name", "a line's end", "a long name", "no cookie", "a long cookie"],
)
async def test_an_authorisation_that_no_display_takes(world, protocol, cookie):
    async with world.connected() as client:
        channel, _ = await client.create_session(asyncssh.SSHClientSession, "cat", encoding=None)
        assert await x11(channel, protocol=protocol, cookie=cookie) is False
    assert not world.events("x11.forward")


def test_an_xauthority_file_names_the_host_and_any_host():
    written = display.authority(b"web", 12, b"MIT-MAGIC-COOKIE-1", bytes(16))
    assert written == (
        b"\x01\x00\x00\x03web\x00\x0212\x00\x12MIT-MAGIC-COOKIE-1\x00\x10" + bytes(16)
        + b"\xff\xff\x00\x00\x00\x0212\x00\x12MIT-MAGIC-COOKIE-1\x00\x10" + bytes(16)
    )  # fmt: skip


@pytest.fixture
async def xserver(world, need, tmp_path):
    """A real X server for the client's side, which takes one cookie: (DISPLAY, its Xauthority file)."""
    cookie, authority = "a1" * 16, tmp_path / "server-authority"
    number = 200 + os.getpid() % 20_000
    added = await world.run(need("xauth"), "-f", authority, "add", f":{number}", ".", cookie)
    assert added.status == 0, added.err
    screen = ["-screen", "0", "640x480x8", "-nolisten", "tcp", "-auth", str(authority)]
    ready, told = os.pipe()
    running = await asyncio.create_subprocess_exec(
        need("Xvfb"), f":{number}", *screen, "-displayfd", str(told), pass_fds=(told,),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.close(told)
    try:
        async with asyncio.timeout(30):
            await asyncio.to_thread(os.read, ready, 16)  # it writes its number when it is ready
        yield f":{number}", authority
    finally:
        os.close(ready)
        running.terminate()
        await running.wait()


async def test_ssh_x_shows_a_program_of_the_node_on_the_clients_display(world, need, xserver):
    need("ssh")
    need("xdpyinfo")
    show, authority = xserver
    env = {"DISPLAY": show, "XAUTHORITY": str(authority)}
    script = (
        'xdpyinfo | grep -e "^name of display" -e dimensions; stat -c "%U %a" "$XAUTHORITY"; echo "$XAUTHORITY"; '
        "cat $XAUTHORITY | od -An -tx1 | tr -d ' \n'; XAUTHORITY=/dev/null xdpyinfo 2>&1 | tail -1"
    )
    async with world.port() as port:
        options = [*world.openssh(port), "-o", f"XAuthLocation={need('xauth')}"]
        found = await world.run("ssh", "-Y", *options, "web", script, env=env)
        without = await world.run("ssh", *options, "web", 'echo "[$DISPLAY]"', env=env)
    lines = found.out.decode(errors="replace").splitlines()
    assert lines[0].split()[-1].startswith("localhost:1"), (lines, found.err)
    assert "640x480" in lines[1]
    assert lines[2] == f"{world.login} 600"
    await world.until(lambda: not Path(lines[3]).parent.exists())
    assert "a1" * 16 not in lines[4]  # the real cookie never comes to the node
    assert without.out == b"[]\n"
    (granted,) = world.events("x11.forward")
    assert granted["rule"] == "role access: options.permit_x11_forwarding is true"
    ended = await world.event("port.close")
    assert ended["kind"] == "x11"
    assert int(str(ended["bytes_in"])) > 100


async def test_without_the_right_ssh_says_so_and_there_is_no_display(world, make_role, need, xserver):
    world.roles["access"] = make_role(permit_x11_forwarding=None)
    show, authority = xserver
    env = {"DISPLAY": show, "XAUTHORITY": str(authority)}
    async with world.port() as port:
        options = ["-o", "LogLevel=DEBUG1", *world.openssh(port), "-o", f"XAuthLocation={need('xauth')}"]
        found = await world.run(need("ssh"), "-Y", *options, "web", 'echo "[$DISPLAY]"', env=env)
    assert found.out == b"[]\n"
    assert b"X11 forwarding is not allowed [connection c-1]" in found.err
    assert kinds(world) == [("x11", "no role that allows this access has options.permit_x11_forwarding")]


# OpenSSH's own client


async def test_openssh_forwards_both_ways_and_shows_refusals(world, need):
    need("ssh")
    home = Path(pwd.getpwnam(world.login).pw_dir)
    remote, path = free_port(), home / f"from-ssh-{os.getpid()}.sock"
    script = (
        "import socket\n"
        f"for family, where in ((socket.AF_INET, ('127.0.0.1', {remote})), (socket.AF_UNIX, '{path}')):\n"
        "    with socket.socket(family) as s:\n"
        "        s.connect(where); s.sendall(b'from the node'); s.shutdown(socket.SHUT_WR); print(s.recv(100))\n"
    )
    async with shouting() as target, world.port() as port:
        options = ["-o", "LogLevel=DEBUG1", *world.openssh(port), "-o", "ExitOnForwardFailure=yes"]
        to = f"127.0.0.1:{target}"
        both = ["-R", f"{remote}:{to}", "-R", f"{path}:{to}"]
        found = await world.run("ssh", *options, *both, "web", "python3 -", stdin=script.encode())
        refused = await world.run("ssh", *options, "-R", f"*:{free_port()}:{to}", "web", "true")
    assert found.out.splitlines() == [b"b'FROM THE NODE'"] * 2, found.err
    assert not path.exists()
    assert refused.status == 255
    assert b"Remote: remote forwarding of :" in refused.err
    assert b"listening on other addresses than loopback is not allowed [connection c-1]" in refused.err


async def test_sessions_that_end_while_their_display_is_made_leave_none(world, make_role):
    world.roles["access"] = make_role(permit_x11_forwarding=True)
    async with world.connected() as client:
        for _ in range(3):
            opened = [client.create_session(asyncssh.SSHClientSession, "cat", encoding=None) for _ in range(8)]
            channels = [channel for channel, _ in await asyncio.gather(*opened)]
            for channel in channels:
                told = Boolean(False), String("MIT-MAGIC-COOKIE-1"), String("0f" * 16), UInt32(0)
                channel._send_request(b"x11-req", *told)
                channel.abort()
            await asyncio.gather(*(channel.wait_closed() for channel in channels))
        channel, _ = await client.create_session(asyncssh.SSHClientSession, "cat", encoding=None)
        assert await x11(channel) is True, "the displays of those that are gone are free again"
        await world.until(lambda: len(displays()) == 1)


def displays() -> set[int]:
    """Numbers of the displays that listen on this machine's loopback."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = [int(row[1].partition(":")[2], 16) - display.BASE_PORT for row in rows if row[3] == "0A"]
    return {port for port in ports if display.FIRST <= port < display.LAST}
