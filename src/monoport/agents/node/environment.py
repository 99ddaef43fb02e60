"""What a session's program finds in its environment.

Belongs here: the variables that login(1) and sshd set, and those that a client may. Not here: the program.
"""

from __future__ import annotations

from collections.abc import Mapping

from monoport.agents.node.account import Account

# besides LC_*; as Debian's sshd_config has it. None of them makes a program load or run anything.
ACCEPTED = frozenset({"LANG", "TERM", "COLORTERM", "NO_COLOR"})
MAX_VARIABLES = 64  # that a client may set; LANG and LC_* are fourteen
MAX_LENGTH = 1_024  # characters of one's name or value
ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"  # Debian's login.defs


def of(account: Account, source: tuple[str, int]) -> dict[str, str]:
    """Return what every session of an account has; `source` is the client's address as the proxy saw it."""
    address, port = source
    return {
        "USER": account.login,
        "LOGNAME": account.login,
        "HOME": account.home,
        "SHELL": account.shell,
        "PATH": ROOT_PATH if account.uid == 0 else USER_PATH,
        "MAIL": f"/var/mail/{account.login}",
        "SSH_CLIENT": f"{address} {port} 22",
        "SSH_CONNECTION": f"{address} {port} 127.0.0.1 22",
    }


def accepted(asked: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a client may set: its language and what its terminal can do; all others are dropped."""
    found: dict[str, str] = {}
    for name, value in asked.items():
        fits = name in ACCEPTED or (name.startswith("LC_") and name.replace("_", "").isalnum() and name.isascii())
        if fits and len(value) <= MAX_LENGTH and len(name) <= MAX_LENGTH and len(found) < MAX_VARIABLES:
            found[name] = value
    return found
