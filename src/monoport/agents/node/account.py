"""The login user's account on this machine, and whether it may log in at all.

Belongs here: passwd, shadow and nologin, read as sshd reads them. Not here: what a role allows (`access`).
"""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import dataclass
from pathlib import Path

from monoport.errors import Failure

DAY = 86_400  # seconds; shadow(5) counts days
MAX_NOLOGIN = 4_096  # bytes of /etc/nologin that are shown
SHADOW = Path("/etc/shadow")
NOLOGIN = Path("/etc/nologin")
SHELLS = Path("/etc/shells")


class AccountError(Failure):
    """The account cannot be used; the text is one line."""


@dataclass(frozen=True, slots=True)
class Account:
    """One passwd entry; `shell` is a program that exists."""

    login: str
    uid: int
    gid: int
    home: str
    shell: str


def find(login: str) -> Account:
    """Return the account of that login; it may wait for a directory service, so call it in a thread.

    Raises AccountError: no such account, locked, expired, without a shell, or not ours to become.
    """
    try:
        found = pwd.getpwnam(login)
    except (KeyError, ValueError) as error:
        raise AccountError(f"login {login} does not exist") from error
    if os.geteuid() != 0 and found.pw_uid != os.geteuid():
        raise AccountError(f"login {login} is not served: this node does not run as root")
    shell = found.pw_shell or "/bin/sh"
    if not (os.path.isfile(shell) and os.access(shell, os.X_OK)):
        raise AccountError(f"login {login} has no usable shell")
    if os.geteuid() == 0:
        _check_shadow(login, _shadow(login))
    if found.pw_uid != 0 and NOLOGIN.exists():
        said = NOLOGIN.read_text(errors="replace")[:MAX_NOLOGIN].strip()
        raise AccountError(said or "logins are switched off on this node")
    return Account(login, found.pw_uid, found.pw_gid, found.pw_dir or "/", shell)


def _shadow(login: str) -> list[str]:
    """Return the fields of the account's line in /etc/shadow, none where it has no line (it lives elsewhere)."""
    try:
        lines = SHADOW.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    return next((fields for line in lines if (fields := line.split(":"))[0] == login), [])


def _check_shadow(login: str, fields: list[str]) -> None:
    """Refuse what an administrator has locked or let expire (shadow(5)).

    A bare "!" or "*" is an account that never had a password, as useradd makes it, and is fit for certificates; "!"
    before a password is `usermod --lock`.
    """
    if len(fields) < 9:
        return
    if fields[1].startswith("!") and fields[1].strip("!*"):
        raise AccountError(f"login {login} is locked")
    if fields[7].isdigit() and time.time() >= int(fields[7]) * DAY:
        raise AccountError(f"login {login} has expired")


def may_transfer(shell: str) -> bool:
    """Whether files may be transferred: sshd starts its SFTP server by the user's shell, so nologin keeps it out."""
    try:
        return shell in SHELLS.read_text().split()
    except FileNotFoundError:
        return shell == "/bin/sh"
