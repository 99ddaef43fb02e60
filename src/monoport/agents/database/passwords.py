"""Passwords of database users, for real servers that cannot check certificates: the agent's own file.

Belongs here: reading that file. How a protocol proves a password is its engine's. Users never see what is in here, and
nothing of it is logged or told to a client.
"""

import os
from pathlib import Path

MAX_FILE = 1_048_576  # bytes, as for every file that a configuration names


class PasswordError(Exception):
    """The file cannot be used; the text is for the agent's log and holds nothing of its content."""


def password(file: Path, user: str) -> str:
    """Return the password of a database user.

    Args:
        file: lines `user:password`; empty lines and those that begin with # are left out. A password goes to the end
            of its line, and may hold colons.
        user: the database user, matched exactly.
    Raises PasswordError: the file cannot be read, others may read it, or it does not name the user.
    """
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(MAX_FILE + 1)
    except OSError as error:
        raise PasswordError(f"cannot read {file}: {error.strerror}") from None
    if mode & 0o077:
        raise PasswordError(f"{file} can be read by others than its owner; expected mode 0600")
    if len(data) > MAX_FILE:
        raise PasswordError(f"{file} is larger than {MAX_FILE} bytes")
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        raise PasswordError(f"{file} is not UTF-8") from None
    for line in lines:
        name, colon, found = line.partition(":")
        if colon and name == user and not line.startswith("#"):
            return found.removesuffix("\r")
    raise PasswordError(f"{file} has no line for this database user")
