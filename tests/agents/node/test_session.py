"""Sessions: shells, commands, terminals, signals, large output, and whose rights they have."""

import os
import pwd

import asyncssh
import pytest

from monoport.agents.node.process import _groups


async def test_exec_runs_as_the_login_user(world):
    async with world.connected() as client:
        command = "id -un; id -gn; pwd; umask; echo $HOME $SHELL $USER $LOGNAME; cat; exit 3"
        found = await client.run(command, input="hallo")
    account = pwd.getpwnam(world.login)
    lines = found.stdout.splitlines()
    assert lines[0] == world.login
    assert lines[2] == account.pw_dir
    assert lines[3] == "0022"
    assert lines[4].split() == [account.pw_dir, account.pw_shell, world.login, world.login]
    assert lines[5] == "hallo"
    assert found.exit_status == 3
    start, end = world.events("session.start")[0], (await world.event("session.end"))
    assert (start["user"], start["login"], start["kind"]) == ("alice@example.com", world.login, "exec")
    assert (start["connection"], start["source"]) == ("c-1", "192.0.2.9:50000")
    assert end["exit"] == "3"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
async def test_nothing_of_root_is_left_in_the_child(world):
    async with world.connected() as client:
        found = await client.run("grep -E '^(Uid|Gid|Groups|CapEff|CapPrm):' /proc/self/status; ls /proc/self/fd")
        denied = await client.run("cat /etc/shadow")
    account = pwd.getpwnam(world.login)
    lines = dict(line.split(":\t", 1) for line in found.stdout.splitlines() if ":\t" in line)
    assert lines["Uid"].split() == [str(account.pw_uid)] * 4
    assert lines["Gid"].split() == [str(account.pw_gid)] * 4
    assert lines["Groups"].split() == [str(account.pw_gid)]
    assert int(lines["CapEff"], 16) == int(lines["CapPrm"], 16) == 0
    assert [line for line in found.stdout.splitlines() if line.isdigit()] == ["0", "1", "2", "3"]  # 3 is ls's own
    assert denied.exit_status == 1


async def test_stderr_is_apart_and_signals_are_reported(world):
    async with world.connected() as client:
        found = await client.run("echo out; echo err >&2; kill -TERM $$")
    assert (found.stdout, found.stderr) == ("out\n", "err\n")
    assert found.exit_signal is not None
    assert found.exit_signal[0] == "TERM"
    assert (await world.event("session.end"))["exit"] == "signal TERM"


async def test_large_output_and_input_arrive_whole(world):
    data = os.urandom(1 << 20) * 12
    async with world.connected() as client:
        found = await client.run("cat", input=data, encoding=None)
    assert found.stdout == data


async def test_output_after_the_reader_stopped_waits(world):
    async with world.connected(window=65536) as client:
        process = await client.create_process("head -c 20000000 /dev/zero", encoding=None)
        assert len(await process.stdout.readexactly(10)) == 10
        process.stdout.channel.pause_reading()
        await client.run("true")
        process.stdout.channel.resume_reading()
        rest = await process.stdout.read()
    assert len(rest) == 20_000_000 - 10


async def test_terminal_has_size_modes_type_and_follows_changes(world):
    async with world.connected() as client:
        process = await client.create_process(
            "stty size; stty -a; tty; echo $TERM; trap 'stty size; exit 5' WINCH; echo ready;"
            "while :; do sleep 0.1; done",
            term_type="vt220",
            term_size=(97, 31),
            term_modes={asyncssh.PTY_ECHO: 0, asyncssh.PTY_VINTR: 1},
            stderr=asyncssh.STDOUT,
        )
        seen = ""
        while "ready" not in seen:
            seen += await process.stdout.readline()
        assert seen.startswith("31 97\r\n")
        assert " -echo " in seen
        assert "intr = ^A" in seen
        assert "/dev/pts/" in seen
        assert "vt220" in seen
        process.change_terminal_size(120, 40)
        assert "40 120" in await process.stdout.read()
        await process.wait_closed()
    assert process.exit_status == 5


