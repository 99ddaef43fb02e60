"""Reading a password: hidden at a terminal, else one line of standard input.

Belongs here: this alone; a password is never an argument and never in the environment.
"""

import getpass
import sys

from monoport.errors import Failure

MAX_PASSWORD = 4096  # bytes; the auth service takes no longer ones


def read_password() -> str:
    """The password.

    Raises:
        Failure: standard input is empty, or its first line is too long.
    """
    if sys.stdin.isatty():
        return getpass.getpass("Password: ")
    line = sys.stdin.buffer.readline(MAX_PASSWORD + 2)
    if not line:
        raise Failure("no password: standard input is empty and no terminal; give it as the first line")
    password = line.rstrip(b"\r\n")
    if len(password) > MAX_PASSWORD:
        raise Failure(f"the password is longer than {MAX_PASSWORD} bytes")
    try:
        return password.decode()
    except UnicodeDecodeError:
        raise Failure("the password is not UTF-8") from None
