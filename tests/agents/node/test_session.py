"""Sessions: shells, commands, terminals, signals, and whose rights they have."""

import asyncio
import os
import pwd

import asyncssh


async def test_exec_runs_as_the_login_user(world):
    async with world.connected() as client:
        found = await client.run("id -un; id -gn; pwd; umask; echo $HOME $SHELL $USER $LOGNAME; cat; exit 3", input="hallo")
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
    assert end["exit"] == "3"