async def test_shell_is_a_login_shell_on_a_terminal(world):
    async with world.connected() as client:
        process = await client.create_process(term_type="xterm", stderr=asyncssh.STDOUT)
        process.stdin.write("echo $0:$-; tty; exit 4\n")
        seen = await process.stdout.read()
        await process.wait_closed()
    assert "-bash:" in seen or "-sh:" in seen
    assert process.exit_status == 4
    assert world.events("session.start")[0]["kind"] == "shell"


async def test_signal_request_reaches_the_process(world):
    async with world.connected() as client:
        process = await client.create_process("trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.05; done")
        assert await process.stdout.readline() == "ready\n"
        process.send_signal("USR1")
        assert await process.stdout.read() == "got\n"
        await process.wait_closed()
    assert process.exit_status == 9


async def test_only_language_variables_are_taken(world):
    env = {"LANG": "C.UTF-8", "LC_PAPER": "x", "LD_PRELOAD": "/tmp/x.so", "PATH": "/tmp", "BASH_ENV": "/tmp/x"}
    async with world.connected() as client:
        found = await client.run("env", env=env)
    lines = found.stdout.splitlines()
    assert "LANG=C.UTF-8" in lines
    assert "LC_PAPER=x" in lines
    assert not [line for line in lines if line.startswith(("LD_PRELOAD", "BASH_ENV"))]
    assert "PATH=/tmp" not in lines
    assert "SSH_CONNECTION=192.0.2.9 50000 127.0.0.1 22" in lines


async def test_what_runs_is_hung_up_when_the_client_goes(world):
    async with world.connected() as client:
        process = await client.create_process("echo $$; exec sleep 1000")
        number = int(await process.stdout.readline())
        client.abort()
    assert (await world.event("session.end"))["exit"] == "disconnected"
    await world.until(lambda: not alive(number))


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


async def test_everything_ends_with_the_certificate(world):
    async with world.connected() as client:
        stubborn = "trap '' HUP TERM; (trap '' HUP; exec sleep 1000) & echo $$ $!; while :; do sleep 1; done"
        process = await client.create_process(stubborn)
        numbers = [int(word) for word in (await process.stdout.readline()).split()]
        assert len(numbers) == 2
        world.ahead = world.lifetime
        await client.wait_closed()
        end = await world.event("session.end")
    assert end["exit"] == "certificate expired"
    await world.until(lambda: not any(alive(number) for number in numbers))


async def test_a_lock_ends_the_session(world, lock):
    async with world.connected() as client:
        process = await client.create_process("echo ready; sleep 1000")
        assert await process.stdout.readline() == "ready\n"
        world.locks.append(lock(user="alice"))
        await client.wait_closed()
        assert str((await world.event("session.end"))["exit"]).startswith("locked")


async def test_a_lock_ends_what_runs_also_where_the_proxy_cut_the_connection_first(world, lock):
    async with world.connected() as client:
        stubborn = "trap '' HUP TERM; (trap '' HUP; exec sleep 1000) & echo $$ $!; while :; do sleep 1; done"
        process = await client.create_process(stubborn)
        numbers = [int(word) for word in (await process.stdout.readline()).split()]
        client.abort()
        await client.wait_closed()
        world.locks.append(lock(user="alice"))  # here, the proxy has acted upon it already
        assert str((await world.event("session.end"))["exit"]).startswith("locked")
    await world.until(lambda: not any(alive(number) for number in numbers))


async def test_a_process_that_forks_all_the_time_does_not_escape_a_lock(world, lock):
    # it gives up after five seconds by itself: where it escapes, it must not fill this machine's table of processes
    hopping = "echo $$; exec perl -e '$SIG{HUP} = q(IGNORE); my $end = time + 5; while (time < $end) { exit if fork }'"
    async with world.connected() as client:
        process = await client.create_process(hopping)
        session = int(await process.stdout.readline())
        world.locks.append(lock(user="alice"))
        await client.wait_closed()
        await world.event("session.end")
    assert not list(_groups(session))


async def test_more_than_ten_sessions_are_refused(world):
    async with world.connected() as client:
        held = [await client.create_process("cat") for _ in range(10)]
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.create_process("true")
        held[0].close()
        await held[0].wait_closed()
        assert (await client.run("echo again")).stdout == "again\n"
