"""Choosing a password: asked twice at a terminal, or the first line of standard input where that was asked for.

Belongs here: this alone. Whether the password will do, the auth service decides.
"""

import sys

from monoport.cli.password import ask, read_password
from monoport.errors import Failure


def choose_password(name: str, from_stdin: bool) -> str:
    """A new password for a user; raises Failure without a terminal, or if the two differ."""
    if from_stdin:
        return read_password()
    if not _at_terminal():
        raise Failure("no terminal to ask for a password at: pass it on standard input with --password-stdin")
    first = ask(f"Password for {name}: ")
    if ask("Once more: ") != first:
        raise Failure("the two passwords differ: nothing was changed")
    return first


def _at_terminal() -> bool:
    return sys.stdin.isatty()
