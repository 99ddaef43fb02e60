"""Configuration for the system's OpenSSH: `tsh config`.

Belongs here: options and their quoting. Does not belong here: known_hosts (knownhosts.py), running ssh (openssh.py).
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from monoport.client.profile import Home, Profile, UserFiles, user_home
from monoport.tunnel import link


def identity_options(paths: UserFiles) -> dict[str, str]:
    """The options that make an ssh client use the login and trust the cluster's nodes, and nothing else.

    Source: ssh_config(5).
    """
    return {
        "IdentityFile": _quoted(paths.key),
        "CertificateFile": _quoted(paths.ssh_certificate),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": _quoted(paths.known_hosts),
        "StrictHostKeyChecking": "yes",
    }


def alive_options() -> dict[str, str]:
    """The options by which ssh gives up a peer that answers nothing, as soon as a tunnel's ends do."""
    return {"ServerAliveInterval": f"{link.ALIVE:g}", "ServerAliveCountMax": f"{link.MISSED}"}


def ssh_config(home: Home, profile: Profile, environment: Mapping[str, str] = os.environ) -> str:
    """The block for `~/.ssh/config` by which ssh, scp and sftp reach the cluster's nodes.

    Args:
        home: where the login is; named in the command if it is not `~/.tsh`.
        profile: the login.
        environment: for `~`.
    """
    command = [*program(), "proxy", "ssh", f"--proxy={profile.proxy}", f"--cluster={profile.cluster}"]
    if home.path != user_home(environment) / ".tsh":
        command = ["env", f"TSH_HOME={home.path}", *command]
    options = {
        "ProxyCommand": shlex.join(command).replace("%", "%%") + " --user=%r %h:%p",
        **identity_options(home.keys(profile)),
        **alive_options(),
    }
    cluster, proxy = profile.cluster, profile.proxy
    lines = [
        f"# monoport: the nodes of {cluster} through {proxy}",
        f"Host *.{cluster}",
        *_indented(options),
        f"# the proxy's own SSH, for ssh -J {proxy}; other ports of that machine are left alone",
        f'Match originalhost {proxy.host} exec "{" || ".join(f"test %p = {one.port}" for one in profile.ssh_doors)}"',
        *_indented(identity_options(home.keys(profile)) | alive_options()),
        "Match all",  # ends what the lines behind an Include, or below, would else belong to
    ]
    return "\n".join(lines) + "\n"


def _indented(options: Mapping[str, str]) -> list[str]:
    return [f"    {name} {value}" for name, value in options.items()]


def program() -> list[str]:
    """The words that start this very tsh from anywhere."""
    called = Path(sys.argv[0])
    beside = Path(sys.executable).with_name("tsh")
    for candidate in (called if called.name == "tsh" else beside, beside):
        found = candidate if candidate.is_file() else shutil.which(candidate.name)
        if found is not None and os.access(found, os.X_OK):
            return [str(Path(found).absolute())]
    return [sys.executable, "-m", "monoport.cli.tsh"]


def _quoted(path: Path) -> str:
    """A path as ssh_config(5) reads it: quoted if it has blanks, percent signs doubled."""
    text = str(path).replace("%", "%%")
    return f'"{text}"' if any(char in text for char in " \t#'") else text
