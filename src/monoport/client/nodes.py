"""Nodes from the user's side: which there are, `tsh ssh`, `tsh scp`.

Belongs here: what the words mean for which node and login. Does not belong here: connections (ssh.py), ssh's own
program (openssh.py).
"""

import getpass
from collections.abc import Callable, Sequence
from typing import Any

from monoport.client.busy import Busy, quiet
from monoport.client.front import Front
from monoport.client.openssh import open_ssh
from monoport.client.profile import Home, Profile
from monoport.client.sshconfig import alive_options
from monoport.client.words import pick_login, scp_words, ssh_words, with_login

# Behind the user's own options, of which ssh takes the first: a node that answers nothing is given up as a proxy is.
ALIVE = tuple(word for name, value in alive_options().items() for word in ("-o", f"{name}={value}"))

Report = Callable[[str], None]


async def nodes(home: Home, profile: Profile) -> list[dict[str, Any]]:
    """The nodes that the user may see, by name, as rows of `tsh ls`."""
    # `tsh ssh` is on the way of every connection and needs neither the auth service's client nor the models.
    from monoport.access.resources import Node  # noqa: PLC0415
    from monoport.client.authapi import auth_client  # noqa: PLC0415

    async with auth_client(home, profile) as client:
        found = [each for each in await client.list("node") if isinstance(each, Node)]
    found.sort(key=lambda node: (node.spec.hostname, node.name))
    return [{"name": node.spec.hostname, "id": node.name, "labels": dict(node.metadata.labels)} for node in found]


async def run_ssh(
    home: Home,
    profile: Profile,
    words: Sequence[str],
    *,
    report: Report,
    busy: Busy = quiet,
    background: Callable[[], None] | None = None,
) -> int:
    """`tsh ssh`: returns the remote command's exit status, 255 where ssh itself failed.

    `background`: for `-f`, as `open_ssh` has it.

    Raises:
        Failure: the words make no sense, or the node cannot be reached.
    """
    profile.check()
    asked = ssh_words(words)
    login = pick_login(asked.login, profile.logins, getpass.getuser())
    arguments = [*asked.options, *ALIVE, "-l", login, "--", asked.host, *asked.command]
    return await open_ssh(
        home,
        Front(profile),
        "ssh",
        [asked.host],
        login=login,
        arguments=arguments,
        report=report,
        busy=busy,
        background=background,
    )


async def run_scp(home: Home, profile: Profile, words: Sequence[str], *, report: Report, busy: Busy = quiet) -> int:
    """`tsh scp`: returns scp's exit status.

    Raises:
        Failure: the words make no sense, or a node cannot be reached.
    """
    profile.check()
    asked = scp_words(words)
    logins = {each: pick_login(each, profile.logins, getpass.getuser()) for each in asked.logins}
    paths = (with_login(path, logins.get("", "")) for path in asked.paths)
    arguments = [*asked.options, *ALIVE, "--", *paths]
    first = next(iter(logins.values()))
    return await open_ssh(
        home, Front(profile), "scp", asked.hosts, login=first, arguments=arguments, report=report, busy=busy
    )
